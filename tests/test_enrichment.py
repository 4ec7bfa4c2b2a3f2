import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest
from scipy.stats import fisher_exact, hypergeom, kstest

from samsvae_core import enrichment
from samsvae_core.enrichment import (
    COLUMNS,
    Enrichment,
    cached,
    join,
    over_representation,
    rank_enrichment,
    read_parquet,
    running_sum,
    write_parquet,
    write_xlsx,
)
from samsvae_core.gene_sets import Collection

N_GENES, N_SETS = 300, 20
GENES = [f"GENE{number}" for number in range(N_GENES)]
PLANTED = GENES[:15]


def collection_of(sets: dict[str, list[str]], name: str = "mine") -> Collection:
    members = {term: tuple(genes) for term, genes in sets.items()}
    return Collection(name, name, "", "test", "", members, dict.fromkeys(sets, ""), repr(sets))


def disjoint_sets() -> Collection:
    """20 disjoint sets of 15 genes; the first one is GENES[:15]."""
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
    program = "import sys, samsvae_core.enrichment; sys.exit('gseapy' in sys.modules)"
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
    """Benjamini-Hochberg as in its definition: the smallest n p / rank among ranks as high."""
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
    adjusted = enrichment._adjusted(pd.Series([0.01, 0.04, 0.03, 0.5]))
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


def test_the_result_depends_neither_on_the_order_of_rows_nor_on_the_processes():
    loadings = hostile_loadings()[["zeros 0.85", "planted"]]
    shuffled = loadings.sample(frac=1, random_state=0)
    one = rank_enrichment(loadings, disjoint_sets(), seed=3)
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


def aborts_at_the_second() -> None:
    import os
    import sys
    from pathlib import Path

    for name in sys.argv[2:]:
        if name.endswith("1.job"):
            os.abort()
        Path(name).with_suffix(".answer").write_text("[[0.5, 1.5, 0.01, [0, 1]]]")


def sleeps() -> None:
    import faulthandler
    import sys
    import time

    faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
    time.sleep(30)


def raises() -> None:
    raise BaseException("a panic")


def one_set_of_three_mechanisms() -> tuple[pd.DataFrame, Collection]:
    return hostile_loadings().iloc[:, :3], collection_of({"only": GENES[:20]})


def test_a_worker_that_dies_costs_its_mechanism_alone(monkeypatch):
    monkeypatch.setattr(enrichment, "_work", aborts_at_the_second)
    result = rank_enrichment(*one_set_of_three_mechanisms())
    assert result.notes["status"].tolist() == ["done", "failed: exit status -6", "done"]
    assert result.table["mechanism"].tolist() == ["planted", "zeros 0.5"]
    assert result.table["fdr_all"].tolist() == [0.01, 0.01]


def test_a_worker_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(enrichment, "_work", sleeps)
    monkeypatch.setattr(enrichment, "SECONDS", 0.1)
    result = rank_enrichment(*one_set_of_three_mechanisms())
    assert result.notes["status"].tolist() == ["failed: more than 0.1 s"] * 3


def test_a_failure_says_why_and_is_not_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path))
    monkeypatch.setattr(enrichment, "_work", raises)
    result = cached(partial(rank_enrichment, *one_set_of_three_mechanisms()))
    assert result.notes["status"].tolist() == ["failed: BaseException: a panic"] * 3
    assert not list(tmp_path.rglob("*.parquet"))


def test_the_worker_runs_where_there_is_one_core(monkeypatch):
    program = "import os; os.cpu_count = lambda: 1\n"
    run = subprocess.run

    def run_on_one_core(command, **options):
        assert command[2] == "-c"
        return run([*command[:3], program + command[3], *command[4:]], **options)

    monkeypatch.setattr(enrichment.subprocess, "run", run_on_one_core)
    result = rank_enrichment(hostile_loadings()[["planted"]], disjoint_sets())
    assert result.notes["status"].tolist() == ["done"]


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    script = tmp_path / "data.py"  # a name that would also shadow a module of the project
    script.write_text(
        "import numpy as np, pandas as pd\n"
        "from samsvae_core.enrichment import rank_enrichment\n"
        "from samsvae_core.gene_sets import parse_gmt\n"
        "print('once')\n"
        "genes = [f'G{n}' for n in range(40)]\n"
        "collection = parse_gmt(b's\\tx\\t' + '\\t'.join(genes[:20]).encode(), 'mine')\n"
        "loadings = pd.DataFrame({'one': np.random.default_rng(0).normal(size=40)}, index=genes)\n"
        "print(rank_enrichment(loadings, collection).notes['status'].tolist())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(enrichment.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.stdout == "once\n['done']\n", done.stderr


def counted(loadings: pd.DataFrame, collection: Collection, n_top: int = 50) -> Enrichment:
    counted.calls += 1
    return over_representation(loadings, collection, n_top)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "cache"))
    counted.calls = 0
    return tmp_path / "cache"


def test_the_second_call_comes_from_the_cache_and_is_the_same(cache):
    call = partial(counted, hostile_loadings(), disjoint_sets())
    first, second = cached(call), cached(call)
    assert counted.calls == 1
    pd.testing.assert_frame_equal(first.table, second.table)
    pd.testing.assert_frame_equal(first.notes, second.notes)
    assert second.table.attrs == {}


