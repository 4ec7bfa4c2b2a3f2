"""The page Train, without a browser and with a stand-in for the trainer."""

import io
import json
import shutil
import sys
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from app.server import queue, runs, sandbox, time_estimate, uploads
from app.server import reading as reading_module
from app.session import results
from app.session import training as training_module
from app.session.markdown import plain
from samsvae_core.bundle import layout
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.system.files import OutputError
from samsvae_core.training.config import Progress
from tests.data.test_h5ad import write
from tests.server.test_queue import become, end, ended_all, starts, training
from tests.views.pages import figures, finished, opened, words
from tests.views.test_data import told

pytestmark = pytest.mark.filterwarnings("default")  # Streamlit's own, which are not ours to mend
TRAINER = Path(__file__).parents[1] / "trainer.py"
CPU = time_estimate.Pace("cpu", "", 16e9, 0.01, 1e-7)
GPU = time_estimate.Pace("cuda", "NVIDIA <b>H100</b>", 80e9, 0.001, 1e-9)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Return an empty runs folder, without models, and inspect files within this process."""
    place = tmp_path / "runs"
    place.mkdir()
    monkeypatch.setenv("SAMSVAE_RUNS", str(place))
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(queue, "PROGRAM", (sys.executable, str(TRAINER)))
    monkeypatch.setattr(sandbox, "_asked", told)
    on(monkeypatch, CPU)
    yield place
    ended_all(place)
    training_module._pace.clear()


def on(monkeypatch, found):
    """Let the timing of steps find this pace."""
    monkeypatch.setattr(training_module, "measured", lambda threads: found)
    training_module._pace.clear()


@pytest.fixture
def data(screen) -> str:
    content = screen.path.read_bytes()
    return uploads.save(io.BytesIO(content), "screen.h5ad", len(content))


def shown(data, **query):
    page = opened("train", {"data": data, **query})
    assert finished(page)
    return page


def box(page, parameter):
    """Return the widget of a number that is suggested for each file."""
    return next(one for one in page.number_input if one.key.startswith(f"{parameter} of "))


def name_box(page):
    return next(box for box in page.text_input if box.label == "Name of the run")


def write_history(path, n=3):
    rows = [Progress(i, 10 * i, -5.0 - i, 1, 1, -6.0, 7, 3, 0.5, 0.0) for i in range(1, n + 1)]
    pd.DataFrame(rows).to_csv(path / "history.csv", index=False)


def button(page, key):
    return page.button(key=key)


def test_says_what_to_do_where_no_data_is_chosen():
    page = opened("train")
    assert finished(page)
    assert not page.error
    assert "Choose the data first" in words(page)
    assert "Nothing has been trained here yet" in words(page)
    button(page, "choose data").click().run()
    assert finished(page)
    assert [title.value for title in page.title] == ["Data"]


def test_defaults_come_from_the_data_and_the_command_is_shown(data):
    page = shown(data, key="perturbation", delimiter="+", top="30")
    assert "600 cells, 30 genes, 6 perturbations, 2 combinations" in words(page)
    assert box(page, "train_latents").value == 6
    assert box(page, "train_steps").value == 6000
    assert "No CUDA GPU is found here" in words(page)
    assert "About 6,000 epochs of 1 step." in words(page)
    (command,) = [code.value for code in page.code if code.value.startswith("samsvae train")]
    path = uploads.resolve(data)
    name = name_box(page).value
    assert command == (
        f"samsvae train {path} --perturbation-key=perturbation --delimiter=+ --top-genes 30 "
        f"--output runs/{name} --latents=6"
    )


def test_genes_of_a_list_are_counted_as_far_as_the_file_has_them(data, screen, monkeypatch):
    genes = uploads.save_genes(f"{screen.data.genes[0]}, {screen.data.genes[5]}, NOGENE")
    once, read = [], sandbox.validated
    monkeypatch.setattr(sandbox, "validated", lambda reading: once.append(1) or read(reading))
    assert "600 cells, 2 genes" in words(shown(data, key="perturbation", genes=genes))
    assert "600 cells, 2 genes" in words(shown(data, key="perturbation", genes=genes, top="30"))
    assert len(once) == 1


@pytest.mark.parametrize("top", ["1", "-3", "many"])
def test_a_number_of_genes_that_is_none_is_said_and_ignored(data, top):
    page = shown(data, key="perturbation", top=top)
    assert finished(page)
    assert f"asks for {plain(top)} most variable genes; all are kept" in page.info[0].value
    assert "--top-genes" not in words(page)


def test_no_more_steps_are_suggested_than_may_be_chosen(data, monkeypatch):
    options = ReadOptions(perturbation_key="perturbation")
    report = sandbox.validated(reading_module.Reading(data, options))
    many = report | {"n_cells": 10**7}
    monkeypatch.setattr(sandbox, "validated", lambda reading: many)
    page = shown(data, key="perturbation", train_batch="16")
    assert not page.exception
    assert box(page, "train_steps").value == 1_000_000


def test_a_training_is_started_as_asked_and_followed(data, folder):
    page = shown(data)
    page.selectbox(key="train_model").select("svae-plus").run()
    box(page, "train_steps").set_value(70).run()
    button(page, "start").click().run()
    assert finished(page)
    assert not page.error
    (job,) = queue.look(folder)
    assert job.name.endswith("svae-plus")
    training(folder, job.name)
    given = starts(folder, job.name)[0]
    assert "--model=svae-plus --latents=6 --steps=70" in given
    assert f"train {uploads.resolve(data)} --output={job.path} --device=cpu" in given
    assert page.selectbox(key="run").value == job.name
    write_history(job.path)
    page.run()
    assert "**Running** on cpu, epoch 4" in words(page)
    assert [len(figure["data"]) for figure in figures(page)] == [3, 2]
    button(page, "stop_run").click().run()
    become(folder, job.name, "stopped")
    page.run()
    button(page, "resume_run").click().run()
    training(folder, job.name)
    assert starts(folder, job.name)[1].endswith("--resume")


def test_curves_keep_their_zoom_from_one_epoch_to_the_next(folder):
    submitted = folder / "mine"
    submitted.mkdir()
    (submitted / "status.json").write_text('{"state": "stopped"}')
    seen = []
    for n in (3, 4):
        write_history(submitted, n)
        drawn = opened("train", {"run": "mine"}).get("plotly_chart")
        seen.append([json.loads(chart.proto.spec)["layout"]["uirevision"] for chart in drawn])
    assert seen == [["mine", "mine"]] * 2


@pytest.mark.parametrize(("here", "said"), [("cpu", True), ("cuda", False)])
def test_a_run_of_a_gpu_says_that_it_goes_on_without_one(folder, monkeypatch, here, said):
    run = folder / "mine"
    run.mkdir()
    (run / "status.json").write_text('{"state": "stopped", "device": "cuda:0"}')
    job = {"data": "x.h5ad", "arguments": [], "device": "cuda", "asked": "nothing"}
    (run / "job.json").write_text(json.dumps(job))
    monkeypatch.setattr(time_estimate, "device", lambda: here)
    page = opened("train", {"run": "mine"})
    assert finished(page)
    assert ("so it continues on the CPU" in words(page)) is said


def test_a_second_one_waits_visibly_and_can_leave_the_queue(data, folder):
    page = shown(data)
    button(page, "start").click().run()
    first = page.selectbox(key="run").value
    button(page, "start").click().run()
    second = page.selectbox(key="run").value
    assert second == f"{first}-2"
    assert "Waits for its turn" in words(page)
    table = page.dataframe[-1].value
    assert table["training"].tolist() == [first, second]
    button(page, "stop_run").click().run()
    assert runs.find(folder, second).state == "stopped"
    button(page, "discard_run").click().run()
    assert finished(page)
    assert not (folder / second).exists()


def test_a_name_that_is_none_starts_nothing(data, folder):
    page = shown(data)
    name_box(page).set_value("../../etc").run()
    assert button(page, "start").disabled
    assert "This is not a valid name for a run" in words(page)
    assert queue.look(folder) == []


def test_what_ended_badly_says_why_and_shows_its_log_as_text(data, folder):
    button(shown(data), "start").click().run()
    (job,) = queue.look(folder)
    training(folder, job.name)
    with (job.path / "log.txt").open("a") as log:
        log.write("<b>bold</b> \x1b[31m**red**\n")
    end(folder, job.name, "failed")
    page = shown(data, run=job.name)
    assert "The loss became nan" in page.error[0].value.replace("\\", "")
    assert any("<b>bold</b> **red**" in code.value for code in page.code)


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"[]", b'{"steps": 1e400, "epoch": -1}'])
@pytest.mark.parametrize("name", ["job.json", "status.json", "history.csv", "log.txt"])
def test_a_damaged_run_is_shown_as_well_as_can_be(folder, name, content):
    path = folder / "odd"
    path.mkdir()
    (path / "job.json").write_text('{"data": "/d.h5ad", "arguments": [], "asked": "nothing"}')
    (path / "status.json").write_text('{"state": "stopped", "epoch": 3, "message": "<b>"}')
    write_history(path)
    (path / name).write_bytes(content)
    page = opened("train")
    assert finished(page)
    assert page.selectbox(key="run").value == "odd"


def test_a_finished_run_opens_and_is_one_zip(folder, tiny):
    shutil.copytree(tiny.path, folder / "mine")
    page = opened("train")
    assert finished(page)
    assert not page.error
    assert "**Finished** on cpu" in words(page)
    with zipfile.ZipFile(io.BytesIO(results.packed(folder / "mine"))) as packed:
        names = set(packed.namelist())
    listed = layout.read_manifest(folder / "mine")["files"]
    assert names == {f"mine/{name}" for name in [*listed, "manifest.json"]}
    page = opened("overview", {"model": "mine"})
    assert finished(page)
    assert page.selectbox(key="model").value == "mine"


def test_a_run_copied_here_is_shown_with_how_to_go_on(folder):
    (folder / "copied").mkdir()
    (folder / "copied" / "status.json").write_text('{"state": "training", "boot": "other"}')
    page = opened("train")
    assert "comes from another machine" in words(page)
    assert "--resume" in words(page)
    assert not [b for b in page.button if b.key == "resume_run"]


def test_a_gpu_is_taken_where_there_is_one(data, folder, monkeypatch):
    on(monkeypatch, GPU)
    page = shown(data)
    assert "A GPU is here: NVIDIA <b>H100</b>, 80 GB" in words(page)
    button(page, "start").click().run()
    (job,) = queue.look(folder)
    training(folder, job.name)
    assert "--device=cuda" in starts(folder, job.name)[0]


def test_a_timing_that_failed_hides_no_gpu_and_is_tried_again(data, monkeypatch):
    on(monkeypatch, None)
    monkeypatch.setattr(time_estimate, "device", lambda: "cuda")
    page = shown(data)
    assert page.selectbox(key="train_device").value == "cuda"
    assert "A GPU is here: it could not be timed" in words(page)
    monkeypatch.setattr(training_module, "measured", lambda threads: GPU)
    assert "H100" in words(page.run())


def test_data_that_cannot_be_read_are_refused_in_words(folder):
    page = shown("uploads/gone.h5ad")
    assert "There is no file" in page.error[0].value.replace("\\", "")
    assert not [b for b in page.button if b.key == "start"]


def test_the_data_of_the_page_data_are_taken_up(data):
    page = shown(data)
    page.switch_page("views/data.py")
    page.query_params.clear()
    page.query_params.update({"data": data, "delimiter": "_"})
    page.run()
    page.query_params.clear()
    page.switch_page("views/train.py").run()
    assert finished(page)
    assert f"data={quote(data, safe='')}&key=perturbation&delimiter=_" in page.query_params["on"]
    assert "--delimiter=_" in page.code[0].value
    again = opened("train", {"on": page.query_params["on"]})
    assert "--delimiter=_" in again.code[0].value


def test_settings_are_those_of_the_address(data):
    page = shown(data, train_latents="3", train_model="cpa-vae")
    assert box(page, "train_latents").value == 3
    assert "--model=cpa-vae --latents=3" in page.code[0].value
    assert not [n for n in page.number_input if n.key == "train_evidence"]


def test_direct_effects_are_chosen_where_a_model_can_have_them(data):
    page = shown(data)
    assert page.selectbox(key="train_direct").value == "sparse"
    assert "--direct-effects" not in page.code[0].value
    page.selectbox(key="train_direct").select("own-target").run()
    assert "--direct-effects=own-target" in page.code[0].value
    assert "may move only its own gene directly" in words(page)
    page.selectbox(key="train_model").select("svae-plus").run()
    assert not [box for box in page.selectbox if box.key == "train_direct"]
    assert "--direct-effects" not in page.code[0].value


def test_item_03_numbers_suggested_for_a_file_are_not_taken_over_by_another(data, tmp_path):
    path = write(tmp_path / "other.h5ad", np.repeat(["ctrl", "A", "B"], 40), np.ones((120, 4)))
    other = uploads.save(io.BytesIO(path.read_bytes()), "other.h5ad", path.stat().st_size)
    page = shown(data)
    assert box(page, "train_latents").value == 6
    box(page, "train_latents").set_value(9).run()
    assert page.query_params["train_latents"] == "9"
    page.query_params["data"] = other
    del page.query_params["train_latents"]
    page.run()
    assert finished(page)
    assert box(page, "train_latents").value == 5
    assert "train_latents" not in page.query_params


# Estimates


def test_estimates_grow_with_what_is_to_be_done():
    size = time_estimate.Size(20_000, 300, 1_000.0, 6_000)
    assert time_estimate.seconds(CPU, size) == pytest.approx(
        6000 * (0.01 + 1e-7 * 512 * 300) + 6000 / 25 * 1e-7 * 300 * 3200 * 2 / 3
    )
    for change in ({"steps": 7_000}, {"n_genes": 400}, {"hidden": 800}, {"particles": 2}):
        assert time_estimate.seconds(CPU, size._replace(**change)) > time_estimate.seconds(
            CPU, size
        )
    for change in ({"n_cells": 30_000}, {"batch_size": 1024}, {"counts_per_cell": 2_000.0}):
        assert time_estimate.memory(size._replace(n_genes=2_000, **change)) > time_estimate.memory(
            size._replace(n_genes=2_000)
        )


@pytest.mark.parametrize(
    ("found", "words_of_it"), [(3, "10 seconds"), (100, "2 minutes"), (9_000, "2.5 hours")]
)
def test_times_are_said_roundly(found, words_of_it):
    assert time_estimate.in_words(found) == words_of_it


def test_the_pace_of_this_machine_is_found_out_in_another_process(monkeypatch):
    found = time_estimate.measured(1)
    assert found is not None
    assert found.memory > 1e8
    assert 0 < found.fixed + found.each < 10
    monkeypatch.setattr(time_estimate.sys, "executable", "/no/such/program")
    assert time_estimate.measured(1) is None


def test_a_name_of_a_shipped_model_is_refused(data, folder, tiny, monkeypatch):
    monkeypatch.setenv("SAMSVAE_MODELS", str(tiny.path.parent))
    page = shown(data)
    name_box(page).set_value("tiny").run()
    button(page, "start").click().run()
    assert "is already a model called" in page.error[0].value
    assert queue.look(folder) == []
    with pytest.raises(OutputError):
        queue.stop(folder, "tiny")
    assert json.loads((tiny.path / "status.json").read_text())["state"] == "finished"


def test_a_word_of_the_address_that_no_option_has_is_said(data):
    page = opened("train", {"data": data, "key": "perturbation", "likelihood": "poisson"})
    assert "The address asks for the likelihood poisson, which is not here." in words(page)
