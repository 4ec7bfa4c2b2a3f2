"""Are the true masks found when the decoder is learned too? Two published simulations.

    python benchmarks/simulation.py            # 3 seeds: about 25 minutes on 1 core
    python benchmarks/simulation.py --quick    # 1 seed, 20 perturbations: about 40 s, shows no more
                                               # than that it runs

The SAMS-VAE and the SVAE+ simulation (samsvae_core/models/simulate.py): 100 perturbations, 15
mechanisms, 100 genes, 500 training cells of each perturbation and of control; one seed serves data,
split and training. Settings are the defaults except MODEL and TRAINING below. An effect of 5
standard deviations is worth far more than 2 nats per cell, and what a decoder of one hidden layer
cannot fit of a deeper one is worth less, so 2 nats are asked as evidence.

Prints, for every model: precision, recall and F1 of mask entries after the best matching of
mechanisms; MCC, the mean correlation of matched inferred and true latents (basal state plus shift)
of test cells; the validation bound, by which a user without a truth would choose; CPU seconds.
CPA-VAE has no masks: every entry counts as on. The conditional VAE has no entries either way.
Expected: F1 of at least 0.9 for SAMS-VAE, see README, "Results".
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from samsvae_core.data.cells import CellData, conditions_as_perturbations
from samsvae_core.data.splits import split
from samsvae_core.evaluation.metrics import mask_recovery
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE, ModelConfig
from samsvae_core.models.simulate import PUBLISHED, PUBLISHED_LATENT, Truth, published
from samsvae_core.models.variants import MODELS
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model

MODEL = {"n_latent": PUBLISHED_LATENT, "n_hidden": 128, "mask_evidence": 2.0}
TRAINING = {"embedding_learning_rate": 1e-2}
QUICK_TRAINING = {**TRAINING, "steps": 400}
QUICK_DATA = {"n_perturbations": 20, "cells_each": 156}
NAMES, SCORES = ["simulation", "model", "seed"], ["precision", "recall", "f1", "mcc"]
COLUMNS = [*NAMES, *SCORES, "active", "true", "validation", "seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--simulations", nargs="+", choices=PUBLISHED, default=list(PUBLISHED))
    arguments = parser.parse_args()
    drawing, settings = (QUICK_DATA, QUICK_TRAINING) if arguments.quick else ({}, TRAINING)
    rows = []
    print(line(COLUMNS))
    for simulation in arguments.simulations:
        for seed in range(1 if arguments.quick else arguments.seeds):
            data, truth = published(simulation, seed, **drawing)
            for name in arguments.models:
                scores = scored(data, truth, name, TrainConfig(**settings, seed=seed))
                rows.append({"simulation": simulation, "model": name, "seed": seed} | scores)
                print(line(rows[-1][column] for column in COLUMNS), flush=True)
    print("\nMean and standard deviation over seeds\n" + line([*NAMES[:2], "", *SCORES]))
    for names, table in pd.DataFrame(rows).groupby(NAMES[:2], sort=False)[SCORES]:
        print(line([*names, "mean", *table.mean()]))
        print(line([*names, "sd", *table.std()]))


def line(cells: Iterable[object]) -> str:
    """Return a row of a table: numbers with three decimals, a dash where there is none."""
    texts = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
    texts = [text.replace("nan", "-") for text in texts]
    return texts[0].ljust(11) + texts[1].ljust(21) + "".join(text.ljust(11) for text in texts[2:])


def scored(data: CellData, truth: Truth, name: str, settings: TrainConfig) -> dict[str, float]:
    """Train a model of MODELS on the simulated cells, and return its scores against the truth."""
    if not MODELS[name].composes:
        data = conditions_as_perturbations(data)  # changes nothing, as none are combined
    parts = split(data, seed=settings.seed)
    train = data.subset(parts == "train")
    likelihood = "counts" if data.is_counts else "gaussian"
    size = len(data.genes), len(data.perturbations)
    model = new_model(
        train, ModelConfig(*size, likelihood=likelihood, **MODEL), settings.seed, name
    )
    cpu = torch.device("cpu")
    began = time.process_time()
    with tempfile.TemporaryDirectory() as run:
        cells = Cells(train, cpu), Cells(data.subset(parts == "validation"), cpu)
        history = fit(model, *cells, settings, Path(run))
    seconds = time.process_time() - began
    test = parts == "test"
    found = (model.mask_probability() > ACTIVE).numpy(force=True)
    return {
        **mask_scores(found, truth.mask),
        "mcc": mean_correlation(
            latents(model, data.subset(test)),
            truth.z_basal[test] + data.dosages[test] @ truth.embedding,
        ),
        "active": int(found.sum()),
        "true": int(truth.mask.sum()),
        "validation": history[-1].validation_bound,
        "seconds": round(seconds),
    }


def mask_scores(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Return precision, recall and F1; NaN for a model without masks."""
    if not found.size:
        return dict.fromkeys(("precision", "recall", "f1"), np.nan)
    return mask_recovery(found, true)


@torch.inference_mode()
def latents(model: SAMSVAE, data: CellData) -> np.ndarray:
    """Return posterior mean shifted states, (N, K); without latent shifts, the states."""
    cells = Cells(data, torch.device("cpu"))
    blocks = []
    for index in torch.arange(len(cells)).split(2048):
        batch = cells.batch(index)
        shift = model.modal_shift(batch.D)
        basal = model.encode(batch.x, shift[None]).loc[0]
        blocks.append(basal + shift if model.has_shifts else basal)
    return torch.cat(blocks).double().numpy()


def mean_correlation(inferred: np.ndarray, true: np.ndarray) -> float:
    """Return the mean |Pearson r| of true and inferred latents, matched to maximise it.

    Columns are latents, rows cells; one that never varies correlates with nothing.
    """
    both = np.corrcoef(inferred.T + 0.0, true.T)[: inferred.shape[1], inferred.shape[1] :]
    r = np.nan_to_num(np.abs(both))
    return float(r[linear_sum_assignment(-r)].mean())


if __name__ == "__main__":
    main()
