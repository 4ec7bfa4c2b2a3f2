"""Evaluate a model on held-out cells, beside baselines taken from the data alone.

The metrics are the predictive IWELBO of held-out cells, average effects beside baselines and the
ceiling of the data, predictive checks, coverage of intervals, and non-additivity. An undefined
figure is None, with its reason unless that is plain.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.cells import CellData, DataError
from samsvae_core.data.splits import UNUSED
from samsvae_core.evaluation import calibration
from samsvae_core.evaluation import shifts as shifts_of
from samsvae_core.evaluation.baselines import (
    baselines,
    ceiling,
    ceiling_figures,
    cell_levels,
    dosage_table,
    halvings,
    is_combination,
    mean_effects,
    observed_effects,
)
from samsvae_core.evaluation.metrics import agreement, figures, jackknife_error
from samsvae_core.evaluation.metrics import mask_recovery as mask_recovery
from samsvae_core.evaluation.metrics import pearson as pearson
from samsvae_core.evaluation.predictive import (
    JACKKNIFE_GROUPS,
    REPLICATE_SETS,
    VALUES_AT_ONCE,
    ModelEffects,
    model_effects,
    predictive_checks,
    predictive_positions,
    seeded,
)
from samsvae_core.evaluation.strata import FEWEST_CELLS, strata_metrics
from samsvae_core.models.bounds import importance_weights, iwelbo
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE

KINDS = ("single", "combination seen in training", "combination not seen in training")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a model is scored. Library sizes: "data" (the condition's held-out cells) or "10000"."""

    iwelbo_samples: int = 100
    effect_draws: int = 10_000  # the paper's 2,500 blur weak effects
    library: str = "data"
    reference: str = "test"  # cells of the observed effects: "test", or "all" as in the paper
    seed: int = 0
    replicate_sets: int = REPLICATE_SETS  # of predictive checks
    shift_draws: int = 64  # of the posterior, in coverage and interaction


class Bound(NamedTuple):
    """Mean of a bound over cells, in nats per cell."""

    mean: float
    mc_error: float  # standard error over the draws of the shared latents
    se: float  # standard error over cells
    n_cells: int


class Evaluation(NamedTuple):
    """Metrics and the tables behind them."""

    metrics: dict[str, Any]  # values JSON can store
    positions: pd.DataFrame  # see `predictive_positions`
    gene_errors: pd.DataFrame | None  # see `calibration.gene_errors`


def evaluate(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    config: EvaluationConfig = EvaluationConfig(),
) -> dict[str, Any]:
    """Return the metrics of metrics.json, those of `full_evaluation`."""
    return full_evaluation(model, data, parts, config).metrics


def full_evaluation(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    config: EvaluationConfig = EvaluationConfig(),
) -> Evaluation:
    """Return all metrics of a model on the test cells, with the tables behind them.

    `parts` is the split of each cell; cells marked unused are ignored. Raises DataError if there is
    no test cell, or if controls or conditions have too few cells.
    """
    used = parts != UNUSED
    data, parts = data.subset(used), parts[used]
    part = {name: data.subset(parts == name) for name in ("train", "validation", "test")}
    n_test = len(part["test"].cells)
    if n_test < FEWEST_CELLS:
        raise DataError(
            f"The split has {n_test or 'no'} test cells; held-out metrics need {FEWEST_CELLS} or "
            "more (--split)."
        )
    bound = held_out_bound(model, Cells(part["test"], model.device), config)
    cells, control_cells = scored_cells(data, parts, config.reference)
    observed = observed_effects(cells, "all" if config.reference == "all" else "held-out")
    predicted = model_effects(
        model, cells, observed.index, config.effect_draws, config.library, config.seed
    )
    trained = set(part["train"].conditions)
    table = Table(observed, kinds(observed.index, trained), replicate_effects(cells))
    dosages = dosage_table(cells, observed.index)
    simple = baselines(observed, part["train"], part["validation"], dosages)
    positions = predictive_positions(model, part["test"], config.replicate_sets, config.seed)
    shifts = shift_metrics(model, data, parts, config, trained)
    metrics = {
        "iwelbo": {
            "test": bound.mean,
            "mc_error": bound.mc_error,
            "se": bound.se,
            "n_cells": bound.n_cells,
            "n_samples": config.iwelbo_samples,
        },
        "average_effects": {
            "reference": config.reference,
            "control_cells": control_cells,
            "library": config.library,
            "n_draws": config.effect_draws,
            **table.row(predicted.mean),
            "mc_error": effect_errors(observed, predicted),
        },
        "baselines": {
            **{name: table.row(frame) for name, frame in simple.items()},
            "split-half": table.ceiling(halvings(cells, config.seed)),
        },
        "predictive_checks": {
            "n_replicate_sets": config.replicate_sets,
            **predictive_checks(positions),
        },
        **shifts.metrics,
        **strata_metrics(data, cells),
    }
    return Evaluation(metrics, positions, shifts.gene_errors)


