import os
import warnings
from importlib.metadata import version
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.data.cells import DataError, describe, summary
from samsvae_core.data.h5ad import read_h5ad

REAL = Path(os.environ.get("SAMSVAE_DATA", Path(__file__).parents[2] / "../shared/data"))
COUNTS = np.random.default_rng(0).poisson(2.0, size=(12, 5)).astype(np.float32)
LABELS = ["ctrl"] * 4 + ["KLF1"] * 4 + ["SET"] * 4


def write(path, labels=LABELS, X=COUNTS, obs=None, genes=None, cells=None, **more):
    """Write an .h5ad file; `obs` adds to the column `perturbation` made of `labels`."""
    table = {} if labels is None else {"perturbation": labels}
    n_cells, n_genes = (X if X is not None else COUNTS).shape
    cells = cells or [f"c{i}" for i in range(n_cells)]
    genes = genes or [f"G{i}" for i in range(n_genes)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names are not unique")
        adata = anndata.AnnData(
            X=X,
            obs=pd.DataFrame({**table, **(obs or {})}, index=cells),
            var=pd.DataFrame(index=genes),
            **more,
        )
        adata.write_h5ad(path)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cells.h5ad"


def real(name):
    path = REAL / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path


def read_labels(file, labels, **options):
    """Return the condition of each label, read from a file with one cell per label."""
    data = read_h5ad(write(file, labels, np.ones((len(labels), 2), dtype=np.int32)), **options)
    return data, list(data.conditions)


# Counts


def test_reads_counts_dosages_and_names(file):
    data = read_h5ad(write(file))
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS)
    np.testing.assert_array_equal(data.library, COUNTS.sum(1))
    np.testing.assert_array_equal(data.dosages.toarray(), np.repeat([[0, 0], [1, 0], [0, 1]], 4, 0))
    assert list(data.perturbations) == ["KLF1", "SET"]
    assert list(data.conditions) == LABELS
    assert (data.control, data.has_size_factor, data.cells[3]) == ("ctrl", False, "c3")
    assert data.source["counts_from"] == "X"
    assert data.source["notes"] == []


@pytest.mark.parametrize(
    "store",
    [
        np.asarray,
        sp.csr_matrix,
        sp.csc_matrix,
        lambda x: x.astype(np.int64),
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(np.float16),
        lambda x: sp.csc_matrix(x.astype(np.int32)),
    ],
)
def test_sparse_and_dense_files_of_any_number_type_read_the_same(file, store):
    data = read_h5ad(write(file, X=store(COUNTS)))
    assert data.counts.dtype == np.float32
    assert isinstance(data.counts, sp.csr_matrix)
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS)


def test_reads_boolean_counts(file):
    data = read_h5ad(write(file, X=sp.csr_matrix(COUNTS > 1)))
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS > 1)


def test_reads_a_view_that_was_written(file):
    adata = anndata.read_h5ad(write(file))
    adata[2:, ::2].write_h5ad(file)
    np.testing.assert_array_equal(read_h5ad(file).counts.toarray(), COUNTS[2:, ::2])


def test_falls_back_to_the_counts_layer_and_says_so(file):
    data = read_h5ad(write(file, X=np.log1p(COUNTS), layers={"counts": COUNTS}))
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS)
    assert data.source["counts_from"] == "layers/counts"
    assert "X has" in data.source["notes"][0]


def test_falls_back_to_raw_and_keeps_the_genes_of_the_file(file):
    adata = anndata.AnnData(
        COUNTS, pd.DataFrame({"perturbation": LABELS}, index=[f"c{i}" for i in range(12)])
    )
    adata.raw = adata.copy()
    adata = adata[:, ["3", "1"]].copy()
    adata.X = np.log1p(adata.X)
    adata.write_h5ad(file)
    data = read_h5ad(file)
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS[:, [3, 1]])
    assert list(data.genes) == ["3", "1"]
    assert data.source["counts_from"] == "raw/X"


def test_reads_the_layer_given_also_without_X(file):
    write(file, X=None, layers={"umi": COUNTS}, genes=list("abcde"))
    data = read_h5ad(file, layer="umi")
    np.testing.assert_array_equal(data.counts.toarray(), COUNTS)
    assert data.source["counts_from"] == "layers/umi"
    assert data.source["notes"] == []


