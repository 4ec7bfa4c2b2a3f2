"""Distributions and terms of the SAMS-VAE that have no weights of their own."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

from samsvae_core.models.likelihood import nb_log_prob

PER_TEN_THOUSAND = 1e4  # transcripts: the usual unit of single-cell expression


FAR_MEAN = 3.0  # standard deviations from 0 beyond which a decoder learns a mean too slowly
NOISE_FLOOR = 1e-2  # least noise of a Gaussian likelihood, as a share of the gene's spread


class NegativeBinomials(NamedTuple):
    """p(x | z) of every cell and gene, up to its library."""

    logits: Float[Tensor, "S N O"]  # outcomes: the genes, and possibly all others as one
    log_concentration: Float[Tensor, " G"]
    log_library: Float[Tensor, "N 1"]

    @property
    def log_proportion(self) -> Float[Tensor, "S N G"]:
        """The log share of each gene in the cell's transcripts."""
        return self.logits.log_softmax(-1)[..., : len(self.log_concentration)]

    def log_prob(self, x: Float[Tensor, "N G"]) -> Float[Tensor, "S N"]:
        """Return log p(x | z), summed over genes, in nats."""
        return nb_log_prob(self.logits, self.log_concentration, self.log_library, x)

    def sample(self) -> Float[Tensor, "S N G"]:
        """Return sampled counts, for posterior predictive checks."""
        mean = (self.log_proportion + self.log_library).exp()
        concentration = self.log_concentration.exp()
        rate = torch.distributions.Gamma(
            concentration.expand_as(mean), concentration / mean.clamp_min(1e-12)
        ).sample()
        return torch.poisson(rate)


class Normals(NamedTuple):
    """p(x | z) of every cell and gene, for values that are not counts."""

    loc: Float[Tensor, "S N G"]
    log_scale: Float[Tensor, " G"]  # of the noise, shared by all cells

    def log_prob(self, x: Float[Tensor, "N G"]) -> Float[Tensor, "S N"]:
        """Return log p(x | z), summed over genes, in nats."""
        standard = (x - self.loc) * (-self.log_scale).exp()
        constant = (self.log_scale + 0.5 * math.log(2 * math.pi)).sum()
        return -0.5 * standard.square().sum(-1) - constant

    def sample(self) -> Float[Tensor, "S N G"]:
        """Return sampled values, for posterior predictive checks."""
        return self.loc + self.log_scale.exp() * torch.randn_like(self.loc)


class MLP(nn.Module):
    """A network with one hidden layer, as in the paper's experiments."""

    def __init__(self, n_in: int, n_hidden: int, n_out: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(n_in, n_hidden)
        self.out = nn.Linear(n_hidden, n_out)

    def forward(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        return self.out(leaky_relu(self.hidden(x)))


def mask_kl(logits: Float[Tensor, "T K"], evidence: Float[Tensor, "T 1"]) -> Float[Tensor, "T K"]:
    """Return KL(Bernoulli(q) || Bernoulli(sigmoid(-evidence))) in nats, with q = sigmoid(logits).

    It is written as q e + softplus(-e) - H(q), with H(q) = softplus(f) - q f at logit f, and avoids
    the prior probability, which is 0 in float32 from e = 104 on.
    """
    q = logits.sigmoid()
    return q * (evidence + logits) + softplus(-evidence) - softplus(logits)


def straight_through_bernoulli(
    logits: Float[Tensor, "T K"], n_samples: int, temperature: float = 1.0
) -> Float[Tensor, "S T K"]:
    """Return hard 0/1 samples with the gradient of the binary concrete relaxation."""
    uniform = torch.rand(n_samples, *logits.shape, device=logits.device)
    soft = torch.sigmoid((logits + uniform.clamp(1e-6, 1 - 1e-6).logit()) / temperature)
    return (soft > 0.5).to(soft) + (soft - soft.detach())


def expression_level(proportion: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """Return log2(1 + 1e4 p), the scale of levels, shifts and loadings; p is a transcript share."""
    return torch.log2(1 + PER_TEN_THOUSAND * proportion)


def rotate_columns(weight: Float[Tensor, "H I"], start: int, R: Float[Tensor, "K K"]) -> None:
    """Rotate the columns of the latent axis, which begin at `start`."""
    columns = slice(start, start + len(R))
    weight[:, columns] = weight[:, columns] @ R


def rotate_moments(layer: nn.Linear, R: Float[Tensor, "K K"]) -> None:
    """Rotate a layer that returns means and log scales of the latent axis."""
    both = torch.block_diag(R, R.square())
    layer.weight.copy_(both.T @ layer.weight)
    layer.bias.copy_(layer.bias @ both)


def fit_noise(
    log_noise: nn.Parameter,
    floor: Tensor,
    bias: nn.Parameter,
    loc: Float[Tensor, " G"],
    scale: Float[Tensor, " G"],
) -> Float[Tensor, " G"]:
    """Start a Gaussian likelihood at the training spread, and at means that are far from 0.

    Means nearer than FAR_MEAN spreads are learned in time, and masks are then recovered better (F1
    0.98 against 0.93 on a simulation). The noise has a floor of NOISE_FLOOR times the gene's
    spread, or the median gene's for one that is constant in training; without it the likelihood
    would be unbounded. Returns that spread.
    """
    varying = scale[scale > 0]
    typical = varying.median() if len(varying) else scale.new_ones(())
    spread = torch.where(scale > 0, scale, typical)
    with torch.no_grad():
        log_noise.copy_(spread.log())
        floor.copy_(NOISE_FLOOR * spread)
        far = loc.abs() > FAR_MEAN * spread
        bias.copy_(torch.where(far, loc, bias))
    return spread
