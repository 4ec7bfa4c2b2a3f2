"""What pages share: the chosen bundle, caches, and what widgets cannot carry.

The only user of session state, caches and the URL.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from app.batch import Batch
from samsvae_core import bundle as bundles
from samsvae_core import (
    composition,
    enrichment,
    exports,
    gene_sets,
    interpretation,
    rankings,
)
from samsvae_core import names as mechanism_names
from samsvae_core.bundle import Bundle, BundleError
from samsvae_core.composition import Composition
from samsvae_core.effects import Effects, places, whole_effects
from samsvae_core.enrichment import Enrichment, Rules
from samsvae_core.files import OutputError, sha256
from samsvae_core.gene_sets import Collection, Match
from samsvae_core.genes import measured
from samsvae_core.names import Label
from samsvae_core.partners import rank_pairs
from samsvae_core.rankings import Ranked
from samsvae_core.symbols import known_genes

MAX_PERTURBATIONS = 6
BATCHES = threading.Lock()  # who begins a test
MAX_BATCHES = 32  # of gene-set tests whose results are at hand
EFFECTS_TURN = threading.Lock()  # who composes every perturbation
MAX_EFFECTS = 3  # models whose effects are at hand
FIRST = "papalexi2021"  # what the dashboard opens on, where it is there
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:])")


def plain(name: object) -> str:
    """A name from a file, so that Markdown shows it as it is."""
    return MARKDOWN.sub(r"\\\1", str(name))


def dark() -> bool:
    return bool(st.context.theme.type == "dark")


def available() -> dict[str, Path]:
    """Bundles in the models folder, by name, the one to open on first."""
    found = bundles.list_bundles(bundles.models_folder())
    return dict(sorted(found.items(), key=lambda item: item[0] != FIRST))


def choose_bundle() -> None:
    """The picker of the sidebar; what is chosen is in the URL."""
    found = available()
    if not found:
        return
    st.sidebar.selectbox(
        "Model",
        list(found),
        key="model",
        bind="query-params",
        help="A trained model with its tables. Yours appear here when the dashboard is opened "
        "with `samsvae app FOLDER`.",
    )
    try:
        chosen = bundle()
    except BundleError:
        return  # the page says what is wrong
    n = chosen.conditions[["train", "validation", "test"]].to_numpy().sum()
    st.sidebar.caption(
        f"{chosen.title} on {n:,} cells, {len(chosen.genes):,} genes, "
        f"{len(chosen.perturbations)} {'perturbations' if chosen.model.composes else 'treatments'}"
    )


def bundle() -> Bundle:
    """The chosen bundle. Raises BundleError where there is none or it is damaged."""
    found = available()
    if not found:
        raise BundleError(
            f"There is no trained model in {bundles.models_folder()}. Train one with "
            "samsvae train DATA.h5ad --output FOLDER/NAME and open it with samsvae app FOLDER."
        )
    name = str(st.session_state.get("model"))
    path = found.get(name) or next(iter(found.values()))
    try:
        return _load(str(path), sha256(path / "manifest.json"))
    except OSError as error:
        raise BundleError(f"{path} cannot be read ({error}). Choose another model.") from error


@st.cache_resource(max_entries=3, show_spinner="Loading the model")
def _load(path: str, checksum: str) -> Bundle:
    return bundles.load(path)


def page(view: Callable[[Bundle], None]) -> None:
    """Run a view; a message made for people is shown as written, anything else surfaces."""
    try:
        view(bundle())
    except (BundleError, ValueError) as error:
        st.error(plain(error))
    footer()


def footer() -> None:
    """Which version and model made the page; tests look for it, as a page that died has none."""
    version = bundles.version("samsvae-explorer")
    parts = [f"SAMS-VAE Explorer {version}"]
    try:
        model = bundle()
        parts.append(f"model {plain(model.name)}, checksum {model.checksum[:12]}")
    except BundleError:
        pass
    st.container(key="end").caption(" · ".join(parts))


@st.cache_resource
def _lock() -> threading.Lock:
    """Torch's random state is one for all sessions; who draws, draws alone."""
    return threading.Lock()


