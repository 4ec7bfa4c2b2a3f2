"""Only damage of a file is reported as damage, not our own mistakes or the machine's."""

import inspect
import os
import sys
import types

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.cli import main as cli
from samsvae_core.data import (
    cells,
    counts,
    disk_csr,
    guide_tables,
    h5ad,
    hdf5_checks,
    inspection,
    stored,
    tables,
)
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.system import machine
from tests.data.test_disk_csr import saved

COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(np.float32)
OF_FILES = (hdf5_checks, h5ad, tables, stored, counts, guide_tables)
MODULES = (*OF_FILES, machine, disk_csr)
OURS = [
    (module, name)
    for module in MODULES
    for name, found in vars(module).items()
    if isinstance(found, types.FunctionType) and found.__module__ == module.__name__
]


class Mistake(AttributeError, KeyError, TypeError, RuntimeError, ValueError):
    """An error of every kind by which damage is recognised."""


def mistaken(*_, **__):
    raise Mistake("a mistake of ours")


@pytest.fixture
def file(tmp_path):
    path = saved(tmp_path / "a.h5ad", sp.csr_matrix(COUNTS), layers={"dense": COUNTS})
    with h5py.File(path, "a") as raw:
        anndata.io.write_elem(raw["obsm"], "dosages", np.eye(12)[:, :2])
        anndata.io.write_elem(raw["uns"], "dosages_names", np.array(["A", "B"]))
    return path


def everything(path, folder):
    """Read everything in a file, ignoring refusals."""
    inspection.inspect(path)
    read_h5ad(path)
    read_h5ad(path, continuous=True, layer="dense", counts_on="disk", scratch=folder)
    read_h5ad(path, dosage_key="dosages")


def test_item_12_a_mistake_in_any_function_of_ours_comes_out_as_itself(file, tmp_path, monkeypatch):
    everything(file, tmp_path)
    called = []
    for module, name in OURS:
        with monkeypatch.context() as patch:
            for each in (*MODULES, inspection, cells):
                if getattr(each, name, None) is getattr(module, name):
                    patch.setattr(each, name, mistaken)
            try:
                everything(file, tmp_path)
            except Mistake:
                called.append(name)
            except DataError as error:
                pytest.fail(f"a mistake in {name} is told as: {error}")
    assert {"check_size", "memory_here", "table_of", "_checked", "in_memory", "_arrays"} <= set(
        called
    )


def test_item_12_a_system_that_does_not_tell_its_memory_reads_as_any_other(file, monkeypatch):
    def silent():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(machine.psutil, "virtual_memory", silent)
    monkeypatch.setattr(machine, "CGROUP", file)
    assert machine.memory_here() > 2**50
    assert machine.memory_free() > 0
    np.testing.assert_array_equal(read_h5ad(file).counts.toarray(), COUNTS)


def test_item_12_what_the_system_refuses_is_not_told_as_a_damaged_file(file, monkeypatch):
    def full(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(DataError, match=r"cannot be read here: Too many open files") as refused:
        read_h5ad(file)
    assert "fetch it again" not in str(refused.value).lower()


def test_item_12_too_little_memory_is_not_told_as_a_damaged_file(file, monkeypatch):
    def full(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr("anndata.io.read_elem", full)
    with pytest.raises(DataError, match="not enough memory for it here") as refused:
        read_h5ad(file)
    assert "damage" not in str(refused.value)


def test_item_12_nothing_of_ours_stands_within_what_catches_damage():
    """In the source, too: within `as_data_error` only h5py and anndata are called."""
    import ast

    names = {name for _, name in OURS} - {"as_data_error", "_sound"}
    for module in OF_FILES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.With) and any(
                isinstance(item.context_expr, ast.Call)
                and getattr(item.context_expr.func, "id", "") in ("as_data_error", "_sound")
                for item in node.items
            ):
                inner = [each for line in node.body for each in ast.walk(line)]
                called = {getattr(c.func, "id", "") for c in inner if isinstance(c, ast.Call)}
                assert not called & names, ast.unparse(node)


# A file that others change while it is read


def shortened(path):
    os.truncate(path, path.stat().st_size // 2)


def emptied(path):
    path.write_bytes(b"")


def written_over(path):
    """Overwrite a file in place, as cp and rsync --inplace do."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(bytes(len(content)))


@pytest.mark.parametrize("change", [shortened, emptied, written_over])
@pytest.mark.parametrize(
    "when",
    [
        "_check_heaps",
        "_places_of",
        "_check_layout",
        "_check_encodings",
        "_checked",
        "as_data_error",
    ],
)
def test_item_14_a_file_that_is_rewritten_while_it_is_read_ends_in_one_message(
    file, monkeypatch, change, when
):
    """It runs in this process, which a signal of the system would end."""
    module = next(each for each in OF_FILES if hasattr(each, when))
    before, done = getattr(module, when), []

    def then(*arguments, **options):
        if not done:
            done.append(change(file))
        return before(*arguments, **options)

    for each in OF_FILES:
        if hasattr(each, when):
            monkeypatch.setattr(each, when, then)
    with pytest.raises(DataError, match=r"changed while it was read|found a file that begins"):
        read_h5ad(file)
    assert done


def test_item_14_a_file_that_shrinks_while_its_texts_are_looked_at_is_told(file, monkeypatch):
    content = file.read_bytes() + bytes(10**6)
    file.write_bytes(content)
    monkeypatch.setattr(hdf5_checks, "PIECE", 1000)
    before = hdf5_checks._Window.at

    def at(window, place, n):
        os.truncate(file, 3000)
        return before(window, place, n)

    monkeypatch.setattr(hdf5_checks._Window, "at", at)
    with pytest.raises(DataError, match="changed while it was read"):
        read_h5ad(file)


def test_item_14_nothing_of_a_file_of_others_is_mapped():
    """The system ends a process that reads a mapped file while others shorten it."""
    for module in OF_FILES:
        assert "mmap" not in inspect.getsource(module).replace("np.memmap", "")


def test_item_12_a_value_error_of_a_library_is_not_told_as_the_mistake_of_a_user(
    file, monkeypatch, capsys
):
    """The command line shows a traceback for it; a message of ours stays one line."""
    monkeypatch.setattr(sys, "argv", ["samsvae", "validate", str(file)])
    with monkeypatch.context() as patch:
        patch.setattr(cells, "summary", lambda _: pd.DataFrame({"a": [1], "b": [1, 2]}))
        with pytest.raises(ValueError, match="All arrays must be of the same length"):
            cli.main()
    monkeypatch.setattr(sys, "argv", ["samsvae", "validate", str(file), "--layer", "no"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("Error: There is no layer 'no'")
