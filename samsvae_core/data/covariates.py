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

from samsvae_core.system.messages import some

UNKNOWN = -1  # highest code of levels that a model has not seen: the mean over levels is used


@dataclass(frozen=True, eq=False)
class Covariates:
    """The level that each cell has of each covariate."""

    levels: Mapping[str, tuple[str, ...]]  # names of the levels, sorted, by covariate
    codes: Int32[np.ndarray, "N C"]  # the place of the cell's level in `levels`; below 0: unknown

    def subset(self, index: np.ndarray) -> Covariates:
        """Return the cells at `index`, with all levels."""
        return Covariates(self.levels, self.codes[index])

    def labels(self, name: str) -> np.ndarray:
        """Return the level of one covariate by name, N texts, "" where it is unknown."""
        column = list(self.levels).index(name)
        code = np.maximum(self.codes[:, column], UNKNOWN)
        return np.array([*self.levels[name], ""], dtype=object)[code].astype(str)

    def strata(self) -> Int64[np.ndarray, " N"]:
        """Return a number per cell, the same for cells that agree in every covariate."""
        found = np.unique(self.codes, axis=0, return_inverse=True)[1]
        return np.asarray(found, dtype=np.int64).ravel()

    def aligned(self, levels: Mapping[str, Sequence[str]]) -> Covariates:
        """Return the same cells with the covariates and levels of a model, in its order.

        Levels that the model has not seen become UNKNOWN, UNKNOWN - 1 and so on, so that they stay
        apart as strata. Every covariate of the model must be among these.
        """
        columns = []
        for name, known in levels.items():
            place = pd.Index(known).get_indexer(pd.Index(self.levels[name]))
            unseen = place < 0
            place[unseen] = UNKNOWN - np.arange(unseen.sum())
            columns.append(place[self.codes[:, list(self.levels).index(name)]])
        codes = np.stack(columns, axis=1).astype(np.int32)
        return Covariates({name: tuple(known) for name, known in levels.items()}, codes)

    def unseen(self, levels: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Return the levels of these cells that are not among `levels`, by covariate."""
        found = {name: sorted(set(self.labels(name)) - set(levels[name]) - {""}) for name in levels}
        return {name: names for name, names in found.items() if names}


def unseen_in_words(covariates: Covariates | None, levels: Mapping[str, Sequence[str]]) -> str:
    """Return a sentence on levels that a model has not seen, "" if these cells have none."""
    there = covariates is not None and set(levels) <= set(covariates.levels)
    found = covariates.unseen(levels) if covariates and there else {}
    told = "; ".join(f"{name}: {some(names)}" for name, names in found.items())
    return (
        f"Levels that the model has not seen ({told}) are taken as the mean level." if told else ""
    )


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
