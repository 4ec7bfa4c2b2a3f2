"""The posterior of direct effects, found between training steps in closed form.

What the cells of a perturbation hold of a gene is compared, every few steps, with what the model
expects without knowing the cells: at basal states from the prior, shifted by the mechanisms and by
the direct effects so far. The logarithm of observed over expected, beside that of control cells and
with its standard error, is then shrunk (`models.shrinkage`). So direct effects are what mechanisms
leave, no gradient of them is ever taken, and a training step costs one addition more.

Own targets, and what all perturbations share, are found from the first steps on, so that no
mechanism is made of them; other genes only once the masks have settled, which are then held.

Axes: C conditions (different dosages), T perturbations, P = T + 1 rows (the last is `common`), G
genes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import ACTIVE, DirectEffects, Posterior, lifted
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.models.shrinkage import activity, shrink
from samsvae_core.training.config import TrainConfig

N_EARLY, N_LATE = 8, 12  # sweeps before and after the masks have settled
FIRST = (64, 32)  # and at these parts of the steps before, for what all perturbations share
SETTLED = 0.25  # share of the steps after annealing until masks are held
MOST_SHARE = 0.1  # of the states that steps decode, at most decoded again by sweeps
MOST_STATES = 512  # basal states at which a condition is decoded
CELLS_AT_ONCE = 4096
VALUES_AT_ONCE = 2**21  # states x genes
HALF = 0.5  # counts added to observed and expected, so that none is zero
MOST_TABLE = 2**28  # conditions x genes above which depths are not kept
FEWEST_SHARED = 8  # perturbations from which it can be told what all of them share
MOST_SHARED = 1000  # of them, those with most cells, from which it is told
DOMINANT = 0.2  # share of the transcripts from which a gene dominates its cell
PRICE = 6.0  # nats asked of an entry beyond its width: prior odds of one in four hundred
MOST_OF_SHARE = 0.99  # share of the transcripts that a gene is taken to have at most


def settled_after(model: SAMSVAE, config: TrainConfig) -> int:
    """Return the step after which masks are held and every gene may have a direct effect."""
    settled = SETTLED if model.asks_evidence else 0.0
    share = min(1.0, config.anneal)  # infinite where masks never settle
    return int((share + settled * (1 - share)) * config.steps)


class Observed(NamedTuple):
    """What the training cells hold; values are weighted by how much a cell tells of a gene."""

    dosages: Float[Tensor, "C T"]
    given: Float[Tensor, "C P"]  # the same with `common`
    library: Float[Tensor, " C"]
    cells: Float[Tensor, " C"]
    control: Bool[Tensor, " C"]  # or all, where there is no control
    spread: Float[Tensor, " G"]  # variance of a cell is m + spread m^2; of values, spread
    share: Float[Tensor, " G"]  # of all transcripts, or of those of genes that do not dominate
    dominant: Bool[Tensor, " G"]  # genes that make up much of a cell
    depth: Float[Tensor, "C G"] | None  # weighted libraries; None where too large to keep
    total: Float[Tensor, "P G"]  # sum of weighted values, times dosages
    base: Float[Tensor, " G"]  # the same of control
    mean: Float[Tensor, "P G"]  # of `total`, if nothing had an effect
    base_mean: Float[Tensor, " G"]
    variance: Float[Tensor, "P G"]  # the same
    base_variance: Float[Tensor, " G"]
    single: Float[Tensor, "P G"]  # the part of the variance that single molecules make
    base_single: Float[Tensor, " G"]


class DirectFit:
    """The sweeps of one training; does nothing for a model without direct effects."""

    def __init__(self, model: SAMSVAE, cells: Cells, config: TrainConfig) -> None:
        self.model, self.direct = model, model.direct
        self.steps: set[int] = set()
        if self.direct is None:
            return
        self.late = settled_after(model, config)
        self.is_counts = model.config.likelihood == "counts"
        by_panel = self.is_counts and not model.config.other_genes
        self.observed = observe(self.direct, cells, self.is_counts, by_panel)
        self.direct.most = max(1, int((self.observed.given != 0).sum(1).max()))
        self.direct.trained = self.direct.table(self.direct.mean)
        self.plan(config)

    def plan(self, config: TrainConfig) -> None:
        """Choose when to sweep, and at how many basal states."""
        budget = MOST_SHARE * config.steps * config.batch_size / len(self.observed.cells)
        n_sweeps = N_EARLY + N_LATE
        self.n_states = int(min(MOST_STATES, max(1, budget // n_sweeps)))
        share = min(1.0, budget / n_sweeps)
        n_early, n_late = max(2, round(share * N_EARLY)), max(3, round(share * N_LATE))
        early = {self.late * (i + 1) // (n_early + 1) for i in range(n_early)}
        self.first_own = min(early)
        early |= {self.late // k for k in FIRST if self.late >= k}
        rest = max(0, config.steps - self.late)
        self.steps = early | {self.late + rest * i // n_late for i in range(n_late)}

    def after(self, step: int) -> None:
        """Sweep, if this step is one after which to; random numbers are of its own."""
        if self.direct is None or step not in self.steps:
            return
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(step)
            self.sweep(self.direct, step)

    def finish(self, step: int) -> None:
        """Sweep a last time, and let the model draw its effects from then on."""
        if self.direct is None:
            return
        self.steps.add(step)
        self.after(step)
        self.direct.trained = None

    def sweep(self, direct: DirectEffects, step: int) -> None:
        """Find the posterior anew, and step towards it."""
        trained = direct.trained
        assert trained is not None
        change, se, of_control, damp = self.misses(direct)
        whole = trained + change
        whole[:-1] += trained[-1]  # what all share included
        whole = whole - self.gauge(whole)
        everything = step >= self.late and self.model.config.direct_effects == "sparse"
        own = step >= self.first_own
        unit = 1.0 if self.is_counts else self.observed.spread.sqrt().clamp_min(1e-9)
        found = posterior(direct, whole / unit, se / unit, of_control / unit, own, everything)
        mean, sd = unit * found.mean, unit * found.sd
        mean = trained + damp * (mean - trained)
        direct.keep(found._replace(mean=mean, sd=sd), unit)
        trained.copy_(direct.table(direct.mean))  # in place, as a recorded step reads it

    def misses(self, direct: DirectEffects) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the model misses of each row and gene, its standard error, the part of that
        which all rows share with control, and a damping.

        Each entry is changed as if the others stayed. Where cells have several perturbations, the
        change is damped by the share of the row's cells in the sum over all their perturbations, so
        that together they do not overshoot.
        """
        seen = self.observed
        total, square, overlap, base = self.expected(direct)
        if not self.is_counts:
            of_control = (seen.base - base) / seen.base_mean
            square = square.clamp_min(1e-9)
            change = (seen.total - total - of_control * seen.mean) / square
            of_control = seen.base_variance.sqrt() / seen.base_mean
            se = (seen.variance + (seen.mean * of_control).square()).sqrt() / square
        else:
            level = (seen.base + HALF) / (base + HALF)  # what is missed of control
            total, square, overlap = total * level, square * level, overlap * level
            ratio = ((seen.total + HALF) / (total + HALF)).log()
            change = ratio * total / square.clamp_min(1e-9)
            se, of_control = self.errors(total)
        se[seen.given.T @ seen.cells < 1] = torch.inf
        damp = (square / overlap.clamp_min(1e-9)).clamp_max(1)
        damp[-1] = 1
        return change, se, of_control, damp

    def errors(
        self, total: Float[Tensor, "P G"]
    ) -> tuple[Float[Tensor, "P G"], Float[Tensor, " G"]]:
        """Return the standard error of the log ratio, and the part of it that is control's.

        It is taken at the level between seen and expected.

        In a softmax, a logit changes its own share by 1 - share of what it changes alone.
        """
        seen = self.observed
        own = relative_variance(seen.total, total, seen.mean, seen.single, seen.variance)
        base = relative_variance(
            seen.base, seen.base, seen.base_mean, seen.base_single, seen.base_variance
        )
        of_logit = 1 - seen.share.clamp_max(MOST_OF_SHARE)
        se, of_control = ((own + base).sqrt() / of_logit, base.sqrt() / of_logit)
        return se.where(seen.share > 0, torch.inf), of_control

    def gauge(self, whole: Float[Tensor, "P G"]) -> Float[Tensor, "P 1"] | float:
        """Return the constant of each row that a softmax cannot tell: its median.

        Shares do not change if a constant is added to all logits, and so the one is taken that
        leaves most genes without an effect. With all other genes as one outcome, it is known.
        """
        if not self.is_counts or self.model.config.other_genes:
            return 0.0
        seen = self.observed
        known = whole.where(seen.mean + seen.total > 20, torch.nan)  # counts that tell a ratio
        return known.nanmedian(1, keepdim=True).values.nan_to_num(0)

    def expected(self, direct: DirectEffects) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what the model expects of `Observed.total` and `.base`.

        Between them stand the same sum with squared dosages, and with dosages times the sum of all
        dosages of the cell.
        """
        model, seen = self.model, self.observed
        z = torch.randn(self.n_states, model.config.n_latent, device=model.device)
        total, square, overlap = torch.zeros(3, *seen.total.shape, device=model.device)
        base = torch.zeros_like(seen.base)
        size = max(1, VALUES_AT_ONCE // (self.n_states * direct.n_genes))
        for rows in torch.arange(len(seen.cells), device=model.device).split(size):
            D, given = seen.dosages[rows], seen.given[rows]
            means = model.decoded_means(z, model.mean_shift(D))
            kind = model.has_shares, model.config.other_genes
            mean = lifted(means, direct.mean_offset(D), *kind)
            if seen.dominant.any():
                mean = mean.where(seen.dominant, mean / rest_of(mean, seen.dominant)).mean(-2)
            else:
                mean = mean.mean(-2)
            mean = mean * self.depths(rows)
            total += given.T @ mean
            weight = mean if self.is_counts else self.depths(rows)
            square += given.square().T @ weight
            several = given[:, :-1].sum(1, keepdim=True)
            overlap += (given * several).T @ weight
            base += mean[seen.control[rows]].sum(0)
        return total, square, overlap, base

    def depths(self, rows: Tensor) -> Float[Tensor, "c G"]:
        """Return the weighted libraries of some conditions."""
        seen = self.observed
        if seen.depth is not None:
            return seen.depth[rows]
        if not self.is_counts:
            return seen.library[rows, None].expand(-1, len(seen.share))
        library = (seen.library / seen.cells)[rows, None]
        return seen.library[rows, None] * weights(library, seen.spread, seen.share)


def rest_of(x: Float[Tensor, "*B G"], dominant: Bool[Tensor, " G"]) -> Float[Tensor, "*B 1"]:
    """Return the sum over the genes that do not dominate."""
    return x[..., ~dominant].sum(-1, keepdim=True)


def relative_variance(
    seen: Tensor, expected: Tensor, mean: Tensor, single: Tensor, variance: Tensor
) -> Tensor:
    """Return the variance of the log of a weighted sum of counts.

    The part of single molecules falls with the sum, taken between `seen` and `expected`; `mean`,
    `single` and `variance` are the sum, that part of its variance and all of it, if nothing had an
    effect.
    """
    mean = mean.clamp_min(1e-12)
    between = ((seen + HALF) * (expected + HALF)).sqrt()
    return single / mean / between + (variance - single).clamp_min(0) / mean.square()


def weights(
    library: Float[Tensor, "N 1"], spread: Float[Tensor, " G"], share: Float[Tensor, " G"]
) -> Float[Tensor, "N G"]:
    """Return what a cell weighs: the mean of its count over the variance, up to its library."""
    return 1 / (1 + spread * share * library)


def observe(direct: DirectEffects, cells: Cells, is_counts: bool, by_panel: bool) -> Observed:
    """Sum the training cells by condition and perturbation; four passes over them.

    `by_panel` says that libraries are totals of the panel. Then a gene that makes up much of each
    cell would blur all others by its own fluctuations, so they are counted in shares of the rest,
    which a softmax leaves unchanged.
    """
    device, n_genes = cells.device, direct.n_genes
    blocks = torch.arange(len(cells), device=device).split(CELLS_AT_ONCE)
    which, first = conditions(direct, cells, blocks)
    dosages = torch.cat([cells.dosages[i] for i in first.split(CELLS_AT_ONCE)])
    given = direct.rows_given(dosages)
    n = torch.bincount(which, minlength=len(first)).float()
    own = cells.library if is_counts else torch.ones_like(cells.library)
    library = torch.zeros_like(n).index_add_(0, which, own[:, 0])
    control = ~(dosages != 0).any(1)
    control = control if control.any() else torch.ones_like(control)
    kept = len(n) * n_genes <= MOST_TABLE
    pooled = torch.zeros(n_genes, device=device)
    for index in blocks:
        pooled += cells.counts[index].sum(0)
    dominant = pooled / own.sum() > DOMINANT if by_panel else pooled < 0

    def libraries(index: Tensor, x: Tensor) -> Tensor:
        """The library of each cell, for a gene that does not dominate without those that do."""
        if not dominant.any():
            return own[index]
        return own[index].where(dominant, rest_of(x, dominant))

    sums, depths = torch.zeros(2, len(n) if kept else 1, n_genes, device=device)
    for index in blocks:
        x, at = cells.counts[index], which[index] if kept else torch.zeros_like(index)
        sums.index_add_(0, at, x)
        depths.index_add_(0, at, libraries(index, x).expand_as(x))
    means = sums / depths.clamp_min(1e-9)
    share = sums.sum(0) / depths.sum(0).clamp_min(1e-9)
    excess, weight = torch.zeros(2, n_genes, dtype=torch.float64, device=device)
    for index in blocks:
        x, at = cells.counts[index], which[index] if kept else torch.zeros_like(index)
        m = means[at] * libraries(index, x)
        excess += ((x - m).square() - (m if is_counts else 0)).double().sum(0)
        weight += (m.square() if is_counts else torch.ones_like(m)).double().sum(0)
    spread = (excess / weight.clamp_min(1e-12)).clamp_min(0).float()
    depth = torch.zeros(len(n), n_genes, device=device) if kept else None
    of_rows = torch.zeros(4, *direct.shape, device=device)  # value, mean, variance, single
    of_control = torch.zeros(4, n_genes, device=device)
    for index in blocks:
        x, at = cells.counts[index], which[index]
        lib = libraries(index, x)
        w = weights(lib, spread, share) if is_counts else torch.ones_like(x)
        m = lib * share if is_counts else torch.ones_like(x)
        single = w.square() * m if is_counts else torch.zeros_like(x)
        v = single + spread * (w * m).square()
        rows, plain = given[at], control[at]
        for k, values in enumerate((w * x, w * m, v, single)):
            of_rows[k] += (rows if k < 2 else rows.square()).T @ values
            of_control[k] += values[plain].sum(0)
        if depth is not None:
            depth.index_add_(0, at, w * lib)
    both = [table for pair in zip(of_rows, of_control, strict=True) for table in pair]
    return Observed(dosages, given, library, n, control, spread, share, dominant, depth, *both)


def conditions(
    direct: DirectEffects, cells: Cells, blocks: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """Return the number of each cell's condition, and the first cell of each.

    Rows of dosages are told apart by their product with random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    key = torch.rand(direct.n_perturbations, generator=generator, dtype=torch.float64)
    keys = torch.cat([cells.dosages[i].double() @ key.to(cells.device) for i in blocks])
    found, which = keys.unique(return_inverse=True)
    order = torch.arange(len(cells), device=cells.device)
    first = torch.full((len(found),), len(cells), device=cells.device)
    return which, first.scatter_reduce_(0, which, order, "amin")


