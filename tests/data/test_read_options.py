"""Each option of the reader is declared once, and everything that takes it agrees."""

import inspect
from dataclasses import fields

import pytest
import typer.main

from app.server.reading import ASKED, Reading
from samsvae_core.cli.main import app
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.read_options import DECLARED, ReadOptions


def test_the_keywords_of_the_reader_are_the_options():
    keywords = dict(inspect.signature(read_h5ad).parameters)
    for name in ("path", "scratch", "say"):
        del keywords[name]
    assert {name: each.default for name, each in keywords.items()} == {
        each.name: each.default for each in fields(ReadOptions)
    }


@pytest.mark.parametrize("verb", ["validate", "train"])
def test_the_command_line_has_every_option(verb):
    command = typer.main.get_command(app).commands[verb]
    given = {each.name: [*each.opts, *each.secondary_opts] for each in command.params}
    for name, declared in DECLARED.items():
        assert given[name] == declared.flag.split("/")


def test_inspect_has_the_one_that_names_genes():
    command = typer.main.get_command(app).commands["inspect"]
    assert {each.name for each in command.params} & set(DECLARED) == {"gene_key"}


@pytest.mark.parametrize("name", ASKED)
def test_what_a_page_asks_comes_out_of_the_command_line(name, monkeypatch, tmp_path):
    """Each value with a word, and some text: from the address over the command to the reader."""
    read = []
    file = tmp_path / "a.h5ad"
    declared = ASKED[name]
    texts = {"text": ["x y", *declared.words], "labels": ["a", "--b"]}.get(
        declared.kind, list(declared.words)
    )
    monkeypatch.setattr(
        "samsvae_core.data.h5ad.read_cells", lambda _, options: read.append(options)
    )
    monkeypatch.setattr("samsvae_core.data.h5ad.audited", lambda *_: [])
    monkeypatch.setattr("samsvae_core.data.cells.summary", lambda _: {})
    monkeypatch.setattr("samsvae_core.data.cells.describe", str)
    for text in texts:
        reading = Reading.from_query({"data": "a", declared.parameter: text})
        command = ["validate", str(file), *reading.reading_arguments()]
        typer.main.get_command(app).main(command, standalone_mode=False)
        assert read.pop() == reading.options
        assert Reading.from_query(reading.as_query()) == reading
    assert getattr(reading.options, name) != getattr(ReadOptions, name)
