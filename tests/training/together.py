"""The two processes of tests/training/test_distributed.py; the first argument is the task."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import save_file

from samsvae_core.data.covariates import Covariates
from samsvae_core.data.splits import split
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.models.variants import MODELS
from samsvae_core.training import distributed
from samsvae_core.training import steps as steps_module
from samsvae_core.training.config import Stop, TrainConfig
from samsvae_core.training.loop import fit, new_model
from samsvae_core.training.steps import StepRunner, new_optimizer

CPU = torch.device("cpu")
MODEL = ModelConfig(n_genes=20, n_perturbations=4, n_latent=3, n_hidden=8, levels=(3,))
CONFIG = TrainConfig(steps=16, batch_size=33, particles=2, learning_rate=1e-2)
SIZES = 32, 33, 1, 20  # of batches: odd ones are shared unevenly, of one cell a process gets none


def screen():
    design = Design(n_cells=120, n_genes=20, n_perturbations=4, n_latent=3, n_combinations=1)
    data = simulate(replace(design, seed=3))[0]
    batches = np.arange(len(data.cells), dtype=np.int32)[:, None] % 3
    return replace(data, covariates=Covariates({"batch": ("b1", "b2", "b3")}, batches))


def weights_after_steps(name):
    """Return the weights of a model after a step on each batch; all draws are constants."""

    def normal(shape, dtype=torch.float32, device=None):
        return torch.full(shape, 0.5)

    def uniform(*shape, device=None):
        return torch.full(shape, 0.3)

    data = screen()
    model = new_model(data, MODEL, distributed.rank(), name)  # the first's is what counts
    optimizer = new_optimizer(model, CONFIG)
    with (
        patch("torch.distributions.normal._standard_normal", normal),
        patch("torch.rand", uniform),
    ):
        steps = StepRunner(model, optimizer, Cells(data, CPU), CONFIG)
        generator = torch.Generator().manual_seed(0)
        # the KL of correlated effects is estimated from a batch: exactly so where shares are even
        for size in SIZES if name != "correlated-sams-vae" else (32, 20):
            steps.take(torch.randint(120, (size,), generator=generator), 1)
    return {f"{name}.{key}": value for key, value in model.state_dict().items()}


def fitted(run, on_epoch=lambda _: None):
    data = screen()
    parts = split(data)
    train, validation = (data.subset(parts == part) for part in ("train", "validation"))
    model = new_model(train, replace(MODEL, direct_effects="sparse"), CONFIG.seed)
    history = fit(model, Cells(train, CPU), Cells(validation, CPU), CONFIG, run, on_epoch)
    return history, model.state_dict()


def stop(progress):
    if progress.epoch == 2 and distributed.first():
        raise Stop


def steps(folder):
    weights = {}
    for name in MODELS:
        weights |= weights_after_steps(name)
    save_file(weights, folder / f"{distributed.rank()}.safetensors")


def resume(folder):
    whole = fitted(folder / "whole")
    stopped = False
    try:
        fitted(folder / "stopped", stop)
    except Stop:
        stopped = True
    assert stopped
    distributed.wait()  # until the first has written
    again = fitted(folder / "stopped")
    assert again[0] == whole[0]
    assert len(whole[1]["direct.mean"])
    assert all(torch.equal(again[1][name], value) for name, value in whole[1].items())
    save_file(whole[1], folder / f"{distributed.rank()}.safetensors")


def die(folder):
    taken, step = [], steps_module.train_step

    def deadly(*arguments):
        taken.append(1)
        if len(taken) == 7 and not distributed.first():  # in the third epoch
            os._exit(1)
        return step(*arguments)

    with patch.object(steps_module, "train_step", deadly):
        fitted(folder)


def differ(folder):
    """Give each process a run folder of its own, only one of which has a checkpoint."""
    if distributed.first():
        with patch.object(distributed, "together", lambda: False):
            fitted(folder / "0")
    fitted(folder / str(distributed.rank()))


if __name__ == "__main__":
    what, folder = sys.argv[1:]
    try:
        with distributed.group(CPU):
            {"steps": steps, "resume": resume, "die": die, "differ": differ}[what](Path(folder))
    except distributed.LostError as error:
        sys.exit(f"Error: {error}")
