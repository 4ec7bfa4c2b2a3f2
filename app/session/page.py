"""What pages share: the chosen bundle, caches, and what is drawn.

The only user of caches; with address.py and shelf.py the only one of session state.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFile

from app.export import figure_data, static_figures
from app.export.report import Picture, Table, Text
from app.server import logs, queue, sandbox, uploads
from app.server.background import Batch
from app.server.runs import BROUGHT, Job
from app.server.time_estimate import Pace, measured
from app.server.uploads import Reading
from app.session import access, choices, saved_pages, url
from app.session.markdown import plain
from samsvae_core.analysis import (
    compose,
    enrichment_export,
    gene_rankings,
    loadings,
    masks,
    mechanism_names,
)
from samsvae_core.analysis import network as networks
from samsvae_core.analysis.all_shifts import Effects, places, whole_effects
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.gene_rankings import Ranked
from samsvae_core.analysis.mechanism_names import Label
from samsvae_core.analysis.partners import Direction, rank_pairs
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.archive import MANIFEST, unpack, write_zip
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError
from samsvae_core.data.cells import DataError
from samsvae_core.evaluation import fitness
from samsvae_core.genesets import collections as gene_sets
from samsvae_core.genesets import enrichment, enrichr, questions, terms
from samsvae_core.genesets.collections import Collection, Match
from samsvae_core.genesets.enrichment import Rules
from samsvae_core.genesets.questions import Enrichment
from samsvae_core.system.files import OutputError, is_message, sha256

BATCHES = threading.Lock()  # who begins a test
MAX_BATCHES = 32  # of gene-set tests whose results are at hand
EFFECTS_TURN = threading.Lock()  # who composes every perturbation
MAX_EFFECTS = 3  # models whose effects are at hand
SECTIONS = {  # pages as they are called in the address and among the views, in their order
    "Explore": ("overview", "perturbation", "masks", "mechanism", "gene", "cells"),
    "Predict": ("compose", "partners", "gene_sets"),
    "Your own screen": ("data", "train"),
    "More": ("report", "glossary", "system"),
}
PAGES = tuple(page for section in SECTIONS.values() for page in section)
WITHOUT_MODEL = SECTIONS["Your own screen"] + ("system",)  # nothing of them is kept for a report
FIRST = "papalexi2021"  # what the dashboard opens on, where it is there


def dark() -> bool:
    return bool(st.context.theme.type == "dark")


def available() -> dict[str, Path]:
    """Bundles in the models folder that are whole, by name, the one to open on first."""
    found = {name: path for name, path in _found().items() if not _problem_of(path)}
    return dict(sorted(found.items(), key=lambda item: item[0] != FIRST))


def broken() -> dict[str, str]:
    """Why each of the others cannot be opened."""
    problems = {name: _problem_of(path) for name, path in _found().items()}
    return {name: problem for name, problem in problems.items() if problem}


def _found() -> dict[str, Path]:
    """Bundles by name: those trained or brought here, and those of the models folder."""
    own = layout.list_bundles(uploads.runs_folder())
    return own | layout.list_bundles(layout.models_folder())


def _problem_of(path: Path) -> str:
    """Why a bundle cannot be opened, if it cannot; looked at anew when a file of it changes."""
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
    """What is wrong with its files, remembered; what the system refuses now is raised instead."""
    try:
        load_bundle(path, sha256(Path(path) / "manifest.json"))
    except (BundleError, OSError) as error:
        logs.refused("bundle refused", str(error), model=Path(path).name)
        if _is_of_the_moment(error):
            raise
        return str(error)
    return ""


def _is_of_the_moment(error: BaseException | None) -> bool:
    """Whether the system is behind an error: no memory, too many open files, a disk gone."""
    while error is not None:
        system = isinstance(error, OSError) and error.errno not in (None, errno.ENOENT)
        if system or isinstance(error, MemoryError):
            return True
        error = error.__cause__
    return False


def choose_bundle() -> None:
    """The picker of the sidebar; what is chosen is in the URL, what cannot be is told why."""
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
            help="A trained model with its tables. Yours appear here when the dashboard is opened "
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
    """The chosen bundle. Raises BundleError where there is none, or none that is whole."""
    found = available()
    if not found:
        problems = [_problem_of(path) for path in _found().values()]
        if problems:
            raise BundleError(" ".join(problems))
        raise BundleError(
            f"There is no trained model in {layout.models_folder()} yet. Train one on the pages "
            "Data and Train, or with samsvae train DATA.h5ad --output FOLDER/NAME; Data also takes "
            "a model packed as a zip. The shipped models open with samsvae app, without a folder."
        )
    name = str(st.session_state.get("model"))
    path = found.get(name) or next(iter(found.values()))
    try:
        return load_bundle(str(path), sha256(path / "manifest.json"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error}). Choose another model.") from error


@st.cache_resource(max_entries=3, show_spinner="Loading the model")
def load_bundle(path: str, checksum: str) -> Bundle:
    """The bundle in a folder whose manifest has this checksum, remembered."""
    began = time.monotonic()
    loaded = opening.load(path)
    seconds = round(time.monotonic() - began, 3)
    logs.event("bundle opened", model=loaded.name, checksum=checksum[:12], seconds=seconds)
    gc.collect()
    gc.freeze()  # what is here to stay is not looked through again: it held every session up
    return loaded


def page(view: Callable[[Bundle], None]) -> None:
    """Run a view; a message made for people is shown as written, anything else surfaces."""

    def with_caution() -> None:
        model = bundle()
        if said := fitness.caution(model):
            st.warning(said, icon=":material/warning:")
            record(Text(f"**Caution.** {said}"))
        view(model)

    page_without_model(with_caution)


def page_without_model(view: Callable[[], None]) -> None:
    """Run a view that needs no model, as `page` does."""
    st.session_state["drawing"], st.session_state["shown"] = [], None
    try:
        view()
    except ValueError as error:
        if not is_message(error):
            raise
        st.error(plain(error))
    footer()
    saved_pages.remember()
    about = st.session_state.get("subject", ("", ""))
    named = about[1] if about[0] == st.session_state["page"] else ""
    st.session_state["shown"] = named, saved_pages.current(), tuple(st.session_state["drawing"])


def footer() -> None:
    """Which version and model made the page; tests look for it, as a page that died has none."""
    version = layout.version("samsvae-explorer")
    parts = [f"SAMS-VAE Explorer {version}"]
    try:
        model = bundle()
        parts.append(f"model {plain(model.name)}, checksum {model.checksum[:12]}")
    except BundleError:
        pass
    st.container(key="end").caption(" · ".join(parts))


# Data files


def inspected(data: str, gene_key: str = "") -> dict[str, Any]:
    """What a data file offers to choose from, genes named by a column if one is given, remembered.

    Raises DataError.
    """
    return _inspected(data, gene_key, _stamp(data))


def validated(reading: Reading) -> dict[str, Any]:
    """What a data file holds when read so, remembered. Raises DataError."""
    every_gene = reading.with_genes(0)  # which genes are kept changes nothing of it
    return _validated(every_gene, _stamp(reading.data))


def _stamp(data: str) -> str:
    """Another one once a file has changed."""
    path = uploads.resolve(data)
    about = path.stat()
    return f"{path} {about.st_size} {about.st_mtime_ns}"


@st.cache_data(max_entries=32, show_spinner="Looking into the file")
def _inspected(data: str, gene_key: str, stamp: str) -> dict[str, Any]:
    # what it raises is not remembered: another time it may work
    return sandbox.inspected(data, gene_key)


@st.cache_data(max_entries=64, show_spinner="Reading the file")
def _validated(reading: Reading, stamp: str) -> dict[str, Any]:
    return sandbox.validated(reading)


def uploader_key(kind: str) -> str:
    """The key of an uploader, another one after each file: so it is empty again."""
    return f"{kind} upload {st.session_state.get(f'{kind} uploads', 0)}"


def said(kind: str) -> tuple[bool, str]:
    """Whether the last upload of this kind went well, and what there is to say of it, once."""
    found: tuple[bool, str] = st.session_state.pop(f"{kind} said", (True, ""))
    return found


@access.errors()
def keep_data() -> None:
    """Keep an uploaded data file on disk and choose it; a callback of its uploader."""

    def kept(file: UploadedFile) -> str:
        uploads.refuse_other_formats(file, file.name, file.size)
        st.session_state["data"] = uploads.save(file, file.name, file.size)
        return f"{file.name} was kept, and is chosen."

    _take("data", kept)


@access.errors()
def keep_model() -> None:
    """Unpack an uploaded bundle and choose it; a callback of its uploader."""

    def kept(file: UploadedFile) -> str:
        folder, shipped = uploads.runs_folder(), layout.list_bundles(layout.models_folder())
        there = layout.list_bundles(folder)
        stem = uploads.safe_stem(file.name.removesuffix(".zip"))
        with uploads.turn():
            room = uploads.largest_total() - uploads.used()
            name = unpack(file, folder, stem, shipped, room).name
            if name not in there:
                with suppress(OSError):
                    (folder / name / BROUGHT).touch()  # so that it can be removed, and counts
        st.session_state["model"] = name
        return f"{name} is among the models now, and is chosen."

    _take("model", kept)


def _take(kind: str, kept: Callable[[UploadedFile], str]) -> None:
    """Do with an upload what is to be done, and let go of it: Streamlit holds it in memory."""
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
    """Remove an upload ("data") or a model that was brought ("model"); a callback."""
    try:
        if kind == "data":
            uploads.delete(name)
        else:
            queue.remove_model(uploads.runs_folder(), name)
            logs.event("model removed", model=name)
        st.session_state[f"{kind} said"] = True, f"{name} was removed."
    except (DataError, OSError, OutputError) as error:
        st.session_state[f"{kind} said"] = False, str(error)


# Trainings


class NoPaceError(RuntimeError):
    """The pace could not be found out this time."""


@st.cache_resource(show_spinner="Timing a few steps on this machine")
def _pace() -> Pace:
    found = measured(queue.n_threads())
    if found is None:
        raise NoPaceError  # not remembered: another time it may work
    return found


def pace() -> Pace | None:
    """How fast trainings are here, found out once; None while that cannot be found out."""
    try:
        return _pace()
    except NoPaceError:
        return None


def runs() -> list[Job]:
    """Every run, the newest first; what is next is started."""
    return queue.look(uploads.runs_folder())


@access.errors()
def start_run(name: str, reading: Reading, arguments: list[str], device: str) -> None:
    """Put a training into the queue and show it; a callback."""
    try:
        if name in layout.list_bundles(layout.models_folder()):
            raise OutputError(f"A model called {name} is here already. Choose another name.")
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
    """What there is to say of the last change, once."""
    return str(st.session_state.pop("run said", ""))


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


def collections() -> Mapping[str, Callable[[], Collection]]:
    """Every collection one may choose, by name: shipped, of Enrichr kept on disk, one's own."""
    shipped = {name: partial(gene_sets.load_collection, name) for name in gene_sets.collections()}
    kept = {name: partial(enrichr.enrichr, name) for name in enrichr.cached_enrichr()}
    own = {name: partial(_itself, own) for name, own in own_collections().items()}
    return shipped | kept | own


