"""How often do 90 % intervals contain a shift that is truly zero?

    python benchmarks/intervals.py            # 25 s on 1 core; --quick: 7 s

Reads papalexi2021 and schraivogel2020 (only cells with one guide; all non-targeting guides are
control) of SAMSVAE_DATA (default ../shared/data), those that are there. Random control cells are
labelled a perturbation and compared with the other controls. They differ only by the sampling of
cells, so an interval of 1.645 standard errors either way should contain zero for 90 % of genes.
Prints the share that does, by size of the perturbation: of all genes that any cell counts, and of
those with at least 0.05 counts per cell. Below that, a shift takes few values and no interval
contains zero for exactly 90 %.

Expected: README, "Intervals".
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from anndata import read_h5ad as read_table
from scipy.sparse import csr_matrix

from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.evaluation.level_errors import (
    WITHIN,
    CellVariance,
    cell_variance,
    pooled_level,
)

DATA = Path(os.environ.get("SAMSVAE_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
PAPALEXI, SCHRAIVOGEL = DATA / "papalexi2021_thp1.h5ad", DATA / "schraivogel2020_tapseq.h5ad"
SIZES = {8: 1000, 25: 1000, 100: 400, 400: 200}  # cells of a made-up perturbation, draws
COUNTED = 0.05  # counts per cell


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the draws")
    fewer = 10 if parser.parse_args().quick else 1
    print("| cells | " + " | ".join(map(str, SIZES)) + " |\n|---" + "|---" * len(SIZES) + "|")
    for file, read in ((PAPALEXI, papalexi), (SCHRAIVOGEL, schraivogel)):
        if not file.exists():
            continue
        counts, library, conditions, control = read(file)
        variance = cell_variance(counts, library, conditions)
        cells = np.flatnonzero(conditions == control)
        found = [
            held(counts, library, variance, cells, size, draws // fewer)
            for size, draws in SIZES.items()
        ]
        name, often = file.stem.partition("_")[0], counts.mean(axis=0).A1 >= COUNTED
        for genes, what in ((often | True, "all"), (often, f"mean count at least {COUNTED}")):
            shares = " | ".join(f"{np.nanmean(inside[:, genes]):.1%}" for inside in found)
            print(f"| {name}, {genes.sum()} genes ({what}) | {shares} |")


def papalexi(file: Path) -> tuple[csr_matrix, np.ndarray, np.ndarray, str]:
    data = read_h5ad(file)
    return data.counts, data.library, data.conditions, data.control


def schraivogel(file: Path) -> tuple[csr_matrix, np.ndarray, np.ndarray, str]:
    table = read_table(file)
    table = table[table.obs["n_guides"] == 1]
    guides = table.obs["guide_ids"].astype(str)
    conditions = np.where(guides.str.contains("non-targeting"), "control", guides)
    counts = csr_matrix(table.X)
    return counts, np.asarray(counts.sum(axis=1)).ravel(), conditions, "control"


def held(
    counts: csr_matrix,
    library: np.ndarray,
    variance: CellVariance,
    controls: np.ndarray,
    size: int,
    draws: int,
) -> np.ndarray:
    """Return whether the interval contains zero (draws x genes), NaN for genes without an error."""
    rng, inside = np.random.default_rng(0), []
    for _ in range(draws):
        parts = np.split(rng.permutation(controls), [size])
        (own, own_se), (level, se) = (pooled_level(counts, library, variance, p) for p in parts)
        both = np.hypot(se, own_se)
        inside.append(np.where(both > 0, np.abs(own - level) <= WITHIN * both, np.nan))
    return np.array(inside)


if __name__ == "__main__":
    main()
