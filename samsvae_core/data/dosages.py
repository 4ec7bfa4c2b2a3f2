"""The dosages of every cell, from its label."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import DataError
from samsvae_core.data.controls import check_controls, no_control
from samsvae_core.data.label_column import by_frequency, texts_of
from samsvae_core.data.labels import label_notes, parts_of, understood
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.data.targets import guides_note, targets_of
from samsvae_core.system.messages import some

LARGE_DOSAGE = 10.0  # the prior standard deviation of an embedding is 1 per unit of dosage


class Dosages(NamedTuple):
    """The dosages of all cells (cells x perturbations), and how they were read."""

    dosages: sp.csr_matrix
    perturbations: np.ndarray
    control: str
    source: dict[str, Any]
    notes: list[str]
    kept: np.ndarray | None  # a boolean per cell, if some are left out


def dosages_of_labels(obs: pd.DataFrame, key: str, options: ReadOptions) -> Dosages:
    """Dosages as the labels in a column of obs have them, a dosage of 1 for each part."""
    drop, dosage_key = options.drop_unlabelled, options.dosage_key
    labels, where = texts_of(obs[key]), f"column {key!r}"
    every = by_frequency(labels)
    check_controls([label for label in every if label], options.control, where)
    meant = understood(every, options.control, options.delimiter, drop)
    frequent, controls = meant.known, meant.controls
    nameless = np.isin(labels, list(meant.unassigned))
    if drop is None and (labels == "").any():
        raise DataError(
            f"{(labels == '').sum():,} cells have no label in {where}"
            f" ({some(obs.index[labels == ''])}). Leave them out with --drop-unlabelled, or take"
            " them as control cells with --unlabelled-as-control."
        )
    notes = _unassigned_notes(labels, nameless, drop)
    if drop is not None and nameless.any():
        labels = np.where(nameless, "", labels)
    kept = ~nameless if drop and nameless.any() else None
    if not controls and not (drop is False and nameless.any()):
        raise DataError(no_control(frequent, key))
    delimiter = meant.delimiter
    known, listed = set(frequent), set(controls)
    parts = {label: parts_of(label, known, listed, delimiter) for label in frequent}
    notes += label_notes(parts, controls, delimiter, options.delimiter is not None)
    if not frequent or all(not any(each) for each in parts.values()):
        raise DataError(f"Every cell of {where} is a control; expected perturbed ones too.")
    targets = targets_of({part for each in parts.values() for part in each if part})
    notes += guides_note(targets, options.join_guides)
    if options.join_guides:
        parts = {label: [targets.get(part, part) for part in p] for label, p in parts.items()}
    parts[""] = [""]  # of cells that are left out, or taken as control
    doses = _doses(obs, dosage_key, labels, parts, delimiter)
    rows = [_row(parts[label], dose) for label, dose in zip(labels, doses, strict=True)]
    dosages, perturbations = _dosage_matrix(rows)
    if not len(perturbations):
        raise DataError(
            f"Dosage column {dosage_key!r} is 0 in every perturbed cell of {where}, and so each"
            " counts as a control; expected dosages above 0. Name another column of dosages with"
            " --dosage-key, or leave it out."
        )
    notes += dosage_notes(dosages)
    if n := sum(any(parts[label]) and not row for label, row in zip(labels, rows, strict=True)):
        notes.append(f"{n:,} cells have dosage 0 and count as control.")
    source = {
        "perturbation_key": key,
        "control_labels": controls,
        "delimiter": delimiter,
        "join_guides": options.join_guides,
        "drop_unlabelled": drop,
    }
    return Dosages(dosages, perturbations, meant.control, source, notes, kept)


def _unassigned_notes(
    labels: np.ndarray, nameless: np.ndarray, drop_unlabelled: bool | None
) -> list[str]:
    if not nameless.any():
        return []
    called = some(sorted({repr(label) for label in labels[nameless] if label}))
    such = f"no perturbation is known ({called})" if called else "no perturbation is known"
    begin = f"{nameless.sum():,} cells of which {such} are"
    if drop_unlabelled is None:
        return [
            f"{begin} read as one more perturbation. --drop-unlabelled leaves them out,"
            " --unlabelled-as-control takes them as control cells."
        ]
    return [f"{begin} left out." if drop_unlabelled else f"{begin} taken as control cells."]


def _doses(
    obs: pd.DataFrame,
    key: str | None,
    labels: np.ndarray,
    parts: Mapping[str, list[str]],
    delimiter: str,
) -> list[tuple[float, ...]]:
    """Return, for each cell, a dosage for each part of its label; 1 if no column is given."""
    if key is None:
        return [(1.0,) * len(parts[label]) for label in labels]
    texts = texts_of(obs[key])
    parsed = {
        (label, text): _parse_dose(text, parts[label], delimiter)
        for label, text in set(zip(labels, texts, strict=True))
    }
    doses = [parsed[pair] for pair in zip(labels, texts, strict=True)]
    if bad := [i for i, dose in enumerate(doses) if not dose]:
        cells = [f"{obs.index[i]} ({texts[i]!r})" for i in bad]
        raise DataError(
            f"Dosage column {key!r} has {len(bad):,} values that are negative, missing or no"
            " number; dosages must be numbers of 0 or more, one for the label or one for each of"
            f" its parts ('0.5+1'). Drop or recode cells {some(cells)}."
        )
    return doses


def _parse_dose(text: str, parts: list[str], delimiter: str) -> tuple[float, ...]:
    """Return the dosages of a label's parts, or nothing if `text` does not give them."""
    n_parts = len(parts)
    if not any(parts):  # the dosage of a control cell does not matter
        return (0.0,) * n_parts
    for pieces in ([text], text.split(delimiter or None)):
        try:
            numbers = tuple(float(piece) for piece in pieces)
        except ValueError:
            continue
        if len(numbers) in (1, n_parts) and all(0 <= number < np.inf for number in numbers):
            return numbers if len(numbers) == n_parts else numbers * n_parts
    return ()


