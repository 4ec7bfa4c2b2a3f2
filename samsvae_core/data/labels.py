"""Read labels of perturbations: controls, combinations, and guides of one target.

The command line, the pages and the library all decide it here, and report what was decided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from samsvae_core.data.controls import (
    CONTROL,
    SYMBOL,
    candidates_note,
    control_labels,
    is_control,
    unassigned,
)
from samsvae_core.data.read_options import Control
from samsvae_core.genesets.symbols import is_gene
from samsvae_core.system.messages import some

DELIMITERS = ("+", "_", "|", ";", ",", "&", "/", ":")
AMBIGUOUS = frozenset("_/:")  # also occur inside names, so the parts must be known genes
MOST_PIECES = 64  # most pieces of a label that are joined to names again

# Combinations


def split_label(label: str, delimiter: str, known: Collection[str] = ()) -> list[str]:
    """Return the parts of a label; "A_B__A_B", as deposited for Norman 2019, has the parts A and B.

    Names that contain the delimiter stay together if they are `known` labels: "CPQ_+_97.23+MYC" has
    the parts "CPQ_+_97.23" and "MYC" if both are labels of their own.
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
    """Return the pieces joined into as many labels as possible; empty if some piece fits none."""
    if not known or len(pieces) > MOST_PIECES:
        return []
    best: list[list[str] | None] = [[], *([None] * len(pieces))]  # [n]: of the first n pieces
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
    """Return the label's perturbations, "" for a control; the whole label if not a combination."""
    if label in controls:
        return [""]
    parts = split_label(label, delimiter, known)
    nothing = [part in controls or is_control(part, known) for part in parts]
    named = [part for part, is_none in zip(parts, nothing, strict=True) if not is_none]
    if len(parts) == 1 or not all(part in known or SYMBOL.fullmatch(part) for part in named):
        return [label]
    return ["" if is_none else part for part, is_none in zip(parts, nothing, strict=True)]


def delimiter_of(known: Sequence[str], controls: Collection[str]) -> str:
    """Return the delimiter between the parts of combinations; "" if there seem to be none.

    It is the delimiter that splits most labels into other labels, control words and gene symbols.
    Since many names hold an underscore or a plus, at least one part of each such label must be
    known as a label, from beside a control or from another such label, or all parts must be genes.
    """
    counts = {delimiter: _composed(known, controls, delimiter) for delimiter in DELIMITERS}
    best = max(DELIMITERS, key=lambda delimiter: len(counts[delimiter]))
    return best if _outweighs(counts[best], known, controls, best) else ""


def _outweighs(
    composed: Collection[str], known: Sequence[str], controls: Collection[str], delimiter: str
) -> bool:
    """Return whether more labels are surely composed than only look so under this delimiter."""
    every = frozenset(known)
    parted = [x for x in known if len(parts_of(x, every, controls, delimiter)) > 1]
    return len(composed) > len(parted) - len(composed)


def _composed(known: Sequence[str], controls: Collection[str], delimiter: str) -> list[str]:
    """Return the labels that are surely combinations if this is the delimiter."""
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
    """Return whether a part of a label may name a perturbation."""
    if part in labels or not SYMBOL.fullmatch(part):
        return part in labels
    return delimiter not in AMBIGUOUS or is_gene(part)


def first_word(label: str, delimiter: str) -> str:
    """Return "ctrl" for GEARS's "ctrl+ctrl"; "non_targeting" stays whole."""
    words = split_label(label, delimiter)
    return words[0] if all(CONTROL.fullmatch(word) for word in words) else label


class Understood(NamedTuple):
    """How the labels of a column are read."""

    known: list[str]  # labels of controls and perturbations, the most frequent first
    controls: list[str]
    unassigned: set[str]  # labels that mean that nothing was found in a cell, and ""
    delimiter: str
    control: str  # the name of the control condition


def understood(
    frequent: Sequence[str],
    control: Control = None,
    delimiter: str | None = None,
    drop_unlabelled: bool | None = None,
) -> Understood:
    """Return how the labels of a column, the most frequent first, are read; "" is no label.

    The reader, its preview and all suggestions use this. Labels that mean that nothing was found
    are perturbations like others if `drop_unlabelled` is None, and are otherwise ignored.
    """
    named = [label for label in frequent if label]
    controls = control_labels(named, control)
    nothing = unassigned(frequent, controls)
    known = [x for x in named if drop_unlabelled is None or x not in nothing]
    delimiter = delimiter_of(known, controls) if delimiter is None else delimiter
    name = first_word(controls[0], delimiter) if controls else "control"
    return Understood(known, controls, nothing, delimiter, name)


# Notes


def label_notes(
    parts: Mapping[str, list[str]], controls: Sequence[str], delimiter: str, given: bool
) -> list[str]:
    """Return notes on how labels were read; `given` says whether the user gave the delimiter."""
    notes, labels = [], list(parts)
    if len(controls) > 1:
        notes.append(f"{len(controls)} labels are taken as control: {some(controls, 10)}.")
    read = [label for label, each in parts.items() if any(each) or label in controls]
    notes += candidates_note(read, controls)
    composed = [label for label, each in parts.items() if len(each) > 1]
    if not composed or given:  # a delimiter found here already splits the most labels
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
    """Return a note if another delimiter splits more labels, or splits some that stay whole."""
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
    """Return a number of labels with its verb: "1 label is", "2 labels look"."""
    singular = {"are": "is", "look": "looks"}.get(verb, verb)
    return f"1 label {singular}" if n == 1 else f"{n:,} labels {verb}"


def _quoted(delimiter: str) -> str:
    return f"'{delimiter}'" if delimiter in "|;&" else delimiter
