"""The page Glossary: what the words on these pages mean."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import charts
from app.components import glossary as words
from app.session import page
from samsvae_core.bundle.bundle import Bundle


def glossary(model: Bundle) -> None:
    st.title("Glossary")
    text = st.text_input("Find a word", key="word", bind="query-params", placeholder="evidence")
    found = words.found(text.strip())
    if not found:
        st.info(f"No entry contains “{page.plain(text)}”. Clear the box to see all.")
        return
    for word, meaning in found.items():
        st.markdown(f"**{word}**  \n{meaning}")
    table = pd.DataFrame({"word": list(found), "meaning": list(found.values())})
    charts.downloads(table, "glossary")


page.page(glossary)
