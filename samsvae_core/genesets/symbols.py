"""Names of genes: what a symbol, an older name or an identifier means, offline.

The annotation that ships is of human genes, with the symbols of 2022. Other names, Ensembl and
Entrez ids are understood where they mean one gene and no other. Of mouse genes there is no table:
they meet human ones by the symbol in capitals, which is an approximation of orthology.
"""

import gzip
import io
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType

import pandas as pd

RESOURCES = files("samsvae_core") / "resources"
MOSTLY = 0.8  # of the names, from which they are said to be of one species
KNOWN = 0.3  # of the names, from which they are taken for genes: mouse has many that human lacks
MOST_NUMBERS = (
    0.9  # of numbers, from which they are Entrez ids: of random ones below 5,000 80 % are
)
MOST_DIGITS = 9  # of a row number
UNKNOWN = "names that are not known here"
ROW_NUMBERS = "row numbers"
ENTREZ = "Entrez ids"
IDENTIFIERS = {
    "human Ensembl ids": re.compile(r"ENSG\d{11}(\.\d+)?"),
    "mouse Ensembl ids": re.compile(r"ENSMUSG\d{11}(\.\d+)?"),
    "other Ensembl ids": re.compile(r"ENS[A-Z]*\d{11}(\.\d+)?"),
    "numbers": re.compile(r"\d+"),
    "probe ids": re.compile(r"\S+_at|ILMN_\d+|A_\d+_P\d+"),  # Affymetrix, Illumina, Agilent
}
HINTS = {
    "mouse Ensembl ids": "Mouse Ensembl ids cannot be translated here: name the genes by symbol"
    " (many files have it in a column of var, such as gene_name), or take sets with the same ids.",
    "other Ensembl ids": "Only Ensembl ids of human genes (ENSG) can be translated here: name the"
    " genes by symbol, or take sets with the same ids.",
    ROW_NUMBERS: "Row numbers name no genes: train on the column of var that holds the names"
    " (--gene-key, or the box Names of genes on the page Data).",
    "numbers": "Too few of these numbers are Entrez ids of human genes to be read as such. They may"
    " be row numbers, or ids of another species: train on the column of var that holds the names"
    " (--gene-key, or the box Names of genes on the page Data).",
    "probe ids": "Array probes cannot be translated here: name the genes by symbol.",
    UNKNOWN: "Few of these are human or mouse symbols: for another species, take sets with names as"
    " in the data.",
}
ENSEMBL = re.compile(r"(ENS[A-Z]*)\d{11}")
OPEN_FRAME = r"C(\d+|[XY])orf\d+[\w-]*"  # C1orf112: human, in spite of its small letters
HUMAN = re.compile(rf"{OPEN_FRAME}|(?=[^A-Z]*[A-Z])[A-Z0-9][A-Z0-9._@/-]*")
MOUSE = re.compile(rf"H2-[A-Z]\w*|(?!{OPEN_FRAME})(?=[^a-z]*[a-z])(mt-|\d*[A-Z])[A-Za-z0-9.-]*")


@cache
def _annotation() -> pd.DataFrame:
    text = io.BytesIO(gzip.decompress((RESOURCES / "genes.csv.gz").read_bytes()))
    return pd.read_csv(text, index_col="symbol", dtype=str, keep_default_na=False)


@cache
def _by_name() -> dict[str, str]:
    """Symbols, and aliases and Ensembl ids that mean one gene only, and the symbol of that gene."""
    table = _annotation()
    names = pd.concat([table[column].str.split("|").explode() for column in ("aliases", "ensembl")])
    names = names[~names.duplicated(keep=False) & ~names.isin(table.index)]
    others = {str(name): str(symbol) for symbol, name in names.items()}
    return others | {str(symbol): str(symbol) for symbol in table.index}


@cache
def _by_entrez() -> dict[str, str]:
    return {str(number): str(symbol) for symbol, number in _annotation()["entrez"].items()}


def without_version(name: str) -> str:
    """An Ensembl id without its version; any other name as it is."""
    return name.partition(".")[0] if ENSEMBL.match(name) else name


@cache
def is_gene(name: str) -> bool:
    """Whether a name is the symbol of a human gene, or of a mouse one that is a human one's too.

    Older names and ids count from five letters on: "KO" and "LIB" are other names of genes as well.
    """
    for text in dict.fromkeys([name, name.upper() if name[:1].isupper() else name]):
        if text in _annotation().index or (len(text) > 4 and without_version(text) in _by_name()):
            return True
    return False


def annotate(symbols: Iterable[str], entrez: bool = False) -> pd.DataFrame:
    """Name, aliases, Entrez and Ensembl ids, indexed by symbol as given; NaN for unknown genes.

    Several aliases or Ensembl ids have a "|" between them. `current` is the symbol that an alias
    or Ensembl id was understood as. Numbers are read as Entrez ids only if they are said to be.
    """
    given = [str(symbol) for symbol in symbols]
    names = [_by_entrez().get(name, name) for name in given] if entrez else given
    found = [_by_name().get(without_version(name)) for name in names]
    current = pd.Index(found, dtype=object, name="current")
    return _annotation().reindex(current).reset_index().set_index(pd.Index(given, name="symbol"))


