"""The command line: one verb per capability. `samsvae --help` lists them.

A user's mistake ends with one message and exit code 2, never with a traceback.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import logging
import math
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from samsvae_core.bundle.bundle import Bundle
    from samsvae_core.data.cells import CellData
    from samsvae_core.training.config import Progress
    from samsvae_core.training.run_folder import Stopper

ROOT = Path(__file__).resolve().parents[1]
EPOCHS_PER_LINE = 10

app = typer.Typer(
    help="Sparse mechanisms of genetic perturbations in single cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DataFile = Annotated[Path, typer.Argument(help="An .h5ad file with raw counts.")]
BundleFolder = Annotated[Path, typer.Argument(help="A bundle: a finished run, or a shipped model.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="What to write; must not exist yet.")]
Table = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A new table, such as mine.csv; or one that ends in .tsv or .parquet.",
    ),
]
Key = Annotated[str | None, typer.Option(help="Column of obs with the perturbation of each cell.")]
Control = Annotated[
    list[str] | None,
    typer.Option(help="Label of control cells, or a pattern ('*non-targeting*'); may be repeated."),
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="Between the parts of a combination; '' keeps labels whole. Found by itself if absent."
    ),
]
Layer = Annotated[str | None, typer.Option(help="Layer with the counts, instead of X.")]
GeneKey = Annotated[
    str | None,
    typer.Option(
        help="Column of var with the names of genes, or var_names for its index. Found by itself "
        "where the index holds row numbers or ids."
    ),
]
SizeFactor = Annotated[str | None, typer.Option(help="Column of obs with each cell's total.")]
Dosage = Annotated[str | None, typer.Option(help="Column of obs, or key of obsm, with dosages.")]
JoinGuides = Annotated[
    bool, typer.Option("--join-guides", help="Read guides such as TP53_1 and sgTP53 as TP53.")
]
DropUnlabelled = Annotated[
    bool | None,
    typer.Option(
        "--drop-unlabelled/--unlabelled-as-control",
        help="Leave out cells without a label or guide, or count them as control cells.",
        show_default=False,
    ),
]
Replicate = Annotated[str | None, typer.Option(help="Column of obs with biological replicates.")]
CountsOn = Annotated[
    str,
    typer.Option(
        help="memory; disk: in files, for counts larger than memory; or auto: on disk if they "
        "would take more than a quarter of the memory that is free."
    ),
]
Likelihood = Annotated[
    str, typer.Option(help="counts, or gaussian for values that are not counts.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same result.")]


UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    """A text for a terminal: what would move its cursor or colour it is written as an escape.

    Labels come from files of others. Lines and tabs stay.
    """
    return UNSEEN.sub(lambda sign: sign[0].encode("unicode_escape").decode(), str(text))


def say(text: object, err: bool = False) -> None:
    """Print a line; everything that this program tells goes through here."""
    typer.echo(printable(text), err=err)


class Told(logging.Formatter):
    """Warnings of ours on stderr, as everything else is told."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Sparse mechanisms of genetic perturbations in single cells."""
    if version:
        say(f"samsvae {importlib.metadata.version('samsvae-explorer')}")
        raise typer.Exit


