"""Collections of gene sets: those shipped with the package, GMT files, and Enrichr's.

The shipped ones use the symbols of 2022. `match` finds other names of a gene, and mouse genes, if
they mean exactly one gene. Only a download from Enrichr needs a network.
"""

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from samsvae_core.genesets.symbols import (
    HINTS,
    RESOURCES,
    current_symbols,
    is_identifier,
    kind,
    species,
)

MAX_BYTES = 64 * 2**20  # most bytes of a GMT file; the largest shipped has 6 MB
MOST_ENTRIES = 5 * 10**6  # most tabs; all of MSigDB, 35,000 sets, has 4 million
MOST_SETS = 10**5
MOST_GENES = 3 * 10**5  # most names; human ones, old names and Ensembl ids have 150,000
MAX_NAME = 500  # most characters of a set's name
SMALLER = "Keep the collections or sets that are to be tested, or split the file."
SEPARATORS = {",": "commas", ";": "semicolons", " ": "spaces"}
SEPARATOR = re.compile("[,; ]")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
WEIGHT = re.compile(r",[0-9.]+$")  # in files from Enrichr: "STAT1,1.0"
DESCRIPTION = re.compile(r"|na|n/a|none|null|-|>.*|https?://.*", re.IGNORECASE)


class Source(NamedTuple):
    """What is known of a shipped collection without opening it; sha256 is of the unzipped file."""

    name: str
    title: str
    version: str
    source: str
    licence: str
    licence_url: str
    attribution: str
    n_sets: int
    n_genes: int
    sha256: str


@dataclass(frozen=True)
class Collection:
    """Named sets of genes. `descriptions` is the second column of the GMT file, a link or an id."""

    name: str
    title: str
    version: str
    source: str
    licence: str
    sets: dict[str, tuple[str, ...]]
    descriptions: dict[str, str]
    checksum: str

    @cached_property
    def genes(self) -> frozenset[str]:
        return frozenset(gene for genes in self.sets.values() for gene in genes)


class Overlap(NamedTuple):
    """The number of measured genes in any set, and of sets within the size limits."""

    n_genes: int
    n_sets: int


class Match(NamedTuple):
    """A collection in the symbols of the data, and how they were found."""

    collection: Collection
    n_same: int
    renamed: dict[str, str]  # measured name to the collection's older or newer name or id
    by_case: dict[str, str]  # measured name to the collection's symbol in other case
    unmatched: tuple[str, ...]  # measured genes in no set, under any name
    species: tuple[str | None, str | None]  # of data and collection, by their symbols


@cache
def collections() -> dict[str, Source]:
    """Return the shipped collections by name."""
    sources = json.loads((RESOURCES / "SOURCES.json").read_text(encoding="utf-8"))
    return {entry["name"]: Source(**entry) for entry in sources["collections"]}


@cache
def load_collection(name: str) -> Collection:
    """Return a shipped collection by name; raises ValueError for an unknown one."""
    if name not in collections():
        known = ", ".join(sorted(collections()))
        raise ValueError(f"Unknown collection {name!r}; choose one of {known}, or give a GMT file.")
    about = collections()[name]
    parsed = parse_gmt((RESOURCES / f"{name}.gmt.gz").read_bytes(), name)
    parsed = replace(parsed, title=about.title, version=about.version)
    return replace(parsed, source=about.source, licence=about.licence)


