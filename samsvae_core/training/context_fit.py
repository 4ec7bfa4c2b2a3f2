"""The differences of contexts, found after training in closed form.

Networks and masks are held. For each perturbation, level and mechanism in use, the bound of the
training cells is taken with the effect moved by some steps, and a parabola through the best of them
says how far the level's own effect lies from the common one, and how sure that is. A level gets a
difference if that is worth its price; the common effect is what the other levels say:

    gain(S) = - sum over levels c outside S of h_c (effect_c - common)^2 / 2 - sum in S of price_c

with h_c the curvature in nats, and S grown while that pays. So masks are what they would be without
contexts, and no mask has to be learned against those of its differences.

Axes: T perturbations, L levels, K mechanisms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from samsvae_core.models.bounds import bounds_at
from samsvae_core.models.contexts import NEVER, Differences
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ACTIVE, MIN_EVIDENCE, SAMSVAE

DEARER = 1.5  # price of a difference per cell of its level, over that of a mask entry
UNPRICED = 0.16  # nats per cell where masks have no price
FEWEST_CELLS = 5  # of a perturbation at a level, from which its effect is asked
CELLS = 25, 400  # of these, at which it is, at least and at most
MOST_DECODED = 5_000_000  # cells decoded, as in two thousand steps
MOST_ENTRIES = 10_000  # beyond, levels are asked only for mechanisms that a perturbation uses
ROUNDS = 2  # the second starts from the differences of the first
FAR = torch.arange(-4.0, 5.0)  # steps tried, in standard deviations of the basal state
NEAR = torch.tensor([-0.5, -0.25, 0.0, 0.25, 0.5])  # and around the best of them
NOTHING = 0.3  # size below which a common effect is none, and its mask entry wasted
CELLS_AT_ONCE = 4096
VALUES_AT_ONCE = 2**22  # steps x cells x genes


class Found(NamedTuple):
    """How one effect differs between levels."""

    common: float  # change of the common effect
    wider: float  # factor of its standard deviation
    distance: Float[Tensor, " L"]  # of each level from the common effect
    gain: Float[Tensor, " L"]  # nats by which each level asks for its difference
    differs: Tensor  # (L,) which levels get one


@torch.inference_mode()
def fit_contexts(model: SAMSVAE, cells: Cells) -> None:
    """Find the differences of a trained model in place; does nothing for one without contexts."""
    contexts, context = model.contexts, model.config.context
    if contexts is None or context is None or cells.levels is None:
        return
    on = model.mask_probability() > ACTIVE
    asked = on.any(0).expand_as(on)
    if int(asked.sum()) * contexts.n_levels > MOST_ENTRIES:
        asked = on
    tries = int(asked.sum()) * contexts.n_levels * ROUNDS * (1 + len(FAR) + len(NEAR))
    groups = cells_of(model, cells, context, int(np.clip(MOST_DECODED // max(1, tries), *CELLS)))
    before = model.embedding_log_scale.clone()
    n, s2 = model.config.n_perturbations, model.config.embedding_scale**2
    for t in range(n):
        at = {c: groups[t, c] for c in range(contexts.n_levels) if (t, c) in groups}
        rows = torch.tensor([c * n + t for c in at], device=model.device)
        price = prices(model, torch.tensor([float(size) for _, size in at.values()]))
        if len(at) < 2:
            continue
        for _ in range(ROUNDS):
            for k in asked[t].nonzero()[:, 0].tolist():
                reached = torch.stack(
                    [level_effect(model, cells, t, k, c * n + t, *at[c]) for c in at]
                ).cpu()
                effect, curvature = reached[:, 0], reached[:, 1]
                found = partition(effect, curvature, price, own(model, t, k), bool(on[t, k]))
                keep(model, contexts, t, k, rows, found, curvature + 1 / s2, price)
                wider = torch.tensor(found.wider if found.differs.any() else 1.0)
                model.embedding_log_scale[t, k] = before[t, k] + wider.log()  # once, not per round


def own(model: SAMSVAE, t: int, k: int) -> float:
    return model.embedding_loc[t, k].item()


def prices(model: SAMSVAE, sizes: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Return what a difference costs at levels with so many cells of a perturbation, in nats."""
    per_cell = model.config.mask_evidence
    per_cell = UNPRICED if per_cell is None else per_cell
    return (DEARER * per_cell * sizes).clamp_min(MIN_EVIDENCE)


def cells_of(
    model: SAMSVAE, cells: Cells, context: int, most: int
) -> dict[tuple[int, int], tuple[Int[Tensor, " N"], int]]:
    """Return, per perturbation and level with enough cells, `most` of these and their number."""
    assert cells.levels is not None
    parts = []
    for index in torch.arange(len(cells), device=cells.device).split(CELLS_AT_ONCE):
        row, perturbation = cells.dosages[index].nonzero(as_tuple=True)
        cell = index[row]
        parts.append(torch.stack([cell, perturbation, cells.levels[cell, context].long()]).cpu())
    cell, perturbation, level = torch.cat(parts, 1)
    n_levels = model.config.levels[context]
    which = torch.where(level >= 0, perturbation * n_levels + level, -1)
    order = torch.randperm(len(which), generator=torch.Generator().manual_seed(0))
    order = order[which[order].argsort(stable=True)]
    groups = {}
    for key, members in zip(*split_by(which[order], cell[order]), strict=True):
        if key >= 0 and len(members) >= FEWEST_CELLS:
            some = members[:most].sort().values.to(cells.device)
            groups[divmod(key, n_levels)] = some, len(members)
    return groups


