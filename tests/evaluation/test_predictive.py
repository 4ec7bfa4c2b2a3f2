import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from scipy.special import softmax
from scipy.stats import nbinom

from samsvae_core.data.covariates import Covariates
from samsvae_core.evaluation import predictive
from samsvae_core.evaluation.baselines import observed_effects
from samsvae_core.evaluation.metrics import agreement
from samsvae_core.evaluation.predictive import (
    batches,
    libraries,
    model_effects,
    position,
    predictive_checks,
    predictive_positions,
    sampled_levels,
    statistics,
)
from samsvae_core.models.level_offsets import LevelOffsets
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.simulate import Design, draw_counts, simulate
from samsvae_core.models.variants import MODELS

# Average effects


def test_predicted_effects_are_those_of_the_model_that_made_the_cells(screen, known_effects):
    """The true model agrees with its own cells, but not with those of other conditions."""
    model, data = known_effects(screen.truth), screen.data
    observed = observed_effects(data)
    predicted = model_effects(model, data, observed.index, n_draws=2000).mean
    found = agreement(observed, predicted)
    assert found["pearson"] > 0.95
    assert found["rank"] < 0.1
    wrong = agreement(observed, predicted.sample(frac=1, random_state=1).set_axis(observed.index))
    assert wrong["pearson"] < found["pearson"] - 0.3
    assert wrong["rank"] > 0.2


def test_groups_of_draws_left_out_average_to_the_whole(screen, known_effects):
    model, data = known_effects(screen.truth), screen.data
    names = pd.Index(["P1", "P2"])
    found = model_effects(model, data, names, n_draws=50)
    assert len(found.left_out) == 10
    average = sum(found.left_out) / 10  # every cell has counts: groups of one size
    np.testing.assert_allclose(average, found.mean, atol=1e-9)
    assert model_effects(model, data, names, n_draws=1).left_out == []


def test_the_effects_do_not_depend_on_how_much_memory_they_take(screen, known_effects, monkeypatch):
    model, data = known_effects(screen.truth), screen.data
    names = pd.Index(["P1", "P2"])
    whole = model_effects(model, data, names, n_draws=3000).mean
    monkeypatch.setattr(predictive, "VALUES_AT_ONCE", 3 * 40 * 7)
    parts = model_effects(model, data, names, n_draws=3000).mean
    assert agreement(whole, parts)["pearson"] > 0.99


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("likelihood", ["counts", "gaussian"])
def test_every_model_predicts_effects_and_cells(screen, name, likelihood):
    model = MODELS[name](ModelConfig(40, 6, 3, 8, likelihood=likelihood)).requires_grad_(False)
    data = replace(screen.data.subset(np.arange(80)), is_counts=likelihood == "counts")
    effects = model_effects(model, data, pd.Index(["P1", "P2"]), n_draws=20).mean
    positions = predictive_positions(model, data, n_sets=5)
    assert np.isfinite(effects.to_numpy()).all()
    assert positions[["mean", "variance"]].notna().all().all()
    assert positions["zeros"].isna().all() == (likelihood == "gaussian")


