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
from torch.nn.functional import pad


class LevelOffsets(nn.Module):
    """The offsets of all levels; zero before training."""

    share: Tensor  # (L,) of training cells at each level of its covariate
    unit: Tensor  # (G,) of an offset: 1 for counts, else the gene's spread

    def __init__(self, levels: Sequence[int], n_genes: int, n_hidden: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        n_levels = sum(levels)
        self.offset = nn.Parameter(torch.zeros(n_levels, n_genes))
        self.read = nn.Parameter(torch.zeros(n_levels, n_hidden))  # by the encoder's hidden units
        self.register_buffer("share", torch.zeros(n_levels))
        self.register_buffer("unit", torch.ones(n_genes))

    def fit_shares(self, codes: Int[Tensor, "N V"]) -> None:
        """Store the share of training cells at each level, by which the reference is their mean."""
        with torch.no_grad():
            for c, block in enumerate(self.blocks(self.share)):
                known = codes[codes[:, c] >= 0, c].long()
                counted = torch.bincount(known, minlength=len(block)).to(block)
                block.copy_(counted / counted.sum().clamp_min(1))

    def blocks(self, of_levels: Float[Tensor, " L *W"]) -> tuple[Tensor, ...]:
        """Return views of what each level has, one for each covariate."""
        return of_levels.split(self.levels)

    def centred(self, codes: Int[Tensor, "N V"]) -> Float[Tensor, "N L"]:
        """Return a row per cell: 1 at its levels, less the shares of training cells.

        A covariate whose level is not known has zeros, which is the mean over levels.
        """
        found = []
        for c, share in enumerate(self.blocks(self.share)):
            code = codes[:, c : c + 1]
            known = (code >= 0).to(share)
            at = share.new_zeros(len(codes), len(share)).scatter_(1, code.clamp_min(0), known)
            found.append(at - known * share)
        return torch.cat(found, 1)

    def added(self, codes: Int[Tensor, "N V"]) -> Float[Tensor, "N G"]:
        """Return what is added to the logits, or to the means, of these cells."""
        return self.centred(codes) @ (self.offset * self.unit)

    def onto(
        self, outcomes: Float[Tensor, "S N O"], codes: Int[Tensor, "N V"]
    ) -> Float[Tensor, "S N O"]:
        """Return outcomes with `added`; those beyond the genes get nothing."""
        table = pad(self.offset * self.unit, (0, outcomes.shape[-1] - self.offset.shape[-1]))
        if len(outcomes) == 1:  # as while training: in one operation, in half the time
            return torch.addmm(outcomes[0], self.centred(codes), table)[None]
        return outcomes + self.centred(codes) @ table

    def penalty(self) -> Float[Tensor, ""]:
        """Return minus the log of the offsets' prior, without its constant, in nats."""
        return self.offset.square().sum() / 2
