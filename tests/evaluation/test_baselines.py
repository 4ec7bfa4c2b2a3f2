from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.data.cells import CellData, DataError, conditions_as_perturbations
from samsvae_core.evaluation.baselines import (
    additive,
    baselines,
    ceiling,
    ceiling_figures,
    cell_levels,
    dosage_table,
    halvings,
    is_combination,
    observed_effects,
    ridge,
    shrunken,
)


def values(effects: dict[str, np.ndarray], n: int, noise: float, seed: int = 0) -> CellData:
    """Return `n` cells of control and of each condition, with normal values around its effect."""
    rng = np.random.default_rng(seed)
    names = sorted({part for c in effects for part in c.split("+")})
    genes = len(next(iter(effects.values())))
    labels = np.repeat(["ctrl", *effects], n)
    means = np.repeat([np.zeros(genes), *effects.values()], n, axis=0)
    D = np.array([[float(name in c.split("+")) for name in names] for c in labels], np.float32)
    x = (means + noise * rng.standard_normal(means.shape)).astype(np.float32)
    return CellData(
        counts=sp.csr_matrix(x),
        dosages=sp.csr_matrix(D),
        library=np.ones(len(labels), np.float32),
        cells=np.array([f"c{i}" for i in range(len(labels))]),
        genes=np.array([f"g{i}" for i in range(genes)]),
        perturbations=np.array(names),
        conditions=labels,
        control="ctrl",
        has_size_factor=False,
        source={"file": "made", "notes": []},
        is_counts=False,
    )


def planted(n: int = 30, genes: int = 60, seed: int = 1) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).standard_normal((n, genes))
    return {f"P{i:02d}": row for i, row in enumerate(rows)}


def none_of(data: CellData) -> CellData:
    return data.subset(np.zeros(len(data.cells), bool))


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


def test_effects_of_values_that_are_not_counts_are_differences_of_means():
    data = values(planted(3, 5), n=4, noise=1.0)
    x = data.counts.toarray()
    expected = x[4:8].mean(0) - x[:4].mean(0)
    np.testing.assert_allclose(observed_effects(data).loc["P00"], expected, atol=1e-6)


# Predictions without a model


def frame(rows: dict[str, list[float]]) -> pd.DataFrame:
    return pd.DataFrame.from_dict(rows, orient="index")


def test_baselines_predict_what_their_names_say():
    truth = planted(4, 10)
    train = values(truth, n=5, noise=0.1)
    validation = values(truth, n=3, noise=0.1, seed=2)
    observed = observed_effects(values({c: truth[c] for c in ("P01", "P02")}, 5, 0.1, seed=3))
    dosages = dosage_table(train, observed.index)
    found = baselines(observed, train, validation, dosages)
    trained = observed_effects(train)
    assert set(found) == {
        "no change",
        "mean over perturbations",
        "training mean",
        "shrunken mean",
        "ridge",
    }  # of singles the additive one is the training mean
    assert (found["no change"] == 0).all().all()
    np.testing.assert_allclose(found["training mean"], trained.iloc[1:3])
    mean = np.mean([trained.loc[c] for c in truth], axis=0)  # all four, not those observed alone
    np.testing.assert_allclose(found["mean over perturbations"], np.tile(mean, (2, 1)))
    np.testing.assert_allclose(found["ridge"], trained.iloc[1:3], atol=0.1)


def noisy(strong: int, noise: float = 1.0, scale: float = 1.0) -> CellData:
    """Return cells of 8 conditions, in each of which only `strong` of 200 genes move, by 4."""
    truth = {c: 0 * row for c, row in planted(8, 200).items()}
    for i, row in enumerate(truth.values()):
        row[5 * i : 5 * i + strong] = 4 * scale
    return values(truth, n=20, noise=noise * scale)