@app.command()
def validate(
    data: DataFile,
    perturbation_key: Key = None,
    control: Control = None,
    delimiter: Delimiter = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    size_factor_key: SizeFactor = None,
    dosage_key: Dosage = None,
    replicate_key: Replicate = None,
    join_guides: JoinGuides = False,
    drop_unlabelled: DropUnlabelled = None,
    likelihood: Likelihood = "counts",
    counts_on: CountsOn = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file holds and how it would be read, without training."""
    import json

    import numpy as np

    from samsvae_core.data.cells import describe, summary

    cells = read(
        data,
        perturbation_key=perturbation_key,
        control=control or None,
        delimiter=delimiter,
        layer=layer,
        gene_key=gene_key,
        size_factor_key=size_factor_key,
        dosage_key=dosage_key,
        replicate_key=replicate_key,
        join_guides=join_guides,
        drop_unlabelled=drop_unlabelled,
        continuous=is_gaussian(likelihood),
        counts_on=counts_on,
    )
    found = summary(cells)
    if as_json:
        names, sizes = np.unique(cells.conditions, return_counts=True)
        found["conditions"] = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    say(json.dumps(found, indent=1) if as_json else describe(found))


@app.command()
def inspect(
    data: DataFile,
    gene_key: GeneKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file offers to choose from: columns and their labels, layers, tables."""
    import json

    from samsvae_core.data.inspection import describe
    from samsvae_core.data.inspection import inspect as look

    found = look(data, gene_key)
    say(json.dumps(found) if as_json else describe(found))


@app.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="The .h5ad to write.")],
    cells: Annotated[int, typer.Option(min=1)] = 5000,
    genes: Annotated[int, typer.Option(min=2)] = 200,
    perturbations: Annotated[int, typer.Option(min=1)] = 20,
    latents: Annotated[int, typer.Option(min=1)] = 5,
    combinations: Annotated[int, typer.Option(min=0)] = 5,
    seed: Seed = 0,
) -> None:
    """Draw counts from a SAMS-VAE with known masks; the truth is kept in `uns`."""
    from samsvae_core.models import simulate as simulation
    from samsvae_core.system.files import new_output

    new_output(output)
    design = simulation.Design(cells, genes, perturbations, latents, combinations, seed=seed)
    drawn, truth = simulation.simulate(design)
    simulation.write_h5ad(drawn, truth, output)
    say(
        f"Wrote {output}: {cells:,} cells x {genes:,} genes, {perturbations} perturbations, "
        f"{combinations} combinations, {int(truth.mask.sum())} true mask entries."
    )


