"""Who may see a page, and what a failing page shows."""

import ast
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from app.server import logs
from app.session import access
from app.session import page as state
from benchmarks.visitor import Visitor
from samsvae_core.system import cache

MAIN = str(Path(__file__).resolve().parents[2] / "app" / "main.py")
SERVE = str(Path(MAIN).with_name("serve.py"))
ONE = {"redirect_uri": "https://x/oauth2callback", "cookie_secret": "s", "client_id": "c"}
GIVEN = ("on_click", "on_change", "on_select")
pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


@pytest.fixture
def opened(tiny, monkeypatch):
    monkeypatch.setenv("SAMSVAE_MODELS", str(tiny.path.parent))
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.switch_page("views/glossary.py")
    return page


def test_without_sign_in_set_up_everybody_may_pass(opened):
    opened.run()
    assert [title.value for title in opened.title] == ["Glossary"]
    assert "Sign out" not in [button.label for button in opened.button]


@pytest.mark.parametrize(
    ("user", "passes"),
    [
        ({}, True),
        ({"email": "a@b"}, True),
        ({"is_logged_in": False}, False),
        ({"is_logged_in": True}, True),
    ],
)
def test_who_is_not_signed_in_may_not_pass_where_one_signs_in(user, passes):
    assert access.may_pass(user) is passes


def test_a_visitor_who_is_not_signed_in_sees_a_button_and_nothing_else(opened, monkeypatch):
    monkeypatch.setattr(access, "can_sign_in", lambda: True)
    monkeypatch.setattr(access, "may_pass", lambda _: False)
    opened.secrets["auth"] = ONE
    opened.run()
    assert not opened.exception
    assert [title.value for title in opened.title] == ["SAMS-VAE Explorer"]
    assert [button.label for button in opened.button] == ["Sign in"]
    assert not opened.sidebar.children


def test_without_authlib_the_door_stays_shut(opened, monkeypatch):
    monkeypatch.setattr(access, "can_sign_in", lambda: False)
    monkeypatch.setattr(access, "may_pass", lambda _: False)
    opened.secrets["auth"] = ONE
    opened.run()
    assert "Nobody can sign in" in opened.error[0].value
    assert not opened.button


def test_secrets_that_cannot_be_read_shut_the_door(opened, monkeypatch, tmp_path):
    file = tmp_path / "secrets.toml"
    file.write_text("[auth\n")
    monkeypatch.setattr(access, "broken", lambda: access.unreadable([str(file)], loaded=False))
    opened.run()
    assert "its file of secrets cannot be read" in opened.error[0].value
    assert [title.value for title in opened.title] == ["SAMS-VAE Explorer"]
    assert access.unreadable([str(file)], loaded=True) == ""
    assert access.unreadable([str(tmp_path / "none.toml")], loaded=False) == ""


def test_several_providers_have_a_button_each():
    several = {"cookie_secret": "s", "client_kwargs": {"prompt": "login"}}
    several |= {"google": {"client_id": "a"}, "lab": {"client_id": "b"}}
    assert access.providers(ONE) == [None]
    assert access.providers(several) == ["google", "lab"]


def test_a_page_that_breaks_shows_a_number_and_nothing_of_the_error(opened, monkeypatch):
    told = []

    def breaks():
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(state, "footer", breaks)
    known = logs.error
    monkeypatch.setattr(
        logs, "error", lambda p, **f: told.append((known(p, **f), f)) or told[-1][0]
    )
    opened.run()
    assert not opened.exception
    ((number, fields),) = told
    assert fields == {"page": "glossary"}
    assert f"**{number}**" in opened.error[0].value
    assert "secret" not in str(opened.main)


def test_a_callback_that_breaks_shows_a_number_and_the_page(opened, monkeypatch, caplog):
    def breaks():
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr(cache, "size", lambda: 1)
    monkeypatch.setattr(cache, "clear", breaks)
    opened.switch_page("views/system.py").run()
    with caplog.at_level("ERROR", "app"):
        opened.button(key="clear cache").click().run()
    assert not opened.exception
    assert [title.value for title in opened.title] == ["System"]
    (told,) = [record.fields for record in caplog.records if record.message == "error"]
    assert told["page"] == "callback"
    assert [f"**{told['id']}**" in error.value for error in opened.error] == [True]
    assert "secret" not in str(opened.main)


def test_every_callback_tells_the_number_of_its_error():
    """Each function given to a widget in app/ is decorated with access.errors()."""
    asked, guarded = set(), set()
    for path in Path(MAIN).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            is_callback = isinstance(node, ast.keyword) and node.arg in GIVEN
            if is_callback and isinstance(node.value, ast.Name | ast.Attribute):
                asked.add(ast.unparse(node.value).rpartition(".")[2])
            if isinstance(node, ast.FunctionDef) and any(
                ast.unparse(d) == "access.errors()" for d in node.decorator_list
            ):
                guarded.add(node.name)
    assert {"clear", "start_run", "keep", "changed"} <= asked
    assert asked - guarded == {"login", "logout"}  # Streamlit's own


def test_visitors_see_no_details_of_errors_that_streamlit_catches():
    assert st.get_option("client.showErrorDetails") == "none"


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ('[auth]\ncookie_secret = "long enough"\n', "a package is missing"),
        ("[auth\n", "its file of secrets cannot be read"),
    ],
)
def test_a_real_server_keeps_its_door_shut(tmp_path, secrets, said):
    if access.can_sign_in():
        pytest.skip("Authlib is installed here")
    (tmp_path / "secrets.toml").write_text(secrets)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "streamlit", "run", SERVE, "--server.headless=true"]
    given = ["--server.port", port, "--secrets.files", str(tmp_path / "secrets.toml")]
    server = subprocess.Popen(command + given, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(240):
            try:
                with Visitor(f"http://localhost:{port}") as visitor:
                    came = visitor.go("compose", "c=P1%3A1")
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.25)
        assert came.problem.startswith("Nobody can sign in")
        assert said in came.problem
        assert came.elements <= 3  # the style, the title, and this
    finally:
        server.terminate()
        server.wait(timeout=20)
