"""Pairs of perturbations ranked by how far they would move a list of genes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.analysis.draws import drawn_arms, summary
from samsvae_core.analysis.support import checked_dosages, condition_name, support
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.shifts import mean_level

MAX_PAIRS = 50_000
N_SCREEN = 32  # reference cells used in the first screen
PAIRS_AT_ONCE = 64
COLUMNS = ["first", "second", "support", "score", "lower", "upper", "probability_of_sign"]
COLUMNS += ["sum_of_singles", "interaction", "interaction_lower", "interaction_upper"]
Direction = Literal["either", "raise", "lower"]


def rank_pairs(
    bundle: Bundle,
    genes: Sequence[str],
    given: str | None = None,
    unseen_only: bool = True,
    n_best: int = 20,
    n_samples: int = 64,
    seed: int = 0,
    direction: Direction = "either",
    with_inert: bool = False,
) -> pd.DataFrame:
    """Return pairs of perturbations by the size of their predicted mean shift over `genes`.

    Every pair is screened at the posterior mean effects on 32 reference cells; the `n_best` are
    then composed as in `compose` at dosage 1 and ranked, the largest first. `score` is the mean
    shift over genes, with the model's own 90 % interval and probability of sign; `sum_of_singles`
    is the same for the summed single shifts, and `interaction` the difference of the two. Raises
    ValueError for an empty list, a gene that is not in the model, and as `pairs_to_rank`.

    Parameters
    ----------
    bundle
        The model and its tables.
    genes
        Genes of the model over which shifts are averaged.
    given, unseen_only, with_inert
        Which pairs are ranked, as in `pairs_to_rank`.
    n_best
        How many pairs of the screen are composed.
    n_samples, seed
        Number and seed of the posterior draws.
    direction
        "either" ranks by size; "raise" keeps pairs with a score above zero, highest first; "lower"
        those below zero, lowest first.
    """
    pairs = pairs_to_rank(bundle, given, unseen_only, with_inert)
    unknown = sorted(set(genes).difference(bundle.genes))
    if unknown or not genes:
        raise ValueError(
            f"Expected one or more of the model's {len(bundle.genes):,} genes; found "
            + (f"{', '.join(unknown[:5])}, not among them." if unknown else "none.")
        )
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    chosen = pd.Index(bundle.genes).get_indexer(pd.Index(list(dict.fromkeys(genes))))
    scores = screened(bundle, pairs, chosen)
    best = np.argsort(-moved(scores, direction), kind="stable")[:n_best]
    rows = [scored(bundle, pairs[place], chosen, n_samples, seed) for place in best]
    found = pd.DataFrame(rows, columns=COLUMNS)
    if not bundle.model.has_posterior:
        own = ["lower", "upper", "probability_of_sign", "interaction_lower", "interaction_upper"]
        found[own] = np.nan
    size = moved(found["score"].to_numpy(float), direction)
    order = np.argsort(-size, kind="stable")
    if direction != "either":
        order = order[size[order] > 0]
    return found.iloc[order].reset_index(drop=True)


def moved(scores: Float[np.ndarray, " P"], direction: Direction) -> Float[np.ndarray, " P"]:
    """Return how far scores lie in the requested direction; positive is that direction."""
    return {"either": np.abs(scores), "raise": scores, "lower": -scores}[direction]


def inert(bundle: Bundle) -> list[str]:
    """Return the perturbations that use no mechanism and have no direct effect that stands out.

    Empty for a model without masks. A pair with such a partner does about what the other partner
    does alone.
    """
    if not bundle.model.has_masks:
        return []
    tables = [bundle.masks] if bundle.direct is None else [bundle.masks, bundle.direct]
    moves = {name for table in tables for name in table.loc[table["active"], "perturbation"]}
    return [str(name) for name in bundle.perturbations.index if name not in moves]


def pairs_to_rank(
    bundle: Bundle,
    given: str | None = None,
    unseen_only: bool = True,
    with_inert: bool = False,
) -> list[tuple[str, str]]:
    """Return all pairs of perturbations, or those of `given` with every other.

    `unseen_only` leaves out pairs in the training data. Pairs with an `inert` partner are left out
    unless `with_inert`. Raises ValueError for a model that cannot compose, a perturbation that is
    not in the model, and more than 50,000 pairs.
    """
    if not bundle.model.composes:
        raise ValueError(f"{bundle.title} cannot put perturbations together, so it ranks no pairs.")
    if given is not None:
        checked_dosages(bundle, {given: 1.0})
    idle = set() if with_inert else set(inert(bundle))
    names = [str(name) for name in bundle.perturbations.index if name not in idle]
    n_pairs = len(names) * (len(names) - 1) // 2
    if given is None and n_pairs > MAX_PAIRS:
        raise ValueError(
            f"There are {n_pairs:,} pairs, and {MAX_PAIRS:,} is the most. Name one of the two."
        )
    if given is None:
        pairs = list(combinations(names, 2))
    else:
        pairs = [] if given in idle else [(given, name) for name in names if name != given]
    if unseen_only:
        trained = set(bundle.conditions.index[bundle.conditions["train"] > 0])
        labels = [condition_name(dict.fromkeys(pair, 1.0), bundle.control) for pair in pairs]
        pairs = [p for p, label in zip(pairs, labels, strict=True) if label not in trained]
    return pairs


def n_inert_pairs(bundle: Bundle, given: str | None = None, unseen_only: bool = True) -> int:
    """Return how many pairs `pairs_to_rank` leaves out because of an inert partner.

    If all pairs are too many to list, this counts pairs in the training data too.
    """
    kept = len(pairs_to_rank(bundle, given, unseen_only))
    n = len(bundle.perturbations)
    if given is None and n * (n - 1) // 2 > MAX_PAIRS:
        return n * (n - 1) // 2 - kept
    return len(pairs_to_rank(bundle, given, unseen_only, with_inert=True)) - kept


def supported(bundle: Bundle, pair: tuple[str, str]) -> str:
    return support(bundle, dict.fromkeys(pair, 1.0))


@torch.inference_mode()
def screened(
    bundle: Bundle, pairs: list[tuple[str, str]], genes: np.ndarray
) -> Float[np.ndarray, " P"]:
    """Return the mean shift over genes of each pair, at the posterior mean effects."""
    model, z = bundle.model, bundle.reference.loc[:N_SCREEN]
    place = {str(name): row for row, name in enumerate(bundle.perturbations.index)}
    D = torch.zeros(len(pairs) + 1, len(place))  # the last row is control
    for row, pair in enumerate(pairs):
        D[row, [place[name] for name in pair]] = 1
    columns = torch.from_numpy(genes)
    parts = []
    for rows in D.split(PAIRS_AT_ONCE):
        level = mean_level(model, z, model.mean_shift(rows), model.mean_offset(rows))[0]
        parts.append(level[:, columns].mean(1))
    levels = torch.cat(parts)
    return (levels[:-1] - levels[-1]).double().numpy()


def scored(
    bundle: Bundle, pair: tuple[str, str], genes: np.ndarray, n_samples: int, seed: int
) -> list[object]:
    """Return one row of the table, from posterior draws."""
    arms = [dict.fromkeys(pair, 1.0), *({name: 1.0} for name in pair)]
    draws = drawn_arms(bundle, arms, (), n_samples, seed)[0]
    together, *alone = draws[..., genes].mean(-1)[..., None]
    both, rest = summary(together), summary(together - sum(alone))
    return [
        *pair,
        supported(bundle, pair),
        *(float(both[key][0]) for key in ("shift", "lower", "upper", "probability_of_sign")),
        float(sum(alone).mean()),
        *(float(rest[key][0]) for key in ("shift", "lower", "upper")),
    ]
