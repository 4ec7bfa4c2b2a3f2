"""Sparse matrices whose arrays lie in files, for counts that do not fit in memory.

The files are unnamed, so they vanish with the matrix or the process, however it ends. Code uses
such a matrix like any csr_matrix; the operating system caches the parts in use.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import scipy.sparse as sp

from samsvae_core.system.files import OutputError

VALUES_AT_ONCE = 2**22  # stored values in a block of rows
LARGE = 2**22  # stored values above which a part of such a matrix is kept on disk too
COPIES = 3  # copies of the counts on disk at once: read, split, and their levels for scoring


def row_blocks(starts: np.ndarray, at_once: int | None = None) -> Iterator[slice]:
    """Yield slices of rows with about VALUES_AT_ONCE values each; `starts` are the row starts."""
    n_rows, first = len(starts) - 1, 0
    while first < n_rows:
        most = int(starts[first]) + (at_once or VALUES_AT_ONCE)
        last = int(np.searchsorted(starts, most, side="right")) - 1
        last = min(max(last, first + 1), n_rows)
        yield slice(first, last)
        first = last


def dense_blocks(matrix: sp.csr_matrix, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield all rows, or those at `rows`, as dense blocks."""
    n_rows = matrix.shape[0] if rows is None else len(rows)
    size = max(1, VALUES_AT_ONCE // max(1, matrix.shape[1]))
    for first in range(0, n_rows, size):
        block = slice(first, first + size)
        yield matrix[block if rows is None else rows[block]].toarray()


def index_type(most: int) -> type[np.int32 | np.int64]:
    """Return int32 if every index up to `most` fits, else int64; for columns and row starts."""
    return np.int32 if most < 2**31 else np.int64


def size_of(n_values: int, most: int) -> int:
    """Return the bytes of so many stored float32 values with their column indices."""
    return n_values * (4 + np.dtype(index_type(most)).itemsize)


def check_room(folder: Path, size: int) -> None:
    """Raise OutputError if a disk has no room for counts of this size and their copies.

    This is checked before anything is written; a disk that others fill later still ends the run.
    """
    needed, free = COPIES * size, shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"Counts that do not fit in memory are kept on disk while a run lasts: {folder} has "
            f"{free / 1e9:.1f} GB free, {needed / 1e9:.1f} are needed. Make room, or keep fewer "
            "cells or genes."
        )


def on_disk(
    blocks: Iterable[sp.csr_matrix], n_columns: int, folder: Path, most: int
) -> sp.csr_matrix:
    """Return the blocks of rows stacked into one matrix on disk, in canonical form.

    `most` is an upper bound of the number of values. Values keep the type of the first block.
    """
    index = index_type(max(most, n_columns))
    lengths, kind = [np.zeros(1, np.int64)], np.dtype(np.float32)
    with _nameless(folder) as values, _nameless(folder) as columns:
        for block in blocks:
            kind = block.dtype
            values.write(block.data.data)  # NumPy's tofile does not say that a disk is full
            columns.write(block.indices.astype(index, copy=False).data)
            lengths.append(np.diff(block.indptr))
        starts = np.cumsum(np.concatenate(lengths)).astype(index)
        matrix = sp.csr_matrix((len(starts) - 1, n_columns), dtype=kind)
        # set directly: the constructor checks every index and may copy 2^31 values
        matrix.indptr = starts
        matrix.indices = _mapped(columns, index, int(starts[-1]))
        matrix.data = _mapped(values, kind, int(starts[-1]))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def in_memory(blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
    """Return the blocks of rows stacked into one matrix in memory, in the form of `on_disk`."""
    values, columns, lengths = [], [], [np.zeros(1, np.int64)]
    for block in blocks:
        values.append(block.data)
        columns.append(block.indices)
        lengths.append(np.diff(block.indptr).astype(np.int64))
    starts = np.cumsum(np.concatenate(lengths))
    index = index_type(max(int(starts[-1]), n_columns))
    matrix = sp.csr_matrix((len(starts) - 1, n_columns), dtype=values[0].dtype if values else "f4")
    matrix.indptr = starts.astype(index)
    matrix.data = _together(values, matrix.dtype)
    matrix.indices = _together(columns, np.dtype(index))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _together(parts: list[np.ndarray], kind: np.dtype) -> np.ndarray:
    """Return the parts concatenated; each part is freed once it is copied."""
    if len(parts) == 1:
        return parts[0].astype(kind, copy=False)
    whole, first = np.empty(sum(len(part) for part in parts), kind), 0
    parts.reverse()
    while parts:
        part = parts.pop()
        whole[first : first + len(part)] = part
        first += len(part)
    return whole


def rows_of(matrix: sp.csr_matrix, rows: np.ndarray, folder: Path | None) -> sp.csr_matrix:
    """Return the rows at these positions, on disk in `folder` if they hold many values."""
    lengths = np.diff(matrix.indptr)[rows]
    starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    if folder is None or starts[-1] <= LARGE:
        return matrix[rows]
    blocks = (matrix[rows[block]] for block in row_blocks(starts))
    return on_disk(blocks, matrix.shape[1], folder, int(starts[-1]))


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def _mapped(file: IO[bytes], kind: np.dtype | type, n: int) -> np.ndarray:
    file.flush()
    return np.memmap(file, kind, "r+", shape=(n,)) if n else np.empty(0, kind)
