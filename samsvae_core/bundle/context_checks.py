"""Checks of differences between contexts in a bundle: the table follows from the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from samsvae_core.bundle.direct_checks import same
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE


def check_differences(
    model: SAMSVAE,
    table: pd.DataFrame | None,
    perturbations: Sequence[str],
    levels: Mapping[str, Sequence[str]],
) -> None:
    """Raise ValueError unless differences.csv has what the weights hold, in any order."""
    contexts, context = model.contexts, model.config.context
    if (contexts is None) != (table is None):
        raise ValueError("differences.csv belongs to a model with contexts")
    if contexts is None or context is None or table is None:
        return
    known = pd.Index(list(levels.values())[context])
    row = known.get_indexer(pd.Index(table["level"])) * len(perturbations)
    row += pd.Index(perturbations).get_indexer(pd.Index(table["perturbation"]))
    mechanism = table["mechanism"].to_numpy(int)
    if not table["level"].isin(known).all() or (mechanism >= model.config.n_latent).any():
        raise ValueError("differences.csv names levels or mechanisms that the model does not have")
    n_asked, q = int(contexts.asked().sum()), contexts.probability().double().numpy()
    if len(table) != n_asked:
        raise ValueError(f"differences.csv has {len(table):,} rows; the weights hold {n_asked:,}")
    mean, sd = (part.numpy() for part in contexts.moments())
    common = model.effect_moments()[0].numpy()[row % len(perturbations), mechanism]
    place = row, mechanism
    columns: dict[str, np.ndarray] = {
        "probability": q[place],
        "difference": mean[place],
        "difference_sd": sd[place],
        "effect": common + mean[place],
        "active": q[place] > ACTIVE,
    }
    for column, values in columns.items():
        if not same(table[column].to_numpy(), values):
            raise ValueError(f"differences.csv does not follow from the weights: {column}")
