"""Labels of perturbations: which are controls, combinations, or guides of one target.

One place decides it for the command line, the pages and the library, and says what it decided.
Knows nothing of files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae_core.data.cells import DataError, nearest, some
from samsvae_core.genesets.symbols import is_gene

Control = str | Sequence[str] | None  # what a person names as control: labels or patterns


class Recorded(list[str]):
    """Control labels as a run noted them: those of them that a file has count, one is enough."""


DELIMITERS = ("+", "_", "|", ";", ",", "&", "/", ":")
AMBIGUOUS = frozenset("_/:")  # also within one name, so that parts have to be genes that are known
MOST_LABELS = 5_000  # of a column that may say what cells have; one with more tells cells apart
MOST_NAMED = 12  # controls in one piece of advice
MOST_PIECES = 64  # of a label whose names are put together again
MISSING = {"", "nan", "NaN", "NA", "<NA>", "None"}
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
# Labels that say that a cell is perturbed, and not by what.
GENERIC = re.compile(r"perturbed|treated|stim(?:ulated)?|ko|kd|np|yes|true|1", re.IGNORECASE)
# The first group with a column that holds a control label decides: genes before their guides.
PERTURBATION_KEYS = (
    ("perturbation", "perturbations", "perturbation_name"),
    ("target_gene", "gene_target", "target_genes", "gene", "condition", "target", "perturb"),
    ("guide_identity", "guide_target", "guide", "guides", "guide_id", "guide_ids", "sgrna", "grna"),
)
# How guides of one target are told apart, each with the target as its first group.
MARKED = re.compile(r"(.+?)[-_. ]?(?:sgrna|grna|guide|sg|g)[-_. ]?\d{1,3}", re.IGNORECASE)
NUMBERED = re.compile(r"(.+?)[-_. ]\d{1,3}")
STRANDED = re.compile(r"(.+?)_[+-]_\d+(?:\.\d+)?(?:-\w+)?")  # "CCNE2_+_95907328.23-P1P2"
PREFIXED = re.compile(r"(?:sgrna|grna|sg)[-_ ]?(?=[A-Z0-9])(.+)")


def texts_of(values: pd.Series | pd.Index) -> np.ndarray:
    """Labels as stripped text, "" where missing."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
        values = pd.Series(of_pandas(values.to_numpy()))
    codes, known = pd.factorize(values)  # missing is -1, the last place
    texts = [(name.decode() if isinstance(name, bytes) else str(name)).strip() for name in known]
    return np.array(["" if text in MISSING else text for text in [*texts, ""]], object)[codes]


def of_pandas(values: np.ndarray) -> np.ndarray:
    """Numbers of a type that pandas has: of its own order of bytes, floats of 4 or 8 bytes."""
    kind = values.dtype.newbyteorder("=")
    if kind.kind == "f":
        kind = np.dtype(np.float32 if kind.itemsize <= 4 else np.float64)
    return values.astype(kind, copy=False)


def by_frequency(labels: np.ndarray) -> list[str]:
    """Each label once, the most frequent first."""
    return list(pd.Series(labels).value_counts().index)


# Controls


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


# Combinations


def split_label(label: str, delimiter: str, known: Collection[str] = ()) -> list[str]:
    """The parts of a label; "A_B__A_B", as deposited for Norman 2019, has the parts A and B.

    Names that hold the delimiter themselves stay together if they are `known` labels:
    "CPQ_+_97.23+MYC" has the parts "CPQ_+_97.23" and "MYC" where these are labels of their own.
    """
    if not delimiter:
        return [label]
    first, _, second = label.partition(2 * delimiter)
    pieces = (first if first == second else label).split(delimiter)
    parts = [piece.strip() for piece in pieces]
    if all(part in known or SYMBOL.fullmatch(part) or is_control(part) for part in parts):
        return parts
    return _of_labels(pieces, delimiter, known) or parts


def _of_labels(pieces: list[str], delimiter: str, known: Collection[str]) -> list[str]:
    """Pieces put together to as many labels as there can be; none where they are not only that."""
    if not known or len(pieces) > MOST_PIECES:
        return []
    best: list[list[str] | None] = [[], *([None] * len(pieces))]  # of the first so many pieces
    for stop in range(1, len(pieces) + 1):
        for start in range(stop):
            before = best[start]
            part = delimiter.join(pieces[start:stop]).strip()
            whole = stop - start == len(pieces)
            if before is not None and not whole and (part in known or is_control(part, known)):
                found = [*before, part]
                if len(found) > len(best[stop] or []):
                    best[stop] = found
    return best[-1] or []


