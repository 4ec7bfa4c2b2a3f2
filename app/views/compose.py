"""What perturbations do together: pick them, set dosages, read the predicted shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.components import charts, mechanisms, shifts
from app.components import gene_sets as sets
from app.components.intervals import interval
from app.components.units import scale
from app.export import snippets
from app.figures import gene_plots, heatmaps
from app.session import choices as choices_module
from app.session import compose_widgets, composition, gene_set_tests, page, record, results, url
from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.compose import Composition, knows_states
from samsvae_core.analysis.masks import matrix
from samsvae_core.analysis.support import SUPPORT
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.evaluation.metrics import pearson
from samsvae_core.genesets.enrichment import USUAL

DRAWS = {"64 draws": 64, "256 draws": 256, "1,024 draws": 1024}
SLIDERS_ACROSS = 3  # each with its box
MOST_SWITCHES = 30  # mechanisms with a switch of their own; the rest have one together


def compose(model: Bundle) -> None:
    st.title("Compose")
    record.markdown(introduction(model))
    dosages, way = choices(model)
    if not dosages:
        composition.keep_mix(model, {})
        steps(way, chosen=False)
        record.info("No perturbation is chosen. Pick one above, or start from an example:")
        examples(model)
        return
    summary = st.container()
    without, cells, n_samples = sum_of(model, dosages)
    composition.keep_mix(model, dosages)
    steps(way, chosen=True)
    result = results.composed(model, dosages, without, n_samples, cells)
    page.subject(named(result))
    with summary:
        answer(model, result)
    record.header("Predicted shift")
    left, right = st.columns(2, gap="large", vertical_alignment="bottom")
    with right:
        kind, table = interval(result.table)
    n = left.slider("Genes in the ranking", 10, 60, 24, 2, key="n_genes", bind="query-params")
    record.markdown(shifts.in_words(model, table, kind))
    left, right = st.columns(2, gap="large")
    with left:
        record.subheader("Largest")
        shifts.ranked(model, result, table, kind, n)
    with right:
        record.subheader("All genes")
        shifts.numbers(result, gene_plots.bars_height(n) - 20)
    record.caption(f"{scale(model).shift} {shifts.whiskers(model, result, kind)}")
    PARTS[part()](Shown(model, result, table, kind, n))


class Shown(NamedTuple):
    """What every part of the page below the prediction is about."""

    model: Bundle
    result: Composition
    table: pd.DataFrame  # of the result, with the ends of the interval of that kind
    kind: str | None
    n: int  # genes in a ranking


def part() -> str:
    """Which of the `PARTS` is drawn: one at a time, so that a slider is followed at once."""
    url.unknown_option("part", list(PARTS), "part")
    chosen = st.segmented_control(
        "Look closer",
        list(PARTS),
        default=next(iter(PARTS)),
        required=True,
        key="part",
        bind="query-params",
    )
    record.header(str(chosen))
    return str(chosen)


def named(result: Composition) -> str:
    """The condition, and the mechanisms taken out of it, in short."""
    out = composition.as_off(set(result.without)).replace(",", ", ")
    return f"{result.condition} without M {out}" if out else result.condition


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


def choices(model: Bundle) -> tuple[dict[str, float], DeltaGenerator]:
    """The perturbations and their dosages, and the place beside them for the `steps`."""
    names = [str(name) for name in model.perturbations.index]
    most = choices_module.MAX_PERTURBATIONS if model.model.composes else 1
    composition.initial_mix(model, most)
    left, right = st.columns([5, 2], gap="medium", vertical_alignment="bottom")
    chosen = left.multiselect(
        f"Perturbations, up to {most}" if most > 1 else "Treatment (one)",
        names,
        key="compose_names",
        max_selections=most,
        persist_state="session",
        placeholder="Type a gene, for example STAT1" if "STAT1" in names else "Type a gene",
    )
    way = right.container(horizontal=True, gap="small")
    dosages = {}
    if chosen:
        columns = st.columns(SLIDERS_ACROSS)
        for place, name in enumerate(chosen):
            with columns[place % SLIDERS_ACROSS]:
                dosages[name] = compose_widgets.dosage(name)
    return dosages, way


def steps(way: DeltaGenerator, chosen: bool) -> None:
    """Back, forth, and from the start; once it is known which composition this one is."""
    back, forth = composition.steps()
    with way:
        for label, icon, by, n in (("Undo", "undo", -1, back), ("Redo", "redo", 1, forth)):
            st.button(
                label,
                icon=f":material/{icon}:",
                key=label.lower(),
                on_click=composition.step,
                args=(by,),
                disabled=n == 0,
                type="tertiary",
            )
        st.button(
            "Start over",
            icon=":material/restart_alt:",
            key="start over",
            on_click=composition.start_over,
            disabled=not chosen,
            type="tertiary",
        )


def sum_of(
    model: Bundle, dosages: dict[str, float]
) -> tuple[list[int], tuple[str, ...] | None, int]:
    """Mechanisms taken out of the sum, the cells to start from, and the number of draws."""
    with st.container(border=True):
        left, right = st.columns([2, 3], gap="large")
        used, others = mechanisms_of(model, dosages)
        without: list[int] = []
        with left:
            if model.model.has_shifts:
                labels = mechanisms.titles(model, used)
                without = compose_widgets.switches(used, others, labels)
                with st.container(horizontal=True):
                    for label, on in (("All on", True), ("All off", False)):
                        st.button(
                            label,
                            key=label.lower(),
                            on_click=composition.switch_all,
                            args=(on, used),
                            type="tertiary",
                        )
            cells = starting_cells(model)
            url.unknown_option("draws", list(DRAWS), "number")
            draws = st.segmented_control(
                "Draws",
                list(DRAWS),
                default="64 draws",
                required=True,
                key="draws",
                bind="query-params",
                help="Of masks and embeddings, from the posterior. More draws steady the ends of "
                "the intervals; the numbers change a little.",
            )
        with right:
            if model.model.has_shifts:
                contributions(model, dosages, used, without, labels)
            else:
                record.caption(f"{model.title} has no mechanisms to take out of a sum.")
    return without, cells, DRAWS[draws or "64 draws"]


def mechanisms_of(model: Bundle, dosages: dict[str, float]) -> tuple[list[int], list[int]]:
    """Mechanisms that any of the perturbations uses, those moved farthest first; and the others."""
    if not model.model.has_shifts:
        return [], []
    rows = model.masks[model.masks["perturbation"].isin(list(dosages)) & model.masks["active"]]
    sizes = rows.assign(size=rows["effect"].abs()).groupby("mechanism")["size"].sum()
    used = sorted(int(k) for k in sizes.nlargest(MOST_SWITCHES).index)
    return used, [k for k in range(model.model.config.n_latent) if k not in used]


def starting_cells(model: Bundle) -> tuple[str, ...] | None:
    """Names of the cells whose basal states are shifted; None: the reference control cells."""
    if not knows_states(model):
        composition.start_from_control()
        return None
    counts = model.cells["condition"].value_counts()
    where = {str(name): int(counts[name]) for name in model.conditions.index if name in counts}
    chosen = compose_widgets.start(model, where)
    if chosen == composition.CONTROL:
        return None
    if chosen == composition.SELECTED:
        return tuple(model.cells["cell"].iloc[choices_module.taken(model)])
    return tuple(model.cells.loc[model.cells["condition"] == chosen, "cell"])


def contributions(
    model: Bundle,
    dosages: dict[str, float],
    used: list[int],
    without: list[int],
    labels: dict[int, str],
) -> None:
    """Which perturbation moves which mechanism how far, and what is left in the sum."""
    if not used:
        record.caption("None of these perturbations uses a mechanism, so next to nothing moves.")
        return
    effect = matrix(model.masks, "effect").loc[list(dosages), used]
    table = pd.DataFrame({name: dose * effect.loc[name] for name, dose in dosages.items()})
    table = table.rename(columns={name: f"{name} (perturbation)" for name in ("sum", "mechanism")})
    table["sum"] = table.sum(axis=1).where([k not in without for k in used], 0.0)
    charts.chart(
        heatmaps.contributions(table, [labels[k] for k in used], charts.dark()),
        "contributions",
        "What each perturbation contributes to each mechanism, and their sum",
    )
    shown = table.reset_index(drop=True)
    shown.insert(0, "mechanism", [labels[k] for k in used])
    with st.expander("As a table"):
        st.dataframe(
            shown,
            hide_index=True,
            alt="Contribution of each perturbation to each mechanism",
            column_config={
                name: st.column_config.NumberColumn(format="%+.2f")
                for name in shown.columns
                if name != "mechanism"
            },
        )
        charts.downloads(shown, "contributions")
    record.caption(
        "Dosage times posterior mean effect, in standard deviations of the basal state, of the "
        "mechanisms that any of these perturbations uses (probability above 0.5); the sum is 0 "
        "where a mechanism is taken out. The other mechanisms move by next to nothing."
    )


def clearness(shown: Shown) -> None:
    """Every gene by its shift and by how clear it is."""
    shifts.everything(shown.model, shown.table, shown.kind, shown.n)
    record.caption(shifts.clearness(shown.kind) + shifts.not_all(shown.table))


def comparison(shown: Shown) -> None:
    """The composition above (A) against another (B) kept before, on the same draws."""
    model, result, n = shown.model, shown.result, shown.n
    kept = composition.compared(
        model, choices_module.MAX_PERTURBATIONS if model.model.composes else 1
    )
    with st.container(horizontal=True):
        st.button(
            "Use this one as B",
            icon=":material/push_pin:",
            key="keep b",
            on_click=composition.compare_with,
            args=(model, composition.current_mix()),
        )
        if kept is not None:
            st.button(
                "Compare no more",
                icon=":material/close:",
                key="drop b",
                on_click=composition.compare_with,
                args=(model, composition.Mix()),
            )
    if kept is None:
        record.caption(
            "Take the composition above as B, then change it: what is above becomes A, and the "
            "difference between the two is shown here."
        )
        return
    dosages, off = kept
    used, others = mechanisms_of(model, dosages)
    without = [k for k in used if k in off] + (others if composition.REST in off else [])
    other = results.composed(model, dosages, without, result.n_samples, result.cells)
    record.markdown(f"**A**: {page.plain(named(result))}. **B**: {page.plain(named(other))}.")
    table = results.difference(model, result, other)
    if not table["difference"].any():
        record.info(
            "A and B are the same. Choose other perturbations, dosages or mechanisms above."
        )
        return
    side_by_side(model, result, other, n)
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
    record.caption(
        f"Difference of the predicted shifts, A minus B, on the same {result.n_samples} posterior "
        "draws and from the same cells, so that what they share cancels out; whiskers: the model's "
        "own 90 % interval, too narrow as a rule. The address keeps both."
    )


def side_by_side(model: Bundle, first: Composition, second: Composition, n: int) -> None:
    """The largest shifts of either, beside each other on one scale."""
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


def examples(model: Bundle) -> None:
    """Something to begin with that shows what the model can do."""
    names = mechanisms.example(model)
    if not names:
        record.caption(
            "No perturbation of this model uses a mechanism, so every shift is near zero."
        )
        return
    st.button(
        " + ".join(map(page.plain, names)),
        icon=":material/play_arrow:",
        key="example",
        on_click=composition.start_composition,
        args=(names,),
    )


def answer(model: Bundle, result: Composition) -> None:
    """In one glance: is this carried by data, and by which."""
    with st.container(horizontal=True):
        shifts.badge(result.support)
        if result.without:
            st.badge("Mechanisms left out: not a prediction of the condition", color="orange")
        if result.cells is not None:
            st.badge(f"From {result.n_reference} chosen cells, not from control", color="orange")
    said = (SUPPORT[result.support], shifts.nearest_in_words(result), shifts.fit_in_words(result))
    record.markdown(" ".join(said))
    off_panel = [
        page.plain(name)
        for name in result.dosages
        if not bool(model.perturbations.loc[name, "on_panel"]) and "+" not in name
    ]
    if off_panel:
        record.caption(
            f"Not among the measured genes, so the target's own change cannot be shown: "
            f"{', '.join(off_panel)}."
        )


def not_measured(model: Bundle, result: Composition) -> str:
    """That there is nothing to compare with, and which of its parts can be compared."""
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
    if result.n_observed == 0:
        record.info(not_measured(model, result))
        return
    if result.without:
        record.info("Mechanisms are left out, so this is no prediction of what was observed.")
        return
    if result.cells is not None:
        record.caption(
            "Observed shifts are against control cells, and the prediction starts from others."
        )
    shifts.against_observed(model, result)


def interaction(shown: Shown) -> None:
    """The whole minus the sum of its parts: predicted, and where it was measured, observed."""
    model, result, table, n = shown.model, shown.result, shown.result.table, shown.n
    if sum(dose != 0 for dose in result.dosages.values()) < 2:
        record.info("One perturbation alone has nothing to interact with. Add another above.")
        return
    known = table["observed_interaction"].notna().any() and not result.without
    unit = scale(model).unit
    bends = float(table["interaction"].abs().max())
    if bends == 0 and not known:
        record.info("The predicted interaction is zero for every gene.")
        return
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
    if known:
        gene_plots.add_observed(figure, frame, charts.dark())
    left, right = st.columns(2, gap="large")
    with left:
        charts.chart(
            figure, "interaction", "Genes with the largest predicted interaction, with observed"
        )
    with right:
        if known:
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
                gene_plots.agreement(
                    gene_plots.largest(drawn), 8, charts.dark(), unit, "interaction"
                ),
                "observed_interaction",
                "Observed against predicted interaction, one point per gene",
            )
        else:
            why = (
                "Mechanisms are left out, so this is no prediction of what was observed."
                if result.without
                else "The combination and each of its parts alone, at its dosage, would have to be "
                "measured to compare with."
            )
            record.info(f"There is no observed interaction here. {why}")
    record.caption(
        "Interaction: the composed shift minus the sum of the single shifts, by gene, on the same "
        "draws; whiskers: the model's own 90 % interval. Shifts add up in latent space, so what is "
        "predicted comes from the decoder's bend alone, not from learned epistasis. "
        + (
            "Observed (diamonds): the measured combination minus the sum of its measured parts, "
            "each against control, all splits pooled; whiskers: 90 % interval from the standard "
            "errors of all levels in it. "
            if known
            else ""
        )
        + ("" if result.cells is None else "The prediction starts from other cells than control. ")
        + foreseen(model)
        + (shifts.not_all(table) if known else "")
    )


def foreseen(model: Bundle) -> str:
    """How well the model foresaw interactions on held-out pairs."""
    found = model.metrics.get("interaction")
    if not found or found.get("pearson") is None:
        return (
            "No pair was held out together with its parts, so how well it is foreseen is unknown."
        )
    n = found["n_doubles"]
    return (
        f"On {n} measured pair{'s' if n > 1 else ''} it was foreseen with r {found['pearson']:.2f}."
    )


def gene_sets(shown: Shown) -> None:
    """The two tests on the predicted shift, when asked for."""
    model, result = shown.model, shown.result
    if result.support == "control":
        record.info("Nothing is perturbed, so there is no shift to test.")
        return
    offered = gene_set_tests.collections()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    url.unknown_option("collection", list(offered), "collection")
    name = left.selectbox("Collection", list(offered), key="collection", bind="query-params")
    with right:
        url.link("gene_sets", "Add your own sets", ":material/arrow_forward:")
    chosen, ranked = {name: offered[name]()}, gene_rankings.of_shift(result)
    found = sets.tested(model, ranked, chosen, USUAL, f"shift {name}", asked=False)
    if found is None:
        return
    sets.problems(found)
    sets.table(model, ranked, chosen, found, "shift", result.condition)
    sets.take_away(model, ranked, chosen, found, USUAL, f"shift {name}")


def as_code(shown: Shown) -> None:
    """The same numbers from Python and from the shell."""
    begin = composition.starting_condition()
    st.code(
        snippets.as_python(shown.model, shown.result, begin), language="python", wrap_lines=True
    )
    if command := snippets.as_command(shown.model, shown.result, begin):
        st.code(command, language="bash", wrap_lines=True)


PARTS: dict[str, Callable[[Shown], None]] = {
    "Observed": measured,
    "Volcano": clearness,
    "Interaction": interaction,
    "A against B": comparison,
    "Gene sets": gene_sets,
    "Code": as_code,
}

page.page(compose)
