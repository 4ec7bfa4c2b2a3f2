"""Direct effects on every page that shows them."""

import numpy as np
import pandas as pd
import pytest

from app.export import items, methods
from app.session import composition
from app.session import results as cached
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.compose import compare, compose
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from tests.views.pages import (
    decoded,
    figures,
    finished,
    kept,
    links,
    opened,
    rewritten,
    table_with,
    words,
)
from tests.views.test_perturbation import renamed

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend

HOSTILE = "<b>*x*</b> $y$ [l](u) :red[z]"

NONE = "This model has no direct effects: it was trained without them, or before they existed."


def switch(page):
    return next(toggle for toggle in page.toggle if toggle.label == "Direct effects")


def shift(page) -> dict[str, float]:
    return table_with(page, "shift").set_index("gene")["shift"].to_dict()


def with_table(models, change) -> Bundle:
    """Return the small bundle with a changed table of direct effects."""
    model = opening.load(models / "tiny")
    rewritten(model, "direct.csv", change(model.direct.copy()))
    return opening.load(models / "tiny")


def strong(model: Bundle) -> tuple[str, str]:
    """Return a perturbation and a gene with a direct effect that stands out."""
    row = model.direct[model.direct["active"]].iloc[0]
    return row["perturbation"], row["gene"]


# Compose


def test_the_parts_in_the_table_add_up_to_the_shift(one_model, tiny):
    table = table_with(opened("compose", {"c": "P1:1,P5:0.5"}), "through_mechanisms")
    both = table["through_mechanisms"] + table["direct"]
    assert both.to_numpy() == pytest.approx(table["shift"].to_numpy())
    assert table["direct"].abs().max() > 0.1
    alone = compose(tiny, {"P1": 1.0, "P5": 0.5}, direct=False).table
    found = table.set_index("gene")["through_mechanisms"]
    assert found.to_numpy() == pytest.approx(alone["shift"][found.index].to_numpy(), abs=1e-5)


def test_the_switch_takes_direct_effects_out_and_the_address_holds_it(calibrated):
    page = opened("compose", {"c": "P1:1,P5:1"})
    assert switch(page).value is True
    assert page.query_params.get("off", "") == ""
    whole = shift(page)
    switch(page).set_value(False).run()
    assert finished(page)
    without = compose(calibrated, {"P1": 1.0, "P5": 1.0}, direct=False).table["shift"].to_dict()
    assert shift(page) == pytest.approx(without)
    assert without != pytest.approx(whole)
    assert page.query_params["off"] in ("direct", ["direct"])
    assert "Direct effects left out: not a prediction of the condition" in words(page)
    assert "no calibrated interval, because direct effects are left out" in words(page)
    assert "does not predict what was observed" in words(
        opened("compose", {"c": "P1:1", "off": "direct"})
    )
    page.button(key="undo").click().run()
    assert shift(page) == pytest.approx(whole)
    assert switch(page).value is True


def test_a_link_switches_direct_effects_off_and_the_code_says_so(one_model, tiny):
    page = opened("compose", {"c": "P5:1", "off": "direct", "part": "Code"})
    assert switch(page).value is False
    assert shift(page) == pytest.approx(
        compose(tiny, {"P5": 1.0}, direct=False).table["shift"].to_dict()
    )
    assert "direct=False" in page.code[0].value
    assert "--no-direct" in page.code[1].value
    assert not {"through_mechanisms", "direct"} & set(table_with(page, "shift"))


def test_the_composition_kept_to_compare_with_keeps_the_switch(one_model, tiny):
    query = {"c": "P5:1", "b": "P5:1", "boff": "direct", "part": "A against B"}
    page = opened("compose", query)
    table = table_with(page, "difference").set_index("gene")["difference"]
    expected = compare(tiny, compose(tiny, {"P5": 1.0}), compose(tiny, {"P5": 1.0}, direct=False))
    assert table.to_dict() == pytest.approx(expected["difference"].to_dict())
    assert "P5 without direct effects" in words(page)


def test_results_are_kept_apart_by_the_switch(one_model, tiny):
    found = [cached.composed(tiny, {"P5": 1.0}, [], direct=direct) for direct in (True, False)]
    assert [one.direct for one in found] == [True, False]
    assert not found[0].table["shift"].equals(found[1].table["shift"])


def test_what_is_switched_off_is_read_as_it_was_written():
    for off in ({"direct"}, {0, 3, 5, 6, 7, "rest", "direct"}, {"rest"}, set()):
        assert composition.read_off(composition.as_off(off)) == off


# Perturbation


