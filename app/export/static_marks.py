"""Drawing the cells, bars, points and lines of a figure in a file."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.colors

from app.export.figure_data import (
    SELECTED,
    Layer,
    colour_bar,
    plain,
    title,
)
from app.figures.style import FAINT, INK, NEUTRAL

if TYPE_CHECKING:  # importing matplotlib takes a while
    pass

from app.export.static_base import FONT, PIXEL, POINT, SMALL, Axes, Places, shortened, write_text

MOST_VECTOR = 10_000  # points or cells; more are drawn as an embedded picture
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"}
MARKERS |= {"cross": "P", "x": "X", "line-ns": "|", "line-ew": "_", "star": "*", "hexagon": "h"}
DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2)), "dashdot": "-."}
DASHES |= {"longdash": (0, (9, 4)), "longdashdot": (0, (9, 3, 1, 3))}
ALIGNED = {"left": "right", "center": "center", "right": "left"}  # "right": right of its point


def draw_cells(at: Places, layer: Layer, rows: pd.DataFrame) -> None:
    trace = layer.trace
    shape = len(trace["z"]), len(trace["z"][0])
    values = rows[layer.columns["value"]].to_numpy(float).reshape(shape)
    edges = []
    for letter, n in zip("xy", reversed(shape), strict=True):
        given = trace[letter] if trace.get(letter) is not None else range(n)
        middle = at.of_markup(letter, given)
        step = np.diff(middle) / 2 if n > 1 else np.array([0.5])
        edges.append(np.r_[middle[0] - step[0], middle[:-1] + step[: n - 1], middle[-1] + step[-1]])
    known = values[np.isfinite(values)]
    mesh = at.panel.pcolormesh(
        *edges,
        np.ma.masked_invalid(values),
        cmap=_colour_map(trace.get("colorscale")),
        vmin=trace.get("zmin", known.min() if known.size else 0),
        vmax=trace.get("zmax", known.max() if known.size else 1),
        edgecolors="white",
        linewidth=1 if trace.get("xgap") and values.size <= MOST_VECTOR else 0,
        rasterized=values.size > MOST_VECTOR,
    )
    _add_colour_bar(at.panel, mesh, trace)
    if "mark" not in layer.columns or values.size > MOST_VECTOR:  # too small to read
        return
    shades = mesh.cmap(mesh.norm(values.ravel()))[:, :3] @ [0.299, 0.587, 0.114]
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    where = itertools.product(middles[1], middles[0])
    for mark, shade, (y, x) in zip(rows[layer.columns["mark"]], shades, where, strict=True):
        if mark:
            ink = INK[False] if shade > 0.5 else "white"
            written = at.panel.text(x, y, mark, ha="center", va="center", color=ink, fontsize=SMALL)
            written.set(parse_math=False, in_layout=False)


def draw_bars(
    at: Places,
    layer: Layer,
    rows: pd.DataFrame,
    bars: list[Mapping[str, Any]],
    layout: Mapping[str, Any],
) -> None:
    trace = layer.trace
    lying = trace.get("orientation") == "h"
    along, across = ("x", "y") if lying else ("y", "x")
    values = rows[layer.columns[along]].to_numpy(float)
    side_by_side = len(bars) if layout.get("barmode", "group") == "group" else 1
    room = 1 - layout.get("bargap", 0.2)
    thick = room / side_by_side
    turn = next(i for i, bar in enumerate(bars) if bar is trace) % side_by_side
    places = at.of(across, rows[layer.columns[across]]) - room / 2 + (turn + 0.5) * thick
    colours = colours_of(trace.get("marker", {}).get("color", NEUTRAL), len(rows))
    draw = at.panel.barh if lying else at.panel.bar
    alpha = trace.get("opacity", trace.get("marker", {}).get("opacity"))
    draw(places, values, thick, color=colours, zorder=2, alpha=alpha)
    where = {along: values, across: places}
    _draw_errors(at, layer, rows, where)


def _draw_errors(
    at: Places, layer: Layer, rows: pd.DataFrame, where: Mapping[str, np.ndarray]
) -> None:
    for letter in "xy":
        if f"{letter}-" not in layer.columns:
            continue
        style = layer.trace[f"error_{letter}"]
        low, high = (rows[layer.columns[f"{letter}{end}"]].to_numpy(float) for end in "-+")
        other = where["y" if letter == "x" else "x"]
        thickness = style.get("thickness", 2) * POINT
        lines, ends = (at.panel.hlines, "|") if letter == "x" else (at.panel.vlines, "_")
        colour = as_colour(style.get("color", NEUTRAL))
        lines(other, low, high, colors=colour, linewidth=thickness, zorder=3)
        if size := style.get("width", 4):
            for end in (low, high):
                place = (end, other) if letter == "x" else (other, end)
                at.panel.plot(
                    *place, ends, color=colour, ms=2 * size * POINT, mew=thickness, zorder=3
                )


def draw_points(at: Places, layer: Layer, rows: pd.DataFrame) -> None:
    trace, columns = layer.trace, layer.columns
    where = {letter: at.of(letter, rows[columns[letter]]) for letter in "xy"}
    _draw_errors(at, layer, rows, where)
    mode = trace.get("mode", "lines" if len(rows) > 20 else "lines+markers")
    marker = trace.get("marker", {})
    if "lines" in mode:
        at.panel.plot(where["x"], where["y"], **line_of(trace), zorder=2.5, marker="")
    if "markers" in mode:
        _draw_markers(at, layer, rows, where)
    if "text" in mode and "label" in columns:
        _draw_labels(at, trace, where["x"], where["y"], marker.get("size", 6))


def _draw_markers(
    at: Places, layer: Layer, rows: pd.DataFrame, where: Mapping[str, np.ndarray]
) -> None:
    """Draw the markers, one collection per symbol, as matplotlib needs."""
    trace, columns = layer.trace, layer.columns
    marker = trace.get("marker", {})
    size, symbols = (
        rows[columns[role]].to_numpy()
        if role in columns
        else np.full(len(rows), marker.get(role, usual))
        for role, usual in (("size", 6), ("symbol", "circle"))
    )
    opacity = np.full(len(rows), marker.get("opacity", trace.get("opacity", 1.0)), float)
    if SELECTED in rows:
        faint = trace.get("unselected", {}).get("marker", {}).get("opacity", 0.2)
        opacity = np.where(rows[SELECTED], opacity, faint)
    line = marker.get("line", {})
    flat = NEUTRAL if "colour" in columns else flat_colour(trace)
    ink = _shaded(colours_of(flat, len(rows)), opacity)
    edge = _shaded([as_colour(line["color"])], opacity) if line.get("color") else ink
    for symbol in pd.unique(symbols):
        chosen = symbols == symbol
        shape, is_open = str(symbol).removesuffix("-open"), str(symbol).endswith("-open")
        style: dict[str, Any] = {
            "facecolors": "none" if is_open else _once(ink[chosen]),
            "edgecolors": _once(edge[chosen]),
            "linewidths": line.get("width", int(is_open)) * POINT,
        }
        if shape.startswith("line-"):  # all edge
            style |= {"facecolors": _once(ink[chosen]), "edgecolors": None, "linewidths": POINT}
        if "colour" in columns:
            values = rows[columns["colour"]].to_numpy(float)
            style |= {
                "c": values[chosen],
                "cmap": _colour_map(marker.get("colorscale")),
                "vmin": marker.get("cmin", np.nanmin(values)),
                "vmax": marker.get("cmax", np.nanmax(values)),
                "alpha": opacity[chosen],
            }
            style.pop("facecolors")
        points = at.panel.scatter(
            where["x"][chosen],
            where["y"][chosen],
            s=_once((size[chosen] * POINT) ** 2),
            marker=MARKERS.get(shape, "o"),
            zorder=3,
            rasterized=len(rows) > MOST_VECTOR,
            **style,
        )
    if "colour" in columns and len(rows):
        _add_colour_bar(at.panel, points, {"colorbar": colour_bar(trace), **marker})


def _draw_labels(at: Places, trace: Mapping[str, Any], x: Any, y: Any, size: Any) -> None:
    """Draw text beside points, in italics if it is in the figure."""
    upright, _, side = trace.get("textposition", "middle center").partition(" ")
    font = trace.get("textfont", {}).get("size", 12) * POINT
    gap = (float(np.max(size)) / 2 + 2) * POINT
    up = {"top": gap, "bottom": -gap}.get(upright, 0)
    aside = {"right": gap, "left": -gap}.get(side, 0)
    texts = trace["text"] if not isinstance(trace["text"], str) else [trace["text"]] * len(x)
    for place_x, place_y, text in zip(x, y, texts, strict=True):
        if text and np.isfinite([place_x, place_y]).all():
            written = at.panel.annotate(
                shortened(text),
                (place_x, place_y),
                (aside, up),
                textcoords="offset points",
                ha=ALIGNED.get(side, "center"),
                va={"top": "bottom", "bottom": "top"}.get(upright, "center"),
                fontsize=font,
                color=INK[False],
                annotation_clip=False,
                zorder=4,
            )
            write_text(written, text)


def draw_extra(at: Places, trace: Mapping[str, Any]) -> None:
    x, y = (at.of_markup(letter, trace.get(letter) or []) for letter in "xy")
    if "text" in trace.get("mode", ""):
        _draw_labels(at, trace, x, y, 6)
    if "lines" in trace.get("mode", "lines"):
        at.panel.plot(x, y, **line_of(trace), zorder=1.8)


def flat_colour(trace: Mapping[str, Any]) -> Any:
    """Return the colour of a trace's points, or else of its line."""
    return trace.get("marker", {}).get("color", trace.get("line", {}).get("color", NEUTRAL))


