"""Every figure: a table in, a Plotly figure out. Knows nothing of Streamlit or of models.

Colours: cividis for amounts, red-blue centred at zero for signed values, Okabe-Ito for categories.
Sign is also told by position, by a symbol or by the label, never by colour alone.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.subplots import make_subplots

INK = {False: "#101820", True: "#e6ebf0"}  # text, by dark mode
FAINT = {False: "#dde3e9", True: "#2c3844"}  # grid and borders
UP, DOWN, NEUTRAL = "#b2431f", "#1f6fb2", "#8593a1"  # contrast of 3:1 or more on both grounds
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"]
REST = "all other cells"  # of a category: grey, below the others
MOST_POINTS = 1_000  # genes in one figure
MOST_SVG = 5_000  # points; more are drawn by WebGL, which SVG files hold as a picture
MOST_DRAWN = 2_000  # markers over the cells of a map
MOST_COLUMNS = 60  # of a map with symbols in its cells, and gaps between them
MOST_LETTERS = 38  # of a title within a figure
MOST_LABELS = 60  # names beside the points of a map
BAR_TITLE = {"side": "right", "font": {"size": 13}}  # of a colour bar
Z90 = 1.645  # half a 90 % interval in standard errors
FONT = "Source Sans Pro, Source Sans, Helvetica, Arial, sans-serif"


def text(names: pd.Series | pd.Index | list[str]) -> list[str]:
    """Names from files as text: Plotly reads tags and entities in labels."""
    return [html.escape(str(name), quote=False) for name in names]


def italic(genes: pd.Series | pd.Index | list[str]) -> list[str]:
    """Gene symbols in italics, as the field writes them."""
    return [f"<i>{name}</i>" for name in text(genes)]


def look(dark: bool) -> go.layout.Template:
    """What all figures have in common: transparent ground, quiet grid, room for labels."""
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
pio.templates.default = None  # ours instead: set in each figure, Plotly's own would cost 7 kB more


def styled(figure: go.Figure, dark: bool, height: int) -> go.Figure:
    """The one look of all figures."""
    return figure.update_layout(template=LOOKS[dark], height=height)


SIGNED = ("effect", "evidence")  # what a mask map can show, beside "probability"


def mask_map(
    wide: pd.DataFrame,
    value: str,
    dark: bool,
    marks: pd.DataFrame | None = None,
    titles: dict[int, str] | None = None,
    cells: pd.Series | None = None,
    line: pd.DataFrame | None = None,
) -> go.Figure:
    """Perturbations x mechanisms. Over each cell lies a marker that a click can find.

    `wide` is ordered as it is to be drawn, first row on top; `value` is "probability", "effect" or
    "evidence", whose colours follow its signed square root, as it spans orders of magnitude.
    `marks` are symbols to write into cells; effects get their sign. Cells that are NaN stay empty.
    Each marker carries "perturbation|mechanism" as its customdata, and the title of its mechanism,
    where it has one. On the right: training `cells` of each row, as bars, and the `line` of the
    tree of its clustering.
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
    if value == "effect":  # the sign again, as a symbol, where there is an effect to speak of
        strong = np.where(values > 0, "+", "\u2212")
        marks = pd.DataFrame(np.where(np.abs(values) > 0.1 * limit, strong, ""))
    heat = go.Heatmap(
        z=shade,
        x=columns,
        y=rows,
        customdata=values,  # as they are, for files
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
    hover = "%{y}, mechanism %{x}<br>" + value + " %{text}<extra></extra>"
    figure = clickable(heat, marks, clicks, texts, hover, dark)
    figure.update_yaxes(type="category")
    if titles:
        named = text([titles.get(k, f"M{k}") for k in wide.columns])
        hover = "%{y}, mechanism %{hovertext}<br>" + value + " %{text}<extra></extra>"
        figure.data[1].update(hovertext=np.tile(named, len(rows)), hovertemplate=hover)
    beside(figure, rows, cells, line, dark)
    return figure


def beside(
    figure: go.Figure,
    rows: list[str],
    cells: pd.Series | None,
    line: pd.DataFrame | None,
    dark: bool,
) -> None:
    """Bars of training cells and the tree, at the right of a map, in line with its rows."""
    has_tree = line is not None and len(line) > 0
    map_end = 1.0 - 0.08 * (cells is not None) - 0.08 * has_tree
    still = has_tree or len(figure.data[0].x) <= MOST_COLUMNS  # a zoom would part rows from a tree
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
    """A heat map, first row on top; over each cell lies a marker that a click can find.

    Clicks on the map itself do not reach Python. `clicks` are the markers' customdata, `texts` what
    the template `hover` shows of them, row by row; `marks` are symbols to write into cells.
    """
    crowded = len(heat.x) > MOST_COLUMNS
    heat.update(xgap=0.5 if crowded else 2, ygap=0.5 if crowded else 1, hoverinfo="skip")
    if (
        marks is not None and not crowded
    ):  # in the colour, black or white, that can be read on the cell's
        heat.update(text=marks.to_numpy(dtype=str), texttemplate="%{text}", textfont_size=12)
    figure = go.Figure(heat)
    columns, rows = list(heat.x), list(heat.y)
    figure.add_scatter(
        x=np.tile(columns, len(rows)),
        y=np.repeat(rows, len(columns)),
        mode="markers",
        marker={"symbol": "square", "size": 16, "opacity": 0.01, "color": "#888888"},
        customdata=np.array(clicks),  # of lists, Plotly looks into each item
        text=np.array(texts),
        hovertemplate=hover,
        showlegend=False,
    )
    if len(clicks) > MOST_DRAWN:  # a marker is found by clicks and hovers whether drawn or not
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
    """Gene sets x mechanisms, coloured around zero, `marks` written into cells.

    `labels` are short names of the sets, in the order of the rows; the whole name is in the hover.
    Each cell has a marker that a click can find, with "term|M0" as its customdata.
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


def with_interval(labels: Iterable[str], values: pd.Series, errors: pd.Series) -> pd.DataFrame:
    """Values with their 90 % interval by a Normal, in the columns that `bars` takes."""
    value, reach = values.to_numpy(float), Z90 * errors.to_numpy(float)
    columns = {"value": value, "lower": value - reach, "upper": value + reach}
    return pd.DataFrame({"label": list(labels), **columns})


def bars(frame: pd.DataFrame, axis: str, dark: bool, genes: bool = True) -> go.Figure:
    """Ranked horizontal bars with intervals: columns label, value, lower, upper, first on top.

    Without whiskers where no interval is known (NaN).
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
    )  # names of digits alone are names, too
    figure.update_xaxes(title_text=axis)
    figure.update_layout(bargap=0.25)
    return figure


