"""Direct effects add to logits as a plain loop says, and are kept without losing what matters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samsvae_core.models import direct as direct_of
from samsvae_core.models.bounds import elbo
from samsvae_core.models.device_rows import Batch
from samsvae_core.models.direct import DirectEffects, Posterior, lifted, lifted_mean
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig

T, G = 4, 6
DOSAGES = torch.tensor(
    [
        [0.0, 0.0, 0.0, 0.0],  # control
        [1.0, 0.0, 0.0, 0.0],
        [0.0, 0.5, 0.0, 2.0],
        [1.0, 1.0, 0.0, 0.25],
        [0.0, 0.0, 1.0, 0.0],  # without entries of its own
    ]
)


def posterior(seed: int = 0) -> Posterior:
    """Return a table with zeros, small and large entries; the last row is what all share."""
    random = np.random.default_rng(seed)
    mean = random.normal(0, 1, (T + 1, G)) * (random.random((T + 1, G)) < 0.5)
    mean[2], mean[0, 0], mean[0, 1] = 0, 0.02, 0.004
    tables = mean, random.uniform(0.1, 0.5, mean.shape), random.random(mean.shape) * (mean != 0)
    probability = torch.from_numpy(tables[2]).float()
    probability[0, 1], probability[1, 2] = 0.01, 0.06
    mean, sd = (torch.from_numpy(t).float() for t in tables[:2])
    mean[1, 2] = 0.001  # of a probability that matters
    return Posterior(mean, sd, probability, mean.abs() + 0.1)


@pytest.fixture
def direct() -> DirectEffects:
    made = DirectEffects(T, G)
    made.keep([posterior()])
    return made


def plain_offset(D: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return what is added to each cell's logits, one number at a time."""
    found = torch.zeros(len(D), G)
    for i, row in enumerate(D):
        for g in range(G):
            for t in range(T):
                found[i, g] += row[t] * table[t, g]
            if any(row[t] > 0 for t in range(T)):
                found[i, g] += table[T, g]
    return found


def test_an_offset_is_dosages_times_effects_and_what_all_perturbed_cells_share(direct):
    table = direct.table(direct.mean)
    expected = plain_offset(DOSAGES, table)
    assert (expected[0] == 0).all()
    torch.testing.assert_close(direct.mean_offset(DOSAGES), expected)
    draws = direct.draw(3, torch.Generator().manual_seed(0))
    each = torch.stack([plain_offset(DOSAGES, direct.table(draw)) for draw in draws])
    torch.testing.assert_close(direct.offset(DOSAGES, draws), each)


@pytest.mark.parametrize("most", [None, 4, 5])
def test_training_reads_the_same_offset_from_a_whole_table(direct, most):
    direct.trained, direct.most = direct.table(direct.mean), most
    expected = plain_offset(DOSAGES, direct.trained)
    torch.testing.assert_close(direct.mean_offset(DOSAGES), expected)
    for row, wanted in zip(DOSAGES, expected, strict=True):  # other cells do not matter
        torch.testing.assert_close(direct.mean_offset(row[None])[0], wanted)
    assert torch.equal(direct.sample(2).offset(DOSAGES)[0], direct.mean_offset(DOSAGES))


def test_held_out_cells_may_have_more_perturbations_than_any_that_is_trained_on(direct):
    direct.trained, direct.most = direct.table(direct.mean), 2
    with torch.inference_mode():
        found = direct.mean_offset(DOSAGES)
    torch.testing.assert_close(found, plain_offset(DOSAGES, direct.trained))
    single = DOSAGES[[0, 1, 4]]  # in a training step
    expected = plain_offset(single, direct.trained)
    torch.testing.assert_close(direct.mean_offset(single), expected)


def test_control_cells_alone_have_no_offset(direct):
    control = torch.zeros(3, T)
    for trained in (None, direct.table(direct.mean)):
        direct.trained = trained
        assert torch.equal(direct.mean_offset(control), torch.zeros(3, G))
    assert torch.equal(direct.offset(control, direct.draw(2)), torch.zeros(2, 3, G))


def test_without_entries_nothing_is_added():
    empty = DirectEffects(T, G)
    assert torch.equal(empty.mean_offset(DOSAGES), torch.zeros(5, G))
    assert empty.offset(DOSAGES, empty.draw(2)).shape == (2, 5, G)
    assert (empty.draw_row(1, 3, torch.Generator()) == 0).all()


# Adding to logits


@pytest.mark.parametrize("others", [False, True])
def test_shares_are_those_of_moved_logits(others):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, G + others, generator=random)
    offset = torch.randn(3, G, generator=random)
    moved = logits.clone()
    moved[..., :G] += offset[:, None]
    found = lifted(logits.softmax(-1)[..., :G], offset, True, others)
    expected = moved.softmax(-1)[..., :G]
    torch.testing.assert_close(found, expected)
    mean = lifted_mean(logits.softmax(-1)[..., :G], offset, True, others)
    torch.testing.assert_close(mean, expected.mean(1))
    one = torch.cat([logits[:1]] * 3)
    one[..., :G] += offset[:, None]
    mean = lifted_mean(logits[:1].softmax(-1)[..., :G], offset, True, others)
    torch.testing.assert_close(mean, one.softmax(-1)[..., :G].mean(1))


