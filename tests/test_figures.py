"""Figures say what their tables say: values, order, colour range, and names as text."""

import numpy as np
import pandas as pd
import pytest

from app import figures


@pytest.fixture
def shifts():
    rng = np.random.default_rng(0)
    shift = pd.Series(rng.normal(size=30), index=[f"G{i}" for i in range(30)])
    return pd.DataFrame({"shift": shift, "lower": shift - 0.5, "upper": shift + 0.5})


def test_the_mask_map_has_a_marker_for_every_cell_in_its_order():
    wide = pd.DataFrame([[0.1, 0.9], [0.2, 0.3]], index=["A", "B"], columns=[0, 4])
    heat, marks = figures.mask_map(wide, "probability", dark=False).data
    assert np.array_equal(heat.z, wide.to_numpy())
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert list(marks.customdata) == ["A|0", "A|4", "B|0", "B|4"]
    assert list(marks.text) == ["0.100", "0.900", "0.200", "0.300"]


def test_signed_effects_are_centred_at_zero_and_carry_their_sign():
    wide = pd.DataFrame([[-2.0, 1.0]], index=["A"], columns=[0, 1])
    heat, _, signs = figures.mask_map(wide, "effect", dark=True).data
    assert heat.zmin == -heat.zmax == -2
    assert list(signs.text) == ["\u2212", "+"]


def test_bars_carry_their_intervals_and_both_signs():
    frame = pd.DataFrame(
        {"label": ["A", "B"], "value": [1.0, -2.0], "lower": [0.5, -3.0], "upper": [1.5, -1.5]}
    )
    (bar,) = figures.bars(frame, "shift", dark=False).data
    assert list(bar.error_x.array) == [0.5, 0.5]
    assert list(bar.error_x.arrayminus) == [0.5, 1.0]
    assert bar.marker.color[0] != bar.marker.color[1]


def test_a_volcano_parts_genes_by_their_interval(shifts):
    unclear, up, down, _ = figures.volcano(shifts, 5, dark=False, height=400).data
    assert len(unclear.x) == ((shifts["lower"] <= 0) & (shifts["upper"] >= 0)).sum()
    assert len(up.x) == (shifts["lower"] > 0).sum()
    assert len(down.x) == (shifts["upper"] < 0).sum()
    assert min(up.y) > 1


def test_names_from_files_are_text_and_never_markup():
    frame = pd.DataFrame(
        {"label": ["<a href='x'>g</a>"], "value": [1.0], "lower": [0.0], "upper": [2.0]}
    )
    (bar,) = figures.bars(frame, "shift", dark=False).data
    assert "<a" not in bar.y[0]
    wide = pd.DataFrame([[0.1]], index=["<b>A</b>"], columns=[0])
    assert "<b>" not in figures.mask_map(wide, "probability", dark=False).data[0].y[0]
    assert figures.text(['5" & <6']) == ['5" &amp; &lt;6']  # Plotly knows no &quot;


def test_names_that_look_like_numbers_or_dates_are_names():
    wide = pd.DataFrame([[0.1], [0.2]], index=["7", "2020-01-01"], columns=[0])
    assert figures.mask_map(wide, "probability", dark=False).layout.yaxis.type == "category"
    frame = pd.DataFrame({"label": ["7"], "value": [1.0], "lower": [0.0], "upper": [2.0]})
    assert figures.bars(frame, "shift", False, genes=False).layout.yaxis.type == "category"


def test_labels_that_would_overlap_are_left_out(shifts):
    crowded = pd.concat([shifts, shifts.rename(lambda g: f"{g}twin")])
    labels = figures.volcano(crowded, 60, dark=False, height=400).data[-1]
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
    line, hits = figures.running_sum(walk, "SET", dark=False).data
    assert list(line.y) == [0.5, -0.5, 0.0]
    assert list(hits.text) == ["A", "C"]
