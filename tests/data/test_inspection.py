import json
from contextlib import nullcontext

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from samsvae_core.data import hdf5_checks, inspection
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.inspection import describe, inspect, label_table, suggested_delimiter
from samsvae_core.data.read_options import ReadOptions

COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(np.float32)
LABELS = ["ctrl"] * 4 + ["KLF1"] * 4 + ["KLF1_SET"] * 4


def write(path, X=COUNTS, **obs):
    table = pd.DataFrame(obs, index=[f"c{i}" for i in range(len(X))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(X.shape[1])])
    anndata.AnnData(X=X, obs=table, var=var, layers={"umi": X}).write_h5ad(path)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cells.h5ad"


def test_finds_columns_with_the_cells_of_each_label(file):
    found = inspect(write(file, treatment=LABELS, lane=[1] * 12, depth=np.arange(12.0)))
    assert (found["n_cells"], found["n_genes"], found["genes"][:2]) == (12, 5, ["G0", "G1"])
    columns = {column.pop("name"): column for column in found["columns"]}
    assert columns["treatment"] == {
        "n_labels": 3,
        "is_number": False,
        "labels": {"KLF1": 4, "KLF1_SET": 4, "ctrl": 4},
    }
    assert columns["lane"] == {"n_labels": 1, "is_number": True, "labels": {"1": 12}}
    assert (found["matrices"], found["layers"], found["tables"]) == (["X"], ["umi"], [])
    json.dumps(found, allow_nan=False)


def test_suggests_a_column_with_controls_where_none_has_a_usual_name(file):
    suggested = inspect(write(file, treatment=LABELS, lane=["a"] * 12))["suggested"]
    assert suggested["perturbation_key"] == "treatment"
    assert (suggested["control"], suggested["delimiter"]) == ("ctrl", "_")
    assert "Name the column with --perturbation-key" in suggested["problem"]


def test_suggests_what_the_reader_takes(file):
    found = inspect(write(file, gene=LABELS, guide=LABELS))["suggested"]
    assert (found["perturbation_key"], found["problem"]) == ("gene", "")
    assert read_h5ad(file).source["perturbation_key"] == "gene"


def test_suggests_nothing_where_there_is_nothing(file):
    suggested = inspect(write(file, lane=["a", "b"] * 6))["suggested"]
    assert (suggested["perturbation_key"], suggested["control"]) == ("", "")


def test_a_column_that_names_each_cell_gives_no_labels(file, monkeypatch):
    monkeypatch.setattr(inspection, "MOST_LABELS", 11)
    found = inspect(write(file, barcode=[f"b{i}" for i in range(12)]))
    assert found["columns"][0]["n_labels"] == 12
    assert found["columns"][0]["labels"] == {}


@pytest.mark.parametrize(
    ("labels", "delimiter"),
    [
        (["ctrl", "KLF1", "SET", "KLF1+SET"], "+"),
        (["ctrl", "KLF1", "SET", "KLF1_SET"], "_"),
        (["ctrl", "KLF1|ctrl", "ctrl|SET"], "|"),
        (["non-targeting", "A_1", "B_2"], ""),
        (["KLF1", "SET"], ""),
        ([], ""),
    ],
)
def test_suggests_what_parts_labels(labels, delimiter):
    assert suggested_delimiter(dict.fromkeys(labels, 5)) == delimiter


def test_labels_are_read_as_the_reader_does(file):
    labels = ["ctrl", "KLF1", "SET+KLF1", "a b+c", "ctrl+KLF1"]
    obs = np.repeat(labels, [2, 2, 3, 3, 2])
    data = read_h5ad(write(file, perturbation=obs))
    table = label_table(pd.Series(obs).value_counts().to_dict(), "perturbation")
    by_label = table.set_index("label")
    assert by_label["kind"].to_dict() == {
        "ctrl": "control",
        "KLF1": "single",
        "SET+KLF1": "combination",
        "a b+c": "kept whole",
        "ctrl+KLF1": "single",
    }
    assert list(by_label.loc[obs, "condition"]) == list(data.conditions)
    assert by_label["cells"].sum() == 12


def test_a_preview_says_why_there_is_no_control():
    labels = {"A": 3, "B": 2}
    with pytest.raises(DataError, match="Column 'x' has no control cells"):
        label_table(labels, "x")
    with pytest.raises(DataError, match=r"No cell of column 'x' is labelled 'b'.*Did you mean 'B'"):
        label_table(labels, "x", ReadOptions(control="b"))
    assert list(label_table(labels, "x", ReadOptions(control="B"))["kind"]) == ["single", "control"]


