"""What a person does, in a real Chromium: click, choose, download, follow a link."""

import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest

from samsvae_core import terms
from samsvae_core.composition import compose

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
REQUIRED = os.environ.get("SAMSVAE_BROWSER_REQUIRED") == "1"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED, reason="there is no Chromium on this machine"
    ),
]


@pytest.fixture(scope="module")
def server(tiny, tmp_path_factory):
    """The dashboard on the small bundle, at its own port."""
    models = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny.path, models / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/main.py"]
    options = ["--server.port", str(port), "--server.headless", "true"]
    environment = os.environ | {"SAMSVAE_MODELS": str(models)}
    process = subprocess.Popen(
        command + options,
        cwd=ROOT,
        env=environment,
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


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    """A fresh visitor; a request to anywhere but our server fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    tab = context.new_page()
    outside = []
    tab.on(
        "request", lambda r: r.url.startswith((server, "data:", "blob:")) or outside.append(r.url)
    )
    yield tab
    context.close()
    assert not [url for url in outside if not url.startswith("ws://localhost")]


def visit(page, url: str) -> None:
    page.goto(url)
    settled(page)


def settled(page) -> None:
    """The page has reached its end and nothing runs any more."""
    page.wait_for_selector(".st-key-end", timeout=60_000)
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')


def download(page, button: str) -> bytes:
    with page.expect_download() as started:
        page.get_by_role("button", name=button, exact=True).first.click()
    return Path(started.value.path()).read_bytes()


def test_a_newcomer_composes_two_perturbations_and_takes_the_table_away(page, server, tiny):
    visit(page, server)
    page.get_by_role("link", name="Open Compose").click()
    page.get_by_text("No perturbation is chosen").wait_for()
    for name in ("P1", "P3"):
        page.get_by_role("combobox", name="Perturbations").fill(name)
        page.get_by_role("option", name=name, exact=True).click()
        page.get_by_text(f"Dosage of {name}").wait_for()
        page.keyboard.press("Escape")  # an open list hides the rest of the page from readers
    settled(page)
    page.get_by_text("Each part was measured alone").first.wait_for()
    assert "c=P1%3A1%2CP3%3A1" in page.url
    taken = pd.read_csv(io.BytesIO(download(page, "CSV"))).set_index("gene")
    expected = compose(tiny, {"P1": 1.0, "P3": 1.0}).table.dropna(axis=1, how="all")
    pd.testing.assert_frame_equal(
        taken.loc[expected.index], expected, check_dtype=False, check_like=True
    )


def test_the_downloaded_enrichment_table_is_the_one_shown(page, server, tiny):
    visit(page, f"{server}/mechanism")
    page.get_by_role("heading", name="Gene sets").wait_for()
    table = terms.grouped(tiny.enrichment("hallmark").table)
    first = f"M{table['mechanism'].min()}"
    frame = page.get_by_test_id("stDataFrame").filter(has_text="HALLMARK").first
    frame.scroll_into_view_if_needed()
    frame.locator("td", has_text="HALLMARK").first.wait_for(state="attached")
    shown = [cell.text_content() for cell in frame.locator("td[aria-colindex='2']").all()]
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV", exact=True).last.click()
    taken = pd.read_csv(started.value.path())
    expected = table[(table["mechanism"] == int(first[1:])) & (table["method"] == "gsea")]
    best = expected.query("group == term")
    assert shown == taken["term"].tolist() == best["term"].tolist()
    assert taken["fdr"].tolist() == pytest.approx(best["fdr"].tolist())
    book = openpyxl.load_workbook(io.BytesIO(download(page, "XLSX")))
    header, *rows = book[f"{first} hallmark"].iter_rows(values_only=True)
    all_of_it = table[table["mechanism"] == int(first[1:])]
    assert [row[header.index("term")] for row in rows] == all_of_it["term"].tolist()
    assert [row[header.index("p_value")] for row in rows] == pytest.approx(
        all_of_it["p_value"].tolist()
    )


def test_sets_of_ones_own_are_brought_tested_and_taken_away(page, server, tiny):
    visit(page, f"{server}/gene_sets")
    page.get_by_text("Add a collection").click()
    lines = {"=FIRST": tiny.genes[:20], "SECOND": tiny.genes[20:]}
    gmt = "".join("\t".join([term, "mine", *genes]) + "\n" for term, genes in lines.items())
    files = page.locator("input[type=file]").first
    files.set_input_files({"name": "mine.gmt", "mimeType": "text/plain", "buffer": gmt.encode()})
    page.get_by_text("2 sets, added above.").wait_for()
    settled(page)
    page.get_by_role("button", name="Test now").click()
    page.get_by_role("button", name="ZIP, all files").wait_for(timeout=60_000)
    settled(page)
    with zipfile.ZipFile(io.BytesIO(download(page, "ZIP, all files"))) as packed:
        taken = pd.read_csv(packed.open("enrichment.csv"))
        book = openpyxl.load_workbook(packed.open("enrichment.xlsx"))
    assert set(taken.query("collection == 'mine'")["term"]) == set(lines)
    cells = [c for row in book["summary"].iter_rows() for c in row if c.value == "=FIRST"]
    assert {cell.data_type for cell in cells} == {"s"}


def test_a_file_that_is_no_gmt_is_answered_with_its_line(page, server):
    visit(page, f"{server}/gene_sets")
    page.get_by_text("Add a collection").click()
    bad = {"name": "bad.gmt", "mimeType": "text/plain", "buffer": b"A\tx\tG1\nB\tx\n"}
    page.locator("input[type=file]").first.set_input_files(bad)
    page.get_by_text("line 2").wait_for()
    settled(page)


def test_a_click_on_the_preview_runs_the_test_of_that_mechanism(page, server, tiny):
    visit(page, f"{server}/gene_sets?collections=reactome")
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".nsewdrag").first.wait_for()
    box = plot.locator(".scatterlayer .point").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_role("heading", name="M0 in Reactome").wait_for()
    page.get_by_role("link", name="All of M0").wait_for(timeout=60_000)
    settled(page)
    page.get_by_role("link", name="All of M0").click()
    page.get_by_text("Genes it moves").wait_for()
    settled(page)
    assert "collection=reactome" in page.url


def test_a_click_on_the_mask_map_leads_to_the_mechanism(page, server, tiny):
    visit(page, f"{server}/masks")
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".nsewdrag").first.wait_for()
    point = plot.locator(".scatterlayer .point").nth(1)  # first row, second mechanism
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.get_by_text(re.compile(r"Evidence [+-].* ± .* nats per cell, over [0-9]+ held")).wait_for()
    page.get_by_role("link", name="Open mechanism M1").click()
    page.get_by_text("Genes it moves").wait_for()
    settled(page)
    assert "/mechanism" in page.url
    assert page.get_by_role("combobox", name="Mechanism").input_value() == "M1"


def test_a_link_shows_the_same_composition_to_another_visitor(page, server, tiny):
    visit(page, f"{server}/compose?c=P1%3A0.5%2CP2%3A1")
    taken = pd.read_csv(io.BytesIO(download(page, "CSV"))).set_index("gene")
    expected = compose(tiny, {"P1": 0.5, "P2": 1.0}).table
    assert taken["shift"].to_dict() == pytest.approx(expected["shift"].to_dict())


def test_a_box_around_cells_gives_their_table_which_outlives_a_change_of_colour(page, server, tiny):
    page.set_viewport_size({"width": 1440, "height": 1200})
    visit(page, f"{server}/cells?by=Mechanism&m=M0")
    plot = page.locator(".js-plotly-plot").first
    plot.hover()
    plot.locator('[data-attr="dragmode"][data-val="select"]').click()
    area = plot.locator(".nsewdrag").first.bounding_box()
    x = tiny.cells["umap_1"].sort_values().to_numpy(float)[2:-2]
    gap = np.diff(x).argmax()
    cut = (x[gap] + x[gap + 1]) / 2  # far from any cell, with some on either side
    start, end = plot.evaluate("plot => plot._fullLayout.xaxis.range")
    right = area["x"] + area["width"] * (cut - start) / (end - start)
    page.mouse.move(area["x"] + 2, area["y"] + 2)
    page.mouse.down()
    page.mouse.move(right, area["y"] + area["height"] - 2, steps=10)
    page.mouse.up()
    page.get_by_role("heading", name="Conditions").wait_for()
    settled(page)
    inside = tiny.cells[tiny.cells["umap_1"] < cut]
    taken = selected(page)
    assert taken["cell"].tolist() == inside["cell"].tolist()
    assert taken["condition"].tolist() == inside["condition"].tolist()
    assert taken["M0, perturbed"].tolist() == pytest.approx(inside["shifted M0"].tolist(), rel=1e-5)
    page.get_by_role("radio", name="Split", exact=True).click()
    page.get_by_role("heading", name="Splits").wait_for()
    settled(page)
    assert selected(page)["cell"].tolist() == inside["cell"].tolist()
    page.get_by_role("button", name="Select none").click()
    page.get_by_text("No cell is selected").wait_for()
    settled(page)


def selected(page) -> pd.DataFrame:
    """The table of selected cells, the last that the page offers."""
    with page.expect_download() as started:
        page.get_by_role("button", name="CSV", exact=True).last.click()
    return pd.read_csv(started.value.path())
