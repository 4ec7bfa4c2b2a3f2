"""Mechanisms on a page: their names, and the effects of perturbations on them."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.components import charts
from app.figures import gene_plots
from app.session import gene_set_tests, given_names
from samsvae_core.analysis import masks
from samsvae_core.analysis.partners import inert
from samsvae_core.bundle.bundle import Bundle

UNNAMED = "unnamed"
WHISKERS = (
    "Posterior mean of mask times embedding; whiskers: the model's own 90 % interval, from the "
    "posterior standard deviation, usually too narrow."
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
        help="Nats per held-out cell: lost when an entry in use is switched off, or gained "
        "if another were switched on.",
    ),
    "evidence_se": st.column_config.NumberColumn(
        "evidence se", format="%.3f", help="Standard error over held-out cells."
    ),
    "evidence_n": st.column_config.NumberColumn(
        "held-out cells", help="Cells on which the evidence was measured."
    ),
    "evidence_lowest_level": st.column_config.NumberColumn(
        "evidence without one level",
        format="%+.3f",
        help="The lowest evidence when the cells of one level of a covariate (a batch, say) are "
        "left out. At 0 or below, one level alone supports the entry.",
    ),
    "lowest_level": st.column_config.TextColumn(
        "that level", help="The level without which the evidence is lowest."
    ),
    "levels_for": st.column_config.NumberColumn(
        "levels for", help="Levels whose own cells speak for the entry, beyond two standard errors."
    ),
    "levels_against": st.column_config.NumberColumn(
        "levels against", help="Levels whose own cells speak against it, likewise."
    ),
}


def suggestions(model: Bundle, mechanisms: list[int]) -> dict[int, dict[str, str]]:
    """Return a suggested name and its evidence for each mechanism, from the bundle's gene sets."""
    rows = gene_set_tests.suggested_names(model, mechanisms)
    if rows is None:
        nothing = "no collection shares enough genes with this model"
        return {k: {"name": UNNAMED, "evidence": nothing} for k in mechanisms}
    rows = rows.astype(str)
    rows["evidence"] = rows["evidence"].str.rstrip(".")
    return {k: dict(rows.loc[k]) for k in mechanisms}


def strongest(model: Bundle) -> list[str]:
    """Return perturbations by length of latent shift; without shifts, by number of cells."""
    if model.model.has_shifts:
        return [str(name) for name in masks.strengths(model.masks).index]
    order = model.perturbations["train"].sort_values(ascending=False, kind="stable")
    return [str(name) for name in order.index]


def example(model: Bundle) -> list[str]:
    """Return two strong perturbations that share no mechanism, as an example to compose.

    It is one if the model takes no more, and none if all are `inert`.
    """
    names = strongest(model)
    if model.model.has_masks:
        active = model.masks[model.masks["active"]].groupby("perturbation")["mechanism"].agg(set)
        still = inert(model)
        names = [name for name in names if name not in still]
        of = {name: active.get(name, set()) for name in names}
        names = names[:1] + [n for n in names[1:] if not of[n] & of[names[0]]]
    return names[: 2 if model.model.composes else 1]


def titles(model: Bundle, mechanisms: list[int]) -> dict[int, str]:
    """Return titles such as "M3: name", with the user's name, else the suggested one, if any."""
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
    """Return a bar chart of effects; `entries` has the columns effect and effect_sd."""
    frame = gene_plots.with_interval(labels, entries["effect"], entries["effect_sd"])
    return gene_plots.bars(frame, "effect (basal standard deviations)", charts.dark(), genes=False)
