"""Is the dashboard quick, in a real browser, with a small and with a large model?

python benchmarks/dashboard.py --quick     # the small model only: under 50 s on 2 cores
python benchmarks/dashboard.py             # both; the first time also makes the large model
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from samsvae_core import bundle, evaluation, report
from samsvae_core.baselines import FEWEST_CELLS
from samsvae_core.data import CellData
from samsvae_core.evaluation import EvaluationConfig
from samsvae_core.files import atomic_write, cache_folder
from samsvae_core.gene_sets import load_collection
from samsvae_core.model import SAMSVAE, ModelConfig
from samsvae_core.simulate import cell_data, draw_counts
from samsvae_core.symbols import _annotation
from samsvae_core.training import TrainConfig

LARGE = "large-simulated"
N_CELLS, N_GENES, N_PERTURBATIONS, N_LATENT, N_PAIRS = 8000, 5000, 700, 200, 30
MECHANISMS = (2, 6)  # that a perturbation uses
DEPTH = 1500.0  # median counts of a cell
N_TESTED = 40  # conditions with enough held-out cells to be scored
SHORT = EvaluationConfig(iwelbo_samples=2, effect_draws=20, replicate_sets=1, shift_draws=8)


# The large model


def large_bundle(folder: Path) -> Path:
    """A folder with the one large bundle, made when it is not there yet.

    Nothing is trained: a random decoder whose posterior is as sure of its effects as that of the
    shipped models, and cells drawn from it, with real symbols so that gene sets and search have
    something to find. What takes long and does not matter to a page's speed is cut down: evidence
    of entries is made up, maps are principal components, and few conditions are scored.
    """
    run = folder / LARGE
    if (run / "manifest.json").exists():
        return folder
    rng = np.random.default_rng(0)
    model = random_model(rng)
    data = cells(model, rng)
    parts = split(data, rng)
    settings = {
        "schema": bundle.SCHEMA,
        "model": "sams-vae",
        "frontier": False,
        "model_config": asdict(model.config),
        "train_config": asdict(TrainConfig()),
        "data": data.source,
        "control": data.control,
        "origin": asdict(report.Origin(title="Simulated, large", source="simulated")),
    }
    report.write_csv(run / "split.csv", pd.DataFrame({"cell": data.cells, "split": parts}))
    report.write_csv(run / "genes.csv", pd.DataFrame({"gene": data.genes}))
    history = {"epoch": [1, 2], "step": [1, 2], "bound": [-9.0, -8.0]}
    history["validation_bound"] = history["bound"]
    report.write_csv(run / "history.csv", pd.DataFrame(history))
    atomic_write(run / "config.json", bundle.to_json(settings))
    with ExitStack() as stack:
        for owner, name, instead in (
            (report, "entry_evidence", made_up_evidence),
            (report, "umap_coordinates", principal_components),
            (report, "COLLECTIONS", ("hallmark",)),
            (evaluation, "full_evaluation", partial(evaluation.full_evaluation, config=SHORT)),
        ):
            stack.enter_context(patch.object(owner, name, instead))
        report.build_bundle(model, data, parts, run, "cpu", cell_values=True)
    return folder


def random_model(rng: np.random.Generator) -> SAMSVAE:
    """Few mechanisms a perturbation, and a posterior as wide as those of the shipped models."""
    config = ModelConfig(N_GENES, N_PERTURBATIONS, N_LATENT)
    shape = N_PERTURBATIONS, N_LATENT
    used = np.argsort(rng.random(shape), axis=1) < rng.integers(
        MECHANISMS[0], MECHANISMS[1] + 1, size=(N_PERTURBATIONS, 1)
    )
    torch.manual_seed(0)
    model = SAMSVAE(config).requires_grad_(False)
    for layer in (model.decoder.hidden, model.decoder.out):
        torch.nn.init.orthogonal_(layer.weight, gain=3.0)
    model.decoder.out.bias.normal_(0, 1)
    model.encoder.out.weight.mul_(0.1)
    model.log_concentration.fill_(3.0)
    on = torch.from_numpy(used)
    model.mask_logits.copy_(torch.where(on, 4.0, -6.0) + torch.randn(shape))
    size = rng.choice([-1.0, 1.0], size=shape) * rng.normal(3.0, 0.5, size=shape)
    model.embedding_loc.copy_(torch.where(on, torch.from_numpy(size), 0.1 * torch.randn(shape)))
    model.embedding_log_scale.copy_(torch.where(on, 0.15, 0.5).log())
    return model


def cells(model: SAMSVAE, rng: np.random.Generator) -> CellData:
    """Cells drawn from the model; the genes are those of gene sets first."""
    symbols = sorted(load_collection("hallmark").genes)
    others = _annotation().index[:20_000]
    genes = np.array(list(dict.fromkeys([*symbols, *others]))[:N_GENES])
    names = np.sort(rng.choice(others, N_PERTURBATIONS, replace=False))
    pairs = rng.choice(N_PERTURBATIONS, (N_PAIRS, 2), replace=False)
    rows = np.zeros((1 + N_PERTURBATIONS + N_PAIRS, N_PERTURBATIONS), dtype=np.float32)
    rows[1 : N_PERTURBATIONS + 1] = np.eye(N_PERTURBATIONS)
    np.put_along_axis(rows[N_PERTURBATIONS + 1 :], pairs, 1.0, axis=1)
    labels = np.array(["control", *names, *("+".join(sorted(names[p])) for p in pairs)])
    which = np.sort(np.arange(N_CELLS) % (len(rows) + 20))
    which[which >= len(rows)] = 0  # controls get more shares
    D = rows[which]
    z = rng.standard_normal((N_CELLS, N_LATENT)) + D @ model.effect_moments()[0].numpy()
    library = DEPTH * np.exp(0.3 * rng.standard_normal(N_CELLS))
    data = cell_data(draw_counts(model, z, library, 0), D, labels[which])
    return replace(data, genes=genes, perturbations=names)


def split(data: CellData, rng: np.random.Generator) -> np.ndarray:
    """One validation and one test cell of each condition; enough of a few that are scored."""
    parts = np.full(len(data.cells), "train", dtype=object)
    names = np.unique(data.conditions)
    scored = {data.control, *rng.choice(names, N_TESTED, replace=False)}
    for name in names:
        place = np.flatnonzero(data.conditions == name)
        n = FEWEST_CELLS if name in scored else 1
        parts[place[:n]], parts[place[n : 2 * n]] = "validation", "test"
    return parts.astype(str)


def made_up_evidence(model: SAMSVAE, data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """In the place of `entry_evidence`, which would take hours."""
    rng = np.random.default_rng(1)
    shape = N_PERTURBATIONS * N_LATENT
    on = (model.mask_logits > 0).numpy().ravel()
    return pd.DataFrame(
        {
            "perturbation": np.repeat(data.perturbations, N_LATENT),
            "mechanism": np.tile(np.arange(N_LATENT), N_PERTURBATIONS),
            "evidence": np.where(on, 2.0, -0.05) + 0.05 * rng.standard_normal(shape),
            "evidence_se": 0.05,
            "evidence_n": 2,
        }
    )


def principal_components(rows: np.ndarray) -> np.ndarray:
    """In the place of a UMAP."""
    rows = rows - rows.mean(0)
    return np.asarray(rows @ np.linalg.eigh(rows.T @ rows)[1][:, -2:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=cache_folder() / "benchmark")
    options = parser.parse_args()
    began = time.monotonic()
    large_bundle(options.folder)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
