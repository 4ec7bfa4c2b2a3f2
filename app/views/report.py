"""The page Report: kept views as a report and a zip, and the whole session as a file."""

from __future__ import annotations

import streamlit as st

from app.export import items, methods
from app.export import report as basket
from app.pages import PAGES
from app.server import middleware
from app.session import page, saved_pages, saved_views, session_file, url
from samsvae_core.bundle.bundle import Bundle

SHOWN = {items.Picture: "figure", items.Table: "table"}


def report(model: Bundle) -> None:
    st.title("Report")
    st.markdown(
        "**Keep this view**, at the side of every page, keeps its figures, tables and text as "
        "they are at that moment. Here they become one HTML file that opens in any browser, and "
        "one zip with every figure (SVG, PNG) and its data, every table (CSV, TSV, XLSX), a "
        "methods text and a manifest."
    )
    st.header("Kept views", divider="gray")
    views = saved_views.kept_views()
    if n := saved_pages.n_asked():
        whole = len(views) + n
        st.progress(len(views) / whole, f"Drawing kept views again: {len(views)} of {whole}")
    try:
        saved = session_file.written(saved_views.session(model))
    except ValueError as error:
        st.warning(page.plain(error))
        saved = b""
    if views:
        listed()
        take_away(views, saved)
    else:
        st.info(
            "Nothing is kept yet. Go to a page, make it show what you want, and press Keep this "
            "view at the side."
        )
        url.link("compose", "Open Compose", ":material/arrow_forward:")
    st.header("Session", divider="gray")
    session(model, saved)


def listed() -> None:
    """Draw a row for each kept view, in the order of the report."""
    for place, view in enumerate(saved_views.kept_views()):
        with st.container(border=True):
            left, right = st.columns([3, 2], vertical_alignment="center")
            left.markdown(f"**{place + 1}. {page.plain(view.title)}**")
            when = f"{view.when[:16].replace('T', ' ')} UTC"
            left.caption(f"{holds(view)} Model {page.plain(view.model)}, {when}.")
            with right.container(
                horizontal=True, horizontal_alignment="right", vertical_alignment="center"
            ):
                if st.button(
                    "Open",
                    key=f"open {place}",
                    icon=":material/arrow_forward:",
                    on_click=saved_views.choose_model,
                    args=(view,),
                    type="tertiary",
                ):
                    url.go(*saved_views.where(view), whole=True)
                st.button(
                    "Up",
                    key=f"up {place}",
                    icon=":material/arrow_upward:",
                    on_click=saved_views.move_view,
                    args=(place,),
                    disabled=place == 0,
                    type="tertiary",
                )
                st.button(
                    "Remove",
                    key=f"drop {place}",
                    icon=":material/close:",
                    on_click=saved_views.drop_view,
                    args=(place,),
                    type="tertiary",
                )


def holds(view: items.SavedView) -> str:
    counts = {
        word: sum(isinstance(item, kind) for item in view.items) for kind, word in SHOWN.items()
    }
    return ", ".join(f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items()) + "."


def take_away(views: tuple[items.SavedView, ...], saved: bytes) -> None:
    about = saved_views.about()
    with st.container(horizontal=True):
        st.download_button(
            "HTML report",
            lambda: basket.report(views, about),
            "samsvae_report.html",
            mime="text/html",
            key="report html",
            icon=":material/description:",
            type="primary",
            on_click="ignore",
        )
        st.download_button(
            "ZIP with everything",
            saved_views.everything(saved),
            "samsvae_report.zip",
            mime="application/zip",
            key="report zip",
            icon=":material/folder_zip:",
            on_click="ignore",
            help="Figures are drawn when you press this: about half a second each.",
        )
        st.download_button(
            "Methods text",
            lambda: methods.methods(views).encode(),
            "methods.md",
            mime="text/markdown",
            key="report methods",
            icon=":material/article:",
            on_click="ignore",
        )
    st.caption(
        "The report needs only a browser, no network; its figures can be zoomed and hovered over. "
        "The session file is in the zip, too."
    )


def session(model: Bundle, written: bytes) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown(
            "A session file holds which model you use, what every page shows, which views are "
            "kept, your own gene sets and your names of mechanisms: links and text, no numbers. "
            "Whoever opens it sees the same, computed again."
        )
        st.download_button(
            "Save the session",
            written,
            f"{model.name}.session.json",
            mime="application/json",
            key="session save",
            icon=":material/save:",
            on_click="ignore",
            disabled=not written,
        )
    with right:
        file = st.file_uploader(
            "Open a session file",
            type="json",
            key="session file",
            max_upload_size=middleware.expect(20),
        )
        if file is None:
            return
        try:
            saved = session_file.read(file.getvalue(), tuple(PAGES))
            name = saved_views.fitting(saved)
        except ValueError as error:
            st.error(page.plain(error))
            return
        st.markdown(
            f"A session of **{page.plain(name)}**: {len(saved.pages)} pages, "
            f"{len(saved_views.drawable(saved))} kept views, {len(saved.collections)} gene-set "
            "files of your own."
        )
        if others := len(saved.kept) - len(saved_views.drawable(saved)):
            st.caption(f"{others} kept views are of another model and cannot be drawn again here.")
        st.button(
            "Use it in place of this one",
            key="session use",
            type="primary",
            on_click=saved_views.restore,
            args=(saved,),
        )


page.page(report)
