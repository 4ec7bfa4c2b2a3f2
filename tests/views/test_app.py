"""Every page, run without a browser: it reaches its end, and a choice changes a number."""

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cosine
from streamlit.testing.v1 import AppTest

from app.components import compare as shared
from app.components import mechanisms
from app.components import metrics_tables as scores
from app.pages import PAGES
from app.session import choices as choices_module
from app.session import composition, results, session_file, url
from samsvae_core.analysis import all_shifts as effects
from samsvae_core.analysis import gene_card as genes
from samsvae_core.analysis import gene_rankings, similarity, states
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.compose import cells_of, compare, compose
from samsvae_core.analysis.mechanism_names import Label, export_names, write_names
from samsvae_core.analysis.partners import inert, pairs_to_rank, rank_pairs
from samsvae_core.bundle import bundle as bundles
from samsvae_core.bundle import layout, opening, soundness
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation import evaluate
from samsvae_core.evaluation.evaluate import EvaluationConfig
from samsvae_core.genesets import collections, enrichment, screening, terms
from samsvae_core.genesets.prerank import Progress
from samsvae_core.pipeline import build, evidence_sweep, train
from samsvae_core.training.config import TrainConfig
from tests.oracles import similar_shifts

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "app"
MAIN = str(APP / "main.py")
VIEWS = [name for name in PAGES if name not in ("data", "train")]  # with tests of their own
WHOLE = {"unused": "false"}  # masks, with the mechanisms that nothing uses
TABLE = {"masks_tab": "Table of entries"}
NETWORK = {"masks_tab": "Network of shared mechanisms"}
NEAR_MISSES = {"masks_tab": "Near misses"}
ALL_GENES = {"perturbation_tab": "Table of all genes"}
NEAREST = {"perturbation_tab": "Perturbations like it"}
OF_A_MODEL = [name for name, page in PAGES.items() if page.needs_model]
pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


BRIEF = TrainConfig(steps=24, batch_size=128, particles=1, learning_rate=1e-2)
FULL, QUICK = evaluate.full_evaluation, EvaluationConfig(8, effect_draws=80, shift_draws=8)
KINDS = {
    "cpa": {"model": "cpa-vae"},
    "svae": {"model": "svae-plus"},
    "conditional": {"model": "conditional-vae"},
    "frontier": {"frontier": True},
    "values": {},  # a Gaussian likelihood, for values that are no counts
}


@pytest.fixture(scope="session")
def kind(screen, quick_tables, tmp_path_factory) -> Callable[[str], Bundle]:
    """A bundle of each of KINDS, hardly trained, made when first asked for; not to be changed."""
    folder = tmp_path_factory.mktemp("kinds")
    replicates = np.where(np.arange(len(screen.data.cells)) % 2 == 0, "left", "right")

    def made(name: str) -> Bundle:
        if (folder / name / "manifest.json").exists():
            return opening.load(folder / name)
        data = replace(screen.data, replicates=replicates)
        if name == "values":
            values = sp.csr_matrix(np.log1p(data.counts.toarray()))
            library = np.ones_like(data.library)
            data = replace(data, counts=values, library=library, is_counts=False)
        size = {"n_latent": 4, "n_hidden": 16}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluate, "full_evaluation", partial(FULL, config=QUICK))
            patch.setattr(evidence_sweep, "EVIDENCE", (0.08, 0.64, 2.56))
            patch.setattr(build, "COLLECTIONS", ())  # gene sets are tested with the small bundle
            return train.train(data, screen.parts, folder / name, size, BRIEF, **KINDS[name])

    return made


@pytest.fixture
def shown(kind, tmp_path, monkeypatch) -> Callable[[str], Bundle]:
    """Makes a copy of a bundle of KINDS the only one of the dashboard."""

    def alone(name: str) -> Bundle:
        shutil.copytree(kind(name).path, tmp_path / "shown" / name)
        monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path / "shown"))
        return opening.load(tmp_path / "shown" / name)

    return alone


def rewritten(bundle: Bundle, name: str, frame: pd.DataFrame | None) -> None:
    """Put another table into a bundle, or take it out."""
    (bundle.path / name).unlink(missing_ok=True)
    if frame is not None:
        frame.to_csv(bundle.path / name, index=False)
    layout.write_manifest(bundle.path, bundle.manifest["data"], "cpu")


def uncomposed(models: Path) -> None:
    """No shifts of all are kept of the bundle, nor of an equal one of a test before it."""
    rewritten(opening.load(models / "tiny"), layout.EFFECTS, None)
    bundle = opening.load(models / "tiny")
    results.forget_effects(bundle)
    effects.cache_file(bundle).unlink(missing_ok=True)


@pytest.fixture
def models(tiny, tmp_path, monkeypatch) -> Path:
    """A folder with one bundle that a test may damage."""
    folder = tmp_path / "models"
    shutil.copytree(tiny.path, folder / "tiny")
    monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
    return folder


@pytest.fixture
def edited(monkeypatch):
    """Bundles open whose tables do not follow from their weights: tests make rare cases of them."""
    monkeypatch.setattr(bundles.Bundle, "check", lambda bundle: None)
    monkeypatch.setattr(soundness, "check_table", lambda *table: None)


def opened(view: str, query: dict[str, str] | None = None) -> AppTest:
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.query_params.update(query or {})
    page.switch_page(f"views/{view}.py")
    return page.run()


def slider(page: AppTest, name: str):
    """Of the dosage of a perturbation."""
    return next(each for each in page.slider if each.label == f"Dosage of {name}")


