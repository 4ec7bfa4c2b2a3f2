import io
import json
import os
import stat
import zipfile
import zlib

import pytest

from samsvae_core.bundle import archive
from samsvae_core.bundle.archive import bundle_name, pack, unpack
from samsvae_core.bundle.layout import BundleError
from samsvae_core.bundle.opening import load
from samsvae_core.system.files import OutputError


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Return the small bundle as the bytes of a zip."""
    return pack(tiny.path, tmp_path_factory.mktemp("zipped") / "tiny.zip").read_bytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "outer" / "models"


def contents(whole, flat=False):
    with zipfile.ZipFile(io.BytesIO(whole)) as file:
        files = {name: file.read(name) for name in file.namelist()}
    return {name.partition("/")[2]: content for name, content in files.items()} if flat else files


def zipped_again(files, changed=None):
    """Return a zip of these files; `changed` may alter each entry's description."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if changed:
                changed(info)
            file.writestr(info, content)
    return made.getvalue()


def everything(tmp_path):
    return {p for p in tmp_path.rglob("*") if p.is_file() or p.is_symlink()}


def refused(content, folder, match):
    """Assert that the zip is refused with this message and that nothing is left."""
    before = everything(folder.parents[1])
    with pytest.raises(BundleError, match=match):
        unpack(io.BytesIO(content), folder, "given")
    assert everything(folder.parents[1]) == before


def test_a_bundle_comes_back_from_its_zip(tiny, whole, folder):
    path = unpack(io.BytesIO(whole), folder, "given")
    assert path == folder / tiny.path.name
    made = load(path)
    assert made.checksum == tiny.checksum
    assert made.masks.equals(tiny.masks)
    assert list(folder.glob("*/manifest.json")) == [path / "manifest.json"]


def test_a_zip_of_the_files_alone_is_called_as_it_is_given(whole, folder):
    flat = zipped_again(contents(whole, flat=True))
    assert unpack(io.BytesIO(flat), folder, "given") == folder / "given"


def test_a_zip_made_by_another_program_with_its_folders_is_taken(whole, folder):
    entries = {"tiny/": b"", "tiny/enrichment/": b"", **contents(whole)}
    assert unpack(io.BytesIO(zipped_again(entries)), folder, "given").is_dir()


def test_the_same_bundle_again_changes_nothing_and_another_is_refused(whole, folder, kept_apart):
    first = unpack(io.BytesIO(whole), folder, "given")
    assert unpack(io.BytesIO(whole), folder, "given") == first
    refused(kept_apart, folder, "a model called tiny already")


def test_a_name_that_is_taken_elsewhere_is_refused(whole, folder):
    with pytest.raises(BundleError, match="a model called tiny already"):
        unpack(io.BytesIO(whole), folder, "given", ["tiny"])
    assert not folder.exists()


@pytest.fixture
def kept_apart(whole):
    """Return another bundle of the same name, whose manifest has another date."""
    files = contents(whole)
    manifest = json.loads(files["tiny/manifest.json"])
    manifest["created"] = "2001-01-01T00:00:00+00:00"
    return zipped_again(files | {"tiny/manifest.json": json.dumps(manifest).encode()})


@pytest.mark.parametrize(
    "name",
    [
        "../evil.txt",
        "tiny/../../evil.txt",
        "/evil.txt",
        "tiny\\..\\evil.txt",
        "C:evil.txt",
        "tiny/./evil.txt",
        "tiny//evil.txt",
        "tiny/a/b/c/evil.txt",
        "tiny/evil\n.txt",
    ],
)
def test_names_that_lead_away_are_refused(whole, folder, name):
    refused(zipped_again({**contents(whole), name: b"x"}), folder, "no bundle does")


def test_a_name_cut_off_by_a_zero_is_refused(whole, folder):
    content = zipped_again({**contents(whole), "tiny/card.mdX/../../evil": b"x"})
    refused(content.replace(b"card.mdX/", b"card.md\0/"), folder, "no bundle does")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(whole, folder, kind):
    def changed(info):
        if info.filename == "tiny/card.md":
            info.external_attr = (kind | 0o777) << 16

    files = contents(whole) | {"tiny/card.md": b"/etc/passwd"}
    refused(zipped_again(files, changed), folder, "is a link or a device")


def test_a_bomb_is_refused(whole, folder, monkeypatch):
    bomb = contents(whole) | {"tiny/card.md": bytes(20 * 2**20)}
    refused(zipped_again(bomb), folder, "unpacks .* bytes to 20,971,520")
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    refused(whole, folder, "1,000 is the most")


def test_a_file_longer_than_it_says_is_refused(whole, folder):
    files = contents(whole)
    card = files["tiny/card.md"]
    lying = zipped_again(files).replace(
        zlib.crc32(card).to_bytes(4, "little"), zlib.crc32(card[:9]).to_bytes(4, "little")
    )
    assert lying != zipped_again(files)
    lying = lying.replace(len(card).to_bytes(4, "little"), (9).to_bytes(4, "little"))
    refused(lying, folder, "Download it again|download it again|checksum differs")


