"""The page Perturbation: its own gene, mechanisms, direct effects, shift, and others like it."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import streamlit as st

from app.components import (
    by_level,
    charts,
    contexts,
    direct_effects,
    mask_entry,
    mechanisms,
    metrics_tables,
    own_target,
    shifts,
)
from app.components.intervals import interval
from app.components.nearest import N_NAMED, clicked_row, nearest
from app.components.units import scale
from app.session import choices, composition, page, record, results
from app.session import url as address
from samsvae_core.analysis import masks
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.gene_card import annotation, links, targets
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation import level_evidence
from samsvae_core.genesets.symbols import annotate

N_BARS = 40  # mechanisms drawn; the table beside has all
N_ALIASES = 4  # shown per perturbation in the search box
NAME = 24  # characters of a mechanism's name beside a bar
IN_USE, NEAR_MISS, OFF = "in use", "near miss", "off"


def perturbation(model: Bundle) -> None:
    st.title("Perturbation")
    left, right = st.columns(2, gap="large", vertical_alignment="bottom")
    with left:
        name = choice(model)
    page.subject(name)
    result = results.composed(model, {name: 1.0}, [])
    with right:
        kind, table = interval(result.table)
    summary(model, name, result, table, kind)
    record.header("Through mechanisms")
    mechanisms_moved(model, name)
    contexts.of_perturbation(model, name)
    record.header("Direct effects")
    direct_effects.of_perturbation(model, name, result)
    record.header("Predicted shift")
    predicted(model, result, table, kind)
    in_compose(name, "Gene sets of this shift, in Compose")
    record.header("Look closer")
    record.tabs(
        "perturbation_tab",
        {
            "Predicted and observed": partial(observed, model, name, result),
            **by_level.part(model, result),
            "Table of all genes": partial(shifts.numbers, model, result),
            "Perturbations like it": partial(nearest, model, name),
        },
    )


def choice(model: Bundle) -> str:
    """Draw the picker and return the perturbation: from a link, from before, or the `first`."""
    names = [str(name) for name in model.perturbations.index]
    default = first(model)
    choices.initial_perturbation(names, default)
    aliases = annotate(names)["aliases"].fillna("").str.split("|")
    labels = {
        name: f"{name} ({', '.join(others[:N_ALIASES])})" if others[0] else name
        for name, others in zip(names, aliases, strict=True)
    }
    what = "perturbations" if model.model.composes else "treatments"
    chosen = st.selectbox(
        f"One of {len(names):,} {what}",
        sorted(names, key=str.upper),
        format_func=labels.__getitem__,
        key="perturbation",
        filter_mode="contains",
        persist_state="session",
        help="Type its name or another name of its gene. The page's address takes any name: "
        "?p=STAT91.",
    )
    choices.keep(choices.PERTURBATION, chosen, default)
    return chosen


def first(model: Bundle) -> str:
    """Return the perturbation with the strongest effect; without latent shifts, the most cells."""
    if model.model.has_shifts:
        return str(masks.strengths(model.masks).index[0])
    return str(model.perturbations["train"].idxmax())


ALONE = {  # what each support means for one perturbation
    "measured": "Measured alone, in training",
    "singles": "In training alone, at other dosages",
    "in combination only": "In training in combinations only",
    "dosage": "In training at other dosages only",
    "never": "No training cells: no prediction",
}


def summary(
    model: Bundle, name: str, result: Composition, table: pd.DataFrame, kind: str | None
) -> None:
    """Draw the summary of the page in a paragraph, with links to other pages."""
    known = annotation(name)
    record.subheader(page.plain(name))
    if known.name:
        record.markdown(page.plain(known.name))
    shifts.badge(result.support, ALONE[result.support])
    own = targets(model, name)
    own_target.lines(model, name, own, table, kind)
    said = [
        mechanisms_in_words(model, name),
        shifts.in_words(model, table, kind),
        cells_in_words(model, name),
    ]
    record.markdown(" ".join(said))
    with st.container(horizontal=True):
        in_compose(name, "Open in Compose: dosage, partners, gene sets")
        for gene in own:
            address.link(
                "gene",
                f"Gene {page.plain(gene)}: what else moves it",
                ":material/arrow_forward:",
                {"g": gene},
            )
    if known.current and not own:  # the page of a measured gene has these links
        with st.container(horizontal=True):
            for site, url in links(name).items():
                st.link_button(site, url, icon=":material/open_in_new:")


def in_compose(name: str, label: str) -> None:
    address.link(
        "compose",
        label,
        ":material/arrow_forward:",
        {"c": composition.as_link({name: 1.0})},
    )


def mechanisms_in_words(model: Bundle, name: str) -> str:
    """Return which mechanisms it uses, how strongly, and its rank among all perturbations."""
    bold = f"**{page.plain(name)}**"
    if not model.model.has_shifts:
        return f"The networks of {model.title} read {bold} itself: there are no mechanisms."
    entries = model.masks[model.masks["perturbation"] == name]
    used = entries[entries["active"].astype(bool)].sort_values("effect", key=abs, ascending=False)
    in_use = len(masks.active_mechanisms(model.masks))
    top = used.head(N_NAMED)
    called = mechanisms.titles(model, list(top["mechanism"]))
    listed = ", ".join(
        f"**{page.plain(called[row.mechanism])}** (effect {row.effect:+.2f} ± {row.effect_sd:.2f})"
        for row in top.itertuples()
    )
    if used.empty:
        cells = int(model.perturbations.loc[name, "train"])
        said = f"{bold} uses no mechanism: with {cells:,} training cells, no effect on these genes "
        return f"{said}brought the evidence asked for.{mask_entry.beside(model, name)}"
    elif not model.model.has_masks:
        said = f"{model.title} has no mask, so {bold} moves all {len(used)} latent dimensions, "
        said += f"most {listed}."
    else:
        more = ", the strongest" if len(used) > len(top) else ""
        said = f"{bold} uses {len(used)} of the {in_use} mechanisms in use{more}: {listed}."
    strengths = masks.strengths(model.masks)
    place = strengths.index.get_loc(name) + 1
    length, sd = strengths.loc[name]
    return (
        f"{said} The length of its whole effect is {length:.2f} ± {sd:.2f} standard deviations of "
        f"the basal state (± posterior sd), place {place} of {len(strengths)}."
    )


SPLITS = {"train": "training", "validation": "validation", "test": "test"}


def cells_in_words(model: Bundle, name: str) -> str:
    """Return how many cells have it, by split, alone and in combinations."""
    every = model.perturbations.loc[name, list(SPLITS)].astype(int)
    if name not in model.conditions.index:
        return (
            f"It was not measured alone at dosage 1: all its {every.sum():,} cells "
            f"({by_split(every)}) have it in combinations or at other dosages."
        )
    alone = model.conditions.loc[name, list(SPLITS)].astype(int)
    said = f"It was measured alone in {alone.sum():,} cells ({by_split(alone)})"
    more = int(every.sum() - alone.sum())
    return said + (f"; {more:,} more have it with others or at other dosages." if more else ".")


def by_split(cells: pd.Series) -> str:
    return ", ".join(f"{cells[split]:,} {word}" for split, word in SPLITS.items())


def mechanisms_moved(model: Bundle, name: str) -> None:
    """Draw, for all mechanisms in use, whether this one uses it, its effect, and the evidence."""
    if not model.model.has_shifts:
        record.info(
            f"{model.title} has no mechanisms in use: no perturbation moves its latent dimensions. "
            "What it predicts for genes is below."
        )
        return
    active = masks.active_mechanisms(model.masks)
    if not active:
        record.info("No perturbation of this model uses a mechanism, so there are none to compare.")
        return
    rows = model.masks[
        (model.masks["perturbation"] == name) & model.masks["mechanism"].isin(active)
    ].drop(columns="perturbation")
    missed = masks.near_misses(rows)
    used = rows["active"].astype(bool)
    rows["state"] = np.select([used, rows.index.isin(missed.index)], [IN_USE, NEAR_MISS], OFF)
    rank = rows["state"].map({IN_USE: 0, NEAR_MISS: 1, OFF: 2})
    rows = rows.iloc[np.lexsort([-rows["effect"].abs(), rank])]
    called = mechanisms.titles(model, active)
    entries(model, name, rows, called)
    left, right = st.columns(2, gap="large")
    with left:
        effects(name, rows[rows["state"] == IN_USE], called)
    with right:
        if len(missed):
            record.markdown(near_misses_in_words(missed, called))
        record.caption(definitions(model))


def effects(name: str, used: pd.DataFrame, called: dict[int, str]) -> None:
    if used.empty:
        record.info(
            f"{page.plain(name)} uses none of these mechanisms, so there is no effect to draw. "
            "What was tried is in the table above."
        )
        return
    top = used.head(N_BARS)
    labels = [called[k][:NAME] for k in top["mechanism"]]
    charts.chart(
        mechanisms.effects(labels, top),
        f"uses_{name}",
        f"Effect of {name} on each mechanism it uses",
    )
    record.caption(
        f"{mechanisms.WHISKERS} The sign is a direction along the mechanism, not more or less "
        "expression." + (f" The {N_BARS} largest of {len(used)}." if len(used) > N_BARS else "")
    )


STATE = {
    IN_USE: "probability above 0.5",
    NEAR_MISS: "off, yet the evidence is above two of its standard errors",
    OFF: "probability of 0.5 or less",
}


def entries(model: Bundle, name: str, rows: pd.DataFrame, called: dict[int, str]) -> None:
    """Draw the table of mechanisms; columns without a meaning for this model are left out."""
    columns = ["mechanism", "state", "probability", "effect", "effect_sd"]
    columns += ["evidence", "evidence_se", "evidence_n"]
    columns += [column for column in level_evidence.COLUMNS if column in rows]
    if not model.model.has_masks:
        columns = [column for column in columns if column not in ("state", "probability")]
    shown = rows[columns].assign(mechanism=rows["mechanism"].map(called))
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"mechanisms of perturbation {name} in {model.name}",
        placeholder="\u2013",
        alt=f"Effect and evidence of {name} on each mechanism",
        column_config=mechanisms.COLUMNS,
    )
    k = int(rows["mechanism"].iloc[clicked_row(event)])
    address.link(
        "mechanism",
        f"Open {page.plain(called[k])}",
        ":material/arrow_forward:",
        {"m": f"M{k}"},
    )
    record.caption("Click a row for another mechanism.")
    charts.downloads(shown, f"mechanisms_{name}")


def definitions(model: Bundle) -> str:
    meaning = "; ".join(f"{word}: {what}" for word, what in STATE.items())
    return (
        (f"{meaning.capitalize()}. " if model.model.has_masks else "")
        + "Evidence: nats (units of log likelihood) per held-out cell that predictions lose when "
        "an entry in use is switched off, or would gain if another were switched on, with its "
        "standard error over those cells. Empty: not tried."
        + ("" if model.context is None else " Effects are the common ones; differences are below.")
    )


def near_misses_in_words(missed: pd.DataFrame, called: dict[int, str]) -> str:
    listed = "; ".join(
        f"{page.plain(called[row.mechanism])} (evidence {row.evidence:+.3f} ± "
        f"{row.evidence_se:.3f} se, {row.evidence_n:,.0f} held-out cells)"
        for row in missed.head(N_NAMED).itertuples()
    )
    more = f" and {len(missed) - N_NAMED} more" if len(missed) > N_NAMED else ""
    return (
        f"**{'Near miss' if len(missed) == 1 else 'Near misses'}**: {listed}{more}. Off, although "
        "held-out cells speak for it: likely real, but too small for what the mask prior asks. "
        "Some pass by chance: about one in forty entries without any effect."
    )


def predicted(model: Bundle, result: Composition, table: pd.DataFrame, kind: str | None) -> None:
    if not table["shift"].any():
        record.info("Nothing moves: the predicted shift of every gene is zero.")
        return
    n = st.slider(
        "Genes in the ranking", 10, 60, 24, 2, key="n_genes", bind="query-params", width=440
    )
    left, right = st.columns(2, gap="large")
    with left:
        record.subheader("Largest")
        shifts.ranked(model, result, table, kind, n)
    with right:
        record.subheader("All genes")
        shifts.everything(model, table, kind, n)
    said = f"{scale(model).shift} At dosage 1. {shifts.whiskers(model, result, kind)} "
    said += f"Right: {shifts.clearness(kind)[0].lower()}{shifts.clearness(kind)[1:]}"
    record.caption(said + shifts.not_all(table))


def observed(model: Bundle, name: str, result: Composition) -> None:
    if result.n_observed == 0:
        record.info(
            f"{page.plain(name)} was not measured alone at dosage 1, so there is nothing to "
            f"compare with."
        )
        return
    shifts.against_observed(model, result)
    if "average_effects" not in model.metrics:
        return
    scored = metrics_tables.each_condition(model.metrics, model.conditions).set_index("condition")
    if name not in scored.index:
        record.caption("It has no test cells alone, so how well it is predicted is not known.")
        return
    n, row = scored.loc[name, "test cells"], scored.loc[name].drop("test cells").dropna()
    listed = ", ".join(f"{page.plain(who)} {r:.2f}" for who, r in row.items())
    record.markdown(
        f"On its {int(n):,} test cells alone, r over {len(model.genes):,} genes between predicted "
        f"and measured average effect: {listed or 'undefined'}."
    )
    record.caption(
        "*training mean*: what was measured on its training cells, *shrunken mean*: the same "
        "without what is likely noise. *split-half*: not a prediction, "
        "but what a second sample of as many cells would reach. Overview explains the others."
    )


page.page(perturbation)
