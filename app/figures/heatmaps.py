"""Heat maps of perturbations by mechanisms, and of gene sets by mechanisms."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from types import MappingProxyType

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.style import (
    BAR_TITLE,
    DIFFERS,
    INK,
    MOST_COLUMNS,
    MOST_DRAWN,
    NEUTRAL,
    styled,
    text,
)

PALE = [[0, "#f5f7f9"], [1, "#5ab6ea"]]  # dark numbers can be read on all of it
FEW_COLUMNS = 8  # a map of shares with more has no numbers in its cells
SIGNED = ("effect", "evidence")  # what a mask map can show, beside "probability"


def mask_map(
    wide: pd.DataFrame,
    value: str,
    dark: bool,
    marks: pd.DataFrame | None = None,
    titles: dict[int, str] | None = None,
    cells: pd.Series | None = None,
    line: pd.DataFrame | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
    differs: pd.DataFrame | None = None,
) -> go.Figure:
    """Return a map of perturbations x mechanisms, with a marker over each cell to take clicks.

    `wide` is in drawing order, first row on top; NaN cells stay empty. `value` is "probability",
    "effect" or "evidence", whose colours follow the signed square root because it spans orders of
    magnitude. `marks` are symbols to write into cells; effects get their sign. Each marker has
    "perturbation|mechanism" as its customdata and the mechanism's title from `titles` in its hover.
    On the right are the training `cells` of each row, as bars, and the `line` of the clustering
    tree. `notes` are texts for the hover of some rows, by perturbation. `differs` says of each cell
    whether it gets the symbol DIFFERS.
    """
    signed = value in SIGNED
    values = wide.to_numpy(dtype=float)
    shade = np.sign(values) * np.sqrt(np.abs(values)) if value == "evidence" else values
    limit = max([1e-9, *np.abs(shade[np.isfinite(shade)])]) if signed else 1.0
    columns = [f"M{k}" for k in wide.columns]
    rows = text(wide.index)
    bar = {"title": BAR_TITLE | {"text": value}, "thickness": 10, "outlinewidth": 0}
    if value == "evidence":
        at = limit * np.array([-1, -0.5, 0, 0.5, 1])
        bar |= {"tickvals": at, "ticktext": [f"{np.sign(t) * t**2:.2g}" for t in at]}
    if value == "effect":  # the sign of larger effects also as a symbol
        strong = np.where(values > 0, "+", "\u2212")
        marks = pd.DataFrame(np.where(np.abs(values) > 0.1 * limit, strong, ""))
    if differs is not None:
        marks = with_symbol(marks, differs)
    heat = go.Heatmap(
        z=shade,
        x=columns,
        y=rows,
        customdata=values,  # the exact values, for files
        colorscale="RdBu_r" if signed else "Cividis",
        zmin=-limit if signed else 0,
        zmax=limit,
        colorbar=bar,
    )
    clicks = [f"{row}|{column}" for row in wide.index for column in wide.columns]
    texts = [
        "not tried" if np.isnan(v) else f"{v:+.2f}" if signed else f"{v:.3f}"
        for v in values.ravel()
    ]
    if notes:
        more = [f"<br>{notes[name]}" if name in notes else "" for name in wide.index]
        texts = [one + more[place // len(columns)] for place, one in enumerate(texts)]
    if differs is not None:
        own = differs.to_numpy(bool).ravel().tolist()
        texts = [one + "<br>differs there" * its for one, its in zip(texts, own, strict=True)]
    hover = "%{y}, mechanism %{x}<br>" + value + " %{text}<extra></extra>"
    figure = clickable(heat, marks, clicks, texts, hover, dark)
    figure.update_yaxes(type="category")
    if titles:
        named = text([titles.get(k, f"M{k}") for k in wide.columns])
        hover = "%{y}, mechanism %{hovertext}<br>" + value + " %{text}<extra></extra>"
        figure.data[1].update(hovertext=np.tile(named, len(rows)), hovertemplate=hover)
    beside(figure, rows, cells, line, dark)
    return figure


def with_symbol(marks: pd.DataFrame | None, differs: pd.DataFrame) -> pd.DataFrame:
    """Return the symbols of cells, with DIFFERS behind those of cells that differ."""
    more = np.where(differs.to_numpy(bool), DIFFERS, "")
    if marks is None:
        return pd.DataFrame(more)
    before = marks.to_numpy(dtype=str)
    return pd.DataFrame(np.char.add(before, more))


def beside(
    figure: go.Figure,
    rows: list[str],
    cells: pd.Series | None,
    line: pd.DataFrame | None,
    dark: bool,
) -> None:
    """Add bars of training cells and the tree at the right of a map, aligned with its rows."""
    has_tree = line is not None and len(line) > 0
    map_end = 1.0 - 0.08 * (cells is not None) - 0.08 * has_tree
    still = (
        has_tree or len(figure.data[0].x) <= MOST_COLUMNS
    )  # a zoom would move rows away from the tree
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True}
    figure.update_xaxes(domain=[0, map_end], fixedrange=still)
    figure.update_yaxes(fixedrange=still)
    if cells is not None:
        figure.add_bar(
            x=cells.to_numpy(),
            y=rows,
            orientation="h",
            xaxis="x2",
            marker={"color": NEUTRAL},
            hovertemplate="%{y}: %{x:,} training cells<extra></extra>",
            showlegend=False,
        )
        head = {"text": "cells", "font": {"size": 12}, "standoff": 2}
        domain = [map_end + 0.01, map_end + 0.08]
        figure.update_layout(
            xaxis2={"domain": domain, "anchor": "y", "side": "top", "title": head, **bare},
            bargap=0.3,
        )
    if line is not None and has_tree:
        figure.add_scatter(
            x=line["height"],
            y=line["place"],
            mode="lines",
            line={"color": NEUTRAL, "width": 1},
            xaxis="x3",
            yaxis="y2",
            hoverinfo="skip",
            showlegend=False,
        )
        top = float(line["height"].max()) or 1.0
        figure.update_layout(
            xaxis3={
                "domain": [0.93, 1],
                "anchor": "y2",
                "range": [-0.01 * top, 1.03 * top],
                **bare,
            },
            yaxis2={"range": [len(rows) - 0.5, -0.5], "anchor": "x3", **bare},
        )


def clickable(
    heat: go.Heatmap,
    marks: pd.DataFrame | None,
    clicks: list[str],
    texts: list[str],
    hover: str,
    dark: bool,
) -> go.Figure:
    """Return a heat map, first row on top, with a marker over each cell to take clicks.

    Clicks on the heat map itself do not reach Python. `clicks` are the markers' customdata and
    `texts` the texts for the template `hover`, row by row; `marks` are symbols to write into cells.
    """
    crowded = len(heat.x) > MOST_COLUMNS
    heat.update(xgap=0.5 if crowded else 2, ygap=0.5 if crowded else 1, hoverinfo="skip")
    if (
        marks is not None and not crowded
    ):  # Plotly writes them in black or white, whichever can be read
        heat.update(text=marks.to_numpy(dtype=str), texttemplate="%{text}", textfont_size=12)
    figure = go.Figure(heat)
    columns, rows = list(heat.x), list(heat.y)
    figure.add_scatter(
        x=np.tile(columns, len(rows)),
        y=np.repeat(rows, len(columns)),
        mode="markers",
        marker={"symbol": "square", "size": 16, "opacity": 0.01, "color": "#888888"},
        customdata=np.array(clicks),  # Plotly checks each item of a list, which is slow
        text=np.array(texts),
        hovertemplate=hover,
        showlegend=False,
    )
    if len(clicks) > MOST_DRAWN:  # markers take clicks and hovers even if not drawn
        figure.data[1].update(marker_maxdisplayed=1)
    styled(figure, dark, height=120 + 20 * len(rows))
    figure.update_layout(hoverdistance=-1, margin_t=60)  # a click anywhere in a cell finds it
    width, height = len(columns) - 0.5, len(rows) - 0.5  # no room beyond the cells
    bare = {"showgrid": False, "title": None, "ticks": ""}
    figure.update_xaxes(side="top", range=[-0.5, width], **bare)
    figure.update_yaxes(zeroline=False, range=[height, -0.5], **bare)
    return figure


def term_map(
    wide: pd.DataFrame,
    value: str,
    dark: bool,
    labels: list[str],
    marks: pd.DataFrame | None = None,
) -> go.Figure:
    """Return a map of gene sets x mechanisms, coloured around zero, with `marks` in its cells.

    `labels` are short names of the sets, in the order of the rows; the hover has the full name.
    A marker over each cell takes clicks and has "term|M0" as its customdata.
    """
    values = wide.to_numpy(dtype=float)
    limit = max([1e-9, *np.abs(values[np.isfinite(values)])])
    columns = [f"M{k}" for k in wide.columns]
    names = [str(term) for term in wide.index]
    places = list(range(len(names)))
    heat = go.Heatmap(
        z=values,
        x=columns,
        y=places,
        colorscale="RdBu_r",
        zmin=-limit,
        zmax=limit,
        colorbar={"title": BAR_TITLE | {"text": value}, "thickness": 10, "outlinewidth": 0},
    )
    clicks = [f"{name}|{column}" for name in names for column in columns]
    texts = [
        f"{html.escape(name, quote=False)}<br>{column}: {value} "
        + ("not tested" if np.isnan(v) else f"{v:+.2f}")
        for name, row in zip(names, values, strict=True)
        for column, v in zip(columns, row, strict=True)
    ]
    figure = clickable(heat, marks, clicks, texts, "%{text}<extra></extra>", dark)
    figure.update_yaxes(tickvals=places, ticktext=text(labels))
    return figure


def level_map(cells: pd.DataFrame, name: str, dark: bool) -> go.Figure:
    """Return a map of conditions x levels of the column `name`: shares of each condition's cells.

    `cells` has numbers of cells, in drawing order. Names are cut on the axes, not in the hover.
    """
    values = cells.to_numpy(dtype=float)
    shares = values / values.sum(axis=1, keepdims=True)
    rows, columns = text(cells.index), text(cells.columns)
    heat = go.Heatmap(
        z=shares,
        x=columns,
        y=rows,
        colorscale=PALE,
        zmin=0,
        zmax=1,
        colorbar={
            "title": BAR_TITLE | {"text": "share of cells"},
            "tickformat": ".0%",
            "thickness": 10,
            "outlinewidth": 0,
        },
    )
    texts = [
        f"{share:.1%} ({n:,.0f} of {of:,.0f} cells)"
        for ns, row, of in zip(values, shares, values.sum(axis=1), strict=True)
        for n, share in zip(ns, row, strict=True)
    ]
    written = None
    if len(columns) <= FEW_COLUMNS:
        written = pd.DataFrame([[f"{share:.0%}" for share in row] for row in shares])
    hover = "%{y}, %{x}<br>%{text}<extra></extra>"
    figure = clickable(heat, written, [""] * values.size, texts, hover, dark)
    figure.update_layout(xaxis_title=text([name])[0])
    figure.update_xaxes(type="category", tickvals=columns, ticktext=text(cut(cells.columns)))
    figure.update_yaxes(type="category", tickvals=rows, ticktext=text(cut(cells.index)))
    return figure


def contributions(table: pd.DataFrame, labels: list[str], dark: bool) -> go.Figure:
    """Return a map of contributions, mechanisms x perturbations and their sum, with numbers.

    Values are in basal standard deviations; `labels` are the mechanisms' names, in row order.
    """
    values = table.to_numpy(dtype=float)
    limit = max([1e-9, *np.abs(values[np.isfinite(values)])])
    columns, places = text(table.columns), list(range(len(labels)))
    heat = go.Heatmap(
        z=values,
        x=columns,
        y=places,
        colorscale="RdBu_r",
        zmin=-limit,
        zmax=limit,
        showscale=False,
    )
    written = table.map(
        lambda value: f"{round(value, 2) + 0.0:+.2f}"
    )  # adding 0.0 turns -0.00 into +0.00
    clicks = [f"{label}|{column}" for label in labels for column in table.columns]
    texts = [
        f"{column}, {label}: {value:+.3f}"
        for label, row in zip(text(labels), values, strict=True)
        for column, value in zip(columns, row, strict=True)
    ]
    figure = clickable(heat, written, clicks, texts, "%{text}<extra></extra>", dark)
    figure.add_vline(x=values.shape[1] - 1.5, line={"color": INK[dark], "width": 2})
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickvals=places, ticktext=text(cut(labels)))
    figure.update_layout(height=90 + 30 * len(labels))
    return figure


def cut(names: Iterable[str]) -> list[str]:
    """Return names of at most 26 characters, for the axes of a map."""
    return [name if len(name) <= 26 else f"{name[:25].rstrip()}\u2026" for name in names]
