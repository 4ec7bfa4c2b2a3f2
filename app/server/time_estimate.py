"""Estimates of the time and memory that a training run will take on this machine.

A few steps are timed in a separate process, at two numbers of genes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # to wait for the process
GENES = (100, 800)
BATCH, HIDDEN, STEPS = 256, 400, 4  # of the timed runs
N_VALIDATION_SAMPLES = 2
PROGRAM = 0.6e9  # bytes of Python with torch
SPARSE = 8 * 5  # bytes per non-zero count: read, sorted, split, and on the device
DENSE = 4 * 24  # bytes per cell and gene of a step, for gradients


class Pace(NamedTuple):
    """The timed device, and the time of a step with 400 hidden units."""

    device: str  # cuda or cpu
    named: str
    memory: float  # bytes of the device, or of the machine
    fixed: float  # seconds of a step
    each: float  # seconds per cell and gene of a step


class Size(NamedTuple):
    """The size of a training run: its data and settings."""

    n_cells: int
    n_genes: int
    counts_per_cell: float  # median
    steps: int
    batch_size: int = 512
    hidden: int = 400
    particles: int = 1


def measured(threads: int) -> Pace | None:
    """Return the pace of this machine, on its GPU if it has one, or None if timing fails."""
    command = [sys.executable, "-m", "app.server.time_estimate", str(threads)]
    limits = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    try:
        said = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | limits,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=SECONDS,
            check=True,
        ).stdout
        return Pace(**json.loads(said))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return None


def device() -> str:
    """Return the device that trains here: cuda or cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds(pace: Pace, size: Size) -> float:
    """Return the estimated seconds of all steps and of the validation after each epoch."""
    n_train, n_validation = 0.64 * size.n_cells, 0.16 * size.n_cells
    batch = min(size.batch_size, n_train)
    width = 0.5 + 0.5 * size.hidden / HIDDEN  # about half of the time goes into the layers
    each = pace.each * size.n_genes * width
    step = pace.fixed + each * batch * size.particles
    epochs = size.steps / max(1.0, n_train / batch)
    return size.steps * step + epochs * each * n_validation * N_VALIDATION_SAMPLES / 3


def memory(size: Size) -> float:
    """Return the estimated peak memory in bytes."""
    filled = size.n_cells * min(size.n_genes, size.counts_per_cell)
    step = size.batch_size * size.particles * size.n_genes * DENSE
    weights = 3 * size.n_genes * size.hidden * 4 * 4
    return PROGRAM + filled * SPARSE + step + weights


def in_words(found: float) -> str:
    """Return a time in rounded seconds, minutes or hours, in words."""
    if found < 90:
        return f"{max(1, round(found / 10)) * 10} seconds"
    if found < 90 * 60:
        return f"{round(found / 60)} minutes"
    return f"{found / 3600:.1f} hours"


def time_steps(threads: int) -> Pace:
    """Time a few training steps and return the pace.

    Run it in a separate process: it uses all `threads`, and the GPU if there is one.
    """
    import torch

    from samsvae_core.models.device_rows import Cells
    from samsvae_core.models.samsvae import ModelConfig
    from samsvae_core.models.simulate import Design, simulate
    from samsvae_core.system.machine import memory_here
    from samsvae_core.training.config import Progress, TrainConfig
    from samsvae_core.training.loop import fit, new_model

    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    config = TrainConfig(steps=4 * STEPS, batch_size=BATCH)
    found = []
    for n_genes in GENES:
        data, _ = simulate(Design(STEPS * BATCH, n_genes, n_combinations=0))
        model = new_model(data, ModelConfig(n_genes, 20, n_hidden=HIDDEN), 0).to(device)
        train, few = Cells(data, device), Cells(data.subset([0, 1]), device)
        times = [time.perf_counter()]

        def note(_: Progress, times: list[float] = times) -> None:
            times.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            fit(model, train, few, config, Path(folder), note)
        epochs = [after - before for before, after in pairwise(times)]
        found.append(min(epochs[1:]) / STEPS)
    each = max(0.0, (found[1] - found[0]) / ((GENES[1] - GENES[0]) * BATCH))
    fixed = max(0.0, found[0] - each * GENES[0] * BATCH)
    if on_gpu:
        about = torch.cuda.get_device_properties(device)
        return Pace("cuda", about.name, float(about.total_memory), fixed, each)
    return Pace("cpu", "", float(memory_here()), fixed, each)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(time_steps(int(sys.argv[1]))._asdict()))
