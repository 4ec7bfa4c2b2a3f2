"""The cache stays within its limit and keeps what was used last."""

import os
from pathlib import Path

import pytest

from samsvae_core.analysis import all_shifts
from samsvae_core.system import cache
from samsvae_core.system.files import OutputError, megabytes


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path))
    return tmp_path


def kept(folder: Path, name: str, size: int, used: int) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (used, used))
    return path


def test_what_was_used_longest_ago_goes_first_and_the_newest_stays(folder, monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "1")
    first = kept(folder, "effects/a", 400_000, 1)
    second = kept(folder, "enrichment/b", 400_000, 2)
    third = kept(folder, "effects/c", 400_000, 3)
    cache.use(first)
    assert cache.make_room(third) == 400_000
    assert [first.exists(), second.exists(), third.exists()] == [True, False, True]
    assert cache.make_room(third) == 0
    huge = kept(folder, "effects/d", 2**21, 0)
    cache.make_room(huge)
    assert [kept.path for kept in cache.files()] == [huge]


def test_downloads_and_other_files_are_never_removed(folder, monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "0")
    others = [kept(folder, "enrichr/x.gmt.gz", 10, 1), kept(folder, "else", 10, 1)]
    made = kept(folder, "effects/a", 10, 1)
    assert cache.size() == 10
    assert cache.clear() == 10
    assert not made.exists()
    assert all(path.exists() for path in others)


def test_effects_keep_within_the_limit_and_are_still_readable(folder, monkeypatch, tiny):
    old = kept(folder, "effects/old", 2**20, 1)
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "1")
    monkeypatch.setattr(
        all_shifts, "places", lambda bundle: [(all_shifts.cache_file(bundle), False)]
    )
    found = all_shifts.whole_effects(tiny)
    assert not old.exists()
    assert all_shifts.cache_file(tiny).exists()
    cache.clear()  # somebody presses the button
    assert len(found.of_gene(tiny.genes[0])) == len(tiny.perturbations)


def test_a_limit_that_is_no_number_is_said(monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "2 GB")
    with pytest.raises(OutputError, match="expected whole megabytes, such as 2000"):
        cache.limit()
    monkeypatch.setenv("SAMSVAE_CACHE_MB", "")
    assert cache.limit() == 2_000 * 2**20
    assert megabytes("SAMSVAE_NOT_SET", 3) == 3 * 2**20


def test_a_cache_that_is_nowhere_is_empty(monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE", os.devnull + "/x")
    assert cache.files() == []
    assert cache.clear() == 0
