"""What an .h5ad file offers, and how its labels would be read, without reading the counts.

It helps to decide which column holds the perturbations and which label is control.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae_core.data.cells import DataError
from samsvae_core.data.columns import suggested_dosage
from samsvae_core.data.controls import check_controls, no_control
from samsvae_core.data.counts import gene_names
from samsvae_core.data.gene_names import INDEX
from samsvae_core.data.guide_tables import guide_table
from samsvae_core.data.h5ad import Said, said_of_labels
from samsvae_core.data.hdf5_checks import names_in, opened
from samsvae_core.data.label_column import (
    by_frequency,
    perturbation_key_of,
    suggested_key,
    texts_of,
)
from samsvae_core.data.labels import parts_of, understood
from samsvae_core.data.read_options import Control, ReadOptions
from samsvae_core.data.tables import table_of
from samsvae_core.data.targets import targets_of
from samsvae_core.system.messages import some

LONGEST = 1_000  # most characters of a name or label
MOST_LABELS = 5_000  # a column with more labels identifies cells, not perturbations


def inspect(path: Path | str, gene_key: str | None = None) -> dict[str, Any]:
    """Return the columns of obs, layers, tables, genes and suggestions of a file, as JSON values.

    Genes are named by `gene_key` as in `read_h5ad`. A column has its `labels` with their numbers of
    cells, the most frequent first, unless there are more than MOST_LABELS. A suggestion is "" if
    there is none. `problem` says why no column is taken by default, and `unread` why the labels of
    the suggested column cannot be read as they are. Raises DataError for a file that cannot be
    read.
    """
    path = Path(path)
    with opened(path) as file:
        obs, var = table_of(file, "obs"), table_of(file, "var")
        columns = [_column(str(name), obs[name]) for name in obs.columns]
        genes = gene_names(file, gene_key)
        suggested = genes.key if gene_key is None else gene_names(file, None).key
        matrices = [place for place in ("X", "raw/X") if place in file]
        layers, tables = names_in(file, "layers"), names_in(file, "obsm")
        table = guide_table(file)
    named = (
        ("genes", genes.names),
        ("ids of genes", var.index),
        ("columns", var.columns),
        ("columns", obs.columns),
        ("layers", layers),
        ("tables", tables),
        ("labels", (label for column in columns for label in column["labels"])),
    )
    for what, names in named:
        _check_lengths(path, what, names)
    key, problem = _suggested_key(obs)
    labels: dict[str, int] = next(
        (column["labels"] for column in columns if column["name"] == key), {}
    )
    meant = understood(list(labels))
    said = said_of_labels(obs, key) if labels else Said([], [], [], "")
    return {
        "file": path.name,
        "n_cells": len(obs),
        "n_genes": len(var),
        "genes": genes.names.tolist(),
        "gene_ids": None if genes.ids is None else genes.ids.tolist(),
        "gene_columns": _naming(var, suggested),
        "gene_notes": genes.notes,
        "columns": columns,
        "matrices": matrices,
        "layers": layers,
        "tables": tables,
        "suggested": {
            "perturbation_key": key,
            "control": meant.controls[0] if meant.controls else "",
            "controls": meant.controls,
            "delimiter": meant.delimiter,
            "gene_key": suggested,
            "dosage_key": suggested_dosage(obs),
            "table": table,
            "notes": said.notes,
            "warnings": said.warnings,
            "covariates": said.covariates,
            "problem": problem,
            "unread": said.problem,
        },
    }


def _check_lengths(path: Path, what: str, names: Iterable[object]) -> None:
    """Raises DataError for a name that is longer than any page or table can show."""
    if max((len(str(name)) for name in names), default=0) > LONGEST:
        raise DataError(
            f"{path.name} has {what} with names of more than {LONGEST:,} characters. "
            "Shorten them, or leave out what is no name."
        )


def _naming(var: pd.DataFrame, suggested: str) -> list[str]:
    """Return what genes can be named by: the index, columns of text, and `suggested`."""
    texts = [str(name) for name in var.columns if var[name].dtype.kind == "O"]
    return list(dict.fromkeys([INDEX, *texts, suggested]))


def _column(name: str, values: pd.Series) -> dict[str, Any]:
    names, sizes = np.unique(texts_of(values).astype(str), return_counts=True)
    order = np.argsort(-sizes, kind="stable")
    labels = zip(names[order].tolist(), sizes[order].tolist(), strict=True)
    return {
        "name": name,
        "n_labels": len(names),
        "is_number": bool(pd.api.types.is_numeric_dtype(values)),
        "labels": dict(labels) if len(names) <= MOST_LABELS else {},
    }


def _suggested_key(obs: pd.DataFrame) -> tuple[str, str]:
    """Return the default column, or else one with control labels and why there is no default."""
    try:
        return perturbation_key_of(obs, None, None), ""
    except DataError as error:
        return suggested_key(obs, MOST_LABELS), str(error)


def suggested_delimiter(
    labels: Mapping[str, int], control: Control = None, drop_unlabelled: bool | None = None
) -> str:
    """Return the default delimiter for these labels; "" keeps them whole."""
    return understood(list(labels), control, None, drop_unlabelled).delimiter


def label_table(
    labels: Mapping[str, int],
    key: str,
    options: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
) -> pd.DataFrame:
    """Return how each label of a column is read: label, cells, condition, kind, in file order.

    `kind` is control, single, combination, "kept whole" (it holds the delimiter, but its parts are
    not names), "no label" or "left out". Raises DataError if there is no control.

    Parameters
    ----------
    labels
        Cells by label.
    key
        Name of the column, for messages.
    control, delimiter, join_guides, drop_unlabelled
        Options of `read_h5ad`.
    """
    drop = options.drop_unlabelled
    frequent = by_frequency(np.array([label for label in labels if label], dtype=object))
    frequent.sort(key=lambda label: -labels[label])
    check_controls(frequent, options.control, f"column {key!r}")
    every = frequent + [""] * ("" in labels)
    meant = understood(every, options.control, options.delimiter, drop)
    nameless, name, delimiter = meant.unassigned, meant.control, meant.delimiter
    if not meant.controls and not (drop is False and nameless):
        raise DataError(no_control(meant.known, key))
    known, controls = set(meant.known), set(meant.controls)
    rows = []
    for label, cells in labels.items():
        if label in nameless and (not label or drop is not None):
            kind = {None: "no label", True: "left out", False: "control"}[drop]
            rows.append((label, cells, name if kind == "control" else "", kind))
            continue
        parts = parts_of(label, known, controls, delimiter)
        whole = len(parts) == 1 and bool(delimiter) and delimiter in parts[0]
        targets = targets_of(parts) if options.join_guides else {}
        named = sorted({targets.get(part, part) for part in parts if part})
        kind = "combination" if len(named) > 1 else "kept whole" if whole else "single"
        rows.append((label, cells, "+".join(named) or name, kind if named else "control"))
    return pd.DataFrame(rows, columns=["label", "cells", "condition", "kind"])


def describe(found: Mapping[str, Any]) -> str:
    """Return what was found as a few lines of text."""
    lines = [f"{found['file']}: {found['n_cells']:,} cells x {found['n_genes']:,} genes"]
    for column in found["columns"]:
        labels = [f"{label or '(none)'} ({n:,})" for label, n in column["labels"].items()]
        shown = f": {some(labels)}" if labels else ""
        lines.append(f"Column {column['name']!r}, {column['n_labels']:,} labels{shown}")
    for what, kind in (
        ("matrices", "Matrices"),
        ("layers", "Layers"),
        ("tables", "Tables of obsm"),
    ):
        if found[what]:
            lines.append(f"{kind}: {some(found[what], 20)}")
    lines += found["gene_notes"]
    suggested = found["suggested"]
    if key := suggested["perturbation_key"]:
        parted = suggested["delimiter"]
        controls = suggested["controls"]
        lines.append(
            f"Perturbations are probably in {key!r}, with"
            f" {'the control' if len(controls) == 1 else 'the controls'}"
            f" {some(map(repr, controls), 6) if controls else '(none found)'} and labels"
            f" {f'parted at {parted!r}' if parted else 'read whole'}."
        )
    if table := suggested["table"]:
        lines.append(
            f"The table obsm[{table!r}] has a column for each guide or perturbation:"
            f" --dosage-key {table} reads it."
        )
    if dose := suggested["dosage_key"]:
        lines.append(f"Dosages are probably in {dose!r}: --dosage-key {dose} reads them.")
    if covariates := suggested["covariates"]:
        options = " ".join(f"--covariate {shlex.quote(name)}" for name in covariates)
        lines.append(f"{' and '.join(map(repr, covariates))} may be accounted for: {options}")
    notes = [
        *(f"Warning: {warning}" for warning in suggested["warnings"]),
        *(f"Note: {note}" for note in suggested["notes"]),
    ]
    return "\n".join([*lines, *notes, *filter(None, [suggested["problem"], suggested["unread"]])])
