import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import fisher_exact, hypergeom, kstest, mannwhitneyu

from samsvae_core.genesets import enrichment, gsea, prerank, questions, screening
from samsvae_core.genesets.collections import Collection, load_collection, usable_sets
from samsvae_core.genesets.enrichment import (
    enrich,
    over_representation,
    rank_enrichment,
    running_sum,
    sure,
)
from samsvae_core.genesets.questions import COLUMNS, Enrichment, read_parquet, write_parquet
from samsvae_core.genesets.screening import membership, screen
from samsvae_core.genesets.terms import suggested_names, verdicts

ROOT = Path(__file__).resolve().parents[2]
N_GENES, N_SETS = 300, 20
GENES = [f"GENE{number}" for number in range(N_GENES)]
PLANTED = GENES[:15]


def collection_of(sets: dict[str, list[str]], name: str = "mine") -> Collection:
    members = {term: tuple(genes) for term, genes in sets.items()}
    return Collection(name, name, "", "test", "", members, dict.fromkeys(sets, ""), repr(sets))


def disjoint_sets() -> Collection:
    """Return 20 disjoint sets of 15 genes; the first is GENES[:15]."""
    return collection_of({f"set {n}": GENES[15 * n : 15 * n + 15] for n in range(N_SETS)})


def scores(seed: int, zeros: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(N_GENES) < zeros, 0.0, rng.standard_normal(N_GENES))


def hostile_loadings() -> pd.DataFrame:
    planted = scores(0)
    planted[:15] += 2
    loadings = pd.DataFrame({"planted": planted, "down": -planted}, index=GENES)
    for zeros in (0.5, 0.85, 0.97):
        loadings[f"zeros {zeros}"] = scores(1, zeros)
    loadings["outlier"] = np.where(np.arange(N_GENES) == 7, 1e12, scores(2))
    loadings["dead"] = 0.0
    loadings["constant"] = 3.0
    loadings["gaps"] = np.where(np.arange(N_GENES) % 10 == 3, np.nan, scores(3))
    loadings["infinite"] = np.where(np.arange(N_GENES) % 100 == 3, -np.inf, scores(4))
    return loadings


@pytest.fixture(scope="module")
def hostile() -> Enrichment:
    return rank_enrichment(hostile_loadings(), disjoint_sets())


def rows(result: Enrichment, mechanism: str) -> pd.DataFrame:
    return result.table[result.table["mechanism"] == mechanism]


def test_importing_the_module_does_not_import_gseapy():
    program = "import sys, samsvae_core.genesets.enrichment; sys.exit('gseapy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_planted_set_comes_first_and_up(hostile):
    first = rows(hostile, "planted").iloc[0]
    assert (first["term"], first["direction"], first["size"]) == ("set 0", "up", 15)
    assert first["fdr"] < 1e-3
    assert first["nes"] > 2


def test_turning_the_sign_turns_the_direction_only(hostile):
    up, down = (rows(hostile, name).set_index("term").sort_index() for name in ("planted", "down"))
    assert down.loc["set 0", "direction"] == "down"
    np.testing.assert_allclose(up["es"], -down["es"])


def test_every_mechanism_is_answered_or_named(hostile):
    status = hostile.notes.set_index("mechanism")["status"]
    assert list(status.index) == list(hostile_loadings().columns)
    assert set(status[status == "constant"].index) == {"dead", "constant"}
    assert set(status[status == "done"].index) == set(hostile.table["mechanism"])
    assert set(status) == {"constant", "done"}


def test_notes_count_ties_and_genes_without_a_number(hostile):
    notes = hostile.notes.set_index("mechanism")
    assert notes["dropped"].to_dict() == dict.fromkeys(notes.index, 0) | {"gaps": 30, "infinite": 3}
    assert notes.loc["gaps", "genes"] == 270
    assert notes.loc["zeros 0.85", "tied"] == np.mean(scores(1, 0.85) == 0)
    assert notes.loc["planted", "tied"] == 0


def test_the_table_has_the_columns_promised_and_numbers_where_they_belong(hostile):
    table = hostile.table
    assert list(table.columns) == COLUMNS
    assert table["odds_ratio"].isna().all()
    assert not table.drop(columns="odds_ratio").isna().any().any()
    assert set(table["method"]) == {"gsea"}
    assert table["p_value"].between(1e-50, 1).all()
    assert ((table["es"] > 0) == (table["direction"] == "up")).all()
    assert all(group["p_value"].is_monotonic_increasing for _, group in table.groupby("mechanism"))


