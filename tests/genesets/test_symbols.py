import gzip
import hashlib
import json

import pandas as pd
import pytest

from samsvae_core.genesets import symbols
from samsvae_core.genesets.collections import collections, load_collection
from samsvae_core.genesets.symbols import (
    annotate,
    current_symbols,
    describe_unknown,
    kind,
    known_genes,
    search_genes,
    species,
)


def test_the_annotation_is_what_its_entry_says():
    sources = json.loads((symbols.RESOURCES / "SOURCES.json").read_text())["annotation"]
    text = gzip.decompress((symbols.RESOURCES / "genes.csv.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == sources["sha256"]
    assert text.count(b"\n") == sources["n_genes"] + 1


def test_annotates_symbols_aliases_and_ensembl_ids():
    table = annotate(["STAT1", "MLL", "ENSG00000115415", "no gene", "STAT1"])
    assert list(table.index) == ["STAT1", "MLL", "ENSG00000115415", "no gene", "STAT1"]
    assert table["current"].tolist()[:3] == ["STAT1", "KMT2A", "STAT1"]
    assert table["entrez"].tolist()[:2] == ["6772", "4297"]
    assert table.iloc[0]["ensembl"] == "ENSG00000115415"
    assert table.iloc[0]["name"].startswith("signal transducer and activator")
    assert "MLL" in table.iloc[1]["aliases"].split("|")
    assert table.loc["no gene"].isna().all()


def test_an_alias_of_two_genes_names_neither():
    table = symbols._annotation()
    aliases = table["aliases"].str.split("|").explode()
    shared = aliases[aliases.ne("") & aliases.duplicated(keep=False) & ~aliases.isin(table.index)]
    assert annotate(shared.iloc[:50])["name"].isna().all()


def test_a_symbol_that_is_an_alias_elsewhere_keeps_its_own_meaning():
    table = symbols._annotation()
    aliases = table["aliases"].str.split("|").explode()
    both = aliases[aliases.isin(table.index)].unique()[:50]
    assert (annotate(both)["current"] == both).all()


def test_old_and_new_symbols_meet_in_both_directions():
    assert current_symbols(["MLL", "STAT1"], {"KMT2A", "STAT1"}) == {
        "STAT1": "STAT1",
        "MLL": "KMT2A",
    }
    assert current_symbols(["KMT2A"], {"MLL"}) == {"KMT2A": "MLL"}


def test_two_measured_names_of_a_gene_never_become_one():
    assert current_symbols(["MLL", "KMT2A"], {"KMT2A"}) == {"KMT2A": "KMT2A"}
    assert current_symbols(["MLL", "CXXC7"], {"KMT2A"}) == {}


def test_search_finds_symbols_before_aliases():
    genes = pd.Index(["MS4A1", "CD19", "CD2", "CD200", "GATA1", "unheard-of"])
    assert list(search_genes("cd2", genes)) == ["CD2", "CD200", "MS4A1"]
    assert search_genes("CD20", genes) == {"CD200": "CD200", "MS4A1": "CD20"}
    assert search_genes("unh", genes) == {"unheard-of": "unheard-of"}
    assert search_genes("cd", genes, limit=1) == {"CD19": "CD19"}
    assert search_genes("  ", genes) == {}
    assert search_genes("no such gene", genes) == {}


MOUSE = ["Stat1", "Ifngr1", "1700001C02Rik", "mt-Nd1", "H2-K1", "C1qa", "A130010J15Rik", "Gm12345"]
HUMAN = ["STAT1", "IFNGR1", "C1orf112", "MT-ND1", "HLA-A", "C1QA", "CXorf38", "LINC00111"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (MOUSE, "mouse"),
        (HUMAN, "human"),
        (["ENSG00000115415", "ENSG00000115415.12"], "human"),
        (["ENSMUSG00000026104", "ENSMUSG00000026104.3"], "mouse"),
        ([*MOUSE, "ENSMUSG00000026104"], "mouse"),
        (["ENSRNOG00000014079"], None),
        (["6772", "4297"], None),
        (MOUSE + HUMAN, None),
        (["GRCh38_STAT1", "mm10_Stat1"], None),
        ([], None),
    ],
)
def test_a_species_is_known_by_how_its_symbols_are_written(names, expected):
    assert species(names) == expected


@pytest.mark.parametrize("name", MOUSE)
def test_each_mouse_symbol_is_one(name):
    assert species([name]) == "mouse"


@pytest.mark.parametrize("name", HUMAN)
def test_each_human_symbol_is_one(name):
    assert species([name]) == "human"


def test_all_but_a_few_of_the_shipped_genes_are_written_as_human():
    table = symbols._annotation()
    other = [name for name in table.index if species([name]) != "human"]
    assert len(other) < 10
    assert {species(load_collection(name).genes) for name in collections()} == {"human"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["STAT1", "GATA1", "MLL"], "human symbols"),
        (["Stat1", "Gata1", "Gm12345"], "mouse symbols"),
        (["ENSG00000115415.2", "ENSG00000102145", "STAT1"], "human Ensembl ids"),
        (["ENSMUSG00000026104", "ENSMUSG00000031162"], "mouse Ensembl ids"),
        (["ENSRNOG00000014079", "ENST00000361099"], "other Ensembl ids"),
        (["6772", "2623"], "Entrez ids"),
        ([str(i) for i in range(60)], "row numbers"),
        ([str(i) for i in range(9_000_000, 9_000_040)], "numbers"),
        (["1007_s_at", "ILMN_1690105", "A_23_P117082"], "probe ids"),
        (["YAL001C", "YBR160W", "YDL227C"], symbols.UNKNOWN),
        ([], symbols.UNKNOWN),
    ],
)
def test_the_kind_of_names_is_told(names, expected):
    assert kind(names) == expected


