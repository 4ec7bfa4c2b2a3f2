"""Sparse matrices whose arrays lie in files, for counts that memory is too small for.

The files have no name: they vanish with the matrix, or with the process, however that ends. To all
code such a matrix is a csr_matrix like others; the system keeps in memory what is used of it.
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

VALUES_AT_ONCE = 2**22  # stored values of a block of rows
LARGE = 2**22  # stored values, above which a part of such a matrix is kept on disk, too
COPIES = 3  # of all counts that are on disk at once: read, divided, and their levels while scored


def row_blocks(starts: np.ndarray, at_once: int | None = None) -> Iterator[slice]:
    """Rows together that hold about VALUES_AT_ONCE values, by where each row starts."""
    n_rows, first = len(starts) - 1, 0
    while first < n_rows:
        most = int(starts[first]) + (at_once or VALUES_AT_ONCE)
        last = int(np.searchsorted(starts, most, side="right")) - 1
        last = min(max(last, first + 1), n_rows)
        yield slice(first, last)
        first = last


def dense_blocks(matrix: sp.csr_matrix, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """All rows, or those at `rows`, dense, some at a time."""
    n_rows = matrix.shape[0] if rows is None else len(rows)
    size = max(1, VALUES_AT_ONCE // max(1, matrix.shape[1]))
    for first in range(0, n_rows, size):
        block = slice(first, first + size)
        yield matrix[block if rows is None else rows[block]].toarray()


def index_type(most: int) -> type[np.int32 | np.int64]:
    """Of columns and of where rows start, for which SciPy wants one, of at most so many values."""
    return np.int32 if most < 2**31 else np.int64


def size_of(n_values: int, most: int) -> int:
    """Bytes of so many stored values, float32 each, with their columns."""
    return n_values * (4 + np.dtype(index_type(most)).itemsize)


def check_room(folder: Path, size: int) -> None:
    """Raise OutputError where a disk has no room for counts of this size and all made of them.

    Told before anything is written; a disk that is filled by others later ends the run as well.
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
    """Blocks of rows below each other, of at most `most` values, as one matrix in canonical form.

    Values keep their type, which is that of the first block.
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
        # not by the constructor, which would copy: of 2^31 values it looks at every index
        matrix.indptr = starts
        matrix.indices = _mapped(columns, index, int(starts[-1]))
        matrix.data = _mapped(values, kind, int(starts[-1]))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def in_memory(blocks: Iterable[sp.csr_matrix], n_columns: int) -> sp.csr_matrix:
    """Blocks of rows below each other as one matrix in canonical form, as `on_disk` makes it."""
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
    """The parts one after another; each is let go of once it is copied."""
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
    """The rows at these positions, in a file in `folder` where there are many values in them."""
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
