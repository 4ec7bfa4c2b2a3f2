"""Reads .h5ad files: counts, labels of perturbations and their dosages, with every failure told.

A label "A+B" becomes a row of dosages with a one for A and for B; control cells are rows of zeros.
What was found, chosen or left alone on the way is told in `CellData.source`, never done silently.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import CellData, DataError, constant_genes, nearest, some
from samsvae_core.data.columns import column_notes, warnings_of
from samsvae_core.data.disk_csr import (
    VALUES_AT_ONCE,
    check_room,
    in_memory,
    index_type,
    on_disk,
    row_blocks,
    size_of,
)
from samsvae_core.data.gene_names import INDEX, GeneNames, lacks_names, name_genes
from samsvae_core.data.hdf5_checks import (
    DENSEST,
    EMPTIEST,
    SMALL,
    check_size,
    names_in,
    opened,
    read_element,
    told,
    too_dense,
)
from samsvae_core.data.labels import (
    PERTURBATION_KEYS,
    Control,
    by_frequency,
    candidates_note,
    check_column,
    check_controls,
    control_labels,
    guides_note,
    key_notes,
    label_notes,
    no_control,
    of_pandas,
    parts_of,
    perturbation_key_of,
    targets_of,
    texts_of,
    understood,
)
from samsvae_core.genesets.symbols import are_row_numbers
from samsvae_core.system.files import cache_folder
from samsvae_core.system.machine import memory_free

# Biological replicates first, then what stands for them: batches, then parts of one experiment.
REPLICATE_KEYS = (
    *("replicate", "replicates", "replicate_id", "rep", "biorep", "bio_rep", "bio_replicate"),
    *("biological_replicate", "donor", "donor_id", "batch", "batch_id", "experiment"),
    *("gem_group", "gemgroup", "gem", "lane", "sample", "sample_id", "orig.ident"),
)
FEWEST_REPLICATES, MOST_REPLICATES = 2, 20  # of a column that is taken without being named
SIZE_FACTOR_KEYS = ("total_counts", "n_counts", "ncount_rna", "ncounts", "n_umi", "umi_count")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")
SCALARS = (str, bytes, bool, int, float, complex, np.number, np.bool_)
COLUMN_KINDS = (
    *("", "array", "string-array", "categorical"),
    *("nullable-integer", "nullable-boolean", "nullable-string-array"),
)
LARGE_DOSAGE = 10.0  # units: the model's prior of an effect is 1 per unit of dosage
SHARE = 0.25  # of the free memory that counts may take: dividing and scoring copies them
SAMPLED = 1000  # cells of a dense matrix by which its zeros are estimated
LARGEST_COUNT = 2**24  # whole numbers are exact in float32 up to here


class _Counts(NamedTuple):
    matrix: sp.csr_matrix
    genes: GeneNames
    origin: str  # "X", "layers/NAME" or "raw/X"
    notes: list[str]


class _Storage(NamedTuple):
    """Where counts are to be kept: "auto", "memory" or "disk"."""

    asked: str
    folder: Path
    say: Callable[[str], None]

    def folder_for(self, file: h5py.File, place: str) -> Path | None:
        """The folder for a matrix that is to be kept on disk, which has room for it."""
        if self.asked == "memory":
            return None
        size, free = size_of(_n_values(file, place), _most_values(file, place)), memory_free()
        if self.asked == "auto" and size <= SHARE * free:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        check_room(self.folder, size)
        self.say(
            f"Counts are kept on disk while this runs: {size / 1e9:.1f} GB in"
            f" {self.folder} ({free / 1e9:.1f} GB of memory are free)."
        )
        return self.folder


class _Design(NamedTuple):
    dosages: sp.csr_matrix
    perturbations: np.ndarray
    control: str
    source: dict[str, Any]
    notes: list[str]
    kept: np.ndarray | None  # which cells, where some are left out


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
        storage = _Storage(counts_on, scratch or cache_folder(), say)
        counts = (_values if continuous else _counts)(file, layer, gene_key, obs.index, storage)
        if dosage_key is not None and dosage_key not in obs:
            design = _design_from_table(
                file, dosage_key, obs, control, join_guides, drop_unlabelled
            )
        else:
            key = _key_or_table(file, obs, perturbation_key, control)
            design = _design_from_labels(
                obs, key, control, delimiter, dosage_key, join_guides, drop_unlabelled
            )
            design.notes[:0] = key_notes(obs, key, perturbation_key is not None, control)
    conditions = _conditions(design.dosages, design.perturbations, design.control)
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


# Tables


def table_of(file: h5py.File, name: str) -> pd.DataFrame:
    """`obs`, `var` or `raw/var` with its names as unique strings."""
    _check_encodings(file, name)
    frame = read_element(file, name)
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"{name} of {file.filename} is not a table as anndata has written since 0.7."
            " Load the file with anndata and save it again."
        )
    _check_columns(frame, name)
    for key, column in frame.items():
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufc":
            frame[key] = of_pandas(column.to_numpy())  # pandas takes no rows of other kinds
    names = pd.Index(texts_of(frame.index), dtype=object)
    kind = "cell" if name == "obs" else "gene"
    if not len(names):
        raise DataError(f"{file.filename} has no {kind}s: {name} is empty. Give a file with data.")
    if n := int((names == "").sum()):
        first = int(np.flatnonzero(names == "")[0])
        raise DataError(
            f"{n:,} {kind} names are empty or say that they are missing (row {first + 1:,} of"
            f" {name}, counted from 1); expected a name for each. Name them, or drop them, and save"
            " the file."
        )
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise DataError(
            f"{len(twice):,} {kind} names occur more than once ({some(twice)}); they must be"
            f" unique. Call adata.{name.split('/')[-1]}_names_make_unique() and save the file."
        )
    return frame.set_axis(names, axis=0)


def _check_encodings(file: h5py.File, name: str) -> None:
    """Refuse a table with a column that holds no text or number for each row; none is read."""
    with told(file, name):
        table = file[name]
        order = table.attrs.get("column-order", ())
        columns = [str(key) for key in np.ravel(order)] if isinstance(table, h5py.Group) else []
        items = {key: table[key] for key in columns if key in table}
        kinds = {key: str(item.attrs.get("encoding-type", "")) for key, item in items.items()}
        parts = {
            key: [item]
            if isinstance(item, h5py.Dataset)
            else [item[part] for part in ("codes", "values", "mask") if part in item]
            for key, item in items.items()
        }
        shapes = {key: [part.shape for part in found] for key, found in parts.items()}
        rows = table[table.attrs["_index"]].shape if columns else ()
    for key, kind in kinds.items():
        if kind not in COLUMN_KINDS:
            raise DataError(
                f"Column {key!r} of {name} is stored as {kind!r}; expected one text or number for"
                " each row. Drop it, or make it text, and save the file again."
            )
        if wrong := [shape for shape in shapes[key] if shape != rows]:
            raise DataError(
                f"Column {key!r} of {name} is of the shape {wrong[0]}, and the names of its rows"
                f" {rows}; expected one value for each. Drop it, or write the file again."
            )


def _check_columns(frame: pd.DataFrame, name: str) -> None:
    """Refuse names and columns that hold anything but one text or number for each row."""
    if twice := [str(key) for key in frame.columns[frame.columns.duplicated()]]:
        raise DataError(f"{name} has columns of the same name: {some(twice)}. Rename one of each.")
    columns = [("", pd.Series(frame.index)), *((repr(key), frame[key]) for key in frame)]
    for key, column in columns:
        where = f"Column {key} of {name}" if key else f"The names of {name}"
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        if values.dtype.kind not in "OSV":
            continue
        wrong = {type(v) for v in values if not (isinstance(v, SCALARS) or v is pd.NA or v is None)}
        if wrong or values.dtype.kind == "V":
            found = some(sorted(each.__name__ for each in wrong)) or "tables"
            raise DataError(
                f"{where} holds values of type {found}; expected one text or number for each row."
                " Drop it, or make it text, and save the file again."
            )
        if any(isinstance(v, bytes) and not _is_utf8(v) for v in values):
            raise DataError(
                f"{where} holds texts that are not UTF-8. Decode them where the file was made, and"
                " save it again."
            )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


# Genes


def gene_names(file: h5py.File, key: str | None) -> GeneNames:
    """Names of the genes of var, by the column `key` of var or raw/var, INDEX, or the best (None).

    A column of raw/var serves where var has none: its genes are found there by the index.
    """
    var = table_of(file, "var")
    if "raw/var" in file and lacks_names(var.index, _texts_of_columns(var, key), key):
        raw = table_of(file, "raw/var")
        if var.index.isin(raw.index).all() and not _counts_anew(var, raw):
            var = var.join(raw[raw.columns.difference(var.columns)])
    return name_genes(var.index, _texts_of_columns(var, key), key)


def has_gene_key(path: Path | str, key: str) -> bool:
    """Whether the genes of a file can be named by `key`: a column of var or raw/var, or INDEX."""
    with opened(Path(path)) as file:
        tables = [table_of(file, place) for place in ("var", "raw/var") if place in file]
    return key == INDEX or any(key in table for table in tables)


def _genes_of_raw(file: h5py.File, key: str | None) -> tuple[GeneNames, np.ndarray | None]:
    """Names of the genes of raw/X, and its columns where only those of var are kept.

    raw/X also has the genes that were left out since. Those of var are found by the index, or by
    name where var numbers its genes anew: gene 5 of either is another one then.
    """
    var, raw = table_of(file, "var"), table_of(file, "raw/var")
    if var.index.isin(raw.index).all() and not _counts_anew(var, raw):
        return gene_names(file, key), raw.index.get_indexer(var.index)
    theirs = name_genes(raw.index, _texts_of_columns(raw, key), key)
    if not _counts_anew(var, raw):
        return theirs, None
    ours = gene_names(file, key if key in var else None)
    columns = pd.Index(theirs.names).get_indexer(pd.Index(ours.names))
    if INDEX in (ours.key, theirs.key) or (columns < 0).any():
        note = (
            "The rows of var and of raw/var are both numbered from the start, so it cannot be told"
            f" which genes var keeps: all {len(raw):,} of raw/X are read."
        )
        return theirs._replace(notes=[*theirs.notes, note]), None
    return ours, columns


def _counts_anew(var: pd.DataFrame, raw: pd.DataFrame) -> bool:
    """Whether the numbers of var are those of its own rows, and not those of rows of raw/var."""
    if len(var) >= len(raw) or not are_row_numbers(raw.index):
        return False
    return any(var.index.tolist() == [str(n + i) for i in range(len(var))] for n in (0, 1))


def _texts_of_columns(var: pd.DataFrame, key: str | None) -> dict[str, np.ndarray]:
    """The columns that may name genes; fractions and flags do not, unless they are asked for."""
    columns = {
        str(name): column
        for name, column in var.loc[:, ~var.columns.duplicated()].items()
        if name == key or column.dtype.kind not in "fb"
    }
    return {name: texts_of(column) for name, column in columns.items()}


# Counts


def _counts(
    file: h5py.File, layer: str | None, gene_key: str | None, cells: pd.Index, storage: _Storage
) -> _Counts:
    """The first matrix of raw counts among X, layers/counts and raw/X; only `layer` if given."""
    layers = _layers(file, layer)
    panel = gene_names(file, gene_key)
    problems: list[str] = []
    for place in ["X", "layers/counts", "raw/X"] if layer is None else [f"layers/{layer}"]:
        if place not in file:
            problems.append(f"There is no {place}.")
            continue
        kept, columns, genes = panel, None, pd.Index(panel.names)
        if place == "raw/X":
            kept, columns = _genes_of_raw(file, gene_key)
            genes = table_of(file, "raw/var").index if columns is not None else pd.Index(kept.names)
        folder = storage.folder_for(file, place)
        faults = _Faults(COUNT_FAULTS, cells, genes)
        blocks = faults.sound(_blocks(file, place, (len(cells), len(genes))))
        if columns is not None:
            blocks = (block[:, columns].sorted_indices() for block in blocks)
        matrix = _joined(blocks, len(kept.names), folder, file, place)
        if faults.n:
            what, n, where = faults.worst()
            problems.append(
                f"{place} has {n:,} values that are {what} ({where}); expected raw counts, whole"
                f" numbers of 0 or more.{faults.guess}"
            )
            continue
        if not matrix.nnz:
            problems.append(f"{place} holds no count but 0: no gene is detected in any cell.")
            continue
        notes = [f"Counts are taken from {place}. {problems[0]}"] if problems else []
        return _Counts(matrix, kept, place, notes)
    raise DataError(
        f"{problems[0]} Put raw counts into X, or name the layer that holds them with --layer"
        f" (layers here: {some(layers, 10) or 'none'}). Values that are not counts can be modelled"
        " as they are with --likelihood gaussian."
    )


def _values(
    file: h5py.File, layer: str | None, gene_key: str | None, cells: pd.Index, storage: _Storage
) -> _Counts:
    """X, or `layer` if given, as it is: any finite numbers."""
    layers = _layers(file, layer)
    place = "X" if layer is None else f"layers/{layer}"
    if place not in file:
        raise DataError(
            f"There is no {place}. Name the layer that holds the values with --layer (layers here:"
            f" {some(layers, 10) or 'none'})."
        )
    genes = gene_names(file, gene_key)
    n_genes, folder = len(genes.names), storage.folder_for(file, place)
    faults = _Faults(VALUE_FAULTS, cells, genes.names)
    blocks = map(_single, _blocks(file, place, (len(cells), n_genes)))
    matrix = _joined(faults.sound(blocks), n_genes, folder, file, place)
    if faults.n:
        what, n, where = faults.worst()
        raise DataError(
            f"{place} has {n:,} values that are {what} ({where}); expected finite numbers. Replace"
            " them, or drop these cells or genes."
        )
    if not matrix.nnz:
        raise DataError(f"{place} holds no value but 0. Name another layer with --layer.")
    return _Counts(matrix, genes, place, [])


def _layers(file: h5py.File, layer: str | None) -> list[str]:
    """Names of the layers, `layer` among them."""
    layers = names_in(file, "layers")
    if layer is not None and layer not in layers:
        raise DataError(f"There is no layer {layer!r}. {nearest(layer, layers)}")
    return layers


class _Stored(NamedTuple):
    """How a matrix is stored: by rows ("csr"), by columns ("csc") or "dense", and its arrays."""

    layout: str
    shape: tuple[int, ...]
    arrays: dict[str, h5py.Dataset]  # data of all, indices and indptr of sparse ones
    n_values: int
    size: int  # bytes in the file


LAYOUTS = {"csr_matrix": "csr", "csc_matrix": "csc"}
VERSIONS = {"csr": "0.1.0", "csc": "0.1.0", "dense": "0.2.0"}


def _stored(file: h5py.File, place: str) -> _Stored:
    """What is stored as a matrix, nothing of it read. DataError for what is none."""
    with told(file, place):
        item = file[place]
        encoding, version = (
            str(item.attrs.get(f"encoding-{of}", "")) for of in ("type", "version")
        )
    is_dense = isinstance(item, h5py.Dataset)
    layout = "dense" if is_dense and encoding in ("", "array") else LAYOUTS.get(encoding)
    names = ("data",) if is_dense else ("data", "indices", "indptr")
    if layout is None or is_dense != (layout == "dense"):
        raise DataError(
            f"{place} is stored as {encoding or 'a group without a type'!r}; expected a dense or"
            " sparse matrix of numbers (CSR or CSC). Convert it and save the file again."
        )
    if version not in ("", VERSIONS[layout]):
        raise DataError(
            f"{place} is stored in version {version!r} of its format; expected"
            f" {VERSIONS[layout]!r}. Load it where it was made and save it for this version."
        )
    check_size(file, place, whole=False, densest=EMPTIEST if is_dense else DENSEST)
    with told(file, place):
        arrays = {"data": item} if is_dense else {name: item[name] for name in names}
        kinds = {name: array.dtype for name, array in arrays.items()}
        shape = (item.shape or ()) if is_dense else tuple(int(n) for n in item.attrs["shape"])
        n_values = int(arrays["data"].size or 0)
        size = sum(int(array.id.get_storage_size()) for array in arrays.values())
        are_lists = all(array.ndim == 1 for array in arrays.values())
    if not is_dense and not are_lists:
        raise _damaged(place, "data, indices and indptr are not lists")
    kind = kinds["data"]
    if kind.kind not in "biuf" or h5py.check_enum_dtype(kind) is not None:
        raise DataError(f"{place} holds values of type {kind}; expected numbers.")
    return _Stored(layout, shape, arrays, n_values, size)


def _n_values(file: h5py.File, place: str) -> int:
    """Values other than 0 of a matrix, as many as are stored, or estimated where all are."""
    stored = _stored(file, place)
    values = stored.arrays["data"]
    if stored.layout != "dense" or len(stored.shape) != 2:
        return stored.n_values
    n_rows = min(SAMPLED, max(1, VALUES_AT_ONCE // max(1, stored.shape[1])))
    with told(file, place):
        first = values[:n_rows]
    share = np.count_nonzero(first) / max(1, first.size)
    return int(stored.n_values * share)


def _most_values(file: h5py.File, place: str) -> int:
    """Values of a matrix that may have to be stored."""
    return _stored(file, place).n_values


def _blocks(file: h5py.File, place: str, shape: tuple[int, int]) -> Iterator[sp.csr_matrix]:
    """A matrix, some rows at a time; as one block where it is stored by columns."""
    stored = _stored(file, place)
    if stored.shape != shape:
        raise DataError(f"{place} is {stored.shape}; expected {shape}. Write the file again.")
    read = {"dense": _dense_blocks, "csr": _row_blocks, "csc": _column_blocks}[stored.layout]
    most = SMALL + DENSEST * stored.size
    taken = 0
    for block in read(file, place, stored):
        taken += size_of(block.nnz, shape[1])
        if taken > most:
            raise too_dense(file, place, taken, stored.size)
        yield block


def _dense_blocks(file: h5py.File, place: str, stored: _Stored) -> Iterator[sp.csr_matrix]:
    n_rows, n_columns = stored.shape
    values = stored.arrays["data"]
    with told(file, place):  # its pieces are unpacked as wholes: once each, if kept until used
        piece = values.chunks or (1, 1)
        across = -(-n_columns // max(1, piece[1])) * piece[1]
        band = piece[0] * across * values.dtype.itemsize
    if band > SMALL + DENSEST * stored.size:
        raise too_dense(file, place, band, stored.size)
    with told(file, place):
        access = values.id.get_access_plist()
        access.set_chunk_cache(521, max(2**20, band), 1.0)
        values = h5py.Dataset(h5py.h5d.open(file.id, place.encode(), access))
    size = max(1, VALUES_AT_ONCE // max(1, n_columns))
    for first in range(0, n_rows, size):
        with told(file, place):
            rows = values[first : first + size]
        yield _sparse(rows)


def _row_blocks(file: h5py.File, place: str, stored: _Stored) -> Iterator[sp.csr_matrix]:
    data, indices = stored.arrays["data"], stored.arrays["indices"]
    starts = _starts(file, place, stored)
    for rows in row_blocks(starts):
        own = starts[rows.start : rows.stop + 1]
        part = slice(int(own[0]), int(own[-1]))
        with told(file, place):
            values, columns = data[part], indices[part]
        yield _checked(place, values, columns, own - own[0], stored.shape[1])


def _column_blocks(file: h5py.File, place: str, stored: _Stored) -> Iterator[sp.csr_matrix]:
    starts = _starts(file, place, stored)
    check_size(file, place)
    with told(file, place):
        values, rows = stored.arrays["data"][:], stored.arrays["indices"][:]
    yield _checked(place, values, rows, starts, stored.shape[0]).T.tocsr()


def _starts(file: h5py.File, place: str, stored: _Stored) -> np.ndarray:
    """Where the lines of a sparse matrix start, as int64, checked against what is stored."""
    n_lines = stored.shape[1 if stored.layout == "csc" else 0]
    with told(file, place):
        n_values, n_indices = (len(stored.arrays[name]) for name in ("data", "indices"))
        found = stored.arrays["indptr"][:]
    if found.dtype.kind not in "iu" or stored.arrays["indices"].dtype.kind not in "iu":
        raise _damaged(place, "its indices are not whole numbers")
    if len(found) != n_lines + 1 or n_indices != n_values:
        raise _damaged(
            place,
            f"it has {len(found):,} starts of {n_lines:,} lines, and {n_indices:,} indices of"
            f" {n_values:,} values",
        )
    starts = found.astype(np.int64)  # what is too large becomes negative
    if starts[0] != 0 or starts[-1] > n_values or (np.diff(starts) < 0).any():
        raise _damaged(place, "its starts do not go up to the number of values")
    if starts[-1] < n_values:
        raise _damaged(
            place,
            f"{n_values:,} values are stored, and {int(starts[-1]):,} of them belong to a line",
        )
    return starts


def _checked(
    place: str, values: np.ndarray, others: np.ndarray, starts: np.ndarray, n_others: int
) -> sp.csr_matrix:
    """Lines of a sparse matrix, each place in them once, in order and without stored zeros.

    Indices that lead out of it would crash SciPy.
    """
    if len(others) and not 0 <= int(others.min()) <= int(others.max()) < n_others:
        raise _damaged(place, f"an index is none of 0 to {n_others - 1:,}")
    index = index_type(max(len(values), n_others))
    arrays = (_native(values), others.astype(index), starts.astype(index))
    lines = sp.csr_matrix(arrays, shape=(len(starts) - 1, n_others))
    lines.sum_duplicates()
    if twice := len(values) - lines.nnz:
        raise DataError(
            f"{place} stores {twice:,} values for a cell and a gene that have one already; expected"
            " one for each. Whoever made the file knows whether they are to be added or dropped: do"
            " so there (sum_duplicates adds them), and save it again."
        )
    lines.eliminate_zeros()
    return lines


def _sparse(rows: np.ndarray) -> sp.csr_matrix:
    return sp.csr_matrix(_native(rows))


def _native(values: np.ndarray) -> np.ndarray:
    """Numbers of a type that SciPy has: it knows no float16, and no order of bytes but its own."""
    small = values.dtype.kind == "b" or (values.dtype.itemsize == 2 and values.dtype.kind == "f")
    return values.astype(np.float32 if small else values.dtype.newbyteorder("="), copy=False)


def _damaged(place: str, why: str) -> DataError:
    return DataError(f"{place} is damaged: {why}. Fetch or write it again.")


def _joined(
    blocks: Iterable[sp.csr_matrix], n_columns: int, folder: Path | None, file: h5py.File, name: str
) -> sp.csr_matrix:
    """The blocks as one matrix in single precision."""
    single = map(_single, blocks)
    if folder is None:
        return in_memory(single, n_columns)
    return on_disk(single, n_columns, folder, _most_values(file, name))


def _matrix(file: h5py.File, place: str) -> sp.csr_matrix:
    """A matrix of obsm, in double precision: of any number of columns."""
    shape = _stored(file, place).shape
    if len(shape) != 2:
        raise DataError(f"{place} is {shape}; expected cells x columns. Write the file again.")
    blocks = _blocks(file, place, (shape[0], shape[1]))
    return in_memory((block.astype(np.float64) for block in blocks), shape[1])


def _single(block: sp.csr_matrix) -> sp.csr_matrix:
    with np.errstate(over="ignore"):
        return block.astype(np.float32, copy=False)


COUNT_FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "missing or infinite": lambda x: ~np.isfinite(x),
    "negative": lambda x: x < 0,
    "not whole numbers": lambda x: x != np.rint(x),
    f"larger than {LARGEST_COUNT:,}": lambda x: x > LARGEST_COUNT,
}
VALUE_FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "missing, infinite or too large for single precision": lambda x: ~np.isfinite(x)
}


class _Faults:
    """What is wrong with stored values, block by block, with the first three places of each."""

    def __init__(
        self, kinds: Mapping[str, Callable[[np.ndarray], np.ndarray]], cells: pd.Index, genes: Any
    ) -> None:
        self.kinds, self.cells, self.genes = kinds, cells, genes
        self.n: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {what: [] for what in kinds}
        self.guess = ""

    def sound(self, blocks: Iterable[sp.csr_matrix]) -> Iterator[sp.csr_matrix]:
        """The blocks up to the first that is not sound; those after it are looked at, too."""
        first = 0
        for block in blocks:
            found_before = bool(self.n)
            for what, is_bad in self.kinds.items():
                bad = is_bad(block.data)
                if n := int(bad.sum()):
                    self.n[what] += n
                    self.examples[what] += self._places(block, bad, first)
            if self.n and not found_before:
                self.guess = _looks_like(block)
            first += block.shape[0]
            if not self.n:
                yield block

    def _places(self, block: sp.csr_matrix, bad: np.ndarray, first: int) -> list[str]:
        at = np.flatnonzero(bad)[:3]
        rows = first + np.searchsorted(block.indptr, at, side="right") - 1
        genes = self.genes[block.indices[at]]
        where = zip(self.cells[rows], genes, block.data[at], strict=True)
        return [f"cell {cell}, gene {gene}: {x:g}" for cell, gene, x in where]

    def worst(self) -> tuple[str, int, str]:
        """The first kind that was found, how often, and where."""
        what = next(what for what in self.kinds if self.n[what])
        return what, self.n[what], "; ".join(self.examples[what][:3])


def _looks_like(matrix: sp.csr_matrix) -> str:
    """A guess at what was done to counts that are no counts any more."""
    data = matrix.data
    if not np.isfinite(data).all() or (data == np.rint(data)).all():
        return ""
    if data.min() < 0:
        return " It looks scaled (z-scores)."
    sums = {"normalised": matrix.sum(1)}
    if data.max() < 20:  # the logarithm of half a billion counts
        sums["log-normalised"] = matrix.expm1().sum(1)
    for how, total in sums.items():
        total = np.asarray(total)[np.asarray(total) > 0]
        if len(total) > 1 and total.std() < 0.01 * total.mean():
            return f" It looks {how} to about {total.mean():,.0f} per cell."
    return " It looks log-transformed." if len(sums) > 1 else ""


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


# Labels


def _key_or_table(file: h5py.File, obs: pd.DataFrame, key: str | None, control: Control) -> str:
    """The column of perturbations; where there is none, the message offers a table of obsm."""
    try:
        return perturbation_key_of(obs, key, control)
    except DataError as error:
        if key is None and (table := guide_table(file)):
            raise DataError(
                f"{error} The table obsm[{table!r}] has a column for each guide or perturbation:"
                f" --dosage-key {table} reads it."
            ) from error
        raise


def guide_table(file: h5py.File) -> str:
    """A table of obsm that is named as guides are, or has columns of controls; "" if none is."""
    usual = {name for group in PERTURBATION_KEYS for name in group}
    for name in names_in(file, "obsm"):
        with told(file, f"obsm/{name}"):
            attributes = file[f"obsm/{name}"].attrs
            order = np.ravel(attributes["column-order"]) if "column-order" in attributes else None
        if order is None:
            continue
        columns = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in order]
        if name.lower() in usual or control_labels(columns):
            return name
    return ""


class Said(NamedTuple):
    """What reading the labels of a column by itself says: notes, warnings, or why it cannot."""

    notes: list[str]
    warnings: list[str]
    problem: str


def said_of_labels(obs: pd.DataFrame, key: str) -> Said:
    """What `read_h5ad` says of this column when nothing but it is named; counts are not read."""
    try:
        design = _design_from_labels(obs, key, None, None, None, False, None)
    except DataError as error:
        return Said([], [], str(error))
    conditions = _conditions(design.dosages, design.perturbations, design.control)
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


def _design_from_labels(
    obs: pd.DataFrame,
    key: str,
    control: Control,
    delimiter: str | None,
    dosage_key: str | None,
    join_guides: bool,
    drop_unlabelled: bool | None,
) -> _Design:
    labels, where = texts_of(obs[key]), f"column {key!r}"
    every = by_frequency(labels)
    check_controls([label for label in every if label], control, where)
    meant = understood(every, control, delimiter, drop_unlabelled)
    frequent, controls = meant.known, meant.controls
    nameless = np.isin(labels, list(meant.unassigned))
    if drop_unlabelled is None and (labels == "").any():
        raise DataError(
            f"{(labels == '').sum():,} cells have no label in {where}"
            f" ({some(obs.index[labels == ''])}). Leave them out with --drop-unlabelled, or take"
            " them as control cells with --unlabelled-as-control."
        )
    notes = _unassigned_notes(labels, nameless, drop_unlabelled)
    if drop_unlabelled is not None and nameless.any():
        labels = np.where(nameless, "", labels)
    kept = ~nameless if drop_unlabelled and nameless.any() else None
    if not controls and not (drop_unlabelled is False and nameless.any()):
        raise DataError(no_control(frequent, key))
    given, delimiter = delimiter is not None, meant.delimiter
    known, listed = set(frequent), set(controls)
    parts = {label: parts_of(label, known, listed, delimiter) for label in frequent}
    notes += label_notes(parts, controls, delimiter, given)
    if not frequent or all(not any(each) for each in parts.values()):
        raise DataError(f"Every cell of {where} is a control; expected perturbed ones too.")
    targets = targets_of({part for each in parts.values() for part in each if part})
    notes += guides_note(targets, join_guides)
    if join_guides:
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
    notes += _dosage_notes(dosages)
    if n := sum(any(parts[label]) and not row for label, row in zip(labels, rows, strict=True)):
        notes.append(f"{n:,} cells have dosage 0 and count as control.")
    source = {
        "perturbation_key": key,
        "control_labels": controls,
        "delimiter": delimiter,
        "join_guides": join_guides,
        "drop_unlabelled": drop_unlabelled,
    }
    return _Design(dosages, perturbations, meant.control, source, notes, kept)


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


# Dosages


def _doses(
    obs: pd.DataFrame,
    key: str | None,
    labels: np.ndarray,
    parts: Mapping[str, list[str]],
    delimiter: str,
) -> list[tuple[float, ...]]:
    """For each cell a dosage for each part of its label; 1 where no column is given."""
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
    """Dosages of a label's parts; nothing where `text` does not say them."""
    n_parts = len(parts)
    if not any(parts):  # what stands beside a control cell does not matter
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
    """Perturbation to dosage; of a perturbation named twice the larger dosage."""
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


