"""The settings of a training, what it says as it goes, and how it ends early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained. Saved with the weights."""

    steps: int = 6000
    batch_size: int = 512
    particles: int = 1  # Monte Carlo samples per cell and step; more cost time and gain nothing
    learning_rate: float = 1e-3
    mask_learning_rate: float = 1e-2  # at the networks' 1e-3 masks cannot come down in time
    embedding_learning_rate: float = 3e-3
    final_learning_rate: float = 0.05  # share of the learning rates left at the last step
    clip_norm: float = 100.0
    dense: float = 0.4  # share of the steps before evidence is asked; then the basis is chosen
    anneal: float = 2 / 3  # share of the steps over which the evidence asked rises from 0
    patience: int = 60  # epochs without a better validation bound, once annealing has ended
    seed: int = 0


class Progress(NamedTuple):
    """One line of history.csv: means over the epoch's training cells, in nats per cell."""

    epoch: int
    step: int
    bound: float  # evidence lower bound
    kl_basal: float
    kl_effects: float
    validation_bound: float  # predictive bound of the validation cells
    active: int  # mask entries with probability above 0.5
    mechanisms: int  # mechanisms that at least one perturbation uses
    gradient_norm: float  # before clipping, mean over steps
    anneal: float  # share of the evidence asked at the epoch's end


class TrainingError(ValueError):
    """Training cannot go on; the message says when and what to change."""


class Stop(BaseException):
    """Raised by a callback to end training after the epoch; the run can be resumed.

    No Exception, so that a library which catches those cannot take it for an error of its own.
    """
