"""From cells to a finished run, and from a finished run to a bundle with all its tables."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from safetensors.torch import save

from samsvae_core import bundle, enrichment, evaluation, gene_sets, interpretation
from samsvae_core.bundle import Bundle, Reference, read_json, to_json, write_manifest
from samsvae_core.data import SPLITS, CellData, DataError, genes_at, split
from samsvae_core.files import OutputError, atomic_write, new_output
from samsvae_core.inference import Cells
from samsvae_core.model import MIN_EVIDENCE, PER_TEN_THOUSAND, SAMSVAE, ModelConfig
from samsvae_core.training import Progress, Stop, TrainConfig, TrainingError, fit, new_model

VALUES_AT_ONCE = 2**23  # cells x genes held dense while standard errors are taken
N_REFERENCE = 128  # control cells that predictions start from
N_EMBEDDED = 6000  # cells in the UMAP; more are no more readable
UMAP_NEIGHBOURS = 15
COLLECTIONS = ("hallmark", "reactome", "wikipathways")
MARKUP = re.compile(r"([\\`*\[\]<>$~|:]|\b_|_\b)")  # between letters, _ is only itself


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
) -> Bundle:
    """Train a SAMS-VAE on the training cells and keep it as a bundle in `run`, a new folder.

    `parts` says "train", "validation" or "test" for each cell; `model_config` are the fields of
    ModelConfig that differ from its defaults. Raises OutputError where `run` exists already, and
    DataError for a split without validation cells or without controls to train on.
    """
    new_output(run)
    check_split(data, parts)
    config = ModelConfig(
        n_genes=len(data.genes),
        n_perturbations=len(data.perturbations),
        other_genes=data.has_size_factor,
        **model_config,
    )
    settings = {
        "schema": bundle.SCHEMA,
        "model": bundle.MODEL,
        "model_config": asdict(config),
        "train_config": asdict(train_config),
        "data": data.source,
        "control": data.control,
        "origin": asdict(origin),
    }
    write_csv(run / "split.csv", pd.DataFrame({"cell": data.cells, "split": parts}))
    write_csv(run / "genes.csv", pd.DataFrame({"gene": data.genes}))
    atomic_write(run / "config.json", to_json(settings))
    return resume(data, run, device, on_epoch)


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
) -> Bundle:
    """Go on with a run where its last checkpoint left it, and make its bundle."""
    settings = read_settings(run)
    if (run / "manifest.json").exists():
        raise OutputError(f"{run} is finished: it is a bundle already. Nothing to resume.")
    config = ModelConfig(**settings["model_config"])
    train_config = TrainConfig(**settings["train_config"])
    data = aligned(data, run)
    parts = same_split(data, run)
    cells = {p: Cells(data.subset(parts == p), device) for p in ("train", "validation")}
    model = new_model(data.subset(parts == "train"), config, train_config.seed).to(device)
    status: dict[str, Any] = {"steps": train_config.steps, "pid": os.getpid()}

    def report(progress: Progress) -> None:
        status.update(state="training", epoch=progress.epoch, step=progress.step)
        atomic_write(run / "status.json", to_json(status))
        on_epoch(progress)

    began = time.monotonic()
    try:
        fit(model, cells["train"], cells["validation"], train_config, run, report)
        status["state"] = "making tables"
        atomic_write(run / "status.json", to_json(status))
        build_bundle(model.cpu(), data, parts, run, str(device))
        status["state"] = "finished"
    except (Stop, KeyboardInterrupt):
        status["state"] = "stopped"
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        message = (
            f"Memory ran out at {train_config.batch_size} cells a step on {device} ({error}). "
            "Start a new run with a smaller --batch-size, fewer --particles or fewer genes."
        )
        status.update(state="failed", message=message)
        raise TrainingError(message) from error
    except (TrainingError, DataError, OutputError) as error:
        status.update(state="failed", message=str(error))
        raise
    finally:
        status["seconds"] = round(time.monotonic() - began, 1)
        atomic_write(run / "status.json", to_json(status))
    return bundle.load(run)


def read_settings(run: Path) -> dict[str, Any]:
    """config.json of a run or bundle; raises OutputError where it is absent or another's."""
    if not (run / "config.json").is_file():
        raise OutputError(f"There is no run in {run} to resume: it holds no config.json.")
    settings = read_json(run / "config.json")
    try:
        ModelConfig(**settings["model_config"])
        TrainConfig(**settings["train_config"])
        dict(settings["data"], **settings["origin"])
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(
            f"{run}/config.json is not the configuration of a run of this version ({error}). "
            "Start a new run."
        ) from error
    return settings


