import gzip
import hashlib
import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from samsvae_core.genesets import collections as gene_sets
from samsvae_core.genesets import enrichr as enrichr_module
from samsvae_core.genesets import symbols
from samsvae_core.genesets.collections import (
    collections,
    describe,
    load_collection,
    match,
    overlap,
    parse_gmt,
    read_gmt,
    usable_sets,
    why_little,
)
from samsvae_core.genesets.enrichr import cached_enrichr, enrichr

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
    (tmp_path / "mine.gmt.gz").write_bytes(gzip.compress(THREE, mtime=0))
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
        (b"a\tx\tG\nb\tx\n", "mine, line 2: set 'b' has no genes; remove the line"),
        (b"a\tx\t\t \n", "mine, line 1: set 'a' has no genes"),
        (b"a\tx\tG\nb\n", "mine, line 2: expected .* tabs between them; found none in 'b'"),
        (b"a x G\n", "mine, line 1: expected .* found spaces in 'a x G'. Save the file with tabs"),
        (b"set,a set of mine,G,H\n", "mine, line 1: expected .* found commas in 'set,a set of m"),
        (b"a;x;G;H\n", "mine, line 1: expected .* found semicolons"),
        (b"a\tx\tG, H, I\n", "mine, line 1: expected .* found commas in 'G, H, I'"),
        (b"a\tb\tc\nna\tna\tna\nG\tH\tI\n", r"mine has a gene set per column \(GMX\).*Transpose"),
        (b"a\tb\nhttps://a.org\t\nG\tH\n", r"mine has a gene set per column \(GMX\)"),
        (b"a\tx\tG\n" + b"b" * 501 + b"\tx\tG\n", "mine, line 2: expected a name of at most 500"),
        (b"a\tx\tG\nb\x1b[2Jc\tx\tG\n", r"mine, line 2: .* no.* control.*'b\\x1b\[2Jc'. Rename"),
        (b"a\tx\tG\n\n\tx\tG\n", "mine, line 3: the set has no name"),
        (b"a\tx\tG\nb\tx\tG\na\tx\tH\n", "mine, line 3: set 'a' is here twice"),
        (b"a\tx\tG\nb\tx\tG\xe4\n", "mine, line 2: not UTF-8"),
        (b"\x89PNG\0\0", "mine is a binary file"),
        (b"", "mine holds no gene set"),
        (b"\n \n", "mine holds no gene set"),
        (gzip.compress(THREE, mtime=0)[:-12], "mine is a damaged gzip file"),
        (gzip.compress(THREE, mtime=0)[:12] + b"no gzip at all", "mine is a damaged gzip file"),
    ],
)
def test_a_malformed_file_is_refused_and_the_line_named(content, message):
    with pytest.raises(ValueError, match=message):
        parse_gmt(content, "mine")


def test_a_gmx_file_is_known_by_its_name_too():
    with pytest.raises(ValueError, match=r"mine\.gmx has a gene set per column"):
        parse_gmt(THREE, "mine.gmx")


def test_a_name_of_500_characters_and_any_letters_is_taken():
    term = "Interferon-γ (R-HSA-877300), é" + "x" * 470
    assert list(parse_gmt(f"{term}\tna\tA\n".encode(), "mine").sets) == [term]


def test_weights_of_genes_are_left_out():
    sets = parse_gmt(b"a\t\tSTAT1,1.0\tIRF1,0.5\tGATA1\nb\t\tSTAT1,1.0\n", "mine").sets
    assert sets == {"a": ("STAT1", "IRF1", "GATA1"), "b": ("STAT1",)}


def test_a_file_that_unpacks_to_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(gene_sets, "MAX_BYTES", 2**20)
    with pytest.raises(ValueError, match="larger than 1 MB"):
        parse_gmt(gzip.compress(b"a\tx\tG\n" * 2**20, mtime=0), "bomb")


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


def human_sets(n: int = 20) -> gene_sets.Collection:
    genes = sorted(load_collection("hallmark").sets["HALLMARK_INTERFERON_GAMMA_RESPONSE"])[:n]
    return parse_gmt(("ifn\tx\t" + "\t".join(genes)).encode(), "mine")


