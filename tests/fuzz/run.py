"""Are wrong files refused in words, without a crash, a hang, or a file written elsewhere?

    python -m tests.fuzz.run --quick     # 120 files: 30 s on 2 cores
    python -m tests.fuzz.run             # 1,200 files: 3 minutes
    python -m tests.fuzz.run --structures 1000 --seed 1    # .h5ad files of `structures`

Each file of `mutations` is read as the dashboard and the command line read it, in a process with
little memory and 20 s per file. It may work, or be refused by an error that the project raises
itself. Anything else is a fault, listed at the end: another error, the end of the process, a hang,
or a file written or a program started outside of its folder. Accepted files of `structures` must
also agree with a plain reader of h5py and NumPy, and valid ones must be accepted. Expected: no
fault, and less than 1 GB.
"""

from __future__ import annotations

import argparse
import json
import linecache
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 20  # for one file
MEMORY = 8 * 2**30  # address space of the process; torch alone maps some gigabytes
LONGEST = 2**28  # bytes of a file it may write
GRACE = 5  # further seconds until its process is killed
CHILD = ["-m", "tests.fuzz.run", "--child"]
WORKED, REFUSED = "worked", "refused"


class Outcome(NamedTuple):
    """The outcome of a case; `told` is its message, or what went wrong."""

    number: int
    outcome: str  # WORKED, REFUSED, or a fault
    told: str
    seconds: float
    peak: int = 0  # peak MB of its process so far


# The process that reads


