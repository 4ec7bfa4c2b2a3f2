"""A run folder while it is trained: its process, its progress and how it ended.

status.json holds them for the dashboard and for people: state (reading, training, making tables,
finished, stopped or failed), message, device, steps, step, epoch, seconds (trained so far),
step_seconds, and the process: pid, started, boot. A lock on the folder, which the system releases
when the process ends, keeps a second process out.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil

from samsvae_core.system.files import OutputError, atomic_write, hold
from samsvae_core.training.config import Stop

STATUS = "status.json"
JOB = "job.json"  # the dashboard's request
BEFORE = (JOB, "log.txt", STATUS, "split.csv", "genes.csv")  # files written before config.json
LARGEST = 10**6  # most bytes read of a status
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # unfinished files of atomic_write
PROC = Path("/proc")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
ON_GPU = "cuda", "cublas", "cudnn"


# Processes


class Process(NamedTuple):
    """A process, identified so that a later one with the same number is not mistaken for it.

    `started` is in ticks since the machine was booted, so that a wrong clock does not matter;
    `boot` identifies the boot of the machine.
    """

    pid: int
    started: str
    boot: str


def process(pid: int) -> Process | None:
    """Return the running process with this number, or None."""
    if pid <= 0:
        return None
    if not PROC.is_dir():
        return _process_without_proc(pid)
    try:
        content = (PROC / str(pid) / "stat").read_text(errors="replace")
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = content.rpartition(")")[2].split()  # the name before it may hold anything
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie: it has ended
        return None
    return Process(pid, fields[19], boot)


def _process_without_proc(pid: int) -> Process | None:
    """The same where there is no /proc. Linux does not go here: a start by the clock may change."""
    try:
        found = psutil.Process(pid)
        has_ended = found.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return None if has_ended else Process(pid, str(found.create_time()), "")
    except psutil.Error:
        return None


def alive(content: dict[str, Any]) -> bool:
    """Return whether the process named in a status or a job still runs."""
    pid = content.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool):
        return False
    found = process(pid)
    return found is not None and (found.started, found.boot) == (
        content.get("started"),
        content.get("boot"),
    )


# The status


def read_status(run: Path) -> dict[str, Any]:
    """Return the content of status.json; empty if it is absent or damaged."""
    return read_object(run / STATUS)


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object from a small file; empty for anything else."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_status(run: Path, content: dict[str, Any]) -> None:
    """Write the status whole or not at all; on a full disk in place, which takes no room."""
    text = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        atomic_write(run / STATUS, text)
    except OutputError as error:
        if not is_full(error):
            raise
        with contextlib.suppress(OSError), (run / STATUS).open("r+b") as file:
            file.write(text)
            file.truncate()


class RunStatus:
    """The status of a run that this process trains."""

    def __init__(self, run: Path) -> None:
        before = read_status(run)
        self.run = run
        self.began = time.monotonic()
        self.seconds = _number(before.get("seconds"))  # of earlier processes
        self.paced: tuple[int, float] | None = None  # first step and time of the pace
        kept = {k: before[k] for k in ("steps", "step", "epoch", "step_seconds") if k in before}
        own = process(os.getpid())
        self.content: dict[str, Any] = {"state": "reading"} | kept
        self.content |= own._asdict() if own else {"pid": os.getpid()}

    def say(self, state: str, **more: Any) -> None:
        self.content |= {"state": state, **more}
        self.content["seconds"] = round(self.seconds + time.monotonic() - self.began, 1)
        write_status(self.run, self.content)

    def epoch_done(self, epoch: int, step: int) -> None:
        """Record an epoch, and the pace of steps since this process's first epoch ended."""
        now = time.monotonic()
        if self.paced is None or step <= self.paced[0]:
            self.paced = step, now
        else:
            pace = (now - self.paced[1]) / (step - self.paced[0])
            self.content["step_seconds"] = float(f"{pace:.4g}")
        self.say("training", epoch=epoch, step=step)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else 0.0


_records: dict[Path, RunStatus] = {}  # runs that this process trains


