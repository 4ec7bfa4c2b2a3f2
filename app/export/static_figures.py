"""Figures for files: what a Plotly figure shows, drawn by matplotlib from the same table.

Knows nothing of Streamlit. On a white ground with dark ink, whatever the theme of the screen; the
same bytes for the same figure; text stays text in SVG. Sizes are pixels of the screen.
"""

from __future__ import annotations

import io
import itertools
import threading
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
import plotly.colors
import plotly.graph_objects as go

from app.export.figure_data import (
    SELECTED,
    Layer,
    PrintError,
    Shown,
    axis_key,
    categorical,
    colour_bar,
    data,
    is_italic,
    numbers,
    plain,
    taken_apart,
    title,
)
from app.figures.style import FAINT, INK, NEUTRAL

if TYPE_CHECKING:  # importing matplotlib takes a while
    from matplotlib.figure import Figure

__all__ = ["PrintError", "data", "drawn", "painted"]

Kind = Literal["svg", "png", "pdf"]
Axes: TypeAlias = Any  # those of matplotlib, whose annotations are narrower than what it takes
Written: TypeAlias = Any  # a text of matplotlib
MAKER = "SAMS-VAE Explorer"
MOST_VECTOR = 10_000  # points or cells; more are a picture inside the file
NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": MAKER},
    "pdf": {"CreationDate": None, "Creator": MAKER, "Producer": None},
    "png": {"Software": MAKER},
}
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": MAKER, "pdf.fonttype": 42}
ONE = threading.Lock()  # these settings are one for the whole process
PIXEL = 1 / 96  # inches
POINT = 0.75  # points in a pixel
FONT, SMALL = 13 * POINT, 11 * POINT
WIDTH, LEAST, MOST_HEIGHT = 680, 300, 3000  # pixels
CELL, ROW = 37, 13  # a heat map's column; the least room of a label
LONGEST, LINE = 48, 90  # characters of a label and of a title; the table has the whole
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v"}
MARKERS |= {"cross": "P", "x": "X", "line-ns": "|", "line-ew": "_", "star": "*", "hexagon": "h"}
DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (5, 3)), "dot": (0, (1, 2)), "dashdot": "-."}
DASHES |= {"longdash": (0, (9, 4)), "longdashdot": (0, (9, 3, 1, 3))}
ALIGNED = {"left": "right", "center": "center", "right": "left"}  # "right": right of its point


def drawn(figure: go.Figure | str, kind: Kind) -> bytes:
    """A file of the figure; PNG at twice the size of the screen. Raises PrintError."""
    import matplotlib as mpl

    content = io.BytesIO()
    with ONE, mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays in SVG
        painted(figure).savefig(
            content, format=kind, dpi=2 / PIXEL, metadata=NO_DATE[kind], facecolor="white"
        )
    return content.getvalue()


def painted(figure: go.Figure | str) -> Figure:
    """The figure as matplotlib's own, drawn from the table that `data` gives."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = taken_apart(figure)
    width, height = _size(shown)
    layout: Any = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04)
    page = Figure(figsize=(width * PIXEL, height * PIXEL), layout=layout)
    FigureCanvasAgg(page)
    traces = [*(layer.trace for layer in shown.layers), *shown.extras]
    panels = _panels(page, shown.layout, traces)
    categories = categorical([layer.trace for layer in shown.layers], shown.layout)
    bars = [layer.trace for layer in shown.layers if layer.kind == "bar"]
    if len(bars) > 1 and shown.layout.get("barmode", "group") not in ("group", "overlay"):
        raise PrintError(
            f"A figure has bars in mode {shown.layout['barmode']!r}; bars beside each other can be "
            "drawn in files. Save it by the button on the figure itself."
        )
    for layer in shown.layers:
        at = _Places(panels, shown.layout, categories, layer.trace)
        rows = shown.table.iloc[layer.rows]
        if layer.kind == "heatmap":
            _draw_cells(at, layer, rows)
        elif layer.kind == "bar":
            _draw_bars(at, layer, rows, bars, shown.layout)
        else:
            _draw_points(at, layer, rows)
    for trace in shown.extras:
        _draw_extra(_Places(panels, shown.layout, categories, trace), trace)
    for trace in {(axis_key(t, "x"), axis_key(t, "y")): t for t in traces}.values():
        at = _Places(panels, shown.layout, categories, trace)
        _dress(at, "x", shown, width - 200)
        _dress(at, "y", shown, height - 90)
    _write_legend(page, shown, traces, width)
    _annotate(panels, shown.layout, categories)
    if heading := title(shown.layout):
        first = next(iter(panels.values()))
        _write(first.set_title(_short(heading), loc="left", fontsize=FONT, pad=10), heading)
    return page


class _Places:
    """Where a trace is drawn: its panel, and where its coordinates lie there."""

    def __init__(
        self,
        panels: Mapping[tuple[str, str], Axes],
        layout: Mapping[str, Any],
        categories: Mapping[str, list[str]],
        trace: Mapping[str, Any],
    ) -> None:
        keys = {letter: axis_key(trace, letter) for letter in "xy"}
        self.panel = panels[keys["x"], keys["y"]]
        self.axes = {letter: layout.get(key, {}) for letter, key in keys.items()}
        self.names = {letter: categories.get(key) for letter, key in keys.items()}

    def of(self, letter: str, values: Iterable[Any]) -> np.ndarray:
        """Where the values of a table's column are."""
        names = self.names[letter]
        if names is None:
            return numbers(values)
        known = {name: place for place, name in enumerate(names)}
        return np.array([known.get(value, np.nan) for value in values], dtype=float)

    def of_markup(self, letter: str, values: Iterable[Any]) -> np.ndarray:
        """Where the values of a trace are, whose names are markup."""
        names = self.names[letter]
        return self.of(letter, values if names is None else [plain(v) for v in values])


