"""Open an untrusted HDF5 file so that it cannot reach other files or fill the memory."""

import importlib.metadata
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from samsvae_core.data.cells import DataError
from samsvae_core.system.machine import memory_here
from samsvae_core.system.messages import some

# What h5py and anndata raise on damaged files; SystemError comes from names that are not UTF-8.
# Blocks under `as_data_error` call only these libraries: our own bugs surface as themselves.
DAMAGE = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError),
    *(SystemError, OverflowError, ImportError),
)
MOST_ITEMS = 100_000  # groups and arrays in a file; a normal one has a few hundred
DEEPEST = 50  # nested groups; each is looked up by its whole path, which takes time
HEAP = b"GCOL\x01\0\0\0"  # start of an HDF5 heap of texts
TEXT = np.dtype([("length", "<u4"), ("heap", "<u8"), ("object", "<u4")])  # reference to a text
OBJECT = struct.Struct("<H6xQ")
PIECE = 2**18  # bytes searched at a time
SMALL = 64 * 2**20  # bytes of memory that are always allowed
DENSEST = 100  # most bytes of memory per stored byte; normal counts and columns stay below 40
EMPTIEST = 1_100  # the same for dense matrices, whose zeros are dropped; zlib packs to 1:1,032
DENSEST_TEXTS = 20  # the same for texts, which are stored uncompressed
TEXT_IN_MEMORY = 64  # bytes of a Python string beside its characters


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    if not path.exists():
        raise DataError(f"There is no file {path}. Give the path of an .h5ad file.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected an .h5ad file. Save it with write_h5ad.")
    before = _stamp(path)
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
        is_hdf5 = bool(h5py.is_hdf5(path))
        if is_hdf5:
            _check_heaps(path)
    except OSError as error:  # an error of the system, not of the content
        why = error.strerror or error
        raise DataError(f"{path} cannot be read here: {why}. Try again, or copy it.") from error
    if not is_hdf5:
        raise DataError(
            f"{path} is not an .h5ad file: expected HDF5, found a file that begins with"
            f" {start!r}. Save the data with anndata's write_h5ad."
        )
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        _check_unchanged(path, before, error)
        raise DataError(
            f"{path} cannot be opened: {error}. It may not have been copied or downloaded to its"
            " end; fetch it again."
        ) from error
    with file:
        try:
            _check_layout(file)
            yield file
        except DataError as error:
            _check_unchanged(path, before, error)
            raise
    _check_unchanged(path, before)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return size and time of the last change; None if the file is gone."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def _check_unchanged(
    path: Path, before: tuple[int, int] | None, error: Exception | None = None
) -> None:
    if _stamp(path) != before:
        raise DataError(
            f"{path} changed while it was read. Wait until it is written or copied to its end, and"
            " start again."
        ) from error


