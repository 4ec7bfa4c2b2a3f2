import numpy as np
import pytest
import scipy.sparse as sp

from samsvae_core.data import disk_csr
from samsvae_core.evaluation.level_errors import (
    PRIOR_FREEDOM,
    WITHIN,
    CellVariance,
    by_condition,
    cell_variance,
    pooled_level,
)

RNG = np.random.default_rng(0)


def cells_of(means: np.ndarray, spread: float, libraries: np.ndarray, seed: int) -> np.ndarray:
    """Return Poisson-gamma counts: mean l x share, variance mean + spread x mean^2."""
    rng = np.random.default_rng(seed)
    mean = libraries[:, None] * means
    return rng.poisson(mean * rng.gamma(1 / spread, spread, mean.shape)).astype(np.float32)


def level(p):
    return np.log2(1 + 1e4 * p)


# What conditions share


def test_the_dispersion_of_cells_is_found_whatever_their_conditions_do():
    shares = np.append(np.geomspace(1e-4, 1e-2, 199), 1e-8)
    libraries = np.random.default_rng(1).lognormal(6, 0.5, 3000).astype(np.float32)
    conditions = np.repeat([f"P{i}" for i in range(300)], 10)  # small ones: bias would show
    moved = np.random.default_rng(2).lognormal(0, 0.7, (300, 200)).repeat(10, axis=0)
    x = cells_of(shares * moved, 0.5, libraries, seed=3)
    found = cell_variance(sp.csr_matrix(x), libraries, conditions)
    assert found.spread[100:].mean() == pytest.approx(0.5, abs=0.03)
    assert found.spread[:100].mean() == pytest.approx(0.5, abs=0.06)
    assert found.spread[-1] == pytest.approx(0.5, abs=0.1)  # hardly counted: like the others
    np.testing.assert_allclose(found.mean, x.sum(0) / libraries.sum(dtype=float), rtol=1e-5)


def test_the_variance_of_values_is_that_within_conditions():
    conditions = np.array(["a"] * 4 + ["b"] * 3 + ["c"])  # c, a single cell, says nothing
    x = RNG.normal(5, 2, (8, 3)) + (conditions == "b")[:, None] * 9
    found = cell_variance(sp.csr_matrix(x), np.ones(8), conditions, is_counts=False)
    expected = (x[:4].var(0) * 4 + x[4:7].var(0) * 3) / 5
    np.testing.assert_allclose(found.spread, expected)


def test_cells_can_be_left_out_and_lie_on_disk_in_any_number_of_blocks(tmp_path, monkeypatch):
    x = sp.csr_matrix(RNG.poisson(0.7, (60, 9)).astype(np.float32))
    library, conditions = np.asarray(x.sum(1)).ravel() + 3, np.array(list("abc") * 20)
    rows = np.arange(5, 50)
    expected = cell_variance(x[rows], library[rows], conditions[rows])
    stored = disk_csr.on_disk([x], 9, tmp_path, x.nnz)
    monkeypatch.setattr(disk_csr, "VALUES_AT_ONCE", 20)
    found = cell_variance(stored, library, conditions, kept=rows)
    for one, other in zip(found[:2], expected[:2], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for one, other in zip(
        pooled_level(stored, library, found, rows),
        pooled_level(x[rows], library[rows], found),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_cells_are_parted_by_condition():
    found = list(by_condition(np.array(["b", "a", "b", "control"])))
    assert [name for name, _ in found] == ["a", "b", "control"]
    assert [rows.tolist() for _, rows in found] == [[1], [0, 2], [3]]


# Levels and their errors


def test_the_level_is_that_of_the_pooled_cells():
    x = RNG.poisson([[0.0, 0.1, 3.0, 40.0]], (12, 4)).astype(np.float32)
    library = x.sum(1) + 50
    found, _ = pooled_level(sp.csr_matrix(x), library, CellVariance(x.mean(0), x.mean(0), True))
    np.testing.assert_allclose(found, level(x.sum(0, dtype=float) / library.sum()), rtol=1e-6)


@pytest.mark.parametrize("n", [1, 2, 30])
def test_the_error_is_the_spread_of_repeated_experiments(n):
    shares = np.array([0.02, 0.1, 0.3])
    libraries = np.full(n * 400, 1000, np.float32)
    x = cells_of(shares, 0.1, libraries, seed=4)
    conditions = np.arange(len(x)) // 30
    variance = cell_variance(sp.csr_matrix(x), libraries, conditions.astype(str))
    experiments = x.reshape(400, n, 3)
    found = [pooled_level(sp.csr_matrix(e), libraries[:n], variance) for e in experiments]
    levels, errors = (np.array(part) for part in zip(*found, strict=True))
    # 400 repeats know their spread to 3.5 %
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), levels.std(0), rtol=0.15)


