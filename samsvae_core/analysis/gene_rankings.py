"""Gene rankings for gene set tests: loadings of mechanisms, or the shift of a composition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import pandas as pd

from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.enrichment_export import Results
from samsvae_core.analysis.loadings import loading_matrix
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.analysis.mechanism_names import read_names
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.fitness import caution
from samsvae_core.genesets.collections import Collection, match
from samsvae_core.genesets.enrichment import EnrichmentOptions, sure
from samsvae_core.genesets.questions import Enrichment
from samsvae_core.genesets.terms import grouped, suggested_names


class Certainty(NamedTuple):
    """The least probability of sign and the least size at which a gene counts as moved.

    For a shift the probability is the share of posterior draws. For a loading it comes from a
    Normal with the loading's standard error over reference cells, which does not cover the spread
    between trainings.
    """

    probability: float
    effect: float

    def __str__(self) -> str:
        return (
            f"with a probability of sign of at least {self.probability:g} and a size of at least "
            f"{self.effect:g}"
        )


class GeneRanking(NamedTuple):
    """Scores by gene, with one column per mechanism (its number) or one for a condition (its name).

    `table` is what they were taken from, with errors; `definition` completes "genes were ranked
    by". `moved` has the shape of the scores and marks the genes certain to move, if a `certainty`
    was given. `caution` is a reason to distrust the whole ranking, if any.
    """

    name: str
    scores: pd.DataFrame
    table: pd.DataFrame
    definition: str
    moved: pd.DataFrame | None = None
    certainty: Certainty | None = None
    caution: str = ""


def of_mechanisms(
    bundle: Bundle,
    mechanisms: Iterable[int] | None = None,
    certainty: Certainty | None = None,
) -> GeneRanking:
    """Return the loadings of some mechanisms, by default of all in use.

    Raises ValueError if none is in use or one is unknown.
    """
    active = active_mechanisms(bundle.masks)
    wanted = active if mechanisms is None else list(dict.fromkeys(mechanisms))
    if not wanted:
        raise ValueError(
            f"No mechanism of {bundle.name} is in use by any perturbation: there is nothing to test"
            " for gene sets. Ask for the shift of a perturbation instead, or train with a lower"
            " --mask-evidence."
        )
    known = range(bundle.model.config.n_latent)
    if wrong := [k for k in wanted if k not in known]:
        raise ValueError(f"There is no mechanism {wrong[0]}; this model has 0 to {known[-1]}.")
    table = bundle.loadings[bundle.loadings["mechanism"].isin(wanted)]
    scores = loading_matrix(table)[wanted]
    moved = None
    if certainty is not None:
        se = table.pivot_table(index="gene", columns="mechanism", values="se")
        moved = sure(scores, se.loc[scores.index, wanted], *certainty)
    unit = "log2(1 + 1e4 p), p the mean decoded proportion of a gene,"
    if bundle.model.config.likelihood != "counts":
        unit = "the mean decoded value of a gene"
    steps = table.groupby("mechanism")["step"].first()
    far = ", ".join(f"M{k} {steps[k]:+.2f}" if steps[k] else f"M{k} ±1" for k in wanted)
    definition = (
        f"the loading on each mechanism: the change of {unit} per prior standard deviation of the "
        f"mechanism, over the step that its perturbations make on average ({far}), averaged over "
        f"{len(bundle.reference.loc)} reference control cells held at their basal states"
    )
    name = "mechanisms" if wanted == active else "_".join(f"M{k}" for k in wanted)
    return GeneRanking(name, scores, table, definition, moved, certainty)


def of_shift(composition: Composition, certainty: Certainty | None = None) -> GeneRanking:
    """Return the predicted shift of a composition as a ranking."""
    table = composition.table.reset_index()
    shift = composition.table["shift"]
    name = composition.condition
    if composition.without:
        name += f" without {', '.join(f'M{k}' for k in composition.without)}"
    moved = None
    if certainty is not None:
        sign = composition.table["probability_of_sign"]
        if sign.isna().all():
            raise ValueError(
                "This model has no uncertainty of its effects, so no probability of sign; choose "
                "a number of top genes instead."
            )
        kept = (sign >= certainty.probability) & (shift.abs() >= certainty.effect)
        moved = kept.to_frame(name)
    definition = (
        f"the predicted shift of {name} ({composition.scale}; mean over "
        f"{composition.n_samples} posterior draws, seed {composition.seed})"
    )
    return GeneRanking(
        name, shift.to_frame(name), table, definition, moved, certainty, doubt(table)
    )


def doubt(table: pd.DataFrame) -> str:
    """Return a caution if no gene of a composition is certain to move, else an empty text."""
    kind = "calibrated_" if table["calibrated_lower"].notna().any() else ""
    lower, upper = table[f"{kind}lower"], table[f"{kind}upper"]
    if lower.isna().all() or ((lower > 0) | (upper < 0)).any():
        return ""
    return (
        f"No gene's 90 % interval excludes zero (the largest shift is "
        f"{table['shift'].abs().max():.2g}), so this ranking may be noise: sets that pass say "
        "nothing about the perturbation."
    )


def gathered(
    bundle: Bundle,
    ranked: GeneRanking,
    collections: Iterable[Collection],
    found: Enrichment,
    rules: EnrichmentOptions,
) -> Results:
    """Return all that is exported: the tests, with similar sets grouped, and what they rest on."""
    table = found.table if "group" in found.table else grouped(found.table)
    matched = [match(collection, bundle.genes).collection for collection in collections]
    if ranked.certainty is not None:
        by = "reference cells" if "loading" in ranked.table else "posterior draws"
        top = f"genes {ranked.certainty} over {by}, up and down apart"
    else:
        top = f"the {rules.n_top} genes with the highest (up) or lowest (down) scores"
    own = rules.universe is not None
    background = "a list of the user's own" if own else "the genes of the model"
    settings = {
        "bundle": bundle.name,
        "checksum": bundle.checksum,
        "model": bundle.title,
        "ranked": ranked.definition,
        "top": top,
        "background": background,
        "background_size": len(rules.universe or bundle.genes),
        "min_size": rules.min_size,
        "max_size": rules.max_size,
        "seed": rules.seed,
    }
    if reasons := " ".join(filter(None, [caution(bundle), ranked.caution])):
        settings["caution"] = reasons
    names = suggested_names(table, list(ranked.scores.columns))
    given = read_names(bundle).labels
    names["own_name"] = [given[k].name if k in given else "" for k in names.index]
    return Results(Enrichment(table, found.notes), ranked.table, names, matched, settings)
