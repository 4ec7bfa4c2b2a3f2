"""Figures of genes: their shifts and ranks, and how predictions agree with observations."""

from __future__ import annotations

import html
from collections.abc import Iterable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.style import (
    DOWN,
    INK,
    MOST_POINTS,
    NEUTRAL,
    OKABE_ITO,
    UP,
    Z90,
    italic,
    label,
    styled,
    text,
)


def with_interval(labels: Iterable[str], values: pd.Series, errors: pd.Series) -> pd.DataFrame:
    """Return values with their normal 90 % intervals, in the columns that `bars` takes."""
    value, reach = values.to_numpy(float), Z90 * errors.to_numpy(float)
    columns = {"value": value, "lower": value - reach, "upper": value + reach}
    return pd.DataFrame({"label": list(labels), **columns})


def bars(frame: pd.DataFrame, axis: str, dark: bool, genes: bool = True) -> go.Figure:
    """Return horizontal bars with 90 % intervals, the first row on top.

    The columns are label, value, lower and upper; a NaN interval has no whiskers.
    """
    colour = np.where(frame["value"] >= 0, UP, DOWN)
    labels = italic(frame["label"]) if genes else text(frame["label"])
    bar = go.Bar(
        x=frame["value"],
        y=labels,
        orientation="h",
        marker_color=colour,
        hovertemplate="%{y}: %{x:+.3f}<extra></extra>",
    )
    if frame["lower"].notna().any():
        bar.update(
            error_x={
                "type": "data",
                "symmetric": False,
                "array": frame["upper"] - frame["value"],
                "arrayminus": frame["value"] - frame["lower"],
                "color": INK[dark],
                "thickness": 1.2,
                "width": 3,
            },
            customdata=np.stack([frame["lower"], frame["upper"]], axis=-1),
            hovertemplate="%{y}: %{x:+.3f}<br>"
            "90 % interval %{customdata[0]:+.3f} to %{customdata[1]:+.3f}<extra></extra>",
        )
    figure = go.Figure(bar)
    styled(figure, dark, bars_height(len(frame)))
    figure.update_yaxes(
        type="category", autorange="reversed", title=None, showgrid=False, dtick=1
    )  # names made of digits stay names
    figure.update_xaxes(title_text=axis)
    figure.update_layout(bargap=0.25)
    return figure


def add_observed(figure: go.Figure, frame: pd.DataFrame, dark: bool) -> None:
    """Add observed values as diamonds to `bars` of the same rows.

    The columns are observed and observed_se.
    """
    known = frame["observed"].notna().to_numpy()
    figure.data[0].name = "predicted"
    figure.add_scatter(
        x=frame["observed"][known],
        y=np.array(figure.data[0].y)[known],
        mode="markers",
        name="observed",
        marker={
            "symbol": "diamond",
            "size": 9,
            "color": OKABE_ITO[1],
            "line": {"width": 1.2, "color": INK[dark]},
        },
        error_x={
            "array": Z90 * frame["observed_se"][known],
            "color": OKABE_ITO[1],
            "thickness": 2.5,
            "width": 0,
        },
        hovertemplate="%{y}: observed %{x:+.3f}<extra></extra>",
    )
    figure.data[0].showlegend = False
    figure.update_layout(showlegend=True)


