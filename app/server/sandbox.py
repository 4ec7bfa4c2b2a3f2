"""Inspects data files in separate processes, so that a hostile file cannot harm the server.

It runs `samsvae inspect` and `samsvae validate`, with limits on memory and processor time; the
server's own memory does not grow.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from app.server.reading import ASKED, Reading, flag_of
from app.server.uploads import ROOT, resolve
from samsvae_core.data.cells import DataError
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.system.machine import memory_here

LOGGER = logging.getLogger(__name__)
SECONDS = 20  # of processor time for any file, and
BYTES_A_SECOND = 5 * 2**20  # one more for each of these: compressed counts
IMPORTS = 10  # seconds of processor time to import the libraries
PATIENCE = 10  # limit by the clock, as a multiple: other work, a slow disk
MOST_BYTES = 64 * 2**20  # of an answer: a million genes need 20 MB
SHARE = 0.8  # of the machine's memory, for one process
STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # by a person, or with the server
TURN = threading.Semaphore(2)  # files inspected at once
LABEL = r"(?:'([^']*)'|([\w.+-]+(?<!\.)))"  # as the reader quotes it
# Options of the command line with a value, and the boxes of the page.
BOXES = {
    **{each.flag: each.box for each in ASKED.values() if each.kind in ("text", "labels")},
    "--top-genes": "Most variable genes",
}
# Options that are one choice in a box.
CHOICES = {
    flag_of(each, value) if each.kind == "flag" else f"{each.flag} {word}": (word, each.box)
    for name, each in ASKED.items()
    if each.kind in ("flag", "choice")
    for word, value in each.words.items()
    if value != getattr(ReadOptions, name)
}
ONE = "|".join(BOXES)
CONTROLS = re.compile(rf"--control {LABEL}(?: --control {LABEL})*")
BEGINNING = re.compile(r"(^|[.!?] )(choosing|the box|the list|the number)\b")


class ReaderError(RuntimeError):
    """Raised when the reader fails by a mistake of ours; the file may be fine."""


def inspected(data: str, gene_key: str = "") -> dict[str, Any]:
    """Return the choices that a file offers, as `samsvae_core.data.inspection.inspect` does.

    Raises DataError, or ReaderError if the reader itself fails; so does `validated`.
    """
    return _asked("inspect", resolve(data), [f"--gene-key={gene_key}"] if gene_key else [])


def validated(reading: Reading) -> dict[str, Any]:
    """Return `samsvae_core.data.cells.summary` of a file read this way, and cells per condition."""
    options = [*reading.reading_arguments(), "--counts-on=memory"]  # it may hardly write to disk
    return _asked("validate", resolve(reading.data), options)


def _asked(verb: str, path: Path, options: list[str]) -> dict[str, Any]:
    """Run a command and return its JSON; raises DataError with its message."""
    command = [sys.executable, "-m", "samsvae_core", verb, str(path), "--json", *options]
    seconds = SECONDS + path.stat().st_size / BYTES_A_SECOND
    longest = PATIENCE * (seconds + IMPORTS)
    with TURN, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        _limit(process.pid, seconds + IMPORTS)
        try:
            process.wait(timeout=longest)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise DataError(
                f"Reading {path.name} has not ended after {longest / 60:.0f} minutes: this machine "
                "is busy, or its disk is slow. The file may be fine; try again later."
            ) from None
        if max(os.fstat(file.fileno()).st_size for file in (out, err)) >= MOST_BYTES:
            raise DataError(
                f"{path.name} has more names and labels than can be shown. Keep fewer genes and "
                "columns, or shorten their names."
            )
        for file in (out, err):
            file.seek(0)
        if process.returncode == 0:
            answer: dict[str, Any] = json.loads(out.read())
            return answer
        said = err.read().decode(errors="replace")
        if process.returncode == -signal.SIGXCPU:
            raise DataError(
                f"Reading {path.name} takes more than {seconds:.0f} seconds of processor time, "
                "the limit on this page for a file of its size. Keep fewer cells or genes, "
                "or read it with samsvae validate on the command line, which has no limit."
            )
        raise DataError(_why(process.returncode, said, path))


def _limit(pid: int, seconds: float) -> None:
    """Limit the memory, the processor time and the written files of a process."""
    if hasattr(resource, "prlimit"):  # Linux
        limit, time = int(SHARE * memory_here()), math.ceil(seconds)
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
            resource.prlimit(pid, resource.RLIMIT_CPU, (time, time + 5))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))
        except (OSError, ValueError) as error:  # it has ended, or the system does not allow limits
            LOGGER.debug("no limits: %s", error)


def _why(code: int, err: str, path: Path) -> str:
    """Return the message of a failed command in the words of the page, without server folders.

    Raises ReaderError for a mistake of ours.
    """
    said = [line.removeprefix("Error: ") for line in err.splitlines() if line.startswith("Error: ")]
    if code == 2 and said:
        return in_words(said[-1].replace(str(path), path.name))
    LOGGER.error("reading %s ended with %s: %s", path, code, err[-2_000:])
    if code == -signal.SIGKILL:
        return (
            f"The system stopped reading {path.name}: it needs more memory than there is here. "
            "Keep fewer cells or genes, save it with sparse matrices, or use a larger machine."
        )
    if -code in STOPPED:
        return f"Reading {path.name} was stopped. Try again."
    if code > 0:
        raise ReaderError(f"{path.name}: the reader failed: {err.strip()[-500:]}")
    return (
        f"{path.name} cannot be read: it made the reader crash ({code}). It is probably damaged: "
        "load it where it was made and save it again with write_h5ad."
    )


def in_words(message: str) -> str:
    """Return a message of the command line with its options named as on the page."""
    for option, (choice, box) in CHOICES.items():
        chosen = f'choosing "{choice}" in the box "{box}"'
        message = message.replace(f"with {option}", f"by {chosen}").replace(option, chosen)
    message = re.sub(
        rf"(given as|with) ({ONE})\b",
        lambda found: f'{"chosen " * (found[1] != "with")}in the box "{BOXES[found[2]]}"',
        message,
    )
    message = re.sub(
        rf"({ONE}) '?([^']+?)'? (?=(?:reads|takes|parts|accounts)\b)",
        lambda found: f'choosing "{found[2]}" in the box "{BOXES[found[1]]}" ',
        message,
    )
    message = CONTROLS.sub(
        lambda found: f'in the box "{BOXES["--control"]}" choose {_labels(found[0])}', message
    )
    message = re.sub("--top-genes", 'the number in the box "Most variable genes"', message)
    message = re.sub(rf"({ONE})\b", lambda found: f'the box "{BOXES[found[1]]}"', message)
    message = message.replace("--genes", "the list of genes")
    return BEGINNING.sub(lambda found: found[1] + found[2][0].upper() + found[2][1:], message)


def _labels(options: str) -> str:
    """Return the labels of "--control A --control 'B c'", separated by commas."""
    found = re.findall(rf"--control {LABEL}", options)
    return ", ".join(quoted or plain for quoted, plain in found)
