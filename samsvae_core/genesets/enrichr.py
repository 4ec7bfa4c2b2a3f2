"""Gene-set libraries of Enrichr, downloaded on request and cached."""

import gzip
import inspect
import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from samsvae_core.genesets.collections import CONTROL, MAX_NAME, SEPARATOR, Collection, parse_gmt
from samsvae_core.system.files import OutputError, atomic_write, cache_folder
from samsvae_core.system.messages import close

LOGGER = logging.getLogger(__name__)
LIBRARY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")  # also the name of a file
ORGANISMS = ["Human", "Mouse", "Yeast", "Fly", "Fish", "Worm"]
SECONDS = 60  # limit of a whole download


def enrichr(name: str, organism: str = "Human", refresh: bool = False) -> Collection:
    """Return a library of Enrichr: the copy on disk, or a download through gseapy, which is kept.

    Copies are in the folder `SAMSVAE_CACHE`. A damaged copy is downloaded again, and any copy on
    `refresh`. Raises ValueError for a library that Enrichr does not have, and if it cannot be
    reached.
    """
    if not LIBRARY.fullmatch(name):
        raise ValueError(
            "Expected the name of an Enrichr library, of letters, digits, '_', '.' and '-', such as"
            f" MSigDB_Hallmark_2020; found {name[:60]!r}."
        )
    if organism not in ORGANISMS:
        raise ValueError(f"Unknown organism {organism!r}; choose one of {', '.join(ORGANISMS)}.")
    about = _about(name)
    kept = None if refresh or about.get("organism") != organism else _kept(name, about["sha256"])
    if kept is None:
        text = _gmt(_downloaded(name, organism))
        kept = parse_gmt(text, name)
        today = datetime.now(UTC).date().isoformat()
        about = {"name": name, "organism": organism, "date": today, "sha256": kept.checksum}
        try:
            atomic_write(_enrichr_file(f"{name}.gmt.gz"), gzip.compress(text, mtime=0))
            beside = json.dumps({**about, "n_sets": len(kept.sets)}, indent=2)
            atomic_write(_enrichr_file(f"{name}.json"), beside.encode())
        except OutputError as error:
            LOGGER.warning("%s is downloaded again next time: %s", name, error)
    return replace(
        kept,
        title=f"Enrichr {name}",
        version=f"downloaded {about['date']}",
        source=f"Enrichr ({organism}), https://maayanlab.cloud/Enrichr",
        licence="that of the library's own source, see https://maayanlab.cloud/Enrichr/#libraries",
    )


def cached_enrichr(organism: str = "Human") -> dict[str, str]:
    """Return the libraries of Enrichr on disk by name, with the day of their download."""
    kept = {}
    for path in sorted(_enrichr_file("*").parent.glob("*.gmt.gz")):
        name = path.name.removesuffix(".gmt.gz")
        about = _about(name)
        if about.get("organism") == organism:
            kept[name] = about["date"]
    return kept


def _enrichr_file(name: str) -> Path:
    return cache_folder() / "enrichr" / name


def _about(name: str) -> dict[str, str]:
    """Return organism, date and checksum of the copy on disk; empty if they cannot be read."""
    try:
        about = json.loads(_enrichr_file(f"{name}.json").read_text(encoding="utf-8"))
        return {key: str(about[key]) for key in ("organism", "date", "sha256")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _kept(name: str, sha256: str) -> Collection | None:
    """Return the copy on disk, or None if it is damaged."""
    path = _enrichr_file(f"{name}.gmt.gz")
    try:
        collection = parse_gmt(path.read_bytes(), name)
        if collection.checksum == sha256:
            return collection
        why = "its checksum is another"
    except (OSError, ValueError) as error:
        why = str(error)
    LOGGER.warning("Damaged file %s is downloaded again: %s", path, why)
    return None


def _gmt(sets: dict[str, list[str]]) -> bytes:
    """Return the download as a GMT file, without empty sets and invalid names."""
    lines = {}
    for term, genes in sets.items():
        clean = CONTROL.sub(" ", term).strip()[:MAX_NAME]
        known = [gene.strip() for gene in genes if not SEPARATOR.search(gene.strip())]
        if clean and any(known):
            lines[clean] = "\t".join([clean, "", *known])
    return "".join(f"{line}\n" for line in lines.values()).encode()


def _downloaded(name: str, organism: str) -> dict[str, list[str]]:
    """Return the sets of a library, through a worker that is stopped at the time limit."""
    with TemporaryDirectory() as folder:
        program = f"{inspect.getsource(_download)}\n{_download.__name__}()"
        command = [sys.executable, "-P", "-c", program, folder, name, organism]
        environment = os.environ | {"MPLBACKEND": "Agg"}  # a notebook's own backend would not load
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=SECONDS
            )
            last = [f"exit status {ended.returncode}", *ended.stderr.split("\n")[:-1]][-1]
            why = last.partition("(Caused by ")[2].removesuffix(")") or last
            if "NameResolutionError" in why or "NewConnectionError" in why:
                why = "no connection to maayanlab.cloud"
        except subprocess.TimeoutExpired:
            why = f"no answer within {SECONDS} s"
        answer = Path(folder, "answer.json")
        if not answer.is_file():
            raise ValueError(
                f"Enrichr could not be reached ({why[:300]}). Shipped collections, .gmt files and"
                " libraries downloaded before work offline; otherwise try again with a network."
            )
        found = json.loads(answer.read_text(encoding="utf-8"))
    if found["sets"] is None:
        names = found["names"]
        near = close(name, names, 5, 0.4)
        raise ValueError(
            f"Enrichr has no library {name!r} for {organism} among its {len(names)}; "
            + (f"close to it are {', '.join(near)}." if near else "no name is close to it.")
        )
    return found["sets"]


def _download() -> None:
    """Write the sets of a library, or null, and the names of all libraries: the worker's program.

    It is sent as source, so it stands alone. By itself gseapy would keep a copy in the home folder,
    and retry for half a minute without a network.
    """
    import json
    import sys
    from functools import partial
    from pathlib import Path

    from gseapy.parser import download_library, get_library_name

    folder, name, organism = sys.argv[1:]
    module = vars(sys.modules["gseapy.enrichr"])
    module.update(DEFAULT_CACHE_PATH=folder, retry=partial(module["retry"], 1))
    names = get_library_name(organism)
    sets = download_library(name, organism) if name in names else None
    part = Path(folder, "answer.part")
    part.write_text(json.dumps({"names": names, "sets": sets}), encoding="utf-8")
    part.rename(part.with_suffix(".json"))
