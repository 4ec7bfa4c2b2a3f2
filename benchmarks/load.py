"""Does the dashboard hold with 20 visitors at once, and while a model is trained beside it?

    python benchmarks/load.py --quick      # 20 visitors for 20 s: 40 s in all
    python benchmarks/load.py              # 20 visitors for 5 minutes
    python benchmarks/load.py --training   # 2 visitors for 5 minutes beside a training, 1 thread

Each visitor is a session that goes from page to page at random, follows links to a perturbation, a
gene or a composition, and moves a slider, pausing for 10 to 20 s, or 2 to 5 s beside a training.
Visitors speak Streamlit's protocol and draw nothing (`visitor.py`), because 20 browsers on 2 cores
would measure the browsers; their time is from the request to the last message of the redraw. One
real Chromium of 1440 x 1200 visits the pages beside them; its time is to the last change of the
page, as in `dashboard.py`. Server, visitors, browser and training share the cores; the server has 2
of them. Every page is opened once before anything is timed, except by the browser in a quick run,
whose times are therefore not judged. Fails if a page shows an error or misses a goal.
Expected on 2 free cores: nothing fails; p95 below 3 s, and below 1.5 s beside a training.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from dashboard import ARGUMENTS, ROOT, SMALL, Views, memory, served
from playwright.sync_api import sync_playwright
from visitor import Redraw, Visitor

from samsvae_core.bundle import layout

N_VISITORS, N_BESIDE_TRAINING = 20, 2
MINUTES, QUICK_SECONDS = 5, 20
LOOKING, BUSY = (10, 20), (2, 5)  # seconds between two redraws, alone and beside a training
GOAL, GOAL_TRAINING = 3.0, 1.5  # seconds, p95
N_CORES = 2
PAGES = sorted(p.stem for p in (ROOT / "app" / "views").glob("*.py") if p.stem != "__init__")
FIRST = "overview"  # the page at the dashboard's own address
SLIDER = "n_genes"  # on Compose and Perturbation
NICE = 10  # the priority of trainings started from a page
TRAINED = ("--cells", "20000", "--genes", "1000", "--perturbations", "50")  # simulated data


class Timed(NamedTuple):
    """The time of a redraw and its page."""

    what: str
    redraw: Redraw


class Person(threading.Thread):
    """A visitor who looks around until told to stop."""

    def __init__(
        self,
        url: str,
        number: int,
        names: list[str],
        genes: list[str],
        looking: tuple[float, float] = LOOKING,
    ) -> None:
        super().__init__(daemon=True)
        self.url, self.names, self.genes, self.looking = url, names, genes, looking
        self.dice = random.Random(number)
        self.seen: list[Timed] = []
        self.problem = ""
        self.leave = threading.Event()

    def run(self) -> None:
        try:
            with Visitor(self.url) as visitor:
                while not self.leave.wait(self.dice.uniform(*self.looking) * self.first()):
                    self.seen.append(self.act(visitor))
        except Exception as error:  # noqa: BLE001  # told in the table
            self.problem = f"{type(error).__name__}: {error}"

    def first(self) -> float:
        """Return a random first pause, so that visitors do not all arrive at once."""
        return 1 if self.seen else self.dice.random()

    def act(self, visitor: Visitor) -> Timed:
        """Move the slider half of the time, if the page has one, else open another page."""
        if SLIDER in visitor.widgets and self.dice.random() < 0.5:
            at = {"data": [self.dice.randrange(10, 61, 2)]}
            return Timed(f"{visitor.page}, slider", visitor.set(SLIDER, double_array_value=at))
        page = self.dice.choice(PAGES)
        return Timed(page, visitor.go("" if page == FIRST else page, self.query(page)))

    def query(self, page: str) -> str:
        """Return the query of a link into a page."""
        if page == "perturbation":
            return f"p={quote(self.dice.choice(self.names))}"
        if page == "gene":
            return f"g={quote(self.dice.choice(self.genes))}"
        if page == "compose":
            pair = self.dice.sample(self.names, 2)
            dosages = [f"{name}:{self.dice.randrange(1, 41) / 20:g}" for name in pair]
            return f"c={quote(','.join(dosages))}"
        return ""


@contextmanager
def training(folder: Path) -> Iterator[Callable[[], str]]:
    """Run a training on one thread; gives a function that tells whether it goes on."""
    data, run = folder / "screen.h5ad", folder / "run"
    command = [sys.executable, "-m", "samsvae_core"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    subprocess.run([*command, "simulate", data, *TRAINED], cwd=ROOT, check=True, env=env)
    began = subprocess.Popen(
        [*command, "train", data, "--output", run, "--steps", "1000000", "--device", "cpu"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.DEVNULL,
    )
    os.setpriority(os.PRIO_PROCESS, began.pid, NICE)
    try:
        while not (run / "history.csv").exists():
            if began.poll() is not None:
                raise SystemExit("The training ended before its first epoch.")
            time.sleep(0.5)
        yield lambda: "goes on" if began.poll() is None else "ENDED"
    finally:
        began.terminate()
        began.wait()


def looked_at(url: str, seconds: float, warm: bool) -> list[Timed]:
    """Return the times of a real browser, page by page, each opened once before if `warm`."""
    found = []
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser")
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        size = {"width": 1440, "height": 1200}
        context = browser.new_context(viewport=size)  # type: ignore[arg-type]
        views = Views(context, f"{url}/?model={SMALL}")
        links = views.links()
        for link in links * warm:  # loads parts of the program
            views.go(link)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for link in links:
                left = end - time.monotonic()
                if left > 0:
                    found.append(Timed("browser", Redraw(views.go(link), 0, 0, "")))
                    time.sleep(min(max(left - 1, 0), seconds / 20))
        browser.close()
    return found


def table(rows: dict[str, list[Redraw]], goal: float, quick: bool) -> bool:
    """Print the times by row; returns whether all are within the goal."""
    print(f"{'seconds':28} {'n':>5} {'median':>7} {'p95':>7} {'most':>7} {'failed':>7}")
    good = True
    for what, redraws in rows.items():
        times = [redraw.seconds for redraw in redraws]
        failed = sum(bool(redraw.problem) for redraw in redraws)
        verdict = ""
        if what.startswith("all") or (what == "browser" and not quick):
            verdict = f"goal {goal:.1f}"
            if failed or p95(times) > goal:
                good, verdict = False, f"{verdict} MISSED"
        print(
            f"{what:28} {len(times):5} {statistics.median(times):7.2f} {p95(times):7.2f}"
            f" {max(times):7.2f} {failed:7} {verdict}"
        )
    return good


def p95(times: list[float]) -> float:
    """Return the 95th percentile."""
    return sorted(times)[max(0, -(-95 * len(times) // 100) - 1)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SECONDS} s")
    parser.add_argument("--training", action="store_true", help="a training runs beside")
    parser.add_argument("--visitors", type=int)
    options = parser.parse_args()
    seconds = QUICK_SECONDS if options.quick else 60 * MINUTES
    n = options.visitors or (N_BESIDE_TRAINING if options.training else N_VISITORS)
    folder = layout.models_folder() / SMALL
    names = layout.read_csv(folder / "perturbations.csv")["perturbation"].astype(str).tolist()
    genes = layout.read_csv(folder / "genes.csv")["gene"].astype(str).tolist()
    with tempfile.TemporaryDirectory() as place, served() as (url, pid):
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(pid, sorted(os.sched_getaffinity(0))[:N_CORES])
        with Visitor(url) as warm:
            for page in PAGES:
                warm.go("" if page == FIRST else page, Person(url, 0, names, genes).query(page))
        before = memory(pid)
        if options.training:
            with training(Path(place)) as state:
                people = [Person(url, number, names, genes, BUSY) for number in range(1, n + 1)]
                seen = together(people, url, seconds, not options.quick)
                print(f"a training on one thread beside: {state()}")
        else:
            people = [Person(url, number, names, genes) for number in range(1, n + 1)]
            seen = together(people, url, seconds, not options.quick)
        after = memory(pid)
    goal = GOAL_TRAINING if options.training else GOAL
    return told(people, seen, before, after, goal, options.quick)


def together(people: list[Person], url: str, seconds: float, warm: bool) -> list[Timed]:
    """Run all visitors and a browser at once; returns the browser's times."""
    for person in people:
        person.start()
    seen = looked_at(url, seconds, warm)
    for person in people:
        person.leave.set()
    for person in people:
        person.join(60)
    return seen


def told(
    people: list[Person], seen: list[Timed], before: float, after: float, goal: float, quick: bool
) -> int:
    """Print what was measured; returns 1 if a goal is missed."""
    timed = [each for person in people for each in person.seen]
    rows: dict[str, list[Redraw]] = {f"all of {len(people)} visitors": [t.redraw for t in timed]}
    for what, redraw in sorted(timed):
        rows.setdefault(what, []).append(redraw)
    rows["browser"] = [each.redraw for each in seen]
    good = table(rows, goal, quick)
    print(f"memory of the server: {before:.2f} GB before, {after:.2f} GB after")
    problems = [p.problem for p in people if p.problem]
    problems += [f"{t.what}: {t.redraw.problem}" for t in timed if t.redraw.problem]
    for problem in problems[:10]:
        print(f"FAILED {problem}")
    return 0 if good and not problems else 1


if __name__ == "__main__":
    sys.exit(main())
