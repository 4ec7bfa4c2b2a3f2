"""What verbs of the command line share: their options, how they speak, how tables are written."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samsvae_core.data.read_options import ReadOptions

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from samsvae_core.bundle.bundle import Bundle

DataFile = Annotated[Path, typer.Argument(help="An .h5ad file with raw counts.")]
BundleFolder = Annotated[Path, typer.Argument(help="A bundle: a finished run, or a shipped model.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="What to write; must not exist yet.")]
Table = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="A new table, such as mine.csv; or one that ends in .tsv or .parquet.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Same seed, same result.")]
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def takes_read_options(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a verb with a parameter `reading`, which is to be a ReadOptions.

    On the command line these options, all of them if none is named, stand in the place of that
    parameter.
    """
    chosen = [each for each in fields(ReadOptions) if not names or each.name in names]

    def of_verb(verb: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(verb)
        def run(**given: Any) -> None:
            told = {each.name: read_value(each, given.pop(each.name)) for each in chosen}
            verb(**given, reading=ReadOptions(**told))

        signature = inspect.signature(verb, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for each in signature.parameters.values():
            parameters += map(read_parameter, chosen) if each.name == "reading" else [each]
        run.__dict__["__signature__"] = signature.replace(parameters=parameters)  # Typer reads it
        return run

    return of_verb


def read_parameter(option: Field[Any]) -> inspect.Parameter:
    """A field of ReadOptions as a parameter that Typer makes an option of."""
    declared = option.metadata["declared"]
    kinds = {"text": str | None, "labels": list[str] | None, "choice": str}
    shown = typer.Option(declared.flag, help=declared.help, show_default=option.default is not None)
    return inspect.Parameter(
        option.name,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        default=declared.word(option.default) if declared.kind == "choice" else option.default,
        annotation=Annotated[kinds.get(declared.kind, option.type), shown],
    )


def read_value(option: Field[Any], given: Any) -> Any:
    """What is given on the command line, as ReadOptions has it."""
    declared = option.metadata["declared"]
    if declared.kind == "choice":
        known(declared.flag, given, list(declared.words))
        return declared.words[given]
    if declared.kind == "labels":
        return tuple(given) if given else None
    return given


def printable(text: object) -> str:
    """A text for a terminal: what would move its cursor or colour it is written as an escape.

    Labels come from files of others. Lines and tabs stay.
    """
    return UNSEEN.sub(lambda sign: sign[0].encode("unicode_escape").decode(), str(text))


def say(text: object, err: bool = False) -> None:
    """Print a line; everything that this program tells goes through here."""
    typer.echo(printable(text), err=err)


class Told(logging.Formatter):
    """Warnings of ours on stderr, as everything else is told."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def warn(model: Bundle) -> None:
    """Say why a model is not fit to predict from, where it is not."""
    from samsvae_core.evaluation.fitness import caution

    if said := caution(model):
        say(f"Caution: {said}", err=True)


def number_of(option: str, mechanism: str) -> int:
    """A mechanism's number, as 0 or as M0."""
    number = mechanism.removeprefix("M")
    if not number.isdecimal():
        raise ValueError(f"{option} is {mechanism!r}; expected a number such as 0 or M0.")
    return int(number)


def known(option: str, value: str, choices: list[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{option} is {value!r}; choose one of {', '.join(choices)}.")


def chosen_device(name: str) -> torch.device:
    """The device to train on; auto takes a GPU if there is one."""
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; choose one of auto, cpu, cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda, but torch finds no CUDA GPU here. Use --device cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def parse_dosage(text: str, known: set[str]) -> tuple[str, float]:
    """NAME or NAME:DOSAGE; the last part is a dosage only if it is a number and no name has it."""
    name, colon, dose = text.rpartition(":")
    if text in known or not colon:
        return text, 1.0
    try:
        return name, float(dose)
    except ValueError:
        if name in known:
            raise ValueError(
                f"The dosage of {name} is {dose!r}; expected a number after the colon, such as "
                f"{name}:0.5."
            ) from None
        return text, 1.0


def named_once(given: list[tuple[str, float]]) -> dict[str, float]:
    """The dosages by name; raises ValueError where a perturbation is there twice."""
    dosages = dict(given)
    if len(dosages) < len(given):
        raise ValueError(f"A perturbation is named twice: {' '.join(name for name, _ in given)}.")
    return dosages


def new_table(output: Path) -> None:
    """Refuse, before any work is done, a table that could not be written in the end."""
    from samsvae_core.system.files import new_output

    endings = [".csv", ".tsv", ".parquet"]
    if output.suffix not in endings:
        raise ValueError(f"{output} must end in {', '.join(endings[:-1])} or {endings[-1]}.")
    new_output(output)


def write_table(table: pd.DataFrame, output: Path) -> None:
    """A table as CSV, TSV (with formulas disarmed) or Parquet, by the ending of its name."""
    from samsvae_core.analysis.enrichment_export import separated
    from samsvae_core.system.files import atomic_write

    if output.suffix == ".parquet":
        content = table.to_parquet(index=False)
    else:
        content = separated(table, "\t" if output.suffix == ".tsv" else ",")
    atomic_write(output, content)
    say(f"Wrote {output}: {len(table):,} rows.")
