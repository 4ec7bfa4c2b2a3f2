"""Train a model to a bundle, or resume a run."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import read_json, to_json
from samsvae_core.bundle.readings import data_for_model
from samsvae_core.data.cells import CellData, DataError, genes_at, reading_in_words
from samsvae_core.data.controls import Recorded
from samsvae_core.data.counts import has_gene_key
from samsvae_core.data.gene_names import INDEX
from samsvae_core.data.read_options import DECLARED, ReadOptions
from samsvae_core.data.splits import UNUSED, split
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline.build import build_bundle, write_csv
from samsvae_core.pipeline.choices import check_direct, context_number, direct_by_default
from samsvae_core.pipeline.evidence_sweep import train_frontier
from samsvae_core.system.files import OutputError, atomic_write, new_output
from samsvae_core.training import distributed
from samsvae_core.training.config import Progress, TrainConfig
from samsvae_core.training.direct_fit import memory_needed
from samsvae_core.training.loop import fit, new_model
from samsvae_core.training.run_folder import is_prepared, recorded, refuse_finished

PIECE = 1 << 20  # numbers hashed at a time
WORTH_SAYING = 10**9  # bytes of direct effects from which their memory is told before a training


@dataclass(frozen=True)
class Origin:
    """Where the data come from, for the manifest and the card."""

    title: str = ""  # the file name, if empty
    source: str = "not stated"
    licence: str = "not stated"
    notes: str = ""  # Markdown for the card: how the model was chosen


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
    context: str | None = None,
) -> Bundle:
    """Train a model on the training cells and store it as a bundle in the new folder `run`.

    Values that are not counts get a Gaussian likelihood. Raises OutputError if `run` exists
    already, and DataError for a split without validation cells or without controls to train on.

    Parameters
    ----------
    data
        The cells.
    parts
        "train", "validation", "test" or "unused" for each cell.
    run
        The folder to make.
    model_config
        Fields of ModelConfig that differ from their defaults.
    train_config
        How to train.
    device
        Where to train.
    on_epoch
        Called after every epoch; may raise Stop.
    origin
        Where the data come from.
    model
        A key of MODELS.
    frontier
        Whether to train several levels of evidence from one dense start and keep the sparsest
        that fits.
    cell_values
        Whether to include measured values, as in `build_bundle`.
    say
        Called with lines on how the data were read and what is trained.
    context
        The covariate between whose levels effects may differ; None for the same effects at all.
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
    given = {"direct_effects": direct_by_default(model, evidence), **model_config}
    check_direct(model, given["direct_effects"])
    levels = data.covariates.levels if data.covariates else {}
    config = ModelConfig(
        n_genes=len(data.genes),
        n_perturbations=len(data_for_model(data, model).perturbations),
        other_genes=data.has_size_factor,
        likelihood="counts" if data.is_counts else "gaussian",
        levels=tuple(map(len, levels.values())),
        context=context_number(levels, context, model),
        **given,
    )
    settings = {
        "schema": layout.SCHEMA,
        "model": model,
        "frontier": frontier,
        "model_config": asdict(config),
        "train_config": asdict(train_config),
        "data": data.source,
        "control": data.control,
        "levels": {name: list(names) for name, names in levels.items()},
        "origin": asdict(origin),
        "checksums": checksums(data),
    }
    make_folder(run)
    for line in [*reading_in_words(data), *memory_in_words(config, data)]:
        say(line)
    with recorded(run):
        if (run / "config.json").exists():  # made since by another process
            raise OutputError(f"{run} exists already. Name another output.")
        write_csv(run / "split.csv", pd.DataFrame({"cell": data.cells, "split": parts}))
        ids = {} if data.gene_ids is None else {"id": data.gene_ids}
        write_csv(run / "genes.csv", pd.DataFrame({"gene": data.genes, **ids}))
        atomic_write(run / "config.json", to_json(settings))
        return resume(data, run, device, on_epoch, cell_values, say)


