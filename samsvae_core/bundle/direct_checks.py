"""Checks of direct effects in a bundle: weights are sound, and tables follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from samsvae_core.bundle.soundness import ROUNDING
from samsvae_core.models.direct import DirectEffects
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
    genes: Sequence[str],
) -> None:
    """Raise ValueError unless the tables of direct effects follow from the weights."""
    direct = model.direct
    if (direct is None) != (table is None) or (direct is None) != (shared is None):
        raise ValueError("direct.csv and shared.csv belong to a model with direct effects")
    if direct is None or table is None or shared is None:
        return
    of_all = direct.row == direct.n_perturbations
    for name, frame, kept in (("direct.csv", table, ~of_all), ("shared.csv", shared, of_all)):
        expected = np.array(genes, dtype=object)[direct.gene[kept].numpy()]
        if not np.array_equal(frame["gene"].to_numpy(object), expected):
            raise ValueError(f"{name} does not have the genes of the weights' direct effects")
        for column, values in (
            ("effect", direct.mean),
            ("effect_sd", direct.sd),
            ("probability", direct.probability),
        ):
            if not np.allclose(frame[column], values[kept].numpy(), rtol=ROUNDING, atol=ROUNDING):
                raise ValueError(f"{name} does not follow from the weights: its column {column}")
