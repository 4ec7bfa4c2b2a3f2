"""Which pairs of perturbations would move a list of genes most: a screen, then intervals."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.bundle import Bundle
from samsvae_core.calibration import mean_level
from samsvae_core.composition import (
    checked_dosages,
    condition_name,
    shifts,
    summary,
    support,
)

MAX_PAIRS = 50_000
N_SCREEN = 32  # reference cells of the screen
PAIRS_AT_ONCE = 64
COLUMNS = ["first", "second", "support", "score", "lower", "upper", "probability_of_sign"]
COLUMNS += ["sum_of_singles", "interaction", "interaction_lower", "interaction_upper"]


def rank_pairs(
    bundle: Bundle,
    genes: Sequence[str],
    given: str | None = None,
    unseen_only: bool = True,
    n_best: int = 20,
    n_samples: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Pairs by the size of their predicted mean shift over `genes`, the largest first.

    All pairs of perturbations, or those of `given` with each other one, at dosage 1; without those
    that were trained on if `unseen_only`. Every pair is screened at the posterior means of its
    effects on 32 reference cells; the `n_best` are then composed as in `compose`, and ranked by
    what that gives: `score` is the mean over genes of the shift, with the model's own 90 % interval
    and probability of sign; `sum_of_singles` the same of the single shifts added up, `interaction`
    their difference. Raises ValueError for an empty list, a gene or perturbation that is not in the
    model, a model that cannot compose, and more pairs than 50,000.
    """
    if not bundle.model.composes:
        raise ValueError(f"{bundle.title} cannot put perturbations together, so it ranks no pairs.")
    unknown = sorted(set(genes).difference(bundle.genes))
    if unknown or not genes:
        raise ValueError(
            f"Expected one or more of the model's {len(bundle.genes):,} genes; found "
            + (f"{', '.join(unknown[:5])}, not among them." if unknown else "none.")
        )
    names = [str(name) for name in bundle.perturbations.index]
    if given is not None:
        checked_dosages(bundle, {given: 1.0})
        pairs = [(given, name) for name in names if name != given]
    else:
        pairs = list(combinations(names, 2))
    if len(pairs) > MAX_PAIRS:
        raise ValueError(
            f"There are {len(pairs):,} pairs, and {MAX_PAIRS:,} is the most. Name one of the two."
        )
    if unseen_only:
        trained = set(bundle.conditions.index[bundle.conditions["train"] > 0])
        labels = [condition_name(dict.fromkeys(pair, 1.0), bundle.control) for pair in pairs]
        pairs = [p for p, label in zip(pairs, labels, strict=True) if label not in trained]
    if not pairs:
        return pd.DataFrame(columns=COLUMNS)
    chosen = pd.Index(bundle.genes).get_indexer(pd.Index(list(dict.fromkeys(genes))))
    scores = screened(bundle, pairs, chosen)
    best = np.argsort(-np.abs(scores), kind="stable")[:n_best]
    rows = [scored(bundle, pairs[place], chosen, n_samples, seed) for place in best]
    found = pd.DataFrame(rows, columns=COLUMNS)
    if not bundle.model.has_posterior:
        own = ["lower", "upper", "probability_of_sign", "interaction_lower", "interaction_upper"]
        found[own] = np.nan
    return found.sort_values("score", key=np.abs, ascending=False, ignore_index=True)


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
