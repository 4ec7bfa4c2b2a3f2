"""Figures show what is in their tables: values, order, colour range, and names as text."""

import numpy as np
import pandas as pd
import pytest

from app.export import figure_data
from app.figures import gene_plots, heatmaps, maps, model_plots, style


@pytest.fixture
def shifts():
    rng = np.random.default_rng(0)
    shift = pd.Series(rng.normal(size=30), index=[f"G{i}" for i in range(30)])
    return pd.DataFrame({"shift": shift, "lower": shift - 0.5, "upper": shift + 0.5})


def test_the_mask_map_has_a_marker_for_every_cell_in_its_order():
    wide = pd.DataFrame([[0.1, 0.9], [0.2, 0.3]], index=["A", "B"], columns=[0, 4])
    heat, marks = heatmaps.mask_map(wide, "probability", dark=False).data
    assert np.array_equal(heat.z, wide.to_numpy())
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert list(marks.customdata) == ["A|0", "A|4", "B|0", "B|4"]
    assert list(marks.text) == ["0.100", "0.900", "0.200", "0.300"]


def test_signed_effects_are_centred_at_zero_and_carry_their_sign():
    wide = pd.DataFrame([[-2.0, 1.0, 0.1]], index=["A"], columns=[0, 1, 2])
    heat, _ = heatmaps.mask_map(wide, "effect", dark=True).data
    assert heat.zmin == -heat.zmax == -2
    assert heat.text.tolist() == [["\u2212", "+", ""]]


def test_evidence_is_coloured_by_its_signed_root_and_says_what_was_not_tried():
    wide = pd.DataFrame([[4.0, -1.0, np.nan]], index=["A"], columns=[0, 1, 2])
    symbols = pd.DataFrame([["+", "", "x"]], index=["A"], columns=[0, 1, 2])
    heat, marks = heatmaps.mask_map(wide, "evidence", False, symbols).data
    assert heat.z[0, :2].tolist() == [2, -1]
    assert heat.zmin == -heat.zmax == -2
    assert list(heat.colorbar.tickvals) == [-2, -1, 0, 1, 2]
    assert list(heat.colorbar.ticktext) == ["-4", "-1", "0", "1", "4"]
    assert list(marks.text) == ["+4.00", "-1.00", "not tried"]
    assert heat.text.tolist() == [["+", "", "x"]]


def test_cells_that_differ_have_a_symbol_behind_their_own_and_say_so():
    wide = pd.DataFrame([[-2.0, 1.0, 0.1]], index=["A"], columns=[0, 1, 2])
    differs = pd.DataFrame([[True, False, True]], index=["A"], columns=[0, 1, 2])
    heat, marks = heatmaps.mask_map(wide, "effect", False, differs=differs).data
    assert heat.text.tolist() == [["\u2212\u25c6", "+", "\u25c6"]]
    assert list(marks.text) == ["-2.00<br>differs there", "+1.00", "+0.10<br>differs there"]
    heat, _ = heatmaps.mask_map(wide.abs() / 2, "probability", False, differs=differs).data
    assert heat.text.tolist() == [["\u25c6", "", "\u25c6"]]


def test_a_map_without_any_evidence_is_drawn_all_the_same():
    wide = pd.DataFrame([[np.nan, np.nan]], index=["A"], columns=[0, 1])
    assert set(heatmaps.mask_map(wide, "evidence", False).data[1].text) == {"not tried"}


def test_the_map_of_levels_has_shares_and_names_of_any_kind():
    cells = pd.DataFrame([[1, 3], [0, 5]], ["<b>", "x" * 40], ["7", "a|<i>b</i>"])
    figure = heatmaps.level_map(cells, "<u>batch</u>", dark=False)
    heat, marks = figure.data
    assert heat.z.tolist() == [[0.25, 0.75], [0, 1]]
    assert heat.text.tolist() == [["25%", "75%"], ["0%", "100%"]]
    assert list(marks.text)[:2] == ["25.0% (1 of 4 cells)", "75.0% (3 of 4 cells)"]
    assert list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;", "x" * 25 + "\u2026"]
    assert figure.layout.xaxis.title.text == "&lt;u&gt;batch&lt;/u&gt;"
    table = figure_data.data(figure)
    assert table["share of cells"].tolist() == [0.25, 0.75, 0, 1]
    assert table.iloc[3, :2].tolist() == ["x" * 40, "a|<i>b</i>"]