def test_counts_constant_genes_and_empty_cells_in_notes(file):
    counts = COUNTS.copy()
    counts[0] = 0
    counts[:, 1] = 0
    data = read_h5ad(write(file, X=counts))
    notes = " ".join(data.source["notes"])
    assert "1 of 5 genes have the same count in every cell." in notes
    assert "1 cells have no count but 0" in notes
    assert data.counts.shape == (12, 5)


def test_notes_ensembl_ids_and_keeps_odd_gene_names(file):
    genes = [f"ENSG0000000000{i}" for i in range(4)] + ["H2-K1/D1"]
    data = read_h5ad(write(file, genes=genes))
    assert list(data.genes) == genes
    assert any("Ensembl" in note for note in data.source["notes"])


# Size factors


def test_a_size_factor_above_the_panel_is_the_library(file):
    totals = COUNTS.sum(1) + 100
    write(file, obs={"total_counts": totals})
    data = read_h5ad(file, size_factor_key="total_counts")
    np.testing.assert_array_equal(data.library, totals)
    assert data.has_size_factor


def test_a_size_factor_equal_to_the_panel_is_none(file):
    write(file, obs={"total_counts": COUNTS.sum(1)})
    assert not read_h5ad(file, size_factor_key="total_counts").has_size_factor


@pytest.mark.parametrize(("extra", "suggestion"), [(100, "nCount_RNA"), (0, None), (-1, None)])
def test_suggests_a_column_that_counts_more_genes(file, extra, suggestion):
    data = read_h5ad(write(file, obs={"nCount_RNA": COUNTS.sum(1) + extra}))
    assert summary(data)["size_factor_suggestion"] == suggestion
    assert ("--size-factor-key nCount_RNA" in describe(summary(data))) == (suggestion is not None)


@pytest.mark.parametrize("value", [np.nan, 0.0, -5.0, 0.5, np.inf])
def test_refuses_a_size_factor_that_is_no_total(file, value):
    totals = COUNTS.sum(1).astype(float) + 100
    totals[7] = value
    write(file, obs={"depth": totals})
    with pytest.raises(DataError, match=r"'depth' has 1 values .* recode cells c7"):
        read_h5ad(file, size_factor_key="depth")


# Labels


@pytest.mark.parametrize(
    "label",
    [
        *("control", "ctrl", "Control", "non-targeting", "Non_Targeting", "nontargeting", "NT"),
        *("NTC", "NegCtrl0", "neg-ctrl-3", "negative_control", "unperturbed", "safe-targeting"),
        *("ctrl+ctrl", "NegCtrl0_NegCtrl10", "non-targeting_00025"),
    ],
)
def test_knows_usual_control_labels(file, label):
    data, _ = read_labels(file, ["KLF1", label])
    np.testing.assert_array_equal(data.dosages.toarray(), [[1], [0]])


@pytest.mark.parametrize("label", ["NT5E", "CTR9", "NTN1", "CTRL-AS1", "CONTROLLER"])
def test_takes_no_gene_for_a_control(file, label):
    data, _ = read_labels(file, [label, "ctrl"])
    assert list(data.perturbations) == [label]


@pytest.mark.parametrize(
    ("label", "delimiter", "condition"),
    [
        ("KLF1", "+", "KLF1"),
        ("SET+KLF1", "+", "KLF1+SET"),  # sorted
        (" SET + KLF1 ", "+", "KLF1+SET"),
        ("SGK1+TBX3", "+", "SGK1+TBX3"),  # neither is a label of its own
        ("HLA-A+NKX2-1", "+", "HLA-A+NKX2-1"),
        ("KLF1+SET+TBX3", "+", "KLF1+SET+TBX3"),
        ("KLF1+ctrl", "+", "KLF1"),  # GEARS
        ("ctrl+KLF1", "+", "KLF1"),
        ("ctrl+NT", "+", "ctrl"),
        ("KLF1_SET", "_", "KLF1+SET"),  # scPerturb
        ("KLF1_SET", "+", "KLF1_SET"),
        ("KLF1+KLF1", "+", "KLF1"),
        ("AARS_+_70323362.23-P1P2", "+", "AARS_+_70323362.23-P1P2"),  # Replogle et al. 2022
        ("AARS_+_70323362.23-P1P2", "_", "AARS_+_70323362.23-P1P2"),
        ("my guide+KLF1", "+", "my guide+KLF1"),
        ("KLF1+", "+", "KLF1+"),
        ("KLF1+SET", "", "KLF1+SET"),
    ],
)
def test_splits_labels(file, label, delimiter, condition):
    _, conditions = read_labels(file, [label, "ctrl", "KLF1", "SET"], delimiter=delimiter)
    assert conditions == [condition, "ctrl", "KLF1", "SET"]


