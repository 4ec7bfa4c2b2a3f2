"""The address and the page say one thing: links, reloads, the way back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from app.components import compare as shared
from app.pages import PAGES
from app.session import choices as choices_module
from samsvae_core.analysis.compose import compose
from tests.views.pages import (
    APP,
    VIEWS,
    decoded,
    figures,
    finished,
    gone_back,
    links,
    opened,
    saved_session,
    slider,
    table_with,
    uploaded,
    words,
)

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_clustered_rows_have_their_tree_and_leave_the_address_clean(one_model, tiny):
    page = opened("masks")
    tree = figures(page)[0]["data"][3]
    assert np.isfinite(decoded(tree["x"])).sum() == 4 * (len(tiny.perturbations) - 1)
    assert not set(page.query_params) & {"rows", "columns", "part", "chosen", "threshold", "hide"}


@pytest.mark.parametrize(
    ("view", "query", "said"),
    [
        ("mechanism", {"m": "M99"}, "M99 is not a mechanism in use"),
        ("mechanism", {"collection": "mine"}, "the collection mine, which is not here"),
        ("gene_sets", {"collections": ["mine", "hallmark"]}, "the collections mine, which is not"),
        ("compose", {"c": "P1:1", "interval": "own"}, "the interval own, which is not here"),
        ("cells", {"cells": "nonsense"}, "not in this model"),
        ("cells", {"by": "nonsense"}, "the colour nonsense, which is not here"),
        ("masks", {"colour": "nonsense"}, "the colour nonsense, which is not here"),
        ("overview", {"model": "<b>"}, "the model <b>, which is not here"),
    ],
)
def test_what_an_address_asks_for_in_vain_is_said(one_model, view, query, said):
    page = opened(view, query)
    assert finished(page)
    assert said in words(page)


@pytest.mark.parametrize("view", VIEWS)
def test_a_bound_choice_that_is_none_of_its_options_is_said(one_model, view):
    query = {"c": "P1:1"} if view == "compose" else {}
    page = opened(view, query)
    choices = [
        each
        for each in (*page.selectbox, *page.multiselect, *page.segmented_control, *page.pills)
        if each.proto.query_param_key
    ]
    for each in choices:
        other = opened(view, query | {each.proto.query_param_key: "nonsense"})
        assert "nonsense, which is not here" in words(other), each.proto.query_param_key


def test_a_link_is_followed_to_a_page_that_a_session_has_not_shown_yet(one_model, tiny):
    page = uploaded(saved_session(tiny, kept=()))
    page.button(key="session use").click().run()
    page.switch_page("views/compose.py")
    page.query_params["c"] = "P2:1"
    page.run()
    assert page.multiselect(key="compose_names").value == ["P2"]


@pytest.mark.parametrize("gap", ["behind", "gone back"])
def test_item_02_an_address_that_is_behind_takes_no_choice_back(one_model, gap):
    page = opened("compose", {"c": "P1:1"})
    page.pills(key="compose_in").unselect(page.pills(key="compose_in").value[0]).run()
    slider(page, "P1").set_value(0.9).run()
    off = page.pills(key="compose_in").value
    if gap == "gone back":
        gone_back(page, {"c": "P1:1"})
    else:
        page.query_params.clear()  # as sent by a browser that has not received the first yet
        page.query_params["c"] = "P1:1"
        page.run()
    assert finished(page)
    assert (page.pills(key="compose_in").value == off) is (gap == "behind")
    assert slider(page, "P1").value == (0.9 if gap == "behind" else 1.0)
    assert page.query_params["c"] in (c := f"P1:{slider(page, 'P1').value:g}", [c])


def number(page: AppTest, name: str):
    """Return the number box of a dosage."""
    label = f"Dosage of {name} as a number"
    return next(each for each in page.number_input if each.label == label)


def test_item_02_slider_box_figure_and_address_have_one_dosage(one_model, tiny):
    page = opened("compose", {"c": "P1:0.125,P2:1"})
    for change in (
        lambda: slider(page, "P1").set_value(0.6),
        lambda: number(page, "P1").set_value(0.35),
        lambda: number(page, "P1").set_value(1.5),
        lambda: slider(page, "P1").set_value(1.45),
        lambda: page.button(key="undo").click(),
    ):
        change().run()
        assert finished(page)
        dose = slider(page, "P1").value
        assert number(page, "P1").value == dose
        assert page.query_params["c"] in (c := f"P1:{dose:g},P2:1", [c])
        expected = compose(tiny, {"P1": dose, "P2": 1.0}).table["shift"]
        shown = table_with(page, "shift").set_index("gene")["shift"]
        assert shown.to_dict() == pytest.approx(expected.to_dict())
    assert dose == 1.5


def test_item_02_nothing_is_given_to_a_widget_that_has_it(one_model):
    """A value set by a run overrides a newer choice, so a second run sets none."""
    page = opened("compose", {"c": "P1:0.9,P2:1", "off": "0"})
    page.run()
    widgets = [*page.slider, *page.number_input, *page.multiselect, *page.pills, *page.selectbox]
    assert len(widgets) > 8
    assert not [each.key for each in widgets if each.proto.set_value]
    page = opened("cells", {"highlight": "P1,P2"}).run()
    assert not [each.key for each in page.multiselect if each.proto.set_value]
    page = opened("masks", {"chosen": "P1,P2"}).run()
    assert not [each.key for each in page.multiselect if each.proto.set_value]


@pytest.fixture
def two_models(models) -> Path:
    """Make two models that differ only by name."""
    shutil.copytree(models / "tiny", models / "zweites")
    return models


def shown_model(page: AppTest) -> str:
    """Return the model by the line at the end, the box and the address, which agree."""
    (end,) = (c.value for c in page.caption if c.value.startswith("SAMS-VAE Explorer"))
    name = end.partition("model ")[2].partition(",")[0]
    assert page.selectbox(key="model").value == name
    assert page.query_params.get("model", ["tiny"]) in (name, [name])
    return name


@pytest.mark.parametrize("view", ["overview", "compose"])
@pytest.mark.parametrize("before", ["tiny", "zweites"])
def test_item_01_a_link_to_another_model_opens_it(two_models, view, before):
    page = opened("train", {"model": before})
    assert shown_model(page) == before
    after = next(name for name in ("zweites", "tiny") if name != before)
    page.switch_page(f"views/{view}.py")
    page.query_params["model"] = [before, after]  # as Streamlit's own link does
    page.run()
    assert finished(page)
    assert shown_model(page) == after
    page.run()
    assert shown_model(page) == after


def test_item_01_parts_of_masks_and_of_compose_are_two_things(one_model, monkeypatch):
    monkeypatch.setattr(shared, "MOST_ROWS", 2)
    page = opened("masks", {choices_module.ROWS: "2"})
    assert page.number_input(key=choices_module.ROWS).value == 2
    page.query_params.clear()  # as the menu does
    page.switch_page("views/compose.py")
    page.query_params["c"] = "P1:1"
    page.run()
    assert finished(page)
    assert page.segmented_control(key="part").value == "Observed"
    page.segmented_control(key="part").select("Gene sets").run()
    page.query_params.clear()
    page.switch_page("views/masks.py").run()
    assert finished(page)
    assert page.number_input(key=choices_module.ROWS).value == 2
    assert page.query_params[choices_module.ROWS] in ("2", ["2"])


def test_item_01_an_address_with_a_part_of_masks_from_before_opens(one_model, monkeypatch):
    monkeypatch.setattr(shared, "MOST_ROWS", 2)
    page = opened("masks", {"part": "2"})
    assert page.number_input(key=choices_module.ROWS).value == 2
    page.number_input(key=choices_module.ROWS).set_value(1).run()
    again = opened("masks", {key: page.query_params[key][-1] for key in page.query_params})
    assert again.number_input(key=choices_module.ROWS).value == 1


WITH_LINKS = [  # a page, what it shows, and links to other pages that it then has, at least
    ("overview", {}, 5),
    ("perturbation", {"p": "P1"}, 1),
    ("perturbation", {"p": "P1", "perturbation_tab": "Mechanisms"}, 1),
    ("masks", {"chosen": "P1,P2", "cell": "P1|0"}, 6),
    ("compose", {"c": "P1:1", "part": "Gene sets"}, 1),
    ("mechanism", {}, 1),
    ("gene_sets", {}, 0),
    ("gene", {"g": "CCL5"}, 3),
    ("partners", {}, 1),
    ("cells", {}, 0),
    ("data", {}, 0),
    ("train", {}, 0),
    ("report", {}, 1),
    ("glossary", {}, 0),
    ("system", {}, 0),
]


@pytest.mark.parametrize(("view", "query", "least"), WITH_LINKS)
def test_item_01_every_link_of_a_page_names_the_model_shown(two_models, view, query, least):
    page = opened(view, {"model": "zweites", **query})
    assert finished(page)
    assert shown_model(page) == "zweites"
    found = links(page)
    assert len(found) >= least
    assert not [link for link in found if "model=zweites" not in link["query"].split("&")]
    first = opened(view, query)  # whose name the address loses: links come without, at one step
    assert shown_model(first) == "tiny"
    assert not [link for link in links(first) if "model=" in link["query"]]


def test_item_01_every_page_has_its_links_looked_at():
    assert {view for view, _, _ in WITH_LINKS} == set(PAGES)
    made = [path.name for path in APP.rglob("*.py") if ".page_link(" in path.read_text()]
    assert made == ["url.py"]  # where the model is put into all of them


def test_item_01_a_link_to_a_model_that_is_not_here_says_so_and_stays(two_models):
    page = opened("train", {"model": "zweites"})
    page.switch_page("views/overview.py")
    page.query_params["model"] = "gone"
    page.run()
    assert "asks for the model gone" in words(page)
    assert shown_model(page) == "zweites"


def test_item_01_a_kept_view_opens_as_it_was_kept(one_model):
    page = opened("compose", {"c": "P1:1"})
    page.button(key="keep view").click().run()
    for view, query in (("glossary", {}), ("compose", {"c": "P1:0.5", "n_genes": "40"})):
        page.query_params.clear()
        page.query_params.update(query)
        page.switch_page(f"views/{view}.py").run()
    assert page.slider(key="n_genes").value == 40
    page.query_params.clear()  # as the menu does
    page.switch_page("views/report.py").run()
    page.button(key="open 0").click().run()
    assert finished(page)
    assert page.slider(key="n_genes").value == 24
    assert slider(page, "P1").value == 1.0
