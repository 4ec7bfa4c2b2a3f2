"""A session file is read back as it was written; anything else is refused with a reason."""

import json

import pytest

from app.session import session_file
from app.session.session_file import Session, SessionView

PAGES = ("overview", "compose", "report")
SESSION = Session(
    model="papalexi2021",
    checksum="ab" * 32,
    pages={"compose": {"c": ["STAT1:1"], "collections": ["hallmark", "mine"]}, "overview": {}},
    kept=(SessionView("Compose: STAT1", "compose", {"c": ["STAT1:1"]}, "ab" * 32),),
    collections={"mine": "A\tnone\tSTAT1\tIRF1\n"},
    names={},
)


def test_a_session_is_read_back_as_it_was_written():
    assert session_file.read(session_file.written(SESSION), PAGES) == SESSION


def test_odd_names_of_parameters_and_long_values_come_back():
    pages = {"partners": {"set_my-sets of ChIP X": ["B"], "background": ["G " * 20_000]}}
    session = SESSION._replace(pages={**pages, "compose": {}})
    assert session_file.read(session_file.written(session), (*PAGES, "partners")) == session


def test_a_session_too_large_for_a_file_is_not_written():
    with pytest.raises(ValueError, match="too large to be saved"):
        session_file.written(
            SESSION._replace(collections={"mine": "x" * (session_file.MAX_BYTES + 1)})
        )


def changed(**values: object) -> bytes:
    return json.dumps(json.loads(session_file.written(SESSION)) | values).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as JSON"),
        (b"\x80\x04\x95", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "names no model"),
        (b'{"pages": {}}', "names no model"),
        (changed(schema=2), "another version"),
        (changed(pages={"../../x": {}}), "does not exist"),
        (changed(pages={"compose": {"<script>": ["1"]}}), "parameter"),
        (changed(pages={"compose": {"c": "STAT1"}}), "expected a list"),
        (changed(pages={"compose": {"c": [1]}}), "expected a text"),
        (changed(pages={"compose": {"c": ["x" * 600_000]}}), "at most 500,000"),
        (changed(pages={"compose": {"c": ["\ud800"]}}), "half of a character"),
        (changed(kept=[{"title": "t", "page": "compose"}]), "query"),
        (changed(kept={}), "expected a list"),
        (changed(collections=[]), "expected names and values"),
        (changed(names=None), "expected names and values"),
        (b" " * (session_file.MAX_BYTES + 1), "20 MB at most"),
    ],
)
def test_what_is_no_session_is_refused_with_a_reason(content, reason):
    with pytest.raises(ValueError, match=reason):
        session_file.read(content, PAGES)
