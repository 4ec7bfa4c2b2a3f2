"""Downloads: figures as files, the report, the zip, and the session."""

import hashlib
import io
import json
import re
import struct
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.browser.person import (
    MARKS,
    address_has,
    press,
    settled,
    shows,
    table,
    taken,
    turn_to,
    visit,
)

pytestmark = MARKS


def test_a_figure_is_saved_as_svg_png_and_data_and_all_say_the_same(page, server):
    visit(page, f"{server}/compose?c=P1%3A1&model=tiny")
    chart = page.locator(".st-key-shifts").first
    plot = chart.locator(".js-plotly-plot")
    chart.scroll_into_view_if_needed()
    plot.locator(".nsewdrag").first.wait_for()
    plot.hover()
    with page.expect_download() as started:
        plot.locator('.modebar-btn[data-title^="Download plot"]').click()
    assert started.value.suggested_filename == "shifts.svg"
    drawn = plot.evaluate(
        "plot => ({genes: [...plot._fullData[0].y], x: Array.from(plot._fullData[0].x)})"
    )
    genes = [re.sub("</?i>", "", gene) for gene in drawn["genes"]]
    assert set(genes) <= set(words_of(Path(started.value.path()).read_bytes()))
    chart.locator("xpath=following::button[contains(., 'Save')][1]").click()
    page.locator(".st-key-shifts-figure-svg button").wait_for()
    assert set(genes) <= set(words_of(taken(page, "shifts-figure-svg")))
    png = taken(page, "shifts-figure-png")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert min(struct.unpack(">II", png[16:24])) > 300
    data = table(taken(page, "shifts-figure-csv"))
    assert set(data["series"]) == {"predicted", "observed"}
    data = data[data["series"] == "predicted"]
    assert data["gene"].tolist() == genes
    x = next(name for name in data if name.startswith("predicted shift") and "," not in name)
    assert data[x].tolist() == pytest.approx(drawn["x"])


def words_of(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [
        "".join(part.itertext()).strip() for part in root.iter("{http://www.w3.org/2000/svg}text")
    ]


@pytest.fixture
def kept(page, server) -> dict[str, bytes]:
    """Keep three views, open the page Report, and return a table of each by its file name."""
    visit(page, f"{server}/compose?c=P1%3A0.5%2CP2%3A1&off=0&model=tiny")
    shown = {}
    for n, name in enumerate(("Compose", "Masks", "Gene"), start=1):
        if n > 1:
            turn_to(page, name)
        if name == "Masks":
            page.get_by_role("tab", name="Table of entries").click()
            address_has(page, "masks_tab=")
        with page.expect_download() as started:
            page.get_by_role("button", name="CSV", exact=True).last.click()
        stem = Path(started.value.suggested_filename).stem
        shown[f"{n:02d} {stem}"] = Path(started.value.path()).read_bytes()
        press(page, "keep-view")
        shows(page, f"{n} view{'s' if n > 1 else ''} kept")
    turn_to(page, "Report")
    return shown


def unpacked(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        assert packed.testzip() is None
        return {name: packed.read(name) for name in packed.namelist()}


def tables_of(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name.endswith(".csv")}


def test_kept_views_become_a_zip_and_a_report_that_opens_without_a_network(
    page, another, asked_for, server, kept, tmp_path
):
    files = unpacked(taken(page, "report-zip"))
    manifest = json.loads(files["manifest.json"])
    assert set(manifest["files"]) == set(files) - {"manifest.json"}
    for name, told in manifest["files"].items():
        assert hashlib.sha256(files[name]).hexdigest() == told["sha256"]
        assert len(files[name]) == told["size"]
    assert manifest["notes"] == []
    assert [view["title"].partition(":")[0] for view in manifest["views"]] == [
        "Compose",
        "Masks",
        "Gene",
    ]
    for place, content in kept.items():
        number, stem = place.split(" ", 1)
        same = [f for name, f in tables_of(files).items() if name.startswith(number)]
        assert content in same, f"no file is the table {stem} that was shown"
    n_figures = sum(name.endswith(".png") for name in files)
    assert n_figures == sum(name.endswith(".svg") for name in files) > 3
    report = tmp_path / "report.html"
    report.write_bytes(taken(page, "report-html"))
    asked_for.clear()
    reader = another(offline=True)
    reader.goto(report.as_uri())
    plots = reader.locator(".js-plotly-plot")
    plots.nth(n_figures - 1).locator(".main-svg").first.wait_for(state="attached")
    assert plots.count() == n_figures
    assert reader.locator(".js-plotly-plot .barlayer .point path").count() > 10
    assert reader.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    assert [url for url in asked_for if not url.startswith(("data:", "blob:"))] == [reader.url]


def test_a_session_file_brings_views_and_pages_to_another_visitor(page, another, server, kept):
    session = taken(page, "session-save")
    before = tables_of(unpacked(taken(page, "report-zip")))
    friend = another()
    visit(friend, f"{server}/report")
    other_model = json.dumps(json.loads(session) | {"checksum": "0" * 64}).encode()
    for content, answer in (
        (session[: len(session) // 2], "cannot be read as JSON"),
        (other_model, "is not among the models here"),
    ):
        give(friend, content)
        shows(friend, re.compile(answer))
    give(friend, session)
    press(friend, "session-use")
    shows(friend, "3 views kept")
    friend.get_by_role("heading", name="Report", level=1).wait_for()
    settled(friend)
    after = tables_of(unpacked(taken(friend, "report-zip")))
    assert after.keys() == before.keys()
    for name, content in before.items():
        one, two = table(content), table(after[name])
        assert list(one) == list(two)
        for column in one:
            if one[column].dtype == object:
                assert one[column].fillna("").tolist() == two[column].fillna("").tolist()
            else:
                np.testing.assert_allclose(two[column], one[column], rtol=1e-6, atol=1e-9)
    turn_to(friend, "Compose")
    shows(friend, "Dosage of P2")
    assert "c=P1%3A0.5%2CP2%3A1" in friend.url
    assert "off=0" in friend.url


def give(page, content: bytes) -> None:
    """Upload a session file."""
    file = {"name": "my.session.json", "mimeType": "application/json", "buffer": content}
    page.locator(".st-key-session-file input[type=file]").set_input_files(file)
