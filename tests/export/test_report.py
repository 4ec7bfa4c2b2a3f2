"""Kept views are complete in the report and in the files, and names in them stay text."""

import base64
import hashlib
import io
import json
import zipfile
from html.parser import HTMLParser
from pathlib import PurePosixPath, PureWindowsPath

import numpy as np
import openpyxl
import pandas as pd
import plotly.graph_objects as go
import pytest

from app.export import html_page, methods, report, report_page
from app.export.items import Picture, SavedView, Table, Text
from app.figures import gene_plots
from app.pages import PAGES
from samsvae_core.analysis import enrichment_export

HOSTILE = [
    "<script>alert(1)</script>",
    "\"quoted\" & 'so'",
    "</script><img src=x onerror=alert(2)>",
    "\U0001f9ec",
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "=1+1",
    "a,b\tc",
]
FRAME = pd.DataFrame(
    {"name": HOSTILE, "value": [0.1 + 0.2, np.nan, 1e-300, -1.5, 2.0, 1e9, 3.0], "n": range(7)}
)
BARS = pd.DataFrame({"label": HOSTILE, "value": 1.0, "lower": 0.5, "upper": 2.0})
ABOUT = {"created": "2026-11-26 10:00 UTC"}
CHECKSUM = "0123456789abcdef" * 4


def view(title="STAT1 + SMAD4", address="compose?c=STAT1%3A1&model=m", items=(), **fields):
    given = {"model": "m (SAMS-VAE)", "checksum": CHECKSUM, "when": "2026-11-26"} | fields
    return SavedView(title=title, address=address, items=tuple(items), **given)


@pytest.fixture(scope="module")
def kept():
    bars = gene_plots.bars(BARS, "shift", dark=True)
    odd = go.Figure(go.Pie(values=[1, 2]))
    return [
        view(items=[Text("**up**: *G1*"), Picture("shifts", 'Said "so" <b>', bars.to_json())]),
        view(HOSTILE[0], "masks", [Table(HOSTILE[2], "A *caption*", FRAME)], model=HOSTILE[2]),
        view("Odd", "gene_sets", [Picture("pie", "A pie", odd), Table("pie", "", FRAME.head(0))]),
    ]


