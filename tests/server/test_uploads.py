import io
import json
import os
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

import app
from app.server import uploads
from app.server.reading import PARAMETERS, Reading
from samsvae_core.data.cells import DataError
from samsvae_core.data.read_options import DECLARED, ReadOptions
from samsvae_core.system.files import OutputError

CONTENT = b"\x89HDF\r\n\x1a\n" + bytes(range(256)) * 20


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMSVAE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("SAMSVAE_DATA_DIRS", raising=False)
    return tmp_path / "runs"


def keep(content=CONTENT, name="screen.h5ad"):
    return uploads.save(io.BytesIO(content), name, len(content))


def kept(runs):
    """Return all files below the folder of runs."""
    return sorted(p for p in runs.rglob("*") if p.is_file() and p.name != uploads.LOCK)


# Readings


EVERY = Reading(
    data="uploads/a.h5ad",
    options=ReadOptions(
        perturbation_key="gene target",
        control=("no+thing", "*x*"),
        delimiter="",
        layer="umi",
        gene_key="gene_name",
        size_factor_key="total",
        dosage_key="dose",
        replicate_key="lane",
        join_guides=True,
        drop_unlabelled=True,
        continuous=True,
    ),
    top_genes=500,
    genes="uploads/genes-1.txt",
)


OTHERS = replace(EVERY, options=replace(EVERY.options, layer=None, drop_unlabelled=False))


def test_every_choice_has_its_parameter():
    asked = {name for name, declared in DECLARED.items() if declared.parameter}
    assert {field.name for field in fields(ReadOptions)} - asked == {"counts_on"}
    assert len(set(PARAMETERS)) == len(asked) + 3
    assert all(declared.box for declared in DECLARED.values() if declared.parameter)


@pytest.mark.parametrize("reading", [EVERY, Reading("uploads/a.h5ad"), OTHERS])
def test_a_reading_comes_back_from_the_address(reading):
    assert Reading.from_query(reading.as_query()) == reading
    assert set(reading.as_query()) <= set(PARAMETERS)


def test_an_address_without_choices_or_with_odd_ones_is_the_usual_reading():
    assert Reading.from_query({}) == Reading("")
    for top in ("1", "-1", "1e9", "many", "0", "9" * 20):
        assert Reading.from_query({"data": "a", "top": top}) == Reading("a")
    odd = {"data": "a", "join": "x", "unlabelled": "by target", "likelihood": "poisson", "key": ""}
    assert Reading.from_query(odd) == Reading("a")
    assert Reading.from_query({"data": "a", "likelihood": "counts"}) == Reading("a")


def test_a_reading_is_told_to_the_command_line():
    genes = uploads.save_genes("STAT1, JAK2")
    told = replace(EVERY, genes=genes).arguments()
    assert told[:4] == [
        "--perturbation-key=gene target",
        "--control=no+thing",
        "--control=*x*",
        "--delimiter=",
    ]
    assert {"--join-guides", "--drop-unlabelled", "--likelihood=gaussian"} <= set(told)
    assert "--unlabelled-as-control" in OTHERS.reading_arguments()
    assert told[-4:] == ["--genes", str(uploads.resolve(genes, ".txt")), "--top-genes", "500"]
    assert Reading("uploads/a.h5ad").arguments() == []


def test_an_option_that_begins_with_a_dash_stays_a_value():
    assert Reading("a", ReadOptions(control=("--help",))).arguments() == ["--control=--help"]


def test_the_command_is_one_for_a_shell():
    data = keep()
    told = Reading(data, ReadOptions(control=("a; rm -rf",))).command()
    assert told == f"samsvae validate {uploads.resolve(data)} '--control=a; rm -rf'"


# Uploads


def test_an_upload_is_kept_whole_under_a_safe_name(runs):
    data = keep(name="../../my screen; (1).h5ad")
    path = uploads.resolve(data)
    assert path.read_bytes() == CONTENT
    assert path.parent == (runs / "uploads").resolve()
    assert path.name.startswith("my_screen_1-")
    assert [path] == kept(runs)


def test_the_same_content_is_kept_once(runs):
    assert keep() == keep()
    assert keep(CONTENT + b"more") != keep()
    assert len(kept(runs)) == 2


@pytest.mark.parametrize("name", ["", "...", "/", "\\", ".h5ad", "\0", "ü" * 500 + ".h5ad"])
def test_any_name_becomes_a_safe_one(runs, name):
    assert uploads.resolve(keep(name=name)).parent == (runs / "uploads").resolve()


