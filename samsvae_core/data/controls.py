"""Which labels are those of control cells."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import translate
from functools import lru_cache

from samsvae_core.data.cells import DataError
from samsvae_core.genesets.symbols import is_gene
from samsvae_core.system.messages import nearest, some

Control = str | Sequence[str] | None  # what a person names as control: labels or patterns


class Recorded(list[str]):
    """Control labels as a run noted them: those of them that a file has count, one is enough."""


MOST_NAMED = 12  # controls in one piece of advice
SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9.\-]{0,14}")
# A word for control, on its own or with a number: "NT-1", "sgCtrl", "neg_control_3", "NTg1".
CONTROL_WORD = (
    r"(?:sg[-_]?)?"
    r"(?:ntc?|mock|vehicle|dmso|unperturbed|untreated|scrambled?"
    r"|(?:neg(?:ative)?[-_ ]?)?(?:controls?|ctrls?)"
    r"|(?:non?|safe)[-_ ]?target(?:ing)?(?:[-_ ]?(?:control|ctrl)s?)?)"
    r"(?:[-_ ]?(?:sg|g|guide|grna|sgrna)?[-_ ]?\d+)?"
)
# Each word is read one way only: "nontargeting_control", repeated, has two ways for each otherwise.
CONTROL = re.compile(rf"(?>{CONTROL_WORD})(?:_+(?>{CONTROL_WORD}))*", re.IGNORECASE)
# Words that mean control within a longer name, too: "CROPseq_dCas9_DS_non-targeting_00025".
WITHIN = re.compile(
    r"(?<![a-z])(?:non[-_ ]?target|safe[-_ ]?target|neg(?:ative)?[-_ ]?(?:control|ctrl))",
    re.IGNORECASE,
)
SOLVENT = re.compile(r"(?:dmso|vehicle)[-_ ].*", re.IGNORECASE)  # "DMSO_TF"
APART = re.compile(r"[+|;,&/:]+")  # what parts a label into several
# What often is a control, though a word alone does not say so.
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
    """Whether a label is one of control cells by its words, as "NT-1" and "DMSO" are.

    Among the `known` labels of its column, "AHR_NegCtrl0" is no control where "AHR" is one of them,
    or a gene; "A+ctrl" never is one.
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
    """The labels of control cells among those `known`, in their order.

    `control` names them, or gives patterns such as "*non-targeting*"; a pattern means a label whose
    every part it fits. Without it they are found by their words. "CTRL" is also a gene, and is one
    here where labels of another kind are controls.
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
    """Whether a person who wrote `text`, a label or a pattern, means this one of the known labels.

    "*ctrl*" does not mean "A+ctrl", nor "A_ctrl" where "A" is a label of its own.
    """
    if text == label or not re.search(r"[*?]", text):
        return text == label
    pattern = _pattern(text)
    words = [word for word in label.split("_") if word in known and word != label]
    parts = [part.strip() for part in APART.split(label)]
    return all(pattern.fullmatch(part) for part in [*parts, *words])


@lru_cache(maxsize=256)
def _pattern(text: str) -> re.Pattern[str]:
    """What a pattern with * and ? fits. No star is tried again: matching ends soon for any text."""
    return re.compile(translate(text.replace("[", "[[]")), re.IGNORECASE)


def check_controls(known: Sequence[str], control: Control, where: str) -> None:
    """Raise DataError where something given as --control means none of the labels.

    Nobody gave what a run has recorded; of that one label is enough.
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
    """Labels that often are controls, or are by their words, and are not among the `controls`."""
    every = frozenset(known)
    rest = (label for label in known if label and label not in controls)
    return [x for x in rest if CANDIDATE.fullmatch(x) or is_control(x, every)]


def candidates_note(known: Collection[str], controls: Collection[str]) -> list[str]:
    """What to say of labels, or columns of a table, that are read as perturbations and may be none.

    What is named replaces what is found, so that the advice has to name all controls.
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
    """Labels as options of the command line."""
    quoted = (f"'{label}'" if re.search(r"[^\w.+-]", label) else label for label in controls)
    return " ".join(f"--control {label}" for label in quoted)


def no_control(known: Sequence[str], key: str) -> str:
    """What to say where no label of a column is one of control cells."""
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
    """Labels that say that nothing was found in a cell, and "", unless they are the controls."""
    return {
        label
        for label in known
        if label not in controls and (not label or UNASSIGNED.fullmatch(label))
    }
