"""Names from files, so that Markdown shows them as they are."""

from __future__ import annotations

import re

# Where Streamlit makes something of a text after Markdown was read, so that a backslash is no help:
# links, icons and emoji, arrows and dashes.
MADE_OF = re.compile(
    r"(?<=http)(?=\\?://)|(?<=https)(?=\\?://)|(?<=www)(?=\\?\.)|(?=@)"
    r"|(?<=:)(?=[\w+-][\w/+\\-]*:)"
    r"|(?<=[<~])(?=[=-])|(?<=>)(?==)|(?<=-)(?=\\?>)|(?<=\s-)(?=-\s)",
    re.IGNORECASE,
)
MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+\-.!|<>~$:&])")


def plain(name: object) -> str:
    """A name from a file, so that Markdown shows it as it is."""
    return MARKDOWN.sub(r"\\\1", parted(str(name)))


def parted(text: str) -> str:
    """Markdown from a file without links, icons and arrows that are not written as such.

    A sign that is not seen (U+2060) parts what would become one.
    """
    return MADE_OF.sub("\u2060", text)
