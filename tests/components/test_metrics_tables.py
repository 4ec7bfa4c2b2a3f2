"""Tables of held-out scores have the numbers of metrics.json, and are empty without them."""

import pandas as pd

from app.components import metrics_tables


def row(**changes):
    one = {"pearson": 0.9, "pearson_top20": 0.8, "r2": 0.7, "cosine": 0.6}
    own = {
        **one,
        "n_conditions": 2,
        "per_perturbation": {"A": 0.1, "A+B": 0.5},
        "median": 0.3,
        "quartiles": [0.2, 0.4],
        "rank": 0.25,
        "kinds": {"single": {**one, "n": 1}, "combination seen in training": None},
        "replicates": {"r1": {"n_cells": 5, "n_conditions": 1, **one}},
        "mc_error": {"pearson": 0.01},
    }
    return {**own, **changes}


NOTHING = row(pearson=None, quartiles=None, rank=None, mc_error=None, kinds={}, replicates=None) | {
    "per_perturbation": {"A": None, "A+B": None}
}
METRICS = {
    "average_effects": row(),
    "baselines": {"no change": NOTHING, "split-half": row(mc_error={"pearson": 0.002})},
    "predictive_checks": {
        "levels": [0.5, 0.9],
        "mean": {"inside": [0.4, 0.8], "low": 0.2, "high": 0.1, "n": 7},
        "variance": {"inside": [0.5, 0.9], "low": 0.0, "high": 0.0, "n": 7},
        "zeros": None,
    },
    "coverage": {
        "single": {
            "own": None,
            "own_with_sampling": 0.5,
            "calibrated_with_sampling": 0.9,
            "n": 10,
            "n_conditions": 2,
        },
        "combination": None,
    },
    "interaction": {"doubles": {"A+B": {"pearson": None, "seen_in_training": False}}},
}


def test_a_row_per_prediction_with_its_errors_quartiles_and_conditions():
    table = metrics_tables.average_effects(METRICS).set_index("prediction")
    assert list(table.index) == ["this model", "no change", "split-half"]
    assert table.loc["this model", ["r", "error of r"]].tolist() == [0.9, 0.01]
    assert table.loc["this model", ["lower quartile", "upper quartile"]].tolist() == [0.2, 0.4]
    assert table.loc["no change", ["r", "error of r", "rank"]].isna().all()
    assert table["conditions"].tolist() == [2, 2, 2]


def test_a_kind_that_a_prediction_lacks_is_empty_with_no_conditions():
    table = metrics_tables.average_effects(METRICS, "combination seen in training")
    assert table["conditions"].tolist() == [0, 0, 0]
    assert table["r"].isna().all()
    single = metrics_tables.average_effects(METRICS, "single")
    assert single["conditions"].tolist() == [1, 0, 1]
    assert metrics_tables.kinds(METRICS) == ["single", "combination seen in training"]


def test_each_condition_best_first_without_predictions_that_say_nothing():
    conditions = pd.DataFrame({"test": [9, 4]}, index=["A", "A+B"])
    table = metrics_tables.each_condition(METRICS, conditions)
    assert table["condition"].tolist() == ["A+B", "A"]
    assert table["test cells"].tolist() == [4, 9]
    assert list(table.columns[2:]) == ["this model", "split-half"]


def test_replicates_are_rows_and_none_is_no_row():
    assert metrics_tables.replicates(METRICS)["prediction"].tolist() == ["this model", "split-half"]
    nameless = {
        "average_effects": row(replicates=None),
        "baselines": {"no change": NOTHING},
    }
    assert metrics_tables.replicates(nameless).empty


def test_predictive_checks_as_a_curve_and_as_a_row_per_statistic():
    curve = metrics_tables.predictive(METRICS)
    assert curve["observed"].tolist() == [0.4, 0.8, 0.5, 0.9]
    table = metrics_tables.by_statistic(METRICS).set_index("statistic")
    assert list(table.index) == ["mean", "variance"]
    assert table.loc["mean"].tolist() == [0.4, 0.8, 0.2, 0.1, 7]


def test_coverage_and_pairs_have_a_row_for_what_was_measured():
    table = metrics_tables.coverage(METRICS)
    assert table["conditions of"].tolist() == ["single"]
    assert table.loc[0, "own, with sampling error"] == 0.5
    assert metrics_tables.doubles(METRICS)["seen in training"].tolist() == [False]
    assert metrics_tables.doubles({"interaction": None}).empty
    assert metrics_tables.coverage({}).empty
    assert metrics_tables.predictive({}).empty


def test_tables_within_a_text_are_taken_apart_from_it_cell_by_cell():
    table = "| a | b |\n|---|---|\n| 1 \\| 2 | *x* |\n|  | y |"
    found = metrics_tables.blocks(f"Before.\n\n{table}\n\nAfter.")
    assert [text.strip() for text, _ in found] == ["Before.", table, "After."]
    assert [cells is None for _, cells in found] == [True, False, True]
    expected = pd.DataFrame([["1 \\| 2", "*x*"], ["", "y"]], columns=["a", "b"])
    pd.testing.assert_frame_equal(found[1][1], expected)
