"""Every perturbation composed, on a page: there at once where it is kept, else a bar till then."""

from __future__ import annotations

import streamlit as st

from app.components import shifts
from app.session import page, results
from samsvae_core.analysis.all_shifts import Effects
from samsvae_core.bundle.bundle import Bundle

MOMENT, BRIEF = 1.5, 0.3  # seconds that a page waits, for a small model and for a large one


def of(model: Bundle) -> Effects | None:
    """The shifts of all, or None: then the page has said how far they are, or what went wrong."""
    batch = results.effects(model)
    if not batch.wait(MOMENT if is_small(model) else BRIEF):
        waiting(model)
        return None
    if batch.result is None:
        st.warning(page.plain(batch.problem))
        if st.button("Try again", key="compose_all_again"):
            results.forget_effects(model)
            st.rerun()
    return batch.result


def is_small(model: Bundle) -> bool:
    """Few enough shifts to be composed without being asked for."""
    return len(model.perturbations) * len(model.genes) <= shifts.AT_ONCE


@st.fragment(run_every=0.5)
def waiting(model: Bundle) -> None:
    """How far it is. Looking at another page, or closing this one, stops nothing."""
    batch = results.effects(model)
    if batch.ended:
        st.rerun()
        return
    done, total = batch.progress or (0, len(model.perturbations))
    st.progress(
        done / total,
        f"Composing every perturbation, once for this model: {done:,} of {total:,}",
    )
