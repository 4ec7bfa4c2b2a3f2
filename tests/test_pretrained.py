"""The shipped models are sound, agree with known biology, and score as they claim."""

import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from samsvae_core.analysis.compose import compose
from samsvae_core.analysis.draws import cells_of
from samsvae_core.analysis.loadings import loading_matrix, loadings
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.bundle.opening import load
from samsvae_core.data.h5ad import read_cells
from samsvae_core.data.splits import split
from samsvae_core.evaluation.baselines import observed_effects
from samsvae_core.evaluation.evaluate import (
    EvaluationConfig,
    evaluate_bundle,
    pearson,
    scored_cells,
)
from samsvae_core.genesets.collections import Collection
from samsvae_core.genesets.enrichment import rank_enrichment
from samsvae_core.genesets.terms import suggested_names
from samsvae_core.pipeline.train import read_options

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "pretrained" / "papalexi2021"
DATA = Path(os.environ.get("SAMSVAE_DATA", ROOT.parent / "shared" / "data"))
AXIS = ["IFNGR1", "IFNGR2", "JAK2", "STAT1"]  # one pathway: interferon-gamma signalling
NO_EFFECT = ["CD86", "CAV1", "PDCD1LG2", "MARCH8", "ETV7", "IRF7"]
OWN_GENE = ["CMTM6", "TNFRSF14"]  # they lower their own transcript: too little for a mechanism


@pytest.fixture(scope="module")
def shipped():
    return load(SHIPPED)


@pytest.fixture(scope="module")
def active(shipped):
    rows = shipped.masks[shipped.masks["active"]]
    used = rows.groupby("perturbation")["mechanism"].agg(set).to_dict()
    return {name: used.get(name, set()) for name in shipped.perturbations.index}