@st.cache_data(max_entries=64, show_spinner=False)
def _compose(
    path: str,
    checksum: str,
    dosages: tuple[tuple[str, float], ...],
    without: tuple[int, ...],
    n_samples: int,
) -> Composition:
    with _lock():
        return composition.compose(_load(path, checksum), dict(dosages), without, n_samples)


def composed(
    model: Bundle, dosages: dict[str, float], without: list[int], n_samples: int = 64
) -> Composition:
    """`compose`, remembered by bundle, dosages, mechanisms left out and draws."""
    key = tuple(sorted(dosages.items()))
    return _compose(str(model.path), model.checksum, key, tuple(sorted(without)), n_samples)


def collections() -> Mapping[str, Callable[[], Collection]]:
    """Every collection one may choose, by name: shipped, of Enrichr kept on disk, one's own."""
    shipped = {name: partial(gene_sets.load_collection, name) for name in gene_sets.collections()}
    kept = {name: partial(gene_sets.enrichr, name) for name in gene_sets.cached_enrichr()}
    own = {name: partial(_itself, own) for name, own in _own_collections().items()}
    return shipped | kept | own


def _itself(collection: Collection) -> Collection:
    return collection


def _own_collections() -> dict[str, Collection]:
    found: dict[str, Collection] = st.session_state.setdefault("own_collections", {})
    return found


def add_collection(content: bytes, name: str) -> Collection:
    """A GMT file a person brought, for this session. ValueError for a name that is taken."""
    added = gene_sets.parse_gmt(content, re.sub(r"\.gmt(\.gz)?$", "", name, flags=re.IGNORECASE))
    if added.name in gene_sets.collections():
        raise ValueError(f"{added.name} is the name of a shipped collection; rename the file.")
    if added.name in gene_sets.cached_enrichr():
        raise ValueError(f"{added.name} is the name of an Enrichr library kept here; rename it.")
    if _own_collections().get(added.name) != added:
        _own_collections()[added.name] = added
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
    model = _load(path, checksum)
    return interpretation.loading_curves(model.model, model.reference, model.genes, [k])


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
    fetched = gene_sets.enrichr(name, refresh=name in gene_sets.cached_enrichr())
    _choose_collection(name)
    return fetched


@st.cache_resource(max_entries=32, show_spinner=False)
def _matched(_collection: Collection, checksum: str, genes: tuple[str, ...]) -> Match:
    return gene_sets.match(_collection, genes)


def matched(collection: Collection, genes: Iterable[str]) -> Match:
    """A collection in the symbols of the model."""
    return _matched(collection, f"{collection.name} {collection.checksum}", tuple(genes))


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
    return enrichment.join(parts)


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
        gathered = rankings.gathered(model, ranked, collections.values(), result, rules)
        return exports.files(gathered)

    return made


