"""An HTML page that needs nothing from outside: one file with its figures, for any browser.

Knows nothing of Streamlit. The page itself forbids every request; figures are drawn by the Plotly
that is written into it, on a light ground whatever the theme they were kept in. The HTML is in
report.html.j2, which escapes what is not a Markup.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from app.figures.style import FAINT, FONT, INK

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
MARKDOWN.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)


def page(figures: Iterable[str], **content: Any) -> bytes:
    """The file: report.html.j2 with its `content`, and the `figures` (Plotly's JSON) it draws."""
    kept = [Markup(_inert(figure)) for figure in figures]
    lighter = {INK[True]: INK[False], FAINT[True]: FAINT[False]}
    return (
        TEMPLATES.get_template("report.html.j2")
        .render(
            figures=kept,
            plotly=Markup(get_plotlyjs() if kept else ""),
            lighter=Markup(json.dumps(lighter)),
            policy=POLICY,
            ink=INK[False],
            faint=FAINT[False],
            font=FONT,
            **content,
        )
        .encode()
    )


def address(content: bytes, kind: str) -> str:
    """The content itself as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def name(text: object) -> Markup:
    """Text from a file: never markup, and of any direction without turning what is around it."""
    return Markup("<bdi>{}</bdi>").format(text)


def prose(markdown: str) -> Markup:
    """Markdown of our own as HTML: emphasis, lists, tables; tags and links stay text."""
    return Markup(MARKDOWN.render(markdown))


def _inert(figure: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return figure.replace("<", "\\u003c")
