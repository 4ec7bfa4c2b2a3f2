"""The verb that tests gene sets of mechanisms, or of a predicted shift."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samsvae_core.cli.options import (
    BundleFolder,
    Seed,
    named_once,
    number_of,
    parse_dosage,
    say,
    write_table,
)

if TYPE_CHECKING:
    from samsvae_core.analysis.enrichment_export import Results
    from samsvae_core.analysis.gene_rankings import Certainty, GeneRanking
    from samsvae_core.bundle.bundle import Bundle
    from samsvae_core.genesets.collections import Collection


NewOutput = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        help="New: .xlsx, .zip, .csv, .tsv, .parquet, or a folder (no ending) with every file.",
    ),
]
Collections = Annotated[
    list[str] | None, typer.Option(help="A shipped collection; may be repeated.")
]
GmtFiles = Annotated[list[Path] | None, typer.Option(help="A .gmt file; may be repeated.")]
Libraries = Annotated[
    list[str] | None, typer.Option(help="A library of Enrichr by name (network); repeatable.")
]
Mechanisms = Annotated[
    list[str] | None, typer.Option(help="Only this mechanism, 0 or M0; may be repeated.")
]
Perturbations = Annotated[
    list[str] | None,
    typer.Option(help="NAME or NAME:DOSAGE: of its predicted shift instead; repeat to compose."),
]
MinSize = Annotated[int, typer.Option(min=1, help="Measured genes of a set, at least.")]
MaxSize = Annotated[int, typer.Option(min=1, help="And at most.")]
Top = Annotated[int, typer.Option(min=1, help="Genes each way that over-representation looks at.")]
Sign = Annotated[
    float | None, typer.Option(help="Instead: those whose sign is this probable, such as 0.95.")
]
Effect = Annotated[
    float | None,
    typer.Option(min=0, help="With --sign: and whose effect is at least this large (0.1)."),
]
Background = Annotated[
    Path | None, typer.Option(help="File with the genes of the universe; default: the model's.")
]
Processes = Annotated[
    int | None, typer.Option(min=1, help="Default: as many as there are processors.")
]
TABLES = [".csv", ".tsv", ".parquet"]


def enrich(
    bundle: BundleFolder,
    output: NewOutput,
    collection: Collections = None,
    gmt: GmtFiles = None,
    enrichr: Libraries = None,
    mechanism: Mechanisms = None,
    perturbation: Perturbations = None,
    min_size: MinSize = 5,
    max_size: MaxSize = 500,
    top: Top = 50,
    sign: Sign = None,
    effect: Effect = None,
    background: Background = None,
    seed: Seed = 0,
    processes: Processes = None,
) -> None:
    """Gene sets of every mechanism in use, or of a predicted shift, by two tests."""
    from samsvae_core.analysis import gene_rankings
    from samsvae_core.bundle.opening import load
    from samsvae_core.genesets import enrichment
    from samsvae_core.genesets.collections import describe, match

    new_results(output)
    if sign is not None and not 0.5 <= sign < 1:
        raise ValueError(f"--sign is {sign}; expected a probability of at least 0.5, below 1.")
    if sign is None and effect is not None:
        raise ValueError("--effect goes with --sign: give both, or --top alone.")
    if mechanism and perturbation:
        raise ValueError("Give --mechanism or --perturbation, not both: they ask different things.")
    sets = collections_of(collection, gmt, enrichr)
    rules = enrichment.EnrichmentOptions(min_size, max_size, seed, top)
    certainty = None
    if sign is not None:
        rules = rules._replace(n_top=None)
        certainty = gene_rankings.Certainty(sign, 0.1 if effect is None else effect)
    model = load(bundle)
    if background is not None:
        rules = rules._replace(universe=universe_of(background, model))
    ranked = rankings_of(model, mechanism, perturbation, seed, certainty)
    found = enrichment.enrich(ranked.scores, sets, rules, ranked.moved, processes, rankings_line)
    for one in sets:
        say(describe(match(one, model.genes)))
    results = gene_rankings.gathered(model, ranked, sets, found, rules)
    say_results(results)
    write_results(results, output)
    if found.notes["status"].str.startswith("failed").any():
        raise typer.Exit(1)


def new_results(output: Path) -> None:
    """Refuse, before any work is done, an output that could not be written in the end."""
    from samsvae_core.system.files import new_output

    if output.suffix not in ["", ".xlsx", ".zip", *TABLES]:
        raise ValueError(
            f"{output} must end in .xlsx, .zip, {', '.join(TABLES)}, or be a folder (no ending)."
        )
    new_output(output)


def collections_of(
    shipped: list[str] | None, gmt: list[Path] | None, libraries: list[str] | None
) -> list[Collection]:
    """The collections that are named, Hallmark if none is; raises ValueError for a name twice."""
    from samsvae_core.genesets.collections import load_collection, read_gmt
    from samsvae_core.genesets.enrichr import enrichr

    names = shipped or ([] if gmt or libraries else ["hallmark"])
    sets = [load_collection(name) for name in names] + [read_gmt(path) for path in gmt or []]
    sets += [enrichr(name) for name in libraries or []]
    if twice := {s.name for s in sets if sum(s.name == other.name for other in sets) > 1}:
        raise ValueError(f"Two collections are called {', '.join(sorted(twice))}; rename a file.")
    return sets


def rankings_of(
    model: Bundle,
    mechanisms: list[str] | None,
    perturbations: list[str] | None,
    seed: int,
    certainty: Certainty | None,
) -> GeneRanking:
    """The genes ranked by the shift of perturbations if these are named, else by mechanisms."""
    from samsvae_core.analysis import gene_rankings
    from samsvae_core.analysis.compose import compose

    if perturbations:
        known_names = set(model.perturbations.index)
        dosages = named_once([parse_dosage(text, known_names) for text in perturbations])
        return gene_rankings.of_shift(compose(model, dosages, seed=seed), certainty)
    numbers = None if mechanisms is None else [number_of("--mechanism", k) for k in mechanisms]
    return gene_rankings.of_mechanisms(model, numbers, certainty)


def say_results(results: Results) -> None:
    """Say what went wrong, what to be careful with, and what each ranking is called."""
    from samsvae_core.analysis.enrichment_export import label
    from samsvae_core.genesets import screening

    for line in screening.problems(results.enrichment.notes):
        say(line)
    if "caution" in results.settings:
        say(f"Caution: {results.settings['caution']}")
    for name, row in results.names.iterrows():
        say(f"{label(name)}: {row['name']}. {row['evidence'].rstrip('.')}.")


def write_results(results: Results, output: Path) -> None:
    """Write a table, a workbook, a zip file or a folder, by the ending of the name."""
    from samsvae_core.analysis import enrichment_export
    from samsvae_core.system.files import atomic_write

    if output.suffix in TABLES:
        write_table(results.enrichment.table, output)
        return
    if output.suffix == ".xlsx":
        atomic_write(output, enrichment_export.workbook(results))
    elif output.suffix == ".zip":
        atomic_write(output, enrichment_export.archive(enrichment_export.files(results)))
    else:
        enrichment_export.write_folder(enrichment_export.files(results), output)
    say(f"Wrote {output}: {len(results.enrichment.table):,} tests.")


def rankings_line(progress: Any) -> None:
    """At most twenty lines, on the stream for messages, so that output can be piped."""
    step = max(1, progress.total // 20)
    if progress.done % step == 0 or progress.done == progress.total:
        say(f"{progress.done} of {progress.total} rankings tested", err=True)


def universe_of(path: Path, model: Bundle) -> tuple[str, ...]:
    """The genes of a background file, those of the model by the model's names."""
    from samsvae_core.data.cells import read_genes
    from samsvae_core.genesets.symbols import describe_unknown, known_genes

    try:
        given = read_genes(path)
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"{path} is no text file; expected one gene to a line.") from error
    known, unknown = known_genes(given, model.genes, model.genes_by_id)
    if unknown:
        say(f"{path}: {describe_unknown(unknown, model.genes)} They stay in the background.")
    return (*known, *unknown)
