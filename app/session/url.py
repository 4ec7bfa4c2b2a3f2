"""What the address of a page holds beyond its bound widgets: a link shows the same to anyone.

The only user of the URL; with state.py and shelf.py the only one of session state. A value that is
a page's first choice stays out of the address, so that the browser's back button finds its way.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
import zlib
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn
from urllib.parse import parse_qs, quote, unquote

import numpy as np
import streamlit as st
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.server import uploads
from app.server.uploads import Reading
from app.session import access
from samsvae_core.analysis import support
from samsvae_core.analysis.gene_card import measured
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.cells import DataError
from samsvae_core.genesets.symbols import known_genes

MAX_PERTURBATIONS = 6
MAX_CHOSEN = 12  # perturbations compared at once
MAX_DOSAGE = 2.0
REPORT = "report"  # the page
ROWS = "part_of_rows"
REST = "rest"  # of mechanisms: those that none of the chosen perturbations uses
CONTROL, SELECTED = "control cells", "cells selected on Cells"  # where a composition starts
LONGEST = 8192  # characters of a selection of cells in an address
MOST_STEPS = 100  # compositions that undo goes back
# Where Streamlit makes something of a text after Markdown was read, so that a backslash is no help:
# links, icons and emoji, arrows and dashes.
MADE_OF = re.compile(
    r"(?<=http)(?=\\?://)|(?<=https)(?=\\?://)|(?<=www)(?=\\?\.)|(?=@)"
    r"|(?<=:)(?=[\w+-][\w/+\\-]*:)"
    r"|(?<=[<~])(?=[=-])|(?<=>)(?==)|(?<=-)(?=\\?>)|(?<=\s-)(?=-\s)",
    re.IGNORECASE,
)
SEVERAL, APART = frozenset({"control"}), "\n"  # parameters that may be repeated, and between them
NAMED = {"key": "column", "top": "number of genes", "size": "size factor"}  # of parameters
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&])")


def plain(name: object) -> str:
    """A name from a file, so that Markdown shows it as it is."""
    return MARKDOWN.sub(r"\\\1", parted(str(name)))


def parted(text: str) -> str:
    """Markdown from a file without links, icons and arrows that are not written as such.

    A sign that is not seen (U+2060) parts what would become one.
    """
    return MADE_OF.sub("\u2060", text)


# Reading and writing the address


def arrive(page: str) -> None:
    """Tell which page is run, before it is, and read the address where it is somebody's wish.

    That is so where a link was followed, a page opened, or the browser's back or forward button
    pressed. While a person stays on the page, its widgets hold what they chose and the address is
    only written: what the browser sends of it with a click may be older than the click.
    """
    whole = st.session_state.get("sent", False) or went_back()
    if whole or st.session_state.get("linked", False) or st.session_state.get("page") != page:
        st.session_state["link"] = Link(
            {key: _in_address(key) for key in st.query_params}, whole, set()
        )
    for flag in ("sent", "linked"):
        st.session_state.pop(flag, None)
    if st.session_state.get("keeping") != page:
        st.session_state.pop("keeping", None)  # somebody went elsewhere
    if st.session_state.pop("told", False):
        st.session_state["tell"] = True  # the last run's address may have met a newer one
    st.session_state["page"] = page


def went_back() -> bool:
    """Whether the browser's back or forward button led here: Streamlit tells it to a run alone."""
    context = get_script_run_ctx()
    return context is not None and context.is_history_navigation


class Link(NamedTuple):
    """The query of the address as it was when somebody came by it."""

    query: dict[str, str]
    whole: bool  # what is not in it is a first choice; else it stays as it was on the page
    read: set[str]  # parameters that a page has taken from it: each is taken once


def followed(*keys: str) -> dict[str, str] | None:
    """The values of these parameters in a link, once; None where no link asks for any of them.

    Where a whole view is asked for, as by the way back, a parameter that is not there has the value
    "": the page's first choice.
    """
    link: Link = st.session_state["link"]
    if link.read.issuperset(keys):
        return None
    link.read.update(keys)
    asked = {key: link.query.get(key, "") for key in keys}
    return asked if link.whole or any(asked.values()) else None


def write(**values: str) -> None:
    """Put values into the address; empty ones leave it. One step for the back button."""
    changed = {k: v for k, v in values.items() if _in_address(k) != v}
    if changed:  # an empty list is no parameter, and takes no message of its own as del does
        st.query_params.update({k: v.split(APART) if v else [] for k, v in changed.items()})
        st.session_state["told"] = True


