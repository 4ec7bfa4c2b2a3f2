"""An HTML page that needs nothing from outside: one file with its figures, for any browser.

Knows nothing of Streamlit. The page itself forbids every request; figures are drawn by the Plotly
that is written into it, on a light ground whatever the theme they were kept in.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Mapping

from markdown_it import MarkdownIt
from plotly.offline import get_plotlyjs

from app.figures.style import FAINT, FONT, INK

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'"
)
MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")
MARKDOWN.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])


def page(title: str, body: str, figures: Iterable[str]) -> bytes:
    """The file: `body` is HTML, with a `plot` for each of the `figures` (Plotly's JSON)."""
    kept = list(figures)
    scripts = [f"<script>{get_plotlyjs()}</script>"] if kept else []
    scripts += [
        f'<script type="application/json" id="figure-{number}">{_inert(figure)}</script>'
        for number, figure in enumerate(kept, start=1)
    ]
    lighter = {INK[True]: INK[False], FAINT[True]: FAINT[False]}
    scripts += (
        [f"<script>{SCRIPT.replace('LIGHTER', json.dumps(lighter))}</script>"] if kept else []
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n"
        "<noscript><style>.plot { display: none; }</style></noscript>\n</head>\n"
        f"<body>\n{body}\n{''.join(scripts)}\n</body>\n</html>\n"
    ).encode()


def plot(number: int, alt: str, height: int, still: bytes | None, kind: str) -> str:
    """Where a figure is drawn; without scripts a `still` picture of it, of a `kind` of image."""
    picture = (
        f'<img alt="{html.escape(alt)}" src="{address(still, kind)}">'
        if still is not None
        else "<p>This figure needs a browser that runs scripts.</p>"
    )
    return (
        f'<div class="plot" role="group" aria-label="{html.escape(alt)}" '
        f'data-figure="figure-{number}" style="min-height:{height}px"></div>'
        f"<noscript>{picture}</noscript>"
    )


def address(content: bytes, kind: str) -> str:
    """The content itself as an address."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def name(text: object) -> str:
    """Text from a file: never markup, and of any direction without turning what is around it."""
    return f"<bdi>{html.escape(str(text))}</bdi>"


def prose(markdown: str) -> str:
    """Markdown of our own as HTML: emphasis, lists, tables; tags and links stay text."""
    rendered: str = MARKDOWN.render(markdown)
    return rendered


def table(header: Iterable[str], rows: Iterable[Iterable[str]], right: Iterable[bool]) -> str:
    """Cells are HTML already; columns of numbers stand at the right."""
    sides = [' class="number"' if is_number else "" for is_number in right]
    head = "".join(
        f'<th scope="col"{side}>{cell}</th>' for cell, side in zip(header, sides, strict=True)
    )
    lines = (
        "<tr>"
        + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(row, sides, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="Table">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def facts(pairs: Mapping[str, str]) -> str:
    """A short list of what is known; values are HTML already."""
    return (
        "<dl>"
        + "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in pairs.items())
        + "</dl>"
    )


def _inert(figure: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return figure.replace("<", "\\u003c")


STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 3rem 2rem 4rem; max-width: 54rem; background: #fff;
  color: {INK[False]}; font: 16px/1.55 {FONT}; overflow-wrap: anywhere; }}
h1 {{ font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; }}
h2 {{ font-size: 1.45rem; line-height: 1.25; margin: 0 0 .8rem; }}
h3 {{ font-size: 1.05rem; margin: 2rem 0 .4rem; }}
h4, h5, h6 {{ font-size: 1rem; margin: 1.4rem 0 .4rem; }}
p, ul, ol {{ margin: .5rem 0; max-width: 46rem; }}
a {{ color: #0b6e8a; }}
a:focus-visible, .wide:focus-visible {{ outline: 2px solid #0b6e8a; outline-offset: 2px; }}
.made, figcaption, .more, .caption, dt {{ color: #566473; font-size: .875rem; }}
nav {{ margin: 2rem 0 0; padding: 1rem 1.25rem; background: #f4f6f8; border-radius: 4px; }}
nav h2 {{ font-size: 1rem; margin: 0 0 .3rem; }}
nav ol {{ margin: 0; padding-left: 1.4rem; }}
section {{ margin-top: 3rem; padding-top: 2rem; border-top: 1px solid {FAINT[False]}; }}
dl {{ display: flex; flex-wrap: wrap; gap: .3rem 2rem; margin: 0 0 1rem; }}
dd {{ margin: 0; font-size: .9rem; }}
code, .code {{ font: .85rem/1.4 ui-monospace, Menlo, Consolas, monospace; }}
figure {{ margin: 1.5rem 0 2rem; }}
.plot {{ width: 100%; }}
noscript img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; max-height: 28rem; overflow-y: auto; margin: .5rem 0;
  border: 1px solid {FAINT[False]}; border-radius: 4px; }}
table {{ border-collapse: collapse; font-size: .875rem; width: 100%; overflow-wrap: normal; }}
th {{ position: sticky; top: 0; background: #f4f6f8; text-align: left; font-weight: 600; }}
th, td {{ padding: .35rem .75rem; border-bottom: 1px solid {FAINT[False]}; vertical-align: top; }}
tbody tr:last-child td {{ border-bottom: 0; }}
td {{ max-width: 24rem; }}
td:not(.number) {{ min-width: 8rem; overflow-wrap: anywhere; }}
.number {{ text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }}
th.number {{ white-space: normal; }}
footer {{ margin-top: 3rem; padding-top: 1rem; border-top: 1px solid {FAINT[False]}; }}
@media (max-width: 40rem) {{
  body {{ padding: 1.5rem 1rem 3rem; }}
  h1 {{ font-size: 1.6rem; }}
}}
@media print {{
  body {{ max-width: none; padding: 0; font-size: 11pt; }}
  nav, .more a {{ display: none; }}
  .wide {{ max-height: none; overflow: visible; border: 0; }}
  figure, tr, dl {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }}
}}
"""
SCRIPT = """
'use strict';
(function () {
  const lighter = LIGHTER;
  for (const place of document.querySelectorAll('.plot')) {
    let text = document.getElementById(place.dataset.figure).textContent;
    for (const [dark, light] of Object.entries(lighter)) text = text.replaceAll(dark, light);
    const figure = JSON.parse(text);
    for (const trace of figure.data) {
      if (trace.type === 'scattergl') trace.type = 'scatter'; // WebGL needs what the page forbids
    }
    const layout = Object.assign({}, figure.layout, {
      paper_bgcolor: '#ffffff', plot_bgcolor: '#ffffff', dragmode: false, autosize: true
    });
    delete layout.width;
    Plotly.newPlot(place, figure.data, layout, {
      displaylogo: false, responsive: true,
      toImageButtonOptions: { format: 'svg', filename: place.dataset.figure },
      modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d']
    });
  }
  const all = (size) => document.querySelectorAll('.plot').forEach((p) => Plotly.relayout(p, size));
  addEventListener('beforeprint', () => all({ width: 680 })); // of A4 and of letter
  addEventListener('afterprint', () => all({ width: null, autosize: true }));
})();
"""
