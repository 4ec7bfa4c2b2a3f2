"""Pack a bundle into one zip file, and unpack a zip from an untrusted source.

Only the files in the zip's manifest are taken, under the names that bundles use. Everything is
checked as by `opening.load` before the bundle appears in its place.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
import zlib
from collections.abc import Collection
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

import pyarrow

from samsvae_core.bundle.layout import FILES, OPTIONAL, BundleError, check_table, read_manifest
from samsvae_core.bundle.opening import inside, load
from samsvae_core.system.files import OutputError, hold, is_held, new_output, sha256
from samsvae_core.system.messages import some

MOST_BYTES = 4 * 2**30  # most bytes of all files, unpacked
MOST_ENTRIES = 500
DENSEST = 200  # most bytes unpacked per packed byte; tables of bundles stay below 50
SMALL = 16 * 2**20  # bytes of a file that are always allowed
LONGEST_MANIFEST = 2**20
INCOMING = ".incoming"  # not searched for bundles
HELD = ".held"  # a file in it that its writer locks
YOUNG = 60  # seconds a writer has to lock it
SPARE = 500 * 2**20  # bytes of the disk that stay free
PIECE = 2**20  # bytes read at a time
MANIFEST = "manifest.json"
ENRICHMENT = re.compile(r"enrichment/[A-Za-z0-9][A-Za-z0-9_.-]{0,199}\.parquet")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
RESERVED = {"uploads"}  # a folder beside the runs that is not a run
DAMAGED = "The zip is damaged; download it again."


def pack(path: Path | str, output: Path) -> Path:
    """Write a bundle's files into one new zip, in a folder of its name; returns the zip's path."""
    path = Path(path)
    names = [*read_manifest(path)["files"], MANIFEST]
    new_output(output)
    temporary = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor, made = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        temporary = Path(made)
        with os.fdopen(descriptor, "wb") as file:
            write_zip(path, names, file)
        temporary.chmod(0o644)
        temporary.replace(output)
    except OSError as error:
        raise OutputError(
            f"Cannot write {output}: {error.strerror or error}. Choose another place for the "
            "output."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return output


def write_zip(path: Path, names: list[str], file: BufferedIOBase) -> None:
    """Write a bundle's files as a zip into an open file, in a folder of the bundle's name."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in names:
            if not inside(path / name, path):
                raise BundleError(f"{path} lacks {name!r}, which its manifest lists.")
            packed.write(path / name, f"{path.name}/{name}")


