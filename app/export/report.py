"""Views that were kept, as one report and as a folder of files. Knows nothing of Streamlit.

What a view holds is kept as it was shown: figures as Plotly's JSON, tables as they are, texts as
Markdown of our own in which names from files are escaped.
"""

from __future__ import annotations

import datetime
import hashlib
import html
import json
import platform
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.export import html_page, static_figures
from samsvae_core.analysis import enrichment_export
from samsvae_core.analysis.held_out import as_text
from samsvae_core.bundle.layout import to_json, version

SHOWN = 50  # rows of a table in the report
LARGE = 500_000  # bytes of SVG above which the report takes the PNG
COLUMNS = 16_384  # that Excel takes
LONGEST = 60  # characters of a file name, without its ending
PACKAGES = (*enrichment_export.PACKAGES, "plotly", "matplotlib")
UNSAFE = re.compile(r'[<>:"/\\|?*%]')  # in names of files, on one system or another
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
ODD = (ValueError, TypeError, KeyError, IndexError)  # what a figure beyond `prints` may end in
WORDS = "words"  # of a view, as a file
HOME = "overview"  # the page whose address is empty
UMAP = (
    "McInnes, Healy and Melville, UMAP: Uniform Manifold Approximation and Projection for "
    "Dimension Reduction, arXiv:1802.03426, 2018."
)
TERMS = {  # one sentence each
    "shift": "A predicted shift is what the perturbations change in the decoded expression of a "
    "gene, averaged over reference control cells and posterior draws; how many of each is told "
    "with the figure, and the draws have the seed 0.",
    "dosage": "The latent shifts of perturbations, each times its dosage, are added up and decoded "
    "together.",
    "interval": "Intervals are 90 % intervals: the model's own, from draws of its posterior, or "
    "calibrated on validation cells.",
    "mask": "A perturbation uses a mechanism where the posterior probability of its mask entry is "
    "above a half.",
    "evidence": "The evidence of a mask entry is what it adds to the predictive bound of held-out "
    "cells, in nats per cell.",
    "loading": "The loading of a gene on a mechanism is the change of its decoded expression when "
    "basal states move along that mechanism alone.",
    "observed": "Observed shifts are measured differences from control cells, with jackknife "
    "standard errors over cells.",
    "held out": "Scores on Overview compare predictions with cells that were kept out of training.",
    "map": "Maps of cells and of perturbations are UMAPs, in which neighbours have a meaning and "
    "distances between far groups have none.",
    "sets": "Gene sets were tested by preranked enrichment analysis and by over-representation, "
    "with false discovery rates by Benjamini and Hochberg over the tests of one mechanism and "
    "collection.",
    "partners": "Partners are pairs of perturbations ranked by the mean predicted shift of the "
    "genes asked for.",
}
TOLD = {  # which of these by page
    HOME: ("held out", "mask", "map"),
    "perturbation": ("shift", "interval", "mask", "evidence", "observed"),
    "masks": ("mask", "evidence", "map"),
    "compose": ("shift", "dosage", "interval", "observed"),
    "mechanism": ("mask", "loading", "sets"),
    "gene": ("shift", "interval", "loading", "observed"),
    "cells": ("map",),
    "partners": ("shift", "interval", "partners"),
    "gene_sets": ("loading", "sets"),
}


@dataclass(frozen=True)
class Picture:
    """A figure: a name for its files, what it shows in words, and Plotly's JSON."""

    name: str
    alt: str
    figure: str | go.Figure

    @property
    def json(self) -> str:
        return self.figure if isinstance(self.figure, str) else str(self.figure.to_json())


@dataclass(frozen=True)
class Table:
    """A table without its index; the caption is Markdown."""

    name: str
    caption: str
    frame: pd.DataFrame


@dataclass(frozen=True)
class Text:
    """Something said, in Markdown."""

    markdown: str


@dataclass(frozen=True)
class Kept:
    """A view as it was shown, the address that shows it again, and the model it is of.

    `address` is the page with its query; `model` the bundle's name and title; `when` a date as
    text.
    """

    title: str
    address: str
    model: str
    checksum: str
    when: str
    items: tuple[Picture | Table | Text, ...]

    @property
    def page(self) -> str:
        return self.address.partition("?")[0].strip("/") or HOME


class EmptyBasketError(ValueError):
    """Nothing to report on."""


