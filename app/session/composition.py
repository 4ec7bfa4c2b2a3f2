"""The current composition: in the address, in its widgets, and in the undo history."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote, unquote

import numpy as np
import streamlit as st

from app.session import access
from app.session.choices import MAX_PERTURBATIONS, as_code, taken
from app.session.markdown import plain
from app.session.url import followed, write
from samsvae_core.bundle.bundle import Bundle

MAX_DOSAGE = 2.0
REST = "rest"  # the mechanisms that none of the chosen perturbations uses
DIRECT = "direct"  # the direct effects, switched off as mechanisms are
CONTROL, SELECTED = "control cells", "cells selected on Cells"  # where a composition starts
MOST_STEPS = 100  # compositions kept for undo


class CompositionQuery(NamedTuple):
    """A composition as the address holds it: c=STAT1:1,SMAD4:0.5&off=0,rest,direct&from=STAT1."""

    c: str = ""
    off: str = ""
    start: str = ""

    @property
    def dosages(self) -> dict[str, float]:
        return read_link(self.c)


def as_link(dosages: Mapping[str, float]) -> str:
    """Return dosages as a value for the address; names may contain commas and colons."""
    return ",".join(f"{quote(name, safe='')}:{dose:g}" for name, dose in dosages.items())


def read_link(link: str) -> dict[str, float]:
    """Return the dosages that `as_link` or a person wrote; a name without one has dosage 1."""
    parts = [part.partition(":") for part in link.split(",")]
    return {unquote(name): _dose(dose or "1") for name, _, dose in parts if name}


def _dose(value: str) -> float:
    try:
        dose = float(value)
    except ValueError:
        return 1.0
    return 1.0 if np.isnan(dose) else min(MAX_DOSAGE, max(0.0, dose))


def say_changed(link: str) -> None:
    """Say which dosages in a link are not numbers or out of range, and so were changed."""
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
            f"{MAX_DOSAGE:g}: the nearest was taken, or 1 if it was not a number."
        )


def read_off(link: str) -> set[int | str]:
    """Return what is switched off in a link such as 0,3,5-9,rest,direct."""
    found: set[int | str] = set()
    for part in link.split(","):
        if part in (REST, DIRECT):
            found.add(part)
        elif match := re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part):
            first, last = int(match[1]), int(match[2] or match[1])
            found |= set(range(first, last + 1))
    return found


def as_off(off: set[int | str]) -> str:
    """Return what is off as `read_off` reads it, with three or more in a row as a range."""
    numbers = sorted(k for k in off if isinstance(k, int))
    parts: list[str] = []
    for _, run in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        ks = [k for _, k in run]
        parts += [f"{ks[0]}-{ks[-1]}"] if len(ks) > 2 else map(str, ks)
    return ",".join([*parts, *(word for word in (REST, DIRECT) if word in off)])


def show_mix(mix: CompositionQuery) -> None:
    """Set the widgets to a composition; call it before they are drawn."""
    dosages = mix.dosages
    st.session_state["compose_names"] = list(dosages)
    for name, dose in dosages.items():
        set_dosage(name, dose, ("slider", "box"))
    st.session_state["compose_off"] = read_off(mix.off)
    st.session_state["compose_from"] = mix.start or CONTROL


def initial_mix(model: Bundle, most: int = MAX_PERTURBATIONS) -> None:
    """Set the widgets to the composition in a followed link, else to the one before.

    Names that this model does not know, or beyond the `most` it takes, are left out with a message.
    A change of model clears what is switched off, and the starting cells.
    """
    known = [str(name) for name in model.perturbations.index]
    asked = followed("c", "off", "from")
    if asked is not None:
        show_mix(CompositionQuery(asked["c"], asked["off"], asked["from"]))
        say_changed(asked["c"])
    elif "compose_names" not in st.session_state:
        show_mix(CompositionQuery())
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
    """A perturbation's dosage, and how often each of its two widgets was replaced."""

    value: float = 1.0
    slider: int = 0
    box: int = 0


def dosages_set() -> dict[str, Dosage]:
    """Return the dosages of all perturbations composed in this session, by name."""
    found: dict[str, Dosage] = st.session_state.setdefault("dosages", {})
    return found


