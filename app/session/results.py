"""Results that the library computes for the pages, cached for all sessions."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import streamlit as st

from app.server.background import Batch
from app.session.bundles import load_bundle
from samsvae_core.analysis import (
    compose,
    loadings,
)
from samsvae_core.analysis import network as networks
from samsvae_core.analysis.all_shifts import AllShifts, places, whole_effects
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.partners import Direction, rank_pairs
from samsvae_core.bundle import layout
from samsvae_core.bundle.archive import MANIFEST, write_zip
from samsvae_core.bundle.bundle import Bundle

BATCHES = threading.Lock()  # held while a batch is started
MAX_BATCHES = 32  # gene-set tests whose results are kept in memory
EFFECTS_TURN = threading.Lock()  # held while all perturbations of a model are composed
MAX_EFFECTS = 3  # models whose shifts are kept in memory


def packed(path: Path) -> bytes:
    """Return a bundle as a zip file."""
    file = io.BytesIO()
    write_zip(path, [*layout.read_manifest(path)["files"], MANIFEST], file)
    return file.getvalue()


@st.cache_resource
def _lock() -> threading.Lock:
    """Return the lock that allows one composition at a time: each uses all processors."""
    return threading.Lock()


@st.cache_data(max_entries=64, show_spinner="Composing")
def _compose(
    path: str,
    checksum: str,
    dosages: tuple[tuple[str, float], ...],
    without: tuple[int, ...],
    n_samples: int,
    cells: tuple[str, ...] | None,
    direct: bool,
    level: str | None,
) -> Composition:
    with _lock():
        model = load_bundle(path, checksum)
        return compose.compose(
            model, dict(dosages), without, n_samples, cells=cells, direct=direct, level=level
        )


def composed(
    model: Bundle,
    dosages: dict[str, float],
    without: list[int],
    n_samples: int = 64,
    cells: tuple[str, ...] | None = None,
    direct: bool = True,
    level: str | None = None,
) -> Composition:
    """Return the result of `compose`, cached by bundle and all arguments."""
    key = tuple(sorted(dosages.items())), tuple(sorted(without)), n_samples, cells, direct, level
    return _compose(str(model.path), model.checksum, *key)


@st.cache_data(max_entries=64, show_spinner=False)
def _curves(path: str, checksum: str, k: int) -> pd.DataFrame:
    model = load_bundle(path, checksum)
    return loadings.loading_curves(model.model, model.reference, model.genes, [k])


def curves(model: Bundle, k: int) -> pd.DataFrame:
    """Return the result of `loading_curves` for one mechanism, cached."""
    return _curves(str(model.path), model.checksum, k)


@st.cache_resource
def _effects() -> dict[str, Batch[AllShifts]]:
    return {}


def effects(model: Bundle) -> Batch[AllShifts]:
    """Return the batch with the shifts of all perturbations, read from disk or being composed."""
    with BATCHES:
        known = _effects()
        if model.checksum not in known:
            for old in [k for k, b in known.items() if b.ended][: max(0, len(known) - MAX_EFFECTS)]:
                del known[old]
            known[model.checksum] = Batch(partial(whole_effects, model, _lock()), EFFECTS_TURN)
    return known[model.checksum]


def effects_are_kept(model: Bundle) -> bool:
    """Return whether the shifts of all perturbations are stored or being composed."""
    return model.checksum in _effects() or any(path.exists() for path, _ in places(model))


def forget_effects(model: Bundle) -> None:
    """Drop the shifts of all perturbations, so that they can be started again."""
    _effects().pop(model.checksum, None)


@st.cache_data(max_entries=32, show_spinner="Composing every pair")
def _ranked_pairs(
    path: str, checksum: str, genes: tuple[str, ...], n_best: int, question: Question
) -> pd.DataFrame:
    return rank_pairs(load_bundle(path, checksum), genes, n_best=n_best, **question._asdict())


class Question(NamedTuple):
    """The options of `rank_pairs`, under its names."""

    given: str | None
    unseen_only: bool
    direction: Direction
    with_inert: bool


def ranked_pairs(
    model: Bundle, genes: tuple[str, ...], n_best: int, question: Question
) -> pd.DataFrame:
    """Return the result of `rank_pairs`, cached."""
    return _ranked_pairs(str(model.path), model.checksum, genes, n_best, question)


@st.cache_data(max_entries=32, show_spinner="Comparing")
def _difference(
    _first: Composition, _second: Composition, path: str, checksum: str, key: str
) -> pd.DataFrame:
    with _lock():
        return compose.compare(load_bundle(path, checksum), _first, _second)


def difference(model: Bundle, first: Composition, second: Composition) -> pd.DataFrame:
    """Return the result of `compare`, cached by bundle and compositions."""
    asked = [
        (c.dosages, c.without, c.cells, c.n_samples, c.seed, c.direct, c.level)
        for c in (first, second)
    ]
    return _difference(first, second, str(model.path), model.checksum, repr(asked))


@st.cache_data(max_entries=32, show_spinner=False)
def _network(
    path: str, checksum: str, names: tuple[str, ...], threshold: float
) -> networks.Network:
    return networks.network(load_bundle(path, checksum).masks, names, threshold)


def network(model: Bundle, names: Iterable[str], threshold: float) -> networks.Network:
    """Return the result of `analysis.network.network` for these perturbations, cached."""
    return _network(str(model.path), model.checksum, tuple(names), threshold)
