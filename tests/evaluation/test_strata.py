"""What is compared within strata: effects, their errors, baselines and the ceiling."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from samsvae_core.analysis.held_out import metrics_in_words
from samsvae_core.bundle.layout import to_json
from samsvae_core.data.cells import CellData, DataError
from samsvae_core.data.covariates import Covariates
from samsvae_core.evaluation.baselines import (
    baselines,
    ceiling,
    cell_levels,
    dosage_table,
    halvings,
    mean_variances,
    observed_effects,
    shrunken,
    sides,
)
from samsvae_core.evaluation.evaluate import (
    EvaluationConfig,
    evaluate,
    full_evaluation,
    replicate_effects,
)
from samsvae_core.evaluation.level_errors import WITHIN, cell_variance
from samsvae_core.evaluation.shifts import measured, observed_shifts, variance_of
from samsvae_core.evaluation.strata import by_stratum, matching
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline.build import observed_table

QUICK = EvaluationConfig(iwelbo_samples=5, effect_draws=100, replicate_sets=3, shift_draws=8)
CELLS = {  # by condition, in three batches
    "ctrl": (10, 40, 20),
    "P0": (90, 10, 0),  # mostly where control is rare
    "P1": (20, 20, 20),
    "P2": (0, 0, 30),
}


def batches_of(cells: dict[str, Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return condition and batch of each cell."""
    names = [(c, b) for c, n in cells.items() for b, m in enumerate(n) for _ in range(m)]
    conditions, batch = zip(*names, strict=True)
    return np.array(conditions), np.array(batch)


def screen_of(
    x: np.ndarray, library: np.ndarray, conditions: np.ndarray, batch: np.ndarray, **more
) -> CellData:
    """Return cells with their batch as a covariate."""
    n_batches = int(batch.max()) + 1
    names = np.array(sorted(set(conditions) - {"ctrl"}))
    levels = {"batch": tuple(f"b{i}" for i in range(n_batches))}
    return CellData(
        counts=sp.csr_matrix(x.astype(np.float32)),
        dosages=sp.csr_matrix((conditions[:, None] == names).astype(np.float32)),
        library=library.astype(np.float32),
        cells=np.array([f"c{i}" for i in range(len(x))]),
        genes=np.array([f"g{i}" for i in range(x.shape[1])]),
        perturbations=names,
        conditions=conditions,
        control="ctrl",
        has_size_factor=True,
        source={"file": "made", "notes": []},
        covariates=Covariates(levels, batch[:, None].astype(np.int32)),
        **more,
    )


def pooled(data: CellData) -> CellData:
    """Return the cells without their covariates."""
    return replace(data, covariates=None)


def level(p: np.ndarray) -> np.ndarray:
    return np.log2(1 + 1e4 * p)


SHARES = np.array([0.1, 0.02, 0.003, 0.0])
FACTORS = np.array([[1.0, 4.0, 0.5, 1.0], [2.0, 0.25, 1.0, 1.0], [1.0, 1.0, 3.0, 1.0]])
EFFECTS = {
    "ctrl": np.ones(4),
    "P0": np.array([0.5, 1, 1, 1]),
    "P1": np.array([1, 2, 0.25, 1]),
    "P2": np.array([1.5, 1, 1, 1]),
}


@pytest.fixture
def exact() -> CellData:
    """Return cells without noise, in which batches and perturbations multiply shares."""
    conditions, batch = batches_of(CELLS)
    share = SHARES * FACTORS[batch] * np.stack([EFFECTS[c] for c in conditions])
    library = np.random.default_rng(0).uniform(5e5, 2e6, len(batch))
    return screen_of(share * library[:, None], library, conditions, batch)


def counted(
    cells: dict[str, Sequence[int]], seed: int, n_genes: int = 150, spread: float = 0.7
) -> CellData:
    """Return counts of no effect at all, dispersed, in batches that multiply shares."""
    rng = np.random.default_rng(seed)
    conditions, batch = batches_of(cells)
    share = rng.lognormal(0, 1.5, n_genes) * rng.lognormal(0, spread, (batch.max() + 1, n_genes))
    share /= share.sum(1, keepdims=True)
    library = rng.lognormal(5.2, 0.5, len(batch)).astype(np.float32)
    mean = library[:, None] * share[batch]
    x = rng.poisson(mean * rng.gamma(1 / 0.6, 0.6, mean.shape))
    return screen_of(x, library, conditions, batch)


