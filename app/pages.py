"""The pages: each is named here and is a file of app/views.

Imports nothing of the app, so that every wing may read it.
"""

from __future__ import annotations

from typing import NamedTuple

# What the methods of a report explain, where a view of a page that lists it is kept
SHIFT = (
    "A predicted shift is what the perturbations change in the decoded expression of a gene, "
    "averaged over reference control cells and posterior draws; how many of each is told with the "
    "figure, and the draws have the seed 0."
)
DOSAGE = (
    "The latent shifts of perturbations, each times its dosage, are added up and decoded together, "
    "and so are their direct effects, where the model has any."
)
INTERVAL = (
    "Intervals are 90 % intervals: the model's own, from draws of its posterior, or calibrated on "
    "validation cells."
)
MASK = (
    "A perturbation uses a mechanism where the posterior probability of its mask entry is above a "
    "half."
)
EVIDENCE = (
    "The evidence of a mask entry or a direct effect is what it adds to the predictive bound of "
    "held-out cells, in nats per cell."
)
DIRECT = (
    "A direct effect is what a perturbation adds to the logit of one gene outside every mechanism; "
    "it stands out where the probability that it is unlike the others of its perturbation is above "
    "a half."
)
LOADING = (
    "The loading of a gene on a mechanism is the change of its decoded expression when basal "
    "states move along that mechanism alone."
)
OBSERVED = (
    "Observed shifts are measured differences from control cells, with standard errors from the "
    "sampling of cells, whose variance per gene is pooled over conditions."
)
HELD_OUT = "Scores on Overview compare predictions with cells that were kept out of training."
MAP = (
    "Maps of cells and of perturbations are UMAPs, in which neighbours have a meaning and "
    "distances between far groups have none."
)
SETS = (
    "Gene sets were tested by preranked enrichment analysis and by over-representation, with false "
    "discovery rates by Benjamini and Hochberg over the tests of one mechanism and collection."
)
PARTNERS = (
    "Partners are pairs of perturbations ranked by the mean predicted shift of the genes asked for."
)


class Page(NamedTuple):
    """A page: its name in the address and in app/views, and the section of the menu it is in."""

    name: str
    section: str
    methods: tuple[str, ...] = ()
    needs_model: bool = True
    is_kept: bool = True  # views of it can be kept for a report

    @property
    def title(self) -> str:
        return self.name.capitalize().replace("_", " ")


TABLE = (
    Page("overview", "Explore", (HELD_OUT, MASK, DIRECT, MAP)),
    Page("perturbation", "Explore", (SHIFT, INTERVAL, MASK, DIRECT, EVIDENCE, OBSERVED)),
    Page("masks", "Explore", (MASK, EVIDENCE, MAP)),
    Page("mechanism", "Explore", (MASK, LOADING, SETS)),
    Page("gene", "Explore", (SHIFT, INTERVAL, LOADING, DIRECT, OBSERVED)),
    Page("cells", "Explore", (MAP,)),
    Page("compose", "Predict", (SHIFT, DOSAGE, DIRECT, INTERVAL, OBSERVED)),
    Page("partners", "Predict", (SHIFT, INTERVAL, PARTNERS)),
    Page("gene_sets", "Predict", (LOADING, SETS)),
    Page("data", "Your own screen", needs_model=False, is_kept=False),
    Page("train", "Your own screen", needs_model=False, is_kept=False),
    Page("report", "More", is_kept=False),
    Page("glossary", "More", is_kept=False),
    Page("system", "More", needs_model=False, is_kept=False),
)
PAGES = {page.name: page for page in TABLE}
HOME = TABLE[0].name  # the page whose address is empty
