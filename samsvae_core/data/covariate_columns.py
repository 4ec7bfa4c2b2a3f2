"""Covariates as the columns of a file have them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.data.cells import DataError
from samsvae_core.data.covariates import Covariates
from samsvae_core.data.label_column import check_column, texts_of
from samsvae_core.system.messages import some

MOST_LEVELS = 200  # of a covariate; more tell samples or cells apart
FEW_CELLS = 20  # of a level; with fewer it is hardly known


class CovariatesRead(NamedTuple):
    """Covariates as a file has them, with what is said of them."""

    covariates: Covariates | None  # None where none is named
    notes: list[str]
    warnings: list[str]


def read_covariates(
    obs: pd.DataFrame,
    keys: Iterable[str],
    conditions: np.ndarray,
    control: str,
    perturbation_key: str | None,
) -> CovariatesRead:
    """Return the covariates in these columns of obs, one row per cell.

    Raises DataError for a column that cannot be a covariate, or cannot be told from the
    perturbations.
    """
    levels: dict[str, tuple[str, ...]] = {}
    codes: list[np.ndarray] = []
    notes, warnings = [], []
    for key in dict.fromkeys(keys):
        names, code = levels_of(obs, key, perturbation_key)
        if len(names) == 1:
            notes.append(f"Covariate {key!r} is {names[0]!r} in every cell, and changes nothing.")
        elif same := next((o for o, c in zip(levels, codes, strict=True) if alike(c, code)), ""):
            notes.append(f"Covariates {same!r} and {key!r} part cells alike; one would do.")
        sizes = np.bincount(code)
        if few := [f"{names[i]} ({sizes[i]})" for i in np.flatnonzero(sizes < FEW_CELLS)]:
            warnings.append(
                f"Of covariate {key!r}, {len(few):,} level{'s have' if len(few) > 1 else ' has'}"
                f" fewer than {FEW_CELLS} cells: {some(few)}. What such a level changes is hardly"
                " known. Leave these cells out, or join levels."
            )
        levels[key] = names
        codes.append(code)
    if not levels:
        return CovariatesRead(None, notes, warnings)
    found = Covariates(levels, np.stack(codes, axis=1).astype(np.int32))
    alone = without_control(found.strata(), conditions, control)
    perturbed = len(set(conditions) - {control})
    told = " and ".join(map(repr, levels))
    if perturbed and len(alone) == perturbed:
        raise DataError(
            f"{told} cannot be told from the perturbations: no perturbed cell shares its level"
            f"{'s' if len(levels) > 1 else ''} with a control cell. Leave "
            f"{'them' if len(levels) > 1 else 'it'} out (--covariate), or add controls to each"
            " level."
        )
    if alone:
        warnings.append(
            f"{len(alone):,} condition{'s share' if len(alone) > 1 else ' shares'} no level of"
            f" {told} with a control cell: {some(alone)}. What is theirs cannot be told from what"
            " is the level's, so they are left out where effects are observed."
        )
    return CovariatesRead(found, notes, warnings)


def levels_of(
    obs: pd.DataFrame, key: str, perturbation_key: str | None
) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the sorted names of a column's levels, and the number of each cell's level.

    Raises DataError for a column that cannot be a covariate.
    """
    check_column(obs, key, "--covariate")
    given = f"Column {key!r}, given as --covariate,"
    if key == perturbation_key:
        raise DataError(f"{given} names the perturbations. Name batches, donors or the like.")
    if pd.api.types.is_float_dtype(obs[key]):
        numbers = obs[key].dropna().to_numpy(float)
        if (numbers != np.rint(numbers)).any():
            raise DataError(
                f"{given} holds numbers such as {numbers[numbers != np.rint(numbers)][0]:g};"
                " expected labels of levels. Cut it into a few levels first."
            )
    texts = texts_of(obs[key])
    if n := int((texts == "").sum()):
        raise DataError(
            f"{given} has no value in {n:,} cell{'s' if n > 1 else ''} (such as"
            f" {some(obs.index[texts == ''], 2)}); expected a level of every cell. Name one for"
            " them, or leave these cells out."
        )
    code, names = pd.factorize(texts, sort=True)
    if len(names) > MOST_LEVELS:
        raise DataError(
            f"{given} has {len(names):,} levels in {len(obs):,} cells; expected at most"
            f" {MOST_LEVELS}, each with many cells. Name a column of batches, donors or the like."
        )
    return tuple(map(str, names)), code


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Return whether two columns of codes part the cells in the same way."""
    pairs = len(np.unique(np.stack([a, b]), axis=1).T)
    return pairs == len(np.unique(a)) == len(np.unique(b))


def without_control(strata: np.ndarray, conditions: np.ndarray, control: str) -> list[str]:
    """Return the conditions of which no cell is in a stratum with control cells, sorted."""
    is_control = conditions == control
    shared = np.isin(strata, np.unique(strata[is_control]))
    return sorted(set(conditions.tolist()) - set(conditions[shared].tolist()) - {control})
