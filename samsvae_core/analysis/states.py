"""Latent states of cells, and the expression decoded from them."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.cells import CellData
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE

CELLS_AT_ONCE = 2048  # dense rows held in memory


@torch.inference_mode()
def embed(bundle: Bundle, data: CellData) -> dict[str, Float[np.ndarray, "N K"]]:
    """Return posterior mean states of cells: "basal", and "shifted" (plus their mean latent shift).

    The two are equal for a model without latent shifts.
    """
    cells = Cells(bundle.align(data), torch.device("cpu"))
    return states(bundle.model, cells)


@torch.inference_mode()
def states(model: SAMSVAE, cells: Cells) -> dict[str, Float[np.ndarray, "N K"]]:
    """Return the same as `embed` for cells already on a device, in batches."""
    basal, shifts = [], []
    for index in torch.arange(len(cells), device=cells.device).split(CELLS_AT_ONCE):
        batch = cells.batch(index)
        shift = model.mean_shift(model.given(batch.D, batch.levels))
        offset = model.mean_offset(batch.D)
        basal.append(model.encode(batch.x, shift[None], offset, batch.levels).loc[0])
        shifts.append(shift if model.has_shifts else torch.zeros_like(basal[-1]))
    start, move = torch.cat(basal).cpu().numpy(), torch.cat(shifts).cpu().numpy()
    return {"basal": start, "shifted": start + move}


@torch.inference_mode()
def decoded_values(bundle: Bundle, gene: str) -> Float[np.ndarray, " N"] | None:
    """Return the decoded level of a gene for each of `bundle.cells`, at its shifted state.

    For counts this is log2(1 + 1e4 p), with p the decoded share: the cell's expected level, free of
    measurement noise. None if the bundle does not hold the whole states.
    """
    states = [f"shifted M{k}" for k in range(bundle.model.config.n_latent)]
    if not set(states) <= set(bundle.cells):
        return None
    z, place = torch.from_numpy(bundle.cells[states].to_numpy()), bundle.genes.index(gene)
    nowhere, model = torch.zeros(bundle.model.n_shift), bundle.model
    parts = [model.level(model.decoded_means(part, nowhere))[:, place] for part in z.split(256)]
    return torch.cat(parts).numpy()
