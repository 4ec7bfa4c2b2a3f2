"""A small simulated screen and the bundle trained on it, made once for all tests."""

import copy
import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pytest
import torch
from streamlit.components.v2 import manifest_scanner

from samsvae_core.bundle import opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.cells import CellData
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import split
from samsvae_core.evaluation import evaluate
from samsvae_core.evaluation.evaluate import EvaluationConfig
from samsvae_core.genesets import collections
from samsvae_core.models import shrinkage
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.models.simulate import Design, Truth, simulate, write_h5ad
from samsvae_core.pipeline import build, train
from samsvae_core.system.files import locked
from samsvae_core.training import direct_fit
from samsvae_core.training.config import TrainConfig

DESIGN = Design(
    n_cells=600, n_genes=40, n_perturbations=6, n_latent=3, n_combinations=2, depth=1000.0
)
MODEL = {"n_latent": 4, "n_hidden": 16}
TRAINING = TrainConfig(
    steps=60,
    batch_size=128,
    particles=2,
    learning_rate=1e-2,
    mask_learning_rate=0.5,  # fast enough that 60 steps switch some mechanisms off
    embedding_learning_rate=0.1,
)


class Screen(NamedTuple):
    """Simulated cells as read back from a file, with the truth they were drawn from."""

    path: Path
    data: CellData
    truth: Truth
    parts: np.ndarray


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SAMSVAE_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("NUMBA_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def _packages_looked_through_once():
    """Cache the list of packages: Streamlit searches them all before every page of a test."""
    scan = manifest_scanner.scan_component_manifests
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_scanner, "scan_component_manifests", functools.cache(scan))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """Return a folder of all processes that run these tests, for what is made once: see `once`."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def once(path: Path, make: Callable[[], object]) -> Path:
    """Return the path once its file or bundle is there; the first process to ask makes it."""
    path.parent.mkdir(exist_ok=True)
    with locked(path.with_name(f"{path.name}.lock")):
        if not (path / "manifest.json" if path.is_dir() else path).exists():
            make()
    return path


@pytest.fixture(scope="session")
def screen(shared) -> Screen:
    hallmark = collections.load_collection("hallmark").sets
    interferon = hallmark["HALLMARK_INTERFERON_GAMMA_RESPONSE"][:20]
    genes = [*interferon, *hallmark["HALLMARK_E2F_TARGETS"][:20]]
    data, truth = simulate(DESIGN)
    named = replace(data, genes=np.array(genes))
    path = shared / "screen.h5ad"
    once(path, lambda: write_h5ad(named, truth, path))
    data = read_h5ad(path)
    return Screen(path, data, truth, split(data))


@pytest.fixture(scope="session")
def known_effects() -> Callable[[Truth], SAMSVAE]:
    """Return the model that drew the cells, sure of its effects, with an untrained encoder."""

    def certain(truth: Truth) -> SAMSVAE:
        model = copy.deepcopy(truth.model)
        model.mask_logits.copy_(torch.where(torch.from_numpy(truth.mask), 60.0, -60.0))
        model.embedding_loc.copy_(torch.from_numpy(truth.embedding))
        model.embedding_log_scale.fill_(-30)
        return model

    return certain


@pytest.fixture(scope="session")
def quick_tables():
    """Use one collection, and principal components instead of UMAP, which compiles for 10 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "COLLECTIONS", ("hallmark",))
        patch.setattr(build, "N_EMBEDDED", build.UMAP_NEIGHBOURS - 1)
        yield


def let_more_stand_out(patch: pytest.MonkeyPatch) -> None:
    """Ask less of direct effects, or none of a screen this small stands out."""
    patch.setattr(direct_fit, "PRICE", 4.6)
    patch.setattr(shrinkage, "MOST_OF_ROW", (0.5, 0.4549))
    patch.setattr(shrinkage, "FEWEST_ROWS", 1000)


FULL, FEW = evaluate.full_evaluation, EvaluationConfig(8, effect_draws=80, shift_draws=8)


def score_quickly(patch: pytest.MonkeyPatch) -> None:
    """Score trained models with few draws, where no test looks at the figures."""
    patch.setattr(evaluate, "full_evaluation", functools.partial(FULL, config=FEW))


@pytest.fixture
def quick_scores(monkeypatch):
    score_quickly(monkeypatch)


@pytest.fixture(scope="session")
def tiny(screen, quick_tables, shared) -> Bundle:
    """Return the bundle; no test may change it or its files."""
    run = shared / "only tiny" / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        let_more_stand_out(patch)
        once(run, lambda: train.train(screen.data, screen.parts, run, MODEL, TRAINING))
    return opening.load(run)


BATCHES = ("a", "b<b>", "c|c")  # names as hostile as labels may be


@pytest.fixture(scope="session")
def batches_file(screen, shared) -> Path:
    """Return the file of the screen with a column batch, the third of the cells of each."""
    cells = anndata.read_h5ad(screen.path)
    cells.obs["batch"] = np.resize(np.array(BATCHES), cells.n_obs)
    path = shared / "batches.h5ad"
    return once(path, lambda: cells.write_h5ad(path))


@pytest.fixture(scope="session")
def batched(screen, batches_file, quick_tables, shared) -> Bundle:
    """Return a bundle that accounts for batches; no test may change it or its files."""
    data = read_h5ad(batches_file, covariates=["batch"])
    run, brief = shared / "only batched" / "batched", replace(TRAINING, steps=30)
    once(run, lambda: train.train(data, screen.parts, run, MODEL, brief))
    return opening.load(run)


@pytest.fixture
def copied(tiny, tmp_path) -> Path:
    """Return a copy of the bundle's folder, for tests that damage it."""
    return Path(shutil.copytree(tiny.path, tmp_path / "copied"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run browser tests first, because they take longest."""
    items.sort(key=lambda item: "browser" not in item.path.parts)