def read_options(run: Path) -> dict[str, Any]:
    """How the data of a run or bundle were read: the options of `read_h5ad`."""
    source = read_settings(run)["data"]
    place = str(source.get("counts_from", "X"))
    labels = source.get("control_labels") or [None]
    return {
        "perturbation_key": source.get("perturbation_key"),
        "control": labels[0] if len(labels) == 1 else None,
        "delimiter": source.get("delimiter", "+"),
        "layer": place.removeprefix("layers/") if place.startswith("layers/") else None,
        "size_factor_key": source.get("size_factor_key"),
        "dosage_key": source.get("dosage_key"),
    }


def aligned(data: CellData, run: Path) -> CellData:
    """The data with the run's genes, in its order; raises DataError where they are not the same."""
    genes = bundle.read_csv(run / "genes.csv")["gene"].tolist()
    if list(data.genes) == genes:
        return data
    order = pd.Index(data.genes).get_indexer(pd.Index(genes))
    if (order < 0).any():
        raise DataError(
            f"The data lack {int((order < 0).sum())} of the run's {len(genes)} genes. "
            "Resume with the file the run was started with."
        )
    return genes_at(data, order)


def same_split(data: CellData, run: Path) -> np.ndarray:
    """The split the run was started with; raises DataError where the cells are others."""
    return split(data, path=run / "split.csv")


def build_bundle(model: SAMSVAE, data: CellData, parts: np.ndarray, run: Path, device: str) -> None:
    """Write every table of a bundle into a trained run, the manifest last."""
    interpretation.orient(model)
    settings = read_json(run / "config.json")
    atomic_write(run / "weights.safetensors", save(model.state_dict()))
    write_csv(run / "perturbations.csv", perturbation_table(data, parts))
    write_csv(run / "conditions.csv", condition_table(data, parts))
    reference = reference_cells(model, data, parts)
    atomic_write(run / "reference.safetensors", save(reference._asdict()))
    write_parquet(run / "observed.parquet", observed_table(data, parts))
    genes = data.genes.tolist()
    loadings = interpretation.loadings(model, reference, genes)
    masks = interpretation.mask_table(model, data.perturbations.tolist())
    write_parquet(run / "loadings.parquet", loadings)
    write_csv(run / "masks.csv", masks)
    write_parquet(run / "cells.parquet", embedded_cells(model, data, parts))
    write_csv(run / "perturbations_umap.csv", embedded_perturbations(masks))
    metrics = held_out_metrics(model, data, parts)
    atomic_write(run / "metrics.json", to_json(metrics))
    active = interpretation.active_mechanisms(masks)
    notes = write_enrichment(run, interpretation.loading_matrix(loadings)[active])
    settings["steps_done"] = int(bundle.read_csv(run / "history.csv")["step"].iloc[-1])
    card = model_card(settings, data, parts, masks, metrics, notes)
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


@torch.inference_mode()
def reference_cells(model: SAMSVAE, data: CellData, parts: np.ndarray) -> Reference:
    """Posterior of the basal state of control training cells, a fixed sample of them."""
    controls = np.flatnonzero((data.conditions == data.control) & (parts == "train"))
    if len(controls) == 0:
        raise DataError("No control cell is among the training cells; predictions start from them.")
    chosen = np.random.default_rng(0).permutation(controls)[:N_REFERENCE]
    cells = Cells(data.subset(np.sort(chosen)), torch.device("cpu"))
    batch = cells.batch(torch.arange(len(cells)))
    q = model.encode(batch.x, torch.zeros(1, len(cells), model.config.n_latent))
    return Reference(q.loc[0].clone(), q.scale[0].clone(), batch.library[:, 0].clone())