def gone_back(page: AppTest, query: dict[str, str]) -> AppTest:
    """By the browser's back button, to an address of the same page."""
    page.query_params.clear()
    page.query_params.update(query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(url, "went_back", lambda: True)
        return page.run()


def finished(page: AppTest) -> bool:
    """Whether the page reached its last line; one that dies of a panic shows no exception."""
    assert not page.exception
    assert not [error.value for error in page.error if "Something went wrong" in error.value]
    return any("SAMS-VAE Explorer" in caption.value for caption in page.caption)


def figures(page: AppTest) -> list[dict]:
    return [json.loads(chart.proto.spec) for chart in page.get("plotly_chart")]


@pytest.mark.parametrize("view", VIEWS)
def test_every_view_reaches_its_end_without_an_error(models, view):
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
    table = table_with(page, "shift").set_index("gene")
    expected = compose(tiny, {"P1": 1.0, "P3": 0.5}).table
    assert table.columns.isin(expected.columns).all()
    assert table["shift"].to_dict() == pytest.approx(expected["shift"].to_dict())
    assert table["lower"].to_dict() == pytest.approx(expected["lower"].to_dict())


def test_a_dosage_of_nothing_gives_a_shift_of_exactly_zero(models):
    page = opened("compose", {"c": "P1:1"})
    assert table_with(page, "shift")["shift"].abs().max() > 0
    slider(page, "P1").set_value(0.0).run()
    assert (table_with(page, "shift")["shift"] == 0).all()


def test_mechanisms_taken_out_by_a_link_are_out_of_the_table(models, tiny):
    used = interpretation.matrix(tiny.masks, "active").loc["P1"]
    k = int(used[used].index[0])
    page = opened("compose", {"c": "P1:1", "off": str(k)})
    assert k not in page.pills(key="compose_in").value
    expected = compose(tiny, {"P1": 1.0}, without=[k]).table["shift"].abs().max()
    assert table_with(page, "shift")["shift"].abs().max() == pytest.approx(expected)


def test_without_any_mechanism_nothing_moves_at_all(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:1"})
    assert table_with(page, "shift")["shift"].abs().max() > 0
    page.button(key="all off").click().run()
    assert finished(page)
    assert (table_with(page, "shift")["shift"] == 0).all()
    page.button(key="all on").click().run()
    expected = compose(tiny, {"P1": 1.0, "P2": 1.0}).table["shift"]
    assert table_with(page, "shift").set_index("gene")["shift"].to_dict() == pytest.approx(
        expected.to_dict()
    )


def test_a_switch_takes_its_mechanism_out_and_puts_it_back(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:1"})
    before, on = table_with(page, "shift"), page.pills(key="compose_in").value
    k = next(k for k in on if k != "rest")
    page.pills(key="compose_in").unselect(k).run()
    expected = compose(tiny, {"P1": 1.0, "P2": 1.0}, without=[k]).table["shift"]
    shown = table_with(page, "shift").set_index("gene")["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())
    assert page.query_params["off"] in (str(k), [str(k)])
    page.pills(key="compose_in").select(k).run()
    pd.testing.assert_frame_equal(table_with(page, "shift"), before)


def test_undo_goes_back_redo_forward_and_starting_over_clears(models):
    page = opened("compose", {"c": "P1:1"})
    assert page.button(key="undo").disabled
    slider(page, "P1").set_value(0.5).run()
    assert not page.button(key="undo").disabled, "there is a way back at once"
    page.multiselect(key="compose_names").set_value(["P1", "P3"]).run()
    page.button(key="undo").click().run()
    assert not page.button(key="redo").disabled
    assert page.multiselect(key="compose_names").value == ["P1"]
    assert slider(page, "P1").value == 0.5
    page.button(key="undo").click().run()
    assert slider(page, "P1").value == 1.0
    assert page.button(key="undo").disabled
    page.button(key="redo").click().run()
    page.button(key="redo").click().run()
    assert page.multiselect(key="compose_names").value == ["P1", "P3"]
    assert page.query_params["c"] in ("P1:0.5,P3:1", ["P1:0.5,P3:1"])
    page.button(key="start over").click().run()
    assert page.multiselect(key="compose_names").value == []
    assert finished(page)
    page.button(key="undo").click().run()
    assert page.multiselect(key="compose_names").value == ["P1", "P3"]


def test_a_composition_starts_from_the_cells_of_a_condition(models, tiny):
    page = opened("compose", {"c": "P1:1", "from": "P2"})
    assert finished(page)
    cells = cells_of(tiny, "P2")
    expected = compose(tiny, {"P1": 1.0}, cells=cells).table["shift"]
    shown = table_with(page, "shift").set_index("gene")["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())
    assert "not from control" in words(page)
    page = opened("compose", {"c": "P1:1", "from": "<b>NOPE"})
    assert "There are no <b>NOPE to start from" in words(page)
    expected = compose(tiny, {"P1": 1.0}).table["shift"]
    shown = table_with(page, "shift").set_index("gene")["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())


def test_a_composition_starts_from_selected_cells_and_the_link_keeps_them(models, tiny):
    chosen = [3, 5, 8]
    code = choices_module.as_code(chosen, len(tiny.cells))
    page = opened("compose", {"c": "P1:1", "from": composition.SELECTED, "cells": code})
    cells = tiny.cells["cell"].iloc[chosen].tolist()
    expected = compose(tiny, {"P1": 1.0}, cells=cells).table["shift"]
    shown = table_with(page, "shift").set_index("gene")["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())
    assert page.query_params["cells"] in (code, [code])


def test_interaction_is_shown_beside_what_was_observed(models, tiny):
    pair = next(name for name in tiny.conditions.index if name.count("+") == 1)
    names = pair.split("+")
    both = ",".join(f"{name}:1" for name in names)
    page = opened("compose", {"c": both, "part": "Interaction"})
    assert finished(page)
    table = compose(tiny, dict.fromkeys(names, 1.0)).table
    r = np.corrcoef(table["interaction"], table["observed_interaction"])[0, 1]
    shown = next(m for m in page.metric if m.label == "Pearson r over genes, interaction")
    assert shown.value == f"{r:.2f}"
    page = opened("compose", {"c": "P1:1", "part": "Interaction"})
    assert "nothing to interact with" in page.info[-1].value


def test_unknown_names_in_a_link_are_said_and_left_out(models):
    page = opened("compose", {"c": "P1:1,<b>NOPE</b>:1"})
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value  # escaped
    assert finished(page)


def test_compose_without_a_choice_offers_an_example(models):
    page = opened("compose")
    assert "No perturbation is chosen" in page.info[0].value
    page.button(key="example").click().run()
    assert len(table_with(page, "shift")) == 40
    assert finished(page)


def test_mechanisms_that_nothing_uses_are_hidden_until_asked_for(monkeypatch):
    monkeypatch.setenv("SAMSVAE_MODELS", str(ROOT / "pretrained"))
    page = opened("masks", {"model": "papalexi2021"})
    assert len(figures(page)[0]["data"][1]["customdata"]) == 25 * 4
    assert "(16 that nothing uses are hidden)" in words(page)
    page.toggle(key="unused").set_value(False).run()
    assert len(figures(page)[0]["data"][1]["customdata"]) == 25 * 20
    assert "are hidden" not in words(page)


def test_the_mask_map_shows_every_probability_of_the_table(models, tiny):
    page = opened("masks", WHOLE)
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
    best = terms.grouped(expected).query("group == term")
    assert shown["term"].tolist() == best["term"].tolist()
    assert shown["fdr"].tolist() == pytest.approx(best["fdr"].tolist())
    assert (shown["similar"] + 1).sum() == len(expected)
    page.toggle(key="similar").set_value(False).run()
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["fdr"].tolist() == pytest.approx(expected["fdr"].tolist())


@pytest.mark.usefixtures("edited")
def test_a_model_made_anew_in_the_same_place_is_read_again(models, tiny):
    opened("overview")
    folder = models / "tiny"
    perturbations = pd.read_csv(folder / "perturbations.csv").replace({"P1": "PX"})
    perturbations.to_csv(folder / "perturbations.csv", index=False)
    layout.write_manifest(folder, tiny.manifest["data"], "cpu")
    assert "PX" in opened("compose").multiselect(key="compose_names").options


def test_up_and_down_are_shown_apart(models):
    page = opened("mechanism", {"direction": "Down"})
    page.toggle(key="similar").set_value(False).run()
    shown = [f.value for f in page.dataframe if "direction" in f.value]
    directions = set(shown[0]["direction"]) if shown else {"down"}
    assert directions == {"down"}
    assert finished(page)


def test_a_mechanism_is_named_and_the_name_is_kept_beside_the_model(models, tiny):
    page = opened("mechanism")
    name = page.selectbox(key="m").value
    page.text_input[0].set_value("my <b>*name*</b>")
    page.text_area[0].set_value("a note")
    page.button[0].click().run()
    assert finished(page)
    assert r"my \<b\>\*name\*\</b\>" in page.subheader[0].value
    kept = json.loads((models / "tiny.names.json").read_text())
    assert kept["mechanisms"][name[1:]] == {"name": "my <b>*name*</b>", "note": "a note"}
    again = opened("mechanism")
    assert r"my \<b\>" in again.subheader[0].value
    assert list(layout.list_bundles(models)) == ["tiny"]


def test_names_of_another_model_are_told_of_and_not_shown(models):
    (models / "tiny.names.json").write_text(
        '{"schema": 1, "checksum": "other", "mechanisms": {"0": {"name": "theirs", "note": ""}}}'
    )
    page = opened("mechanism")
    assert any("another model" in warning.value for warning in page.warning)
    assert "theirs" not in page.subheader[0].value
    assert finished(page)


def ended(page: AppTest) -> AppTest:
    """The page once the tests in the background are done."""
    for _ in range(60):
        if not any(button.label == "Cancel" for button in page.button):
            return page
        time.sleep(0.5)
        page.run()
    raise AssertionError("The tests have not ended.")


def test_a_collection_that_the_model_lacks_is_tested_when_it_is_chosen(models, tiny):
    page = ended(opened("mechanism", {"collection": "reactome"}))
    k = int(page.selectbox(key="m").value[1:])
    expected = enrichment.enrich(
        gene_rankings.of_mechanisms(tiny, [k]).scores, [collections.load_collection("reactome")]
    ).table
    expected = terms.grouped(expected[expected["method"] == "gsea"]).query("group == term")
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["nes"].tolist() == pytest.approx(expected["nes"].tolist())
    assert finished(page)


def test_all_mechanisms_are_tested_when_asked_and_named(models, tiny):
    page = opened("gene_sets", {"collections": ["hallmark", "reactome"]})
    assert finished(page)
    page.button(key="run all mechanisms").click().run()
    page = ended(page)
    assert finished(page)
    named = next(f.value for f in page.dataframe if "evidence" in f.value)
    ranked = gene_rankings.of_mechanisms(tiny)
    assert named["mechanism"].tolist() == [f"M{k}" for k in ranked.scores]
    sets = [collections.load_collection(name) for name in ("hallmark", "reactome")]
    table = enrichment.enrich(ranked.scores, sets).table
    expected = terms.suggested_names(table, list(ranked.scores))
    assert named["name"].tolist() == expected["name"].tolist()


def test_the_preview_is_that_of_the_library(models, tiny):
    page = opened("gene_sets", {"collections": ["hallmark"]})
    scores = gene_rankings.of_mechanisms(tiny).scores
    sets = collections.match(collections.load_collection("hallmark"), tiny.genes).collection
    z = screening.screen(scores, sets).z
    drawn = figures(page)[0]["data"][1]
    for place, text in zip(drawn["customdata"], drawn["text"], strict=True):
        term, _, k = place.rpartition("|M")
        assert f"{z.loc[term, int(k)]:+.2f}" in text


def test_no_collection_and_no_mechanism_are_said(models, shown):
    page = opened("gene_sets")
    page.multiselect(key="collections").set_value([]).run()
    assert "No collection is chosen" in page.info[0].value
    assert finished(page)
    shown("conditional")
    page = opened("gene_sets")
    assert "no mechanisms" in page.info[0].value
    assert finished(page)


def test_the_shift_of_a_composition_is_tested_when_asked(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:0.5", "part": "Gene sets"})
    page.button(key="run shift hallmark").click().run()
    page = ended(page)
    assert finished(page)
    shift = gene_rankings.of_shift(compose(tiny, {"P1": 1.0, "P2": 0.5}))
    table = enrichment.enrich(shift.scores, [collections.load_collection("hallmark")]).table
    expected = terms.grouped(table[table["method"] == "gsea"]).query("group == term")
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["nes"].tolist() == pytest.approx(expected["nes"].tolist())


def test_choosing_another_mechanism_changes_its_genes(models):
    page = opened("mechanism")
    options = page.selectbox(key="m").options
    if len(options) < 2:
        pytest.fail("The test bundle needs two active mechanisms.")
    before = figures(page)[1]["data"][0]
    page.selectbox(key="m").select_index(1).run()
    assert figures(page)[1]["data"][0] != before
    assert finished(page)


def test_a_composition_without_a_mechanism_is_not_compared_to_what_was_observed(models):
    page = opened("compose", {"c": "P1:1"})
    assert any(metric.label == "Pearson r over genes" for metric in page.metric)
    page = opened("compose", {"c": "P1:1", "off": "0"})
    assert not page.metric
    assert "no prediction of what was observed" in page.info[-1].value


# Every page with every kind of model


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("view", VIEWS)
def test_every_view_suits_every_kind_of_model(shown, view, name):
    shown(name)
    page = opened(view, {"c": "P1:1"} if view == "compose" else {})
    assert finished(page)
    assert not page.error


def words(page: AppTest) -> str:
    """All text of the page, without the marks that keep names from being Markdown."""
    parts = [*page.markdown, *page.caption, *page.info, *page.warning]
    return " ".join(part.value for part in parts).replace("\\", "")


def labels(page: AppTest) -> set[str]:
    widgets = [*page.multiselect, *page.slider, *page.toggle, *page.segmented_control]
    return {widget.label for widget in widgets}


def axes(page: AppTest) -> str:
    return json.dumps([figure["layout"] for figure in figures(page)])


def test_cpa_vae_has_no_mask_but_effects(shown):
    model = shown("cpa")
    page = opened("masks")
    assert "CPA-VAE has no mask: every perturbation moves every latent dimension" in words(page)
    assert not {"Active above", "Hide empty rows and columns"} & labels(page)
    assert "Near misses" not in [tab.label for tab in page.tabs]
    assert len(figures(page)[0]["data"][1]["customdata"]) == len(model.masks)
    table = opened("masks", TABLE).dataframe[0].value
    assert "probability" not in table
    assert len(table) == len(model.masks)


def test_the_conditional_vae_has_no_map_and_says_where_to_go(shown):
    shown("conditional")
    page = opened("masks")
    assert "no mask and no latent shifts" in page.info[0].value
    assert not figures(page)
    assert page.get("page_link")


def test_the_conditional_vae_has_loadings_that_no_perturbation_uses(shown):
    model = shown("conditional")
    page = opened("mechanism")
    assert "No perturbation of Conditional VAE uses a latent dimension" in page.info[0].value
    assert page.selectbox(key="m").options == [f"M{k}" for k in range(4)]
    rows = model.loadings[model.loadings["mechanism"] == 0]
    assert len(page.dataframe[0].value) == len(rows)
    assert "Gene sets" not in [header.value for header in page.header]


def test_svae_plus_takes_one_treatment(shown):
    shown("svae")
    page = opened("compose", {"c": "P1:1,P2:1"})
    assert page.multiselect(key="compose_names").value == ["P1"]
    assert "takes 1 at most, so left out: P2" in words(page)
    assert "cannot put perturbations together" in words(page)
    assert "interaction" not in page.dataframe[-1].value


def test_svae_plus_knows_a_measured_combination_by_its_name(shown):
    model = shown("svae")
    pair = next(name for name in model.perturbations.index if "+" in name)
    page = opened("compose", {"c": pair.replace("+", "%2B") + ":1"})
    assert finished(page)
    assert "Measured" in words(page)
    page = opened("masks")
    assert "SVAE+ takes each treatment whole" in words(page)


def test_without_any_interval_there_are_no_whiskers_no_columns_and_no_switches(shown):
    model = shown("conditional")
    rewritten(model, "calibration.csv", None)
    page = opened("compose", {"c": "P1:1,P2:1"})
    assert finished(page)
    assert not {"Interval", "Mechanisms in the sum"} & labels(page)
    assert not {"lower", "calibrated_lower", "probability_of_sign"} & set(table_with(page, "shift"))
    assert "array" not in figures(page)[0]["data"][0].get("error_x", {})
    assert "no interval to show" in words(page)


# Intervals


@pytest.fixture
def calibrated(models) -> Bundle:
    model = opening.load(models / "tiny")
    rewritten(
        model,
        "calibration.csv",
        pd.DataFrame({"gene": model.genes, "model_error": np.linspace(0.1, 2, 40)}),
    )
    return opening.load(models / "tiny")


def whiskers(page: AppTest) -> dict[str, tuple[float, float]]:
    """Ends of the interval of each gene in the ranking."""
    bar = next(f["data"][0] for f in figures(page) if f["data"][0]["type"] == "bar")
    genes = [gene.removeprefix("<i>").removesuffix("</i>") for gene in bar["y"]]
    ends = np.array(decoded(bar["customdata"])).reshape(-1, 2)
    return dict(zip(genes, map(tuple, ends), strict=True))


def decoded(values: object) -> np.ndarray:
    """An array of a figure, which Plotly may write in base 64."""
    import base64

    if isinstance(values, dict):
        return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
    return np.asarray(values)


def test_the_calibrated_interval_is_shown_until_the_own_one_is_chosen(calibrated):
    page = opened("compose", {"c": "P1:1"})
    table = compose(calibrated, {"P1": 1.0}).table
    for lower, upper in (("calibrated_lower", "calibrated_upper"), ("lower", "upper")):
        for gene, ends in whiskers(page).items():
            assert ends == pytest.approx(table.loc[gene, [lower, upper]].tolist())
        clear = int(((table[lower] > 0) | (table[upper] < 0)).sum())
        assert f"Of 40 genes, {clear} have a 90 % interval" in words(page)
        both = {"lower", "upper", "calibrated_lower", "calibrated_upper"}
        assert both <= set(table_with(page, "shift"))
        page.segmented_control(key="interval").select("own").run()


def test_the_caption_says_what_share_each_interval_held(calibrated):
    row = scores.coverage(calibrated.metrics).set_index("conditions of").loc["single"]
    text = words(opened("compose", {"c": "P1:1"}))
    assert f"Of {int(row['shifts']):,} shifts measured on test cells" in text
    assert f"{row['own, with sampling error']:.0%} in the model's own" in text
    assert f"{row['calibrated, with sampling error']:.0%} in the calibrated one" in text


def test_without_calibration_the_own_interval_is_the_only_one(models):
    model = opening.load(models / "tiny")
    rewritten(model, "calibration.csv", None)
    page = opened("compose", {"c": "P1:1"})
    assert "Interval" not in labels(page)
    assert "calibrated_lower" not in table_with(page, "shift")
    assert "in the calibrated one" not in words(page)


# Values that are no counts


def test_values_that_are_no_counts_are_nowhere_called_log2(shown):
    model = shown("values")
    assert model.model.config.likelihood == "gaussian"
    for view in ("compose", "mechanism"):
        page = opened(view, {"c": "P1:1"} if view == "compose" else {})
        assert "log2" not in axes(page) + words(page)
        assert "units of the data" in axes(page)
    card = model.card  # written by the core
    assert "log2" not in words(opened("overview")).replace(card, "")


# Evidence


def test_the_masks_table_has_the_evidence_of_every_entry(models, tiny):
    page = opened("masks", WHOLE | TABLE)
    table = table_with(page, "evidence").set_index(["perturbation", "mechanism"]).sort_index()
    expected = tiny.masks.set_index(["perturbation", "mechanism"]).sort_index()
    pd.testing.assert_frame_equal(table[expected.columns], expected)


@pytest.mark.usefixtures("edited")
def test_near_misses_are_those_of_the_library(models):
    model = opening.load(models / "tiny")
    masks = model.masks.copy()
    masks["active"] = masks["mechanism"] < 2
    masks["evidence"], masks["evidence_se"], masks["evidence_n"] = 0.1, 0.2, 9
    masks.loc[masks["mechanism"] == 3, "evidence"] = np.linspace(0.1, 0.9, 6)
    rewritten(model, "masks.csv", masks)
    page = opened("masks", NEAR_MISSES)
    found = interpretation.near_misses(opening.load(model.path).masks)
    assert 0 < len(found) < 6
    shown = next(
        f.value for f in page.dataframe if "evidence" in f.value and "active" not in f.value
    )
    assert shown["evidence"].tolist() == found["evidence"].tolist()
    assert f"{len(found)} of 12 inactive entries" in words(page)


def test_a_model_without_near_misses_says_so(models):
    model = opening.load(models / "tiny")
    rewritten(model, "masks.csv", model.masks.assign(evidence=0.0, evidence_se=1.0))
    page = opened("masks", NEAR_MISSES)
    assert "There is none" in page.info[-1].value
    assert not any("evidence" in frame.value for frame in page.dataframe)


def test_the_map_may_be_coloured_by_evidence(models, tiny):
    page = opened("masks", WHOLE)
    page.segmented_control(key="colour").select("evidence").run()
    assert finished(page)
    heat, marks = figures(page)[0]["data"][:2]
    said = dict(zip(marks["customdata"], marks["text"], strict=True))
    for row in tiny.masks.itertuples():
        wanted = "not tried" if np.isnan(row.evidence) else f"{row.evidence:+.2f}"
        assert said[f"{row.perturbation}|{row.mechanism}"] == wanted
    drawn = {symbol for line in heat["text"] for symbol in line}
    assert drawn <= {"+", "\u25cb", "\u00d7", ""}


# Masks: order, parts, comparing, network


def probabilities(tiny: Bundle) -> pd.DataFrame:
    names, n = list(tiny.perturbations.index), tiny.model.config.n_latent
    wide = tiny.masks["probability"].to_numpy().reshape(len(names), n)
    return pd.DataFrame(wide, index=names)


def rows_and_columns(page: AppTest) -> tuple[list[str], list[str]]:
    heat = figures(page)[0]["data"][0]
    return heat["y"], heat["x"]


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("Name", lambda t: {name: name for name in t.perturbations.index}),
        ("Mechanisms used", lambda t: (-(probabilities(t) > 0.5).sum(axis=1)).to_dict()),
        ("Training cells", lambda t: (-t.perturbations["train"]).to_dict()),
        (
            "Strength of effect",
            lambda t: {
                name: -np.linalg.norm(part["effect"])
                for name, part in t.masks.groupby("perturbation", sort=False)
            },
        ),
    ],
)
def test_rows_of_the_map_are_in_the_order_asked_for_and_keep_their_values(models, tiny, label, key):
    page = opened("masks", WHOLE | {"rows": label})
    rows, columns = rows_and_columns(page)
    by = key(tiny)
    assert rows == sorted(tiny.perturbations.index, key=by.__getitem__)  # stable: ties as before
    assert columns == ["M0", "M1", "M2", "M3"]
    shown = decoded(figures(page)[0]["data"][0]["z"]).reshape(len(rows), -1)
    np.testing.assert_allclose(shown, probabilities(tiny).loc[rows])
    bars = figures(page)[0]["data"][2]
    assert decoded(bars["x"]).tolist() == tiny.perturbations["train"].loc[rows].tolist()
    assert len(figures(page)[0]["data"]) == 3  # no tree, as nothing is clustered


def test_columns_of_the_map_may_go_by_their_users(models, tiny):
    _, columns = rows_and_columns(opened("masks", WHOLE | {"columns": "Number of users"}))
    users = (probabilities(tiny) > 0.5).sum(axis=0)
    assert columns == [f"M{k}" for k in sorted(users.index, key=lambda k: -users[k])]


def test_clustered_rows_have_their_tree_and_leave_the_address_clean(models, tiny):
    page = opened("masks")
    tree = figures(page)[0]["data"][3]
    assert np.isfinite(decoded(tree["x"])).sum() == 4 * (len(tiny.perturbations) - 1)
    assert not set(page.query_params) & {"rows", "columns", "part", "chosen", "threshold", "hide"}


def test_a_map_with_too_many_cells_is_shown_in_parts(models, monkeypatch):
    monkeypatch.setattr(shared, "MOST_CELLS", 8)  # two rows of four
    page = opened("masks", {"rows": "Name"})
    assert rows_and_columns(page)[0] == ["P1", "P2"]
    assert "Rows 1 to 2 of 6." in words(page)
    page.number_input(key=choices_module.ROWS).set_value(3).run()
    assert rows_and_columns(page)[0] == ["P5", "P6"]
    assert page.query_params[choices_module.ROWS] in ("3", ["3"])
    page.text_input(key="find").set_value("P1").run()
    assert rows_and_columns(page)[0] == ["P1"]
    assert rows_and_columns(opened("masks", {"rows": "Name", choices_module.ROWS: "2"}))[0] == [
        "P3",
        "P4",
    ]
    assert rows_and_columns(opened("masks", {"rows": "Name", choices_module.ROWS: "99"}))[0] == [
        "P1",
        "P2",
    ]


def test_a_long_table_is_cut_on_the_page_and_says_so(models, monkeypatch):
    monkeypatch.setattr(shared, "MOST_SENT", 5)
    page = opened("masks", WHOLE | TABLE)
    assert len(table_with(page, "evidence")) == 5
    assert "The first 5 of 24 rows, by probability; the files have all." in words(page)


def test_nothing_is_compared_before_it_is_chosen(models):
    page = opened("masks")
    assert "No perturbation is chosen" in words(page)
    assert all("first" not in frame.value for frame in page.dataframe)


def test_perturbations_of_a_link_are_compared_by_their_entries(models, tiny):
    page = opened("masks", {"chosen": "P2,P4"})
    assert finished(page)
    rows = tiny.masks[tiny.masks["perturbation"].isin(["P2", "P4"]) & tiny.masks["active"]]
    shown = table_with(page, "P2")
    assert list(shown.columns) == ["mechanism", "P2", "P4"]
    told = {
        (name, line["mechanism"].partition(":")[0]): line[name]
        for _, line in shown.iterrows()
        for name in ("P2", "P4")
        if pd.notna(line[name])
    }
    assert told == {
        (r.perturbation, f"M{r.mechanism}"): f"{r.effect:+.2f} ± {r.effect_sd:.2f}"
        for r in rows.itertuples()
    }
    sets = [set(rows.loc[rows["perturbation"] == name, "mechanism"]) for name in ("P2", "P4")]
    pair = table_with(page, "first").iloc[0]
    assert (pair["first"], pair["second"]) == ("P2", "P4")
    assert pair["shared"] == len(sets[0] & sets[1])
    assert pair["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    drawn = [
        x
        for figure in figures(page)
        for trace in figure["data"]
        if trace.get("text") and "90 % interval" in trace.get("hovertemplate", "")
        for x in decoded(trace["x"])
    ]
    assert sorted(drawn) == pytest.approx(sorted(rows["effect"]))


def test_names_to_compare_that_are_unknown_or_too_many_are_said_and_left_out(models, monkeypatch):
    monkeypatch.setattr(choices_module, "MAX_CHOSEN", 2)
    page = opened("masks", {"chosen": "P1,<b>NOPE</b>,P2,P3"})
    assert finished(page)
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value
    assert "Left out: P3" in page.info[1].value
    assert page.query_params["chosen"] in ("P1,P2", ["P1,P2"])


def test_perturbations_chosen_on_the_map_stay_and_are_not_those_of_another_model(models, tiny):
    page = opened("masks")
    page.session_state["chosen of another"] = ["P1"]
    page.run()
    assert "No perturbation is chosen" in words(page)
    page.session_state[f"chosen {tiny.checksum}"] = ["P3"]  # as the callback of a lasso does
    page.run()
    assert page.query_params["chosen"] in ("P3", ["P3"])
    page.segmented_control(key="colour").select("effect").run()
    (chosen,) = [box for box in page.multiselect if box.label == "Perturbations to compare"]
    assert chosen.value == ["P3"]
    next(button for button in page.button if button.label == "Choose none").click().run()
    assert "No perturbation is chosen" in words(page)
    assert "chosen" not in page.query_params


def planted(effects: dict[str, list[float]], has_masks: bool = True) -> Bundle:
    """What comparing reads of a bundle, with an entry in use wherever an effect is not 0."""
    rows = [
        {"perturbation": p, "mechanism": k, "effect": e, "effect_sd": 0.1, "active": e != 0}
        for p, row in effects.items()
        for k, e in enumerate(row)
    ]
    model = SimpleNamespace(has_masks=has_masks)
    return SimpleNamespace(masks=pd.DataFrame(rows).assign(probability=1.0), model=model)


def test_the_sentence_says_who_shares_what_who_is_alone_and_who_goes_the_other_way():
    model = planted({"A": [2, 0, 0, 1], "B": [1, 0, 0, 2], "C": [-1, 0, 3, 0], "D": [0, 0, 0, 0]})
    assert shared.in_words(model, list("ABCD")) == (
        "**A**, **B** and **C** share M0 (**C** the other way). **A** and **B** share M3. "
        "Only **C** uses M2. **D** uses no mechanism."
    )
    assert shared.in_words(model, list("ABC")).startswith("All 3 share M0 (**C** the other way).")
    assert shared.in_words(model, ["A"]) == "**A** uses M0 and M3."
    odd = planted({"*A*": [1]})
    assert shared.in_words(odd, ["*A*"]) == "**\\*A\\*** uses M0."


def test_without_masks_the_sentence_compares_directions():
    model = planted({"A": [1, 1], "B": [2, 2.1], "C": [-2, -2], "D": [1, 0]}, has_masks=False)
    said = shared.in_words(model, list("ABCD"))
    assert said == (
        "Most alike by direction of effect (cosine): **A** and **B** (+1.00); "
        "least: **A** and **C** (-1.00)."
    )


def test_cpa_vae_compares_directions_and_has_no_network(shown):
    model = shown("cpa")
    first, second = list(model.perturbations.index)[:2]
    page = opened("masks", {"chosen": f"{first},{second}"})
    assert finished(page)
    effect = [model.masks.loc[model.masks["perturbation"] == n, "effect"] for n in (first, second)]
    pair = table_with(page, "first").iloc[0]
    assert pair["cosine"] == pytest.approx(1 - cosine(*effect))
    assert "shared" not in pair
    assert not {"Network of shared mechanisms", "Near misses"} & {tab.label for tab in page.tabs}


def test_the_links_of_the_network_are_the_entries_above_the_threshold(models, tiny):
    page = opened("masks", {"threshold": "0.3"} | NETWORK)
    shown = next(
        f.value for f in page.dataframe if "probability" in f.value and "active" not in f.value
    )
    expected = tiny.masks[tiny.masks["probability"] > 0.3]
    found = zip(shown["perturbation"], shown["mechanism"].str.partition(":")[0], strict=True)
    assert sorted(found) == sorted(
        (r.perturbation, f"M{r.mechanism}") for r in expected.itertuples()
    )
    assert f"{len(expected)} links, each a mask probability above 0.3" in words(page)


def test_the_network_may_be_of_the_chosen_alone(models, tiny):
    name = tiny.masks.loc[tiny.masks["active"], "perturbation"].iloc[0]
    page = opened("masks", {"chosen": name, "only": "true"} | NETWORK)
    rows = tiny.masks[(tiny.masks["perturbation"] == name) & tiny.masks["active"]]
    assert f"{len(rows)} links" in words(page)


@pytest.mark.usefixtures("edited")
def test_a_network_of_nothing_says_so(models, tiny):
    model = opening.load(models / "tiny")
    rewritten(model, "masks.csv", model.masks.assign(probability=0.1, active=False))
    page = opened("masks", {"chosen": "P1,P2"} | NETWORK)
    assert finished(page)
    assert "There is nothing to link" in words(page)
    page = opened("masks", {"chosen": "P1,P2"})
    assert "None of the chosen uses a mechanism" in words(page)
    assert "use no mechanism" in words(page)


# Held-out figures


def table_with(page: AppTest, column: str) -> pd.DataFrame:
    return next(frame.value for frame in page.dataframe if column in frame.value)


def test_a_kind_of_condition_can_be_looked_at_alone(models, tiny):
    page = opened("overview")
    page.segmented_control(key="kind").select("single").run()
    pd.testing.assert_frame_equal(
        page.dataframe[0].value, scores.average_effects(tiny.metrics, "single")
    )


def test_split_half_is_told_as_the_ceiling(models):
    text = words(opened("overview"))
    assert "*split-half*: what a second sample" in text
    assert "no prediction" in text


def test_overview_draws_the_predictive_checks_with_their_table(models, tiny):
    page = opened("overview", {"held_out": "Whole distribution"})
    checks = tiny.metrics["predictive_checks"]
    curve = next(f for f in figures(page) if f["data"][0].get("name") == "as it should be")
    assert decoded(curve["data"][1]["y"]).tolist() == checks["mean"]["inside"]
    table = table_with(page, "too low").set_index("statistic")
    assert table.loc["mean", "inside 90 %"] == checks["mean"]["inside"][2]
    assert table.loc["mean", "n"] == checks["mean"]["n"]


def test_overview_shows_coverage_interaction_and_replicates_where_there_are_any(shown):
    model = shown("cpa")
    page = opened("overview")
    names = [tab.label for tab in page.tabs]
    assert {"Intervals", "Interaction", "Replicates", "Each condition"} <= set(names)
    assert "How sparse" not in names
    rows = table_with(opened("overview", {"held_out": "Replicates"}), "replicate")
    assert set(rows["replicate"]) == {"left", "right"}
    page = opened("overview", {"held_out": "Intervals"})
    held = table_with(page, "own, with sampling error")
    assert held["shifts"].tolist() == [
        model.metrics["coverage"][kind]["n"] for kind in held["conditions of"]
    ]


def test_overview_without_replicates_or_interaction_has_no_tabs_for_them(models):
    model = opening.load(models / "tiny")
    metrics = {**model.metrics, "interaction": None}
    (model.path / "metrics.json").write_bytes(layout.to_json(metrics))
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    page = opened("overview", {"held_out": "Interaction"})
    assert finished(page)
    assert not {"Interaction", "Replicates"} & {tab.label for tab in page.tabs}
    assert "The address asks for the part Interaction, which is not here." in words(page)


def test_the_frontier_is_drawn_with_its_table(shown):
    model = shown("frontier")
    page = opened("overview", {"held_out": "How sparse"})
    assert "How sparse" in [tab.label for tab in page.tabs]
    pd.testing.assert_frame_equal(table_with(page, "mask_evidence"), model.frontier)
    drawn = next(f for f in figures(page) if "diamond" in str(f["data"][0].get("marker")))
    assert len(drawn["data"][0]["marker"]["symbol"]) == len(model.frontier)


# One gene


def links(page: AppTest) -> list[dict]:
    """Links to other pages of the dashboard: label, page, and what they carry."""
    found = [link.proto for link in page.get("page_link")]
    return [{"label": f.label, "page": f.page, "query": f.query_string} for f in found]


def test_the_table_of_a_gene_is_that_of_the_library(models, tiny):
    page = opened("gene", {"g": "CCL5"})
    assert finished(page)
    shown = table_with(page, "n_observed")
    expected = genes.moved_by(genes.effect_table(tiny), "CCL5")
    pd.testing.assert_frame_equal(shown.drop(columns="support"), expected[shown.columns[:-1]])
    assert shown["perturbation"].tolist() == expected["perturbation"].tolist()
    alone = {name: compose(tiny, {name: 1.0}).support for name in shown["perturbation"]}
    assert dict(zip(shown["perturbation"], shown["support"], strict=True)) == alone


def test_bars_and_diamonds_of_a_gene_are_its_predicted_and_observed_shifts(models, tiny):
    bars, diamonds = figures(opened("gene", {"g": "CCL5"}))[0]["data"]
    expected = genes.moved_by(genes.effect_table(tiny), "CCL5").dropna(subset=["observed"])
    drawn = dict(zip(bars["y"], decoded(bars["x"]), strict=True))
    assert [drawn[name] for name in diamonds["y"]] == pytest.approx(expected["shift"].tolist())
    assert decoded(diamonds["x"]) == pytest.approx(expected["observed"].tolist())
    error = decoded(diamonds["error_x"]["array"])
    assert error == pytest.approx(1.645 * expected["observed_se"].to_numpy())


@pytest.mark.parametrize("name", ["AURKB", "aurkb", "STK12", "ENSG00000178999"])
def test_a_link_to_a_gene_may_have_any_of_its_names(models, name):
    page = opened("gene", {"g": name})
    assert page.selectbox(key="gene").value == "AURKB"
    assert not page.info
    assert page.query_params["g"] == "AURKB"
    assert "aurora kinase B" in words(page)


def test_an_unknown_gene_in_a_link_is_said_and_another_shown(models):
    page = opened("gene", {"g": "CCL55<b>"})
    assert finished(page)
    assert "'CCL55<b>' is none of the 40 genes" in words(page)
    assert "Did you mean CCL5?" in words(page)
    assert "<b>" not in page.info[0].value  # escaped
    first = page.selectbox(key="gene").value
    assert "g" not in page.query_params  # as where it is looked at first
    assert opened("gene").selectbox(key="gene").value == first


def test_a_gene_is_found_in_the_box_by_its_other_names(models):
    page = opened("gene", {"g": "CCL5"})
    labels = page.selectbox(key="gene").options
    assert next(label for label in labels if "CD317" in label).startswith("BST2 (")
    assert max(label.count(",") for label in labels) == 3
    page.selectbox(key="gene").select("BST2").run()
    assert finished(page)
    assert page.query_params["g"] == "BST2"
    assert "bone marrow stromal cell antigen 2" in words(page)


def test_the_card_of_a_gene_leads_to_its_pages_elsewhere(models):
    page = opened("gene", {"g": "CCL5"})
    found = {button.proto.label: button.proto.url for button in page.get("link_button")}
    assert found == genes.links("CCL5")
    assert "Entrez: 6352" in words(page)
    assert "Not perturbed in this model" in words(page)


def test_the_loadings_of_a_gene_are_those_of_the_library(models, tiny):
    page = opened("gene", {"g": "CCL5"})
    shown = table_with(page, "rank_up")
    active = interpretation.active_mechanisms(tiny.masks)
    expected = genes.mechanisms_of(tiny, "CCL5").set_index("mechanism").loc[active]
    assert shown["mechanism"].tolist() == [f"M{k}" for k in active]
    for column in expected:
        assert shown[column].tolist() == expected[column].tolist()
    strongest = f"M{expected['loading'].abs().idxmax()}"
    label, query = f"{strongest}, all genes", f"m={strongest}"
    assert {"label": label, "page": "mechanism", "query": query} in links(page)


def test_the_calibrated_interval_of_a_gene_is_shown_until_the_own_one_is_chosen(calibrated):
    page = opened("gene", {"g": "CCL5"})
    rows = genes.moved_by(genes.effect_table(calibrated), "CCL5").set_index("perturbation")
    for lower, upper in (("calibrated_lower", "calibrated_upper"), ("lower", "upper")):
        for name, ends in whiskers(page).items():
            assert ends == pytest.approx(rows.loc[name, [lower, upper]].tolist())
        clear = int(((rows[lower] > 0) | (rows[upper] < 0)).sum())
        assert f"excludes zero for {clear} of 6 perturbations" in words(page)
        page.segmented_control(key="interval").select("own").run()


def test_a_gene_without_any_interval_has_no_whiskers_and_is_told_why(shown):
    rewritten(shown("conditional"), "calibration.csv", None)
    page = opened("gene")
    assert finished(page)
    assert "so there is no interval" in words(page)
    assert "array" not in figures(page)[0]["data"][0].get("error_x", {})
    assert not {"lower", "calibrated_lower"} & set(table_with(page, "n_observed"))


def test_a_gene_of_the_conditional_vae_has_no_mechanisms_and_is_told_why(shown):
    shown("conditional")
    page = opened("gene")
    assert "Conditional VAE has no mechanisms in use" in words(page)
    assert len(page.dataframe) == 1


def test_a_perturbation_that_was_never_alone_is_marked(models):
    model = opening.load(models / "tiny")
    conditions = model.conditions.reset_index()
    conditions.loc[conditions["condition"] == "P2", "train"] = 0
    rewritten(model, "conditions.csv", conditions)
    page = opened("gene", {"g": "CCL5"})
    marked = [name for name in figures(page)[0]["data"][0]["y"] if "\u2020" in name]
    assert marked == ["P2 \u2020"]
    assert "\u2020 not trained on alone" in words(page)


def still(bundle: Bundle) -> effects.Effects:
    """Its effects, with every predicted shift zero."""
    found = effects.whole_effects(bundle)
    shift = np.zeros((len(bundle.genes), len(bundle.perturbations)))
    return replace(found, arrays={**found.arrays, "shift": shift})


def test_a_gene_that_no_perturbation_moves_is_told_of(models, tiny, monkeypatch):
    monkeypatch.setattr("app.components.all_shifts.of", lambda model: still(tiny))
    page = opened("gene")
    assert "all predicted shifts are zero" in words(page)
    assert finished(page)


def test_a_gene_page_is_there_while_every_perturbation_is_composed(models, monkeypatch):
    """All but what moves it, with how far that is; and that, too, once it is known."""
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 0.05)
    uncomposed(models)
    go = threading.Event()

    def slowly(*args, progress, cancelled):
        progress(Progress(2, 6))
        go.wait(60)
        return effects.whole_effects(*args)

    monkeypatch.setattr("app.session.page.whole_effects", slowly)
    page = opened("gene", {"g": "CCL5"})
    try:
        assert finished(page)
        assert "2 of 6" in page.get("progress")[0].proto.text
        assert len(page.dataframe) == 1  # loadings on mechanisms
        assert page.subheader[0].value == "*CCL5*"
    finally:
        go.set()
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 60.0)
    page.run()
    assert finished(page)
    assert not page.get("progress")
    assert table_with(page, "n_observed")["perturbation"].nunique() == 6


def test_composing_all_that_fails_says_why_and_can_be_tried_again(models, monkeypatch):
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 60.0)  # others may be at it just now
    uncomposed(models)

    def broken(*args, progress, cancelled):
        raise ValueError("observed.parquet cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("app.session.page.whole_effects", broken)
        page = opened("gene", {"g": "CCL5"})
        assert finished(page)
        assert any("cannot be read" in warning.value for warning in page.warning)
    page.button(key="compose_all_again").click().run()
    assert finished(page)
    assert not any("cannot be read" in warning.value for warning in page.warning)
    assert table_with(page, "n_observed")["perturbation"].nunique() == 6


def test_a_gene_named_in_markup_is_shown_as_text(models):
    name = "<b>*x*</b> $y$ [l](u) :red[z]"
    model = opening.load(models / "tiny")
    for file in ("genes.csv", "calibration.csv", "loadings.parquet", "observed.parquet"):
        path = model.path / file
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        table["gene"] = table["gene"].replace("CCL5", name)
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    page = opened("gene", {"g": name})
    assert finished(page)
    assert page.selectbox(key="gene").value == name
    said = [*page.markdown, *page.caption, *page.info, *page.subheader, *page.title]
    raw = " ".join(part.value for part in said)
    assert page.subheader[0].value == r"*\<b\>\*x\*\</b\> \$y\$ \[l\]\(u\) \:red\[z\]*"
    assert not [mark for mark in ("<b>", "[l](u)", "$y$", ":red[") if mark in raw]


def test_a_perturbation_of_the_gene_itself_is_linked_and_placed(models):
    model = opening.load(models / "tiny")
    for file in ("perturbations.csv", "masks.csv", "perturbations_umap.csv"):
        table = pd.read_csv(model.path / file)
        table["perturbation"] = table["perturbation"].replace("P2", "TCP228")  # CCL5
        rewritten(model, file, table)
    page = opened("gene", {"g": "CCL5"})
    assert finished(page)
    place = table_with(page, "n_observed")["perturbation"].tolist().index("TCP228") + 1
    assert "Its own perturbation, TCP228" in words(page)
    assert f"place {place} of 6" in words(page)
    label = "TCP228 is perturbed in this model: open it in Compose"
    assert {"label": label, "page": "compose", "query": "c=TCP228%3A1"} in links(page)


def test_a_link_to_a_mechanism_holds_when_it_has_a_name(models, tiny):
    (models / "tiny.names.json").write_bytes(export_names(tiny, {1: Label("mine")}))
    page = opened("mechanism", {"m": "M1"})
    assert page.selectbox(key="m").value == "M1"
    assert page.subheader[0].value == "M1: mine"
    assert page.query_params["m"] == "M1"
    page.selectbox(key="m").select("M0").run()
    assert page.query_params.get("m", "") == ""  # the first of all


# One perturbation


def renamed(model: Bundle, old: str, new: str) -> Bundle:
    """The bundle with another name for a perturbation; in combinations it keeps the old one."""
    for file, column in (
        ("perturbations.csv", "perturbation"),
        ("masks.csv", "perturbation"),
        ("perturbations_umap.csv", "perturbation"),
        ("conditions.csv", "condition"),
    ):
        table = pd.read_csv(model.path / file)
        table[column] = table[column].replace(old, new)
        rewritten(model, file, table)
    for file in ("observed.parquet", "cells.parquet"):
        table = pd.read_parquet(model.path / file)
        table["condition"] = table["condition"].replace(old, new)
        table.to_parquet(model.path / file)
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    return opening.load(model.path)


def test_the_tables_of_a_perturbation_are_those_of_the_library(models, tiny):
    page = opened("perturbation", {"p": "P2"} | ALL_GENES)
    assert finished(page)
    expected = tiny.masks[tiny.masks["perturbation"] == "P2"].set_index("mechanism")
    shown = table_with(page, "evidence")
    places = [int(name[1:].partition(":")[0]) for name in shown["mechanism"]]
    assert sorted(places) == interpretation.active_mechanisms(tiny.masks)
    for column in ("probability", "effect", "effect_sd", "evidence", "evidence_se", "evidence_n"):
        assert shown[column].tolist() == pytest.approx(
            expected.loc[places, column].tolist(), nan_ok=True
        )
    assert (shown["state"] == "in use").tolist() == expected.loc[places, "active"].tolist()
    table = table_with(page, "calibrated_lower").set_index("gene")
    composed = compose(tiny, {"P2": 1.0}).table
    for column in table:
        assert table[column].to_dict() == pytest.approx(composed[column].to_dict())


def test_the_nearest_perturbations_are_those_of_the_library(models, tiny):
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    shown = table_with(page, "r_observed").set_index("perturbation").sort_index()
    by_mask = similarity.similar_perturbations(tiny.masks, "P2").sort_index()
    by_shift = similar_shifts(genes.effect_table(tiny), "P2").sort_index()
    assert shown[["shared", "jaccard"]].equals(by_mask[["shared", "jaccard"]])
    uses = tiny.masks.groupby("perturbation")["active"].any()
    compared = [name for name in shown.index if uses[name]]
    assert shown.loc[compared, "cosine"].tolist() == pytest.approx(by_mask.loc[compared, "cosine"])
    for column in ("r_observed", "n_observed"):
        assert shown[column].tolist() == pytest.approx(by_shift[column].tolist(), nan_ok=True)
    assert shown.loc[compared, "r_predicted"].tolist() == pytest.approx(
        by_shift.loc[compared, "r_predicted"]
    )


def test_another_perturbation_is_chosen_in_the_box_or_gone_to_from_the_table(models, tiny):
    default, one, another = interpretation.strengths(tiny.masks).index[:3]
    page = opened("perturbation", {"p": one} | NEAREST)
    assert page.query_params["p"] in (one, [one])
    page.selectbox(key="perturbation").select(default).run()
    assert page.query_params.get("p", "") == ""
    page.selectbox(key="perturbation").select(another).run()
    assert finished(page)
    assert page.query_params["p"] in (another, [another])
    nearest = table_with(page, "r_observed")["perturbation"].iloc[0]
    page.button(key="go").click().run()
    assert finished(page)
    assert page.subheader[0].value == nearest
    assert page.selectbox(key="perturbation").value == nearest
    assert page.query_params.get("p", default) in (nearest, [nearest])


def test_a_perturbation_in_words_has_its_place_its_cells_and_its_certain_genes(models, tiny):
    text = words(opened("perturbation", {"p": "P2"}))
    strengths = interpretation.strengths(tiny.masks)
    length, sd = strengths.loc["P2"]
    place = strengths.index.get_loc("P2") + 1
    assert f"{length:.2f} ± {sd:.2f} standard deviations" in text
    assert f"place {place} of 6." in text
    cells = tiny.conditions.loc["P2"]
    assert f"measured alone in {cells.sum()} cells ({cells['train']} training" in text
    more = tiny.perturbations.loc["P2", ["train", "validation", "test"]].sum() - cells.sum()
    assert f"; {more} more have it with others" in text
    assert "P2 is none of the 40 genes" in text


@pytest.mark.parametrize("link", ["CCL5", "ccl5", "TCP228", "ENSG00000271503"])
def test_a_link_to_a_perturbation_may_have_any_name_of_its_gene(models, link):
    renamed(opening.load(models / "tiny"), "P2", "TCP228")
    page = opened("perturbation", {"p": link})
    assert page.selectbox(key="perturbation").value == "TCP228"
    assert not page.info
    assert "C-C motif chemokine ligand 5" in words(page)


def test_the_shift_of_its_own_gene_is_told_with_intervals(models):
    model = renamed(opening.load(models / "tiny"), "P2", "TCP228")
    rewritten(model, "calibration.csv", None)
    page = opened("perturbation", {"p": "TCP228"})
    table = compose(opening.load(models / "tiny"), {"TCP228": 1.0}).table
    row = table.loc["CCL5"]
    place = table["shift"].abs().rank(ascending=False)["CCL5"]
    text = words(page)
    assert f"Its own gene, *CCL5*: predicted {row['shift']:+.2f} log2 (90 % interval" in text
    assert f"{row['lower']:+.2f} to {row['upper']:+.2f}), place {place:.0f} of 40" in text
    low, high = row["observed"] + 1.645 * row["observed_se"] * np.array([-1, 1])
    assert f"observed {row['observed']:+.2f} (90 % interval {low:+.2f} to {high:+.2f})" in text
    label = "Gene CCL5: what else moves it"
    assert {"label": label, "page": "gene", "query": "g=CCL5"} in links(page)


def test_a_gene_outside_the_panel_has_links_to_pages_elsewhere(models):
    renamed(opening.load(models / "tiny"), "P2", "GATA1")
    page = opened("perturbation", {"p": "GATA1"})
    found = {button.proto.label: button.proto.url for button in page.get("link_button")}
    assert found == genes.links("GATA1")
    assert "GATA1 is none of the 40 genes of this model, under any name" in words(page)
    assert not [link for link in links(page) if link["page"] == "gene"]


def test_an_unknown_perturbation_in_a_link_is_said_and_another_shown(models, tiny):
    page = opened("perturbation", {"p": "P22<b>"})
    assert finished(page)
    assert "This model knows no perturbation 'P22<b>'" in words(page)
    assert "<b>" not in page.info[0].value  # escaped
    strongest = interpretation.strengths(tiny.masks).index[0]
    assert page.selectbox(key="perturbation").value == strongest


@pytest.mark.parametrize("name", ["<b>*x*</b> $y$ [l](u) :red[z]", "a/b ?&#+%", "名:0.5, '\""])
def test_a_perturbation_of_any_name_is_shown_as_text(models, name):
    model = renamed(opening.load(models / "tiny"), "P2", name)
    page = opened("perturbation", {"p": name})
    assert finished(page)
    assert page.selectbox(key="perturbation").value == name
    assert page.subheader[0].value.replace("\\", "") == name
    said = [*page.markdown, *page.caption, *page.info, *page.subheader, *page.header]
    raw = " ".join(part.value for part in said)
    assert not [mark for mark in ("<b>", "[l](u)", "$y$", ":red[") if mark in raw]
    assert f"measured alone in {compose(model, {name: 1.0}).n_observed} cells" in words(page)


def idle(model: Bundle, name: str) -> None:
    """Switch every mechanism of a perturbation off; the last is a near miss."""
    masks = model.masks.copy()
    rows = masks["perturbation"] == name
    masks.loc[rows, ["active", "evidence", "evidence_se", "evidence_n"]] = [False, 0.1, 0.2, 9]
    active = interpretation.active_mechanisms(masks)
    masks.loc[rows & (masks["mechanism"] == active[-1]), "evidence"] = 0.5
    rewritten(model, "masks.csv", masks)


@pytest.mark.usefixtures("edited")
def test_a_perturbation_without_a_mechanism_says_so_and_names_its_near_miss(models):
    idle(opening.load(models / "tiny"), "P2")
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert finished(page)
    text = words(page)
    assert "**P2** uses no mechanism: with" in text
    assert "P2 uses none of these mechanisms" in page.info[0].value
    shown = table_with(page, "evidence")
    assert shown["state"].tolist() == ["near miss"] + ["off"] * (len(shown) - 1)
    assert "(evidence +0.500 ± 0.200 se, 9 held-out cells)" in text
    nearest = table_with(page, "r_observed")
    assert not {"cosine", "r_predicted"} & set(nearest)
    assert nearest["r_observed"].is_monotonic_decreasing
    other = table_with(opened("perturbation", {"p": "P4"} | NEAREST), "r_observed").set_index(
        "perturbation"
    )
    assert other.loc["P2", ["cosine", "r_predicted"]].isna().all()
    assert other["r_predicted"].notna().any()


@pytest.mark.usefixtures("edited")
def test_a_perturbation_that_was_not_measured_alone_says_so(models):
    model = opening.load(models / "tiny")
    rewritten(model, "conditions.csv", model.conditions.drop(index="P2").reset_index())
    observed = model.observed[model.observed["condition"] != "P2"]
    observed.to_parquet(model.path / "observed.parquet")
    rewritten(model, layout.EFFECTS, None)
    perturbations = model.perturbations.reset_index()
    perturbations.loc[perturbations["perturbation"] == "P2", "train_alone"] = 0
    rewritten(model, "perturbations.csv", perturbations)
    page = opened("perturbation", {"p": "P2"})
    assert finished(page)
    assert "P2 was not measured alone at dosage 1" in page.info[-1].value
    assert "In training in combinations only" in words(page)
    assert not page.metric
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert "r_observed" not in table_with(page, "r_predicted")


def test_a_perturbation_of_a_model_without_masks_has_effects_on_all_dimensions(shown):
    shown("cpa")
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert "CPA-VAE has no mask, so **P2** moves all 4 latent dimensions" in words(page)
    table = table_with(page, "evidence")
    assert len(table) == 4
    assert not {"state", "probability"} & set(table)
    assert not {"jaccard", "shared"} & set(table_with(page, "r_observed"))


def test_a_perturbation_of_the_conditional_vae_is_compared_by_shifts_alone(shown):
    model = shown("conditional")
    page = opened("perturbation", NEAREST)
    most = model.perturbations["train"].idxmax()
    assert page.selectbox(key="perturbation").value == most
    assert "Conditional VAE has no mechanisms in use" in page.info[0].value
    assert list(table_with(page, "r_observed")) == [
        "perturbation",
        "r_predicted",
        "r_observed",
        "n_observed",
    ]


def test_a_large_model_composes_all_perturbations_only_when_asked(models, monkeypatch):
    monkeypatch.setattr("app.components.shifts.AT_ONCE", 100)
    monkeypatch.setattr("app.components.all_shifts.BRIEF", 60.0)
    uncomposed(models)
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert finished(page)
    assert "r_observed" not in page.dataframe[-1].value
    page.toggle(key="nearest_shifts").set_value(True).run()
    assert {"jaccard", "r_predicted", "r_observed"} <= set(page.dataframe[-1].value)
    assert finished(page)


def test_partners_are_those_of_the_library_for_a_list_of_ones_own(models, tiny):
    page = opened("partners")
    page.segmented_control(key="genes_from").set_value("My own list").run()
    page.text_area(key="gene_list").set_value(
        f"{tiny.genes[0]}, {tiny.genes[1].lower()} NOPE"
    ).run()
    assert finished(page)
    assert "NOPE" in words(page)
    expected = rank_pairs(tiny, tiny.genes[:2])
    shown = table_with(page, "sum_of_singles")
    assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())
    assert shown["first"].tolist() == expected["first"].tolist()
    page.selectbox(key="pair_with").set_value("P2").run()
    page.toggle(key="unseen").set_value(False).run()
    shown = table_with(page, "sum_of_singles")
    assert set(shown["first"]) == {"P2"}
    assert len(shown) == 5 - len(inert(tiny))


def test_item_11_partners_say_which_pairs_are_left_out_and_raise_or_lower(models, tiny):
    page = opened("partners")
    term = page.selectbox(key="set_hallmark").value
    genes = collections.usable_sets(collections.load_collection("hallmark"), tiny.genes)[term]
    n = len(pairs_to_rank(tiny, with_inert=True)) - len(pairs_to_rank(tiny))
    assert n
    assert f"{n} pairs are left out" in words(page)
    page.toggle(key="inert").set_value(True).run()
    assert "pairs are left out" not in words(page)
    assert len(table_with(page, "sum_of_singles")) == len(pairs_to_rank(tiny, with_inert=True))
    page.toggle(key="inert").set_value(False).run()
    for way in ("raise", "lower"):
        page.segmented_control(key="move").set_value(way.capitalize()).run()
        assert finished(page)
        expected = rank_pairs(tiny, genes, direction=way)
        if expected.empty:
            assert f"No pair is predicted to {way} the genes" in words(page)
        else:
            assert f"would {way} the" in words(page)
            shown = table_with(page, "sum_of_singles")
            assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())
    page.selectbox(key="pair_with").set_value(inert(tiny)[0]).run()
    assert "uses no mechanism, so with any other it does what the other does alone" in words(page)
    assert finished(page)


def test_partners_of_a_known_set_are_of_its_measured_genes(models, tiny):
    page = opened("partners")
    assert finished(page)
    term = page.selectbox(key="set_hallmark").value
    sets = collections.usable_sets(collections.load_collection("hallmark"), tiny.genes)
    expected = rank_pairs(tiny, sets[term])
    shown = table_with(page, "sum_of_singles")
    assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())


# Cells


def points(figure: dict) -> pd.DataFrame:
    """What a map of cells shows, by the place of the cell in the sample: x, y, group."""
    rows = []
    for trace in figure["data"]:
        x, y = decoded(trace["x"]), decoded(trace["y"])
        group = trace["name"].rpartition(" (")[0]
        rows += zip(map(int, trace["customdata"]), x, y, [group] * len(x), strict=True)
    return pd.DataFrame(rows, columns=["place", "x", "y", "group"]).set_index("place").sort_index()


def took(page: AppTest, model: Bundle, places: list[int]) -> AppTest:
    """The page after these cells were lassoed, which no test without a browser can do."""
    page.session_state[f"cells of {model.checksum}"] = places
    return page.run()


def test_every_cell_is_on_both_maps_at_its_place_and_in_its_group(models, tiny):
    names = list(dict.fromkeys(tiny.cells["condition"]))[:2]
    page = opened("cells", {"highlight": ",".join(names)})
    assert page.multiselect(key="highlight").value == names
    for figure, axes in zip(figures(page), ("umap", "basal"), strict=True):
        shown = points(figure)
        np.testing.assert_allclose(shown["x"], tiny.cells[f"{axes}_1"], rtol=1e-6)
        np.testing.assert_allclose(shown["y"], tiny.cells[f"{axes}_2"], rtol=1e-6)
        group = tiny.cells["condition"].where(tiny.cells["condition"].isin(names))
        assert shown["group"].tolist() == group.fillna("all other cells").tolist()
    assert f"{len(tiny.cells)} of 600" in words(page)


def test_the_first_conditions_in_colour_are_control_and_those_that_move_farthest(models, tiny):
    page = opened("cells")
    chosen = page.multiselect(key="highlight").value
    strength = interpretation.strengths(tiny.masks)["strength"]
    single = [name for name in strength.index if name in set(tiny.cells["condition"])]
    pairs = {name for name in tiny.cells["condition"] if "+" in name}
    assert chosen[0] == "control"
    assert [name for name in chosen[1:] if name not in pairs] == single[
        : len(set(chosen) - pairs) - 1
    ]


def test_names_that_are_not_on_the_map_are_said_and_left_out(models):
    page = opened("cells", {"highlight": "<b>NOPE</b>,control"})
    assert finished(page)
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value  # escaped
    assert page.multiselect(key="highlight").value == ["control"]
    assert page.query_params["highlight"] in ("control", ["control"])


@pytest.mark.parametrize("state", ["Perturbed", "Basal"])
def test_cells_are_coloured_by_their_state_along_a_mechanism(models, tiny, state):
    page = opened("cells", {"by": "Mechanism", "m": "M1", "latent": state})
    expected = tiny.cells[f"{'shifted' if state == 'Perturbed' else 'basal'} M1"]
    for figure in figures(page):
        (trace,) = figure["data"]
        order = [int(place) for place in trace["customdata"]]
        np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected[order], rtol=1e-6)
        assert trace["marker"]["cmin"] == -trace["marker"]["cmax"]
    assert finished(page)


