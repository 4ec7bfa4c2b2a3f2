"""The page Mechanism."""

import json

import pytest

from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.mechanism_names import Label, export_names
from samsvae_core.bundle import layout
from samsvae_core.genesets import collections, enrichment, terms
from tests.views.pages import ended, figures, finished, opened, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_the_enrichment_table_is_that_of_the_bundle(one_model, tiny):
    page = opened("mechanism")
    chosen = int(page.selectbox(key="m").value[1:])
    table = tiny.enrichment("hallmark").table
    expected = table[(table["mechanism"] == chosen) & (table["method"] == "gsea")]
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    best = terms.grouped(expected).query("group == term")
    assert shown["term"].tolist() == best["term"].tolist()
    assert shown["fdr"].tolist() == pytest.approx(best["fdr"].tolist())
    assert (shown["similar"] + 1).sum() == len(expected)
    page.toggle(key="similar").set_value(False).run()
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["fdr"].tolist() == pytest.approx(expected["fdr"].tolist())


def test_up_and_down_are_shown_apart(one_model):
    page = opened("mechanism", {"direction": "Down"})
    page.toggle(key="similar").set_value(False).run()
    shown = [f.value for f in page.dataframe if "direction" in f.value]
    directions = set(shown[0]["direction"]) if shown else {"down"}
    assert directions == {"down"}
    assert finished(page)


def test_a_mechanism_is_named_and_the_name_is_kept_beside_the_model(models, tiny):
    page = opened("mechanism")
    name = page.selectbox(key="m").value
    page.text_input[0].set_value("my <b>*name*</b>")
    page.text_area[0].set_value("a note")
    page.button[0].click().run()
    assert finished(page)
    assert r"my \<b\>\*name\*\</b\>" in page.subheader[0].value
    kept = json.loads((models / "tiny.names.json").read_text())
    assert kept["mechanisms"][name[1:]] == {"name": "my <b>*name*</b>", "note": "a note"}
    again = opened("mechanism")
    assert r"my \<b\>" in again.subheader[0].value
    assert list(layout.list_bundles(models)) == ["tiny"]


def test_names_of_another_model_are_told_of_and_not_shown(models):
    (models / "tiny.names.json").write_text(
        '{"schema": 1, "checksum": "other", "mechanisms": {"0": {"name": "theirs", "note": ""}}}'
    )
    page = opened("mechanism")
    assert any("another model" in warning.value for warning in page.warning)
    assert "theirs" not in page.subheader[0].value
    assert finished(page)


def test_a_collection_that_the_model_lacks_is_tested_when_it_is_chosen(one_model, tiny):
    page = ended(opened("mechanism", {"collection": "reactome"}))
    k = int(page.selectbox(key="m").value[1:])
    expected = enrichment.enrich(
        gene_rankings.of_mechanisms(tiny, [k]).scores, [collections.load_collection("reactome")]
    ).table
    expected = terms.grouped(expected[expected["method"] == "gsea"]).query("group == term")
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    assert shown["term"].tolist() == expected["term"].tolist()
    assert shown["nes"].tolist() == pytest.approx(expected["nes"].tolist())
    assert finished(page)


def test_choosing_another_mechanism_changes_its_genes(one_model):
    page = opened("mechanism")
    options = page.selectbox(key="m").options
    if len(options) < 2:
        pytest.fail("The test bundle needs two active mechanisms.")
    before = figures(page)[1]["data"][0]
    page.selectbox(key="m").select_index(1).run()
    assert figures(page)[1]["data"][0] != before
    assert finished(page)


def test_the_conditional_vae_has_loadings_that_no_perturbation_uses(shown):
    model = shown("conditional-vae")
    page = opened("mechanism")
    assert "No perturbation of Conditional VAE uses a latent dimension" in page.info[0].value
    assert page.selectbox(key="m").options == [f"M{k}" for k in range(4)]
    rows = model.loadings[model.loadings["mechanism"] == 0]
    assert len(page.dataframe[0].value) == len(rows)
    assert "Gene sets" not in [header.value for header in page.header]


def test_a_link_to_a_mechanism_holds_when_it_has_a_name(models, tiny):
    (models / "tiny.names.json").write_bytes(export_names(tiny, {1: Label("mine")}))
    page = opened("mechanism", {"m": "M1"})
    assert page.selectbox(key="m").value == "M1"
    assert page.subheader[0].value == "M1: mine"
    assert page.query_params["m"] == "M1"
    page.selectbox(key="m").select("M0").run()
    assert page.query_params.get("m", "") == ""  # the first of all


def test_a_link_to_a_gene_set_shows_its_genes(one_model, tiny):
    page = opened("mechanism")
    shown = next(f.value for f in page.dataframe if "term" in f.value)
    row = shown.iloc[1]
    page = opened("mechanism", {"set": f"hallmark|{row['term']}"})
    assert finished(page)
    assert f"**{terms.readable(row['term'])}** ({row['direction']})" in words(page)
