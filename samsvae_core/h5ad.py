"""Reads .h5ad files: counts, labels of perturbations and their dosages, with every failure told.

A label "A+B" becomes a row of dosages with a one for A and for B; control cells are rows of zeros.
What was found, chosen or left alone on the way is told in `CellData.source`, never done silently.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data import CellData, DataError, constant_genes, nearest, some
from samsvae_core.files import cache_folder
from samsvae_core.h5file import (
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
from samsvae_core.machine import memory_free
from samsvae_core.mapped import (
    VALUES_AT_ONCE,
    check_room,
    in_memory,
    index_type,
    on_disk,
    row_blocks,
    size_of,
)

# The first group with a column that holds a control label decides: genes before their guides.
PERTURBATION_KEYS = (
    ("perturbation", "perturbations", "perturbation_name"),
    ("target_gene", "gene_target", "target_genes", "gene", "condition", "target", "perturb"),
    ("guide_identity", "guide_target", "guide", "guides", "guide_id", "guide_ids", "sgrna", "grna"),
)
# Biological replicates first, then what stands for them: batches, then parts of one experiment.
REPLICATE_KEYS = (
    *("replicate", "replicates", "replicate_id", "rep", "biorep", "bio_rep", "bio_replicate"),
    *("biological_replicate", "donor", "donor_id", "batch", "batch_id", "experiment"),
    *("gem_group", "gemgroup", "gem", "lane", "sample", "sample_id", "orig.ident"),
)
FEWEST_REPLICATES, MOST_REPLICATES = 2, 20  # of a column that is taken without being named
SIZE_FACTOR_KEYS = ("total_counts", "n_counts", "ncount_rna", "ncounts", "n_umi", "umi_count")
CONTROL_WORD = (
    r"(?:ntc?|ntg\d+|(?:unperturbed|untreated|scrambled?|(?:neg(?:ative)?[-_ ]?)?(?:controls?|ctrl)"
    r"|(?:non?|safe)[-_ ]?target(?:ing)?(?:[-_ ]?(?:control|ctrl))?)(?:[-_ ]?\d+)?)"
)
CONTROL = re.compile(rf"{CONTROL_WORD}(?:[+_|;,]+{CONTROL_WORD})*", re.IGNORECASE)
SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9.\-]{0,14}")
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}(\.\d+)?")
SCALARS = (str, bytes, bool, int, float, complex, np.number, np.bool_)
COLUMN_KINDS = (
    *("", "array", "string-array", "categorical"),
    *("nullable-integer", "nullable-boolean", "nullable-string-array"),
)
MISSING = {"", "nan", "NaN", "NA", "<NA>", "None"}
LARGE_DOSAGE = 10.0  # units: the model's prior of an effect is 1 per unit of dosage
SHARE = 0.25  # of the free memory that counts may take: dividing and scoring copies them
SAMPLED = 1000  # cells of a dense matrix by which its zeros are estimated
LARGEST_COUNT = 2**24  # whole numbers are exact in float32 up to here


class _Counts(NamedTuple):
    matrix: sp.csr_matrix
    genes: np.ndarray
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


def read_h5ad(
    path: Path | str,
    *,
    perturbation_key: str | None = None,
    control: str | None = None,
    delimiter: str = "+",
    size_factor_key: str | None = None,
    layer: str | None = None,
    dosage_key: str | None = None,
    replicate_key: str | None = None,
    continuous: bool = False,
    counts_on: str = "auto",
    scratch: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> CellData:
    """Cells of an .h5ad file; what is not named is looked for under the usual names.

    A label is split at `delimiter` only if every part is a label of its own, a control word or
    looks like a gene symbol. Guides of one gene are not additive: "A+A" is A at dosage 1.
    `dosage_key` names a column of obs (one number for the whole label, or "0.5+1" for its parts),
    or a table of obsm (cells x perturbations, columns named by itself or by uns["KEY_names"]) that
    replaces the labels. `replicate_key` names the column of obs with each cell's replicate.
    `continuous` takes the values of X, or of `layer`, as they are: any finite numbers, no counts,
    and no size factor goes with them. `counts_on` "disk" keeps them in files in the folder
    `scratch` (the cache folder) that go when they are no longer used, "memory" in memory, "auto"
    there if they take at most SHARE of what is free; `say` is told if on disk.
    """
    if counts_on not in ("auto", "memory", "disk"):
        raise DataError(f"--counts-on is {counts_on!r}; choose one of auto, memory, disk.")
    if continuous and size_factor_key is not None:
        raise DataError(
            f"--size-factor-key {size_factor_key} was given for values that are not counts; a size"
            " factor scales counts only. Leave it out, or read raw counts."
        )
    path = Path(path)
    with opened(path) as file:
        obs = table_of(file, "obs")
        storage = _Storage(counts_on, scratch or cache_folder(), say)
        counts = (_values if continuous else _counts)(file, layer, obs.index, storage)
        if dosage_key is not None and dosage_key not in obs:
            design = _design_from_table(file, dosage_key, obs, control)
        else:
            key = perturbation_key_of(obs, perturbation_key, control)
            design = _design_from_labels(obs, key, control, delimiter, dosage_key)
    conditions = _conditions(design.dosages, design.perturbations, design.control)
    taken = design.source["perturbation_key"]
    replicate_key = _replicate_key(obs, replicate_key, taken, conditions)
    totals = np.asarray(counts.matrix.sum(1), dtype=np.float64).ravel()
    library = totals if size_factor_key is None else _size_factor(obs, size_factor_key, totals)
    known_library = continuous or size_factor_key is not None
    source = {
        "file": path.name,
        **design.source,
        "delimiter": delimiter,
        "counts_from": counts.origin,
        "continuous": continuous,
        "size_factor_key": size_factor_key,
        "size_factor_suggestion": None if known_library else _suggest_size_factor(obs, totals),
        "dosage_key": dosage_key,
        "replicate_key": replicate_key,
        **({} if counts_on == "auto" else {"counts_on": counts_on}),
        "notes": [
            *counts.notes,
            *_matrix_notes(counts, "value" if continuous else "count"),
            *design.notes,
        ],
    }
    return CellData(
        counts=counts.matrix,
        dosages=design.dosages,
        library=np.ones(len(obs), np.float32) if continuous else library.astype(np.float32),
        cells=obs.index.to_numpy(dtype=str),
        genes=counts.genes,
        perturbations=design.perturbations,
        conditions=conditions,
        control=design.control,
        has_size_factor=bool((library > totals).any()),
        source=source,
        replicates=None if replicate_key is None else texts_of(obs[replicate_key]).astype(str),
        is_counts=not continuous,
        scratch=storage.folder if isinstance(counts.matrix.data, np.memmap) else None,
    )


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


def texts_of(values: pd.Series | pd.Index) -> np.ndarray:
    """Labels as stripped text, "" where missing."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
        values = pd.Series(_of_pandas(values.to_numpy()))
    codes, known = pd.factorize(values)  # missing is -1, the last place
    texts = [(name.decode() if isinstance(name, bytes) else str(name)).strip() for name in known]
    return np.array(["" if text in MISSING else text for text in [*texts, ""]], object)[codes]


