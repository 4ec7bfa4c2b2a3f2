"""Predicted shifts of perturbations given together, by gene, and what they rest on."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.analysis.support import (
    SUPPORT,
    Nearest,
    checked_dosages,
    checked_mechanisms,
    condition_name,
    nearest_condition,
    observed_interaction,
    support,
)
from samsvae_core.bundle.bundle import ANEW, Bundle, Reference
from samsvae_core.evaluation.calibration import INTERVAL, WITHIN
from samsvae_core.evaluation.shifts import N_REFERENCE, predicted_shifts
from samsvae_core.system.messages import nearest, some

SCALES = {
    True: "log2(1 + 1e4 p) of the condition minus that of {control}; p = mean decoded proportion "
    "over {start}",
    False: "mean decoded value over {start}, of the condition minus that of {control}, in the "
    "units of the data",
}
MOST_KEPT = 32 * 2**20  # bytes of draws kept for a bundle: 25 arms of 5,000 genes and 64 draws
_KEPT: WeakKeyDictionary[Bundle, OrderedDict[tuple[Any, ...], np.ndarray]] = WeakKeyDictionary()
_KEEPING = threading.Lock()


@dataclass(frozen=True)
class Composition:
    """The predicted shift of one condition, by gene, and what it rests on."""

    condition: str
    dosages: dict[str, float]
    without: tuple[int, ...]
    table: pd.DataFrame  # index gene
    support: str  # a key of SUPPORT
    n_samples: int
    seed: int
    n_reference: int  # number of basal states it starts from
    n_observed: int  # cells of the measured condition; 0 if not measured
    is_counts: bool = True  # else shifts are differences of the file's own values
    cells: tuple[str, ...] | None = None  # cells it starts from; None: reference controls
    nearest: Nearest | None = None  # None where the model has no latent shifts

    @property
    def start(self) -> str:
        """The basal states the prediction starts from, in words."""
        if self.cells is None:
            return "reference control cells"
        return f"{self.n_reference:,} chosen cells at their posterior mean basal states"

    @property
    def scale(self) -> str:
        """The scale of a shift, in words."""
        control = "control" if self.cells is None else "the same cells with no perturbation"
        return SCALES[self.is_counts].format(control=control, start=self.start)

    def settings(self) -> dict[str, Any]:
        """Return what the numbers rest on, as stored beside an exported table."""
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
            "start": self.start,
            "start_cells": None if self.cells is None else list(self.cells),
            "n_reference_cells": self.n_reference,
            "n_observed_cells": self.n_observed,
            "nearest_condition": None if self.nearest is None else self.nearest._asdict(),
            "interval": list(INTERVAL),
            "scale": self.scale + "; interval over posterior draws of masks and "
            "embeddings (the model's own uncertainty, which tends to be too narrow)" + calibrated,
        }


def compose(
    bundle: Bundle,
    dosages: Mapping[str, float],
    without: Collection[int] = (),
    n_samples: int = 64,
    seed: int = 0,
    cells: Sequence[str] | None = None,
) -> Composition:
    """Return the predicted shift, against control, of perturbations given together.

    Masks and embeddings are drawn from their posterior. Every arm uses the same basal states
    (reference control cells), so that intervals cover the uncertainty of the effects and not the
    spread between cells. An interval that a few extreme draws pull away from the mean is widened to
    hold it. `probability_of_sign` is the share of draws with the sign of the mean shift (0.5 where
    the shift is zero). Intervals are NaN for a model without a posterior of effects.

    `interaction` is the composed shift minus the sum of the single shifts on the same draws: latent
    shifts add up, but their sum need not be additive in expression.

    `observed_interaction` is measured over all splits: level(A+B+..) - level(A) - level(B) - .. +
    (n - 1) level(control), the shift of the combination minus those of its n singles. It is NaN
    unless the combination and each single were measured at these dosages. Control enters every one
    of these shifts, so the square of `observed_interaction_se` is se(A+B+..)^2 + se(A)^2 + se(B)^2
    + .. + (n - 1)^2 se(control)^2.

    Raises UnknownPerturbationError for a name the model does not know. Raises ValueError for a
    dosage that is negative or not finite, an unknown mechanism, fewer than 2 draws, several
    perturbations given to a model that cannot combine them, an empty list of cells, an unknown
    cell, or a bundle that does not hold the cells' whole basal states.

    Parameters
    ----------
    bundle
        The model and its tables.
    dosages
        Dosage by perturbation; 0 leaves one out.
    without
        Mechanisms removed from the latent shift.
    n_samples, seed
        Number of posterior draws, at least 2, and their seed.
    cells
        Names in `bundle.cells` to start from instead of the reference controls. The shift is then
        the level of their basal states with the perturbations minus the level without. At most 128
        are used, drawn evenly, at their posterior means with a scale of 0, since a bundle keeps
        only the means. Calibrated intervals are NaN then, and with mechanisms removed, because they
        were checked on whole shifts from control cells only.
    """
    dosages = checked_dosages(bundle, dosages)
    without = checked_mechanisms(bundle, without)
    if n_samples < 2:
        raise ValueError(f"n_samples is {n_samples}; an interval needs at least 2 draws.")
    given = given_parts(bundle, dosages)
    start, used = starting_states(bundle, cells)
    arms = [given] + [{name: dose} for name, dose in given.items() if len(given) > 1]
    draws = shifts(bundle, arms, without, n_samples, seed, used)  # (A, S, G)
    name = condition_name(given, bundle.control)
    observed = bundle.observed_shift(name) if given else None
    table = shift_table(bundle, given, draws, observed, used is None and not without)
    return Composition(
        condition=name,
        dosages=dosages,
        without=without,
        table=table,
        support=support(bundle, given),
        n_samples=n_samples,
        seed=seed,
        n_reference=len(start.loc),
        n_observed=0 if observed is None else int(observed["n"].max()),
        is_counts=bundle.model.config.likelihood == "counts",
        cells=used,
        nearest=nearest_condition(bundle, given, without),
    )


def given_parts(bundle: Bundle, dosages: Mapping[str, float]) -> dict[str, float]:
    """The dosages above 0. Raises ValueError for several, of a model that composes nothing."""
    given = {name: dose for name, dose in dosages.items() if dose != 0}
    if len(given) > 1 and not bundle.model.composes:
        raise ValueError(
            f"{bundle.title} takes every combination as a treatment of its own and cannot put "
            f"perturbations together; {len(given)} were given. Give one, or choose another model."
        )
    return given


def shift_table(
    bundle: Bundle,
    given: Mapping[str, float],
    draws: Float[np.ndarray, "A S G"],
    observed: pd.DataFrame | None,
    is_whole: bool,
) -> pd.DataFrame:
    """The table of a Composition from the draws of its arms: the combination, then its singles.

    Calibrated intervals are NaN unless the shift `is_whole`.
    """
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
    table["observed"] = np.nan if observed is None else observed["shift"]
    table["observed_se"] = np.nan if observed is None else observed["se"]
    reach = half_width(bundle, draws[0]) if is_whole else np.nan
    table["calibrated_lower"], table["calibrated_upper"] = (
        table["shift"] - reach,
        table["shift"] + reach,
    )
    table["observed_interaction"], table["observed_interaction_se"] = observed_interaction(
        bundle, given
    )
    return table


def compare(
    bundle: Bundle,
    first: Composition,
    second: Composition,
) -> pd.DataFrame:
    """Return the difference of two compositions of one bundle, by gene: first minus second.

    Both use the same posterior draws, so that what they share cancels; each starts from its own
    basal states. Columns are first and second (the two shifts), difference, lower and upper (the
    model's own 90 % interval of the difference) and probability_of_sign; the last three are NaN for
    a model without a posterior. Raises ValueError if the two were made with different draws.
    """
    if (first.n_samples, first.seed) != (second.n_samples, second.seed):
        raise ValueError(
            f"The compositions have {first.n_samples} and {second.n_samples} draws of the seeds "
            f"{first.seed} and {second.seed}; compose both with the same."
        )
    drawn = [
        shifts(bundle, [dict(one.dosages)], one.without, one.n_samples, one.seed, one.cells)[0]
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
    """Return half the width of the calibrated 90 % interval, by gene.

    It combines the posterior spread with the model's error on validation cells, so it is above zero
    even where the shift is zero by construction. NaN if the bundle has no calibration.
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
    cells: tuple[str, ...] | None = None,
) -> Float[np.ndarray, "A S G"]:
    """Return the shift of each arm under each posterior draw, on common draws and basal states.

    The basal states are the reference control cells or the named `cells`. Each arm is drawn by
    itself, so its numbers do not depend on the other arms. Recent arms are cached: when one of two
    dosages changes, the other single need not be decoded again.
    """
    with _KEEPING:
        kept = _KEPT.setdefault(bundle, OrderedDict())
    found = []
    for arm in arms:
        given = tuple(sorted((name, dose) for name, dose in arm.items() if dose != 0))
        key = given, without, n_samples, seed, cells
        with _KEEPING:
            draws = kept.get(key)
            if draws is not None:
                kept.move_to_end(key)
        if draws is None:
            D = torch.zeros(1, len(bundle.perturbations))
            for name, dose in given:
                D[0, bundle.perturbations.index.get_loc(name)] = dose
            start = starting_states(bundle, cells)[0]
            drawn = predicted_shifts(bundle.model, start, D, n_samples, seed, without)
            draws = drawn[0].astype(np.float32)  # the decoder's own precision
            with _KEEPING:
                if draws.nbytes <= MOST_KEPT:
                    kept[key] = draws
                while sum(each.nbytes for each in kept.values()) > MOST_KEPT:
                    kept.popitem(last=False)
        found.append(draws)
    # doubles: composed shifts are compared with sums of single ones to many digits
    return np.stack(found).astype(float)


