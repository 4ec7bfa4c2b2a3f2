"""One server and one Chromium for all browser tests, and a visitor for each."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from samsvae_core.bundle import layout, opening
from tests.browser.person import CHROMIUM

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
WIDE = {"width": 1440, "height": 900}
ODD = {  # odd names of perturbations, and what is odd about each
    "P1": "<img src=x onerror=alert(1)><b>*bold*</b> [link](http://example.org) $x$ :red[r]",
    "P2": "\U0001f9ec \u05d2\u05df \u202e\u05e2\u05d1\u05e8\u05d9\u05ea\u202c \u062c\u064a\u0646",
    "P3": "W" * 200,
}


@pytest.fixture(scope="package")
def served(tiny, tmp_path_factory) -> Path:
    """Return a folder with the small bundle, a damaged one, and one with odd names."""
    models = tmp_path_factory.mktemp("served")
    for name in ("broken", "tiny", "unusual"):
        shutil.copytree(tiny.path, models / name)
    (models / "broken" / "masks.csv").write_text("not a table of masks\n")
    rename(models / "unusual")
    return models


def rename(path: Path) -> None:
    """Give perturbations odd names; in combinations they keep the old ones."""
    manifest = opening.load(path).manifest
    for file in sorted(path.glob("*.csv")) + sorted(path.glob("*.parquet")):
        of_csv = file.suffix == ".csv"
        found = pd.read_csv(file, dtype=str) if of_csv else pd.read_parquet(file)
        columns = [c for c in ("perturbation", "condition") if c in found]
        for column in columns:
            found[column] = found[column].astype(str).replace(ODD)
        if columns:
            found.to_csv(file, index=False) if of_csv else found.to_parquet(file)
    layout.write_manifest(path, manifest["data"], "cpu")


@contextmanager
def dashboard(**environment: str) -> Iterator[str]:
    """Run a server at its own port, with these environment variables; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py"]
    options = ["--server.port", str(port), "--server.headless", "true"]
    process = subprocess.Popen(
        command + options,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://localhost:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "the server ended"
                time.sleep(0.25)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="package")
def server(served):
    """Run the dashboard on these bundles; yields its address."""
    with dashboard(SAMSVAE_MODELS=str(served)) as url:
        yield url


@pytest.fixture(scope="package")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def asked_for():
    """Return the list to which visitors add every address requested and every script error."""
    return []


@pytest.fixture(scope="package")
def visitor(browser, asked_for):
    """Return a function that makes a visitor: a browser context that notes its requests."""

    def made(**options):
        context = browser.new_context(**{"viewport": WIDE} | options)
        context.set_default_timeout(60_000)
        context.on("request", lambda request: asked_for.append(request.url))
        context.on("weberror", lambda error: asked_for.append(f"script error: {error.error}"))
        return context

    return made


@pytest.fixture(scope="package")
def first(visitor):
    """Return a returning visitor, whose browser loads the program only once."""
    context = visitor()
    yield context
    context.close()


@pytest.fixture
def own_server_only(server, asked_for):
    """Fail the test on a request to anywhere but our server, and on an error in a script."""
    asked_for.clear()
    yield
    ours = (server, server.replace("http", "ws", 1), "data:", "blob:", "file:")
    assert not [url for url in asked_for if not url.startswith(ours)]


@pytest.fixture
def page(first, own_server_only):
    """Return a new tab, which has a session of its own."""
    tab = first.new_page()
    yield tab
    tab.close()


@pytest.fixture
def another(visitor, own_server_only):
    """Return a function that makes a tab of another visitor; options are those of a context."""
    made = []

    def tab(**options):
        made.append(visitor(**options))
        return made[-1].new_page()

    yield tab
    for context in made:
        context.close()