def unpack(
    file: BufferedIOBase,
    folder: Path,
    name: str,
    taken: Collection[str] = (),
    room: int = MOST_BYTES,
) -> Path:
    """Unpack the bundle in a zip into a new folder in `folder` and return its path.

    The bundle is named after the folder in the zip, or `name`. Names that are `taken` elsewhere are
    refused, and more bytes than `room`. A bundle already there with the same manifest is kept as it
    is. Raises BundleError for anything but a sound bundle, and OutputError if it cannot be written.
    """
    try:
        with zipfile.ZipFile(file) as packed:
            entries = _entries(packed)
            top = _top(list(entries))
            called = bundle_name(top or name)
            if called in taken:
                raise BundleError(another(called))
            files = {entry.removeprefix(f"{top}/"): info for entry, info in entries.items()}
            _check_manifest(packed, files)
            _check_room(sum(info.file_size for info in files.values()), folder, room)
            return _unpacked(packed, files, folder, called)
    except (BundleError, OutputError):
        raise
    except (  # ValueError: a name that is not text, a negative offset
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:
        raise BundleError(f"This is no zip that can be read ({error}). {DAMAGED}") from error
    except OSError as error:
        raise OutputError(f"Cannot unpack into {folder}: {error.strerror or error}.") from error


def _check_room(size: int, folder: Path, room: int) -> None:
    """Raise OutputError if files of this size do not fit; removes abandoned files first."""
    incoming = folder / INCOMING
    incoming.mkdir(parents=True, exist_ok=True)
    for left in incoming.iterdir():
        if time.time() - left.lstat().st_mtime > YOUNG and not is_held(left / HELD):
            shutil.rmtree(left, ignore_errors=True)
    free = min(room, shutil.disk_usage(folder).free - SPARE)
    if size > free:
        raise OutputError(
            f"There is no room for the model: it takes {size:,} bytes, and {max(free, 0):,} are "
            "left here. Remove uploads or runs that are not needed."
        )


def another(name: str) -> str:
    return f"There is a model called {name} already. Rename the folder in the zip."


def bundle_name(text: str) -> str:
    """Return the text if it can name a bundle's folder: letters, digits, "_", "-" and "." only.

    Raises BundleError otherwise.
    """
    if not NAME.fullmatch(text) or text.lower() in RESERVED or text.endswith("."):
        raise BundleError(
            f"{text[:80]!r} cannot be the name of a model; expected 1 to 80 letters, digits, "
            "'_', '-' or '.', a letter or digit first. Rename it."
        )
    return text


def _entries(packed: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the files in a zip by name; raises BundleError for anything that could do harm."""
    listed = packed.infolist()
    if len(listed) > MOST_ENTRIES:
        raise BundleError(
            f"The zip holds {len(listed):,} files; a bundle has {MOST_ENTRIES} at most."
        )
    found: dict[str, zipfile.ZipInfo] = {}
    for info in listed:
        if problem := _problem(info):
            raise BundleError(
                f"The zip holds {info.filename[:200]!r}, which {problem}; no bundle does. Use a "
                "zip made by samsvae pack, or downloaded from the dashboard."
            )
        if info.is_dir():
            continue
        if info.filename in found:
            raise BundleError(f"The zip holds {info.filename[:200]!r} twice. {DAMAGED}")
        found[info.filename] = info
    if (total := sum(info.file_size for info in found.values())) > MOST_BYTES:
        raise BundleError(f"The zip unpacks to {total:,} bytes; {MOST_BYTES:,} is the most.")
    return found


def _problem(info: zipfile.ZipInfo) -> str:
    """Return why an entry is refused, "" if it is not."""
    name, mode = info.orig_filename, info.external_attr >> 16
    parts = PurePosixPath(name).parts
    if name != info.filename or re.search(r"[\x00-\x1f\\:]", name) or not name:
        return "has a name that not every system takes"
    if name.startswith("/") or ".." in parts or "." in name.split("/") or "//" in name:
        return "leads out of its folder"
    if len(parts) > 3:
        return "lies deeper than files of bundles do"
    if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)):
        return "is a link or a device"
    if info.flag_bits & 1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is packed in a way that is not read here"
    if info.file_size > SMALL and info.file_size > DENSEST * max(info.compress_size, 1):
        return f"unpacks {info.compress_size:,} bytes to {info.file_size:,}"
    return ""


def _top(names: list[str]) -> str:
    """Return the one folder that holds all files of a zip; "" if they are in none."""
    if MANIFEST in names:
        return ""
    tops = {name.partition("/")[0] for name in names}
    top = next(iter(tops)) if len(tops) == 1 else ""
    if f"{top}/{MANIFEST}" not in names:
        raise BundleError(
            f"The zip holds no manifest.json at its top, nor in its one folder; found "
            f"{some(sorted(names), 4) or 'nothing'}. Zip the folder of a finished run."
        )
    return top


def _check_manifest(packed: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo]) -> None:
    """Refuse files that the manifest does not list, and files that no bundle has."""
    if files[MANIFEST].file_size > LONGEST_MANIFEST:
        raise BundleError(f"The manifest in the zip has {files[MANIFEST].file_size:,} bytes.")
    with packed.open(files[MANIFEST]) as file:
        content = file.read(LONGEST_MANIFEST + 1)
    try:
        listed = json.loads(content)["files"]
        names = set(map(str, listed))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"The manifest in the zip cannot be read ({error}). {DAMAGED}") from error
    foreign = sorted(set(files) - names - {MANIFEST})
    strange = sorted(
        n for n in names if n not in (*FILES, *OPTIONAL) and not ENRICHMENT.fullmatch(n)
    )
    absent = sorted(names - set(files))
    for what, found in (
        ("holds files that its manifest does not list", foreign),
        ("lists files that no bundle has", strange),
        ("lacks files that its manifest lists", absent),
    ):
        if found:
            raise BundleError(
                f"The zip {what}: {some(name[:80] for name in found)}. Zip the folder of a "
                "finished run as it is."
            )


def _unpacked(
    packed: zipfile.ZipFile, files: dict[str, zipfile.ZipInfo], folder: Path, name: str
) -> Path:
    """Write the files beside their final place, check them and move them there."""
    temporary = Path(tempfile.mkdtemp(dir=folder / INCOMING))
    descriptor = os.open(temporary / HELD, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        hold(descriptor)
        place = temporary / name
        for entry, info in files.items():
            _write(packed, info, place / entry)
        try:
            made = load(place)
            for entry in files:
                if entry.endswith(".parquet"):
                    _check_table(place / entry, entry)
        except BundleError as error:
            raise BundleError(str(error).replace(f"{temporary}/", "")) from None
        target = folder / name
        if target.exists():
            if inside(target / MANIFEST, folder) and sha256(target / MANIFEST) == made.checksum:
                return target
            raise BundleError(another(name))
        place.rename(target)
        return target
    finally:
        os.close(descriptor)
        shutil.rmtree(temporary, ignore_errors=True)


def _check_table(path: Path, entry: str) -> None:
    try:
        check_table(path, texts=True)
    except (ValueError, pyarrow.ArrowException) as error:
        raise BundleError(f"{entry} in the zip cannot be read ({error}). {DAMAGED}") from error


def _write(packed: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one file in pieces, no longer than the zip says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with packed.open(info) as source, path.open("xb") as target:
        while piece := source.read(PIECE):
            written += len(piece)
            if written > info.file_size:
                raise BundleError(f"{info.filename} in the zip is longer than it says. {DAMAGED}")
            target.write(piece)
