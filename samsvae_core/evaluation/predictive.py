"""Sample cells from a model: predicted average effects, and replicate data sets.

Conditions are decoded together, as many as memory allows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from samsvae_core.data.cells import CellData
from samsvae_core.evaluation.baselines import dosage_table
from samsvae_core.evaluation.strata import FEWEST_CELLS
from samsvae_core.models.distributions import PER_TEN_THOUSAND
from samsvae_core.models.samsvae import SAMSVAE

JACKKNIFE_GROUPS = 10
VALUES_AT_ONCE = 2**23  # samples x cells x genes held in memory
CHECKED_CELLS = 500  # most cells of a condition in predictive checks
CENTRAL = (0.5, 0.8, 0.9, 0.95)  # central parts of the predictive distribution
REPLICATE_SETS = 39  # data sets; with 39, ranks fall within CENTRAL with exactly these shares


# Average effects


class ModelEffects(NamedTuple):
    """Predicted average effects, and the same with one group of draws left out at a time."""

    mean: pd.DataFrame  # conditions x genes
    left_out: list[pd.DataFrame]


@torch.inference_mode()
def model_effects(
    model: SAMSVAE,
    data: CellData,
    conditions: pd.Index,
    n_draws: int = 2500,
    library: str = "data",
    seed: int = 0,
) -> ModelEffects:
    """Return the average effects of sampled counts, on basal states from the prior common to all.

    Counts are those of the mean level of covariates, since observed effects are free of levels.

    Parameters
    ----------
    model
        A trained model.
    data
        Cells with the conditions' dosages and library sizes.
    conditions
        Names of conditions in `data`.
    n_draws, seed
        Number and seed of the posterior draws.
    library
        "data" draws library sizes from the condition's cells in `data`; "10000" is the paper's.
    """
    device = model.device
    names = [data.control, *conditions]
    D = torch.as_tensor(dosage_table(data, pd.Index(names)).to_numpy(np.float32), device=device)
    rng = np.random.default_rng(seed)
    drawn = [libraries(data, name, n_draws, library, rng) for name in names]
    depth = np.stack(drawn, axis=1)  # (S, A)
    groups = np.array_split(np.arange(n_draws), min(JACKKNIFE_GROUPS, n_draws))
    sums = torch.zeros(len(groups), len(names), model.config.n_genes, dtype=torch.float64)
    n = torch.zeros(len(groups), len(names), 1, dtype=torch.float64)
    size = max(1, VALUES_AT_ONCE // (len(names) * model.config.n_genes))
    with seeded(seed, device):
        for g, draws in enumerate(groups):
            drawn_effects = model.effects(len(draws))
            shift = drawn_effects.latent_shift(model.given(D))  # (s, A, C)
            offset = drawn_effects.offset(D)  # (s, A, G)
            z_basal = torch.randn(len(draws), 1, model.config.n_latent, device=device)
            states = model.state(z_basal.expand(-1, len(names), -1), shift)
            depths = torch.as_tensor(depth[draws], dtype=torch.float32, device=device)
            for i in range(0, len(draws), size):
                rows = slice(i, i + size)
                own = None if offset is None else offset[rows]
                level, seen = sampled_levels(model, states[rows], depths[rows], own)
                sums[g] += level.sum(0).cpu()
                n[g] += seen.sum(0)[:, None].cpu()

    def effects(total: Tensor, count: Tensor) -> pd.DataFrame:
        level = (total / count.clamp_min(1)).numpy()
        return pd.DataFrame(level[1:] - level[0], index=conditions, columns=data.genes)

    left_out = [effects(sums.sum(0) - s, n.sum(0) - c) for s, c in zip(sums, n, strict=True)]
    return ModelEffects(effects(sums.sum(0), n.sum(0)), left_out if len(groups) > 1 else [])


def sampled_levels(
    model: SAMSVAE,
    states: Float[Tensor, "S A L"],
    library: Float[Tensor, "S A"],
    offset: Float[Tensor, "S A G"] | None,
) -> tuple[Float[Tensor, "S A G"], Float[Tensor, "S A"]]:
    """Return log2(1 + 1e4 x / total), or x itself, sampled at each state and direct effect.

    The second result says where anything was counted; elsewhere the level is 0.
    """
    depths = library.flatten()[:, None]
    direct = None if offset is None else offset.flatten(0, 1)[None]
    x = model.decode(states.flatten(0, 1)[None], depths, direct).sample()[0]  # (S A, G)
    seen = torch.ones_like(depths)
    if model.config.likelihood == "counts":
        totals = depths if model.config.other_genes else x.sum(-1, keepdim=True)
        seen = (totals > 0).to(x)
        x = torch.log2(1 + x * (PER_TEN_THOUSAND * seen / totals.clamp_min(1e-12)))
    return x.unflatten(0, library.shape), seen[:, 0].unflatten(0, library.shape)


def libraries(
    data: CellData, condition: str, n_draws: int, library: str, rng: np.random.Generator
) -> Float[np.ndarray, " S"]:
    """Return library sizes to draw counts at."""
    if library == "10000":
        return np.full(n_draws, 1e4)
    pool = data.library[data.conditions == condition]
    return rng.choice(pool[pool > 0], size=n_draws)


# Posterior predictive checks


@torch.inference_mode()
def predictive_positions(
    model: SAMSVAE, test: CellData, n_sets: int = REPLICATE_SETS, seed: int = 0
) -> pd.DataFrame:
    """Return where observed statistics fall in the model's predictive distribution, from 0 to 1.

    Columns are condition, gene, and mean, variance and zeros (their fraction; NaN for values that
    are not counts) over the cells of a condition: the share of replicate data sets with a smaller
    value, ties broken at random, so that a true model gives uniform positions. A replicate has one
    posterior draw of the effects, basal states from the prior, and the library sizes and levels of
    covariates of the observed cells. At most CHECKED_CELLS cells of a condition are used, and genes
    without any count in them are left out.
    """
    rng = np.random.default_rng(seed)
    rows = [
        np.sort(rng.permutation(cells)[:CHECKED_CELLS])
        for _, cells in sorted(pd.Series(test.conditions).groupby(test.conditions).indices.items())
        if len(cells) >= FEWEST_CELLS
    ]
    if not rows:
        return pd.DataFrame(columns=["condition", "gene", "mean", "variance", "zeros"])
    names = pd.Index([test.conditions[cells[0]] for cells in rows])
    counted = test.counts[np.concatenate(rows)].getnnz(axis=0) > 0
    n_genes = model.config.n_genes
    D = torch.as_tensor(dosage_table(test, names).to_numpy(np.float32), device=model.device)
    frames = []
    with seeded(seed, model.device):
        effects = model.effects(n_sets)
        offset = effects.offset(D)  # (R, A, G)
        for batch in batches([len(cells) for cells in rows], VALUES_AT_ONCE // (n_sets * n_genes)):
            cells = np.concatenate([rows[a] for a in batch])
            of = np.repeat(batch, [len(rows[a]) for a in batch])
            direct = None if offset is None else offset[:, of]
            levels = codes(test, cells)
            known = None if levels is None else torch.as_tensor(levels, device=model.device)
            shift = effects.latent_shift(model.given(D[of], known))  # (R, n, C)
            x = simulated(model, shift, direct, test.library[cells], levels)
            seen = torch.as_tensor(test.counts[cells].toarray())
            for a in batch:
                own = torch.as_tensor(of == a)
                at = {
                    key: position(one[0], many, rng)[counted]
                    for (key, one), many in zip(
                        statistics(seen[None, own]).items(),
                        statistics(x[:, own]).values(),
                        strict=True,
                    )
                }
                if not test.is_counts:
                    at["zeros"] = np.full(counted.sum(), np.nan)
                frames.append(
                    pd.DataFrame({"condition": names[a], "gene": test.genes[counted], **at})
                )
    return pd.concat(frames, ignore_index=True)


def batches(sizes: list[int], at_once: int) -> list[list[int]]:
    """Return neighbouring indices grouped up to a total size of `at_once`, or one alone."""
    found: list[list[int]] = []
    held = 0
    for i, size in enumerate(sizes):
        if found and held + size <= at_once:
            found[-1].append(i)
            held += size
        else:
            found.append([i])
            held = size
    return found


def codes(data: CellData, rows: np.ndarray) -> Int[np.ndarray, "N C"] | None:
    return None if data.covariates is None else data.covariates.codes[rows]


def simulated(
    model: SAMSVAE,
    shift: Float[Tensor, "R N C"],
    offset: Float[Tensor, "R N G"] | None,
    library: Float[np.ndarray, " N"],
    codes: Int[np.ndarray, "N L"] | None,
) -> Float[Tensor, "R N G"]:
    """Return one data set per row of shifts, a cell at each, with its library size and levels."""
    z_basal = torch.randn(*shift.shape[:2], model.config.n_latent, device=shift.device)
    states = model.state(z_basal, shift)
    depths = torch.as_tensor(library, dtype=torch.float32, device=shift.device)[:, None]
    levels = None if codes is None else torch.as_tensor(codes, device=shift.device).long()
    size = max(1, VALUES_AT_ONCE // (len(depths) * model.config.n_genes))
    sets = []
    for i in range(0, len(states), size):
        rows = slice(i, i + size)
        direct = None if offset is None else offset[rows]
        sets.append(model.decode(states[rows], depths, direct, levels).sample().cpu())
    return torch.cat(sets)


def statistics(x: Float[Tensor, "R N G"]) -> dict[str, Float[np.ndarray, "R G"]]:
    """Return mean, variance and fraction of zeros over cells; exact sums keep ties as ties."""
    found: dict[str, list[np.ndarray]] = {"mean": [], "variance": [], "zeros": []}
    for single in x:  # one data set at a time, as double precision takes memory
        one = single.double()
        mean = one.mean(0)
        found["mean"].append(mean.numpy())
        found["variance"].append((one.square().mean(0) - mean.square()).numpy())
        found["zeros"].append((one == 0).double().mean(0).numpy())
    return {name: np.stack(each) for name, each in found.items()}


def position(
    observed: Float[np.ndarray, " G"],
    replicates: Float[np.ndarray, "R G"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " G"]:
    """Return (r + 1/2) / (R + 1), r the rank of the observed value, at random among equals."""
    below, tied = (replicates < observed).sum(0), (replicates == observed).sum(0)
    return (below + rng.integers(0, tied + 1) + 0.5) / (len(replicates) + 1)


def predictive_checks(positions: pd.DataFrame) -> dict[str, Any]:
    """Return the calibration curve of each statistic over all conditions and genes.

    `inside` is the share of positions within each central part of the predictive distribution;
    `low` and `high` are the shares in its lower and upper 5 %, where the model predicts too much
    and too little.
    """
    found: dict[str, Any] = {
        "n_conditions": int(positions["condition"].nunique()),
        "levels": list(CENTRAL),
    }
    for name in ("mean", "variance", "zeros"):
        at = positions[name].dropna().to_numpy(dtype=float)
        found[name] = None
        if len(at):
            from_centre = np.abs(at - 0.5)
            found[name] = {
                "inside": [float((from_centre <= level / 2).mean()) for level in CENTRAL],
                "low": float((at < 0.05).mean()),
                "high": float((at > 0.95).mean()),
                "n": len(at),
            }
    return found


class seeded:
    """Use the random numbers of `seed` inside the block, and leave those outside as they were."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        self.fork.__exit__(*error)  # type: ignore[arg-type]
