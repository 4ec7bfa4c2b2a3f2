"""Files that are wrong in many ways, reproducible by seed, for `fuzz` to read.

Half of them are .h5ad files; the rest are zips of bundles, GMT files and session files. A mutation
changes bytes, or the meaning: types, shapes, links, names, encodings, numbers, depth.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import stat
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.bundle.layout import FILES

Rng = random.Random
PAGES = ("overview", "perturbation", "masks", "compose")  # pages a session may name
TURNS = ("h5ad", "zip", "h5ad", "gmt", "h5ad", "session")  # kinds in turn


class Case(NamedTuple):
    """One wrong file: its claimed kind, how it was made wrong, and where it is."""

    number: int
    kind: str
    mutation: str
    path: str


def corpus(folder: Path, n: int, seed: int, bundle: Path) -> list[Case]:
    """Write n wrong files; `bundle` is a whole one from which zips are made."""
    folder.mkdir(parents=True, exist_ok=True)
    bases = Bases(folder / "bases", bundle)
    cases = []
    for number in range(n):
        kind = TURNS[number % len(TURNS)]
        rng = Rng(f"{seed} {number}")
        mutations = MUTATIONS[kind]
        before = sum(case.kind == kind for case in cases)
        mutation = list(mutations)[before % len(mutations)]  # each in turn
        path = folder / f"{number:04}-{kind}-{mutation}.{kind}"
        mutations[mutation](path, rng, bases)
        cases.append(Case(number, kind, mutation, str(path)))
    shutil.rmtree(folder / "bases")
    return cases


class Bases:
    """Whole files from which wrong ones are made."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        folder.mkdir()
        self.h5ads = [_h5ad(folder / f"{i}.h5ad", i) for i in range(4)]
        self.bundle = {name: (bundle / name).read_bytes() for name in FILES}
        self.manifest: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
        self.gmt = "".join(
            f"SET_{i}\thttps://example.org/{i}\t"
            + "\t".join(f"G{j}" for j in range(i, i + 8))
            + "\n"
            for i in range(12)
        ).encode()
        self.session: dict[str, Any] = {
            "schema": 1,
            "model": "tiny",
            "checksum": "0" * 64,
            "pages": {page: {"p": ["A"], "c": ["A:1,B:0.5"]} for page in PAGES},
            "kept": [{"title": "A", "page": "compose", "query": {"c": ["A:1"]}, "checksum": "0"}],
            "collections": {"own": self.gmt.decode()},
            "names": {"schema": 1, "mechanisms": {"0": {"name": "a", "note": "b"}}},
        }


