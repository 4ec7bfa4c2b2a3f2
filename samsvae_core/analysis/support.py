"""How well the data support a composition: whether it was measured, and what lies nearest."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.system.messages import close, either

SUPPORT = {
    "measured": "Measured: this condition is in the training data.",
    "control": "Nothing is perturbed: the shift is zero by construction.",
    "singles": "Each part was measured alone, but not together: a prediction from its parts.",
    "in combination only": "A part was measured only inside another combination, never alone.",
    "dosage": "A dosage is below the least or above the largest in the training data: an "
    "extrapolation.",
    "never": "A part has no training cells: nothing is known about it, so this is no prediction.",
}
MOST_SUGGESTED = 4  # names suggested for an unknown one
AS_NEAR = 1e-9  # relative difference below which distances are equal


class UnknownPerturbationError(ValueError):
    """A perturbation that is not in the model; the message suggests the nearest names."""


class Nearest(NamedTuple):
    """The condition with training cells that is nearest to a composition in latent space.

    Lengths are in standard deviations of the basal state.
    """

    condition: str
    distance: float  # between the two mean latent shifts; 0 if the composition was measured
    length: float  # of the composition's mean latent shift


def nearest_condition(
    bundle: Bundle, dosages: Mapping[str, float], without: Collection[int] = ()
) -> Nearest | None:
    """Return the condition with training cells whose mean latent shift is nearest.

    The distance is Euclidean, in standard deviations of the basal state. Mechanisms in `without`
    are removed from the composition only. Control counts as a condition and wins ties, then the
    first by name; a measured composition is nearest to itself. Conditions whose labels do not give
    their dosages are skipped. None for a model without latent shifts.
    """
    given = {k: dose for k, dose in checked_dosages(bundle, dosages).items() if dose != 0}
    without = checked_mechanisms(bundle, without)
    if not bundle.model.has_shifts or not len(bundle.trained_dosages):
        return None
    rows = bundle.perturbations.index.get_indexer(pd.Index(list(given), dtype=object))
    move = np.array(list(given.values())) @ bundle.latent_effects[rows]
    move[list(without)] = 0
    length = float(np.linalg.norm(move))
    name = condition_name(given, bundle.control)
    if not without and bundle.conditions["train"].get(name, 0) > 0:
        return Nearest(name, 0.0, length)
    conditions = bundle.latent_shifts
    distances = np.linalg.norm(conditions.to_numpy() - move, axis=1)
    first = int(np.flatnonzero(distances <= distances.min() * (1 + AS_NEAR))[0])
    return Nearest(str(conditions.index[first]), float(distances[first]), length)


def checked_dosages(bundle: Bundle, dosages: Mapping[str, float]) -> dict[str, float]:
    known = list(bundle.perturbations.index)
    if not isinstance(dosages, Mapping):
        example = {next(iter(known), "A"): 1.0}
        raise ValueError(
            f"Perturbations are given as a {type(dosages).__name__}; expected a mapping of "
            f"perturbation to dosage, such as {example}."
        )
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
    """Return the message for a perturbation that is not in the model."""
    parts = [part.strip() for part in name.split("+")]
    if len(parts) > 1 and set(parts) <= set(known):
        return f"{name!r} is {len(parts)} perturbations: name each by itself."
    folded = {k.casefold(): k for k in known}
    typed = name.casefold()
    near = [each for each in folded if name and each.startswith(typed)]
    near = [typed] if typed in near else near or [each.casefold() for each in close(name, known)]
    suggested = [folded[each] for each in near[:MOST_SUGGESTED]]
    hint = f"Known: {', '.join(known[:10])}, ..."
    if suggested:
        hint = f"Did you mean {either(suggested)}?"
    return f"This model knows no perturbation {name!r} (it knows {len(known)}). {hint}"


def condition_name(dosages: Mapping[str, float], control: str) -> str:
    """Return the label of these dosages as the bundle spells it: A+B, A+B:0.5, or control."""
    parts = [name if dose == 1 else f"{name}:{dose:g}" for name, dose in sorted(dosages.items())]
    return "+".join(parts) or control


def support(bundle: Bundle, dosages: Mapping[str, float]) -> str:
    """Return how well the training data support a composition: the worst true key of SUPPORT."""
    if not dosages:
        return "control"
    if bundle.conditions["train"].get(condition_name(dosages, bundle.control), 0) > 0:
        return "measured"
    cells = bundle.perturbations
    if any(cells.loc[name, "train"] == 0 for name in dosages):
        return "never"
    if outside(bundle, dosages):
        return "dosage"
    if all(cells.loc[name, "train_alone"] > 0 for name in dosages):
        return "singles"
    return "in combination only"


def outside(bundle: Bundle, dosages: Mapping[str, float]) -> list[str]:
    """Return a sentence for each dosage outside the range trained on; 0 is always inside."""
    found = []
    for name, dose in dosages.items():
        low, high = bundle.perturbations.loc[name, ["dosage_min", "dosage_max"]]
        given = f"{name} was not trained on at {dose:g}"
        if 0 < dose < low:
            found.append(f"{given}: between none and the least dosage trained on, {low:g}.")
        elif dose > high:
            found.append(f"{given}: beyond the largest dosage trained on, {high:g}.")
    return found


def observed_interaction(
    bundle: Bundle, given: Mapping[str, float]
) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return the measured interaction and its standard error, as defined in `compose`."""
    unknown = np.full(len(bundle.genes), np.nan)
    parts = [{name: dose} for name, dose in given.items()]
    if len(parts) < 2:
        return unknown, unknown
    weights = np.array([1, *[-1] * len(parts)], dtype=float)[:, None]
    names = [condition_name(part, bundle.control) for part in (given, *parts)]
    found = [
        level
        for name in names
        for level in (bundle.observed_level(name), bundle.control_level(name))
        if level is not None
    ]
    if len(found) < 2 * len(names):
        return unknown, unknown
    level, se = (np.stack([arm[k].to_numpy() for arm in found]) for k in ("level", "se"))
    shift = level[::2] - level[1::2]
    control = (weights * se[1::2]).sum(0) ** 2  # of one control, common to all
    if "control_level" in bundle.observed:
        control = np.maximum(control, (se[1::2] ** 2).sum(0))
    error = np.sqrt((se[::2] ** 2).sum(0) + control)
    return (weights * shift).sum(0), error