def _dosage_notes(dosages: sp.csr_matrix) -> list[str]:
    largest = dosages.data.max(initial=0)
    if largest <= LARGE_DOSAGE:
        return []
    return [f"Dosages go up to {largest:g}; the model expects about 1: divide them by a usual one."]


def _design_from_table(
    file: h5py.File,
    key: str,
    obs: pd.DataFrame,
    control: Control,
    join_guides: bool,
    drop_unlabelled: bool | None,
) -> _Design:
    """Dosages as a table of obsm has them.

    Cells with control columns alone are controls, and cells without any column are not assigned;
    where no column is a control, they are the controls.
    """
    given, names = _dosage_table(file, key, obs)
    where = f"obsm[{key!r}]"
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"Columns of {where} need different names; found {some(names, 6)}.")
    if given.shape != (len(obs), len(names)):
        raise DataError(
            f"{where} is {given.shape}; expected {(len(obs), len(names))}. Write the file again."
        )
    bad = np.unique(given.nonzero()[0][~((given.data >= 0) & np.isfinite(given.data))])
    if len(bad):
        raise DataError(
            f"{where} has negative or missing dosages in {len(bad):,} cells; dosages must be"
            f" numbers of 0 or more. Drop or recode cells {some(obs.index[bad])}."
        )
    check_controls(names.tolist(), control, where)
    controls = control_labels(names.tolist(), control)
    is_control = np.isin(names, controls)
    perturbing = given[:, ~is_control]
    empty = given.getnnz(axis=1) == 0
    alone = (perturbing.getnnz(axis=1) == 0) & ~empty
    drop = bool(controls) if drop_unlabelled is None else drop_unlabelled
    n_controls = int((alone | (empty & (not drop))).sum())
    n_kept = len(obs) - int(empty.sum() if drop else 0)
    if n_controls in (0, n_kept):
        raise DataError(_no_table_control(where, controls, n_controls, empty, n_kept))
    notes = _table_notes(where, names, controls, empty, drop)
    targets = targets_of(names[~is_control])
    notes += guides_note(targets, join_guides)
    names = names[~is_control]
    if join_guides:
        perturbing, names = _joined_columns(perturbing, [targets.get(x, x) for x in names])
    order = np.argsort(names)
    dosages, names = perturbing[:, order], names[order]
    used = dosages.getnnz(axis=0) > 0
    if not used.all():
        notes.append(f"{(~used).sum():,} columns of {where} have no cell: {some(names[~used])}.")
    return _Design(
        dosages[:, used].sorted_indices().astype(np.float32),
        names[used].astype(str),
        "control",
        {
            "perturbation_key": None,
            "control_labels": controls,
            "delimiter": "",
            "join_guides": join_guides,
            "drop_unlabelled": drop if empty.any() else drop_unlabelled,
        },
        [*notes, *_dosage_notes(dosages)],
        ~empty if drop and empty.any() else None,
    )


