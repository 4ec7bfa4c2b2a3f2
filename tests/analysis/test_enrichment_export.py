import csv
import datetime
import hashlib
import io
import json
import platform
import zipfile
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import openpyxl
import pandas as pd
import pytest

from samsvae_core.analysis import enrichment_export
from samsvae_core.analysis.enrichment_export import (
    Results,
    archive,
    files,
    leading_edges,
    methods,
    summary,
    workbook,
    write_folder,
)
from samsvae_core.genesets.collections import Collection, load_collection, parse_gmt
from samsvae_core.genesets.enrichment import over_representation, rank_enrichment
from samsvae_core.genesets.questions import COLUMNS, Enrichment, join
from samsvae_core.genesets.terms import grouped, suggested_names, verdicts
from samsvae_core.system.files import OutputError

AWKWARD = ["=1+1", "@SUM(A1)", "+1", "-1", "http://x", "1E5", "MARCH1", "NA", "a,b", 'a"b', "Ä"]
GENES = [*AWKWARD, *(f"GENE{number}" for number in range(189))]
SETTINGS = {
    "bundle": "papalexi2021",
    "checksum": "0123abcd",
    "model": "SAMS-VAE",
    "ranked": "the loading of the mechanism: a mean",
    "top": "the 20 highest and the 20 lowest genes",
    "background": "the genes of the model",
    "background_size": 1200,
    "min_size": 5,
    "max_size": 500,
    "seed": 3,
}


def collection_of(name: str) -> Collection:
    sets = {"=cmd()": GENES[:11], "plain": GENES[11:30], "+1": GENES[150:190]}
    sets |= {f"set {n}": GENES[10 * n : 10 * n + 12] for n in range(2, 18)}
    members = {term: tuple(genes) for term, genes in sets.items()}
    return Collection(name, name, "", "file", "", members, dict.fromkeys(sets, ""), repr(sets))


def awkward() -> Results:
    """Return results with names that Excel takes for something else; the first set is up."""
    rng = np.random.default_rng(0)
    loadings = pd.DataFrame(rng.standard_normal((200, 3)), GENES, [0, "a/b", "A/B"])
    loadings.iloc[:11, :2] += [9, -9]
    collections = [collection_of("mine"), collection_of("a collection with quite a long name [v1]")]
    parts = []
    for collection in collections:
        parts.append(rank_enrichment(loadings, collection))
        parts.append(over_representation(loadings, collection, n_top=11))
    found = join(parts)
    scores = loadings.rename_axis("gene").reset_index().melt("gene", var_name="mechanism")
    table = grouped(found.table)
    names = suggested_names(table, list(loadings))
    return Results(Enrichment(table, found.notes), scores, names, collections, SETTINGS)


@pytest.fixture(scope="module")
def results() -> Results:
    return awkward()


@pytest.fixture(scope="module")
def empty() -> Results:
    dead = pd.DataFrame({0: np.zeros(200)}, index=GENES)
    found = over_representation(dead, collection_of("mine"))
    scores = dead.rename_axis("gene").reset_index().melt("gene", var_name="mechanism")
    names = suggested_names(found.table, [0])
    return Results(found, scores, names, [collection_of("mine")], SETTINGS)


@pytest.fixture(scope="module")
def book(results) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(workbook(results)))


def opened(results: Results) -> openpyxl.Workbook:
    return openpyxl.load_workbook(io.BytesIO(workbook(results)))


def sheet_as_frame(book: openpyxl.Workbook, name: str) -> pd.DataFrame:
    header, *body = book[name].iter_rows(values_only=True)
    return pd.DataFrame(body, columns=header, dtype=object)


def assert_shown(shown: pd.DataFrame, table: pd.DataFrame) -> None:
    """Assert the same rows in order, with equal texts and numbers to the 16 digits of Excel."""
    assert list(shown) == list(table)
    assert len(shown) == len(table)
    for column in table:
        for cell, value in zip(shown[column], table[column], strict=True):
            if isinstance(value, str):
                assert (cell or "") == value
            elif np.isnan(value):
                assert cell is None
            elif np.isinf(value):
                assert cell == "infinite"
            else:
                assert cell == pytest.approx(value, rel=1e-15, abs=0)