def _size(shown: Shown) -> tuple[float, float]:
    """Pixels of the figure: the screen's height, the width that its kind asks for."""
    height = float(np.clip(shown.layout.get("height") or 450, LEAST - 120, MOST_HEIGHT))
    heat = [layer.trace for layer in shown.layers if layer.kind == "heatmap"]
    if heat:
        columns = max(len(trace["z"][0]) if len(trace["z"]) else 0 for trace in heat)
        return min(260 + CELL * columns, 2 * WIDTH), height
    is_map = any(title(shown.layout.get(key, {})).startswith("UMAP") for key in ("xaxis", "yaxis"))
    return (0.9 * WIDTH if is_map else WIDTH), height


def _panels(
    page: Figure, layout: Mapping[str, Any], traces: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str], Axes]:
    """An empty panel for each pair of axes, laid out as the domains of the axes say."""
    pairs = dict.fromkeys((axis_key(t, "x"), axis_key(t, "y")) for t in traces)
    pairs = pairs or {("xaxis", "yaxis"): None}
    over = {key: f"yaxis{layout.get(key, {}).get('overlaying', '')[1:]}" for _, key in pairs}
    own = [pair for pair in pairs if not layout.get(pair[1], {}).get("overlaying")]
    domain = {pair: [layout.get(key, {}).get("domain", [0, 1]) for key in pair] for pair in own}
    columns = sorted({d[0][0] for d in domain.values()})
    rows = sorted({d[1][0] for d in domain.values()}, reverse=True)
    heights = [next(d[1][1] - d[1][0] for d in domain.values() if d[1][0] == r) for r in rows]
    widths = [next(d[0][1] - d[0][0] for d in domain.values() if d[0][0] == c) for c in columns]
    grid = page.add_gridspec(len(rows), len(columns), height_ratios=heights, width_ratios=widths)
    panels: dict[tuple[str, str], Axes] = {}
    for pair, (x, y) in domain.items():
        matched = f"xaxis{layout.get(pair[0], {}).get('matches', 'x?')[1:]}"
        with_it = [panel for (key, _), panel in panels.items() if matched in (key, "xaxis")]
        shared = with_it[0] if with_it and layout.get(pair[0], {}).get("matches") else None
        place = grid[rows.index(y[0]), columns.index(x[0])]
        beside = next((panel for (_, key), panel in panels.items() if key == pair[1]), None)
        panels[pair] = page.add_subplot(place, sharex=shared, sharey=beside)
    for pair in pairs:
        if pair not in panels:
            below = next((p for (_, y), p in panels.items() if y == over[pair[1]]), None)
            if below is None:
                raise PrintError(f"A figure has an axis {pair[1]!r} over one without anything.")
            panels[pair] = below.twinx()
    return panels