def test_a_size_counts_measured_genes(hostile):
    sizes = rows(hostile, "gaps").set_index("term")["size"]
    assert sizes["set 0"] == 15 - 2  # GENE3 and GENE13 have no number


def by_hand(p_values: np.ndarray) -> np.ndarray:
    """Return Benjamini-Hochberg FDRs by definition: the smallest n p / rank from this rank on."""
    order = np.argsort(p_values)
    raised = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    result = np.empty(len(p_values))
    result[order] = [min(1.0, raised[rank:].min()) for rank in range(len(raised))]
    return result


def test_fdr_is_benjamini_hochberg_within_a_mechanism_and_over_all(hostile):
    for _, group in hostile.table.groupby("mechanism"):
        assert len(group) == N_SETS
        np.testing.assert_allclose(group["fdr"], by_hand(group["p_value"].to_numpy()))
    table = hostile.table
    np.testing.assert_allclose(table["fdr_all"], by_hand(table["p_value"].to_numpy()))


def test_benjamini_hochberg_agrees_with_an_example_worked_by_hand():
    adjusted = questions.adjusted(pd.Series([0.01, 0.04, 0.03, 0.5]))
    np.testing.assert_allclose(adjusted, [0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_the_running_sum_peaks_at_the_enrichment_score(hostile):
    loadings, sets = hostile_loadings(), disjoint_sets().sets
    for row in hostile.table.itertuples():
        walk = running_sum(loadings[row.mechanism], sets[row.term])["running_es"]
        assert walk.loc[walk.abs().idxmax()] == pytest.approx(row.es, abs=1e-9)


def test_the_leading_edge_is_what_the_running_sum_met_up_to_its_peak(hostile):
    loadings, sets = hostile_loadings(), disjoint_sets().sets
    for row in rows(hostile, "planted").itertuples():
        walk = running_sum(loadings["planted"], sets[row.term])
        peak = walk["running_es"].abs().idxmax()
        side = walk.loc[:peak] if row.direction == "up" else walk.loc[peak:]
        genes = row.leading_edge.split(";")
        assert set(genes) == set(side.loc[side["hit"], "gene"])
        assert row.overlap == len(genes)


def test_the_running_sum_agrees_with_one_worked_by_hand():
    walk = running_sum(pd.Series({"a": 3.0, "b": 2.0, "c": 1.0, "d": -1.0}), ["a", "c", "not here"])
    assert walk["gene"].tolist() == ["a", "b", "c", "d"]
    assert walk["rank"].tolist() == [1, 2, 3, 4]
    assert walk["score"].tolist() == [3, 2, 1, -1]
    assert walk["hit"].tolist() == [True, False, True, False]
    np.testing.assert_allclose(walk["running_es"], [0.75, 0.25, 0.5, 0.0], atol=1e-6)


def test_a_running_sum_needs_genes_on_both_sides():
    with pytest.raises(ValueError, match="0 of 300 measured genes"):
        running_sum(pd.Series(scores(0), index=GENES), ["nobody"])
    with pytest.raises(ValueError, match="300 of 300 measured genes"):
        running_sum(pd.Series(scores(0), index=GENES), GENES)


def test_p_values_are_uniform_where_nothing_is_enriched():
    draws = {f"null {seed}": scores(100 + seed) for seed in range(25)}
    table = rank_enrichment(pd.DataFrame(draws, index=GENES), disjoint_sets()).table
    assert len(table) == 25 * N_SETS
    assert kstest(table["p_value"], "uniform").pvalue > 0.01


def test_the_result_depends_neither_on_the_order_of_rows_nor_on_the_processes(
    monkeypatch, tmp_path
):
    loadings = hostile_loadings()[["zeros 0.85", "planted"]]
    shuffled = loadings.sample(frac=1, random_state=0)
    one = rank_enrichment(loadings, disjoint_sets(), seed=3)
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path))
    two = rank_enrichment(shuffled, disjoint_sets(), seed=3, n_processes=2)
    pd.testing.assert_frame_equal(one.table, two.table)
    pd.testing.assert_frame_equal(one.notes, two.notes)


