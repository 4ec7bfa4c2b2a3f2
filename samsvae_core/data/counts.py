"""Read counts or other values of cells: where the file holds them, and whether they are valid."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import DataError
from samsvae_core.data.gene_names import INDEX, GeneNames, lacks_names, name_genes
from samsvae_core.data.hdf5_checks import names_in, opened
from samsvae_core.data.label_column import texts_of
from samsvae_core.data.stored import Storage, blocks_of, single_precision, stacked
from samsvae_core.data.tables import table_of
from samsvae_core.genesets.symbols import are_row_numbers
from samsvae_core.system.messages import nearest, some

LARGEST_COUNT = 2**24  # whole numbers are exact in float32 up to here


class CountsRead(NamedTuple):
    """The values of all cells (cells x genes), and their place in the file."""

    matrix: sp.csr_matrix
    genes: GeneNames
    origin: str  # "X", "layers/NAME" or "raw/X"
    notes: list[str]


def gene_names(file: h5py.File, key: str | None) -> GeneNames:
    """Return the names of the genes of var.

    `key` is a column of var or raw/var, INDEX, or None for the best choice. A column that only
    raw/var has is joined by the index.
    """
    var = table_of(file, "var")
    if "raw/var" in file and lacks_names(var.index, _texts_of_columns(var, key), key):
        raw = table_of(file, "raw/var")
        if var.index.isin(raw.index).all() and not _counts_anew(var, raw):
            var = var.join(raw[raw.columns.difference(var.columns)])
    return name_genes(var.index, _texts_of_columns(var, key), key)


def has_gene_key(path: Path | str, key: str) -> bool:
    """Return whether `key` can name the genes of a file: a column of var or raw/var, or INDEX."""
    with opened(Path(path)) as file:
        tables = [table_of(file, place) for place in ("var", "raw/var") if place in file]
    return key == INDEX or any(key in table for table in tables)


def _genes_of_raw(file: h5py.File, key: str | None) -> tuple[GeneNames, np.ndarray | None]:
    """Return the names of the genes of raw/X, and its columns if only those of var are kept.

    raw/X also has the genes that were filtered out later. The genes of var are found by the index,
    or by name if var numbers its rows anew, since equal numbers then mean different genes.
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
    """Return whether the numbers in var's index count its own rows, not those of raw/var."""
    if len(var) >= len(raw) or not are_row_numbers(raw.index):
        return False
    return any(var.index.tolist() == [str(n + i) for i in range(len(var))] for n in (0, 1))


def _texts_of_columns(var: pd.DataFrame, key: str | None) -> dict[str, np.ndarray]:
    """Return the columns that may name genes: `key`, and all but fractions and flags."""
    columns = {
        str(name): column
        for name, column in var.loc[:, ~var.columns.duplicated()].items()
        if name == key or column.dtype.kind not in "fb"
    }
    return {name: texts_of(column) for name, column in columns.items()}


def read_counts(
    file: h5py.File, layer: str | None, gene_key: str | None, cells: pd.Index, storage: Storage
) -> CountsRead:
    """Return the first matrix of raw counts among X, layers/counts and raw/X, or that of `layer`.

    Raises DataError if there is none.
    """
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
        blocks = faults.sound(blocks_of(file, place, (len(cells), len(genes))))
        if columns is not None:
            blocks = (block[:, columns].sorted_indices() for block in blocks)
        matrix = stacked(blocks, len(kept.names), folder, file, place)
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
        return CountsRead(matrix, kept, place, notes)
    raise DataError(
        f"{problems[0]} Put raw counts into X, or name the layer that holds them with --layer"
        f" (layers here: {some(layers, 10) or 'none'}). Values that are not counts can be modelled"
        " as they are with --likelihood gaussian."
    )


def read_values(
    file: h5py.File, layer: str | None, gene_key: str | None, cells: pd.Index, storage: Storage
) -> CountsRead:
    """Return X, or `layer` if given, as it is: any finite numbers."""
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
    blocks = map(single_precision, blocks_of(file, place, (len(cells), n_genes)))
    matrix = stacked(faults.sound(blocks), n_genes, folder, file, place)
    if faults.n:
        what, n, where = faults.worst()
        raise DataError(
            f"{place} has {n:,} values that are {what} ({where}); expected finite numbers. Replace"
            " them, or drop these cells or genes."
        )
    if not matrix.nnz:
        raise DataError(f"{place} holds no value but 0. Name another layer with --layer.")
    return CountsRead(matrix, genes, place, [])


def _layers(file: h5py.File, layer: str | None) -> list[str]:
    """Return the names of the layers; raises DataError if `layer` is not among them."""
    layers = names_in(file, "layers")
    if layer is not None and layer not in layers:
        raise DataError(f"There is no layer {layer!r}. {nearest(layer, layers)}")
    return layers


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
    """Invalid values, counted block by block, with the first three places of each kind."""

    def __init__(
        self, kinds: Mapping[str, Callable[[np.ndarray], np.ndarray]], cells: pd.Index, genes: Any
    ) -> None:
        self.kinds, self.cells, self.genes = kinds, cells, genes
        self.n: Counter[str] = Counter()
        self.examples: dict[str, list[str]] = {what: [] for what in kinds}
        self.guess = ""

    def sound(self, blocks: Iterable[sp.csr_matrix]) -> Iterator[sp.csr_matrix]:
        """Yield the blocks before the first invalid one; later blocks are still checked."""
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
        """Return the first kind of fault found, how often it occurs, and where."""
        what = next(what for what in self.kinds if self.n[what])
        return what, self.n[what], "; ".join(self.examples[what][:3])


def _looks_like(matrix: sp.csr_matrix) -> str:
    """Return a guess at how values that are not counts were transformed."""
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
