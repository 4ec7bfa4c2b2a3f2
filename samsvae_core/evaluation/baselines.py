"""Average effects of cells, predictions without a model, and the ceiling set by the data.

The paper's average effect (section 5) is the mean over cells of log2(1 + 1e4 x / total) minus that
of control; for values that are not counts it is the difference of means. This is another scale than
the shifts of `compose`, and is used only for held-out metrics, so that figures compare with the
paper's. With covariates, both means are the weighted ones over strata (`evaluation.strata`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int, Shaped

from samsvae_core.data.cells import CellData, DataError
from samsvae_core.data.disk_csr import on_disk, row_blocks
from samsvae_core.evaluation.level_errors import cell_variance
from samsvae_core.evaluation.metrics import agreement, figures, spread
from samsvae_core.evaluation.strata import FEWEST_CELLS, Matching, matching
from samsvae_core.models.distributions import PER_TEN_THOUSAND
from samsvae_core.models.shrinkage import WIDTHS, shrink

N_HALVINGS = 20
PENALTIES = np.logspace(-1, 5, 13)  # ridge penalties, in cells that show no change
NO_VALIDATION = 10.0  # the penalty if no validation cells can choose it


class Levels(NamedTuple):
    """Cells on the scale of average effects; cells without counts are left out."""

    level: sp.csr_matrix  # (N, G)
    conditions: Shaped[np.ndarray, " N"]
    strata: Int[np.ndarray, " N"]

    def matching(self, control: str, rows: np.ndarray | slice = slice(None)) -> Matching:
        """Return the weights of strata for the cells at `rows`."""
        return matching(self.conditions[rows], self.strata[rows], control)


def cell_levels(data: CellData) -> Levels:
    if not data.is_counts:
        return Levels(data.counts, data.conditions, data.strata)
    total = data.library
    if not data.has_size_factor:
        total = np.asarray(data.counts.sum(axis=1)).ravel()
    kept = total > 0
    rows, scale = np.flatnonzero(kept), PER_TEN_THOUSAND / total[kept]
    groups = data.conditions[kept], data.strata[kept]

    def levels(block: slice) -> sp.csr_matrix:
        values = sp.csr_matrix(sp.diags_array(scale[block]) @ data.counts[rows[block]])
        values.data = np.log2(1 + values.data)
        return values

    if data.scratch is None:
        return Levels(levels(slice(None)), *groups)
    starts = np.concatenate([[0], np.cumsum(np.diff(data.counts.indptr)[rows], dtype=np.int64)])
    blocks = map(levels, row_blocks(starts))
    table = on_disk(blocks, data.counts.shape[1], data.scratch, data.counts.nnz)
    return Levels(table, *groups)


def mean_effects(
    levels: Levels, control: str, genes: np.ndarray, rows: np.ndarray | None = None
) -> pd.DataFrame:
    """Return the mean of the cells, or those at `rows`, minus that of control, by condition.

    Both are means over strata with the same weights. Conditions with fewer than FEWEST_CELLS cells
    in use are left out; without enough controls there are no rows.
    """
    n_cells = len(levels.conditions)
    rows = np.arange(n_cells) if rows is None else rows
    match = levels.matching(control, rows)
    enough = match.enough()
    names, weight = match.conditions[enough], match.weight[enough]
    if not len(names):
        return pd.DataFrame(index=pd.Index([], dtype=str), columns=genes, dtype=float)
    # a row for each condition, then one for control in each stratum
    code = pd.Index(names).get_indexer(levels.conditions[rows])
    place = np.searchsorted(match.strata, levels.strata[rows])
    is_control = levels.conditions[rows] == control
    each = weight / np.maximum(match.cells[enough], 1)
    share = np.where(is_control, 1 / np.maximum(match.controls, 1)[place], 0.0)
    share[code >= 0] = each[code[code >= 0], place[code >= 0]]
    row = np.where(is_control, len(names) + place, code)
    used = share > 0
    shape = len(names) + len(match.strata), n_cells
    by_cell = sp.csr_matrix((share[used], (row[used], rows[used])), shape=shape).tocsc()
    sums = np.zeros((shape[0], levels.level.shape[1]))
    for block in row_blocks(levels.level.indptr):  # the product as a whole would copy the levels
        sums += (by_cell[:, block].tocsr() @ levels.level[block]).toarray()
    effects = sums[: len(names)] - weight @ sums[len(names) :]
    return pd.DataFrame(effects, index=pd.Index(names, dtype=str), columns=genes)


def observed_effects(
    data: CellData, cells: str = "held-out", levels: Levels | None = None
) -> pd.DataFrame:
    """Return the average effect of every condition with enough cells, conditions x genes.

    `cells` names them in messages; `levels` are theirs, if already known. Raises DataError without
    controls or conditions.
    """
    levels = levels or cell_levels(data)
    if (levels.conditions == data.control).sum() < FEWEST_CELLS:
        raise DataError(
            f"Fewer than {FEWEST_CELLS} control cells ({data.control}) are among the {cells} "
            "cells; average effects need them. Use a split that has controls in each part."
        )
    effects = mean_effects(levels, data.control, data.genes)
    if effects.empty:
        shared = "" if data.covariates is None else " in strata with control cells"
        raise DataError(
            f"No condition has {FEWEST_CELLS} cells or more{shared} among the {cells} cells; "
            "average effects need some. Use a split with more of them."
        )
    return effects


def dosage_table(data: CellData, conditions: pd.Index) -> pd.DataFrame:
    """Return the dosages of conditions (of their first cell), conditions x perturbations."""
    names, first = np.unique(data.conditions, return_index=True)
    rows = first[pd.Index(names).get_indexer(conditions)]
    return pd.DataFrame(data.dosages[rows].toarray(), index=conditions, columns=data.perturbations)


# Predictions without a model


def baselines(
    observed: pd.DataFrame, train: CellData, validation: CellData, dosages: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """Return the predictions that a model should at least beat; NaN rows where one says nothing.

    "training mean" is the condition's own effect in training, "additive" the sum of the effects of
    its parts, each measured alone in training, and "ridge" a linear model of the dosages. "shrunken
    mean" and "shrunken additive" are the same of effects shrunk as their noise suggests. `dosages`
    are those of the observed conditions.
    """
    levels = cell_levels(train)
    trained = observed_effects(train, "training", levels)
    needed = {part for c in observed.index for part in (c, *singles(c))}
    shrunk = shrunken(trained[trained.index.isin(needed)], levels, train.control)
    found = {
        "no change": observed * 0,
        "mean over perturbations": observed * 0 + trained.mean(axis=0),
        "training mean": trained.reindex(observed.index),
        "shrunken mean": shrunk.reindex(observed.index),
    }
    if any(map(is_combination, observed.index)):  # for singles it equals the training mean
        found["additive"] = additive(trained, observed.index)
        found["shrunken additive"] = additive(shrunk, observed.index)
    return {**found, "ridge": ridge(trained, train, validation, dosages)}


def shrunken(trained: pd.DataFrame, levels: Levels, control: str) -> pd.DataFrame:
    """Return effects shrunk by empirical Bayes, each condition under a prior of its own.

    The standard error is that of a difference of means, with a variance per gene that all
    conditions and strata share. Effects without any error stay. The unit does not matter: the
    largest effect is put at the widest Normal of the prior.
    """
    ones = np.ones(len(levels.conditions))
    variance = cell_variance(
        levels.level, ones, levels.conditions, is_counts=False, strata=levels.strata
    )
    per_cell = mean_variances(levels.matching(control)).loc[trained.index].to_numpy()
    se = np.sqrt(np.outer(per_cell, variance.spread))
    unit = float(np.abs(trained.to_numpy()).max(initial=0)) / float(WIDTHS[-1]) or 1.0
    estimate = torch.from_numpy(trained.to_numpy() / unit)
    mean = shrink(estimate, torch.from_numpy(se / unit)).mean.numpy() * unit
    return trained.mask(se > 0, pd.DataFrame(mean, trained.index, trained.columns))


def mean_variances(match: Matching) -> pd.Series:
    """Return the variance of each condition's difference from control, in that of one cell.

    It is the sum over strata of w_s^2 (1 / n_ts + 1 / n_cs).
    """
    both = 1 / np.maximum(match.cells, 1) + 1 / np.maximum(match.controls, 1)
    return pd.Series((match.weight**2 * both).sum(axis=1), index=match.conditions)


def additive(trained: pd.DataFrame, conditions: pd.Index) -> pd.DataFrame:
    """Return sums of the effects of the parts; NaN if one was not measured alone."""
    rows = [trained.reindex(singles(c)).sum(axis=0, skipna=False) for c in conditions]
    return pd.DataFrame(rows, index=conditions, columns=trained.columns)


def singles(condition: str) -> list[str]:
    """Return the conditions that a combination is made of: "A" and "B:0.5" for "A+B:0.5"."""
    return condition.split("+")


def is_combination(condition: str) -> bool:
    return len(singles(condition)) > 1 and all(singles(condition))


def ridge(
    trained: pd.DataFrame, train: CellData, validation: CellData, dosages: pd.DataFrame
) -> pd.DataFrame:
    """Return effects as a linear function of dosages, without an intercept, weighted by cells used.

    The penalty is the one that predicts the effects of validation cells best, weighted by cells.
    NaN for conditions with a perturbation that no trained condition has.
    """
    from sklearn.linear_model import Ridge

    D = dosage_table(train, trained.index)
    weight = cell_numbers(train, trained.index)
    held_out = mean_effects(cell_levels(validation), validation.control, validation.genes)
    D_held_out = dosage_table(validation, held_out.index)
    known = (D_held_out.loc[:, ~(D != 0).any()] == 0).all(axis=1)
    held_out, D_held_out = held_out[known], D_held_out[known]
    held_out_weight = cell_numbers(validation, held_out.index)

    def fitted(penalty: float) -> Any:
        model = Ridge(alpha=penalty, fit_intercept=False)
        return model.fit(D.to_numpy(), trained.to_numpy(), sample_weight=weight)

    def error(penalty: float) -> float:
        residual = held_out.to_numpy() - D_held_out.to_numpy() @ fitted(penalty).coef_.T
        return float((held_out_weight[:, None] * residual**2).sum())

    penalty = min(PENALTIES, key=error) if len(held_out) else NO_VALIDATION
    values = dosages.to_numpy() @ fitted(penalty).coef_.T
    table = pd.DataFrame(values, index=dosages.index, columns=trained.columns)
    table[(dosages.loc[:, ~(D != 0).any()] != 0).any(axis=1)] = np.nan
    return table


def cell_numbers(data: CellData, conditions: pd.Index) -> Float[np.ndarray, " C"]:
    """Return the cells of each condition that are compared with control."""
    match = matching(data.conditions, data.strata, data.control)
    used = pd.Series(match.used, index=match.conditions)
    return used.reindex(conditions, fill_value=0).to_numpy(dtype=float)


# The ceiling of the data


def halvings(data: CellData, seed: int) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Return the effects in both halves of the cells, for N_HALVINGS random halvings.

    Cells are halved within conditions that have enough for two halves, and within strata. Empty if
    there are none, or no controls.
    """
    levels = cell_levels(data)
    match = levels.matching(data.control)
    names = match.conditions[match.enough(2 * FEWEST_CELLS)]
    enough = np.flatnonzero(np.isin(levels.conditions, [data.control, *names]))
    if not len(names):
        return []
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(N_HALVINGS):
        rows = enough[rng.permutation(len(enough))]
        side = sides(levels.conditions[rows], levels.strata[rows])
        first, second = (
            mean_effects(levels, data.control, data.genes, rows[side == s]) for s in (0, 1)
        )
        found.append((first, second))
    # a half may lack the only control cell of a stratum
    common = [name for name in names if all(name in half.index for pair in found for half in pair)]
    return [(one.loc[common], other.loc[common]) for one, other in found] if common else []