def line_of(trace: Mapping[str, Any]) -> dict[str, Any]:
    line = trace.get("line", {})
    return {
        "color": as_colour(line.get("color", NEUTRAL)),
        "linewidth": line.get("width", 2) * POINT,
        "linestyle": DASHES.get(line.get("dash", "solid"), "-"),
        "alpha": trace.get("opacity"),
    }


def _add_colour_bar(panel: Axes, mappable: Any, part: Mapping[str, Any]) -> None:
    if part.get("showscale") is False:
        return
    bar, page = part.get("colorbar", {}), panel.figure
    slim = max(20, page.get_figheight() / PIXEL / 16)
    row = panel.get_subplotspec().rowspan
    whole = [p for p in page.axes if p.get_subplotspec() and p.get_subplotspec().rowspan == row]
    drawn_bar = page.colorbar(mappable, ax=whole, fraction=0.05, aspect=slim, pad=0.02)
    drawn_bar.outline.set_visible(False)
    drawn_bar.solids.set(alpha=1)
    drawn_bar.ax.tick_params(length=0, labelsize=FONT * 0.95, labelcolor=INK[False], pad=4)
    if bar.get("tickvals") is not None and bar.get("ticktext") is not None:
        drawn_bar.set_ticks(list(bar["tickvals"]), labels=[plain(t) for t in bar["ticktext"]])
    if text := title(bar):
        drawn_bar.set_label(shortened(text, 60), fontsize=FONT, color=INK[False])
        write_text(drawn_bar.ax.yaxis.label, text)


