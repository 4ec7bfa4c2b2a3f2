"""The lines of the log, and what is shown and logged when a page fails."""

import json
import logging
import sys

import pytest

from app.server import logs, queue


@pytest.fixture
def lines(capsys):
    """Return a function that reads the lines so far; our handlers are removed after the test."""
    before = {name: list(logging.getLogger(name).handlers) for name in logs.OURS}
    for name in logs.OURS:
        logging.getLogger(name).handlers = []
    logs.start()
    yield lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers


def test_an_event_is_one_line_with_its_fields(lines):
    logs.start()  # again, as in every run of a page
    logs.event("job started", run="mine", pid=17, none=None)
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    expected = {"level": "info", "event": "job started", "run": "mine", "pid": 17, "none": None}
    assert line == expected


def test_a_name_forges_no_line_and_no_colour(lines, capsys):
    logs.refused("bundle refused", 'x\n{"event": "forged"}\r\x1b[31m\u202e', model="a" * 10_000)
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert text.isascii()
    assert text.strip().isprintable()
    line = json.loads(text)
    assert line["level"] == "warning"
    assert len(line["model"]) == logs.LONGEST


def test_what_the_library_warns_of_is_a_line_too(lines):
    logging.getLogger("samsvae_core.genesets.prerank").warning("Not kept: %s", "no room")
    (line,) = lines()
    assert line["event"] == "Not kept: no room"


def test_an_error_is_found_under_its_number(lines):
    def breaks():
        raise KeyError("A" * 5_000)

    try:
        breaks()
    except KeyError as problem:
        number = logs.error(problem, page="gene")
    (line,) = lines()
    assert (line["id"], line["type"], line["page"]) == (number, "KeyError", "gene")
    assert line["where"][-1].endswith("breaks")
    assert len(line["message"]) <= logs.LONGEST


def test_trainings_are_told(lines, tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "PROGRAM", (sys.executable, "-c", ""))
    (tmp_path / "a.h5ad").write_bytes(b"")
    queue.submit(tmp_path / "runs", "mine", tmp_path / "a.h5ad", [])
    for _, child in list(queue._children):
        child.wait(60)
    queue.look(tmp_path / "runs")
    started, ended = lines()
    assert (started["event"], started["run"], started["device"]) == ("job started", "mine", "cpu")
    assert (ended["event"], ended["run"], ended["exit"]) == ("job ended", "mine", 0)
    assert started["pid"] == ended["pid"]
