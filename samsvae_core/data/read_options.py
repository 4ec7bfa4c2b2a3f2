"""How a data file is to be read: each option declared once.

`read_h5ad`, the command line, the pages and their addresses take the options from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

Control = str | Sequence[str] | None  # what a person names as control: labels or patterns
Kind = Literal["text", "labels", "flag", "choice"]


@dataclass(frozen=True)
class Declared:
    """How an option is given on the command line, on the page Data, and in an address.

    A "text" is the name of something in the file, "labels" are several; a "flag" is True or False,
    by the words of the page; a "choice" is one of the words, on the command line as well.
    """

    kind: Kind
    flag: str  # on the command line; "--a/--b" are for True and False
    help: str
    parameter: str = ""  # in an address; "" where no page asks for it
    box: str = ""  # the label of its widget
    words: Mapping[str, Any] = field(default_factory=dict)  # and the values that they mean

    def word(self, value: Any) -> Any:
        """How an address writes a value: by its word, or as it is."""
        return next((word for word, meant in self.words.items() if meant == value), value)


def option(kind: Kind, flag: str, help: str, default: Any = None, **page: Any) -> Any:
    """A field of ReadOptions with its default; `page` are the other fields of Declared."""
    return field(default=default, metadata={"declared": Declared(kind, flag, help, **page)})


@dataclass(frozen=True)
class ReadOptions:
    """The options of `read_h5ad`, which says what each of them does.

    None stands for what is found in the file, or left alone where nothing is.
    """

    perturbation_key: str | None = option(
        "text",
        "--perturbation-key",
        "Column of obs with the perturbation of each cell.",
        parameter="key",
        box="Column of perturbations",
    )
    control: Control = option(
        "labels",
        "--control",
        "Label of control cells, or a pattern ('*non-targeting*'); may be repeated.",
        parameter="control",
        box="Control labels",
    )
    delimiter: str | None = option(
        "text",
        "--delimiter",
        "Between the parts of a combination; '' keeps labels whole. Found by itself if absent.",
        parameter="delimiter",
        box="Between parts of a combination",
        words={"none": ""},
    )
    layer: str | None = option(
        "text",
        "--layer",
        "Layer with the counts, instead of X.",
        parameter="layer",
        box="Counts from",
    )
    gene_key: str | None = option(
        "text",
        "--gene-key",
        "Column of var with the names of genes, or var_names for its index. Found by itself where "
        "the index holds row numbers or ids.",
        parameter="named",
        box="Names of genes",
    )
    size_factor_key: str | None = option(
        "text",
        "--size-factor-key",
        "Column of obs with each cell's total.",
        parameter="size",
        box="Size factor",
    )
    dosage_key: str | None = option(
        "text",
        "--dosage-key",
        "Column of obs, or key of obsm, with dosages.",
        parameter="dosage",
        box="Dosages",
    )
    replicate_key: str | None = option(
        "text",
        "--replicate-key",
        "Column of obs with biological replicates.",
        parameter="replicate",
        box="Replicates",
    )
    covariates: Sequence[str] | None = option(
        "labels",
        "--covariate",
        "Column of obs to account for: batch, lane, donor, cell line, treatment; may be repeated.",
        parameter="covariate",
        box="Covariates",
    )
    join_guides: bool = option(
        "flag",
        "--join-guides",
        "Read guides such as TP53_1 and sgTP53 as TP53.",
        False,
        parameter="join",
        box="Guides of one target",
        words={"by target": True},
    )
    drop_unlabelled: bool | None = option(
        "flag",
        "--drop-unlabelled/--unlabelled-as-control",
        "Leave out cells without a label or guide, or count them as control cells.",
        parameter="unlabelled",
        box="Cells without a label",
        words={"left out": True, "control": False},
    )
    continuous: bool = option(
        "choice",
        "--likelihood",
        "counts, or gaussian for values that are not counts.",
        False,
        parameter="likelihood",
        box="Values",
        words={"counts": False, "gaussian": True},
    )
    counts_on: str = option(
        "choice",
        "--counts-on",
        "memory; disk: in files, for counts larger than memory; or auto: on disk if they would "
        "take more than a quarter of the memory that is free.",
        "auto",
        words={"auto": "auto", "memory": "memory", "disk": "disk"},
    )


DECLARED: Mapping[str, Declared] = {
    each.name: each.metadata["declared"] for each in fields(ReadOptions)
}
