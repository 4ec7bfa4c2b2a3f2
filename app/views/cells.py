"""The page Cells: single cells on a map of their states, coloured, and selected by lasso."""

from __future__ import annotations

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts
from app.components.selected_cells import Colour, selection
from app.components.units import scale
from app.figures import maps as maps_module
from app.figures import style
from app.session import choices, given_names, page, record, url
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.analysis.states import decoded_values
from samsvae_core.bundle.bundle import ANEW, Bundle

PERTURBED, BASAL = "perturbed", "basal"
AXES = {PERTURBED: ["umap_1", "umap_2"], BASAL: ["basal_1", "basal_2"]}
STATES = {PERTURBED: "shifted", BASAL: "basal"}  # as the columns of a mechanism are called
TITLES = {PERTURBED: "Perturbed states", BASAL: "Basal states"}
BY = {
    "perturbation": "Perturbation",
    "gene": "Gene",
    "mechanism": "Mechanism",
    "split": "Split",
    "covariate": "Covariate",  # where the model accounts for some
}
COVARIATE = "covariate "  # columns of the cells' levels begin with it
N_FIRST = 3  # conditions coloured beside control by default
MOST_LEVELS = 7  # of a covariate in colour; colours are of seven kinds
UMAP = (
    "UMAP puts similar cells beside each other, so a cell's neighbours have a meaning. Distances "
    "between far groups, their sizes, their densities and the axes have none. Each map is fitted "
    "separately: a place on one is not the same place on the other."
)
BY_LABEL = (
    "All cells of a condition are moved by the same latent shift, which the model knows from the "
    "label. So groups among perturbed states show what the model has learned, and are no evidence "
    "that a perturbation does something; among basal states they should disappear."
)
MEANING = {
    PERTURBED: "The basal state plus the mean latent shift of the cell's condition.",
    BASAL: "The cell as the model thinks it would be without its perturbations.",
}
ONE_MAP = (
    "has no latent shift: perturbed and basal states are the same, and the model keeps them free "
    "of perturbations as far as it can. So there is one map, and conditions should mix on it."
)

ENDS = (
    "The most extreme hundredth of cells has the end colours; large values are drawn on top and "
    "hide others."
)


def cells(model: Bundle) -> None:
    st.title("Cells")
    frame = model.cells
    total = int(model.conditions[["train", "validation", "test"]].to_numpy().sum())
    record.markdown(
        f"Each point is a cell: {len(frame):,} of {total:,}, "
        + ("all there are." if len(frame) == total else "a random sample, always the same.")
        + " **Draw a lasso or a box around some** to see which they are."
    )
    if not model.model.has_shifts:
        record.info(f"{model.title} {ONE_MAP}")
    chosen = colouring(model, frame)
    maps(model, frame, chosen)
    selection(model, frame, chosen)


def colouring(model: Bundle, frame: pd.DataFrame) -> Colour:
    left, right = st.columns(2, gap="large", vertical_alignment="top")
    has_covariates = any(name.startswith(COVARIATE) for name in frame)
    offered = [by for by in BY if by != "covariate" or has_covariates]
    url.unknown_option("by", [BY[by] for by in offered], "colour")
    by = left.segmented_control(
        "Colour by",
        offered,
        default="perturbation",
        required=True,
        format_func=BY.__getitem__,
        key="by",
        bind="query-params",
    )
    with right:
        if by == "gene":
            return by_gene(model)
        if by == "mechanism":
            return by_mechanism(model, frame)
        if by == "split":
            return by_split(frame)
        if by == "covariate":
            return by_covariate(frame)
        return by_condition(model, frame)


