"""The page Gene sets: collections, a preview, and tests of all mechanisms at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts
from app.components import gene_sets as sets
from app.figures import heatmaps
from app.server import middleware
from app.session import gene_set_tests, given_names, page, record, url
from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.gene_rankings import Certainty, GeneRanking
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets import questions, screening, terms
from samsvae_core.genesets.collections import Collection, describe, overlap
from samsvae_core.genesets.enrichment import EnrichmentOptions
from samsvae_core.genesets.questions import Enrichment

N_TERMS = 4  # best sets of each mechanism in a map
MOST_TERMS = 40  # rows of a map; the table has all
SHORT = 34  # characters of a set's name beside a map


def gene_sets(model: Bundle) -> None:
    st.title("Gene sets")
    record.markdown(
        "Which known sets of genes does each mechanism move? Choose collections, look at the "
        "preview, then read the tests. For one mechanism at a time, see Mechanism."
    )
    above = st.container()
    add()  # first, so that what was added can be chosen at once
    with above:
        chosen = choose(model)
    if not chosen:
        record.info("No collection is chosen. Pick one above.")
        return
    if not model.model.has_shifts:
        record.info(
            f"No perturbation of {model.title} uses a latent dimension, so there are no mechanisms "
            "to test. Compose tests the predicted shift of a perturbation."
        )
        return
    if not active_mechanisms(model.masks):
        record.info(
            "No perturbation of this model uses a mechanism: none brought the evidence asked for. "
            "Compose tests the predicted shift of a perturbation."
        )
        return
    rules, certainty = sets.rules(model)
    ranked = gene_rankings.of_mechanisms(model, certainty=certainty)
    record.header("Preview")
    preview(model, ranked, chosen, rules)
    record.header("Tests")
    found = sets.tested(model, ranked, chosen, rules, "all mechanisms", asked=False)
    if found is None:
        return
    results(model, ranked, chosen, found, rules)


def choose(model: Bundle) -> dict[str, Collection]:
    """Draw the choice of collections and what they share with the model; return those chosen."""
    offered = gene_set_tests.collections()
    url.unknown_option("collections", list(offered), "collections")
    names = st.multiselect(
        "Collections",
        list(offered),
        default=["hallmark", "reactome"],
        key="collections",
        bind="query-params",
        help="Shipped with the program, brought by you, or fetched from Enrichr.",
    )
    chosen = {name: offered[name]() for name in names}
    if chosen:
        with st.expander("Where they come from, and what they share with this model"):
            table = pd.DataFrame([about(model, one) for one in chosen.values()])
            st.dataframe(table, hide_index=True, alt="The chosen collections")
            for one in chosen.values():
                record.caption(page.plain(describe(gene_set_tests.matched(one, model.genes))))
            charts.downloads(table, "collections")
            unmatched(model, chosen)
    return chosen


def about(model: Bundle, one: Collection) -> dict[str, object]:
    found = gene_set_tests.matched(one, model.genes)
    shared = overlap(found.collection, model.genes)
    return {
        "collection": one.name,
        "title": one.title,
        "version": one.version,
        "sets": len(one.sets),
        "sets of 5 to 500 measured genes": shared.n_sets,
        "genes": len(one.genes),
        "measured genes in it": shared.n_genes,
        "licence": one.licence,
        "source": one.source,
    }


def unmatched(model: Bundle, chosen: Mapping[str, Collection]) -> None:
    """Draw a table of the model's genes with their names in each collection."""
    rows = {}
    for name, one in chosen.items():
        found = gene_set_tests.matched(one, model.genes)
        other = found.renamed | found.by_case
        rows[name] = [
            "" if gene in found.unmatched else other.get(gene, gene) for gene in model.genes
        ]
    table = pd.DataFrame({"gene": model.genes, **rows})
    record.caption(
        "Each gene of the model, and its name in the collection; empty where it is in none."
    )
    st.dataframe(table, hide_index=True, height=220, alt="Genes matched to collections")
    charts.downloads(table, "genes_in_collections")


