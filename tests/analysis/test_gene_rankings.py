import numpy as np
import pytest

from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.compose import compose
from samsvae_core.analysis.gene_rankings import Certainty
from samsvae_core.bundle.opening import load
from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.enrichment import USUAL, enrich


def test_mechanisms_are_ranked_by_the_loadings_of_the_bundle(tiny):
    ranked = gene_rankings.of_mechanisms(tiny)
    assert list(ranked.scores) == sorted(tiny.masks.loc[tiny.masks["active"], "mechanism"].unique())
    for k in ranked.scores:
        rows = tiny.loadings[tiny.loadings["mechanism"] == k].set_index("gene")
        assert ranked.scores[k].to_dict() == rows["loading"].to_dict()
    assert list(ranked.scores.index) == tiny.genes


def test_certain_are_those_whose_sign_and_size_are(tiny):
    ranked = gene_rankings.of_mechanisms(tiny, certainty=Certainty(0.975, 0.05))
    k = ranked.scores.columns[0]
    rows = tiny.loadings[tiny.loadings["mechanism"] == k].set_index("gene").loc[tiny.genes]
    expected = (rows["loading"].abs() > 1.96 * rows["se"]) & (rows["loading"].abs() >= 0.05)
    assert ranked.moved[k].tolist() == expected.tolist()
    assert 0 < expected.sum() < len(expected)


def test_a_shift_is_ranked_by_its_mean_and_certain_by_its_draws(tiny):
    shift = compose(tiny, {"P1": 1.0, "P2": 0.5})
    ranked = gene_rankings.of_shift(shift, Certainty(0.9, 0.1))
    assert ranked.scores["P1+P2:0.5"].tolist() == shift.table["shift"].tolist()
    table = shift.table
    expected = (table["probability_of_sign"] >= 0.9) & (table["shift"].abs() >= 0.1)
    assert ranked.moved["P1+P2:0.5"].tolist() == expected.tolist()
    assert "P1+P2:0.5" in ranked.definition
    assert "64 posterior draws, seed 0" in ranked.definition


def test_a_shift_without_a_mechanism_says_so_wherever_it_is_named(tiny):
    ranked = gene_rankings.of_shift(compose(tiny, {"P1": 1.0}, without=[0, 2]))
    assert ranked.name == "P1 without M0, M2"
    assert list(ranked.scores) == ["P1 without M0, M2"]
    assert "the predicted shift of P1 without M0, M2 (" in ranked.definition


def test_mechanisms_that_are_not_there_are_refused(tiny, copied):
    with pytest.raises(ValueError, match="no mechanism 9; this model has 0 to 3"):
        gene_rankings.of_mechanisms(tiny, [0, 9])
    bundle = load(copied)
    bundle.__dict__["masks"] = bundle.masks.assign(active=False)
    with pytest.raises(ValueError, match="No mechanism of copied is in use"):
        gene_rankings.of_mechanisms(bundle)


def test_what_is_gathered_tells_how_it_was_made(tiny):
    rules = USUAL._replace(n_top=7, universe=("STAT1", "IRF1"), min_size=3)
    ranked, sets = gene_rankings.of_mechanisms(tiny, [0]), [load_collection("hallmark")]
    found = enrich(ranked.scores, sets, USUAL)
    results = gene_rankings.gathered(tiny, ranked, sets, found, rules)
    assert "group" in results.enrichment.table
    assert results.names.index.tolist() == [0]
    settings = results.settings
    assert (settings["min_size"], settings["background_size"]) == (3, 2)
    assert settings["background"] == "a list of the user's own"
    assert settings["top"] == "the 7 genes with the highest (up) or lowest (down) scores"
    assert settings["checksum"] == tiny.checksum
    step = tiny.loadings.loc[tiny.loadings["mechanism"] == 0, "step"].iloc[0]
    assert (f"M0 {step:+.2f}" if step else "M0 ±1") in settings["ranked"]
    assert np.isin(list(results.collections[0].genes), tiny.genes).sum() == 40


def test_a_shift_in_which_nothing_is_certain_carries_a_caution(tiny):
    moved = compose(tiny, {"P1": 1.0})
    kind = "calibrated_" if moved.table["calibrated_lower"].notna().any() else ""
    lower, upper = moved.table[f"{kind}lower"], moved.table[f"{kind}upper"]
    assert bool(gene_rankings.of_shift(moved).caution) == (not ((lower > 0) | (upper < 0)).any())
    still = moved.table.assign(**{f"{kind}lower": -1.0, f"{kind}upper": 1.0})
    assert "may be noise" in gene_rankings.doubt(still)
    certain = still.copy()
    certain.loc[certain.index[0], f"{kind}lower"] = 0.5
    assert gene_rankings.doubt(certain) == ""
