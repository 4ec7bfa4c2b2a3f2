"""What training cells hold of each gene, summed over the cells of every perturbation.

`direct_fit` compares it with what the model expects. Cells and conditions are read in blocks, so
nothing as large as cells x genes or cells x perturbations is ever held.

Axes: N cells, C conditions (different dosages, or levels of covariates), T perturbations, P = T + 1
rows (the last is what all perturbed cells share), G genes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import DirectEffects

CELLS_AT_ONCE = 4096
VALUES_AT_ONCE = 2**23  # cells x genes, or x perturbations
MOST_TABLE = 2**26  # conditions x genes above which depths are not kept
HALF = 0.5  # counts added to observed and expected, so that none is zero
DOMINANT = 0.2  # share of the transcripts from which a gene dominates its cell


class Conditions(NamedTuple):
    """The different dosages among the training cells, at each level of covariates."""

    source: Cells
    first: Int[Tensor, " C"]  # a cell of each
    dosage: Int[Tensor, " C"]  # the same number for the same dosages
    control: Bool[Tensor, " C"]  # or all, where there is no control
    cells: Float[Tensor, " C"]
    library: Float[Tensor, " C"]  # summed
    n_cells: Int[Tensor, " P"]  # of each row
    most: int  # rows of a cell at most

    def dosages(self, index: Int[Tensor, " c"]) -> Float[Tensor, "c T"]:
        """Return the dosages of some conditions."""
        return self.source.dosages[self.first[index]]

    def levels(self, index: Int[Tensor, " c"]) -> Int[Tensor, "c _"] | None:
        """Return the levels of covariates of some conditions; None without covariates."""
        levels = self.source.levels
        return None if levels is None else levels[self.first[index]].long()


class Observed(NamedTuple):
    """What the training cells hold; values are weighted by how much a cell tells of a gene."""

    conditions: Conditions
    spread: Float[Tensor, " G"]  # variance of a cell is m + spread m^2; of values, spread
    share: Float[Tensor, " G"]  # of all transcripts, or of those of genes that do not dominate
    dominant: Bool[Tensor, " G"]  # genes that make up much of a cell
    depth: Float[Tensor, "C G"] | None  # weighted libraries; None where too large to keep
    total: Float[Tensor, "P G"]  # sum of weighted values, times dosages
    base: Float[Tensor, " G"]  # the same of control
    mean: Float[Tensor, "P G"]  # of `total`, if nothing had an effect
    base_mean: Float[Tensor, " G"]
    variance: Float[Tensor, "P G"]  # the same
    base_variance: Float[Tensor, " G"]
    single: Float[Tensor, "P G"]  # the part of the variance that single molecules make
    base_single: Float[Tensor, " G"]


class Reading:
    """The training cells in blocks, each with the libraries that its genes are shares of."""

    def __init__(self, direct: DirectEffects, cells: Cells, is_counts: bool, by_panel: bool):
        self.direct, self.cells, self.is_counts = direct, cells, is_counts
        self.own = cells.library if is_counts else torch.ones_like(cells.library)
        self.dominant = torch.zeros(direct.n_genes, dtype=torch.bool, device=cells.device)
        if by_panel:
            pooled = sum(cells.counts[index].sum(0) for index in self.blocks())
            self.dominant = pooled / self.own.sum() > DOMINANT
        self.of_levels = [] if cells.levels is None else self.typical_of_levels(cells.levels)

    def blocks(self) -> tuple[Tensor, ...]:
        size = max(1, min(CELLS_AT_ONCE, VALUES_AT_ONCE // max(self.direct.shape)))
        return torch.arange(len(self.cells), device=self.cells.device).split(size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield cells, their values, and the library of each (without genes that dominate)."""
        for index in self.blocks():
            x, library = self.cells.counts[index], self.own[index]
            if self.dominant.any():
                library = library.where(self.dominant, rest_of(x, self.dominant))
            yield index, x, library

    def typical_of_levels(self, levels: Int[Tensor, "N V"]) -> list[Float[Tensor, "L G"]]:
        """Return, per covariate, what cells of each level hold of a gene beside all cells.

        It is a ratio for counts, else a difference; the last row, of unknown levels, is all cells.
        Each covariate is taken by itself. Only standard errors rest on it.
        """
        sizes = (levels.max(0).values + 2).tolist()
        sums = [torch.zeros(2, n, self.direct.n_genes, device=levels.device) for n in sizes]
        for index, x, library in self:
            for c, (seen, held) in enumerate(sums):
                level = levels[index, c].long().clamp_min(-1) % len(seen)  # unknown: the last
                seen.index_add_(0, level, x)
                held.index_add_(0, level, library.expand_as(x))
        found = []
        for seen, held in sums:
            if self.is_counts:
                share = seen.sum(0) / held.sum(0).clamp_min(1e-9)
                found.append((seen + 1) / (held * share + 1))
            else:
                found.append(seen / held.clamp_min(1) - seen.sum(0) / held.sum(0).clamp_min(1))
            found[-1][-1] = 1.0 if self.is_counts else 0.0
        return found

    def typical(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n G"] | float:
        """Return that of all covariates of some cells: the product of ratios, or the sum."""
        levels = self.cells.levels
        whole: Tensor | float = 1.0 if self.is_counts else 0.0
        if levels is not None:
            for c, table in enumerate(self.of_levels):
                of_cell = table[levels[index, c].long().clamp_min(-1) % len(table)]
                whole = whole * of_cell if self.is_counts else whole + of_cell
        return whole


def observe(direct: DirectEffects, cells: Cells, is_counts: bool, by_panel: bool) -> Observed:
    """Sum the training cells by condition and perturbation; five passes over them.

    `by_panel` says that libraries are totals of the panel. Then a gene that makes up much of each
    cell would blur all others by its own fluctuations, so they are counted in shares of the rest,
    which a softmax leaves unchanged.
    """
    reading = Reading(direct, cells, is_counts, by_panel)
    which, found = conditions(reading)
    kept = len(found.first) * direct.n_genes <= MOST_TABLE
    of_dosage = found.dosage[which] if kept else torch.zeros_like(which)
    spread, share = spread_and_share(reading, of_dosage)
    depth = torch.zeros(len(found.first), direct.n_genes, device=cells.device) if kept else None
    of_rows = torch.zeros(4, *direct.shape, device=cells.device)  # value, mean, variance, single
    of_control = torch.zeros(4, direct.n_genes, device=cells.device)
    for index, x, library in reading:
        weight = weights(library, spread, share) if is_counts else torch.ones_like(x)
        m = library * share * reading.typical(index) if is_counts else torch.ones_like(x)
        single = weight.square() * m if is_counts else torch.zeros_like(x)
        variance = single + spread * (weight * m).square()
        given, plain = direct.rows_given(cells.dosages[index]), found.control[which[index]]
        for k, values in enumerate((weight * x, weight * m, variance, single)):
            add(of_rows[k], given if k < 2 else given.square(), values)
            of_control[k] += values[plain].sum(0)
        if depth is not None:
            depth.index_add_(0, which[index], weight * library)
    both = [table for pair in zip(of_rows, of_control, strict=True) for table in pair]
    return Observed(found, spread, share, reading.dominant, depth, *both)


def conditions(reading: Reading) -> tuple[Int[Tensor, " N"], Conditions]:
    """Return the number of each cell's condition, and the conditions.

    Rows of dosages, and of levels, are told apart by their products with random numbers.
    """
    direct, cells = reading.direct, reading.cells
    generator = torch.Generator().manual_seed(0)
    key = torch.rand(direct.n_perturbations, generator=generator, dtype=torch.float64)
    n_cells = torch.zeros(direct.shape[0], dtype=torch.int64, device=cells.device)
    keys, n_rows = [], []
    for index in reading.blocks():
        D = cells.dosages[index]
        given = direct.rows_given(D) != 0
        keys.append(D.double() @ key.to(cells.device))
        n_rows.append(given.sum(1))
        n_cells += given.sum(0)
    dosage = torch.cat(keys).unique(return_inverse=True)[1]
    both = dosage.double()
    if cells.levels is not None:  # below 1, so that conditions are in the order of dosages
        of_levels = torch.rand(cells.levels.shape[1], generator=generator, dtype=torch.float64)
        at = cells.levels.double() @ of_levels.to(cells.device)
        both = both + at.unique(return_inverse=True)[1] / (len(cells) + 1)
    found, which = both.unique(return_inverse=True)
    order = torch.arange(len(cells), device=cells.device)
    first = torch.full((len(found),), len(cells), device=cells.device)
    first = first.scatter_reduce_(0, which, order, "amin")
    rows_of_cell = torch.cat(n_rows)
    control = rows_of_cell[first] == 0
    control = control if control.any() else torch.ones_like(control)
    n = torch.bincount(which, minlength=len(first)).float()
    library = torch.zeros_like(n).index_add_(0, which, reading.own[:, 0])
    most = max(1, int(rows_of_cell.max()))
    return which, Conditions(cells, first, dosage[first], control, n, library, n_cells, most)


def spread_and_share(
    reading: Reading, which: Int[Tensor, " N"]
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Return how much cells of a condition (`which`) spread, and each gene's share of all cells."""
    n, n_genes, device = int(which.max()) + 1, reading.direct.n_genes, which.device
    means, depths = torch.zeros(2, n, n_genes, device=device)
    for index, x, library in reading:
        if not reading.is_counts:
            x = x - reading.typical(index)
        means.index_add_(0, which[index], x)
        depth = library * reading.typical(index) if reading.is_counts else library
        depths.index_add_(0, which[index], depth.expand_as(x))
    share = means.sum(0) / depths.sum(0).clamp_min(1e-9)
    means /= depths.clamp_min_(1e-9)
    excess, weight = torch.zeros(2, n_genes, dtype=torch.float64, device=device)
    for index, x, library in reading:
        if reading.is_counts:
            m = means[which[index]] * library * reading.typical(index)
        else:
            m = means[which[index]] + reading.typical(index)
        excess += ((x - m).square() - (m if reading.is_counts else 0)).double().sum(0)
        weight += (m.square() if reading.is_counts else torch.ones_like(m)).double().sum(0)
    return (excess / weight.clamp_min(1e-12)).clamp_min(0).float(), share


def add(
    table: Float[Tensor, "P G"], given: Float[Tensor, "c P"], values: Float[Tensor, "c G"]
) -> None:
    """Add values times dosages to the rows of the table that are given."""
    there = given.any(0).nonzero()[:, 0]
    table[there] += given[:, there].T @ values


def rest_of(x: Float[Tensor, "*B G"], dominant: Bool[Tensor, " G"]) -> Float[Tensor, "*B 1"]:
    """Return the sum over the genes that do not dominate."""
    return x[..., ~dominant].sum(-1, keepdim=True)


def weights(
    library: Float[Tensor, "N _"], spread: Float[Tensor, " G"], share: Float[Tensor, " G"]
) -> Float[Tensor, "N G"]:
    """Return what a cell weighs: the mean of its count over the variance, up to its library."""
    return 1 / (1 + spread * share * library)


def relative_variance(
    seen: Tensor, expected: Tensor, mean: Tensor, single: Tensor, variance: Tensor
) -> Tensor:
    """Return the variance of the log of a weighted sum of counts.

    The part of single molecules falls with the sum, taken between `seen` and `expected`; `mean`,
    `single` and `variance` are the sum, that part of its variance and all of it, if nothing had an
    effect.
    """
    mean = mean.clamp_min(1e-12)
    between = ((seen + HALF) * (expected + HALF)).sqrt()
    return single / mean / between + (variance - single).clamp_min(0) / mean.square()