def _no_table_control(
    where: str, controls: list[str], n_controls: int, empty: np.ndarray, n_cells: int
) -> str:
    """What to say where a table gives no control cells, or no others; of the cells that stay."""
    if n_controls:
        return (
            f"{where} has {n_controls:,} control cells among the {n_cells:,} cells that are read;"
            " expected perturbed cells as well."
            + (
                f" Look at which columns are controls ({some(controls, 6)}), and name the right"
                " ones with --control."
                if controls
                else " No cell has a dosage above 0: name another table with --dosage-key."
            )
        )
    if empty.any():
        return (
            f"{where} has no control cells: no cell has control columns alone"
            f" ({some(controls) or 'none is one'}), and the {empty.sum():,} cells without any"
            " column would be left out. --unlabelled-as-control takes these as controls."
        )
    if controls:
        return (
            f"{where} has no control cells: every cell has a column that is no control, as at a"
            f" high multiplicity, beside control columns ({some(controls)}) or without them."
            " Training without control cells is not supported yet."
        )
    return (
        f"{where} has no control cells: every cell has a perturbation, and no column is named as a"
        " control. If some columns are controls, such as non-targeting guides, name them with"
        " --control; a pattern such as '*scrambled*' means several. Training without control"
        " cells is not supported yet."
    )


