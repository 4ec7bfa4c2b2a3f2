"""gseapy's multilevel preranked test, for many rankings at a time, in worker processes.

gseapy's core can panic in ways no `except` catches, hang, and be slow. It therefore runs in
processes that take jobs from a folder, at most one per processor. Answers are cached on disk by
content, in the folder `SAMSVAE_CACHE`, so a cancelled run continues where it was.

Multilevel draws 1,000 random sets and continues only if p is small. For p above about 1e-3 those
draws alone decide, and log2 p is known to 0.4. If that is not enough, a ranking asks for a number
of `draws`: the worker draws and counts random sets of the same size in NumPy, in a tenth of
gseapy's time.
"""

import hashlib
import inspect
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from samsvae_core.system import cache
from samsvae_core.system.files import OutputError, atomic_write, cache_folder
from samsvae_core.system.machine import whole_cores

LOGGER = logging.getLogger(__name__)
RECIPE = 3  # raise it when results change, so that cached ones are made again
SETS_AT_ONCE = 250  # sets of one job; gseapy keeps every set's running sum
SECONDS = 600  # limit of one job; 250 sets on 8,000 genes take 2
POLL = 0.05  # seconds between looks at the workers
STARTS = 3  # workers that may die before taking a job until all is given up

Answer = list  # the answer of one set: see `Ranking`


class Ranking(NamedTuple):
    """Scores from high to low, and sets given as the ranks of their genes.

    Without `draws`, the answer of a set is gseapy's ES, NES, p, leading edge (as ranks) and error
    of log2 p (None if unknown). With a number of draws it is what was counted: draws whose ES has
    the set's sign, those among them that are at least as extreme, and the mean of their ES.
    """

    scores: list[float]
    sets: list[list[int]]
    draws: int = 0

    def key(self, seed: int) -> str:
        """Return a hash of everything the answers depend on."""
        recipe = json.dumps([RECIPE, version("gseapy"), SETS_AT_ONCE, seed, *self])
        return hashlib.sha256(recipe.encode()).hexdigest()

    def jobs(self, seed: int) -> Iterator[str]:
        """Yield the jobs of workers, `SETS_AT_ONCE` sets each."""
        for start in range(0, len(self.sets), SETS_AT_ONCE):
            part = self.sets[start : start + SETS_AT_ONCE]
            asked = {"scores": self.scores, "sets": part, "draws": self.draws, "seed": seed}
            yield json.dumps(asked)


class Progress(NamedTuple):
    """Jobs done out of a total; cached ones count as done."""

    done: int
    total: int


class CancelledError(Exception):
    """A run was cancelled; what it had finished is cached for the next."""


