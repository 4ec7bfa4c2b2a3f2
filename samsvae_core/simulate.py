"""Perturb-seq data with a known answer: counts drawn from a SAMS-VAE whose masks are kept.

The decoder is a random network of the model's own kind; mechanisms move about `effect_size` basal
standard deviations. After model-reference section 5.3, with counts, real controls and combinations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float

from samsvae_core.data import CellData
from samsvae_core.files import atomic_write
from samsvae_core.model import SAMSVAE, ModelConfig

CONTROL_SHARES = 4  # controls are in every comparison, so there are more of them
CELLS_AT_ONCE = 1024  # dense rows held in memory while counts are drawn


@dataclass(frozen=True)
class Design:
    """What is simulated. Conditions share the cells evenly; controls get CONTROL_SHARES."""

    n_cells: int = 5000
    n_genes: int = 200
    n_perturbations: int = 20
    n_latent: int = 5
    n_combinations: int = 5
    active: float = 1.6  # mechanisms a perturbation moves, on average; each moves at least one
    effect_size: float = 3.0  # basal standard deviations
    depth: float = 3000.0  # median counts per cell
    seed: int = 0


class Truth(NamedTuple):
    """The answer behind simulated cells."""

    mask: Bool[np.ndarray, "T K"]
    embedding: Float[np.ndarray, "T K"]
    z_basal: Float[np.ndarray, "N K"]
    model: SAMSVAE  # its decoder and concentrations drew the counts


def simulate(design: Design) -> tuple[CellData, Truth]:
    """Cells and the truth they were drawn from, the same for the same seed.

    Raises ValueError where there are fewer cells than conditions, or too few pairs to combine.
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
    z = z_basal + rows[which] @ embedding
    counts = draw_counts(model, z, library, design.seed)
    names = np.array([f"P{i:0{len(str(shape[0]))}d}" for i in range(1, shape[0] + 1)])
    labels = ["control"] + ["+".join(names[list(members)]) for members in conditions]
    data = CellData(
        counts=counts,
        dosages=sp.csr_matrix(rows[which]),
        library=np.asarray(counts.sum(axis=1), dtype=np.float32).ravel(),
        cells=np.array([f"cell{i}" for i in range(design.n_cells)]),
        genes=np.array([f"gene{i}" for i in range(1, design.n_genes + 1)]),
        perturbations=names,
        conditions=np.array(labels)[which],
        control="control",
        has_size_factor=False,
        source={"file": "simulated", "perturbation_key": "perturbation", "notes": []},
    )
    return data, Truth(mask, embedding, z_basal, model)


def simulated_conditions(design: Design) -> list[tuple[int, ...]]:
    """Every single perturbation, and as many different pairs as were asked for."""
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
    """A decoder that a latent step visibly changes, with genes of many levels of expression."""
    config = ModelConfig(design.n_genes, design.n_perturbations, design.n_latent, n_hidden=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(design.seed)
        model = SAMSVAE(config).requires_grad_(False)
        torch.nn.init.orthogonal_(model.decoder.hidden.weight, gain=1.5)
        torch.nn.init.orthogonal_(model.decoder.out.weight, gain=1.5)
        model.decoder.out.bias.normal_(0, 1)
        model.log_concentration.fill_(3.0)
    return model


def draw_counts(
    model: SAMSVAE,
    z: Float[np.ndarray, "N K"],
    library: Float[np.ndarray, " N"],
    seed: int,
) -> sp.csr_matrix:
    """Negative binomial counts of each cell at its latent state, as float32 CSR."""
    blocks = []
    states = torch.as_tensor(z, dtype=torch.float32)
    depths = torch.as_tensor(library, dtype=torch.float32)[:, None]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(seed)
        for part, depth in zip(
            states.split(CELLS_AT_ONCE), depths.split(CELLS_AT_ONCE), strict=True
        ):
            blocks.append(sp.csr_matrix(model.decode(part[None], depth).sample()[0].numpy()))
    return sp.vstack(blocks, format="csr")


def write_h5ad(data: CellData, truth: Truth, path: Path) -> None:
    """Keep simulated cells as an .h5ad, with the truth in `uns`. Written whole or not at all."""
    import tempfile

    import anndata
    import pandas as pd

    table = anndata.AnnData(
        X=data.counts,
        obs=pd.DataFrame({"perturbation": data.conditions}, index=data.cells),
        var=pd.DataFrame(index=data.genes),
        uns={"true_mask": truth.mask.astype(np.int8), "true_embedding": truth.embedding},
    )
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "simulated.h5ad"
        table.write_h5ad(temporary)
        atomic_write(path, temporary.read_bytes())
