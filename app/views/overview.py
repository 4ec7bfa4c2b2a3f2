"""The page Overview: what the model is, how good it is, and how to read it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import charts, direct_effects, metrics_tables, tour
from app.components.held_out import held_out
from app.export.items import Text
from app.figures import maps, model_plots, style
from app.session import markdown, record, url
from app.session import page as state
from samsvae_core.analysis.differences import differing_in_words
from samsvae_core.analysis.masks import active_mechanisms, in_use_in_words
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.data.covariates import accounted_in_words

QUESTION = (
    "Through which **mechanisms** does a perturbation act, and what will two do **together**?"
)


def overview(model: Bundle) -> None:
    st.title("SAMS-VAE Explorer")
    record.markdown(f"{QUESTION} {model.model.introduction}")
    with st.container(horizontal=True, vertical_alignment="center"):
        tour.offer()
        url.link("glossary", "What the words mean", ":material/help:")
    headline(model)
    if model.levels:
        levels = {state.plain(name): found for name, found in model.levels.items()}
        said = accounted_in_words(levels)
        if model.context is not None:
            context = state.plain(model.context)
            said += f" {differing_in_words(context, model.differences)}"
        record.markdown(said)
    where_next()
    record.header("How good it is on cells it has not seen")
    held_out(model)
    left, right = st.columns(2, gap="large")
    with left:
        record.header("How it was trained")
        charts.chart(
            model_plots.history(model.history, charts.dark(), model.model.has_masks),
            "training",
            "Validation bound rising and active mask entries falling over epochs",
        )
        record.caption(training(model))
        record.caption(direct_effects.in_all(model))
        charts.downloads(model.history, "history")
    with right:
        record.header("Cells")
        cells(model)
    record.header("Model card")
    with st.container(border=True):
        card(markdown.parted(model.card.partition("\n")[2].replace("\n## ", "\n#### ")))
    provenance(model)


def card(text: str) -> None:
    """Draw the model card, with tables that scroll on narrow screens."""
    for block, table in metrics_tables.blocks(text):
        if table is None:
            record.markdown(block)
        else:
            st.table(table, hide_index=True)
            state.record(Text(block))


def headline(model: Bundle) -> None:
    n_cells = int(model.conditions[["train", "validation", "test"]].to_numpy().sum())
    per = model.masks.groupby("perturbation")["active"].sum()
    columns = st.columns(5)
    columns[0].metric("Cells", f"{n_cells:,}", help="Cells used: train, validation and test.")
    has_masks, n_latent = model.model.has_masks, model.model.config.n_latent
    columns[1].metric(
        "Perturbations" if model.model.composes else "Treatments",
        f"{len(model.perturbations)}",
        help=f"Of these, {int((per > 0).sum())} use at least one mechanism. For the others, no "
        "effect on these genes and cells brought the evidence asked for."
        if has_masks
        else "Perturbations in the data file; combinations of them are not counted.",
    )
    if has_masks:
        columns[2].metric(
            "Mechanisms in use",
            f"{len(active_mechanisms(model.masks))} of {n_latent}",
            help="Latent dimensions that at least one perturbation moves with posterior "
            f"probability above 0.5. {state.plain(in_use_in_words(model.masks))}",
        )
    else:
        columns[2].metric(
            "Latent dimensions", f"{n_latent}", help=f"{model.title} has no mask to choose some."
        )
    found = model.metrics.get("average_effects")
    columns[3].metric(
        "Held-out r",
        "undefined" if not found or found["pearson"] is None else f"{found['pearson']:.2f}",
        help=f"Pearson r between predicted and measured average effects of held-out cells, over "
        f"{found['n_conditions']} conditions and {len(model.genes):,} genes. Simple baselines are "
        "below."
        if found
        else "No cells were held out to measure average effects on.",
    )
    bound = model.metrics.get("iwelbo")
    columns[4].metric(
        "Held-out bound",
        f"{bound['test']:.2f}" if bound else "none",
        help=(
            f"IWELBO, a lower bound on the log likelihood, of {bound['n_cells']:,} test cells with "
            f"{bound['n_samples']} samples, in nats per cell; standard error over cells "
            f"{bound['se']:.2f}, Monte Carlo error {bound['mc_error']:.2f}. Higher is better. It "
            "compares models on the same test cells only."
            if bound
            else "This model was trained without test cells."
        ),
    )


def where_next() -> None:
    steps = (
        ("perturbation", "What does one perturbation do?"),
        ("masks", "Which mechanisms does each perturbation use?"),
        ("compose", "What would two or more perturbations do together?"),
        ("mechanism", "Which genes and pathways does a mechanism move?"),
    )
    for column, (page, question) in zip(st.columns(4), steps, strict=True):
        with column.container(border=True):
            record.markdown(f"**{question}**")
            url.link(page, f"Open {page.capitalize()}", ":material/arrow_forward:")


def training(model: Bundle) -> str:
    """Return what the curves are, and when the mask prior asked for evidence."""
    said = "Bounds on the log likelihood, in nats per cell; higher is better."
    if not model.model.asks_evidence:
        return said
    if model.config["frontier"]:
        return (
            f"{said} First the dense start, which asks for no evidence; then the kept level, where "
            "the evidence asked of entries rises."
        )
    shares = model.config["train_config"]
    return (
        f"{said} No evidence is asked for the first {shares['dense']:.0%} of the steps; then "
        "mechanisms are rotated so that few entries suffice, and the evidence asked of each rises "
        f"until {shares['anneal']:.0%} of the steps."
    )


def cells(model: Bundle) -> None:
    frame = model.cells
    if model.model.has_shifts:
        size = model.masks.assign(size=model.masks["effect"] ** 2)
        size = size.groupby("perturbation")["size"].sum()
        which, space = "the largest effects", "latent state (basal plus shift)"
    else:
        size = model.perturbations["train"]
        which, space = "most cells", "latent state, which the model keeps free of perturbations"
    shown = size[size.index.isin(frame["condition"])]  # the rest occur in combinations only
    levels = [style.REST, *shown.sort_values(ascending=False, kind="stable").index[:3]]
    group = frame["condition"].where(frame["condition"].isin(levels), style.REST)
    charts.chart(
        maps.cell_map(
            frame[["umap_1", "umap_2"]],
            frame["condition"],
            pd.Series(pd.Categorical(group, levels)),
            "condition",
            charts.dark(),
        ),
        "cells",
        "UMAP of a sample of cells in latent space",
    )
    record.caption(
        f"UMAP (a flat map that keeps neighbours together) of {len(frame):,} cells by their "
        f"{space}; in colour, the perturbations with {which}, of those with cells of their own. "
        "Distances between far groups mean little."
    )


def provenance(model: Bundle) -> None:
    with st.expander("Files, versions and checksums"):
        st.json(model.manifest, expanded=1)


state.page(overview)
