"""Read dosages from labels of conditions, and fit data to a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import (
    CellData,
    DataError,
    conditions_as_perturbations,
    genes_at,
)
from samsvae_core.data.covariates import Covariates
from samsvae_core.genesets.symbols import without_version
from samsvae_core.models.variants import MODELS

ROUNDED = 1e-5  # relative rounding error of a dosage in a label


def dosages_of(label: str, known: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    """Return the dosages in the label of a condition: "A" and "B" at 0.5 for "A+B:0.5".

    `known` has the least and the largest dosage of each perturbation. Names may contain "+" and ":"
    themselves, so a label is read against them. None if it has no reading, or several.
    """
    found = list(islice(readings(label.split("+"), known), 2))
    return found[0] if len(found) == 1 else None


def readings(
    pieces: list[str], known: Mapping[str, Sequence[float]], after: str = ""
) -> Iterator[dict[str, float]]:
    """Yield each way to join the pieces of a label into sorted perturbations at known dosages."""
    if not pieces:
        yield {}
    for n in range(1, len(pieces) + 1):
        part = "+".join(pieces[:n])
        name, _, text = part.rpartition(":")
        for each, dose in ((part, 1.0), (name, written_dosage(text))):
            low, high = known.get(each, (np.inf, -np.inf))
            if each > after and low * (1 - ROUNDED) <= dose <= high * (1 + ROUNDED):
                for rest in readings(pieces[n:], known, each):
                    yield {each: dose, **rest}


def written_dosage(text: str) -> float:
    """Return the number if it is written as in labels of conditions; else NaN."""
    try:
        dose = float(text)
    except ValueError:
        return np.nan
    return dose if f"{dose:g}" == text else np.nan


def data_for_model(data: CellData, model: str) -> CellData:
    """Return the data as a model of MODELS takes them, if need be with one treatment per cell."""
    return data if MODELS[model].composes else conditions_as_perturbations(data)


def places_of(
    genes: Sequence[str], genes_by_id: Mapping[str, str], data: CellData
) -> dict[str, int]:
    """Where each of a bundle's genes is among those of the data, if it is there.

    A name of either may be an id of the other: versions of Ensembl ids do not matter.
    """
    place = {name: i for i, name in enumerate(data.genes.tolist())}
    found = {gene: place[gene] for gene in genes if gene in place}
    if len(found) == len(genes):
        return found
    theirs: dict[str, set[int]] = defaultdict(set)
    for names in (data.genes, () if data.gene_ids is None else data.gene_ids):
        for i, name in enumerate(names):
            theirs[without_version(name)].add(i)
    own_ids = {gene: name for name, gene in genes_by_id.items()}
    for gene in genes:
        for name in (own_ids.get(gene, gene), gene):
            places = theirs.get(without_version(name), set())
            if gene not in found and len(places) == 1:
                found[gene] = next(iter(places))
    return found


class Known(NamedTuple):
    """What a bundle knows of the cells that it was trained on."""

    genes: Sequence[str]
    genes_by_id: Mapping[str, str]
    perturbations: pd.Index
    other_genes: bool  # libraries count more genes than these
    config: Mapping[str, Any]

    @property
    def levels(self) -> Mapping[str, Sequence[str]]:
        """The levels of each covariate; empty without any."""
        return dict(self.config.get("levels", {}))


def aligned(data: CellData, known: Known) -> CellData:
    """Return cells as `Bundle.align` does."""
    data = data_for_model(data, known.config["model"])
    where = places_of(known.genes, known.genes_by_id, data)
    for what, needed, found in (
        ("lack {} of the bundle's genes, such as {}", known.genes, where),
        (
            "hold {} perturbations unknown to the bundle, such as {}",
            data.perturbations,
            known.perturbations,
        ),
    ):
        missing = pd.Index(needed).difference(pd.Index(found))
        if len(missing):
            problem = what.format(len(missing), ", ".join(missing[:3]))
            raise DataError(f"The data {problem}. Use the file the bundle was trained on.")
    data = genes_at(data, np.array([where[gene] for gene in known.genes]))
    if data.has_size_factor != known.other_genes:
        key = known.config["data"].get("size_factor_key")
        raise DataError(
            "The bundle was trained with "
            + (f"--size-factor-key {key}" if key else "library sizes from the panel")
            + "; read the data the same way."
        )
    column = known.perturbations.get_indexer(pd.Index(data.perturbations))
    dosages = data.dosages.tocoo()
    shape = (len(data.cells), len(known.perturbations))
    moved = sp.csr_matrix((dosages.data, (dosages.row, column[dosages.col])), shape=shape)
    names = np.array(known.perturbations, dtype=str)
    covariates = aligned_covariates(data, known.levels)
    return replace(data, dosages=moved, perturbations=names, covariates=covariates)


def aligned_covariates(data: CellData, levels: Mapping[str, Sequence[str]]) -> Covariates | None:
    """Return the covariates of cells as a model has them; raises DataError if one is absent."""
    if not levels:
        return data.covariates
    found = data.covariates.levels if data.covariates else {}
    if absent := [name for name in levels if name not in found]:
        raise DataError(
            f"The bundle accounts for {', '.join(absent)}, which these data were read without."
            f" Name a column with the same levels: --covariate {absent[0]}."
        )
    assert data.covariates is not None
    return data.covariates.aligned(levels)
