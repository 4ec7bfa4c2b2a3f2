"""Shifts, observed and predicted, and how far predictions can be trusted on cells not trained on.

A shift is log2(1 + 1e4 p) of a condition minus that of control, p the share of pooled transcripts;
of values that are not counts, the difference of means. The scale of `composition`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from samsvae_core.bundle.bundle import Reference
from samsvae_core.data.cells import CellData, DataError, mean_variance
from samsvae_core.data.disk_csr import dense_blocks
from samsvae_core.evaluation.baselines import FEWEST_CELLS, dosage_table, is_combination, singles
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.distributions import PER_TEN_THOUSAND
from samsvae_core.models.samsvae import SAMSVAE

INTERVAL = (0.05, 0.95)  # quantiles of the posterior draws: a 90 % interval
WITHIN = 1.6449  # standard deviations on either side that hold 90 % of a Normal
N_REFERENCE = 128  # control cells that predictions start from
CELL_VALUES_AT_ONCE = 2**23  # draws x conditions x genes held while shifts are taken
DRAW_VALUES = 2**17  # reference cells x genes, at least, that each posterior draw is decoded at
STATE_VALUES_AT_ONCE = 2**21  # shifts x reference cells x genes held while levels are taken
FEWEST_CONDITIONS = 3  # to learn model errors from
SIMILAR_GENES = 51  # genes of similar level that a gene's model error is shrunk towards
FLOOR = 0.1  # least squared error of a gene, as a share of the mean over genes
PRIOR_CONDITIONS = 30  # what these count for, in conditions


# Observed


def pooled_level(
    counts: sp.csr_matrix,
    library: Float[np.ndarray, " N"],
    is_counts: bool = True,
    rows: np.ndarray | None = None,
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """log2(1 + 1e4 p), p = sum of counts / sum of totals, and its jackknife standard error.

    Of all cells, or those at `rows`. Of values that are not counts, their mean. The jackknife
    leaves out one cell at a time; with fewer than 2 cells the error is NaN.
    """
    rows = np.arange(len(library)) if rows is None else rows
    library = library[rows].astype(float)
    n, n_genes, total = len(rows), counts.shape[1], float(library.sum())
    sums = np.zeros(n_genes)
    for values in dense_blocks(counts, rows):
        sums += values.sum(axis=0, dtype=float)

    def level(p: np.ndarray) -> np.ndarray:
        return np.log2(1 + PER_TEN_THOUSAND * p) if is_counts else p

    found = level(sums / max(total, 1e-12))
    if n < 2:
        return found, np.full(n_genes, np.nan)
    rest = np.maximum(total - library, 1e-12)[:, None]

    def left_out() -> Iterator[np.ndarray]:
        first = 0
        for values in dense_blocks(counts, rows):
            yield level((sums - values) / rest[first : first + len(values)])
            first += len(values)

    return found, np.sqrt(mean_variance(left_out())[1] * (n - 1))


class Shifts(NamedTuple):
    """Observed shifts of conditions and their standard errors, conditions x genes."""

    shift: pd.DataFrame
    se: pd.DataFrame


def observed_shifts(data: CellData) -> Shifts:
    """Of every condition with enough cells; no rows where there are too few controls."""
    n = pd.Series(data.conditions).value_counts()
    names = sorted(n.index[n >= FEWEST_CELLS])
    if data.control not in names:
        names = []
    found = {}
    for name in names:
        rows = np.flatnonzero(data.conditions == name)
        found[name] = pooled_level(data.counts, data.library, data.is_counts, rows)
    names = [name for name in names if name != data.control]
    shift = [found[name][0] - found[data.control][0] for name in names]
    se = [np.hypot(found[name][1], found[data.control][1]) for name in names]
    tables = (
        pd.DataFrame(rows, index=pd.Index(names, dtype=str), columns=data.genes, dtype=float)
        for rows in (shift, se)
    )
    return Shifts(*tables)


# Predicted


@torch.inference_mode()
def reference_cells(
    model: SAMSVAE, data: CellData, parts: np.ndarray, n_cells: int = N_REFERENCE
) -> Reference:
    """Posterior of the basal state of control training cells, a fixed sample of them."""
    controls = np.flatnonzero((data.conditions == data.control) & (parts == "train"))
    if len(controls) == 0:
        raise DataError("No control cell is among the training cells; predictions start from them.")
    chosen = np.random.default_rng(0).permutation(controls)[:n_cells]
    cells = Cells(data.subset(np.sort(chosen)), model.device)
    batch = cells.batch(torch.arange(len(cells), device=model.device))
    q = model.encode(batch.x, torch.zeros(1, len(cells), model.n_shift, device=model.device))
    return Reference(q.loc[0].clone(), q.scale[0].clone(), batch.library[:, 0].clone())


@torch.inference_mode()
def predicted_shifts(
    model: SAMSVAE,
    reference: Reference,
    D: Float[Tensor, "A T"],
    n_samples: int,
    seed: int,
    without: tuple[int, ...] = (),
) -> Float[np.ndarray, "A S G"]:
    """Shift of each row of dosages under each posterior draw: common draws, common basal states.

    The same seed gives the same draws whatever the rows: each perturbation has a stream of its own,
    and only those given are drawn. Mechanisms in `without` are taken out.

    With many genes not every draw is decoded at every reference cell. The level at the mean move
    of the draws is taken over all cells; how far each draw is from there, over one of several equal
    parts of them, in turn (all cells, where genes x cells are less than 2 DRAW_VALUES, so that
    nothing is approximated). On a simulated model of 5,000 genes, four parts of 32 cells change
    means by 0.8 % of the interval's width, its ends by 4 % (medians), where another 64 draws change
    them by 4 and 12 %; intervals come out 1 % wider.
    """
    moves = drawn_moves(model, D, n_samples, seed)  # (A, S, C)
    moves[..., list(without)] = 0
    noise = torch.randn(reference.loc.shape, generator=stream(model, seed, 0), device=model.device)
    z_basal = reference.loc + reference.scale * noise  # (R, K)
    parts = z_basal.tensor_split(max(1, len(z_basal) * model.config.n_genes // DRAW_VALUES))
    middle, nowhere = moves.mean(1), moves.new_zeros(model.n_shift)
    shift = moves.new_zeros(*moves.shape[:2], model.config.n_genes)  # exactly where nothing moves
    whole = mean_level(model, z_basal, middle) - mean_level(model, z_basal, nowhere)  # (A, G)
    for place, part in enumerate(parts):
        at_middle = mean_level(model, part, middle)
        arm, draw = moves[:, place :: len(parts)].any(-1).nonzero(as_tuple=True)
        draw = draw * len(parts) + place
        level = mean_level(model, part, moves[arm, draw])
        shift[arm, draw] = level.sub_(at_middle[arm]).add_(whole[arm])
    # doubles: the sum of singles and the composed shift are compared to many digits
    return shift.double().cpu().numpy()


def drawn_moves(
    model: SAMSVAE, D: Float[Tensor, "A T"], n_samples: int, seed: int
) -> Float[Tensor, "A S C"]:
    """Where each row of dosages moves the latent state, under each posterior draw."""
    moves = D.new_zeros(len(D), n_samples, model.n_shift)
    for t in D.any(0).nonzero()[:, 0].tolist():
        drawn = model.drawn_shift(t, n_samples, stream(model, seed, t + 1))
        moves += D[:, t, None, None] * drawn
    return moves


def stream(model: SAMSVAE, seed: int, which: int) -> torch.Generator:
    """Random numbers of their own, apart from those that all threads share."""
    start = int(np.random.SeedSequence([seed, which]).generate_state(1)[0])
    return torch.Generator(model.device).manual_seed(start)


def mean_level(
    model: SAMSVAE, z_basal: Float[Tensor, "R K"], shift: Float[Tensor, "*B C"]
) -> Float[Tensor, "*B G"]:
    """Level of the mean over reference cells, of their proportions or values, block by block."""
    size = max(1, STATE_VALUES_AT_ONCE // (len(z_basal) * model.config.n_genes))
    blocks = shift.reshape(-1, model.n_shift).split(size)
    means = [model.moved_means(z_basal, block).mean(-2) for block in blocks]
    return model.level(torch.cat(means)).view(*shift.shape[:-1], model.config.n_genes)


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
