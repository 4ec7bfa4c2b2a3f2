"""Training runs started in the dashboard, and how fast training is on this machine."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from app.server import logs, queue, uploads
from app.server.reading import Reading
from app.server.runs import Job
from app.server.time_estimate import Pace, measured
from app.session import access
from samsvae_core.bundle import layout
from samsvae_core.data.cells import DataError
from samsvae_core.system.files import OutputError


class NoPaceError(RuntimeError):
    """The pace could not be measured this time."""


@st.cache_resource(show_spinner="Timing a few steps on this machine")
def _pace() -> Pace:
    found = measured(queue.n_threads())
    if found is None:
        raise NoPaceError  # errors are not cached: the next attempt may work
    return found


def pace() -> Pace | None:
    """Return how fast training is here, measured once, or None if that failed."""
    try:
        return _pace()
    except NoPaceError:
        return None


def runs() -> list[Job]:
    """Return all runs, newest first, after starting the next in the queue if it can run."""
    return queue.look(uploads.runs_folder())


@access.errors()
def start_run(name: str, reading: Reading, arguments: list[str], device: str) -> None:
    """Add a training run to the queue and show it; a callback."""
    try:
        if name in layout.list_bundles(layout.models_folder()):
            raise OutputError(f"There is already a model called {name}. Choose another name.")
        path = uploads.resolve(reading.data)
        queue.submit(uploads.runs_folder(), name, path, arguments, device)
        logs.event("training asked for", run=name, data=reading.data, device=device)
        st.session_state["run"] = name
    except (DataError, OutputError) as error:
        st.session_state["run said"] = str(error)


@access.errors()
def change_run(change: Callable[..., object], name: str, *options: object) -> None:
    """Stop, resume or discard a run; a callback."""
    try:
        change(uploads.runs_folder(), name, *options)
        logs.event("training changed", run=name, change=change.__name__)
    except OutputError as error:
        st.session_state["run said"] = str(error)


def run_said() -> str:
    """Return why the last change failed, only once, or ""."""
    return str(st.session_state.pop("run said", ""))
