"""Agreement of two tables: effects, groups of perturbations, masks.

An undefined figure is None, never 0 or NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

TOP_GENES = 20
FEWEST_RANKED = 3  # conditions; a rank among fewer says nothing
NEIGHBOURS = 5


# Effects, conditions x genes


def agreement(observed: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, Any]:
    """Return pooled and per-condition agreement of predicted with observed effects.

    `median` and `quartiles` are of the correlations per condition; `rank` is `true_rank`.
    """
    each = [pearson(x, y) for x, y in zip(observed.to_numpy(), predicted.to_numpy(), strict=True)]
    return {
        **figures(observed, predicted),
        "per_perturbation": dict(zip(map(str, observed.index), each, strict=True)),
        **spread(each),
        "rank": true_rank(observed.to_numpy(), predicted.to_numpy()),
    }


def figures(observed: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, float | None]:
    """Return the agreement over all conditions and genes at once.

    The top 20 are the genes with the largest observed effect of each condition.
    """
    x, y = observed.to_numpy(), predicted.to_numpy()
    top = np.argsort(-np.abs(x), axis=1)[:, :TOP_GENES]
    x_top, y_top = (np.take_along_axis(a, top, axis=1) for a in (x, y))
    return {
        "pearson": pearson(x.ravel(), y.ravel()),
        "pearson_top20": pearson(x_top.ravel(), y_top.ravel()),
        "r2": r_squared(x.ravel(), y.ravel()),
        "cosine": cosine(x.ravel(), y.ravel()),
    }


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Return median and quartiles of the defined values."""
    known = [value for value in values if value is not None]
    if not known:
        return {"median": None, "quartiles": None}
    low, median, high = (float(q) for q in np.quantile(known, (0.25, 0.5, 0.75)))
    return {"median": median, "quartiles": [low, high]}


def true_rank(
    observed: Float[np.ndarray, "C G"], predicted: Float[np.ndarray, "C G"]
) -> float | None:
    """Return the mean rank of the true condition when all are ranked by cosine with a prediction.

    0 is first, 1 last and 0.5 chance; ties are shared. None if fewer than 3 conditions are compared
    or no change is predicted for any.
    """
    if len(observed) < FEWEST_RANKED or not predicted.any():
        return None
    cosines = directions(predicted) @ directions(observed).T  # (C predicted, C observed)
    own = np.diagonal(cosines)[:, None]
    tied = np.isclose(cosines, own, rtol=0, atol=1e-9)
    better = (cosines > own) & ~tied
    ranks = better.sum(1) + (tied.sum(1) - 1) / 2
    return float(ranks.mean() / (len(observed) - 1))


def directions(rows: Float[np.ndarray, "C G"]) -> Float[np.ndarray, "C G"]:
    """Return the rows scaled to length 1; a row of zeros stays."""
    rows = rows.astype(float)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Return the correlation, or None if either side is constant."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def r_squared(observed: np.ndarray, predicted: np.ndarray) -> float | None:
    """Return 1 - squared error over variance; below 0 if the mean of the data would do better."""
    if len(observed) == 0:
        return None
    variance = ((observed - observed.mean()) ** 2).sum()
    return float(1 - ((observed - predicted) ** 2).sum() / variance) if variance > 0 else None


def cosine(x: np.ndarray, y: np.ndarray) -> float | None:
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norm) if norm > 0 else None


def jackknife_error(left_out: Sequence[float | None]) -> float | None:
    """Return the standard error of an estimate, from estimates without one group of draws each."""
    if len(left_out) < 2 or None in left_out:
        return None
    values = np.array(left_out, dtype=float)
    n = len(values)
    return float(np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum()))


# Groups of perturbations