def _itself(collection: Collection) -> Collection:
    return collection


def own_collections() -> dict[str, Collection]:
    """Those a person brought in this session, by name."""
    found: dict[str, Collection] = st.session_state.setdefault("own_collections", {})
    return found


def brought_collection(content: bytes, name: str) -> Collection:
    """The sets in a GMT file. ValueError for a name that is taken, and for what is no such file."""
    added = gene_sets.parse_gmt(content, re.sub(r"\.gmt(\.gz)?$", "", name, flags=re.IGNORECASE))
    if added.name in gene_sets.collections():
        raise ValueError(f"{added.name} is the name of a shipped collection; rename the file.")
    if added.name in enrichr.cached_enrichr():
        raise ValueError(f"{added.name} is the name of an Enrichr library kept here; rename it.")
    return added


def add_collection(content: bytes, name: str) -> Collection:
    """A GMT file a person brought, for this session. Raises as `brought_collection`."""
    added = brought_collection(content, name)
    if own_collections().get(added.name) != added:
        own_collections()[added.name] = added
        _choose_collection(added.name)
    return added


def _choose_collection(name: str) -> None:
    """Before the widget that shows the choice is drawn."""
    chosen = st.session_state.get("collections", ["hallmark", "reactome"])
    st.session_state["collections"] = [*(c for c in chosen if c != name), name]