def test_the_strongest_row_of_a_gene_stays_and_the_others_are_counted():
    series = pd.Series([*scores(0), -9.0, 0.1], index=[*GENES, "GENE0", "GENE1"])
    result = over_representation(series, disjoint_sets(), n_top=1)
    assert result.notes["duplicated"].tolist() == [2]
    down = result.table[result.table["direction"] == "down"].set_index("term")
    assert down.loc["set 0", "leading_edge"] == "GENE0"
    assert not series.index.is_unique  # the argument is as it was


def test_a_series_is_one_mechanism():
    result = over_representation(pd.Series(scores(0), index=GENES), disjoint_sets())
    assert set(result.table["mechanism"]) == {"shift"}


def test_top_genes_agree_with_scipys_hypergeometric_and_fisher_tests():
    rng = np.random.default_rng(5)
    sets = {f"set {n}": list(rng.choice(GENES[:200], 5 + 3 * n, replace=False)) for n in range(12)}
    series = pd.Series(scores(6), index=GENES)
    table = over_representation(series, collection_of(sets), n_top=40).table
    universe = {gene for genes in sets.values() for gene in genes}
    for direction, order in (("up", series.sort_values()[::-1]), ("down", series.sort_values())):
        query = set(order.index[:40]) & universe
        rows = table[table["direction"] == direction].set_index("term")
        assert set(rows.index) == set(sets)
        for term, genes in sets.items():
            both = len(query & set(genes))
            inside, outside = len(genes) - both, len(query) - both
            square = [[both, outside], [inside, len(universe) - both - inside - outside]]
            expected = fisher_exact(square, alternative="greater")
            assert rows.loc[term, "overlap"] == both
            assert rows.loc[term, "p_value"] == pytest.approx(expected.pvalue)
            assert rows.loc[term, "odds_ratio"] == pytest.approx(expected.statistic)
            tail = hypergeom(len(universe), len(genes), len(query)).pmf(range(both))
            assert rows.loc[term, "p_value"] == pytest.approx(1 - tail.sum(), abs=1e-12)


def test_sets_without_a_top_gene_are_tested_too():
    series = pd.Series(np.arange(N_GENES, 0.0, -1.0), index=GENES)
    table = over_representation(series, disjoint_sets(), n_top=15).table
    assert len(table) == 2 * N_SETS
    assert table.iloc[0]["overlap"] == 15
    assert np.isinf(table.iloc[0]["odds_ratio"])
    assert (table["overlap"] == 0).sum() == 2 * N_SETS - 1  # none is below 0: no gene is down
    np.testing.assert_allclose(table["fdr"], by_hand(table["p_value"].to_numpy()))


def test_a_universe_of_ones_own_counts_where_sets_know_it():
    sets = {f"set {n}": GENES[15 * n : 15 * n + 15] for n in range(N_SETS)}
    sets["far"] = [f"OTHER{number}" for number in range(100)]
    series = pd.Series(np.arange(N_GENES, 0.0, -1.0), index=GENES)
    wide = [*GENES, *sets["far"][:60], "UNKNOWN"]
    table = over_representation(series, collection_of(sets), n_top=15, universe=wide).table
    first = table.iloc[0]
    assert first["p_value"] == pytest.approx(hypergeom.pmf(15, N_GENES + 60, 15, 15), abs=0)


def test_genes_of_loading_0_are_neither_up_nor_down():
    series = pd.Series(0.0, index=GENES)
    series[GENES[0]], series[GENES[299]] = 1.0, -1.0
    table = over_representation(series, disjoint_sets(), n_top=50).table
    assert table.loc[table["overlap"] > 0, "leading_edge"].tolist() == ["GENE0", "GENE299"]


@pytest.mark.parametrize("method", [rank_enrichment, over_representation])
def test_too_little_overlap_is_refused_with_the_numbers(method):
    loadings = pd.DataFrame({"one": scores(0)[:20]}, index=[*GENES[:10], *"ABCDEFGHIJ"])
    with pytest.raises(ValueError, match="10 of 20 genes are in mine, and 1 of its sets have 5 to"):
        method(loadings, disjoint_sets())
    with pytest.raises(ValueError, match=r"0 of its sets have 16 to 500 .* smaller minimum"):
        method(hostile_loadings(), disjoint_sets(), min_size=16)
    with pytest.raises(ValueError, match="found 9 and 5"):
        method(hostile_loadings(), disjoint_sets(), min_size=9, max_size=5)


