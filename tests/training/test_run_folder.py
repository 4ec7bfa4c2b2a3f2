"""How `samsvae train` ends, asked or not: messages, status.json, and resuming."""

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from samsvae_core.cli import main as cli
from samsvae_core.cli import train as cli_train
from samsvae_core.data.cells import DataError
from samsvae_core.pipeline import train as pipeline
from samsvae_core.system.files import atomic_write
from samsvae_core.training import run_folder, steps
from samsvae_core.training.config import Stop, TrainConfig

ROOT = Path(__file__).parents[2]
TINY = ["--steps", "12", "--latents", "3", "--hidden", "6", "--batch-size", "128"]
SAME = ("weights.safetensors", "masks.csv", "history.csv")


@pytest.fixture
def train(monkeypatch, capfd, screen, quick_tables):
    """Return a function that runs `samsvae train`; it returns exit code, output and errors."""

    def trained(folder, *options, data=screen.path):
        arguments = ["samsvae", "train", str(data), "-o", str(folder), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capfd.readouterr()
        assert "Traceback" not in said.out + said.err
        return ended.value.code or 0, said.out, said.err

    return trained


@pytest.fixture(scope="module")
def whole(screen, quick_tables, tmp_path_factory):
    """Return an undisturbed run of the same settings."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["samsvae", "train", str(screen.path), "-o", str(folder), *TINY])
        with pytest.raises(SystemExit):
            cli.main()
    return folder


def status(folder):
    return json.loads((folder / "status.json").read_text())


def goes_on_as_if_nothing_had_happened(train, folder, whole):
    code, out, _ = train(folder, "--resume")
    assert code == 0
    assert f"Wrote {folder}" in out
    assert status(folder)["state"] == "finished"
    assert status(folder)["message"] == ""
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def signalled(monkeypatch, epoch, times=1, number=signal.SIGTERM):
    """Send the signal to stop while the epoch after this one is trained."""

    def line(progress):
        if progress.epoch == epoch:
            for _ in range(times):
                os.kill(os.getpid(), number)

    monkeypatch.setattr(cli_train, "progress_line", line)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_at_the_end_of_an_epoch(
    train, whole, tmp_path, monkeypatch, number, code, screen
):
    before = signal.getsignal(number)
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        signalled(patch, 1, number=number)
        ended, out, err = train(folder, *TINY)
    assert ended == code
    assert "Stopping at the end of this epoch" in err
    assert "up to epoch 1 is kept" in out
    assert f"samsvae train {screen.path} --output {folder} --resume" in out
    assert status(folder)["state"] == "stopped"
    assert signal.getsignal(number) == before
    goes_on_as_if_nothing_had_happened(train, folder, whole)


def test_a_second_signal_stops_within_the_epoch(train, whole, tmp_path, monkeypatch):
    folder, rates = tmp_path / "run", steps.set_learning_rates

    def twice(optimizer, config, step):
        if step == 5:  # the second step of the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        rates(optimizer, config, step)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "set_learning_rates", twice)
        code, out, _ = train(folder, *TINY)
    assert code == 143
    assert "up to epoch 1 is kept" in out
    goes_on_as_if_nothing_had_happened(train, folder, whole)


def test_a_signal_while_tables_are_made_stops_at_once(train, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run"

    def tables(*_, **__):
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "build_bundle", tables)
        assert train(folder, *TINY)[0] == 143
    assert status(folder)["state"] == "stopped"
    goes_on_as_if_nothing_had_happened(train, folder, whole)


def test_item_14_a_signal_that_a_compiler_swallows_is_not_lost(train, whole, tmp_path, monkeypatch):
    """While numba compiles UMAP, for example, an exception from a signal handler is dropped."""
    folder, lost = tmp_path / "run", []

    @ctypes.CFUNCTYPE(None)
    def called_from_c():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

    def tables(*_, **__):
        called_from_c()
        for _ in range(3000):
            time.sleep(0.01)
        raise AssertionError("it went on")

    with monkeypatch.context() as patch:
        patch.setattr(sys, "unraisablehook", lost.append)
        patch.setattr(run_folder.Stopper, "AGAIN", 0.1)
        patch.setattr(pipeline, "build_bundle", tables)
        assert train(folder, *TINY)[0] == 143
    assert [each.exc_type for each in lost] == [Stop]
    assert status(folder)["state"] == "stopped"
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    goes_on_as_if_nothing_had_happened(train, folder, whole)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 9 TiB"), "not enough memory here"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), "on the GPU"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory here"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "--device cpu"),
        (OSError(28, "No space left on device"), "The disk is full"),
        (OSError(27, "File too large"), "The disk is full"),
    ],
)
def test_what_runs_out_is_said_with_what_to_change(
    train, whole, tmp_path, monkeypatch, error, words
):
    folder = tmp_path / "run"

    def line(progress):
        if progress.epoch == 2:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "progress_line", line)
        code, _, err = train(folder, *TINY)
    assert code == 2
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err
    assert words in status(folder)["message"]
    assert (status(folder)["state"], status(folder)["epoch"]) == ("failed", 2)
    goes_on_as_if_nothing_had_happened(train, folder, whole)


def test_an_error_of_the_program_itself_is_not_hidden(train, tmp_path, monkeypatch):
    def line(progress):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(cli_train, "progress_line", line)
    with pytest.raises(RuntimeError, match="mat1"):
        train(tmp_path / "run", *TINY)
    assert status(tmp_path / "run")["message"].startswith("RuntimeError: mat1")


def test_a_limit_of_file_sizes_ends_with_a_message_and_nothing_is_lost(
    train, whole, screen, tmp_path
):
    """As on a full disk, the checkpoint no longer fits, but status.json and the history do."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "samsvae_core", "train", str(screen.path), "-o", str(folder)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_000, 16_000))

    ended = subprocess.run(
        command + TINY, preexec_fn=limit, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert "The disk is full, or a limit of file sizes" in ended.stderr
    assert status(folder)["state"] == "failed"
    assert not list(folder.rglob(".*"))
    goes_on_as_if_nothing_had_happened(train, folder, whole)


def test_a_status_is_told_even_where_nothing_new_can_be_written(tmp_path, monkeypatch):
    run_folder.write_status(tmp_path, {"state": "training", "note": "x" * 100})

    def full(path, content):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise run_folder.OutputError("Cannot write") from error

    monkeypatch.setattr(run_folder, "atomic_write", full)
    run_folder.write_status(tmp_path, {"state": "failed"})
    assert status(tmp_path) == {"state": "failed"}


def test_a_job_that_cannot_read_its_data_has_failed_and_says_why(train, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.json").write_text("{}")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    code, _, err = train(folder, *TINY, data=tmp_path / "text.h5ad")
    assert code == 2
    assert status(folder)["state"] == "failed"
    assert status(folder)["message"] in err


def test_a_job_begins_in_its_folder_and_again_where_it_was_killed_early(train, whole, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("job.json", "log.txt", "split.csv", ".genes.csv.a1b2c3d4"):
        (folder / name).write_text("{}")
    assert train(folder, *TINY)[0] == 0
    assert (folder / SAME[0]).read_bytes() == (whole / SAME[0]).read_bytes()
    assert not (folder / ".genes.csv.a1b2c3d4").exists()


def test_a_folder_of_other_things_is_left_alone(train, tmp_path):
    (tmp_path / "split.csv").write_text("mine")
    code, _, err = train(tmp_path, *TINY)
    assert code == 2
    assert "exists already" in err
    assert [path.name for path in tmp_path.iterdir()] == ["split.csv"]


def test_what_was_left_half_written_is_removed_and_nothing_else(tmp_path):
    for name in (".history.csv.k3_x9a0b", "checkpoints/.last.safetensors.abcdefgh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        atomic_write(tmp_path / name, b"")
    kept = [".DS_Store", ".names.json", "history.csv", ".backup.tar.gz"]
    for name in kept:
        (tmp_path / name).write_text("")
    run_folder.sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "checkpoints"])
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize("what", ["counts", "perturbations"])
def test_a_run_resumed_on_data_that_differ_is_refused(screen, quick_tables, tmp_path, what):
    def stop(progress):
        raise Stop

    settings = TrainConfig(steps=8, batch_size=128)
    folder = tmp_path / "run"
    model = {"n_latent": 2, "n_hidden": 4}
    with pytest.raises(Stop):
        pipeline.train(screen.data, screen.parts, folder, model, settings, on_epoch=stop)
    data = screen.data
    if what == "counts":
        counts = data.counts.copy()
        counts.data[7] += 1
        other = replace(data, counts=counts)
    else:
        turned = np.roll(np.arange(len(data.perturbations)), 1)
        other = replace(data, dosages=data.dosages[:, turned])
    with pytest.raises(DataError, match=f"The {what} are not those the run was started with"):
        pipeline.resume(other, folder)
    assert status(folder)["state"] == "failed"
    assert pipeline.resume(data, folder).name == "run"
