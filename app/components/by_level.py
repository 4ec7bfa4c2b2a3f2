"""What was measured of a perturbation in each batch, donor or other level of a covariate."""

from __future__ import annotations

from functools import partial

import streamlit as st

from app.components import charts
from app.components.units import scale
from app.figures.levels import by_level
from app.session import page, record, url
from samsvae_core.analysis.by_level import covariates_of, disagreement, shifts_by_level
from samsvae_core.analysis.compose import Composition
from samsvae_core.bundle.bundle import Bundle

N_GENES = 12  # drawn; the table has all
FDR = 0.05


def part(model: Bundle, result: Composition) -> dict[str, partial[None]]:
    """Return the part of a page, by its title; empty where nothing was measured by level."""
    known = covariates_of(model, result.condition)
    return {"By level": partial(levels, model, result, known)} if known else {}


def levels(model: Bundle, result: Composition, known: list[str]) -> None:
    """Draw the measured shift at each level of a covariate, and how far levels disagree."""
    covariate = known[0]
    if known[1:]:
        url.unknown_option("by", known, "covariate")
        covariate = st.segmented_control(
            "Covariate",
            known,
            default=known[0],
            required=True,
            format_func=page.plain,
            key="by",
            bind="query-params",
        )
    rows = shifts_by_level(model, result.condition, covariate)
    found = disagreement(rows)
    largest = result.table["shift"].abs().nlargest(N_GENES).index
    there = [name for name in model.levels[covariate] if name in set(rows["level"])]
    n = rows.groupby("level")["n"].max()
    cells = ", ".join(f"{page.plain(name)} {n[name]:,}" for name in there)
    differ = int((found["fdr"] < FDR).sum())
    record.markdown(
        f"**{differ:,} of {len(found):,} genes** have shifts that differ between levels of "
        f"{page.plain(covariate)} by more than their errors (FDR {FDR:.0%}). Cells: {cells}."
    )
    figure = by_level(
        rows,
        result.table["shift"].loc[largest],
        there,
        f"shift ({scale(model).unit})",
        charts.dark(),
    )
    charts.chart(figure, "by_level", f"Measured shifts at each level of {covariate}")
    record.caption(
        f"The {len(largest)} genes with the largest predicted shifts: what was measured against "
        "control cells of the same level, with 90 % intervals, and the prediction (line). Levels "
        "differ by Cochran's test: the squared distances from the weighted mean over their "
        "squared errors, against chi squared."
    )
    with st.expander("As a table"):
        shown = rows.join(found, on="gene")
        st.dataframe(shown, hide_index=True, alt="Measured shifts by level")
        charts.downloads(shown, "shifts_by_level")
