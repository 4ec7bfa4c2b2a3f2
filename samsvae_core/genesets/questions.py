"""The questions put to gene set tests, and the table of the answers."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.genesets.collections import Collection, overlap, usable_sets, why_little
from samsvae_core.system.files import atomic_write

COLUMNS = ["mechanism", "collection", "method", "direction", "term", "size", "overlap", "es", "nes"]
COLUMNS += ["odds_ratio", "p_value", "fdr", "fdr_all", "leading_edge"]
COLUMNS += ["log2_error", "fdr_low", "fdr_high"]
NUMBERS = [column for column in COLUMNS[5:] if column != "leading_edge"]
MIN_GENES = 15  # with fewer genes in a collection, a ranking says next to nothing
FLAT = 1e-9  # spread over size below which a mechanism has no effect
STILL = 1e-5  # size below which only rounding is left
PASSES = 0.05  # FDR up to which a set passes
ERRORS = 2.0  # standard errors of log2 p that span fdr_low to fdr_high


class Enrichment(NamedTuple):
    """Results, and one row of notes per mechanism.

    `status` is "done", "constant" (nothing to rank), "no set", or how it failed. `dropped` counts
    genes without a finite loading, `duplicated` the weaker rows of genes that have several, and
    `tied` is the share of genes whose loading another gene has too.
    """

    table: pd.DataFrame
    notes: pd.DataFrame


class Question(NamedTuple):
    """One mechanism: finite scores in the order of genes, its sets, and its notes."""

    scores: pd.Series
    sets: dict[str, tuple[str, ...]]
    note: dict[str, object]


def sizes_of(collection: Collection, genes: Iterable[str], min_size: int, max_size: int) -> range:
    """Return the sizes of sets to test; raises ValueError if no set can be tested."""
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


def mechanisms_of(loadings: pd.DataFrame | pd.Series) -> list[pd.Series]:
    if isinstance(loadings, pd.Series):
        return [loadings.rename("shift" if loadings.name is None else loadings.name)]
    if not loadings.columns.is_unique:
        raise ValueError("Two mechanisms have the same name; rename the columns of the loadings.")
    return [loadings.iloc[:, column] for column in range(loadings.shape[1])]


def only_finite(scores: pd.Series) -> tuple[pd.Series, int, int]:
    """Return the strongest finite score of each gene, and how many were not finite or weaker."""
    kept = scores[np.isfinite(scores.astype(float)) & scores.index.notna()].astype(float)
    kept = kept.set_axis(kept.index.astype(str)).sort_values().sort_values(key=abs, kind="stable")
    unique = kept[~kept.index.duplicated(keep="last")].sort_index()
    return unique, len(scores) - len(kept), len(kept) - len(unique)


def question_of(
    scores: pd.Series, collection: Collection, sizes: range, universe: frozenset[str] | None
) -> Question:
    kept, dropped, duplicated = only_finite(scores)
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


def ranked_genes(scores: pd.Series, seed: int) -> pd.Series:
    """Return scores from high to low, none of them 0; the seed decides the order of ties.

    Multilevel counts in units of 2^-30 of the sum of |s|. A sampled set whose genes are below that
    has no running sum, and gseapy panics; so each score is moved away from 0 by a few units.
    """
    step = scores.abs().sum() * 2.0**-27
    apart = np.random.default_rng(seed).uniform(0, step / 2, len(scores))
    moved = scores + np.where(scores < 0, -step, step)
    moved += np.where(scores.duplicated(keep=False), apart, 0.0)
    return moved.sort_values(ascending=False, kind="stable")


def as_enrichment(tables: list[pd.DataFrame], questions: list[Question], method: str) -> Enrichment:
    ordered = [table.sort_values("p_value", kind="stable") for table in tables]
    empty = pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(NUMBERS, float))
    table = pd.concat(ordered, ignore_index=True) if tables else empty
    table = with_fdr(table).assign(method=method, fdr_all=adjusted(table["p_value"]))
    notes = pd.DataFrame([question.note for question in questions])
    notes.insert(2, "method", method)
    return Enrichment(table[COLUMNS], notes)


def with_fdr(table: pd.DataFrame, errors: float = ERRORS) -> pd.DataFrame:
    """Return rows of one collection with the FDR of each mechanism and its two ends."""
    factor = 2.0 ** (errors * table["log2_error"])
    ends = {
        "fdr": table["p_value"],
        "fdr_low": table["p_value"] / factor,
        "fdr_high": (table["p_value"] * factor).clip(upper=1.0),
    }
    by = table["mechanism"]
    return table.assign(
        **{name: p.groupby(by, sort=False).transform(adjusted) for name, p in ends.items()}
    )


def adjusted(p_values: pd.Series) -> np.ndarray:
    from scipy.stats import false_discovery_control  # takes half a second to import

    return false_discovery_control(p_values.to_numpy(float)) if len(p_values) else np.empty(0)


def join(parts: Iterable[Enrichment]) -> Enrichment:
    """Return several collections or methods as one; each keeps its own `fdr_all`."""
    tables, notes = zip(*parts, strict=True)
    filled = [table for table in tables if len(table)] or tables[:1]
    return Enrichment(pd.concat(filled, ignore_index=True), pd.concat(notes, ignore_index=True))


def write_parquet(enrichment: Enrichment, path: Path) -> None:
    """Write the table, with the notes in the file's metadata."""
    table = enrichment.table.copy()
    table.attrs = {"notes": enrichment.notes.to_dict("list")}
    content = io.BytesIO()
    table.to_parquet(content, write_page_checksum=True)
    atomic_write(path, content.getvalue())


def read_parquet(path: Path) -> Enrichment:
    """Return what `write_parquet` wrote; older tables lack errors, which become NaN."""
    table = pd.read_parquet(path, page_checksum_verification=True)
    if "log2_error" not in table:
        table = table.assign(log2_error=np.nan, fdr_low=table["fdr"], fdr_high=table["fdr"])
    return Enrichment(table, pd.DataFrame(table.attrs.pop("notes")))