def colours_of(given: Any, n: int) -> list[Any]:
    several = isinstance(given, list)
    return (
        [as_colour(c) for c in given] if several and len(given) else [as_colour(given)] * max(n, 1)
    )


def _once(values: np.ndarray) -> np.ndarray:
    """Return only the first value if all are equal, which makes SVG files a fifth of the size."""
    return values[:1] if (values == values[0]).all() else values


def _shaded(colours: list[Any], opacity: np.ndarray) -> np.ndarray:
    """Return the red, green, blue and opacity of each point."""
    from matplotlib.colors import to_rgba_array

    return np.c_[np.broadcast_to(to_rgba_array(colours)[:, :3], (len(opacity), 3)), opacity]


def as_colour(given: str) -> Any:
    """Return a colour for matplotlib, with the dark theme's ink replaced by the light theme's."""
    if str(given).startswith("rgb"):
        parts = [float(p) for p in given[given.index("(") + 1 : -1].split(",")]
        return tuple(p / 255 for p in parts[:3]) + tuple(parts[3:])
    return {INK[True]: INK[False], FAINT[True]: FAINT[False]}.get(str(given).lower(), given)


def _colour_map(given: Any) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    scale = given if isinstance(given, list) else plotly.colors.get_colorscale(given or "Viridis")
    found = LinearSegmentedColormap.from_list("own", [(at, as_colour(c)) for at, c in scale])
    return found.with_extremes(bad="white")
