"""A session file is read back as it was written; anything else is refused with a reason."""

import json

import pytest

from app import sessions
from app.sessions import Kept, Session

PAGES = ("overview", "compose", "report")
SESSION = Session(
    model="papalexi2021",
    checksum="ab" * 32,
    page="report",
    pages={"compose": {"c": ["STAT1:1"], "collections": ["hallmark", "mine"]}, "overview": {}},
    kept=(Kept("Compose: STAT1", "compose", {"c": ["STAT1:1"]}),),
    collections={"mine": "A\tnone\tSTAT1\tIRF1\n"},
    names={},
)


def test_a_session_is_read_back_as_it_was_written():
    assert sessions.read(sessions.written(SESSION), PAGES) == SESSION


def changed(**values: object) -> bytes:
    return json.dumps(json.loads(sessions.written(SESSION)) | values).encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cannot be read as JSON"),
        (b"\x80\x04\x95", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (b"[]", "names no model"),
        (b'{"pages": {}}', "names no model"),
        (changed(schema=2), "another version"),
        (changed(page="/etc/passwd"), "does not exist"),
        (changed(pages={"../../x": {}}), "does not exist"),
        (changed(pages={"compose": {"<script>": ["1"]}}), "parameter"),
        (changed(pages={"compose": {"c": "STAT1"}}), "expected a list"),
        (changed(pages={"compose": {"c": [1]}}), "expected a text"),
        (changed(pages={"compose": {"c": ["x" * 30_000]}}), "at most 20,000"),
        (changed(kept=[{"title": "t", "page": "compose"}]), "query"),
        (changed(kept={}), "expected a list"),
        (changed(collections=[]), "expected names and values"),
        (changed(names=None), "expected names and values"),
        (b" " * (sessions.MAX_BYTES + 1), "20 MB at most"),
    ],
)
def test_what_is_no_session_is_refused_with_a_reason(content, reason):
    with pytest.raises(ValueError, match=reason):
        sessions.read(content, PAGES)
