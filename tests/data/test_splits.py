import os
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.data.cells import CellData, DataError
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.splits import split

REAL = Path(os.environ.get("SAMSVAE_DATA", Path(__file__).parents[2] / "../shared/data"))


def cells_of(sizes: dict[str, int]) -> CellData:
    """Return cells of conditions of the given sizes."""
    conditions = np.repeat(list(sizes), list(sizes.values())).astype(str)
    parts = [label.split("+") for label in conditions]
    perturbations = np.unique([part for each in parts for part in each if part != "ctrl"])
    dosages = np.array([np.isin(perturbations, each) for each in parts])
    n = len(conditions)
    return CellData(
        counts=sp.csr_matrix(np.ones((n, 1), dtype=np.float32)),
        dosages=sp.csr_matrix(dosages, dtype=np.float32),
        library=np.ones(n, dtype=np.float32),
        cells=np.array([f"c{i}" for i in range(n)]),
        genes=np.array(["G"]),
        perturbations=perturbations,
        conditions=conditions,
        control="ctrl",
        has_size_factor=False,
        source={},
    )


SINGLES = [*"ABCDEF"]
PAIRS = [f"{a}+{b}" for a, b in combinations(SINGLES, 2)]  # 15
SCREEN = {"ctrl": 100} | dict.fromkeys(SINGLES, 50) | {pair: 20 + i for i, pair in enumerate(PAIRS)}


def cells_in(data, parts, part):
    return set(data.cells[parts == part])


def test_a_random_split_has_its_fractions_within_every_condition():
    data = cells_of({"A": 50, "B": 100, "ctrl": 1000})
    parts = split(data)
    table = pd.crosstab(data.conditions, parts)
    np.testing.assert_array_equal(table["train"], [32, 64, 640])
    np.testing.assert_array_equal(table["validation"], [8, 16, 160])
    np.testing.assert_array_equal(table["test"], [10, 20, 200])


def test_every_small_condition_is_trained_on_and_from_three_cells_also_tested():
    sizes = {f"P{n}": n for n in range(1, 12)} | {"ctrl": 3}
    table = pd.crosstab(cells_of(sizes).conditions, split(cells_of(sizes)))
    assert (table["train"] > 0).all()
    assert (table.loc[[name for name, n in sizes.items() if n >= 3]] > 0).all(axis=None)


def test_the_seed_decides_the_split():
    data = cells_of({"A": 50, "ctrl": 100})
    np.testing.assert_array_equal(split(data, seed=3), split(data, seed=3))
    assert (split(data, seed=3) != split(data, seed=4)).any()


def test_a_random_split_of_a_seed_stays_what_it_was():
    parts = split(cells_of({"A": 5, "ctrl": 5}), seed=1)
    assert "".join(part[1] for part in parts) == "rraerrrera"  # second letters


# Held-out combinations


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.75])
def test_no_combination_is_both_trained_and_tested_on(fraction):
    data = cells_of(SCREEN)
    parts = split(data, "combinations", seed=2, fraction=fraction)
    seen = set(data.conditions[np.isin(parts, ["train", "validation"])])
    tested = set(data.conditions[parts == "test"])
    assert not seen & tested
    assert len(tested) == 4  # a quarter of 15, rounded up
    assert len(seen - {"ctrl", *SINGLES}) == int(15 * fraction)
    assert {"ctrl", *SINGLES} <= seen


def test_the_default_holds_out_a_quarter_and_trains_on_the_rest():
    data = cells_of(SCREEN)
    parts = split(data, "combinations")
    assert list(parts) == list(split(data, "combinations", fraction=0.75))
    assert set(data.conditions[parts != "unused"]) == set(SCREEN)


