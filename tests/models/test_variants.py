"""The other models keep the contract of the SAMS-VAE, and differ from it as they should."""

import pytest
import torch
from torch.distributions import Beta, Normal, kl_divergence

from samsvae_core.models.bounds import elbo, importance_weights, iwelbo
from samsvae_core.models.device_rows import Batch
from samsvae_core.models.distributions import NegativeBinomials, Normals, mask_kl
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS, SPARSITY

G, T, K = 12, 4, 3
CELLS = torch.tensor([30.0, 10.0, 20.0, 40.0])
N_CELLS = 150


@pytest.fixture(params=list(MODELS))
def name(request) -> str:
    return request.param


@pytest.fixture(params=["correlated", "mean-field"])
def encoder(request) -> str:
    return request.param


@pytest.fixture(params=["counts", "gaussian"])
def likelihood(request) -> str:
    return request.param


def new(name: str, **fields):
    torch.manual_seed(0)
    model = MODELS[name](ModelConfig(G, T, n_latent=K, n_hidden=8, **fields))
    model.fit_buffers(torch.zeros(G), torch.ones(G), CELLS, N_CELLS)
    with torch.no_grad():
        for parameter in [*model.mask_parameters(), *model.embedding_parameters()]:
            parameter.normal_()
    return model


def batch(doubles: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((7, G), 2.0), generator=generator)
    D = torch.zeros(7, T)
    D[[0, 1, 2, 3], [0, 1, 2, 2]] = 1
    if doubles:
        D[4, [0, 3]] = 1
    return Batch(x, D, x.sum(1, keepdim=True))


def test_every_model_is_bounded_scored_and_differentiable(name, encoder, likelihood):
    model, cells = new(name, encoder=encoder, likelihood=likelihood), batch()
    bound = elbo(model, cells, N_CELLS, 3)
    bound.total.backward()
    assert torch.isfinite(bound.total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    weights = importance_weights(model, cells, model.effects(6))
    assert weights.shape == (6, 7)
    assert iwelbo(weights).shape == (7,)


@torch.no_grad()
def test_moved_means_are_those_of_the_decoder(name, likelihood):
    model, cells = new(name, likelihood=likelihood), batch()
    z = torch.randn(5, K)
    shift = model.effects(2).latent_shift(cells.D)  # (2, 7, C)
    moved = model.decoded_means(z, shift)
    states = model.state(z.expand(2, 7, 5, K), shift[:, :, None].expand(2, 7, 5, model.n_shift))
    px = model.decode(states.flatten(0, 1), torch.ones(5, 1))
    expected = px.loc if isinstance(px, Normals) else px.log_proportion.exp()
    torch.testing.assert_close(moved.flatten(0, 1), expected)


@torch.no_grad()
def test_permuting_and_flipping_the_latent_axis_changes_no_prediction(name, encoder):
    model, cells = new(name, encoder=encoder), batch()
    z, order, sign = torch.randn(5, K), torch.tensor([2, 0, 1]), torch.tensor([1.0, -1.0, -1.0])
    before = model.decoded_means(z, model.modal_shift(cells.D))
    q_before = model.encode(cells.x, model.modal_shift(cells.D)[None])
    mean_before = model.effect_moments()[0]
    model.rotate(torch.eye(K)[:, order] * sign)
    after = model.decoded_means(z[:, order] * sign, model.modal_shift(cells.D))
    q_after = model.encode(cells.x, model.modal_shift(cells.D)[None])
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(q_before.loc[..., order] * sign, q_after.loc)
    torch.testing.assert_close(q_before.scale[..., order], q_after.scale)
    if model.has_shifts and not model.moment_error:  # else by draws of the old order
        torch.testing.assert_close(mean_before[:, order] * sign, model.effect_moments()[0])


@torch.no_grad()
def test_moments_of_effects_are_those_of_draws(name):
    model = new(name)
    if not model.has_shifts:
        assert model.effect_moments()[0].shape == (T, 0)
        return
    effects = model.effects(40_000)
    drawn = (effects.mask * effects.embedding).double()
    mean, sd = model.effect_moments()
    near = 0.15 if model.moment_error else 0.05  # moments that are by draws as well
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0.05, atol=near)
    torch.testing.assert_close(drawn.std(0), sd, rtol=0.05, atol=near)


def test_a_mean_field_encoder_does_not_read_the_shift():
    model, cells = new("sams-vae", encoder="mean-field"), batch()
    one, other = (model.encode(cells.x, s * torch.ones(2, 7, K)).loc for s in (0.0, 5.0))
    torch.testing.assert_close(one, other)
    assert one.shape == (2, 7, K)