def set_dosage(name: str, value: float, anew: Iterable[str]) -> None:
    """Set a dosage and replace the widgets in `anew`, which show the old one.

    An existing widget is never given a new value: the browser would overwrite what a person chose
    meanwhile, or send back the old value as if it had been chosen.
    """
    known = dosages_set().get(name, Dosage())
    value = round(value, 6)
    if value != known.value:
        made = {widget: getattr(known, widget) + 1 for widget in anew}
        dosages_set()[name] = known._replace(value=value, **made)


def shortened(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}\u2026"


@access.errors()
def switch_all(on: bool, names: list[int | str]) -> None:
    """Switch all of these on or off; a callback."""
    st.session_state["compose_off"] = set() if on else set(names)


def start_from_control() -> None:
    """Start from control cells, with a message if others were chosen.

    This is for models that do not store the states of their cells.
    """
    if st.session_state.get("compose_from", CONTROL) != CONTROL:
        st.info(
            "This model does not store the states of its cells: started from control cells instead."
        )
        st.session_state["compose_from"] = CONTROL


def starting_condition() -> str:
    """Return the condition whose cells the composition starts from, or "" for other cells."""
    chosen = str(st.session_state.get("compose_from", CONTROL))
    return "" if chosen in (CONTROL, SELECTED) else chosen


def keep_mix(model: Bundle, dosages: dict[str, float]) -> None:
    """Write the composition to the address and to the undo history."""
    off = as_off(st.session_state["compose_off"])
    begin = st.session_state.get("compose_from", CONTROL)
    mix = CompositionQuery(as_link(dosages), off, "" if begin == CONTROL else begin)
    code = as_code(taken(model), len(model.cells)) if begin == SELECTED else ""
    write(c=mix.c, off=mix.off, cells=code, **{"from": mix.start})
    done, place = st.session_state.get("steps", ([], -1))
    if not done or done[place] != mix:
        done = [*done[: place + 1], mix][-MOST_STEPS:]
        st.session_state["steps"] = done, len(done) - 1


def steps() -> tuple[int, int]:
    """Return how many steps can be undone and how many redone."""
    done, place = st.session_state.get("steps", ([], -1))
    return max(0, place), max(0, len(done) - 1 - place)


@access.errors()
def step(by: int) -> None:
    """Undo (-1) or redo (1); a callback because it sets widgets."""
    done, place = st.session_state["steps"]
    place = min(max(place + by, 0), len(done) - 1)
    st.session_state["steps"] = done, place
    show_mix(done[place])


@access.errors()
def start_over() -> None:
    """Clear the composition: nothing switched off, starting from control cells; a callback."""
    show_mix(CompositionQuery())


@access.errors()
def start_composition(names: list[str]) -> None:
    """Start a composition of these perturbations at dosage 1; a callback."""
    show_mix(CompositionQuery(as_link(dict.fromkeys(names, 1.0))))


class Other(NamedTuple):
    """The composition kept for comparison, and the checksum of its model."""

    mix: CompositionQuery = CompositionQuery()
    checksum: str = ""


def compared(
    model: Bundle, most: int = MAX_PERTURBATIONS
) -> tuple[dict[str, float], set[int | str]] | None:
    """Return the composition to compare with, from a link or from before, or None.

    It is dosages by name and what is switched off; the address holds b=STAT1:1&boff=0, as c and
    off. A composition that this model cannot make gets a message. What is switched off only counts
    in the model where the composition was kept.
    """
    if (asked := followed("b", "boff")) is not None:
        st.session_state["compared"] = Other(
            CompositionQuery(asked["b"], asked["boff"]), model.checksum
        )
        say_changed(asked["b"])
    kept: Other = st.session_state.get("compared", Other())
    dosages = kept.mix.dosages
    unknown = [name for name in dosages if name not in model.perturbations.index]
    if unknown or len(dosages) > most:
        why = f"it does not know {', '.join(unknown)}" if unknown else f"it takes {most} at most"
        st.info(
            f"The composition kept to compare with cannot be composed in this model: {plain(why)}."
        )
    if unknown or not 0 < len(dosages) <= most:
        return None
    off = kept.mix.off if kept.checksum == model.checksum else ""
    write(b=kept.mix.c, boff=off)
    return dosages, read_off(off)


@access.errors()
def compare_with(model: Bundle, mix: CompositionQuery) -> None:
    """Keep this composition for comparison; an empty one ends the comparison."""
    st.session_state["compared"] = Other(mix, model.checksum)
    write(b=mix.c, boff=mix.off)


def current_mix() -> CompositionQuery:
    done, place = st.session_state.get("steps", ([CompositionQuery()], 0))
    found: CompositionQuery = done[place]
    return found