def bars_height(n: int) -> int:
    """Return the height in pixels of a bar chart with n bars."""
    return 90 + 22 * max(n, 3)  # lower, and the title would overlap the axis


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the genes with the largest shifts, as many as can be drawn fast.

    It looks at the columns shift and, if present, observed; the order of rows is kept.
    """
    if len(table) <= MOST_POINTS:
        return table
    size = table[[c for c in ("shift", "observed") if c in table]].abs().max(axis=1)
    return table.loc[size.rank(method="first", ascending=False) <= MOST_POINTS]


def volcano(table: pd.DataFrame, n_labels: int, dark: bool, height: int, unit: str) -> go.Figure:
    """Return a plot of |shift| over half the interval's width against the shift.

    `table` has the index gene and the columns shift, lower and upper. Genes whose interval excludes
    zero are coloured.
    """
    half = (table["upper"] - table["lower"]).clip(lower=1e-6) / 2
    strength = (table["shift"].abs() / half).clip(1e-3, 1e3)  # the axis is logarithmic
    clear = (table["lower"] > 0) | (table["upper"] < 0)
    up = table["shift"] > 0
    figure = go.Figure(layout={"meta": "log y"})
    for name, rows, colour, symbol in (
        ("interval includes 0", ~clear, NEUTRAL, "circle-open"),
        ("up", clear & up, UP, "triangle-up"),
        ("down", clear & ~up, DOWN, "triangle-down"),
    ):
        figure.add_scatter(
            x=table.loc[rows, "shift"],
            y=strength[rows],
            mode="markers",
            name=f"{name} ({int(rows.sum())})",
            marker={"color": colour, "symbol": symbol, "size": 7},
            text=text(table.index[rows]),
            hovertemplate="%{text}: shift %{x:+.3f}, %{y:.1f} half-widths<extra></extra>",
        )
    label(figure, table["shift"].abs().nlargest(n_labels).index, table["shift"], np.log10(strength))
    styled(figure, dark, height)
    figure.update_xaxes(title_text=f"predicted shift ({unit})")
    figure.update_yaxes(title_text="|shift| / half-width of interval", type="log", dtick=1)
    return figure


def ranks(table: pd.DataFrame, n_labels: int, dark: bool, height: int, unit: str) -> go.Figure:
    """Return a plot of all genes by shift, highest first, for models without an interval.

    `table` has the index gene and the column shift.
    """
    ordered = table.sort_values("shift", ascending=False)["shift"]
    rank = pd.Series(np.arange(1, len(ordered) + 1), index=ordered.index)
    figure = go.Figure()
    for name, rows, colour, symbol in (
        ("up", ordered > 0, UP, "triangle-up"),
        ("down", ordered < 0, DOWN, "triangle-down"),
        ("no shift", ordered == 0, NEUTRAL, "circle-open"),
    ):
        if not rows.any():
            continue
        figure.add_scatter(
            x=rank[rows],
            y=ordered[rows],
            mode="markers",
            name=f"{name} ({int(rows.sum())})",
            marker={"color": colour, "symbol": symbol, "size": 7},
            text=text(ordered.index[rows]),
            hovertemplate="%{text}: shift %{y:+.3f}, rank %{x}<extra></extra>",
        )
    label(figure, ordered.abs().nlargest(n_labels).index, rank, ordered)
    styled(figure, dark, height)
    figure.update_xaxes(title_text="genes, from highest to lowest shift")
    figure.update_yaxes(title_text=f"predicted shift ({unit})")
    return figure


def agreement(
    table: pd.DataFrame, n_labels: int, dark: bool, unit: str, what: str = "shift"
) -> go.Figure:
    """Return a plot of observed against predicted values, with the observation's 90 % interval.

    `table` has the columns shift, observed and observed_se; `what` names them on the axes.
    """
    figure = go.Figure()
    ends = [float(f(table[["shift", "observed"]].to_numpy().ravel())) for f in (np.min, np.max)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": NEUTRAL, "dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=table["shift"],
        y=table["observed"],
        mode="markers",
        marker={"color": OKABE_ITO[4 if dark else 0], "size": 7, "opacity": 0.75},
        error_y={
            "array": Z90 * table["observed_se"],
            "thickness": 0.8,
            "width": 0,
            "color": NEUTRAL,
        },
        text=text(table.index),
        hovertemplate="%{text}: predicted %{x:+.3f}, observed %{y:+.3f}<extra></extra>",
    )
    extreme = (table["shift"].abs() + table["observed"].abs()).nlargest(n_labels).index
    label(figure, extreme, table["shift"], table["observed"])
    styled(figure, dark, height=440)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text=f"predicted {what} ({unit})")
    figure.update_yaxes(title_text=f"observed {what} ({unit})")
    return figure


def running_sum(walk: pd.DataFrame, term: str, dark: bool) -> go.Figure:
    """Return a plot of the running sum of a set; `walk` has rank, gene, hit and running_es."""
    figure = go.Figure(
        go.Scatter(
            x=walk["rank"],
            y=walk["running_es"],
            mode="lines",
            line={"color": OKABE_ITO[0], "width": 2},
            name="running sum",
            hovertemplate="rank %{x}: %{y:.3f}<extra></extra>",
        )
    )
    hits = walk[walk["hit"]]
    floor = float(min(0, walk["running_es"].min())) - 0.06
    figure.add_scatter(
        x=hits["rank"],
        y=np.full(len(hits), floor),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 12, "color": INK[dark]},
        text=text(hits["gene"]),
        hovertemplate="%{text}, rank %{x}<extra></extra>",
        name="genes of the set",
    )
    styled(figure, dark, height=320)
    figure.update_layout(title={"text": html.escape(term), "font": {"size": 13}}, showlegend=False)
    figure.update_layout(margin_t=50)
    figure.update_xaxes(title_text="genes, from highest to lowest")
    figure.update_yaxes(title_text="running sum")
    return figure