def test_a_part_that_is_a_label_of_its_own_needs_no_gene_symbol(file):
    data, _ = read_labels(file, ["ctrl", "1st guide", "1st guide+KLF1"])
    np.testing.assert_array_equal(data.dosages.toarray(), [[0, 0], [1, 0], [1, 1]])


def test_an_empty_delimiter_keeps_labels_whole(file):
    data, _ = read_labels(file, ["ctrl", "KLF1+SET"], delimiter="")
    assert list(data.perturbations) == ["KLF1+SET"]


def test_notes_labels_kept_whole_labels_named_twice_and_several_controls(file):
    labels = ["ctrl", "NT", "ctrl", "AARS_+_70323362.23-P1P2", "KLF1+KLF1"]
    data, _ = read_labels(file, labels)
    assert "2 labels are taken as control: ctrl, NT." in data.source["notes"]
    notes = " ".join(data.source["notes"])
    assert "kept whole" in notes
    assert "AARS_+_70323362.23-P1P2" in notes
    assert "name a perturbation twice, used once: KLF1+KLF1" in notes
    assert data.dosages.max() == 1


def test_the_control_of_gears_files_is_ctrl(file):
    _, conditions = read_labels(file, ["ctrl+ctrl", "KLF1+ctrl"])
    assert conditions == ["ctrl", "KLF1"]


def test_a_control_label_given_is_the_only_one(file):
    data, conditions = read_labels(file, ["AAVS1", "NT", "KLF1+AAVS1"], control="AAVS1")
    assert data.control == "AAVS1"
    assert conditions == ["AAVS1", "NT", "KLF1"]


@pytest.mark.parametrize("labels", [[0, 1, 1], [b"0", b"1", b"1"], pd.Categorical([0, 1, 1])])
def test_labels_may_be_numbers_or_bytes(file, labels):
    write(file, ["ctrl", "A", "A"], COUNTS[:3])
    stored = np.array(labels) if not isinstance(labels, pd.Categorical) else labels
    with h5py.File(file, "a") as raw:
        del raw["obs/perturbation"]
        anndata.io.write_elem(raw["obs"], "perturbation", stored)
    assert list(read_h5ad(file, control="0").conditions) == ["0", "1", "1"]


def test_unused_categories_are_no_perturbations(file):
    write(file, pd.Categorical(LABELS, categories=["ctrl", "KLF1", "MYC", "SET"]))
    assert list(read_h5ad(file).perturbations) == ["KLF1", "SET"]


# Which column


@pytest.mark.parametrize(
    "key", ["perturbation", "condition", "gene", "target_gene", "guide_identity"]
)
def test_finds_the_column_of_perturbations(file, key):
    write(file, labels=None, obs={"batch": ["ctrl"] * 12, key: LABELS})
    assert read_h5ad(file).source["perturbation_key"] == key


def test_genes_come_before_guides_and_perturbation_before_condition(file):
    guides = [f"{label}_g{i}" if label != "ctrl" else "ctrl" for i, label in enumerate(LABELS)]
    treatment = ["ctrl", "IFNG"] * 6
    write(file, obs={"guide": guides, "condition": treatment})
    assert read_h5ad(file).source["perturbation_key"] == "perturbation"


def test_a_column_without_controls_is_passed_over(file):
    write(file, labels=[f"x{i}" for i in range(12)], obs={"gene": LABELS})
    assert read_h5ad(file).source["perturbation_key"] == "gene"


def test_columns_that_differ_in_the_word_for_control_only_agree(file):
    other = [label.replace("ctrl", "non-targeting") for label in LABELS]
    write(file, labels=None, obs={"target": other, "gene": LABELS})
    assert read_h5ad(file).source["perturbation_key"] == "gene"


# Dosages


