"""The page Perturbation."""

import numpy as np
import pandas as pd
import pytest

from samsvae_core.analysis import gene_card as genes
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import similarity
from samsvae_core.analysis.compose import compose
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from tests.oracles import similar_shifts
from tests.views.pages import finished, links, opened, rewritten, table_with, uncomposed, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend

ALL_GENES = {"perturbation_tab": "Table of all genes"}

NEAREST = {"perturbation_tab": "Perturbations like it"}


def renamed(model: Bundle, old: str, new: str) -> Bundle:
    """Return the bundle with a perturbation renamed, except in combinations."""
    for file, column in (
        ("perturbations.csv", "perturbation"),
        ("masks.csv", "perturbation"),
        ("perturbations_umap.csv", "perturbation"),
        ("direct.csv", "perturbation"),
        ("conditions.csv", "condition"),
    ):
        table = pd.read_csv(model.path / file)
        table[column] = table[column].replace(old, new)
        rewritten(model, file, table)
    for file in ("observed.parquet", "cells.parquet"):
        table = pd.read_parquet(model.path / file)
        table["condition"] = table["condition"].replace(old, new)
        table.to_parquet(model.path / file)
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    return opening.load(model.path)


def test_the_tables_of_a_perturbation_are_those_of_the_library(one_model, tiny):
    page = opened("perturbation", {"p": "P2"} | ALL_GENES)
    assert finished(page)
    expected = tiny.masks[tiny.masks["perturbation"] == "P2"].set_index("mechanism")
    shown = table_with(page, "evidence")
    places = [int(name[1:].partition(":")[0]) for name in shown["mechanism"]]
    assert sorted(places) == interpretation.active_mechanisms(tiny.masks)
    for column in ("probability", "effect", "effect_sd", "evidence", "evidence_se", "evidence_n"):
        assert shown[column].tolist() == pytest.approx(
            expected.loc[places, column].tolist(), nan_ok=True
        )
    assert (shown["state"] == "in use").tolist() == expected.loc[places, "active"].tolist()
    table = table_with(page, "calibrated_lower").set_index("gene")
    composed = compose(tiny, {"P2": 1.0}).table
    for column in table:
        assert table[column].to_dict() == pytest.approx(composed[column].to_dict())


def test_the_nearest_perturbations_are_those_of_the_library(one_model, tiny):
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    shown = table_with(page, "r_observed").set_index("perturbation").sort_index()
    by_mask = similarity.similar_perturbations(tiny.masks, "P2").sort_index()
    by_shift = similar_shifts(genes.effect_table(tiny), "P2").sort_index()
    assert shown[["shared", "jaccard"]].equals(by_mask[["shared", "jaccard"]])
    uses = tiny.masks.groupby("perturbation")["active"].any()
    compared = [name for name in shown.index if uses[name]]
    assert shown.loc[compared, "cosine"].tolist() == pytest.approx(by_mask.loc[compared, "cosine"])
    for column in ("r_observed", "n_observed"):
        assert shown[column].tolist() == pytest.approx(by_shift[column].tolist(), nan_ok=True)
    assert shown.loc[compared, "r_predicted"].tolist() == pytest.approx(
        by_shift.loc[compared, "r_predicted"]
    )


def test_another_perturbation_is_chosen_in_the_box_or_gone_to_from_the_table(one_model, tiny):
    default, one, another = interpretation.strengths(tiny.masks).index[:3]
    page = opened("perturbation", {"p": one} | NEAREST)
    assert page.query_params["p"] in (one, [one])
    page.selectbox(key="perturbation").select(default).run()
    assert page.query_params.get("p", "") == ""
    page.selectbox(key="perturbation").select(another).run()
    assert finished(page)
    assert page.query_params["p"] in (another, [another])
    nearest = table_with(page, "r_observed")["perturbation"].iloc[0]
    page.button(key="go").click().run()
    assert finished(page)
    assert page.subheader[0].value == nearest
    assert page.selectbox(key="perturbation").value == nearest
    assert page.query_params.get("p", default) in (nearest, [nearest])


