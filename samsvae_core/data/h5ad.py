"""Reads .h5ad files: counts, labels of perturbations and their dosages, with every failure told.

A label "A+B" becomes a row of dosages with a one for A and for B; control cells are rows of zeros.
What was found, chosen or left alone on the way is told in `CellData.source`, never done silently.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import CellData, DataError, constant_genes
from samsvae_core.data.columns import column_notes, warnings_of
from samsvae_core.data.counts import read_counts, read_values
from samsvae_core.data.covariate_columns import read_covariates
from samsvae_core.data.design import REPLICATE_KEYS, audit, proposed
from samsvae_core.data.dosages import Dosages, conditions_of, dosages_of_labels
from samsvae_core.data.guide_tables import dosages_of_table, key_or_table
from samsvae_core.data.hdf5_checks import (
    opened,
)
from samsvae_core.data.label_column import check_column, key_notes, texts_of
from samsvae_core.data.read_options import Control, ReadOptions
from samsvae_core.data.stored import Storage
from samsvae_core.data.tables import table_of
from samsvae_core.data.unevenness import DesignColumn
from samsvae_core.system.files import cache_folder
from samsvae_core.system.messages import some

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
    covariates: Sequence[str] | None = None,
    join_guides: bool = False,
    drop_unlabelled: bool | None = None,
    continuous: bool = False,
    counts_on: str = "auto",
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CellData:
    """Cells of an .h5ad file; what is not named is looked for under the usual names.

    Parameters
    ----------
    path
        The file, with cells in rows.
    perturbation_key
        Column of obs with the label of each cell's perturbation.
    control
        A label of control cells or several, or patterns such as "*non-targeting*".
    delimiter
        What parts a label into those of a combination, where every part is a label of its own, a
        control word or looks like a gene symbol. "" keeps labels whole; without it
        `labels.delimiter_of` decides.
    size_factor_key
        Column of obs with each cell's total count over all genes, if the file holds only some.
    layer
        Layer with the counts, instead of X.
    gene_key
        Column of var, or of raw/var, with the names of the genes, or "var_names" for the index.
        Without it ids and row numbers give way to a column of symbols.
    dosage_key
        Column of obs (one number for the whole label, or "0.5+1" for its parts), or a table of obsm
        (cells x perturbations, columns named by itself or by uns["KEY_names"]) that replaces the
        labels.
    replicate_key
        Column of obs with each cell's replicate.
    covariates
        Columns of obs to account for, such as batch, donor or cell line.
    join_guides
        Whether guides of one gene, such as "A_1" and "A_2", are read as A. They never add up:
        "A+A" is A at dosage 1.
    drop_unlabelled
        True leaves out cells without a label, or without any perturbation in the table; False takes
        them as controls. None raises DataError for the former, and leaves out the latter where the
        table has columns of controls.
    continuous
        Whether values are taken as they are: any finite numbers, no counts.
    counts_on
        "disk" keeps counts in files that go when they are no longer used, "memory" in memory;
        "auto" in memory if they take at most SHARE of what is free.
    scratch
        The folder of these files; without it the cache folder.
    say
        Is told if counts are on disk, and where the names of genes are from.

    Raises DataError, with what was expected and what to do, for a file that cannot be read so.
    """
    options = ReadOptions(
        perturbation_key=perturbation_key,
        control=control,
        delimiter=delimiter,
        layer=layer,
        gene_key=gene_key,
        size_factor_key=size_factor_key,
        dosage_key=dosage_key,
        replicate_key=replicate_key,
        covariates=covariates,
        join_guides=join_guides,
        drop_unlabelled=drop_unlabelled,
        continuous=continuous,
        counts_on=counts_on,
    )
    return read_cells(path, options, scratch, say)


def read_cells(
    path: Path | str,
    options: ReadOptions,
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CellData:
    """`read_h5ad`, with its options in one."""
    _check(options)
    path = Path(path)
    with opened(path) as file:
        obs = table_of(file, "obs")
        storage = Storage(options.counts_on, scratch or cache_folder(), say)
        values_of = read_values if options.continuous else read_counts
        counts = values_of(file, options.layer, options.gene_key, obs.index, storage)
        design = _design(file, obs, options)
    conditions = conditions_of(design.dosages, design.perturbations, design.control)
    totals = np.asarray(counts.matrix.sum(1), dtype=np.float64).ravel()
    here = slice(None) if design.kept is None else design.kept
    taken = design.source["perturbation_key"]
    replicate_key = _replicate_key(obs[here], options.replicate_key, taken, conditions[here])
    library = totals.copy()
    if options.size_factor_key is not None:
        library[here] = _size_factor(obs[here], options.size_factor_key, totals[here])
    accounted = read_covariates(
        obs[here], options.covariates or (), conditions[here], design.control, taken
    )
    source = {
        "file": path.name,
        **design.source,
        "counts_from": counts.origin,
        "gene_key": counts.genes.key,
        **_source(obs[here], totals[here], options),
        "replicate_key": replicate_key,
        "covariates": list(accounted.covariates.levels) if accounted.covariates else None,
        **({} if options.counts_on == "auto" else {"counts_on": options.counts_on}),
        "warnings": [*_warnings(obs[here], conditions[here], design, options), *accounted.warnings],
    }
    data = CellData(
        counts=counts.matrix,
        dosages=design.dosages,
        library=np.ones(len(obs), np.float32) if options.continuous else library.astype(np.float32),
        cells=obs.index.to_numpy(dtype=str),
        genes=counts.genes.names,
        gene_ids=counts.genes.ids,
        perturbations=design.perturbations,
        conditions=conditions,
        control=design.control,
        has_size_factor=bool((library > totals).any()),
        source=source,
        replicates=None if replicate_key is None else texts_of(obs[replicate_key]).astype(str),
        is_counts=not options.continuous,
        scratch=storage.folder if isinstance(counts.matrix.data, np.memmap) else None,
    )
    data = data if design.kept is None else data.subset(design.kept)
    data = replace(data, covariates=accounted.covariates)
    source["notes"] = [
        *counts.notes,
        *counts.genes.notes,
        *_matrix_notes(data.counts, data.genes, "value" if options.continuous else "count"),
        *design.notes,
        *accounted.notes,
        *column_notes(obs[here], taken, options, design.dosages[here].getnnz(axis=1)),
    ]
    return data


def _warnings(
    obs: pd.DataFrame, conditions: np.ndarray, design: Dosages, options: ReadOptions
) -> list[str]:
    """What is doubtful about the design, in columns that are not read."""
    return warnings_of(conditions, design.control, _audit(obs, conditions, design, options))


def audited(path: Path | str, options: ReadOptions) -> list[DesignColumn]:
    """Return the audit of the columns of a file, read with these options, without its counts.

    Raises DataError as `read_cells`.
    """
    with opened(Path(path)) as file:
        obs = table_of(file, "obs")
        design = _design(file, obs, options)
    conditions = conditions_of(design.dosages, design.perturbations, design.control)
    here = slice(None) if design.kept is None else design.kept
    return _audit(obs[here], conditions[here], design, options)


def _audit(
    obs: pd.DataFrame, conditions: np.ndarray, design: Dosages, options: ReadOptions
) -> list[DesignColumn]:
    """The audit of columns that are not read as something else, beside the covariates."""
    taken = {design.source["perturbation_key"], options.dosage_key, options.size_factor_key}
    return audit(obs, conditions, design.control, taken, options.covariates or ())


def _check(options: ReadOptions) -> None:
    """Raises DataError for options that do not go together, or are none."""
    if options.counts_on not in ("auto", "memory", "disk"):
        raise DataError(f"--counts-on is {options.counts_on!r}; choose one of auto, memory, disk.")
    if options.continuous and options.size_factor_key is not None:
        raise DataError(
            f"Column {options.size_factor_key!r}, given as --size-factor-key, cannot scale values"
            " that are not counts: a size factor scales counts only. Leave it out, or read raw"
            " counts."
        )


def _design(file: h5py.File, obs: pd.DataFrame, options: ReadOptions) -> Dosages:
    """The dosages of all cells: of a table in obsm if that is named, else of a column of labels."""
    if options.dosage_key is not None and options.dosage_key not in obs:
        return dosages_of_table(file, options.dosage_key, obs, options)
    key = key_or_table(file, obs, options.perturbation_key, options.control)
    design = dosages_of_labels(obs, key, options)
    design.notes[:0] = key_notes(obs, key, options.perturbation_key is not None, options.control)
    return design


def _source(obs: pd.DataFrame, totals: np.ndarray, options: ReadOptions) -> dict[str, Any]:
    """What is noted of options about the values, and the size factor that could be named."""
    known = options.continuous or options.size_factor_key is not None
    return {
        "continuous": options.continuous,
        "size_factor_key": options.size_factor_key,
        "size_factor_suggestion": None if known else _suggest_size_factor(obs, totals),
        "dosage_key": options.dosage_key,
    }


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
    """What reading the labels of a column by itself says, or why it cannot be read."""

    notes: list[str]
    warnings: list[str]
    covariates: list[str]  # those that are proposed
    problem: str


def said_of_labels(obs: pd.DataFrame, key: str) -> Said:
    """What `read_h5ad` says of this column when nothing but it is named; counts are not read."""
    try:
        design = dosages_of_labels(obs, key, ReadOptions())
    except DataError as error:
        return Said([], [], [], str(error))
    conditions = conditions_of(design.dosages, design.perturbations, design.control)
    notes = key_notes(obs, key, False, None) + design.notes
    notes += column_notes(obs, key, ReadOptions(), design.dosages.getnnz(axis=1))
    columns = audit(obs, conditions, design.control, {key})
    warnings = warnings_of(conditions, design.control, columns)
    return Said(notes, warnings, proposed(columns), "")


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
