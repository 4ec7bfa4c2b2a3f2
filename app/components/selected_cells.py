"""The cells that a lasso selected on the page Cells: their conditions, mean value and table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts
from app.session import choices, page, record, url
from samsvae_core.bundle.bundle import Bundle

N_TOLD = 3  # conditions named in a sentence


class Colour(NamedTuple):
    """What cells are coloured by, with its names for tables, figures and captions."""

    each: pd.Series  # a category or a number for each cell
    name: str  # as a column
    title: str  # as HTML, for the figure
    said: str
    signed: bool = False

    @property
    def measured(self) -> bool:
        return not isinstance(self.each.dtype, pd.CategoricalDtype)


def selection(model: Bundle, frame: pd.DataFrame, chosen: Colour) -> None:
    """Draw the selected cells: their over-represented conditions, mean value and table."""
    taken = choices.taken(model)
    url.write(cells=choices.as_code(taken, len(frame)))
    table = frame[["cell", "condition", "split"]]
    if chosen.measured:
        table = table.assign(**{chosen.name: chosen.each.to_numpy()})
    record.header("Selected cells")
    if not taken:
        record.info(
            "No cell is selected. Draw around some on the first map with the lasso or the box "
            "(buttons at its upper right); hold shift to add more."
        )
        with st.expander(f"All {len(table):,} cells of the map"):
            cell_table(table, "cells")
        return
    inside = np.isin(np.arange(len(frame)), taken)
    by = "split" if chosen.name == "split" else "condition"
    found = shares(frame[by], inside)
    record.markdown(f"{excess(found)} {means(chosen, inside) if chosen.measured else ''}")
    st.button(
        "Select none",
        key="release",
        icon=":material/close:",
        on_click=charts.release,
        args=(model,),
    )
    left, right = st.columns(2, gap="large")
    with left:
        record.subheader("Splits" if by == "split" else "Conditions")
        st.dataframe(
            found,
            hide_index=True,
            alt=f"Share of each {by} in the selection and among all cells of the map",
            column_config=SHARES,
        )
        record.caption(
            "Those in excess come first: they have the most cells beyond their share of the map. "
            "There is no test, because the selection was made by looking."
        )
        charts.downloads(found, f"selected_by_{by}")
    with right:
        record.subheader("Cells")
        cell_table(table[inside], "selected_cells")


SHARES = {
    "selected": st.column_config.NumberColumn(help="Cells in the selection."),
    "shown": st.column_config.NumberColumn(help="Cells on the map."),
    "share_selected": st.column_config.NumberColumn(
        "share of selected", format="percent", help="Of the selected cells."
    ),
    "share_shown": st.column_config.NumberColumn(
        "share of shown", format="percent", help="Of all cells on the map."
    ),
    "ratio": st.column_config.NumberColumn(
        format="%.2f", help="Share of selected over share of shown: 1 is no more and no less."
    ),
}


def shares(of: pd.Series, inside: np.ndarray) -> pd.DataFrame:
    """Return how often each name is in the selection and on the map, those in excess first."""
    shown = of.value_counts()
    selected = of[inside].value_counts().reindex(shown.index, fill_value=0)
    table = pd.DataFrame({"selected": selected, "shown": shown})
    table["share_selected"] = selected / inside.sum()
    table["share_shown"] = shown / len(of)
    table["ratio"] = table["share_selected"] / table["share_shown"]
    excess = table["share_selected"] - table["share_shown"]
    return table.loc[excess.sort_values(ascending=False, kind="stable").index].reset_index()


def excess(found: pd.DataFrame) -> str:
    """Return sentences on the number of cells and the conditions in excess of their share."""
    more = found[found["ratio"] > 1].head(N_TOLD)
    n, total = int(found["selected"].sum()), int(found["shown"].sum())
    said = f"**{n:,} of {total:,} cells** are selected."
    named = [
        f"**{page.plain(row.iloc[0])}** ({row['share_selected']:.0%} of them against "
        f"{row['share_shown']:.0%} of all)"
        for _, row in more.iterrows()
    ]
    return f"{said} In excess: {', '.join(named)}." if named else said


def means(chosen: Colour, inside: np.ndarray) -> str:
    """Return the mean value of selected and other cells, each with its standard error."""
    parts = []
    for where, rows in (("selected", inside), ("other", ~inside)):
        values = chosen.each.to_numpy(float)[rows]
        if not len(values):
            continue
        error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
        parts.append(f"**{values.mean():.2f}**{error} in {len(values):,} {where} cells")
    return f"Mean of {page.plain(chosen.name)}: {', '.join(parts)} (± standard error over cells)."


def cell_table(table: pd.DataFrame, name: str) -> None:
    number = st.column_config.NumberColumn(format="%.2f")
    st.dataframe(
        table,
        hide_index=True,
        alt="Cells with their condition, split and value",
        column_config=dict.fromkeys(table.columns[3:], number),
    )
    charts.downloads(table, name)
