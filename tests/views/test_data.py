"""The page Data, without a browser: any file is shown, or refused with one message."""

import io
import json
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from app.server import sandbox, uploads
from app.server.reading import Reading
from samsvae_core.bundle import opening
from samsvae_core.bundle.archive import pack
from samsvae_core.cli import main as cli
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.data.read_options import ReadOptions
from tests.data.test_h5ad import BAD_FILES, LABELS, write
from tests.views.pages import figures, finished, opened, words

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Return an empty runs folder, and let the dashboard have no models."""
    monkeypatch.setenv("SAMSVAE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path / "models"))
    return tmp_path / "runs"


@pytest.fixture
def at_once(monkeypatch):
    """Inspect files within this process; tests/server/test_sandbox.py tests separate ones."""
    monkeypatch.setattr(sandbox, "_asked", told)


def told(verb, path, options):
    """Return what the command would print, or its message."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["samsvae", verb, str(path), "--json", *options])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    if ended.value.code:
        raise DataError(sandbox._why(ended.value.code, err.getvalue(), path))
    return json.loads(out.getvalue())


def kept(path: Path, name="screen.h5ad") -> str:
    content = path.read_bytes()
    return uploads.save(io.BytesIO(content), name, len(content))


def shown(data, **query):
    return opened("data", {"data": data, **query})


def unusual(path: Path, screen) -> Path:
    """Write the small screen with an unusual column of perturbations, joined by "_"."""
    cells = anndata.read_h5ad(screen.path)
    cells.obs["Treatment (final)"] = cells.obs["perturbation"].astype(str).str.replace("+", "_")
    del cells.obs["perturbation"]
    cells.obs["plate"] = np.where(np.arange(len(cells)) % 2, "a", "b")
    cells.write_h5ad(path)
    return path


def box(page, parameter):
    """Return the widget of a setting of the open file."""
    kinds = (page.selectbox, page.multiselect, page.number_input, page.text_area)
    data = next(one for one in page.selectbox if one.key == "data").value
    return next(one for kind in kinds for one in kind if one.key == f"{parameter} of {data}")


def table(page) -> pd.DataFrame:
    return page.dataframe[0].value


def test_says_what_to_do_where_there_is_no_data_and_no_model():
    page = opened("data")
    assert finished(page)
    assert not page.error
    assert "There is no data here yet" in words(page)
    assert "2.0 GB at most; all uploads take 0 bytes of 19.5 GB" in words(page)


def test_shows_what_a_file_holds_before_anything_starts(screen, at_once):
    page = shown(kept(screen.path))
    assert finished(page)
    assert not page.error
    metrics = {metric.label: metric.value for metric in page.metric}
    n_control = (screen.data.conditions == screen.data.control).sum()
    assert metrics == {
        "Cells": "600",
        "Genes": "40",
        "Perturbations": "6",
        "Combinations": "2",
        "Control cells": str(n_control),
    }
    bars = figures(page)[0]["data"]
    assert sum(sum(bar["y"]) for bar in bars if isinstance(bar["y"], list)) in (0, 600)
    assert set(table(page)["kind"]) == {"control", "single", "combination"}
    assert int(table(page)["cells"].sum()) == 600


def test_the_button_below_leads_to_training_on_this_data(screen, at_once):
    page = shown(kept(screen.path), delimiter="_")
    page.button(key="train on").click().run()
    assert finished(page)
    assert [title.value for title in page.title] == ["Train"]
    assert "--delimiter=_" in page.code[0].value


def test_an_unusual_column_is_suggested_and_can_be_changed(screen, tmp_path, at_once):
    data = kept(unusual(tmp_path / "odd.h5ad", screen))
    page = shown(data)
    assert box(page, "key").value == "Treatment (final)"
    assert box(page, "delimiter").value == "_"
    assert (table(page)["kind"] == "combination").sum() == 2
    box(page, "delimiter").set_value("none").run()
    assert (table(page)["kind"] == "combination").sum() == 0
    assert "--delimiter=" in page.code[0].value
    box(page, "key").set_value("plate").run()
    assert finished(page)
    assert "no control cells" in page.warning[0].value
    assert "Column 'plate' has no control cells" in page.error[0].value.replace("\\", "")
    box(page, "control").set_value(["a"]).run()
    assert not page.error
    assert {m.label: m.value for m in page.metric}["Control cells"] == "300"


