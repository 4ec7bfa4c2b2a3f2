"""A dense or sparse matrix in an HDF5 file, read by blocks of rows or columns."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import scipy.sparse as sp

from samsvae_core.data.cells import DataError
from samsvae_core.data.disk_csr import (
    VALUES_AT_ONCE,
    check_room,
    in_memory,
    index_type,
    on_disk,
    row_blocks,
    size_of,
)
from samsvae_core.data.hdf5_checks import (
    DENSEST,
    EMPTIEST,
    SMALL,
    as_data_error,
    check_size,
    too_dense,
)
from samsvae_core.system.machine import memory_free

SHARE = 0.25  # of the free memory that counts may take, as splitting and scoring copy them
SAMPLED = 1000  # cells of a dense matrix from which its zeros are estimated


class Storage(NamedTuple):
    """Where counts are kept: "auto", "memory" or "disk"."""

    asked: str
    folder: Path
    say: Callable[[str], None]

    def folder_for(self, file: h5py.File, place: str) -> Path | None:
        """Return the folder for a matrix kept on disk, after checking its room; None for memory."""
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


class Stored(NamedTuple):
    """How a matrix is stored: by rows ("csr"), by columns ("csc") or "dense", with its arrays."""

    layout: str
    shape: tuple[int, ...]
    arrays: dict[str, h5py.Dataset]  # data; for sparse ones also indices and indptr
    n_values: int
    size: int  # bytes in the file


LAYOUTS = {"csr_matrix": "csr", "csc_matrix": "csc"}
VERSIONS = {"csr": "0.1.0", "csc": "0.1.0", "dense": "0.2.0"}


def as_stored(file: h5py.File, place: str) -> Stored:
    """Return how a matrix is stored, without reading it; raises DataError if it is not a matrix."""
    with as_data_error(file, place):
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
    with as_data_error(file, place):
        arrays = {"data": item} if is_dense else {name: item[name] for name in names}
        kinds = {name: array.dtype for name, array in arrays.items()}
        shape = (item.shape or ()) if is_dense else tuple(int(n) for n in item.attrs["shape"])
        n_values = int(arrays["data"].size or 0)
        size = sum(int(array.id.get_storage_size()) for array in arrays.values())
        are_lists = all(array.ndim == 1 for array in arrays.values())
    if not is_dense and not are_lists:
        raise damaged(place, "data, indices and indptr are not lists")
    kind = kinds["data"]
    if kind.kind not in "biuf" or h5py.check_enum_dtype(kind) is not None:
        raise DataError(f"{place} holds values of type {kind}; expected numbers.")
    return Stored(layout, shape, arrays, n_values, size)


def _n_values(file: h5py.File, place: str) -> int:
    """Return the number of nonzero values; estimated from the first rows for a dense matrix."""
    stored = as_stored(file, place)
    values = stored.arrays["data"]
    if stored.layout != "dense" or len(stored.shape) != 2:
        return stored.n_values
    n_rows = min(SAMPLED, max(1, VALUES_AT_ONCE // max(1, stored.shape[1])))
    with as_data_error(file, place):
        first = values[:n_rows]
    share = np.count_nonzero(first) / max(1, first.size)
    return int(stored.n_values * share)


def _most_values(file: h5py.File, place: str) -> int:
    """Return the largest number of values of a matrix that may have to be kept."""
    return as_stored(file, place).n_values


def blocks_of(file: h5py.File, place: str, shape: tuple[int, int]) -> Iterator[sp.csr_matrix]:
    """Yield a matrix by blocks of rows, or as one block if it is stored by columns."""
    stored = as_stored(file, place)
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


def _dense_blocks(file: h5py.File, place: str, stored: Stored) -> Iterator[sp.csr_matrix]:
    n_rows, n_columns = stored.shape
    values = stored.arrays["data"]
    with as_data_error(
        file, place
    ):  # a cache of one row of chunks decompresses each chunk only once
        piece = values.chunks or (1, 1)
        across = -(-n_columns // max(1, piece[1])) * piece[1]
        band = piece[0] * across * values.dtype.itemsize
    if band > SMALL + DENSEST * stored.size:
        raise too_dense(file, place, band, stored.size)
    with as_data_error(file, place):
        access = values.id.get_access_plist()
        access.set_chunk_cache(521, max(2**20, band), 1.0)
        values = h5py.Dataset(h5py.h5d.open(file.id, place.encode(), access))
    size = max(1, VALUES_AT_ONCE // max(1, n_columns))
    for first in range(0, n_rows, size):
        with as_data_error(file, place):
            rows = values[first : first + size]
        yield _sparse(rows)


def _row_blocks(file: h5py.File, place: str, stored: Stored) -> Iterator[sp.csr_matrix]:
    data, indices = stored.arrays["data"], stored.arrays["indices"]
    starts = _starts(file, place, stored)
    for rows in row_blocks(starts):
        own = starts[rows.start : rows.stop + 1]
        part = slice(int(own[0]), int(own[-1]))
        with as_data_error(file, place):
            values, columns = data[part], indices[part]
        yield _checked(place, values, columns, own - own[0], stored.shape[1])


def _column_blocks(file: h5py.File, place: str, stored: Stored) -> Iterator[sp.csr_matrix]:
    starts = _starts(file, place, stored)
    check_size(file, place)
    with as_data_error(file, place):
        values, rows = stored.arrays["data"][:], stored.arrays["indices"][:]
    yield _checked(place, values, rows, starts, stored.shape[0]).T.tocsr()


def _starts(file: h5py.File, place: str, stored: Stored) -> np.ndarray:
    """Return where the lines of a sparse matrix start, as int64, after checking them."""
    n_lines = stored.shape[1 if stored.layout == "csc" else 0]
    with as_data_error(file, place):
        n_values, n_indices = (len(stored.arrays[name]) for name in ("data", "indices"))
        found = stored.arrays["indptr"][:]
    if found.dtype.kind not in "iu" or stored.arrays["indices"].dtype.kind not in "iu":
        raise damaged(place, "its indices are not whole numbers")
    if len(found) != n_lines + 1 or n_indices != n_values:
        raise damaged(
            place,
            f"it has {len(found):,} starts of {n_lines:,} lines, and {n_indices:,} indices of"
            f" {n_values:,} values",
        )
    starts = found.astype(np.int64)  # too large values become negative
    if starts[0] != 0 or starts[-1] > n_values or (np.diff(starts) < 0).any():
        raise damaged(place, "its starts do not go up to the number of values")
    if starts[-1] < n_values:
        raise damaged(
            place,
            f"{n_values:,} values are stored, and {int(starts[-1]):,} of them belong to a line",
        )
    return starts


def _checked(
    place: str, values: np.ndarray, others: np.ndarray, starts: np.ndarray, n_others: int
) -> sp.csr_matrix:
    """Return lines of a sparse matrix in canonical form, without stored zeros.

    Raises DataError for duplicates and for indices out of range, which would crash SciPy.
    """
    if len(others) and not 0 <= int(others.min()) <= int(others.max()) < n_others:
        raise damaged(place, f"an index is none of 0 to {n_others - 1:,}")
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
    """Return numbers in a type that SciPy supports: no float16, native byte order."""
    small = values.dtype.kind == "b" or (values.dtype.itemsize == 2 and values.dtype.kind == "f")
    return values.astype(np.float32 if small else values.dtype.newbyteorder("="), copy=False)


def damaged(place: str, why: str) -> DataError:
    return DataError(f"{place} is damaged: {why}. Fetch or write it again.")


def stacked(
    blocks: Iterable[sp.csr_matrix], n_columns: int, folder: Path | None, file: h5py.File, name: str
) -> sp.csr_matrix:
    """Return the blocks as one matrix in single precision, on disk if `folder` is given."""
    single = map(single_precision, blocks)
    if folder is None:
        return in_memory(single, n_columns)
    return on_disk(single, n_columns, folder, _most_values(file, name))


def whole_matrix(file: h5py.File, place: str) -> sp.csr_matrix:
    """Return a matrix of obsm in double precision, with any number of columns."""
    shape = as_stored(file, place).shape
    if len(shape) != 2:
        raise DataError(f"{place} is {shape}; expected cells x columns. Write the file again.")
    blocks = blocks_of(file, place, (shape[0], shape[1]))
    return in_memory((block.astype(np.float64) for block in blocks), shape[1])


def single_precision(block: sp.csr_matrix) -> sp.csr_matrix:
    with np.errstate(over="ignore"):
        return block.astype(np.float32, copy=False)
