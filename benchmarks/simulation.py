"""Are the true masks found, when the decoder has to be learned too?

    python benchmarks/simulation.py            # 12,000 steps, 2 priors: about 10 minutes on 2 cores
    python benchmarks/simulation.py --quick    # 600 steps, one prior: about 20 s

Simulated counts: 50 perturbations, 10 true mechanisms, about 2 active each, effects of 3 standard
deviations, 200 genes, 10,000 cells, 15 mechanisms to find them with. Prints precision, recall and
F1 of mask entries after the best matching of mechanisms. Expected: see README, "Results".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from samsvae_core.evaluation import mask_recovery
from samsvae_core.inference import Cells
from samsvae_core.model import ModelConfig
from samsvae_core.simulate import Design, simulate
from samsvae_core.splits import split
from samsvae_core.training import TrainConfig, fit, new_model

DESIGN = Design(n_cells=10_000, n_genes=200, n_perturbations=50, n_latent=10, n_combinations=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    steps, priors = (600, [0.16]) if arguments.quick else (12_000, [0.16, 1.0])
    print("evidence  seed  steps  precision  recall  F1     active  true  seconds")
    for evidence in priors:
        for seed in range(arguments.seeds):
            began = time.monotonic()
            found, n_active, n_true = recovered(evidence, seed, steps)
            print(
                f"{evidence:<9} {seed:<5} {steps:<6} {found['precision']:<10.2f} "
                f"{found['recall']:<7.2f} {found['f1']:<6.2f} {n_active:<7} {n_true:<5} "
                f"{time.monotonic() - began:.0f}",
                flush=True,
            )


def recovered(evidence: float, seed: int, steps: int) -> tuple[dict[str, float], int, int]:
    """Scores of the masks found, and the numbers of active and of true entries."""
    data, truth = simulate(DESIGN)
    parts = split(data, seed=seed)
    train = data.subset(parts == "train")
    config = ModelConfig(200, 50, n_latent=15, n_hidden=128, mask_evidence=evidence)
    model = new_model(train, config, seed)
    cpu = torch.device("cpu")
    cells = Cells(train, cpu), Cells(data.subset(parts == "validation"), cpu)
    settings = TrainConfig(steps=steps, seed=seed, patience=steps)
    with tempfile.TemporaryDirectory() as run:
        fit(model, *cells, settings, Path(run))
    found = (model.mask_logits > 0).numpy(force=True)
    return mask_recovery(found, truth.mask), int(found.sum()), int(truth.mask.sum())


if __name__ == "__main__":
    main()
