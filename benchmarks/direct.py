"""What direct effects are worth: real screens, null guides and simulations, with and without them.

    python benchmarks/direct.py schraivogel2020 papalexi2021 norman2019   # 5 seeds: 30 minutes
    python benchmarks/direct.py datlinger2021                             # 5 seeds: 10 minutes
    python benchmarks/direct.py nulls simulations                         # 3 seeds: 25 minutes
    python benchmarks/direct.py schraivogel2020 --seeds 1 --steps 400     # only that it runs

Reads the files of SAMSVAE_DATA (default ../shared/data); one core each. Every seed trains the
paper's model with our mask prior ("none") and the same with sparse direct effects on one split
(schraivogel2020, datlinger2021: a random one per seed; papalexi2021: the given one; norman2019: all
cells of five doubles held out), and prints bound (IWELBO of test cells), r, r of the top 20 genes,
median r and rank beside simple baselines; of own targets also predicted over observed change, on
the scale of these scores (mean of logs) and on that of compose (log of means). "nulls": ten of the
thirty non-targeting guides of schraivogel2020 as fake targets. "simulations": the two published
ones (40 perturbations of 200 cells), which have no direct effects, and one of counts with three of
them per perturbation, of 0.5 to 2 natural log units, beside its mechanisms; an entry counts as
worth finding from 10 nats. Expected: README, "Direct effects".
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from samsvae_core.data.cells import CellData, gene_panel
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import split
from samsvae_core.evaluation.baselines import observed_effects
from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate
from samsvae_core.evaluation.metrics import mask_recovery
from samsvae_core.evaluation.predictive import model_effects
from samsvae_core.evaluation.shifts import (
    observed_shifts,
    predicted_shifts,
    reference_cells,
    variance_of,
)
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import ACTIVE
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.simulate import PUBLISHED, Design, cell_data, published, simulate
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
sys.path.append(str(ROOT / "scripts"))
from build_pretrained import single_guide_cells  # noqa: E402 - scripts are no package

STEPS = {"norman2019": 2000, "datlinger2021": 1500}
SCREENS = "schraivogel2020", "papalexi2021", "norman2019", "datlinger2021"
MEASURES = ("bound", "pearson", "pearson_top20", "median", "rank")
BASELINES = (
    "training mean",
    "shrunken mean",
    "additive",
    "shrunken additive",
    "ridge",
)
FAKES, EACH, PERTURBATIONS, CELLS_EACH = 10, 3, 40, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    every = [*SCREENS, "nulls", "simulations"]
    parser.add_argument("what", nargs="+", choices=every)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for what in arguments.what:
        steps = arguments.steps or STEPS.get(what, 3000)
        if what == "nulls":
            nulls(arguments.seeds, steps)
        elif what == "simulations":
            for kind in [*PUBLISHED, "planted"]:
                simulated(kind, arguments.seeds, steps)
        else:
            real(what, arguments.seeds, steps)


def screen(name: str, seed: int) -> tuple[CellData, np.ndarray]:
    """Return a real screen and its split."""
    if name == "papalexi2021":
        data = read_h5ad(DATA / "papalexi2021_thp1.h5ad")
        return data, split(data, DATA / "papalexi2021_split.csv")
    if name == "norman2019":
        file = DATA / "norman2019_k562_subset.h5ad"
        data = gene_panel(read_h5ad(file, size_factor_key="total_counts"), top=250)
        return data, split(data, ROOT / "scripts" / "norman2019_held_out.csv")
    if name == "datlinger2021":
        data = gene_panel(read_h5ad(DATA / "datlinger2021_jurkat.h5ad", join_guides=True), top=300)
        return data, split(data, seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cells.h5ad"
        single_guide_cells(DATA / "schraivogel2020_tapseq.h5ad", file)
        data = read_h5ad(file, perturbation_key="target", control="non-targeting")
    return data, split(data, seed=seed)


def trained(
    data: CellData, parts: np.ndarray, kind: str, seed: int, steps: int, **model: Any
) -> SAMSVAE:
    """Return a model with these direct effects."""
    train = data.subset(parts == "train")
    likelihood = "counts" if data.is_counts else "gaussian"
    config = ModelConfig(
        len(data.genes),
        len(data.perturbations),
        other_genes=data.has_size_factor,
        likelihood=likelihood,
        direct_effects=kind,
        **model,
    )
    fitted = new_model(train, config, seed)
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as run:
        cells = Cells(train, cpu), Cells(data.subset(parts == "validation"), cpu)
        fit(fitted, *cells, TrainConfig(steps=steps, seed=seed), Path(run))
    return fitted


# Real screens


def real(name: str, n_seeds: int, steps: int) -> None:
    rows, owns = [], []
    for seed in range(n_seeds):
        data, parts = screen(name, seed)
        for kind in ("none", "sparse"):
            model = trained(data, parts, kind, seed, steps)
            config = EvaluationConfig(iwelbo_samples=50, replicate_sets=2, shift_draws=64)
            metrics = evaluate(model, data, parts, config)
            scores = metrics["average_effects"]
            rows.append({"seed": seed, "what": kind, "bound": metrics["iwelbo"]["test"], **scores})
            said = scores["per_perturbation"]
            if name == "norman2019":
                rows[-1]["doubles"] = float(np.mean(list(said.values())))
                print(seed, kind, {k: round(r, 2) for k, r in said.items()}, flush=True)
            print(seed, kind, in_words(model, data), flush=True)
            if kind == "sparse":
                own = own_changes(model, data, parts)
                owns.append(own)
                inside = metrics["coverage"]["single"]
                print(seed, "coverage", inside, flush=True)
        rows += [
            {"seed": seed, "what": each, **metrics["baselines"][each]}
            for each in BASELINES
            if each in metrics["baselines"]
        ]
    table = pd.DataFrame(rows)
    shown = [c for c in (*MEASURES, "doubles") if c in table]
    mean = table.groupby("what", sort=False)[shown].mean()
    print(f"\n{name}, {n_seeds} seeds, {steps} steps\n{mean.round(3).to_string()}")
    wide = table.pivot_table(index="seed", columns="what", values=list(shown))
    for measure in shown:
        gain = (wide[measure]["sparse"] - wide[measure]["none"]).astype(float)
        spread = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.nan
        print(f"sparse minus none, {measure}: {gain.mean():+.3f} ± {spread:.3f}")
    if len(owns[0]):
        print("own targets, predicted over observed, mean over seeds")
        print(pd.concat(owns).groupby(level=0).mean().round(2).to_string())


def in_words(model: SAMSVAE, data: CellData) -> str:
    active = (model.mask_probability() > ACTIVE).numpy(force=True)
    masks = {
        str(name): np.flatnonzero(row).tolist()
        for name, row in zip(data.perturbations, active, strict=True)
        if row.any()
    }
    if model.direct is None:
        return f"masks {masks}"
    n = int((model.direct.probability > ACTIVE).sum())
    return f"masks {masks}; {len(model.direct.mean)} direct effects, {n} stand out"


@torch.inference_mode()
def own_changes(model: SAMSVAE, data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Return, per perturbation whose gene is on the panel, its own change, seen and predicted.

    ZFPM2-A targets an element of ZFPM2, and likewise others with one letter after a hyphen.
    """
    observed = observed_effects(data)
    average = model_effects(model, data, observed.index, 20_000).mean
    shifts = observed_shifts(data, variance_of(data))
    reference = reference_cells(model, data, parts)
    rows = {}
    for t, name in enumerate(data.perturbations):
        gene = name if name in observed else name[:-2] if name[-2:-1] == "-" else ""
        if gene not in observed or name not in observed.index:
            continue
        D = torch.eye(len(data.perturbations))[t : t + 1]
        drawn = predicted_shifts(model, reference, D, 64, 0).shift[0]
        drawn = drawn[:, list(data.genes).index(gene)].mean()
        seen, error = shifts.shift.loc[name, gene], shifts.se.loc[name, gene]
        rows[name] = {
            "observed (mean of logs)": observed.loc[name, gene],
            "ratio (mean of logs)": average.loc[name, gene] / observed.loc[name, gene],
            "observed (log of means)": seen,
            "se": error,
            "ratio (log of means)": drawn / seen,
            "right sign": float(np.sign(drawn) == np.sign(seen)),
        }
    return pd.DataFrame(rows).T


