"""One mechanism: its genes, the perturbations that use it, its gene sets."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import figures, state
from app.scale import scale
from samsvae_core import enrichment, interpretation
from samsvae_core.bundle import Bundle

METHODS = {"gsea": "Ranked (GSEA)", "ora": "Top genes (over-representation)"}
Z90 = 1.645  # half a 90 % interval in standard errors
FDR = 0.05
N_BARS = 40  # perturbations drawn; the table beside has all
N_NAMED = 30  # perturbations in a sentence


def mechanism(model: Bundle) -> None:
    st.title("Mechanism")
    if not model.model.has_shifts:
        unused(model)
        return
    active = interpretation.active_mechanisms(model.masks)
    if not active:
        st.info(
            "No perturbation of this model uses a mechanism: none brought the evidence asked for. "
            "Train with a lower --mask-evidence, or with more cells."
        )
        return
    if not model.model.has_masks:
        st.markdown(
            f"{model.title} has no mask, so every perturbation moves every latent dimension, some "
            "hardly. For what a perturbation does as a whole, see Compose."
        )
    k = choice(active, "Mechanisms that at least one perturbation uses. Numbered by how many do.")
    users(model, k)
    st.header("Genes it moves", divider="gray")
    genes(model, k)
    st.header("Gene sets", divider="gray")
    sets(model, k)


def choice(mechanisms: list[int], meaning: str, title: str = "Mechanism") -> int:
    """The mechanism looked at; links name it as it is written here."""
    names = [f"M{k}" for k in mechanisms]
    chosen = st.selectbox(title, names, key="m", bind="query-params", help=meaning)
    return int(chosen[1:])


def unused(model: Bundle) -> None:
    """Latent dimensions that only tell cells apart: their genes, and why there is no more."""
    st.info(
        f"No perturbation of {model.title} uses a latent dimension: its networks read the "
        "perturbation itself. Below is what each dimension changes between cells, whatever their "
        "perturbation. See what a perturbation does to genes on Compose, or choose another model."
    )
    st.page_link("views/compose.py", label="Open Compose", icon=":material/arrow_forward:")
    k = choice(
        list(range(model.model.config.n_latent)),
        "Latent dimensions of a cell's own state, in no particular order.",
        "Latent dimension",
    )
    st.header("Genes it changes", divider="gray")
    genes(model, k)


def users(model: Bundle, k: int) -> None:
    used = interpretation.used_by(model, k)
    shown = used.drop(columns="active")
    if model.model.has_masks:
        named = ", ".join(state.plain(name) for name in used["perturbation"][:N_NAMED])
        more = f" and {len(used) - N_NAMED} more" if len(used) > N_NAMED else ""
        st.markdown(
            f"**Used by {len(used)}**: {named}{more}. Up is the direction in which they move "
            "it, on average."
        )
    else:
        shown = shown.drop(columns="probability")
        st.markdown(
            f"**Moved by all {len(used)} perturbations.** Up is the direction in which they move "
            "it, on average."
        )
    left, right = st.columns(2, gap="large")
    with left:
        top = used.head(N_BARS)
        frame = pd.DataFrame(
            {
                "label": top["perturbation"],
                "value": top["effect"],
                "lower": top["effect"] - Z90 * top["effect_sd"],
                "upper": top["effect"] + Z90 * top["effect_sd"],
            }
        )
        state.chart(
            figures.bars(frame, "effect (basal standard deviations)", state.dark(), genes=False),
            f"users_M{k}",
            "Effect of each perturbation on this mechanism",
        )
        st.caption(
            "Posterior mean of mask times embedding; whiskers: 90 % interval from the posterior "
            "standard deviation, the model's own, too narrow as a rule."
            + (f" The {N_BARS} largest of {len(used)}." if len(used) > N_BARS else "")
        )
    with right:
        st.dataframe(
            shown,
            hide_index=True,
            placeholder="\u2013",
            alt="Perturbations that use this mechanism",
            column_config=USER_COLUMNS,
        )
        st.caption(
            "Evidence: nats (units of log likelihood) per held-out cell that predictions lose "
            "when the entry is switched off, with its standard error over those cells."
        )
        state.downloads(shown, f"users_M{k}")


USER_COLUMNS = {
    "probability": st.column_config.NumberColumn(
        format="%.3f", help="Posterior probability that the perturbation uses the mechanism."
    ),
    "effect": st.column_config.NumberColumn(
        format="%+.3f", help="Posterior mean, in standard deviations of the basal state."
    ),
    "effect_sd": st.column_config.NumberColumn(
        "effect sd", format="%.3f", help="Posterior standard deviation of the effect."
    ),
    "evidence": st.column_config.NumberColumn(
        format="%+.3f", help="Nats per held-out cell that are lost when it is switched off."
    ),
    "evidence_se": st.column_config.NumberColumn(
        "evidence se", format="%.3f", help="Standard error over held-out cells."
    ),
    "evidence_n": st.column_config.NumberColumn(
        "held-out cells", help="Cells by which the evidence was measured."
    ),
}


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
                figures.bars(frame, f"loading ({scale(model).unit})", state.dark()),
                f"genes_{title.lower()}_M{k}",
                f"Genes with the largest loadings, {title.lower()}",
            )
    st.caption(
        f"Loading: {scale(model).loading} {step_in_words(rows['step'].iloc[0])}, basal states "
        f"held at the reference control cells and averaged over {len(model.reference.loc)} of "
        "them; whiskers: 90 % interval over cells. The decoder is not linear: another step need "
        "not do proportionally as much."
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


def step_in_words(step: float) -> str:
    """How far the mechanism was moved for its loadings."""
    if not step:
        return "per prior standard deviation, when this mechanism moves by one up and one down"
    return (
        f"per prior standard deviation, when this mechanism moves by {step:+.2f} of them, the mean "
        "size of the effects of its perturbations"
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
