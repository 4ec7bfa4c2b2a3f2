"""Is the dashboard quick, in a real browser, with a small and with a large model?

    python benchmarks/dashboard.py --quick     # the small model, one visitor: 50 s on 2 cores
    python benchmarks/dashboard.py             # both: 3 minutes; the first time 3 more

Needs Chromium and playwright. The small model is the shipped papalexi2021; the large one, 5,000
genes x 200 mechanisms x 700 perturbations, is simulated the first time and kept in --folder. Each
has its own server and a browser of 1440 x 1200, which share the cores. Every view is opened once
before anything is timed. Times run from the key or click to the last change of the page, once the
script has ended and nothing has changed for 0.4 s, so figures are drawn. The text that tables write
for screen readers 0.2 s later is not waited for. First paint is from the address to the title of
the view, with an empty cache. Fails if a page does. Expected: every row within its goal on 2 free
cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from samsvae_core.analysis import all_shifts
from samsvae_core.bundle import layout
from samsvae_core.data.cells import CellData
from samsvae_core.evaluation import evaluate
from samsvae_core.evaluation.evaluate import EvaluationConfig
from samsvae_core.evaluation.strata import FEWEST_CELLS
from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.symbols import _annotation
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.simulate import cell_data, draw_counts
from samsvae_core.pipeline import build, train
from samsvae_core.system.files import atomic_write, cache_folder
from samsvae_core.training.config import TrainConfig

LARGE = "large-simulated"
N_CELLS, N_GENES, N_PERTURBATIONS, N_LATENT, N_PAIRS = 8000, 5000, 700, 200, 30
MECHANISMS = (2, 6)  # mechanisms a perturbation uses, from and to
DEPTH = 1500.0  # median counts of a cell
N_TESTED = 40  # conditions with enough held-out cells to be scored
SHORT = EvaluationConfig(iwelbo_samples=2, effect_draws=20, replicate_sets=1, shift_draws=4)

ROOT = Path(__file__).resolve().parents[1]
SMALL = "papalexi2021"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding"]
ARGUMENTS += ["--disable-background-timer-throttling"]  # sessions in the background count too
PATIENCE = 60_000  # milliseconds for one page
SESSIONS, OPEN = 5, 10  # sessions that compose at once, and that are open while memory is measured
ROUNDS = 3  # of all sessions at once
REPEATS = 4  # REPEATS + ROUNDS is below the steps between the dosages of two sessions
WATCH = """
window.seen = {start: 0, last: 0};
for (const kind of ["keydown", "pointerdown"])
  addEventListener(kind, () => { seen.start = performance.now(); }, true);
const drawn = record => !(record.target.parentElement ?? record.target).closest?.("canvas");
new MutationObserver(all => { if (all.some(drawn)) seen.last = performance.now(); }).observe(
  document, {subtree: true, childList: true, attributes: true, characterData: true});
