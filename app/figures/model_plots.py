"""Figures of a model: effects, cells, training, calibration and sparsity."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from app.figures.style import (
    DOWN,
    INK,
    MOST_COLUMNS,
    MOST_LETTERS,
    NEUTRAL,
    OKABE_ITO,
    UP,
    Z90,
    styled,
    text,
    told_apart,
)


def used_effects(entries: pd.DataFrame, titles: dict[int, str], dark: bool) -> go.Figure:
    """Return a plot of effects with 90 % intervals, grouped under the title of each mechanism.

    `entries` has a row per mask entry: perturbation, mechanism, effect, effect_sd, and place, which
    gives the perturbation its colour and symbol. Rows are drawn in the order of the table.
    """
    figure = go.Figure()
    row, rows, heads = 0, [], []
    for k, part in entries.groupby("mechanism", sort=False):
        title = titles.get(int(k), f"M{k}")
        heads.append(
            (row, title if len(title) <= MOST_LETTERS else f"{title[:MOST_LETTERS]}\u2026")
        )
        rows += [*range(row + 1, row + 1 + len(part))]
        row += len(part) + 1
    drawn = entries.assign(row=rows)
    for place, part in drawn.groupby("place"):
        marker = told_apart(int(place), dark)
        reach = Z90 * part["effect_sd"]
        figure.add_scatter(
            x=part["effect"],
            y=part["row"],
            mode="markers",
            marker={"size": 11, **marker},
            error_x={"array": reach, "color": INK[dark], "thickness": 1.2, "width": 3},
            text=[
                f"{name}, M{k}"
                for name, k in zip(text(part["perturbation"]), part["mechanism"], strict=True)
            ],
            customdata=np.stack([part["effect"] - reach, part["effect"] + reach], axis=-1),
            hovertemplate="%{text}: %{x:+.2f}<br>90 % interval %{customdata[0]:+.2f} to "
            "%{customdata[1]:+.2f}<extra></extra>",
            showlegend=False,
        )
    for at, title in heads:
        figure.add_annotation(
            x=0,
            xref="paper",
            y=at + 0.1,
            text=f"<b>{text([title])[0]}</b>",
            showarrow=False,
            xanchor="left",
        )
    styled(figure, dark, height=90 + 22 * max(row, 3))
    figure.update_yaxes(
        tickvals=rows,
        ticktext=text(entries["perturbation"]),
        range=[row - 0.3, -0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(title_text="effect (basal standard deviations)", rangemode="tozero")
    return figure


def cells_per_condition(cells: pd.Series, control: str, dark: bool) -> go.Figure:
    """Return a bar chart of cells per condition, most first, on a logarithmic axis.

    Control has its own colour. Names are written below the bars if there are few enough.
    """
    cells = cells.sort_values(ascending=False, kind="stable")
    figure = go.Figure()
    is_control = cells.index == control
    for name, rows, colour in (
        ("perturbed", ~is_control, OKABE_ITO[0]),
        (f"control ({text([control])[0]})", is_control, OKABE_ITO[1]),
    ):
        if rows.any():
            figure.add_bar(
                x=text(cells.index[rows]),
                y=cells[rows],
                name=name,
                marker_color=colour,
                hovertemplate="%{x}: %{y:,} cells<extra></extra>",
            )
    styled(figure, dark, height=340)
    figure.update_xaxes(
        type="category",
        categoryorder="array",
        categoryarray=text(cells.index),
        showticklabels=len(cells) <= MOST_COLUMNS,
        title=f"{len(cells):,} conditions",
        showgrid=False,
    )
    most = np.log10(max(cells.max(), 1)) if len(cells) else 0.0
    figure.update_yaxes(type="log", title="cells", dtick=1, range=[0, most + 0.1])
    figure.update_layout(bargap=0.15)
    return figure


def history(frame: pd.DataFrame, dark: bool, masks: bool = True) -> go.Figure:
    """Return a plot of the training and validation bounds by epoch, and active mask entries."""
    figure = go.Figure()
    for column, name, colour, dash in (
        ("validation_bound", "validation cells, predictive bound", OKABE_ITO[5], "solid"),
        ("bound", "training cells, evidence lower bound", OKABE_ITO[0], "dash"),
    ):
        figure.add_scatter(
            x=frame["epoch"],
            y=frame[column],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
        )
    settled = frame["validation_bound"].iloc[len(frame) // 10 :]
    low, high = float(settled.min()), float(frame[["bound", "validation_bound"]].max().max())
    figure.update_layout(
        yaxis={"title": "nats per cell", "range": [low - 0.5, high + 0.5]}, xaxis_title="epoch"
    )
    if masks:
        figure.add_scatter(
            x=frame["epoch"],
            y=frame["active"],
            name="active mask entries (right axis)",
            mode="lines",
            line={"color": NEUTRAL, "dash": "dot"},
            yaxis="y2",
        )
        figure.update_layout(yaxis2={"overlaying": "y", "side": "right", "title": "entries"})
    styled(figure, dark, height=420)
    if masks:
        figure.update_layout(yaxis2={"showgrid": False, "rangemode": "tozero", "tickmode": "auto"})
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
    return figure


def training_state(frame: pd.DataFrame, dark: bool) -> go.Figure:
    """Return a plot of mechanisms in use by epoch, with the gradient norm below (log axis)."""
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12)
    for row, (column, name, colour, dash) in enumerate(
        (
            ("mechanisms", "mechanisms in use", OKABE_ITO[2], "solid"),
            ("gradient_norm", "gradient norm before clipping", OKABE_ITO[3], "dash"),
        ),
        start=1,
    ):
        figure.add_scatter(
            x=frame["epoch"],
            y=frame[column],
            name=name,
            mode="lines",
            line={"color": colour, "dash": dash},
            row=row,
            col=1,
        )
    styled(figure, dark, height=420)
    figure.update_xaxes(title_text="epoch", row=2, col=1)
    figure.update_yaxes(title_text="mechanisms", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="norm", type="log", dtick="D2", row=2, col=1)
    figure.update_layout(legend={"y": -0.22, "yanchor": "top"})
    return figure


def calibration(frame: pd.DataFrame, dark: bool) -> go.Figure:
    """Return a plot of observed against nominal shares, a line per statistic.

    `frame` has the columns statistic, nominal and observed. On the diagonal a model is as sure as
    it should be; below it, too sure.
    """
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="as it should be",
        line={"color": NEUTRAL, "dash": "dot"},
        hoverinfo="skip",
    )
    for i, (statistic, rows) in enumerate(frame.groupby("statistic", sort=False)):
        figure.add_scatter(
            x=rows["nominal"],
            y=rows["observed"],
            mode="lines+markers",
            name=html.escape(str(statistic), quote=False),
            line={"color": OKABE_ITO[i], "dash": ["solid", "dash", "dashdot"][i % 3]},
            marker={"symbol": ["circle", "square", "triangle-up"][i % 3], "size": 9},
            hovertemplate="expected %{x:.0%}, found %{y:.1%}<extra>%{fullData.name}</extra>",
        )
    styled(figure, dark, height=400)
    figure.update_xaxes(title_text="share expected inside", range=[0.4, 1.01], tickformat=".0%")
    low = min(0.4, float(frame["observed"].min()) - 0.05)
    figure.update_yaxes(title_text="share found inside", range=[low, 1.01], tickformat=".0%")
    return figure


def frontier(table: pd.DataFrame, dark: bool) -> go.Figure:
    """Return a plot of fit by active mask entries: validation bound and, below, r of effects.

    The kept level is a diamond.
    """
    table = table.sort_values("active")
    fitted = table["effect_r"].notna().any()
    figure = make_subplots(
        rows=2 if fitted else 1, cols=1, shared_xaxes=True, vertical_spacing=0.08
    )
    kept = table["chosen"].astype(bool).to_numpy()
    error = {"array": table["difference_se"], "thickness": 1.2, "width": 4, "color": NEUTRAL}
    panels = [("difference", "from best<br>(nats per cell)"), ("effect_r", "r of effects")]
    panels = panels if fitted else panels[:1]
    for row, (column, title) in enumerate(panels, start=1):
        figure.add_scatter(
            x=table["active"],
            y=table[column],
            error_y=error if column == "difference" else None,
            mode="lines+markers",
            line={"color": NEUTRAL, "width": 1},
            marker={
                "symbol": np.where(kept, "diamond", "circle"),
                "color": np.where(kept, UP, DOWN),
                "size": np.where(kept, 14, 9),
                "opacity": 1,
            },
            customdata=table["mask_evidence"],
            hovertemplate="evidence %{customdata:g}: %{x} entries, %{y:.3f}<extra></extra>",
            showlegend=False,
            row=row,
            col=1,
        )
        figure.update_yaxes(title_text=title, row=row, col=1)
    for _, best in table[kept].iterrows():
        figure.add_annotation(
            x=best["active"],
            y=best["difference"],
            text="kept",
            showarrow=False,
            yshift=18,
            row=1,
            col=1,
        )
    styled(figure, dark, height=460 if fitted else 300)
    figure.update_xaxes(title_text="active mask entries", row=len(panels), col=1)
    return figure