def _of_pandas(values: np.ndarray) -> np.ndarray:
    """Numbers of a type that pandas has: of its own order of bytes, floats of 4 or 8 bytes."""
    kind = values.dtype.newbyteorder("=")
    if kind.kind == "f":
        kind = np.dtype(np.float32 if kind.itemsize <= 4 else np.float64)
    return values.astype(kind, copy=False)


# Counts


def _counts(file: h5py.File, layer: str | None, cells: pd.Index, storage: _Storage) -> _Counts:
    """The first matrix of raw counts among X, layers/counts and raw/X; only `layer` if given."""
    layers = _layers(file, layer)
    panel = table_of(file, "var").index
    problems: list[str] = []
    for place in ["X", "layers/counts", "raw/X"] if layer is None else [f"layers/{layer}"]:
        if place not in file:
            problems.append(f"There is no {place}.")
            continue
        genes = table_of(file, "raw/var").index if place == "raw/X" else panel
        columns = None
        if place == "raw/X" and panel.isin(genes).all():  # it also has the genes left out since
            columns, kept = genes.get_indexer(panel), panel
        else:
            kept = genes
        folder = storage.folder_for(file, place)
        faults = _Faults(COUNT_FAULTS, cells, genes)
        blocks = faults.sound(_blocks(file, place, (len(cells), len(genes))))
        if columns is not None:
            blocks = (block[:, columns].sorted_indices() for block in blocks)
        matrix = _joined(blocks, len(kept), folder, file, place)
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
        return _Counts(matrix, kept.to_numpy(dtype=str), place, notes)
    raise DataError(
        f"{problems[0]} Put raw counts into X, or name the layer that holds them with --layer"
        f" (layers here: {some(layers, 10) or 'none'}). Values that are not counts can be modelled"
        " as they are with --likelihood gaussian."
    )


