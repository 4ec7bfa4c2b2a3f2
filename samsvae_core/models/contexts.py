"""Contexts: what a perturbation does differently at a level of a covariate, such as a cell line.

    shift of perturbation t at level c = mask_t * embedding_t + mask_tc * difference_tc

The mask of a difference has a price of its own, so that "the same at every level" is the default.
`training.context_fit` tells how differences are found.

Dosages of perturbations and levels stand behind those of perturbations. A cell has them at its own
level. Where no level is named, they are given at all levels, by the share of training cells at
each: the shift is then that of the mean cell, as it is with `level_offsets`.

Axes: N cells or arms, T perturbations, L levels, R = T (1 + L) dosages, K mechanisms.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from samsvae_core.models.config import ModelConfig

NEVER = -30.0  # logit of a difference that is not there


def with_levels(
    D: Float[Tensor, "N T"], share: Float[Tensor, " L"], level: Int[Tensor, " N"] | None
) -> Float[Tensor, "N R"]:
    """Return dosages with those at each level; `level` is each cell's, below 0 if unknown."""
    at = share.expand(len(D), -1)
    if level is not None:
        there = level[:, None] == torch.arange(len(share), device=share.device)
        at = torch.where((level >= 0)[:, None], there.to(share), at)
    return torch.cat([D, (at[:, :, None] * D[:, None, :]).flatten(1)], 1)


class Differences(nn.Module):
    """The posterior of the differences: q(mask) Bernoulli, q(difference) Normal; none at first.

    Rows are levels, within them perturbations.
    """

    logit: Tensor  # (L T, K) of the mask
    loc: Tensor  # (L T, K)
    scale: Tensor  # (L T, K)

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_levels = config.levels[config.context or 0]
        shape = config.n_perturbations * self.n_levels, config.n_latent
        self.register_buffer("logit", torch.full(shape, NEVER))
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.zeros(shape))

    def asked(self) -> Bool[Tensor, "P K"]:
        """Return which differences were looked for; the others are not there."""
        return self.scale > 0

    def probability(self) -> Float[Tensor, "P K"]:
        """Return the posterior probability of each difference."""
        return self.logit.sigmoid()

    def moments(self) -> tuple[Float[Tensor, "P K"], Float[Tensor, "P K"]]:
        """Return mean and standard deviation of mask x difference, as `SAMSVAE.effect_moments`."""
        q, m, s = self.logit.double().sigmoid(), self.loc.double(), self.scale.double()
        return q * m, (q * (s**2 + m**2) - (q * m) ** 2).clamp_min(0).sqrt()

    def modal(self) -> Float[Tensor, "P K"]:
        """Return the differences at the most probable masks."""
        return self.loc * (self.logit > 0)

    def draw(
        self, n_samples: int, random: torch.Generator | None = None, row: int | None = None
    ) -> Float[Tensor, "S *P K"]:
        """Return posterior draws of mask x difference, of one row or all."""
        logit, loc, scale = (
            part if row is None else part[row] for part in (self.logit, self.loc, self.scale)
        )
        shape = n_samples, *logit.shape
        uniform, normal = (
            draw(shape, generator=random, device=logit.device) for draw in (torch.rand, torch.randn)
        )
        return (uniform < logit.sigmoid()) * (loc + scale * normal)

    def rotate(self, R: Float[Tensor, "K K"]) -> None:
        """Rotate the latent axis, as `SAMSVAE.rotate`; exact if R permutes and flips."""
        self.loc.copy_(self.loc @ R)
        self.logit.copy_(self.logit @ R.square())
        self.scale.copy_(self.scale @ R.square())


def with_differences(
    effects: Float[Tensor, "T K"], contexts: Differences | None, modal: bool = False
) -> Float[Tensor, "R K"]:
    """Return effects with the differences of contexts below, their means or those at the modes."""
    if contexts is None:
        return effects
    below = contexts.modal() if modal else contexts.moments()[0]
    return torch.cat([effects, below.to(effects)])
