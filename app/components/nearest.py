"""The perturbations most like the one shown."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app.components import all_shifts, charts
from app.session import choices, page, record, results
from samsvae_core.analysis import similarity
from samsvae_core.analysis.partners import inert
from samsvae_core.bundle.bundle import Bundle

N_NAMED = 3  # named per measure in a sentence


def clicked_row(event: object) -> int:
    """Return the clicked row of a table, or the first if none was clicked."""
    rows = getattr(event, "selection", {}).get("rows", [])
    return int(rows[0]) if rows else 0


def nearest(model: Bundle, name: str) -> None:
    """Draw which perturbations act like this one: by mechanisms, and by shifts of genes."""
    n = len(model.perturbations)
    if n < 2:
        record.info("There is no other perturbation in this model.")
        return
    parts, idle, still = [], pd.Index([]), inert(model)
    if model.model.has_shifts:
        alike = similarity.similar_perturbations(model.masks, name)
        if model.model.has_masks:
            counts = model.masks.groupby("perturbation")["active"].sum()
            idle = counts.index[counts == 0]
            parts.append(alike[["shared", "jaccard", "cosine"]])
        else:
            parts.append(alike[["cosine"]])
    if (
        all_shifts.is_small(model)
        or results.effects_are_kept(model)
        or st.toggle(
            "Compare their shifts of expression, too",
            key="nearest_shifts",
            bind="query-params",
            help=f"Composes all {n:,} perturbations, once for this model: a minute or two.",
        )
    ):
        every = all_shifts.of(model)
        if every is not None:
            parts.append(every.similar(name))
        elif not parts:
            return
    if not parts:
        record.info("Switch the comparison on to see which perturbations shift genes alike.")
        return
    table = pd.concat(parts, axis=1).rename_axis("perturbation")
    for column, near_zero in (("cosine", idle), ("r_predicted", still)):  # undefined there
        if column in table:
            table.loc[table.index.isin(near_zero) | (name in near_zero), column] = np.nan
    wanted = ["r_observed"] if name in still else ["jaccard", "r_predicted", "cosine"]
    order = [column for column in wanted if column in table]
    if order:
        table = table.sort_values(order, ascending=False, kind="stable")
    record.markdown(nearest_in_words(table, name, name in idle, name in still))
    counts = {"cosine": len(idle), "predicted r": len(still)}
    neighbours(model, table.dropna(axis=1, how="all").reset_index(), name, counts)


ALIKE = {"jaccard": "shared mechanisms", "cosine": "direction of effect"}
ALIKE |= {"r_predicted": "predicted shift", "r_observed": "observed shift"}
FIGURE = {"jaccard": "Jaccard index", "cosine": "cosine", "r_predicted": "r", "r_observed": "r"}


def nearest_in_words(table: pd.DataFrame, name: str, is_idle: bool, is_still: bool) -> str:
    """Return a sentence with the most similar perturbations by each measure.

    An idle perturbation uses no mechanism; a still one has no direct effect that stands out either.
    """
    found = []
    for column, what in ALIKE.items():
        if column not in table or (column == "cosine" and "jaccard" in table):
            continue
        top = table[column][table[column] > 0].nlargest(N_NAMED)
        if len(top):
            listed = ", ".join(f"{page.plain(other)} ({value:.2f})" for other, value in top.items())
            found.append(f"by **{what}** ({FIGURE[column]}): {listed}")
    said = f"Most alike {'; '.join(found)}." if found else "None is like it by these measures."
    if is_idle and not is_still:
        return (
            f"{page.plain(name)} uses no mechanism, so there is nothing to share; its predicted "
            f"shift is what its direct effects do. {said}"
        )
    if is_still:
        return (
            f"{page.plain(name)} uses no mechanism, so there is nothing to share and next to no "
            f"predicted shift to compare. {said}"
        )
    if "shared" in table and not table["shared"].any():
        return f"No other perturbation uses a mechanism of {page.plain(name)}. {said}"
    return said


def neighbours(model: Bundle, shown: pd.DataFrame, name: str, empty: dict[str, int]) -> None:
    """Draw the table of neighbours; `empty` says how many effects are too small for a measure."""
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"nearest to {name} in {model.name}",
        placeholder="\u2013",
        alt=f"How much each other perturbation is like {name}",
        column_config=NEAREST_COLUMNS,
    )
    other = str(shown["perturbation"].iloc[clicked_row(event)])
    st.button(
        f"Go to {page.plain(other)}",
        icon=":material/arrow_forward:",
        key="go",
        on_click=choices.choose,
        args=(choices.PERTURBATION, other),
    )
    lacking = [f"{measure} of {n}" for measure, n in empty.items() if n]
    record.caption(
        "Click a row for another perturbation. Each is alone, at dosage 1. "
        + (
            f"r is Pearson's, over {len(model.genes):,} genes; genes are correlated, so it has no "
            "honest interval. Observed shifts share their control cells, whose sampling error "
            "raises r between them; with few cells their own sampling error lowers it. "
            if "n_observed" in shown
            else ""
        )
        + (
            f"Empty where effects are near zero: {', '.join(lacking)} of "
            f"{len(model.perturbations)} perturbations."
            if lacking
            else ""
        )
    )
    charts.downloads(shown, f"nearest_to_{name}")


NEAREST_COLUMNS = {
    "shared": st.column_config.NumberColumn(
        "shared mechanisms", help="Mechanisms that both use (probability above 0.5)."
    ),
    "jaccard": st.column_config.NumberColumn(
        "Jaccard index", format="%.2f", help="Mechanisms both use over those that either uses."
    ),
    "cosine": st.column_config.NumberColumn(
        format="%+.2f", help="Between the mean effects on all mechanisms: 1 is the same direction."
    ),
    "r_predicted": st.column_config.NumberColumn(
        "r, predicted", format="%+.2f", help="Pearson r over genes between mean predicted shifts."
    ),
    "r_observed": st.column_config.NumberColumn(
        "r, observed",
        format="%+.2f",
        help="Pearson r over genes between measured shifts, all splits. Empty where either was "
        "not measured alone.",
    ),
    "n_observed": st.column_config.NumberColumn(
        "cells", help="Cells with the other perturbation alone, all splits."
    ),
}
