"""Names of genes: what a symbol, an older name or an identifier means, offline.

The annotation that ships is of human genes, with the symbols of 2022. Other names, Ensembl and
Entrez ids are understood where they mean one gene and no other. Of mouse genes there is no table:
they meet human ones by the symbol in capitals, which is an approximation of orthology.
"""

import gzip
import io
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files

import pandas as pd

RESOURCES = files("samsvae_core") / "resources"
MOSTLY = 0.8  # of the names, from which they are said to be of one species
KNOWN = 0.3  # of the names, from which they are taken for genes: mouse has many that human lacks
UNKNOWN = "names that are not known here"
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
    "numbers": "Numbers are read as Entrez ids of human genes: if they are others, name the genes"
    " by symbol.",
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


def _bare(name: str) -> str:
    """Without the version of an Ensembl id."""
    return name.partition(".")[0] if ENSEMBL.match(name) else name


@cache
def is_gene(name: str) -> bool:
    """Whether a name is the symbol of a human gene, or of a mouse one that is a human one's too.

    Older names and ids count from five letters on: "KO" and "LIB" are other names of genes as well.
    """
    for text in dict.fromkeys([name, name.upper() if name[:1].isupper() else name]):
        if text in _annotation().index or (len(text) > 4 and _bare(text) in _by_name()):
            return True
    return False


def annotate(symbols: Iterable[str]) -> pd.DataFrame:
    """Name, aliases, Entrez and Ensembl ids, indexed by symbol as given; NaN for unknown genes.

    Several aliases or Ensembl ids have a "|" between them. `current` is the symbol that an alias
    or Ensembl id was understood as.
    """
    given = [str(symbol) for symbol in symbols]
    found = [_by_name().get(_bare(symbol)) for symbol in given]
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


def is_identifier(name: str) -> bool:
    """Whether a name is an id of a database rather than a symbol."""
    return any(pattern.fullmatch(name) for pattern in IDENTIFIERS.values())


def kind(names: Iterable[str]) -> str:
    """What most names are: a key of `IDENTIFIERS`, "human symbols" and the like, or `UNKNOWN`."""
    given = [str(name) for name in names]
    for what, pattern in IDENTIFIERS.items():
        if sum(pattern.fullmatch(name) is not None for name in given) > len(given) / 2:
            return what
    table = _by_name()
    n_known = sum(name in table or name.upper() in table for name in given)
    return f"{species(given) or 'gene'} symbols" if n_known > KNOWN * len(given) else UNKNOWN


def current_symbols(symbols: Iterable[str], universe: Iterable[str]) -> dict[str, str]:
    """Each symbol's name in the universe; symbols that have none there are absent.

    A symbol of the universe is itself. Any other is met through the gene's other names and ids,
    provided that they lead to one name of the universe that no second measured symbol claims.
    Symbols of two species meet in capitals, on the same terms; those of one do not.
    """
    measured, universe = {str(symbol) for symbol in symbols}, frozenset(universe)
    found = {name: name for name in measured & universe}
    ours, theirs = species(measured), species(universe)
    in_capitals = None not in (ours, theirs) and ours != theirs
    if in_capitals:
        ours_up, theirs_up = ({name: name.upper() for name in s} for s in (measured, universe))
        found |= _pairs(ours_up, theirs_up, found)
    return found | _pairs(_meanings(measured, in_capitals), _meanings(universe, in_capitals), found)


def _meanings(names: Iterable[str], in_capitals: bool) -> dict[str, str]:
    """The current symbol behind each name, or the name itself; numbers, if most, are Entrez ids."""
    given = list(names)
    numbers = sum(name.isdecimal() for name in given)
    table = _by_entrez() if numbers > len(given) / 2 else _by_name()
    keys = {}
    for name in given:
        bare = _bare(name)
        other = bare.upper() if in_capitals else bare
        keys[name] = table.get(bare) or table.get(other, other)
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


def known_genes(given: Iterable[str], genes: Iterable[str]) -> tuple[list[str], list[str]]:
    """A reader's list of genes in the model's own names, and those of the list it does not have.

    Both in the order given and without repeats. Other names, ids and capitals are understood where
    they lead to one gene of the model.
    """
    names = list(dict.fromkeys(filter(None, (str(name).strip() for name in given))))
    own = {str(gene) for gene in genes}
    capitals, meant = defaultdict(set), defaultdict(set)
    for gene, meaning in _meanings(own, True).items():
        capitals[gene.upper()].add(gene)
        meant[meaning].add(gene)
    found: dict[str, None] = {}
    unknown = []
    for name, meaning in _meanings(names, True).items():
        leads = own & {name} or capitals[name.upper()] or meant[meaning]
        if len(leads) == 1:
            found |= dict.fromkeys(leads)
        else:
            unknown.append(name)
    return list(found), unknown


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


def search_genes(query: str, genes: Iterable[str], limit: int = 20) -> dict[str, str]:
    """Genes whose symbol, or else an alias, begins with the query, and which name did.

    Capitals do not matter. Symbols come before aliases, whole names before beginnings.
    """
    start = query.strip().upper()
    hits: dict[str, str] = {}
    for capitals, gene, name in _searched(tuple(dict.fromkeys(map(str, genes)))):
        if start and capitals.startswith(start):
            hits.setdefault(gene, name)
    ordered = sorted(hits.items(), key=lambda hit: (hit[0] != hit[1], hit[1].upper() != start, hit))
    return dict(ordered[:limit])


@lru_cache(maxsize=4)
def _searched(genes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Each name of each gene in capitals, the gene, and the name; a gene's own symbol first."""
    table = annotate(genes).fillna("")
    names = zip(genes, table["current"], table["aliases"].str.split("|"), strict=True)
    return [
        (name.upper(), gene, name)
        for gene, current, aliases in names
        for name in dict.fromkeys([gene, current, *aliases])
        if name
    ]
