import shlex
import sys

import pandas as pd
import pytest

from app.export.snippets import as_command, as_python
from samsvae_core.analysis.compose import compose
from samsvae_core.cli import main as cli


@pytest.mark.parametrize("direct", [True, False])
def test_the_python_shown_gives_the_table_shown(tiny, direct):
    result = compose(tiny, {"P1": 0.5, "P2": 1.0}, [2], n_samples=16, direct=direct)
    names = {}
    exec(as_python(tiny, result), names)
    pd.testing.assert_frame_equal(names["shift"], result.table)


@pytest.mark.parametrize("direct", [True, False])
def test_the_command_shown_writes_the_table_shown(tiny, tmp_path, monkeypatch, direct):
    result = compose(tiny, {"P1": 0.5, "P2": 1.0}, [2], n_samples=16, direct=direct)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", shlex.split(as_command(tiny, result)))
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    written = pd.read_csv(tmp_path / "shift.csv").set_index("gene")
    pd.testing.assert_frame_equal(written, result.table, check_dtype=False)


def test_names_are_quoted_for_the_shell(tiny, monkeypatch):
    result = compose(tiny, {"P1": 1.0})
    odd = result.__class__(**{**result.__dict__, "dosages": {"A B; rm -rf $HOME": 1.0}})
    assert shlex.split(as_command(tiny, odd))[3] == "A B; rm -rf $HOME:1"
