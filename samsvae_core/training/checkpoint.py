"""Checkpoints: what a training stores so that it can be resumed."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.system.files import atomic_write
from samsvae_core.training.config import Progress, TrainConfig, TrainingError
from samsvae_core.training.validation import best_epoch

PAUSE = 5.0  # least seconds between two checkpoints; a kill loses as much


class CheckpointWriter:
    """Stores the last whole epoch: on the device at once, in the run folder from time to time."""

    def __init__(self, run: Path) -> None:
        self.history, self.last = run / "history.csv", run / "checkpoints" / "last.safetensors"
        self.kept: tuple[dict[str, Tensor], list[Progress]] | None = None  # not written yet
        self.due = 0.0

    def keep(self, state: dict[str, Tensor], history: list[Progress]) -> None:
        self.kept = state, list(history)
        if time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        """Write what is pending, then pause for PAUSE seconds, or longer if writing is slow."""
        if self.kept is None:
            return
        began = time.monotonic()
        state, history = self.kept
        tensors = {name: value.cpu().contiguous() for name, value in state.items()}
        content = save(tensors, metadata={"history": json.dumps(history)})
        # history before checkpoint: if killed in between, epochs are only trained again
        atomic_write(self.history, pd.DataFrame(history).to_csv(index=False).encode())
        atomic_write(self.last, content)
        self.kept = None
        ended = time.monotonic()
        self.due = ended + PAUSE * max(1.0, 2 * (ended - began))


def finished(history: list[Progress], config: TrainConfig) -> bool:
    """Return whether all steps are done, or the bound has not risen for `patience` epochs."""
    if not history:
        return config.steps <= 0
    best = best_epoch(history)
    stalled = best is not None and history[-1].epoch - best.epoch >= config.patience
    return history[-1].step >= config.steps or stalled


def checkpoint(model: SAMSVAE, optimizer: torch.optim.Adam) -> dict[str, Tensor]:
    """Return copies, on their device, of the weights, Adam's moments and the random state."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
    tensors = {name: value.clone() for name, value in tensors.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if model.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(model.device)
    return tensors


def restore(path: Path, model: SAMSVAE, optimizer: torch.optim.Adam) -> list[Progress]:
    """Restore model, optimizer and random state in place; returns the history so far.

    Raises TrainingError for a file that is not a checkpoint of this model.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            history = [Progress(*row) for row in json.loads(file.metadata()["history"])]
        model.load_state_dict(section(tensors, "model."))
        state = optimizer.state_dict()
        count = sum(len(group["params"]) for group in state["param_groups"])
        state["state"] = {i: section(tensors, f"adam.{i}.") for i in range(count)}
        optimizer.load_state_dict(state)
        torch.set_rng_state(tensors["rng.cpu"])
        device = model.device
        if device.type == "cuda" and "rng.cuda" in tensors:
            torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        why = " ".join(str(error).split())  # torch writes a line per tensor
        raise TrainingError(
            f"{path} does not hold a checkpoint of this model ({why}). "
            "Resume with the settings the run was started with, or start a new run."
        ) from error
    return history


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