class NamingModels(TyperCommand):
    """Puts the kinds of model into the help when it is asked for: importing torch takes seconds."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        from samsvae_core.models.variants import MODELS
        from samsvae_core.system.messages import either

        option = next(each for each in self.params if each.name == "model")
        assert isinstance(option, TyperOption)
        option.help = f"{either(list(MODELS))}."
        super().format_help(ctx, formatter)


@app.command(cls=NamingModels)
def train(
    data: DataFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder, a new one.")],
    model: Annotated[
        str,
        typer.Option(),
    ] = "sams-vae",
    encoder: Annotated[
        str, typer.Option(help="correlated (reads the shift too) or mean-field.")
    ] = "correlated",
    likelihood: Likelihood = "counts",
    device: Device = "auto",
    split: Annotated[
        str,
        typer.Option(
            help="random; combinations (some are held out); efficiency (some of their cells are "
            "left out); or a CSV file with the columns cell, split, or with a column condition: "
            "those are held out."
        ),
    ] = "random",
    fraction: Annotated[
        float | None,
        typer.Option(
            help="Of combinations to train on (default 0.75), or of their cells (default 0.5)."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default 6000).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of --steps.")] = None,
    latents: Annotated[int, typer.Option(min=1, help="Mechanisms to start from.")] = 20,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden units of the networks.")] = 400,
    mask_evidence: Annotated[
        float,
        typer.Option(min=0, help="Nats per cell an active mechanism must bring."),
    ] = 0.16,
    mask_prior: Annotated[
        float | None,
        typer.Option(help="The published prior instead: a probability such as 0.05, not annealed."),
    ] = None,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier", help="Try several --mask-evidence and keep the sparsest that fits."
        ),
    ] = False,
    particles: Annotated[int, typer.Option(min=1, help="Samples per cell and step.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Cells per step.")] = 512,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the networks.")] = 1e-3,
    genes: Annotated[Path | None, typer.Option(help="File with the genes to keep.")] = None,
    top_genes: Annotated[
        int | None, typer.Option(min=2, help="Keep this many most variable genes.")
    ] = None,
    perturbation_key: Key = None,
    control: Control = None,
    delimiter: Delimiter = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    size_factor_key: SizeFactor = None,
    dosage_key: Dosage = None,
    replicate_key: Replicate = None,
    join_guides: JoinGuides = False,
    drop_unlabelled: DropUnlabelled = None,
    seed: Seed = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    counts_on: CountsOn = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, with its settings.")
    ] = False,
) -> None:
    """Train a model and keep it, with all its tables, as a bundle in --output."""
    from contextlib import ExitStack
    from dataclasses import replace

    import torch

    from samsvae_core.data.cells import gene_panel, read_genes
    from samsvae_core.data.splits import split as split_cells
    from samsvae_core.models.variants import MODELS
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.system.files import new_output
    from samsvae_core.training import distributed
    from samsvae_core.training.config import TrainConfig
    from samsvae_core.training.run_folder import is_prepared, recorded

    known("--model", model, list(MODELS))
    known("--encoder", encoder, ["correlated", "mean-field"])
    known("--counts-on", counts_on, ["auto", "memory", "disk"])
    if steps is not None and epochs is not None:
        raise ValueError(
            f"--steps is {steps} and --epochs {epochs}: both say how long to train. Give one."
        )
    if mask_prior is not None and not 0 < mask_prior < 1:
        raise ValueError(f"--mask-prior is {mask_prior}; expected a probability between 0 and 1.")
    if not 0 < learning_rate < math.inf or mask_evidence == math.inf:
        raise ValueError(
            f"--learning-rate is {learning_rate} and --mask-evidence {mask_evidence}; expected "
            "finite numbers, and a learning rate above 0."
        )
    where = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if distributed.first_started() and not resume and not is_prepared(output):
        new_output(output)

    def on_epoch(progress: Progress) -> None:
        progress_line(progress)
        stopper.epoch_done()

    with ExitStack() as stack:
        if not distributed.first_started():
            follow(data, output, where)
            return
        stopper = stack.enter_context(stopping(data, output))
        where = stack.enter_context(distributed.group(where))
        if resume:
            pipeline.read_settings(output)
            say_where(output, where)
        if resume or is_prepared(output):  # what ends the run is kept there, bad data included
            stack.enter_context(recorded(output))
        if resume:
            options = pipeline.read_options(output)
            if counts_on != "auto":
                options["counts_on"] = counts_on
            cells = read(data, **options, scratch=output, say=say)
            finished = pipeline.resume(cells, output, where, on_epoch, say=say)
        else:
            cells = read(
                data,
                perturbation_key=perturbation_key,
                control=control or None,
                delimiter=delimiter,
                layer=layer,
                gene_key=gene_key,
                size_factor_key=size_factor_key,
                dosage_key=dosage_key,
                replicate_key=replicate_key,
                join_guides=join_guides,
                drop_unlabelled=drop_unlabelled,
                continuous=is_gaussian(likelihood),
                counts_on=counts_on,
                scratch=next(place for place in [output, *output.parents] if place.is_dir()),
                say=say,
            )
            if genes is not None:
                cells = gene_panel(cells, genes=read_genes(genes))
            parts = split_cells(cells, split, seed, fraction)
            if top_genes is not None:  # by what may be known of them: the training cells
                kept = gene_panel(cells.subset(parts == "train"), top=top_genes).genes
                cells = gene_panel(cells, genes=kept.tolist())
            if epochs is not None:
                steps = epochs * -(-int((parts == "train").sum()) // batch_size)
            settings = TrainConfig(
                steps=steps or TrainConfig.steps,
                batch_size=batch_size,
                particles=particles,
                learning_rate=learning_rate,
                seed=seed,
            )
            if mask_prior is not None:
                settings = replace(settings, dense=0.0, anneal=0.0)
            options = {
                "n_latent": latents,
                "n_hidden": hidden,
                "mask_evidence": None if mask_prior is not None else mask_evidence,
                "encoder": encoder,
            }
            if mask_prior is not None:
                options["mask_prior"] = mask_prior
            finished = pipeline.train(
                cells,
                parts,
                output,
                options,
                settings,
                where,
                on_epoch,
                model=model,
                frontier=frontier,
                say=say,
            )
    from samsvae_core.analysis.held_out import metrics_in_words
    from samsvae_core.analysis.masks import in_use_in_words

    say(f"Wrote {output}: {finished.title}.")
    if finished.model.has_masks:
        say(in_use_in_words(finished.masks))
    say(metrics_in_words(finished.metrics, finished.title))
    warn(finished)


@app.command()
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
    from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate_bundle
    from samsvae_core.pipeline.train import read_options
    from samsvae_core.system.files import atomic_write, new_output

    known("--library", library, ["data", "10000"])
    known("--reference", reference, ["test", "all"])
    if output is not None:
        new_output(output)
    model = load(bundle)
    cells = read(data, **read_options(bundle, data))
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


@app.command()
def masks(bundle: BundleFolder, output: Table) -> None:
    """Which mechanisms each perturbation uses."""
    from samsvae_core.bundle.opening import load

    new_table(output)
    write_table(load(bundle).masks, output)


@app.command()
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


@app.command()
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


@app.command()
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
    seed: Seed = 0,
) -> None:
    """Predict what perturbations do together; writes a table and, beside it, its settings."""
    from samsvae_core.analysis.compose import cells_of
    from samsvae_core.analysis.compose import compose as predict
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
    result = predict(model, dosages, left_out, samples, seed, cells)
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


@app.command()
def enrich(
    bundle: BundleFolder,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="New: .xlsx, .zip, .csv, .tsv, .parquet, or a folder (no ending) with every file.",
        ),
    ],
    collection: Annotated[
        list[str] | None, typer.Option(help="A shipped collection; may be repeated.")
    ] = None,
    gmt: Annotated[list[Path] | None, typer.Option(help="A .gmt file; may be repeated.")] = None,
    enrichr: Annotated[
        list[str] | None, typer.Option(help="A library of Enrichr by name (network); repeatable.")
    ] = None,
    mechanism: Annotated[
        list[str] | None, typer.Option(help="Only this mechanism, 0 or M0; may be repeated.")
    ] = None,
    perturbation: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:DOSAGE: of its predicted shift instead; repeat to compose."
        ),
    ] = None,
    min_size: Annotated[int, typer.Option(min=1, help="Measured genes of a set, at least.")] = 5,
    max_size: Annotated[int, typer.Option(min=1, help="And at most.")] = 500,
    top: Annotated[
        int, typer.Option(min=1, help="Genes each way that over-representation looks at.")
    ] = 50,
    sign: Annotated[
        float | None,
        typer.Option(help="Instead: those whose sign is this probable, such as 0.95."),
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(min=0, help="With --sign: and whose effect is at least this large (0.1)."),
    ] = None,
    background: Annotated[
        Path | None, typer.Option(help="File with the genes of the universe; default: the model's.")
    ] = None,
    seed: Seed = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: as many as there are processors.")
    ] = None,
) -> None:
    """Gene sets of every mechanism in use, or of a predicted shift, by two tests."""
    from samsvae_core.analysis import enrichment_export, gene_rankings
    from samsvae_core.analysis.compose import compose as predict
    from samsvae_core.bundle.opening import load
    from samsvae_core.genesets import enrichment, screening
    from samsvae_core.genesets.collections import describe, load_collection, match, read_gmt
    from samsvae_core.genesets.enrichr import enrichr as library
    from samsvae_core.genesets.terms import grouped
    from samsvae_core.system.files import atomic_write, new_output

    tables = [".csv", ".tsv", ".parquet"]
    if output.suffix not in ["", ".xlsx", ".zip", *tables]:
        raise ValueError(
            f"{output} must end in .xlsx, .zip, {', '.join(tables)}, or be a folder (no ending)."
        )
    new_output(output)
    if sign is not None and not 0.5 <= sign < 1:
        raise ValueError(f"--sign is {sign}; expected a probability of at least 0.5, below 1.")
    if sign is None and effect is not None:
        raise ValueError("--effect goes with --sign: give both, or --top alone.")
    if mechanism and perturbation:
        raise ValueError("Give --mechanism or --perturbation, not both: they ask different things.")
    names = collection or ([] if gmt or enrichr else ["hallmark"])
    sets = [load_collection(name) for name in names] + [read_gmt(path) for path in gmt or []]
    sets += [library(name) for name in enrichr or []]
    if twice := {s.name for s in sets if sum(s.name == other.name for other in sets) > 1}:
        raise ValueError(f"Two collections are called {', '.join(sorted(twice))}; rename a file.")
    rules = enrichment.Rules(min_size, max_size, seed, top)
    certainty = None
    if sign is not None:
        rules, certainty = (
            rules._replace(n_top=None),
            gene_rankings.Certainty(sign, 0.1 if effect is None else effect),
        )
    model = load(bundle)
    if background is not None:
        rules = rules._replace(universe=universe_of(background, model))
    if perturbation:
        known_names = set(model.perturbations.index)
        dosages = named_once([parse_dosage(text, known_names) for text in perturbation])
        ranked = gene_rankings.of_shift(predict(model, dosages, seed=seed), certainty)
    else:
        numbers = None if mechanism is None else [number_of("--mechanism", k) for k in mechanism]
        ranked = gene_rankings.of_mechanisms(model, numbers, certainty)
    found = enrichment.enrich(ranked.scores, sets, rules, ranked.moved, processes, rankings_line)
    for one in sets:
        say(describe(match(one, model.genes)))
    found = found._replace(table=grouped(found.table))
    results = gene_rankings.gathered(model, ranked, sets, found, rules)
    for line in screening.problems(found.notes):
        say(line)
    if "caution" in results.settings:
        say(f"Caution: {results.settings['caution']}")
    for name, row in results.names.iterrows():
        say(f"{enrichment_export.label(name)}: {row['name']}. {row['evidence'].rstrip('.')}.")
    if output.suffix in tables:
        write_table(found.table, output)
    elif output.suffix == ".xlsx":
        atomic_write(output, enrichment_export.workbook(results))
    elif output.suffix == ".zip":
        atomic_write(output, enrichment_export.archive(enrichment_export.files(results)))
    else:
        enrichment_export.write_folder(enrichment_export.files(results), output)
    if output.suffix not in tables:
        say(f"Wrote {output}: {len(found.table):,} tests.")
    if found.notes["status"].str.startswith("failed").any():
        raise typer.Exit(1)


def warn(model: Bundle) -> None:
    """Say why a model is not fit to predict from, where it is not."""
    from samsvae_core.evaluation.fitness import caution

    if said := caution(model):
        say(f"Caution: {said}", err=True)


def number_of(option: str, mechanism: str) -> int:
    """A mechanism's number, as 0 or as M0."""
    number = mechanism.removeprefix("M")
    if not number.isdecimal():
        raise ValueError(f"{option} is {mechanism!r}; expected a number such as 0 or M0.")
    return int(number)


