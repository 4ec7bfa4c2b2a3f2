"""Provoke what can go wrong with a training, and report what was seen and what was lost.

    python benchmarks/faults.py [--quick] [--output table.md]

Exits with 1 if anything was lost that should not be. Takes a few minutes; --quick kills less often.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gseapy  # noqa: F401 - imports of trainers, loaded once before they are forked
import numpy as np
import pandas as pd
import torch._dynamo  # noqa: F401

from app.server import queue, runs
from samsvae_core.bundle import layout, opening
from samsvae_core.cli import main as cli
from samsvae_core.models.simulate import Design, simulate, write_h5ad
from samsvae_core.pipeline import build
from samsvae_core.system.files import OutputError
from samsvae_core.training import run_folder

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")  # a trainer starts at once, with torch imported
SETTINGS = ["--steps", "120", "--latents", "3", "--hidden", "8", "--batch-size", "64"]
LONG = ["--steps", "4000"]
SAME = ("weights.safetensors", "masks.csv", "history.csv")
NOTHING = "nothing"
# Few tables, since the cases happen before them.
QUICK_TABLES = "build.COLLECTIONS, build.N_EMBEDDED = ('hallmark',), 14"
PROGRAM = (
    "import sys; from samsvae_core.cli import main as cli; "
    f"from samsvae_core.pipeline import build; {QUICK_TABLES}; cli.main()"
)


class Row(NamedTuple):
    """A case: what was done, what was seen, what was lost."""

    case: str
    happened: str
    lost: str
    ok: bool


class Place(NamedTuple):
    """Where the cases happen: an empty folder, a data file, and an undisturbed run."""

    folder: Path
    data: Path
    settings: list[str]
    whole: Path
    seconds: float  # duration of the undisturbed run


# Trainers


def trainer(
    data: Path, run: Path, *options: str, first: Callable[[], None] = lambda: None
) -> multiprocessing.process.BaseProcess:
    """Start `samsvae train` in a process; `first` is called in it before."""
    child = FORK.Process(target=_train, args=(data, run, options, first))
    child.start()
    return child


def _train(data: Path, run: Path, options: tuple[str, ...], first: Callable[[], None]) -> None:
    os.setsid()
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    build.COLLECTIONS, build.N_EMBEDDED = ("hallmark",), 14  # type: ignore[misc]
    sys.argv = ["samsvae", "train", str(data), "--output", str(run), "--threads", "1", *options]
    first()
    cli.main()


def ended(child: multiprocessing.process.BaseProcess) -> int:
    """Return the exit code of a process."""
    child.join(120)
    code = child.exitcode
    return -999 if code is None else code


def said(run: Path) -> str:
    """Return the last line that a trainer wrote."""
    lines = Path(f"{run}.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def until(there: Callable[[], Any], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if there():
            return True
        time.sleep(0.02)
    return False


def epoch(run: Path) -> int:
    found = run_folder.read_status(run).get("epoch", 0)
    return found if isinstance(found, int) else 0


def same(place: Place, run: Path) -> bool:
    """Return whether a run is identical, to the byte, to the undisturbed one."""
    files = [(run / name, place.whole / name) for name in SAME]
    return all(a.exists() and a.read_bytes() == b.read_bytes() for a, b in files)


def resumed(place: Place, run: Path) -> bool:
    return ended(trainer(place.data, run, "--resume")) == 0 and same(place, run)


def lost(place: Place, run: Path) -> tuple[str, bool]:
    """Return what is missing after a resume."""
    if resumed(place, run):
        return f"{NOTHING}: resumed to the same weights and history", True
    return "the run is another one", False


# Cases


def killed(place: Place, n: int) -> Row:
    """SIGKILL at random moments and resume; a finished run makes way for a new one."""
    moments, finished, right = random.Random(1), 0, 0
    run = place.folder / "killed 0"
    done = 0
    while True:
        begun = (run / "config.json").exists()
        if run.exists() and not begun:  # killed before it was a run: start again, as a job would
            (run / "job.json").write_text("{}")
        child = trainer(place.data, run, *(["--resume"] if begun else place.settings))
        child.join(moments.uniform(0.02, place.seconds) if done < n else 120)
        if child.is_alive():
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            done += 1
            if not (run / "manifest.json").exists():  # else it had finished and was about to end
                continue
        elif child.exitcode != 0:
            return Row(f"SIGKILL of the trainer, {n} times", said(run), "a run", False)
        finished += 1
        right += same(place, run)
        if done >= n:
            break
        run = place.folder / f"killed {finished}"
    return Row(
        f"SIGKILL of the trainer at {n} random moments, each time resumed",
        f"{right} of {finished} runs finished with the same weights and history as one never "
        "killed",
        NOTHING if right == finished else f"{finished - right} runs differ",
        right == finished,
    )


def stopped(place: Place) -> Row:
    run = place.folder / "stopped"
    child = trainer(place.data, run, *place.settings)
    until(lambda: epoch(run) >= 2)
    os.kill(child.pid or 0, signal.SIGTERM)
    code = ended(child)
    at = epoch(run)
    found, ok = lost(place, run)
    happened = f"ended with {code} after epoch {at}: {said_before(run)}"
    return Row("SIGTERM of the trainer", happened, found, ok and code == 143)


def said_before(run: Path) -> str:
    text = Path(f"{run}.log").read_text(errors="replace")
    return next((line for line in text.splitlines() if line.startswith("Stopped")), text[-200:])


def server_killed(place: Place) -> Row:
    folder = place.folder / "server"
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom app.server import queue\n"
        f"queue.PROGRAM = (sys.executable, '-c', {PROGRAM!r})\n"
        "folder, data, *options = sys.argv[1:]\n"
        "queue.submit(Path(folder), 'a', Path(data), options)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(folder), str(place.data), *place.settings]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode
    until(lambda: state(folder, "a") in runs.ENDED)
    ok = code == -signal.SIGKILL and same(place, folder / "a")
    return Row(
        "SIGKILL of the server while a job trains",
        f"the job went on and is {state(folder, 'a')}",
        NOTHING if ok else "the run",
        ok,
    )


def state(folder: Path, name: str) -> str:
    job = runs.find(folder, name)
    return job.state if job else "none"


def two_starts(place: Place) -> Row:
    """Six processes ask for the same run at the same moment."""
    folder, go = place.folder / "two", FORK.Event()
    answers = FORK.SimpleQueue()

    def visitor() -> None:
        queue.PROGRAM = (sys.executable, "-c", PROGRAM)
        go.wait()
        try:
            queue.submit(folder, "a", place.data, place.settings)
            answers.put("started")
        except OutputError as error:
            answers.put(str(error))
        os._exit(0)  # do not wait for the job

    visitors = [FORK.Process(target=visitor) for _ in range(6)]
    for each in visitors:
        each.start()
    go.set()
    for each in visitors:
        each.join()
    heard = [answers.get() for _ in visitors]
    until(lambda: state(folder, "a") in runs.ENDED)
    log = (folder / "a" / "log.txt").read_text()
    ok = heard.count("started") == 1 and log.count("epoch 1,") == 1 and same(place, folder / "a")
    refused = next(answer for answer in heard if answer != "started")
    happened = f"{heard.count('started')} started it; the others heard: {refused}"
    return Row("Six visitors start the same run at once", happened, NOTHING, ok)


def second_trainer(place: Place) -> Row:
    run = place.folder / "second"
    first = trainer(place.data, run, *place.settings, *LONG)
    until(lambda: epoch(run) >= 1)
    (run.parent / "second.log").write_text("")
    code = ended(trainer(place.data, run, "--resume"))
    answer = said(run)
    going = first.is_alive()
    first.kill()
    first.join()
    ok = code == 2 and "Another process" in answer and going
    return Row("A second samsvae train in the same folder", answer, NOTHING, ok)


@contextlib.contextmanager
def training_job(place: Place, name: str) -> Iterator[tuple[Path, int]]:
    """Start a job that trains; gives its runs folder and process, which ends with the block."""
    folder = place.folder / name
    run = folder / "a"
    run.mkdir(parents=True)
    content = {
        "data": str(place.data),
        "arguments": [*place.settings, *LONG],
        "asked": "started",
        "place": 1,
    }
    (run / "job.json").write_text(json.dumps(content))
    child = trainer(place.data, run, *place.settings, *LONG)
    until(lambda: epoch(run) >= 2)
    try:
        yield folder, child.pid or 0
    finally:
        child.kill()
        child.join()


def number_used_again(place: Place) -> Row:
    with training_job(place, "number") as (folder, pid):
        os.kill(pid, signal.SIGKILL)
        until(lambda: state(folder, "a") == "dead")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        path = folder / "a" / "status.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": other.pid}))
        found = state(folder, "a")
        queue.stop(folder, "a", at_once=True)
        untouched = other.poll() is None
        other.communicate(b"\n")
    ok = found == "dead" and untouched
    happened = f"the run is shown as {found}; the other process was {'not ' * untouched}signalled"
    return Row("The process number is used again by another", happened, NOTHING, ok)


def clock_moved(place: Place) -> Row:
    seen = []
    with training_job(place, "clock") as (folder, _):
        for years in (-30, 30):
            moved = time.time() + years * 365 * 86400
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):
                    os.utime(path, (moved, moved))
            seen.append(state(folder, "a"))
    happened = f"the run was shown as {' and '.join(seen)}"
    case = "All times of files moved by 30 years, back and forth"
    return Row(case, happened, NOTHING, seen == ["running"] * 2)


def size_limit() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))


def limited(place: Place) -> Row:
    run = place.folder / "limited"
    code = ended(trainer(place.data, run, *place.settings, first=size_limit))
    return full("RLIMIT_FSIZE reached", place, run, code)


def full(case: str, place: Place, run: Path, code: int) -> Row:
    answer = said(run)
    state = run_folder.read_status(run).get("state")
    found, ok = lost(place, run)
    happened = f"ended with {code}, status {state}: {answer}"
    return Row(case, happened, found, ok and code == 2 and "The disk is full" in answer)


def disk_full(place: Place) -> Row | None:
    """Fill a disk; None if no tmpfs can be mounted."""
    disk = place.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(disk)]
    try:
        if subprocess.run(mount, check=False, capture_output=True).returncode:
            return None
    except OSError:
        return None
    try:
        run = disk / "run"
        log = place.folder / "disk.log"
        (disk / "run.log").symlink_to(log)
        code = ended(trainer(place.data, run, *place.settings))
        larger = ["mount", "-o", "remount,size=50m", str(disk)]
        subprocess.run(larger, check=True, capture_output=True)
        return full("Disk full (a tmpfs), then room made", place, run, code)
    finally:
        subprocess.run(["umount", str(disk)], check=False, capture_output=True)


def below_a_file(place: Place) -> Row:
    (place.folder / "file").write_text("mine")
    run = place.folder / "file" / "run"
    try:
        queue.submit(run.parent, "a", place.data, place.settings)
        answer = "started"
    except OutputError as error:
        answer = str(error)
    ok = answer.startswith("Runs cannot be kept") and (place.folder / "file").read_text() == "mine"
    return Row("Runs folder below a regular file", answer, NOTHING, ok)


def memory_limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 * 2**30, 6 * 2**30))


def out_of_memory(place: Place) -> Row:
    run = place.folder / "memory"
    child = trainer(
        place.data, run, *place.settings[:4], "--hidden", "60000000", first=memory_limit
    )
    code, answer = ended(child), said(run)
    state = run_folder.read_status(run).get("state")
    ok = code == 2 and "not enough memory" in answer and state == "failed"
    return Row("Memory runs out", f"ended with {code}: {answer}", "nothing that had begun", ok)


def diverged(place: Place) -> Row:
    run = place.folder / "diverged"
    code = ended(trainer(place.data, run, *place.settings, "--learning-rate", "1e30"))
    answer = said(run)
    ok = code == 2 and "Lower --learning-rate" in answer
    return Row("The loss becomes NaN", f"ended with {code}: {answer}", "the epoch", ok)


def damaged(place: Place) -> Row:
    """Garbage in the files that describe a run, while its checkpoint is whole."""
    run = place.folder / "damaged" / "a"
    run.parent.mkdir()
    child = trainer(place.data, run, *place.settings)
    until(lambda: epoch(run) >= 2)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    for name in ("job.json", "status.json", "history.csv"):
        (run / name).write_bytes(b"\xff\x00{garbage")
    (job,) = queue.look(run.parent)
    found, ok = lost(place, run)
    happened = f"the run is shown as {job.state}, with {len(runs.history(run))} epochs after it"
    case = "job.json, status.json and history.csv overwritten by garbage"
    return Row(case, happened, found, ok and job.state == "dead")


def checkpoint_damaged(place: Place) -> Row:
    run = place.folder / "checkpoint"
    child = trainer(place.data, run, *place.settings)
    until(lambda: epoch(run) >= 2)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    path = run / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, answer = ended(trainer(place.data, run, "--resume")), said(run)
    ok = code == 2 and "does not hold a checkpoint" in answer
    return Row("The checkpoint is cut short", f"ended with {code}: {answer}", "this run", ok)


def one_byte(place: Place) -> Row:
    path = place.folder / "byte"
    subprocess.run(["cp", "-r", str(place.whole), str(path)], check=True)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)
    try:
        opening.load(path)
        answer = "opened"
    except layout.BundleError as error:
        answer = str(error)
    return Row("A bundle changed by one byte", answer, NOTHING, "checksum differs" in answer)


def link_discarded(place: Place) -> Row:
    folder = place.folder / "links"
    (folder / "real").mkdir(parents=True)
    (folder / "real" / "status.json").write_text('{"state": "stopped"}')
    (folder / "real" / "out").symlink_to(place.whole)
    (folder / "link").symlink_to(place.whole)
    answers = []
    for name in ("link", "../" + place.whole.name, "real"):
        try:
            queue.discard(folder, name)
            answers.append("removed")
        except OutputError:
            answers.append("refused")
    ok = answers == ["refused", "refused", "removed"] and opening.load(place.whole) is not None
    happened = f"a link: {answers[0]}; a way out: {answers[1]}; what a link within leads to: kept"
    return Row("Discard of a link, of a way out, of a run with a link", happened, NOTHING, ok)


CASES: dict[str, Callable[[Place], Row | None]] = {
    "stopped": stopped,
    "server killed": server_killed,
    "two starts": two_starts,
    "second trainer": second_trainer,
    "number used again": number_used_again,
    "clock moved": clock_moved,
    "limited": limited,
    "disk full": disk_full,
    "below a file": below_a_file,
    "out of memory": out_of_memory,
    "diverged": diverged,
    "damaged": damaged,
    "checkpoint damaged": checkpoint_damaged,
    "one byte": one_byte,
    "link discarded": link_discarded,
}


def prepared(folder: Path) -> Place:
    """Return small simulated data and the run that others are compared with."""
    data = folder / "cells.h5ad"
    drawn, truth = simulate(Design(400, 30, 5, 3, 2, depth=1000.0))
    write_h5ad(drawn, truth, data)
    parts = np.where(np.arange(400) % 5, "train", "validation")  # no test cells, so no metrics
    split = folder / "split.csv"
    pd.DataFrame({"cell": drawn.cells, "split": parts}).to_csv(split, index=False)
    settings, whole = [*SETTINGS, "--split", str(split)], folder / "whole"
    began = time.monotonic()
    if ended(trainer(data, whole, *settings)):
        raise RuntimeError(said(whole))
    return Place(folder, data, settings, whole, time.monotonic() - began)


def table(rows: list[Row]) -> str:
    lines = ["| case | what happened | what was lost |", "|---|---|---|"]
    for row in rows:
        cells = [text.replace("|", "/").replace("\n", " ") for text in row[:3]]
        lines.append(f"| {' | '.join(cells)} |" + ("" if row.ok else " **not as it should be**"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 kills instead of 20.")
    parser.add_argument("--output", type=Path, help="Write the table there, too.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = prepared(Path(folder))
        cases = [partial(killed, n=3 if options.quick else 20), *CASES.values()]
        found = [case(place) for case in cases]
    rows = [row for row in found if row is not None]
    text = table(rows).replace(folder, "DIR")
    print(text)
    if len(rows) < len(found):
        print("\nNot tried: a full disk, as no tmpfs can be mounted here.")
    if options.output:
        options.output.write_text(text + "\n")
    sys.exit(not all(row.ok for row in rows))


if __name__ == "__main__":
    main()
