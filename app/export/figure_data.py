"""The data of a Plotly figure as a table: one row for each bar, point or cell drawn.

Columns are named after the titles of axes and colour bars. Layers that only take clicks, labels
beside points, and reference lines are not data: they have `hoverinfo="skip"` or an opacity near
zero.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

KINDS = {"bar": "bar", "scatter": "scatter", "scattergl": "scatter", "heatmap": "heatmap"}
UNSEEN = 0.05  # a layer with a lower opacity only takes clicks
TAG = re.compile(
    r"</?(?:a|b|em|i|s|span|strong|sub|sup|u)(?:\s[^<>]*)?>"
)  # the tags that Plotly renders
BREAK = re.compile(r"<br\s*/?>")
SERIES, SELECTED = "series", "selected"


class PrintError(ValueError):
    """Raised for a figure that cannot be read or drawn, with the reason."""


@dataclass(frozen=True)
class Layer:
    """A trace with data, and the rows and columns of the table that it draws.

    `columns` are column names by role: x, y, ends of their intervals as x-, x+, y-, y+, and value,
    exact, mark, colour, label, symbol, size.
    """

    trace: Mapping[str, Any]
    kind: str
    columns: Mapping[str, str]
    rows: slice


@dataclass(frozen=True)
class Shown:
    """A figure in parts: its table, the layers that draw it, the other traces, and the layout."""

    table: pd.DataFrame
    layers: list[Layer]
    extras: list[Mapping[str, Any]]
    layout: Mapping[str, Any]


def data(figure: go.Figure | str) -> pd.DataFrame:
    """Return the table of a figure or its JSON; raises PrintError for other kinds of trace."""
    return taken_apart(figure).table


def taken_apart(figure: go.Figure | str) -> Shown:
    content = _decoded(json.loads(figure if isinstance(figure, str) else figure.to_json()))
    layout = content.get("layout", {})
    traces = [trace for trace in content["data"] if trace.get("visible", True) is True]
    for trace in traces:
        if trace.get("type", "scatter") not in KINDS:
            raise PrintError(
                f"A figure has a trace of kind {trace['type']!r}; bars, points, lines and heat "
                "maps can be drawn in files. Save it by the button on the figure itself."
            )
    shown = [trace for trace in traces if not _for_clicks(trace)]
    clicks = [trace for trace in traces if _for_clicks(trace)]
    holding = [trace for trace in shown if not is_extra(trace)]
    categories = categorical(holding, layout)
    heat = [trace for trace in holding if trace.get("type") == "heatmap"]
    mapped = {axis_key(trace, letter) for trace in heat for letter in "xy"}
    parts, layers, start = [], [], 0
    for trace in holding:
        values = _values(trace, clicks, categories)
        columns = _names(trace, values, layout, mapped)
        size = len(next(iter(values.values())))
        part: dict[str, Any] = {SERIES: [plain(trace.get("name") or "", " ")] * size}
        part |= {columns[role]: column for role, column in values.items()}
        if any(t.get("selectedpoints") is not None for t in holding):
            chosen = trace.get("selectedpoints")
            every = np.ones(size, dtype=bool)
            part[SELECTED] = every if chosen is None else np.isin(np.arange(size), chosen)
        parts.append(part)
        rows = slice(start, start + size)
        layers.append(Layer(trace, KINDS[trace.get("type", "scatter")], columns, rows))
        start += size
    extras = [trace for trace in shown if is_extra(trace)]
    return Shown(_joined(parts), layers, extras, layout)


def plain(markup: object, between: str = "\n") -> str:
    """Return markup as plain text, with `between` between its lines."""
    return html.unescape(TAG.sub("", BREAK.sub(between, str(markup))))


def is_italic(markup: object) -> bool:
    return str(markup).startswith("<i>") and str(markup).endswith("</i>")


def numbers(values: Any) -> np.ndarray:
    """Return the numbers of a trace, with NaN for missing ones."""
    return np.array([np.nan if v is None else v for v in values], dtype=float)


def axis(layout: Mapping[str, Any], trace: Mapping[str, Any], letter: str) -> Mapping[str, Any]:
    """Return the axis of the layout that a trace is drawn on."""
    found: Mapping[str, Any] = layout.get(axis_key(trace, letter), {})
    return found


def axis_key(trace: Mapping[str, Any], letter: str) -> str:
    """Return the layout's key for a trace's axis: "yaxis2" for "y2"."""
    return f"{letter}axis{trace.get(f'{letter}axis', letter)[1:]}"


def title(part: Mapping[str, Any]) -> str:
    """Return the title of an axis, a colour bar or the figure; it may contain markup."""
    found = part.get("title", "")
    return (found.get("text") or "") if isinstance(found, Mapping) else found


def colour_bar(trace: Mapping[str, Any]) -> Mapping[str, Any]:
    part = trace if trace.get("type") == "heatmap" else trace.get("marker", {})
    found: Mapping[str, Any] = part.get("colorbar", {})
    return found


def is_extra(trace: Mapping[str, Any]) -> bool:
    """Return whether a trace is drawn but has no data: labels beside points, reference lines."""
    scatter = trace.get("type", "scatter") in ("scatter", "scattergl")
    return scatter and (trace.get("hoverinfo") == "skip" or trace.get("mode") == "text")


def _for_clicks(trace: Mapping[str, Any]) -> bool:
    opacities = trace.get("opacity"), trace.get("marker", {}).get("opacity")
    return any(isinstance(value, int | float) and value < UNSEEN for value in opacities)


def categorical(
    traces: Iterable[Mapping[str, Any]], layout: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Return the categories of each categorical axis, as plain text in order, by layout key."""
    found: dict[str, list[str]] = {}
    for trace in traces:
        for letter in "xy":
            key = axis_key(trace, letter)
            values = trace.get(letter)
            kind = layout.get(key, {}).get("type", "-")
            if kind == "category" or (kind == "-" and _is_text(values)):
                given = layout.get(key, {}).get("categoryarray")
                known = found.setdefault(key, [] if given is None else [plain(v) for v in given])
                have = set(known)
                fresh = (plain(v) for v in ([] if values is None else values) if v is not None)
                known.extend(v for v in dict.fromkeys(fresh) if v not in have)
    return found