def jaccard(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def test_the_interferon_gamma_axis_shares_few_mechanisms(active):
    assert all(1 <= len(active[name]) <= 5 for name in AXIS)
    within = np.mean([jaccard(active[a], active[b]) for a, b in combinations(AXIS, 2)])
    others = [name for name in active if name not in {*AXIS, "IRF1"}]
    across = np.mean([jaccard(active[a], active[b]) for a in AXIS for b in others])
    assert within >= 0.5
    assert within >= 2 * across


def test_targets_without_an_effect_are_left_nearly_empty(active):
    assert np.mean([len(active[name]) for name in NO_EFFECT + OWN_GENE]) <= 1


def test_knock_out_of_stat1_and_smad4_lowers_their_axes(shipped):
    both = compose(shipped, {"STAT1": 1.0, "SMAD4": 1.0})
    assert both.support == "singles"
    assert (both.table.loc[["STAT1", "PSMB9", "UBE2L6", "FN1"], "upper"] < 0).all()


def test_an_interferon_set_is_among_the_first_in_a_mechanism_the_axis_shares(shipped, active):
    shared = set.intersection(*(active[name] for name in AXIS))
    table = shipped.enrichment("reactome").table
    table = table[table["mechanism"].isin(shared) & (table["method"] == "gsea")]
    table = table.sort_values("nes", key=abs, ascending=False).reset_index(drop=True)
    interferon = table[table["term"].str.contains("INTERFERON")].iloc[0]
    assert interferon.name < 3
    assert interferon["fdr"] < 0.05


def test_its_loadings_are_what_its_weights_say(shipped):
    again = loading_matrix(loadings(shipped.model, shipped.reference, shipped.genes))
    kept = loading_matrix(shipped.loadings)
    np.testing.assert_allclose(again, kept, atol=1e-5)


def test_every_mechanism_in_use_was_tested_against_every_collection(shipped):
    assert shipped.collections == ["hallmark", "reactome", "wikipathways"]
    for name in shipped.collections:
        tested = shipped.enrichment(name).table
        assert set(tested["mechanism"]) == set(active_mechanisms(shipped.masks))


def test_its_card_tells_the_frontier_and_the_rule_was_followed(shipped):
    assert "Sparsity against fit" in shipped.card
    table = shipped.frontier
    close = table[table["difference"] >= -table["difference_se"]]
    assert table.loc[table["chosen"], "active"].item() == close["active"].min()
    assert shipped.masks["active"].sum() == close["active"].min()


def test_entries_of_the_axis_have_evidence_and_idle_targets_do_not(shipped):
    masks = shipped.masks
    axis = masks[masks["perturbation"].isin(AXIS) & masks["active"]]
    assert (axis["evidence"] > 2 * axis["evidence_se"]).any()
    idle = masks[masks["perturbation"].isin(NO_EFFECT + OWN_GENE) & masks["evidence"].notna()]
    assert idle["evidence"].max() < axis["evidence"].max() / 5


def test_calibrated_intervals_cover_held_out_effects_better_than_the_models_own(shipped):
    found = shipped.metrics["coverage"]["single"]
    assert abs(found["calibrated_with_sampling"] - 0.9) < abs(found["own"] - 0.9)
    assert 0.85 < found["calibrated_with_sampling"] < 0.95


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the data are not at {DATA}")
def test_it_scores_on_held_out_cells_as_its_metrics_say(shipped):
    data = read_cells(DATA / "papalexi2021_thp1.h5ad", read_options(shipped.path))
    again = evaluate_bundle(shipped, data, EvaluationConfig(iwelbo_samples=20))
    kept = shipped.metrics
    r = again["average_effects"]["pearson"]
    assert r == pytest.approx(kept["average_effects"]["pearson"], abs=0.005)  # same draws
    assert kept["iwelbo"]["test"] - 1 < again["iwelbo"]["test"] < kept["iwelbo"]["test"] + 0.05
    data = replace(data, covariates=None)
    parts = split(data, shipped.path / "split.csv")
    tested, _ = scored_cells(data, parts, "test")
    trained = observed_effects(data.subset(parts == "train"))
    observed = observed_effects(tested)
    mean = pearson(trained.loc[observed.index].to_numpy().ravel(), observed.to_numpy().ravel())
    assert mean == pytest.approx(0.567, abs=0.001)  # known of these cells (data README)
    within = again["baselines"]["training mean"]["pearson"]
    assert within == pytest.approx(mean, abs=0.01)  # replicates hold nearly even shares


# The second one


@pytest.fixture(scope="module")
def norman():
    return load(ROOT / "pretrained" / "norman2019-subset")


def test_its_unseen_pairs_are_scored_beside_the_additive_baseline(norman):
    assert norman.conditions.loc["KLF1+TGFBR2", ["train", "validation"]].sum() == 0
    unseen = "combination not seen in training"
    own = norman.metrics["average_effects"]["kinds"][unseen]
    additive = norman.metrics["baselines"]["additive"]["kinds"][unseen]
    assert own["n"] == additive["n"] == 5
    assert own["pearson"] > 0.5
    for name in ("SAMS-VAE", "additive", "split-half"):
        assert f"| {name} |" in norman.card
    assert unseen in norman.card


def test_activation_of_klf1_raises_fetal_globins(norman):
    table = compose(norman, {"KLF1": 1.0}).table
    assert (table.loc[["HBZ", "HBG2"], "shift"] > 0).all()
    both = compose(norman, {"KLF1": 1.0, "TGFBR2": 1.0})
    assert both.support == "singles"
    assert both.n_observed > 0
    assert (both.table.loc[["HBZ", "HBG2"], "shift"] > 0).all()


def test_the_interferon_mechanism_is_named_after_its_genes(shipped):
    (k,) = set.intersection(
        *(set(shipped.masks.query("active and perturbation == @t")["mechanism"]) for t in AXIS)
    )
    tables = [shipped.enrichment(name).table for name in ("hallmark", "reactome")]
    names = suggested_names(pd.concat(tables), [k])
    assert "Interferon" in names.loc[k, "name"]
    assert "FDR 0.00" in names.loc[k, "evidence"]


def test_of_permuted_loadings_p_values_are_uniform(shipped):
    """Several permutations on disjoint sets, because overlapping sets are correlated."""
    scores = loading_matrix(shipped.loadings)[0]
    rng = np.random.default_rng(0)
    genes = rng.permutation(scores.index)
    sets = {f"set {n}": tuple(genes[15 * n : 15 * n + 15]) for n in range(19)}
    disjoint = Collection("disjoint", "disjoint", "", "test", "", sets, {}, "disjoint")
    permuted = {f"permutation {n}": rng.permutation(scores) for n in range(20)}
    table = rank_enrichment(pd.DataFrame(permuted, index=scores.index), disjoint).table
    assert len(table) == 20 * 19
    assert kstest(table["p_value"], "uniform").pvalue > 0.01


def test_doubles_measured_with_both_singles_have_an_observed_interaction(norman):
    rows = norman.observed.query("split == 'all'")
    level, se = (
        rows.pivot_table(v, "gene", "condition").loc[norman.genes] for v in ("level", "se")
    )
    found = []
    for double in (c for c in norman.conditions.index if "+" in c):
        pair = double.split("+")
        table = compose(norman, dict.fromkeys(pair, 1.0), n_samples=2).table
        if not set(pair) <= set(level):
            assert table["observed_interaction"].isna().all()
            continue
        expected = level[double] - level[pair[0]] - level[pair[1]] + level["control"]
        np.testing.assert_allclose(table["observed_interaction"], expected, atol=1e-12)
        expected = (se[[double, *pair, "control"]] ** 2).sum(axis=1) ** 0.5
        np.testing.assert_allclose(table["observed_interaction_se"], expected)
        found.append(double)
    assert len(found) == 5
    assert "KLF1+MAP2K6" in found


def test_a_start_from_control_cells_on_the_map_is_near_that_from_the_reference(norman):
    usual = compose(norman, {"KLF1": 1.0, "SET": 1.0})
    on_map = compose(norman, usual.dosages, cells=cells_of(norman, "control"))
    assert on_map.n_reference == 100
    assert np.corrcoef(usual.table["shift"], on_map.table["shift"])[0, 1] > 0.98
