"""Atomic writes, locks, checksums, and where output and cache go."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("samsvae_core", "app")  # in ROOT


class OutputError(ValueError):
    """A place that cannot be written to; the message says what to do."""


def is_message(error: BaseException) -> bool:
    """Return whether an error is a message for the user, raised by this project itself.

    A ValueError from within a library (NumPy, pandas) is a bug of ours, whose message means nothing
    to the user. An OSError names the file that the system refuses, so it is one.
    """
    if not isinstance(error, ValueError):
        return isinstance(error, OSError)
    if type(error).__module__.partition(".")[0] in PACKAGES:
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    source = Path(last.tb_frame.f_code.co_filename).resolve() if last is not None else ROOT
    return any(source.is_relative_to(ROOT / package) for package in PACKAGES)


def atomic_write(path: Path, content: bytes) -> None:
    """Write `content` so that a reader, or a crash, sees the old file or the new one."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp makes it readable by its owner only
        Path(temporary).replace(path)
    except OSError as error:
        raise OutputError(
            f"Cannot write {path}: {error.strerror or error}. Choose another place for the output."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one thread or process at a time into the block; the lock is a file, made if absent.

    Raises OSError if it cannot be made, or if the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        lock_descriptor(descriptor)
        yield
    finally:
        os.close(descriptor)


def hold(descriptor: int) -> bool:
    """Mark an open file as somebody's, until it is closed or the process ends, however it does.

    False where it is another's already. Raises OSError where the file system has no locks.
    """
    return lock_descriptor(descriptor, blocking=False)


def is_held(path: Path) -> bool:
    """Return whether a running process holds this file; if that is unknown, it counts as held.

    An absent file is not held.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not hold(descriptor)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def new_output(path: Path) -> Path:
    """Return `path` if nothing is there and it can be written; raises OutputError."""
    try:
        exists = path.exists()
    except OSError as error:  # a name too long, or a folder without permission
        raise OutputError(
            f"Cannot write {path}: {error.strerror}. Choose another place for the output."
        ) from error
    if exists:
        raise OutputError(f"{path} exists already. Name another output, or remove it first.")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"Cannot write {path}: {folder} is not a folder one can write to. "
            "Choose another place for the output."
        )
    return path


def cache_folder() -> Path:
    """Return the cache folder: SAMSVAE_CACHE, or .cache/samsvae in the user's home.

    Without a home, writing there fails as on a full disk.
    """
    try:
        return Path(os.environ.get("SAMSVAE_CACHE", "~/.cache/samsvae")).expanduser()
    except RuntimeError:  # no home
        return Path(os.devnull, "samsvae")


def megabytes(variable: str, usual: int) -> int:
    """Return the bytes an environment variable sets in MB of 2^20. Raises OutputError."""
    text = os.environ.get(variable) or str(usual)
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise OutputError(f"{variable} is {text!r}; expected whole megabytes, such as {usual}.")
    return int(text) * 2**20


def sha256(path: Path) -> str:
    """Return the checksum of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
