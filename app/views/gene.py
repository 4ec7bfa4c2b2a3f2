"""The page Gene: its names, the perturbations that move it, and its loading on each mechanism."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import all_shifts, charts, direct_effects
from app.components.intervals import CALIBRATED, INTERVALS, OWN, interval
from app.components.units import scale
from app.figures import gene_plots, style
from app.session import choices, composition, given_names, page, record
from app.session import url as address
from samsvae_core.analysis import masks
from samsvae_core.analysis.gene_card import annotation, links, mechanisms_of, moved_by, targeting
from samsvae_core.analysis.support import SUPPORT, support
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.symbols import annotate

N_BARS = 30  # perturbations drawn; the table beside has all
N_ALIASES = 4  # shown per gene in the search box
NAME = 24  # characters of a mechanism's name beside a bar
MARK = "\u2020"  # marks perturbations that were never measured alone
WHISKERS = {
    None: "No whiskers: this model has no interval to show.",
    OWN: "Whiskers: the model's own 90 % interval, from the posterior draws of this one training; "
    "usually too narrow. See Overview, Intervals, for the share of measured shifts it held.",
    CALIBRATED: "Whiskers: the calibrated 90 % interval, widened by the errors the model made on "
    "validation cells. See Overview, Intervals, for the share of measured shifts it held.",
}


def gene(model: Bundle) -> None:
    st.title("Gene")
    chosen = choice(model)
    page.subject(chosen)
    card(model, chosen)
    record.header("Perturbations that move it")
    perturbations(model, chosen)
    direct_effects.on_gene(model, chosen)
    record.header("Mechanisms")
    mechanisms(model, chosen)


def choice(model: Bundle) -> str:
    """Draw the picker and return the gene: from a link, from before, or the `first`."""
    default = first(model)
    choices.initial_gene(model, default)
    aliases = annotate(model.genes)["aliases"].fillna("").str.split("|")
    labels = {
        name: f"{name} ({', '.join(others[:N_ALIASES])})" if others[0] else name
        for name, others in zip(model.genes, aliases, strict=True)
    }
    chosen = st.selectbox(
        f"One of {len(model.genes):,} genes",
        sorted(model.genes, key=str.upper),
        format_func=labels.__getitem__,
        key="gene",
        filter_mode="contains",
        persist_state="session",
        help="Type its symbol or one of the names shown beside it. The page's address takes any "
        "name or id: ?g=STAT91.",
    )
    choices.keep(choices.GENE, chosen, default)
    return chosen


def first(model: Bundle) -> str:
    """Return the gene that moves farthest under one step of a mechanism in use."""
    rows = model.loadings
    active = masks.active_mechanisms(model.masks) if model.model.has_shifts else []
    if active:
        rows = rows[rows["mechanism"].isin(active)]
    way = rows["loading"] * rows["step"].where(rows["step"] != 0, 1)
    return str(rows.loc[way.abs().idxmax(), "gene"])


def card(model: Bundle, name: str) -> None:
    """Draw its names, links to read about it, and whether it is perturbed in this model."""
    known = annotation(name, model.genes)
    record.subheader(f"*{page.plain(name)}*")
    if known.name:
        record.markdown(page.plain(known.name))
    parts = {
        "Current symbol": f"*{page.plain(known.current)}*" if known.current != name else "",
        "Other names": ", ".join(f"*{page.plain(alias)}*" for alias in known.aliases),
        "Entrez": page.plain(known.entrez),
        "Ensembl": ", ".join(map(page.plain, known.ensembl)),
        "In the data": ", ".join(
            page.plain(each)
            for each, gene in model.genes_by_id.items()
            if gene == name and each not in known.ensembl
        ),
    }
    said = [f"{what}: {words}" for what, words in parts.items() if words]
    if said:
        record.markdown(" · ".join(said))
    if known.note:
        record.caption(page.plain(known.note))
    with st.container(horizontal=True):
        for site, address in links(name, model.genes).items():
            st.link_button(site, address, icon=":material/open_in_new:")
    targets = targeting(model, name)
    if not targets:
        record.caption("Not perturbed in this model, under any of its names.")
    for target in targets:
        composed(target, f"{page.plain(target)} is perturbed in this model: open it in Compose")


def composed(name: str, label: str) -> None:
    address.link(
        "compose",
        label,
        ":material/arrow_forward:",
        {"c": composition.as_link({name: 1.0})},
    )


def perturbations(model: Bundle, name: str) -> None:
    """Draw each perturbation's predicted shift of this gene, with the measured one."""
    every = all_shifts.of(model)
    if every is None:
        return
    rows = moved_by(every.of_gene(name), name)
    if not rows["shift"].any():
        record.info("No perturbation of this model moves any gene: all predicted shifts are zero.")
        return
    rows["support"] = [support(model, {p: 1.0}) for p in rows["perturbation"]]
    kind, drawn = interval(rows)
    answer(model, name, drawn, kind)
    left, right = st.columns([2, 3], gap="large")
    with left:
        ranked(model, name, drawn, kind)
    with right:
        table(model, rows, name)


