"""Looks into a data file in a process of its own, so that a hostile file can harm nothing else.

What is run are the commands that a person would run: `samsvae inspect` and `samsvae validate`. The
process has a limit of memory and of processor time; the server's own memory does not grow. Knows
nothing of Streamlit.
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
SECONDS = 20  # of a processor, for any file, and
BYTES_A_SECOND = 5 * 2**20  # more of a large one: packed counts
IMPORTS = 10  # seconds of a processor until Python and its libraries are there
PATIENCE = 10  # times as long by the clock: others compute, the disk is slow
MOST_BYTES = 64 * 2**20  # of an answer: a million genes have 20
SHARE = 0.8  # of the memory here, for one process
STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # by a person, or with the server
TURN = threading.Semaphore(2)  # files looked into at once
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
    """The reader broke off by a mistake of ours: nothing is known against the file."""


def inspected(data: str, gene_key: str = "") -> dict[str, Any]:
    """What a file offers to choose from, as `samsvae_core.data.inspection.inspect`.

    Raises DataError, and ReaderError where the reader itself is wrong; so does `validated`.
    """
    return _asked("inspect", resolve(data), [f"--gene-key={gene_key}"] if gene_key else [])


def validated(reading: Reading) -> dict[str, Any]:
    """What a file holds, read so, as `samsvae_core.data.cells.summary`, and cells per condition."""
    options = [*reading.reading_arguments(), "--counts-on=memory"]  # it may write next to nothing
    return _asked("validate", resolve(reading.data), options)


def _asked(verb: str, path: Path, options: list[str]) -> dict[str, Any]:
    """What the command prints as JSON; its message as a DataError."""
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
                "is busy, or its disk is slow. Nothing is known against the file; try again later."
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
                f"Reading {path.name} takes more than {seconds:.0f} seconds of a processor, which "
                "is as much as this page gives to a file of its size. Keep fewer cells or genes, "
                "or read it with samsvae validate on the command line, which has no limit."
            )
        raise DataError(_why(process.returncode, said, path))


def _limit(pid: int, seconds: float) -> None:
    """Limit the memory of a process, its time of a processor, and what it writes."""
    if hasattr(resource, "prlimit"):  # Linux
        limit, time = int(SHARE * memory_here()), math.ceil(seconds)
        try:
            resource.prlimit(pid, resource.RLIMIT_AS, (limit, limit))
            resource.prlimit(pid, resource.RLIMIT_CPU, (time, time + 5))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))
        except (OSError, ValueError) as error:  # it has ended already, or may not be limited here
            LOGGER.debug("no limits: %s", error)


def _why(code: int, err: str, path: Path) -> str:
    """The message of a command that failed, without the server's folders, in words of the page.

    Raises ReaderError for a mistake of the command's own.
    """
    said = [line.removeprefix("Error: ") for line in err.splitlines() if line.startswith("Error: ")]
    if code == 2 and said:
        return in_words(said[-1].replace(str(path), path.name))
    LOGGER.error("reading %s ended with %s: %s", path, code, err[-2_000:])
    if code == -signal.SIGKILL:
        return (
            f"The system has ended the reading of {path.name}: it needs more memory than there is "
            "here. Keep fewer cells or genes, save it with sparse matrices, or use a larger "
            "machine."
        )
    if -code in STOPPED:
        return f"The reading of {path.name} was stopped. Try again."
    if code > 0:
        raise ReaderError(f"{path.name}: the reader broke off: {err.strip()[-500:]}")
    return (
        f"{path.name} cannot be read: it made the reader crash ({code}). It is probably damaged: "
        "load it where it was made and save it again with write_h5ad."
    )


def in_words(message: str) -> str:
    """A message of the command line for the page: its options as the page calls them."""
    for option, (choice, box) in CHOICES.items():
        chosen = f'choosing "{choice}" in the box "{box}"'
        message = message.replace(f"with {option}", f"by {chosen}").replace(option, chosen)
    message = re.sub(
        rf"(given as|with) ({ONE})\b",
        lambda found: f'{"chosen " * (found[1] != "with")}in the box "{BOXES[found[2]]}"',
        message,
    )
    message = re.sub(
        rf"({ONE}) '?([^']+?)'? (?=(?:reads|takes|parts)\b)",
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
    """The labels of "--control A --control 'B c'", as a list."""
    found = re.findall(rf"--control {LABEL}", options)
    return ", ".join(quoted or plain for quoted, plain in found)