def test_levels_are_of_sampled_counts_and_empty_samples_are_not_counted(screen):
    model = screen.truth.model
    states = torch.zeros(500, 2, 3)
    library = torch.tensor([1e3, 1e-6]).expand(500, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        level, seen = sampled_levels(model, states, library, None)
        share = torch.softmax(model.decoder(torch.zeros(1, 3)), -1)[0].double().numpy()
    assert seen[:, 0].all()
    assert not seen[:, 1].any()
    assert not level[:, 1].any()
    r, mean = np.exp(3.0), 1e3 * share
    x = nbinom.rvs(r, r / (r + mean), size=(4000, 40), random_state=0)
    expected = np.log2(1 + 1e4 * x / x.sum(1, keepdims=True))
    se = expected.std(0) * np.sqrt(1 / 500 + 1 / 4000)
    away = np.abs(level[:, 0].double().numpy().mean(0) - expected.mean(0))
    assert (away < 5 * se + 1e-6).all()


def test_library_sizes_are_those_of_the_condition_or_ten_thousand(screen):
    rng = np.random.default_rng(0)
    drawn = libraries(screen.data, "P1", 200, "data", rng)
    assert set(drawn) <= set(screen.data.library[screen.data.conditions == "P1"])
    assert set(libraries(screen.data, "P1", 200, "10000", rng)) == {1e4}


# Posterior predictive checks


@pytest.fixture(scope="module")
def drawn(known_effects):
    """Return the true model and cells of known depth, 40 conditions of about 8 cells."""
    design = Design(400, 40, n_perturbations=30, n_latent=3, n_combinations=10, seed=3)
    data, truth = simulate(design)
    library = np.random.default_rng(0).uniform(500, 2000, 400).astype(np.float32)
    z = truth.z_basal + data.dosages.toarray() @ truth.embedding
    counts = draw_counts(truth.model, z, library, seed=7)
    return known_effects(truth), replace(data, counts=counts, library=library)


def test_statistics_of_cells_the_model_drew_fall_evenly(drawn):
    model, data = drawn
    found = predictive_checks(predictive_positions(model, data))
    assert found["n_conditions"] == 41
    for name in ("mean", "variance", "zeros"):
        # 41 conditions of some 4 free directions: about 160 values know a share to 0.04 at most
        np.testing.assert_allclose(found[name]["inside"], found["levels"], atol=0.1)
        assert found[name]["low"] == pytest.approx(0.05, abs=0.05)
        assert found[name]["high"] == pytest.approx(0.05, abs=0.05)
        assert found[name]["n"] == 41 * 40


def test_cells_are_drawn_at_their_own_levels(drawn):
    """Cells of two batches of large effect, half of them in each."""
    model, data = copy.deepcopy(drawn[0]), drawn[1]
    model.level_offsets = LevelOffsets((2,), 40, 1)
    codes = np.random.default_rng(0).integers(0, 2, (400, 1)).astype(np.int32)
    with torch.no_grad():
        model.level_offsets.fit_shares(torch.from_numpy(codes))
        noise = torch.randn(40, generator=torch.Generator().manual_seed(0))
        model.level_offsets.offset[1] = 1.5 * noise
    rng = np.random.default_rng(1)
    z = rng.standard_normal((400, 3)) + data.dosages.toarray() @ model.embedding_loc.numpy()
    added = model.level_offsets.offset.detach().numpy()[codes[:, 0]]
    added = added - (codes == 1).mean() * model.level_offsets.offset[1].detach().numpy()
    share = softmax(model.decoder(torch.as_tensor(z, dtype=torch.float32)).numpy() + added, axis=1)
    r = model.log_concentration.exp().numpy()
    mean = data.library[:, None] * share
    counts = sp.csr_matrix(rng.negative_binomial(r, r / (r + mean)).astype(np.float32))
    cells = replace(data, counts=counts, covariates=Covariates({"batch": ("a", "b")}, codes))
    inside = [
        predictive_checks(predictive_positions(model, each))["variance"]["inside"][2]
        for each in (cells, replace(cells, covariates=None))
    ]
    assert inside[0] == pytest.approx(0.9, abs=0.08)
    assert inside[1] < 0.75


def test_a_model_that_knows_no_effect_is_found_out(drawn):
    model, data = copy.deepcopy(drawn[0]), drawn[1]
    model.embedding_loc.zero_()
    found = predictive_checks(predictive_positions(model, data))
    assert found["mean"]["inside"][2] < 0.7


def test_a_model_that_scatters_too_much_is_found_out(drawn):
    """The cells have far fewer zeros than such a model predicts."""
    model, data = copy.deepcopy(drawn[0]), drawn[1]
    model.log_concentration.fill_(-1.0)
    found = predictive_checks(predictive_positions(model, data))
    assert found["zeros"]["low"] > 0.2
    assert found["variance"]["low"] > found["variance"]["high"]


def test_positions_are_ranks_with_ties_at_random():
    rng = np.random.default_rng(0)
    replicates = np.tile(np.arange(39.0)[:, None], (1, 3))
    found = position(np.array([-1.0, 19.5, 99.0]), replicates, rng)
    assert found.tolist() == [0.5 / 40, 20.5 / 40, 39.5 / 40]
    tied = position(np.zeros(4000), np.zeros((39, 4000)), rng)
    assert set(np.round(tied * 40 - 0.5)) == set(range(40))
    assert tied.mean() == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / 4000))


def test_even_ranks_among_39_have_exactly_the_nominal_shares():
    at = (np.arange(40) + 0.5) / 40
    table = pd.DataFrame({"condition": "a", "mean": at, "variance": at, "zeros": np.nan})
    found = predictive_checks(table)
    assert found["mean"]["inside"] == [0.5, 0.8, 0.9, 0.95]
    assert found["zeros"] is None


def test_statistics_are_the_textbook_ones():
    x = np.random.default_rng(0).poisson(1.0, (2, 50, 4)).astype(np.float32)
    found = statistics(torch.from_numpy(x))
    np.testing.assert_allclose(found["mean"], x.mean(1), rtol=1e-6)
    np.testing.assert_allclose(found["variance"], x.astype(float).var(1), rtol=1e-9)
    np.testing.assert_allclose(found["zeros"], (x == 0).mean(1))


def test_small_conditions_and_genes_without_counts_are_not_checked(drawn):
    model, data = drawn
    few = np.flatnonzero(data.conditions == "P01")[2:]
    data = data.subset(np.setdiff1d(np.arange(400), few))
    counts = data.counts.toarray()
    counts[:, 5] = 0
    found = predictive_positions(model, replace(data, counts=sp.csr_matrix(counts)), n_sets=3)
    assert "P01" not in set(found["condition"])
    assert "control" in set(found["condition"])
    assert data.genes[5] not in set(found["gene"])
    assert len(found) == 40 * 39
    nothing = predictive_positions(model, data.subset(np.arange(2)), n_sets=3)
    assert nothing.empty
    assert predictive_checks(nothing)["mean"] is None


def test_large_conditions_are_checked_on_some_of_their_cells(drawn, monkeypatch):
    model, data = drawn
    monkeypatch.setattr(predictive, "CHECKED_CELLS", 4)
    monkeypatch.setattr(predictive, "VALUES_AT_ONCE", 4 * 40 * 2)  # two data sets at a time
    found = predictive_checks(predictive_positions(model, data))
    assert found["mean"]["inside"][2] == pytest.approx(0.9, abs=0.08)


def test_batches_hold_neighbours_up_to_a_size():
    assert batches([3, 3, 9, 1, 1, 1], 6) == [[0, 1], [2], [3, 4, 5]]
    assert batches([], 6) == []
