"""The shifts of all perturbations on a page, with a progress bar until they are composed."""

from __future__ import annotations

import streamlit as st

from app.components import shifts
from app.session import page, results
from samsvae_core.analysis.all_shifts import AllShifts
from samsvae_core.bundle.bundle import Bundle

MOMENT, BRIEF = 1.5, 0.3  # seconds a page waits, for small and large models


def of(model: Bundle) -> AllShifts | None:
    """Return the shifts of all perturbations, or None.

    With None, the page shows the progress or what went wrong.
    """
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
    """Return whether a model has few enough shifts to compose them without asking."""
    return len(model.perturbations) * len(model.genes) <= shifts.AT_ONCE


@st.fragment(run_every=0.5)
def waiting(model: Bundle) -> None:
    """Draw the progress; the work goes on when the page is left or closed."""
    batch = results.effects(model)
    if batch.ended:
        st.rerun()
        return
    done, total = batch.progress or (0, len(model.perturbations))
    st.progress(
        done / total,
        f"Composing every perturbation, once for this model: {done:,} of {total:,}",
    )
