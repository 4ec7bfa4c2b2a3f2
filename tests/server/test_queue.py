import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.server import queue, runs
from samsvae_core.system import files, machine
from samsvae_core.system.files import OutputError
from samsvae_core.training import run_folder
from samsvae_core.training.config import Progress

TRAINER = Path(__file__).parents[1] / "trainer.py"
GARBAGE = [b"", b"\xff\xfe\x00garbage", b"[1, 2]", b"{", b'{"pid": "x", "steps": []}', b"null"]
GARBAGE += [b'{"pid": 1e99, "step": -1, "steps": NaN, "epoch": true, "state": 7, "place": "a"}']
GARBAGE += [b'{"arguments": {}, "data": 3, "asked": ["start"], "device": 5}', b"[" * 100_000]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty runs folder whose jobs run the stand-in; all are ended after the test."""
    monkeypatch.setattr(queue, "PROGRAM", (sys.executable, str(TRAINER)))
    place = tmp_path / "runs"
    place.mkdir()
    yield place
    ended_all(place)


def ended_all(folder):
    """End all processes of these runs."""
    for job in runs.listed(folder):
        for name in ("job.json", "status.json"):
            content = run_folder.read_object(job.path / name)
            if run_folder.alive(content) and content["pid"] != os.getpid():
                os.kill(content["pid"], signal.SIGKILL)
    for _, child in queue._children:
        child.kill()
        child.wait()
    queue._children.clear()


def submit(folder, name="a", **options):
    return queue.submit(folder, name, folder / "cells.h5ad", ["--steps", "100"], **options)


def become(folder, name, state, phase=None):
    """Look until the run is in this state, and return it."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = {job.name: job for job in queue.look(folder)}[name]
        if found.state == state and phase in (None, found.phase):
            return found
        time.sleep(0.01)
    raise AssertionError(f"{name} is {found.state} {found.phase}, not {state}")


def training(folder, name="a"):
    return become(folder, name, "running", "training")


def pid_of(job):
    return run_folder.read_status(job.path)["pid"]


def end(folder, name, state="finished"):
    (folder / name / "end.new").write_text(state)
    (folder / name / "end.new").rename(folder / name / "end")  # never seen empty
    return become(folder, name, state)


def starts(folder, name="a"):
    return (folder / name / "starts.txt").read_text().splitlines()


# The queue


def test_a_job_is_started_with_what_was_asked_and_is_seen_to_train(folder):
    submit(folder)
    job = training(folder)
    assert (job.step, job.steps, job.epoch, job.seconds_left) == (40, 100, 4, 30)
    assert job.data == str(folder / "cells.h5ad")
    assert starts(folder) == [
        f"train {job.data} --output={job.path} --device=cpu --threads {queue.n_threads()} "
        "--steps 100"
    ]
    assert os.getsid(pid_of(job)) == pid_of(job)
    assert os.getpriority(os.PRIO_PROCESS, pid_of(job)) == queue.NICE
    assert end(folder, "a").state == "finished"
    assert runs.end_of_log(job.path) == "training\n"


