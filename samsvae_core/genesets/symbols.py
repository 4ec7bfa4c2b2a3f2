"""Gene names: what a symbol, an older name or an identifier means, offline.

The annotation that ships is of human genes, with the symbols of 2022. Other names, Ensembl and
Entrez ids are understood if they mean exactly one gene. There is no table of mouse genes: they are
matched to human ones by the symbol in capitals, an approximation of orthology.
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
MOSTLY = 0.8  # share of names that decides on a species
KNOWN = 0.3  # share of known names from which all count as genes; many mouse genes are unknown
MOST_NUMBERS = 0.9  # share of numbers that must be Entrez ids; of random ones below 5,000, 80 % are
MOST_DIGITS = 9  # most digits of a row number
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
OPEN_FRAME = r"C(\d+|[XY])orf\d+[\w-]*"  # C1orf112 is human despite its small letters
HUMAN = re.compile(rf"{OPEN_FRAME}|(?=[^A-Z]*[A-Z])[A-Z0-9][A-Z0-9._@/-]*")
MOUSE = re.compile(rf"H2-[A-Z]\w*|(?!{OPEN_FRAME})(?=[^a-z]*[a-z])(mt-|\d*[A-Z])[A-Za-z0-9.-]*")


@cache
def _annotation() -> pd.DataFrame:
    text = io.BytesIO(gzip.decompress((RESOURCES / "genes.csv.gz").read_bytes()))
    return pd.read_csv(text, index_col="symbol", dtype=str, keep_default_na=False)


@cache
def _by_name() -> dict[str, str]:
    """Return the symbol for each symbol and for aliases and Ensembl ids that mean one gene only."""
    table = _annotation()
    names = pd.concat([table[column].str.split("|").explode() for column in ("aliases", "ensembl")])
    names = names[~names.duplicated(keep=False) & ~names.isin(table.index)]
    others = {str(name): str(symbol) for symbol, name in names.items()}
    return others | {str(symbol): str(symbol) for symbol in table.index}


@cache
def _by_entrez() -> dict[str, str]:
    return {str(number): str(symbol) for symbol, number in _annotation()["entrez"].items()}


def without_version(name: str) -> str:
    """Return an Ensembl id without its version; any other name as it is."""
    return name.partition(".")[0] if ENSEMBL.match(name) else name


@cache
def is_gene(name: str) -> bool:
    """Return whether a name is the symbol of a human gene, or of a mouse gene with its name.

    Older names and ids count only from five letters on, since "KO" and "LIB" are also names of
    genes.
    """
    for text in dict.fromkeys([name, name.upper() if name[:1].isupper() else name]):
        if text in _annotation().index or (len(text) > 4 and without_version(text) in _by_name()):
            return True
    return False


def annotate(symbols: Iterable[str], entrez: bool = False) -> pd.DataFrame:
    """Return name, aliases, Entrez and Ensembl ids by symbol as given; NaN for unknown genes.

    Several aliases or Ensembl ids are separated by "|". `current` is the symbol that an alias or
    Ensembl id was understood as. Numbers are read as Entrez ids only if `entrez`.
    """
    given = [str(symbol) for symbol in symbols]
    names = [_by_entrez().get(name, name) for name in given] if entrez else given
    found = [_by_name().get(without_version(name)) for name in names]
    current = pd.Index(found, dtype=object, name="current")
    return _annotation().reindex(current).reset_index().set_index(pd.Index(given, name="symbol"))


def species(names: Iterable[str]) -> str | None:
    """Return "human" or "mouse" by the spelling of the symbols, or None if it does not tell.

    STAT1 and C1orf112 are human, Stat1, mt-Nd1, H2-K1 and 1700001C02Rik mouse; Ensembl ids count by
    their prefix. Rat is spelled like mouse, and yeast like human.
    """
    written = Counter(_written(str(name)) for name in names)
    found, n = max(written.items(), key=lambda item: item[1], default=(None, 0))
    return found if n >= MOSTLY * written.total() else None


def _written(name: str) -> str | None:
    if identifier := ENSEMBL.match(name):
        return {"ENSG": "human", "ENSMUSG": "mouse"}.get(identifier[1])
    return "mouse" if MOUSE.fullmatch(name) else "human" if HUMAN.fullmatch(name) else None


def are_row_numbers(names: Iterable[str]) -> bool:
    """Return whether most names are numbers that count from 0 or 1.

    More than half of the run must be there: files lose the names of genes when another program
    stores them in a column and numbers the rows, and some genes may have been filtered out since.
    """
    given = [str(name) for name in names]
    numbers = [int(name) for name in given if name.isdecimal() and len(name) <= MOST_DIGITS]
    if len(numbers) <= len(given) / 2:
        return False
    return len(numbers) > (max(numbers) + 1) / 2


def are_entrez(names: Iterable[str]) -> bool:
    """Return whether names are Entrez ids: mostly numbers, not row numbers, and known human genes.

    Genes were numbered from 1, so most small numbers are ids, and row numbers could pass for some.
    Of real ids nearly all are known.
    """
    given = [str(name) for name in names]
    numbers = [name for name in given if name.isdecimal()]
    if len(numbers) <= len(given) / 2 or are_row_numbers(numbers):
        return False
    return sum(name in _by_entrez() for name in numbers) >= MOST_NUMBERS * len(numbers)


def _numbers(names: Collection[str]) -> str:
    """Return what the numbers among names are: `ROW_NUMBERS`, `ENTREZ`, or "numbers"."""
    return ROW_NUMBERS if are_row_numbers(names) else ENTREZ if are_entrez(names) else "numbers"


def is_identifier(name: str) -> bool:
    """Return whether a name is a database id rather than a symbol."""
    return any(pattern.fullmatch(name) for pattern in IDENTIFIERS.values())


def kind(names: Iterable[str]) -> str:
    """Return what most names are: a key of `IDENTIFIERS`, symbols of a species, or `UNKNOWN`.

    Numbers are `ROW_NUMBERS`, `ENTREZ`, or "numbers" if they are neither.
    """
    given = [str(name) for name in names]
    for what, pattern in IDENTIFIERS.items():
        if sum(pattern.fullmatch(name) is not None for name in given) > len(given) / 2:
            return _numbers(given) if what == "numbers" else what
    table = _by_name()
    n_known = sum(name in table or name.upper() in table for name in given)
    return f"{species(given) or 'gene'} symbols" if n_known > KNOWN * len(given) else UNKNOWN


def current_symbols(symbols: Iterable[str], universe: Iterable[str]) -> dict[str, str]:
    """Return each symbol's name in the universe; symbols that have none are absent.

    A symbol of the universe is itself. Any other is matched through the gene's other names and ids,
    if they lead to one name of the universe that no second measured symbol claims. Symbols of two
    species are matched in capitals, on the same terms. Numbers are matched only to numbers of the
    same sort: a row number is not the Entrez id that looks like it.
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
    """Return the current symbol behind each name, or the name itself; for numbers only if `entrez`.

    A number without a meaning gets a key that no symbol has.
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
    """Return pairs of names with the same unique key on both sides, without those in `found`."""
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
    """Return a user's genes in the model's own names, and those the model does not have.

    Both are in the order given, without repeats. Other names, ids and case are understood if they
    lead to one gene of the model; `ids` are those of the data, with the gene of each. A number that
    is not a name of the model is read as an Entrez id.
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
    """Return the genes of each id, in capitals and without the version of an Ensembl id."""
    found = defaultdict(set)
    for name, gene in ids.items():
        found[without_version(str(name)).upper()].add(gene)
    return dict(found)


def describe_unknown(unknown: list[str], genes: Iterable[str]) -> str:
    """Return a sentence on the genes of a user's list that the model does not have."""
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
    """Return genes whose symbol, or else an alias, begins with the query, and the name that did.

    Ensembl ids, with or without version, and Entrez ids must match as a whole, from the annotation
    or from `ids`, those of the data with the gene of each. Case does not matter. Symbols come
    before other names, whole names before beginnings.
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
    """Return the annotation of a model's genes, in order; numbers are Entrez ids if all are."""
    return annotate(genes, are_entrez(genes)).fillna("")


@lru_cache(maxsize=4)
def _searched(genes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return each name of each gene in capitals, the gene, and the name; its own symbol first."""
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
    """Return the genes of each Ensembl and Entrez id, in capitals."""
    table = _current(genes)
    found = defaultdict(list)
    for gene, ensembl, entrez in zip(genes, table["ensembl"], table["entrez"], strict=True):
        for name in {without_version(gene).upper(), *ensembl.split("|"), entrez} - {""}:
            found[name].append(gene)
    return dict(found)