def uneven(n: int) -> dict[str, Sequence[int]]:
    return {"ctrl": (40, 200), **{f"P{i:02d}": (30, 10) for i in range(n)}}


# Weights


def test_a_stratum_weighs_as_much_as_is_known_of_a_difference_in_it():
    conditions, batch = batches_of(CELLS)
    found = matching(conditions, batch, "ctrl")
    assert found.conditions.tolist() == ["P0", "P1", "P2"]
    w0 = np.array([1 / (1 / 90 + 1 / 10), 1 / (1 / 10 + 1 / 40), 0])  # 9 and 8
    w1 = np.array([20 / 3, 40 / 3, 10.0])
    np.testing.assert_allclose(found.weight, [w0 / w0.sum(), w1 / w1.sum(), [0, 0, 1]], rtol=1e-12)
    np.testing.assert_allclose(found.weight[0, :2], [9 / 17, 8 / 17])
    assert found.used.tolist() == [100, 60, 30]
    alone = matching(conditions, np.where(conditions == "P0", batch, 7), "ctrl")
    assert alone.weight[0].sum() == 0  # strata of its own
    assert alone.used.tolist() == [0, 60, 30]
    assert alone.enough().tolist() == [False, True, True]


def test_too_few_cells_or_controls_in_common_strata_are_not_enough():
    cells = {"ctrl": (2, 3), "A": (9, 0), "B": (0, 3), "C": (1, 2), "D": (0, 2)}
    found = matching(*batches_of(cells), "ctrl")
    assert found.enough().tolist() == [False, True, True, False]
    assert found.enough(1).all()


def test_cells_are_parted_by_stratum():
    strata = np.array([5, 2, 5, 9, 2])
    found = [(s, rows.tolist()) for s, rows in by_stratum(strata, np.array([0, 1, 2, 4]))]
    assert found == [(2, [1, 4]), (5, [0, 2])]
    assert list(by_stratum(strata, np.arange(0))) == []


# Effects


def test_shifts_are_free_of_batches_that_multiply_shares(exact):
    """Each is that of weighted shares by hand; without strata a batch looks like an effect."""
    found = observed_shifts(exact, variance_of(exact)).shift
    weights = {"P0": [9 / 17, 8 / 17, 0], "P1": np.array([20, 40, 30]) / 90, "P2": [0, 0, 1]}
    for name, w in weights.items():
        mixed = SHARES * (np.array(w) @ FACTORS)
        expected = level(mixed * EFFECTS[name]) - level(mixed)
        np.testing.assert_allclose(found.loc[name], expected, atol=1e-5)
        # but for the one that is added to 1e4 p, it is the effect itself
        np.testing.assert_allclose(found.loc[name][:2], np.log2(EFFECTS[name])[:2], atol=0.02)
    biased = observed_shifts(pooled(exact), variance_of(pooled(exact))).shift
    assert biased.loc["P0", "g1"] > 1  # no effect: most of its cells are where the share is high
    assert biased.loc["P2", "g2"] > 1


def test_average_effects_are_weighted_means_of_those_in_strata(exact):
    found = observed_effects(exact)
    each = {c: level(SHARES * FACTORS * EFFECTS[c]) for c in CELLS}  # batches x genes
    weights = {"P0": [9 / 17, 8 / 17, 0], "P1": np.array([20, 40, 30]) / 90, "P2": [0, 0, 1]}
    for name, w in weights.items():
        np.testing.assert_allclose(found.loc[name], w @ (each[name] - each["ctrl"]), atol=1e-4)
    assert abs(found.loc["P0", "g1"]) < 1e-4
    assert observed_effects(pooled(exact)).loc["P0", "g1"] > 1


