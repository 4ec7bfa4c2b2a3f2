"""How good is a model, on cells it has not seen, and beside what a mean would do.

Two figures: the predictive IWELBO of held-out cells, and the correlation of predicted with observed
average effects. The paper's average effect (section 5) is the mean over cells of
log2(1 + 1e4 x / total) minus the same of control; the model's is that of sampled counts. It is
another scale than `composition`'s shift and is used here alone, so that figures compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.bundle import Bundle
from samsvae_core.data import CellData, DataError
from samsvae_core.inference import Cells, importance_weights, iwelbo
from samsvae_core.model import PER_TEN_THOUSAND, SAMSVAE

FEWEST_CELLS = 3  # of a condition: below it an average effect is not reported
TOP_GENES = 20
JACKKNIFE_GROUPS = 10
VALUES_AT_ONCE = 2**23  # samples x cells x genes held in memory


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is scored. Library sizes: "data" (the condition's held-out cells) or "10000"."""

    iwelbo_samples: int = 100
    effect_draws: int = 2500
    library: str = "data"
    reference: str = "test"  # cells the observed effects are from: "test", or "all" as the paper
    seed: int = 0


class Bound(NamedTuple):
    """Mean of a bound over cells, in nats per cell."""

    mean: float
    mc_error: float  # standard error over the draws of the shared latents
    se: float  # standard error over cells
    n_cells: int


def evaluate(
    bundle_model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    config: EvaluationConfig = EvaluationConfig(),
) -> dict[str, Any]:
    """Metrics of metrics.json: IWELBO of the test cells, average effects, the same of baselines.

    `parts` is the split of each cell. Raises DataError where there is no test cell or control.
    """
    test = data.subset(parts == "test")
    if len(test.cells) == 0:
        raise DataError("The split has no test cells; held-out metrics need some (--split).")
    bound = held_out_bound(bundle_model, Cells(test, model_device(bundle_model)), config)
    reference = data if config.reference == "all" else test
    observed = observed_effects(reference)
    predicted = model_effects(bundle_model, reference, observed.index, config)
    trained = observed_effects(data.subset(parts == "train"))
    return {
        "iwelbo": {
            "test": bound.mean,
            "mc_error": bound.mc_error,
            "se": bound.se,
            "n_cells": bound.n_cells,
            "n_samples": config.iwelbo_samples,
        },
        "average_effects": {
            "reference": config.reference,
            "library": config.library,
            "n_conditions": len(observed),
            "n_draws": config.effect_draws,
            **agreement(observed, predicted),
        },
        "baselines": {
            name: agreement(observed, frame) for name, frame in baselines(observed, trained).items()
        },
    }


def evaluate_bundle(bundle: Bundle, data: CellData, config: EvaluationConfig) -> dict[str, Any]:
    """`evaluate` for a stored bundle, on the cells its own split holds out."""
    return evaluate(bundle.model, bundle.align(data), stored_split(bundle, data), config)


def stored_split(bundle: Bundle, data: CellData) -> np.ndarray:
    """The split of these cells as the bundle recorded it, "" for cells it has not seen."""
    table = pd.read_csv(bundle.path / "split.csv", dtype=str, keep_default_na=False)
    parts = table.set_index("cell")["split"].reindex(data.cells).fillna("").to_numpy(dtype=str)
    if not (parts == "test").any():
        raise DataError(
            f"None of the {len(data.cells)} cells is among the test cells of {bundle.path}. "
            "Use the file the bundle was trained on."
        )
    return parts