def test_an_argument_left_out_is_the_same_as_its_default(cache):
    cached(partial(counted, hostile_loadings(), disjoint_sets()))
    cached(partial(counted, hostile_loadings(), collection=disjoint_sets(), n_top=50))
    assert counted.calls == 1


def test_every_change_of_content_is_computed_anew(cache):
    loadings, collection = hostile_loadings(), disjoint_sets()
    changed = loadings.copy()
    changed.iloc[0, 0] = np.nextafter(changed.iloc[0, 0], 9)
    calls = [
        partial(counted, loadings, collection),
        partial(counted, changed, collection),
        partial(counted, loadings.rename(index={"GENE0": "GENE-0"}), collection),
        partial(counted, loadings.rename(columns={"dead": "alive"}), collection),
        partial(counted, loadings, replace(collection, checksum="other")),
        partial(counted, loadings, collection, n_top=49),
    ]
    for call in calls:
        cached(call)
    assert counted.calls == len(calls)


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "another file"])
def test_a_damaged_cache_file_is_computed_again(cache, damage):
    call = partial(counted, hostile_loadings(), disjoint_sets())
    first = cached(call)
    (file,) = cache.rglob("*.parquet")
    content = bytearray(file.read_bytes())
    if damage == "another file":
        pd.DataFrame({"a": [1]}).to_parquet(file)
    else:
        content[len(content) // 4] ^= 0xFF
        changed = {"cut": content[: len(content) // 2], "flipped": content, "emptied": b""}
        file.write_bytes(changed[damage])
    again = cached(call)
    assert counted.calls == 2
    pd.testing.assert_frame_equal(first.table, again.table)
    cached(call)
    assert counted.calls == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "file"))
    call = partial(over_representation, hostile_loadings(), disjoint_sets())
    pd.testing.assert_frame_equal(cached(call).table, call().table)


def test_a_parquet_file_gives_back_what_was_written(hostile, tmp_path):
    write_parquet(hostile, tmp_path / "hallmark.parquet")
    again = read_parquet(tmp_path / "hallmark.parquet")
    pd.testing.assert_frame_equal(again.table, hostile.table)
    pd.testing.assert_frame_equal(again.notes, hostile.notes)


def awkward() -> Enrichment:
    """Two collections, genes and terms that Excel takes for something else, an infinite ratio."""
    genes = ["=1+1", "@SUM(A1)", "+1", "http://x", "1E5", "MARCH1", *GENES[:30]]
    loadings = pd.DataFrame(
        np.linspace(1, -1, 72).reshape(36, 2), index=genes, columns=["a/b", "A/B"]
    )
    sets = {"=cmd()": genes[:6], "plain": genes[6:20]}
    parts = [
        over_representation(loadings, collection_of(sets, name), n_top=6)
        for name in ("mine", "a collection with quite a long name [v1]")
    ]
    return join(parts)


def test_a_workbook_holds_the_table_and_text_stays_text(tmp_path):
    result = awkward()
    write_xlsx(result, tmp_path / "enrichment.xlsx", {"minimum size": 5})
    book = openpyxl.load_workbook(tmp_path / "enrichment.xlsx")
    names = book.sheetnames
    assert names[:3] == ["summary", "notes", "settings"]
    assert len(names) == 3 + 4 == len({name.lower() for name in names})
    assert all(len(name) <= 31 for name in names)
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells} <= {"s", "n"}  # no formula
    assert not any(cell.hyperlink for cell in cells)
    sheet = book[names[3]]
    header, *body = sheet.iter_rows(values_only=True)
    part = result.table[
        (result.table["mechanism"] == "a/b") & (result.table["collection"] == "mine")
    ]
    assert list(header) == COLUMNS
    assert [row[COLUMNS.index("term")] for row in body] == part["term"].tolist()
    assert body[0][COLUMNS.index("leading_edge")] == "=1+1;@SUM(A1);+1;http://x;1E5;MARCH1"
    assert body[0][COLUMNS.index("odds_ratio")] == "infinite"
    np.testing.assert_allclose([row[COLUMNS.index("p_value")] for row in body], part["p_value"])
    assert sheet.freeze_panes == "A2"
    assert sheet.cell(2, COLUMNS.index("fdr") + 1).number_format == "0.00E+00"
    settings = dict(book["settings"].iter_rows(values_only=True))
    assert settings["minimum size"] == "5"
    assert settings["gseapy"]


def test_the_summary_has_the_five_best_of_each_mechanism(hostile, tmp_path):
    write_xlsx(hostile, tmp_path / "enrichment.xlsx")
    book = openpyxl.load_workbook(tmp_path / "enrichment.xlsx")
    _, *body = book["summary"].iter_rows(values_only=True)
    assert len(body) == 5 * hostile.table["mechanism"].nunique()
    for (one, _, p_one), (two, _, p_two) in pairwise((row[0], row[1], row[10]) for row in body):
        assert one != two or p_one <= p_two


def test_an_empty_result_makes_a_workbook_too(tmp_path):
    empty = over_representation(hostile_loadings()[["dead"]], disjoint_sets())
    write_xlsx(empty, tmp_path / "enrichment.xlsx")
    book = openpyxl.load_workbook(tmp_path / "enrichment.xlsx")
    assert book["notes"]["D2"].value == "constant"


def test_a_workbook_below_a_file_is_refused(hostile, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="Cannot write"):
        write_xlsx(hostile, tmp_path / "file" / "enrichment.xlsx")
