import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr
from sklearn.metrics import silhouette_score

from samsvae_core.evaluation.metrics import (
    agreement,
    cosine,
    group_agreement,
    jackknife_error,
    mask_recovery,
    mask_stability,
    pearson,
    r_squared,
    true_rank,
)


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


# Ranks and spreads


def test_the_rank_of_the_true_condition_is_its_place_by_cosine():
    observed = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    assert true_rank(observed, 5 * observed) == 0
    assert true_rank(observed, -observed) == pytest.approx((2 + 2 + 2) / 3 / 2)
    # towards the second: the places of 1, 2 and 3 are 1 (tied with 3: 1.5), 0 and 1.5 of 2
    same = np.tile([[0.0, 2.0]], (3, 1))
    assert true_rank(observed, same) == pytest.approx((1.5 + 0 + 1.5) / 3 / 2)


def test_one_prediction_for_all_conditions_ranks_at_chance():
    observed = table(0).to_numpy()
    assert true_rank(observed, np.tile(observed.mean(0), (30, 1))) == pytest.approx(0.5)
    random = true_rank(observed, table(1).to_numpy())
    assert abs(random - 0.5) < 4 * np.sqrt(1 / 12 / 30)  # the mean of 30 uniform ranks


def test_no_rank_is_given_among_two_conditions_or_to_no_change():
    observed = table(0, n=3).to_numpy()
    assert true_rank(observed[:2], observed[:2]) is None
    assert true_rank(observed, 0 * observed) is None


def test_median_and_quartiles_are_of_the_correlations_that_are_defined():
    observed = table(0, n=6)
    predicted = observed + 2 * table(1, n=6)
    predicted.iloc[0] = 0.0
    found = agreement(observed, predicted)
    known = [pearsonr(observed.iloc[i], predicted.iloc[i]).statistic for i in range(1, 6)]
    assert found["median"] == pytest.approx(sorted(known)[2])
    assert found["quartiles"] == pytest.approx([sorted(known)[1], sorted(known)[3]])


def test_nothing_compared_agrees_in_no_way():
    found = agreement(table(0).iloc[:0], table(0).iloc[:0])
    assert found.pop("per_perturbation") == {}
    assert set(found.values()) == {None}


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = np.random.default_rng(0).standard_normal(10)
    left_out = [np.delete(x, i).mean() for i in range(10)]
    assert jackknife_error(left_out) == pytest.approx(x.std(ddof=1) / np.sqrt(10))
    assert jackknife_error([0.1, None]) is None
    assert jackknife_error([0.1]) is None


# Groups of perturbations


def grouped(shift: float) -> tuple[pd.DataFrame, pd.Series]:
    """Return groups of 6, 5 and 4 perturbations with centres `shift` apart, and 5 in none."""
    names = [f"P{i}" for i in range(20)]
    group = np.repeat(["a", "b", "c"], [6, 5, 4])
    rows = np.random.default_rng(0).standard_normal((20, 3))
    rows[:15] += shift * np.eye(3)[np.repeat([0, 1, 2], [6, 5, 4])]
    return pd.DataFrame(rows, index=names), pd.Series(group, index=names[:15])


def test_groups_that_lie_apart_are_found_and_others_are_not():
    found = group_agreement(*grouped(50.0), n_permutations=200)
    assert found["accuracy"]["value"] == 1
    assert found["silhouette"]["value"] > 0.9
    assert found["accuracy"]["p_value"] == found["silhouette"]["p_value"] == 1 / 201
    assert found["groups"] == {"a": 6, "b": 5, "c": 4}
    assert found["k"] == 3
    chance = group_agreement(*grouped(0.0), n_permutations=200)
    assert chance["accuracy"]["p_value"] > 0.05
    assert abs(chance["silhouette"]["permuted_mean"]) < 0.2


def test_neighbours_and_silhouettes_are_those_of_a_loop():
    effects, groups = grouped(1.5)
    found = group_agreement(effects, groups, n_permutations=1)
    rows, label = effects.loc[groups.index].to_numpy(), groups.to_numpy()
    right = 0
    for i in range(15):
        apart = np.linalg.norm(rows - rows[i], axis=1)
        order = [j for j in np.argsort(apart) if j != i][:3]
        names = [label[j] for j in order]
        best = max(names, key=lambda n: (names.count(n), -names.index(n)))
        right += best == label[i]
    assert found["accuracy"]["value"] == pytest.approx(right / 15)
    assert found["silhouette"]["value"] == pytest.approx(silhouette_score(rows, label))


def test_groups_the_model_does_not_know_are_said():
    effects, groups = grouped(1.0)
    with pytest.raises(ValueError, match="found 1 among 15 named perturbations, of which 6"):
        group_agreement(effects.iloc[:6], groups)
    with pytest.raises(ValueError, match="'P0' was given several"):
        group_agreement(effects, pd.concat([groups, groups[:1]]))


def test_perturbations_alone_in_their_group_are_left_out():
    effects, groups = grouped(50.0)
    alone = pd.concat([groups, pd.Series(["d", "b"], index=["P19", "elsewhere"])])
    one, other = (group_agreement(effects, g, n_permutations=10) for g in (groups, alone))
    assert one == other


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


def test_stability_is_that_of_every_pair_of_trainings():
    mask = np.random.default_rng(0).random((20, 5)) < 0.3
    less = mask.copy()
    less[np.argwhere(mask)[0][0], np.argwhere(mask)[0][1]] = False
    n = int(mask.sum())
    found = mask_stability([mask, mask[:, ::-1], np.c_[less, np.zeros((20, 2), bool)]])
    assert found[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert found["f1"].tolist() == pytest.approx([1, *2 * [2 * (n - 1) / (2 * n - 1)]])
    assert found["jaccard"].tolist() == pytest.approx([1, *2 * [(n - 1) / n]])


def test_masks_that_cannot_be_compared_are_said():
    empty = np.zeros((3, 2), bool)
    assert mask_stability([empty, empty])["f1"].isna().all()
    with pytest.raises(ValueError, match=r"found 2 over \[3, 4\] perturbations"):
        mask_stability([empty, np.zeros((4, 2), bool)])
    with pytest.raises(ValueError, match="found 1 over"):
        mask_stability([empty])
