"""What can visitors do who have not signed in, or who use another host name?

    python benchmarks/strangers.py     # half a minute on 2 cores

A separate server asks for sign-in, and a stranger opens a page without it: a websocket, and so a
session. Ten files of 150 MB are sent into this session by hand, with a forgery token as a browser's
script would have. Then a page and a websocket are requested with `Host: evil.example`, as after DNS
rebinding. Memory is the server's resident memory. Fails if the server keeps a file, or answers to
the name.
"""

from __future__ import annotations

import http.client
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dashboard import served
from upload import resident
from visitor import Visitor
from websockets.exceptions import InvalidStatus

N_FILES, MEGABYTES = 10, 150
BOUNDARY = "stranger"
EVIL = "evil.example"


def token(netloc: str) -> tuple[str, str]:
    """Return a token against forgery and its cookie, which the server gives to everyone."""
    connection = http.client.HTTPConnection(netloc, timeout=30)
    connection.request("GET", "/_stcore/health")
    cookie = str(connection.getresponse().headers["Set-Cookie"]).split(";")[0]
    connection.close()
    return cookie.partition("=")[2], cookie


def put(netloc: str, session: str, name: str, n_bytes: int) -> str:
    """Send a file of zeros into a session, as a browser's script does; returns the answer."""
    head = (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="f"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    end = f"\r\n--{BOUNDARY}--\r\n".encode()

    def body() -> Iterator[bytes]:
        yield head
        for _ in range(n_bytes // 2**20):
            yield bytes(2**20)
        yield end

    given, cookie = token(netloc)
    headers = {
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
        "Content-Length": str(len(head) + n_bytes + len(end)),
        "X-Xsrftoken": given,
        "Cookie": cookie,
    }
    connection = http.client.HTTPConnection(netloc, timeout=120)
    try:
        connection.request("PUT", f"/_stcore/upload_file/{session}/{name}", body(), headers)
        return str(connection.getresponse().status)
    except OSError:  # refused while it was being sent
        try:
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
    finally:
        connection.close()


def asked_under_another_name(netloc: str) -> tuple[str, str]:
    """Return the answers to a page and a websocket with a foreign Host and Origin."""
    connection = http.client.HTTPConnection(netloc, timeout=30)
    connection.request("GET", "/", headers={"Host": EVIL})
    page = str(connection.getresponse().status)
    connection.close()
    host, port = netloc.split(":")
    try:
        with Visitor(f"http://{EVIL}:{port}", reached=(host, int(port))):
            return page, "upgraded"
    except InvalidStatus as refused:
        return page, str(refused.response.status_code)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        secrets = Path(temporary) / "secrets.toml"
        secrets.write_text('[auth]\ncookie_secret = "long enough for anybody to be refused"\n')
        with served(STREAMLIT_SECRETS_FILES=str(secrets)) as (address, pid):
            netloc = urlsplit(address).netloc
            with Visitor(address) as stranger:
                came = stranger.go("data")
                before = resident(pid)
                told = [
                    put(netloc, stranger.session, f"{n}", MEGABYTES * 2**20) for n in range(N_FILES)
                ]
                time.sleep(2)
                after = resident(pid)
            page, websocket = asked_under_another_name(netloc)
    print(f"what the stranger sees   {came.problem[:60]}")
    print(f"{N_FILES} x {MEGABYTES} MB, answers   {' '.join(told)}")
    print(f"memory before            {before / 2**20:,.0f} MiB")
    print(f"memory after             {after / 2**20:,.0f} MiB")
    print(f"Host: {EVIL}       page {page}, websocket {websocket}")
    if after - before > MEGABYTES * 2**20 or page == "200" or websocket == "upgraded":
        raise SystemExit("A stranger was served.")


if __name__ == "__main__":
    main()
