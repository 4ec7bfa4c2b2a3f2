"""The predicted shift of a composition in words and figures, with what was measured."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts, metrics_tables
from app.components.intervals import CALIBRATED, INTERVALS, OWN
from app.components.units import scale
from app.figures import gene_plots, style
from app.session import page, record
from app.session.markdown import plain
from samsvae_core.analysis.compose import Composition
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.metrics import pearson

DIAMONDS = "Diamonds: observed, with a 90 % interval from the sampling of cells."
AT_ONCE = 100_000  # shifts (perturbations x genes) that are composed without asking
Colour = Literal["green", "blue", "orange", "red", "gray"]
BADGE: dict[str, tuple[str, Colour, str]] = {  # words, colour and icon of each support
    "measured": ("Measured", "green", ":material/check_circle:"),
    "singles": ("Predicted from its parts", "blue", ":material/add_circle:"),
    "in combination only": ("A part never seen alone", "orange", ":material/info:"),
    "dosage": ("Dosage not measured", "orange", ":material/warning:"),
    "never": ("No data on a part", "red", ":material/error:"),
    "control": ("Nothing perturbed", "gray", ":material/remove:"),
}


def badge(support: str, label: str = "") -> None:
    """Draw a badge that says how far the data support a composition."""
    words, colour, icon = BADGE[support]
    st.badge(label or words, icon=icon, color=colour)


def in_words(model: Bundle, table: pd.DataFrame, kind: str | None) -> str:
    """Return sentences on which genes move most, and how many do so for certain."""
    clear = (table["lower"] > 0) | (table["upper"] < 0)
    top = table[clear if kind else table["shift"] != 0]["shift"]
    up, down = top[top > 0].nlargest(5), top[top < 0].nsmallest(5)
    parts = [
        f"**{direction}**: " + ", ".join(f"*{page.plain(gene)}*" for gene in genes.index)
        for direction, genes in (("up", up), ("down", down))
        if len(genes)
    ]
    return (f"Most {'; most '.join(parts)}. " if parts else "") + (
        f"Of {len(table):,} genes, {int(clear.sum()):,} have a 90 % interval "
        f"({INTERVALS[kind].lower().removesuffix(' 90 %')}) that excludes zero."
        if kind
        else f"{model.title} knows no uncertainty of its effects and this one was not "
        "calibrated, so there is no telling which shifts are certain."
    )


def nearest_in_words(result: Composition) -> str:
    """Return a sentence on how far, in latent space, the composition is from measured ones."""
    near = result.nearest
    if near is None:
        return ""
    if near.distance == 0:
        return f"It moves the latent state by {near.length:.2f} basal standard deviations (sd)."
    return (
        f"Nearest measured condition: **{plain(near.condition)}**, {near.distance:.2f} basal "
        f"standard deviations (sd) away in latent space; the composition itself moves "
        f"{near.length:.2f} sd from control."
    )


def not_all(table: pd.DataFrame) -> str:
    """Return a sentence on how many genes a figure leaves out, or ""."""
    if len(table) <= style.MOST_POINTS:
        return ""
    return (
        f" The figure shows the {style.MOST_POINTS:,} of {len(table):,} genes that move farthest; "
        "text and tables cover all."
    )


def comparable(result: Composition) -> bool:
    """Return whether a composition predicts a measured condition, from control cells."""
    return result.n_observed > 0 and not left_out(result) and result.cells is None


def left_out(result: Composition) -> str:
    """Return what is left out of a composition, or ""."""
    parts = ["mechanisms"] if result.without else []
    parts += [] if result.direct else ["direct effects"]
    return " and ".join(parts).capitalize()


def fit_in_words(result: Composition) -> str:
    """Return how well the prediction correlates with what was measured, or ""."""
    if not comparable(result):
        return ""
    both = result.table.dropna(subset=["observed"])
    r = pearson(both["shift"].to_numpy(), both["observed"].to_numpy())
    if r is None:
        return ""
    return (
        f"Predicted and observed shifts correlate with r {r:.2f} over {len(both):,} genes "
        f"({result.n_observed:,} cells)."
    )


def ranked(
    model: Bundle, result: Composition, table: pd.DataFrame, kind: str | None, n: int
) -> None:
    """Draw the largest shifts as bars, with diamonds for the observed ones."""
    top = table.loc[table["shift"].abs().nlargest(n).index].sort_values("shift", ascending=False)
    frame = top.rename(columns={"shift": "value"}).assign(label=top.index)
    figure = gene_plots.bars(frame, f"predicted shift ({scale(model).unit})", charts.dark())
    said = "Genes with the largest predicted shifts" + (" and their 90 % intervals" if kind else "")
    if comparable(result):
        gene_plots.add_observed(figure, frame, charts.dark())
        said += ", with what was observed"
    charts.chart(figure, "shifts", said)


def whiskers(model: Bundle, result: Composition, kind: str | None) -> str:
    """Return what bars and whiskers are, and the share of measured shifts in the intervals."""
    whose = f"{result.n_reference} reference cells" if result.cells is None else result.start
    bars = f"Bars: mean over {whose}"
    if model.model.has_posterior:
        bars += f" and {result.n_samples} posterior draws"
    if kind is None:
        measured = f" {DIAMONDS}" if comparable(result) else ""
        return f"{bars}. No whiskers: this model has no interval to show.{measured}"
    meaning = {
        OWN: "the model's own 90 % interval, from the posterior draws of this one training; "
        "usually too narrow, as it leaves out how wrong the model may be",
        CALIBRATED: "the calibrated 90 % interval, ± 1.645 times the root of the variance of the "
        "draws plus the model's squared error for that gene, learned on validation cells",
    }
    measured = f" {DIAMONDS}" if comparable(result) else ""
    why = uncalibrated(model, result)
    return f"{bars}; whiskers: {meaning[kind]}.{why}{measured} {held(model, result)}"


def uncalibrated(model: Bundle, result: Composition) -> str:
    """Return why a composition has no calibrated interval in a model that has them, or ""."""
    if model.calibration is None or result.table["calibrated_lower"].notna().any():
        return ""
    why = "the prediction starts from other cells"
    if left := left_out(result):
        why = f"{left.lower()} are left out"
    elif result.level is not None:
        why = "the prediction is of one level"
    return (
        f" There is no calibrated interval, because {why}: it was checked only on whole "
        "predictions from control cells, of all levels."
    )


def clearness(kind: str | None) -> str:
    """Return what the height of a gene in the figure of all genes means."""
    if kind is None:
        return "Genes by rank: this model has no interval that could say which shifts are certain."
    return (
        "Height: the distance of a shift from zero in half-widths of the interval chosen above; "
        "above 1 the interval excludes zero if it is symmetric."
    )


def held(model: Bundle, result: Composition) -> str:
    """Return the coverage of the intervals on test cells, for the kind of condition composed."""
    table = metrics_tables.coverage(model.metrics)
    if table.empty:
        return "It is not known how many measured shifts it holds: there were no test cells for it."
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
    said = " and ".join(f"{s:.0%} lie in {name}" for name, s in shares.items() if pd.notna(s))
    what = "combinations" if wanted == "combination" else "single perturbations"
    return (
        f"Of {int(found['shifts']):,} shifts measured on test cells ({int(found['conditions'])} "
        f"{what}), {said} (90 % would be right; each is widened by the sampling error of the "
        "measurement)."
    )


def everything(model: Bundle, table: pd.DataFrame, kind: str | None, n: int) -> None:
    """Draw all genes at once: a volcano of their shifts, or by rank if there is no interval."""
    unit, height = scale(model).unit, gene_plots.bars_height(n)
    if kind is None:
        charts.chart(
            gene_plots.ranks(gene_plots.largest(table), 10, charts.dark(), height, unit),
            "ranks",
            "Predicted shift of every gene, from highest to lowest",
        )
        return
    charts.chart(
        gene_plots.volcano(gene_plots.largest(table), 10, charts.dark(), height, unit),
        "volcano",
        "Predicted shift of every gene against its distance from zero in interval widths",
    )


def against_observed(model: Bundle, result: Composition) -> None:
    """Draw the predicted against the measured shift, gene by gene."""
    table = result.table.dropna(subset=["observed"])
    n_control = int(model.conditions.iloc[0][["train", "validation", "test"]].sum())
    left, right = st.columns([3, 2], gap="large")
    with left:
        charts.chart(
            gene_plots.agreement(gene_plots.largest(table), 8, charts.dark(), scale(model).unit),
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
        record.caption(
            f"Observed: {scale(model).observed} of {result.n_observed:,} cells with this condition "
            f"and {n_control:,} control cells, all splits. "
            + ("" if result.level is None else f"Only those at {page.plain(result.level)}. ")
            + within_strata(model)
            + (
                f"{trained:,} cells with it were trained on, so this shows fit, not prediction "
                "(held-out figures: Overview). "
                if trained
                else "No cell of this condition was trained on, so this is a true prediction. "
            )
            + "Whiskers: 90 % interval from the sampling of cells."
            + not_all(table)
        )


def within_strata(model: Bundle) -> str:
    """Return a sentence on the strata in which shifts are observed, "" without covariates."""
    if not model.levels:
        return ""
    named = " and ".join(map(page.plain, model.levels))
    return f"They are compared within the levels of {named}. "


MEANING = {  # in the order of the table
    "gene": "As in the data file.",
    "shift": "Mean predicted shift.",
    "through_mechanisms": "What the mechanisms do alone, log2.",
    "direct": "What direct effects add to it; the two add up to the shift.",
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
    "observed_se": "Its standard error from the sampling of cells; the variance of a gene is "
    "pooled over conditions.",
    "observed_interaction": "The measured combination minus the sum of its measured parts.",
    "observed_interaction_se": "Its standard error, from those of all levels in it.",
}
OF_SEVERAL = ["sum_of_singles", "interaction", "interaction_lower", "interaction_upper"]
OF_SEVERAL += ["observed_interaction", "observed_interaction_se"]
OF_PARTS = ["through_mechanisms", "direct"]


def numbers(model: Bundle, result: Composition, height: int = 420) -> None:
    """Draw the table of all genes with its downloads; empty columns are left out."""
    shown = result.table.reset_index().sort_values("shift", key=np.abs, ascending=False)
    if sum(dose != 0 for dose in result.dosages.values()) < 2:
        shown[OF_SEVERAL] = np.nan  # nothing to interact with
    if model.model.direct is None or not result.direct:
        shown[OF_PARTS] = np.nan  # the mechanisms are all there is
    shown = shown[[name for name in MEANING if shown[name].notna().any()]]
    decimals = {
        name: st.column_config.NumberColumn(
            name.replace("_", " "),
            format="%.3f",
            help=MEANING[name].replace("log2", scale(model).unit),
        )
        for name in shown.columns
        if name != "gene"
    }
    st.dataframe(
        shown,
        hide_index=True,
        height=height,
        column_config=decimals,
        placeholder="\u2013",
        alt="Predicted shift of every gene with interval, interaction and observation",
    )
    told = [name for name in ("interaction", "probability_of_sign") if name in shown]
    both = "Both intervals are here, whichever is drawn above. " if "lower" in shown else ""
    if "calibrated_lower" not in shown:
        both = ""
    meanings = [f"{name.replace('_', ' ').capitalize()}: {MEANING[name].lower()}" for name in told]
    record.caption(both + " ".join(meanings))
    charts.downloads(shown, f"shift_{result.condition}")
