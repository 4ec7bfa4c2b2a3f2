"""Figures in files: a Plotly figure drawn by matplotlib from the table that it shows.

Files are white with dark ink in any theme, the same figure gives the same bytes, and text stays
text in SVG. Sizes are pixels of the screen.
"""

from __future__ import annotations

import io
import threading
import warnings
from typing import TYPE_CHECKING, Any, Literal

import plotly.graph_objects as go

from app.export.figure_data import (
    PrintError,
    axis_key,
    categorical,
    data,
    taken_apart,
    title,
)

if TYPE_CHECKING:  # importing matplotlib takes a while
    from matplotlib.figure import Figure

from app.export.static_axes import draw_axes, draw_legend, draw_notes
from app.export.static_base import FONT, PIXEL, Places, panels_of, shortened, size_of, write_text
from app.export.static_marks import draw_bars, draw_cells, draw_extra, draw_points

__all__ = ["PrintError", "data", "drawn", "painted"]
Kind = Literal["svg", "png", "pdf"]
MAKER = "SAMS-VAE Explorer"
NO_DATE: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": MAKER},
    "pdf": {"CreationDate": None, "Creator": MAKER, "Producer": None},
    "png": {"Software": MAKER},
}
SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": MAKER, "pdf.fonttype": 42}
ONE = threading.Lock()  # matplotlib's settings are shared by the whole process


def drawn(figure: go.Figure | str, kind: Kind) -> bytes:
    """Return a figure as a file, PNG at twice the size of the screen; raises PrintError."""
    import matplotlib as mpl

    content = io.BytesIO()
    with ONE, mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # text stays in SVG
        painted(figure).savefig(
            content, format=kind, dpi=2 / PIXEL, metadata=NO_DATE[kind], facecolor="white"
        )
    return content.getvalue()


def painted(figure: go.Figure | str) -> Figure:
    """Return a figure as matplotlib's, drawn from its table; raises PrintError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = taken_apart(figure)
    width, height = size_of(shown)
    layout: Any = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, hspace=0.04)
    page = Figure(figsize=(width * PIXEL, height * PIXEL), layout=layout)
    FigureCanvasAgg(page)
    traces = [*(layer.trace for layer in shown.layers), *shown.extras]
    panels = panels_of(page, shown.layout, traces)
    categories = categorical([layer.trace for layer in shown.layers], shown.layout)
    bars = [layer.trace for layer in shown.layers if layer.kind == "bar"]
    if len(bars) > 1 and shown.layout.get("barmode", "group") not in ("group", "overlay"):
        raise PrintError(
            f"A figure has bars in mode {shown.layout['barmode']!r}; bars beside each other can be "
            "drawn in files. Save it by the button on the figure itself."
        )
    for layer in shown.layers:
        at = Places(panels, shown.layout, categories, layer.trace)
        rows = shown.table.iloc[layer.rows]
        if layer.kind == "heatmap":
            draw_cells(at, layer, rows)
        elif layer.kind == "bar":
            draw_bars(at, layer, rows, bars, shown.layout)
        else:
            draw_points(at, layer, rows)
    for trace in shown.extras:
        draw_extra(Places(panels, shown.layout, categories, trace), trace)
    for trace in {(axis_key(t, "x"), axis_key(t, "y")): t for t in traces}.values():
        at = Places(panels, shown.layout, categories, trace)
        draw_axes(at, "x", shown, width - 200)
        draw_axes(at, "y", shown, height - 90)
    draw_legend(page, shown, traces, width)
    draw_notes(panels, shown.layout, categories)
    if heading := title(shown.layout):
        first = next(iter(panels.values()))
        write_text(first.set_title(shortened(heading), loc="left", fontsize=FONT, pad=10), heading)
    return page
