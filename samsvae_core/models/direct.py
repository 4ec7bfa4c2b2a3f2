"""Direct effects: what a perturbation does to single genes, outside every mechanism (ours).

A mask entry can only pay for what moves many genes, so what a perturbation does to one gene, its
own target first, would be lost. A direct effect is added to that gene's logit (of a Gaussian
likelihood: to its mean), times the dosage:

    logits_i += sum_t D_it direct_t + [any D_it > 0] common,   direct_tg ~ mixture of a point at 0
                                                                and Normals (`shrinkage`)

`common` is what all perturbed cells share against controls. It is no mechanism, and would else be
taken for one. docs/model.md tells how the posterior is found and why.

Axes: T perturbations, G genes, E entries that are kept, S Monte Carlo samples, N cells.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

KINDS = ("sparse", "own-target", "none")
LEAST = 0.01  # least |mean| of an entry that is kept, in natural-log units or noise scales
LIKELY = 0.05  # or its least probability
MOST_SMALL = 10**7  # perturbations x genes up to which small and uncertain effects are kept
FAR = 2.0  # standard deviations from zero of those kept beyond
ACTIVE = 0.5  # probability from which a direct effect is called active


def lifted(
    means: Float[Tensor, "*B R G"], offset: Float[Tensor, "*B G"], softmax: bool, others: bool
) -> Float[Tensor, "*B R G"]:
    """Return decoded means with direct effects added to the logits, or to the means.

    A softmax of moved logits is its shares p times exp(offset), over their sum. `softmax` says that
    means are such shares, and `others` that all other genes are one more outcome, left out of them.
    """
    if not softmax:
        return means + offset[..., None, :]
    moved = means * offset.exp()[..., None, :]
    rest = 1 - means.sum(-1, keepdim=True) if others else 0.0
    return moved / (moved.sum(-1, keepdim=True) + rest)


def lifted_mean(
    means: Float[Tensor, "M R G"], offset: Float[Tensor, "B G"], softmax: bool, others: bool
) -> Float[Tensor, "B G"]:
    """Return `lifted` averaged over the states R, as products of matrices.

    M is B, or 1 where all have the same means.
    """
    if not softmax:
        return means.mean(-2) + offset
    factor, n_states = offset.exp(), means.shape[1]
    rest = 1 - means.sum(-1) if others else means.new_zeros(())  # (M, R)
    if len(means) == 1:
        return factor * ((1 / (factor @ means[0].mT + rest)) @ means[0]) / n_states
    total = torch.bmm(means, factor[..., None])[..., 0] + rest  # (B, R)
    return factor * torch.bmm(1 / total[:, None], means)[:, 0] / n_states


class Posterior(NamedTuple):
    """The posterior of every entry of some rows."""

    mean: Float[Tensor, "R G"]
    sd: Float[Tensor, "R G"]
    probability: Float[Tensor, "R G"]  # that it stands out (`shrinkage.activity`)
    kl: Float[Tensor, "R G"]  # KL(q || p), in nats


class DirectSample(NamedTuple):
    """Direct effects as `EffectSample` holds them."""

    effects: DirectEffects
    values: Float[Tensor, "S E"] | None  # None: the means, as in training

    def offset(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "_ N G"]:
        """Return what is added to each cell's logits; once for all samples, while training."""
        if self.values is None:
            return self.effects.mean_offset(D)[None]
        return self.effects.offset(D, self.values)


