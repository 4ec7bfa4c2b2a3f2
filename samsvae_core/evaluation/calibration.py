"""Shifts, observed and predicted, and how far predictions can be trusted on cells not trained on.

A shift is log2(1 + 1e4 p) of a condition minus that of control, p the share of pooled transcripts;
of values that are not counts, the difference of means. The scale of `composition`.
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
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.evaluation.shifts import Shifts, predicted_shifts
from samsvae_core.models.samsvae import SAMSVAE

INTERVAL = (0.05, 0.95)  # quantiles of the posterior draws: a 90 % interval
WITHIN = 1.6449  # standard deviations on either side that hold 90 % of a Normal
CELL_VALUES_AT_ONCE = 2**23  # draws x conditions x genes held while shifts are taken
FEWEST_CONDITIONS = 3  # to learn model errors from
SIMILAR_GENES = 51  # genes of similar level that a gene's model error is shrunk towards
FLOOR = 0.1  # least squared error of a gene, as a share of the mean over genes
PRIOR_CONDITIONS = 30  # what these count for, in conditions


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
    """The predicted shifts of conditions in the data, as many at once as memory allows."""
    D = torch.as_tensor(
        dosage_table(data, conditions).to_numpy(dtype=np.float32), device=model.device
    )
    size = max(1, CELL_VALUES_AT_ONCE // (n_samples * len(data.genes)))
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for part in D.split(size) if len(D) else []:
        draws = predicted_shifts(model, reference, part, n_samples, seed)
        lower, upper = np.quantile(draws, INTERVAL, axis=1)
        for kept, found in zip(
            rows, (draws.mean(1), draws.std(1, ddof=1), lower, upper), strict=True
        ):
            kept.extend(found)
    tables = (pd.DataFrame(r, index=conditions, columns=data.genes, dtype=float) for r in rows)
    return Predicted(*tables)


# One against the other


def gene_errors(observed: Shifts, predicted: Predicted) -> pd.DataFrame | None:
    """The error of the model per gene, beyond posterior spread and sampling of the cells.

    From shifts of validation cells. Per gene, the mean over conditions of residual^2 - se^2 - sd^2,
    with that of the SIMILAR_GENES nearest in se^2 + sd^2 (as good as in level) added as if it were
    PRIOR_CONDITIONS conditions more; its root, times the one factor under which 90 % of the
    residuals fall within +-1.645 sqrt(sd^2 + error^2 + se^2), each with its own condition left out
    of the error. The factor is 1 at least. None with fewer than 3 conditions, or where the sampling
    of the cells hides the error of the model. Columns: gene, model_error.
    """
    n = len(observed.shift)
    se, sd = observed.se.to_numpy(), predicted.sd.to_numpy()
    squared = (observed.shift.to_numpy() - predicted.mean.to_numpy()) ** 2
    known = se**2 + sd**2
    scored = se > 0  # no count at all says nothing of the error
    excess = np.where(scored, squared - known, np.nan)  # (A, G)
    pooled = float(np.nanmean(excess)) if scored.any() else 0.0
    if n < FEWEST_CONDITIONS or pooled <= 0:
        return None
    floor = FLOOR * pooled
    order = np.argsort(known.mean(0), kind="stable")
    left_out = np.stack([shrunk(np.delete(excess, i, axis=0), order, floor) for i in range(n)])
    asked = (squared / WITHIN**2 - known).clip(0)  # the squared error that would just suffice
    factor = max(1.0, np.quantile((asked / left_out)[scored], 0.9, method="higher"))
    error = np.sqrt(factor * shrunk(excess, order, floor))
    return pd.DataFrame({"gene": observed.shift.columns, "model_error": error})


def shrunk(
    excess: Float[np.ndarray, "A G"], order: np.ndarray, floor: float
) -> Float[np.ndarray, " G"]:
    """Mean over conditions, drawn towards that of neighbours in `order`; not below `floor`."""
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
    """Share of observed shifts of test cells within 90 % intervals, of singles and combinations.

    "own": the model's interval as it is; "own_with_sampling": with the sampling error of the
    observation, which alone would put many outside; "calibrated_with_sampling": with the model's
    error per gene (`gene_errors`) as well. Pairs of a condition and a gene without sampling error
    (no count at all) are left out.
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
    """Doubles measured together with both of their singles."""
    measured = set(observed.shift.index)
    pairs = [c for c in observed.shift.index if is_combination(c) and len(singles(c)) == 2]
    return [c for c in pairs if set(singles(c)) <= measured]


def interaction(
    observed: Shifts, predicted: Predicted, trained: set[str], cells: str
) -> dict[str, Any] | None:
    """Non-additivity of doubles, predicted against observed: A+B - A - B, over all genes.

    Of doubles measured together with both of their singles; None where there is none. `trained`
    are the conditions with training cells, `cells` says which cells the shifts are from.
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
