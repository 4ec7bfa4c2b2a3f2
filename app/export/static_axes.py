"""Drawing the axes, legend and notes of a figure in a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from app.export.figure_data import (
    PrintError,
    Shown,
    numbers,
    plain,
    title,
)
from app.figures.style import FAINT, INK, NEUTRAL

if TYPE_CHECKING:  # importing matplotlib takes a while
    pass

from app.export.static_base import FONT, LINE, POINT, ROW, Axes, Places, shortened, write_text
from app.export.static_marks import MARKERS, as_colour, colours_of, flat_colour, line_of


def draw_axes(at: Places, letter: str, shown: Shown, length: float) -> None:
    """Draw an axis as in the figure: scale, range, categories, grid and title.

    `length` is its approximate length in pixels.
    """
    panel, part = at.panel, at.axes[letter]
    second = bool(at.axes["y"].get("overlaying"))  # drawn over another y axis on the same x axis
    for spine in panel.spines.values():
        spine.set_visible(bool(at.axes["x"].get("showline")) and not second)
        spine.set(edgecolor=NEUTRAL, linewidth=POINT)
    if second and letter == "x":
        return
    if letter == "y" and _follows(panel):  # the panel at the left names the rows
        panel.tick_params("y", length=0, labelleft=False)
        return
    side = panel.xaxis if letter == "x" else panel.yaxis
    panel.set_axisbelow(True)
    if letter == "x" and part.get("side") == "top":  # first, as names are written where they stand
        side.tick_top()
        side.set_label_position("top")
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
        write_text(write(shortened(text, LINE), fontsize=FONT, labelpad=7), text)
    if part.get("showticklabels", True) is False:
        ends = ("top", "bottom") if letter == "x" else ("left", "right")
        side.set_tick_params(**{f"label{end}": False for end in ends})


def _follows(panel: Axes) -> bool:
    """Return whether a panel shares the y axis of an earlier panel."""
    sharing = panel.get_shared_y_axes().get_siblings(panel)
    return min(sharing, key=panel.figure.axes.index) is not panel


def _limit(at: Places, letter: str) -> None:
    """Set the limits and the direction of an axis."""
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
    """Label decades with plain numbers, and 2 and 5 as well if there are few decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = getattr(panel, f"get_{letter}lim")()
    few = abs(np.log10(high / low)) < 1.5
    side.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    side.set_minor_locator(NullLocator())
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _name_ticks(at: Places, letter: str, shown: Shown, length: float) -> None:
    """Label the categories; if there is no room for all, only every second or third."""
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
    elif known := at.names[letter]:  # of a categorical axis they may be names
        places = [known.index(plain(x)) if isinstance(x, str) else x for x in places]
    room = length / max(len(names), 1)
    every = max(1, int(np.ceil(ROW / room)))
    side = at.panel.xaxis if letter == "x" else at.panel.yaxis
    side.set_ticks(np.asarray(places, float)[::every], [shortened(n) for n in names[::every]])
    for tick, name in zip(side.get_ticklabels(), names[::every], strict=True):
        write_text(tick, name)
    if letter == "x" and max((len(shortened(n)) for n in names), default=0) * 8 > room * every:
        side.set_tick_params(labelrotation=90)


def draw_legend(page: Any, shown: Shown, traces: list[Mapping[str, Any]], width: float) -> None:
    """Draw the legend above the panels, or below if the figure has it there."""
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
            handles.append(Patch(color=colours_of(marker.get("color", NEUTRAL), 1)[0]))
            continue
        symbol = marker.get("symbol", "circle")
        symbol = symbol if isinstance(symbol, str) else symbol[0] if len(symbol) else "circle"
        ink = NEUTRAL if "colorscale" in marker else colours_of(flat_colour(trace), 1)[0]
        style = line_of(trace) if "lines" in mode else {"linestyle": "", "color": ink}
        edge = marker.get("line", {}).get("color")
        if "markers" in mode:
            style |= {
                "marker": MARKERS.get(symbol.removesuffix("-open"), "o"),
                "markersize": 8 * POINT,
                "markerfacecolor": "none" if symbol.endswith("-open") else style["color"],
                "markeredgecolor": as_colour(edge) if edge else style["color"],
            }
        handles.append(Line2D([], [], **style))
    names = [trace["name"] for trace in named]
    widths = [7.5 * len(shortened(name)) + 45 for name in names]  # pixels, about
    room = len(names) if sum(widths) < width else max(1, int(width // max(widths)))
    below = layout.get("legend", {}).get("y", 1) < 0
    legend = page.legend(
        handles,
        [shortened(name) for name in names],
        loc=f"outside {'lower' if below else 'upper'} center",
        ncols=min(len(names), room),
        frameon=False,
        fontsize=FONT,
        labelcolor=INK[False],
        handletextpad=0.6,
        columnspacing=1.6,
    )
    for written, name in zip(legend.get_texts(), names, strict=True):
        write_text(written, name)


def draw_notes(
    panels: Mapping[tuple[str, str], Axes],
    layout: Mapping[str, Any],
    categories: Mapping[str, list[str]],
) -> None:
    """Draw the figure's annotations and shapes."""
    first = next(iter(panels))
    for shape in layout.get("shapes", []):
        pair = _pair(shape, panels, first)
        at = Places(panels, layout, categories, {"xaxis": pair[0], "yaxis": pair[1]})
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
                color=as_colour(shape.get("fillcolor", FAINT[False])),
                alpha=shape.get("opacity", 1),
                zorder=0.5,
            )
        else:
            at.panel.plot(
                x, y, transform=transform, **line_of(shape), zorder=1.9, scalex=False, scaley=False
            )
    for note in layout.get("annotations", []):
        pair = _pair(note, panels, first)
        at = Places(panels, layout, categories, {"xaxis": pair[0], "yaxis": pair[1]})
        where = [_along(at, letter, [note[letter]], note, is_log_power=True)[0] for letter in "xy"]
        written = at.panel.annotate(
            shortened(note.get("text", ""), LINE),
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
        write_text(written, note.get("text", ""))


def _pair(
    part: Mapping[str, Any], panels: Mapping[tuple[str, str], Axes], first: tuple[str, str]
) -> tuple[str, str]:
    """Return the axes ("x", "y2") that an annotation or shape refers to."""
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
    at: Places, letter: str, ends: list[Any], part: Mapping[str, Any], is_log_power: bool = False
) -> np.ndarray:
    """Return coordinates on an axis; Plotly gives those of annotations as powers on a log axis."""
    if part.get(f"{letter}ref", letter).endswith(("paper", "domain")):
        return numbers(ends)
    if at.names[letter] is not None and any(isinstance(end, str) for end in ends):
        return at.of_markup(letter, ends)
    log = is_log_power and at.axes[letter].get("type") == "log"
    return 10 ** numbers(ends) if log else numbers(ends)