def prerank(
    rankings: list[Ranking],
    seed: int = 0,
    n_processes: int | None = None,
    progress: Callable[[Progress], object] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[list[Answer] | str]:
    """Return the answers to each ranking's sets, or the reason why there are none.

    `progress` is called and `cancelled` asked regularly. Raises CancelledError.
    """
    keys = [ranking.key(seed) for ranking in rankings]
    unique = dict(zip(keys, rankings, strict=True))
    found: dict[str, list[Answer] | str] = {}
    for key in unique:
        if (answers := _remembered(key)) is not None:
            found[key] = answers
    asked = {key: ranking for key, ranking in unique.items() if key not in found}
    if progress is not None:
        progress(Progress(len(found), len(unique)))
    for key, answer in _ask(asked, seed, n_processes or whole_cores(), cancelled):
        found[key] = answer
        if not isinstance(answer, str):  # failures are not cached, as they may pass
            _remember(key, answer)
        if progress is not None:
            progress(Progress(len(found), len(unique)))
    return [found[key] for key in keys]


def _ask(
    rankings: dict[str, Ranking], seed: int, n_processes: int, cancelled: Callable[[], bool]
) -> Iterator[tuple[str, list[Answer] | str]]:
    """Yield each ranking when it is done, with its answers or why there are none.

    A worker that dies costs the ranking whose job it had. If three die before taking any, so would
    the next, and all rankings fail.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        waiting: dict[str, list[Path]] = {}
        for key, ranking in rankings.items():
            waiting[key] = []
            for job in ranking.jobs(seed):
                waiting[key].append(folder / f"{len(waiting):05}-{len(waiting[key]):05}.job")
                waiting[key][-1].write_text(job)
        n_workers = min(n_processes, sum(map(len, waiting.values())))
        failed: dict[Path, str] = {}
        n_false_starts = 0
        workers: dict[int, subprocess.Popen] = {}
        try:
            while waiting:
                for number in range(n_workers):
                    if number in workers and workers[number].poll() is not None:
                        lost, reason = _lost(folder, number, workers.pop(number).returncode)
                        n_false_starts += bool(reason and not lost)
                        if n_false_starts == STARTS:
                            lost = list(folder.glob("*.job"))
                        failed |= dict.fromkeys([f.with_suffix(".job") for f in lost], reason)
                    if number not in workers and any(folder.glob("*.job")):
                        workers[number] = _hired(folder, number)
                for key, files in list(waiting.items()):
                    why = next((failed[file] for file in files if file in failed), None)
                    if why or all(file.with_suffix(".answer").exists() for file in files):
                        del waiting[key]
                        yield key, why or _answers(files)
                    if why:
                        for file in files:
                            file.unlink(missing_ok=True)
                if waiting and cancelled():
                    raise CancelledError
                time.sleep(POLL if waiting else 0)
        finally:
            for worker in workers.values():
                worker.kill()
                worker.wait()


def _answers(files: list[Path]) -> list[Answer]:
    parts = [json.loads(file.with_suffix(".answer").read_text()) for file in files]
    return [answer for part in parts for answer in part]


def _hired(folder: Path, number: int) -> subprocess.Popen:
    """Start a worker as a separate program; multiprocessing would rerun Streamlit's main page."""
    program = f"{inspect.getsource(_drawn)}\n{inspect.getsource(_work)}\n{_work.__name__}()"
    told = [str(SECONDS), str(folder), str(number), str(os.getpid())]
    command = [sys.executable, "-P", "-c", program, *told]
    environment = os.environ | {"MPLBACKEND": "Agg"}  # a notebook's own backend would not load
    with (folder / f"{number}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)


def _lost(folder: Path, number: int, status: int) -> tuple[list[Path], str]:
    """Return the jobs lost with a worker that has ended, and why; no reason if all is well."""
    log = (folder / f"{number}.log").read_text(errors="replace")
    last = [f"exit status {status}", *log.split("\n")[:-1]][-1]
    why = f"failed: {f'more than {SECONDS} s' if 'Timeout (' in log else last}"
    held = list(folder.glob(f"*.held{number}"))
    for file in held:
        file.unlink()
    return held, why if held or status else ""


def _drawn(scores: list[float], sets: list[list[int]], draws: int, seed: int) -> list[list]:
    """Return, per set, how many draws have its sign, how many are as extreme, and their mean ES.

    Sets of one size share their draws. A random set is made of independent genes if repeats are
    rare (sets with repeats are dropped), else of the first genes of a random order.
    """
    import numpy as np

    weight, n = np.abs(scores), len(scores)
    found: list[list] = [[] for _ in sets]

    def walk(rows: np.ndarray) -> np.ndarray:
        m = rows.shape[1]
        hits = weight[rows].cumsum(axis=1)
        hits /= hits[:, -1:]
        misses = (rows - np.arange(m)) / (n - m)
        high = (hits - misses).max(axis=1)
        low = (np.hstack([np.zeros((len(rows), 1)), hits[:, :-1]]) - misses).min(axis=1)
        return np.where(high > -low, high, low)

    for m in sorted({len(genes) for genes in sets}):
        places = [place for place, genes in enumerate(sets) if len(genes) == m]
        own = np.array([walk(np.sort(np.array([sets[place]])))[0] for place in places])
        rng = np.random.default_rng([seed, m])
        mostly_unique = m * m < 4 * n
        at_once = max(1, 2**17 // (m if mostly_unique else n))
        counted, same, extreme, total = 0, np.zeros(2), np.zeros(len(own)), np.zeros(2)
        while counted < draws:
            if mostly_unique:
                rows = np.sort(rng.integers(n, size=(at_once, m), dtype=np.int32), axis=1)
                rows = rows[(rows[:, 1:] != rows[:, :-1]).all(axis=1)]
            else:
                order = rng.random((at_once, n), dtype=np.float32).argpartition(m - 1, axis=1)
                rows = np.sort(order[:, :m], axis=1)
            drawn = walk(rows[: draws - counted])
            counted += len(drawn)
            up = drawn >= 0
            same += up.sum(), (~up).sum()
            total += drawn[up].sum(), drawn[~up].sum()
            for k, es in enumerate(own):
                far = es * (1 - 1e-9)  # a draw of the very same genes is as extreme
                extreme[k] += (drawn >= far).sum() if es >= 0 else (drawn <= far).sum()
        for k, (place, es) in enumerate(zip(places, own, strict=True)):
            side = int(es < 0)
            mean = total[side] / max(1.0, same[side])
            found[place] = [int(same[side]), int(extreme[k]), float(mean)]
    return found


def _work() -> None:
    """Work off jobs: the worker's program, which alone dies of a panic or of the time limit.

    It is sent as source with `_drawn`, so it stands alone and loads gseapy but none of our code. A
    job is taken by renaming it, which succeeds once. A missing p (ES of the other sign only) counts
    as 1.
    """
    import faulthandler
    import json
    import os
    import sys
    from pathlib import Path

    seconds, folder, number = float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    employer = int(sys.argv[4])
    for file in sorted(folder.glob("*.job")):
        if os.getppid() != employer:
            return  # the parent has died, and nobody waits for answers
        held = file.with_suffix(f".held{number}")
        try:
            file.rename(held)
        except FileNotFoundError:
            continue  # another worker has it
        faulthandler.dump_traceback_later(seconds, exit=True)
        job = json.loads(held.read_text())
        if job["draws"]:
            answers = _drawn(job["scores"], job["sets"], job["draws"], job["seed"])
            file.with_suffix(".part").write_text(json.dumps(answers))
            file.with_suffix(".part").rename(file.with_suffix(".answer"))
            held.unlink()
            continue
        import pandas as pd  # takes two seconds with gseapy, which draws do not need
        from gseapy import prerank

        ranked = pd.Series(job["scores"], index=[f"G{rank}" for rank in range(len(job["scores"]))])
        sets = {f"S{n}": [f"G{rank}" for rank in genes] for n, genes in enumerate(job["sets"])}
        found = prerank(
            ranked,
            sets,
            min_size=1,
            max_size=len(ranked),
            threads=0,  # means 1; given 1, gseapy uses 0 on a single core
            seed=job["seed"],
            method="multilevel",
            no_plot=True,
        ).results
        answers = []
        for term in sets:
            es, nes, p, edge = (found[term][key] for key in ("es", "nes", "pval", "lead_genes"))
            p = min(max(p, 1e-50), 1.0) if p == p else 1.0  # 1e-50 is where multilevel stops
            error = found[term]["log2err"]
            edge = [int(gene[1:]) for gene in edge.split(";") if gene]
            answers.append([es, nes, p, edge, error if error == error else None])
        del found  # frees every set's running sum before the next job
        file.with_suffix(".part").write_text(json.dumps(answers))
        file.with_suffix(".part").rename(file.with_suffix(".answer"))
        held.unlink()


def _place(key: str) -> Path:
    return cache_folder() / "enrichment" / f"{key}.json"


def _remembered(key: str) -> list[Answer] | None:
    """Return the cached answers of an earlier run, or None if they are absent or damaged."""
    try:
        checksum, _, text = _place(key).read_text().partition("\n")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        LOGGER.warning("%s cannot be read and is made again: %s", _place(key), error)
        return None
    if hashlib.sha256(text.encode()).hexdigest() != checksum:
        LOGGER.warning("%s is damaged and is made again", _place(key))
        return None
    cache.use(_place(key))
    return json.loads(text)


def _remember(key: str, answers: list[Answer]) -> None:
    text = json.dumps(answers)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    try:
        atomic_write(_place(key), f"{checksum}\n{text}".encode())
        cache.make_room(_place(key))
    except OutputError:
        LOGGER.warning("Not kept for the next time: %s; set SAMSVAE_CACHE.", _place(key).parent)
