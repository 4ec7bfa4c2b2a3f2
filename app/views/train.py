"""The page Train: train a model on one's own data, and follow the runs of this server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import streamlit as st

from app.components import contexts, design, direct_effects, training_monitor
from app.server import queue, runs, time_estimate, uploads
from app.server.reading import Reading
from app.server.sandbox import in_words
from app.session import brought_files, file_choices, page, training, url
from samsvae_core.data.cells import DataError
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline.choices import can_have_context, direct_by_default
from samsvae_core.training.config import TrainConfig

POSTERIORS = {
    "correlated": "reads the cell and its shift; fits better",
    "mean-field": "reads the cell alone; simpler, a little faster",
}
SPLITS = {
    "random": "a fifth of the cells of each condition is held out for testing",
    "combinations": "a quarter of the combinations is held out whole",
}
LEAST_STEPS, EPOCHS = 6_000, 30  # the default number of steps is the larger of the two
MOST_STEPS = 1_000_000


def train() -> None:
    st.title("Train")
    st.markdown(
        "Training runs in a process of its own: it continues when this page is closed, and you "
        "find it here again. When it is done, the model opens in every other page."
    )
    if message := training.run_said():
        st.error(page.plain(message))
    reading = file_choices.reading()
    if reading is None:
        st.info("Choose the data first: the page Data shows how a file is read.")
        if st.button(
            "Choose data", key="choose data", icon=":material/arrow_forward:", type="primary"
        ):
            url.go("data", {})
    else:
        try:
            new_run(reading)
        except DataError as error:
            st.error(page.plain(error))
            back_to_data(reading)
    training_monitor.following()


def back_to_data(reading: Reading) -> None:
    url.link(
        "data",
        "Change the data",
        ":material/arrow_back:",
        reading.as_query(),
    )


# A new run


class Settings(NamedTuple):
    """The chosen settings as options of `samsvae train`, and the sizes that estimates need."""

    options: dict[str, str]
    size: time_estimate.Size


def new_run(reading: Reading) -> None:
    """Draw the settings of a new run, its estimated cost, and the button that starts it."""
    report = brought_files.validated(reading)
    file_choices.open_file(reading.data, "train_latents", "train_steps", "train_context")
    st.header("A new model", divider="gray")
    held = {
        "cell": report["n_cells"],
        "gene": n_genes_of(reading, report),
        "perturbation": report["n_perturbations"],
        "combination": report["n_combinations"],
        "control cell": report["n_control_cells"],
    }
    held_in_words = ", ".join(counted(n, what) for what, n in held.items())
    st.markdown(f"On **{page.plain(reading.data)}**: {held_in_words}.")
    for warning in design.other_warnings(report):
        st.warning(page.plain(in_words(warning)))
    design.of_training(report, reading)
    back_to_data(reading)
    left, right = st.columns(2, gap="large")
    with left:
        settings = choices(reading, report)
    file_choices.keep_choices()
    with right:
        start(reading, settings)


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def n_genes_of(reading: Reading, report: Mapping[str, Any]) -> int:
    """Return how many genes are modelled: all of the file, those of a list, or the top ones."""
    n = int(report["n_genes"])
    if reading.genes:
        found = brought_files.inspected(reading.data, reading.options.gene_key or "")
        n = len(uploads.genes_of_list(reading.genes, found)[0])
    return min(reading.top_genes or n, n)


def choices(reading: Reading, report: Mapping[str, Any]) -> Settings:
    kind = listed("train_model", "Model", {name: MODELS[name].summary for name in MODELS})
    encoder = listed("train_posterior", "Posterior of cells", POSTERIORS)
    n_latent = for_file(
        "train_latents",
        "Mechanisms to start from",
        int(np.clip(report["n_perturbations"], 5, 20)),
        (1, 200),
        "Latent dimensions. Those that are not needed switch off, so a few too many do no harm: "
        "20, or as many as there are perturbations.",
    )
    effects = of_effects(kind, report)
    n_cells = int(report["n_cells"])
    batch_size = 512
    with st.expander("More choices"):
        split = listed("train_split", "Held-out cells", SPLITS)
        batch_size = number(
            "train_batch",
            "Cells per step",
            512,
            (16, 8192),
            "Fewer take less memory and are noisier.",
        )
        hidden = number(
            "train_hidden", "Hidden units", 400, (1, 4096), "Of each network; 400 as published."
        )
        seed = number("train_seed", "Seed", 0, (0, 2**31), "Same seed, same result on a CPU.")
    n_train = 0.64 * n_cells
    per_epoch = max(1, int(np.ceil(n_train / batch_size)))
    steps = for_file(
        "train_steps",
        "Steps",
        min(MOST_STEPS, max(LEAST_STEPS, EPOCHS * per_epoch)),
        (1, MOST_STEPS),
        f"6,000, or {EPOCHS} passes over the training cells if those are more. Masks settle "
        "during the first two thirds.",
    )
    st.caption(f"About {steps / per_epoch:,.0f} epochs of {counted(per_epoch, 'step')}.")
    options = {
        "--model": kind,
        "--encoder": encoder,
        "--latents": str(n_latent),
        "--steps": str(steps),
        "--hidden": str(hidden),
        "--batch-size": str(batch_size),
        "--split": split,
        "--seed": str(seed),
        **effects,
    }
    size = time_estimate.Size(
        n_cells, n_genes_of(reading, report), report["median_counts"], steps, batch_size, hidden
    )
    return Settings(options, size)


def of_effects(kind: str, report: Mapping[str, Any]) -> dict[str, str]:
    """Draw the choices of what effects may be, those that this kind of model has; return them."""
    has_masks = MODELS[kind].can_ask_evidence
    evidence = evidence_asked() if has_masks else 0.16
    direct = direct_kind(kind, evidence)
    context = contexts.choice(design.accounted(report)) if can_have_context(kind) else ""
    options = {"--direct-effects": direct, "--context": context}
    if has_masks:
        options = {"--mask-evidence": f"{evidence:g}", **options}
    return {option: value for option, value in options.items() if value}


def evidence_asked() -> float:
    """Draw the box for the evidence that a mask entry must bring, in nats per cell."""
    return st.number_input(
        "Evidence a mask entry must bring",
        0.0,
        10.0,
        0.16,
        0.04,
        key="train_evidence",
        bind="query-params",
        help="In nats per cell that has the perturbation: the prior of the mask. More gives "
        "sparser masks; 0.16 found the true ones best in simulations.",
    )


def direct_kind(model: str, evidence: float) -> str:
    """Draw the choice of direct effects; return "" for a model that cannot have them."""
    default = direct_by_default(model, evidence)
    if default == "none":
        return ""
    kinds = {default: direct_effects.KINDS[default], **direct_effects.KINDS}
    return listed("train_direct", "Direct effects", kinds)


def listed(key: str, label: str, about: Mapping[str, str]) -> str:
    """Draw a choice of a few options, with a line about the chosen one, and return it."""
    url.unknown_option(key, list(about), label.lower())
    chosen = str(st.selectbox(label, list(about), key=key, bind="query-params"))
    st.caption(f"{chosen}: {about[chosen]}.")
    return chosen


def number(key: str, label: str, first: int, limits: tuple[int, int], about: str) -> int:
    low, high = limits
    return int(
        st.number_input(label, low, high, first, 1, key=key, bind="query-params", help=about)
    )


def for_file(key: str, label: str, first: int, limits: tuple[int, int], about: str) -> int:
    """Draw a number whose default depends on the data file, and return it."""
    low, high = limits
    widget = file_choices.suggested(key, first, int, lambda n: low <= n <= high)
    chosen = int(
        st.number_input(label, low, high, step=1, key=widget, persist_state="session", help=about)
    )
    file_choices.chosen(key, "" if chosen == first else str(chosen))
    return chosen


USUAL = {
    "--model": "sams-vae",
    "--encoder": "correlated",
    "--latents": "20",
    "--steps": str(TrainConfig.steps),
    "--hidden": "400",
    "--batch-size": str(TrainConfig.batch_size),
    "--split": "random",
    "--seed": "0",
    "--mask-evidence": "0.16",
    "--direct-effects": "sparse",
    "--context": "",
}


def start(reading: Reading, settings: Settings) -> None:
    """Draw the device, the estimated cost, the start button, and the same shell command."""
    found = training.pace()
    device = found.device if found else time_estimate.device()
    if device == "cuda":
        about = f"{found.named}, {found.memory / 1e9:.0f} GB" if found else "it could not be timed"
        devices = ["cuda", "cpu"]
        url.unknown_option("train_device", devices, "device")
        device = str(
            st.selectbox(
                "Device",
                devices,
                key="train_device",
                bind="query-params",
                help=f"cuda: {about}.",
            )
        )
        st.caption(f"A GPU is here: {page.plain(about)}.")
    else:
        n = queue.n_threads()
        st.markdown(
            f"**No CUDA GPU is found here**: training takes {n} processor core"
            f"{'' if n == 1 else 's'}, and leaves one to the pages."
        )
    estimate(found, settings.size, device)
    taken = [job.name for job in training.runs()]
    free = free_name(reading, settings.options["--model"], taken)
    name = st.text_input(
        "Name of the run",
        free,
        key=f"name {free}",
        max_chars=64,
        help="Letters, digits, dots, dashes and underscores. The model gets the same name.",
    )
    options = [f"{key}={value}" for key, value in settings.options.items() if value != USUAL[key]]
    arguments = [*reading.arguments(), *options]
    st.button(
        "Start training",
        key="start",
        icon=":material/play_arrow:",
        type="primary",
        on_click=training.start_run,
        args=(name, reading, arguments, device),
        disabled=not runs.is_name(name),
    )
    if not runs.is_name(name):
        st.caption("This is not a valid name for a run.")
    with st.expander("The same from the shell"):
        given = ["--output", f"runs/{name}"] if runs.is_name(name) else []
        st.code(reading.command("train", [*given, *options]), language="bash")


def free_name(reading: Reading, kind: str, taken: list[str]) -> str:
    stem = reading.data.rpartition("/")[2].removesuffix(".h5ad")
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in stem)
    first = f"{kept.strip('._-')[:36] or 'run'}-{kind}"
    names = [first, *(f"{first}-{n}" for n in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def estimate(found: time_estimate.Pace | None, size: time_estimate.Size, device: str) -> None:
    """Draw the estimated time and memory."""
    columns = st.columns(2)
    needed = time_estimate.memory(size)
    if found is not None and found.device == device:
        time = time_estimate.in_words(time_estimate.seconds(found, size))
        columns[0].metric("Time, about", time, help="From a few steps timed on this machine.")
    columns[1].metric("Memory, up to about", f"{needed / 1e9:.1f} GB")
    st.caption(
        "These are estimates: other work on this machine slows it down, and it ends sooner if the "
        "fit stops improving. Tables and maps of cells take a minute or more after the last step."
    )
    if found is not None and needed > 0.8 * found.memory and found.device == device:
        st.warning(
            f"This may not fit into the {found.memory / 1e9:.1f} GB here. Keep fewer genes or "
            "cells, or fewer cells per step."
        )


page.page(train)
