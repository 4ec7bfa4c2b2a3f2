"""The page System, and what it finds out about the server."""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from app.server import status as server
from samsvae_core.system import machine

MAIN = str(Path(__file__).resolve().parents[2] / "app" / "main.py")
pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Let the server have no models, runs or cache."""
    for name in ("models", "runs", "cache"):
        monkeypatch.setenv(f"SAMSVAE_{name.upper()}", str(tmp_path / name))
    (tmp_path / "models").mkdir()
    return tmp_path


def opened() -> AppTest:
    page = AppTest.from_file(MAIN, default_timeout=60)
    page.switch_page("views/system.py")
    page.run()
    assert not page.exception
    assert not page.error
    assert any("SAMS-VAE Explorer" in caption.value for caption in page.caption)
    return page


def words(page: AppTest) -> str:
    return " ".join(part.value for part in [*page.markdown, *page.warning]).replace("\\", "")


def test_it_opens_where_there_is_nothing_yet(here):
    page = opened()
    assert "0 can be opened" in words(page)
    assert "There is no run yet" in words(page)
    assert page.button(key="clear cache").disabled


def test_models_that_cannot_be_opened_are_told_with_the_reason(here, tiny):
    for name in ("good", "bad"):
        shutil.copytree(tiny.path, here / "models" / name)
    (here / "models" / "bad" / "masks.csv").write_text("")
    text = words(opened())
    assert "1 can be opened: **good**" in text
    assert "**bad** cannot be opened" in text
    assert "checksum differs" in text


def test_the_cache_is_measured_and_emptied(here):
    (here / "cache" / "effects").mkdir(parents=True)
    (here / "cache" / "effects" / "a.safetensors").write_bytes(b"x" * 3 * 2**20)
    page = opened()
    assert "The cache holds 3.0 MB" in words(page)
    page.button(key="clear cache").click().run()
    assert "The cache holds 0.0 MB" in words(page)
    assert not list((here / "cache" / "effects").iterdir())


def test_a_limit_that_is_no_number_is_told(here, monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "<b>much")
    assert "SAMSVAE_CACHE_MB is '<b>much'" in words(opened())


def test_runs_are_listed_with_their_state(here):
    told = {
        "one": {"state": "failed", "step": 5, "steps": 10, "device": "cpu", "seconds": 2},
        "two": {"state": ["x"], "step": "many"},
    }
    for name, status in told.items():
        (here / "runs" / name).mkdir(parents=True)
        (here / "runs" / name / "status.json").write_text(json.dumps(status))
    page = opened()
    assert "0 running, 0 waiting, 0 done, 2 ended early" in words(page)
    shown = page.dataframe[0].value.set_index("name")
    assert shown.loc["one", ["state", "step", "steps"]].tolist() == ["failed", 5, 10]
    assert shown.loc["two", "state"] == "dead"


def test_memory_and_cores_are_those_of_the_process_and_its_limits(monkeypatch, tmp_path):
    held, whole = server.memory()
    assert held is not None
    assert 10 * 2**20 < held < whole
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert server.memory()[1] == 2**30
    assert server.cores()[0] == 0.5
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert server.memory()[1] == whole
    assert server.cores()[0] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("says", "found"),
    [
        ("echo 'NVIDIA H100, 80 GB, 81559, 1024'", ("NVIDIA H100, 80 GB", 81559, 1024)),
        ("exit 9", None),
        ("echo '[N/A]'", None),
    ],
)
def test_a_gpu_is_what_the_driver_tells(tmp_path, monkeypatch, says, found):
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{says}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    expected = [server.Gpu(found[0], found[1] * 2**20, found[2] * 2**20)] if found else []
    assert server.gpus() == expected


def test_a_place_that_is_not_there_yet_is_that_of_its_parent(tmp_path):
    free = server.place("Runs", tmp_path / "a" / "b").free
    assert free is not None
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
