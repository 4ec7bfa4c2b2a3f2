"""The current state of training runs, read from their folders.

A run is a folder that `samsvae train` writes, with a job.json if it was started from a page. A run
with damaged or missing files is shown as far as possible.
"""

from __future__ import annotations

import io
import math
import os
import re
import signal
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from samsvae_core.training.config import Progress
from samsvae_core.training.run_folder import JOB, STATUS, alive, process, read_object, read_status

BROUGHT = "brought"  # an empty file in the folder of a model that came as a zip
LOG = "log.txt"
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
TAKEN = ("uploads",)  # folders that are not runs
LONGEST_HISTORY = 20_000_000  # bytes
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\t\x20-\x7e\x80-\U0010ffff]|[\x80-\x9f]")
BUSY = ("running", "stopping")
ENDED = ("finished", "stopped", "failed")  # states in which a run has ended


class Job(NamedTuple):
    """A run as it is now.

    `state` is waiting, running, stopping, stopped, failed, dead or finished; `phase` is what a
    running one is doing: reading, training or making tables.
    """

    name: str
    path: Path
    state: str
    phase: str
    message: str  # why it failed or died, and what to do
    device: str  # cpu or cuda
    data: str  # path of its data file; empty if it was not started here
    arguments: tuple[str, ...]  # of samsvae train, after the data
    place: int  # in the queue; also orders the list
    step: int
    steps: int  # 0 if not known
    epoch: int
    seconds: float  # trained so far
    seconds_left: float  # of training; NaN if not known
    is_own: bool  # started from a page


def find(folder: Path, name: str) -> Job | None:
    """Return the run of this name as it is now, or None."""
    path = folder / name
    return _job(path) if is_name(name) and not path.is_symlink() and path.is_dir() else None


def is_name(name: str) -> bool:
    return bool(NAME.fullmatch(name)) and name.lower() not in TAKEN


def listed(folder: Path) -> list[Job]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    found = [find(folder, name) for name in names]
    return [job for job in found if job is not None]


def brought(folder: Path) -> list[str]:
    """Return the names of models that were uploaded as a zip, which have the file BROUGHT.

    Models that the operator put here have no such file.
    """
    found = (path.parent for path in sorted(folder.glob("*/manifest.json")))
    return [
        path.name
        for path in found
        if is_name(path.name)
        and not path.is_symlink()
        and not _holds_run(path)
        and (path / BROUGHT).is_file()
    ]


def _holds_run(path: Path) -> bool:
    return any(os.path.lexists(path / name) for name in (JOB, STATUS))


def _job(path: Path) -> Job | None:
    """Return the run in a folder, or None if there is none or only its bundle is left."""
    job, status = read_object(path / JOB), read_status(path)
    if not (job or status or (path / JOB).exists() or (path / STATUS).exists()):
        return None
    state = _state(path, job, status)
    steps, step = (_whole(status.get(key)) for key in ("steps", "step"))
    pace = status.get("step_seconds")
    pace = float(pace) if isinstance(pace, (int, float)) and 0 <= pace < math.inf else math.nan
    arguments = job.get("arguments")
    devices = [job.get("device"), status.get("device")]
    device = next((_text(d) for d in (devices[::-1] if state in BUSY else devices) if d), "")
    return Job(
        name=path.name,
        path=path,
        state=state,
        phase=_text(status.get("state")) if state in BUSY else "",
        message=_message(state, job, status),
        device="cuda" if "cuda" in device else "cpu",
        data=_text(job.get("data")),
        arguments=tuple(map(str, arguments)) if isinstance(arguments, list) else (),
        place=_whole(job.get("place")),
        step=step,
        steps=steps,
        epoch=_whole(status.get("epoch")),
        seconds=float(_whole(status.get("seconds"))),
        seconds_left=max(0, steps - step) * pace if steps else math.nan,
        is_own=isinstance(job.get("data"), str) and isinstance(arguments, list),
    )


def _state(path: Path, job: dict[str, Any], status: dict[str, Any]) -> str:
    ended = status.get("state")
    if (alive(status) or alive(job)) and ended not in ENDED:  # else its process is just exiting
        return "stopping" if job.get("stop") else "running"
    if (path / "manifest.json").is_file():
        return "finished"
    if job.get("asked") == "start":
        return "waiting"
    if ended in ("stopped", "failed"):
        return str(ended)
    return "stopped" if job.get("asked") == "nothing" or job.get("stop") else "dead"


def _message(state: str, job: dict[str, Any], status: dict[str, Any]) -> str:
    if state == "failed":
        return _text(status.get("message")) or "It ended with an error; see the end of its log."
    if state != "dead":
        return ""
    code = job.get("exit")
    if isinstance(code, int) and code > 0 and status.get("state") in (None, "starting"):
        return (
            f"It ended with an error (exit {code}) before it began; the end of its log says which. "
            "Correct that and start a new one."
        )
    now = process(os.getpid())
    if now and (status.get("boot") or job.get("boot") or now.boot) != now.boot:
        why = "The machine was restarted, or the folder comes from another machine."
    elif job.get("exit") == -signal.SIGKILL:
        why = (
            "The system killed its process (signal 9), most often because memory ran out: keep "
            "fewer cells or genes, or train when nothing else takes the memory."
        )
    else:
        why = (
            "Its process is gone and left no message: it was killed, perhaps because memory ran "
            "out. The end of its log may tell more."
        )
    epoch = _whole(status.get("epoch"))
    kept = f"the {epoch} epochs trained so far are kept" if epoch else "no epoch was finished yet"
    return f"{why} Resume it to go on; {kept}."


def _text(value: Any) -> str:
    return value[:2000] if isinstance(value, str) else ""


def _whole(value: Any) -> int:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return int(value) if is_number and 0 <= value < 10**12 else 0


def history(path: Path) -> pd.DataFrame:
    """Return history.csv, a row per epoch, without incomplete rows; empty if unreadable."""
    columns = list(Progress._fields)
    try:
        with (path / "history.csv").open("rb") as file:
            text = file.read(LONGEST_HISTORY).decode(errors="replace").replace("\0", "")
        table = pd.read_csv(io.StringIO(text), on_bad_lines="skip", dtype=str)
    except (OSError, ValueError):  # not there, or empty
        return pd.DataFrame(columns=columns, dtype=float)
    found = table.reindex(columns=columns).apply(pd.to_numeric, errors="coerce")
    whole = found.replace([math.inf, -math.inf], math.nan).dropna()
    return whole.sort_values("epoch").drop_duplicates("epoch", keep="last").reset_index(drop=True)


def end_of_log(path: Path, size: int = 8_000) -> str:
    """Return the last `size` bytes of a log as plain text, from the start of a line."""
    try:
        descriptor = os.open(path / LOG, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return ""
    with os.fdopen(descriptor, "rb") as file:
        begin = max(0, file.seek(0, os.SEEK_END) - size)
        file.seek(begin)
        text = file.read(size).decode(errors="replace")
    return CONTROLS.sub("", text.partition("\n")[2] if begin else text)
