"""The page Data: choose a file of one's own, and see and correct how it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app.components import charts, design
from app.components.data_options import bound, options
from app.figures import model_plots
from app.server import middleware, runs, uploads
from app.server.reading import Reading
from app.server.sandbox import in_words
from app.session import brought_files, file_choices, page, url
from samsvae_core.data.cells import DataError
from samsvae_core.data.gene_names import INDEX
from samsvae_core.system.messages import some

MANY_GENES = 2_000  # with more genes, the most variable ones are suggested


def data() -> None:
    st.title("Data")
    st.markdown(
        "Bring a screen of your own as an .h5ad file: cells with raw counts and the perturbation "
        "of each. Nothing is trained before you have seen how the file is read."
    )
    chosen = choose()
    if chosen:
        try:
            one(chosen, brought_files.inspected(chosen))
        except DataError as error:
            st.error(page.plain(error))
    st.header("A model made elsewhere", divider="gray")
    bring_model()


# Which file


def choose() -> str:
    """Draw the upload and the picker, and return the id of the chosen file, or ""."""
    left, right = st.columns(2, gap="large")
    with left:
        largest = max(1, uploads.largest_upload() // uploads.MB)
        st.file_uploader(
            "Upload an .h5ad file",
            type="h5ad",
            key=brought_files.uploader_key("data"),
            max_upload_size=middleware.expect(largest),
            on_change=brought_files.keep_data,
            help="It is kept on the server, where anyone who can open this page can choose it, "
            "until it is removed.",
        )
        st.caption(
            f"{size(uploads.largest_upload())} at most; all uploads take "
            f"{size(uploads.used())} of {size(uploads.largest_total())}."
        )
        went_well("data")
    with right:
        found = {file.data: file for file in uploads.listing()}
        url.unknown_option("data", list(found), "data file")
        chosen: str | None = st.selectbox(
            "Data file",
            list(found),
            index=None,
            key="data",
            bind="query-params",
            placeholder="Choose one" if found else "There is none yet",
            help="Uploads, newest first, and files in the folders that this server was started "
            "with.",
        )
        if not found:
            st.info(
                "There is no data here yet. Upload a file, or open the dashboard with "
                "`samsvae app --data FOLDER`. To try it out: `samsvae simulate cells.h5ad`."
            )
        if chosen is None:
            return ""
        file = found[chosen]
        when = pd.Timestamp(file.modified, unit="s").strftime("%Y-%m-%d %H:%M UTC")
        st.caption(f"{size(file.size)}, {when}")
        if chosen.startswith(f"{uploads.UPLOADS}/"):
            question = f"Remove {page.plain(chosen)} from the server?"
            removal(question, "data", chosen)
    return chosen


def size(n_bytes: int) -> str:
    unit = next((u for u in ("GB", "MB", "kB") if n_bytes >= UNITS[u]), "bytes")
    return f"{n_bytes:,} bytes" if unit == "bytes" else f"{n_bytes / UNITS[unit]:,.1f} {unit}"


UNITS = {"GB": 2**30, "MB": 2**20, "kB": 2**10}


def went_well(kind: str) -> None:
    well, message = brought_files.said(kind)
    if message:
        (st.success if well else st.error)(page.plain(message))


# How it is read


def one(name: str, found: Mapping[str, Any]) -> None:
    """Draw how a file is read, what it holds, and the button that leads to training."""
    st.header("How it is read", divider="gray")
    reading = options(name, found)
    if reading is None:
        file_choices.keep_choices()
        st.info(
            "Choose the column that says which perturbation each cell has, or a table of obsm as "
            "dosages."
            if found["tables"]
            else "Choose the column that says which perturbation each cell has."
        )
        return
    st.header("Genes", divider="gray")
    reading = genes(reading, found)
    file_choices.keep_choices()
    if reading is None:
        return
    st.header("What it holds", divider="gray")
    try:
        report = brought_files.validated(reading)
    except DataError as error:
        st.error(page.plain(error))
        st.markdown("Change how the file is read above, or correct the file itself.")
        same(reading)
        return
    holds(report)
    st.header("Design", divider="gray")
    design.design(report, reading)
    file_choices.keep_choices()  # of the map as well
    same(reading)
    file_choices.note_reading(reading)
    if st.button(
        "Train on this data", key="train on", icon=":material/arrow_forward:", type="primary"
    ):
        on = url.as_address("", reading.as_query()).removeprefix("?")
        url.go("train", {"on": on})  # one parameter: the others are bound on this page


# Genes


def genes(reading: Reading, found: Mapping[str, Any]) -> Reading | None:
    """Draw the choice of genes and return the reading with it, or None if it is invalid."""
    n_genes = int(found["n_genes"])
    left, right = st.columns(2, gap="large")
    first = MANY_GENES if n_genes > MANY_GENES else 0
    with left:
        reading, found = names_of_genes(reading, found)
    top = int(
        left.number_input(
            "Most variable genes",
            0,
            n_genes,
            step=100,
            key=file_choices.suggested("top", first, int, lambda top: 0 <= top <= n_genes),
            persist_state="session",
            help="By the variance of analytic Pearson residuals (Lause et al. 2021), of the "
            "training cells alone. 0 keeps all genes.",
        )
    )
    file_choices.chosen("top", "" if top == first else str(top))
    with right:
        listed = gene_list()
    n_here, of_list = n_genes, ""
    if listed:
        known, absent = uploads.genes_of_list(listed, found)
        n_here, of_list = len(known), " of the list"
        message = f"{n_here:,} of {n_here + len(absent):,} genes of the list are in the file."
        if absent:
            message += f" Not in it: {some(absent, 5)}."
        (right.success if n_here else right.error)(page.plain(message))
    if top == 1 < n_here:
        left.error("One gene is too few: keep 2 or more, or 0 for all.")
        return None
    top = min(top, n_here) if n_here > 1 else 0
    kept = f"the {top:,} most variable" if top else "all"
    left.caption(f"Of {n_here:,} genes{of_list}, {kept} are modelled.")
    return reading.with_genes(top, listed)


def names_of_genes(reading: Reading, found: Mapping[str, Any]) -> tuple[Reading, Mapping[str, Any]]:
    """Draw the choice of the column that names genes; return the reading and file with it."""
    suggested = str(found["suggested"]["gene_key"])
    key = bound("gene_key", found["gene_columns"], NAMES, suggested)
    if key != suggested:
        reading = reading.with_names(key)
        found = brought_files.inspected(reading.data, key)
    if key == INDEX:  # a column's names are shown with what the file holds
        for note in found["gene_notes"]:
            st.warning(page.plain(in_words(note)))
    return reading, found


NAMES = (
    "A column of var; var_names is its index. If that holds row numbers or ids, a column of "
    "symbols is suggested. Ids stay known: the search and lists of genes take them, too."
)


def gene_list() -> str:
    """Draw the input for a list of genes and return the list's id, or "" without a list."""
    with st.expander("Only genes of a list"):
        text = st.text_area(
            "Names, one per line or separated by commas",
            key=file_choices.genes_key(),
            persist_state="session",
            placeholder="STAT1\nIRF1",
        )
        file = st.file_uploader(
            "Or a text file",
            type=["txt", "csv"],
            key=f"{file_choices.genes_key()}, a file",
            max_upload_size=middleware.expect(1),
        )
    if file is not None:
        text = file.getvalue().decode(errors="replace")
    listed = file_choices.gene_list(text)
    if listed and file is None:
        st.button("Keep all genes", key="all genes", on_click=file_choices.forget_genes)
    return listed