def test_item_05_names_of_genes_are_found_and_can_be_chosen(screen, tmp_path, at_once):
    cells = anndata.read_h5ad(screen.path)
    cells.var["gene_name"] = cells.var_names
    cells.var_names = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "ids.h5ad")
    data = kept(tmp_path / "ids.h5ad")
    genes = uploads.save_genes(f"{screen.data.genes[0]} ENSG{5:011d}.2 NOGENE")
    page = shown(data, genes=genes)
    assert box(page, "named").value == "gene_name"
    assert "Genes are named by the column 'gene_name' of var" in words(page).replace("\\", "")
    assert "2 of 3 genes of the list are in the file. Not in it: NOGENE." in said(page)
    assert "--gene-key" not in page.code[0].value
    box(page, "named").set_value("var_names").run()
    assert finished(page)
    assert "--gene-key=var_names" in page.code[0].value
    assert "Genes are named by Ensembl ids" in words(page)
    page = shown(data, named="var_names")
    assert box(page, "named").value == "var_names"


def test_item_05_row_numbers_are_told_on_the_page(screen, tmp_path, at_once):
    cells = anndata.read_h5ad(screen.path)
    cells.var_names = [str(i) for i in range(cells.n_vars)]
    cells.write_h5ad(tmp_path / "rows.h5ad")
    page = shown(kept(tmp_path / "rows.h5ad"))
    assert finished(page)
    assert "Genes are row numbers (0, 1, 2, ...), not names" in words(page).replace("\\", "")


def test_a_control_label_called_none_can_be_chosen(tmp_path, at_once):
    labels = ["none" if label == "ctrl" else label for label in LABELS]
    page = shown(kept(write(tmp_path / "a.h5ad", labels)), control="none")
    assert finished(page)
    assert not page.error
    assert "--control=none" in page.code[0].value


def test_what_is_shown_is_what_the_command_reads(screen, tmp_path, at_once):
    data = kept(unusual(tmp_path / "odd.h5ad", screen))
    page = shown(data, delimiter="_")
    preview = table(page).set_index("label in the file")["read as"]
    reading = Reading(data, ReadOptions(perturbation_key="Treatment (final)"))
    assert page.code[0].value == reading.command()
    cells = read_h5ad(
        uploads.resolve(data), perturbation_key="Treatment (final)", delimiter="_"
    ).conditions
    labels = anndata.read_h5ad(uploads.resolve(data)).obs["Treatment (final)"].astype(str)
    assert list(preview.loc[labels]) == list(cells)


def test_a_link_shows_its_reading(screen, tmp_path, at_once):
    data = kept(unusual(tmp_path / "odd.h5ad", screen))
    genes = uploads.save_genes(f"{screen.data.genes[0]}, {screen.data.genes[5]}, NOGENE")
    options = ReadOptions(perturbation_key="plate", control=("b",), delimiter="|")
    reading = Reading(data, options, top_genes=2, genes=genes)
    page = shown(**reading.as_query())
    assert box(page, "key").value == "plate"
    assert box(page, "control").value == ["b"]
    assert box(page, "delimiter").value == "|"
    assert box(page, "top").value == 2
    assert "2 of 3 genes of the list are in the file. Not in it: NOGENE." in said(page)
    assert page.code[0].value == reading.command()


def said(page) -> str:
    return " ".join(box.value for box in [*page.success, *page.error]).replace("\\", "")


def test_odd_links_are_said(screen, at_once):
    data = kept(screen.path)
    page = shown("uploads/../../etc/passwd")
    assert finished(page)
    assert "asks for the data file uploads/../../etc/passwd, which is not here" in words(page)
    page = shown(data, key="nothing", genes="uploads/../secret.txt")
    assert finished(page)
    assert not page.error
    assert "asks for the column nothing" in words(page)
    assert "is not here any more; all are kept" in words(page)


# Two files in one session


@pytest.fixture
def two(tmp_path):
    """Return the ids of two files, with labels joined by "+" and by "_"."""
    counts = np.random.default_rng(0).poisson(2.0, (160, 5)).astype(np.float32)
    names = []
    for name, parted, column in (("plus", "+", "perturbation"), ("under", "_", "gene")):
        labels = np.repeat(["ctrl", "AHR", "FEV", f"AHR{parted}FEV"], 40)
        obs = {"dose": np.ones(160), "lane": np.resize(["a", "b"], 160), "total": counts.sum(1) + 9}
        path = write(
            tmp_path / f"{name}.h5ad",
            None,
            counts,
            obs={column: labels, **obs},
            layers={"umi": counts},
        )
        names.append(kept(path, f"{name}.h5ad"))
    return names


