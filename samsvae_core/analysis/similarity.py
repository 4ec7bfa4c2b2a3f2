"""Similarity of perturbations, by their masks or by their shifts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from samsvae_core.analysis.masks import matrix


class Tree(NamedTuple):
    """A clustering: its leaves in drawing order, and the tree as one line.

    `line` has columns place (0 is the first leaf) and height (the distance at which two groups
    join), three strokes per joint, separated by NaN.
    """

    order: pd.Index
    line: pd.DataFrame


def similar_perturbations(masks: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Return the other perturbations by Jaccard index of active mechanisms, then cosine of effects.

    The column `shared` counts mechanisms active in both. The Jaccard index is 0 if either set is
    empty.
    """
    active = matrix(masks, "active").astype(bool)
    effect = matrix(masks, "effect")
    here, direction = active.loc[perturbation], effect.loc[perturbation]
    shared, either = (active & here).sum(axis=1), (active | here).sum(axis=1)
    norm = np.linalg.norm(effect, axis=1) * np.linalg.norm(direction)
    frame = pd.DataFrame(
        {
            "jaccard": shared / either.clip(lower=1),
            "cosine": (effect @ direction) / np.maximum(norm, 1e-12),
            "shared": shared,
        }
    )
    return frame.drop(index=perturbation).sort_values(["jaccard", "cosine"], ascending=False)


def similar_rows(
    names: list[str],
    predicted: Float[np.ndarray, "P G"],
    observed: Float[np.ndarray, "P G"],
    cells: np.ndarray,
    perturbation: str,
) -> pd.DataFrame:
    """Return the other perturbations by the shifts in their rows, most similar first.

    Indexed by perturbation: `r_predicted` is Pearson r over genes between the mean predicted
    shifts, `r_observed` that between the measured shifts of all splits, and `n_observed` the cells
    of the other perturbation alone. NaN if a side was not measured or moves no gene. Measured
    shifts share their control cells, whose sampling error raises `r_observed`; the error of the
    perturbed cells lowers it.
    """
    if perturbation not in names:
        raise ValueError(
            f"{perturbation!r} is none of the {len(names)} perturbations in this table of effects."
        )
    place = names.index(perturbation)
    columns = {
        "r_predicted": pearson_of_rows(predicted, place),
        "r_observed": pearson_of_rows(observed, place),
        "n_observed": cells,
    }
    frame = pd.DataFrame(columns, index=pd.Index(names, name="perturbation"))
    return frame.drop(index=perturbation).sort_values("r_predicted", ascending=False, kind="stable")


def pearson_of_rows(rows: Float[np.ndarray, "P G"], place: int) -> Float[np.ndarray, " P"]:
    """Return Pearson r of one row with each, over genes both have; NaN if either is constant."""
    known = np.isfinite(rows) & np.isfinite(rows[place])
    n = known.sum(1, keepdims=True).clip(1)
    sides, varies = [], np.full(len(rows), True)
    for side in (np.broadcast_to(rows[place], rows.shape), rows):
        varies &= side.max(1, where=known, initial=-np.inf) > side.min(
            1, where=known, initial=np.inf
        )
        side = np.where(known, side, 0.0)
        sides.append(np.where(known, side - side.sum(1, keepdims=True) / n, 0.0))
    x, y = sides
    products = (np.einsum("pg,pg->p", a, b) for a, b in ((x, y), (x, x), (y, y)))
    xy, xx, yy = (np.where(varies, product, np.nan) for product in products)
    return np.asarray(xy / np.sqrt(xx * yy))


def tree(by: pd.DataFrame) -> Tree:
    """Return the rows of `by` clustered (average linkage, Euclidean), the fullest group first.

    One or two rows keep their order and have no tree.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage

    n, line = len(by), pd.DataFrame({"place": [], "height": []}, dtype=float)
    if n < 3:
        return Tree(by.index, line)
    values = by.to_numpy(float)
    joints = linkage(values, method="average", optimal_ordering=True)
    order = leaves_list(joints)
    if values[order[: n // 2]].sum() < values[order[::-1][: n // 2]].sum():
        order = order[::-1]
    place, height = np.zeros(2 * n - 1), np.zeros(2 * n - 1)
    place[order] = np.arange(n)
    strokes = []
    for i, (left, right, distance, _) in enumerate(joints, start=n):
        ends = [int(left), int(right)]
        place[i], height[i] = place[ends].mean(), distance
        (a, b), (low, other) = place[ends], height[ends]
        strokes += [(a, low), (a, distance), (b, distance), (b, other), (np.nan, np.nan)]
    return Tree(by.index[order], pd.DataFrame(strokes, columns=list(line)))


def pairs(masks: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Return every pair of these perturbations, most similar first, as `similar_perturbations`.

    Columns are first, second, shared, jaccard and cosine.
    """
    rows, columns = masks[masks["perturbation"].isin(names)], ["shared", "jaccard", "cosine"]
    alike = {name: similar_perturbations(rows, name) for name in names}
    found = [[a, b, *alike[a].loc[b, columns]] for a, b in combinations(names, 2)]
    table = pd.DataFrame(found, columns=["first", "second", *columns]).astype({"shared": int})
    return table.sort_values(["jaccard", "cosine"], ascending=False).reset_index(drop=True)