def by_condition(model: Bundle, frame: pd.DataFrame) -> Colour:
    counts = frame["condition"].value_counts()
    options = [name for name in model.conditions.index if name in counts.index]
    first = first_conditions(model, frame)
    choices.initial_names("highlight", options, first)
    names = st.multiselect(
        "Perturbations in colour",
        options,
        format_func=lambda name: f"{name} ({counts[name]:,})",
        key="highlight",
        max_selections=choices.MAX_PERTURBATIONS,
        persist_state="session",
        help=f"At most {choices.MAX_PERTURBATIONS}; in brackets: cells on the map.",
    )
    choices.keep_names("highlight", names, first)
    group = frame["condition"].where(frame["condition"].isin(names), style.REST)
    levels = [style.REST, *names] if style.REST in set(group) else names
    said = f"In colour: the chosen of {len(options)} conditions; grey: all other cells."
    return categories(group, levels, "condition", said)


def first_conditions(model: Bundle, frame: pd.DataFrame) -> list[str]:
    """Return control and the conditions that move farthest; without shifts, the largest ones."""
    moved = [c.removeprefix("shifted ") for c in frame if c.startswith("shifted ")]
    if moved:
        ways = [frame[f"shifted {k}"] - frame[f"basal {k}"] for k in moved]
        size = np.sqrt(sum(way**2 for way in ways)).groupby(frame["condition"]).mean()
    else:
        size = frame["condition"].value_counts()
    others = size.drop(model.control, errors="ignore").nlargest(N_FIRST).index
    return [name for name in (model.control, *others) if name in size.index]


def by_split(frame: pd.DataFrame) -> Colour:
    levels = [s for s in ("train", "validation", "test") if (frame["split"] == s).any()]
    said = "Cells the model was trained on, validation cells that guided training, and test cells."
    return categories(frame["split"], levels, "split", said)


def by_covariate(frame: pd.DataFrame) -> Colour:
    names = [name.removeprefix(COVARIATE) for name in frame if name.startswith(COVARIATE)]
    url.unknown_option("covariate", names, "covariate")
    name = str(st.selectbox("Covariate", names, key="covariate", bind="query-params"))
    values = frame[COVARIATE + name].astype(str)
    counts = values.value_counts()
    levels = sorted(counts.index[:MOST_LEVELS])
    group = values.where(values.isin(levels), style.REST)
    shown = [style.REST, *levels] if len(counts) > len(levels) else levels
    said = f"The level that each cell has of {page.plain(name)}, for which the model accounts."
    if len(counts) > len(levels):
        said += f" In colour: the {len(levels)} of {len(counts):,} levels with most cells."
    return categories(group, shown, COVARIATE + name, said)


def categories(values: pd.Series, levels: list[str], name: str, said: str) -> Colour:
    return Colour(pd.Series(pd.Categorical(values, levels)), name, name, said)


def by_gene(model: Bundle) -> Colour:
    """Return a gene's level per cell: measured if the bundle has it, else decoded by the model."""
    rows = model.loadings
    rows = rows[rows["mechanism"].isin(active_mechanisms(model.masks) or rows["mechanism"])]
    default = str(rows.loc[rows["loading"].abs().idxmax(), "gene"])
    choices.initial_gene(model, default)
    gene = st.selectbox(
        "Gene",
        sorted(model.genes, key=str.upper),
        key="gene",
        filter_mode="contains",
        persist_state="session",
    )
    choices.keep(choices.GENE, gene, default)
    kind = "measured" if model.has_cell_values else "decoded"
    level = model.cell_values(gene) if model.has_cell_values else decoded_values(model, gene)
    if level is None:
        return nothing("values of single cells", len(model.cells))
    counts, unit = model.model.config.likelihood == "counts", scale(model).unit
    title = f"{style.italic([gene])[0]}, {kind} ({unit})"
    said = f"Colour: *{page.plain(gene)}* as {LEVELS[kind, counts]} {ENDS}"
    each = pd.Series(level)
    return Colour(each, f"{gene}, {kind} ({unit})", title, said, bool((each < 0).any()))


