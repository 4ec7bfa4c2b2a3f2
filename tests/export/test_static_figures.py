"""Figures in files show the data of the figures on screen, and look the same everywhere."""

import io
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from PIL import Image

from app.export import figure_data, static_base, static_figures
from app.figures import gene_plots, heatmaps, maps, model_plots, style

RNG = np.random.default_rng(0)
GENES = [f"G{i}" for i in range(28)] + ["<b>&x", "$a_b$"]
SHIFT = pd.Series(RNG.normal(size=30), index=GENES)
TABLE = pd.DataFrame(
    {
        "shift": SHIFT,
        "lower": SHIFT - RNG.uniform(0.1, 1, 30),
        "upper": SHIFT + RNG.uniform(0.1, 1, 30),
        "observed": SHIFT / 2,
        "observed_se": RNG.uniform(0.1, 0.2, 30),
    }
)
BARS = TABLE.rename(columns={"shift": "value"}).assign(label=GENES)
WIDE = pd.DataFrame(
    [[0.1, -0.9], [0.2, np.nan], [0.0, 0.4]], index=["A", "<i>B</i>", "7"], columns=[0, 4]
)
MARKS = pd.DataFrame([["+", ""], ["", "x"], ["", ""]])
PLACES = pd.DataFrame(RNG.normal(size=(30, 2)), columns=["umap_1", "umap_2"])
NAMED = PLACES.assign(name=GENES)
GROUPS = pd.Series(["one", "two", "<u>"] * 10)
LEVELS = pd.Series(pd.Categorical(GROUPS, [style.REST, "one", "two"])).fillna(style.REST)
AMOUNT = pd.Series(RNG.normal(size=30))
HISTORY = pd.DataFrame(
    {
        "epoch": [1, 2, 3],
        "bound": [-3.0, -2.0, -1.0],
        "validation_bound": [-3.5, -2.5, -2.0],
        "active": [9, 5, 4],
    }
)
CURVE = pd.DataFrame(
    {
        "statistic": ["mean", "mean", "<b>", "<b>"],
        "nominal": [0.5, 0.9, 0.5, 0.9],
        "observed": [0.4, 0.8, 0.2, 0.3],
    }
)
LEVEL = pd.DataFrame(
    {
        "mask_evidence": [0.02, 0.08, 0.32],
        "active": [60, 40, 20],
        "difference": [0.0, -0.1, -1.0],
        "difference_se": [0.0, 0.2, 0.3],
        "effect_r": [0.9, 0.91, 0.8],
        "chosen": [False, True, False],
    }
)
WALK = pd.DataFrame(
    {
        "rank": [1, 2, 3],
        "gene": ["A", "B", "C"],
        "hit": [True, False, True],
        "running_es": [0.5, -0.5, 0.0],
    }
)
SUM = pd.DataFrame({"A": [1.0, -0.5], "<b>": [0.25, 0.0], "sum": [1.25, -0.5]})
SPOTS = NAMED.assign(uses=[True, False] * 15)
ENTRIES = pd.DataFrame(
    {
        "perturbation": ["A", "<i>", "A"],
        "mechanism": [0, 0, 2],
        "effect": [1.0, -2.0, 0.5],
        "effect_sd": [0.1, 0.2, 0.3],
        "place": [0, 1, 0],
    }
)
NODES = pd.DataFrame(
    {
        "kind": ["perturbation", "perturbation", "mechanism"],
        "name": ["A", "<b>", "M0"],
        "degree": [1, 1, 2],
        "x": [0.0, 2.0, 1.0],
        "y": [0.0, 0.0, 4.0],
    }
)
EDGES = pd.DataFrame(
    {"perturbation": ["A", "<b>"], "mechanism": 0, "effect": [3.0, -1.0], "effect_sd": 0.1}
)
CELLS = pd.Series([300, 20, 7], index=WIDE.index)
TREE = pd.DataFrame(
    {
        "place": [0, 0, 1, 1, np.nan, 0.5, 0.5, 2, 2],
        "height": [0, 0.3, 0.3, 0, np.nan, 0.3, 0.7, 0.7, 0],
    }
)
TITLES = {0: "M0: <b>one", 4: "M4: two"}


def observed(dark):
    figure = gene_plots.bars(BARS, "shift", dark, genes=False)
    gene_plots.add_observed(
        figure, BARS.assign(observed=BARS["observed"].where(AMOUNT.to_numpy() > 0)), dark
    )
    return figure


