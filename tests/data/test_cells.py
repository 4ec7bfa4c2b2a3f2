import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from samsvae_core.data.cells import (
    CellData,
    DataError,
    conditions_as_perturbations,
    describe,
    gene_panel,
    read_genes,
    summary,
)

COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(np.float32)
LABELS = ["ctrl"] * 4 + ["KLF1"] * 4 + ["SET"] * 4
SOURCE = {
    "file": "cells.h5ad",
    "perturbation_key": "perturbation",
    "counts_from": "X",
    "size_factor_key": None,
    "size_factor_suggestion": None,
    "replicate_key": None,
    "notes": [],
}


def cells_of(labels=LABELS, counts=COUNTS, **more) -> CellData:
    """Return cells with these labels and counts; `more` replaces fields, "source" adds to it."""
    names = np.array(sorted({part for label in labels for part in label.split("+")} - {"ctrl"}))
    dosages = np.array([np.isin(names, label.split("+")) for label in labels])
    source = {**SOURCE, **more.pop("source", {})}
    made = CellData(
        counts=sp.csr_matrix(counts),
        dosages=sp.csr_matrix(dosages, dtype=np.float32),
        library=counts.sum(1),
        cells=np.array([f"c{i}" for i in range(len(labels))]),
        genes=np.array([f"G{i}" for i in range(counts.shape[1])]),
        perturbations=names,
        conditions=np.array(labels),
        control="ctrl",
        has_size_factor=False,
        source=source,
    )
    return replace(made, **more)


def continuous(values, labels=LABELS) -> CellData:
    ones = np.ones(len(values), dtype=np.float32)
    return cells_of(labels, values.astype(np.float32), library=ones, is_counts=False)


# Subsets and panels


def test_subset_takes_positions_and_booleans():
    data = cells_of()
    chosen = data.subset(data.conditions == "SET")
    np.testing.assert_array_equal(chosen.counts.toarray(), COUNTS[8:])
    np.testing.assert_array_equal(chosen.dosages.toarray(), data.dosages.toarray()[8:])
    assert (
        list(chosen.cells) == list(data.subset([8, 9, 10, 11]).cells) == ["c8", "c9", "c10", "c11"]
    )
    assert list(chosen.perturbations) == ["KLF1", "SET"]


def test_replicates_go_with_their_cells_and_stay_when_genes_are_chosen():
    data = cells_of(replicates=np.array(["r1", "r2", ""] * 4))
    chosen = data.subset(data.conditions == "SET")
    assert list(chosen.replicates) == ["", "r1", "r2", ""] == list(data.replicates[8:])
    assert list(gene_panel(data, top=2).replicates) == list(data.replicates)
    assert cells_of().subset([0]).replicates is None


def test_a_panel_has_its_own_library_in_the_order_of_the_data(tmp_path):
    data = cells_of()
    (tmp_path / "genes.txt").write_text("# mine\nG3\nG1  # twice\n\nG1\nMYC\n")
    panel = gene_panel(data, genes=read_genes(tmp_path / "genes.txt"))
    assert list(panel.genes) == ["G1", "G3"]
    np.testing.assert_array_equal(panel.counts.toarray(), COUNTS[:, [1, 3]])
    np.testing.assert_array_equal(panel.library, COUNTS[:, [1, 3]].sum(1))
    assert panel.source["notes"] == [
        "2 of 5 genes were kept.",
        "1 genes asked for are not measured: MYC.",
    ]
    assert data.source["notes"] == []


def test_a_panel_keeps_a_size_factor():
    totals = COUNTS.sum(1) + 100
    data = cells_of(library=totals, has_size_factor=True)
    np.testing.assert_array_equal(gene_panel(data, genes=["G1"]).library, totals)


def test_a_size_factor_equal_to_all_genes_counts_more_than_some_of_them():
    totals = COUNTS.sum(1)
    data = cells_of(library=totals, source={"size_factor_key": "total"})
    panel = gene_panel(data, genes=["G1"])
    assert (data.has_size_factor, panel.has_size_factor) == (False, True)
    np.testing.assert_array_equal(panel.library, totals)


def test_a_panel_of_genes_that_no_cell_has_is_refused():
    counts = COUNTS * np.array([1, 1, 1, 1, 0], dtype=np.float32)
    with pytest.raises(DataError, match="No cell has a count of the genes kept"):
        gene_panel(cells_of(counts=counts), genes=["G4"])


def test_top_genes_are_those_that_vary_beyond_noise():
    rng = np.random.default_rng(1)
    rate = np.full((300, 100), 5.0)
    rate[:150, :10] *= 3  # planted in genes 0 to 9, across two blocks of genes held in memory
    rate[:150, 90:] /= 3
    labels = ["ctrl"] * 150 + ["A"] * 150
    data = cells_of(labels, rng.poisson(rate).astype(np.float32))
    expected = [f"G{i}" for i in [*range(10), *range(90, 100)]]
    assert list(gene_panel(data, top=20).genes) == expected