def group_agreement(
    effects: pd.DataFrame, groups: pd.Series, n_permutations: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return whether perturbations of one group (a pathway, a complex) lie together.

    `effects` are perturbations x mechanisms, probabilities or effects; `groups` names the group of
    each perturbation. For the accuracy, a perturbation is given the most frequent group among its k
    nearest neighbours (Euclidean, itself left out; ties go to the nearer group); k is 5, or the
    size of the smallest group less one. The silhouette is the mean over perturbations. Both are
    given beside those of permuted labels. Raises ValueError unless 2 groups have 2 perturbations
    each in `effects`.
    """
    from sklearn.metrics import pairwise_distances, silhouette_score

    label = groups[groups.index.isin(effects.index)].dropna().astype(str)
    if label.index.has_duplicates:
        twice = label.index[label.index.duplicated()][0]
        raise ValueError(f"Each perturbation belongs to one group; {twice!r} was given several.")
    sizes = label.value_counts()
    label = label[label.map(sizes) >= 2]
    sizes = label.value_counts().sort_index()
    if len(sizes) < 2:
        raise ValueError(
            "Groups need at least 2 groups of 2 or more perturbations that the model knows; found "
            f"{len(sizes)} among {len(groups)} named perturbations, of which "
            f"{int(groups.index.isin(effects.index).sum())} are in the model."
        )
    distance = pairwise_distances(effects.loc[label.index].to_numpy(dtype=float))
    np.fill_diagonal(distance, 0)
    k = int(min(NEIGHBOURS, sizes.min() - 1))
    apart = distance + np.diag(np.full(len(distance), np.inf))
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :k]
    code = pd.factorize(label)[0]
    measures: dict[str, Callable[[np.ndarray], float]] = {
        "accuracy": lambda labels: neighbour_accuracy(labels, nearest),
        "silhouette": lambda labels: float(
            silhouette_score(distance, labels, metric="precomputed")
        ),
    }
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(code) for _ in range(n_permutations)]
    return {
        "n_perturbations": len(label),
        "groups": {str(name): int(n) for name, n in sizes.items()},
        "k": k,
        "n_permutations": n_permutations,
        **{
            name: against_chance(measure(code), [measure(labels) for labels in shuffled])
            for name, measure in measures.items()
        },
    }


def neighbour_accuracy(code: Int[np.ndarray, " P"], nearest: Int[np.ndarray, "P k"]) -> float:
    """Return the share of perturbations whose neighbours vote for their own group."""
    k = nearest.shape[1]
    weight = 1 - np.arange(k) / (10 * k**2)  # ties go to the group with nearer members
    votes = np.zeros((len(code), code.max() + 1))
    np.add.at(votes, (np.arange(len(code))[:, None], code[nearest]), weight)
    return float((votes.argmax(1) == code).mean())


def against_chance(value: float, permuted: Sequence[float]) -> dict[str, float]:
    """Return a figure beside that of permuted labels; p counts the true labels among them."""
    reached = sum(p >= value - 1e-12 for p in permuted)
    return {
        "value": value,
        "permuted_mean": float(np.mean(permuted)),
        "permuted_sd": float(np.std(permuted)),
        "p_value": (1 + reached) / (1 + len(permuted)),
    }


# Masks


def mask_recovery(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1 of mask entries, after the best matching of mechanisms.

    Mechanisms are matched by the number of entries they share (Hungarian algorithm), as in the
    paper's simulations; unmatched found entries count as false.
    """
    from scipy.optimize import linear_sum_assignment

    shared = found.astype(float).T @ true.astype(float)  # (K found, K true)
    hits = shared[linear_sum_assignment(-shared)].sum()
    precision, recall = hits / max(found.sum(), 1), hits / max(true.sum(), 1)
    f1 = 2 * hits / max(found.sum() + true.sum(), 1)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def mask_stability(masks: Sequence[Bool[np.ndarray, "_ _"]]) -> pd.DataFrame:
    """Return the agreement of each pair of trainings' masks: first, second, f1, jaccard.

    Mechanisms are matched as in `mask_recovery` and may differ in number. A pair without any entry
    has NaN. Raises ValueError for fewer than 2 masks or different perturbations.
    """
    rows = {len(mask) for mask in masks}
    if len(masks) < 2 or len(rows) > 1:
        raise ValueError(
            "Stability needs 2 masks or more over the same perturbations; found "
            f"{len(masks)} over {sorted(rows)} perturbations. Give one mask per training."
        )
    pairs = []
    for (i, a), (j, b) in itertools.combinations(enumerate(masks), 2):
        f1 = mask_recovery(a, b)["f1"] if a.any() or b.any() else np.nan
        # F1 = 2 h / (a + b) and Jaccard = h / (a + b - h), with h shared entries
        pairs.append({"first": i, "second": j, "f1": f1, "jaccard": f1 / (2 - f1)})
    return pd.DataFrame(pairs)