def contributions(table: pd.DataFrame, labels: list[str], dark: bool) -> go.Figure:
    """Mechanisms x perturbations and their sum, in basal standard deviations; numbers in cells.

    `labels` are the mechanisms' names, in the order of the rows.
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
    written = table.map(lambda value: f"{round(value, 2) + 0.0:+.2f}")  # never minus nothing
    clicks = [f"{label}|{column}" for label in labels for column in table.columns]
    texts = [
        f"{column}, {label}: {value:+.3f}"
        for label, row in zip(text(labels), values, strict=True)
        for column, value in zip(columns, row, strict=True)
    ]
    figure = clickable(heat, written, clicks, texts, "%{text}<extra></extra>", dark)
    figure.add_vline(x=values.shape[1] - 1.5, line={"color": INK[dark], "width": 2})
    short = [name if len(name) <= 26 else f"{name[:25].rstrip()}\u2026" for name in labels]
    figure.update_xaxes(type="category")
    figure.update_yaxes(tickvals=places, ticktext=text(short))
    figure.update_layout(height=90 + 30 * len(labels))
    return figure


def add_observed(figure: go.Figure, frame: pd.DataFrame, dark: bool) -> None:
    """What was measured, as diamonds on `bars` of the same rows: columns observed, observed_se."""
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
    """Pixels of a bar chart with n bars."""
    return 90 + 22 * max(n, 3)  # with less the title runs into the axis


def largest(table: pd.DataFrame) -> pd.DataFrame:
    """As many genes as are drawn in good time, in their order: those that go, or went, farthest.

    Of columns shift and, where it is there, observed.
    """
    if len(table) <= MOST_POINTS:
        return table
    size = table[[c for c in ("shift", "observed") if c in table]].abs().max(axis=1)
    return table.loc[size.rank(method="first", ascending=False) <= MOST_POINTS]


def volcano(table: pd.DataFrame, n_labels: int, dark: bool, height: int, unit: str) -> go.Figure:
    """Shift against how much of the interval it takes up: |shift| over half the interval's width.

    Index gene; columns shift, lower, upper. Genes whose interval excludes zero are coloured.
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
    """Every gene by its shift, from highest to lowest, where no interval is known. Index gene."""
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
    """Observed against predicted shift, one point per gene, with the observation's error.

    Columns shift, observed, observed_se; `what` they are, as the axes say it.
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


def label(figure: go.Figure, genes: pd.Index, x: pd.Series, y: pd.Series) -> None:
    """Write the names of some genes beside their points, those that have room.

    `y` is as it is drawn: the logarithm, where the axis is logarithmic.
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
    """Colour and symbol of the i-th of up to 42 things, the same in every figure of a page."""
    line = {"width": 1, "color": INK[dark]}
    return {"color": OKABE_ITO[i % len(OKABE_ITO)], "symbol": SYMBOLS[i % 6], "line": line}


