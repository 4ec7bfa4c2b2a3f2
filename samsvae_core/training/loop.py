"""Fit a model to cells: one loop, checkpoints that survive a crash, a callback per epoch.

Everything starts on and a decoder is learned. Then the latent space is turned to its sparsest
basis, and the evidence asked of a mask entry rises from 0 to its full value until two thirds of the
steps: mechanisms that do not earn their keep switch off (docs/model.md). Early stopping counts from
there on; then, too, the learning rates fall, so that the final parameters are an average rather
than a snapshot.

While it runs it writes history.csv and checkpoints/last.safetensors into the run folder. Knows
nothing of pages or command lines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from samsvae_core.data.cells import CellData
from samsvae_core.models.bounds import Batch, Cells, Elbo, cell_terms, elbo
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.system.files import atomic_write
from samsvae_core.training import distributed
from samsvae_core.training.rotation import sparsest_rotation

VALIDATION_BATCH = 2048  # cells; bounds memory, does not change the figure
ROWS_AT_ONCE = 1 << 14  # in double precision while moments are summed
UNRECORDED = 3  # first steps on a CUDA device
PAUSE = 5.0  # seconds between two writings of a checkpoint, at least; a kill loses as much
VALIDATION_SAMPLES = 2  # per cell: epochs compare, whatever the particles of training


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


def new_model(data: CellData, config: ModelConfig, seed: int, name: str = "sams-vae") -> SAMSVAE:
    """A model of MODELS at its start for these training cells, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](config)
    mean, scale = moments(data)
    cells = np.asarray((data.dosages != 0).sum(axis=0)).ravel()
    loc, width, per = (torch.as_tensor(a, dtype=torch.float32) for a in (mean, scale, cells))
    model.fit_buffers(loc, width, per, len(data.cells))
    if config.other_genes:  # else a gene takes their place: a share far too large costs little
        panel = max(1.0, float(data.counts.sum(dtype=float)))
        others = max(1.0, float(data.library.sum(dtype=float)) - panel)
        model.decoder.out.bias.data[-1] += math.log(config.n_genes * others / panel)
    return model


def moments(data: CellData) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Mean and standard deviation per gene of what the encoder reads, some rows at a time."""
    sums = np.zeros((2, len(data.genes)))
    for i in range(0, len(data.cells), ROWS_AT_ONCE):
        rows = data.counts[i : i + ROWS_AT_ONCE].astype(np.float64)
        values = rows.log1p() if data.is_counts else rows
        sums += [np.asarray(a.sum(axis=0)).ravel() for a in (values, values.multiply(values))]
    mean, mean_square = sums / len(data.cells)
    return mean, np.sqrt(np.maximum(mean_square - mean**2, 0))


def fit(
    model: SAMSVAE,
    train: Cells,
    validation: Cells,
    config: TrainConfig,
    run: Path,
    on_epoch: Callable[[Progress], None] = lambda _: None,
) -> list[Progress]:
    """Train `model` in place to its final, pruned parameters; returns the history.

    Goes on from RUN/checkpoints/last.safetensors if there is one: on CPU with the same history, to
    the bit, as if never stopped. Whatever ends it, a Stop raised by `on_epoch` too, passes through
    after the last whole epoch has been kept. Raises TrainingError where the loss is not finite. Of
    several processes (`parallel`) each calls this with all cells; the first one writes.
    """
    keeper = Keeper(run)
    devices = [train.device] if train.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        quick_products(train.device),
        distributed.told(),
    ):
        torch.manual_seed(config.seed)
        optimizer = new_optimizer(model, config)
        history = restore(keeper.last, model, optimizer) if keeper.last.exists() else []
        distributed.check_same("checkpoints, of epochs", len(history))
        steps = Steps(model, optimizer, train, config)
        try:
            while not finished(history, config):
                progress = train_epoch(steps, history)
                bound = validation_bound(model, validation)
                check_finite("validation bound", bound, progress.epoch, progress.step, config)
                progress = progress._replace(validation_bound=bound)
                history.append(progress)
                if distributed.first():
                    keeper.keep(checkpoint(model, optimizer), history)
                tell(on_epoch, progress)
        finally:
            keeper.write()
    return history


def tell(on_epoch: Callable[[Progress], None], progress: Progress) -> None:
    """Call back; where one process is to stop, all do."""
    stop = False
    try:
        on_epoch(progress)
    except Stop:
        stop = True
    if distributed.anyone(stop):
        raise Stop


class Keeper:
    """Keeps the last whole epoch: on the device at once, in the run folder every now and then."""

    def __init__(self, run: Path) -> None:
        self.history, self.last = run / "history.csv", run / "checkpoints" / "last.safetensors"
        self.kept: tuple[dict[str, Tensor], list[Progress]] | None = None  # not written yet
        self.due = 0.0

    def keep(self, state: dict[str, Tensor], history: list[Progress]) -> None:
        self.kept = state, list(history)
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write what is not yet, then none for PAUSE, or longer where writing takes long."""
        if self.kept is None:
            return
        began = time.monotonic()
        state, history = self.kept
        tensors = {name: value.cpu().contiguous() for name, value in state.items()}
        content = save(tensors, metadata={"history": json.dumps(history)})
        # history before checkpoint: killed in between, the epochs are only trained again
        atomic_write(self.history, pd.DataFrame(history).to_csv(index=False).encode())
        atomic_write(self.last, content)
        self.kept = None
        ended = time.monotonic()
        self.due = ended + PAUSE * max(1.0, 2 * (ended - began))


