"""UMAPs of perturbations and cells, and the network of perturbations and mechanisms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.style import (
    BAR_TITLE,
    DOWN,
    INK,
    MOST_LABELS,
    MOST_SVG,
    NEUTRAL,
    OKABE_ITO,
    REST,
    SYMBOLS,
    UP,
    styled,
    text,
    told_apart,
)


def perturbation_map(frame: pd.DataFrame, chosen: list[str], dark: bool) -> go.Figure:
    """Return a UMAP of perturbations.

    `frame` has the columns name, umap_1, umap_2 and uses, whether it uses a mechanism. Each point
    has its name as customdata. Those `chosen` have the colour and symbol of their place in the
    list; the others are grey, and hollow if they use no mechanism. With more than MOST_LABELS
    points, only the chosen are labelled.
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


WIDTHS = (1.2, 2.5, 4.5)  # of links: the third with the smallest, middle and largest effects


def network(
    nodes: pd.DataFrame, edges: pd.DataFrame, titles: dict[int, str], dark: bool
) -> go.Figure:
    """Return the network of perturbations (circles) and mechanisms (squares).

    `nodes` and `edges` come from `analysis.network.network`. Effects above zero are solid lines in
    one colour, those below zero dashed lines in another; line widths split the effects into thirds
    by size.
    """
    figure = go.Figure()
    place = {(n.kind, n.name): (n.x, n.y) for n in nodes.itertuples(index=False)}
    ends = np.array(
        [
            [*place["perturbation", str(e.perturbation)], *place["mechanism", f"M{e.mechanism}"]]
            for e in edges.itertuples()
        ]
    ).reshape(-1, 4)
    draw_links(figure, edges, ends)
    draw_nodes(figure, nodes, titles, dark)
    styled(figure, dark, height=int(min(760, 300 + 8 * len(nodes))))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure


def draw_links(figure: go.Figure, edges: pd.DataFrame, ends: np.ndarray) -> None:
    """A line for each effect, and in its middle a point to hover over; `ends` are x, y, x, y."""
    size = edges["effect"].abs()
    third = np.searchsorted(np.quantile(size, [1 / 3, 2 / 3]), size) if len(size) else []
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


def draw_nodes(figure: go.Figure, nodes: pd.DataFrame, titles: dict[int, str], dark: bool) -> None:
    """A circle for each perturbation and a square for each mechanism, with their names."""
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


def cell_map(
    places: pd.DataFrame,
    conditions: pd.Series,
    colour: pd.Series,
    name: str,
    dark: bool,
    signed: bool = False,
    taken: list[int] | None = None,
) -> go.Figure:
    """Return a UMAP of cells, coloured by a category or a number called `name`.

    `places` are its two columns. A categorical `colour` is drawn in the order of its levels; the
    level REST is grey. Of numbers the largest are drawn last; colours end at the 1st and 99th
    percentile, or for `signed` ones at the 99th percentile of the size, both ways. Each point has
    its row number as customdata. Rows other than those `taken` are faint. WebGL draws more cells
    than SVG can draw fast.
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
        for rows, level, marker in by_category(colour):
            add(rows, f"{text([level])[0]} ({len(rows):,})", marker, "")
    else:
        order, marker = by_amount(colour.to_numpy(np.float32), name, signed)
        add(order, "", marker, "<br>%{marker.color:" + ("+.2f" if signed else ".2f") + "}")
    styled(figure, dark, height=520)
    figure.update_layout(showlegend=colour.dtype == "category", margin_t=60)
    bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "mirror": True}
    figure.update_xaxes(title_text="UMAP 1", showline=True, **bare)
    figure.update_yaxes(title_text="UMAP 2", showline=True, **bare)
    return figure


def by_category(colour: pd.Series) -> Iterator[tuple[np.ndarray, str, dict[str, Any]]]:
    """The rows of each level, the level, and how its points look; REST is grey and first."""
    levels = list(colour.cat.categories)
    for i, level in enumerate(levels, start=0 if REST in levels else 1):
        marker: dict[str, Any] = {
            "color": NEUTRAL if i == 0 else OKABE_ITO[(i - 1) % len(OKABE_ITO)],
            "symbol": SYMBOLS[max(0, i - 1) % len(SYMBOLS)],
            "size": 4 if i == 0 else 6,
            "opacity": 0.4 if i == 0 else 0.75,
        }
        yield np.flatnonzero(colour == level), level, marker


def by_amount(values: np.ndarray, name: str, signed: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """The order in which points are drawn, largest last, and how they look."""
    size = np.abs(values)
    limit = float(np.quantile(size, 0.99)) or float(size.max()) or 1.0
    low = -limit if signed else float(np.quantile(values, 0.01))
    low = low if low < limit else 0.0  # all values may be the same
    order = np.argsort(size, kind="stable")
    return order, {
        "color": values[order],
        "colorscale": "RdBu_r" if signed else "Cividis",
        "cmin": low,
        "cmax": limit,
        "size": 5,
        "opacity": 0.8,
        "line": {"width": 0.4, "color": NEUTRAL},  # either end may have the background's colour
        "colorbar": {
            "title": BAR_TITLE | {"text": name},
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