def choose(page, data):
    page.selectbox(key="data").set_value(data).run()
    assert finished(page)
    assert not page.exception


def test_item_03_a_file_opened_after_another_has_its_own_suggestions(two, at_once):
    first, second = two
    page = shown(first)
    assert (box(page, "delimiter").value, box(page, "key").value) == ("+", "perturbation")
    choose(page, second)
    assert (box(page, "delimiter").value, box(page, "key").value) == ("_", "gene")
    assert {m.label: m.value for m in page.metric}["Combinations"] == "1"
    alone = shown(second)
    assert page.code[0].value == alone.code[0].value
    assert set(page.query_params) == set(alone.query_params) == {"data"}


CHOICES = {
    "key": "lane",
    "control": ["AHR"],
    "delimiter": "|",
    "layer": "umi",
    "size": "total",
    "dosage": "dose",
    "replicate": "lane",
    "covariate": ["lane"],
    "join": "by target",
    "unlabelled": "left out",
    "top": 3,
    "data genes": "G0\nG1",
}


@pytest.mark.parametrize("parameter", CHOICES)
def test_item_03_a_choice_for_one_file_is_not_taken_over_by_another(two, at_once, parameter):
    first, second = two
    page = shown(first)
    usual = box(page, parameter).value
    box(page, parameter).set_value(CHOICES[parameter]).run()
    assert finished(page)
    name = {"data genes": "genes"}.get(parameter, parameter)
    assert name in page.query_params
    choose(page, second)
    assert box(page, parameter).value == {"key": "gene", "delimiter": "_"}.get(parameter, usual)
    assert set(page.query_params) == {"data"}
    choose(page, first)  # there it is as it was chosen
    assert box(page, parameter).value == CHOICES[parameter]
    assert name in page.query_params


def test_item_03_a_link_to_another_file_brings_its_choices_and_no_others(two, at_once, monkeypatch):
    first, second = two
    page = shown(first, delimiter="|", layer="umi")
    assert (box(page, "delimiter").value, box(page, "layer").value) == ("|", "umi")
    page.switch_page("views/glossary.py").run()  # a link is come to from another page
    page.query_params.clear()
    page.query_params.update({"data": second, "layer": "umi"})
    page.switch_page("views/data.py").run()
    assert (box(page, "delimiter").value, box(page, "layer").value) == ("_", "umi")


def test_item_06_several_controls_are_chosen_and_stand_in_the_address(tmp_path, at_once):
    labels = np.repeat(["GFP", "mCherry", "STAT1"], 4)
    data = kept(write(tmp_path / "a.h5ad", labels))
    page = shown(data)
    assert finished(page)
    assert "GFP, mCherry are often controls" in page.error[0].value
    assert "--" not in page.error[0].value
    box(page, "control").set_value(["GFP", "mCherry"]).run()
    assert not page.error
    assert {m.label: m.value for m in page.metric}["Control cells"] == "8"
    assert page.query_params["control"] == ["GFP", "mCherry"]
    assert "--control=GFP --control=mCherry" in page.code[0].value
    again = shown(data, control=["GFP", "mCherry"])
    assert box(again, "control").value == ["GFP", "mCherry"]
    assert box(shown(data, control="GFP"), "control").value == ["GFP"]  # an address of before
    assert box(shown(data, control="*f?"), "control").value == ["*f?"]


def test_item_06_a_table_of_guides_is_suggested_where_no_column_has_labels(tmp_path, at_once):
    given = np.zeros((120, 3), np.float32)
    given[np.arange(110), np.arange(110) % 3] = 1
    guides = pd.DataFrame(given, [f"c{i}" for i in range(120)], ["A", "B", "lib_non-targeting_1"])
    counts = np.random.default_rng(0).poisson(2.0, (120, 5)).astype(np.float32)
    obs, obsm = {"lab": ["x"] * 120}, {"guides": guides}
    data = kept(write(tmp_path / "a.h5ad", None, counts, obs=obs, obsm=obsm))
    page = shown(data)
    assert finished(page)
    assert not page.error
    assert (box(page, "key").value, box(page, "dosage").value) == (None, "guides")
    assert page.code[0].value.endswith("--dosage-key=guides")
    metrics = {m.label: m.value for m in page.metric}
    assert (metrics["Cells"], metrics["Control cells"]) == ("110", "36")
    assert "10 cells without any perturbation" in words(page)
    box(page, "unlabelled").set_value("control").run()
    assert {m.label: m.value for m in page.metric}["Control cells"] == "46"


