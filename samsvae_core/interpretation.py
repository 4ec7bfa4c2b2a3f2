"""What each perturbation and each mechanism does: masks, effects and loadings, as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.agreement import pearson
from samsvae_core.bundle import Bundle, Reference
from samsvae_core.data import CellData
from samsvae_core.inference import Cells
from samsvae_core.model import ACTIVE, SAMSVAE

CELLS_AT_ONCE = 2048  # dense rows held in memory
STEPS = (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)  # of loading curves, in typical effects
STEPS_IN_WORDS = {0.5: "half the step", -1.0: "the opposite direction", 2.0: "twice the step"}
LINEAR_R, LINEAR_RATIO = 0.95, 1.25  # least r, and largest ratio of sizes either way
NO_LOADING = 1e-5  # root mean square: rounding, and no effect on any gene


def mask_table(model: SAMSVAE, perturbations: list[str]) -> pd.DataFrame:
    """One row per perturbation and mechanism: probability, effect, effect_sd, active.

    `effect` is E[mask x embedding], in prior standard deviations of the basal state, `effect_sd`
    its standard deviation, both under the posterior. No row where the model has no latent shifts.
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
    """A column of the mask table as perturbations x mechanisms."""
    wide = masks.pivot(index="perturbation", columns="mechanism", values=column)  # noqa: PD010
    return wide.loc[masks["perturbation"].drop_duplicates()]


def active_mechanisms(masks: pd.DataFrame) -> list[int]:
    """Mechanisms that at least one perturbation uses."""
    return sorted(int(k) for k in masks.loc[masks["active"], "mechanism"].unique())


@torch.inference_mode()
def loadings(model: SAMSVAE, reference: Reference, genes: list[str]) -> pd.DataFrame:
    """What one mechanism does to the level of each gene, per prior standard deviation.

    With y(z) = log2(1 + 1e4 softmax(decoder(z))), the loading of mechanism k on gene g is the mean
    over reference control cells of [y_g(z + s e_k) - y_g(z)] / s, the basal states z held at their
    posterior means; `se` is its standard error over those cells. The decoder is not linear, so the
    step s is as far as perturbations go: the mean size of the active effects, in the direction they
    have on average. Where that is below 1 or nobody uses the mechanism: [y_g(z + e_k) -
    y_g(z - e_k)] / 2, told as step 0. Values that are not counts are not transformed. Columns
    mechanism, gene, loading, se, step.
    """
    z, nowhere = reference.loc, torch.zeros(model.n_shift)
    steps = typical_effects(model)
    frames = []
    for k in range(z.shape[1]):
        axis = torch.zeros_like(z[0])
        axis[k] = 1
        ends = (steps[k], 0.0) if steps[k] else (1.0, -1.0)
        far, near = (model.level(model.moved_means(z + end * axis, nowhere)) for end in ends)
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
    """(far - near) / step of each gene: its mean and standard error over reference cells."""
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
    """Loadings of mechanisms (of all, unless named) in both directions and at several steps.

    [y_g(z + s e_k) - y_g(z)] / s as in `loadings`, with s each of `steps` times the typical effect
    on the mechanism (times 1 where that is 0: there the loading itself is the mean of multiples 1
    and -1). Of a linear decoder all are the same. Columns mechanism, gene, multiple, step, loading,
    se; `multiple` is the entry of `steps` and `step` is s, in prior standard deviations.
    """
    chosen = range(model.config.n_latent) if mechanisms is None else mechanisms
    if any(k not in range(model.config.n_latent) for k in chosen):
        raise ValueError(
            f"Mechanisms are {list(chosen)}; this model has 0 to {model.config.n_latent - 1}."
        )
    if not steps or not np.isfinite(steps).all() or 0 in steps:
        raise ValueError(f"Steps are {list(steps)}; expected finite numbers other than 0.")
    z, nowhere, typical = reference.loc, torch.zeros(model.n_shift), typical_effects(model)
    near = model.level(model.moved_means(z, nowhere))
    at = [(k, multiple, multiple * (typical[k] or 1.0)) for k in chosen for multiple in steps]
    found = np.empty((2, len(at), len(genes)))
    for row, (k, _, step) in enumerate(at):
        moved = z.clone()
        moved[:, k] += step
        found[:, row] = mean_slope(model.level(model.moved_means(moved, nowhere)), near, step)
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
    """How far the decoder is from linear along each mechanism, from `loading_curves`.

    A row per mechanism. For each multiple m but 1, `r m` and `ratio m`: the correlation over genes
    of the loadings there with those at multiple 1 (NaN where either are constant), and the ratio of
    their sizes (root mean square). `linear`: r of at least 0.95 and a ratio of 0.8 to 1.25 at every
    multiple from -1 to 1, so that the loadings of one step rank the genes for all of them and tell
    sizes to a quarter. `words` says so, for a card.
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
    """Per mechanism, how far and in which direction its users move; 0 where that is below 1."""
    effect = model.effect_moments()[0]
    if not effect.shape[1]:
        return [0.0] * model.config.n_latent
    active = (model.mask_probability() > ACTIVE).to(effect)
    size = (effect.abs() * active).sum(0) / active.sum(0).clamp_min(1)
    signed = torch.where((effect * active).sum(0) < 0, -size, size)
    return [float(step) for step in torch.where(size < 1, 0.0, signed)]


def loading_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Loadings as genes x mechanisms, genes in the order of the table."""
    wide = table.pivot(index="gene", columns="mechanism", values="loading")  # noqa: PD010
    return wide.loc[table["gene"].drop_duplicates()]


