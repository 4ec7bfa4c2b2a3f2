"""The gene card: the names of a gene, the mechanisms and the perturbations that move it.

It works offline: links are written, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
import pandas as pd

from samsvae_core.analysis.compose import compose
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.symbols import annotate, are_entrez, species
from samsvae_core.system.messages import close

COLUMNS = [  # columns of a composition that `effect_table` keeps
    "shift",
    "lower",
    "upper",
    "probability_of_sign",
    "calibrated_lower",
    "calibrated_upper",
    "observed",
    "observed_se",
]


class Annotation(NamedTuple):
    """What the annotation says of a gene; fields it does not know are empty, as `note` explains."""

    symbol: str  # as in the data
    current: str  # the symbol of 2022
    name: str
    aliases: tuple[str, ...]
    entrez: str
    ensembl: tuple[str, ...]
    is_mouse: bool  # judged by the spelling of the symbol
    note: str  # what the reader should know about the other fields


def annotation(gene: str, genes: Collection[str] = ()) -> Annotation:
    """Return the names and identifiers of a gene, found by symbol, older name or Ensembl id.

    A number counts as an Entrez id only if `genes`, the genes of the model, are Entrez ids. A
    symbol spelled like a mouse gene gets the entry of the human gene with the same name in
    capitals, most often its orthologue.
    """
    is_number = gene.isdecimal()
    found = annotate([gene, gene.upper()], is_number and are_entrez(genes)).fillna("")
    itself, in_capitals = found["current"]
    is_mouse = species([gene]) == "mouse" and itself != gene and bool(in_capitals or not itself)
    row = found.iloc[int(is_mouse)]
    current = str(row["current"])
    note = ""
    if is_mouse:
        note = f"{gene} is written as mouse genes are, so the links lead to mouse pages. The "
        note += "annotation is of human genes (2022): "
        note += f"shown is {current}, by the name in capitals." if current else "it has none such."
    elif not current and is_number:
        note = f"{gene} is a number, not a name: nothing is known about this gene. Train on the"
        note += " names of genes; the page Data and samsvae inspect show which a file has."
    elif not current:
        note = f"The annotation (human genes, 2022) does not know {gene} as one gene."
    elif current != gene:
        note = f"{gene} is another name of {current}."
    aliases, ensembl = (tuple(filter(None, row[c].split("|"))) for c in ("aliases", "ensembl"))
    entrez, name = str(row["entrez"]), str(row["name"])
    return Annotation(gene, current, name, aliases, entrez, ensembl, is_mouse, note)


def links(gene: str, genes: Collection[str] = ()) -> dict[str, str]:
    """Return the addresses of pages about a gene of `genes`, by the name of the site.

    An unknown name gets one search link; a number that is not an Entrez id gets none.
    """
    known = annotation(gene, genes)
    if known.is_mouse:
        return {
            "NCBI": f"https://www.ncbi.nlm.nih.gov/gene/?term={_safe(f'{gene} AND mouse[orgn]')}",
            "Ensembl": f"https://www.ensembl.org/Mus_musculus/{_search(gene)}",
            "MGI": "https://www.informatics.jax.org/quicksearch/summary?queryType=exactPhrase"
            f"&query={_safe(gene)}",
            "UniProt": _uniprot(gene, 10090),
        }
    if not known.current and gene.isdecimal():
        return {}
    if not known.current:
        return {"Search NCBI": f"https://www.ncbi.nlm.nih.gov/gene/?term={_safe(gene)}"}
    symbol = _safe(known.current)
    page = _search(known.current)
    if len(known.ensembl) == 1:  # several ids are of alternative assemblies
        page = f"Gene/Summary?g={_safe(known.ensembl[0])}"
    return {
        "NCBI": f"https://www.ncbi.nlm.nih.gov/gene/{_safe(known.entrez)}",
        "Ensembl": f"https://www.ensembl.org/Homo_sapiens/{page}",
        "GeneCards": f"https://www.genecards.org/cgi-bin/carddisp.pl?gene={symbol}",
        "UniProt": _uniprot(known.current, 9606),
    }


def _safe(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _search(name: str) -> str:
    return f"Search/Results?q={_safe(name)};site=ensembl"


def _uniprot(symbol: str, organism: int) -> str:
    query = f"(gene_exact:{symbol}) AND (organism_id:{organism})"
    return f"https://www.uniprot.org/uniprotkb?query={_safe(query)}"


def effect_table(
    bundle: Bundle,
    n_samples: int = 64,
    seed: int = 0,
    genes: Sequence[str] | None = None,
    perturbations: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the shift of each gene under each single perturbation at dosage 1.

    The numbers are those of `compose`. Columns are perturbation, gene, shift, lower, upper,
    probability_of_sign, calibrated_lower, calibrated_upper, observed, observed_se and n_observed
    (cells; 0 if not measured alone at this dosage). `perturbations` selects perturbations and
    `genes` selects genes; the latter saves memory but no time, since shares are taken over all
    genes.
    """
    kept = bundle.genes if genes is None else [measured(bundle, gene) for gene in genes]
    given = bundle.perturbations.index if perturbations is None else perturbations
    names = [str(name) for name in given]
    found = np.empty((len(COLUMNS), len(names), len(kept)))
    n_observed = np.empty(len(names), dtype=int)
    for row, name in enumerate(names):
        alone = compose(bundle, {name: 1.0}, n_samples=n_samples, seed=seed)
        found[:, row] = alone.table.loc[kept, COLUMNS].to_numpy().T
        n_observed[row] = alone.n_observed
    return pd.DataFrame(
        {
            "perturbation": np.array(names, dtype=object).repeat(len(kept)),
            "gene": np.tile(np.array(kept, dtype=object), len(names)),
            **{column: found[i].ravel() for i, column in enumerate(COLUMNS)},
            "n_observed": n_observed.repeat(len(kept)),
        },
        copy=False,
    )