@torch.no_grad()
def test_the_correlated_embedding_follows_its_mask():
    model = new("correlated-sams-vae")
    which = torch.arange(T)
    on, off = (model.embedding_given(torch.full((1, T, K), m), which).loc for m in (1.0, 0.0))
    assert (on - off).abs().min() > 1e-3


@torch.no_grad()
def test_the_correlated_kl_of_a_batch_has_the_expectation_of_the_whole():
    """Each perturbation is drawn as often as in training, so weights average to one."""
    model = new("correlated-sams-vae")
    model.mask_logits.fill_(60.0)  # masks do not vary, so the KL is a number
    q = model.embedding_given(torch.ones(1, T, K), torch.arange(T))
    whole = (
        kl_divergence(q, Normal(0.0, 1.0)).sum()
        + mask_kl(model.mask_logits, model.evidence[:, None]).sum()
    )
    torch.testing.assert_close(model.effects(1).kl, whole)
    cells = torch.zeros(N_CELLS, T)
    start = 0
    for t, count in enumerate(CELLS.int().tolist()):
        cells[start : start + count, t] = 1
        start += count
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(N_CELLS, generator=generator).split(30) for _ in range(200)]
    parts = [model.effects(1, 1.0, cells[index]).kl for order in orders for index in order]
    torch.testing.assert_close(torch.stack(parts).mean(), whole, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_the_correlated_model_draws_embeddings_for_the_batch_only():
    model = new("correlated-sams-vae")
    D = torch.zeros(5, T)
    D[0, 1] = 1
    drawn = model.effects(2, 1.0, D).embedding
    assert (drawn[:, 1] != 0).all()
    assert (drawn[:, [0, 2, 3]] == 0).all()


def test_cpa_moves_every_dimension():
    effects = new("cpa-vae").effects(3)
    assert (effects.mask == 1).all()
    assert (new("cpa-vae").mask_probability() == 1).all()


@torch.no_grad()
def test_svae_plus_encodes_the_state_and_not_what_is_basal():
    """q(z | x) does not know the perturbation, so basal plus shift is the same for every shift."""
    model, cells = new("svae-plus"), batch(doubles=False)
    shifts = torch.randn(4, 7, K)
    q = model.encode(cells.x, shifts)
    torch.testing.assert_close(q.loc + shifts, q.loc[:1].add(shifts[:1]).expand(4, -1, -1))


@torch.no_grad()
def test_svae_plus_is_penalised_by_its_beta_prior():
    model = new("svae-plus")
    prior = Beta(torch.tensor(1.0), torch.tensor(SPARSITY))
    expected = -(prior.log_prob(model.mask_probability()) - torch.tensor(SPARSITY).log()).sum()
    torch.testing.assert_close(model.effects(2).kl, expected)


@torch.no_grad()
def test_the_conditional_vae_reads_dosages_and_shares_nothing():
    model, cells = new("conditional-vae"), batch()
    effects = model.effects(3)
    assert effects.kl == 0
    torch.testing.assert_close(effects.latent_shift(cells.D), cells.D.expand(3, -1, -1))
    z = torch.zeros(1, K)
    one, other = model.decoded_means(z, cells.D)[:2]
    assert not torch.allclose(one, other)


def test_the_gaussian_likelihood_is_that_of_torch():
    x, loc, log_scale = torch.randn(4, G), torch.randn(3, 4, G), torch.randn(G)
    expected = Normal(loc, log_scale.exp()).log_prob(x).sum(-1)
    torch.testing.assert_close(Normals(loc, log_scale).log_prob(x), expected)
    drawn = Normals(torch.zeros(20_000, 1, G), log_scale).sample()
    torch.testing.assert_close(drawn.std(0)[0], log_scale.exp(), rtol=0.05, atol=0)


def test_counts_and_other_values_have_likelihoods_and_levels_of_their_own():
    counts, values = new("sams-vae"), new("sams-vae", likelihood="gaussian")
    z, library = torch.zeros(1, 1, K), torch.ones(1, 1)
    assert isinstance(counts.decode(z, library), NegativeBinomials)
    assert isinstance(values.decode(z, library), Normals)
    mean = torch.tensor([[0.0, 0.1]])
    torch.testing.assert_close(values.level(mean), mean)
    torch.testing.assert_close(counts.level(mean), torch.log2(1 + 1e4 * mean))
    assert values.readable(torch.tensor([[-1.0]])) == -1


def test_a_model_says_of_itself_what_no_other_says():
    for texts in ("title", "summary", "introduction"):
        assert all(texts in vars(kind) for kind in MODELS.values())
        assert len({getattr(kind, texts) for kind in MODELS.values()}) == len(MODELS)
    without = [kind for kind in MODELS.values() if kind.has_shifts and not kind.has_masks]
    assert all("no mask" in kind.masks_guide for kind in without)