def _in_address(key: str) -> str:
    """The value of a parameter; of one that may be there several times, all of them."""
    values = st.query_params.get_all(key)
    return APART.join(values if key in SEVERAL else values[-1:])


def put(key: str, value: object) -> None:
    """Give a widget this value, before it is drawn, unless it has it.

    The browser shows a value that is given in place of what a person chose meanwhile: given at
    every run, it would take their next click back.
    """
    if key not in st.session_state or st.session_state[key] != value:
        st.session_state[key] = value


def go(page: str, query: Mapping[str, str | list[str]], whole: bool = False) -> NoReturn:
    """Turn to a page with this query, as a link does; it may be the page that is run.

    The model stays: it is no part of the query, for Streamlit lets no code set a bound parameter.
    With `whole`, as for a kept view, what the query does not name is the page's first choice.
    """
    st.session_state["linked"] = True
    if whole:
        forget()
        st.session_state["sent"] = True
    st.switch_page(f"views/{page}.py", query_params=query)


def link(
    page: str, label: str, icon: str, query: Mapping[str, str | list[str]] | None = None
) -> None:
    """A link to a page within the dashboard, with this query.

    It names the model on the screen, unless the query names another: a link that is opened in a new
    tab, or copied, knows nothing of what was chosen in this one. The first model needs no name: the
    address would lose it at once, and the way back would have a step that leads nowhere.
    """
    model = st.session_state.get("model")
    shown = {} if model in (None, st.session_state.get("model first")) else {"model": str(model)}
    st.page_link(f"views/{page}.py", label=label, icon=icon, query_params=shown | dict(query or {}))


def follow(key: str, options: Sequence[str]) -> None:
    """Put what a link asks for into a bound widget that stands beside every page.

    Streamlit lets the value that such a widget has go before the address, and leaves the address
    as it is: given to the widget, the value is in both.
    """
    st.session_state[f"{key} first"] = options[0]
    if asked := followed(key):
        value = asked[key] if asked[key] in options else st.session_state.get(key)
        if value is not None:
            st.session_state[key] = value


def unknown_option(key: str, options: Sequence[str], what: str) -> None:
    """Say that a bound widget's value in the address is none of its options, before it is drawn."""
    wrong = [value for value in st.query_params.get_all(key) if value not in options]
    if wrong:
        st.info(f"The address asks for the {what} {plain(', '.join(wrong))}, which is not here.")


def as_address(page: str, query: Mapping[str, object]) -> str:
    """A page with its query, as in the address, without the server."""
    pairs = [
        f"{quote(key, safe='')}={quote(str(value), safe='')}"
        for key, values in query.items()
        for value in (values if isinstance(values, list) else [values])
    ]
    return page + ("?" + "&".join(pairs) if pairs else "")


class Where(NamedTuple):
    """A page, and its query in the address."""

    page: str
    query: dict[str, list[str]]


def read_address(text: str) -> Where:
    """What `as_address` wrote."""
    page, _, query = text.partition("?")
    return Where(page, parse_qs(query, keep_blank_values=True))


def pressed(parameter: str, now: str | None, options: Container[str]) -> str | None:
    """What was clicked last in a figure or a table: just now, by a link, or before.

    `now` is what the figure tells: it goes on telling of a click until there is another. What is
    none of the options, those of another model, is none.
    """
    key = f"pressed {parameter} {st.session_state.get('model')}"
    if (asked := followed(parameter)) is not None:
        st.session_state[key] = asked[parameter]
        if asked[parameter] and asked[parameter] not in options:
            st.info(f"The address asks for {plain(asked[parameter])}, which is not here.")
    if now is not None and now != st.session_state.get(f"{key} now"):
        st.session_state[key] = now
    st.session_state[f"{key} now"] = now
    chosen = st.session_state.get(key, "")
    chosen = chosen if chosen in options else ""
    write(**{parameter: chosen})
    return chosen or None


def pressed_before(parameter: str) -> str:
    """What `pressed` will tell where there is no new click."""
    link: Link = st.session_state["link"]
    if parameter not in link.read and (link.whole or parameter in link.query):
        return link.query.get(parameter, "")
    key = f"pressed {parameter} {st.session_state.get('model')}"
    return str(st.session_state.get(key, ""))


# One of several: a gene, a perturbation, a mechanism