def _table_notes(
    where: str, names: np.ndarray, controls: list[str], empty: np.ndarray, drop: bool
) -> list[str]:
    notes = []
    if controls:
        notes.append(
            f"{len(controls):,} columns of {where} are taken as control, and cells with these alone"
            f" as control cells: {some(controls)}."
        )
    notes += candidates_note(names.tolist(), controls)
    if n := int(empty.sum()):
        begin = f"{n:,} cells without any perturbation in {where} are"
        if drop:
            notes.append(
                f"{begin} not assigned, and left out. --unlabelled-as-control takes them as control"
                " cells."
            )
        else:
            notes.append(
                f"{begin} taken as control cells. If their guides were only missed, name columns of"
                " controls with --control; --drop-unlabelled leaves these cells out then."
            )
    return notes


def _joined_columns(dosages: sp.csr_matrix, targets: list[str]) -> tuple[sp.csr_matrix, np.ndarray]:
    """A column for each target, with the largest dosage of its guides."""
    names, place = np.unique(np.array(targets, dtype=object).astype(str), return_inverse=True)
    table = dosages.tocoo()
    largest = (
        pd.DataFrame({"cell": table.row, "target": place[table.col], "dose": table.data})
        .groupby(["cell", "target"], as_index=False)["dose"]
        .max()
    )
    shape = (dosages.shape[0], len(names))
    joined = sp.csr_matrix((largest["dose"], (largest["cell"], largest["target"])), shape=shape)
    return joined, names


