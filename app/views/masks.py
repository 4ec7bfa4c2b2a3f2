"""The page Masks: which mechanisms each perturbation uses, and the evidence for each entry."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts, compare, contexts
from app.components.mask_entry import MEANING, NATS, card, direct_counts, entries, near_misses
from app.figures import heatmaps, style
from app.session import choices, page, record, url
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import similarity
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation import level_evidence

LABELS = {"probability": "Probability", "effect": "Signed effect", "evidence": "Evidence"}
MARKED, NEAR, DOUBTFUL, ONE_LEVEL = "+", "\u25cb", "\u00d7", "1"
ROWS = {
    "clustered": "Clustered",
    "name": "Name",
    "mechanisms": "Mechanisms used",
    "cells": "Training cells",
    "strength": "Strength of effect",
}
COLUMN_ORDERS = {"number": "Number", "clustered": "Clustered", "users": "Number of users"}
ORDERED_BY = {
    "clustered": "by clustering (average linkage), drawn as a tree where all rows are shown",
    "name": "by name",
    "mechanisms": "by the number of mechanisms they use",
    "cells": "by their training cells",
    "strength": "by strength, the length of their effects over all mechanisms",
}


class Choice(NamedTuple):
    """The settings of the map: its colour, its order, its threshold, and what is left out."""

    value: str
    rows: str
    columns: str
    threshold: float
    unused: bool  # leave out mechanisms without a mask above the threshold
    idle: bool  # leave out perturbations without one
    search: str
    level: str | None  # of the context; None for the common effects


def masks(model: Bundle) -> None:
    st.title("Masks")
    if not model.model.has_shifts:
        nothing(model)
        return
    record.markdown(
        f"{model.model.masks_guide} **Click a cell** to see the perturbation and the mechanism."
    )
    choice = controls(model)
    wide, line = ordered(model, choice)
    titles = compare.titles(model)
    if wide.empty:
        search = page.plain(choice.search)
        record.info(
            "Nothing to show: no perturbation has a mask above the threshold"
            + (f" and a name with “{search}”." if search else ".")
            + " Lower the threshold, clear the search, or show empty rows."
        )
    else:
        drawn(model, choice, wide, line, titles)
    record.header("Look closer")
    if choice.level is not None:
        record.caption(contexts.OTHER_PARTS)
    key, chosen = choices.chosen_names(model)
    parts = {
        "Compare perturbations": partial(compare.comparison, model, key, titles),
        "Table of entries": partial(entries, model, wide, choice.level),
    }
    if model.context is not None:
        parts[contexts.PART] = partial(contexts.everywhere, model, titles)
    if model.model.has_masks:
        names = list(wide.index)
        parts |= {
            "Network of shared mechanisms": partial(
                compare.network, model, names, chosen, choice.threshold, titles
            ),
            "Near misses": partial(near_misses, model),
        }
    record.tabs("masks_tab", parts)


def drawn(
    model: Bundle,
    choice: Choice,
    wide: pd.DataFrame,
    line: pd.DataFrame,
    titles: dict[int, str],
) -> None:
    """Draw the map, or a part of its rows if there are too many, and the card of a click."""
    rows = part_of(wide)
    marks = differs = None
    at = "" if choice.level is None else f" at {choice.level}"
    if choice.value == "evidence":
        marks = verdicts(model.masks).loc[rows.index, rows.columns]
    if choice.level is not None:
        there = contexts.masks_there(model, choice.level)
        differs = interpretation.matrix(there, "differs").loc[rows.index, rows.columns]
    event = charts.chart(
        heatmaps.mask_map(
            rows,
            choice.value,
            charts.dark(),
            marks,
            titles,
            model.perturbations["train"].loc[rows.index],
            line if len(rows) == len(wide) else None,
            direct_in_empty_rows(model),
            differs,
        ),
        f"masks_{choice.value}",
        f"Heat map of masks{at}, {len(rows)} perturbations by {rows.shape[1]} mechanisms",
        clickable=True,
    )
    record.caption(caption(model, choice, wide))
    cells = {f"{row}|{k}" for row in model.perturbations.index for k in wide.columns}
    card(model, url.pressed("cell", charts.clicked(event), cells), titles)


def direct_in_empty_rows(model: Bundle) -> dict[str, str]:
    """Return, for the hover, how many direct effects perturbations without a mechanism have."""
    used = set(model.masks.loc[model.masks["active"], "perturbation"])
    counts = direct_counts(model)
    return {name: f"direct effects: {n:,}" for name, n in counts.items() if name not in used}


def part_of(wide: pd.DataFrame) -> pd.DataFrame:
    """Return as many rows as can be drawn at once; a picker chooses which, if there are more."""
    most = min(compare.MOST_ROWS, max(1, compare.MOST_CELLS // wide.shape[1]))
    if len(wide) <= most:
        return wide
    n = -(-len(wide) // most)
    left, right = st.columns([1, 4], vertical_alignment="bottom")
    with left:
        chosen = choices.part(n, f"Part of the rows (1 to {n})")
    start = (chosen - 1) * most
    rows = wide.iloc[start : start + most]
    right.markdown(
        f"**Rows {start + 1} to {start + len(rows)} of {len(wide)}.** More would be too small to "
        "read. Hide perturbations that use none, or find a perturbation, to see fewer."
    )
    return rows


def nothing(model: Bundle) -> None:
    record.info(
        f"{model.title} has no mask and no latent shifts: its networks read the perturbation "
        "itself, so there is no map of mechanisms. See what a perturbation does to genes on "
        "Compose, or choose another model at the side."
    )
    url.link("compose", "Open Compose", ":material/arrow_forward:")


def controls(model: Bundle) -> Choice:
    """Draw the settings of the map and return them; order and filters are behind a button."""
    has_masks = model.model.has_masks
    values = [value for value in LABELS if has_masks or value != "probability"]
    orders = [by for by in ROWS if has_masks or by != "mechanisms"]
    column_orders = [by for by in COLUMN_ORDERS if has_masks or by != "users"]
    kind = "" if has_masks else "_dense"
    has_context = model.context is not None
    left, *more, middle, right = st.columns(
        [3, *[2] * has_context, 2, 2], vertical_alignment="bottom"
    )
    for name, what, options, labels in (
        ("colour", "colour", values, LABELS),
        ("rows", "order of rows", orders, ROWS),
        ("columns", "order of columns", column_orders, COLUMN_ORDERS),
    ):
        url.unknown_option(f"{name}{kind}", [labels[option] for option in options], what)
    value = left.segmented_control(
        "Colour",
        values,
        default=values[0],
        required=True,
        format_func=LABELS.__getitem__,
        key=f"colour{kind}",
        bind="query-params",
    )
    with more[0] if more else st.empty():
        level = contexts.level_of(model)
    search = middle.text_input("Find a perturbation", key="find", bind="query-params")
    with right.popover("Order and filter", icon=":material/tune:", width="stretch"):
        rows = st.selectbox(
            "Order of rows",
            orders,
            format_func=ROWS.__getitem__,
            key=f"rows{kind}",
            bind="query-params",
            help="Clustered: perturbations with similar masks (without masks: similar effects) "
            "together. Numbers: the largest first.",
        )
        columns = st.selectbox(
            "Order of columns",
            column_orders,
            format_func=COLUMN_ORDERS.__getitem__,
            key=f"columns{kind}",
            bind="query-params",
            help="Number of users: perturbations with a mask above the threshold, most first.",
        )
        threshold, unused, idle = filters() if has_masks else (0.5, False, False)
    return Choice(
        value or values[0],
        rows or orders[0],
        columns or column_orders[0],
        float(threshold),
        bool(unused),
        bool(idle),
        search.strip(),
        level,
    )


def filters() -> tuple[float, bool, bool]:
    """Draw the filters of a model with masks: threshold, hide unused mechanisms, hide idle rows."""
    threshold = st.slider(
        "Active above",
        0.05,
        0.95,
        0.5,
        0.05,
        key="threshold",
        bind="query-params",
        help="Entries above this mask probability count for order, hiding and network.",
    )
    unused = st.toggle(
        "Hide mechanisms nothing uses", value=True, key="unused", bind="query-params"
    )
    idle = st.toggle("Hide perturbations that use none", key="idle", bind="query-params")
    return threshold, unused, idle


def ordered(model: Bundle, choice: Choice) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the values to draw, perturbations x mechanisms in order, and the tree of the rows."""
    table = contexts.masks_there(model, choice.level)
    probability = interpretation.matrix(table, "probability")
    above = probability > choice.threshold
    alike = probability if model.model.has_masks else interpretation.matrix(table, "effect")
    if choice.unused and above.any(axis=None):
        alike = alike.loc[:, above.any(axis=0)]
    if choice.idle:
        alike = alike[above.any(axis=1)]
    if choice.search:
        alike = alike[alike.index.str.contains(choice.search, case=False, regex=False)]
    names, line = alike.index, pd.DataFrame()
    if choice.rows == "clustered":
        names, line = similarity.tree(alike)
    elif choice.rows == "name":
        names = names.sort_values(key=lambda name: name.str.upper())
    else:
        by = {
            "mechanisms": lambda: above.sum(axis=1),
            "cells": lambda: model.perturbations["train"],
            "strength": lambda: interpretation.strengths(table)["strength"],
        }[choice.rows]()
        names = by.loc[names].sort_values(ascending=False, kind="stable").index
    columns = alike.columns
    if choice.columns == "clustered":
        columns = similarity.tree(alike.T).order
    elif choice.columns == "users":
        users = above.sum(axis=0).loc[columns]
        columns = users.sort_values(ascending=False, kind="stable").index
    return interpretation.matrix(table, choice.value).loc[names, columns], line


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Return a symbol for the evidence of each entry: perturbations x mechanisms."""
    sure = table["evidence"] > 2 * table["evidence_se"]
    on = table["active"].astype(bool)
    lone = on & level_evidence.held_by_one(table)
    symbol = np.select(
        [lone, on & sure, ~on & sure, on & table["evidence"].notna()],
        [ONE_LEVEL, MARKED, NEAR, DOUBTFUL],
        "",
    )
    return interpretation.matrix(table.assign(symbol=symbol), "symbol")


def caption(model: Bundle, choice: Choice, wide: pd.DataFrame) -> str:
    what = "mechanisms" if model.model.has_masks else "latent dimensions"
    parts = [MEANING[choice.value], *contexts.on_map(choice.level, choice.value)]
    if choice.value == "evidence":
        parts += [
            NATS,
            f"{MARKED}: active, and held-out cells speak for it (evidence above two of its "
            f"standard errors). {DOUBTFUL}: active, and they do not.",
        ]
        if level_evidence.held_by_one(model.masks).any():
            parts.append(f"{ONE_LEVEL}: active, and one level (a batch, say) alone speaks for it.")
        if model.model.has_masks:
            parts.append(f"{NEAR}: inactive, yet they speak for it (near misses, below).")
        parts.append("Colours follow the square root, so that small values can be seen.")
    if choice.value != "probability" and wide.shape[1] > style.MOST_COLUMNS:
        parts.append(
            f"Cells of more than {style.MOST_COLUMNS} columns are too narrow for symbols: hover "
            "over one, or hide mechanisms that nothing uses."
        )
    hidden = model.model.config.n_latent - wide.shape[1]
    parts.append(
        f"{len(wide)} of {len(model.perturbations)} perturbations, {wide.shape[1]} of "
        f"{model.model.config.n_latent} {what}"
        + (f" ({hidden} that nothing uses are hidden)" if hidden else "")
        + f"; rows ordered {ORDERED_BY[choice.rows]}. "
        "Bars: training cells of the perturbation."
    )
    return " ".join(parts)


page.page(masks)
