"""The page Gene."""

import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from samsvae_core.analysis import all_shifts as effects
from samsvae_core.analysis import gene_card as genes
from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis.compose import compose
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.genesets.prerank import Progress
from tests.views.pages import (
    decoded,
    figures,
    finished,
    links,
    opened,
    rewritten,
    table_with,
    uncomposed,
    whiskers,
    words,
)

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


def test_the_table_of_a_gene_is_that_of_the_library(one_model, tiny):
    page = opened("gene", {"g": "CCL5"})
    assert finished(page)
    shown = table_with(page, "n_observed")
    expected = genes.moved_by(genes.effect_table(tiny), "CCL5")
    pd.testing.assert_frame_equal(shown.drop(columns="support"), expected[shown.columns[:-1]])
    assert shown["perturbation"].tolist() == expected["perturbation"].tolist()
    alone = {name: compose(tiny, {name: 1.0}).support for name in shown["perturbation"]}
    assert dict(zip(shown["perturbation"], shown["support"], strict=True)) == alone


def test_bars_and_diamonds_of_a_gene_are_its_predicted_and_observed_shifts(one_model, tiny):
    bars, diamonds = figures(opened("gene", {"g": "CCL5"}))[0]["data"]
    expected = genes.moved_by(genes.effect_table(tiny), "CCL5").dropna(subset=["observed"])
    drawn = dict(zip(bars["y"], decoded(bars["x"]), strict=True))
    assert [drawn[name] for name in diamonds["y"]] == pytest.approx(expected["shift"].tolist())
    assert decoded(diamonds["x"]) == pytest.approx(expected["observed"].tolist())
    error = decoded(diamonds["error_x"]["array"])
    assert error == pytest.approx(1.645 * expected["observed_se"].to_numpy())


@pytest.mark.parametrize("name", ["AURKB", "aurkb", "STK12", "ENSG00000178999"])
def test_a_link_to_a_gene_may_have_any_of_its_names(one_model, name):
    page = opened("gene", {"g": name})
    assert page.selectbox(key="gene").value == "AURKB"
    assert not page.info
    assert page.query_params["g"] == "AURKB"
    assert "aurora kinase B" in words(page)


def test_an_unknown_gene_in_a_link_is_said_and_another_shown(one_model):
    page = opened("gene", {"g": "CCL55<b>"})
    assert finished(page)
    assert "'CCL55<b>' is none of the 40 genes" in words(page)
    assert "Did you mean CCL5?" in words(page)
    assert "<b>" not in page.info[0].value  # escaped
    first = page.selectbox(key="gene").value
    assert "g" not in page.query_params  # as where it is looked at first
    assert opened("gene").selectbox(key="gene").value == first


def test_a_gene_is_found_in_the_box_by_its_other_names(one_model):
    page = opened("gene", {"g": "CCL5"})
    labels = page.selectbox(key="gene").options
    assert next(label for label in labels if "CD317" in label).startswith("BST2 (")
    assert max(label.count(",") for label in labels) == 3
    page.selectbox(key="gene").select("BST2").run()
    assert finished(page)
    assert page.query_params["g"] == "BST2"
    assert "bone marrow stromal cell antigen 2" in words(page)


def test_the_card_of_a_gene_leads_to_its_pages_elsewhere(one_model):
    page = opened("gene", {"g": "CCL5"})
    found = {button.proto.label: button.proto.url for button in page.get("link_button")}
    assert found == genes.links("CCL5")
    assert "Entrez: 6352" in words(page)
    assert "Not perturbed in this model" in words(page)


def test_the_loadings_of_a_gene_are_those_of_the_library(one_model, tiny):
    page = opened("gene", {"g": "CCL5"})
    shown = table_with(page, "rank_up")
    active = interpretation.active_mechanisms(tiny.masks)
    expected = genes.mechanisms_of(tiny, "CCL5").set_index("mechanism").loc[active]
    assert shown["mechanism"].tolist() == [f"M{k}" for k in active]
    for column in expected:
        assert shown[column].tolist() == expected[column].tolist()
    strongest = f"M{expected['loading'].abs().idxmax()}"
    label, query = f"{strongest}, all genes", f"m={strongest}"
    assert {"label": label, "page": "mechanism", "query": query} in links(page)


def test_the_calibrated_interval_of_a_gene_is_shown_until_the_own_one_is_chosen(calibrated):
    page = opened("gene", {"g": "CCL5"})
    rows = genes.moved_by(genes.effect_table(calibrated), "CCL5").set_index("perturbation")
    for lower, upper in (("calibrated_lower", "calibrated_upper"), ("lower", "upper")):
        for name, ends in whiskers(page).items():
            assert ends == pytest.approx(rows.loc[name, [lower, upper]].tolist())
        clear = int(((rows[lower] > 0) | (rows[upper] < 0)).sum())
        assert f"excludes zero for {clear} of 6 perturbations" in words(page)
        page.segmented_control(key="interval").select("own").run()