def test_a_mouse_screen_meets_human_sets_in_capitals():
    collection = load_collection("hallmark")
    human = sorted(gene for gene in collection.genes if gene.capitalize() != gene)  # C3 is both
    measured = [gene.capitalize() for gene in human] + ["Gm12345", "1700001C02Rik"]
    found = match(collection, measured)
    assert found.by_case == {gene.capitalize(): gene for gene in human}
    assert (found.n_same, found.renamed, found.species) == (0, {}, ("mouse", "human"))
    assert found.unmatched == ("1700001C02Rik", "Gm12345")
    assert found.collection.genes == {gene.capitalize() for gene in collection.genes}
    assert found.collection.checksum != collection.checksum
    assert describe(found) == (
        "4,367 of 4,369 genes are in MSigDB Hallmark: 4,367 by the symbol in capitals; 2 are in"
        " none of its sets. The data have mouse symbols and the collection human ones; they were"
        " met by the symbol in capitals, which is an approximation of orthology."
    )


def test_a_mouse_collection_meets_a_human_screen_with_every_size_kept():
    collection = load_collection("hallmark")
    text = "".join(
        f"{term}\t\t" + "\t".join(gene.capitalize() for gene in genes) + "\n"
        for term, genes in collection.sets.items()
    )
    found = match(parse_gmt(text.encode(), "mouse"), collection.genes)
    assert found.collection.sets == collection.sets
    assert found.species == ("human", "mouse")


def test_within_a_species_capitals_matter():
    found = match(parse_gmt(b"a\tx\tStat1\tIrf1\tGATA1\tCd4\tCd8a\n", "mine"), ["Stat1", "Gata1"])
    assert (found.n_same, found.by_case, found.unmatched) == (1, {}, ("Gata1",))


def test_a_match_is_described_with_all_its_ways():
    collection = parse_gmt(b"a\tx\tKMT2A\tSTAT1\tGATA1\n", "mine")
    found = match(collection, ["MLL", "STAT1", "ENSG00000102145.4", "TP53", "IRF1"])
    assert describe(found) == (
        "3 of 5 genes are in mine: 1 by the same symbol, 1 through an older or newer name,"
        " 1 through an Ensembl or Entrez id; 2 are in none of its sets."
    )
    assert (
        describe(match(collection, ["STAT1"])) == "1 of 1 genes are in mine: 1 by the same symbol."
    )


def test_a_collection_of_entrez_ids_is_understood():
    collection = parse_gmt(b"a\tx\t6772\t4297\t2623\n", "mine")
    found = match(collection, ["STAT1", "MLL", "TP53"])
    assert found.collection.sets["a"] == ("STAT1", "MLL", "2623")
    assert found.renamed == {"STAT1": "6772", "MLL": "4297"}


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (
            [f"ENSMUSG{n:011}.1" for n in range(40)],
            "0 of 40 genes are in mine. Most of the others are mouse Ensembl ids, such as "
            "ENSMUSG00000000000.1, ENSMUSG00000000013.1, ENSMUSG00000000026.1. Mouse Ensembl ids "
            "cannot be translated here: name the genes by symbol",
        ),
        (["YAL001C", "YBR160W", "YDL227C"], "are names that are not known here, such as YAL001C, "),
    ],
)
def test_a_match_that_found_little_says_what_the_others_are(measured, message):
    assert message in describe(match(human_sets(), measured))


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ([f"ENSMUSG{n:011}" for n in range(40)], "Mouse Ensembl ids cannot be translated here"),
        ([f"{n}_s_at" for n in range(40)], "Array probes cannot be translated here"),
        ([f"{n}" for n in range(9_000_000, 9_000_040)], "Too few of these numbers are Entrez ids"),
        (["YAL001C", "YBR160W", "YDL227C"], "for another species, take sets with names as in the"),
        (["STAT1", "GATA1", "TP53"], "the 3 genes of the data and the 20 of the collection have"),
    ],
)
def test_the_likely_cause_of_little_in_common_is_told(measured, message):
    why = why_little(human_sets(), measured)
    assert message in why
    assert measured[0] in why
    assert "mine has human symbols (ADAR, " in why