# What it holds


def holds(report: Mapping[str, Any]) -> None:
    """Draw the validation report: numbers, conditions, and warnings."""
    columns = st.columns(5)
    for column, (label, value, about) in zip(columns, figures_of(report), strict=True):
        column.metric(label, value, help=about)
    cells = pd.Series(report["conditions"], dtype=int)
    few = cells[cells < FEW]
    if len(few):
        st.warning(
            f"{len(few):,} condition{'s have' if len(few) > 1 else ' has'} fewer than {FEW} cells "
            f"({page.plain(some(few.index))}): little can be learned of "
            f"{'them' if len(few) > 1 else 'it'}."
        )
    for warning in design.other_warnings(report):
        st.warning(page.plain(in_words(warning)))
    for note in report["notes"]:
        st.markdown(f"- {page.plain(in_words(note))}")
    if suggestion := report["size_factor_suggestion"]:
        st.markdown(
            f"- Column **{page.plain(suggestion)}** counts more genes than are here: consider it "
            "as the size factor, under More choices."
        )
    charts.chart(
        model_plots.cells_per_condition(cells, report["control"], charts.dark()),
        "cells_per_condition",
        "Cells of each condition, the most first",
    )
    table = cells.rename_axis("condition").rename("cells").sort_values(ascending=False)
    charts.downloads(table.reset_index(), "cells_per_condition")


FEW = 20  # a condition with fewer cells gets a warning


def figures_of(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    n_constant, n_empty = report["n_constant_genes"], report["n_empty_cells"]
    source = report["counts_from"]
    return [
        ("Cells", f"{report['n_cells']:,}", f"{n_empty:,} of them have no count."),
        (
            "Genes",
            f"{report['n_genes']:,}",
            f"{n_constant:,} have the same count in every cell. Values are those of {source}.",
        ),
        (
            "Perturbations",
            f"{report['n_perturbations']:,}",
            f"{report['n_single']:,} are measured alone.",
        ),
        (
            "Combinations",
            f"{report['n_combinations']:,}",
            "Conditions with several perturbations in one cell.",
        ),
        (
            "Control cells",
            f"{report['n_control_cells']:,}",
            "Cells without a perturbation: what shifts are measured against.",
        ),
    ]


def same(reading: Reading) -> None:
    with st.expander("The same from the shell"):
        st.code(reading.command(), language="bash")


# A model made elsewhere


def bring_model() -> None:
    st.markdown(
        "Open a model that was trained on another machine, as the zip that `samsvae pack` or the "
        "page Train makes. Every file in it is checked first."
    )
    st.file_uploader(
        "Open a model (zip)",
        type="zip",
        key=brought_files.uploader_key("model"),
        max_upload_size=middleware.expect(max(1, uploads.largest_upload() // uploads.MB)),
        on_change=brought_files.keep_model,
    )
    went_well("model")
    if names := runs.brought(uploads.runs_folder()):
        brought(names)


def brought(names: list[str]) -> None:
    """Draw the models that came as a zip, to be removed; shipped ones and runs are not listed."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = str(st.selectbox("Models brought here", names, key="brought model", width=400))
        question = f"Remove the model {page.plain(name)} and the names of its mechanisms?"
        removal(question, "model", name)


def removal(question: str, kind: str, name: str) -> None:
    """Draw a button that asks before it removes a file for everyone."""
    with st.popover("Remove", icon=":material/delete:", type="tertiary"):
        st.markdown(question)
        st.button(
            "Remove it for everyone",
            key=f"remove {kind}",
            on_click=brought_files.remove,
            args=(kind, name),
        )


page.page(data)
