"""The benchmark's textbook step computes the same bound, so comparing with it is fair."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from samsvae_core.models.bounds import elbo
from samsvae_core.models.device_rows import Batch
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig

PATH = Path(__file__).parents[1] / "benchmarks" / "textbook.py"


@pytest.fixture(scope="module")
def textbook():
    spec = importlib.util.spec_from_file_location("textbook", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["textbook"] = module
    spec.loader.exec_module(module)
    return module


def test_both_steps_estimate_the_same_bound(textbook):
    torch.manual_seed(0)
    model = SAMSVAE(ModelConfig(n_genes=15, n_perturbations=4, n_latent=3, n_hidden=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.poisson(torch.full((40, 15), 3.0))
    D = torch.eye(5)[torch.arange(40) % 5][:, :4]
    batch = Batch(x, D, x.sum(1, keepdim=True))
    with torch.no_grad():
        draws = torch.tensor(
            [
                [-textbook.loss(model, batch, 200, 5), elbo(model, batch, 200, 5).total]
                for _ in range(400)
            ],
            dtype=torch.float64,
        )
    error = (draws.std(0) / len(draws) ** 0.5).norm()
    assert abs(draws[:, 0].mean() - draws[:, 1].mean()) < 4 * error
    assert error < 0.1  # nats per cell, so that the line above can fail
    # closed forms vary less
    assert draws[:, 1].std() < draws[:, 0].std()