def test_cells_and_the_tree_are_beside_the_map_in_line_with_its_rows():
    wide = pd.DataFrame([[0.1], [0.2], [0.9]], index=["<b>", "B", "C"], columns=[3])
    line = pd.DataFrame({"place": [0.0, 0.0, 1.0, 1.0], "height": [0.0, 2.0, 2.0, 0.0]})
    cells = pd.Series([7, 8, 9], index=wide.index)
    titles = {3: "M3: a < b"}
    figure = heatmaps.mask_map(wide, "probability", True, None, titles, cells, line)
    heat, marks, bars, tree = figure.data
    assert list(bars.x) == [7, 8, 9]
    assert list(bars.y) == list(heat.y)
    assert (list(tree.x), list(tree.y)) == (list(line["height"]), list(line["place"]))
    assert tuple(figure.layout.yaxis2.range) == tuple(figure.layout.yaxis.range) == (2.5, -0.5)
    assert set(marks.hovertext) == {"M3: a &lt; b"}
    assert list(marks.text) == ["0.100", "0.200", "0.900"]


def test_markers_of_a_large_map_are_all_there_and_not_drawn():
    wide = pd.DataFrame(np.zeros((50, 60)), index=[f"P{i}" for i in range(50)])
    _, marks = heatmaps.mask_map(wide, "probability", False).data
    assert len(marks.customdata) == len(marks.x) == 3000
    assert marks.marker.maxdisplayed == 1


def test_cells_too_narrow_for_symbols_have_none():
    for n in (style.MOST_COLUMNS, style.MOST_COLUMNS + 1):
        heat, marks = heatmaps.mask_map(pd.DataFrame(np.ones((1, n))), "effect", False).data
        assert (heat.text is None) == (n > style.MOST_COLUMNS)
        assert set(marks.text) == {"+1.00"}  # the hover still says it


def test_the_chosen_stand_out_and_every_point_can_be_found():
    frame = pd.DataFrame(
        {
            "name": ["A", "B", "<i>"],
            "umap_1": [0.0, 1.0, 2.0],
            "umap_2": 1.0,
            "uses": [True, False, True],
        }
    )
    figure = maps.perturbation_map(frame, ["<i>", "A"], dark=False)
    found = {name for trace in figure.data for name in trace.customdata}
    assert found == {"A", "B", "<i>"}
    looks = [(trace.marker.color, trace.marker.symbol) for trace in figure.data if len(trace.x)]
    assert len(set(looks)) == 3
    assert not any("<i>" in label for trace in figure.data for label in trace.text)


def test_the_first_of_many_things_can_be_told_apart():
    looks = [style.told_apart(i, False) for i in range(42)]
    assert len({(look["color"], look["symbol"]) for look in looks}) == 42


def test_effects_are_drawn_with_their_intervals_under_their_mechanism():
    entries = pd.DataFrame(
        {
            "perturbation": ["A", "<i>", "A"],
            "mechanism": [0, 0, 2],
            "effect": [1.0, -2.0, 0.5],
            "effect_sd": [0.1, 0.2, 0.3],
            "place": [0, 1, 0],
        }
    )
    figure = model_plots.used_effects(entries, {0: "M0: <b>" + "x" * 99}, dark=False)
    first, second = figure.data
    assert (list(first.x), list(second.x)) == ([1.0, 0.5], [-2.0])
    np.testing.assert_allclose(first.error_x.array, [0.1645, 0.4935])
    assert list(figure.layout.yaxis.ticktext) == ["A", "&lt;i&gt;", "A"]
    heads = [note.text for note in figure.layout.annotations]
    assert heads[1] == "<b>M2</b>"
    assert heads[0].startswith("<b>M0: &lt;b&gt;xxx")
    assert len(heads[0]) < 70
    places = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert [places[y] for y in first.y] == ["A", "A"]


def test_the_network_draws_each_link_between_its_ends_by_sign_and_size():
    nodes = pd.DataFrame(
        {
            "kind": ["perturbation", "perturbation", "mechanism"],
            "name": ["M0", "<b>", "M0"],
            "degree": [1, 1, 2],
            "x": [0.0, 2.0, 1.0],
            "y": [0.0, 0.0, 4.0],
        }
    )
    edges = pd.DataFrame(
        {"perturbation": ["M0", "<b>"], "mechanism": 0, "effect": [3.0, -1.0], "effect_sd": 0.1}
    )
    figure = maps.network(nodes, edges, {0: "M0: why"}, dark=True)
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert [list(line.x[:2]) for line in lines] == [[0, 1], [2, 1]]
    assert [line.line.dash for line in lines] == ["solid", "dash"]
    assert lines[0].line.width > lines[1].line.width
    middle, people, mechanisms = figure.data[2:]
    assert (list(middle.x), list(middle.y)) == ([0.5, 1.5], [2, 2])
    assert list(middle.text) == ["M0, M0: +3.00 ± 0.10", "&lt;b&gt;, M0: -1.00 ± 0.10"]
    assert (people.marker.symbol, mechanisms.marker.symbol) == ("circle", "square")
    assert list(mechanisms.customdata) == ["M0: why<br>2 perturbations"]
    assert list(people.text) == ["M0", "&lt;b&gt;"]


