"""Checks of direct effects in a bundle: weights are sound, and tables follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from samsvae_core.bundle.soundness import ROUNDING
from samsvae_core.models.direct import ACTIVE, DirectEffects
from samsvae_core.models.samsvae import SAMSVAE


def check_entries(direct: DirectEffects | None, weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless direct effects are of known rows and genes, each once, in order."""
    if direct is None:
        return
    row, gene, sd, probability, own = (
        weights[f"direct.{name}"] for name in ("row", "gene", "sd", "probability", "own")
    )
    place = row * direct.n_genes + gene
    if (
        (row < 0).any()
        or (row > direct.n_perturbations).any()
        or (gene < 0).any()
        or (gene >= direct.n_genes).any()
        or (place.diff() <= 0).any()
    ):
        raise ValueError("direct effects are not of known perturbations and genes, once and sorted")
    if (sd < 0).any() or (probability < 0).any() or (probability > 1).any():
        raise ValueError("direct effects have spreads below 0, or probabilities outside 0 to 1")
    if (own < -1).any() or (own >= direct.n_genes).any():
        raise ValueError("own targets are not among the genes")


def check_direct(
    model: SAMSVAE,
    table: pd.DataFrame | None,
    shared: pd.DataFrame | None,
    perturbations: Sequence[str],
    genes: Sequence[str],
) -> None:
    """Raise ValueError unless the tables of direct effects follow from the weights."""
    direct = model.direct
    if (direct is None) != (table is None) or (direct is None) != (shared is None):
        raise ValueError("direct.csv and shared.csv belong to a model with direct effects")
    if direct is None or table is None or shared is None:
        return
    own = pd.Index(genes).get_indexer(pd.Index(perturbations))
    if not np.array_equal(direct.own.numpy(), own):
        raise ValueError("own targets in the weights are not the genes that perturbations name")
    of_all = (direct.row == direct.n_perturbations).numpy()
    rows = np.array([*perturbations, ""], dtype=object)[direct.row.numpy()]
    probability = direct.probability.numpy()
    columns: dict[str, np.ndarray] = {
        "perturbation": rows,
        "gene": np.array(genes, dtype=object)[direct.gene.numpy()],
        "effect": direct.mean.numpy(),
        "effect_sd": direct.sd.numpy(),
        "probability": probability,
        "active": probability > ACTIVE,
        "own_target": direct.is_own().numpy(),
    }
    for name, frame, kept in (("direct.csv", table, ~of_all), ("shared.csv", shared, of_all)):
        if len(frame) != kept.sum():
            raise ValueError(f"{name} has {len(frame):,} rows; the weights hold {kept.sum():,}")
        for column, values in columns.items():
            if column in frame and not same(frame[column].to_numpy(), values[kept]):
                raise ValueError(f"{name} does not follow from the weights: its column {column}")


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether these are the same names, or the same numbers but for rounding."""
    if expected.dtype.kind == "f":
        return np.allclose(found, expected, rtol=ROUNDING, atol=ROUNDING)
    return np.array_equal(found, expected)
