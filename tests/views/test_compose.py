"""The page Compose."""

import numpy as np
import pandas as pd
import pytest

from app.components import metrics_tables as scores
from app.session import choices as choices_module
from app.session import composition
from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.compose import compare, compose
from samsvae_core.analysis.draws import cells_of
from samsvae_core.bundle import opening
from samsvae_core.genesets import collections, enrichment, terms
from tests.views.pages import (
    ended,
    figures,
    finished,
    gone_back,
    labels,
    opened,
    rewritten,
    slider,
    table_with,
    whiskers,
    words,
)

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_the_composed_table_is_what_the_library_says(one_model, tiny):
    page = opened("compose", {"c": "P1:1,P3:0.5"})
    assert finished(page)
    table = table_with(page, "shift").set_index("gene")
    expected = compose(tiny, {"P1": 1.0, "P3": 0.5}).table
    assert table.columns.isin(expected.columns).all()
    assert table["shift"].to_dict() == pytest.approx(expected["shift"].to_dict())
    assert table["lower"].to_dict() == pytest.approx(expected["lower"].to_dict())


def test_a_dosage_of_nothing_gives_a_shift_of_exactly_zero(one_model):
    page = opened("compose", {"c": "P1:1"})
    assert table_with(page, "shift")["shift"].abs().max() > 0
    slider(page, "P1").set_value(0.0).run()
    assert (table_with(page, "shift")["shift"] == 0).all()


def test_mechanisms_taken_out_by_a_link_are_out_of_the_table(one_model, tiny):
    used = interpretation.matrix(tiny.masks, "active").loc["P1"]
    k = int(used[used].index[0])
    page = opened("compose", {"c": "P1:1", "off": str(k)})
    assert k not in page.pills(key="compose_in").value
    expected = compose(tiny, {"P1": 1.0}, without=[k]).table["shift"].abs().max()
    assert table_with(page, "shift")["shift"].abs().max() == pytest.approx(expected)


def test_without_any_mechanism_nothing_moves_at_all(one_model, tiny):
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


def test_a_switch_takes_its_mechanism_out_and_puts_it_back(one_model, tiny):
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


def test_undo_goes_back_redo_forward_and_starting_over_clears(one_model):
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


def test_a_composition_starts_from_the_cells_of_a_condition(one_model, tiny):
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


def test_a_composition_starts_from_selected_cells_and_the_link_keeps_them(one_model, tiny):
    chosen = [3, 5, 8]
    code = choices_module.as_code(chosen, len(tiny.cells))
    page = opened("compose", {"c": "P1:1", "from": composition.SELECTED, "cells": code})
    cells = tiny.cells["cell"].iloc[chosen].tolist()
    expected = compose(tiny, {"P1": 1.0}, cells=cells).table["shift"]
    shown = table_with(page, "shift").set_index("gene")["shift"]
    assert shown.to_dict() == pytest.approx(expected.to_dict())
    assert page.query_params["cells"] in (code, [code])


def test_interaction_is_shown_beside_what_was_observed(one_model, tiny):
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


def test_unknown_names_in_a_link_are_said_and_left_out(one_model):
    page = opened("compose", {"c": "P1:1,<b>NOPE</b>:1"})
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value  # escaped
    assert finished(page)


def test_compose_without_a_choice_offers_an_example(one_model):
    page = opened("compose")
    assert "No perturbation is chosen" in page.info[0].value
    page.button(key="example").click().run()
    assert len(table_with(page, "shift")) == 40
    assert finished(page)


def test_the_shift_of_a_composition_is_tested_when_asked(one_model, tiny):
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


def test_a_composition_without_a_mechanism_is_not_compared_to_what_was_observed(one_model, tiny):
    page = opened("compose", {"c": "P1:1"})
    assert any(metric.label == "Pearson r over genes" for metric in page.metric)
    used = interpretation.matrix(tiny.masks, "active").loc["P1"]
    page = opened("compose", {"c": "P1:1", "off": str(used[used].index[0])})
    assert not page.metric
    assert "does not predict what was observed" in page.info[-1].value


