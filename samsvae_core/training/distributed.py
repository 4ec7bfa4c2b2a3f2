"""Train one model in several processes started by torchrun (docs/scale.md).

Each process takes its share of every batch, and DistributedDataParallel averages their gradients.
Only the first process writes. In a single process nothing here has an effect.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

TIMEOUT = 1800.0  # seconds a process waits for the others, reading data included
NETWORK = "gloo", "nccl", "connection", "timed out", "timeout", "socket", "store"
Module = TypeVar("Module", bound=nn.Module)


class LostError(ValueError):
    """The processes can no longer train together; the message says what to do."""


def first() -> bool:
    """Return whether this process is the one that writes."""
    return rank() == 0


def first_started() -> bool:
    """Return the same before `group` is entered, from torchrun's environment."""
    return os.environ.get("RANK", "0") == "0"


def rank() -> int:
    return dist.get_rank() if together() else 0


def size() -> int:
    return dist.get_world_size() if together() else 1


def together() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def group(device: torch.device) -> Iterator[torch.device]:
    """Join torchrun's other processes, if any, and give the device to use."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    own = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if own >= there:
            raise ValueError(
                f"More processes than GPUs: torchrun started {os.environ['LOCAL_WORLD_SIZE']} "
                f"here, where there are {there}. Use --nproc-per-node {there}, or --device cpu."
            )
        device = torch.device("cuda", own)
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    seconds = float(os.environ.get("SAMSVAE_TIMEOUT", TIMEOUT))
    with as_lost_error():
        dist.init_process_group(backend, timeout=timedelta(seconds=seconds))
    try:
        yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def as_lost_error() -> Iterator[None]:
    """Turn torch's error about a lost process into a message the user can act on."""
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        lost = isinstance(error, dist.DistError) or any(word in said.lower() for word in NETWORK)
        if not (lost and int(os.environ.get("WORLD_SIZE", "1")) > 1):
            raise
        raise LostError(
            "Another process of this training has ended, or does not answer. Its own message says "
            "why. What was trained up to the last checkpoint is kept: start all processes again "
            f"with --resume. ({said[:200]})"
        ) from error


def wait() -> None:
    """Wait until all processes are here."""
    if together():
        with as_lost_error():
            total(torch.zeros(1, device=own_device()))


def own_device() -> torch.device:
    on_gpu = dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def total(value: Tensor) -> Tensor:
    """Return the sum over processes."""
    if together():
        dist.all_reduce(value)
    return value


def broadcast(value: Tensor) -> Tensor:
    """Return the first process's value."""
    if together():
        value = value.contiguous()
        dist.broadcast(value, 0)
    return value


def anyone(asks: bool) -> bool:
    """Return whether any process asks."""
    return asks if not together() else total(torch.tensor(+asks, device=own_device())).item() > 0


def check_same(what: str, number: int) -> None:
    """Raise LostError if the processes find different numbers."""
    if together():
        numbers = torch.zeros(size(), dtype=torch.int64, device=own_device())
        numbers[rank()] = number
        found = total(numbers).tolist()
        if len(set(found)) > 1:
            raise LostError(
                f"The processes find different {what} ({', '.join(map(str, found))}). The run "
                "folder and the data must be on a file system that all of them share."
            )


def averaged(module: Module) -> Module | DistributedDataParallel:
    """Return the module with gradients averaged over processes, starting from equal weights.

    Buffers are not sent: on GPUs, processes may keep other numbers of direct effects.
    """
    return DistributedDataParallel(module, forward_sync_buffers=False) if together() else module


def share(index: Int[Tensor, " N"]) -> tuple[Int[Tensor, " M"], float]:
    """Return this process's cells of a batch, and the weight of their mean.

    The average over processes of weight x mean is the mean over the batch, however it is divided. A
    process with no cell left gets one with weight 0.
    """
    if not together():
        return index, 1.0
    mine = index[rank() :: size()]
    return (mine if len(mine) else index[:1]), len(mine) * size() / len(index)


@contextmanager
def own_draws(device: torch.device) -> Iterator[None]:
    """Draw this process's own random numbers inside; before and after, all processes agree."""
    if not together():
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank())
        yield
