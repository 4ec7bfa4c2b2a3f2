"""Offsets of covariates: their reference, their prior, and that one level changes nothing."""

import numpy as np
import pytest
import torch

from samsvae_core.models.bounds import elbo
from samsvae_core.models.device_rows import Batch
from samsvae_core.models.level_offsets import LevelOffsets
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS

G, T = 5, 3
CODES = torch.tensor([[0, 1], [1, 0], [2, 1], [0, 0], [-1, 1], [-1, -1]])


def offsets():
    """Return offsets of two covariates, 3 and 2 levels, of training cells with known shares."""
    made = LevelOffsets((3, 2), G, 4)
    made.fit_shares(torch.tensor([[0, 0], [0, 1], [1, 1], [2, 1]]))
    with torch.no_grad():
        made.offset.copy_(torch.randn(5, G, generator=torch.Generator().manual_seed(0)))
    return made


def test_offsets_are_measured_from_the_mean_training_cell():
    made = offsets()
    table = made.offset.detach()
    mean = [0.5 * table[0] + 0.25 * table[1] + 0.25 * table[2], 0.25 * table[3] + 0.75 * table[4]]
    expected = torch.stack(
        [
            table[0] - mean[0] + table[4] - mean[1],
            table[1] - mean[0] + table[3] - mean[1],
            table[2] - mean[0] + table[4] - mean[1],
            table[0] - mean[0] + table[3] - mean[1],
            table[4] - mean[1],  # an unknown level is the mean
            torch.zeros(G),
        ]
    )
    torch.testing.assert_close(made.added(CODES), expected)
    train = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 1]])
    torch.testing.assert_close(made.added(train).mean(0), torch.zeros(G))


@pytest.mark.parametrize("n_samples", [1, 3])
def test_outcomes_beyond_the_genes_are_not_moved(n_samples):
    made, outcomes = offsets(), torch.zeros(n_samples, len(CODES), G + 1)
    found = made.onto(outcomes, CODES)
    torch.testing.assert_close(found[..., :G], made.added(CODES).expand(n_samples, -1, -1))
    assert not found[..., G].any()


def test_the_penalty_is_the_prior_of_the_offsets():
    made = offsets()
    normal = torch.distributions.Normal(0.0, 1.0)
    constant = normal.log_prob(torch.zeros(())) * made.offset.numel()
    expected = constant - normal.log_prob(made.offset).sum()
    torch.testing.assert_close(made.penalty(), expected)


def cells(levels, gaussian=False):
    """Return a batch of cells at these levels."""
    random = torch.Generator().manual_seed(1)
    x = torch.poisson(torch.full((6, G), 4.0), generator=random)
    D = torch.eye(T).repeat(2, 1)
    library = torch.ones(6, 1) if gaussian else x.sum(1, keepdim=True)
    return Batch(x, D, library, levels)


def model_of(name, levels, **config):
    torch.manual_seed(0)
    model = MODELS[name](ModelConfig(G, T, 2, 4, levels=levels, **config))
    model.fit_buffers(torch.ones(G), torch.ones(G), torch.full((T,), 2.0), 6)
    return model


@pytest.mark.parametrize("likelihood", ["counts", "gaussian"])
@pytest.mark.parametrize("name", list(MODELS))
def test_one_level_changes_no_bound_and_no_gradient(name, likelihood):
    found = []
    for levels in ((), (1,)):
        model = model_of(name, levels, likelihood=likelihood)
        if levels:
            model.level_offsets.fit_shares(torch.zeros(6, 1, dtype=torch.long))
        batch = cells(
            torch.zeros(6, 1, dtype=torch.long) if levels else None, likelihood != "counts"
        )
        torch.manual_seed(2)
        bound = elbo(model, batch, 6).total
        bound.backward()
        own = {n: p.grad for n, p in model.named_parameters() if "level_offsets" not in n}
        found.append((bound.detach(), own))
        if levels:
            assert all(not p.grad.any() for p in model.level_offsets.parameters())
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        other = found[1][1][name]
        assert (gradient is None and other is None) or torch.equal(gradient, other)


@pytest.mark.parametrize("name", list(MODELS))
def test_offsets_move_logits_and_are_read_by_the_encoder(name):
    model = model_of(name, (3,))
    model.level_offsets.fit_shares(torch.tensor([[0], [1], [2]]))
    with torch.no_grad():
        model.level_offsets.offset[0, 2] = 0.9
        model.level_offsets.read[1] = 1.0
    levels = torch.tensor([[0], [1], [2], [-1]])
    library, states = torch.full((4, 1), 100.0), torch.zeros(1, 4, model.n_state)
    plain = model.decode(states, library).log_proportion
    moved = model.decode(states, library, levels=levels).log_proportion
    logits = model.decoder(states)
    logits[0, 0, 2] += 0.6  # 0.9 less a third of it, the mean
    logits[0, 1:3, 2] -= 0.3
    torch.testing.assert_close(moved, logits.log_softmax(-1))
    assert torch.equal(moved[0, 3], plain[0, 3])
    x, nowhere = torch.full((4, G), 3.0), torch.zeros(1, 4, model.n_shift)
    read = model.encode(x, nowhere, levels=levels).loc[0]
    assert torch.equal(read[3], model.encode(x, nowhere).loc[0, 3])
    assert not torch.allclose(read[1], read[2])


def test_a_gaussian_offset_is_in_units_of_the_genes_spread():
    model = model_of("sams-vae", (2,), likelihood="gaussian")
    spread = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    model.fit_buffers(torch.zeros(G), spread, torch.full((T,), 2.0), 6)
    model.level_offsets.fit_shares(torch.tensor([[0], [1]]))
    with torch.no_grad():
        model.level_offsets.offset[0] = 1.0
    added = model.of_levels(torch.tensor([[0], [1]]))
    torch.testing.assert_close(added, torch.stack([spread / 2, -spread / 2]))


def test_levels_of_a_file_are_a_list_and_become_a_tuple():
    assert ModelConfig(G, T, levels=[3, 2]).levels == (3, 2)
    assert np.prod(ModelConfig(G, T).levels) == 1
