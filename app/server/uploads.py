"""Data files: uploads, and files in the operator's folders.

An id such as "uploads/screen-1f2e3d4c5b6a.h5ad" names a file. Only `resolve` turns an id into a
path, and only below the folders that the operator allows.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from app.server.runs import brought, listed
from samsvae_core.data.cells import DataError
from samsvae_core.genesets.symbols import known_genes
from samsvae_core.system.files import OutputError, atomic_write, hold, is_held, locked, megabytes
from samsvae_core.system.messages import some

ROOT = Path(__file__).resolve().parents[2]
HDF5 = b"\x89HDF\r\n\x1a\n"  # the signature of an HDF5 file
UPLOADS = "uploads"  # the folder, and the first part of the ids of its files
INCOMING = ".incoming"  # in it: files that are not complete yet
LOCK = ".lock"  # in that: held while looking for room, across threads and servers
MB = 2**20  # bytes, as Streamlit counts
PIECE = MB  # bytes in memory while a file is written
LARGEST_UPLOAD, LARGEST_TOTAL = "SAMSVAE_UPLOAD_MB", "SAMSVAE_UPLOADS_TOTAL_MB"
UPLOAD_MB, TOTAL_MB = 2_000, 20_000  # defaults for one upload and for all
SPARE = 500 * MB  # bytes of the disk that uploads leave free
DEEPEST, MOST_FILES, MOST_LOOKED_AT = 4, 1_000, 20_000  # limits for listing a folder
MOST_GENES = 10**6  # characters of a list of genes
GENES = re.compile(rf"{UPLOADS}/genes-[0-9a-f]{{12}}\.txt")  # ids of lists of genes
NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Found(NamedTuple):
    """A file that can be chosen; size in bytes, `modified` in seconds since 1970."""

    data: str  # its id
    size: int
    modified: float


# Places


def runs_folder() -> Path:
    """Return the folder of runs and uploads: SAMSVAE_RUNS, or `runs` in the checkout."""
    return Path(os.environ.get("SAMSVAE_RUNS") or ROOT / "runs").expanduser()


def uploads_folder() -> Path:
    return runs_folder() / UPLOADS


def folders() -> dict[str, Path]:
    """Return the folders whose files can be chosen, by the first part of their ids.

    Uploads come first; the others are those in SAMSVAE_DATA_DIRS, separated by os.pathsep.
    """
    found = {UPLOADS: uploads_folder()}
    for text in os.environ.get("SAMSVAE_DATA_DIRS", "").split(os.pathsep):
        if text.strip():
            path = Path(text.strip()).expanduser()
            name, n = path.resolve().name or "root", 1
            label = name
            while label in found:
                n += 1
                label = f"{name} {n}"
            found[label] = path
    return found


def resolve(data: str, ending: str = ".h5ad") -> Path:
    """Return the file that an id names, with links followed; raises DataError for anything else.

    The message does not tell a missing file from one that may not be read.
    """
    folder, _, rest = data.partition("/")
    root = folders().get(folder)
    try:
        allowed = ending != ".txt" or GENES.fullmatch(data)
        if root is not None and allowed and rest and "\\" not in rest and not _hidden(rest):
            path, inside = (root / rest).resolve(strict=True), root.resolve(strict=True)
            if path.is_relative_to(inside) and path.is_file() and path.suffix == ending:
                return path
    except (
        OSError,
        ValueError,
        RuntimeError,
    ):  # gone, a name no file system takes, links in a ring
        pass
    raise DataError(
        f"There is no file {data[:200]!r} among the data here. Choose one of the list, or upload "
        "it."
    )


def _hidden(rest: str) -> bool:
    """Return whether a part of an id is "..", or starts with a dot, as incomplete files do."""
    parts = PurePosixPath(rest).parts
    return rest.startswith("/") or any(part.startswith(".") for part in parts)


def listing() -> list[Found]:
    """Return the .h5ad files that can be chosen: uploads, newest first, then the folders' files.

    Folders are searched DEEPEST levels deep, without following links to folders, until MOST_FILES
    files or MOST_LOOKED_AT names were found.
    """
    found = []
    for label, root in folders().items():
        each = _files(label, root)
        by_date = label == UPLOADS
        found += sorted(each, key=(lambda f: (-f.modified, f.data)) if by_date else _by_id)
    return found


def _by_id(file: Found) -> str:
    return file.data


def _files(label: str, root: Path) -> list[Found]:
    found: list[Found] = []
    looked_at = 0
    for where, inner, names in os.walk(root):
        here = Path(where).relative_to(root)
        inner[:] = sorted(n for n in inner if not n.startswith(".")) * (len(here.parts) < DEEPEST)
        for name in sorted(names):
            looked_at += 1
            if looked_at > MOST_LOOKED_AT or len(found) >= MOST_FILES:
                return found
            if name.endswith(".h5ad"):
                data = f"{label}/{(here / name).as_posix()}"
                try:
                    about = resolve(data).stat()
                except (DataError, OSError):  # it links outside, or is gone
                    continue
                found.append(Found(data, about.st_size, about.st_mtime))
    return found


# Uploads


def largest_upload() -> int:
    """Return the limit of one upload in bytes, from SAMSVAE_UPLOAD_MB."""
    return megabytes(LARGEST_UPLOAD, UPLOAD_MB)


def largest_total() -> int:
    """Return the limit of all uploads together in bytes, from SAMSVAE_UPLOADS_TOTAL_MB."""
    return megabytes(LARGEST_TOTAL, TOTAL_MB)


def used() -> int:
    """Return the bytes of all uploads, including those being received and uploaded models."""
    total = 0
    places = [uploads_folder(), *(runs_folder() / name for name in brought(runs_folder()))]
    for where, _, names in (step for place in places for step in os.walk(place)):
        for name in names:
            try:
                total += Path(where, name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total


def safe_stem(name: str, longest: int = 60) -> str:
    """Return a file's name without folders and ending, safe for shells and paths."""
    stem = re.split(r"[/\\]", name)[-1].removesuffix(".h5ad")
    return NAME.sub("_", stem).strip("._-")[:longest] or "data"


