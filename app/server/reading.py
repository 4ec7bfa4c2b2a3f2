"""How a data file is to be read, by the address and for the command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.server.uploads import resolve

NO_DELIMITER = "none"  # labels stay whole; "" is what the reader finds by itself
JOIN = "by target"  # guides
LEFT_OUT, AS_CONTROL = "left out", "control"  # cells without a label
# Of each option of the reader: its parameter in the address, and its default.
READ: dict[str, tuple[str, Any]] = {
    "perturbation_key": ("key", ""),
    "control": ("control", ()),
    "delimiter": ("delimiter", ""),
    "layer": ("layer", ""),
    "gene_key": ("named", ""),
    "size_factor_key": ("size", ""),
    "dosage_key": ("dosage", ""),
    "replicate_key": ("replicate", ""),
    "join_guides": ("join", ""),
    "unlabelled": ("unlabelled", ""),
    "likelihood": ("likelihood", "counts"),
}
# What an option is on the command line where that is not --option=value.
AS_ARGUMENTS = {
    ("delimiter", NO_DELIMITER): "--delimiter=",
    ("join_guides", JOIN): "--join-guides",
    ("unlabelled", LEFT_OUT): "--drop-unlabelled",
    ("unlabelled", AS_CONTROL): "--unlabelled-as-control",
}
PARAMETERS = ("data", "genes", "top", *(parameter for parameter, _ in READ.values()))


@dataclass(frozen=True)
class Reading:
    """A data file and how to read it; "" stands for what the reader is to find or leave out."""

    data: str  # id of an .h5ad file
    perturbation_key: str = ""
    control: tuple[str, ...] = ()
    delimiter: str = ""
    layer: str = ""
    gene_key: str = ""
    size_factor_key: str = ""
    dosage_key: str = ""
    replicate_key: str = ""
    join_guides: str = ""  # or JOIN
    unlabelled: str = ""  # or LEFT_OUT, AS_CONTROL
    likelihood: str = "counts"
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
        told = []
        for option, (_, first) in READ.items():
            if (value := getattr(self, option)) != first:
                flag = f"--{option.replace('_', '-')}"
                values = value if isinstance(value, tuple) else (value,)
                told += [AS_ARGUMENTS.get((option, each), f"{flag}={each}") for each in values]
        return told

    def command(self, verb: str = "validate") -> str:
        """A command line that reads the same, for a shell."""
        more = self.arguments() if verb == "train" else self.reading_arguments()
        return shlex.join(["samsvae", verb, str(resolve(self.data)), *more])

    def with_genes(self, top: int, genes: str = "") -> Reading:
        """The same, of the most variable genes, of all (0), or of a list."""
        return replace(self, top_genes=top, genes=genes)

    def with_names(self, gene_key: str) -> Reading:
        """The same, genes named by a column of var."""
        return replace(self, gene_key=gene_key)

    def as_query(self) -> dict[str, str | list[str]]:
        """The reading in an address, by its parameters; what the reader takes itself stays out."""
        query: dict[str, str | list[str]] = {"data": self.data}
        for option, (parameter, first) in {**READ, "genes": ("genes", "")}.items():
            if (value := getattr(self, option)) != first:
                query[parameter] = list(value) if isinstance(value, tuple) else value
        return query | {"top": str(self.top_genes)}

    @classmethod
    def from_query(cls, query: Mapping[str, str | Sequence[str]]) -> Reading:
        """What `as_query` wrote; a number of genes that is none, or one alone, is left out.

        Ids are not checked here.
        """
        given = {
            key: [value] if isinstance(value, str) else list(value) for key, value in query.items()
        }
        known: dict[str, Any] = {}
        for option, (parameter, first) in {**READ, "genes": ("genes", "")}.items():
            if values := given.get(parameter):
                known[option] = tuple(values) if isinstance(first, tuple) else values[-1]
        top = (given.get("top") or [""])[-1]
        return cls(
            data=(given.get("data") or [""])[-1],
            top_genes=int(top) if re.fullmatch(r"[1-9]\d{0,5}", top) and top != "1" else 0,
            **known,
        )
