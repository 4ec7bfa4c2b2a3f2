"""The parts of a report: figures, tables, texts, and the kept views that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go

from app.pages import HOME


@dataclass(frozen=True)
class Picture:
    """A figure: a name for its files, a description, and Plotly's JSON."""

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
    """A text in Markdown."""

    markdown: str


@dataclass(frozen=True)
class SavedView:
    """A kept view: what it showed, the address that shows it again, and its model.

    `address` is the page with its query, `model` the bundle's name and title, and `when` a date as
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