def rankings_line(progress: Any) -> None:
    """At most twenty lines, on the stream for messages, so that output can be piped."""
    step = max(1, progress.total // 20)
    if progress.done % step == 0 or progress.done == progress.total:
        say(f"{progress.done} of {progress.total} rankings tested", err=True)


def universe_of(path: Path, model: Bundle) -> tuple[str, ...]:
    """The genes of a background file, those of the model by the model's names."""
    from samsvae_core.data.cells import read_genes
    from samsvae_core.genesets.symbols import describe_unknown, known_genes

    try:
        given = read_genes(path)
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path} is no text file; expected one gene to a line.") from error
    known, unknown = known_genes(given, model.genes, model.genes_by_id)
    if unknown:
        say(f"{path}: {describe_unknown(unknown, model.genes)} They stay in the background.")
    return (*known, *unknown)


@app.command()
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
    from samsvae_core.data.tables import table_of
    from samsvae_core.pipeline.train import read_options
    from samsvae_core.system.files import atomic_write, new_output

    new_output(output)
    model = load(bundle)
    cells = read(data, **read_options(bundle, data))
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


@app.command()
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


@app.command()
def bundles(
    folder: Annotated[Path | None, typer.Argument(help="Default: the shipped models.")] = None,
) -> None:
    """List the bundles in a folder, and whether each is sound."""
    from samsvae_core.bundle.layout import BundleError, list_bundles, models_folder
    from samsvae_core.bundle.opening import load

    where = folder or models_folder()
    if not where.is_dir():
        raise ValueError(f"{where} is not a folder. Name one that holds bundles.")
    found = list_bundles(where)
    if not found:
        say(f"No bundles in {where}.")
    for name, path in found.items():
        try:
            model = load(path)
        except BundleError as error:
            say(f"{name}: cannot be used. {error}")
            continue
        say(
            f"{name}: {len(model.perturbations)} perturbations, {len(model.genes):,} genes, "
            f"{model.model.config.n_latent} mechanisms"
        )


