"""The audit of the design: right measures, and covariates that can be told from perturbations."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from samsvae_core.data.columns import uneven_warnings
from samsvae_core.data.design import ACCOUNTED, PROPOSED, as_json, audit, describe, read_json
from samsvae_core.data.h5ad import audited, read_cells, read_h5ad
from samsvae_core.data.inspection import inspect
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.data.unevenness import association
from tests.data.test_h5ad import write

N = 40  # cells of each condition


def each(n=N, **shares):
    """Return conditions, and the level of each cell: n x the shares, by condition."""
    conditions, levels = [], []
    for name, of_level in shares.items():
        conditions += [name] * n
        levels += [level for level, k in of_level.items() for _ in range(round(n * k))]
    return np.array(conditions), np.array(levels, dtype=object)


EVEN = {"x": 0.5, "y": 0.5}


def looked(conditions, accounted=(), **columns):
    """Return the audited columns by name."""
    found = audit(pd.DataFrame(columns), conditions, "control", accounted=accounted)
    return {column.name: column for column in found}


# Measures


def test_v_of_a_table_of_two_by_two_is_right():
    """Chi-squared is 80 * (30 * 30 - 10 * 10)^2 / 40^4 = 20, so phi^2 is 20 / 80 = 0.25."""
    v, p = association(np.array([[30, 10], [10, 30]]))
    assert v == pytest.approx(np.sqrt((0.25 - 1 / 79) / (1 - 1 / 79)))
    assert p == pytest.approx(stats.chi2.sf(20, 1))


def test_v_is_zero_where_rows_are_alike_and_one_where_one_tells_the_other():
    assert association(np.array([[10, 20], [20, 40], [5, 10]])) == (0.0, pytest.approx(1.0))
    assert association(np.diag([50, 50, 50]))[0] == pytest.approx(1.0)
    assert association(np.array([[10, 0], [20, 0]])) == (0.0, 1.0)


def test_v_expects_nothing_of_columns_that_are_even_by_chance():
    rng = np.random.default_rng(0)
    labels, levels = rng.integers(0, 50, 3_000), rng.integers(0, 40, 3_000)
    table = np.asarray(pd.crosstab(labels, levels))
    plain = np.sqrt(stats.chi2_contingency(table).statistic / 3_000 / 39)
    assert plain > 0.1  # by chance alone
    assert association(table)[0] < 0.03


def test_the_condition_most_unlike_the_controls_is_told_with_both_shares():
    shares = {"control": {"b1": 0.25, "b2": 0.75}, "A": {"b1": 0.5, "b2": 0.5}}
    conditions, batch = each(n=400, **shares, B={"b1": 0.2, "b2": 0.8})
    column = looked(conditions, batch=batch)["batch"]
    assert column.unlike == ("A", "b1", 0.5, 0.25)
    assert column.conditions == ["control", "A", "B"]  # A differs by a quarter, B by a twentieth
    assert column.cells == [[100, 300], [200, 200], [80, 320]]
    assert (column.alone, column.compared, column.strongly) == ([], 1.0, True)


def test_a_small_condition_that_differs_by_chance_does_not_hide_one_that_does_not():
    conditions, batch = each(n=1_000, control=EVEN, A={"x": 0.8, "y": 0.2})
    small, of_small = each(n=20, B={"x": 0.15, "y": 0.85})
    column = looked(np.r_[conditions, small], batch=np.r_[batch, of_small])["batch"]
    assert column.unlike.condition == "A"
    assert column.conditions == ["control", "A", "B"]


def test_conditions_of_few_cells_are_not_compared_and_are_told_where_they_are_alone():
    conditions, batch = each(control={"x": 1.0}, A={"x": 0.5, "y": 0.5})
    column = looked(np.r_[conditions, ["B"] * 19], batch=np.r_[batch, ["y"] * 19])["batch"]
    assert column.conditions == ["control", "A"]
    assert column.alone == ["B"]
    assert column.compared == pytest.approx(20 / 59)


# What is proposed


def judged(columns):
    return {name: (column.state, column.why) for name, column in columns.items()}


def test_uneven_columns_and_usual_names_are_proposed_and_even_ones_are_not():
    conditions, uneven = each(n=200, control=EVEN, A={"x": 0.8, "y": 0.2}, B=EVEN)
    even = np.resize(["p", "q", "r", "s"], 600)
    found = judged(looked(conditions, origin=uneven, Lane=even, kept_in=even[::-1]))
    assert found == {
        "origin": (PROPOSED, "uneven"),
        "Lane": (PROPOSED, "by its name"),
        "kept_in": ("", "the same cells as 'Lane'"),
    }
    assert judged(looked(conditions, kept_in=even))["kept_in"] == ("", "even")


def test_what_is_made_from_counts_or_names_perturbations_is_no_part_of_the_design():
    conditions, uneven = each(n=200, control=EVEN, A={"x": 0.8, "y": 0.2}, B=EVEN)
    guides = np.char.add(np.where(conditions == "control", "NT", conditions), "_g1")
    columns = ["leiden", "seurat_clusters", "Phase", "mixscape_class", "n_genes", "nCount_RNA"]
    columns += ["dose_value", "nperts", "umi_count", "predicted_doublet", "pct_mito_bin"]
    made = dict.fromkeys(columns, uneven)
    named = {"guide": guides, "target": conditions, "depth": np.linspace(0, 1, 600)}
    ids = [f"cell {i}" for i in range(600)]
    assert list(looked(conditions, **made, **named, barcode=ids, one=["x"] * 600)) == []


def test_a_treatment_with_controls_of_its_own_is_no_column_of_perturbations():
    conditions, stimulated = each(
        n=200, control={"ctrl": 0.5, "IFNg": 0.5}, A={"ctrl": 0.2, "IFNg": 0.8}
    )
    assert looked(conditions, stim=stimulated)["stim"].state == PROPOSED


def test_a_column_that_cannot_be_told_from_perturbations_is_not_proposed():
    conditions, line = each(control={"T98G": 1.0}, A={"A172": 1.0}, B={"U87MG": 1.0})
    found = looked(conditions, cell_line=line, cell_type=line)
    assert found["cell_line"].state == found["cell_type"].state == ""
    assert found["cell_line"].why.startswith("cannot be told from the perturbations")
    assert found["cell_line"].v == pytest.approx(1.0)
    assert sorted(found["cell_line"].alone) == ["A", "B"]
    (warning,) = uneven_warnings(list(found.values()))
    assert warning.startswith("Columns 'cell_line' and 'cell_type' differ")
    assert "no covariate can tell the two apart" in warning
    assert "--covariate" not in warning


def test_of_a_condition_without_controls_in_its_levels_is_told():
    conditions, line = each(control={"x": 1.0}, A={"y": 1.0}, B=EVEN)
    column = looked(conditions, line=line)["line"]
    assert column.state == PROPOSED
    assert column.why == "uneven, though A has no control in its levels"


NESTED = np.repeat(["x1", "x2", "y1", "y2"], 50)  # lanes of the batches x and y


def test_of_nested_columns_the_finer_is_proposed():
    conditions = np.resize(["control", "A"], 200)
    batch = np.array([lane[0] for lane in NESTED])
    found = judged(looked(conditions, batch=batch, lane=NESTED))
    assert found["lane"][0] == PROPOSED
    assert found["batch"] == ("", "known from 'lane'")


def test_of_nested_columns_one_that_is_too_fine_gives_way():
    conditions = np.resize(["control", "A"], 200)
    batch = np.array([lane[0] for lane in NESTED])
    sample = np.char.add(batch, np.arange(200).astype(str))  # of one cell each
    wells = np.char.add(batch, (np.arange(200) // 10).astype(str))  # of ten
    found = judged(looked(conditions, batch=batch, sample=sample, well=wells, plate=wells))
    assert found["batch"][0] == PROPOSED
    assert found["plate"] == ("", "20 of 20 levels have fewer than 20 cells")
    assert found["well"] == ("", "the same cells as 'plate'")
    few = np.where(conditions == "control", "x1", NESTED)  # controls in one lane alone
    few = np.where((conditions == "control") & (batch == "y"), "y1", few)
    found = judged(looked(conditions, batch=batch, lane=few))
    assert found["batch"][0] == PROPOSED
    assert found["lane"] == (
        "",
        "finer than 'batch', with too few controls",
    )


def test_columns_are_not_proposed_together_where_no_controls_would_be_left():
    """Controls are in x with p and y with q, A in x with q and y with p: each alone has both."""
    conditions = np.repeat(["control", "A"], 80)
    batch = np.resize(np.repeat(["x", "y"], 40), 160)
    donor = np.r_[np.repeat(["p", "q"], 40), np.repeat(["q", "p"], 40)]
    found = judged(looked(conditions, batch=batch, donor=donor))
    assert found["batch"][0] == PROPOSED
    assert found["donor"] == ("", "too few controls beside 'batch'")


def test_an_even_column_does_not_take_the_controls_of_an_uneven_one():
    """40 plates of 20 cells, of which a tenth are controls: with batches too few have some."""
    rng = np.random.default_rng(0)
    conditions = rng.permutation(np.repeat(["control", "A"], [80, 720]))
    batch = np.where(rng.random(800) < np.where(conditions == "A", 0.8, 0.3), "x", "y")
    lane = np.char.add(batch, rng.integers(0, 2, 800).astype(str))
    found = judged(looked(conditions, plate=np.repeat(np.arange(40), 20), batch=batch, lane=lane))
    assert found["lane"] == (PROPOSED, "uneven")
    assert found["batch"] == ("", "known from 'lane'")
    assert found["plate"] == ("", "too few controls beside 'lane'")


def test_a_column_without_values_in_some_cells_is_not_proposed():
    conditions, batch = each(n=200, control=EVEN, A={"x": 0.8, "y": 0.2})
    batch[:3] = ""
    assert judged(looked(conditions, batch=batch))["batch"] == ("", "no value in 3 cells")


def test_what_is_accounted_for_is_not_proposed_again_nor_warned_of():
    conditions, batch = each(n=200, control=EVEN, A={"x": 0.8, "y": 0.2})
    site = np.where(batch == "x", "north", "south")
    found = looked(conditions, ["batch"], batch=batch, site=site)
    assert found["batch"].state == ACCOUNTED
    assert judged(found)["site"] == ("", "the same cells as 'batch'")
    assert uneven_warnings(list(found.values())) == []
    assert len(uneven_warnings(list(looked(conditions, batch=batch, site=site).values()))) == 1


# In words, and from files

ODD = {"x": "<b>x</b>\x1b[2J", "y": "`y`| and\nmore"}


@pytest.fixture
def file(tmp_path):
    """Return a file with a batch of odd names, and a lane within it."""
    conditions, batch = each(n=60, control=EVEN, A={"x": 0.8, "y": 0.2})
    named = [ODD[level] for level in batch]
    obs = {"perturbation": conditions, "the batch": named}
    counts = np.random.default_rng(0).poisson(2.0, (120, 5)).astype(np.float32)
    return write(tmp_path / "odd.h5ad", None, counts, obs=obs)


def test_an_audit_comes_back_from_json(file):
    columns = audited(file, ReadOptions())
    again = read_json(json.loads(json.dumps(as_json(columns), allow_nan=False)))
    assert [vars(column) for column in again] == [vars(column) for column in columns]
    assert again[0].unlike.level == ODD["x"]


def test_it_is_told_in_a_table_of_a_line_for_each_column(file):
    lines = describe(audited(file, ReadOptions())).splitlines()
    assert len(lines) == 4  # names hold line breaks
    assert lines[2].split("  ")[1] == "'the batch'"
    assert "'A': 80% '<b>x</b>\\x1b[2J' (50%)" in lines[2]
    assert lines[2].endswith("proposed: uneven")
    assert lines[3] == "To account for it: --covariate 'the batch'"
    assert describe([]) == "Design: no column of obs may be a covariate."


def test_inspect_and_the_reader_tell_the_same(file):
    suggested = inspect(file)["suggested"]
    assert suggested["covariates"] == ["the batch"]
    assert suggested["warnings"] == [
        warning for warning in read_h5ad(file).source["warnings"] if "control cells" in warning
    ]
    accounted = ReadOptions(covariates=("the batch",))
    assert audited(file, accounted)[0].state == ACCOUNTED
    assert read_cells(file, accounted).source["warnings"] == []


def test_cells_that_are_left_out_are_not_audited(tmp_path):
    conditions, batch = each(n=60, control=EVEN, A={"x": 0.8, "y": 0.2})
    labels = np.r_[conditions, ["none"] * 60]
    counts = np.random.default_rng(0).poisson(2.0, (180, 5)).astype(np.float32)
    obs = {"perturbation": labels, "batch": np.r_[batch, ["z"] * 60]}
    path = write(tmp_path / "a.h5ad", None, counts, obs=obs)
    (column,) = audited(path, ReadOptions(drop_unlabelled=True))
    assert column.levels == ["x", "y"]
