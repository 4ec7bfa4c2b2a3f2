"""Where data files come from, uploads and the operator's folders, and how one is to be read.

Knows nothing of Streamlit. An id such as "uploads/screen-1f2e3d4c5b6a.h5ad" names a file; only
`resolve` turns one into a path, and only below the folders that the operator allows.
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
HDF5 = b"\x89HDF\r\n\x1a\n"  # how such a file begins
UPLOADS = "uploads"  # the folder, and how ids of what is in it begin
INCOMING = ".incoming"  # within it: files that are not whole yet
LOCK = ".lock"  # within it: whoever has it may look for room, of all threads and servers
MB = 2**20  # bytes, as Streamlit counts
PIECE = MB  # bytes in memory while a file is written
LARGEST_UPLOAD, LARGEST_TOTAL = "SAMSVAE_UPLOAD_MB", "SAMSVAE_UPLOADS_TOTAL_MB"
UPLOAD_MB, TOTAL_MB = 2_000, 20_000  # of one upload, of all
SPARE = 500 * MB  # bytes of the disk that uploads leave free
DEEPEST, MOST_FILES, MOST_LOOKED_AT = 4, 1_000, 20_000  # of a folder that is listed
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
    """Where trainings and uploads are kept: SAMSVAE_RUNS, or `runs` beside the checkout."""
    return Path(os.environ.get("SAMSVAE_RUNS") or ROOT / "runs").expanduser()


def uploads_folder() -> Path:
    return runs_folder() / UPLOADS


def folders() -> dict[str, Path]:
    """Folders whose files can be chosen, by the first part of their ids: uploads first.

    The others are named in SAMSVAE_DATA_DIRS, with os.pathsep between.
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
    """The file that an id names, all links followed; DataError for anything else.

    The message is the same whether there is no such file or none that may be read.
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
    """Whether a part of an id is "..", or begins with a dot as what is not whole yet does."""
    parts = PurePosixPath(rest).parts
    return rest.startswith("/") or any(part.startswith(".") for part in parts)


def listing() -> list[Found]:
    """Every .h5ad file that can be chosen, uploads first, newest first among them.

    Folders are looked into DEEPEST levels deep, links to folders are not followed, and after
    MOST_FILES files, or MOST_LOOKED_AT names, a folder's search ends.
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
                except (DataError, OSError):  # leads away, or has gone
                    continue
                found.append(Found(data, about.st_size, about.st_mtime))
    return found


# Uploads


def largest_upload() -> int:
    """Bytes of one upload: SAMSVAE_UPLOAD_MB."""
    return megabytes(LARGEST_UPLOAD, UPLOAD_MB)


def largest_total() -> int:
    """Bytes of all uploads together: SAMSVAE_UPLOADS_TOTAL_MB."""
    return megabytes(LARGEST_TOTAL, TOTAL_MB)


def used() -> int:
    """Bytes that uploads take, those under way and models that were brought included."""
    total = 0
    places = [uploads_folder(), *(runs_folder() / name for name in brought(runs_folder()))]
    for where, _, names in (step for place in places for step in os.walk(place)):
        for name in names:
            try:
                total += Path(where, name).lstat().st_size
            except OSError:  # has gone since
                continue
    return total


def safe_stem(name: str, longest: int = 60) -> str:
    """A file's name without folders and ending, with nothing that a shell or a path minds."""
    stem = re.split(r"[/\\]", name)[-1].removesuffix(".h5ad")
    return NAME.sub("_", stem).strip("._-")[:longest] or "data"


def save(file: BinaryIO, name: str, size: int) -> str:
    """Keep an upload, written in pieces; its id. The same content is kept once.

    Raises OutputError where it is too large, or the disk too full. Nothing is left then.
    """
    descriptor, temporary = _begun(name, size)
    try:
        checksum, n_bytes = hashlib.sha256(), 0
        with os.fdopen(descriptor, "r+b") as written:
            while piece := file.read(PIECE):
                n_bytes += len(piece)
                if n_bytes > size:
                    raise OutputError(f"{name} is longer than was said. Upload it again.")
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
    """An open file of this size to write to, which counts from now on, and where it is."""
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
        f"{name} cannot be kept: {error.strerror or error}. Remove uploads, or ask who runs this "
        "server."
    )


@contextmanager
def turn() -> Iterator[None]:
    """One at a time, of all threads and servers, looks for room; what nobody writes any more goes.

    Raises OutputError where nothing can be kept.
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
    """Raises DataError for an upload without HDF5's signature, whatever its name says."""
    place = 0
    while place < size:
        file.seek(place)
        if file.read(len(HDF5)) == HDF5:
            file.seek(0)
            return
        place = max(512, 2 * place)  # where a file with a user block may have it
    file.seek(0)
    raise DataError(
        f"{name} is not an .h5ad file: expected HDF5, found a file that begins with "
        f"{file.read(16)!r}. Nothing was kept. Save the data with anndata's write_h5ad."
    )


def _room_for(name: str, size: int) -> Path:
    """The folder of uploads, if there is room for one more; to be asked in one's `turn`."""
    folder = uploads_folder()
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(_nowhere(error)) from error
    if size > largest_upload():
        raise OutputError(
            f"{name} has {size:,} bytes; {largest_upload():,} is the most for an upload here. Put "
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
    """Keep a list of genes, one to a line or with commas, spaces or semicolons between; its id.

    Raises DataError for a list of none, or one too long.
    """
    if len(text) > MOST_GENES:
        raise DataError(f"The list has {len(text):,} characters; {MOST_GENES:,} is the most.")
    genes = list(dict.fromkeys(g for g in re.split(r"[\s,;]+", text.replace("\0", " ")) if g))
    if not genes:
        raise DataError("The list names no genes; give one name to a line.")
    content = "".join(f"{gene}\n" for gene in genes).encode(errors="replace")
    name = f"genes-{hashlib.sha256(content).hexdigest()[:12]}.txt"
    with turn():
        if not (uploads_folder() / name).exists():
            atomic_write(_room_for("the list of genes", len(content)) / name, content)
    return f"{UPLOADS}/{name}"


def listed_genes(genes: str) -> list[str]:
    """The names in a list that `save_genes` kept."""
    return resolve(genes, ".txt").read_text(encoding="utf-8").split()


def genes_of_list(genes: str, found: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The genes of a file that a kept list names, by any of their names, and what it names besides.

    `found` is what `samsvae inspect` says of the file.
    """
    names, ids = found["genes"], found["gene_ids"] or []
    by_id = dict(zip(ids, names, strict=False))
    return known_genes(listed_genes(genes), names, by_id)


def delete(data: str) -> None:
    """Remove an upload. Raises DataError for a file that is none."""
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