@contextlib.contextmanager
def recorded(run: Path) -> Iterator[RunStatus]:
    """Record the course and the end of the block in the status of an existing folder.

    A nested block for the same folder uses the outer one's record. Raises OutputError if another
    process trains there.
    """
    path = run.resolve()
    if path in _records:
        yield _records[path]
        return
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            is_ours = hold(descriptor)
        except OSError:  # a file system without locks: users have to take care themselves
            is_ours = True
        if not is_ours:
            pid = read_status(run).get("pid", "unknown")
            raise OutputError(
                f"Another process (number {pid}) trains in {run}. Wait until it has ended, or stop "
                "it first."
            )
        refuse_finished(run)
        record = _records[path] = RunStatus(run)
        try:
            sweep(run)
            record.say("reading")
            yield record
        except BaseException as error:
            if isinstance(getattr(signal.getsignal(signal.SIGALRM), "__self__", None), Stopper):
                insist(0.0)  # only if the timer is a Stopper's
            with contextlib.suppress(OutputError):  # the original error matters more
                if isinstance(error, (Stop, KeyboardInterrupt)):
                    record.say("stopped", message="")
                else:
                    record.say("failed", message=reason(error))
            raise
        record.say("finished", message="")
    finally:
        _records.pop(path, None)
        os.close(descriptor)


def refuse_finished(run: Path) -> None:
    if (run / "manifest.json").exists():
        raise OutputError(f"{run} is finished: it is a bundle already. Nothing to resume.")


def is_prepared(run: Path) -> bool:
    """Return whether a job's folder holds only what a job begins with, and no run yet."""
    try:
        names = {path.name for path in run.iterdir() if not TEMPORARY.fullmatch(path.name)}
    except OSError:
        return False
    return JOB in names and names <= set(BEFORE)


def sweep(run: Path) -> None:
    """Remove unfinished files of a process that was killed."""
    for path in run.rglob(".*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


# Ends


def is_full(error: BaseException | None) -> bool:
    """Return whether an error comes from a full disk or a limit of file sizes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def is_memory(error: BaseException) -> bool:
    """Return whether memory ran out, which torch reports in words only."""
    text = f"{type(error).__name__} {error}".lower()
    words = isinstance(error, RuntimeError) and any(word in text for word in MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words


def reason(error: BaseException) -> str:
    """Return why training ended and what to change, in words."""
    said = " ".join(str(error).split())[:500] or type(error).__name__
    if is_full(error):
        return (
            f"The disk is full, or a limit of file sizes is reached ({said}). Make room and try "
            "again; a run that had begun is kept up to its last checkpoint and can be resumed."
        )
    if is_memory(error):
        gpu = any(word in said.lower() for word in ON_GPU)
        return (
            f"There is not enough memory {'on the GPU' if gpu else 'here'} ({said}). Keep fewer "
            "cells or genes (--top-genes), or use a machine with more memory; in training, a "
            f"smaller --batch-size, --hidden or --particles{', or --device cpu,' * gpu} also "
            "helps. A run that had begun can be resumed when nothing else takes the memory."
        )
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


class Stopper:
    """Handles SIGTERM and Ctrl-C: the first ends training after the epoch, the second at once.

    When no epoch is running, the first also ends it at once. An exception raised while a compiler
    calls back into Python is lost (numba's, while UMAP is compiled), so it is raised again every
    AGAIN seconds until it has come through.
    """

    SIGNALS = signal.SIGTERM, signal.SIGINT
    AGAIN = 1.0

    def __init__(self) -> None:
        self.asked = 0  # the signal

    def hear(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, number
        if again or all(record.content["state"] != "training" for record in _records.values()):
            insist(self.AGAIN)
            raise Stop
        with contextlib.suppress(OSError):  # not print, which the signal may have interrupted
            os.write(2, b"Stopping at the end of this epoch; once more stops at once.\n")

    def hear_again(self, number: int, frame: FrameType | None) -> None:
        raise Stop

    def epoch_done(self) -> None:
        """Raise Stop between two epochs, if it was asked for."""
        if self.asked:
            raise Stop


def insist(seconds: float) -> None:
    """Raise Stop again every so many seconds; 0 ends that."""
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


@contextlib.contextmanager
def stoppable() -> Iterator[Stopper]:
    """Let the Stopper handle signals while the block runs."""
    stopper = Stopper()
    before = {number: signal.signal(number, stopper.hear) for number in Stopper.SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stopper.hear_again)
    try:
        yield stopper
    finally:
        insist(0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