new MutationObserver((_, own) => {
  if (document.querySelector("[data-testid=stMain] h1")) {
    seen.title = performance.now(); own.disconnect();
  }
}).observe(document, {subtree: true, childList: true});
"""
STILL = """() => {
  const app = document.querySelector("[data-testid=stApp]");
  return app && app.dataset.testScriptState === "notRunning" && seen.last > seen.start
    && document.querySelector(".st-key-end") && performance.now() - seen.last > 400;
}"""


# The large model


def large_bundle(folder: Path) -> Path:
    """Return a folder with the large bundle, made if it is not there yet.

    Nothing is trained: the model has a random decoder and a posterior as certain as that of the
    shipped models, with cells drawn from it and real symbols, so that gene sets and search have
    something to find. What takes long but does not matter for a page's speed is cut down: evidence
    of entries is made up, maps are principal components, few conditions are scored, and shifts are
    stored from fewer draws.
    """
    run = folder / LARGE
    if (run / "manifest.json").exists():
        return folder
    rng = np.random.default_rng(0)
    model = random_model(rng)
    data = cells(model, rng)
    parts = split(data, rng)
    settings = {
        "schema": layout.SCHEMA,
        "model": "sams-vae",
        "frontier": False,
        "model_config": asdict(model.config),
        "train_config": asdict(TrainConfig()),
        "data": data.source,
        "control": data.control,
        "origin": asdict(train.Origin(title="Simulated, large", source="simulated")),
    }
    build.write_csv(run / "split.csv", pd.DataFrame({"cell": data.cells, "split": parts}))
    build.write_csv(run / "genes.csv", pd.DataFrame({"gene": data.genes}))
    columns = ["epoch", "step", "bound", "validation_bound", "active", "mechanisms"]
    build.write_csv(run / "history.csv", pd.DataFrame([[1] * 6, [2] * 6], columns=columns))
    atomic_write(run / "config.json", layout.to_json(settings))
    with ExitStack() as stack:
        for owner, name, instead in (
            (build, "entry_evidence", made_up_evidence),
            (build, "umap_coordinates", principal_components),
            (build, "COLLECTIONS", ("hallmark",)),
            (all_shifts, "N_SAMPLES", 4),
            (evaluate, "full_evaluation", partial(evaluate.full_evaluation, config=SHORT)),
        ):
            stack.enter_context(patch.object(owner, name, instead))
        build.build_bundle(model, data, parts, run, "cpu", cell_values=True)
    return folder


def random_model(rng: np.random.Generator) -> SAMSVAE:
    """Return a model with few mechanisms per perturbation and a posterior like shipped ones."""
    config = ModelConfig(N_GENES, N_PERTURBATIONS, N_LATENT)
    shape = N_PERTURBATIONS, N_LATENT
    used = np.argsort(rng.random(shape), axis=1) < rng.integers(
        MECHANISMS[0], MECHANISMS[1] + 1, size=(N_PERTURBATIONS, 1)
    )
    torch.manual_seed(0)
    model = SAMSVAE(config).requires_grad_(False)
    for layer in (model.decoder.hidden, model.decoder.out):
        torch.nn.init.orthogonal_(layer.weight, gain=3.0)
    model.decoder.out.bias.normal_(0, 1)
    model.encoder.out.weight.mul_(0.1)
    model.log_concentration.fill_(3.0)
    on = torch.from_numpy(used)
    model.mask_logits.copy_(torch.where(on, 4.0, -6.0) + torch.randn(shape))
    size = rng.choice([-1.0, 1.0], size=shape) * rng.normal(3.0, 0.5, size=shape)
    model.embedding_loc.copy_(torch.where(on, torch.from_numpy(size), 0.1 * torch.randn(shape)))
    model.embedding_log_scale.copy_(torch.where(on, 0.15, 0.5).log())
    return model


def cells(model: SAMSVAE, rng: np.random.Generator) -> CellData:
    """Return cells drawn from the model; genes of gene sets come first."""
    symbols = sorted(load_collection("hallmark").genes)
    others = _annotation().index[:20_000]
    genes = np.array(list(dict.fromkeys([*symbols, *others]))[:N_GENES])
    names = np.sort(rng.choice(others, N_PERTURBATIONS, replace=False))
    pairs = rng.choice(N_PERTURBATIONS, (N_PAIRS, 2), replace=False)
    rows = np.zeros((1 + N_PERTURBATIONS + N_PAIRS, N_PERTURBATIONS), dtype=np.float32)
    rows[1 : N_PERTURBATIONS + 1] = np.eye(N_PERTURBATIONS)
    np.put_along_axis(rows[N_PERTURBATIONS + 1 :], pairs, 1.0, axis=1)
    labels = np.array(["control", *names, *("+".join(sorted(names[p])) for p in pairs)])
    which = np.sort(np.arange(N_CELLS) % (len(rows) + 20))
    which[which >= len(rows)] = 0  # controls get more cells
    D = rows[which]
    z = rng.standard_normal((N_CELLS, N_LATENT)) + D @ model.effect_moments()[0].numpy()
    library = DEPTH * np.exp(0.3 * rng.standard_normal(N_CELLS))
    data = cell_data(draw_counts(model, z, library, 0), D, labels[which])
    return replace(data, genes=genes, perturbations=names)


def split(data: CellData, rng: np.random.Generator) -> np.ndarray:
    """Return a split with one validation and test cell per condition, more for a few scored."""
    parts = np.full(len(data.cells), "train", dtype=object)
    names = np.unique(data.conditions)
    scored = {data.control, *rng.choice(names, N_TESTED, replace=False)}
    for name in names:
        place = np.flatnonzero(data.conditions == name)
        n = FEWEST_CELLS if name in scored else 1
        parts[place[:n]], parts[place[n : 2 * n]] = "validation", "test"
    return parts.astype(str)


def made_up_evidence(model: SAMSVAE, data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Return made-up evidence in place of `entry_evidence`, which would take hours."""
    rng = np.random.default_rng(1)
    shape = N_PERTURBATIONS * N_LATENT
    on = (model.mask_logits > 0).numpy().ravel()
    return pd.DataFrame(
        {
            "perturbation": np.repeat(data.perturbations, N_LATENT),
            "mechanism": np.tile(np.arange(N_LATENT), N_PERTURBATIONS),
            "evidence": np.where(on, 2.0, -0.05) + 0.05 * rng.standard_normal(shape),
            "evidence_se": 0.05,
            "evidence_n": 2,
        }
    )


def principal_components(rows: np.ndarray) -> np.ndarray:
    """Return principal components in place of a UMAP."""
    rows = rows - rows.mean(0)
    return np.asarray(rows @ np.linalg.eigh(rows.T @ rows)[1][:, -2:])


# The browser