class One(NamedTuple):
    """A choice of one: its parameter in the address, and its widget's key."""

    parameter: str
    key: str


GENE, PERTURBATION, MECHANISM = One("g", "gene"), One("p", "perturbation"), One("m", "m")


def initial(one: One, options: Sequence[str], first: str, named: Callable[[str], str]) -> None:
    """Put the value of a link that was followed, or that of before, into the widget, or `first`.

    `named` finds the option that a link means, or raises ValueError with what to say.
    """
    if (asked := followed(one.parameter)) is not None:
        link = asked[one.parameter]
        try:
            st.session_state[one.key] = named(link) if link else first
        except ValueError as error:
            st.info(plain(f"{error} Shown is {first}."))
            st.session_state[one.key] = first
    if st.session_state.get(one.key) not in options:
        st.session_state[one.key] = first


def keep(one: One, value: str, first: str) -> None:
    """Put the choice into the address, unless it is the page's first."""
    write(**{one.parameter: "" if value == first else value})


def initial_gene(model: Bundle, first: str) -> None:
    """The form is g=STAT1; other names and ids of the gene do. One not in the model is said."""

    def named(link: str) -> str:
        found, _ = known_genes([link], model.genes, model.genes_by_id)
        return measured(model, found[0] if found else link)

    initial(GENE, model.genes, first, named)


def initial_perturbation(options: list[str], first: str) -> None:
    """The form is p=STAT1; other names and ids of the gene do. One not in the model is said."""

    def named(link: str) -> str:
        found = [link] if link in options else known_genes([link], options)[0]
        if not found:
            raise ValueError(support.unknown(link, options))
        return found[0]

    initial(PERTURBATION, options, first, named)


def initial_mechanism(options: list[str]) -> None:
    """The form is m=M3, whatever people call it. One that is none of the options is said."""

    def named(link: str) -> str:
        if link not in options:
            raise ValueError(f"{link} is no mechanism in use in this model.")
        return link

    model = st.session_state.get("model")  # numbers mean something within one model only
    if st.session_state.get("m of", model) != model:
        st.session_state.pop(MECHANISM.key, None)
    st.session_state["m of"] = model
    initial(MECHANISM, options, options[0], named)


@access.errors()
def choose(one: One, value: str) -> None:
    """Show another one; a callback."""
    st.session_state[one.key] = value


# How a data file is read, on the page Train


def open_file(data: str, *parameters: str) -> None:
    """Begin with the choices for a data file: those of a link that was followed, or its own.

    Each file has choices of its own. What was chosen for another file is not taken over.
    """
    st.session_state["file"], st.session_state["chosen for it"] = data, {}
    st.session_state["file link"] = followed(*parameters) or {}
    for parameter in parameters:
        if st.session_state["file link"] and not st.session_state["file link"][parameter]:
            st.session_state.pop(f"{parameter} of {data}", None)


def suggested(
    parameter: str,
    first: Any,
    read: Callable[[str], Any] = str,
    fits: Callable[[Any], bool] = lambda _: True,
) -> str:
    """The key of a widget for a choice of the file that is open, with its value put in before.

    That is what a link asks for (`read` makes the value of its text, or raises ValueError), or what
    was chosen before for this file, or `first`, which is suggested. What does not fit, such as a
    label of another column, is not taken; a suggestion that was not touched follows a new one.
    """
    key = f"{parameter} of {st.session_state['file']}"
    before = st.session_state.get(f"{key} first", first)
    if link := st.session_state["file link"].get(parameter, ""):
        try:
            value = read(link)
        except ValueError:
            value = None
        if value is None or not fits(value):
            asked = plain(link.replace(APART, ", "))
            st.info(
                f"The address asks for the {NAMED.get(parameter, parameter)} {asked}, which is"
                " not here."
            )
            value = first
        st.session_state[key] = value
    else:
        value = st.session_state.get(key, before)
        if value == before or not fits(value):
            st.session_state[key] = first
    st.session_state[f"{key} first"] = first
    return key


def chosen(parameter: str, text: str) -> None:
    """Note the text that a choice has in the address; "" for a suggestion."""
    st.session_state["chosen for it"][parameter] = text


def keep_choices() -> None:
    """Put the choices for the file into the address, in one step."""
    write(**st.session_state["chosen for it"])


def note_reading(reading: Reading) -> None:
    """What the page Data shows is what the page Train starts from."""
    st.session_state["reading"] = reading.as_query()