def test_cells_where_no_control_is_are_not_used(exact):
    lonely = (exact.conditions == "ctrl") & (exact.covariates.codes[:, 0] == 0)
    data = exact.subset(~lonely)
    rows = {each.condition: each for each in measured(data, variance_of(data))}
    assert [rows[c].n for c in ("P0", "P1", "P2")] == [10, 40, 30]
    mixed = SHARES * FACTORS[1]  # only the second batch is left
    np.testing.assert_allclose(rows["P0"].level, level(mixed * EFFECTS["P0"]), atol=1e-5)
    np.testing.assert_allclose(rows["P0"].control_level, level(mixed), atol=1e-5)


def test_empty_cells_of_a_stratum_tell_nothing(exact):
    """Controls of the first batch without any count do not count as shares of 0."""
    lonely = (exact.conditions == "ctrl") & (exact.covariates.codes[:, 0] == 0)
    library = np.where(lonely, 0, exact.library).astype(np.float32)
    counts = sp.csr_matrix(sp.diags_array(1.0 * ~lonely) @ exact.counts, dtype=np.float32)
    data = replace(exact, counts=counts, library=library)
    found = {each.condition: each for each in measured(data, variance_of(data))}["P0"]
    np.testing.assert_allclose(found.level, level(SHARES * FACTORS[1] * EFFECTS["P0"]), atol=1e-5)
    assert np.isfinite(found.se).all()


def test_each_replicate_has_strata_of_its_own(exact):
    labels = np.where(np.arange(len(exact.cells)) % 2, "one", "two")
    found = replicate_effects(replace(exact, replicates=labels))
    own = exact.subset(labels == "one")
    pd.testing.assert_frame_equal(found["one"][1], observed_effects(own))
    assert abs(found["one"][1].loc["P0", "g1"]) < 1e-4


# Errors


def test_a_difference_of_batches_is_no_variance_of_cells():
    rng = np.random.default_rng(0)
    conditions, batch = batches_of({"ctrl": (5, 4), "A": (3, 6), "B": (1, 0)})
    x = rng.normal(0, 1, (19, 3)) + 50 * batch[:, None]
    ones = np.ones(19)
    found = cell_variance(sp.csr_matrix(x), ones, conditions, is_counts=False, strata=batch)
    groups = [x[(conditions == c) & (batch == b)] for c in ("ctrl", "A") for b in (0, 1)]
    expected = sum(g.var(0) * len(g) for g in groups) / sum(len(g) - 1 for g in groups)
    np.testing.assert_allclose(found.spread, expected)


def test_the_dispersion_of_counts_is_that_within_strata():
    data = counted(uneven(40), seed=1, spread=1.0)
    within, over = variance_of(data), variance_of(pooled(data))
    often = within.mean > np.median(within.mean)
    assert within.spread[often].mean() == pytest.approx(0.6, abs=0.08)
    assert over.spread[often].mean() > 0.9
    codes = data.covariates.codes[:, 0]
    x = data.counts.toarray()
    share = x.sum(0) / data.library.sum()
    for b in (0, 1):  # with one count more in each
        ratio = (x[codes == b].sum(0) + 1) / (data.library[codes == b].sum() * share + 1)
        np.testing.assert_allclose(within.factors[b], ratio, rtol=1e-4)
    assert over.factors == {}


def test_a_true_zero_is_covered_where_strata_are_uneven():
    """Of 90 % intervals, over 6 screens with 40 perturbations and 150 genes of no effect."""
    inside, before = [], []
    for seed in range(6):
        data = counted(uneven(40), seed)
        for kept, one in ((inside, data), (before, pooled(data))):
            found = observed_shifts(one, variance_of(one))
            kept.append((found.shift.abs() <= WITHIN * found.se).to_numpy())
    assert 0.88 < np.mean(inside) < 0.92
    assert np.mean(before) < 0.7


def test_genes_that_differ_much_between_strata_are_covered_too():
    """The few cells of the second batch make up most of what is uncertain where it has more."""
    inside, ratio = [], []
    for seed in range(6):
        data = counted(
            {"ctrl": (20, 300), **{f"P{i:02d}": (60, 5) for i in range(40)}}, seed, spread=1.2
        )
        variance = variance_of(data)
        found = observed_shifts(data, variance)
        inside.append((found.shift.abs() <= WITHIN * found.se).to_numpy().mean(0))
        ratio.append(variance.factors[1] / variance.factors[0])
    inside, ratio = np.concatenate(inside), np.concatenate(ratio)
    for kind in (ratio > 4, ratio < 1 / 4, (ratio > 0.5) & (ratio < 2)):
        assert 0.86 < inside[kind].mean() < 0.95


