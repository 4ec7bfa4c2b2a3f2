"""A plain training step of the SAMS-VAE, to measure the library's against.

It has the same model, and the same bound in expectation (tests/test_textbook.py), without what
makes the library's fast: the encoder reads cells once per particle, both KL terms are Monte Carlo
estimates, the likelihood computes three lgammas per particle, cell and gene, and the forward pass
draws counts that are not used. Written by us.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

from samsvae_core.models.device_rows import Batch
from samsvae_core.models.distributions import straight_through_bernoulli
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.training.config import TrainConfig


def loss(model: SAMSVAE, batch: Batch, n_cells: int, particles: int) -> Float[Tensor, ""]:
    """Return an estimate of minus the evidence lower bound, in nats per cell."""
    mask = straight_through_bernoulli(model.mask_logits, particles)  # (S, T, K)
    q_embedding = Normal(model.embedding_loc, model.embedding_log_scale.exp())
    embedding = q_embedding.rsample((particles,))
    evidence = model.evidence[:, None]
    kl = (log_bernoulli(mask, model.mask_logits) - log_bernoulli(mask, -evidence)).sum((1, 2))
    prior = Normal(0.0, model.config.embedding_scale)
    kl = kl + (q_embedding.log_prob(embedding) - prior.log_prob(embedding)).sum((1, 2))

    shift = batch.D @ (mask * embedding)  # (S, N, K)
    log_x = (torch.log(1 + batch.x) - model.x_loc) / model.x_scale
    read = torch.cat([log_x.expand(particles, -1, -1), shift], -1)  # (S, N, G + K)
    loc, log_scale = model.encoder(read).chunk(2, -1)
    q_basal = Normal(loc, log_scale.exp())
    z_basal = q_basal.rsample()
    kl_basal = (q_basal.log_prob(z_basal) - Normal(0.0, 1.0).log_prob(z_basal)).sum(-1)  # (S, N)

    mean = batch.library * model.decoder(z_basal + shift).softmax(-1)  # (S, N, G)
    mean = mean + 1e-8
    r = model.log_concentration.exp().expand_as(mean)
    with torch.no_grad():
        torch.poisson(torch.distributions.Gamma(r, r / mean).sample())
    return (
        -(log_negative_binomial(batch.x, mean, r).sum(-1) - kl_basal).mean() + kl.mean() / n_cells
    )


def log_bernoulli(mask: Float[Tensor, "S T K"], logits: Tensor) -> Float[Tensor, "S T K"]:
    return mask * logsigmoid(logits) + (1 - mask) * logsigmoid(-logits)


def log_negative_binomial(
    x: Float[Tensor, "N G"], mean: Float[Tensor, "S N G"], r: Float[Tensor, "S N G"]
) -> Float[Tensor, "S N G"]:
    x = x.expand_as(mean)
    both = torch.log(r + mean)
    constant = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)
    return constant + r * (torch.log(r) - both) + x * (torch.log(mean) - both)


def step(
    model: SAMSVAE,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    n_cells: int,
    config: TrainConfig,
) -> Tensor:
    """Take one step with it; returns the loss."""
    optimizer.zero_grad()
    value = loss(model, batch, n_cells, config.particles)
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    optimizer.step()
    return value.detach()
