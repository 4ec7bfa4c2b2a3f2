"""Which mechanisms each perturbation uses: the map of masks, and what each entry is worth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app import address, figures, state
from samsvae_core import interpretation
from samsvae_core.bundle import Bundle

MEANING = {
    "probability": "Posterior probability that the perturbation uses the mechanism. Above 0.5: "
    "active.",
    "effect": "Posterior mean of mask times embedding: how far the perturbation moves the "
    "mechanism, in standard deviations of the basal state. The sign is a direction along the "
    "mechanism, not more or less expression.",
    "evidence": "Nats per held-out cell (validation and test cells with this perturbation). Of an "
    "active entry: what predictions lose when it is switched off. Of an inactive one: what they "
    "would win if it were switched on. Empty: not tried, as no perturbation uses the mechanism or "
    "no held-out cell has the perturbation.",
}
NATS = (
    "A nat is a unit of log likelihood: one nat more per cell makes each cell 2.7 times as likely "
    "to the model."
)
LABELS = {"probability": "Probability", "effect": "Signed effect", "evidence": "Evidence"}
BY_CHANCE = 0.023  # of a Normal above two standard deviations
MARKED, NEAR, DOUBTFUL = "+", "\u25cb", "\u00d7"
INTRO = {
    "cpa-vae": "**CPA-VAE has no mask: every perturbation moves every latent dimension**, so there "
    "is nothing to say about which ones it uses. What can be shown is how far: rows are "
    "perturbations, columns are latent dimensions.",
    "svae-plus": "**SVAE+ takes each treatment whole** (a combination is a treatment of its own), "
    "and asks so little of a mask entry that masks are hardly sparse: read the effects and the "
    "evidence rather than which cells are filled. Rows are treatments, columns are mechanisms.",
}
SPARSE = (
    "Rows are perturbations, columns are mechanisms. A filled cell means: this perturbation moves "
    "this mechanism. Perturbations with the same columns act alike."
)


def masks(model: Bundle) -> None:
    st.title("Masks")
    if not model.model.has_shifts:
        nothing(model)
        return
    st.markdown(
        f"{INTRO.get(model.config['model'], SPARSE)} **Click a cell** to see the perturbation and "
        "the mechanism."
    )
    value, threshold, hide, search = controls(model)
    wide = ordered(model, value, threshold, hide, search)
    if wide.empty:
        st.info(
            "Nothing to show: no perturbation has a mask above the threshold"
            + (f" and a name with “{state.plain(search)}”." if search else ".")
            + " Lower the threshold, clear the search, or show empty rows."
        )
    else:
        marks = verdicts(model.masks).loc[wide.index, wide.columns]
        event = state.chart(
            figures.mask_map(wide, value, state.dark(), marks if value == "evidence" else None),
            f"masks_{value}",
            "Heat map of masks, perturbations by mechanisms",
            clickable=True,
        )
        st.caption(caption(model, value, wide))
        card(model, state.clicked(event))
    if model.model.has_masks:
        st.subheader("Table", divider="gray")
        entries(model, wide)
    left, right = st.columns([3, 2], gap="large")
    with left:
        if model.model.has_masks:
            st.subheader("Near misses", divider="gray")
            near_misses(model)
        else:
            st.subheader("Table", divider="gray")
            entries(model, wide)
    with right:
        st.subheader("Perturbations by effect", divider="gray")
        neighbours(model)


def nothing(model: Bundle) -> None:
    st.info(
        f"{model.title} has no mask and no latent shifts: its networks read the perturbation "
        "itself, so there is no map of mechanisms. See what a perturbation does to genes on "
        "Compose, or choose another model at the side."
    )
    st.page_link("views/compose.py", label="Open Compose", icon=":material/arrow_forward:")


COLUMNS = {
    "probability": st.column_config.NumberColumn(format="%.3f", help=MEANING["probability"]),
    "effect": st.column_config.NumberColumn(format="%+.3f", help=MEANING["effect"]),
    "effect_sd": st.column_config.NumberColumn(
        "effect sd", format="%.3f", help="Posterior standard deviation of the effect."
    ),
    "evidence": st.column_config.NumberColumn(format="%+.3f", help=MEANING["evidence"]),
    "evidence_se": st.column_config.NumberColumn(
        "evidence se",
        format="%.3f",
        help="Standard error of the evidence over held-out cells, in nats per cell. Empty with one "
        "cell.",
    ),
    "evidence_n": st.column_config.NumberColumn(
        "held-out cells", help="Cells by which the evidence was measured, at most 1,024."
    ),
}


def controls(model: Bundle) -> tuple[str, float, bool, str]:
    """What colours the map, from which probability on an entry counts, what is left out."""
    has_masks = model.model.has_masks
    values = [value for value in LABELS if has_masks or value != "probability"]
    columns = st.columns([3, 2, 2, 2], vertical_alignment="bottom")
    value = columns[0].segmented_control(
        "Colour",
        values,
        default=values[0],
        required=True,
        format_func=LABELS.__getitem__,
        key="colour" if has_masks else "colour_dense",
        bind="query-params",
    )
    threshold, hide = 0.5, False
    if has_masks:
        threshold = columns[1].slider(
            "Active above",
            0.05,
            0.95,
            0.5,
            0.05,
            key="threshold",
            bind="query-params",
            help="Mask probability from which an entry counts for hiding.",
        )
        hide = columns[2].toggle("Hide empty rows and columns", key="hide", bind="query-params")
    search = columns[3].text_input("Find a perturbation", key="find", bind="query-params")
    return value or values[0], float(threshold), bool(hide), search.strip()


def ordered(model: Bundle, value: str, threshold: float, hide: bool, search: str) -> pd.DataFrame:
    """The chosen part of the mask table as perturbations x mechanisms, similar rows together."""
    table = model.masks
    probability = interpretation.matrix(table, "probability")
    alike = probability if model.model.has_masks else interpretation.matrix(table, "effect")
    wide = interpretation.clustered(interpretation.matrix(table, value), alike)
    above = probability.loc[wide.index, wide.columns] > threshold
    if hide:
        wide = wide.loc[above.any(axis=1), above.any(axis=0)]
    if search:
        wide = wide[wide.index.str.contains(search, case=False, regex=False)]
    return wide


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """What held-out cells say of each entry, as a symbol: perturbations x mechanisms."""
    sure = table["evidence"] > 2 * table["evidence_se"]
    on = table["active"].astype(bool)
    symbol = np.select(
        [on & sure, ~on & sure, on & table["evidence"].notna()], [MARKED, NEAR, DOUBTFUL], ""
    )
    return interpretation.matrix(table.assign(symbol=symbol), "symbol")


def caption(model: Bundle, value: str, wide: pd.DataFrame) -> str:
    what = "mechanisms" if model.model.has_masks else "latent dimensions"
    parts = [MEANING[value]]
    if value == "evidence":
        parts += [
            NATS,
            f"{MARKED}: active, and held-out cells speak for it (evidence above two of its "
            f"standard errors). {DOUBTFUL}: active, and they do not.",
        ]
        if model.model.has_masks:
            parts.append(f"{NEAR}: inactive, yet they speak for it (near misses, below).")
        parts.append("Colours follow the square root, so that small figures are seen.")
    parts.append(
        f"{len(wide)} of {len(model.perturbations)} perturbations, {wide.shape[1]} of "
        f"{model.model.config.n_latent} {what}; rows ordered by clustering."
    )
    return " ".join(parts)


def entries(model: Bundle, wide: pd.DataFrame) -> None:
    """A row per entry of the map, the strongest first."""
    table, by = model.masks, "probability"
    if not model.model.has_masks:
        table, by = table.drop(columns=["probability", "active"]), "effect"
    shown = table[table["perturbation"].isin(wide.index) & table["mechanism"].isin(wide.columns)]
    shown = shown.sort_values(by, ascending=False, key=np.abs, kind="stable")
    st.dataframe(
        shown,
        hide_index=True,
        height=420,
        placeholder="\u2013",
        alt="Effect and evidence of each perturbation and mechanism",
        column_config=COLUMNS,
    )
    st.caption(f"Evidence: {MEANING['evidence'][0].lower()}{MEANING['evidence'][1:]} {NATS}")
    state.downloads(shown, "masks")


def near_misses(model: Bundle) -> None:
    """Entries that are off though held-out cells speak for them."""
    table = model.masks
    off = table[~table["active"].astype(bool)]
    tried = int((off["evidence"].notna() & off["evidence_se"].notna()).sum())
    found = interpretation.near_misses(table)
    if found.empty:
        st.info(
            f"There is none: of {tried:,} inactive entries that could be tried, no one's evidence "
            "exceeds two of its standard errors."
        )
        return
    expected = BY_CHANCE * tried
    by_chance = f"about {expected:.0f}" if expected >= 1 else "less than one"
    shown = found[
        ["perturbation", "mechanism", "evidence", "evidence_se", "evidence_n", "probability"]
    ]
    st.markdown(
        f"**{len(found)} of {tried:,} inactive entries** would improve predictions of cells the "
        f"model has not seen, were they switched on. By chance alone {by_chance} would pass."
    )
    st.dataframe(
        shown,
        hide_index=True,
        placeholder="\u2013",
        alt="Inactive entries that held-out cells speak for",
        column_config=COLUMNS,
    )
    st.caption(
        "Inactive entries whose evidence exceeds two of its standard errors, most evidence first: "
        "effects that are likely there, but too small, or seen in too few training cells, to earn "
        "the price the mask prior asks. Standard errors are over held-out cells; the size "
        "of the effect was chosen on training cells, from eight."
    )
    state.downloads(shown, "near_misses")


def card(model: Bundle, clicked: str | None) -> None:
    """Where a click leads: the perturbation's sentence, and the way to both cards."""
    if clicked is None:
        return
    name, _, mechanism = clicked.rpartition("|")
    rows = model.masks[model.masks["perturbation"] == name]
    entry = rows[rows["mechanism"] == int(mechanism)].iloc[0]
    with st.container(border=True):
        st.markdown(f"**{state.plain(name)}** and **mechanism M{mechanism}**")
        st.markdown(card_text(model, entry) + sentence(model, name))
        with st.container(horizontal=True):
            st.page_link(
                "views/perturbation.py",
                label=f"Open {state.plain(name)}",
                icon=":material/arrow_forward:",
                query_params={"p": name, "model": model.name},
            )
            if int(mechanism) in interpretation.active_mechanisms(model.masks):
                st.page_link(
                    "views/mechanism.py",
                    label=f"Open mechanism M{mechanism}",
                    icon=":material/hub:",
                    query_params={"m": f"M{mechanism}", "model": model.name},
                )
            else:
                st.caption(f"No perturbation uses M{mechanism}.")
            st.page_link(
                "views/compose.py",
                label=f"Compose with {state.plain(name)}",
                icon=":material/add_circle:",
                query_params={"c": address.as_link({name: 1.0}), "model": model.name},
            )