def moved_by(effects: pd.DataFrame, gene: str) -> pd.DataFrame:
    """Return the perturbations of an `effect_table` by the size of their shift of one gene."""
    rows = effects[effects["gene"] == gene].drop(columns="gene")
    if rows.empty:
        raise ValueError(f"{gene!r} is none of the genes in this table of effects.")
    return rows.sort_values("shift", key=abs, ascending=False, kind="stable", ignore_index=True)


def mechanisms_of(bundle: Bundle, gene: str) -> pd.DataFrame:
    """Return a gene's loading on each mechanism and its rank among all genes.

    Columns are mechanism, loading, se and step, as in the bundle's loadings, and rank_up and
    rank_down, which are 1 for the gene with the largest and the smallest loading.
    """
    table, gene = bundle.loadings, measured(bundle, gene)
    rows = table[table["gene"] == gene].set_index("mechanism")
    own = table["mechanism"].map(rows["loading"])
    for column, before in (
        ("rank_up", table["loading"] > own),
        ("rank_down", table["loading"] < own),
    ):
        rows[column] = 1 + table.loc[before, "mechanism"].value_counts()
        rows[column] = rows[column].fillna(1).astype(int)
    rows = rows.reset_index()
    return rows[["mechanism", "loading", "se", "step", "rank_up", "rank_down"]]


def targeting(bundle: Bundle, gene: str) -> list[str]:
    """Return the perturbations that target this gene, under any of its names, ignoring case."""
    return _same_gene(gene, [str(name) for name in bundle.perturbations.index])


def targets(bundle: Bundle, perturbation: str) -> list[str]:
    """Return the genes of the model that a perturbation targets, matched as in `targeting`.

    A name with a + is split into its parts only if the model treats each combination as one
    treatment.
    """
    parts = [perturbation] if bundle.model.composes else perturbation.split("+")
    return [gene for part in parts for gene in _same_gene(part, bundle.genes)]


def _same_gene(gene: str, names: list[str]) -> list[str]:
    current = annotate([gene, *names])["current"].fillna("").tolist()
    return [
        name
        for name, symbol in zip(names, current[1:], strict=True)
        if name.upper() == gene.upper() or symbol == current[0] != ""
    ]


def measured(bundle: Bundle, gene: str) -> str:
    """Return `gene` if the model has it; raises ValueError for any other name."""
    if gene in bundle.genes:
        return gene
    current = annotate([gene])["current"].fillna("").iloc[0]
    if current:
        known = gene if current == gene else f"{gene} ({current})"
        also = " It is perturbed in this model." if targeting(bundle, gene) else ""
        raise ValueError(
            f"{known} is a gene, but none of the {len(bundle.genes):,} of this model.{also}"
        )
    near = close(gene, bundle.genes, 1)
    hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(bundle.genes[:5])}, ..."
    raise ValueError(f"{gene!r} is none of the {len(bundle.genes):,} genes of this model. {hint}")
