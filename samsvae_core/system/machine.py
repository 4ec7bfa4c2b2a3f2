"""The processors and the memory that there are: of the machine, or of the container it is in."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LOADAVG = Path("/proc/loadavg")


def cores(cgroup: Path | None = None) -> float:
    """Processors that may be used, as far as the system says: a container may have 1.5."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    n = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, _, period = ((cgroup or CGROUP) / "cpu.max").read_text().partition(" ")
    except OSError:  # no container
        return n
    if quota.isdigit() and period.strip().isdigit():
        n = min(n, int(quota) / int(period))
    return n


def whole_cores() -> int:
    """The same as a number of workers: at least one."""
    return max(1, int(cores()))


def is_busy() -> bool:
    """Whether others compute here at this moment; a system that does not tell is taken for free."""
    try:
        running = int(LOADAVG.read_text().split()[3].partition("/")[0])
    except (OSError, ValueError, IndexError):  # no Linux
        return False
    return running > 1  # this process is one


def memory_here(cgroup: Path | None = None) -> int:
    """Bytes of memory of this machine, or of the container it is in, if that has a limit."""
    machine = _memory_of_machine()
    try:
        limit = ((cgroup or CGROUP) / "memory.max").read_text().strip()
    except OSError:  # no container
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def _memory_of_machine() -> int:
    """Bytes; where the system does not tell (Windows) it is taken for large enough."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def memory_free(cgroup: Path | None = None) -> int:
    """Bytes of memory that one process of a training may still take, files in memory let go of."""
    try:
        told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(told["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # no Linux
        free = _memory_of_machine()
    folder = cgroup or CGROUP
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        if limit.isdecimal():
            free = min(free, int(limit) - used + int(stat.get("file", 0)))
    except (OSError, ValueError):  # no container
        pass
    return max(0, free) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
