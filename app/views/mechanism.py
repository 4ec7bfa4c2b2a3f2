"""The page Mechanism: the perturbations that use it, its genes, and its gene sets."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import charts, mechanisms
from app.components import gene_sets as sets
from app.components.units import scale
from app.figures import gene_plots
from app.server import middleware
from app.session import choices, gene_set_tests, given_names, page, record, results, url
from samsvae_core.analysis import gene_rankings, loadings, masks
from samsvae_core.analysis.mechanism_names import Label
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.enrichment import USUAL

N_BARS = 40  # perturbations drawn; the table beside has all
N_NAMED = 30  # perturbations in a sentence


def mechanism(model: Bundle) -> None:
    st.title("Mechanism")
    if not model.model.has_shifts:
        unused(model)
        return
    active = masks.active_mechanisms(model.masks)
    if not active:
        record.info(
            "No perturbation of this model uses a mechanism: none brought the evidence asked for. "
            "Train with a lower --mask-evidence, or with more cells."
        )
        return
    if not model.model.has_masks:
        record.markdown(
            f"{model.title} has no mask, so every perturbation moves every latent dimension, some "
            "of them hardly. For what a perturbation does as a whole, see Compose."
        )
    labels, problem = given_names.names(model)
    k = choice(
        active,
        "Mechanisms that at least one perturbation uses, numbered by how many do.",
        labels=labels,
    )
    page.subject(f"M{k}")
    naming(model, k, labels, problem)
    users(model, k)
    record.header("Genes it moves")
    genes(model, k)
    record.header("Gene sets")
    gene_sets(model, k)


def choice(
    mechanisms: list[int],
    meaning: str,
    title: str = "Mechanism",
    labels: dict[int, Label] | None = None,
) -> int:
    """Draw the picker and return the mechanism; links hold its number even if it has a name."""
    names = {f"M{k}": "" for k in mechanisms}
    names |= {f"M{k}": label.name for k, label in (labels or {}).items() if f"M{k}" in names}
    choices.initial_mechanism(list(names))
    chosen = st.selectbox(
        title,
        list(names),
        key="m",
        persist_state="session",
        help=meaning,
        format_func=lambda name: f"{name}: {names[name]}" if names.get(name) else name,
    )
    choices.keep(choices.MECHANISM, chosen, next(iter(names)))
    return int(chosen[1:])


def naming(model: Bundle, k: int, labels: dict[int, Label], problem: str) -> None:
    """Draw the mechanism's name, given or suggested, its note, and the form to change them."""
    own = labels.get(k, Label("", ""))
    suggested = mechanisms.suggestions(model, [k])[k]
    title = own.name or suggested["name"]
    record.subheader(f"M{k}: {page.plain(title)}")
    record.caption(
        ("Named by you. Suggested: " + page.plain(suggested["name"]) + ". " if own.name else "")
        + f"Evidence: {page.plain(suggested['evidence'])}"
        + (
            ""
            if own.name or suggested["name"] == "unnamed"
            else ". A suggestion from gene sets, not a finding."
        )
    )
    if own.note:
        record.markdown(page.plain(own.note).replace("\n", "  \n"))
    if problem:
        st.warning(page.plain(problem))
    with st.expander("Name it, add a note"):
        with st.form(f"label M{k}", border=False):
            name = st.text_input("Name", own.name, placeholder=title, max_chars=80)
            note = st.text_area("Note", own.note, max_chars=2000)
            if st.form_submit_button("Keep", icon=":material/check:"):
                keep(model, labels | {k: Label(name, note)})
        left, right = st.columns(2, vertical_alignment="bottom")
        left.download_button(
            "All names and notes (JSON)",
            given_names.export_names(model, labels),
            f"{model.name}.names.json",
            key="names file",
            icon=":material/download:",
            on_click="ignore",
        )
        file = right.file_uploader(
            "Names from a file",
            type="json",
            key="names upload",
            max_upload_size=middleware.expect(1),
        )
        if file and right.button("Use these names", key="use names"):
            try:
                brought = given_names.import_names(model, file.getvalue())
            except ValueError as error:
                st.error(page.plain(error))
            else:
                keep(model, labels | brought)
        record.caption(f"Kept in {page.plain(given_names.names_file(model))}, beside the model.")


def keep(model: Bundle, labels: dict[int, Label]) -> None:
    try:
        given_names.keep_names(model, labels)
    except ValueError as error:
        st.error(page.plain(error))
    else:
        st.rerun()


def unused(model: Bundle) -> None:
    """Draw the genes of a latent dimension that no perturbation uses, and say why."""
    record.info(
        f"No perturbation of {model.title} uses a latent dimension: its networks read the "
        "perturbation itself. Below is what each dimension changes between cells, whatever their "
        "perturbation. See what a perturbation does to genes on Compose, or choose another model."
    )
    url.link("compose", "Open Compose", ":material/arrow_forward:")
    k = choice(
        list(range(model.model.config.n_latent)),
        "Latent dimensions of a cell's own state, in no particular order.",
        "Latent dimension",
    )
    record.header("Genes it changes")
    genes(model, k)


