"""Posterior draws of shifts, kept for a while, and the basal states they start from."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from samsvae_core.bundle.bundle import ANEW, Bundle, Reference
from samsvae_core.data.covariates import UNKNOWN
from samsvae_core.evaluation.calibration import INTERVAL
from samsvae_core.evaluation.shifts import N_REFERENCE, predicted_shifts
from samsvae_core.system.messages import nearest, some

MOST_KEPT = 32 * 2**20  # bytes of draws kept for a bundle: 25 arms of 5,000 genes and 64 draws
_KEPT: WeakKeyDictionary[Bundle, OrderedDict[tuple[Any, ...], np.ndarray]] = WeakKeyDictionary()
_KEEPING = threading.Lock()


def drawn_arms(
    bundle: Bundle,
    arms: Sequence[Mapping[str, float]],
    without: tuple[int, ...],
    n_samples: int,
    seed: int,
    cells: tuple[str, ...] | None = None,
    direct: bool = True,
    level: str | None = None,
) -> tuple[Float[np.ndarray, "A S G"], Float[np.ndarray, "A G"]]:
    """Return the shift of each arm under each posterior draw, and the mean of that by mechanisms.

    With `level`, effects are those at that level of the bundle's context, else those of the mean
    cell. Draws and basal states are common to all arms. The basal states are the reference control
    cells or the named `cells`. Each arm is drawn by itself, so its numbers do not depend on the
    other arms. Recent arms are cached: when one of two dosages changes, the other single need not
    be decoded again.
    """
    with _KEEPING:
        kept = _KEPT.setdefault(bundle, OrderedDict())
    found = []
    for arm in arms:
        given = tuple(sorted((name, dose) for name, dose in arm.items() if dose != 0))
        key = given, without, n_samples, seed, cells, direct, level
        with _KEEPING:
            draws = kept.get(key)
            if draws is not None:
                kept.move_to_end(key)
        if draws is None:
            D = torch.zeros(1, len(bundle.perturbations))
            for name, dose in given:
                D[0, bundle.perturbations.index.get_loc(name)] = dose
            if level is not None:
                D = bundle.model.given(D, levels_at(bundle, level))
            start = starting_states(bundle, cells)[0]
            drawn = predicted_shifts(bundle.model, start, D, n_samples, seed, without, direct)
            rows = np.concatenate([drawn.shift[0], drawn.through_mechanisms])
            draws = rows.astype(np.float32)  # the decoder's own precision
            with _KEEPING:
                if draws.nbytes <= MOST_KEPT:
                    kept[key] = draws
                while sum(each.nbytes for each in kept.values()) > MOST_KEPT:
                    kept.popitem(last=False)
        found.append(draws)
    # doubles: composed shifts are compared with sums of single ones to many digits
    whole = np.stack(found).astype(float)
    return whole[:, :-1], whole[:, -1]


def levels_at(bundle: Bundle, level: str) -> Int[Tensor, "1 V"]:
    """Return the codes of a cell at this level of the context, the others unknown.

    Raises ValueError for a bundle without contexts, and for an unknown level.
    """
    if bundle.context is None:
        raise ValueError(
            f"{bundle.name} has the same effects everywhere: it was trained without --context. "
            "Leave the level out."
        )
    names, known = list(bundle.levels), bundle.levels[bundle.context]
    if level not in known:
        raise ValueError(
            f"{level!r} is no level of {bundle.context}, the context of {bundle.name}. "
            + nearest(level, known)
        )
    codes = torch.full((1, len(names)), UNKNOWN)
    codes[0, names.index(bundle.context)] = known.index(level)
    return codes


# Basal states to start from


def cells_of(bundle: Bundle, condition: str) -> list[str]:
    """Return the cells of the map with this condition; raises ValueError if there are none."""
    cells = bundle.cells
    found = cells.loc[cells["condition"] == condition, "cell"].tolist()
    if not found:
        raise ValueError(
            f"No cell on the map of {bundle.name} has the condition {condition!r}. "
            + nearest(condition, cells["condition"].unique())
        )
    return found


def knows_states(bundle: Bundle) -> bool:
    """Return whether the bundle holds the whole basal states of its cells."""
    held = {f"basal M{k}" for k in range(bundle.model.config.n_latent)}
    return held <= set(bundle.cells)


def starting_states(
    bundle: Bundle, cells: Sequence[str] | None
) -> tuple[Reference, tuple[str, ...] | None]:
    """Return the basal states a prediction starts from, and the names of their cells.

    With `cells` None, these are the reference control cells, and the names are None. Of named cells
    at most N_REFERENCE are used, drawn evenly with a fixed seed, in the order of the map, with a
    scale of 0 and a library of NaN, which the bundle does not keep.
    """
    if cells is None:
        return bundle.reference, None
    wanted = set(cells)
    if not wanted:
        raise ValueError(
            "No cells to start from are named. Name cells of the map, or None to start from the "
            "reference control cells."
        )
    table, n_latent = bundle.cells, bundle.model.config.n_latent
    columns = [f"basal M{k}" for k in range(n_latent)]
    held = [column for column in columns if column in table]
    if not held:
        raise ValueError(
            f"{bundle.name} does not hold the basal states of its cells: it was made before they "
            f"were kept. Start from the reference control cells. {ANEW}"
        )
    if len(held) < n_latent:
        raise ValueError(
            f"{bundle.name} holds {len(held)} of the {n_latent} latent dimensions of its cells, "
            "and starting from them needs all. Start from the reference control cells."
        )
    rows = np.flatnonzero(table["cell"].isin(wanted))
    if len(rows) < len(wanted):
        absent = sorted(wanted.difference(table["cell"]))
        raise ValueError(
            f"{len(absent):,} of the cells to start from are not among the {len(table):,} on the "
            f"map of {bundle.name}: {some(absent)}. Name cells as its table of cells does, such as "
            f"{some(table['cell'].head(2))}."
        )
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:N_REFERENCE])
    chosen = table.iloc[rows]
    loc = torch.from_numpy(chosen[columns].to_numpy(np.float32)).to(bundle.reference.loc)
    library = loc.new_full((len(loc),), torch.nan)
    return Reference(loc, torch.zeros_like(loc), library), tuple(chosen["cell"])


def summary(draws: Float[np.ndarray, "S G"]) -> dict[str, Float[np.ndarray, " G"]]:
    """Return mean, 90 % interval and probability of sign over posterior draws."""
    mean = draws.mean(0)
    lower, upper = np.quantile(draws, INTERVAL, axis=0)
    same_sign = (np.sign(draws) == np.sign(mean)).mean(0)
    return {
        "shift": mean,
        "lower": np.minimum(lower, mean),
        "upper": np.maximum(upper, mean),
        "probability_of_sign": np.where(mean == 0, 0.5, same_sign),
    }
