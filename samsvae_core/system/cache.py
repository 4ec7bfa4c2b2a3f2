"""The cache of results that can be made again: its size, its limit, and how it is emptied.

Libraries downloaded from Enrichr are in the cache folder too, but are kept, since the network may
be gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from samsvae_core.system.files import cache_folder, megabytes

FOLDERS = ("effects", "enrichment")  # folders of files that can be made again
LIMIT, USUAL_MB = "SAMSVAE_CACHE_MB", 2_000  # room for twenty large models with their shifts


class CacheFile(NamedTuple):
    """A file of the cache; size in bytes, `used` in seconds since 1970."""

    path: Path
    size: int
    used: float


def limit() -> int:
    """Return the most bytes to keep, from SAMSVAE_CACHE_MB."""
    return megabytes(LIMIT, USUAL_MB)


def files() -> list[CacheFile]:
    """Return every file that can be made again, the least recently used first."""
    found = []
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            for path in (cache_folder() / folder).iterdir():
                with contextlib.suppress(OSError):  # removed meanwhile
                    about = path.lstat()
                    found.append(CacheFile(path, about.st_size, about.st_mtime))
    return sorted(found, key=lambda kept: (kept.used, kept.path))


def size() -> int:
    """Return the bytes of all cached files."""
    return sum(kept.size for kept in files())


def use(path: Path) -> None:
    """Mark a file as just used, so that others are removed before it."""
    with contextlib.suppress(OSError):
        os.utime(path)


def make_room(newest: Path) -> int:
    """Remove the least recently used files, except `newest`, down to the limit; returns bytes."""
    kept = files()
    over = sum(file.size for file in kept) - limit()
    removed = 0
    for file in kept:
        if removed < over and file.path != newest:
            removed += _remove(file)
    return removed


def clear() -> int:
    """Remove everything that can be made again; returns the bytes."""
    return sum(_remove(file) for file in files())


def _remove(file: CacheFile) -> int:
    """Remove a file and return its bytes; processes that have it open can still read it."""
    try:
        file.path.unlink()
    except OSError:
        return 0
    return file.size
