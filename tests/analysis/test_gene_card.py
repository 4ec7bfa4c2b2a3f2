import json
from dataclasses import replace
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pandas as pd
import pytest
import torch

from samsvae_core.analysis import gene_card
from samsvae_core.analysis.compose import compose
from samsvae_core.analysis.gene_card import (
    annotation,
    effect_table,
    links,
    mechanisms_of,
    moved_by,
    targeting,
    targets,
)
from samsvae_core.genesets import symbols
from samsvae_core.models.variants import ConditionalVAE, SVAEPlus

# Names


def test_a_gene_is_known_by_its_symbol():
    found = annotation("STAT1")
    assert (found.current, found.entrez, found.ensembl) == ("STAT1", "6772", ("ENSG00000115415",))
    assert found.name == "signal transducer and activator of transcription 1"
    assert "STAT91" in found.aliases
    assert (found.is_mouse, found.note) == (False, "")


@pytest.mark.parametrize("name", ["SEPT7", "ENSG00000122545", "ENSG00000122545.21"])
def test_a_gene_is_known_by_its_other_names(name):
    found = annotation(name)
    assert found.symbol == name
    assert found[1:-1] == annotation("SEPTIN7")[1:-1]
    assert found.note == f"{name} is another name of SEPTIN7."


@pytest.mark.parametrize("name", ["NOSUCH", "", "<b>x</b>", "1-Mar", "ENSG99999999999"])
def test_an_unknown_gene_has_no_ids_and_says_so(name):
    found = annotation(name)
    assert found[1:-2] == ("", "", (), "", ())
    assert "human genes, 2022) does not know" in found.note
    assert list(links(name)) == ["Search NCBI"]


def test_an_alias_of_two_genes_names_neither():
    aliases = symbols._annotation()["aliases"].str.split("|").explode()
    shared = aliases[aliases.duplicated() & ~aliases.isin(aliases.index) & (aliases != "")]
    assert annotation(shared.iloc[0]).current == ""


def test_a_mouse_symbol_is_given_the_human_gene_and_mouse_pages():
    found = annotation("Stat1")
    assert (found.current, found.entrez, found.is_mouse) == ("STAT1", "6772", True)
    assert "shown is STAT1, by the name in capitals" in found.note
    pages = links("Stat1")
    assert list(pages) == ["NCBI", "Ensembl", "MGI", "UniProt"]
    assert not any("6772" in page or "ENSG" in page or "9606" in page for page in pages.values())
    assert "it has none such" in annotation("Gm12345").note


def test_human_names_with_small_letters_are_human():
    for name in ("C1orf112", "RNASEK-C17orf49", "ABCB5beta"):
        assert not annotation(name).is_mouse
        assert "GeneCards" in links(name)


def test_the_year_of_the_annotation_is_the_one_that_is_told():
    sources = json.loads((symbols.RESOURCES / "SOURCES.json").read_text())
    assert "2022" in sources["annotation"]["version"]
    assert "2022" in annotation("NOSUCH").note


# Links


def test_links_lead_to_the_gene():
    assert links("SEPT7") == {
        "NCBI": "https://www.ncbi.nlm.nih.gov/gene/989",
        "Ensembl": "https://www.ensembl.org/Homo_sapiens/Gene/Summary?g=ENSG00000122545",
        "GeneCards": "https://www.genecards.org/cgi-bin/carddisp.pl?gene=SEPTIN7",
        "UniProt": "https://www.uniprot.org/uniprotkb?query="
        "%28gene_exact%3ASEPTIN7%29%20AND%20%28organism_id%3A9606%29",
    }


def test_a_gene_of_several_ensembl_ids_or_none_is_searched_for():
    assert len(annotation("HLA-A").ensembl) > 1
    without = symbols._annotation().query("ensembl == ''").index[0]
    for gene in ("HLA-A", without):
        assert "Search/Results?q=" in links(gene)["Ensembl"]


@pytest.mark.parametrize(
    "name", ['"><script>', "a b&term=c#d", "Ünknown", "x/../y", "%41", "\ud800"]
)
def test_any_name_is_safe_in_an_address(name):
    for page in links(name).values():
        parts = urlsplit(page)
        assert (parts.scheme, parts.netloc, parts.path) == (
            "https",
            "www.ncbi.nlm.nih.gov",
            "/gene/",
        )
        assert parts.fragment == ""
        assert page.isascii()
        assert not set(page) & set("\"'<> ")
        expected = name.encode(errors="replace").decode()
        assert parse_qs(parts.query) == {"term": [expected]}
        assert unquote(parts.query) == f"term={expected}"


# Which perturbations move a gene


@pytest.fixture(scope="module")
def effects(tiny):
    return effect_table(tiny, n_samples=8, seed=3)


def test_effects_are_those_of_each_perturbation_composed_alone(tiny, effects):
    assert effects["perturbation"].drop_duplicates().tolist() == list(tiny.perturbations.index)
    for name, rows in effects.groupby("perturbation"):
        alone = compose(tiny, {name: 1.0}, n_samples=8, seed=3)
        found = rows.set_index("gene")
        assert found.index.tolist() == tiny.genes
        pd.testing.assert_frame_equal(
            found[gene_card.COLUMNS], alone.table[gene_card.COLUMNS], rtol=1e-6
        )
        assert (found["n_observed"] == alone.n_observed).all()


