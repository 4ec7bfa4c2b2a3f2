"""What perturbations do together: pick them, set dosages, read the predicted shift."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app import code, figures, mechanisms, sets, shifts, state
from app.intervals import interval
from app.scale import scale
from samsvae_core import rankings
from samsvae_core.bundle import Bundle
from samsvae_core.composition import SUPPORT, Composition
from samsvae_core.enrichment import USUAL
from samsvae_core.interpretation import active_mechanisms, matrix

DRAWS = {"64 draws": 64, "256 draws": 256}


def compose(model: Bundle) -> None:
    st.title("Compose")
    st.markdown(introduction(model))
    dosages, without, n_samples = choices(model)
    if not dosages:
        st.info("No perturbation is chosen. Pick one above, or start from an example:")
        examples(model)
        return
    result = state.composed(model, dosages, without, n_samples)
    state.keep_composition(dosages, without)
    left, right = st.columns(2, gap="large", vertical_alignment="bottom")
    with right:
        kind, table = interval(result.table)
    n = left.slider("Genes in the ranking", 10, 60, 24, 2, key="n_genes", persist_state="session")
    answer(model, result, table, kind)
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("Largest predicted shifts", divider="gray")
        shifts.ranked(model, table, kind, n)
    with right:
        st.subheader("All genes", divider="gray")
        shifts.everything(model, table, kind, n)
    st.caption(f"{scale(model).shift} {shifts.whiskers(model, result, kind)}")
    measured(model, result)
    st.subheader("Table", divider="gray")
    shifts.numbers(result)
    with st.expander("As Python, as a command"):
        st.code(code.as_python(model, result), language="python")
        st.code(code.as_command(model, result), language="bash")
    comparison(model, result, n)
    gene_sets(model, result)


def introduction(model: Bundle) -> str:
    if not model.model.composes:
        return (
            f"Pick a treatment. {model.title} takes every combination as a treatment of its own, "
            "so it cannot put perturbations together: what was measured together is in the list "
            "under its own name. To combine others, choose another model at the side."
        )
    if not model.model.has_shifts:
        return (
            "Pick one or more perturbations. The networks of this model read them together; there "
            "is no sum of shifts, and what it says of combinations it has not seen rests on "
            "nothing but the networks."
        )
    return (
        "Pick one or more perturbations. Their shifts add up in latent space; the decoder says "
        "what that does to each gene."
    )


def choices(model: Bundle) -> tuple[dict[str, float], list[int], int]:
    """The perturbations, their dosages, the mechanisms left out, and the number of draws."""
    names = list(model.perturbations.index)
    offered = active_mechanisms(model.masks) if model.model.has_shifts else []
    most = state.MAX_PERTURBATIONS if model.model.composes else 1
    state.initial_composition(model, offered, most)
    chosen = st.multiselect(
        "Perturbations" if most > 1 else "Treatment (one)",
        names,
        key="compose_names",
        max_selections=most,
        persist_state="session",
        placeholder="Type a gene, for example STAT1" if "STAT1" in names else "Type a gene",
    )
    dosages = {}
    if chosen:
        columns = st.columns(max(3, len(chosen)))
        for column, name in zip(columns, chosen, strict=False):
            with column:
                dosages[name] = state.dosage(name)
    if not model.model.has_shifts:
        return dosages, [], DRAWS["64 draws"]
    with st.expander("Mechanisms: what each perturbation contributes, what is left out"):
        left, right = st.columns(2)
        without = left.multiselect(
            "Take mechanisms out of the sum",
            offered,
            format_func=lambda k: f"M{k}",
            key="compose_off",
            persist_state="session",
            help="Shows what a mechanism contributes: without it, its part of the shift is gone.",
        )
        draws = right.segmented_control(
            "Draws",
            list(DRAWS),
            default="64 draws",
            required=True,
            key="draws",
            persist_state="session",
            help="More draws steady the ends of the intervals.",
        )
        if dosages:
            contributions(model, dosages, list(without))
    return dosages, list(without), DRAWS[draws or "64 draws"]


def contributions(model: Bundle, dosages: dict[str, float], without: list[int]) -> None:
    """Which perturbation moves which mechanism how far, and what is left in the sum."""
    effect = matrix(model.masks, "effect").loc[list(dosages)]
    active = matrix(model.masks, "active").loc[list(dosages)].astype(bool)
    used = [k for k in effect.columns if active[k].any()]
    if not used:
        st.caption("None of these perturbations uses a mechanism.")
        return
    table = pd.DataFrame({name: dose * effect.loc[name, used] for name, dose in dosages.items()})
    table["sum"] = table.sum(axis=1).where([k not in without for k in used], 0.0)
    labels = mechanisms.titles(model, used)
    table.insert(0, "mechanism", [labels[k] for k in used])
    st.dataframe(
        table,
        hide_index=True,
        alt="Contribution of each perturbation to each mechanism",
        column_config={
            name: st.column_config.NumberColumn(format="%+.2f")
            for name in table.columns
            if name != "mechanism"
        },
    )
    st.caption(
        "Dosage times posterior mean effect, in standard deviations of the basal state, of the "
        "mechanisms that any of these perturbations uses; the sum is 0 where a mechanism is taken "
        "out. Perturbations move the others, too, by next to nothing."
    )
    state.downloads(table, "contributions")


def comparison(model: Bundle, result: Composition, n: int) -> None:
    """The composition above (A) against another (B) kept before, on the same draws."""
    st.subheader("Compare two compositions", divider="gray")
    used = active_mechanisms(model.masks) if model.model.has_shifts else []
    kept = state.compared(model, used, state.MAX_PERTURBATIONS if model.model.composes else 1)
    left, right = st.columns(2)
    if left.button("Keep this one to compare others with", icon=":material/push_pin:"):
        state.compare_with(model, result.dosages, list(result.without))
        st.rerun()
    if kept is None:
        st.caption("Keep this one as B, then choose another above: it becomes A.")
        return
    if right.button("Compare no more", icon=":material/close:"):
        state.compare_with(model, {}, [])
        st.rerun()
    other = state.composed(model, *kept, result.n_samples)
    named = [rankings.of_shift(one).name for one in (result, other)]
    st.markdown(f"**A**: {state.plain(named[0])}. **B**: {state.plain(named[1])}.")
    table = state.difference(model, result, other)
    if not table["difference"].any():
        st.info("A and B are the same. Choose other perturbations, dosages or mechanisms above.")
        return
    top = table.loc[table["difference"].abs().nlargest(n).index]
    frame = top.rename(columns={"difference": "value"}).assign(label=top.index)
    frame = frame.sort_values("value", ascending=False)
    drawing, numbers = st.columns(2, gap="large")
    with drawing:
        state.chart(
            figures.bars(frame, f"A minus B ({scale(model).unit})", state.dark()),
            "difference",
            "Genes with the largest difference between the two compositions",
        )
    with numbers:
        shown = table.rename(columns={"first": "A", "second": "B"}).reset_index()
        shown = shown.sort_values("difference", key=abs, ascending=False).dropna(axis=1, how="all")
        st.dataframe(
            shown,
            hide_index=True,
            height=figures.bars_height(n),
            alt="Shift of every gene in both compositions, and their difference",
            column_config={
                name: st.column_config.NumberColumn(format="%+.3f")
                for name in shown.columns
                if name != "gene"
            },
        )
        state.downloads(shown, "a_minus_b")
    st.caption(
        f"Difference of the predicted shifts, A minus B, on the same {result.n_samples} posterior "
        "draws and basal states, so that what they share cancels out; whiskers: the model's own "
        "90 % interval, too narrow as a rule. The address keeps both."
    )


def examples(model: Bundle) -> None:
    """Something to begin with that shows what the model can do."""
    names = example(model)
    if not names:
        st.caption("No perturbation of this model uses a mechanism, so every shift is near zero.")
        return
    if st.button(" + ".join(map(state.plain, names)), icon=":material/play_arrow:"):
        state.start_composition(names)
        st.rerun()


def example(model: Bundle) -> list[str]:
    """The two perturbations with most active mechanisms that share none.

    Without masks the two with most cells; one alone, where no more are taken.
    """
    if not model.model.has_masks:
        return list(model.perturbations["train"].nlargest(2).index)
    active = model.masks[model.masks["active"]].groupby("perturbation")["mechanism"].agg(set)
    active = active.loc[active.map(len).sort_values(ascending=False, kind="stable").index]
    if active.empty:
        return []
    first = active.index[0]
    apart = [name for name, used in active.items() if not used & active[first]]
    return [first, *(apart[:1] if model.model.composes else [])]


def answer(model: Bundle, result: Composition, table: pd.DataFrame, kind: str | None) -> None:
    """In one glance: is this carried by data, and what moves."""
    shifts.badge(result.support)
    if result.without:
        left_out = ", ".join(f"M{k}" for k in result.without)
        st.badge(f"Without {left_out}: not a prediction of the condition", color="orange")
    st.markdown(f"{SUPPORT[result.support]} {shifts.in_words(model, table, kind)}")
    off_panel = [
        state.plain(name)
        for name in result.dosages
        if not bool(model.perturbations.loc[name, "on_panel"]) and "+" not in name
    ]
    if off_panel:
        st.caption(
            f"Not among the measured genes, so the target's own change cannot be shown: "
            f"{', '.join(off_panel)}."
        )


def measured(model: Bundle, result: Composition) -> None:
    st.subheader("Predicted and observed", divider="gray")
    if result.n_observed == 0:
        st.info(
            f"{state.plain(result.condition)} was not measured, so there is nothing to compare "
            "with. Each part alone can be compared: remove the others above."
        )
        return
    if result.without:
        st.info("Mechanisms are left out, so this is no prediction of what was observed.")
        return
    shifts.against_observed(model, result)


def gene_sets(model: Bundle, result: Composition) -> None:
    """The two tests on the predicted shift, when asked for."""
    st.subheader("Gene sets of this shift", divider="gray")
    if result.support == "control":
        st.info("Nothing is perturbed, so there is no shift to test.")
        return
    offered = state.collections()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    name = left.selectbox("Collection", list(offered), key="collection", bind="query-params")
    right.page_link(
        "views/gene_sets.py", label="Add your own sets", icon=":material/arrow_forward:"
    )
    chosen, ranked = {name: offered[name]()}, rankings.of_shift(result)
    found = sets.tested(model, ranked, chosen, USUAL, f"shift {name}", asked=False)
    if found is None:
        return
    sets.problems(found)
    sets.table(model, ranked, chosen, found, "shift", result.condition)
    sets.take_away(model, ranked, chosen, found, USUAL, f"shift {name}")


state.page(compose)
