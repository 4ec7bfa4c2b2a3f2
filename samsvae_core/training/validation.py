"""The bound on validation cells, by which the best epoch is chosen."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from samsvae_core.models.bounds import cell_terms
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.training import distributed
from samsvae_core.training.config import Progress

VALIDATION_BATCH = 2048  # cells at a time; limits memory without changing the figure
VALIDATION_SAMPLES = 2  # per cell, whatever the particles of training, so that runs compare


def validation_bound(model: SAMSVAE, cells: Cells) -> float:
    """Return the predictive bound by which epochs compare, the same in all processes."""
    return validation_bounds(model, cells).mean().item()


def validation_bounds(model: SAMSVAE, cells: Cells) -> Float[Tensor, " N"]:
    """Return the same of each cell."""
    bounds = cell_bounds(model, cells, VALIDATION_SAMPLES).to(cells.device)
    return distributed.broadcast(bounds)


def predictive_bound(model: SAMSVAE, cells: Cells, n_samples: int) -> float:
    """Return the mean bound on log p(x) under q(effects), without its KL, in nats per cell."""
    return cell_bounds(model, cells, n_samples).mean().item()


@torch.inference_mode()
def cell_bounds(model: SAMSVAE, cells: Cells, n_samples: int, seed: int = 0) -> Float[Tensor, " N"]:
    """Return the predictive bound of each cell, in nats, on the CPU.

    Draws are the same at every call, so that epochs and models compare cell by cell.
    """
    devices = [cells.device] if cells.device.type == "cuda" else []
    blocks = []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        effects = model.effects(n_samples)
        for index in torch.arange(len(cells), device=cells.device).split(VALIDATION_BATCH):
            log_px, kl_basal = cell_terms(model, cells.batch(index), effects)
            blocks.append((log_px - kl_basal).mean(0).double().cpu())
    return torch.cat(blocks)


def best_epoch(history: list[Progress]) -> Progress | None:
    """Return the epoch with the highest validation bound after annealing, if there is one."""
    ended = [progress for progress in history if progress.anneal >= 1]
    return max(ended, key=lambda progress: progress.validation_bound, default=None)
