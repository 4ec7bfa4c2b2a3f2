"""Views kept for the report, and the whole session as a file."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable

import streamlit as st

from app.export import report
from app.export.items import SavedView
from app.pages import PAGES
from app.session import (
    access,
    bundles,
    gene_set_tests,
    given_names,
    page,
    saved_pages,
    session_file,
    url,
)
from app.session.session_file import Session
from samsvae_core.analysis import enrichment_export, mechanism_names
from samsvae_core.analysis.mechanism_names import Label
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets import collections
from samsvae_core.system.files import sha256


def side(title: str) -> None:
    """Draw the button that keeps this view, and the link to the kept ones, in the sidebar."""
    n = len(kept_views())
    with st.sidebar:
        if PAGES[st.session_state["page"]].is_kept:
            st.button(
                "Keep this view",
                key="keep view",
                icon=":material/bookmark_add:",
                on_click=keep_view,
                args=(title,),
                help="Keeps the figures, tables and text of this page, as they are now, for the "
                "page Report.",
            )
        if n:
            url.link(
                "report",
                f"{n} view{'' if n == 1 else 's'} kept",
                ":material/bookmarks:",
            )


@access.errors()
def keep_view(title: str) -> None:
    """Keep what the page showed in the last run for the report; a callback."""
    if st.session_state.get("shown") is None:
        st.toast("The page is not drawn yet. Press Keep this view once it is.")
        return
    (about, here, items), model = st.session_state["shown"], bundles.bundle()
    view = SavedView(
        title=f"{title}: {about}" if about else title,
        address=url.as_address(here.page, {**here.query, "model": [model.name]}),
        model=f"{model.name} ({model.title})",
        checksum=model.checksum,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        items=items,
    )
    kept = report.add(kept_views(), view)
    if len(kept) > session_file.MAX_KEPT:
        st.toast(f"{session_file.MAX_KEPT} views can be kept. Remove one on the page Report first.")
        return
    st.session_state["kept"] = kept


def kept_views() -> tuple[SavedView, ...]:
    found: tuple[SavedView, ...] = st.session_state.get("kept", ())
    return found


def where(view: SavedView) -> url.Where:
    """Return the page of a kept view with its query, without the model."""
    found = url.read_address(view.address)
    return url.Where(found.page, {k: v for k, v in found.query.items() if k != "model"})


@access.errors()
def choose_model(view: SavedView) -> None:
    """Select the model of a kept view before the view is opened; a callback."""
    name = url.read_address(view.address).query.get("model", [""])[0]
    if name in bundles.available():
        st.session_state["model"] = name
    else:
        st.toast(f"{page.plain(name)} is gone, so the view opens on the current model.")


@access.errors()
def drop_view(place: int) -> None:
    """Remove a kept view; a callback."""
    st.session_state["kept"] = tuple(v for i, v in enumerate(kept_views()) if i != place)


@access.errors()
def move_view(place: int) -> None:
    """Move a kept view one place up; a callback."""
    views = list(kept_views())
    views.insert(max(0, place - 1), views.pop(place))
    st.session_state["kept"] = tuple(views)


def about() -> dict[str, str]:
    """Return what a report says about itself: the address of the dashboard."""
    return {"address": str(st.context.url or "")}


def everything(saved: bytes) -> Callable[[], bytes]:
    """Return a function that makes the zip of everything kept now.

    Streamlit makes the download outside a session, so the function must not need one.
    """
    views, told = kept_views(), about()
    return lambda: enrichment_export.archive(report.files(views, told, saved))


# Sessions


def session(model: Bundle) -> Session:
    """Return everything this visitor chose, on all pages."""
    given, own = given_names.names(model)[0], gene_set_tests.own_collections()
    return Session(
        model=model.name,
        checksum=model.checksum,
        pages=saved_pages.pages(),
        kept=tuple(session_file.SessionView(v.title, *where(v), v.checksum) for v in kept_views()),
        collections={name: collections.as_gmt(collection) for name, collection in own.items()},
        names=json.loads(mechanism_names.export_names(model, given)) if given else {},
    )


def fitting(saved: Session) -> str:
    """Return the name of a session's model, once all of the session can be used here.

    Raises ValueError if the model is not here, or if its gene sets or names cannot be used.
    """
    for name, path in bundles.available().items():
        if sha256(path / "manifest.json") == saved.checksum:
            for key, gmt in saved.collections.items():
                gene_set_tests.brought_collection(gmt.encode(), key)
            labels(saved, bundles.load_bundle(str(path), saved.checksum))
            return name
    here = ", ".join(bundles.available())
    raise ValueError(
        f"This session is of the model {saved.model!r} with the checksum {saved.checksum[:12]}, "
        f"which is not among the models here ({here}). Open the dashboard on the folder that "
        "holds it."
    )


@access.errors()
def restore(saved: Session) -> None:
    """Replace this session by a saved one; a callback. Its kept views are drawn again in turn."""
    st.session_state["model"] = name = fitting(saved)
    gene_set_tests.own_collections().clear()
    for key, gmt in saved.collections.items():
        gene_set_tests.add_collection(gmt.encode(), key)
    st.session_state.pop("collections", None)  # the address holds the selection
    model = bundles.load_bundle(str(bundles.available()[name]), saved.checksum)
    st.session_state.pop(f"names {model.checksum}", None)
    if (found := labels(saved, model)) and found != given_names.names(model)[0]:
        st.session_state[f"names {model.checksum}"] = found
    st.session_state["kept"] = ()
    saved_pages.restore(saved.pages, [url.Where(v.page, v.query) for v in drawable(saved)])


def drawable(saved: Session) -> list[session_file.SessionView]:
    """Return the kept views of the session's own model; only those can be drawn again."""
    return [view for view in saved.kept if view.checksum == saved.checksum]


def labels(saved: Session, model: Bundle) -> dict[int, Label]:
    """Return a session's names of mechanisms; raises ValueError for those of another model."""
    if not saved.names:
        return {}
    return mechanism_names.import_names(model, json.dumps(saved.names).encode())


def next_view(title: str) -> None:
    """Keep the view if a restored session asked for it, and turn to the next one."""
    if saved_pages.was_asked():
        keep_view(title)
        url.go("report", {})
    if saved_pages.goes_on():
        st.rerun()
