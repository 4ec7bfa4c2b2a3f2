"""Which host names the server answers to, and who may send it files."""

import ast
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from app.server import middleware
from app.server.middleware import MB, MOST_FILES, Uploads, expect, is_known
from benchmarks.visitor import Visitor

ROOT = Path(__file__).resolve().parents[2]
BOUNDARY = "b"
FORM = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n',
    f"\r\n--{BOUNDARY}--\r\n",
)


# Names


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True),
        ("LOCALHOST:8501", True),
        ("localhost.", True),
        ("a.localhost:8501", True),
        ("127.0.0.1:8501", True),
        ("127.8.8.8", True),
        ("[::1]:8501", True),
        ("evil.example", False),
        ("evil.example:8501", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost@evil.example", False),
        ("evil.example@localhost", False),
        ("evil.example/localhost", False),
        ("localhost:x", False),
        ("192.168.0.7", False),
        ("0.0.0.0", False),
        ("[::1", False),
        ("", False),
    ],
)
@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "::1", "[::1]"])
def test_item_19_on_localhost_only_local_names_are_answered(host, known, address):
    assert is_known([host], address, []) is known


def test_item_19_a_request_has_one_host():
    assert not is_known([], "localhost", [])
    assert not is_known(["localhost", "evil.example"], "localhost", [])


@pytest.mark.parametrize("address", ["localhost", "0.0.0.0", None])
def test_item_19_where_names_are_given_those_are_known_and_the_machines_own(address):
    given = ["Lab.example.org", "*.lab.example"]
    for host in ("lab.example.org:443", "a.lab.example", "localhost:8501", "127.0.0.1"):
        assert is_known([host], address, given)
    for host in ("evil.example", "xlab.example", "lab.example", "lab.example.org.evil.example"):
        assert not is_known([host], address, given)
    assert is_known(["anything.example"], address, ["*"])


def test_item_19_a_server_on_another_address_without_names_knows_all():
    for address in ("0.0.0.0", "192.168.0.7", "::", None):
        assert is_known(["lab.example.org"], address, [])


# Uploads


@pytest.fixture
def uploads(monkeypatch):
    """Return the uploads of a server with the sessions s0, s1 and s2, which may send 5 MB each."""
    sizes: dict[str, list[int]] = {}
    monkeypatch.setattr(middleware, "held", lambda: sizes)
    monkeypatch.setattr(middleware, "_asked", dict.fromkeys(("s0", "s1", "s2", "gone"), 5 * MB))
    monkeypatch.setattr(middleware.st, "get_option", {"server.maxUploadSize": 10}.__getitem__)

    class Runtime:
        def is_active_session(self, session):
            return session != "gone"

    monkeypatch.setattr(middleware.runtime, "get_instance", Runtime)
    made = Uploads()
    made.sizes = sizes
    return made


def status(uploads, session="s0", size=MB, is_chunked=False):
    refusal = uploads.refusal(session, [str(size)], is_chunked)
    return refusal and refusal.status.value


def test_item_18_a_session_that_asks_for_a_file_may_send_it(uploads):
    assert status(uploads) is None
    assert status(uploads, size=5 * MB) is None


def test_item_18_nobody_else_may(uploads):
    assert status(uploads, "never asked") == 403
    assert status(uploads, "gone") == 403


@pytest.mark.parametrize("lengths", [[], ["1", "1"], ["x"], ["-1"], [""], ["9" * 16]])
def test_item_18_an_upload_says_its_size(uploads, lengths):
    assert uploads.refusal("s0", lengths, False).status == 411
    assert status(uploads, is_chunked=True) == 411


def test_item_18_a_file_is_no_larger_than_its_page_asked_for(uploads):
    assert status(uploads, size=7 * MB) == 413
    middleware._asked["s0"] = 100 * MB
    assert status(uploads, size=12 * MB) == 413  # what the server allows at all


def test_item_18_what_one_session_sends_is_bounded_in_bytes_and_number(uploads):
    uploads.sizes["s0"] = [5 * MB, 4 * MB]
    assert status(uploads) is None
    assert status(uploads, size=4 * MB) == 429
    uploads.sizes["s0"] = [1] * MOST_FILES
    assert status(uploads) == 429
    assert status(uploads, "s1") is None


def test_item_18_what_all_send_is_bounded_and_what_is_coming_counts(uploads):
    uploads.sizes |= {"s0": [9 * MB], "s1": [9 * MB]}
    with uploads.receiving("s2", MB):
        assert status(uploads, "s2", 4 * MB) == 503
    assert status(uploads, "s2", 2 * MB) is None


def test_item_18_every_uploader_says_how_much_it_expects():
    found = [
        next(ast.unparse(k.value) for k in node.keywords if k.arg == "max_upload_size")
        for path in (ROOT / "app").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".file_uploader")
    ]
    assert len(found) >= 6
    assert all(value.startswith("middleware.expect(") for value in found)


