import hashlib
import os
import stat

import pytest

from samsvae_core.system.files import OutputError, atomic_write, new_output, sha256


def test_a_file_is_written_with_the_folders_it_needs(tmp_path):
    path = tmp_path / "a" / "b" / "table.csv"
    atomic_write(path, b"gene\n")
    assert path.read_bytes() == b"gene\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    atomic_write(path, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"table\.csv: No space left on device.*another place"):
        atomic_write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    atomic_write(path, b"old")

    def interrupted(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, b"new")
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]
    assert path.read_bytes() == b"old"


def test_a_folder_is_not_overwritten_by_a_file(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(OutputError, match="Cannot write"):
        atomic_write(tmp_path / "run", b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_new_output_may_lie_in_folders_still_to_be_made(tmp_path):
    path = tmp_path / "a" / "b.csv"
    assert new_output(path) == path
    assert not path.parent.exists()


def test_an_output_that_exists_is_refused(tmp_path):
    (tmp_path / "b.csv").touch()
    with pytest.raises(OutputError, match=r"b\.csv exists already"):
        new_output(tmp_path / "b.csv")


@pytest.mark.parametrize("name", ["file/table.csv", "file/folder/table.csv", "x" * 300])
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="Choose another place"):
        new_output(tmp_path / name)


def test_the_checksum_is_the_one_of_fips_180(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == known
    assert hashlib.sha256(b"abc").hexdigest() == known
