"""What pages share: the chosen bundle, caches, and what is drawn.

The only user of caches; with address.py and shelf.py the only one of session state.
"""

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
    """Which version and model made the page; tests look for it, as a page that died has none."""
    version = layout.version("samsvae-explorer")
    parts = [f"SAMS-VAE Explorer {version}"]
    try:
        model = bundle()
        parts.append(f"model {plain(model.name)}, checksum {model.checksum[:12]}")
    except BundleError:
        pass
    st.container(key="end").caption(" · ".join(parts))


# What a page shows, and what is kept of it


def record(item: Picture | Table | Text) -> None:
    """Remember what is drawn, in its order, so that the view can be kept."""
    st.session_state["drawing"].append(item)


def subject(text: str) -> None:
    """What the page is about just now: a perturbation, a composition, a gene."""
    st.session_state["subject"] = st.session_state["page"], text


def tour() -> int | None:
    """Which step of the guided start is shown, if it is."""
    place: int | None = st.session_state.get("tour")
    return place


@access.errors()
def set_tour(place: int | None) -> None:
    st.session_state["tour"] = place


@access.errors()
def close_find() -> None:
    """Take the text out of the search box at the side; a callback."""
    st.session_state["find_all"] = ""
