import ast
import io
import re
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from app.server import sandbox, uploads
from app.server.reading import Reading
from app.session import brought_files, bundles
from samsvae_core.bundle.layout import BundleError
from samsvae_core.data.cells import DataError
from samsvae_core.data.read_options import ReadOptions


@pytest.fixture
def uploaded(tmp_path, monkeypatch, screen):
    """Return the id of a small screen among the uploads."""
    monkeypatch.setenv("SAMSVAE_RUNS", str(tmp_path / "runs"))
    content = screen.path.read_bytes()
    return uploads.save(io.BytesIO(content), "screen.h5ad", len(content))


def test_a_file_is_looked_into_in_a_process_of_its_own(uploaded, screen):
    found = sandbox.inspected(uploaded)
    assert (found["n_cells"], found["n_genes"]) == screen.data.counts.shape
    report = sandbox.validated(Reading(uploaded))
    assert report["n_control_cells"] == (screen.data.conditions == screen.data.control).sum()
    assert sum(report["conditions"].values()) == len(screen.data.cells)


def test_what_the_command_says_comes_in_the_words_of_the_page(uploaded):
    with pytest.raises(DataError, match='chosen in the box "Column of perturbations"'):
        sandbox.validated(Reading(uploaded, ReadOptions(perturbation_key="guides")))


def messages():
    """Return all messages of the reader that mention an option, with X for their values."""
    reader = uploads.ROOT / "samsvae_core" / "data"
    for path in sorted({*reader.glob("*.py")} - {reader / "read_options.py"}):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        parts = {id(v) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for v in n.values}
        for node in ast.walk(tree):
            if id(node) in docs | parts or not isinstance(node, (ast.JoinedStr, ast.Constant)):
                continue
            values = node.values if isinstance(node, ast.JoinedStr) else [node]
            text = "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in values)
            if re.search(r"--[a-z]", text) and "--counts-on" not in text:
                yield text


def test_item_14_every_message_of_the_reader_comes_in_plain_words_of_the_page():
    every = list(messages())
    assert len(every) > 25
    for message in every:
        said = sandbox.in_words(message)
        assert "--" not in said, said
        assert "with choosing" not in said, said
        assert "given as the" not in said, said
        assert not re.search(r"[.!?] [a-z]", said), said
        assert not re.search(r"(?:^|[^n] )(?:the )?box (?!\")", said), said


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "'x', given as --control. Did you mean 'y'?",
            "'x', chosen in the box \"Control labels\". Did you mean 'y'?",
        ),
        (
            "Name them with --control; a pattern such as '*a*' means several.",
            "Name them in the box \"Control labels\"; a pattern such as '*a*' means several.",
        ),
        (
            "name them: --control GFP --control 'a b'. Then",
            'name them: in the box "Control labels" choose GFP, a b. Then',
        ),
        (
            "one more. --drop-unlabelled leaves them out, --unlabelled-as-control takes them.",
            'one more. Choosing "left out" in the box "Cells without a label" leaves them out,'
            ' choosing "control" in the box "Cells without a label" takes them.',
        ),
        (
            "Leave them out with --drop-unlabelled.",
            'Leave them out by choosing "left out" in the box "Cells without a label".',
        ),
        (
            "as one. --dosage-key dose value reads them.",
            'as one. Choosing "dose value" in the box "Dosages" reads them.',
        ),
        (
            "(A|B): --delimiter '|' parts them there.",
            '(A|B): choosing "|" in the box "Between parts of a combination" parts them there.',
        ),
        (
            "Column 'x', given as --size-factor-key, cannot",
            "Column 'x', chosen in the box \"Size factor\", cannot",
        ),
        (
            "as they are with --likelihood gaussian.",
            'as they are by choosing "gaussian" in the box "Values".',
        ),
        (
            "--top-genes must be from 1 to 3; found 4.",
            'The number in the box "Most variable genes" must be from 1 to 3; found 4.',
        ),
    ],
)
def test_item_14_options_read_as_plain_english_on_the_page(message, said):
    assert sandbox.in_words(message) == said


def test_a_damaged_file_is_told_without_the_folders_of_the_server(uploaded, tmp_path):
    path = uploads.resolve(uploaded)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="cannot be opened") as refused:
        sandbox.inspected(uploaded)
    assert str(tmp_path) not in str(refused.value)
    assert str(refused.value).startswith(path.name)