def add(kept: Sequence[Kept], view: Kept) -> tuple[Kept, ...]:
    """The views with this one; the same view of the same model, kept before, gives way to it."""

    def same(other: Kept) -> bool:
        return (other.title, other.address, other.checksum) == (
            view.title,
            view.address,
            view.checksum,
        )

    if not any(map(same, kept)):
        return (*kept, view)
    return tuple(view if same(other) else other for other in kept)


def report(kept: Sequence[Kept], about: Mapping[str, str]) -> bytes:
    """One HTML file with everything that was kept. Raises EmptyBasketError.

    `about` may say `title`, `created` (a date as text), and for the methods `draws` and `seed`.
    """
    return _report(kept, about, _printed_all(kept, ["svg"]))


def files(kept: Sequence[Kept], about: Mapping[str, str], session: bytes) -> dict[str, bytes]:
    """Every file by name, for a zip; the manifest tells sha256 and size of the rest.

    Numbers in CSV and TSV have all their digits and names are exactly as they are; spreadsheets
    should open the workbook. What cannot be drawn has its data and a note. Raises EmptyBasketError.
    """
    printed = _printed_all(kept, ["svg", "png"])
    found: dict[str, bytes] = {"report.html": _report(kept, about, printed)}
    folders = _distinct(f"{n:02d} {_folder(view)}" for n, view in enumerate(kept, start=1))
    sheets: dict[str, pd.DataFrame] = {}
    notes: list[str] = []
    views = []
    at = 0
    for folder, view in zip(folders, kept, strict=True):
        texts = [item.markdown for item in view.items if isinstance(item, Text)]
        if texts:
            found[f"{folder}/{WORDS}.md"] = ("\n\n".join(texts) + "\n").encode()
        drawn = [item for item in view.items if not isinstance(item, Text)]
        stems = _distinct([WORDS, *(item.name for item in drawn)])[1:]
        for stem, item in zip(stems, drawn, strict=True):
            path = f"{folder}/{stem}"
            if isinstance(item, Picture):
                still, at = printed[at], at + 1
                found |= {f"{path}.{kind}": content for kind, content in still.files.items()}
                notes += [f"{path}: {still.note}"] if still.note else []
            else:
                found[f"{path}.csv"] = enrichment_export.separated(item.frame)
                found[f"{path}.tsv"] = enrichment_export.separated(item.frame, "\t")
                if (
                    0 < len(item.frame.columns) < COLUMNS
                    and len(item.frame) <= enrichment_export.ROWS
                ):
                    name = enrichment_export.sheet_name(f"{folder[:2]} {item.name}".strip(), sheets)
                    sheets[name] = _for_excel(item.frame)
                else:
                    notes.append(f"{path}: not in tables.xlsx, as no sheet can hold it.")
        views.append(
            {
                "folder": folder,
                "title": view.title,
                "address": view.address,
                "model": view.model,
                "checksum": view.checksum,
                "kept": view.when,
            }
        )
    if sheets:
        found["tables.xlsx"] = enrichment_export.workbook_of(sheets)
    found["methods.md"] = methods(kept).encode()
    found["session.json"] = session
    found["README.txt"] = _guide(kept, folders, notes).encode()
    manifest = {
        "created": _created(about),
        "about": dict(about),
        "versions": {"Python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "views": views,
        "notes": notes,
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in found.items()
        },
    }
    return found | {"manifest.json": to_json(manifest)}


def methods(kept: Sequence[Kept]) -> str:
    """Markdown: software and models, what the terms of the kept views mean, and what to cite."""
    models = dict.fromkeys((view.model, view.checksum) for view in kept)
    named = "; ".join(f"{as_text(m)} (checksum {as_text(c[:12])})" for m, c in models)
    told = list(dict.fromkeys(term for view in kept for term in TOLD.get(view.page, ())))
    if any(_is_of_sets(item) for view in kept for item in view.items):
        told = list(dict.fromkeys([*told, "sets"]))
    texts = (item.markdown for view in kept for item in view.items if isinstance(item, Text))
    cautions = list(dict.fromkeys(text for text in texts if text.startswith("**Caution.**")))
    lines = [
        "# Methods",
        "",
        f"Made with SAMS-VAE Explorer {version('samsvae-explorer')} from "
        f"{'the model' if len(models) == 1 else 'the models'} {named}. SAMS-VAE is the sparse "
        "additive mechanism shift variational autoencoder of Bereket and Karaletsos (2023).",
        "",
        *cautions,
        " ".join(TERMS[term] for term in told),
        "",
        "## References",
        "",
    ]
    known = enrichment_export.REFERENCES.splitlines()
    cited = [*known[: len(known) if "sets" in told else 1], *([UMAP] if "map" in told else [])]
    return "\n".join([*lines, *(f"- {reference}" for reference in cited)]) + "\n"


