"""Verbs that read a bundle: scores, masks, loadings, genes, compositions, states of cells."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from samsvae_core.cli.options import (
    BundleFolder,
    Output,
    Seed,
    Table,
    known,
    named_once,
    new_table,
    number_of,
    parse_dosage,
    say,
    warn,
    write_table,
)


def evaluate(
    bundle: BundleFolder,
    data: Annotated[Path, typer.Option(help="The .h5ad file the bundle was trained on.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="metrics.json")] = None,
    library: Annotated[
        str, typer.Option(help="Library sizes: data, or 10000 as in the paper.")
    ] = "data",
    reference: Annotated[
        str, typer.Option(help="Observed effects from: test cells, or all as in the paper.")
    ] = "test",
    seed: Seed = 0,
) -> None:
    """Score a bundle on its held-out cells, beside simple baselines."""
    from samsvae_core.analysis.held_out import metrics_in_words, other_draws
    from samsvae_core.bundle.layout import to_json
    from samsvae_core.bundle.opening import load
    from samsvae_core.data.covariates import unseen_in_words
    from samsvae_core.data.h5ad import read_cells
    from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate_bundle
    from samsvae_core.pipeline.train import read_options
    from samsvae_core.system.files import atomic_write, new_output

    known("--library", library, ["data", "10000"])
    known("--reference", reference, ["test", "all"])
    if output is not None:
        new_output(output)
    model = load(bundle)
    cells = read_cells(data, read_options(bundle, data))
    if unseen := unseen_in_words(cells.covariates, model.levels):
        say(unseen)
    config = EvaluationConfig(library=library, reference=reference, seed=seed)
    metrics = evaluate_bundle(model, cells, config)
    say(metrics_in_words(metrics, model.title))
    if config == EvaluationConfig():
        made = str(model.manifest.get("created")).partition("T")[0]
        if said := other_draws(model.metrics, metrics, made):
            say(f"\n{said}")
    if output is not None:
        atomic_write(output, to_json(metrics))
        say(f"Wrote {output}.")


def masks(bundle: BundleFolder, output: Table) -> None:
    """Which mechanisms each perturbation uses."""
    from samsvae_core.bundle.opening import load

    new_table(output)
    write_table(load(bundle).masks, output)


def direct(
    bundle: BundleFolder,
    output: Table,
    active: Annotated[bool, typer.Option("--active", help="Only effects that stand out.")] = False,
) -> None:
    """What each perturbation does to single genes, outside every mechanism."""
    from samsvae_core.bundle.opening import load

    new_table(output)
    model = load(bundle)
    table = model.direct
    if table is None:
        raise ValueError(
            f"{model.name} has no direct effects: it was trained without them, or before they "
            "were known. Train it again with --direct-effects sparse."
        )
    write_table(table[table["active"]] if active else table, output)


def differences(
    bundle: BundleFolder,
    output: Table,
    active: Annotated[bool, typer.Option("--active", help="Only those that are there.")] = False,
) -> None:
    """Which mechanisms each perturbation moves differently at a level of the context."""
    from samsvae_core.bundle.opening import load

    new_table(output)
    model = load(bundle)
    table = model.differences
    if table is None:
        raise ValueError(
            f"{model.name} has the same effects everywhere: it was trained without contexts. Train "
            "it again with --context and the column of cell lines, cell types or treatments."
        )
    write_table(table[table["active"]] if active else table, output)


def loadings(
    bundle: BundleFolder,
    output: Table,
    steps: Annotated[
        bool, typer.Option("--steps", help="At several steps, in both directions.")
    ] = False,
) -> None:
    """What each mechanism does to each gene."""
    from samsvae_core.bundle.opening import load

    new_table(output)
    model = load(bundle)
    if not steps:
        write_table(model.loadings, output)
        return
    from samsvae_core.analysis import loadings as loadings_of
    from samsvae_core.analysis import masks as interpretation

    active = interpretation.active_mechanisms(model.masks) or None
    curves = loadings_of.loading_curves(model.model, model.reference, model.genes, active)
    for k, row in loadings_of.linearity(curves).iterrows():
        say(f"M{k}: {row['words']}")
    write_table(curves, output)


def gene(
    bundle: BundleFolder,
    symbol: Annotated[str, typer.Argument(help="A gene of the model, by any of its names.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Table of the perturbations that move it.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """A gene: what it is, which mechanisms and which perturbations move it."""
    from samsvae_core.analysis import gene_card as genes
    from samsvae_core.bundle.opening import load
    from samsvae_core.genesets.symbols import known_genes

    if output is not None:
        new_table(output)
    model = load(bundle)
    found, _ = known_genes([symbol], model.genes, model.genes_by_id)
    name = genes.measured(model, found[0] if found else symbol)
    warn(model)
    card = genes.annotation(name, model.genes)
    say(f"{name}: {card.name or 'no name known'}. {card.note}".rstrip())
    for label, text in (
        ("Also called", ", ".join(card.aliases)),
        ("Entrez", card.entrez),
        ("Ensembl", ", ".join(card.ensembl)),
        *genes.links(name, model.genes).items(),
    ):
        if text:
            say(f"  {label}: {text}")
    effects = genes.effect_table(model, seed=seed, genes=[name])
    moved = genes.moved_by(effects, name)
    say("Perturbations that move it most (shift, 90 % interval, calibrated if it is known):")
    for row in moved.head(10).itertuples():
        low, high = row.calibrated_lower, row.calibrated_upper
        if math.isnan(low):
            low, high = row.lower, row.upper
        reach = "" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})"
        say(f"  {row.perturbation}: {row.shift:+.2f}{reach}")
    active = model.masks.loc[model.masks["active"], "mechanism"]
    for row in genes.mechanisms_of(model, name).itertuples():
        if row.mechanism in set(active):
            say(
                f"  M{row.mechanism}: loading {row.loading:+.3f} (se {row.se:.3f}), "
                f"{row.rank_up} from the top and {row.rank_down} from the bottom of "
                f"{len(model.genes):,} genes"
            )
    if output is not None:
        write_table(moved, output)


def compose(
    bundle: BundleFolder,
    perturbations: Annotated[
        list[str], typer.Argument(help="NAME or NAME:DOSAGE, any number of them.")
    ],
    output: Table,
    without: Annotated[
        list[str] | None, typer.Option(help="Take a mechanism out, 0 or M0; may be repeated.")
    ] = None,
    samples: Annotated[int, typer.Option(min=2, help="Posterior draws.")] = 64,
    start_from: Annotated[
        str | None,
        typer.Option(
            help="Start from the cells of this condition on the map, not from reference controls."
        ),
    ] = None,
    direct: Annotated[
        bool, typer.Option("--direct/--no-direct", help="Include direct effects.")
    ] = True,
    level: Annotated[
        str | None,
        typer.Option(help="At this level of the model's --context, not of the mean cell."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Predict what perturbations do together; writes a table and, beside it, its settings."""
    from samsvae_core.analysis.compose import compose as predict
    from samsvae_core.analysis.draws import cells_of
    from samsvae_core.analysis.support import SUPPORT, outside
    from samsvae_core.bundle.layout import to_json
    from samsvae_core.bundle.opening import load
    from samsvae_core.evaluation.fitness import caution
    from samsvae_core.system.files import atomic_write, new_output

    new_table(output)
    settings_file = new_output(output.with_suffix(".json"))
    model = load(bundle)
    known_names = set(model.perturbations.index)
    dosages = named_once([parse_dosage(text, known_names) for text in perturbations])
    cells = None if start_from is None else cells_of(model, start_from)
    left_out = [number_of("--without", text) for text in without or ()]
    result = predict(model, dosages, left_out, samples, seed, cells, direct, level)
    settings = {"bundle": model.checksum, "start_from": start_from, **result.settings()}
    if said := caution(model):
        settings["caution"] = said
    atomic_write(settings_file, to_json(settings))
    write_table(result.table.reset_index(), output)
    warn(model)
    say(f"{result.condition}: {SUPPORT[result.support]}")
    if result.support == "dosage":
        say("\n".join(outside(model, dosages)))
    if cells is None:
        say(f"Starts from {result.n_reference:,} reference control cells.")
    else:
        say(
            f"Starts from {result.n_reference:,} of the {len(cells):,} cells of {start_from} on "
            "the map, at their posterior mean basal states."
        )
    if near := result.nearest:
        say(
            f"Nearest measured condition: {near.condition}, {near.distance:.2f} standard deviations"
            f" of the basal state away; the shift itself is {near.length:.2f} long."
        )
    shift = result.table["shift"]
    for what, name in (("smallest", shift.idxmin()), ("largest", shift.idxmax())):
        say(f"{what} shift: {name} {shift[name]:+.3f}")


