"""The verb that trains a model, and goes on where a training was stopped."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samsvae_core.cli.options import (
    Control,
    CountsOn,
    DataFile,
    Delimiter,
    Device,
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
    chosen_device,
    is_gaussian,
    known,
    read,
    say,
    warn,
)

if TYPE_CHECKING:
    import torch

    from samsvae_core.training.config import Progress
    from samsvae_core.training.run_folder import Stopper

EPOCHS_PER_LINE = 10


def train(
    data: DataFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="The run folder, a new one.")],
    model: Annotated[
        str,
        typer.Option(
            help="sams-vae, correlated-sams-vae, cpa-vae, svae-plus or conditional-vae.",
        ),
    ] = "sams-vae",
    encoder: Annotated[
        str, typer.Option(help="correlated (reads the shift too) or mean-field.")
    ] = "correlated",
    likelihood: Likelihood = "counts",
    device: Device = "auto",
    split: Annotated[
        str,
        typer.Option(
            help="random; combinations (some are held out); efficiency (some of their cells are "
            "left out); or a CSV file with the columns cell, split, or with a column condition: "
            "those are held out."
        ),
    ] = "random",
    fraction: Annotated[
        float | None,
        typer.Option(
            help="Of combinations to train on (default 0.75), or of their cells (default 0.5)."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps (default 6000).")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Instead of --steps.")] = None,
    latents: Annotated[int, typer.Option(min=1, help="Mechanisms to start from.")] = 20,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden units of the networks.")] = 400,
    mask_evidence: Annotated[
        float,
        typer.Option(min=0, help="Nats per cell an active mechanism must bring."),
    ] = 0.16,
    mask_prior: Annotated[
        float | None,
        typer.Option(help="The published prior instead: a probability such as 0.05, not annealed."),
    ] = None,
    frontier: Annotated[
        bool,
        typer.Option(
            "--frontier", help="Try several --mask-evidence and keep the sparsest that fits."
        ),
    ] = False,
    particles: Annotated[int, typer.Option(min=1, help="Samples per cell and step.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Cells per step.")] = 512,
    learning_rate: Annotated[float, typer.Option(min=0, help="Of the networks.")] = 1e-3,
    genes: Annotated[Path | None, typer.Option(help="File with the genes to keep.")] = None,
    top_genes: Annotated[
        int | None, typer.Option(min=2, help="Keep this many most variable genes.")
    ] = None,
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
    seed: Seed = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="Processor threads.")] = None,
    counts_on: CountsOn = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output, with its settings.")
    ] = False,
) -> None:
    """Train a model and keep it, with all its tables, as a bundle in --output."""
    from contextlib import ExitStack
    from dataclasses import replace

    import torch

    from samsvae_core.data.cells import gene_panel, read_genes
    from samsvae_core.data.splits import split as split_cells
    from samsvae_core.models.variants import MODELS
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.system.files import new_output
    from samsvae_core.training import distributed
    from samsvae_core.training.config import TrainConfig
    from samsvae_core.training.run_folder import is_prepared, recorded

    known("--model", model, list(MODELS))
    known("--encoder", encoder, ["correlated", "mean-field"])
    known("--counts-on", counts_on, ["auto", "memory", "disk"])
    if steps is not None and epochs is not None:
        raise ValueError(
            f"--steps is {steps} and --epochs {epochs}: both say how long to train. Give one."
        )
    if mask_prior is not None and not 0 < mask_prior < 1:
        raise ValueError(f"--mask-prior is {mask_prior}; expected a probability between 0 and 1.")
    if not 0 < learning_rate < math.inf or mask_evidence == math.inf:
        raise ValueError(
            f"--learning-rate is {learning_rate} and --mask-evidence {mask_evidence}; expected "
            "finite numbers, and a learning rate above 0."
        )
    where = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    if distributed.first_started() and not resume and not is_prepared(output):
        new_output(output)

    def on_epoch(progress: Progress) -> None:
        progress_line(progress)
        stopper.epoch_done()

    with ExitStack() as stack:
        if not distributed.first_started():
            follow(data, output, where)
            return
        stopper = stack.enter_context(stopping(data, output))
        where = stack.enter_context(distributed.group(where))
        if resume:
            pipeline.read_settings(output)
            say_where(output, where)
        if resume or is_prepared(output):  # what ends the run is kept there, bad data included
            stack.enter_context(recorded(output))
        if resume:
            options = pipeline.read_options(output)
            if counts_on != "auto":
                options["counts_on"] = counts_on
            cells = read(data, **options, scratch=output, say=say)
            finished = pipeline.resume(cells, output, where, on_epoch, say=say)
        else:
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
                scratch=next(place for place in [output, *output.parents] if place.is_dir()),
                say=say,
            )
            if genes is not None:
                cells = gene_panel(cells, genes=read_genes(genes))
            parts = split_cells(cells, split, seed, fraction)
            if top_genes is not None:  # by what may be known of them: the training cells
                kept = gene_panel(cells.subset(parts == "train"), top=top_genes).genes
                cells = gene_panel(cells, genes=kept.tolist())
            if epochs is not None:
                steps = epochs * -(-int((parts == "train").sum()) // batch_size)
            settings = TrainConfig(
                steps=steps or TrainConfig.steps,
                batch_size=batch_size,
                particles=particles,
                learning_rate=learning_rate,
                seed=seed,
            )
            if mask_prior is not None:
                settings = replace(settings, dense=0.0, anneal=0.0)
            options = {
                "n_latent": latents,
                "n_hidden": hidden,
                "mask_evidence": None if mask_prior is not None else mask_evidence,
                "encoder": encoder,
            }
            if mask_prior is not None:
                options["mask_prior"] = mask_prior
            finished = pipeline.train(
                cells,
                parts,
                output,
                options,
                settings,
                where,
                on_epoch,
                model=model,
                frontier=frontier,
                say=say,
            )
    from samsvae_core.analysis.held_out import metrics_in_words
    from samsvae_core.analysis.masks import in_use_in_words

    say(f"Wrote {output}: {finished.title}.")
    if finished.model.has_masks:
        say(in_use_in_words(finished.masks))
    say(metrics_in_words(finished.metrics, finished.title))
    warn(finished)


def say_where(output: Path, where: torch.device) -> None:
    """Say it where a run that a GPU has trained goes on without one."""
    from samsvae_core.training.run_folder import read_status

    status = read_status(output)
    if "cuda" in str(status.get("device")) and where.type == "cpu":
        epoch = status.get("epoch", 0)
        say(f"Up to epoch {epoch} this run was trained on a GPU; it goes on on the CPU.")


def follow(data: Path, output: Path, where: torch.device) -> None:
    """Take part in a training whose first process writes, says how it goes, and when to stop."""
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.training import distributed
    from samsvae_core.training.config import Stop

    with distributed.group(where) as where, contextlib.suppress(Stop):
        distributed.wait()  # until the first has written what the run is
        cells = read(data, **pipeline.read_options(output), scratch=output)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        pipeline.follow(cells, output, where)


@contextmanager
def stopping(data: Path, output: Path) -> Iterator[Stopper]:
    """While a run trains: signals to stop are heard, and answered with how to go on."""
    import shlex

    from samsvae_core.training.config import Stop
    from samsvae_core.training.run_folder import read_status, stoppable

    try:
        with stoppable() as stopper:
            yield stopper
    except (Stop, KeyboardInterrupt):
        if not (output / "config.json").is_file():
            say("Stopped before the run began. Start it again with the same command.")
        else:
            epoch = read_status(output).get("epoch", 0)
            command = ["samsvae", "train", str(data), "--output", str(output), "--resume"]
            say(f"Stopped; what was trained up to epoch {epoch} is kept. Go on with:")
            say(shlex.join(command))
        raise typer.Exit(128 + (stopper.asked or signal.SIGINT)) from None


def progress_line(progress: Progress) -> None:
    if progress.epoch % EPOCHS_PER_LINE == 1:
        say(
            f"epoch {progress.epoch}, step {progress.step:,}: bound {progress.bound:.2f}, "
            f"validation {progress.validation_bound:.2f} nats per cell, "
            f"{progress.active} active entries in {progress.mechanisms} mechanisms"
        )