def initial_composition(
    model: Bundle, mechanisms: list[int], most: int = MAX_PERTURBATIONS
) -> None:
    """Put the composition of a link that was followed, or that of before, into the widgets.

    The form is c=STAT1:1,SMAD4:0.5&off=0,3. Names this model does not know, from a link or from
    the model looked at before, are said and left out, and so are names beyond the `most` it takes.
    Mechanisms of the model before are none of this one.
    """
    known = list(model.perturbations.index)
    link = st.query_params.get("c", "")
    asked = link, st.query_params.get("off", "")
    followed = link != "" and asked != st.session_state.get("compose_link")
    if st.session_state.get("compose_model", model.checksum) != model.checksum and not followed:
        st.session_state["compose_off"] = []
    st.session_state["compose_model"] = model.checksum
    if followed or "compose_names" not in st.session_state:
        dosages = read_link(link)
        st.session_state["compose_names"] = list(dosages)
        for name, dose in dosages.items():
            st.session_state[f"dose {name}"] = dose
        off = st.query_params.get("off", "").split(",")
        st.session_state["compose_off"] = [int(k) for k in off if k.isdecimal()]
    names = st.session_state["compose_names"]
    unknown = [name for name in names if name not in known]
    taken = [name for name in names if name in known]
    kept = taken[:most]
    off = [k for k in st.session_state.get("compose_off", []) if k in mechanisms]
    if unknown:
        st.info(f"Not in this model, left out: {plain(', '.join(unknown))}.")
    if kept != taken:
        beyond = plain(", ".join(taken[most:]))
        st.info(f"This model takes {most} at most, so left out: {beyond}.")
    if kept != names:
        st.session_state["compose_names"] = kept
    if off != st.session_state.get("compose_off"):
        st.session_state["compose_off"] = off


def initial_gene(model: Bundle, first: str) -> None:
    """Put the gene of a link that was followed, or that of before, into the widget, or `first`.

    The form is g=STAT1; other names and ids of the gene do. One this model does not have is said.
    """
    link = st.query_params.get("g", "")
    if link not in ("", st.session_state.get("gene_link")):
        found, _ = known_genes([link], model.genes)
        try:
            st.session_state["gene"] = measured(model, found[0] if found else link)
        except ValueError as error:
            st.info(plain(f"{error} Shown is {first}."))
            st.session_state["gene"] = first
    if st.session_state.get("gene") not in model.genes:
        st.session_state["gene"] = first


def keep_gene(gene: str) -> None:
    """Put the gene into the URL."""
    st.session_state["gene_link"] = gene
    _set_query("g", gene)


def initial_perturbation(options: list[str], first: str) -> None:
    """Put the perturbation of a link that was followed, or that of before, into the widget.

    The form is p=STAT1; other names and ids of the gene do. One this model does not have is said,
    and `first` shown.
    """
    link = st.query_params.get("p", "")
    if link not in ("", st.session_state.get("perturbation_link")):
        found = [link] if link in options else known_genes([link], options)[0]
        if not found:
            st.info(plain(f"{composition.unknown(link, options)} Shown is {first}."))
        st.session_state["perturbation"] = found[0] if found else first
    if st.session_state.get("perturbation") not in options:
        st.session_state["perturbation"] = first


def keep_perturbation(name: str) -> None:
    """Put the perturbation into the URL."""
    st.session_state["perturbation_link"] = name
    _set_query("p", name)


def initial_highlight(options: list[str], first: list[str]) -> None:
    """Put the conditions of a link that was followed, or those of before, into the widget.

    The form is highlight=STAT1,A%2BB; without any, `first`. Names that are none of the options are
    said and left out, and so are those beyond the MAX_PERTURBATIONS that can be told apart.
    """
    link = st.query_params.get("highlight", "")
    if link not in ("", st.session_state.get("highlight_link")):
        names = list(dict.fromkeys(unquote(name) for name in link.split(",") if name))
        unknown = [name for name in names if name not in options]
        if unknown:
            st.info(f"Not among these cells, left out: {plain(', '.join(unknown))}.")
        beyond = [name for name in names if name in options][MAX_PERTURBATIONS:]
        if beyond:
            most = f"At most {MAX_PERTURBATIONS} can be told apart"
            st.info(f"{most}, so left out: {plain(', '.join(beyond))}.")
        st.session_state["highlight"] = names
    before = st.session_state.get("highlight", first)
    kept = [name for name in before if name in options][:MAX_PERTURBATIONS]
    st.session_state["highlight"] = kept if kept or not before else first


def keep_highlight(names: list[str]) -> None:
    """Put the conditions into the URL."""
    link = ",".join(quote(name, safe="") for name in names)
    st.session_state["highlight_link"] = link
    _set_query("highlight", link)


