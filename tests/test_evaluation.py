import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import nbinom, norm, pearsonr

from samsvae_core import evaluation
from samsvae_core.data import DataError
from samsvae_core.evaluation import (
    EvaluationConfig,
    agreement,
    baselines,
    cosine,
    evaluate,
    evaluate_bundle,
    mask_recovery,
    model_effects,
    observed_effects,
    pearson,
    r_squared,
    stored_split,
)
from samsvae_core.inference import Cells

CPU = torch.device("cpu")
QUICK = EvaluationConfig(iwelbo_samples=20, effect_draws=200)


def table(seed: int, n: int = 30, genes: int = 60) -> pd.DataFrame:
    values = np.random.default_rng(seed).standard_normal((n, genes))
    return pd.DataFrame(values, index=[f"P{i}" for i in range(n)])


# Agreement at known extremes


def test_a_perfect_prediction_agrees_perfectly():
    found = agreement(table(0), table(0))
    for name in ("pearson", "pearson_top20", "r2", "cosine"):
        assert found[name] == pytest.approx(1), name
    assert list(found["per_perturbation"].values()) == pytest.approx([1] * 30)


def test_a_shuffled_prediction_does_not_agree():
    observed = table(0)
    shuffled = observed.to_numpy(copy=True).ravel()
    np.random.default_rng(1).shuffle(shuffled)
    found = agreement(observed, pd.DataFrame(shuffled.reshape(30, 60), index=observed.index))
    assert abs(found["pearson"]) < 4 / np.sqrt(30 * 60)
    assert abs(found["cosine"]) < 4 / np.sqrt(30 * 60)
    assert found["r2"] == pytest.approx(-1, abs=0.2)  # twice the variance as error


def test_an_opposite_prediction_agrees_negatively():
    found = agreement(table(0), -table(0))
    assert found["pearson"] == pytest.approx(-1)
    assert found["cosine"] == pytest.approx(-1)


def test_a_constant_prediction_has_no_correlation():
    found = agreement(table(0), 0 * table(0))
    assert found["pearson"] is None
    assert found["pearson_top20"] is None
    assert found["cosine"] is None
    assert set(found["per_perturbation"].values()) == {None}
    assert found["r2"] <= 0


def test_each_figure_is_the_textbook_one():
    x, y = (
        table(0).to_numpy().ravel(),
        0.5 * table(0).to_numpy().ravel() + table(1).to_numpy().ravel(),
    )
    assert pearson(x, y) == pytest.approx(pearsonr(x, y).statistic)
    assert r_squared(x, y) == pytest.approx(1 - np.mean((x - y) ** 2) / np.var(x))
    assert cosine(x, y) == pytest.approx(np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)))
    assert r_squared(np.ones(3), y[:3]) is None


def test_top_genes_are_those_with_the_largest_observed_effect():
    observed = pd.DataFrame([np.r_[np.linspace(-9, 9, 20), np.full(80, 0.1)]], index=["P"])
    predicted = observed.copy()
    predicted.iloc[0, 20:] = np.random.default_rng(0).standard_normal(80)  # wrong elsewhere only
    found = agreement(observed, predicted)
    assert found["pearson_top20"] == pytest.approx(1)
    assert found["pearson"] < 1


# The predictive bound


def test_the_bound_is_that_of_an_explicit_loop(tiny, screen):
    cells = Cells(screen.data.subset(np.arange(5)), CPU)
    config = EvaluationConfig(iwelbo_samples=3, seed=11)
    found = evaluation.held_out_bound(tiny.model, cells, config)
    model, batch = tiny.model, cells.batch(torch.arange(5))
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(11)  # the same draws: effects first, then the basal states
        effects = model.effects(3)
        shift = effects.shift(batch.D)
        q = model.encode(batch.x, shift)
        z = q.sample()
        share = torch.softmax(model.decoder(z + shift), -1).double().numpy()
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


# Average effects


def test_observed_effects_are_those_of_a_loop_over_cells(screen):
    data = screen.data.subset(np.arange(200))
    found = observed_effects(data)
    levels = {}
    for x, condition in zip(data.counts.toarray(), data.conditions, strict=True):
        if x.sum() > 0:
            levels.setdefault(condition, []).append(np.log2(1 + 1e4 * x / x.sum()))
    control = np.mean(levels.pop("control"), axis=0)
    enough = sorted(c for c, rows in levels.items() if len(rows) >= 3)
    assert found.index.tolist() == enough
    for condition in enough:
        expected = np.mean(levels[condition], axis=0) - control
        np.testing.assert_allclose(found.loc[condition], expected, atol=1e-4)


def test_cells_without_counts_are_left_out(screen):
    data = screen.data.subset(np.arange(200))
    counts = data.counts.toarray()
    counts[np.flatnonzero(data.conditions == "control")[0]] = 0
    import scipy.sparse as sp

    emptied = replace(data, counts=sp.csr_matrix(counts), library=counts.sum(1))
    kept = data.subset(counts.sum(1) > 0)
    pd.testing.assert_frame_equal(observed_effects(emptied), observed_effects(kept))


def test_conditions_with_too_few_cells_are_not_scored(screen):
    data = screen.data
    rows = np.r_[
        np.flatnonzero(data.conditions == "control"),
        np.flatnonzero(data.conditions == "P1")[:2],
        np.flatnonzero(data.conditions == "P2")[:3],
    ]
    assert observed_effects(data.subset(rows)).index.tolist() == ["P2"]


