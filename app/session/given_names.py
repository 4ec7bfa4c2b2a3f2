"""The names that people gave to the mechanisms of a model."""

from __future__ import annotations

import streamlit as st

from samsvae_core.analysis import (
    mechanism_names,
)
from samsvae_core.analysis.mechanism_names import Label
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.system.files import OutputError


def names(model: Bundle) -> tuple[dict[int, Label], str]:
    """Return the names given to mechanisms, and what is wrong with their file, or "".

    Names that could not be saved beside the bundle hold for this session.
    """
    found = mechanism_names.read_names(model)
    unkept = st.session_state.get(f"names {model.checksum}")
    return (found.labels if unkept is None else unkept), found.problem


def keep_names(model: Bundle, labels: dict[int, Label]) -> None:
    """Save names beside the bundle.

    If that fails, keeps them for this session and raises OutputError.
    """
    try:
        mechanism_names.write_names(model, labels)
    except OutputError:
        st.session_state[f"names {model.checksum}"] = labels
        raise
    st.session_state.pop(f"names {model.checksum}", None)


def names_file(model: Bundle) -> str:
    return mechanism_names.names_file(model).name


def export_names(model: Bundle, labels: dict[int, Label]) -> bytes:
    return mechanism_names.export_names(model, labels)


def import_names(model: Bundle, content: bytes) -> dict[int, Label]:
    return mechanism_names.import_names(model, content)
