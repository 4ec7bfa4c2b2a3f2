"""Verbs for data: what a file holds, what it offers to choose from, data that are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samsvae_core.cli.options import DataFile, Seed, say, takes_read_options
from samsvae_core.data.read_options import ReadOptions


@takes_read_options()
def validate(
    data: DataFile,
    reading: ReadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file holds and how it would be read, without training."""
    import json

    import numpy as np

    from samsvae_core.data import design
    from samsvae_core.data.cells import describe, summary
    from samsvae_core.data.h5ad import audited, read_cells

    cells = read_cells(data, reading)
    columns = audited(data, reading)
    found = summary(cells)
    if as_json:
        names, sizes = np.unique(cells.conditions, return_counts=True)
        found["conditions"] = dict(zip(names.tolist(), sizes.tolist(), strict=True))
        found["design"] = design.as_json(columns)
        say(json.dumps(found, indent=1))
    else:
        say(f"{describe(found)}\n{design.describe(columns)}")


@takes_read_options("gene_key")
def inspect(
    data: DataFile,
    reading: ReadOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a file offers to choose from: columns and their labels, layers, tables."""
    import json

    from samsvae_core.data.inspection import describe
    from samsvae_core.data.inspection import inspect as look

    found = look(data, reading.gene_key)
    say(json.dumps(found) if as_json else describe(found))


def simulate(
    output: Annotated[Path, typer.Argument(help="The .h5ad to write.")],
    cells: Annotated[int, typer.Option(min=1)] = 5000,
    genes: Annotated[int, typer.Option(min=2)] = 200,
    perturbations: Annotated[int, typer.Option(min=1)] = 20,
    latents: Annotated[int, typer.Option(min=1)] = 5,
    combinations: Annotated[int, typer.Option(min=0)] = 5,
    batches: Annotated[
        int, typer.Option(min=1, max=100, help="Of uneven shares, in a column batch.")
    ] = 1,
    contexts: Annotated[
        int,
        typer.Option(
            min=1,
            max=100,
            help="Cell lines, in a column cell_line; a third of the effects lack in one of them.",
        ),
    ] = 1,
    seed: Seed = 0,
) -> None:
    """Draw counts from a SAMS-VAE with known masks; the truth is kept in `uns`."""
    from samsvae_core.models import simulate as simulation
    from samsvae_core.system.files import new_output

    new_output(output)
    design = simulation.Design(
        cells,
        genes,
        perturbations,
        latents,
        combinations,
        seed=seed,
        n_batches=batches,
        n_contexts=contexts,
    )
    drawn, truth = simulation.simulate(design)
    simulation.write_h5ad(drawn, truth, output)
    say(
        f"Wrote {output}: {cells:,} cells x {genes:,} genes, {perturbations} perturbations, "
        f"{combinations} combinations, {int(truth.mask.sum())} true mask entries."
    )
