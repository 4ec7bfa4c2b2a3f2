"""Covariates: what is known of each cell beside its perturbations, such as batch or donor.

A model has an offset for each of their levels (`models.level_offsets`), and observed effects are
compared within strata, the cells that agree in every covariate.

Axes: N cells, C covariates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int32, Int64

UNKNOWN = -1  # the code of a level that a model has not seen: the mean over levels is used


@dataclass(frozen=True, eq=False)
class Covariates:
    """The level that each cell has of each covariate."""

    levels: Mapping[str, tuple[str, ...]]  # names of the levels, sorted, by covariate
    codes: Int32[np.ndarray, "N C"]  # the place of the cell's level in `levels`, or UNKNOWN

    def subset(self, index: np.ndarray) -> Covariates:
        """Return the cells at `index`, with all levels."""
        return Covariates(self.levels, self.codes[index])

    def labels(self, name: str) -> np.ndarray:
        """Return the level of one covariate by name, N texts, "" where it is unknown."""
        column = list(self.levels).index(name)
        return np.array([*self.levels[name], ""], dtype=object)[self.codes[:, column]].astype(str)

    def strata(self) -> Int64[np.ndarray, " N"]:
        """Return a number per cell, the same for cells that agree in every covariate."""
        found = np.unique(self.codes, axis=0, return_inverse=True)[1]
        return np.asarray(found, dtype=np.int64).ravel()

    def aligned(self, levels: Mapping[str, Sequence[str]]) -> Covariates:
        """Return the same cells with the covariates and levels of a model, in its order.

        A level that the model has not seen becomes UNKNOWN. Every covariate of the model must be
        among these.
        """
        columns = [pd.Index(levels[name]).get_indexer(self.labels(name)) for name in levels]
        codes = np.stack(columns, axis=1).astype(np.int32)
        return Covariates({name: tuple(known) for name, known in levels.items()}, codes)

    def unseen(self, levels: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return the levels of these cells that are not among `levels`, by covariate."""
        found = {name: sorted(set(self.labels(name)) - set(levels[name]) - {""}) for name in levels}
        return {name: names for name, names in found.items() if names}


def covariates_in_words(levels: Mapping[str, Sequence[str]]) -> str:
    """Return covariates with their numbers of levels: "batch (3 levels) and donor (2 levels)"."""
    said = [
        f"{name} ({len(found):,} level{'' if len(found) == 1 else 's'})"
        for name, found in levels.items()
    ]
    return " and ".join([*([", ".join(said[:-1])] if said[1:] else []), *said[-1:]])


def accounted_in_words(levels: Mapping[str, Sequence[str]]) -> str:
    """Return a sentence on what a model accounts for, and what its shifts are of."""
    several = len(levels) > 1
    return (
        f"Accounts for {covariates_in_words(levels)}: shifts are those of the mean cell over"
        f" {'their' if several else 'its'} levels."
    )
