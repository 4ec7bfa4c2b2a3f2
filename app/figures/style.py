"""The look of all figures: colours, fonts and themes."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

INK = {False: "#101820", True: "#e6ebf0"}  # text, by dark mode
FAINT = {False: "#dde3e9", True: "#2c3844"}  # grid and borders
UP, DOWN, NEUTRAL = "#b2431f", "#1f6fb2", "#8593a1"  # contrast of 3:1 or more in both themes
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"]
REST = "all other cells"  # a category that is grey and below the others
MOST_POINTS = 1_000  # genes in one figure
MOST_SVG = 5_000  # points; more are drawn by WebGL, which SVG files hold as a picture
MOST_DRAWN = 2_000  # markers over the cells of a map
MOST_COLUMNS = 60  # a map with more columns has no symbols in its cells, and smaller gaps
DIFFERS = "\u25c6"  # marks entries of a map that differ at a level
MOST_LETTERS = 38  # characters of a title within a figure
MOST_LABELS = 60  # names beside the points of a map
BAR_TITLE = {"side": "right", "font": {"size": 13}}  # of a colour bar
Z90 = 1.645  # half a 90 % interval in standard errors
FONT = "Source Sans Pro, Source Sans, Helvetica, Arial, sans-serif"


def text(names: pd.Series | pd.Index | list[str]) -> list[str]:
    """Return names escaped, because Plotly reads tags and entities in labels."""
    return [html.escape(str(name), quote=False) for name in names]


def italic(genes: pd.Series | pd.Index | list[str]) -> list[str]:
    """Return gene symbols in italics, as the field writes them."""
    return [f"<i>{name}</i>" for name in text(genes)]


def look(dark: bool) -> go.layout.Template:
    """Return the template of all figures: transparent background, quiet grid, room for labels."""
    axis = {
        "gridcolor": FAINT[dark],
        "zerolinecolor": NEUTRAL,
        "zerolinewidth": 1,
        "linecolor": FAINT[dark],
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 13}},
    }
    layout = go.Layout(
        xaxis=axis,
        yaxis=axis,
        font={"family": FONT, "size": 13, "color": INK[dark]},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        hoverlabel={"font": {"family": FONT, "size": 13}, "align": "left"},
        title_x=0.05,
        autotypenumbers="strict",  # names such as 7 stay names
        legend={
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "x": 0,
            "itemsizing": "constant",
        },
        dragmode=False,
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": NEUTRAL, "activecolor": INK[dark]},
    )
    return go.layout.Template(layout=layout)


LOOKS = look(dark=False), look(dark=True)
pio.templates.default = None  # each figure sets ours; Plotly's own would add 7 kB to each


def styled(figure: go.Figure, dark: bool, height: int) -> go.Figure:
    """Apply the common look to a figure and return it."""
    return figure.update_layout(template=LOOKS[dark], height=height)


def label(figure: go.Figure, genes: pd.Index, x: pd.Series, y: pd.Series) -> None:
    """Write the names of genes beside their points, leaving out those without room.

    `y` is as drawn: the logarithm if the axis is logarithmic.
    """
    wide, high = max(float(np.ptp(x)), 1e-9), max(float(np.ptp(y)), 1e-9)
    kept: list[str] = []
    for gene in genes:
        near = [
            abs(x[gene] - x[k]) < 0.16 * wide and abs(y[gene] - y[k]) < 0.05 * high for k in kept
        ]
        if not any(near):
            kept.append(gene)
    logarithmic = figure.layout.meta == "log y"
    figure.add_scatter(
        x=x[kept],
        y=10 ** y[kept] if logarithmic else y[kept],
        mode="text",
        text=italic(kept),
        textposition="top center",
        textfont={"size": 12},
        cliponaxis=False,
        hoverinfo="skip",
        showlegend=False,
    )


def told_apart(i: int, dark: bool) -> dict[str, Any]:
    """Return the colour and symbol of the i-th of up to 42 items, the same in all figures."""
    line = {"width": 1, "color": INK[dark]}
    return {"color": OKABE_ITO[i % len(OKABE_ITO)], "symbol": SYMBOLS[i % 6], "line": line}
