"""Verbs for bundles: to list, pack and unpack them, and to open the dashboard on them."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from samsvae_core.cli.options import BundleFolder, Output, say

ROOT = Path(__file__).resolve().parents[2]


def bundles(
    folder: Annotated[Path | None, typer.Argument(help="Default: the shipped models.")] = None,
) -> None:
    """List the bundles in a folder, and whether each is sound."""
    from samsvae_core.bundle.layout import BundleError, list_bundles, models_folder
    from samsvae_core.bundle.opening import load

    where = folder or models_folder()
    if not where.is_dir():
        raise ValueError(f"{where} is not a folder. Name one that holds bundles.")
    found = list_bundles(where)
    if not found:
        say(f"No bundles in {where}.")
    for name, path in found.items():
        try:
            model = load(path)
        except BundleError as error:
            say(f"{name}: cannot be used. {error}")
            continue
        say(
            f"{name}: {len(model.perturbations)} perturbations, {len(model.genes):,} genes, "
            f"{model.model.config.n_latent} mechanisms"
        )


def pack(bundle: BundleFolder, output: Output) -> None:
    """Put a bundle into one zip file, to hand on."""
    from samsvae_core.bundle.archive import pack as packed

    packed(bundle, output)
    say(f"Wrote {output}: {output.stat().st_size:,} bytes.")


def unpack(
    file: Annotated[Path, typer.Argument(help="A zip that pack made.")],
    folder: Annotated[Path, typer.Argument(help="Where bundles are; it becomes one of them.")],
) -> None:
    """Check the bundle in a zip, and put it among others."""
    from samsvae_core.bundle.archive import unpack as unpacked
    from samsvae_core.bundle.layout import list_bundles

    there = list_bundles(folder)
    with file.open("rb") as content:
        made = unpacked(content, folder, file.stem)
    if made.name in there:
        raise ValueError(f"{made} exists already, and is the same bundle; it was left as it is.")
    say(f"Wrote {made}.")


def dashboard(
    folder: Annotated[Path | None, typer.Argument(help="Your own bundles.")] = None,
    port: Annotated[
        int,
        typer.Option(min=1, max=65535, envvar="STREAMLIT_SERVER_PORT", help="Port to serve on."),
    ] = 8501,
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder with .h5ad files to choose from; repeatable.")
    ] = None,
) -> None:
    """Open the dashboard, on the shipped models or on the bundles in a folder. Ctrl-C ends it."""
    environment = {"MALLOC_ARENA_MAX": "2"} | os.environ  # a pool for each thread keeps 0.4 GB
    for place in data or []:
        if not place.is_dir():
            raise ValueError(f"{place} is not a folder. Name one that holds .h5ad files.")
    if data:
        environment["SAMSVAE_DATA_DIRS"] = os.pathsep.join(str(place.resolve()) for place in data)
    if folder is not None:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder. Name one that holds bundles.")
        environment["SAMSVAE_MODELS"] = str(folder.resolve())
        if os.access(folder, os.W_OK):  # what is trained on the pages goes there, too
            environment.setdefault("SAMSVAE_RUNS", str(folder.resolve()))
    command = [sys.executable, "-m", "streamlit", "run", "app/serve.py", "--server.port", str(port)]
    refuse_taken(port)
    os.chdir(ROOT)
    os.execve(command[0], command, environment)  # so a signal to end reaches the server itself


def refuse_taken(port: int) -> None:
    """Raises ValueError for a port that this machine does not give."""
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("127.0.0.1", port))
        except OSError as error:
            why = f"Port {port} cannot be used: {error.strerror}."
            if error.errno == errno.EADDRINUSE:
                why = (
                    f"Port {port} is taken by another program, perhaps by this dashboard: look at "
                    f"http://localhost:{port}."
                )
            raise ValueError(f"{why} Choose another with --port.") from error
