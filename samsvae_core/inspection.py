"""What an .h5ad file offers to choose from, and how its labels would be read; counts are not read.

All of it before anything is decided: which column holds perturbations, which label is control.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae_core.data import DataError, some
from samsvae_core.gene_names import INDEX
from samsvae_core.h5ad import (
    CONTROL,
    SYMBOL,
    by_frequency,
    control_labels,
    first_word,
    gene_names,
    no_control,
    parts_of,
    perturbation_key_of,
    table_of,
    texts_of,
)
from samsvae_core.h5file import names_in, opened

LONGEST = 1_000  # characters of a name or label
MOST_LABELS = 5_000  # of a column; one with more tells cells apart, not perturbations
DELIMITERS = ("+", "_", "|", ";", ",", "&", "/", ":")


def inspect(path: Path | str, gene_key: str | None = None) -> dict[str, Any]:
    """Columns of obs with the cells of each label, layers, tables of obsm, genes, suggestions.

    Genes are named as `read_h5ad` names them by `gene_key`. In values that JSON can store. `labels`
    of a column are the most frequent first; a column with more than MOST_LABELS of them has none. A
    suggestion is "" where there is none.
    """
    path = Path(path)
    with opened(path) as file:
        obs, var = table_of(file, "obs"), table_of(file, "var")
        columns = [_column(str(name), obs[name]) for name in obs.columns]
        genes = gene_names(file, gene_key)
        suggested = genes.key if gene_key is None else gene_names(file, None).key
        matrices = [place for place in ("X", "raw/X") if place in file]
        layers, tables = names_in(file, "layers"), names_in(file, "obsm")
    for what, names in (
        ("genes", genes.names),
        ("ids of genes", var.index),
        ("columns", var.columns),
        ("columns", obs.columns),
        ("layers", layers),
        ("tables", tables),
        ("labels", (label for column in columns for label in column["labels"])),
    ):
        if max((len(str(name)) for name in names), default=0) > LONGEST:
            raise DataError(
                f"{path.name} has {what} with names of more than {LONGEST:,} characters. "
                "Shorten them, or leave out what is no name."
            )
    key, problem = _suggested_key(obs, columns)
    labels: dict[str, int] = next(
        (column["labels"] for column in columns if column["name"] == key), {}
    )
    controls = control_labels(list(labels), None)
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
            "control": controls[0] if controls else "",
            "delimiter": suggested_delimiter(labels),
            "gene_key": suggested,
            "problem": problem,
        },
    }


def _naming(var: pd.DataFrame, suggested: str) -> list[str]:
    """What genes can be named by: the index, and columns of text; `suggested` is one of these."""
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


def _suggested_key(obs: pd.DataFrame, columns: list[dict[str, Any]]) -> tuple[str, str]:
    """The column that a reader would take, or else one with control labels; why not, if so."""
    try:
        return perturbation_key_of(obs, None, None), ""
    except DataError as error:
        with_controls = [
            column
            for column in columns
            if 2 <= len(column["labels"]) < len(obs)
            and control_labels(list(column["labels"]), None)
        ]
        found = max(with_controls, key=lambda column: len(column["labels"]), default={"name": ""})
        return found["name"], str(error)


def suggested_delimiter(labels: Mapping[str, int]) -> str:
    """What parts most labels into labels of their own, control words and gene symbols; else "+".

    One part at least has to be a label or a control word: many names hold an underscore.
    """

    def composed(label: str, delimiter: str) -> bool:
        parts = [part.strip() for part in label.split(delimiter)]
        known = [part in labels or CONTROL.fullmatch(part) is not None for part in parts]
        rest = [part for part, is_known in zip(parts, known, strict=True) if not is_known]
        return len(parts) > 1 and any(known) and all(SYMBOL.fullmatch(part) for part in rest)

    named = [label for label in labels if not CONTROL.fullmatch(label)]
    counts = {d: sum(composed(label, d) for label in named) for d in DELIMITERS}
    return max(DELIMITERS, key=lambda delimiter: counts[delimiter])


def label_table(
    labels: Mapping[str, int], key: str, control: str | None = None, delimiter: str = "+"
) -> pd.DataFrame:
    """How each label of a column is read: columns label, cells, condition, kind, as in the file.

    `kind` is control, single, combination, "kept whole" (it holds the delimiter, but its parts are
    no names) or "no label". Raises DataError where there is no control.
    """
    frequent = by_frequency(np.array([label for label in labels if label], dtype=object))
    frequent.sort(key=lambda label: -labels[label])
    controls = control_labels(frequent, control)
    if not controls:
        raise DataError(no_control(frequent, key, control))
    name = control or first_word(controls[0], delimiter)
    known, rows = set(frequent), []
    for label, cells in labels.items():
        parts = parts_of(label, known, controls, delimiter) if label else [""]
        named = sorted({part for part in parts if part})
        whole = len(named) == 1 and bool(delimiter) and delimiter in named[0]
        kind = "combination" if len(named) > 1 else "kept whole" if whole else "single"
        kind = kind if named else "control" if label else "no label"
        rows.append((label, cells, "+".join(named) or (name if label else ""), kind))
    return pd.DataFrame(rows, columns=["label", "cells", "condition", "kind"])


def describe(found: Mapping[str, Any]) -> str:
    """What was found in a few lines for people."""
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
    if suggested["perturbation_key"]:
        lines.append(
            f"Perturbations are probably in {suggested['perturbation_key']!r}, with the control"
            f" {suggested['control']!r} and the delimiter {suggested['delimiter']!r}."
        )
    return "\n".join([*lines, *filter(None, [suggested["problem"]])])
