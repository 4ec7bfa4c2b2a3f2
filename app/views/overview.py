"""What this model is, how good it is, and how to read it."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, state
from samsvae_core.bundle import Bundle
from samsvae_core.interpretation import active_mechanisms
from samsvae_core.report import verdict


def overview(model: Bundle) -> None:
    st.title("SAMS-VAE Explorer")
    st.markdown(
        "Through which **mechanisms** does a perturbation act, and what will two do **together**? "
        "This model has learned from single cells that a perturbed cell is its own basal state "
        "plus, for each perturbation, a shift along a few mechanisms. Which few: its **mask**."
    )
    headline(model)
    where_next()
    st.header("How good it is on cells it has not seen", divider="gray")
    held_out(model)
    left, right = st.columns(2, gap="large")
    with left:
        st.header("How it was trained", divider="gray")
        state.chart(
            figures.history(model.history, state.dark()),
            "training",
            "Validation bound rising and active mask entries falling over epochs",
        )
        st.caption(
            "Bounds on the log likelihood, in nats per cell; higher is better. Entries start on; "
            "the evidence asked of them rises over the first two thirds of training."
        )
        state.downloads(model.history, "history")
    with right:
        st.header("Cells", divider="gray")
        cells(model)
    st.header("Model card", divider="gray")
    with st.container(border=True):
        st.markdown(model.card.partition("\n")[2].replace("\n## ", "\n#### "))
    provenance(model)


def headline(model: Bundle) -> None:
    n_cells = int(model.conditions[["train", "validation", "test"]].to_numpy().sum())
    n_active = len(active_mechanisms(model.masks))
    per = model.masks.groupby("perturbation")["active"].sum()
    columns = st.columns(4)
    columns[0].metric(
        "Cells", f"{n_cells:,}", help="All cells of the data file: train, validation and test."
    )
    columns[1].metric(
        "Perturbations",
        f"{len(model.perturbations)}",
        help=f"Of these, {int((per > 0).sum())} use at least one mechanism. The others have no "
        "effect that earns its price on these genes and cells.",
    )
    columns[2].metric(
        "Mechanisms in use",
        f"{n_active} of {model.model.config.n_latent}",
        help="Latent dimensions that at least one perturbation moves with posterior probability "
        "above 0.5.",
    )
    bound = model.metrics.get("iwelbo")
    columns[3].metric(
        "Held-out bound",
        f"{bound['test']:.2f}" if bound else "none",
        help=(
            f"IWELBO of {bound['n_cells']:,} test cells with {bound['n_samples']} samples, in nats "
            f"per cell; standard error over cells {bound['se']:.2f}, Monte Carlo error "
            f"{bound['mc_error']:.2f}. It compares models on the same test cells only."
            if bound
            else "This model was trained without test cells."
        ),
    )


def where_next() -> None:
    steps = (
        ("views/masks.py", "Masks", "Which mechanisms does each perturbation use?"),
        ("views/compose.py", "Compose", "What would two or more perturbations do together?"),
        ("views/mechanism.py", "Mechanism", "Which genes and pathways does a mechanism move?"),
    )
    for column, (page, name, question) in zip(st.columns(3), steps, strict=True):
        with column.container(border=True):
            st.markdown(f"**{question}**")
            st.page_link(page, label=f"Open {name}", icon=":material/arrow_forward:")


def held_out(model: Bundle) -> None:
    metrics = model.metrics
    if "not_available" in metrics:
        st.info(state.plain(metrics["not_available"]))
        return
    effects = metrics["average_effects"]
    rows = {"this model": effects, **metrics["baselines"]}
    table = pd.DataFrame(
        [
            {
                "prediction": name,
                "r": row["pearson"],
                "r, top 20 genes": row["pearson_top20"],
                "R2": row["r2"],
                "cosine": row["cosine"],
            }
            for name, row in rows.items()
        ]
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.dataframe(
            table,
            hide_index=True,
            placeholder="",
            alt="Agreement of predictions with held-out average effects",
            column_config={
                name: st.column_config.NumberColumn(format="%.3f") for name in table.columns[1:]
            },
        )
        state.downloads(table, "held_out_metrics")
    with right:
        st.markdown(verdict(metrics))
        st.caption(
            f"Pooled over {effects['n_conditions']} conditions and {len(model.genes):,} genes: "
            "average effect (mean over cells of log2(1 + 1e4 x / total), minus control), predicted "
            f"from {effects['n_draws']:,} draws, against the {effects['reference']} cells. "
            "*Training mean*: the effect measured on the training cells. *No change* has no r. "
            "Empty: not defined."
        )


def cells(model: Bundle) -> None:
    frame = model.cells.rename(columns={"cell": "name"})
    counts = model.masks[model.masks["active"]].groupby("perturbation").size()
    strongest = counts.sort_values(ascending=False, kind="stable").index[:3].tolist()
    group = frame["condition"].where(frame["condition"].isin(strongest), "all other cells")
    order = pd.Categorical(group, ["all other cells", *strongest], ordered=True)
    frame = frame.assign(group=order).sort_values("group", kind="stable")
    state.chart(
        figures.umap(frame, frame["group"].astype(str), state.dark()),
        "cells",
        "UMAP of a sample of cells in latent space",
    )
    st.caption(
        f"UMAP of {len(frame):,} cells by their latent state (basal plus shift). Distances between "
        "far groups mean little."
    )


def provenance(model: Bundle) -> None:
    with st.expander("Files, versions and checksums"):
        st.json(model.manifest, expanded=1)


state.page(overview)
