"""Which gene sets a mechanism moves, up or down: preranked GSEA through gseapy, and top genes.

*gsea* walks the n genes from the highest loading s to the lowest. For a set of m genes,

    running_i = sum(|s_j|, j <= i in the set) / sum(|s_j|, in the set) - (not in it, <= i) / (n - m)

ES is its largest deviation from 0; p, by multilevel sampling (fgsea), compares with ES of the same
sign, and NES divides by their mean. *ora* asks, by the hypergeometric distribution, whether a set
has more of the top genes than chance; the universe is the measured genes that any set has.

`fdr` is Benjamini-Hochberg over all tested sets of a mechanism and collection, both directions in
one pool, sets without overlap included; `fdr_all` is the same over all mechanisms of the call. The
units of both tests are genes, and genes go together: neither says that a result would replicate.

`log2_error` is the standard error of log2 p that comes of sampling (0 for *ora*, which is exact).
Benjamini-Hochberg grows with every p, so with each p between its two ends, two errors lower and
higher, every FDR lies between what the lower ends give and what the higher ones do: `fdr_low` and
`fdr_high`. A set is *borderline* where 5 % lies between them (`terms.verdicts`). Where 5 % lies
within three errors, the set is asked again with more and more draws, until it does not or the draws
have cost enough; and so are the sets that a mechanism may be named by, whose NES decides.
"""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.genesets.collections import Collection, match, overlap, usable_sets, why_little
from samsvae_core.genesets.prerank import Progress, Ranking, prerank
from samsvae_core.system.files import atomic_write

COLUMNS = ["mechanism", "collection", "method", "direction", "term", "size", "overlap", "es", "nes"]
COLUMNS += ["odds_ratio", "p_value", "fdr", "fdr_all", "leading_edge"]
COLUMNS += ["log2_error", "fdr_low", "fdr_high"]
NUMBERS = [column for column in COLUMNS[5:] if column != "leading_edge"]
FDR = "Benjamini-Hochberg over a mechanism's sets of one collection, both directions in one pool"
MIN_GENES = 15  # with fewer, a ranking has next to nothing to say of a collection
MANY_TIES = 0.2  # share of tied genes from which a reader is told
FLAT = 1e-9  # spread over size below which a mechanism does nothing
STILL = 1e-5  # size below which all that is left is rounding
N_TOP = 50  # genes each way that over-representation looks at
PASSES = 0.05  # FDR up to which a result is told
ERRORS = 2.0  # standard errors of log2 p within which an FDR is taken to lie
DOUBT = 3.0  # errors within which a set is asked again: few that pass are then given up too early
DRAWS = 1000  # of gseapy, before multilevel goes on
MULTILEVEL = (
    1.15  # its spread over 40 seeds, over the error that it tells (its samples go together)
)
ROUNDS = 10_000, 200_000, 4_000_000  # draws of what is asked again, at most
WORK = 2 * 10**7  # genes drawn for one ranking in one round, at most: 2 seconds
TELLING = 10  # strongest sets of a ranking whose NES has to be known well


class Enrichment(NamedTuple):
    """Results, and one row of notes per mechanism.

    `status` is "done", "constant" (nothing to rank), "no set", or how it failed. `dropped` counts
    genes without a finite loading, `duplicated` the weaker rows of genes that have several, `tied`
    is the share of genes with the loading of another.
    """

    table: pd.DataFrame
    notes: pd.DataFrame


class Rules(NamedTuple):
    """How sets are tested: their measured genes, the seed of sampling, and of the top genes' test
    how many genes each way (all that moved, if None) and the universe (all measured, if None).
    """

    min_size: int = 5
    max_size: int = 500
    seed: int = 0
    n_top: int | None = N_TOP
    universe: tuple[str, ...] | None = None


USUAL = Rules()


class Question(NamedTuple):
    """One mechanism: finite scores in the order of genes, its sets, and what to note of it."""

    scores: pd.Series
    sets: dict[str, tuple[str, ...]]
    note: dict[str, object]


def rank_enrichment(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    min_size: int = 5,
    max_size: int = 500,
    seed: int = 0,
    n_processes: int = 1,
) -> Enrichment:
    """GSEA of each mechanism: a column of loadings (genes x mechanisms), or one series."""
    sizes = _sizes(collection, loadings.index, min_size, max_size)
    questions = [_question(scores, collection, sizes, None) for scores in _mechanisms(loadings)]
    return _gsea([questions], seed, n_processes)[0]


