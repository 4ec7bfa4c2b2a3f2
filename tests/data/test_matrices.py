"""Matrices and tables of an .h5ad file as others may write them: what is valid is read, all else
is refused in one message.
"""

import re
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp

from samsvae_core.bundle.layout import check_table
from samsvae_core.data import hdf5_checks, inspection, stored
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.genesets import collections
from tests.data.test_disk_csr import saved

COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(np.float32)
ROOT = Path(__file__).parents[2]
STORES = {"dense": np.asarray, "csr": sp.csr_matrix, "csc": sp.csc_matrix}


@pytest.fixture(params=STORES)
def store(request):
    return request.param


@pytest.fixture(params=["memory", "disk"])
def read(request, tmp_path, monkeypatch):
    """Reads a file in blocks of a few rows, into memory or onto disk."""
    monkeypatch.setattr(stored, "VALUES_AT_ONCE", 20)
    monkeypatch.setattr("samsvae_core.data.disk_csr.VALUES_AT_ONCE", 20)

    def read(path, **options):
        return read_h5ad(path, counts_on=request.param, scratch=tmp_path, **options)

    return read


def changed(path, name, values):
    """The file with other values in an array, of their own type."""
    with h5py.File(path, "a") as raw:
        attributes = dict(raw[name].attrs)
        del raw[name]
        raw.create_dataset(name, data=values).attrs.update(attributes)
    return path


def matrix(path, store, values=COUNTS):
    return saved(path, STORES[store](values))


def data_of(path, store):
    with h5py.File(path) as raw:
        return raw["X" if store == "dense" else "X/data"][:]


@pytest.mark.parametrize(
    "kind",
    [">f4", ">f2", "<f2", ">i8", "u1", "g", "?"],
)
def test_item_15_counts_of_every_number_type_and_order_of_bytes_are_read(
    tmp_path, store, kind, read
):
    counts = COUNTS > 1 if kind == "?" else COUNTS
    path = matrix(tmp_path / "a.h5ad", store, counts.astype(np.float32))
    values = data_of(path, store).astype(kind)
    changed(path, "X" if store == "dense" else "X/data", values)
    found = read(path).counts
    assert found.dtype == np.float32
    assert found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), counts)


@pytest.mark.parametrize("store", ["csr", "csc"])
@pytest.mark.parametrize("name", ["indices", "indptr"])
@pytest.mark.parametrize("kind", [">i4", "u8", "i2"])
def test_item_15_indices_of_every_type_are_read(tmp_path, store, name, kind, read):
    path = matrix(tmp_path / "a.h5ad", store)
    with h5py.File(path) as raw:
        values = raw[f"X/{name}"][:].astype(kind)
    found = read(changed(path, f"X/{name}", values)).counts
    np.testing.assert_array_equal(found.toarray(), COUNTS)


@pytest.mark.parametrize("store", ["csr", "csc"])
def test_item_15_indices_in_any_order_are_read(tmp_path, store, read):
    x = STORES[store](COUNTS)
    for i in range(len(x.indptr) - 1):  # each line backwards
        line = slice(x.indptr[i], x.indptr[i + 1])
        x.indices[line], x.data[line] = x.indices[line][::-1].copy(), x.data[line][::-1].copy()
    path = matrix(tmp_path / "a.h5ad", store)
    changed(changed(path, "X/indices", x.indices), "X/data", x.data)
    found = read(path).counts
    assert found.has_sorted_indices
    np.testing.assert_array_equal(found.toarray(), COUNTS)


@pytest.mark.parametrize("store", ["csr", "csc"])
def test_item_15_a_second_value_at_one_place_is_refused(tmp_path, store, read):
    path = matrix(tmp_path / "a.h5ad", store, np.ones((12, 5), np.float32))
    with h5py.File(path, "a") as raw:
        raw["X/indices"][-1] = raw["X/indices"][-2]
    with pytest.raises(DataError, match="X stores 1 values for a cell and a gene that have one"):
        read(path)


@pytest.mark.parametrize("store", ["csr", "csc"])
def test_item_15_values_that_belong_to_no_cell_are_refused(tmp_path, store, read):
    path = matrix(tmp_path / "a.h5ad", store, np.ones((12, 5), np.float32))
    with h5py.File(path, "a") as raw:
        raw["X/indptr"][-1] -= 2
    with pytest.raises(DataError, match=r"60 values are stored, and 58 of them belong to a line"):
        read(path)