def add() -> None:
    """Draw the ways to add a collection: a GMT file, or a library of Enrichr."""
    with st.expander("Add a collection"):
        left, right = st.columns(2, gap="large")
        files = left.file_uploader(
            "GMT files of your own",
            type=["gmt", "gz", "txt"],
            accept_multiple_files=True,
            key="gmt",
            max_upload_size=middleware.expect(64),
            help="One line per set: name, description and genes, separated by tabs. Kept for this "
            "session only.",
        )
        brought = [file.name for file in files]
        for file in files:
            if brought.count(file.name) > 1:
                left.error(f"Two files are called {page.plain(file.name)}; rename one of them.")
                continue
            try:
                added = gene_set_tests.add_collection(file.getvalue(), file.name)
            except ValueError as error:
                left.error(page.plain(error))
            else:
                left.success(f"{page.plain(added.name)}: {len(added.sets):,} sets, added above.")
        name = right.text_input(
            "A library of Enrichr, by name",
            placeholder="MSigDB_Hallmark_2020",
            key="enrichr",
            help="Fetched from the internet through gseapy and kept on this computer with its date "
            "and checksum.",
        )
        if right.button("Fetch", key="fetch", disabled=not name, icon=":material/download:"):
            try:
                with st.spinner("Asking Enrichr, for at most a minute"):
                    fetched = gene_set_tests.fetch_enrichr(name.strip())
            except ValueError as error:
                right.error(page.plain(error))
            else:
                right.success(f"{len(fetched.sets):,} sets, {fetched.version}, added above.")


def preview(
    model: Bundle, ranked: GeneRanking, chosen: Mapping[str, Collection], rules: EnrichmentOptions
) -> None:
    """Draw rank sums of all sets and mechanisms; a click runs the real test of that mechanism."""
    url.unknown_option("previewed", [page.plain(each) for each in chosen], "collection")
    name = st.segmented_control(
        "Collection shown",
        list(chosen),
        default=next(iter(chosen)),
        required=True,
        format_func=page.plain,
        key="previewed",
        bind="query-params",
    )
    one = chosen.get(name or "", next(iter(chosen.values())))
    found = screening.screen(
        ranked.scores,
        gene_set_tests.matched(one, model.genes).collection,
        rules.min_size,
        rules.max_size,
    )
    if found.z.empty:
        record.info(
            f"No set of {page.plain(one.title)} has {rules.min_size} to {rules.max_size} measured "
            "genes. Change the sizes above, or choose another collection."
        )
        return
    best = best_rows(found.z)
    event = charts.chart(
        heatmaps.term_map(best, "z", charts.dark(), short(best)),
        f"preview_{one.name}",
        "Rank-sum preview of gene sets and mechanisms",
        clickable=True,
    )
    record.caption(
        f"A preview, not a test: z of the rank-sum of each set's loadings among all genes, for the "
        f"{N_TERMS} sets of largest |z| of each mechanism, {MOST_TERMS} at most. It finds sets "
        "that rank high or low as a whole; GSEA also finds those of which only a part does. Click "
        "a square to run the test of that mechanism."
    )
    if clicked := charts.clicked(event):
        test_of_one(model, int(clicked.rpartition("|M")[2]), one, ranked.certainty, rules)


def test_of_one(
    model: Bundle, k: int, one: Collection, certainty: Certainty | None, rules: EnrichmentOptions
) -> None:
    """Run the real test of mechanism `k` and draw its best sets."""
    record.subheader(f"M{k} in {page.plain(one.title)}")
    alone = gene_rankings.of_mechanisms(model, [k], certainty)
    tested = sets.tested(model, alone, {one.name: one}, rules, f"M{k} {one.name}", asked=True)
    if tested is None:
        return
    sets.problems(tested)
    first = tested.table[tested.table["method"] == "gsea"].head(8)
    first = first.assign(verdict=terms.verdicts(first))
    st.dataframe(
        first[["term", "direction", "size", "overlap", "nes", "p_value", "fdr", "verdict"]],
        hide_index=True,
        alt="The best sets of the mechanism by GSEA",
        column_config=sets.COLUMNS,
    )
    url.link(
        "mechanism",
        f"All of M{k}",
        ":material/arrow_forward:",
        {"m": f"M{k}", "collection": one.name},
    )