class Page(HTMLParser):
    """Collects a page's elements with their attributes, its scripts, and its text."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._within: str | None = None
        self.feed(content.decode())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._within = dict(attrs).get("id", f"{tag} {len(self.scripts)}")
            self.scripts[self._within] = ""

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self._within = None

    def handle_data(self, data):
        if self._within is None:
            self.text += data
        else:
            self.scripts[self._within] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(kept):
    return Page(report.report(kept, ABOUT))


@pytest.fixture(scope="module")
def packed(kept):
    return report.files(kept, ABOUT, b'{"a": 1}')


def test_the_page_loads_nothing_from_outside_and_forbids_it(page):
    for _, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not {"link", "iframe", "object", "embed", "form", "base"} & {t for t, _ in page.elements}
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_names_are_never_elements(page):
    assert {m.get("alt") for m in page.all("img")} == {'Said "so" <b>'}
    assert [s.get("id") for s in page.all("script")] == [None, "figure-1", "figure-2", None]
    for name in HOSTILE:
        assert name in page.text
    assert len(page.all("bdi")) > len(HOSTILE)


def test_figures_in_the_page_are_those_that_were_kept(page, kept):
    for number, item in ((1, kept[0].items[1]), (2, kept[2].items[0])):
        assert json.loads(page.scripts[f"figure-{number}"]) == json.loads(item.json)
    places = [d["data-figure"] for d in page.all("div") if d.get("class") == "plot"]
    assert places == ["figure-1", "figure-2"]


def test_plotly_is_there_once_and_only_where_there_are_figures(page):
    assert sum("Plotly.newPlot" in s and len(s) > 1e6 for s in page.scripts.values()) <= 1
    assert sum(len(s) > 1e6 for s in page.scripts.values()) == 1
    without = report.report([view(items=[Text("words")])], ABOUT)
    assert len(without) < 20_000
    assert not Page(without).all("script")


def test_tables_in_the_page_hold_all_their_rows():
    long = pd.DataFrame({"gene": [f"G{i}" for i in range(120)], "x": np.arange(120) / 7})
    found = Page(report.report([view(items=[Table("long", "", long)])], ABOUT))
    (link,) = [a for a in found.all("a") if "download" in a]
    assert link["download"] == "long.csv"
    content = base64.b64decode(link["href"].partition("base64,")[2])
    pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(content)), long)
    assert len(found.all("tr")) == 1 + report_page.SHOWN
    assert "The first 50 of 120 rows" in found.text


def test_the_page_says_what_of_which_model_and_how(page):
    for said in ("STAT1 + SMAD4", "compose?c=STAT1%3A1&model=m", CHECKSUM[:12], "Methods"):
        assert said in page.text
    assert "Made with SAMS-VAE Explorer" in page.text
    assert ABOUT["created"] in page.text
    anchors = {a["href"] for a in page.all("a") if a["href"].startswith("#")}
    assert anchors == {f"#{s['id']}" for s in page.all("section")}


def test_numbers_have_digits_that_can_be_read():
    columns = {
        "shift": pd.Series([0.12345, -12.0, np.nan]),
        "p": pd.Series([0.5, 1e-9, 0.01]),
        "n": pd.Series([1000, 2, 3]),
        "whole": pd.Series([20.0, 1e6, np.inf]),
        "on": pd.Series([True, False, True]),
        "name": pd.Series(["<a>", None, "b"], dtype=object),
    }
    shown = {name: report_page._cells(column, column) for name, column in columns.items()}
    assert shown["shift"] == ["0.123", "-12.000", "\u2013"]
    assert shown["p"] == ["0.500", "1.0e-09", "0.010"]
    assert shown["n"] == ["1,000", "2", "3"]
    assert shown["whole"] == ["20", "1,000,000", "inf"]
    assert shown["on"] == ["yes", "no", "yes"]
    assert shown["name"][0] == "<bdi>&lt;a&gt;</bdi>"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**a** *b*", "<p><strong>a</strong> <em>b</em></p>"),
        ("AC006129\\.2 \\*c\\* \\$x\\$ a\\:b", "<p>AC006129.2 *c* $x$ a:b</p>"),
        ("[a](http://b.org) <http://c.org>", "<p>[a](http://b.org) &lt;http://c.org&gt;</p>"),
        ("<b onclick=x>", "<p>&lt;b onclick=x&gt;</p>"),
        ("![a](http://b.org/c.png)", "<p>![a](http://b.org/c.png)</p>"),
        ("one  \ntwo", "<p>one<br />\ntwo</p>"),
        ("[a]: http://b.org\n\n[a]", "<p>[a]: http://b.org</p>\n<p>[a]</p>"),
    ],
)
def test_markdown_is_emphasis_and_text(markdown, expected):
    assert html_page.prose(markdown).strip() == expected


def test_the_zip_holds_each_view_in_a_folder_and_gives_it_back(packed, kept):
    with zipfile.ZipFile(io.BytesIO(enrichment_export.archive(packed))) as file:
        found = {name: file.read(name) for name in file.namelist()}
    assert found == packed
    folders = sorted({name.partition("/")[0] for name in found if "/" in name})
    assert folders[0] == "01 compose STAT1 + SMAD4"
    assert [folder[:2] for folder in folders] == ["01", "02", "03"]
    for ending in ("svg", "png", "csv"):
        assert found[f"01 compose STAT1 + SMAD4/shifts.{ending}"]
    assert found["session.json"] == b'{"a": 1}'
    assert Page(found["report.html"]).all("section")


DISARMED = [f"'{name}" if name.startswith("=") else name for name in HOSTILE]  # for spreadsheets


def test_tables_are_exact_in_csv_and_tsv_but_for_formulas(packed):
    assert DISARMED != HOSTILE
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        (name,) = [n for n in packed if n.startswith("02") and n.endswith(ending)]
        back = pd.read_csv(
            io.BytesIO(packed[name]),
            sep=separator,
            keep_default_na=False,
            na_values={"value": [""]},
        )
        pd.testing.assert_frame_equal(back, FRAME.assign(name=DISARMED))


def test_the_data_of_a_figure_are_beside_it(packed):
    back = pd.read_csv(io.BytesIO(packed["01 compose STAT1 + SMAD4/shifts.csv"]))
    assert list(back["gene"]) == DISARMED
    assert list(back["shift, upper"]) == [2.0] * 7


def test_the_workbook_has_every_table_with_text_as_text(packed):
    book = openpyxl.load_workbook(io.BytesIO(packed["tables.xlsx"]))
    first, second = book.worksheets
    assert [cell.value for cell in first["A"]] == ["name", *HOSTILE]
    assert {cell.data_type for cell in first["A"]} == {"s"}
    assert [cell.value for cell in first["C"]][1:] == list(range(7))
    assert second.max_row == 1


def test_a_figure_that_cannot_be_drawn_leaves_itself_and_a_note(packed, kept):
    stem = "03 gene_sets Odd/pie"
    assert json.loads(packed[f"{stem}.json"]) == json.loads(kept[2].items[0].json)
    assert f"{stem}.svg" not in packed
    assert "pie" in packed["README.txt"].decode().partition("Notes")[2]
    assert len(json.loads(packed["manifest.json"])["notes"]) == 1


def test_the_manifest_has_the_checksum_of_every_other_file(packed, kept):
    manifest = json.loads(packed["manifest.json"])
    assert set(manifest["files"]) == set(packed) - {"manifest.json"}
    for name, about in manifest["files"].items():
        assert about["sha256"] == hashlib.sha256(packed[name]).hexdigest()
        assert about["size"] == len(packed[name])
    assert [v["address"] for v in manifest["views"]] == [v.address for v in kept]
    assert {v["checksum"] for v in manifest["views"]} == {CHECKSUM}
    assert manifest["created"] == ABOUT["created"]
    assert manifest["versions"]["plotly"]


def test_the_same_views_give_the_same_bytes(packed, kept):
    assert report.files(kept, ABOUT, b'{"a": 1}') == packed


@pytest.mark.parametrize(
    "wanted",
    ["../../etc/passwd", "C:\\x", "con", "NUL.txt", "a" * 300, "\U0001f9ec" * 100, "..", " ", "",
     "a\x00b\nc", "\u202egnp.exe", "x.", "%2e%2e%2f", "lpt1", "*?<>|\""],
)  # fmt: skip
def test_names_of_files_are_safe_everywhere(wanted):
    (name,) = report_page.distinct([wanted])
    assert 0 < len(name.encode()) <= 121
    assert PurePosixPath(name).name == PureWindowsPath(name).name == name
    assert not PureWindowsPath(f"{name}.csv").is_reserved()
    assert name == name.strip(". ")
    assert name.isprintable()


def test_names_of_files_differ_in_more_than_case():
    names = report_page.distinct(["A", "a", "A", "a 2", "b"])
    assert len({name.casefold() for name in names}) == 5
    assert names[:2] == ["A", "a 2"]


def test_a_view_that_is_kept_again_takes_its_own_place():
    first, other = view(items=[Text("old")]), view("B")
    kept = report.add(report.add(report.add((), first), other), view(items=[Text("new")]))
    assert [v.title for v in kept] == ["STAT1 + SMAD4", "B"]
    assert kept[0].items == (Text("new"),)
    assert len(report.add(kept, view(checksum="other"))) == 3


def test_equal_names_in_a_view_are_told_apart():
    frame = pd.DataFrame({"a": [1]})
    found = report.files(
        [view(items=[Table("T", "", frame), Table("t", "", frame)])] * 2, ABOUT, b""
    )
    assert len([name for name in found if name.endswith(".tsv")]) == 4
    assert len(openpyxl.load_workbook(io.BytesIO(found["tables.xlsx"])).worksheets) == 4


def test_an_empty_basket_says_what_to_do():
    for call in (lambda: report.report([], {}), lambda: report.files([], {}, b"")):
        with pytest.raises(report.EmptyBasketError, match="Keep a view"):
            call()


def test_twenty_views_make_one_report():
    bars = gene_plots.bars(BARS, "shift", dark=False).to_json()
    views = [view(f"View {n}", items=[Picture("bars", "Bars", bars)]) for n in range(20)]
    found = Page(report.report(views, ABOUT))
    assert len(found.all("section")) == 21
    assert len([s for s in found.all("script") if "id" in s]) == 20


def test_tables_of_any_kind_of_column_go_into_the_workbook():
    frame = pd.DataFrame(
        {"on": [True, False], "when": pd.to_datetime(["2026-01-01", None]), "mixed": [1, "a"]}
    )
    frame["category"] = pd.Categorical(["x", None])
    twice = pd.concat([frame, frame], axis=1)
    found = report.files([view(items=[Table("t", "", twice)])], ABOUT, b"")
    sheet = openpyxl.load_workbook(io.BytesIO(found["tables.xlsx"])).worksheets[0]
    header = [cell.value for cell in sheet[1]]
    assert len(set(header)) == 8
    assert [cell.value for cell in sheet["A"]] == ["on", "True", "False"]
    assert report.report([view(items=[Table("t", "", twice)])], ABOUT)


def test_methods_tell_only_of_what_was_kept():
    masks = methods.methods([view(address="masks")])
    assert "evidence of a mask entry" in masks
    assert "loading" not in masks
    assert "draws" not in masks
    both = methods.methods([view(address="masks"), view(address="mechanism?m=0")])
    assert "loading of a gene" in both
    assert "posterior draws" in methods.methods([view(address="compose?c=P1%3A1")])
    assert both.count(CHECKSUM[:12]) == 1


def test_methods_cite_gene_set_tests_where_there_are_some():
    plain = methods.methods([view()])
    assert "Bereket" in plain
    assert "Subramanian" not in plain
    tested = pd.DataFrame({"term": ["A"], "FDR": [0.1]})
    assert "Subramanian" in methods.methods([view(items=[Table("t", "", tested)])])
    assert "Subramanian" in methods.methods([view(address="gene_sets")])
    assert "UMAP" in methods.methods([view(address="cells")])


def test_methods_are_told_of_pages_of_which_views_are_kept():
    assert [page.name for page in PAGES.values() if page.methods] == [
        page.name for page in PAGES.values() if page.is_kept
    ]
    assert all(page.needs_model for page in PAGES.values() if page.is_kept)
