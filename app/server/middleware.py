"""An ASGI middleware before Streamlit: it checks host names and uploads, and adds headers.

It refuses a request before reading any of its body. `app.session.access` decides who sees pages;
this module decides who may send a file: a session whose page has shown an uploader, which no page
does before sign-in.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import urlsplit

import streamlit as st
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit import runtime
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.server import logs

MB = 2**20  # bytes, as Streamlit counts
FORM = MB  # bytes allowed for a request in addition to its file
MOST_FILES = 50  # files that the server holds for one session
MANY = 1_000  # with more sessions, those that have ended are forgotten
UPLOAD = re.compile(r"/_stcore/upload_file/(?P<session>[^/]+)/[^/]+/?$")
HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
)
STRANGE_NAME = (
    "This server does not answer to this name. Open it as http://localhost with its port, or ask "
    "whoever runs it to add the name to STREAMLIT_SERVER_ALLOWED_HOSTS (docs/operation.md)."
)
_asking = threading.Lock()
_asked: dict[str, int] = {}  # bytes of the largest file a page has asked for, by session


class Refusal(NamedTuple):
    """The answer to a refused request."""

    status: HTTPStatus
    reason: str


# Names


def is_local(name: str) -> bool:
    """Return whether a name or an address means the machine itself, without any name server."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_known(hosts: list[str], address: str | None, allowed: Iterable[str]) -> bool:
    """Return whether the name in a request's Host headers is allowed.

    `address` is where the server listens; `allowed` are the operator's names: single ones, `*.`
    before a domain, or `*`. The machine's own names are always allowed. Without any names given, a
    server that listens only on the machine itself allows no others, and any other allows all.
    """
    if len(hosts) != 1:
        return False
    try:
        parts = urlsplit(f"//{hosts[0]}")
        _ = parts.port  # raises if it is not a number
    except ValueError:
        return False
    name = (parts.hostname or "").rstrip(".")
    if not name or parts.netloc != hosts[0] or "@" in hosts[0]:
        return False
    given = [text.strip().lower().rstrip(".") for text in allowed]
    if is_local(name) or "*" in given:
        return True
    if not given:
        return not is_local((address or "").strip("[]").lower())
    return any(name == each or (each[:2] == "*." and name.endswith(each[1:])) for each in given)


# Uploads


def expect(megabytes: int) -> int:
    """Allow the current session to send files of this size, and return the size."""
    context = get_script_run_ctx()
    if context is not None:
        with _asking:
            largest = max(megabytes * MB, _asked.get(context.session_id, 0))
            _asked[context.session_id] = largest
            if len(_asked) > MANY:
                ended = [one for one in _asked if not runtime.get_instance().is_active_session(one)]
                for session in ended:
                    _asked.pop(session)
    return megabytes


def held() -> dict[str, list[int]]:
    """Return the bytes of each file that Streamlit holds in memory, by session."""
    manager = runtime.get_instance().uploaded_file_mgr
    assert isinstance(manager, MemoryUploadedFileManager)
    return {
        session: [len(file.data) for file in list(files.values())]
        for session, files in list(manager.file_storage.items())
    }


class Uploads:
    """The uploads being received, which count towards the limits together with those held.

    A request counts with its declared size from before its body is read until it ends.
    """

    def __init__(self) -> None:
        self.coming: list[tuple[str, int]] = []  # session and bytes

    def refusal(self, session: str, lengths: list[str], is_chunked: bool) -> Refusal | None:
        """Return why a file may not be sent, or None if it may."""
        largest = _asked.get(session)
        if largest is None or not runtime.get_instance().is_active_session(session):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "No open page asks for a file. Reload the page. If the server has several "
                "replicas, all requests of a browser must reach the same one.",
            )
        if is_chunked or len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            return Refusal(
                HTTPStatus.LENGTH_REQUIRED, "An upload has to declare its size before it is sent."
            )
        size, most = int(lengths[0]), st.get_option("server.maxUploadSize") * MB
        if size > min(largest, most) + FORM:
            return Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"The file has about {size:,} bytes; {min(largest, most):,} is the most here.",
            )
        every = [(one, n) for one, files in held().items() for n in files] + self.coming
        own = [n for one, n in every if one == session]
        if len(own) >= MOST_FILES or sum(own) + size > most + FORM:
            return Refusal(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"This page still holds {len(own)} files, {sum(own):,} bytes, that it has sent. "
                "Remove some, or reload the page.",
            )
        if sum(n for _, n in every) + size > 2 * most + FORM:
            return Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "The server is busy with other uploads. Try again in a few minutes.",
            )
        return None

    @contextmanager
    def receiving(self, session: str, size: int) -> Iterator[None]:
        self.coming.append((session, size))
        try:
            yield
        finally:
            self.coming.remove((session, size))


# The door


class Door:
    """Refuses unknown host names and unasked uploads, and adds headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.uploads = Uploads()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in HEADERS if name not in there]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        hosts = of(scope, b"host")
        if not is_known(
            hosts, st.get_option("server.address"), st.get_option("server.allowedHosts")
        ):
            logs.refused("host refused", STRANGE_NAME, host=", ".join(hosts)[:100])
            refusal = Refusal(HTTPStatus.MISDIRECTED_REQUEST, STRANGE_NAME)
            return await refused(refusal, scope, receive, answer)
        sent = UPLOAD.search(scope["path"]) if scope.get("method") == "PUT" else None
        if sent is None:
            return await self.app(scope, receive, answer)
        lengths, session = of(scope, b"content-length"), sent["session"]
        is_chunked = bool(of(scope, b"transfer-encoding"))
        if why := self.uploads.refusal(session, lengths, is_chunked):
            logs.refused("upload refused", why.reason, kind="request", n_bytes=", ".join(lengths))
            return await refused(why, scope, receive, answer)
        with self.uploads.receiving(session, int(lengths[0])):
            await self.app(scope, receive, answer)


def of(scope: Scope, name: bytes) -> list[str]:
    """Return all values of a header."""
    return [value.decode("latin-1") for known, value in scope["headers"] if known == name]


async def refused(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a refusal without reading the request; a websocket is closed before it opens."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    response = PlainTextResponse(
        refusal.reason + "\n", refusal.status, headers={"connection": "close"}
    )
    await response(scope, receive, send)
