"""Shifts by level disagree where they differ by more than their errors."""

import numpy as np
import pandas as pd
import pytest

from samsvae_core.analysis.by_level import covariates_of, disagreement, shifts_by_level


def table(shifts, se=0.1):
    return pd.DataFrame(
        [
            {"gene": gene, "level": f"b{k}", "shift": x, "se": se, "n": 9}
            for gene, values in shifts.items()
            for k, x in enumerate(values)
        ]
    )


def test_of_two_levels_it_is_the_test_of_their_difference():
    """Two means apart by d with errors s: q = d^2 / (2 s^2), so 0.2 apart has q 2."""
    found = disagreement(table({"A": [0.0, 0.2], "B": [1.0, 1.0], "C": [5.0]}))
    assert list(found.index) == ["A", "B"]
    assert found["q"].tolist() == pytest.approx([2.0, 0.0])
    assert found.loc["A", "p_value"] == pytest.approx(0.1573, abs=1e-4)
    assert found["fdr"].tolist() == pytest.approx([0.3146, 1.0], abs=1e-4)


def test_without_a_difference_p_values_are_even():
    rng = np.random.default_rng(0)
    found = disagreement(table({f"G{g}": 0.1 * rng.standard_normal(4) for g in range(4000)}))
    assert found["p_value"].mean() == pytest.approx(0.5, abs=0.02)
    assert (found["p_value"] < 0.1).mean() == pytest.approx(0.1, abs=0.02)


def test_levels_without_an_error_are_left_out():
    assert disagreement(table({"A": [0.0, 9.0]}, se=0.0)).empty


def test_a_bundle_has_shifts_by_level_or_none(batched, tiny):
    name = str(batched.perturbations.index[0])
    assert covariates_of(batched, name) == ["batch"]
    rows = shifts_by_level(batched, name, "batch")
    assert set(rows["level"]) == set(batched.levels["batch"])
    assert len(rows) == 3 * len(batched.genes)
    assert covariates_of(tiny, name) == []
    assert shifts_by_level(tiny, name, "batch").empty
