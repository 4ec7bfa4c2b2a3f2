"""Compare levels of mask evidence from one dense start, and choose the sparsest that still fits.

A dense model (every mask on, no evidence asked) is trained once and rotated to its sparsest basis;
from it one model per level of evidence is annealed. Chosen is the sparsest whose validation bound
lies within one standard error of the best. That is the error of the paired difference over cells,
since models are compared on the same cells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from samsvae_core.data.cells import CellData, DataError
from samsvae_core.evaluation.baselines import observed_effects
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.evaluation.predictive import model_effects
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE, ModelConfig
from samsvae_core.system.files import atomic_write
from samsvae_core.training import distributed
from samsvae_core.training.config import Progress, TrainConfig
from samsvae_core.training.loop import fit, new_model
from samsvae_core.training.validation import cell_bounds

EVIDENCE = (0.08, 0.16, 0.32, 0.64, 1.28, 2.56)  # nats per training cell an entry must bring
SHARE_DENSE = 0.4  # of the steps of a single training
SHARE_LEVEL = 0.4
BOUND_SAMPLES = 32  # draws of the effects for comparing the models


def train_frontier(
    data: CellData,
    parts: np.ndarray,
    run: Path,
    config: ModelConfig,
    settings: TrainConfig,
    name: str,
    device: torch.device,
    on_epoch: Callable[[Progress], None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> SAMSVAE:
    """Train every level in RUN/frontier and write frontier.csv; returns the chosen model.

    history.csv is that of the dense start, followed by the chosen level. After an interruption,
    only what was not trained yet is trained. frontier.csv has a row per level: mask_evidence,
    active, mechanisms, validation_bound, difference from the best and its se, in nats per cell,
    effect_r (Pearson r of average effects on validation cells; empty if undefined), chosen.

    Parameters
    ----------
    data, parts
        The cells, and the part of each: train, validation or test.
    run
        The run folder.
    config, settings
        Configuration of the model and of a single training.
    name
        A key of MODELS.
    device
        Where to train.
    on_epoch
        Called after every epoch.
    say
        Called with a line on what begins, and on what was chosen.
    """
    cells = {p: Cells(data.subset(parts == p), device) for p in ("train", "validation")}
    start = run / "frontier" / "dense"
    dense_steps, level_steps = (
        max(1, round(settings.steps * s)) for s in (SHARE_DENSE, SHARE_LEVEL)
    )
    dense_settings = replace(settings, steps=dense_steps, dense=1.0, anneal=float("inf"))
    level_settings = replace(settings, steps=level_steps, dense=0.0)
    n = len(EVIDENCE)
    say(f"Dense start, {dense_steps:,} steps; then {n} levels of evidence, {level_steps:,} each.")
    dense = fresh(data, parts, config, settings.seed, name).to(device)
    history = fit(dense, cells["train"], cells["validation"], dense_settings, start, on_epoch)
    models, histories, bounds = {}, {}, {}
    for i, level in enumerate(EVIDENCE, start=1):
        say(f"Level {i} of {n}: {level:g} nats per cell")
        leveled = fresh(data, parts, replace(config, mask_evidence=level), settings.seed, name)
        leveled.to(device).load_state_dict(
            dense.state_dict() | {"evidence": leveled.evidence.to(device)}
        )
        folder = run / "frontier" / f"{level:g}"
        histories[level] = fit(
            leveled, cells["train"], cells["validation"], level_settings, folder, on_epoch
        )
        models[level] = leveled
        bounds[level] = cell_bounds(leveled, cells["validation"], BOUND_SAMPLES).numpy()
    table = compared(models, bounds)
    table["effect_r"] = [validation_r(models[level], data, parts) for level in EVIDENCE]
    chosen = float(table.loc[table["chosen"], "mask_evidence"].iloc[0])
    say(f"Kept: {chosen:g} nats per cell, the sparsest within one standard error of the best.")
    whole = pd.DataFrame([*history, *later(histories[chosen], history[-1])])
    if distributed.first():
        atomic_write(run / "frontier.csv", table.to_csv(index=False).encode())
        atomic_write(run / "history.csv", whole.to_csv(index=False).encode())
    return models[chosen]


def fresh(data: CellData, parts: np.ndarray, config: ModelConfig, seed: int, name: str) -> SAMSVAE:
    return new_model(data.subset(parts == "train"), config, seed, name)


def later(history: list[Progress], start: Progress) -> list[Progress]:
    """Return a history renumbered to continue from an earlier epoch."""
    return [p._replace(epoch=p.epoch + start.epoch, step=p.step + start.step) for p in history]


def compared(models: dict[float, SAMSVAE], bounds: dict[float, np.ndarray]) -> pd.DataFrame:
    """Return a row per level; the sparsest within one standard error of the best is chosen."""
    best = max(bounds, key=lambda level: bounds[level].mean())
    rows = []
    for level, model in models.items():
        active = model.mask_probability() > ACTIVE
        difference = bounds[level] - bounds[best]
        rows.append(
            {
                "mask_evidence": level,
                "active": int(active.sum()),
                "mechanisms": int(active.any(0).sum()),
                "validation_bound": bounds[level].mean(),
                "difference": difference.mean(),
                "difference_se": difference.std(ddof=1) / len(difference) ** 0.5,
            }
        )
    table = pd.DataFrame(rows)
    close = table[table["difference"] >= -table["difference_se"].fillna(0)]
    table["chosen"] = table.index == close["active"].idxmin()
    return table


def validation_r(model: SAMSVAE, data: CellData, parts: np.ndarray) -> float:
    """Return Pearson r of average effects on validation cells, NaN if undefined."""
    cells = data.subset(parts == "validation")
    try:
        observed = observed_effects(cells, "validation")
    except DataError:
        return np.nan
    predicted = model_effects(model, cells, observed.index).mean
    r = pearson(observed.to_numpy().ravel(), predicted.to_numpy().ravel())
    return np.nan if r is None else r
