"""The page Overview."""

import pandas as pd
import pytest

from app.components import metrics_tables as scores
from samsvae_core.bundle import bundle, layout, opening
from tests.views.pages import axes, decoded, figures, finished, opened, table_with, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_overview_shows_the_held_out_metrics_of_the_bundle(one_model, tiny):
    page = opened("overview")
    shown = page.dataframe[0].value.set_index("prediction")
    assert shown.loc["this model", "r"] == tiny.metrics["average_effects"]["pearson"]
    assert set(shown.index) == {"this model", *tiny.metrics["baselines"]}
    bound = next(metric for metric in page.metric if metric.label == "Held-out bound")
    assert bound.value == f"{tiny.metrics['iwelbo']['test']:.2f}"


def test_values_that_are_no_counts_are_nowhere_called_log2(shown):
    model = shown("values")
    assert model.model.config.likelihood == "gaussian"
    for view in ("compose", "mechanism"):
        page = opened(view, {"c": "P1:1"} if view == "compose" else {})
        assert "log2" not in axes(page) + words(page)
        assert "units of the data" in axes(page)
    card = model.card  # written by the core
    assert "log2" not in words(opened("overview")).replace(card, "")


def test_what_the_model_accounts_for_is_told(one_model, monkeypatch):
    assert "ccounts for" not in words(opened("overview"))
    levels = {"the *batch*": ["a", "b", "c"], "donor": ["x", "y"]}
    monkeypatch.setattr(bundle.Bundle, "levels", levels)
    page = opened("overview")
    assert finished(page)
    assert (
        "Accounts for the *batch* (3 levels) and donor (2 levels): shifts are those of the mean "
        "cell over their levels." in words(page)
    )
    assert "the \\*batch\\*" in " ".join(text.value for text in page.markdown)


def test_a_kind_of_condition_can_be_looked_at_alone(one_model, tiny):
    page = opened("overview")
    page.segmented_control(key="kind").select("single").run()
    pd.testing.assert_frame_equal(
        page.dataframe[0].value, scores.average_effects(tiny.metrics, "single")
    )


def test_split_half_is_told_as_the_ceiling(one_model):
    text = words(opened("overview"))
    assert "*split-half*: what a second sample" in text
    assert "not a prediction" in text


def test_overview_draws_the_predictive_checks_with_their_table(one_model, tiny):
    page = opened("overview", {"held_out": "Whole distribution"})
    checks = tiny.metrics["predictive_checks"]
    curve = next(f for f in figures(page) if f["data"][0].get("name") == "as it should be")
    assert decoded(curve["data"][1]["y"]).tolist() == checks["mean"]["inside"]
    table = table_with(page, "too low").set_index("statistic")
    assert table.loc["mean", "inside 90 %"] == checks["mean"]["inside"][2]
    assert table.loc["mean", "n"] == checks["mean"]["n"]


def test_overview_shows_coverage_interaction_and_replicates_where_there_are_any(shown):
    model = shown("cpa-vae")
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


def test_a_name_of_nothing_is_said_to_be_that(one_model):
    page = opened("overview")
    page.text_input(key="find_all").set_value("<b>nothing").run()
    assert any(r"called \<b\>nothing" in caption.value for caption in page.caption)
    assert finished(page)