# Basal states to start from


def cells_of(bundle: Bundle, condition: str) -> list[str]:
    """Return the cells of the map with this condition; raises ValueError if there are none."""
    cells = bundle.cells
    found = cells.loc[cells["condition"] == condition, "cell"].tolist()
    if not found:
        raise ValueError(
            f"No cell on the map of {bundle.name} has the condition {condition!r}. "
            + nearest(condition, cells["condition"].unique())
        )
    return found


def knows_states(bundle: Bundle) -> bool:
    """Return whether the bundle holds the whole basal states of its cells."""
    held = {f"basal M{k}" for k in range(bundle.model.config.n_latent)}
    return held <= set(bundle.cells)


def starting_states(
    bundle: Bundle, cells: Sequence[str] | None
) -> tuple[Reference, tuple[str, ...] | None]:
    """Return the basal states a prediction starts from, and the names of their cells.

    With `cells` None, these are the reference control cells, and the names are None. Of named cells
    at most N_REFERENCE are used, drawn evenly with a fixed seed, in the order of the map, with a
    scale of 0 and a library of NaN, which the bundle does not keep.
    """
    if cells is None:
        return bundle.reference, None
    wanted = set(cells)
    if not wanted:
        raise ValueError(
            "No cells to start from are named. Name cells of the map, or None to start from the "
            "reference control cells."
        )
    table, n_latent = bundle.cells, bundle.model.config.n_latent
    columns = [f"basal M{k}" for k in range(n_latent)]
    held = [column for column in columns if column in table]
    if not held:
        raise ValueError(
            f"{bundle.name} does not hold the basal states of its cells: it was made before they "
            f"were kept. Start from the reference control cells. {ANEW}"
        )
    if len(held) < n_latent:
        raise ValueError(
            f"{bundle.name} holds {len(held)} of the {n_latent} latent dimensions of its cells, "
            "and starting from them needs all. Start from the reference control cells."
        )
    rows = np.flatnonzero(table["cell"].isin(wanted))
    if len(rows) < len(wanted):
        absent = sorted(wanted.difference(table["cell"]))
        raise ValueError(
            f"{len(absent):,} of the cells to start from are not among the {len(table):,} on the "
            f"map of {bundle.name}: {some(absent)}. Name cells as its table of cells does, such as "
            f"{some(table['cell'].head(2))}."
        )
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:N_REFERENCE])
    chosen = table.iloc[rows]
    loc = torch.from_numpy(chosen[columns].to_numpy(np.float32)).to(bundle.reference.loc)
    library = loc.new_full((len(loc),), torch.nan)
    return Reference(loc, torch.zeros_like(loc), library), tuple(chosen["cell"])


def summary(draws: Float[np.ndarray, "S G"]) -> dict[str, Float[np.ndarray, " G"]]:
    """Return mean, 90 % interval and probability of sign over posterior draws."""
    mean = draws.mean(0)
    lower, upper = np.quantile(draws, INTERVAL, axis=0)
    same_sign = (np.sign(draws) == np.sign(mean)).mean(0)
    return {
        "shift": mean,
        "lower": np.minimum(lower, mean),
        "upper": np.maximum(upper, mean),
        "probability_of_sign": np.where(mean == 0, 0.5, same_sign),
    }
