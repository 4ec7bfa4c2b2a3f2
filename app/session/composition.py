"""The composition on the screen: in the address, in its widgets, and among those to undo."""

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
REST = "rest"  # of mechanisms: those that none of the chosen perturbations uses
CONTROL, SELECTED = "control cells", "cells selected on Cells"  # where a composition starts
MOST_STEPS = 100  # compositions that undo goes back


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


def shortened(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1].rstrip()}\u2026"


@access.errors()
def switch_all(on: bool, used: list[int]) -> None:
    st.session_state["compose_off"] = set() if on else {*used, REST}


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
