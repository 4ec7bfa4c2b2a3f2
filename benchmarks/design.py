"""How long the audit of the design takes: 200,000 cells with 20 columns of obs.

Columns are text, categories and whole numbers of 2 to 200 levels, some of them batches in which
others are nested, and one of barcodes.

    python benchmarks/design.py

The bar is 2 seconds; expected are 0.6 to 0.9.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from samsvae_core.data.design import audit

N_CELLS, N_CONDITIONS = 200_000, 300
LEVELS = (2, 3, 4, 5, 8, 10, 12, 16, 20, 24, 30, 40, 48, 60, 80, 100, 120, 150, 200)


def made(n_cells: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Return obs with 20 columns, and the condition of each cell."""
    rng = np.random.default_rng(seed)
    conditions = rng.choice(["control", *(f"P{i}" for i in range(N_CONDITIONS))], n_cells)
    finest = rng.integers(0, 200, n_cells)
    columns = {"barcode": np.array([f"cell{i}" for i in range(n_cells)], dtype=object)}
    for place, n in enumerate(LEVELS):
        code = finest * n // 200 if place % 2 else rng.integers(0, n, n_cells)
        text = np.array([f"level {i}" for i in range(n)], dtype=object)[code]
        kinds = {f"lane{place}": text, f"site{place}": pd.Categorical(text), f"run{place}": code}
        name = list(kinds)[place % 3]
        columns[name] = kinds[name]
    return pd.DataFrame(columns), conditions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=N_CELLS)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    obs, conditions = made(options.cells)
    taken = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        columns = audit(obs, conditions, "control")
        taken.append(time.perf_counter() - start)
    print(
        f"{options.cells:,} cells x {obs.shape[1]} columns, {len(columns)} audited:"
        f" {min(taken):.2f} s (median {np.median(taken):.2f} s of {options.repeats}); bar 2 s"
    )


if __name__ == "__main__":
    main()
