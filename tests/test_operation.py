"""docs/operation.md and compose.yaml say what the program does."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from streamlit import config

ROOT = Path(__file__).resolve().parents[1]
DOCS = (ROOT / "docs" / "operation.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SOURCES = [
    p.read_text() for folder in ("app", "samsvae_core") for p in (ROOT / folder).rglob("*.py")
]
INTERNAL = {"SAMSVAE_DEBUG"}  # of developers


def test_every_variable_that_is_read_is_documented():
    read = {name for text in SOURCES for name in re.findall(r"\"(SAMSVAE_[A-Z_]+)\"", text)}
    assert {"SAMSVAE_CACHE", "SAMSVAE_RUNS", "SAMSVAE_CACHE_MB"} <= read
    assert [name for name in sorted(read - INTERNAL) if f"| `{name}` |" not in DOCS] == []


def test_every_event_that_is_logged_is_documented():
    told = {
        e for text in SOURCES for e in re.findall(r"logs\.(?:event|refused)\(\s*\"([^\"]+)", text)
    }
    assert {"bundle opened", "bundle refused", "cache cleared"} <= told
    assert [event for event in sorted(told) if f"`{event}`" not in DOCS] == []


def test_variables_of_streamlit_are_known_to_it():
    names = set()
    for text in (DOCS, (ROOT / "compose.yaml").read_text(), (ROOT / "Dockerfile").read_text()):
        names |= set(re.findall(r"STREAMLIT_[A-Z_]+", text))
    known = {option.env_var for option in config.get_config_options().values()}
    assert len(names) > 5
    assert names <= known


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_services_write_to_the_volume_only_and_have_no_rights_and_limits(name):
    service = COMPOSE["services"][name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["volumes"] == ["data:/data"]
    assert service["ports"][0].startswith("${SAMSVAE_BIND:-127.0.0.1}:")
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)


def test_the_gpu_is_asked_for_in_its_profile_only():
    on_cpu, on_gpu = COMPOSE["services"]["on-cpu"], COMPOSE["services"]["on-gpu"]
    assert "deploy" not in on_cpu
    assert on_gpu["profiles"] == ["gpu"]
    assert on_gpu["build"]["args"] == {"TORCH_INDEX": ""}
    assert on_gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_links_within_the_document_lead_somewhere():
    titles = {
        re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", DOCS, flags=re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", DOCS)) <= titles


def test_the_settings_stand_with_the_app_so_that_they_hold_where_it_is_installed(tmp_path):
    program = (
        "from streamlit import config\n"
        f"config._main_script_path = {str(ROOT / 'app' / 'serve.py')!r}\n"
        "options = config.get_config_options(force_reparse=True)\n"
        "names = 'server.address', 'browser.gatherUsageStats', 'client.showErrorDetails'\n"
        "print(*[options[name].value for name in names])"
    )
    command = [sys.executable, "-c", program]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["localhost", "False", "none"]
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert ".streamlit/config.toml" in patterns["package-data"]["app"]
