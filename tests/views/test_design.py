"""The design on the pages Data and Train: what is uneven is said, and one click accounts for it."""

import numpy as np
import pytest

from app.server import uploads
from tests.data.test_design import EVEN, each
from tests.data.test_h5ad import write
from tests.views.pages import decoded, figures, finished, opened, table_with, words
from tests.views.test_data import at_once, box, kept, runs, shown

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend
__all__ = ["at_once", "runs"]  # fixtures
HOSTILE = "<b>bold</b> [x](http://a.b) $x$ :red[r] \x1b[2J"


def screen(path, n=60, **columns):
    """Write a file with controls, A and B, and these levels of each by column."""
    obs = {}
    for name, shares in columns.items():
        obs["perturbation"], obs[name] = each(n, **shares)
    counts = np.random.default_rng(0).poisson(2.0, (len(obs["perturbation"]), 5))
    return kept(write(path, None, counts.astype(np.float32), obs=obs))


UNEVEN = {
    "control": {"b1": 0.5, "b2": 0.5},
    "A": {"b1": 0.8, "b2": 0.2},
    "B": {"b1": 0.5, "b2": 0.5},
}


@pytest.fixture
def data(tmp_path, at_once):
    return screen(tmp_path / "a.h5ad", batch=UNEVEN)


def said(page) -> str:
    return words(page).replace("\\", "")


def test_what_is_uneven_is_said_once_with_the_shares(data):
    page = shown(data)
    assert finished(page)
    told = said(page)
    assert "The model accounts for no covariate." in told
    assert (
        "**batch** is uneven between perturbations: 80% of the cells of A are b1, and 50% of the "
        "controls." in told
    )
    assert len(page.warning) == 1
    (row,) = table_with(page, "V").to_dict("records")
    assert (row["column"], row["levels"], row["level"]) == ("batch", 2, "b1")
    assert (row["share of cells"], row["share of controls"]) == (0.8, 0.5)
    assert row["covariate"] == "proposed: uneven"


def test_the_map_has_the_shares_of_each_condition(data):
    heat = next(f["data"][0] for f in figures(shown(data)) if f["data"][0]["type"] == "heatmap")
    assert heat["y"] == ["control", "A", "B"]
    assert heat["x"] == ["b1", "b2"]
    assert decoded(heat["z"]).reshape(3, 2).tolist() == [[0.5, 0.5], [0.8, 0.2], [0.5, 0.5]]


def test_one_click_accounts_for_it_and_training_starts_with_it(data):
    page = shown(data)
    assert box(page, "covariate").value == []
    assert "proposed: batch" in box(page, "covariate").proto.placeholder
    page.button(key="account for").click().run()
    assert finished(page)
    assert box(page, "covariate").value == ["batch"]
    assert page.query_params["covariate"] == "batch"
    assert "The model accounts for batch (2 levels)." in said(page)
    assert not page.warning
    assert "account for" not in [button.key for button in page.button]
    assert page.code[0].value.endswith("--covariate=batch")
    page.button(key="train on").click().run()
    assert finished(page)
    assert "--covariate=batch" in page.code[0].value
    assert "The model accounts for batch (2 levels)." in said(page)


def test_train_offers_it_too_and_data_follows(data):
    page = opened("train", {"data": data, "key": "perturbation"})
    assert finished(page)
    assert "**batch** is uneven between perturbations" in said(page)
    assert "--covariate" not in page.code[0].value
    page.button(key="account for").click().run()
    assert finished(page)
    assert [title.value for title in page.title] == ["Train"]
    assert "--covariate=batch" in page.code[0].value
    assert not page.warning


def test_several_are_taken_at_once(tmp_path, at_once):
    conditions, batch = each(60, **UNEVEN)
    donor = np.resize(["d1", "d2"], 180)
    obs = {"perturbation": conditions, "batch": batch, "donor": donor}
    counts = np.random.default_rng(0).poisson(2.0, (180, 5)).astype(np.float32)
    data = kept(write(tmp_path / "a.h5ad", None, counts, obs=obs))
    page = shown(data)
    button = page.button(key="account for")
    assert button.label == "Account for batch and donor"
    button.click().run()
    assert box(page, "covariate").value == ["batch", "donor"]
    assert "batch (2 levels) and donor (2 levels)" in said(page)
    again = shown(data, covariate=["batch", "donor"], spread="donor")
    assert box(again, "covariate").value == ["batch", "donor"]
    assert box(again, "spread").value == "donor"


