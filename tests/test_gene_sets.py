import gzip
import hashlib
import json

import pandas as pd
import pytest

from samsvae_core import gene_sets
from samsvae_core.gene_sets import (
    annotate,
    collections,
    current_symbols,
    load_collection,
    match,
    overlap,
    parse_gmt,
    read_gmt,
    search_genes,
    usable_sets,
)

THREE = b"first\tlink\tA\tB\tC\nsecond\t\tB\tC\tD\tE\nthird\tx\tA\tB\tC\tD\tE\n"


@pytest.mark.parametrize("name", ["hallmark", "reactome", "wikipathways", "go_bp"])
def test_a_shipped_collection_is_what_its_entry_says(name):
    about, collection = collections()[name], load_collection(name)
    text = gzip.decompress((gene_sets.RESOURCES / f"{name}.gmt.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == about.sha256 == collection.checksum
    assert (len(collection.sets), len(collection.genes)) == (about.n_sets, about.n_genes)
    assert collection.licence == about.licence != ""
    assert about.attribution
    assert about.licence_url.startswith("https://")


def test_only_collections_that_may_be_shipped_are_there():
    assert list(collections()) == ["hallmark", "reactome", "wikipathways", "go_bp"]
    names = {term.split("_")[0] for key in collections() for term in load_collection(key).sets}
    assert not names & {"KEGG", "BIOCARTA", "PID", "ST", "SA", "SIG", "NABA"}


def test_the_annotation_is_what_its_entry_says():
    sources = json.loads((gene_sets.RESOURCES / "SOURCES.json").read_text())["annotation"]
    text = gzip.decompress((gene_sets.RESOURCES / "genes.csv.gz").read_bytes())
    assert hashlib.sha256(text).hexdigest() == sources["sha256"]
    assert text.count(b"\n") == sources["n_genes"] + 1


def test_known_genes_are_in_their_sets():
    assert {"MCM2", "CDC20"} <= set(load_collection("hallmark").sets["HALLMARK_G2M_CHECKPOINT"])
    assert "STAT1" in load_collection("reactome").sets["REACTOME_INTERFERON_GAMMA_SIGNALING"]
    go = load_collection("go_bp")
    assert go.descriptions["mitotic cell cycle"] == "GO:0000278"
    assert all(5 <= len(genes) <= 2000 for genes in go.sets.values())


def test_go_annotation_reaches_the_ancestors():
    sets = load_collection("go_bp").sets
    assert set(sets["erythrocyte differentiation"]) <= set(sets["myeloid cell differentiation"])


def test_an_unknown_collection_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'kegg'; choose one of go_bp, hallmark, reactome"):
        load_collection("kegg")


def test_reads_plain_and_gzipped_files_alike(tmp_path):
    (tmp_path / "mine.gmt").write_bytes(THREE)
    (tmp_path / "mine.gmt.gz").write_bytes(gzip.compress(THREE))
    plain, packed = read_gmt(tmp_path / "mine.gmt"), read_gmt(tmp_path / "mine.gmt.gz")
    assert plain == packed
    assert plain.name == "mine"
    assert plain.sets["second"] == ("B", "C", "D", "E")
    assert plain.descriptions["first"] == "link"


@pytest.mark.parametrize(
    "content",
    [
        THREE.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + THREE,
        THREE.replace(b"\n", b"\t\t\n"),
        THREE.replace(b"\n", b"\n\n"),
        THREE.replace(b"A\tB", b"A\tB\tA"),
    ],
    ids=["Windows ends", "byte-order mark", "trailing tabs", "empty lines", "repeated genes"],
)
def test_harmless_variants_give_the_same_sets(content):
    assert parse_gmt(content, "mine").sets == parse_gmt(THREE, "mine").sets


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\tx\tG\nb\tx\n", "mine, line 2: expected .* found 2 of at least 3 fields: 'b"),
        (b"a x G\n", "mine, line 1: expected .* found 1 of"),
        (b"a\tx\t\t \n", "mine, line 1: expected .* at least 3 fields"),
        (b"a\tx\tG\n\n\tx\tG\n", "mine, line 3: the set has no name"),
        (b"a\tx\tG\nb\tx\tG\na\tx\tH\n", "mine, line 3: set 'a' is here twice"),
        (b"a\tx\tG\nb\tx\tG\xe4\n", "mine, line 2: not UTF-8"),
        (b"\x89PNG\0\0", "mine is a binary file"),
        (b"", "mine holds no gene set"),
        (b"\n \n", "mine holds no gene set"),
        (gzip.compress(THREE)[:-12], "mine is a damaged gzip file"),
        (gzip.compress(THREE)[:12] + b"no gzip at all", "mine is a damaged gzip file"),
    ],
)
def test_a_malformed_file_is_refused_and_the_line_named(content, message):
    with pytest.raises(ValueError, match=message):
        parse_gmt(content, "mine")


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(gene_sets, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match="larger than 1 MB"):
        parse_gmt(gzip.compress(b"a\tx\tG\n" * 2**20), "bomb")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.gmt; there is none"):
        read_gmt(tmp_path / "absent.gmt")


def test_sizes_count_measured_genes_only():
    collection = parse_gmt(THREE, "mine")
    assert usable_sets(collection, "ABCX", 2, 2) == {"second": ("B", "C")}
    assert overlap(collection, "ABCX", 2, 3) == (3, 3)
    assert overlap(collection, "XYZ", 1, 9) == (0, 0)


def test_a_set_of_all_measured_genes_is_not_usable():
    assert list(usable_sets(parse_gmt(THREE, "mine"), "ABC", 2, 9)) == ["second"]


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
    table = gene_sets._annotation()
    aliases = table["aliases"].str.split("|").explode()
    shared = aliases[aliases.ne("") & aliases.duplicated(keep=False) & ~aliases.isin(table.index)]
    assert annotate(shared.iloc[:50])["name"].isna().all()


def test_a_symbol_that_is_an_alias_elsewhere_keeps_its_own_meaning():
    table = gene_sets._annotation()
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


def test_a_matched_collection_speaks_the_symbols_of_the_data():
    collection = parse_gmt(b"leukaemia\tx\tKMT2A\tSTAT1\tGATA1\n", "mine")
    found = match(collection, ["MLL", "STAT1", "no gene"])
    assert found.collection.sets["leukaemia"] == ("MLL", "STAT1", "GATA1")
    assert (found.n_same, found.renamed, found.unmatched) == (1, {"MLL": "KMT2A"}, ("no gene",))
    assert found.collection.checksum != collection.checksum
    assert collection.sets["leukaemia"] == ("KMT2A", "STAT1", "GATA1")


def test_matching_symbols_that_are_all_current_changes_nothing():
    collection = parse_gmt(b"a\tx\tSTAT1\tGATA1\n", "mine")
    assert match(collection, ["STAT1", "GATA1"]).collection is collection


def test_search_finds_symbols_before_aliases():
    genes = pd.Index(["MS4A1", "CD19", "CD2", "CD200", "GATA1", "unheard-of"])
    assert list(search_genes("cd2", genes)) == ["CD2", "CD200", "MS4A1"]
    assert search_genes("CD20", genes) == {"CD200": "CD200", "MS4A1": "CD20"}
    assert search_genes("unh", genes) == {"unheard-of": "unheard-of"}
    assert search_genes("cd", genes, limit=1) == {"CD19": "CD19"}
    assert search_genes("  ", genes) == {}
    assert search_genes("no such gene", genes) == {}
