"""Choose the names of a file's genes: the index of var, or a column with symbols.

An index of row numbers or ids gives way to a column of symbols with a usual name; a column that the
user names is always taken.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from samsvae_core.data.cells import DataError
from samsvae_core.genesets.symbols import ENTREZ, IDENTIFIERS, ROW_NUMBERS, UNKNOWN, kind
from samsvae_core.system.messages import nearest, some

INDEX = "var_names"  # asks for the index itself, by anndata's name
# Columns of symbols as CELLxGENE, cellranger, monocle and Seurat name them, then columns of ids,
# which are better than row numbers.
SYMBOL_KEYS = (
    *("feature_name", "feature_names", "gene_name", "gene_names", "gene_symbol", "gene_symbols"),
    *("gene_short_name", "symbol", "symbols", "hgnc_symbol", "features", "_index"),
    *("name", "names", "gene", "genes"),
)
ID_KEYS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id")
NUMBERS = (ROW_NUMBERS, "numbers")  # kinds of index that identify no gene
LONGEST_NAME = 50  # most characters of an unknown name


class GeneNames(NamedTuple):
    """The names of the genes, all different, and where they come from."""

    names: np.ndarray  # (G,)
    ids: np.ndarray | None  # (G,) the index, if it holds ids and a column gave the names
    key: str  # a column of var, or INDEX
    notes: list[str]


def name_genes(
    index: Iterable[str], columns: Mapping[str, Iterable[str]], key: str | None
) -> GeneNames:
    """Return gene names from the column `key`, the index (INDEX), or the best choice (None).

    `columns` are the text columns of var, "" where a value is missing. A gene without a name keeps
    its id. Genes that share a name get their ids appended, like MATR3_ENSG00000015479 at CELLxGENE.
    Raises DataError for a column that is absent or does not tell the genes apart.
    """
    index = [str(name) for name in index]
    what = kind(index)
    if key is None:
        key = usual_key(index, columns)
    if key == INDEX:
        names = np.array(index, dtype=str)
        return GeneNames(names, None, INDEX, _of_numbers(what, index, columns))
    if key not in columns:
        raise DataError(
            f"var has no column {key!r} with names of genes (--gene-key)."
            f" {nearest(key, [*columns, INDEX])}"
        )
    given = np.array(columns[key], dtype=object)
    if not _tells_apart(given):
        n_names = len({name for name in given if name})
        raise DataError(
            f"Column {key!r} of var, given as --gene-key, has {n_names:,} different names for"
            f" {len(given):,} genes; expected a name for each. Choose another column, or"
            f" {INDEX} for the index."
        )
    ids = np.array(index, dtype=object)
    filled = np.where(given == "", ids, given)
    often = Counter(filled)
    twice = np.array([often[name] > 1 for name in filled])
    names = np.where(twice, filled + "_" + ids, filled).astype(str)
    if len(set(names)) < len(names):
        repeated = [name for name, n in Counter(names).items() if n > 1]
        raise DataError(
            f"Column {key!r} of var does not tell all genes apart ({some(repeated)}). Choose"
            f" another column with --gene-key, or {INDEX} for the index."
        )
    notes = [
        f"Genes are named by the column {key!r} of var ({_first(given[given != ''])}); the index"
        f" holds {'other names' if what == UNKNOWN else what} ({_first(ids)})."
    ]
    if n := int((given == "").sum()):
        notes.append(f"{n:,} genes have no name in {key!r} and keep theirs of the index.")
    if n := int(twice.sum()):
        notes.append(
            f"{n:,} genes share a name in {key!r} with another; their name in the index stands"
            f" behind it: {some(names[twice])}."
        )
    return GeneNames(names, None if what in NUMBERS else ids.astype(str), key, notes)


def usual_key(index: Iterable[str], columns: Mapping[str, Iterable[str]]) -> str:
    """Return the column taken by default; INDEX if nothing is better than the index.

    The index gives way only if it holds ids or numbers.
    """
    what = kind(index)
    if not is_of_ids(what):
        return INDEX
    candidates: list[tuple[tuple[str, ...], bool]] = [(SYMBOL_KEYS, False)]
    if what in NUMBERS:  # ids are better than these
        candidates.append(((*SYMBOL_KEYS, *ID_KEYS), True))
    for usual, may_be_ids in candidates:
        present = [name for name in columns if name.lower() in usual]
        for name in sorted(present, key=lambda name: usual.index(name.lower())):
            given = np.array(columns[name], dtype=object)
            if _tells_apart(given) and _are_names(given[given != ""], may_be_ids):
                return name
    return INDEX


def lacks_names(
    index: Iterable[str], columns: Mapping[str, Iterable[str]], key: str | None
) -> bool:
    """Return whether more columns should be searched: `key` is absent, or there are only ids."""
    if key is not None:
        return key not in (INDEX, *columns)
    return is_of_ids(kind(index)) and usual_key(index, columns) == INDEX


def is_of_ids(what: str) -> bool:
    """Return whether names of this `kind` are database ids or numbers."""
    return what in IDENTIFIERS or what in (ENTREZ, ROW_NUMBERS)


def _tells_apart(given: np.ndarray) -> bool:
    """Return whether the number of different names is above half the number of genes."""
    return len({name for name in given if name}) > len(given) / 2


def _are_names(given: np.ndarray, may_be_ids: bool) -> bool:
    what = kind(given)
    if is_of_ids(what):
        return may_be_ids and what not in NUMBERS
    if what != UNKNOWN:
        return True
    plain = [len(name) <= LONGEST_NAME and not any(map(str.isspace, name)) for name in given]
    return sum(plain) > len(given) / 2


def _of_numbers(what: str, index: Iterable[str], columns: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the note for an index of numbers, which name no gene."""
    if what not in NUMBERS:
        return []
    found = what if what == ROW_NUMBERS else "numbers that are no Entrez ids of human genes"
    what_to_do = "Give the file names of genes as adata.var_names: var has no column of them."
    if there := some(columns, 10):
        what_to_do = (
            "Name the column of var that holds the names with --gene-key (columns here:"
            f" {there}), or give the file names as adata.var_names."
        )
    return [
        f"Genes are {found} ({_first(list(index))}), not names: gene sets and gene cards can say"
        f" nothing of them. {what_to_do}"
    ]


def _first(names: Sequence[str] | np.ndarray) -> str:
    return ", ".join(map(str, names[:3])) + ", ..." * (len(names) > 3)