def go_to_perturbation(name: str) -> None:
    """Show another one, from code; the widget picks it up on the next run."""
    st.query_params["p"] = name


@st.cache_data(max_entries=32, show_spinner="Composing every pair")
def _ranked_pairs(
    path: str, checksum: str, genes: tuple[str, ...], given: str | None, unseen: bool, n_best: int
) -> pd.DataFrame:
    with _lock():
        return rank_pairs(_load(path, checksum), genes, given, unseen, n_best)


def ranked_pairs(
    model: Bundle, genes: tuple[str, ...], given: str | None, unseen: bool, n_best: int
) -> pd.DataFrame:
    """`rank_pairs`, remembered."""
    return _ranked_pairs(str(model.path), model.checksum, genes, given, unseen, n_best)


def usable_sets(collection: Collection, genes: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The sets of a collection with 5 to 500 measured genes, in the symbols of the model."""
    return gene_sets.usable_sets(matched(collection, genes).collection, genes)


def initial_mechanism(options: list[str]) -> None:
    """Put the mechanism of a link that was followed, or that of before, into the widget.

    The form is m=M3, whatever people call it; a link to none of the options is left aside.
    """
    link = st.query_params.get("m", "")
    if link in options and link != st.session_state.get("mechanism_link"):
        st.session_state["m"] = link
    if st.session_state.get("m") not in options:
        st.session_state["m"] = options[0]


def keep_mechanism(name: str) -> None:
    """Put the mechanism into the URL."""
    st.session_state["mechanism_link"] = name
    _set_query("m", name)


def as_link(dosages: dict[str, float]) -> str:
    """A composition as a value of the URL; names may hold commas and colons."""
    return ",".join(f"{quote(name, safe='')}:{dose:g}" for name, dose in dosages.items())


def read_link(link: str) -> dict[str, float]:
    """What `as_link` wrote, or a person: a name without a dosage has dosage 1."""
    parts = [part.partition(":") for part in link.split(",")]
    return {unquote(name): _dose(dose or "1") for name, _, dose in parts if name}


def _dose(value: str) -> float:
    try:
        return min(2.0, max(0.0, float(value)))
    except ValueError:
        return 1.0


def dosage(name: str) -> float:
    """The slider of one perturbation's dosage; its value outlives a change of page."""
    st.session_state.setdefault(f"dose {name}", 1.0)
    return float(
        st.slider(
            f"Dosage of {plain(name)}",
            0.0,
            2.0,
            step=0.05,
            key=f"dose {name}",
            persist_state="session",
            help="1 is the perturbation as measured. Other dosages scale its latent shift: an "
            "extrapolation, unless the data have such dosages.",
        )
    )


def keep_composition(dosages: dict[str, float], without: list[int]) -> None:
    """Put the composition into the URL, so that the page's address reproduces it."""
    link, off = as_link(dosages), ",".join(map(str, sorted(without)))
    st.session_state["compose_link"] = link, off
    _set_query("c", link)
    _set_query("off", off)


def compared(
    model: Bundle, mechanisms: list[int], most: int = MAX_PERTURBATIONS
) -> tuple[dict[str, float], list[int]] | None:
    """The composition to compare with, of a link that was followed or of before; None without one.

    The form is b=STAT1:1&boff=0, as c and off. One that this model does not know in full, or cannot
    compose, is said and not used; mechanisms left out are those of the model it was kept in.
    """
    link, off = st.query_params.get("b", ""), st.query_params.get("boff", "")
    if link and (link, off) != st.session_state.get("compared", ("", "", ""))[:2]:
        st.session_state["compared"] = link, off, model.checksum
    link, off, checksum = st.session_state.get("compared", ("", "", ""))
    dosages = read_link(link)
    unknown = [name for name in dosages if name not in model.perturbations.index]
    if unknown or len(dosages) > most:
        why = f"it does not know {', '.join(unknown)}" if unknown else f"it takes {most} at most"
        st.info(f"What was kept to compare with cannot be composed in this model: {plain(why)}.")
    if unknown or not 0 < len(dosages) <= most:
        return None
    off = off if checksum == model.checksum else ""
    _set_query("b", link)
    _set_query("boff", off)
    return dosages, [int(k) for k in off.split(",") if k.isdecimal() and int(k) in mechanisms]


def compare_with(model: Bundle, dosages: dict[str, float], without: list[int]) -> None:
    """Keep this composition to compare others with; nothing, to compare no more."""
    link, off = as_link(dosages), ",".join(map(str, sorted(without)))
    st.session_state["compared"] = link, off, model.checksum
    _set_query("b", link)
    _set_query("boff", off)


def difference(model: Bundle, first: Composition, second: Composition) -> pd.DataFrame:
    with _lock():
        return composition.compare(model, first, second)


def _set_query(key: str, value: str) -> None:
    if value and st.query_params.get(key) != value:
        st.query_params[key] = value
    elif not value and key in st.query_params:
        del st.query_params[key]


def clicked(event: object) -> str | None:
    """The customdata of the point a person clicked in a Plotly chart."""
    points = getattr(event, "selection", {}).get("points", [])
    data = points[0].get("customdata") if points else None
    return str(data[0] if isinstance(data, (list, tuple)) else data) if data else None


def downloads(table: pd.DataFrame, name: str) -> None:
    """CSV and TSV of exactly the table that is shown."""
    with st.container(horizontal=True):
        for kind, separator in (("CSV", ","), ("TSV", "\t")):
            st.download_button(
                kind,
                partial(_text, table, separator),  # made when it is asked for
                f"{name}.{kind.lower()}",
                key=f"{name} {kind}",
                icon=":material/download:",
                on_click="ignore",
                type="tertiary",
            )


def _text(table: pd.DataFrame, separator: str) -> bytes:
    return table.to_csv(index=False, sep=separator).encode()


def chart(figure: go.Figure, name: str, alt: str, clickable: bool = False) -> Any:
    """A figure in its own colours, to be saved as SVG under a telling name."""
    return st.plotly_chart(
        figure,
        theme=None,
        config=_buttons(name, ["select2d", "lasso2d", "autoScale2d"]),
        alt=alt,
        key=name,
        on_select="rerun" if clickable else "ignore",
        selection_mode="points",
    )


def _buttons(name: str, without: list[str]) -> dict[str, Any]:
    saved = {"format": "svg", "filename": name, "scale": 2}
    return {"toImageButtonOptions": saved, "displaylogo": False, "modeBarButtonsToRemove": without}


def taken(model: Bundle) -> list[int]:
    """Which cells of the sample were lassoed last, by their place in it."""
    kept: list[int] = st.session_state.get(f"cells of {model.checksum}", [])
    return kept


def lasso(model: Bundle, figure: go.Figure, name: str, alt: str) -> None:
    """A map of cells, each with its place as customdata, from which `taken` takes them.

    Plotly forgets a selection when the figure is drawn anew; `taken` keeps it until there is
    another, or `release`.
    """
    key = f"{name} {st.session_state.get('lassos', 0)}"

    def keep() -> None:
        points = st.session_state[key]["selection"]["points"]
        places = sorted(int(point["customdata"]) for point in points)
        st.session_state[f"cells of {model.checksum}"] = places

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


def release(model: Bundle) -> None:
    """Take no cell any more, and draw maps anew, without the outline of the lasso."""
    st.session_state[f"cells of {model.checksum}"] = []
    st.session_state["lassos"] = st.session_state.get("lassos", 0) + 1


def start_composition(names: list[str]) -> None:
    """Begin a composition from code; the widgets pick it up on the next run."""
    st.query_params["c"] = as_link(dict.fromkeys(names, 1.0))