def reading() -> Reading | None:
    """The data to train on: of a link, or as the page Data showed them last; None before that.

    The latter is written as on=QUERY, so that a reload finds it again: the parameters of the page
    Data itself are bound to its widgets for as long as one comes from there.
    """
    query: Mapping[str, str | list[str]]
    query = {key: st.query_params.get_all(key) for key in uploads.PARAMETERS}
    if not query["data"] and (kept := st.query_params.get("on")):
        query = parse_qs(kept)
    elif not query["data"]:
        query = st.session_state.get("reading", {})
        write(on=as_address("", query).removeprefix("?"))
    found = Reading.from_query(query)
    if not found.data:
        return None
    top = query.get("top") or ["0"]
    if (asked := top if isinstance(top, str) else top[-1]) != str(found.top_genes):
        st.info(f"The address asks for {plain(asked)} most variable genes; all are kept instead.")
    return found


# A list of genes, kept by its id


def gene_list(text: str) -> str:
    """The id of the list of genes to keep: of a text, else of a link that was followed; or "".

    The form is genes=ID. Raises DataError for a text that is no list.
    """
    key = f"linked genes of {st.session_state['file']}"
    if st.session_state["file link"]:
        st.session_state[key] = st.session_state["file link"].get("genes", "")
    linked = str(st.session_state.get(key, ""))
    if text.strip():
        linked = uploads.save_genes(text)
    elif linked:
        try:
            uploads.resolve(linked, ".txt")
        except DataError:
            st.info(f"The list of genes {plain(linked)} is not here any more; all are kept.")
            linked = ""
    chosen("genes", linked)
    return linked


def genes_key() -> str:
    """The key of the box for genes of the file that is open."""
    return f"data genes of {st.session_state['file']}"


@access.errors()
def forget_genes() -> None:
    """Keep all genes; a callback."""
    st.session_state[f"linked genes of {st.session_state['file']}"] = ""
    st.session_state[genes_key()] = ""


# Several conditions, of a map of cells or of perturbations


def initial_names(
    parameter: str, options: list[str], first: list[str], most: int = MAX_PERTURBATIONS
) -> None:
    """Put the names of a link that was followed, or those of before, into the widget.

    The form is highlight=STAT1,A%2BB, `parameter` being the widget's key too; without any, `first`.
    Names that are none of the options are said and left out, and so are those beyond the `most`.
    """
    if (asked := followed(parameter)) is not None:
        link = asked[parameter]
        names = list(dict.fromkeys(unquote(name) for name in link.split(",") if name))
        unknown = [name for name in names if name not in options]
        if unknown:
            st.info(f"Not in this model, left out: {plain(', '.join(unknown))}.")
        beyond = [name for name in names if name in options][most:]
        if beyond:
            said = f"At most {most} can be told apart"
            st.info(f"{said}, so left out: {plain(', '.join(beyond))}.")
        st.session_state[parameter] = names if link else first
    before = st.session_state.get(parameter, first)
    kept = [name for name in before if name in options][:most]
    put(parameter, kept if kept or not before else first)


def keep_names(parameter: str, names: list[str], first: list[str]) -> None:
    """Put the names into the address, unless they are the page's first; none at all is a comma."""
    link = ",".join(quote(name, safe="") for name in names) or ("," if first else "")
    write(**{parameter: "" if names == first else link})


def chosen_names(model: Bundle) -> tuple[str, list[str]]:
    """Perturbations to compare, of a link that was followed or of before, and the widget's key.

    The form is chosen=STAT1,A%2BB, and the address keeps it. Each model has its own. Names it does
    not know are said and left out, and so are those beyond MAX_CHOSEN.
    """
    key = f"chosen {model.checksum}"
    if (asked := followed("chosen")) is not None:
        names = list(dict.fromkeys(unquote(name) for name in asked["chosen"].split(",") if name))
        unknown = [name for name in names if name not in model.perturbations.index]
        if unknown:
            st.info(f"Not in this model, left out: {plain(', '.join(unknown))}.")
        st.session_state[key] = [name for name in names if name not in unknown]
    names = st.session_state.get(key, [])
    if beyond := names[MAX_CHOSEN:]:
        st.info(
            f"At most {MAX_CHOSEN} can be compared: of {len(names)} the first {MAX_CHOSEN} were "
            f"kept. Left out: {plain(', '.join(beyond))}."
        )
    put(key, names := names[:MAX_CHOSEN])
    write(chosen=",".join(quote(name, safe="") for name in names))
    return key, names


