"""The model card in Markdown, with held-out figures beside the baselines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.differences import differing_in_words
from samsvae_core.analysis.held_out import as_text, figure, metrics_in_words
from samsvae_core.data.cells import CellData
from samsvae_core.data.covariates import accounted_in_words
from samsvae_core.data.splits import SPLITS
from samsvae_core.models.samsvae import MIN_EVIDENCE, SAMSVAE
from samsvae_core.models.variants import MODELS

NAMED = 10  # near misses that the card names


def model_card(
    settings: dict[str, Any],
    data: CellData,
    parts: np.ndarray,
    masks: pd.DataFrame,
    metrics: dict[str, Any],
    notes: list[str],
    frontier: pd.DataFrame | None,
    caution: str = "",
    differences: pd.DataFrame | None = None,
) -> str:
    """Return the model card as Markdown; a `caution` from `fitness`, if any, comes first.

    Parameters
    ----------
    settings
        The manifest's settings: origin, model and training configuration, steps done.
    data
        The cells used, with their source file.
    parts
        The part of each cell: train, validation or test.
    masks
        The mask table, with held-out evidence.
    metrics
        The content of metrics.json.
    notes
        Notes of the reader and of the training.
    frontier
        The levels of evidence that were compared, or None.
    caution
        A reason to distrust the model, or nothing.
    differences
        The differences between contexts, if the model has any.
    """
    origin, model, trained = settings["origin"], settings["model_config"], settings["train_config"]
    sizes = ", ".join(f"{int((parts == part).sum()):,} {part}" for part in SPLITS)
    kind = MODELS[settings["model"]]
    file, control = as_text(data.source["file"]), as_text(data.control)
    lines = [
        f"# Model card: {origin['title'] or file}",
        "",
        *([f"**Caution.** {caution}", ""] if caution else []),
        f"Data: {file}, {len(data.cells):,} cells used x {len(data.genes):,} genes, "
        f"{len(data.perturbations)} perturbations, control {control}. "
        f"Source: {origin['source']}. Licence: {origin['licence']}.",
        f"Split by cell: {sizes}.",
        f"Model: {kind.title}, {model['n_latent']} latent dimensions, {model['n_hidden']} hidden "
        f"units, {model['encoder']} encoder, {model['likelihood']} likelihood. "
        f"{prior_in_words(kind, model)}",
        f"Training: {steps_in_words(settings)} of {trained['batch_size']} cells, Monte Carlo "
        f"samples per cell {trained['particles']}, seed {trained['seed']}; the final parameters "
        "are kept.",
        "",
        *masks_in_words(kind, model, masks),
        *frontier_in_words(frontier),
        "## How good it is on held-out cells",
        "",
        metrics_in_words(metrics, kind.title),
        "",
        "## What to know",
        "",
        *knowledge(kind),
        "- Enrichment takes genes as units. It says which gene sets a mechanism resembles, not "
        "that the finding would be reproduced.",
        f"- {covariates_of(data, model.get('context'), differences)}",
        *(f"- {note}" for note in notes),
    ]
    if origin["notes"]:
        lines += ["", "## How it was chosen", "", origin["notes"]]
    return "\n".join(lines) + "\n"


def covariates_of(
    data: CellData, context: int | None = None, differences: pd.DataFrame | None = None
) -> str:
    """Return what the model accounts for beside the perturbations, in Markdown.

    `context` is the number of the covariate by which effects may differ.
    """
    if data.covariates is None:
        return "Replicates and batches are not modelled."
    levels = data.covariates.levels
    said = accounted_in_words({as_text(name): found for name, found in levels.items()})
    if context is None:
        return said
    return f"{said} {differing_in_words(as_text(list(levels)[context]), differences)}"


def steps_in_words(settings: dict[str, Any]) -> str:
    """Return how long the model was trained, in words."""
    done, most = settings["steps_done"], settings["train_config"]["steps"]
    if settings["frontier"]:
        return f"{done:,} steps, dense start and kept level together,"
    return f"{done:,} of at most {most:,} steps"


def knowledge(kind: type[SAMSVAE]) -> list[str]:
    """Return what to know of the intervals and mechanisms of this kind of model."""
    lines = [
        "- The model's own intervals are over draws of its posterior of effects: they leave out "
        "the spread between trainings and are far too narrow."
        if kind.has_posterior
        else "- The model has no posterior of effects, so it has no intervals of its own."
    ]
    if kind.has_masks:
        lines.append(
            "- Mechanisms are numbered by how many perturbations use them; another training may "
            "find them in another order, split or merged."
        )
    if not kind.composes:
        lines.append("- Every combination is a treatment of its own: nothing can be composed.")
    return lines


def masks_in_words(kind: type[SAMSVAE], model: dict[str, Any], masks: pd.DataFrame) -> list[str]:
    """Return how many mechanisms each perturbation uses, and the near misses, as Markdown lines."""
    if not kind.has_masks:
        return [
            f"{kind.title} has no masks: perturbations are not explained by few mechanisms.",
            "",
        ]
    counts = masks[masks["active"]].groupby("perturbation").size()
    order = counts.sort_values(ascending=False)
    used = ", ".join(f"{as_text(name)} {n}" for name, n in order.items())
    empty = masks["perturbation"].nunique() - len(counts)
    idle = (
        f" {empty} perturbation{'s use' if empty > 1 else ' uses'} none: on these genes and cells "
        "the model finds no effect worth its price, which does not prove that there is none."
    )
    return [
        "## What the masks say",
        "",
        f"{as_text(interpretation.in_use_in_words(masks))} The model has {model['n_latent']} "
        "mechanisms; an entry is active if its posterior probability is above 0.5. Active "
        "mechanisms per perturbation: "
        f"{used or 'none'}.{idle if empty else ''}",
        "",
        near_misses_in_words(masks),
        "",
    ]


def near_misses_in_words(masks: pd.DataFrame) -> str:
    """Return the inactive entries that held-out cells speak for, in words."""
    near = interpretation.near_misses(masks).head(NAMED)
    found = "; ".join(
        f"{as_text(row.perturbation)} in M{row.mechanism}: {row.evidence:.3f} ± "
        f"{row.evidence_se:.3f}"
        for row in near.itertuples()
    )
    return (
        "Near misses (entries that are off, though switched on they would raise the bound of held-"
        f"out cells by more than two standard errors; nats per cell): {found or 'none'}."
    )


def bends_in_words(linearity: pd.DataFrame) -> str:
    """Return along which mechanisms loadings hold for one step only, from `linearity`."""
    bent = [f"M{k}" for k in linearity.index[~linearity["linear"].astype(bool)]]
    if not bent:
        return (
            "The decoder is nearly linear along every mechanism in use, up to its loading's step."
        )
    return (
        f"The decoder is not linear along {len(bent)} of {len(linearity)} mechanisms in use "
        f"({', '.join(bent)}): their loadings hold for the step they are given with; those of half "
        "of it, or of the other direction, rank genes otherwise or are of another size "
        "(Mechanism shows them, `samsvae loadings --steps` writes them)."
    )


def frontier_in_words(table: pd.DataFrame | None) -> list[str]:
    """Return the levels of evidence compared and the rule of choice, as Markdown."""
    if table is None:
        return []
    return [
        "## Sparsity against fit",
        "",
        "Models from one dense start, one per level of evidence. Kept is the sparsest whose "
        "validation bound lies within one standard error (of the paired difference over cells) of "
        "the best. r: average effects on validation cells.",
        "",
        "| evidence (nats per cell) | active entries | mechanisms | validation bound | difference "
        "from the best | r | kept |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {row.mask_evidence:g} | {row.active} | {row.mechanisms} | "
            f"{row.validation_bound:.3f} | {row.difference:.3f} ± {row.difference_se:.3f} | "
            f"{figure(row.effect_r)} | {'yes' if row.chosen else ''} |"
            for row in table.itertuples()
        ),
        "",
    ]


def prior_in_words(kind: type[SAMSVAE], model: dict[str, Any]) -> str:
    """Return the mask prior in words."""
    if not kind.has_masks:
        return "No masks."
    if kind.fixed_mask_prior:
        return f"Mask prior: {kind.fixed_mask_prior}."
    if model["mask_evidence"] is None:
        return f"Mask prior: probability {model['mask_prior']:g} (the published setting)."
    return (
        f"An active mechanism must bring {model['mask_evidence']:g} nats of evidence per training "
        f"cell of its perturbation, and at least {MIN_EVIDENCE:g} in all."
    )
