"""Calibration of predicted shifts, and their coverage and interactions on held-out cells.

A shift is log2(1 + 1e4 p) of a condition minus that of control, p the share of pooled transcripts;
for values that are not counts, the difference of means. This is the scale of `compose`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from samsvae_core.bundle.bundle import Reference
from samsvae_core.data.cells import CellData
from samsvae_core.evaluation.baselines import dosage_table, is_combination, singles
from samsvae_core.evaluation.level_errors import WITHIN
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.evaluation.shifts import Shifts, predicted_shifts
from samsvae_core.models.samsvae import SAMSVAE

INTERVAL = (0.05, 0.95)  # quantiles of the posterior draws: a 90 % interval
CELL_VALUES_AT_ONCE = 2**23  # draws x conditions x genes held while shifts are taken
FEWEST_CONDITIONS = 3  # conditions needed to learn model errors
SIMILAR_GENES = 51  # genes of similar level towards which a gene's model error is shrunk
FLOOR = 0.1  # least squared error of a gene, as a share of the mean over genes
PRIOR_CONDITIONS = 30  # weight of the similar genes, in conditions


class Predicted(NamedTuple):
    """Moments and 90 % interval of predicted shifts over posterior draws, conditions x genes."""

    mean: pd.DataFrame
    sd: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame


def predicted_conditions(
    model: SAMSVAE,
    reference: Reference,
    data: CellData,
    conditions: pd.Index,
    n_samples: int,
    seed: int,
) -> Predicted:
    """Return the predicted shifts of conditions in the data.

    Parameters
    ----------
    model
        A trained model.
    reference
        The basal states to start from.
    data
        The cells whose dosages the conditions have.
    conditions
        Names of conditions in `data`.
    n_samples, seed
        Number and seed of the posterior draws.
    """
    D = torch.as_tensor(
        dosage_table(data, conditions).to_numpy(dtype=np.float32), device=model.device
    )
    size = max(1, CELL_VALUES_AT_ONCE // (n_samples * len(data.genes)))
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for part in D.split(size) if len(D) else []:
        draws = predicted_shifts(model, reference, part, n_samples, seed).shift
        lower, upper = np.quantile(draws, INTERVAL, axis=1)
        for kept, found in zip(
            rows, (draws.mean(1), draws.std(1, ddof=1), lower, upper), strict=True
        ):
            kept.extend(found)
    tables = (pd.DataFrame(r, index=conditions, columns=data.genes, dtype=float) for r in rows)
    return Predicted(*tables)


# Observed against predicted


def gene_errors(observed: Shifts, predicted: Predicted) -> pd.DataFrame | None:
    """Return the error of the model per gene, beyond posterior spread and sampling of the cells.

    It is learned from shifts of validation cells. Per gene, residual^2 - se^2 - sd^2 is averaged
    over conditions and shrunk: the average over the SIMILAR_GENES nearest in se^2 + sd^2 (that is,
    in level) counts as PRIOR_CONDITIONS further conditions. The root of that is multiplied by one
    factor, at least 1, under which 90 % of the residuals fall within +-1.645 sqrt(sd^2 + error^2 +
    se^2), each with its own condition left out of the error. None with fewer than 3 conditions, or
    if the sampling of the cells hides the error of the model: 90 % of residuals fall within
    +-1.645 sqrt(sd^2 + se^2). Columns are gene and model_error.
    """
    n = len(observed.shift)
    se, sd = observed.se.to_numpy(), predicted.sd.to_numpy()
    squared = (observed.shift.to_numpy() - predicted.mean.to_numpy()) ** 2
    known = se**2 + sd**2
    scored = se > 0  # a gene that no cell counts tells nothing about the error
    excess = np.where(scored, squared - known, np.nan)  # (A, G)
    if n < FEWEST_CONDITIONS or not scored.any():
        return None
    if (squared <= WITHIN**2 * known)[scored].mean() >= 0.9:
        return None
    order = np.argsort(known.mean(0), kind="stable")
    # shifts of few counts are so skewed that their excess is mostly negative: it is not averaged
    floor = FLOOR * float(shrunk(excess, order, 0.0).mean())
    if floor == 0:
        return None
    left_out = np.stack([shrunk(np.delete(excess, i, axis=0), order, floor) for i in range(n)])
    asked = (squared / WITHIN**2 - known).clip(0)  # the smallest sufficient squared error
    factor = max(1.0, np.quantile((asked / left_out)[scored], 0.9, method="higher"))
    error = np.sqrt(factor * shrunk(excess, order, floor))
    return pd.DataFrame({"gene": observed.shift.columns, "model_error": error})


def shrunk(
    excess: Float[np.ndarray, "A G"], order: np.ndarray, floor: float
) -> Float[np.ndarray, " G"]:
    """Return the mean over conditions, shrunk towards neighbours in `order`, at least `floor`."""
    n = (~np.isnan(excess)).sum(0)
    total = np.nansum(excess, axis=0)
    width = min(SIMILAR_GENES, excess.shape[1])
    around = pd.DataFrame({"total": total[order], "n": n[order]})
    around = around.rolling(width, center=True, min_periods=1).sum()
    similar = np.empty(excess.shape[1])
    similar[order] = around["total"] / around["n"].clip(lower=1)
    return ((total + PRIOR_CONDITIONS * similar) / (n + PRIOR_CONDITIONS)).clip(floor)


def coverage(
    observed: Shifts, predicted: Predicted, errors: pd.DataFrame | None, has_posterior: bool
) -> dict[str, Any]:
    """Return the share of observed test shifts within 90 % intervals, for singles and combinations.

    "own" is the model's interval; "own_with_sampling" adds the sampling error of the observation,
    which alone would put many outside; "calibrated_with_sampling" adds the model's error per gene
    (`gene_errors`) as well. Genes without sampling error (no count in any cell) are left out.
    """
    combined = np.array([is_combination(c) for c in observed.shift.index], dtype=bool)
    kinds = {"single": ~combined, "combination": combined}
    return {
        "level": 0.9,
        **{
            kind: coverage_of(observed, predicted, errors, has_posterior, rows)
            for kind, rows in kinds.items()
        },
    }


def coverage_of(
    observed: Shifts,
    predicted: Predicted,
    errors: pd.DataFrame | None,
    has_posterior: bool,
    rows: Bool[np.ndarray, " A"],
) -> dict[str, Any] | None:
    shift, se = (table[rows].to_numpy() for table in observed)
    mean, sd, lower, upper = (table[rows].to_numpy() for table in predicted)
    scored = se > 0
    if not scored.any():
        return None
    away = np.abs(shift - mean)
    inside: dict[str, np.ndarray | None] = {
        "own": (lower <= shift) & (shift <= upper) if has_posterior else None,
        "own_with_sampling": away <= WITHIN * np.hypot(sd, se),
        "calibrated_with_sampling": None,
    }
    if errors is not None:
        wide = np.sqrt(sd**2 + se**2 + errors["model_error"].to_numpy() ** 2)
        inside["calibrated_with_sampling"] = away <= WITHIN * wide
    return {
        **{k: None if hit is None else float(hit[scored].mean()) for k, hit in inside.items()},
        "n": int(scored.sum()),
        "n_conditions": int(scored.any(axis=1).sum()),
    }


def doubles(observed: Shifts) -> list[str]:
    """Return the doubles measured together with both of their singles."""
    measured = set(observed.shift.index)
    pairs = [c for c in observed.shift.index if is_combination(c) and len(singles(c)) == 2]
    return [c for c in pairs if set(singles(c)) <= measured]


def interaction(
    observed: Shifts, predicted: Predicted, trained: set[str], cells: str
) -> dict[str, Any] | None:
    """Return the non-additivity of doubles, A+B - A - B over all genes, predicted against observed.

    Only doubles measured together with both singles count; None if there is none. `trained` are the
    conditions with training cells, and `cells` says which cells the shifts are from.
    """
    shift, mean = observed.shift, predicted.mean
    names = doubles(observed)
    if not names:
        return None
    x, y = (
        np.stack([(table.loc[c] - table.loc[singles(c)].sum()).to_numpy() for c in names])
        for table in (shift, mean)
    )
    return {
        "cells": cells,
        "n_doubles": len(names),
        "pearson": pearson(x.ravel(), y.ravel()),
        "doubles": {
            c: {"pearson": pearson(a, b), "seen_in_training": c in trained}
            for c, a, b in zip(names, x, y, strict=True)
        },
    }