def test_bars_carry_their_intervals_and_both_signs():
    frame = pd.DataFrame(
        {"label": ["A", "B"], "value": [1.0, -2.0], "lower": [0.5, -3.0], "upper": [1.5, -1.5]}
    )
    (bar,) = gene_plots.bars(frame, "shift", dark=False).data
    assert list(bar.error_x.array) == [0.5, 0.5]
    assert list(bar.error_x.arrayminus) == [0.5, 1.0]
    assert bar.marker.color[0] != bar.marker.color[1]


def test_bars_without_an_interval_have_no_whiskers():
    frame = pd.DataFrame({"label": ["A"], "value": [1.0], "lower": [np.nan], "upper": [np.nan]})
    (bar,) = gene_plots.bars(frame, "shift", dark=False).data
    assert bar.error_x.array is None
    assert "interval" not in bar.hovertemplate


def test_a_volcano_parts_genes_by_their_interval(shifts):
    unclear, up, down, _ = gene_plots.volcano(shifts, 5, dark=False, height=400, unit="log2").data
    assert len(unclear.x) == ((shifts["lower"] <= 0) & (shifts["upper"] >= 0)).sum()
    assert len(up.x) == (shifts["lower"] > 0).sum()
    assert len(down.x) == (shifts["upper"] < 0).sum()
    assert min(up.y) > 1


def test_ranks_go_from_the_highest_shift_to_the_lowest(shifts):
    up, down, _ = gene_plots.ranks(shifts, 3, dark=True, height=400, unit="log2").data
    drawn = dict(zip([*up.x, *down.x], [*up.y, *down.y], strict=True))
    assert [drawn[rank] for rank in sorted(drawn)] == sorted(shifts["shift"], reverse=True)
    assert min(up.y) > 0 > max(down.y)


@pytest.mark.parametrize("unit", ["log2", "units of the data"])
def test_axes_name_the_unit_they_are_given(shifts, unit):
    table = shifts.assign(observed=1.0, observed_se=0.1)
    for figure in (
        gene_plots.volcano(shifts, 3, False, 400, unit),
        gene_plots.agreement(table, 3, False, unit),
    ):
        assert figure.layout.xaxis.title.text == f"predicted shift ({unit})"
    assert gene_plots.ranks(shifts, 3, False, 400, unit).layout.yaxis.title.text.endswith(
        f"({unit})"
    )


def test_the_calibration_curve_has_a_diagonal_and_a_line_per_statistic():
    frame = pd.DataFrame(
        {
            "statistic": ["mean", "mean", "<b>", "<b>"],
            "nominal": [0.5, 0.9, 0.5, 0.9],
            "observed": [0.4, 0.8, 0.2, 0.3],
        }
    )
    diagonal, mean, other = model_plots.calibration(frame, dark=False).data
    assert list(diagonal.x) == list(diagonal.y)
    assert (list(mean.x), list(mean.y)) == ([0.5, 0.9], [0.4, 0.8])
    assert other.name == "&lt;b&gt;"
    low, _ = model_plots.calibration(frame, dark=False).layout.yaxis.range
    assert low < 0.2


@pytest.fixture
def levels():
    return pd.DataFrame(
        {
            "mask_evidence": [0.02, 0.08, 0.32],
            "active": [60, 40, 20],
            "difference": [0.0, -0.1, -1.0],
            "difference_se": [0.0, 0.2, 0.3],
            "effect_r": [0.9, 0.91, 0.8],
            "chosen": [False, True, False],
        }
    )


def test_the_frontier_marks_the_level_that_was_kept_and_carries_its_errors(levels):
    bound, r = model_plots.frontier(levels, dark=False).data
    assert (list(bound.x), list(bound.y)) == ([20, 40, 60], [-1.0, -0.1, 0.0])
    assert list(bound.error_y.array) == [0.3, 0.2, 0.0]
    assert list(bound.marker.symbol) == ["circle", "diamond", "circle"]
    assert list(r.y) == [0.8, 0.91, 0.9]
    assert r.error_y.array is None


