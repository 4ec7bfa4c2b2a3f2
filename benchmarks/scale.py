"""How does training grow with cells and genes, and what do two processes bring?

    python benchmarks/scale.py                        # 3 minutes on 2 quiet cores
    python benchmarks/scale.py --quick                # small sizes, under 50 s
    python benchmarks/scale.py --device cuda          # under a minute
    python benchmarks/scale.py --plot growth.svg      # the same as a figure

The defaults of `samsvae train` (512 cells a step, 1 particle, 20 mechanisms, 400 hidden units) on
random counts, 10 % of them not zero. Time of an epoch: the median of STEPS steps, times its number
of steps; on the CPU processor time of one core, which other programs change little. Memory: of the
counts as they lie on the device. Then, on the clock, steps of one process and of two that share
each batch, with one thread each.
Expected: docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

from samsvae_core import parallel
from samsvae_core.data import CellData
from samsvae_core.inference import Cells
from samsvae_core.model import ModelConfig
from samsvae_core.training import Steps, TrainConfig, new_model, new_optimizer, quick_products

FILLED = 0.1  # of the counts
PERTURBATIONS = 50
STEPS = 24
BASE_CELLS, BASE_GENES = 50_000, 1000
MANY_CELLS, MANY_GENES = (10_000, 50_000, 200_000), (1000, 4000, 8000)
CPU = torch.device("cpu")


class Growth(NamedTuple):
    """One size."""

    n_cells: int
    n_genes: int
    step: float  # seconds, median
    epoch: float  # seconds
    counts: float  # MB on the device


def random_cells(n_cells: int, n_genes: int) -> CellData:
    """Counts without meaning: time does not depend on what they say."""
    rng = np.random.default_rng(0)
    per_cell = max(1, round(FILLED * n_genes))
    columns = rng.integers(n_genes, size=n_cells * per_cell, dtype=np.int32)
    values = rng.geometric(0.5, size=len(columns)).astype(np.float32)
    rows = np.arange(n_cells + 1, dtype=np.int64) * per_cell
    counts = sp.csr_matrix((values, columns, rows), shape=(n_cells, n_genes))
    counts.sum_duplicates()
    which = rng.integers(PERTURBATIONS + 1, size=n_cells)
    given = np.flatnonzero(which < PERTURBATIONS)
    dosages = sp.csr_matrix(
        (np.ones(len(given), np.float32), (given, which[given])), shape=(n_cells, PERTURBATIONS)
    )
    names = np.array([f"P{t}" for t in range(PERTURBATIONS)] + ["control"], dtype=object)
    return CellData(
        cells=np.arange(n_cells).astype(str).astype(object),
        counts=counts,
        genes=np.array([f"G{g}" for g in range(n_genes)], dtype=object),
        library=np.asarray(counts.sum(axis=1)).ravel(),
        dosages=dosages,
        perturbations=names[:-1],
        conditions=names[which],
        control="control",
        has_size_factor=False,
        source={},
    )


def steps_of(data: CellData, device: torch.device) -> tuple[Steps, TrainConfig]:
    config = TrainConfig(steps=10**6)
    model = new_model(data, ModelConfig(len(data.genes), PERTURBATIONS), 0).to(device)
    return Steps(model, new_optimizer(model, config), Cells(data, device), config), config


def seconds_a_step(
    steps: Steps, config: TrainConfig, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Median, of steps on batches in random order."""
    device, found = steps.cells.device, []
    with quick_products(device):
        for i in range(STEPS + 5):
            index = torch.randint(len(steps.cells), (config.batch_size,), device=device)
            began = clock()
            steps.take(index, 1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= 5:  # the first are warm-up, and recorded on a card
                found.append(clock() - began)
    return statistics.median(found)


def growth(n_cells: int, n_genes: int, device: torch.device) -> Growth:
    steps, config = steps_of(random_cells(n_cells, n_genes), device)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    step = seconds_a_step(steps, config, clock)
    counts = steps.cells.counts
    tensors = [a for a in vars(counts).values() if isinstance(a, torch.Tensor)]
    matrix = getattr(counts, "matrix", None)
    if sp.issparse(matrix):
        tensors = [matrix.data, matrix.indices, matrix.indptr]
    n_bytes = sum(a.nbytes for a in tensors)
    return Growth(n_cells, n_genes, step, step * -(-n_cells // config.batch_size), n_bytes / 1e6)


def table(sizes: list[tuple[int, int]], device: torch.device) -> list[Growth]:
    print(f"{'cells':>8} {'genes':>6} {'ms/step':>8} {'s/epoch':>8} {'counts MB':>10}")
    rows = []
    for n_cells, n_genes in sizes:
        row = growth(n_cells, n_genes, device)
        rows.append(row)
        print(f"{n_cells:8,} {n_genes:6,} {1e3 * row.step:8.2f} {row.epoch:8.2f} "
              f"{row.counts:10,.0f}", flush=True)  # fmt: skip
    return rows


def plot(rows: list[Growth], path: Path) -> None:
    """Epochs against cells and against genes, on logarithmic scales with a line of slope 1."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
    for axis, name, other in ((axes[0], "n_cells", "n_genes"), (axes[1], "n_genes", "n_cells")):
        held = statistics.mode(getattr(row, other) for row in rows)
        line = sorted((getattr(r, name), r.epoch) for r in rows if getattr(r, other) == held)
        x, y = np.array(line).T
        axis.loglog(x, y, "o-", color="#0b6fa4")
        axis.loglog(x, y[0] * x / x[0], ":", color="0.6", label="in proportion")
        axis.set_xticks(x, [f"{int(v):,}" for v in x])
        axis.set_yticks([1, 3, 10, 30], ["1", "3", "10", "30"])
        axis.minorticks_off()
        axis.set_xlabel(name.removeprefix("n_") + f" ({held:,} {other.removeprefix('n_')})")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("seconds an epoch")
    axes[0].legend(frameon=False)
    figure.savefig(path)
    print(f"Wrote {path}.")


def member(n_genes: int) -> None:
    """One process of a group, or one alone: the first says how long a step took."""
    torch.set_num_threads(1)
    with parallel.group(CPU):
        took = seconds_a_step(*steps_of(random_cells(4000, n_genes), CPU))
        if parallel.first():
            print(took)


def together(n_genes: int, n_processes: int) -> float:
    """Seconds of a step of 512 cells."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    everyone = os.environ | {"WORLD_SIZE": str(n_processes), "MASTER_ADDR": "127.0.0.1"}
    everyone |= {"MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--member", str(n_genes)],
            env=everyone | {"RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(n_processes)
    ]
    said = [process.communicate(timeout=300)[0] for process in processes]
    return float(said[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member:
        member(given.member)
        return
    device = torch.device(given.device)
    torch.set_num_threads(1)
    sizes = [(n, BASE_GENES) for n in MANY_CELLS] + [(BASE_CELLS, g) for g in MANY_GENES[1:]]
    if given.quick:
        sizes = [(n // 10, g // 10) for n, g in sizes]
    rows = table(sizes, device)
    if given.plot:
        plot(rows, given.plot)
    if device.type == "cpu":
        for n_genes in (500,) if given.quick else (2000, 5000):
            one, two = (together(n_genes, n) for n in (1, 2))
            print(f"512 cells x {n_genes:,} genes, a thread each: one process {1e3 * one:.0f} ms a "
                  f"step, two {1e3 * two:.0f} ms: {one / two:.2f} times")  # fmt: skip


if __name__ == "__main__":
    main()
