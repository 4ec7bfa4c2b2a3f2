"""Cells on a device, read as batches of counts and dosages."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from samsvae_core.data.cells import CellData

DENSE_SHARE = 0.5  # share of a device's free memory that a dense matrix may take
ROWS_AT_ONCE = 4096  # rows in single precision while a dense matrix is filled


class Batch(NamedTuple):
    """The cells of one mini-batch."""

    x: Float[Tensor, "N G"]  # counts
    D: Float[Tensor, "N T"]  # dosages, all zero for control cells
    library: Float[Tensor, "N 1"]  # total counts or the size factor; 1 for other values
    levels: Int[Tensor, "N V"] | None = None  # of each covariate; -1 if unknown. None without any


class Cells:
    """Counts, dosages and levels on a device; each batch is dense and in single precision."""

    def __init__(self, data: CellData, device: torch.device) -> None:
        self.device = device
        self.counts = resident(data.counts, device)
        self.dosages = resident(data.dosages, device)
        self.library = torch.as_tensor(data.library, dtype=torch.float32, device=device)[:, None]
        self.levels: Tensor | None = None
        if data.covariates is not None:
            self.levels = torch.as_tensor(data.covariates.codes, device=device)

    def __len__(self) -> int:
        return len(self.library)

    def batch(self, index: Int[Tensor, " N"]) -> Batch:
        """Return the cells at `index`, dense."""
        levels = None if self.levels is None else self.levels[index].long()
        return Batch(self.counts[index], self.dosages[index], self.library[index], levels)


class HostRows:
    """Rows of a CSR matrix in CPU memory, which is not copied."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        self.matrix = matrix.astype(np.float32, copy=False)

    def __getitem__(self, index: Int[Tensor, " N"]) -> Float[Tensor, "N width"]:
        return torch.from_numpy(self.matrix[index.numpy()].toarray())


class DenseRows:
    """Rows of a dense matrix, with counts in one or two bytes."""

    def __init__(self, matrix: Shaped[Tensor, "N width"]) -> None:
        self.matrix = matrix

    def __getitem__(self, index: Int[Tensor, " N"]) -> Float[Tensor, "N width"]:
        return self.matrix.index_select(0, index).float()


class SparseRows:
    """Rows of a CSR matrix, gathered on their device without waiting for it."""

    def __init__(self, matrix: sp.csr_matrix, device: torch.device) -> None:
        self.width = matrix.shape[1]
        self.longest = int(np.diff(matrix.indptr).max(initial=0))
        self.start = torch.as_tensor(matrix.indptr, dtype=torch.int64, device=device)
        self.column = torch.as_tensor(matrix.indices, dtype=torch.int32, device=device)
        value = torch.as_tensor(matrix.data, dtype=compact_type(matrix.data))
        self.value = value.to(device)

    def __getitem__(self, index: Int[Tensor, " N"]) -> Float[Tensor, "N width"]:
        dense = torch.zeros(len(index), self.width, device=index.device)
        if not self.longest:
            return dense
        first = self.start[index, None]
        place = first + torch.arange(self.longest, device=index.device)
        here = place < self.start[index + 1, None]  # rows differ in length
        place = torch.where(here, place, 0)
        value = torch.where(here, self.value[place].float(), 0.0)
        return dense.scatter_add_(1, self.column[place].long(), value)


Rows = HostRows | DenseRows | SparseRows


def resident(matrix: sp.csr_matrix, device: torch.device) -> Rows:
    """Return the matrix on a device: sparse on the CPU, elsewhere dense if it fits."""
    if device.type == "cpu":
        return HostRows(matrix)
    n_bytes = matrix.shape[0] * matrix.shape[1] * compact_type(matrix.data).itemsize
    rows = SparseRows(matrix, device)
    free, _ = torch.cuda.mem_get_info(device)
    return dense(rows) if n_bytes < DENSE_SHARE * free else rows


def dense(rows: SparseRows) -> DenseRows:
    """Return the same rows as a dense matrix."""
    n_rows, device = len(rows.start) - 1, rows.start.device
    matrix = torch.empty(n_rows, rows.width, dtype=rows.value.dtype, device=device)
    for index in torch.arange(n_rows, device=device).split(ROWS_AT_ONCE):
        matrix[index] = rows[index].to(matrix.dtype)
    return DenseRows(matrix)


def compact_type(values: np.ndarray) -> torch.dtype:
    """Return the smallest type that holds these values exactly."""
    if len(values) and (values.min() < 0 or (values != np.rint(values)).any()):
        return torch.float32
    highest = values.max(initial=0)
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if highest <= torch.iinfo(dtype).max:
            return dtype
    return torch.float32
