"""Take the pictures of the README and the docs from the real dashboard, in headless Chromium.

python scripts/screenshots.py    # writes docs/images/*.png; needs Chromium and playwright
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "docs" / "images"
VIEWS = {
    "overview": "/?model=papalexi2021",
    "masks": "/masks?model=papalexi2021",
    "compose": "/compose?c=STAT1%3A1%2CSMAD4%3A1&model=papalexi2021",
    "mechanism": "/mechanism?model=papalexi2021",
    "perturbation": "/perturbation?p=STAT1&model=papalexi2021",
    "gene": "/gene?g=PSMB9&model=papalexi2021",
    "cells": "/cells?model=papalexi2021",
    "partners": "/partners?model=papalexi2021",
    "gene_sets": "/gene_sets?model=papalexi2021",
}
SIZES = {"": (1440, 1200, "light"), "-dark": (1440, 1200, "dark"), "-narrow": (420, 900, "light")}
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


def main() -> None:
    TARGET.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py", "--server.headless=true"]
    server = subprocess.Popen([*command, "--server.port", port], cwd=ROOT)
    try:
        wait_for(f"http://localhost:{port}/_stcore/health")
        with sync_playwright() as playwright:
            chromium = shutil.which("chromium") or shutil.which("chromium-browser")
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            for suffix, (width, height, scheme) in SIZES.items():
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                for name, path in VIEWS.items():
                    page = context.new_page()
                    take(page, f"http://localhost:{port}{path}", TARGET / f"{name}{suffix}.png")
                    page.close()
            browser.close()
    finally:
        server.terminate()


def wait_for(url: str) -> None:
    for _ in range(120):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise SystemExit(f"Nothing answers at {url}.")


def take(page: Page, url: str, target: Path) -> None:
    """A picture of the page from its top, once everything on it is drawn."""
    page.goto(url)
    page.wait_for_selector(".st-key-end", state="attached", timeout=60_000)
    page.wait_for_timeout(2500)  # figures and fonts
    page.screenshot(path=target)
    print(target)


if __name__ == "__main__":
    main()
