"""Selections on a page that the address holds: one option, or several."""

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
    """A selection of one option: its parameter in the address and its widget's key."""

    parameter: str
    key: str


GENE, PERTURBATION, MECHANISM = One("g", "gene"), One("p", "perturbation"), One("m", "m")


def initial(one: One, options: Sequence[str], first: str, named: Callable[[str], str]) -> None:
    """Set the widget to a followed link's value, else to its value before, else to `first`.

    `named` returns the option that a link means, or raises ValueError with a message for the page.
    """
    if (asked := followed(one.parameter)) is not None:
        link = asked[one.parameter]
        try:
            st.session_state[one.key] = named(link) if link else first
        except ValueError as error:
            st.info(plain(f"{error} Showing {first} instead."))
            st.session_state[one.key] = first
    if st.session_state.get(one.key) not in options:
        st.session_state[one.key] = first


def keep(one: One, value: str, first: str) -> None:
    """Write the selection to the address, unless it is the page's default."""
    write(**{one.parameter: "" if value == first else value})


def initial_gene(model: Bundle, first: str) -> None:
    """Set the gene from the address: g=STAT1, or another name or id of the gene.

    A gene that is not in the model gets a message.
    """

    def named(link: str) -> str:
        found, _ = known_genes([link], model.genes, model.genes_by_id)
        return measured(model, found[0] if found else link)

    initial(GENE, model.genes, first, named)


def initial_perturbation(options: list[str], first: str) -> None:
    """Set the perturbation from the address: p=STAT1, or another name or id of its gene.

    A perturbation that is not in the model gets a message.
    """

    def named(link: str) -> str:
        found = [link] if link in options else known_genes([link], options)[0]
        if not found:
            raise ValueError(support.unknown(link, options))
        return found[0]

    initial(PERTURBATION, options, first, named)


def initial_mechanism(options: list[str]) -> None:
    """Set the mechanism from the address: m=M3, even if the mechanism has a name.

    A mechanism that is not among the options gets a message.
    """

    def named(link: str) -> str:
        if link not in options:
            raise ValueError(f"{link} is not a mechanism in use in this model.")
        return link

    model = st.session_state.get("model")  # M3 of one model has nothing to do with M3 of another
    if st.session_state.get("m of", model) != model:
        st.session_state.pop(MECHANISM.key, None)
    st.session_state["m of"] = model
    initial(MECHANISM, options, options[0], named)


@access.errors()
def choose(one: One, value: str) -> None:
    """Select another option; a callback."""
    st.session_state[one.key] = value


def initial_names(
    parameter: str, options: list[str], first: list[str], most: int = MAX_PERTURBATIONS
) -> None:
    """Set the widget to the names in a followed link, else to those before, else to `first`.

    The address holds highlight=STAT1,A%2BB; `parameter` is also the widget's key. Names that are
    not among the options, or beyond `most`, are left out with a message.
    """
    if (asked := followed(parameter)) is not None:
        link = asked[parameter]
        names = list(dict.fromkeys(unquote(name) for name in link.split(",") if name))
        unknown = [name for name in names if name not in options]
        if unknown:
            st.info(f"Not in this model, left out: {plain(', '.join(unknown))}.")
        beyond = [name for name in names if name in options][most:]
        if beyond:
            said = f"At most {most} can be highlighted"
            st.info(f"{said}, so left out: {plain(', '.join(beyond))}.")
        st.session_state[parameter] = names if link else first
    before = st.session_state.get(parameter, first)
    kept = [name for name in before if name in options][:most]
    put(parameter, kept if kept or not before else first)


def keep_names(parameter: str, names: list[str], first: list[str]) -> None:
    """Write the names to the address, unless they are the default; a comma stands for none."""
    link = ",".join(quote(name, safe="") for name in names) or ("," if first else "")
    write(**{parameter: "" if names == first else link})


def chosen_names(model: Bundle) -> tuple[str, list[str]]:
    """Return the key of the widget and the perturbations to compare, from a link or from before.

    The address holds chosen=STAT1,A%2BB. Each model has its own selection. Names that the model
    does not know, or beyond MAX_CHOSEN, are left out with a message.
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
    """Draw the picker of a part of a long map and return the part, from 1 to n.

    The address holds part_of_rows=2. Older addresses with part=2 still work but are not rewritten:
    Compose binds a widget of that name, and Streamlit lets no page write a bound parameter.
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
    """Return the positions of the selected cells in the sample, from a link or the last lasso."""
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
    """Return a selection among `n_cells` as a short text for the address."""
    if not len(places):
        return ""
    inside = np.zeros(n_cells, bool)
    inside[list(places)] = True
    return base64.urlsafe_b64encode(zlib.compress(np.packbits(inside).tobytes(), 9)).decode()


def cells_of(code: str, n_cells: int) -> list[int]:
    """Return the selection that `as_code` wrote; raises ValueError for anything else."""
    if not code:
        return []
    size = (n_cells + 7) // 8
    try:
        packed = base64.b64decode(code[:LONGEST].encode(), altchars=b"-_", validate=True)
        content = zlib.decompressobj().decompress(packed, size + 1)
    except (ValueError, binascii.Error, zlib.error):
        content = b""
    if len(content) != size:
        raise ValueError("The address names cells that are not in this model; they are left out.")
    inside = np.unpackbits(np.frombuffer(content, np.uint8))[:n_cells]
    return [int(place) for place in np.flatnonzero(inside)]
