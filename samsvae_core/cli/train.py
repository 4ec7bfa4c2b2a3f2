"""The verb that trains a model, and goes on where a training was stopped."""

from __future__ import annotations

import contextlib
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperOption

from samsvae_core.cli.options import (
    DataFile,
    Device,
    Seed,
    chosen_device,
    known,
    say,
    takes_read_options,
    warn,
)
from samsvae_core.data.read_options import ReadOptions

if TYPE_CHECKING:
    import numpy as np
    import torch

    from samsvae_core.bundle.bundle import Bundle
    from samsvae_core.data.cells import CellData
    from samsvae_core.training.config import Progress, TrainConfig
    from samsvae_core.training.run_folder import Stopper

EPOCHS_PER_LINE = 10

RunFolder = Annotated[Path, typer.Option("--output", "-o", help="The run folder, a new one.")]
Model = Annotated[str, typer.Option()]  # `NamingModels` gives it its help
Encoder = Annotated[str, typer.Option(help="correlated (reads the shift too) or mean-field.")]
Split = Annotated[
    str,
    typer.Option(
        help="random; combinations (some are held out); efficiency (some of their cells are "
        "left out); or a CSV file with the columns cell, split, or with a column condition: "
        "those are held out."
    ),
]
Fraction = Annotated[
    float | None,
    typer.Option(
        help="Of combinations to train on (default 0.75), or of their cells (default 0.5)."
    ),
]
StepRunner = Annotated[int | None, typer.Option(min=1, help="Training steps (default 6000).")]
Epochs = Annotated[int | None, typer.Option(min=1, help="Instead of --steps.")]
Latents = Annotated[int, typer.Option(min=1, help="Mechanisms to start from.")]
Hidden = Annotated[int, typer.Option(min=1, help="Hidden units of the networks.")]
MaskEvidence = Annotated[
    float, typer.Option(min=0, help="Nats per cell an active mechanism must bring.")
]
MaskPrior = Annotated[
    float | None,
    typer.Option(help="The published prior instead: a probability such as 0.05, not annealed."),
]
DirectEffects = Annotated[
    str | None,
    typer.Option(
        help="Outside the mechanisms: sparse (on any gene), own-target, or none (the paper's "
        "model). Default: sparse; none with --mask-prior, or where a model cannot have any."
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        help="Column of obs, such as cell line or treatment, between whose levels a perturbation "
        "may move mechanisms differently; a covariate too."
    ),
]
Frontier = Annotated[
    bool,
    typer.Option("--frontier", help="Try several --mask-evidence and keep the sparsest that fits."),
]
Particles = Annotated[int, typer.Option(min=1, help="Samples per cell and step.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Cells per step.")]
LearningRate = Annotated[float, typer.Option(min=0, help="Of the networks.")]
GeneFile = Annotated[Path | None, typer.Option(help="File with the genes to keep.")]
TopGenes = Annotated[int | None, typer.Option(min=2, help="Keep this many most variable genes.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --output, with its settings.")
]


@dataclass(frozen=True)
class Asked:
    """What a new run is asked to be: its cells, the fields of its configurations."""

    reading: ReadOptions
    genes: Path | None
    top_genes: int | None
    split: str
    fraction: float | None
    epochs: int | None  # instead of the steps in `settings`
    model: str
    frontier: bool
    model_config: dict[str, Any]
    settings: TrainConfig
    context: str | None = None


class NamingModels(TyperCommand):
    """Names the kinds of model in the help, when it is asked for: importing torch takes seconds."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the names in the option --model."""
        from samsvae_core.models.variants import MODELS
        from samsvae_core.system.messages import either

        option = next(each for each in self.params if each.name == "model")
        assert isinstance(option, TyperOption)
        option.help = f"{either(list(MODELS))}."
        super().format_help(ctx, formatter)


@takes_read_options()
def train(
    data: DataFile,
    output: RunFolder,
    model: Model = "sams-vae",
    encoder: Encoder = "correlated",
    device: Device = "auto",
    split: Split = "random",
    fraction: Fraction = None,
    steps: StepRunner = None,
    epochs: Epochs = None,
    latents: Latents = 20,
    hidden: Hidden = 400,
    mask_evidence: MaskEvidence = 0.16,
    mask_prior: MaskPrior = None,
    direct_effects: DirectEffects = None,
    context: Context = None,
    frontier: Frontier = False,
    particles: Particles = 1,
    batch_size: BatchSize = 512,
    learning_rate: LearningRate = 1e-3,
    genes: GeneFile = None,
    top_genes: TopGenes = None,
    reading: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    seed: Seed = 0,
    threads: Threads = None,
    resume: Resume = False,
) -> None:
    """Train a model and keep it, with all its tables, as a bundle in --output."""
    import torch

    from samsvae_core.training import distributed
    from samsvae_core.training.config import TrainConfig

    check(model, encoder, steps, epochs, mask_evidence, mask_prior, learning_rate)
    where = chosen_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = TrainConfig(steps or TrainConfig.steps, batch_size, particles)
    settings = replace(settings, learning_rate=learning_rate, seed=seed)
    config: dict[str, Any] = {"n_latent": latents, "n_hidden": hidden, "encoder": encoder}
    if mask_prior is None:
        config["mask_evidence"] = mask_evidence
    else:
        config |= {"mask_evidence": None, "mask_prior": mask_prior}
        settings = replace(settings, dense=0.0, anneal=0.0)
    if direct_effects is not None:
        known("--direct-effects", direct_effects, ["sparse", "own-target", "none"])
        config["direct_effects"] = direct_effects
    if context is not None and context not in (reading.covariates or ()):
        reading = replace(reading, covariates=(*(reading.covariates or ()), context))
    panel = genes, top_genes, split, fraction, epochs
    asked = Asked(reading, *panel, model, frontier, config, settings, context)
    if not distributed.first_started():
        follow(data, output, where)
    elif resume:
        say_finished(go_on(data, output, where, reading.counts_on), output)
    else:
        say_finished(start(data, output, where, asked), output)


