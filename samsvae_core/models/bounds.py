"""Bounds on the log likelihood, for any model with `effects`, `encode` and `decode`."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from samsvae_core.models.device_rows import Batch
from samsvae_core.models.samsvae import SAMSVAE, EffectSample

N_DRAWS = 2  # of each cell's basal state, common to all latent shifts that are compared


class Elbo(NamedTuple):
    """The terms of the evidence lower bound, in nats per cell."""

    log_px: Float[Tensor, ""]
    kl_basal: Float[Tensor, ""]
    kl_effects: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.log_px - self.kl_basal - self.kl_effects

    @property
    def predictive(self) -> Float[Tensor, ""]:
        """The bound without the KL of the shared latents, by which held-out cells are scored."""
        return self.log_px - self.kl_basal


def elbo(
    model: SAMSVAE, batch: Batch, n_cells: int, n_samples: int = 1, anneal: float | Tensor = 1.0
) -> Elbo:
    """Return an unbiased estimate, from one mini-batch, of the bound on log p(all x) / n_cells.

    The effects are shared by all `n_cells` cells, so each cell carries 1 / n_cells of their KL. In
    expectation this equals the paper's weighting by 1 / N_t (its equation 7), with less variance.
    """
    effects = model.effects(n_samples, anneal, batch.D)
    log_px, kl_basal = cell_terms(model, batch, effects)
    return Elbo(log_px.mean(), kl_basal.mean(), (effects.kl_whole + model.penalty()) / n_cells)


def cell_terms(
    model: SAMSVAE, batch: Batch, effects: EffectSample
) -> tuple[Float[Tensor, "S N"], Float[Tensor, "S N"]]:
    """Return log p(x | z) at one draw of z_basal and its KL, per sample and cell, in nats."""
    shift = effects.latent_shift(model.given(batch.D, batch.levels))
    q = model.encode(batch.x, shift, model.mean_offset(batch.D), batch.levels)
    z_basal = q.rsample()
    states, offset = model.state(z_basal, shift), effects.offset(batch.D)
    px = model.decode(states, batch.library, offset, batch.levels)
    log_px = px.log_prob(batch.x)
    return log_px, kl_divergence(q, Normal(0.0, 1.0)).sum(-1)


def bounds_at(
    model: SAMSVAE,
    batch: Batch,
    shift: Float[Tensor, "V N K"],
    offset: Float[Tensor, "V N G"] | None = None,
) -> Float[Tensor, "V N"]:
    """Return the bound on log p(x) of each cell at each latent shift, with common basal draws.

    Direct effects are those of the cells, or `offset`. The encoder reads the former in any case.
    """
    mean = model.mean_offset(batch.D)
    if offset is None and mean is not None:
        offset = mean[None]
    q = model.encode(batch.x, shift, mean, batch.levels)
    total = -kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    for _ in range(N_DRAWS):
        z_basal = q.loc + q.scale * torch.randn_like(q.loc[0])
        px = model.decode(model.state(z_basal, shift), batch.library, offset, batch.levels)
        total = total + px.log_prob(batch.x) / N_DRAWS
    return total


@torch.inference_mode()
def importance_weights(model: SAMSVAE, batch: Batch, effects: EffectSample) -> Float[Tensor, "S N"]:
    """Return the log importance weight of each sample and cell, in nats.

    It is log p(x, z_basal | effects) - log q(z_basal | x, effects). Sample s of z_basal goes with
    sample s of the effects, which the caller draws once for all batches.
    """
    shift = effects.latent_shift(model.given(batch.D, batch.levels))
    q = model.encode(batch.x, shift, model.mean_offset(batch.D), batch.levels)
    z_basal = q.sample()
    states, offset = model.state(z_basal, shift), effects.offset(batch.D)
    px = model.decode(states, batch.library, offset, batch.levels)
    return (
        px.log_prob(batch.x)
        + Normal(0.0, 1.0).log_prob(z_basal).sum(-1)
        - q.log_prob(z_basal).sum(-1)
    )


def iwelbo(log_weights: Float[Tensor, "S N"]) -> Float[Tensor, " N"]:
    """Return the importance weighted bound on log p(x | q(effects)) of each cell, in nats.

    It is the log of the mean weight (Burda et al. 2016): the paper's "predictive" IWELBO, which
    does not score the effects against their prior.
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))