def test_item_07_what_columns_say_is_shown_in_words_of_the_page(tmp_path, at_once):
    labels = np.repeat(["ctrl", "ZAP70_1", "ZAP70_2"], 4)
    data = kept(write(tmp_path / "a.h5ad", labels, obs={"dose_value": [0.0] * 4 + [1.0, 2.0] * 4}))
    page = shown(data)
    assert finished(page)
    text = words(page)
    assert "2 names look like guides of 1 target" in text
    assert 'Choosing "dose_value" in the box "Dosages" reads them' in text
    assert any("only 4 control cells" in warning.value for warning in page.warning)
    assert not [part for part in text.splitlines() if "--" in part and "samsvae" not in part]
    box(page, "join").set_value("by target").run()
    assert {m.label: m.value for m in page.metric}["Perturbations"] == "1"
    assert set(table(page)["read as"]) == {"ctrl", "ZAP70"}


# Bad data, as in test_h5ad, through the page


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_its_message_on_the_page(tmp_path, case, at_once):
    content, _ = BAD_FILES[case]
    page = shown(kept(write(tmp_path / "bad.h5ad", **content)))
    assert finished(page)
    assert not page.exception
    if case in ("no column", "several columns"):  # a column can be chosen on the page
        assert "Column of perturbations" in [box.label for box in page.selectbox]
        return
    assert len(page.error) == 1
    message = page.error[0].value.replace("\\", "")
    assert "--" not in message
    assert str(tmp_path) not in message


def cut_short(path):
    path.write_bytes(path.read_bytes()[:2000])


def text(path):
    path.write_text("cell,gene\n")


def empty(path):
    path.write_bytes(b"")


def other(path):
    path.unlink()
    with h5py.File(path, "w") as raw:
        raw["matrix/data"] = [1, 2]


def linked(path):
    with h5py.File(path, "a") as raw:
        del raw["X"]
        raw["X"] = h5py.ExternalLink("/etc/passwd", "X")


def huge(path):
    with h5py.File(path, "a") as raw:
        del raw["X"]
        raw.create_dataset("X", (12, 10**12), "f4", chunks=(12, 1000)).attrs.update(
            {"encoding-type": "array", "encoding-version": "0.2.0"}
        )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut_short, "cannot be opened"),
        (text, "is not an .h5ad file"),
        (empty, "is not an .h5ad file"),
        (other, "is HDF5 but no .h5ad"),
        (linked, "refers to other places or files (X)"),
        (huge, "says that it holds"),
    ],
)
def test_a_file_that_is_none_is_refused_on_the_page(tmp_path, spoil, message):
    path = write(tmp_path / "bad.h5ad")
    spoil(path)
    page = shown(kept(path))
    assert finished(page)
    assert len(page.error) == 1
    assert message in page.error[0].value.replace("\\", "")
    assert str(tmp_path) not in page.error[0].value


def test_names_from_files_are_shown_as_text(tmp_path, at_once):
    odd = "<img src=x onerror=alert(1)> [a](javascript:b) **c**"
    labels = [odd if label == "SET" else label for label in LABELS]
    data = kept(write(tmp_path / "odd.h5ad", labels, obs={odd: labels}))
    page = shown(data, key=odd)
    assert finished(page)
    assert odd in set(table(page)["label in the file"])
    assert not any(odd in part.value for part in [*page.markdown, *page.caption, *page.warning])


# Uploads


def upload(page, name, content, at=0, kind="application/octet-stream"):
    return page.file_uploader[at].set_value([(name, content, kind)]).run()


def test_an_upload_is_kept_chosen_and_can_be_removed(screen, runs, at_once, caplog):
    page = upload(opened("data"), "mine.h5ad", screen.path.read_bytes())
    assert "upload accepted" in caplog.messages
    assert finished(page)
    assert "mine.h5ad was kept, and is selected" in said(page)
    chosen = page.selectbox(key="data").value
    assert uploads.resolve(chosen).read_bytes() == screen.path.read_bytes()
    assert page.metric[0].value == "600"
    page.button(key="remove data").click().run()
    assert finished(page)
    assert "was removed" in said(page)
    assert not list(runs.rglob("*.h5ad"))