def memory_in_words(config: ModelConfig, data: CellData) -> list[str]:
    """Return a line on the memory that direct effects take while training, if that is much."""
    kind, sizes = config.direct_effects, (config.n_perturbations, config.n_genes)
    needed = memory_needed(*sizes, len(np.unique(data.conditions)), kind == "sparse")
    if kind == "none" or needed <= WORTH_SAYING:
        return []
    less = "own-target or none takes" if kind == "sparse" else "none takes"
    return [
        f"Direct effects of {sizes[0]:,} perturbations on {sizes[1]:,} genes take about "
        f"{needed / 1e9:.0f} GB of memory while training; --direct-effects {less} less."
    ]


def make_folder(run: Path) -> None:
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot write {run}: {error.strerror}. Choose another place for the output."
        ) from error


def check_split(data: CellData, parts: np.ndarray) -> None:
    """Refuse a split that training or its tables would fail on, before any step is taken."""
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
    """Continue a run from its last checkpoint and make its bundle.

    The run's status.json tells its progress and how it ended. Raises DataError if the data are not
    those it was started with.

    Parameters
    ----------
    data
        The cells the run was started with.
    run
        The run folder.
    device
        Where to train.
    on_epoch
        Called after every epoch; may raise Stop.
    cell_values
        Whether to include measured values, as in `build_bundle`.
    say
        Called with lines on what is trained.
    """
    settings = read_settings(run)
    refuse_finished(run)
    with recorded(run) as status:
        data, parts = cells_of(data, run, settings)
        distributed.wait()  # until the others have read the settings

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
    """Train a run in a process other than the first; it writes no file."""
    settings = read_settings(run)
    trained(*cells_of(data, run, settings), run, settings, device)


def cells_of(data: CellData, run: Path, settings: dict[str, Any]) -> tuple[CellData, np.ndarray]:
    """Return the run's cells with their parts; raises DataError if the data are not the same."""
    data = aligned(data, run)
    check_same(checksums(data), settings.get("checksums"))
    parts = split(data, run / "split.csv")
    data = data_for_model(data, settings["model"])
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
    """Return the run's model, trained from its last checkpoint.

    Parameters
    ----------
    data, parts
        The cells, and the part of each.
    run
        The run folder.
    settings
        The content of its config.json.
    device
        Where to train.
    on_epoch
        Called after every epoch.
    say
        Called with lines on what is trained.
    """
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
    """Return checksums of what a model is trained on, so that a run resumes with the same data."""
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
    """Yield the arrays of a sparse matrix in pieces, the same for the same values."""
    rows = table if table.has_sorted_indices else table.sorted_indices()
    for array in (rows.indptr, rows.indices):
        for i in range(0, len(array), PIECE):
            yield array[i : i + PIECE].astype(np.int64).data
    yield np.ascontiguousarray(rows.data).data


def check_same(found: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Raise DataError if the data differ from the checksums of a run; old runs have none."""
    wrong = [what for what in found if expected and found[what] != expected.get(what)]
    if wrong:
        raise DataError(
            f"The {' and the '.join(wrong)} are not those the run was started with. Resume with "
            "the same file, or start a new run."
        )


def read_settings(run: Path) -> dict[str, Any]:
    """Return config.json of a run or bundle; raises OutputError if it is absent or invalid."""
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


def read_options(run: Path, data: Path | None = None) -> ReadOptions:
    """Return how the data of a run or bundle were read, for `data.h5ad.read_cells`.

    If `data`, another file with the same genes, lacks the column that named them, its names are
    chosen anew and genes are matched by their ids.
    """
    source = read_settings(run)["data"]
    noted = ReadOptions(**{name: source[name] for name in DECLARED if name in source})
    place = str(source.get("counts_from", "X"))
    of_table = noted.perturbation_key is None and noted.dosage_key is not None
    before = of_table and "drop_unlabelled" not in source  # columns of controls were not known
    controls = source.get("control_labels") or []
    gene_key = source.get("gene_key", INDEX)  # the only way before it was noted
    return replace(
        noted,
        control=Recorded(controls) if controls or of_table else None,
        delimiter=source.get("delimiter", "+"),
        layer=place.removeprefix("layers/") if place.startswith("layers/") else None,
        gene_key=gene_key if data is None or has_gene_key(data, gene_key) else None,
        drop_unlabelled=False if before else noted.drop_unlabelled,
    )


def aligned(data: CellData, run: Path) -> CellData:
    """Return the data with the run's genes in its order; raises DataError if some are missing."""
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
