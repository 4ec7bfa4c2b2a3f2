"""What accounting for covariates is worth: a simulated screen with batches, and three real ones.

    python benchmarks/covariates.py batch             # 5 files, 3 trainings each: 15 minutes
    python benchmarks/covariates.py papalexi2021      # 5 seeds, with replicates and without
    python benchmarks/covariates.py schraivogel2020   # 5 seeds, with batches and without
    python benchmarks/covariates.py contexts          # 5 files, 2 trainings each: 12 minutes
    python benchmarks/covariates.py datlinger2021     # stimulation as covariate, context, nothing
    python benchmarks/covariates.py speed             # a step, and the size of the weights

"batch" makes its files with SAMSVAE_CASES (default ../shared/cases), nuisance.py: ten perturbations
that lower a program of twelve genes, ten that do nothing, three batches of uneven shares. It prints
active mask entries, true and null perturbations with any, mechanisms, and of each entry whether its
evidence is left without one batch. Real files are those of SAMSVAE_DATA (default ../shared/data);
bound is that of validation cells, in nats, and r that of average effects of test cells, compared
within strata. "contexts" simulates two cell lines, a third of all effects missing in one of them,
and prints F1 of which effects differ and of masks, with contexts and with the line as covariate
only. "datlinger2021" prints how much predicted shifts lie along the stimulation where a target has
more stimulated cells, and which targets differ between stimulated cells and others. One core each.
Expected: README, "Covariates".
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment

from samsvae_core.analysis.differences import difference_table
from samsvae_core.data.cells import CellData, gene_panel
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import split
from samsvae_core.evaluation.context_evidence import difference_evidence
from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate
from samsvae_core.evaluation.level_evidence import held_by_one
from samsvae_core.evaluation.mask_evidence import entry_evidence
from samsvae_core.evaluation.shifts import (
    observed_shifts,
    predicted_shifts,
    reference_cells,
    variance_of,
)
from samsvae_core.models.bounds import elbo
from samsvae_core.models.device_rows import Batch, Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE, ModelConfig
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model
from samsvae_core.training.validation import predictive_bound

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
CASES = Path(os.environ.get("SAMSVAE_CASES", ROOT.parent / "shared" / "cases"))
sys.path.append(str(ROOT / "scripts"))
from build_pretrained import single_guide_cells  # noqa: E402 - scripts are no package

N_TRUE = 10  # of the twenty perturbations of the simulated screen
CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        nargs="+",
        choices=[
            "batch",
            "contexts",
            "papalexi2021",
            "schraivogel2020",
            "datlinger2021",
            "speed",
        ],
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for what in arguments.what:
        if what == "batch":
            batches(arguments.seeds, arguments.steps)
        elif what == "contexts":
            lines(arguments.seeds, arguments.steps)
        elif what == "datlinger2021":
            stimulated(arguments.steps)
        elif what == "speed":
            speed()
        else:
            real(what, arguments.seeds, arguments.steps)


def trained(data: CellData, parts: np.ndarray, seed: int, steps: int, **model: Any) -> SAMSVAE:
    """Return a model that accounts for the covariates of the data."""
    train, validation = data.subset(parts == "train"), data.subset(parts == "validation")
    levels = list(map(len, data.covariates.levels.values())) if data.covariates else ()
    config = ModelConfig(
        len(data.genes),
        len(data.perturbations),
        other_genes=data.has_size_factor,
        direct_effects="sparse",
        levels=levels,
        **model,
    )
    fitted = new_model(train, config, seed)
    with tempfile.TemporaryDirectory() as run:
        settings = TrainConfig(steps=steps, seed=seed)
        fit(fitted, Cells(train, CPU), Cells(validation, CPU), settings, Path(run))
    return fitted


def validation_bound(model: SAMSVAE, data: CellData, parts: np.ndarray) -> float:
    return predictive_bound(model, Cells(data.subset(parts == "validation"), CPU), 10)


# The simulated screen


def batches(n_seeds: int, steps: int) -> None:
    rows = []
    for seed in range(n_seeds):
        with tempfile.TemporaryDirectory() as folder:
            make = [sys.executable, str(CASES / "nuisance.py"), folder, str(seed)]
            subprocess.run(make, check=True, capture_output=True)
            for file, keys in (("plain", None), ("batch", ["batch"]), ("batch", None)):
                data = read_h5ad(Path(folder) / f"{file}.h5ad", covariates=keys)
                parts = split(data, seed=seed)
                model = trained(data, parts, seed, steps)
                name = f"{file}, {'with' if keys else 'without'} covariate"
                rows.append({"what": name, "seed": seed, **entries(model, data, parts)})
                print(rows[-1], flush=True)
    table = pd.DataFrame(rows).drop(columns="seed")
    print(table.groupby("what", sort=False).agg(["sum", "max"]).T.to_string())


def entries(model: SAMSVAE, data: CellData, parts: np.ndarray) -> dict[str, int | float]:
    """Return how many mask entries are active, and how many one batch alone supports."""
    table = entry_evidence(model, data, parts)
    active = (model.mask_probability() > ACTIVE).numpy(force=True)
    number = data.perturbations.astype(str)[np.repeat(np.arange(len(active)), active.shape[1])]
    is_true = np.char.lstrip(number.astype(str), "P").astype(int) < N_TRUE
    on, lone = active.ravel(), held_by_one(table).to_numpy()
    return {
        "bound": round(validation_bound(model, data, parts), 3),
        "entries": int(on.sum()),
        "mechanisms": int(active.any(0).sum()),
        "true found": len(set(number[on & is_true])),
        "nulls active": len(set(number[on & ~is_true])),
        "entries of nulls": int((on & ~is_true).sum()),
        "caught": int((on & ~is_true & lone).sum()),
        "true entries": int((on & is_true).sum()),
        "true caught": int((on & is_true & lone).sum()),
    }


# Real screens


def real(name: str, n_seeds: int, steps: int) -> None:
    rows = []
    for seed in range(n_seeds):
        for keys in (["replicate"] if name == "papalexi2021" else ["batch"], None):
            data, parts = screen(name, seed, keys)
            model = trained(data, parts, seed, steps)
            within = screen(name, seed, keys or rows[-1]["keys"])[0]  # scored within strata
            found = evaluate(model, within, parts, EvaluationConfig(seed=seed))
            effects, active = found["average_effects"], model.mask_probability() > ACTIVE
            where = {
                str(p): r.nonzero()[:, 0].tolist()
                for p, r in zip(data.perturbations, active, strict=True)
                if r.any()
            }
            measures = ("pearson", "pearson_top20", "median", "rank")
            rows.append(
                {
                    "what": "with" if keys else "without",
                    "keys": keys or rows[-1]["keys"],
                    "validation": validation_bound(model, data, parts),
                    "test": found["iwelbo"]["test"],
                    **{measure: effects[measure] for measure in measures},
                }
            )
            print(seed, rows[-1]["what"], f"{rows[-1]['validation']:.3f}", where, flush=True)
    table = pd.DataFrame(rows).drop(columns="keys")
    print(f"\n{name}, {n_seeds} seeds, {steps} steps")
    print(table.groupby("what", sort=False).mean().round(3).to_string())
    pairs = [table[table["what"] == what].drop(columns="what") for what in ("with", "without")]
    gap = pairs[0].reset_index(drop=True) - pairs[1].reset_index(drop=True)
    for measure in gap if n_seeds > 1 else ():
        error = gap[measure].std() / n_seeds**0.5
        print(f"with minus without, {measure}: {gap[measure].mean():+.3f} ± {error:.3f}")


def screen(name: str, seed: int, keys: list[str] | None) -> tuple[CellData, np.ndarray]:
    """Return a real screen and its split."""
    if name == "papalexi2021":
        data = read_h5ad(DATA / "papalexi2021_thp1.h5ad", covariates=keys)
        return data, split(data, DATA / "papalexi2021_split.csv")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.h5ad"
        single_guide_cells(DATA / "schraivogel2020_tapseq.h5ad", file)
        data = read_h5ad(file, perturbation_key="target", control="non-targeting", covariates=keys)
    return data, split(data, seed=seed)


def stimulated(steps: int) -> None:
    """Print how predicted shifts along the stimulation follow the share of stimulated cells."""
    file = DATA / "datlinger2021_jurkat.h5ad"
    found = {}
    for name, keys, context in (
        ("without", None, None),
        ("covariate", ["perturbation_2"], None),
        ("context", ["perturbation_2"], 0),
    ):
        data = read_h5ad(file, covariates=keys, join_guides=True)
        data = gene_panel(data, top=1000) if len(data.genes) > 1000 else data
        parts = split(data, seed=0)
        model = trained(data, parts, 0, steps, context=context)
        D = torch.eye(len(data.perturbations))
        reference = reference_cells(model, data, parts)
        shift = predicted_shifts(model, reference, D, 64, 0).shift.mean(1)
        found[name] = shift
        print(name, f"bound {validation_bound(model, data, parts):.3f}", flush=True)
        if context is not None and data.covariates:
            levels = data.covariates.levels["perturbation_2"]
            table = difference_table(model, data.perturbations.tolist(), levels)
            evidence = difference_evidence(model, data, parts, table, levels)
            print(table.join(evidence)[table["active"]].round(3).to_string())
    obs = anndata.read_h5ad(file, backed="r").obs.loc[data.cells]
    is_on = (obs["perturbation_2"].astype(str) == "stimulated").to_numpy()
    control = data.conditions == data.control
    by_state = control_by_state(data, is_on, control)
    along = observed_shifts(by_state, variance_of(by_state)).shift.loc["stimulated"].to_numpy()
    along /= np.linalg.norm(along)
    given = data.dosages.toarray() != 0
    n = given.sum(0)
    share = np.array([is_on[column].mean() for column in given.T])
    kept = n >= 20
    for name, shift in found.items():
        r = np.corrcoef(shift[kept] @ along, share[kept])[0, 1]
        print(f"datlinger2021, {name}: r of shift along stimulation and share {r:+.3f}")


def control_by_state(data: CellData, is_on: np.ndarray, control: np.ndarray) -> CellData:
    """Return control cells only, the stimulated ones as a condition of their own."""
    names = np.where(is_on, "stimulated", data.control)
    return replace(data, conditions=names, covariates=None).subset(control)


# Contexts


def lines(n_seeds: int, steps: int) -> None:
    """Print F1 of differences and masks of simulated screens in two cell lines."""
    rows = []
    for seed in range(100, 100 + n_seeds):
        design = Design(
            8000, 150, n_perturbations=30, n_latent=6, n_combinations=0, seed=seed, n_contexts=2
        )
        data, truth = simulate(design)
        parts = split(data, seed=seed)
        for context in (None, 0):
            model = trained(data, parts, seed, steps, n_latent=10, context=context)
            masks = (model.mask_probability() > ACTIVE).numpy()
            differs = np.zeros((2, *masks.shape), bool)
            if model.contexts is not None:
                active = model.contexts.probability() > ACTIVE
                differs = active.view(2, *masks.shape).numpy()
            whole = masks | differs.any(0)
            cost = [[-f1(whole[:, k], truth.mask[:, j]) for j in range(6)] for k in range(10)]
            own, true = linear_sum_assignment(cost)
            in_order = np.zeros((2, *masks.shape), bool)
            in_order[0][:, own], in_order[1][:, own] = (
                truth.mask[:, true],
                truth.missing.any(0)[:, true],
            )
            rows.append(
                {
                    "what": "covariate" if context is None else "context",
                    "bound": validation_bound(model, data, parts),
                    "F1 of masks": f1(whole, in_order[0]),
                    "F1 of differences": f1(differs.any(0), in_order[1]),
                    "differences": int(differs.sum()),
                    "true ones": int(in_order[1].sum()),
                }
            )
            print(seed, rows[-1], flush=True)
    print(pd.DataFrame(rows).groupby("what", sort=False).mean().round(3).to_string())


def f1(found: np.ndarray, true: np.ndarray) -> float:
    return float(2 * (found & true).sum() / max(1, found.sum() + true.sum()))


# Speed


def speed() -> None:
    """Print ratios of a step and of weights with three covariates of 2, 5 and 50 levels."""
    n_cells, n_genes, n_perturbations, batch = 20_000, 1000, 100, 512
    rng = np.random.default_rng(0)
    x = torch.as_tensor(rng.poisson(1.0, (batch, n_genes)).astype(np.float32))
    D = torch.eye(n_perturbations)[rng.integers(0, n_perturbations, batch)]
    levels = torch.as_tensor(np.stack([rng.integers(0, n, batch) for n in (2, 5, 50)], 1))
    steps = {}
    for name, sizes in (("without", ()), ("with", (2, 5, 50))):
        torch.manual_seed(0)
        model = SAMSVAE(ModelConfig(n_genes, n_perturbations, levels=sizes))
        model.fit_buffers(x.log1p().mean(0), x.log1p().std(0), torch.full((100,), 200.0), n_cells)
        if model.level_offsets is not None:
            model.level_offsets.fit_shares(levels)
        cells = Batch(x, D, x.sum(1, keepdim=True), levels if sizes else None)
        optimizer = torch.optim.Adam(model.parameters())
        n_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
        steps[name] = (model, cells, optimizer, n_bytes)
    best = dict.fromkeys(steps, np.inf)
    for _ in range(40):  # in turn, since a machine is not equally fast all the time
        for name, (model, cells, optimizer, _n) in steps.items():
            began = time.perf_counter()
            optimizer.zero_grad()
            (-elbo(model, cells, n_cells).total).backward()
            optimizer.step()
            best[name] = min(best[name], time.perf_counter() - began)
    print(f"step, with over without: {best['with'] / best['without']:.3f}")
    print(f"weights, with over without: {steps['with'][3] / steps['without'][3]:.3f}")


if __name__ == "__main__":
    main()
