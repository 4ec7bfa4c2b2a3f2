"""Dark and narrow pages, keyboard only, odd names, and a broken model beside a good one."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest

from samsvae_core.analysis.compose import compose
from tests.browser.conftest import ODD
from tests.browser.person import MARKS, address_has, settled, shows, table, visit

pytestmark = MARKS
PAGES = (
    "",
    "perturbation?p=P1",
    "masks?chosen=P1%2CP2%2CP3",
    "compose?c=P1%3A1%2CP2%3A1&b=P3%3A1&part=A+against+B",
    "compose?c=P1%3A1%2CP2%3A1&part=Interaction",
    "mechanism",
    "gene",
    "cells",
    "partners",
    "gene_sets",
    "data",
    "report",
    "glossary",
    "system",
)
FITS = """() => [document.scrollingElement, document.querySelector('[data-testid="stMain"]')]
    .every(part => part.scrollWidth <= part.clientWidth)"""
CONTRASTS = """() => {
    const light = ([r, g, b]) => [r, g, b]
        .map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const read = colour => colour.match(/[0-9.]+/g).map(Number);
    const ground = read(getComputedStyle(document.querySelector('.stApp')).backgroundColor);
    const ink = [...document.querySelectorAll('.stMain h1, .stMain p')]
        .filter(part => part.closest('button, [data-testid="stBadge"], [data-testid="stAlert"]')
            === null && part.textContent.trim())
        .map(part => {
            const [r, g, b, a = 1] = read(getComputedStyle(part).color);
            return [r, g, b].map((v, i) => a * v + (1 - a) * ground[i]);
        });
    const under = light(ground);
    return {under, contrasts: ink.map(light).map(
        over => (Math.max(over, under) + 0.05) / (Math.min(over, under) + 0.05))};
}"""


def test_in_the_dark_pages_and_figures_are_light_on_dark(another, server):
    page = another(color_scheme="dark")
    visit(page, f"{server}/compose?c=P1%3A1&model=tiny")
    plot = page.locator(".st-key-shifts .js-plotly-plot").first
    plot.locator(".nsewdrag").first.wait_for()
    assert plot.evaluate("plot => plot._fullLayout.font.color") == "#e6ebf0"
    found = page.evaluate(CONTRASTS)
    assert found["under"] < 0.02
    assert len(found["contrasts"]) > 5
    assert min(found["contrasts"]) >= 4.5


def test_every_page_fits_into_420_pixels_and_the_side_can_be_opened(another, server):
    page = another(viewport={"width": 420, "height": 900})
    for path in PAGES:
        visit(page, f"{server}/{path}{'&' if '?' in path else '?'}model=tiny")
        assert page.evaluate(FITS), f"{path} is wider than the window"
    page.get_by_test_id("stExpandSidebarButton").click()
    page.get_by_test_id("stSidebarNav").get_by_role("link", name="Masks").click()
    page.get_by_role("heading", name="Masks", level=1).wait_for()
    settled(page)


def test_a_composition_is_made_and_taken_away_by_keyboard_alone(page, server, tiny):
    visit(page, f"{server}/?model=tiny")
    tab_to(page, "a", "Compose")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Compose", level=1).wait_for()
    shows(page, "No perturbation is chosen")
    tab_to(page, "input", "Perturbations, up to 6")
    page.keyboard.type("P1")
    page.get_by_role("option", name="P1", exact=True).wait_for()
    page.keyboard.press("Enter")
    page.get_by_text("Dosage of P1", exact=True).wait_for()
    page.keyboard.press("Escape")
    settled(page)
    tab_to(page, "input", "Dosage of P1")
    page.keyboard.press("ArrowLeft")
    address_has(page, "c=P1%3A0.95")
    tab_to(page, "button", "CSV", most=120)
    with page.expect_download() as started:
        page.keyboard.press("Enter")
    shown = table(Path(started.value.path()).read_bytes()).set_index("gene")["shift"]
    expected = compose(tiny, {"P1": 0.95}).table["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())


FOCUSED = """() => {
    const at = document.activeElement;
    const labels = [at.getAttribute('aria-label'), ...[...(at.labels || [])].map(l => l.innerText),
        ...(at.getAttribute('aria-labelledby') || '').split(' ').map(
            id => document.getElementById(id)?.innerText)];
    return [at.tagName.toLowerCase(), [...labels, at.innerText].filter(Boolean)];
}"""


def tab_to(page, tag: str, name: str, most: int = 80) -> None:
    """Press Tab until the element with this role and name has the focus."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        at, labels = page.evaluate(FOCUSED)
        seen.append((at, labels))
        if at == tag and any(name == label.split("\n")[-1].strip() for label in labels):
            return
    raise AssertionError(f"{name} is not reached by Tab: {seen}")


def test_a_broken_model_is_listed_with_its_reason_and_cannot_be_chosen(page, server):
    visit(page, f"{server}/?model=broken")
    side = page.get_by_test_id("stSidebar")
    side.get_by_text("1 cannot be opened").click()
    side.get_by_text(re.compile("broken.*masks.csv")).wait_for()
    box = side.get_by_role("combobox", name="Model")
    assert box.input_value() == "tiny"
    box.click()
    names = page.get_by_role("option").all_text_contents()
    assert names == ["tiny", "unusual"]


@pytest.mark.parametrize("width", [1440, 420])
def test_odd_names_are_text_and_break_no_layout(another, server, width):
    page = another(viewport={"width": width, "height": 900})
    page.on("dialog", lambda dialog: pytest.fail("a name was run as a script"))
    one, two, three = (quote(name, safe="") for name in ODD.values())
    link = {name: quote(name, safe="") for name in (one, two, three)}
    for path in (
        *(f"perturbation?p={name}" for name in (one, two, three)),
        f"masks?chosen={'%2C'.join(link.values())}",
        f"compose?c={'%2C'.join(f'{name}%3A1' for name in link.values())}",
    ):
        visit(page, f"{server}/{path}&model=unusual")
        if "masks" in path or "compose" in path:
            page.locator(".js-plotly-plot .nsewdrag").first.wait_for()
        assert page.evaluate(FITS), f"{path} is wider than the window"
        main = page.get_by_test_id("stMain")
        assert main.locator("img[src='x'], a[href*='//example.org']").count() == 0
        assert main.locator("b, strong, em, span").get_by_text("bold", exact=True).count() == 0
        assert page.locator("[style*='color: red']").count() == 0
    for name in ODD.values():
        assert page.get_by_text(name[:40]).count() > 0
