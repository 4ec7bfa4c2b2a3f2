"""Which pairs of perturbations would move a list of genes most, in which direction."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.analysis.compose import shifts, summary
from samsvae_core.analysis.support import checked_dosages, condition_name, support
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.shifts import mean_level

MAX_PAIRS = 50_000
N_SCREEN = 32  # reference cells of the screen
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
    """Pairs by the size of their predicted mean shift over `genes`, the largest first.

    The pairs are those of `pairs_to_rank`, at dosage 1. Every pair is screened at the posterior
    means of its effects on 32 reference cells; the `n_best` are then composed as in `compose`, and
    ranked by what that gives: `score` is the mean over genes of the shift, with the model's own
    90 % interval and probability of sign; `sum_of_singles` the same of the single shifts added up,
    `interaction` their difference. With the `direction` "raise" only pairs whose score is above
    zero are returned, the highest first; with "lower" those below zero, the lowest first. Raises
    ValueError for an empty list, a gene that is not in the model, and as `pairs_to_rank`.
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
    """How far scores lie in the direction that is asked for: above zero is that way."""
    return {"either": np.abs(scores), "raise": scores, "lower": -scores}[direction]


def inert(bundle: Bundle) -> list[str]:
    """Perturbations that use no mechanism; none of a model without masks, whose all use them all.

    What such a one and another do together is next to what the other does alone.
    """
    if not bundle.model.has_masks:
        return []
    active = bundle.masks.groupby("perturbation")["active"].any()
    return [str(name) for name in bundle.perturbations.index if not active.get(name, False)]


def pairs_to_rank(
    bundle: Bundle,
    given: str | None = None,
    unseen_only: bool = True,
    with_inert: bool = False,
) -> list[tuple[str, str]]:
    """All pairs of perturbations, or those of `given` with each other one.

    Without those that were trained on if `unseen_only`, and without those one of whose partners is
    `inert`, unless `with_inert`. Raises ValueError for a model that cannot compose, a perturbation
    that is not in the model, and more pairs than 50,000.
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
    """How many pairs `pairs_to_rank` leaves out for a partner that is inert.

    Where all pairs are too many to be listed, those that were trained on are counted, too.
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
    """Mean shift over genes of each pair, at the posterior means of effects."""
    model, z = bundle.model, bundle.reference.loc[:N_SCREEN]
    place = {str(name): row for row, name in enumerate(bundle.perturbations.index)}
    D = torch.zeros(len(pairs) + 1, len(place))  # the last is control
    for row, pair in enumerate(pairs):
        D[row, [place[name] for name in pair]] = 1
    columns = torch.from_numpy(genes)
    moves = model.mean_shift(D).split(PAIRS_AT_ONCE)
    parts = [mean_level(model, z, part)[:, columns].mean(1) for part in moves]
    levels = torch.cat(parts)
    return (levels[:-1] - levels[-1]).double().numpy()


def scored(
    bundle: Bundle, pair: tuple[str, str], genes: np.ndarray, n_samples: int, seed: int
) -> list[object]:
    """A row of the table, on posterior draws."""
    arms = [dict.fromkeys(pair, 1.0), *({name: 1.0} for name in pair)]
    together, *alone = shifts(bundle, arms, (), n_samples, seed)[..., genes].mean(-1)[..., None]
    both, rest = summary(together), summary(together - sum(alone))
    return [
        *pair,
        supported(bundle, pair),
        *(float(both[key][0]) for key in ("shift", "lower", "upper", "probability_of_sign")),
        float(sum(alone).mean()),
        *(float(rest[key][0]) for key in ("shift", "lower", "upper")),
    ]
