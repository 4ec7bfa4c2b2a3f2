"""The page Partners: which pairs of perturbations would move a list of genes most."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from app.components import charts
from app.components.units import scale
from app.figures import gene_plots
from app.session import composition, gene_set_tests, page, record, results, url
from samsvae_core.analysis.partners import Direction, inert, n_inert_pairs, pairs_to_rank
from samsvae_core.analysis.support import SUPPORT
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets import symbols, terms

ANY = "any"
N_BEST = 20
WAYS = ("A known set", "My own list")
N_BARS = 20
DIRECTIONS: dict[str, Direction] = {
    "Move most, either way": "either",
    "Raise": "raise",
    "Lower": "lower",
}
VERBS = {"either": "move", "raise": "raise", "lower": "lower"}


def partners(model: Bundle) -> None:
    st.title("Partners")
    record.markdown(
        "Which two perturbations, given together, would move a list of genes most, or raise it, or "
        "lower it? Every pair is predicted; the best are shown with what each does alone. This is "
        "a prediction, to help choose the next experiment, not a finding."
    )
    if not model.model.composes:
        record.info(
            f"{model.title} takes every combination as a treatment of its own and cannot put "
            "perturbations together. Choose another model at the side."
        )
        return
    genes, name = listed(model)
    if not genes:
        return
    question = asked(model)
    found = results.ranked_pairs(model, tuple(genes), N_BEST, question)
    folded = folded_away(model, question)
    if found.empty:
        record.info(nothing(model, question, name, folded))
        return
    answer(model, found, genes, name, VERBS[question.direction])
    drawing, table = st.columns([2, 3], gap="large")
    with drawing:
        bars(model, found, name)
    with table:
        rows(found, name, f"{model.checksum} {question} {' '.join(genes)}")


def asked(model: Bundle) -> results.Question:
    """Draw the direction, the fixed partner and the filters, and return them."""
    url.unknown_option("move", list(DIRECTIONS), "direction")
    way = st.segmented_control(
        "What the pair should do to them, by the mean over the genes",
        list(DIRECTIONS),
        default=next(iter(DIRECTIONS)),
        required=True,
        key="move",
        bind="query-params",
    )
    left, right = st.columns([2, 3], gap="large", vertical_alignment="bottom")
    names = [ANY, *map(str, model.perturbations.index)]
    url.unknown_option("pair_with", names, "perturbation")
    given = left.selectbox(
        "One of the two is",
        names,
        key="pair_with",
        bind="query-params",
    )
    with right:
        unseen = st.toggle(
            "Only pairs that were not trained on", value=True, key="unseen", bind="query-params"
        )
        with_inert = bool(inert(model)) and st.toggle(
            "Also pairs with a partner that does nothing",
            key="inert",
            bind="query-params",
            help=f"A perturbation that {idle_in_words(model)} moves almost nothing, so a pair with "
            "it does what the other does alone.",
        )
    direction = DIRECTIONS[way or next(iter(DIRECTIONS))]
    return results.Question(None if given == ANY else given, unseen, direction, with_inert)


def folded_away(model: Bundle, question: results.Question) -> int:
    """Return how many pairs are left out for a partner that does nothing, and say so."""
    idle = inert(model)
    if question.with_inert or not idle:
        return 0
    n = n_inert_pairs(model, question.given, question.unseen_only)
    if n:
        record.caption(
            f"{n:,} pairs are left out, as one of their partners or both {idle_in_words(model, 2)} "
            f"({len(idle)} of {len(model.perturbations)} perturbations): such a pair does what the "
            "other does alone."
        )
    return n


def idle_in_words(model: Bundle, n: int = 1) -> str:
    """Return what `inert` means in this model, said of one perturbation or of `n`."""
    use, have = ("uses", "has") if n == 1 else ("use", "have")
    said = f"{use} no mechanism"
    return said if model.direct is None else f"{said} and {have} no direct effect that stands out"


def nothing(model: Bundle, question: results.Question, name: str, folded: int) -> str:
    """Return why there is no pair to show."""
    if len(model.perturbations) < 2:
        return "This model has one perturbation, so there is no pair."
    if question.given in inert(model) and not question.with_inert:
        return (
            f"{page.plain(question.given)} {idle_in_words(model)}, so with any other it does what "
            "the other does alone. Choose another, or switch such pairs on."
        )
    if pairs_to_rank(model, question.given, question.unseen_only, question.with_inert):
        verb = VERBS[question.direction]
        return f"No pair is predicted to {verb} the genes of {page.plain(name)} on average."
    if question.unseen_only:
        rest = " that is not left out" if folded else ""
        return f"Every such pair{rest} was trained on. Switch the filter off to see them."
    return (
        f"All perturbations of this model but one at most {idle_in_words(model, 2)}. Switch such "
        "pairs on to see them."
    )


def listed(model: Bundle) -> tuple[list[str], str]:
    """Draw the choice of genes, a known set or one's own list; return them and their name."""
    offered = gene_set_tests.collections()
    url.unknown_option("genes_from", WAYS, "kind of list")
    how = st.segmented_control(
        "Genes",
        WAYS,
        default=WAYS[0],
        required=True,
        key="genes_from",
        bind="query-params",
    )
    if how == WAYS[1]:
        text = st.text_area(
            "Gene symbols", key="gene_list", bind="query-params", placeholder="STAT1 IRF1 JAK2"
        )
        given = list(dict.fromkeys(text.replace(",", " ").split()))
        known, unknown = symbols.known_genes(given, model.genes, model.genes_by_id)
        if unknown:
            record.caption(page.plain(symbols.describe_unknown(unknown, model.genes)))
        if not known:
            record.info("Write one or more genes of this model, by any of their names.")
        return known, "my list"
    left, right = st.columns([2, 3], gap="large")
    url.unknown_option("collection", list(offered), "collection")
    collection = left.selectbox("Collection", list(offered), key="collection", bind="query-params")
    sets = gene_set_tests.usable_sets(offered[collection](), model.genes)
    if not sets:
        record.info("No set of this collection has 5 or more measured genes. Choose another.")
        return [], ""
    labels = {term: f"{terms.readable(term)} ({len(sets[term])})" for term in sorted(sets)}
    url.unknown_option(f"set_{collection}", list(labels.values()), "gene set")
    term = right.selectbox(
        f"Set (of {len(sets):,} with 5 or more measured genes)",
        list(labels),
        index=list(labels).index(max(sorted(sets), key=lambda term: len(sets[term]))),
        format_func=labels.__getitem__,
        key=f"set_{collection}",
        bind="query-params",
    )
    return list(sets[term]), terms.readable(term)


