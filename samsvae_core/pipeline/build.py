"""Make a bundle from a trained model: its tables, metrics and enrichment."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.numpy import save as save_arrays
from safetensors.torch import save

from samsvae_core.analysis import all_shifts
from samsvae_core.analysis import direct as direct_of
from samsvae_core.analysis import loadings as loadings_of
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import states as cell_states
from samsvae_core.analysis.card import bends_in_words, model_card
from samsvae_core.analysis.differences import difference_table
from samsvae_core.bundle import layout
from samsvae_core.bundle.layout import read_json, to_json, write_manifest
from samsvae_core.data.cells import CellData, DataError
from samsvae_core.data.splits import SPLITS
from samsvae_core.evaluation import evaluate, fitness
from samsvae_core.evaluation.context_evidence import difference_evidence
from samsvae_core.evaluation.level_errors import CellVariance, by_condition, pooled_level
from samsvae_core.evaluation.mask_evidence import direct_evidence, entry_evidence
from samsvae_core.evaluation.shifts import measured, reference_cells, variance_of
from samsvae_core.genesets import collections, enrichment, questions, screening
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.models.variants import MODELS
from samsvae_core.system.files import atomic_write

N_EMBEDDED = 6000  # cells in the UMAP; more would not be more readable
UMAP_NEIGHBOURS = 15
MOST_BY_LEVEL = 2_000_000  # rows of the table of shifts by level
FEWEST_AT_LEVEL = 5  # cells of a condition, and controls, that are compared at a level
N_LATENT = 50  # most latent dimensions stored of these cells; beyond that, those in use
SAMPLE_SEED = (0, 1)  # another seed than the splits', whose first cells it would draw
COLLECTIONS = ("hallmark", "reactome", "wikipathways")


def build_bundle(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    run: Path,
    device: str,
    cell_values: bool = False,
) -> None:
    """Write every table of a bundle into a trained run, the manifest last.

    With `cell_values`, the measured values of the cells on the map are included, and passed on with
    the bundle.

    Parameters
    ----------
    model
        The trained model, on the CPU; its mechanisms are put in order.
    data
        The cells used.
    parts
        The part of each cell: train, validation or test.
    run
        The run folder, with config.json and history.csv.
    device
        The device the model was trained on, for the manifest.
    cell_values
        Whether to include measured values.
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
    write_levels(run, data)
    names = data.perturbations.tolist()
    alone = all_shifts.observed_alone(observed, genes, names, data.control)
    made = all_shifts.make(model, reference, alone)
    atomic_write(run / layout.EFFECTS, all_shifts.packed(made))
    loadings = loadings_of.loadings(model, reference, genes)
    masks = interpretation.mask_table(model, names)
    masks = masks.merge(entry_evidence(model, data, parts), on=["perturbation", "mechanism"])
    write_parquet(run / "loadings.parquet", loadings)
    write_csv(run / "masks.csv", masks)
    write_direct(run, model, data, parts)
    differences = write_differences(run, model, data, parts)
    sample = sample_of(len(parts))
    shown = data.subset(sample)
    cells = embedded_cells(model, shown, parts[sample], masks)
    repeated = ["condition", "split"]  # a dictionary only pays for repeated values
    atomic_write(run / "cells.parquet", cells.to_parquet(index=False, use_dictionary=repeated))
    (run / layout.CELL_COUNTS).unlink(missing_ok=True)
    if cell_values:
        atomic_write(run / layout.CELL_COUNTS, packed_counts(shown))
    write_csv(run / "perturbations_umap.csv", embedded_perturbations(model, masks))
    metrics = write_metrics(run, model, data, parts)
    active = interpretation.active_mechanisms(masks)
    curves = loadings_of.loading_curves(model, reference, genes, active)
    notes = [bends_in_words(loadings_of.linearity(curves))] if active else []
    notes += write_enrichment(run, loadings_of.loading_matrix(loadings)[active])
    history = layout.read_csv(run / "history.csv")
    settings["steps_done"] = int(history["step"].iloc[-1])
    has_masks = MODELS[settings["model"]].has_masks
    caution = fitness.in_words(fitness.doubts(history, masks, metrics.get("validation"), has_masks))
    frontier = run / "frontier.csv"
    levels = pd.read_csv(frontier) if frontier.exists() else None
    card = model_card(settings, data, parts, masks, metrics, notes, levels, caution, differences)
    atomic_write(run / "card.md", card.encode())
    write_manifest(run, {**settings["origin"], "file": data.source["file"]}, device)


