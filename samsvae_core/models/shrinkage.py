"""Empirical-Bayes shrinkage of many effects, each measured with a known standard error.

Each row (the effects of one perturbation) has a prior of its own: a point mass at zero and Normals
around zero of growing width, whose weights are those under which its estimates are most probable.
So a row in which nothing happens is shrunk to almost nothing, and a few strong effects among many
zeros stay whole. The idea is that of Stephens 2017, "False discovery rates: a new deal"
(Biostatistics 18, section 2); no kept Python library has it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

WIDTHS = 2.0 ** torch.arange(-6, 4, dtype=torch.float64)  # of the Normals: 1/64 to 8
TINY = 1e-6  # estimates that the prior counts in advance for each of its parts
SWEEPS = 100  # of the EM algorithm for the weights
WIDE = 1.0  # standard deviation of effects that stand out
MOST_OF_ROW = 0.9, 2.7055  # share of effects that are background, and that quantile of chi squared
MOST_OF_COLUMN = 0.75, 1.3233
FEWEST_ROWS = 8  # perturbations from which a gene's column says something
VALUES_AT_ONCE = 2**19  # effects x Normals held in memory


class Shrunken(NamedTuple):
    """The posterior of effects, rows x columns; all zero where the standard error is not finite."""

    mean: Float[Tensor, "T G"]
    sd: Float[Tensor, "T G"]  # of the whole posterior, the mass at zero included
    probability: Float[Tensor, "T G"]  # that the effect is not zero
    kl: Float[Tensor, "T G"]  # KL(posterior || prior), in nats


def shrink(estimate: Float[Tensor, "T G"], se: Float[Tensor, "T G"]) -> Shrunken:
    """Return the posterior of each effect under the prior that its row's estimates suggest.

    `estimate` and `se` are in natural-log units or others in which effects lie between about 1/64
    and 8. An entry whose standard error is not finite says nothing and gets zero.
    """
    estimate, se = estimate.double(), se.double()
    found = [torch.zeros_like(estimate) for _ in Shrunken._fields]
    size = max(1, VALUES_AT_ONCE // (max(1, estimate.shape[1]) * (len(WIDTHS) + 1)))
    for rows in torch.arange(len(estimate), device=estimate.device).split(size):
        for whole, part in zip(found, shrunken_rows(estimate[rows], se[rows]), strict=True):
            whole[rows] = part
    return Shrunken(*found)


def shrunken_rows(estimate: Float[Tensor, "T G"], se: Float[Tensor, "T G"]) -> Shrunken:
    known = se.isfinite() & estimate.isfinite() & (se > 0)
    estimate, noise = estimate.where(known, 0.0), se.where(known, 1.0).square()
    spread = torch.cat([WIDTHS.new_zeros(1), WIDTHS]).to(estimate).square()  # (K,)
    total = spread + noise[..., None]  # (T, G, K)
    likelihood = -0.5 * (total.log() + estimate[..., None].square() / total)
    most = likelihood.amax(-1, keepdim=True)
    likelihood = (likelihood - most).exp() * known[..., None]
    weight = torch.full_like(spread, 1 / len(spread)).expand(len(estimate), -1)  # (T, K)
    for _ in range(SWEEPS):  # as products of matrices, three times as fast as share by share
        evidence = torch.bmm(likelihood, weight[..., None]).clamp_min(1e-300)  # (T, G, 1)
        counted = weight * torch.bmm(1 / evidence.mT, likelihood)[:, 0] + TINY
        weight = counted / counted.sum(-1, keepdim=True)
    each = likelihood * weight[:, None]
    share = each / each.sum(-1, keepdim=True).clamp_min(1e-300)
    kept = spread / total  # of the estimate, under each Normal
    mean = (share * kept).sum(-1) * estimate
    second = share * (kept * noise[..., None] + (kept * estimate[..., None]).square())
    sd = (second.sum(-1) - mean.square()).clamp_min(0).sqrt()
    evidence = most[..., 0] + each.sum(-1).clamp_min(1e-300).log()
    fit = -0.5 * (noise.log() + ((estimate - mean).square() + sd.square()) / noise)
    kl = (fit - evidence).clamp_min(0) * known
    return Shrunken(mean, sd, share[..., 1:].sum(-1) * known, kl)


def activity(
    estimate: Float[Tensor, "T G"],
    se: Float[Tensor, "T G"],
    price: float,
    of_column: Float[Tensor, " G"] | None = None,
) -> Float[Tensor, "T G"]:
    """Return the probability that an effect stands out of its row and its column.

    Against it stands a background of effects as small as most others are: of its row, so that a
    perturbation that a model fits a little wrongly everywhere has no effect that stands out, and of
    its column (`of_column`, its variance, where these are not all rows). What stands out is
    Normal(0, WIDE), at prior odds of exp(-price). With a price of 0 there is no background.
    """
    found = torch.zeros_like(estimate)
    if not found.numel():
        return found
    n_rows, n_columns = estimate.shape
    if of_column is None:
        of_column = column_background(estimate, se) if price else se.new_zeros(n_columns)
    for rows in torch.arange(n_rows).split(max(1, VALUES_AT_ONCE // n_columns)):
        of_row = se.new_zeros(1, 1)
        if price:
            of_row = beyond_error(estimate[rows], se[rows], *MOST_OF_ROW)
        noise = se[rows].double().square()
        known = noise.isfinite() & (noise > 0)
        narrow = noise.where(known, torch.inf) + torch.maximum(
            of_column[None].double(), of_row.double()
        )
        wide = narrow + WIDE**2
        square = estimate[rows].double().square()
        gain = (square * (1 / narrow - 1 / wide) - (wide / narrow).log()) / 2
        found[rows] = (gain - price).sigmoid().where(known, 0.0).to(estimate)
    return found


def column_background(
    estimate: Float[Tensor, "T G"], se: Float[Tensor, "T G"]
) -> Float[Tensor, " G"]:
    """Return the variance of each column's background; 0 with fewer than FEWEST_ROWS rows."""
    n_rows, n_columns = estimate.shape
    found = torch.zeros(n_columns, dtype=torch.float64, device=se.device)
    if n_rows >= FEWEST_ROWS:
        for columns in torch.arange(n_columns).split(max(1, VALUES_AT_ONCE // n_rows)):
            parts = estimate[:, columns].T, se[:, columns].T
            found[columns] = beyond_error(*parts, *MOST_OF_COLUMN)[:, 0]
    return found


def beyond_error(
    estimate: Float[Tensor, "T G"], se: Float[Tensor, "T G"], share: float, chi2: float
) -> Float[Tensor, "T 1"]:
    """Return the variance b of each row under which a share of its effects is within its error.

    That share has effect^2 <= chi2 (se^2 + b), where `chi2` is the quantile of chi squared with one
    degree of freedom at that share. Entries without a standard error are not counted.
    """
    known = se.isfinite() & (se > 0)
    excess = (estimate.double().square() / chi2 - se.double().square()).where(known, torch.inf)
    n = known.sum(1, keepdim=True)
    place = (share * (n - 1)).round().long().clamp_min(0)
    found = excess.sort(1).values.gather(1, place)
    return found.clamp_min(0).where(n > 0, 0.0)
