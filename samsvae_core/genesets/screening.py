"""Screen a ranking before it is tested: a quick preview, ties, and overlap with the sets."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.genesets.collections import Collection

MANY_TIES = 0.2  # share of tied genes above which a note is given


class Screen(NamedTuple):
    """A preview: `z` and `p_value` by term (rows) and mechanism (columns), and sizes of sets."""

    z: pd.DataFrame
    p_value: pd.DataFrame
    size: pd.Series


def screen(
    loadings: pd.DataFrame, collection: Collection, min_size: int = 5, max_size: int = 500
) -> Screen:
    """Return a rank-sum test of every mechanism (column) and set at once, as a preview of GSEA.

    z = (R - m (n + 1) / 2) / sd, where R is the sum of the ranks of the set's m genes among n; sd^2
    = m (n - m) / 12 (n + 1 - sum(t^3 - t) / (n (n - 1))), t the sizes of groups of tied genes (Mann
    and Whitney, 1947). p is two-sided, by the Normal. The test asks whether a set lies higher than
    the others as a whole; GSEA asks whether part of it gathers at an end. Genes without a finite
    loading on every mechanism are left out, and of repeated genes all but the first.
    """
    from scipy.stats import norm, rankdata

    kept = loadings[np.isfinite(loadings).all(axis=1) & ~loadings.index.duplicated()]
    members, terms = membership(collection, kept.index, min_size, max_size)
    n, m = len(kept), members.sum(axis=1)
    ranks = rankdata(kept.to_numpy(float), axis=0)
    ties = np.array([_tied_pairs(column) for column in ranks.T])
    with np.errstate(divide="ignore", invalid="ignore"):  # z is NaN if all are tied
        sd = np.sqrt((m * (n - m))[:, None] / 12 * (n + 1 - ties / (n * (n - 1))))
        z = (members @ ranks - (m * (n + 1) / 2)[:, None]) / sd
    z[:, ties == n * (n * n - 1)] = np.nan
    index = pd.Index(terms, name="term")
    z_table, p_table = (
        pd.DataFrame(part, index, kept.columns) for part in (z, 2 * norm.sf(np.abs(z)))
    )
    return Screen(z_table, p_table, pd.Series(m, index, name="size", dtype=int))


def _tied_pairs(ranks: np.ndarray) -> float:
    size = np.unique(ranks, return_counts=True)[1].astype(float)
    return float((size**3 - size).sum())


def membership(
    collection: Collection, genes: Iterable[str], min_size: int, max_size: int
) -> tuple[sp.csr_array, list[str]]:
    """Return the sets of `usable_sets` x genes, 1 where the gene belongs, and the sets' names."""
    place = {str(gene): number for number, gene in enumerate(genes)}
    rows = [[place[g] for g in members if g in place] for members in collection.sets.values()]
    limits = range(min_size, min(max_size + 1, len(place)))
    kept = {
        term: row for term, row in zip(collection.sets, rows, strict=True) if len(row) in limits
    }
    starts = np.cumsum([0, *map(len, kept.values())])
    columns = np.array([gene for row in kept.values() for gene in row], dtype=int)
    shape = (len(kept), len(place))
    return sp.csr_array((np.ones(len(columns)), columns, starts), shape=shape), list(kept)


def problems(notes: pd.DataFrame) -> list[str]:
    """Return notes on mechanisms not tested, genes dropped and many ties."""
    found = []
    by_rank = notes[notes["method"] == "gsea"].set_index(["mechanism", "collection"])["status"]
    for row in notes[notes["method"] == "ora"].itertuples():
        if row.status != "done" and by_rank.get((row.mechanism, row.collection)) == "done":
            what = f"mechanism {row.mechanism}, {row.collection}, top genes"
            found.append(f"{what}: not tested (no gene is certain to move)")
    for row in notes[notes["method"] == "gsea"].itertuples():
        what = f"mechanism {row.mechanism}, {row.collection}"
        if row.status != "done":
            found.append(f"{what}: not tested ({row.status})")
        if row.dropped or row.duplicated:
            found.append(f"{what}: {row.dropped} genes dropped, {row.duplicated} duplicated")
        if row.tied > MANY_TIES:
            found.append(f"{what}: {row.tied:.0%} of genes are tied, their order is random")
    return found