@pytest.mark.parametrize(
    ("label", "dose", "condition"),
    [
        ("KLF1", 0.5, "KLF1:0.5"),
        ("KLF1", "2", "KLF1:2"),
        ("KLF1+SET", "0.5", "KLF1:0.5+SET:0.5"),
        ("SET+KLF1", "0.5+1", "KLF1+SET:0.5"),  # aligned to the label
        ("KLF1+ctrl", "0.5+1", "KLF1:0.5"),
        ("KLF1+KLF1", "0.5+2", "KLF1:2"),
        ("SET+KLF1", "0+1", "KLF1"),
        ("KLF1", "1e-1", "KLF1:0.1"),
    ],
)
def test_reads_dosages_of_a_column(file, label, dose, condition):
    write(file, ["ctrl", label, "MYC"], COUNTS[:3], obs={"dose": ["nan", str(dose), "1"]})
    assert list(read_h5ad(file, dosage_key="dose").conditions) == ["ctrl", condition, "MYC"]


def test_a_dosage_of_zero_is_a_control_and_noted(file):
    data = read_h5ad(write(file, obs={"dose": [1.0] * 11 + [0.0]}), dosage_key="dose")
    assert data.conditions[-1] == "ctrl"
    assert any("1 cells have dosage 0" in note for note in data.source["notes"])


def test_dosages_far_above_one_are_noted(file):
    data = read_h5ad(write(file, obs={"dose": [500.0] * 12}), dosage_key="dose")
    assert any("Dosages go up to 500" in note for note in data.source["notes"])


@pytest.mark.parametrize("dose", ["-1", "nan", "", "inf", "high", "1+1", "0.5+high"])
def test_refuses_a_dosage_that_is_none(file, dose):
    write(file, obs={"dose": ["1"] * 9 + [dose] * 3})
    with pytest.raises(DataError, match=r"'dose' has 3 values .* Drop or recode cells c9 \("):
        read_h5ad(file, dosage_key="dose")


TABLE = np.array([[0, 0], [0.5, 0], [2, 1]], dtype=np.float32)


@pytest.mark.parametrize(
    "more",
    [
        {"obsm": {"D": pd.DataFrame(TABLE, index=["c0", "c1", "c2"], columns=["SET", "KLF1"])}},
        {"obsm": {"D": TABLE}, "uns": {"D_names": ["SET", "KLF1"]}},
        {"obsm": {"D": sp.csr_matrix(TABLE)}, "uns": {"D_names": np.array(["SET", "KLF1"])}},
    ],
)
def test_reads_dosages_of_a_table(file, more):
    data = read_h5ad(write(file, None, COUNTS[:3], **more), dosage_key="D")
    assert list(data.perturbations) == ["KLF1", "SET"]
    assert list(data.conditions) == ["control", "SET:0.5", "KLF1+SET:2"]
    np.testing.assert_array_equal(data.dosages.toarray(), TABLE[:, ::-1])
    assert "obsm['D']" in describe(summary(data))


def test_a_column_of_the_table_without_cells_is_left_out_and_noted(file):
    table = pd.DataFrame({"A": [0.0, 1, 1], "B": [0.0, 0, 0]}, index=["c0", "c1", "c2"])
    data = read_h5ad(write(file, None, COUNTS[:3], obsm={"D": table}), dosage_key="D")
    assert list(data.perturbations) == ["A"]
    assert any("have no cell: B" in note for note in data.source["notes"])


@pytest.mark.parametrize(
    ("table", "names", "message"),
    [
        ([[0, 0], [-1, 0], [1, 0]], ["A", "B"], "negative or missing dosages in 1 cells.* c1"),
        ([[0, 0], [1, np.nan], [1, 0]], ["A", "B"], "negative or missing dosages in 1 cells.* c1"),
        ([[0, 1], [1, 0], [1, 0]], ["A", "B"], "has no control cells: every cell has a pert"),
        ([[0, 0], [0, 0], [0, 0]], ["A", "B"], "has 3 control cells among the 3 cells"),
        ([[0, 0], [1, 0], [1, 0]], ["A", "A"], "need different names"),
        ([[1, 0], [1, 1], [1, 0]], ["A", "ctrl"], "has no control cells: every cell has a col"),
        ([[0, 0], [1, 0], [1, 1]], ["A", "ctrl"], "no cell has control columns alone .ctrl"),
        ([[0, 0], [1, 0], [1, 0]], ["A"], r"is \(3, 2\); expected \(3, 1\)"),
        ([[0, 0], [1, 0], [1, 0]], None, "does not name its columns"),
    ],
)
def test_refuses_a_bad_table_of_dosages(file, table, names, message):
    uns = {} if names is None else {"D_names": names}
    write(file, None, COUNTS[:3], obsm={"D": np.array(table, dtype=float)}, uns=uns)
    with pytest.raises(DataError, match=message):
        read_h5ad(file, dosage_key="D")