class _Window:
    """A file's bytes by position, read in pieces of PIECE.

    The file is not memory-mapped, because a process that reads a mapped file dies when others
    shorten it.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self.raw, self.place, self.content = raw, 0, b""

    def at(self, place: int, n: int) -> bytes:
        """Return the n bytes at a place, fewer at the end of the file."""
        start = place - self.place
        if not 0 <= start <= len(self.content) - n:
            self.raw.seek(place)
            self.place, self.content, start = place, self.raw.read(PIECE), 0
        return self.content[start : start + n]


def _check_heaps(path: Path) -> None:
    """Refuse a file whose heaps of texts would send HDF5 into an endless loop.

    After a header of 16 bytes, a heap holds objects that begin with a number, 6 bytes and their
    size. Object 0 is the free space and its size covers all of it: a size of 0 there leads back to
    itself, as does a size that overflows 64 bits when it is rounded up.
    """
    with path.open("rb") as raw, path.open("rb") as again:
        inner, last = _Window(again), path.stat().st_size
        left = last // 8  # an object has at least 16 bytes; bounds the search in look-alikes
        for start in _places_of(raw, HEAP):
            place = start + len(HEAP)
            end = min(start + int.from_bytes(inner.at(place, 8), "little"), last)
            place += 8
            while place + OBJECT.size <= end:
                content = inner.at(place, OBJECT.size)
                if len(content) < OBJECT.size:  # the file was shortened; the reader will say so
                    break
                number, n_bytes = OBJECT.unpack(content)
                taken = 16 + (n_bytes + 7) // 8 * 8 if number else n_bytes
                left -= 1
                if not 0 < taken < 2**63 or left < 0:
                    raise DataError(
                        f"{path} is damaged: its texts cannot be read ({place:,} bytes from the"
                        " start). Load it where it was made and save it again with write_h5ad."
                    )
                place += taken


def _places_of(raw: BinaryIO, mark: bytes) -> Iterator[int]:
    """Yield the positions of a mark in a file."""
    first, kept = 0, b""
    while piece := raw.read(PIECE):
        content = kept + piece
        found = content.find(mark)
        while found >= 0:
            yield first + found
            found = content.find(mark, found + len(mark))
        kept = content[-(len(mark) - 1) :]
        first += len(content) - len(kept)


def _check_layout(file: h5py.File) -> None:
    """Refuse files that are not AnnData, and links that would make the reader open other files."""
    found: dict[bytes, bool] = {}  # whether it is a hard link

    def note(name: bytes, link: Any) -> bool | None:
        found[name] = link.type == h5py.h5l.TYPE_HARD
        too_much = len(found) > MOST_ITEMS or name.count(b"/") > DEEPEST
        return True if too_much else None  # True ends the visit

    with _sound(file):
        too_much = file.id.links.visit(note, info=True)  # ten times as fast as visititems_links
    if too_much:
        raise DataError(
            f"{file.filename} holds more than {MOST_ITEMS:,} groups and arrays, or more than"
            f" {DEEPEST} within each other; no .h5ad file needs so many. Load it where it was"
            " made and save only what is needed."
        )
    with _sound(file):
        links = [name.decode() for name, is_hard in found.items() if not is_hard]
        items = {name: file[name.decode()] for name, is_hard in found.items() if is_hard}
        arrays = {name: item for name, item in items.items() if isinstance(item, h5py.Dataset)}
        links += [name.decode() for name, a in arrays.items() if a.external or a.is_virtual]
        top = list(file)
    if links:
        raise DataError(
            f"{file.filename} refers to other places or files ({some(links)}); such files are not"
            " read. Load it where it was made and save it again with write_h5ad."
        )
    if not {"obs", "var"} <= set(top):
        raise DataError(
            f"{file.filename} is HDF5 but no .h5ad: expected obs, var and X, found"
            f" {some(top, 6)}. Read it with scanpy and save it with write_h5ad."
        )


@contextmanager
def _sound(file: h5py.File) -> Iterator[None]:
    """Turn what h5py raises while a file's parts are examined into a DataError."""
    try:
        yield
    except DAMAGE as error:
        raise DataError(f"{file.filename} is damaged: {error}. Fetch or write it again.") from error


def read_element(file: h5py.File, name: str) -> Any:
    """Return one element of the file; every failure to read it becomes a DataError."""
    from anndata.io import read_elem

    check_size(file, name)
    with as_data_error(file, name):
        return read_elem(file[name])


@contextmanager
def as_data_error(file: h5py.File, name: str) -> Iterator[None]:
    """Turn what h5py and anndata raise while they read an element into a DataError.

    Call none of our own code within such a block, so that our bugs are not reported as damage.
    """
    from anndata._io.specs.registry import IORegistryError

    try:
        yield
    except (*DAMAGE, IORegistryError) as error:
        why = (str(error).strip() or "no details").splitlines()[0]
        raise DataError(
            f"{name} of {file.filename} cannot be read: {type(error).__name__}, {why}. The file was"
            f" written as {_format(file)}, read with anndata"
            f" {importlib.metadata.version('anndata')}. Fetch it again if it is incomplete;"
            " otherwise load it where it was made and save it again, or upgrade anndata."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{name} of {file.filename} cannot be read: there is not enough memory for it here"
            f" ({error}). Keep fewer cells or genes, or use a larger machine."
        ) from error