def names(model: Bundle) -> tuple[dict[int, Label], str]:
    """The user's names of mechanisms: those kept beside the bundle, else those of this session."""
    found = mechanism_names.read_names(model)
    unkept = st.session_state.get(f"names {model.checksum}")
    return (found.labels if unkept is None else unkept), found.problem


def keep_names(model: Bundle, labels: dict[int, Label]) -> None:
    """Beside the bundle; where that cannot be written to, for this session. Raises OutputError."""
    try:
        mechanism_names.write_names(model, labels)
    except OutputError:
        st.session_state[f"names {model.checksum}"] = labels
        raise
    st.session_state.pop(f"names {model.checksum}", None)


def names_file(model: Bundle) -> str:
    return mechanism_names.names_file(model).name


def export_names(model: Bundle, labels: dict[int, Label]) -> bytes:
    return mechanism_names.export_names(model, labels)


def import_names(model: Bundle, content: bytes) -> dict[int, Label]:
    return mechanism_names.import_names(model, content)


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


def show_collection(name: str) -> None:
    """Choose this one alone, before the widget that shows the choice is drawn."""
    st.session_state["collections"] = [name]


def fetch_enrichr(name: str) -> Collection:
    """A library of Enrichr, on disk or downloaded, and chosen."""
    fetched = enrichr.enrichr(name, refresh=name in enrichr.cached_enrichr())
    _choose_collection(name)
    return fetched