MAKE = {
    "bars": lambda dark: gene_plots.bars(BARS, "shift", dark),
    "observed": observed,
    "volcano": lambda dark: gene_plots.volcano(TABLE, 5, dark, 500, "log2"),
    "ranks": lambda dark: gene_plots.ranks(TABLE, 5, dark, 500, "log2"),
    "agreement": lambda dark: gene_plots.agreement(TABLE, 5, dark, "log2"),
    "probability": lambda dark: heatmaps.mask_map(WIDE.abs(), "probability", dark),
    "effect": lambda dark: heatmaps.mask_map(WIDE, "effect", dark),
    "evidence": lambda dark: heatmaps.mask_map(WIDE, "evidence", dark, MARKS),
    "titled": lambda dark: heatmaps.mask_map(WIDE, "effect", dark, None, TITLES, CELLS, TREE),
    "cells beside": lambda dark: heatmaps.mask_map(WIDE.abs(), "probability", dark, cells=CELLS),
    "contributions": lambda dark: heatmaps.contributions(SUM, list(TITLES.values()), dark),
    "perturbations": lambda dark: maps.perturbation_map(SPOTS, [GENES[3], GENES[28]], dark),
    "used effects": lambda dark: model_plots.used_effects(ENTRIES, TITLES, dark),
    "network": lambda dark: maps.network(NODES, EDGES, TITLES, dark),
    "terms": lambda dark: heatmaps.term_map(WIDE, "NES", dark, ["a", "b", "b"], MARKS),
    "categories": lambda dark: maps.cell_map(PLACES, GROUPS, LEVELS, "group", dark),
    "amounts": lambda dark: maps.cell_map(PLACES, GROUPS, AMOUNT, "<i>G0</i>, z", dark, True),
    "lasso": lambda dark: maps.cell_map(PLACES, GROUPS, LEVELS, "", dark, taken=[1, 2]),
    "history": lambda dark: model_plots.history(HISTORY, dark),
    "calibration": lambda dark: model_plots.calibration(CURVE, dark),
    "frontier": lambda dark: model_plots.frontier(LEVEL, dark),
    "running sum": lambda dark: gene_plots.running_sum(WALK, "<SET>", dark),
}


def points(page):
    """Return the positions of markers, as rows of x and y."""
    offsets = [c.get_offsets() for a in page.axes for c in a.collections if len(c.get_offsets())]
    return np.concatenate([np.asarray(o) for o in offsets if o.any()] or [np.zeros((0, 2))])


def lines(page):
    """Return the points of the lines drawn, in order."""
    drawn = [line for a in page.axes for line in a.lines if line.get_linestyle() != "None"]
    return [line.get_xydata() for line in drawn if len(line.get_xdata()) > 2]


def in_order(rows):
    return np.array(sorted(map(tuple, np.asarray(rows, float).tolist())))


