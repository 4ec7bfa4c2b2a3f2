import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from samsvae_core.composition import (
    SUPPORT,
    UnknownPerturbationError,
    compose,
    condition_name,
    summary,
    support,
    unknown,
)
from samsvae_core.interpretation import active_mechanisms

COLUMNS = [
    "shift",
    "lower",
    "upper",
    "probability_of_sign",
    "sum_of_singles",
    "interaction",
    "interaction_lower",
    "interaction_upper",
    "observed",
    "observed_se",
    "calibrated_lower",
    "calibrated_upper",
]


def with_effects(tiny, logit: float = 40.0):
    """The bundle with masks that are surely on or surely off."""
    model = copy.deepcopy(tiny.model)
    model.mask_logits.copy_(torch.where(model.mask_logits > 0, logit, -logit))
    return replace(tiny, model=model)


def test_the_table_has_its_columns_in_the_order_of_the_genes(tiny):
    table = compose(tiny, {"P1": 1.0}, n_samples=4).table
    assert table.columns.tolist() == COLUMNS
    assert table.index.tolist() == tiny.genes
    assert table.index.name == "gene"


# Zero


@pytest.mark.parametrize("dosages", [{}, {"P1": 0.0}, {"P1": 0.0, "P4": 0.0}])
@pytest.mark.parametrize("n_reference", [2, 3, 128])
def test_nothing_given_is_exactly_nothing(tiny, dosages, n_reference):
    """With few reference cells the order of sums differs between arms: rounding must not show."""
    few = tiny.reference._make(part[:n_reference] for part in tiny.reference)
    result = compose(replace(tiny, reference=few), dosages, n_samples=20)
    columns = ["shift", "lower", "upper", "sum_of_singles", "interaction"]
    assert (result.table[columns] == 0).all().all()
    assert (result.table["probability_of_sign"] == 0.5).all()
    assert (result.condition, result.support, result.n_observed) == ("control", "control", 0)


def test_a_dosage_of_zero_is_as_if_not_given(tiny):
    one, other = compose(tiny, {"P1": 1.0}), compose(tiny, {"P1": 1.0, "P2": 0.0})
    assert one.table.equals(other.table)
    assert one.condition == other.condition == "P1"


def test_with_all_active_mechanisms_off_nothing_is_left(tiny):
    sure = with_effects(tiny)
    result = compose(sure, {"P1": 1.0, "P3": 0.5}, without=active_mechanisms(tiny.masks))
    assert (result.table[["shift", "lower", "upper", "interaction"]] == 0).all().all()


def test_with_every_mechanism_off_nothing_is_left_of_uncertain_masks(tiny):
    result = compose(tiny, {"P1": 1.0, "P3": 0.5}, without=range(4))
    assert (result.table[["shift", "lower", "upper", "interaction"]] == 0).all().all()
    assert result.without == (0, 1, 2, 3)


# Invariances


def test_the_order_of_the_parts_changes_nothing(tiny):
    names = {"P1": 1.0, "P3": 0.5, "P6": 2.0}
    one = compose(tiny, names, without=(2, 0))
    other = compose(tiny, dict(reversed(names.items())), without=(0, 2, 2))
    assert one.table.equals(other.table)
    assert json.dumps(one.settings()) == json.dumps(other.settings())


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others(tiny):
    one, same, other = (compose(tiny, {"P1": 1.0}, n_samples=8, seed=s) for s in (3, 3, 4))
    assert one.table.equals(same.table)
    assert not one.table.equals(other.table)


def test_the_global_random_states_are_left_alone(tiny):
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    compose(tiny, {"P1": 1.0}, n_samples=4)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_one_perturbation_does_not_interact_with_itself(tiny):
    table = compose(tiny, {"P2": 1.0}).table
    assert (table[["interaction", "interaction_lower", "interaction_upper"]] == 0).all().all()
    assert (table["sum_of_singles"] == table["shift"]).all()


