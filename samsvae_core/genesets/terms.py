"""Summarise gene set results: group similar terms, and suggest a name for a mechanism."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.genesets.collections import collections
from samsvae_core.genesets.questions import PASSES

JACCARD = 0.5  # Jaccard index of leading edges from which sets count as similar
ALIKE = 0.9  # share of a general term's |NES| that a specific one needs to replace it
VERDICTS = ("passes", "borderline", "does not pass")
POOL = ["mechanism", "collection", "method", "direction"]
SOURCES = {"HALLMARK", "REACTOME", "WP", "KEGG", "BIOCARTA", "PID", "GOBP", "GOCC", "GOMF", "HP"}
# abbreviations with a vowel and no digit, in their usual spelling
SPELLED = """ABC ADP AKT ALK AMPA AMPK AP APC ATM ATP ATPase ATPases ATR BRAF CoA CoV CREB DNA
ECM EGF EGFR EGFEGFR EMT EPH EPO ER ERBB ERK FAS FGF FOXO FYN GABA GTPase GTPases HIV IFN IFNA
IFNG IGF II III IKK IL IRF IV IX JAK JUN KIT KRAS MAPK MET miRNA mRNA MTOR MYC NAD NADH NADPH
NER NFAT NMDA NOD NTRK PPAR PPARA PPARG PTEN RAC RAF RAS RET RHO RNA ROS rRNA RUNX SARS siRNA
SNARE snRNA snRNP SOS SPRY SREBF SREBP STAT SUMO TCA TNFA TRAIL TRIF TRKA tRNA UPR UV VEGF VEGFA
VI VII VIII"""
SPELLING = {name.upper(): name for name in SPELLED.split()} | {"DN": "down"}


def grouped(table: pd.DataFrame, threshold: float = JACCARD) -> pd.DataFrame:
    """Return the table with a column `group`: the term that stands for similar ones.

    Within a mechanism, collection, method and direction, in the order of p (then |NES|, then
    names), a term joins the first earlier group whose own term's leading edge has a Jaccard index
    of at least the threshold with its own. If there is none, or its leading edge is empty, it forms
    its own group. Rows keep their order. Raises ValueError for a threshold that is not above 0 and
    at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"Expected a Jaccard index above 0 and at most 1; found {threshold}.")
    ordered = _ordered(table.reset_index(drop=True))
    edges, group = table["leading_edge"].to_numpy(object), table["term"].to_numpy(object).copy()
    for rows in ordered.groupby(POOL, sort=False).indices.values():
        places = ordered.index[rows]
        group[places] = group[places][_representatives(edges[places], threshold)]
    return table.assign(group=group)


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Return rows by p, then |NES|, then name."""
    keys = table.assign(weakness=-table["nes"].abs())
    return keys.sort_values(["p_value", "weakness", "term"], kind="stable")


def _representatives(edges: Sequence[str] | np.ndarray, threshold: float) -> list[int]:
    """Return, for each leading edge, the place of the one that stands for it, own or earlier."""
    genes = [_genes(edge) for edge in edges]
    sizes = np.array([len(members) for members in genes])
    column, _ = pd.factorize(np.array([g for members in genes for g in members], dtype=object))
    cells = np.ones(len(column)), (np.repeat(np.arange(len(genes)), sizes), column)
    member = sp.csr_matrix(cells, shape=(len(genes), column.max(initial=0) + 1))
    shared = (member @ member.T).tocoo()
    alike = shared.data / (sizes[shared.row] + sizes[shared.col] - shared.data) >= threshold
    alike &= shared.col < shared.row
    found = list(range(len(genes)))
    for place, earlier in sorted(zip(shared.row[alike], shared.col[alike], strict=True)):
        if found[place] == place and found[earlier] == earlier:
            found[place] = int(earlier)
    return found


def _genes(edge: str) -> frozenset[str]:
    return frozenset(edge.split(";")) - {""}


def verdicts(table: pd.DataFrame, fdr: float = PASSES) -> pd.Series:
    """Return the verdict of each row, one of VERDICTS, at this FDR.

    A row is borderline if the threshold lies between `fdr_low` and `fdr_high`, so that other draws
    might decide otherwise. Without errors, as in over-representation, the FDR decides.
    """
    low, high = table["fdr_low"] <= fdr, table["fdr_high"] <= fdr
    found = np.select([high, low], VERDICTS[:2], VERDICTS[2])
    return pd.Series(found, index=table.index, dtype=object)


def readable(term: str) -> str:
    """Return a name in capitals and underscores as words, without its collection; others unchanged.

    HALLMARK_TNFA_SIGNALING_VIA_NFKB becomes "TNFA signaling via NFKB". A part stays in capitals if
    it has a digit or no vowel, is a single letter other than A, or is in the list of abbreviations.
    """
    words = _words(term)
    begins_low = words != term and words.partition(" ")[0].islower()
    return words[0].upper() + words[1:] if begins_low else words


def _words(term: str) -> str:
    """Return `readable` as it is inside a sentence."""
    first, _, rest = term.partition("_")
    if not rest or term != term.upper():
        return term
    parts = (rest if first in SOURCES else term).split("_")
    return " ".join(SPELLING.get(part, _lowered(part)) for part in parts)


def _lowered(part: str) -> str:
    has_vowel = not set("AEIOUY").isdisjoint(part)
    is_word = has_vowel and part.isalpha() and (len(part) > 1 or part == "A")
    return part.lower() if is_word else part


def suggested_names(
    table: pd.DataFrame, mechanisms: Iterable[object], fdr: float = PASSES, most: int = 2
) -> pd.DataFrame:
    """Return a name for each mechanism and the `evidence` for it, as texts by mechanism.

    The name is made of the `most` strongest terms of GSEA, over all collections and both
    directions, that pass the `fdr` or are borderline, as the evidence then says. They are taken in
    the order of |NES|, then names, without those whose leading edge has a Jaccard index of at least
    0.5 with that of a stronger one. A general term gives way to a specific one: a smaller set whose
    leading edge lies within its own, with at least nine tenths of its |NES|. (The order is not that
    of p, because sampling knows a small p only to a factor of two, but NES to a part in a hundred,
    so names would depend on the seed.) If nothing passes, or nothing was tested, the name is
    "unnamed" and the evidence reports over-representation.
    """
    table = table.assign(verdict=verdicts(table, fdr))
    passing = table["verdict"] != VERDICTS[2]
    passing &= (table["method"] == "gsea") & (table["leading_edge"] != "")
    strength = table["nes"].abs().round(9)  # equal draws differ only by rounding
    ordered = table.assign(strength=strength)[passing].sort_values(
        ["strength", "term"], ascending=[False, True], kind="stable"
    )
    nothing = f"No gene set passes {100 * fdr:g} % FDR by GSEA."
    tops = table[(table["method"] == "ora") & (table["fdr"] <= fdr)]
    tested = set(table.loc[table["method"] == "gsea", "mechanism"])
    rows = []
    for mechanism in mechanisms:
        best = list(_telling(ordered[ordered["mechanism"] == mechanism], most).itertuples())
        name, evidence = "; ".join(map(_name, best)), "; ".join(map(_evidence, best))
        why = nothing if mechanism in tested else "Not tested."
        if top := [_name(row) for row in tops[tops["mechanism"] == mechanism].itertuples()]:
            why += f" By over-representation: {'; '.join(dict.fromkeys(top[:most]))}."
        rows.append((mechanism, name or "unnamed", evidence or why))
    return pd.DataFrame(rows, columns=["mechanism", "name", "evidence"]).set_index("mechanism")


def _telling(ordered: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return the first rows that are neither redundant nor too general, at most `most`."""
    edges = [_genes(edge) for edge in ordered["leading_edge"]]
    names = [_name(row) for row in ordered.itertuples()]
    size, strength = ordered["size"].to_numpy(), ordered["strength"].to_numpy()
    chosen: list[int] = []
    for place, (name, edge) in enumerate(zip(names, edges, strict=True)):
        if len(chosen) == most:
            break
        is_said = any(
            names[better] == name
            or len(edges[better] & edge) / len(edges[better] | edge) >= JACCARD
            for better in chosen
        )
        rivals = np.flatnonzero((size < size[place]) & (strength >= ALIKE * strength[place]))
        if not is_said and not any(edges[rival] <= edge for rival in rivals):
            chosen.append(place)
    return ordered.iloc[chosen]


def _name(row: Any) -> str:
    return readable(row.term) + (" (down)" if row.direction == "down" else "")


def _evidence(row: Any) -> str:
    known = collections().get(row.collection)
    source = known.title.removeprefix("MSigDB ").partition(",")[0] if known else row.collection
    return (
        f"{source} {_words(row.term)}: NES {row.nes:.2f}, {fdr_in_words(row)}, "
        f"{row.overlap} of {row.size} genes in the leading edge"
    )


def fdr_in_words(row: Any) -> str:
    """Return the FDR of a row with its `verdict`, and its range if borderline."""
    told = f"FDR {row.fdr:.2g}"
    if row.verdict == VERDICTS[1]:
        told += f" (borderline: by sampling between {row.fdr_low:.2g} and {row.fdr_high:.2g})"
    return told
