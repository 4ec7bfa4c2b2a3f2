"""A run folder while it is trained: who trains it, how far that is, and how it ended.

status.json says so to whoever looks, the dashboard or a person: state (reading, training,
making tables, finished, stopped or failed), message, device, steps, step, epoch, seconds (trained
so far), step_seconds, and the process: pid, started, boot. A lock on the folder, which the system
takes away from a process that ends, keeps a second one out.
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
JOB = "job.json"  # what the dashboard was asked for
BEFORE = (JOB, "log.txt", STATUS, "split.csv", "genes.csv")  # what is there before config.json
LARGEST = 10**6  # bytes of a status that is read
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # files of atomic_write before they are whole
PROC = Path("/proc")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")
ON_GPU = "cuda", "cublas", "cudnn"


# Processes


class Process(NamedTuple):
    """A process and nothing that comes after it: a number is used again, a start is not.

    `started` is in ticks since the machine was booted, so that no clock can be wrong; `boot` tells
    the boots of all machines apart.
    """

    pid: int
    started: str
    boot: str


def process(pid: int) -> Process | None:
    """The process that has this number now, if there is one that runs."""
    if pid <= 0:
        return None
    if not PROC.is_dir():
        return _process_without_proc(pid)
    try:
        content = (PROC / str(pid) / "stat").read_text(errors="replace")
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    fields = content.rpartition(")")[2].split()  # the name before may hold anything
    if len(fields) < 20 or fields[0] in "ZX":  # it has ended, and nobody has asked how
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
    """Whether the process that a status or a job names still runs."""
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
    """status.json; empty where there is none, or one that is damaged."""
    return read_object(run / STATUS)


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a small file; empty for anything else."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_status(run: Path, content: dict[str, Any]) -> None:
    """Whole or not at all; on a full disk in place, which takes no room."""
    text = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    try:
        atomic_write(run / STATUS, text)
    except OutputError as error:
        if not is_full(error):
            raise
        with contextlib.suppress(OSError), (run / STATUS).open("r+b") as file:
            file.write(text)
            file.truncate()


class Record:
    """The status of a run that this process trains."""

    def __init__(self, run: Path) -> None:
        before = read_status(run)
        self.run = run
        self.began = time.monotonic()
        self.seconds = _number(before.get("seconds"))  # of those who trained before
        self.paced: tuple[int, float] | None = None  # step and time, since the pace is measured
        kept = {k: before[k] for k in ("steps", "step", "epoch", "step_seconds") if k in before}
        own = process(os.getpid())
        self.content: dict[str, Any] = {"state": "reading"} | kept
        self.content |= own._asdict() if own else {"pid": os.getpid()}

    def say(self, state: str, **more: Any) -> None:
        self.content |= {"state": state, **more}
        self.content["seconds"] = round(self.seconds + time.monotonic() - self.began, 1)
        write_status(self.run, self.content)

    def epoch_done(self, epoch: int, step: int) -> None:
        """Note an epoch, and the pace of steps since the first one of this process ended."""
        now = time.monotonic()
        if self.paced is None or step <= self.paced[0]:
            self.paced = step, now
        else:
            pace = (now - self.paced[1]) / (step - self.paced[0])
            self.content["step_seconds"] = float(f"{pace:.4g}")
        self.say("training", epoch=epoch, step=step)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and 0 <= value < 1e12 else 0.0


_records: dict[Path, Record] = {}  # of the runs that this process trains


@contextlib.contextmanager
def recorded(run: Path) -> Iterator[Record]:
    """Train in a folder that exists: its status tells how the block goes on, and how it ended.

    Within another such block it is that one. Raises OutputError where another process trains there.
    """
    path = run.resolve()
    if path in _records:
        yield _records[path]
        return
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            is_ours = hold(descriptor)
        except OSError:  # a file system without locks: whoever trains there looks to it
            is_ours = True
        if not is_ours:
            pid = read_status(run).get("pid", "unknown")
            raise OutputError(
                f"Another process (number {pid}) trains in {run}. Wait until it has ended, or stop "
                "it first."
            )
        refuse_finished(run)
        record = _records[path] = Record(run)
        try:
            sweep(run)
            record.say("reading")
            yield record
        except BaseException as error:
            if isinstance(getattr(signal.getsignal(signal.SIGALRM), "__self__", None), Stopper):
                insist(0.0)  # a Stopper's own; no other timer is touched
            with contextlib.suppress(OutputError):  # the error itself is what is to be heard of
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
    """Whether a job's folder holds no run yet, only what a job begins with."""
    try:
        names = {path.name for path in run.iterdir() if not TEMPORARY.fullmatch(path.name)}
    except OSError:
        return False
    return JOB in names and names <= set(BEFORE)


def sweep(run: Path) -> None:
    """Remove what a process that was killed had not finished writing."""
    for path in run.rglob(".*"):
        if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


# Ends


def is_full(error: BaseException | None) -> bool:
    """Whether a disk that is full, or a limit of sizes, is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        error = error.__cause__
    return False


def is_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch says so in words."""
    text = f"{type(error).__name__} {error}".lower()
    words = isinstance(error, RuntimeError) and any(word in text for word in MEMORY)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words


def reason(error: BaseException) -> str:
    """Why training ended, and what to change, for people."""
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
            f"smaller --batch-size, --hidden or --particles{', or --device cpu,' * gpu} helps, "
            "too. A run that had begun can be resumed when nothing else takes the memory."
        )
    return said if isinstance(error, ValueError) else f"{type(error).__name__}: {said}"


class Stopper:
    """Hears SIGTERM and Ctrl-C: the first asks for the end of the epoch, the second ends at once.

    Where no epoch is under way the first one ends at once, too. An exception that is raised while
    a compiler calls back into Python is lost (numba's, while UMAP is compiled), so it is raised
    again every AGAIN seconds until it has come through.
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
        with contextlib.suppress(OSError):  # not by print, which a signal may have broken into
            os.write(2, b"Stopping at the end of this epoch; once more stops at once.\n")

    def hear_again(self, number: int, frame: FrameType | None) -> None:
        raise Stop

    def epoch_done(self) -> None:
        """Between two epochs: raises Stop, if that was asked for."""
        if self.asked:
            raise Stop


def insist(seconds: float) -> None:
    """Raise Stop again every so many seconds; 0 ends that."""
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


@contextlib.contextmanager
def stoppable() -> Iterator[Stopper]:
    """While the block runs, signals to end are heard by the Stopper."""
    stopper = Stopper()
    before = {number: signal.signal(number, stopper.hear) for number in Stopper.SIGNALS}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, stopper.hear_again)
    try:
        yield stopper
    finally:
        insist(0.0)
        for number, handler in before.items():
            signal.signal(number, handler)