def test_two_mechanisms_of_one_name_are_refused():
    loadings = pd.DataFrame(np.zeros((N_GENES, 2)), index=GENES, columns=["a", "a"])
    with pytest.raises(ValueError, match="same name"):
        over_representation(loadings, disjoint_sets())


def test_a_mechanism_whose_genes_fill_no_set_is_named():
    loadings = hostile_loadings()[["planted"]]
    loadings["rare"] = np.where(np.arange(N_GENES) % 15 < 3, scores(0), np.nan)
    result = over_representation(loadings, disjoint_sets())
    assert result.notes["status"].tolist() == ["done", "no set"]


@pytest.mark.parametrize("method", [rank_enrichment, over_representation])
def test_nothing_but_dead_mechanisms_gives_an_empty_table(method):
    result = method(hostile_loadings()[["dead"]], disjoint_sets())
    assert list(result.table.columns) == COLUMNS
    assert result.table.empty
    assert result.notes["status"].tolist() == ["constant"]


def test_a_parquet_file_gives_back_what_was_written(hostile, tmp_path):
    write_parquet(hostile, tmp_path / "hallmark.parquet")
    again = read_parquet(tmp_path / "hallmark.parquet")
    pd.testing.assert_frame_equal(again.table, hostile.table)
    pd.testing.assert_frame_equal(again.notes, hostile.notes)


def test_top_genes_agree_with_exact_fractions():
    """P(hits or more) is computed with whole numbers, without SciPy."""
    rng = np.random.default_rng(2)
    sets = {f"set {n}": list(rng.choice(GENES, 20, replace=False)) for n in range(30)}
    table = over_representation(pd.Series(scores(6), index=GENES), collection_of(sets), 40).table
    N = len({gene for genes in sets.values() for gene in genes})
    ranked = pd.Series(scores(6), index=GENES).sort_values()
    for row in table.itertuples():
        top = ranked.index[-40:] if row.direction == "up" else ranked.index[:40]
        n = len([gene for gene in top if any(gene in genes for genes in sets.values())])
        ways = sum(
            math.comb(20, k) * math.comb(N - 20, n - k) for k in range(row.overlap, min(20, n) + 1)
        )
        assert row.p_value == pytest.approx(float(Fraction(ways, math.comb(N, n))), abs=1e-12)


def test_only_genes_that_are_sure_to_move_count_where_that_is_asked():
    loadings = pd.DataFrame({"one": np.linspace(3, -3, N_GENES)}, index=GENES)
    se = pd.DataFrame({"one": np.where(np.arange(N_GENES) % 2, 0.1, 10.0)}, index=GENES)
    moved = sure(loadings, se, probability=0.95, effect=1.0)
    expected = (np.arange(N_GENES) % 2 == 1) & (np.abs(loadings["one"]) >= 1)
    assert moved["one"].tolist() == expected.tolist()
    table = over_representation(loadings, disjoint_sets(), n_top=None, moved=moved).table
    first = table[table["term"] == "set 0"].set_index("direction")
    assert first.loc["up", "leading_edge"].split(";") == GENES[1:15:2]
    assert first.loc["down", "overlap"] == 0


def test_sure_is_the_one_sided_probability_of_the_sign():
    one = pd.DataFrame({"a": [1.64, 1.65]})
    assert sure(one, one * 0 + 1, probability=0.95, effect=0.0).to_numpy().ravel().tolist() == [
        0,
        1,
    ]


def test_the_preview_is_the_rank_sum_test_with_ties():
    loadings = hostile_loadings()[["planted", "zeros 0.85", "outlier"]]
    found = screen(loadings, disjoint_sets())
    assert found.size.tolist() == [15] * N_SETS
    for mechanism in loadings:
        for term, genes in disjoint_sets().sets.items():
            inside = loadings.index.isin(genes)
            x, y = loadings.loc[inside, mechanism], loadings.loc[~inside, mechanism]
            expected = mannwhitneyu(x, y, method="asymptotic", use_continuity=False)
            p_value = found.p_value.loc[term, mechanism]
            assert p_value == pytest.approx(expected.pvalue, rel=1e-9)
            assert (found.z.loc[term, mechanism] > 0) == (expected.statistic > len(x) * len(y) / 2)
    assert found.z["planted"].idxmax() == "set 0"