def _values(file: h5py.File, layer: str | None, cells: pd.Index, storage: _Storage) -> _Counts:
    """X, or `layer` if given, as it is: any finite numbers."""
    layers = _layers(file, layer)
    place = "X" if layer is None else f"layers/{layer}"
    if place not in file:
        raise DataError(
            f"There is no {place}. Name the layer that holds the values with --layer (layers here:"
            f" {some(layers, 10) or 'none'})."
        )
    genes = table_of(file, "var").index
    folder = storage.folder_for(file, place)
    faults = _Faults(VALUE_FAULTS, cells, genes)
    blocks = map(_single, _blocks(file, place, (len(cells), len(genes))))
    matrix = _joined(faults.sound(blocks), len(genes), folder, file, place)
    if faults.n:
        what, n, where = faults.worst()
        raise DataError(
            f"{place} has {n:,} values that are {what} ({where}); expected finite numbers. Replace"
            " them, or drop these cells or genes."
        )
    if not matrix.nnz:
        raise DataError(f"{place} holds no value but 0. Name another layer with --layer.")
    return _Counts(matrix, genes.to_numpy(dtype=str), place, [])


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


def _matrix_notes(counts: _Counts, what: str) -> list[str]:
    """What is odd about the matrix, each of its numbers called a `what`."""
    notes, genes = [], counts.genes
    if n := int(constant_genes(counts.matrix).sum()):
        notes.append(f"{n:,} of {len(genes):,} genes have the same {what} in every cell.")
    if n := int((counts.matrix.getnnz(axis=1) == 0).sum()):
        notes.append(f"{n:,} cells have no {what} but 0 on these genes.")
    if sum(ENSEMBL.fullmatch(gene) is not None for gene in genes) > len(genes) / 2:
        notes.append("Genes are named by Ensembl ids; gene sets know human ones (ENSG) only.")
    return notes


def _size_factor(obs: pd.DataFrame, key: str, totals: np.ndarray) -> np.ndarray:
    _check_column(obs, key, "--size-factor-key")
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


def _check_column(obs: pd.DataFrame, key: str, option: str) -> None:
    if key not in obs:
        raise DataError(
            f"obs has no column {key!r}, given as {option}. {nearest(key, obs.columns)}"
        )


def perturbation_key_of(obs: pd.DataFrame, key: str | None, control: str | None) -> str:
    """The column given, or else of the usual ones the one with a control label."""
    if key is not None:
        _check_column(obs, key, "--perturbation-key")
        return key
    usual = [name for group in PERTURBATION_KEYS for name in group]
    texts = {name: texts_of(obs[name]) for name in obs.columns if str(name).lower() in usual}
    ranked = sorted(texts, key=lambda name: usual.index(name.lower()))
    for group in PERTURBATION_KEYS:
        found = {}
        for name in (name for name in ranked if name.lower() in group):
            if controls := control_labels(by_frequency(texts[name]), control):
                found[name] = np.where(np.isin(texts[name], controls), "control", texts[name])
        if any((labels != next(iter(found.values()))).any() for labels in found.values()):
            raise DataError(
                f"Several columns of obs could be the perturbations: {some(found, 10)}. They"
                " differ; choose one with --perturbation-key."
            )
        if found:
            return next(iter(found))
    if ranked:  # a message about its control cells follows
        return ranked[0]
    raise DataError(
        f"No column of obs is named as perturbations usually are ({some(usual, 6)}); found"
        f" {some(obs.columns, 10) or 'no columns'}. Name the column with --perturbation-key."
    )


def _replicate_key(
    obs: pd.DataFrame, key: str | None, perturbation_key: str | None, conditions: np.ndarray
) -> str | None:
    """The column given, or else the first of the usual ones that can tell replicates apart.

    It has a few labels, and not the same one in all cells of each condition: that names conditions.
    """
    if key is not None:
        _check_column(obs, key, "--replicate-key")
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


def by_frequency(labels: np.ndarray) -> list[str]:
    """Each label once, the most frequent first."""
    return list(pd.Series(labels).value_counts().index)


def control_labels(known: Sequence[str], control: str | None) -> list[str]:
    """The labels of control cells among those `known`, in their order."""
    if control is not None:
        return [control] if control in known else []
    return [label for label in known if CONTROL.fullmatch(label)]


def no_control(known: Sequence[str], key: str, control: str | None) -> str:
    """What to say where no label of a column is one of control cells."""
    if control is not None:
        found = f"No cell of column {key!r} is labelled {control!r}, given as --control."
        return f"{found} {nearest(control, known)}"
    return (
        f"Column {key!r} has no control cells: expected a label such as control, ctrl,"
        f" non-targeting or NT, found {some(known)}. Name the control label with --control, or"
        " another column with --perturbation-key."
    )


