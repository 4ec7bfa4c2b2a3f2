"""The words of this field and of this program, each in a sentence or two: help, and the glossary.

Knows nothing of Streamlit.
"""

from __future__ import annotations

WORDS = {
    "Active": "A mechanism is active in a perturbation if the posterior probability that the "
    "perturbation uses it is above 0.5.",
    "Average effect": "The mean over cells with a perturbation of log2(1 + 1e4 x / total), minus "
    "the same of control cells. The scale of the paper, on which held-out scores are given; for "
    "weakly expressed genes far from that of shifts.",
    "Basal state": "Where a cell would be in latent space without its perturbations: its own "
    "state, as the model infers it from the cell's counts.",
    "Baseline": "A simple prediction to compare a model with: nothing changes, the mean over "
    "perturbations, what was measured in training, the sum of single effects, a ridge regression.",
    "Bound (IWELBO)": "A lower bound on the log likelihood of a cell, in nats. Higher is better. "
    "It compares models on the same cells only.",
    "Bundle": "A folder with a trained model and all its tables. It never changes once it is made; "
    "its checksum identifies it.",
    "Calibrated interval": "The model's own interval, widened by the errors the model made on "
    "validation cells, so that about 90 % of such effects fall inside.",
    "Ceiling": "The r that a prediction without any error could reach, as the measurement it is "
    "compared with has sampling error itself.",
    "Combination": "Several perturbations in one cell.",
    "Composition": "Perturbations put together on the page Compose, each at a dosage: their shifts "
    "are added up in latent space and decoded to genes.",
    "Condition": "The perturbations (or none: control) that a cell received, as its label says.",
    "Control": "Cells that received a guide without a target. Every shift is against them.",
    "Decoder": "The network that turns a latent state into the share of each gene. It is not "
    "linear: twice the way need not do twice as much.",
    "Dosage": "How much of a perturbation: 1 is the perturbation as measured, 0 none, and others "
    "scale its latent shift, an extrapolation unless the data have such dosages.",
    "Effect (on a mechanism)": "Posterior mean of mask times embedding: how far a perturbation "
    "moves a mechanism, in standard deviations of the basal state. Its sign is a direction along "
    "the mechanism, not more or less expression.",
    "Enrichment score (ES, NES)": "Of a ranked test: how far the genes of a set gather at one end "
    "of the ranking; NES is the score over its mean under permutation.",
    "Evidence": "Nats per held-out cell that predictions lose when a mask entry in use is switched "
    "off, or would win were another switched on.",
    "FDR": "False discovery rate, by Benjamini and Hochberg: of the sets called at 5 % FDR, about "
    "one in twenty is expected to be false.",
    "Gene set": "Genes that belong together by what is known: a pathway, a process, a signature.",
    "Held out": "Cells, or whole conditions, that the model was not trained on.",
    "Interaction": "What perturbations do together minus the sum of what each does alone. "
    "Predicted ones come from the bend of the decoder; measured ones are shown where there are "
    "any.",
    "Interval": "90 %: of posterior draws (the model's own, too narrow as a rule) or calibrated.",
    "Leading edge": "Genes of a set that make its enrichment score: those before the peak.",
    "Loading": "What a mechanism does to a gene: the change of log2(1 + 1e4 p) for each basal "
    "standard deviation that the mechanism moves, over the step its perturbations make.",
    "Mask": "For each perturbation and mechanism, whether the perturbation uses it: a probability, "
    "learned, and sparse because each use has to earn its price in likelihood.",
    "Mechanism": "One latent dimension that perturbations may move, numbered M0, M1, ... Not a "
    "pathway by itself: its gene sets suggest what it may be.",
    "Nat": "A unit of log likelihood: one nat more makes a cell 2.7 times as likely.",
    "Near miss": "A mask entry that is off though held-out cells speak for it: likely there, but "
    "too small for what the mask prior asks.",
    "Over-representation": "Whether a set shares more genes with the top genes than by chance.",
    "Perturbation": "A gene knocked out, knocked down or activated in a cell.",
    "Posterior draw": "A sample of masks and embeddings from what the model holds possible.",
    "Probability of sign": "The share of posterior draws with the sign of the mean.",
    "Shift": "log2(1 + 1e4 p) with the perturbations minus the same without; p is the mean decoded "
    "share of a gene over control cells. 1 means about twice the share.",
    "Split-half": "No prediction but the data: how well a second sample of as many cells would "
    "agree with the measurement.",
    "Support": "How far training data carry a composition: measured, each part measured alone, a "
    "part measured in other combinations only, a dosage outside those measured, or nothing.",
    "UMAP": "A flat map that keeps neighbours together. Distances between far groups, their sizes "
    "and the axes have no meaning.",
}


def found(text: str) -> dict[str, str]:
    """Words that hold a text, or whose meaning does, those that begin with it first."""
    low = text.casefold()
    hits = [w for w, meaning in WORDS.items() if low in w.casefold() or low in meaning.casefold()]
    hits.sort(key=lambda w: (not w.casefold().startswith(low), low not in w.casefold(), w))
    return {word: WORDS[word] for word in hits}
