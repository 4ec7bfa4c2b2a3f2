"""A benchmark that gets invalid input ends with one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["models.py", "--quick", "--data", "nosuch.h5ad"], "There is no file nosuch.h5ad"),
        (["masks.py", "nosuch"], "There is no folder nosuch"),
        (["masks.py", "pretrained/norman2019-subset"], "lacks 14 targets of papalexi2021"),
    ],
)
def test_a_benchmark_says_in_one_line_what_it_cannot_use(command, message):
    script, *arguments = command
    ended = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},  # this code, whatever is installed
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: ")
    assert message in ended.stderr
    assert ended.stderr.count("\n") == 1