def _dosage_table(file: h5py.File, key: str, obs: pd.DataFrame) -> tuple[sp.csr_matrix, np.ndarray]:
    """The table of obsm and the names of its columns."""
    known = names_in(file, "obsm")
    if key not in known:
        raise DataError(
            f"Neither obs nor obsm has {key!r}, given as --dosage-key."
            f" {nearest(key, [*obs.columns, *known])}"
        )
    place = f"obsm/{key}"
    with told(file, place):
        is_frame = file[place].attrs.get("encoding-type") == "dataframe"
    if is_frame:
        frame = read_element(file, place)
        if odd := [name for name in frame if not _is_number(frame[name])]:
            raise DataError(
                f"Columns of obsm[{key!r}] are no numbers: {some(odd)}. Drop them, or make them"
                " numbers, and save the file again."
            )
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
        return sp.csr_matrix(values), texts_of(frame.columns)
    if f"{key}_names" in names_in(file, "uns"):
        names = np.ravel(read_element(file, f"uns/{key}_names"))
        _check_columns(pd.DataFrame(index=pd.Index(names)), f"uns[{key + '_names'!r}]")
        return _matrix(file, place), texts_of(pd.Index(names))
    raise DataError(
        f"obsm[{key!r}] does not name its columns. Store it as a DataFrame, or the names of the"
        f" perturbations as uns[{key + '_names'!r}]."
    )


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "biuf"


def _conditions(dosages: sp.csr_matrix, perturbations: np.ndarray, control: str) -> np.ndarray:
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