def card_text(model: Bundle, entry: pd.Series) -> str:
    """The figures of one entry, each with its error."""
    chance = f"Probability {entry['probability']:.3f}, " if model.model.has_masks else ""
    effect = f"effect {entry['effect']:+.2f} ± {entry['effect_sd']:.2f} (posterior sd)."
    return f"{chance}{effect if chance else effect.capitalize()} {worth(entry)} "


def worth(entry: pd.Series) -> str:
    """The evidence of an entry in words."""
    if pd.isna(entry["evidence"]):
        return (
            "Evidence: not tried, as no perturbation uses the mechanism or no held-out cell has "
            "the perturbation."
        )
    meaning = "lost if it were switched off" if entry["active"] else "won if it were switched on"
    n = int(entry["evidence_n"])
    error = "" if pd.isna(entry["evidence_se"]) else f" ± {entry['evidence_se']:.3f} (se)"
    cells = f"{n:,} held-out cell{'s' if n > 1 else ''}"
    return (
        f"Evidence {entry['evidence']:+.3f}{error} nats per cell, over {cells}: what would be "
        f"{meaning}."
    )


def sentence(model: Bundle, name: str) -> str:
    rows = model.masks[(model.masks["perturbation"] == name) & model.masks["active"]]
    cells = int(model.perturbations.loc[name, "train"])
    if rows.empty:
        return (
            f"{state.plain(name)} uses no mechanism: with {cells:,} training cells, no effect on "
            "these genes earned its price."
        )
    alike = interpretation.similar_perturbations(model.masks, name)
    if not model.model.has_masks:
        alike = alike.sort_values("cosine", ascending=False).head(4)
        others = ", ".join(f"{state.plain(n)} ({c:.2f})" for n, c in alike["cosine"].items())
        return (
            f"{state.plain(name)} has {cells:,} training cells. Most alike by direction of effect "
            f"(cosine, 1 is the same): {others}."
        )
    alike = alike[alike["jaccard"] > 0].head(4)
    used = ", ".join(f"M{k}" for k in rows["mechanism"])
    others = ", ".join(f"{state.plain(n)} ({j:.2f})" for n, j in alike["jaccard"].items())
    return f"{state.plain(name)} ({cells:,} training cells) uses {used}." + (
        f" Most alike by shared mechanisms (Jaccard index): {others}." if others else ""
    )


def neighbours(model: Bundle) -> None:
    counts = model.masks.groupby("perturbation")["active"].sum()
    frame = model.perturbations_umap.rename(columns={"perturbation": "name"})
    group = frame["name"].map(counts).map(lambda n: "no mechanism" if n == 0 else "uses some")
    if not model.model.has_masks:
        group = pd.Series("perturbations", index=frame.index)
    frame = frame.assign(group=group).sort_values("group")
    state.chart(
        figures.umap(frame, frame["group"], state.dark(), labels=True),
        "perturbations_umap",
        "UMAP of perturbations by their effects",
    )
    st.caption(
        "UMAP (a flat map that keeps neighbours together) of perturbations by their effects on "
        "the mechanisms; near means alike."
    )


state.page(masks)