@st.cache_resource(max_entries=32, show_spinner=False)
def _matched(_collection: Collection, _genes: tuple[str, ...], checksum: str) -> Match:
    return gene_sets.match(_collection, _genes)


def matched(collection: Collection, genes: Iterable[str]) -> Match:
    """A collection in the symbols of the model."""
    known = tuple(genes)
    listed = hashlib.sha256("\n".join(known).encode()).hexdigest()  # at once, unlike the cache
    return _matched(collection, known, f"{collection.name} {collection.checksum} {listed}")


def precomputed(
    model: Bundle, ranked: Ranked, collections: Mapping[str, Collection], rules: Rules
) -> Enrichment | None:
    """What the bundle holds, where it has all that is asked for."""
    usual = rules == enrichment.USUAL and ranked.certainty is None and "loading" in ranked.table
    if not usual or not collections or not all(map(model.holds, collections.values())):
        return None
    parts = []
    for name in collections:
        table, notes = model.enrichment(name)
        wanted = list(ranked.scores.columns)
        parts.append(Enrichment(*(t[t["mechanism"].isin(wanted)] for t in (table, notes))))
    return questions.join(parts)


@st.cache_resource
def _batches() -> dict[str, Batch[Enrichment]]:
    return {}


def batch(
    model: Bundle,
    ranked: Ranked,
    collections: Mapping[str, Collection],
    rules: Rules,
    start: bool,
) -> Batch[Enrichment] | None:
    """The tests under way or done for this question; begun, if they are to be."""
    key, known = _question(model, ranked, collections, rules), _batches()
    with BATCHES:
        if key not in known and start:
            for old in [k for k, b in known.items() if b.ended][: max(0, len(known) - MAX_BATCHES)]:
                del known[old]
            sets = list(collections.values())
            call = partial(enrichment.enrich, ranked.scores, sets, rules, ranked.moved)
            known[key] = Batch(call)
    return known.get(key)


def forget_batch(
    model: Bundle, ranked: Ranked, collections: Mapping[str, Collection], rules: Rules
) -> None:
    """So that it can be asked again."""
    _batches().pop(_question(model, ranked, collections, rules), None)


