"""Which mechanisms each perturbation uses: the map of masks."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, state
from samsvae_core import interpretation
from samsvae_core.bundle import Bundle

MEANING = {
    "probability": "Posterior probability that the perturbation uses the mechanism. Above 0.5: "
    "active.",
    "effect": "Probability times mean embedding, in standard deviations of the basal state. The "
    "sign is a direction along the mechanism, not more or less expression.",
}


def masks(model: Bundle) -> None:
    st.title("Masks")
    st.markdown(
        "Rows are perturbations, columns are mechanisms. A filled cell means: this perturbation "
        "moves this mechanism. Perturbations with the same columns act alike. "
        "**Click a cell** to see the perturbation and the mechanism."
    )
    table = model.masks
    value, threshold, hide, search = controls()
    wide = ordered(table, value, threshold, hide, search)
    if wide.empty:
        st.info(
            "Nothing to show: no perturbation has a mask above the threshold"
            + (f" and a name with “{state.plain(search)}”." if search else ".")
            + " Lower the threshold, clear the search, or show empty rows."
        )
    else:
        event = state.chart(
            figures.mask_map(wide, value, state.dark()),
            f"masks_{value}",
            "Heat map of masks, perturbations by mechanisms",
            clickable=True,
        )
        st.caption(
            f"{MEANING[value]} {len(wide)} of {len(model.perturbations)} perturbations, "
            f"{wide.shape[1]} of {model.model.config.n_latent} mechanisms; rows ordered by "
            "clustering."
        )
        card(model, state.clicked(event))
    left, right = st.columns([3, 2], gap="large")
    with left:
        st.subheader("Table", divider="gray")
        shown = table[table["perturbation"].isin(wide.index)]
        shown = shown[shown["mechanism"].isin(wide.columns)]
        shown = shown.sort_values("probability", ascending=False, kind="stable")
        st.dataframe(
            shown,
            hide_index=True,
            height=420,
            alt="Mask probability and effect of each perturbation and mechanism",
            column_config=COLUMNS,
        )
        state.downloads(shown, "masks")
    with right:
        st.subheader("Perturbations by effect", divider="gray")
        neighbours(model)


COLUMNS = {
    "probability": st.column_config.NumberColumn(format="%.3f", help=MEANING["probability"]),
    "effect": st.column_config.NumberColumn(format="%+.3f", help=MEANING["effect"]),
    "effect_sd": st.column_config.NumberColumn(
        "effect sd", format="%.3f", help="Posterior standard deviation of the effect."
    ),
}


def controls() -> tuple[str, float, bool, str]:
    columns = st.columns([2, 2, 2, 2], vertical_alignment="bottom")
    value = columns[0].segmented_control(
        "Colour",
        ["probability", "effect"],
        default="probability",
        required=True,
        format_func={"probability": "Probability", "effect": "Signed effect"}.__getitem__,
        key="colour",
        bind="query-params",
    )
    threshold = columns[1].slider(
        "Active above",
        0.05,
        0.95,
        0.5,
        0.05,
        key="threshold",
        bind="query-params",
        help="Mask probability from which an entry counts, here and for hiding.",
    )
    hide = columns[2].toggle("Hide empty rows and columns", key="hide", bind="query-params")
    search = columns[3].text_input("Find a perturbation", key="find", bind="query-params")
    return value or "probability", float(threshold), bool(hide), search.strip()


def ordered(
    table: pd.DataFrame, value: str, threshold: float, hide: bool, search: str
) -> pd.DataFrame:
    """The chosen part of the mask table as perturbations x mechanisms, similar rows together."""
    probability = interpretation.matrix(table, "probability")
    wide = interpretation.clustered(interpretation.matrix(table, value), probability)
    above = probability.loc[wide.index, wide.columns] > threshold
    if hide:
        wide = wide.loc[above.any(axis=1), above.any(axis=0)]
    if search:
        wide = wide[wide.index.str.contains(search, case=False, regex=False)]
    return wide


def card(model: Bundle, clicked: str | None) -> None:
    """Where a click leads: the perturbation's sentence, and the way to both cards."""
    if clicked is None:
        return
    name, _, mechanism = clicked.rpartition("|")
    rows = model.masks[model.masks["perturbation"] == name]
    entry = rows[rows["mechanism"] == int(mechanism)].iloc[0]
    with st.container(border=True):
        st.markdown(f"**{state.plain(name)}** and **mechanism M{mechanism}**")
        st.markdown(
            f"Probability {entry['probability']:.3f}, effect {entry['effect']:+.2f} "
            f"± {entry['effect_sd']:.2f} (sd). {sentence(model, name)}"
        )
        with st.container(horizontal=True):
            st.page_link(
                "views/mechanism.py",
                label=f"Open mechanism M{mechanism}",
                icon=":material/hub:",
                query_params={"m": f"M{mechanism}", "model": model.name},
            )
            st.page_link(
                "views/compose.py",
                label=f"Compose with {state.plain(name)}",
                icon=":material/add_circle:",
                query_params={"c": state.as_link({name: 1.0}), "model": model.name},
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
    frame = frame.assign(group=group).sort_values("group")
    state.chart(
        figures.umap(frame, frame["group"], state.dark(), labels=True),
        "perturbations_umap",
        "UMAP of perturbations by their effects",
    )
    st.caption("UMAP of perturbations by their effects on the mechanisms; near means alike.")


state.page(masks)