@contextmanager
def quick_products(device: torch.device) -> Iterator[None]:
    """On a CUDA device, matrix products of operands rounded to 10 bits (tf32)."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def new_optimizer(model: SAMSVAE, config: TrainConfig) -> torch.optim.Adam:
    """Adam; on a CUDA device in one kernel, with learning rates that live there."""
    groups = parameter_groups(model, config)
    if model.device.type != "cuda":
        return torch.optim.Adam(groups)
    for group in groups:
        group["lr"] = torch.tensor(group["full_lr"], device=model.device)
    return torch.optim.Adam(groups, fused=True, capturable=True)


def train_epoch(steps: Steps, history: list[Progress]) -> Progress:
    """One pass over the training cells in random order, or what is left of the steps."""
    model, config, device = steps.model, steps.config, steps.cells.device
    step, number = (history[-1].step, history[-1].epoch + 1) if history else (0, 1)
    batches = torch.randperm(len(steps.cells), device=device).split(config.batch_size)
    batches = batches[: config.steps - step]
    sums = torch.zeros(4, device=device)  # no figure leaves the device before the epoch ends
    with distributed.own_draws(device):
        for index in batches:
            step += 1
            if model.asks_evidence and step == math.ceil(config.dense * config.steps):
                model.rotate(distributed.of_first(sparsest_rotation(model.effect_moments()[0])))
            sums += steps.take(index, step) * len(index)
    sums = distributed.total(sums) / (distributed.size() * sum(map(len, batches)))
    bound, kl_basal, kl_effects, norm = sums.tolist()
    check_finite("loss", bound + norm, number, step, config)
    active = model.mask_probability().detach() > ACTIVE
    return Progress(
        epoch=number,
        step=step,
        bound=bound,
        kl_basal=kl_basal,
        kl_effects=kl_effects,
        validation_bound=math.nan,
        active=int(active.sum()),
        mechanisms=int(active.any(0).sum()),
        gradient_norm=norm,
        anneal=annealed(config, step),
    )


class Bound(nn.Module):
    """The bound as a module, of which DistributedDataParallel averages the gradients."""

    def __init__(self, model: SAMSVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, n_cells: int, particles: int, anneal: float | Tensor) -> Elbo:
        return elbo(self.model, batch, n_cells, particles, anneal)


class Steps:
    """Takes training steps. On a CUDA device one is recorded (a CUDA graph), then played again.

    What changes from step to step, the cells, the share of the evidence and the learning rates,
    then lies in tensors that the recorded step reads; a step is hundreds of kernels, and starting
    them one by one would take longer than they do. The last batch of an epoch, which is smaller, is
    not recorded, nor are the first steps, in which libraries choose their kernels, nor those of
    several processes, which could not notice in a recorded step that one of them is lost.
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
        """Step number `step`, on the cells at `index`; returns the terms of `train_step`."""
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
        """A step on a stream of its own, as must be before one is recorded."""
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
    """Bound, its two KL terms and the gradient norm of one step, still on the device.

    `weight` is that of the batch where it is one process's share of a larger one.
    """
    bound = bound_of(batch, n_cells, config.particles, anneal)
    bound = bound._replace(log_px=weight * bound.log_px, kl_basal=weight * bound.kl_basal)
    optimizer.zero_grad()
    (-bound.total).backward()
    norm = torch.nn.utils.clip_grad_norm_(bound_of.parameters(), config.clip_norm)
    optimizer.step()
    return torch.stack([bound.total, bound.kl_basal, bound.kl_effects, norm]).detach()


