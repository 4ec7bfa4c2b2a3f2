"""What the library computes for the pages, remembered for every session."""

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
from samsvae_core.analysis.all_shifts import Effects, places, whole_effects
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.partners import Direction, rank_pairs
from samsvae_core.bundle import layout
from samsvae_core.bundle.archive import MANIFEST, write_zip
from samsvae_core.bundle.bundle import Bundle

BATCHES = threading.Lock()  # who begins a test
MAX_BATCHES = 32  # of gene-set tests whose results are at hand
EFFECTS_TURN = threading.Lock()  # who composes every perturbation
MAX_EFFECTS = 3  # models whose effects are at hand


def packed(path: Path) -> bytes:
    """A bundle as one zip."""
    file = io.BytesIO()
    write_zip(path, [*layout.read_manifest(path)["files"], MANIFEST], file)
    return file.getvalue()


@st.cache_resource
def _lock() -> threading.Lock:
    """One composition at a time: each takes every processor, so two at once gain nothing."""
    return threading.Lock()


@st.cache_data(max_entries=64, show_spinner="Composing")
def _compose(
    path: str,
    checksum: str,
    dosages: tuple[tuple[str, float], ...],
    without: tuple[int, ...],
    n_samples: int,
    cells: tuple[str, ...] | None,
) -> Composition:
    with _lock():
        model = load_bundle(path, checksum)
        return compose.compose(model, dict(dosages), without, n_samples, cells=cells)


def composed(
    model: Bundle,
    dosages: dict[str, float],
    without: list[int],
    n_samples: int = 64,
    cells: tuple[str, ...] | None = None,
) -> Composition:
    """`compose`, remembered by bundle, dosages, mechanisms left out, draws and where it starts."""
    key = tuple(sorted(dosages.items())), tuple(sorted(without)), n_samples, cells
    return _compose(str(model.path), model.checksum, *key)


@st.cache_data(max_entries=64, show_spinner=False)
def _curves(path: str, checksum: str, k: int) -> pd.DataFrame:
    model = load_bundle(path, checksum)
    return loadings.loading_curves(model.model, model.reference, model.genes, [k])


def curves(model: Bundle, k: int) -> pd.DataFrame:
    """Loadings of a mechanism at several steps, remembered."""
    return _curves(str(model.path), model.checksum, k)


@st.cache_resource
def _effects() -> dict[str, Batch[Effects]]:
    return {}


def effects(model: Bundle) -> Batch[Effects]:
    """The shifts of all perturbations, as they are kept, or composed in the background."""
    with BATCHES:
        known = _effects()
        if model.checksum not in known:
            for old in [k for k, b in known.items() if b.ended][: max(0, len(known) - MAX_EFFECTS)]:
                del known[old]
            known[model.checksum] = Batch(partial(whole_effects, model, _lock()), EFFECTS_TURN)
    return known[model.checksum]


def effects_are_kept(model: Bundle) -> bool:
    """Whether they are there without being composed anew, or are under way."""
    return model.checksum in _effects() or any(path.exists() for path, _ in places(model))


def forget_effects(model: Bundle) -> None:
    """So that they can be asked for again."""
    _effects().pop(model.checksum, None)


@st.cache_data(max_entries=32, show_spinner="Composing every pair")
def _ranked_pairs(
    path: str, checksum: str, genes: tuple[str, ...], n_best: int, question: Question
) -> pd.DataFrame:
    return rank_pairs(load_bundle(path, checksum), genes, n_best=n_best, **question._asdict())


class Question(NamedTuple):
    """Which pairs are asked for, as `rank_pairs` calls it."""

    given: str | None
    unseen_only: bool
    direction: Direction
    with_inert: bool


def ranked_pairs(
    model: Bundle, genes: tuple[str, ...], n_best: int, question: Question
) -> pd.DataFrame:
    """`rank_pairs`, remembered."""
    return _ranked_pairs(str(model.path), model.checksum, genes, n_best, question)


@st.cache_data(max_entries=32, show_spinner="Comparing")
def _difference(
    _first: Composition, _second: Composition, path: str, checksum: str, key: str
) -> pd.DataFrame:
    with _lock():
        return compose.compare(load_bundle(path, checksum), _first, _second)


def difference(model: Bundle, first: Composition, second: Composition) -> pd.DataFrame:
    """`compare`, remembered by bundle and by what was composed."""
    asked = [(c.dosages, c.without, c.cells, c.n_samples, c.seed) for c in (first, second)]
    return _difference(first, second, str(model.path), model.checksum, repr(asked))


@st.cache_data(max_entries=32, show_spinner=False)
def _network(
    path: str, checksum: str, names: tuple[str, ...], threshold: float
) -> networks.Network:
    return networks.network(load_bundle(path, checksum).masks, names, threshold)


def network(model: Bundle, names: Iterable[str], threshold: float) -> networks.Network:
    """`interpretation.network` of these perturbations, remembered."""
    return _network(str(model.path), model.checksum, tuple(names), threshold)