# Replicates


@pytest.mark.parametrize("key", ["replicate", "BioRep", "gem_group", "Donor", "orig.ident"])
def test_finds_the_column_of_replicates(file, key):
    data = read_h5ad(write(file, obs={key: ["a", "b", "c"] * 4, "note": ["x", "y"] * 6}))
    assert data.source["replicate_key"] == key
    assert list(data.replicates) == ["a", "b", "c"] * 4
    assert f"3 replicates in column {key!r}" in describe(summary(data))


def test_replicates_come_before_batches_and_these_before_lanes(file):
    obs = {key: ["a", "b"] * 6 for key in ("lane", "batch", "replicate")}
    assert read_h5ad(write(file, obs=obs)).source["replicate_key"] == "replicate"
    del obs["replicate"]
    assert read_h5ad(write(file, obs=obs)).source["replicate_key"] == "batch"


@pytest.mark.parametrize(
    "labels",
    [
        ["a"] * 24,  # no second
        ["a", None] * 12,
        [f"x{i}" for i in range(21)] + ["x0"] * 3,  # too many
        LABELS * 2,  # the conditions by another name
    ],
)
def test_a_column_that_tells_no_replicates_apart_is_passed_over(file, labels):
    write(file, LABELS * 2, np.tile(COUNTS, (2, 1)), obs={"sample": labels})
    data = read_h5ad(file)
    assert (data.replicates, data.source["replicate_key"]) == (None, None)


def test_cells_may_lack_a_replicate(file):
    data = read_h5ad(write(file, obs={"batch": [*"ab"] * 4 + [None] * 4}))
    assert list(data.replicates) == [*"ab"] * 4 + [""] * 4
    assert summary(data)["cells_per_replicate"] == {"a": 4, "b": 4}


def test_the_column_of_perturbations_is_not_that_of_replicates(file):
    labels = ["ctrl", "NT"] * 2 + LABELS[4:]
    data = read_h5ad(write(file, None, obs={"batch": labels}), perturbation_key="batch")
    assert data.replicates is None


def test_a_column_of_replicates_given_is_taken_as_it_is(file):
    data = read_h5ad(write(file, obs={"plate": [7] * 12}), replicate_key="plate")
    assert list(data.replicates) == ["7"] * 12
    assert data.source["replicate_key"] == "plate"


# Values that are not counts


SCALED = (COUNTS - COUNTS.mean(0)).astype(np.float32)


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix, lambda x: x.astype(np.float64)])
def test_takes_values_that_are_no_counts_as_they_are(file, store):
    data = read_h5ad(write(file, X=store(SCALED), layers={"counts": COUNTS}), continuous=True)
    np.testing.assert_array_equal(data.counts.toarray(), SCALED)
    np.testing.assert_array_equal(data.library, np.ones(12))
    assert (data.is_counts, data.has_size_factor) == (False, False)
    assert data.counts.dtype == data.library.dtype == np.float32
    assert (data.source["continuous"], data.source["counts_from"]) == (True, "X")


def test_takes_the_layer_given_of_values(file):
    write(file, X=COUNTS, layers={"z": SCALED}, obs={"total_counts": COUNTS.sum(1) + 99})
    data = read_h5ad(file, layer="z", continuous=True)
    np.testing.assert_array_equal(data.counts.toarray(), SCALED)
    assert data.source["counts_from"] == "layers/z"
    assert data.source["size_factor_suggestion"] is None