def _gsea(
    questions: list[list[Question]],
    seed: int,
    n_processes: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Enrichment]:
    """The results of several collections, whose rankings are worked off together.

    First all sets by gseapy; then in rounds those of each ranking that have to be known better.
    """
    asked = [q for group in questions for q in group if q.note["status"] == "done"]
    ordered = [_ranked(question.scores, seed) for question in asked]
    rankings = [_ranking(q, ranked) for q, ranked in zip(asked, ordered, strict=True)]
    answers = prerank(rankings, seed, n_processes, progress, cancelled)
    tables: dict[int, pd.DataFrame] = {}
    for question, ranked, answer in zip(asked, ordered, answers, strict=True):
        if isinstance(answer, str):
            question.note["status"] = answer
        else:
            tables[id(question)] = _gsea_rows(question, ranked, answer)
    known = {id(q): r for q, r in zip(asked, rankings, strict=True) if id(q) in tables}
    n_done = len(asked)

    def tell(now: Progress) -> None:
        if progress is not None:
            progress(Progress(n_done + now.done, n_done + now.total))

    for most in ROUNDS:
        again = {key: _asked_again(tables[key], ranking, most) for key, ranking in known.items()}
        more = [(key, *part) for key, part in again.items() if part is not None]
        if not more:
            break
        counts = prerank([ranking for _, ranking, _ in more], seed, n_processes, tell, cancelled)
        n_done += len(more)
        for (key, ranking, places), counted in zip(more, counts, strict=True):
            if not isinstance(counted, str):  # what is known stays, without them
                tables[key] = _counted(tables[key], places, counted, ranking.draws)
    return [
        _enrichment([tables[id(q)] for q in group if id(q) in tables], group, "gsea")
        for group in questions
    ]


def _ranking(question: Question, ranked: pd.Series) -> Ranking:
    rank = {gene: number for number, gene in enumerate(ranked.index)}
    sets = [[rank[gene] for gene in genes] for genes in question.sets.values()]
    return Ranking(ranked.tolist(), sets)


def _gsea_rows(question: Question, ranked: pd.Series, answer: list[list]) -> pd.DataFrame:
    es, nes, p_value, edges, error = zip(*answer, strict=True)
    edge_genes = [[str(ranked.index[rank]) for rank in edge] for edge in edges]
    return pd.DataFrame(
        {
            **question.note,
            "direction": ["up" if score >= 0 else "down" for score in es],
            "term": list(question.sets),
            "size": [len(genes) for genes in question.sets.values()],
            "overlap": [len(edge) for edge in edges],
            "es": es,
            "nes": nes,
            "odds_ratio": np.nan,
            "p_value": p_value,
            "leading_edge": [";".join(genes) for genes in edge_genes],
            "log2_error": _log2_error(np.array(p_value, float), np.array(error, float)),
            "draws": DRAWS,
        }
    )


def _log2_error(p_value: np.ndarray, told: np.ndarray) -> np.ndarray:
    """The standard error of log2 p, of what gseapy tells.

    Where plain draws decided, gseapy takes all of them; p is a share of those with its sign, so
    that the error is too large where p is. k extreme ones among n are, by the Beta distribution of
    a share, log2 p +- sqrt(trigamma(k + 1) - trigamma(n + 1)) / ln 2; gseapy's own figure tells k.
    Where it knows none, p is so small, or so large, that no error of 2 changes what it says.
    """
    from scipy.special import polygamma  # takes half a second to import

    once = np.sqrt(polygamma(1, np.arange(1, DRAWS + 2)) - polygamma(1, DRAWS + 1)) / np.log(2)
    extreme = np.abs(np.nan_to_num(told)[:, None] - once).argmin(axis=1)
    plain = np.isclose(told, once[extreme], rtol=0, atol=1e-9)
    of_sign = np.maximum((extreme + 1) / p_value, extreme + 1)
    share = np.sqrt(polygamma(1, extreme + 1) - polygamma(1, of_sign)) / np.log(2)
    unknown = np.where(p_value < 1, 2.0, 0.0)
    return np.where(plain, share, np.where(np.isnan(told), unknown, MULTILEVEL * told))