def test_cells_without_a_label_are_shown_as_such():
    table = label_table({"ctrl": 2, "": 3}, "x")
    assert list(table["kind"]) == ["control", "no label"]


@pytest.mark.parametrize(("n", "refused"), [(1_000, False), (1_001, True)])
def test_a_label_of_more_than_a_thousand_characters_is_refused(tmp_path, n, refused):
    path = write(tmp_path / "long.h5ad", gene=["control"] * (len(COUNTS) - 1) + ["x" * n])
    with pytest.raises(DataError, match="labels with names of") if refused else nullcontext():
        inspect(path)


def test_is_told_in_a_few_lines(file):
    told = describe(inspect(write(file, treatment=LABELS)))
    assert "Column 'treatment', 3 labels: KLF1 (4), KLF1_SET (4), ctrl (4)" in told
    assert "Layers: umi" in told


# Absurd sizes are reported before anything is read


def test_an_array_of_which_nothing_is_stored_is_refused(file):
    write(file, perturbation=LABELS)
    with h5py.File(file, "a") as raw:
        attributes = dict(raw["X"].attrs)
        del raw["X"]
        huge = raw.create_dataset("X", (12, 10**12), "f4", chunks=(12, 1000))
        huge.attrs.update(attributes)
    with pytest.raises(DataError, match=r"X of .* says that it holds .* bytes, and 0 are in"):
        read_h5ad(file)


def test_an_array_larger_than_the_memory_is_refused(file, monkeypatch):
    write(file, perturbation=LABELS)
    monkeypatch.setattr(hdf5_checks, "memory_here", lambda: 100)
    with pytest.raises(DataError, match=r"takes .* bytes of memory, and 100 are here"):
        read_h5ad(file)


def test_a_file_of_too_many_parts_is_refused(file, monkeypatch):
    write(file, perturbation=LABELS)
    monkeypatch.setattr(hdf5_checks, "MOST_ITEMS", 5)
    with pytest.raises(DataError, match="more than 5 groups and arrays"):
        inspect(file)


def test_a_file_of_groups_deep_within_each_other_is_refused_at_once(file):
    write(file, perturbation=LABELS)
    with h5py.File(file, "a") as raw:
        raw.create_group("uns" + "/a" * 1000)
    with pytest.raises(DataError, match="more than 50 within each other"):
        inspect(file)


def test_a_heap_of_texts_in_which_hdf5_would_not_end_is_refused(file):
    content = bytearray(write(file, perturbation=LABELS).read_bytes())
    heap = content.index(hdf5_checks.HEAP)
    content[heap + 16 : heap + 40] = bytes(24)  # the first object: nothing, of no size
    file.write_bytes(content)
    with pytest.raises(DataError, match="its texts cannot be read"):
        inspect(file)


def test_texts_that_say_they_are_longer_than_the_file_are_refused(file):
    with h5py.File(write(file, perturbation=LABELS), "r") as raw:
        place = raw["obs/_index"].id.get_offset()
    content = bytearray(file.read_bytes())
    content[place : place + 4] = b"\xff" * 4
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"obs of .* says that it holds 4,294,"):
        inspect(file)


def test_texts_that_hold_the_mark_of_a_heap_do_no_harm(file):
    mark = hdf5_checks.HEAP.decode(errors="replace")
    found = inspect(
        write(file, perturbation=["ctrl", "KLF1", "GCOL\x01"] * 4, other=[mark[:4]] * 12)
    )
    assert found["n_cells"] == 12


def soft(raw):
    del raw["X"]
    raw["X"] = h5py.SoftLink("/layers/umi")


def virtual(raw):
    del raw["X"]
    layout = h5py.VirtualLayout((12, 5), "f4")
    layout[:] = h5py.VirtualSource("other.h5ad", "X", (12, 5))
    raw.create_virtual_dataset("X", layout)


def deep_within(raw):
    raw["uns/a/b"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize("change", [soft, virtual, deep_within])
def test_what_refers_elsewhere_is_refused_before_anything_is_read(file, change):
    with h5py.File(write(file, perturbation=LABELS), "a") as raw:
        change(raw)
    for read in (inspect, read_h5ad):
        with pytest.raises(DataError, match="refers to other places or files"):
            read(file)


def test_references_in_place_of_numbers_are_refused(file):
    with h5py.File(write(file, perturbation=LABELS), "a") as raw:
        del raw["X"]
        raw.create_dataset("X", (12, 5), h5py.ref_dtype).attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )
    with pytest.raises(DataError, match="expected numbers"):
        read_h5ad(file)