def test_a_collection_of_unknown_names_is_the_cause_too():
    yeast = parse_gmt(b"a\tx\tYAL001C\tYBR160W\tYDL227C\n", "yeast")
    why = why_little(yeast, ["STAT1", "GATA1", "TP53"])
    assert "yeast has names that are not known here (YAL001C, YBR160W, YDL227C)" in why
    assert "for another species" in why


@pytest.mark.parametrize("column", ["symbol", "ensembl", "mouse"])
def test_a_large_panel_is_matched_to_all_of_reactome(column):
    table = symbols._annotation().iloc[::7][:8500]
    measured = {
        "symbol": table.index,
        "ensembl": table["ensembl"].str[:15],
        "mouse": table.index.str.capitalize(),
    }[column]
    collection = load_collection("reactome")
    assert len(match(collection, measured).collection.genes) == len(collection.genes)


SETS = {"Interferon (GO:1)": ["STAT1", "IRF1"], "Erythroid": ["GATA1", "KLF1", "TAL1"]}


def answers() -> None:
    import json
    import sys
    from pathlib import Path

    folder, name, organism = sys.argv[1:]
    sets = {"Interferon (GO:1)": ["STAT1", "IRF1"], "Erythroid": ["GATA1", "KLF1", "TAL1"]}
    sets |= {"empty": [], " ": ["TP53"], organism: ["A B", "TP53"]}
    answer = {"names": ["Mine_2020", "Mine_2023"], "sets": sets if name == "Mine_2020" else None}
    Path(folder, "answer.json").write_text(json.dumps(answer))


def sleeps() -> None:
    import time

    time.sleep(30)


def raises() -> None:
    raise ConnectionError("Max retries (Caused by NameError(no such host))")


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """Return the folder of kept libraries, with a worker that knows one of them."""
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(enrichr_module, "_download", answers)
    return tmp_path / "cache" / "enrichr"


def test_a_library_is_downloaded_once(shelf, monkeypatch):
    first = enrichr("Mine_2020")
    assert first.sets == {term: tuple(genes) for term, genes in SETS.items()} | {"Human": ("TP53",)}
    about = json.loads((shelf / "Mine_2020.json").read_text())
    text = gzip.decompress((shelf / "Mine_2020.gmt.gz").read_bytes())
    assert about["sha256"] == hashlib.sha256(text).hexdigest() == first.checksum
    assert (about["name"], about["organism"], about["n_sets"]) == ("Mine_2020", "Human", 3)
    assert first.version == f"downloaded {about['date']}"
    assert cached_enrichr() == {"Mine_2020": about["date"]}
    monkeypatch.setattr(enrichr_module, "_download", raises)
    assert enrichr("Mine_2020") == first
    with pytest.raises(ValueError, match="could not be reached"):
        enrichr("Mine_2020", refresh=True)
    assert enrichr("Mine_2020") == first


def test_a_copy_of_one_organism_is_not_given_for_another(shelf):
    enrichr("Mine_2020")
    assert "Fly" in enrichr("Mine_2020", "Fly").sets
    assert list(cached_enrichr()) == []
    assert list(cached_enrichr("Fly")) == ["Mine_2020"]


@pytest.mark.parametrize("name", ["Mine_2020.gmt.gz", "Mine_2020.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[1]", gzip.compress(b"other\t\tSTAT1\n", mtime=0), b"\x1f\x8b"]
)
def test_a_damaged_copy_is_downloaded_again(shelf, name, content):
    first = enrichr("Mine_2020")
    whole = (shelf / name).read_bytes()
    (shelf / name).write_bytes(content)
    assert enrichr("Mine_2020") == first
    assert (shelf / name).read_bytes() == whole
    (shelf / name).unlink()
    assert enrichr("Mine_2020") == first


def test_a_damaged_copy_is_not_offered(shelf):
    assert cached_enrichr() == {}
    enrichr("Mine_2020")
    (shelf / "Mine_2020.json").write_bytes(b"{")
    assert cached_enrichr() == {}


