"""How columns are spread over perturbations, and the covariates that are proposed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app.components import charts
from app.figures import heatmaps
from app.server.reading import Reading
from app.session import file_choices, page, url
from samsvae_core.data.columns import uneven_warnings
from samsvae_core.data.covariates import covariates_in_words
from samsvae_core.data.design import ACCOUNTED, proposed, read_json
from samsvae_core.data.unevenness import DesignColumn
from samsvae_core.system.messages import some

TAKEN_FOR = (
    "Unless the model accounts for it, its influence is taken for an effect of the perturbation."
)
APART = (
    "No covariate can tell the two apart, because no level has both perturbed and control cells: "
    "measure controls in every level."
)
COLUMNS = {
    "levels": st.column_config.NumberColumn(help="Different labels in the column."),
    "V": st.column_config.NumberColumn(
        format="%.2f",
        help="Cram\u00e9r's V of the column and the conditions, corrected for chance: 0 if its "
        "levels are spread evenly, 1 if it follows from the perturbation or the other way round.",
    ),
    "most unlike the controls": st.column_config.TextColumn(
        help="The condition, of those with at least 20 cells, that differs most from the controls "
        "beyond chance."
    ),
    "share of cells": st.column_config.NumberColumn(
        format="percent", help="Of that condition's cells, those in the level."
    ),
    "share of controls": st.column_config.NumberColumn(
        format="percent", help="Of the control cells, those in the level."
    ),
    "covariate": st.column_config.TextColumn(
        help="Proposed are columns that are uneven between perturbations or named as batches, "
        "donors, cell lines or treatments usually are, unless they cannot be told from the "
        "perturbations. Of nested columns the finer is proposed."
    ),
}


def of(report: Mapping[str, Any]) -> list[DesignColumn]:
    """Return the audit in a report on a data file."""
    return read_json(report["design"])


def accounted(report: Mapping[str, Any]) -> list[str]:
    """Return the columns that the model accounts for."""
    return [column.name for column in of(report) if column.state == ACCOUNTED]


def other_warnings(report: Mapping[str, Any]) -> list[str]:
    """Return the warnings of a report but those on uneven columns, which the design tells."""
    told = uneven_warnings(of(report))
    return [warning for warning in report["warnings"] if warning not in told]


def design(report: Mapping[str, Any], reading: Reading) -> None:
    """Draw what the audit found, the button that takes its proposal, a table and a map."""
    columns = of(report)
    answer(columns)
    if names := proposed(columns):
        st.button(
            label(names),
            key="account for",
            icon=":material/balance:",
            on_click=file_choices.choose,
            args=("covariate", [*(reading.options.covariates or ()), *names]),
        )
    if not columns:
        return
    shown = table(columns)
    st.dataframe(
        shown, hide_index=True, column_config=COLUMNS, alt="Columns that may be covariates"
    )
    charts.downloads(shown, "design")
    left, right = st.columns([1, 2], gap="large")
    with left:
        chosen = column_of_map(columns)
        st.caption(
            "The controls, and below them the conditions with at least 20 cells that are most "
            "unlike them."
        )
    with right:
        level_map(chosen)


def of_training(report: Mapping[str, Any], reading: Reading) -> None:
    """Say what the training accounts for, and draw the button that takes the proposal."""
    columns = of(report)
    answer(columns)
    names = proposed(columns)
    if names and st.button(label(names), key="account for", icon=":material/balance:"):
        taken = reading.with_covariates([*(reading.options.covariates or ()), *names])
        file_choices.note_reading(taken)
        url.go("train", {"on": url.as_address("", taken.as_query()).removeprefix("?")})


def answer(columns: Sequence[DesignColumn]) -> None:
    """Say what is accounted for, what is uneven, and what cannot be told from perturbations."""
    accounted = [column for column in columns if column.state == ACCOUNTED]
    st.markdown(f"The model accounts for {counted(accounted) or 'no covariate'}.")
    left = [column for column in columns if column.uneven and column not in accounted]
    said = {column.name for column in [*accounted, *left]}
    left = [column for column in left if column.nested not in said]
    for column in left:
        st.warning(f"{uneven(column)} {TAKEN_FOR if column.compared else APART}")
        if column.compared and column.alone:
            st.warning(
                f"{page.plain(some(column.alone))} ha{'ve' if len(column.alone) > 1 else 's'} no "
                f"control cells in the same level of {page.plain(column.name)}: what is the "
                "perturbation's cannot be told from what is the level's."
            )
    if left or accounted:
        return
    if names := proposed(columns):
        it, are = ("it", "is") if len(names) == 1 else ("them", "are")
        st.markdown(
            f"{' and '.join(map(page.plain, names))} {are} spread evenly over the perturbations. "
            f"Accounting for {it} makes effects more precise."
        )
    elif columns:
        st.markdown("No column is uneven between perturbations.")


def uneven(column: DesignColumn) -> str:
    """Return the sentence on how a column is uneven."""
    away = column.unlike
    if away is None:
        return f"**{page.plain(column.name)}** is uneven between perturbations."
    return (
        f"**{page.plain(column.name)}** is uneven between perturbations: {away.share:.0%} of the "
        f"cells of {page.plain(away.condition)} are {named(away.level)}, and "
        f"{away.of_controls:.0%} of the controls."
    )


def named(level: str) -> str:
    return page.plain(level) if level else "without a value"


def counted(columns: Sequence[DesignColumn]) -> str:
    return covariates_in_words({page.plain(each.name): each.levels for each in columns})


def label(names: Sequence[str]) -> str:
    """Return what the button says that takes these covariates."""
    return f"Account for {' and '.join(page.plain(name) for name in heatmaps.cut(names))}"


def table(columns: Sequence[DesignColumn]) -> pd.DataFrame:
    rows = [
        {
            "column": column.name,
            "levels": len(column.levels),
            "V": column.v,
            "most unlike the controls": away.condition if away else "",
            "level": away.level if away else "",
            "share of cells": away.share if away else None,
            "share of controls": away.of_controls if away else None,
            "covariate": ": ".join(filter(None, [column.state or "no", column.why])),
        }
        for column in columns
        for away in [column.unlike]
    ]
    return pd.DataFrame(rows)


def column_of_map(columns: Sequence[DesignColumn]) -> DesignColumn:
    """Draw the choice of the column whose levels the map shows."""
    names = [column.name for column in columns]
    first = next((column for column in columns if column.state), columns[0]).name
    chosen = st.selectbox(
        "Cells of each condition by",
        names,
        key=file_choices.suggested("spread", first, fits=names.__contains__),
        persist_state="session",
    )
    file_choices.chosen("spread", "" if chosen == first else chosen)
    return columns[names.index(chosen)]


def level_map(column: DesignColumn) -> None:
    """Draw the shares of each condition's cells in the levels of a column."""
    levels = [level or "(no value)" for level in column.levels]
    cells = pd.DataFrame(column.cells, column.conditions, levels)
    charts.chart(
        heatmaps.level_map(cells, column.name, charts.dark()),
        "levels_of_conditions",
        f"Share of the cells of each condition in the levels of {column.name}",
    )
