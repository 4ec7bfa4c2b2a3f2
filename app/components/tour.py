"""The guided tour: six pages with a sentence or two each, in about two minutes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import streamlit as st

from app.components import mechanisms
from app.session import bundles, composition, url
from app.session import page as state
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError


class Step(NamedTuple):
    """A step of the tour: a page, what to look at there, and its query for a model."""

    page: str
    title: str
    text: str
    query: Callable[[Bundle], dict[str, str]] = lambda _: {}


def first_mechanism(model: Bundle) -> dict[str, str]:
    active = active_mechanisms(model.masks) if model.model.has_shifts else []
    return {"m": f"M{active[0]}"} if active else {}


STEPS = (
    Step(
        "overview",
        "Is this model any good?",
        "Held-out cells answer: look at r of this model beside the simple baselines, and at the "
        "sentence that says which wins. The model card below says what it does not know.",
    ),
    Step(
        "masks",
        "Which mechanisms does each perturbation use?",
        "Rows are perturbations, columns are mechanisms. Perturbations that share a column act "
        "through the same mechanism. Click a filled cell to see its figures.",
    ),
    Step(
        "perturbation",
        "What does one perturbation do?",
        "This one has the strongest effect. See which mechanisms it uses, which genes it moves, "
        "how that compares with what was measured, and which others are like it.",
        lambda model: {"p": mechanisms.strongest(model)[0]},
    ),
    Step(
        "mechanism",
        "What is a mechanism?",
        "Its genes up and down, and the gene sets they belong to. The suggested name comes from "
        "those sets; you can give it your own.",
        first_mechanism,
    ),
    Step(
        "compose",
        "What would two do together?",
        "Move a dosage, switch a mechanism off, and see which genes follow. The badge says "
        "whether anything like it was measured; whiskers say how sure the model is.",
        lambda model: {"c": composition.as_link(dict.fromkeys(mechanisms.example(model), 1.0))},
    ),
    Step(
        "report",
        "Take it away",
        "Press Keep this view, at the side, to keep what a page shows. Here the kept views become "
        "one HTML report and one zip with figures, tables and a methods text. That is all: type "
        "any name into Find, at the side, to go to its page.",
    ),
)


def offer() -> None:
    """Draw the button that starts the tour, unless it is open."""
    shown = state.tour() is not None
    if not shown and st.button("Two-minute tour", icon=":material/tour:", key="tour offer"):
        go(0)


def box(page: str) -> None:
    """Draw the current step of the tour above the page, with its buttons."""
    place = state.tour()
    if place is None:
        return
    step = STEPS[place]
    with st.container(border=True, key="tour box"):
        if step.page == page:
            st.markdown(f"**{place + 1} of {len(STEPS)}: {step.title}** {step.text}")
        else:
            st.markdown(f"**The tour waits at {place + 1} of {len(STEPS)}:** {step.title}")
        with st.container(horizontal=True):
            if place and st.button("Back", key="tour back", type="tertiary"):
                go(place - 1)
            if step.page != page and st.button("Go there", key="tour there", type="primary"):
                go(place)
            last = place + 1 == len(STEPS)
            on = step.page == page and not last
            if on and st.button("Next", key="tour next", type="primary"):
                go(place + 1)
            st.button(
                "Done" if last else "Leave the tour",
                key="tour end",
                type="primary" if last and step.page == page else "tertiary",
                on_click=state.set_tour,
                args=(None,),
            )


def go(place: int) -> None:
    """Go to a step of the tour; this ends the run of the page."""
    step = STEPS[place]
    state.set_tour(place)
    try:
        query = step.query(bundles.bundle())
    except BundleError:
        query = {}  # the page says what is wrong
    url.go(step.page, query)
