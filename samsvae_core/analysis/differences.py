"""Differences between contexts as a table: which mechanism a perturbation moves differently where.

Axes: T perturbations, L levels of the context, K mechanisms.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE
from samsvae_core.training.context_fit import NOTHING


def difference_table(
    model: SAMSVAE, perturbations: Sequence[str], levels: Sequence[str]
) -> pd.DataFrame | None:
    """Return the differences that were asked, a row each; None for a model without contexts.

    Columns are perturbation, level, mechanism, probability, `difference` (E[mask x difference], in
    prior standard deviations of the basal state), its standard deviation `difference_sd`, active,
    and `effect`: the whole mean effect at that level, with what is common.
    """
    contexts = model.contexts
    if contexts is None:
        return None
    with torch.inference_mode():
        asked = contexts.asked().numpy(force=True)
        q = contexts.probability().double().numpy(force=True)
        mean, sd = (part.numpy(force=True) for part in contexts.moments())
        common = np.tile(model.effect_moments()[0].numpy(force=True), (contexts.n_levels, 1))
    row, mechanism = np.nonzero(asked)
    n = len(perturbations)
    place = row, mechanism
    table = pd.DataFrame(
        {
            "perturbation": np.asarray(perturbations, dtype=object)[row % n],
            "level": np.asarray(levels, dtype=object)[row // n],
            "mechanism": mechanism,
            "probability": q[place],
            "difference": mean[place],
            "difference_sd": sd[place],
            "effect": common[place] + mean[place],
            "active": q[place] > ACTIVE,
        }
    )
    order = np.lexsort((mechanism, row // n, row % n))
    return table.iloc[order].reset_index(drop=True)


def observed_at(bundle: Bundle, condition: str, level: str) -> pd.DataFrame | None:
    """Return the measured shift at a level of the context, by gene: shift, se and n.

    Control is that of the same level. None if it was not measured there, or not kept.
    """
    table = bundle.if_there("observed_levels.parquet")
    if table is None:
        return None
    rows = table[
        (table["condition"] == condition)
        & (table["covariate"] == bundle.context)
        & (table["level"] == level)
    ]
    return None if rows.empty else rows.set_index("gene")[["shift", "se", "n"]].loc[bundle.genes]


def differing_in_words(context: str, differences: pd.DataFrame | None) -> str:
    """Return a sentence on the context of a model, and how many differences it found."""
    n = 0 if differences is None else int(differences["active"].sum())
    found = {0: "no difference is", 1: "1 difference is"}.get(n, f"{n:,} differences are")
    return f"Effects may differ by {context}: {found} active."


def masks_at(
    masks: pd.DataFrame, differences: pd.DataFrame | None, level: str | None
) -> pd.DataFrame:
    """Return the table of masks as it is at one level of the context; as it was for None.

    An entry is active where the common one or the difference of the level is, unless the difference
    takes the effect away (less than NOTHING is left). Columns of evidence are those of the common
    entry; `differs` says where the level has a difference.
    """
    found = masks.assign(differs=False)
    if differences is None:
        return found
    here = differences[differences["level"] == level].set_index(["perturbation", "mechanism"])
    place = pd.MultiIndex.from_frame(found[["perturbation", "mechanism"]])
    own = here.reindex(place)
    there = own["difference"].notna().to_numpy()
    differs = own["active"].eq(True).to_numpy()
    found["differs"] = differs
    taken = differs & (own["effect"].abs() < NOTHING).to_numpy()
    found["active"] = (found["active"].to_numpy(bool) | differs) & ~taken
    found.loc[there, "effect"] = own["effect"].to_numpy()[there]
    sd = np.hypot(found["effect_sd"], own["difference_sd"].to_numpy())
    found.loc[there, "effect_sd"] = sd[there]
    common, other = found["probability"], own["probability"].to_numpy()
    chance = np.where(taken, common * (1 - other), np.maximum(common, other))
    found.loc[there, "probability"] = chance[there]
    return found