def test_the_variance_of_a_difference_of_means_adds_up_over_strata():
    """It is 1 / sum of 1 / (1 / n_t + 1 / n_c), the least that weights can give."""
    found = mean_variances(matching(*batches_of(CELLS), "ctrl"))
    assert found["P0"] == pytest.approx(1 / 17)
    assert found["P1"] == pytest.approx(1 / 30)
    assert found["P2"] == pytest.approx(1 / 30 + 1 / 20)


def test_the_shrunken_mean_knows_the_noise_of_strata():
    """Of no effect, nothing is left but of batches that are taken for effects."""
    data = counted(uneven(20), seed=2)
    left = [
        (shrunken(observed_effects(one), cell_levels(one), "ctrl") ** 2).to_numpy().mean()
        for one in (data, pooled(data))
    ]
    assert left[0] < 0.1 * left[1]


# One stratum


def test_one_stratum_gives_every_figure_of_none(screen):
    """Bit by bit, and for values that are not counts."""
    one = Covariates({"batch": ("all",)}, np.zeros((600, 1), np.int32))
    values = replace(
        screen.data,
        is_counts=False,
        library=np.ones(600, np.float32),
        counts=screen.data.counts.log1p(),
    )
    for data in (screen.data, values):
        found = []
        for cells in (data, replace(data, covariates=one)):
            train, test = (cells.subset(screen.parts == part) for part in ("train", "test"))
            observed = observed_effects(test)
            simple = baselines(observed, train, train, dosage_table(test, observed.index))
            table = observed_table(cells, screen.parts)[["split", "condition", "gene", "level"]]
            table["se"] = observed_table(cells, screen.parts)["se"]
            found.append(
                [
                    observed,
                    *observed_shifts(cells, variance_of(cells)),
                    *simple.values(),
                    *(half for pair in halvings(cells, 0) for half in pair),
                    table.sort_values(["split", "condition", "gene"], ignore_index=True),
                ]
            )
        for before, after in zip(*found, strict=True):
            pd.testing.assert_frame_equal(before, after, check_exact=True)


# The ceiling


def test_batches_do_not_raise_the_ceiling():
    """Both halves share the batches of a condition, which alone looks like an effect."""
    rng = np.random.default_rng(3)
    cells = {f"P{i:02d}": rng.permutation([40, 5]) for i in range(20)}
    data = counted({"ctrl": (60, 60), **cells}, seed=3, spread=1.2)
    assert ceiling(halvings(pooled(data), 0))["pearson"] > 0.7
    assert abs(ceiling(halvings(data, 0))["pearson"]) < 0.2


def test_halves_are_alike_in_conditions_and_strata():
    conditions, batch = batches_of({"ctrl": (7, 4), "A": (1,) * 10, "B": (6, 0, 3)})
    order = np.random.default_rng(0).permutation(len(batch))
    side = sides(conditions[order], batch[order])
    table = pd.DataFrame({"c": conditions[order], "b": batch[order], "side": side})
    for keys in (["c"], ["c", "b"]):
        excess = (1 - 2 * table["side"]).groupby([table[key] for key in keys]).sum()
        assert excess.abs().max() <= 1
    assert table.groupby(["c", "side"]).size()["A"].tolist() == [5, 5]


def test_halves_have_the_same_conditions_where_controls_are_few():
    """The one control cell of the second batch can be in one half only."""
    data = counted({"ctrl": (20, 1), "A": (12, 4), "B": (0, 9), "C": (3, 30)}, seed=4)
    halves = halvings(data, 0)
    assert all(half.index.tolist() == ["A"] for pair in halves for half in pair)
    assert halvings(counted({"ctrl": (0, 20), "A": (20, 0)}, seed=4), 0) == []


# Everything together


