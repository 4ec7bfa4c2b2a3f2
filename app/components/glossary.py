"""The terms of the glossary, each in a sentence or two."""

from __future__ import annotations

WORDS = {
    "Active": "A mechanism is active in a perturbation if the posterior probability that the "
    "perturbation uses it is above 0.5.",
    "Average effect": "The mean of log2(1 + 1e4 x / total) over cells with a perturbation, minus "
    "that over control cells. Held-out scores use this scale, as the paper does. For weakly "
    "expressed genes it differs a lot from the scale of shifts.",
    "Basal state": "Where a cell would be in latent space without its perturbations: its own "
    "state, as the model infers it from the cell's counts.",
    "Baseline": "A simple prediction to compare a model with: no change, the mean over "
    "perturbations, the training mean, the sum of single effects, the last two also shrunk towards "
    "zero as their noise suggests, or a ridge regression.",
    "Bound (IWELBO)": "A lower bound on the log likelihood of a cell, in nats. Higher is better. "
    "It compares models on the same cells only.",
    "Bundle": "A folder with a trained model and all its tables. It never changes once it is made; "
    "its checksum identifies it.",
    "Calibrated interval": "The model's own interval, widened by the errors the model made on "
    "validation cells, so that about 90 % of such shifts fall inside.",
    "Ceiling": "The r that a perfect prediction could reach. It is below 1 because the measurement "
    "has sampling error.",
    "Combination": "Several perturbations in one cell.",
    "Composition": "Perturbations combined on the page Compose, each at a dosage: their latent "
    "shifts are added up and decoded to genes.",
    "Condition": "The perturbations that a cell received according to its label, or control.",
    "Context": "A covariate, such as the cell line, by whose levels the effect of a perturbation "
    "on a mechanism may differ. A level has a difference only where its cells pay the price of "
    "one; everywhere else the effect is the common one.",
    "Control": "Cells that received a non-targeting guide. All shifts are measured against them.",
    "Covariate": "What a cell comes with beside its perturbation, such as its batch, donor or cell "
    "line. A model that accounts for it has an offset per level and gene, and compares cells of "
    "the same level.",
    "Cram\u00e9r's V": "How closely two columns go together, from 0 (each is spread evenly over "
    "the other) to 1 (one follows from the other). The page Data gives it for perturbations and "
    "covariates, corrected for chance.",
    "Decoder": "The network that turns a latent state into the share of each gene. It is not "
    "linear: twice the latent shift need not change a gene twice as much.",
    "Direct effect": "What a perturbation does to one gene outside every mechanism: it is added to "
    "the gene's logit. It stands out if it is unlike the other direct effects of its perturbation "
    "(probability above 0.5); small ones are used in predictions, too.",
    "Dosage": "How much of a perturbation: 1 is the perturbation as measured, 0 is none. Other "
    "dosages scale its latent shift, which is an extrapolation unless the data have such dosages.",
    "Effect (on a mechanism)": "Posterior mean of mask times embedding: how far a perturbation "
    "moves a mechanism, in standard deviations of the basal state. Its sign is a direction along "
    "the mechanism, not more or less expression.",
    "Enrichment score (ES, NES)": "In a ranked test, how strongly the genes of a set gather at one "
    "end of the ranking; NES is the score over its mean under permutation.",
    "Evidence": "Nats per held-out cell that predictions lose when a mask entry in use is switched "
    "off, or would gain if another were switched on.",
    "FDR": "False discovery rate, by Benjamini and Hochberg: of the sets called at 5 % FDR, about "
    "one in twenty is expected to be false.",
    "Gene set": "Genes that are known to belong together: a pathway, a process or a signature.",
    "Held out": "Cells, or whole conditions, that the model was not trained on.",
    "Interaction": "What perturbations do together minus the sum of what each does alone. "
    "Predicted interactions come from the decoder's curvature; measured ones are shown where there "
    "are any.",
    "Interval": "A 90 % interval, either calibrated or from posterior draws (the model's own, "
    "usually too narrow).",
    "Leading edge": "The genes of a set that make its enrichment score: those before the peak.",
    "Loading": "What a mechanism does to a gene: the change of log2(1 + 1e4 p) per basal standard "
    "deviation that the mechanism moves, over the step that its perturbations make.",
    "Level": "One of the labels of a covariate, such as one batch.",
    "Mask": "The learned probability, for each perturbation and mechanism, that the perturbation "
    "uses it. Masks are sparse because each use has to improve the likelihood enough.",
    "Mechanism": "One latent dimension that perturbations may move, numbered M0, M1, ... Not a "
    "pathway by itself: its gene sets suggest what it may be.",
    "Nat": "A unit of log likelihood: one nat more makes a cell 2.7 times as likely.",
    "Near miss": "A mask entry that is off although held-out cells speak for it: likely real, but "
    "too small for what the mask prior asks.",
    "Over-representation": "A test of whether a set shares more genes with the top genes than "
    "expected by chance.",
    "Own target": "The gene that a perturbation is aimed at, if it is among the genes of the "
    "model. Its direct effect has a prior of its own, because it is expected to move.",
    "Perturbation": "A gene knocked out, knocked down or activated in a cell.",
    "Posterior draw": "A sample of masks and embeddings from the model's posterior.",
    "Probability of sign": "The share of posterior draws with the sign of the mean.",
    "Shift": "The change of a gene's expression: log2(1 + 1e4 p) with the perturbations minus the "
    "same without; p is the mean decoded share of the gene over control cells. 1 means about twice "
    "the share.",
    "Split-half": "How well a second sample of as many cells would agree with the measurement. It "
    "comes from the data alone and is not a prediction.",
    "Support": "How far training data support a composition: measured, each part measured alone, a "
    "part measured in other combinations only, a dosage outside those measured, or nothing.",
    "UMAP": "A flat map that keeps neighbours together. Distances between far groups, their sizes "
    "and the axes have no meaning.",
}


def found(text: str) -> dict[str, str]:
    """Return the entries whose word or meaning contains a text; words that start with it first."""
    low = text.casefold()
    hits = [w for w, meaning in WORDS.items() if low in w.casefold() or low in meaning.casefold()]
    hits.sort(key=lambda w: (not w.casefold().startswith(low), low not in w.casefold(), w))
    return {word: WORDS[word] for word in hits}
