"""Standard errors of levels, from a variance of cells that conditions share gene by gene.

A condition of 8 cells hardly knows its own variance, and one without a count of a gene would seem
to know the level exactly. So the variance is estimated over all conditions, from the distances of
cells to the share of their own condition in their own stratum, and only corrected by the
condition's own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int, Shaped

from samsvae_core.data.disk_csr import row_blocks
from samsvae_core.evaluation.strata import by_stratum
from samsvae_core.models.distributions import PER_TEN_THOUSAND

WITHIN = 1.6449  # standard deviations to either side that hold 90 % of a Normal
PRIOR_FREEDOM = 15.0  # degrees of freedom of the shared variance, against a condition's own
PRIOR_PRECISION = 1.0  # with which genes are expected to have the dispersion of the middle one


class CellVariance(NamedTuple):
    """How much cells of one condition and stratum vary, per gene.

    For counts, a cell of library l with share p has mean m = l p and variance m + spread m^2. For
    other values, the variance is `spread` for every cell. `factors` tell how much larger the share
    is in each stratum; they are 1 where none is given.
    """

    mean: Float[np.ndarray, " G"]  # over all cells: share of the transcripts, or value
    spread: Float[np.ndarray, " G"]
    is_counts: bool
    factors: Mapping[int, Float[np.ndarray, " G"]] = {}

    def level(self, p: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """Return log2(1 + 1e4 p) of shares; other values are their own level."""
        return np.log2(1 + PER_TEN_THOUSAND * p) if self.is_counts else p

    def slope(self, p: Float[np.ndarray, " G"]) -> Float[np.ndarray, " G"]:
        """Return the derivative of `level`."""
        per_share = PER_TEN_THOUSAND / np.log(2)
        return per_share / (1 + PER_TEN_THOUSAND * p) if self.is_counts else np.ones_like(p)

    def of_sum(
        self, p: Float[np.ndarray, " G"], q: Float[np.ndarray, " G"], cells: Sums
    ) -> Float[np.ndarray, " G"]:
        """Return the variance of the sum over cells whose share is q and was found to be p.

        The part that grows with the square is taken as p q, so that it stays the same in logs.
        """
        if not self.is_counts:
            return self.spread * cells.squares
        # a spread below 0 is that of shares that must add up to 1
        return q * np.maximum(cells.library + self.spread * p * cells.squares, 0)


class Sums(NamedTuple):
    """Sums over the cells of one condition: of libraries l, and per gene of values x."""

    library: float
    squares: float  # of l
    cubes: float
    value: Float[np.ndarray, " G"]
    value_squares: Float[np.ndarray, " G"]
    products: Float[np.ndarray, " G"]  # x l

    @property
    def effective_cells(self) -> float:
        """The number of cells of equal library that would weigh as much (Kish)."""
        return self.library**2 / self.squares

    def share(self) -> Float[np.ndarray, " G"]:
        return self.value / self.library

    def residual(self) -> Float[np.ndarray, " G"]:
        """Return the sum over cells of (x - p l)^2, p being the condition's own share."""
        p = self.share()
        found = self.value_squares - 2 * p * self.products + p**2 * self.squares
        return np.maximum(found, 0)


class Part(NamedTuple):
    """The cells of a condition in one stratum."""

    cells: Sums
    weight: float = 1.0  # adds up to 1 over strata
    factor: Float[np.ndarray, " G"] | float = 1.0  # of CellVariance


class Pool(NamedTuple):
    """Cells of a condition, each of those in one stratum counted w L / L_s times.

    With weight w of the stratum, L_s the sum of its libraries and L that of all, shares of the pool
    are the weighted means of those of strata. Cells of one stratum count once.
    """

    parts: Sequence[Part]

    @property
    def library(self) -> float:
        return sum(part.cells.library for part in self.parts)

    def share(self) -> Float[np.ndarray, " G"]:
        values = (n * part.cells.value for n, part in zip(self.times(), self.parts, strict=True))
        return np.asarray(sum(values)) / self.library

    def times(self) -> list[float]:
        """Return how often the cells of each part count."""
        library = self.library
        return [part.weight * library / part.cells.library for part in self.parts]

    def factor(self) -> Float[np.ndarray, " G"] | float:
        """Return the mean factor of the strata."""
        return sum(part.weight * part.factor for part in self.parts)

    def variance_of_sum(
        self, variance: CellVariance, p: Float[np.ndarray, " G"], q: Float[np.ndarray, " G"]
    ) -> Float[np.ndarray, " G"]:
        """Return `CellVariance.of_sum`, where strata differ from p and q by their factors."""
        factor, found = self.factor(), np.zeros_like(p)
        for n, part in zip(self.times(), self.parts, strict=True):
            own = part.factor / factor
            found += n**2 * variance.of_sum(p * own, q * own, part.cells)
        return found


