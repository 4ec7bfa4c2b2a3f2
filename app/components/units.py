"""The units of levels and shifts, for axes and captions: log2 of counts, or the file's values."""

from __future__ import annotations

from typing import NamedTuple

from samsvae_core.bundle.bundle import Bundle


class Scale(NamedTuple):
    """A unit for axes, and what figures on its scale mean, for captions."""

    unit: str
    shift: str  # predicted for a composition
    observed: str  # measured, beside it
    average_effect: str  # on Overview
    loading: str
    direct: str  # the unit of a direct effect


COUNTS = Scale(
    unit="log2",
    shift="Shift: log2(1 + 1e4 p) with the perturbations minus the same without; p is the mean "
    "decoded share of a gene over reference control cells. 1 means about twice the share. Shares "
    "sum to one, so a large fall of some genes raises the rest a little.",
    observed="pooled counts",
    average_effect="mean over cells of log2(1 + 1e4 x / total), minus that of control",
    loading="change of log2(1 + 1e4 p)",
    direct="natural log",
)
VALUES = Scale(
    unit="units of the data",
    shift="Shift: the mean decoded value of a gene over reference control cells, with the "
    "perturbations minus the same without, in the units of the data file.",
    observed="mean values",
    average_effect="mean over cells of the values in the file, minus that of control",
    loading="change of the mean value, in the units of the data file,",
    direct="units of the data",
)


def scale(model: Bundle) -> Scale:
    return COUNTS if model.model.config.likelihood == "counts" else VALUES