def _asked_again(
    rows: pd.DataFrame, ranking: Ranking, most: int
) -> tuple[Ranking, np.ndarray] | None:
    """The sets of a ranking that have to be known better, with more draws, and their places."""
    table = _with_fdr(rows, DOUBT)
    telling = table["fdr_low"] <= PASSES
    wanted = telling & (table["fdr_high"] > PASSES)
    if most > ROUNDS[0]:
        strongest = table.loc[telling, "nes"].abs().nlargest(TELLING).index
        wanted |= table.index.isin(strongest) & (table["draws"] < ROUNDS[1] / 2)
    places = np.flatnonzero(wanted)
    n, sizes = len(ranking.scores), set(table["size"].iloc[places])
    cost = sum(m if m * m < 4 * n else n // 3 for m in sizes)
    draws = min(most, WORK // max(cost, 1))
    places = places[2 * table["draws"].to_numpy()[places] <= draws]  # fewer would add little
    if not len(places):
        return None
    return Ranking(ranking.scores, [ranking.sets[place] for place in places], draws), places


def _counted(rows: pd.DataFrame, places: np.ndarray, counted: list, draws: int) -> pd.DataFrame:
    """The rows with what draws say of those at these places, p where they know it better."""
    from scipy.special import polygamma  # takes half a second to import

    of_sign, extreme, mean = np.array(counted, float).T
    error = np.sqrt(polygamma(1, extreme + 1) - polygamma(1, of_sign + 1)) / np.log(2)
    rows = rows.copy()
    index = rows.index[places]
    rows.loc[index, "draws"] = draws
    rows.loc[index, "nes"] = np.where(mean, rows.loc[index, "es"] / np.abs(mean), np.nan)
    better = error < rows.loc[index, "log2_error"]
    known = index[better]
    rows.loc[known, "p_value"] = ((extreme + 1) / (of_sign + 1))[better]
    rows.loc[known, "log2_error"] = error[better]
    return rows


def over_representation(
    loadings: pd.DataFrame | pd.Series,
    collection: Collection,
    n_top: int | None = N_TOP,
    min_size: int = 5,
    max_size: int = 500,
    universe: Iterable[str] | None = None,
    moved: pd.DataFrame | pd.Series | None = None,
) -> Enrichment:
    """Sets with more than their share of the `n_top` highest (up) or lowest (down) genes.

    Only genes above 0 are up, and only genes below are down; where `moved` is given, of the form
    of the loadings, only those that it says are (see `sure`); all of them if `n_top` is None. Of a
    `universe` of one's own, too, the genes that belong to any set count.
    """
    chosen = None if universe is None else frozenset(universe)
    if chosen is not None and len(known := collection.genes & chosen) < MIN_GENES:
        raise ValueError(
            f"{len(known)} of the {len(chosen):,} genes of the background are in {collection.name},"
            f" and {MIN_GENES} are needed. Name more genes, as the model calls them."
        )
    sizes = _sizes(collection, loadings.index if chosen is None else chosen, min_size, max_size)
    if moved is not None:
        loadings = loadings.where(moved, 0.0)
    questions = [_question(scores, collection, sizes, chosen) for scores in _mechanisms(loadings)]
    tables = []
    for question in questions:
        if question.note["status"] == "done":
            genes = question.scores.index if chosen is None else chosen
            known = collection.genes.intersection(genes)
            tables.append(pd.concat([_ora_rows(question, sign, n_top, known) for sign in (1, -1)]))
    return _enrichment(tables, questions, "ora")


def sure(
    loadings: pd.DataFrame, se: pd.DataFrame, probability: float = 0.95, effect: float = 0.1
) -> pd.DataFrame:
    """Which loadings are at least `effect` in size, with their sign at least this probable.

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
    with np.errstate(divide="ignore", invalid="ignore"):  # nothing to divide by: infinite
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
    """The walk behind ES: rank (from 1), gene, score, hit, running_es; ties as in the test."""
    kept = _finite(scores)[0]
    ranked = _ranked(kept, seed)
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


def _sizes(collection: Collection, genes: Iterable[str], min_size: int, max_size: int) -> range:
    """The sizes of sets to test, once it is clear that there are any."""
    if not 1 <= min_size <= max_size:
        raise ValueError(f"Expected 1 <= minimum <= maximum size; found {min_size} and {max_size}.")
    measured = {str(gene) for gene in genes}
    found = overlap(collection, measured, min_size, max_size)
    if found.n_genes < MIN_GENES or not found.n_sets:
        raise ValueError(
            f"{found.n_genes} of {len(measured)} genes are in {collection.name}, and"
            f" {found.n_sets} of its sets have {min_size} to {max_size} of them; {MIN_GENES} genes"
            " and 1 set are needed. "
            + (
                why_little(collection, measured)
                if found.n_genes < MIN_GENES
                else "Choose a smaller minimum size, or a larger collection; a set of all genes "
                "stands out from nothing."
            )
        )
    return range(min_size, max_size + 1)


def _mechanisms(loadings: pd.DataFrame | pd.Series) -> list[pd.Series]:
    if isinstance(loadings, pd.Series):
        return [loadings.rename("shift" if loadings.name is None else loadings.name)]
    if not loadings.columns.is_unique:
        raise ValueError("Two mechanisms have the same name; rename the columns of the loadings.")
    return [loadings.iloc[:, column] for column in range(loadings.shape[1])]


def _finite(scores: pd.Series) -> tuple[pd.Series, int, int]:
    """One finite score per gene, the strongest, by gene; how many were not, and were weaker."""
    kept = scores[np.isfinite(scores.astype(float)) & scores.index.notna()].astype(float)
    kept = kept.set_axis(kept.index.astype(str)).sort_values().sort_values(key=abs, kind="stable")
    unique = kept[~kept.index.duplicated(keep="last")].sort_index()
    return unique, len(scores) - len(kept), len(kept) - len(unique)


def _question(
    scores: pd.Series, collection: Collection, sizes: range, universe: frozenset[str] | None
) -> Question:
    kept, dropped, duplicated = _finite(scores)
    genes = kept.index if universe is None else universe
    sets = usable_sets(collection, genes, sizes[0], sizes[-1])
    flat = kept.empty or kept.std(ddof=0) <= FLAT * kept.abs().max() or kept.abs().max() < STILL
    note: dict[str, object] = {
        "mechanism": scores.name,
        "collection": collection.name,
        "status": "constant" if flat else "done" if sets else "no set",
        "genes": len(kept),
        "dropped": dropped,
        "duplicated": duplicated,
        "tied": float(kept.duplicated(keep=False).mean()) if len(kept) else 0.0,
    }
    return Question(kept, sets, note)


def _ranked(scores: pd.Series, seed: int) -> pd.Series:
    """Scores from high to low, none of them 0; the seed decides the order of those that are tied.

    Multilevel counts in units of 2^-30 of the sum of |s|. A sampled set of genes below that has no
    running sum, and gseapy panics; so each score moves away from 0 by a few units.
    """
    step = scores.abs().sum() * 2.0**-27
    apart = np.random.default_rng(seed).uniform(0, step / 2, len(scores))
    moved = scores + np.where(scores < 0, -step, step)
    moved += np.where(scores.duplicated(keep=False), apart, 0.0)
    return moved.sort_values(ascending=False, kind="stable")


def _enrichment(tables: list[pd.DataFrame], questions: list[Question], method: str) -> Enrichment:
    ordered = [table.sort_values("p_value", kind="stable") for table in tables]
    empty = pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    table = pd.concat(ordered, ignore_index=True) if tables else empty
    table = _with_fdr(table).assign(method=method, fdr_all=_adjusted(table["p_value"]))
    notes = pd.DataFrame([question.note for question in questions])
    notes.insert(2, "method", method)
    return Enrichment(table[COLUMNS], notes)


def _with_fdr(table: pd.DataFrame, errors: float = ERRORS) -> pd.DataFrame:
    """Rows of one collection with the FDR of each mechanism, and the two ends of it."""
    factor = 2.0 ** (errors * table["log2_error"])
    ends = {
        "fdr": table["p_value"],
        "fdr_low": table["p_value"] / factor,
        "fdr_high": (table["p_value"] * factor).clip(upper=1.0),
    }
    by = table["mechanism"]
    return table.assign(
        **{name: p.groupby(by, sort=False).transform(_adjusted) for name, p in ends.items()}
    )


def _adjusted(p_values: pd.Series) -> np.ndarray:
    from scipy.stats import false_discovery_control  # takes half a second to import

    return false_discovery_control(p_values.to_numpy(float)) if len(p_values) else np.empty(0)


def enrich(
    loadings: pd.DataFrame | pd.Series,
    collections: Iterable[Collection],
    rules: Rules = USUAL,
    moved: pd.DataFrame | pd.Series | None = None,
    n_processes: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Enrichment:
    """Both tests of every mechanism in every collection, gene symbols matched through aliases.

    `moved` is that of `over_representation`. A collection that cannot be tested is left out and
    noted, unless it is the only one. GSEA is remembered on disk by content, mechanism by
    mechanism, and runs in as many processes as there are processors; `progress` hears of it and
    `cancelled` is asked every moment (raises CancelledError). Raises ValueError for a collection
    with too little in common with the genes.
    """
    matched = [match(collection, loadings.index).collection for collection in collections]
    if not matched:
        raise ValueError("No collection of gene sets was named; expected one or more.")
    mechanisms = _mechanisms(loadings)
    questions, tops, left_out = [], [], []
    for sets in matched:
        try:
            sizes = _sizes(sets, loadings.index, rules.min_size, rules.max_size)
            top = (rules.n_top, rules.min_size, rules.max_size, rules.universe)
            tops.append(over_representation(loadings, sets, *top, moved=moved))
        except ValueError as error:
            if len(matched) == 1:
                raise
            left_out.append({"mechanism": "all", "collection": sets.name, "status": str(error)})
            continue
        questions.append([_question(scores, sets, sizes, None) for scores in mechanisms])
    if not questions:
        raise ValueError(" ".join(note["status"] for note in left_out))
    ranked = _gsea(questions, rules.seed, n_processes, progress, cancelled)
    found = join([part for pair in zip(ranked, tops, strict=True) for part in pair])
    if not left_out:
        return found
    unused = {"method": "gsea", "genes": 0, "dropped": 0, "duplicated": 0, "tied": 0.0}
    more = pd.DataFrame([note | unused for note in left_out])[found.notes.columns]
    return Enrichment(found.table, pd.concat([found.notes, more], ignore_index=True))


class Screen(NamedTuple):
    """A preview: `z` and `p_value` of each term (rows) and mechanism (columns), sizes of sets."""

    z: pd.DataFrame
    p_value: pd.DataFrame
    size: pd.Series


def screen(
    loadings: pd.DataFrame, collection: Collection, min_size: int = 5, max_size: int = 500
) -> Screen:
    """Rank-sum test of every mechanism (column) and set at once: a preview, no replacement.

    z = (R - m (n + 1) / 2) / sd, where R is the sum of the ranks of the set's m genes among n;
    sd^2 = m (n - m) / 12 (n + 1 - sum(t^3 - t) / (n (n - 1))), t the sizes of groups of tied genes
    (Mann and Whitney, 1947). Two-sided p by the Normal. It asks whether a set lies higher than the
    others on the whole; GSEA whether part of it gathers at an end. Genes without a finite loading
    on every mechanism are left out, and of genes that are there twice the second.
    """
    from scipy.stats import norm, rankdata

    kept = loadings[np.isfinite(loadings).all(axis=1) & ~loadings.index.duplicated()]
    members, terms = membership(collection, kept.index, min_size, max_size)
    n, m = len(kept), members.sum(axis=1)
    ranks = rankdata(kept.to_numpy(float), axis=0)
    ties = np.array([_tied_pairs(column) for column in ranks.T])
    with np.errstate(divide="ignore", invalid="ignore"):  # all tied: no deviation, z is NaN
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
    """Sets of `usable_sets` x genes, 1 where the gene belongs to the set; and the sets' names."""
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
    """What a reader has to know of a run: mechanisms not tested, genes dropped, many ties."""
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
            found.append(f"{what}: {row.tied:.0%} of genes are tied, their order is by chance")
    return found


def join(parts: Iterable[Enrichment]) -> Enrichment:
    """Several collections or methods in one; each keeps its own `fdr_all`."""
    tables, notes = zip(*parts, strict=True)
    filled = [table for table in tables if len(table)] or tables[:1]
    return Enrichment(pd.concat(filled, ignore_index=True), pd.concat(notes, ignore_index=True))


def write_parquet(enrichment: Enrichment, path: Path) -> None:
    """The table, with the notes in the file's metadata."""
    table = enrichment.table.copy()
    table.attrs = {"notes": enrichment.notes.to_dict("list")}
    content = io.BytesIO()
    table.to_parquet(content, write_page_checksum=True)
    atomic_write(path, content.getvalue())


def read_parquet(path: Path) -> Enrichment:
    """What `write_parquet` wrote; of a table made before errors were kept, without one."""
    table = pd.read_parquet(path, page_checksum_verification=True)
    if "log2_error" not in table:
        table = table.assign(log2_error=np.nan, fdr_low=table["fdr"], fdr_high=table["fdr"])
    return Enrichment(table, pd.DataFrame(table.attrs.pop("notes")))