def test_the_frontier_leaves_out_an_agreement_that_is_not_defined(levels):
    assert len(model_plots.frontier(levels.assign(effect_r=np.nan), dark=True).data) == 1


def test_the_history_of_a_model_without_masks_counts_no_entries():
    frame = pd.DataFrame(
        {"epoch": [1, 2], "bound": [-3.0, -2.0], "validation_bound": [-3.0, -2.5], "active": [4, 2]}
    )
    assert len(model_plots.history(frame, dark=False).data) == 3
    assert len(model_plots.history(frame, dark=False, masks=False).data) == 2


def test_names_from_files_are_text_and_never_markup():
    frame = pd.DataFrame(
        {"label": ["<a href='x'>g</a>"], "value": [1.0], "lower": [0.0], "upper": [2.0]}
    )
    (bar,) = gene_plots.bars(frame, "shift", dark=False).data
    assert "<a" not in bar.y[0]
    wide = pd.DataFrame([[0.1]], index=["<b>A</b>"], columns=[0])
    assert "<b>" not in heatmaps.mask_map(wide, "probability", dark=False).data[0].y[0]
    assert style.text(['5" & <6']) == ['5" &amp; &lt;6']  # Plotly knows no &quot;


def test_names_that_look_like_numbers_or_dates_are_names():
    wide = pd.DataFrame([[0.1], [0.2]], index=["7", "2020-01-01"], columns=[0])
    assert heatmaps.mask_map(wide, "probability", dark=False).layout.yaxis.type == "category"
    frame = pd.DataFrame({"label": ["7"], "value": [1.0], "lower": [0.0], "upper": [2.0]})
    assert gene_plots.bars(frame, "shift", False, genes=False).layout.yaxis.type == "category"


def test_labels_that_would_overlap_are_left_out(shifts):
    crowded = pd.concat([shifts, shifts.rename(lambda g: f"{g}twin")])
    labels = gene_plots.volcano(crowded, 60, dark=False, height=400, unit="log2").data[-1]
    assert 0 < len(labels.text) < 60
    assert not any(
        t.endswith("twin</i>") and t.replace("twin", "") in labels.text for t in labels.text
    )


def test_the_running_sum_marks_the_genes_of_the_set():
    walk = pd.DataFrame(
        {
            "rank": [1, 2, 3],
            "gene": ["A", "B", "C"],
            "hit": [True, False, True],
            "running_es": [0.5, -0.5, 0.0],
        }
    )
    line, hits = gene_plots.running_sum(walk, "SET", dark=False).data
    assert list(line.y) == [0.5, -0.5, 0.0]
    assert list(hits.text) == ["A", "C"]


def test_of_many_genes_those_that_go_or_went_farthest_are_drawn_in_their_order():
    n = style.MOST_POINTS + 500
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"shift": rng.normal(size=n), "observed": rng.normal(size=n)})
    drawn = gene_plots.largest(table)
    size = table.abs().max(axis=1)
    assert len(drawn) == style.MOST_POINTS
    assert size[drawn.index].min() >= size.drop(drawn.index).max()
    assert drawn.index.is_monotonic_increasing
    assert gene_plots.largest(table[:10]).equals(table[:10])
    ties = pd.DataFrame({"shift": np.ones(n)})
    assert len(gene_plots.largest(ties)) == style.MOST_POINTS


def test_cells_of_conditions_are_ordered_with_control_apart():
    cells = pd.Series({"A": 5, "<b>": 30, "ctrl": 10, "A+B": 1})
    figure = model_plots.cells_per_condition(cells, "ctrl", dark=False)
    perturbed, control = figure.data
    assert list(perturbed.x) == ["&lt;b&gt;", "A", "A+B"]
    assert list(perturbed.y) == [30, 5, 1]
    assert (list(control.x), list(control.y)) == (["ctrl"], [10])
    assert list(figure.layout.xaxis.categoryarray) == ["&lt;b&gt;", "ctrl", "A", "A+B"]
    assert figure.layout.yaxis.range[0] == 0  # one cell, on a logarithmic axis


@pytest.mark.parametrize("cells", [{"ctrl": 3}, {"A": 3}, {f"P{i}": 1 for i in range(500)}])
def test_cells_of_one_condition_or_of_very_many_are_drawn(cells):
    figure = model_plots.cells_per_condition(pd.Series(cells), "ctrl", dark=True)
    assert sum(len(bar.x) for bar in figure.data) == len(cells)
    assert figure.layout.xaxis.showticklabels == (len(cells) < 100)