def write_direct(run: Path, model: SAMSVAE, data: CellData, parts: np.ndarray) -> None:
    """Write the tables of direct effects, if the model has any."""
    names, genes = data.perturbations.tolist(), data.genes.tolist()
    table, shared = (
        direct_of.direct_table(model, names, genes),
        direct_of.shared_table(model, genes),
    )
    for name, frame in (("direct.csv", table), ("shared.csv", shared)):
        if frame is None:
            (run / name).unlink(missing_ok=True)
        elif name == "direct.csv":
            write_csv(run / name, frame.join(direct_evidence(model, data, parts, frame)))
        else:
            write_csv(run / name, frame)


def write_differences(
    run: Path, model: SAMSVAE, data: CellData, parts: np.ndarray
) -> pd.DataFrame | None:
    """Write and return the table of differences between contexts, if the model has any."""
    (run / "differences.csv").unlink(missing_ok=True)
    context = model.config.context
    if context is None or data.covariates is None:
        return None
    levels = list(data.covariates.levels.values())[context]
    table = difference_table(model, data.perturbations.tolist(), levels)
    if table is None:
        return None
    table = table.join(difference_evidence(model, data, parts, table, levels))
    write_csv(run / "differences.csv", table)
    return table


def perturbation_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Return, per perturbation, cells per split, cells alone, and the dosages trained on."""
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
    """Return cells per split and condition, control first, then by name."""
    table = pd.crosstab(data.conditions, parts).reindex(columns=list(SPLITS), fill_value=0)
    order = [data.control, *(c for c in table.index if c != data.control)]
    return table.loc[order].rename_axis("condition").rename_axis(columns=None).reset_index()


def observed_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Return the level of each condition and gene with its standard error, on all and on test.

    With covariates, a condition has the weighted level of its strata, and beside it that of the
    control cells matched to it, as `control_level` and `control_se`; the control has its plain
    level. A condition that shares no stratum with control cells has no rows. Errors rest on the
    variance of all cells, which tells how cells vary, not where they are.
    """
    variance = variance_of(data)
    levels_of = plain_levels if data.covariates is None else matched_levels
    frames = [
        pd.DataFrame({"condition": name, "gene": data.genes, "split": part, **columns})
        for part, kept in (("all", np.full(len(parts), True)), ("test", parts == "test"))
        for name, columns in levels_of(data, variance, np.flatnonzero(kept))
    ]
    return pd.concat(frames, ignore_index=True)


def write_levels(run: Path, data: CellData) -> None:
    """Write the shift of each condition within each level of a covariate, if that is not much.

    Control is that of the same level, and of the same strata of the other covariates.
    """
    path, covariates = run / "observed_levels.parquet", data.covariates
    path.unlink(missing_ok=True)
    if covariates is None:
        return
    n_levels = sum(map(len, covariates.levels.values()))
    if len(set(data.conditions)) * n_levels * len(data.genes) > MOST_BY_LEVEL:
        return
    variance = variance_of(data)
    frames = [
        pd.DataFrame(
            {
                "condition": found.condition,
                "covariate": name,
                "level": level,
                "gene": data.genes,
                "shift": found.level - found.control_level,
                "se": np.hypot(found.se, found.control_se),
                "n": found.n,
            }
        )
        for name, levels in covariates.levels.items()
        for level in levels
        for found in measured(
            data, variance, np.flatnonzero(covariates.labels(name) == level), FEWEST_AT_LEVEL
        )
    ]
    if frames:
        write_parquet(path, pd.concat(frames, ignore_index=True))


