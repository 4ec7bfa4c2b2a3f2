"""Parts of messages: lists in words, and the names that somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def some(names: Iterable[object], n: int = 3) -> str:
    """The first `n` names, and how many more there are."""
    texts = [str(name) for name in names]
    more = f" and {len(texts) - n:,} more" if len(texts) > n else ""
    return ", ".join(texts[:n]) + more


def either(names: Sequence[str]) -> str:
    """Names as a choice: "a, b or c"."""
    return " or ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])


def close(name: str, known: Iterable[object], n: int = 3, likeness: float = 0.6) -> list[str]:
    """At most `n` of the known names that are spelt most like `name`, whatever the capitals.

    `likeness` is the least ratio of `difflib`, from 0 to 1.
    """
    spelt = {str(each).casefold(): str(each) for each in known}
    return [spelt[each] for each in difflib.get_close_matches(name.casefold(), spelt, n, likeness)]


def nearest(name: str, known: Iterable[object]) -> str:
    """A sentence with the known names most like `name`, or else with the first ones."""
    names = list(dict.fromkeys(map(str, known)))
    if found := close(name, names):
        return f"Did you mean {' or '.join(map(repr, found))}?"
    return f"There are: {some(names, 10)}." if names else "There are none."
