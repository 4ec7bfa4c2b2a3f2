"""From cells to a finished run, and from a finished run to a bundle with all its tables."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from samsvae_core.analysis import all_shifts
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.card import bends_in_words, model_card
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import read_json, to_json, write_manifest
from samsvae_core.bundle.readings import suited
from samsvae_core.data.cells import CellData, DataError, genes_at, reading_in_words
from samsvae_core.data.controls import Recorded
from samsvae_core.data.counts import has_gene_key
from samsvae_core.data.gene_names import INDEX
from samsvae_core.data.splits import SPLITS, UNUSED, split
from samsvae_core.evaluation import evaluate, fitness
from samsvae_core.evaluation.calibration import pooled_level, reference_cells
from samsvae_core.evaluation.mask_evidence import entry_evidence
from samsvae_core.genesets import collections, enrichment, questions, screening
from samsvae_core.models.bounds import Cells
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline.evidence_sweep import train_frontier
from samsvae_core.system.files import OutputError, atomic_write, new_output
from samsvae_core.training import distributed
from samsvae_core.training.loop import Progress, TrainConfig, fit, new_model
from samsvae_core.training.run_folder import is_prepared, recorded, refuse_finished

N_EMBEDDED = 6000  # cells in the UMAP; more are no more readable
UMAP_NEIGHBOURS = 15
N_LATENT = 50  # latent dimensions kept of each of these cells; of more, those in use
PIECE = 1 << 20  # numbers copied at a time
SAMPLE_SEED = (0, 1)  # apart from those of splits, whose first cells it would draw
COLLECTIONS = ("hallmark", "reactome", "wikipathways")


@dataclass(frozen=True)
class Origin:
    """Where data come from, as the manifest and the card say it."""

    title: str = ""  # the file name, if empty
    source: str = "not stated"
    licence: str = "not stated"
    notes: str = ""  # Markdown, for the card: how the model was chosen, what to know


def train(
    data: CellData,
    parts: np.ndarray,
    run: Path,
    model_config: Mapping[str, Any] = MappingProxyType({}),
    train_config: TrainConfig = TrainConfig(),  # noqa: B008 - frozen
    device: torch.device = torch.device("cpu"),  # noqa: B008
    on_epoch: Callable[[Progress], None] = lambda _: None,
    origin: Origin = Origin(),
    model: str = "sams-vae",
    frontier: bool = False,
    cell_values: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Train a model on the training cells and keep it as a bundle in `run`, a new folder.

    `parts` says "train", "validation", "test" or "unused" for each cell; `model` is a key of
    MODELS, `model_config` are the fields of ModelConfig that differ from its defaults. With
    `frontier`, several levels of evidence are trained from one dense start and the sparsest that
    fits is kept; `say` is told which is trained. Values that are not counts get a Gaussian
    likelihood. `cell_values` is that of `build_bundle`. Raises OutputError where `run` exists
    already, and DataError for a split without validation cells or without controls to train on.
    """
    if not is_prepared(run):
        new_output(run)
    check_split(data, parts)
    evidence = model_config.get("mask_evidence", ModelConfig.mask_evidence)
    if frontier and not (MODELS[model].can_ask_evidence and evidence is not None):
        raise DataError(
            f"--frontier compares levels of --mask-evidence, which {MODELS[model].title} with "
            "these settings does not use. Leave one of them out."
        )
    config = ModelConfig(
        n_genes=len(data.genes),
        n_perturbations=len(suited(data, model).perturbations),
        other_genes=data.has_size_factor,
        likelihood="counts" if data.is_counts else "gaussian",
        **model_config,
    )
    settings = {
        "schema": layout.SCHEMA,
        "model": model,
        "frontier": frontier,
        "model_config": asdict(config),
        "train_config": asdict(train_config),
        "data": data.source,
        "control": data.control,
        "origin": asdict(origin),
        "checksums": checksums(data),
    }
    make_folder(run)
    for line in reading_in_words(data):
        say(line)
    with recorded(run):
        if (run / "config.json").exists():  # made since by another process
            raise OutputError(f"{run} exists already. Name another output.")
        write_csv(run / "split.csv", pd.DataFrame({"cell": data.cells, "split": parts}))
        ids = {} if data.gene_ids is None else {"id": data.gene_ids}
        write_csv(run / "genes.csv", pd.DataFrame({"gene": data.genes, **ids}))
        atomic_write(run / "config.json", to_json(settings))
        return resume(data, run, device, on_epoch, cell_values, say)


