import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_expit
from scipy.stats import nbinom
from torch.distributions import Normal

from samsvae_core.models.distributions import (
    NegativeBinomials,
    expression_level,
    mask_kl,
    straight_through_bernoulli,
)
from samsvae_core.models.samsvae import MIN_EVIDENCE, SAMSVAE, EffectSample, ModelConfig
from tests.oracles import log_proportions

CONFIG = ModelConfig(n_genes=12, n_perturbations=5, n_latent=3, n_hidden=8)
EVIDENCE = [0.1, 1.0, 10.0, 100.0, 1000.0]


def new(config: ModelConfig = CONFIG, seed: int = 0) -> SAMSVAE:
    """Return a model in which no two parameters are equal."""
    torch.manual_seed(seed)
    model = SAMSVAE(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def counts(seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).poisson(4.0, (7, 12)).astype("float32"))


# The likelihood


def test_the_likelihood_is_scipys():
    rng = np.random.default_rng(0)
    proportion = rng.dirichlet(np.ones(6), size=(2, 4))  # (S, N, G)
    library, r = rng.uniform(50, 5000, size=(4, 1)), rng.uniform(0.05, 50, size=6)
    mean = library * proportion
    x = rng.poisson(mean[0]).astype(float)
    p_x = NegativeBinomials(*(torch.from_numpy(np.log(a)) for a in (proportion, r, library)))
    expected = nbinom.logpmf(x, r, r / (r + mean)).sum(-1)
    np.testing.assert_allclose(p_x.log_prob(torch.from_numpy(x)), expected, rtol=1e-10)


def test_the_likelihood_in_single_precision_is_scipys():
    model, z = new(), torch.randn(3, 7, 3)
    x = counts()
    library = x.sum(1, keepdim=True)
    with torch.no_grad():
        found = model.decode(z, library).log_prob(x)
        mean = library * torch.softmax(model.decoder(z), -1)
        r = model.log_concentration.exp()
    expected = nbinom.logpmf(x.numpy(), r.double(), (r / (r + mean)).double()).sum(-1)
    # 12 genes, terms of up to about 100 nats each, 6e-8 relative rounding and a few operations
    np.testing.assert_allclose(found, expected, atol=12 * 100 * 6e-8 * 10)


def test_sampled_counts_have_the_moments_of_the_negative_binomial():
    proportion, r = torch.tensor([0.01, 0.19, 0.8]), torch.tensor([0.5, 2.0, 20.0])
    n = 40_000
    p_x = NegativeBinomials(
        proportion.log().expand(n, 1, 3), r.log(), torch.tensor([[100.0]]).log()
    )
    torch.manual_seed(0)
    x = p_x.sample()[:, 0].double().numpy()
    mean, shape = 100 * proportion.double().numpy(), r.double().numpy()
    oracle = nbinom(shape, shape / (shape + mean))
    var, kurtosis = oracle.var(), oracle.stats("k")
    np.testing.assert_array_less(abs(x.mean(0) - mean), 4 * np.sqrt(var / n))
    np.testing.assert_array_less(abs(x.var(0) - var), 5 * var * np.sqrt((kurtosis + 2) / n))


def test_counts_double_with_the_library():
    model, z = new(), torch.zeros(1, 1, 3)
    shallow, deep = (model.decode(z, torch.tensor([[library]])) for library in (500.0, 1000.0))
    torch.manual_seed(0)
    x = torch.stack([p.sample()[0, 0] for _ in range(2000) for p in (shallow, deep)])
    few, many = x[::2].mean(0), x[1::2].mean(0)
    # each mean has a relative error of sqrt((1/mean + 1/r) / 2000), below 6 % here
    torch.testing.assert_close(many / few, torch.full((12,), 2.0), rtol=0.3, atol=0)


def test_a_cell_without_counts_tells_nothing():
    model = new()
    p_x = model.decode(3 * torch.randn(4, 2, 3), torch.zeros(2, 1))
    log_prob = p_x.log_prob(torch.zeros(2, 12))
    # -sum of means at first order: the whole library of 1e-8 counts; rounding of 12 genes' terms
    assert log_prob.abs().max() < 1e-5


def test_proportions_sum_to_one():
    share = log_proportions(new(), torch.randn(5, 3)).exp()
    torch.testing.assert_close(share.sum(-1), torch.ones(5))


def test_with_genes_outside_the_panel_proportions_sum_to_less_than_one():
    model = new(replace(CONFIG, other_genes=True))
    share = log_proportions(model, torch.randn(5, 3)).exp()
    assert share.shape == (5, 12)
    outside = torch.softmax(model.decoder(torch.zeros(3)), -1)[-1]
    inside = log_proportions(model, torch.zeros(3)).exp().sum()
    torch.testing.assert_close(inside + outside, torch.tensor(1.0))
    assert (share.sum(-1) < 1).all()


def test_the_level_is_in_log2_of_transcripts_per_ten_thousand():
    found = expression_level(torch.tensor([0.0, 1e-4, 3e-4, 1.0], dtype=torch.float64))
    np.testing.assert_allclose(found, [0, 1, 2, math.log2(10_001)], rtol=1e-12)


