"""Take the screenshots of the README and the docs from the real dashboard, in Chromium.

python scripts/screenshots.py            # writes docs/images/*.png; needs Chromium and playwright
python scripts/screenshots.py masks      # one view only

The views of data need the file papalexi2021_thp1.h5ad in SAMSVAE_DATA (default ../shared/data).
Each view is taken from its top, wide and narrow, light and dark, once it has stopped changing.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images"
MODEL = "model=papalexi2021"
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
SCREEN = f"data={DATA.name}%2Fpapalexi2021_thp1.h5ad"
COMPOSED = f"/compose?c=STAT1%3A1%2CSMAD4%3A1&part=Volcano&{MODEL}"
VIEWS = {
    "overview": f"/?{MODEL}",
    "perturbation": f"/perturbation?p=STAT1&{MODEL}",
    "masks": f"/masks?{MODEL}",
    "compose": COMPOSED,
    "mechanism": f"/mechanism?{MODEL}",
    "gene": f"/gene?g=PSMB9&{MODEL}",
    "cells": f"/cells?{MODEL}",
    "partners": f"/partners?{MODEL}",
    "gene_sets": f"/gene_sets?{MODEL}",
    "data": f"/data?{SCREEN}",
    "train": f"/train?{SCREEN}&key=perturbation",
    "report": COMPOSED,  # its first view is kept there
    "glossary": f"/glossary?{MODEL}",
    "system": f"/system?{MODEL}",
}
WIDE, NARROW = {"width": 1440, "height": 1200}, {"width": 420, "height": 900}
SIZES = {"": WIDE, "-narrow": NARROW}
SCHEMES = {"": "light", "-dark": "dark"}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
STILL = 0.8  # seconds without any change
PATIENCE = 90  # seconds
# Whether script, figures and fonts are done; and the sizes of all elements.
STATE = """() => {
  const app = document.querySelector('[data-testid="stApp"]');
  const charts = [...document.querySelectorAll('[data-testid="stPlotlyChart"]')];
  const waiting = '[data-testid="stSkeleton"], [data-testid="stSpinner"], [data-stale="true"]';
  const settled = app?.dataset.testScriptState === 'notRunning'
    && document.querySelector('.st-key-end') !== null
    && document.querySelector(waiting) === null
    && document.fonts.status === 'loaded'
    && charts.every((chart) => chart.querySelector('.main-svg') !== null);
  const sizes = [...document.querySelectorAll('.stMain *')].map((part) => part.offsetHeight);
  return [settled, sizes.length + ' ' + sizes.reduce((a, b) => a + (b || 0), 0)];
}"""


def main() -> None:
    wanted = sys.argv[1:] or list(VIEWS)
    if unknown := [name for name in wanted if name not in VIEWS]:
        raise SystemExit(f"No view {', '.join(unknown)}. There are {', '.join(VIEWS)}.")
    TARGET.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.headless=true"]
    with tempfile.TemporaryDirectory() as cache:  # as in a fresh installation
        own = {
            "SAMSVAE_CACHE": cache,
            "SAMSVAE_RUNS": f"{cache}/runs",
            "SAMSVAE_DATA_DIRS": str(DATA),
        }
        place = os.environ | own
        server = subprocess.Popen([*command, "--server.port", port], cwd=ROOT, env=place)
        try:
            wait_for(f"http://localhost:{port}/_stcore/health")
            with sync_playwright() as playwright:
                chromium = shutil.which("chromium") or shutil.which("chromium-browser")
                browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
                for name in wanted:
                    for suffix, scheme in SCHEMES.items():
                        take(browser, f"http://localhost:{port}", name, scheme, suffix)
                browser.close()
        finally:
            server.terminate()
            server.wait(timeout=20)


def wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise SystemExit(f"Nothing answers at {url}.")


def take(browser: Browser, address: str, name: str, scheme: str, suffix: str) -> None:
    """Take screenshots of a view in every size, each as a visitor with such a screen sees it."""
    for size, viewport in SIZES.items():
        context = browser.new_context(viewport=WIDE, color_scheme=scheme)
        page = context.new_page()
        if name != "report":
            page.set_viewport_size(viewport)
        page.goto(address + VIEWS[name])
        settle(page)
        if name == "report":
            keep_two(page, viewport)
        target = TARGET / f"{name}{size}{suffix}.png"
        target.write_bytes(smaller(page.screenshot()))
        print(target.relative_to(ROOT), f"{target.stat().st_size / 1024:.0f} kB")
        context.close()


def keep_two(page: Page, viewport: dict[str, int]) -> None:
    """Keep a composition and the masks, and open the report, in one visit."""
    page.get_by_role("button", name="Keep this view").click()
    page.get_by_role("link", name="1 view kept").wait_for()
    page.get_by_role("link", name="Masks", exact=True).click()
    page.get_by_role("heading", name="Masks", exact=True).wait_for()
    settle(page)
    page.get_by_role("button", name="Keep this view").click()
    page.get_by_role("link", name="2 views kept").wait_for()
    page.get_by_role("link", name="Report", exact=True).click()
    page.get_by_role("heading", name="Report", exact=True).wait_for()
    settle(page)
    page.mouse.move(viewport["width"] / 2, viewport["height"] - 10)
    if viewport != WIDE:
        page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
        page.set_viewport_size(viewport)
    settle(page)


def settle(page: Page) -> None:
    """Wait until everything is drawn and nothing has moved for a while."""
    last, since, end = None, time.monotonic(), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        settled, sizes = page.evaluate(STATE)
        if not settled or sizes != last:
            last, since = sizes, time.monotonic()
        elif time.monotonic() - since > STILL:
            return
        page.wait_for_timeout(100)
    raise SystemExit(f"{page.url} does not come to rest within {PATIENCE} s.")


def smaller(content: bytes) -> bytes:
    """Return the same picture in fewer bytes, without a palette, which would show in gradients."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        picture.convert("RGB").save(packed, "png", optimize=True)
    return packed.getvalue()


if __name__ == "__main__":
    main()
