"""The likelihood of counts on a CUDA device: the formulas of likelihood.py as Triton kernels.

The logits are read once for the value and twice for the gradient, which is written once; no other
array of S x N x G numbers is held. Imported only if the logits are on such a device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

GENES = 1024  # genes of a row at a time
TILE_CELLS, TILE_GENES = 16, 128  # tile of the kernel that sums over cells


def nb_log_prob(
    logits: Float[Tensor, "S N O"],
    log_concentration: Float[Tensor, " G"],
    log_library: Float[Tensor, "N 1"],
    x: Float[Tensor, "N G"],
) -> Float[Tensor, "S N"]:
    """Return `likelihood.nb_log_prob` in single precision, without a gradient for the library."""
    log_prob: Tensor = LogProb.apply(logits, log_concentration, log_library, x)
    return log_prob


class LogProb(torch.autograd.Function):
    """The log probability with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "S N O"],
        log_concentration: Float[Tensor, " G"],
        log_library: Float[Tensor, "N 1"],
        x: Float[Tensor, "N G"],
    ) -> Float[Tensor, "S N"]:
        logits, x = logits.contiguous(), x.contiguous()
        n_samples, n_cells, n_outcomes = logits.shape
        r = log_concentration.float().exp()
        log_library = log_library.float().contiguous()
        log_prob = torch.empty(n_samples, n_cells, device=logits.device)
        log_total = torch.empty_like(log_prob)
        bracket = torch.empty(n_cells, device=logits.device)
        sizes = n_cells, n_outcomes, len(r)
        count_terms[(n_cells,)](x, r, bracket, len(r), GENES=GENES)
        mean_terms[(n_samples * n_cells,)](
            logits, r, log_library, x, log_prob, log_total, *sizes, GENES=GENES
        )
        ctx.save_for_backward(logits, log_total, r, log_library, x)
        return log_prob + bracket

    @staticmethod
    def backward(ctx: Any, *grad: Float[Tensor, "S N"]) -> tuple[Tensor, Tensor, None, None]:
        logits, log_total, r, log_library, x = ctx.saved_tensors
        n_samples, n_cells, n_outcomes = logits.shape
        weight = grad[0].contiguous()
        to_logits = torch.empty_like(logits)
        sizes = n_cells, n_outcomes, len(r)
        given = logits, r, log_library, x, log_total, weight
        logits_slope[(n_samples * n_cells,)](*given, to_logits, *sizes, GENES=GENES)
        tiles = triton.cdiv(len(r), TILE_GENES), triton.cdiv(n_cells, TILE_CELLS)
        partial = torch.empty(tiles[1], len(r), device=logits.device)
        concentration_slope[tiles](
            *given, partial, n_samples, *sizes, CELLS=TILE_CELLS, GENES=TILE_GENES
        )
        return to_logits, partial.sum(0), None, None


@triton.jit
def log1p(v):
    """Return log(1 + v) for v >= 0, accurate for small v."""
    series = v * (1 - v * (1 / 2 - v * (1 / 3 - v * (1 / 4))))
    return tl.where(v < 0.02, series, tl.log(1 + v))


@triton.jit
def lgamma(v):
    """Return log Gamma(v) by Stirling's series, at v + 8 if v is small."""
    small = v < 8
    product = v * (v + 1) * (v + 2) * (v + 3) * (v + 4) * (v + 5) * (v + 6) * (v + 7)
    w = tl.where(small, v + 8, v)
    value = (w - 0.5) * tl.log(w) - w + 0.9189385332046727
    value += 1 / (12 * w) - 1 / (360 * w * w * w)
    return value - tl.where(small, tl.log(tl.where(small, product, 1.0)), 0.0)


@triton.jit
def digamma(v):
    """Return digamma(v) by its asymptotic series, at v + 8 if v is small."""
    small = v < 8
    inverses = 1 / v + 1 / (v + 1) + 1 / (v + 2) + 1 / (v + 3)
    inverses += 1 / (v + 4) + 1 / (v + 5) + 1 / (v + 6) + 1 / (v + 7)
    w = tl.where(small, v + 8, v)
    value = tl.log(w) - 1 / (2 * w) - 1 / (12 * w * w) + 1 / (120 * w * w * w * w)
    return value - tl.where(small, inverses, 0.0)


@triton.jit
def count_terms(x_, r_, bracket_, n_genes, GENES: tl.constexpr):
    """Store, for one cell, the sum over genes of lgamma(x + r) - lgamma(r) - lgamma(x + 1)."""
    cell = tl.program_id(0).to(tl.int64)
    total = tl.zeros([GENES], tl.float32)
    for start in range(0, n_genes, GENES):
        gene = start + tl.arange(0, GENES)
        x = tl.load(x_ + cell * n_genes + gene, gene < n_genes, 0.0).to(tl.float32)
        r = tl.load(r_ + gene, gene < n_genes, 1.0)
        total += tl.where(x > 0, lgamma(x + r) - lgamma(r) - lgamma(x + 1), 0.0)
    tl.store(bracket_ + cell, tl.sum(total, 0))


