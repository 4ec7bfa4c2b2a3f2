"""Covariates: how columns are read, refused and warned about, and how levels are matched."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.data.cells import DataError, describe, summary
from samsvae_core.data.covariates import Covariates, unseen_in_words
from samsvae_core.data.h5ad import read_h5ad

N = 120  # cells: 40 controls, 40 of A, 40 of B


def write(path, **columns):
    """Write a screen of two perturbations with these columns of obs."""
    label = np.repeat(["control", "A", "B"], N // 3)
    obs = pd.DataFrame({"perturbation": label, **columns}, index=[f"c{i}" for i in range(N)])
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(3, (N, 6)).astype(np.float32))
    anndata.AnnData(counts, obs, pd.DataFrame(index=[f"G{i}" for i in range(6)])).write_h5ad(path)
    return path


def alternating(*names):
    return np.resize(np.array(names, dtype=object), N)


def test_levels_are_read_by_name_and_numbered_in_their_order(tmp_path):
    path = write(tmp_path / "a.h5ad", batch=alternating("b2", "b1", "b3"), lane=np.arange(N) % 4)
    found = read_h5ad(path, covariates=["lane", "batch"])
    covariates = found.covariates
    assert covariates.levels == {"lane": ("0", "1", "2", "3"), "batch": ("b1", "b2", "b3")}
    assert covariates.codes[:4].tolist() == [[0, 1], [1, 0], [2, 2], [3, 1]]
    assert covariates.labels("batch")[:3].tolist() == ["b2", "b1", "b3"]
    assert len(set(found.strata.tolist())) == 12
    assert found.source["covariates"] == ["lane", "batch"]
    few = found.subset(np.array([5, 1]))
    assert few.covariates.labels("lane").tolist() == ["1", "1"]
    assert "Covariate 'batch' with 3 levels: b1 (40 cells)" in describe(summary(found))


def test_without_covariates_all_cells_are_in_one_stratum(tmp_path):
    found = read_h5ad(write(tmp_path / "a.h5ad"))
    assert found.covariates is None
    assert set(found.strata.tolist()) == {0}


MISSING = alternating("b1", "b2")
MISSING[[3, 7]] = None


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        (MISSING, "batch", "has no value in 2 cells (such as c3, c7)"),
        (np.arange(N) / 7, "batch", "holds numbers such as 0.142857"),
        ([f"x{i}" for i in range(N)], "batch", None),  # 120 levels: one cell each, see below
        (alternating("b1", "b2"), "perturbation", "names the perturbations"),
        (alternating("b1", "b2"), "bach", "Did you mean 'batch'?"),
        (np.repeat(["x", "y", "z"], N // 3), "batch", "cannot be told from the perturbations"),
        (np.repeat(["x", "y", "y"], N // 3), "batch", "cannot be told from the perturbations"),
    ],
)
def test_a_column_that_cannot_be_a_covariate_is_refused(tmp_path, values, key, said):
    path = write(tmp_path / "a.h5ad", batch=values)
    with pytest.raises(DataError) as caught:
        read_h5ad(path, covariates=[key])
    assert (said or "cannot be told from the perturbations") in str(caught.value)


def test_a_column_that_tells_cells_apart_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("samsvae_core.data.covariate_columns.MOST_LEVELS", 100)
    path = write(tmp_path / "a.h5ad", batch=[f"x{i}" for i in range(N)])
    with pytest.raises(DataError, match="has 120 levels in 120 cells; expected at most 100"):
        read_h5ad(path, covariates=["batch"])


def test_doubtful_covariates_are_read_and_told(tmp_path):
    small = alternating("b1", "b2")
    small[[0, 40, 80]] = "b3"
    lone = alternating("b1", "b2")
    lone[-40:] = "b9"  # all of B, and no control
    path = write(
        tmp_path / "a.h5ad",
        one=["x"] * N,
        small=small,
        lone=lone,
        same=np.where(small == "b1", "first", small),
    )
    told = read_h5ad(path, covariates=["one", "small", "same"]).source
    assert "Covariate 'one' is 'x' in every cell, and changes nothing." in told["notes"]
    assert "Covariates 'small' and 'same' part cells alike; one would do." in told["notes"]
    assert any("'small', 1 level has fewer than 20 cells: b3 (3)" in w for w in told["warnings"])
    warned = read_h5ad(path, covariates=["lone"]).source["warnings"]
    assert any("1 condition shares no level of 'lone' with a control cell: B" in w for w in warned)


def test_levels_are_matched_by_name_and_unseen_ones_stay_apart():
    codes = np.array([[0, 1], [1, 0], [2, 1], [3, 1]], dtype=np.int32)
    cells = Covariates({"batch": ("b1", "b2", "b8", "b9"), "donor": ("d1", "d2")}, codes)
    model = {"donor": ["d2", "d1"], "batch": ["b0", "b1", "b2"]}
    found = cells.aligned(model)
    assert found.codes.tolist() == [[0, 1], [1, 2], [0, -1], [0, -2]]
    assert found.labels("batch").tolist() == ["b1", "b2", "", ""]
    assert len(set(found.strata().tolist())) == 4
    assert unseen_in_words(cells, model) == (
        "Levels that the model has not seen (batch: b8, b9) are taken as the mean level."
    )
    assert unseen_in_words(cells, {"batch": cells.levels["batch"]}) == ""
    assert unseen_in_words(None, model) == ""