def answer(model: Bundle, name: str, rows: pd.DataFrame, kind: str | None) -> None:
    """Draw the answer: what moves it most, how many do for certain, what its own one does."""
    top, unit = rows.iloc[0], scale(model).unit
    said = f"Moved most by **{page.plain(top['perturbation'])}**: {top['shift']:+.2f} {unit}"
    if kind:
        said += f" (90 % interval {top['lower']:+.2f} to {top['upper']:+.2f})"
    if top["n_observed"]:
        error = f" ± {style.Z90 * top['observed_se']:.2f}" if pd.notna(top["observed_se"]) else ""
        said += f"; observed {top['observed']:+.2f}{error} in {top['n_observed']:,} cells"
    else:
        said += f"; not measured alone ({top['support']})"
    if kind is None:
        said += (
            f". {model.title} knows no uncertainty of its effects and this one was not calibrated, "
            "so there is no interval and no telling which shifts are certain."
        )
    else:
        up, down = int((rows["lower"] > 0).sum()), int((rows["upper"] < 0).sum())
        said += (
            f". The 90 % interval ({INTERVALS[kind].lower().removesuffix(' 90 %')}) excludes zero "
            f"for {up + down} of {len(rows)} perturbations: {up} up, {down} down."
        )
    for target in targeting(model, name):
        place = rows.index[rows["perturbation"] == target][0]
        said += (
            f" Its own perturbation, {page.plain(target)}: {rows.loc[place, 'shift']:+.2f} "
            f"{unit}, place {place + 1} of {len(rows)}."
        )
    record.markdown(said)


def ranked(model: Bundle, name: str, rows: pd.DataFrame, kind: str | None) -> None:
    top = rows.head(N_BARS)
    alone = top["support"] == "measured"
    frame = top.rename(columns={"shift": "value"}).assign(
        label=top["perturbation"].where(alone, top["perturbation"] + f" {MARK}")
    )
    figure = gene_plots.bars(frame, f"shift ({scale(model).unit})", charts.dark(), genes=False)
    gene_plots.add_observed(figure, frame, charts.dark())
    charts.chart(figure, f"moved_{name}", f"Predicted and observed shift of {name}")
    draws = " and 64 posterior draws" if model.model.has_posterior else ""
    record.caption(
        (f"The {N_BARS} largest of {len(rows)}. " if len(rows) > N_BARS else "")
        + f"{scale(model).shift} Each perturbation alone, at dosage 1. Bars: mean over "
        f"{len(model.reference.loc)} reference cells{draws}. {WHISKERS[kind]} Diamonds: observed, "
        f"{scale(model).observed} of all cells with that perturbation alone against control cells, "
        "those trained on included; their whiskers: 90 % interval from the sampling of "
        "cells."
        + (
            ""
            if alone.all()
            else f" {MARK} not trained on alone at this dosage: see support in the table."
        )
    )


MEANING = {  # in the order of the table
    "perturbation": "Alone, at dosage 1.",
    "shift": "Mean predicted shift of this gene.",
    "observed": "Measured shift, all splits pooled; empty where it was not measured alone.",
    "observed_se": "Its standard error from the sampling of cells; the variance of this gene is "
    "pooled over conditions.",
    "n_observed": "Cells with this perturbation alone, all splits.",
    "calibrated_lower": "Lower end of the calibrated 90 % interval.",
    "calibrated_upper": "Upper end of the calibrated 90 % interval.",
    "lower": "Lower end of the model's own 90 % interval: 5th percentile of posterior draws.",
    "upper": "Upper end of the model's own 90 % interval: 95th percentile of posterior draws.",
    "probability_of_sign": "Share of posterior draws with the sign of the mean.",
    "support": " ".join(f"{name}: {words}" for name, words in SUPPORT.items() if name != "control"),
}
MOVED_COLUMNS = {
    name: st.column_config.NumberColumn(name.replace("_", " "), format="%+.3f", help=meaning)
    for name, meaning in MEANING.items()
} | {
    "perturbation": st.column_config.TextColumn(help=MEANING["perturbation"]),
    "observed_se": st.column_config.NumberColumn(
        "observed se", format="%.3f", help=MEANING["observed_se"]
    ),
    "n_observed": st.column_config.NumberColumn("cells", help=MEANING["n_observed"]),
    "probability_of_sign": st.column_config.NumberColumn(
        "probability of sign", format="%.3f", help=MEANING["probability_of_sign"]
    ),
    "support": st.column_config.TextColumn(help=MEANING["support"]),
}