@triton.jit
def mean_terms(
    logits_, r_, log_library_, x_, log_prob_, log_total_, n_cells, n_outcomes, n_genes,
    GENES: tl.constexpr,
):  # fmt: skip
    """Store, for one row of logits, its log sum exp and log probability without `count_terms`."""
    row = tl.program_id(0).to(tl.int64)
    cell = row % n_cells
    highest = tl.full([GENES], float("-inf"), tl.float32)
    total = tl.zeros([GENES], tl.float32)
    for start in range(0, n_outcomes, GENES):
        gene = start + tl.arange(0, GENES)
        logit = tl.load(logits_ + row * n_outcomes + gene, gene < n_outcomes, float("-inf"))
        logit = logit.to(tl.float32)
        higher = tl.maximum(highest, logit)
        seen = higher > float("-inf")
        total *= tl.where(seen, tl.exp(highest - tl.where(seen, higher, 0.0)), 0.0)
        total += tl.where(seen, tl.exp(logit - tl.where(seen, higher, 0.0)), 0.0)
        highest = higher
    top = tl.max(highest, 0)
    log_total = top + tl.log(tl.sum(total * tl.exp(highest - top), 0))
    to_mean = tl.load(log_library_ + cell) - log_total
    value = tl.zeros([GENES], tl.float32)
    for start in range(0, n_genes, GENES):
        gene = start + tl.arange(0, GENES)
        here = gene < n_genes
        logit = tl.load(logits_ + row * n_outcomes + gene, here, float("-inf")).to(tl.float32)
        x = tl.load(x_ + cell * n_genes + gene, here, 0.0).to(tl.float32)
        r = tl.load(r_ + gene, here, 1.0)
        log_odds = logit + to_mean - tl.log(r)
        softplus = log1p(tl.exp(log_odds))
        value += tl.where(here, tl.where(x > 0, x * log_odds, 0.0) - (x + r) * softplus, 0.0)
    tl.store(log_total_ + row, log_total)
    tl.store(log_prob_ + row, tl.sum(value, 0))


@triton.jit
def logits_slope(
    logits_, r_, log_library_, x_, log_total_, weight_, to_logits_, n_cells, n_outcomes, n_genes,
    GENES: tl.constexpr,
):  # fmt: skip
    """Store, for one row, weight (u - softmax sum(u)) with u = x - (x + r) odds / (1 + odds)."""
    row = tl.program_id(0).to(tl.int64)
    cell = row % n_cells
    log_total = tl.load(log_total_ + row)
    library = tl.exp(tl.load(log_library_ + cell))
    weight = tl.load(weight_ + row).to(tl.float32)
    along = tl.zeros([GENES], tl.float32)
    for start in range(0, n_genes, GENES):
        gene = start + tl.arange(0, GENES)
        here = gene < n_genes
        logit = tl.load(logits_ + row * n_outcomes + gene, here, float("-inf")).to(tl.float32)
        x = tl.load(x_ + cell * n_genes + gene, here, 0.0).to(tl.float32)
        r = tl.load(r_ + gene, here, 1.0)
        mean = tl.exp(logit - log_total) * library
        along += x - (x + r) * (mean / (mean + r))
    sum_along = tl.sum(along, 0)
    for start in range(0, n_outcomes, GENES):
        gene = start + tl.arange(0, GENES)
        here = gene < n_genes
        place = row * n_outcomes + gene
        logit = tl.load(logits_ + place, gene < n_outcomes, float("-inf")).to(tl.float32)
        x = tl.load(x_ + cell * n_genes + gene, here, 0.0).to(tl.float32)
        r = tl.load(r_ + gene, here, 1.0)
        share = tl.exp(logit - log_total)
        mean = share * library
        slope = tl.where(here, x - (x + r) * (mean / (mean + r)), 0.0)
        slope = weight * (slope - share * sum_along)
        tl.store(to_logits_ + place, slope.to(to_logits_.dtype.element_ty), gene < n_outcomes)


@triton.jit
def concentration_slope(
    logits_, r_, log_library_, x_, log_total_, weight_, partial_, n_samples, n_cells, n_outcomes,
    n_genes, CELLS: tl.constexpr, GENES: tl.constexpr,
):  # fmt: skip
    """Store the slope along log r of some genes, summed over some cells and all samples.

    It is weight (-u - r log(1 + odds) + r [digamma(x + r) - digamma(r)]).
    """
    gene = tl.program_id(0) * GENES + tl.arange(0, GENES)
    cell = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    cell = cell.to(tl.int64)
    is_gene, is_cell = gene < n_genes, cell < n_cells
    here = is_cell[:, None] & is_gene[None, :]
    r = tl.load(r_ + gene, is_gene, 1.0)[None, :]
    x = tl.load(x_ + cell[:, None] * n_genes + gene[None, :], here, 0.0).to(tl.float32)
    library = tl.exp(tl.load(log_library_ + cell, is_cell, 0.0))[:, None]
    slope = tl.zeros([CELLS, GENES], tl.float32)
    weights = tl.zeros([CELLS], tl.float32)
    for s in range(n_samples):
        row = s * n_cells + cell
        weight = tl.load(weight_ + row, is_cell, 0.0).to(tl.float32)
        log_total = tl.load(log_total_ + row, is_cell, 0.0)
        logit = tl.load(
            logits_ + row[:, None] * n_outcomes + gene[None, :], here, float("-inf")
        ).to(tl.float32)
        odds = tl.exp(logit - log_total[:, None]) * library / r
        u = x - (x + r) * (odds / (1 + odds))
        slope -= weight[:, None] * (u + r * log1p(odds))
        weights += weight
    bracket = tl.where(x > 0, r * (digamma(x + r) - digamma(r)), 0.0)
    slope = tl.where(here, slope + weights[:, None] * bracket, 0.0)
    tl.store(partial_ + tl.program_id(1) * n_genes + gene, tl.sum(slope, 0), is_gene)
