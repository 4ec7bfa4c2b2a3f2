"""Counts kept in files give the same run as in memory, and failures are reported."""

import errno
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from safetensors.numpy import load_file

from samsvae_core.data import counts, disk_csr, stored
from samsvae_core.data.cells import DataError, gene_panel, summary
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.pipeline import train
from samsvae_core.system.files import OutputError
from tests.conftest import MODEL, TRAINING


@pytest.fixture
def small_blocks(monkeypatch):
    for module in (disk_csr, stored):
        monkeypatch.setattr(module, "VALUES_AT_ONCE", 500)
    monkeypatch.setattr(disk_csr, "LARGE", 100)


def is_mapped(matrix) -> bool:
    return isinstance(matrix.data, np.memmap) and isinstance(matrix.indices, np.memmap)


def same(one: sp.csr_matrix, other: sp.csr_matrix) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("data", "indices", "indptr")
    )


def saved(path: Path, X, **more) -> Path:
    labels = np.resize(["ctrl", "KLF1", "SET"], X.shape[0])
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(X.shape[1])])
    anndata.AnnData(X=X, obs=obs, var=var, **more).write_h5ad(path)
    return path


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint8])
def test_counts_on_disk_are_those_in_memory(tmp_path, small_blocks, store, kind):
    x = np.random.default_rng(0).poisson(0.5, size=(300, 20)).astype(kind)
    path = saved(tmp_path / "a.h5ad", store(x))
    one = read_h5ad(path, counts_on="memory")
    two = read_h5ad(path, counts_on="disk", scratch=tmp_path)
    assert is_mapped(two.counts)
    assert not is_mapped(one.counts)
    assert same(one.counts, two.counts)
    parts = np.arange(300) % 3 == 0
    assert is_mapped(two.subset(parts).counts)
    assert same(one.subset(parts).counts, two.subset(parts).counts)
    panels = [gene_panel(data, top=7) for data in (one, two)]
    assert is_mapped(panels[1].counts)
    assert same(*(panel.counts for panel in panels))
    tables = [summary(data) for data in (one, two)]
    assert [t.pop("counts_on") for t in tables] == ["memory", "disk"]
    assert tables[0] == tables[1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5ad"]  # the files have no names


def test_a_run_on_disk_is_the_run_in_memory(screen, quick_tables, tmp_path, small_blocks):
    runs = {}
    for where in ("memory", "disk"):
        data = read_h5ad(screen.path, counts_on=where, scratch=tmp_path)
        runs[where] = tmp_path / where
        train.train(data, screen.parts, runs[where], MODEL, replace(TRAINING, steps=20))
    assert is_mapped(data.counts)
    names = sorted(p.relative_to(runs["disk"]) for p in runs["disk"].rglob("*") if p.is_file())
    assert Path("metrics.json") in names
    assert Path("observed.parquet") in names
    apart = {Path(n) for n in ("status.json", "manifest.json", "config.json")}
    for name in set(names) - apart:
        one, two = (runs[where] / name for where in ("memory", "disk"))
        if name.suffix == ".safetensors":
            arrays = load_file(one), load_file(two)
            assert arrays[0].keys() == arrays[1].keys()
            assert all(
                np.array_equal(arrays[0][k], arrays[1][k], equal_nan=True) for k in arrays[0]
            )
        elif name.suffix == ".parquet":
            pd.testing.assert_frame_equal(
                pd.read_parquet(one), pd.read_parquet(two), rtol=0, atol=0
            )
        else:
            assert one.read_bytes() == two.read_bytes(), name
    assert train.read_options(runs["disk"]).counts_on == "disk"


def test_they_are_kept_on_disk_where_memory_is_too_small(screen, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(stored, "memory_free", lambda: 10_000)
    assert is_mapped(read_h5ad(screen.path, scratch=tmp_path, say=said.append).counts)
    assert "Counts are kept on disk" in said[0]
    assert str(tmp_path) in said[0]
    assert not is_mapped(read_h5ad(screen.path, counts_on="memory", scratch=tmp_path).counts)
    monkeypatch.setattr(stored, "memory_free", lambda: 10**9)
    assert not is_mapped(read_h5ad(screen.path, scratch=tmp_path, say=said.append).counts)
    assert len(said) == 1
    with pytest.raises(DataError, match="--counts-on is 'tape'"):
        read_h5ad(screen.path, counts_on="tape")


@pytest.mark.parametrize("bad", [-1.0, 0.5, np.nan, 2.0**25])
def test_bad_values_of_any_block_are_named_as_in_memory(tmp_path, small_blocks, bad):
    x = np.ones((300, 20))
    x[[3, 280, 281, 290], 4] = bad
    path = saved(tmp_path / "a.h5ad", sp.csr_matrix(x))
    told = []
    for where in ("memory", "disk"):
        with pytest.raises(DataError) as refused:
            read_h5ad(path, counts_on=where, scratch=tmp_path)
        told.append(str(refused.value))
    assert "4 values" in told[0]
    assert "cell c280, gene G4" in told[0]
    assert told[0].split(" It looks")[0].split(" Put raw")[0] in told[1]


def test_counts_of_another_place_are_kept_on_disk_too(tmp_path, small_blocks):
    x = np.random.default_rng(0).poisson(0.5, size=(300, 20)).astype(np.float32)
    path = saved(tmp_path / "a.h5ad", sp.csr_matrix(np.log1p(x)), layers={"counts": x})
    data = read_h5ad(path, counts_on="disk", scratch=tmp_path)
    assert is_mapped(data.counts)
    assert data.source["counts_from"] == "layers/counts"
    np.testing.assert_array_equal(data.counts.toarray(), x)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_a_file_that_changes_while_it_is_read_is_told(screen, tmp_path, monkeypatch, where):
    path = tmp_path / "a.h5ad"
    path.write_bytes(screen.path.read_bytes())
    monkeypatch.setattr(counts, "stacked", lambda *a, f=stored.stacked: (grew(path), f(*a))[1])
    with pytest.raises(DataError, match="changed while it was read"):
        read_h5ad(path, counts_on=where, scratch=tmp_path)


def grew(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def test_a_file_may_go_once_it_is_read(screen, tmp_path):
    path = tmp_path / "a.h5ad"
    path.write_bytes(screen.path.read_bytes())
    data = read_h5ad(path, counts_on="disk", scratch=tmp_path)
    path.write_bytes(b"")
    assert same(data.counts, screen.data.counts)


def test_a_full_disk_is_told_and_leaves_nothing(screen, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(disk_csr, "COPIES", 10**12)
        with pytest.raises(OutputError, match=r"GB free, .* are needed"):
            read_h5ad(screen.path, counts_on="disk", scratch=tmp_path)

    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk_csr, "_nameless", full)
    with pytest.raises(OSError, match="No space"):
        read_h5ad(screen.path, counts_on="disk", scratch=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["indices", "indptr"])
def test_wrong_indices_of_a_block_are_told(tmp_path, small_blocks, what):
    import h5py

    path = saved(tmp_path / "a.h5ad", sp.csr_matrix(np.ones((300, 20))))
    with h5py.File(path, "a") as file:
        file[f"X/{what}"][150] = 10**6
    with pytest.raises(DataError, match="X is damaged"):
        read_h5ad(path, counts_on="disk", scratch=tmp_path)
