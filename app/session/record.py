"""Texts on a page that are recorded with its figures and tables, for the report.

Each function draws Streamlit's element of the same name, with Markdown text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import streamlit as st

from app.export.items import Text
from app.session import page, url


def title(text: str) -> None:
    st.title(text)


def header(text: str) -> None:
    st.header(text, divider="gray")
    page.record(Text(f"## {text}"))


def subheader(text: str) -> None:
    st.subheader(text)
    page.record(Text(f"### {text}"))


def markdown(text: str) -> None:
    st.markdown(text)
    page.record(Text(text))


def caption(text: str) -> None:
    st.caption(text)
    page.record(Text(text))


def info(text: str) -> None:
    st.info(text)
    page.record(Text(text))


def warning(text: str) -> None:
    st.warning(text, icon=":material/warning:")
    page.record(Text(text))


def tabs(key: str, parts: Mapping[str, Callable[[], None]]) -> None:
    """Draw a page's parts as tabs; only the open one is drawn and recorded, under its name."""
    url.unknown_option(key, list(parts), "part")
    places = st.tabs(list(parts), key=key, on_change="rerun", bind="query-params")
    for (name, draw), place in zip(parts.items(), places, strict=True):
        if place.open:
            with place:
                page.record(Text(f"### {name}"))
                draw()
