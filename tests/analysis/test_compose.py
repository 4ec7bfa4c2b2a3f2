import copy
import inspect
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from samsvae_core.analysis import draws as draws_of
from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.compose import compare, compose
from samsvae_core.analysis.draws import cells_of, summary
from samsvae_core.analysis.masks import active_mechanisms, matrix
from samsvae_core.analysis.support import (
    SUPPORT,
    Nearest,
    UnknownPerturbationError,
    checked_dosages,
    condition_name,
    nearest_condition,
    outside,
    support,
    unknown,
)
from samsvae_core.bundle.bundle import ANEW
from samsvae_core.bundle.opening import load
from samsvae_core.evaluation.shifts import N_REFERENCE, predicted_shifts
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS

COLUMNS = [
    "shift",
    "lower",
    "upper",
    "probability_of_sign",
    "through_mechanisms",
    "direct",
    "sum_of_singles",
    "interaction",
    "interaction_lower",
    "interaction_upper",
    "observed",
    "observed_se",
    "calibrated_lower",
    "calibrated_upper",
    "observed_interaction",
    "observed_interaction_se",
]


def with_effects(tiny, logit: float = 40.0):
    """Return the bundle with masks that are surely on or off."""
    model = copy.deepcopy(tiny.model)
    model.mask_logits.copy_(torch.where(model.mask_logits > 0, logit, -logit))
    return replace(tiny, model=model)


def with_tables(bundle, **tables):
    """Return the bundle with other tables than those in its folder."""
    edited = replace(bundle)
    edited.__dict__.update(tables)
    return edited