def names_of(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


@pytest.mark.parametrize("kind", MAKE)
def test_every_figure_is_drawn_and_has_its_data(kind):
    figure = MAKE[kind](dark=False)
    table = static_figures.data(figure)
    assert len(table) > 0
    assert table.columns.is_unique
    pd.testing.assert_frame_equal(table, static_figures.data(figure.to_json()))
    svg = static_figures.drawn(figure, "svg")
    assert ET.fromstring(svg).tag.endswith("svg")
    with Image.open(io.BytesIO(static_figures.drawn(figure, "png"))) as image:
        page = static_figures.painted(figure)
        assert image.size == tuple((2 * page.get_size_inches() / static_base.PIXEL).round())
        assert image.getpixel((0, 0))[:3] == (255, 255, 255)


@pytest.mark.parametrize("kind", [k for k in MAKE if k != "agreement"])
def test_the_theme_of_the_screen_and_the_time_make_no_difference(kind):
    assert static_figures.drawn(MAKE[kind](dark=True), "svg") == static_figures.drawn(
        MAKE[kind](False), "svg"
    )


def test_the_same_figure_gives_the_same_bytes_also_from_several_threads():
    figure = MAKE["volcano"](False).to_json()
    with ThreadPoolExecutor(4) as pool:
        for kind in ("png", "pdf", "svg"):
            assert (
                len(set(pool.map(lambda _, k=kind: static_figures.drawn(figure, k), range(4)))) == 1
            )


def test_bars_and_whiskers_are_those_of_the_table():
    figure = MAKE["bars"](False)
    table = static_figures.data(figure)
    assert list(table) == ["gene", "shift", "shift, lower", "shift, upper"]
    assert list(table["gene"]) == GENES
    np.testing.assert_allclose(table.iloc[:, 1:], BARS[["value", "lower", "upper"]])
    (panel,) = static_figures.painted(figure).axes
    assert [bar.get_width() for bar in panel.patches] == list(table["shift"])
    centres = [bar.get_y() + bar.get_height() / 2 for bar in panel.patches]
    np.testing.assert_allclose(centres, range(30))
    (whiskers,) = panel.collections
    ends = np.array([segment[:, 0] for segment in whiskers.get_segments()])
    np.testing.assert_array_equal(ends, table[["shift, lower", "shift, upper"]])
    assert names_of(panel.yaxis) == GENES
    assert panel.yaxis_inverted()
    assert {tick.get_fontstyle() for tick in panel.get_yticklabels()} == {"italic"}


def test_bars_without_an_interval_have_no_whiskers():
    bare = gene_plots.bars(BARS.assign(lower=np.nan, upper=np.nan), "shift", False, genes=False)
    assert list(static_figures.data(bare)) == ["name", "shift"]
    assert not static_figures.painted(bare).axes[0].collections


def test_diamonds_stand_on_the_bars_they_belong_to():
    figure = MAKE["observed"](False)
    table = static_figures.data(figure)
    diamonds = table[table["series"] == "observed"]
    assert list(diamonds["name"]) == [
        g for g, amount in zip(GENES, AMOUNT, strict=True) if amount > 0
    ]
    np.testing.assert_allclose(diamonds["shift"], SHIFT[diamonds["name"]] / 2)
    reach = style.Z90 * TABLE.loc[diamonds["name"], "observed_se"]
    np.testing.assert_allclose(diamonds["shift, upper"] - diamonds["shift"], reach)
    at = [GENES.index(name) for name in diamonds["name"]]
    np.testing.assert_array_equal(
        in_order(points(static_figures.painted(figure))),
        in_order(np.stack([diamonds["shift"], at], axis=-1)),
    )


@pytest.mark.parametrize(
    ("kind", "x", "y", "expected"),
    [
        ("volcano", "predicted shift (log2)", "|shift| / half-width of interval", None),
        ("ranks", "genes, from highest to lowest shift", "predicted shift (log2)", None),
        (
            "agreement",
            "predicted shift (log2)",
            "observed shift (log2)",
            TABLE[["shift", "observed"]],
        ),
        ("categories", "UMAP 1", "UMAP 2", PLACES.astype(np.float32)),
        ("amounts", "UMAP 1", "UMAP 2", PLACES.astype(np.float32)),
        ("lasso", "UMAP 1", "UMAP 2", PLACES.astype(np.float32)),
        (
            "calibration",
            "share expected inside",
            "share found inside",
            CURVE[["nominal", "observed"]],
        ),
    ],
)
def test_points_are_drawn_where_the_table_has_them(kind, x, y, expected):
    figure = MAKE[kind](False)
    table = static_figures.data(figure)[[x, y]]
    np.testing.assert_array_equal(in_order(points(static_figures.painted(figure))), in_order(table))
    if expected is not None:
        np.testing.assert_array_equal(in_order(table), in_order(expected))


def test_labels_go_with_their_points():
    table = static_figures.data(MAKE["volcano"](False)).set_index("label")
    half = (TABLE["upper"] - TABLE["lower"]) / 2
    assert sorted(table.index) == sorted(GENES)
    np.testing.assert_array_equal(table["predicted shift (log2)"], SHIFT[table.index])
    strength = (SHIFT.abs() / half)[table.index]
    np.testing.assert_allclose(table.iloc[:, -1], strength.clip(1e-3))
    panel = static_figures.painted(MAKE["volcano"](False)).axes[0]
    assert panel.get_yscale() == "log"
    largest = SHIFT.abs().idxmax()
    (label,) = [t for t in panel.texts if t.get_text() == largest]
    assert label.get_fontstyle() == "italic"
    np.testing.assert_allclose(label.xy, table.loc[largest, table.columns[-2:]].astype(float))


def test_the_colour_of_a_point_is_its_amount():
    figure = MAKE["amounts"](False)
    table = static_figures.data(figure)
    order = AMOUNT.abs().argsort(kind="stable")
    np.testing.assert_allclose(table["G0, z"], AMOUNT[order], rtol=1e-6)
    page = static_figures.painted(figure)
    (drawn,) = page.axes[0].collections
    np.testing.assert_array_equal(drawn.get_array(), table["G0, z"])
    assert drawn.get_clim() == (-drawn.get_clim()[1], drawn.get_clim()[1])
    assert page.axes[1].get_ylabel() == "G0, z"


def test_cells_that_were_not_taken_are_faint():
    figure = MAKE["lasso"](False)
    table = static_figures.data(figure)
    assert table["selected"].sum() == 2
    drawn = [
        np.broadcast_to(c.get_facecolors()[:, 3], len(c.get_offsets()))
        for c in static_figures.painted(figure).axes[0].collections
    ]
    opacities = np.concatenate(drawn)
    np.testing.assert_array_equal(opacities > 0.1, table["selected"])


@pytest.mark.parametrize(
    ("kind", "column", "shade"),
    [
        ("probability", "probability", np.abs),
        ("effect", "effect", np.asarray),
        ("evidence", "evidence (colour scale)", lambda v: np.sign(v) * np.sqrt(np.abs(v))),
        ("terms", "NES", np.asarray),
    ],
)
def test_cells_of_a_map_have_their_row_column_and_value(kind, column, shade):
    figure = MAKE[kind](False)
    table = static_figures.data(figure)
    back = table.pivot_table(index="row", columns="column", values=column, dropna=False)
    expected = shade(WIDE.to_numpy())
    np.testing.assert_array_equal(back.loc[list(WIDE.index), ["M0", "M4"]], expected)
    page = static_figures.painted(figure)
    (mesh,) = page.axes[0].collections
    drawn = mesh.get_array().filled(np.nan).reshape(3, 2)
    np.testing.assert_array_equal(drawn, expected)
    labels = ["a", "b", "b"] if kind == "terms" else list(WIDE.index)
    assert names_of(page.axes[0].yaxis) == labels
    assert names_of(page.axes[0].xaxis) == ["M0", "M4"]
    assert page.axes[0].yaxis_inverted()


def test_marks_are_written_into_their_cells():
    figure = MAKE["evidence"](False)
    assert list(static_figures.data(figure)["mark"]) == ["+", "", "", "x", "", ""]
    written = static_figures.painted(figure).axes[0].texts
    assert [(t.get_text(), *t.get_position()) for t in written] == [("+", 0, 0), ("x", 1, 1)]


def test_bars_and_the_tree_stand_beside_the_rows_they_are_of():
    figure = MAKE["titled"](False)
    table = static_figures.data(figure)
    assert list(table) == ["row", "column", "mark", "effect", "cells"]
    cells = table["cells"].dropna()
    assert list(table.loc[cells.index, "row"]) == list(WIDE.index)
    assert list(cells) == list(CELLS)
    page = static_figures.painted(figure)
    grid, bars, tree, scale = page.axes
    assert [bar.get_width() for bar in bars.patches] == list(CELLS)
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars.patches]
    np.testing.assert_allclose(middles, range(3))
    np.testing.assert_array_equal(lines(page)[0], TREE[["height", "place"]])
    assert grid.get_ylim() == bars.get_ylim() == tree.get_ylim() == (2.5, -0.5)
    assert names_of(grid.yaxis) == list(WIDE.index)
    page.draw_without_rendering()
    starts = [panel.get_position().x0 for panel in (grid, bars, tree, scale)]
    assert starts == sorted(starts)
    seen = [tick.label1.get_visible() for tick in bars.yaxis.get_major_ticks()]
    assert not any(seen), "the names stand at the left of the map, once"


