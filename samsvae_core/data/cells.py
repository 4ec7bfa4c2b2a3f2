"""Cells with their counts and dosages, and the choice of genes.

Whatever was found, chosen or ignored on the way is reported in `CellData.source`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float32, Int64, Shaped

from samsvae_core.data.covariates import Covariates
from samsvae_core.data.disk_csr import dense_blocks, on_disk, row_blocks, rows_of
from samsvae_core.genesets.symbols import known_genes
from samsvae_core.system.messages import some

PEARSON_THETA = 100.0  # overdispersion of the null model in Lause et al. 2021


class DataError(ValueError):
    """A bad file or option; the message says what was expected, what was found and what to do."""


@dataclass(frozen=True, eq=False)
class CellData:
    """Cells, their counts and their dosages.

    `library` is each cell's total over the genes here, or the size factor given; `has_size_factor`
    says that it counts more genes than these. A condition is the control label, "A", or "A+B" with
    sorted parts, a dosage other than 1 written "A:0.5". `source` says how the file was read, as
    JSON values. Where `is_counts` is False, `counts` holds any finite values (log-normalised,
    z-scores), zeros left out, and `library` is 1 for every cell. `replicates` names each cell's
    biological replicate, "" if missing; no model uses it. `covariates` are accounted for. If the
    counts do not fit in memory, they and large parts of them are kept in files in the folder
    `scratch`. `gene_ids` are the file's ids of genes named otherwise.
    """

    counts: sp.csr_matrix  # (N, G) float32, raw counts
    dosages: sp.csr_matrix  # (N, T) float32, no stored zeros
    library: Float32[np.ndarray, " N"]
    cells: Shaped[np.ndarray, " N"]
    genes: Shaped[np.ndarray, " G"]
    perturbations: Shaped[np.ndarray, " T"]  # sorted
    conditions: Shaped[np.ndarray, " N"]
    control: str
    has_size_factor: bool
    source: dict[str, Any]
    replicates: Shaped[np.ndarray, " N"] | None = None
    covariates: Covariates | None = None
    is_counts: bool = True
    scratch: Path | None = None
    gene_ids: Shaped[np.ndarray, " G"] | None = None

    @property
    def genes_by_id(self) -> dict[str, str]:
        """The gene of each id; empty if the file has no ids besides the names."""
        if self.gene_ids is None:
            return {}
        return dict(zip(self.gene_ids.tolist(), self.genes.tolist(), strict=True))

    @property
    def strata(self) -> Int64[np.ndarray, " N"]:
        """A number per cell, the same for cells that agree in every covariate."""
        none = np.zeros(len(self.cells), dtype=np.int64)
        return none if self.covariates is None else self.covariates.strata()

    def subset(self, index: np.ndarray | Sequence[int]) -> "CellData":
        """Return the cells at `index` (positions or booleans), with all genes and perturbations."""
        index = np.asarray(index)
        if index.dtype == bool and index.all():  # a copy of a million cells takes gigabytes
            return self
        index = np.flatnonzero(index) if index.dtype == bool else index
        return replace(
            self,
            counts=rows_of(self.counts, index, self.scratch),
            dosages=self.dosages[index],
            library=self.library[index],
            cells=self.cells[index],
            conditions=self.conditions[index],
            replicates=None if self.replicates is None else self.replicates[index],
            covariates=None if self.covariates is None else self.covariates.subset(index),
        )


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"There is no file {path}. Give the path of a text file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give a text file (UTF-8).") from error


# Choosing genes


def read_genes(path: Path | str) -> list[str]:
    """Return gene names from a text file with one name per line; "#" starts a comment."""
    names = [line.split("#")[0].strip() for line in read_text(Path(path)).splitlines()]
    genes = list(dict.fromkeys(name for name in names if name))
    if not genes:
        raise DataError(f"{path} names no genes; expected one name per line.")
    return genes


def gene_panel(
    data: CellData, genes: Sequence[str] | None = None, top: int | None = None
) -> CellData:
    """Return the data with the named genes, or the `top` most variable ones, in their order.

    Genes can be named as in the data, by the file's ids, or by an unambiguous other name.
    Variability is the variance of analytic Pearson residuals (Lause et al. 2021) for counts, and of
    the values themselves otherwise. Without a size factor, the `library` of counts becomes the
    total over the genes kept. Raises DataError if no gene is found or detected.
    """
    if (genes is None) == (top is None):
        raise DataError("Choose genes either by name (--genes) or by number (--top-genes).")
    if genes is not None:
        found, unknown = known_genes(genes, data.genes, data.genes_by_id)
        kept, absent = np.isin(data.genes, found), sorted(unknown)
        missed = f"{len(absent):,} genes asked for are not measured: {some(absent)}."
        if not kept.any():
            raise DataError(f"{missed} Use names as in the data ({some(data.genes)}).")
        otherwise = len(set(found) - set(genes))
        notes = [missed] if absent else []
        if otherwise:
            notes.append(f"{otherwise:,} genes asked for have other names in the data.")
    else:
        kept, notes = _most_variable(data, top or 0), []
    notes = [*data.source["notes"], f"{kept.sum():,} of {len(kept):,} genes were kept.", *notes]
    panel = genes_at(data, np.flatnonzero(kept))
    if not panel.counts.nnz:
        what = "count" if data.is_counts else "value but 0"
        raise DataError(f"No cell has a {what} of the genes kept. Keep genes that are detected.")
    return replace(panel, source={**data.source, "notes": notes})


def genes_at(data: CellData, index: np.ndarray) -> CellData:
    """Return the data with the genes at `index`, in that order, and the matching library.

    A size factor stays the library, which then counts more genes than are kept.
    """
    if data.scratch is None:
        counts = data.counts[:, index]
    else:
        blocks = row_blocks(data.counts.indptr)
        kept = (data.counts[block][:, index].sorted_indices() for block in blocks)
        counts = on_disk(kept, len(index), data.scratch, data.counts.nnz)
    ids = None if data.gene_ids is None else data.gene_ids[index]
    named = {"genes": data.genes[index], "gene_ids": ids}
    if not data.is_counts:
        return replace(data, counts=counts, **named)
    library = totals = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    if data.has_size_factor or data.source.get("size_factor_key"):
        library = data.library
    more = data.has_size_factor or bool((library > totals).any())
    return replace(data, counts=counts, library=library, has_size_factor=more, **named)


def _most_variable(data: CellData, top: int) -> np.ndarray:
    if not 1 <= top <= len(data.genes):
        raise DataError(f"--top-genes must be from 1 to {len(data.genes):,}; found {top}.")
    kept = np.zeros(len(data.genes), dtype=bool)
    blocks = _residuals(data.counts) if data.is_counts else dense_blocks(data.counts)
    kept[np.argsort(-mean_variance(blocks)[1], kind="stable")[:top]] = True
    return kept


def _residuals(counts: sp.csr_matrix) -> Iterator[np.ndarray]:
    """Yield (x - mu) / sqrt(mu + mu^2 / theta) by blocks of cells; mu = cell total x gene share."""
    cell_total = np.asarray(counts.sum(1, dtype=np.float64))  # (N, 1)
    gene_total = np.zeros(counts.shape[1])
    for block in row_blocks(counts.indptr):
        gene_total += np.asarray(counts[block].sum(0, dtype=np.float64)).ravel()
    gene_share = gene_total / max(cell_total.sum(), 1)
    largest = np.sqrt(counts.shape[0])  # clipped as in the paper
    first = 0
    for values in dense_blocks(counts):
        mean = cell_total[first : first + len(values)] * gene_share
        residual = values - mean
        scale = np.sqrt(mean + mean**2 / PEARSON_THETA)
        np.divide(residual, scale, out=residual, where=scale > 0)
        first += len(values)
        yield residual.clip(-largest, largest)


def mean_variance(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of each column over all blocks (Chan, Golub and LeVeque 1983)."""
    n, mean, squares = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        more, away = len(block), block.mean(axis=0, dtype=np.float64) - mean
        squares = squares + block.var(axis=0, dtype=np.float64) * more
        squares += away**2 * (n * more / (n + more))
        mean, n = mean + away * (more / (n + more)), n + more
    return mean, squares / max(n, 1)


