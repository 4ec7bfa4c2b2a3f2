"""The Dockerfile, as far as it can be checked without Docker and without installing anything."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "check_docker.py"
spec = importlib.util.spec_from_file_location("check_docker", SCRIPT)
check = importlib.util.module_from_spec(spec)
sys.modules["check_docker"] = check
spec.loader.exec_module(check)


def test_the_image_starts_answers_and_serves_a_page_from_what_is_copied():
    command = [sys.executable, str(SCRIPT), "--python", sys.executable]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("its health command answers") == 2
    assert ended.stdout.count("a visitor is served") == 1


@pytest.fixture
def context(tmp_path):
    """Return a nearly empty folder that could be built."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "main.py").write_text("")
    (tmp_path / ".dockerignore").write_text("*\n!app\n**/secrets.toml\n")
    return tmp_path


GOOD = """FROM python:3.11-slim
WORKDIR /srv
COPY app ./app
USER 1000
VOLUME /data
HEALTHCHECK --interval=3s CMD ["python", "-c", "pass"]
CMD ["python", "-m", "app"]
"""


def built(context, text):
    root = context / "root"
    root.mkdir()
    return check.build(check.parse(text), context, root, Path(sys.executable), {})[0]


def test_a_good_one_is_taken_as_it_is(context):
    (context / "app" / "secrets.toml").write_text("a secret")
    image = built(context, GOOD)
    assert (image.here / "app" / "main.py").exists()
    assert not (image.here / "app" / "secrets.toml").exists()
    assert image.health == ["python", "-c", "pass"]
    assert image.command == ["python", "-m", "app"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("COPY app", "COPY apps", "COPY apps: it is not there"),
        ("COPY app", "COPY root", "COPY root: it is not there"),
        ("USER 1000\n", "", "runs as root"),
        ("USER 1000\n", "USER root\n", "runs as root"),
        ("VOLUME /data\n", "", "VOLUME, CMD and HEALTHCHECK"),
        ("\nCMD [", "\nENTRYPOINT [", "is not understood"),
        ("COPY app", "COPY --from=x app", "an option"),
        ("FROM python:3.11-slim", "FROM debian", "an image python:X.Y was expected"),
    ],
)
def test_what_would_not_build_is_said(context, old, new, said):
    with pytest.raises(check.Wrong, match=said):
        built(context, GOOD.replace(old, new, 1))


def test_what_dockerignore_keeps_out_cannot_be_copied(context):
    (context / "README.md").write_text("x")
    with pytest.raises(check.Wrong, match=r"kept out by \.dockerignore"):
        built(context, GOOD.replace("COPY app ./app", "COPY README.md ./"))


@pytest.mark.parametrize(
    ("path", "out"),
    [
        ("app/main.py", False),
        ("app/__pycache__/main.pyc", True),
        ("app/views/__pycache__/x.pyc", True),
        (".streamlit/config.toml", False),
        (".streamlit/secrets.toml", True),
        ("pretrained/a.names.json", True),
        ("tests/views/test_gene.py", True),
        (".git/config", True),
    ],
)
def test_dockerignore_is_read_as_an_engine_does(path, out):
    assert check.ignored(path, (ROOT / ".dockerignore").read_text().splitlines()) is out


def test_a_health_command_that_is_always_content_is_found_out(context):
    shutil.copytree(ROOT / "samsvae_core", context / "samsvae_core")
    (context / "app" / "__init__.py").write_text("")
    (context / ".dockerignore").unlink()
    text = GOOD.replace("COPY app ./app", "COPY app ./app\nCOPY samsvae_core ./samsvae_core")
    with pytest.raises(check.Wrong, match="content though nothing runs"):
        check.serve(built(context, text), Path(sys.executable), visit=False)
