"""Pages as they were saved, shown again one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from app.session.url import Where, forget

REPORT = "report"  # the page


def current() -> Where:
    page = st.session_state["page"]
    return Where(page, pages().get(page, {}))


def pages() -> dict[str, dict[str, list[str]]]:
    """The query that each page had when it was last shown."""
    found: dict[str, dict[str, list[str]]] = st.session_state.setdefault("pages", {})
    return found


def remember() -> None:
    """Note the page's query, now that all of it is drawn."""
    if st.session_state.pop("tell", False):
        st.query_params.update({})
    query = {key: st.query_params.get_all(key) for key in st.query_params if key != "model"}
    pages()[st.session_state["page"]] = {key: values for key, values in query.items() if values}
    st.session_state.setdefault("bound", set()).update(query)


def restore(saved: Mapping[str, dict[str, list[str]]], asked: Sequence[Where]) -> None:
    """Show every page as it was saved when it is next come to, and before that those asked for.

    A callback, of a page that has none of their widgets.
    """
    forget()
    for key in ("steps", "compared", "pages", "waiting", "keeping"):
        st.session_state.pop(key, None)
    st.session_state["saved"], st.session_state["asked"] = dict(saved), list(asked)


def turn(page: str) -> Where | None:
    """Where to turn to instead of running this page as it is: what a session asks for, once.

    A page that is come to by a link shows what the link says.
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
    """Whether the page just drawn is one that a session asked for; done with it, if so."""
    return bool(st.session_state.pop("keeping", "") == st.session_state["page"])


def n_asked() -> int:
    """Kept views that a session asks for and that are not drawn yet."""
    return len(st.session_state.get("asked", []))


def goes_on() -> bool:
    """Whether the report, now drawn, has to turn to a page that a session asks for.

    Only a whole run lets go of the widgets of the page before, whose values an address could not
    set while they are bound.
    """
    if st.session_state["page"] != REPORT or not n_asked():
        return False
    st.session_state["drawn once"] = True
    return True
