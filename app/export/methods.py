"""The methods text of a report."""

from __future__ import annotations

from collections.abc import Sequence

from app.export.items import HOME, Kept, Picture, Table, Text
from samsvae_core.analysis import enrichment_export
from samsvae_core.analysis.held_out import as_text
from samsvae_core.bundle.layout import version

UMAP = (
    "McInnes, Healy and Melville, UMAP: Uniform Manifold Approximation and Projection for "
    "Dimension Reduction, arXiv:1802.03426, 2018."
)
TERMS = {  # one sentence each
    "shift": "A predicted shift is the change that perturbations make to the decoded expression "
    "of a gene, averaged over reference control cells and posterior draws; each figure gives their "
    "numbers, and the draws have the seed 0.",
    "dosage": "The latent shifts of perturbations, each times its dosage, are added up and decoded "
    "together.",
    "interval": "Intervals are 90 % intervals: the model's own, from draws of its posterior, or "
    "calibrated on validation cells.",
    "mask": "A perturbation uses a mechanism if the posterior probability of its mask entry is "
    "above a half.",
    "evidence": "The evidence of a mask entry is what it adds to the predictive bound of held-out "
    "cells, in nats per cell.",
    "loading": "The loading of a gene on a mechanism is the change of its decoded expression when "
    "basal states move along that mechanism alone.",
    "observed": "Observed shifts are measured differences from control cells, with jackknife "
    "standard errors over cells.",
    "held out": "Scores on Overview compare predictions with cells that were kept out of training.",
    "map": "Maps of cells and of perturbations are UMAPs, in which neighbours have a meaning and "
    "distances between far groups have none.",
    "sets": "Gene sets were tested by preranked enrichment analysis and by over-representation, "
    "with false discovery rates by Benjamini and Hochberg over the tests of one mechanism and "
    "collection.",
    "partners": "Partners are pairs of perturbations ranked by the mean predicted shift of the "
    "genes asked for.",
}
TOLD = {  # the terms to explain for each page
    HOME: ("held out", "mask", "map"),
    "perturbation": ("shift", "interval", "mask", "evidence", "observed"),
    "masks": ("mask", "evidence", "map"),
    "compose": ("shift", "dosage", "interval", "observed"),
    "mechanism": ("mask", "loading", "sets"),
    "gene": ("shift", "interval", "loading", "observed"),
    "cells": ("map",),
    "partners": ("shift", "interval", "partners"),
    "gene_sets": ("loading", "sets"),
}


def methods(kept: Sequence[Kept]) -> str:
    """Return Markdown: software, models, the terms of the kept views, and what to cite."""
    models = dict.fromkeys((view.model, view.checksum) for view in kept)
    named = "; ".join(f"{as_text(m)} (checksum {as_text(c[:12])})" for m, c in models)
    told = list(dict.fromkeys(term for view in kept for term in TOLD.get(view.page, ())))
    if any(_is_of_sets(item) for view in kept for item in view.items):
        told = list(dict.fromkeys([*told, "sets"]))
    texts = (item.markdown for view in kept for item in view.items if isinstance(item, Text))
    cautions = list(dict.fromkeys(text for text in texts if text.startswith("**Caution.**")))
    lines = [
        "# Methods",
        "",
        f"Made with SAMS-VAE Explorer {version('samsvae-explorer')} from "
        f"{'the model' if len(models) == 1 else 'the models'} {named}. SAMS-VAE is the sparse "
        "additive mechanism shift variational autoencoder of Bereket and Karaletsos (2023).",
        "",
        *cautions,
        " ".join(TERMS[term] for term in told),
        "",
        "## References",
        "",
    ]
    known = enrichment_export.REFERENCES.splitlines()
    cited = [*known[: len(known) if "sets" in told else 1], *([UMAP] if "map" in told else [])]
    return "\n".join([*lines, *(f"- {reference}" for reference in cited)]) + "\n"


def _is_of_sets(item: Picture | Table | Text) -> bool:
    return isinstance(item, Table) and "fdr" in [str(c).lower() for c in item.frame.columns]