def test_versions_of_ensembl_ids_do_not_matter():
    assert annotate(["ENSG00000115415.12"])["current"].tolist() == ["STAT1"]
    assert current_symbols(["ENSG00000115415.12"], {"STAT1"}) == {"ENSG00000115415.12": "STAT1"}
    old, new = "ENSMUSG00000026104.3", "ENSMUSG00000026104.15"  # of a gene without annotation
    assert current_symbols([old], {new}) == {old: new}


def test_symbols_meet_ids_in_both_directions():
    symbol, entrez, ensembl = "STAT1", "6772", "ENSG00000115415"
    for name, other in [(symbol, entrez), (symbol, ensembl), (entrez, ensembl)]:
        assert current_symbols([name], {other}) == {name: other}
        assert current_symbols([other], {name}) == {other: name}


def test_a_few_numbers_among_symbols_are_no_entrez_ids():
    assert current_symbols(["STAT1"], {"6772", "GATA1", "KMT2A"}) == {}


def test_species_meet_in_capitals_and_one_species_does_not():
    mouse = ["Stat1", "mt-Nd1", "C1orf112", "Ifngr1", "Irf1", "Gbp2"]
    human = {"STAT1", "MT-ND1", "C1orf112", "IFNGR2", "IRF1", "GBP2"}
    met = {"Stat1": "STAT1", "mt-Nd1": "MT-ND1", "C1orf112": "C1orf112", "Irf1": "IRF1"}
    met |= {"Gbp2": "GBP2"}
    assert current_symbols(mouse, human) == met
    assert current_symbols(human, mouse) == {name: gene for gene, name in met.items()}
    assert current_symbols(["Stat1", "Irf1"], {"Stat1", "IRF1", "Gata1", "Cd4", "Cd8a"}) == {
        "Stat1": "Stat1"
    }


