"""What perturbations do together: pick them, set dosages, read the predicted shift."""

from __future__ import annotations

from typing import Literal

import numpy as np
import streamlit as st

from app import figures, state
from samsvae_core.bundle import Bundle
from samsvae_core.composition import SUPPORT, Composition
from samsvae_core.evaluation import pearson
from samsvae_core.interpretation import active_mechanisms

DRAWS = {"64 draws": 64, "256 draws": 256}
Colour = Literal["green", "blue", "orange", "red", "gray"]
BADGE: dict[str, tuple[Colour, str]] = {  # colour and icon of each support
    "measured": ("green", ":material/check_circle:"),
    "singles": ("blue", ":material/add_circle:"),
    "in combination only": ("orange", ":material/info:"),
    "dosage": ("orange", ":material/warning:"),
    "never": ("red", ":material/error:"),
    "control": ("gray", ":material/remove:"),
}
SCALE = (
    "Shift: log2(1 + 1e4 p) with the perturbations minus the same without; p is the mean decoded "
    "share of a gene over reference control cells. 1 means about twice the share. Shares sum to "
    "one, so what falls much lifts the rest a little."
)


def compose(model: Bundle) -> None:
    st.title("Compose")
    st.markdown(
        "Pick one or more perturbations. Their shifts add up in latent space; the decoder says "
        "what that does to each gene."
    )
    dosages, without, n_samples = choices(model)
    if not dosages:
        st.info("No perturbation is chosen. Pick one above, or start from an example:")
        examples(model)
        return
    result = state.composed(model, dosages, without, n_samples)
    state.keep_composition(dosages, without)
    answer(model, result)
    n = st.slider("Genes in the ranking", 10, 60, 24, 2, key="n_genes", persist_state="session")
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Largest predicted shifts", divider="gray")
        ranked(result, n)
    with right:
        st.subheader("All genes", divider="gray")
        state.chart(
            figures.volcano(result.table, 10, state.dark(), figures.bars_height(n)),
            "volcano",
            "Predicted shift of every gene against its distance from zero in interval widths",
        )
        st.caption(
            "Height: how many half-widths of its 90 % interval a shift is away from zero; above 1 "
            "the interval excludes zero if it is symmetric."
        )
    measured(model, result)
    st.subheader("Table", divider="gray")
    numbers(result)


def choices(model: Bundle) -> tuple[dict[str, float], list[int], int]:
    """The perturbations, their dosages, the mechanisms left out, and the number of draws."""
    names = list(model.perturbations.index)
    mechanisms = active_mechanisms(model.masks)
    state.initial_composition(names, mechanisms)
    chosen = st.multiselect(
        "Perturbations",
        names,
        key="compose_names",
        max_selections=state.MAX_PERTURBATIONS,
        persist_state="session",
        placeholder="Type a gene, for example STAT1" if "STAT1" in names else "Type a gene",
    )
    dosages = {}
    if chosen:
        columns = st.columns(max(3, len(chosen)))
        for column, name in zip(columns, chosen, strict=False):
            with column:
                dosages[name] = state.dosage(name)
    with st.expander("Mechanisms left out, posterior draws"):
        left, right = st.columns(2)
        without = left.multiselect(
            "Take mechanisms out of the sum",
            mechanisms,
            format_func=lambda k: f"M{k}",
            key="compose_off",
            persist_state="session",
            help="Shows what a mechanism contributes: without it, its part of the shift is gone.",
        )
        draws = right.segmented_control(
            "Draws",
            list(DRAWS),
            default="64 draws",
            required=True,
            key="draws",
            persist_state="session",
            help="More draws steady the ends of the intervals.",
        )
    return dosages, list(without), DRAWS[draws or "64 draws"]


def examples(model: Bundle) -> None:
    """The two perturbations with most active mechanisms that share none."""
    active = model.masks[model.masks["active"]].groupby("perturbation")["mechanism"].agg(set)
    active = active.loc[active.map(len).sort_values(ascending=False, kind="stable").index]
    if active.empty:
        st.caption("No perturbation of this model uses a mechanism, so every shift is near zero.")
        return
    first = active.index[0]
    apart = [name for name, used in active.items() if not used & active[first]]
    pair = [first, *apart[:1]]
    if st.button(" + ".join(map(state.plain, pair)), icon=":material/play_arrow:"):
        state.start_composition(pair)
        st.rerun()


