"""How does training grow with cells and genes, and what do two processes bring?

    python benchmarks/scale.py                        # 3 minutes on 2 quiet cores
    python benchmarks/scale.py --quick                # small sizes, under 50 s
    python benchmarks/scale.py --device cuda          # under a minute
    python benchmarks/scale.py --plot growth.svg      # the same as a figure
    python benchmarks/scale.py --out-of-core          # a million cells: 9 minutes, 7 GB of disk

The defaults of `samsvae train` (512 cells a step, 1 particle, 20 mechanisms, 400 hidden units) on
random counts, 10 % of them not zero. The time of an epoch is the median of STEPS steps times its
number of steps; on the CPU it is processor time of one core, which other programs hardly change.
Memory is that of the counts on the device. Then follow wall times of steps of one process and of
two that share each batch, with one thread each.

With --out-of-core, `samsvae train --counts-on disk` runs on MILLION cells x 2,000 genes (a tenth
with --quick), tables included, in a process limited to LIMIT bytes of private memory (RLIMIT_DATA).
Reported are the peaks of that memory (RssAnon) and of all (RSS), which includes cached pages of
files, then wall times of steps on counts on disk and in memory.
Expected: docs/scale.md.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata.io import write_elem

from samsvae_core.data.cells import CellData
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.training import distributed
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import new_model
from samsvae_core.training.steps import StepRunner, new_optimizer, tf32_matmul

FILLED = 0.1  # share of counts that are not zero
PERTURBATIONS = 50
STEPS = 24
BASE_CELLS, BASE_GENES = 50_000, 1000
MANY_CELLS, MANY_GENES = (10_000, 50_000, 200_000), (1000, 4000, 8000)
MILLION, MILLION_GENES = 10**6, 2000
LIMIT = 4 * 10**9  # bytes of private memory; libraries reserve more than they use
CPU = torch.device("cpu")


class Growth(NamedTuple):
    """The figures of one size."""

    n_cells: int
    n_genes: int
    step: float  # seconds, median
    epoch: float  # seconds
    counts: float  # MB on the device


def random_cells(n_cells: int, n_genes: int) -> CellData:
    """Return meaningless counts; the time does not depend on their values."""
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


def steps_of(data: CellData, device: torch.device) -> tuple[StepRunner, TrainConfig]:
    config = TrainConfig(steps=10**6)
    model = new_model(data, ModelConfig(len(data.genes), PERTURBATIONS), 0).to(device)
    return StepRunner(model, new_optimizer(model, config), Cells(data, device), config), config


def seconds_a_step(
    steps: StepRunner, config: TrainConfig, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the median time of steps on batches in random order."""
    device, found = steps.cells.device, []
    with tf32_matmul(device):
        for i in range(STEPS + 5):
            index = torch.randint(len(steps.cells), (config.batch_size,), device=device)
            began = clock()
            steps.take(index, 1)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if i >= 5:  # the first are warm-up, and recording on a GPU
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
    """Plot epochs against cells and against genes, on logarithmic scales with a line of slope 1."""
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
    """Run steps in one process of a group, or alone; the first prints the time of a step."""
    torch.set_num_threads(1)
    with distributed.group(CPU):
        took = seconds_a_step(*steps_of(random_cells(4000, n_genes), CPU))
        if distributed.first():
            print(took)


def together(n_genes: int, n_processes: int) -> float:
    """Return the seconds of a step of 512 cells."""
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


def write_large(path: Path, n_cells: int, n_genes: int) -> None:
    """Write random counts as .h5ad by blocks; 1 % of cells validate, 1 % test (split.csv)."""
    at_once, cells = min(n_cells, 50_000), [f"c{i}" for i in range(n_cells)]
    conditions = random_cells(n_cells, 10).conditions.astype(str)
    with h5py.File(path, "w") as file:
        write_elem(file, "obs", pd.DataFrame({"perturbation": conditions}, index=cells))
        write_elem(file, "var", pd.DataFrame(index=[f"G{g}" for g in range(n_genes)]))
        X = file.create_group("X")
        X.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        X.attrs["shape"] = (n_cells, n_genes)
        for name, kind in (("data", "f4"), ("indices", "i4")):
            X.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(2**18,))
        lengths = [np.zeros(1, np.int64)]
        for _ in range(0, n_cells, at_once):
            block = random_cells(at_once, n_genes).counts
            for name, values in (("data", block.data), ("indices", block.indices)):
                X[name].resize(len(X[name]) + len(values), axis=0)
                X[name][-len(values) :] = values
            lengths.append(np.diff(block.indptr))
        X["indptr"] = np.cumsum(np.concatenate(lengths))
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    parts = np.resize(["train"] * 98 + ["validation", "test"], n_cells)
    parts = np.random.default_rng(0).permutation(parts)
    table = pd.DataFrame({"cell": cells, "split": parts})
    table.to_csv(path.with_name("split.csv"), index=False)


def peaks(process: subprocess.Popen[str], found: dict[str, int]) -> None:
    """Record a process's peaks of each kind of memory in kB, sampled 20 times a second."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in ("RssAnon", "VmRSS"):
                found[name] = max(found.get(name, 0), int(value.split()[0]))
        time.sleep(0.05)


def out_of_core(n_cells: int, n_genes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, run = folder / "large.h5ad", folder / "run"
        write_large(path, n_cells, n_genes)
        command = [sys.executable, "-m", "samsvae_core", "train", str(path), "--output", str(run)]
        command += ["--split", str(folder / "split.csv"), "--counts-on", "disk", "--steps", "200"]
        process = subprocess.Popen(
            [*command, "--device", "cpu", "--threads", "1"],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)),
            env=os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
            text=True,
        )
        found: dict[str, int] = {}
        watch = threading.Thread(target=peaks, args=(process, found))
        began = time.perf_counter()
        watch.start()
        process.wait()
        watch.join()
        print(
            f"{n_cells:,} cells x {n_genes:,} genes, counts on disk: ended with "
            f"{process.returncode} after {time.perf_counter() - began:.0f} s; memory of its own at "
            f"most {found['RssAnon'] / 1e6:.2f} GB (limit {LIMIT / 1e9:.0f}), with pages of files "
            f"{found['VmRSS'] / 1e6:.2f} GB"
        )
        for where in ("disk", "memory"):
            began = time.perf_counter()
            data = read_h5ad(path, counts_on=where, scratch=folder)
            reading = time.perf_counter() - began
            step = seconds_a_step(*steps_of(data, CPU))
            print(
                f"{where}: reading {reading:.0f} s, a step {1e3 * step:.0f} ms, an epoch "
                f"{step * -(-n_cells // 512):.0f} s; counts {data.counts.nnz * 8 / 1e9:.2f} GB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--out-of-core", action="store_true")
    parser.add_argument("--member", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member:
        member(given.member)
        return
    device = torch.device(given.device)
    torch.set_num_threads(1)
    if given.out_of_core:
        out_of_core(MILLION // (10 if given.quick else 1), MILLION_GENES)
        return
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
