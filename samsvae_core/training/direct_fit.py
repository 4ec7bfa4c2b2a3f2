"""The posterior of direct effects, found between training steps in closed form.

What the cells of a perturbation hold of a gene is compared, every few steps, with what the model
expects without knowing the cells: at basal states from the prior, shifted by the mechanisms and by
the direct effects so far. The logarithm of observed over expected, beside that of control cells and
with its standard error, is then shrunk (`models.shrinkage`). So direct effects are what mechanisms
leave, no gradient of them is ever taken, and a training step costs one addition more.

Own targets, and what all perturbations share, are found from the first steps on, so that no
mechanism is made of them. Effects on all other genes are found when training has ended, so that
they cannot empty a mask: masks, embeddings and networks are what they would be without.

Axes: C conditions (different dosages, or levels of covariates), T perturbations, P = T + 1 rows
(the last is `common`), R of these rows, G genes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import ACTIVE, DirectEffects, Posterior, lifted
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.models.shrinkage import activity, column_background, shrink
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.direct_sums import (
    HALF,
    MOST_TABLE,
    add,
    observe,
    relative_variance,
    rest_of,
    weights,
)

N_SWEEPS = 8  # while training
N_LAST = 6  # after it, at each caution
CAUTIONS = (1.0, 1.4, 2.0, math.inf)  # factors of standard errors; inf: no genes but own targets
CLEAR = 2.0  # standard errors by which a bound is clearly worse
FIRST = (64, 32)  # and at these parts of the steps before, for what all perturbations share
MOST_SHARE = 0.1  # of the states that steps decode, at most decoded again by sweeps
MOST_STATES = 512  # basal states at which a condition is decoded
VALUES_AT_ONCE = 2**21  # states x genes
ROWS_AT_ONCE = 2**22  # values of rows x genes held in double precision
TINY = 1e-9  # least sum of squared dosages that tells anything
COUNTED = 20  # counts, seen and expected, from which a ratio says where a row lies
FEWEST_SHARED = 8  # perturbations from which it can be told what all of them share
MOST_SHARED = 1000  # of them, those with most cells, from which it is told
PRICE = 6.0  # nats asked of an entry beyond its width: prior odds of one in four hundred
MOST_OF_SHARE = 0.99  # share of the transcripts that a gene is taken to have at most
TABLES = 8  # P x G: four of `Observed`, three of `Expected`, and the means that training reads
OF_ENTRIES = 8  # as much as these hold entries (28 bytes each, of half the table) and checkpoints


def memory_needed(
    n_perturbations: int, n_genes: int, n_conditions: int, sparse: bool = True
) -> int:
    """Return about how many bytes direct effects take at the peak of a training.

    Tables of perturbations x genes are needed for own targets too, since what all perturbations
    share is of all genes. With `sparse`, entries of all genes are kept beside them.
    """
    tables = TABLES + (OF_ENTRIES if sparse else 0)
    depths = n_conditions * n_genes
    values = tables * (n_perturbations + 1) * n_genes + (depths if depths <= MOST_TABLE else 0)
    return 4 * values


class Expected(NamedTuple):
    """What the model expects of `Observed.total` and `.base`."""

    total: Float[Tensor, "P G"]
    square: Float[Tensor, "P G"]  # the same with squared dosages
    overlap: Float[Tensor, "P G"]  # the same with dosages times the sum of all of the cell's
    base: Float[Tensor, " G"]


class Missed(NamedTuple):
    """What cells hold of some rows; in natural-log units or those of the data, at dosage 1."""

    whole: Float[Tensor, "R G"]  # effect, with what all perturbations share
    se: Float[Tensor, "R G"]
    scale: Float[Tensor, "R G"]  # of it, a shared effect of 1: 1 / dosage
    damp: Float[Tensor, "R G"]  # share of the way to go


class DirectFit:
    """The sweeps of one training; does nothing for a model without direct effects."""

    def __init__(self, model: SAMSVAE, cells: Cells, config: TrainConfig) -> None:
        self.model, self.direct = model, model.direct
        self.steps: set[int] = set()
        if self.direct is None:
            return
        # of a dense start, from which masks are yet to be found, all other genes can wait
        settles = math.isfinite(config.anneal)
        self.everything = settles and model.config.direct_effects == "sparse"
        self.is_counts = model.config.likelihood == "counts"
        by_panel = self.is_counts and not model.config.other_genes
        self.observed = observe(self.direct, cells, self.is_counts, by_panel)
        self.caution = 1.0  # factor of the standard errors
        self.unit: Tensor | float = 1.0  # of effects, as `shrinkage` expects them
        if not self.is_counts:
            self.unit = self.observed.spread.sqrt().clamp_min(1e-9)
        self.direct.most = self.observed.conditions.most
        self.direct.trained = self.direct.table(self.direct.mean)
        self.plan(config)

    def plan(self, config: TrainConfig) -> None:
        """Choose when to sweep, and at how many basal states."""
        n_conditions = int(self.observed.conditions.dosage.max()) + 1
        budget = MOST_SHARE * config.steps * config.batch_size / n_conditions
        n_sweeps = N_SWEEPS + N_LAST
        self.n_states = int(min(MOST_STATES, max(1, budget // n_sweeps)))
        n = max(2, round(min(1.0, budget / n_sweeps) * N_SWEEPS))
        self.steps = {config.steps * (i + 1) // (n + 1) for i in range(n)}
        self.first_own = min(self.steps)
        self.steps |= {config.steps // k for k in FIRST if config.steps >= k}

    def after(self, step: int) -> None:
        """Sweep, if this step is one after which to."""
        if self.direct is not None and step in self.steps:
            self.sweep(self.direct, step, step >= self.first_own, False)

    def finish(self, step: int, bounds: Callable[[], Float[Tensor, " N"]]) -> None:
        """Find the effects on all genes, and let the model draw its effects from then on.

        How far standard errors are trusted is decided by `bounds`, those of the validation cells,
        in nats: molecules that were counted more than once, say, spread more than any formula
        knows. The least caution is taken of those that are not clearly worse than the best one.
        """
        if self.direct is None:
            return
        start = self.direct.row.clone(), self.direct.gene.clone(), self.direct.mean.clone()
        cautions = CAUTIONS if self.everything else CAUTIONS[:1]
        reached = {}
        for caution in reversed(cautions):  # the least last, which is the usual choice
            self.find(self.direct, step, caution, *start)
            reached[caution] = bounds().double()
        best = max(reached.values(), key=torch.mean)
        lost = {caution: best - reached[caution] for caution in cautions}
        chosen = next(c for c, by in lost.items() if not by.mean() > CLEAR * standard_error(by))
        if chosen != cautions[0]:
            self.find(self.direct, step, chosen, *start)

    def find(self, direct: DirectEffects, step: int, caution: float, *start: Tensor) -> None:
        """Find the effects on all genes with this caution, from these (rows, genes and means)."""
        row, gene, mean = start
        everything = self.everything and math.isfinite(caution)
        self.caution = caution if everything else 1.0
        direct.trained = torch.zeros(direct.shape, device=mean.device)
        direct.trained[row, gene] = mean
        for i in range(N_LAST):
            self.sweep(direct, step + i, True, everything)
        direct.trained = None

    def sweep(self, direct: DirectEffects, seed: int, with_own: bool, everything: bool) -> None:
        """Find the posterior anew, and step towards it; random numbers are of its own."""
        trained = direct.trained
        assert trained is not None
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(seed)
            direct.keep(self.posterior(direct, trained, with_own, everything), self.unit)
            trained.zero_()  # in place, as a recorded step reads it
            trained[direct.row, direct.gene] = direct.mean

    def posterior(
        self, direct: DirectEffects, trained: Float[Tensor, "P G"], with_own: bool, everything: bool
    ) -> Iterator[Posterior]:
        """Yield the posterior of all rows in blocks, that of what all share last.

        Own targets have a prior of their own, that of their family: they are expected to move. They
        are left at zero unless `with_own` is asked for, and all others unless `everything` is.
        """
        expected = self.expected(direct)
        shared = self.shared(expected, trained)
        n = direct.n_perturbations
        blocks = torch.arange(n, device=trained.device).split(
            max(1, ROWS_AT_ONCE // direct.n_genes)
        )
        own = self.of_own(direct, expected, trained, shared.mean[0]) if with_own else None
        typical = self.missed(expected, trained, self.typical()) if everything else None
        if typical is not None:
            alone = (typical.whole - typical.scale * shared.mean) / self.unit
            of_column = column_background(alone, typical.se / self.unit)
        for rows in blocks:
            missed = self.missed(expected, trained, rows)
            alone = (missed.whole - missed.scale * shared.mean) / self.unit
            mean, sd, probability, kl = torch.zeros(4, *alone.shape, device=alone.device)
            if everything:
                se = missed.se / self.unit
                for table, part in zip((mean, sd, kl), shrunk(alone, se), strict=True):
                    table.copy_(part)
                probability = activity(alone, se, PRICE, of_column)
            if own is not None:
                here = (direct.own[rows] >= 0).nonzero()[:, 0]
                genes = direct.own[rows[here]]
                for table, part in zip((mean, sd, probability, kl), own, strict=True):
                    table[here, genes] = part[rows[here]]
            mean, sd = mean * self.unit, sd * self.unit
            before = trained[rows]
            yield Posterior(before + missed.damp * (mean - before), sd, probability, kl)
        yield shared

    def of_own(
        self,
        direct: DirectEffects,
        expected: Expected,
        trained: Float[Tensor, "P G"],
        shared: Float[Tensor, " G"],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return mean, sd, probability and KL of own targets, one per perturbation."""
        unit = torch.as_tensor(self.unit, device=trained.device).expand(direct.n_genes)
        estimate = torch.zeros(direct.n_perturbations, device=trained.device)
        se = torch.full_like(estimate, torch.inf)
        targeted = (direct.own >= 0).nonzero()[:, 0]
        for rows in targeted.split(max(1, ROWS_AT_ONCE // direct.n_genes)):
            missed, at = self.missed(expected, trained, rows), direct.own[rows, None]
            alone = missed.whole - missed.scale * shared
            estimate[rows] = (alone / unit).gather(1, at)[:, 0]
            se[rows] = (missed.se / unit).gather(1, at)[:, 0]
        found = shrink(estimate[None], se[None])
        probability = activity(estimate[:, None], se[:, None], 0.0)[:, 0]
        mean, sd, kl = (part[0].float() for part in (found.mean, found.sd, found.kl))
        return mean, sd, probability, kl

    def typical(self) -> Int[Tensor, " R"]:
        """Return the perturbations with most cells, at most MOST_SHARED."""
        n = self.observed.conditions.n_cells[:-1]
        rows = n.topk(min(MOST_SHARED, len(n))).indices.sort().values
        return rows[n[rows] > 0]

    def shared(self, expected: Expected, trained: Float[Tensor, "P G"]) -> Posterior:
        """Return the posterior of what all perturbations share, one row.

        It is kept only where it stands out, since control's sampling error is shared too.
        """
        seen, rows = self.observed, self.typical()
        nothing = torch.zeros(1, trained.shape[1], device=trained.device)
        # without controls nothing tells what all share from what the decoder says of all
        if len(rows) < FEWEST_SHARED or seen.conditions.control.all():
            return Posterior(*[nothing] * 4)
        missed = self.missed(expected, trained, rows)
        of_control = self.control_error() * self.caution
        estimate, error = common(missed.whole / missed.scale, missed.se / missed.scale, of_control)
        estimate, error = (estimate / self.unit)[None], (error / self.unit)[None]
        probability = activity(estimate, error, PRICE)
        probability = probability.where(probability > ACTIVE, 0.0)
        mean, sd, kl = (part * (probability > 0) for part in shrunk(estimate, error))
        return Posterior(mean * self.unit, sd * self.unit, probability, kl)

    def missed(
        self, expected: Expected, trained: Float[Tensor, "P G"], rows: Int[Tensor, " R"]
    ) -> Missed:
        """Compare what cells hold of some rows with what is expected.

        Each entry is changed as if the others stayed. Where cells have several perturbations, the
        change is damped by the share of the row's cells in the sum over all their perturbations, so
        that together they do not overshoot.
        """
        seen = self.observed
        total, square = expected.total[rows], expected.square[rows]
        mean, variance = seen.mean[rows], seen.variance[rows]
        if self.is_counts:
            ratio = ((seen.total[rows] + HALF) / (total + HALF)).log()
            scale = (total / square).where(square > TINY, 1.0)
            change, se = ratio * scale, self.errors(total, rows) * scale
        else:
            of_control = (seen.base - expected.base) / seen.base_mean
            scale = (mean / square).where(square > TINY, 1.0)
            change = (seen.total[rows] - total - of_control * mean) / square.clamp_min(TINY)
            error = (variance + (mean * self.control_error()).square()).sqrt()
            se = error / square.clamp_min(TINY)
        se[seen.conditions.n_cells[rows] == 0] = torch.inf
        whole = trained[rows] + change + scale * trained[-1]
        damp = (square / expected.overlap[rows].clamp_min(TINY)).clamp_max(1)
        whole = whole - self.gauge(whole, mean + seen.total[rows])
        return Missed(whole, se * self.caution, scale, damp)

    def control_error(self) -> Float[Tensor, " G"]:
        """Return the part of the standard errors that is control's, the same in all rows."""
        seen = self.observed
        if not self.is_counts:
            return seen.base_variance.sqrt() / seen.base_mean
        base = relative_variance(
            seen.base, seen.base, seen.base_mean, seen.base_single, seen.base_variance
        )
        return base.sqrt() / self.of_logit()

    def of_logit(self) -> Float[Tensor, " G"]:
        """Return how a gene's share changes with its logit, of what it changes alone: 1 - share."""
        return 1 - self.observed.share.clamp_max(MOST_OF_SHARE)

    def errors(self, total: Float[Tensor, "R G"], rows: Int[Tensor, " R"]) -> Float[Tensor, "R G"]:
        """Return the standard error of the log ratio, at the level between seen and expected."""
        seen = self.observed
        given = (seen.total, seen.mean, seen.single, seen.variance)
        found, mean, single, variance = (table[rows] for table in given)
        own = relative_variance(found, total, mean, single, variance)
        se = (own / self.of_logit().square() + self.control_error().square()).sqrt()
        return se.where(seen.share > 0, torch.inf)

    def gauge(
        self, whole: Float[Tensor, "R G"], counts: Float[Tensor, "R G"]
    ) -> Float[Tensor, "R 1"] | float:
        """Return the constant of each row that a softmax cannot tell: its median.

        Shares do not change if a constant is added to all logits, and so the one is taken that
        leaves most genes without an effect. With all other genes as one outcome, it is known.
        """
        if not self.is_counts or self.model.config.other_genes:
            return 0.0
        known = whole.where(counts > COUNTED, torch.nan)
        return known.nanmedian(1, keepdim=True).values.nan_to_num(0)

    def expected(self, direct: DirectEffects) -> Expected:
        """Return what the model expects of the cells, without knowing their states."""
        model, seen = self.model, self.observed
        z = torch.randn(self.n_states, model.config.n_latent, device=model.device)
        total, square = torch.zeros(2, *seen.total.shape, device=model.device)
        several = seen.conditions.most > 2  # else each cell has one perturbation
        overlap = torch.zeros_like(total) if several else square
        base = torch.zeros_like(seen.base)
        kind = model.has_shares, model.config.other_genes
        indices = torch.arange(len(seen.conditions.first), device=model.device)
        for index in indices.split(max(1, VALUES_AT_ONCE // (self.n_states * direct.n_genes))):
            D, levels = seen.conditions.dosages(index), seen.conditions.levels(index)
            given = model.given(D, levels)
            alike = seen.conditions.dosage if model.config.context is None else indices
            _, which = alike[index].unique_consecutive(return_inverse=True)
            once = given[torch.cat([which.new_ones(1), which.diff()]) > 0]  # for several levels
            decoded = model.decoded_means(z, model.mean_shift(once))
            offset, of_levels = direct.mean_offset(D), model.of_levels(levels)
            offset = offset if of_levels is None else offset + of_levels
            mean = lifted(decoded if len(once) == len(D) else decoded[which], offset, *kind)
            if seen.dominant.any():
                mean = mean.where(seen.dominant, mean / rest_of(mean, seen.dominant))
            mean = mean.mean(-2) * self.depths(index)
            given = direct.rows_given(D)
            weight = mean if self.is_counts else self.depths(index)
            add(total, given, mean)
            add(square, given.square(), weight)
            if several:
                add(overlap, given * D.sum(1, keepdim=True), weight)
            base += mean[seen.conditions.control[index]].sum(0)
        if self.is_counts:
            level = (seen.base + HALF) / (base + HALF)  # what is missed of control
            for table in (total, square, overlap) if several else (total, square):
                table *= level
        return Expected(total, square, overlap, base)

    def depths(self, index: Int[Tensor, " c"]) -> Float[Tensor, "c G"]:
        """Return the weighted libraries of some conditions."""
        seen = self.observed
        if seen.depth is not None:
            return seen.depth[index]
        library, cells = (t[index, None] for t in (seen.conditions.library, seen.conditions.cells))
        if not self.is_counts:
            return library.expand(-1, len(seen.share))
        return library * weights(library / cells, seen.spread, seen.share)


def standard_error(of_cells: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the standard error of a mean over cells; NaN for a single one."""
    return of_cells.std() / math.sqrt(len(of_cells))


def shrunk(
    estimate: Float[Tensor, "R G"], se: Float[Tensor, "R G"]
) -> tuple[Float[Tensor, "R G"], Float[Tensor, "R G"], Float[Tensor, "R G"]]:
    """Return mean, sd and KL of `shrink`, in single precision."""
    found = shrink(estimate, se)
    return found.mean.float(), found.sd.float(), found.kl.float()


def common(
    whole: Float[Tensor, "R G"], se: Float[Tensor, "R G"], of_control: Float[Tensor, " G"]
) -> tuple[Float[Tensor, " G"], Float[Tensor, " G"]]:
    """Return what most perturbations share, the weighted median, with its standard error.

    A median is not moved by the effects of a minority, which are no part of it.
    """
    own = (se.square() - of_control.square()).clamp_min(1e-12)
    precision = (1 / own).where(se.isfinite(), 0.0)
    values, order = whole.sort(0)
    weight = precision.gather(0, order).cumsum(0)
    middle = (weight < weight[-1] / 2).sum(0).clamp_max(len(whole) - 1)
    median = values.gather(0, middle[None])[0]
    of_median = torch.pi / 2 / weight[-1].clamp_min(1e-12)  # of Normals
    return median, (of_median + of_control.square()).sqrt()
