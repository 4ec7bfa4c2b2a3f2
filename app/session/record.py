"""Words on a page that are remembered with its figures and tables, for the report.

Each is Streamlit's element of the same name, with text that is Markdown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from app.export.report import Text
from app.session import page as state
from app.session import url as address


def title(text: str) -> None:
    st.title(text)


def header(text: str) -> None:
    st.header(text, divider="gray")
    state.record(Text(f"## {text}"))


def subheader(text: str) -> None:
    st.subheader(text)
    state.record(Text(f"### {text}"))


def markdown(text: str) -> None:
    st.markdown(text)
    state.record(Text(text))


def caption(text: str) -> None:
    st.caption(text)
    state.record(Text(text))


def info(text: str) -> None:
    st.info(text)
    state.record(Text(text))


def warning(text: str) -> None:
    st.warning(text, icon=":material/warning:")
    state.record(Text(text))


def tabs(key: str, parts: Mapping[str, Callable[[], None]]) -> None:
    """Parts of a page of which the one that is open is drawn, and remembered under its name."""
    address.unknown_option(key, list(parts), "part")
    places = st.tabs(list(parts), key=key, on_change="rerun", bind="query-params")
    for (name, draw), place in zip(parts.items(), places, strict=True):
        if place.open:
            with place:
                state.record(Text(f"### {name}"))
                draw()
