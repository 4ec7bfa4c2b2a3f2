"""How long does enrichment take, how much memory, and do other programs find the same?

    python benchmarks/enrichment.py            # 6 minutes on 2 cores
    python benchmarks/enrichment.py --quick    # fewer sets and mechanisms: 30 s
    python benchmarks/enrichment.py --other other/bin/python    # beside blitzgsea and decoupler

`python -m venv other && other/bin/pip install blitzgsea decoupler` makes such a Python.
Loadings are those of pretrained/papalexi2021 (299 genes), and simulated ones of 8,500 of Reactome's
genes: 0.05 times Student's t with 3 degrees of freedom, with 5 or 20 sets per mechanism moved up or
down by 0.1. Sets overlap, so 130 or 235 of Reactome's 1,499 of usual size pass 5 % FDR; multilevel
takes longer the smaller p is. CPU seconds include children; on n idle cores, wall seconds are about
CPU / n. All programs get the same ranks and sets; if they agree less than two seeds do, the
difference is not by chance.
Expected: with 2 processes no share of a target above 1 on idle cores; README, "Results".
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from samsvae_core.genesets.collections import Collection, collections, load_collection, usable_sets
from samsvae_core.genesets.enrichment import enrich, rank_enrichment
from samsvae_core.genesets.screening import membership, screen

BUNDLE = Path(__file__).resolve().parents[1] / "pretrained/papalexi2021"
N_GENES, N_MECHANISMS, PERMUTATIONS = 8500, 100, 1000
PLANTED = 5, 20  # sets moved by every other mechanism
Run = tuple[str, float, pd.DataFrame]  # a program, its seconds, and nes and p_value by term
OTHERS = r"""
import json, os, sys
from importlib.util import find_spec
import pandas as pd

asked = json.load(sys.stdin)
sets, n, scores = asked["sets"], asked["permutations"], pd.Series(asked["scores"])
cpu = lambda: sum(os.times()[:4])


def gseapy():
    from gseapy import prerank

    options = {"max_size": len(scores), "permutation_num": n, "threads": 1, "no_plot": True}
    began = cpu()
    found = pd.DataFrame(prerank(scores.to_frame(), sets, min_size=1, **options).results)
    return began, found.loc["nes"].astype(float), found.loc["pval"].astype(float)


def blitzgsea():
    from blitzgsea import gsea

    ranked = pd.DataFrame({"i": scores.index, "v": scores.to_numpy()})
    began = cpu()  # 2 processes, since 1 raises a TypeError in 1.3.54; not centred, as no other is
    found = gsea(ranked, sets, n, min_size=1, processes=2, center=False)
    return began, found["nes"], found["pval"]


def decoupler():
    from decoupler.mt import gsea

    wide = scores.to_frame("scores").T
    net = pd.DataFrame([(t, g, 1.0) for t in sets for g in sets[t]])
    net.columns = ["source", "target", "weight"]
    gsea(wide, net[net["source"] == net["source"][0]], tmin=1, times=2)  # compiles
    began = cpu()
    nes, p_value = gsea(wide, net, tmin=1, times=n)
    return began, nes.iloc[0], p_value.iloc[0]