def test_an_upload_that_only_has_the_name_is_refused_and_not_kept(screen, runs):
    page = upload(opened("data"), "mine.h5ad", b"cell,gene\na,1\n" * 100)
    assert finished(page)
    assert "expected HDF5, found a file that begins with b'cell,gene" in said(page)
    assert not list(runs.rglob("*.h5ad"))
    shifted = bytes(2048) + screen.path.read_bytes()  # a user block before it is HDF5, too
    assert "was kept, and is selected" in said(upload(opened("data"), "block.h5ad", shifted))


def test_an_upload_without_room_is_refused_in_one_message(screen, runs, monkeypatch, caplog):
    monkeypatch.setenv("SAMSVAE_UPLOADS_TOTAL_MB", "0")
    page = upload(opened("data"), "mine.h5ad", screen.path.read_bytes())
    assert "upload refused" in caplog.messages
    assert finished(page)
    assert len(page.error) == 1
    assert "There is no room for mine.h5ad" in said(page)
    assert not list(runs.rglob("*.h5ad"))


def test_a_list_of_genes_is_carried_to_training(tmp_path, at_once):
    page = shown(kept(write(tmp_path / "a.h5ad")))
    box(page, "data genes").set_value("G0\nG3").run()
    assert "2 of 2 genes of the list are in the file" in said(page)
    box(page, "top").set_value(1).run()
    assert finished(page)
    box(page, "data genes").set_value("nothing").run()
    assert "0 of 1 genes" in said(page)


def test_one_gene_alone_is_refused_and_a_list_of_one_is_taken_whole(tmp_path, at_once):
    page = shown(kept(write(tmp_path / "a.h5ad")), top="1")
    assert "One gene is too few" in page.error[0].value
    assert not [b for b in page.button if b.key == "train on"]
    box(page, "data genes").set_value("G0").run()
    assert finished(page)
    assert not page.error
    assert "Of 1 genes of the list, all are modelled." in words(page)


# Models made elsewhere


@pytest.fixture
def zipped(tiny, tmp_path):
    return pack(tiny.path, tmp_path / "zips" / "tiny.zip").read_bytes()


def test_a_model_made_elsewhere_is_among_the_models(zipped, tiny, runs):
    page = upload(opened("data"), "tiny.zip", zipped, 1, "application/zip")
    assert finished(page)
    assert "tiny is among the models now" in said(page)
    assert opening.load(runs / "tiny").checksum == tiny.checksum
    assert opened("overview").sidebar.selectbox[0].options == ["tiny"]


def test_a_zip_that_is_no_model_is_refused_and_leaves_nothing(zipped, runs):
    made = io.BytesIO(zipped)
    with zipfile.ZipFile(made, "a") as file:
        file.writestr("../../evil.txt", "x")
    for content in (made.getvalue(), zipped[:5000], b"no zip"):
        page = upload(opened("data"), "tiny.zip", content, 1, "application/zip")
        assert finished(page)
        assert len(page.error) == 1
    assert not [path for path in runs.parent.rglob("*") if path.name in ("evil.txt", "tiny")]


def test_a_model_that_was_brought_can_be_removed_after_a_question(zipped, runs, caplog):
    page = upload(opened("data"), "tiny.zip", zipped, 1, "application/zip")
    (runs / "tiny.names.json").write_text("{}")
    assert page.selectbox(key="brought model").options == ["tiny"]
    assert "Remove the model tiny" in words(page)
    with caplog.at_level("INFO", "app"):
        page.button(key="remove model").click().run()
    assert finished(page)
    assert "tiny was removed" in said(page)
    assert not [path for path in runs.rglob("*") if "tiny" in path.name]
    assert not [box for box in page.selectbox if box.key == "brought model"]
    assert [r.fields for r in caplog.records if r.message == "model removed"] == [{"model": "tiny"}]


def test_a_shipped_model_is_not_among_those_to_remove(tiny, monkeypatch):
    monkeypatch.setenv("SAMSVAE_MODELS", str(tiny.path.parent))
    monkeypatch.setenv("SAMSVAE_RUNS", str(tiny.path.parent))  # as for `samsvae app FOLDER`
    page = opened("data")
    assert finished(page)
    assert not [box for box in page.selectbox if box.key == "brought model"]
