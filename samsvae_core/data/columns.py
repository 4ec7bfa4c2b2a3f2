"""Warnings about columns of obs besides the labels: dosages, second perturbations, uneven designs.

None of these columns is modelled unless an option asks for it, so users are told before training,
with the option where there is one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import numpy as np
import pandas as pd

from samsvae_core.data.design import ACCOUNTED, DOSE, NUMBER_OF
from samsvae_core.data.label_column import texts_of
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.data.unevenness import DesignColumn
from samsvae_core.system.messages import some

FEW_CONTROLS = 30  # cells; with fewer, every measured shift is doubtful
MOST_TOLD = 3  # warnings on uneven columns
SECOND = re.compile(
    r"(?:perturbation|perturb|condition|treatment|drug|compound|gene|target|guide)s?[-_ .]?2",
    re.IGNORECASE,
)


def suggested_dosage(obs: pd.DataFrame) -> str:
    """Return a column that is named and filled like dosages, "" if there is none."""
    for name in obs.columns:
        if DOSE.fullmatch(str(name)) and len(_doses(obs[name])) > 1:
            return str(name)
    return ""


def _doses(values: pd.Series) -> np.ndarray:
    """Return the distinct dosages above 0 in a column."""
    numbers = pd.to_numeric(pd.Series(texts_of(values)), errors="coerce").to_numpy(float)
    return np.unique(numbers[np.isfinite(numbers) & (numbers > 0)])


def column_notes(
    obs: pd.DataFrame, key: str | None, options: ReadOptions, n_perturbations: np.ndarray
) -> list[str]:
    """Return notes on columns of obs that describe perturbations but are not read.

    `key` is the column of labels, None if a table is read. `n_perturbations` is the number of
    perturbations read for each cell.
    """
    notes = []
    if options.dosage_key is None and (dose := suggested_dosage(obs)):
        numbers = _doses(obs[dose])
        divide = "; divide them by a usual one first" if numbers[-1] > 10 else ""
        notes.append(
            f"Column {dose!r} has {len(numbers):,} dosages from {numbers[0]:g} to {numbers[-1]:g},"
            " which are not read: all dosages of a perturbation count as one. --dosage-key"
            f" {dose} reads them{divide}."
        )
    second = [
        name
        for name in obs.columns
        if SECOND.fullmatch(str(name))
        and name not in (key, options.dosage_key, *(options.covariates or ()))
        and _n_labels(obs[name]) > 1
    ]
    for name in second:
        labels = pd.Series(texts_of(obs[name])).replace("", None).dropna().unique()
        notes.append(
            f"Column {str(name)!r} ({some(labels)}) names a second perturbation of each cell. It is"
            " not read: cells that differ in it count as the same. To model it, write both into"
            f" one column, joined by a plus; --covariate {shlex.quote(str(name))} accounts for it"
            " as a treatment that is the same for all perturbations."
        )
    for name in obs.columns if key is not None else ():  # a table counts controls as well
        if NUMBER_OF.fullmatch(str(name)) and pd.api.types.is_numeric_dtype(obs[name]):
            said, read = int(np.nanmax(obs[name])), int(n_perturbations.max(initial=0))
            if said > read:
                notes.append(
                    f"Column {str(name)!r} counts up to {said} perturbations a cell, and labels as"
                    f" read name {read} at most. Look at the delimiter (--delimiter)"
                    + (f" and at column {str(second[0])!r}." if second else ".")
                )
    return notes


def _n_labels(values: pd.Series) -> int:
    return len(set(texts_of(values)) - {""})


def warnings_of(conditions: np.ndarray, control: str, columns: Sequence[DesignColumn]) -> list[str]:
    """Return warnings about doubtful shifts: few controls, columns uneven between conditions.

    `columns` are those of `design.audit`.
    """
    n_controls = int((conditions == control).sum())
    found = []
    if n_controls < FEW_CONTROLS:
        found.append(
            f"There {'is' if n_controls == 1 else 'are'} only {n_controls:,} control cell"
            f"{'' if n_controls == 1 else 's'}. Every shift is measured against the controls, and a"
            f" fifth of them is held out: at least {FEW_CONTROLS} are needed for an answer that can"
            " be trusted."
        )
    return found + uneven_warnings(columns)


def uneven_warnings(columns: Sequence[DesignColumn]) -> list[str]:
    """Return warnings on columns that differ strongly from the controls in some condition.

    Columns that say the same share one. What is accounted for is left out.
    """
    accounted = {column.name for column in columns if column.state == ACCOUNTED}
    groups: dict[str, list[DesignColumn]] = {}
    for column in columns:
        kept = column.nested or column.name
        if column.strongly and kept not in accounted:
            groups.setdefault(kept, []).append(column)
    return [_uneven(kept, group) for kept, group in list(groups.items())[:MOST_TOLD]]


def _uneven(kept: str, group: Sequence[DesignColumn]) -> str:
    """Return the warning on columns of which `kept` can stand for all."""
    first, names = group[0], [column.name for column in group]
    away = first.unlike
    assert away is not None  # of every column that differs strongly
    several = len(names) > 1
    remedy = (
        f"; --covariate {shlex.quote(kept)} accounts for it."
        if first.compared
        else ", and no covariate can tell the two apart: no level has both perturbed and control"
        " cells."
    )
    return (
        f"Column{'s' if several else ''} {' and '.join(map(repr, names[:3]))}"
        f" differ{'' if several else 's'} between perturbations (Cram\u00e9r's V {first.v:.2f}):"
        f" {away.share:.0%} of the cells of {away.condition} are {away.level!r}, and"
        f" {away.of_controls:.0%} of the control cells. Its influence would be taken for an effect"
        f" of the perturbation{remedy}"
    )