@torch.inference_mode()
def held_out_bound(model: SAMSVAE, cells: Cells, config: EvaluationConfig) -> Bound:
    """Predictive IWELBO of the cells, draws of the shared latents common to all of them.

    The Monte Carlo error is a delete-a-group jackknife over those draws.
    """
    n_samples, n_cells = config.iwelbo_samples, len(cells)
    size = max(1, VALUES_AT_ONCE // (n_samples * model.config.n_genes))
    groups = torch.arange(n_samples) % min(JACKKNIFE_GROUPS, n_samples)
    per_cell, left_out = [], torch.zeros(int(groups.max()) + 1, dtype=torch.float64)
    with seeded(config.seed, cells.device):
        effects = model.effects(n_samples)
        for index in torch.arange(n_cells, device=cells.device).split(size):
            weights = (
                importance_weights(model, cells.batch(index), effects).double().cpu()
            )  # (S, n)
            per_cell.append(iwelbo(weights))
            for g in range(len(left_out)):
                left_out[g] += iwelbo(weights[groups != g]).sum() / n_cells
    values = torch.cat(per_cell)
    count = len(left_out)
    spread = ((left_out - left_out.mean()) ** 2).sum() * (count - 1) / count
    se = values.std().item() / math.sqrt(n_cells) if n_cells > 1 else math.nan
    return Bound(values.mean().item(), math.sqrt(spread.item()), se, n_cells)


def observed_effects(data: CellData) -> pd.DataFrame:
    """Average effect of every condition with enough cells, conditions x genes.

    Cells without counts say nothing of proportions and are left out.
    """
    total = (
        np.asarray(data.counts.sum(axis=1)).ravel() if not data.has_size_factor else data.library
    )
    kept = total > 0
    scaled = sp.diags_array(PER_TEN_THOUSAND / total[kept]) @ data.counts[kept]
    levels = sp.csr_matrix(scaled)
    levels.data = np.log2(1 + levels.data)
    code, names = pd.factorize(data.conditions[kept])
    n = np.bincount(code)
    member = sp.csr_matrix((np.ones(len(code)), (code, np.arange(len(code)))))
    means = pd.DataFrame((member @ levels).toarray() / n[:, None], index=names, columns=data.genes)
    enough = names[n >= FEWEST_CELLS]
    if data.control not in enough:
        raise DataError(
            f"Fewer than {FEWEST_CELLS} control cells ({data.control}) are among the held-out "
            "cells; average effects need them. Use a split that holds out controls too."
        )
    if len(enough) == 1:
        raise DataError(
            f"No condition has {FEWEST_CELLS} cells or more among the held-out cells; average "
            "effects need some. Hold out more cells."
        )
    effects = means.loc[enough] - means.loc[data.control]
    return effects.drop(index=data.control).sort_index()


@torch.inference_mode()
def model_effects(
    model: SAMSVAE, data: CellData, conditions: pd.Index, config: EvaluationConfig
) -> pd.DataFrame:
    """Average effects of sampled counts: basal states from the prior, common to all conditions."""
    device = model_device(model)
    dosages = {c: data.dosages[np.flatnonzero(data.conditions == c)[0]] for c in conditions}
    rng = np.random.default_rng(config.seed)
    with seeded(config.seed, device):
        effects = model.effects(config.effect_draws)
        z_basal = torch.randn(config.effect_draws, model.config.n_latent, device=device)
        control = average_level(model, z_basal, libraries(data, data.control, config, rng))
        rows = []
        for condition in conditions:
            D = torch.as_tensor(dosages[condition].toarray(), device=device)  # (1, T)
            z = z_basal + effects.shift(D)[:, 0]
            depth = libraries(data, condition, config, rng)
            rows.append(average_level(model, z, depth) - control)
    return pd.DataFrame(torch.stack(rows).cpu().numpy(), index=conditions, columns=data.genes)


def average_level(
    model: SAMSVAE, z: Float[Tensor, "S K"], library: Float[np.ndarray, " S"]
) -> Float[Tensor, " G"]:
    """Mean over draws of log2(1 + 1e4 x / total), x sampled at state z and depth `library`."""
    size = max(1, VALUES_AT_ONCE // model.config.n_genes)
    depth = torch.as_tensor(library, dtype=torch.float32, device=z.device)[:, None]
    total = torch.zeros(model.config.n_genes, device=z.device)
    n_drawn = 0
    for states, depths in zip(z.split(size), depth.split(size), strict=True):
        x = model.decode(states[None], depths).sample()[0]
        totals = depths if model.config.other_genes else x.sum(-1, keepdim=True)
        seen = totals[:, 0] > 0
        levels = torch.log2(1 + PER_TEN_THOUSAND * x[seen] / totals[seen])
        total += levels.sum(0)
        n_drawn += int(seen.sum())
    return total / max(1, n_drawn)


def libraries(
    data: CellData, condition: str, config: EvaluationConfig, rng: np.random.Generator
) -> np.ndarray:
    """Library sizes to draw counts at."""
    if config.library == "10000":
        return np.full(config.effect_draws, 1e4)
    pool = data.library[data.conditions == condition]
    return rng.choice(pool[pool > 0], size=config.effect_draws)


def baselines(observed: pd.DataFrame, trained: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Predictions without a model: what one should at least beat."""
    trained = trained.reindex(index=observed.index, columns=observed.columns)
    everywhere = trained.mean(axis=0)
    return {
        "no change": observed * 0,
        "mean over perturbations": observed * 0 + everywhere,
        "training mean": trained.fillna(0),
    }


def agreement(observed: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, Any]:
    """Pooled and per-condition agreement of predicted with observed effects; None where undefined.

    Top 20: the genes with the largest observed effect of each condition.
    """
    x, y = observed.to_numpy(), predicted.to_numpy()
    top = np.argsort(-np.abs(x), axis=1)[:, :TOP_GENES]
    x_top, y_top = (np.take_along_axis(a, top, axis=1) for a in (x, y))
    return {
        "pearson": pearson(x.ravel(), y.ravel()),
        "pearson_top20": pearson(x_top.ravel(), y_top.ravel()),
        "r2": r_squared(x.ravel(), y.ravel()),
        "cosine": cosine(x.ravel(), y.ravel()),
        "per_perturbation": {
            str(name): pearson(a, b) for name, a, b in zip(observed.index, x, y, strict=True)
        },
    }


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Correlation, or None where either side is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def r_squared(observed: np.ndarray, predicted: np.ndarray) -> float | None:
    """1 - squared error over variance: below 0 where the mean of the data would do better."""
    variance = ((observed - observed.mean()) ** 2).sum()
    return float(1 - ((observed - predicted) ** 2).sum() / variance) if variance > 0 else None


def cosine(x: np.ndarray, y: np.ndarray) -> float | None:
    norm = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / norm) if norm > 0 else None


def mask_recovery(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 of mask entries, after the best matching of mechanisms.

    Mechanisms are matched by the number of entries they share (Hungarian algorithm), as in the
    paper's simulations; unmatched found entries count as false.
    """
    from scipy.optimize import linear_sum_assignment

    shared = found.astype(float).T @ true.astype(float)  # (K found, K true)
    hits = shared[linear_sum_assignment(-shared)].sum()
    precision, recall = hits / max(found.sum(), 1), hits / max(true.sum(), 1)
    f1 = 2 * hits / max(found.sum() + true.sum(), 1)
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def model_device(model: SAMSVAE) -> torch.device:
    return model.mask_logits.device


class seeded:
    """Random numbers inside are those of `seed`; those outside are left as they were."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self.fork.__exit__(*error)  # type: ignore[arg-type]