def test_a_workbook_has_the_table_on_a_sheet_per_mechanism_and_collection(results, book):
    table = results.enrichment.table
    parts = [rows for _, rows in table.groupby(["mechanism", "collection"], sort=False)]
    names = book.sheetnames
    assert names[:2] == ["summary", "names"]
    assert names[-3:] == ["collections", "settings", "notes"]
    assert names[2:5] == ["M0 mine", "a_b mine", "A_B mine 2"]
    assert len(names) == 5 + len(parts) == 5 + 6
    for name, part in zip(names[2:-3], parts, strict=True):
        assert set(part["method"]) == {"gsea", "ora"}
        assert_shown(sheet_as_frame(book, name), part)


def test_names_of_sheets_are_what_excel_takes(book):
    names = book.sheetnames
    assert len({name.lower() for name in names}) == len(names)
    assert all(0 < len(name) <= 31 and not set(name) & set("[]:*?/\\'") for name in names)


def test_text_stays_text(results, book):
    cells = [cell for sheet in book for row in sheet.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells} <= {"s", "n", "inlineStr"}  # no formula
    assert not any(cell.hyperlink for cell in cells)
    first = sheet_as_frame(book, "M0 mine").query("method == 'ora'").iloc[0]
    assert first["term"] == "=cmd()"
    assert set(first["leading_edge"].split(";")) == set(AWKWARD)
    assert first["odds_ratio"] == "infinite"


def test_one_gene_that_looks_like_a_formula_or_a_number_stays_text(results):
    table = results.enrichment.table.head(len(AWKWARD)).assign(leading_edge=AWKWARD)
    shown = opened(results._replace(enrichment=results.enrichment._replace(table=table)))
    sheet = shown[shown.sheetnames[2]]
    column = list(table).index("leading_edge") + 1
    for row, gene in enumerate(AWKWARD, start=2):
        cell = sheet.cell(row, column)
        assert (cell.value, cell.number_format) == (gene, "@")
        assert cell.data_type in ("s", "inlineStr")


def test_headers_are_frozen_bold_and_filtered_and_numbers_have_formats(results, book):
    for sheet in book:
        assert sheet.freeze_panes == "A2"
        assert sheet.auto_filter.ref == sheet.dimensions
        assert all(cell.font.bold for cell in sheet[1])
    sheet = book["M0 mine"]
    columns = list(results.enrichment.table)
    for title, shown in (("fdr", "0.00E+00"), ("nes", "0.000"), ("term", "@"), ("size", "General")):
        assert sheet.cell(2, columns.index(title) + 1).number_format == shown
    assert sheet.column_dimensions["E"].width > 40  # the term


def test_the_summary_has_the_best_of_each_kind_and_what_passes_first(results, book):
    table = results.enrichment.table
    shown = sheet_as_frame(book, "summary")
    assert_shown(shown, summary(table))
    assert (shown["group"] == shown["term"]).all()
    assert (shown["overlap"] > 0).all()
    assert shown["verdict"].tolist() == verdicts(summary(table)).tolist()
    passes = (shown["verdict"] != "does not pass").tolist()
    assert passes == sorted(passes, reverse=True)
    assert 0 < sum(passes) < len(passes)
    kinds = ["mechanism", "collection", "method", "direction"]
    told = table[(table["group"] == table["term"]) & (table["overlap"] > 0)]
    for kind, rows in told.groupby(kinds):
        found = shown[(shown[kinds] == list(kind)).all(axis=1)]
        np.testing.assert_allclose(
            np.sort(found["p_value"].astype(float)), np.sort(rows["p_value"])[:5], rtol=1e-15
        )


def test_the_summary_works_without_groups(results):
    table = results.enrichment.table.drop(columns="group")
    assert list(summary(table)) == [*COLUMNS, "verdict"]
    assert len(summary(table)) >= len(summary(results.enrichment.table))


