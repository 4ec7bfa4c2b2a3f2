"""Direct effects as tables: what a perturbation does to single genes, outside every mechanism."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from samsvae_core.models.direct import ACTIVE, DirectEffects
from samsvae_core.models.samsvae import SAMSVAE


def direct_table(
    model: SAMSVAE, perturbations: Sequence[str], genes: Sequence[str]
) -> pd.DataFrame | None:
    """Return one row per direct effect that is kept; None for a model that has none.

    Columns are perturbation, gene, effect, effect_sd, probability, active and own_target. `effect`
    is the posterior mean, at dosage 1, of what is added to the gene's logit (natural log; of a
    Gaussian likelihood, to its mean), and `effect_sd` its standard deviation. `probability` is that
    the effect stands out of the others of its perturbation (`shrinkage.activity`); above 0.5 it is
    active. Effects that are nearly zero are left out.
    """
    direct = model.direct
    if direct is None:
        return None
    table = entries(direct, genes)
    row = direct.row.cpu().numpy()
    table.insert(0, "perturbation", np.array([*perturbations, ""], dtype=object)[row])
    table["own_target"] = direct.is_own().cpu().numpy()
    return table[row < len(perturbations)].reset_index(drop=True)


def shared_table(model: SAMSVAE, genes: Sequence[str]) -> pd.DataFrame | None:
    """Return what all perturbed cells share against control, whatever their perturbations.

    Columns are gene, effect, effect_sd and probability, as in `direct_table`; None for a model
    without direct effects.
    """
    direct = model.direct
    if direct is None:
        return None
    shared = (direct.row == direct.n_perturbations).cpu().numpy()
    return entries(direct, genes)[shared].drop(columns="active").reset_index(drop=True)


def entries(direct: DirectEffects, genes: Sequence[str]) -> pd.DataFrame:
    probability = direct.probability.cpu().numpy().astype(float)
    return pd.DataFrame(
        {
            "gene": np.array(genes, dtype=object)[direct.gene.cpu().numpy()],
            "effect": direct.mean.cpu().numpy().astype(float),
            "effect_sd": direct.sd.cpu().numpy().astype(float),
            "probability": probability,
            "active": probability > ACTIVE,
        }
    )
