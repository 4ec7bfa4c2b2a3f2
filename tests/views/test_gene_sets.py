"""The page Gene sets."""

from dataclasses import replace

import pytest

from samsvae_core.analysis import gene_rankings
from samsvae_core.bundle import opening
from samsvae_core.genesets import collections, enrichment, screening, terms
from tests.views.pages import ended, figures, finished, opened, table_with

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_all_mechanisms_are_tested_when_asked_and_named(one_model, tiny):
    page = opened("gene_sets", {"collections": ["hallmark", "reactome"]})
    assert finished(page)
    page.button(key="run all mechanisms").click().run()
    page = ended(page)
    assert finished(page)
    named = next(f.value for f in page.dataframe if "evidence" in f.value)
    ranked = gene_rankings.of_mechanisms(tiny)
    assert named["mechanism"].tolist() == [f"M{k}" for k in ranked.scores]
    sets = [collections.load_collection(name) for name in ("hallmark", "reactome")]
    table = enrichment.enrich(ranked.scores, sets).table
    expected = terms.suggested_names(table, list(ranked.scores))
    assert named["name"].tolist() == expected["name"].tolist()


def test_the_preview_is_that_of_the_library(one_model, tiny):
    page = opened("gene_sets", {"collections": ["hallmark"]})
    scores = gene_rankings.of_mechanisms(tiny).scores
    sets = collections.match(collections.load_collection("hallmark"), tiny.genes).collection
    z = screening.screen(scores, sets).z
    drawn = figures(page)[0]["data"][1]
    for place, text in zip(drawn["customdata"], drawn["text"], strict=True):
        term, _, k = place.rpartition("|M")
        assert f"{z.loc[term, int(k)]:+.2f}" in text


def test_no_collection_and_no_mechanism_are_said(one_model, shown):
    page = opened("gene_sets")
    page.multiselect(key="collections").set_value([]).run()
    assert "No collection is chosen" in page.info[0].value
    assert finished(page)
    shown("conditional-vae")
    page = opened("gene_sets")
    assert "no mechanisms" in page.info[0].value
    assert finished(page)


def test_what_the_bundle_holds_is_shown_without_a_test_while_its_sets_are_the_same(
    models, tiny, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("tested anew")

    monkeypatch.setattr(enrichment, "enrich", never)
    assert "nes" in table_with(opened("mechanism"), "leading_edge")
    assert "nes" in table_with(opened("gene_sets", {"collections": ["hallmark"]}), "leading_edge")
    bundle = opening.load(models / "tiny")
    other = replace(collections.load_collection("hallmark"), checksum="another release")
    assert bundle.holds(collections.load_collection("hallmark"))
    assert not bundle.holds(other)