def test_cells_are_coloured_by_the_measured_level_of_a_gene(models, tiny):
    page = opened("cells", {"by": "Gene", "g": "CCL5"})
    (trace,) = figures(page)[0]["data"]
    order = [int(place) for place in trace["customdata"]]
    expected = tiny.cell_values("CCL5")[order]
    np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected, rtol=1e-6)
    assert "*CCL5* as measured, log2(1 + 1e4 x / total)" in words(page)
    assert "<i>CCL5</i>, measured (log2)" in json.dumps(trace)


def test_without_measured_values_a_gene_is_shown_as_decoded(models, tiny):
    model = opening.load(models / "tiny")
    rewritten(model, layout.CELL_COUNTS, None)
    page = opened("cells", {"by": "Gene", "g": "CCL5"})
    (trace,) = figures(page)[0]["data"]
    order = [int(place) for place in trace["customdata"]]
    expected = states.decoded_values(tiny, "CCL5")[order]
    np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected, rtol=1e-6)
    assert "as the model expects it" in words(page)
    assert finished(page)


@pytest.mark.parametrize("by", ["Perturbation", "Gene", "Mechanism", "Split"])
def test_a_model_made_before_has_one_map_and_says_what_to_do(models, tiny, by):
    model = opening.load(models / "tiny")
    old = ["cell", "condition", "split", "umap_1", "umap_2"]
    tiny.cells[old].to_parquet(model.path / "cells.parquet")
    rewritten(model, layout.CELL_COUNTS, None)
    page = opened("cells", {"by": by})
    assert finished(page)
    assert not page.error
    assert len(figures(page)) == 1
    assert "This model was made before a map of basal states was kept" in words(page)
    assert ("This model came without" in words(page)) == (by in ("Gene", "Mechanism"))
    assert "--resume" in words(page)


