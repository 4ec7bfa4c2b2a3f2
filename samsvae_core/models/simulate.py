"""Simulated Perturb-seq data together with the masks and effects they were drawn from.

`simulate` draws counts from a SAMS-VAE with a random decoder, with combinations; mechanisms shift
the state by about `effect_size` basal standard deviations. `published` draws the simulations of two
papers, whose decoders are deeper than any model fitted here. Both have real controls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int

from samsvae_core.data.cells import CellData
from samsvae_core.data.covariates import Covariates
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.system.files import atomic_write

CONTROL_SHARES = 4  # controls enter every comparison, so there are more of them
CELLS_AT_ONCE = 1024  # dense rows held in memory while counts are drawn
PUBLISHED = {"sams-vae": 4, "svae-plus": 3}  # hidden layers of the decoder
PUBLISHED_LATENT, PUBLISHED_GENES, PUBLISHED_HIDDEN = 15, 100, 50
PUBLISHED_EFFECT = 5.0  # mean size in basal standard deviations; its spread is 0.5
NOISE_SHARE = 0.2  # of each gene's variance, in the SAMS-VAE simulation
PUBLISHED_DEPTH = 2000.0  # counts per cell, in the sVAE+ simulation
BATCH_SIZE = 0.3  # standard deviation of what a batch adds to a logit
CONTEXT_SIZE = 0.8  # the same of a cell line
DIFFERING = 1 / 3  # share of effects that are missing in one cell line
BATCH_EVENNESS = 2.0  # of the Dirichlet that shares of batches are drawn from


@dataclass(frozen=True)
class Design:
    """The design of a simulation; conditions share cells equally, controls get CONTROL_SHARES."""

    n_cells: int = 5000
    n_genes: int = 200
    n_perturbations: int = 20
    n_latent: int = 5
    n_combinations: int = 5
    active: float = 1.6  # mechanisms a perturbation moves, on average; each moves at least one
    effect_size: float = 3.0  # basal standard deviations
    depth: float = 3000.0  # median counts per cell
    seed: int = 0
    n_batches: int = 1  # more: each moves every gene, and perturbations have uneven shares of them
    n_contexts: int = 1  # more: cell lines; in one of them an effect may be missing (DIFFERING)


class Truth(NamedTuple):
    """The true values behind simulated cells."""

    mask: Bool[np.ndarray, "T K"]
    embedding: Float[np.ndarray, "T K"]
    z_basal: Float[np.ndarray, "N K"]
    model: SAMSVAE | None  # its decoder and concentrations drew the counts; None if `published`
    missing: Bool[np.ndarray, "L T K"] | None = None  # effects that a context lacks; None without


def simulate(design: Design) -> tuple[CellData, Truth]:
    """Return cells and the truth they were drawn from; the same seed gives the same data.

    Raises ValueError if there are fewer cells than conditions, or too few pairs to combine.
    """
    conditions = simulated_conditions(design)
    fewest = len(conditions) + CONTROL_SHARES
    if design.n_cells < fewest:
        raise ValueError(
            f"{design.n_cells} cells cannot cover {len(conditions)} conditions and controls; "
            f"ask for at least {fewest} cells or fewer perturbations."
        )
    rng = np.random.default_rng(design.seed)
    shape = design.n_perturbations, design.n_latent
    mask = rng.random(shape) < design.active / design.n_latent
    mask[np.arange(len(mask)), rng.integers(design.n_latent, size=len(mask))] = True
    sign = rng.choice([-1.0, 1.0], size=shape)
    embedding = mask * sign * rng.normal(design.effect_size, 0.1 * design.effect_size, size=shape)
    model = random_model(design)
    which = rng.permutation(np.arange(design.n_cells) % fewest)
    which = np.maximum(which - CONTROL_SHARES + 1, 0)  # the first shares are controls
    rows = np.zeros((len(conditions) + 1, design.n_perturbations), dtype=np.float32)
    for row, members in enumerate(conditions, start=1):
        rows[row, list(members)] = 1
    z_basal = rng.standard_normal((design.n_cells, design.n_latent))
    library = design.depth * np.exp(0.3 * rng.standard_normal(design.n_cells))
    covariates, missing = simulated_batches(design, which), None
    shift = rows[which] @ embedding
    if design.n_contexts > 1:
        lines = simulated_lines(design)
        covariates, missing = joined(covariates, lines), missing_effects(design, mask)
        own = lines.codes[:, 0]
        for level, absent in enumerate(missing):
            shift[own == level] -= rows[which[own == level]] @ (absent * embedding)
    if covariates is not None and model.level_offsets is not None:
        model.level_offsets.fit_shares(torch.from_numpy(covariates.codes))
    counts = draw_counts(model, z_basal + shift, library, design.seed, covariates)
    labels = ["control"] + ["+".join(perturbation_names(shape[0])[list(m)]) for m in conditions]
    data = cell_data(counts, rows[which], np.array(labels)[which])
    return replace(data, covariates=covariates), Truth(mask, embedding, z_basal, model, missing)


def simulated_batches(design: Design, which: Int[np.ndarray, " N"]) -> Covariates | None:
    """Return the batch of each cell, given the number of its condition; None for one batch."""
    n = design.n_batches
    if n == 1:
        return None
    rng = np.random.default_rng([design.seed, 5])
    shares = rng.dirichlet(np.full(n, BATCH_EVENNESS), size=int(which.max()) + 1)
    codes = (rng.random((len(which), 1)) > shares[which].cumsum(1)[:, :-1]).sum(1, keepdims=True)
    return Covariates({"batch": level_names("b", n)}, codes.astype(np.int32))


def simulated_lines(design: Design) -> Covariates:
    """Return the cell line of each cell, at random."""
    rng, n = np.random.default_rng([design.seed, 6]), design.n_contexts
    codes = rng.integers(n, size=(design.n_cells, 1))
    return Covariates({"cell_line": level_names("line", n)}, codes.astype(np.int32))


def missing_effects(design: Design, mask: Bool[np.ndarray, "T K"]) -> Bool[np.ndarray, "L T K"]:
    """Return which effects are missing in a cell line: of a third of them, in one."""
    rng = np.random.default_rng([design.seed, 7])
    differs = mask & (rng.random(mask.shape) < DIFFERING)
    where = rng.integers(design.n_contexts, size=mask.shape)
    return differs & (where == np.arange(design.n_contexts)[:, None, None])


def joined(first: Covariates | None, second: Covariates) -> Covariates:
    """Return the covariates of both."""
    if first is None:
        return second
    codes = np.concatenate([first.codes, second.codes], axis=1)
    return Covariates({**first.levels, **second.levels}, codes)


def level_names(stem: str, n: int) -> tuple[str, ...]:
    """Return the stem with 1 to n, padded to the digits of n."""
    return tuple(f"{stem}{i:0{len(str(n))}d}" for i in range(1, n + 1))


def published(
    name: str, seed: int = 0, n_perturbations: int = 100, cells_each: int = 781
) -> tuple[CellData, Truth]:
    """Return the simulation of the SAMS-VAE or the SVAE+ paper: 15 mechanisms, 100 genes.

    "sams-vae": each mechanism is active with probability 2/15, with size Normal(5, 0.5) and random
    sign; values are the outputs of the decoder, of variance 1 per gene, plus noise.

    "svae-plus": one to three mechanisms are drawn with replacement, with effects of the same size;
    Poisson counts with the outputs' softmax over genes as shares. The published code takes the
    softmax over cells, which makes a cell's counts depend on the other cells; its depth, 1e6 counts
    per gene among all cells, is about PUBLISHED_DEPTH. In both, we add as many control cells as
    each perturbation has.

    With `cells_each` = 781 the split "random" trains on 500 cells of each, as published. Raises
    ValueError for another name. Source: Bereket & Karaletsos 2023; Lopez et al. 2023.
    """
    if name not in PUBLISHED:
        raise ValueError(f"Unknown simulation {name!r}; choose one of {sorted(PUBLISHED)}.")
    rng = np.random.default_rng([seed, 2])
    mask = published_mask(name, n_perturbations, rng)
    size = np.abs(rng.normal(PUBLISHED_EFFECT, 0.5, size=mask.shape))
    embedding = mask * rng.choice([-1.0, 1.0], size=mask.shape) * size
    which = np.repeat(np.arange(n_perturbations + 1), cells_each)
    rows = np.eye(n_perturbations + 1, dtype=np.float32)[:, 1:]  # the first is control
    z_basal = rng.standard_normal((len(which), PUBLISHED_LATENT))
    outputs = random_outputs(z_basal + rows[which] @ embedding, PUBLISHED[name], seed)
    if name == "sams-vae":
        noise = np.sqrt(NOISE_SHARE / (1 - NOISE_SHARE))
        values = outputs + noise * rng.standard_normal(outputs.shape)
    else:
        share = np.exp(outputs)
        share /= share.sum(axis=1, keepdims=True)
        values = rng.poisson(PUBLISHED_DEPTH * share)
    labels = np.array(["control", *perturbation_names(n_perturbations)])
    counts = sp.csr_matrix(values.astype(np.float32))
    data = cell_data(counts, rows[which], labels[which], is_counts=name == "svae-plus")
    return data, Truth(mask, embedding, z_basal, None)


def published_mask(
    name: str, n_perturbations: int, rng: np.random.Generator
) -> Bool[np.ndarray, "T K"]:
    """Return which mechanisms each perturbation uses."""
    shape = n_perturbations, PUBLISHED_LATENT
    if name == "sams-vae":
        return rng.random(shape) < 2 / PUBLISHED_LATENT
    mask = np.zeros(shape, dtype=bool)
    for row in mask:
        row[rng.integers(PUBLISHED_LATENT, size=rng.integers(1, 4))] = True
    return mask


def random_outputs(
    z: Float[np.ndarray, "N K"], n_hidden_layers: int, seed: int
) -> Float[np.ndarray, "N G"]:
    """Return a random network's outputs at latent states, without biases, scaled to variance 1."""
    widths = [z.shape[1], *[PUBLISHED_HIDDEN] * n_hidden_layers, PUBLISHED_GENES]
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.as_tensor(z, dtype=torch.float32)
    for layer, (n_in, n_out) in enumerate(pairwise(widths)):
        if layer:
            outputs = torch.nn.functional.leaky_relu(outputs, 0.2)
        weight = torch.nn.init.orthogonal_(torch.empty(n_out, n_in), generator=generator)
        outputs = outputs @ weight.T
    return (outputs / outputs.std(0)).double().numpy()


