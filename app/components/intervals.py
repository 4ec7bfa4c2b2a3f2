"""The choice between the model's own and the calibrated interval, where a page shows one."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.session import url

CALIBRATED, OWN = "calibrated", "own"
INTERVALS = {CALIBRATED: "Calibrated 90 %", OWN: "Model's own 90 %"}
ENDS = {CALIBRATED: ("calibrated_lower", "calibrated_upper"), OWN: ("lower", "upper")}


def interval(table: pd.DataFrame) -> tuple[str | None, pd.DataFrame]:
    """Which interval is shown, and the table with it as lower and upper; None where there is none.

    The calibrated one, where the bundle has it, until a person chooses otherwise.
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
