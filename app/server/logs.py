"""What the server tells whoever runs it: a line of JSON on stderr for each event.

Knows nothing of Streamlit. A line has `time` (UTC), `level`, `event` and what belongs to it: names
of models, runs and files, sizes, reasons. Never what is in a file, nor who a visitor is; the
message of an unexpected error is cut at LONGEST characters. All is ASCII: a name forges no line.
"""

from __future__ import annotations

import datetime
import json
import logging
import secrets
import sys
import traceback

LOGGER = logging.getLogger(__name__)
OURS = ("app", "samsvae_core")  # whose lines are written so
LONGEST = 500  # characters of a value
FRAMES = 20  # of a traceback, the last


class Lines(logging.Formatter):
    """A record as one line of JSON."""

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
    """Writes to stderr as it is when there is something to write; a full disk stops nobody."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            self.handleError(record)


def cut(value: object) -> object:
    """Numbers and lists as they are, anything else as a text that is not too long."""
    if isinstance(value, list):
        return [cut(part) for part in value]
    return value if isinstance(value, (int, float)) or value is None else str(value)[:LONGEST]


def start() -> None:
    """Write our lines to stderr from now on; once, however often it is called."""
    for name in OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler.formatter, Lines) for handler in logger.handlers):
            handler = Stderr()
            handler.setFormatter(Lines())
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)


def event(what: str, **fields: object) -> None:
    """Something that happened: event("job started", run="mine", pid=17)."""
    LOGGER.info(what, extra={"fields": fields})


def refused(what: str, reason: str, **fields: object) -> None:
    """Something that cannot be: refused("upload refused", "it is too large", file="mine.h5ad")."""
    LOGGER.warning(what, extra={"fields": {**fields, "reason": reason}})


def error(problem: BaseException, **fields: object) -> str:
    """Log what nobody expected; the id under which the log has it."""
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
