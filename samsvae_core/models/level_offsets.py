"""Offsets of covariates: what a batch, a donor or a cell line changes of every gene.

    logits_i += sum_c (offset_{c, level of i} - mean over cells),   offset ~ Normal(0, 1)

For a Gaussian likelihood they are added to the mean, in units of the gene's spread. An offset is a
point estimate (the mode of its posterior), and the encoder reads the levels beside x. Because the
mean over training cells is taken off, a decoder without offsets speaks of the mean cell: loadings,
shifts and pages are at that reference, and so is a level that the model has not seen.

Axes: N cells, V covariates, L levels of all covariates together, G genes, H hidden units.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class LevelOffsets(nn.Module):
    """The offsets of all levels; zero before training."""

    share: Tensor  # (L,) of training cells at each level of its covariate
    first: Tensor  # (V,) place of each covariate's first level
    unit: Tensor  # (G,) of an offset: 1 for counts, else the gene's spread

    def __init__(self, levels: Sequence[int], n_genes: int, n_hidden: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        n_levels = sum(levels)
        self.offset = nn.Parameter(torch.zeros(n_levels, n_genes))
        self.read = nn.Parameter(torch.zeros(n_levels, n_hidden))  # by the encoder's hidden units
        self.register_buffer("share", torch.zeros(n_levels))
        self.register_buffer("unit", torch.ones(n_genes))
        starts = torch.tensor([0, *levels]).cumsum(0)[:-1]
        self.register_buffer("first", starts, persistent=False)

    def fit_shares(self, codes: Int[Tensor, "N V"]) -> None:
        """Store the share of training cells at each level, by which the reference is their mean."""
        with torch.no_grad():
            for c, (start, n) in enumerate(zip(self.first.tolist(), self.levels, strict=True)):
                known = codes[codes[:, c] >= 0, c].long()
                counted = torch.bincount(known, minlength=n).to(self.share)
                self.share[start : start + n] = counted / counted.sum().clamp_min(1)

    def centred(self, codes: Int[Tensor, "N V"]) -> Float[Tensor, "N L"]:
        """Return a row per cell: 1 at its levels, less the shares of training cells.

        A covariate whose level is not known has zeros, which is the mean over levels.
        """
        known = codes >= 0
        place = codes.clamp_min(0) + self.first
        ones = known.to(self.share)
        at = self.share.new_zeros(len(codes), len(self.share)).scatter_(1, place, ones)
        of_covariate = torch.repeat_interleave(
            ones, torch.tensor(self.levels, device=codes.device), dim=1, output_size=len(self.share)
        )
        return at - of_covariate * self.share

    def added(self, centred: Float[Tensor, "N L"]) -> Float[Tensor, "N G"]:
        """Return what is added to the logits, or to the means, of these cells."""
        return (centred @ self.offset) * self.unit

    def penalty(self) -> Float[Tensor, ""]:
        """Return minus the log of the offsets' prior, without its constant, in nats."""
        return self.offset.square().sum() / 2
