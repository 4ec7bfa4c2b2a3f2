import os
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from samsvae_core.bundle.opening import load
from samsvae_core.models.variants import MODELS
from samsvae_core.training import distributed
from samsvae_core.training.run_folder import read_status

SECONDS = 120  # for processes to end; far less than they wait for each other if told nothing


@pytest.fixture
def two(request, tmp_path):
    """Run tests/training/together.py in two processes; returns their exit codes and outputs."""
    program = request.path.parent / "together.py"

    def run(what):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        everyone = os.environ | {
            "PYTHONPATH": str(request.config.rootpath),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "SAMSVAE_TIMEOUT": "60",
        }
        processes = [
            subprocess.Popen(
                [sys.executable, str(program), what, str(tmp_path)],
                env=everyone | {"RANK": rank, "LOCAL_RANK": rank},
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]
        try:
            said = [process.communicate(timeout=SECONDS)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], said

    return run


def test_two_processes_take_the_steps_of_one_on_the_joined_batches(two, tmp_path, request):
    codes, said = two("steps")
    assert codes == [0, 0], said
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(second[name], value) for name, value in first.items())
    sys.path.insert(0, str(request.path.parent))
    try:
        import together
    finally:
        sys.path.pop(0)
    for name in MODELS:
        for key, value in together.weights_after_steps(name).items():
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-5)


def test_two_processes_stop_together_and_resume_as_if_never_stopped(two, tmp_path):
    codes, said = two("resume")
    assert codes == [0, 0], said
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(second[name], value) for name, value in first.items())


def test_where_a_process_dies_the_other_says_so_and_keeps_the_last_epoch(two, tmp_path):
    codes, said = two("die")
    assert codes == [1, 1]
    assert said[0].startswith("Error: Another process of this training has ended"), said
    assert pd.read_csv(tmp_path / "history.csv")["epoch"].tolist() == [1, 2]


def test_processes_that_find_different_checkpoints_say_so(two):
    codes, said = two("differ")
    assert codes == [1, 1]
    for text in said:
        assert "find different checkpoints, of epochs (6, 0)" in text


@pytest.mark.slow
def test_torchrun_trains_a_bundle_stops_and_resumes(tmp_path, request):
    data, run = tmp_path / "screen.h5ad", tmp_path / "run"
    command = [sys.executable, "-m"]
    said = {"check": True, "cwd": request.config.rootpath, "capture_output": True, "text": True}
    size = ["--cells", "300", "--genes", "30", "--perturbations", "4", "--combinations", "1"]
    subprocess.run([*command, "samsvae_core", "simulate", str(data), *size], **said)
    command += ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["samsvae_core", "train", str(data), "--output", str(run)]
    settings = ["--steps", "600", "--batch-size", "32", "--hidden", "16", "--latents", "3"]
    with subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (run / "history.csv").exists():
            time.sleep(0.1)
        process.terminate()
        assert "Go on with:" in process.communicate(timeout=SECONDS)[0]
    assert read_status(run)["state"] == "stopped"
    done = len(pd.read_csv(run / "history.csv"))
    again = subprocess.run([*command, "--resume"], **said)
    assert again.stdout.count("IWELBO") == 1  # the first process speaks
    assert done < len(pd.read_csv(run / "history.csv"))
    assert load(run).history["step"].iloc[-1] == 600


@pytest.mark.parametrize("n_processes", [1, 2, 3, 5])
@pytest.mark.parametrize("n_cells", [1, 2, 7, 12])
def test_the_weighted_mean_over_processes_is_that_of_the_batch(n_processes, n_cells, monkeypatch):
    monkeypatch.setattr(distributed, "together", lambda: True)
    monkeypatch.setattr(distributed, "size", lambda: n_processes)
    index = torch.arange(n_cells)
    value, found = torch.randn(n_cells, dtype=torch.float64), []
    for rank in range(n_processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        mine, weight = distributed.share(index)
        found.append(weight * value[mine].mean())
    torch.testing.assert_close(torch.stack(found).mean(), value.mean())


def test_alone_a_process_has_the_whole_batch_and_waits_for_nobody():
    index = torch.arange(3)
    assert distributed.share(index) == (index, 1.0)
    assert distributed.first()
    distributed.wait()
    distributed.check_same("files", 1)
    assert [distributed.anyone(asks) for asks in (True, False)] == [True, False]


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(ValueError, match=r"started 3 here, where there are 2\. Use --nproc-per"),
        distributed.group(torch.device("cuda")),
    ):
        pass


@pytest.mark.parametrize(("size", "is_lost"), [("2", True), ("1", False)])
def test_an_error_of_the_network_is_told_where_there_are_others(size, is_lost, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", size)
    with (
        pytest.raises(distributed.LostError if is_lost else RuntimeError),
        distributed.as_lost_error(),
    ):
        raise RuntimeError("[gloo] Connection closed by peer")
    with pytest.raises(RuntimeError, match="a bug") as error, distributed.as_lost_error():
        raise RuntimeError("a bug")
    assert not isinstance(error.value, distributed.LostError)