def test_values_that_are_no_counts_keep_their_library_and_rank_by_variance():
    rng = np.random.default_rng(2)
    values = rng.normal(0, np.repeat([1, 3, 0.1], [60, 5, 60]), size=(200, 125)) - 4.0
    data = continuous(values, ["ctrl", "A"] * 100)
    panel = gene_panel(data, top=5)
    assert list(panel.genes) == [f"G{i}" for i in range(60, 65)]
    np.testing.assert_array_equal(panel.library, np.ones(200))
    assert (panel.is_counts, panel.has_size_factor) == (False, False)
    named = gene_panel(data, genes=["G3"]).subset([0, 1])
    assert (named.is_counts, list(named.library)) == (False, [1, 1])


def test_a_panel_of_values_that_are_all_zero_is_refused():
    values = COUNTS * np.array([1, 1, 1, 1, 0], dtype=np.float32)
    with pytest.raises(DataError, match="No cell has a value but 0 of the genes kept"):
        gene_panel(continuous(values), genes=["G4"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either by name"),
        ({"genes": ["G1"], "top": 2}, "either by name"),
        ({"top": 0}, "from 1 to 5; found 0"),
        ({"top": 6}, "from 1 to 5; found 6"),
        ({"genes": ["MYC", "STAT1"]}, "2 genes asked for are not measured: MYC, STAT1. Use names"),
    ],
)
def test_a_bad_panel_gets_its_message(options, message):
    data = cells_of()
    with pytest.raises(DataError, match=message):
        gene_panel(data, **options)


def test_a_bad_list_of_genes_gets_its_message(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_genes(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_genes(tmp_path / "binary")
    (tmp_path / "empty").write_text("# nothing\n")
    with pytest.raises(DataError, match="names no genes"):
        read_genes(tmp_path / "empty")


# Perturbations


def test_each_condition_becomes_a_perturbation_of_its_own():
    labels = [*LABELS[:9], "KLF1+SET", "KLF1+MYC", "KLF1+SET"]
    data = cells_of(labels)
    single = conditions_as_perturbations(data)
    assert list(single.perturbations) == ["KLF1", "KLF1+MYC", "KLF1+SET", "SET"]
    assert single.conditions is data.conditions
    expected = [[label == name for name in single.perturbations] for label in labels]
    np.testing.assert_array_equal(single.dosages.toarray(), expected)
    assert single.dosages.dtype == np.float32


def test_dosages_make_conditions_and_leave_the_perturbations_at_one():
    data = cells_of(["ctrl", "A", "A"], COUNTS[:3])
    dosages = sp.csr_matrix(np.array([[0], [0.5], [1]], dtype=np.float32))
    data = replace(data, dosages=dosages, conditions=np.array(["ctrl", "A:0.5", "A"]))
    single = conditions_as_perturbations(data)
    assert list(single.perturbations) == ["A", "A:0.5"]
    np.testing.assert_array_equal(single.dosages.toarray(), [[0, 0], [0, 1], [1, 0]])


# Summaries


def test_a_summary_can_be_stored_as_json_and_read_by_people():
    labels = [*LABELS[:10], "KLF1+SET", "KLF1+MYC"]
    found = summary(cells_of(labels))
    assert json.loads(json.dumps(found)) == found
    assert (found["n_perturbations"], found["n_single"], found["n_combinations"]) == (3, 2, 2)
    assert found["n_control_cells"] == 4
    assert found["cells_per_condition"]["max"] == 4
    assert found["cells_per_condition"]["largest"] == "KLF1"
    assert (
        "3 perturbations in column 'perturbation', 2 of them measured singly; 2 comb"
        in describe(found)
    )


def test_replicates_are_summed_up():
    replicates = np.array(["r2", "r1", ""] * 4)
    data = cells_of(replicates=replicates, source={"replicate_key": "batch"})
    found = summary(data)
    assert found["cells_per_replicate"] == {"r1": 4, "r2": 4}
    assert "2 replicates in column 'batch': r1 (4 cells), r2 (4 cells)" in describe(found)
    assert "replicate" not in describe(summary(cells_of()))


def test_values_that_are_no_counts_are_told_with_their_range():
    values = np.where(COUNTS > 2, -1.25, COUNTS)
    found = summary(continuous(values))
    assert json.loads(json.dumps(found)) == found
    assert (found["continuous"], found["lowest_value"], found["highest_value"]) == (True, -1.25, 2)
    assert "values, not counts, from X" in describe(found)
    assert "Values from -1.25 to 2" in describe(found)
    assert "Counts per cell" not in describe(found)
