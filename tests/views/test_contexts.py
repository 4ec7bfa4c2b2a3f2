"""Pages of a bundle with a context: the map at a level, differences, what Overview says."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from app.components import contexts
from app.export.snippets import as_command, as_python
from app.figures.style import DIFFERS
from app.server import queue, uploads
from samsvae_core.analysis.compose import compose
from samsvae_core.analysis.differences import masks_at
from samsvae_core.cli.main import app as samsvae
from tests.views.conftest import CONTEXT
from tests.views.pages import (
    decoded,
    figures,
    finished,
    links,
    opened,
    rewritten,
    table_with,
    words,
)
from tests.views.test_data import at_once, runs
from tests.views.test_design import UNEVEN, screen

__all__ = ["at_once", "runs"]  # fixtures
pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend
WHOLE = {"unused": "false"}
TAB = {"masks_tab": contexts.PART}


def first(bundle) -> pd.Series:
    """Return the difference that is confirmed: of P1 at the level "b<b>"."""
    table = bundle.differences
    return table[table["active"]].sort_values("evidence", ascending=False).iloc[0]


def marked(page) -> set[str]:
    """Return the cells of the map that have the symbol, as "perturbation|mechanism"."""
    heat = figures(page)[0]["data"][0]
    return {
        f"{name}|{column.removeprefix('M')}"
        for name, row in zip(heat["y"], heat["text"], strict=True)
        for column, symbol in zip(heat["x"], row, strict=True)
        if DIFFERS in symbol
    }


def shades(page) -> pd.DataFrame:
    heat = figures(page)[0]["data"][0]
    values = decoded(heat["z"]).reshape(len(heat["y"]), len(heat["x"]))
    return pd.DataFrame(values, heat["y"], heat["x"])


@pytest.mark.parametrize("colour", ["Probability", "Signed effect", "Evidence"])
def test_the_map_at_a_level_marks_what_differs_there(lines, colour):
    page = opened("masks", WHOLE | {"context": "b<b>", "colour": colour})
    assert finished(page)
    assert page.selectbox(key="context").value == "b<b>"
    own = first(lines)
    assert marked(page) == {f"{own['perturbation']}|{own['mechanism']}"}
    assert f"Entries are those at b<b>; {DIFFERS} marks effects that differ" in words(page)
    assert contexts.OTHER_PARTS in words(page)
    hover = figures(page)[0]["data"][1]["text"]
    assert sum("differs there" in text for text in hover) == 1
    page.selectbox(key="context").select("").run()
    assert DIFFERS not in str(figures(page)[0]["data"][0].get("text"))
    assert DIFFERS not in words(page)


def test_the_map_at_a_level_has_the_effects_of_that_level(lines):
    page = opened("masks", WHOLE | {"context": "b<b>", "colour": "Signed effect"})
    own = first(lines)
    column = f"M{own['mechanism']}"
    assert shades(page).loc[own["perturbation"], column] == pytest.approx(own["effect"])
    page.selectbox(key="context").select("").run()
    common = lines.masks.set_index(["perturbation", "mechanism"])["effect"]
    expected = common[own["perturbation"], own["mechanism"]]
    assert shades(page).loc[own["perturbation"], column] == pytest.approx(expected)
    assert expected != pytest.approx(own["effect"], abs=0.5)


def test_the_table_of_entries_is_that_of_the_level(lines):
    page = opened("masks", WHOLE | {"context": "b<b>", "masks_tab": "Table of entries"})
    keys = ["perturbation", "mechanism"]
    table = table_with(page, "differs").set_index(keys).sort_index()
    expected = masks_at(lines.masks, lines.differences, "b<b>").set_index(keys).sort_index()
    pd.testing.assert_frame_equal(table[expected.columns], expected)
    assert contexts.IN_TABLE.replace("`", "") in words(page).replace("`", "")


def test_a_level_that_is_not_there_is_said(lines):
    page = opened("masks", {"context": "HeLa"})
    assert finished(page)
    assert "The address asks for the context HeLa, which is not here." in words(page)
    assert page.selectbox(key="context").value == ""


def test_differences_are_listed_by_evidence_with_what_is_not_confirmed(lines):
    page = opened("masks", TAB)
    assert finished(page)
    table = table_with(page, "difference")
    active = lines.differences[lines.differences["active"]]
    expected = active.sort_values("evidence", ascending=False)
    for column in ["perturbation", "level", *contexts.ORDER]:
        pd.testing.assert_series_equal(
            table[column], expected[column], check_index=False, check_dtype=False
        )
    assert table["mechanism"].str.startswith("M").all()
    assert table["confirmed"].tolist() == [True, False, False]
    assert f"3 differences between levels of **{CONTEXT}**, of 2 perturbations." in words(page)
    assert "2 of them have no held-out evidence above two standard errors" in words(page)
    (link,) = [each for each in links(page) if each["label"] == "Open P1"]
    assert link["query"].endswith("p=P1")
    assert "differences CSV" in [button.key for button in page.get("download_button")]


@pytest.mark.parametrize(
    ("confirmed", "said"),
    [
        ([True], "Held-out cells confirm it"),
        ([True, True], "Held-out cells confirm all of them"),
        ([False], "**It has no held-out evidence"),
        ([False, False], "**None of them has held-out evidence"),
        ([True, False], "**1 of them has no held-out evidence"),
        ([True, False, False], "**2 of them have no held-out evidence"),
    ],
)
def test_what_held_out_cells_confirm_is_said(confirmed, said):
    assert contexts.in_words(pd.DataFrame({"confirmed": confirmed})).startswith(said)


def test_without_differences_the_effects_are_said_to_be_the_same(lines, edited):
    rewritten(lines, "differences.csv", lines.differences.assign(active=False))
    assert contexts.NONE in words(opened("masks", TAB))
    page = opened("perturbation", {"p": "P1"})
    assert "No difference of **P1** was worth" in words(page)
    assert "no difference is active." in words(opened("overview"))


def test_a_perturbation_has_its_own_differences(lines):
    page = opened("perturbation", {"p": "P1"})
    assert finished(page)
    assert f"Effects by {CONTEXT}" in [head.value.replace("\\", "") for head in page.header]
    assert f"2 effects of **P1** differ at a level of {CONTEXT}." in words(page)
    table = table_with(page, "difference")
    assert sorted(table["level"]) == ["a", "b<b>"]
    assert "No difference of **P3** was worth" in words(opened("perturbation", {"p": "P3"}))


def test_a_clicked_entry_says_where_it_differs(lines):
    own = first(lines)
    page = opened("masks", WHOLE | {"cell": f"{own['perturbation']}|{own['mechanism']}"})
    said = (
        f"At b<b> it is {own['effect']:+.2f} (difference {own['difference']:+.2f} ± "
        f"{own['difference_sd']:.2f} sd, evidence +0.900 ± 0.100 se nats per cell over 30 "
        "held-out cells)."
    )
    assert said in words(page)
    other = opened("masks", WHOLE | {"cell": f"P4|{own['mechanism']}"})
    assert "This is the common effect." not in words(other)


def test_overview_and_card_say_how_many_differ(lines):
    said = f"Effects may differ by {CONTEXT}: 3 differences are active."
    assert words(opened("overview")).count(said) == 2


def test_models_without_a_context_show_nothing_of_it(models):
    page = opened("masks", {"context": "a"})
    assert "The address asks for the context a, which is not here." in words(page)
    assert "context" not in [box.key for box in page.selectbox]
    assert contexts.PART not in [tab.label for tab in page.tabs]
    page = opened("perturbation", {"p": "P1"})
    assert not [header.value for header in page.header if header.value.startswith("Effects by ")]


# Train


@pytest.fixture
def data(tmp_path, at_once):
    return screen(tmp_path / "a.h5ad", **{"cell line": UNEVEN, "batch": UNEVEN})


def choice(page):
    return next(box for box in page.selectbox if box.key.startswith("train_context of "))


def trained_on(data, **query):
    page = opened("train", {"data": data, "key": "perturbation", **query})
    assert finished(page)
    return page


def test_a_context_is_one_of_the_chosen_covariates(data):
    page = trained_on(data)
    assert not [box for box in page.selectbox if box.key.startswith("train_context")]
    page = trained_on(data, covariate=["cell line", "batch"])
    assert choice(page).options == ["nothing", "cell line", "batch"]
    assert "--context" not in page.code[0].value
    choice(page).set_value("cell line").run()
    assert finished(page)
    assert page.code[0].value.endswith("'--context=cell line'")
    assert page.query_params["train_context"] in ("cell line", ["cell line"])
    assert "differently at a level of cell line" in words(page)
    page.selectbox(key="train_model").select("cpa-vae").run()
    assert finished(page)
    assert "--context" not in page.code[0].value


def test_a_context_of_the_address_that_is_no_covariate_is_said(data):
    page = trained_on(data, covariate=["batch"], train_context="cell line")
    assert "The address asks for the covariate cell line, which is not here." in words(page)
    assert choice(page).value == ""
    page = trained_on(data, covariate=["batch"], train_context="batch")
    assert page.code[0].value.endswith("--context=batch")


def test_the_context_reaches_the_configuration_of_the_run(data, runs, monkeypatch):
    monkeypatch.setattr(queue, "PROGRAM", ("true",))
    page = trained_on(data, covariate=["cell line"], train_context="cell line", train_steps="1")
    page.button(key="start").click().run()
    assert finished(page)
    (job,) = queue.look(runs)
    asked, given = [], ["train", str(uploads.resolve(data)), "--output=x", *job.arguments]
    monkeypatch.setattr("samsvae_core.cli.train.start", lambda *told: asked.append(told[3]))
    CliRunner().invoke(samsvae, given)
    assert asked[0].context == "cell line"
    assert asked[0].reading.covariates == ("cell line",)


def test_compose_predicts_at_a_level_and_compares_with_what_was_measured_there(lines):
    one = lines.differences[lines.differences["active"]].iloc[0]
    page = opened("compose", {"c": f"{one['perturbation']}:1"})
    at = page.selectbox(key="level")
    assert at.value == ""
    before = compose(lines, {one["perturbation"]: 1.0})
    at.select(one["level"]).run()
    after = compose(lines, {one["perturbation"]: 1.0}, level=one["level"])
    assert not np.allclose(before.table["shift"], after.table["shift"])
    shown = next(f.value for f in page.dataframe if "through_mechanisms" in f.value)
    np.testing.assert_allclose(
        shown.set_index("gene").loc[lines.genes, "shift"], after.table["shift"], atol=1e-6
    )
    assert "because the prediction is of one level" in words(page)
    assert "--level" in as_command(lines, after)
    assert f"level={one['level']!r}" in as_python(lines, after)


def test_compose_says_that_a_level_in_the_address_is_not_there(lines):
    page = opened("compose", {"c": f"{lines.perturbations.index[0]}:1", "level": "line9"})
    assert "The address asks for the level line9, which is not here." in words(page)