def test_the_sum_of_singles_is_the_sum_of_the_single_compositions(tiny):
    """Draws are common to all arms, so it holds up to rounding and not only on average."""
    both = compose(tiny, {"P1": 1.0, "P6": 0.5}).table
    singles = compose(tiny, {"P1": 1.0}).table["shift"] + compose(tiny, {"P6": 0.5}).table["shift"]
    np.testing.assert_allclose(both["sum_of_singles"], singles, atol=1e-5)
    np.testing.assert_allclose(both["interaction"], both["shift"] - singles, atol=1e-5)


def test_a_composition_is_what_a_loop_over_draws_and_cells_says(tiny):
    """At sure masks and narrow embeddings the shift is that of the decoder at the moved states."""
    sure = with_effects(tiny)
    sure.model.embedding_log_scale.fill_(-30)
    narrow = replace(sure, reference=sure.reference._replace(scale=sure.reference.scale * 0))
    table = compose(narrow, {"P1": 1.0, "P4": 0.5}, n_samples=2).table
    model = narrow.model
    names = list(narrow.perturbations.index)
    effect = (model.mask_logits > 0) * model.embedding_loc
    move = effect[names.index("P1")] + 0.5 * effect[names.index("P4")]
    levels = []
    for shift in (move, 0 * move):
        shares = [torch.softmax(model.decoder(z + shift), -1) for z in narrow.reference.loc]
        levels.append(np.log2(1 + 1e4 * torch.stack(shares).double().numpy().mean(0)))
    np.testing.assert_allclose(table["shift"], levels[0] - levels[1], atol=1e-4)
    assert abs(table["shift"]).max() > 0.1
    np.testing.assert_allclose(table["upper"] - table["lower"], 0, atol=1e-5)


# Intervals


def test_intervals_contain_the_mean(tiny):
    table = compose(tiny, {"P1": 1.0, "P5": 1.0}, n_samples=40).table
    assert (table["lower"] <= table["shift"]).all()
    assert (table["shift"] <= table["upper"]).all()
    assert (table["interaction_lower"] <= table["interaction"]).all()
    assert (table["interaction"] <= table["interaction_upper"]).all()
    assert table["probability_of_sign"].between(0, 1).all()


@pytest.mark.parametrize("rare", [50.0, -50.0])
def test_an_interval_contains_a_mean_that_rare_draws_make(rare):
    draws = np.zeros((100, 1))
    draws[0] = rare  # one draw in a hundred: both quantiles are 0, the mean is not
    found = summary(draws)
    assert found["lower"] <= found["shift"] <= found["upper"]
    assert found["shift"] == rare / 100
    assert found["probability_of_sign"] == 0.01


def test_an_interval_is_the_middle_ninety_percent_of_the_draws():
    draws = np.random.default_rng(0).permutation(np.arange(101.0))[:, None] - 30
    found = summary(draws)
    assert (found["lower"], found["upper"]) == (-25, 65)
    assert found["probability_of_sign"] == 70 / 101


# What is measured


def test_the_observed_shift_is_that_of_the_pooled_counts(tiny, screen):
    data = screen.data
    level = {}
    for condition in ("P1+P6", "control"):
        x = data.counts.toarray()[[c == condition for c in data.conditions]]
        level[condition] = np.log2(1 + 1e4 * x.sum(0) / x.sum())
    result = compose(tiny, {"P6": 1.0, "P1": 1.0}, n_samples=2)
    np.testing.assert_allclose(
        result.table["observed"], level["P1+P6"] - level["control"], atol=1e-6
    )
    assert result.n_observed == (data.conditions == "P1+P6").sum()


def test_the_error_of_the_observed_shift_is_that_of_both_arms(tiny):
    table = compose(tiny, {"P2": 1.0}, n_samples=2).table
    rows = tiny.observed[tiny.observed["split"] == "all"].set_index(["condition", "gene"])["se"]
    for gene in tiny.genes[:5]:
        expected = np.sqrt(rows["P2", gene] ** 2 + rows["control", gene] ** 2)
        assert table.loc[gene, "observed_se"] == pytest.approx(expected)


