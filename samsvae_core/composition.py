"""What perturbations do together: a predicted shift per gene, with what it rests on."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.bundle import Bundle
from samsvae_core.calibration import INTERVAL, WITHIN, predicted_shifts

SUPPORT = {
    "measured": "Measured: this condition is in the training data.",
    "control": "Nothing is perturbed: the shift is zero by construction.",
    "singles": "Each part was measured alone, the combination not: a prediction from its parts.",
    "in combination only": "A part was measured only inside another combination, never alone.",
    "dosage": "A dosage lies outside those in the training data: an extrapolation.",
    "never": "A part has no training cells: nothing is known of it; this is no prediction.",
}
SCALES = {
    True: "log2(1 + 1e4 p) of the condition minus that of control; p = mean decoded proportion "
    "over reference control cells",
    False: "mean decoded value over reference control cells, of the condition minus that of "
    "control, in the units of the data",
}


class UnknownPerturbationError(ValueError):
    """A perturbation the model has never seen; the message suggests the nearest name."""


@dataclass(frozen=True)
class Composition:
    """The predicted shift of one condition, by gene, and what it rests on."""

    condition: str
    dosages: dict[str, float]
    without: tuple[int, ...]
    table: pd.DataFrame  # index gene: the columns of COLUMNS
    support: str  # a key of SUPPORT
    n_samples: int
    seed: int
    n_reference: int
    n_observed: int  # cells of the measured condition, 0 where it was not measured
    is_counts: bool = True  # else shifts are differences of the file's own values

    def settings(self) -> dict[str, Any]:
        """What the numbers rest on, as stored beside an exported table."""
        calibrated = ""
        if self.table["calibrated_lower"].notna().any():
            calibrated = (
                "; calibrated interval: widened so that 90 % of validation effects fall inside, "
                "sampling aside"
            )
        return {
            "condition": self.condition,
            "dosages": self.dosages,
            "without_mechanisms": list(self.without),
            "support": self.support,
            "support_meaning": SUPPORT[self.support],
            "n_samples": self.n_samples,
            "seed": self.seed,
            "n_reference_cells": self.n_reference,
            "n_observed_cells": self.n_observed,
            "interval": list(INTERVAL),
            "scale": SCALES[self.is_counts] + "; interval over posterior draws of masks and "
            "embeddings (the model's own uncertainty, which tends to be too narrow)" + calibrated,
        }


def compose(
    bundle: Bundle,
    dosages: Mapping[str, float],
    without: Collection[int] = (),
    n_samples: int = 64,
    seed: int = 0,
) -> Composition:
    """Predicted shift of perturbations given together, against control.

    Posterior draws of masks and embeddings; the same basal states (reference control cells) in
    every arm, so that intervals are of the effect and not of the spread between cells. Mechanisms
    in `without` are taken out of the sum. `interaction` is the composed shift minus the sum of the
    single shifts on the same draws: additive in the latent space is not additive in expression.
    Intervals are widened where need be to hold the mean, which rare draws can pull out of them.
    `probability_of_sign` is the share of draws with the sign of the mean shift (0.5 where the shift
    is zero). A model without a posterior of effects has no intervals: they are NaN. Raises
    UnknownPerturbationError for a name the model does not know, ValueError for a dosage that is no
    finite number of at least 0, an unknown mechanism, fewer than 2 draws, or several perturbations
    given to a model that cannot put them together.
    """
    dosages = checked_dosages(bundle, dosages)
    without = checked_mechanisms(bundle, without)
    if n_samples < 2:
        raise ValueError(f"n_samples is {n_samples}; an interval needs at least 2 draws.")
    given = {name: dose for name, dose in dosages.items() if dose != 0}
    if len(given) > 1 and not bundle.model.composes:
        raise ValueError(
            f"{bundle.title} takes every combination as a treatment of its own and cannot put "
            f"perturbations together; {len(given)} were given. Give one, or choose another model."
        )
    arms = [given] + [{name: dose} for name, dose in given.items() if len(given) > 1]
    draws = shifts(bundle, arms, without, n_samples, seed)  # (A, S, G)
    singles = draws[1:].sum(0) if len(given) > 1 else draws[0]
    table = pd.DataFrame(summary(draws[0]), index=pd.Index(bundle.genes, name="gene"))
    table["sum_of_singles"] = singles.mean(0)
    interaction = summary(draws[0] - singles)
    table["interaction"] = interaction["shift"]
    table["interaction_lower"], table["interaction_upper"] = (
        interaction["lower"],
        interaction["upper"],
    )
    if not bundle.model.has_posterior:
        own = ["lower", "upper", "probability_of_sign", "interaction_lower", "interaction_upper"]
        table[own] = np.nan
    name = condition_name(given, bundle.control)
    observed = bundle.observed_shift(name) if given else None
    table["observed"] = np.nan if observed is None else observed["shift"]
    table["observed_se"] = np.nan if observed is None else observed["se"]
    reach = half_width(bundle, draws[0])
    table["calibrated_lower"], table["calibrated_upper"] = (
        table["shift"] - reach,
        table["shift"] + reach,
    )
    return Composition(
        condition=name,
        dosages=dosages,
        without=without,
        table=table,
        support=support(bundle, given),
        n_samples=n_samples,
        seed=seed,
        n_reference=len(bundle.reference.loc),
        n_observed=0 if observed is None else int(observed["n"].max()),
        is_counts=bundle.model.config.likelihood == "counts",
    )


def compare(
    bundle: Bundle,
    first: Composition,
    second: Composition,
) -> pd.DataFrame:
    """The difference of two compositions of one bundle, by gene: first minus second.

    On common posterior draws and basal states, so that what they share cancels out. Columns first,
    second (their shifts), difference, lower, upper (the model's own 90 % interval of the
    difference) and probability_of_sign; NaN where the model has no posterior. Raises ValueError
    where they were made with different draws.
    """
    if (first.n_samples, first.seed) != (second.n_samples, second.seed):
        raise ValueError(
            f"The compositions have {first.n_samples} and {second.n_samples} draws of the seeds "
            f"{first.seed} and {second.seed}; compose both with the same."
        )
    drawn = [
        shifts(bundle, [dict(one.dosages)], one.without, one.n_samples, one.seed)[0]
        for one in (first, second)
    ]
    found = summary(drawn[0] - drawn[1])
    table = pd.DataFrame(
        {
            "first": first.table["shift"],
            "second": second.table["shift"],
            "difference": found.pop("shift"),
            **found,
        }
    )
    if not bundle.model.has_posterior:
        table[["lower", "upper", "probability_of_sign"]] = np.nan
    return table


def half_width(bundle: Bundle, draws: Float[np.ndarray, "S G"]) -> Float[np.ndarray, " G"]:
    """Of the calibrated 90 % interval: posterior spread and the model's error on validation cells.

    Zero where nothing moves by construction would be no knowledge: the error of the model stays.
    NaN where the bundle could not be calibrated.
    """
    if bundle.calibration is None:
        return np.full(len(bundle.genes), np.nan)
    error = bundle.calibration.set_index("gene")["model_error"].reindex(bundle.genes)
    return WITHIN * np.hypot(draws.std(0, ddof=1), error.to_numpy())


def shifts(
    bundle: Bundle,
    arms: list[dict[str, float]],
    without: tuple[int, ...],
    n_samples: int,
    seed: int,
) -> Float[np.ndarray, "A S G"]:
    """Shift of each arm under each posterior draw: common draws, common basal states."""
    names = list(bundle.perturbations.index)
    D = torch.zeros(len(arms), len(names))
    for row, arm in enumerate(arms):
        for name, dose in arm.items():
            D[row, names.index(name)] = dose
    return predicted_shifts(bundle.model, bundle.reference, D, n_samples, seed, without)


def summary(draws: Float[np.ndarray, "S G"]) -> dict[str, Float[np.ndarray, " G"]]:
    """Mean, 90 % interval and probability of sign over posterior draws."""
    mean = draws.mean(0)
    lower, upper = np.quantile(draws, INTERVAL, axis=0)
    same_sign = (np.sign(draws) == np.sign(mean)).mean(0)
    return {
        "shift": mean,
        "lower": np.minimum(lower, mean),
        "upper": np.maximum(upper, mean),
        "probability_of_sign": np.where(mean == 0, 0.5, same_sign),
    }


def checked_dosages(bundle: Bundle, dosages: Mapping[str, float]) -> dict[str, float]:
    known = list(bundle.perturbations.index)
    for name, dose in dosages.items():
        if name not in known:
            raise UnknownPerturbationError(unknown(name, known))
        if not np.isfinite(dose) or dose < 0:
            raise ValueError(
                f"The dosage of {name} is {dose}; expected a finite number, 0 or more."
            )
    return {name: float(dose) for name, dose in sorted(dosages.items())}


def checked_mechanisms(bundle: Bundle, mechanisms: Collection[int]) -> tuple[int, ...]:
    n_latent = bundle.model.config.n_latent if bundle.model.has_shifts else 0
    if mechanisms and not n_latent:
        raise ValueError(f"{bundle.title} has no mechanisms to take out.")
    wrong = sorted(k for k in mechanisms if not 0 <= k < n_latent)
    if wrong:
        raise ValueError(f"There is no mechanism {wrong[0]}; this model has 0 to {n_latent - 1}.")
    return tuple(sorted(set(mechanisms)))


def unknown(name: str, known: list[str]) -> str:
    """What to say of a perturbation that is not in the model."""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) > 1 and set(parts) <= set(known):
        return f"{name!r} is no perturbation but {len(parts)}: name each by itself."
    folded = {k.casefold(): k for k in known}
    near = difflib.get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.5)
    hint = f"Did you mean {folded[near[0]]}?" if near else f"Known: {', '.join(known[:10])}, ..."
    return f"This model knows no perturbation {name!r} (it knows {len(known)}). {hint}"


def condition_name(dosages: Mapping[str, float], control: str) -> str:
    """The label of these dosages as the bundle spells it: A+B, A+B:0.5, or control."""
    parts = [name if dose == 1 else f"{name}:{dose:g}" for name, dose in sorted(dosages.items())]
    return "+".join(parts) or control


def support(bundle: Bundle, dosages: Mapping[str, float]) -> str:
    """How far the training data carry a composition: a key of SUPPORT, the worst that holds."""
    if not dosages:
        return "control"
    trained = bundle.conditions[bundle.conditions["train"] > 0]
    if condition_name(dosages, bundle.control) in trained.index:
        return "measured"
    cells = bundle.perturbations
    if any(cells.loc[name, "train"] == 0 for name in dosages):
        return "never"
    inside = (cells.loc[name, ["dosage_min", "dosage_max"]] for name in dosages)
    if any(
        not low <= dose <= high for dose, (low, high) in zip(dosages.values(), inside, strict=True)
    ):
        return "dosage"
    if all(cells.loc[name, "train_alone"] > 0 for name in dosages):
        return "singles"
    return "in combination only"