def test_the_conditional_vae_has_one_map_and_is_told_why(shown):
    shown("conditional")
    page = opened("cells", {"by": "Mechanism"})
    assert finished(page)
    assert "its perturbed and basal states are one" in page.info[0].value
    assert len(figures(page)) == 1
    assert page.selectbox(key="m").label == "Latent dimension"
    assert "State" not in labels(page)
    assert "same shift" not in words(page)


def test_values_of_cells_that_are_no_counts_are_as_in_the_file(shown):
    model = shown("values")
    page = opened("cells", {"by": "Gene", "g": model.genes[0]})
    assert "measured: the values of the file" in words(page)
    assert "log2" not in words(page) + axes(page)


def test_the_table_of_selected_cells_and_its_summary_are_those_of_the_cells(models, tiny):
    page = opened("cells", {"by": "Mechanism", "m": "M0"})
    assert "No cell is selected" in words(page)
    assert len(page.dataframe[0].value) == len(tiny.cells)
    taken = [1, 4, 5, 9]
    page = took(page, tiny, taken)
    assert finished(page)
    table = table_with(page, "cell")
    expected, value = tiny.cells.iloc[taken], tiny.cells["shifted M0"].astype(float)
    assert table["cell"].tolist() == expected["cell"].tolist()
    assert table["condition"].tolist() == expected["condition"].tolist()
    assert table["M0, perturbed"].tolist() == expected["shifted M0"].tolist()
    inside = value.index.isin(taken)
    for rows, name in ((inside, "selected"), (~inside, "other")):
        mean, error = value[rows].mean(), value[rows].sem()
        assert f"**{mean:.2f}** ± {error:.2f} in {rows.sum()} {name} cells" in words(page)
    found = table_with(page, "share_selected").set_index("condition")
    for condition, row in found.iterrows():
        here = (tiny.cells["condition"] == condition).to_numpy()
        assert row["selected"] == (here & inside).sum()
        assert row["share_selected"] == pytest.approx(here[inside].mean())
        assert row["share_shown"] == pytest.approx(here.mean())
        assert row["ratio"] == pytest.approx(here[inside].mean() / here.mean())
    excess = found["share_selected"] - found["share_shown"]
    assert excess.is_monotonic_decreasing


