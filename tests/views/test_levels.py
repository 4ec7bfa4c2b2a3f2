"""Pages of a bundle that accounts for covariates: evidence without one level, colours, words."""

import shutil

import numpy as np
import pandas as pd
import pytest

from samsvae_core.analysis.by_level import shifts_by_level
from samsvae_core.bundle import opening
from tests.views.pages import figures, opened, rewritten, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


@pytest.fixture
def lone(batched, tmp_path, monkeypatch):
    """Return a bundle with an active entry that batch "b<b>" alone supports, and that entry."""
    folder = tmp_path / "models"
    shutil.copytree(batched.path, folder / "batched")
    monkeypatch.setenv("SAMSVAE_MODELS", str(folder))
    bundle = opening.load(folder / "batched")
    masks = bundle.masks.copy()
    row = masks.index[masks["active"] & masks["evidence"].notna()][0]
    held = ["evidence", "evidence_lowest_level", "lowest_level", "levels_for", "levels_against"]
    rest = masks.index[masks["evidence"].notna()].drop(row)
    masks.loc[rest, held] = [0.9, 0.5, "batch a", 3, 0]
    masks.loc[row, held] = [0.9, -0.2, "batch b<b>", 1, 2]
    rewritten(bundle, "masks.csv", masks)
    return opening.load(folder / "batched"), masks.loc[row]


def test_masks_mark_an_entry_that_one_level_alone_supports(lone):
    _, entry = lone
    page = opened("masks", {"unused": "false"})
    page.segmented_control(key="colour").select("evidence").run()
    assert "1: active, and one level (a batch, say) alone speaks for it." in words(page)
    heat = figures(page)[0]["data"][0]
    places = [
        (name, column)
        for name, row in zip(heat["y"], heat["text"], strict=True)
        for column, symbol in zip(heat["x"], row, strict=True)
        if symbol == "1"
    ]
    assert len(places) == 1
    assert places[0][0] == entry["perturbation"]
    assert f"M{entry['mechanism']}" in str(places[0][1])


def test_perturbation_tells_the_evidence_without_one_level(lone):
    _, entry = lone
    page = opened("perturbation", {"p": entry["perturbation"]})
    tables = [frame.value for frame in page.dataframe]
    shown = pd.concat([t for t in tables if "evidence_lowest_level" in t])
    own = shown[shown["evidence_lowest_level"] < 0].iloc[0]
    assert own["evidence_lowest_level"] == pytest.approx(-0.2)
    assert own["lowest_level"] == "batch b<b>"
    assert (own["levels_for"], own["levels_against"]) == (1, 2)


def test_a_clicked_entry_says_that_one_level_alone_supports_it(lone):
    from app.components import mask_entry

    bundle, entry = lone
    said = mask_entry.worth(entry)
    assert "Without the cells of batch b\\<b\\> it is -0.200: **one level alone supports" in said
    other = bundle.masks[bundle.masks["evidence_lowest_level"] > 0].iloc[0]
    assert "it is +0.500, the lowest with one level left out." in mask_entry.worth(other)
    older = entry.drop(["evidence_lowest_level", "lowest_level", "levels_for", "levels_against"])
    assert "Without the cells" not in mask_entry.worth(older)


def test_overview_says_what_is_accounted_for(lone):
    assert "Accounts for batch (3 levels)" in words(opened("overview"))


def test_perturbation_shows_what_each_level_measured(lone):
    bundle, entry = lone
    name = entry["perturbation"]
    page = opened("perturbation", {"p": name, "perturbation_tab": "By level"})
    drawn = next(f for f in figures(page) if any(d.get("name") == "b&lt;b&gt;" for d in f["data"]))
    points = {trace["name"]: trace for trace in drawn["data"]}
    assert set(points) == {"a", "b&lt;b&gt;", "c|c", "predicted, all levels"}
    rows = shifts_by_level(bundle, name, "batch")
    shown = bundle_shifts(page)
    np.testing.assert_allclose(shown["shift"], rows["shift"])
    assert "genes** have shifts that differ between levels of batch" in words(page)


def bundle_shifts(page):
    return next(f.value for f in page.dataframe if {"level", "shift", "fdr"} <= set(f.value))
