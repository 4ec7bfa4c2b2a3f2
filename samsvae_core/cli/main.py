"""The command line: one verb per capability. `samsvae --help` lists them.

A user's mistake ends with one message and exit code 2, never with a traceback.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
from collections.abc import Callable
from typing import Annotated

import typer

from samsvae_core.cli.bundles import bundles, dashboard, pack, unpack
from samsvae_core.cli.data import inspect, simulate, validate
from samsvae_core.cli.enrich import enrich
from samsvae_core.cli.options import Told, say
from samsvae_core.cli.results import (
    compose,
    differences,
    direct,
    embed,
    evaluate,
    gene,
    loadings,
    masks,
    structure,
)
from samsvae_core.cli.train import NamingModels, train

app = typer.Typer(
    help="Sparse mechanisms of genetic perturbations in single cells.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Sparse mechanisms of genetic perturbations in single cells."""
    if version:
        say(f"samsvae {importlib.metadata.version('samsvae-explorer')}")
        raise typer.Exit


# In the order of --help.
VERBS: dict[str, Callable[..., None]] = {
    "validate": validate,
    "inspect": inspect,
    "simulate": simulate,
    "train": train,
    "evaluate": evaluate,
    "masks": masks,
    "direct": direct,
    "differences": differences,
    "loadings": loadings,
    "gene": gene,
    "compose": compose,
    "enrich": enrich,
    "embed": embed,
    "structure": structure,
    "bundles": bundles,
    "pack": pack,
    "unpack": unpack,
    "app": dashboard,
}
for name, verb in VERBS.items():
    app.command(name, cls=NamingModels if verb is train else None)(verb)


def main() -> None:
    """Run the command line; a user's mistake is one message and exit code 2."""
    from samsvae_core.system.machine import is_busy

    # before torch starts threads: those that spin while they wait for one whose core is taken by
    # another program make a step 2 to 3 times as slow as those that sleep, which on a machine
    # without others take up to twice as long
    if is_busy():
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Told())
    try:
        app()
    except Exception as error:  # what is no message for the user is raised again below
        if os.environ.get("SAMSVAE_DEBUG"):
            raise
        from samsvae_core.system.files import is_message
        from samsvae_core.training.run_folder import is_full, is_memory, reason

        if is_message(error) and not is_full(error):
            message = str(error)  # such as a file that may not be read
        elif is_full(error) or is_memory(error):
            message = reason(error)
        else:
            raise
        with contextlib.suppress(OSError):  # a disk that is full takes no message either
            say(f"Error: {message}", err=True)
        raise SystemExit(2) from None