def part(n: int, label: str) -> int:
    """Which of n parts of a long map is shown, from 1.

    The form is part_of_rows=2. It was part=2 once, which such an address keeps: Compose has a bound
    widget of that name, and Streamlit lets no page write what the page before has bound.
    """
    if (asked := followed(ROWS, "part")) is not None:
        number = asked[ROWS] or asked["part"]
        st.session_state[ROWS] = int(number) if re.fullmatch(r"\d{1,4}", number) else 1
    before = st.session_state.get(ROWS, 1)
    put(ROWS, before if 1 <= before <= n else 1)
    chosen = int(st.number_input(label, 1, n, key=ROWS, persist_state="session"))
    first = chosen == 1 and "part" not in st.query_params
    write(**{ROWS: "" if first else str(chosen)})
    return chosen


# Cells taken from a map


def taken(model: Bundle) -> list[int]:
    """Which cells of the sample are selected, by their place in it: of a link, or lassoed last."""
    key = f"cells of {model.checksum}"
    if (asked := followed("cells")) is not None:
        try:
            st.session_state[key] = cells_of(asked["cells"], len(model.cells))
        except ValueError as error:
            st.info(str(error))
    kept: list[int] = st.session_state.get(key, [])
    return kept


def take(model: Bundle, places: list[int]) -> None:
    st.session_state[f"cells of {model.checksum}"] = places


def as_code(places: Sequence[int], n_cells: int) -> str:
    """A selection among `n_cells` as a short text for an address."""
    if not len(places):
        return ""
    inside = np.zeros(n_cells, bool)
    inside[list(places)] = True
    return base64.urlsafe_b64encode(zlib.compress(np.packbits(inside).tobytes(), 9)).decode()


def cells_of(code: str, n_cells: int) -> list[int]:
    """What `as_code` wrote; raises ValueError for anything else."""
    if not code:
        return []
    size = (n_cells + 7) // 8
    try:
        packed = base64.b64decode(code[:LONGEST].encode(), altchars=b"-_", validate=True)
        content = zlib.decompressobj().decompress(packed, size + 1)
    except (ValueError, binascii.Error, zlib.error):
        content = b""
    if len(content) != size:
        raise ValueError("The cells that this address names are none of this model: left out.")
    inside = np.unpackbits(np.frombuffer(content, np.uint8))[:n_cells]
    return [int(place) for place in np.flatnonzero(inside)]


# Compositions


class Mix(NamedTuple):
    """What is composed, as an address holds it: c=STAT1:1,SMAD4:0.5&off=0,rest&from=STAT1."""

    c: str = ""
    off: str = ""
    start: str = ""

    @property
    def dosages(self) -> dict[str, float]:
        return read_link(self.c)


def as_link(dosages: Mapping[str, float]) -> str:
    """A composition as a value of the URL; names may hold commas and colons."""
    return ",".join(f"{quote(name, safe='')}:{dose:g}" for name, dose in dosages.items())


def read_link(link: str) -> dict[str, float]:
    """What `as_link` wrote, or a person: a name without a dosage has dosage 1."""
    parts = [part.partition(":") for part in link.split(",")]
    return {unquote(name): _dose(dose or "1") for name, _, dose in parts if name}


def _dose(value: str) -> float:
    try:
        dose = float(value)
    except ValueError:
        return 1.0
    return 1.0 if np.isnan(dose) else min(MAX_DOSAGE, max(0.0, dose))


def say_changed(link: str) -> None:
    """Say which dosages of a link are no number or out of range, and were not taken as given."""
    changed = []
    for part in link.split(","):
        name, _, asked = part.partition(":")
        try:
            kept = not asked or 0 <= float(asked) <= MAX_DOSAGE
        except ValueError:
            kept = False
        if name and not kept:
            changed.append(f"{unquote(name)}:{asked}")
    if changed:
        st.info(
            f"The address asks for {plain(', '.join(changed))}. Dosages run from 0 to "
            f"{MAX_DOSAGE:g}: the nearest was taken, or 1 for what is no number."
        )


def read_off(link: str) -> set[int | str]:
    """Mechanisms taken out: 0,3,5-9,rest."""
    found: set[int | str] = set()
    for part in link.split(","):
        if part == REST:
            found.add(REST)
        elif match := re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            found |= set(range(first, last + 1))
    return found


