"""Figures and tables on a page, with their downloads."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.export import figure_data, static_figures
from app.export.items import Picture, Table
from app.session import access, choices
from app.session.markdown import plain
from app.session.page import record
from samsvae_core.analysis import (
    enrichment_export,
    masks,
)
from samsvae_core.bundle.bundle import Bundle


def dark() -> bool:
    return bool(st.context.theme.type == "dark")


def clicked(event: object) -> str | None:
    """Return the customdata of the point clicked in a Plotly chart, or None."""
    points = getattr(event, "selection", {}).get("points", [])
    data = points[0].get("customdata") if points else None
    return str(data[0] if isinstance(data, (list, tuple)) else data) if data else None


def downloads(table: pd.DataFrame, name: str) -> None:
    """Draw downloads of the table shown, as CSV and TSV, and record it for the report."""
    record(Table(name, "", table))
    with st.container(horizontal=True):
        for kind, separator in (("CSV", ","), ("TSV", "\t")):
            st.download_button(
                kind,
                partial(_separated, table, separator),
                f"{name}.{kind.lower()}",
                key=f"{name} {kind}",
                icon=":material/download:",
                on_click="ignore",
                type="tertiary",
            )


def _separated(table: pd.DataFrame, separator: str) -> bytes:
    return enrichment_export.separated(table, separator)


def chart(figure: go.Figure, name: str, alt: str, clickable: bool = False) -> Any:
    """Draw a figure with its downloads and return Streamlit's event; `name` names the files."""
    event = st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["select2d", "lasso2d", "autoScale2d"]),
        alt=alt,
        key=name,
        on_select="rerun" if clickable else "ignore",
        selection_mode="points",
    )
    saving(figure, name, alt)
    return event


def live_chart(figure: go.Figure, name: str, alt: str) -> None:
    """Draw a figure that refreshes itself; it has no downloads and is not kept for the report."""
    config = _buttons(name, ["select2d", "lasso2d", "autoScale2d"])
    st.plotly_chart(figure, theme=None, config=config, alt=alt, key=name)


def saving(figure: go.Figure, name: str, alt: str) -> None:
    """Draw the downloads of a figure and record it for the report.

    The files are made when they are asked for.
    """
    record(Picture(name, alt, figure))
    with st.popover("Save", icon=":material/download:", type="tertiary"):
        st.caption(plain(alt))
        for label, ending, made in (
            ("SVG, for print and editing", "svg", partial(static_figures.drawn, figure, "svg")),
            ("PNG, for slides", "png", partial(static_figures.drawn, figure, "png")),
            ("Data (CSV)", "csv", partial(_data, figure)),
        ):
            st.download_button(
                label,
                made,
                f"{name}.{ending}",
                key=f"{name} figure {ending}",
                on_click="ignore",
                type="tertiary",
            )


def _data(figure: go.Figure) -> bytes:
    return _separated(figure_data.data(figure), ",")


def _buttons(name: str, without: list[str]) -> dict[str, Any]:
    saved = {"format": "svg", "filename": name, "scale": 2}
    return {"toImageButtonOptions": saved, "displaylogo": False, "modeBarButtonsToRemove": without}


def lasso(model: Bundle, figure: go.Figure, name: str, alt: str) -> None:
    """Draw a map on which a lasso or a box selects cells; customdata is a cell's position.

    Plotly forgets a selection when the figure is redrawn; `choices.taken` keeps it until the next
    selection or `release`.
    """
    key = f"{name} {st.session_state.get('lassos', 0)}"

    @access.errors()
    def keep() -> None:
        points = st.session_state[key]["selection"]["points"]
        choices.take(model, sorted(int(point["customdata"]) for point in points))

    figure.update_layout(dragmode="lasso")
    st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["autoScale2d"]),
        alt=alt,
        key=key,
        on_select=keep,
        selection_mode=("lasso", "box"),
    )
    saving(figure, name, alt)


@access.errors()
def release(model: Bundle) -> None:
    """Clear the selection of cells and redraw the maps without the lasso; a callback."""
    choices.take(model, [])
    st.session_state["lassos"] = st.session_state.get("lassos", 0) + 1


def choose_from(model: Bundle, figure: go.Figure, name: str, alt: str, by_click: bool) -> None:
    """Draw a map on which perturbations are chosen; customdata is a perturbation's name.

    A lasso or a box chooses those inside, the strongest first; with `by_click`, a click adds or
    removes one. Plotly reports no clicks while a lasso is active, so only one of the two works at
    a time. The map is redrawn after each choice, because it shows who is chosen.
    """
    key = f"{name} {by_click} {model.checksum} {st.session_state.get('choices', 0)}"

    @access.errors()
    def keep() -> None:
        selection = st.session_state[key]["selection"]
        taken = [str(point["customdata"]) for point in selection["points"]]
        before: list[str] = st.session_state.get(f"chosen {model.checksum}", [])
        if by_click:
            rest = [name for name in before if name not in taken]
            chosen = [*rest, *(name for name in taken if name not in before)]
        else:
            chosen = [n for n in masks.strengths(model.masks).index if n in taken]
        st.session_state[f"chosen {model.checksum}"] = chosen
        st.session_state["choices"] = st.session_state.get("choices", 0) + 1

    figure.update_layout(dragmode=False if by_click else "lasso")
    st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["autoScale2d"]),
        alt=alt,
        key=key,
        on_select=keep,
        selection_mode="points" if by_click else ("lasso", "box"),
    )
    saving(figure, name, alt)


@access.errors()
def choose_none(model: Bundle) -> None:
    """Clear the chosen perturbations; a callback."""
    st.session_state[f"chosen {model.checksum}"] = []
