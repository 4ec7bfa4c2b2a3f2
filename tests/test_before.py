"""Files and addresses made by the version before the wings open as they did then.

All of tests/before was made by commit 3d41ea7 from `samsvae simulate --cells 300 --genes 30`: a
packed bundle (schema 2) and a composition of it, a run stopped in its third epoch, a session file,
and what the pages of some addresses showed; the simulated cells are kept as a table of text.
"""

import json
import shutil
from pathlib import Path
from urllib.parse import parse_qsl

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from app.pages import PAGES
from app.session import session_file
from samsvae_core import compose, load
from samsvae_core.bundle.archive import unpack
from samsvae_core.cli import main as cli
from tests.views.pages import opened

BEFORE = Path(__file__).with_name("before")
ADDRESSES = json.loads((BEFORE / "addresses.json").read_text())
WIDGETS = "selectbox", "multiselect", "slider", "text_input", "text_area", "toggle", "number_input"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    with (BEFORE / "model.zip").open("rb") as file:
        unpack(file, folder, "model")
    return folder


def test_a_bundle_opens_and_predicts_the_same(models):
    found = compose(load(models / "model"), {"P1": 1.0, "P3": 0.5}).table
    expected = pd.read_csv(BEFORE / "composed.csv", index_col="gene")
    pd.testing.assert_frame_equal(found[expected.columns], expected, atol=1e-4, rtol=1e-4)


def test_a_stopped_run_goes_on_to_a_bundle(tmp_path, quick_tables, monkeypatch):
    cells = pd.read_csv(BEFORE / "cells.csv", index_col="cell")
    counts = cells.drop(columns="perturbation").astype(np.float32)
    data = anndata.AnnData(sp.csr_matrix(counts.to_numpy()), obs=cells[["perturbation"]])
    data.var_names = counts.columns
    data.write_h5ad(tmp_path / "cells.h5ad")
    run = Path(shutil.copytree(BEFORE / "stopped", tmp_path / "run"))
    before = pd.read_csv(run / "history.csv")
    command = ["samsvae", "train", str(tmp_path / "cells.h5ad"), "--output", str(run), "--resume"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    after = pd.read_csv(run / "history.csv")
    pd.testing.assert_frame_equal(after[: len(before)], before)
    assert len(after) > len(before) == 3
    assert load(run).perturbations.index.tolist() == ["P1", "P2", "P3", "P4"]


def test_a_session_file_holds_what_it_held():
    found = session_file.read((BEFORE / "session.json").read_bytes(), list(PAGES))
    assert found.pages["compose"] == {"c": ["P1:1,P3:0.5"], "n_genes": ["30"]}
    assert [(view.page, view.query) for view in found.kept] == [
        ("compose", {"c": ["P1:1,P2:0.5"]}),
        ("gene", {"g": ["gene4"]}),
    ]
    assert found.collections["mine"].startswith("SET ONE\tnone\tgene1\t")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_shows_what_it_showed(models, monkeypatch, address):
    monkeypatch.setenv("SAMSVAE_MODELS", str(models))
    view, _, query = address.partition("?")
    page = opened(view, dict(parse_qsl(query)))
    assert not page.exception
    shown = {
        str(each.key): list(each.value) if isinstance(each.value, tuple) else each.value
        for kind in WIDGETS
        for each in page.get(kind)
        if each.key and "|" not in str(each.key)
    }
    then = ADDRESSES[address]
    assert shown == then["widgets"]
    assert {key: page.query_params[key] for key in page.query_params} == then["address"]
    assert len(page.info) == then["infos"]
