"""How often do 90 % intervals contain a shift that is truly zero?

    python benchmarks/intervals.py            # 4 s on 1 core; --quick: 2 s

Reads papalexi2021 of SAMSVAE_DATA (default ../shared/data) and its split. For every condition of
the test cells, as many control cells of the training part are labelled a perturbation and compared
with the controls of the test part. They differ only by the sampling of cells, so an interval of
1.645 jackknife standard errors either way should contain zero for 90 % of genes. Prints the share
that does, over all conditions, and for conditions of 8, 32 and 128 cells.

Expected: README, "Intervals".
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from samsvae_core.data.cells import CellData
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import split
from samsvae_core.evaluation.calibration import WITHIN
from samsvae_core.evaluation.shifts import pooled_level

DATA = Path(os.environ.get("SAMSVAE_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one draw instead of ten")
    draws = 1 if parser.parse_args().quick else 10
    data = read_h5ad(DATA / "papalexi2021_thp1.h5ad")
    parts = split(data, DATA / "papalexi2021_split.csv")
    is_control, is_test = data.conditions == data.control, parts == "test"
    _, sizes = np.unique(data.conditions[is_test & ~is_control], return_counts=True)
    controls = [np.flatnonzero(is_control & (parts == part)) for part in ("train", "test")]
    n = f"{len(sizes)} conditions of {sizes.min()} to {sizes.max()} test cells"
    print(f"{n}, {draws} draws: {held(data, *controls, sizes, draws):.1%}")
    for size in (8, 32, 128):
        print(f"conditions of {size} cells: {held(data, *controls, [size] * 10, draws):.1%}")


def held(
    data: CellData, source: np.ndarray, against: np.ndarray, sizes: object, draws: int
) -> float:
    """Return the share of genes and made-up perturbations whose interval contains zero."""
    rng, inside = np.random.default_rng(0), []
    level, se = pooled_level(data.counts, data.library, data.is_counts, against)
    for size in np.tile(np.asarray(sizes), draws):
        rows = rng.choice(source, size, replace=False)
        own, own_se = pooled_level(data.counts, data.library, data.is_counts, rows)
        both = np.hypot(se, own_se)
        inside.append((np.abs(own - level) <= WITHIN * both)[both > 0])
    return float(np.concatenate(inside).mean())


if __name__ == "__main__":
    main()