def species(names: Iterable[str]) -> str | None:
    """By how the symbols are written "human", "mouse", or None where that does not tell.

    STAT1 and C1orf112 are human, Stat1, mt-Nd1, H2-K1 and 1700001C02Rik mouse; Ensembl ids count
    by their prefix. Rat is written as mouse is, and yeast as human is.
    """
    written = Counter(_written(str(name)) for name in names)
    found, n = max(written.items(), key=lambda item: item[1], default=(None, 0))
    return found if n >= MOSTLY * written.total() else None


def _written(name: str) -> str | None:
    if identifier := ENSEMBL.match(name):
        return {"ENSG": "human", "ENSMUSG": "mouse"}.get(identifier[1])
    return "mouse" if MOUSE.fullmatch(name) else "human" if HUMAN.fullmatch(name) else None


def are_row_numbers(names: Iterable[str]) -> bool:
    """Whether most names only count from 0 or 1: all of such a run, or more than half of it.

    Files lose the names of genes when another program stores them in a column and numbers the
    rows. Part of a run is what is left after genes were filtered.
    """
    given = [str(name) for name in names]
    numbers = [int(name) for name in given if name.isdecimal() and len(name) <= MOST_DIGITS]
    if len(numbers) <= len(given) / 2:
        return False
    return len(numbers) > (max(numbers) + 1) / 2


def are_entrez(names: Iterable[str]) -> bool:
    """Whether names are Entrez ids: most are numbers, no row numbers, and known human genes.

    Genes were numbered from 1, so most small numbers are ids, and any row numbers would pass for
    some. Of real ids nearly all are known.
    """
    given = [str(name) for name in names]
    numbers = [name for name in given if name.isdecimal()]
    if len(numbers) <= len(given) / 2 or are_row_numbers(numbers):
        return False
    return sum(name in _by_entrez() for name in numbers) >= MOST_NUMBERS * len(numbers)


def _numbers(names: Collection[str]) -> str:
    """What the numbers among names are: `ROW_NUMBERS`, `ENTREZ`, or "numbers"."""
    return ROW_NUMBERS if are_row_numbers(names) else ENTREZ if are_entrez(names) else "numbers"


def is_identifier(name: str) -> bool:
    """Whether a name is an id of a database rather than a symbol."""
    return any(pattern.fullmatch(name) for pattern in IDENTIFIERS.values())


def kind(names: Iterable[str]) -> str:
    """What most names are: a key of `IDENTIFIERS`, "human symbols" and the like, or `UNKNOWN`.

    Numbers are told apart: `ROW_NUMBERS`, `ENTREZ`, or "numbers" where they are neither.
    """
    given = [str(name) for name in names]
    for what, pattern in IDENTIFIERS.items():
        if sum(pattern.fullmatch(name) is not None for name in given) > len(given) / 2:
            return _numbers(given) if what == "numbers" else what
    table = _by_name()
    n_known = sum(name in table or name.upper() in table for name in given)
    return f"{species(given) or 'gene'} symbols" if n_known > KNOWN * len(given) else UNKNOWN


def current_symbols(symbols: Iterable[str], universe: Iterable[str]) -> dict[str, str]:
    """Each symbol's name in the universe; symbols that have none there are absent.

    A symbol of the universe is itself. Any other is met through the gene's other names and ids,
    provided that they lead to one name of the universe that no second measured symbol claims.
    Symbols of two species meet in capitals, on the same terms; those of one do not. Numbers
    meet those of the same sort only: a row number is not the Entrez id that looks like it.
    """
    measured, universe = {str(symbol) for symbol in symbols}, frozenset(universe)
    sorts = _numbers(measured), _numbers(universe)
    same = sorts[0] == sorts[1]
    found = {name: name for name in measured & universe if same or not name.isdecimal()}
    ours, theirs = species(measured), species(universe)
    in_capitals = None not in (ours, theirs) and ours != theirs
    if in_capitals:
        ours_up, theirs_up = ({name: name.upper() for name in s} for s in (measured, universe))
        found |= _pairs(ours_up, theirs_up, found)
    return found | _pairs(
        _meanings(measured, in_capitals, sorts[0] == ENTREZ),
        _meanings(universe, in_capitals, sorts[1] == ENTREZ),
        found,
    )


def _meanings(names: Iterable[str], in_capitals: bool, entrez: bool) -> dict[str, str]:
    """The current symbol behind each name, or the name itself; of a number only if `entrez`.

    A number without a meaning stands for nothing but itself: it gets a key that no symbol has.
    """
    keys = {}
    for name in names:
        bare = without_version(name)
        other = bare.upper() if in_capitals else bare
        if name.isdecimal():
            keys[name] = _by_entrez().get(name, f"number {name}") if entrez else f"row {name}"
        else:
            keys[name] = _by_name().get(bare) or _by_name().get(other, other)
    return keys


