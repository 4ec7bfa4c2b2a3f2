"""Parts of the page Compose: the comparison with another composition and with measurements."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import streamlit as st

from app.components import charts, shifts
from app.components.units import scale
from app.figures import gene_plots
from app.session import choices as choices_module
from app.session import composition, page, record, results
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.differences import masks_at
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.metrics import pearson

MOST_SWITCHES = 30  # mechanisms with a switch of their own; the rest share one


class Shown(NamedTuple):
    """The composition that all parts of the page below the prediction show."""

    model: Bundle
    result: Composition
    table: pd.DataFrame  # the result's table, with the ends of the interval of that kind
    kind: str | None
    n: int  # genes in a ranking


def named(result: Composition) -> str:
    """Return the condition and what is left out, in short."""
    mechanisms = composition.as_off(set(result.without)).replace(",", ", ")
    out = [f"M {mechanisms}"] if mechanisms else []
    out += [] if result.direct else ["direct effects"]
    return " without ".join([result.condition, " and ".join(out)]) if out else result.condition


def with_direct(model: Bundle, off: set[int | str]) -> bool:
    """Return whether direct effects are in; always for a model that has none to leave out."""
    return model.model.direct is None or composition.DIRECT not in off


def mechanisms_of(
    model: Bundle, masks: pd.DataFrame, dosages: dict[str, float]
) -> tuple[list[int], list[int]]:
    """Return the mechanisms that get a switch of their own, and the others.

    The first are up to `MOST_SWITCHES` that any of the perturbations uses, those moved farthest.
    """
    if not model.model.has_shifts:
        return [], []
    rows = masks[masks["perturbation"].isin(list(dosages)) & masks["active"]]
    sizes = rows.assign(size=rows["effect"].abs()).groupby("mechanism")["size"].sum()
    used = sorted(int(k) for k in sizes.nlargest(MOST_SWITCHES).index)
    return used, [k for k in range(model.model.config.n_latent) if k not in used]


def comparison(shown: Shown) -> None:
    """Draw the difference between the composition above (A) and a kept one (B).

    Both are composed on the same posterior draws.
    """
    model, result, n = shown.model, shown.result, shown.n
    kept = composition.compared(
        model, choices_module.MAX_PERTURBATIONS if model.model.composes else 1
    )
    buttons(model, kept is not None)
    if kept is None:
        record.caption(
            "Keep the composition above as B, then change it: the changed one is A, and the "
            "difference between the two is shown here."
        )
        return
    dosages, off = kept
    masks = masks_at(model.masks, model.differences, result.level)
    used, others = mechanisms_of(model, masks, dosages)
    without = [k for k in used if k in off] + (others if composition.REST in off else [])
    direct = with_direct(model, off)
    asked = without, result.n_samples, result.cells, direct, result.level
    other = results.composed(model, dosages, *asked)
    record.markdown(f"**A**: {page.plain(named(result))}. **B**: {page.plain(named(other))}.")
    table = results.difference(model, result, other)
    if not table["difference"].any():
        record.info(
            "A and B are the same. Choose other perturbations, dosages or mechanisms above."
        )
        return
    side_by_side(model, result, other, n)
    a_minus_b(model, table, n)
    record.caption(
        f"Difference of the predicted shifts, A minus B, on the same {result.n_samples} posterior "
        "draws and from the same cells, so that what they share cancels out; whiskers: the model's "
        "own 90 % interval, usually too narrow. The address keeps both."
    )


def buttons(model: Bundle, is_kept: bool) -> None:
    """Draw the buttons that keep the composition above as B, and drop B."""
    with st.container(horizontal=True):
        st.button(
            "Use this one as B",
            icon=":material/push_pin:",
            key="keep b",
            on_click=composition.compare_with,
            args=(model, composition.current_mix()),
        )
        if is_kept:
            st.button(
                "Compare no more",
                icon=":material/close:",
                key="drop b",
                on_click=composition.compare_with,
                args=(model, composition.CompositionQuery()),
            )


def a_minus_b(model: Bundle, table: pd.DataFrame, n: int) -> None:
    """Draw the `n` largest differences as a figure, and all of them as a table."""
    top = table.loc[table["difference"].abs().nlargest(n).index]
    frame = top.rename(columns={"difference": "value"}).assign(label=top.index)
    frame = frame.sort_values("value", ascending=False)
    drawing, numbers = st.columns(2, gap="large")
    with drawing:
        record.subheader("A minus B")
        charts.chart(
            gene_plots.bars(frame, f"A minus B ({scale(model).unit})", charts.dark()),
            "difference",
            "Genes with the largest difference between the two compositions",
        )
    with numbers:
        record.subheader("Numbers")
        both = table.rename(columns={"first": "A", "second": "B"}).reset_index()
        both = both.sort_values("difference", key=abs, ascending=False).dropna(axis=1, how="all")
        st.dataframe(
            both,
            hide_index=True,
            height=gene_plots.bars_height(n) - 60,
            alt="Shift of every gene in both compositions, and their difference",
            column_config={
                name: st.column_config.NumberColumn(format="%+.3f")
                for name in both.columns
                if name != "gene"
            },
        )
        charts.downloads(both, "a_minus_b")


def side_by_side(model: Bundle, first: Composition, second: Composition, n: int) -> None:
    """Draw the largest shifts of both compositions side by side, on one scale."""
    both = [one.table["shift"] for one in (first, second)]
    top = pd.concat(both, axis=1).abs().max(axis=1).nlargest(n).index
    order = both[0].loc[top].sort_values(ascending=False).index
    reach = 1.05 * max(float(shift.loc[order].abs().max()) for shift in both)
    for column, letter, one in zip(
        st.columns(2, gap="large"), ("A", "B"), (first, second), strict=True
    ):
        with column:
            record.subheader(f"{letter}: {page.plain(named(one))}")
            shifts.badge(one.support)
            rows = one.table.loc[order].rename(columns={"shift": "value"}).assign(label=order)
            rows[["lower", "upper"]] = float("nan")
            figure = gene_plots.bars(rows, f"predicted shift ({scale(model).unit})", charts.dark())
            figure.update_xaxes(range=[-reach, reach])
            charts.chart(figure, f"shifts_{letter}", f"Predicted shifts of composition {letter}")


def not_measured(model: Bundle, result: Composition) -> str:
    """Return the message for a composition that was not measured, and which parts were."""
    alone = [page.plain(name) for name in result.dosages if name in model.conditions.index]
    if not alone:
        rest = "Nothing in it was measured alone at dosage 1."
    elif len(result.dosages) == 1:
        rest = f"{alone[0]} was measured at dosage 1: set it to 1 to compare."
    else:
        rest = f"Measured alone: {', '.join(alone)}. To compare one, remove the others above"
        rest += "." if set(result.dosages.values()) == {1.0} else " and set its dosage to 1."
    condition = page.plain(result.condition)
    return f"{condition} was not measured, so there is nothing to compare with. {rest}"


def measured(shown: Shown) -> None:
    model, result = shown.model, shown.result
    if result.level is not None and result.n_observed == 0:
        record.info(
            f"{page.plain(result.condition)} was not measured at {page.plain(result.level)}, with "
            "controls to compare with: choose the mean of all levels to compare."
        )
        return
    if result.n_observed == 0:
        record.info(not_measured(model, result))
        return
    if left_out := shifts.left_out(result):
        record.info(f"{left_out} are left out, so this does not predict what was observed.")
        return
    if result.cells is not None:
        record.caption(
            "Observed shifts are against control cells, but the prediction starts from others."
        )
    shifts.against_observed(model, result)


def interaction(shown: Shown) -> None:
    """Draw the predicted interaction, with the observed one where it was measured."""
    model, result, table, n = shown.model, shown.result, shown.result.table, shown.n
    if sum(dose != 0 for dose in result.dosages.values()) < 2:
        record.info("One perturbation alone has nothing to interact with. Add another above.")
        return
    left_out = shifts.left_out(result)
    known = table["observed_interaction"].notna().any() and not left_out
    unit = scale(model).unit
    bends = float(table["interaction"].abs().max())
    if bends == 0 and not known:
        record.info("The predicted interaction is zero for every gene.")
        return
    left, right = st.columns(2, gap="large")
    with left:
        largest_interactions(table, n, unit, with_observed=known)
    with right:
        if known:
            interaction_agreement(table, unit)
        else:
            why = (
                f"{left_out} are left out, so this does not predict what was observed."
                if left_out
                else "To compare, the combination and each of its parts alone, at its dosage, "
                "would have to be measured."
            )
            record.info(f"There is no observed interaction here. {why}")
    record.caption(
        "Interaction: the composed shift minus the sum of the single shifts, by gene, on the same "
        "draws; whiskers: the model's own 90 % interval. Latent shifts add up, so the prediction "
        "comes from the decoder's curvature alone, not from learned epistasis. "
        + (
            "Observed (diamonds): the measured combination minus the sum of its measured parts, "
            "each against control, all splits pooled; whiskers: 90 % interval from the standard "
            "errors of all levels in it. "
            if known
            else ""
        )
        + ("" if result.cells is None else "The prediction starts from cells other than control. ")
        + foreseen(model)
        + (shifts.not_all(table) if known else "")
    )


def largest_interactions(table: pd.DataFrame, n: int, unit: str, with_observed: bool) -> None:
    """Draw the `n` genes with the largest predicted interaction."""
    top = table.loc[table["interaction"].abs().nlargest(n).index]
    top = top.sort_values("interaction", ascending=False)
    frame = pd.DataFrame(
        {
            "label": top.index,
            "value": top["interaction"],
            "lower": top["interaction_lower"],
            "upper": top["interaction_upper"],
            "observed": top["observed_interaction"],
            "observed_se": top["observed_interaction_se"],
        }
    )
    figure = gene_plots.bars(frame, f"interaction ({unit})", charts.dark())
    if with_observed:
        gene_plots.add_observed(figure, frame, charts.dark())
    charts.chart(
        figure, "interaction", "Genes with the largest predicted interaction, with observed"
    )


def interaction_agreement(table: pd.DataFrame, unit: str) -> None:
    """Draw predicted against observed interaction of every gene, with their correlation."""
    both = table.dropna(subset=["observed_interaction"])
    r = pearson(both["interaction"].to_numpy(), both["observed_interaction"].to_numpy())
    st.metric(
        "Pearson r over genes, interaction",
        "undefined" if r is None else f"{r:.2f}",
        help=f"Between predicted and observed interaction of {len(both):,} genes.",
    )
    drawn = both[["interaction", "observed_interaction", "observed_interaction_se"]]
    drawn = drawn.set_axis(["shift", "observed", "observed_se"], axis=1)
    charts.chart(
        gene_plots.agreement(gene_plots.largest(drawn), 8, charts.dark(), unit, "interaction"),
        "observed_interaction",
        "Observed against predicted interaction, one point per gene",
    )


def foreseen(model: Bundle) -> str:
    """Return a sentence on how well the model predicted the interactions of held-out pairs."""
    found = model.metrics.get("interaction")
    if not found or found.get("pearson") is None:
        return (
            "No pair was held out together with its parts, so it is not known how well this works."
        )
    n = found["n_doubles"]
    return (
        f"On {n} measured pair{'s' if n > 1 else ''} it was predicted with r "
        f"{found['pearson']:.2f}."
    )
