"""Do masks on papalexi2021 agree with known biology, and between seeds?

    D=../shared/data    # or wherever the data are
    for s in 0 1 2; do samsvae train $D/papalexi2021_thp1.h5ad --output runs/seed$s \
        --split $D/papalexi2021_split.csv --seed $s --device cpu; done # 5 minutes each on 2 cores
    python benchmarks/masks.py runs/seed0 runs/seed1 runs/seed2        # seconds
    python benchmarks/masks.py pretrained/papalexi2021                 # the shipped model alone

Prints, for each bundle, the active mechanisms of the interferon-gamma axis, IRF1 and SMAD4; the
mean Jaccard index within the axis, and of the axis with all other targets but IRF1; the mean
number of active mechanisms of targets that move no gene here, and of two that move only their own
gene (one gene cannot bring enough evidence); and the held-out figures. Between bundles it prints
the agreement of masks after the best matching of mechanisms. Expected: README, "Results".
"""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pandas as pd

from samsvae_core.analysis.masks import matrix
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.bundle.opening import load
from samsvae_core.evaluation.evaluate import mask_recovery

AXIS = ("IFNGR1", "IFNGR2", "JAK2", "STAT1")
NO_EFFECT = ("CD86", "CAV1", "PDCD1LG2", "MARCH8", "ETV7", "IRF7")
OWN_GENE = ("CMTM6", "TNFRSF14")  # they lower hardly any transcript but their own


def main() -> None:
    bundles = [load(path) for path in sys.argv[1:]]
    if not bundles:
        raise SystemExit(__doc__)
    for bundle in bundles:
        describe(bundle)
    for a, b in combinations(bundles, 2):
        f1 = mask_recovery(active(a).to_numpy(), active(b).to_numpy())["f1"]
        print(f"{a.path} and {b.path}: F1 of one's mask entries against the other's {f1:.2f}")


def active(bundle: Bundle) -> pd.DataFrame:
    return matrix(bundle.masks, "active").astype(bool)


def describe(bundle: Bundle) -> None:
    if missing := {*AXIS, *NO_EFFECT, *OWN_GENE, "IRF1", "SMAD4"} - set(bundle.perturbations.index):
        raise BundleError(
            f"{bundle.path} lacks {len(missing)} targets of papalexi2021, such as "
            f"{min(missing)}. Name a bundle trained on those data."
        )
    used = {name: set(np.flatnonzero(row)) for name, row in active(bundle).iterrows()}
    within = np.mean([jaccard(used[a], used[b]) for a, b in combinations(AXIS, 2)])
    others = [name for name in used if name not in {*AXIS, "IRF1"}]
    across = np.mean([jaccard(used[a], used[b]) for a in AXIS for b in others])
    empty, own = (np.mean([len(used[name]) for name in t]) for t in (NO_EFFECT, OWN_GENE))
    metrics = bundle.metrics
    print(
        f"{bundle.path}: active "
        + ", ".join(f"{name} {sorted(map(int, used[name]))}" for name in (*AXIS, "IRF1", "SMAD4"))
        + f"\n  rest {sum(len(used[n]) for n in others if n != 'SMAD4')}; Jaccard within the "
        f"axis {within:.2f}, with others {across:.2f}; no-effect targets {empty:.2f}, "
        f"own gene alone {own:.2f}; test IWELBO {metrics['iwelbo']['test']:.3f}, "
        f"effect r {metrics['average_effects']['pearson']:.3f}"
    )


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


if __name__ == "__main__":
    try:
        main()
    except BundleError as error:
        raise SystemExit(f"Error: {error}") from None
