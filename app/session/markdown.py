"""Escaping names from files, so that Markdown shows them as they are."""

from __future__ import annotations

import re

# Streamlit turns these into links, icons, emoji, arrows and dashes after it has parsed the
# Markdown, so a backslash does not help.
MADE_OF = re.compile(
    r"(?<=http)(?=\\?://)|(?<=https)(?=\\?://)|(?<=www)(?=\\?\.)|(?=@)"
    r"|(?<=:)(?=[\w+-][\w/+\\-]*:)"
    r"|(?<=[<~])(?=[=-])|(?<=>)(?==)|(?<=-)(?=\\?>)|(?<=\s-)(?=-\s)",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&])")


def plain(name: object) -> str:
    """Return a name escaped, so that Markdown shows it as it is."""
    return MARKDOWN.sub(r"\\\1", parted(str(name)))


def parted(text: str) -> str:
    """Return Markdown that Streamlit adds no links, icons or arrows to.

    An invisible character (U+2060) splits whatever would become one.
    """
    return MADE_OF.sub("\u2060", text)
