"""A session as a file: its model, the query of each page, and the kept views, as JSON.

A file is checked before any of it is used. Names that the model does not know are then reported
by the pages, as with any link.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from samsvae_core.bundle.layout import to_json, version

SCHEMA = 1
MAX_BYTES = 20 * 2**20
MAX_VALUE = 500_000  # characters of one value of an address
MAX_KEPT = 30  # views
KEY = re.compile(r"[^\x00-\x1f<>]{1,200}")

Query = dict[str, list[str]]


class SessionView(NamedTuple):
    """A view kept for the report, as the page and query that show it."""

    title: str
    page: str
    query: Query
    checksum: str  # of its model


class Session(NamedTuple):
    """The content of a session file. `collections` are one's own gene sets, as GMT, by name."""

    model: str
    checksum: str
    pages: dict[str, Query]
    kept: tuple[SessionView, ...]
    collections: dict[str, str]
    names: dict[str, Any]  # of mechanisms, as in a file of names


def written(session: Session) -> bytes:
    """Return a session as a file; raises ValueError if it is too large."""
    content = {
        "schema": SCHEMA,
        "made_with": f"SAMS-VAE Explorer {version('samsvae-explorer')}",
        **session._asdict(),
        "kept": [view._asdict() for view in session.kept],
    }
    file = to_json(content)
    if len(file) > MAX_BYTES:
        raise ValueError(
            f"This session would be a file of {len(file):,} bytes, and 20 MB is the limit: your "
            "own gene sets are too large to be saved with it."
        )
    return file


def read(content: bytes, pages: Sequence[str]) -> Session:
    """Return the session in a file; `pages` are the known ones. Raises ValueError if invalid."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"This file has {len(content):,} bytes; a session has 20 MB at most.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"This is not a session file: it cannot be read as JSON ({error})."
        ) from None
    if not isinstance(found, dict) or "pages" not in found or "checksum" not in found:
        raise ValueError(
            "This is not a session file: it names no model and no pages. Save one on this page."
        )
    if found.get("schema") != SCHEMA:
        raise ValueError(
            f"This session file is of another version; this dashboard reads schema {SCHEMA}. "
            "Install a newer SAMS-VAE Explorer, or make the session again."
        )
    try:
        return Session(
            model=_text(found["model"]),
            checksum=_text(found["checksum"]),
            pages={_page(page, pages): _query(q) for page, q in _mapping(found["pages"]).items()},
            kept=tuple(_kept(view, pages) for view in _list(found["kept"])[:MAX_KEPT]),
            collections={
                _text(name): _text(gmt, MAX_BYTES)
                for name, gmt in _mapping(found["collections"]).items()
            },
            names=dict(_mapping(found["names"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"This session file is damaged ({error}). Save the session again."
        ) from None


def _text(value: object, longest: int = MAX_VALUE) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"expected a text of at most {longest:,} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half of a character") from None  # a lone surrogate
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return value


def _mapping(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("expected names and values")
    return value


def _page(value: object, pages: Sequence[str]) -> str:
    if value not in pages:
        raise ValueError(f"it names a page {str(value)[:40]!r} that does not exist")
    return str(value)


def _query(value: object) -> Query:
    query = {}
    for key, values in _mapping(value).items():
        if not KEY.fullmatch(key):
            raise ValueError(f"it holds a parameter {key[:40]!r}")
        query[key] = [_text(v) for v in _list(values)]
    return query


def _kept(value: object, pages: Sequence[str]) -> SessionView:
    view = _mapping(value)
    return SessionView(
        _text(view["title"]),
        _page(view["page"], pages),
        _query(view["query"]),
        _text(view["checksum"]),
    )
