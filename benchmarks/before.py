"""How much faster than an earlier commit? Two checkouts against each other, in turns.

    git worktree add --detach ../before 04e9f93    # before steps and pages were made fast
    python benchmarks/before.py ../before          # 4 minutes
    python benchmarks/before.py ../before --train  # 15 minutes more

Each figure is the smallest wall time of its repeats, in a separate process with the code of that
checkout, this Python and its packages. Timed on the shipped papalexi2021 are a composition of two
perturbations (64 draws), the loadings of all mechanisms, the server's part of the first page (its
script, without a browser) for a later visitor, `samsvae --help` and `samsvae evaluate`. With
--train also a whole `samsvae train` with the defaults, tables included, and the validation bound it
reaches. Needs papalexi2021_thp1.h5ad and papalexi2021_split.csv in SAMSVAE_DATA (default
../shared/data). Expected: docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
CELLS, SPLIT = DATA / "papalexi2021_thp1.h5ad", DATA / "papalexi2021_split.csv"
TURNS = 3
CHILD = """
import json, logging, time, warnings
logging.disable(logging.CRITICAL)
from pathlib import Path
import itertools
from streamlit.testing.v1 import AppTest
from samsvae_core import compose, load
try:
    from samsvae_core.analysis.loadings import loadings
except ImportError:  # before the modules had wings
    from samsvae_core.interpretation import loadings

def least(run, repeats):
    run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)

seeds = itertools.count()
model = load(Path("pretrained/papalexi2021"))
page = AppTest.from_file(str(Path("app/main.py").resolve()), default_timeout=120)
print(json.dumps({
    "compose": least(  # another seed each time, for what was composed is remembered
        lambda: compose(model, {"STAT1": 1.0, "SMAD4": 1.0}, seed=next(seeds)), 20),
    "loadings": least(lambda: loadings(model.model, model.reference, model.genes), 5),
    "first page": least(page.run, 5),
}))
"""


def within(checkout: Path, *command: str) -> str:
    """Return what a Python command prints when run in a checkout with its code."""
    ran = subprocess.run(
        [sys.executable, *command],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return ran.stdout


def computed(checkout: Path) -> dict[str, float]:
    """Return the seconds of each part."""
    found: dict[str, float] = json.loads(within(checkout, "-c", CHILD).splitlines()[-1])
    found["samsvae --help"] = min(started(checkout) for _ in range(5))
    began = time.perf_counter()
    model = ["pretrained/papalexi2021", "--data", str(CELLS)]
    with tempfile.TemporaryDirectory() as folder:
        output = ["--output", str(Path(folder) / "metrics.json")]
        within(checkout, "-m", "samsvae_core", "evaluate", *model, *output)
    return found | {"evaluate": time.perf_counter() - began}


def started(checkout: Path) -> float:
    """Seconds that the command line takes to say what it can do."""
    began = time.perf_counter()
    within(checkout, "-m", "samsvae_core", "--help")
    return time.perf_counter() - began


def trained(checkout: Path) -> tuple[float, float]:
    """Return the seconds of `samsvae train` and the best validation bound, in nats per cell."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        began = time.perf_counter()
        arguments = ["--split", str(SPLIT), "--output", str(run), "--device", "cpu"]
        within(checkout, "-m", "samsvae_core", "train", str(CELLS), *arguments)
        seconds = time.perf_counter() - began
        rows = [line.split(",") for line in (run / "history.csv").read_text().splitlines()]
        place = rows[0].index("validation_bound")
        return seconds, max(float(row[place]) for row in rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout of the earlier commit")
    parser.add_argument("--train", action="store_true", help="`samsvae train`, too")
    given = parser.parse_args()
    checkouts = given.before.resolve(), ROOT
    least: dict[str, list[float]] = {}
    for _ in range(TURNS):
        for place, checkout in enumerate(checkouts):
            for name, seconds in computed(checkout).items():
                figures = least.setdefault(name, [float("inf")] * 2)
                figures[place] = min(figures[place], seconds)
    for name, (before, now) in least.items():
        print(
            f"{name:12} before {before:7.3f} s  now {now:7.3f} s  {before / now:5.2f} times as fast"
        )
    if given.train:
        (before, old), (now, new) = map(trained, checkouts)
        print(
            f"{'train':12} before {before:7.0f} s  now {now:7.0f} s  {before / now:5.2f} times as "
            f"fast; best validation bound {old:.2f} and {new:.2f} nats per cell"
        )


if __name__ == "__main__":
    main()
