"""Figures and tables on a page, with what saves them."""

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
    """The customdata of the point a person clicked in a Plotly chart."""
    points = getattr(event, "selection", {}).get("points", [])
    data = points[0].get("customdata") if points else None
    return str(data[0] if isinstance(data, (list, tuple)) else data) if data else None


def downloads(table: pd.DataFrame, name: str) -> None:
    """CSV and TSV of exactly the table that is shown."""
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
    """A figure in its own colours, to be saved as SVG, PNG or data under a telling name."""
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
    """A figure that is drawn again and again by itself: nothing of it is kept for a report."""
    config = _buttons(name, ["select2d", "lasso2d", "autoScale2d"])
    st.plotly_chart(figure, theme=None, config=config, alt=alt, key=name)


def saving(figure: go.Figure, name: str, alt: str) -> None:
    """A figure as files, drawn when asked for, and remembered for the report."""
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
    """A map of cells, each with its place as customdata, to be taken by a lasso or a box.

    Plotly forgets a selection when the figure is drawn anew; `address.taken` keeps it until there
    is another, or `release`.
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
    """Take no cell any more, and draw maps anew, without the outline of the lasso."""
    choices.take(model, [])
    st.session_state["lassos"] = st.session_state.get("lassos", 0) + 1


def choose_from(model: Bundle, figure: go.Figure, name: str, alt: str, by_click: bool) -> None:
    """A map of perturbations, each with its name as customdata, from which some are chosen.

    A lasso or a box chooses those inside, the farthest moved first; a click adds one, or takes it
    away. Plotly finds no point by click while it is ready to draw, so it is one or the other. The
    map is drawn anew each time, as it shows who is chosen.
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
    """Choose no perturbation any more."""
    st.session_state[f"chosen {model.checksum}"] = []
