"""Choosing and comparing perturbations on a page, and their network of mechanisms."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import charts, mechanisms
from app.figures import maps, model_plots
from app.session import choices, composition, page, record, results, url
from samsvae_core.analysis import masks, similarity
from samsvae_core.analysis.held_out import listed
from samsvae_core.bundle.bundle import Bundle

MOST_CELLS, MOST_ROWS = 20_000, 250  # the largest map that draws fast enough
MOST_SENT = 5_000  # rows of a table on the page
N_DIMENSIONS = 6  # drawn for a model without masks, whose perturbations use all of them
WAYS = ("Draw around some", "Click one by one")
COLUMNS = mechanisms.COLUMNS | {
    "shared": st.column_config.NumberColumn(help="Mechanisms that both use."),
    "jaccard": st.column_config.NumberColumn(
        "Jaccard",
        format="%.2f",
        help="Mechanisms that both use over those that either uses: 1 is the same set. 0 where "
        "neither uses any.",
    ),
    "cosine": st.column_config.NumberColumn(
        format="%+.2f",
        help="Cosine of the angle between their effects: 1 is the same direction, -1 the opposite.",
    ),
}


def titles(model: Bundle) -> dict[int, str]:
    """Return titles of the mechanisms in use; none for a model without masks, which uses all."""
    used = masks.active_mechanisms(model.masks) if model.model.has_masks else []
    return mechanisms.titles(model, used)


def comparison(model: Bundle, key: str, titles: dict[int, str]) -> None:
    """Draw the choice of perturbations, whose widget has this key, and their comparison."""
    if chosen := choose(model, key):
        compared(model, chosen, titles)


def choose(model: Bundle, key: str) -> list[str]:
    """Draw the choice of perturbations, on their UMAP or by name, and return those chosen."""
    left, right = st.columns([3, 2], gap="large")
    with right:
        chosen = st.multiselect(
            "Perturbations to compare",
            list(model.perturbations.index),
            key=key,
            max_selections=choices.MAX_CHOSEN,
            persist_state="session",
            placeholder="Type a name",
            help=f"At most {choices.MAX_CHOSEN}. A lasso or a box on the map chooses the "
            "perturbations inside, in place of those before; a click on one adds or removes it.",
        )
        if chosen:
            record.markdown(in_words(model, chosen))
            links(model, chosen)
        else:
            record.info(
                "No perturbation is chosen. Draw around some on the map, click one by one, or type "
                "names above, to see their mechanisms and effects side by side."
            )
    with left:
        used = model.masks.groupby("perturbation")["active"].any()
        frame = model.perturbations_umap.rename(columns={"perturbation": "name"})
        frame = frame.assign(uses=frame["name"].map(used).astype(bool))
        url.unknown_option("choose_by", WAYS, "way to choose")
        way = st.segmented_control(
            "Choose on the map",
            WAYS,
            default=WAYS[0],
            required=True,
            key="choose_by",
            bind="query-params",
        )
        charts.choose_from(
            model,
            maps.perturbation_map(frame, chosen, charts.dark()),
            "perturbations_umap",
            f"UMAP of {len(frame)} perturbations by their effects",
            by_click=way == WAYS[1],
        )
        record.caption(
            f"UMAP (a flat map that keeps neighbours together) of {len(frame)} perturbations by "
            "their effects on the mechanisms. Near means alike; distances between far groups mean "
            "nothing. The chosen ones are in colour."
        )
    return chosen


def links(model: Bundle, chosen: list[str]) -> None:
    """Draw links to Compose with all of them, and to the page of each."""
    with st.container(horizontal=True):
        if 1 < len(chosen) <= choices.MAX_PERTURBATIONS and model.model.composes:
            url.link(
                "compose",
                "Compose them together",
                ":material/add_circle:",
                {
                    "c": composition.as_link(dict.fromkeys(chosen, 1.0)),
                },
            )
        for name in chosen:
            url.link(
                "perturbation",
                f"Open {page.plain(name)}",
                ":material/arrow_forward:",
                {"p": name},
            )
    if len(chosen) > choices.MAX_PERTURBATIONS and model.model.composes:
        record.caption(f"Compose takes {choices.MAX_PERTURBATIONS} at most.")
    st.button("Choose none", icon=":material/close:", on_click=charts.choose_none, args=(model,))


def in_words(model: Bundle, chosen: list[str]) -> str:
    """Return sentences on who shares which mechanism, who uses one alone, and who uses none."""
    rows = model.masks[model.masks["perturbation"].isin(chosen)]
    if not model.model.has_masks:
        return least_and_most(rows, chosen)
    active = masks.matrix(rows, "active").astype(bool)
    effect = masks.matrix(rows, "effect")
    groups: dict[tuple[str, ...], list[str]] = {}
    for k in active.columns[active.any()]:
        users = tuple(name for name in chosen if active.loc[name, k])
        groups.setdefault(users, []).append(f"M{k}{other_way(effect.loc[list(users), k])}")
    said = []
    for users, used in sorted(groups.items(), key=lambda item: -len(item[0])):
        what = listed(used)
        if len(users) == 1:
            only = "Only " if len(chosen) > 1 else ""
            said.append(f"{only}{bold(users)} uses {what}.")
        else:
            who = f"All {len(users)}" if len(users) == len(chosen) > 2 else bold(users)
            said.append(f"{who} share {what}.")
    none = [name for name in chosen if not active.loc[name].any()]
    if none:
        said.append(f"{bold(none)} {'uses' if len(none) == 1 else 'use'} no mechanism.")
    return " ".join(said)


def least_and_most(rows: pd.DataFrame, chosen: list[str]) -> str:
    """Return which two perturbations are most, and least, alike in direction of effect.

    This is for models without masks.
    """
    if len(chosen) == 1:
        return f"{bold(chosen)} moves every latent dimension. Choose another to compare it with."
    by_cosine = similarity.pairs(rows, chosen).sort_values("cosine", ascending=False)
    told = [
        f"{bold([pair['first'], pair['second']])} ({pair['cosine']:+.2f})"
        for pair in by_cosine.iloc[[0, -1]].to_dict("records")
    ]
    most = f"Most alike by direction of effect (cosine): {told[0]}"
    return f"{most}." if len(by_cosine) == 1 else f"{most}; least: {told[1]}."


def other_way(effects: pd.Series) -> str:
    """Return, in brackets, the users of a mechanism that move it against the majority, or ""."""
    up, down = effects.index[effects >= 0], effects.index[effects < 0]
    fewer = min(down, up, key=len)
    return f" ({bold(fewer)} the other way)" if len(fewer) else ""


def bold(names: tuple[str, ...] | list[str] | pd.Index) -> str:
    return listed([f"**{page.plain(name)}**" for name in names])


def compared(model: Bundle, chosen: list[str], titles: dict[int, str]) -> None:
    """Draw the effects of the chosen perturbations: as a figure, as a table, and by pair."""
    entries = shown_entries(model, chosen)
    left, right = st.columns([2, 3], gap="large")
    with left:
        if entries.empty:
            record.info("None of them uses a mechanism, so there is no effect to draw.")
        else:
            charts.chart(
                model_plots.used_effects(entries, titles, charts.dark()),
                "chosen_effects",
                "Effects of the chosen perturbations on each mechanism, with 90 % intervals",
            )
            which = (
                "Entries with a mask probability above 0.5."
                if model.model.has_masks
                else f"The {N_DIMENSIONS} latent dimensions that any of them moves farthest."
            )
            record.caption(f"{which} {mechanisms.WHISKERS}")
    with right:
        if not entries.empty:
            st.dataframe(
                side_by_side(entries, titles, chosen),
                hide_index=True,
                placeholder="\u2013",
                alt="Effect of each chosen perturbation on each mechanism",
                column_config={name: st.column_config.TextColumn(width=115) for name in chosen}
                | {"mechanism": COLUMNS["mechanism"]},
            )
            record.caption(
                "Effect ± posterior standard deviation, in standard deviations of the basal state. "
                "A dash means not in use. The files have a row per entry, with its probability."
            )
            charts.downloads(entries.drop(columns="place"), "chosen_effects_table")
        if len(chosen) > 1:
            table = similarity.pairs(model.masks, chosen)
            if not model.model.has_masks:
                table = table.drop(columns=["shared", "jaccard"])
                table = table.sort_values("cosine", ascending=False)
            with st.expander(f"How alike: {len(table)} pair{'s' if len(table) > 1 else ''}"):
                st.dataframe(
                    table,
                    hide_index=True,
                    alt="Similarity of every two of the chosen perturbations",
                    column_config=COLUMNS,
                )
                record.caption("Most alike first. The cosine is over all mechanisms, used or not.")
                charts.downloads(table, "chosen_pairs")


def shown_entries(model: Bundle, chosen: list[str]) -> pd.DataFrame:
    """Return the mask entries in use of the chosen, by mechanism, strongest first."""
    rows = model.masks[model.masks["perturbation"].isin(chosen) & model.masks["active"]]
    if not model.model.has_masks:
        farthest = rows["effect"].abs().groupby(rows["mechanism"]).max().nlargest(N_DIMENSIONS)
        rows = rows[rows["mechanism"].isin(farthest.index)].drop(columns="probability")
    rows = rows.assign(place=rows["perturbation"].map(chosen.index), size=rows["effect"].abs())
    rows = rows.sort_values(["mechanism", "size"], ascending=[True, False], kind="stable")
    kept = ["perturbation", "mechanism", "probability", "effect", "effect_sd", "place"]
    return rows[[column for column in kept if column in rows]].reset_index(drop=True)


def side_by_side(entries: pd.DataFrame, titles: dict[int, str], chosen: list[str]) -> pd.DataFrame:
    """Return a table of mechanisms x chosen perturbations, each effect with its sd as text."""
    told = [f"{e.effect:+.2f} ± {e.effect_sd:.2f}" for e in entries.itertuples()]
    wide = masks.matrix(entries.assign(told=told), "told").T.reindex(columns=chosen)
    first = "mechanism" if "mechanism" not in chosen else "mechanism of the model"
    wide.insert(0, first, [titles.get(int(k), f"M{k}") for k in wide.index])
    return wide.reset_index(drop=True)


def network(
    model: Bundle,
    names: list[str],
    chosen: list[str],
    threshold: float,
    titles: dict[int, str],
) -> None:
    """Draw the network of perturbations and the mechanisms they use, and its table of links.

    `names` are the perturbations in it, unless a person asks for the chosen ones only.
    """
    only = False
    if chosen:
        only = st.toggle("Only the chosen perturbations", key="only", bind="query-params")
    found = results.network(model, chosen if only else names, threshold)
    edges = found.edges.sort_values(["mechanism", "effect"], ascending=[True, False])
    if edges.empty:
        record.info(
            f"There is nothing to link: none of these perturbations has a mask above {threshold:g}."
        )
        return
    charts.chart(
        maps.network(found.nodes, found.edges, titles, charts.dark()),
        "mechanism_network",
        f"Network of {len(found.nodes)} perturbations and mechanisms with {len(edges)} links",
    )
    count = found.nodes["kind"].value_counts()
    record.caption(
        f"{count['perturbation']} perturbations (circles) and the {count['mechanism']} mechanisms "
        f"(squares) they use: {len(edges)} links, each a mask probability above {threshold:g}. "
        "Solid: effect above zero. Dashed: below. Width: small, medium or large effect, a third of "
        "the links each. Positions come from the links alone; distances have no unit."
        + (
            f" **{found.left_out:,} links with smaller effects are left out** to keep it readable: "
            "raise the threshold, or find or choose perturbations."
            if found.left_out
            else ""
        )
    )
    with st.expander("Table of links"):
        kept = ["perturbation", "mechanism", "probability", "effect", "effect_sd"]
        table = edges[kept].assign(
            mechanism=[titles.get(int(k), f"M{k}") for k in edges["mechanism"]]
        )
        st.dataframe(
            table,
            hide_index=True,
            alt="Links of the network: perturbation, mechanism and effect",
            column_config=COLUMNS,
        )
        charts.downloads(table, "mechanism_network_links")