def test_a_workbook_tells_names_collections_settings_and_notes(results, book):
    assert_shown(sheet_as_frame(book, "names"), results.names.reset_index())
    assert_shown(sheet_as_frame(book, "notes"), results.enrichment.notes)
    collections = sheet_as_frame(book, "collections")
    assert collections["name"].tolist() == [c.name for c in results.collections]
    assert collections["sets"].tolist() == [19, 19]
    assert collections["checksum"].tolist() == [c.checksum for c in results.collections]
    settings = sheet_as_frame(book, "settings").set_index("setting")["value"]
    assert settings[list(SETTINGS)].tolist() == [str(value) for value in SETTINGS.values()]
    assert settings["gseapy"] == version("gseapy")
    assert settings["adjustment"].startswith("Benjamini-Hochberg over a mechanism's sets")


def test_the_genes_that_were_ranked_are_counted(results):
    hallmark = load_collection("hallmark")
    scores = pd.DataFrame({"gene": [*sorted(hallmark.genes)[:40], "NOT A GENE"] * 2})
    table = enrichment_export.collection_table(
        results._replace(scores=scores, collections=[hallmark])
    )
    row = table.iloc[0]
    assert (row["sets"], row["genes"], row["scored"]) == (50, 4383, 40)
    assert (row["version"], row["licence"]) == ("MSigDB 7.5.1", "CC BY 4.0")


def test_an_empty_result_makes_every_file(empty):
    book = opened(empty)
    assert book.sheetnames == ["summary", "names", "collections", "settings", "notes"]
    assert sheet_as_frame(book, "notes")["status"].tolist() == ["constant"]
    assert sheet_as_frame(book, "summary").empty
    assert sheet_as_frame(book, "names")["name"].tolist() == ["unnamed"]
    found = files(empty)
    assert found["leading_edges.gmt"] == b""
    assert found["enrichment.csv"].decode().strip() == ",".join(COLUMNS)
    assert b"19 sets, 0 of them tested" in found["methods.md"]


def test_a_text_too_long_for_a_cell_is_cut_after_a_gene_and_said_to_be(results):
    table = results.enrichment.table.head(3).copy()
    genes = [f"GENE{number}" for number in range(5000)]
    table["leading_edge"] = ["short", ";".join(genes), "x" * 40_000]
    shown = opened(results._replace(enrichment=results.enrichment._replace(table=table)))
    frame = sheet_as_frame(shown, shown.sheetnames[2])
    assert frame["cut"].fillna("").tolist() == ["", "leading_edge", "leading_edge"]
    kept = frame["leading_edge"][1].split(";")
    assert kept == genes[: len(kept)]
    assert 32_767 - 10 < len(frame["leading_edge"][1]) <= 32_767
    assert frame["leading_edge"][2] == "x" * 32_767
    assert frame["leading_edge"][0] == "short"
    assert_shown(frame.drop(columns=["cut", "leading_edge"]), table.drop(columns="leading_edge"))


def test_more_rows_than_excel_takes_are_refused(results, monkeypatch):
    monkeypatch.setattr(enrichment_export, "ROWS", 50)
    rows = len(summary(results.enrichment.table))
    message = rf"Sheet 'summary' would have {rows} rows; Excel takes 50\. Take the CSV file"
    with pytest.raises(ValueError, match=message):
        workbook(results)


def test_infinite_numbers_have_a_sign(results):
    table = results.enrichment.table.head(2).assign(es=[-np.inf, np.inf])
    shown = opened(results._replace(enrichment=results.enrichment._replace(table=table)))
    assert sheet_as_frame(shown, shown.sheetnames[2])["es"].tolist() == ["-infinite", "infinite"]


def test_leading_edges_are_a_gmt_file_of_what_passes(results):
    table = results.enrichment.table
    passing = table[(table["method"] == "gsea") & (verdicts(table) != "does not pass")]
    again = parse_gmt(leading_edges(table).encode(), "edges")
    assert len(again.sets) == len(passing) >= 4
    assert "M0|mine|up|=cmd()" in again.sets
    for (name, genes), row in zip(again.sets.items(), passing.itertuples(), strict=True):
        mechanism = "M0" if row.mechanism == 0 else row.mechanism
        assert name == f"{mechanism}|{row.collection}|{row.direction}|{row.term}"
        assert genes == tuple(row.leading_edge.split(";"))
        assert again.descriptions[name].startswith(f"NES {row.nes:.2f} FDR {row.fdr:.2g}")
    assert len(leading_edges(table, fdr=1.0).splitlines()) == (table["method"] == "gsea").sum()
    assert leading_edges(table, fdr=0.0) == ""