def test_too_few_controls_or_conditions_are_said(screen):
    data = screen.data
    control = np.flatnonzero(data.conditions == "control")
    others = np.flatnonzero(data.conditions != "control")
    with pytest.raises(DataError, match="Fewer than 3 control cells"):
        observed_effects(data.subset(np.r_[control[:2], others]))
    with pytest.raises(DataError, match="No condition has 3 cells or more"):
        observed_effects(data.subset(np.r_[control, others[:1]]))


def test_predicted_effects_are_those_of_the_model_that_made_the_cells(screen):
    """The truth, scored on its own cells, agrees; on the cells of other conditions it does not."""
    truth, data = screen.truth, screen.data
    model = copy.deepcopy(truth.model)
    model.mask_logits.copy_(torch.where(torch.from_numpy(truth.mask), 60.0, -60.0))
    model.embedding_loc.copy_(torch.from_numpy(truth.embedding))
    model.embedding_log_scale.fill_(-30)
    observed = observed_effects(data)
    predicted = model_effects(model, data, observed.index, EvaluationConfig(effect_draws=2000))
    found = agreement(observed, predicted)
    assert found["pearson"] > 0.95
    wrong = agreement(observed, predicted.sample(frac=1, random_state=1).set_axis(observed.index))
    assert wrong["pearson"] < found["pearson"] - 0.3


def test_library_sizes_are_those_of_the_condition_or_ten_thousand(screen):
    rng = np.random.default_rng(0)
    drawn = evaluation.libraries(screen.data, "P1", QUICK, rng)
    assert set(drawn) <= set(screen.data.library[screen.data.conditions == "P1"])
    fixed = evaluation.libraries(screen.data, "P1", replace(QUICK, library="10000"), rng)
    assert set(fixed) == {1e4}


def test_baselines_predict_what_their_names_say():
    observed, trained = table(0, n=3), table(1, n=4)
    found = baselines(observed, trained)
    assert (found["no change"] == 0).all().all()
    np.testing.assert_allclose(found["training mean"], trained.iloc[:3])
    mean = trained.iloc[:3].to_numpy().mean(0)
    np.testing.assert_allclose(found["mean over perturbations"], np.tile(mean, (3, 1)))


def test_a_condition_without_training_cells_is_predicted_by_no_change():
    found = baselines(table(0, n=3), table(1, n=2))
    assert (found["training mean"].loc["P2"] == 0).all()
    assert not found["mean over perturbations"].isna().any().any()


# Everything together


def test_metrics_have_their_keys_and_are_reproduced(tiny, screen):
    one, same = (evaluate(tiny.model, screen.data, screen.parts, QUICK) for _ in range(2))
    assert one == same
    assert set(one) == {"iwelbo", "average_effects", "baselines"}
    assert {"test", "mc_error", "n_cells"} <= set(one["iwelbo"])
    keys = {"pearson", "pearson_top20", "r2", "cosine", "per_perturbation"}
    assert keys | {"reference", "library"} <= set(one["average_effects"])
    assert all(set(row) == keys for row in one["baselines"].values())
    assert one["iwelbo"]["n_cells"] == (screen.parts == "test").sum()


def test_a_stored_bundle_reproduces_its_own_metrics(tiny, screen):
    assert evaluate_bundle(tiny, screen.data, EvaluationConfig()) == tiny.metrics


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


def test_the_split_of_a_bundle_is_found_by_the_names_of_cells(tiny, screen):
    order = np.random.default_rng(0).permutation(600)
    shuffled = screen.data.subset(order)
    np.testing.assert_array_equal(stored_split(tiny, shuffled), screen.parts[order])
    renamed = replace(screen.data, cells=np.array([f"other{i}" for i in range(600)]))
    with pytest.raises(DataError, match="None of the 600 cells is among the test cells"):
        stored_split(tiny, renamed)


# Masks against the truth


def test_masks_found_in_another_order_are_recovered():
    true = np.random.default_rng(0).random((20, 5)) < 0.3
    found = mask_recovery(true[:, [3, 1, 4, 0, 2]], true)
    assert found == {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_mechanisms_to_spare_do_no_harm_unless_they_are_used():
    true = np.random.default_rng(0).random((20, 5)) < 0.3
    spare = np.c_[true[:, ::-1], np.zeros((20, 3), bool)]
    assert mask_recovery(spare, true)["f1"] == 1
    used = np.c_[true[:, ::-1], np.ones((20, 1), bool)]
    n = true.sum()
    assert mask_recovery(used, true) == {
        "precision": n / (n + 20),
        "recall": 1.0,
        "f1": 2 * n / (2 * n + 20),
    }


def test_the_best_matching_is_found_where_the_greedy_one_is_not():
    true = np.array([[1, 0], [1, 0], [1, 1], [1, 0], [1, 0]], bool)
    found = np.array([[1, 1], [1, 1], [0, 1], [0, 1], [0, 0]], bool)
    # 4 + 0 or 2 + 1: the overlaps are [[2, 0], [4, 1]], so 4 + 0 beats 2 + 1
    assert mask_recovery(found, true)["precision"] == 4 / 6


def test_empty_masks_recover_nothing():
    true = np.ones((3, 2), bool)
    assert mask_recovery(~true, true) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}