def check_size(file: h5py.File, name: str, whole: bool = True, densest: int = DENSEST) -> None:
    """Refuse an element that would take far more memory than its size in the file explains.

    Shapes, types and stated text lengths are checked before anything is read. An element read as a
    `whole` is also refused if it does not fit in the memory here.
    """
    arrays = _arrays(file, name)
    numbers = [array for array in arrays if not is_text(array)]
    texts = [array for array in arrays if is_text(array)]
    with as_data_error(file, name):
        read = sum(int(array.nbytes) for array in numbers)
        read += sum(int(array.nbytes) + int(array.size) * TEXT_IN_MEMORY for array in texts)
        stored = sum(int(array.id.get_storage_size()) for array in arrays)
        size = int(file.id.get_filesize())
    read += sum(_length_of_texts(file, array) for array in texts)
    most = SMALL + densest * stored + (DENSEST_TEXTS * size if texts else 0)
    if read > most:
        raise too_dense(file, name, read, stored)
    if whole and read > (memory := memory_here()):
        raise DataError(
            f"{name} of {file.filename} takes {read:,} bytes of memory, and {memory:,} are here."
            " Keep fewer cells or genes, save it with sparse matrices, or use a larger machine."
        )


def too_dense(file: h5py.File, name: str, read: int, stored: int) -> DataError:
    """Return the error for an element that claims to hold more than its stored bytes can."""
    return DataError(
        f"{name} of {file.filename} says that it holds {read:,} bytes, and {stored:,} are in"
        " the file: it is damaged, or nearly empty. Fetch it again, or save it with"
        " sparse matrices."
    )


def _arrays(file: h5py.File, name: str) -> list[h5py.Dataset]:
    """Return the arrays of an element."""
    found: list[h5py.Dataset] = []
    with as_data_error(file, name):
        item = file[name]
        if isinstance(item, h5py.Dataset):
            return [item]
        item.visititems(
            lambda _, part: found.append(part) if isinstance(part, h5py.Dataset) else None
        )
    return found


def is_text(array: h5py.Dataset) -> bool:
    """Return whether an array's values have variable length, stored elsewhere in the file."""
    with as_data_error(array.file, array.name):  # the type may be unknown to NumPy
        kind = array.dtype
    text = h5py.check_string_dtype(kind)
    return (text is not None and text.length is None) or h5py.check_vlen_dtype(kind) is not None


def _length_of_texts(file: h5py.File, array: h5py.Dataset) -> int:
    """Return the total stated length of an array's texts in bytes; 0 if the array is compressed."""
    with as_data_error(file, array.name):
        offset = array.id.get_offset()
        size, last = int(array.size), int(file.id.get_filesize())
    if offset is None:
        return 0
    n_texts = min(size, last // TEXT.itemsize)
    with as_data_error(file, array.name):
        lengths = np.fromfile(file.filename, TEXT, n_texts, offset=offset)["length"]
    return int(lengths.sum(dtype=np.int64))


def _format(file: h5py.File) -> str:
    """Return the format the file states; anndata's own version is not recorded."""
    try:
        return " ".join(str(file.attrs.get(f"encoding-{of}", "?")) for of in ("type", "version"))
    except DAMAGE:
        return "an unreadable format"


def names_in(file: h5py.File, name: str) -> list[str]:
    """Return the names in a group of the file; empty if the group is absent."""
    with as_data_error(file, name):
        group = file.get(name)
        return list(group) if isinstance(group, h5py.Group) else []