def answer(model: Bundle, found: pd.DataFrame, genes: list[str], name: str, verb: str) -> None:
    top = found.iloc[0]
    reach = ""
    if pd.notna(top["lower"]):
        reach = f" (the model's own 90 % interval {top['lower']:+.2f} to {top['upper']:+.2f})"
    record.markdown(
        f"**{page.plain(top['first'])} and {page.plain(top['second'])}** would {verb} the "
        f"{len(genes)} genes of {page.plain(name)} most: {top['score']:+.2f} {scale(model).unit} "
        f"on average{reach}; each alone, added up: {top['sum_of_singles']:+.2f}. "
        f"{SUPPORT[top['support']]}"
    )
    record.caption(
        "Be careful where both act through one mechanism (two parts of one pathway): the model "
        "adds their latent shifts and goes further than any cell it has seen, but in truth the "
        "second may add nothing. Masks shows who shares what."
    )


def bars(model: Bundle, found: pd.DataFrame, name: str) -> None:
    frame = found.head(N_BARS).rename(columns={"score": "value"})
    frame = frame.assign(label=frame["first"] + " + " + frame["second"])
    charts.chart(
        gene_plots.bars(frame, f"mean shift ({scale(model).unit})", charts.dark(), genes=False),
        "pairs",
        f"Pairs by their predicted mean shift of {name}",
    )
    record.caption(
        f"Mean over the genes of the predicted shift, at dosage 1. {scale(model).shift} Whiskers: "
        "the model's own 90 % interval over 64 posterior draws, usually too narrow: it leaves "
        "out how wrong the model may be on pairs it has not seen (Overview shows how wrong it was "
        "on held-out ones). All pairs are screened at their mean effects; the "
        f"{N_BEST} best are composed with draws."
    )


MEANING = {
    "score": "Mean over the genes of the predicted shift of the pair.",
    "lower": "Lower end of the model's own 90 % interval.",
    "upper": "Upper end of the model's own 90 % interval.",
    "probability_of_sign": "Share of posterior draws with the sign of the mean.",
    "sum_of_singles": "The same of each perturbation alone, added up.",
    "interaction": "Score minus sum of singles: the decoder's curvature, not learned epistasis.",
    "interaction_lower": "Lower end of its own 90 % interval.",
    "interaction_upper": "Upper end of its own 90 % interval.",
}


def rows(found: pd.DataFrame, name: str, question: str) -> None:
    """Draw the table of pairs; the selected row is kept for each question separately."""
    shown = found.dropna(axis=1, how="all")
    event = st.dataframe(
        shown,
        hide_index=True,
        height=gene_plots.bars_height(min(len(found), N_BARS)),
        on_select="rerun",
        selection_mode="single-row",
        key=f"pairs {question}",
        alt="Pairs of perturbations by their predicted shift of the genes",
        column_config={
            column: st.column_config.NumberColumn(
                column.replace("_", " "),
                format="%.3f" if column == "probability_of_sign" else "%+.3f",
                help=meaning,
            )
            for column, meaning in MEANING.items()
        },
    )
    clicked = getattr(event, "selection", {}).get("rows", [])
    one = found.iloc[clicked[0] if clicked else 0]
    pair = [str(one["first"]), str(one["second"])]
    url.link(
        "compose",
        f"{' and '.join(map(page.plain, pair))} in Compose, all genes",
        ":material/arrow_forward:",
        {"c": composition.as_link(dict.fromkeys(pair, 1.0))},
    )
    record.caption("Click a row for another pair.")
    charts.downloads(shown, f"pairs_{name}")


page.page(partners)