def _h5ad(path: Path, i: int) -> Path:
    rng = np.random.default_rng(i)
    counts = rng.poisson(2.0, size=(40, 12)).astype(np.float32)
    labels = np.resize(["ctrl", "KLF1", "SET", "KLF1+SET"], 40)
    obs = {"perturbation": pd.Categorical(labels), "batch": np.resize([1, 2], 40)}
    obs |= {"total_counts": counts.sum(1) + 5, "dose": np.resize(["1", "0.5"], 40)}
    if i % 2:
        obs["perturbation"] = labels
    cells = anndata.AnnData(
        X=[counts, sp.csr_matrix(counts), sp.csc_matrix(counts), counts.astype(np.int64)][i],
        obs=pd.DataFrame(obs, index=[f"c{j}" for j in range(40)]),
        var=pd.DataFrame({"length": np.arange(12)}, index=[f"G{j}" for j in range(12)]),
        layers={"counts": sp.csr_matrix(counts)} if i else {},
        obsm={"dosages": pd.DataFrame({"A": np.ones(40)}, index=[f"c{j}" for j in range(40)])},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.write_h5ad(path, compression="gzip" if i == 3 else None)
    return path


# Bytes


def flipped(content: bytes, rng: Rng, n: int, first: int = 0, last: int | None = None) -> bytes:
    made = bytearray(content)
    for _ in range(n):
        place = rng.randrange(first, min(last or len(made), len(made)))
        made[place] ^= 1 << rng.randrange(8)
    return bytes(made)


def cut(content: bytes, rng: Rng) -> bytes:
    return content[: rng.randrange(len(content))]


def blanked(content: bytes, rng: Rng) -> bytes:
    start = rng.randrange(len(content))
    length = rng.randrange(1, 512)
    return content[:start] + bytes([rng.choice([0, 255])]) * length + content[start + length :]


def moved(content: bytes, rng: Rng) -> bytes:
    start, other = rng.randrange(len(content)), rng.randrange(len(content))
    length = rng.randrange(1, 256)
    piece = content[start : start + length]
    return content[:other] + piece + content[other + len(piece) :]


def grown(content: bytes, rng: Rng) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + rng.randbytes(rng.randrange(1, 64)) + content[place:]


BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {
    "few-bits": lambda c, r: flipped(c, r, r.randrange(1, 5)),
    "many-bits": lambda c, r: flipped(c, r, r.randrange(20, 400)),
    "first-bits": lambda c, r: flipped(c, r, r.randrange(1, 30), 0, 4096),
    "cut": cut,
    "blanked": blanked,
    "moved": moved,
    "grown": grown,
}


# .h5ad


def h5ad_bytes(change: Callable[[bytes, Rng], bytes]) -> Callable[[Path, Rng, Bases], None]:
    def made(path: Path, rng: Rng, bases: Bases) -> None:
        path.write_bytes(change(rng.choice(bases.h5ads).read_bytes(), rng))

    return made


def h5ad_meaning(
    change: Callable[[h5py.File, Rng], None],
) -> Callable[[Path, Rng, Bases], None]:
    def made(path: Path, rng: Rng, bases: Bases) -> None:
        shutil.copyfile(rng.choice(bases.h5ads), path)
        with h5py.File(path, "a") as file:
            change(file, rng)

    return made


def items(file: h5py.File, kind: type = h5py.Dataset) -> list[str]:
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, kind) else None)
    return found


def replaced(file: h5py.File, name: str, *args: Any, **options: Any) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    made = file.create_dataset(name, *args, **options)
    for key, value in attributes.items():
        made.attrs[key] = value


def gone(file: h5py.File, rng: Rng) -> None:
    del file[rng.choice([*items(file), *items(file, h5py.Group)])]


