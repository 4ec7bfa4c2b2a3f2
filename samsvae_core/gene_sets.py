"""Collections of gene sets, and gene annotation: offline, from files that ship with the package.

Symbols are those of 2022, as in the collections. Older and newer names of a gene, and Ensembl
identifiers, are met by `match` where they mean one gene and no other.
"""

import gzip
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import pandas as pd

RESOURCES = files("samsvae_core") / "resources"
MAX_BYTES = 64 * 2**20  # of a GMT file; GO biological process, the largest shipped, has 6 MB


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
    """Named sets of genes. `descriptions` is the second column of the GMT file: a link or an id."""

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
    """How many measured genes belong to any set, and how many sets are within the limits."""

    n_genes: int
    n_sets: int


class Match(NamedTuple):
    """A collection in the symbols of the data, and how they were found."""

    collection: Collection
    n_same: int
    renamed: dict[str, str]  # measured: the collection's symbol
    unmatched: tuple[str, ...]  # measured genes of no set, under any name


@cache
def collections() -> dict[str, Source]:
    """The shipped collections by name."""
    sources = json.loads((RESOURCES / "SOURCES.json").read_text(encoding="utf-8"))
    return {entry["name"]: Source(**entry) for entry in sources["collections"]}


@cache
def load_collection(name: str) -> Collection:
    """A shipped collection by name."""
    if name not in collections():
        known = ", ".join(sorted(collections()))
        raise ValueError(f"Unknown collection {name!r}; choose one of {known}, or give a GMT file.")
    about = collections()[name]
    parsed = parse_gmt((RESOURCES / f"{name}.gmt.gz").read_bytes(), name)
    parsed = replace(parsed, title=about.title, version=about.version)
    return replace(parsed, source=about.source, licence=about.licence)


def read_gmt(path: str | Path) -> Collection:
    """A GMT file of one's own, plain or gzipped, named after the file."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"Expected a GMT file at {path}; there is none.")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    return parse_gmt(content, path.name.removesuffix(".gz").removesuffix(".gmt"))


def parse_gmt(content: bytes, name: str) -> Collection:
    """The collection in a GMT file's content: name, description and genes, a tab between them."""
    text = _text(content, name)
    sets: dict[str, tuple[str, ...]] = {}
    descriptions: dict[str, str] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            term, description, genes = _fields(line, f"{name}, line {number}")
            if term in sets:
                raise ValueError(f"{name}, line {number}: set {term!r} is here twice; rename one.")
            sets[term], descriptions[term] = genes, description
    if not sets:
        raise ValueError(f"{name} holds no gene set; expected lines of name, description, genes.")
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return Collection(name, name, "", "file", "", sets, descriptions, checksum)


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


def _fields(line: str, where: str) -> tuple[str, str, tuple[str, ...]]:
    term, *rest = (field.strip() for field in line.split("\t"))
    genes = tuple(dict.fromkeys(field for field in rest[1:] if field))
    if not genes:
        raise ValueError(
            f"{where}: expected a set's name, a description and genes, with tabs between them;"
            f" found {len(rest) + 1} of at least 3 fields: {line.rstrip()[:60]!r}."
        )
    if not term:
        raise ValueError(f"{where}: the set has no name; write one before the first tab.")
    return term, rest[0], genes


def usable_sets(
    collection: Collection, genes: Iterable[str], min_size: int = 5, max_size: int = 500
) -> dict[str, tuple[str, ...]]:
    """Each set's measured genes, for the sets with `min_size` to `max_size` of them.

    A set of all measured genes is left out too: it stands out from nothing.
    """
    measured = frozenset(genes)
    limits = range(min_size, min(max_size + 1, len(measured)))
    found = {t: tuple(g for g in genes if g in measured) for t, genes in collection.sets.items()}
    return {term: members for term, members in found.items() if len(members) in limits}