def test_the_preview_of_a_dead_mechanism_is_empty_and_gaps_are_left_out():
    found = screen(hostile_loadings()[["planted", "dead", "gaps"]], disjoint_sets())
    assert found.z["dead"].isna().all()
    assert found.p_value["dead"].isna().all()
    assert found.size["set 0"] == 13  # GENE3 and GENE13 have no number
    assert not found.z["planted"].isna().any()


def test_what_could_not_be_tested_is_told_of_both_tests():
    loadings = hostile_loadings()[["planted", "dead"]]
    nobody = pd.DataFrame(False, index=loadings.index, columns=loadings.columns)
    result = enrich(loadings, [disjoint_sets()], moved=nobody)
    assert screening.problems(result.notes) == [
        "mechanism planted, mine, top genes: not tested (no gene is certain to move)",
        "mechanism dead, mine: not tested (constant)",
        "mechanism dead, mine: 100% of genes are tied, their order is random",
    ]


def test_a_mechanism_that_moves_no_gene_but_by_rounding_is_not_tested():
    noise = pd.DataFrame({"still": 1e-8 * scores(0)}, index=GENES)
    assert rank_enrichment(noise, disjoint_sets()).notes["status"].tolist() == ["constant"]


def test_membership_is_that_of_the_usable_sets():
    collection = load_collection("hallmark")
    genes = sorted(collection.genes)[::9]
    matrix, terms = membership(collection, genes, 5, 30)
    sets = usable_sets(collection, genes, 5, 30)
    assert terms == list(sets)
    for row, term in enumerate(terms):
        assert set(np.array(genes)[matrix[[row]].indices]) == set(sets[term])


def one_and_two() -> list[Collection]:
    return [
        collection_of({f"{name} {t}": g for t, g in disjoint_sets().sets.items()}, name)
        for name in ("one", "two")
    ]


def test_collections_are_tested_apart(monkeypatch, tmp_path):
    loadings = hostile_loadings()[["planted", "down"]]
    both = enrich(loadings, one_and_two(), n_processes=2)
    for collection in one_and_two():
        monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / collection.name))
        alone = enrich(loadings, [collection])
        part = both.table[both.table["collection"] == collection.name].reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone.table)


def test_progress_counts_every_mechanism_of_every_collection_once(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path))
    loadings = hostile_loadings()[["planted", "zeros 0.5", "dead"]]
    seen = []
    enrich(loadings, [disjoint_sets()], progress=seen.append)
    assert seen == [(0, 2), (1, 2), (2, 2)]
    again = []
    enrich(loadings, one_and_two(), progress=again.append)
    assert again == [(2, 2)]  # the same sets under other names: known by content


def answers_one_and_waits() -> None:
    import json
    import sys
    import time
    from pathlib import Path

    file = sorted(Path(sys.argv[2]).glob("*.job"))[0]
    held = file.rename(file.with_suffix(f".held{sys.argv[3]}"))
    n_sets = len(json.loads(held.read_text())["sets"])
    part = file.with_suffix(".part")
    part.write_text(json.dumps([[0.5, 1.5, 0.01, [0, 1], 0.3]] * n_sets))
    part.rename(file.with_suffix(".answer"))
    held.unlink()
    time.sleep(60)


def test_a_cancelled_run_goes_on_where_it_was(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path))
    loadings = hostile_loadings()[["planted", "zeros 0.5", "outlier"]]
    seen = []
    with monkeypatch.context() as slow:
        slow.setattr(prerank, "_work", answers_one_and_waits)
        with pytest.raises(prerank.CancelledError):
            enrich(
                loadings,
                [disjoint_sets()],
                n_processes=1,
                progress=seen.append,
                cancelled=lambda: seen[-1].done > 0,
            )
    assert len(list(tmp_path.rglob("*.json"))) == 1
    again = []
    result = enrich(loadings, [disjoint_sets()], progress=again.append)
    assert again[0] == (1, 3)
    assert set(result.notes["status"]) == {"done"}


