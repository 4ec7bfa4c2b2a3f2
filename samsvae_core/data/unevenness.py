"""How unevenly the levels of a column are spread over the perturbations.

Axes: N cells, K conditions with the controls first, L levels of a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy.special import chdtrc

from samsvae_core.data.covariate_columns import FEW_CELLS

LEAST_V, UNEVEN = 0.1, 0.25  # of V, and of the difference of one condition from the controls
UNLIKELY = 1e-3  # the largest p that is more than chance
MOST_ROWS = 60  # conditions of which the cells are kept, those most unlike the controls


class Unlike(NamedTuple):
    """How a condition differs from the controls: in the level that it has too much of."""

    condition: str
    level: str
    share: float  # of the condition's cells
    of_controls: float  # of the control cells


@dataclass(frozen=True, eq=False)
class DesignColumn:
    """A column of obs that may be a covariate, and how its levels are spread over conditions.

    `conditions` are the controls and those with at least FEW_CELLS cells, the most unlike the
    controls first. `state` is ACCOUNTED, PROPOSED or "", and `why` says why; `nested` is a column
    in that state that tells the same, more or less of it.
    """

    name: str
    levels: list[str]  # sorted; "" for cells without a value
    v: float  # Cramér's V, corrected for chance: 0 if even, 1 if one determines the other
    uneven: bool  # beyond chance, over all conditions or in one
    strongly: bool  # `unlike` differs in UNEVEN of its cells or more, beyond chance
    unlike: Unlike | None  # None where no condition has FEW_CELLS cells
    alone: list[str]  # conditions without a control cell in any of their levels
    compared: float  # share of the perturbed cells that have control cells in their level
    conditions: list[str]  # (K,)
    cells: list[list[int]]  # (K, L)
    state: str = ""
    why: str = ""
    nested: str = ""


@dataclass(frozen=True, eq=False)
class Cells:
    """The condition of each cell, as the audit counts them."""

    names: np.ndarray  # of conditions
    codes: Int64[np.ndarray, " N"]
    rows: Int64[np.ndarray, " K"]  # the controls and conditions with at least FEW_CELLS cells
    is_control: np.ndarray  # (N,)

    @classmethod
    def of(cls, conditions: np.ndarray, control: str) -> Cells:
        codes, names = pd.factorize(conditions.astype(object), sort=True)
        large = np.flatnonzero((np.bincount(codes) >= FEW_CELLS) & (names != control))
        rows = np.concatenate([np.flatnonzero(names == control), large])
        return cls(names, codes.astype(np.int64), rows, conditions == control)


def measured(
    name: str, code: Int64[np.ndarray, " N"], levels: list[str], cells: Cells
) -> DesignColumn:
    """Return a column with its measures, not judged yet."""
    place = np.full(len(cells.names), -1)
    place[cells.rows] = np.arange(len(cells.rows))
    row = place[cells.codes]
    flat = row * len(levels) + code
    size = len(cells.rows), len(levels)
    table = np.bincount(flat[row >= 0], minlength=size[0] * size[1]).reshape(size)
    with_control = table[0] > 0
    shared = with_control[code]
    there = np.bincount(cells.codes, weights=shared, minlength=len(cells.names)) > 0
    perturbed = ~cells.is_control
    v, p = association(table)
    order, p_worst, away = _from_controls(table)
    chosen = [0, *(1 + order[: MOST_ROWS - 1])]
    strongly = bool(len(order) and away[0] >= UNEVEN and p_worst <= UNLIKELY)
    return DesignColumn(
        name=name,
        levels=levels,
        v=v,
        uneven=strongly or (v >= LEAST_V and p <= UNLIKELY),
        strongly=strongly,
        unlike=_unlike(table, order, levels, cells),
        alone=cells.names[~there].tolist(),
        compared=float(shared[perturbed].mean()) if perturbed.any() else 1.0,
        conditions=cells.names[cells.rows[chosen]].tolist(),
        cells=table[chosen].tolist(),
    )


def association(table: Int64[np.ndarray, "K L"]) -> tuple[float, float]:
    """Return Cramér's V of a table of counts, corrected for chance, and the p of its chi-squared.

    Bergsma 2013: phi^2 minus its expectation under independence, over what it could be at most.
    """
    table = table[table.sum(axis=1) > 0][:, table.sum(axis=0) > 0].astype(float)
    n, (k, m) = table.sum(), table.shape
    if min(k, m) < 2:
        return 0.0, 1.0
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    chi2 = float(((table - expected) ** 2 / expected).sum())
    free = (k - 1) * (m - 1)
    phi2 = max(0.0, chi2 / n - free / (n - 1))
    most = min(k - (k - 1) ** 2 / (n - 1), m - (m - 1) ** 2 / (n - 1)) - 1
    v = min(1.0, float(np.sqrt(phi2 / most))) if most > 0 else 0.0
    return v, float(chdtrc(free, chi2))


def _from_controls(
    table: Int64[np.ndarray, "K L"],
) -> tuple[Int64[np.ndarray, " k"], float, Float64[np.ndarray, " k"]]:
    """Return the order of the conditions below the controls by how unlike them they are.

    Beside it the p of the first, corrected for the number of conditions (Bonferroni), and the
    differences in that order: the share of cells that would have to be of another level. Those
    beyond chance come first.
    """
    controls, rest = table[0].astype(float), table[1:].astype(float)
    n, n_controls = rest.sum(axis=1, keepdims=True), controls.sum()
    away = np.abs(rest / n - controls / n_controls).sum(axis=1) / 2
    both = rest + controls
    with np.errstate(invalid="ignore"):  # levels that neither has
        parts = (rest * np.sqrt(n_controls / n) - controls * np.sqrt(n / n_controls)) ** 2 / both
    p = chdtrc(np.maximum((both > 0).sum(axis=1) - 1, 1), np.nansum(parts, axis=1))
    p = np.where((both > 0).sum(axis=1) > 1, p, 1.0) * len(rest)
    order = np.lexsort((-away, p > UNLIKELY))
    return order, float(p[order[0]]) if len(order) else 1.0, away[order]


def _unlike(
    table: Int64[np.ndarray, "K L"], order: np.ndarray, levels: list[str], cells: Cells
) -> Unlike | None:
    """Return the first condition in the order, with the level that it has too much of."""
    if not len(order):
        return None
    row = 1 + order[0]
    shares = table[[0, row]] / table[[0, row]].sum(axis=1, keepdims=True)
    level = int((shares[1] - shares[0]).argmax())
    name = str(cells.names[cells.rows[row]])
    return Unlike(name, levels[level], float(shares[1, level]), float(shares[0, level]))