def test_levels_are_named_above_their_columns_whatever_their_names_are():
    """Levels can look like numbers, markup or mathematics, and hold signs that no XML may have."""
    cells = pd.DataFrame([[1, 3], [2, 2]], ["control", "P\x1b[2J<b>"], ["7", "$x$"])
    figure = heatmaps.level_map(cells, "\x00batch", False)
    drawn = ET.fromstring(static_figures.drawn(figure, "svg"))
    texts = ["".join(part.itertext()).strip() for part in drawn.iter() if part.tag.endswith("text")]
    assert {"7", "$x$", "control", "25%", "75%", "P [2J<b>"} <= set(texts)
    table = figure_data.data(figure)
    assert table["share of cells"].tolist() == [0.25, 0.75, 0.5, 0.5]


def test_contributions_are_a_row_each_with_their_sum():
    table = static_figures.data(MAKE["contributions"](False))
    back = table.pivot_table(index="row", columns="column", values="value", sort=False)
    np.testing.assert_array_equal(back[list(SUM)], SUM)
    assert list(back.index) == list(TITLES.values())
    assert list(table["mark"]) == ["+1.00", "+0.25", "+1.25", "-0.50", "+0.00", "-0.50"]


def test_perturbations_on_their_map_are_each_in_the_table_once():
    table = static_figures.data(MAKE["perturbations"](False)).set_index("label")
    assert sorted(table.index) == sorted(GENES)
    np.testing.assert_array_equal(table.loc[GENES, ["UMAP 1", "UMAP 2"]], PLACES)
    assert table.loc[GENES[28], "series"] == "<b>&x"  # as text
    assert set(table["series"]) == {"uses some mechanism", "uses none", GENES[3], GENES[28]}


