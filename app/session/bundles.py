"""The models of the dashboard, and the selected one."""

from __future__ import annotations

import errno
import gc
import time
from pathlib import Path

import streamlit as st

from app.server import logs, uploads
from app.session import url
from app.session.markdown import plain
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.system.files import sha256

FIRST = "papalexi2021"  # the model to open first, if it is there


def available() -> dict[str, Path]:
    """Return the bundles that can be opened, name to path, with the default first."""
    found = {name: path for name, path in _found().items() if not _problem_of(path)}
    return dict(sorted(found.items(), key=lambda item: item[0] != FIRST))


def broken() -> dict[str, str]:
    """Return why each of the other bundles cannot be opened, by name."""
    problems = {name: _problem_of(path) for name, path in _found().items()}
    return {name: problem for name, problem in problems.items() if problem}


def _found() -> dict[str, Path]:
    """Return all bundles by name: those trained or uploaded here, and the models folder's."""
    own = layout.list_bundles(uploads.runs_folder())
    return own | layout.list_bundles(layout.models_folder())


def _problem_of(path: Path) -> str:
    """Return why a bundle cannot be opened, or ""; checked again when one of its files changes."""
    try:
        files = sorted(file for file in path.rglob("*") if file.is_file())
        stamp = " ".join(f"{f} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}). Copy the bundle again."
    try:
        return _problem(str(path), stamp)
    except (BundleError, OSError) as error:
        return str(error)


@st.cache_data(max_entries=256, show_spinner="Checking the models")
def _problem(path: str, stamp: str) -> str:
    """Return what is wrong with a bundle's files, or "", cached.

    Errors of the moment, such as too little memory, are raised instead, so they are not cached.
    """
    try:
        load_bundle(path, sha256(Path(path) / "manifest.json"))
    except (BundleError, OSError) as error:
        logs.refused("bundle refused", str(error), model=Path(path).name)
        if _is_of_the_moment(error):
            raise
        return str(error)
    return ""


def _is_of_the_moment(error: BaseException | None) -> bool:
    """Return whether the system caused an error: no memory, too many open files, a lost disk."""
    while error is not None:
        system = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if system or isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def choose_bundle() -> None:
    """Draw the model picker, bound to the address, and say why any model cannot be opened."""
    found = available()
    unusable = broken()
    if found:
        url.unknown_option("model", list(found), "model")
        url.follow("model", list(found))
        st.sidebar.selectbox(
            "Model",
            list(found),
            key="model",
            bind="query-params",
            help="A trained model with its tables. To see your own models here, open the dashboard "
            "with `samsvae app FOLDER`.",
        )
        chosen = bundle()
        n = chosen.conditions[["train", "validation", "test"]].to_numpy().sum()
        what = "perturbations" if chosen.model.composes else "treatments"
        st.sidebar.caption(
            f"{chosen.title} on {n:,} cells, {len(chosen.genes):,} genes, "
            f"{len(chosen.perturbations)} {what}"
        )
    if unusable and found:
        with st.sidebar.expander(f"{len(unusable)} cannot be opened", icon=":material/error:"):
            for name, problem in unusable.items():
                st.caption(f"**{plain(name)}**: {plain(problem)}")


def bundle() -> Bundle:
    """Return the selected bundle; raises BundleError if there is none that can be opened."""
    found = available()
    if not found:
        problems = [_problem_of(path) for path in _found().values()]
        if problems:
            raise BundleError(" ".join(problems))
        raise BundleError(
            f"There is no trained model in {layout.models_folder()} yet. Train one on the pages "
            "Data and Train, or with samsvae train DATA.h5ad --output FOLDER/NAME; you can also "
            "upload a zipped model on Data. samsvae app without a folder opens the shipped models."
        )
    name = str(st.session_state.get("model"))
    path = found.get(name) or next(iter(found.values()))
    try:
        return load_bundle(str(path), sha256(path / "manifest.json"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error}). Choose another model.") from error


@st.cache_resource(max_entries=3, show_spinner="Loading the model")
def load_bundle(path: str, checksum: str) -> Bundle:
    """Return the bundle in a folder, cached by the checksum of its manifest."""
    began = time.monotonic()
    loaded = opening.load(path)
    seconds = round(time.monotonic() - began, 3)
    logs.event("bundle opened", model=loaded.name, checksum=checksum[:12], seconds=seconds)
    gc.collect()
    gc.freeze()  # loaded models stay: collecting them again would pause every session
    return loaded