def as_off(off: set[int | str]) -> str:
    """What `read_off` reads, runs of three or more as ranges."""
    numbers = sorted(k for k in off if isinstance(k, int))
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        ks = [k for _, k in run]
        parts += [f"{ks[0]}-{ks[-1]}"] if len(ks) > 2 else map(str, ks)
    return ",".join([*parts, *([REST] if REST in off else [])])


def show_mix(mix: Mix) -> None:
    """Put a composition into the widgets, before they are drawn."""
    dosages = mix.dosages
    st.session_state["compose_names"] = list(dosages)
    for name, dose in dosages.items():
        set_dosage(name, dose, ("slider", "box"))
    st.session_state["compose_off"] = read_off(mix.off)
    st.session_state["compose_from"] = mix.start or CONTROL


def initial_mix(model: Bundle, most: int = MAX_PERTURBATIONS) -> None:
    """Put the composition of a link that was followed, or that of before, into the widgets.

    Names this model does not know, from a link or from the model looked at before, are said and
    left out, and so are names beyond the `most` it takes. Mechanisms left out and cells to start
    from are those of one model.
    """
    known = [str(name) for name in model.perturbations.index]
    asked = followed("c", "off", "from")
    if asked is not None:
        show_mix(Mix(asked["c"], asked["off"], asked["from"]))
        say_changed(asked["c"])
    elif "compose_names" not in st.session_state:
        show_mix(Mix())
    elif st.session_state.get("compose_model", model.checksum) != model.checksum:
        st.session_state["compose_off"], st.session_state["compose_from"] = set(), CONTROL
        st.session_state.pop("steps", None)
    st.session_state["compose_model"] = model.checksum
    names = st.session_state["compose_names"]
    unknown = [name for name in names if name not in known]
    found = [name for name in names if name in known]
    if unknown:
        st.info(f"Not in this model, left out: {plain(', '.join(unknown))}.")
    if len(found) > most:
        beyond = plain(", ".join(found[most:]))
        st.info(f"This model takes {most} at most, so left out: {beyond}.")
    if found[:most] != names:
        st.session_state["compose_names"] = found[:most]


class Dosage(NamedTuple):
    """The dosage of a perturbation, and how often each of its two widgets was made anew."""

    value: float = 1.0
    slider: int = 0
    box: int = 0


def dosages_set() -> dict[str, Dosage]:
    """Of every perturbation that was composed in this session."""
    found: dict[str, Dosage] = st.session_state.setdefault("dosages", {})
    return found


def set_dosage(name: str, value: float, anew: Iterable[str]) -> None:
    """Set a dosage; the widgets in `anew` show another one, and are made anew with it.

    A widget that exists is never given a value: the browser would show it in place of what a person
    chose meanwhile, or send back the one before, which looks like a choice.
    """
    known = dosages_set().get(name, Dosage())
    value = round(value, 6)
    if value != known.value:
        made = {widget: getattr(known, widget) + 1 for widget in anew}
        dosages_set()[name] = known._replace(value=value, **made)


def dosage(name: str) -> float:
    """The slider of one perturbation's dosage, and the box for its number beside it."""
    known = dosages_set().setdefault(name, Dosage())
    slider, box = f"dose {known.slider} {name}", f"dose box {known.box} {name}"

    @access.errors()
    def moved() -> None:
        if dosages_set()[name].slider == known.slider:  # else it stands there no more
            set_dosage(name, st.session_state[slider], ["box"])

    @access.errors()
    def typed() -> None:
        if dosages_set()[name].box == known.box:
            set_dosage(name, st.session_state[box], ["slider"])

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        st.slider(
            f"Dosage of {plain(name)}",
            0.0,
            MAX_DOSAGE,
            known.value,
            step=0.05,
            format="%.4g",
            key=slider,
            on_change=moved,
            help="1 is the perturbation as measured. Other dosages scale its latent shift: an "
            "extrapolation, unless the data have such dosages.",
        )
        st.number_input(
            f"Dosage of {plain(name)} as a number",
            0.0,
            MAX_DOSAGE,
            known.value,
            step=0.05,
            format="%.4g",
            key=box,
            on_change=typed,
            label_visibility="collapsed",
            width=110,
        )
    return known.value


