"""Wrong files are refused with a message, without crashing, hanging or writing elsewhere."""

import random

import h5py
import pytest

from tests.fuzz import mutations, structures
from tests.fuzz import run as fuzz


@pytest.fixture(scope="module")
def bundle(tiny):
    return tiny.path


def read(folder, n, seed, bundle):
    cases = mutations.corpus(folder / "files", n, seed, bundle)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "canary.h5ad").write_bytes(b"canary")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    outcomes = fuzz.run(cases, folder / "work")
    after = {p for p in folder.rglob("*") if p.is_file() and folder / "work" not in p.parents}
    assert after == set(before)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert [outcome.number for outcome in outcomes] == list(range(n))
    assert fuzz.faults(cases, outcomes) == []
    return {outcome.outcome for outcome in outcomes}


def test_a_sample_of_wrong_files_is_refused_in_words(bundle, tmp_path):
    assert fuzz.REFUSED in read(tmp_path, 60, 0, bundle)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_many_wrong_files_are_refused_in_words(bundle, tmp_path, seed):
    read(tmp_path, 540, seed, bundle)


def structured(folder, n, seed):
    cases = structures.corpus(folder / "files", n, seed)
    outcomes = fuzz.run(cases, folder / "work")
    assert [outcome.number for outcome in outcomes] == list(range(n))
    assert fuzz.faults(cases, outcomes) == []
    assert {outcome.outcome for outcome in outcomes} == {fuzz.WORKED, fuzz.REFUSED}
    assert max(outcome.peak for outcome in outcomes) < 1024  # MB


def test_item_15_files_of_any_structure_are_read_as_plain_h5py_reads_them_or_refused(tmp_path):
    structured(tmp_path, 40, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_item_15_many_files_of_any_structure_are_read_rightly_or_refused(tmp_path, seed):
    structured(tmp_path, 500, seed)


@pytest.mark.parametrize("wrong", ["counts", "cells", "genes", "labels"])
def test_item_15_a_reader_that_reads_something_else_is_found(tmp_path, monkeypatch, wrong):
    rng = random.Random("one")
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        structures.write(file, rng)
    case = [0, "structure", "sound", str(tmp_path / "a.h5ad")]
    assert fuzz.outcome_of(case, tmp_path)[0] == fuzz.WORKED
    counts, *names = structures.truth(tmp_path / "a.h5ad", "X")
    if wrong == "counts":
        counts[2, 1] += 1
    else:
        names[["cells", "genes", "labels"].index(wrong)][1] += "x"
    monkeypatch.setattr(structures, "truth", lambda *_: (counts, *names))
    assert fuzz.outcome_of(case, tmp_path)[0] == "error"


def test_item_15_a_valid_file_that_is_refused_is_found(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        structures.write(file, random.Random("one"))
        del file["obs"]
    case = [0, "structure", "sound", str(tmp_path / "a.h5ad")]
    assert fuzz.outcome_of(case, tmp_path)[0] == "error"


def test_wrong_files_are_the_same_for_the_same_seed(bundle, tmp_path):
    for name in ("one", "two"):
        mutations.corpus(tmp_path / name, 12, 3, bundle)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir() if p.suffix != ".zip"}
        for name in ("one", "two")
    )
    texts = {name for name in one if not name.endswith("h5ad")}  # HDF5 notes the time
    assert set(one) == set(two)
    assert len(texts) >= 4
    assert {name: one[name] for name in texts} == {name: two[name] for name in texts}


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Return the outcome of a case whose reader is the given Python code."""

    def outcome(code, seconds=20):
        monkeypatch.setattr(fuzz, "SECONDS", seconds)
        work, program = tmp_path / "work", tmp_path / "program.py"
        (tmp_path / "a").write_text("")
        program.write_text(
            "import os, sys, time; from pathlib import Path; from tests.fuzz import run as fuzz\n"
            f"def read(path, work):\n    {code}\n"
            "fuzz.READERS['gmt'] = read\nfuzz.warm_up = lambda: None\n"
            "fuzz.child(*map(Path, sys.argv[-2:]))\n"
        )
        monkeypatch.setattr(fuzz, "CHILD", [str(program)])
        cases = [[0, "gmt", "-", str(tmp_path / "a")], [1, "gmt", "-", str(tmp_path / "a")]]
        outcomes = fuzz.run(cases, work)
        assert [o.number for o in outcomes] == [0, 1]
        return outcomes[0]

    return outcome


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("pass", "worked"),
        ("int('x')", "error"),
        ("{}['x']", "error"),
        ("os.abort()", "ended by -6"),
        ("(work.parent / 'elsewhere').write_text('')", "reached out"),
        ("os.symlink('/etc', work.parent / 'link')", "reached out"),
        ("os.system('true')", "reached out"),
        ("(work / 'inside').write_text('')", "worked"),
    ],
)
def test_each_fault_is_found(faulty, code, found):
    assert faulty(code).outcome == found


def test_a_hang_is_found(faulty, monkeypatch):
    monkeypatch.setattr(fuzz, "GRACE", 0)
    assert faulty("time.sleep(100)", 1).outcome == "hung"
