"""Models that pages are opened on."""

import functools
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.bundle import bundle as bundles
from samsvae_core.bundle import opening, soundness
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.pipeline import build, evidence_sweep, train
from samsvae_core.training import loop
from tests.conftest import BATCHES, MODEL, once, score_quickly
from tests.views.pages import BRIEF, KINDS, rewritten

CONTEXT = "*cell* <b>line</b>"
PLANTED = (  # perturbation, level, mechanism, logit of the mask, difference
    (0, 1, 0, 4.0, -1.5),
    (0, 0, 1, 2.0, 1.0),
    (1, 2, 0, 3.0, 0.8),
    (2, 0, 0, -2.0, 0.5),
)


@pytest.fixture(scope="session")
def kind(screen, quick_tables, shared) -> Callable[[str], Bundle]:
    """Return a barely trained bundle of one of KINDS, made on first use; not to be changed."""
    replicates = np.where(np.arange(len(screen.data.cells)) % 2 == 0, "left", "right")

    def trained(name: str, path: Path) -> None:
        data = replace(screen.data, replicates=replicates)
        if name == "values":
            values = sp.csr_matrix(np.log1p(data.counts.toarray()))
            library = np.ones_like(data.library)
            data = replace(data, counts=values, library=library, is_counts=False)
        size: dict[str, int | str] = {"n_latent": 4, "n_hidden": 16}
        if name == "mechanisms alone":
            size["direct_effects"] = "none"
        with pytest.MonkeyPatch.context() as patch:
            score_quickly(patch)
            patch.setattr(evidence_sweep, "EVIDENCE", (0.08, 0.64, 2.56))
            patch.setattr(build, "COLLECTIONS", ())  # gene sets are tested with the small bundle
            train.train(data, screen.parts, path, size, BRIEF, **KINDS[name])

    @functools.cache
    def made(name: str) -> Bundle:
        path = shared / f"only {name}" / name
        return opening.load(once(path, lambda: trained(name, path)))

    return made


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Fail the test that adds, removes or changes a file of a folder that tests share."""

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}

    before = files()
    yield
    assert files() == before, (
        "a test that changes its model needs a copy: see models and shown_copy"
    )


@pytest.fixture
def shown(kind, monkeypatch) -> Iterator[Callable[[str], Bundle]]:
    """Return a function that makes a bundle of KINDS, not to be changed, the only one shown."""
    with ExitStack() as watched:

        def alone(name: str) -> Bundle:
            folder = kind(name).path.parent
            watched.enter_context(unchanged(folder))
            monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
            return kind(name)

        yield alone


@pytest.fixture
def shown_copy(kind, tmp_path, monkeypatch) -> Callable[[str], Bundle]:
    """Return a function that makes a copy of a bundle of KINDS the only one shown."""

    def alone(name: str) -> Bundle:
        shutil.copytree(kind(name).path, tmp_path / "shown" / name)
        monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path / "shown"))
        return opening.load(tmp_path / "shown" / name)

    return alone


@pytest.fixture
def one_model(tiny, monkeypatch) -> Iterator[None]:
    """Make the small bundle, not to be changed, the dashboard's only one."""
    monkeypatch.setenv("SAMSVAE_MODELS", str(tiny.path.parent))
    with unchanged(tiny.path.parent):
        yield


@pytest.fixture
def models(tiny, tmp_path, monkeypatch) -> Path:
    """Return a folder with one bundle that a test may damage."""
    folder = tmp_path / "models"
    shutil.copytree(tiny.path, folder / "tiny")
    monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
    return folder


@pytest.fixture
def edited(monkeypatch):
    """Let bundles open whose tables do not follow from their weights, for rare cases."""
    monkeypatch.setattr(bundles.Bundle, "check", lambda bundle: None)
    monkeypatch.setattr(soundness, "check_table", lambda *table: None)


@pytest.fixture
def calibrated(models) -> Bundle:
    model = opening.load(models / "tiny")
    rewritten(
        model,
        "calibration.csv",
        pd.DataFrame({"gene": model.genes, "model_error": np.linspace(0.1, 2, 40)}),
    )
    return opening.load(models / "tiny")


@pytest.fixture(scope="session")
def with_context(screen, batches_file, quick_tables, shared) -> Bundle:
    """Return a bundle with a context and four planted differences, three of them active."""
    path = shared / "only lines" / "lines"

    def planted(model: SAMSVAE, *_: object) -> None:
        found, n = model.contexts, model.config.n_perturbations
        for t, level, k, logit, size in PLANTED:
            row = level * n + t
            found.logit[row, k], found.loc[row, k], found.scale[row, k] = logit, size, 0.2

    def trained() -> None:
        data = read_h5ad(batches_file, covariates=["batch"])
        data = replace(data, covariates=replace(data.covariates, levels={CONTEXT: BATCHES}))
        with pytest.MonkeyPatch.context() as patch:
            score_quickly(patch)
            patch.setattr(loop, "fit_contexts", planted)
            train.train(data, screen.parts, path, MODEL, BRIEF, context=CONTEXT)

    return opening.load(once(path, trained))


@pytest.fixture
def lines(with_context, tmp_path, monkeypatch) -> Bundle:
    """Return the dashboard's only bundle: one that is confirmed, one that is not, one untried."""
    folder = tmp_path / "lines"
    shutil.copytree(with_context.path, folder / "lines")
    monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
    bundle = opening.load(folder / "lines")
    table = bundle.differences.copy()
    on = table.index[table["active"]]
    table.loc[on, "evidence"] = [0.1, 0.9, np.nan]
    table.loc[on, "evidence_se"] = [0.2, 0.1, np.nan]
    table.loc[on, "evidence_n"] = [1, 30, 0]
    rewritten(bundle, "differences.csv", table)
    return opening.load(folder / "lines")
