"""The user's names and notes for mechanisms, in a small JSON file beside the bundle.

    {"schema": 1, "bundle": name, "checksum": of the bundle,
     "mechanisms": {"0": {"name": "interferon response", "note": "..."}}}

Mechanism numbers belong to one training, so a file is valid only for the bundle with its checksum.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import to_json
from samsvae_core.system.files import OutputError, atomic_write

SCHEMA = 1
NAME_LENGTH, NOTE_LENGTH = 80, 2000  # characters
MAX_BYTES = 2**20
# Control characters other than tab and line feed, and those that break lines or turn the text
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class Label(NamedTuple):
    """The user's name for a mechanism and a note on it; either may be empty."""

    name: str
    note: str = ""


class Names(NamedTuple):
    """Labels by mechanism, or the reason why an existing file was not read."""

    labels: dict[int, Label]
    problem: str


def names_file(bundle: Bundle) -> Path:
    """Return the path of the names: papalexi2021.names.json beside papalexi2021."""
    folder = bundle.path.absolute()
    return folder.with_name(f"{folder.name}.names.json")


def read_names(bundle: Bundle) -> Names:
    """Return the user's names; if the file cannot be used, no names and the problem."""
    path = names_file(bundle)
    try:
        with path.open("rb") as file:
            return Names(import_names(bundle, file.read(MAX_BYTES + 1)), "")
    except FileNotFoundError:
        return Names({}, "")
    except OSError as error:
        return Names({}, f"{path} cannot be read ({error.strerror}); names are not shown.")
    except ValueError as error:
        return Names({}, f"{path}: {error}")


def write_names(bundle: Bundle, labels: Mapping[int, Label]) -> None:
    """Store all names and notes of a bundle; labels that are left out are deleted.

    Raises OutputError if the file cannot be written, or would replace one that cannot be read or
    belongs to another bundle; ValueError for an invalid label.
    """
    content, path = export_names(bundle, labels), names_file(bundle)
    if problem := read_names(bundle).problem:
        raise OutputError(f"{problem} Move that file away to keep names here, or download them.")
    try:
        atomic_write(path, content)
    except OutputError as error:
        why = str(error).rpartition(". ")[0]
        raise OutputError(f"{why}. Download the names instead.") from error


def export_names(bundle: Bundle, labels: Mapping[int, Label]) -> bytes:
    """Return the content of the file, without empty labels."""
    kept = {str(k): checked(bundle, str(k), *label)._asdict() for k, label in labels.items()}
    content = to_json(
        {
            "schema": SCHEMA,
            "bundle": bundle.name,
            "checksum": bundle.checksum,
            "mechanisms": {k: label for k, label in sorted(kept.items()) if any(label.values())},
        }
    )
    if len(content) > MAX_BYTES:
        raise ValueError(f"The notes are {len(content):,} bytes; 1 MB is the most. Shorten some.")
    return content


def import_names(bundle: Bundle, content: bytes) -> dict[int, Label]:
    """Return the labels in a file; raises ValueError if it is damaged or of another bundle."""
    if len(content) > MAX_BYTES:
        raise ValueError("This is larger than 1 MB, so not a file of names. Choose another.")
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"This is not a file of names: it cannot be read as JSON ({error}). Choose another."
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get("mechanisms"), dict):
        raise ValueError("This is not a file of names: it has no mechanisms. Choose another.")
    if found.get("schema") != SCHEMA:
        raise ValueError(
            f"This file of names is of another version; this one reads schema {SCHEMA}. "
            "Install a newer SAMS-VAE Explorer, or choose another file."
        )
    if found.get("checksum") != bundle.checksum:
        other = found.get("bundle")
        other = f" ({other[:NAME_LENGTH]!r})" if isinstance(other, str) else ""
        raise ValueError(
            f"These names are for another model{other} or another training than this "
            f"{bundle.name!r}, with mechanisms of its own. They were not applied."
        )
    labels = {}
    for k, entry in found["mechanisms"].items():
        parts = [entry.get(part, "") for part in Label._fields] if isinstance(entry, dict) else []
        if not parts or not all(isinstance(part, str) for part in parts):
            raise ValueError(f"Mechanism {k[:9]!r}: expected a name and a note, both text.")
        labels[int(k)] = checked(bundle, k, *parts)
    return {k: label for k, label in labels.items() if any(label)}


def checked(bundle: Bundle, mechanism: str, name: str, note: str) -> Label:
    """Return the label with surrounding blanks removed; raises ValueError if it is invalid."""
    n = bundle.model.config.n_latent
    if mechanism not in map(str, range(n)):
        raise ValueError(f"There is no mechanism {mechanism[:9]!r}; this model has 0 to {n - 1}.")
    label = Label(name.strip(), note.strip().replace("\r\n", "\n"))
    for what, text, limit in (("name", label.name, NAME_LENGTH), ("note", label.note, NOTE_LENGTH)):
        where = f"The {what} of mechanism {mechanism}"
        if len(text) > limit:
            raise ValueError(f"{where} has {len(text):,} characters; {limit:,} is the most.")
        if CONTROL.search(text) or (what == "name" and re.search(r"[\t\n]", text)):
            raise ValueError(
                f"{where} has control characters{' or several lines' * (what == 'name')}. "
                "Type it again as plain text."
            )
    return label