def test_selected_cells_stay_when_the_colour_changes_and_stand_out_on_the_other_map(models, tiny):
    page = took(opened("cells"), tiny, [2, 3])
    page.segmented_control(key="by").set_value("split").run()
    first, second = figures(page)
    assert "selectedpoints" not in json.dumps(first)
    marked = [
        int(trace["customdata"][i])
        for trace in second["data"]
        for i in decoded(trace["selectedpoints"])
    ]
    assert sorted(marked) == [2, 3]
    found = table_with(page, "share_selected")
    assert found["split"].tolist()
    assert found["selected"].sum() == 2
    page.button(key="release").click().run()
    assert "No cell is selected" in words(page)
    assert "selectedpoints" not in json.dumps(figures(page))


def test_all_cells_may_be_selected(models, tiny):
    page = took(opened("cells", {"by": "Mechanism"}), tiny, list(range(len(tiny.cells))))
    assert finished(page)
    assert "other cells" not in words(page).replace("all other cells", "")
    assert "In excess" not in words(page)


def test_cells_selected_on_one_model_are_not_those_of_another(models, tiny):
    page = opened("cells")
    page.session_state["cells of another"] = [0]
    page.run()
    assert "No cell is selected" in words(page)


def test_many_cells_are_drawn_by_webgl():
    from app.figures.maps import cell_map
    from app.figures.style import MOST_SVG

    kinds = {}
    for n in (MOST_SVG, MOST_SVG + 1):
        frame = pd.DataFrame({"x": np.zeros(n), "y": np.zeros(n), "condition": "A"})
        group = pd.Series(pd.Categorical(frame["condition"]))
        figure = cell_map(frame[["x", "y"]], frame["condition"], group, "condition", False)
        kinds[n] = {trace.type for trace in figure.data}
    assert list(kinds.values()) == [{"scatter"}, {"scattergl"}]


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("signed", [False, True])
def test_a_gene_that_is_the_same_in_all_cells_is_drawn(tiny, value, signed):
    from app.figures.maps import cell_map

    same, places = pd.Series([value] * len(tiny.cells)), tiny.cells[["umap_1", "umap_2"]]
    marker = cell_map(places, tiny.cells["condition"], same, "G", False, signed).data[0].marker
    assert marker.cmin <= value <= marker.cmax
    assert marker.cmin < marker.cmax