def save(file: BinaryIO, name: str, size: int) -> str:
    """Save an upload in pieces and return its id; the same content is kept once.

    Raises OutputError, and leaves nothing behind, if it is too large or the disk too full.
    """
    descriptor, temporary = _begun(name, size)
    try:
        checksum, n_bytes = hashlib.sha256(), 0
        with os.fdopen(descriptor, "r+b") as written:
            while piece := file.read(PIECE):
                n_bytes += len(piece)
                if n_bytes > size:
                    raise OutputError(f"{name} is longer than declared. Upload it again.")
                checksum.update(piece)
                written.write(piece)
            if n_bytes < size:
                raise OutputError(
                    f"{name} lacks its last {size - n_bytes:,} bytes. Upload it again."
                )
            written.flush()
            os.fsync(written.fileno())
            data = f"{safe_stem(name)}-{checksum.hexdigest()[:12]}.h5ad"
            temporary.chmod(0o644)
            temporary.replace(uploads_folder() / data)
    except OSError as error:
        raise OutputError(_not_kept(name, error)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return f"{UPLOADS}/{data}"


def _begun(name: str, size: int) -> tuple[int, Path]:
    """Return an open file of this size and its path; its space is reserved from now on."""
    with turn():
        folder = _room_for(name, size)
        try:
            descriptor, path = tempfile.mkstemp(dir=folder / INCOMING)
            try:
                hold(descriptor)
                if size and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(descriptor, 0, size)
                else:
                    os.truncate(descriptor, size)
            except OSError:
                os.close(descriptor)
                Path(path).unlink()
                raise
        except OSError as error:
            raise OutputError(_not_kept(name, error)) from error
    return descriptor, Path(path)


def _not_kept(name: str, error: OSError) -> str:
    return (
        f"{name} cannot be kept: {error.strerror or error}. Remove uploads, or ask whoever runs "
        "this server."
    )


@contextmanager
def turn() -> Iterator[None]:
    """Hold the lock for reserving room, across threads and servers, and remove dead files.

    Raises OutputError if nothing can be kept.
    """
    incoming = uploads_folder() / INCOMING
    with ExitStack() as stack:
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(incoming / LOCK))
            for left in incoming.iterdir():
                if left.name != LOCK and not is_held(left):  # its process has ended
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(_nowhere(error)) from error
        yield