@app.command()
def pack(bundle: BundleFolder, output: Output) -> None:
    """Put a bundle into one zip file, to hand on."""
    from samsvae_core.bundle.archive import pack as packed

    packed(bundle, output)
    say(f"Wrote {output}: {output.stat().st_size:,} bytes.")


@app.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="A zip that pack made.")],
    folder: Annotated[Path, typer.Argument(help="Where bundles are; it becomes one of them.")],
) -> None:
    """Check the bundle in a zip, and put it among others."""
    from samsvae_core.bundle.archive import unpack as unpacked
    from samsvae_core.bundle.layout import list_bundles

    there = list_bundles(folder)
    with file.open("rb") as content:
        made = unpacked(content, folder, file.stem)
    if made.name in there:
        raise ValueError(f"{made} exists already, and is the same bundle; it was left as it is.")
    say(f"Wrote {made}.")


@app.command("app")
def dashboard(
    folder: Annotated[Path | None, typer.Argument(help="Your own bundles.")] = None,
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, envvar="STREAMLIT_SERVER_PORT", help="Port to serve on."),
    ] = 8501,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder with .h5ad files to choose from; repeatable.")
    ] = None,
) -> None:
    """Open the dashboard, on the shipped models or on the bundles in a folder. Ctrl-C ends it."""
    environment = {"MALLOC_ARENA_MAX": "2"} | os.environ  # a pool for each thread keeps 0.4 GB
    for place in data or []:
        if not place.is_dir():
            raise ValueError(f"{place} is not a folder. Name one that holds .h5ad files.")
    if data:
        environment["SAMSVAE_DATA_DIRS"] = os.pathsep.join(str(place.resolve()) for place in data)
    if folder is not None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder. Name one that holds bundles.")
        environment["SAMSVAE_MODELS"] = str(folder.resolve())
        if os.access(folder, os.W_OK):  # what is trained on the pages goes there, too
            environment.setdefault("SAMSVAE_RUNS", str(folder.resolve()))
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.port", str(port)]
    refuse_taken(port)
    os.chdir(ROOT)
    os.execve(command[0], command, environment)  # so a signal to end reaches the server itself