def _row(parts: list[str], doses: tuple[float, ...]) -> dict[str, float]:
    """Return dosage by perturbation; one named twice gets the larger dosage."""
    row: dict[str, float] = {}
    for part, dose in zip(parts, doses, strict=True):
        if part and dose:
            row[part] = max(dose, row.get(part, 0.0))
    return row


def _dosage_matrix(rows: list[dict[str, float]]) -> tuple[sp.csr_matrix, np.ndarray]:
    names = sorted({name for row in rows for name in row})
    column = {name: i for i, name in enumerate(names)}
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    indices = [column[name] for row in rows for name in row]
    data = np.array([dose for row in rows for dose in row.values()], dtype=np.float32)
    matrix = sp.csr_matrix((data, indices, indptr), shape=(len(rows), len(names)))
    matrix.sort_indices()
    return matrix, np.array(names, dtype=str)


def dosage_notes(dosages: sp.csr_matrix) -> list[str]:
    largest = dosages.data.max(initial=0)
    if largest <= LARGE_DOSAGE:
        return []
    return [f"Dosages go up to {largest:g}; the model expects about 1: divide them by a usual one."]


def conditions_of(dosages: sp.csr_matrix, perturbations: np.ndarray, control: str) -> np.ndarray:
    names: dict[tuple[bytes, bytes], str] = {}
    conditions = []
    for start, stop in pairwise(dosages.indptr):
        columns, doses = dosages.indices[start:stop], dosages.data[start:stop]
        row = (columns.tobytes(), doses.tobytes())
        if row not in names:
            parts = zip(perturbations[columns], doses, strict=True)
            names[row] = "+".join(name if dose == 1 else f"{name}:{dose:g}" for name, dose in parts)
        conditions.append(names[row] or control)
    return np.array(conditions, dtype=str)
