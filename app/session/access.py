"""Signing in, and the message a visitor sees when a page fails."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import streamlit as st

from app.server import logs

CLOSED = (
    "Nobody can sign in because this server is not set up for it: {}. Whoever runs it can find "
    "what to do in docs/operation.md."
)


def may_pass(user: Mapping[str, object]) -> bool:
    """Return whether a visitor may see pages.

    Streamlit sets `is_logged_in` only where signing in is set up; without it everyone may.
    """
    return bool(user.get("is_logged_in", True))


def providers(auth: Mapping[str, object]) -> list[str | None]:
    """Return the names of the identity providers, or [None] where there is only one, unnamed."""
    named = [
        name
        for name, section in auth.items()
        if isinstance(section, Mapping) and "client_id" in section
    ]
    return [None] if "client_id" in auth else list(named)


def unreadable(files: list[str], loaded: bool) -> str:
    """Return the secrets file that exists but cannot be read, or "".

    Streamlit would ignore such a file and let everyone in.
    """
    return "" if loaded else next((name for name in files if Path(name).exists()), "")


def broken() -> str:
    return unreadable(st.get_option("secrets.files"), st.secrets.load_if_toml_exists())


def allowed() -> bool:
    """Return whether the visitor is signed in, or the server asks nobody to sign in."""
    return not broken() and may_pass(st.user)


def can_sign_in() -> bool:
    """Return whether Authlib is installed: Streamlit needs it for signing in, but we do not."""
    return importlib.util.find_spec("authlib") is not None


def door() -> None:
    """Draw the sign-in page, or say why nobody can sign in."""
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
    """Draw the sign-out button in the sidebar if the visitor is signed in."""
    if st.user.get("is_logged_in"):
        st.sidebar.button("Sign out", icon=":material/logout:", on_click=st.logout)


@contextmanager
def errors(page: str = "callback") -> Iterator[None]:
    """Log an unexpected error and show its number in the log on the page.

    Also decorates widget callbacks, which Streamlit runs before the page itself.
    """
    try:
        yield
    except Exception as problem:  # noqa: BLE001  # the page's last resort: log it
        number = logs.error(problem, page=page)
        st.error(
            f"Something went wrong on this page, and it is not your fault. The error has the "
            f"number **{number}**: whoever runs this server can find it in the log. The other "
            "pages still work.",
            icon=":material/error:",
        )