def orient(model: SAMSVAE) -> None:
    """Fix what the likelihood leaves open: the order and the sign of the mechanisms, in place.

    Mechanisms used by most perturbations come first, and each points where its active effects (all
    effects, if none is active) point on average. Encoder, decoder and posterior are permuted and
    flipped together, so that every prediction stays as it was.
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


def similar_perturbations(masks: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Other perturbations by shared mechanisms: Jaccard index of active sets, cosine of effects.

    The Jaccard index is 0 where either set is empty.
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


def similar_shifts(effects: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Other perturbations by their shifts of expression, from a whole `genes.effect_table`.

    As `similar_rows` says.
    """
    names = [str(name) for name in effects["perturbation"].unique()]
    predicted, observed = (
        effects[column].to_numpy(float).reshape(len(names), -1) for column in ("shift", "observed")
    )
    cells = effects["n_observed"].to_numpy().reshape(len(names), -1)[:, 0]
    return similar_rows(names, predicted, observed, cells, perturbation)


def similar_rows(
    names: list[str],
    predicted: Float[np.ndarray, "P G"],
    observed: Float[np.ndarray, "P G"],
    cells: np.ndarray,
    perturbation: str,
) -> pd.DataFrame:
    """Other perturbations by the shifts of genes in their rows, most alike first.

    Indexed by perturbation: `r_predicted`, Pearson r over genes between the mean predicted shifts;
    `r_observed`, between those measured, all splits; `n_observed`, cells of the other perturbation
    alone. NaN where a side was not measured or moves no gene. Measured shifts share their control
    cells, whose sampling error lifts `r_observed`; their own lowers it.
    """
    if perturbation not in names:
        raise ValueError(
            f"{perturbation!r} is none of the {len(names)} perturbations in this table of effects."
        )
    place = names.index(perturbation)
    frame = pd.DataFrame(
        {
            "r_predicted": [pearson(predicted[place], row) for row in predicted],
            "r_observed": [
                pearson(observed[place][known], row[known])
                for row in observed
                for known in [np.isfinite(observed[place]) & np.isfinite(row)]
            ],
            "n_observed": cells,
        },
        index=pd.Index(names, name="perturbation"),
    ).astype({"r_predicted": float, "r_observed": float})
    return frame.drop(index=perturbation).sort_values("r_predicted", ascending=False, kind="stable")