def best_rows(wide: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with the largest absolute values of each column, in turns by column."""
    best = [wide[column].abs().nlargest(N_TERMS).index for column in wide]
    turns = (index[turn] for turn in range(N_TERMS) for index in best if turn < len(index))
    return wide.loc[list(dict.fromkeys(turns))[:MOST_TERMS]]


def told_apart(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a column `set`: the term, with its collection if two have that term."""
    several = rows.groupby("term")["collection"].transform("nunique") > 1
    both = rows["term"] + " (" + rows["collection"] + ")"
    return rows.assign(set=rows["term"].where(~several, both))


def short(wide: pd.DataFrame) -> list[str]:
    """Return readable names of sets, shortened to `SHORT`."""
    names = [terms.readable(str(term)) for term in wide.index]
    return [n if len(n) <= SHORT else f"{n[: SHORT - 1].rstrip()}\u2026" for n in names]


def results(
    model: Bundle,
    ranked: GeneRanking,
    chosen: Mapping[str, Collection],
    found: Enrichment,
    rules: EnrichmentOptions,
) -> None:
    """Draw the results: suggested names, a map of all mechanisms, a table, and downloads."""
    sets.problems(found)
    names = terms.suggested_names(found.table, list(ranked.scores.columns)).reset_index()
    given = given_names.names(model)[0]
    own = [given[k].name if k in given else "" for k in names["mechanism"]]
    if any(own):
        names.insert(1, "your name", own)
    names["mechanism"] = [f"M{k}" for k in names["mechanism"]]
    st.dataframe(
        names,
        hide_index=True,
        alt="A suggested name for each mechanism",
        column_config={
            "name": st.column_config.TextColumn("suggested name", width="medium"),
            "evidence": st.column_config.TextColumn(width="large"),
        },
    )
    record.caption(
        "Names come from the strongest sets by GSEA that say different things and pass 5 % FDR, or "
        "are borderline, over the chosen collections. Rename mechanisms on Mechanism."
    )
    map_of_results(found, list(ranked.scores.columns))
    table_of_results(model, ranked, chosen, found, rules)


def map_of_results(found: Enrichment, mechanisms: list[int]) -> None:
    """Draw the scores of the sets that pass in any mechanism, or say that none does."""
    gsea = found.table[found.table["method"] == "gsea"]
    gsea = gsea.assign(verdict=terms.verdicts(gsea))
    passing = gsea[gsea["verdict"] != terms.VERDICTS[2]]
    if passing.empty:
        record.info(
            f"No set passes {questions.PASSES:.0%} FDR by GSEA, so there is no map to draw."
        )
    else:
        gsea, passing = told_apart(gsea), told_apart(passing)
        wide = gsea.pivot(index="set", columns="mechanism", values="nes")  # noqa: PD010
        wide = wide.reindex(columns=mechanisms)
        verdict = gsea.pivot(index="set", columns="mechanism", values="verdict")  # noqa: PD010
        kept = passing.sort_values(["mechanism", "p_value"])["set"].drop_duplicates()
        wide, verdict = (part.loc[kept[:MOST_TERMS]] for part in (wide, verdict.reindex_like(wide)))
        signs = ["\u2217", "?"]
        marks = pd.DataFrame(np.select([verdict == v for v in terms.VERDICTS[:2]], signs, ""))
        charts.chart(
            heatmaps.term_map(wide, "NES", charts.dark(), short(wide), marks),
            "term_map",
            "Normalised enrichment scores of sets that pass 5 % FDR in any mechanism",
        )
        record.caption(
            f"NES of the sets that pass {questions.PASSES:.0%} FDR in any mechanism (\u2217 where "
            "they do, ? where they are borderline)."
            + (f" The first {MOST_TERMS} of {len(kept)}." if len(kept) > MOST_TERMS else "")
        )


def table_of_results(
    model: Bundle,
    ranked: GeneRanking,
    chosen: Mapping[str, Collection],
    found: Enrichment,
    rules: EnrichmentOptions,
) -> None:
    """Draw the tests of one mechanism as a table, and the downloads."""
    labels = {exportable: f"M{exportable}" for exportable in ranked.scores.columns}
    url.unknown_option("sets_of", list(labels.values()), "mechanism")
    k = st.segmented_control(
        "Mechanism",
        list(labels),
        default=next(iter(labels)),
        required=True,
        format_func=labels.__getitem__,
        key="sets_of",
        bind="query-params",
    )
    sets.table(
        model, ranked, chosen, found, "all", next(iter(labels)) if k is None else k, rules.seed
    )
    record.subheader("Take away")
    record.markdown("All tests of all mechanisms and chosen collections, whatever is shown above.")
    sets.take_away(model, ranked, chosen, found, rules, "all mechanisms")


page.page(gene_sets)
