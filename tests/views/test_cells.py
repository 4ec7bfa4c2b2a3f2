"""The page Cells."""

import json

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import states
from samsvae_core.bundle import bundle, layout, opening
from samsvae_core.bundle.bundle import Bundle
from tests.views.pages import (
    axes,
    decoded,
    figures,
    finished,
    labels,
    opened,
    rewritten,
    table_with,
    words,
)

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def points(figure: dict) -> pd.DataFrame:
    """Return x, y and group of each point on a map of cells, by the cell's place in the sample."""
    rows = []
    for trace in figure["data"]:
        x, y = decoded(trace["x"]), decoded(trace["y"])
        group = trace["name"].rpartition(" (")[0]
        rows += zip(map(int, trace["customdata"]), x, y, [group] * len(x), strict=True)
    return pd.DataFrame(rows, columns=["place", "x", "y", "group"]).set_index("place").sort_index()


def took(page: AppTest, model: Bundle, places: list[int]) -> AppTest:
    """Return the page as after a lasso of these cells, which needs a browser to be drawn."""
    page.session_state[f"cells of {model.checksum}"] = places
    return page.run()


def test_every_cell_is_on_both_maps_at_its_place_and_in_its_group(one_model, tiny):
    names = list(dict.fromkeys(tiny.cells["condition"]))[:2]
    page = opened("cells", {"highlight": ",".join(names)})
    assert page.multiselect(key="highlight").value == names
    for figure, place in zip(figures(page), ("umap", "basal"), strict=True):
        shown = points(figure)
        np.testing.assert_allclose(shown["x"], tiny.cells[f"{place}_1"], rtol=1e-6)
        np.testing.assert_allclose(shown["y"], tiny.cells[f"{place}_2"], rtol=1e-6)
        group = tiny.cells["condition"].where(tiny.cells["condition"].isin(names))
        assert shown["group"].tolist() == group.fillna("all other cells").tolist()
    assert f"{len(tiny.cells)} of 600" in words(page)


def test_the_first_conditions_in_colour_are_control_and_those_that_move_farthest(one_model, tiny):
    page = opened("cells")
    chosen = page.multiselect(key="highlight").value
    strength = interpretation.strengths(tiny.masks)["strength"]
    single = [name for name in strength.index if name in set(tiny.cells["condition"])]
    pairs = {name for name in tiny.cells["condition"] if "+" in name}
    assert chosen[0] == "control"
    assert [name for name in chosen[1:] if name not in pairs] == single[
        : len(set(chosen) - pairs) - 1
    ]


def test_names_that_are_not_on_the_map_are_said_and_left_out(one_model):
    page = opened("cells", {"highlight": "<b>NOPE</b>,control"})
    assert finished(page)
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value  # escaped
    assert page.multiselect(key="highlight").value == ["control"]
    assert page.query_params["highlight"] in ("control", ["control"])


@pytest.mark.parametrize("state", ["Perturbed", "Basal"])
def test_cells_are_coloured_by_their_state_along_a_mechanism(one_model, tiny, state):
    page = opened("cells", {"by": "Mechanism", "m": "M1", "latent": state})
    expected = tiny.cells[f"{'shifted' if state == 'Perturbed' else 'basal'} M1"]
    for figure in figures(page):
        (trace,) = figure["data"]
        order = [int(place) for place in trace["customdata"]]
        np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected[order], rtol=1e-6)
        assert trace["marker"]["cmin"] == -trace["marker"]["cmax"]
    assert finished(page)


def test_cells_are_coloured_by_the_measured_level_of_a_gene(one_model, tiny):
    page = opened("cells", {"by": "Gene", "g": "CCL5"})
    (trace,) = figures(page)[0]["data"]
    order = [int(place) for place in trace["customdata"]]
    expected = tiny.cell_values("CCL5")[order]
    np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected, rtol=1e-6)
    assert "*CCL5* as measured, log2(1 + 1e4 x / total)" in words(page)
    assert "<i>CCL5</i>, measured (log2)" in json.dumps(trace)


