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
    from samsvae_core.bundle.bundle import Bundle


def enrich(
    bundle: BundleFolder,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="New: .xlsx, .zip, .csv, .tsv, .parquet, or a folder (no ending) with every file.",
        ),
    ],
    collection: Annotated[
        list[str] | None, typer.Option(help="A shipped collection; may be repeated.")
    ] = None,
    gmt: Annotated[list[Path] | None, typer.Option(help="A .gmt file; may be repeated.")] = None,
    enrichr: Annotated[
        list[str] | None, typer.Option(help="A library of Enrichr by name (network); repeatable.")
    ] = None,
    mechanism: Annotated[
        list[str] | None, typer.Option(help="Only this mechanism, 0 or M0; may be repeated.")
    ] = None,
    perturbation: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME or NAME:DOSAGE: of its predicted shift instead; repeat to compose."
        ),
    ] = None,
    min_size: Annotated[int, typer.Option(min=1, help="Measured genes of a set, at least.")] = 5,
    max_size: Annotated[int, typer.Option(min=1, help="And at most.")] = 500,
    top: Annotated[
        int, typer.Option(min=1, help="Genes each way that over-representation looks at.")
    ] = 50,
    sign: Annotated[
        float | None,
        typer.Option(help="Instead: those whose sign is this probable, such as 0.95."),
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(min=0, help="With --sign: and whose effect is at least this large (0.1)."),
    ] = None,
    background: Annotated[
        Path | None, typer.Option(help="File with the genes of the universe; default: the model's.")
    ] = None,
    seed: Seed = 0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Default: as many as there are processors.")
    ] = None,
) -> None:
    """Gene sets of every mechanism in use, or of a predicted shift, by two tests."""
    from samsvae_core.analysis import enrichment_export, gene_rankings
    from samsvae_core.analysis.compose import compose as predict
    from samsvae_core.bundle.opening import load
    from samsvae_core.genesets import enrichment, screening
    from samsvae_core.genesets.collections import describe, load_collection, match, read_gmt
    from samsvae_core.genesets.enrichr import enrichr as library
    from samsvae_core.genesets.terms import grouped
    from samsvae_core.system.files import atomic_write, new_output

    tables = [".csv", ".tsv", ".parquet"]
    if output.suffix not in ["", ".xlsx", ".zip", *tables]:
        raise ValueError(
            f"{output} must end in .xlsx, .zip, {', '.join(tables)}, or be a folder (no ending)."
        )
    new_output(output)
    if sign is not None and not 0.5 <= sign < 1:
        raise ValueError(f"--sign is {sign}; expected a probability of at least 0.5, below 1.")
    if sign is None and effect is not None:
        raise ValueError("--effect goes with --sign: give both, or --top alone.")
    if mechanism and perturbation:
        raise ValueError("Give --mechanism or --perturbation, not both: they ask different things.")
    names = collection or ([] if gmt or enrichr else ["hallmark"])
    sets = [load_collection(name) for name in names] + [read_gmt(path) for path in gmt or []]
    sets += [library(name) for name in enrichr or []]
    if twice := {s.name for s in sets if sum(s.name == other.name for other in sets) > 1}:
        raise ValueError(f"Two collections are called {', '.join(sorted(twice))}; rename a file.")
    rules = enrichment.Rules(min_size, max_size, seed, top)
    certainty = None
    if sign is not None:
        rules, certainty = (
            rules._replace(n_top=None),
            gene_rankings.Certainty(sign, 0.1 if effect is None else effect),
        )
    model = load(bundle)
    if background is not None:
        rules = rules._replace(universe=universe_of(background, model))
    if perturbation:
        known_names = set(model.perturbations.index)
        dosages = named_once([parse_dosage(text, known_names) for text in perturbation])
        ranked = gene_rankings.of_shift(predict(model, dosages, seed=seed), certainty)
    else:
        numbers = None if mechanism is None else [number_of("--mechanism", k) for k in mechanism]
        ranked = gene_rankings.of_mechanisms(model, numbers, certainty)
    found = enrichment.enrich(ranked.scores, sets, rules, ranked.moved, processes, rankings_line)
    for one in sets:
        say(describe(match(one, model.genes)))
    found = found._replace(table=grouped(found.table))
    results = gene_rankings.gathered(model, ranked, sets, found, rules)
    for line in screening.problems(found.notes):
        say(line)
    if "caution" in results.settings:
        say(f"Caution: {results.settings['caution']}")
    for name, row in results.names.iterrows():
        say(f"{enrichment_export.label(name)}: {row['name']}. {row['evidence'].rstrip('.')}.")
    if output.suffix in tables:
        write_table(found.table, output)
    elif output.suffix == ".xlsx":
        atomic_write(output, enrichment_export.workbook(results))
    elif output.suffix == ".zip":
        atomic_write(output, enrichment_export.archive(enrichment_export.files(results)))
    else:
        enrichment_export.write_folder(enrichment_export.files(results), output)
    if output.suffix not in tables:
        say(f"Wrote {output}: {len(found.table):,} tests.")
    if found.notes["status"].str.startswith("failed").any():
        raise typer.Exit(1)


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
