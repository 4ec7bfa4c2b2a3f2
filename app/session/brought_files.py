"""Uploaded data files and models: inspecting, keeping and removing them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from app.server import logs, queue, sandbox, uploads
from app.server.reading import Reading
from app.server.runs import BROUGHT
from app.session import access
from samsvae_core.bundle import layout
from samsvae_core.bundle.archive import unpack
from samsvae_core.bundle.layout import BundleError
from samsvae_core.data.cells import DataError
from samsvae_core.system.files import OutputError


def inspected(data: str, gene_key: str = "") -> dict[str, Any]:
    """Return the choices that a data file offers, cached; raises DataError.

    `gene_key` is the column that names the genes; without one, the file's index does.
    """
    return _inspected(data, gene_key, _stamp(data))


def validated(reading: Reading) -> dict[str, Any]:
    """Return a summary of a data file read with these choices, cached; raises DataError."""
    every_gene = reading.with_genes(0)  # the summary does not depend on how many genes are kept
    return _validated(every_gene, _stamp(reading.data))


def _stamp(data: str) -> str:
    """Return a cache key that differs once the file has changed."""
    path = uploads.resolve(data)
    about = path.stat()
    return f"{path} {about.st_size} {about.st_mtime_ns}"


@st.cache_data(max_entries=32, show_spinner="Looking into the file")
def _inspected(data: str, gene_key: str, stamp: str) -> dict[str, Any]:
    # errors are not cached: the next attempt may work
    return sandbox.inspected(data, gene_key)


@st.cache_data(max_entries=64, show_spinner="Reading the file")
def _validated(reading: Reading, stamp: str) -> dict[str, Any]:
    return sandbox.validated(reading)


def uploader_key(kind: str) -> str:
    """Return the key of an uploader; it changes after each file, which empties the uploader."""
    return f"{kind} upload {st.session_state.get(f'{kind} uploads', 0)}"


def said(kind: str) -> tuple[bool, str]:
    """Return whether the last upload of this kind worked, and a message about it, only once."""
    found: tuple[bool, str] = st.session_state.pop(f"{kind} said", (True, ""))
    return found


@access.errors()
def keep_data() -> None:
    """Save an uploaded data file and select it; the callback of its uploader."""

    def kept(file: UploadedFile) -> str:
        uploads.refuse_other_formats(file, file.name, file.size)
        st.session_state["data"] = uploads.save(file, file.name, file.size)
        return f"{file.name} was kept, and is selected."

    _take("data", kept)


@access.errors()
def keep_model() -> None:
    """Unpack an uploaded bundle and select it; the callback of its uploader."""

    def kept(file: UploadedFile) -> str:
        folder, shipped = uploads.runs_folder(), layout.list_bundles(layout.models_folder())
        there = layout.list_bundles(folder)
        stem = uploads.safe_stem(file.name.removesuffix(".zip"))
        with uploads.turn():
            room = uploads.largest_total() - uploads.used()
            name = unpack(file, folder, stem, shipped, room).name
            if name not in there:
                with suppress(OSError):
                    (
                        folder / name / BROUGHT
                    ).touch()  # so that it can be removed and counts as an upload
        st.session_state["model"] = name
        return f"{name} is among the models now, and is selected."

    _take("model", kept)


def _take(kind: str, kept: Callable[[UploadedFile], str]) -> None:
    """Pass the uploaded file to `kept`, note the outcome, and free the file's memory."""
    key = uploader_key(kind)
    file: UploadedFile | None = st.session_state[key]
    if file is None:
        return
    try:
        st.session_state[f"{kind} said"] = True, kept(file)
        logs.event("upload accepted", kind=kind, file=file.name, n_bytes=file.size)
    except (BundleError, DataError, OutputError) as error:
        logs.refused("upload refused", str(error), kind=kind, file=file.name, n_bytes=file.size)
        st.session_state[f"{kind} said"] = False, str(error)
    finally:
        st.session_state[f"{kind} uploads"] = st.session_state.get(f"{kind} uploads", 0) + 1
        context = get_script_run_ctx()
        if context and isinstance(context.uploaded_file_mgr, MemoryUploadedFileManager):
            context.uploaded_file_mgr.remove_file(context.session_id, file.file_id)
        file.close()


@access.errors()
def remove(kind: str, name: str) -> None:
    """Remove an uploaded data file ("data") or an uploaded model ("model"); a callback."""
    try:
        if kind == "data":
            uploads.delete(name)
        else:
            queue.remove_model(uploads.runs_folder(), name)
            logs.event("model removed", model=name)
        st.session_state[f"{kind} said"] = True, f"{name} was removed."
    except (DataError, OSError, OutputError) as error:
        st.session_state[f"{kind} said"] = False, str(error)