def test_names_of_columns_and_levels_are_shown_as_they_are(tmp_path, at_once):
    levels = {"control": {HOSTILE: 0.5, "b": 0.5}, "A": {HOSTILE: 0.9, "b": 0.1}}
    data = screen(tmp_path / "a.h5ad", **{"*a* `column`\x07": levels | {"B": levels["control"]}})
    page = shown(data)
    assert finished(page)
    (warning,) = page.warning
    assert "<b>" not in warning.value.replace("\\<b\\>", "")
    assert "$x$" not in warning.value
    assert "*a*" not in warning.value.replace("\\*a\\*", "")
    heat = next(f["data"][0] for f in figures(page) if f["data"][0]["type"] == "heatmap")
    assert all("<b>" not in name for name in heat["x"])
    page.button(key="account for").click().run()
    assert finished(page)
    assert not page.error
    assert box(page, "covariate").value == ["*a* `column`\x07"]


def test_what_cannot_be_told_from_perturbations_is_not_offered(tmp_path, at_once):
    line = {"control": {"x": 1.0}, "A": {"y": 1.0}, "B": {"z": 1.0}}
    data = screen(tmp_path / "a.h5ad", cell_line=line)
    page = shown(data)
    assert finished(page)
    assert "No covariate can tell the two apart" in said(page)
    assert "account for" not in [button.key for button in page.button]
    box(page, "covariate").set_value(["cell_line"]).run()
    assert finished(page)
    (error,) = page.error
    assert "cannot be told from the perturbations" in error.value
    assert "--" not in error.value
    train = opened("train", {"data": data, "key": "perturbation"})
    assert "No covariate can tell the two apart" in said(train)
    assert "account for" not in [button.key for button in train.button]


def test_a_condition_without_controls_in_its_level_is_told(tmp_path, at_once):
    line = {"control": {"x": 1.0}, "A": {"y": 1.0}, "B": EVEN}
    page = shown(screen(tmp_path / "a.h5ad", line=line))
    assert "A has no control cells in the same level of line" in said(page)
    page.button(key="account for").click().run()
    assert finished(page)
    assert "1 condition shares no level of 'line' with a control cell: A" in said(page)


def test_an_even_batch_is_proposed_all_the_same(tmp_path, at_once):
    page = shown(screen(tmp_path / "a.h5ad", lane=dict.fromkeys(["control", "A", "B"], EVEN)))
    assert "lane is spread evenly over the perturbations" in said(page)
    assert page.button(key="account for").label == "Account for lane"


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        (lambda n: np.linspace(0, 1, n) + 0.5, "holds numbers such as 0.5"),
        (lambda n: [f"cell {i}" for i in range(n)], "has 180 levels"),
        (lambda n: ["", *["x", "y"] * n][:n], "has no value in 1 cell"),
    ],
)
def test_a_column_that_is_none_gets_one_message(tmp_path, at_once, monkeypatch, levels, message):
    monkeypatch.setattr("samsvae_core.data.covariate_columns.MOST_LEVELS", 100)
    conditions, _ = each(60, control=EVEN, A=EVEN, B=EVEN)
    counts = np.random.default_rng(0).poisson(2.0, (180, 5)).astype(np.float32)
    obs = {"perturbation": conditions, "odd": levels(180)}
    page = shown(kept(write(tmp_path / "a.h5ad", None, counts, obs=obs)), covariate="odd")
    assert finished(page)
    (error,) = page.error
    assert message in error.value.replace("\\", "")
    assert 'chosen in the box "Covariates"' in error.value.replace("\\", "")


def test_without_columns_there_is_nothing_to_account_for(tmp_path, at_once):
    conditions, _ = each(60, control=EVEN, A=EVEN)
    counts = np.random.default_rng(0).poisson(2.0, (120, 5)).astype(np.float32)
    page = shown(kept(write(tmp_path / "a.h5ad", None, counts, obs={"perturbation": conditions})))
    assert finished(page)
    assert "The model accounts for no covariate." in said(page)
    assert not [f for f in figures(page) if f["data"][0]["type"] == "heatmap"]
    assert uploads.listing()