def refuse_taken(port: int) -> None:
    """Raises ValueError for a port that this machine does not give."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError as error:
            why = f"Port {port} cannot be used: {error.strerror}."
            if error.errno == errno.EADDRINUSE:
                why = (
                    f"Port {port} is taken by another program, perhaps by this dashboard: look at "
                    f"http://localhost:{port}."
                )
            raise ValueError(f"{why} Choose another with --port.") from error


def read(data: Path, **options: Any) -> CellData:
    """`read_h5ad`, imported when it is needed."""
    from samsvae_core.data.h5ad import read_h5ad

    return read_h5ad(data, **options)


def known(option: str, value: str, choices: list[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}; choose one of {', '.join(choices)}.")


def is_gaussian(likelihood: str) -> bool:
    known("--likelihood", likelihood, ["counts", "gaussian"])
    return likelihood == "gaussian"


def chosen_device(name: str) -> torch.device:
    """The device to train on; auto takes a GPU if there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; choose one of auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no CUDA GPU here. Use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def say_where(output: Path, where: torch.device) -> None:
    """Say it where a run that a GPU has trained goes on without one."""
    from samsvae_core.training.run_folder import read_status

    status = read_status(output)
    if "cuda" in str(status.get("device")) and where.type == "cpu":
        epoch = status.get("epoch", 0)
        say(f"Up to epoch {epoch} this run was trained on a GPU; it goes on on the CPU.")