def test_an_upload_over_the_limits_is_refused(runs, monkeypatch):
    monkeypatch.setenv("SAMSVAE_UPLOAD_MB", "1")
    with pytest.raises(OutputError, match="1,048,576 is the limit for an upload"):
        keep(bytes(2**20 + 1))
    monkeypatch.setenv("SAMSVAE_UPLOADS_TOTAL_MB", "1")
    keep(bytes(600_000))
    with pytest.raises(OutputError, match="uploads take 600,000 of 1,048,576 bytes"):
        keep(bytes(500_000))
    monkeypatch.setattr(uploads, "SPARE", 10**18)
    with pytest.raises(OutputError, match=r"the disk has .* bytes free"):
        keep()
    assert len(kept(runs)) == 1


@pytest.mark.parametrize("value", ["-1", "many", "1.5"])
def test_a_limit_that_is_no_number_is_told(monkeypatch, value):
    monkeypatch.setenv("SAMSVAE_UPLOAD_MB", value)
    with pytest.raises(OutputError, match=r"SAMSVAE_UPLOAD_MB is .*; expected whole megabytes"):
        keep()


@pytest.mark.parametrize("said", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_an_upload_of_another_length_than_said_leaves_nothing(runs, said):
    with pytest.raises(OutputError, match="Upload it again"):
        uploads.save(io.BytesIO(CONTENT), "a.h5ad", said)
    assert kept(runs) == []


def test_a_full_disk_is_told_and_leaves_nothing(runs):
    class Full(io.BytesIO):
        def read(self, size=-1):
            raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match="No space left on device"):
        uploads.save(Full(), "a.h5ad", 10)
    assert kept(runs) == []


def test_a_place_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAMSVAE_RUNS", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="Set SAMSVAE_RUNS to a folder"):
        keep()


def test_what_was_given_up_is_cleared_away(runs):
    keep()
    left = runs / "uploads" / ".incoming" / "left"
    left.write_bytes(b"half")
    keep(CONTENT + b"1")
    assert not left.exists()


UPLOADER = """
import io, os, sys
from app.server import uploads

class Slow(io.BytesIO):
    def read(self, size=-1):
        sys.stdout.write("under way\\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return super().read(size)

uploads.save(Slow(bytes(600_000)), "other.h5ad", 600_000)
"""


