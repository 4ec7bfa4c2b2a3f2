"""The dashboard's entry point: its pages, and the sidebar that they share."""

from pathlib import Path

import streamlit as st

from app.components import search, tour
from app.pages import HOME, PAGES
from app.server import logs
from app.session import access, bundles, saved_pages, saved_views, url

ICON = Path(__file__).with_name("icon.png")  # a material icon would be fetched from the internet
STYLE = Path(__file__).with_name("style.css")
pages = {
    name: st.Page(f"views/{name}.py", title=about.title, url_path=name, default=name == HOME)
    for name, about in PAGES.items()
}
menu = {
    section: [pages[name] for name, about in PAGES.items() if about.section == section]
    for section in dict.fromkeys(about.section for about in PAGES.values())
}
logs.start()
inside = access.allowed()
chosen = st.navigation(
    menu,
    position="sidebar" if inside else "hidden",
    expanded=True,
)
page = next(name for name, known in pages.items() if known == chosen)
st.set_page_config(
    page_title=f"{chosen.title} - SAMS-VAE Explorer", page_icon=str(ICON), layout="wide"
)
st.html(STYLE)
if not inside:
    access.door()
    st.stop()
with access.errors(page):
    url.arrive(page)
    if turn := saved_pages.turn(page):
        url.go(turn.page, turn.query)
    bundles.choose_bundle()
    search.box()
    saved_views.side(chosen.title)
    tour.box(page)
    access.sign_out()
    chosen.run()
    saved_views.next_view(chosen.title)
