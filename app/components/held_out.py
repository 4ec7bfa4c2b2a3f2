"""The part of Overview that shows how good a model is on held-out cells."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app.components import charts, metrics_tables
from app.components.units import scale
from app.figures import model_plots
from app.session import page as state
from app.session import record, url
from samsvae_core.analysis.held_out import verdict
from samsvae_core.bundle.bundle import Bundle

KINDS = {
    metrics_tables.ALL: "All",
    "single": "Single",
    "combination seen in training": "Combination, seen",
    "combination not seen in training": "Combination, not seen",
}


def held_out(model: Bundle) -> None:
    """Draw a tab for each kind of score that the model has; only the open tab is drawn."""
    metrics = model.metrics
    shown = {}
    if "not_available" in metrics:
        record.info(state.plain(metrics["not_available"]))
    else:
        record.markdown(verdict(metrics))
        shown = {
            "Average effects": average_effects,
            "Each condition": each_condition,
            "Replicates": replicates if len(metrics_tables.replicates(metrics)) else None,
            "Whole distribution": predictive if len(metrics_tables.predictive(metrics)) else None,
            "Intervals": coverage if len(metrics_tables.coverage(metrics)) else None,
            "Interaction": interaction if len(metrics_tables.doubles(metrics)) else None,
        }
    shown["How sparse"] = frontier if model.frontier is not None else None
    views = {name: partial(view, model) for name, view in shown.items() if view is not None}
    if views:
        record.tabs("held_out", views)


DECIMALS = {
    "r": "Pearson correlation over all conditions and genes. 1 is perfect, 0 is chance.",
    "error of r": "Monte Carlo error of r: a standard error over posterior draws (for split-half, "
    "over random halvings). Predictions without draws have none.",
    "r, top 20 genes": "The same over the 20 genes with the largest measured effect of each "
    "condition.",
    "R2": "1 minus squared error over variance: below 0 the mean of the data would do better. "
    "Unlike r, it also judges the size of the effects.",
    "cosine": "Cosine between predicted and measured effects, over all conditions and genes.",
    "median r": "Median over conditions of r over genes.",
    "lower quartile": "A quarter of the conditions have an r below this.",
    "upper quartile": "A quarter of the conditions have an r above this.",
    "rank": "The place of the true condition when all are ranked by similarity to its prediction: "
    "0 is first, 1 last, 0.5 chance. Mean over conditions.",
}
FIGURE_COLUMNS = {
    name: st.column_config.NumberColumn(format="%.3f", help=meaning)
    for name, meaning in DECIMALS.items()
} | {"conditions": st.column_config.NumberColumn(help="Conditions that could be scored.")}


def average_effects(model: Bundle) -> None:
    metrics = model.metrics
    effects, kind = metrics["average_effects"], metrics_tables.ALL
    kinds = metrics_tables.kinds(metrics)
    if len(kinds) > 1:
        labels = [KINDS.get(name, name) for name in (metrics_tables.ALL, *kinds)]
        url.unknown_option("kind", labels, "kind of conditions")
        kind = (
            st.segmented_control(
                "Conditions",
                [metrics_tables.ALL, *kinds],
                default=metrics_tables.ALL,
                required=True,
                format_func=lambda name: KINDS.get(name, name),
                key="kind",
                bind="query-params",
                persist_state="session",
                help="Combination: several perturbations in one cell; seen: cells with the same "
                "combination were trained on.",
            )
            or metrics_tables.ALL
        )
    table = metrics_tables.average_effects(metrics, kind)
    st.dataframe(
        table,
        hide_index=True,
        placeholder="\u2013",
        alt="Agreement of predictions with held-out average effects",
        column_config=FIGURE_COLUMNS,
    )
    controls = effects.get("control_cells")
    record.caption(
        f"Average effect: {scale(model).average_effect}; predicted from {effects['n_draws']:,} "
        f"draws, against the {effects['reference']} cells"
        + (f" (controls: {controls})" if controls not in (None, effects["reference"]) else "")
        + f", over {len(model.genes):,} genes. *split-half*: what a second sample of the same "
        "size would reach; its square root is the ceiling, which a perfect prediction would "
        "reach. Rows with different numbers of conditions cannot be compared. \u2013: not "
        "defined."
    )
    charts.downloads(table, "held_out_metrics")
    with st.expander("What the rows and columns mean"):
        record.markdown(ROWS + ceiling(metrics) + "\n\n" + definitions())


ROWS = """
- *this model*: the prediction of the model.
- *no change*: nothing happens, so it has no r.
- *mean over perturbations*: every condition does what the average one did in training.
- *training mean*: the same condition as measured on training cells; it cannot predict new ones.
- *shrunken mean*: the training mean, each effect shrunk towards zero as far as its noise suggests.
- *additive*: the sum of what the single perturbations did in training; *shrunken additive*: the
  same of shrunken effects.
