import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import norm

from samsvae_core.models import shrinkage
from samsvae_core.models.shrinkage import WIDTHS, activity, shrink

PRICE = 4.6  # as direct effects are asked for


def rows(effects: np.ndarray, se: np.ndarray | float, seed: int = 0) -> tuple[torch.Tensor, ...]:
    se = np.broadcast_to(se, effects.shape)
    noise = np.random.default_rng(seed).standard_normal(effects.shape)
    return torch.from_numpy(effects + se * noise), torch.from_numpy(se.copy())


def best_weights(estimate: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Return the weights that a general optimiser finds."""
    sds = np.concatenate([[0], WIDTHS])
    each = norm.pdf(estimate[:, None], 0, np.hypot(sds, se[:, None]))
    found = minimize(
        lambda w: -np.log(each @ w).sum(),
        np.full(len(sds), 1 / len(sds)),
        jac=lambda w: -(each / (each @ w)[:, None]).sum(0),
        method="SLSQP",
        bounds=[(0, 1)] * len(sds),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-10, "maxiter": 1000},
    )
    assert found.success
    return found.x


def test_the_posterior_is_that_of_a_grid_under_the_best_weights():
    effects = np.zeros((1, 300))
    effects[0, :40] = np.random.default_rng(1).normal(0, 1, 40)
    se = np.random.default_rng(2).uniform(0.1, 0.4, (1, 300))
    estimate, error = rows(effects, se)
    x, s = estimate.numpy()[0], se[0]
    weight = best_weights(x, s)
    grid = np.linspace(-8, 8, 32001)
    density = (weight[1:, None] * norm.pdf(grid, 0, WIDTHS.numpy()[:, None])).sum(0)
    step, found = grid[1] - grid[0], shrink(estimate, error)
    for g in (0, 1, 5, 39, 40, 200):
        likely = density * norm.pdf(x[g], grid, s[g]) * step
        at_zero = weight[0] * norm.pdf(x[g], 0, s[g])
        total = likely.sum() + at_zero
        mean = (likely * grid).sum() / total
        sd = np.sqrt((likely * grid**2).sum() / total - mean**2)
        # the weights of neighbouring Normals can hardly be told apart, those at zero from narrow
        # ones neither: the algorithms stop elsewhere, at the same posteriors
        np.testing.assert_allclose(found.mean[0, g], mean, atol=0.02)
        np.testing.assert_allclose(found.sd[0, g], sd, atol=0.02)


def test_noise_alone_is_shrunk_to_nearly_nothing():
    estimate, se = rows(np.zeros((3, 500)), 0.3)
    found = shrink(estimate, se)
    assert found.mean.square().mean() < 0.01 * estimate.square().mean()


def test_a_strong_effect_among_zeros_stays_whole():
    effects = np.zeros((2, 500))
    effects[0, 7], effects[1, 8] = 3.0, -4.0
    estimate, se = rows(effects, 0.2)
    found = shrink(estimate, se)
    for t, g in ((0, 7), (1, 8)):
        assert abs(found.mean[t, g] / estimate[t, g] - 1) < 0.05
        assert found.probability[t, g] > 0.999
        np.testing.assert_allclose(found.sd[t, g], 0.2, rtol=0.1)
    assert found.mean[1, 7].abs() < 0.05  # each row has a prior of its own


def test_an_entry_without_a_finite_error_says_nothing():
    estimate, se = rows(np.full((2, 50), 2.0), 0.3)
    se[0, :3] = torch.tensor([torch.inf, torch.nan, 0.0])
    estimate[1, 0] = torch.nan
    found = shrink(estimate, se)
    for part in found:
        assert (part[0, :3] == 0).all()
        assert part[1, 0] == 0
        assert part.isfinite().all()
    rest = shrink(estimate[:1, 3:], se[:1, 3:])
    torch.testing.assert_close(found.mean[:1, 3:], rest.mean)
    assert (shrink(estimate, se * torch.inf).mean == 0).all()


def test_rows_do_not_depend_on_how_many_are_shrunk_at_once(monkeypatch):
    estimate, se = rows(np.random.default_rng(3).normal(0, 1, (7, 40)), 0.3)
    whole = shrink(estimate, se)
    monkeypatch.setattr(shrinkage, "VALUES_AT_ONCE", 1)
    for one, other in zip(shrink(estimate, se), whole, strict=True):
        torch.testing.assert_close(one, other)
    assert shrink(estimate[:0], se[:0]).mean.shape == (0, 40)
    assert shrink(estimate[:, :0], se[:, :0]).mean.shape == (7, 0)


def test_the_posterior_and_its_divergence_are_those_of_a_numerical_integral(monkeypatch):
    monkeypatch.setattr(shrinkage, "SWEEPS", 0)  # the weights are then known: all the same
    estimate, se = np.array([[0.0, 0.4, -3.0, 2.0]]), np.array([[0.3, 0.2, 0.25, 1.5]])
    found = shrink(torch.from_numpy(estimate), torch.from_numpy(se))
    weight, grid = 1 / (len(WIDTHS) + 1), np.linspace(-30, 30, 1_200_001)
    step = grid[1] - grid[0]
    prior = weight * norm.pdf(grid, 0, WIDTHS.numpy()[:, None]).sum(0)
    for g, (x, s) in enumerate(zip(estimate[0], se[0], strict=True)):
        likely, at_zero = prior * norm.pdf(x, grid, s), weight * norm.pdf(x, 0, s)
        total = likely.sum() * step + at_zero
        q, q_zero = likely / total, at_zero / total
        log_ratio = np.log(np.maximum(q, 1e-300) / np.maximum(prior, 1e-300))
        kl = (q * log_ratio).sum() * step + q_zero * np.log(q_zero / weight)
        np.testing.assert_allclose(found.kl[0, g], kl, rtol=1e-4)
        np.testing.assert_allclose(found.mean[0, g], (q * grid).sum() * step, atol=1e-5)
        np.testing.assert_allclose(found.probability[0, g], 1 - q_zero, rtol=1e-4)


def test_the_divergence_is_small_where_nothing_happens_and_grows_with_what_is_said():
    estimate, se = rows(np.zeros((1, 400)), 0.3)
    assert shrink(estimate, se).kl.sum() < 0.05 * 400
    estimate[0, :2] = torch.tensor([2.0, 4.0]).double()
    kl = shrink(estimate, se).kl[0]
    assert 2 < kl[0] < kl[1]
    assert (kl >= 0).all()


# What stands out


def test_an_effect_of_six_errors_among_zeros_is_active():
    estimate, se = rows(np.zeros((4, 300)), 0.1, seed=1)
    estimate[torch.arange(4), torch.arange(4)] = torch.tensor([0.6, -0.6, 0.7, -0.8]).double()
    found = activity(estimate, se, PRICE) > 0.5
    assert found[torch.arange(4), torch.arange(4)].all()
    assert found.sum() == 4


def test_of_pure_noise_at_most_one_in_a_thousand_is_active():
    for size in (0.02, 0.3, 2.0):
        estimate, se = rows(np.zeros((400, 300)), size)
        assert (activity(estimate, se, PRICE) > 0.5).double().mean() < 1e-3


def test_small_effects_everywhere_are_background_and_a_strong_one_stands_out_of_them():
    off = np.random.default_rng(4).normal(0, 0.3, (20, 400))  # three standard errors wide
    estimate, se = rows(off, 0.1)
    assert (activity(estimate, se, PRICE) > 0.5).sum() <= 8  # of 8,000, one in a thousand
    assert (estimate.abs() > 0.4).sum() > 1000  # which the error alone would call active
    estimate[3, 0] = 2.5
    assert activity(estimate, se, PRICE)[3, 0] > 0.5
    estimate[:, 0] = 2.5  # of every row, it is background
    assert (activity(estimate, se, PRICE)[:, 0] < 0.5).all()
    assert (activity(estimate[:1, 1:].clamp(-0.5, 0.5), se[:1, 1:], PRICE) < 0.5).all()


def test_activity_is_the_odds_of_two_normals():
    """Without a price there is no background: N(0, se^2 + 1) against N(0, se^2), at even odds."""
    estimate, se = rows(np.random.default_rng(5).normal(0, 1, (2, 30)), 0.4)
    x, s = estimate.numpy(), se.numpy()
    odds = norm.pdf(x, 0, np.hypot(s, 1)) / norm.pdf(x, 0, s)
    np.testing.assert_allclose(activity(estimate, se, 0.0), odds / (1 + odds), rtol=1e-6)


def test_an_entry_without_a_finite_error_is_never_active():
    estimate, se = rows(np.zeros((2, 50)), 0.3)
    estimate[0, :4] = 5.0
    se[0, :3] = torch.tensor([torch.inf, torch.nan, 0.0])
    found = activity(estimate, se, PRICE)
    assert (found[0, :3] == 0).all()
    assert found[0, 3] > 0.99
    without = activity(estimate[:, 3:], se[:, 3:], PRICE)
    torch.testing.assert_close(found[:1, 3:], without[:1])
    assert (activity(estimate, torch.full_like(se, torch.inf), PRICE) == 0).all()
    assert activity(estimate[:, :0], se[:, :0], PRICE).shape == (2, 0)
    assert activity(estimate[:0], se[:0], PRICE).shape == (0, 50)
    assert activity(estimate.float(), se.float(), PRICE).dtype == torch.float32