def table(model: Bundle, rows: pd.DataFrame, name: str) -> None:
    """Draw the table of all perturbations; empty columns are left out."""
    shown = rows[[column for column in MEANING if rows[column].notna().any()]]
    event = st.dataframe(
        shown,
        hide_index=True,
        height=gene_plots.bars_height(min(len(rows), N_BARS)),
        on_select="rerun",
        selection_mode="single-row",
        key=f"perturbations of {name} in {model.name}",
        placeholder="\u2013",
        alt=f"Shift of {name} under every perturbation",
        column_config=MOVED_COLUMNS,
    )
    clicked = getattr(event, "selection", {}).get("rows", [])
    one = rows["perturbation"].iloc[clicked[0] if clicked else 0]
    with st.container(horizontal=True):
        composed(one, f"{page.plain(one)} in Compose, all genes")
        address.link(
            "perturbation",
            f"{page.plain(one)}, its mechanisms",
            ":material/arrow_forward:",
            {"p": one},
        )
    record.caption("Click a row for another perturbation. Both intervals are here, where known.")
    charts.downloads(shown, f"perturbations_moving_{name}")


def mechanisms(model: Bundle, name: str) -> None:
    """Draw the gene's loading on each mechanism in use, and its rank among all genes."""
    if not model.model.has_shifts:
        record.info(
            f"{model.title} has no mechanisms in use: no perturbation moves its latent dimensions. "
            "What each dimension changes between cells is on Mechanism."
        )
        return
    active = masks.active_mechanisms(model.masks)
    if not active:
        record.info("No perturbation of this model uses a mechanism.")
        return
    rows = mechanisms_of(model, name)
    rows = rows[rows["mechanism"].isin(active)]
    labels = {k: f"M{k}" for k in active}
    for k, label in given_names.names(model)[0].items():
        if k in labels and label.name:
            labels[k] += f": {label.name}"
    shown = rows.assign(mechanism=rows["mechanism"].map(labels))
    left, right = st.columns([2, 3], gap="large")
    with left:
        short = shown["mechanism"].str.slice(0, NAME)
        frame = gene_plots.with_interval(short, rows["loading"], rows["se"])
        charts.chart(
            gene_plots.bars(frame, f"loading ({scale(model).unit})", charts.dark(), genes=False),
            f"loadings_{name}",
            f"Loading of {name} on each mechanism in use",
        )
        record.caption(
            f"Loading: {scale(model).loading} per prior standard deviation, when the mechanism "
            "moves by its step: the mean size of the effects of its perturbations (0: by one up "
            "and one down). Basal states are those of the reference control cells, averaged over "
            f"{len(model.reference.loc)} of them; whiskers: 90 % interval over cells. Mechanisms "
            "that at least one perturbation uses; a sign only has a meaning within its mechanism."
        )
    with right:
        event = st.dataframe(
            shown,
            hide_index=True,
            on_select="rerun",
            selection_mode="single-row",
            key=f"mechanisms of {name} in {model.name}",
            alt=f"Loading of {name} on each mechanism in use",
            column_config=LOADING_COLUMNS,
        )
        clicked = getattr(event, "selection", {}).get("rows", [])
        strongest = int(rows["loading"].abs().to_numpy().argmax())
        k = int(rows["mechanism"].iloc[clicked[0] if clicked else strongest])
        address.link(
            "mechanism",
            f"{page.plain(labels[k])}, all genes",
            ":material/arrow_forward:",
            {"m": f"M{k}"},
        )
        record.caption(
            f"Click a row for another mechanism. Ranks are among {len(model.genes):,} genes."
        )
        charts.downloads(shown, f"mechanisms_moving_{name}")


LOADING_COLUMNS = {
    "loading": st.column_config.NumberColumn(format="%+.4f"),
    "se": st.column_config.NumberColumn(
        format="%.4f", help="Standard error over reference control cells."
    ),
    "step": st.column_config.NumberColumn(
        format="%+.2f",
        help="How far the mechanism was moved, in prior standard deviations; 0: one up and one "
        "down.",
    ),
    "rank_up": st.column_config.NumberColumn(
        "rank up", help="1: the gene with the largest loading."
    ),
    "rank_down": st.column_config.NumberColumn(
        "rank down", help="1: the gene with the smallest loading."
    ),
}


page.page(gene)