def sums_of(counts: sp.csr_matrix, library: Float[np.ndarray, " N"], rows: np.ndarray) -> Sums:
    """Return the sums over the cells at `rows`; a block of them is in memory at a time."""
    n_genes = counts.shape[1]
    found = np.zeros((3, n_genes))
    lengths = counts.indptr[rows + 1] - counts.indptr[rows]
    for block in row_blocks(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])):
        cells = counts[rows[block]]
        values = cells.data.astype(float)
        of_cell = np.repeat(library[rows[block]].astype(float), lengths[block])
        for whole, each in zip(found, (values, values**2, values * of_cell), strict=True):
            whole += np.bincount(cells.indices, weights=each, minlength=n_genes)
    of_cells = library[rows].astype(float)
    total, squares, cubes = (float((of_cells**k).sum()) for k in (1, 2, 3))
    return Sums(total, squares, cubes, *found)


def by_condition(conditions: Shaped[np.ndarray, " N"]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each condition, sorted by name, with the rows of its cells."""
    code, names = pd.factorize(conditions, sort=True)
    order = np.argsort(code, kind="stable")
    first = 0
    for name, n in zip(names, np.bincount(code, minlength=len(names)), strict=True):
        yield str(name), order[first : first + n]
        first += n


def cell_variance(
    counts: sp.csr_matrix,
    library: Float[np.ndarray, " N"],
    conditions: Shaped[np.ndarray, " N"],
    is_counts: bool = True,
    kept: np.ndarray | None = None,
    strata: Int[np.ndarray, " N"] | None = None,
) -> CellVariance:
    """Return the variance of cells around their own condition and stratum, pooled over all.

    All cells count, or those at the positions `kept`. Without `strata` they are of one stratum.

    Of counts, the dispersion is by moments: residual^2 minus the mean, over mean^2, both without
    the bias of few cells. It is shrunk to that of the middle gene where counts are too few to know
    it. Without conditions of 2 cells or more, counts are taken as Poisson and the variance of other
    values is NaN.
    """
    n_genes = counts.shape[1]
    excess, weight, value, total = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes), 0.0
    kept = np.arange(len(conditions)) if kept is None else kept
    counted: dict[int, tuple[np.ndarray, float]] = {}
    for _, members in by_condition(conditions[kept]):
        groups = [(0, kept[members])] if strata is None else by_stratum(strata, kept[members])
        for number, rows in groups:
            cells = sums_of(counts, library, rows)
            if cells.library <= 0:
                continue
            before = counted.get(number, (np.zeros(n_genes), 0.0))
            counted[number] = before[0] + cells.value, before[1] + cells.library
            value, total = value + cells.value, total + cells.library
            if cells.effective_cells < 1 + 1e-6:
                continue
            excess += cells.residual()
            if is_counts:  # what the cells' own share takes up of either part is left out
                L, L2, L3 = cells.library, cells.squares, cells.cubes
                excess -= cells.value * (1 - L2 / L**2)
                pairs = (cells.value**2 - cells.value_squares) / (L**2 - L2)  # p^2, without bias
                weight += pairs * (L2 - 2 * L3 / L + (L2 / L) ** 2)
            else:
                weight += cells.effective_cells - 1
    mean = value / max(total, 1e-12)
    if not is_counts:
        nothing = np.full(n_genes, np.nan)
        return CellVariance(mean, np.divide(excess, weight, out=nothing, where=weight > 0), False)
    spread = shrunken_dispersion(excess, np.maximum(weight, 0), value)
    return CellVariance(mean, spread, True, factors_of(counted, mean))


def shrunken_dispersion(
    excess: Float[np.ndarray, " G"], weight: Float[np.ndarray, " G"], value: Float[np.ndarray, " G"]
) -> Float[np.ndarray, " G"]:
    """Return excess / weight, shrunk to that of the middle gene by how little is known of it."""
    dispersion = np.divide(excess, weight, out=np.zeros(len(excess)), where=weight > 0)
    # the variance of `excess` if cells were Poisson: of each, 2 m^2 + m
    noise = 2 * weight + value
    precision = np.divide(weight**2, noise, out=np.zeros(len(excess)), where=noise > 0)
    known = precision >= PRIOR_PRECISION
    middle = float(np.median(dispersion[known])) if known.any() else 0.0
    shrunk = precision * dispersion + PRIOR_PRECISION * middle
    return shrunk / (precision + PRIOR_PRECISION)


def factors_of(
    counted: Mapping[int, tuple[Float[np.ndarray, " G"], float]], mean: Float[np.ndarray, " G"]
) -> dict[int, Float[np.ndarray, " G"]]:
    """Return how much larger shares are in each stratum; empty if there is only one.

    It is (counted + 1) / (expected + 1): one count more on either side keeps it away from 0.
    `counted` are the sums of counts and libraries of a stratum.
    """
    if len(counted) < 2:
        return {}
    return {s: (value + 1) / (total * mean + 1) for s, (value, total) in counted.items()}


def pooled_level(
    counts: sp.csr_matrix,
    library: Float[np.ndarray, " N"],
    variance: CellVariance,
    rows: np.ndarray | None = None,
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return the level of the pooled cells, p = sum of values / sum of libraries, and its error.

    All cells count, or those at `rows`, each once. See `weighted_level`.
    """
    rows = np.arange(len(library)) if rows is None else rows
    return weighted_level([Part(sums_of(counts, library, rows))], variance)


def weighted_level(
    parts: Sequence[Part], variance: CellVariance
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return the level of p, the weighted mean of the shares of strata, and its standard error.

    `variance` is that of the cells of all conditions; it has PRIOR_FREEDOM degrees of freedom
    against those of the cells themselves, so that a condition in which only some cells respond has
    a larger error.

    Levels of few counts are far from Normal, so the error is not taken at p but on the way to what
    is likely: the score interval of p (Wilson 1927, J. Am. Stat. Assoc. 22) at 90 % has an end
    towards the gene's mean over all cells; the error is the standard deviation of p at that end, or
    at the mean if it is inside, times the slope of the level from p to there. So a zero count has
    an error, and one observation is enough. It is 0 for a gene that no cell counts or that never
    varies, and NaN where nothing is known: cells without any count, or values of which no condition
    has two cells.
    """
    pool = Pool(parts)
    if pool.library <= 0:
        nothing = np.zeros(len(variance.mean))
        return nothing, nothing + np.nan
    p = pool.share()
    factor = own_factor(parts, variance)
    if not variance.is_counts:
        return p, np.sqrt(factor * pool.variance_of_sum(variance, p, p)) / pool.library
    likely = nearest_likely(p, pool, variance, factor)
    gap = likely - p
    apart = np.abs(gap) > 1e-6 * np.maximum(p, likely)
    change = variance.level(likely) - variance.level(p)
    slope = np.divide(change, gap, out=variance.slope(p), where=apart)
    error = np.sqrt(factor * pool.variance_of_sum(variance, p, likely)) / pool.library
    return variance.level(p), slope * error


def own_factor(parts: Sequence[Part], variance: CellVariance) -> Float[np.ndarray, " G"]:
    """Return the cells' variance over the shared one, shrunk to 1 by its degrees of freedom."""
    freedom, found = 0.0, np.zeros(len(variance.mean))
    for cells, *_ in parts:
        p = cells.share()
        expected = variance.of_sum(p, p, cells) / cells.effective_cells
        own = np.full(len(expected), cells.effective_cells - 1)
        np.divide(cells.residual(), expected, out=own, where=expected > 0)
        freedom, found = freedom + cells.effective_cells - 1, found + own
    return (PRIOR_FREEDOM + found) / (PRIOR_FREEDOM + freedom)


def nearest_likely(
    p: Float[np.ndarray, " G"],
    pool: Pool,
    variance: CellVariance,
    factor: Float[np.ndarray, " G"],
) -> Float[np.ndarray, " G"]:
    """Return the share nearest to the mean over all cells under which p is likely.

    The likely q have (L p - L q)^2 <= z^2 factor (L q + spread p q sum of l^2), L being the sum of
    libraries l and z that of a 90 % interval. The mean is that of cells in the same strata.
    """
    of_one = pool.variance_of_sum(variance, p, np.ones_like(p))
    half = WITHIN**2 / 2 * factor * of_one / pool.library**2
    root = np.sqrt(half**2 + 2 * p * half)
    return np.clip(variance.mean * pool.factor(), p + half - root, p + half + root)
