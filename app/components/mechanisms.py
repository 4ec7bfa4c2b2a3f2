"""Mechanisms on a page: what they are called, and what perturbations do to them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.components import charts
from app.figures import gene_plots
from app.session import gene_set_tests, given_names
from samsvae_core.analysis import masks
from samsvae_core.bundle.bundle import Bundle

UNNAMED = "unnamed"
WHISKERS = (
    "Posterior mean of mask times embedding; whiskers: 90 % interval from the posterior standard "
    "deviation, the model's own, too narrow as a rule."
)
EVIDENCE = (
    "Evidence: nats (units of log likelihood) per held-out cell that predictions lose when the "
    "entry is switched off, with its standard error over those cells."
)
COLUMNS = {
    "mechanism": st.column_config.TextColumn(width="medium"),
    "probability": st.column_config.NumberColumn(
        format="%.3f", help="Posterior probability that the perturbation uses the mechanism."
    ),
    "effect": st.column_config.NumberColumn(
        format="%+.3f", help="Posterior mean, in standard deviations of the basal state."
    ),
    "effect_sd": st.column_config.NumberColumn(
        "effect sd", format="%.3f", help="Posterior standard deviation of the effect."
    ),
    "evidence": st.column_config.NumberColumn(
        format="%+.3f",
        help="Nats per held-out cell: lost when an entry in use is switched off, won "
        "were another switched on.",
    ),
    "evidence_se": st.column_config.NumberColumn(
        "evidence se", format="%.3f", help="Standard error over held-out cells."
    ),
    "evidence_n": st.column_config.NumberColumn(
        "held-out cells", help="Cells by which the evidence was measured."
    ),
}


def suggestions(model: Bundle, mechanisms: list[int]) -> dict[int, dict[str, str]]:
    """A name for each and the evidence for it, from the gene sets that came with the bundle."""
    rows = gene_set_tests.suggested_names(model, mechanisms)
    if rows is None:
        nothing = "no collection shares enough genes with this model"
        return {k: {"name": UNNAMED, "evidence": nothing} for k in mechanisms}
    rows = rows.astype(str)
    rows["evidence"] = rows["evidence"].str.rstrip(".")
    return {k: dict(rows.loc[k]) for k in mechanisms}


def strongest(model: Bundle) -> list[str]:
    """Perturbations by how far they move the latent state; without shifts by training cells."""
    if model.model.has_shifts:
        return [str(name) for name in masks.strengths(model.masks).index]
    order = model.perturbations["train"].sort_values(ascending=False, kind="stable")
    return [str(name) for name in order.index]


def example(model: Bundle) -> list[str]:
    """Two perturbations that show what a model can do: strong ones that share no mechanism.

    One alone, where the model takes no more; none, where no perturbation uses a mechanism.
    """
    names = strongest(model)
    if model.model.has_masks:
        active = model.masks[model.masks["active"]].groupby("perturbation")["mechanism"].agg(set)
        names = [name for name in names if name in active.index]
        names = names[:1] + [n for n in names[1:] if not active[n] & active[names[0]]]
    return names[: 2 if model.model.composes else 1]


def titles(model: Bundle, mechanisms: list[int]) -> dict[int, str]:
    """M3, with the user's name for it or else the suggested one, where there is any."""
    if not mechanisms:
        return {}
    own, suggested = given_names.names(model)[0], suggestions(model, mechanisms)
    found = {}
    for k in mechanisms:
        name = own[k].name if k in own else ""
        name = name or suggested[k]["name"]
        found[k] = f"M{k}" if name == UNNAMED else f"M{k}: {name}"
    return found


def effects(labels: Iterable[str], entries: pd.DataFrame) -> go.Figure:
    """Effects of mask entries as bars: columns effect, effect_sd."""
    frame = gene_plots.with_interval(labels, entries["effect"], entries["effect_sd"])
    return gene_plots.bars(frame, "effect (basal standard deviations)", charts.dark(), genes=False)