def child(listed: Path, work: Path) -> None:
    """Read every case of a list, and report before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LONGEST, LONGEST))
    faults: list[str] = []
    warm_up()
    watch(work, faults)
    for case in json.loads(listed.read_text()):
        say({"begins": case[0]})
        faults.clear()
        began = time.process_time()  # CPU time, as other processes compute too
        outcome, told = outcome_of(case, work)
        if faults:
            outcome, told = "reached out", "; ".join(faults[:3])
        say(
            {
                "number": case[0],
                "outcome": outcome,
                "told": told,
                "seconds": time.process_time() - began,
                "peak": peak(),
            }
        )


def peak() -> int:
    """Return the peak MB of this process, not counting what it was started from."""
    found = [line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line]
    return int(found[0].split()[1]) // 1024


def warm_up() -> None:
    """Load what readers import, and what that starts, before anything is watched."""
    import platform

    import anndata.io  # noqa: F401
    import pyarrow.parquet  # noqa: F401

    from app.session import session_file  # noqa: F401
    from samsvae_core.bundle import bundle  # noqa: F401
    from samsvae_core.data import inspection  # noqa: F401

    platform.uname()


def say(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def watch(work: Path, faults: list[str]) -> None:
    """Record files opened for writing outside of `work`, programs started, and connections."""
    inside = f"{work.resolve()}/"
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & writing or os.fspath(path) == os.devnull:
                return
            paths = [path]
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"):
            paths = [arguments[0]] * (arguments[-1] == -1)  # else relative to an open folder
        elif event in ("os.rename", "os.link", "os.symlink"):
            paths = [arguments[1]]
        elif event in ("subprocess.Popen", "os.system", "os.exec", "socket.connect", "os.fork"):
            faults.append(f"{event} {arguments[0]}")
            return
        else:
            return
        for path in paths:
            if not isinstance(path, int):
                place = os.path.realpath(os.fsdecode(path))
                if not f"{place}/".startswith(inside):
                    faults.append(f"{event} {place}")

    sys.addaudithook(hook)


def outcome_of(case: Sequence[Any], work: Path) -> tuple[str, str]:
    _, kind, mutation, path = case
    try:
        READERS[kind](Path(path), work)
    except MemoryError as error:
        return "no memory", f"{error}"
    except Exception as error:  # noqa: BLE001 - each is judged below
        if is_own(error) and mutation != "sound":
            return REFUSED, str(error)[:300]
        return "error", "".join(traceback.format_exception(error))[-1500:]
    return WORKED, ""


def is_own(error: Exception) -> bool:
    """Return whether the project raises the error itself: a ValueError from our code."""
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return False
    frame = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename
    return ours and linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise")


def read_h5ad(path: Path, work: Path) -> None:
    from samsvae_core.data import cells as data
    from samsvae_core.data import h5ad, inspection

    refused = None
    try:
        found = inspection.inspect(path)
        json.dumps(found, allow_nan=False)
        inspection.describe(found)
    except ValueError as error:
        if not is_own(error):
            raise
        refused = error
    for options in ({}, {"continuous": True}, {"dosage_key": "dose"}, {"layer": "counts"}):
        try:
            cells = h5ad.read_h5ad(path, **options)
            json.dumps(data.summary(cells))
            data.describe(data.summary(cells))
        except ValueError as error:
            if not is_own(error):
                raise
            refused = error
    if refused is not None:
        raise refused


def read_structure(path: Path, work: Path) -> None:
    """Read as `read_h5ad` does, and compare what is accepted with the independent reader."""
    import numpy as np

    from samsvae_core.data import h5ad
    from tests.fuzz.structures import truth

    refused = None
    for options in ({"layer": "counts"}, {"counts_on": "disk", "scratch": work}, {}):
        try:
            found = h5ad.read_h5ad(path, **options)
        except ValueError as error:
            if not is_own(error):
                raise
            refused = error
            continue
        refused = None
        counts, cells, genes, labels = truth(path, found.source["counts_from"])
        np.testing.assert_array_equal(found.counts.toarray(), counts)
        assert list(found.cells) == cells, "cells"
        assert list(found.genes) == genes, "genes"
        assert list(found.conditions) == labels, "labels"
    if refused is not None:
        raise refused
    try:
        read_h5ad(path, work)
    except ValueError as error:  # not every file has all that it asks for
        if not is_own(error):
            raise


def read_gmt(path: Path, work: Path) -> None:
    from samsvae_core.genesets import collections

    collections.as_gmt(collections.parse_gmt(path.read_bytes(), "own"))


def read_session(path: Path, work: Path) -> None:
    from app.session import session_file
    from samsvae_core.genesets import collections
    from tests.fuzz.mutations import PAGES

    found = session_file.read(path.read_bytes(), PAGES)
    for name, content in found.collections.items():
        collections.parse_gmt(content.encode(), name)
    session_file.written(found)


def read_zip(path: Path, work: Path) -> None:
    import shutil

    from samsvae_core.bundle import archive

    models = work / "models"
    with path.open("rb") as file:
        place = archive.unpack(file, models, "given")
    try:
        read_bundle(place)
    finally:
        shutil.rmtree(place)
    assert not list(models.glob("*")) or not any((models / ".incoming").iterdir())


def read_bundle(path: Path) -> None:
    from samsvae_core.bundle.opening import load

    bundle = load(path)
    for table in TABLES:
        getattr(bundle, table)
    bundle.observed_shift(bundle.conditions.index[-1])


TABLES = ("observed", "loadings", "masks", "frontier", "calibration", "cells", "history", "metrics")
TABLES += ("perturbations_umap", "card", "latent_effects", "trained_dosages", "latent_shifts")
READERS = {
    "h5ad": read_h5ad,
    "structure": read_structure,
    "gmt": read_gmt,
    "session": read_session,
    "zip": read_zip,
}


# The process that watches


def run(cases: Sequence[Sequence[Any]], work: Path) -> list[Outcome]:
    """Return the outcome of every case; after a crash or hang the rest run in a new process."""
    work.mkdir(parents=True, exist_ok=True)
    found: list[Outcome] = []
    rest = list(cases)
    while rest:
        outcomes, fault = run_until_fault(rest, work)
        found += outcomes
        rest = rest[len(outcomes) :]
        if fault and rest:
            found.append(Outcome(rest[0][0], *fault))
            rest = rest[1:]
    return found


def run_until_fault(
    cases: Sequence[Sequence[Any]], work: Path
) -> tuple[list[Outcome], tuple[str, str, float] | None]:
    listed = work / "cases.json"
    listed.write_text(json.dumps([list(case) for case in cases]))
    command = [sys.executable, *CHILD, str(listed), str(work)]
    place = os.environ | {"SAMSVAE_CACHE": str(work / "cache"), "TMPDIR": str(work)}
    place |= {"PYTHONPATH": str(ROOT)}
    place |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    with tempfile.TemporaryFile() as errors:
        with subprocess.Popen(
            command, cwd=ROOT, env=place, stdout=subprocess.PIPE, stderr=errors
        ) as process:
            found, fault = listen(process)
        if fault is None and len(found) < len(cases):
            errors.seek(0)
            end = errors.read()[-1500:].decode(errors="replace")
            fault = (f"ended by {process.returncode}", end, 0.0)
    return found, fault


def listen(process: subprocess.Popen[bytes]) -> tuple[list[Outcome], tuple[str, str, float] | None]:
    """Return the outcomes as they are reported; a hang ends the process."""
    assert process.stdout is not None
    found: list[Outcome] = []
    pending, waited_for_start = b"", True
    while True:
        patience = 120 if waited_for_start else SECONDS + GRACE
        ready, _, _ = select.select([process.stdout], [], [], patience)
        if not ready:
            process.kill()
            return found, ("hung", f"no answer within {SECONDS} s", float(SECONDS))
        piece = os.read(process.stdout.fileno(), 2**16)
        if not piece:
            return found, None
        pending += piece
        *lines, pending = pending.split(b"\n")
        for line in lines:
            waited_for_start = False
            told = json.loads(line)
            if "outcome" in told:
                outcome = told["outcome"] if told["seconds"] <= SECONDS else "slow"
                last = told["told"], told["seconds"], told.get("peak", 0)
                found.append(Outcome(told["number"], outcome, *last))


def table(cases: Sequence[Sequence[Any]], outcomes: Sequence[Outcome]) -> str:
    """Return counts by kind of file, and the slowest file of each."""
    kinds = {case[0]: case[1] for case in cases}
    lines = [f"{'kind':<10}{'files':>7}{WORKED:>9}{REFUSED:>9}{'faults':>8}{'slowest, s':>12}"]
    for kind in (*READERS, "all"):
        of = [o for o in outcomes if kind in ("all", kinds[o.number])]
        worked, refused = (sum(o.outcome == what for o in of) for what in (WORKED, REFUSED))
        slowest = max((o.seconds for o in of), default=0.0)
        faults = len(of) - worked - refused
        lines.append(f"{kind:<10}{len(of):>7}{worked:>9}{refused:>9}{faults:>8}{slowest:>12.1f}")
    most = max(outcomes, key=lambda o: o.peak, default=None)  # the first of them
    if most is not None:
        name = Path({case[0]: case[3] for case in cases}[most.number]).name
        lines.append(f"{most.peak:,} MB of memory at most, libraries included, from {name} on")
    return "\n".join(lines)


def faults(cases: Sequence[Sequence[Any]], outcomes: Sequence[Outcome]) -> list[str]:
    by_number = {case[0]: case for case in cases}
    return [
        f"{Path(by_number[o.number][3]).name} ({by_number[o.number][2]}): {o.outcome}: {o.told}"
        for o in outcomes
        if o.outcome not in (WORKED, REFUSED)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--files", type=int)
    parser.add_argument("--structures", type=int, help="So many files of structures instead.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Leave the files in this new folder.")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*map(Path, arguments.child))
        return
    from tests.fuzz import mutations, structures

    n = arguments.files or (120 if arguments.quick else 1_200)
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.keep or Path(temporary)
        began = time.monotonic()
        bundle = ROOT / "pretrained" / "norman2019-subset"
        if arguments.structures:
            cases = structures.corpus(place / "files", arguments.structures, arguments.seed)
        else:
            cases = mutations.corpus(place / "files", n, arguments.seed, bundle)
        made = time.monotonic()
        outcomes = run(cases, place / "work")
        print(table(cases, outcomes))
        print(f"made in {made - began:.0f} s, read in {time.monotonic() - made:.0f} s")
        found = faults(cases, outcomes)
        print("\n".join(["", *found]) if found else "No fault.")
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
