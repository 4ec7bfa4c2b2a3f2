"""Verbs for data: what a file holds, what it offers to choose from, data that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samsvae_core.cli.options import (
    Control,
    CountsOn,
    DataFile,
    Delimiter,
    Dosage,
    DropUnlabelled,
    GeneKey,
    JoinGuides,
    Key,
    Layer,
    Likelihood,
    Replicate,
    Seed,
    SizeFactor,
    is_gaussian,
    read,
    say,
)


def validate(
    data: DataFile,
    perturbation_key: Key = None,
    control: Control = None,
    delimiter: Delimiter = None,
    layer: Layer = None,
    gene_key: GeneKey = None,
    size_factor_key: SizeFactor = None,
    dosage_key: Dosage = None,
    replicate_key: Replicate = None,
    join_guides: JoinGuides = False,
    drop_unlabelled: DropUnlabelled = None,
    likelihood: Likelihood = "counts",
    counts_on: CountsOn = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file holds and how it would be read, without training."""
    import json

    import numpy as np

    from samsvae_core.data.cells import describe, summary

    cells = read(
        data,
        perturbation_key=perturbation_key,
        control=control or None,
        delimiter=delimiter,
        layer=layer,
        gene_key=gene_key,
        size_factor_key=size_factor_key,
        dosage_key=dosage_key,
        replicate_key=replicate_key,
        join_guides=join_guides,
        drop_unlabelled=drop_unlabelled,
        continuous=is_gaussian(likelihood),
        counts_on=counts_on,
    )
    found = summary(cells)
    if as_json:
        names, sizes = np.unique(cells.conditions, return_counts=True)
        found["conditions"] = dict(zip(names.tolist(), sizes.tolist(), strict=True))
    say(json.dumps(found, indent=1) if as_json else describe(found))


def inspect(
    data: DataFile,
    gene_key: GeneKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file offers to choose from: columns and their labels, layers, tables."""
    import json

    from samsvae_core.data.inspection import describe
    from samsvae_core.data.inspection import inspect as look

    found = look(data, gene_key)
    say(json.dumps(found) if as_json else describe(found))


def simulate(
    output: Annotated[Path, typer.Argument(help="The .h5ad to write.")],
    cells: Annotated[int, typer.Option(min=1)] = 5000,
    genes: Annotated[int, typer.Option(min=2)] = 200,
    perturbations: Annotated[int, typer.Option(min=1)] = 20,
    latents: Annotated[int, typer.Option(min=1)] = 5,
    combinations: Annotated[int, typer.Option(min=0)] = 5,
    seed: Seed = 0,
) -> None:
    """Draw counts from a SAMS-VAE with known masks; the truth is kept in `uns`."""
    from samsvae_core.models import simulate as simulation
    from samsvae_core.system.files import new_output

    new_output(output)
    design = simulation.Design(cells, genes, perturbations, latents, combinations, seed=seed)
    drawn, truth = simulation.simulate(design)
    simulation.write_h5ad(drawn, truth, output)
    say(
        f"Wrote {output}: {cells:,} cells x {genes:,} genes, {perturbations} perturbations, "
        f"{combinations} combinations, {int(truth.mask.sum())} true mask entries."
    )
