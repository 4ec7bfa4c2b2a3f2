"""The state of the server: versions, device, memory, disk and limits.

What cannot be found out is None, which the page shows as a dash.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from app.server import uploads
from samsvae_core.bundle.layout import version
from samsvae_core.system import cache, machine
from samsvae_core.system.files import OutputError, cache_folder

PACKAGES = ("streamlit", "torch", "anndata", "plotly", "gseapy", "umap-learn")
SMI = ("nvidia-smi", "--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
PATIENCE = 5  # seconds to wait for nvidia-smi


class Gpu(NamedTuple):
    """A GPU, with its total and used memory in bytes."""

    name: str
    total: int
    used: int


class Place(NamedTuple):
    """A folder that the server writes to, with the free and total bytes of its disk."""

    what: str
    path: Path
    free: int | None
    total: int | None


def versions() -> dict[str, str]:
    """Return the versions of the program, Python and the main packages, by name."""
    own = version("samsvae-explorer") or "not installed as a package"
    found = {name: version(name) or "missing" for name in PACKAGES}
    return {"SAMS-VAE Explorer": own, "Python": platform.python_version(), **found}


def cores() -> tuple[float, int]:
    """Return the number of cores that may be used, and of threads that torch uses."""
    return machine.cores(), torch.get_num_threads()


def gpus() -> list[Gpu]:
    """Return the GPUs by nvidia-smi; torch would keep GPU memory if it were asked."""
    if shutil.which(SMI[0]) is None:
        return []
    try:
        told = subprocess.run(SMI, capture_output=True, text=True, timeout=PATIENCE, check=True)
        rows = [line.rsplit(",", 2) for line in told.stdout.splitlines() if line.strip()]
        return [Gpu(name.strip(), int(a) * 2**20, int(b) * 2**20) for name, a, b in rows]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def device() -> str:
    """Return a description of the device that trains here."""
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU"
    if gpus():
        return "CPU: there is a GPU, but this build of torch cannot use it"
    return "CPU: there is no GPU that torch can use"


def memory() -> tuple[int | None, int | None]:
    """Return the bytes of memory that this server uses, and that it may use."""
    try:
        return int(psutil.Process().memory_info().rss), machine.memory_here()
    except (psutil.Error, OSError):  # a system that does not tell
        return None, None


def places() -> list[Place]:
    """Return the folders that the server writes to."""
    return [
        place("Runs and uploads", uploads.runs_folder()),
        place("Cache", cache_folder()),
    ]


def place(what: str, path: Path) -> Place:
    """Return a folder with its disk; the folder need not exist yet."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        disk = shutil.disk_usage(there)
    except OSError:
        return Place(what, path, None, None)
    return Place(what, path, disk.free, disk.total)


def limits() -> dict[str, str]:
    """Return the limits in words, by environment variable; an invalid one has its message."""
    asked = {
        uploads.LARGEST_UPLOAD: uploads.largest_upload,
        uploads.LARGEST_TOTAL: uploads.largest_total,
        cache.LIMIT: cache.limit,
    }
    return {variable: megabytes(limit) for variable, limit in asked.items()}


def megabytes(limit: Callable[[], int]) -> str:
    try:
        return f"{limit() / 2**20:,.0f} MB"
    except OutputError as error:
        return str(error)
