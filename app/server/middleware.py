"""What stands before Streamlit: under which names it is asked, what may be sent to it, and headers.

An ASGI middleware (`app.serve` puts it in place), so that a request is refused before any of its
body is read. `app.session.access` decides who sees pages; here it is decided who may send a file:
the session of a page that has shown an uploader, which no page does before sign-in.
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
FORM = MB  # bytes of a request beside the file in it
MOST_FILES = 50  # that the server holds for one session
MANY = 1_000  # sessions after which those that have ended are forgotten
UPLOAD = re.compile(r"/_stcore/upload_file/(?P<session>[^/]+)/[^/]+/?$")
HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'self'"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
)
STRANGE_NAME = (
    "This server is not asked under this name. Open it as http://localhost with its port, or let "
    "whoever runs it add the name to STREAMLIT_SERVER_ALLOWED_HOSTS (docs/operation.md)."
)
_asking = threading.Lock()
_asked: dict[str, int] = {}  # bytes of the largest file a page has asked for, by session


class Refusal(NamedTuple):
    """An answer in place of the one that was asked for."""

    status: HTTPStatus
    reason: str


# Names


def is_local(name: str) -> bool:
    """Whether a name or an address is of the machine itself, so that no name server gives it."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_known(hosts: list[str], address: str | None, allowed: Iterable[str]) -> bool:
    """Whether a request may come under the name in its Host headers.

    `address` is where the server listens, `allowed` the names its operator gave: one by one,
    `*.` before a domain, or `*`. The machine's own names always are. Without names given, a server
    that listens on the machine itself knows no others, and any other server knows all.
    """
    if len(hosts) != 1:
        return False
    try:
        parts = urlsplit(f"//{hosts[0]}")
        _ = parts.port  # raises for what is no number
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
    """Let the session of the page that runs send files of this size; the size, for its uploader."""
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
    """Bytes of each file that Streamlit has in memory, by session."""
    manager = runtime.get_instance().uploaded_file_mgr
    assert isinstance(manager, MemoryUploadedFileManager)
    return {
        session: [len(file.data) for file in list(files.values())]
        for session, files in list(manager.file_storage.items())
    }


class Uploads:
    """What is being received, beside what is held: limits are those of both together.

    A request counts with the size it declares from before its body is read until it has ended.
    """

    def __init__(self) -> None:
        self.coming: list[tuple[str, int]] = []  # session and bytes

    def refusal(self, session: str, lengths: list[str], is_chunked: bool) -> Refusal | None:
        """Why a file may not be sent; None where it may."""
        largest = _asked.get(session)
        if largest is None or not runtime.get_instance().is_active_session(session):
            return Refusal(
                HTTPStatus.FORBIDDEN,
                "No page that is open asks for a file. Open the page anew; where there are several "
                "replicas, every request of a browser must reach the same one.",
            )
        if is_chunked or len(lengths) != 1 or not re.fullmatch(r"[0-9]{1,15}", lengths[0]):
            return Refusal(
                HTTPStatus.LENGTH_REQUIRED, "An upload has to say its size before it is sent."
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
                f"This page has sent {len(own)} files, {sum(own):,} bytes, that it still holds. "
                "Remove some, or open the page anew.",
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
    """Refuses strange names and files nobody asked for; adds headers to every answer."""

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
    """The values of a header, as often as it is there."""
    return [value.decode("latin-1") for known, value in scope["headers"] if known == name]


async def refused(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer so, with nothing read; a websocket is closed before it is open."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    response = PlainTextResponse(
        refusal.reason + "\n", refusal.status, headers={"connection": "close"}
    )
    await response(scope, receive, send)