# Nulls


def nulls(n_seeds: int, steps: int) -> None:
    """Fake targets from non-targeting guides, as many as FAKES."""
    found = []
    for seed in range(n_seeds):
        cells = anndata.read_h5ad(DATA / "schraivogel2020_tapseq.h5ad")
        cells = cells[(cells.obs["n_guides"] == 1).to_numpy()].copy()
        guide = cells.obs["guide_ids"].astype(str).str.removeprefix("CROPseq_dCas9_DS_")
        plain = sorted(g for g in guide.unique() if g.startswith("non-targeting"))
        chosen = set(np.random.default_rng(seed).permutation(plain)[:FAKES])
        target = guide.str.split("_").str[0]
        fake = guide.isin(chosen)
        cells.obs = cells.obs[[]].assign(
            target=target.where(~fake, "fake" + guide.str.split("_").str[-1])
        )
        del cells.obsm["guides"]
        with tempfile.TemporaryDirectory() as folder:
            cells.write_h5ad(Path(folder) / "cells.h5ad")
            data = read_h5ad(
                Path(folder) / "cells.h5ad", perturbation_key="target", control="non-targeting"
            )
        parts = split(data, seed=seed)
        model = trained(data, parts, "sparse", seed, steps)
        assert model.direct is not None
        which = np.flatnonzero([str(n).startswith("fake") for n in data.perturbations])
        masks = int((model.mask_probability()[which] > ACTIVE).sum())
        rows = model.direct.row.numpy()
        stands = (model.direct.probability > ACTIVE).numpy()
        n = int((np.isin(rows, which) & stands).sum())
        found.append((masks, n))
        print(f"nulls, seed {seed}: {masks} masks, {n} direct effects of {FAKES * len(data.genes)}")
    entries = FAKES * len(data.genes) * n_seeds
    print(f"nulls: {sum(n for _, n in found)} of {entries} direct effects stand out")


