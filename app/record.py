"""Words on a page that are remembered with its figures and tables, for the report.

Each is Streamlit's element of the same name, with text that is Markdown.
"""

from __future__ import annotations

import streamlit as st

from app import state
from app.basket import Text


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
