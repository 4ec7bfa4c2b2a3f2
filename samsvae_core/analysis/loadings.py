"""Loadings: how a mechanism changes each gene, and how linear the decoder is along it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.bundle.bundle import Reference
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE

STEPS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)  # multiples of the typical effect in loading curves
STEPS_IN_WORDS = {0.5: "half the step", -1.0: "the opposite direction", 2.0: "twice the step"}
LINEAR_R, LINEAR_RATIO = 0.95, 1.25  # least r, and largest ratio of sizes either way
NO_LOADING = 1e-5  # root mean square below which a loading is rounding error


@torch.inference_mode()
def loadings(model: SAMSVAE, reference: Reference, genes: list[str]) -> pd.DataFrame:
    """Return how one mechanism changes the level of each gene, per prior standard deviation.

    With y(z) = log2(1 + 1e4 softmax(decoder(z))), the loading of mechanism k on gene g is the mean
    over reference control cells of [y_g(z + s e_k) - y_g(z)] / s, at their posterior mean basal
    states z; `se` is its standard error over those cells. The decoder is not linear, so the step s
    is the mean size of the mechanism's active effects, in their average direction. If that is below
    1, or no perturbation uses the mechanism, the loading is [y_g(z + e_k) - y_g(z - e_k)] / 2 and
    the step is given as 0. Values that are not counts are not transformed. Columns are mechanism,
    gene, loading, se and step.
    """
    z, nowhere = reference.loc, torch.zeros(model.n_shift)
    steps = typical_effects(model)
    frames = []
    for k in range(z.shape[1]):
        axis = torch.zeros_like(z[0])
        axis[k] = 1
        ends = (steps[k], 0.0) if steps[k] else (1.0, -1.0)
        far, near = (model.level(model.decoded_means(z + end * axis, nowhere)) for end in ends)
        mean, se = mean_slope(far, near, ends[0] - ends[1])
        frames.append(
            pd.DataFrame(
                {"mechanism": k, "gene": genes, "loading": mean, "se": se, "step": steps[k]}
            )
        )
    return pd.concat(frames, ignore_index=True)


def mean_slope(
    far: Float[Tensor, "R G"], near: Float[Tensor, "R G"], step: float
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return mean and standard error over reference cells of (far - near) / step, by gene."""
    slope, n = ((far - near) / step).double(), len(far)
    mean = slope.mean(0)
    spread = torch.linalg.vector_norm(slope - mean, dim=0)  # three times as fast as std
    return mean.numpy(), (spread / (n * (n - 1)) ** 0.5).numpy()


@torch.inference_mode()
def loading_curves(
    model: SAMSVAE,
    reference: Reference,
    genes: list[str],
    mechanisms: Sequence[int] | None = None,
    steps: Sequence[float] = STEPS,
) -> pd.DataFrame:
    """Return loadings in both directions and at several steps, for all mechanisms unless named.

    They are [y_g(z + s e_k) - y_g(z)] / s as in `loadings`, with s a multiple from `steps` of the
    typical effect on the mechanism (or of 1 where that is 0; the loading itself is then the mean of
    multiples 1 and -1). For a linear decoder all are equal. Columns are mechanism, gene, multiple,
    step (s, in prior standard deviations), loading and se.
    """
    chosen = range(model.config.n_latent) if mechanisms is None else mechanisms
    if any(k not in range(model.config.n_latent) for k in chosen):
        raise ValueError(
            f"Mechanisms are {list(chosen)}; this model has 0 to {model.config.n_latent - 1}."
        )
    if not steps or not np.isfinite(steps).all() or 0 in steps:
        raise ValueError(f"Steps are {list(steps)}; expected finite numbers other than 0.")
    z, nowhere, typical = reference.loc, torch.zeros(model.n_shift), typical_effects(model)
    near = model.level(model.decoded_means(z, nowhere))
    at = [(k, multiple, multiple * (typical[k] or 1.0)) for k in chosen for multiple in steps]
    found = np.empty((2, len(at), len(genes)))
    for row, (k, _, step) in enumerate(at):
        moved = z.clone()
        moved[:, k] += step
        found[:, row] = mean_slope(model.level(model.decoded_means(moved, nowhere)), near, step)
    which, multiples, moves = np.array(at).reshape(-1, 3).T.repeat(len(genes), axis=1)
    return pd.DataFrame(
        {
            "mechanism": which.astype(int),
            "gene": np.tile(np.array(genes, dtype=object), len(at)),
            "multiple": multiples,
            "step": moves,
            "loading": found[0].ravel(),
            "se": found[1].ravel(),
        },
        copy=False,
    )


def linearity(curves: pd.DataFrame) -> pd.DataFrame:
    """Return how far the decoder is from linear along each mechanism, from `loading_curves`.

    The result has one row per mechanism. For each multiple m other than 1, `r m` is the correlation
    over genes between the loadings at m and at 1 (NaN if either is constant), and `ratio m` is the
    ratio of their root mean squares. `linear` means r of at least 0.95 and a ratio of 0.8 to 1.25
    at every multiple from -1 to 1: the loadings of one step then rank the genes for all these
    steps, with sizes right to a quarter. `words` says so for a card.
    """
    rows = {}
    for k, curve in curves.groupby("mechanism", sort=False):
        at = {float(m): part["loading"].to_numpy() for m, part in curve.groupby("multiple")}
        if 1.0 not in at:
            raise ValueError(f"The curves have the multiples {list(at)}; 1 is needed to compare.")
        size = {m: float(np.sqrt(np.mean(loading**2))) for m, loading in at.items()}
        others = [m for m in at if m != 1]
        found = {m: pearson(at[1.0], at[m]) for m in others}
        r = {m: np.nan if value is None else value for m, value in found.items()}
        ratio = {m: size[m] / max(size[1.0], NO_LOADING) for m in others}
        still = max(size.values()) < NO_LOADING
        linear = still or all(
            r[m] >= LINEAR_R and 1 / LINEAR_RATIO <= ratio[m] <= LINEAR_RATIO
            for m in others
            if abs(m) <= 1
        )
        step = curve.loc[curve["multiple"] == 1, "step"].iloc[0]
        told = "; ".join(
            f"{words} r {r[m]:.2f}, {ratio[m]:.2f} times the size"
            for m, words in STEPS_IN_WORDS.items()
            if m in others
        )
        verdict = "Nearly linear" if linear else "Not linear"
        words = f"{verdict}. Against the loadings of the whole step ({step:+.2f}): {told}."
        rows[k] = {
            **{f"r {m:g}": r[m] for m in others},
            **{f"ratio {m:g}": ratio[m] for m in others},
            "linear": linear,
            "words": "No gene moves." if still else words,
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mechanism")


def typical_effects(model: SAMSVAE) -> list[float]:
    """Return the typical signed effect of each mechanism's users; 0 where its size is below 1."""
    effect = model.effect_moments()[0]
    if not effect.shape[1]:
        return [0.0] * model.config.n_latent
    active = (model.mask_probability() > ACTIVE).to(effect)
    size = (effect.abs() * active).sum(0) / active.sum(0).clamp_min(1)
    signed = torch.where((effect * active).sum(0) < 0, -size, size)
    return [float(step) for step in torch.where(size < 1, 0.0, signed)]


def loading_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return loadings as genes x mechanisms, genes in the order of the table."""
    wide = table.pivot(index="gene", columns="mechanism", values="loading")  # noqa: PD010
    return wide.loc[table["gene"].drop_duplicates()]