def test_tabs_and_line_breaks_in_names_do_not_break_the_gmt_file(results):
    table = results.enrichment.table
    row = table[table["method"] == "gsea"].head(1)
    row = row.assign(mechanism="a\tb", term="one\r\ntwo", collection="x\ny", leading_edge="A;B")
    again = parse_gmt(leading_edges(row, fdr=1.0).encode(), "edges")
    assert again.sets == {f"a b|x y|{row['direction'].iloc[0]}|one  two": ("A", "B")}


def test_the_methods_name_what_was_done_and_what_to_cite(results):
    text = methods(results)
    for told in (
        "papalexi2021",
        "0123abcd",
        "ranked by the loading of the mechanism: a mean.",
        "the 20 highest and the 20 lowest genes",
        "the genes of the model (1,200 genes)",
        "5 to 500 measured genes",
        "seed 3",
        f"gseapy {version('gseapy')}",
        f"SAMS-VAE Explorer {version('samsvae-explorer')}",
        "Jaccard index of at least 0.5",
        "19 sets, 19 of them tested; 190 genes, 190 of them ranked",
    ):
        assert told in text
    references = text.split("## References")[1]
    for author in ("Bereket", "Subramanian", "Korotkevich", "Fang", "Benjamini"):
        assert author in references
        assert author in text.split("## References")[0]
    assert "Liberzon" not in text


def test_groups_are_spoken_of_only_where_there_are_any(results):
    table = results.enrichment.table.drop(columns="group")
    text = methods(results._replace(enrichment=results.enrichment._replace(table=table)))
    assert "Jaccard" not in text


def test_shipped_collections_are_cited_and_files_of_their_name_are_not(results):
    hallmark = load_collection("hallmark")
    cited = methods(results._replace(collections=[hallmark]))
    assert "MSigDB Hallmark (MSigDB 7.5.1; " in cited
    assert "doi:10.1016/j.cels.2015.12.004. CC BY 4.0." in cited
    matched = replace(hallmark, checksum="other")  # as after aliases were met
    assert "Liberzon" in methods(results._replace(collections=[matched]))
    own = parse_gmt(b"a\t\tb\tc", "hallmark")
    assert "Liberzon" not in methods(results._replace(collections=[own]))


def test_names_from_elsewhere_make_no_markup_in_the_methods(results):
    settings = SETTINGS | {"bundle": "[x](http://y)\n# <b>"}
    text = methods(results._replace(settings=settings))
    assert r"\[x\](http\://y) # \<b\>" in text
    assert "\n# <" not in text


def test_settings_that_do_not_tell_enough_are_refused(results):
    settings = {key: value for key, value in SETTINGS.items() if key not in ("seed", "top")}
    with pytest.raises(ValueError, match="The settings lack top, seed; a methods"):
        methods(results._replace(settings=settings))


@pytest.fixture(scope="module")
def contents(results) -> dict[str, bytes]:
    return files(results)


def read_back(content: bytes, like: pd.DataFrame) -> pd.DataFrame:
    """Read a CSV file in which NA is a gene and an empty cell is a missing number."""
    kinds = {name: str for name in like if like[name].dtype == object}
    missing = {name: [""] for name in like if name not in kinds}
    return pd.read_csv(
        io.BytesIO(content),
        dtype=kinds,
        keep_default_na=False,
        na_values=missing,
        float_precision="round_trip",
    )


def disarmed(name: object) -> str:
    """Return a text as CSV files have it; of the awkward names, +1 and -1 are numbers."""
    return (
        f"'{name}"
        if str(name).startswith((*"=+@-",)) and not str(name)[1:].isdigit()
        else str(name)
    )