def answer(model: Bundle, result: Composition) -> None:
    """In one glance: is this carried by data, and what moves."""
    colour, icon = BADGE[result.support]
    label = SUPPORT[result.support].split(":")[0].rstrip(".")
    st.badge(label, icon=icon, color=colour)
    if result.without:
        left_out = ", ".join(f"M{k}" for k in result.without)
        st.badge(f"Without {left_out}: not a prediction of the condition", color="orange")
    clear = (result.table["lower"] > 0) | (result.table["upper"] < 0)
    top = result.table[clear]["shift"]
    up, down = top[top > 0].nlargest(5), top[top < 0].nsmallest(5)
    parts = [
        f"**{direction}**: " + ", ".join(f"*{state.plain(gene)}*" for gene in genes.index)
        for direction, genes in (("up", up), ("down", down))
        if len(genes)
    ]
    st.markdown(
        f"{SUPPORT[result.support]} "
        + (f"Most {'; most '.join(parts)}. " if parts else "")
        + f"Of {len(result.table):,} genes, {int(clear.sum()):,} have a 90 % interval that "
        "excludes zero."
    )
    off_panel = [
        state.plain(name)
        for name in result.dosages
        if not bool(model.perturbations.loc[name, "on_panel"])
    ]
    if off_panel:
        st.caption(
            f"Not among the measured genes, so the target's own change cannot be shown: "
            f"{', '.join(off_panel)}."
        )


def ranked(result: Composition, n: int) -> None:
    top = result.table.loc[result.table["shift"].abs().nlargest(n).index].sort_values(
        "shift", ascending=False
    )
    frame = top.rename(columns={"shift": "value"}).assign(label=top.index)
    state.chart(
        figures.bars(frame, "predicted shift (log2)", state.dark()),
        "shifts",
        "Genes with the largest predicted shifts and their 90 % intervals",
    )
    st.caption(
        f"{SCALE} Bars: mean of {result.n_samples} posterior draws over {result.n_reference} "
        "reference cells; whiskers: 90 % interval of the draws, the model's own uncertainty, "
        "which tends to be too narrow."
    )


def measured(model: Bundle, result: Composition) -> None:
    st.subheader("Predicted and observed", divider="gray")
    if result.n_observed == 0:
        st.info(
            f"{state.plain(result.condition)} was not measured, so there is nothing to compare "
            "with. Each part alone can be compared: remove the others above."
        )
        return
    if result.without:
        st.info("Mechanisms are left out, so this is no prediction of what was observed.")
        return
    table = result.table.dropna(subset=["observed"])
    n_control = int(model.conditions.iloc[0][["train", "validation", "test"]].sum())
    left, right = st.columns([3, 2], gap="large")
    with left:
        state.chart(
            figures.agreement(table, 8, state.dark()),
            "observed",
            "Observed against predicted shift, one point per gene",
        )
    with right:
        r = pearson(table["shift"].to_numpy(), table["observed"].to_numpy())
        st.metric(
            "Pearson r over genes",
            "undefined" if r is None else f"{r:.2f}",
            help=f"Between predicted and observed shift of {len(table):,} genes.",
        )
        st.caption(
            f"Observed: pooled counts of {result.n_observed:,} cells with this condition and "
            f"{n_control:,} control cells, all splits; most of them were trained on, so this "
            "shows fit, not foresight (held-out figures: Overview). Whiskers: 90 % interval from "
            "the jackknife standard error over cells."
        )


def numbers(result: Composition) -> None:
    shown = result.table.reset_index().sort_values("shift", key=np.abs, ascending=False)
    decimals = {
        name: st.column_config.NumberColumn(format="%.3f")
        for name in shown.columns
        if name != "gene"
    }
    st.dataframe(
        shown,
        hide_index=True,
        height=420,
        column_config=decimals,
        placeholder="\u2013",
        alt="Predicted shift of every gene with interval, interaction and observation",
    )
    st.caption(
        "interaction: the composed shift minus the sum of the single shifts, on the same draws. "
        "probability_of_sign: share of draws with the sign of the mean."
    )
    state.downloads(shown, f"shift_{result.condition}")


state.page(compose)