def strengths(masks: pd.DataFrame) -> pd.DataFrame:
    """How far each perturbation moves the latent state, the farthest first.

    Indexed by perturbation: `strength`, the length of its mean effects over all mechanisms, in
    prior standard deviations of the basal state, and `sd`, the posterior standard deviation of that
    length to first order, with mechanisms independent: sqrt(sum (effect x effect_sd)^2) / strength.
    """
    effect, sd = masks["effect"], masks["effect_sd"]
    squares = pd.DataFrame({"strength": effect**2, "sd": (effect * sd) ** 2})
    found = squares.groupby(masks["perturbation"], sort=False).sum() ** 0.5
    found["sd"] /= found["strength"].clip(lower=1e-12)
    return found.sort_values("strength", ascending=False, kind="stable")


def near_misses(masks: pd.DataFrame) -> pd.DataFrame:
    """Entries that are off though held-out cells speak for them, most evidence first.

    Their evidence is above two of its standard errors. Of many entries tried some pass by chance:
    two and a half in a hundred.
    """
    off = masks[~masks["active"] & (masks["evidence"] > 2 * masks["evidence_se"])]
    return off.sort_values("evidence", ascending=False)


def used_by(bundle: Bundle, mechanism: int) -> pd.DataFrame:
    """Perturbations that use a mechanism, strongest first, with their effect and its sd."""
    rows = bundle.masks[(bundle.masks["mechanism"] == mechanism) & bundle.masks["active"]]
    return rows.sort_values("effect", key=np.abs, ascending=False).drop(columns="mechanism")


@torch.inference_mode()
def embed(bundle: Bundle, data: CellData) -> dict[str, Float[np.ndarray, "N K"]]:
    """Posterior mean states of cells: "basal", and "shifted" (basal plus their mean shift).

    The two are one where the model has no latent shifts.
    """
    cells = Cells(bundle.align(data), torch.device("cpu"))
    return states(bundle.model, cells)


@torch.inference_mode()
def states(model: SAMSVAE, cells: Cells) -> dict[str, Float[np.ndarray, "N K"]]:
    """`embed` for cells already on a device, in batches."""
    basal, shifts = [], []
    for index in torch.arange(len(cells), device=cells.device).split(CELLS_AT_ONCE):
        batch = cells.batch(index)
        shift = model.mean_shift(batch.D)
        basal.append(model.encode(batch.x, shift[None]).loc[0])
        shifts.append(shift if model.has_shifts else torch.zeros_like(basal[-1]))
    start, move = torch.cat(basal).cpu().numpy(), torch.cat(shifts).cpu().numpy()
    return {"basal": start, "shifted": start + move}


@torch.inference_mode()
def decoded_values(bundle: Bundle, gene: str) -> Float[np.ndarray, " N"] | None:
    """The level of a gene that the decoder gives each of `bundle.cells` at its shifted state.

    log2(1 + 1e4 p) of counts, p the decoded share: what the model expects of the cell, with none of
    the noise of a measurement. None where the bundle does not hold the whole state.
    """
    states = [f"shifted M{k}" for k in range(bundle.model.config.n_latent)]
    if not set(states) <= set(bundle.cells):
        return None
    z, place = torch.from_numpy(bundle.cells[states].to_numpy()), bundle.genes.index(gene)
    nowhere, model = torch.zeros(bundle.model.n_shift), bundle.model
    parts = [model.level(model.moved_means(part, nowhere))[:, place] for part in z.split(256)]
    return torch.cat(parts).numpy()


def clustered(wide: pd.DataFrame, by: pd.DataFrame) -> pd.DataFrame:
    """Rows of `wide` with similar rows of `by` together (average linkage), fullest group first."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(by) < 3:
        return wide
    order = leaves_list(linkage(by.to_numpy(), method="average", optimal_ordering=True))
    if (
        by.iloc[order[: len(by) // 2]].to_numpy().sum()
        < by.iloc[order[::-1][: len(by) // 2]].to_numpy().sum()
    ):
        order = order[::-1]
    return wide.loc[by.index[order]]