def posterior(
    direct: DirectEffects,
    whole: Float[Tensor, "P G"],
    se: Float[Tensor, "P G"],
    of_control: Float[Tensor, " G"],
    with_own: bool,
    everything: bool,
) -> Posterior:
    """Return the posterior given estimates that include what all perturbations share.

    `of_control` is the part of the standard errors that is control's, the same in all rows.

    Own targets have a prior of their own, that of their family: they are expected to move. They
    are left at zero unless `with_own` is asked for, and all other entries unless `everything` is.
    What all share is kept only where it stands out, since control's sampling error is shared too.
    """
    mean, sd, probability, kl = torch.zeros(4, *whole.shape, device=whole.device)
    shared = common(whole[:-1], se[:-1], of_control)
    if shared is not None:
        found = shrink(shared[0][None], shared[1][None])
        probability[-1] = activity(shared[0][None], shared[1][None], PRICE)[0]
        stands = probability[-1] > ACTIVE
        mean[-1], sd[-1], kl[-1] = (table[0] * stands for table in (found.mean, found.sd, found.kl))
    alone = whole[:-1] - mean[-1]
    if everything:
        found = shrink(alone, se[:-1])
        mean[:-1], sd[:-1], kl[:-1] = found.mean, found.sd, found.kl
        probability[:-1] = activity(alone, se[:-1], PRICE)
    rows = (direct.own >= 0).nonzero()[:, 0]
    if with_own and len(rows):
        genes = direct.own[rows]
        estimate, error = alone[rows, genes][None], se[rows, genes][None]
        found = shrink(estimate, error)
        mean[rows, genes], sd[rows, genes] = found.mean[0].float(), found.sd[0].float()
        kl[rows, genes] = found.kl[0].float()
        probability[rows, genes] = activity(estimate.T, error.T, 0.0)[:, 0]
    return Posterior(mean, sd, probability, kl)


def common(
    whole: Float[Tensor, "T G"], se: Float[Tensor, "T G"], of_control: Float[Tensor, " G"]
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]] | None:
    """Return what most perturbations share, the weighted median, with its standard error.

    A median is not moved by the effects of a minority, which are no part of it. None with too few
    perturbations.
    """
    own = (se.square() - of_control.square()).clamp_min(1e-12)
    precision = (1 / own).where(se.isfinite(), 0.0)
    rows = precision.sum(1).topk(min(MOST_SHARED, len(whole))).indices
    rows = rows[precision[rows].any(1)]
    if len(rows) < FEWEST_SHARED:
        return None
    values, order = whole[rows].sort(0)
    weight = precision[rows].gather(0, order).cumsum(0)
    middle = (weight < weight[-1] / 2).sum(0).clamp_max(len(rows) - 1)
    median = values.gather(0, middle[None])[0]
    of_median = torch.pi / 2 / weight[-1].clamp_min(1e-12)  # of Normals
    return median, (of_median + of_control.square()).sqrt()
