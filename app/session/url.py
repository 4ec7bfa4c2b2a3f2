"""Reading and writing the address of a page, so that a link shows everyone the same.

Bound widgets read and write their own parameters; this module does the rest. A page's default
stays out of the address: writing it would add a step for the browser's back button.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple, NoReturn
from urllib.parse import parse_qs, quote

import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.session.markdown import plain

SEVERAL, APART = (
    frozenset({"control", "covariate"}),
    "\n",
)  # repeatable parameters, and their separator

# Reading and writing the address


def arrive(page: str) -> None:
    """Set the page that is about to run, and read the address if a person asked for it.

    They did if they followed a link, opened a page, or pressed the browser's back or forward
    button. While they stay on a page, its widgets hold their choices and the address is only
    written: the address that the browser sends with a click may be older than the click.
    """
    whole = st.session_state.get("sent", False) or went_back()
    if whole or st.session_state.get("linked", False) or st.session_state.get("page") != page:
        st.session_state["link"] = Link(
            {key: _in_address(key) for key in st.query_params}, whole, set()
        )
    for flag in ("sent", "linked"):
        st.session_state.pop(flag, None)
    if st.session_state.get("keeping") != page:
        st.session_state.pop("keeping", None)  # the visitor went to another page
    if st.session_state.pop("told", False):
        st.session_state["tell"] = True  # a newer run may have overtaken that write
    st.session_state["page"] = page


def went_back() -> bool:
    """Return whether the browser's back or forward button led here."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


class Link(NamedTuple):
    """The query of the address when a person last followed it."""

    query: dict[str, str]
    whole: bool  # a parameter not in it means the page's default; else what it was before
    read: set[str]  # parameters that a page has taken from it; each is taken once


def followed(*keys: str) -> dict[str, str] | None:
    """Return these parameters of a followed link, only once, or None if it has none of them.

    If the link is a whole view, as after the back button, a missing parameter is "": the default.
    """
    link: Link = st.session_state["link"]
    if link.read.issuperset(keys):
        return None
    link.read.update(keys)
    asked = {key: link.query.get(key, "") for key in keys}
    return asked if link.whole or any(asked.values()) else None


def write(**values: str) -> None:
    """Write values to the address and remove empty ones, as one step for the back button."""
    changed = {k: v for k, v in values.items() if _in_address(k) != v}
    if changed:  # an empty list removes a parameter without a message of its own, unlike del
        st.query_params.update({k: v.split(APART) if v else [] for k, v in changed.items()})
        st.session_state["told"] = True


def _in_address(key: str) -> str:
    """Return the value of a parameter; all values, joined, if it is a repeatable one."""
    values = st.query_params.get_all(key)
    return APART.join(values if key in SEVERAL else values[-1:])


def put(key: str, value: object) -> None:
    """Set a widget's value before it is drawn, unless it already has that value.

    Setting it overrides what a person chose meanwhile: done at every run, it would undo their next
    click.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def go(page: str, query: Mapping[str, str | list[str]], whole: bool = False) -> NoReturn:
    """Go to a page with this query, as a link does; it may be the current page.

    The query does not hold the model, because Streamlit lets no code set a bound parameter. With
    `whole`, as for a kept view, everything that the query does not name takes its default.
    """
    st.session_state["linked"] = True
    if whole:
        forget()
        st.session_state["sent"] = True
    st.switch_page(f"views/{page}.py", query_params=query)


def link(
    page: str, label: str, icon: str, query: Mapping[str, str | list[str]] | None = None
) -> None:
    """Draw a link to a page of the dashboard, with this query.

    The link names the current model, unless the query names another, so that it also works copied
    or in a new tab. The first model is not named: Streamlit would drop it from the address at once,
    and the back button would have a step that changes nothing.
    """
    model = st.session_state.get("model")
    shown = {} if model in (None, st.session_state.get("model first")) else {"model": str(model)}
    st.page_link(f"views/{page}.py", label=label, icon=icon, query_params=shown | dict(query or {}))


def follow(key: str, options: Sequence[str]) -> None:
    """Set a bound widget that every page has to what a link asks for.

    Streamlit would keep the widget's old value and leave the address as it is; setting the widget
    makes the two agree.
    """
    st.session_state[f"{key} first"] = options[0]
    if asked := followed(key):
        value = asked[key] if asked[key] in options else st.session_state.get(key)
        if value is not None:
            st.session_state[key] = value


def unknown_option(key: str, options: Sequence[str], what: str) -> None:
    """Say if the address asks a bound widget for an option it does not have; call it first."""
    wrong = [value for value in st.query_params.get_all(key) if value not in options]
    if wrong:
        st.info(f"The address asks for the {what} {plain(', '.join(wrong))}, which is not here.")


def as_address(page: str, query: Mapping[str, object]) -> str:
    """Return a page and its query as in the address, without the server."""
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
    """Return the page and query that `as_address` wrote."""
    page, _, query = text.partition("?")
    return Where(page, parse_qs(query, keep_blank_values=True))


def pressed(parameter: str, now: str | None, options: Container[str]) -> str | None:
    """Return what was last clicked in a figure or table, now, before or in a link, or None.

    `now` is what the figure reports; it repeats a click until there is another. A click that is
    not among the options, for example one from another model, counts as none.
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
    """Return what `pressed` will return if there is no new click, or ""."""
    link: Link = st.session_state["link"]
    if parameter not in link.read and (link.whole or parameter in link.query):
        return link.query.get(parameter, "")
    key = f"pressed {parameter} {st.session_state.get('model')}"
    return str(st.session_state.get(key, ""))


def forget() -> None:
    """Reset the bound widgets of all pages to their defaults; call it before they are drawn."""
    for key in st.session_state.get("bound", set()):
        st.session_state.pop(key, None)
