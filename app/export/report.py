"""Kept views as one HTML report and as a zip of files.

A view holds what was shown: figures as Plotly's JSON, tables, and texts as our own Markdown, in
which names from files are escaped.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence

import pandas as pd

from app.export import static_figures
from app.export.items import Picture, SavedView, Text
from app.export.methods import methods
from app.export.report_page import Printed, as_page, created_at, distinct
from samsvae_core.analysis import enrichment_export
from samsvae_core.bundle.layout import to_json, version

COLUMNS = 16_384  # Excel's limit
PACKAGES = (*enrichment_export.PACKAGES, "plotly", "matplotlib")
ODD = (ValueError, TypeError, KeyError, IndexError)  # raised for figures we cannot draw
WORDS = "words"  # name of the file with a view's texts


class EmptyBasketError(ValueError):
    """Raised when no view is kept, so there is nothing to report."""


def add(kept: Sequence[SavedView], view: SavedView) -> tuple[SavedView, ...]:
    """Return the views with this one added; it replaces the same view of the same model."""

    def same(other: SavedView) -> bool:
        return (other.title, other.address, other.checksum) == (
            view.title,
            view.address,
            view.checksum,
        )

    if not any(map(same, kept)):
        return (*kept, view)
    return tuple(view if same(other) else other for other in kept)


def report(kept: Sequence[SavedView], about: Mapping[str, str]) -> bytes:
    """Return one HTML file with all kept views; raises EmptyBasketError without any.

    `about` may have `title`, `created` (a date as text), and for the methods `draws` and `seed`.
    """
    return as_page(kept, about, _printed_all(kept, ["svg"]))


def files(kept: Sequence[SavedView], about: Mapping[str, str], session: bytes) -> dict[str, bytes]:
    """Return the files of the zip by name; the manifest has the sha256 and size of the others.

    CSV and TSV files have all digits and unchanged names; the workbook is for spreadsheets. A
    figure that cannot be drawn has its data and a note. Raises EmptyBasketError.
    """
    printed = _printed_all(kept, ["svg", "png"])
    found: dict[str, bytes] = {"report.html": as_page(kept, about, printed)}
    folders = distinct(f"{n:02d} {_folder(view)}" for n, view in enumerate(kept, start=1))
    sheets: dict[str, pd.DataFrame] = {}
    notes: list[str] = []
    views = []
    at = 0
    for folder, view in zip(folders, kept, strict=True):
        texts = [item.markdown for item in view.items if isinstance(item, Text)]
        if texts:
            found[f"{folder}/{WORDS}.md"] = ("\n\n".join(texts) + "\n").encode()
        drawn = [item for item in view.items if not isinstance(item, Text)]
        stems = distinct([WORDS, *(item.name for item in drawn)])[1:]
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
    return found | {"manifest.json": _manifest(about, views, notes, found)}


def _manifest(
    about: Mapping[str, str],
    views: Sequence[Mapping[str, object]],
    notes: Sequence[str],
    found: Mapping[str, bytes],
) -> bytes:
    """Return the manifest of a zip, with the sha256 and size of every file in it."""
    return to_json(
        {
            "created": created_at(about),
            "about": dict(about),
            "versions": {"Python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
            "views": views,
            "notes": notes,
            "files": {
                name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
                for name, content in found.items()
            },
        }
    )


def _printed_all(kept: Sequence[SavedView], kinds: Sequence[static_figures.Kind]) -> list[Printed]:
    if not kept:
        raise EmptyBasketError(
            "Nothing is kept, so there is nothing to report on. Keep a view on any page first."
        )
    pictures = [item for view in kept for item in view.items if isinstance(item, Picture)]
    return [_printed(picture, kinds) for picture in pictures]


def _printed(picture: Picture, kinds: Sequence[static_figures.Kind]) -> Printed:
    """Return a figure's files: its data and drawings, or only its JSON if we cannot read it."""
    try:
        data = {"csv": enrichment_export.separated(static_figures.data(picture.json))}
    except ODD as error:
        return Printed({"json": picture.json.encode()}, f"kept as Plotly's JSON only. {error}")
    try:
        return Printed(data | {kind: static_figures.drawn(picture.json, kind) for kind in kinds})
    except ODD as error:
        return Printed(data, f"data only, the figure could not be drawn. {error}")


def _folder(view: SavedView) -> str:
    named = view.title.casefold().startswith(view.page.replace("_", " ").casefold())
    title = view.title.replace(": ", " ")
    return title if named else f"{view.page} {title}"


def _for_excel(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table for a sheet: only texts and numbers, and distinct column names."""
    columns: dict[str, pd.Series] = {}
    for place, name in enumerate(map(str, frame.columns)):
        column = frame.iloc[:, place].reset_index(drop=True)
        if not pd.api.types.is_numeric_dtype(column.dtype) or column.dtype == bool:
            column = column.map(lambda v: "" if pd.isna(v) else str(v)).astype(object)
        columns[name if name not in columns else f"{name} ({place + 1})"] = column
    return pd.DataFrame(columns)


def _guide(kept: Sequence[SavedView], folders: Sequence[str], notes: Sequence[str]) -> str:
    """Return the README of the zip."""
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