def test_means_of_a_gaussian_are_moved_themselves():
    means, offset = torch.randn(3, 7, G), torch.randn(3, G)
    expected = torch.stack([means[b] + offset[b] for b in range(3)])
    assert torch.equal(lifted(means, offset, False, False), expected)
    torch.testing.assert_close(lifted_mean(means, offset, False, False), expected.mean(1))
    torch.testing.assert_close(
        lifted_mean(means[:1], offset, False, False), means[0].mean(0) + offset
    )


@pytest.mark.parametrize("others", [False, True])
def test_the_decoder_adds_them_to_the_logits_of_genes(others):
    config = ModelConfig(G, T, n_latent=2, n_hidden=5, other_genes=others)
    model = SAMSVAE(replace(config, direct_effects="sparse")).requires_grad_(False)
    model.direct.keep([posterior()])
    z, library = torch.randn(1, 5, 2), torch.ones(5, 1)
    offset = model.mean_offset(DOSAGES)
    expected = model.decoder(z).clone()
    expected[..., :G] += plain_offset(DOSAGES, model.direct.table(model.direct.mean))
    found = model.decode(z, library, offset[None]).log_proportion
    torch.testing.assert_close(found, expected.log_softmax(-1)[..., :G])
    plain = model.decoded_means(z[0], torch.zeros(1, 2))[0]  # R states
    shares = lifted(plain[None].expand(5, -1, -1), offset, True, others)
    torch.testing.assert_close(shares.diagonal(dim1=0, dim2=1).T, found[0].exp())


# Draws


def test_draws_have_the_mean_and_spread_that_are_kept(direct):
    draws = direct.draw(40_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(draws.mean(0), direct.mean, atol=0.015, rtol=0)
    torch.testing.assert_close(draws.std(0), direct.sd, atol=0.01, rtol=0)
    off = torch.corrcoef(draws.T) - torch.eye(len(direct.mean))
    assert off.abs().max() < 0.03
    row = direct.draw_row(3, 40_000, torch.Generator().manual_seed(1))
    assert row.shape == (40_000, G)
    torch.testing.assert_close(row.mean(0), direct.table(direct.mean)[3], atol=0.015, rtol=0)
    torch.testing.assert_close(row.std(0), direct.table(direct.sd)[3], atol=0.01, rtol=0)
    again = direct.draw_row(3, 40_000, torch.Generator().manual_seed(1))
    assert torch.equal(row, again)


# What is kept


def test_entries_that_matter_are_kept_whole_and_in_order(direct):
    whole = posterior()
    matters = (whole.mean.abs() >= 0.01) | (whole.probability >= 0.05)
    assert torch.equal(torch.stack([direct.row, direct.gene], 1), matters.nonzero())
    place = direct.row * G + direct.gene
    assert (place.diff() > 0).all()
    kept = torch.zeros_like(matters)
    kept[direct.row, direct.gene] = True
    for name in ("mean", "sd", "probability"):
        assert torch.equal(getattr(direct, name), getattr(whole, name)[matters])
    assert kept[0, 0]  # 0.02
    assert kept[1, 2]  # 0.001, but perhaps there
    assert not kept[0, 1]  # 0.004
    assert whole.mean[~kept].abs().max() < 0.01
    torch.testing.assert_close(direct.kl, whole.kl[matters].sum())


def test_a_posterior_in_blocks_of_rows_is_kept_the_same(direct):
    blocks = DirectEffects(T, G)
    blocks.keep(Posterior(*(table[a:b] for table in posterior())) for a, b in ((0, 2), (2, 5)))
    for name, value in direct.state_dict().items():
        torch.testing.assert_close(blocks.state_dict()[name], value)


def test_what_is_nearly_zero_is_so_in_the_units_of_the_genes():
    scale = torch.tensor([1e3] * 3 + [1e-3] * 3)
    whole = posterior()
    scaled = whole._replace(mean=whole.mean * scale, sd=whole.sd * scale)
    one, other = DirectEffects(T, G), DirectEffects(T, G)
    one.keep([whole])
    other.keep([scaled], scale)
    assert torch.equal(one.row, other.row)
    assert torch.equal(one.gene, other.gene)
    torch.testing.assert_close(other.mean, one.mean * scale[one.gene])


def test_a_state_with_another_number_of_entries_is_loaded(direct):
    direct.own.copy_(torch.tensor([3, -1, 0, 5]))
    other = DirectEffects(T, G)
    other.keep([posterior(seed=1)])
    assert len(other.mean) != len(direct.mean)
    other.load_state_dict(direct.state_dict())
    for name, value in direct.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    other.load_state_dict(DirectEffects(T, G).state_dict())
    assert len(other.mean) == 0


def test_own_targets_are_known(direct):
    direct.own.copy_(torch.tensor([3, -1, 0, 5]))
    own = {(0, 3), (2, 0), (3, 5)}
    expected = [pair in own for pair in zip(direct.row.tolist(), direct.gene.tolist(), strict=True)]
    assert direct.is_own().tolist() == expected
    assert any(expected)


# The model without them


def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((5, G), 3.0), generator=random)
    return Batch(x, DOSAGES, x.sum(1, keepdim=True))