@pytest.mark.usefixtures("edited")
def test_conditions_named_in_markup_are_shown_as_text_on_maps(models, tiny):
    model, name = opening.load(models / "tiny"), "<b>*x*</b> $y$"
    first = tiny.cells["condition"].iloc[0]
    cells = tiny.cells.assign(condition=tiny.cells["condition"].replace(first, name))
    cells.to_parquet(model.path / "cells.parquet")
    conditions = model.conditions.reset_index().replace({first: name})
    rewritten(model, "conditions.csv", conditions)
    page = opened("cells", {"highlight": "%3Cb%3E%2Ax%2A%3C%2Fb%3E%20%24y%24"})
    assert page.multiselect(key="highlight").value == [name]
    assert "<b>" not in json.dumps(figures(page))
    page = took(page, opening.load(model.path), [0])
    assert finished(page)
    raw = " ".join(part.value for part in [*page.markdown, *page.caption])
    assert not [mark for mark in ("<b>", "*x*", "$y$") if mark in raw]


def test_what_each_perturbation_contributes_is_its_effect_times_its_dosage(models, tiny):
    page = opened("compose", {"c": "P1:0.5,P2:1", "off": ""})
    assert finished(page)
    shown = table_with(page, "sum")
    effect = interpretation.matrix(tiny.masks, "effect")
    for row in shown.to_dict("records"):
        k = int(row["mechanism"].partition(":")[0][1:])
        assert row["P1"] == pytest.approx(0.5 * effect.loc["P1", k])
        assert row["sum"] == pytest.approx(row["P1"] + row["P2"])
    k = int(shown["mechanism"].iloc[0].partition(":")[0][1:])
    page.pills(key="compose_in").unselect(k).run()
    assert table_with(page, "sum")["sum"].iloc[0] == 0


