"""Every figure: a table in, a Plotly figure out. Knows nothing of Streamlit or of models.

Colours: cividis for amounts, red-blue centred at zero for signed values, Okabe-Ito for categories.
Sign is also told by position, by a symbol or by the label, never by colour alone.
"""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go

INK = {False: "#1c2733", True: "#e6ebf0"}  # text, by dark mode
FAINT = {False: "#dde3e9", True: "#2c3844"}  # grid and borders
UP, DOWN, NEUTRAL = "#b2431f", "#1f6fb2", "#8a97a5"  # contrast of 3:1 or more on both grounds
OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
FONT = "Source Sans Pro, Source Sans, Helvetica, Arial, sans-serif"


def text(names: pd.Series | pd.Index | list[str]) -> list[str]:
    """Names from files as text: Plotly reads tags and entities in labels."""
    return [html.escape(str(name), quote=False) for name in names]


def italic(genes: pd.Series | pd.Index | list[str]) -> list[str]:
    """Gene symbols in italics, as the field writes them."""
    return [f"<i>{name}</i>" for name in text(genes)]


def styled(figure: go.Figure, dark: bool, height: int) -> go.Figure:
    """The one look of all figures: transparent ground, quiet grid, room for labels."""
    axis = {
        "gridcolor": FAINT[dark],
        "zerolinecolor": NEUTRAL,
        "zerolinewidth": 1,
        "linecolor": FAINT[dark],
        "automargin": True,
        "title": {"standoff": 12},
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_layout(
        height=height,
        font={"family": FONT, "size": 13, "color": INK[dark]},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        hoverlabel={"font": {"family": FONT, "size": 13}},
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
    return figure


def mask_map(wide: pd.DataFrame, value: str, dark: bool) -> go.Figure:
    """Perturbations x mechanisms. Over each cell lies a marker that a click can find.

    `wide` is ordered as it is to be drawn, first row on top; `value` is "probability" or "effect".
    Each marker carries "perturbation|mechanism" as its customdata.
    """
    signed = value == "effect"
    limit = max(1e-9, float(np.abs(wide.to_numpy()).max())) if signed else 1.0
    columns = [f"M{k}" for k in wide.columns]
    rows = text(wide.index)
    figure = go.Figure(
        go.Heatmap(
            z=wide.to_numpy(),
            x=columns,
            y=rows,
            colorscale="RdBu_r" if signed else "Cividis",
            zmin=-limit if signed else 0,
            zmax=limit,
            xgap=2,
            ygap=1,
            hoverinfo="skip",
            colorbar={
                "title": {"text": "effect" if signed else "probability", "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
            },
        )
    )
    values = wide.to_numpy().ravel()
    figure.add_scatter(
        x=np.tile(columns, len(rows)),
        y=np.repeat(rows, len(columns)),
        mode="markers",
        marker={"symbol": "square", "size": 16, "opacity": 0.01, "color": "#888888"},
        customdata=[f"{row}|{column}" for row in wide.index for column in wide.columns],
        text=[f"{value:+.2f}" if signed else f"{value:.3f}" for value in values],
        hovertemplate="%{y}, mechanism %{x}<br>" + value + " %{text}<extra></extra>",
        showlegend=False,
    )
    if signed:  # the sign again, as a symbol, where there is an effect to speak of
        strong = np.abs(values) > 0.1 * limit
        figure.add_scatter(
            x=np.tile(columns, len(rows))[strong],
            y=np.repeat(rows, len(columns))[strong],
            mode="text",
            text=["+" if value > 0 else "\u2212" for value in values[strong]],
            textfont={"size": 12, "color": "#111111"},
            hoverinfo="skip",
            showlegend=False,
        )
    styled(figure, dark, height=120 + 20 * len(rows))
    figure.update_layout(hoverdistance=-1, margin_t=60)  # a click anywhere in a cell finds it
    width, height = len(columns) - 0.5, len(rows) - 0.5  # no room beyond the cells
    figure.update_xaxes(side="top", showgrid=False, title=None, range=[-0.5, width])
    figure.update_yaxes(type="category", showgrid=False, title=None, range=[height, -0.5])
    return figure


def bars(frame: pd.DataFrame, axis: str, dark: bool, genes: bool = True) -> go.Figure:
    """Ranked horizontal bars with intervals: columns label, value, lower, upper, first on top."""
    colour = np.where(frame["value"] >= 0, UP, DOWN)
    labels = italic(frame["label"]) if genes else text(frame["label"])
    figure = go.Figure(
        go.Bar(
            x=frame["value"],
            y=labels,
            orientation="h",
            marker_color=colour,
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
    )
    styled(figure, dark, bars_height(len(frame)))
    figure.update_yaxes(
        type="category", autorange="reversed", title=None, showgrid=False, dtick=1
    )  # names of digits alone are names, too
    figure.update_xaxes(title_text=axis)
    figure.update_layout(bargap=0.25)
    return figure


def bars_height(n: int) -> int:
    """Pixels of a bar chart with n bars."""
    return 90 + 22 * n


def volcano(table: pd.DataFrame, n_labels: int, dark: bool, height: int) -> go.Figure:
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
    figure.update_xaxes(title_text="predicted shift (log2)")
    figure.update_yaxes(title_text="|shift| / half-width of interval", type="log", dtick=1)
    return figure


def agreement(table: pd.DataFrame, n_labels: int, dark: bool) -> go.Figure:
    """Observed against predicted shift, one point per gene, with the observation's error."""
    figure = go.Figure()
    ends = [float(f(table[["shift", "observed"]].to_numpy().ravel())) for f in (np.min, np.max)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": NEUTRAL, "dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=table["shift"],
        y=table["observed"],
        mode="markers",
        marker={"color": OKABE_ITO[0], "size": 7, "opacity": 0.75},
        error_y={
            "array": 1.645 * table["observed_se"],
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
    figure.update_xaxes(title_text="predicted shift (log2)")
    figure.update_yaxes(title_text="observed shift (log2)")
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


def umap(frame: pd.DataFrame, groups: pd.Series, dark: bool, labels: bool = False) -> go.Figure:
    """UMAP coordinates by group; columns name, umap_1, umap_2. The axes have no unit."""
    figure = go.Figure()
    for i, (group, rows) in enumerate(frame.groupby(groups, sort=False)):
        figure.add_scatter(
            x=rows["umap_1"],
            y=rows["umap_2"],
            mode="markers+text" if labels else "markers",
            name=html.escape(f"{group} ({len(rows)})"),
            marker={
                "color": NEUTRAL if i == 0 else OKABE_ITO[(i - 1) % len(OKABE_ITO)],
                "size": 11 if labels else 4,
                "opacity": 0.9 if labels else 0.5,
                "symbol": ["circle", "square", "diamond", "triangle-up", "cross", "x"][i % 6],
            },
            text=text(rows["name"]),
            textposition="top center",
            textfont={"size": 11},
            hovertemplate="%{text}<extra></extra>",
        )
    styled(figure, dark, height=460)
    figure.update_xaxes(title_text="UMAP 1", showticklabels=False, zeroline=False)
    figure.update_yaxes(title_text="UMAP 2", showticklabels=False, zeroline=False)
    return figure


def history(frame: pd.DataFrame, dark: bool) -> go.Figure:
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
    figure.add_scatter(
        x=frame["epoch"],
        y=frame["active"],
        name="active mask entries (right axis)",
        mode="lines",
        line={"color": NEUTRAL, "dash": "dot"},
        yaxis="y2",
    )
    settled = frame["validation_bound"].iloc[len(frame) // 10 :]
    low, high = float(settled.min()), float(frame[["bound", "validation_bound"]].max().max())
    figure.update_layout(
        yaxis={"title": "nats per cell", "range": [low - 0.5, high + 0.5]},
        yaxis2={"overlaying": "y", "side": "right", "title": "entries"},
        xaxis_title="epoch",
    )
    styled(figure, dark, height=420)
    figure.update_layout(yaxis2={"showgrid": False, "rangemode": "tozero"})
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
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
    figure.update_xaxes(title_text="genes, from highest to lowest loading")
    figure.update_yaxes(title_text="running sum")
    return figure