# Simulations


def simulated(kind: str, n_seeds: int, steps: int) -> None:
    """Print how well masks and direct effects of simulations of one kind are found."""
    rows = []
    for seed in range(n_seeds):
        if kind == "planted":
            data, mask, direct = planted(seed)
        else:
            data, truth = published(kind, seed, PERTURBATIONS, CELLS_EACH)
            mask, direct = truth.mask, np.zeros((PERTURBATIONS, len(data.genes)))
        parts = split(data, seed=seed)
        row: dict[str, float] = {}
        for name in ("none", "sparse"):
            model = trained(data, parts, name, seed, steps, n_latent=mask.shape[1])
            active = (model.mask_probability() > ACTIVE).numpy(force=True)
            row[f"mask F1 {name}"] = mask_recovery(active, mask)["f1"]
        assert model.direct is not None
        found = np.zeros(direct.shape, dtype=bool)
        kept = (model.direct.probability > ACTIVE) & (model.direct.row < len(direct))
        found[model.direct.row[kept].numpy(), model.direct.gene[kept].numpy()] = True
        worth = worths(data, parts, direct)
        true, ignored = worth >= 10, (direct != 0) & (worth < 10)
        hits = (found & true).sum()
        row |= {
            "found by mistake": (found & (direct == 0)).sum() / (direct == 0).sum(),
            "worth finding": true.sum(),
            "direct F1": 2 * hits / max(1, (found & ~ignored).sum() + true.sum()),
            "recall": hits / max(1, true.sum()),
        }
        rows.append(row)
        shown = {name: round(float(value), 4) for name, value in row.items()}
        print(f"{kind}, seed {seed}:", shown, flush=True)
    print(f"{kind}, mean: {pd.DataFrame(rows).mean().round(4).to_dict()}\n")


def planted(seed: int) -> tuple[CellData, np.ndarray, np.ndarray]:
    """Return cells with direct effects beside mechanisms, true masks and true direct effects."""
    n_cells = (PERTURBATIONS + 4) * CELLS_EACH  # four shares of controls
    data, truth = simulate(
        Design(n_cells, 150, PERTURBATIONS, 8, n_combinations=0, depth=4000, seed=seed)
    )
    rng = np.random.default_rng([seed, 4])
    direct = np.zeros((PERTURBATIONS, len(data.genes)))
    for row in direct:
        genes = rng.choice(len(row), EACH, replace=False)
        row[genes] = rng.choice([-1.0, 1.0], EACH) * rng.uniform(0.5, 2, EACH)
    z = truth.z_basal + data.dosages @ truth.embedding
    offset = torch.as_tensor(data.dosages @ direct, dtype=torch.float32)
    states = torch.as_tensor(z, dtype=torch.float32)
    library = torch.as_tensor(data.library)[:, None]
    assert truth.model is not None
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        counts = truth.model.decode(states[None], library, offset[None]).sample()[0].numpy()
    found = cell_data(sp.csr_matrix(counts), data.dosages.toarray(), data.conditions)
    return found, truth.mask, direct


def worths(data: CellData, parts: np.ndarray, direct: np.ndarray) -> np.ndarray:
    """Return about what each direct effect is worth to the training cells, in nats.

    It is n (log ratio or difference)^2 / 2 over the variance of a cell around its condition.
    """
    found = np.zeros_like(direct)
    values = data.counts.toarray()
    for t, name in enumerate(data.perturbations):
        rows = (data.conditions == name) & (parts == "train")
        if data.is_counts:
            variance = values[rows].var(0) / np.maximum(values[rows].mean(0), 1e-9) ** 2
        else:
            variance = values[rows].var(0)
        found[t] = rows.sum() * direct[t] ** 2 / 2 / np.maximum(variance, 1e-9)
    return found


if __name__ == "__main__":
    main()
