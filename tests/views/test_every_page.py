"""What holds on every page."""

import shutil

import pandas as pd
import pytest

from app.components import mechanisms
from app.pages import PAGES
from samsvae_core.analysis.mechanism_names import Label, write_names
from samsvae_core.bundle import layout, opening
from tests.views.pages import KINDS, VIEWS, finished, found, opened, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend

OF_A_MODEL = [name for name, page in PAGES.items() if page.needs_model]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_reaches_its_end_without_an_error(one_model, view):
    page = opened(view)
    assert finished(page)
    assert not page.error
    assert page.title


@pytest.mark.parametrize("view", OF_A_MODEL)
def test_every_view_says_so_where_there_is_no_model(tmp_path, monkeypatch, view):
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path))
    page = opened(view)
    assert finished(page)
    assert "There is no trained model" in page.error[0].value
    assert "on the pages Data and Train" in page.error[0].value
    assert "samsvae train" in page.error[0].value.replace("\\", "")


@pytest.mark.parametrize("view", OF_A_MODEL)
def test_every_view_says_what_is_wrong_with_a_damaged_model(models, view):
    (models / "tiny" / "masks.csv").write_text("perturbation\n")
    page = opened(view)
    assert finished(page)
    assert "checksum differs" in page.error[0].value


def test_a_broken_model_beside_a_good_one_does_no_harm(models, tiny):
    shutil.copytree(tiny.path, models / "abroken")
    (models / "abroken" / "weights.safetensors").write_bytes(b"")
    page = opened("overview", {"model": "abroken"})
    assert finished(page)
    assert not page.error
    assert page.sidebar.selectbox[0].options == ["tiny"]
    assert "the model abroken, which is not here" in words(page)
    assert any("checksum differs" in caption.value for caption in page.sidebar.caption)


def test_a_model_that_is_mended_can_be_chosen_again(models, tiny):
    shutil.copytree(tiny.path, models / "other")
    whole = (models / "other" / "weights.safetensors").read_bytes()
    (models / "other" / "weights.safetensors").write_bytes(whole[:-1])
    assert opened("overview").sidebar.selectbox[0].options == ["tiny"]
    (models / "other" / "weights.safetensors").write_bytes(whole)
    assert opened("overview").sidebar.selectbox[0].options == ["other", "tiny"]


@pytest.mark.usefixtures("edited")
def test_a_model_made_anew_in_the_same_place_is_read_again(models, tiny):
    opened("overview")
    folder = models / "tiny"
    perturbations = pd.read_csv(folder / "perturbations.csv").replace({"P1": "PX"})
    perturbations.to_csv(folder / "perturbations.csv", index=False)
    layout.write_manifest(folder, tiny.manifest["data"], "cpu")
    assert "PX" in opened("compose").multiselect(key="compose_names").options


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_suits_every_kind_of_model(shown, view, name):
    shown(name)
    page = opened(view, {"c": "P1:1"} if view == "compose" else {})
    assert finished(page)
    assert not page.error


@pytest.mark.parametrize(
    ("text", "label", "key", "value"),
    [
        ("p2", "P2 (perturbation)", "perturbation", "P2"),
        ("aurkb", "AURKB (gene)", "gene", "AURKB"),
        ("STK12", "AURKB, also STK12 (gene)", "gene", "AURKB"),
        ("ENSG00000178999.9", "AURKB, also ENSG00000178999.9 (gene)", "gene", "AURKB"),
        ("m1", "M1 (mechanism)", "m", "M1"),
        ("AURKBB", "AURKB (gene)", "gene", "AURKB"),
        ("gamma resp", "Interferon gamma response (set of hallmark)", "collections", ["hallmark"]),
    ],
)
@pytest.mark.parametrize("start", ["overview", "perturbation"])
def test_one_box_on_every_page_finds_and_leads_there(one_model, start, text, label, key, value):
    page = opened(start)
    page.text_input(key="find_all").set_value(text).run()
    button = next(b for b in page.button if b.label.replace("\\", "") == label)
    button.click().run()
    assert finished(page)
    widgets = page.multiselect if key == "collections" else page.selectbox
    assert next(w for w in widgets if w.key == key).value == value


def test_item_10_mechanisms_are_found_by_the_names_that_pages_show(models, tiny, monkeypatch):
    suggested = {0: "Interferon signaling", 1: "Cell cycle, mitotic", 2: mechanisms.UNNAMED}
    monkeypatch.setattr(
        mechanisms, "suggestions", lambda _, ks: {k: {"name": suggested[k]} for k in ks}
    )
    write_names(opening.load(models / "tiny"), {1: Label("my Programme", "")})
    page = opened("overview")
    for text, label in (
        ("interferon sig", "M0: Interferon signaling (mechanism)"),
        ("programme", "M1: my Programme (mechanism)"),
        ("m2", "M2 (mechanism)"),
    ):
        page.text_input(key="find_all").set_value(text).run()
        assert [each for each in found(page) if each.endswith("(mechanism)")] == [label]
    page.button(key="hit 0 mechanism M2").click().run()
    assert page.selectbox(key="m").value == "M2"


def test_item_10_what_is_found_stays_in_its_place_until_it_is_closed(one_model):
    page = opened("overview")
    page.text_input(key="find_all").set_value("P").run()
    first = found(page)
    assert len(first) > 4
    for place in (1, 3, 2):
        name = first[place].partition(" ")[0]
        page.button(key=f"hit {place} perturbation {name}").click().run()
        assert finished(page)
        assert page.selectbox(key="perturbation").value == name
        assert found(page) == first
    keys = [b.key for b in page.sidebar.button]
    assert keys.index("close hits") == keys.index("hit 0 perturbation P1") + len(first)
    page.button(key="close hits").click().run()
    assert not found(page)
    assert page.text_input(key="find_all").value == ""