@pytest.mark.parametrize("how", ["combinations", "efficiency"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_larger_fraction_only_adds_cells_to_those_trained_on(how, seed):
    data = cells_of(SCREEN)
    series = [split(data, how, seed, fraction) for fraction in (0.0, 0.1, 0.3, 0.6, 0.75, 0.9, 1.0)]
    for less, more in pairwise(series):
        assert cells_in(data, less, "train") < cells_in(data, more, "train")
        assert cells_in(data, less, "validation") <= cells_in(data, more, "validation")
        assert cells_in(data, less, "test") == cells_in(data, more, "test") != set()


def test_a_fifth_of_the_cells_of_a_combination_is_tested_and_no_other_cell():
    data = cells_of({"ctrl": 100, "A": 50, "B": 50, "A+B": 100})
    table = pd.crosstab(data.conditions, split(data, "combinations"))
    assert dict(table.loc["A+B"]) == {"test": 20, "train": 0, "unused": 80, "validation": 0}
    assert dict(table.loc["A"]) == {"test": 0, "train": 40, "unused": 0, "validation": 10}
    assert dict(table.loc["ctrl"]) == {"test": 0, "train": 80, "unused": 0, "validation": 20}


def test_all_combinations_can_be_trained_on():
    data = cells_of({"ctrl": 100, "A": 50, "B": 50, "A+B": 100})
    table = pd.crosstab(data.conditions, split(data, "combinations", fraction=1.0))
    assert dict(table.loc["A+B"]) == {"test": 20, "train": 64, "validation": 16}


def test_the_order_of_combinations_is_drawn_from_their_sorted_names():
    data = cells_of(SCREEN)
    order = np.random.default_rng(5).permutation(sorted(PAIRS))
    parts = split(data, "combinations", seed=5, fraction=0.2)
    assert set(data.conditions[parts == "test"]) == set(order[-4:])
    assert set(data.conditions[parts == "train"]) == {"ctrl", *SINGLES, *order[:3]}


def test_a_combination_with_a_part_never_measured_alone_is_trained_on_and_never_tested():
    data = cells_of({"ctrl": 50, "A": 20, "B": 20, "A+B": 20, "A+X": 20, "A+B+Y": 20})
    for seed in range(5):
        table = pd.crosstab(data.conditions, split(data, "combinations", seed))
        assert list(table.index[table["test"] > 0]) == ["A+B"]
        assert list(table.loc["A+X", ["train", "validation"]]) == [16, 4]
        assert list(table.loc["A+B+Y", ["train", "validation"]]) == [16, 4]


def test_dosages_of_one_combination_are_held_out_together():
    data = cells_of(SCREEN)
    doses = np.where(np.arange(len(data.cells)) % 2, 0.5, 1.0)
    pair = data.dosages.getnnz(axis=1) == 2
    halved = sp.diags_array(np.where(pair, doses, 1.0)) @ data.dosages
    labels = [
        name.replace("+", ":0.5+") + ":0.5" if is_pair and dose < 1 else name
        for name, is_pair, dose in zip(data.conditions, pair, doses, strict=True)
    ]
    halved = sp.csr_matrix(halved, dtype=np.float32)
    dosed = replace(data, dosages=halved, conditions=np.array(labels))
    parts = split(dosed, "combinations", seed=3)
    names = data.conditions  # without their dosages
    assert not set(names[parts == "test"]) & set(names[parts == "train"])


# Fewer cells of combinations


@pytest.mark.parametrize(("fraction", "trained"), [(0.0, 0), (0.25, 160), (None, 320), (1.0, 640)])
def test_a_share_of_the_training_cells_of_combinations_is_used(fraction, trained):
    data = cells_of({"ctrl": 100, "A": 50, "B": 50, "C": 50, "A+B": 500, "A+C": 500})
    parts = split(data, "efficiency", fraction=fraction)
    found = pd.Series(parts[data.dosages.getnnz(axis=1) == 2]).value_counts()
    assert found["validation"] == 160
    assert found["test"] == 200
    assert (found.get("train", 0), found.get("unused", 0)) == (trained, 640 - trained)
    assert dict(pd.Series(parts[data.conditions == "ctrl"]).value_counts()) == {
        "train": 80,
        "validation": 20,
    }


def test_efficiency_counts_every_combination():
    data = cells_of({"ctrl": 50, "A": 20, "A+X": 50})
    assert (split(data, "efficiency", fraction=1.0)[data.conditions == "A+X"] == "test").sum() == 10
    with pytest.raises(DataError, match=r"1 perturbations have no training cell .X"):
        split(data, "efficiency", fraction=0.0)


# Files


def test_reads_a_split_in_any_order_with_its_short_words(tmp_path):
    (tmp_path / "split.csv").write_text("split,cell\ntest,c3\nVal,c1\ntrain,c0\n valid ,c2\n")
    parts = split(cells_of({"A": 1, "ctrl": 3}), tmp_path / "split.csv")
    assert list(parts) == ["train", "validation", "validation", "test"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "cell,part\nc0,train\n",
            "must have columns cell, split, or a column condition; found cell, part",
        ),
        ("", "is no CSV file"),
        ('cell,split\n"c0,train\n', "is no CSV file"),
        ("cell,split\nc0,train\nc1,holdout\nc2,test\n", "other than train.*1: holdout"),
        ("cell,split\nc0,train\nc0,test\nc1,train\nc2,test\n", "more than once .1: c0"),
        ("cell,split\nc0,train\nc1,train\nc2,test\nd9,test\n", "not in the data .1: d9"),
        ("cell,split\nc0,train\n", "no line for cells of the data .2: c1, c2"),
        ("cell,split\nc0,test\nc1,test\nc2,val\n", "has no train cells"),
        ("cell,split\nc0,test\nc1,train\nc2,train\n", "1 perturbations have no training cell .A"),
    ],
)
def test_a_bad_split_file_gets_its_message(tmp_path, text, message):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        split(cells_of({"A": 1, "ctrl": 2}), path)