def jackknife(x: np.ndarray, libraries: np.ndarray) -> np.ndarray:
    n = len(x)
    left_out = level((x.sum(0) - x) / (libraries.sum() - libraries)[:, None])
    return np.sqrt((n - 1) * left_out.var(0))


@pytest.mark.parametrize(("n", "worse"), [(8, 0.7), (25, 0.84)])
def test_a_true_zero_is_covered_at_few_cells(n, worse):
    """Of counts as in a real panel, 90 % intervals hold zero, where a jackknife's often do not."""
    rng = np.random.default_rng(5)
    shares = rng.lognormal(0, 1.5, 300)
    shares /= shares.sum()
    libraries = rng.lognormal(5.2, 0.5, 1500).astype(np.float32)
    x = cells_of(shares, 0.6, libraries, seed=6)
    conditions = np.repeat(["control", "other"], 750)
    variance = cell_variance(sp.csr_matrix(x), libraries, conditions)
    inside, before = [], []
    for _ in range(60):
        own, rest = np.split(rng.permutation(1500), [n])
        (a, a_se), (b, b_se) = (
            pooled_level(sp.csr_matrix(x), libraries, variance, rows) for rows in (own, rest)
        )
        inside.append(np.abs(a - b) <= WITHIN * np.hypot(a_se, b_se))
        both = np.hypot(jackknife(x[own], libraries[own]), b_se)
        before.append(np.abs(a - b) <= WITHIN * both)
    assert 0.88 < np.mean(inside) < 0.93
    assert np.mean(before) < worse


def test_no_count_is_not_known_exactly():
    """A zero among others' counts reaches up to what a score interval still allows: z^2 counts."""
    variance = CellVariance(np.array([0.1, 0.001, 0.0]), np.array([0.5, 0.5, 0.0]), True)
    found, se = pooled_level(sp.csr_matrix((4, 3)), np.full(4, 100.0), variance)
    assert (found == 0).all()
    assert WITHIN * se[0] == pytest.approx(level(WITHIN**2 / 400))
    # the mean over all cells, 0.4 counts, is well inside
    assert se[1] == pytest.approx(level(0.001) / 0.4 * np.sqrt(0.4))
    assert se[2] == 0  # a gene that nobody counts


def test_cells_without_any_count_have_no_error_that_is_known():
    variance = CellVariance(np.full(3, 0.1), np.full(3, 0.5), True)
    found, se = pooled_level(sp.csr_matrix((2, 3)), np.zeros(2), variance)
    assert (found == 0).all()
    assert np.isnan(se).all()
    every = cell_variance(sp.csr_matrix((2, 3)), np.zeros(2), np.array(["a", "b"]))
    assert (every.spread == 0).all()


def test_a_condition_in_which_only_some_cells_respond_has_a_larger_error():
    libraries = np.full(400, 1000, np.float32)
    x = cells_of(np.full(20, 0.05), 0.1, libraries, seed=7)
    variance = cell_variance(sp.csr_matrix(x), libraries, np.repeat(["a", "b"], 200))
    mixed = np.concatenate([x[:200, :], np.floor(x[200:] / 10)])
    se = pooled_level(sp.csr_matrix(mixed), libraries, variance)[1]
    p = mixed.mean(0) / 1000
    expected = mixed.std(0) / 1000 / np.sqrt(400) / p / np.log(2)  # by the cells alone
    np.testing.assert_allclose(se, expected, rtol=0.1)


def test_values_have_their_mean_and_an_error_mostly_of_all_cells():
    x = RNG.standard_normal((9, 4))
    variance = CellVariance(np.zeros(4), np.full(4, 4.0), False)
    found, se = pooled_level(sp.csr_matrix(x), np.ones(9), variance)
    np.testing.assert_allclose(found, x.mean(0))
    shared = PRIOR_FREEDOM * 4.0 + ((x - x.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(se, np.sqrt(shared / (PRIOR_FREEDOM + 8) / 9))
    alone = pooled_level(sp.csr_matrix(x), np.ones(9), variance, np.array([3]))
    np.testing.assert_allclose(alone[0], x[3])
    np.testing.assert_allclose(alone[1], 2.0)


def test_single_cells_of_values_say_nothing_about_their_variance():
    x = sp.csr_matrix(RNG.standard_normal((2, 3)))
    variance = cell_variance(x, np.ones(2), np.array(["a", "b"]), is_counts=False)
    assert np.isnan(pooled_level(x, np.ones(2), variance)[1]).all()