@pytest.fixture
def elsewhere(runs):
    """Run another server that has begun to receive 600,000 bytes and is stuck."""
    runs.mkdir()
    server = subprocess.Popen(
        [sys.executable, "-c", UPLOADER],
        cwd=Path(app.__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout.readline() == "under way\n"
    with server:
        yield server
        server.kill()


def test_item_20_what_another_server_receives_counts_and_what_a_dead_one_left_does_not(
    runs, monkeypatch, elsewhere
):
    monkeypatch.setenv("SAMSVAE_UPLOADS_TOTAL_MB", "1")
    with pytest.raises(OutputError, match="uploads take 600,000 of 1,048,576 bytes"):
        keep(bytes(500_000))
    assert len(kept(runs)) == 1  # it is not taken away either
    elsewhere.kill()
    elsewhere.wait()
    keep(bytes(500_000))
    assert uploads.used() == 500_000


def test_item_20_uploads_of_two_servers_do_not_wait_for_each_other(runs, elsewhere):
    keep()
    for _ in range(3):
        elsewhere.stdin.write("\n")
    elsewhere.stdin.flush()
    assert elsewhere.wait(timeout=60) == 0
    assert uploads.used() == 600_000 + len(CONTENT)


def test_an_upload_can_be_removed_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "a.h5ad").write_bytes(CONTENT)
    monkeypatch.setenv("SAMSVAE_DATA_DIRS", str(tmp_path / "lab"))
    data = keep()
    uploads.delete(data)
    with pytest.raises(DataError, match="There is no file"):
        uploads.resolve(data)
    with pytest.raises(DataError, match="only uploads can be removed"):
        uploads.delete("lab/a.h5ad")


def test_a_list_of_genes_is_kept_by_its_content():
    genes = uploads.save_genes("STAT1\nJAK2, IRF1;STAT1\tB2M")
    assert uploads.resolve(genes, ".txt").read_text() == "STAT1\nJAK2\nIRF1\nB2M\n"
    assert uploads.save_genes("STAT1 JAK2 IRF1 B2M") == genes
    for text in ("", " ,;\n", "x" * (uploads.MOST_GENES + 1)):
        with pytest.raises(DataError):
            uploads.save_genes(text)


def test_a_list_of_genes_needs_room_and_is_no_other_file(lab, monkeypatch):
    with pytest.raises(DataError, match="There is no file"):
        uploads.resolve("lab/notes.txt", ".txt")
    monkeypatch.setattr(uploads, "largest_total", lambda: 3)
    with pytest.raises(OutputError, match="no room for the list of genes"):
        uploads.save_genes("STAT1")


def test_an_upload_that_a_run_needs_is_not_removed(runs):
    data = keep()
    (runs / "a").mkdir()
    job = {"data": str(uploads.resolve(data)), "arguments": [], "asked": "nothing"}
    (runs / "a" / "job.json").write_text(json.dumps(job))
    with pytest.raises(DataError, match="needed by runs that have not finished: a"):
        uploads.delete(data)
    assert uploads.resolve(data).exists()


# Folders of the operator


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Make two folders that are allowed, and a file beside them that is not."""
    first, second = tmp_path / "one" / "lab", tmp_path / "two" / "lab"
    (first / "deep" / "er").mkdir(parents=True)
    second.mkdir(parents=True)
    for path in (first / "a.h5ad", first / "deep" / "er" / "b.h5ad", second / "c.h5ad"):
        path.write_bytes(CONTENT)
    (tmp_path / "secret.h5ad").write_bytes(b"secret")
    (first / "notes.txt").write_text("not data")
    monkeypatch.setenv("SAMSVAE_DATA_DIRS", f"{first}{os.pathsep}{second}{os.pathsep} ")
    return first


def listed():
    return [file.data for file in uploads.listing()]


def test_lists_data_below_the_folders_allowed(lab):
    data = keep()
    assert listed() == [data, "lab/a.h5ad", "lab/deep/er/b.h5ad", "lab 2/c.h5ad"]
    assert [uploads.resolve(each).read_bytes() for each in listed()] == [CONTENT] * 4
    assert uploads.listing()[0].size == len(CONTENT)


def test_a_folder_that_is_gone_lists_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMSVAE_DATA_DIRS", str(tmp_path / "nowhere"))
    assert listed() == []


@pytest.mark.parametrize(
    "data",
    [
        "",
        "lab",
        "lab/",
        "lab/nothing.h5ad",
        "lab/deep",
        "lab/notes.txt",
        "lab/../../secret.h5ad",
        "lab/deep/../a.h5ad",
        "lab//a.h5ad",
        "lab\\a.h5ad",
        "lab/a.h5ad\0",
        "lab/.hidden.h5ad",
        "lab/link.h5ad",
        "lab/linked/secret.h5ad",
        "lab/ring.h5ad",
        "lab/" + "x" * 5000 + ".h5ad",
        "elsewhere/a.h5ad",
        "/etc/passwd",
        "uploads/.incoming/a.h5ad",
    ],
)
def test_what_is_not_below_them_is_refused_with_one_message(lab, tmp_path, data):
    (lab / ".hidden.h5ad").write_bytes(CONTENT)
    (lab / "link.h5ad").symlink_to(tmp_path / "secret.h5ad")
    (lab / "linked").symlink_to(tmp_path)
    (lab / "ring.h5ad").symlink_to(lab / "ring.h5ad")
    with pytest.raises(DataError, match=r"There is no file .* among the data here"):
        uploads.resolve(data)
    assert data not in listed()


def test_a_path_that_is_absolute_within_an_id_is_refused(lab, tmp_path):
    with pytest.raises(DataError, match="among the data here"):
        uploads.resolve(f"lab/{tmp_path / 'secret.h5ad'}")


def test_a_link_that_stays_inside_is_followed(lab):
    (lab / "again.h5ad").symlink_to(lab / "deep" / "er" / "b.h5ad")
    assert uploads.resolve("lab/again.h5ad") == (lab / "deep" / "er" / "b.h5ad").resolve()
    assert "lab/again.h5ad" in listed()


def test_the_search_of_a_folder_ends(lab, monkeypatch):
    monkeypatch.setattr(uploads, "DEEPEST", 1)
    assert "lab/deep/er/b.h5ad" not in listed()
    monkeypatch.setattr(uploads, "DEEPEST", 4)
    monkeypatch.setattr(uploads, "MOST_FILES", 1)
    assert listed() == ["lab/a.h5ad", "lab 2/c.h5ad"]
    monkeypatch.setattr(uploads, "MOST_LOOKED_AT", 0)
    assert listed() == []
