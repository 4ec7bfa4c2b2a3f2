"""Does a large upload fill the server's memory?

    python benchmarks/upload.py --quick     # a file of 50 MB: 30 s on 2 cores
    python benchmarks/upload.py             # 500 MB: 2 minutes

Needs Chromium and playwright. An .h5ad file of dense counts is made, uploaded on the page Data of a
separate server, inspected, and read. Memory is the server's resident memory, sampled ten times a
second; processes it starts to inspect the file are counted separately. Fails if the server grows by
twice the file or more. Expected: a little more than the file while it is received, and little once
it is stored.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import threading
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from dashboard import ARGUMENTS, served
from playwright.sync_api import Page, sync_playwright

N_GENES = 600
BYTES = 8  # bytes of a stored count: a float and a column
MOST = 2.0  # largest growth, in file sizes
PATIENCE = 300_000  # milliseconds


def made(path: Path, megabytes: int) -> int:
    """Write an .h5ad file of about this size; returns its bytes."""
    n_cells = megabytes * 2**20 // (N_GENES * BYTES)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 6, n_cells * N_GENES).astype(np.float32)
    columns = np.tile(np.arange(N_GENES, dtype=np.int32), n_cells)
    rows = np.arange(n_cells + 1, dtype=np.int64) * N_GENES
    labels = np.resize(["ctrl", *(f"P{i:02}" for i in range(40))], n_cells)
    anndata.AnnData(
        sp.csr_matrix((counts, columns, rows), shape=(n_cells, N_GENES)),
        obs=pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]),
    ).write_h5ad(path)
    return path.stat().st_size


class Memory:
    """The memory of a process, watched by a thread, and the peak of its children."""

    def __init__(self, pid: int) -> None:
        self.pid, self.watching = pid, True
        self.before = self.now = self.peak = resident(pid)
        self.children = 0
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while self.watching:
            self.now = resident(self.pid)
            self.peak = max(self.peak, self.now)
            self.children = max(self.children, sum(map(resident, children_of(self.pid))))
            time.sleep(0.1)

    def stop(self) -> None:
        self.watching = False
        self.thread.join()


def resident(pid: int) -> int:
    """Return the bytes of a process in memory; 0 if it has ended."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 if found else 0


def children_of(pid: int) -> list[int]:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(n) for task in tasks for n in (task / "children").read_text().split()]
    except OSError:
        return []


def settled(page: Page) -> None:
    page.wait_for_selector(".st-key-end", timeout=PATIENCE)
    page.wait_for_selector(
        '[data-testid="stApp"][data-test-script-state="notRunning"]', timeout=PATIENCE
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    megabytes = 50 if parser.parse_args().quick else 500
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        folder = Path(temporary)
        size = made(folder / "large.h5ad", megabytes)
        with served(SAMSVAE_RUNS=str(folder / "runs")) as (address, pid):
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            page = browser.new_page()
            page.goto(f"{address}/data")
            settled(page)
            memory = Memory(pid)
            began = time.monotonic()
            page.locator('input[type="file"]').first.set_input_files(folder / "large.h5ad")
            page.get_by_text("was kept, and is chosen").wait_for(timeout=PATIENCE)
            kept = time.monotonic()
            page.get_by_test_id("stMetric").first.wait_for(timeout=PATIENCE)
            settled(page)
            read = time.monotonic()
            time.sleep(2)
            memory.stop()
            browser.close()
    growth, after = memory.peak - memory.before, memory.now - memory.before
    for what, value in (
        ("file", f"{size / 2**20:,.0f} MiB"),
        ("server before", f"{memory.before / 2**20:,.0f} MiB"),
        ("server, most", f"{growth / 2**20:+,.0f} MiB, {growth / size:.2f} times the file"),
        ("server, after", f"{after / 2**20:+,.0f} MiB, {after / size:.2f} times the file"),
        ("reader, most", f"{memory.children / 2**20:,.0f} MiB, in a process of its own"),
        ("upload", f"{kept - began:.1f} s"),
        ("until it is shown", f"{read - kept:.1f} s"),
    ):
        print(f"{what:<20}{value}")
    if growth >= MOST * size:
        raise SystemExit(
            f"The server grew by {growth / size:.2f} times the file; {MOST} is too much."
        )


if __name__ == "__main__":
    main()