def overlap(
    collection: Collection, genes: Iterable[str], min_size: int = 5, max_size: int = 500
) -> Overlap:
    """How much of a collection can be asked of the measured genes."""
    measured = frozenset(genes)
    n_sets = len(usable_sets(collection, measured, min_size, max_size))
    return Overlap(len(measured & collection.genes), n_sets)


@cache
def _annotation() -> pd.DataFrame:
    text = io.BytesIO(gzip.decompress((RESOURCES / "genes.csv.gz").read_bytes()))
    return pd.read_csv(text, index_col="symbol", dtype=str, keep_default_na=False)


@cache
def _other_names() -> dict[str, str]:
    """Aliases and Ensembl identifiers that mean one gene only, and its symbol."""
    table = _annotation()
    names = pd.concat([table[column].str.split("|").explode() for column in ("aliases", "ensembl")])
    names = names[~names.duplicated(keep=False) & ~names.isin(table.index)]
    return {str(name): str(symbol) for symbol, name in names.items()}


def _current(name: str) -> str | None:
    return name if name in _annotation().index else _other_names().get(name)


def annotate(symbols: Iterable[str]) -> pd.DataFrame:
    """Name, aliases, Entrez and Ensembl ids, indexed by symbol as given; NaN for unknown genes.

    Several aliases or Ensembl ids have a "|" between them. `current` is the symbol that an alias
    or Ensembl id was understood as.
    """
    given = [str(symbol) for symbol in symbols]
    current = pd.Index([_current(symbol) for symbol in given], dtype=object, name="current")
    return _annotation().reindex(current).reset_index().set_index(pd.Index(given, name="symbol"))


def current_symbols(symbols: Iterable[str], universe: Iterable[str]) -> dict[str, str]:
    """Each symbol's name in the universe; symbols that have none there are absent.

    A symbol of the universe is itself. Any other is met through the gene's other names, provided
    that they lead to one symbol of the universe that no second measured symbol claims.
    """
    measured, universe = {str(symbol) for symbol in symbols}, frozenset(universe)
    claims: dict[str, str] = {}
    for gene, row in annotate(sorted(measured.difference(universe))).dropna().iterrows():
        names = [row["current"], *(a for a in row["aliases"].split("|") if a in _other_names())]
        known = [name for name in names if name in universe]
        if len(known) == 1 and known[0] not in measured:
            claims[str(gene)] = known[0]
    n_claims = Counter(claims.values())
    same = {gene: gene for gene in measured.intersection(universe)}
    return same | {gene: name for gene, name in claims.items() if n_claims[name] == 1}


def match(collection: Collection, symbols: Iterable[str]) -> Match:
    """The collection with its genes called as in the data, so that leading edges are too."""
    measured = sorted({str(symbol) for symbol in symbols})
    found = current_symbols(measured, collection.genes)
    renamed = {gene: found[gene] for gene in measured if found.get(gene, gene) != gene}
    unmatched = tuple(gene for gene in measured if gene not in found)
    if renamed:
        new = {name: gene for gene, name in renamed.items()}
        sets = {t: tuple(new.get(g, g) for g in genes) for t, genes in collection.sets.items()}
        mark = hashlib.sha256((collection.checksum + json.dumps(renamed)).encode()).hexdigest()
        collection = replace(collection, sets=sets, checksum=mark)
    return Match(collection, len(found) - len(renamed), renamed, unmatched)


def search_genes(query: str, genes: Iterable[str], limit: int = 20) -> dict[str, str]:
    """Genes whose symbol, or else an alias, begins with the query, and which name did.

    Capitals do not matter. Symbols come before aliases, whole names before beginnings.
    """
    start = query.strip().upper()
    hits = []
    for gene, row in annotate(dict.fromkeys(genes)).fillna("").iterrows():
        names = [str(gene), row["current"], *row["aliases"].split("|")]
        matched = next((name for name in names if name.upper().startswith(start)), None)
        if start and matched:
            hits.append((matched != gene, matched.upper() != start, str(gene), matched))
    return {gene: matched for *_, gene, matched in sorted(hits)[:limit]}