def test_names_that_differ_in_capitals_only_meet_where_they_are_one_to_one():
    assert current_symbols(["Ab1", "AB1", "Stat1", "Irf1", "Gata1", "Cd4"], {"AB1", "STAT1"}) == {
        "AB1": "AB1",
        "Stat1": "STAT1",
    }
    twice = ["NEa1", "NeA1", "Stat1", "Irf1"]  # two genes of the data claim NEA1
    assert current_symbols(twice, {"NEA1", "STAT1"}) == {"Stat1": "STAT1"}


def test_a_mouse_symbol_meets_the_human_gene_it_is_another_name_of():
    assert current_symbols(["Trp53", "Stat1"], {"TP53", "STAT1"})["Trp53"] == "TP53"
    first = current_symbols(["Trp53", "Tp53"], {"TP53"})  # the same letters come first
    assert first == {"Tp53": "TP53"}


def test_a_list_is_found_under_the_names_of_the_model():
    genes = ["KMT2A", "STAT1", "MS4A1", "GATA1"]
    given = [" MLL", "nonsense", "STAT1", "KMT2A", "ENSG00000102145.9", "", "leu-16", "nonsense"]
    assert known_genes(given, genes) == (["KMT2A", "STAT1", "GATA1", "MS4A1"], ["nonsense"])
    assert known_genes(["6772", "2623"], genes) == (["STAT1", "GATA1"], [])
    assert known_genes(["STAT1", "TP53"], ["Stat1", "Trp53"]) == (["Stat1", "Trp53"], [])
    assert known_genes([], genes) == ([], [])


def test_a_name_of_two_of_the_models_genes_is_not_known():
    assert known_genes(["HRX", "MLL"], ["KMT2A", "MLL"]) == (["MLL"], ["HRX"])
    assert known_genes(["STAT1", "stat1"], ["Stat1", "STAT1"]) == (["STAT1"], ["stat1"])


def test_unknown_genes_of_a_list_are_named_and_explained():
    one = describe_unknown(["STAT9"], ["STAT1", "GATA1"])
    assert one.startswith("1 of the genes given is not among the model's 2, under any name: STAT9.")
    many = describe_unknown([f"ENSMUSG{n:011}" for n in range(1234)], ["STAT1", "GATA1"])
    assert "1,234 of the genes given are not among the model's 2" in many
    assert "ENSMUSG00000000009 and 1,224 more." in many
    assert "Mouse Ensembl ids cannot be translated here: name the genes by symbol" in many
    absent = describe_unknown(["KMT2A"], ["STAT1"])  # a gene, but not one of the model
    assert absent.endswith("KMT2A.")


@pytest.mark.parametrize(
    ("genes", "query", "found"),
    [
        (["STAT1", "GATA1"], "ENSG00000115415", "STAT1"),
        (["STAT1", "GATA1"], "ensg00000115415.12", "STAT1"),
        (["STAT1", "GATA1"], "6772", "STAT1"),
        (["STAT1", "GATA1"], "677", None),
        (["STAT1", "GATA1"], "ENSG00000", None),
        (["ENSG00000115415.3", "GATA1"], "ENSG00000115415.12", "ENSG00000115415.3"),
        (["ENSG00000115415", "GATA1"], "stat1", "ENSG00000115415"),
        (["ENSG00000115415", "GATA1"], "6772", "ENSG00000115415"),
        (["6772", "2623"], "STAT1", "6772"),
        (["0", "1", "2"], "A1BG", None),
        (["Stat1", "Gata1"], "ENSMUSG00000026104.15", "Stat1"),
    ],
)
def test_item_10_search_understands_ids_as_a_whole(genes, query, found):
    hits = search_genes(query, genes, ids={"ENSMUSG00000026104.3": "Stat1"} if found else {})
    assert list(hits)[:1] == ([found] if found else [])


def test_search_sees_a_change_of_the_genes():
    assert search_genes("sta", ["STAT1", "GATA1"]) == {"STAT1": "STAT1"}
    assert search_genes("sta", ["STAT2", "GATA1"]) == {"STAT2": "STAT2"}