@pytest.mark.parametrize("table", ["obs", "var"])
@pytest.mark.parametrize("name", ["", "  ", "nan"])
def test_item_15_a_cell_or_gene_without_a_name_is_refused(tmp_path, table, name, read):
    path = matrix(tmp_path / "a.h5ad", "csr")
    with h5py.File(path, "a") as raw:
        raw[f"{table}/_index"][2] = name
    what = {"obs": "cell", "var": "gene"}[table]
    for reader in (read, inspection.inspect):
        with pytest.raises(DataError, match=rf"1 {what} names are empty .*row 3 of {table}"):
            reader(path)


def column(path, values, kind=None):
    """The file with one more column of obs, of values or of a shape, written as it is."""
    with h5py.File(path, "a") as raw:
        what = {"data": values} if kind is None else {"shape": values, "dtype": kind}
        made = raw["obs"].create_dataset("odd", **what)
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        raw["obs"].attrs["column-order"] = [*raw["obs"].attrs["column-order"], "odd"]
    return path


def lists(n):
    found = np.empty(n, dtype=object)
    found[:] = [np.arange(i % 3, dtype=np.int32) for i in range(n)]
    return found


def odd_columns(path):
    """Files whose table of cells no reader can use, and what is said of each."""
    pair = np.zeros(12, np.dtype([("a", "f4"), ("b", "i8")]))
    yield "lists", lambda: ragged(path()), "Column 'odd' of obs"
    yield "pairs", lambda: column(path(), pair), "odd"
    yield "references", lambda: column(path(), (12,), h5py.ref_dtype), "odd"
    yield "bytes", lambda: column(path(), np.array([b"\xff"] * 12)), "not UTF-8"
    yield "two columns", lambda: column(path(), np.zeros((12, 2))), "obs"
    yield "too short", lambda: column(path(), np.zeros(11)), "obs"
    yield "awkward", lambda: awkward_column(path()), "odd"
    yield "twice", lambda: twice(path()), "columns of the same name: perturbation"


def ragged(path):
    column(path, (12,), h5py.vlen_dtype(np.int32))
    with h5py.File(path, "a") as raw:
        raw["obs/odd"][:] = lists(12)
    return path


def awkward(raw, name, n):
    group = raw.create_group(name)
    group.attrs.update({"encoding-type": "awkward-array", "encoding-version": "0.1.0"})
    group.attrs.update({"form": '{"class": "ListOffsetArray", "offsets": "i64"}', "length": n})
    group["node0-offsets"] = np.arange(n + 1)


def awkward_column(path):
    with h5py.File(path, "a") as raw:
        awkward(raw["obs"], "odd", 12)
        raw["obs"].attrs["column-order"] = [*raw["obs"].attrs["column-order"], "odd"]
    return path


def twice(path):
    with h5py.File(path, "a") as raw:
        raw["obs"].attrs["column-order"] = ["perturbation", "perturbation"]
    return path


@pytest.mark.parametrize("i", range(8))
def test_item_15_a_column_that_is_no_list_of_labels_gets_one_message(tmp_path, i, read):
    _, make, message = list(odd_columns(lambda: matrix(tmp_path / "a.h5ad", "csr")))[i]
    path = make()
    for reader in (read, inspection.inspect):
        with pytest.raises(DataError, match=message):
            reader(path)


@pytest.mark.parametrize("what", ["awkward", "frame", "enum", "complex", "void", "empty", "scalar"])
def test_item_15_a_matrix_that_is_none_gets_one_message(tmp_path, what, read):
    path = matrix(tmp_path / "a.h5ad", "dense")
    with h5py.File(path, "a") as raw:
        attributes = dict(raw["X"].attrs)
        del raw["X"]
        if what == "awkward":
            awkward(raw, "X", 12)
        elif what == "frame":
            raw.copy("obs", "X")
        else:
            made = {
                "enum": {"data": COUNTS.astype("i4"), "dtype": h5py.enum_dtype({"few": 1})},
                "complex": {"data": COUNTS + 1j},
                "void": {"data": np.zeros((12, 5), "V4")},
                "empty": {"data": h5py.Empty("f4")},
                "scalar": {"data": 3.0},
            }[what]
            raw.create_dataset("X", **made).attrs.update(attributes)
    with pytest.raises(
        DataError, match=r"X (is stored as|holds values of type|is \(\)|of .* cannot)"
    ):
        read(path)