def test_the_direct_effects_of_a_perturbation_are_those_that_stand_out(one_model, tiny):
    name, gene = strong(tiny)
    page = opened("perturbation", {"p": name})
    assert finished(page)
    rows = tiny.direct[(tiny.direct["perturbation"] == name)]
    expected = rows[rows["active"]].set_index("gene")
    table = table_with(page, "fold_change").set_index("gene")
    assert set(table.index) == set(expected.index)
    assert table["effect"].abs().is_monotonic_decreasing
    for column in ("effect", "effect_sd", "probability", "evidence", "evidence_se", "evidence_n"):
        assert table[column].to_dict() == pytest.approx(expected[column].to_dict())
    assert table["fold_change"].to_dict() == pytest.approx(
        {g: float(np.exp(effect)) for g, effect in expected["effect"].items()}
    )
    observed = tiny.observed_shift(name)
    assert observed is not None
    assert table.loc[gene, "observed"] == pytest.approx(observed.loc[gene, "shift"])
    assert f"{len(rows) - len(expected)} small ones, not listed, are used" in words(page)
    label = {"label": f"Open {gene}", "page": "gene", "query": f"g={gene}"}
    assert label in links(page)


def test_a_kept_view_holds_the_direct_effects_for_the_report(one_model, tiny):
    name = strong(tiny)[0]
    page = opened("perturbation", {"p": name})
    page.button(key="keep view").click().run()
    (view,) = kept(page)
    tables = {item.name: item.frame for item in view.items if isinstance(item, items.Table)}
    found = tables[f"direct_effects_of_{name}"]
    expected = tiny.direct[(tiny.direct["perturbation"] == name) & tiny.direct["active"]]
    assert set(found["gene"]) == set(expected["gene"])
    assert "A direct effect is what a perturbation adds to the logit" in methods.methods([view])


def test_a_perturbation_of_which_nothing_stands_out_says_so(one_model, tiny):
    rows = tiny.direct[tiny.direct["perturbation"] == "P1"]
    assert len(rows)
    assert not rows["active"].any()
    page = opened("perturbation", {"p": "P1"})
    assert f"No direct effect of **P1** stands out. {len(rows)} small ones" in words(page)
    assert not [frame for frame in page.dataframe if "fold_change" in frame.value]


def test_enough_direct_effects_lead_to_their_gene_sets(one_model, tiny):
    rows = tiny.direct[tiny.direct["perturbation"] == "P1"]
    assert (rows["effect"].abs() > 2 * rows["effect_sd"]).sum() >= 10
    found = [link for link in links(opened("perturbation", {"p": "P1"})) if "sets" in link["label"]]
    assert "c=P1%3A1&off=0-3%2Crest&part=Gene+sets" in [link["query"] for link in found]
    page = opened("compose", {"c": "P1:1", "off": "0-3,rest", "part": "Gene sets"})
    assert finished(page)
    expected = compose(tiny, {"P1": 1.0}, without=range(4)).table
    assert (expected["through_mechanisms"] == 0).all()
    assert shift(page) == pytest.approx(expected["shift"].to_dict())


@pytest.mark.usefixtures("edited")
def test_few_direct_effects_do_not(models):
    with_table(models, lambda table: table.assign(effect_sd=table["effect"].abs()))
    found = [link["label"] for link in links(opened("perturbation", {"p": "P1"}))]
    assert not [label for label in found if "direct effects" in label]


@pytest.mark.usefixtures("edited")
def test_the_own_gene_comes_first_with_its_direct_effect(models):
    renamed(opening.load(models / "tiny"), "P5", "TCP228")  # an old name of CCL5

    def own(table: pd.DataFrame) -> pd.DataFrame:
        here = (table["perturbation"] == "TCP228") & (table["gene"] == "CCL5")
        assert here.sum() == 1
        facts = [-0.8, 0.05, 0.97, True, True, 0.123, 0.02, 43]
        table.loc[here, table.columns[2:]] = pd.DataFrame([facts], table.index[here]).to_numpy()
        return table

    with_table(models, own)
    page = opened("perturbation", {"p": "TCP228"})
    assert finished(page)
    text = words(page)
    told = (
        f"Direct effect on it: {np.exp(-0.8):.2f} times its share, -0.80 ± 0.05 sd (natural log), "
        "probability 0.97, evidence +0.123 ± 0.020 se nats per cell over 43 held-out cells."
    )
    assert told in text
    assert text.index("Its own gene, *CCL5*") < text.index("**TCP228** uses")
    table = table_with(page, "fold_change").set_index("gene")
    assert table["own_target"].to_dict() == {g: g == "CCL5" for g in table.index}


@pytest.mark.usefixtures("edited")
def test_an_own_gene_that_hardly_moves_is_told_too(models):
    renamed(opening.load(models / "tiny"), "P5", "TCP228")
    with_table(models, lambda table: table[table["gene"] != "CCL5"])
    assert "Direct effect on it: nearly zero" in words(opened("perturbation", {"p": "TCP228"}))


def test_names_of_any_kind_are_shown_as_text(models, tiny):
    name, gene = strong(tiny)
    model = renamed(opening.load(models / "tiny"), name, HOSTILE)
    other = HOSTILE.replace("x", "w")
    for file in ("genes.csv", "calibration.csv", "direct.csv", "loadings.parquet"):
        table = (
            pd.read_parquet(model.path / file)
            if file.endswith("parquet")
            else pd.read_csv(model.path / file)
        )
        table["gene"] = table["gene"].replace(gene, other)
        if file.endswith("parquet"):
            table.to_parquet(model.path / file)
        else:
            table.to_csv(model.path / file, index=False)
    observed = pd.read_parquet(model.path / "observed.parquet")
    observed["gene"] = observed["gene"].replace(gene, other)
    observed.to_parquet(model.path / "observed.parquet")
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    for page in (opened("perturbation", {"p": HOSTILE}), opened("gene", {"g": other})):
        assert finished(page)
        assert len(table_with(page, "fold_change"))
        said = [*page.markdown, *page.caption, *page.info, *page.header, *page.subheader]
        raw = " ".join([part.value for part in said] + [link["label"] for link in links(page)])
        assert not [mark for mark in ("<b>", "[l](u)", "$y$", ":red[") if mark in raw]
        assert "<b>" not in str(figures(page))