for name in sys.argv[1:]:
    if not find_spec(name):
        print(f"{name}: left out; {sys.executable} does not have it (--other)", file=sys.stderr)
        continue
    began, nes, p_value = globals()[name]()
    table = {"nes": nes.to_dict(), "p_value": p_value.to_dict()}
    print(json.dumps([name, cpu() - began, table]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--other", default=sys.executable, help="a Python with other programs")
    arguments = parser.parse_args()
    quick = arguments.quick
    reactome, go = load_collection("reactome"), load_collection("go_bp")
    loadings = simulated(reactome)
    asked, target = (part(reactome, loadings, 260), None) if quick else (reactome, 8)
    batched = [load_collection(name) for name in (["hallmark"] if quick else collections())]
    planted = PLANTED[:1] if quick else PLANTED
    print(line(f"{os.cpu_count()} processors", "wall s", "CPU s", "target", "share", "load"))
    batch(loadings.iloc[:, : 2 if quick else 10], batched)
    papalexi()
    what = f"preview, {N_MECHANISMS} mechanisms x 5,000 sets"
    timed(what, 0.3, screen, loadings, part(go, loadings, 5000))
    for mechanism, n_planted in enumerate(planted):
        for n in (1, 2):
            what = f"{n_planted} sets planted, {len(asked.sets):,} asked, processes: {n}"
            with fresh_cache():
                timed(what, target, enrich, loadings[mechanism], [asked], n_processes=n)
    for mechanism, n_planted in enumerate(planted):
        print(f"\n{n_planted} sets planted; {PERMUTATIONS:,} permutations of those who permute")
        compare(loadings[mechanism], asked, arguments.other)


def simulated(collection: Collection) -> pd.DataFrame:
    """Return loadings (genes x mechanisms) of some genes, with few and many sets moved in turn."""
    rng = np.random.default_rng(0)
    genes = rng.permutation(sorted(collection.genes))[:N_GENES]
    members = membership(collection, genes, 15, 100)[0]
    moves = np.zeros((N_MECHANISMS, members.shape[0]))
    for row, n in zip(moves, cycle(PLANTED), strict=False):
        row[rng.choice(len(row), n, replace=False)] = rng.choice([-0.1, 0.1], n)
    noise = 0.05 * rng.standard_t(3, (N_GENES, N_MECHANISMS))
    return pd.DataFrame(noise + members.T @ moves.T, index=genes)


def part(collection: Collection, loadings: pd.DataFrame, n_sets: int) -> Collection:
    """Return some of the testable sets, evenly spaced."""
    terms = list(usable_sets(collection, loadings.index))
    chosen = [terms[i] for i in np.linspace(0, len(terms) - 1, n_sets).astype(int)]
    return replace(collection, sets={term: collection.sets[term] for term in chosen})


@contextmanager
def fresh_cache() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAMSVAE_CACHE"] = folder
        yield


def timed(what: str, target: float | None, function: Callable, *asked: Any, **options: Any) -> None:
    began, used = time.perf_counter(), cpu()
    function(*asked, **options)
    wall, used = time.perf_counter() - began, cpu() - used
    share = (target, f"{wall / target:.2f}") if target else ("", "")
    print(line(what, f"{wall:.2f}", f"{used:.2f}", *share, f"{os.getloadavg()[0]:.1f}"), flush=True)


def cpu() -> float:
    """Return the processor seconds so far, with those of children that have ended."""
    return sum(os.times()[:4])


def line(what: str, *cells: object) -> str:
    return what.ljust(52) + "".join(f"{cell!s:>9}" for cell in cells)


def batch(loadings: pd.DataFrame, chosen: list[Collection]) -> None:
    """Measure time and memory on all processors; run before anything enlarges this process."""
    held = [0.0]
    look = {"cancelled": lambda: held.append(resident()) or False}
    n_sets = sum(len(collection.sets) for collection in chosen)
    with fresh_cache():
        what = f"batch, {loadings.shape[1]} mechanisms x {n_sets:,} sets"
        timed(what, None, enrich, loadings, chosen, **look)
    alone = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    peak = max(alone, *held)
    what = f"    GB it held at most, {alone:.2f} of them alone"
    print(line(what, f"{peak:.2f}", "", 1.5, f"{peak / 1.5:.2f}"))


def resident() -> float:
    """Return the GB of this process and its children; shared memory counts for each (Linux)."""
    me = os.getpid()
    children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
    pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in (me, *children)]
    return sum(map(int, pages)) * resource.getpagesize() / 1e9


def papalexi() -> None:
    from samsvae_core.analysis.loadings import loading_matrix
    from samsvae_core.analysis.masks import active_mechanisms
    from samsvae_core.bundle.opening import load  # with torch, which would distort `batch`

    bundle = load(BUNDLE)
    table = loading_matrix(bundle.loadings)[active_mechanisms(bundle.masks)]
    both = [load_collection("hallmark"), load_collection("reactome")]
    with fresh_cache():
        for how, target in (("cold", 60), ("cached", 1)):
            what = f"papalexi2021, {table.shape[1]} mechanisms x 2 collections, {how}"
            timed(what, target, enrich, table, both)


def compare(scores: pd.Series, collection: Collection, other: str) -> None:
    """Print time and agreement, as rank correlation, of programs on the same ranks and sets."""
    sets = {term: list(genes) for term, genes in usable_sets(collection, scores.index).items()}
    print(line(f"{len(sets):,} sets", "CPU s", "/ ours", "rho NES", "rho p", "least p", "p = 0"))
    runs = [own(scores, collection, seed) for seed in (0, 1)]
    runs += theirs(sys.executable, ["gseapy"], scores, sets)
    runs += theirs(other, ["blitzgsea", "decoupler"], scores, sets)
    for name, seconds, table in runs:
        rho = table.corrwith(runs[0][2], method="spearman")
        shown = (f"{x:.3f}" for x in (seconds / runs[0][1], rho["nes"], rho["p_value"]))
        p = table["p_value"]
        print(line(name, f"{seconds:.1f}", *shown, f"{p.min():.0e}", (p == 0).sum()), flush=True)


def own(scores: pd.Series, collection: Collection, seed: int) -> Run:
    with fresh_cache():
        began = cpu()
        table = rank_enrichment(scores, collection, seed=seed).table.set_index("term")
        seconds = cpu() - began
    return f"here: gseapy, multilevel, seed {seed}", seconds, table[["nes", "p_value"]]


def theirs(python: str, names: list[str], scores: pd.Series, sets: dict) -> list[Run]:
    """Return the runs of the programs that this Python has."""
    asked = {"scores": scores.to_dict(), "sets": sets, "permutations": PERMUTATIONS}
    told = {"input": json.dumps(asked), "env": os.environ | {"NUMBA_NUM_THREADS": "1"}}
    command = [python, "-c", OTHERS, *names]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **told)
    found = [json.loads(text) for text in answer.stdout.splitlines()]
    return [(name, seconds, pd.DataFrame(table)) for name, seconds, table in found]


if __name__ == "__main__":
    main()