def test_a_perturbation_in_words_has_its_place_its_cells_and_its_certain_genes(one_model, tiny):
    text = words(opened("perturbation", {"p": "P2"}))
    strengths = interpretation.strengths(tiny.masks)
    length, sd = strengths.loc["P2"]
    place = strengths.index.get_loc("P2") + 1
    assert f"{length:.2f} ± {sd:.2f} standard deviations" in text
    assert f"place {place} of 6." in text
    cells = tiny.conditions.loc["P2"]
    assert f"measured alone in {cells.sum()} cells ({cells['train']} training" in text
    more = tiny.perturbations.loc["P2", ["train", "validation", "test"]].sum() - cells.sum()
    assert f"; {more} more have it with others" in text
    assert "P2 is not among the 40 genes" in text


@pytest.mark.parametrize("link", ["CCL5", "ccl5", "TCP228", "ENSG00000271503"])
def test_a_link_to_a_perturbation_may_have_any_name_of_its_gene(models, link):
    renamed(opening.load(models / "tiny"), "P2", "TCP228")
    page = opened("perturbation", {"p": link})
    assert page.selectbox(key="perturbation").value == "TCP228"
    assert not page.info
    assert "C-C motif chemokine ligand 5" in words(page)


def test_the_shift_of_its_own_gene_is_told_with_intervals(models):
    model = renamed(opening.load(models / "tiny"), "P2", "TCP228")
    rewritten(model, "calibration.csv", None)
    page = opened("perturbation", {"p": "TCP228"})
    table = compose(opening.load(models / "tiny"), {"TCP228": 1.0}).table
    row = table.loc["CCL5"]
    place = table["shift"].abs().rank(ascending=False)["CCL5"]
    text = words(page)
    assert f"Its own gene, *CCL5*: predicted {row['shift']:+.2f} log2 (90 % interval" in text
    assert f"{row['lower']:+.2f} to {row['upper']:+.2f}), place {place:.0f} of 40" in text
    low, high = row["observed"] + 1.645 * row["observed_se"] * np.array([-1, 1])
    assert f"observed {row['observed']:+.2f} (90 % interval {low:+.2f} to {high:+.2f})" in text
    label = "Gene CCL5: what else moves it"
    assert {"label": label, "page": "gene", "query": "g=CCL5"} in links(page)


def test_a_gene_outside_the_panel_has_links_to_pages_elsewhere(models):
    renamed(opening.load(models / "tiny"), "P2", "GATA1")
    page = opened("perturbation", {"p": "GATA1"})
    found = {button.proto.label: button.proto.url for button in page.get("link_button")}
    assert found == genes.links("GATA1")
    assert "GATA1 is not among the 40 genes of this model, under any name" in words(page)
    assert not [link for link in links(page) if link["page"] == "gene"]


def test_an_unknown_perturbation_in_a_link_is_said_and_another_shown(one_model, tiny):
    page = opened("perturbation", {"p": "P22<b>"})
    assert finished(page)
    assert "This model knows no perturbation 'P22<b>'" in words(page)
    assert "<b>" not in page.info[0].value  # escaped
    strongest = interpretation.strengths(tiny.masks).index[0]
    assert page.selectbox(key="perturbation").value == strongest


@pytest.mark.parametrize("name", ["<b>*x*</b> $y$ [l](u) :red[z]", "a/b ?&#+%", "名:0.5, '\""])
def test_a_perturbation_of_any_name_is_shown_as_text(models, name):
    model = renamed(opening.load(models / "tiny"), "P2", name)
    page = opened("perturbation", {"p": name})
    assert finished(page)
    assert page.selectbox(key="perturbation").value == name
    assert page.subheader[0].value.replace("\\", "") == name
    said = [*page.markdown, *page.caption, *page.info, *page.subheader, *page.header]
    raw = " ".join(part.value for part in said)
    assert not [mark for mark in ("<b>", "[l](u)", "$y$", ":red[") if mark in raw]
    assert f"measured alone in {compose(model, {name: 1.0}).n_observed} cells" in words(page)


