"""The widgets of a composition: dosages, switches of its parts, and the starting cells."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st

from app.session import access
from app.session.choices import taken
from app.session.composition import (
    CONTROL,
    DIRECT,
    MAX_DOSAGE,
    REST,
    SELECTED,
    Dosage,
    dosages_set,
    set_dosage,
    shortened,
)
from app.session.markdown import plain
from app.session.url import put
from samsvae_core.bundle.bundle import Bundle


def dosage(name: str) -> float:
    """Draw the slider and number box of one perturbation's dosage, and return the dosage."""
    known = dosages_set().setdefault(name, Dosage())
    slider, box = f"dose {known.slider} {name}", f"dose box {known.box} {name}"

    @access.errors()
    def moved() -> None:
        if dosages_set()[name].slider == known.slider:  # else it has been replaced
            set_dosage(name, st.session_state[slider], ["box"])

    @access.errors()
    def typed() -> None:
        if dosages_set()[name].box == known.box:
            set_dosage(name, st.session_state[box], ["slider"])

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.slider(
            f"Dosage of {plain(name)}",
            0.0,
            MAX_DOSAGE,
            known.value,
            step=0.05,
            format="%.4g",
            key=slider,
            on_change=moved,
            help="1 is the perturbation as measured. Other dosages scale its latent shift, which "
            "is an extrapolation unless the data have such dosages.",
        )
        st.number_input(
            f"Dosage of {plain(name)} as a number",
            0.0,
            MAX_DOSAGE,
            known.value,
            step=0.05,
            format="%.4g",
            key=box,
            on_change=typed,
            label_visibility="collapsed",
            width=110,
        )
    return known.value


def switches(used: list[int], others: list[int], titles: Mapping[int, str]) -> list[int]:
    """Draw a switch for each mechanism in use and one for the rest; return those switched off."""
    off: set[int | str] = st.session_state["compose_off"]
    names: list[int | str] = [*used, *([REST] if others else [])]
    on = [k for k in names if k not in off]
    labels: dict[int | str, str] = {REST: f"the other {len(others)}"}
    labels |= {k: plain(shortened(titles[k])) for k in used}

    @access.errors()
    def changed() -> None:
        chosen = set(st.session_state["compose_in"])
        before = st.session_state["compose_off"]
        st.session_state["compose_off"] = (before - set(names)) | (set(names) - chosen)

    if set(st.session_state.get("compose_in") or ()) != set(
        on
    ):  # as `put` does, but the order does not matter
        st.session_state["compose_in"] = on
    st.pills(
        "Mechanisms in the sum",
        names,
        selection_mode="multi",
        format_func=lambda k: labels[k],
        key="compose_in",
        on_change=changed,
        help="Switch a mechanism off to take it out of the sum: the shift then loses what it "
        "contributed. With every switch off, the shift is exactly zero.",
    )
    left_out = [k for k in used if k in off]
    return sorted([*left_out, *(others if REST in off else [])])


def direct_switch(about: str) -> bool:
    """Draw the switch of direct effects and return whether they are in; `about` tells of them."""

    @access.errors()
    def changed() -> None:
        off = st.session_state["compose_off"] - {DIRECT}
        st.session_state["compose_off"] = off if st.session_state[key] else off | {DIRECT}

    key = "compose_direct"
    put(key, DIRECT not in st.session_state["compose_off"])
    return st.toggle("Direct effects", key=key, on_change=changed, help=about)


def start(model: Bundle, conditions: Mapping[str, int]) -> str:
    """Draw the picker of the starting cells; return CONTROL, SELECTED or a condition's name."""
    n_taken = len(taken(model))
    options = {CONTROL: f"control cells ({len(model.reference.loc)} of them)"}
    if n_taken:
        options[SELECTED] = f"{SELECTED} ({n_taken:,})"
    options |= {name: f"cells with {name} ({n:,})" for name, n in conditions.items()}
    before = st.session_state.get("compose_from", CONTROL)
    if before not in options:
        st.info(f"There are no {plain(before)} to start from; started from control cells instead.")
        st.session_state["compose_from"] = CONTROL
    return str(
        st.selectbox(
            "Start from",
            list(options),
            format_func=options.__getitem__,
            key="compose_from",
            persist_state="session",
            help="The cells whose basal states the latent shift is added to. The decoder is not "
            "linear, so the same latent shift changes each cell differently. To start from cells "
            "of your choice, draw around them on the page Cells.",
        )
    )
