"""The page Partners."""

import pytest

from samsvae_core.analysis.partners import inert, pairs_to_rank, rank_pairs
from samsvae_core.bundle import opening
from samsvae_core.genesets import collections
from tests.views.pages import finished, opened, rewritten, table_with, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_partners_are_those_of_the_library_for_a_list_of_ones_own(one_model, tiny):
    page = opened("partners")
    page.segmented_control(key="genes_from").set_value("My own list").run()
    page.text_area(key="gene_list").set_value(
        f"{tiny.genes[0]}, {tiny.genes[1].lower()} NOPE"
    ).run()
    assert finished(page)
    assert "NOPE" in words(page)
    expected = rank_pairs(tiny, tiny.genes[:2])
    shown = table_with(page, "sum_of_singles")
    assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())
    assert shown["first"].tolist() == expected["first"].tolist()
    page.selectbox(key="pair_with").set_value("P2").run()
    page.toggle(key="unseen").set_value(False).run()
    shown = table_with(page, "sum_of_singles")
    assert set(shown["first"]) == {"P2"}
    assert len(shown) == 5 - len(inert(tiny))


@pytest.mark.usefixtures("edited")
def test_item_11_partners_say_which_pairs_are_left_out_and_raise_or_lower(models, tiny):
    rewritten(opening.load(models / "tiny"), "direct.csv", tiny.direct.assign(active=False))
    tiny = opening.load(models / "tiny")
    page = opened("partners")
    term = page.selectbox(key="set_hallmark").value
    genes = collections.usable_sets(collections.load_collection("hallmark"), tiny.genes)[term]
    n = len(pairs_to_rank(tiny, with_inert=True)) - len(pairs_to_rank(tiny))
    assert n
    assert f"{n} pairs are left out" in words(page)
    page.toggle(key="inert").set_value(True).run()
    assert "pairs are left out" not in words(page)
    assert len(table_with(page, "sum_of_singles")) == len(pairs_to_rank(tiny, with_inert=True))
    page.toggle(key="inert").set_value(False).run()
    for way in ("raise", "lower"):
        page.segmented_control(key="move").set_value(way.capitalize()).run()
        assert finished(page)
        expected = rank_pairs(tiny, genes, direction=way)
        if expected.empty:
            assert f"No pair is predicted to {way} the genes" in words(page)
        else:
            assert f"would {way} the" in words(page)
            shown = table_with(page, "sum_of_singles")
            assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())
    page.selectbox(key="pair_with").set_value(inert(tiny)[0]).run()
    assert f"{inert(tiny)[0]} uses no mechanism and has no direct effect that stands out" in words(
        page
    )
    assert finished(page)


def test_partners_of_a_known_set_are_of_its_measured_genes(one_model, tiny):
    page = opened("partners")
    assert finished(page)
    term = page.selectbox(key="set_hallmark").value
    sets = collections.usable_sets(collections.load_collection("hallmark"), tiny.genes)
    expected = rank_pairs(tiny, sets[term])
    shown = table_with(page, "sum_of_singles")
    assert shown["score"].tolist() == pytest.approx(expected["score"].tolist())
