"""Training steps and their optimizer; on a GPU, steps are recorded and replayed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from samsvae_core.models.bounds import Elbo, elbo
from samsvae_core.models.device_rows import Batch, Cells
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.training import distributed
from samsvae_core.training.config import TrainConfig, TrainingError

UNRECORDED = 3  # first steps on a CUDA device, which are not recorded


@contextmanager
def tf32_matmul(device: torch.device) -> Iterator[None]:
    """On a CUDA device, round operands of matrix products to 10 bits (tf32) inside the block."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def new_optimizer(model: SAMSVAE, config: TrainConfig) -> torch.optim.Adam:
    """Return Adam; on a CUDA device as one kernel with its learning rates on the device."""
    groups = parameter_groups(model, config)
    if model.device.type != "cuda":
        return torch.optim.Adam(groups)
    for group in groups:
        group["lr"] = torch.tensor(group["full_lr"], device=model.device)
    return torch.optim.Adam(groups, fused=True, capturable=True)


class Bound(nn.Module):
    """The bound as a module, so that DistributedDataParallel can average its gradients."""

    def __init__(self, model: SAMSVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, n_cells: int, particles: int, anneal: float | Tensor) -> Elbo:
        return elbo(self.model, batch, n_cells, particles, anneal)


class StepRunner:
    """Takes training steps. On a CUDA device one is recorded (a CUDA graph) and then replayed.

    A step is hundreds of kernels, and starting them one by one would take longer than they run.
    What changes between steps (cells, share of the evidence, learning rates) lies in tensors that
    the recorded step reads. Not recorded are the smaller last batch of an epoch, the first steps,
    in which libraries choose their kernels, and the steps of several processes, in which a recorded
    step could not notice that a process is lost.
    """

    def __init__(
        self, model: SAMSVAE, optimizer: torch.optim.Adam, cells: Cells, config: TrainConfig
    ) -> None:
        self.model, self.optimizer, self.cells, self.config = model, optimizer, cells, config
        self.bound = distributed.averaged(Bound(model))
        self.taken = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.anneal = torch.zeros((), device=cells.device)
        self.index = torch.zeros(config.batch_size, dtype=torch.int64, device=cells.device)
        self.terms = torch.zeros(4, device=cells.device)

    def take(self, index: Int[Tensor, " N"], step: int) -> Tensor:
        """Take step number `step` on the cells at `index`; returns the terms of `train_step`."""
        set_learning_rates(self.optimizer, self.config, step)
        share = annealed(self.config, step)
        if self.cells.device.type != "cuda":
            return self.run(index, share)
        self.anneal.fill_(share)
        if len(index) < self.config.batch_size or distributed.size() > 1:
            return self.run(index, self.anneal)
        self.index.copy_(index)
        if self.taken < UNRECORDED:
            self.taken += 1
            return self.warm_up()
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.terms = self.run(self.index, self.anneal)
        self.graph.replay()
        return self.terms

    def warm_up(self) -> Tensor:
        """Take a step on a separate stream, as CUDA requires before recording."""
        stream = torch.cuda.Stream(self.cells.device)
        stream.wait_stream(torch.cuda.current_stream(self.cells.device))
        with torch.cuda.stream(stream):
            terms = self.run(self.index, self.anneal)
        torch.cuda.current_stream(self.cells.device).wait_stream(stream)
        return terms

    def run(self, index: Int[Tensor, " N"], anneal: float | Tensor) -> Tensor:
        index, weight = distributed.share(index)
        batch, n_cells = self.cells.batch(index), len(self.cells)
        return train_step(self.bound, self.optimizer, batch, n_cells, self.config, anneal, weight)


def train_step(
    bound_of: nn.Module,
    optimizer: torch.optim.Adam,
    batch: Batch,
    n_cells: int,
    config: TrainConfig,
    anneal: float | Tensor,
    weight: float = 1.0,
) -> Tensor:
    """Take one step; returns bound, its two KL terms and the gradient norm, on the device.

    Parameters
    ----------
    bound_of
        A `Bound`, possibly distributed.
    optimizer
        The optimizer of its parameters.
    batch
        The cells of the step.
    n_cells
        Number of training cells.
    config
        How to train.
    anneal
        Share of the evidence asked, in [0, 1].
    weight
        Weight of the batch, if it is one process's share of a larger one.
    """
    bound = bound_of(batch, n_cells, config.particles, anneal)
    bound = bound._replace(log_px=weight * bound.log_px, kl_basal=weight * bound.kl_basal)
    optimizer.zero_grad()
    (-bound.total).backward()
    norm = torch.nn.utils.clip_grad_norm_(bound_of.parameters(), config.clip_norm)
    optimizer.step()
    return torch.stack([bound.total, bound.kl_basal, bound.kl_effects, norm]).detach()


def check_finite(what: str, value: float, epoch: int, step: int, config: TrainConfig) -> None:
    """Raise TrainingError, with what to change, if training has diverged."""
    if not math.isfinite(value):
        kept = "The checkpoint of the epoch before is kept. " if epoch > 1 else ""
        raise TrainingError(
            f"The {what} became {value} in epoch {epoch} (step {step}). {kept}Lower "
            f"--learning-rate (now {config.learning_rate:g}), or look for extreme counts and "
            "dosages with samsvae validate."
        )


def annealed(config: TrainConfig, step: int) -> float:
    """Return the share of the evidence asked of a mask entry at this step, in [0, 1]."""
    start, end = config.dense * config.steps, config.anneal * config.steps
    return min(1.0, max(0.0, step - start) / max(1.0, end - start))


def set_learning_rates(optimizer: torch.optim.Adam, config: TrainConfig, step: int) -> None:
    """Set full rates until annealing ends, then lower them linearly to `final_learning_rate`."""
    start = config.anneal * config.steps
    after = max(0.0, step - start) / max(1.0, config.steps - start)
    share = 1 - (1 - config.final_learning_rate) * after
    for group in optimizer.param_groups:
        rate = share * group["full_lr"]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def parameter_groups(model: SAMSVAE, config: TrainConfig) -> list[dict[str, Any]]:
    """Return networks, masks and embeddings, each with a learning rate of its own."""
    masks, embeddings = model.mask_parameters(), model.embedding_parameters()
    networks = [p for p in model.parameters() if not any(p is q for q in masks + embeddings)]
    groups = [
        (networks, config.learning_rate),
        (masks, config.mask_learning_rate),
        (embeddings, config.embedding_learning_rate),
    ]
    return [{"params": parameters, "lr": rate, "full_lr": rate} for parameters, rate in groups]
