"""Run axe-core over every page of the real dashboard, light and dark, and print its findings.

python scripts/axe.py                      # fetches axe-core with npm into a temporary folder
python scripts/axe.py path/to/axe.min.js   # uses this one; exit status 1 for a serious finding
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
SERIOUS = ("serious", "critical")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
SCREEN = f"data={DATA.name}%2Fpapalexi2021_thp1.h5ad"
COMPOSED = "compose?c=STAT1%3A1%2CSMAD4%3A1"


def nothing(page: Page) -> None:
    """Leave the page as it is."""


def click_a_mask(page: Page) -> None:
    """Open the card of an entry of the map."""
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".nsewdrag").first.wait_for()
    box = plot.locator(".scatterlayer .point").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_role("link", name="Open mechanism").first.wait_for()


def open_save(page: Page) -> None:
    """Open the files of a figure."""
    page.get_by_role("button", name="Save").first.click()
    page.get_by_role("button", name="Data (CSV)").first.wait_for()


def find(page: Page) -> None:
    """Search for a gene."""
    box = page.get_by_role("textbox", name="Find", exact=True)
    box.fill("STAT1")
    box.press("Enter")
    page.get_by_role("button", name="STAT1 (perturbation)").wait_for()


def begin_tour(page: Page) -> None:
    page.get_by_role("button", name="Two-minute tour").click()
    page.get_by_text("1 of 6").wait_for()


def keep(page: Page) -> None:
    """Keep a view for the report."""
    page.get_by_role("button", name="Keep this view").first.click()
    page.get_by_role("link", name="1 view kept").click()
    page.get_by_role("button", name="HTML report").wait_for()


class State(NamedTuple):
    """A page as a person may see it: its address, and what is done there."""

    name: str
    path: str
    act: Callable[[Page], None] = nothing


STATES = (
    State("overview", ""),
    State("overview, on tour", "", begin_tour),
    State("overview, finding", "", find),
    State("perturbation", "perturbation?p=STAT1"),
    State("masks", "masks"),
    State("masks, a cell clicked", "masks", click_a_mask),
    State("masks, comparing", "masks?chosen=STAT1%2CSTAT2"),
    State("compose, empty", "compose"),
    State("compose, observed", "compose?c=STAT1%3A1"),
    State("compose, volcano", COMPOSED + "&part=Volcano"),
    State("compose, interaction", COMPOSED + "&part=Interaction"),
    State("compose, two", COMPOSED + "&off=0&b=STAT1%3A1&part=A+against+B"),
    State("compose, gene sets", COMPOSED + "&part=Gene+sets"),
    State("compose, code", COMPOSED + "&part=Code"),
    State("compose, saving a figure", COMPOSED, open_save),
    State("mechanism", "mechanism"),
    State("gene", "gene"),
    State("cells", "cells"),
    State("partners", "partners"),
    State("gene sets", "gene_sets"),
    State("report, empty", "report"),
    State("report", "gene", keep),
    State("data, empty", "data"),
    State("data", f"data?{SCREEN}"),
    State("train, empty", "train"),
    State("train", f"train?{SCREEN}&key=perturbation"),
    State("glossary", "glossary"),
    State("system", "system"),
)


class Excepted(NamedTuple):
    """A finding due to Streamlit: its rule, a part of the element's HTML, and why."""

    rule: str
    html: str
    reason: str


SECTIONS = "Streamlit puts the pages of a section into a div between the list and its items"
EXCEPTIONS: tuple[Excepted, ...] = (
    Excepted("list", 'data-testid="stSidebarNavItems"', SECTIONS),
    Excepted("listitem", '<li class="st-emotion-cache-1ag8dug', SECTIONS),
)


OURS = "ours"


class Finding(NamedTuple):
    """A rule that elements of a page break: how many, an example, and whose they are."""

    page: str
    theme: str
    impact: str
    rule: str
    nodes: int
    example: str
    whose: str


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axe", nargs="?", type=Path, help="axe.min.js; fetched by npm if not given")
    path = parser.parse_args().axe
    with tempfile.TemporaryDirectory() as folder:
        source = (path or fetched(Path(folder))).read_text()
    found: list[Finding] = []
    with dashboard() as url, sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for theme in ("light", "dark"):
            size = {"width": 1440, "height": 1000}
            context = browser.new_context(viewport=size, color_scheme=theme)
            for state in STATES:
                page = context.new_page()
                here = list(findings(page, url, state, theme, source))
                print(f"{state.name}, {theme}: {len(here)} findings", file=sys.stderr, flush=True)
                found += here
                page.close()
        browser.close()
    print("| page | theme | impact | rule | nodes | one of them | whose |")
    print("|---|---|---|---|---|---|---|")
    for one in found:
        print("| " + " | ".join(str(part).replace("|", "\\|") for part in one) + " |")
    wrong = [one for one in found if one.impact in SERIOUS and one.whose == OURS]
    print(f"{len(STATES)} states, 2 themes: {len(found)} findings, {len(wrong)} serious of ours.")
    return 1 if wrong else 0


def findings(page: Page, url: str, state: State, theme: str, axe: str) -> Iterator[Finding]:
    """Yield what axe finds on one page; excepted elements are listed separately."""
    page.goto(f"{url}/{state.path}")
    settled(page)
    state.act(page)
    settled(page)
    page.evaluate(axe)
    result = page.evaluate("rules => axe.run({runOnly: {type: 'tag', values: rules}})", RULES)
    for violation in result["violations"]:
        by_owner: dict[str, list[Any]] = {}
        for node in violation["nodes"]:
            by_owner.setdefault(owner(violation["id"], node["html"]), []).append(node)
        for whose, nodes in by_owner.items():
            example = " ".join(nodes[0]["html"].split())[:100]
            yield Finding(
                state.name,
                theme,
                violation["impact"],
                violation["id"],
                len(nodes),
                f"`{example}`: {' '.join(nodes[0]['failureSummary'].split())[:200]}",
                whose,
            )


def owner(rule: str, html: str) -> str:
    """Return whether a finding is ours, or Streamlit's with the reason."""
    for known in EXCEPTIONS:
        if known.rule == rule and known.html in html:
            return f"Streamlit's: {known.reason}"
    return OURS


def settled(page: Page) -> None:
    page.wait_for_selector(".st-key-end", timeout=60_000)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    page.wait_for_timeout(700)  # lets fade-ins finish, which lower the contrast


def fetched(folder: Path) -> Path:
    """Return axe-core's script, fetched by npm and unpacked."""
    npm = shutil.which("npm")
    if npm is None:
        raise SystemExit("There is no npm here: name the path of axe.min.js.")
    subprocess.run([npm, "pack", "--silent", "axe-core"], cwd=folder, check=True)
    with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as packed:
        packed.extract("package/axe.min.js", folder, filter="data")
    return folder / "package" / "axe.min.js"


@contextmanager
def dashboard() -> Iterator[str]:
    """Run the dashboard on the shipped models at a free port; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.headless=true"]
    server = subprocess.Popen(
        [*command, "--server.port", port],
        cwd=ROOT,
        env=os.environ
        | {"SAMSVAE_MODELS": str(ROOT / "pretrained"), "SAMSVAE_DATA_DIRS": str(DATA)},
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/_stcore/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            raise SystemExit("The dashboard does not answer.")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


if __name__ == "__main__":
    sys.exit(main())
