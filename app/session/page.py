"""Running a page: its errors, its footer, and a record of what it shows."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.export.items import Picture, Table, Text
from app.session import access, saved_pages
from app.session.bundles import bundle
from app.session.markdown import plain
from samsvae_core.bundle import layout
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.evaluation import fitness
from samsvae_core.system.files import is_message

SECTIONS = {  # names of pages as in the address and in app/views, in the order of the menu
    "Explore": ("overview", "perturbation", "masks", "mechanism", "gene", "cells"),
    "Predict": ("compose", "partners", "gene_sets"),
    "Your own screen": ("data", "train"),
    "More": ("report", "glossary", "system"),
}
PAGES = tuple(page for section in SECTIONS.values() for page in section)
WITHOUT_MODEL = SECTIONS["Your own screen"] + ("system",)  # these cannot be kept for a report


def page(view: Callable[[Bundle], None]) -> None:
    """Run a view with the selected model.

    An error with a message for people is shown on the page; any other is raised.
    """

    def with_caution() -> None:
        model = bundle()
        if said := fitness.caution(model):
            st.warning(said, icon=":material/warning:")
            record(Text(f"**Caution.** {said}"))
        view(model)

    page_without_model(with_caution)


def page_without_model(view: Callable[[], None]) -> None:
    """Run a view that needs no model; errors are handled as in `page`."""
    st.session_state["drawing"], st.session_state["shown"] = [], None
    try:
        view()
    except ValueError as error:
        if not is_message(error):
            raise
        st.error(plain(error))
    footer()
    saved_pages.remember()
    about = st.session_state.get("subject", ("", ""))
    named = about[1] if about[0] == st.session_state["page"] else ""
    st.session_state["shown"] = named, saved_pages.current(), tuple(st.session_state["drawing"])


def footer() -> None:
    """Draw the version and the model at the end of the page.

    Tests look for it: a page that failed has none.
    """
    version = layout.version("samsvae-explorer")
    parts = [f"SAMS-VAE Explorer {version}"]
    try:
        model = bundle()
        parts.append(f"model {plain(model.name)}, checksum {model.checksum[:12]}")
    except BundleError:
        pass
    st.container(key="end").caption(" · ".join(parts))


# The record of what a page shows


def record(item: Picture | Table | Text) -> None:
    """Record a drawn item, in order, so that the view can be kept."""
    st.session_state["drawing"].append(item)


def subject(text: str) -> None:
    """Set what the page is about now: a perturbation, a composition or a gene."""
    st.session_state["subject"] = st.session_state["page"], text


def tour() -> int | None:
    """Return the current step of the tour, or None if it is closed."""
    place: int | None = st.session_state.get("tour")
    return place


@access.errors()
def set_tour(place: int | None) -> None:
    st.session_state["tour"] = place


@access.errors()
def close_find() -> None:
    """Clear the search box in the sidebar; a callback."""
    st.session_state["find_all"] = ""
