import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.special import expit, log_expit, logsumexp
from scipy.stats import multivariate_normal
from torch.distributions import Normal, kl_divergence

from samsvae_core.models.bounds import elbo, importance_weights, iwelbo
from samsvae_core.models.device_rows import Batch, Cells, SparseRows
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig

CPU = torch.device("cpu")
CONFIG = ModelConfig(n_genes=20, n_perturbations=4, n_latent=3, n_hidden=8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return SAMSVAE(CONFIG)


def cells(n: int = 60, seed: int = 1) -> Batch:
    """Return cells with random counts; half are controls, and every perturbation has cells."""
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.poisson(3.0, (n, 20)).astype("float32"))
    D = torch.zeros(n, 4)
    D[torch.arange(n // 2), torch.arange(n // 2) % 4] = 1
    return Batch(x, D, x.sum(1, keepdim=True))


def still(model: SAMSVAE) -> SAMSVAE:
    """Return the model with every draw at its mean, so that bounds have no noise."""
    with torch.no_grad():
        model.mask_logits.copy_(torch.where(torch.rand(4, 3) < 0.5, -60.0, 60.0))
        model.embedding_loc.normal_()
        model.embedding_log_scale.fill_(-30)
        model.encoder.out.weight[3:] = 0
        model.encoder.out.bias[3:] = -12  # small enough; the KL keeps its digits
    return model


# Order of the bounds


def test_the_bounds_are_in_order(model):
    batch = cells()
    torch.manual_seed(2)
    weights = importance_weights(model, batch, model.effects(400)).double()
    plain, weighted = weights.mean(0), iwelbo(weights)
    assert (plain <= weighted).all()
    assert (weighted <= weights.max(0).values).all()
    bound = elbo(model, batch, n_cells=60, n_samples=400)
    # the ELBO with its KL in closed form is the mean log weight, up to Monte Carlo error
    error = weights.mean(1).std() / math.sqrt(400)
    assert abs(bound.predictive.item() - plain.mean()) < 6 * error
    assert bound.total < bound.predictive < weighted.mean()


def test_the_weighted_bound_grows_with_samples(model):
    torch.manual_seed(3)
    weights = importance_weights(model, cells(), model.effects(256)).double()
    by_size = [
        torch.stack([iwelbo(part) for part in weights.split(size)]).mean().item()
        for size in (1, 4, 16, 64, 256)
    ]
    assert by_size == sorted(by_size)
    assert by_size[-1] - by_size[0] > 0.1


def test_the_weighted_bound_is_the_log_of_the_mean_weight():
    weights = torch.tensor([[-900.0, 0.0], [-901.0, math.log(3.0)]], dtype=torch.float64)
    expected = logsumexp(weights.numpy(), axis=0) - math.log(2)
    np.testing.assert_allclose(iwelbo(weights), expected, rtol=1e-14)


# A model whose marginal likelihood is known


class LinearGaussian(SAMSVAE):
    """x ~ Normal(z W, noise): with orthogonal rows of W the posterior of z_basal is diagonal."""

    noise = 0.7

    def __init__(self, config):
        super().__init__(config)
        W = torch.linalg.qr(torch.randn(config.n_genes, config.n_latent, dtype=torch.float64)).Q
        self.W = (W * torch.tensor([2.0, 1.0, 0.5])).T  # (K, G)

    def encode(self, x, shift, offset=None, levels=None):
        precision = 1 + (self.W**2).sum(1) / self.noise**2
        loc = (x - shift @ self.W) @ self.W.T / self.noise**2 / precision
        return Normal(loc, precision.rsqrt().expand_as(loc))

    def decode(self, z, library, offset, levels=None):
        noise = self.noise

        class Likelihood:
            def log_prob(self, x, mean=z @ self.W):
                return Normal(mean, noise).log_prob(x).sum(-1)

        return Likelihood()


@pytest.fixture
def linear():
    torch.manual_seed(4)
    model = still(LinearGaussian(CONFIG).double())
    batch = cells(30)
    x = torch.randn(30, 20, dtype=torch.float64)
    batch = Batch(x, batch.D.double(), batch.library.double())
    effect = (model.mask_logits > 0) * model.embedding_loc.detach()
    W = model.W.numpy()
    marginal = multivariate_normal(np.zeros(20), W.T @ W + model.noise**2 * np.eye(20))
    exact = marginal.logpdf(x.numpy() - (batch.D @ effect).numpy() @ W)
    return model, batch, exact


def test_with_the_exact_posterior_every_weight_is_the_marginal_likelihood(linear):
    model, batch, exact = linear
    weights = importance_weights(model, batch, model.effects(5))
    np.testing.assert_allclose(weights, np.tile(exact, (5, 1)), rtol=1e-8)


def test_with_the_exact_posterior_the_bound_is_the_marginal_likelihood(linear):
    model, batch, exact = linear
    torch.manual_seed(5)
    draws = torch.stack([elbo(model, batch, 30, 200).predictive for _ in range(20)]).detach()
    assert abs(draws.mean() - exact.mean()) < 4 * draws.std() / math.sqrt(20)


def test_with_a_wrong_posterior_the_bound_is_lower_by_the_divergence(linear):
    model, batch, exact = linear
    right = model.encode

    def wrong(x, shift, offset=None, levels=None):
        q = right(x, shift)
        return Normal(q.loc + 0.4, q.scale * 1.5)

    model.encode = wrong
    torch.manual_seed(6)
    draws = torch.stack([elbo(model, batch, 30, 200).predictive for _ in range(20)]).detach()
    shift = model.effects(1).latent_shift(batch.D)
    gap = kl_divergence(wrong(batch.x, shift), right(batch.x, shift)).sum(-1).mean().detach()
    assert abs(exact.mean() - gap - draws.mean()) < 4 * draws.std() / math.sqrt(20)
    weights = importance_weights(model, batch, model.effects(4000))
    np.testing.assert_allclose(iwelbo(weights).mean(), exact.mean(), atol=0.02)


# Mini-batches


def test_mini_batches_average_to_the_full_bound(model):
    still(model)
    batch = cells()
    whole = elbo(model, batch, n_cells=60)
    parts = [elbo(model, Batch(*(a[i : i + 15] for a in batch[:3])), 60) for i in range(0, 60, 15)]
    for name in ("log_px", "kl_basal", "kl_effects"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean()
        torch.testing.assert_close(mean, getattr(whole, name), rtol=1e-4, atol=1e-4)


def test_the_price_of_the_effects_is_the_papers_in_expectation(model):
    """Each cell has 1 / n_cells of it; in the paper, 1 / N_t of that of its perturbations."""
    with torch.no_grad():
        model.embedding_loc.normal_()
        model.mask_logits.normal_()
    batch = cells()
    batch.D[0, 1] = 1  # a combination
    f, e = model.mask_logits.detach().double().numpy(), model.evidence.double().numpy()[:, None]
    mask = expit(f) * (log_expit(f) - log_expit(-e)) + expit(-f) * (log_expit(-f) - log_expit(e))
    m, log_s = (
        a.detach().double().numpy() for a in (model.embedding_loc, model.embedding_log_scale)
    )
    embedding = (np.exp(2 * log_s) + m**2 - 1) / 2 - log_s
    per_perturbation = (mask + embedding).sum(1)  # (T,)
    given = batch.D.numpy() != 0
    per_cell = (given * per_perturbation / given.sum(0)).sum(1)
    found = elbo(model, batch, n_cells=60).kl_effects.item()
    assert found == pytest.approx(per_cell.mean(), rel=1e-5)


def test_gathered_rows_are_those_of_the_dense_matrix():
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.5, (40, 11)).astype(np.float32)
    dense[[0, 7, 39]] = 0
    matrix = sp.csr_matrix(dense)
    matrix = matrix[:, rng.permutation(11)]  # column indices out of order
    index = torch.from_numpy(rng.integers(40, size=100))
    index[:4] = torch.tensor([0, 39, 7, 7])
    found = SparseRows(matrix, CPU)[index]
    np.testing.assert_array_equal(found, matrix.toarray()[index])


def test_no_rows_and_empty_rows_gather_to_zeros():
    rows = SparseRows(sp.csr_matrix((3, 5), dtype=np.float32), CPU)
    assert rows[torch.tensor([], dtype=torch.int64)].shape == (0, 5)
    assert (rows[torch.tensor([2, 0])] == torch.zeros(2, 5)).all()


def test_a_batch_is_the_cells_asked_for(screen):
    resident = Cells(screen.data, CPU)
    index = np.array([5, 0, 599, 5])
    batch = resident.batch(torch.from_numpy(index))
    np.testing.assert_array_equal(batch.x, screen.data.counts.toarray()[index])
    np.testing.assert_array_equal(batch.D, screen.data.dosages.toarray()[index])
    np.testing.assert_array_equal(batch.library[:, 0], screen.data.counts.toarray()[index].sum(1))
    assert len(resident) == 600
