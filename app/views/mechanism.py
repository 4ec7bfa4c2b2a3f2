"""One mechanism: its genes, the perturbations that use it, its gene sets."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, state
from samsvae_core import enrichment, interpretation
from samsvae_core.bundle import Bundle

METHODS = {"gsea": "Ranked (GSEA)", "ora": "Top genes (over-representation)"}
Z90 = 1.645  # half a 90 % interval in standard errors
FDR = 0.05
FAR = 3.0  # standard deviations


def mechanism(model: Bundle) -> None:
    st.title("Mechanism")
    active = interpretation.active_mechanisms(model.masks)
    if not active:
        st.info(
            "No perturbation of this model uses a mechanism: none brought the evidence asked for. "
            "Train with a lower --mask-evidence, or with more cells."
        )
        return
    counts = model.masks[model.masks["active"]].groupby("mechanism").size()
    labels = {f"M{k}": f"M{k}, used by {counts[k]}" for k in active}
    chosen = st.selectbox(
        "Mechanism",
        list(labels),
        key="m",
        bind="query-params",
        format_func=labels.__getitem__,
        help="Mechanisms that at least one perturbation uses. Numbered by how many do.",
    )
    k = int(chosen[1:])
    users(model, k)
    st.header("Genes it moves", divider="gray")
    genes(model, k)
    st.header("Gene sets", divider="gray")
    sets(model, k)


def users(model: Bundle, k: int) -> None:
    used = interpretation.used_by(model, k)
    st.markdown(
        f"**Used by** {', '.join(state.plain(name) for name in used['perturbation'])}. "
        "Up is the direction in which they move it, on average."
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        frame = pd.DataFrame(
            {
                "label": used["perturbation"],
                "value": used["effect"],
                "lower": used["effect"] - Z90 * used["effect_sd"],
                "upper": used["effect"] + Z90 * used["effect_sd"],
            }
        )
        state.chart(
            figures.bars(frame, "effect (basal standard deviations)", state.dark(), genes=False),
            f"users_M{k}",
            "Effect of each perturbation on this mechanism",
        )
        st.caption(
            "Mask probability times mean embedding; whiskers: 90 % interval from the posterior "
            "standard deviation, the model's own."
        )
    with right:
        st.dataframe(
            used.drop(columns="active"),
            hide_index=True,
            alt="Perturbations that use this mechanism",
            column_config={
                name: st.column_config.NumberColumn(name.replace("_", " "), format="%.3f")
                for name in ("probability", "effect", "effect_sd")
            },
        )
        state.downloads(used, f"users_M{k}")


def genes(model: Bundle, k: int) -> None:
    rows = model.loadings[model.loadings["mechanism"] == k].drop(columns="mechanism")
    n = st.slider("Genes shown each way", 5, 40, 15, key="n_each", persist_state="session")
    up = rows[rows["loading"] > 0].nlargest(n, "loading")
    down = rows[rows["loading"] < 0].nsmallest(n, "loading")
    for column, title, part in zip(
        st.columns(2, gap="large"), ("Up", "Down"), (up, down), strict=True
    ):
        with column:
            st.subheader(title)
            frame = pd.DataFrame(
                {
                    "label": part["gene"],
                    "value": part["loading"],
                    "lower": part["loading"] - Z90 * part["se"],
                    "upper": part["loading"] + Z90 * part["se"],
                }
            )
            if part.empty:
                st.caption("No gene has a loading of this sign.")
                continue
            state.chart(
                figures.bars(frame, "loading (log2)", state.dark()),
                f"genes_{title.lower()}_M{k}",
                f"Genes with the largest loadings, {title.lower()}",
            )
    st.caption(
        "Loading: change of log2(1 + 1e4 p) when this mechanism moves by one prior standard "
        "deviation, (up minus down) / 2, basal states held at the reference control cells and "
        f"averaged over {len(model.reference.loc)} of them; whiskers: 90 % interval over cells. "
        "The decoder is not linear: a larger step need not do proportionally more"
        f"{steps_apart(model, k)}."
    )
    with st.expander(f"All {len(rows):,} genes"):
        shown = rows.sort_values("loading", ascending=False)
        st.dataframe(
            shown,
            hide_index=True,
            alt="Loading of every gene on this mechanism",
            column_config={
                name: st.column_config.NumberColumn(format="%.4f") for name in ("loading", "se")
            },
        )
        state.downloads(shown, f"loadings_M{k}")


def steps_apart(model: Bundle, k: int) -> str:
    """A warning where perturbations move a mechanism much further than the loading does."""
    size = interpretation.used_by(model, k)["effect"].abs().median()
    if size < FAR:
        return ""
    return (
        f", and the perturbations here move it by {size:.1f} standard deviations (median): for "
        "what they do to genes, see Compose"
    )


def sets(model: Bundle, k: int) -> None:
    if not model.collections:
        st.info("No collection shares enough genes with this model (see the card on Overview).")
        return
    left, right = st.columns(2)
    name = left.selectbox("Collection", model.collections, key="collection", bind="query-params")
    method = right.segmented_control(
        "Test",
        list(METHODS),
        default="gsea",
        required=True,
        format_func=METHODS.__getitem__,
        key="test",
        bind="query-params",
    )
    table = model.enrichment(name).table
    table = table[(table["mechanism"] == k) & (table["method"] == (method or "gsea"))]
    table = table.dropna(axis=1, how="all").drop(columns=["mechanism", "collection", "method"])
    if table.empty:
        st.info("This mechanism could not be tested against this collection (see the card).")
        return
    passed = int((table["fdr"] <= FDR).sum())
    st.markdown(
        f"**{passed} of {len(table)} tests pass {FDR:.0%} FDR.** Click a row to see its genes."
    )
    event = st.dataframe(
        table,
        hide_index=True,
        height=380,
        on_select="rerun",
        selection_mode="single-row",
        key=f"sets_M{k}_{name}_{method}",
        alt="Gene sets tested for this mechanism",
        column_config=SET_COLUMNS,
    )
    st.caption(
        "FDR: Benjamini-Hochberg over the sets of this mechanism and collection; fdr_all: over "
        "all mechanisms. Genes are the units of these tests and go together, so an FDR is no "
        "promise that a finding would be reproduced. Sets of 5 to 500 measured genes; size counts "
        "measured genes."
    )
    with st.container(horizontal=True):
        state.downloads(table, f"enrichment_M{k}_{name}_{method}")
        st.download_button(
            "XLSX, all mechanisms",
            lambda: state.workbook(model, name),
            f"enrichment_{name}.xlsx",
            key=f"workbook {name}",
            icon=":material/download:",
            on_click="ignore",
            type="tertiary",
        )
    if method == "gsea":
        walk(model, k, name, table, event)


SET_COLUMNS = {
    "es": st.column_config.NumberColumn("ES", format="%.3f", help="Enrichment score."),
    "nes": st.column_config.NumberColumn(
        "NES", format="%.2f", help="ES over its mean under permutation, same sign."
    ),
    "odds_ratio": st.column_config.NumberColumn("odds ratio", format="%.2f"),
    "p_value": st.column_config.NumberColumn("p", format="%.2g"),
    "fdr": st.column_config.NumberColumn("FDR", format="%.2g"),
    "fdr_all": st.column_config.NumberColumn("FDR, all mechanisms", format="%.2g"),
    "leading_edge": st.column_config.TextColumn("leading edge", width="large"),
    "term": st.column_config.TextColumn(width="large"),
}


def walk(model: Bundle, k: int, collection: str, table: pd.DataFrame, event: object) -> None:
    """The running sum of the chosen gene set, the best one until a row is clicked."""
    rows = getattr(event, "selection", {}).get("rows", [])
    row = table.iloc[rows[0] if rows else 0]
    scores = model.loadings[model.loadings["mechanism"] == k].set_index("gene")["loading"]
    steps = enrichment.running_sum(
        scores, state.collection_sets(collection, tuple(model.genes))[row["term"]]
    )
    left, right = st.columns([3, 2], gap="large")
    with left:
        state.chart(
            figures.running_sum(steps, row["term"], state.dark()),
            f"running_sum_M{k}_{row['term']}",
            "Running sum of the gene set over the ranked genes",
        )
    with right:
        genes = ", ".join(f"*{state.plain(g)}*" for g in row["leading_edge"].split(";") if g)
        st.markdown(
            f"**{state.plain(row['term'])}**: NES {row['nes']:.2f}, FDR {row['fdr']:.2g}; "
            f"{row['overlap']} of {row['size']} measured genes in the leading edge."
        )
        st.markdown(genes or "No gene in the leading edge.")


state.page(mechanism)
