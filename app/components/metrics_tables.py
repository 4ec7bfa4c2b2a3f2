"""Tables of held-out scores from a bundle's metrics; an undefined score is None."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pandas as pd

Metrics = dict[str, Any]

MODEL = "this model"
CEILING = "split-half"
ALL = "all"
FIGURES = {"pearson": "r", "pearson_top20": "r, top 20 genes", "r2": "R2", "cosine": "cosine"}
BAR = re.compile(r"(?<!\\)\|")  # separates the cells of a table in Markdown
STATISTICS = {"mean": "mean", "variance": "variance", "zeros": "share of zeros"}


def rows(metrics: Metrics) -> dict[str, Metrics]:
    """Return the scores of the model and then of the baselines, by name."""
    return {MODEL: metrics["average_effects"], **metrics["baselines"]}


def kinds(metrics: Metrics) -> list[str]:
    """Return the kinds of condition among those scored."""
    return list(metrics["average_effects"].get("kinds") or {})


def average_effects(metrics: Metrics, kind: str = ALL) -> pd.DataFrame:
    """Return a row per prediction, over all conditions or those of one kind."""
    table = []
    for name, row in rows(metrics).items():
        if kind != ALL:
            part = (row.get("kinds") or {}).get(kind) or {}
            found = {title: part.get(key) for key, title in FIGURES.items()}
            table.append({"prediction": name, **found, "conditions": part.get("n", 0)})
            continue
        low, high = row.get("quartiles") or (None, None)
        error = (row.get("mc_error") or {}).get("pearson")
        table.append(
            {
                "prediction": name,
                "r": row["pearson"],
                "error of r": error,
                **{title: row[key] for key, title in FIGURES.items() if key != "pearson"},
                "median r": row.get("median"),
                "lower quartile": low,
                "upper quartile": high,
                "rank": row.get("rank"),
                "conditions": row["n_conditions"],
            }
        )
    return pd.DataFrame(table)


def each_condition(metrics: Metrics, conditions: pd.DataFrame) -> pd.DataFrame:
    """Return Pearson r over genes, a row per condition and a column per prediction.

    The number of test cells is a column, too.
    """
    own = metrics["average_effects"]["per_perturbation"]
    table = pd.DataFrame({"condition": list(own)})
    table["test cells"] = conditions["test"].reindex(table["condition"]).to_numpy()
    for name, row in rows(metrics).items():
        found = row["per_perturbation"]
        values = [found.get(condition) for condition in own]
        if any(value is not None for value in values):
            table[name] = values
    return table.sort_values(MODEL, ascending=False) if MODEL in table else table


def replicates(metrics: Metrics) -> pd.DataFrame:
    """Return a row per replicate and prediction; empty if the data name no replicates."""
    return pd.DataFrame(
        [
            {
                "replicate": label,
                "prediction": name,
                **{title: part.get(key) for key, title in FIGURES.items()},
                "cells": part["n_cells"],
                "conditions": part["n_conditions"],
                "why empty": part.get("not_available", ""),
            }
            for name, row in rows(metrics).items()
            for label, part in (row.get("replicates") or {}).items()
        ]
    )


def predictive(metrics: Metrics) -> pd.DataFrame:
    """Return the nominal and observed shares within the central part of the predictions.

    There is a row per statistic and level.
    """
    checks = metrics.get("predictive_checks") or {}
    return pd.DataFrame(
        [
            {
                "statistic": title,
                "nominal": level,
                "observed": inside,
                "too low": checks[key]["low"],
                "too high": checks[key]["high"],
                "n": checks[key]["n"],
            }
            for key, title in STATISTICS.items()
            if checks.get(key)
            for level, inside in zip(checks["levels"], checks[key]["inside"], strict=True)
        ]
    )


def by_statistic(metrics: Metrics) -> pd.DataFrame:
    """Return `predictive` with one row per statistic, for display."""
    table = predictive(metrics)
    levels = "inside " + (100 * table["nominal"]).map("{:.0f} %".format)
    wide = table.assign(level=levels).pivot_table(
        index="statistic", columns="level", values="observed", sort=False
    )
    rest = table.groupby("statistic", sort=False)[["too low", "too high", "n"]].first()
    return wide.join(rest).reset_index()


def coverage(metrics: Metrics) -> pd.DataFrame:
    """Return the share of measured shifts inside 90 % intervals, a row per kind of condition."""
    found = metrics.get("coverage") or {}
    return pd.DataFrame(
        [
            {
                "conditions of": kind,
                "own": found[kind]["own"],
                "own, with sampling error": found[kind]["own_with_sampling"],
                "calibrated, with sampling error": found[kind]["calibrated_with_sampling"],
                "shifts": found[kind]["n"],
                "conditions": found[kind]["n_conditions"],
            }
            for kind in ("single", "combination")
            if found.get(kind)
        ]
    )


def doubles(metrics: Metrics) -> pd.DataFrame:
    """Return r of predicted and measured non-additivity, a row per measured pair."""
    found = metrics.get("interaction") or {"doubles": {}}
    return pd.DataFrame(
        [
            {"pair": name, "r": row["pearson"], "seen in training": row["seen_in_training"]}
            for name, row in found["doubles"].items()
        ]
    )


def blocks(markdown: str) -> list[tuple[str, pd.DataFrame | None]]:
    """Split Markdown into its tables and the text between them, in order.

    Each part is its Markdown, and for a table also the table, whose cells stay Markdown.
    """
    found: list[tuple[str, pd.DataFrame | None]] = []
    for is_table, lines in groupby(markdown.split("\n"), key=lambda line: line.startswith("|")):
        rows = list(lines)
        block = "\n".join(rows)
        if is_table:
            head, _, *cells = [
                [cell.strip() for cell in BAR.split(row.strip()[1:-1])] for row in rows
            ]
            found.append((block, pd.DataFrame(cells, columns=head)))
        elif block.strip():
            found.append((block, None))
    return found