def _is_text(values: Any) -> bool:
    """Return whether any of the values is a text that is not a number."""
    if values is None:
        return False
    try:
        numbers(values)
    except ValueError:
        return True
    return False


def _values(
    trace: Mapping[str, Any], clicks: list[Mapping[str, Any]], categories: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Return the columns that a trace draws, by role, all of one length."""
    if trace.get("type") == "heatmap":
        return _cells(trace, clicks, categories)
    given = trace.get("x") if trace.get("x") is not None else trace.get("y")
    places = np.arange(0 if given is None else len(given))
    values: dict[str, Any] = {}
    for letter in "xy":
        where = trace[letter] if trace.get(letter) is not None else places
        if axis_key(trace, letter) in categories:
            values[letter] = [plain(v) for v in where]
            continue
        values[letter] = numbers(where)
        values |= _ends(letter, values[letter], trace.get(f"error_{letter}", {}))
    marker = trace.get("marker", {})
    if isinstance(marker.get("color"), list) and not _is_text(marker["color"]):
        values["colour"] = numbers(marker["color"])
    if isinstance(trace.get("text"), list):
        values["label"] = [plain(t or "", " ") for t in trace["text"]]
    if isinstance(marker.get("symbol"), list):
        values["symbol"] = [str(s) for s in marker["symbol"]]
    if isinstance(marker.get("size"), list):
        values["size"] = numbers(marker["size"])
    return values


def _ends(letter: str, values: np.ndarray, error: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return both ends of the error bars by role; none if there are no error bars."""
    if error.get("array") is None or error.get("visible") is False:
        return {}
    above = numbers(error["array"])
    below = numbers(error["arrayminus"]) if error.get("arrayminus") is not None else above
    return {f"{letter}-": values - below, f"{letter}+": values + above}


def _cells(
    trace: Mapping[str, Any], clicks: list[Mapping[str, Any]], categories: Mapping[str, list[str]]
) -> dict[str, Any]:
    """Return the cells of a heat map, row by row, by role.

    Rows get their full names from the click layer if it has them. If colours follow a function of
    the values, the heat map's customdata holds the values themselves.
    """
    z = np.array([numbers(row) for row in trace["z"]])
    n_rows, n_columns = z.shape
    rows = trace["y"] if trace.get("y") is not None else range(n_rows)
    columns = trace["x"] if trace.get("x") is not None else range(n_columns)
    values: dict[str, Any] = {
        "y": np.repeat(_coordinates(rows, axis_key(trace, "y") in categories), n_columns),
        "x": np.tile(_coordinates(columns, axis_key(trace, "x") in categories), n_rows),
    }
    told = [c["customdata"] for c in clicks if len(c.get("customdata") or []) == z.size]
    if told and all(isinstance(cell, str) and "|" in cell for cell in told[0]):
        values["y"] = np.array([cell.rpartition("|")[0] for cell in told[0]], dtype=object)
    values["value"] = z.ravel()
    if trace.get("customdata") is not None:
        exact = np.concatenate([numbers(row) for row in trace["customdata"]])
        if not np.array_equal(exact, values["value"], equal_nan=True):
            values["exact"] = exact
    if trace.get("text") is not None:
        values["mark"] = [plain(mark or "") for row in trace["text"] for mark in row]
    return values


def _coordinates(values: Iterable[Any], names: bool) -> np.ndarray:
    return np.array([plain(v) for v in values], dtype=object) if names else numbers(values)


def _names(
    trace: Mapping[str, Any],
    values: Mapping[str, Any],
    layout: Mapping[str, Any],
    mapped: Collection[str],
) -> dict[str, str]:
    """Return distinct column names by role: the figure's titles, or a default.

    `mapped` are the axes of heat maps, which hold rows and columns.
    """
    wanted = {
        "colour": plain(title(colour_bar(trace)), " ") or "colour",
        "value": plain(title(colour_bar(trace)), " ") or "value",
        "label": "gene" if _all_italic(trace.get("text")) else "label",
    }
    for letter, usual in (("x", "column"), ("y", "row")):
        is_name = not isinstance(values[letter], np.ndarray)
        on_map = axis_key(trace, letter) in mapped
        usual = usual if on_map else "name" if is_name else letter
        usual = "gene" if is_name and _all_italic(trace.get(letter)) else usual
        wanted[letter] = plain(_axis_title(trace, letter, layout), " ") or usual
        wanted |= {
            f"{letter}-": f"{wanted[letter]}, lower",
            f"{letter}+": f"{wanted[letter]}, upper",
        }
    if _is_transformed(colour_bar(trace)):
        wanted |= {"exact": wanted["value"], "value": f"{wanted['value']} (colour scale)"}
    names: dict[str, str] = {}
    for role in values:
        name = wanted.get(role, role)
        names[role] = f"{name} ({role})" if name in {*names.values(), SERIES, SELECTED} else name
    return names


def _axis_title(trace: Mapping[str, Any], letter: str, layout: Mapping[str, Any]) -> str:
    """Return the title of the axis, or of the axis that it matches."""
    own = axis(layout, trace, letter)
    return title(own) or title(axis(layout, {f"{letter}axis": own.get("matches", "?")}, letter))


def _is_transformed(bar: Mapping[str, Any]) -> bool:
    """Return whether the tick labels of a colour bar differ from the tick positions."""
    ticks, texts = bar.get("tickvals"), bar.get("ticktext")
    if ticks is None or texts is None or _is_text(texts):
        return False
    return not np.allclose(numbers(ticks), [float(t) for t in texts], rtol=0.05)


def _all_italic(values: Any) -> bool:
    return isinstance(values, list) and len(values) > 0 and all(is_italic(v) for v in values)


def _joined(parts: list[dict[str, Any]]) -> pd.DataFrame:
    """Join the layers into one table, text columns first; missing columns are left empty."""
    whole: dict[str, list[Any]] = {name: [] for part in parts for name in part}
    for part in parts:
        size = len(part[SERIES])
        for name, column in whole.items():
            column.extend(part[name] if name in part else [None] * size)
    whole = {name: _without_gaps(column) for name, column in whole.items()}
    table = pd.DataFrame(
        {name: pd.Series(column, dtype=_dtype(column)) for name, column in whole.items()}
    )
    if SERIES in table and not table[SERIES].any():
        table = table.drop(columns=SERIES)
    text = [name for name in table if table[name].dtype == object]
    return table[[*text, *table.columns.drop(text)]]


def _without_gaps(column: list[Any]) -> list[Any]:
    """Replace missing values of a text column by ""."""
    is_text = any(isinstance(value, str) for value in column)
    return ["" if value is None else value for value in column] if is_text else column


def _dtype(column: list[Any]) -> str:
    known = [value for value in column if value is not None]
    if any(isinstance(value, str) for value in known):
        return "object"
    return "bool" if known and all(isinstance(v, bool | np.bool) for v in column) else "float"


def _decoded(part: Any) -> Any:
    """Return Plotly's JSON with its base64 arrays as lists."""
    if isinstance(part, list):
        return [_decoded(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "bdata" not in part:
        return {key: _decoded(value) for key, value in part.items()}
    flat = np.frombuffer(base64.b64decode(part["bdata"]), dtype=part["dtype"])
    shape = [int(n) for n in str(part["shape"]).split(",")] if "shape" in part else [-1]
    return flat.reshape(shape).tolist()