def other_type(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    shape = file[name].shape or (3,)
    text, reference = h5py.string_dtype(), h5py.ref_dtype
    compound = np.dtype([("a", "f4"), ("b", "i8")])
    dtype = rng.choice(
        [text, reference, compound, "c16", "f2", "bool", "i1", "u8", "S7", "V9", "f8"]
    )
    replaced(file, name, shape, dtype)


def other_shape(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    dtype = file[name].dtype
    shape = rng.choice([(), (0,), (1,), (3, 3), (40, 0), (0, 12), (2, 2, 2), (41,), (12, 40)])
    replaced(file, name, shape, dtype)


def huge_shape(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    shape = rng.choice([(10**12,), (10**6, 10**6), (40, 10**9), (2**31 + 7,), (10**8,)])
    replaced(file, name, shape, file[name].dtype, chunks=tuple(min(n, 64) for n in shape))


def packed_huge(file: h5py.File, rng: Rng) -> None:
    replaced(file, rng.choice(items(file)), data=np.zeros(2 * 10**8, "i1"), compression="gzip")


def odd_numbers(file: h5py.File, rng: Rng) -> None:
    name = rng.choice([n for n in items(file) if file[n].dtype.kind in "fiu" and file[n].shape])
    values = np.array(file[name], dtype=np.float64)
    odd = [np.nan, np.inf, -np.inf, -1, -(2.0**40), 0.5, 1e300, 2.0**31, 2.0**63]
    for _ in range(rng.randrange(1, 6)):
        values.flat[rng.randrange(values.size)] = rng.choice(odd)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        same = values.astype(file[name].dtype)
    replaced(file, name, data=values if rng.random() < 0.5 else same)


def odd_attributes(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(["/", *items(file), *items(file, h5py.Group)])
    attributes = file[name].attrs
    key = rng.choice(sorted(attributes) or ["encoding-type"])
    odd = ["", "csr_matrix", "categorical", "of the future", 3, 1e9, [1, 2], [-1, 10**12], b"\xff"]
    odd += ["x" * 60_000, np.nan, "array", "string-array", "dataframe", "rec-array"]
    if rng.random() < 0.2 and key in attributes:
        del attributes[key]
    else:
        attributes[key] = rng.choice(odd)


def lying_shape(file: h5py.File, rng: Rng) -> None:
    groups = [name for name in items(file, h5py.Group) if "shape" in file[name].attrs]
    if groups:
        shapes = [[40], [40, 12, 1], [-1, 12], [10**12, 12], [40, 2**62], ["a", "b"], [39, 12], []]
        file[rng.choice(groups)].attrs["shape"] = rng.choice(shapes)
    else:
        replaced(file, "X", (40, 13), "f4")


def soft_link(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    del file[name]
    file[name] = h5py.SoftLink(rng.choice(["/obs", "/", f"/{name}", "/nowhere", "/obs/_index"]))


def external_link(file: h5py.File, rng: Rng) -> None:
    name = rng.choice([*items(file), *items(file, h5py.Group)])
    del file[name]
    target = rng.choice(["/etc/passwd", "../../outside/canary.h5ad", file.filename, ""])
    file[name] = h5py.ExternalLink(target or "nowhere", rng.choice(["/X", "/", "/obs"]))


def ring(file: h5py.File, rng: Rng) -> None:
    file[f"{rng.choice(['obs', 'var', 'uns', 'layers'])}/ring"] = file[rng.choice(["/", "obs"])]


def stored_elsewhere(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    place = rng.choice(["/etc/passwd", "../../outside/canary.bin"])
    replaced(file, name, (40, 12), "f4", external=[(place, 0, 40 * 12 * 4)])


def virtual(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(items(file))
    layout = h5py.VirtualLayout((40, 12), "f4")
    layout[:] = h5py.VirtualSource(rng.choice(["../../outside/canary.h5ad", "."]), "X", (40, 12))
    del file[name]
    file.create_virtual_dataset(name, layout)


def odd_names(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(["obs/_index", "var/_index"])
    values = [b"same"] * len(file[name])
    values[0] = rng.choice([b"\xff\xfe", b"", b"x" * 10**6, b"=cmd()", b"<b>\x1b[31m"])
    if rng.random() < 0.7:
        values = [b"%d" % i + values[0] for i in range(len(values))]
    replaced(file, name, data=np.array(values, dtype=object), dtype=h5py.string_dtype("utf-8"))


def odd_labels(file: h5py.File, rng: Rng) -> None:
    words = ["", "ctrl", "+", "++", "+" * 500, "A+A+A", "nan", "\u202e", "x" * 50_000]
    values = np.array([rng.choice(words) for _ in range(40)], dtype=object)
    if isinstance(file["obs/perturbation"], h5py.Group):
        del file["obs/perturbation"]
        made = file.create_dataset("obs/perturbation", data=values, dtype=h5py.string_dtype())
        made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    else:
        replaced(file, "obs/perturbation", data=values, dtype=h5py.string_dtype())


def odd_codes(file: h5py.File, rng: Rng) -> None:
    if "obs/perturbation/codes" not in file:
        return odd_labels(file, rng)
    codes = np.array(file["obs/perturbation/codes"])
    codes[rng.randrange(len(codes))] = rng.choice([-1, -128, 100, 127])
    file["obs/perturbation/codes"][...] = codes
    return None


def odd_indices(file: h5py.File, rng: Rng) -> None:
    found = [name for name in items(file) if name.rsplit("/")[-1] in ("indices", "indptr")]
    if not found:
        return odd_numbers(file, rng)
    name = rng.choice(found)
    values = np.array(file[name])
    values[rng.randrange(len(values))] = rng.choice([-1, 10**9, -(2**31), 2**31 - 1, 13, 0])
    file[name][...] = values
    return None


def deep(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["uns", "obs", "X/deep", "layers/deep"])
    if place.startswith("X") and isinstance(file["X"], h5py.Dataset):
        del file["X"]
    file.require_group(place + "/a" * rng.choice([200, 1000]))


def crowded(file: h5py.File, rng: Rng) -> None:
    group = file.require_group(rng.choice(["uns/many", "layers", "obs"]))
    for i in range(2_000):
        group.create_group(f"g{i}")


def no_utf8(file: h5py.File, rng: Rng) -> None:
    file.create_group(rng.choice([b"uns/\xfb", b"obs/\xff\xfe", b"layers/\x80"]))


H5AD = {name: h5ad_bytes(change) for name, change in BYTES.items()} | {
    change.__name__.replace("_", "-"): h5ad_meaning(change)
    for change in (
        *(gone, other_type, other_shape, huge_shape, odd_numbers, odd_attributes, lying_shape),
        *(soft_link, external_link, ring, stored_elsewhere, virtual, odd_names, odd_labels),
        *(odd_codes, odd_indices, deep, crowded, no_utf8, packed_huge),
    )
}


# GMT


def gmt(change: Callable[[bytes, Rng], bytes]) -> Callable[[Path, Rng, Bases], None]:
    def made(path: Path, rng: Rng, bases: Bases) -> None:
        path.write_bytes(change(bases.gmt, rng))

    return made


def odd_lines(content: bytes, rng: Rng) -> bytes:
    lines = content.splitlines(keepends=True)
    odd = [b"\t\t\t\n", b"A\n", b"\n" * 9, b"A\tB\n", b"\tB\tC\n", b"A,B,C\n", b"x" * 10**6 + b"\n"]
    odd += [lines[0], b"A\tB\t" + b"G\t" * 10**5 + b"\n", b"A\x00\tB\tC\n", b"A\x1b\tB\tC\r\r\n"]
    odd += [b"\xff\xfe\tB\tC\n", "\u2028\t\u202e\tC\n".encode(), b"=cmd()\t=1\t=2\n"]
    lines.insert(rng.randrange(len(lines)), rng.choice(odd))
    return b"".join(lines)


GMT = {name: gmt(change) for name, change in BYTES.items()} | {
    "odd-lines": gmt(odd_lines),
    "utf16": gmt(lambda c, r: c.decode().encode("utf-16")),
    "columns": gmt(lambda c, r: b"A\tB\nna\tna\nG1\tG2\n"),
    "packed": gmt(lambda c, r: flipped(gzip.compress(c), r, r.randrange(3))),
    "bomb": gmt(lambda c, r: gzip.compress(bytes(2 * 10**8), 9)),
    "none": gmt(lambda c, r: r.choice([b"", b"\n", b"\t", b"\xef\xbb\xbf", b"\x1f\x8b", b"\0"])),
    "noise": gmt(lambda c, r: r.randbytes(4000)),
}


# JSON of sessions, and of bundles


def odd_json(value: Any, rng: Rng, share: float = 0.15) -> Any:
    """Return the value with some parts replaced by other types and sizes."""
    if rng.random() < share:
        odd = [None, True, -1, 10**400, 1e308, "", "x" * 10**5, [], {}, [[]], {"a": None}]
        odd += ["<script>", "../..", "\x00", {"": ""}, [1] * 10_000, float("nan"), "\ud800"]
        return rng.choice(odd)
    if isinstance(value, dict):
        return {
            (
                key if rng.random() > share / 3 else rng.choice(["", "\x00", "<a>", key * 100])
            ): odd_json(each, rng, share)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [odd_json(each, rng, share) for each in value]
    return value


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode(errors="surrogatepass")


def session(change: Callable[[dict[str, Any], Rng], bytes]) -> Callable[[Path, Rng, Bases], None]:
    def made(path: Path, rng: Rng, bases: Bases) -> None:
        path.write_bytes(change(bases.session, rng))

    return made


def deep_json(value: dict[str, Any], rng: Rng) -> bytes:
    inner = b"[" * 10**5 + b"]" * 10**5
    return rng.choice([inner, b'{"pages":' + inner + b',"checksum":""}', b'{"a":' * 50_000])


SESSION = {
    name: session(lambda value, rng, change=change: change(as_json(value), rng))  # type: ignore[misc]
    for name, change in BYTES.items()
} | {
    "odd-json": session(lambda value, rng: as_json(odd_json(value, rng))),
    "few-odd": session(lambda value, rng: as_json(odd_json(value, rng, 0.03))),
    "deep-json": session(deep_json),
    "utf16": session(lambda value, rng: json.dumps(value).encode("utf-16")),
    "none": session(lambda value, rng: rng.choice([b"", b"null", b"3", b"[]", b"{}", b'"a"'])),
    "large": session(lambda value, rng: as_json(value | {"model": "x" * 21 * 2**20})),
}


# Zips of bundles


def zipped(path: Path, files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            packed.writestr(info, content)


def unchanged(_: zipfile.ZipInfo) -> None:
    pass


def sealed(bases: Bases, files: dict[str, bytes], manifest: dict[str, Any] | None = None) -> Any:
    """Return the files of a bundle in a folder, with a manifest that has their checksums."""
    listed = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    told = {**bases.manifest, "files": listed, **(manifest or {})}
    return {f"tiny/{name}": content for name, content in files.items()} | {
        "tiny/manifest.json": as_json(told)
    }


def zip_bytes(change: Callable[[bytes, Rng], bytes]) -> Callable[[Path, Rng, Bases], None]:
    def made(path: Path, rng: Rng, bases: Bases) -> None:
        zipped(path, sealed(bases, bases.bundle), unchanged)
        path.write_bytes(change(path.read_bytes(), rng))

    return made


def inner_bytes(path: Path, rng: Rng, bases: Bases) -> None:
    """Damage a file inside, with a manifest that has the damaged file's checksum."""
    name = rng.choice(sorted(bases.bundle))
    change = rng.choice(sorted(BYTES))
    files = bases.bundle | {name: BYTES[change](bases.bundle[name], rng)}
    zipped(path, sealed(bases, files), unchanged)


def inner_json(path: Path, rng: Rng, bases: Bases) -> None:
    name = rng.choice(["config.json", "metrics.json"])
    value = odd_json(json.loads(bases.bundle[name]), rng, rng.choice([0.02, 0.1]))
    files = bases.bundle | {name: as_json(value)}
    zipped(path, sealed(bases, files), unchanged)


def inner_deep(path: Path, rng: Rng, bases: Bases) -> None:
    name = rng.choice(["config.json", "metrics.json"])
    zipped(path, sealed(bases, bases.bundle | {name: b"[" * 10**5}), unchanged)


def inner_table(path: Path, rng: Rng, bases: Bases) -> None:
    """Drop a column of a table, or give it odd values or other rows."""
    name = rng.choice([n for n in bases.bundle if n.endswith(".csv")])
    lines = bases.bundle[name].decode().splitlines()
    place = rng.randrange(len(lines))
    odd = ["", ",", '"', "x" * 10**5, "nan,nan,nan", "a,b,c,d,e,f,g,h,i,j", "-1", "1e400,0,0,0"]
    lines[place] = rng.choice(odd)
    files = bases.bundle | {name: "\n".join(lines).encode()}
    zipped(path, sealed(bases, files), unchanged)


def inner_other(path: Path, rng: Rng, bases: Bases) -> None:
    """Replace a file inside by another."""
    name, other = rng.sample(sorted(bases.bundle), 2)
    zipped(path, sealed(bases, bases.bundle | {name: bases.bundle[other]}), unchanged)


def lying_tensors(path: Path, rng: Rng, bases: Bases) -> None:
    """Give a safetensors header absurd sizes."""
    name = rng.choice(["weights.safetensors", "reference.safetensors"])
    header: dict[str, Any] = {
        "loc": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    }
    if rng.random() < 0.5:
        header = {
            f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(99)
        }
    text = as_json(header)
    content = rng.choice([len(text), 2**60, 0]).to_bytes(8, "little") + text + bytes(64)
    zipped(path, sealed(bases, bases.bundle | {name: content}), unchanged)


def odd_manifest(path: Path, rng: Rng, bases: Bases) -> None:
    files = sealed(bases, bases.bundle)
    manifest = odd_json(json.loads(files["tiny/manifest.json"]), rng, rng.choice([0.03, 0.2]))
    content = rng.choice([as_json(manifest), b"[" * 10**5, b"{", b'{"files": {"../x": ""}}', b"1"])
    zipped(path, files | {"tiny/manifest.json": content}, unchanged)


def odd_entry(path: Path, rng: Rng, bases: Bases) -> None:
    names = ["../evil", "/tmp/evil", "tiny/../../evil", "tiny\\..\\evil", "C:\\evil", "tiny/" * 50]
    names += ["tiny/\u202e.csv", "x" * 60_000, "tiny//evil", "./evil", "tiny/con", "tiny/evil\n"]
    zipped(path, sealed(bases, bases.bundle) | {rng.choice(names): b"evil"}, unchanged)


def odd_mode(path: Path, rng: Rng, bases: Bases) -> None:
    files = sealed(bases, bases.bundle)
    victim, kind = rng.choice(sorted(files)), rng.choice([stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK])

    def change(info: zipfile.ZipInfo) -> None:
        if info.filename == victim:
            info.external_attr = (kind | 0o777) << 16

    zipped(path, files | {victim: b"/etc/passwd"}, change)


def bomb(path: Path, rng: Rng, bases: Bases) -> None:
    name = rng.choice(sorted(bases.bundle))
    zipped(path, sealed(bases, bases.bundle | {name: bytes(10**8)}), unchanged)


def many_entries(path: Path, rng: Rng, bases: Bases) -> None:
    more = {f"tiny/{i}": b"" for i in range(rng.choice([600, 5_000]))}
    zipped(path, sealed(bases, bases.bundle) | more, unchanged)


def twice(path: Path, rng: Rng, bases: Bases) -> None:
    zipped(path, sealed(bases, bases.bundle), unchanged)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as packed:
        warnings.simplefilter("ignore")
        packed.writestr(f"tiny/{rng.choice(['card.md', 'manifest.json'])}", b"again")


def directory_bits(path: Path, rng: Rng, bases: Bases) -> None:
    """Damage the list of contents: names, sizes, offsets, flags."""
    made = io.BytesIO()
    zipped(made, sealed(bases, bases.bundle), unchanged)  # type: ignore[arg-type]
    content = made.getvalue()
    start = content.index(b"PK\x01\x02")
    path.write_bytes(flipped(content, rng, rng.randrange(1, 12), start))


ZIP = {name: zip_bytes(change) for name, change in BYTES.items()} | {
    change.__name__.replace("_", "-"): change
    for change in (
        *(inner_bytes, inner_json, inner_table, inner_other, inner_deep, lying_tensors),
        *(odd_manifest, odd_entry, odd_mode, bomb, many_entries, twice, directory_bits),
    )
}
MUTATIONS = {"h5ad": H5AD, "gmt": GMT, "session": SESSION, "zip": ZIP}