# The prior of the mask, and its price


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_the_price_of_a_mask_is_the_closed_form(evidence):
    logits = torch.linspace(-30, 30, 61, dtype=torch.float64)[:, None]
    f = logits.numpy()
    on, off = expit(f), expit(-f)  # each in full precision, unlike 1 - q
    expected = on * (log_expit(f) - log_expit(-evidence)) + off * (
        log_expit(-f) - log_expit(evidence)
    )
    found = mask_kl(logits, torch.full((61, 1), evidence, dtype=torch.float64))
    # torch's softplus leaves out exp(-x) from x = 20 on, which is 2e-9, and is called twice
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=4e-9)


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_the_price_of_a_mask_survives_single_precision(evidence):
    logits = torch.linspace(-40, 40, 33)[:, None].requires_grad_()
    kl = mask_kl(logits, torch.full((33, 1), evidence))
    exact = mask_kl(logits.double(), torch.full((33, 1), evidence, dtype=torch.float64))
    np.testing.assert_allclose(kl.detach(), exact.detach(), rtol=1e-5, atol=1e-5)
    kl.sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_a_mask_at_its_prior_costs_nothing():
    evidence = torch.tensor([[0.1], [5.0], [50.0]], dtype=torch.float64)
    torch.testing.assert_close(mask_kl(-evidence, evidence), torch.zeros_like(evidence))


def test_both_prices_are_what_sampling_estimates():
    model = new().double()
    with torch.no_grad():
        model.evidence.copy_(torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0]))
        q = Normal(model.embedding_loc, model.embedding_log_scale.exp())
        kl = model.effects(1).kl.item()
        n = 40_000
        torch.manual_seed(0)
        embedding = q.sample((n,))
        mask = torch.rand(n, 5, 3, dtype=torch.float64) < model.mask_logits.sigmoid()
        log_q = q.log_prob(embedding).numpy()
        log_p = Normal(0.0, 1.0).log_prob(embedding).numpy()
    f, e, on = model.mask_logits.detach().numpy(), model.evidence.numpy()[:, None], mask.numpy()
    log_q_mask = np.where(on, log_expit(f), log_expit(-f))
    log_p_mask = np.where(on, log_expit(-e), log_expit(e))
    draws = (log_q - log_p + log_q_mask - log_p_mask).sum((1, 2))
    assert abs(draws.mean() - kl) < 4 * draws.std() / math.sqrt(n)


def test_a_wider_prior_of_the_embedding_is_priced_in_closed_form():
    model = new(replace(CONFIG, embedding_scale=3.0, mask_evidence=None))
    with torch.no_grad():
        model.evidence.zero_()
        model.mask_logits.zero_()  # at its prior: costs nothing
        m, s = (a.double() for a in (model.embedding_loc, model.embedding_log_scale.exp()))
        expected = (torch.log(3 / s) + (s**2 + m**2) / 18 - 0.5).sum()
        torch.testing.assert_close(model.effects(1).kl.double(), expected, rtol=1e-5, atol=1e-5)


def test_annealing_scales_the_evidence_asked():
    model = new()
    with torch.no_grad():
        half = model.effects(1, anneal=0.5).kl
        model.evidence.mul_(0.5)
        torch.testing.assert_close(half, model.effects(1).kl)


def test_evidence_is_asked_per_training_cell_but_never_too_little():
    model = new()
    n_cells = torch.tensor([0.0, 10.0, 31.25, 100.0, 1000.0])
    model.fit_buffers(torch.zeros(12), torch.ones(12), n_cells, 100)
    expected = [MIN_EVIDENCE, MIN_EVIDENCE, 5.0, 16.0, 160.0]
    torch.testing.assert_close(model.evidence, torch.tensor(expected))


def test_the_published_prior_is_a_probability():
    model = new(replace(CONFIG, mask_evidence=None, mask_prior=0.05))
    model.fit_buffers(torch.zeros(12), torch.ones(12), torch.full((5,), 100.0), 500)
    np.testing.assert_allclose(expit(-model.evidence.numpy()), 0.05, rtol=1e-6)


# The posterior


