"""The pages of a saved session, shown again one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app.session.url import Where, forget

REPORT = "report"  # the page


def current() -> Where:
    page = st.session_state["page"]
    return Where(page, pages().get(page, {}))


def pages() -> dict[str, dict[str, list[str]]]:
    """Return the query of each page when it was last shown, by page."""
    found: dict[str, dict[str, list[str]]] = st.session_state.setdefault("pages", {})
    return found


def remember() -> None:
    """Save the page's query; call it once all of the page is drawn."""
    if st.session_state.pop("tell", False):
        st.query_params.update({})
    query = {key: st.query_params.get_all(key) for key in st.query_params if key != "model"}
    pages()[st.session_state["page"]] = {key: values for key, values in query.items() if values}
    st.session_state.setdefault("bound", set()).update(query)


def restore(saved: Mapping[str, dict[str, list[str]]], asked: Sequence[Where]) -> None:
    """Show the kept views in `asked` first, then each page in `saved` when it is next opened.

    A callback of a page that has none of their widgets.
    """
    forget()
    for key in ("steps", "compared", "pages", "waiting", "keeping"):
        st.session_state.pop(key, None)
    st.session_state["saved"], st.session_state["asked"] = dict(saved), list(asked)


def turn(page: str) -> Where | None:
    """Return what a restored session shows instead of this page, once, or None.

    A page opened by a link shows what the link says.
    """
    asked: list[Where] = st.session_state.get("asked", [])
    if page == REPORT and asked:
        if not st.session_state.pop("drawn once", False):
            return None
        forget()
        st.session_state["keeping"], st.session_state["sent"] = asked[0].page, True
        return asked.pop(0)
    if page == REPORT and "saved" in st.session_state:
        st.session_state["waiting"] = st.session_state.pop("saved")
        forget()
    if "keeping" in st.session_state:
        return None
    query = st.session_state.get("waiting", {}).pop(page, None)
    if query is None or set(st.query_params) - {"model"}:
        return None
    st.session_state["sent"] = True
    return Where(page, query)


def was_asked() -> bool:
    """Return whether a restored session asked for the page just drawn, and mark it as done."""
    return bool(st.session_state.pop("keeping", "") == st.session_state["page"])


def n_asked() -> int:
    """Return how many kept views of a restored session are still to be drawn."""
    return len(st.session_state.get("asked", []))


def goes_on() -> bool:
    """Return whether the report, now drawn, has to turn to the next kept view.

    Only a completed run releases the widgets of the page before; while they are bound, an address
    cannot set their values.
    """
    if st.session_state["page"] != REPORT or not n_asked():
        return False
    st.session_state["drawn once"] = True
    return True
