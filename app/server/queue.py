"""A queue of training runs: processes over run folders, one at a time on each device.

A job is a folder below the runs folder with a job.json: what was asked for, and the process that
was started for it. Everything else is what `samsvae train` writes, so runs from the command line or
another machine are shown too. There is no scheduler: `look`, called by any page of any server,
starts the next jobs, under one lock.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.server import logs
from app.server.runs import BUSY, LOG, Job, brought, find, is_name, listed
from samsvae_core.system.files import OutputError, atomic_write, locked
from samsvae_core.system.machine import whole_cores
from samsvae_core.training.run_folder import (
    JOB,
    alive,
    process,
    read_object,
    read_status,
    write_status,
)

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-m", "samsvae_core")
LOCK = ".queue.lock"
DISCARDED = ".discarded-"  # prefix of folders that are being removed
NICE = 10  # so that training leaves the pages responsive
LONGEST_LOG, KEPT_LOG = 2_000_000, 200_000  # bytes
MOST_WAITING = 50
SPARE = 200 * 10**6  # free bytes on the disk that a new run needs
FIGURES = ("device", "step", "steps", "epoch", "seconds", "step_seconds")  # kept by the next status
_children: list[tuple[Path, subprocess.Popen[bytes]]] = []  # of this server
_reaping = threading.Lock()


def look(folder: Path) -> list[Job]:
    """Start the jobs that are next, and return all runs, newest first."""
    with contextlib.suppress(OutputError), _turn(folder):  # a read-only folder can still be shown
        _reap()
        jobs = listed(folder)
        for job in _next(jobs):
            _launch(job)
        _trim_logs(jobs)
    return sorted(listed(folder), key=lambda job: (-job.place, job.name))


# Asking


def submit(
    folder: Path, name: str, data: Path, arguments: Sequence[str], device: str = "cpu"
) -> Job:
    """Add a run to the queue of its device and return it; raises OutputError."""
    if not is_name(name):
        raise OutputError(
            f"{name[:80]!r} is not a valid name for a run: expected up to 64 letters, digits, "
            "dots, dashes and underscores, a letter or digit first, and not the name uploads."
        )
    with _turn(folder):
        jobs = listed(folder)
        if sum(job.state == "waiting" for job in jobs) >= MOST_WAITING:
            raise OutputError(f"{MOST_WAITING} runs are already waiting. Try again later.")
        if (free := shutil.disk_usage(folder).free) < SPARE:
            raise OutputError(
                f"The disk of {folder} has {free / 1e6:,.0f} MB free; a run needs "
                f"{SPARE / 1e6:,.0f}. Remove what is not needed."
            )
        path = folder / name
        try:
            path.mkdir()
        except FileExistsError:
            raise OutputError(f"There is already a run {name}. Choose another name.") from None
        except OSError as error:
            raise OutputError(f"Cannot make {path}: {error.strerror}.") from error
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        content: dict[str, Any] = {"data": str(data.resolve()), "arguments": list(arguments)}
        content["device"] = device
        content |= {"created": now, "asked": "start", "place": _last(jobs) + 1}
        try:
            _write_job(path, content)
        except OutputError:
            path.rmdir()
            raise
    look(folder)
    return _found(folder, name)


def resume(folder: Path, name: str, device: str = "cpu") -> Job:
    """Queue a stopped, failed or dead run again, to continue; raises OutputError."""
    with _turn(folder):
        job = _found(folder, name)
        if not job.is_own:
            raise OutputError(f"{name} was not started here. {how_to_resume(job)}")
        if job.state in ("stopped", "failed", "dead"):
            asked = {"asked": "start", "device": device, "place": _last(listed(folder)) + 1}
            _change_job(job.path, **asked, stop=None, exit=None)
    look(folder)
    return _found(folder, name)


def how_to_resume(job: Job) -> str:
    """Return the instruction to resume a run that was not started from a page."""
    command = f"samsvae train DATA.h5ad --output {shlex.quote(str(job.path))} --resume"
    return f"Continue it with {command}, with the data file it was started with."


def stop(folder: Path, name: str, at_once: bool = False) -> Job:
    """Stop a run after its epoch, or `at_once`, or take it from the queue.

    It can be resumed. A run that has ended is left as it is.
    """
    with _turn(folder):
        job = _found(folder, name)
        if job.state == "waiting":
            _change_job(job.path, asked="nothing")
        if job.state in BUSY:
            if (job.path / JOB).exists():
                _change_job(job.path, stop="now" if at_once else "soon")
            for content in (read_object(job.path / JOB), read_status(job.path)):
                if alive(content):
                    with contextlib.suppress(OSError):  # it has just ended
                        os.kill(content["pid"], signal.SIGKILL if at_once else signal.SIGTERM)
                    break
    return _found(folder, name)


def discard(folder: Path, name: str) -> None:
    """Remove a run with all its files; links are not followed.

    Raises OutputError for a running job, and for a folder that is not a run started here.
    """
    with _turn(folder):
        job = _found(folder, name)
        if job.path.resolve().parent != folder.resolve():
            raise OutputError(f"{name} is not a folder of {folder}; nothing was removed.")
        if job.state in BUSY:
            raise OutputError(f"{name} is {job.state}. Stop it first, then discard it.")
        if job.state == "finished" and not job.is_own:
            raise OutputError(f"{name} was not trained from here; remove its folder yourself.")
        _remove(job.path)


def remove_model(folder: Path, name: str) -> None:
    """Remove a model that came as a zip, with the names given to its mechanisms.

    Raises OutputError for any other model.
    """
    with _turn(folder):
        path = folder / name
        if name not in brought(folder) or path.resolve().parent != folder.resolve():
            raise OutputError(
                f"There is no model {name[:80]!r} here that was brought as a zip; only those can "
                "be removed."
            )
        _remove(path)
        with contextlib.suppress(OSError):
            path.with_name(f"{name}.names.json").unlink(missing_ok=True)


def _remove(path: Path) -> None:
    """Remove a folder, renamed first so that it disappears at once, and what was left before."""
    away = path.with_name(f"{DISCARDED}{secrets.token_hex(8)}")
    try:
        for left in path.parent.glob(f"{DISCARDED}*"):
            shutil.rmtree(left, ignore_errors=True)
        path.rename(away)
        shutil.rmtree(away)
    except OSError as error:
        raise OutputError(f"{path.name} cannot be removed whole: {error.strerror}.") from error


def command(job: Job) -> list[str]:
    """Return the arguments of `samsvae` that start or resume a job."""
    begun = (job.path / "config.json").is_file()
    more = ["--resume"] if begun else list(job.arguments)
    threads = ["--threads", str(n_threads())]
    return ["train", job.data, f"--output={job.path}", f"--device={job.device}", *threads, *more]


def n_threads() -> int:
    """Return the number of threads for training: all cores but one, which is left to the pages."""
    return max(1, whole_cores() - 1)


# Under the lock


@contextlib.contextmanager
def _turn(folder: Path) -> Iterator[None]:
    """Hold the lock of the runs folder, across threads and servers; raises OutputError."""
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / LOCK))
        except OSError as error:
            raise OutputError(
                f"Runs cannot be kept in {folder}: {error.strerror or error}. Set SAMSVAE_RUNS to "
                "a folder that can be written to, on a file system with locks."
            ) from error
        yield


def _found(folder: Path, name: str) -> Job:
    job = find(folder, name)
    if job is None:
        raise OutputError(f"There is no run {name[:80]!r} here any more.")
    return job


def _last(jobs: Sequence[Job]) -> int:
    return max((job.place for job in jobs), default=0)


def _next(jobs: Sequence[Job]) -> list[Job]:
    """Return the first waiting job for each free device."""
    busy = {job.device for job in jobs if job.state in BUSY}
    waiting = sorted((job for job in jobs if job.state == "waiting"), key=lambda job: job.place)
    first: dict[str, Job] = {}
    for job in waiting:
        first.setdefault(job.device, job)
    return [job for device, job in first.items() if device not in busy]


def _launch(job: Job) -> None:
    """Start the process of a job; it goes on when the server ends."""
    status = {k: v for k, v in read_status(job.path).items() if k in FIGURES}
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    try:
        unknown = dict.fromkeys(("pid", "started", "boot", "stop", "exit"))
        _change_job(job.path, asked="started", **unknown)  # first, so that no job starts twice
        write_status(job.path, status | {"state": "starting"})
        log = os.open(job.path / LOG, flags, 0o644)
        try:
            child = subprocess.Popen(
                [*PROGRAM, *command(job)],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | _thread_limits(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                close_fds=True,
            )
        finally:
            os.close(log)
    except (OSError, OutputError) as error:
        message = f"It could not be started: {error}. Resume it to try again."
        with contextlib.suppress(OutputError):
            _change_job(job.path, asked="nothing")
            write_status(job.path, status | {"state": "failed", "message": message})
        logs.refused("job refused", str(error), run=job.name)
        return
    logs.event("job started", run=job.name, pid=child.pid, device=job.device)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, child.pid, NICE)
    with _reaping:
        _children.append((job.path, child))
    if known := process(child.pid):
        _change_job(job.path, **known._asdict())


def _thread_limits() -> dict[str, str]:
    names = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
    return {f"{name}_NUM_THREADS": str(n_threads()) for name in names}


def _reap() -> None:
    """Note the exit codes of processes that this server started and that have ended."""
    with _reaping:
        ended = [(path, child) for path, child in _children if child.poll() is not None]
        _children[:] = [known for known in _children if known not in ended]
    for path, child in ended:
        logs.event("job ended", run=path.name, pid=child.pid, exit=child.returncode)
        if read_object(path / JOB).get("pid") == child.pid:
            with contextlib.suppress(OutputError):
                _change_job(path, exit=child.returncode)


def _trim_logs(jobs: Sequence[Job]) -> None:
    """Cut logs that have grown too long to their end; running jobs append to them."""
    for job in jobs:
        path = job.path / LOG
        try:
            if path.lstat().st_size <= LONGEST_LOG:
                continue
            with os.fdopen(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_APPEND), "r+b") as file:
                file.seek(-KEPT_LOG, os.SEEK_END)
                end = file.read()
                file.truncate(0)
                file.write(end)
        except OSError:
            continue


def _change_job(path: Path, **more: Any) -> None:
    content = read_object(path / JOB) | more
    _write_job(path, {key: value for key, value in content.items() if value is not None})


def _write_job(path: Path, content: dict[str, Any]) -> None:
    atomic_write(path / JOB, (json.dumps(content, indent=1) + "\n").encode())