def perturbation_names(n: int) -> np.ndarray:
    """Return P1 to Pn, padded to the digits of n."""
    return np.array([f"P{i:0{len(str(n))}d}" for i in range(1, n + 1)])


def cell_data(
    counts: sp.csr_matrix,
    dosages: Float[np.ndarray, "N T"],
    conditions: np.ndarray,
    is_counts: bool = True,
) -> CellData:
    """Return simulated cells with plain names for cells, genes and perturbations."""
    n_cells, n_genes = counts.shape
    totals = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    return CellData(
        counts=counts,
        dosages=sp.csr_matrix(dosages),
        library=totals if is_counts else np.ones_like(totals),
        cells=np.array([f"cell{i}" for i in range(n_cells)]),
        genes=np.array([f"gene{i}" for i in range(1, n_genes + 1)]),
        perturbations=perturbation_names(dosages.shape[1]),
        conditions=conditions,
        control="control",
        has_size_factor=False,
        source={"file": "simulated", "perturbation_key": "perturbation", "notes": []},
        is_counts=is_counts,
    )


def simulated_conditions(design: Design) -> list[tuple[int, ...]]:
    """Return every single perturbation and the requested number of different pairs."""
    n = design.n_perturbations
    pairs = [(a, b) for a in range(n) for b in range(a + 1, n)]
    if design.n_combinations > len(pairs):
        raise ValueError(
            f"{n} perturbations have {len(pairs)} pairs; {design.n_combinations} were asked for."
        )
    chosen = np.random.default_rng([design.seed, 1]).permutation(len(pairs))
    chosen = np.sort(chosen[: design.n_combinations])
    return [(i,) for i in range(n)] + [pairs[i] for i in chosen]