def make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {run}: {error.strerror}. Choose another place for the output."
        ) from error


def check_split(data: CellData, parts: np.ndarray) -> None:
    """Refuse, before any step is taken, a split that a run or its tables would fail on."""
    control = data.conditions == data.control
    for what, found in (
        ("validation cells, by which training is followed", parts == "validation"),
        ("training cells of control, from which predictions start", control & (parts == "train")),
    ):
        if not found.any():
            raise DataError(f"The split has no {what}. Mark some in its file, or split at random.")


def resume(
    data: CellData,
    run: Path,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    on_epoch: Callable[[Progress], None] = lambda _: None,
    cell_values: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Go on with a run where its last checkpoint left it, and make its bundle.

    Its status.json tells how far it is, and how it ended. Raises DataError where the data are not
    those it was started with.
    """
    settings = read_settings(run)
    refuse_finished(run)
    with recorded(run) as status:
        data, parts = cells_of(data, run, settings)
        distributed.wait()  # the others read what the run is

        def report(progress: Progress) -> None:
            status.epoch_done(progress.epoch, progress.step)
            on_epoch(progress)

        steps = {} if settings["frontier"] else {"steps": settings["train_config"]["steps"]}
        status.say("training", device=str(device), **steps)
        model = trained(data, parts, run, settings, device, report, say)
        if settings["frontier"]:
            settings["model_config"]["mask_evidence"] = model.config.mask_evidence
            atomic_write(run / "config.json", to_json(settings))
        status.say("making tables")
        build_bundle(model.cpu(), data, parts, run, str(device), cell_values)
        shutil.rmtree(run / "frontier", ignore_errors=True)
    return opening.load(run)


def follow(data: CellData, run: Path, device: torch.device) -> None:
    """The part of another process than the first in training a run: no file is written."""
    settings = read_settings(run)
    trained(*cells_of(data, run, settings), run, settings, device)


def cells_of(data: CellData, run: Path, settings: dict[str, Any]) -> tuple[CellData, np.ndarray]:
    """The run's cells with their part of the split; raises DataError where they are not those."""
    data = aligned(data, run)
    check_same(checksums(data), settings.get("checksums"))
    parts = split(data, run / "split.csv")
    data = suited(data, settings["model"])
    return data.subset(parts != UNUSED), parts[parts != UNUSED]


def trained(
    data: CellData,
    parts: np.ndarray,
    run: Path,
    settings: dict[str, Any],
    device: torch.device,
    on_epoch: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> SAMSVAE:
    """The run's model, trained from where its checkpoint left it."""
    config, name = ModelConfig(**settings["model_config"]), settings["model"]
    train_config = TrainConfig(**settings["train_config"])
    if settings["frontier"]:
        return train_frontier(data, parts, run, config, train_config, name, device, on_epoch, say)
    cells = data.subset(parts == "train")
    model = new_model(cells, config, train_config.seed, name).to(device)
    validation = Cells(data.subset(parts == "validation"), device)
    fit(model, Cells(cells, device), validation, train_config, run, on_epoch)
    return model


def checksums(data: CellData) -> dict[str, str]:
    """Of what a model is trained on, so that a run goes on with the same data."""
    names = data.perturbations.tolist()
    parts: dict[str, Iterable[Any]] = {
        "cells": ["\n".join(data.cells.tolist()).encode()],
        "counts": as_buffers(data.counts),
        "perturbations": ["\n".join(names).encode(), *as_buffers(data.dosages)],
        "library sizes": [np.ascontiguousarray(data.library).data],
    }
    found = {what: hashlib.sha256() for what in parts}
    for what, checksum in found.items():
        for part in parts[what]:
            checksum.update(part)
    return {what: checksum.hexdigest() for what, checksum in found.items()}


def as_buffers(table: sp.csr_matrix) -> Iterator[memoryview]:
    """A sparse matrix as its arrays, the same for the same values; a piece at a time."""
    rows = table if table.has_sorted_indices else table.sorted_indices()
    for array in (rows.indptr, rows.indices):
        for i in range(0, len(array), PIECE):
            yield array[i : i + PIECE].astype(np.int64).data
    yield np.ascontiguousarray(rows.data).data


def check_same(found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Raise DataError where the data differ from what a run has noted; earlier ones noted none."""
    wrong = [what for what in found if expected and found[what] != expected.get(what)]
    if wrong:
        raise DataError(
            f"The {' and the '.join(wrong)} are not those the run was started with. Resume with "
            "the same file, or start a new run."
        )


def read_settings(run: Path) -> dict[str, Any]:
    """config.json of a run or bundle; raises OutputError where it is absent or another's."""
    if not (run / "config.json").is_file():
        raise OutputError(f"There is no run in {run} to resume: it holds no config.json.")
    settings = read_json(run / "config.json")
    try:
        MODELS[settings["model"]], bool(settings["frontier"])
        ModelConfig(**settings["model_config"])
        TrainConfig(**settings["train_config"])
        dict(settings["data"], **settings["origin"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{run}/config.json is not the configuration of a run of this version ({error}). "
            "Start a new run."
        ) from error
    return settings


def read_options(run: Path, data: Path | None = None) -> dict[str, Any]:
    """How the data of a run or bundle were read: the options of `read_h5ad`.

    Where `data`, another file with the same genes, lacks the column that named them, its own names
    are found anew: genes then meet by their ids.
    """
    source = read_settings(run)["data"]
    place = str(source.get("counts_from", "X"))
    of_table = source.get("perturbation_key") is None and source.get("dosage_key") is not None
    drop_unlabelled = source.get("drop_unlabelled")
    if of_table and "drop_unlabelled" not in source:  # before columns of controls were known
        drop_unlabelled = False
    controls = source.get("control_labels") or []
    gene_key = source.get("gene_key", INDEX)  # the only way before it was noted
    return {
        "perturbation_key": source.get("perturbation_key"),
        "control": Recorded(controls) if controls or of_table else None,
        "delimiter": source.get("delimiter", "+"),
        "layer": place.removeprefix("layers/") if place.startswith("layers/") else None,
        "gene_key": gene_key if data is None or has_gene_key(data, gene_key) else None,
        "size_factor_key": source.get("size_factor_key"),
        "dosage_key": source.get("dosage_key"),
        "replicate_key": source.get("replicate_key"),
        "join_guides": source.get("join_guides", False),
        "drop_unlabelled": drop_unlabelled,
        "continuous": source.get("continuous", False),
        "counts_on": source.get("counts_on", "auto"),
    }


def aligned(data: CellData, run: Path) -> CellData:
    """The data with the run's genes, in its order; raises DataError where they are not the same."""
    genes = layout.read_csv(run / "genes.csv")["gene"].tolist()
    if list(data.genes) == genes:
        return data
    order = pd.Index(data.genes).get_indexer(pd.Index(genes))
    if (order < 0).any():
        raise DataError(
            f"The data lack {int((order < 0).sum())} of the run's {len(genes)} genes. "
            "Resume with the file the run was started with."
        )
    return genes_at(data, order)


def build_bundle(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    run: Path,
    device: str,
    cell_values: bool = False,
) -> None:
    """Write every table of a bundle into a trained run, the manifest last.

    With `cell_values`, also what was measured in the cells of the map: who hands the bundle on
    hands these data on.
    """
    interpretation.orient(model)
    settings = read_json(run / "config.json")
    atomic_write(run / "weights.safetensors", save(model.state_dict()))
    write_csv(run / "perturbations.csv", perturbation_table(data, parts))
    write_csv(run / "conditions.csv", condition_table(data, parts))
    reference = reference_cells(model, data, parts)
    atomic_write(run / "reference.safetensors", save(reference._asdict()))
    genes, observed = data.genes.tolist(), observed_table(data, parts)
    write_parquet(run / "observed.parquet", observed)
    names = data.perturbations.tolist()
    alone = all_shifts.observed_alone(observed, genes, names, data.control)
    made = all_shifts.make(model, reference, alone)
    atomic_write(run / layout.EFFECTS, all_shifts.packed(made))
    loadings = interpretation.loadings(model, reference, genes)
    masks = interpretation.mask_table(model, names)
    masks = masks.merge(entry_evidence(model, data, parts), on=["perturbation", "mechanism"])
    write_parquet(run / "loadings.parquet", loadings)
    write_csv(run / "masks.csv", masks)
    sample = sample_of(len(parts))
    shown = data.subset(sample)
    cells = embedded_cells(model, shown, parts[sample], masks)
    repeated = ["condition", "split"]  # floats do not repeat: a dictionary would add to them
    atomic_write(run / "cells.parquet", cells.to_parquet(index=False, use_dictionary=repeated))
    (run / layout.CELL_COUNTS).unlink(missing_ok=True)
    if cell_values:
        atomic_write(run / layout.CELL_COUNTS, packed_counts(shown))
    write_csv(run / "perturbations_umap.csv", embedded_perturbations(model, masks))
    metrics = write_metrics(run, model, data, parts)
    active = interpretation.active_mechanisms(masks)
    curves = interpretation.loading_curves(model, reference, genes, active)
    notes = [bends_in_words(interpretation.linearity(curves))] if active else []
    notes += write_enrichment(run, interpretation.loading_matrix(loadings)[active])
    history = layout.read_csv(run / "history.csv")
    settings["steps_done"] = int(history["step"].iloc[-1])
    has_masks = MODELS[settings["model"]].has_masks
    caution = fitness.told(fitness.doubts(history, masks, metrics.get("validation"), has_masks))
    frontier = run / "frontier.csv"
    levels = pd.read_csv(frontier) if frontier.exists() else None
    card = model_card(settings, data, parts, masks, metrics, notes, levels, caution)
    atomic_write(run / "card.md", card.encode())
    write_manifest(run, {**settings["origin"], "file": data.source["file"]}, device)


def perturbation_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Per perturbation: cells per split, cells it is alone in, and the dosages trained on."""
    given = data.dosages != 0
    train = parts == "train"
    alone = np.asarray(given.sum(axis=1)).ravel() == 1
    dosage = data.dosages[train].tocsc()
    columns = [dosage.data[a:b] for a, b in itertools.pairwise(dosage.indptr)]
    per_part = {p: np.asarray(given[parts == p].sum(axis=0)).ravel() for p in SPLITS}
    return pd.DataFrame(
        {
            "perturbation": data.perturbations,
            **per_part,
            "train_alone": np.asarray(given[train & alone].sum(axis=0)).ravel(),
            "dosage_min": [c.min(initial=np.inf) if len(c) else 0.0 for c in columns],
            "dosage_max": [c.max(initial=0.0) for c in columns],
            "on_panel": np.isin(data.perturbations, data.genes),
        }
    )


def condition_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Per condition: cells per split, control first, then by name."""
    table = pd.crosstab(data.conditions, parts).reindex(columns=list(SPLITS), fill_value=0)
    order = [data.control, *(c for c in table.index if c != data.control)]
    return table.loc[order].rename_axis("condition").rename_axis(columns=None).reset_index()


def observed_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Level of every condition and gene with its standard error, on all and on test cells."""
    frames = []
    for part, kept in (("all", np.full(len(parts), True)), ("test", parts == "test")):
        for condition in np.unique(data.conditions[kept]):
            rows = np.flatnonzero(kept & (data.conditions == condition))
            level, se = pooled_level(data.counts, data.library, data.is_counts, rows)
            frames.append(
                pd.DataFrame(
                    {
                        "condition": condition,
                        "gene": data.genes,
                        "split": part,
                        "level": level,
                        "se": se,
                        "n": len(rows),
                    }
                )
            )
    return pd.concat(frames, ignore_index=True)


def sample_of(n_cells: int) -> np.ndarray:
    """Which cells are on the map: at most N_EMBEDDED, the same each time, in their order."""
    return np.sort(np.random.default_rng(SAMPLE_SEED).permutation(n_cells)[:N_EMBEDDED])


def embedded_cells(
    model: SAMSVAE, data: CellData, parts: np.ndarray, masks: pd.DataFrame
) -> pd.DataFrame:
    """A row per cell: its posterior mean states, and a UMAP of either state.

    umap_1 and umap_2 are of the shifted states (basal plus mean shift), basal_1 and basal_2 of the
    basal ones, each a fit of its own. Columns "basal M0" and "shifted M0" are the states along each
    latent dimension; where there are more than N_LATENT, along those in use, or the first ones if
    none is. Without latent shifts the two states are one: the maps are the same, and there are no
    "shifted" columns.
    """
    states = interpretation.states(model, Cells(data, torch.device("cpu")))
    xy = basal_xy = umap_coordinates(states["shifted"])
    if model.has_shifts:
        basal_xy = umap_coordinates(states["basal"])
    else:
        del states["shifted"]
    kept = list(range(model.config.n_latent))
    if len(kept) > N_LATENT:
        kept = interpretation.active_mechanisms(masks) or kept[:N_LATENT]
    numbers = {
        "umap_1": xy[:, 0],
        "umap_2": xy[:, 1],
        "basal_1": basal_xy[:, 0],
        "basal_2": basal_xy[:, 1],
        **{f"{name} M{k}": state[:, k] for name, state in states.items() for k in kept},
    }
    names = {"cell": data.cells, "condition": data.conditions, "split": parts}
    return pd.DataFrame(names).join(pd.DataFrame(numbers, dtype=np.float32))


def packed_counts(data: CellData) -> bytes:
    """What was measured in each cell, as safetensors that one gene can be read from.

    A sparse matrix of genes x cells by rows: data, indices and indptr, its shape among the
    metadata; and the library of each cell. Counts are in the smallest unsigned type that holds
    them; values that are no counts are float32.
    """
    rows = data.counts.T.tocsr()
    value = np.min_scalar_type(int(rows.data.max(initial=0))) if data.is_counts else np.float32
    arrays = {
        "data": rows.data.astype(value),
        "indices": rows.indices.astype(np.min_scalar_type(len(data.cells))),
        "indptr": rows.indptr.astype(np.int64),
        "library": data.library,
    }
    return save_arrays(arrays, {"shape": json.dumps(rows.shape)})


def embedded_perturbations(model: SAMSVAE, masks: pd.DataFrame) -> pd.DataFrame:
    """UMAP of perturbations by their effects on the mechanisms; none without latent shifts."""
    if not model.has_shifts:
        return pd.DataFrame({"perturbation": [], "umap_1": [], "umap_2": []})
    effect = interpretation.matrix(masks, "effect")
    xy = umap_coordinates(effect.to_numpy())
    return pd.DataFrame({"perturbation": effect.index, "umap_1": xy[:, 0], "umap_2": xy[:, 1]})


def umap_coordinates(rows: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N 2"]:
    """Two UMAP coordinates, the same for the same rows; principal components up to 15 rows."""
    if len(rows) <= UMAP_NEIGHBOURS:
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        xy = np.zeros((len(rows), 2))
        xy[:, : min(2, len(s))] = (u * s)[:, :2]
        return xy
    import umap

    model = umap.UMAP(n_neighbors=UMAP_NEIGHBOURS, random_state=0, n_jobs=1)
    return np.asarray(model.fit_transform(rows), dtype=float)


def write_metrics(run: Path, model: SAMSVAE, data: CellData, parts: np.ndarray) -> dict[str, Any]:
    """Held-out figures and the tables behind them, or why there are none."""
    for table in ("predictive_checks.parquet", "calibration.csv"):
        (run / table).unlink(missing_ok=True)  # of tables made before, which this time may not have
    try:
        found = evaluate.full_evaluation(model, data, parts)
    except DataError as error:
        metrics: dict[str, Any] = {"not_available": str(error)}
    else:
        metrics = found.metrics
        write_parquet(run / "predictive_checks.parquet", found.positions)
        if found.gene_errors is not None:
            write_csv(run / "calibration.csv", found.gene_errors)
    if worth := fitness.on_validation(model, data, parts):
        metrics["validation"] = worth
    atomic_write(run / "metrics.json", to_json(metrics))
    return metrics


def write_enrichment(run: Path, loadings: pd.DataFrame) -> list[str]:
    """Gene sets of every active mechanism; returns what could not be tested and why."""
    for before in (run / "enrichment").glob("*.parquet"):
        before.unlink()
    if loadings.empty:
        return ["No mechanism is in use: there was nothing to test for gene sets."]
    notes = []
    for name in COLLECTIONS:
        collection = collections.load_collection(name)
        try:
            result = enrichment.enrich(loadings, [collection])
        except ValueError as error:
            notes.append(f"{collection.title}: {error}")
            continue
        questions.write_parquet(result, run / "enrichment" / f"{name}.parquet")
        notes += screening.problems(result.notes)
    return notes


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    atomic_write(path, frame.to_csv(index=False).encode())


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    atomic_write(path, frame.to_parquet(index=False))