def test_a_mechanism_whose_worker_died_is_named_and_the_others_are_there(monkeypatch):
    def answers(rankings, *_):
        first = [[1, 2, 0.01, [0], 0.1]]
        return ["failed, too"] if rankings[0].draws else [first, "failed: it died"]

    monkeypatch.setattr(gsea, "prerank", answers)
    sets = collection_of({"only": GENES[:20]})
    result = rank_enrichment(hostile_loadings()[["planted", "outlier"]], sets)
    assert result.notes["status"].tolist() == ["done", "failed: it died"]
    assert result.table["mechanism"].tolist() == ["planted"]
    assert result.table["fdr_all"].tolist() == [0.01]
    assert screening.problems(result.notes) == [
        "mechanism outlier, mine: not tested (failed: it died)"
    ]


def test_a_collection_that_cannot_be_tested_is_left_out_and_noted():
    loadings = hostile_loadings()[["planted"]]
    far = collection_of({"far": [f"OTHER{n}" for n in range(20)]}, "far")
    both = enrich(loadings, [far, disjoint_sets()])
    pd.testing.assert_frame_equal(both.table, enrich(loadings, [disjoint_sets()]).table)
    assert screening.problems(both.notes)[0].startswith("mechanism all, far: not tested (0 of 300")
    with pytest.raises(ValueError, match="0 of 300 genes are in far"):
        enrich(loadings, [far])
    with pytest.raises(ValueError, match=r"are in far, .* are in farther"):
        enrich(loadings, [far, collection_of({"a": ["B"] * 2}, "farther")])


def test_a_background_that_says_nothing_is_refused_as_such():
    with pytest.raises(ValueError, match="2 of the 3 genes of the background are in mine, and 15"):
        over_representation(
            pd.Series(scores(0), index=GENES), disjoint_sets(), universe=[*GENES[:2], "NOBODY"]
        )


def test_item_09_a_verdict_and_a_name_are_the_same_with_every_seed(monkeypatch, tmp_path):
    # SMAD4's mechanism of an earlier model of papalexi2021, whose sets are near 5 % FDR
    kept = pd.read_csv(Path(__file__).with_name("smad4_loadings.csv"), index_col="gene")
    loadings = kept["loading"].rename(1).to_frame()
    told = set()
    for seed in range(3):  # twelve give the same, in four times the time
        monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / str(seed)))
        rules = enrichment.EnrichmentOptions(seed=seed)
        table = enrich(loadings, [load_collection("hallmark")], rules).table
        found = table[table["method"] == "gsea"].set_index("term")
        two = ["HALLMARK_TGF_BETA_SIGNALING", "HALLMARK_E2F_TARGETS"]
        assert verdicts(found)[two].tolist() == ["passes"] * 2
        assert (verdicts(found).drop(two) == "does not pass").all()
        assert (found.loc[two, "log2_error"] < 0.2).all()
        told.add(suggested_names(table, [1])["name"].iloc[0])
    assert len(told) == 1
    assert "TGF beta signaling" in told.pop()


def test_item_09_every_fdr_lies_between_its_ends_and_an_exact_test_has_no_error(hostile):
    table = hostile.table
    assert (table["fdr_low"] <= table["fdr"]).all()
    assert (table["fdr"] <= table["fdr_high"]).all()
    group = rows(hostile, "planted")
    low = group["p_value"] / 2 ** (2 * group["log2_error"])
    np.testing.assert_allclose(group["fdr_low"], by_hand(low.to_numpy()))
    exact = over_representation(hostile_loadings()[["planted"]], disjoint_sets()).table
    assert (exact["log2_error"] == 0).all()
    assert (exact["fdr_low"] == exact["fdr_high"]).all()


def test_item_09_tables_made_before_errors_were_kept_open_and_decide_by_their_fdr(tmp_path):
    before = rank_enrichment(hostile_loadings()[["planted"]], disjoint_sets())
    without = before.table.drop(columns=["log2_error", "fdr_low", "fdr_high"])
    write_parquet(before._replace(table=without), tmp_path / "old.parquet")
    again = read_parquet(tmp_path / "old.parquet").table
    assert list(again) == COLUMNS
    expected = np.where(again["fdr"] <= 0.05, "passes", "does not pass")
    assert verdicts(again).tolist() == expected.tolist()
