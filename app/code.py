"""What is on a page, as Python and as a command that give the same numbers."""

from __future__ import annotations

import shlex

from samsvae_core.bundle import Bundle
from samsvae_core.composition import Composition


def as_python(model: Bundle, result: Composition) -> str:
    """A program that ends with the table of this composition as `shift`."""
    return (
        "from samsvae_core import compose, load\n\n"
        f"bundle = load({str(model.path)!r})  # checksum {model.checksum[:12]}\n"
        f"shift = compose(bundle, {result.dosages!r}, without={list(result.without)!r}, "
        f"n_samples={result.n_samples}, seed={result.seed}).table\n"
    )


def as_command(model: Bundle, result: Composition) -> str:
    """A command that writes this composition to shift.csv."""
    parts = ["samsvae", "compose", str(model.path)]
    parts += [f"{name}:{dose:g}" for name, dose in result.dosages.items()]
    for k in result.without:
        parts += ["--without", str(k)]
    parts += ["--samples", str(result.n_samples), "--seed", str(result.seed)]
    return shlex.join([*parts, "--output", "shift.csv"])