LEVELS = {  # the second key: whether values are counts
    ("measured", True): "measured, log2(1 + 1e4 x / total): x counts of the gene, and total all "
    "counts, in the cell. Many zeros are transcripts that were there but not captured.",
    ("measured", False): "measured: the values of the file.",
    ("decoded", True): "the model expects it in the cell, log2(1 + 1e4 p): p is the share decoded "
    "from its perturbed state, without measurement noise. This model comes without the measured "
    "values.",
    ("decoded", False): "the model expects it in the cell: the value decoded from its perturbed "
    "state, without measurement noise. This model comes without the measured values.",
}


def by_mechanism(model: Bundle, frame: pd.DataFrame) -> Colour:
    kept = [c.removeprefix("basal ") for c in frame if c.startswith("basal M")]
    if not kept:
        return nothing("states of single cells", len(frame))
    active = [f"M{k}" for k in active_mechanisms(model.masks)]
    kept = [name for name in kept if name in active] or kept
    choices.initial_mechanism(kept)
    labels = {f"M{k}": label.name for k, label in given_names.names(model)[0].items() if label.name}
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    mechanism = left.selectbox(
        "Mechanism" if model.model.has_shifts else "Latent dimension",
        kept,
        key="m",
        persist_state="session",
        format_func=lambda name: f"{name}: {labels[name]}" if name in labels else name,
        help="Those that at least one perturbation uses, or all if there are none.",
    )
    choices.keep(choices.MECHANISM, mechanism, kept[0])
    which = BASAL
    if model.model.has_shifts:
        url.unknown_option("latent", [name.capitalize() for name in STATES], "state")
        which = right.segmented_control(
            "State",
            list(STATES),
            default=PERTURBED,
            required=True,
            format_func=str.capitalize,
            key="latent",
            bind="query-params",
            help=" ".join(f"{name.capitalize()}: {MEANING[name]}" for name in STATES),
        )
    said = (
        f"Colour: where the cell is along {mechanism}, by its {which} state, in prior standard "
        f"deviations of the basal state. The sign has a meaning only within {mechanism}. {ENDS}"
    )
    values = frame[f"{STATES[which]} {mechanism}"]
    return Colour(values, f"{mechanism}, {which}", f"{mechanism}, {which} (sd)", said, True)


def nothing(what: str, n: int) -> Colour:
    """Say that an older bundle lacks what the colour needs, and return one grey for all cells."""
    record.info(f"This model came without {what}: an older version made it. {page.plain(ANEW)}")
    return categories(pd.Series([style.REST] * n), [style.REST], "condition", "")


def maps(model: Bundle, frame: pd.DataFrame, chosen: Colour) -> None:
    """Draw the map to select cells from, and the other map beside it if there are two."""
    known = [name for name, axes in AXES.items() if set(axes) <= set(frame)]
    if not model.model.has_shifts:
        known = [PERTURBED]
    first = PERTURBED
    if len(known) > 1:
        url.unknown_option("map", [TITLES[k] for k in known], "map")
        first = st.segmented_control(
            "Take cells from",
            known,
            default=PERTURBED,
            required=True,
            format_func=TITLES.__getitem__,
            key="map",
            bind="query-params",
        )
    elif model.model.has_shifts:
        record.info(
            f"This model was made before a map of basal states was kept. {page.plain(ANEW)}"
        )
    order = sorted(known, key=lambda name: name != first)
    taken = choices.taken(model)
    for column, name in zip(st.columns(len(order), gap="large"), order, strict=True):
        with column:
            title = TITLES[name] if model.model.has_shifts else "States"
            record.subheader(title)
            figure = maps_module.cell_map(
                frame[AXES[name]],
                frame["condition"],
                chosen.each,
                chosen.title,
                charts.dark(),
                chosen.signed,
                taken if taken and name != first else None,
            )
            alt = f"UMAP of {title.lower()} of {len(frame):,} cells by {chosen.name}"
            if name == first:
                charts.lasso(model, figure, f"cells {name}", alt)
            else:
                charts.chart(figure, f"cells {name}", alt)
            if model.model.has_shifts:
                record.caption(MEANING[name])
    record.caption(f"{chosen.said} {UMAP}" + (f" {BY_LABEL}" if model.model.has_shifts else ""))


page.page(cells)