def bound(model: SAMSVAE) -> torch.Tensor:
    torch.manual_seed(2)
    return torch.stack(list(elbo(model, batch(), 100, 3)))


def test_none_is_exactly_the_model_of_before():
    config = ModelConfig(G, T, n_latent=2, n_hidden=5)
    assert config.direct_effects == "none"
    torch.manual_seed(0)
    plain = SAMSVAE(config)
    torch.manual_seed(0)
    sparse = SAMSVAE(replace(config, direct_effects="sparse"))
    assert plain.direct is None
    names = set(plain.state_dict())
    assert not [name for name in names if "direct" in name]
    added = set(sparse.state_dict()) - names
    assert added == {f"direct.{n}" for n in (*DirectEffects.KEPT, "own", "kl")}
    assert [n for n, _ in sparse.named_parameters()] == [n for n, _ in plain.named_parameters()]
    sparse.load_state_dict(plain.state_dict(), strict=False)
    expected = bound(plain)
    sparse.direct = None  # as if there were no such attribute
    assert torch.equal(bound(sparse), expected)


def test_no_entries_change_no_bound_and_a_planted_one_does():
    torch.manual_seed(0)
    plain = SAMSVAE(ModelConfig(G, T, n_latent=2, n_hidden=5))
    sparse = SAMSVAE(replace(plain.config, direct_effects="sparse"))
    sparse.load_state_dict(plain.state_dict(), strict=False)
    sparse.direct.trained = torch.zeros(T + 1, G)
    torch.testing.assert_close(bound(sparse), bound(plain))
    sparse.direct.trained[0, 0] = 5.0
    assert not torch.allclose(bound(sparse), bound(plain))


def test_the_divergence_of_all_entries_is_part_of_the_bound():
    torch.manual_seed(0)
    model = SAMSVAE(ModelConfig(G, T, n_latent=2, n_hidden=5, direct_effects="sparse"))
    before = bound(model)
    model.direct.kl.fill_(7.0)
    torch.testing.assert_close(bound(model) - before, torch.tensor([0.0, 0.0, 7.0 / 100]))


def test_the_encoder_reads_a_cell_whose_direct_effects_are_taken_off():
    """With one factor on the mean of a gene, ln(1 + m) falls by ln((1 + m) / (1 + m e^o))."""
    for likelihood in ("counts", "gaussian"):
        model = SAMSVAE(ModelConfig(G, T, n_latent=2, n_hidden=5, likelihood=likelihood))
        loc = torch.linspace(0.1, 3, G)
        model.fit_buffers(loc, torch.ones(G), torch.ones(T), 10)
        x, shift = batch().x, torch.zeros(1, 5, 2)
        offset = torch.zeros(5, G)
        offset[2, 4] = -1.3
        moved = x.clone()
        m = float(loc[4].expm1())
        if likelihood == "counts":
            undone = np.log((1 + m) / (1 + m * np.exp(-1.3)))
            moved[2, 4] = np.expm1(np.log1p(float(x[2, 4])) + undone)
        else:
            moved[2, 4] += 1.3
        found, expected = model.encode(x, shift, offset), model.encode(moved, shift)
        torch.testing.assert_close(found.loc, expected.loc)
        torch.testing.assert_close(found.scale, expected.scale)
        assert not torch.allclose(found.loc, model.encode(x, shift).loc)


def test_of_a_very_large_screen_only_effects_far_from_zero_are_kept(monkeypatch):
    direct = DirectEffects(2, 3)
    mean = torch.tensor([[0.5, 0.5, 0.005], [0.0, -0.5, 0.0], [0.0, 0.0, 0.0]])
    sd = torch.tensor([[0.1, 0.4, 0.001], [0.0, 0.4, 0.0], [0.0, 0.0, 0.0]])
    probability = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.0]])
    posterior = Posterior(mean, sd, probability, torch.zeros(3, 3))
    direct.keep([posterior])
    assert direct.mean.tolist() == [0.5, 0.5, -0.5]
    monkeypatch.setattr(direct_of, "MOST_SMALL", 5)
    direct.keep([posterior])
    assert (direct.row.tolist(), direct.gene.tolist()) == ([0, 1], [0, 1])
