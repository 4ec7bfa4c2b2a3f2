"""An HDF5 file of anyone, opened so that it cannot lead elsewhere or fill memory."""

import importlib.metadata
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from samsvae_core.data import DataError, some

# What h5py and anndata raise on damaged files; SystemError comes from names that are no UTF-8.
DAMAGE = (
    *(OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError),
    *(SystemError, MemoryError),
)
MOST_ITEMS = 100_000  # groups and arrays of a file; an honest one has some hundreds
DEEPEST = 50  # groups within each other; each takes time to be found, by its whole path
HEAP = b"GCOL\x01\0\0\0"  # begins a heap of texts in HDF5
TEXT = np.dtype([("length", "<u4"), ("heap", "<u8"), ("object", "<u4")])  # where one is
OBJECT = struct.Struct("<H6xQ")
SMALL = 64 * 2**20  # bytes of an array that are never too many
DENSEST = 300  # bytes read for one stored: honest counts stay below 100, nothing stored has no end


@contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    if not path.exists():
        raise DataError(f"There is no file {path}. Give the path of an .h5ad file.")
    if path.is_dir():
        raise DataError(f"{path} is a folder; expected an .h5ad file. Save it with write_h5ad.")
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
        if not h5py.is_hdf5(path):
            raise DataError(
                f"{path} is not an .h5ad file: expected HDF5, found a file that begins with"
                f" {start!r}. Save the data with anndata's write_h5ad."
            )
        _check_heaps(path)
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path} cannot be opened: {error}. It may not have been copied or downloaded to its"
            " end; fetch it again."
        ) from error
    before = _stamp(path)
    with file:
        _check_layout(file)
        try:
            yield file
        except DataError as error:
            _check_unchanged(path, before, error)
            raise
    _check_unchanged(path, before)


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None where the file is gone."""
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


def _check_heaps(path: Path) -> None:
    """Refuse a file in which HDF5 would look for a text without end.

    Texts lie in heaps: after 16 bytes, objects that begin with a number, 6 bytes and their size.
    Number 0 is what is free, its size that of all of it, so there 0 bytes lead back to itself; and
    so does a size that 64 bits cannot hold any more once it is rounded up.
    """
    if not path.stat().st_size:
        return
    with path.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(HEAP)
        while start >= 0:
            place = start + len(HEAP)
            size = int.from_bytes(content[place : place + 8], "little")
            end = min(start + size, len(content))
            place += 8
            while place + 16 <= end:
                number, n_bytes = OBJECT.unpack_from(content, place)
                taken = 16 + (n_bytes + 7) // 8 * 8 if number else n_bytes
                if not 0 < taken < 2**63:
                    raise DataError(
                        f"{path} is damaged: its texts cannot be read ({place:,} bytes from the"
                        " start). Load it where it was made and save it again with write_h5ad."
                    )
                place += taken
            start = content.find(HEAP, start + len(HEAP))


def _check_layout(file: h5py.File) -> None:
    """Refuse what is no AnnData, and what would make the reader open other files."""
    found: dict[str, object] = {}

    def note(name: str, link: object) -> bool | None:
        found[name] = link
        too_much = len(found) > MOST_ITEMS or name.count("/") > DEEPEST
        return True if too_much else None  # True ends the visit

    try:
        if file.visititems_links(note):
            raise DataError(
                f"{file.filename} holds more than {MOST_ITEMS:,} groups and arrays, or more than"
                f" {DEEPEST} within each other; no .h5ad file needs so many. Load it where it was"
                " made and save only what is needed."
            )
        links = [name for name, link in found.items() if _leads_away(file, name, link)]
    except DAMAGE as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file.filename} is damaged: {error}. Fetch or write it again.") from error
    if links:
        raise DataError(
            f"{file.filename} refers to other places or files ({some(links)}); such files are not"
            " read. Load it where it was made and save it again with write_h5ad."
        )
    if not {"obs", "var"} <= set(file):
        raise DataError(
            f"{file.filename} is HDF5 but no .h5ad: expected obs, var and X, found"
            f" {some(file, 6)}. Read it with scanpy and save it with write_h5ad."
        )


def _leads_away(file: h5py.File, name: str, link: object) -> bool:
    if not isinstance(link, h5py.HardLink):
        return True
    item = file[name]
    return isinstance(item, h5py.Dataset) and bool(item.external or item.is_virtual)


def read_element(file: h5py.File, name: str) -> Any:
    """One element of the file, with every way of failing to read it turned into a message."""
    from anndata.io import read_elem

    with told(file, name):
        _check_size(file, name)
        return read_elem(file[name])


@contextmanager
def told(file: h5py.File, name: str) -> Iterator[None]:
    """What fails while an element is read, as a message."""
    from anndata._io.specs.registry import IORegistryError

    try:
        yield
    except (*DAMAGE, IORegistryError) as error:
        if isinstance(error, DataError):
            raise
        why = (str(error).strip() or "no details").splitlines()[0]
        raise DataError(
            f"{name} of {file.filename} cannot be read: {type(error).__name__}, {why}. The file was"
            f" written as {_format(file)}, read with anndata"
            f" {importlib.metadata.version('anndata')}. Fetch it again if it is incomplete;"
            " otherwise load it where it was made and save it again, or upgrade anndata."
        ) from error


def check_told_size(file: h5py.File, name: str) -> None:
    """The same of what is not read into memory as a whole: it may be larger than that."""
    with told(file, name):
        _check_size(file, name, whole=False)


def _check_size(file: h5py.File, name: str, whole: bool = True) -> None:
    """Refuse an element that would take absurdly more memory than it takes in the file.

    Told before any of it is read, by shapes, types, and the lengths that texts say they have.
    """
    arrays: list[h5py.Dataset] = [file[name]] if isinstance(file[name], h5py.Dataset) else []
    if not arrays:
        file[name].visititems(
            lambda _, item: arrays.append(item) if isinstance(item, h5py.Dataset) else None
        )
    read = sum(int(array.nbytes) + _length_of_texts(file, array) for array in arrays)
    stored = sum(int(array.id.get_storage_size()) for array in arrays)
    if any(is_text(array) for array in arrays):  # they lie anywhere in the file
        stored = max(stored, file.id.get_filesize())
    memory = memory_here()
    if read > SMALL and read > DENSEST * stored:
        raise DataError(
            f"{name} of {file.filename} says that it holds {read:,} bytes, and {stored:,} are in"
            " the file: it is damaged, or nearly empty. Fetch it again, or save it with"
            " sparse matrices."
        )
    if whole and read > memory:
        raise DataError(
            f"{name} of {file.filename} takes {read:,} bytes of memory, and {memory:,} are here."
            " Keep fewer cells or genes, save it with sparse matrices, or use a larger machine."
        )


def is_text(array: h5py.Dataset) -> bool:
    """Whether its values are texts of any length, which lie elsewhere in the file."""
    kind = h5py.check_string_dtype(array.dtype)
    return kind is not None and kind.length is None


def _length_of_texts(file: h5py.File, array: h5py.Dataset) -> int:
    """Bytes that the texts of an array say they have; 0 where that is packed."""
    offset = array.id.get_offset() if is_text(array) else None
    if offset is None:
        return 0
    n_texts = min(array.size, file.id.get_filesize() // TEXT.itemsize)
    told = np.fromfile(file.filename, TEXT, n_texts, offset=offset)["length"]
    return int(told.sum(dtype=np.int64))


def memory_here() -> int:
    """Bytes of memory of this machine, or of the container, if it has a limit."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:  # no container
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def _format(file: h5py.File) -> str:
    """The format that the file says it has; anndata's own version is not recorded."""
    try:
        return " ".join(str(file.attrs.get(f"encoding-{of}", "?")) for of in ("type", "version"))
    except OSError:
        return "an unreadable format"


def names_in(file: h5py.File, name: str) -> list[str]:
    """Names in a group of the file; none where it is absent."""
    group = file.get(name)
    return list(group) if isinstance(group, h5py.Group) else []
