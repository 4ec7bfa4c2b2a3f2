"""The basics of figures in files: sizes, panels and text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from app.export.figure_data import (
    PrintError,
    Shown,
    axis_key,
    is_italic,
    numbers,
    plain,
    title,
)
from app.figures.style import INK

if TYPE_CHECKING:  # importing matplotlib takes a while
    from matplotlib.figure import Figure


Axes: TypeAlias = Any  # matplotlib's Axes, which accept more than they are annotated for
Written: TypeAlias = Any  # matplotlib's Text
PIXEL = 1 / 96  # inches
POINT = 0.75  # points in a pixel
FONT, SMALL = 13 * POINT, 11 * POINT
WIDTH, LEAST, MOST_HEIGHT = 680, 300, 3000  # pixels
CELL, ROW = 37, 13  # pixels of a heat map's column, and the least for a label
LONGEST, LINE = 48, 90  # characters of a label and a title; the table has them in full


class Places:
    """The panel that a trace is drawn on, and the positions of its values there."""

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
        """Return the positions of values from the figure's table."""
        names = self.names[letter]
        if names is None:
            return numbers(values)
        known = {name: place for place, name in enumerate(names)}
        return np.array([known.get(value, np.nan) for value in values], dtype=float)

    def of_markup(self, letter: str, values: Iterable[Any]) -> np.ndarray:
        """Return the positions of values from a trace, whose names are markup."""
        names = self.names[letter]
        return self.of(letter, values if names is None else [plain(v) for v in values])


def size_of(shown: Shown) -> tuple[float, float]:
    """Return width and height in pixels: as high as on screen, as wide as its kind needs."""
    height = float(np.clip(shown.layout.get("height") or 450, LEAST - 120, MOST_HEIGHT))
    heat = [layer.trace for layer in shown.layers if layer.kind == "heatmap"]
    if heat:
        columns = max(len(trace["z"][0]) if len(trace["z"]) else 0 for trace in heat)
        return min(260 + CELL * columns, 2 * WIDTH), height
    is_map = any(title(shown.layout.get(key, {})).startswith("UMAP") for key in ("xaxis", "yaxis"))
    return (0.9 * WIDTH if is_map else WIDTH), height


def panels_of(
    page: Figure, layout: Mapping[str, Any], traces: Iterable[Mapping[str, Any]]
) -> dict[tuple[str, str], Axes]:
    """Return an empty panel for each pair of axes, arranged by the domains of the axes."""
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


def write_text(written: Written, markup: str) -> None:
    """Style a text: gene names in italics, and nothing read as mathematics."""
    written.set(parse_math=False, color=INK[False])
    if is_italic(markup):
        written.set_fontstyle("italic")


def shortened(markup: object, most: int = LONGEST) -> str:
    """Return a label as drawn: control characters as spaces, lines cut at `most` characters."""
    lines = [
        "".join(c if c.isprintable() else " " for c in line) for line in plain(markup).split("\n")
    ]
    return "\n".join(line if len(line) <= most else line[: most - 1] + "\u2026" for line in lines)