def embed(
    bundle: BundleFolder,
    output: Output,
    data: Annotated[Path, typer.Option(help="An .h5ad file with the bundle's genes.")],
) -> None:
    """Add the latent states of cells to a copy of their file, in obsm, for scanpy."""
    import shutil
    import tempfile

    import h5py
    import numpy as np
    from anndata.io import write_elem

    from samsvae_core.analysis.states import embed as states_of
    from samsvae_core.bundle.opening import load
    from samsvae_core.data.covariates import unseen_in_words
    from samsvae_core.data.h5ad import read_cells
    from samsvae_core.data.tables import table_of
    from samsvae_core.pipeline.train import read_options
    from samsvae_core.system.files import atomic_write, new_output

    new_output(output)
    model = load(bundle)
    cells = read_cells(data, read_options(bundle, data))
    if unseen := unseen_in_words(cells.covariates, model.levels):
        say(unseen)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "embedded.h5ad"
        shutil.copyfile(data, temporary)  # what else is in it stays as it is, readable or not
        with h5py.File(temporary, "r+") as file:
            every = table_of(file, "obs").index
            if "obsm" not in file:
                write_elem(file, "obsm", {})
            for name, states in states_of(model, cells).items():
                whole = np.full((len(every), states.shape[1]), np.nan, states.dtype)
                whole[every.get_indexer(cells.cells)] = states  # others were left out of training
                write_elem(file["obsm"], f"X_samsvae_{name}", whole)
        atomic_write(output, temporary.read_bytes())
    say(f"Wrote {output}: obsm X_samsvae_basal and X_samsvae_shifted.")


