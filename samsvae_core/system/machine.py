"""The processors and memory of the machine, or of the container it runs in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

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
    machine = _memory_of_machine()
    try:
        limit = ((cgroup or CGROUP) / "memory.max").read_text().strip()
    except OSError:  # not in a container
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def _memory_of_machine() -> int:
    """Return the bytes of memory; sys.maxsize if the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def memory_free(cgroup: Path | None = None) -> int:
    """Return the bytes of memory one training process may still take, file caches included."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux
        free = _memory_of_machine()
    folder = cgroup or CGROUP
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if limit.isdecimal():
            free = min(free, int(limit) - used + int(stat.get("file", 0)))
    except (OSError, ValueError):  # not in a container
        pass
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
