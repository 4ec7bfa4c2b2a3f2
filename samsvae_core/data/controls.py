"""Recognise the labels of control cells."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

from samsvae_core.data.cells import DataError
from samsvae_core.data.read_options import Control
from samsvae_core.genesets.symbols import is_gene
from samsvae_core.system.messages import nearest, some


class Recorded(list[str]):
    """Control labels recorded by a run; a file needs to have only one of them."""


MOST_NAMED = 12  # most controls that one note lists
SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9.\-]{0,14}")
# A word for control, alone or with a number: "NT-1", "sgCtrl", "neg_control_3", "NTg1".
CONTROL_WORD = (
    r"(?:sg[-_]?)?"
    r"(?:ntc?|mock|vehicle|dmso|unperturbed|untreated|scrambled?"
    r"|(?:neg(?:ative)?[-_ ]?)?(?:controls?|ctrls?)"
    r"|(?:non?|safe)[-_ ]?target(?:ing)?(?:[-_ ]?(?:control|ctrl)s?)?)"
    r"(?:[-_ ]?(?:sg|g|guide|grna|sgrna)?[-_ ]?\d+)?"
)
# Atomic groups: a repeated "nontargeting_control" could otherwise be matched in 2^n ways.
CONTROL = re.compile(rf"(?>{CONTROL_WORD})(?:_+(?>{CONTROL_WORD}))*", re.IGNORECASE)
# Words that mean control also inside a longer name: "CROPseq_dCas9_DS_non-targeting_00025".
WITHIN = re.compile(
    r"(?<![a-z])(?:non[-_ ]?target|safe[-_ ]?target|neg(?:ative)?[-_ ]?(?:control|ctrl))",
    re.IGNORECASE,
)
SOLVENT = re.compile(r"(?:dmso|vehicle)[-_ ].*", re.IGNORECASE)  # "DMSO_TF"
APART = re.compile(r"[+|;,&/:]+")  # separates the parts of a label
# Names that are often controls, but not always.
CANDIDATE = re.compile(
    r"(?:sg[-_]?)?(?:(?:e?gfp|bfp|rfp|m?cherry|luc(?:iferase)?|lacz|aavs1|rosa26|scr|parental"
    r"|safe[-_ ]?harbou?r|empty(?:[-_ ]?vector)?|unstimulated)(?:[-_ ]?(?:sg|g)?\d+)?"
    r"|intergenic.*|pbs|wt|wild[-_ ]?type|CTRL)",
    re.IGNORECASE,
)
UNASSIGNED = re.compile(
    r"none|unassigned|unknown|undetermined|unlabell?ed|no[-_ ]?(?:guides?|s?grnas?)", re.IGNORECASE
)


def is_control(label: str, known: Collection[str] = ()) -> bool:
    """Return whether the words of a label mark control cells, as in "NT-1" or "DMSO".

    Every part of the label has to be a control, so "A+ctrl" is none. "AHR_NegCtrl0" is none either
    if "AHR" is a gene or among the `known` labels of the column.
    """
    parts = [part.strip() for part in APART.split(label)]
    return all(_is_control(part, known) for part in parts)


def _is_control(part: str, known: Collection[str]) -> bool:
    if CONTROL.fullmatch(part):
        return True
    if SOLVENT.fullmatch(part):
        return not any(word in known for word in re.split(r"[-_ ]+", part))
    if not WITHIN.search(part):
        return False
    words = [word for word in re.split(r"[_ ]+", part) if SYMBOL.fullmatch(word)]
    return not any(word in known or is_gene(word) for word in words if word != part)


def control_labels(known: Sequence[str], control: Control = None) -> list[str]:
    """Return the labels of control cells among those `known`, in their order.

    `control` gives labels, or patterns such as "*non-targeting*", which must fit every part of a
    label. Without it, controls are recognised by their words; "CTRL" is also a gene, and is taken
    as one if labels of another kind are controls.
    """
    every = frozenset(known)
    if isinstance(control, Recorded):
        return [label for label in known if label in control]
    if control is not None:
        return [x for x in known if any(_means(text, x, every) for text in _texts(control))]
    found = [label for label in known if is_control(label, every)]
    if "CTRL" in found and any(not label.lower().startswith("ctrl") for label in found):
        found.remove("CTRL")
    return found


def _texts(control: str | Sequence[str]) -> list[str]:
    return [control] if isinstance(control, str) else list(control)


def _means(text: str, label: str, known: Collection[str]) -> bool:
    """Return whether `text`, a label or a pattern given by the user, means this label.

    "*ctrl*" does not mean "A+ctrl", nor "A_ctrl" if "A" is a label of its own.
    """
    if text == label or not re.search(r"[*?]", text):
        return text == label
    pattern = _pattern(text)
    words = [word for word in label.split("_") if word in known and word != label]
    parts = [part.strip() for part in APART.split(label)]
    return all(pattern.fullmatch(part) for part in [*parts, *words])


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern with * and ?; it never backtracks over a star."""
    return re.compile(translate(text.replace("[", "[[]")), re.IGNORECASE)