def test_values_are_never_taken_without_being_asked_for(file):
    with pytest.raises(DataError, match=r"looks scaled.* not counts .* --likelihood gaussian"):
        read_h5ad(write(file, X=SCALED))
    data = read_h5ad(write(file))
    assert (data.is_counts, data.source["continuous"]) == (True, False)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"X": SCALED * np.nan}, {}, r"X has 60 values that are missing.*cell c0, gene G0: nan;"),
        ({"X": SCALED.astype(float) * 1e300}, {}, "too large for single precision"),
        ({"X": None}, {}, r"There is no X\. .* --layer .layers here: z"),
        ({"X": COUNTS * 0}, {}, "X holds no value but 0"),
        ({}, {"layer": "y"}, "There is no layer 'y'.* z"),
        ({}, {"size_factor_key": "depth"}, "given as --size-factor-key, .* not counts"),
    ],
)
def test_bad_values_get_their_message(file, content, options, message):
    write(file, layers={"z": SCALED}, **content)
    with pytest.raises(DataError, match=message):
        read_h5ad(file, continuous=True, **options)


# Bad files


def spoiled(value, at=(3, 1)):
    counts = COUNTS.astype(np.float64)
    counts[at] = value
    return counts


NORMALISED = COUNTS / COUNTS.sum(1, keepdims=True) * 1e4
BAD_FILES = {
    "negative": ({"X": spoiled(-2)}, "X has 1 values that are negative .cell c3, gene G1: -2"),
    "nan": (
        {"X": spoiled(np.nan)},
        "X has 1 values that are missing or infinite .cell c3, gene G1",
    ),
    "infinite": ({"X": spoiled(np.inf)}, "missing or infinite .cell c3, gene G1: inf"),
    "fraction": ({"X": spoiled(0.5)}, "1 values that are not whole numbers .cell c3, gene G1: 0.5"),
    "huge": ({"X": spoiled(1e9)}, "larger than 16,777,216"),
    "first three": (
        {"X": COUNTS - 9},
        "60 values .*c0, gene G0: .*; .*gene G1.*; .*gene G2: [-0-9]*\\)",
    ),
    "sparse": ({"X": sp.csc_matrix(spoiled(-2))}, "negative .cell c3, gene G1: -2"),
    "normalised": (
        {"X": NORMALISED},
        "looks normalised to about 10,000 per cell.*layers here: none",
    ),
    "log-normalised": (
        {"X": np.log1p(NORMALISED)},
        "looks log-normalised to about 10,000 per cell",
    ),
    "log": ({"X": np.log1p(COUNTS)}, "looks log-transformed"),
    "scaled": ({"X": COUNTS - COUNTS.mean(0)}, "looks scaled"),
    "other layers": (
        {"X": np.log1p(COUNTS), "layers": {"umi": COUNTS}},
        "--layer .layers here: umi",
    ),
    "no matrix": ({"X": None, "genes": ["a"]}, "There is no X. Put raw counts into X"),
    "nothing detected": ({"X": COUNTS * 0}, "X holds no count but 0.*Put raw counts into X"),
    "no genes": ({"X": np.zeros((12, 0), dtype=np.float32)}, "has no genes: var is empty"),
    "no cells": (
        {"X": np.zeros((0, 5), dtype=np.float32), "labels": []},
        "has no cells: obs is empty",
    ),
    "same genes": ({"genes": list("abaab")}, "2 gene names .*a, b.* adata.var_names_make_unique"),
    "same cells": (
        {"cells": ["c0"] * 2 + [f"d{i}" for i in range(10)]},
        "1 cell names .*c0.* adata.obs_names",
    ),
    "no column": (
        {"labels": None, "obs": {"batch": LABELS}},
        "found batch. Name .* --perturbation-key",
    ),
    "no columns": ({"labels": None}, "found no columns"),
    "no controls": (
        {"labels": ["A"] * 6 + ["B"] * 6},
        "no control cells: .* found A, B.* --control",
    ),
    "only controls": (
        {"labels": ["ctrl"] * 12},
        "Every cell of column 'perturbation' is a control",
    ),
    "no label": (
        {"labels": pd.Categorical([*LABELS[:10], None, None])},
        "2 cells have no label .*c10, c11",
    ),
    "empty label": ({"labels": [*LABELS[:11], "  "]}, "1 cells have no label .*c11"),
    "several columns": (
        {"labels": None, "obs": {"gene": LABELS, "target": LABELS[::-1]}},
        "Several columns .*gene, target.* --perturbation-key",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_its_message(file, case):
    content, message = BAD_FILES[case]
    write(file, **content)
    with pytest.raises(DataError, match=message):
        read_h5ad(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"control": "crtl"}, "labelled 'crtl', given as --control. Did you mean 'ctrl'"),
        ({"control": "zzz"}, "There are: "),
        ({"perturbation_key": "perturbations"}, "--perturbation-key. Did you mean 'perturbation'"),
        ({"size_factor_key": "Total"}, "no column 'Total', given as --size-factor-key"),
        ({"layer": "count"}, "There is no layer 'count'. Did you mean 'counts'"),
        ({"dosage_key": "doze"}, "Neither obs nor obsm has 'doze'.*Did you mean 'dose'"),
        ({"replicate_key": "bach"}, "'bach', given as --replicate-key. Did you mean 'batch'"),
        ({"replicate_key": "empty"}, "'empty', given as --replicate-key, has no label"),
        ({"perturbation_key": "batch"}, "Column 'batch' has no control cells"),
    ],
)
def test_a_bad_option_gets_its_message(file, options, message):
    obs = {"batch": ["b1"] * 12, "dose": [1.0] * 12, "empty": [""] * 12}
    write(file, obs=obs, layers={"counts": COUNTS})
    with pytest.raises(DataError, match=message):
        read_h5ad(file, **options)