def _question(
    model: Bundle, ranked: Ranked, collections: Mapping[str, Collection], rules: Rules
) -> str:
    sets = sorted((c.name, c.checksum) for c in collections.values())
    scores = hashlib.sha256(ranked.scores.to_numpy(float).tobytes()).hexdigest()
    columns = [str(column) for column in ranked.scores]
    question = [model.checksum, ranked.name, columns, scores, sets, rules, ranked.certainty]
    return hashlib.sha256(json.dumps(question).encode()).hexdigest()


def export_files(
    model: Bundle,
    ranked: Ranked,
    collections: Mapping[str, Collection],
    result: Enrichment,
    rules: Rules,
) -> Callable[[], dict[str, bytes]]:
    """Makes every file of a result, once, when the first is asked for."""

    @cache
    def made() -> dict[str, bytes]:
        gathered = gene_rankings.gathered(model, ranked, collections.values(), result, rules)
        return enrichment_export.files(gathered)

    return made


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


def usable_sets(collection: Collection, genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sets of a collection with 5 to 500 measured genes, in the symbols of the model."""
    return gene_sets.usable_sets(matched(collection, genes).collection, genes)


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


def clicked(event: object) -> str | None:
    """The customdata of the point a person clicked in a Plotly chart."""
    points = getattr(event, "selection", {}).get("points", [])
    data = points[0].get("customdata") if points else None
    return str(data[0] if isinstance(data, (list, tuple)) else data) if data else None


def downloads(table: pd.DataFrame, name: str) -> None:
    """CSV and TSV of exactly the table that is shown."""
    record(Table(name, "", table))
    with st.container(horizontal=True):
        for kind, separator in (("CSV", ","), ("TSV", "\t")):
            st.download_button(
                kind,
                partial(_separated, table, separator),
                f"{name}.{kind.lower()}",
                key=f"{name} {kind}",
                icon=":material/download:",
                on_click="ignore",
                type="tertiary",
            )


def _separated(table: pd.DataFrame, separator: str) -> bytes:
    return enrichment_export.separated(table, separator)


def chart(figure: go.Figure, name: str, alt: str, clickable: bool = False) -> Any:
    """A figure in its own colours, to be saved as SVG, PNG or data under a telling name."""
    event = st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["select2d", "lasso2d", "autoScale2d"]),
        alt=alt,
        key=name,
        on_select="rerun" if clickable else "ignore",
        selection_mode="points",
    )
    saving(figure, name, alt)
    return event


def live_chart(figure: go.Figure, name: str, alt: str) -> None:
    """A figure that is drawn again and again by itself: nothing of it is kept for a report."""
    config = _buttons(name, ["select2d", "lasso2d", "autoScale2d"])
    st.plotly_chart(figure, theme=None, config=config, alt=alt, key=name)


def saving(figure: go.Figure, name: str, alt: str) -> None:
    """A figure as files, drawn when asked for, and remembered for the report."""
    record(Picture(name, alt, figure))
    with st.popover("Save", icon=":material/download:", type="tertiary"):
        st.caption(plain(alt))
        for label, ending, made in (
            ("SVG, for print and editing", "svg", partial(static_figures.drawn, figure, "svg")),
            ("PNG, for slides", "png", partial(static_figures.drawn, figure, "png")),
            ("Data (CSV)", "csv", partial(_data, figure)),
        ):
            st.download_button(
                label,
                made,
                f"{name}.{ending}",
                key=f"{name} figure {ending}",
                on_click="ignore",
                type="tertiary",
            )


def _data(figure: go.Figure) -> bytes:
    return _separated(figure_data.data(figure), ",")


def _buttons(name: str, without: list[str]) -> dict[str, Any]:
    saved = {"format": "svg", "filename": name, "scale": 2}
    return {"toImageButtonOptions": saved, "displaylogo": False, "modeBarButtonsToRemove": without}


def lasso(model: Bundle, figure: go.Figure, name: str, alt: str) -> None:
    """A map of cells, each with its place as customdata, to be taken by a lasso or a box.

    Plotly forgets a selection when the figure is drawn anew; `address.taken` keeps it until there
    is another, or `release`.
    """
    key = f"{name} {st.session_state.get('lassos', 0)}"

    @access.errors()
    def keep() -> None:
        points = st.session_state[key]["selection"]["points"]
        choices.take(model, sorted(int(point["customdata"]) for point in points))

    figure.update_layout(dragmode="lasso")
    st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["autoScale2d"]),
        alt=alt,
        key=key,
        on_select=keep,
        selection_mode=("lasso", "box"),
    )
    saving(figure, name, alt)


@access.errors()
def release(model: Bundle) -> None:
    """Take no cell any more, and draw maps anew, without the outline of the lasso."""
    choices.take(model, [])
    st.session_state["lassos"] = st.session_state.get("lassos", 0) + 1


def choose_from(model: Bundle, figure: go.Figure, name: str, alt: str, by_click: bool) -> None:
    """A map of perturbations, each with its name as customdata, from which some are chosen.

    A lasso or a box chooses those inside, the farthest moved first; a click adds one, or takes it
    away. Plotly finds no point by click while it is ready to draw, so it is one or the other. The
    map is drawn anew each time, as it shows who is chosen.
    """
    key = f"{name} {by_click} {model.checksum} {st.session_state.get('choices', 0)}"

    @access.errors()
    def keep() -> None:
        selection = st.session_state[key]["selection"]
        taken = [str(point["customdata"]) for point in selection["points"]]
        before: list[str] = st.session_state.get(f"chosen {model.checksum}", [])
        if by_click:
            rest = [name for name in before if name not in taken]
            chosen = [*rest, *(name for name in taken if name not in before)]
        else:
            chosen = [n for n in masks.strengths(model.masks).index if n in taken]
        st.session_state[f"chosen {model.checksum}"] = chosen
        st.session_state["choices"] = st.session_state.get("choices", 0) + 1

    figure.update_layout(dragmode=False if by_click else "lasso")
    st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["autoScale2d"]),
        alt=alt,
        key=key,
        on_select=keep,
        selection_mode="points" if by_click else ("lasso", "box"),
    )
    saving(figure, name, alt)


@access.errors()
def choose_none(model: Bundle) -> None:
    """Choose no perturbation any more."""
    st.session_state[f"chosen {model.checksum}"] = []


@st.cache_data(max_entries=32, show_spinner=False)
def _network(
    path: str, checksum: str, names: tuple[str, ...], threshold: float
) -> networks.Network:
    return networks.network(load_bundle(path, checksum).masks, names, threshold)


def network(model: Bundle, names: Iterable[str], threshold: float) -> networks.Network:
    """`interpretation.network` of these perturbations, remembered."""
    return _network(str(model.path), model.checksum, tuple(names), threshold)


@st.cache_data(max_entries=64, show_spinner=False)
def _suggested_names(
    _model: Bundle, _collections: Mapping[str, Collection], key: str, mechanisms: tuple[int, ...]
) -> pd.DataFrame | None:
    ranked = gene_rankings.of_mechanisms(_model, list(mechanisms))
    known = precomputed(_model, ranked, _collections, enrichment.USUAL)
    return None if known is None else terms.suggested_names(known.table, list(mechanisms))


def suggested_names(model: Bundle, mechanisms: list[int]) -> pd.DataFrame | None:
    """Names from the gene sets that came with the bundle, where it has any; remembered."""
    offered = collections()
    chosen = {name: offered[name]() for name in model.collections if name in offered}
    key = f"{model.checksum} {sorted((c.name, c.checksum) for c in chosen.values())}"
    return _suggested_names(model, chosen, key, tuple(mechanisms))


# What a page shows, and what is kept of it


def record(item: Picture | Table | Text) -> None:
    """Remember what is drawn, in its order, so that the view can be kept."""
    st.session_state["drawing"].append(item)


def subject(text: str) -> None:
    """What the page is about just now: a perturbation, a composition, a gene."""
    st.session_state["subject"] = st.session_state["page"], text


def tour() -> int | None:
    """Which step of the guided start is shown, if it is."""
    place: int | None = st.session_state.get("tour")
    return place


@access.errors()
def set_tour(place: int | None) -> None:
    st.session_state["tour"] = place


@access.errors()
def close_find() -> None:
    """Take the text out of the search box at the side; a callback."""
    st.session_state["find_all"] = ""