class Views:
    """A browser's session on the dashboard."""

    def __init__(self, context: BrowserContext, address: str) -> None:
        context.add_init_script(WATCH)
        context.set_default_timeout(PATIENCE)
        self.page: Page = context.new_page()
        self.page.goto(address, wait_until="commit")
        self.settle()

    def settle(self) -> float:
        """Return the seconds from the last key or click to the last change of the page."""
        self.page.wait_for_function(STILL, timeout=PATIENCE, polling=50)
        failed = self.page.locator("[data-testid=stException]")
        if failed.count():
            raise SystemExit(f"{self.page.url} fails: {failed.first.inner_text()[:500]}")
        return float(self.page.evaluate("(seen.last - seen.start) / 1000"))

    def links(self) -> list[str]:
        """Return the addresses of the views."""
        found = self.page.locator("[data-testid=stSidebarNavLink]").all()
        return [str(link.get_attribute("href")) for link in found]

    def go(self, link: str) -> float:
        self.page.locator(f'[data-testid=stSidebarNavLink][href="{link}"]').click()
        return self.settle()

    def change_dosage(self) -> None:
        """Lower a dosage by one step; `settle` then tells when the change was drawn."""
        self.page.locator("[data-testid=stMain] [data-testid=stSlider] input").first.focus()
        self.page.keyboard.press("ArrowLeft")

    def first_paint(self) -> float:
        return float(self.page.evaluate("seen.title / 1000"))


@contextmanager
def served(**environment: str) -> Iterator[tuple[str, int]]:
    """Start the dashboard with these variables; gives address and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.headless=true"]
    own = {"MALLOC_ARENA_MAX": "2"} | environment  # as `samsvae app` does
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    server = subprocess.Popen(
        [*command, "--server.port", str(port)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path, **own},
        stdout=subprocess.DEVNULL,
    )
    address = f"http://localhost:{port}"
    try:
        wait_for(f"{address}/_stcore/health")
        yield address, server.pid
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(url, timeout=1).close()
            return
        except OSError:
            time.sleep(0.25)
    raise SystemExit(f"Nothing answers at {url}.")


def memory(pid: int) -> float:
    """Return the gigabytes that a process and its children hold."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    own = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
    return own + sum(memory(int(child)) for child in children)


def measured(
    browser: Browser, name: str, models: Path | None, alone: bool
) -> dict[str, tuple[float, str]]:
    """Return figures by row of the table with a word on their spread; one visitor, if `alone`."""
    folder = models or layout.models_folder()
    pair = layout.read_csv(folder / name / "perturbations.csv")["perturbation"].iloc[[1, 5]]
    found = {}

    def composing(dosage: float) -> str:
        composition = quote(f"{pair.iloc[0]}:{dosage:g},{pair.iloc[1]}:1")
        return f"{server}/compose?model={name}&c={composition}"

    def opened(address: str) -> Views:
        size = {"width": 1440, "height": 1200}
        return Views(browser.new_context(viewport=size), address)  # type: ignore[arg-type]

    own = {"SAMSVAE_MODELS": str(models)} if models else {}
    with served(**own) as (server, pid):
        warm = opened(f"{server}/?model={name}")
        links = warm.links()
        for link in links:
            warm.go(link)
        found["first paint"] = median([opened(f"{server}/?model={name}").first_paint()])
        times = {link: warm.go(link) for link in links}
        slowest = max(times, key=lambda link: times[link])
        found["switch of view, median"] = statistics.median(times.values()), ""
        found["switch of view, slowest"] = times[slowest], slowest.rpartition("/")[2]
        sessions = [opened(composing(2))]
        redrawn = []
        for _ in range(REPEATS):
            sessions[0].change_dosage()
            redrawn.append(sessions[0].settle())
        found["composing redrawn"] = median(redrawn)
        if alone:
            return found
        sessions += [opened(composing(2 - 0.4 * number)) for number in range(1, SESSIONS)]
        together = []
        for _ in range(ROUNDS):
            for one in sessions:
                one.change_dosage()
            together.append(max(one.settle() for one in sessions))
        found[f"{SESSIONS} sessions composing at once, slowest"] = (
            statistics.median(together),
            f"the first time {together[0]:.2f}",
        )
        for _ in range(OPEN - SESSIONS):
            opened(composing(1))
        found[f"memory with {OPEN} sessions (GB)"] = memory(pid), ""
        for context in list(browser.contexts):
            context.close()
    return found


def median(times: list[float]) -> tuple[float, str]:
    return statistics.median(times), f"at most {max(times):.2f}" if len(times) > 1 else ""


GOALS = {  # for the small and for the large model
    "first paint": (3.0, 3.0),
    "switch of view, median": (1.0, 1.0),
    "switch of view, slowest": (1.0, 1.0),
    "composing redrawn": (0.5, 1.5),
    f"{SESSIONS} sessions composing at once, slowest": (3.0, 3.0),
    f"memory with {OPEN} sessions (GB)": (1.5, 1.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small model, one visitor")
    parser.add_argument("--folder", type=Path, default=cache_folder() / "benchmark")
    options = parser.parse_args()
    models: dict[str, Path | None] = {SMALL: None}
    if not options.quick:
        models[LARGE] = large_bundle(options.folder)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        for place, (name, folder) in enumerate(models.items()):
            print(f"\n{name}: seconds, unless it says otherwise")
            for row, (value, word) in measured(browser, name, folder, options.quick).items():
                goal = GOALS[row][place]
                verdict = "" if value <= goal else "MISSED"
                print(f"  {row:42} {value:6.2f}  goal {goal:.1f}  {verdict:7} {word}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