def test_a_folder_that_cannot_be_written_to_costs_the_copy_only(shelf, caplog):
    shelf.parent.write_text("a file where the folder should be")
    assert len(enrichr("Mine_2020").sets) == 3
    assert "downloaded again next time" in caplog.text


def test_no_network_is_one_message(shelf, monkeypatch):
    monkeypatch.setattr(enrichr_module, "_download", raises)
    with pytest.raises(
        ValueError, match=r"reached \(NameError\(no such host\)\)\. Shipped collect"
    ):
        enrichr("Mine_2020")
    assert not shelf.exists()


def test_a_download_that_hangs_is_stopped(shelf, monkeypatch):
    monkeypatch.setattr(enrichr_module, "_download", sleeps)
    monkeypatch.setattr(enrichr_module, "SECONDS", 0.2)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"could not be reached \(no answer within 0.2 s\)"):
        enrichr("Mine_2020")
    assert time.perf_counter() - start < 10


def test_an_unknown_library_is_answered_with_those_like_it(shelf):
    with pytest.raises(ValueError, match=r"no library 'mine_2021' for Human .* are Mine_20"):
        enrichr("mine_2021")
    with pytest.raises(ValueError, match="among its 2; no name is close to it"):
        enrichr("ZZZ")
    assert not shelf.exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", ".x", "a/b", "a b", "", "a\n", "a" * 201])
def test_a_hostile_name_reaches_neither_disk_nor_network(shelf, monkeypatch, name):
    monkeypatch.setattr(enrichr_module, "_downloaded", None)
    with pytest.raises(ValueError, match="Expected the name of an Enrichr library"):
        enrichr(name)


def test_an_unknown_organism_is_refused(shelf):
    with pytest.raises(ValueError, match="'Yeti'; choose one of Human, Mouse, Yeast, Fly, Fish, W"):
        enrichr("Mine_2020", "Yeti")


class Server(BaseHTTPRequestHandler):
    """Answers the requests of gseapy as Enrichr does."""

    def do_GET(self):
        place, _, query = self.path.partition("?")
        if place == "/Enrichr/datasetStatistics":
            answer = json.dumps(
                {"statistics": [{"libraryName": "Mine_2020"}, {"libraryName": "B"}]}
            )
        elif place == "/Enrichr/geneSetLibrary" and query == "mode=text&libraryName=Mine_2020":
            answer = (
                "Interferon (GO:1)\t\tSTAT1,1.0\tIRF1,0.5\t\nErythroid\t\tGATA1\tKLF1\tTAL1\t\n"
            )
        else:
            self.send_error(500)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch, tmp_path):
    """Run an Enrichr server on this machine and point gseapy to it."""
    http = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    here = f"http://127.0.0.1:{http.server_port}"
    redirect = (
        "import sys, gseapy\n"
        "class Here(sys.modules['gseapy.enrichr'].EnrichrAPI):\n"
        "    def __init__(self, organism):\n"
        "        super().__init__(organism)\n"
        f"        self.base_url = self.base_url.replace('https://maayanlab.cloud', '{here}')\n"
        "sys.modules['gseapy.parser'].EnrichrAPI = Here\n"
    )
    run = subprocess.run

    def run_here(command, **options):
        return run([*command[:3], redirect + command[3], *command[4:]], **options)

    monkeypatch.setattr(enrichr_module.subprocess, "run", run_here)
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def test_gseapy_downloads_a_library_from_a_server(server, tmp_path):
    assert enrichr("Mine_2020").sets == {term: tuple(genes) for term, genes in SETS.items()}
    with pytest.raises(ValueError, match=r"no library 'Mine_2021' .* close to it are Mine_2020"):
        enrichr("Mine_2021")
    assert not (tmp_path / "home" / ".cache" / "gseapy").exists()  # its own cache is not used


def test_a_server_in_trouble_is_one_message_and_soon(server, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="Enrichr could not be reached"):
        enrichr("B")
    assert time.perf_counter() - start < 20
    assert cached_enrichr() == {}
