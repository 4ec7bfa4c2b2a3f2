"""A visitor without a browser, who speaks Streamlit's protocol to a dashboard.

    python benchmarks/visitor.py http://localhost:8501 [PAGE]   # opens one page, says what came

It opens Streamlit's websocket, requests pages by address, sets widgets, and reads every message
until the script has ended, without drawing anything. It therefore costs little, and measures the
server's part: from the request to the last message of the redraw.
"""

from __future__ import annotations

import socket
import sys
import time
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.proto.WidgetStates_pb2 import WidgetState
from websockets.sync.client import connect

END = "SAMS-VAE Explorer"  # in a page's last line
DONE = (ForwardMsg.FINISHED_SUCCESSFULLY, ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)


class Redraw(NamedTuple):
    """The result of one request."""

    seconds: float
    elements: int
    n_bytes: int
    problem: str  # empty if the page reached its end without an error


class Visitor:
    """One session; `url` is the dashboard's, with its base path.

    `reached` is the server's host and port, if they differ from the address.
    """

    def __init__(
        self, url: str, patience: float = 60, reached: tuple[str, int] | None = None
    ) -> None:
        parts = urlsplit(url)
        path = parts.path.rstrip("/")
        where = reached or (parts.hostname or "localhost", parts.port or 80)
        self.opened = connect(
            f"ws://{parts.netloc}{path}/_stcore/stream",
            sock=socket.create_connection(where, timeout=patience),
            origin=f"http://{parts.netloc}",
            subprotocols=["streamlit"],
            compression=None,
            max_size=None,
            ping_interval=None,
        )
        self.patience = patience
        self.page, self.query = "", ""
        self.session = ""  # its id, once a page has come
        self.widgets: dict[str, str] = {}  # ids by our keys
        self.states: dict[str, WidgetState] = {}

    def __enter__(self) -> Self:
        self.socket = self.opened.__enter__()
        return self

    def __exit__(self, *problem: Any) -> None:
        self.opened.__exit__(*problem)

    def go(self, page: str, query: str = "") -> Redraw:
        """Open another page, or the same with another query, as by a link."""
        if page != self.page:
            self.states.clear()
            self.widgets.clear()
        self.page, self.query = page, query
        return self.redraw()

    def set(self, key: str, **value: object) -> Redraw:
        """Set a widget of the page by its key; the value is as in Streamlit's WidgetState."""
        self.states[key] = WidgetState(id=self.widgets[key], **value)
        return self.redraw()

    def redraw(self) -> Redraw:
        """Request the page as it is now, and read until its script has ended."""
        message = BackMsg()
        message.rerun_script.page_name = self.page
        message.rerun_script.query_string = self.query
        message.rerun_script.widget_states.widgets.extend(self.states.values())
        began = time.monotonic()
        self.socket.send(message.SerializeToString())
        elements, n_bytes, problems, ended = 0, 0, [], False
        while True:
            left = began + self.patience - time.monotonic()
            try:
                content = self.socket.recv(timeout=max(left, 0.01))
            except TimeoutError:
                problems.append(f"no end within {self.patience:g} s")
                break
            n_bytes += len(content)
            told = ForwardMsg.FromString(content)
            kind = told.WhichOneof("type")
            if kind == "new_session":
                self.session = told.new_session.initialize.session_id
            elif kind == "page_info_changed":
                self.query = told.page_info_changed.query_string
            elif kind == "page_not_found":
                problems.append("there is no such page")
            elif kind == "delta" and told.delta.WhichOneof("type") == "new_element":
                elements += 1
                element = told.delta.new_element
                what = element.WhichOneof("type")
                if what == "exception":
                    problems.append(f"{element.exception.type}: {element.exception.message}")
                elif what == "alert" and element.alert.format == element.alert.ERROR:
                    problems.append(element.alert.body)
                elif what == "markdown":
                    ended |= END in element.markdown.body
                elif what is not None:
                    self.learn(getattr(element, what))
            elif kind == "script_finished" and told.script_finished in DONE:
                break
        if not ended and not problems:
            problems.append("the page has no last line")
        return Redraw(time.monotonic() - began, elements, n_bytes, "; ".join(problems))

    def learn(self, element: object) -> None:
        """Note the id of a widget by its key, with which it ends."""
        name = getattr(element, "id", "")
        if name.startswith("$$ID-") and name.count("-") > 1:
            self.widgets[name.split("-", 2)[2]] = name


if __name__ == "__main__":
    url, page = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else ""
    with Visitor(url) as visitor:
        came = visitor.go(page)
    sys.stdout.write(
        f"{came.elements} elements, {came.n_bytes:,} bytes in {came.seconds:.2f} s\n"
        + (f"but {came.problem}\n" if came.problem else "")
    )
    sys.exit(1 if came.problem else 0)
