"""Find the column that holds the labels of perturbations."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from samsvae_core.data.cells import DataError
from samsvae_core.data.controls import control_labels, no_control
from samsvae_core.data.read_options import Control
from samsvae_core.system.messages import nearest, some

MOST_LABELS = 5_000  # a column with more labels identifies cells, not perturbations
MISSING = {"", "nan", "NaN", "NA", "<NA>", "None"}
# Labels that say that a cell is perturbed, but not by what.
GENERIC = re.compile(r"perturbed|treated|stim(?:ulated)?|ko|kd|np|yes|true|1", re.IGNORECASE)
# The first group with a column that holds a control label decides: genes before their guides.
PERTURBATION_KEYS = (
    ("perturbation", "perturbations", "perturbation_name"),
    ("target_gene", "gene_target", "target_genes", "gene", "condition", "target", "perturb"),
    ("guide_identity", "guide_target", "guide", "guides", "guide_id", "guide_ids", "sgrna", "grna"),
)


def texts_of(values: pd.Series | pd.Index) -> np.ndarray:
    """Return labels as stripped text, "" where missing."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
        values = pd.Series(of_pandas(values.to_numpy()))
    codes, known = pd.factorize(values)  # missing: -1, which picks the last text, ""
    texts = [(name.decode() if isinstance(name, bytes) else str(name)).strip() for name in known]
    return np.array(["" if text in MISSING else text for text in [*texts, ""]], object)[codes]


def of_pandas(values: np.ndarray) -> np.ndarray:
    """Return numbers in a type that pandas supports: native byte order, floats of 4 or 8 bytes."""
    kind = values.dtype.newbyteorder("=")
    if kind.kind == "f":
        kind = np.dtype(np.float32 if kind.itemsize <= 4 else np.float64)
    return values.astype(kind, copy=False)


def by_frequency(labels: np.ndarray) -> list[str]:
    """Return the distinct labels, the most frequent first."""
    return list(pd.Series(labels).value_counts().index)


def check_column(obs: pd.DataFrame, key: str, option: str) -> None:
    """Raise DataError if obs lacks a column that was given as an option."""
    if key not in obs:
        raise DataError(
            f"obs has no column {key!r}, given as {option}. {nearest(key, obs.columns)}"
        )


def perturbation_key_of(obs: pd.DataFrame, key: str | None, control: Control) -> str:
    """Return the given column, or else the one of the usual names that has a control label.

    A column with only "NT" and "Perturbed" gives way to one that names the targets of the same
    cells. Raises DataError if no column, or several different ones, would do.
    """
    if key is not None:
        check_column(obs, key, "--perturbation-key")
        return key
    usual = [name for group in PERTURBATION_KEYS for name in group]
    texts = {name: texts_of(obs[name]) for name in obs.columns if str(name).lower() in usual}
    ranked = sorted(texts, key=lambda name: usual.index(name.lower()))
    for group in PERTURBATION_KEYS:
        found = {}
        for name in (name for name in ranked if name.lower() in group):
            if controls := control_labels(by_frequency(texts[name]), control):
                found[name] = np.where(np.isin(texts[name], controls), "control", texts[name])
        said = {name: labels for name, labels in found.items() if not more_said(obs, name, control)}
        found = said or found
        if any((labels != next(iter(found.values()))).any() for labels in found.values()):
            raise DataError(
                f"Several columns of obs could be the perturbations: {some(found, 10)}. They"
                " differ; choose one with --perturbation-key."
            )
        if said:
            return next(iter(said))
        if found:
            return more_said(obs, next(iter(found)), control)
    offered = suggested_key(obs)
    if ranked and (control is not None or not offered):  # the caller reports its missing control
        return ranked[0]
    why = (
        no_control(by_frequency(texts[ranked[0]]), ranked[0])
        if ranked
        else f"No column of obs is named as perturbations usually are ({some(usual, 6)}); found"
        f" {some(obs.columns, 10) or 'no columns'}. Name the column with --perturbation-key."
    )
    if offered:
        labels = control_labels(by_frequency(texts_of(obs[offered])))
        why += (
            f" Column {offered!r} has labels of controls ({some(labels)}) and of others:"
            f" --perturbation-key {offered} takes it."
        )
    raise DataError(why)


def more_said(obs: pd.DataFrame, key: str, control: Control) -> str:
    """Return the column that names the targets if this one only says "perturbed", else ""."""
    if not _may_be_labels(obs[key]):
        return ""
    labels = texts_of(obs[key])
    frequent = by_frequency(labels)
    controls = control_labels(frequent, control)
    rest = [label for label in frequent if label and label not in controls]
    if len(rest) != 1 or not GENERIC.fullmatch(rest[0]):
        return ""
    cells = np.isin(labels, controls)
    usual = [name for group in PERTURBATION_KEYS for name in group]
    others = [
        name
        for name in obs.columns
        if name != key and str(name).lower() in usual and _may_be_labels(obs[name])
    ]
    for name in sorted(others, key=lambda name: usual.index(str(name).lower())):
        texts = texts_of(obs[name])
        known = by_frequency(texts)
        named = control_labels(known, control)
        if len(known) - len(named) > 1 and (np.isin(texts, named) == cells).all():
            return str(name)
    return ""


def _may_be_labels(values: pd.Series) -> bool:
    """Return whether a column may hold labels; searching barcodes for controls would take long."""
    return not pd.api.types.is_float_dtype(values) and values.nunique() <= MOST_LABELS


def key_notes(obs: pd.DataFrame, key: str, given: bool, control: Control) -> list[str]:
    """Return a note if another column says more than the one read, or the other way round."""
    if given and (better := more_said(obs, key, control)):
        return [
            f"Column {key!r} says only that cells are perturbed; {better!r} names the targets:"
            f" --perturbation-key {better} reads it."
        ]
    passed = [str(n) for n in obs.columns if n != key and more_said(obs, n, control) == key]
    if given or not passed:
        return []
    return [f"Column {passed[0]!r} says only that cells are perturbed; {key!r} is read instead."]


def suggested_key(obs: pd.DataFrame, most_labels: int = MOST_LABELS) -> str:
    """Return a column with labels of controls and of perturbations, under any name; "" if none.

    A column that only extends the labels of another ("ctrl101" for "ctrl"), such as one of samples,
    is skipped. Of those left, the one with most labels is returned.
    """
    texts = {}
    for name in obs.columns:
        if pd.api.types.is_float_dtype(obs[name]):
            continue
        labels = texts_of(obs[name])
        known = by_frequency(labels)
        n_controls = len(control_labels(known)) if len(known) <= most_labels else 0
        if 2 <= len(known) < len(obs) and 0 < n_controls < len(known):
            texts[str(name)] = labels
    kept = [
        name
        for name in texts
        if not any(_adds_to(texts[name], texts[other]) for other in texts if other != name)
        and not more_said(obs, name, None)
    ]
    return max(kept, key=lambda name: len(set(texts[name])), default="")


def _adds_to(labels: np.ndarray, shorter: np.ndarray) -> bool:
    """Return whether each label extends that of a shorter column, as ctrl101 extends ctrl."""
    pairs = set(zip(labels, shorter, strict=True))
    return all(a.lower().startswith(b.lower()) for a, b in pairs) and any(a != b for a, b in pairs)
