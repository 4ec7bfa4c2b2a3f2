"""Masks as tables: which mechanisms each perturbation uses, and how certain that is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE
from samsvae_core.system.messages import some


def mask_table(model: SAMSVAE, perturbations: list[str]) -> pd.DataFrame:
    """Return one row per perturbation and mechanism: probability, effect, effect_sd, active.

    `effect` is E[mask x embedding] in prior standard deviations of the basal state, and `effect_sd`
    its standard deviation, both under the posterior. A model without latent shifts has no rows.
    """
    with torch.inference_mode():
        q = model.mask_probability().double().cpu().numpy()
        effect, sd = (moment.cpu().numpy() for moment in model.effect_moments())
    n_latent = q.shape[1]
    return pd.DataFrame(
        {
            "perturbation": np.repeat(perturbations, n_latent),
            "mechanism": np.tile(np.arange(n_latent), len(perturbations)),
            "probability": q.ravel(),
            "effect": effect.ravel(),
            "effect_sd": sd.ravel(),
            "active": (q > ACTIVE).ravel(),
        }
    )


def matrix(masks: pd.DataFrame, column: str = "probability") -> pd.DataFrame:
    """Return a column of the mask table as perturbations x mechanisms."""
    wide = masks.pivot(index="perturbation", columns="mechanism", values=column)  # noqa: PD010
    return wide.loc[masks["perturbation"].drop_duplicates()]


def active_mechanisms(masks: pd.DataFrame) -> list[int]:
    """Return the mechanisms that at least one perturbation uses."""
    return sorted(int(k) for k in masks.loc[masks["active"], "mechanism"].unique())


def orient(model: SAMSVAE) -> None:
    """Put the mechanisms of a model in a fixed order and direction, in place.

    The likelihood leaves order and sign open. Mechanisms with most users come first, and each
    points where its active effects (all effects, if none is active) point on average. Encoder,
    decoder and posterior are permuted and flipped together, so predictions do not change.
    """
    with torch.inference_mode():
        q = model.mask_probability()
        if not q.shape[1]:
            return  # no perturbation has a direction
        effect = model.effect_moments()[0].to(q)
        active = (q > ACTIVE).to(q)
        strength = (effect.abs() * active).sum(0)
        order = torch.tensor(
            sorted(range(len(strength)), key=lambda k: (-active[:, k].sum(), -strength[k], k))
        )
        used = torch.where(active.any(0), active, torch.ones_like(active))
        sign = torch.where((effect * used).sum(0) < 0, -1.0, 1.0)[order]
        model.rotate(torch.eye(len(order)).to(q)[:, order] * sign)


def strengths(masks: pd.DataFrame) -> pd.DataFrame:
    """Return how far each perturbation moves the latent state, largest first.

    Indexed by perturbation: `strength` is the length of its mean effects over all mechanisms, in
    prior standard deviations of the basal state. `sd` is the posterior standard deviation of that
    length to first order, with mechanisms independent: sqrt(sum (effect x effect_sd)^2) / strength.
    """
    effect, sd = masks["effect"], masks["effect_sd"]
    squares = pd.DataFrame({"strength": effect**2, "sd": (effect * sd) ** 2})
    found = squares.groupby(masks["perturbation"], sort=False).sum() ** 0.5
    found["sd"] /= found["strength"].clip(lower=1e-12)
    return found.sort_values("strength", ascending=False, kind="stable")


def near_misses(masks: pd.DataFrame) -> pd.DataFrame:
    """Return inactive entries that held-out cells speak for, those with most evidence first.

    Their evidence is above two of its standard errors. By chance alone, about 2.5 % of the entries
    tried pass.
    """
    off = masks[~masks["active"] & (masks["evidence"] > 2 * masks["evidence_se"])]
    return off.sort_values("evidence", ascending=False)


def in_use_in_words(masks: pd.DataFrame) -> str:
    """Return how many mechanisms and entries are active, and which lack held-out evidence.

    An entry has held-out evidence if that is above two of its standard errors. Entries whose
    evidence was not taken (older bundles, perturbations without held-out cells) are not mentioned.
    """
    active = masks[masks["active"].astype(bool)]
    mechanisms = active["mechanism"].nunique()
    found = f"{mechanisms} mechanism{'s' * (mechanisms != 1)} in use, {len(active)} active "
    found += f"mask entr{'ies' if len(active) != 1 else 'y'}"
    tried = active[active["evidence"].notna() & active["evidence_se"].notna()]
    bare = tried[~(tried["evidence"] > 2 * tried["evidence_se"])]
    if bare.empty:
        return f"{found}."
    named = some((f"{row.perturbation} in M{row.mechanism}" for row in bare.itertuples()), 6)
    only = sorted(set(active["mechanism"]) - set(active.drop(bare.index)["mechanism"]))
    found += f". Of these, {len(bare)} {'has' if len(bare) == 1 else 'have'} no evidence on "
    found += f"held-out cells ({named})"
    if only:
        rests = "rests" if len(only) == 1 else "rest"
        found += f"; {some((f'M{k}' for k in only), 6)} {rests} on such entries alone"
    return f"{found}."


def used_by(bundle: Bundle, mechanism: int) -> pd.DataFrame:
    """Return the perturbations that use a mechanism, strongest first, with effect and its sd."""
    rows = bundle.masks[(bundle.masks["mechanism"] == mechanism) & bundle.masks["active"]]
    return rows.sort_values("effect", key=np.abs, ascending=False).drop(columns="mechanism")