def evaluate_bundle(bundle: Bundle, data: CellData, config: EvaluationConfig) -> dict[str, Any]:
    """Return the metrics of a stored bundle, on the cells its own split holds out."""
    return evaluate(bundle.model, bundle.align(data), stored_split(bundle, data), config)


def stored_split(bundle: Bundle, data: CellData) -> np.ndarray:
    """Return the split of these cells as stored in the bundle, "" for cells it has not seen."""
    table = pd.read_csv(bundle.path / "split.csv", dtype=str, keep_default_na=False)
    parts = table.set_index("cell")["split"].reindex(data.cells).fillna("").to_numpy(dtype=str)
    if not (parts == "test").any():
        raise DataError(
            f"None of the {len(data.cells)} cells is among the test cells of {bundle.path}. "
            "Use the file the bundle was trained on."
        )
    return parts


def scored_cells(data: CellData, parts: np.ndarray, reference: str) -> tuple[CellData, str]:
    """Return the cells of observed effects, and the part their controls are from.

    If a split holds out no controls, those of validation are used, or else all.
    """
    kept, name = scored(data, parts, reference)
    return data.subset(kept), name


def scored(data: CellData, parts: np.ndarray, reference: str) -> tuple[Bool[np.ndarray, " N"], str]:
    """Return which cells are those of `scored_cells`, and the part of their controls."""
    if reference == "all":
        return np.full(len(parts), True), "all"
    control = data.conditions == data.control
    chosen, name = control, "all"
    for part in ("test", "validation"):
        if (control & (parts == part)).sum() >= FEWEST_CELLS:
            chosen, name = control & (parts == part), part
            break
    return (parts == "test") & ~control | chosen, name


# The bound


@torch.inference_mode()
def held_out_bound(model: SAMSVAE, cells: Cells, config: EvaluationConfig) -> Bound:
    """Return the predictive IWELBO of the cells, with draws of the shared latents common to all.

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


# Average effects


def effect_errors(observed: pd.DataFrame, predicted: ModelEffects) -> dict[str, float | None]:
    """Return the Monte Carlo error of each figure, by a jackknife over groups of draws."""
    found = [agreement(observed, frame) for frame in predicted.left_out]
    names = ("pearson", "pearson_top20", "r2", "cosine", "median", "rank")
    return {name: jackknife_error([f[name] for f in found]) for name in names}


def kinds(conditions: Iterable[str], trained: set[str]) -> pd.Series:
    """Return the kind of each condition, one of KINDS."""
    kind = {
        c: KINDS[0] if not is_combination(c) else KINDS[1] if c in trained else KINDS[2]
        for c in conditions
    }
    return pd.Series(kind, dtype=str)


def replicate_effects(cells: CellData) -> dict[str, tuple[int, pd.DataFrame]] | None:
    """Return cells and observed effects of each replicate, against its own controls.

    None if the file names no replicates; a table without rows if one has too few cells.
    """
    if cells.replicates is None:
        return None
    found = {}
    for name in sorted(set(cells.replicates) - {""}):
        own = cells.subset(cells.replicates == name)
        effects = mean_effects(cell_levels(own), own.control, own.genes)
        found[str(name)] = len(own.cells), effects
    return found


class Table(NamedTuple):
    """The observed effects that every row of the table of average effects is compared with."""

    observed: pd.DataFrame
    kinds: pd.Series
    replicates: dict[str, tuple[int, pd.DataFrame]] | None

    def row(self, predicted: pd.DataFrame) -> dict[str, Any]:
        """Return the agreement of predicted effects on the conditions they are defined for."""
        predicted = predicted.dropna()
        names = predicted.index
        by_kind = {}
        for kind in self.present():
            own = names[(self.kinds[names] == kind).to_numpy(dtype=bool)]
            found = figures(self.observed.loc[own], predicted.loc[own]) if len(own) else None
            by_kind[kind] = None if found is None else {**found, "n": len(own)}
        return {
            "n_conditions": len(names),
            "n_not_available": len(self.observed) - len(names),
            **agreement(self.observed.loc[names], predicted),
            "kinds": by_kind,
            "replicates": self.by_replicate(predicted),
        }

    def present(self) -> list[str]:
        return [kind for kind in KINDS if (self.kinds == kind).any()]

    def by_replicate(self, predicted: pd.DataFrame) -> dict[str, Any] | None:
        if self.replicates is None:
            return None
        found: dict[str, Any] = {}
        for label, (n_cells, effects) in self.replicates.items():
            names = effects.index.intersection(predicted.index)
            found[label] = {"n_cells": n_cells, "n_conditions": len(names)}
            if effects.empty:
                reason = f"fewer than {FEWEST_CELLS} cells of control or of every condition"
                found[label]["not_available"] = reason
            elif len(names):
                found[label].update(figures(effects.loc[names], predicted.loc[names]))
            else:
                found[label]["not_available"] = "none of its conditions is predicted"
        return found

    def ceiling(self, halves: list[tuple[pd.DataFrame, pd.DataFrame]]) -> dict[str, Any]:
        """Return the row of the data's ceiling, on conditions with cells for two halves."""
        names = halves[0][0].index if halves else self.observed.index[:0]
        by_kind = {}
        for kind in self.present():
            own = names[(self.kinds[names] == kind).to_numpy(dtype=bool)]
            found = ceiling_figures([(a.loc[own], b.loc[own]) for a, b in halves])
            by_kind[kind] = {**found, "n": len(own)} if len(own) else None
        return {
            "n_conditions": len(names),
            "n_not_available": len(self.observed) - len(names),
            **ceiling(halves),
            "kinds": by_kind,
            "replicates": None,
        }


