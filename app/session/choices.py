"""What is chosen on a page and stands in the address: one of several, some of many."""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import streamlit as st

from app.session import access
from app.session.markdown import plain
from app.session.url import followed, put, write
from samsvae_core.analysis import support
from samsvae_core.analysis.gene_card import measured
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.symbols import known_genes

MAX_PERTURBATIONS = 6
MAX_CHOSEN = 12  # perturbations compared at once
ROWS = "part_of_rows"
LONGEST = 8192  # characters of a selection of cells in an address


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
