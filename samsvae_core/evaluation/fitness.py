"""Whether a model is fit to predict from, judged by its training and by validation cells.

Three signs show that training was too short. At its end the bound of validation cells still rises
by at least a third of what all shifts are worth to it, so the shifts are not settled; the predicted
shifts are further from those of validation cells than no shift would be; or the masks have not
become sparse. Test cells and the truth of a simulation are not used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.data.cells import CellData, DataError
from samsvae_core.evaluation.baselines import observed_effects
from samsvae_core.evaluation.predictive import model_effects
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.training.validation import cell_bounds

LAST = 0.8  # share of the steps after which the bound should hardly rise
RISING = 1 / 3  # of what shifts are worth to the bound; docs/model.md has measured figures
LEAST = 0.32  # nats per cell; a smaller rise is ignored
ALL_ON = 0.95  # share of active mask entries from which masks count as not sparse
SURE = 2.0  # standard errors
SAMPLES = 8  # per cell, for a bound


def on_validation(model: SAMSVAE, data: CellData, parts: np.ndarray) -> dict[str, Any] | None:
    """Return what a model's shifts are worth on validation cells, against no shift at all.

    None without validation cells. `bound_gain` is how much the predictive bound of a cell rises
    when the model is given its dosages, in nats per cell over all validation cells, with the paired
    standard error `bound_se`. `effects` is None if there are too few cells; else it is taken from
    the mean over genes, per condition, of (observed)^2 - (observed - predicted)^2 of average
    effects, in squared log2 units: `gain` is the mean over `n_conditions`, `se` its standard error,
    and `no_change` the mean of (observed)^2.
    """
    if not (parts == "validation").any():
        return None
    cells = data.subset(parts == "validation")
    untreated = replace(cells, dosages=sp.csr_matrix(cells.dosages.shape, dtype=np.float32))
    told, not_told = (
        cell_bounds(model, Cells(part, model.device), SAMPLES).numpy()
        for part in (cells, untreated)
    )
    gained = told - not_told
    return {
        "bound_gain": float(gained.mean()),
        "bound_se": float(gained.std() / len(gained) ** 0.5),
        "n_cells": len(gained),
        "effects": _effects(model, cells),
    }


def _effects(model: SAMSVAE, cells: CellData) -> dict[str, Any] | None:
    try:
        observed = observed_effects(cells, "validation")
    except DataError:
        return None
    predicted = model_effects(model, cells, observed.index).mean
    size = (observed**2).mean(axis=1)
    gain = size - ((observed - predicted) ** 2).mean(axis=1)
    n = len(gain)
    if n < 2 or not np.isfinite(gain).all():
        return None
    return {
        "gain": float(gain.mean()),
        "se": float(gain.std(ddof=1) / n**0.5),
        "no_change": float(size.mean()),
        "n_conditions": n,
    }


def late_rise(history: pd.DataFrame) -> float | None:
    """Return the rise of the validation bound in the last fifth of the steps, in nats per cell.

    None if the history cannot tell: fewer than two epochs, or figures that are not numbers.
    """
    table = history[["step", "validation_bound"]].apply(pd.to_numeric, errors="coerce")
    table = table[np.isfinite(table).all(axis=1)]
    step, bound = table["step"].to_numpy(float), table["validation_bound"].to_numpy(float)
    if len(step) < 2 or (np.diff(step) <= 0).any():
        return None
    return float(bound[-1] - np.interp(LAST * step[-1], step, bound))


def doubts(
    history: pd.DataFrame, masks: pd.DataFrame, record: dict[str, Any] | None, has_masks: bool
) -> list[str]:
    """Return why a model is not fit to predict from, one sentence per reason; empty if it is fit.

    `record` comes from `on_validation`, None in bundles made before it existed.
    """
    found = []
    rise, worth = late_rise(history), record["bound_gain"] if record else 0.0
    most = worth + SURE * record["bound_se"] if record else np.inf  # the error favours the model
    if rise is not None and rise > max(RISING * most, LEAST):
        found.append(
            f"Its training ended too early: the bound of validation cells still rose by {rise:.2g} "
            f"nats per cell in the last fifth of the steps, while all shifts together are worth "
            f"{worth:.2g}."
        )
    effects = (record or {}).get("effects")
    if effects is not None and effects["gain"] + SURE * effects["se"] < 0:
        found.append(
            "On validation cells its predicted shifts are worse than predicting no change (mean "
            f"squared error {effects['no_change'] - effects['gain']:.3g} against "
            f"{effects['no_change']:.3g}, over {effects['n_conditions']} conditions)."
        )
    n = len(masks)
    if has_masks and n and (on := int(masks["active"].astype(bool).sum())) >= ALL_ON * n:
        found.append(
            f"{on:,} of its {n:,} mask entries are active: the masks have not become "
            "sparse, so mechanisms, and which perturbations share them, mean nothing yet."
        )
    return found


def in_words(found: list[str]) -> str:
    """Return the reasons as one caution, with what to do; empty if there are none."""
    if not found:
        return ""
    return (
        f"This model is not fit to predict from. {' '.join(found)} Train it for more steps before "
        "you read anything into its predictions."
    )


def caution(bundle: Bundle) -> str:
    """Return why this bundle's model is not fit to predict from; empty if there is no reason.

    Raises BundleError if the metrics cannot be read.
    """
    record = bundle.metrics.get("validation")
    masks = bundle.masks if bundle.model.has_masks else pd.DataFrame()
    try:
        return in_words(doubts(bundle.history, masks, record, bundle.model.has_masks))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"{bundle.path / 'metrics.json'} is not as a bundle's is: its validation figures "
            "cannot be read. Copy the bundle again."
        ) from error