def parse_dosage(text: str, known: set[str]) -> tuple[str, float]:
    """NAME or NAME:DOSAGE; the last part is a dosage only if it is a number and no name has it."""
    name, colon, dose = text.rpartition(":")
    if text in known or not colon:
        return text, 1.0
    try:
        return name, float(dose)
    except ValueError:
        if name in known:
            raise ValueError(
                f"The dosage of {name} is {dose!r}; expected a number after the colon, such as "
                f"{name}:0.5."
            ) from None
        return text, 1.0


def named_once(given: list[tuple[str, float]]) -> dict[str, float]:
    """The dosages by name; raises ValueError where a perturbation is there twice."""
    dosages = dict(given)
    if len(dosages) < len(given):
        raise ValueError(f"A perturbation is named twice: {' '.join(name for name, _ in given)}.")
    return dosages


def follow(data: Path, output: Path, where: torch.device) -> None:
    """Take part in a training whose first process writes, says how it goes, and when to stop."""
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.training import distributed
    from samsvae_core.training.config import Stop

    with distributed.group(where) as where, contextlib.suppress(Stop):
        distributed.wait()  # until the first has written what the run is
        cells = read(data, **pipeline.read_options(output), scratch=output)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        pipeline.follow(cells, output, where)


@contextmanager
def stopping(data: Path, output: Path) -> Iterator[Stopper]:
    """While a run trains: signals to stop are heard, and answered with how to go on."""
    import shlex

    from samsvae_core.training.config import Stop
    from samsvae_core.training.run_folder import read_status, stoppable

    try:
        with stoppable() as stopper:
            yield stopper
    except (Stop, KeyboardInterrupt):
        if not (output / "config.json").is_file():
            say("Stopped before the run began. Start it again with the same command.")
        else:
            epoch = read_status(output).get("epoch", 0)
            command = ["samsvae", "train", str(data), "--output", str(output), "--resume"]
            say(f"Stopped; what was trained up to epoch {epoch} is kept. Go on with:")
            say(shlex.join(command))
        raise typer.Exit(128 + (stopper.asked or signal.SIGINT)) from None


def progress_line(progress: Progress) -> None:
    if progress.epoch % EPOCHS_PER_LINE == 1:
        say(
            f"epoch {progress.epoch}, step {progress.step:,}: bound {progress.bound:.2f}, "
            f"validation {progress.validation_bound:.2f} nats per cell, "
            f"{progress.active} active entries in {progress.mechanisms} mechanisms"
        )


def new_table(output: Path) -> None:
    """Refuse, before any work is done, a table that could not be written in the end."""
    from samsvae_core.system.files import new_output

    endings = [".csv", ".tsv", ".parquet"]
    if output.suffix not in endings:
        raise ValueError(f"{output} must end in {', '.join(endings[:-1])} or {endings[-1]}.")
    new_output(output)


def write_table(table: pd.DataFrame, output: Path) -> None:
    """A table as CSV, TSV (with formulas disarmed) or Parquet, by the ending of its name."""
    from samsvae_core.analysis.enrichment_export import separated
    from samsvae_core.system.files import atomic_write

    if output.suffix == ".parquet":
        content = table.to_parquet(index=False)
    else:
        content = separated(table, "\t" if output.suffix == ".tsv" else ",")
    atomic_write(output, content)
    say(f"Wrote {output}: {len(table):,} rows.")


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    from samsvae_core.system.machine import is_busy

    # before torch starts threads: those that spin while they wait for one whose core is taken by
    # another program make a step 2 to 3 times as slow as those that sleep, which on a machine
    # without others take up to twice as long
    if is_busy():
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Told())
    try:
        app()
    except Exception as error:
        if os.environ.get("SAMSVAE_DEBUG"):
            raise
        from samsvae_core.system.files import is_message
        from samsvae_core.training.run_folder import is_full, is_memory, reason

        if is_message(error) and not is_full(error):
            message = str(error)  # such as a file that may not be read
        elif is_full(error) or is_memory(error):
            message = reason(error)
        else:
            raise
        with contextlib.suppress(OSError):  # a disk that is full takes no message either
            say(f"Error: {message}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
