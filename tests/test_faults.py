"""The table of faults: everything that can go wrong with training, with real trainers."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_nothing_is_lost_by_any_fault(tmp_path):
    """After 20 kills at random moments, for example, weights and history are unchanged."""
    command = [sys.executable, "benchmarks/faults.py", "--output", str(tmp_path / "faults.md")]
    ended = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = (tmp_path / "faults.md").read_text().splitlines()[2:]
    assert len(rows) >= 15
    assert rows[0].startswith("| SIGKILL of the trainer at 20 random moments")
