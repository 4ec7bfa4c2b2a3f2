"""The sparse basis is found again after any rotation."""

import numpy as np
import pytest
import torch

from samsvae_core.evaluation.metrics import mask_recovery
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.training.rotation import sparsest_rotation


def sparse_effects(seed: int, n: int = 40, k: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, k, generator=generator) < 0.25
    return mask * torch.randn(n, k, generator=generator).sign() * 3


def random_rotation(seed: int, k: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(k, k, generator=generator))[0]


@pytest.mark.parametrize("seed", range(3))
def test_effects_that_are_sparse_in_some_basis_are_found_there(seed):
    effects = sparse_effects(seed)
    turned = effects @ random_rotation(seed)
    found = turned @ sparsest_rotation(turned)
    score = mask_recovery(found.abs().numpy() > 1, (effects != 0).numpy())
    assert score["f1"] > 0.98


def test_what_is_found_is_a_rotation_and_no_denser():
    effects = sparse_effects(0) @ random_rotation(1)
    R = sparsest_rotation(effects)
    torch.testing.assert_close(R @ R.T, torch.eye(6), atol=1e-5, rtol=0)
    assert (effects @ R).abs().sum() < effects.abs().sum()


def test_effects_of_nobody_are_left_alone():
    R = sparsest_rotation(torch.zeros(5, 4))
    torch.testing.assert_close(R, torch.eye(4))


@pytest.mark.parametrize("name", [n for n, m in MODELS.items() if m.can_ask_evidence])
@torch.no_grad()
def test_turning_the_latent_space_changes_no_mean_prediction(name):
    """All masks are on, as when the basis is chosen."""
    torch.manual_seed(0)
    model = MODELS[name](ModelConfig(12, 4, n_latent=6, n_hidden=8))
    R, D, x = random_rotation(2), torch.eye(4), torch.poisson(torch.ones(4, 12))
    z = torch.randn(5, 6)
    shift = model.modal_shift(D)
    before = model.decoded_means(z, shift)
    q_before = model.encode(x, shift[None]).loc
    model.rotate(R)
    turned = shift @ R
    if name == "sams-vae":
        torch.testing.assert_close(model.modal_shift(D), turned, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.decoded_means(z @ R, turned), before, atol=1e-5, rtol=1e-4)
    q = model.encode(x, turned[None]).loc
    np.testing.assert_allclose(q.numpy(), (q_before @ R).numpy(), atol=1e-5)
