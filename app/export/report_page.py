"""The report as one HTML page."""

from __future__ import annotations

import datetime
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from app.export import html_page, static_figures
from app.export.items import Picture, SavedView, Table
from app.export.methods import methods
from samsvae_core.analysis import enrichment_export
from samsvae_core.bundle.layout import version

SHOWN = 50  # rows of a table in the report
LARGE = 500_000  # bytes of SVG above which the report takes the PNG
LONGEST = 60  # characters of a file name, without its ending
UNSAFE = re.compile(r'[<>:"/\\|?*%]')  # in names of files, on one system or another
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


class Printed(NamedTuple):
    """The files of a figure by kind; what could not be made is told in the note."""

    files: dict[str, bytes]
    note: str = ""


# What the template shows


class Link(NamedTuple):
    """A file of a name and of what, which is held in its address."""

    file: str
    address: str
    what: str


class ShownFigure(NamedTuple):
    """Where a figure is drawn; without scripts the picture at the address `still`, if any."""

    number: int
    alt: str
    height: int
    still: str
    link: Link | None


class Column(NamedTuple):
    """The head of a column; numbers stand at the right."""

    name: str
    is_number: bool


class ShownTable(NamedTuple):
    """The first rows of a table, `part` of it in words, and all of it behind the link."""

    name: str
    columns: list[Column]
    rows: list[tuple[str, ...]]
    part: str
    link: Link
    caption: str


Shown = tuple[str, ShownFigure | ShownTable | str]  # what kind of item it is, and the item


def as_page(
    kept: Sequence[SavedView], about: Mapping[str, str], printed: Sequence[Printed]
) -> bytes:
    figures: list[str] = []
    views = []
    for view in kept:
        shown: list[Shown] = []
        for item in view.items:
            if isinstance(item, Picture):
                still = printed[len(figures)]
                shown.append(("figure", _shown_figure(item, len(figures) + 1, still)))
                figures.append(item.json)
            elif isinstance(item, Table):
                shown.append(("table", _shown_table(item)))
            else:
                shown.append(("text", html_page.prose(item.markdown)))
        views.append({**vars(view), "shown": shown})
    how = methods(kept).replace("\n## ", "\n### ").replace("# Methods", "## Methods", 1)
    return html_page.page(
        figures,
        heading=about.get("title") or "Report",
        made=f"Made with SAMS-VAE Explorer {version('samsvae-explorer')}, {created_at(about)}",
        views=views,
        methods=html_page.prose(how),
    )


def _shown_figure(picture: Picture, number: int, printed: Printed) -> ShownFigure:
    image, kind = printed.files.get("svg"), "image/svg+xml"
    if image is not None and len(image) > LARGE:
        image = printed.files.get("png") or static_figures.drawn(picture.json, "png")
        kind = "image/png"
    height = json.loads(picture.json).get("layout", {}).get("height") or 450
    still = "" if image is None else html_page.address(image, kind)
    data = printed.files.get("csv")
    link = None if data is None else _link(data, picture.name, "its data")
    return ShownFigure(number, picture.alt, int(height), still, link)


def _shown_table(item: Table) -> ShownTable:
    frame = item.frame
    is_number = [
        pd.api.types.is_numeric_dtype(kind) and kind.kind != "b" for kind in frame.dtypes.to_list()
    ]
    columns = [frame.iloc[:, place] for place in range(len(frame.columns))]
    cells = [_cells(column.head(SHOWN), column) for column in columns]
    total = f"{len(frame):,} {'row' if len(frame) == 1 else 'rows'}"
    return ShownTable(
        item.name,
        [Column(str(name), right) for name, right in zip(frame.columns, is_number, strict=True)],
        list(zip(*cells, strict=True)),
        f"The first {SHOWN} of {total}" if len(frame) > SHOWN else total.capitalize(),
        _link(enrichment_export.separated(frame), item.name, f"all {total}"),
        html_page.prose(item.caption),
    )


def _link(content: bytes, name: str, what: str) -> Link:
    return Link(f"{_safe(name)}.csv", html_page.address(content, "text/csv"), what)


def _cells(column: pd.Series, all_values: pd.Series) -> list[str]:
    """Values with the digits that can be read; the file beside them has all of them."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return ["yes" if value else "no" for value in column]
    if pd.api.types.is_integer_dtype(column.dtype):
        return [f"{value:,}" for value in column]
    if not pd.api.types.is_float_dtype(column.dtype):
        return [html_page.name("" if pd.isna(value) else value) for value in column]
    size = all_values.abs()
    size = size[(size > 0) & (size < np.inf)]
    if (size % 1 == 0).all():
        usual = ",.0f"
    else:
        usual = ",.3f" if 0.01 <= size.median() < 1e4 else ".3g"
    return [_number(float(value), usual) for value in column]


def _number(value: float, usual: str) -> str:
    if np.isnan(value):
        return "\u2013"
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:{usual}}"


def created_at(about: Mapping[str, str]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return about.get("created") or now


def _safe(wanted: str) -> str:
    """A name that every system takes for a file or folder, without an ending."""
    text = unicodedata.normalize("NFC", wanted)
    text = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in text)
    text = UNSAFE.sub("_", text)[:LONGEST]
    text = text.encode()[: 2 * LONGEST].decode(errors="ignore")
    text = " ".join(text.split()).strip(". ") or "unnamed"
    return f"_{text}" if RESERVED.fullmatch(text) else text


def distinct(wanted: Iterable[str]) -> list[str]:
    """Safe names, no two alike in any case of letters."""
    found: list[str] = []
    taken: set[str] = set()
    for name in map(_safe, wanted):
        ends = ["", *(f" {n}" for n in range(2, len(taken) + 3))]
        fresh = next(name + end for end in ends if (name + end).casefold() not in taken)
        taken.add(fresh.casefold())
        found.append(fresh)
    return found
