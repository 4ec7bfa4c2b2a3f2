"""The processors that there are for this process: of the machine, or of the container it is in."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


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