def switches(used: list[int], others: list[int], titles: Mapping[int, str]) -> list[int]:
    """A switch for each mechanism in use, and one for the others; which are taken out."""
    off: set[int | str] = st.session_state["compose_off"]
    names: list[int | str] = [*used, *([REST] if others else [])]
    on = [k for k in names if k not in off]
    labels: dict[int | str, str] = {REST: f"the other {len(others)}"}
    labels |= {k: plain(shortened(titles[k])) for k in used}

    @access.errors()
    def changed() -> None:
        chosen = set(st.session_state["compose_in"])
        before = st.session_state["compose_off"]
        st.session_state["compose_off"] = (before - set(names)) | (set(names) - chosen)

    if set(st.session_state.get("compose_in") or ()) != set(on):  # as `put`, in any order
        st.session_state["compose_in"] = on
    st.pills(
        "Mechanisms in the sum",
        names,
        selection_mode="multi",
        format_func=lambda k: labels[k],
        key="compose_in",
        on_change=changed,
        help="Switch one off to take it out of the sum: what is gone from the shift is what it "
        "contributed. With every switch off nothing moves, and the shift is exactly zero.",
    )
    left_out = [k for k in used if k in off]
    return sorted([*left_out, *(others if REST in off else [])])


def shortened(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}\u2026"


@access.errors()
def switch_all(on: bool, used: list[int]) -> None:
    st.session_state["compose_off"] = set() if on else {*used, REST}


def start(model: Bundle, conditions: Mapping[str, int]) -> str:
    """From which cells' basal states a composition starts: CONTROL, SELECTED, or a condition."""
    n_taken = len(taken(model))
    options = {CONTROL: f"control cells ({len(model.reference.loc)} of them)"}
    if n_taken:
        options[SELECTED] = f"{SELECTED} ({n_taken:,})"
    options |= {name: f"cells with {name} ({n:,})" for name, n in conditions.items()}
    before = st.session_state.get("compose_from", CONTROL)
    if before not in options:
        st.info(f"There are no {plain(before)} to start from; started from control cells instead.")
        st.session_state["compose_from"] = CONTROL
    return str(
        st.selectbox(
            "Start from",
            list(options),
            format_func=options.__getitem__,
            key="compose_from",
            persist_state="session",
            help="Whose basal states the shift is added to. The decoder bends, so the same shift "
            "does not do the same to every cell. To start from cells of your choice, draw around "
            "them on the page Cells.",
        )
    )


def start_from_control() -> None:
    """Where a model does not hold its cells' states, a composition starts from control cells."""
    if st.session_state.get("compose_from", CONTROL) != CONTROL:
        st.info("This model does not hold the states of its cells: started from control cells.")
        st.session_state["compose_from"] = CONTROL


def starting_condition() -> str:
    """The condition from whose cells a composition starts, if it is one."""
    chosen = str(st.session_state.get("compose_from", CONTROL))
    return "" if chosen in (CONTROL, SELECTED) else chosen


def keep_mix(model: Bundle, dosages: dict[str, float]) -> None:
    """Put the composition into the address, and among those that undo goes back to."""
    off = as_off(st.session_state["compose_off"])
    begin = st.session_state.get("compose_from", CONTROL)
    mix = Mix(as_link(dosages), off, "" if begin == CONTROL else begin)
    code = as_code(taken(model), len(model.cells)) if begin == SELECTED else ""
    write(c=mix.c, off=mix.off, cells=code, **{"from": mix.start})
    done, place = st.session_state.get("steps", ([], -1))
    if not done or done[place] != mix:
        done = [*done[: place + 1], mix][-MOST_STEPS:]
        st.session_state["steps"] = done, len(done) - 1


def steps() -> tuple[int, int]:
    """How many compositions there are to go back to, and forward to."""
    done, place = st.session_state.get("steps", ([], -1))
    return max(0, place), max(0, len(done) - 1 - place)


@access.errors()
def step(by: int) -> None:
    """Go back or forward among compositions; a callback, for it sets widgets."""
    done, place = st.session_state["steps"]
    place = min(max(place + by, 0), len(done) - 1)
    st.session_state["steps"] = done, place
    show_mix(done[place])


@access.errors()
def start_over() -> None:
    """Nothing chosen, every mechanism in, from control cells; a callback."""
    show_mix(Mix())


@access.errors()
def start_composition(names: list[str]) -> None:
    """Begin a composition from code; a callback."""
    show_mix(Mix(as_link(dict.fromkeys(names, 1.0))))