def check(
    model: str,
    encoder: str,
    steps: int | None,
    epochs: int | None,
    mask_evidence: float,
    mask_prior: float | None,
    learning_rate: float,
) -> None:
    """Raises ValueError for settings that are none, or do not go together."""
    from samsvae_core.models.variants import MODELS

    known("--model", model, list(MODELS))
    known("--encoder", encoder, ["correlated", "mean-field"])
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


def start(data: Path, output: Path, where: torch.device, asked: Asked) -> Bundle:
    """Train a new run, and make its bundle."""
    from samsvae_core.data.h5ad import read_cells
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.system.files import new_output
    from samsvae_core.training import distributed
    from samsvae_core.training.run_folder import is_prepared, recorded

    prepared = is_prepared(output)  # what ends the run is kept there then, bad data included
    if not prepared:
        new_output(output)
    noted = recorded(output) if prepared else contextlib.nullcontext()
    with stopping(data, output) as stopper, distributed.group(where) as where, noted:
        scratch = next(place for place in [output, *output.parents] if place.is_dir())
        cells, parts = chosen_cells(read_cells(data, asked.reading, scratch, say), asked)
        settings = asked.settings
        if asked.epochs is not None:
            per_epoch = -(-int((parts == "train").sum()) // settings.batch_size)
            settings = replace(settings, steps=asked.epochs * per_epoch)
        finished = pipeline.train(
            cells,
            parts,
            output,
            asked.model_config,
            settings,
            where,
            told_by(stopper),
            model=asked.model,
            frontier=asked.frontier,
            say=say,
            context=asked.context,
        )
    return finished


def chosen_cells(cells: CellData, asked: Asked) -> tuple[CellData, np.ndarray]:
    """The cells with the genes to keep, and the part of the split that each is in."""
    from samsvae_core.data.cells import gene_panel, read_genes
    from samsvae_core.data.splits import split

    if asked.genes is not None:
        cells = gene_panel(cells, genes=read_genes(asked.genes))
    parts = split(cells, asked.split, asked.settings.seed, asked.fraction)
    if asked.top_genes is not None:  # by what may be known of them: the training cells
        kept = gene_panel(cells.subset(parts == "train"), top=asked.top_genes).genes
        cells = gene_panel(cells, genes=kept.tolist())
    return cells, parts


def go_on(data: Path, output: Path, where: torch.device, counts_on: str) -> Bundle:
    """Go on with the run in `output` as it was started, and make its bundle."""
    from samsvae_core.data.h5ad import read_cells
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.training import distributed
    from samsvae_core.training.run_folder import recorded

    with stopping(data, output) as stopper, distributed.group(where) as where:
        pipeline.read_settings(output)
        say_where(output, where)
        with recorded(output):
            options = pipeline.read_options(output)
            if counts_on != "auto":
                options = replace(options, counts_on=counts_on)
            cells = read_cells(data, options, output, say)
            finished = pipeline.resume(cells, output, where, told_by(stopper), say=say)
    return finished


def told_by(stopper: Stopper) -> Callable[[Progress], None]:
    """What is done after each epoch: a line now and then, and the end if it was asked for."""

    def on_epoch(progress: Progress) -> None:
        progress_line(progress)
        stopper.epoch_done()

    return on_epoch


def say_finished(bundle: Bundle, output: Path) -> None:
    """Say what a training has made."""
    from samsvae_core.analysis.held_out import metrics_in_words
    from samsvae_core.analysis.masks import in_use_in_words

    say(f"Wrote {output}: {bundle.title}.")
    if bundle.model.has_masks:
        say(in_use_in_words(bundle.masks))
    say(metrics_in_words(bundle.metrics, bundle.title))
    warn(bundle)


def say_where(output: Path, where: torch.device) -> None:
    """Say it where a run that a GPU has trained goes on without one."""
    from samsvae_core.training.run_folder import read_status

    status = read_status(output)
    if "cuda" in str(status.get("device")) and where.type == "cpu":
        epoch = status.get("epoch", 0)
        say(f"Up to epoch {epoch} this run was trained on a GPU; it goes on on the CPU.")


def follow(data: Path, output: Path, where: torch.device) -> None:
    """Take part in a training whose first process writes, says how it goes, and when to stop."""
    from samsvae_core.data.h5ad import read_cells
    from samsvae_core.pipeline import train as pipeline
    from samsvae_core.training import distributed
    from samsvae_core.training.config import Stop

    with distributed.group(where) as where, contextlib.suppress(Stop):
        distributed.wait()  # until the first has written what the run is
        cells = read_cells(data, pipeline.read_options(output), output)
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