@pytest.mark.parametrize("make", ["lists", "awkward"])
def test_item_15_the_command_line_says_one_sentence_and_ends_with_2(tmp_path, make):
    path = matrix(tmp_path / "a.h5ad", "csr")
    if make == "lists":
        ragged(path)
    else:
        with h5py.File(path, "a") as raw:
            del raw["X"]
            awkward(raw, "X", 12)
    for verb in ("validate", "inspect") if make == "lists" else ("validate",):
        ended = subprocess.run(
            [sys.executable, "-m", "samsvae_core", verb, str(path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 2, ended.stderr
        assert re.fullmatch(r"Error: [^\n]+\n", ended.stderr)


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f2", "i8", "?"])
def test_item_15_dosages_of_every_number_type_are_read(tmp_path, kind, read):
    table = np.zeros((12, 2))
    table[4:8, 0] = table[8:, 1] = 1
    path = matrix(tmp_path / "a.h5ad", "csr")
    with h5py.File(path, "a") as raw, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.io.write_elem(raw["obsm"], "D", sp.csr_matrix(table))
        anndata.io.write_elem(raw["uns"], "D_names", np.array(["SET", "KLF1"]))
    changed(path, "obsm/D/data", np.ones(8).astype(kind))
    found = read(path, dosage_key="D")
    np.testing.assert_array_equal(found.dosages.toarray(), table[:, ::-1])


def test_item_15_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    table = pa.table([[1.0], ["a"], ["b"]], names=["score", "gene", "gene"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="columns of the same name: gene"):
        check_table(tmp_path / "a.parquet")


# Memory


def peak(call):
    """Bytes taken at most while a call lasts; NumPy tells of its arrays."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_item_17_a_dense_matrix_takes_a_small_multiple_of_what_is_in_it(tmp_path, monkeypatch):
    x = np.zeros((2000, 2000), np.float32)
    x[:, :20] = np.random.default_rng(0).poisson(2.0, size=(2000, 20))
    path = saved(tmp_path / "a.h5ad", x)
    assert read_h5ad(path).counts.nnz == np.count_nonzero(x)
    for module in ("stored", "disk_csr"):
        monkeypatch.setattr(f"samsvae_core.data.{module}.VALUES_AT_ONCE", 10**5)
    assert peak(lambda: read_h5ad(path)) < x.nbytes / 3


@pytest.mark.parametrize("store", ["dense", "csr", "csc"])
@pytest.mark.parametrize("chunks", [(10, 300), (300, 300)])
def test_item_17_what_is_bounded_is_what_it_becomes_by_what_is_written(
    tmp_path, monkeypatch, store, chunks, read
):
    """Ones in every place pack to a thousandth; a matrix of so little is nobody's counts."""
    x = np.zeros((300, 300), np.float32)
    path = matrix(tmp_path / "a.h5ad", store, x + 1)
    with h5py.File(path, "a") as raw:
        for name in ["X"] if store == "dense" else ["X/data", "X/indices"]:
            values, attributes = raw[name][:], dict(raw[name].attrs)
            values = np.broadcast_to(values[:1], values.shape) if name == "X/indices" else values
            del raw[name]
            pieces = chunks if store == "dense" else (10**4,)
            made = raw.create_dataset(name, data=values, chunks=pieces, compression=9)
            made.attrs.update(attributes)
    for module in (hdf5_checks, stored):
        monkeypatch.setattr(module, "SMALL", 2 * 10**5)
    with pytest.raises(DataError, match="it is damaged, or nearly empty"):
        read(path)


def test_item_17_a_nearly_empty_dense_matrix_is_read(tmp_path, monkeypatch):
    x = np.zeros((300, 3000), np.float32)
    x[::3, 5] = 7
    path = matrix(tmp_path / "a.h5ad", "dense", x)
    with h5py.File(path, "a") as raw:
        attributes = dict(raw["X"].attrs)
        del raw["X"]
        raw.create_dataset("X", data=x, chunks=(10, 3000), compression=9).attrs.update(attributes)
    for module in (hdf5_checks, stored):
        monkeypatch.setattr(module, "SMALL", 10**6)
    np.testing.assert_array_equal(read_h5ad(path).counts.toarray(), x)


@pytest.mark.parametrize(
    ("what", "content", "message"),
    [
        ("MOST_SETS", b"a\tx\tG1\nb\tx\tG2\nc\tx\tG3\n", "mine has 3 lines; 2 is the most"),
        ("MOST_ENTRIES", b"a\tx\tG1\tG1\tG1\tG1\n", "mine has 5 tabs"),
        ("MOST_GENES", b"a\tx\tG1\tG2\nb\tx\tG3\n", "more than 2 different names .* line 2"),
    ],
)
def test_item_17_gene_sets_that_no_organism_has_are_refused_early(
    monkeypatch, what, content, message
):
    assert collections.parse_gmt(content, "mine").sets
    monkeypatch.setattr(collections, "MOST_SETS", 2)
    for name in {"MOST_SETS", "MOST_ENTRIES", "MOST_GENES"} - {what}:
        monkeypatch.setattr(collections, name, 10**6)
    monkeypatch.setattr(collections, what, 2)
    with pytest.raises(ValueError, match=message):
        collections.parse_gmt(content, "mine")
