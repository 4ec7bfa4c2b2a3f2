"""Finding names by the search box, the map of masks, and the map of perturbations."""

import re

import pytest

from samsvae_core.analysis import masks
from tests.browser.person import (
    MARKS,
    address_has,
    click_in,
    settled,
    shows,
    table,
    taken,
    visit,
)

pytestmark = MARKS


def test_what_is_typed_into_find_leads_to_its_page(page, server):
    visit(page, server)
    for text, found, heading in (
        ("STK12", "AURKB, also STK12 (gene)", "Gene"),
        ("p2", "P2 (perturbation)", "Perturbation"),
        ("M1", "M1 (mechanism)", "Mechanism"),
        ("gamma resp", "Interferon gamma response (set of hallmark)", "Gene sets"),
    ):
        box = page.get_by_role("textbox", name="Find", exact=True)
        box.fill(text)
        box.press("Enter")
        page.get_by_role("button", name=found).click()
        page.get_by_role("heading", name=heading, level=1, exact=True).wait_for()
        settled(page)
        if heading != "Gene sets":
            name = found.partition(" ")[0].strip(",")
            assert page.get_by_role("combobox", name=heading).input_value().startswith(name)
    assert page.get_by_title("hallmark", exact=True).first.is_visible()


def test_a_click_on_the_mask_map_leads_to_the_mechanism(page, server, tiny):
    visit(page, f"{server}/masks")
    plot = page.locator(".js-plotly-plot").first
    plot.locator(".nsewdrag").first.wait_for()
    click_in(page, plot.locator(".scatterlayer .point").nth(1))  # first row, second mechanism
    page.get_by_text(re.compile(r"Evidence [+-].* ± .* nats per cell, over [0-9]+ held")).wait_for()
    page.get_by_role("link", name="Open mechanism M1").click()
    page.get_by_text("Genes it moves").wait_for()
    settled(page)
    assert "/mechanism" in page.url
    assert page.get_by_role("combobox", name="Mechanism").input_value() == "M1"


def test_perturbations_are_chosen_on_their_map_and_compared(page, server, tiny):
    visit(page, f"{server}/masks")
    order = list(masks.strengths(tiny.masks).index)
    places = tiny.perturbations_umap.set_index("perturbation")[["umap_1", "umap_2"]]
    left = places.sort_values("umap_1").index[:2].tolist()
    cut = places["umap_1"].sort_values().iloc[1:3].mean()
    plot = map_of(page)
    area = plot.locator(".nsewdrag").first.bounding_box()
    right = on_screen(plot, cut, places["umap_2"].mean())[0]
    top, bottom = area["y"] + 2, area["y"] + area["height"] - 2
    page.mouse.move(area["x"] + 2, top)
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (area["x"] + 2, bottom)):
        page.mouse.move(x, y, steps=5)
    page.mouse.up()
    inside = [name for name in order if name in left]
    address_has(page, f"chosen={'%2C'.join(inside)}")
    compared(page, tiny, inside)
    page.get_by_role("radio", name="Click one by one").click()
    address_has(page, "choose_by=")
    other = next(name for name in order if name not in left)
    plot = map_of(page)
    page.mouse.click(*on_screen(plot, *places.loc[other]))
    address_has(page, other)
    compared(page, tiny, [*inside, other])


def map_of(page):
    plot = page.locator('[class*="st-key-perturbations_umap-"] .js-plotly-plot').first
    plot.scroll_into_view_if_needed()
    plot.locator(".nsewdrag").first.wait_for()
    return plot


def on_screen(plot, x: float, y: float) -> tuple[float, float]:
    """Return the position on the screen of a point in the figure."""
    box = plot.bounding_box()
    dx, dy = plot.evaluate(
        """(plot, [x, y]) => {
            const {xaxis, yaxis} = plot._fullLayout;
            return [xaxis._offset + xaxis.l2p(x), yaxis._offset + yaxis.l2p(y)];
        }""",
        [float(x), float(y)],
    )
    return box["x"] + dx, box["y"] + dy


def compared(page, tiny, names: list[str]) -> None:
    """Assert that the table of effects has the entries in use of exactly these perturbations."""
    shows(page, re.compile(f"Open {names[-1]}$"))
    used = tiny.masks[tiny.masks["active"] & tiny.masks["perturbation"].isin(names)]
    if used.empty:
        shows(page, "None of them uses a mechanism")
        return
    shown = table(taken(page, "chosen_effects_table-CSV"))
    effects = shown.set_index(["perturbation", "mechanism"])["effect"].to_dict()
    expected = used.set_index(["perturbation", "mechanism"])["effect"].to_dict()
    assert effects == pytest.approx(expected)