def test_without_measured_values_a_gene_is_shown_as_decoded(models, tiny):
    model = opening.load(models / "tiny")
    rewritten(model, layout.CELL_COUNTS, None)
    page = opened("cells", {"by": "Gene", "g": "CCL5"})
    (trace,) = figures(page)[0]["data"]
    order = [int(place) for place in trace["customdata"]]
    expected = states.decoded_values(tiny, "CCL5")[order]
    np.testing.assert_allclose(decoded(trace["marker"]["color"]), expected, rtol=1e-6)
    assert "as the model expects it" in words(page)
    assert finished(page)


def test_cells_are_coloured_by_the_levels_of_a_covariate(one_model, tiny, monkeypatch):
    assert "Covariate" not in opened("cells").segmented_control(key="by").options
    n = len(tiny.cells)
    batch = np.resize([f"<b>{i}</b>" for i in range(9)], n)
    batch[: n // 2] = "*large*"
    split = np.resize(["left", "right"], n)  # named as another column is
    told = tiny.cells.assign(**{"covariate the `batch`": batch, "covariate split": split})
    monkeypatch.setattr(bundle.Bundle, "cells", property(lambda _: told))
    page = opened("cells", {"by": "Covariate"})
    assert finished(page)
    assert page.selectbox(key="covariate").options == ["the `batch`", "split"]
    traces = figures(page)[0]["data"]
    drawn = {trace["name"]: sorted(map(int, trace["customdata"])) for trace in traces}
    assert drawn[f"*large* ({n // 2})"] == list(range(n // 2))
    assert len(drawn) == 8  # 7 levels and the rest
    assert sum(len(rows) for rows in drawn.values()) == n
    assert not any("<b>" in name for name in drawn)
    n_levels = len(set(batch))
    assert f"In colour: the 7 of {n_levels} levels with most cells." in words(page)
    page.selectbox(key="covariate").select("split").run()
    drawn = {trace["name"]: trace["customdata"] for trace in figures(page)[0]["data"]}
    assert [name.split(" ")[0] for name in drawn] == ["left", "right"]
    assert "In colour" not in words(page)


@pytest.mark.parametrize("by", ["Perturbation", "Gene", "Mechanism", "Split"])
def test_a_model_made_before_has_one_map_and_says_what_to_do(models, tiny, by):
    model = opening.load(models / "tiny")
    old = ["cell", "condition", "split", "umap_1", "umap_2"]
    tiny.cells[old].to_parquet(model.path / "cells.parquet")
    rewritten(model, layout.CELL_COUNTS, None)
    page = opened("cells", {"by": by})
    assert finished(page)
    assert not page.error
    assert len(figures(page)) == 1
    assert "This model was made before a map of basal states was kept" in words(page)
    assert ("This model came without" in words(page)) == (by in ("Gene", "Mechanism"))
    assert "--resume" in words(page)


def test_the_conditional_vae_has_one_map_and_is_told_why(shown):
    shown("conditional-vae")
    page = opened("cells", {"by": "Mechanism"})
    assert finished(page)
    assert "perturbed and basal states are the same" in page.info[0].value
    assert len(figures(page)) == 1
    assert page.selectbox(key="m").label == "Latent dimension"
    assert "State" not in labels(page)
    assert "same latent shift" not in words(page)


def test_values_of_cells_that_are_no_counts_are_as_in_the_file(shown):
    model = shown("values")
    page = opened("cells", {"by": "Gene", "g": model.genes[0]})
    assert "measured: the values of the file" in words(page)
    assert "log2" not in words(page) + axes(page)


def test_the_table_of_selected_cells_and_its_summary_are_those_of_the_cells(one_model, tiny):
    page = opened("cells", {"by": "Mechanism", "m": "M0"})
    assert "No cell is selected" in words(page)
    assert len(page.dataframe[0].value) == len(tiny.cells)
    taken = [1, 4, 5, 9]
    page = took(page, tiny, taken)
    assert finished(page)
    table = table_with(page, "cell")
    expected, value = tiny.cells.iloc[taken], tiny.cells["shifted M0"].astype(float)
    assert table["cell"].tolist() == expected["cell"].tolist()
    assert table["condition"].tolist() == expected["condition"].tolist()
    assert table["M0, perturbed"].tolist() == expected["shifted M0"].tolist()
    inside = value.index.isin(taken)
    for rows, name in ((inside, "selected"), (~inside, "other")):
        mean, error = value[rows].mean(), value[rows].sem()
        assert f"**{mean:.2f}** ± {error:.2f} in {rows.sum()} {name} cells" in words(page)
    found = table_with(page, "share_selected").set_index("condition")
    for condition, row in found.iterrows():
        here = (tiny.cells["condition"] == condition).to_numpy()
        assert row["selected"] == (here & inside).sum()
        assert row["share_selected"] == pytest.approx(here[inside].mean())
        assert row["share_shown"] == pytest.approx(here.mean())
        assert row["ratio"] == pytest.approx(here[inside].mean() / here.mean())
    excess = found["share_selected"] - found["share_shown"]
    assert excess.is_monotonic_decreasing


def test_selected_cells_stay_when_the_colour_changes_and_stand_out_on_the_other_map(
    one_model, tiny
):
    page = took(opened("cells"), tiny, [2, 3])
    page.segmented_control(key="by").set_value("split").run()
    first, second = figures(page)
    assert "selectedpoints" not in json.dumps(first)
    marked = [
        int(trace["customdata"][i])
        for trace in second["data"]
        for i in decoded(trace["selectedpoints"])
    ]
    assert sorted(marked) == [2, 3]
    found = table_with(page, "share_selected")
    assert found["split"].tolist()
    assert found["selected"].sum() == 2
    page.button(key="release").click().run()
    assert "No cell is selected" in words(page)
    assert "selectedpoints" not in json.dumps(figures(page))


def test_all_cells_may_be_selected(one_model, tiny):
    page = took(opened("cells", {"by": "Mechanism"}), tiny, list(range(len(tiny.cells))))
    assert finished(page)
    assert "other cells" not in words(page).replace("all other cells", "")
    assert "In excess" not in words(page)


def test_cells_selected_on_one_model_are_not_those_of_another(one_model, tiny):
    page = opened("cells")
    page.session_state["cells of another"] = [0]
    page.run()
    assert "No cell is selected" in words(page)


def test_many_cells_are_drawn_by_webgl():
    from app.figures.maps import cell_map
    from app.figures.style import MOST_SVG

    kinds = {}
    for n in (MOST_SVG, MOST_SVG + 1):
        frame = pd.DataFrame({"x": np.zeros(n), "y": np.zeros(n), "condition": "A"})
        group = pd.Series(pd.Categorical(frame["condition"]))
        figure = cell_map(frame[["x", "y"]], frame["condition"], group, "condition", False)
        kinds[n] = {trace.type for trace in figure.data}
    assert list(kinds.values()) == [{"scatter"}, {"scattergl"}]


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("signed", [False, True])
def test_a_gene_that_is_the_same_in_all_cells_is_drawn(tiny, value, signed):
    from app.figures.maps import cell_map

    same, places = pd.Series([value] * len(tiny.cells)), tiny.cells[["umap_1", "umap_2"]]
    marker = cell_map(places, tiny.cells["condition"], same, "G", False, signed).data[0].marker
    assert marker.cmin <= value <= marker.cmax
    assert marker.cmin < marker.cmax


@pytest.mark.usefixtures("edited")
def test_conditions_named_in_markup_are_shown_as_text_on_maps(models, tiny):
    model, name = opening.load(models / "tiny"), "<b>*x*</b> $y$"
    first = tiny.cells["condition"].iloc[0]
    cells = tiny.cells.assign(condition=tiny.cells["condition"].replace(first, name))
    cells.to_parquet(model.path / "cells.parquet")
    conditions = model.conditions.reset_index().replace({first: name})
    rewritten(model, "conditions.csv", conditions)
    page = opened("cells", {"highlight": "%3Cb%3E%2Ax%2A%3C%2Fb%3E%20%24y%24"})
    assert page.multiselect(key="highlight").value == [name]
    assert "<b>" not in json.dumps(figures(page))
    page = took(page, opening.load(model.path), [0])
    assert finished(page)
    raw = " ".join(part.value for part in [*page.markdown, *page.caption])
    assert not [mark for mark in ("<b>", "*x*", "$y$") if mark in raw]