def test_a_missing_file_a_folder_a_text_file_and_an_empty_one_are_refused(file, tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        read_h5ad(file)
    with pytest.raises(DataError, match="is a folder"):
        read_h5ad(str(tmp_path))
    for text in ("gene,cell\n", ""):
        file.write_text(text)
        with pytest.raises(DataError, match=r"not an .h5ad file: expected HDF5"):
            read_h5ad(file)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(file, share):
    content = write(file).read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cannot be opened: .*truncated file.* fetch it again"):
        read_h5ad(file)


def test_another_hdf5_file_is_refused(file):
    with h5py.File(file, "w") as raw:
        raw["matrix/data"] = [1, 2]
    with pytest.raises(DataError, match=r"no \.h5ad: expected obs, var and X, found matrix"):
        read_h5ad(file)


def test_links_to_other_files_are_refused(file, tmp_path):
    write(tmp_path / "other.h5ad")
    with h5py.File(write(file), "a") as raw:
        del raw["X"]
        raw["X"] = h5py.ExternalLink(str(tmp_path / "other.h5ad"), "X")
    with pytest.raises(DataError, match=r"refers to other places or files \(X\)"):
        read_h5ad(file)


def test_data_stored_outside_the_file_are_refused(file, tmp_path):
    (tmp_path / "secret").write_bytes(bytes(480))
    with h5py.File(write(file), "a") as raw:
        del raw["X"]
        raw.create_dataset("X", (12, 5), "f8", external=[(tmp_path / "secret", 0, 480)])
    with pytest.raises(DataError, match="refers to other places"):
        read_h5ad(file)


def test_an_unknown_encoding_names_the_element_and_the_versions(file):
    with h5py.File(write(file), "a") as raw:
        raw["obs"].attrs["encoding-version"] = "9.9"
    message = (
        rf"obs of .* IORegistryError.* as anndata 0.1.0, read with anndata {version('anndata')}"
    )
    with pytest.raises(DataError, match=message):
        read_h5ad(file)


def test_what_is_not_needed_may_be_unreadable(file):
    with h5py.File(write(file, uns={"note": {"a": 1}}), "a") as raw:
        raw["uns/note"].attrs["encoding-type"] = "of the future"
    assert len(read_h5ad(file).cells) == 12


def test_a_damaged_name_inside_the_file_is_refused(file):
    with h5py.File(write(file), "a") as raw:
        raw.create_group(b"uns/\xfb")
    with pytest.raises(DataError, match=r"is damaged: .* Fetch or write it again"):
        read_h5ad(file)


@pytest.mark.parametrize("place", ["indices", "indptr"])
def test_wrong_indices_of_a_sparse_matrix_are_refused(file, place):
    with h5py.File(write(file, X=sp.csr_matrix(COUNTS)), "a") as raw:
        raw[f"X/{place}"][1] = 10_000
    with pytest.raises(DataError, match=r"X (is damaged|of .* cannot be read)"):
        read_h5ad(file)


@pytest.mark.parametrize("store", [sp.csr_matrix, sp.csc_matrix])
@pytest.mark.parametrize(
    ("place", "at", "value", "kind"),
    [
        ("indptr", 2, 2**64 - 1, "u8"),
        ("indptr", 2, 0, "u8"),  # goes down, which unsigned differences do not show
        ("indptr", -1, -(2**31), "i4"),  # a difference of which overflows
        ("indptr", 0, 3, "i4"),
        ("indices", 0, 2**32 - 1, "u4"),
        ("indices", 0, -1, "i8"),
        ("indptr", 1, 1, "bool"),
        ("indices", 1, 1, "f8"),
    ],
)
def test_indices_that_lead_out_of_a_matrix_are_refused(file, store, place, at, value, kind):
    with h5py.File(write(file, X=store(COUNTS)), "a") as raw:
        found = np.array(raw[f"X/{place}"]).astype(kind)
        found[at] = value
        del raw[f"X/{place}"]
        raw[f"X/{place}"] = found
    with pytest.raises(DataError, match=r"X (is damaged|of .* cannot be read)"):
        read_h5ad(file)


def test_words_in_place_of_counts_are_refused(file):
    with h5py.File(write(file), "a") as raw:
        del raw["X"]
        anndata.io.write_elem(raw, "X", np.full((12, 5), "many"))
    with pytest.raises(DataError, match=r"X is stored as 'string-array'; expected a dense"):
        read_h5ad(file)


def test_a_matrix_of_another_shape_is_refused(file):
    with h5py.File(write(file), "a") as raw:
        del raw["X"]
        anndata.io.write_elem(raw, "X", COUNTS[:5])
    with pytest.raises(DataError, match=r"X is \(5, 5\); expected \(12, 5\)"):
        read_h5ad(file)


# Real data


def test_reads_papalexi_2021():
    data = read_h5ad(real("papalexi2021_thp1.h5ad"))
    found = summary(data)
    assert data.counts.shape == (20_729, 299)
    assert (found["perturbation_key"], data.control) == ("perturbation", "non-targeting")
    assert (found["n_perturbations"], found["n_single"], found["n_combinations"]) == (25, 25, 0)
    assert (found["n_control_cells"], found["n_constant_genes"], found["n_empty_cells"]) == (
        2386,
        0,
        0,
    )
    assert (found["replicate_key"], len(found["cells_per_replicate"])) == ("replicate", 3)
    sizes = found["cells_per_condition"]
    assert (sizes["smallest"], sizes["min"], sizes["largest"], sizes["max"]) == (
        "SPI1",
        48,
        "IFNGR1",
        1341,
    )
    assert found["median_counts"] == 186


def test_reads_norman_2019():
    data = read_h5ad(real("norman2019_k562_subset.h5ad"))
    found = summary(data)
    assert data.counts.shape == (3_375, 500)
    assert (found["n_perturbations"], found["n_single"], found["n_combinations"]) == (31, 18, 15)
    assert (found["n_control_cells"], found["n_constant_genes"]) == (100, 250)
    assert found["size_factor_suggestion"] == "total_counts"
    assert {"KLF1+SET", "SGK1+TBX3"} <= set(data.conditions)
    assert read_h5ad(
        real("norman2019_k562_subset.h5ad"), size_factor_key="total_counts"
    ).has_size_factor


@pytest.mark.parametrize(
    ("owner", "name", "error"),
    [
        (h5py.Group, "visititems", RuntimeError("wrong B-tree signature")),
        (h5py.AttributeManager, "get", OSError("bad global heap collection signature")),
    ],
)
def test_damage_that_is_met_before_counts_are_read_is_told(
    tmp_path, monkeypatch, owner, name, error
):
    path = write(tmp_path / "a.h5ad", X=sp.csr_matrix(COUNTS))
    sound = getattr(owner, name)

    def broken(self, *rest):
        place = self.name if owner is h5py.Group else h5py.h5i.get_name(self._id).decode()
        if place == "/X":
            raise error
        return sound(self, *rest)

    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(DataError, match=r"X of .*a\.h5ad cannot be read: .* signature"):
        read_h5ad(path)