def test_item_18_sessions_that_ended_are_forgotten(uploads, monkeypatch):
    class Context:
        session_id = "new"

    monkeypatch.setattr(middleware, "get_script_run_ctx", Context)
    monkeypatch.setattr(middleware, "MANY", 4)
    assert expect(3) == 3
    assert middleware._asked == {"s0": 5 * MB, "s1": 5 * MB, "s2": 5 * MB, "new": 3 * MB}
    assert expect(1) == 1
    assert middleware._asked["new"] == 3 * MB  # the largest of what it asked for


# A real server


@contextmanager
def served(**environment):
    """Run the dashboard with these environment variables; yields its process, host and port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.headless=true"]
    server = subprocess.Popen(
        [*command, "--server.port", str(port)],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    base = environment.get("STREAMLIT_SERVER_BASE_URL_PATH", "")
    try:
        for _ in range(240):
            try:
                if asked(port, f"/{base}/_stcore/health".replace("//", "/")).status == 200:
                    break
            except OSError:
                assert server.poll() is None, "the server ended"
            time.sleep(0.25)
        yield server, port
    finally:
        server.kill()
        server.wait()


def asked(port, path, method="GET", body=None, **headers):
    """Send a request and return the response; underscores in header names become dashes."""
    connection = http.client.HTTPConnection("localhost", port, timeout=60)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
        connection.request(method, path, body, given, encode_chunked="Transfer-Encoding" in given)
    answer = connection.getresponse()
    answer.text = answer.read().decode(errors="replace")
    connection.close()
    return answer


def put(port, session, size=1000, base="", announced=False, **more):
    """Send a file of this size to a session; with `announced`, send only its headers."""
    cookie = asked(port, f"{base}/_stcore/health").headers["Set-Cookie"].split(";")[0]
    body = FORM[0].encode() + bytes(size) + FORM[1].encode()
    if announced:
        more |= {"body": b"", "Content_Length": str(len(body))}
    headers = {
        "Cookie": cookie,
        "X_Xsrftoken": cookie.partition("=")[2],
        "Content_Type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    path = f"{base}/_stcore/upload_file/{session}/made-up"
    return asked(port, path, "PUT", more.pop("body", body), **headers, **more).status


def websocket(port, host, base=""):
    """Return the status of a websocket requested by a page loaded under this name."""
    try:
        with Visitor(f"http://{host}:{port}{base}", reached=("localhost", port)):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.fixture(scope="module")
def local():
    with served(STREAMLIT_SERVER_MAX_UPLOAD_SIZE="3") as (server, port):
        yield server, port


@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/upload_file/a/b", "/train"])
def test_item_19_every_answer_says_who_may_frame_it(local, path):
    headers = asked(local[1], path).headers
    assert headers["X-Frame-Options"] == "SAMEORIGIN"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/_stcore/health", "/_stcore/metrics", "/nothing"])
def test_item_19_a_page_is_not_served_under_a_strange_name(local, path):
    answer = asked(local[1], path, Host="evil.example")
    assert answer.status == 421
    assert "STREAMLIT_SERVER_ALLOWED_HOSTS" in answer.text
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_item_19_a_websocket_is_not_opened_under_a_strange_name(local):
    assert websocket(local[1], "localhost") == 101
    assert websocket(local[1], "127.0.0.1") == 101
    assert websocket(local[1], "evil.example") == 403


def test_item_18_a_page_sends_the_files_it_asks_for_and_no_more(local):
    port = local[1]
    assert put(port, "no-session") == 403
    with Visitor(f"http://localhost:{port}") as visitor:
        assert not visitor.go("glossary").problem
        assert put(port, visitor.session) == 403  # which asks for none
        assert not visitor.go("data").problem
        assert put(port, visitor.session, 10 * MB, announced=True) == 413
        chunked = {"Transfer_Encoding": "chunked", "body": iter([b"x"])}
        assert put(port, visitor.session, **chunked) == 411
        assert put(port, visitor.session, 2 * MB) == 204
        assert put(port, visitor.session, 2 * MB, announced=True) == 429  # beside what it holds
        assert put(port, visitor.session, MB) == 204


def test_item_18_before_sign_in_nothing_can_be_sent(tmp_path):
    (tmp_path / "secrets.toml").write_text('[auth]\ncookie_secret = "long enough for it"\n')
    environment = {
        "STREAMLIT_SECRETS_FILES": str(tmp_path / "secrets.toml"),
        "STREAMLIT_SERVER_BASE_URL_PATH": "lab",
        "STREAMLIT_SERVER_ALLOWED_HOSTS": "other.example lab.example.org",
    }
    with served(**environment) as (server, port):
        assert asked(port, "/lab/", Host="evil.example").status == 421
        assert asked(port, "/lab/", Host="lab.example.org").status == 200
        assert websocket(port, "evil.example", "/lab") == 403
        with Visitor(f"http://lab.example.org:{port}/lab", reached=("localhost", port)) as visitor:
            assert visitor.go("data").problem  # it sees the door only
            assert put(port, visitor.session, base="/lab") == 403
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=20) is not None  # though a page is open
