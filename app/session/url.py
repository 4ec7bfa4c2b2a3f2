"""What the address of a page holds beyond its bound widgets: a link shows the same to anyone.

The only user of the URL; with state.py and shelf.py the only one of session state. A value that is
a page's first choice stays out of the address, so that the browser's back button finds its way.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, NoReturn
from urllib.parse import parse_qs, quote

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.session.markdown import plain

SEVERAL, APART = frozenset({"control"}), "\n"  # parameters that may be repeated, and between them

# Reading and writing the address


def arrive(page: str) -> None:
    """Tell which page is run, before it is, and read the address where it is somebody's wish.

    That is so where a link was followed, a page opened, or the browser's back or forward button
    pressed. While a person stays on the page, its widgets hold what they chose and the address is
    only written: what the browser sends of it with a click may be older than the click.
    """
    whole = st.session_state.get("sent", False) or went_back()
    if whole or st.session_state.get("linked", False) or st.session_state.get("page") != page:
        st.session_state["link"] = Link(
            {key: _in_address(key) for key in st.query_params}, whole, set()
        )
    for flag in ("sent", "linked"):
        st.session_state.pop(flag, None)
    if st.session_state.get("keeping") != page:
        st.session_state.pop("keeping", None)  # somebody went elsewhere
    if st.session_state.pop("told", False):
        st.session_state["tell"] = True  # the last run's address may have met a newer one
    st.session_state["page"] = page


def went_back() -> bool:
    """Whether the browser's back or forward button led here: Streamlit tells it to a run alone."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


class Link(NamedTuple):
    """The query of the address as it was when somebody came by it."""

    query: dict[str, str]
    whole: bool  # what is not in it is a first choice; else it stays as it was on the page
    read: set[str]  # parameters that a page has taken from it: each is taken once


def followed(*keys: str) -> dict[str, str] | None:
    """The values of these parameters in a link, once; None where no link asks for any of them.

    Where a whole view is asked for, as by the way back, a parameter that is not there has the value
    "": the page's first choice.
    """
    link: Link = st.session_state["link"]
    if link.read.issuperset(keys):
        return None
    link.read.update(keys)
    asked = {key: link.query.get(key, "") for key in keys}
    return asked if link.whole or any(asked.values()) else None


def write(**values: str) -> None:
    """Put values into the address; empty ones leave it. One step for the back button."""
    changed = {k: v for k, v in values.items() if _in_address(k) != v}
    if changed:  # an empty list is no parameter, and takes no message of its own as del does
        st.query_params.update({k: v.split(APART) if v else [] for k, v in changed.items()})
        st.session_state["told"] = True


def _in_address(key: str) -> str:
    """The value of a parameter; of one that may be there several times, all of them."""
    values = st.query_params.get_all(key)
    return APART.join(values if key in SEVERAL else values[-1:])


def put(key: str, value: object) -> None:
    """Give a widget this value, before it is drawn, unless it has it.

    The browser shows a value that is given in place of what a person chose meanwhile: given at
    every run, it would take their next click back.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def go(page: str, query: Mapping[str, str | list[str]], whole: bool = False) -> NoReturn:
    """Turn to a page with this query, as a link does; it may be the page that is run.

    The model stays: it is no part of the query, for Streamlit lets no code set a bound parameter.
    With `whole`, as for a kept view, what the query does not name is the page's first choice.
    """
    st.session_state["linked"] = True
    if whole:
        forget()
        st.session_state["sent"] = True
    st.switch_page(f"views/{page}.py", query_params=query)


def link(
    page: str, label: str, icon: str, query: Mapping[str, str | list[str]] | None = None
) -> None:
    """A link to a page within the dashboard, with this query.

    It names the model on the screen, unless the query names another: a link that is opened in a new
    tab, or copied, knows nothing of what was chosen in this one. The first model needs no name: the
    address would lose it at once, and the way back would have a step that leads nowhere.
    """
    model = st.session_state.get("model")
    shown = {} if model in (None, st.session_state.get("model first")) else {"model": str(model)}
    st.page_link(f"views/{page}.py", label=label, icon=icon, query_params=shown | dict(query or {}))


def follow(key: str, options: Sequence[str]) -> None:
    """Put what a link asks for into a bound widget that stands beside every page.

    Streamlit lets the value that such a widget has go before the address, and leaves the address
    as it is: given to the widget, the value is in both.
    """
    st.session_state[f"{key} first"] = options[0]
    if asked := followed(key):
        value = asked[key] if asked[key] in options else st.session_state.get(key)
        if value is not None:
            st.session_state[key] = value


def unknown_option(key: str, options: Sequence[str], what: str) -> None:
    """Say that a bound widget's value in the address is none of its options, before it is drawn."""
    wrong = [value for value in st.query_params.get_all(key) if value not in options]
    if wrong:
        st.info(f"The address asks for the {what} {plain(', '.join(wrong))}, which is not here.")


def as_address(page: str, query: Mapping[str, object]) -> str:
    """A page with its query, as in the address, without the server."""
    pairs = [
        f"{quote(key, safe='')}={quote(str(value), safe='')}"
        for key, values in query.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return page + ("?" + "&".join(pairs) if pairs else "")


class Where(NamedTuple):
    """A page, and its query in the address."""

    page: str
    query: dict[str, list[str]]


def read_address(text: str) -> Where:
    """What `as_address` wrote."""
    page, _, query = text.partition("?")
    return Where(page, parse_qs(query, keep_blank_values=True))


def pressed(parameter: str, now: str | None, options: Container[str]) -> str | None:
    """What was clicked last in a figure or a table: just now, by a link, or before.

    `now` is what the figure tells: it goes on telling of a click until there is another. What is
    none of the options, those of another model, is none.
    """
    key = f"pressed {parameter} {st.session_state.get('model')}"
    if (asked := followed(parameter)) is not None:
        st.session_state[key] = asked[parameter]
        if asked[parameter] and asked[parameter] not in options:
            st.info(f"The address asks for {plain(asked[parameter])}, which is not here.")
    if now is not None and now != st.session_state.get(f"{key} now"):
        st.session_state[key] = now
    st.session_state[f"{key} now"] = now
    chosen = st.session_state.get(key, "")
    chosen = chosen if chosen in options else ""
    write(**{parameter: chosen})
    return chosen or None


def pressed_before(parameter: str) -> str:
    """What `pressed` will tell where there is no new click."""
    link: Link = st.session_state["link"]
    if parameter not in link.read and (link.whole or parameter in link.query):
        return link.query.get(parameter, "")
    key = f"pressed {parameter} {st.session_state.get('model')}"
    return str(st.session_state.get(key, ""))


def forget() -> None:
    """Bring the bound widgets of every page back to their defaults, before they are drawn."""
    for key in st.session_state.get("bound", set()):
        st.session_state.pop(key, None)
