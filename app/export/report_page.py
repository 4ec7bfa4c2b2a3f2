"""The report as one HTML page."""

from __future__ import annotations

import datetime
import html
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from app.export import html_page, static_figures
from app.export.items import Kept, Picture, Table
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


def as_page(kept: Sequence[Kept], about: Mapping[str, str], printed: Sequence[Printed]) -> bytes:
    heading = about.get("title") or "Report"
    made = f"Made with SAMS-VAE Explorer {version('samsvae-explorer')}, {created_at(about)}"
    contents = "".join(
        f'<li><a href="#view-{n}">{html_page.name(view.title)}</a></li>'
        for n, view in enumerate(kept, start=1)
    )
    parts = [
        f"<header><h1>{html_page.name(heading)}</h1>"
        f'<p class="made">{html.escape(made)}</p></header>',
        f'<nav aria-labelledby="contents"><h2 id="contents">Contents</h2><ol>{contents}'
        '<li><a href="#methods">Methods</a></li></ol></nav><main>',
    ]
    figures: list[str] = []
    for n, view in enumerate(kept, start=1):
        parts.append(f'<section id="view-{n}"><h2>{html_page.name(view.title)}</h2>')
        parts.append(
            html_page.facts(
                {
                    "Model": html_page.name(view.model),
                    "Checksum": f"<code>{html.escape(view.checksum[:12])}</code>",
                    "Kept": html_page.name(view.when),
                    "Address": f"<code>{html_page.name(view.address or '/')}</code>",
                }
            )
        )
        for item in view.items:
            if isinstance(item, Picture):
                parts.append(_figure_in_words(item, len(figures) + 1, printed[len(figures)]))
                figures.append(item.json)
            elif isinstance(item, Table):
                parts.append(_table_in_words(item))
            else:
                parts.append(html_page.prose(item.markdown))
        parts.append("</section>")
    how = methods(kept).replace("\n## ", "\n### ").replace("# Methods", "## Methods", 1)
    parts.append(f'<section id="methods">{html_page.prose(how)}</section></main>')
    parts.append(f'<footer class="made">{html.escape(made)}</footer>')
    return html_page.page(heading, "\n".join(parts), figures)


def _figure_in_words(picture: Picture, number: int, still: Printed) -> str:
    image, kind = still.files.get("svg"), "image/svg+xml"
    if image is not None and len(image) > LARGE:
        image = still.files.get("png") or static_figures.drawn(picture.json, "png")
        kind = "image/png"
    height = json.loads(picture.json).get("layout", {}).get("height") or 450
    said = html.escape(picture.alt)
    data = still.files.get("csv")
    link = f" {_link(data, picture.name, 'its data')}" if data is not None else ""
    return (
        f"<figure>{html_page.plot(number, picture.alt, int(height), image, kind)}"
        f'<figcaption>{said}. <span class="more">{link}</span></figcaption></figure>'
    )


def _table_in_words(item: Table) -> str:
    """The first rows; all of them are in the file that the link holds."""
    frame = item.frame
    is_number = [
        pd.api.types.is_numeric_dtype(kind) and kind.kind != "b" for kind in frame.dtypes.to_list()
    ]
    columns = [frame.iloc[:, place] for place in range(len(frame.columns))]
    rows = zip(*(_cells(column.head(SHOWN), column) for column in columns), strict=True)
    total = f"{len(frame):,} {'row' if len(frame) == 1 else 'rows'}"
    part = f"The first {SHOWN} of {total}" if len(frame) > SHOWN else total.capitalize()
    link = _link(enrichment_export.separated(frame), item.name, f"all {total}")
    return (
        f"<h3>{html_page.name(item.name)}</h3>"
        + html_page.table([html_page.name(column) for column in frame.columns], rows, is_number)
        + f'<p class="more">{part}. {link}</p>'
        + f'<div class="caption">{html_page.prose(item.caption)}</div>'
    )


def _link(content: bytes, name: str, what: str) -> str:
    file = html.escape(f"{_safe(name)}.csv")
    return f'<a download="{file}" href="{html_page.address(content, "text/csv")}">CSV of {what}</a>'


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