def parts_of(
    label: str, known: Collection[str], controls: Collection[str], delimiter: str
) -> list[str]:
    """The label's perturbations, "" for a control; a label that only looks composed stays whole."""
    if label in controls:
        return [""]
    parts = split_label(label, delimiter, known)
    nothing = [part in controls or is_control(part, known) for part in parts]
    named = [part for part, is_none in zip(parts, nothing, strict=True) if not is_none]
    if len(parts) == 1 or not all(part in known or SYMBOL.fullmatch(part) for part in named):
        return [label]
    return ["" if is_none else part for part, is_none in zip(parts, nothing, strict=True)]


def delimiter_of(known: Sequence[str], controls: Collection[str]) -> str:
    """What stands between the parts of combinations; "" where there seem to be none.

    It is the delimiter that parts most labels into labels of their own, control words and gene
    symbols. Of each such label one part at least has to be known, as a label, beside a control or
    from another such label, or all have to be genes: many names hold an underscore or a plus.
    """
    counts = {delimiter: _composed(known, controls, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: len(counts[delimiter]))
    return best if _outweighs(counts[best], known, controls, best) else ""


def _outweighs(
    composed: Collection[str], known: Sequence[str], controls: Collection[str], delimiter: str
) -> bool:
    """Whether a delimiter parts more labels that are composed than labels that only look so."""
    every = frozenset(known)
    parted = [x for x in known if len(parts_of(x, every, controls, delimiter)) > 1]
    return len(composed) > len(parted) - len(composed)


def _composed(known: Sequence[str], controls: Collection[str], delimiter: str) -> list[str]:
    """The labels that are combinations beyond doubt, if this is the delimiter."""
    every = frozenset(known)
    alone, found = set(known), {}
    for label in known:
        if label in controls or delimiter not in label:
            continue
        parts = split_label(label, delimiter, every)
        named = [part for part in parts if part not in controls and not is_control(part, every)]
        if len(parts) > 1 and all(_is_name(part, alone, delimiter) for part in named):
            found[label] = named
            if len(named) == 1 < len(parts):  # "AHR_ctrl"
                alone |= set(named)
    often = Counter(part for named in found.values() for part in set(named))

    def sure(named: list[str]) -> bool:
        if any(part in alone for part in named) or delimiter in AMBIGUOUS:  # "STAT1_KO", "MYC_KO"
            return any(part in alone for part in named)
        return any(often[part] > 1 for part in named) or all(map(is_gene, named))

    return [label for label, named in found.items() if sure(named)]


def _is_name(part: str, labels: Collection[str], delimiter: str) -> bool:
    """Whether a part of a label may be the name of a perturbation."""
    if part in labels or not SYMBOL.fullmatch(part):
        return part in labels
    return delimiter not in AMBIGUOUS or is_gene(part)


def first_word(label: str, delimiter: str) -> str:
    """GEARS's "ctrl+ctrl" is "ctrl"; "non_targeting" stays whole."""
    words = split_label(label, delimiter)
    return words[0] if all(CONTROL.fullmatch(word) for word in words) else label


class Understood(NamedTuple):
    """What the labels of a column are taken for."""

    known: list[str]  # labels of controls and perturbations, the most frequent first
    controls: list[str]
    unassigned: set[str]  # labels that say that nothing was found in a cell, and ""
    delimiter: str
    control: str  # the name of the control condition


def understood(
    frequent: Sequence[str],
    control: Control = None,
    delimiter: str | None = None,
    drop_unlabelled: bool | None = None,
) -> Understood:
    """What the labels of a column mean, the most frequent first; "" among them is no label.

    The reader, its preview and what is suggested all go by this. Labels that say that nothing was
    found are perturbations like others where `drop_unlabelled` is None, and take no part otherwise.
    """
    named = [label for label in frequent if label]
    controls = control_labels(named, control)
    nothing = unassigned(frequent, controls)
    known = [x for x in named if drop_unlabelled is None or x not in nothing]
    delimiter = delimiter_of(known, controls) if delimiter is None else delimiter
    name = first_word(controls[0], delimiter) if controls else "control"
    return Understood(known, controls, nothing, delimiter, name)


# Guides of one target


def targets_of(names: Iterable[str]) -> dict[str, str]:
    """The target of each name that is one of a guide: "ZAP70_1", "sgZAP70", "ZAP70-g2".

    A gene's own symbol ("NKX2-1") is no guide. Without a word such as g or guide the target has to
    be a gene, as "compound_1" and "compound_2" are two compounds.
    """
    found = {}
    for name in names:
        if not is_control(name) and (target := _target(name)):
            found[name] = target
    return found


def _target(name: str) -> str:
    """The target of a guide, "" for another name."""
    if is_gene(name):
        return ""
    prefixed = PREFIXED.fullmatch(name)
    bare = prefixed[1] if prefixed else name
    if prefixed and is_gene(bare):
        return bare
    for pattern in (STRANDED, MARKED, NUMBERED):
        if match := pattern.fullmatch(bare):
            target = match[1].rstrip("-_. ")
            last = re.split(r"[_ ]", target)[-1]  # behind the name of a library
            if is_gene(target):
                return target
            if pattern is not NUMBERED and len(last) > 1 and is_gene(last):
                return last
            separated = re.search(r"[-_. ](?:sgrna|grna|guide)[-_. ]?\d+$", bare, re.IGNORECASE)
            if target and (pattern is STRANDED or separated):
                return target
    return ""


def guides_note(targets: Mapping[str, str], joined: bool) -> list[str]:
    """How many guides the targets have, and that they can be joined, where there are any."""
    sizes = Counter(targets.values())
    prefixes = [name for name, target in targets.items() if name.endswith(target)]
    if not sizes or (max(sizes.values()) < 2 and not joined and len(prefixes) < len(targets)):
        return []
    low, high = min(sizes.values()), max(sizes.values())
    each = "1 guide" if high == 1 else f"{low if low == high else f'{low} to {high}'} guides"
    names = "name looks like a guide" if len(targets) == 1 else "names look like guides"
    many = (
        f"{len(targets):,} {names}"
        f" of {'1 target' if len(sizes) == 1 else f'{len(sizes):,} targets, {each} for each'}"
    )
    example = next(name for name, target in targets.items() if sizes[target] == high)
    such = f"{example} is one of {targets[example]}"
    if joined:
        return [
            f"{many} ({such}); {'it is' if len(targets) == 1 else 'they are'} joined by target."
        ]
    return [f"{many} ({such}). Each guide is read as a perturbation: --join-guides joins them."]


# Which column


def check_column(obs: pd.DataFrame, key: str, option: str) -> None:
    """Raise DataError where obs lacks a column that was given as an option."""
    if key not in obs:
        raise DataError(
            f"obs has no column {key!r}, given as {option}. {nearest(key, obs.columns)}"
        )


def perturbation_key_of(obs: pd.DataFrame, key: str | None, control: Control) -> str:
    """The column given, or else of the usual ones the one with a control label.

    One that says no more than "NT" and "Perturbed" is passed over for one that names the targets of
    the same cells.
    """
    if key is not None:
        check_column(obs, key, "--perturbation-key")
        return key
    usual = [name for group in PERTURBATION_KEYS for name in group]
    texts = {name: texts_of(obs[name]) for name in obs.columns if str(name).lower() in usual}
    ranked = sorted(texts, key=lambda name: usual.index(name.lower()))
    for group in PERTURBATION_KEYS:
        found = {}
        for name in (name for name in ranked if name.lower() in group):
            if controls := control_labels(by_frequency(texts[name]), control):
                found[name] = np.where(np.isin(texts[name], controls), "control", texts[name])
        said = {name: labels for name, labels in found.items() if not more_said(obs, name, control)}
        found = said or found
        if any((labels != next(iter(found.values()))).any() for labels in found.values()):
            raise DataError(
                f"Several columns of obs could be the perturbations: {some(found, 10)}. They"
                " differ; choose one with --perturbation-key."
            )
        if said:
            return next(iter(said))
        if found:
            return more_said(obs, next(iter(found)), control)
    offered = suggested_key(obs)
    if ranked and (control is not None or not offered):  # a message about its control cells follows
        return ranked[0]
    why = (
        no_control(by_frequency(texts[ranked[0]]), ranked[0])
        if ranked
        else f"No column of obs is named as perturbations usually are ({some(usual, 6)}); found"
        f" {some(obs.columns, 10) or 'no columns'}. Name the column with --perturbation-key."
    )
    if offered:
        labels = control_labels(by_frequency(texts_of(obs[offered])))
        why += (
            f" Column {offered!r} has labels of controls ({some(labels)}) and of others:"
            f" --perturbation-key {offered} takes it."
        )
    raise DataError(why)


def more_said(obs: pd.DataFrame, key: str, control: Control) -> str:
    """The column with the targets where this one only says that cells are perturbed; or ""."""
    if not _may_be_labels(obs[key]):
        return ""
    labels = texts_of(obs[key])
    frequent = by_frequency(labels)
    controls = control_labels(frequent, control)
    rest = [label for label in frequent if label and label not in controls]
    if len(rest) != 1 or not GENERIC.fullmatch(rest[0]):
        return ""
    cells = np.isin(labels, controls)
    usual = [name for group in PERTURBATION_KEYS for name in group]
    others = [
        name
        for name in obs.columns
        if name != key and str(name).lower() in usual and _may_be_labels(obs[name])
    ]
    for name in sorted(others, key=lambda name: usual.index(str(name).lower())):
        texts = texts_of(obs[name])
        known = by_frequency(texts)
        named = control_labels(known, control)
        if len(known) - len(named) > 1 and (np.isin(texts, named) == cells).all():
            return str(name)
    return ""


def _may_be_labels(values: pd.Series) -> bool:
    """Whether a column may hold labels: looking for controls in barcodes takes long for nothing."""
    return not pd.api.types.is_float_dtype(values) and values.nunique() <= MOST_LABELS


def key_notes(obs: pd.DataFrame, key: str, given: bool, control: Control) -> list[str]:
    """What to say of the column that is read, where another one says more than it."""
    if given and (better := more_said(obs, key, control)):
        return [
            f"Column {key!r} says only that cells are perturbed; {better!r} names the targets:"
            f" --perturbation-key {better} reads it."
        ]
    passed = [str(n) for n in obs.columns if n != key and more_said(obs, n, control) == key]
    if given or not passed:
        return []
    return [f"Column {passed[0]!r} says only that cells are perturbed; {key!r} is read instead."]


def suggested_key(obs: pd.DataFrame, most_labels: int = MOST_LABELS) -> str:
    """A column with labels of controls and of perturbations, whatever it is called; "" if none.

    A column such as a sample's, that only adds to the labels of another one ("ctrl101" to "ctrl"),
    is passed over for that. Of those left, the one with most labels says most.
    """
    texts = {}
    for name in obs.columns:
        if pd.api.types.is_float_dtype(obs[name]):
            continue
        labels = texts_of(obs[name])
        known = by_frequency(labels)
        n_controls = len(control_labels(known)) if len(known) <= most_labels else 0
        if 2 <= len(known) < len(obs) and 0 < n_controls < len(known):
            texts[str(name)] = labels
    kept = [
        name
        for name in texts
        if not any(_adds_to(texts[name], texts[other]) for other in texts if other != name)
        and not more_said(obs, name, None)
    ]
    return max(kept, key=lambda name: len(set(texts[name])), default="")


def _adds_to(labels: np.ndarray, shorter: np.ndarray) -> bool:
    """Whether each label is that of a shorter kind with something behind it, as ctrl101 is ctrl."""
    pairs = set(zip(labels, shorter, strict=True))
    return all(a.lower().startswith(b.lower()) for a, b in pairs) and any(a != b for a, b in pairs)


# What is said


def label_notes(
    parts: Mapping[str, list[str]], controls: Sequence[str], delimiter: str, given: bool
) -> list[str]:
    """What was decided about the labels of a column; `given` is whether the delimiter was."""
    notes, labels = [], list(parts)
    if len(controls) > 1:
        notes.append(f"{len(controls)} labels are taken as control: {some(controls, 10)}.")
    read = [label for label, each in parts.items() if any(each) or label in controls]
    notes += candidates_note(read, controls)
    composed = [label for label, each in parts.items() if len(each) > 1]
    if not composed or given:  # one found by itself parts more labels than any other
        notes += _other_delimiter(labels, controls, delimiter, len(composed))
    whole = sorted(label for label, each in parts.items() if delimiter and delimiter in each[0])
    if whole:
        notes.append(
            f"{len(whole):,} labels contain {delimiter!r} and were kept whole, as not every part is"
            f" a label or a gene symbol: {some(whole)}."
        )
    named = {label: [part for part in each if part] for label, each in parts.items()}
    twice = sorted(label for label, each in named.items() if len(each) > len(set(each)))
    if twice:
        notes.append(f"{len(twice):,} labels name a perturbation twice, used once: {some(twice)}.")
    return notes


def _other_delimiter(
    labels: list[str], controls: Sequence[str], delimiter: str, n_parted: int
) -> list[str]:
    """Says so where another delimiter parts more labels, or one parts some that stay whole."""
    if (other := delimiter_of(labels, controls)) and other != delimiter:
        found = _composed(labels, controls, other)
        if len(found) > n_parted:
            return [
                f"{_labels(len(found), 'look')} like combinations parted at {other!r}"
                f" ({some(found)}): --delimiter {_quoted(other)} parts them there."
            ]
    if delimiter:
        return []
    every, listed = frozenset(labels), frozenset(controls)
    for other in DELIMITERS:
        parted = {x: each for x in labels if len(each := parts_of(x, every, listed, other)) > 1}
        found = [x for x, each in parted.items() if all(map(is_gene, filter(None, each)))]
        if other not in AMBIGUOUS:
            found = list(parted)
        if found:
            return [
                f"{_labels(len(found), 'may')} name combinations ({some(found)}), and are kept"
                " whole, as no part of them is a label of its own: --delimiter"
                f" {_quoted(other)} parts them."
            ]
    return []


def _labels(n: int, verb: str) -> str:
    """So many labels and what they do: "1 label is", "2 labels look"."""
    singular = {"are": "is", "look": "looks"}.get(verb, verb)
    return f"1 label {singular}" if n == 1 else f"{n:,} labels {verb}"


def _quoted(delimiter: str) -> str:
    return f"'{delimiter}'" if delimiter in "|;&" else delimiter
