from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from samsvae_core.analysis.compose import compare, compose
from samsvae_core.analysis.partners import COLUMNS, inert, pairs_to_rank, rank_pairs


def mean_shift(tiny, dosages, genes):
    return compose(tiny, dosages).table.loc[genes, "shift"].mean()


def test_pairs_are_ranked_as_each_is_composed(tiny):
    genes = tiny.genes[:7]
    found = rank_pairs(tiny, genes, unseen_only=False, n_best=30, with_inert=True)
    names = list(tiny.perturbations.index)
    assert len(found) == 15
    assert {tuple(pair) for pair in found[["first", "second"]].to_numpy()} == set(
        combinations(names, 2)
    )
    assert found["score"].abs().is_monotonic_decreasing
    for row in found.itertuples():
        both = mean_shift(tiny, {row.first: 1.0, row.second: 1.0}, genes)
        alone = [mean_shift(tiny, {name: 1.0}, genes) for name in (row.first, row.second)]
        assert row.score == pytest.approx(both, abs=1e-6)
        assert row.sum_of_singles == pytest.approx(sum(alone), abs=1e-6)
        assert row.interaction == pytest.approx(both - sum(alone), abs=1e-6)
        assert row.lower <= row.score <= row.upper
        assert row.support == compose(tiny, {row.first: 1.0, row.second: 1.0}).support


def test_the_screen_finds_the_best_pair_of_all(tiny):
    genes = tiny.genes[:5]
    every = rank_pairs(tiny, genes, unseen_only=False, n_best=30, with_inert=True)
    few = rank_pairs(tiny, genes, unseen_only=False, n_best=5, with_inert=True)
    assert few.iloc[0].tolist() == every.iloc[0].tolist()


def test_pairs_that_were_measured_are_left_out_where_unseen_ones_are_asked_for(tiny):
    measured = {name for name in tiny.conditions.index if "+" in name}
    assert measured
    found = rank_pairs(tiny, tiny.genes[:3], n_best=30, with_inert=True)
    assert len(found) == 15 - len(measured)
    assert not measured & {"+".join(sorted(pair)) for pair in found[["first", "second"]].to_numpy()}


def test_partners_of_one_perturbation(tiny):
    found = rank_pairs(tiny, tiny.genes[:3], given="P2", unseen_only=False, with_inert=True)
    assert set(found["first"]) == {"P2"}
    assert set(found["second"]) == set(tiny.perturbations.index) - {"P2"}


def test_lists_that_make_no_sense_are_refused(tiny, monkeypatch):
    with pytest.raises(ValueError, match="NOPE, not among them"):
        rank_pairs(tiny, ["NOPE"])
    with pytest.raises(ValueError, match="found none"):
        rank_pairs(tiny, [])
    with pytest.raises(ValueError, match="Did you mean"):
        rank_pairs(tiny, tiny.genes[:1], given="P22")
    monkeypatch.setattr("samsvae_core.analysis.partners.MAX_PAIRS", 3)
    with pytest.raises(ValueError, match=r"3 is the most\. Name one of the two"):
        rank_pairs(tiny, tiny.genes[:1])


def test_item_11_genes_are_raised_or_lowered_as_asked(tiny):
    genes = tiny.genes[:7]
    every = rank_pairs(tiny, genes, unseen_only=False, n_best=30)
    assert (every["score"] < 0).any()
    lower = rank_pairs(tiny, genes, unseen_only=False, n_best=30, direction="lower")
    assert (lower["score"] < 0).all()
    assert lower["score"].is_monotonic_increasing
    assert lower["score"].tolist() == sorted(every["score"][every["score"] < 0])
    up = np.argsort(-every_gene_alone(tiny))[:3]
    raised = rank_pairs(tiny, [tiny.genes[k] for k in up], unseen_only=False, direction="raise")
    assert len(raised)
    assert (raised["score"] > 0).all()
    assert raised["score"].is_monotonic_decreasing


def every_gene_alone(bundle) -> np.ndarray:
    """Return the shift of each gene by the pair that moves it most."""
    return compose(bundle, {"P2": 1.0, "P4": 1.0}).table["shift"].to_numpy()


def with_direct(bundle, direct):
    edited = replace(bundle)
    edited.__dict__["direct"] = direct
    return edited


def test_item_11_a_pair_with_a_partner_that_does_nothing_is_not_offered(tiny):
    used = tiny.masks[tiny.masks["active"]]["perturbation"].unique()
    idle = [name for name in tiny.perturbations.index if name not in used]
    direct = tiny.direct[tiny.direct["perturbation"] == idle[0]].assign(active=True)
    assert idle[0] not in inert(with_direct(tiny, direct))
    tiny = with_direct(tiny, direct.assign(active=False))
    assert inert(tiny) == idle
    assert idle, "the test bundle needs a perturbation without a mechanism"
    found = rank_pairs(tiny, tiny.genes[:3], unseen_only=False, n_best=30)
    assert len(found) == len(used) * (len(used) - 1) // 2
    assert not {*found["first"], *found["second"]} & set(idle)
    assert rank_pairs(tiny, tiny.genes[:3], given=idle[0], unseen_only=False).empty
    both = rank_pairs(tiny, tiny.genes[:3], given=idle[0], unseen_only=False, with_inert=True)
    assert len(both) == len(tiny.perturbations) - 1
    assert len(pairs_to_rank(tiny, unseen_only=False, with_inert=True)) == 15


def test_no_pair_left_is_an_empty_table_with_its_columns(tiny):
    found = rank_pairs(tiny, tiny.genes[:3], n_best=0)
    assert found.empty
    assert list(found) == COLUMNS


def test_a_composition_differs_from_itself_by_nothing(tiny):
    one = compose(tiny, {"P1": 1.0, "P2": 0.5})
    table = compare(tiny, one, one)
    assert not table[["difference", "lower", "upper"]].to_numpy().any()


def test_the_difference_is_that_of_the_shifts_and_turns_with_their_order(tiny):
    one, two = compose(tiny, {"P1": 1.0}), compose(tiny, {"P2": 1.0}, without=[0])
    table, turned = compare(tiny, one, two), compare(tiny, two, one)
    expected = one.table["shift"] - two.table["shift"]
    np.testing.assert_allclose(table["difference"], expected, atol=1e-6)
    np.testing.assert_allclose(turned["difference"], -expected, atol=1e-6)
    np.testing.assert_allclose(turned["lower"], -table["upper"], atol=1e-9)
    with pytest.raises(ValueError, match="compose both with the same"):
        compare(tiny, one, compose(tiny, {"P2": 1.0}, n_samples=32))


def test_what_both_share_cancels_out_draw_by_draw(tiny):
    """The interval of the difference is that of the part that differs."""
    one, two = compose(tiny, {"P1": 1.0, "P2": 1.0}), compose(tiny, {"P1": 1.0})
    width = compare(tiny, one, two).eval("upper - lower").mean()
    assert width < (one.table.eval("upper - lower") + two.table.eval("upper - lower")).mean()