def test_a_split_file_may_leave_cells_unused(tmp_path):
    (tmp_path / "split.csv").write_text("cell,split\nc0,train\nc1,Unused\nc2,test\n")
    parts = split(cells_of({"A": 1, "ctrl": 2}), str(tmp_path / "split.csv"))
    assert list(parts) == ["train", "unused", "test"]


def test_conditions_listed_are_tested_on_whole_in_any_order_of_their_parts(tmp_path):
    path = tmp_path / "conditions.csv"
    path.write_text("why,condition\nx,B+A\ny, F \nz,E+F\nz,F+E\n")
    screen = {**SCREEN, "F": 9}
    data = cells_of(screen)
    parts = split(data, path)
    assert set(data.conditions[parts == "test"]) == {"A+B", "E+F", "F"}
    assert set(data.conditions[parts != "test"]) == set(screen) - {"A+B", "E+F", "F"}
    rest = pd.crosstab(data.conditions, parts).loc[["A", "ctrl"]]
    np.testing.assert_array_equal(rest[["train", "validation"]], [[40, 10], [80, 20]])
    np.testing.assert_array_equal(split(data, path), parts)
    assert (split(data, path, seed=1) != parts).any()


def test_other_cells_do_not_change_parts_with_the_conditions_listed(tmp_path):
    data = cells_of(SCREEN)
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text("condition\nA+B\n")
    other.write_text("condition\nC+D\n")
    common = ~np.isin(data.conditions, ["A+B", "C+D"])
    np.testing.assert_array_equal(split(data, one)[common], split(data, other)[common])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("condition\nA+BB\n", r"lists 1 conditions .* .A\+BB.* Did you mean 'A\+B'"),
        ("condition\nctrl\n", "lists the control 'ctrl'.* Remove it"),
        ("condition\n", "lists no condition"),
        ("condition\nA\nA+B\n", r"1 perturbations have no training cell .A"),
    ],
)
def test_a_bad_list_of_conditions_gets_its_message(tmp_path, text, message):
    path = tmp_path / "conditions.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        split(cells_of({"A": 5, "B": 5, "A+B": 5, "ctrl": 5}), path)


# Options


@pytest.mark.parametrize(
    ("how", "fraction", "message"),
    [
        ("combinations", 1.5, "from 0 to 1; found 1.5"),
        ("efficiency", -0.1, "from 0 to 1; found -0.1"),
        ("efficiency", float("nan"), "from 0 to 1; found nan"),
        ("random", 0.5, "'random', which has none. .* combinations or efficiency"),
        ("mine.csv", 0.5, "'mine.csv', which has none"),
        ("combos", None, "no split 'combos', .* random, combinations, efficiency, or"),
        (Path("none.csv"), None, "no split 'none.csv', and no such file"),
    ],
)
def test_a_bad_option_gets_its_message(how, fraction, message):
    with pytest.raises(DataError, match=message):
        split(cells_of(SCREEN), how, fraction=fraction)


@pytest.mark.parametrize(
    ("sizes", "how", "message"),
    [
        ({"A": 9, "ctrl": 9}, "combinations", r"measured alone .* \(found no combinations\)"),
        ({"A": 9, "A+B": 9, "ctrl": 9}, "combinations", r"measured alone .*found A\+B"),
        ({"A": 9, "ctrl": 9}, "efficiency", "No cell has two perturbations"),
        ({"A": 9, "B": 9, "A+B": 2, "ctrl": 9}, "combinations", r"No test cell .* A\+B .* 3 cells"),
        ({"A": 9, "B": 9, "A+B": 2, "ctrl": 9}, "efficiency", r"No test cell .* A\+B .* 3 cells"),
    ],
)
def test_data_without_suitable_combinations_get_a_message(sizes, how, message):
    with pytest.raises(DataError, match=message):
        split(cells_of(sizes), how)


@pytest.mark.parametrize("how", ["combinations", "efficiency"])
def test_the_seed_decides_which_combinations_and_cells(how):
    data = cells_of(SCREEN)
    np.testing.assert_array_equal(split(data, how, seed=3), split(data, how, seed=3))
    assert (split(data, how, seed=3) != split(data, how, seed=4)).any()


def test_a_perturbation_without_cells_has_no_training_cell():
    data = cells_of({"A": 5, "B": 5, "ctrl": 5})
    with pytest.raises(DataError, match=r"no training cell .B"):
        split(data.subset(data.conditions != "B"))


def test_reads_the_split_of_papalexi_2021():
    if not REAL.exists():
        pytest.skip(f"{REAL} is absent")
    data = read_h5ad(REAL / "papalexi2021_thp1.h5ad")
    parts = pd.Series(split(data, REAL / "papalexi2021_split.csv")).value_counts()
    assert dict(parts) == {"train": 13_266, "validation": 3_317, "test": 4_146}