# Perturbations


def conditions_as_perturbations(data: CellData) -> CellData:
    """Return the same cells, with every condition but control as one perturbation at dosage 1.

    This is for models of single perturbations, to which "A+B" is unrelated to A or B. The
    conditions stay as they are; their sorted labels become the perturbations.
    """
    perturbed = data.dosages.getnnz(axis=1) > 0
    names, column = np.unique(data.conditions[perturbed], return_inverse=True)
    indptr = np.concatenate([[0], np.cumsum(perturbed)])
    ones = np.ones(len(column), dtype=np.float32)
    dosages = sp.csr_matrix((ones, column, indptr), shape=(len(perturbed), len(names)))
    return replace(data, dosages=dosages, perturbations=names)


# Summaries


def summary(data: CellData) -> dict[str, Any]:
    """Return what the data hold and how they were read, as JSON values."""
    n_perturbations = data.dosages.getnnz(axis=1)
    perturbed = pd.Series(data.conditions[n_perturbations > 0]).value_counts()
    return {
        **data.source,
        "continuous": not data.is_counts,
        "n_cells": len(data.cells),
        "n_genes": len(data.genes),
        "n_perturbations": len(data.perturbations),
        "n_single": len(np.unique(data.dosages[n_perturbations == 1].indices)),
        "n_combinations": len(np.unique(data.conditions[n_perturbations > 1])),
        "control": data.control,
        "n_control_cells": int((n_perturbations == 0).sum()),
        "cells_per_condition": {
            "smallest": str(perturbed.index[-1]),
            "min": int(perturbed.min()),
            "median": float(perturbed.median()),
            "max": int(perturbed.max()),
            "largest": str(perturbed.index[0]),
        },
        "n_constant_genes": int(constant_genes(data.counts).sum()),
        "n_empty_cells": int((data.counts.getnnz(axis=1) == 0).sum()),
        "median_counts": float(np.median(np.asarray(data.counts.sum(1)))),
        "median_library": float(np.median(data.library)),
        "has_size_factor": data.has_size_factor,
        "lowest_value": float(data.counts.min()),
        "highest_value": float(data.counts.max()),
        "cells_per_replicate": _cells_per_replicate(data.replicates),
        "cells_per_level": {
            name: _cells_per_replicate(covariates.labels(name)) for name in covariates.levels
        }
        if (covariates := data.covariates)
        else {},
    }