def check_controls(known: Sequence[str], control: Control, where: str) -> None:
    """Raise DataError if something given as --control matches none of the labels.

    Of the controls `Recorded` by a run, one label in the file is enough.
    """
    if isinstance(control, Recorded):
        if control and not set(control) & set(known):
            raise DataError(
                f"No cell of {where} has one of the labels that were read as control when the model"
                f" was trained ({some(control, 6)}); found {some(known)}. Give a file in which the"
                " control cells are labelled as they were then."
            )
        return
    every = frozenset(known)
    for text in () if control is None else _texts(control):
        if not any(_means(text, label, every) for label in known):
            raise DataError(
                f"No cell of {where} is labelled {text!r}, given as --control."
                f" {nearest(text, known)}"
            )


def candidates(known: Collection[str], controls: Collection[str]) -> list[str]:
    """Return labels that may be controls, by words or custom, but are not in `controls`."""
    every = frozenset(known)
    rest = (label for label in known if label and label not in controls)
    return [x for x in rest if CANDIDATE.fullmatch(x) or is_control(x, every)]


def candidates_note(known: Collection[str], controls: Collection[str]) -> list[str]:
    """Return a note on labels read as perturbations that may be controls.

    --control replaces the controls that were recognised, so the note lists all of them.
    """
    likely = candidates(known, controls)
    if not likely:
        return []
    one = len(likely) == 1
    begin = (
        f"{some(likely, 6)} may be {'a control' if one else 'controls'}, too, and"
        f" {'is read as a perturbation' if one else 'are read as perturbations'}."
    )
    if len(controls) + len(likely) > MOST_NAMED:
        return [
            f"{begin} Name all the controls with --control to change that: a pattern such as"
            " '*non-targeting*' means several labels at once."
        ]
    return [f"{begin} To take all of them as control: {as_options([*controls, *likely])}."]


def as_options(controls: Iterable[str]) -> str:
    """Return labels as options of the command line."""
    quoted = (f"'{label}'" if re.search(r"[^\w.+-]", label) else label for label in controls)
    return " ".join(f"--control {label}" for label in quoted)


def no_control(known: Sequence[str], key: str) -> str:
    """Return the message for a column without a label of control cells."""
    begin = f"Column {key!r} has no control cells"
    likely, nothing = candidates(known, ()), sorted(filter(None, unassigned(known, ())))
    if likely:
        one = len(likely) == 1
        said = (
            f"{begin} that are labelled so: {some(likely, 6)}"
            f" {'is often one' if one else 'are often controls'}. If so here, name"
            f" {'it' if one else 'them'}: {as_options(likely[:6])}."
        )
    else:
        said = (
            f"{begin}: expected a label such as control, ctrl, non-targeting or NT, found"
            f" {some(known)}. Name the control label with --control, or another column with"
            " --perturbation-key."
        )
    if nothing:
        called = some(map(repr, nothing), 6)
        said += (
            f" Or if cells labelled {called} are the controls here, take them as control cells with"
            " --unlabelled-as-control."
        )
    return said


def unassigned(known: Iterable[str], controls: Collection[str]) -> set[str]:
    """Return labels that mean "nothing found in this cell", and "", unless they are controls."""
    return {
        label
        for label in known
        if label not in controls and (not label or UNASSIGNED.fullmatch(label))
    }
