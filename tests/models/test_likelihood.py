import numpy as np
import pytest
import torch

from samsvae_core.models import likelihood
from samsvae_core.models.likelihood import nb_log_prob, plain_log_prob


def given(n_genes: int = 7, others: int = 0, seed: int = 0):
    """Return logits, log concentrations, log libraries and counts, in double precision."""
    torch.manual_seed(seed)
    logits = torch.randn(2, 5, n_genes + others, dtype=torch.float64, requires_grad=True)
    log_r = torch.randn(n_genes, dtype=torch.float64, requires_grad=True)
    x = torch.poisson(20 * torch.rand(5, n_genes, dtype=torch.float64) ** 4)
    return logits, log_r, (3 * x.sum(1, keepdim=True)).log(), x


@pytest.mark.parametrize("others", [0, 1])
def test_the_gradient_is_that_of_differences(others):
    logits, log_r, log_library, x = given(others=others)
    log_library.requires_grad_()
    assert torch.autograd.gradcheck(nb_log_prob, (logits, log_r, log_library, x))


@pytest.mark.parametrize("block", [1, 20, 10**6])
@pytest.mark.parametrize("others", [0, 1])
def test_value_and_gradient_are_those_of_the_formula_whatever_the_blocks(
    block, others, monkeypatch
):
    monkeypatch.setattr(likelihood, "BLOCK", block)
    found = []
    for function in (nb_log_prob, plain_log_prob):
        logits, log_r, log_library, x = given(300, others)
        value = function(logits, log_r, log_library, x)
        (value * torch.arange(10.0, dtype=torch.float64).view(2, 5)).sum().backward()
        found.append((value.detach(), logits.grad, log_r.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_gradient_can_be_taken_twice():
    """The first must not overwrite what the second reads."""
    logits, log_r, log_library, x = given()
    value = nb_log_prob(logits, log_r, log_library, x).sum()
    first = torch.autograd.grad(value, (logits, log_r), retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(value, (logits, log_r)), strict=True):
        assert torch.equal(one, other)


def test_cells_without_counts_and_many_counts_do_no_harm():
    logits, log_r, log_library, x = (a.detach().float() for a in given(50))
    x[0], x[1] = 0, 1e5
    logits[0, 2, :3] = torch.tensor([80.0, -80.0, 0.0])  # one gene takes all
    logits.requires_grad_()
    log_r.requires_grad_()
    value = nb_log_prob(logits, log_r, log_library.clamp_min(-18), x)
    value.sum().backward()
    assert all(torch.isfinite(a).all() for a in (value, logits.grad, log_r.grad))


def test_in_single_precision_slopes_keep_their_digits():
    exact = given(2000)
    single = [a.detach().float().requires_grad_(a.requires_grad) for a in exact]
    for terms in (exact, single):
        nb_log_prob(*terms).sum().backward()
    for one, other in zip(single[:2], exact[:2], strict=True):
        error = (one.grad.double() - other.grad).norm() / other.grad.norm()
        # 6e-8 relative rounding of sums whose terms nearly cancel
        np.testing.assert_array_less(error.numpy(), 1e-5)
