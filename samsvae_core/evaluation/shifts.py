"""Observed and predicted shifts of expression, by condition.

Observed shifts are taken within strata (`evaluation.strata`), as shares p of pooled transcripts:
log2(1 + 1e4 sum_s w_s p_ts) - log2(1 + 1e4 sum_s w_s p_cs), with w_s the weight of a stratum and c
for control. Where a stratum multiplies shares this is free of it, and unlike the mean of
differences per stratum it takes no log of a handful of cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.bundle.bundle import Reference
from samsvae_core.data.cells import CellData, DataError
from samsvae_core.evaluation.level_errors import (
    CellVariance,
    Part,
    by_condition,
    cell_variance,
    sums_of,
    weighted_level,
)
from samsvae_core.evaluation.strata import FEWEST_CELLS, by_stratum, matching
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import lifted_mean
from samsvae_core.models.samsvae import SAMSVAE

N_REFERENCE = 128  # control cells from which predictions start
DRAW_VALUES = 2**17  # least reference cells x genes at which each posterior draw is decoded
STATE_VALUES_AT_ONCE = 2**21  # shifts x reference cells x genes held while levels are taken


class Shifts(NamedTuple):
    """Observed shifts of conditions and their standard errors, conditions x genes."""

    shift: pd.DataFrame
    se: pd.DataFrame


class Measured(NamedTuple):
    """A condition beside the control cells that are matched to it; levels and errors by gene."""

    condition: str
    n: int  # cells used: those in strata with control cells
    level: Float[np.ndarray, " G"]
    se: Float[np.ndarray, " G"]
    control_level: Float[np.ndarray, " G"]
    control_se: Float[np.ndarray, " G"]


def variance_of(data: CellData, kept: np.ndarray | None = None) -> CellVariance:
    """Return how much cells vary within conditions and strata, per gene.

    It is that of the cells at `kept`, or of all. Its strata are numbered as in `data`.
    """
    strata = None if data.covariates is None else data.strata
    return cell_variance(data.counts, data.library, data.conditions, data.is_counts, kept, strata)


def measured(
    data: CellData, variance: CellVariance, kept: np.ndarray | None = None, fewest: int = 1
) -> Iterator[Measured]:
    """Yield each condition but control beside its matched controls, by name.

    Those compared by fewer than `fewest` cells or controls are left out. The cells are those at
    `kept`, or all; `variance` is that of cells of `data`.
    """
    kept = np.arange(len(data.cells)) if kept is None else kept
    strata = data.strata
    match = matching(data.conditions[kept], strata[kept], data.control)
    members = {name: kept[rows] for name, rows in by_condition(data.conditions[kept])}

    def parts(name: str) -> dict[int, Part]:
        return {
            number: Part(
                sums_of(data.counts, data.library, rows), 1.0, variance.factors.get(number, 1.0)
            )
            for number, rows in by_stratum(strata, members.get(name, np.arange(0)))
        }

    controls = parts(data.control)
    for row in np.flatnonzero(match.enough(fewest)):
        name = str(match.conditions[row])
        weight = dict(zip(match.strata.tolist(), match.weight[row].tolist(), strict=True))
        arms = matched(parts(name), controls, weight)
        yield Measured(
            name,
            int(match.used[row]),
            *weighted_level(arms[0], variance),
            *weighted_level(arms[1], variance),
        )


def matched(
    own: dict[int, Part], controls: dict[int, Part], weight: dict[int, float]
) -> tuple[list[Part], list[Part]]:
    """Return the parts of a condition and of control in the same strata, with their weights.

    Strata in which all cells of either are empty tell nothing, unless there are no others.
    """
    shared = [number for number in own if weight[number] > 0]
    full = [s for s in shared if own[s].cells.library > 0 < controls[s].cells.library] or shared[:1]
    total = sum(weight[s] for s in full)
    first, second = (
        [arm[s]._replace(weight=weight[s] / total) for s in full] for arm in (own, controls)
    )
    return first, second


def observed_shifts(
    data: CellData, variance: CellVariance, kept: np.ndarray | None = None
) -> Shifts:
    """Return the shifts of conditions with enough cells; no rows if there are too few controls.

    The cells are those at `kept`, or all; `variance` is that of cells of `data`.
    """
    found = list(measured(data, variance, kept, FEWEST_CELLS))
    shift = [each.level - each.control_level for each in found]
    se = [np.hypot(each.se, each.control_se) for each in found]
    index = pd.Index([each.condition for each in found], dtype=str)
    tables = (
        pd.DataFrame(rows, index=index, columns=data.genes, dtype=float) for rows in (shift, se)
    )
    return Shifts(*tables)


@torch.inference_mode()
def reference_cells(
    model: SAMSVAE, data: CellData, parts: np.ndarray, n_cells: int = N_REFERENCE
) -> Reference:
    """Return the posterior basal states of a fixed sample of control training cells.

    Raises DataError if there are no such cells.
    """
    controls = np.flatnonzero((data.conditions == data.control) & (parts == "train"))
    if len(controls) == 0:
        raise DataError("No control cell is among the training cells; predictions start from them.")
    chosen = np.random.default_rng(0).permutation(controls)[:n_cells]
    cells = Cells(data.subset(np.sort(chosen)), model.device)
    batch = cells.batch(torch.arange(len(cells), device=model.device))
    nowhere = torch.zeros(1, len(cells), model.n_shift, device=model.device)
    q = model.encode(batch.x, nowhere, levels=batch.levels)
    return Reference(q.loc[0].clone(), q.scale[0].clone(), batch.library[:, 0].clone())


class PredictedShifts(NamedTuple):
    """Predicted shifts of rows of dosages against no perturbation."""

    shift: Float[np.ndarray, "A S G"]  # under each posterior draw
    through_mechanisms: Float[np.ndarray, "A G"]  # mean over draws, without direct effects


@torch.inference_mode()
def predicted_shifts(
    model: SAMSVAE,
    reference: Reference,
    D: Float[Tensor, "A R"],
    n_samples: int,
    seed: int,
    without: tuple[int, ...] = (),
    direct: bool = True,
) -> PredictedShifts:
    """Return the shift of each row of dosages under each posterior draw.

    All rows share draws and basal states. The same seed gives the same draws for any rows, since
    each perturbation has its own random stream, and only those given are drawn. Mechanisms in
    `without` are removed.

    With many genes, not every draw is decoded at every reference cell. The level at the mean latent
    shift of the draws is taken over all cells, and each draw's distance from it over one of several
    equal parts of them, in turn (over all cells, so exactly, if genes x cells are below 2
    DRAW_VALUES). On a simulated model of 5,000 genes, four parts of 32 cells change means by 0.8 %
    of the interval's width and its ends by 4 % (medians); another 64 draws change them by 4 and 12
    %. Intervals come out 1 % wider.

    Parameters
    ----------
    model
        A trained model.
    reference
        The basal states to start from.
    D
        Dosages, one row per arm; those of contexts too (`SAMSVAE.given`), else their mean is meant.
    n_samples, seed
        Number and seed of the posterior draws.
    without
        Mechanisms removed from the latent shifts.
    direct
        Whether direct effects are included.
    """
    moves = drawn_moves(model, D, n_samples, seed)  # (A, S, C)
    moves[..., list(without)] = 0
    offset = drawn_offsets(model, D, n_samples, seed) if direct else None  # (A, S, G)
    noise = torch.randn(reference.loc.shape, generator=stream(model, seed, 0), device=model.device)
    z_basal = reference.loc + reference.scale * noise  # (R, K)
    parts = z_basal.tensor_split(max(1, len(z_basal) * model.config.n_genes // DRAW_VALUES))
    middle = moves.mean(1)
    lift = None if offset is None else offset.mean(1)
    start = mean_level(model, z_basal, moves.new_zeros(model.n_shift))[0]
    whole, through = mean_level(model, z_basal, middle, lift)
    whole, through = whole - start, through - start  # (A, G)
    shift = moves.new_zeros(*moves.shape[:2], model.config.n_genes)  # stays 0 if nothing moves
    along = torch.zeros_like(shift)  # the same, without direct effects
    for place, part in enumerate(parts):
        near, near_through = mean_level(model, part, middle, lift)
        moved = moves.any(-1) if offset is None else moves.any(-1) | offset.any(-1)
        arm, draw = moved[:, place :: len(parts)].nonzero(as_tuple=True)
        draw = draw * len(parts) + place
        given = None if offset is None else offset[arm, draw]
        far, far_through = mean_level(model, part, moves[arm, draw], given)
        shift[arm, draw] = far.sub_(near[arm]).add_(whole[arm])
        along[arm, draw] = far_through - near_through[arm] + through[arm]
    # doubles: composed shifts are compared with sums of single ones to many digits
    return PredictedShifts(shift.double().cpu().numpy(), along.double().mean(1).cpu().numpy())


def drawn_moves(
    model: SAMSVAE, D: Float[Tensor, "A R"], n_samples: int, seed: int
) -> Float[Tensor, "A S C"]:
    """Return the latent shift of each row of dosages under each posterior draw."""
    D = model.given(D)
    moves = D.new_zeros(len(D), n_samples, model.n_shift)
    for t in D.any(0).nonzero()[:, 0].tolist():
        random, n = stream(model, seed, t + 1), model.config.n_perturbations
        if t < n or model.contexts is None:
            drawn = model.sample_latent_shift(t, n_samples, random)
        else:
            drawn = model.contexts.draw(n_samples, random, row=t - n)
        moves += D[:, t, None, None] * drawn
    return moves


def drawn_offsets(
    model: SAMSVAE, D: Float[Tensor, "A R"], n_samples: int, seed: int
) -> Float[Tensor, "A S G"] | None:
    """Return what direct effects add to the logits under each draw; None without any."""
    if model.direct is None:
        return None
    given = model.direct.rows_given(D[:, : model.config.n_perturbations])
    offset = D.new_zeros(len(D), n_samples, model.config.n_genes)
    for row in given.any(0).nonzero()[:, 0].tolist():
        drawn = model.direct.draw_row(row, n_samples, stream(model, seed, row + 1, 1))
        offset += given[:, row, None, None] * drawn
    return offset


def stream(model: SAMSVAE, seed: int, *which: int) -> torch.Generator:
    """Return a random generator of its own, apart from the one that threads share."""
    start = int(np.random.SeedSequence([seed, *which]).generate_state(1)[0])
    return torch.Generator(model.device).manual_seed(start)


def mean_level(
    model: SAMSVAE,
    z_basal: Float[Tensor, "R K"],
    shift: Float[Tensor, "*B C"],
    offset: Float[Tensor, "*B G"] | None = None,
) -> tuple[Float[Tensor, "*B G"], Float[Tensor, "*B G"]]:
    """Return levels of mean proportions or values over reference cells.

    The first are with direct effects (`offset`), the second without.
    """
    size = max(1, STATE_VALUES_AT_ONCE // (len(z_basal) * model.config.n_genes))
    flat = shift.reshape(-1, model.n_shift)
    lifts = None if offset is None else offset.reshape(-1, model.config.n_genes)
    found: list[list[Tensor]] = [[], []]
    kind = model.has_shares, model.config.other_genes
    for i in range(0, max(1, len(flat)), size):
        rows = slice(i, i + size)
        # where nothing is moved, all draws start from the same states
        still = lifts is not None and not flat[rows].any()
        means = model.decoded_means(z_basal, flat[rows][:1] if still else flat[rows])
        plain = means.mean(-2)
        found[1].append(plain.expand(len(flat[rows]), -1))
        found[0].append(found[1][-1] if lifts is None else lifted_mean(means, lifts[rows], *kind))
    shape = *shift.shape[:-1], model.config.n_genes
    with_direct, without = (model.level(torch.cat(each)).view(shape) for each in found)
    return with_direct, without
