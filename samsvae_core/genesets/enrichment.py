"""Test which gene sets a mechanism moves: preranked GSEA through gseapy, and top genes.

*gsea* walks the n genes from the highest loading s to the lowest. For a set of m genes,

    running_i = sum(|s_j|, j <= i in the set) / sum(|s_j|, in the set) - (not in it, <= i) / (n - m)

ES is its largest deviation from 0; p, by multilevel sampling (fgsea), compares with ES of the same
sign, and NES divides by their mean. *ora* asks, by the hypergeometric distribution, whether a set
has more of the top genes than chance; the universe is the measured genes that are in any set.

`fdr` is Benjamini-Hochberg over all tested sets of a mechanism and collection, both directions in
one pool, sets without overlap included; `fdr_all` is the same over all mechanisms of the call. The
units of both tests are genes, which are correlated, so neither says that a result would replicate.

`log2_error` is the standard error of log2 p from sampling (0 for *ora*, which is exact). The
Benjamini-Hochberg FDR grows with every p. If each p lies within two errors of its estimate, every
FDR therefore lies between `fdr_low`, from all lower ends, and `fdr_high`, from all higher ends. A
set is *borderline* if 5 % lies between the two (`terms.verdicts`). Sets with 5 % within three
errors are sampled again with more and more draws, until that is settled or too costly; so are the
sets that may name a mechanism, for their NES.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.genesets.collections import Collection, match
from samsvae_core.genesets.gsea import gsea_of
from samsvae_core.genesets.prerank import Progress
from samsvae_core.genesets.questions import (
    MIN_GENES,
    Enrichment,
    Question,
    as_enrichment,
    join,
    mechanisms_of,
    only_finite,
    question_of,
    ranked_genes,
    sizes_of,
)

FDR = "Benjamini-Hochberg over a mechanism's sets of one collection, both directions in one pool"
N_TOP = 50  # top genes each way in over-representation


class EnrichmentOptions(NamedTuple):
    """How sets are tested.

    `min_size` and `max_size` limit a set's measured genes; `seed` is that of sampling. For
    over-representation, `n_top` genes each way (all that moved, if None) are compared with the
    `universe` (all measured genes, if None).
    """

    min_size: int = 5
    max_size: int = 500
    seed: int = 0
    n_top: int | None = N_TOP
    universe: tuple[str, ...] | None = None


USUAL = EnrichmentOptions()


def rank_enrichment(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    min_size: int = 5,
    max_size: int = 500,
    seed: int = 0,
    n_processes: int = 1,
) -> Enrichment:
    """Return the GSEA of each mechanism: a column of loadings (genes x mechanisms), or one series.

    Parameters
    ----------
    loadings
        Scores by gene.
    collection
        Gene sets in the symbols of the scores.
    min_size, max_size
        Limits of a set's measured genes.
    seed
        Seed of the sampling.
    n_processes
        Number of worker processes.
    """
    sizes = sizes_of(collection, loadings.index, min_size, max_size)
    questions = [question_of(scores, collection, sizes, None) for scores in mechanisms_of(loadings)]
    return gsea_of([questions], seed, n_processes)[0]


def over_representation(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    n_top: int | None = N_TOP,
    min_size: int = 5,
    max_size: int = 500,
    universe: Iterable[str] | None = None,
    moved: pd.DataFrame | pd.Series | None = None,
) -> Enrichment:
    """Return the sets over-represented in the `n_top` highest (up) or lowest (down) genes.

    Up are only genes above 0, and down only genes below. Raises ValueError for a background or a
    collection with too few genes.

    Parameters
    ----------
    loadings
        Scores by gene (genes x mechanisms, or one series).
    collection
        Gene sets in the symbols of the scores.
    n_top
        Top genes each way; None takes all.
    min_size, max_size
        Limits of a set's measured genes.
    universe
        The background; all measured genes if None. Only genes that are in any set count.
    moved
        Of the shape of the loadings: which genes may be top genes (see `sure`); all if None.
    """
    chosen = None if universe is None else frozenset(universe)
    if chosen is not None and len(known := collection.genes & chosen) < MIN_GENES:
        raise ValueError(
            f"{len(known)} of the {len(chosen):,} genes of the background are in {collection.name},"
            f" and {MIN_GENES} are needed. Name more genes, by their names in the model."
        )
    sizes = sizes_of(collection, loadings.index if chosen is None else chosen, min_size, max_size)
    if moved is not None:
        loadings = loadings.where(moved, 0.0)
    questions = [
        question_of(scores, collection, sizes, chosen) for scores in mechanisms_of(loadings)
    ]
    tables = []
    for question in questions:
        if question.note["status"] == "done":
            genes = question.scores.index if chosen is None else chosen
            known = collection.genes.intersection(genes)
            tables.append(pd.concat([_ora_rows(question, sign, n_top, known) for sign in (1, -1)]))
    return as_enrichment(tables, questions, "ora")


def sure(
    loadings: pd.DataFrame, se: pd.DataFrame, probability: float = 0.95, effect: float = 0.1
) -> pd.DataFrame:
    """Return which loadings are at least `effect` in size and have their sign this probable.

    The probability is that of a Normal with standard error `se` lying on its mean's side of 0.
    """
    from scipy.stats import norm  # takes half a second to import

    return (loadings.abs() >= effect) & (loadings.abs() >= norm.ppf(probability) * se)


def _ora_rows(
    question: Question, sign: int, n_top: int | None, known: frozenset[str]
) -> pd.DataFrame:
    top = (sign * question.scores).nlargest(len(question.scores) if n_top is None else n_top)
    query = [gene for gene in top.index[top > 0] if gene in known]
    from scipy.stats import hypergeom  # takes half a second to import

    found = [[g for g in query if g in genes] for genes in map(set, question.sets.values())]
    hits = np.array([len(genes) for genes in found])
    size = np.array([len(genes) for genes in question.sets.values()])
    outside = len(known) - size - len(query) + hits
    with np.errstate(divide="ignore", invalid="ignore"):  # a zero divisor gives infinity
        odds_ratio = hits * outside / ((size - hits) * (len(query) - hits))
    return pd.DataFrame(
        {
            **question.note,
            "direction": "up" if sign > 0 else "down",
            "term": list(question.sets),
            "size": size,
            "overlap": hits,
            "es": np.nan,
            "nes": np.nan,
            "odds_ratio": odds_ratio,
            "p_value": hypergeom.sf(hits - 1, len(known), size, len(query)),
            "leading_edge": [";".join(genes) for genes in found],
            "log2_error": 0.0,
        }
    )


def running_sum(scores: pd.Series, genes_of_set: Iterable[str], seed: int = 0) -> pd.DataFrame:
    """Return the walk behind ES: rank (from 1), gene, score, hit, running_es; ties as in the test.

    Raises ValueError if the set holds none or all of the genes.
    """
    kept = only_finite(scores)[0]
    ranked = ranked_genes(kept, seed)
    hit = ranked.index.isin(list(genes_of_set))
    if not 0 < hit.sum() < len(hit):
        raise ValueError(
            f"{hit.sum()} of {len(hit)} measured genes are in the set;"
            " a running sum needs at least one inside and one outside."
        )
    weight = np.where(hit, ranked.abs(), 0.0)
    running = np.cumsum(weight / weight.sum() - ~hit / (~hit).sum())
    walk = kept[ranked.index].rename_axis("gene").reset_index(name="score")
    walk.insert(0, "rank", walk.index + 1)
    return walk.assign(hit=hit, running_es=running)


def enrich(
    loadings: pd.DataFrame | pd.Series,
    collections: Iterable[Collection],
    rules: EnrichmentOptions = USUAL,
    moved: pd.DataFrame | pd.Series | None = None,
    n_processes: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Enrichment:
    """Return both tests of every mechanism in every collection, matching genes through aliases.

    A collection that cannot be tested is left out and noted, unless it is the only one. GSEA
    results are cached on disk by content, mechanism by mechanism. Raises ValueError for a
    collection with too little in common with the genes, and CancelledError.

    Parameters
    ----------
    loadings
        Scores by gene (genes x mechanisms, or one series).
    collections
        Gene sets to test.
    rules
        Size limits, seed and top genes.
    moved
        As in `over_representation`.
    n_processes
        Worker processes; one per processor if None.
    progress, cancelled
        Called and asked regularly.
    """
    matched = [match(collection, loadings.index).collection for collection in collections]
    if not matched:
        raise ValueError("No collection of gene sets was named; expected one or more.")
    mechanisms = mechanisms_of(loadings)
    questions, tops, left_out = [], [], []
    for sets in matched:
        try:
            sizes = sizes_of(sets, loadings.index, rules.min_size, rules.max_size)
            top = (rules.n_top, rules.min_size, rules.max_size, rules.universe)
            tops.append(over_representation(loadings, sets, *top, moved=moved))
        except ValueError as error:
            if len(matched) == 1:
                raise
            left_out.append({"mechanism": "all", "collection": sets.name, "status": str(error)})
            continue
        questions.append([question_of(scores, sets, sizes, None) for scores in mechanisms])
    if not questions:
        raise ValueError(" ".join(note["status"] for note in left_out))
    ranked = gsea_of(questions, rules.seed, n_processes, progress, cancelled)
    found = join([part for pair in zip(ranked, tops, strict=True) for part in pair])
    if not left_out:
        return found
    unused = {"method": "gsea", "genes": 0, "dropped": 0, "duplicated": 0, "tied": 0.0}
    more = pd.DataFrame([note | unused for note in left_out])[found.notes.columns]
    return Enrichment(found.table, pd.concat([found.notes, more], ignore_index=True))
