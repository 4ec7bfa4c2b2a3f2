"""Contexts on a page: where a perturbation moves a mechanism differently at a covariate's level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from app.components import charts, compare, mechanisms
from app.components.nearest import clicked_row
from app.figures import style
from app.session import file_choices, page, record, url
from samsvae_core.analysis.differences import masks_at
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.training.context_fit import DEARER, FEWEST_CELLS

COMMON = "Common effect"
NONE = "No difference was worth its price: the effects are taken to be the same at every level."
PART = "Differences between contexts"
COLUMNS = mechanisms.COLUMNS | {
    "level": st.column_config.TextColumn(help="Where the effect differs."),
    "difference": st.column_config.NumberColumn(
        format="%+.3f",
        help="What the level adds to the common effect: posterior mean of the difference times its "
        "mask, in standard deviations of the basal state.",
    ),
    "difference_sd": st.column_config.NumberColumn(
        "difference sd", format="%.3f", help="Posterior standard deviation of the difference."
    ),
    "effect": st.column_config.NumberColumn(
        "effect there",
        format="%+.3f",
        help="The whole effect at that level: the common effect and the difference.",
    ),
    "evidence": st.column_config.NumberColumn(
        format="%+.3f",
        help="Nats per held-out cell with the perturbation at that level that predictions lose "
        "with the common effect instead.",
    ),
    "confirmed": st.column_config.CheckboxColumn(
        help="Whether the evidence is above two of its standard errors. If not, the difference may "
        "be chance."
    ),
}
ORDER = ["difference", "difference_sd", "effect", "evidence", "evidence_se", "evidence_n"]
IN_TABLE = "Evidence is that of the common effect, also where `differs` is ticked."
DEFINITION = (
    f"Per training cell at its level, a difference has to bring {DEARER:g} times the evidence of a "
    "mask entry; levels that are not listed have the common effect. Evidence: nats per held-out "
    "cell at that level that predictions lose with the common effect instead."
)
OTHER_PARTS = "Comparison, network and near misses are of the common effects, not of this level."


def level_of(model: Bundle) -> str | None:
    """Draw the choice of a level and return it; None for the common effects."""
    if model.context is None:
        url.unknown_option("context", [], "context")
        return None
    levels = model.levels[model.context]
    url.unknown_option("context", [COMMON, *levels], "context")
    chosen = st.selectbox(
        "Context",
        ["", *levels],
        format_func=lambda level: level or COMMON,
        key="context",
        bind="query-params",
        help=f"A level of {page.plain(model.context)}: the map shows effects as they are there. "
        "The common effect is that of all levels without a difference.",
    )
    return chosen or None


def choice(columns: Sequence[str]) -> str:
    """Draw the choice of the context of a new model among its covariates; "" for none."""
    if not columns:
        return ""
    key = file_choices.suggested("train_context", "", fits=["", *columns].__contains__)
    chosen = str(
        st.selectbox(
            "Effects may differ by",
            ["", *columns],
            format_func=lambda name: name or "nothing",
            key=key,
            persist_state="session",
            help="A covariate, such as the cell line, at whose levels a perturbation may move a "
            "mechanism more, less or not at all. A difference has to bring evidence; without it "
            "the effect is the same at every level.",
        )
    )
    file_choices.chosen("train_context", chosen)
    st.caption(
        f"A perturbation may move a mechanism differently at a level of {page.plain(chosen)}."
        if chosen
        else "Effects are the same at every level of the covariates."
    )
    return chosen


def masks_there(model: Bundle, level: str | None) -> pd.DataFrame:
    """Return the table of masks at a level, with a column `differs` if there is one."""
    return model.masks if level is None else masks_at(model.masks, model.differences, level)


def active(model: Bundle) -> pd.DataFrame:
    """Return the active differences, the most evidence first, and which of them are confirmed."""
    table = model.differences
    if table is None:
        return pd.DataFrame(columns=["perturbation", "level", "mechanism", *ORDER, "confirmed"])
    found = table[table["active"].astype(bool)]
    found = found.assign(confirmed=found["evidence"] > 2 * found["evidence_se"])
    return found.sort_values("evidence", ascending=False, kind="stable")


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def in_words(found: pd.DataFrame) -> str:
    """Return how many of these active differences held-out cells confirm."""
    n, open_ = len(found), int((~found["confirmed"].astype(bool)).sum())
    if not open_:
        return (
            f"Held-out cells confirm {'it' if n == 1 else 'all of them'} (evidence above two "
            "standard errors)."
        )
    which = f"{open_:,} of them {'has' if open_ == 1 else 'have'} no"
    if open_ == n:
        which = "It has no" if n == 1 else "None of them has"
    return (
        f"**{which} held-out evidence above two standard errors** (not ticked as confirmed): "
        f"{'it' if open_ == 1 else 'they'} may be chance."
    )


def everywhere(model: Bundle, titles: dict[int, str]) -> None:
    """Draw the active differences of all perturbations."""
    found, context = active(model), page.plain(model.context or "")
    if found.empty:
        record.info(NONE)
        return
    record.markdown(
        f"{counted(len(found), 'difference')} between levels of **{context}**, of "
        f"{counted(found['perturbation'].nunique(), 'perturbation')}. {in_words(found)}"
    )
    shown = named(found, titles)[["perturbation", "level", "mechanism", *ORDER, "confirmed"]]
    sent = shown.head(compare.MOST_SENT)
    row = table(sent, f"differences between contexts in {model.name}", "Differences of effects")
    name = str(sent["perturbation"].iloc[row])
    url.link("perturbation", f"Open {page.plain(name)}", ":material/arrow_forward:", {"p": name})
    cut = f"**The first {len(sent):,} of {len(shown):,}; the files have all.** "
    record.caption(
        f"{cut if len(sent) < len(shown) else ''}Click a row for another perturbation. {DEFINITION}"
    )
    charts.downloads(shown, "differences")


def of_perturbation(model: Bundle, name: str) -> None:
    """Draw the active differences of a perturbation; nothing for a model without a context."""
    if model.context is None or model.differences is None:
        return
    record.header(f"Effects by {page.plain(model.context)}")
    found = active(model)
    found = found[found["perturbation"] == name]
    if found.empty:
        record.markdown(
            f"No difference of **{page.plain(name)}** was worth its price: its effects are taken "
            f"to be the same at every level. Levels with fewer than {FEWEST_CELLS} of its training "
            "cells are not compared."
        )
        return
    record.markdown(
        f"{counted(len(found), 'effect')} of **{page.plain(name)}** "
        f"{'differs' if len(found) == 1 else 'differ'} at a level of {page.plain(model.context)}. "
        f"{in_words(found)}"
    )
    mechanism = list(found["mechanism"])
    titles = mechanisms.titles(model, mechanism)
    shown = named(found, titles)[["level", "mechanism", *ORDER, "confirmed"]]
    row = table(shown, f"differences of {name} in {model.name}", f"Effects of {name} that differ")
    k = int(mechanism[row])
    url.link(
        "mechanism",
        f"Open {page.plain(titles[k])}",
        ":material/arrow_forward:",
        {"m": f"M{k}"},
    )
    record.caption(f"Click a row for another mechanism. {DEFINITION}")
    charts.downloads(shown, f"differences_of_{name}")


def named(found: pd.DataFrame, titles: dict[int, str]) -> pd.DataFrame:
    return found.assign(mechanism=[titles.get(int(k), f"M{k}") for k in found["mechanism"]])


def table(shown: pd.DataFrame, key: str, alt: str) -> int:
    """Draw a table of differences; return the clicked row."""
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=key,
        placeholder="\u2013",
        alt=alt,
        column_config=COLUMNS,
    )
    return clicked_row(event)


def of_entry(model: Bundle, name: str, mechanism: int) -> str:
    """Return sentences on where one mask entry differs, "" where it does not."""
    found = active(model)
    found = found[(found["perturbation"] == name) & (found["mechanism"] == mechanism)]
    said = [
        f"At {page.plain(row.level)} it is {row.effect:+.2f}{worth(row)}."
        for row in found.itertuples()
    ]
    return f"This is the common effect. {' '.join(said)} " if said else ""


def worth(row: Any) -> str:
    """Return, in brackets, the size of a difference and its evidence."""
    said = f"difference {row.difference:+.2f} \u00b1 {row.difference_sd:.2f} sd"
    if pd.notna(row.evidence):
        cells = counted(int(row.evidence_n), "held-out cell")
        error = "" if pd.isna(row.evidence_se) else f" \u00b1 {row.evidence_se:.3f} se"
        said += f", evidence {row.evidence:+.3f}{error} nats per cell over {cells}"
    return f" ({said}{'' if row.confirmed else ': it may be chance'})"


def on_map(level: str | None, value: str) -> list[str]:
    """Return sentences for the caption of a map of masks at a level; none without one."""
    if level is None:
        return []
    other = {
        "probability": " Probability: that the common effect or the difference is there, and the "
        "difference does not take it away.",
        "evidence": " Evidence is that of the common effect; that of differences is below.",
    }
    return [
        f"Entries are those at {page.plain(level)}; {style.DIFFERS} marks effects that differ "
        f"there from the common one.{other.get(value, '')}"
    ]
