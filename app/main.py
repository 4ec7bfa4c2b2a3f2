"""The dashboard's entry: pages and the model they share."""

from pathlib import Path

import streamlit as st

from app import search, state

ICON = Path(__file__).with_name("icon.png")  # a material icon would be fetched from outside
pages = [
    st.Page("views/overview.py", title="Overview", default=True),
    st.Page("views/perturbation.py", title="Perturbation", url_path="perturbation"),
    st.Page("views/masks.py", title="Masks", url_path="masks"),
    st.Page("views/compose.py", title="Compose", url_path="compose"),
    st.Page("views/mechanism.py", title="Mechanism", url_path="mechanism"),
    st.Page("views/gene.py", title="Gene", url_path="gene"),
    st.Page("views/cells.py", title="Cells", url_path="cells"),
    st.Page("views/partners.py", title="Partners", url_path="partners"),
    st.Page("views/gene_sets.py", title="Gene sets", url_path="gene_sets"),
]
chosen = st.navigation(pages)
st.set_page_config(
    page_title=f"{chosen.title} - SAMS-VAE Explorer", page_icon=str(ICON), layout="wide"
)
state.choose_bundle()
search.box()
chosen.run()
