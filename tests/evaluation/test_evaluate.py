from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import nbinom, norm

from samsvae_core.bundle.layout import to_json
from samsvae_core.data.cells import CellData, DataError, conditions_as_perturbations
from samsvae_core.evaluation import evaluate as evaluation
from samsvae_core.evaluation.baselines import cell_levels, halvings, mean_effects
from samsvae_core.evaluation.evaluate import (
    EvaluationConfig,
    Table,
    evaluate,
    evaluate_bundle,
    full_evaluation,
    kinds,
    replicate_effects,
    scored_cells,
    stored_split,
)
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS

CPU = torch.device("cpu")
QUICK = EvaluationConfig(iwelbo_samples=20, effect_draws=200, replicate_sets=5, shift_draws=8)


# The predictive bound


def test_the_bound_is_that_of_an_explicit_loop(tiny, screen):
    cells = Cells(screen.data.subset(np.arange(5)), CPU)
    config = EvaluationConfig(iwelbo_samples=3, seed=11)
    found = evaluation.held_out_bound(tiny.model, cells, config)
    model, batch = tiny.model, cells.batch(torch.arange(5))
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(11)  # the same draws: effects first, then the basal states
        effects = model.effects(3)
        shift = effects.latent_shift(batch.D)
        q = model.encode(batch.x, shift, model.mean_offset(batch.D))
        z = q.sample()
        logits = model.decoder(z + shift) + effects.offset(batch.D)
        share = torch.softmax(logits, -1).double().numpy()
    r = model.log_concentration.exp().double().numpy()
    x, loc, scale = batch.x.numpy(), q.loc.double().numpy(), q.scale.double().numpy()
    bounds, all_weights = [], []
    for i in range(5):
        weights = []
        for s in range(3):
            mean = x[i].sum() * share[s, i]
            log_px = sum(nbinom.logpmf(x[i, g], r[g], r[g] / (r[g] + mean[g])) for g in range(40))
            here = z[s, i].double().numpy()
            log_p, log_q = norm.logpdf(here).sum(), norm.logpdf(here, loc[s, i], scale[s, i]).sum()
            weights.append(log_px + log_p - log_q)
        bounds.append(logsumexp(weights) - np.log(3))
        all_weights.append(weights)
    assert found.mean == pytest.approx(np.mean(bounds), abs=1e-2)
    assert found.se == pytest.approx(np.std(bounds, ddof=1) / np.sqrt(5), rel=1e-3)
    assert found.n_cells == 5
    left_out = [  # the mean over cells without draw s: a jackknife over draws
        np.mean([logsumexp(np.delete(weights, s)) - np.log(2) for weights in all_weights])
        for s in range(3)
    ]
    jackknife = np.sqrt(2 / 3 * ((left_out - np.mean(left_out)) ** 2).sum())
    assert found.mc_error == pytest.approx(jackknife, rel=1e-2)


def test_the_monte_carlo_error_is_that_of_repeated_estimates(tiny, screen):
    cells = Cells(screen.data.subset(screen.parts == "test"), CPU)
    bounds = [
        evaluation.held_out_bound(tiny.model, cells, EvaluationConfig(iwelbo_samples=40, seed=s))
        for s in range(30)
    ]
    spread = np.std([b.mean for b in bounds], ddof=1)
    stated = np.sqrt(np.mean([b.mc_error**2 for b in bounds]))
    assert 0.5 < stated / spread < 2  # 30 repeats know their spread to about 13 %, 9 groups to 24 %


def test_the_bound_does_not_depend_on_how_much_memory_it_takes(tiny, screen, monkeypatch):
    cells = Cells(screen.data.subset(np.arange(30)), CPU)
    config = EvaluationConfig(iwelbo_samples=200)
    whole = evaluation.held_out_bound(tiny.model, cells, config)
    monkeypatch.setattr(evaluation, "VALUES_AT_ONCE", 200 * 40 * 7)
    parts = evaluation.held_out_bound(tiny.model, cells, config)
    assert parts.n_cells == 30
    assert abs(parts.mean - whole.mean) < 5 * max(parts.mc_error, whole.mc_error)