def test_a_container_trains_with_the_processors_that_it_has(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert (machine.whole_cores(), queue.n_threads()) == (64, 63)
    (tmp_path / "cpu.max").write_text("450000 100000\n")
    assert (machine.whole_cores(), queue.n_threads()) == (4, 3)
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert (machine.whole_cores(), queue.n_threads()) == (1, 1)


def test_one_runs_at_a_time_on_a_device_and_others_wait_in_their_order(folder):
    for name in ("c", "a", "b"):
        submit(folder, name)
    submit(folder, "gpu", device="cuda")
    training(folder, "c")
    training(folder, "gpu")  # another device
    assert [(j.name, j.state) for j in queue.look(folder) if j.state == "waiting"] == [
        ("b", "waiting"),
        ("a", "waiting"),
    ]
    end(folder, "c", "failed")
    training(folder, "a")
    assert runs.find(folder, "b").state == "waiting"
    queue.stop(folder, "b")
    end(folder, "a")
    assert become(folder, "b", "stopped").step == 0
    assert not (folder / "b" / "starts.txt").exists()


def test_a_run_of_the_command_line_keeps_the_device_busy(folder):
    (folder / "mine").mkdir()
    (folder / "mine" / "status.json").write_text(
        json.dumps({"state": "training", **run_folder.process(os.getpid())._asdict()})
    )
    assert submit(folder).state == "waiting"
    assert runs.find(folder, "mine").state == "running"
    assert not runs.find(folder, "mine").is_own


def test_many_who_start_the_same_at_once_start_it_once(folder):
    gate, made = threading.Barrier(8), []

    def visitor():
        gate.wait()
        try:
            made.append(submit(folder).name)
        except OutputError as error:
            made.append(str(error))
        queue.look(folder)

    threads = [threading.Thread(target=visitor) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made)[:7] == ["There is already a run a. Choose another name."] * 7
    training(folder)
    assert len(starts(folder)) == 1
    end(folder, "a", "failed")
    gate = threading.Barrier(8)

    def again():
        gate.wait()
        queue.resume(folder, "a")

    threads = [threading.Thread(target=again) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    training(folder)
    assert len(starts(folder)) == 2


def test_a_folder_is_trained_in_by_one_process_only(tmp_path):
    program = (
        "import fcntl, os, sys, time\n"
        "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX)\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match="Another process"), run_folder.recorded(tmp_path):
            pass
        assert not (tmp_path / "status.json").exists()
        other.kill()  # the system takes the lock from whoever ends
        other.wait()
    with run_folder.recorded(tmp_path):
        assert run_folder.read_status(tmp_path)["pid"] == os.getpid()
    assert run_folder.read_status(tmp_path)["state"] == "finished"


def test_too_many_do_not_wait(folder, monkeypatch):
    monkeypatch.setattr(queue, "MOST_WAITING", 1)
    submit(folder, "a")
    submit(folder, "b")
    with pytest.raises(OutputError, match="1 runs are already waiting"):
        submit(folder, "c")
    assert not (folder / "c").exists()


# Ends


def test_a_stopped_run_is_resumed_with_its_settings(folder):
    submit(folder)
    training(folder)
    assert queue.stop(folder, "a").state in ("stopping", "stopped")
    assert become(folder, "a", "stopped").epoch == 4
    assert queue.resume(folder, "a").state == "running"
    job = training(folder)
    assert starts(folder)[1].endswith("--resume")
    assert "--steps" not in starts(folder)[1]
    assert queue.resume(folder, "a").state == "running"  # nothing happens twice
    assert len(starts(folder)) == 2
    assert job.message == ""


def test_what_device_a_run_was_on_is_known_when_it_goes_on(folder, monkeypatch):
    submit(folder)
    training(folder)
    queue.stop(folder, "a")
    become(folder, "a", "stopped")
    status = run_folder.read_status(folder / "a")
    run_folder.write_status(folder / "a", status | {"device": "cuda:0"})
    monkeypatch.setattr(queue, "PROGRAM", (sys.executable, "-c", ""))
    queue.resume(folder, "a")
    assert run_folder.read_status(folder / "a")["device"] == "cuda:0"


def test_a_run_is_stopped_at_once_on_demand(folder):
    submit(folder)
    pid = pid_of(training(folder))
    queue.stop(folder, "a", at_once=True)
    assert become(folder, "a", "stopped").message == ""
    assert run_folder.process(pid) is None


def test_a_failed_run_says_why(folder):
    submit(folder)
    training(folder)
    assert end(folder, "a", "failed").message == "The loss became nan."


def test_a_killed_run_is_dead_says_so_and_is_resumed(folder):
    submit(folder)
    os.kill(pid_of(training(folder)), signal.SIGKILL)
    job = become(folder, "a", "dead")
    assert "signal 9), most often because memory ran out" in queue.look(folder)[0].message
    assert "the 4 epochs trained so far are kept" in job.message
    queue.resume(folder, "a")
    training(folder)


def test_an_error_before_a_run_begins_is_not_taken_for_a_kill(folder, monkeypatch):
    monkeypatch.setattr(queue, "PROGRAM", (sys.executable, "-c", "raise SystemExit(2)"))
    submit(folder)
    become(folder, "a", "dead")
    assert "ended with an error (exit 2)" in queue.look(folder)[0].message


def test_a_job_outlives_the_server_that_started_it(folder):
    program = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom app.server import queue\n"
        "folder, trainer = map(Path, sys.argv[1:])\n"
        "queue.PROGRAM = (sys.executable, str(trainer))\n"
        "queue.submit(folder, 'a', folder / 'cells.h5ad', [])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", program, str(folder), str(TRAINER)]
    ended = subprocess.run(command, check=False, cwd=TRAINER.parents[1])
    assert ended.returncode == -signal.SIGKILL
    job = training(folder)
    assert run_folder.process(pid_of(job)) is not None
    assert end(folder, "a").state == "finished"
    assert len(starts(folder)) == 1


def test_a_number_used_again_is_not_the_process(folder):
    """If another process has the number, the run is dead, and nothing is signalled."""
    submit(folder)
    os.kill(pid_of(training(folder)), signal.SIGKILL)
    become(folder, "a", "dead")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        for name in ("job.json", "status.json"):
            path = folder / "a" / name
            path.write_text(json.dumps(json.loads(path.read_text()) | {"pid": other.pid}))
        assert runs.find(folder, "a").state == "dead"
        queue.stop(folder, "a", at_once=True)
        assert other.poll() is None
        other.communicate(b"\n")
    assert other.returncode == 0


def test_a_process_that_has_ended_unheard_is_not_alive():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = run_folder.process(child.pid)
        assert run_folder.alive(known._asdict())
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert Path(f"/proc/{child.pid}/stat").exists()
        assert not run_folder.alive(known._asdict())


def test_processes_are_known_where_there_is_no_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, "PROC", tmp_path / "none")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        found = run_folder.process(child.pid)
        assert (found.pid, found.boot) == (child.pid, "")
        assert run_folder.alive(found._asdict())
        assert not run_folder.alive(found._replace(started="1.0")._asdict())
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert run_folder.process(child.pid) is None
    assert run_folder.process(child.pid) is None


def test_a_run_from_another_machine_is_not_taken_for_a_living_one(folder):
    submit(folder)
    job = training(folder)
    path = folder / "copy"
    path.mkdir()
    content = run_folder.read_status(job.path)
    (path / "status.json").write_text(json.dumps(content | {"boot": "of another machine"}))
    copy = runs.find(folder, "copy")
    assert copy.state == "dead"
    assert "comes from another machine" in copy.message
    with pytest.raises(OutputError, match=r"was not started here. .*--resume"):
        queue.resume(folder, "copy")


@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_moves_changes_nothing(folder, monkeypatch, years):
    submit(folder, "a")
    training(folder, "a")
    submit(folder, "b")
    moved = time.time() + years * 365 * 86400
    for path in folder.rglob("*"):
        os.utime(path, (moved, moved))
    monkeypatch.setattr(time, "time", lambda: moved)
    submit(folder, "c")
    found = [(job.name, job.state) for job in queue.look(folder)]
    assert found == [("c", "waiting"), ("b", "waiting"), ("a", "running")]
    assert runs.find(folder, "a").seconds_left == 30
    end(folder, "a")
    training(folder, "b")


def test_a_job_that_cannot_be_started_says_so(folder, monkeypatch):
    monkeypatch.setattr(queue, "PROGRAM", (str(folder / "no such program"),))
    job = submit(folder)
    assert job.state == "failed"
    assert "could not be started" in job.message


# What is found in folders


@pytest.mark.parametrize("content", GARBAGE)
@pytest.mark.parametrize("name", ["job.json", "status.json"])
def test_damaged_files_are_no_error(folder, name, content):
    path = folder / "a"
    path.mkdir()
    (path / "job.json").write_text('{"data": "/d.h5ad", "arguments": [], "asked": "nothing"}')
    (path / "status.json").write_text('{"state": "stopped", "epoch": 3}')
    (path / name).write_bytes(content)
    (job,) = queue.look(folder)
    assert job.state in ("stopped", "dead")
    assert not (path / "log.txt").exists()
    queue.stop(folder, "a")
    queue.discard(folder, "a")
    assert queue.look(folder) == []


def write_history(path, text):
    (path / "history.csv").write_bytes(text)
    return runs.history(path)


def test_a_history_is_read_as_far_as_it_can_be(tmp_path):
    rows = [Progress(i, 10 * i, -5.0 - i, 1, 1, -6.0, 7, 3, 0.5, 0.0) for i in (1, 2, 3)]
    whole = pd.DataFrame(rows).to_csv(index=False).encode()
    found = write_history(tmp_path, whole)
    np.testing.assert_array_equal(found.to_numpy(float), np.array(rows, dtype=float))
    head, _, rest = whole.partition(b"\n")
    first, _, others = rest.partition(b"\n")
    for text, n in (
        (whole[:-12], 2),  # broken off
        (whole + b"4,nan,x,,,\n", 3),
        (whole + b"1,2,3,4,5,6,7,8,9,10,11,12\n", 3),
        (head + b"\n" + first + b"\n" + first + b"\n" + others, 3),
        (whole.replace(b"-6.0", b"inf"), 0),
        (b"\x00\xff" * 100, 0),
        (b"", 0),
        (b"a,b\n1,2\n", 0),
        (b'"epoch,step\n1,2', 0),
    ):
        assert len(write_history(tmp_path, text)) == n, text
    (tmp_path / "history.csv").unlink()
    assert runs.history(tmp_path).empty


def test_the_end_of_a_log_is_plain_text_and_a_long_one_is_shortened(folder, monkeypatch):
    submit(folder)
    job = training(folder)
    with (job.path / "log.txt").open("ab") as log:
        log.write(b"\x1b[31mred\x1b[0m \x07<b>\xff\x9b ok\r\n" * 3)
    assert runs.end_of_log(job.path) == "training\n" + "red <b>\ufffd\ufffd ok\n" * 3
    assert runs.end_of_log(job.path, 30).startswith("red")
    monkeypatch.setattr(queue, "LONGEST_LOG", 1000)
    monkeypatch.setattr(queue, "KEPT_LOG", 100)
    with (job.path / "log.txt").open("ab") as log:
        log.write(b"line\n" * 300)
    queue.look(folder)
    assert (job.path / "log.txt").read_bytes() == b"line\n" * 20
    (job.path / "log.txt").unlink()
    (job.path / "log.txt").symlink_to("/etc/hostname")
    assert runs.end_of_log(job.path) == ""


# Names and places


NO_NAMES = ["", ".", "..", "../a", "a/b", "/tmp/a", "-a", ".a", "a.", "a\n", "a b", "a\0", "a\\b"]
NO_NAMES += ["x" * 65, "uploads", "Uploads", "\u00e9", "~", "%2e%2e"]


@pytest.mark.parametrize("name", NO_NAMES)
def test_names_that_are_none_are_refused_everywhere(folder, name):
    with pytest.raises(OutputError, match="is not a valid name for a run"):
        submit(folder, name)
    for ask in (queue.resume, queue.stop, queue.discard):
        with pytest.raises(OutputError, match="There is no run"):
            ask(folder, name)
    assert runs.find(folder, name) is None
    assert {path.name for path in folder.iterdir()} <= {queue.LOCK}


def test_discarding_removes_a_run_and_follows_no_link(folder, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "status.json").write_text('{"state": "stopped"}')
    submit(folder)
    training(folder)
    with pytest.raises(OutputError, match="Stop it first"):
        queue.discard(folder, "a")
    end(folder, "a", "failed")
    (folder / "a" / "inside").symlink_to(kept)
    (folder / "link").symlink_to(kept)
    for ask in (queue.discard, queue.resume):
        with pytest.raises(OutputError, match="There is no run 'link'"):
            ask(folder, "link")
    queue.discard(folder, "a")
    assert (kept / "status.json").exists()
    assert {path.name for path in folder.iterdir()} == {queue.LOCK, "link"}


def test_discarding_removes_what_an_earlier_one_left(folder):
    (folder / ".discarded-1").mkdir()
    (folder / ".discarded-1" / "manifest.json").write_text("{}")
    (folder / "a").mkdir()
    (folder / "a" / "status.json").write_text('{"state": "stopped"}')
    queue.discard(folder, "a")
    assert {path.name for path in folder.iterdir()} == {queue.LOCK}


def test_only_finished_runs_of_these_pages_are_discarded(folder):
    submit(folder)
    training(folder)
    end(folder, "a")
    (folder / "shipped").mkdir()
    for name in ("manifest.json", "status.json"):
        (folder / "shipped" / name).write_text('{"state": "finished"}')
    with pytest.raises(OutputError, match="was not trained from here"):
        queue.discard(folder, "shipped")
    queue.discard(folder, "a")
    assert [job.name for job in queue.look(folder)] == ["shipped"]


def test_only_models_that_were_brought_are_removed(folder, tmp_path):
    submit(folder)
    training(folder)
    end(folder, "a")
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "manifest.json").write_text("{}")
    (folder / "link").symlink_to(tmp_path / "shipped")
    (folder / "brought").mkdir()
    (folder / "brought" / "manifest.json").write_text("{}")
    (folder / "brought" / "brought").touch()
    (folder / "copied").mkdir()  # by the operator
    (folder / "copied" / "manifest.json").write_text("{}")
    for name in ("a", "link", "shipped", "copied", "../shipped", "", "uploads"):
        with pytest.raises(OutputError, match="only those can be removed"):
            queue.remove_model(folder, name)
    queue.remove_model(folder, "brought")
    assert {path.name for path in folder.iterdir()} == {queue.LOCK, "a", "copied", "link"}
    assert (tmp_path / "shipped" / "manifest.json").exists()


def test_a_place_below_a_file_is_said_and_only_looked_at(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="Set SAMSVAE_RUNS"):
        submit(tmp_path / "file" / "runs")
    assert queue.look(tmp_path / "file" / "runs") == []
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_without_locks_is_said(folder, monkeypatch):
    def none(*_, **__):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "lock_descriptor", none)
    with pytest.raises(OutputError, match=r"Operation not supported.* a file system with locks"):
        submit(folder)
    assert queue.look(folder) == []
    with run_folder.recorded(folder):  # one who trains there knows what they do
        assert run_folder.read_status(folder)["state"] == "reading"


def test_a_disk_with_no_room_begins_nothing(folder, monkeypatch):
    monkeypatch.setattr(queue, "SPARE", 10**18)
    with pytest.raises(OutputError, match="MB free"):
        submit(folder)
    assert queue.look(folder) == []
