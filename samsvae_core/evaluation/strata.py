"""Which cells are compared: those of a condition with control cells of the same strata.

A stratum is a combination of levels of all covariates. Of condition t, stratum s weighs

    w_s = 1 / (1 / n_ts + 1 / n_cs),

divided by the sum over strata, with n_ts cells of the condition and n_cs control cells in it. These
weights give a difference that all strata share the least variance. Cells in strata without control
cells are not used.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped

from samsvae_core.data.cells import CellData

FEWEST_CELLS = 3  # conditions compared by fewer cells, on either side, get no average effect


class Matching(NamedTuple):
    """The weight of each stratum in each condition but control, T conditions x S strata."""

    conditions: Shaped[np.ndarray, " T"]  # sorted
    strata: Int[np.ndarray, " S"]  # sorted
    cells: Int[np.ndarray, "T S"]
    controls: Int[np.ndarray, " S"]
    weight: Float[np.ndarray, "T S"]  # sums to 1 in each row, or to 0 where no control shares one

    @property
    def used(self) -> Int[np.ndarray, " T"]:
        """The number of cells compared with control."""
        return np.where(self.weight > 0, self.cells, 0).sum(axis=1)

    def enough(self, fewest: int = FEWEST_CELLS) -> Bool[np.ndarray, " T"]:
        """Return which conditions are compared by at least so many cells, and as many controls."""
        controls = np.where(self.weight > 0, self.controls, 0).sum(axis=1)
        return (self.used >= fewest) & (controls >= fewest)


def matching(
    conditions: Shaped[np.ndarray, " N"], strata: Int[np.ndarray, " N"], control: str
) -> Matching:
    """Return the weights of strata for cells of these conditions and strata."""
    code, names = pd.factorize(conditions, sort=True)
    place, numbers = pd.factorize(strata, sort=True)
    shape = len(names), len(numbers)
    n = np.bincount(code * shape[1] + place, minlength=shape[0] * shape[1]).reshape(shape)
    other = names != control
    cells, controls = n[other], n[~other].sum(axis=0)
    both = cells + controls
    weight = np.divide(cells * controls, both, out=np.zeros(both.shape), where=both > 0)
    total = weight.sum(axis=1, keepdims=True)
    weight = np.divide(weight, total, out=weight, where=total > 0)
    return Matching(names[other], numbers, cells, controls, weight)


def by_stratum(
    strata: Int[np.ndarray, " N"], rows: Int[np.ndarray, " n"]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each stratum of the cells at `rows`, with its part of them."""
    code, numbers = pd.factorize(strata[rows], sort=True)
    ends = np.cumsum(np.bincount(code, minlength=len(numbers)))
    parts = np.split(rows[np.argsort(code, kind="stable")], ends[:-1]) if len(rows) else []
    for number, part in zip(numbers, parts, strict=True):
        yield int(number), part


def strata_metrics(data: CellData, cells: CellData) -> dict[str, Any]:
    """Return what metrics tell of strata: empty without covariates.

    They are the covariates, the number of strata of `data`, and the conditions that have enough of
    the scored `cells`, but too few in strata with control cells.
    """
    if data.covariates is None:
        return {}
    match = matching(cells.conditions, cells.strata, cells.control)
    left_out = ~match.enough() & (match.cells.sum(axis=1) >= FEWEST_CELLS)
    return {
        "strata": {
            "covariates": list(data.covariates.levels),
            "n_strata": len(np.unique(data.strata)),
            "left_out": [str(name) for name in match.conditions[left_out]],
        }
    }