def split_by(key: Int[Tensor, " N"], values: Tensor) -> tuple[list[int], tuple[Tensor, ...]]:
    """Return the different keys, which are sorted, and the values of each."""
    keys, sizes = key.unique_consecutive(return_counts=True)
    return keys.tolist(), values.split(sizes.tolist())


def level_effect(
    model: SAMSVAE,
    cells: Cells,
    t: int,
    k: int,
    row: int,
    members: Int[Tensor, " N"],
    size: int,
) -> Float[Tensor, " 2"]:
    """Return how far the effect on a mechanism lies from the common one, and the curvature."""
    present = model.contexts.modal()[row, k].item() if model.contexts is not None else 0.0
    coarse = torch.cat([FAR, torch.tensor([-present - own(model, t, k)])])
    best = coarse[gains(model, cells, t, k, coarse, members).argmax()]
    fine = best + NEAR
    gain = gains(model, cells, t, k, fine, members).double() * size / len(members)
    # least squares of a parabola in the distance from the best step
    near = NEAR.double()
    powers = torch.stack([torch.ones_like(near), near, near.square()], 1)
    _, slope, bend = torch.linalg.lstsq(powers, gain[:, None]).solution[:, 0]
    curvature = (-2 * bend).clamp_min(1e-6)
    top = (slope / curvature).clamp(NEAR[0].item(), NEAR[-1].item())
    return torch.stack([present + best + top, curvature])


def gains(
    model: SAMSVAE,
    cells: Cells,
    t: int,
    k: int,
    steps: Float[Tensor, " V"],
    members: Int[Tensor, " N"],
) -> Float[Tensor, " V"]:
    """Return the summed bound of cells when the effect of `t` on mechanism `k` is moved."""
    moves = torch.zeros(len(steps), 1, model.config.n_latent, device=model.device)
    moves[:, 0, k] = steps.to(moves)
    total = torch.zeros(len(steps), device=model.device)
    size = max(1, VALUES_AT_ONCE // (len(steps) * model.config.n_genes))
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        for index in members.split(size):
            batch = cells.batch(index)
            shift = model.modal_shift(model.given(batch.D, batch.levels))
            total += bounds_at(model, batch, shift + moves * batch.D[:, t, None]).sum(1)
    return total.cpu()


def partition(
    effect: Float[Tensor, " L"],
    curvature: Float[Tensor, " L"],
    price: Float[Tensor, " L"],
    now: float,
    active: bool,
) -> Found:
    """Choose the levels that get a difference.

    `effect` is each level's, beside the common effect `now`. If the entry is not `active`, what is
    common is nothing, and all levels may differ; else at least one does not.
    """
    n = len(effect)
    differs = torch.zeros(n, dtype=torch.bool)

    def common(differs: Tensor) -> float:
        h = curvature * ~differs
        return float((h * effect).sum() / h.sum()) if active else 0.0

    def worth(differs: Tensor) -> float:
        x = common(differs)
        lost = (curvature * (effect - x).square())[~differs].sum() / 2 + price[differs].sum()
        wasted = active and bool(differs.any()) and abs(now + x) < NOTHING
        return -float(lost) - wasted * float(price.max())

    while int(differs.sum()) < n - active:
        tried = [differs | (torch.arange(n) == c) for c in range(n) if not differs[c]]
        best = max(tried, key=worth)
        if worth(best) <= worth(differs):
            break
        differs = best
    x = common(differs) if differs.any() else 0.0
    distance = effect - (x if differs.any() else common(differs))
    gain = curvature * distance.square() / 2
    wider = float((curvature.sum() / curvature[~differs].sum()).sqrt()) if active else 1.0
    return Found(x, wider, distance, gain, differs)


def keep(
    model: SAMSVAE,
    contexts: Differences,
    t: int,
    k: int,
    rows: Int[Tensor, " L"],
    found: Found,
    precision: Float[Tensor, " L"],
    price: Float[Tensor, " L"],
) -> None:
    """Store what was found: a difference where levels differ, and the common effect beside it."""
    logit = (found.gain - price).clamp(NEVER, -NEVER)
    # chosen together, so that a level is in or out as `partition` says
    logit = torch.where(found.differs, logit.clamp_min(0.1), logit.clamp_max(-0.1))
    contexts.logit[rows, k] = logit.to(contexts.logit)
    contexts.loc[rows, k] = found.distance.to(contexts.loc)
    contexts.scale[rows, k] = precision.rsqrt().to(contexts.scale)
    if found.differs.any():
        model.embedding_loc[t, k] += found.common