class DirectEffects(nn.Module):
    """The posterior of direct effects, sparse: only entries that matter are kept.

    Entries are in the order of rows (perturbations, then `common`), then genes.
    """

    row: Tensor  # (E,) perturbation; T is `common`
    gene: Tensor  # (E,)
    mean: Tensor  # (E,) posterior mean, the mass at zero included
    sd: Tensor  # (E,) posterior standard deviation, likewise
    probability: Tensor  # (E,)
    own: Tensor  # (T,) the gene each perturbation targets; -1 if it is not on the panel
    kl: Tensor  # KL(q || p) of all entries, in nats
    KEPT = ("row", "gene", "mean", "sd", "probability")

    def __init__(self, n_perturbations: int, n_genes: int) -> None:
        super().__init__()
        self.n_perturbations, self.n_genes = n_perturbations, n_genes
        for name in self.KEPT:
            whole = name in ("row", "gene")
            empty = torch.zeros(0, dtype=torch.int64 if whole else torch.float32)
            self.register_buffer(name, empty)
        self.register_buffer("kl", torch.zeros(()))  # KL(q || p) of all entries, in nats
        self.most: int | None = None  # rows of a training cell at most; None: counted
        self.trained: Float[Tensor, "P G"] | None = None  # while training: the means, whole
        self.register_buffer("own", torch.full((n_perturbations,), -1))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the whole table."""
        return self.n_perturbations + 1, self.n_genes

    def keep(self, blocks: Iterable[Posterior], unit: Float[Tensor, " G"] | float = 1.0) -> None:
        """Store a posterior, without the entries that are nearly zero in these units.

        It is given as blocks of rows, in their order. Of a very large screen only those that are
        far from zero by their own spread are kept.
        """
        far = 0.0 if self.n_perturbations * self.n_genes <= MOST_SMALL else FAR
        for name in self.KEPT:  # takes no memory while new ones are made
            setattr(self, name, getattr(self, name)[:0].clone())
        start, kl, found = 0, torch.zeros_like(self.kl), []
        for block in blocks:
            size = (block.mean / unit).abs()
            kept = (size >= LEAST) & (size >= far * block.sd / unit)
            kept |= block.probability >= LIKELY
            row, gene = kept.nonzero(as_tuple=True)
            values = (table[kept] for table in (block.mean, block.sd, block.probability))
            found.append((row + start, gene, *values))
            start, kl = start + len(kept), kl + block.kl[kept].sum()
        for name, parts in zip(self.KEPT, zip(*found, strict=True), strict=True):
            setattr(self, name, torch.cat(parts))
        self.kl.copy_(kl)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.KEPT:  # their length is that of the file
            if f"{prefix}{name}" in state_dict:
                found = state_dict[f"{prefix}{name}"]
                setattr(self, name, torch.empty_like(found, device=self.own.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def rows_given(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "N P"]:
        """Return the dosages with those of `common` in a last column: 1 for any perturbation."""
        return torch.cat([D, (D != 0).any(1, keepdim=True).to(D)], 1)

    def table(self, values: Float[Tensor, "*S E"]) -> Float[Tensor, "*S P G"]:
        """Return values of the entries as a whole table, zero elsewhere."""
        shape = *values.shape[:-1], (self.n_perturbations + 1) * self.n_genes
        place = self.row * self.n_genes + self.gene
        whole = values.new_zeros(shape).index_copy_(-1, place, values)
        return whole.unflatten(-1, (self.n_perturbations + 1, self.n_genes))

    def offset(
        self, D: Float[Tensor, "N T"], values: Float[Tensor, "S E"]
    ) -> Float[Tensor, "S N G"]:
        """Return what is added to the logits of cells, given draws of the entries."""
        given = self.rows_given(D)
        there = given.any(0)
        used = there[self.row]
        place = there.cumsum(0) - 1  # of a row among those given
        n_rows = int(there.sum())
        small = values.new_zeros(len(values), n_rows * self.n_genes)
        small.index_copy_(
            1, place[self.row[used]] * self.n_genes + self.gene[used], values[:, used]
        )
        return given[:, there] @ small.view(len(values), n_rows, self.n_genes)

    def mean_offset(self, D: Float[Tensor, "N T"]) -> Float[Tensor, "N G"]:
        """Return the mean of what is added to the logits of cells.

        Training holds the means as a whole table, of which only the rows of each cell's own
        perturbations are read.
        """
        if self.trained is None:
            return self.offset(D, self.mean[None])[0]
        given = self.rows_given(D)
        most = self.most if torch.is_grad_enabled() else None  # others may have more
        most = int((given != 0).sum(1).max()) if most is None else most
        if not most:
            return self.trained.new_zeros(len(D), self.n_genes)
        dosage, which = given.topk(most, 1)
        return embedding_bag(which, self.trained, mode="sum", per_sample_weights=dosage)

    def draw(self, n_samples: int, random: torch.Generator | None = None) -> Float[Tensor, "S E"]:
        """Return posterior draws of the entries, Normal with the moments kept."""
        size = n_samples, len(self.mean)
        normal = torch.randn(size, generator=random, device=self.mean.device)
        return self.mean + self.sd * normal

    def draw_row(self, row: int, n_samples: int, random: torch.Generator) -> Float[Tensor, "S G"]:
        """Return posterior draws of one row as a whole."""
        here = self.row == row
        size = n_samples, int(here.sum())
        normal = torch.randn(size, generator=random, device=self.mean.device)
        whole = normal.new_zeros(n_samples, self.n_genes)
        return whole.index_copy_(1, self.gene[here], self.mean[here] + self.sd[here] * normal)

    def sample(self, n_samples: int) -> DirectSample:
        """Return draws for whole data sets; while training, the means for every sample."""
        if self.trained is not None:
            return DirectSample(self, None)
        return DirectSample(self, self.draw(n_samples))

    def is_own(self) -> Bool[Tensor, " E"]:
        """Return which entries are a perturbation's own target."""
        own = torch.cat([self.own, self.own.new_full((1,), -1)])
        return own[self.row] == self.gene
