"""Gene-set collections that were chosen or uploaded, and their tests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial

import pandas as pd
import streamlit as st

from app.server.background import Batch
from app.session.results import BATCHES, MAX_BATCHES
from samsvae_core.analysis import (
    enrichment_export,
    gene_rankings,
)
from samsvae_core.analysis.gene_rankings import GeneRanking
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets import collections as gene_sets
from samsvae_core.genesets import enrichment, enrichr, questions, terms
from samsvae_core.genesets.collections import Collection, Match
from samsvae_core.genesets.enrichment import EnrichmentOptions
from samsvae_core.genesets.questions import Enrichment


def collections() -> Mapping[str, Callable[[], Collection]]:
    """Return all collections by name, each loaded when called: shipped, Enrichr's, and one's own.

    Of Enrichr only the libraries already on disk are listed.
    """
    shipped = {name: partial(gene_sets.load_collection, name) for name in gene_sets.collections()}
    kept = {name: partial(enrichr.enrichr, name) for name in enrichr.cached_enrichr()}
    own = {name: partial(_itself, own) for name, own in own_collections().items()}
    return shipped | kept | own


def _itself(collection: Collection) -> Collection:
    return collection


def own_collections() -> dict[str, Collection]:
    """Return the collections uploaded in this session, by name."""
    found: dict[str, Collection] = st.session_state.setdefault("own_collections", {})
    return found


def brought_collection(content: bytes, name: str) -> Collection:
    """Return the collection in a GMT file; raises ValueError if it is invalid or its name taken."""
    added = gene_sets.parse_gmt(content, re.sub(r"\.gmt(\.gz)?$", "", name, flags=re.IGNORECASE))
    if added.name in gene_sets.collections():
        raise ValueError(f"{added.name} is the name of a shipped collection; rename the file.")
    if added.name in enrichr.cached_enrichr():
        raise ValueError(f"{added.name} is the name of an Enrichr library kept here; rename it.")
    return added


def add_collection(content: bytes, name: str) -> Collection:
    """Add a GMT file to this session's collections; raises ValueError as `brought_collection`."""
    added = brought_collection(content, name)
    if own_collections().get(added.name) != added:
        own_collections()[added.name] = added
        _choose_collection(added.name)
    return added


def _choose_collection(name: str) -> None:
    """Add a collection to those selected; call it before their widget is drawn."""
    chosen = st.session_state.get("collections", ["hallmark", "reactome"])
    st.session_state["collections"] = [*(c for c in chosen if c != name), name]


def show_collection(name: str) -> None:
    """Select only this collection; call it before the widget is drawn."""
    st.session_state["collections"] = [name]


def fetch_enrichr(name: str) -> Collection:
    """Download an Enrichr library, again if it is on disk, select it and return it."""
    fetched = enrichr.enrichr(name, refresh=name in enrichr.cached_enrichr())
    _choose_collection(name)
    return fetched


@st.cache_resource(max_entries=32, show_spinner=False)
def _matched(_collection: Collection, _genes: tuple[str, ...], checksum: str) -> Match:
    return gene_sets.match(_collection, _genes)


def matched(collection: Collection, genes: Iterable[str]) -> Match:
    """Return a collection with its genes matched to the symbols of the model, cached."""
    known = tuple(genes)
    listed = hashlib.sha256(
        "\n".join(known).encode()
    ).hexdigest()  # faster than the cache's own hashing
    return _matched(collection, known, f"{collection.name} {collection.checksum} {listed}")


def precomputed(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
) -> Enrichment | None:
    """Return the results stored in the bundle if they cover the whole question, else None."""
    usual = rules == enrichment.USUAL and ranked.certainty is None and "loading" in ranked.table
    if not usual or not collections or not all(map(model.holds, collections.values())):
        return None
    parts = []
    for name in collections:
        table, notes = model.enrichment(name)
        wanted = list(ranked.scores.columns)
        parts.append(Enrichment(*(t[t["mechanism"].isin(wanted)] for t in (table, notes))))
    return questions.join(parts)


@st.cache_resource
def _batches() -> dict[str, Batch[Enrichment]]:
    return {}


def batch(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
    start: bool,
) -> Batch[Enrichment] | None:
    """Return the running or finished tests for this question; with `start`, start them."""
    key, known = _question(model, ranked, collections, rules), _batches()
    with BATCHES:
        if key not in known and start:
            for old in [k for k, b in known.items() if b.ended][: max(0, len(known) - MAX_BATCHES)]:
                del known[old]
            sets = list(collections.values())
            call = partial(enrichment.enrich, ranked.scores, sets, rules, ranked.moved)
            known[key] = Batch(call)
    return known.get(key)


def forget_batch(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
) -> None:
    """Drop the tests for this question, so that they can be started again."""
    _batches().pop(_question(model, ranked, collections, rules), None)


def _question(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
) -> str:
    sets = sorted((c.name, c.checksum) for c in collections.values())
    scores = hashlib.sha256(ranked.scores.to_numpy(float).tobytes()).hexdigest()
    columns = [str(column) for column in ranked.scores]
    question = [model.checksum, ranked.name, columns, scores, sets, rules, ranked.certainty]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def export_files(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    result: Enrichment,
    rules: EnrichmentOptions,
) -> Callable[[], dict[str, bytes]]:
    """Return a function that makes all files of a result, once, when first called."""

    @cache
    def made() -> dict[str, bytes]:
        gathered = gene_rankings.gathered(model, ranked, collections.values(), result, rules)
        return enrichment_export.files(gathered)

    return made


def usable_sets(collection: Collection, genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the sets with 5 to 500 measured genes, by name, in the symbols of the model."""
    return gene_sets.usable_sets(matched(collection, genes).collection, genes)


@st.cache_data(max_entries=64, show_spinner=False)
def _suggested_names(
    _model: Bundle, _collections: Mapping[str, Collection], key: str, mechanisms: tuple[int, ...]
) -> pd.DataFrame | None:
    ranked = gene_rankings.of_mechanisms(_model, list(mechanisms))
    known = precomputed(_model, ranked, _collections, enrichment.USUAL)
    return None if known is None else terms.suggested_names(known.table, list(mechanisms))


def suggested_names(model: Bundle, mechanisms: list[int]) -> pd.DataFrame | None:
    """Return suggested names from the bundle's stored gene-set results, or None; cached."""
    offered = collections()
    chosen = {name: offered[name]() for name in model.collections if name in offered}
    key = f"{model.checksum} {sorted((c.name, c.checksum) for c in chosen.values())}"
    return _suggested_names(model, chosen, key, tuple(mechanisms))