def read_gmt(path: str | Path) -> Collection:
    """Return the collection in a GMT file, plain or gzipped, named after the file.

    Raises ValueError for a file that is absent or invalid.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"Expected a GMT file at {path}; there is none.")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    return parse_gmt(content, path.name.removesuffix(".gz").removesuffix(".gmt"))


def parse_gmt(content: bytes, name: str) -> Collection:
    """Return the collection in a GMT file's content: name, description and genes, tab-separated.

    Raises ValueError with the line at fault.
    """
    text = _text(content, name)
    for what, mark, most in (("tabs", "\t", MOST_ENTRIES), ("lines", "\n", MOST_SETS)):
        if (n := text.count(mark)) > most:
            raise ValueError(f"{name} has {n:,} {what}; {most:,} is the most. {SMALLER}")
    lines = list(io.StringIO(text, newline=None))
    if name.lower().endswith(".gmx") or _has_sets_in_columns(lines):
        raise ValueError(
            f"{name} has a gene set per column (GMX); expected one per line, with name, description"
            " and genes. Transpose the table."
        )
    sets: dict[str, tuple[str, ...]] = {}
    descriptions: dict[str, str] = {}
    known: dict[str, str] = {}  # keeps each name in memory once
    for number, line in enumerate(lines, start=1):
        if line.strip():
            term, description, genes = _fields(line, f"{name}, line {number}", known)
            if len(known) > MOST_GENES:
                raise ValueError(
                    f"{name} has more than {MOST_GENES:,} different names of genes up to line"
                    f" {number:,}; no organism has so many. {SMALLER}"
                )
            if term in sets:
                raise ValueError(f"{name}, line {number}: set {term!r} is here twice; rename one.")
            sets[term], descriptions[term] = genes, description
    if not sets:
        raise ValueError(f"{name} holds no gene set; expected lines of name, description, genes.")
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return Collection(name, name, "", "file", "", sets, descriptions, checksum)


def as_gmt(collection: Collection) -> str:
    """Return the collection as a GMT file: name, description and genes, separated by tabs."""
    lines = (
        "\t".join([term, collection.descriptions.get(term, ""), *genes])
        for term, genes in collection.sets.items()
    )
    return "".join(f"{line}\n" for line in lines)


def _text(content: bytes, name: str) -> str:
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"{name} is larger than {MAX_BYTES >> 20} MB; split it.")
        if b"\0" in content:
            raise ValueError(
                f"{name} is a binary file; expected lines of name, description, genes."
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}, line {number}: not UTF-8; save the file as UTF-8.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{name} is a damaged gzip file: {error}.") from error


def _has_sets_in_columns(lines: list[str]) -> bool:
    """Return whether the second line holds only descriptions: links, or words for none."""
    second = lines[1].rstrip("\n").split("\t") if len(lines) > 1 else []
    return len(second) > 1 and all(DESCRIPTION.fullmatch(field.strip()) for field in second)


def _fields(line: str, where: str, known: dict[str, str]) -> tuple[str, str, tuple[str, ...]]:
    term, *rest = map(str.strip, line.split("\t"))
    named = [WEIGHT.sub("", field) if "," in field else field for field in rest[1:] if field]
    genes = tuple(dict.fromkeys(map(known.setdefault, named, named)))
    if not rest or (len(genes) == 1 and SEPARATOR.search(genes[0])):
        joined = genes[0] if genes else term
        mark = max(SEPARATORS, key=joined.count)
        found = SEPARATORS[mark] if mark in joined else "none"
        raise ValueError(
            f"{where}: expected a set's name, a description and genes, with tabs between them;"
            f" found {found} in {joined[:60]!r}. Save the file with tabs."
        )
    if not term:
        raise ValueError(f"{where}: the set has no name; write one before the first tab.")
    if len(term) > MAX_NAME or CONTROL.search(term):
        raise ValueError(
            f"{where}: expected a name of at most {MAX_NAME} characters, none of them a control"
            f" character; found {len(term):,} characters, {term[:60]!r}. Rename the set."
        )
    if not genes:
        raise ValueError(f"{where}: set {term[:60]!r} has no genes; remove the line.")
    return term, rest[0], genes


def usable_sets(
    collection: Collection, genes: Iterable[str], min_size: int = 5, max_size: int = 500
) -> dict[str, tuple[str, ...]]:
    """Return each set's measured genes, for the sets with `min_size` to `max_size` of them.

    A set of all measured genes is left out, as it cannot stand out from anything.
    """
    measured = frozenset(genes)
    limits = range(min_size, min(max_size + 1, len(measured)))
    found = {t: tuple(g for g in genes if g in measured) for t, genes in collection.sets.items()}
    return {term: members for term, members in found.items() if len(members) in limits}


def overlap(
    collection: Collection, genes: Iterable[str], min_size: int = 5, max_size: int = 500
) -> Overlap:
    """Return how much of a collection can be tested with the measured genes."""
    measured = frozenset(genes)
    n_sets = len(usable_sets(collection, measured, min_size, max_size))
    return Overlap(len(measured & collection.genes), n_sets)


def match(collection: Collection, symbols: Iterable[str]) -> Match:
    """Return the collection with its genes named as in the data, so that leading edges are too."""
    measured = sorted({str(symbol) for symbol in symbols})
    found = current_symbols(measured, collection.genes)
    changed = {gene: found[gene] for gene in measured if found.get(gene, gene) != gene}
    by_case = {gene: name for gene, name in changed.items() if gene.upper() == name.upper()}
    renamed = {gene: name for gene, name in changed.items() if gene not in by_case}
    unmatched = tuple(gene for gene in measured if gene not in found)
    written = species(measured), species(collection.genes)
    if changed:
        new = {name: gene for gene, name in changed.items()}
        sets = {t: tuple(new.get(g, g) for g in genes) for t, genes in collection.sets.items()}
        mark = hashlib.sha256((collection.checksum + json.dumps(changed)).encode()).hexdigest()
        collection = replace(collection, sets=sets, checksum=mark)
    return Match(collection, len(found) - len(changed), renamed, by_case, unmatched, written)


def describe(match: Match) -> str:
    """Return how many genes were found in the collection, and what the others may be."""
    n_ids = sum(is_identifier(gene) or is_identifier(n) for gene, n in match.renamed.items())
    n_found, n_unmatched = match.n_same + len(match.by_case | match.renamed), len(match.unmatched)
    ways = {
        "by the same symbol": match.n_same,
        "by the symbol in capitals": len(match.by_case),
        "through an older or newer name": len(match.renamed) - n_ids,
        "through an Ensembl or Entrez id": n_ids,
    }
    text = f"{n_found:,} of {n_found + n_unmatched:,} genes are in {match.collection.title}"
    if n_found:
        text += ": " + ", ".join(f"{n:,} {way}" for way, n in ways.items() if n)
    text += f"; {n_unmatched:,} are in none of its sets." if n_found and n_unmatched else "."
    ours, theirs = match.species
    if (match.by_case or match.renamed) and None not in (ours, theirs) and ours != theirs:
        text += (
            f" The data have {ours} symbols and the collection {theirs} ones; they were met by the"
            " symbol in capitals, which is an approximation of orthology."
        )
    what = kind(match.unmatched)
    if n_unmatched > n_found and what in HINTS:
        text += f" Most of the others are {what}, such as {_examples(match.unmatched)}."
        text += f" {HINTS[what]}"
    return text


def why_little(collection: Collection, symbols: Iterable[str]) -> str:
    """Return the likely reason why hardly any gene is in the collection, with examples."""
    ours, theirs = sorted({str(symbol) for symbol in symbols}), sorted(collection.genes)
    kinds = kind(ours), kind(theirs)
    text = (
        f"The data have {kinds[0]} ({_examples(ours)}), {collection.title} has {kinds[1]}"
        f" ({_examples(theirs)})."
    )
    hints = [HINTS[what] for what in dict.fromkeys(kinds) if what in HINTS]
    panel = (
        f"Such names are understood, but the {len(ours):,} genes of the data and the"
        f" {len(theirs):,} of the collection have little in common: take a larger collection."
    )
    return " ".join([text, *(hints or [panel])])


def _examples(names: Sequence[str]) -> str:
    """Return three names from all over a list."""
    return ", ".join(name[:40] for name in names[:: len(names) // 3 or 1][:3])
