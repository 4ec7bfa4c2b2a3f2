import io
import signal
from pathlib import Path

import h5py
import pytest

from app import datasets, examine
from app.datasets import Reading
from samsvae_core.data import DataError


@pytest.fixture
def uploaded(tmp_path, monkeypatch, screen):
    """The id of a small screen among the uploads."""
    monkeypatch.setenv("SAMSVAE_RUNS", str(tmp_path / "runs"))
    content = screen.path.read_bytes()
    return datasets.save(io.BytesIO(content), "screen.h5ad", len(content))


def test_a_file_is_looked_into_in_a_process_of_its_own(uploaded, screen):
    found = examine.inspected(uploaded)
    assert (found["n_cells"], found["n_genes"]) == screen.data.counts.shape
    report = examine.validated(Reading(uploaded))
    assert report["n_control_cells"] == (screen.data.conditions == screen.data.control).sum()
    assert sum(report["conditions"].values()) == len(screen.data.cells)


def test_what_the_command_says_comes_in_the_words_of_the_page(uploaded):
    with pytest.raises(DataError, match="given as the box Column of perturbations"):
        examine.validated(Reading(uploaded, perturbation_key="guides"))


def test_a_damaged_file_is_told_without_the_folders_of_the_server(uploaded, tmp_path):
    path = datasets.resolve(uploaded)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be opened") as refused:
        examine.inspected(uploaded)
    assert str(tmp_path) not in str(refused.value)
    assert str(refused.value).startswith(path.name)


def test_a_file_that_takes_too_long_is_given_up(uploaded, monkeypatch):
    monkeypatch.setattr(examine, "SECONDS", 0.01)
    with pytest.raises(DataError, match="was not read within 0 seconds"):
        examine.inspected(uploaded)


def test_a_file_that_needs_too_much_memory_is_told(uploaded, monkeypatch):
    path = datasets.resolve(uploaded)
    with h5py.File(path, "a") as raw:
        del raw["X"]
        wide = raw.create_dataset("X", (600, 900_000), "f4", chunks=(600, 1000))
        wide[:, 0:9_000] = 1.0
        wide.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    monkeypatch.setattr(examine, "memory_here", lambda: 2 * 10**9)
    with pytest.raises(DataError, match=r"memory|Unable to allocate"):
        examine.validated(Reading(uploaded))


@pytest.mark.parametrize(
    ("code", "err", "message"),
    [
        (-signal.SIGKILL, "", "needs more memory than there is here"),
        (-signal.SIGSEGV, "Fatal Python error", "made the reader end"),
        (1, "Traceback ...\nKeyError: 'x'", "made the reader end"),
        (2, "a warning\nError: No cell. Use --layer.\n", "^No cell. Use the box Counts from.$"),
    ],
)
def test_every_end_has_its_message(code, err, message):
    with pytest.raises(DataError, match=message):
        raise DataError(examine._why(code, err, Path("/srv/a.h5ad")))


def test_an_answer_that_is_too_long_is_not_read(uploaded, monkeypatch):
    monkeypatch.setattr(examine, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="more names and labels than can be shown"):
        examine.inspected(uploaded)
