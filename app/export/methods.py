"""The methods text of a report."""

from __future__ import annotations

from collections.abc import Sequence

from app.export.items import Picture, SavedView, Table, Text
from app.pages import MAP, PAGES, SETS
from samsvae_core.analysis import enrichment_export
from samsvae_core.analysis.held_out import as_text
from samsvae_core.bundle.layout import version

UMAP = (
    "McInnes, Healy and Melville, UMAP: Uniform Manifold Approximation and Projection for "
    "Dimension Reduction, arXiv:1802.03426, 2018."
)


def methods(kept: Sequence[SavedView]) -> str:
    """Return Markdown: software, models, the terms of the kept views, and what to cite."""
    models = dict.fromkeys((view.model, view.checksum) for view in kept)
    named = "; ".join(f"{as_text(m)} (checksum {as_text(c[:12])})" for m, c in models)
    pages = [PAGES[view.page] for view in kept if view.page in PAGES]
    told = list(dict.fromkeys(text for page in pages for text in page.methods))
    if any(_is_of_sets(item) for view in kept for item in view.items):
        told = list(dict.fromkeys([*told, SETS]))
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
        " ".join(told),
        "",
        "## References",
        "",
    ]
    known = enrichment_export.REFERENCES.splitlines()
    cited = [*known[: len(known) if SETS in told else 1], *([UMAP] if MAP in told else [])]
    return "\n".join([*lines, *(f"- {reference}" for reference in cited)]) + "\n"


def _is_of_sets(item: Picture | Table | Text) -> bool:
    return isinstance(item, Table) and "fdr" in [str(c).lower() for c in item.frame.columns]
