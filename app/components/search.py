"""The search box on every page: perturbations, genes, mechanisms and gene sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import streamlit as st

from app.components import mechanisms
from app.session import bundles, gene_set_tests, url
from app.session import page as state
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.genesets import symbols, terms
from samsvae_core.system.messages import close

MOST = 5  # hits of each kind


class Hit(NamedTuple):
    """A search result: what it is, its label, and the page and query that show it."""

    kind: str
    label: str
    page: str
    query: dict[str, str]


def box() -> None:
    """Draw the search box in the sidebar, with its results below."""
    text = st.sidebar.text_input(
        "Find",
        key="find_all",
        persist_state="session",
        placeholder="gene, perturbation, M0, pathway",
        help="Finds perturbations, genes (also by other names, Ensembl and Entrez ids), mechanisms "
        "by number, suggested name or your own name, and gene sets. Results stay until you close "
        "them.",
    ).strip()
    if not text:
        return
    try:
        model = bundles.bundle()
    except BundleError:
        return  # the page says what is wrong
    found = list(hits(model, text))
    if not found:
        found = near(model, text)
        nothing = f"Nothing in this model is called {state.plain(text)}."
        st.sidebar.caption(nothing + (" Similar names:" if found else ""))
    hits_here = st.sidebar.container(gap="xxsmall")
    for number, hit in enumerate(found):
        label = f"{state.plain(hit.label)} ({state.plain(hit.kind)})"
        key = f"hit {number} {hit.page} {hit.label}"
        if hits_here.button(label, key=key, icon=":material/arrow_forward:", type="tertiary"):
            if hit.page == "gene_sets":
                gene_set_tests.show_collection(hit.query["collections"])
            query = {key: value for key, value in hit.query.items() if key != "collections"}
            url.go(hit.page, query)
    # Below the results, so that closing them moves no other button under the pointer.
    st.sidebar.button("Close", key="close hits", icon=":material/close:", on_click=state.close_find)


def hits(model: Bundle, text: str) -> Iterator[Hit]:
    """Yield a few results of each kind; names that start with the text come first."""
    names = [str(name) for name in model.perturbations.index]
    for name in matching(names, text):
        yield Hit("perturbation", name, "perturbation", {"p": name})
    for gene, known_as in symbols.search_genes(text, model.genes, MOST, model.genes_by_id).items():
        label = gene if known_as.upper() == gene.upper() else f"{gene}, also {known_as}"
        yield Hit("gene", label, "gene", {"g": gene})
    active = active_mechanisms(model.masks) if model.model.has_shifts else []
    called = {title: k for k, title in mechanisms.titles(model, active).items()}
    for label in matching(list(called), text):
        yield Hit("mechanism", label, "mechanism", {"m": f"M{called[label]}"})
    offered = gene_set_tests.collections()
    for collection in model.collections:
        if collection not in offered:
            continue  # the bundle was made by another version
        sets = gene_set_tests.usable_sets(offered[collection](), model.genes)
        for label in matching([terms.readable(term) for term in sets], text):
            yield Hit(f"set of {collection}", label, "gene_sets", {"collections": collection})


def near(model: Bundle, text: str) -> list[Hit]:
    """Return perturbations and genes with a similar spelling."""
    found = []
    for kind, key, names in (
        ("perturbation", "p", [str(name) for name in model.perturbations.index]),
        ("gene", "g", list(model.genes)),
    ):
        spelt = close(text, names, MOST, 0.75)
        found += [Hit(kind, name, kind, {key: name}) for name in spelt]
    return found


def matching(names: list[str], text: str) -> list[str]:
    """Return up to `MOST` names that contain a text in any case, those that start with it first."""
    low = text.casefold()
    found = [name for name in names if low in name.casefold()]
    return sorted(found, key=lambda name: (not name.casefold().startswith(low), name))[:MOST]
