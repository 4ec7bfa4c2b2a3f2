"""Mask entries on the page Masks: their table, near misses, and the card of a clicked one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts, compare, contexts, mechanisms
from app.session import composition, page, record, url
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import similarity
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation import level_evidence

MEANING = {
    "probability": "Posterior probability that the perturbation uses the mechanism. Above 0.5: "
    "active.",
    "effect": "Posterior mean of mask times embedding: how far the perturbation moves the "
    "mechanism, in standard deviations of the basal state. The sign is a direction along the "
    "mechanism, not more or less expression.",
    "evidence": "Nats per held-out cell (validation and test cells with this perturbation). For an "
    "active entry: what predictions lose when it is switched off. For an inactive one: what they "
    "would gain if it were switched on. Empty: not tried, as no perturbation uses the mechanism or "
    "no held-out cell has the perturbation.",
}
NATS = (
    "A nat is a unit of log likelihood: one nat more per cell makes each cell 2.7 times as likely "
    "to the model."
)
BY_CHANCE = 0.023  # share of a normal distribution above two standard deviations


def entries(model: Bundle, wide: pd.DataFrame, level: str | None = None) -> None:
    """Draw a table with a row per entry of the map, as at a level, strongest first."""
    table, by = contexts.masks_there(model, level), "probability"
    if not model.model.has_masks:
        table, by = table.drop(columns=["probability", "active"]), "effect"
    shown = table[table["perturbation"].isin(wide.index) & table["mechanism"].isin(wide.columns)]
    shown = shown.sort_values(by, ascending=False, key=np.abs, kind="stable")
    st.dataframe(
        shown.head(compare.MOST_SENT),
        hide_index=True,
        height=420,
        placeholder="\u2013",
        alt="Effect and evidence of each perturbation and mechanism",
        column_config=mechanisms.COLUMNS,
    )
    record.caption(
        f"{cut(shown, by)}Evidence: {MEANING['evidence'][0].lower()}{MEANING['evidence'][1:]} "
        f"{NATS}" + ("" if level is None else f" {contexts.IN_TABLE}")
    )
    charts.downloads(shown, "masks")


def cut(table: pd.DataFrame, by: str) -> str:
    """Return how many rows of a table the page shows, or "" if it shows all."""
    if len(table) <= compare.MOST_SENT:
        return ""
    return (
        f"**The first {compare.MOST_SENT:,} of {len(table):,} rows, by {by}; the files have all.** "
    )


def near_misses(model: Bundle) -> None:
    """Draw the entries that are off although held-out cells speak for them."""
    table = model.masks
    off = table[~table["active"].astype(bool)]
    tried = int((off["evidence"].notna() & off["evidence_se"].notna()).sum())
    found = interpretation.near_misses(table)
    if found.empty:
        record.info(
            f"There is none: of {tried:,} inactive entries that could be tried, none has evidence "
            "above two of its standard errors."
        )
        return
    expected = BY_CHANCE * tried
    by_chance = f"about {expected:.0f}" if expected >= 1 else "less than one"
    kept = ["perturbation", "mechanism", "evidence", "evidence_se", "evidence_n", "probability"]
    shown = found[kept]
    record.markdown(
        f"**{len(found)} of {tried:,} inactive entries** would improve predictions of cells the "
        f"model has not seen if they were switched on. By chance alone {by_chance} would pass."
    )
    st.dataframe(
        shown.head(compare.MOST_SENT),
        hide_index=True,
        placeholder="\u2013",
        alt="Inactive entries that held-out cells speak for",
        column_config=mechanisms.COLUMNS,
    )
    record.caption(
        f"{cut(shown, 'evidence')}Inactive entries whose evidence exceeds two of its standard "
        "errors, most evidence first: effects that are likely real, but too small, or seen in too "
        "few training cells, for what the mask prior asks. Standard errors are over held-out "
        "cells; the size of each effect was chosen from eight on training cells."
    )
    charts.downloads(shown, "near_misses")


def card(model: Bundle, clicked: str | None, titles: dict[int, str]) -> None:
    """Draw the card of a clicked entry: its figures, and links to both pages."""
    if clicked is None:
        return
    name, _, mechanism = clicked.rpartition("|")
    rows = model.masks[model.masks["perturbation"] == name]
    rows = rows[rows["mechanism"] == int(mechanism)]
    if rows.empty:
        return  # a click on the map of the previous model
    entry = rows.iloc[0]
    title = titles.get(int(mechanism), f"M{mechanism}")
    with st.container(border=True):
        record.markdown(f"**{page.plain(name)}** and **mechanism {page.plain(title)}**")
        differing = contexts.of_entry(model, name, int(mechanism))
        record.markdown(card_text(model, entry) + differing + sentence(model, name))
        with st.container(horizontal=True):
            url.link(
                "perturbation",
                f"Open {page.plain(name)}",
                ":material/arrow_forward:",
                {"p": name},
            )
            if int(mechanism) in interpretation.active_mechanisms(model.masks):
                url.link(
                    "mechanism",
                    f"Open mechanism M{mechanism}",
                    ":material/hub:",
                    {"m": f"M{mechanism}"},
                )
            else:
                record.caption(f"No perturbation uses M{mechanism}.")
            url.link(
                "compose",
                f"Compose with {page.plain(name)}",
                ":material/add_circle:",
                {"c": composition.as_link({name: 1.0})},
            )


def card_text(model: Bundle, entry: pd.Series) -> str:
    """Return the figures of one entry in a sentence, each with its error."""
    chance = f"Probability {entry['probability']:.3f}, " if model.model.has_masks else ""
    effect = f"effect {entry['effect']:+.2f} ± {entry['effect_sd']:.2f} (posterior sd)."
    return f"{chance}{effect if chance else effect.capitalize()} {worth(entry)} "


def worth(entry: pd.Series) -> str:
    """Return a sentence on the evidence of an entry."""
    if pd.isna(entry["evidence"]):
        return (
            "Evidence: not tried, as no perturbation uses the mechanism or no held-out cell has "
            "the perturbation."
        )
    meaning = "lost if it were switched off" if entry["active"] else "gained if it were switched on"
    n = int(entry["evidence_n"])
    error = "" if pd.isna(entry["evidence_se"]) else f" ± {entry['evidence_se']:.3f} (se)"
    cells = f"{n:,} held-out cell{'s' if n > 1 else ''}"
    return (
        f"Evidence {entry['evidence']:+.3f}{error} nats per cell, over {cells}: what would be "
        f"{meaning}.{by_level(entry)}"
    )


def by_level(entry: pd.Series) -> str:
    """Return a sentence on the evidence with one level left out, "" where there are no levels."""
    lowest = entry.get("evidence_lowest_level", np.nan)
    if pd.isna(lowest):
        return ""
    without = f" Without the cells of {page.plain(entry['lowest_level'])} it is {lowest:+.3f}"
    if level_evidence.held_by_one(entry.to_frame().T).iloc[0]:
        return f"{without}: **one level alone supports this entry**. It may be no effect at all."
    return f"{without}, the lowest with one level left out."


def beside(model: Bundle, name: str) -> str:
    """Return what else one without mechanisms does: direct effects, and differences, or ""."""
    n, found = direct_counts(model).get(name, 0), contexts.active(model)
    said = f" It has {n:,} direct effect{' that stands' if n == 1 else 's that stand'} out."
    levels = found.loc[found["perturbation"] == name, "level"].unique()
    other = (
        f" At {page.plain(' and '.join(levels))} of {page.plain(model.context)} it does use some."
    )
    return (said if n else "") + (other if len(levels) else "")


def direct_counts(model: Bundle) -> Counter[str]:
    """Return how many direct effects stand out, by perturbation."""
    if model.direct is None:
        return Counter()
    return Counter(model.direct.loc[model.direct["active"], "perturbation"])


def sentence(model: Bundle, name: str) -> str:
    rows = model.masks[(model.masks["perturbation"] == name) & model.masks["active"]]
    cells = int(model.perturbations.loc[name, "train"])
    if rows.empty:
        return (
            f"{page.plain(name)} uses no mechanism: with {cells:,} training cells, no effect on "
            f"these genes brought the evidence asked for.{beside(model, name)}"
        )
    alike = similarity.similar_perturbations(model.masks, name)
    if not model.model.has_masks:
        alike = alike.sort_values("cosine", ascending=False).head(4)
        others = ", ".join(f"{page.plain(n)} ({c:.2f})" for n, c in alike["cosine"].items())
        return (
            f"{page.plain(name)} has {cells:,} training cells. Most alike by direction of effect "
            f"(cosine, 1 is the same): {others}."
        )
    alike = alike[alike["jaccard"] > 0].head(4)
    used = ", ".join(f"M{k}" for k in rows["mechanism"])
    others = ", ".join(f"{page.plain(n)} ({j:.2f})" for n, j in alike["jaccard"].items())
    return f"{page.plain(name)} ({cells:,} training cells) uses {used}." + (
        f" Most alike by shared mechanisms (Jaccard index): {others}." if others else ""
    )