def test_noise_is_shrunk_away_and_strong_effects_stay():
    train = noisy(strong=3)
    trained = observed_effects(train)
    found = shrunken(trained, cell_levels(train), "ctrl")
    moved = np.zeros(found.shape, bool)
    for i in range(8):
        moved[i, 5 * i : 5 * i + 3] = True
    np.testing.assert_allclose(found.to_numpy()[moved], trained.to_numpy()[moved], rtol=0.05)
    assert (found.to_numpy()[~moved] ** 2).mean() < 0.1 * (trained.to_numpy()[~moved] ** 2).mean()


def test_shrinkage_does_not_depend_on_the_unit_or_on_other_conditions():
    one, other = noisy(strong=3), noisy(strong=3, scale=1e4)
    found, scaled = (shrunken(observed_effects(d), cell_levels(d), "ctrl") for d in (one, other))
    np.testing.assert_allclose(scaled, found * 1e4, rtol=1e-3, atol=1)
    few = observed_effects(one).iloc[:2]
    unit = np.abs(observed_effects(one).to_numpy()).max() / np.abs(few.to_numpy()).max()
    alone = shrunken(few, cell_levels(one), "ctrl")
    np.testing.assert_allclose(alone, found.iloc[:2], atol=0.2 * abs(unit - 1) + 0.01)


def test_effects_without_noise_are_not_shrunk():
    train = noisy(strong=3, noise=0.0)
    trained = observed_effects(train)
    pd.testing.assert_frame_equal(shrunken(trained, cell_levels(train), "ctrl"), trained)


def test_the_shrunken_sum_is_of_shrunken_singles():
    truth = planted(2, 60)
    truth["P00+P01"] = truth["P00"] + truth["P01"]
    train = values(truth, n=5, noise=1.0)
    observed = observed_effects(train)
    found = baselines(observed, train, train, dosage_table(train, observed.index))
    names = list(found)
    assert names[3:6] == ["shrunken mean", "additive", "shrunken additive"]
    single = found["shrunken mean"].loc[["P00", "P01"]].sum()
    np.testing.assert_allclose(found["shrunken additive"].loc["P00+P01"], single)


def test_a_combination_is_the_sum_of_its_singles_where_both_were_measured_alone():
    trained = frame({"A": [1.0, 2.0], "B:0.5": [10.0, -2.0], "A+C": [9.0, 9.0]})
    found = additive(trained, pd.Index(["A", "A+B:0.5", "A+C", "C"]))
    assert found.loc["A"].tolist() == [1, 2]
    assert found.loc["A+B:0.5"].tolist() == [11, 0]
    assert found.loc[["A+C", "C"]].isna().all().all()  # C was never measured alone


def test_a_label_with_a_plus_sign_at_its_end_is_no_combination():
    assert is_combination("A+B")
    assert not is_combination("A")
    assert not is_combination("Ca2+")


def test_a_condition_without_training_cells_has_no_training_mean():
    truth = planted(3, 10)
    train = values({c: truth[c] for c in ("P00", "P01")}, 5, 0.1)
    train = replace(
        train,
        dosages=sp.csr_matrix(
            (train.dosages.data, train.dosages.indices, train.dosages.indptr), shape=(15, 3)
        ),
        perturbations=np.array(list(truth)),
    )
    test = values(truth, 5, 0.1)
    observed = observed_effects(test)
    found = baselines(
        observed,
        train,
        none_of(train),
        dosage_table(test, observed.index),
    )
    assert found["training mean"].loc["P02"].isna().all()
    assert found["shrunken mean"].loc["P02"].isna().all()
    assert found["ridge"].loc["P02"].isna().all()  # a column that no trained condition has
    assert not found["mean over perturbations"].isna().any().any()
    assert not found["ridge"].loc[["P00", "P01"]].isna().any().any()


