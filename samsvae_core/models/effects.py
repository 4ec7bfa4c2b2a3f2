"""Samples of the latents that all cells share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.models.direct import DirectSample


class EffectSample(NamedTuple):
    """Samples of the latents that all cells share, and their KL."""

    mask: Float[Tensor, "S T K"]
    embedding: Float[Tensor, "S T K"]
    kl: Float[Tensor, ""]  # KL(q || p) of mask and embedding, in nats, for the whole data set
    direct: DirectSample | None = None  # None without direct effects
    differences: Float[Tensor, "S P K"] | None = None  # of contexts, masked; None without any

    def latent_shift(self, D: Float[Tensor, "N R"]) -> Float[Tensor, "S N K"]:
        """Return the latent shift of each cell: its dosages (`given`) times masked embeddings."""
        effects = self.mask * self.embedding
        if self.differences is not None:
            effects = torch.cat([effects, self.differences], 1)
        return D @ effects

    def offset(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "_ N G"] | None:
        """Return what direct effects add to each cell's logits; None without direct effects."""
        return None if self.direct is None else self.direct.offset(D)

    @property
    def kl_whole(self) -> Float[Tensor, ""]:
        """KL(q || p) of all that cells share: mask, embedding and direct effects, in nats."""
        return self.kl if self.direct is None else self.kl + self.direct.effects.kl