def _pairs(ours: dict[str, str], theirs: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """One of ours and one of theirs with the same key that nobody else has; none found before."""
    here, there = defaultdict(list), defaultdict(list)
    for name in ours.keys() - found.keys():
        here[ours[name]].append(name)
    for name, key in theirs.items():
        there[key].append(name)
    taken = set(found.values())
    return {
        names[0]: there[key][0]
        for key, names in here.items()
        if len(names) == len(there.get(key, ())) == 1 and there[key][0] not in taken
    }


def known_genes(
    given: Iterable[str], genes: Iterable[str], ids: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[str], list[str]]:
    """A reader's list of genes in the model's own names, and those of the list it does not have.

    Both in the order given and without repeats. Other names, ids and capitals are understood where
    they lead to one gene of the model; `ids` are those of the data, with the gene of each. A number
    that is no name of the model is read as an Entrez id.
    """
    names = list(dict.fromkeys(filter(None, (str(name).strip() for name in given))))
    own = {str(gene) for gene in genes}
    capitals, meant = defaultdict(set), defaultdict(set)
    for gene, meaning in _meanings(own, True, are_entrez(own)).items():
        capitals[gene.upper()].add(gene)
        meant[meaning].add(gene)
    found: dict[str, None] = {}
    unknown, of_data = [], _by_bare_id(ids)
    for name, meaning in _meanings(names, True, True).items():
        by_id = of_data.get(without_version(name).upper(), set())
        leads = own & {name} or by_id or capitals[name.upper()] or meant[meaning]
        if len(leads) == 1:
            found |= dict.fromkeys(leads)
        else:
            unknown.append(name)
    return list(found), unknown


def _by_bare_id(ids: Mapping[str, str]) -> dict[str, set[str]]:
    """The genes of each id, in capitals and without the version of an Ensembl id."""
    found = defaultdict(set)
    for name, gene in ids.items():
        found[without_version(str(name)).upper()].add(gene)
    return dict(found)


def describe_unknown(unknown: list[str], genes: Iterable[str]) -> str:
    """A sentence on the genes of a reader's list that the model does not have."""
    own = {str(gene) for gene in genes}
    n, more = len(unknown), f" and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
    listed = ", ".join(name[:40] for name in unknown[:10]) + more
    text = (
        f"{n:,} of the genes given {'is' if n == 1 else 'are'} not among the model's {len(own):,}"
    )
    text += f", under any name: {listed}."
    what = kind(unknown)
    return f"{text} {HINTS[what]}" if what in HINTS and what != kind(own) else text


def search_genes(
    query: str,
    genes: Iterable[str],
    limit: int = 20,
    ids: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Genes whose symbol, or else an alias, begins with the query, and which name did.

    An Ensembl id, with or without its version, and an Entrez id find a gene as a whole: those of
    the annotation, and `ids`, those of the data with the gene of each. Capitals do not matter.
    Symbols come before other names, whole names before beginnings.
    """
    start = query.strip().upper()
    if not start:
        return {}
    hits: dict[str, str] = {}
    own = tuple(dict.fromkeys(map(str, genes)))
    for capitals, gene, name in _searched(own):
        if capitals.startswith(start):
            hits.setdefault(gene, name)
    whole = without_version(start)
    found = _by_bare_id(ids).get(whole, set()) | set(_searched_ids(own).get(whole, ()))
    for gene in own:
        if gene in found:
            hits.setdefault(gene, query.strip())
    ordered = sorted(hits.items(), key=lambda hit: (hit[0] != hit[1], hit[1].upper() != start, hit))
    return dict(ordered[:limit])


@lru_cache(maxsize=4)
def _current(genes: tuple[str, ...]) -> pd.DataFrame:
    """The annotation of a model's genes, in their order; numbers are Entrez ids if all are."""
    return annotate(genes, are_entrez(genes)).fillna("")


@lru_cache(maxsize=4)
def _searched(genes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each name of each gene in capitals, the gene, and the name; a gene's own symbol first."""
    table = _current(genes)
    names = zip(genes, table["current"], table["aliases"].str.split("|"), strict=True)
    return [
        (name.upper(), gene, name)
        for gene, current, aliases in names
        for name in dict.fromkeys([gene, current, *aliases])
        if name
    ]


@lru_cache(maxsize=4)
def _searched_ids(genes: tuple[str, ...]) -> dict[str, list[str]]:
    """The genes of each Ensembl and Entrez id in capitals, and of the Ensembl ids among them."""
    table = _current(genes)
    found = defaultdict(list)
    for gene, ensembl, entrez in zip(genes, table["ensembl"], table["entrez"], strict=True):
        for name in {without_version(gene).upper(), *ensembl.split("|"), entrez} - {""}:
            found[name].append(gene)
    return dict(found)