def test_ridge_is_the_closed_form_of_weighted_ridge_regression():
    truth = planted(3, 4)
    truth["P00+P01"] = truth["P00"] + truth["P01"] + 0.5
    train = values(truth, n=6, noise=0.5).subset(np.r_[:9, 12:30])  # P00 has 3 cells
    trained = observed_effects(train)
    dosages = dosage_table(train, trained.index)
    found = ridge(trained, train, none_of(train), dosages)  # no validation: the fixed penalty
    X, Y = dosages.to_numpy(float), trained.to_numpy()
    W = np.diag([float((train.conditions == c).sum()) for c in trained.index])
    expected = X @ np.linalg.solve(X.T @ W @ X + 10 * np.eye(3), X.T @ W @ Y)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_penalty_is_the_one_that_predicts_validation_cells():
    """Cells without any effect need the largest penalty, clear effects nearly none."""
    shares, clear = [], planted(8, 500)
    for truth in ({c: 0 * row for c, row in clear.items()}, clear):
        train, validation = (values(truth, n=6, noise=0.5, seed=s) for s in (0, 1))
        trained = observed_effects(train)
        found = ridge(trained, train, validation, dosage_table(train, trained.index))
        shares.append(np.linalg.norm(found) / np.linalg.norm(trained))
    assert shares[0] < 0.1
    assert shares[1] > 0.8


def test_conditions_that_are_perturbations_of_their_own_have_the_same_additive_baseline():
    truth = planted(2, 6)
    truth["P00+P01"] = truth["P00"] + truth["P01"]
    train = values(truth, n=5, noise=0.1)
    one = observed_effects(train)
    both = [
        baselines(one, each, each, dosage_table(each, one.index))["additive"]
        for each in (train, conditions_as_perturbations(train))
    ]
    pd.testing.assert_frame_equal(*both)


# The ceiling


def test_the_ceiling_is_what_a_second_sample_scores():
    """Halves of 16 cells, corrected, predict how two samples of 16 cells agree."""
    truth = {c: 0.3 * row for c, row in planted().items()}
    found = ceiling(halvings(values(truth, n=16, noise=1.0), seed=0))
    one, other = (observed_effects(values(truth, 16, 1.0, seed=s)) for s in (5, 6))
    r = np.corrcoef(one.to_numpy().ravel(), other.to_numpy().ravel())[0, 1]
    # shared by all genes and conditions but for noise: 1,800 pairs know r to about 0.02
    assert found["pearson"] == pytest.approx(r, abs=0.08)
    # and a prediction without noise reaches the limit
    true = np.concatenate(list(truth.values()))
    limit = np.corrcoef(one.to_numpy().ravel(), true)[0, 1]
    assert found["pearson_limit"] == pytest.approx(limit, abs=0.06)
    assert found["n_halvings"] == 20
    assert found["mc_error"]["pearson"] < 0.02


def test_cells_without_noise_have_a_ceiling_of_one():
    found = ceiling(halvings(values(planted(), n=6, noise=0.0), seed=0))
    for key in ("pearson", "pearson_top20", "r2", "cosine", "pearson_limit", "median"):
        assert found[key] == pytest.approx(1), key
    assert found["rank"] is None


def test_noise_alone_has_a_ceiling_near_zero():
    """All effects share the noise of their control, so only genes count: sd about 0.03."""
    nothing = {c: 0 * row for c, row in planted(20, 2000).items()}
    found = ceiling(halvings(values(nothing, n=8, noise=1.0), seed=0))
    assert abs(found["pearson"]) < 0.1


def test_halves_are_of_conditions_with_cells_for_both():
    data = values(planted(3, 5), n=6, noise=1.0)
    fewer = data.subset(np.r_[:12, 13:24])  # 5 cells of P01
    halves = halvings(fewer, seed=0)
    assert len(halves) == 20
    assert all(half.index.tolist() == ["P00", "P02"] for pair in halves for half in pair)
    whole = observed_effects(fewer).loc[["P00", "P02"]]  # halves of 3 cells average to the whole
    np.testing.assert_allclose((halves[0][0] + halves[0][1]) / 2, whole, atol=1e-5)


def test_too_few_cells_for_halves_have_no_ceiling():
    for data in (values(planted(3, 5), n=5, noise=1.0), values({"A": np.ones(5)}, 5, 1.0)):
        found = ceiling(halvings(data, seed=0))
        assert found["pearson"] is None
        assert found["pearson_limit"] is None
        assert found["per_perturbation"] == {}
    assert ceiling_figures([])["cosine"] is None
