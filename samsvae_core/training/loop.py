"""Fit a model to cells: one loop, checkpoints that survive a crash, a callback per epoch.

All masks start on while a decoder is learned. Then the latent space is rotated to its sparsest
basis, and the evidence asked of a mask entry rises from 0 to its full value until two thirds of the
steps, so that mechanisms without enough evidence switch off (docs/model.md). From there on early
stopping counts, and the learning rates fall, so that the final parameters are close to an average.

The run folder receives history.csv and checkpoints/last.safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from samsvae_core.data.cells import CellData
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.training import distributed
from samsvae_core.training.checkpoint import CheckpointWriter, checkpoint, finished, restore
from samsvae_core.training.config import Progress, Stop, TrainConfig
from samsvae_core.training.context_fit import fit_contexts
from samsvae_core.training.direct_fit import DirectFit
from samsvae_core.training.rotation import sparsest_rotation
from samsvae_core.training.steps import (
    StepRunner,
    annealed,
    check_finite,
    new_optimizer,
    tf32_matmul,
)
from samsvae_core.training.validation import validation_bound, validation_bounds

ROWS_AT_ONCE = 1 << 14  # rows in double precision while moments are summed


def new_model(data: CellData, config: ModelConfig, seed: int, name: str = "sams-vae") -> SAMSVAE:
    """Return a new model of MODELS for these training cells; the same seed gives the same model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](config)
    mean, scale = moments(data)
    cells = np.asarray((data.dosages != 0).sum(axis=0)).ravel()
    loc, width, per = (torch.as_tensor(a, dtype=torch.float32) for a in (mean, scale, cells))
    model.fit_buffers(loc, width, per, len(data.cells))
    if model.level_offsets is not None and data.covariates is not None:
        model.level_offsets.fit_shares(torch.as_tensor(data.covariates.codes))
    if model.direct is not None:
        own = pd.Index(data.genes).get_indexer(pd.Index(data.perturbations))
        model.direct.own.copy_(torch.as_tensor(own))
    if config.other_genes:  # start at their share, or a gene would take their place
        panel = max(1.0, float(data.counts.sum(dtype=float)))
        others = max(1.0, float(data.library.sum(dtype=float)) - panel)
        model.decoder.out.bias.data[-1] += math.log(config.n_genes * others / panel)
    return model


def moments(data: CellData) -> tuple[Float[np.ndarray, " G"], Float[np.ndarray, " G"]]:
    """Return mean and standard deviation per gene of what the encoder reads."""
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

    Training resumes from RUN/checkpoints/last.safetensors if there is one; on a CPU the history is
    then the same to the bit as without a stop. Whatever ends training early, including a Stop
    raised by `on_epoch`, is passed on after the last whole epoch has been stored. Raises
    TrainingError if the loss is not finite. With several processes (`distributed`) each calls this
    with all cells, and the first one writes.

    Parameters
    ----------
    model
        A model of `new_model`.
    train, validation
        Cells on the device of the model.
    config
        How to train.
    run
        The run folder.
    on_epoch
        Called after every epoch.
    """
    keeper = CheckpointWriter(run)
    devices = [train.device] if train.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        tf32_matmul(train.device),
        distributed.as_lost_error(),
    ):
        torch.manual_seed(config.seed)
        optimizer = new_optimizer(model, config)
        history = restore(keeper.last, model, optimizer) if keeper.last.exists() else []
        distributed.check_same("checkpoints, of epochs", len(history))
        steps = StepRunner(model, optimizer, train, config)
        direct = DirectFit(model, train, config)
        try:
            while not finished(history, config):
                progress = train_epoch(steps, direct, history)
                bound = validation_bound(model, validation)
                check_finite("validation bound", bound, progress.epoch, progress.step, config)
                progress = progress._replace(validation_bound=bound)
                history.append(progress)
                if distributed.first():
                    keeper.keep(checkpoint(model, optimizer), history)
                tell(on_epoch, progress)
        finally:
            keeper.write()
        fit_contexts(model, train)
        step = history[-1].step if history else 0
        direct.finish(step, lambda: validation_bounds(model, validation))
    return history


def tell(on_epoch: Callable[[Progress], None], progress: Progress) -> None:
    """Call back; raises Stop in all processes if one is to stop."""
    stop = False
    try:
        on_epoch(progress)
    except Stop:
        stop = True
    if distributed.anyone(stop):
        raise Stop


def train_epoch(steps: StepRunner, direct: DirectFit, history: list[Progress]) -> Progress:
    """Run one pass over the training cells in random order, or the steps that are left."""
    model, config, device = steps.model, steps.config, steps.cells.device
    step, number = (history[-1].step, history[-1].epoch + 1) if history else (0, 1)
    batches = torch.randperm(len(steps.cells), device=device).split(config.batch_size)
    batches = batches[: config.steps - step]
    sums = torch.zeros(4, device=device)  # stays on the device, so that no step waits for it
    with distributed.own_draws(device):
        for index in batches:
            step += 1
            if model.asks_evidence and step == math.ceil(config.dense * config.steps):
                model.rotate(distributed.broadcast(sparsest_rotation(model.effect_moments()[0])))
            sums += steps.take(index, step) * len(index)
            direct.after(step)
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