# Everything together


def test_metrics_have_their_keys_and_are_reproduced(tiny, screen):
    one, same = (evaluate(tiny.model, screen.data, screen.parts, QUICK) for _ in range(2))
    assert one == same
    to_json(one)  # refuses NaN
    assert set(one) == {
        "iwelbo",
        "average_effects",
        "baselines",
        "predictive_checks",
        "calibration",
        "coverage",
        "interaction",
    }
    assert {"test", "mc_error", "n_cells"} <= set(one["iwelbo"])
    figures = {"pearson", "pearson_top20", "r2", "cosine"}
    keys = {"per_perturbation", "median", "quartiles", "rank", "kinds", "replicates"}
    keys |= figures | {"n_conditions", "n_not_available"}
    more = {"reference", "library", "control_cells", "n_draws", "mc_error"}
    assert set(one["average_effects"]) == keys | more
    assert all(keys <= set(row) for row in one["baselines"].values())
    assert list(one["baselines"]) == [
        "no change",
        "mean over perturbations",
        "training mean",
        "shrunken mean",
        "additive",
        "shrunken additive",
        "ridge",
        "split-half",
    ]
    assert one["iwelbo"]["n_cells"] == (screen.parts == "test").sum()
    assert one["average_effects"]["control_cells"] == "test"
    assert set(one["average_effects"]["kinds"]) == {"single", "combination seen in training"}
    assert one["average_effects"]["replicates"] is None
    assert one["interaction"]["n_doubles"] == 2


def test_a_stored_bundle_reproduces_its_own_metrics(tiny, screen):
    kept = {name: value for name, value in tiny.metrics.items() if name != "validation"}
    assert evaluate_bundle(tiny, screen.data, EvaluationConfig()) == kept


def test_evaluation_leaves_the_global_random_states_alone(tiny, screen):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    evaluate(tiny.model, screen.data, screen.parts, QUICK)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_all_cells_may_be_the_reference_as_in_the_paper(tiny, screen):
    found = evaluate(tiny.model, screen.data, screen.parts, replace(QUICK, reference="all"))
    assert found["average_effects"]["reference"] == "all"
    assert found["average_effects"]["n_conditions"] == 8
    assert found["iwelbo"]["n_cells"] == (screen.parts == "test").sum()


def test_a_split_without_test_cells_is_said(tiny, screen):
    with pytest.raises(DataError, match="no test cells"):
        evaluate(tiny.model, screen.data, np.full(600, "train"), QUICK)
    parts = np.where(np.arange(600) < 2, "test", "train")
    with pytest.raises(DataError, match="2 test cells; held-out metrics need 3"):
        evaluate(tiny.model, screen.data, parts, replace(QUICK, reference="all"))


def test_the_split_of_a_bundle_is_found_by_the_names_of_cells(tiny, screen):
    order = np.random.default_rng(0).permutation(600)
    shuffled = screen.data.subset(order)
    np.testing.assert_array_equal(stored_split(tiny, shuffled), screen.parts[order])
    renamed = replace(screen.data, cells=np.array([f"other{i}" for i in range(600)]))
    with pytest.raises(DataError, match="None of the 600 cells is among the test cells"):
        stored_split(tiny, renamed)


def test_every_kind_of_model_is_scored(screen):
    for name, kind in MODELS.items():
        data = screen.data if kind.composes else conditions_as_perturbations(screen.data)
        config = ModelConfig(40, len(data.perturbations), 3, 8)
        found = evaluate(kind(config).requires_grad_(False), data, screen.parts, QUICK)
        to_json(found)
        own = found["coverage"]["single"]["own"]
        assert (own is None) == (not kind.has_posterior), name
        assert found["interaction"]["n_doubles"] == 2
        assert set(found["average_effects"]["kinds"]) == {"single", "combination seen in training"}


def test_values_that_are_not_counts_are_scored(screen):
    values = replace(
        screen.data,
        is_counts=False,
        library=np.ones(600, np.float32),
        counts=screen.data.counts.log1p(),
    )
    model = MODELS["sams-vae"](ModelConfig(40, 6, 3, 8, likelihood="gaussian"))
    found = evaluate(model.requires_grad_(False), values, screen.parts, QUICK)
    to_json(found)
    assert found["predictive_checks"]["zeros"] is None
    assert found["predictive_checks"]["mean"]["n"] > 0
    assert found["baselines"]["split-half"]["pearson"] is not None


