"""Every page, run without a browser: it reaches its end, and a choice changes a number."""

import json
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from samsvae_core import bundle as bundles
from samsvae_core.composition import compose

ROOT = Path(__file__).resolve().parents[1]
MAIN = str(ROOT / "app" / "main.py")
VIEWS = ["overview", "masks", "compose", "mechanism"]
pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


@pytest.fixture
def models(tiny, tmp_path, monkeypatch) -> Path:
    """A folder with one bundle that a test may damage."""
    folder = tmp_path / "models"
    shutil.copytree(tiny.path, folder / "tiny")
    monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
    return folder


def opened(view: str, query: dict[str, str] | None = None) -> AppTest:
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update(query or {})
    page.switch_page(f"views/{view}.py")
    return page.run()


def finished(page: AppTest) -> bool:
    """Whether the page reached its last line; one that dies of a panic shows no exception."""
    assert not page.exception
    return any("SAMS-VAE Explorer" in caption.value for caption in page.caption)


def figures(page: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_reaches_its_end_without_an_error(models, view):
    page = opened(view)
    assert finished(page)
    assert not page.error
    assert page.title


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_so_where_there_is_no_model(tmp_path, monkeypatch, view):
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path))
    page = opened(view)
    assert finished(page)
    assert "There is no trained model" in page.error[0].value
    assert "samsvae train" in page.error[0].value.replace("\\", "")


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_says_what_is_wrong_with_a_damaged_model(models, view):
    (models / "tiny" / "masks.csv").write_text("perturbation\n")
    page = opened(view)
    assert finished(page)
    assert "checksum differs" in page.error[0].value


def test_a_broken_model_beside_a_good_one_does_no_harm(models, tiny):
    shutil.copytree(tiny.path, models / "abroken")
    (models / "abroken" / "weights.safetensors").write_bytes(b"")
    page = opened("overview")
    assert "checksum differs" in page.error[0].value
    page.sidebar.selectbox[0].select("tiny").run()
    assert not page.error
    assert finished(page)


def test_overview_shows_the_held_out_metrics_of_the_bundle(models, tiny):
    page = opened("overview")
    shown = page.dataframe[0].value.set_index("prediction")
    assert shown.loc["this model", "r"] == tiny.metrics["average_effects"]["pearson"]
    assert set(shown.index) == {"this model", *tiny.metrics["baselines"]}
    bound = next(metric for metric in page.metric if metric.label == "Held-out bound")
    assert bound.value == f"{tiny.metrics['iwelbo']['test']:.2f}"


def test_the_composed_table_is_what_the_library_says(models, tiny):
    page = opened("compose", {"c": "P1:1,P3:0.5"})
    assert finished(page)
    table = page.dataframe[0].value.set_index("gene")
    expected = compose(tiny, {"P1": 1.0, "P3": 0.5}).table
    assert table["shift"].to_dict() == pytest.approx(expected["shift"].to_dict())
    assert table["lower"].to_dict() == pytest.approx(expected["lower"].to_dict())


def test_a_dosage_of_nothing_gives_a_shift_of_exactly_zero(models):
    page = opened("compose", {"c": "P1:1"})
    assert page.dataframe[0].value["shift"].abs().max() > 0
    page.slider(key="dose P1").set_value(0.0).run()
    assert (page.dataframe[0].value["shift"] == 0).all()


def test_mechanisms_taken_out_by_a_link_are_out_of_the_table(models, tiny):
    page = opened("compose", {"c": "P1:1", "off": "0,1"})
    assert page.multiselect(key="compose_off").value == [0, 1]
    expected = compose(tiny, {"P1": 1.0}, without=[0, 1]).table["shift"].abs().max()
    assert page.dataframe[0].value["shift"].abs().max() == pytest.approx(expected)


def test_unknown_names_in_a_link_are_said_and_left_out(models):
    page = opened("compose", {"c": "P1:1,<b>NOPE</b>:1"})
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value  # escaped
    assert finished(page)


def test_compose_without_a_choice_offers_an_example(models):
    page = opened("compose")
    assert "No perturbation is chosen" in page.info[0].value
    page.button[0].click().run()
    assert len(page.dataframe[0].value) == 40
    assert finished(page)


def test_the_mask_map_shows_every_probability_of_the_table(models, tiny):
    page = opened("masks")
    marks = figures(page)[0]["data"][1]
    assert len(marks["customdata"]) == len(tiny.masks)
    shown = dict(zip(marks["customdata"], marks["text"], strict=True))
    for row in tiny.masks.itertuples():
        assert shown[f"{row.perturbation}|{row.mechanism}"] == f"{row.probability:.3f}"


def test_a_search_without_a_hit_says_why_the_map_is_empty(models):
    page = opened("masks")
    page.text_input(key="find").set_value("nothing like it").run()
    assert "Nothing to show" in page.info[0].value
    assert finished(page)


def test_the_enrichment_table_is_that_of_the_bundle(models, tiny):
    page = opened("mechanism")
    chosen = int(page.selectbox(key="m").value[1:])
    table = tiny.enrichment("hallmark").table
    expected = table[(table["mechanism"] == chosen) & (table["method"] == "gsea")]
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["fdr"].tolist() == pytest.approx(expected["fdr"].tolist())


def test_choosing_another_mechanism_changes_its_genes(models):
    page = opened("mechanism")
    options = page.selectbox(key="m").options
    if len(options) < 2:
        pytest.fail("The test bundle needs two active mechanisms.")
    before = figures(page)[1]["data"][0]
    page.selectbox(key="m").select_index(1).run()
    assert figures(page)[1]["data"][0] != before
    assert finished(page)


def test_names_with_markup_are_shown_as_text(models):
    from app import state

    assert state.plain("<b>*x*</b> [l](u) $y$ :red[z]") == (
        r"\<b\>\*x\*\</b\> \[l\]\(u\) \$y\$ \:red\[z\]"
    )
    assert bundles.models_folder() == models


@pytest.mark.parametrize("name", ["A,B", "A:0.5", "a b", "50%", "<b>x</b>", "名"])
def test_a_link_carries_any_name(name):
    from app import state

    assert state.read_link(state.as_link({name: 0.5, "C": 1.0})) == {name: 0.5, "C": 1.0}


def test_a_link_written_by_hand_is_read_leniently():
    from app import state

    assert state.read_link("A,B:x,:,C:9") == {"A": 1.0, "B": 1.0, "C": 2.0}


def test_a_composition_without_a_mechanism_is_not_compared_to_what_was_observed(models):
    page = opened("compose", {"c": "P1:1"})
    assert any(metric.label == "Pearson r over genes" for metric in page.metric)
    page = opened("compose", {"c": "P1:1", "off": "0"})
    assert not page.metric
    assert "no prediction of what was observed" in page.info[-1].value
