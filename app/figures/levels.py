"""A figure of one condition's measured shifts at each level of a covariate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from app.figures.style import INK, OKABE_ITO, SYMBOLS, Z90, italic, styled, text

APART = 0.7  # of the room of a gene, that its levels share


def by_level(
    rows: pd.DataFrame, predicted: pd.Series, levels: Sequence[str], axis: str, dark: bool
) -> go.Figure:
    """Return points with 90 % intervals, a colour and symbol per level, genes from the top.

    `rows` has gene, level, shift, se and n. The prediction of each gene of `predicted` is a line.
    """
    figure = go.Figure()
    place = pd.Series(np.arange(len(predicted)), index=predicted.index)
    for k, (level, name) in enumerate(zip(levels, text(list(levels)), strict=True)):
        own = rows[(rows["level"] == level) & rows["gene"].isin(predicted.index)]
        offset = APART * ((k + 0.5) / len(levels) - 0.5)
        colour = OKABE_ITO[k % len(OKABE_ITO)]
        figure.add_scatter(
            x=own["shift"],
            y=place[own["gene"]] + offset,
            mode="markers",
            name=name,
            marker={"color": colour, "size": 8, "symbol": SYMBOLS[k % len(SYMBOLS)]},
            error_x={"array": Z90 * own["se"], "color": colour, "thickness": 1.5, "width": 0},
            customdata=np.stack([italic(own["gene"]), own["n"], own["se"]], axis=-1),
            hovertemplate="%{customdata[0]}: %{x:+.3f} (se %{customdata[2]:.3f}, "
            "%{customdata[1]} cells)<extra>" + name + "</extra>",
        )
    ends = np.stack([place - APART / 2, place + APART / 2, np.full(len(place), np.nan)], 1)
    figure.add_scatter(
        x=np.repeat(predicted.to_numpy(), 3),
        y=ends.ravel(),
        mode="lines",
        name="predicted, all levels",
        line={"color": INK[dark], "width": 2},
        hovertemplate="predicted %{x:+.3f}<extra></extra>",
    )
    styled(figure, dark, 110 + 30 * max(3, len(place)))
    figure.update_yaxes(
        tickvals=place,
        ticktext=italic(predicted.index),
        autorange="reversed",
        title=None,
        zeroline=False,
    )
    figure.update_xaxes(title_text=axis, zeroline=True)
    return figure