class _Printed(NamedTuple):
    """The files of a figure by kind; what could not be made is told in the note."""

    files: dict[str, bytes]
    note: str = ""


def _printed_all(kept: Sequence[Kept], kinds: Sequence[static_figures.Kind]) -> list[_Printed]:
    if not kept:
        raise EmptyBasketError(
            "Nothing is kept, so there is nothing to report on. Keep a view on any page first."
        )
    pictures = [item for view in kept for item in view.items if isinstance(item, Picture)]
    return [_printed(picture, kinds) for picture in pictures]


def _printed(picture: Picture, kinds: Sequence[static_figures.Kind]) -> _Printed:
    """Its data and its picture; of a figure that is too odd for them the figure itself as JSON."""
    try:
        data = {"csv": enrichment_export.separated(static_figures.data(picture.json))}
    except ODD as error:
        return _Printed({"json": picture.json.encode()}, f"kept as Plotly's JSON only. {error}")
    try:
        return _Printed(data | {kind: static_figures.drawn(picture.json, kind) for kind in kinds})
    except ODD as error:
        return _Printed(data, f"data only, the figure could not be drawn. {error}")


def _report(kept: Sequence[Kept], about: Mapping[str, str], printed: Sequence[_Printed]) -> bytes:
    heading = about.get("title") or "Report"
    made = f"Made with SAMS-VAE Explorer {version('samsvae-explorer')}, {_created(about)}"
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


def _figure_in_words(picture: Picture, number: int, still: _Printed) -> str:
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


def _is_of_sets(item: Picture | Table | Text) -> bool:
    return isinstance(item, Table) and "fdr" in [str(c).lower() for c in item.frame.columns]


def _created(about: Mapping[str, str]) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return about.get("created") or now


def _folder(view: Kept) -> str:
    named = view.title.casefold().startswith(view.page.replace("_", " ").casefold())
    title = view.title.replace(": ", " ")
    return title if named else f"{view.page} {title}"


def _safe(wanted: str) -> str:
    """A name that every system takes for a file or folder, without an ending."""
    text = unicodedata.normalize("NFC", wanted)
    text = "".join(c if unicodedata.category(c)[0] not in "CZ" else " " for c in text)
    text = UNSAFE.sub("_", text)[:LONGEST]
    text = text.encode()[: 2 * LONGEST].decode(errors="ignore")
    text = " ".join(text.split()).strip(". ") or "unnamed"
    return f"_{text}" if RESERVED.fullmatch(text) else text


def _distinct(wanted: Iterable[str]) -> list[str]:
    """Safe names, no two alike in any case of letters."""
    found: list[str] = []
    taken: set[str] = set()
    for name in map(_safe, wanted):
        ends = ["", *(f" {n}" for n in range(2, len(taken) + 3))]
        fresh = next(name + end for end in ends if (name + end).casefold() not in taken)
        taken.add(fresh.casefold())
        found.append(fresh)
    return found


def _for_excel(frame: pd.DataFrame) -> pd.DataFrame:
    """Texts and numbers only, and columns of different names, as a sheet is written."""
    columns: dict[str, pd.Series] = {}
    for place, name in enumerate(map(str, frame.columns)):
        column = frame.iloc[:, place].reset_index(drop=True)
        if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype == bool:
            column = column.map(lambda v: "" if pd.isna(v) else str(v)).astype(object)
        columns[name if name not in columns else f"{name} ({place + 1})"] = column
    return pd.DataFrame(columns)


def _guide(kept: Sequence[Kept], folders: Sequence[str], notes: Sequence[str]) -> str:
    """What is in here, for whoever unpacks it."""
    lines = [
        "report.html    everything in one page, for any browser; needs no network",
        "tables.xlsx    every table on a sheet of its own; open this in a spreadsheet",
        "methods.md     how it was made, and what to cite",
        "session.json   opens the same views again: Open a session file, on the page Report",
        "manifest.json  versions, date, address and checksum of each view, sha256 of each file",
        "",
        "A folder for each view, with figures as SVG and PNG, their data as CSV, and tables as CSV",
        "and TSV. Numbers have all their digits and names are as in the data; an apostrophe is put",
        "before a text that a spreadsheet would take for a formula:",
        "",
    ]
    for folder, view in zip(folders, kept, strict=True):
        lines.append(f"{folder}/  {view.address or '/'}  of {view.model}")
    if notes:
        lines += ["", "Notes", *notes]
    return "\n".join(lines) + "\n"