def check_finite(what: str, value: float, epoch: int, step: int, config: TrainConfig) -> None:
    """Raise TrainingError, with what to change, where training has diverged."""
    if not math.isfinite(value):
        kept = "The checkpoint of the epoch before is kept. " if epoch > 1 else ""
        raise TrainingError(
            f"The {what} became {value} in epoch {epoch} (step {step}). {kept}Lower "
            f"--learning-rate (now {config.learning_rate:g}), or look for extreme counts and "
            "dosages with samsvae validate."
        )


def annealed(config: TrainConfig, step: int) -> float:
    """Share of the evidence asked of a mask entry at this step, in [0, 1]."""
    start, end = config.dense * config.steps, config.anneal * config.steps
    return min(1.0, max(0.0, step - start) / max(1.0, end - start))


def set_learning_rates(optimizer: torch.optim.Adam, config: TrainConfig, step: int) -> None:
    """Full while the evidence rises, then linearly down to `final_learning_rate` of it."""
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
    """Networks, masks and embeddings, each with a pace of its own."""
    masks, embeddings = model.mask_parameters(), model.embedding_parameters()
    networks = [p for p in model.parameters() if not any(p is q for q in masks + embeddings)]
    groups = [
        (networks, config.learning_rate),
        (masks, config.mask_learning_rate),
        (embeddings, config.embedding_learning_rate),
    ]
    return [{"params": parameters, "lr": rate, "full_lr": rate} for parameters, rate in groups]


def validation_bound(model: SAMSVAE, cells: Cells) -> float:
    """The predictive bound by which epochs compare, the same in all processes."""
    bound = torch.tensor(predictive_bound(model, cells, VALIDATION_SAMPLES), device=cells.device)
    return distributed.of_first(bound.double()).item()


def predictive_bound(model: SAMSVAE, cells: Cells, n_samples: int) -> float:
    """Bound on log p(x) of these cells under q(effects), without its KL, in nats per cell."""
    return cell_bounds(model, cells, n_samples).mean().item()


@torch.inference_mode()
def cell_bounds(model: SAMSVAE, cells: Cells, n_samples: int, seed: int = 0) -> Float[Tensor, " N"]:
    """The predictive bound of each cell, in nats, on the CPU.

    The same draws at every call, so that epochs and models compare cell by cell.
    """
    devices = [cells.device] if cells.device.type == "cuda" else []
    blocks = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        effects = model.effects(n_samples)
        for index in torch.arange(len(cells), device=cells.device).split(VALIDATION_BATCH):
            log_px, kl_basal = cell_terms(model, cells.batch(index), effects)
            blocks.append((log_px - kl_basal).mean(0).double().cpu())
    return torch.cat(blocks)


def best_epoch(history: list[Progress]) -> Progress | None:
    """The epoch with the highest validation bound among those with annealing ended."""
    ended = [progress for progress in history if progress.anneal >= 1]
    return max(ended, key=lambda progress: progress.validation_bound, default=None)


def finished(history: list[Progress], config: TrainConfig) -> bool:
    """Whether all steps are done, or the bound has not risen for `patience` epochs."""
    if not history:
        return config.steps <= 0
    best = best_epoch(history)
    stalled = best is not None and history[-1].epoch - best.epoch >= config.patience
    return history[-1].step >= config.steps or stalled


def checkpoint(model: SAMSVAE, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Copies of the weights, Adam's moments and the random state, where they are."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
    tensors = {name: value.clone() for name, value in tensors.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(model.device)
    return tensors


def restore(path: Path, model: SAMSVAE, optimizer: torch.optim.Adam) -> list[Progress]:
    """Put model, optimizer and random state back; returns the history so far."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            history = [Progress(*row) for row in json.loads(file.metadata()["history"])]
        model.load_state_dict(section(tensors, "model."))
        state = optimizer.state_dict()
        count = sum(len(group["params"]) for group in state["param_groups"])
        state["state"] = {i: section(tensors, f"adam.{i}.") for i in range(count)}
        optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["rng.cpu"])
        device = model.device
        if device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())  # torch writes a line per tensor
        raise TrainingError(
            f"{path} does not hold a checkpoint of this model ({why}). "
            "Resume with the settings the run was started with, or start a new run."
        ) from error
    return history


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
