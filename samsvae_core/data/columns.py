"""Warnings about columns of obs besides the labels: dosages, second perturbations, uneven designs.

None of these columns is modelled unless an option asks for it, so users are told before training,
with the option where there is one.
"""

from __future__ import annotations

import re
import shlex

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency

from samsvae_core.data.controls import is_control
from samsvae_core.data.label_column import texts_of
from samsvae_core.system.messages import some

FEW_CONTROLS = 30  # cells; with fewer, every measured shift is doubtful
FEW_CELLS = 20  # cells of a condition; with fewer, shares by label are not compared
MOST_LABELS = 50  # most labels of a column that may be a covariate
UNEVEN, UNLIKELY = 0.25, 1e-3  # difference of shares from the controls, and its p
DOSE = re.compile(
    r"(?:drug|compound|perturbation|treatment)?[-_ .]?(?:dose|dosage|conc(?:entration)?)"
    r"(?:[-_ .]?(?:val(?:ue)?|level|[nu\u00b5m]m|1))?",
    re.IGNORECASE,
)
SECOND = re.compile(
    r"(?:perturbation|perturb|condition|treatment|drug|compound|gene|target|guide)s?[-_ .]?2",
    re.IGNORECASE,
)
NUMBER_OF = re.compile(
    r"(?:n|num|number|count)[-_ .]?(?:of[-_ .]?)?(?:pert\w*|guides?|s?grnas?|targets?)",
    re.IGNORECASE,
)
# Columns made from the counts, which are no part of the design.
MADE_LATER = re.compile(
    r"(?:.*(?:cluster|leiden|louvain|mixscape|_class|phase)|n[-_]?(?:count|feature|gene|umi)).*",
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
    obs: pd.DataFrame, key: str | None, dosage_key: str | None, n_perturbations: np.ndarray
) -> list[str]:
    """Return notes on columns of obs that describe perturbations but are not read.

    `key` is the column of labels, None if a table is read; `dosage_key` is that of dosages.
    `n_perturbations` is the number of perturbations read for each cell.
    """
    notes = []
    if dosage_key is None and (dose := suggested_dosage(obs)):
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
        and name not in (key, dosage_key)
        and _n_labels(obs[name]) > 1
    ]
    for name in second:
        labels = pd.Series(texts_of(obs[name])).replace("", None).dropna().unique()
        notes.append(
            f"Column {str(name)!r} ({some(labels)}) names a second perturbation of each cell. It is"
            " not read: cells that differ in it count as the same. To model it, write both into"
            " one column, joined by a plus."
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


def warnings_of(
    obs: pd.DataFrame, conditions: np.ndarray, control: str, read: set[str | None]
) -> list[str]:
    """Return warnings about doubtful shifts: few controls, columns uneven between conditions.

    Columns that were `read` are left out.
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
    return found + _uneven(obs, conditions, control, read)


def _uneven(
    obs: pd.DataFrame, conditions: np.ndarray, control: str, read: set[str | None]
) -> list[str]:
    """Return warnings on columns whose labels are distributed unlike those of the controls."""
    found: dict[bytes, tuple[str, list[str], float]] = {}
    for name in obs.columns:
        if name in read or MADE_LATER.fullmatch(str(name)) or NUMBER_OF.fullmatch(str(name)):
            continue
        if pd.api.types.is_float_dtype(obs[name]) or DOSE.fullmatch(str(name)):
            continue
        texts = texts_of(obs[name])
        codes, labels = pd.factorize(texts)
        if not 2 <= len(labels) <= MOST_LABELS or any(is_control(label) for label in labels):
            continue
        if codes.tobytes() in found:  # the same column under another name
            found[codes.tobytes()][1].append(str(name))
            continue
        table = pd.crosstab(conditions, texts)
        if (words := _worst(table, control)) is not None:
            found[codes.tobytes()] = words, [str(name)], _cramers_v(table)
    told = sorted(found.values(), key=lambda each: -each[2])
    return [
        f"{'Columns' if len(names) > 1 else 'Column'} {' and '.join(map(repr, names[:3]))}"
        f" {'differ' if len(names) > 1 else 'differs'} between perturbations (Cram\u00e9r's V"
        f" {v:.2f}): {words}. Its influence would be taken for an effect of the perturbation;"
        f" --covariate {shlex.quote(names[0])} accounts for it."
        for words, names, v in told[:3]
    ]


def _worst(table: pd.DataFrame, control: str) -> str | None:
    """Return how the most uneven condition differs from the controls, or None if none does.

    `table` has cells by conditions (rows) and labels (columns).
    """
    large = table[(table.sum(axis=1) >= FEW_CELLS) & (table.index != control)]
    if large.empty or control not in table.index:
        return None
    reference = table.loc[control]
    shares, expected = large.div(large.sum(axis=1), axis=0), reference / reference.sum()
    away = (shares - expected).abs().sum(axis=1) / 2
    name = away.idxmax()
    pair = np.array([table.loc[name], reference])
    p = float(chi2_contingency(pair[:, pair.sum(axis=0) > 0]).pvalue)
    if away[name] < UNEVEN or p * len(large) > UNLIKELY:
        return None
    label = (shares.loc[name] - expected).idxmax()
    return (
        f"{shares.loc[name, label]:.0%} of the cells of {name} are {label!r}, and"
        f" {expected[label]:.0%} of the control cells"
    )


def _cramers_v(table: pd.DataFrame) -> float:
    """Return Cramér's V of a table of counts: 0 if independent, 1 if one determines the other."""
    counts = table.to_numpy()
    chi2 = float(chi2_contingency(counts).statistic)
    return float(np.sqrt(chi2 / (counts.sum() * (min(counts.shape) - 1))))