def test_two_compositions_are_compared_on_the_same_draws_and_the_link_keeps_both(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:1", "part": "A against B"})
    page.button(key="keep b").click().run()
    assert "A and B are the same" in words(page)
    assert page.query_params["b"] in ("P1:1,P2:1", ["P1:1,P2:1"])
    page.multiselect(key="compose_names").set_value(["P1"]).run()
    assert finished(page)
    one, two = compose(tiny, {"P1": 1.0}), compose(tiny, {"P1": 1.0, "P2": 1.0})
    expected = compare(tiny, one, two)["difference"]
    shown = table_with(page, "difference").set_index("gene")["difference"]
    assert shown.to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)
    again = opened("compose", {"c": "P1:1", "b": "P1:1,P2:1", "part": "A against B"})
    shown = table_with(again, "difference").set_index("gene")["difference"]
    assert shown.to_dict() == pytest.approx(expected.to_dict(), abs=1e-6)
    next(b for b in again.button if b.label == "Compare no more").click().run()
    assert "b" not in again.query_params
    assert finished(again)


def test_what_the_bundle_holds_is_shown_without_a_test_while_its_sets_are_the_same(
    models, tiny, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("tested anew")

    monkeypatch.setattr(enrichment, "enrich", never)
    assert "nes" in table_with(opened("mechanism"), "leading_edge")
    assert "nes" in table_with(opened("gene_sets", {"collections": ["hallmark"]}), "leading_edge")
    bundle = opening.load(models / "tiny")
    other = replace(collections.load_collection("hallmark"), checksum="another release")
    assert bundle.holds(collections.load_collection("hallmark"))
    assert not bundle.holds(other)


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
def test_one_box_on_every_page_finds_and_leads_there(models, start, text, label, key, value):
    page = opened(start)
    page.text_input(key="find_all").set_value(text).run()
    button = next(b for b in page.button if b.label.replace("\\", "") == label)
    button.click().run()
    assert finished(page)
    widgets = page.multiselect if key == "collections" else page.selectbox
    assert next(w for w in widgets if w.key == key).value == value


def found(page: AppTest) -> list[str]:
    """What the search box shows below it, in its order."""
    return [b.label.replace("\\", "") for b in page.button if b.key.startswith("hit ")]


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


def test_item_10_what_is_found_stays_in_its_place_until_it_is_closed(models):
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


def test_a_name_of_nothing_is_said_to_be_that(models):
    page = opened("overview")
    page.text_input(key="find_all").set_value("<b>nothing").run()
    assert any(r"called \<b\>nothing" in caption.value for caption in page.caption)
    assert finished(page)


def test_a_dosage_of_a_link_that_cannot_be_is_said(models):
    page = opened("compose", {"c": "P1:9,P2:nan,P3:0.50"})
    assert finished(page)
    assert "asks for P1:9, P2:nan." in page.info[0].value.replace("\\", "")
    doses = {name: slider(page, name).value for name in ("P1", "P2", "P3")}
    assert doses == {"P1": 2.0, "P2": 1.0, "P3": 0.5}


def test_a_link_to_the_whole_composition_puts_mechanisms_back(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:1", "off": "0"})
    assert 0 not in page.pills(key="compose_in").value
    gone_back(page, {"c": "P1:1,P2:1"})
    assert 0 in page.pills(key="compose_in").value
    whole = compose(tiny, {"P1": 1.0, "P2": 1.0}).table["shift"].abs().max()
    assert table_with(page, "shift")["shift"].abs().max() == pytest.approx(whole)


def test_what_was_kept_to_compare_with_is_used_whole_or_not_at_all(models):
    page = opened("compose", {"c": "P1:1", "b": "P1:1,NOTHERE:1", "part": "A against B"})
    assert finished(page)
    assert "cannot be composed in this model: it does not know NOTHERE" in words(page)
    assert not any("difference" in frame.value for frame in page.dataframe)


# What was clicked is in the address


def test_a_link_to_a_cell_of_the_mask_map_shows_its_card(models, tiny):
    entry = tiny.masks[tiny.masks["active"]].iloc[0]
    cell = f"{entry['perturbation']}|{entry['mechanism']}"
    page = opened("masks", {"cell": cell})
    assert finished(page)
    assert f"Probability {entry['probability']:.3f}" in words(page)
    assert page.query_params["cell"] in (cell, [cell])
    page = opened("masks", {"cell": "<b>|99"})
    assert finished(page)
    assert "The address asks for <b>|99, which is not here" in words(page)
    assert "cell" not in page.query_params


def test_a_link_to_a_gene_set_shows_its_genes(models, tiny):
    page = opened("mechanism")
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    row = shown.iloc[1]
    page = opened("mechanism", {"set": f"hallmark|{row['term']}"})
    assert finished(page)
    assert f"**{terms.readable(row['term'])}** ({row['direction']})" in words(page)


@pytest.mark.parametrize(
    ("view", "query", "said"),
    [
        ("mechanism", {"m": "M99"}, "M99 is no mechanism in use"),
        ("mechanism", {"collection": "mine"}, "the collection mine, which is not here"),
        ("gene_sets", {"collections": ["mine", "hallmark"]}, "the collections mine, which is not"),
        ("compose", {"c": "P1:1", "interval": "own"}, "the interval own, which is not here"),
        ("cells", {"cells": "nonsense"}, "none of this model"),
        ("cells", {"by": "nonsense"}, "the colour nonsense, which is not here"),
        ("masks", {"colour": "nonsense"}, "the colour nonsense, which is not here"),
        ("overview", {"model": "<b>"}, "the model <b>, which is not here"),
    ],
)
def test_what_an_address_asks_for_in_vain_is_said(models, view, query, said):
    page = opened(view, query)
    assert finished(page)
    assert said in words(page)


@pytest.mark.parametrize("view", VIEWS)
def test_a_bound_choice_that_is_none_of_its_options_is_said(models, view):
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


# Kept views, and sessions


def kept(page: AppTest) -> list:
    return list(page.session_state["kept"])


def test_a_view_is_kept_with_what_it_shows(models, tiny):
    page = opened("compose", {"c": "P1:1,P2:0.5"})
    shown = table_with(page, "shift")
    page.button(key="keep view").click().run()
    (view,) = kept(page)
    assert view.title == "Compose: P1+P2:0.5"
    assert view.checksum == tiny.checksum
    tables = {item.name: item.frame for item in view.items if hasattr(item, "frame")}
    pd.testing.assert_frame_equal(
        tables["shift_P1+P2:0.5"].reset_index(drop=True), shown.reset_index(drop=True)
    )
    drawn = [json.loads(item.json)["data"] for item in view.items if hasattr(item, "json")]
    assert drawn == [figure["data"] for figure in figures(page)]
    page.button(key="keep view").click().run()
    assert len(kept(page)) == 1  # the same view again


def saved_session(tiny: Bundle, **changed: object) -> bytes:
    pages = {
        "compose": {"c": ["P1:1,P3:0.5"], "n_genes": ["30"]},
        "masks": {"colour": ["Signed effect"]},
    }
    views = (
        session_file.Kept(title, page, query, checksum)
        for title, page, query, checksum in (
            ("", "compose", {"c": ["P1:1,P2:0.5"], "off": ["rest"]}, tiny.checksum),
            ("", "masks", {"rows": ["Name"]}, tiny.checksum),
            ("", "compose", {"c": ["P3:1"]}, tiny.checksum),
            ("", "gene", {"g": ["CCL5"]}, tiny.checksum),
            ("", "gene", {}, tiny.checksum),
            ("", "gene", {}, "0" * 64),
        )
    )
    own = {"mine": "SET ONE\tnone\t" + "\t".join(tiny.genes[:10]) + "\n"}
    session = session_file.Session(tiny.name, tiny.checksum, pages, views, own, {})
    return session_file.written(session._replace(**changed))


def uploaded(content: bytes) -> AppTest:
    page = opened("report")
    page.file_uploader[0].set_value([("s.json", content, "application/json")]).run()
    return page


def test_a_session_draws_its_views_again_and_shows_its_pages(models, tiny):
    page = uploaded(saved_session(tiny))
    assert "5 kept views, 1 gene-set files" in words(page)
    assert "1 kept views are of another model" in words(page)
    page.button(key="session use").click().run()
    assert finished(page)
    views = kept(page)
    titles = [view.title.partition(" without ")[0] for view in views]
    first_gene = opened("gene").selectbox(key="gene").value
    wanted = ["Compose: P1+P2:0.5", "Masks", "Compose: P3", "Gene: CCL5", f"Gene: {first_gene}"]
    assert titles == wanted
    first = compose(tiny, {"P1": 1.0, "P2": 0.5}, without=unused(tiny, ["P1", "P2"]))
    table = next(i.frame for i in views[0].items if getattr(i, "name", "") == "shift_P1+P2:0.5")
    assert table.set_index("gene")["shift"].to_dict() == pytest.approx(
        first.table["shift"].to_dict()
    )
    page.query_params.clear()  # as the menu does
    page.switch_page("views/compose.py").run()
    assert finished(page)
    assert page.multiselect(key="compose_names").value == ["P1", "P3"]
    assert page.slider(key="n_genes").value == 30
    page.query_params.clear()
    page.switch_page("views/masks.py").run()
    assert page.segmented_control(key="colour").value == "effect"
    page.query_params.clear()
    page.switch_page("views/gene_sets.py").run()
    assert "mine" in page.multiselect(key="collections").options
    assert page.multiselect(key="collections").value == ["hallmark", "reactome"]


def test_a_link_is_followed_to_a_page_that_a_session_has_not_shown_yet(models, tiny):
    page = uploaded(saved_session(tiny, kept=()))
    page.button(key="session use").click().run()
    page.switch_page("views/compose.py")
    page.query_params["c"] = "P2:1"
    page.run()
    assert page.multiselect(key="compose_names").value == ["P2"]


def test_a_session_with_sets_that_cannot_be_used_here_is_refused_whole(models, tiny):
    page = uploaded(saved_session(tiny, collections={"hallmark": "A\tx\tG1\n"}))
    assert "the name of a shipped collection" in page.error[0].value
    page = uploaded(saved_session(tiny, collections={"mine": "A"}))
    assert page.error
    page = uploaded(saved_session(tiny, names={"schema": 99, "mechanisms": {}}))
    assert "another version" in page.error[0].value
    assert not [button for button in page.button if button.key == "session use"]
    assert finished(page)


def unused(bundle: Bundle, names: list[str]) -> list[int]:
    active = interpretation.matrix(bundle.masks, "active").loc[names].any()
    return [int(k) for k in active.index[~active]]


def test_a_session_of_another_model_and_a_damaged_one_say_so(models, tiny):
    page = uploaded(saved_session(tiny, checksum="0" * 64, model="<b>other"))
    assert "of the model '<b>other'" in page.error[0].value.replace("\\", "")
    assert "<b>" not in page.error[0].value
    assert not [button for button in page.button if button.key == "session use"]
    page = uploaded(saved_session(tiny)[:-9])
    assert "cannot be read as JSON" in page.error[0].value
    assert finished(page)


# What is chosen, and its address


@pytest.mark.parametrize("gap", ["behind", "gone back"])
def test_item_02_an_address_that_is_behind_takes_no_choice_back(models, gap):
    page = opened("compose", {"c": "P1:1"})
    page.pills(key="compose_in").unselect(page.pills(key="compose_in").value[0]).run()
    slider(page, "P1").set_value(0.9).run()
    off = page.pills(key="compose_in").value
    if gap == "gone back":
        gone_back(page, {"c": "P1:1"})
    else:
        page.query_params.clear()  # as a browser sends it that has not heard of the first yet
        page.query_params["c"] = "P1:1"
        page.run()
    assert finished(page)
    assert (page.pills(key="compose_in").value == off) is (gap == "behind")
    assert slider(page, "P1").value == (0.9 if gap == "behind" else 1.0)
    assert page.query_params["c"] in (c := f"P1:{slider(page, 'P1').value:g}", [c])


def number(page: AppTest, name: str):
    """The box of a dosage, beside its slider."""
    label = f"Dosage of {name} as a number"
    return next(each for each in page.number_input if each.label == label)


def test_item_02_slider_box_figure_and_address_have_one_dosage(models, tiny):
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


@pytest.mark.parametrize(
    ("mix", "rest"),
    [
        ("P1:0.5", "P1 was measured at dosage 1: set it to 1 to compare."),
        ("P1:1,P3:1", "Measured alone: P1, P3. To compare one, remove the others above."),
        ("P1:0.5,P3:1", "remove the others above and set its dosage to 1."),
    ],
)
def test_what_was_not_measured_tells_which_part_can_be_compared(models, mix, rest):
    page = opened("compose", {"c": mix})
    (told,) = (info.value for info in page.info if "was not measured" in info.value)
    assert rest in told.replace("\\", "")


def test_item_02_nothing_is_given_to_a_widget_that_has_it(models):
    """What a run gives is shown in place of what was chosen meanwhile; a second run gives none."""
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
    """The second is another one by name."""
    shutil.copytree(models / "tiny", models / "zweites")
    return models


def shown_model(page: AppTest) -> str:
    """By the line at the end, by the box, and by the address, which agree."""
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


def test_item_01_parts_of_masks_and_of_compose_are_two_things(models, monkeypatch):
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


def test_item_01_an_address_with_a_part_of_masks_from_before_opens(models, monkeypatch):
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
    assert made == ["address.py"]  # where the model is put into all of them


def test_item_01_a_link_to_a_model_that_is_not_here_says_so_and_stays(two_models):
    page = opened("train", {"model": "zweites"})
    page.switch_page("views/overview.py")
    page.query_params["model"] = "gone"
    page.run()
    assert "asks for the model gone" in words(page)
    assert shown_model(page) == "zweites"


def test_item_01_a_kept_view_opens_as_it_was_kept(models):
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