class Other(NamedTuple):
    """The composition kept to compare with, in full, of the model with this checksum."""

    mix: Mix = Mix()
    checksum: str = ""


def compared(
    model: Bundle, most: int = MAX_PERTURBATIONS
) -> tuple[dict[str, float], set[int | str]] | None:
    """The composition to compare with, of a link that was followed or of before; None without one.

    The form is b=STAT1:1&boff=0, as c and off. One that this model does not know in full, or cannot
    compose, is said and not used; mechanisms left out are those of the model it was kept in.
    """
    if (asked := followed("b", "boff")) is not None:
        st.session_state["compared"] = Other(Mix(asked["b"], asked["boff"]), model.checksum)
        say_changed(asked["b"])
    kept: Other = st.session_state.get("compared", Other())
    dosages = kept.mix.dosages
    unknown = [name for name in dosages if name not in model.perturbations.index]
    if unknown or len(dosages) > most:
        why = f"it does not know {', '.join(unknown)}" if unknown else f"it takes {most} at most"
        st.info(f"What was kept to compare with cannot be composed in this model: {plain(why)}.")
    if unknown or not 0 < len(dosages) <= most:
        return None
    off = kept.mix.off if kept.checksum == model.checksum else ""
    write(b=kept.mix.c, boff=off)
    return dosages, read_off(off)


@access.errors()
def compare_with(model: Bundle, mix: Mix) -> None:
    """Keep this composition to compare others with; the empty one, to compare no more."""
    st.session_state["compared"] = Other(mix, model.checksum)
    write(b=mix.c, boff=mix.off)


def current_mix() -> Mix:
    done, place = st.session_state.get("steps", ([Mix()], 0))
    found: Mix = done[place]
    return found


# All pages


def current() -> Where:
    page = st.session_state["page"]
    return Where(page, pages().get(page, {}))


def pages() -> dict[str, dict[str, list[str]]]:
    """The query that each page had when it was last shown."""
    found: dict[str, dict[str, list[str]]] = st.session_state.setdefault("pages", {})
    return found


def remember() -> None:
    """Note the page's query, now that all of it is drawn."""
    if st.session_state.pop("tell", False):
        st.query_params.update({})
    query = {key: st.query_params.get_all(key) for key in st.query_params if key != "model"}
    pages()[st.session_state["page"]] = {key: values for key, values in query.items() if values}
    st.session_state.setdefault("bound", set()).update(query)


def restore(saved: Mapping[str, dict[str, list[str]]], asked: Sequence[Where]) -> None:
    """Show every page as it was saved when it is next come to, and before that those asked for.

    A callback, of a page that has none of their widgets.
    """
    forget()
    for key in ("steps", "compared", "pages", "waiting", "keeping"):
        st.session_state.pop(key, None)
    st.session_state["saved"], st.session_state["asked"] = dict(saved), list(asked)


def forget() -> None:
    """Bring the bound widgets of every page back to their defaults, before they are drawn."""
    for key in st.session_state.get("bound", set()):
        st.session_state.pop(key, None)


def turn(page: str) -> Where | None:
    """Where to turn to instead of running this page as it is: what a session asks for, once.

    A page that is come to by a link shows what the link says.
    """
    asked: list[Where] = st.session_state.get("asked", [])
    if page == REPORT and asked:
        if not st.session_state.pop("drawn once", False):
            return None
        forget()
        st.session_state["keeping"], st.session_state["sent"] = asked[0].page, True
        return asked.pop(0)
    if page == REPORT and "saved" in st.session_state:
        st.session_state["waiting"] = st.session_state.pop("saved")
        forget()
    if "keeping" in st.session_state:
        return None
    query = st.session_state.get("waiting", {}).pop(page, None)
    if query is None or set(st.query_params) - {"model"}:
        return None
    st.session_state["sent"] = True
    return Where(page, query)


def was_asked() -> bool:
    """Whether the page just drawn is one that a session asked for; done with it, if so."""
    return bool(st.session_state.pop("keeping", "") == st.session_state["page"])


def n_asked() -> int:
    """Kept views that a session asks for and that are not drawn yet."""
    return len(st.session_state.get("asked", []))


def goes_on() -> bool:
    """Whether the report, now drawn, has to turn to a page that a session asks for.

    Only a whole run lets go of the widgets of the page before, whose values an address could not
    set while they are bound.
    """
    if st.session_state["page"] != REPORT or not n_asked():
        return False
    st.session_state["drawn once"] = True
    return True