def _draw_cells(at: _Places, layer: Layer, rows: pd.DataFrame) -> None:
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
    if "mark" not in layer.columns or values.size > MOST_VECTOR:  # too small to be read
        return
    shades = mesh.cmap(mesh.norm(values.ravel()))[:, :3] @ [0.299, 0.587, 0.114]
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    where = itertools.product(middles[1], middles[0])
    for mark, shade, (y, x) in zip(rows[layer.columns["mark"]], shades, where, strict=True):
        if mark:
            ink = INK[False] if shade > 0.5 else "white"
            written = at.panel.text(x, y, mark, ha="center", va="center", color=ink, fontsize=SMALL)
            written.set(parse_math=False, in_layout=False)


def _draw_bars(
    at: _Places,
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
    colours = _colours(trace.get("marker", {}).get("color", NEUTRAL), len(rows))
    draw = at.panel.barh if lying else at.panel.bar
    alpha = trace.get("opacity", trace.get("marker", {}).get("opacity"))
    draw(places, values, thick, color=colours, zorder=2, alpha=alpha)
    where = {along: values, across: places}
    _draw_errors(at, layer, rows, where)


def _draw_errors(
    at: _Places, layer: Layer, rows: pd.DataFrame, where: Mapping[str, np.ndarray]
) -> None:
    for letter in "xy":
        if f"{letter}-" not in layer.columns:
            continue
        style = layer.trace[f"error_{letter}"]
        low, high = (rows[layer.columns[f"{letter}{end}"]].to_numpy(float) for end in "-+")
        other = where["y" if letter == "x" else "x"]
        thickness = style.get("thickness", 2) * POINT
        lines, ends = (at.panel.hlines, "|") if letter == "x" else (at.panel.vlines, "_")
        colour = _colour(style.get("color", NEUTRAL))
        lines(other, low, high, colors=colour, linewidth=thickness, zorder=3)
        if size := style.get("width", 4):
            for end in (low, high):
                place = (end, other) if letter == "x" else (other, end)
                at.panel.plot(
                    *place, ends, color=colour, ms=2 * size * POINT, mew=thickness, zorder=3
                )


def _draw_points(at: _Places, layer: Layer, rows: pd.DataFrame) -> None:
    trace, columns = layer.trace, layer.columns
    where = {letter: at.of(letter, rows[columns[letter]]) for letter in "xy"}
    _draw_errors(at, layer, rows, where)
    mode = trace.get("mode", "lines" if len(rows) > 20 else "lines+markers")
    marker = trace.get("marker", {})
    if "lines" in mode:
        at.panel.plot(where["x"], where["y"], **_line(trace), zorder=2.5, marker="")
    if "markers" in mode:
        _draw_markers(at, layer, rows, where)
    if "text" in mode and "label" in columns:
        _draw_labels(at, trace, where["x"], where["y"], marker.get("size", 6))


def _draw_markers(
    at: _Places, layer: Layer, rows: pd.DataFrame, where: Mapping[str, np.ndarray]
) -> None:
    """One collection for each symbol, as matplotlib has it."""
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
    flat = NEUTRAL if "colour" in columns else _flat_colour(trace)
    ink = _shaded(_colours(flat, len(rows)), opacity)
    edge = _shaded([_colour(line["color"])], opacity) if line.get("color") else ink
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


def _draw_labels(at: _Places, trace: Mapping[str, Any], x: Any, y: Any, size: Any) -> None:
    """Text beside points, in italics where the figure has it so."""
    upright, _, side = trace.get("textposition", "middle center").partition(" ")
    font = trace.get("textfont", {}).get("size", 12) * POINT
    gap = (float(np.max(size)) / 2 + 2) * POINT
    up = {"top": gap, "bottom": -gap}.get(upright, 0)
    aside = {"right": gap, "left": -gap}.get(side, 0)
    texts = trace["text"] if not isinstance(trace["text"], str) else [trace["text"]] * len(x)
    for place_x, place_y, text in zip(x, y, texts, strict=True):
        if text and np.isfinite([place_x, place_y]).all():
            written = at.panel.annotate(
                _short(text),
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
            _write(written, text)


def _draw_extra(at: _Places, trace: Mapping[str, Any]) -> None:
    x, y = (at.of_markup(letter, trace.get(letter) or []) for letter in "xy")
    if "text" in trace.get("mode", ""):
        _draw_labels(at, trace, x, y, 6)
    if "lines" in trace.get("mode", "lines"):
        at.panel.plot(x, y, **_line(trace), zorder=1.8)


def _flat_colour(trace: Mapping[str, Any]) -> Any:
    """The colour of points: their own, or that of their line."""
    return trace.get("marker", {}).get("color", trace.get("line", {}).get("color", NEUTRAL))


def _line(trace: Mapping[str, Any]) -> dict[str, Any]:
    line = trace.get("line", {})
    return {
        "color": _colour(line.get("color", NEUTRAL)),
        "linewidth": line.get("width", 2) * POINT,
        "linestyle": DASHES.get(line.get("dash", "solid"), "-"),
        "alpha": trace.get("opacity"),
    }


def _dress(at: _Places, letter: str, shown: Shown, length: float) -> None:
    """An axis as the figure has it: scale, range, names of categories, quiet grid, title.

    Its length is in pixels, about.
    """
    panel, part = at.panel, at.axes[letter]
    second = bool(at.axes["y"].get("overlaying"))  # drawn over another one, whose x it shares
    for spine in panel.spines.values():
        spine.set_visible(bool(at.axes["x"].get("showline")) and not second)
        spine.set(edgecolor=NEUTRAL, linewidth=POINT)
    if second and letter == "x":
        return
    if letter == "y" and _follows(panel):  # its rows are named at the left
        panel.tick_params("y", length=0, labelleft=False)
        return
    side = panel.xaxis if letter == "x" else panel.yaxis
    panel.set_axisbelow(True)
    panel.tick_params(letter, length=0, labelsize=FONT, labelcolor=INK[False], pad=5)
    if part.get("type") == "log":
        getattr(panel, f"set_{letter}scale")("log")
        _decades(panel, side, letter)
    if part.get("tickformat", "").endswith("%"):
        from matplotlib.ticker import PercentFormatter

        side.set_major_formatter(PercentFormatter(1, decimals=0))
    if part.get("showgrid", not second) is not False and part.get("visible") is not False:
        panel.grid(axis=letter, which="major", color=FAINT[False], linewidth=POINT)
    if at.names[letter] is not None or part.get("ticktext") is not None:
        _name_ticks(at, letter, shown, length)
    _limit(at, letter)
    if part.get("visible") is False:
        side.set_tick_params(labelleft=False, labelbottom=False)
        return
    crossed = part.get("zeroline", True) is not False and part.get("type") != "log"
    if crossed and at.names[letter] is None and not second:
        low, high = sorted(getattr(panel, f"get_{letter}lim")())
        if low <= 0 <= high:
            draw = panel.axvline if letter == "x" else panel.axhline
            draw(0, color=NEUTRAL, linewidth=POINT, zorder=2.2 if letter == "x" else 1.6)
    if text := title(part):
        write = getattr(panel, f"set_{letter}label")
        _write(write(_short(text, LINE), fontsize=FONT, labelpad=7), text)
    if letter == "x" and part.get("side") == "top":
        side.tick_top()
        side.set_label_position("top")
        side.set_tick_params(length=0)
    if part.get("showticklabels", True) is False:
        ends = ("top", "bottom") if letter == "x" else ("left", "right")
        side.set_tick_params(**{f"label{end}": False for end in ends})


def _follows(panel: Axes) -> bool:
    """Whether its y axis is that of a panel before it."""
    sharing = panel.get_shared_y_axes().get_siblings(panel)
    return min(sharing, key=panel.figure.axes.index) is not panel


def _limit(at: _Places, letter: str) -> None:
    """Where the axis begins and ends, and which way it goes."""
    part, names = at.axes[letter], at.names[letter]
    limits = getattr(at.panel, f"set_{letter}lim")
    given, turned = part.get("range"), part.get("autorange") == "reversed"
    if names is not None or part.get("ticktext") is not None:
        low, high = given or (-0.5, len(names or part["ticktext"]) - 0.5)
        limits(*sorted((low, high), reverse=turned or low > high))
    elif given:
        limits(*(10.0**end if part.get("type") == "log" else end for end in given))
    elif turned:
        (at.panel.xaxis if letter == "x" else at.panel.yaxis).set_inverted(True)
    elif part.get("rangemode") == "tozero":
        first, last = getattr(at.panel.dataLim, f"interval{letter}")
        low, high = getattr(at.panel, f"get_{letter}lim")()
        limits(0 if first >= 0 else low, 0 if last <= 0 else high)


def _decades(panel: Axes, side: Any, letter: str) -> None:
    """Plain numbers at decades; at 2 and 5 as well, where there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = getattr(panel, f"get_{letter}lim")()
    few = abs(np.log10(high / low)) < 1.5
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_ticks(at: _Places, letter: str, shown: Shown, length: float) -> None:
    """Names of categories; where there is no room for all, every second or third has its name."""
    part = at.axes[letter]
    names, places = part.get("ticktext"), part.get("tickvals")
    if names is None:
        marked = {
            plain(value): value
            for layer in shown.layers
            for value in layer.trace.get(letter) or []
            if isinstance(value, str)
        }
        names = [marked.get(name, name) for name in at.names[letter] or []]
        places = range(len(names))
    room = length / max(len(names), 1)
    every = max(1, int(np.ceil(ROW / room)))
    side = at.panel.xaxis if letter == "x" else at.panel.yaxis
    side.set_ticks(np.asarray(places, float)[::every], [_short(n) for n in names[::every]])
    for tick, name in zip(side.get_ticklabels(), names[::every], strict=True):
        _write(tick, name)
    if letter == "x" and max((len(_short(n)) for n in names), default=0) * 8 > room * every:
        side.set_tick_params(labelrotation=90)


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
        drawn_bar.set_label(_short(text, 60), fontsize=FONT, color=INK[False])
        _write(drawn_bar.ax.yaxis.label, text)


def _write_legend(page: Any, shown: Shown, traces: list[Mapping[str, Any]], width: float) -> None:
    """What the symbols mean, above the panels, or below, where the figure has it below."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    layout = shown.layout
    named = [t for t in traces if t.get("name") and t.get("showlegend") is not False]
    several = sum(t.get("showlegend") is not False for t in traces) > 1
    if not named or not layout.get("showlegend", several):
        return
    handles: list[Any] = []
    for trace in named:
        marker, mode = trace.get("marker", {}), trace.get("mode", "lines")
        if trace.get("type") == "bar":
            handles.append(Patch(color=_colours(marker.get("color", NEUTRAL), 1)[0]))
            continue
        symbol = marker.get("symbol", "circle")
        symbol = symbol if isinstance(symbol, str) else symbol[0] if len(symbol) else "circle"
        ink = NEUTRAL if "colorscale" in marker else _colours(_flat_colour(trace), 1)[0]
        style = _line(trace) if "lines" in mode else {"linestyle": "", "color": ink}
        edge = marker.get("line", {}).get("color")
        if "markers" in mode:
            style |= {
                "marker": MARKERS.get(symbol.removesuffix("-open"), "o"),
                "markersize": 8 * POINT,
                "markerfacecolor": "none" if symbol.endswith("-open") else style["color"],
                "markeredgecolor": _colour(edge) if edge else style["color"],
            }
        handles.append(Line2D([], [], **style))
    names = [trace["name"] for trace in named]
    widths = [7.5 * len(_short(name)) + 45 for name in names]  # pixels, about
    room = len(names) if sum(widths) < width else max(1, int(width // max(widths)))
    below = layout.get("legend", {}).get("y", 1) < 0
    legend = page.legend(
        handles,
        [_short(name) for name in names],
        loc=f"outside {'lower' if below else 'upper'} center",
        ncols=min(len(names), room),
        frameon=False,
        fontsize=FONT,
        labelcolor=INK[False],
        handletextpad=0.6,
        columnspacing=1.6,
    )
    for written, name in zip(legend.get_texts(), names, strict=True):
        _write(written, name)


def _annotate(
    panels: Mapping[tuple[str, str], Axes],
    layout: Mapping[str, Any],
    categories: Mapping[str, list[str]],
) -> None:
    """The figure's own notes and lines of reference."""
    first = next(iter(panels))
    for shape in layout.get("shapes", []):
        pair = _pair(shape, panels, first)
        at = _Places(panels, layout, categories, {"xaxis": pair[0], "yaxis": pair[1]})
        if shape.get("type") not in ("line", "rect"):
            raise PrintError(
                f"A figure has a shape of kind {shape.get('type')!r}; lines and "
                "boxes can be drawn in files."
            )
        transform = _transform(at.panel, shape)
        x, y = (
            _along(at, letter, [shape[f"{letter}0"], shape[f"{letter}1"]], shape) for letter in "xy"
        )
        if shape["type"] == "rect":
            at.panel.fill(
                x[[0, 1, 1, 0]],
                y[[0, 0, 1, 1]],
                transform=transform,
                linewidth=0,
                color=_colour(shape.get("fillcolor", FAINT[False])),
                alpha=shape.get("opacity", 1),
                zorder=0.5,
            )
        else:
            at.panel.plot(
                x, y, transform=transform, **_line(shape), zorder=1.9, scalex=False, scaley=False
            )
    for note in layout.get("annotations", []):
        pair = _pair(note, panels, first)
        at = _Places(panels, layout, categories, {"xaxis": pair[0], "yaxis": pair[1]})
        where = [_along(at, letter, [note[letter]], note, is_log_power=True)[0] for letter in "xy"]
        written = at.panel.annotate(
            _short(note.get("text", ""), LINE),
            where,
            (note.get("xshift", 0) * POINT, note.get("yshift", 0) * POINT),
            xycoords=_transform(at.panel, note),
            textcoords="offset points",
            ha=note.get("xanchor", "center").replace("auto", "center"),
            va=note.get("yanchor", "middle").replace("auto", "center").replace("middle", "center"),
            fontsize=note.get("font", {}).get("size", 12) * POINT,
            color=INK[False],
            annotation_clip=False,
            zorder=4,
        )
        _write(written, note.get("text", ""))


def _pair(
    part: Mapping[str, Any], panels: Mapping[tuple[str, str], Axes], first: tuple[str, str]
) -> tuple[str, str]:
    """The axes ("x", "y2") that a note or shape of the layout refers to."""
    refs = [part.get(f"{letter}ref", letter).removesuffix(" domain") for letter in "xy"]
    keys = [
        usual if ref == "paper" else f"{usual[0]}axis{ref[1:]}"
        for ref, usual in zip(refs, first, strict=True)
    ]
    found = next((p for p in panels if p == (keys[0], keys[1])), None)
    found = found or next((p for p in panels if keys[1] == p[1] or keys[0] == p[0]), first)
    return found[0].replace("axis", ""), found[1].replace("axis", "")


def _transform(panel: Axes, part: Mapping[str, Any]) -> Any:
    from matplotlib.transforms import blended_transform_factory

    outside = [part.get(f"{letter}ref", letter).endswith(("paper", "domain")) for letter in "xy"]
    return blended_transform_factory(
        *(panel.transAxes if is_outside else panel.transData for is_outside in outside)
    )


def _along(
    at: _Places, letter: str, ends: list[Any], part: Mapping[str, Any], is_log_power: bool = False
) -> np.ndarray:
    """Coordinates of a note; on a logarithmic axis Plotly gives those of notes as powers."""
    if part.get(f"{letter}ref", letter).endswith(("paper", "domain")):
        return numbers(ends)
    if at.names[letter] is not None and any(isinstance(end, str) for end in ends):
        return at.of_markup(letter, ends)
    log = is_log_power and at.axes[letter].get("type") == "log"
    return 10 ** numbers(ends) if log else numbers(ends)


def _write(written: Written, markup: str) -> None:
    """Names are text, never mathematics; genes are in italics."""
    written.set(parse_math=False, color=INK[False])
    if is_italic(markup):
        written.set_fontstyle("italic")


def _short(markup: object, most: int = LONGEST) -> str:
    """One label as it is drawn: control characters are spaces, each line has its limit."""
    lines = [
        "".join(c if c.isprintable() else " " for c in line) for line in plain(markup).split("\n")
    ]
    return "\n".join(line if len(line) <= most else line[: most - 1] + "\u2026" for line in lines)


def _colours(given: Any, n: int) -> list[Any]:
    several = isinstance(given, list)
    return [_colour(c) for c in given] if several and len(given) else [_colour(given)] * max(n, 1)


def _once(values: np.ndarray) -> np.ndarray:
    """The first alone, where all are alike: SVG is a fifth of the size."""
    return values[:1] if (values == values[0]).all() else values


def _shaded(colours: list[Any], opacity: np.ndarray) -> np.ndarray:
    """Red, green, blue and opacity of each point."""
    from matplotlib.colors import to_rgba_array

    return np.c_[np.broadcast_to(to_rgba_array(colours)[:, :3], (len(opacity), 3)), opacity]


def _colour(given: str) -> Any:
    """A colour of the figure; what was light for a dark ground is dark."""
    if str(given).startswith("rgb"):
        parts = [float(p) for p in given[given.index("(") + 1 : -1].split(",")]
        return tuple(p / 255 for p in parts[:3]) + tuple(parts[3:])
    return {INK[True]: INK[False], FAINT[True]: FAINT[False]}.get(str(given).lower(), given)


def _colour_map(given: Any) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    scale = given if isinstance(given, list) else plotly.colors.get_colorscale(given or "Viridis")
    found = LinearSegmentedColormap.from_list("own", [(at, _colour(c)) for at, c in scale])
    return found.with_extremes(bad="white")