def test_effects_of_the_chosen_name_their_mechanism_and_are_drawn_whole_on_both_sides_of_zero():
    figure = MAKE["used effects"](False)
    table = static_figures.data(figure).set_index("label")
    labels = ["A, M0", "<i>, M0", "A, M2"]
    name = "effect (basal standard deviations)"
    reach = style.Z90 * ENTRIES["effect_sd"]
    for column, expected in (
        (name, ENTRIES["effect"]),
        (f"{name}, lower", ENTRIES["effect"] - reach),
        (f"{name}, upper", ENTRIES["effect"] + reach),
    ):
        np.testing.assert_allclose(table.loc[labels, column], expected)
    panel = static_figures.painted(figure).axes[0]
    low, high = panel.get_xlim()
    assert low < table[f"{name}, lower"].min()
    assert high > table[f"{name}, upper"].max()


@pytest.mark.parametrize("sign", [1, -1])
def test_an_axis_that_shall_hold_zero_begins_or_ends_there(sign):
    figure = go.Figure(go.Scatter(x=[2 * sign, 3 * sign], y=[0, 1], mode="markers"))
    panel = static_figures.painted(figure.update_xaxes(rangemode="tozero")).axes[0]
    assert 0 in panel.get_xlim()
    assert min(map(abs, panel.get_xlim())) == 0 < 3 < max(map(abs, panel.get_xlim()))


def test_the_network_has_its_nodes_as_data_and_no_axes():
    figure = MAKE["network"](False)
    table = static_figures.data(figure)
    np.testing.assert_array_equal(table[["x", "y"]], NODES[["x", "y"]])
    assert list(table["label"]) == list(NODES["name"])
    page = static_figures.painted(figure)
    np.testing.assert_array_equal(in_order(points(page)), in_order(NODES[["x", "y"]]))
    panel = page.axes[0]
    for side in (panel.xaxis, panel.yaxis):
        assert not any(t.label1.get_visible() for t in side.get_major_ticks())
        assert not any(t.gridline.get_visible() for t in side.get_major_ticks())
    ends = [line.get_xydata()[:2].tolist() for line in panel.lines]
    assert ends == [[[0, 0], [1, 4]], [[2, 0], [1, 4]]]


def test_values_whose_colours_follow_a_function_of_them_are_in_the_table_too():
    figure = heatmaps.mask_map(WIDE, "evidence", False)
    figure.update_traces(customdata=WIDE.to_numpy(), selector={"type": "heatmap"})
    table = static_figures.data(figure)
    np.testing.assert_array_equal(table["evidence"], WIDE.to_numpy().ravel())
    assert "evidence (colour scale)" in table


def test_lines_have_the_points_of_the_table_on_both_axes():
    figure = MAKE["history"](False)
    table = static_figures.data(figure)
    assert list(table) == ["series", "epoch", "nats per cell", "entries"]
    validation, training, entries = lines(static_figures.painted(figure))
    np.testing.assert_array_equal(validation, HISTORY[["epoch", "validation_bound"]])
    np.testing.assert_array_equal(training, HISTORY[["epoch", "bound"]])
    np.testing.assert_array_equal(entries, HISTORY[["epoch", "active"]])
    np.testing.assert_array_equal(
        table["nats per cell"].dropna(), np.r_[validation[:, 1], training[:, 1]]
    )
    np.testing.assert_array_equal(table["entries"].dropna(), entries[:, 1])


