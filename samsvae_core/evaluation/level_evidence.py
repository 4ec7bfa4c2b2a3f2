"""Evidence with one level of a covariate left out: does an effect hold in more than one batch?

Held-out cells share the batches of training cells. So evidence on all of them would also certify a
mechanism that is a batch, in which a perturbation has more cells than controls have.

Axes: V entries, N held-out cells of one perturbation.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

from samsvae_core.data.cells import CellData

FEWEST_CELLS = 5  # of a level that is counted for or against
SURE = 2.0  # standard errors from zero
COLUMNS = ("evidence_lowest_level", "lowest_level", "levels_for", "levels_against")


def levels_of(data: CellData) -> dict[str, np.ndarray]:
    """Return the level of each cell, N texts, by covariate; replicates where there is none."""
    if data.covariates is not None:
        return {name: data.covariates.labels(name) for name in data.covariates.levels}
    return {} if data.replicates is None else {"replicate": np.asarray(data.replicates)}


def by_level(gains: Float[np.ndarray, "V N"], levels: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return a row per entry with the columns COLUMNS, given what each cell's bound gains.

    `evidence_lowest_level` is the lowest mean over cells with one level left out, that of
    `lowest_level` ("batch b1"). `levels_for` counts the levels whose own cells speak for the entry,
    by more than SURE standard errors, and `levels_against` those against it. Levels with fewer than
    FEWEST_CELLS cells are not counted, and left out only with others. Without two levels the lowest
    is NaN.
    """
    n_entries, n_cells = gains.shape
    found = pd.DataFrame(
        {
            "evidence_lowest_level": np.full(n_entries, np.nan),
            "lowest_level": np.full(n_entries, "", dtype=object),
            "levels_for": np.zeros(n_entries, int),
            "levels_against": np.zeros(n_entries, int),
        }
    )
    total = gains.sum(1)
    for name, labels in levels.items():
        for level in sorted(set(labels.tolist()) - {""}):
            own = gains[:, labels == level]
            n = own.shape[1]
            if n < FEWEST_CELLS or n_cells - n < FEWEST_CELLS:
                continue
            rest = (total - own.sum(1)) / (n_cells - n)
            lower = ~(rest >= found["evidence_lowest_level"].to_numpy())
            found.loc[lower, "evidence_lowest_level"] = rest[lower]
            found.loc[lower, "lowest_level"] = f"{name} {level}"
            mean, error = own.mean(1), SURE * own.std(1, ddof=1) / n**0.5
            found["levels_for"] += mean > error
            found["levels_against"] += mean < -error
    return found


def held_by_one(masks: pd.DataFrame) -> pd.Series:
    """Return which rows of a table of masks have evidence that one level alone supports.

    Without it, nothing is left of the evidence. False where the table does not tell.
    """
    if "evidence_lowest_level" not in masks:
        return pd.Series(False, index=masks.index)
    return (masks["evidence"] > 0) & (masks["evidence_lowest_level"] <= 0)