def test_a_gene_without_any_interval_has_no_whiskers_and_is_told_why(shown_copy):
    rewritten(shown_copy("conditional-vae"), "calibration.csv", None)
    page = opened("gene")
    assert finished(page)
    assert "so there is no interval" in words(page)
    assert "array" not in figures(page)[0]["data"][0].get("error_x", {})
    assert not {"lower", "calibrated_lower"} & set(table_with(page, "n_observed"))


def test_a_gene_of_the_conditional_vae_has_no_mechanisms_and_is_told_why(shown):
    shown("conditional-vae")
    page = opened("gene")
    assert "Conditional VAE has no mechanisms in use" in words(page)
    assert len(page.dataframe) == 1


def test_a_perturbation_that_was_never_alone_is_marked(models):
    model = opening.load(models / "tiny")
    conditions = model.conditions.reset_index()
    conditions.loc[conditions["condition"] == "P2", "train"] = 0
    rewritten(model, "conditions.csv", conditions)
    page = opened("gene", {"g": "CCL5"})
    marked = [name for name in figures(page)[0]["data"][0]["y"] if "\u2020" in name]
    assert marked == ["P2 \u2020"]
    assert "\u2020 not trained on alone" in words(page)


def still(bundle: Bundle) -> effects.AllShifts:
    """Return the stored shifts with every predicted one zero."""
    found = effects.whole_effects(bundle)
    shift = np.zeros((len(bundle.genes), len(bundle.perturbations)))
    return replace(found, arrays={**found.arrays, "shift": shift})


def test_a_gene_that_no_perturbation_moves_is_told_of(one_model, tiny, monkeypatch):
    monkeypatch.setattr("app.components.all_shifts.of", lambda model: still(tiny))
    page = opened("gene")
    assert "all predicted shifts are zero" in words(page)
    assert finished(page)


def test_a_gene_page_is_there_while_every_perturbation_is_composed(models, monkeypatch):
    """It shows all but the perturbations, with their progress, and those once they are known."""
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 0.05)
    uncomposed(models)
    go = threading.Event()

    def slowly(*args, progress, cancelled):
        progress(Progress(2, 6))
        go.wait(60)
        return effects.whole_effects(*args)

    monkeypatch.setattr("app.session.results.whole_effects", slowly)
    page = opened("gene", {"g": "CCL5"})
    try:
        assert finished(page)
        assert "2 of 6" in page.get("progress")[0].proto.text
        assert len(page.dataframe) == 1  # loadings on mechanisms
        assert page.subheader[0].value == "*CCL5*"
    finally:
        go.set()
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 60.0)
    page.run()
    assert finished(page)
    assert not page.get("progress")
    assert table_with(page, "n_observed")["perturbation"].nunique() == 6


def test_composing_all_that_fails_says_why_and_can_be_tried_again(models, monkeypatch):
    monkeypatch.setattr("app.components.all_shifts.MOMENT", 60.0)  # others may be at it just now
    uncomposed(models)

    def broken(*args, progress, cancelled):
        raise ValueError("observed.parquet cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("app.session.results.whole_effects", broken)
        page = opened("gene", {"g": "CCL5"})
        assert finished(page)
        assert any("cannot be read" in warning.value for warning in page.warning)
    page.button(key="compose_all_again").click().run()
    assert finished(page)
    assert not any("cannot be read" in warning.value for warning in page.warning)
    assert table_with(page, "n_observed")["perturbation"].nunique() == 6


def test_a_gene_named_in_markup_is_shown_as_text(models):
    name = "<b>*x*</b> $y$ [l](u) :red[z]"
    model = opening.load(models / "tiny")
    for file in (
        "genes.csv",
        "calibration.csv",
        "direct.csv",
        "loadings.parquet",
        "observed.parquet",
    ):
        path = model.path / file
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
        table["gene"] = table["gene"].replace("CCL5", name)
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    layout.write_manifest(model.path, model.manifest["data"], "cpu")
    page = opened("gene", {"g": name})
    assert finished(page)
    assert page.selectbox(key="gene").value == name
    said = [*page.markdown, *page.caption, *page.info, *page.subheader, *page.title]
    raw = " ".join(part.value for part in said)
    assert page.subheader[0].value == r"*\<b\>\*x\*\</b\> \$y\$ \[l\]\(u\) \:red\[z\]*"
    assert not [mark for mark in ("<b>", "[l](u)", "$y$", ":red[") if mark in raw]


def test_a_perturbation_of_the_gene_itself_is_linked_and_placed(models):
    model = opening.load(models / "tiny")
    for file in ("perturbations.csv", "masks.csv", "perturbations_umap.csv", "direct.csv"):
        table = pd.read_csv(model.path / file)
        table["perturbation"] = table["perturbation"].replace("P2", "TCP228")  # CCL5
        rewritten(model, file, table)
    page = opened("gene", {"g": "CCL5"})
    assert finished(page)
    place = table_with(page, "n_observed")["perturbation"].tolist().index("TCP228") + 1
    assert "Its own perturbation, TCP228" in words(page)
    assert f"place {place} of 6" in words(page)
    label = "TCP228 is perturbed in this model: open it in Compose"
    assert {"label": label, "page": "compose", "query": "c=TCP228%3A1"} in links(page)