def _design_from_labels(
    obs: pd.DataFrame, key: str, control: str | None, delimiter: str, dosage_key: str | None
) -> _Design:
    labels = texts_of(obs[key])
    if (labels == "").any():
        raise DataError(
            f"{(labels == '').sum():,} cells have no label in column {key!r}"
            f" ({some(obs.index[labels == ''])}). Label them, or drop them from the file."
        )
    frequent = by_frequency(labels)
    controls = control_labels(frequent, control)
    if not controls:
        raise DataError(no_control(frequent, key, control))
    known = set(frequent)
    parts = {label: parts_of(label, known, controls, delimiter) for label in known}
    doses = _doses(obs, dosage_key, labels, parts, delimiter)
    rows = [_row(parts[label], dose) for label, dose in zip(labels, doses, strict=True)]
    dosages, perturbations = _dosage_matrix(rows)
    if not len(perturbations):
        raise DataError(f"Every cell of column {key!r} is a control; expected perturbed ones too.")
    notes = [*_label_notes(parts, controls, delimiter), *_dosage_notes(dosages)]
    if n := sum(any(parts[label]) and not row for label, row in zip(labels, rows, strict=True)):
        notes.append(f"{n:,} cells have dosage 0 and count as control.")
    name = control or first_word(controls[0], delimiter)
    source = {"perturbation_key": key, "control_labels": controls}
    return _Design(dosages, perturbations, name, source, notes)


def parts_of(label: str, known: set[str], controls: list[str], delimiter: str) -> list[str]:
    """The label's perturbations, "" for a control; a label that only looks composed stays whole."""
    if label in controls:
        return [""]
    parts = [part.strip() for part in label.split(delimiter)] if delimiter else [label]
    is_control = [part in controls or CONTROL.fullmatch(part) is not None for part in parts]
    named = [part for part, nothing in zip(parts, is_control, strict=True) if not nothing]
    if len(parts) == 1 or not all(part in known or SYMBOL.fullmatch(part) for part in named):
        return [label]
    return ["" if nothing else part for part, nothing in zip(parts, is_control, strict=True)]


def first_word(label: str, delimiter: str) -> str:
    """GEARS's "ctrl+ctrl" is "ctrl"; "non_targeting" stays whole."""
    words = label.split(delimiter) if delimiter else [label]
    return words[0] if all(CONTROL.fullmatch(word) for word in words) else label


def _label_notes(parts: Mapping[str, list[str]], controls: list[str], delimiter: str) -> list[str]:
    notes = []
    if len(controls) > 1:
        notes.append(f"{len(controls)} labels are taken as control: {some(controls, 10)}.")
    whole = sorted(label for label, each in parts.items() if delimiter and delimiter in each[0])
    if whole:
        notes.append(
            f"{len(whole):,} labels contain {delimiter!r} and were kept whole, as not every part is"
            f" a label or a gene symbol: {some(whole)}."
        )
    named = {label: [part for part in each if part] for label, each in parts.items()}
    twice = sorted(label for label, each in named.items() if len(each) > len(set(each)))
    if twice:
        notes.append(f"{len(twice):,} labels name a perturbation twice, used once: {some(twice)}.")
    return notes


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
    largest = dosages.max()
    if largest <= LARGE_DOSAGE:
        return []
    return [f"Dosages go up to {largest:g}; the model expects about 1: divide them by a usual one."]


def _design_from_table(
    file: h5py.File, key: str, obs: pd.DataFrame, control: str | None
) -> _Design:
    """Dosages as a table of obsm has them; cells without any are the controls."""
    table, names = _dosage_table(file, key, obs)
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"Columns of obsm[{key!r}] need different names; found {some(names, 6)}.")
    if wrong := [name for name in names if name == control or CONTROL.fullmatch(name)]:
        raise DataError(
            f"obsm[{key!r}] has a column for control ({some(wrong)}); expected perturbations only,"
            " with rows of zeros for control cells. Drop the column."
        )
    if table.shape != (len(obs), len(names)):
        raise DataError(
            f"obsm[{key!r}] is {table.shape}; expected {(len(obs), len(names))}. Write the file"
            " again."
        )
    dosages = table[:, np.argsort(names)]
    bad = np.unique(dosages.nonzero()[0][~((dosages.data >= 0) & np.isfinite(dosages.data))])
    if len(bad):
        raise DataError(
            f"obsm[{key!r}] has negative or missing dosages in {len(bad):,} cells; dosages must be"
            f" numbers of 0 or more. Drop or recode cells {some(obs.index[bad])}."
        )
    n_controls = int((dosages.getnnz(axis=1) == 0).sum())
    if n_controls in (0, len(obs)):
        raise DataError(
            f"obsm[{key!r}] has {n_controls:,} control cells (rows of zeros) among {len(obs):,};"
            " expected control cells and perturbed ones. Add those that are absent."
        )
    names, used = np.sort(names), dosages.getnnz(axis=0) > 0
    unused = f"{(~used).sum():,} columns of obsm[{key!r}] have no cell: {some(names[~used])}."
    return _Design(
        dosages[:, used].sorted_indices().astype(np.float32),
        names[used].astype(str),
        control or "control",
        {"perturbation_key": None, "control_labels": []},
        [*_dosage_notes(dosages), *([] if used.all() else [unused])],
    )


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
