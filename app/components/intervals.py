"""The choice between the model's own and the calibrated interval."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.session import url

CALIBRATED, OWN = "calibrated", "own"
INTERVALS = {CALIBRATED: "Calibrated 90 %", OWN: "Model's own 90 %"}
ENDS = {CALIBRATED: ("calibrated_lower", "calibrated_upper"), OWN: ("lower", "upper")}


def interval(table: pd.DataFrame) -> tuple[str | None, pd.DataFrame]:
    """Draw the choice of interval; return it and the table with its ends as lower and upper.

    The calibrated interval is the default where the bundle has one; None means no interval at all.
    """
    known = [kind for kind, (lower, _) in ENDS.items() if table[lower].notna().any()]
    if not known:
        return None, table
    kind = known[0]
    if len(known) > 1:
        url.unknown_option("interval", [INTERVALS[k] for k in known], "interval")
        kind = st.segmented_control(
            "Interval",
            known,
            default=known[0],
            required=True,
            format_func=INTERVALS.__getitem__,
            key="interval",
            bind="query-params",
            help="Model's own: spread of the posterior draws. Calibrated: that, widened by the "
            "errors the model made on validation cells. The table has both.",
        )
        kind = kind or known[0]
    lower, upper = ENDS[kind]
    return kind, table.assign(lower=table[lower], upper=table[upper])