def test_panels_share_an_axis_and_keep_their_own_columns():
    figure = MAKE["frontier"](False)
    table = static_figures.data(figure)
    ordered = LEVEL.sort_values("active")
    first, second = table.iloc[:3], table.iloc[3:]
    np.testing.assert_array_equal(first["from best (nats per cell)"], ordered["difference"])
    np.testing.assert_array_equal(second["r of effects"], ordered["effect_r"])
    assert list(table["active mask entries"]) == [20, 40, 60] * 2
    assert list(first["symbol"]) == ["circle", "diamond", "circle"]
    upper, lower = static_figures.painted(figure).axes
    np.testing.assert_array_equal(lines(upper.figure)[0], ordered[["active", "difference"]])
    assert upper.get_xlim() == lower.get_xlim()
    assert [t.get_text() for t in upper.texts] == ["kept"]


def test_the_walk_and_its_genes_are_drawn():
    figure = MAKE["running sum"](False)
    table = static_figures.data(figure)
    walk = table[table["series"] == "running sum"]
    np.testing.assert_array_equal(walk.iloc[:, -2:], WALK[["rank", "running_es"]])
    assert list(table.loc[table["series"] == "genes of the set", "label"]) == ["A", "C"]
    page = static_figures.painted(figure)
    np.testing.assert_array_equal(lines(page)[0], WALK[["rank", "running_es"]])
    assert page.axes[0].get_title(loc="left") == "<SET>"


def test_lines_of_reference_labels_and_layers_for_clicks_are_no_data():
    assert len(static_figures.data(MAKE["agreement"](False))) == 30
    assert len(static_figures.data(MAKE["calibration"](False))) == 4
    assert len(static_figures.data(MAKE["effect"](False))) == 6
    hidden = go.Figure(go.Scatter(y=[1, 2])).add_scatter(y=[3, 4], visible="legendonly")
    assert list(static_figures.data(hidden)["y"]) == [1, 2]


def test_text_stays_text_in_svg_with_genes_in_italics():
    root = ET.fromstring(static_figures.drawn(MAKE["bars"](False), "svg"))
    texts = {e.text: e.get("style", "") for e in root.iter() if e.tag.endswith("}text")}
    assert set(GENES) <= set(texts)
    assert "shift" in texts
    assert "italic" in texts["G0"]
    assert "italic" not in texts["shift"]


def test_names_in_any_script_and_of_any_length_are_drawn():
    names = [
        "\U0001f9ec emoji",
        "\u05e9\u05dc\u05d5\u05dd",
        "x" * 200,
        "line\x07\nbreak",
        "",
        "$\\frac{",
    ]
    frame = pd.DataFrame({"label": names, "value": 1.0, "lower": 0.0, "upper": 2.0})
    figure = gene_plots.bars(frame, "<i>g</i> $^{", False)
    assert list(static_figures.data(figure)["gene"]) == names
    assert "\u05e9" in static_figures.drawn(figure, "svg").decode()
    assert static_figures.drawn(figure, "png")


def test_what_cannot_be_drawn_says_so():
    with pytest.raises(static_figures.PrintError, match="'pie'"):
        static_figures.data(go.Figure(go.Pie(values=[1, 2])))
    stacked = (
        go.Figure(go.Bar(x=["a"], y=[1])).add_bar(x=["a"], y=[2]).update_layout(barmode="stack")
    )
    with pytest.raises(static_figures.PrintError, match="'stack'"):
        static_figures.drawn(stacked, "svg")


def test_a_figure_without_anything_is_empty():
    assert static_figures.data(go.Figure()).empty
    assert static_figures.drawn(go.Figure(), "svg")
    assert len(static_figures.data(go.Figure(go.Scatter(x=[], y=[])))) == 0
    assert static_figures.drawn(go.Figure(go.Scatter(x=[], y=[])), "svg")


def test_notes_and_lines_of_reference_of_the_layout_are_drawn():
    figure = go.Figure(go.Scatter(x=[1, 10, 100], y=[1, 2, 3])).update_xaxes(type="log")
    figure.add_hline(1.5).add_annotation(x=1, y=2, text="here", showarrow=False)
    panel = static_figures.painted(figure).axes[0]
    assert any(list(line.get_ydata()) == [1.5, 1.5] for line in panel.lines)
    (note,) = panel.texts
    assert (note.get_text(), note.xy[0]) == ("here", 10)


def test_tags_go_and_entities_are_read_once():
    assert figure_data.plain("<i>A</i>&amp;lt;<br>&lt;b&gt;") == "A&lt;\n<b>"
    assert figure_data.plain("a < b > c") == "a < b > c"


def test_importing_it_does_not_load_matplotlib():
    modules = "sys, app.export.static_figures, app.export.report"
    program = f"import {modules}; assert 'matplotlib' not in sys.modules"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