def test_keeping_some_genes_changes_none_of_their_numbers(tiny, effects):
    chosen = [tiny.genes[7], tiny.genes[2]]
    found = effect_table(tiny, n_samples=8, seed=3, genes=chosen)
    assert found["gene"].tolist() == chosen * len(tiny.perturbations)
    both = found.merge(effects, on=["perturbation", "gene"], suffixes=("", "_of_all"))
    for column in gene_card.COLUMNS:
        np.testing.assert_array_equal(both[column], both[f"{column}_of_all"])


def test_a_perturbation_not_measured_alone_has_no_observation(tiny):
    alone = tiny.observed["condition"] == "P1"
    other = replace(tiny)
    other.__dict__["observed"] = tiny.observed[~alone]
    found = effect_table(other, n_samples=2).set_index("perturbation")
    assert found.loc["P1", ["observed", "observed_se"]].isna().all().all()
    assert (found.loc["P1", "n_observed"] == 0).all()
    assert (found.loc["P2", "n_observed"] > 0).all()


def test_a_model_without_a_posterior_has_shifts_and_no_intervals(tiny):
    torch.manual_seed(0)
    found = effect_table(replace(tiny, model=ConditionalVAE(tiny.model.config)), n_samples=2)
    assert found["shift"].notna().all()
    assert found[["lower", "upper", "probability_of_sign"]].isna().all().all()


def test_perturbations_are_sorted_by_how_far_they_move_the_gene(tiny, effects):
    gene = tiny.genes[3]
    found = moved_by(effects, gene)
    shift = {
        p: compose(tiny, {p: 1.0}, (), 8, 3).table.loc[gene, "shift"] for p in found.iloc[:, 0]
    }
    assert found["perturbation"].tolist() == sorted(shift, key=lambda p: -abs(shift[p]))
    assert "gene" not in found
    assert found.index.tolist() == list(range(len(tiny.perturbations)))


def test_the_gene_that_is_strongest_planted_is_found_from_its_side():
    """In a hand-made table, perturbations are ranked by size, whatever the sign."""
    table = pd.DataFrame(
        {"perturbation": ["A", "B", "C"] * 2, "gene": ["x"] * 3 + ["y"] * 3}
        | {"shift": [0.1, -2.0, 0.5, 1.0, 0.0, 0.0]}
    )
    assert moved_by(table, "x")["perturbation"].tolist() == ["B", "C", "A"]
    assert moved_by(table, "y")["perturbation"].tolist() == ["A", "B", "C"]
    with pytest.raises(ValueError, match="'z' is none of the genes"):
        moved_by(table, "z")


# Which mechanisms do


def test_the_loadings_of_a_gene_come_with_its_place(tiny):
    wide = tiny.loadings.pivot_table(index="mechanism", columns="gene", values="loading")
    for gene in tiny.genes[::9]:
        found = mechanisms_of(tiny, gene).set_index("mechanism")
        for k, row in found.iterrows():
            assert row["loading"] == wide.loc[k, gene]
            assert row["rank_up"] == 1 + (wide.loc[k] > wide.loc[k, gene]).sum()
            assert row["rank_down"] == 1 + (wide.loc[k] < wide.loc[k, gene]).sum()
    top = wide.loc[1].idxmax()
    assert mechanisms_of(tiny, top).set_index("mechanism").loc[1, "rank_up"] == 1


def test_a_gene_that_is_not_in_the_model_is_answered_with_one_that_is(tiny):
    near = tiny.genes[0]
    for ask in (mechanisms_of, lambda bundle, gene: effect_table(bundle, 2, 0, [gene])):
        with pytest.raises(ValueError, match=f"none of the 40 genes .* Did you mean {near}?"):
            ask(tiny, near + "X")
        with pytest.raises(ValueError, match=f"It has {near}, "):
            ask(tiny, "§§§§")


# Perturbations that are the gene


def test_a_gene_is_recognised_among_perturbations_under_its_other_names(tiny):
    names = ["STAT1", "SEPTIN7", "ENSG00000115415", "Stat1", "drug", "STAT1B"]
    other = replace(tiny, perturbations=pd.DataFrame(index=names))
    assert targeting(other, "STAT1") == ["STAT1", "ENSG00000115415", "Stat1"]
    assert targeting(other, "SEPT7") == ["SEPTIN7"]
    assert targeting(other, "NOSUCH") == []
    assert targeting(other, "DRUG") == ["drug"]  # unknown to the annotation, so by name alone


def test_a_perturbation_is_recognised_among_the_genes_under_its_other_names(tiny):
    other = replace(tiny, genes=["STAT1", "SEPT7", "Drug", "MX1+2"])
    for name in ("STAT1", "stat1", "STAT91", "ENSG00000115415"):
        assert targets(other, name) == ["STAT1"]
        assert name in targeting(replace(tiny, perturbations=pd.DataFrame(index=[name])), "STAT1")
    assert targets(other, "SEPTIN7") == ["SEPT7"]
    assert targets(other, "drug") == ["Drug"]
    assert targets(other, "MX1+2") == ["MX1+2"]  # a name like any other
    assert targets(other, "STAT1+SEPTIN7") == []


def test_a_treatment_that_is_a_combination_has_the_targets_of_its_parts(tiny):
    whole = SVAEPlus(tiny.model.config)
    other = replace(tiny, genes=["SEPT7", "CCL5", "STAT1"], model=whole)
    assert targets(other, "STAT1+SEPTIN7") == ["STAT1", "SEPT7"]
    assert targets(other, "NOSUCH+CCL5") == ["CCL5"]
