"""How a data file is to be read, by the address and for the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.server.uploads import resolve
from samsvae_core.data.read_options import DECLARED, Declared, ReadOptions

ASKED = {name: declared for name, declared in DECLARED.items() if declared.parameter}  # on a page
PARAMETERS = ("data", "genes", "top", *(declared.parameter for declared in ASKED.values()))


@dataclass(frozen=True)
class Reading:
    """A data file and how to read it."""

    data: str  # id of an .h5ad file
    options: ReadOptions = ReadOptions()
    top_genes: int = 0  # 0: all genes, or those of the list
    genes: str = ""  # id of a list of genes, kept by `save_genes`

    def arguments(self) -> list[str]:
        """What follows `samsvae train DATA`; raises DataError where the list of genes is gone."""
        chosen = self.reading_arguments()
        if self.genes:
            chosen += ["--genes", str(resolve(self.genes, ".txt"))]
        if self.top_genes:
            chosen += ["--top-genes", str(self.top_genes)]
        return chosen

    def reading_arguments(self) -> list[str]:
        """What follows `samsvae validate DATA`: all but the choice of genes."""
        return [
            argument
            for declared, value in self.chosen()
            for argument in as_arguments(declared, value)
        ]

    def chosen(self) -> list[tuple[Declared, Any]]:
        """The options that are not left to the reader, with their values."""
        values = ((name, getattr(self.options, name)) for name in ASKED)
        return [(ASKED[name], x) for name, x in values if x != getattr(ReadOptions, name)]

    def command(self, verb: str = "validate", options: Sequence[str] = ()) -> str:
        """A command line that reads the same, with more options, for a shell."""
        more = self.arguments() if verb == "train" else self.reading_arguments()
        return shlex.join(["samsvae", verb, str(resolve(self.data)), *more, *options])

    def with_genes(self, top: int, genes: str = "") -> Reading:
        """The same, of the most variable genes, of all (0), or of a list."""
        return replace(self, top_genes=top, genes=genes)

    def with_names(self, gene_key: str) -> Reading:
        """The same, genes named by a column of var."""
        return replace(self, options=replace(self.options, gene_key=gene_key))

    def with_covariates(self, names: Sequence[str]) -> Reading:
        """The same, with these columns accounted for."""
        return replace(self, options=replace(self.options, covariates=tuple(names)))

    def as_query(self) -> dict[str, str | list[str]]:
        """The reading in an address, by its parameters; what the reader takes itself stays out."""
        query: dict[str, str | list[str]] = {"data": self.data}
        for declared, value in self.chosen():
            labels = declared.kind == "labels"
            query[declared.parameter] = list(value) if labels else declared.word(value)
        if self.genes:
            query["genes"] = self.genes
        return query | {"top": str(self.top_genes)}

    @classmethod
    def from_query(cls, query: Mapping[str, str | Sequence[str]]) -> Reading:
        """What `as_query` wrote.

        A number of genes that is none, or one alone, and a word that is none of an option's are
        left out. Ids are not checked here.
        """
        given = {
            key: [value] if isinstance(value, str) else list(value) for key, value in query.items()
        }
        known: dict[str, Any] = {}
        for name, declared in ASKED.items():
            if texts := [text for text in given.get(declared.parameter, []) if text]:
                if declared.kind == "labels":
                    known[name] = tuple(texts)
                elif declared.kind == "text" or texts[-1] in declared.words:
                    known[name] = declared.words.get(texts[-1], texts[-1])
        top = (given.get("top") or [""])[-1]
        return cls(
            data=(given.get("data") or [""])[-1],
            options=ReadOptions(**known),
            top_genes=int(top) if re.fullmatch(r"[1-9]\d{0,5}", top) and top != "1" else 0,
            genes=(given.get("genes") or [""])[-1],
        )


def as_arguments(declared: Declared, value: Any) -> list[str]:
    """An option on the command line with a value that is not its default."""
    if declared.kind == "flag":
        return [flag_of(declared, value)]
    values = value if declared.kind == "labels" else [value]
    if declared.kind == "choice":
        values = [declared.word(value)]
    return [f"{declared.flag}={each}" for each in values]


def flag_of(declared: Declared, value: bool) -> str:
    """The flag of "--a/--b" that stands for True or False."""
    return declared.flag.split("/")[0 if value else 1]
