"""The processors and memory of the machine, or of the container it runs in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
LOADAVG = Path("/proc/loadavg")


def cores(cgroup: Path | None = None) -> float:
    """Return the number of usable processors; in a container it may be 1.5."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    n = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, _, period = ((cgroup or CGROUP) / "cpu.max").read_text().partition(" ")
    except OSError:  # not in a container
        return n
    if quota.isdigit() and period.strip().isdigit():
        n = min(n, int(quota) / int(period))
    return n


def whole_cores() -> int:
    """Return the same as a number of workers, at least one."""
    return max(1, int(cores()))


def is_busy() -> bool:
    """Return whether other processes compute at this moment; False if the system does not say."""
    try:
        running = int(LOADAVG.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):  # not Linux
        return False
    return running > 1  # this process is one


def memory_here(cgroup: Path | None = None) -> int:
    """Return the bytes of memory of the machine, or the limit of its container."""
    machine, _ = _memory_of_machine()
    return min(machine, _limit(cgroup or CGROUP) or machine)


def memory_free(cgroup: Path | None = None) -> int:
    """Return the bytes of memory one training process may still take, file caches included."""
    _, free = _memory_of_machine()
    folder = cgroup or CGROUP
    if limit := _limit(folder):
        try:
            used = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            free = min(free, limit - used + int(stat.get("file", 0)))
        except (OSError, ValueError):  # a container that does not tell
            pass
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _memory_of_machine() -> tuple[int, int]:
    """Bytes, and those that are free; where the system does not tell, taken for large enough."""
    try:
        found = psutil.virtual_memory()
    except OSError:
        return sys.maxsize, sys.maxsize
    return int(found.total), int(found.available)


def _limit(cgroup: Path) -> int | None:
    """Bytes that a container may take, if it has a limit; psutil knows nothing of containers."""
    try:
        limit = (cgroup / "memory.max").read_text().strip()
    except OSError:  # not in a container
        return None
    return int(limit) if limit.isdecimal() else None
