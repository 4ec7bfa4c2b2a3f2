"""The settings of a training, its progress, and its errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained; saved with the weights."""

    steps: int = 6000
    batch_size: int = 512
    particles: int = 1  # Monte Carlo samples per cell and step; more cost time without a gain
    learning_rate: float = 1e-3
    mask_learning_rate: float = 1e-2  # at the networks' 1e-3, masks cannot switch off in time
    embedding_learning_rate: float = 3e-3
    final_learning_rate: float = 0.05  # share of the learning rates left at the last step
    clip_norm: float = 100.0
    dense: float = 0.4  # share of the steps before evidence is asked; the basis is chosen then
    anneal: float = 2 / 3  # share of the steps after which all evidence is asked
    patience: int = 60  # epochs without a better validation bound, after annealing
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
    """Training cannot continue; the message says when it failed and what to change."""


class Stop(BaseException):
    """Raised by a callback to end training after the epoch; the run can be resumed.

    It is a BaseException, so that a library that catches Exception does not swallow it.
    """
