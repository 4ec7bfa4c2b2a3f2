"""One box on every page that finds perturbations, genes, mechanisms and gene sets."""

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

MOST = 5  # of each kind


class Hit(NamedTuple):
    """Where a name leads: what it is, how it is shown, the page and what to look at there."""

    kind: str
    label: str
    page: str
    query: dict[str, str]


def box() -> None:
    """In the sidebar, with what it finds below it."""
    text = st.sidebar.text_input(
        "Find",
        key="find_all",
        persist_state="session",
        placeholder="gene, perturbation, M0, pathway",
        help="Perturbations, genes (other names, Ensembl and Entrez ids too), mechanisms by "
        "number, by their suggested names or by yours, and gene sets. What is found stays until "
        "you close it.",
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
        st.sidebar.caption(nothing + (" Near it:" if found else ""))
    hits_here = st.sidebar.container(gap="xxsmall")
    for number, hit in enumerate(found):
        label = f"{state.plain(hit.label)} ({state.plain(hit.kind)})"
        key = f"hit {number} {hit.page} {hit.label}"
        if hits_here.button(label, key=key, icon=":material/arrow_forward:", type="tertiary"):
            if hit.page == "gene_sets":
                gene_set_tests.show_collection(hit.query["collections"])
            query = {key: value for key, value in hit.query.items() if key != "collections"}
            url.go(hit.page, query)
    # Below what is found, so that none of the side's other buttons comes to lie under the pointer.
    st.sidebar.button("Close", key="close hits", icon=":material/close:", on_click=state.close_find)


def hits(model: Bundle, text: str) -> Iterator[Hit]:
    """What begins with the text, or else holds it; of each kind a few."""
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
            continue  # of a bundle made by another version
        sets = gene_set_tests.usable_sets(offered[collection](), model.genes)
        for label in matching([terms.readable(term) for term in sets], text):
            yield Hit(f"set of {collection}", label, "gene_sets", {"collections": collection})


def near(model: Bundle, text: str) -> list[Hit]:
    """Perturbations and genes whose names are spelt nearly so."""
    found = []
    for kind, key, names in (
        ("perturbation", "p", [str(name) for name in model.perturbations.index]),
        ("gene", "g", list(model.genes)),
    ):
        spelt = close(text, names, MOST, 0.75)
        found += [Hit(kind, name, kind, {key: name}) for name in spelt]
    return found


def matching(names: list[str], text: str) -> list[str]:
    """Names that begin with a text before those that hold it, whatever the capitals."""
    low = text.casefold()
    found = [name for name in names if low in name.casefold()]
    return sorted(found, key=lambda name: (not name.casefold().startswith(low), name))[:MOST]
