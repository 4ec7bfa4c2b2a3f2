"""Gene-set tests on a page: their settings, progress, results and downloads."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from app.components import charts
from app.figures import gene_plots
from app.session import gene_set_tests, page, record, url
from samsvae_core.analysis import enrichment_export
from samsvae_core.analysis.gene_rankings import Certainty, GeneRanking
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets import enrichment, questions, screening, symbols, terms
from samsvae_core.genesets.collections import Collection
from samsvae_core.genesets.enrichment import EnrichmentOptions
from samsvae_core.genesets.questions import Enrichment

METHODS = {"gsea": "Ranked (GSEA)", "ora": "Top genes (over-representation)"}
DIRECTIONS = {"both": "Both", "up": "Up", "down": "Down"}
TOP_BY = ("a number", "those certain to move")
MOMENT = 1.0  # seconds a page waits for a quick test before it shows a progress bar
POOL = (
    "FDR: Benjamini-Hochberg over the tests of one mechanism and collection, both directions in "
    "one pool"
)
BORDERLINE = (
    " Borderline: the FDR is within two sampling errors of the threshold, so another seed might "
    "decide otherwise."
)
OVER_ALL = "; FDR, all: over all mechanisms"
CAVEAT = (
    ". These tests treat genes as independent, which they are not, so a low FDR does not promise "
    "that a finding can be reproduced. Size counts measured genes."
)


def tested(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
    key: str,
    asked: bool,
) -> Enrichment | None:
    """Return the result, or None while the page shows a button, a progress bar or a problem.

    With `asked`, the tests start without the button. Results stored in the bundle are returned at
    once; other tests run in the background.
    """
    if ranked.caution:
        record.warning(ranked.caution)
    if (known := gene_set_tests.precomputed(model, ranked, collections, rules)) is not None:
        return known
    batch = gene_set_tests.batch(model, ranked, collections, rules, start=False)
    if batch is None:
        tests = len(collections) * len(ranked.scores.columns)
        if not asked and not st.button(
            f"Test now ({tests} {'ranking' if tests == 1 else 'rankings'})",
            key=f"run {key}",
            type="primary",
            icon=":material/play_arrow:",
            help="Takes a few seconds per hundred sets the first time; the result is kept.",
        ):
            return None
        batch = gene_set_tests.batch(model, ranked, collections, rules, start=True)
    if batch is None or not batch.wait(MOMENT):
        waiting(model, ranked, collections, rules, key)
        return None
    if batch.result is None:
        st.warning(page.plain(batch.problem))
        if st.button("Try again", key=f"again {key}"):
            gene_set_tests.forget_batch(model, ranked, collections, rules)
            gene_set_tests.batch(model, ranked, collections, rules, start=True)
            st.rerun()
    return batch.result


@st.fragment(run_every=0.5)
def waiting(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rules: EnrichmentOptions,
    key: str,
) -> None:
    """Draw the progress of the tests and the button that cancels them."""
    batch = gene_set_tests.batch(model, ranked, collections, rules, start=False)
    if batch is None or batch.ended:
        st.rerun()
        return
    done, total = batch.progress or (0, 0)
    left, right = st.columns([5, 1], vertical_alignment="center")
    said = f"{done} of {total} rankings tested" if total else "Waiting for another test to end"
    left.progress(done / total if total else 0.0, said)
    if right.button("Cancel", key=f"cancel {key}", icon=":material/close:"):
        batch.cancel()


def rules(model: Bundle) -> tuple[EnrichmentOptions, Certainty | None]:
    """Draw the settings of the tests and return them; the defaults are `enrichment.USUAL`."""
    with st.expander("How sets are tested"):
        left, middle, right = st.columns(3, gap="large")
        low, high = left.slider(
            "Measured genes of a set",
            2,
            1000,
            (enrichment.USUAL.min_size, enrichment.USUAL.max_size),
            key="set_sizes",
            bind="query-params",
            help="Smaller sets say little; larger ones are unspecific.",
        )
        seed = left.number_input("Seed", 0, 2**31, 0, key="seed", bind="query-params")
        url.unknown_option("top_by", TOP_BY, "choice of top genes")
        by = middle.segmented_control(
            "Top genes are",
            TOP_BY,
            default=TOP_BY[0],
            required=True,
            key="top_by",
            bind="query-params",
        )
        certainty, n_top = None, enrichment.USUAL.n_top
        if by == TOP_BY[1]:
            probability = middle.slider(
                "Probability of sign, at least",
                0.5,
                0.999,
                0.95,
                key="sign",
                bind="query-params",
                help="For a shift: the share of posterior draws with the sign of the mean. For a "
                "loading: from its standard error over reference cells, which is small, so let "
                "the effect decide.",
            )
            effect = middle.slider(
                "Effect, at least", 0.0, 2.0, 0.1, 0.05, key="effect", bind="query-params"
            )
            certainty, n_top = Certainty(probability, effect), None
        else:
            n_top = middle.slider(
                "Genes each way", 5, 200, enrichment.N_TOP, 5, key="n_top", bind="query-params"
            )
        listed = right.text_area(
            f"Background of top genes (empty: the {len(model.genes):,} genes of the model)",
            key="background",
            bind="query-params",
            placeholder="one gene per line",
            help="The universe of the over-representation test: those of these genes that belong "
            "to any set of the collection. Leave it empty unless you have a reason to change it.",
        )
        universe = tuple(dict.fromkeys(listed.replace(",", " ").split())) or None
        if universe:
            known, unknown = symbols.known_genes(universe, model.genes, model.genes_by_id)
            universe = (*known, *unknown)
            right.caption(f"{len(universe):,} genes, {len(known):,} of them in the model.")
            if unknown:
                right.caption(page.plain(symbols.describe_unknown(unknown, model.genes)))
    return EnrichmentOptions(int(low), int(high), int(seed), n_top, universe), certainty


def problems(result: Enrichment) -> None:
    """Draw the notes on what could not be tested and why."""
    found = screening.problems(result.notes)
    if found:
        with st.expander(f"{len(found)} notes on these tests", icon=":material/info:"):
            for line in found:
                record.markdown(f"- {page.plain(line)}")


def table_controls() -> tuple[str, str, bool]:
    """Which test is shown, of which direction, and whether similar sets are one row."""
    left, middle, right = st.columns([3, 2, 2], vertical_alignment="bottom")
    url.unknown_option("test", list(METHODS.values()), "test")
    url.unknown_option("direction", list(DIRECTIONS.values()), "direction")
    method = left.segmented_control(
        "Test",
        list(METHODS),
        default="gsea",
        required=True,
        format_func=METHODS.__getitem__,
        key="test",
        bind="query-params",
    )
    direction = middle.segmented_control(
        "Direction",
        list(DIRECTIONS),
        default="both",
        required=True,
        format_func=DIRECTIONS.__getitem__,
        key="direction",
        bind="query-params",
    )
    similar_as_one = right.toggle(
        "Similar sets as one row",
        value=True,
        key="similar",
        bind="query-params",
        help="Groups sets whose leading edges share at least half of their genes (Jaccard index) "
        "and shows the best of each group.",
    )
    return method or "gsea", direction or "both", similar_as_one


def table(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    result: Enrichment,
    key: str,
    mechanism: object,
    seed: int = 0,
) -> None:
    """Draw the tests of one mechanism or shift as a table, and the details of the clicked set."""
    rows = terms.grouped(result.table)
    rows = rows[rows["mechanism"] == mechanism].sort_values("p_value", kind="stable")
    method, direction, similar_as_one = table_controls()
    rows = rows[rows["method"] == method]
    if direction in ("up", "down"):
        rows = rows[rows["direction"] == direction]
    if rows.empty:
        record.info(
            "There is nothing to show here: no set could be tested this way (see the notes)."
        )
        return
    verdict = terms.verdicts(rows)
    passes, near = verdict == terms.VERDICTS[0], int((verdict == terms.VERDICTS[1]).sum())
    groups = int(((rows["group"] == rows["term"]) & passes).sum())
    shown = columns_shown(rows, verdict, similar_as_one)
    same = ["collection"] if len(collections) == 1 else []
    same += ["fdr_all"] if len(ranked.scores.columns) == 1 else []  # it equals fdr
    same += ["log2_error"] if method == "ora" else []  # an exact test
    shown = shown.drop(columns=same, errors="ignore")
    record.markdown(
        f"**{passes.sum()} of {len(rows)} tests pass {questions.PASSES:.0%} FDR**, {groups} after "
        f"similar ones are taken together{f'; **{near} borderline**' if near else ''}. Click a row "
        "to see its genes."
    )
    names = rows.loc[shown.index, "collection"] + "|" + rows.loc[shown.index, "term"]
    places = {name: place for place, name in reversed(list(enumerate(names)))}
    before = places.get(url.pressed_before("set"))
    event = st.dataframe(
        shown,
        hide_index=True,
        selection_default={"selection": {"rows": [] if before is None else [before]}},
        height=380,
        on_select="rerun",
        selection_mode="single-row",
        key=f"sets {key} {mechanism} {'|'.join(collections)} {method} {direction} {similar_as_one}",
        alt="Gene sets tested",
        column_config=COLUMNS,
    )
    record.caption(
        POOL + (OVER_ALL if "fdr_all" in shown else "") + CAVEAT + (BORDERLINE if near else "")
    )
    charts.downloads(shown, f"gene_sets_{enrichment_export.label(mechanism)}_{method}")
    clicked = getattr(event, "selection", {}).get("rows", [])
    now = str(names.iloc[clicked[0]]) if clicked else None
    chosen = url.pressed("set", now, places)
    row = rows.loc[shown.index[places[chosen] if chosen else 0]]
    detail(model, ranked, collections, rows, row, seed)


def columns_shown(rows: pd.DataFrame, verdict: pd.Series, similar_as_one: bool) -> pd.DataFrame:
    """Return the table as it is shown: with verdicts, and similar sets as one row if asked."""
    shown = rows.drop(columns=["mechanism", "method"]).dropna(axis=1, how="all")
    if similar_as_one:
        pool = rows.groupby(["collection", "direction", "group"])["term"].transform("size")
        shown.insert(shown.columns.get_loc("term") + 1, "similar", pool - 1)
        shown = shown[rows["group"] == rows["term"]].drop(columns="group")
    shown.insert(shown.columns.get_loc("fdr") + 1, "verdict", verdict.loc[shown.index])
    return shown.drop(columns=["fdr_low", "fdr_high"])


COLUMNS = {
    "term": st.column_config.TextColumn(width="large"),
    "es": st.column_config.NumberColumn("ES", format="%.3f", help="Enrichment score."),
    "nes": st.column_config.NumberColumn(
        "NES", format="%.2f", help="ES over the mean ES of the same sign under permutation."
    ),
    "size": st.column_config.NumberColumn(help="Measured genes of the set."),
    "overlap": st.column_config.NumberColumn(help="Genes in the leading edge."),
    "similar": st.column_config.NumberColumn(
        help="Sets with a similar leading edge, grouped with this one: click the row."
    ),
    "odds_ratio": st.column_config.NumberColumn("odds ratio", format="%.2f"),
    "p_value": st.column_config.NumberColumn("p", format="%.2g"),
    "log2_error": st.column_config.NumberColumn(
        "error of log2 p",
        format="%.2f",
        help="Standard error from sampling: 1 means that p is known to a factor of two.",
    ),
    "fdr": st.column_config.NumberColumn("FDR", format="%.2g"),
    "verdict": st.column_config.TextColumn(
        "at 5 % FDR",
        help="Borderline: within two sampling errors of the threshold, so another seed might "
        "decide otherwise.",
    ),
    "fdr_all": st.column_config.NumberColumn("FDR, all", format="%.2g"),
    "leading_edge": st.column_config.TextColumn("leading edge", width="large"),
}


def detail(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    rows: pd.DataFrame,
    row: pd.Series,
    seed: int,
) -> None:
    """Draw one set: its running sum, its leading edge, and similar sets."""
    left, right = st.columns([3, 2], gap="large")
    if row["method"] == "gsea":
        sets = gene_set_tests.matched(collections[row["collection"]], model.genes).collection.sets
        walk = enrichment.running_sum(ranked.scores[row["mechanism"]], sets[row["term"]], seed)
        with left:
            charts.chart(
                gene_plots.running_sum(walk, row["term"], charts.dark()),
                f"running_sum_{enrichment_export.label(row['mechanism'])}_{row['term']}",
                "Running sum of the gene set over the ranked genes",
            )
    with right if row["method"] == "gsea" else left:
        score = (
            f"NES {row['nes']:.2f}"
            if row["method"] == "gsea"
            else (f"odds ratio {row['odds_ratio']:.2f}")
        )
        told = terms.fdr_in_words(row.to_frame().T.assign(verdict=terms.verdicts).iloc[0])
        record.markdown(
            f"**{page.plain(terms.readable(row['term']))}** ({row['direction']}): {score}, "
            f"{told}; {row['overlap']} of {row['size']} measured genes "
            + ("in the leading edge." if row["method"] == "gsea" else "among the top genes.")
        )
        genes = [f"*{page.plain(gene)}*" for gene in row["leading_edge"].split(";") if gene]
        record.markdown(", ".join(genes) or "None of its genes.")
        alike = rows[
            (rows["group"] == row["group"])
            & (rows["collection"] == row["collection"])
            & (rows["direction"] == row["direction"])
            & (rows["term"] != row["term"])
        ]
        if len(alike):
            with st.expander(f"{len(alike)} sets much like it"):
                st.dataframe(
                    alike[["term", "size", "overlap", "nes", "fdr"]].dropna(axis=1, how="all"),
                    hide_index=True,
                    alt="Sets with much the same leading edge",
                    column_config=COLUMNS,
                )


def take_away(
    model: Bundle,
    ranked: GeneRanking,
    collections: Mapping[str, Collection],
    result: Enrichment,
    rules: EnrichmentOptions,
    key: str,
) -> None:
    """Draw the downloads of a result: workbook, zip, leading edges and methods text."""
    name = f"gene_sets_{model.name}_{ranked.name}"
    files = gene_set_tests.export_files(model, ranked, collections, result, rules)
    kinds = {
        "XLSX": ("xlsx", lambda: files()["enrichment.xlsx"]),
        "ZIP, all files": ("zip", lambda: enrichment_export.archive(files())),
        "Leading edges (GMT)": ("gmt", lambda: files()["leading_edges.gmt"]),
        "Methods text": ("md", lambda: files()["methods.md"]),
    }
    with st.container(horizontal=True):
        for label, (ending, made) in kinds.items():
            st.download_button(
                label,
                made,
                f"{name}.{ending}",
                key=f"{key} {ending}",
                icon=":material/download:",
                on_click="ignore",
                type="tertiary",
            )