# Models without


def test_a_model_without_direct_effects_says_so_and_has_no_switch(shown):
    model = shown("mechanisms alone")
    assert model.direct is None
    page = opened("perturbation", {"p": "P1"})
    assert finished(page)
    assert NONE in words(page)
    assert "Direct effect on it" not in words(page)
    page = opened("compose", {"c": "P1:1", "off": "direct"})
    assert finished(page)
    assert "Direct effects" not in [toggle.label for toggle in page.toggle]
    assert "left out" not in words(page)
    assert not {"through_mechanisms", "direct"} & set(table_with(page, "shift"))
    assert shift(page) == pytest.approx(compose(model, {"P1": 1.0}).table["shift"].to_dict())
    assert NONE in words(opened("overview"))
    assert "directly" not in [header.value for header in opened("gene").header]


def test_effects_on_values_have_no_fold_change(shown):
    model = shown("values")
    name = next(iter(model.direct["perturbation"]))
    page = opened("perturbation", {"p": name})
    assert finished(page)
    assert not [frame for frame in page.dataframe if "fold_change" in frame.value]


# Gene, Masks, Overview


def test_a_gene_lists_the_perturbations_that_move_it_directly(one_model, tiny):
    gene = strong(tiny)[1]
    page = opened("gene", {"g": gene})
    assert finished(page)
    expected = tiny.direct[(tiny.direct["gene"] == gene) & tiny.direct["active"]]
    table = table_with(page, "fold_change").set_index("perturbation")
    assert table["effect"].to_dict() == pytest.approx(
        expected.set_index("perturbation")["effect"].to_dict()
    )
    first = expected.loc[expected["effect"].abs().idxmax(), "perturbation"]
    wanted = {"label": f"Open {first}", "page": "perturbation", "query": f"p={first}"}
    assert wanted in links(page)
    quiet = next(g for g in tiny.genes if g not in set(tiny.direct.loc[tiny.direct.active, "gene"]))
    headers = [header.value for header in opened("gene", {"g": quiet}).header]
    assert "Perturbations that move it directly" not in headers


def test_an_empty_row_of_the_masks_says_how_many_direct_effects_it_has(one_model, tiny):
    used = interpretation.matrix(tiny.masks, "active").any(axis=1)
    active = tiny.direct[tiny.direct["active"]].groupby("perturbation").size()
    expected = {name: n for name, n in active.items() if not used[name]}
    assert expected
    marks = figures(opened("masks"))[0]["data"][1]
    for place, said in zip(marks["customdata"], decoded(marks["text"]), strict=True):
        n = expected.get(place.partition("|")[0])
        assert said.endswith(f"<br>direct effects: {n}") if n else "direct" not in said


def test_overview_counts_what_stands_out_and_what_all_cells_share(models, tiny, edited):
    n, kept = int(tiny.direct["active"].sum()), len(tiny.direct)
    assert f"Of {kept} that are kept, {n} stand out" in words(opened("overview"))
    assert "All perturbed cells share" not in words(opened("overview"))
    shared = pd.DataFrame(
        {"gene": tiny.genes[:2], "effect": [0.4, 0.1], "effect_sd": 0.1, "probability": [0.9, 0.1]}
    )
    rewritten(opening.load(models / "tiny"), "shared.csv", shared)
    text = words(opened("overview"))
    assert f"share, against control, a change of *{tiny.genes[0]}* +0.40 (natural log)" in text


def test_one_without_a_mechanism_is_compared_by_its_direct_effects(one_model, tiny):
    used = interpretation.matrix(tiny.masks, "active").any(axis=1)
    name = next(p for p in tiny.direct.loc[tiny.direct["active"], "perturbation"] if not used[p])
    page = opened("perturbation", {"p": name, "perturbation_tab": "Perturbations like it"})
    assert finished(page)
    table = table_with(page, "r_observed").set_index("perturbation")
    assert "cosine" not in table
    shifts = pd.DataFrame({p: compose(tiny, {p: 1.0}).table["shift"] for p in used.index})
    expected = shifts.corr()[name].drop(name)
    assert table["r_predicted"].to_dict() == pytest.approx(expected.to_dict(), abs=1e-3)
    assert "its predicted shift is what its direct effects do" in words(page)


def test_overview_opens_where_not_one_direct_effect_is_kept(models, edited):
    with_table(models, lambda table: table[:0])
    page = opened("overview")
    assert finished(page)
    assert "Of 0 that are kept, 0 stand out" in words(page)
