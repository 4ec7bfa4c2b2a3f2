"""The page Masks."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import cosine
from streamlit.testing.v1 import AppTest

from app.components import compare as shared
from app.session import choices as choices_module
from samsvae_core.analysis import masks as interpretation
from samsvae_core.bundle import opening
from samsvae_core.bundle.bundle import Bundle
from tests.views.pages import (
    ROOT,
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

WHOLE = {"unused": "false"}  # masks, with the mechanisms that nothing uses

TABLE = {"masks_tab": "Table of entries"}

NETWORK = {"masks_tab": "Network of shared mechanisms"}

NEAR_MISSES = {"masks_tab": "Near misses"}


def test_mechanisms_that_nothing_uses_are_hidden_until_asked_for(monkeypatch):
    monkeypatch.setenv("SAMSVAE_MODELS", str(ROOT / "pretrained"))
    page = opened("masks", {"model": "papalexi2021"})
    assert len(figures(page)[0]["data"][1]["customdata"]) == 25 * 3
    assert "(17 that nothing uses are hidden)" in words(page)
    page.toggle(key="unused").set_value(False).run()
    assert len(figures(page)[0]["data"][1]["customdata"]) == 25 * 20
    assert "are hidden" not in words(page)


def test_the_mask_map_shows_every_probability_of_the_table(one_model, tiny):
    page = opened("masks", WHOLE)
    marks = figures(page)[0]["data"][1]
    assert len(marks["customdata"]) == len(tiny.masks)
    shown = dict(zip(marks["customdata"], marks["text"], strict=True))
    for row in tiny.masks.itertuples():
        found = shown[f"{row.perturbation}|{row.mechanism}"].partition("<br>")[0]
        assert found == f"{row.probability:.3f}"


def test_a_search_without_a_hit_says_why_the_map_is_empty(one_model):
    page = opened("masks")
    page.text_input(key="find").set_value("nothing like it").run()
    assert "Nothing to show" in page.info[0].value
    assert finished(page)


def test_cpa_vae_has_no_mask_but_effects(shown):
    model = shown("cpa-vae")
    page = opened("masks")
    assert "CPA-VAE has no mask: every perturbation moves every latent dimension" in words(page)
    assert not {"Active above", "Hide empty rows and columns"} & labels(page)
    assert "Near misses" not in [tab.label for tab in page.tabs]
    assert len(figures(page)[0]["data"][1]["customdata"]) == len(model.masks)
    table = opened("masks", TABLE).dataframe[0].value
    assert "probability" not in table
    assert len(table) == len(model.masks)


def test_the_conditional_vae_has_no_map_and_says_where_to_go(shown):
    shown("conditional-vae")
    page = opened("masks")
    assert "no mask and no latent shifts" in page.info[0].value
    assert not figures(page)
    assert page.get("page_link")


def test_the_masks_table_has_the_evidence_of_every_entry(one_model, tiny):
    page = opened("masks", WHOLE | TABLE)
    table = table_with(page, "evidence").set_index(["perturbation", "mechanism"]).sort_index()
    expected = tiny.masks.set_index(["perturbation", "mechanism"]).sort_index()
    pd.testing.assert_frame_equal(table[expected.columns], expected)


@pytest.mark.usefixtures("edited")
def test_near_misses_are_those_of_the_library(models):
    model = opening.load(models / "tiny")
    masks = model.masks.copy()
    masks["active"] = masks["mechanism"] < 2
    masks["evidence"], masks["evidence_se"], masks["evidence_n"] = 0.1, 0.2, 9
    masks.loc[masks["mechanism"] == 3, "evidence"] = np.linspace(0.1, 0.9, 6)
    rewritten(model, "masks.csv", masks)
    page = opened("masks", NEAR_MISSES)
    found = interpretation.near_misses(opening.load(model.path).masks)
    assert 0 < len(found) < 6
    shown = next(
        f.value for f in page.dataframe if "evidence" in f.value and "active" not in f.value
    )
    assert shown["evidence"].tolist() == found["evidence"].tolist()
    assert f"{len(found)} of 12 inactive entries" in words(page)


def test_a_model_without_near_misses_says_so(models):
    model = opening.load(models / "tiny")
    rewritten(model, "masks.csv", model.masks.assign(evidence=0.0, evidence_se=1.0))
    page = opened("masks", NEAR_MISSES)
    assert "There is none" in page.info[-1].value
    assert not any("evidence" in frame.value for frame in page.dataframe)


def test_the_map_may_be_coloured_by_evidence(one_model, tiny):
    page = opened("masks", WHOLE)
    page.segmented_control(key="colour").select("evidence").run()
    assert finished(page)
    heat, marks = figures(page)[0]["data"][:2]
    said = dict(zip(marks["customdata"], marks["text"], strict=True))
    for row in tiny.masks.itertuples():
        wanted = "not tried" if np.isnan(row.evidence) else f"{row.evidence:+.2f}"
        assert said[f"{row.perturbation}|{row.mechanism}"].partition("<br>")[0] == wanted
    drawn = {symbol for line in heat["text"] for symbol in line}
    assert drawn <= {"+", "\u25cb", "\u00d7", ""}


def probabilities(tiny: Bundle) -> pd.DataFrame:
    names, n = list(tiny.perturbations.index), tiny.model.config.n_latent
    wide = tiny.masks["probability"].to_numpy().reshape(len(names), n)
    return pd.DataFrame(wide, index=names)


def rows_and_columns(page: AppTest) -> tuple[list[str], list[str]]:
    heat = figures(page)[0]["data"][0]
    return heat["y"], heat["x"]


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("Name", lambda t: {name: name for name in t.perturbations.index}),
        ("Mechanisms used", lambda t: (-(probabilities(t) > 0.5).sum(axis=1)).to_dict()),
        ("Training cells", lambda t: (-t.perturbations["train"]).to_dict()),
        (
            "Strength of effect",
            lambda t: {
                name: -np.linalg.norm(part["effect"])
                for name, part in t.masks.groupby("perturbation", sort=False)
            },
        ),
    ],
)
def test_rows_of_the_map_are_in_the_order_asked_for_and_keep_their_values(
    one_model, tiny, label, key
):
    page = opened("masks", WHOLE | {"rows": label})
    rows, columns = rows_and_columns(page)
    by = key(tiny)
    assert rows == sorted(tiny.perturbations.index, key=by.__getitem__)  # stable: ties as before
    assert columns == ["M0", "M1", "M2", "M3"]
    shown = decoded(figures(page)[0]["data"][0]["z"]).reshape(len(rows), -1)
    np.testing.assert_allclose(shown, probabilities(tiny).loc[rows])
    bars = figures(page)[0]["data"][2]
    assert decoded(bars["x"]).tolist() == tiny.perturbations["train"].loc[rows].tolist()
    assert len(figures(page)[0]["data"]) == 3  # no tree, as nothing is clustered


def test_columns_of_the_map_may_go_by_their_users(one_model, tiny):
    _, columns = rows_and_columns(opened("masks", WHOLE | {"columns": "Number of users"}))
    users = (probabilities(tiny) > 0.5).sum(axis=0)
    assert columns == [f"M{k}" for k in sorted(users.index, key=lambda k: -users[k])]


def test_a_map_with_too_many_cells_is_shown_in_parts(one_model, monkeypatch):
    monkeypatch.setattr(shared, "MOST_CELLS", 8)  # two rows of four
    page = opened("masks", {"rows": "Name"})
    assert rows_and_columns(page)[0] == ["P1", "P2"]
    assert "Rows 1 to 2 of 6." in words(page)
    page.number_input(key=choices_module.ROWS).set_value(3).run()
    assert rows_and_columns(page)[0] == ["P5", "P6"]
    assert page.query_params[choices_module.ROWS] in ("3", ["3"])
    page.text_input(key="find").set_value("P1").run()
    assert rows_and_columns(page)[0] == ["P1"]
    assert rows_and_columns(opened("masks", {"rows": "Name", choices_module.ROWS: "2"}))[0] == [
        "P3",
        "P4",
    ]
    assert rows_and_columns(opened("masks", {"rows": "Name", choices_module.ROWS: "99"}))[0] == [
        "P1",
        "P2",
    ]


def test_a_long_table_is_cut_on_the_page_and_says_so(one_model, monkeypatch):
    monkeypatch.setattr(shared, "MOST_SENT", 5)
    page = opened("masks", WHOLE | TABLE)
    assert len(table_with(page, "evidence")) == 5
    assert "The first 5 of 24 rows, by probability; the files have all." in words(page)


def test_nothing_is_compared_before_it_is_chosen(one_model):
    page = opened("masks")
    assert "No perturbation is chosen" in words(page)
    assert all("first" not in frame.value for frame in page.dataframe)


def test_perturbations_of_a_link_are_compared_by_their_entries(one_model, tiny):
    page = opened("masks", {"chosen": "P2,P4"})
    assert finished(page)
    rows = tiny.masks[tiny.masks["perturbation"].isin(["P2", "P4"]) & tiny.masks["active"]]
    shown = table_with(page, "P2")
    assert list(shown.columns) == ["mechanism", "P2", "P4"]
    told = {
        (name, line["mechanism"].partition(":")[0]): line[name]
        for _, line in shown.iterrows()
        for name in ("P2", "P4")
        if pd.notna(line[name])
    }
    assert told == {
        (r.perturbation, f"M{r.mechanism}"): f"{r.effect:+.2f} ± {r.effect_sd:.2f}"
        for r in rows.itertuples()
    }
    sets = [set(rows.loc[rows["perturbation"] == name, "mechanism"]) for name in ("P2", "P4")]
    pair = table_with(page, "first").iloc[0]
    assert (pair["first"], pair["second"]) == ("P2", "P4")
    assert pair["shared"] == len(sets[0] & sets[1])
    assert pair["jaccard"] == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))
    drawn = [
        x
        for figure in figures(page)
        for trace in figure["data"]
        if trace.get("text") and "90 % interval" in trace.get("hovertemplate", "")
        for x in decoded(trace["x"])
    ]
    assert sorted(drawn) == pytest.approx(sorted(rows["effect"]))


def test_names_to_compare_that_are_unknown_or_too_many_are_said_and_left_out(
    one_model, monkeypatch
):
    monkeypatch.setattr(choices_module, "MAX_CHOSEN", 2)
    page = opened("masks", {"chosen": "P1,<b>NOPE</b>,P2,P3"})
    assert finished(page)
    assert "NOPE" in page.info[0].value
    assert "<b>" not in page.info[0].value
    assert "Left out: P3" in page.info[1].value
    assert page.query_params["chosen"] in ("P1,P2", ["P1,P2"])


def test_perturbations_chosen_on_the_map_stay_and_are_not_those_of_another_model(one_model, tiny):
    page = opened("masks")
    page.session_state["chosen of another"] = ["P1"]
    page.run()
    assert "No perturbation is chosen" in words(page)
    page.session_state[f"chosen {tiny.checksum}"] = ["P3"]  # as the callback of a lasso does
    page.run()
    assert page.query_params["chosen"] in ("P3", ["P3"])
    page.segmented_control(key="colour").select("effect").run()
    (chosen,) = [box for box in page.multiselect if box.label == "Perturbations to compare"]
    assert chosen.value == ["P3"]
    next(button for button in page.button if button.label == "Choose none").click().run()
    assert "No perturbation is chosen" in words(page)
    assert "chosen" not in page.query_params


def planted(effects: dict[str, list[float]], has_masks: bool = True) -> Bundle:
    """Return a bundle for comparisons, in which every non-zero effect is an entry in use."""
    rows = [
        {"perturbation": p, "mechanism": k, "effect": e, "effect_sd": 0.1, "active": e != 0}
        for p, row in effects.items()
        for k, e in enumerate(row)
    ]
    model = SimpleNamespace(has_masks=has_masks)
    return SimpleNamespace(masks=pd.DataFrame(rows).assign(probability=1.0), model=model)


def test_the_sentence_says_who_shares_what_who_is_alone_and_who_goes_the_other_way():
    model = planted({"A": [2, 0, 0, 1], "B": [1, 0, 0, 2], "C": [-1, 0, 3, 0], "D": [0, 0, 0, 0]})
    assert shared.in_words(model, list("ABCD")) == (
        "**A**, **B** and **C** share M0 (**C** the other way). **A** and **B** share M3. "
        "Only **C** uses M2. **D** uses no mechanism."
    )
    assert shared.in_words(model, list("ABC")).startswith("All 3 share M0 (**C** the other way).")
    assert shared.in_words(model, ["A"]) == "**A** uses M0 and M3."
    odd = planted({"*A*": [1]})
    assert shared.in_words(odd, ["*A*"]) == "**\\*A\\*** uses M0."


def test_without_masks_the_sentence_compares_directions():
    model = planted({"A": [1, 1], "B": [2, 2.1], "C": [-2, -2], "D": [1, 0]}, has_masks=False)
    said = shared.in_words(model, list("ABCD"))
    assert said == (
        "Most alike by direction of effect (cosine): **A** and **B** (+1.00); "
        "least: **A** and **C** (-1.00)."
    )


def test_cpa_vae_compares_directions_and_has_no_network(shown):
    model = shown("cpa-vae")
    first, second = list(model.perturbations.index)[:2]
    page = opened("masks", {"chosen": f"{first},{second}"})
    assert finished(page)
    effect = [model.masks.loc[model.masks["perturbation"] == n, "effect"] for n in (first, second)]
    pair = table_with(page, "first").iloc[0]
    assert pair["cosine"] == pytest.approx(1 - cosine(*effect))
    assert "shared" not in pair
    assert not {"Network of shared mechanisms", "Near misses"} & {tab.label for tab in page.tabs}


def test_the_links_of_the_network_are_the_entries_above_the_threshold(one_model, tiny):
    page = opened("masks", {"threshold": "0.3"} | NETWORK)
    shown = next(
        f.value for f in page.dataframe if "probability" in f.value and "active" not in f.value
    )
    expected = tiny.masks[tiny.masks["probability"] > 0.3]
    found = zip(shown["perturbation"], shown["mechanism"].str.partition(":")[0], strict=True)
    assert sorted(found) == sorted(
        (r.perturbation, f"M{r.mechanism}") for r in expected.itertuples()
    )
    assert f"{len(expected)} links, each a mask probability above 0.3" in words(page)


def test_the_network_may_be_of_the_chosen_alone(one_model, tiny):
    name = tiny.masks.loc[tiny.masks["active"], "perturbation"].iloc[0]
    page = opened("masks", {"chosen": name, "only": "true"} | NETWORK)
    rows = tiny.masks[(tiny.masks["perturbation"] == name) & tiny.masks["active"]]
    assert f"{len(rows)} links" in words(page)


@pytest.mark.usefixtures("edited")
def test_a_network_of_nothing_says_so(models, tiny):
    model = opening.load(models / "tiny")
    rewritten(model, "masks.csv", model.masks.assign(probability=0.1, active=False))
    page = opened("masks", {"chosen": "P1,P2"} | NETWORK)
    assert finished(page)
    assert "There is nothing to link" in words(page)
    page = opened("masks", {"chosen": "P1,P2"})
    assert "None of them uses a mechanism" in words(page)
    assert "use no mechanism" in words(page)


def test_a_link_to_a_cell_of_the_mask_map_shows_its_card(one_model, tiny):
    entry = tiny.masks[tiny.masks["active"]].iloc[0]
    cell = f"{entry['perturbation']}|{entry['mechanism']}"
    page = opened("masks", {"cell": cell})
    assert finished(page)
    assert f"Probability {entry['probability']:.3f}" in words(page)
    assert page.query_params["cell"] in (cell, [cell])
    page = opened("masks", {"cell": "<b>|99"})
    assert finished(page)
    assert "The address asks for <b>|99, which is not here" in words(page)
    assert "cell" not in page.query_params