def random_model(design: Design) -> SAMSVAE:
    """Return a model whose decoder responds to latent steps, with varied expression levels."""
    sizes = [(design.n_batches, BATCH_SIZE), (design.n_contexts, CONTEXT_SIZE)]
    sizes = [(n, size) for n, size in sizes if n > 1]
    levels = tuple(n for n, _ in sizes)
    config = ModelConfig(
        design.n_genes, design.n_perturbations, design.n_latent, n_hidden=32, levels=levels
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(design.seed)
        model = SAMSVAE(config).requires_grad_(False)
        torch.nn.init.orthogonal_(model.decoder.hidden.weight, gain=1.5)
        torch.nn.init.orthogonal_(model.decoder.out.weight, gain=1.5)
        model.decoder.out.bias.normal_(0, 1)
        model.log_concentration.fill_(3.0)
        if model.level_offsets is not None:
            for block, (_, size) in zip(
                model.level_offsets.blocks(model.level_offsets.offset), sizes, strict=True
            ):
                block.normal_(0, size)
    return model


def draw_counts(
    model: SAMSVAE,
    z: Float[np.ndarray, "N K"],
    library: Float[np.ndarray, " N"],
    seed: int,
    covariates: Covariates | None = None,
) -> sp.csr_matrix:
    """Return negative binomial counts of each cell at its latent state, as float32 CSR."""
    blocks = []
    codes = np.zeros((len(z), 0)) if covariates is None else covariates.codes
    levels = torch.as_tensor(codes, dtype=torch.int64)
    states = torch.as_tensor(z, dtype=torch.float32)
    depths = torch.as_tensor(library, dtype=torch.float32)[:, None]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        parts = (each.split(CELLS_AT_ONCE) for each in (states, depths, levels))
        for part, depth, level in zip(*parts, strict=True):
            px = model.decode(part[None], depth, levels=level if covariates else None)
            blocks.append(sp.csr_matrix(px.sample()[0].numpy()))
    return sp.vstack(blocks, format="csr")


def write_h5ad(data: CellData, truth: Truth, path: Path) -> None:
    """Write simulated cells as an .h5ad with the truth in `uns`, whole or not at all."""
    import tempfile

    import anndata
    import pandas as pd

    obs = pd.DataFrame({"perturbation": data.conditions}, index=data.cells)
    if covariates := data.covariates:
        obs = obs.assign(**{name: covariates.labels(name) for name in covariates.levels})
    table = anndata.AnnData(
        X=data.counts,
        obs=obs,
        var=pd.DataFrame(index=data.genes),
        uns={"true_mask": truth.mask.astype(np.int8), "true_embedding": truth.embedding},
    )
    if truth.missing is not None:
        table.uns["true_missing"] = truth.missing.astype(np.int8)
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "simulated.h5ad"
        table.write_h5ad(temporary)
        atomic_write(path, temporary.read_bytes())