def lonely_screen() -> tuple[CellData, np.ndarray]:
    """Return cells of which two conditions share hardly any batch with control, and a split."""
    cells = {
        "ctrl": (60, 60, 0),
        **{f"P{i}": (30, 30, 0) for i in range(6)},
        "X<b>": (0, 0, 60),
        "Y": (0, 1, 60),
    }
    data = counted(cells, seed=5, n_genes=30)
    return data, np.array(["train", "validation", "test"])[np.arange(len(data.cells)) % 3]


@pytest.mark.parametrize("levels", [(), (3,)])
def test_conditions_without_controls_are_named_and_left_out(levels):
    """Of a model without covariates, too, as strata are those of the data."""
    data, parts = lonely_screen()
    torch.manual_seed(0)
    model = MODELS["sams-vae"](ModelConfig(30, 8, 1, 8, levels=levels)).requires_grad_(False)
    found = evaluate(model, data, parts, QUICK)
    to_json(found)
    assert found["strata"] == {"covariates": ["batch"], "n_strata": 3, "left_out": ["X<b>", "Y"]}
    scored = {f"P{i}" for i in range(6)}
    assert set(found["average_effects"]["per_perturbation"]) == scored
    assert found["baselines"]["training mean"]["n_conditions"] == 6
    assert set(found["baselines"]["split-half"]["per_perturbation"]) == scored
    assert found["coverage"]["single"]["n_conditions"] == 6
    words = metrics_in_words(found, "SAMS-VAE")
    assert (
        "Effects are compared within strata, the cells that agree in batch (3 strata). Left out, as"
        r" fewer than 3 of their cells share a stratum with control cells: X\<b\>, Y."
    ) in words
    assert "strata" not in evaluate(model, pooled(data), parts, QUICK)


def test_levels_are_decoded_at_those_of_cells_and_effects_at_their_mean():
    """A model that knows the batches predicts the spread of cells, and no effect of a batch."""
    data, parts = lonely_screen()
    torch.manual_seed(0)
    model = MODELS["sams-vae"](ModelConfig(30, 8, 1, 8, levels=(3,))).requires_grad_(False)
    model.level_offsets.fit_shares(torch.as_tensor(data.covariates.codes))
    found = full_evaluation(model, data, parts, QUICK)
    model.level_offsets.offset[0] += 3 * torch.linspace(-1, 1, 30)
    moved = full_evaluation(model, data, parts, QUICK)
    assert moved.metrics["average_effects"] == found.metrics["average_effects"]
    assert not moved.positions["mean"].equals(found.positions["mean"])


def test_without_a_common_stratum_nothing_can_be_scored():
    data = counted({"ctrl": (20, 0), "A": (0, 20), "B": (2, 20)}, seed=6)
    with pytest.raises(DataError, match="has 3 cells or more in strata with control cells among"):
        observed_effects(data)
    assert observed_shifts(data, variance_of(data)).shift.empty


def test_stored_levels_are_those_of_matched_cells(exact):
    """A condition has the weighted level of its strata; control has its own, and none beside it."""
    parts = np.where(np.arange(len(exact.cells)) % 2, "train", "test")
    table = observed_table(exact, parts).set_index(["split", "condition", "gene"]).sort_index()
    mixed = SHARES * (np.array([9 / 17, 8 / 17, 0]) @ FACTORS)
    own = table.loc[("all", "P0")]
    np.testing.assert_allclose(own["level"], level(mixed * EFFECTS["P0"]), atol=1e-5)
    np.testing.assert_allclose(own["control_level"], level(mixed), atol=1e-5)
    assert (own["n"] == 100).all()
    control = table.loc[("all", "ctrl")]
    rows = exact.conditions == "ctrl"
    share = exact.counts.toarray()[rows].sum(0) / exact.library[rows].sum()
    np.testing.assert_allclose(control["level"], level(share), atol=1e-5)
    assert control[["control_level", "control_se"]].isna().all().all()
    assert (table.loc[("test", "P0"), "n"] == 50).all()
    few = observed_table(*lonely_screen())
    assert "X<b>" not in set(few["condition"])
    assert few.query("condition == 'Y'")["n"].eq(1).all()
    assert "control_level" not in observed_table(pooled(exact), parts)