def _nowhere(error: OSError) -> str:
    return (
        f"Uploads cannot be kept in {uploads_folder()}: {error.strerror or error}. Set "
        "SAMSVAE_RUNS to a folder that can be written to, on a file system with locks."
    )


def refuse_other_formats(file: BinaryIO, name: str, size: int) -> None:
    """Raise DataError for an upload without HDF5's signature, whatever its name."""
    place = 0
    while place < size:
        file.seek(place)
        if file.read(len(HDF5)) == HDF5:
            file.seek(0)
            return
        place = max(512, 2 * place)  # a user block may come before the signature
    file.seek(0)
    raise DataError(
        f"{name} is not an .h5ad file: expected HDF5, found a file that begins with "
        f"{file.read(16)!r}. Nothing was kept. Save the data with anndata's write_h5ad."
    )


def _room_for(name: str, size: int) -> Path:
    """Return the folder of uploads if there is room for one more, else raise OutputError.

    Call it while holding `turn`.
    """
    folder = uploads_folder()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(_nowhere(error)) from error
    if size > largest_upload():
        raise OutputError(
            f"{name} has {size:,} bytes; {largest_upload():,} is the limit for an upload here. Put "
            "it where the server reads data from, or keep fewer cells or genes in it."
        )
    if used() + size > largest_total():
        raise OutputError(
            f"There is no room for {name}: uploads take {used():,} of {largest_total():,} bytes. "
            "Remove some that are not needed."
        )
    if free < size + SPARE:
        raise OutputError(
            f"There is no room for {name}: the disk has {free:,} bytes free. Remove uploads that "
            "are not needed."
        )
    return folder


def save_genes(text: str) -> str:
    """Save a list of genes and return its id; raises DataError if it is empty or too long.

    Names are separated by new lines, commas, spaces or semicolons.
    """
    if len(text) > MOST_GENES:
        raise DataError(f"The list has {len(text):,} characters; {MOST_GENES:,} is the limit.")
    genes = list(dict.fromkeys(g for g in re.split(r"[\s,;]+", text.replace("\0", " ")) if g))
    if not genes:
        raise DataError("The list names no genes; give one name per line.")
    content = "".join(f"{gene}\n" for gene in genes).encode(errors="replace")
    name = f"genes-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    with turn():
        if not (uploads_folder() / name).exists():
            atomic_write(_room_for("the list of genes", len(content)) / name, content)
    return f"{UPLOADS}/{name}"


def listed_genes(genes: str) -> list[str]:
    """Return the names in a list that `save_genes` saved."""
    return resolve(genes, ".txt").read_text(encoding="utf-8").split()


def genes_of_list(genes: str, found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the genes of a file that a list names, by any of their names, and unknown names.

    `found` is the output of `samsvae inspect` for the file.
    """
    names, ids = found["genes"], found["gene_ids"] or []
    by_id = dict(zip(ids, names, strict=False))
    return known_genes(listed_genes(genes), names, by_id)


def delete(data: str) -> None:
    """Remove an upload; raises DataError for other files, and while a run needs it."""
    path = resolve(data)
    if not data.startswith(f"{UPLOADS}/"):
        raise DataError(f"{data!r} is in a folder of the operator; only uploads can be removed.")
    if needed := [
        job.name
        for job in listed(runs_folder())
        if job.state != "finished" and job.data and Path(job.data) == path
    ]:
        raise DataError(
            f"{data} is needed by runs that have not finished: {some(needed)}. Discard them first."
        )
    path.unlink(missing_ok=True)
