"""What perturbations do together: pick them, set dosages, read the predicted shift."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from app import figures, scores, sets, state
from app.intervals import CALIBRATED, INTERVALS, OWN, interval
from app.scale import scale
from samsvae_core import rankings
from samsvae_core.bundle import Bundle
from samsvae_core.composition import SUPPORT, Composition
from samsvae_core.enrichment import USUAL
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


def compose(model: Bundle) -> None:
    st.title("Compose")
    st.markdown(introduction(model))
    dosages, without, n_samples = choices(model)
    if not dosages:
        st.info("No perturbation is chosen. Pick one above, or start from an example:")
        examples(model)
        return
    result = state.composed(model, dosages, without, n_samples)
    state.keep_composition(dosages, without)
    left, right = st.columns(2, gap="large", vertical_alignment="bottom")
    with right:
        kind, table = interval(result.table)
    n = left.slider("Genes in the ranking", 10, 60, 24, 2, key="n_genes", persist_state="session")
    answer(model, result, table, kind)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Largest predicted shifts", divider="gray")
        ranked(model, table, kind, n)
    with right:
        st.subheader("All genes", divider="gray")
        everything(model, table, kind, n)
    st.caption(f"{scale(model).shift} {whiskers(model, result, kind)}")
    measured(model, result)
    st.subheader("Table", divider="gray")
    numbers(result)
    gene_sets(model, result)


def introduction(model: Bundle) -> str:
    if not model.model.composes:
        return (
            f"Pick a treatment. {model.title} takes every combination as a treatment of its own, "
            "so it cannot put perturbations together: what was measured together is in the list "
            "under its own name. To combine others, choose another model at the side."
        )
    if not model.model.has_shifts:
        return (
            "Pick one or more perturbations. The networks of this model read them together; there "
            "is no sum of shifts, and what it says of combinations it has not seen rests on "
            "nothing but the networks."
        )
    return (
        "Pick one or more perturbations. Their shifts add up in latent space; the decoder says "
        "what that does to each gene."
    )


def choices(model: Bundle) -> tuple[dict[str, float], list[int], int]:
    """The perturbations, their dosages, the mechanisms left out, and the number of draws."""
    names = list(model.perturbations.index)
    mechanisms = active_mechanisms(model.masks) if model.model.has_shifts else []
    most = state.MAX_PERTURBATIONS if model.model.composes else 1
    state.initial_composition(names, mechanisms, most)
    chosen = st.multiselect(
        "Perturbations" if most > 1 else "Treatment (one)",
        names,
        key="compose_names",
        max_selections=most,
        persist_state="session",
        placeholder="Type a gene, for example STAT1" if "STAT1" in names else "Type a gene",
    )
    dosages = {}
    if chosen:
        columns = st.columns(max(3, len(chosen)))
        for column, name in zip(columns, chosen, strict=False):
            with column:
                dosages[name] = state.dosage(name)
    if not model.model.has_shifts:
        return dosages, [], DRAWS["64 draws"]
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
    """Something to begin with that shows what the model can do."""
    names = example(model)
    if not names:
        st.caption("No perturbation of this model uses a mechanism, so every shift is near zero.")
        return
    if st.button(" + ".join(map(state.plain, names)), icon=":material/play_arrow:"):
        state.start_composition(names)
        st.rerun()


def example(model: Bundle) -> list[str]:
    """The two perturbations with most active mechanisms that share none.

    Without masks the two with most cells; one alone, where no more are taken.
    """
    if not model.model.has_masks:
        return list(model.perturbations["train"].nlargest(2).index)
    active = model.masks[model.masks["active"]].groupby("perturbation")["mechanism"].agg(set)
    active = active.loc[active.map(len).sort_values(ascending=False, kind="stable").index]
    if active.empty:
        return []
    first = active.index[0]
    apart = [name for name, used in active.items() if not used & active[first]]
    return [first, *(apart[:1] if model.model.composes else [])]


def answer(model: Bundle, result: Composition, table: pd.DataFrame, kind: str | None) -> None:
    """In one glance: is this carried by data, and what moves."""
    colour, icon = BADGE[result.support]
    label = SUPPORT[result.support].split(":")[0].rstrip(".")
    st.badge(label, icon=icon, color=colour)
    if result.without:
        left_out = ", ".join(f"M{k}" for k in result.without)
        st.badge(f"Without {left_out}: not a prediction of the condition", color="orange")
    clear = (table["lower"] > 0) | (table["upper"] < 0)
    top = table[clear if kind else table["shift"] != 0]["shift"]
    up, down = top[top > 0].nlargest(5), top[top < 0].nsmallest(5)
    parts = [
        f"**{direction}**: " + ", ".join(f"*{state.plain(gene)}*" for gene in genes.index)
        for direction, genes in (("up", up), ("down", down))
        if len(genes)
    ]
    st.markdown(
        f"{SUPPORT[result.support]} "
        + (f"Most {'; most '.join(parts)}. " if parts else "")
        + (
            f"Of {len(table):,} genes, {int(clear.sum()):,} have a 90 % interval "
            f"({INTERVALS[kind].lower().removesuffix(' 90 %')}) that excludes zero."
            if kind
            else f"{model.title} knows no uncertainty of its effects and this one was not "
            "calibrated, so nothing says which shifts are certain."
        )
    )
    off_panel = [
        state.plain(name)
        for name in result.dosages
        if not bool(model.perturbations.loc[name, "on_panel"]) and "+" not in name
    ]
    if off_panel:
        st.caption(
            f"Not among the measured genes, so the target's own change cannot be shown: "
            f"{', '.join(off_panel)}."
        )


def ranked(model: Bundle, table: pd.DataFrame, kind: str | None, n: int) -> None:
    top = table.loc[table["shift"].abs().nlargest(n).index].sort_values("shift", ascending=False)
    frame = top.rename(columns={"shift": "value"}).assign(label=top.index)
    state.chart(
        figures.bars(frame, f"predicted shift ({scale(model).unit})", state.dark()),
        "shifts",
        "Genes with the largest predicted shifts" + (" and their 90 % intervals" if kind else ""),
    )


def whiskers(model: Bundle, result: Composition, kind: str | None) -> str:
    """What bars and whiskers are, and what share of measured shifts the interval held."""
    bars = f"Bars: mean over {result.n_reference} reference cells"
    if model.model.has_posterior:
        bars += f" and {result.n_samples} posterior draws"
    if kind is None:
        return f"{bars}. No whiskers: this model has no interval to show."
    meaning = {
        OWN: "the model's own 90 % interval, from the posterior draws of this one training; too "
        "narrow as a rule, as it leaves out how wrong the model may be",
        CALIBRATED: "the calibrated 90 % interval, ± 1.645 times the root of the variance of the "
        "draws plus the model's squared error for that gene, learned on validation cells",
    }
    height = (
        "Right: how many half-widths of this interval a shift is away from zero; above 1 the "
        "interval excludes zero if it is symmetric."
    )
    return f"{bars}; whiskers: {meaning[kind]}. {held(model, result)} {height}"


def held(model: Bundle, result: Composition) -> str:
    """Coverage of both intervals on test cells, of the kind of condition that is composed."""
    table = scores.coverage(model.metrics)
    if table.empty:
        return "How many measured shifts it holds is not known: there were no test cells for it."
    several = sum(dose != 0 for dose in result.dosages.values()) > 1 or "+" in result.condition
    wanted = "combination" if several else "single"
    row = table.set_index("conditions of")
    if wanted not in row.index:
        wanted = str(row.index[0])
    found = row.loc[wanted]
    shares = {}
    if result.table["lower"].notna().any():
        shares["the model's own"] = found["own, with sampling error"]
    if result.table["calibrated_lower"].notna().any():
        shares["the calibrated one"] = found["calibrated, with sampling error"]
    said = " and ".join(f"{s:.0%} in {name}" for name, s in shares.items() if pd.notna(s))
    what = "combinations" if wanted == "combination" else "single perturbations"
    return (
        f"Of {int(found['shifts']):,} shifts measured on test cells ({int(found['conditions'])} "
        f"{what}), {said} (90 % would be right; the sampling error of the measurement is added "
        "to each)."
    )


def everything(model: Bundle, table: pd.DataFrame, kind: str | None, n: int) -> None:
    """All genes at once: by how clear their shift is, or by rank where nothing says so."""
    unit, height = scale(model).unit, figures.bars_height(n)
    if kind is None:
        state.chart(
            figures.ranks(table, 10, state.dark(), height, unit),
            "ranks",
            "Predicted shift of every gene, from highest to lowest",
        )
        return
    state.chart(
        figures.volcano(table, 10, state.dark(), height, unit),
        "volcano",
        "Predicted shift of every gene against its distance from zero in interval widths",
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
            figures.agreement(table, 8, state.dark(), scale(model).unit),
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
        trained = int(model.conditions.loc[result.condition, "train"])
        st.caption(
            f"Observed: {scale(model).observed} of {result.n_observed:,} cells with this condition "
            f"and {n_control:,} control cells, all splits. "
            + (
                f"{trained:,} of the {result.n_observed:,} were trained on, so this shows fit, not "
                "foresight (held-out figures: Overview). "
                if trained
                else "No cell of this condition was trained on: this is foresight. "
            )
            + "Whiskers: 90 % interval from the jackknife standard error over cells."
        )


def gene_sets(model: Bundle, result: Composition) -> None:
    """The two tests on the predicted shift, when asked for."""
    st.subheader("Gene sets of this shift", divider="gray")
    if result.support == "control":
        st.info("Nothing is perturbed, so there is no shift to test.")
        return
    offered = state.collections()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    name = left.selectbox("Collection", list(offered), key="collection", bind="query-params")
    right.page_link(
        "views/gene_sets.py", label="Add your own sets", icon=":material/arrow_forward:"
    )
    chosen, ranked = {name: offered[name]()}, rankings.of_shift(result)
    found = sets.tested(model, ranked, chosen, USUAL, f"shift {name}", asked=False)
    if found is None:
        return
    sets.problems(found)
    sets.table(model, ranked, chosen, found, "shift", result.condition)
    sets.take_away(model, ranked, chosen, found, USUAL, f"shift {name}")


MEANING = {  # in the order of the table
    "gene": "As in the data file.",
    "shift": "Mean predicted shift.",
    "lower": "Lower end of the model's own 90 % interval: 5th percentile of posterior draws.",
    "upper": "Upper end of the model's own 90 % interval: 95th percentile of posterior draws.",
    "calibrated_lower": "Lower end of the calibrated 90 % interval.",
    "calibrated_upper": "Upper end of the calibrated 90 % interval.",
    "probability_of_sign": "Share of posterior draws with the sign of the mean.",
    "sum_of_singles": "Sum of the shifts of each perturbation given alone.",
    "interaction": "The composed shift minus the sum of the single shifts, on the same draws.",
    "interaction_lower": "Lower end of the model's own 90 % interval of the interaction.",
    "interaction_upper": "Upper end of the model's own 90 % interval of the interaction.",
    "observed": "Measured shift, all splits pooled.",
    "observed_se": "Its standard error, by jackknife over cells.",
}
OF_SEVERAL = ["sum_of_singles", "interaction", "interaction_lower", "interaction_upper"]


def numbers(result: Composition) -> None:
    """What is shown is what is downloaded; columns that are empty throughout are left out."""
    shown = result.table.reset_index().sort_values("shift", key=np.abs, ascending=False)
    if sum(dose != 0 for dose in result.dosages.values()) < 2:
        shown[OF_SEVERAL] = np.nan  # nothing to interact with
    shown = shown[[name for name in MEANING if shown[name].notna().any()]]
    decimals = {
        name: st.column_config.NumberColumn(format="%.3f", help=MEANING[name])
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
    told = [name for name in ("interaction", "probability_of_sign") if name in shown]
    both = "Both intervals are here, whichever is drawn above. " if "lower" in shown else ""
    if "calibrated_lower" not in shown:
        both = ""
    st.caption(both + " ".join(f"{name}: {MEANING[name].lower()}" for name in told))
    state.downloads(shown, f"shift_{result.condition}")


state.page(compose)
