"""How a data file is to be read, as chosen on Data and Train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import streamlit as st

from app.server import uploads
from app.server.reading import ASKED, PARAMETERS, Reading
from app.session import access
from app.session.markdown import plain
from app.session.url import APART, as_address, followed, write
from samsvae_core.data.cells import DataError

NAMED = {
    "key": "column",
    "top": "number of genes",
    "size": "size factor",
    "spread": "column",
    "train_context": "covariate",
}  # of parameters


def open_file(data: str, *parameters: str) -> None:
    """Begin with the choices for a data file: those of a link that was followed, or its own.

    Each file has choices of its own. What was chosen for another file is not taken over.
    """
    st.session_state["file"], st.session_state["chosen for it"] = data, {}
    st.session_state["file link"] = followed(*parameters) or {}
    for parameter in parameters:
        if st.session_state["file link"] and not st.session_state["file link"][parameter]:
            st.session_state.pop(f"{parameter} of {data}", None)


def suggested(
    parameter: str,
    first: Any,
    read: Callable[[str], Any] = str,
    fits: Callable[[Any], bool] = lambda _: True,
) -> str:
    """The key of a widget for a choice of the file that is open, with its value put in before.

    That is what a link asks for (`read` makes the value of its text, or raises ValueError), or what
    was chosen before for this file, or `first`, which is suggested. What does not fit, such as a
    label of another column, is not taken; a suggestion that was not touched follows a new one.
    """
    key = f"{parameter} of {st.session_state['file']}"
    before = st.session_state.get(f"{key} first", first)
    if link := st.session_state["file link"].get(parameter, ""):
        try:
            value = read(link)
        except ValueError:
            value = None
        if value is None or not fits(value):
            not_here(parameter, link)
            value = first
        st.session_state[key] = value
    else:
        value = st.session_state.get(key, before)
        if value == before or not fits(value):
            st.session_state[key] = first
    st.session_state[f"{key} first"] = first
    return key


def not_here(parameter: str, text: str) -> None:
    """Say that an address asks for what there is not."""
    asked = plain(text.replace(APART, ", "))
    st.info(
        f"The address asks for the {NAMED.get(parameter, parameter)} {asked}, which is not here."
    )


def chosen(parameter: str, text: str) -> None:
    """Note the text that a choice has in the address; "" for a suggestion."""
    st.session_state["chosen for it"][parameter] = text


@access.errors()
def choose(parameter: str, value: Any) -> None:
    """Choose this for the file that is open; a callback, which sets the widget."""
    st.session_state[f"{parameter} of {st.session_state['file']}"] = value


def keep_choices() -> None:
    """Put the choices for the file into the address, in one step."""
    write(**st.session_state["chosen for it"])


def note_reading(reading: Reading) -> None:
    """What the page Data shows is what the page Train starts from."""
    st.session_state["reading"] = reading.as_query()


def reading() -> Reading | None:
    """The data to train on: of a link, or as the page Data showed them last; None before that.

    The latter is written as on=QUERY, so that a reload finds it again: the parameters of the page
    Data itself are bound to its widgets for as long as one comes from there.
    """
    query: Mapping[str, str | list[str]]
    query = {key: st.query_params.get_all(key) for key in PARAMETERS}
    if not query["data"] and (kept := st.query_params.get("on")):
        query = parse_qs(kept)
    elif not query["data"]:
        query = st.session_state.get("reading", {})
        write(on=as_address("", query).removeprefix("?"))
    found = Reading.from_query(query)
    if not found.data:
        return None
    top = query.get("top") or ["0"]
    if (asked := top if isinstance(top, str) else top[-1]) != str(found.top_genes):
        st.info(f"The address asks for {plain(asked)} most variable genes; all are kept instead.")
    for declared in ASKED.values():
        text = query.get(declared.parameter) or ""
        asked = text if isinstance(text, str) else text[-1]
        if asked and declared.kind in ("flag", "choice") and asked not in declared.words:
            not_here(declared.parameter, asked)
    return found


def gene_list(text: str) -> str:
    """The id of the list of genes to keep: of a text, else of a link that was followed; or "".

    The form is genes=ID. Raises DataError for a text that is no list.
    """
    key = f"linked genes of {st.session_state['file']}"
    if st.session_state["file link"]:
        st.session_state[key] = st.session_state["file link"].get("genes", "")
    linked = str(st.session_state.get(key, ""))
    if text.strip():
        linked = uploads.save_genes(text)
    elif linked:
        try:
            uploads.resolve(linked, ".txt")
        except DataError:
            st.info(f"The list of genes {plain(linked)} is not here any more; all are kept.")
            linked = ""
    chosen("genes", linked)
    return linked


def genes_key() -> str:
    """The key of the box for genes of the file that is open."""
    return f"data genes of {st.session_state['file']}"


@access.errors()
def forget_genes() -> None:
    """Keep all genes; a callback."""
    st.session_state[f"linked genes of {st.session_state['file']}"] = ""
    st.session_state[genes_key()] = ""