def test_the_tables_behind_the_metrics_come_with_them(tiny, screen):
    found = full_evaluation(tiny.model, screen.data, screen.parts, QUICK)
    at = found.positions
    assert set(at) == {"condition", "gene", "mean", "variance", "zeros"}
    assert len(at) == found.metrics["predictive_checks"]["mean"]["n"]
    inside = float(((at["mean"] - 0.5).abs() <= 0.45).mean())
    assert found.metrics["predictive_checks"]["mean"]["inside"][2] == inside
    errors = found.gene_errors
    assert errors["gene"].tolist() == list(screen.data.genes)
    assert found.metrics["calibration"]["median_model_error"] == errors["model_error"].median()


def test_the_monte_carlo_error_of_effects_is_that_of_repeated_estimates(tiny, screen):
    found = [
        evaluation.model_effects(tiny.model, screen.data, pd.Index(["P1", "P3", "P5"]), 100, seed=s)
        for s in range(40)
    ]
    observed = evaluation.observed_effects(screen.data).loc[["P1", "P3", "P5"]]
    spread = np.std(
        [np.corrcoef(observed.to_numpy().ravel(), f.mean.to_numpy().ravel())[0, 1] for f in found],
        ddof=1,
    )
    stated = [evaluation.effect_errors(observed, f)["pearson"] for f in found]
    # a jackknife knows its figure to first order only, and 40 repeats their spread to 11 %
    assert 0.5 < np.sqrt(np.mean(np.square(stated))) / spread < 2


# Which cells are compared


def test_cells_out_of_use_are_looked_at_nowhere(tiny, screen):
    """A file with foreign cells marked as unused has the same metrics as without them."""
    rng = np.random.default_rng(0)
    out = rng.random(600) < 0.1
    out &= screen.parts != "test"
    kept = evaluate(tiny.model, screen.data.subset(~out), screen.parts[~out], QUICK)
    parts = np.where(out, "unused", screen.parts)
    assert evaluate(tiny.model, screen.data, parts, QUICK) == kept


def test_controls_are_from_the_test_cells_or_those_nearest_to_them(screen):
    data, control = screen.data, screen.data.conditions == "control"
    for moved, expected in (
        (set(), "test"),
        ({"test"}, "validation"),
        ({"test", "validation"}, "all"),
    ):
        parts = screen.parts.copy()
        parts[control & np.isin(parts, list(moved))] = "train"
        cells, name = scored_cells(data, parts, "test")
        assert name == expected
        found = cells.conditions == "control"
        right = control if name == "all" else control & (parts == expected)
        assert set(cells.cells[found]) == set(data.cells[right])
        assert set(cells.cells[~found]) == set(data.cells[~control & (parts == "test")])
    assert scored_cells(data, screen.parts, "all") == (data, "all")


def test_a_split_that_holds_out_combinations_alone_is_scored(tiny, screen):
    """Unseen doubles are scored separately, and only the means of training cannot predict them."""
    parts = screen.parts.copy()
    combined = np.char.find(screen.data.conditions.astype(str), "+") > 0
    parts[combined] = "test"
    parts[~combined & (parts == "test")] = "train"
    found = evaluate(tiny.model, screen.data, parts, QUICK)
    to_json(found)
    assert found["average_effects"]["control_cells"] == "validation"
    unseen = "combination not seen in training"
    assert found["average_effects"]["kinds"][unseen]["n"] == 2
    rows = found["baselines"]
    for name in ("training mean", "shrunken mean"):
        assert rows[name]["kinds"] == {unseen: None}
        assert rows[name]["n_conditions"] == 0
        assert rows[name]["n_not_available"] == 2
        assert rows[name]["pearson"] is None
    for name in ("additive", "shrunken additive", "ridge", "mean over perturbations"):
        assert rows[name]["kinds"][unseen]["n"] == 2
    assert rows["additive"]["kinds"][unseen]["pearson"] > 0.5
    assert found["interaction"]["cells"] == "all"  # the singles have no test cells


