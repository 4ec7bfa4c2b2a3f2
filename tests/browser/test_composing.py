"""Compositions: switches, undo, comparing two, links, and visitors kept apart."""

import re

import pytest

from samsvae_core.analysis.compose import compare, compose
from samsvae_core.analysis.draws import cells_of
from tests.browser.person import (
    MARKS,
    address_has,
    choose,
    composed_shift,
    press,
    settled,
    shows,
    table,
    taken,
    turn_to,
    visit,
)

pytestmark = MARKS


def shifts(page) -> dict[str, float]:
    """Return the shifts by gene, from the table of all genes on the page."""
    return composed_shift(page)["shift"].to_dict()


def said(tiny, dosages, **options):
    """Return what the library computes for the same composition."""
    return pytest.approx(compose(tiny, dosages, **options).table["shift"].to_dict())


def test_switches_change_the_numbers_and_there_is_a_way_back_from_each(page, server, tiny):
    visit(page, f"{server}/compose?c=P1%3A1%2CP2%3A1")
    both = {"P1": 1.0, "P2": 1.0}
    assert shifts(page) == said(tiny, both)
    switch = page.locator(".st-key-compose_in").get_by_text(re.compile("^M[0-9]+")).first
    k = int(re.match("M([0-9]+)", switch.text_content())[1])
    switch.click()
    address_has(page, f"off={k}")
    assert shifts(page) == said(tiny, both, without=[k])
    assert shifts(page) != said(tiny, both)
    press(page, "all-off")
    address_has(page, "rest")
    assert set(shifts(page).values()) == {0.0}
    press(page, "undo")
    page.wait_for_url(re.compile(f"off={k}(&|$)"))
    settled(page)
    assert shifts(page) == said(tiny, both, without=[k])
    press(page, "redo")
    address_has(page, "rest")
    assert set(shifts(page).values()) == {0.0}
    press(page, "all-on")
    page.wait_for_url(lambda url: "off" not in url)
    settled(page)
    assert shifts(page) == said(tiny, both)
    press(page, "start-over")
    shows(page, "No perturbation is chosen")
    press(page, "undo")
    shows(page, "Dosage of P2")
    assert shifts(page) == said(tiny, both)


def test_the_back_button_of_the_browser_goes_through_compositions_and_pages(page, server, tiny):
    visit(page, f"{server}/compose?c=P1%3A1")
    choose(page, "Perturbations", "P2")
    address_has(page, "P2")
    turn_to(page, "Masks")
    page.go_back()
    page.get_by_role("heading", name="Compose", level=1).wait_for()
    shows(page, "Dosage of P2")
    assert shifts(page) == said(tiny, {"P1": 1.0, "P2": 1.0})
    page.go_back()
    page.get_by_text("Dosage of P2", exact=True).wait_for(state="detached")
    settled(page)
    assert shifts(page) == said(tiny, {"P1": 1.0})
    page.go_forward()
    shows(page, "Dosage of P2")
    assert shifts(page) == said(tiny, {"P1": 1.0, "P2": 1.0})


def test_two_compositions_are_compared_and_a_link_shows_all_of_it_to_another(
    page, another, server, tiny
):
    visit(page, f"{server}/compose?c=P1%3A1%2CP2%3A1&part=A+against+B")
    press(page, "keep-b")
    shows(page, "A and B are the same")
    slider = page.get_by_role("slider", name="Dosage of P1")
    for dose in ("0.95", "0.9"):
        slider.press("ArrowLeft")
        address_has(page, f"c=P1%3A{dose}%2C")
    switch = page.locator(".st-key-compose_in").get_by_text(re.compile("^M[0-9]+")).first
    k = int(re.match("M([0-9]+)", switch.text_content())[1])
    switch.click()
    address_has(page, f"&off={k}")
    choose(page, "Start from", f"cells with P6 ({len(cells_of(tiny, 'P6'))})")
    address_has(page, "from=P6")
    shows(page, "A minus B")
    cells = cells_of(tiny, "P6")
    first = compose(tiny, {"P1": 0.9, "P2": 1.0}, without=[k], cells=cells)
    second = compose(tiny, {"P1": 1.0, "P2": 1.0}, cells=cells)
    difference = compare(tiny, first, second)["difference"].to_dict()
    friend = another()
    visit(friend, page.url)
    for tab in (page, friend):
        assert shifts(tab) == pytest.approx(first.table["shift"].to_dict())
        shown = table(taken(tab, "a_minus_b-CSV")).set_index("gene")
        assert shown["difference"].to_dict() == pytest.approx(difference, abs=1e-6)
        assert shown["B"].to_dict() == pytest.approx(second.table["shift"].to_dict())


def test_two_visitors_compose_at_once_and_each_sees_their_own(page, another, server, tiny):
    friend = another()
    page.goto(f"{server}/compose?c=P1%3A1&part=A+against+B")
    friend.goto(f"{server}/compose?c=P2%3A1%2CP4%3A0.5&part=A+against+B")
    for tab in (friend, page):
        settled(tab)
    press(page, "keep-b")
    page.get_by_role("slider", name="Dosage of P1").press("ArrowRight")
    friend.get_by_role("slider", name="Dosage of P2").press("ArrowLeft")
    address_has(page, "c=P1%3A1.05")
    address_has(friend, "c=P2%3A0.95")
    assert shifts(page) == said(tiny, {"P1": 1.05})
    assert shifts(friend) == said(tiny, {"P2": 0.95, "P4": 0.5})
    assert page.locator(".st-key-drop-b").count() == 1
    assert friend.locator(".st-key-drop-b").count() == 0