def test_svae_plus_takes_one_treatment(shown):
    shown("svae-plus")
    page = opened("compose", {"c": "P1:1,P2:1"})
    assert page.multiselect(key="compose_names").value == ["P1"]
    assert "takes 1 at most, so left out: P2" in words(page)
    assert "cannot put perturbations together" in words(page)
    assert "interaction" not in page.dataframe[-1].value


def test_svae_plus_knows_a_measured_combination_by_its_name(shown):
    model = shown("svae-plus")
    pair = next(name for name in model.perturbations.index if "+" in name)
    page = opened("compose", {"c": pair.replace("+", "%2B") + ":1"})
    assert finished(page)
    assert "Measured" in words(page)
    page = opened("masks")
    assert "SVAE+ takes each treatment whole" in words(page)


def test_without_any_interval_there_are_no_whiskers_no_columns_and_no_switches(shown_copy):
    model = shown_copy("conditional-vae")
    rewritten(model, "calibration.csv", None)
    page = opened("compose", {"c": "P1:1,P2:1"})
    assert finished(page)
    assert not {"Interval", "Mechanisms in the sum"} & labels(page)
    assert not {"lower", "calibrated_lower", "probability_of_sign"} & set(table_with(page, "shift"))
    assert "array" not in figures(page)[0]["data"][0].get("error_x", {})
    assert "no interval to show" in words(page)


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
    assert f"{row['own, with sampling error']:.0%} lie in the model's own" in text
    assert f"{row['calibrated, with sampling error']:.0%} lie in the calibrated one" in text


def test_without_calibration_the_own_interval_is_the_only_one(models):
    model = opening.load(models / "tiny")
    rewritten(model, "calibration.csv", None)
    page = opened("compose", {"c": "P1:1"})
    assert "Interval" not in labels(page)
    assert "calibrated_lower" not in table_with(page, "shift")
    assert "in the calibrated one" not in words(page)


def test_what_each_perturbation_contributes_is_its_effect_times_its_dosage(one_model, tiny):
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


def test_two_compositions_are_compared_on_the_same_draws_and_the_link_keeps_both(one_model, tiny):
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


def test_a_dosage_of_a_link_that_cannot_be_is_said(one_model):
    page = opened("compose", {"c": "P1:9,P2:nan,P3:0.50"})
    assert finished(page)
    assert "asks for P1:9, P2:nan." in page.info[0].value.replace("\\", "")
    doses = {name: slider(page, name).value for name in ("P1", "P2", "P3")}
    assert doses == {"P1": 2.0, "P2": 1.0, "P3": 0.5}


def test_a_link_to_the_whole_composition_puts_mechanisms_back(one_model, tiny):
    page = opened("compose", {"c": "P1:1,P2:1", "off": "0"})
    assert 0 not in page.pills(key="compose_in").value
    gone_back(page, {"c": "P1:1,P2:1"})
    assert 0 in page.pills(key="compose_in").value
    whole = compose(tiny, {"P1": 1.0, "P2": 1.0}).table["shift"].abs().max()
    assert table_with(page, "shift")["shift"].abs().max() == pytest.approx(whole)


def test_what_was_kept_to_compare_with_is_used_whole_or_not_at_all(one_model):
    page = opened("compose", {"c": "P1:1", "b": "P1:1,NOTHERE:1", "part": "A against B"})
    assert finished(page)
    assert "cannot be composed in this model: it does not know NOTHERE" in words(page)
    assert not any("difference" in frame.value for frame in page.dataframe)


@pytest.mark.parametrize(
    ("mix", "rest"),
    [
        ("P1:0.5", "P1 was measured at dosage 1: set it to 1 to compare."),
        ("P1:1,P3:1", "Measured alone: P1, P3. To compare one, remove the others above."),
        ("P1:0.5,P3:1", "remove the others above and set its dosage to 1."),
    ],
)
def test_what_was_not_measured_tells_which_part_can_be_compared(one_model, mix, rest):
    page = opened("compose", {"c": mix})
    (told,) = (info.value for info in page.info if "was not measured" in info.value)
    assert rest in told.replace("\\", "")