def users(model: Bundle, k: int) -> None:
    used = masks.used_by(model, k)
    shown = used.drop(columns="active")
    if model.model.has_masks:
        named = ", ".join(page.plain(name) for name in used["perturbation"][:N_NAMED])
        more = f" and {len(used) - N_NAMED} more" if len(used) > N_NAMED else ""
        record.markdown(
            f"**Used by {len(used)}**: {named}{more}. Up is the direction in which they move "
            "it, on average."
        )
    else:
        shown = shown.drop(columns="probability")
        record.markdown(
            f"**Moved by all {len(used)} perturbations.** Up is the direction in which they move "
            "it, on average."
        )
    left, right = st.columns(2, gap="large")
    with left:
        top = used.head(N_BARS)
        charts.chart(
            mechanisms.effects(top["perturbation"], top),
            f"users_M{k}",
            "Effect of each perturbation on this mechanism",
        )
        record.caption(
            mechanisms.WHISKERS
            + (f" The {N_BARS} largest of {len(used)}." if len(used) > N_BARS else "")
        )
    with right:
        st.dataframe(
            shown,
            hide_index=True,
            placeholder="\u2013",
            alt="Perturbations that use this mechanism",
            column_config=mechanisms.COLUMNS,
        )
        record.caption(mechanisms.EVIDENCE)
        charts.downloads(shown, f"users_M{k}")


def genes(model: Bundle, k: int) -> None:
    rows = model.loadings[model.loadings["mechanism"] == k].drop(columns="mechanism")
    n = st.slider("Genes shown each way", 5, 40, 15, key="n_each", bind="query-params")
    up = rows[rows["loading"] > 0].nlargest(n, "loading")
    down = rows[rows["loading"] < 0].nsmallest(n, "loading")
    for column, title, part in zip(
        st.columns(2, gap="large"), ("Up", "Down"), (up, down), strict=True
    ):
        with column:
            record.subheader(title)
            frame = gene_plots.with_interval(part["gene"], part["loading"], part["se"])
            if part.empty:
                record.caption("No gene has a loading of this sign.")
                continue
            charts.chart(
                gene_plots.bars(frame, f"loading ({scale(model).unit})", charts.dark()),
                f"genes_{title.lower()}_M{k}",
                f"Genes with the largest loadings, {title.lower()}",
            )
    record.caption(
        f"Loading: {scale(model).loading} {step_in_words(rows['step'].iloc[0])}; basal states "
        f"are those of the reference control cells, averaged over {len(model.reference.loc)} of "
        "them; whiskers: 90 % interval over cells. The decoder is not linear: another step need "
        "not move genes in proportion."
    )
    straightness(model, k)
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
        charts.downloads(shown, f"loadings_M{k}")


def step_in_words(step: float) -> str:
    """Return words for how far the mechanism was moved for its loadings."""
    if not step:
        return "per prior standard deviation, when this mechanism moves by one up and one down"
    return (
        f"per prior standard deviation, when this mechanism moves by {step:+.2f} of them, the mean "
        "size of the effects of its perturbations"
    )


def straightness(model: Bundle, k: int) -> None:
    """Draw whether other steps and the other direction move genes in proportion."""
    curves = results.curves(model, k)
    row = loadings.linearity(curves).loc[k]
    icon = ":material/trending_flat:" if row["linear"] else ":material/moving:"
    with st.container(horizontal=True):
        st.markdown(icon, width="content")
        record.markdown(page.plain(row["words"]))
    with st.expander("Loadings at other steps and in the other direction"):
        multiples = sorted(curves["multiple"].unique())
        by_step = {
            f"{m:+g} of the step": curves[curves["multiple"] == m].set_index("gene")
            for m in multiples
        }
        wide = pd.DataFrame({name: part["loading"] for name, part in by_step.items()})
        errors = pd.DataFrame({f"se {name}": part["se"] for name, part in by_step.items()})
        shown = wide.join(errors).sort_values(f"{1:+g} of the step", ascending=False).reset_index()
        st.dataframe(
            shown,
            hide_index=True,
            alt="Loading of every gene at several steps",
            column_config={
                name: st.column_config.NumberColumn(format="%.4f")
                for name in shown
                if name != "gene"
            },
        )
        record.caption(
            "Each is the mean over reference cells of [y(z + s) - y(z)] / s at a step s, with its "
            "standard error over those cells; for a linear decoder all would be the same. A "
            "mechanism is called linear if steps from -1 to 1 of the whole agree with r of at "
            "least 0.95 and their sizes within a quarter."
        )
        charts.downloads(shown, f"loadings_by_step_M{k}")


def gene_sets(model: Bundle, k: int) -> None:
    offered = gene_set_tests.collections()
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    url.unknown_option("collection", list(offered), "collection")
    name = left.selectbox("Collection", list(offered), key="collection", bind="query-params")
    with right:
        url.link("gene_sets", "All mechanisms, your own sets", ":material/arrow_forward:")
    chosen = {name: offered[name]()}
    ranked = gene_rankings.of_mechanisms(model, [k])
    found = sets.tested(model, ranked, chosen, USUAL, f"M{k} {name}", asked=True)
    if found is None:
        return
    sets.problems(found)
    sets.table(model, ranked, chosen, found, f"M{k}", k)
    sets.take_away(model, ranked, chosen, found, USUAL, f"M{k} {name}")


page.page(mechanism)
