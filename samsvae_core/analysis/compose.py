"""Predicted shifts of perturbations given together, by gene, and what they rest on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from samsvae_core.analysis.differences import observed_at
from samsvae_core.analysis.draws import drawn_arms, starting_states, summary
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
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.calibration import INTERVAL, WITHIN

SCALES = {
    True: "log2(1 + 1e4 p) of the condition minus that of {control}; p = mean decoded proportion "
    "over {start}",
    False: "mean decoded value over {start}, of the condition minus that of {control}, in the "
    "units of the data",
}


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
    direct: bool = True  # whether direct effects are included
    level: str | None = None  # of the bundle's context; None: of the mean cell

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
            "direct_effects": self.direct,
            "context_level": self.level,
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
    direct: bool = True,
    level: str | None = None,
) -> Composition:
    """Return the predicted shift, against control, of perturbations given together.

    Masks and embeddings are drawn from their posterior. Every arm uses the same basal states
    (reference control cells), so that intervals cover the uncertainty of the effects and not the
    spread between cells. An interval that a few extreme draws pull away from the mean is widened to
    hold it. `probability_of_sign` is the share of draws with the sign of the mean shift (0.5 where
    the shift is zero). Intervals are NaN for a model without a posterior of effects.

    `through_mechanisms` is the shift by the mechanisms alone (mean over the draws), and `direct`
    what the direct effects add to it, so that the two make up `shift`. In the logits they add up
    exactly, as decoder(z + latent shift) + direct effects.

    `interaction` is the composed shift minus the sum of the single shifts on the same draws: latent
    shifts add up, but their sum need not be additive in expression.

    `observed_interaction` is measured over all splits: level(A+B+..) - level(A) - level(B) - .. +
    (n - 1) level(control), the shift of the combination minus those of its n singles. It is NaN
    unless the combination and each single were measured at these dosages. Control enters every one
    of these shifts, so the square of `observed_interaction_se` is se(A+B+..)^2 + se(A)^2 + se(B)^2
    + .. + (n - 1)^2 se(control)^2. With covariates each shift has controls of its own, which share
    some of their cells: their part is then the larger of those for the same and for other cells.

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
    direct
        Whether direct effects are included; without them, calibrated intervals are NaN.
    level
        The level of the bundle's context at which effects are taken; None for those of the mean
        cell. Measured shifts are then those at the level, where the bundle has them. Calibrated
        intervals and the measured interaction, of all levels together, are NaN. What the level
        changes of every gene is left at its mean.
    """
    dosages = checked_dosages(bundle, dosages)
    without = checked_mechanisms(bundle, without)
    if n_samples < 2:
        raise ValueError(f"n_samples is {n_samples}; an interval needs at least 2 draws.")
    given = given_parts(bundle, dosages)
    start, used = starting_states(bundle, cells)
    arms = [given] + [{name: dose} for name, dose in given.items() if len(given) > 1]
    draws, through = drawn_arms(bundle, arms, without, n_samples, seed, used, direct, level)
    name = condition_name(given, bundle.control)
    observed = None
    if given:
        at_level = None if level is None else observed_at(bundle, name, level)
        observed = bundle.observed_shift(name) if level is None else at_level
    if bundle.model.direct is None or not direct:
        through = draws.mean(1)  # exactly the shift
    is_whole = used is None and not without and direct and level is None
    table = shift_table(bundle, given, draws, through[0], observed, is_whole)
    if level is not None:  # that is of all levels together
        table[["observed_interaction", "observed_interaction_se"]] = np.nan
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
        nearest=nearest_condition(bundle, given, without) if level is None else None,
        direct=direct,
        level=level,
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
    through: Float[np.ndarray, " G"],
    observed: pd.DataFrame | None,
    is_whole: bool,
) -> pd.DataFrame:
    """The table of a Composition from the draws of its arms: the combination, then its singles.

    Calibrated intervals are NaN unless the shift `is_whole`.
    """
    singles = draws[1:].sum(0) if len(given) > 1 else draws[0]
    table = pd.DataFrame(summary(draws[0]), index=pd.Index(bundle.genes, name="gene"))
    table["through_mechanisms"] = through
    table["direct"] = table["shift"] - through
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
    measured = observed_interaction(bundle, given)
    table["observed_interaction"], table["observed_interaction_se"] = measured
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
        drawn_arms(
            bundle,
            [one.dosages],
            one.without,
            one.n_samples,
            one.seed,
            one.cells,
            one.direct,
            one.level,
        )[0][0]
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
