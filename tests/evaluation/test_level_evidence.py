"""Evidence with one level of a covariate left out."""

import numpy as np
import pandas as pd
import pytest

from samsvae_core.evaluation.level_evidence import by_level, held_by_one, levels_of

LABELS = np.repeat(["b1", "b2", "b3"], [20, 10, 10])


def gains(*means):
    """Return gains of one entry whose cells of each batch have this mean, and spread 0.1."""
    of_batch = np.array(means)[np.repeat([0, 1, 2], [20, 10, 10])]
    return of_batch[None] + np.resize([0.1, -0.1], 40)


@pytest.mark.parametrize(
    ("means", "lowest", "without", "speak_for", "against"),
    [
        ((0.4, 0.3, 0.2), (10 * 0.3 + 10 * 0.2) / 20, "b1", 3, 0),
        ((0.9, -0.3, -0.2), -0.25, "b1", 1, 2),
        ((0.4, 0.3, 0.01), (10 * 0.3 + 10 * 0.01) / 20, "b1", 2, 0),
        ((0.1, 0.3, 0.8), (20 * 0.1 + 10 * 0.3) / 30, "b3", 3, 0),
    ],
)
def test_the_lowest_is_the_mean_without_one_level(means, lowest, without, speak_for, against):
    found = by_level(gains(*means), {"batch": LABELS}).iloc[0]
    assert found["evidence_lowest_level"] == pytest.approx(lowest)
    assert found["lowest_level"] == f"batch {without}"
    assert (found["levels_for"], found["levels_against"]) == (speak_for, against)


def test_levels_of_few_cells_are_left_out_with_others_only():
    labels = np.repeat(["b1", "b2"], [36, 4])
    found = by_level(np.ones((1, 40)), {"batch": labels}).iloc[0]
    assert np.isnan(found["evidence_lowest_level"])
    assert found["lowest_level"] == ""
    assert (found["levels_for"], found["levels_against"]) == (0, 0)


def test_every_covariate_is_asked():
    donor = np.resize(["d1", "d2"], 40)
    values = np.where(donor == "d1", 0.5, -0.1)[None] + np.repeat([0.01, -0.01], 20)
    found = by_level(values, {"batch": LABELS, "donor": donor}).iloc[0]
    assert found["lowest_level"] == "donor d1"
    assert found["evidence_lowest_level"] == pytest.approx(-0.1)
    # d1 and b1 for it, d2 against it; b2 and b3, of mean 0.2 and spread 0.3, are too few to tell
    assert (found["levels_for"], found["levels_against"]) == (2, 1)


def test_an_entry_is_held_by_one_level_if_nothing_is_left_without_it():
    masks = pd.DataFrame(
        {"evidence": [0.3, 0.3, -0.1, np.nan], "evidence_lowest_level": [-0.01, 0.2, -0.2, np.nan]}
    )
    assert held_by_one(masks).tolist() == [True, False, False, False]
    assert held_by_one(masks[["evidence"]]).tolist() == [False] * 4


def test_replicates_take_the_place_of_covariates(screen):
    assert levels_of(screen.data) == {}