def perturbation_map(frame: pd.DataFrame, chosen: list[str], dark: bool) -> go.Figure:
    """UMAP of perturbations: columns name, umap_1, umap_2 and uses, whether it uses a mechanism.

    Each point has its name as customdata. Those `chosen` have the colour and symbol of their place
    in the list; the others are grey, hollow where they use no mechanism. With more than
    MOST_LABELS only the chosen are named.
    """
    figure = go.Figure()
    other = ~frame["name"].isin(chosen)
    groups = [
        (
            "uses some mechanism",
            frame[other & frame["uses"]],
            {"color": NEUTRAL, "symbol": "circle"},
        ),
        (
            "uses none",
            frame[other & ~frame["uses"]],
            {"color": NEUTRAL, "symbol": "circle-open"},
        ),
    ]
    groups += [
        (name, frame[frame["name"] == name], told_apart(i, dark)) for i, name in enumerate(chosen)
    ]
    for i, (group, rows, marker) in enumerate(groups):
        named = i > 1 or len(frame) <= MOST_LABELS
        figure.add_scatter(
            x=rows["umap_1"],
            y=rows["umap_2"],
            mode="markers+text" if named else "markers",
            name=text([group])[0],
            marker={"size": 9 if i < 2 else 13, **marker},
            customdata=list(rows["name"]),
            text=text(rows["name"]),
            textposition="top center",
            textfont={"size": 11 if i < 2 else 13},
            hovertemplate="%{text}<extra></extra>",
            showlegend=i < 2 and len(rows) > 0 and not frame["uses"].all(),
            cliponaxis=False,
        )
    styled(figure, dark, height=460)
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "mirror": True}
    for axes, column in ((figure.update_xaxes, "umap_1"), (figure.update_yaxes, "umap_2")):
        low, high = frame[column].min(), frame[column].max()
        room = 0.08 * (high - low) or 1.0
        title = column.upper().replace("_", " ")
        axes(title_text=title, showline=True, range=[low - room, high + room], **bare)
    return figure