def test_too_many_files_are_refused(whole, folder):
    many = {f"tiny/{i}": b"" for i in range(archive.MOST_ENTRIES)}
    refused(zipped_again({**contents(whole), **many}), folder, "a bundle has 500 at most")


def test_a_name_that_is_there_twice_is_refused(whole, folder):
    made = io.BytesIO(whole)
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        zipfile.ZipFile(made, "a") as file,
    ):
        file.writestr("tiny/card.md", "another")
    refused(made.getvalue(), folder, r"'tiny/card.md' twice")


@pytest.mark.parametrize("name", ["tiny/evil.py", "tiny/enrichment/../card", "other/card.md"])
def test_files_that_the_manifest_does_not_list_are_refused(whole, folder, name):
    refused(zipped_again({**contents(whole), name: b"x"}), folder, "manifest|no bundle does")


def test_files_that_no_bundle_has_are_refused_also_where_they_are_listed(whole, folder):
    files = contents(whole)
    manifest = json.loads(files["tiny/manifest.json"])
    manifest["files"]["evil.py"] = "0" * 64
    files |= {"tiny/manifest.json": json.dumps(manifest).encode(), "tiny/evil.py": b"x"}
    refused(zipped_again(files), folder, r"lists files that no bundle has: evil\.py")


def test_a_file_that_is_changed_or_absent_is_refused(whole, folder):
    files = contents(whole)
    changed = files | {"tiny/masks.csv": files["tiny/masks.csv"] + b"\n"}
    refused(zipped_again(changed), folder, r"^tiny/masks\.csv is not .*checksum differs")
    del files["tiny/masks.csv"]
    refused(zipped_again(files), folder, r"lacks files that its manifest lists: masks\.csv")


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_zip_or_an_empty_one_is_refused(folder, content):
    refused(content, folder, "no zip that can be read|holds no manifest")


@pytest.mark.parametrize("share", [0.2, 0.9, 0.999])
def test_a_zip_cut_short_is_refused(whole, folder, share):
    refused(whole[: int(share * len(whole))], folder, "no zip that can be read")


def test_a_name_that_is_no_text_and_a_place_before_the_beginning_are_refused(whole, folder):
    flagged = zipped_again(contents(whole) | {"tiny/\u00e9\u00e9": b"x"})
    refused(
        flagged.replace("\u00e9\u00e9".encode(), b"\xff\xfe\xff\xfe"), folder, "no zip that can"
    )
    end = whole.rfind(b"PK\x05\x06") + 16
    after = (int.from_bytes(whole[end : end + 4], "little") + 1).to_bytes(4, "little")
    refused(whole[:end] + after + whole[end + 4 :], folder, "no zip that can be read")


def test_an_encrypted_zip_is_refused(whole, folder):
    content = bytearray(whole)
    place = content.rfind(b"PK\x01\x02")
    content[place + 8] |= 1
    refused(bytes(content), folder, "is encrypted")


@pytest.mark.parametrize("manifest", [b"", b"[]", b"{}", b'{"files": 3}', b"[" * 100_000])
def test_a_manifest_that_is_none_is_refused(whole, folder, manifest):
    files = contents(whole) | {"tiny/manifest.json": manifest}
    refused(zipped_again(files), folder, "manifest")


@pytest.mark.parametrize("name", ["", ".", "..", "uploads", "a/b", "a b", "-a", "a.", "x" * 81])
def test_names_that_cannot_be_those_of_models_are_refused(name):
    with pytest.raises(BundleError, match="cannot be the name of a model"):
        bundle_name(name)


def test_a_place_that_cannot_be_written_to_is_told(whole, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot unpack into"):
        unpack(io.BytesIO(whole), tmp_path / "file", "given")
    with pytest.raises(OutputError, match="is not a folder"):
        pack(tiny.path, tmp_path / "file" / "tiny.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_packing_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is no bundle"):
        pack(tmp_path, tmp_path / "a.zip")
    assert list(tmp_path.iterdir()) == []


def test_an_upload_is_let_go_of_whatever_happens(monkeypatch):
    from app.session import brought_files, page

    file = io.BytesIO(b"x")
    monkeypatch.setattr(page.st, "session_state", {"model upload 0": file})
    with pytest.raises(ZeroDivisionError):
        brought_files._take("model", lambda kept: 1 / 0)
    assert file.closed
    assert brought_files.uploader_key("model") == "model upload 1"


def test_a_model_without_room_is_refused_and_what_was_given_up_removed(whole, folder, monkeypatch):
    from app.server import runs, uploads

    left = folder / ".incoming" / "left"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    with pytest.raises(OutputError, match="no room for the model"):
        unpack(io.BytesIO(whole), folder, "given", room=10)
    assert not left.exists()
    path = unpack(io.BytesIO(whole), folder, "given")
    monkeypatch.setenv("SAMSVAE_RUNS", str(folder))
    assert not uploads.used()  # it was not uploaded on a page
    (path / runs.BROUGHT).touch()
    assert uploads.used() == sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    monkeypatch.setattr(archive, "SPARE", 2**60)
    with pytest.raises(OutputError, match="no room for the model"):
        unpack(io.BytesIO(whole), folder, "given")
