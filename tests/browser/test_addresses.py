"""Widgets, figures and the address always agree, even after fast clicks and keys."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

import pytest

from samsvae_core.analysis.compose import compose
from tests.browser.conftest import dashboard
from tests.browser.person import MARKS, composed_shift, press, settled, turn_to, visit

pytestmark = MARKS
SPEEDS = [  # seconds between key presses, and busy processes
    (0.15, 0),  # with a slow browser, which does not disturb other tests
    *(pytest.param(gap, 2, marks=pytest.mark.slow) for gap in (0.05, 0.15, 0.3, 0.6)),
]


@contextmanager
def busy_machine(programs: int) -> Iterator[None]:
    """Keep other processes busy beside the server and the browser."""
    running = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)
    ]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def at_rest(page, dose: str) -> dict[str, float]:
    """Return the dosage of P6 by slider, box and address, once the last run has ended."""
    page.wait_for_url(lambda url: f"c=P6%3A{dose}" in url)
    settled(page)
    slider = page.get_by_role("slider", name="Dosage of P6")
    box = page.get_by_role("spinbutton", name="Dosage of P6")
    return {
        "slider": float(slider.get_attribute("aria-valuetext")),
        "box": float(box.input_value()),
        "address": float(unquote(re.search("c=([^&]*)", page.url)[1]).partition(":")[2]),
    }


def drawn_shifts(page) -> dict[str, float]:
    """Return the genes and ends of bars in the figure of the largest shifts, as drawn."""
    figure = page.locator(".st-key-shifts .js-plotly-plot")
    genes, ends = figure.evaluate("f => [f._fullData[0].y, Array.from(f._fullData[0].x)]")
    return {re.sub("<[^>]*>", "", gene): end for gene, end in zip(genes, ends, strict=True)}


@pytest.mark.parametrize(("gap", "programs"), SPEEDS)
def test_item_02_no_press_is_lost_on_a_busy_machine(page, server, tiny, gap, programs):
    if not programs:
        slow = page.context.new_cdp_session(page)
        slow.send("Emulation.setCPUThrottlingRate", {"rate": 3})
    visit(page, f"{server}/compose?c=P6%3A1&model=tiny")
    for role, key, dose in (("slider", "ArrowLeft", 0.5), ("spinbutton", "ArrowUp", 1.0)):
        page.get_by_role(role, name="Dosage of P6").focus()
        with busy_machine(programs):
            for _ in range(10):
                page.keyboard.press(key)
                page.wait_for_timeout(1000 * gap)
            assert at_rest(page, f"{dose:g}") == dict.fromkeys(("slider", "box", "address"), dose)
        expected = compose(tiny, {"P6": dose}).table["shift"].to_dict()
        assert composed_shift(page)["shift"].to_dict() == pytest.approx(expected)
        drawn = drawn_shifts(page)
        assert len(drawn) > 20
        assert drawn == pytest.approx({gene: expected[gene] for gene in drawn}, abs=1e-5)


@pytest.fixture(scope="module")
def with_a_training(served, tmp_path_factory) -> Iterator[str]:
    """Run a server with two shipped models, one of them the default, and one trained here."""
    models, runs = tmp_path_factory.mktemp("shipped"), tmp_path_factory.mktemp("trained")
    shutil.copytree(served / "tiny", models / "papalexi2021")
    shutil.copytree(served / "unusual", models / "unusual")
    shutil.copytree(served / "tiny", runs / "mine")
    with dashboard(SAMSVAE_MODELS=str(models), SAMSVAE_RUNS=str(runs)) as url:
        yield url


@pytest.fixture
def tab(visitor):
    """Return a tab of a visitor at that server."""
    context = visitor()
    yield context.new_page()
    context.close()


def shown_model(page) -> str:
    """Return the model by the line at the end of the page and the box, which agree."""
    settled(page)
    name = re.search("model ([^,]*),", page.locator(".st-key-end").inner_text())[1]
    assert page.get_by_role("combobox", name="Model", exact=True).input_value() == name
    return name


@pytest.mark.parametrize("start", ["/train", "/train?model=unusual", "/"])
def test_item_01_a_trained_model_opens_from_its_own_button(tab, with_a_training, start):
    for label, heading in (("Open it", "mine"), ("Open it in Compose", "Compose")):
        visit(tab, f"{with_a_training}{start}")
        if start == "/":
            turn_to(tab, "Train")
        assert shown_model(tab) == ("unusual" if "model" in start else "papalexi2021")
        tab.get_by_role("link", name=label, exact=True).click()
        tab.get_by_role("heading", name="Trainings").wait_for(state="detached")
        tab.wait_for_url(lambda url: "train" not in url and url.endswith("model=mine"))
        assert shown_model(tab) == "mine"
        if heading == "Compose":
            tab.get_by_role("heading", name=heading, level=1).wait_for()


def test_item_01_back_shows_the_model_of_before(tab, with_a_training):
    visit(tab, f"{with_a_training}/train")
    tab.get_by_role("link", name="Open it in Compose", exact=True).click()
    tab.get_by_role("heading", name="Compose", level=1).wait_for()
    assert shown_model(tab) == "mine"
    tab.go_back()
    tab.get_by_role("heading", name="Train", level=1).wait_for()
    tab.wait_for_url(lambda url: "model" not in url)
    assert shown_model(tab) == "papalexi2021"


def test_item_01_a_link_is_one_step_of_the_way_back(page, server):
    visit(page, server)
    steps = page.evaluate("history.length")
    with busy_machine(2):
        page.get_by_role("link", name="What the words mean").click()
        page.get_by_role("heading", name="Glossary").wait_for()
        settled(page)
        assert page.evaluate("history.length") == steps + 1


def test_item_10_what_is_found_stays_where_it_is(page, server):
    visit(page, f"{server}/perturbation?model=tiny")
    box = page.get_by_role("textbox", name="Find", exact=True)
    box.fill("P")
    box.press("Enter")
    hit = page.get_by_role("button", name="P4 (perturbation)")
    hit.wait_for()
    settled(page)
    hit.scroll_into_view_if_needed()
    place = hit.bounding_box()
    for name in ("P4", "P2"):
        page.get_by_role("button", name=f"{name} (perturbation)").click()
        page.get_by_role("heading", name=name, exact=True).wait_for()
        settled(page)
        assert hit.bounding_box() == place
    press(page, "close-hits")
    hit.wait_for(state="detached")
