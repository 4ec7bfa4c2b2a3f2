"""Clicking, choosing, downloading and following links, in a real Chromium."""

import io
import re
import zipfile

import numpy as np
import openpyxl
import pandas as pd
import pytest

from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.compose import compose
from samsvae_core.genesets import collections, enrichment, terms
from tests.browser.person import (
    MARKS,
    choose,
    click_in,
    composed_shift,
    download,
    press,
    settled,
    shows,
    table,
    turn_to,
    visit,
)

pytestmark = MARKS


def test_a_newcomer_takes_the_tour_composes_and_takes_the_enrichment_table_away(page, server, tiny):
    visit(page, server)
    page.get_by_role("link", name="What the words mean").click()
    page.get_by_role("heading", name="Glossary").wait_for()
    shows(page, "A mechanism is active in a perturbation")
    settled(page)
    page.go_back()
    shows(page, "How good it is on cells")
    press(page, "tour-offer")
    for place in range(1, 6):
        shows(page, f"{place} of 6: ")
        press(page, "tour-next")
    shows(page, "6 of 6: ")
    press(page, "tour-end")
    page.locator(".st-key-tour-box").wait_for(state="detached")
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Overview").click()
    page.get_by_role("link", name="Open Compose").click()
    page.get_by_role("button", name="Start over").click()  # the tour left an example there
    shows(page, "No perturbation is chosen")
    for name in ("P1", "P3"):
        choose(page, "Perturbations", name)
        page.get_by_role("slider", name=f"Dosage of {name}").wait_for()
    shows(page, "Each part was measured alone")
    assert "c=P1%3A1%2CP3%3A1" in page.url
    composed = composed_shift(page)
    expected = compose(tiny, {"P1": 1.0, "P3": 1.0}).table.dropna(axis=1, how="all")
    columns = [c for c in composed if c in expected]
    pd.testing.assert_frame_equal(
        composed.loc[expected.index, columns], expected[columns], check_dtype=False
    )
    page.get_by_role("radio", name="Gene sets").click()
    page.get_by_role("button", name=re.compile("Test now")).click()
    page.get_by_role("button", name="ZIP, all files").wait_for()
    settled(page)
    with zipfile.ZipFile(io.BytesIO(download(page, "ZIP, all files"))) as packed:
        enriched = pd.read_csv(packed.open("enrichment.csv"))
    ranked = gene_rankings.of_shift(compose(tiny, {"P1": 1.0, "P3": 1.0}))
    same = enrichment.enrich(ranked.scores, [collections.load_collection("hallmark")]).table
    keys = ["method", "direction", "term"]
    both = enriched.merge(same, on=keys, suffixes=("", "_here"))
    assert len(both) == len(enriched) == len(same) > 0
    assert both["p_value"].tolist() == pytest.approx(both["p_value_here"].tolist())


def test_the_downloaded_enrichment_table_is_the_one_shown(page, server, tiny):
    visit(page, f"{server}/mechanism")
    page.get_by_role("heading", name="Gene sets").wait_for()
    whole = terms.grouped(tiny.enrichment("hallmark").table)
    first = f"M{whole['mechanism'].min()}"
    frame = page.get_by_test_id("stDataFrame").filter(has_text="HALLMARK").first
    frame.scroll_into_view_if_needed()
    frame.locator("td", has_text="HALLMARK").first.wait_for(state="attached")
    shown = [cell.text_content() for cell in frame.locator("td[aria-colindex='2']").all()]
    taken = table(download(page, "CSV", last=True))
    expected = whole[(whole["mechanism"] == int(first[1:])) & (whole["method"] == "gsea")]
    best = expected.query("group == term")
    assert shown == taken["term"].tolist() == best["term"].tolist()
    assert taken["fdr"].tolist() == pytest.approx(best["fdr"].tolist())
    book = openpyxl.load_workbook(io.BytesIO(download(page, "XLSX")))
    header, *rows = book[f"{first} hallmark"].iter_rows(values_only=True)
    all_of_it = whole[whole["mechanism"] == int(first[1:])]
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
    assert set(taken.query("collection == 'mine'")["term"]) == {"'=FIRST", "SECOND"}
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
    click_in(page, plot.locator(".scatterlayer .point").first)
    page.get_by_role("heading", name="M0 in Reactome").wait_for()
    page.get_by_role("link", name="All of M0").wait_for(timeout=60_000)
    settled(page)
    page.get_by_role("link", name="All of M0").click()
    page.get_by_text("Genes it moves").wait_for()
    settled(page)
    assert "collection=reactome" in page.url


def test_a_box_around_cells_gives_their_table_and_a_composition_that_starts_from_them(
    page, server, tiny
):
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
    turn_to(page, "Compose")
    choose(page, "Perturbations", "P1")
    shows(page, "Dosage of P1")
    choose(page, "Start from", f"cells selected on Cells ({len(inside)})")
    shows(page, re.compile("chosen cells, not from control"))
    expected = compose(tiny, {"P1": 1.0}, cells=inside["cell"].tolist()).table["shift"]
    shift = composed_shift(page)["shift"]
    assert shift.to_dict() == pytest.approx(expected.to_dict())
    turn_to(page, "Cells")
    assert selected(page)["cell"].tolist() == inside["cell"].tolist()
    page.get_by_role("button", name="Select none").click()
    page.get_by_text("No cell is selected").wait_for()
    settled(page)


def selected(page) -> pd.DataFrame:
    """Return the table of selected cells, the last download on the page."""
    return table(download(page, "CSV", last=True))
