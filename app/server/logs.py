"""The server's log: a line of JSON on stderr for each event.

A line has `time` (UTC), `level`, `event` and its fields: names of models, runs and files, sizes,
reasons. It never says what is in a file or who a visitor is; values are cut at LONGEST characters.
Lines are ASCII, so that a name cannot forge a line.
"""

from __future__ import annotations

import datetime
import json
import logging
import secrets
import sys
import traceback

LOGGER = logging.getLogger(__name__)
OURS = ("app", "samsvae_core")  # the loggers that are written this way
LONGEST = 500  # characters of a value
FRAMES = 20  # the last frames of a traceback


class Lines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        told: dict[str, object] = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": cut(record.getMessage()),
        }
        fields: dict[str, object] = getattr(record, "fields", {})
        return json.dumps(told | {name: cut(value) for name, value in fields.items()})


class Stderr(logging.Handler):
    """Writes to the current stderr; an error while writing, as on a full disk, stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)


def cut(value: object) -> object:
    """Return numbers, lists and None unchanged, and anything else as a text of limited length."""
    if isinstance(value, list):
        return [cut(part) for part in value]
    return value if isinstance(value, (int, float)) or value is None else str(value)[:LONGEST]


def start() -> None:
    """Start writing our log to stderr; calling it again changes nothing."""
    for name in OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler.formatter, Lines) for handler in logger.handlers):
            handler = Stderr()
            handler.setFormatter(Lines())
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)


def event(what: str, **fields: object) -> None:
    """Log an event, as in event("job started", run="mine", pid=17)."""
    LOGGER.info(what, extra={"fields": fields})


def refused(what: str, reason: str, **fields: object) -> None:
    """Log a refusal, as in refused("upload refused", "it is too large", file="mine.h5ad")."""
    LOGGER.warning(what, extra={"fields": {**fields, "reason": reason}})


def error(problem: BaseException, **fields: object) -> str:
    """Log an unexpected error and return its id in the log."""
    number = secrets.token_hex(4)
    frames = traceback.extract_tb(problem.__traceback__)[-FRAMES:]
    told = {
        "id": number,
        "type": type(problem).__name__,
        "message": str(problem),
        "where": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    LOGGER.error("error", extra={"fields": fields | told})
    return number
