"""Preranked gene set enrichment analysis (Subramanian et al., PNAS 2005), through gseapy."""

from collections.abc import Callable

import numpy as np
import pandas as pd

from samsvae_core.genesets.prerank import Progress, Ranking, prerank
from samsvae_core.genesets.questions import (
    PASSES,
    Enrichment,
    Question,
    as_enrichment,
    ranked_genes,
    with_fdr,
)

DOUBT = 3.0  # errors within which a set is sampled again; few passing sets are then missed
DRAWS = 1000  # draws of gseapy before multilevel sampling continues
MULTILEVEL = 1.15  # spread over 40 seeds relative to the stated error, as samples are correlated
ROUNDS = 10_000, 200_000, 4_000_000  # most draws of each round of sampling again
WORK = 2 * 10**7  # most genes drawn for one ranking in one round: 2 seconds
TELLING = 10  # strongest sets of a ranking, whose NES must be precise


def gsea_of(
    questions: list[list[Question]],
    seed: int,
    n_processes: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Enrichment]:
    """Return the results of several collections, whose rankings are processed together.

    gseapy tests all sets first; then sets that need more precision are sampled again in rounds.
    """
    asked = [q for group in questions for q in group if q.note["status"] == "done"]
    ordered = [ranked_genes(question.scores, seed) for question in asked]
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
            if not isinstance(counted, str):  # on failure the first result stays
                tables[key] = _counted(tables[key], places, counted, ranking.draws)
    return [
        as_enrichment([tables[id(q)] for q in group if id(q) in tables], group, "gsea")
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
    """Return the standard error of log2 p, from the error gseapy states.

    Where plain draws decided, gseapy's error is over all draws, although p is a share of those with
    its sign, so the error is too large for large p. k extreme ones among n give, by the Beta
    distribution of a share, log2 p +- sqrt(trigamma(k + 1) - trigamma(n + 1)) / ln 2; gseapy's own
    figure reveals k. Where gseapy states none, p is so small, or so large, that an error of 2 would
    not change the conclusion.
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
    """Return the sets of a ranking that need more precision, with more draws, and their places."""
    table = with_fdr(rows, DOUBT)
    telling = table["fdr_low"] <= PASSES
    wanted = telling & (table["fdr_high"] > PASSES)
    if most > ROUNDS[0]:
        strongest = table.loc[telling, "nes"].abs().nlargest(TELLING).index
        wanted |= table.index.isin(strongest) & (table["draws"] < ROUNDS[1] / 2)
    places = np.flatnonzero(wanted)
    n, sizes = len(ranking.scores), set(table["size"].iloc[places])
    cost = sum(m if m * m < 4 * n else n // 3 for m in sizes)
    draws = min(most, WORK // max(cost, 1))
    places = places[2 * table["draws"].to_numpy()[places] <= draws]  # fewer draws would add little
    if not len(places):
        return None
    return Ranking(ranking.scores, [ranking.sets[place] for place in places], draws), places


def _counted(rows: pd.DataFrame, places: np.ndarray, counted: list, draws: int) -> pd.DataFrame:
    """Return the rows updated from draws at these places, with their p where it is more precise."""
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