def idle(model: Bundle, name: str) -> None:
    """Switch every mechanism of a perturbation off; the last is a near miss."""
    masks = model.masks.copy()
    rows = masks["perturbation"] == name
    masks.loc[rows, ["active", "evidence", "evidence_se", "evidence_n"]] = [False, 0.1, 0.2, 9]
    active = interpretation.active_mechanisms(masks)
    masks.loc[rows & (masks["mechanism"] == active[-1]), "evidence"] = 0.5
    rewritten(model, "masks.csv", masks)


@pytest.mark.usefixtures("edited")
def test_a_perturbation_without_a_mechanism_says_so_and_names_its_near_miss(models):
    idle(opening.load(models / "tiny"), "P2")
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert finished(page)
    text = words(page)
    assert "**P2** uses no mechanism: with" in text
    assert "P2 uses none of these mechanisms" in page.info[0].value
    shown = table_with(page, "evidence")
    assert shown["state"].tolist() == ["near miss"] + ["off"] * (len(shown) - 1)
    assert "(evidence +0.500 ± 0.200 se, 9 held-out cells)" in text
    nearest = table_with(page, "r_observed")
    assert not {"cosine", "r_predicted"} & set(nearest)
    assert nearest["r_observed"].is_monotonic_decreasing
    other = table_with(opened("perturbation", {"p": "P4"} | NEAREST), "r_observed").set_index(
        "perturbation"
    )
    assert other.loc["P2", ["cosine", "r_predicted"]].isna().all()
    assert other["r_predicted"].notna().any()


@pytest.mark.usefixtures("edited")
def test_a_perturbation_that_was_not_measured_alone_says_so(models):
    model = opening.load(models / "tiny")
    rewritten(model, "conditions.csv", model.conditions.drop(index="P2").reset_index())
    observed = model.observed[model.observed["condition"] != "P2"]
    observed.to_parquet(model.path / "observed.parquet")
    rewritten(model, layout.EFFECTS, None)
    perturbations = model.perturbations.reset_index()
    perturbations.loc[perturbations["perturbation"] == "P2", "train_alone"] = 0
    rewritten(model, "perturbations.csv", perturbations)
    page = opened("perturbation", {"p": "P2"})
    assert finished(page)
    assert "P2 was not measured alone at dosage 1" in page.info[-1].value
    assert "In training in combinations only" in words(page)
    assert not page.metric
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert "r_observed" not in table_with(page, "r_predicted")


def test_a_perturbation_of_a_model_without_masks_has_effects_on_all_dimensions(shown):
    shown("cpa-vae")
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert "CPA-VAE has no mask, so **P2** moves all 4 latent dimensions" in words(page)
    table = table_with(page, "evidence")
    assert len(table) == 4
    assert not {"state", "probability"} & set(table)
    assert not {"jaccard", "shared"} & set(table_with(page, "r_observed"))


def test_a_perturbation_of_the_conditional_vae_is_compared_by_shifts_alone(shown):
    model = shown("conditional-vae")
    page = opened("perturbation", NEAREST)
    most = model.perturbations["train"].idxmax()
    assert page.selectbox(key="perturbation").value == most
    assert "Conditional VAE has no mechanisms in use" in page.info[0].value
    assert list(table_with(page, "r_observed")) == [
        "perturbation",
        "r_predicted",
        "r_observed",
        "n_observed",
    ]


def test_a_large_model_composes_all_perturbations_only_when_asked(models, monkeypatch):
    monkeypatch.setattr("app.components.shifts.AT_ONCE", 100)
    monkeypatch.setattr("app.components.all_shifts.BRIEF", 60.0)
    uncomposed(models)
    page = opened("perturbation", {"p": "P2"} | NEAREST)
    assert finished(page)
    assert "r_observed" not in page.dataframe[-1].value
    page.toggle(key="nearest_shifts").set_value(True).run()
    assert {"jaccard", "r_predicted", "r_observed"} <= set(page.dataframe[-1].value)
    assert finished(page)