def test_what_was_not_measured_has_no_observed_shift(tiny):
    result = compose(tiny, {"P1": 1.0, "P2": 1.0, "P3": 1.0}, n_samples=2)
    assert result.table[["observed", "observed_se"]].isna().all().all()
    assert result.n_observed == 0


# Support


def test_a_composition_says_what_it_rests_on(tiny):
    assert {c for c in tiny.conditions.index if "+" in c} == {"P1+P6", "P2+P5"}
    cells = tiny.perturbations.copy()
    cells.loc["P3", ["train", "train_alone"]] = 0
    cells.loc["P4", "train_alone"] = 0
    edited = replace(tiny, perturbations=cells)
    for dosages, expected in (
        ({}, "control"),
        ({"P1": 1.0}, "measured"),
        ({"P6": 1.0, "P1": 1.0}, "measured"),
        ({"P1": 1.0, "P2": 1.0}, "singles"),
        ({"P1": 1.0, "P4": 1.0}, "in combination only"),
        ({"P1": 0.5}, "dosage"),
        ({"P1": 2.0, "P2": 1.0}, "dosage"),
        ({"P1": 0.5, "P4": 1.0}, "dosage"),
        ({"P1": 1.0, "P3": 1.0}, "never"),
        ({"P1": 0.5, "P3": 1.0}, "never"),
    ):
        assert support(edited, dosages) == expected, dosages
        assert expected in SUPPORT


def test_a_condition_without_training_cells_was_not_measured_for_the_model(tiny):
    conditions = tiny.conditions.copy()
    conditions.loc["P1+P6", "train"] = 0
    assert support(replace(tiny, conditions=conditions), {"P1": 1.0, "P6": 1.0}) == "singles"


def test_settings_are_plain_values(tiny):
    result = compose(tiny, {"P3": 1.0, "P1": 0.5}, without=[1], n_samples=4, seed=7)
    kept = json.loads(json.dumps(result.settings()))
    assert kept["condition"] == "P1:0.5+P3"
    assert (kept["n_samples"], kept["seed"], kept["without_mechanisms"]) == (4, 7, [1])
    assert kept["support_meaning"] == SUPPORT[kept["support"]]


def test_a_condition_is_named_as_in_the_data():
    assert condition_name({"B": 1.0, "A": 0.5}, "ctrl") == "A:0.5+B"
    assert condition_name({}, "ctrl") == "ctrl"


# Mistakes


def test_an_unknown_perturbation_is_answered_with_the_nearest(tiny):
    with pytest.raises(UnknownPerturbationError, match=r"'p1' .*it knows 6.*Did you mean P1\?"):
        compose(tiny, {"p1": 1.0})
    assert unknown("klf1", ["KLF1", "SET"]).endswith("Did you mean KLF1?")
    assert unknown("zzzz", ["KLF1", "SET"]).endswith("Known: KLF1, SET, ...")


@pytest.mark.parametrize("dose", [-1.0, float("nan"), float("inf"), -float("inf")])
def test_a_dosage_that_is_none_is_refused(tiny, dose):
    with pytest.raises(ValueError, match=r"dosage of P1 is .*expected a finite number, 0 or more"):
        compose(tiny, {"P1": dose})


@pytest.mark.parametrize("mechanism", [-1, 4])
def test_an_unknown_mechanism_is_refused(tiny, mechanism):
    with pytest.raises(ValueError, match=f"no mechanism {mechanism}; this model has 0 to 3"):
        compose(tiny, {"P1": 1.0}, without=[mechanism])


def test_one_draw_is_too_few(tiny):
    with pytest.raises(ValueError, match="at least 2 draws"):
        compose(tiny, {"P1": 1.0}, n_samples=1)
