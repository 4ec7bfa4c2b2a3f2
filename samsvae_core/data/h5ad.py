"""Reads .h5ad files: counts, labels of perturbations and their dosages, with every failure told.

A label "A+B" becomes a row of dosages with a one for A and for B; control cells are rows of zeros.
What was found, chosen or left alone on the way is told in `CellData.source`, never done silently.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import CellData, DataError, constant_genes
from samsvae_core.data.columns import column_notes, warnings_of
from samsvae_core.data.controls import Control
from samsvae_core.data.counts import read_counts, read_values
from samsvae_core.data.dosages import conditions_of, dosages_of_labels
from samsvae_core.data.guide_tables import dosages_of_table, key_or_table
from samsvae_core.data.hdf5_checks import (
    opened,
)
from samsvae_core.data.label_column import check_column, key_notes, texts_of
from samsvae_core.data.stored import Storage
from samsvae_core.data.tables import table_of
from samsvae_core.system.files import cache_folder
from samsvae_core.system.messages import some

# Biological replicates first, then what stands for them: batches, then parts of one experiment.
REPLICATE_KEYS = (
    *("replicate", "replicates", "replicate_id", "rep", "biorep", "bio_rep", "bio_replicate"),
    *("biological_replicate", "donor", "donor_id", "batch", "batch_id", "experiment"),
    *("gem_group", "gemgroup", "gem", "lane", "sample", "sample_id", "orig.ident"),
)
FEWEST_REPLICATES, MOST_REPLICATES = 2, 20  # of a column that is taken without being named
SIZE_FACTOR_KEYS = ("total_counts", "n_counts", "ncount_rna", "ncounts", "n_umi", "umi_count")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")


def read_h5ad(
    path: Path | str,
    *,
    perturbation_key: str | None = None,
    control: Control = None,
    delimiter: str | None = None,
    size_factor_key: str | None = None,
    layer: str | None = None,
    gene_key: str | None = None,
    dosage_key: str | None = None,
    replicate_key: str | None = None,
    join_guides: bool = False,
    drop_unlabelled: bool | None = None,
    continuous: bool = False,
    counts_on: str = "auto",
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CellData:
    """Cells of an .h5ad file; what is not named is looked for under the usual names.

    `control` is a label or several, or patterns such as "*non-targeting*". A label is split at
    `delimiter` only if every part is a label of its own, a control word or looks like a gene
    symbol; without one `labels.delimiter_of` decides, and "" keeps labels whole. Guides of one gene
    are not additive: "A+A" is A at dosage 1, and with `join_guides` so is "A_1".
    `gene_key` names the column of var, or of raw/var, with the names of the genes, or is
    "var_names" for the index; without it ids and row numbers give way to a column of symbols.
    `dosage_key` names a column of obs (one number for the whole label, or "0.5+1" for its parts),
    or a table of obsm (cells x perturbations, columns named by itself or by uns["KEY_names"]) that
    replaces the labels. `drop_unlabelled` True leaves out cells without a label, or without any
    perturbation in the table; False takes them as controls. None raises DataError for the former,
    and leaves out the latter where the table has columns of controls. `replicate_key` names the
    column of obs with each cell's replicate.
    `continuous` takes the values of X, or of `layer`, as they are: any finite numbers, no counts,
    and no size factor goes with them. `counts_on` "disk" keeps them in files in the folder
    `scratch` (the cache folder) that go when they are no longer used, "memory" in memory, "auto"
    there if they take at most SHARE of what is free; `say` is told if on disk, and where the names
    of genes are from.
    """
    if counts_on not in ("auto", "memory", "disk"):
        raise DataError(f"--counts-on is {counts_on!r}; choose one of auto, memory, disk.")
    if continuous and size_factor_key is not None:
        raise DataError(
            f"Column {size_factor_key!r}, given as --size-factor-key, cannot scale values that are"
            " not counts: a size factor scales counts only. Leave it out, or read raw counts."
        )
    path = Path(path)
    with opened(path) as file:
        obs = table_of(file, "obs")
        storage = Storage(counts_on, scratch or cache_folder(), say)
        counts = (read_values if continuous else read_counts)(
            file, layer, gene_key, obs.index, storage
        )
        if dosage_key is not None and dosage_key not in obs:
            design = dosages_of_table(file, dosage_key, obs, control, join_guides, drop_unlabelled)
        else:
            key = key_or_table(file, obs, perturbation_key, control)
            design = dosages_of_labels(
                obs, key, control, delimiter, dosage_key, join_guides, drop_unlabelled
            )
            design.notes[:0] = key_notes(obs, key, perturbation_key is not None, control)
    conditions = conditions_of(design.dosages, design.perturbations, design.control)
    taken, kept = design.source["perturbation_key"], design.kept
    here = slice(None) if kept is None else kept
    replicate_key = _replicate_key(obs[here], replicate_key, taken, conditions[here])
    totals = np.asarray(counts.matrix.sum(1), dtype=np.float64).ravel()
    library = totals.copy()
    if size_factor_key is not None:
        library[here] = _size_factor(obs[here], size_factor_key, totals[here])
    known_library = continuous or size_factor_key is not None
    suggestion = None if known_library else _suggest_size_factor(obs[here], totals[here])
    n_perturbations = design.dosages[here].getnnz(axis=1)
    read = {taken, dosage_key}
    source = {
        "file": path.name,
        **design.source,
        "counts_from": counts.origin,
        "gene_key": counts.genes.key,
        "continuous": continuous,
        "size_factor_key": size_factor_key,
        "size_factor_suggestion": suggestion,
        "dosage_key": dosage_key,
        "replicate_key": replicate_key,
        **({} if counts_on == "auto" else {"counts_on": counts_on}),
        "warnings": warnings_of(obs[here], conditions[here], design.control, read),
    }
    data = CellData(
        counts=counts.matrix,
        dosages=design.dosages,
        library=np.ones(len(obs), np.float32) if continuous else library.astype(np.float32),
        cells=obs.index.to_numpy(dtype=str),
        genes=counts.genes.names,
        gene_ids=counts.genes.ids,
        perturbations=design.perturbations,
        conditions=conditions,
        control=design.control,
        has_size_factor=bool((library > totals).any()),
        source=source,
        replicates=None if replicate_key is None else texts_of(obs[replicate_key]).astype(str),
        is_counts=not continuous,
        scratch=storage.folder if isinstance(counts.matrix.data, np.memmap) else None,
    )
    data = data if kept is None else data.subset(kept)
    source["notes"] = [
        *counts.notes,
        *counts.genes.notes,
        *_matrix_notes(data.counts, data.genes, "value" if continuous else "count"),
        *design.notes,
        *column_notes(obs[here], taken, dosage_key, n_perturbations),
    ]
    return data


def _matrix_notes(matrix: sp.csr_matrix, genes: np.ndarray, what: str) -> list[str]:
    """What is odd about the matrix of the cells that are read, each of its numbers a `what`."""
    notes = []
    if n := int(constant_genes(matrix).sum()):
        notes.append(f"{n:,} of {len(genes):,} genes have the same {what} in every cell.")
    if n := int((matrix.getnnz(axis=1) == 0).sum()):
        notes.append(f"{n:,} cells have no {what} but 0 on these genes.")
    if sum(ENSEMBL.fullmatch(gene) is not None for gene in genes) > len(genes) / 2:
        notes.append("Genes are named by Ensembl ids; gene sets know human ones (ENSG) only.")
    return notes


def _size_factor(obs: pd.DataFrame, key: str, totals: np.ndarray) -> np.ndarray:
    check_column(obs, key, "--size-factor-key")
    values = pd.to_numeric(pd.Series(texts_of(obs[key])), errors="coerce").to_numpy(
        dtype=np.float64
    )
    bad = ~(np.isfinite(values) & (values > 0) & (values >= totals))
    if bad.any():
        raise DataError(
            f"Size factor column {key!r} has {bad.sum():,} values that are missing, not above 0 or"
            " below the cell's own total in this file; expected total counts over all genes. Choose"
            f" another column or none, or recode cells {some(obs.index[bad])}."
        )
    return values


def _suggest_size_factor(obs: pd.DataFrame, totals: np.ndarray) -> str | None:
    """A column of obs that counts more genes than the file holds."""
    for key in obs.columns:
        if str(key).lower() in SIZE_FACTOR_KEYS and pd.api.types.is_numeric_dtype(obs[key]):
            values = obs[key].to_numpy(dtype=np.float64, na_value=np.nan)
            if (values >= totals).all() and np.median(values) > 1.01 * np.median(totals):
                return str(key)
    return None


class Said(NamedTuple):
    """What reading the labels of a column by itself says: notes, warnings, or why it cannot."""

    notes: list[str]
    warnings: list[str]
    problem: str


def said_of_labels(obs: pd.DataFrame, key: str) -> Said:
    """What `read_h5ad` says of this column when nothing but it is named; counts are not read."""
    try:
        design = dosages_of_labels(obs, key, None, None, None, False, None)
    except DataError as error:
        return Said([], [], str(error))
    conditions = conditions_of(design.dosages, design.perturbations, design.control)
    notes = key_notes(obs, key, False, None) + design.notes
    notes += column_notes(obs, key, None, design.dosages.getnnz(axis=1))
    return Said(notes, warnings_of(obs, conditions, design.control, {key}), "")


def _replicate_key(
    obs: pd.DataFrame, key: str | None, perturbation_key: str | None, conditions: np.ndarray
) -> str | None:
    """The column given, or else the first of the usual ones that can tell replicates apart.

    It has a few labels, and not the same one in all cells of each condition: that names conditions.
    """
    if key is not None:
        check_column(obs, key, "--replicate-key")
        if not (texts_of(obs[key]) != "").any():
            raise DataError(
                f"Column {key!r}, given as --replicate-key, has no label in any cell; expected each"
                " cell's replicate. Name another column."
            )
        return key
    usual = [name for name in obs.columns if str(name).lower() in REPLICATE_KEYS]
    for name in sorted(usual, key=lambda name: REPLICATE_KEYS.index(name.lower())):
        labels = pd.Series(texts_of(obs[name])).replace("", None)
        n_labels = labels.nunique()
        if name == perturbation_key or not FEWEST_REPLICATES <= n_labels <= MOST_REPLICATES:
            continue
        if labels.groupby(conditions).nunique().max() > 1:
            return str(name)
    return None
