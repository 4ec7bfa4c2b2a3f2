"""The page Compose: pick perturbations, set their dosages, and read the predicted shift."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app.components import charts, direct_effects, mechanisms, shifts
from app.components import gene_sets as sets
from app.components.composition_parts import (
    Shown,
    comparison,
    interaction,
    measured,
    mechanisms_of,
    named,
)
from app.components.intervals import interval
from app.components.units import scale
from app.export import snippets
from app.figures import gene_plots, heatmaps
from app.session import choices as choices_module
from app.session import compose_widgets, composition, gene_set_tests, page, record, results, url
from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.compose import Composition
from samsvae_core.analysis.differences import masks_at
from samsvae_core.analysis.draws import knows_states
from samsvae_core.analysis.masks import matrix
from samsvae_core.analysis.support import SUPPORT
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.enrichment import USUAL

MEAN = ""  # in place of a level: the mean over levels, which the address leaves out
DRAWS = {"64 draws": 64, "256 draws": 256, "1,024 draws": 1024}
SLIDERS_ACROSS = 3  # each with its box


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
    asked = sum_of(model, dosages)
    composition.keep_mix(model, dosages)
    steps(way, chosen=True)
    result = results.composed(model, dosages, *asked)
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
        shifts.numbers(model, result, gene_plots.bars_height(n) - 20)
    record.caption(f"{scale(model).shift} {shifts.whiskers(model, result, kind)}")
    PARTS[part()](Shown(model, result, table, kind, n))


def part() -> str:
    """Draw the choice of the `PARTS` and return it; only one is drawn, to keep sliders fast."""
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


def introduction(model: Bundle) -> str:
    if not model.model.composes:
        return (
            f"Pick a treatment. {model.title} takes every combination as a treatment of its own, "
            "so it cannot put perturbations together. Measured combinations are in the list "
            "under their own names. To combine others, choose another model at the side."
        )
    if not model.model.has_shifts:
        return (
            "Pick one or more perturbations. The networks of this model read them together; there "
            "is no sum of latent shifts, so only the networks stand behind its predictions for "
            "combinations it has not seen."
        )
    return (
        "Pick one or more perturbations. Their latent shifts add up, and the decoder turns the sum "
        "into a shift of each gene."
        + ("" if model.model.direct is None else " Direct effects on single genes are added.")
    )


def choices(model: Bundle) -> tuple[dict[str, float], DeltaGenerator]:
    """Draw the pickers; return the dosages by perturbation, and the place for the `steps`."""
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
    """Draw Undo, Redo and Start over; call it once the composition is in the history."""
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


class Sum(NamedTuple):
    """What goes into the sum: the arguments of `results.composed` after the dosages."""

    without: list[int]
    n_samples: int
    cells: tuple[str, ...] | None
    direct: bool
    level: str | None  # of the context; None: the mean cell


def sum_of(model: Bundle, dosages: dict[str, float]) -> Sum:
    """Draw what goes into the sum, and return it."""
    with st.container(border=True):
        left, right = st.columns([2, 3], gap="large")
        with left:
            level = level_of(model)
        masks = masks_at(model.masks, model.differences, level)
        used, others = mechanisms_of(model, masks, dosages)
        without: list[int] = []
        direct = True
        with left:
            if model.model.has_shifts:
                labels = mechanisms.titles(model, used)
                without = compose_widgets.switches(used, others, labels)
                direct = model.direct is None or compose_widgets.direct_switch(
                    direct_effects.about(model.direct, dosages)
                )
                all_switches(model, used)
            cells = starting_cells(model)
            url.unknown_option("draws", list(DRAWS), "number")
            draws = st.segmented_control(
                "Draws",
                list(DRAWS),
                default="64 draws",
                required=True,
                key="draws",
                bind="query-params",
                help="Posterior draws of masks and embeddings. More draws make the ends of the "
                "intervals steadier; the numbers change a little.",
            )
        with right:
            if model.model.has_shifts:
                contributions(model, masks, dosages, used, without, labels)
            else:
                record.caption(f"{model.title} has no mechanisms to take out of a sum.")
    return Sum(without, DRAWS[draws or "64 draws"], cells, direct, level)


def level_of(model: Bundle) -> str | None:
    """Draw the choice of the context's level and return it; None for the mean cell."""
    if model.context is None:
        return None
    options = [MEAN, *model.levels[model.context]]
    url.unknown_option("level", options, "level")
    chosen = st.selectbox(
        f"Effects at {page.plain(model.context)}",
        options,
        format_func=lambda level: "the mean of all levels" if level == MEAN else page.plain(level),
        key="level",
        bind="query-params",
        help="Where this model found that a perturbation acts differently, its effect at that level"
        " is taken. What the level itself changes of every gene is left at its mean.",
    )
    return None if chosen == MEAN else chosen


def all_switches(model: Bundle, used: list[int]) -> None:
    """Draw the buttons that switch every part of the sum on or off."""
    names: list[int | str] = [*used, composition.REST]
    names += [] if model.model.direct is None else [composition.DIRECT]
    with st.container(horizontal=True):
        for label, on in (("All on", True), ("All off", False)):
            st.button(
                label,
                key=label.lower(),
                on_click=composition.switch_all,
                args=(on, names),
                type="tertiary",
            )


def starting_cells(model: Bundle) -> tuple[str, ...] | None:
    """Return the names of the starting cells, or None for the reference control cells."""
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
    masks: pd.DataFrame,
    dosages: dict[str, float],
    used: list[int],
    without: list[int],
    labels: dict[int, str],
) -> None:
    """Draw how far each perturbation moves each mechanism, and their sum."""
    if not used:
        rest = "almost nothing moves" if model.direct is None else "direct effects are all they do"
        record.caption(f"None of these perturbations uses a mechanism, so {rest}.")
        return
    effect = matrix(masks, "effect").loc[list(dosages), used]
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
        "Dosage times posterior mean effect, in standard deviations of the basal state, for the "
        "mechanisms that any of these perturbations uses (probability above 0.5); the sum is 0 "
        "where a mechanism is taken out. The other mechanisms hardly move."
    )


def clearness(shown: Shown) -> None:
    """Draw all genes by their shift and by how certain it is."""
    shifts.everything(shown.model, shown.table, shown.kind, shown.n)
    record.caption(shifts.clearness(shown.kind) + shifts.not_all(shown.table))


def examples(model: Bundle) -> None:
    """Draw a button with an example composition."""
    names = mechanisms.example(model)
    if not names:
        record.caption(
            "No perturbation of this model uses a mechanism or has a direct effect that stands "
            "out, so every shift is near zero."
            if model.direct is not None
            else "No perturbation of this model uses a mechanism, so every shift is near zero."
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
    """Draw whether data support the composition, and which ones do."""
    with st.container(horizontal=True):
        shifts.badge(result.support)
        if left_out := shifts.left_out(result):
            st.badge(f"{left_out} left out: not a prediction of the condition", color="orange")
        if result.level is not None:
            st.badge(f"At {page.plain(model.context or '')} {page.plain(result.level)}")
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


def gene_sets(shown: Shown) -> None:
    """Draw the gene-set tests of the predicted shift, once they are asked for."""
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
    """Draw the code that gives the same numbers in Python and in a shell."""
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