def test_mask_samples_are_zero_or_one_as_often_as_their_probability_says():
    logits = torch.tensor([[-3.0, -0.5, 0.0, 2.0]])
    n = 20_000
    torch.manual_seed(0)
    mask = straight_through_bernoulli(logits, n)[:, 0]
    assert set(mask.round(decimals=5).unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(mask, mask.round(), rtol=0, atol=1e-6)
    q = expit(logits.numpy()[0])
    np.testing.assert_array_less(abs(mask.mean(0).numpy() - q), 4 * np.sqrt(q * (1 - q) / n))


@pytest.mark.parametrize("worth", [1.0, -1.0])
def test_what_is_worth_switching_on_gets_a_gradient_to_be_on(worth):
    logits = torch.tensor([[-2.0, 0.0, 2.0]], requires_grad=True)
    torch.manual_seed(0)
    (worth * straight_through_bernoulli(logits, 500)).sum().backward()
    assert (worth * logits.grad > 0).all()


def test_mask_samples_survive_extreme_logits():
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    mask = straight_through_bernoulli(logits, 100)
    mask.sum().backward()
    np.testing.assert_array_equal(mask.detach().mean(0), [[0.0, 1.0]])
    assert torch.isfinite(logits.grad).all()


def test_controls_are_not_moved():
    effects = new().effects(6)
    D = torch.tensor([[0.0] * 5, [1.0, 0, 0, 0, 0.5]])
    shift = effects.latent_shift(D)
    assert (shift[:, 0] == 0).all()
    assert (shift[:, 1] != 0).any()


def test_shifts_add_with_their_dosages():
    torch.manual_seed(0)
    mask, embedding = (torch.rand(2, 3, 4) < 0.5).float(), torch.randn(2, 3, 4)
    D = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 1.0]])
    expected = [
        [sum(D[n, t] * mask[s, t] * embedding[s, t] for t in range(3)) for n in range(2)]
        for s in range(2)
    ]
    found = EffectSample(mask, embedding, torch.tensor(0.0)).latent_shift(D)
    torch.testing.assert_close(found, torch.stack([torch.stack(row) for row in expected]))


def test_the_split_first_layer_is_the_dense_one():
    model, x, shift = new(), counts(), torch.randn(4, 7, 3)
    model.fit_buffers(torch.rand(12), 0.5 + torch.rand(12), torch.ones(5), 5)
    q = model.encode(x, shift)
    standardised = (torch.log(1 + x) - model.x_loc) / model.x_scale
    dense = model.encoder(torch.cat([standardised.expand(4, 7, 12), shift], -1))
    torch.testing.assert_close(q.loc, dense[..., :3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(q.scale, dense[..., 3:].exp(), rtol=1e-4, atol=1e-5)


def test_genes_constant_in_training_and_empty_cells_do_no_harm():
    model = new()
    log_x = counts().log1p()
    log_x[:, 3] = 0
    model.fit_buffers(log_x.mean(0), log_x.std(0), torch.ones(5), 5)
    x = counts()
    x[:, 3] = torch.tensor([0.0, 0, 0, 0, 0, 0, 5])  # a count where training had none
    x[0] = 0  # a cell without counts
    shift = model.effects(3).latent_shift(torch.zeros(7, 5))
    q = model.encode(x, shift)
    unseen = model.encode(torch.where(torch.arange(12) == 3, 0.0, x), shift)
    assert torch.equal(q.loc, unseen.loc)  # of that gene the encoder has learned nothing
    log_prob = model.decode(q.rsample() + shift, x.sum(1, keepdim=True)).log_prob(x)
    assert all(torch.isfinite(a).all() for a in (q.loc, q.scale, log_prob))
    log_prob.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_renaming_perturbations_renames_their_effects():
    model, other = new(), new()
    order = torch.tensor([3, 1, 4, 0, 2])
    for name in ("mask_logits", "embedding_loc", "embedding_log_scale"):
        getattr(other, name).data = getattr(model, name).data[order]
    D = torch.eye(5)
    torch.testing.assert_close(model.effects(1).kl, other.effects(1).kl)
    mean, moved = (
        EffectSample(
            m.mask_logits.sigmoid()[None], m.embedding_loc[None], torch.tensor(0.0)
        ).latent_shift(D)
        for m in (model, other)
    )
    torch.testing.assert_close(moved, mean[:, order])


def test_moved_means_are_those_of_the_decoder_at_the_moved_states():
    torch.manual_seed(0)
    model = SAMSVAE(ModelConfig(12, 3, n_latent=4, n_hidden=8, other_genes=True))
    z, shift = torch.randn(5, 4), torch.randn(2, 3, 4)
    moved = model.decoded_means(z, shift)
    expected = log_proportions(model, z + shift[:, :, None]).exp()
    torch.testing.assert_close(moved, expected)


def test_a_gaussian_likelihood_starts_in_the_units_of_the_data():
    model = SAMSVAE(ModelConfig(4, 2, n_latent=2, n_hidden=4, likelihood="gaussian"))
    before = model.decoder.out.bias.detach().clone()
    loc, scale = torch.tensor([1000.0, 0.5, -40.0, 7.0]), torch.tensor([5.0, 1.0, 2.0, 0.0])
    model.fit_buffers(loc, scale, torch.ones(2), 10)
    noise = model.log_noise.detach().exp()
    torch.testing.assert_close(noise, torch.tensor([5.0, 1.0, 2.0, 2.0]))  # constant: the median's
    torch.testing.assert_close(model.noise_floor, 0.01 * noise)
    bias = model.decoder.out.bias.detach()
    torch.testing.assert_close(bias[[0, 2, 3]], loc[[0, 2, 3]])
    assert bias[1] == before[1]


def test_a_gene_without_spread_cannot_win_without_bound():
    model = SAMSVAE(ModelConfig(2, 1, n_latent=2, n_hidden=4, likelihood="gaussian"))
    model.fit_buffers(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.ones(1), 10)
    with torch.no_grad():
        model.log_noise.fill_(-60.0)
    px = model.decode(torch.zeros(1, 3, 2), torch.ones(3, 1))
    assert px.log_scale.exp().min() >= 0.0099
