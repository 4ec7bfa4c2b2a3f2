"""Which model is best on which data, and does a simple mean do better?

    python benchmarks/models.py --quick                    # one seed, few steps: under 50 s
    python benchmarks/models.py --output results.csv       # both files, 5 seeds: 80 min on 2 cores
    python benchmarks/models.py --data norman.h5ad --size-factor total_counts --split combinations \
        --paper --device cuda --output results.csv         # a full file with the paper's settings

Reads the two files of SAMSVAE_DATA (default ../shared/data), or the one given. Every model gets the
same split; split and starting weights are drawn anew for every seed, and differences are taken
within seeds. Rows already in --output are not trained again. Expected: README, "Results".
docs/data.md says how to get the full Norman and Replogle files.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import ttest_1samp

from samsvae_core.bundle.readings import data_for_model
from samsvae_core.data.cells import CellData, DataError, gene_panel
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import UNUSED, split
from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model

DATA = Path(os.environ.get("SAMSVAE_DATA", Path(__file__).resolve().parents[2] / "shared/data"))
QUICK = {"iwelbo_samples": 5, "effect_draws": 100, "replicate_sets": 2, "shift_draws": 4}
PUBLISHED = {"dense": 0.0, "anneal": 0.0}  # the full prior from the first step
ENTRANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # model of MODELS, fields of ModelConfig, fields of TrainConfig
    "SAMS-VAE": ("sams-vae", {}, {}),
    "SAMS-VAE, mean-field encoder": ("sams-vae", {"encoder": "mean-field"}, {}),
    "SAMS-VAE, correlated": ("correlated-sams-vae", {}, {}),
    "SAMS-VAE, published prior": ("sams-vae", {"mask_evidence": None}, PUBLISHED),
    "CPA-VAE": ("cpa-vae", {}, {}),
    "SVAE+": ("svae-plus", {}, {}),
    "Conditional VAE": ("conditional-vae", {}, {}),
}
BASELINES_WITH = "Conditional VAE"  # the run that also stores the rows of the baselines
MEASURES = {  # columns and their names in metrics.json
    "r": "pearson",
    "r_top20": "pearson_top20",
    "median_r": "median",
    "rank": "rank",
}
PAPER_MODEL = {"n_latent": 200, "mask_evidence": None, "mask_prior": 0.01}
PAPER_TRAINING = {
    "steps": 30_000,
    "particles": 5,
    "learning_rate": 3e-4,
    "mask_learning_rate": 3e-4,
    "embedding_learning_rate": 3e-4,
    "final_learning_rate": 1.0,
    **PUBLISHED,
}


@dataclass(frozen=True)
class Task:
    """A file, how it is read and split, and how long to train on it."""

    name: str
    file: Path
    split: str = "random"  # a kind of `split`, or "doubles"
    size_factor: str | None = None
    top_genes: int | None = None
    steps: int = 6000
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] = field(default_factory=dict)


class Job(NamedTuple):
    """One training and its scores."""

    task: Task
    entrant: str
    seed: int
    device: str


PAPALEXI = Task("papalexi2021", DATA / "papalexi2021_thp1.h5ad", steps=4000)
NORMAN = Task(
    "norman2019 subset, unseen doubles",
    DATA / "norman2019_k562_subset.h5ad",
    split="doubles",
    size_factor="total_counts",
    top_genes=250,  # the others are never detected
    steps=2000,
)


def main() -> None:
    arguments = parsed()
    jobs = [
        Job(task, entrant, seed, arguments.device)
        for task in tasks(arguments)
        for seed in range(arguments.seeds)
        for entrant in arguments.entrants or ENTRANTS
    ]
    done = pd.DataFrame(columns=["task", "model", "seed"])
    if arguments.output and arguments.output.exists():
        done = pd.read_csv(arguments.output)
    have = set(zip(done["task"], done["model"], done["seed"], strict=True))
    left = [job for job in jobs if (job.task.name, job.entrant, job.seed) not in have]
    rows = done.to_dict("records")
    with ProcessPoolExecutor(
        arguments.workers, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for found in pool.map(run, left):
            rows += found
            print(found[0], flush=True)
            if arguments.output:
                pd.DataFrame(rows).to_csv(arguments.output, index=False, float_format="%.5g")
    report(pd.DataFrame(rows))


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, few steps")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, help="default: all")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once")
    parser.add_argument("--output", type=Path, help="CSV of all rows; goes on where it ended")
    parser.add_argument("--data", type=Path, help="another .h5ad file")
    parser.add_argument("--size-factor", help="its column of obs with each cell's total")
    parser.add_argument("--split", default="random", help="random, combinations, efficiency, ...")
    parser.add_argument("--top-genes", type=int)
    parser.add_argument("--paper", action="store_true", help="the paper's settings: hours")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds = 1
    return arguments


def tasks(arguments: argparse.Namespace) -> list[Task]:
    found = [PAPALEXI, NORMAN]
    if arguments.data:
        found = [
            Task(
                arguments.data.stem,
                arguments.data,
                arguments.split,
                arguments.size_factor,
                arguments.top_genes,
            )
        ]
    changes: dict[str, Any] = {}
    if arguments.paper:
        changes = {"model": PAPER_MODEL, "training": PAPER_TRAINING}
    if arguments.quick:
        changes |= {"steps": 40, "evaluation": QUICK}
    return [Task(**{**vars(task), **changes}) for task in found]


def run(job: Job) -> list[dict[str, Any]]:
    """Train one model and score it; returns its row, and for one model those of the baselines."""
    task = job.task
    data = read_h5ad(task.file, size_factor_key=task.size_factor)
    if task.top_genes:
        data = gene_panel(data, top=task.top_genes)
    parts = divided(data, task.split, job.seed)
    name, fields, training = ENTRANTS[job.entrant]
    data = data_for_model(data, name)
    data, parts = data.subset(parts != UNUSED), parts[parts != UNUSED]
    train = data.subset(parts == "train")
    config = ModelConfig(
        n_genes=len(data.genes),
        n_perturbations=len(data.perturbations),
        other_genes=data.has_size_factor,
        **{**task.model, **fields},
    )
    settings = TrainConfig(**{"steps": task.steps, **training, **task.training, "seed": job.seed})
    device = torch.device(job.device)
    model = new_model(train, config, job.seed, name).to(device)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        validation = Cells(data.subset(parts == "validation"), device)
        fit(model, Cells(train, device), validation, settings, Path(folder))
    seconds = time.monotonic() - began
    metrics = evaluate(model, data, parts, EvaluationConfig(**task.evaluation))
    key = {"task": task.name, "seed": job.seed}
    active = int((model.mask_probability() > 0.5).sum()) if model.has_masks else None
    row = {
        **key,
        "model": job.entrant,
        "iwelbo": metrics["iwelbo"]["test"],
        **effect_columns(metrics["average_effects"]),
        "active": active,
        "seconds": seconds,
    }
    rows = [row]
    if job.entrant == BASELINES_WITH:
        rows += [
            {**key, "model": baseline, **effect_columns(found)}
            for baseline, found in metrics["baselines"].items()
        ]
    return rows


def divided(data: CellData, kind: str, seed: int) -> np.ndarray:
    """Return a split; "doubles" holds out all combinations whose parts were measured alone."""
    if kind != "doubles":
        return split(data, kind, seed)
    known = set(data.conditions)
    doubles = [c for c in known if "+" in c and set(c.split("+")) <= known]
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "doubles.csv"
        pd.DataFrame({"condition": sorted(doubles)}).to_csv(listed, index=False)
        return split(data, listed, seed)


def effect_columns(found: dict[str, Any]) -> dict[str, Any]:
    return {column: found[name] for column, name in MEASURES.items() if name in found}


def report(rows: pd.DataFrame) -> None:
    """Print a Markdown table for each task: means, and paired differences from the first model.

    A difference is given with its sd over seeds and the p of a paired t-test, in the same brackets;
    with p above 0.05 the two may be equal.
    """
    measures = ["iwelbo", *MEASURES]
    reference = next(iter(ENTRANTS))
    for task, part in rows.groupby("task", sort=False):
        print(f"\n{task}: mean (sd) of {part['seed'].nunique()} seeds; paired difference")
        print(f"\n| prediction | {' | '.join(measures)} | active |\n|---|{'---|' * 6}")
        base = part[part["model"] == reference].set_index("seed")
        for model, own in part.groupby("model", sort=False):
            own = own.set_index("seed")
            cells = [str(model)]
            for measure in measures:
                values, broadcast = own[measure].astype(float), base[measure].astype(float)
                is_first = model == reference
                cells.append(spread(values) if is_first else compared(values, broadcast))
            active = own["active"].astype(float).mean()
            cells.append("" if np.isnan(active) else f"{active:.0f}")
            print(f"| {' | '.join(cells)} |")


def spread(values: pd.Series) -> str:
    if values.notna().sum() < 2:
        return f"{values.mean():.3f}" if values.notna().any() else ""
    return f"{values.mean():.3f} (sd {values.std():.3f})"


def compared(values: pd.Series, reference: pd.Series) -> str:
    """Return the mean, and the paired difference from the reference with its sd and p."""
    gains = (values - reference).dropna()
    if len(gains) < 2:
        return spread(values)
    p = ttest_1samp(gains, 0).pvalue
    return f"{values.mean():.3f} [{gains.mean():+.3f} ± {gains.std():.3f}, p {p:.2g}]"


if __name__ == "__main__":
    try:
        main()
    except DataError as error:
        raise SystemExit(f"Error: {error}") from None