def test_a_model_is_not_calibrated_without_validation_cells(tiny, screen):
    parts = np.where(screen.parts == "validation", "", screen.parts)
    found = full_evaluation(tiny.model, screen.data, parts, QUICK)
    assert found.gene_errors is None
    assert found.metrics["calibration"]["not_available"].startswith("fewer than 3 conditions")
    assert found.metrics["coverage"]["single"]["calibrated_with_sampling"] is None
    assert found.metrics["coverage"]["single"]["own"] is not None


def test_a_model_whose_error_is_hidden_by_sampling_says_so(tiny, screen, monkeypatch):
    monkeypatch.setattr(evaluation.calibration, "gene_errors", lambda *_: None)
    learned = evaluate(tiny.model, screen.data, screen.parts, QUICK)["calibration"]
    assert learned["not_available"] == (
        f"the sampling error of the validation cells of {learned['n_conditions']} conditions hides "
        "the error of the model"
    )


def test_conditions_are_of_the_kind_their_label_and_training_say():
    found = kinds(["A", "A+B", "B+C"], {"A+B"})
    assert found.tolist() == [
        "single",
        "combination seen in training",
        "combination not seen in training",
    ]


# Replicates


def replicated(data: CellData) -> CellData:
    """Return cells in two large replicates, one of two cells, and one cell without a replicate."""
    labels = np.where(np.arange(len(data.cells)) % 2, "one", "two").astype("<U5")
    labels[:2], labels[2] = "third", ""
    return replace(data, replicates=labels)


def test_each_replicate_is_compared_with_its_own_controls(tiny, screen):
    data = replicated(screen.data)
    found = evaluate(tiny.model, data, screen.parts, replace(QUICK, reference="all"))
    rows = found["average_effects"]["replicates"]
    assert set(rows) == {"one", "two", "third"}
    assert rows["third"] == {
        "n_cells": 2,
        "n_conditions": 0,
        "not_available": "fewer than 3 cells of control or of every condition",
    }
    own = data.subset(data.replicates == "one")
    assert rows["one"]["n_cells"] == len(own.cells)
    predicted = evaluation.model_effects(
        tiny.model, data, pd.Index(sorted(set(data.conditions) - {"control"})), 200
    ).mean
    effects = mean_effects(cell_levels(own), "control", own.genes)
    r = np.corrcoef(effects.to_numpy().ravel(), predicted.loc[effects.index].to_numpy().ravel())
    assert rows["one"]["pearson"] == pytest.approx(r[0, 1], abs=0.05)
    assert replicate_effects(screen.data) is None


def test_a_row_is_about_the_conditions_it_predicts():
    values = np.random.default_rng(0).standard_normal((4, 30))
    observed = pd.DataFrame(values, index=["A", "B", "A+B", "A+C"])
    half = observed.copy()
    half.loc[["B", "A+C"]] = np.nan
    table = Table(observed, kinds(observed.index, {"A", "B", "A+B"}), None)
    row = table.row(half)
    assert row["n_conditions"] == row["n_not_available"] == 2
    assert row["pearson"] == pytest.approx(1)
    assert row["kinds"]["single"]["n"] == 1
    assert row["kinds"]["combination seen in training"]["r2"] == 1
    assert row["kinds"]["combination not seen in training"] is None


def test_the_ceiling_is_told_by_kind_where_there_are_cells_for_halves(screen):
    cells = screen.data
    observed = evaluation.observed_effects(cells)
    row = Table(observed, kinds(observed.index, set()), None).ceiling(halvings(cells, 0))
    assert row["n_conditions"] == 8
    assert row["kinds"]["single"]["n"] == 6
    assert row["kinds"]["combination not seen in training"]["n"] == 2
    assert 0 < row["kinds"]["single"]["pearson"] <= row["pearson_limit"] <= 1
    nothing = Table(observed, kinds(observed.index, set()), None).ceiling([])
    assert nothing["kinds"]["single"] is None
    assert nothing["pearson"] is None