def constant_genes(counts: sp.csr_matrix) -> np.ndarray:
    """Return a boolean per gene: whether it never varies."""
    high, low = np.full((2, counts.shape[1]), np.nan, counts.dtype)
    for block in row_blocks(counts.indptr):
        rows = counts[block].tocsc()
        high = np.fmax(high, rows.max(axis=0).toarray().ravel())
        low = np.fmin(low, rows.min(axis=0).toarray().ravel())
    return high == low


def _cells_per_replicate(replicates: np.ndarray | None) -> dict[str, int]:
    """Return the number of cells by replicate or level; those without a label are not counted."""
    if replicates is None:
        return {}
    names, sizes = np.unique(replicates[replicates != ""], return_counts=True)
    return dict(zip(names.tolist(), sizes.tolist(), strict=True))


def combinations_in_words(n: int, source: Mapping[str, Any]) -> str:
    """Return how many combinations there are, and at which delimiter labels were split."""
    found = f"{n:,} combination{'' if n == 1 else 's'}"
    if not source.get("perturbation_key"):  # a table of dosages, or no file
        return found
    delimiter = source.get("delimiter")
    return f"{found}, labels {f'parted at {delimiter!r}' if delimiter else 'read whole'}"


def reading_in_words(data: CellData) -> list[str]:
    """Return lines on how labels were read, with the warnings and notes for the user."""
    n_given = data.dosages.getnnz(axis=1)
    n_combinations = len(set(data.conditions[n_given > 1]))
    return [
        f"{len(data.cells):,} cells, {(n_given == 0).sum():,} of them controls ({data.control});"
        f" {len(data.perturbations):,} perturbations,"
        f" {combinations_in_words(n_combinations, data.source)}.",
        *(f"Warning: {warning}" for warning in data.source.get("warnings", [])),
        *(f"Note: {note}" for note in data.source.get("notes", [])),
    ]


def describe(summary: Mapping[str, Any]) -> str:
    """Return a summary as a few lines of text."""
    s, cells = summary, summary["cells_per_condition"]
    key = s["perturbation_key"]
    where = f"column {key!r}" if key else f"obsm[{s['dosage_key']!r}]"
    lines = [
        f"{s['file']}: {s['n_cells']:,} cells x {s['n_genes']:,} genes,"
        f" {'values, not counts,' if s['continuous'] else 'counts'} from {s['counts_from']}",
        f"{s['n_perturbations']:,} perturbations in {where}, {s['n_single']:,} of them measured"
        f" singly; {combinations_in_words(s['n_combinations'], s)}",
        f"{s['n_control_cells']:,} control cells ({s['control']})",
        f"Cells per condition: {cells['min']:,} ({cells['smallest']}) to {cells['max']:,}"
        f" ({cells['largest']}), median {cells['median']:,.0f}",
        f"Values from {s['lowest_value']:.4g} to {s['highest_value']:.4g}"
        if s["continuous"]
        else f"Counts per cell on these genes: median {s['median_counts']:,.0f}",
    ]
    if sizes := s["cells_per_replicate"]:
        replicates = some((f"{name} ({n:,} cells)" for name, n in sizes.items()), 6)
        lines.append(f"{len(sizes):,} replicates in column {s['replicate_key']!r}: {replicates}")
    for name, of_level in s["cells_per_level"].items():
        levels = some((f"{level} ({n:,} cells)" for level, n in of_level.items()), 6)
        lines.append(f"Covariate {name!r} with {len(of_level):,} levels: {levels}")
    if s["size_factor_key"]:
        lines.append(f"Size factor {s['size_factor_key']!r}: median {s['median_library']:,.0f}")
    if suggestion := s["size_factor_suggestion"]:
        lines.append(
            f"Column {suggestion!r} counts more genes than are here: consider"
            f" --size-factor-key {suggestion}"
        )
    return "\n".join(
        [
            *lines,
            *(f"Warning: {warning}" for warning in s.get("warnings", [])),
            *(f"Note: {note}" for note in s["notes"]),
        ]
    )
