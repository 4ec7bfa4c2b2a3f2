"""Find the target gene of a guide from its name."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from samsvae_core.data.controls import is_control
from samsvae_core.genesets.symbols import is_gene

# Patterns of guide names, with the target as the first group.
MARKED = re.compile(r"(.+?)[-_. ]?(?:sgrna|grna|guide|sg|g)[-_. ]?\d{1,3}", re.IGNORECASE)
NUMBERED = re.compile(r"(.+?)[-_. ]\d{1,3}")
STRANDED = re.compile(r"(.+?)_[+-]_\d+(?:\.\d+)?(?:-\w+)?")  # "CCNE2_+_95907328.23-P1P2"
PREFIXED = re.compile(r"(?:sgrna|grna|sg)[-_ ]?(?=[A-Z0-9])(.+)")


def targets_of(names: Iterable[str]) -> dict[str, str]:
    """Return the target of each name that is a guide's: "ZAP70_1", "sgZAP70", "ZAP70-g2".

    A gene's own symbol ("NKX2-1") is not a guide. Without a word such as g or guide the target must
    be a gene, because "compound_1" and "compound_2" are two compounds.
    """
    found = {}
    for name in names:
        if not is_control(name) and (target := _target(name)):
            found[name] = target
    return found


def _target(name: str) -> str:
    """Return the target of a guide, "" for another name."""
    if is_gene(name):
        return ""
    prefixed = PREFIXED.fullmatch(name)
    bare = prefixed[1] if prefixed else name
    if prefixed and is_gene(bare):
        return bare
    for pattern in (STRANDED, MARKED, NUMBERED):
        if match := pattern.fullmatch(bare):
            target = match[1].rstrip("-_. ")
            last = re.split(r"[_ ]", target)[-1]  # after the name of a library
            if is_gene(target):
                return target
            if pattern is not NUMBERED and len(last) > 1 and is_gene(last):
                return last
            separated = re.search(r"[-_. ](?:sgrna|grna|guide)[-_. ]?\d+$", bare, re.IGNORECASE)
            if target and (pattern is STRANDED or separated):
                return target
    return ""


def guides_note(targets: Mapping[str, str], joined: bool) -> list[str]:
    """Return a note on how many guides the targets have, and that they can be joined."""
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
