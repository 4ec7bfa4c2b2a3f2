"""The settings of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """What the model is, saved with the weights. `TrainConfig` says how it is trained."""

    n_genes: int
    n_perturbations: int
    n_latent: int = 20
    n_hidden: int = 400
    embedding_scale: float = 1.0  # prior standard deviation of an embedding entry
    mask_evidence: float | None = 0.16  # nats per training cell an active mechanism must bring
    mask_prior: float = 0.05  # published setting, used if mask_evidence is None
    other_genes: bool = False  # one more outcome: the transcriptome outside the panel
    encoder: str = "correlated"  # reads x and the latent shift; "mean-field": x alone
    likelihood: str = "counts"  # negative binomial; "gaussian": for values that are not counts
    direct_effects: str = "none"  # outside the mechanisms; "own-target", "sparse": `direct`
    levels: Sequence[int] = ()  # of each covariate: `level_offsets`
    context: int | None = None  # number of the covariate in which effects may differ: `contexts`

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))  # a list, from a file
