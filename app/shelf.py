"""What a person keeps: views for the report, and the whole session as a file.

With state.py and address.py the only user of session state.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable

import streamlit as st

from app import address, basket, sessions, state
from app.basket import Kept
from app.sessions import Session
from samsvae_core import exports, gene_sets
from samsvae_core import names as mechanism_names
from samsvae_core.bundle import Bundle
from samsvae_core.files import sha256

MOST_KEPT = 30  # views


def side(title: str) -> None:
    """Keep what the page shows, at the side of each page that shows something."""
    n = len(kept_views())
    with st.sidebar:
        if st.session_state["page"] not in ("report", "glossary"):
            st.button(
                "Keep this view",
                key="keep view",
                icon=":material/bookmark_add:",
                on_click=keep_view,
                args=(title,),
                help="Keeps the figures, tables and words of this page, as they are now, for the "
                "page Report.",
            )
        if n:
            st.page_link(
                "views/report.py",
                label=f"{n} view{'' if n == 1 else 's'} kept",
                icon=":material/bookmarks:",
            )


def keep_view(title: str) -> None:
    """Keep what the page shows for the report; a callback, for it is of the run before."""
    page, text = st.session_state.get("subject", ("", ""))
    about = f": {text}" if page == st.session_state["page"] and text else ""
    here, model = address.current(), state.bundle()
    view = Kept(
        title=f"{title}{about}",
        address=address.as_address(here.page, {**here.query, "model": [model.name]}),
        model=f"{model.name} ({model.title})",
        checksum=model.checksum,
        when=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        items=st.session_state.get("drawn", ()),
    )
    st.session_state["kept"] = basket.add(kept_views(), view)[-MOST_KEPT:]


def kept_views() -> tuple[Kept, ...]:
    found: tuple[Kept, ...] = st.session_state.get("kept", ())
    return found


def where(view: Kept) -> address.Where:
    """The page of a kept view with its query, but for the model."""
    found = address.read_address(view.address)
    return address.Where(found.page, {k: v for k, v in found.query.items() if k != "model"})


def drop_view(place: int) -> None:
    """A callback."""
    st.session_state["kept"] = tuple(v for i, v in enumerate(kept_views()) if i != place)


def move_view(place: int) -> None:
    """One place up; a callback."""
    views = list(kept_views())
    views.insert(max(0, place - 1), views.pop(place))
    st.session_state["kept"] = tuple(views)


def about() -> dict[str, str]:
    """What a report says of itself, beside its views."""
    return {"address": str(st.context.url or "")}


def everything(model: Bundle) -> Callable[[], bytes]:
    """Makes the zip of all that is kept now; a download is made without a session at hand."""
    views, told, saved = kept_views(), about(), sessions.written(session(model))
    return lambda: exports.archive(basket.files(views, told, saved))


# Sessions


def session(model: Bundle) -> Session:
    """All that this person chose, on every page."""
    labels, own = state.names(model)[0], state.own_collections()
    return Session(
        model=model.name,
        checksum=model.checksum,
        page=st.session_state["page"],
        pages=address.pages(),
        kept=tuple(sessions.Kept(v.title, *where(v)) for v in kept_views()),
        collections={name: gene_sets.as_gmt(collection) for name, collection in own.items()},
        names=json.loads(mechanism_names.export_names(model, labels)) if labels else {},
    )


def fitting(saved: Session) -> str:
    """The name of the model a session is of; ValueError where it is not among those here."""
    for name, path in state.available().items():
        if sha256(path / "manifest.json") == saved.checksum:
            return name
    here = ", ".join(state.available())
    raise ValueError(
        f"This session is of the model {saved.model!r} with the checksum {saved.checksum[:12]}, "
        f"which is not among the models here ({here}). Open the dashboard on the folder that "
        "holds it."
    )


def restore(saved: Session) -> None:
    """Make this session that one; a callback. Kept views are drawn again, page by page."""
    st.session_state["model"] = name = fitting(saved)
    for key, gmt in saved.collections.items():
        state.add_collection(gmt.encode(), key)
    model = state.load_bundle(str(state.available()[name]), saved.checksum)
    if saved.names:
        labels = mechanism_names.import_names(model, json.dumps(saved.names).encode())
        if labels != state.names(model)[0]:
            st.session_state[f"names {model.checksum}"] = labels
    st.session_state["kept"] = ()
    address.restore(saved.pages, [address.Where(v.page, v.query) for v in saved.kept])


def next_view(title: str) -> None:
    """Keep the view, if a session asked for it, and go on; once the page is drawn."""
    if address.was_asked():
        keep_view(title)
        st.switch_page("views/report.py", query_params={})
    if address.goes_on():
        st.rerun()
