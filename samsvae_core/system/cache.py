"""What is kept between runs and can be made again: its size, its limit, and how it is emptied.

Libraries downloaded from Enrichr are in the cache folder too, and stay: the network may be gone.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

from samsvae_core.system.files import cache_folder, megabytes

FOLDERS = ("effects", "enrichment")  # whose files can be made again
LIMIT, USUAL_MB = "SAMSVAE_CACHE_MB", 2_000  # twenty large models with their shifts


class Kept(NamedTuple):
    """A file of the cache; size in bytes, `used` in seconds since 1970."""

    path: Path
    size: int
    used: float


def limit() -> int:
    """Bytes that may be kept: SAMSVAE_CACHE_MB."""
    return megabytes(LIMIT, USUAL_MB)


def files() -> list[Kept]:
    """Every file that can be made again, the one used longest ago first."""
    found = []
    for folder in FOLDERS:
        with contextlib.suppress(OSError):
            for path in (cache_folder() / folder).iterdir():
                with contextlib.suppress(OSError):  # has gone since
                    about = path.lstat()
                    found.append(Kept(path, about.st_size, about.st_mtime))
    return sorted(found, key=lambda kept: (kept.used, kept.path))


def size() -> int:
    """Bytes of all of them."""
    return sum(kept.size for kept in files())


def use(path: Path) -> None:
    """Note that a file was of use, so that others go before it."""
    with contextlib.suppress(OSError):
        os.utime(path)


def make_room(newest: Path) -> int:
    """Remove what was used longest ago until the limit holds; bytes removed. `newest` stays."""
    kept = files()
    over = sum(file.size for file in kept) - limit()
    removed = 0
    for file in kept:
        if removed < over and file.path != newest:
            removed += _remove(file)
    return removed


def clear() -> int:
    """Remove everything that can be made again; bytes removed."""
    return sum(_remove(file) for file in files())


def _remove(file: Kept) -> int:
    """Bytes; a file that is in use goes on being readable by who has it open."""
    try:
        file.path.unlink()
    except OSError:
        return 0
    return file.size