def used_effects(entries: pd.DataFrame, titles: dict[int, str], dark: bool) -> go.Figure:
    """Effects of perturbations, with their 90 % intervals, under the title of each mechanism.

    A row per entry: columns perturbation, mechanism, effect, effect_sd, and place, which gives the
    perturbation its colour and symbol. Mechanisms and rows are drawn in the order of the table.
    """
    figure = go.Figure()
    row, rows, heads = 0, [], []
    for k, part in entries.groupby("mechanism", sort=False):
        title = titles.get(int(k), f"M{k}")
        heads.append(
            (row, title if len(title) <= MOST_LETTERS else f"{title[:MOST_LETTERS]}\u2026")
        )
        rows += [*range(row + 1, row + 1 + len(part))]
        row += len(part) + 1
    drawn = entries.assign(row=rows)
    for place, part in drawn.groupby("place"):
        marker = told_apart(int(place), dark)
        reach = Z90 * part["effect_sd"]
        figure.add_scatter(
            x=part["effect"],
            y=part["row"],
            mode="markers",
            marker={"size": 11, **marker},
            error_x={"array": reach, "color": INK[dark], "thickness": 1.2, "width": 3},
            text=[
                f"{name}, M{k}"
                for name, k in zip(text(part["perturbation"]), part["mechanism"], strict=True)
            ],
            customdata=np.stack([part["effect"] - reach, part["effect"] + reach], axis=-1),
            hovertemplate="%{text}: %{x:+.2f}<br>90 % interval %{customdata[0]:+.2f} to "
            "%{customdata[1]:+.2f}<extra></extra>",
            showlegend=False,
        )
    for at, title in heads:
        figure.add_annotation(
            x=0,
            xref="paper",
            y=at + 0.1,
            text=f"<b>{text([title])[0]}</b>",
            showarrow=False,
            xanchor="left",
        )
    styled(figure, dark, height=90 + 22 * max(row, 3))
    figure.update_yaxes(
        tickvals=rows,
        ticktext=text(entries["perturbation"]),
        range=[row - 0.3, -0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(title_text="effect (basal standard deviations)", rangemode="tozero")
    return figure


WIDTHS = (1.2, 2.5, 4.5)  # of the edges of a network: the smaller, the middle, the larger third


def network(
    nodes: pd.DataFrame, edges: pd.DataFrame, titles: dict[int, str], dark: bool
) -> go.Figure:
    """Perturbations (circles) linked to mechanisms (squares), of `interpretation.network`.

    Effects above zero are solid lines in one colour, those below dashed in another; the width is
    the third of sizes that the effect is in.
    """
    figure = go.Figure()
    place = {(n.kind, n.name): (n.x, n.y) for n in nodes.itertuples(index=False)}
    size = edges["effect"].abs()
    third = np.searchsorted(np.quantile(size, [1 / 3, 2 / 3]), size) if len(size) else []
    ends = np.array(
        [
            [*place["perturbation", str(e.perturbation)], *place["mechanism", f"M{e.mechanism}"]]
            for e in edges.itertuples()
        ]
    ).reshape(-1, 4)
    for sign, name, colour, dash in (
        (1, "effect above zero", UP, "solid"),
        (-1, "effect below zero", DOWN, "dash"),
    ):
        told = False
        for i, width in enumerate(WIDTHS):
            rows = ends[(np.where(edges["effect"] < 0, -1, 1) == sign) & (np.array(third) == i)]
            if not len(rows):
                continue
            gap = np.full(len(rows), np.nan)
            figure.add_scatter(
                x=np.stack([rows[:, 0], rows[:, 2], gap], axis=1).ravel(),
                y=np.stack([rows[:, 1], rows[:, 3], gap], axis=1).ravel(),
                mode="lines",
                line={"color": colour, "dash": dash, "width": width},
                opacity=0.75,
                name=name,
                legendgroup=name,
                showlegend=not told,
                hoverinfo="skip",
            )
            told = True
    figure.add_scatter(
        x=ends[:, [0, 2]].mean(axis=1),
        y=ends[:, [1, 3]].mean(axis=1),
        mode="markers",
        marker={"size": 14, "opacity": 0},
        text=[
            f"{text([e.perturbation])[0]}, M{e.mechanism}: {e.effect:+.2f} ± {e.effect_sd:.2f}"
            for e in edges.itertuples()
        ],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
    )
    for kind, name, symbol, colour in (
        ("perturbation", "perturbation", "circle", OKABE_ITO[4]),
        ("mechanism", "mechanism", "square", OKABE_ITO[1]),
    ):
        rows = nodes[nodes["kind"] == kind]
        is_mechanism = kind == "mechanism"
        whole = [titles.get(int(n[1:]), n) if is_mechanism else n for n in rows["name"]]
        figure.add_scatter(
            x=rows["x"],
            y=rows["y"],
            mode="markers+text",
            name=name,
            marker={
                "symbol": symbol,
                "size": 24 if is_mechanism else 13,
                "color": colour,
                "line": {"width": 1, "color": INK[dark]},
            },
            text=text(rows["name"]),
            textposition="middle center" if is_mechanism else "top center",
            textfont={"size": 11, "color": INK[False] if is_mechanism else INK[dark]},
            customdata=[
                f"{title}<br>{degree} {'perturbation' if is_mechanism else 'mechanism'}"
                f"{'' if degree == 1 else 's'}"
                for title, degree in zip(text(whole), rows["degree"], strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            cliponaxis=False,
        )
    styled(figure, dark, height=int(min(760, 300 + 8 * len(nodes))))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def cell_map(
    places: pd.DataFrame,
    conditions: pd.Series,
    colour: pd.Series,
    name: str,
    dark: bool,
    signed: bool = False,
    taken: list[int] | None = None,
) -> go.Figure:
    """Cells on a UMAP, two columns of `places`, by a category or an amount, called `name`.

    A category has the levels of `colour` in the order in which they are drawn; its first, where it
    is REST, is grey. Of amounts the largest are drawn last; colours end at their 1st and 99th
    percentile, of signed ones at the 99th percentile of size, either way. Each point has its row
    number as customdata. Rows other than those `taken` are faint. Drawn by WebGL where there are
    more cells than SVG draws in good time.
    """
    figure = go.Figure()
    kind = go.Scattergl if len(places) > MOST_SVG else go.Scatter
    x, y = (places.iloc[:, i].to_numpy(np.float32) for i in (0, 1))

    def add(rows: np.ndarray, title: str, marker: dict[str, Any], values: str) -> None:
        chosen = None if taken is None else np.flatnonzero(np.isin(rows, taken))
        figure.add_trace(
            kind(
                x=x[rows],
                y=y[rows],
                mode="markers",
                name=title,
                marker=marker,
                customdata=[str(row) for row in rows],
                text=text(conditions.iloc[rows]),
                hovertemplate="%{text}" + values + "<extra></extra>",
                selectedpoints=chosen,
                unselected={"marker": {"opacity": 0.08}},
            )
        )

    if isinstance(colour.dtype, pd.CategoricalDtype):
        levels = list(colour.cat.categories)
        for i, level in enumerate(levels, start=0 if REST in levels else 1):
            rows = np.flatnonzero(colour == level)
            marker: dict[str, Any] = {
                "color": NEUTRAL if i == 0 else OKABE_ITO[(i - 1) % len(OKABE_ITO)],
                "symbol": SYMBOLS[max(0, i - 1) % len(SYMBOLS)],
                "size": 4 if i == 0 else 6,
                "opacity": 0.4 if i == 0 else 0.75,
            }
            add(rows, f"{text([level])[0]} ({len(rows):,})", marker, "")
    else:
        values = colour.to_numpy(np.float32)
        size = np.abs(values)
        limit = float(np.quantile(size, 0.99)) or float(size.max()) or 1.0
        low = -limit if signed else float(np.quantile(values, 0.01))
        low = low if low < limit else 0.0  # of values that are all the same
        order = np.argsort(size, kind="stable")
        marker = {
            "color": values[order],
            "colorscale": "RdBu_r" if signed else "Cividis",
            "cmin": low,
            "cmax": limit,
            "size": 5,
            "opacity": 0.8,
            "line": {"width": 0.4, "color": NEUTRAL},  # as either end may be the ground's colour
            "colorbar": {
                "title": BAR_TITLE | {"text": name},
                "thickness": 10,
                "outlinewidth": 0,
            },
        }
        add(order, "", marker, "<br>%{marker.color:" + ("+.2f" if signed else ".2f") + "}")
    styled(figure, dark, height=520)
    figure.update_layout(showlegend=colour.dtype == "category", margin_t=60)
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "mirror": True}
    figure.update_xaxes(title_text="UMAP 1", showline=True, **bare)
    figure.update_yaxes(title_text="UMAP 2", showline=True, **bare)
    return figure


def cells_per_condition(cells: pd.Series, control: str, dark: bool) -> go.Figure:
    """Cells of each condition, by its name, the most first; logarithmic, control in its own colour.

    Names are written below the bars while there are few enough of them.
    """
    cells = cells.sort_values(ascending=False, kind="stable")
    figure = go.Figure()
    is_control = cells.index == control
    for name, rows, colour in (
        ("perturbed", ~is_control, OKABE_ITO[0]),
        (f"control ({text([control])[0]})", is_control, OKABE_ITO[1]),
    ):
        if rows.any():
            figure.add_bar(
                x=text(cells.index[rows]),
                y=cells[rows],
                name=name,
                marker_color=colour,
                hovertemplate="%{x}: %{y:,} cells<extra></extra>",
            )
    styled(figure, dark, height=340)
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=text(cells.index),
        showticklabels=len(cells) <= MOST_COLUMNS,
        title=f"{len(cells):,} conditions",
        showgrid=False,
    )
    most = np.log10(max(cells.max(), 1)) if len(cells) else 0.0
    figure.update_yaxes(type="log", title="cells", dtick=1, range=[0, most + 0.1])
    figure.update_layout(bargap=0.15)
    return figure


def history(frame: pd.DataFrame, dark: bool, masks: bool = True) -> go.Figure:
    """Bounds of training and validation cells by epoch, and the active mask entries."""
    figure = go.Figure()
    for column, name, colour, dash in (
        ("validation_bound", "validation cells, predictive bound", OKABE_ITO[5], "solid"),
        ("bound", "training cells, evidence lower bound", OKABE_ITO[0], "dash"),
    ):
        figure.add_scatter(
            x=frame["epoch"],
            y=frame[column],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
        )
    settled = frame["validation_bound"].iloc[len(frame) // 10 :]
    low, high = float(settled.min()), float(frame[["bound", "validation_bound"]].max().max())
    figure.update_layout(
        yaxis={"title": "nats per cell", "range": [low - 0.5, high + 0.5]}, xaxis_title="epoch"
    )
    if masks:
        figure.add_scatter(
            x=frame["epoch"],
            y=frame["active"],
            name="active mask entries (right axis)",
            mode="lines",
            line={"color": NEUTRAL, "dash": "dot"},
            yaxis="y2",
        )
        figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "entries"})
    styled(figure, dark, height=420)
    if masks:
        figure.update_layout(yaxis2={"showgrid": False, "rangemode": "tozero", "tickmode": "auto"})
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
    return figure


def training_state(frame: pd.DataFrame, dark: bool) -> go.Figure:
    """Mechanisms in use by epoch, and the gradient norm below, on a logarithmic axis."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12)
    for row, (column, name, colour, dash) in enumerate(
        (
            ("mechanisms", "mechanisms in use", OKABE_ITO[2], "solid"),
            ("gradient_norm", "gradient norm before clipping", OKABE_ITO[3], "dash"),
        ),
        start=1,
    ):
        figure.add_scatter(
            x=frame["epoch"],
            y=frame[column],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
            row=row,
            col=1,
        )
    styled(figure, dark, height=420)
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_yaxes(title_text="mechanisms", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="norm", type="log", dtick="D2", row=2, col=1)
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
    return figure


def calibration(frame: pd.DataFrame, dark: bool) -> go.Figure:
    """Nominal against observed share, a line per statistic: columns statistic, nominal, observed.

    On the diagonal a model is as sure as it should be; below it, too sure.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="as it should be",
        line={"color": NEUTRAL, "dash": "dot"},
        hoverinfo="skip",
    )
    for i, (statistic, rows) in enumerate(frame.groupby("statistic", sort=False)):
        figure.add_scatter(
            x=rows["nominal"],
            y=rows["observed"],
            mode="lines+markers",
            name=html.escape(str(statistic), quote=False),
            line={"color": OKABE_ITO[i], "dash": ["solid", "dash", "dashdot"][i % 3]},
            marker={"symbol": ["circle", "square", "triangle-up"][i % 3], "size": 9},
            hovertemplate="expected %{x:.0%}, found %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    styled(figure, dark, height=400)
    figure.update_xaxes(title_text="share expected inside", range=[0.4, 1.01], tickformat=".0%")
    low = min(0.4, float(frame["observed"].min()) - 0.05)
    figure.update_yaxes(title_text="share found inside", range=[low, 1.01], tickformat=".0%")
    return figure


def frontier(table: pd.DataFrame, dark: bool) -> go.Figure:
    """Sparsity against fit: validation bound and, below, agreement of effects by active entries.

    The level that was kept is a diamond.
    """
    table = table.sort_values("active")
    fitted = table["effect_r"].notna().any()
    figure = make_subplots(
        rows=2 if fitted else 1, cols=1, shared_xaxes=True, vertical_spacing=0.08
    )
    kept = table["chosen"].astype(bool).to_numpy()
    error = {"array": table["difference_se"], "thickness": 1.2, "width": 4, "color": NEUTRAL}
    panels = [("difference", "from best<br>(nats per cell)"), ("effect_r", "r of effects")]
    panels = panels if fitted else panels[:1]
    for row, (column, title) in enumerate(panels, start=1):
        figure.add_scatter(
            x=table["active"],
            y=table[column],
            error_y=error if column == "difference" else None,
            mode="lines+markers",
            line={"color": NEUTRAL, "width": 1},
            marker={
                "symbol": np.where(kept, "diamond", "circle"),
                "color": np.where(kept, UP, DOWN),
                "size": np.where(kept, 14, 9),
                "opacity": 1,
            },
            customdata=table["mask_evidence"],
            hovertemplate="evidence %{customdata:g}: %{x} entries, %{y:.3f}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=title, row=row, col=1)
    for _, best in table[kept].iterrows():
        figure.add_annotation(
            x=best["active"],
            y=best["difference"],
            text="kept",
            showarrow=False,
            yshift=18,
            row=1,
            col=1,
        )
    styled(figure, dark, height=460 if fitted else 300)
    figure.update_xaxes(title_text="active mask entries", row=len(panels), col=1)
    return figure


def running_sum(walk: pd.DataFrame, term: str, dark: bool) -> go.Figure:
    """The walk behind an enrichment score: columns rank, gene, hit, running_es."""
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
