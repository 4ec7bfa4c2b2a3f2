"""What stands before every page: who may see it, and what is shown where it breaks."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from app.server import logs

CLOSED = (
    "Nobody can sign in, as this server is not set up for it: {}. Whoever runs it finds what to do "
    "in docs/operation.md."
)


def may_pass(user: Mapping[str, object]) -> bool:
    """Whether a visitor may see pages; Streamlit tells of signing in only where it is set up."""
    return bool(user.get("is_logged_in", True))


def providers(auth: Mapping[str, object]) -> list[str | None]:
    """Whom one can sign in with: None for the only one, else the names of several."""
    named = [
        name
        for name, section in auth.items()
        if isinstance(section, Mapping) and "client_id" in section
    ]
    return [None] if "client_id" in auth else list(named)


def unreadable(files: list[str], loaded: bool) -> str:
    """The file of secrets that is there and cannot be read, if any; Streamlit would ignore it."""
    return "" if loaded else next((name for name in files if Path(name).exists()), "")


def broken() -> str:
    return unreadable(st.get_option("secrets.files"), st.secrets.load_if_toml_exists())


def allowed() -> bool:
    """Whether the visitor may see pages: signed in, or on a server that asks nobody to."""
    return not broken() and may_pass(st.user)


def can_sign_in() -> bool:
    """Whether there is what Streamlit needs for it, which is no requirement of ours."""
    return importlib.util.find_spec("authlib") is not None


def door() -> None:
    """What those see who may not: how to sign in, or that nobody can."""
    st.title("SAMS-VAE Explorer")
    if file := broken():
        logs.refused("sign-in closed", "the file of secrets cannot be read as TOML", file=file)
        st.error(CLOSED.format("its file of secrets cannot be read"))
    elif not can_sign_in():
        logs.refused("sign-in closed", "Authlib is not installed")
        st.error(CLOSED.format("a package is missing"))
    else:
        st.markdown("Sign in to see the models on this server.")
        for name in providers(st.secrets["auth"]):
            label, given = ("Sign in", ()) if name is None else (f"Sign in with {name}", (name,))
            st.button(label, type="primary", on_click=st.login, args=given)


def sign_out() -> None:
    """A button at the side, where somebody is signed in."""
    if st.user.get("is_logged_in"):
        st.sidebar.button("Sign out", icon=":material/logout:", on_click=st.logout)


@contextmanager
def errors(page: str = "callback") -> Iterator[None]:
    """An error nobody expected goes to the log; the page shows the number it has there.

    Also a decorator, for callbacks of widgets: Streamlit runs them before the page is entered.
    """
    try:
        yield
    except Exception as problem:  # noqa: BLE001  # the last place that can tell anybody
        number = logs.error(problem, page=page)
        st.error(
            f"Something went wrong on this page, and it is not your fault. Its number is "
            f"**{number}**: whoever runs this server finds the reason under it in the log. Other "
            "pages go on working.",
            icon=":material/error:",
        )