def observed_table(data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Level of every condition and gene with its standard error, on all and on test cells."""
    frames = []
    for part, kept in (("all", np.full(len(parts), True)), ("test", parts == "test")):
        for condition in np.unique(data.conditions[kept]):
            rows = np.flatnonzero(kept & (data.conditions == condition))
            level, se = pooled_level(data.counts[rows], data.library[rows])
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


def pooled_level(
    counts: sp.csr_matrix, library: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """log2(1 + 1e4 p), p = sum of counts / sum of totals, and its jackknife standard error.

    The jackknife leaves out one cell at a time; with fewer than 2 cells the error is NaN.
    """
    n, n_genes = counts.shape
    total, sums = float(library.sum(dtype=float)), np.asarray(counts.sum(axis=0, dtype=float))
    level = np.log2(1 + PER_TEN_THOUSAND * sums.ravel() / max(total, 1e-12))
    if n < 2:
        return level, np.full(n_genes, np.nan)
    rest = np.maximum(total - library.astype(float), 1e-12)[:, None]
    se = np.empty(n_genes)
    columns = counts.tocsc()
    size = max(1, VALUES_AT_ONCE // n)
    for start in range(0, n_genes, size):
        block = slice(start, start + size)
        left = (sums.ravel()[block] - columns[:, block].toarray()) / rest
        se[block] = np.log2(1 + PER_TEN_THOUSAND * left).std(axis=0) * np.sqrt(n - 1)
    return level, se


def embedded_cells(model: SAMSVAE, data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """UMAP of posterior mean states (basal plus mean shift) of at most N_EMBEDDED cells."""
    chosen = np.random.default_rng(0).permutation(len(data.cells))[:N_EMBEDDED]
    kept = data.subset(np.sort(chosen))
    states = interpretation.states(model, Cells(kept, torch.device("cpu")))
    xy = umap_coordinates(states["shifted"])
    return pd.DataFrame(
        {
            "cell": kept.cells,
            "condition": kept.conditions,
            "split": parts[np.sort(chosen)],
            "umap_1": xy[:, 0],
            "umap_2": xy[:, 1],
        }
    )


def embedded_perturbations(masks: pd.DataFrame) -> pd.DataFrame:
    """UMAP of perturbations by their effects on the mechanisms."""
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


def held_out_metrics(model: SAMSVAE, data: CellData, parts: np.ndarray) -> dict[str, Any]:
    """The metrics of the test cells, or why there are none."""
    try:
        return evaluation.evaluate(model, data, parts)
    except DataError as error:
        return {"not_available": str(error)}


def write_enrichment(run: Path, loadings: pd.DataFrame) -> list[str]:
    """Gene sets of every active mechanism; returns what could not be tested and why."""
    if loadings.empty:
        return ["No mechanism is in use: there was nothing to test for gene sets."]
    notes = []
    for name in COLLECTIONS:
        collection = gene_sets.load_collection(name)
        try:
            result = enrichment.enrich(loadings, [collection])
        except ValueError as error:
            notes.append(f"{collection.title}: {error}")
            continue
        enrichment.write_parquet(result, run / "enrichment" / f"{name}.parquet")
        notes += enrichment.problems(result.notes)
    return notes


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    atomic_write(path, frame.to_csv(index=False).encode())


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    atomic_write(path, frame.to_parquet(index=False))


def model_card(
    settings: dict[str, Any],
    data: CellData,
    parts: np.ndarray,
    masks: pd.DataFrame,
    metrics: dict[str, Any],
    notes: list[str],
) -> str:
    """What to know of a model, as Markdown."""
    origin, model, trained = settings["origin"], settings["model_config"], settings["train_config"]
    sizes = ", ".join(f"{int((parts == part).sum()):,} {part}" for part in SPLITS)
    counts = masks[masks["active"]].groupby("perturbation").size()
    used = ", ".join(
        f"{as_text(name)} {n}" for name, n in counts.sort_values(ascending=False).items()
    )
    file, control = as_text(data.source["file"]), as_text(data.control)
    empty = masks["perturbation"].nunique() - len(counts)
    lines = [
        f"# Model card: {origin['title'] or file}",
        "",
        f"Data: {file}, {len(data.cells):,} cells x {len(data.genes):,} genes, "
        f"{len(data.perturbations)} perturbations, control {control}. "
        f"Source: {origin['source']}. Licence: {origin['licence']}.",
        f"Split by cell: {sizes}.",
        f"Model: SAMS-VAE, {model['n_latent']} mechanisms, {model['n_hidden']} hidden units, "
        f"mean-field posterior. {prior_in_words(model)}",
        f"Training: {settings['steps_done']:,} of at most {trained['steps']:,} steps of "
        f"{trained['batch_size']} cells, "
        f"{trained['particles']} samples, seed {trained['seed']}; the final parameters are kept.",
        "",
        "## What the masks say",
        "",
        f"{len(interpretation.active_mechanisms(masks))} of {model['n_latent']} mechanisms are in "
        "use (posterior probability above 0.5). Active mechanisms per perturbation: "
        f"{used or 'none'}. {empty} perturbations use none: on these genes and cells the model "
        "finds no effect worth its price, which does not prove that there is none.",
        "",
        "## How good it is on held-out cells",
        "",
        metrics_in_words(metrics),
        "",
        "## What to know",
        "",
        "- Intervals are the model's own (posterior draws of masks and embeddings, mean-field): "
        "they leave out the spread between trainings and tend to be too narrow.",
        "- Mechanisms are numbered by how many perturbations use them; another training may find "
        "them in another order, split or merged.",
        "- Enrichment takes genes as units. It says which gene sets a mechanism resembles, not "
        "that the finding would be reproduced.",
        "- Replicates and batches are not modelled.",
        *(f"- {note}" for note in notes),
    ]
    if origin["notes"]:
        lines += ["", "## How it was chosen", "", origin["notes"]]
    return "\n".join(lines) + "\n"


def as_text(name: object) -> str:
    """A name from a file on one line, so that Markdown makes no link, picture or tag of it."""
    return MARKUP.sub(r"\\\1", " ".join(str(name).split()))


def prior_in_words(model: dict[str, Any]) -> str:
    """The mask prior as a user reads it."""
    if model["mask_evidence"] is None:
        return f"Mask prior: probability {model['mask_prior']:g} (the published setting)."
    return (
        f"An active mechanism must bring {model['mask_evidence']:g} nats of evidence per training "
        f"cell of its perturbation, and at least {MIN_EVIDENCE:g} in all."
    )


def metrics_in_words(metrics: dict[str, Any]) -> str:
    """Held-out figures beside the baselines, as a Markdown table; says so when a baseline wins."""
    if "not_available" in metrics:
        return f"Not available: {as_text(metrics['not_available'])}"
    bound, effects = metrics["iwelbo"], metrics["average_effects"]
    rows = {"SAMS-VAE": effects, **metrics["baselines"]}
    table = ["| prediction | Pearson r | r, top 20 genes | R2 |", "|---|---|---|---|"]
    table += [
        f"| {name} | {figure(row['pearson'])} | {figure(row['pearson_top20'])} "
        f"| {figure(row['r2'])} |"
        for name, row in rows.items()
    ]
    return "\n".join(
        [
            f"IWELBO ({bound['n_samples']} samples): {bound['test']:.2f} nats per cell "
            f"(Monte Carlo error {bound['mc_error']:.3f}, standard error over cells "
            f"{bound['se']:.2f}, {bound['n_cells']:,} cells).",
            "",
            f"Average effects of {effects['n_conditions']} conditions against the held-out cells, "
            "pooled over conditions and genes:",
            "",
            *table,
            "",
            verdict(metrics),
        ]
    )


def verdict(metrics: dict[str, Any]) -> str:
    """Whether the model beats the baselines, in words; says so where it does not."""
    found = []
    for key, name in (("pearson", "r over all genes"), ("pearson_top20", "r over the top 20")):
        own = metrics["average_effects"][key]
        rivals = {n: row[key] for n, row in metrics["baselines"].items() if row[key] is not None}
        better = [n for n, r in rivals.items() if own is not None and r > own]
        if own is None:
            found.append(f"The model's {name} is undefined: nothing moves, or nothing is observed.")
        elif better:
            found.append(f"By {name}, {' and '.join(better)} beats the model here.")
        else:
            found.append(f"By {name}, the model beats every baseline here.")
    return " ".join(found)


def figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