# Shifts on the scale of compositions


class ShiftMetrics(NamedTuple):
    """The results of `shift_metrics`."""

    metrics: dict[str, Any]
    gene_errors: pd.DataFrame | None


def shift_metrics(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    config: EvaluationConfig,
    trained: set[str],
) -> ShiftMetrics:
    """Return model errors learned on validation cells, and coverage and interaction on test cells.

    If no double is held out together with its singles, the interaction is that of all cells.
    """
    reference = shifts_of.reference_cells(model, data, parts)

    def predict(observed: shifts_of.Shifts) -> calibration.Predicted:
        return calibration.predicted_conditions(
            model, reference, data, observed.shift.index, config.shift_draws, config.seed
        )

    # what is learned from validation cells must not know how test cells vary
    seen = shifts_of.variance_of(data, np.flatnonzero(parts != "test"))
    validated = shifts_of.observed_shifts(data, seen, np.flatnonzero(parts == "validation"))
    errors = calibration.gene_errors(validated, predict(validated))
    held_out, _ = scored(data, parts, "test")
    variance = shifts_of.variance_of(data)
    tested = shifts_of.observed_shifts(data, variance, np.flatnonzero(held_out))
    at_test = predict(tested)
    compared, at_compared = tested, at_test
    combined = any(map(is_combination, np.unique(data.conditions)))
    if combined and (config.reference == "all" or not calibration.doubles(tested)):
        compared = shifts_of.observed_shifts(data, variance)  # singles may not be held out
        at_compared = predict(compared)
    learned: dict[str, Any] = {"n_conditions": len(validated.shift)}
    if errors is None and len(validated.shift) < calibration.FEWEST_CONDITIONS:
        learned["not_available"] = (
            f"fewer than {calibration.FEWEST_CONDITIONS} conditions, or too few controls, have "
            f"{FEWEST_CELLS} validation cells"
        )
    elif errors is None:
        learned["not_available"] = (
            f"the sampling error of the validation cells of {len(validated.shift)} conditions "
            "hides the error of the model"
        )
    else:
        learned["median_model_error"] = float(errors["model_error"].median())
    metrics = {
        "calibration": learned,
        "coverage": {
            "n_draws": config.shift_draws,
            **calibration.coverage(tested, at_test, errors, model.has_posterior),
        },
        "interaction": calibration.interaction(
            compared, at_compared, trained, "test" if compared is tested else "all"
        ),
    }
    return ShiftMetrics(metrics, errors)