def many_cells(bundle, n: int = 300):
    """Return a bundle with more cells than a composition starts from, with distant basal states."""
    rng = np.random.default_rng(5)
    states = rng.normal(size=(n, bundle.model.config.n_latent)).astype(np.float32)
    cells = pd.DataFrame({f"basal M{k}": state for k, state in enumerate(states.T)})
    cells["condition"] = np.where(np.arange(n) < n // 2, "P1", "P3")
    cells["cell"] = [f"cell-{i}" for i in rng.permutation(n)]
    return with_tables(bundle, cells=cells)


def test_the_table_has_its_columns_in_the_order_of_the_genes(tiny):
    table = compose(tiny, {"P1": 1.0}, n_samples=4).table
    assert table.columns.tolist() == COLUMNS
    assert table.index.tolist() == tiny.genes
    assert table.index.name == "gene"


# Zero


@pytest.mark.parametrize("dosages", [{}, {"P1": 0.0}, {"P1": 0.0, "P4": 0.0}])
@pytest.mark.parametrize("n_reference", [2, 3, 128])
def test_nothing_given_is_exactly_nothing(tiny, dosages, n_reference):
    """With few reference cells sums are taken in another order; rounding must not show."""
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
    result = compose(
        sure, {"P1": 1.0, "P3": 0.5}, without=active_mechanisms(tiny.masks), direct=False
    )
    assert (result.table[["shift", "lower", "upper", "interaction"]] == 0).all().all()


def test_with_every_mechanism_off_nothing_is_left_of_uncertain_masks(tiny):
    result = compose(tiny, {"P1": 1.0, "P3": 0.5}, without=range(4), direct=False)
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
    """All arms use the same draws, so it holds up to rounding and not only on average."""
    both = compose(tiny, {"P1": 1.0, "P6": 0.5}).table
    singles = compose(tiny, {"P1": 1.0}).table["shift"] + compose(tiny, {"P6": 0.5}).table["shift"]
    np.testing.assert_allclose(both["sum_of_singles"], singles, atol=1e-5)
    np.testing.assert_allclose(both["interaction"], both["shift"] - singles, atol=1e-5)


def test_a_composition_is_what_a_loop_over_draws_and_cells_says(tiny):
    """With sure masks and narrow embeddings, the shift is the decoder's at the moved states."""
    sure = with_effects(tiny)
    sure.model.embedding_log_scale.fill_(-30)
    narrow = replace(sure, reference=sure.reference._replace(scale=sure.reference.scale * 0))
    table = compose(narrow, {"P1": 1.0, "P4": 0.5}, n_samples=2, direct=False).table
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


def test_an_observed_interaction_is_that_of_the_pooled_counts(tiny, screen):
    """It is the shift of the double minus those of its singles, all against the same control."""
    level, expected_se = {}, 0.0
    se = tiny.observed[tiny.observed["split"] == "all"].set_index(["condition", "gene"])["se"]
    for condition in ("P2+P5", "P2", "P5", "control"):
        x = screen.data.counts.toarray()[screen.data.conditions == condition]
        level[condition] = np.log2(1 + 1e4 * x.sum(0) / x.sum())
        expected_se += se[condition].to_numpy() ** 2
    shift = {c: level[c] - level["control"] for c in ("P2+P5", "P2", "P5")}
    table = compose(tiny, {"P5": 1.0, "P2": 1.0}, n_samples=2).table
    expected = shift["P2+P5"] - shift["P2"] - shift["P5"]
    np.testing.assert_allclose(table["observed_interaction"], expected, atol=1e-6)
    np.testing.assert_allclose(table["observed_interaction_se"], np.sqrt(expected_se), rtol=1e-9)
    assert table["observed_interaction"].abs().max() > 0.1


def test_control_enters_the_interaction_of_three_twice(tiny):
    """Copies of four conditions with known levels: 10 - 1 - 2 - 3 + 2 x 0.5, and their errors."""
    rows = tiny.observed[tiny.observed["split"] == "all"]
    known = {"P1+P2+P3": (10, 0.1), "P1": (1, 0.2), "P2": (2, 0.3), "P3": (3, 0.4)}
    made = [
        rows[rows["condition"] == "P4"].assign(condition=c, level=float(level), se=se)
        for c, (level, se) in {**known, "control": (0.5, 0.6)}.items()
    ]
    edited = with_tables(tiny, observed=pd.concat(made, ignore_index=True))
    table = compose(edited, dict.fromkeys(("P1", "P2", "P3"), 1.0), n_samples=2).table
    np.testing.assert_allclose(table["observed_interaction"], 5.0)
    expected = np.sqrt(0.1**2 + 0.2**2 + 0.3**2 + 0.4**2 + 4 * 0.6**2)
    np.testing.assert_allclose(table["observed_interaction_se"], expected)


def test_an_interaction_within_strata_is_of_shifts_against_their_own_controls(tiny):
    """(10 - 4) - (1 - 0.5) - (2 - 0.25); controls may be the same cells or others."""
    rows = tiny.observed[tiny.observed["split"] == "all"]
    known = {
        "P1+P2": (10, 0.1, 4, 0.6),
        "P1": (1, 0.2, 0.5, 0.2),
        "P2": (2, 0.3, 0.25, 0.3),
        "control": (7, 0.5, np.nan, np.nan),
    }
    columns = ["level", "se", "control_level", "control_se"]
    made = [
        rows[rows["condition"] == "P4"].assign(
            condition=c, **dict(zip(columns, map(float, numbers), strict=True))
        )
        for c, numbers in known.items()
    ]
    edited = with_tables(tiny, observed=pd.concat(made, ignore_index=True))
    table = compose(edited, {"P1": 1.0, "P2": 1.0}, n_samples=2).table
    np.testing.assert_allclose(table["observed"], 6)
    np.testing.assert_allclose(table["observed_interaction"], 3.75)
    own = 0.1**2 + 0.2**2 + 0.3**2
    expected = np.sqrt(own + 0.6**2 + 0.2**2 + 0.3**2)  # more than (0.6 - 0.2 - 0.3)^2
    np.testing.assert_allclose(table["observed_interaction_se"], expected)


@pytest.mark.parametrize(
    "dosages",
    [{}, {"P1": 1.0}, {"P1": 1.0, "P2": 0.0}, {"P1": 1.0, "P2": 1.0}, {"P1": 0.5, "P6": 1.0}],
)
def test_without_a_measured_combination_no_interaction_was_observed(tiny, dosages):
    table = compose(tiny, dosages, n_samples=2).table
    assert table[["observed_interaction", "observed_interaction_se"]].isna().all().all()


def test_without_a_measured_single_no_interaction_was_observed(tiny):
    observed = tiny.observed[tiny.observed["condition"] != "P6"]
    table = compose(with_tables(tiny, observed=observed), {"P1": 1.0, "P6": 1.0}, n_samples=2).table
    assert table["observed"].notna().all()
    assert table["observed_interaction"].isna().all()


# Where it starts from


def test_a_start_from_cells_is_a_loop_over_their_basal_states(tiny):
    """With sure masks and narrow embeddings it is the level of these cells moved minus unmoved."""
    sure = with_effects(tiny)
    sure.model.embedding_log_scale.fill_(-30)
    names = tiny.cells["cell"].tolist()[2:9]
    result = compose(sure, {"P1": 1.0, "P4": 0.5}, n_samples=2, cells=names, direct=False)
    effect = (sure.model.mask_logits > 0) * sure.model.embedding_loc
    place = sure.perturbations.index.get_loc
    move = effect[place("P1")] + 0.5 * effect[place("P4")]
    states = tiny.cells.set_index("cell").loc[names, [f"basal M{k}" for k in range(4)]]
    levels = []
    for shift in (move, 0 * move):
        shares = [
            torch.softmax(sure.model.decoder(torch.tensor(z) + shift), -1)
            for z in states.to_numpy()
        ]
        levels.append(np.log2(1 + 1e4 * torch.stack(shares).double().numpy().mean(0)))
    np.testing.assert_allclose(result.table["shift"], levels[0] - levels[1], atol=1e-4)
    assert (result.cells, result.n_reference) == (tuple(names), 7)
    control = compose(sure, {"P1": 1.0, "P4": 0.5}, n_samples=2, direct=False).table["shift"]
    assert abs(control - result.table["shift"]).max() > 0.01


def test_the_order_and_number_of_names_of_a_cell_change_nothing(tiny):
    edited = many_cells(tiny)
    names = cells_of(edited, "P3")
    one = compose(edited, {"P1": 1.0}, n_samples=3, cells=names)
    other = compose(edited, {"P1": 1.0}, n_samples=3, cells=[*names[::-1], *names[:40]])
    assert one.table.equals(other.table)
    assert json.dumps(one.settings()) == json.dumps(other.settings())


def test_of_many_cells_an_even_draw_is_taken(tiny):
    edited = many_cells(tiny)
    result = compose(edited, {"P1": 1.0}, n_samples=3, cells=edited.cells["cell"].tolist())
    assert result.n_reference == len(set(result.cells)) == N_REFERENCE == 128
    first_half = set(result.cells) & set(edited.cells["cell"][:150])
    assert 44 < len(first_half) < 84  # 64 +- 3.5 standard deviations
    again = compose(edited, {"P1": 1.0}, n_samples=3, cells=result.cells)
    assert again.table.equals(result.table)
    assert again.cells == result.cells


@pytest.mark.parametrize(
    ("dosages", "without"), [({}, ()), ({"P1": 0.0}, ()), ({"P2": 1.0}, (0, 3))]
)
def test_from_any_start_nothing_given_is_exactly_nothing(tiny, dosages, without):
    without = range(4) if without else ()
    cells, direct = cells_of(tiny, "control"), not without
    result = compose(tiny, dosages, without, n_samples=20, cells=cells, direct=direct)
    assert (result.table[["shift", "lower", "upper", "interaction"]] == 0).all().all()


def test_intervals_that_were_checked_on_control_cells_are_not_those_of_another_start(tiny):
    errors = pd.DataFrame({"gene": tiny.genes, "model_error": 0.3})
    edited = with_tables(tiny, calibration=errors)
    columns = ["calibrated_lower", "calibrated_upper"]
    assert compose(edited, {"P1": 1.0}).table[columns].notna().all().all()
    elsewhere = compose(edited, {"P1": 1.0}, cells=cells_of(tiny, "control"))
    assert elsewhere.table[columns].isna().all().all()
    assert "calibrated" not in elsewhere.settings()["scale"]


def test_the_start_is_told_with_the_numbers(tiny):
    names = tiny.cells["cell"].tolist()[:5]
    own, usual = compose(tiny, {"P1": 1.0}, cells=names), compose(tiny, {"P1": 1.0})
    kept = json.loads(json.dumps(own.settings()))
    assert kept["start"] == "5 chosen cells at their posterior mean basal states"
    assert (kept["start_cells"], kept["n_reference_cells"]) == (names, 5)
    assert "minus that of the same cells with no perturbation" in kept["scale"]
    assert "5 chosen cells" in gene_rankings.of_shift(own).definition
    kept = usual.settings()
    assert (kept["start"], kept["start_cells"]) == ("reference control cells", None)
    assert "minus that of control; p = mean decoded proportion over reference" in kept["scale"]
    assert "reference control cells" in gene_rankings.of_shift(usual).definition


def test_compositions_of_two_starts_are_compared_each_from_its_own(tiny):
    names = tiny.cells["cell"].tolist()[:5]
    one, two = compose(tiny, {"P1": 1.0}, cells=names), compose(tiny, {"P1": 1.0})
    expected = one.table["shift"] - two.table["shift"]
    np.testing.assert_allclose(compare(tiny, one, two)["difference"], expected, atol=1e-6)
    assert expected.abs().max() > 0.01
    assert not compare(tiny, one, one)[["difference", "lower", "upper"]].to_numpy().any()


def test_the_cells_of_a_condition_are_those_on_the_map(tiny):
    table = tiny.cells
    found = [name for c in table["condition"].unique() for name in cells_of(tiny, c)]
    assert sorted(found) == sorted(table["cell"])
    with pytest.raises(ValueError, match=r"condition 'Control'\. Did you mean 'control'\?"):
        cells_of(tiny, "Control")


def test_a_start_that_cannot_be_made_is_refused(tiny):
    with pytest.raises(ValueError, match="No cells to start from are named"):
        compose(tiny, {"P1": 1.0}, cells=[])
    with pytest.raises(ValueError, match=r"1 of the cells .* among the 14 on the map.*: NOPE\."):
        compose(tiny, {"P1": 1.0}, cells=[tiny.cells["cell"][0], "NOPE", "NOPE"])
    named = [tiny.cells["cell"][0]]
    few = with_tables(tiny, cells=tiny.cells.drop(columns="basal M2"))
    with pytest.raises(ValueError, match="holds 3 of the 4 latent dimensions"):
        compose(few, {"P1": 1.0}, cells=named)
    old = tiny.cells.drop(columns=[f"basal M{k}" for k in range(4)])
    with pytest.raises(ValueError, match="before they were kept") as refused:
        compose(with_tables(tiny, cells=old), {"P1": 1.0}, cells=named)
    assert str(refused.value).endswith(ANEW)


def test_a_model_without_latent_shifts_starts_from_states_beside_the_dosages(tiny):
    """The decoder reads both, so the shift is that of the dosages at these cells' states."""
    torch.manual_seed(0)
    model = MODELS["conditional-vae"](ModelConfig(40, 6, n_latent=4, n_hidden=8)).eval()
    names = tiny.cells["cell"].tolist()[:6]
    result = compose(replace(tiny, model=model), {"P2": 2.0}, n_samples=2, cells=names)
    z = torch.tensor(tiny.cells.loc[:5, [f"basal M{k}" for k in range(4)]].to_numpy())
    levels = []
    for dose in (2.0, 0.0):
        D = torch.zeros(6, 6)
        D[:, tiny.perturbations.index.get_loc("P2")] = dose
        with torch.inference_mode():
            share = model.decoder(torch.cat([z, D], 1)).softmax(-1).double().numpy().mean(0)
        levels.append(np.log2(1 + 1e4 * share))
    np.testing.assert_allclose(result.table["shift"], levels[0] - levels[1], atol=1e-4)
    assert result.table["lower"].isna().all()
    assert result.nearest is None


# Support


def test_a_measured_condition_is_nearest_to_itself(tiny):
    effect = matrix(tiny.masks, "effect")
    for label in tiny.conditions.index:
        parts = [] if label == "control" else label.split("+")
        length = np.linalg.norm(effect.loc[parts].sum())
        found = nearest_condition(tiny, dict.fromkeys(parts, 1.0))
        assert found[:2] == (label, 0.0)
        assert found.length == pytest.approx(length)


@pytest.mark.parametrize(
    ("dosages", "without"),
    [
        ({"P1": 1.0, "P2": 1.0}, ()),
        ({"P6": 0.4, "P1": 1.0}, ()),
        ({"P3": 3.0}, ()),
        ({"P2": 1.0}, (0,)),
        ({"P1": 1.0, "P3": 1.0, "P5": 2.0}, (1, 2)),
    ],
)
def test_the_nearest_condition_is_that_of_a_loop_over_all(tiny, dosages, without):
    effect = matrix(tiny.masks, "effect")
    move = sum(dose * effect.loc[name].to_numpy() for name, dose in dosages.items())
    move[list(without)] = 0
    distances = {
        label: np.linalg.norm(
            effect.loc[[] if label == "control" else label.split("+")].sum() - move
        )
        for label in tiny.conditions.index
    }
    found = nearest_condition(tiny, dosages, without)
    assert found.condition == min(distances, key=distances.get)
    assert found.distance == pytest.approx(distances[found.condition])
    assert found.length == pytest.approx(np.linalg.norm(move))
    assert compose(tiny, dosages, without, n_samples=2).nearest == found


def test_of_conditions_equally_near_the_first_is_told(tiny):
    """Half the dosage is half way to control, and P2 without any effect is at control."""
    found = nearest_condition(tiny, {"P1": 0.5})
    masks = tiny.masks.assign(effect=np.where(tiny.masks["mechanism"] == 0, 1.0, 0.0))
    masks.loc[masks["perturbation"].isin(["P2", "P5"]), "effect"] = 0.0
    edited = with_tables(tiny, masks=masks)
    assert nearest_condition(edited, {"P1": 0.5}) == ("control", 0.5, 0.5)
    assert nearest_condition(edited, {"P2": 0.5, "P5": 0.1}) == ("control", 0.0, 0.0)
    assert nearest_condition(edited, {"P3": 0.9}) == ("P1", pytest.approx(0.1), 0.9)
    assert found.distance <= found.length


def test_a_condition_without_training_cells_is_not_near(tiny):
    conditions = tiny.conditions.copy()
    conditions.loc["P1+P6", "train"] = 0
    found = nearest_condition(replace(tiny, conditions=conditions), {"P1": 1.0, "P6": 1.0})
    assert found.condition != "P1+P6"


def test_the_nearest_condition_is_kept_with_the_settings(tiny):
    result = compose(tiny, {"P1": 1.0, "P2": 1.0}, n_samples=2)
    kept = json.loads(json.dumps(result.settings()))["nearest_condition"]
    assert Nearest(**kept) == result.nearest


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


def test_a_dosage_that_was_not_measured_is_told_from_those_that_were(tiny):
    cells = tiny.perturbations.copy()
    cells.loc["P2", ["dosage_min", "dosage_max"]] = 0.5, 2
    edited = replace(tiny, perturbations=cells)
    assert outside(edited, {"P1": 0.0, "P2": 1.0, "P3": 1.0}) == []
    assert outside(edited, {"P1": 0.5, "P2": 2.5}) == [
        "P1 was not trained on at 0.5: between none and the least dosage trained on, 1.",
        "P2 was not trained on at 2.5: beyond the largest dosage trained on, 2.",
    ]


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
    assert unknown("", ["KLF1", "SET"]).endswith("Known: KLF1, SET, ...")


def test_the_beginning_of_names_is_answered_with_all_of_them_up_to_four():
    stats = ["SET", "STAT1", "STAT2", "STAT3"]
    assert unknown("STAT", stats).endswith("Did you mean STAT1, STAT2 or STAT3?")
    assert unknown("stat1", stats).endswith("Did you mean STAT1?")
    assert unknown("P", [f"P{i}" for i in range(9)]).endswith("Did you mean P0, P1, P2 or P3?")
    assert unknown("klf1", ["KLF1", "KLF10"]).endswith("Did you mean KLF1?")
    assert unknown("STAT6", stats).endswith("Did you mean STAT3, STAT2 or STAT1?")


@pytest.mark.parametrize("given", ["P1", ["P1"], {"P1"}])
def test_perturbations_without_dosages_are_answered_with_how_to_give_them(tiny, given):
    checked = inspect.unwrap(checked_dosages)  # types are checked in tests only
    with pytest.raises(ValueError, match=r"expected a mapping of .* such as \{'P1': 1.0\}"):
        checked(tiny, given)


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


def test_an_arm_decoded_before_is_not_decoded_again_and_is_the_same_to_the_bit(tiny, monkeypatch):
    asked = []

    def counted(model, start, D, *rest):
        asked.extend(D.tolist())
        return predicted_shifts(model, start, D, *rest)

    monkeypatch.setattr(draws_of, "predicted_shifts", counted)
    first, again = load(tiny.path), load(tiny.path)
    compose(first, {"P1": 1.0, "P2": 1.0})
    assert len(asked) == 3
    changed = compose(first, {"P1": 0.5, "P2": 1.0})
    assert len(asked) == 5  # the sum and P1; P2 stays
    compare(first, changed, compose(first, {"P1": 1.0, "P2": 1.0}))
    assert len(asked) == 5
    pd.testing.assert_frame_equal(compose(again, {"P1": 0.5, "P2": 1.0}).table, changed.table)
    for other in (
        {"n_samples": 32},
        {"seed": 1},
        {"without": [0]},
        {"direct": False},
        {"cells": cells_of(first, "P6")},
    ):
        found = compose(first, {"P1": 0.5, "P2": 1.0}, **other).table
        pd.testing.assert_frame_equal(
            compose(load(tiny.path), {"P1": 0.5, "P2": 1.0}, **other).table, found
        )
        assert (found["shift"] != changed.table["shift"]).any()


def test_no_more_draws_are_kept_than_there_is_room_for(tiny, monkeypatch):
    bundle = load(tiny.path)
    monkeypatch.setattr(draws_of, "MOST_KEPT", 3 * 65 * len(tiny.genes) * 4)
    for name in ("P1", "P2", "P3", "P4"):
        compose(bundle, {name: 1.0})
    (kept,) = [held for one, held in draws_of._KEPT.items() if one is bundle]
    assert [arm for arm, *_ in kept] == [((name, 1.0),) for name in ("P2", "P3", "P4")]
    compose(bundle, {"P1": 1.0}, n_samples=1000)  # larger than all the room
    assert len(kept) == 3