def plain_levels(
    data: CellData, variance: CellVariance, rows: np.ndarray
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each condition of the cells at `rows`, with the columns of its levels."""
    for name, members in by_condition(data.conditions[rows]):
        level, se = pooled_level(data.counts, data.library, variance, rows[members])
        yield name, {"level": level, "se": se, "n": len(members)}


def matched_levels(
    data: CellData, variance: CellVariance, rows: np.ndarray
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield control with its plain level, and each condition beside its matched control."""
    controls = rows[data.conditions[rows] == data.control]
    for name, columns in plain_levels(data, variance, controls):
        yield name, {**columns, "control_level": np.nan, "control_se": np.nan}
    for found in measured(data, variance, rows):
        columns = found._asdict()
        yield columns.pop("condition"), columns


def sample_of(n_cells: int) -> np.ndarray:
    """Return which cells are on the map: at most N_EMBEDDED, the same each time, in their order."""
    return np.sort(np.random.default_rng(SAMPLE_SEED).permutation(n_cells)[:N_EMBEDDED])


def embedded_cells(
    model: SAMSVAE, data: CellData, parts: np.ndarray, masks: pd.DataFrame
) -> pd.DataFrame:
    """Return a row per cell: its posterior mean states, and a UMAP of either state.

    umap_1 and umap_2 are of the shifted states (basal plus mean latent shift), basal_1 and basal_2
    of the basal ones, each fitted separately. Columns "basal M0" and "shifted M0" are the states
    along each latent dimension; if there are more than N_LATENT, along those in use, or the first
    ones if none is. Without latent shifts the two maps are the same, and there are no "shifted"
    columns. "covariate NAME" is the cell's level.
    """
    states = cell_states.states(model, Cells(data, torch.device("cpu")))
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
    if covariates := data.covariates:
        names |= {
            f"{layout.COVARIATE}{name}": covariates.labels(name) for name in covariates.levels
        }
    return pd.DataFrame(names).join(pd.DataFrame(numbers, dtype=np.float32))


def packed_counts(data: CellData) -> bytes:
    """Return the measured values of each cell, as safetensors from which one gene can be read.

    It is a CSR matrix of genes x cells: data, indices and indptr, with its shape in the metadata,
    and the library of each cell. Counts have the smallest unsigned type that holds them; values
    that are not counts are float32.
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
    """Return a UMAP of perturbations by their effects; empty without latent shifts."""
    if not model.has_shifts:
        return pd.DataFrame({"perturbation": [], "umap_1": [], "umap_2": []})
    effect = interpretation.matrix(masks, "effect")
    xy = umap_coordinates(effect.to_numpy())
    return pd.DataFrame({"perturbation": effect.index, "umap_1": xy[:, 0], "umap_2": xy[:, 1]})


def umap_coordinates(rows: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N 2"]:
    """Return two UMAP coordinates, reproducible; principal components for up to 15 rows."""
    if len(rows) <= UMAP_NEIGHBOURS:
        u, s, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
        xy = np.zeros((len(rows), 2))
        xy[:, : min(2, len(s))] = (u * s)[:, :2]
        return xy
    import umap

    model = umap.UMAP(n_neighbors=UMAP_NEIGHBOURS, random_state=0, n_jobs=1)
    return np.asarray(model.fit_transform(rows), dtype=float)


def write_metrics(run: Path, model: SAMSVAE, data: CellData, parts: np.ndarray) -> dict[str, Any]:
    """Write held-out metrics and their tables, or why there are none; returns the metrics."""
    for table in ("predictive_checks.parquet", "calibration.csv"):
        (run / table).unlink(missing_ok=True)  # of an earlier build, which this one may not have
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
    """Write the gene sets of every active mechanism; returns notes on what could not be tested."""
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
