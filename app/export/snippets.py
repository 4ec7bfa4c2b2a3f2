"""A composition as Python code and as a shell command that give the same numbers."""

from __future__ import annotations

import shlex

from samsvae_core.analysis.compose import Composition
from samsvae_core.bundle.bundle import Bundle


def as_python(model: Bundle, result: Composition, condition: str = "") -> str:
    """Return a program that ends with the table of this composition as `shift`.

    `condition` is the one whose cells it starts from, if any.
    """
    arguments = [f"without={list(result.without)!r}"]
    arguments += [f"n_samples={result.n_samples}", f"seed={result.seed}"]
    arguments += [] if result.direct else ["direct=False"]
    arguments += [] if result.level is None else [f"level={result.level!r}"]
    names = "compose, load"
    if condition:
        names = "cells_of, compose, load"
        arguments.append(f"cells=cells_of(bundle, {condition!r})")
    elif result.cells is not None:
        arguments.append(f"cells={list(result.cells)!r}")
    return (
        f"from samsvae_core import {names}\n\n"
        f"bundle = load({str(model.path)!r})  # checksum {model.checksum[:12]}\n"
        f"shift = compose(bundle, {result.dosages!r}, {', '.join(arguments)}).table\n"
    )


def as_command(model: Bundle, result: Composition, condition: str = "") -> str:
    """Return a command that writes this composition to shift.csv, or "" if none can."""
    if result.cells is not None and not condition:
        return ""
    parts = ["samsvae", "compose", str(model.path)]
    parts += [f"{name}:{dose:g}" for name, dose in result.dosages.items()]
    for k in result.without:
        parts += ["--without", str(k)]
    parts += ["--samples", str(result.n_samples), "--seed", str(result.seed)]
    parts += ["--start-from", condition] if condition else []
    parts += [] if result.direct else ["--no-direct"]
    parts += [] if result.level is None else ["--level", result.level]
    return shlex.join([*parts, "--output", "shift.csv"])