def test_item_13_time_is_that_of_a_processor_without_the_imports(uploaded, monkeypatch):
    """The clock does not count, and neither does importing libraries."""
    monkeypatch.setattr(sandbox, "SECONDS", 0)
    monkeypatch.setattr(sandbox, "BYTES_A_SECOND", 2**60)
    assert sandbox.inspected(uploaded)["n_cells"] == 600
    monkeypatch.setattr(sandbox, "IMPORTS", 0.1)
    monkeypatch.setattr(sandbox, "PATIENCE", 1000)
    with pytest.raises(
        DataError, match=r"more than 0 seconds of processor time.* samsvae validate"
    ):
        sandbox.inspected(uploaded)


def test_item_13_a_busy_machine_is_not_told_as_a_fault_of_the_file(uploaded, monkeypatch):
    monkeypatch.setattr(sandbox, "PATIENCE", 0.001)
    with pytest.raises(DataError, match=r"this machine is busy.* The file may be fine"):
        sandbox.inspected(uploaded)


@pytest.mark.parametrize("what", ["inspected", "validated"])
@pytest.mark.parametrize("error", [DataError("busy"), sandbox.ReaderError("ours")])
def test_item_13_what_goes_wrong_once_is_not_remembered(uploaded, monkeypatch, what, error):
    asked = {"inspected": uploaded, "validated": Reading(uploaded)}[what]

    def wrong(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, what, wrong)
        with pytest.raises(type(error)):
            getattr(brought_files, what)(asked)
    monkeypatch.setattr(sandbox, what, lambda *_: {"n_cells": 3})
    assert getattr(brought_files, what)(asked) == {"n_cells": 3}
    monkeypatch.setattr(sandbox, what, wrong)
    assert getattr(brought_files, what)(asked) == {"n_cells": 3}  # what went well is


def test_item_13_a_model_that_cannot_be_opened_now_is_looked_at_again(copied, monkeypatch):
    def full(*_):
        try:
            raise OSError(24, "Too many open files")
        except OSError as error:
            raise BundleError("cannot be read") from error

    with monkeypatch.context() as patch:
        patch.setattr(bundles.opening, "load", full)
        assert bundles._problem_of(copied) == "cannot be read"
    assert bundles._problem_of(copied) == ""


def test_item_13_a_damaged_model_is_looked_at_once(copied, monkeypatch):
    (copied / "masks.csv").write_text("no table")
    said = bundles._problem_of(copied)
    assert "masks.csv" in said
    monkeypatch.setattr(bundles.opening, "load", None)
    assert bundles._problem_of(copied) == said


def test_item_12_a_mistake_of_the_reader_is_not_told_as_a_damaged_file(uploaded):
    with pytest.raises(sandbox.ReaderError, match="KeyError: 'x'"):
        sandbox._why(1, "Traceback ...\nKeyError: 'x'", Path("/srv/a.h5ad"))


def test_a_file_that_needs_too_much_memory_is_told(uploaded, monkeypatch):
    path = uploads.resolve(uploaded)
    with h5py.File(path, "a") as raw:
        create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # the file has a hole there
        texts = h5py.h5t.py_create(np.dtype("S3000000"))
        space = h5py.h5s.create_simple((len(raw["obs/_index"]),))
        h5py.h5d.create(raw.id, b"obs/long", texts, space, create)
        raw["obs/long"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        raw["obs"].attrs["column-order"] = [*raw["obs"].attrs["column-order"], "long"]
    monkeypatch.setattr(sandbox, "memory_here", lambda: 2 * 10**9)
    with pytest.raises(DataError, match="not enough memory for it here"):
        sandbox.validated(Reading(uploaded))


@pytest.mark.parametrize(
    ("code", "err", "message"),
    [
        (-signal.SIGKILL, "", "needs more memory than there is here"),
        (-signal.SIGSEGV, "Fatal Python error", "made the reader crash"),
        (-signal.SIGTERM, "", "was stopped. Try again"),
        (
            2,
            "a warning\nError: No cell. Use --layer.\n",
            r"^No cell. Use the box \"Counts from\".$",
        ),
    ],
)
def test_every_end_has_its_message(code, err, message):
    with pytest.raises(DataError, match=message):
        raise DataError(sandbox._why(code, err, Path("/srv/a.h5ad")))


def test_an_answer_that_is_too_long_is_not_read(uploaded, monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_BYTES", 100)
    with pytest.raises(DataError, match="more names and labels than can be shown"):
        sandbox.inspected(uploaded)