- *ridge*: a linear model of the dosages, its penalty chosen on validation cells.
"""


def ceiling(metrics: metrics_tables.Metrics) -> str:
    """Return what the split-half row means, with the ceiling where it is known."""
    limit = metrics["baselines"].get(metrics_tables.CEILING, {}).get("pearson_limit")
    return (
        "- *split-half*: not a prediction: how well a second sample of the same size would agree "
        "with the measurement (from random halves of the cells, with the Spearman-Brown correction "
        "for their smaller size)."
        + (
            f" **The ceiling**: even a perfect prediction could only reach r = {limit:.3f}, "
            "because the measurement itself is noisy."
            if limit is not None
            else ""
        )
    )


def definitions() -> str:
    return "\n".join(f"- **{name}**: {meaning}" for name, meaning in DECIMALS.items())


def each_condition(model: Bundle) -> None:
    table = metrics_tables.each_condition(model.metrics, model.conditions)
    st.dataframe(
        table,
        hide_index=True,
        height=420,
        placeholder="\u2013",
        alt="Correlation of predicted with measured effect, by condition",
        column_config={
            name: st.column_config.NumberColumn(format="%.3f") for name in table.columns[2:]
        },
    )
    record.caption(
        f"Pearson r over {len(model.genes):,} genes between predicted and measured average effect "
        "of each condition. With few test cells, or an effect near zero, r is small for any "
        "model: compare it with split-half, what a second sample of the same size would reach."
    )
    charts.downloads(table, "held_out_each_condition")


def replicates(model: Bundle) -> None:
    table = metrics_tables.replicates(model.metrics)
    if not table["why empty"].any():
        table = table.drop(columns="why empty")
    st.dataframe(
        table,
        hide_index=True,
        placeholder="\u2013",
        alt="Agreement with held-out average effects by biological replicate",
        column_config=FIGURE_COLUMNS | {"cells": st.column_config.NumberColumn(help=OF_REPLICATE)},
    )
    record.caption(
        "The same predictions against the effects of each biological replicate, measured against "
        "controls of the same replicate. No model sees replicates. Where figures differ more "
        "between replicates than between predictions, do not read much into the latter."
    )
    charts.downloads(table, "held_out_replicates")


OF_REPLICATE = "Held-out cells of the replicate, controls among them."


def predictive(model: Bundle) -> None:
    """Draw the posterior predictive checks: whether the model is as sure as it should be."""
    checks = model.metrics["predictive_checks"]
    curve, table = (
        metrics_tables.predictive(model.metrics),
        metrics_tables.by_statistic(model.metrics),
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        charts.chart(
            model_plots.calibration(curve, charts.dark()),
            "predictive_calibration",
            "Share of held-out statistics inside the model's predictions, expected against found",
        )
    with right:
        record.markdown("\n".join(map(sure, table.to_dict("records"))))
        record.caption(
            f"{checks['n_replicate_sets']} data sets like the test cells are drawn from the "
            "model. For each gene and condition: is its measured mean, variance and share of "
            "zeros within the central 50, 80, 90 and 95 % of them? On the dotted line the model "
            "is as sure as it should be; below it, too sure. Genes of one condition are "
            "correlated, so no error is given."
        )
    st.dataframe(
        table,
        hide_index=True,
        alt="Share of statistics inside the model's predictions",
        column_config={
            name: st.column_config.NumberColumn(format="percent", help=TAILS.get(name))
            for name in table.columns[1:-1]
        }
        | {"n": st.column_config.NumberColumn(help="Pairs of a gene and a condition.")},
    )
    charts.downloads(table, "predictive_checks")


TAILS = {
    "too low": "Measured in the lowest 5 % of what is predicted; 5 % would be right.",
    "too high": "Measured in the highest 5 % of what is predicted; 5 % would be right.",
}


def sure(row: metrics_tables.Metrics) -> str:
    """Return a sentence on one statistic, as a list item."""
    low, high = row["too low"], row["too high"]
    lean = ""
    if max(low, high) > 0.1:
        where = "below" if low > high else "above"
        lean = f"; {max(low, high):.0%} lie {where} 95 % of what it predicts (5 % would be right)"
    return (
        f"- **{row['statistic'].capitalize()}**: {row['inside 90 %']:.0%} of {row['n']:,} fall in "
        f"the model's central 90 %{lean}."
    )


def coverage(model: Bundle) -> None:
    table = metrics_tables.coverage(model.metrics)
    st.dataframe(
        table,
        hide_index=True,
        placeholder="\u2013",
        alt="Share of measured shifts inside 90 % intervals",
        column_config=COVERAGE_COLUMNS,
    )
    learned = model.metrics.get("calibration") or {}
    record.caption(
        "Share of shifts measured on test cells (of each gene and condition) inside the 90 % "
        "interval that Compose shows. 90 % would be right. "
        + (
            "The calibrated interval learns the model's error for each gene from "
            f"{learned['n_conditions']} conditions of validation cells; its median is "
            f"{learned['median_model_error']:.2f} ({scale(model).unit})."
            if "median_model_error" in learned
            else "There is no calibrated interval: "
            f"{state.plain(learned.get('not_available', 'it was not computed'))}."
        )
    )
    charts.downloads(table, "coverage")


COVERAGE_COLUMNS = {
    "own": st.column_config.NumberColumn(
        format="percent",
        help="The model's own interval as it is. It is about the true shift, so sampling error "
        "alone puts some measured shifts outside.",
    ),
    "own, with sampling error": st.column_config.NumberColumn(
        format="percent",
        help="Widened by the sampling error of the measurement: a fair comparison.",
    ),
    "calibrated, with sampling error": st.column_config.NumberColumn(
        format="percent", help="Widened by the model's error for each gene as well."
    ),
    "shifts": st.column_config.NumberColumn(help="Pairs of a gene and a condition."),
}


def interaction(model: Bundle) -> None:
    found, table = model.metrics["interaction"], metrics_tables.doubles(model.metrics)
    r = found["pearson"]
    record.markdown(
        f"Of {found['n_doubles']} pair{'s' if found['n_doubles'] > 1 else ''} measured together "
        "and alone, predicted and measured **non-additivity** (the pair minus its two singles, by "
        f"gene) agree with r = {'undefined' if r is None else f'{r:.2f}'} over all pairs and "
        f"{len(model.genes):,} genes."
    )
    st.dataframe(
        table,
        hide_index=True,
        placeholder="\u2013",
        alt="Agreement of predicted and measured non-additivity by pair",
        column_config={"r": st.column_config.NumberColumn(format="%.3f", help="Over genes.")},
    )
    cells = "test cells"
    if found["cells"] != "test":
        cells = "all cells, training cells among them, as no pair is held out with its singles"
    record.caption(
        f"Measured on {cells}. Each of the three effects has its own sampling error, so r stays "
        "below 1 for a perfect model. In models that add up shifts, non-additivity comes from the "
        "decoder's curvature alone."
    )
    charts.downloads(table, "interaction")


def frontier(model: Bundle) -> None:
    """Draw how sparse the masks can be before the fit suffers."""
    table = model.frontier
    if table is None:
        return
    left, right = st.columns([3, 2], gap="large")
    with left:
        charts.chart(
            model_plots.frontier(table, charts.dark()),
            "frontier",
            "Validation bound and agreement of effects by the number of active mask entries",
        )
    with right:
        record.markdown(
            f"**{len(table)} levels of evidence** asked of a mask entry were tried, each in a "
            "model annealed from the same dense start. The one kept (diamond) is the sparsest "
            "whose validation bound is within one standard error of the best."
        )
        record.caption(
            "Top: validation bound minus that of the best level, in nats (units of log "
            "likelihood) per cell; bars: one standard error of the difference over the same "
            "validation cells."
            + (
                " Below: Pearson r of predicted and measured average effects of validation cells."
                if table["effect_r"].notna().any()
                else ""
            )
        )
    st.dataframe(
        table,
        hide_index=True,
        placeholder="\u2013",
        alt="Levels of evidence with their sparsity and fit",
        column_config=FRONTIER_COLUMNS,
    )
    charts.downloads(table, "frontier")


FRONTIER_COLUMNS = {
    "mask_evidence": st.column_config.NumberColumn(
        "evidence asked", help="Nats per training cell that an active entry must bring."
    ),
    "active": st.column_config.NumberColumn("active entries"),
    "mechanisms": st.column_config.NumberColumn(help="In use by at least one perturbation."),
    "validation_bound": st.column_config.NumberColumn("validation bound", format="%.3f"),
    "difference": st.column_config.NumberColumn("from best", format="%.3f"),
    "difference_se": st.column_config.NumberColumn(
        "se", format="%.3f", help="Standard error of the difference, over validation cells."
    ),
    "effect_r": st.column_config.NumberColumn(
        "r of effects", format="%.3f", help="Pearson r of average effects on validation cells."
    ),
    "chosen": st.column_config.CheckboxColumn("kept"),
}