def test_csv_files_give_back_every_digit_and_every_name_with_formulas_disarmed(results, contents):
    tables = {
        "enrichment": results.enrichment.table,
        "notes": results.enrichment.notes,
        "scores": results.scores,
        "names": results.names.reset_index(),
        "collections": enrichment_export.collection_table(results),
    }
    for name, table in tables.items():
        expected = table.assign(
            **{
                column: table[column].map(disarmed)
                for column in table
                if table[column].dtype == object
            }
        )
        pd.testing.assert_frame_equal(
            read_back(contents[f"{name}.csv"], table), expected, check_exact=True
        )
    rows = list(csv.DictReader(io.StringIO(contents["scores.csv"].decode())))
    assert [row["gene"] for row in rows[:11]] == [disarmed(gene) for gene in AWKWARD]
    assert [float(row["value"]) for row in rows] == results.scores["value"].tolist()


def test_the_other_files_hold_what_their_functions_give(results, contents):
    assert contents["methods.md"].decode() == methods(results)
    assert contents["leading_edges.gmt"].decode() == leading_edges(results.enrichment.table)
    assert contents["enrichment.xlsx"] == workbook(results)
    settings = json.loads(contents["settings.json"])
    assert settings | SETTINGS == settings
    assert settings["gseapy"] == version("gseapy")


def test_the_manifest_lists_every_other_file_with_its_checksum(contents):
    manifest = json.loads(contents["manifest.json"])
    assert set(manifest["files"]) == set(contents) - {"manifest.json"}
    assert len(contents) == 10
    for name, about in manifest["files"].items():
        assert about["sha256"] == hashlib.sha256(contents[name]).hexdigest()
        assert about["size"] == len(contents[name])
    versions = manifest["versions"]
    assert versions.pop("Python") == platform.python_version()
    assert set(versions) == {"samsvae-explorer", "gseapy", "numpy", "pandas", "torch"}
    assert versions == {name: version(name) for name in versions}
    created = datetime.datetime.fromisoformat(manifest["created"])
    assert created.utcoffset() == datetime.timedelta(0)
    assert datetime.datetime.now(datetime.UTC) - created < datetime.timedelta(minutes=10)


def test_an_archive_holds_the_files_and_the_same_ones_give_the_same_bytes(contents):
    packed = archive(contents)
    with zipfile.ZipFile(io.BytesIO(packed)) as file:
        assert file.testzip() is None
        assert file.namelist() == sorted(contents)
        assert {name: file.read(name) for name in file.namelist()} == contents
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert archive(dict(reversed(contents.items()))) == packed


def test_a_folder_holds_the_files(contents, tmp_path):
    write_folder(contents, tmp_path / "deep" / "out")
    written = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "out").iterdir()}
    assert written == contents
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out").stat().st_mode & 0o777 == 0o755
    with pytest.raises(OutputError, match=r"exists already\. Name another output, or remove it"):
        write_folder({}, tmp_path / "deep" / "out")


def test_a_folder_is_whole_or_absent(tmp_path):
    with pytest.raises(OutputError, match=r"Cannot write .*out: No such file .* another place"):
        write_folder({"a.csv": b"a", "no/such.csv": b"b"}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        write_folder({"a.csv": b"a"}, tmp_path / "file" / "out")


def test_separated_tables_disarm_formulas_and_change_no_number():
    table = pd.DataFrame(
        [["=cmd()", -1.5, "-2.5"], ["@x", 1e-300, "-a"], ["STAT1", 2.0, "+1e3"]],
        columns=["=gene", "-value", "text"],
    )
    for separator in ",\t":
        content = enrichment_export.separated(table, separator).decode()
        found = pd.read_csv(io.StringIO(content), sep=separator, dtype=str)
        assert list(found) == ["'=gene", "'-value", "text"]
        assert found["'=gene"].tolist() == ["'=cmd()", "'@x", "STAT1"]
        assert found["text"].tolist() == ["-2.5", "'-a", "+1e3"]
        assert found["'-value"].astype(float).tolist() == [-1.5, 1e-300, 2.0]
    assert table.iloc[0, 0] == "=cmd()"
    twice = pd.DataFrame([["=a", "b"]], columns=["x", "x"])
    assert enrichment_export.separated(twice) == b"x,x\n'=a,b\n"