def sides(
    conditions: Shaped[np.ndarray, " N"], strata: Int[np.ndarray, " N"]
) -> Int[np.ndarray, " N"]:
    """Return the half of each cell, 0 or 1: in turn within conditions, stratum after stratum.

    So halves differ by one cell at most in each condition and in each of its strata.
    """
    cells = pd.DataFrame({"condition": conditions, "stratum": strata})
    group = cells.groupby(["condition", "stratum"], sort=False).ngroup()  # by first appearance
    in_turn = cells.loc[group.sort_values(kind="stable").index].groupby("condition").cumcount()
    return in_turn.sort_index().to_numpy() % 2


def ceiling(halves: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict[str, Any]:
    """Return what a second sample of the same size would score, from the agreement of halves.

    Correlations and cosines of halves are averaged and corrected for the doubled length (Spearman
    and Brown), r to 2 r / (1 + r). R2 of equally noisy samples is 2 r - 1. `pearson_limit`, the
    root of the corrected r, is the most that a prediction without noise could reach. The top 20 are
    the genes with the largest effect in one half, so that figure is somewhat too low. There is no
    rank, which would be that of half the cells.
    """
    found = [agreement(a, b) for a, b in halves]
    names = found[0]["per_perturbation"] if found else []
    each = {c: doubled([f["per_perturbation"][c] for f in found]) for c in names}
    row = ceiling_figures(halves)
    r = row["pearson"]
    return {
        **row,
        "pearson_limit": float(np.sqrt(r)) if r is not None and r >= 0 else None,
        "mc_error": {
            key: halving_error([f[key] for f in found])
            for key in ("pearson", "pearson_top20", "cosine")
        },
        "per_perturbation": each,
        **spread(list(each.values())),
        "rank": None,
        "n_halvings": len(halves),
    }


def ceiling_figures(halves: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict[str, float | None]:
    """Return the pooled figures of `ceiling`."""
    found = [figures(a, b) for a, b in halves]
    r = doubled([f["pearson"] for f in found])
    return {
        "pearson": r,
        "pearson_top20": doubled([f["pearson_top20"] for f in found]),
        "r2": None if r is None else 2 * r - 1,
        "cosine": doubled([f["cosine"] for f in found]),
    }


def doubled(values: list[float | None]) -> float | None:
    """Return the mean agreement of halves, corrected to that of wholes; None if one has none."""
    if not values or None in values:
        return None
    r = float(np.mean(np.array(values, dtype=float)))
    return 2 * r / (1 + r) if r > -1 else None


def halving_error(values: list[float | None]) -> float | None:
    """Return the Monte Carlo error of `doubled` over halvings, by its derivative 2 / (1 + r)^2."""
    if len(values) < 2 or None in values:
        return None
    r = np.array(values, dtype=float)
    return float(2 / (1 + r.mean()) ** 2 * r.std(ddof=1) / np.sqrt(len(r)))