def structure(
    bundles: Annotated[list[Path], typer.Argument(help="Bundles; several of the same data.")],
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV with columns perturbation, group: pathways or complexes."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Do masks agree between trainings, and perturbations of one group lie together?"""
    from samsvae_core.analysis import masks as interpretation
    from samsvae_core.bundle.layout import read_groups
    from samsvae_core.bundle.opening import load
    from samsvae_core.evaluation.metrics import group_agreement, mask_stability

    if len(bundles) < 2 and groups is None:
        raise ValueError("Name two bundles or more to compare, or known groups with --groups FILE.")
    models = [load(path) for path in bundles]
    for model in models:
        if not (model.model.has_masks or (groups and model.model.has_shifts)):
            raise ValueError(f"{model.path}: {model.title} has nothing here to compare.")
    if groups is not None:
        known = read_groups(groups)
        for model in models:
            effects = interpretation.matrix(model.masks, "effect")
            found = group_agreement(effects, known, seed=seed)
            say(structure_in_words(model.name, found))
    if len(models) > 1 and all(model.model.has_masks for model in models):
        names = set(models[0].perturbations.index)
        if any(set(model.perturbations.index) != names for model in models):
            raise ValueError("These bundles have different perturbations; masks cannot be matched.")
        order = sorted(names)
        masks = [interpretation.matrix(m.masks, "active").loc[order].to_numpy() for m in models]
        for path, mask in zip(bundles, masks, strict=True):
            if mask.all() or not mask.any():
                how_many = "all" if mask.all() else "no"
                say(
                    f"{path}: {how_many} entries are active, so that agreement with it means "
                    "nothing, as after too short a training."
                )
        for pair in mask_stability([mask.astype(bool) for mask in masks]).dropna().itertuples():
            say(
                f"{bundles[pair.first]} and {bundles[pair.second]}: active entries agree with F1 "
                f"{pair.f1:.2f}, Jaccard index {pair.jaccard:.2f} (mechanisms matched)."
            )


def structure_in_words(name: str, found: dict[str, Any]) -> str:
    """Accuracy and silhouette of known groups, beside those of permuted labels."""
    lines = [
        f"{name}: {found['n_perturbations']} perturbations in {len(found['groups'])} groups, "
        f"{found['n_permutations']} permutations of their labels"
    ]
    for key, words in (
        ("accuracy", f"group of the {found['k']} nearest neighbours right"),
        ("silhouette", "mean silhouette"),
    ):
        figures = found[key]
        lines.append(
            f"  {words}: {figures['value']:.3f}; permuted {figures['permuted_mean']:.3f} "
            f"(sd {figures['permuted_sd']:.3f}), p = {figures['p_value']:.3f}"
        )
    return "\n".join(lines)
