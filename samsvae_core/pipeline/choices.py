"""Whether the parts that a model is asked to have go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from samsvae_core.data.cells import DataError
from samsvae_core.models.direct import KINDS
from samsvae_core.models.variants import MODELS
from samsvae_core.system.messages import some


def direct_by_default(model: str, evidence: float | None) -> str:
    """Return which direct effects a model has if not told: none in the published setting."""
    return "none" if evidence is None else MODELS[model].direct_by_default


def can_have_context(model: str) -> bool:
    """Return whether effects of this kind of model may differ between the levels of a covariate."""
    return model == "sams-vae"


def context_number(
    levels: Mapping[str, Sequence[str]], context: str | None, model: str
) -> int | None:
    """Return the number of the covariate that is a context; raises DataError if it cannot be."""
    if context is None:
        return None
    if not can_have_context(model):
        raise DataError(
            f"--context is {context!r}, and {MODELS[model].title} cannot tell which mechanism "
            "differs between contexts. Leave it out, or choose --model sams-vae."
        )
    if context not in levels:
        known = some(levels) if levels else "none"
        raise DataError(
            f"--context is {context!r}, which is no covariate of these data (there: {known}). "
            "Read it with --covariate too."
        )
    if len(levels[context]) < 2:
        raise DataError(
            f"--context {context!r} has one level, {some(levels[context])}, so nothing can differ "
            "between levels. Leave it out."
        )
    return list(levels).index(context)


def check_direct(model: str, kind: str) -> None:
    """Raise DataError for a kind of direct effects that this model cannot have."""
    if kind not in KINDS:
        raise DataError(f"Direct effects are {kind!r}; choose one of {', '.join(KINDS)}.")
    if kind != "none" and MODELS[model].direct_by_default == "none":
        raise DataError(
            f"--direct-effects is {kind}, and {MODELS[model].title} composes no shifts that they "
            "could be added to. Leave it out, or choose another model."
        )
