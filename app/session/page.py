"""Running a page: its errors, its footer, and a record of what it shows."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.export.items import Picture, Table, Text
from app.pages import PAGES
from app.session import access, saved_pages
from app.session.bundles import bundle
from app.session.markdown import plain
from samsvae_core.bundle import layout
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.evaluation import fitness
from samsvae_core.system.files import is_message


def page(view: Callable[..., None]) -> None:
    """Run a view, with the model if its page needs one.

    A message made for people is shown as written, anything else surfaces.
    """
    st.session_state["drawing"], st.session_state["shown"] = [], None
    try:
        if PAGES[st.session_state["page"]].needs_model:
            view(cautioned())
        else:
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


def cautioned() -> Bundle:
    """The chosen model, with a caution at the head of the page where it is not fit to predict."""
    model = bundle()
    if said := fitness.caution(model):
        st.warning(said, icon=":material/warning:")
        record(Text(f"**Caution.** {said}"))
    return model


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
