"""The negative binomial likelihood of counts, from a decoder's outputs, with its gradient.

Apart from the decoder's last product, a training step spends nearly all its time and memory here.
Value and gradient are written out as a few passes over S x N x G numbers, a block of rows at a
time; automatic differentiation would keep about ten such arrays. On a CUDA device `kernels` does
the same.

Axes: S Monte Carlo samples, N cells, G genes, O outcomes (the genes, and possibly all others as
one).
"""

from __future__ import annotations

from functools import cache
from subprocess import SubprocessError
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

BLOCK = 1 << 18  # numbers processed at a time: 1 MB, which stays in a core's cache


def nb_log_prob(
    logits: Float[Tensor, "S N O"],
    log_concentration: Float[Tensor, " G"],
    log_library: Float[Tensor, "N 1"],
    x: Float[Tensor, "N G"],
) -> Float[Tensor, "S N"]:
    """Return log NB(x | library softmax(logits), concentration), summed over genes, in nats.

    With mean m = library softmax(logits), concentration r and odds m / r, log NB(x) = x log(odds) -
    (x + r) log(1 + odds) + [lgamma(x + r) - lgamma(r) - lgamma(x + 1)]. The bracket does not depend
    on the sample, so it is computed once per cell and gene.
    """
    given = logits, log_concentration, log_library, x
    if logits.device.type == "cpu":
        return MeanTerms.apply(*given) + CountTerms.apply(log_concentration, x)
    if logits.dtype != torch.float64 and kernels_work():
        from samsvae_core.models import kernels

        return kernels.nb_log_prob(*given)
    return plain_log_prob(*given)


def plain_log_prob(
    logits: Float[Tensor, "S N O"],
    log_concentration: Float[Tensor, " G"],
    log_library: Float[Tensor, "N 1"],
    x: Float[Tensor, "N G"],
) -> Float[Tensor, "S N"]:
    """Return the same by the plain formula, for devices without kernels and for tests."""
    r = log_concentration.exp()
    bracket = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1)  # (N, G)
    log_odds = logits.log_softmax(-1)[..., : len(r)] + (log_library - log_concentration)
    return (x * log_odds - (x + r) * softplus(log_odds)).sum(-1) + bracket.sum(-1)


@cache
def kernels_work() -> bool:
    """Return whether Triton is installed and compiles; it needs a C compiler."""
    try:
        from samsvae_core.models import kernels

        one = torch.ones(1, 1, device="cuda")
        kernels.nb_log_prob(one[None], one[0], one, one)
    except (ImportError, RuntimeError, OSError, SubprocessError):
        return False
    return True


class CountTerms(torch.autograd.Function):
    """lgamma(x + r) - lgamma(r) - lgamma(x + 1), summed over genes; 0 where x is 0."""

    @staticmethod
    def forward(
        ctx: Any, log_concentration: Float[Tensor, " G"], x: Float[Tensor, "N G"]
    ) -> Float[Tensor, " N"]:
        cell, gene = x.nonzero(as_tuple=True)
        count = x[cell, gene]
        r = log_concentration.exp()
        bracket = torch.lgamma(count + r[gene]) - torch.lgamma(r)[gene] - torch.lgamma(count + 1)
        ctx.save_for_backward(r, count, cell, gene)
        return x.new_zeros(len(x)).index_add_(0, cell, bracket)

    @staticmethod
    def backward(ctx: Any, *grad: Float[Tensor, " N"]) -> tuple[Tensor, None]:
        """Return the slope along log r: r times digamma(x + r) - digamma(r)."""
        r, count, cell, gene = ctx.saved_tensors
        slope = (torch.digamma(count + r[gene]) - torch.digamma(r)[gene]) * grad[0][cell]
        return torch.zeros_like(r).index_add_(0, gene, slope) * r, None


class MeanTerms(torch.autograd.Function):
    """x log(odds) - (x + r) log(1 + odds), summed over genes."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "S N O"],
        log_concentration: Float[Tensor, " G"],
        log_library: Float[Tensor, "N 1"],
        x: Float[Tensor, "N G"],
    ) -> Float[Tensor, "S N"]:
        r = log_concentration.exp()
        n_genes = len(r)
        log_prob = logits.new_empty(logits.shape[:2])
        log_total = torch.empty_like(log_prob)  # log sum exp of the logits
        per_cell = x.sum(-1) * log_library[:, 0] - x @ log_concentration
        depth = x.sum(-1)
        for s, rows in blocks(logits):
            row, counts = logits[s, rows], x[rows]
            top = row.amax(-1, keepdim=True)
            exp = (row - top).exp_()
            total = exp.sum(-1, keepdim=True)
            log_total[s, rows] = (total.log() + top)[:, 0]
            odds = exp[:, :n_genes].mul_(log_library[rows].exp() / total).div_(r)
            odds.log1p_()
            value = (row[:, :n_genes] - odds).mul_(counts).sum(-1) - odds @ r
            log_prob[s, rows] = value - depth[rows] * log_total[s, rows] + per_cell[rows]
        ctx.save_for_backward(logits, log_total, r, log_library, x)
        return log_prob

    @staticmethod
    def backward(
        ctx: Any, *grad: Float[Tensor, "S N"]
    ) -> tuple[Tensor, Tensor, Tensor | None, None]:
        """Return the slopes along logits, log r and log library.

        With u = x - (x + r) odds / (1 + odds), the slope along log(odds), they are u - softmax
        sum(u), -u - r log(1 + odds), and sum(u).
        """
        logits, log_total, r, log_library, x = ctx.saved_tensors
        n_genes = len(r)
        to_logits = torch.empty_like(logits)
        to_r, to_library = torch.zeros_like(r), torch.zeros_like(log_library)
        for s, rows in blocks(logits):
            weight = grad[0][s, rows]
            share = torch.sub(
                logits[s, rows], log_total[s, rows, None], out=to_logits[s, rows]
            ).exp_()
            odds = (share[:, :n_genes] * log_library[rows].exp()).div_(r)
            to_r -= r * (weight @ odds.log1p())
            slope = odds.div_(odds + 1).mul_(x[rows] + r).neg_().add_(x[rows])
            to_r -= weight @ slope
            along = slope.sum(-1, keepdim=True)
            to_library[rows] += weight[:, None] * along
            share.mul_(-along)
            share[:, :n_genes] += slope
            share.mul_(weight[:, None])
        return to_logits, to_r, to_library, None


def blocks(logits: Float[Tensor, "S N O"]) -> list[tuple[int, slice]]:
    """Return (sample, slice of cells) pairs, each of about BLOCK numbers."""
    n_samples, n_cells, n_outcomes = logits.shape
    size = max(1, BLOCK // n_outcomes)
    return [(s, slice(i, i + size)) for i in range(0, n_cells, size) for s in range(n_samples)]
