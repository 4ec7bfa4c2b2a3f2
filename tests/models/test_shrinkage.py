import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from scipy.stats import norm

from samsvae_core.models import shrinkage
from samsvae_core.models.shrinkage import NULL_WEIGHT, WIDTHS, shrink


def rows(effects: np.ndarray, se: np.ndarray | float, seed: int = 0) -> tuple[torch.Tensor, ...]:
    se = np.broadcast_to(se, effects.shape)
    noise = np.random.default_rng(seed).standard_normal(effects.shape)
    return torch.from_numpy(effects + se * noise), torch.from_numpy(se.copy())


def best_weights(estimate: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Return the weights that a general optimiser finds, the zeros counted ahead included."""
    sds = np.concatenate([[0], WIDTHS])
    each = norm.logpdf(estimate[:, None], 0, np.hypot(sds, se[:, None]))

    def loss(logits):
        weight = logits - logsumexp(logits)
        return -(logsumexp(each + weight, axis=1).sum() + NULL_WEIGHT * weight[0])

    return softmax(minimize(loss, np.zeros(len(sds)), method="BFGS").x)


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
        # the weights of neighbouring Normals can hardly be told apart: EM and BFGS stop elsewhere
        np.testing.assert_allclose(found.mean[0, g], mean, atol=0.01)
        np.testing.assert_allclose(found.sd[0, g], sd, atol=0.01)
        np.testing.assert_allclose(found.probability[0, g], likely.sum() / total, atol=0.05)


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
