"""Valid and faulty .h5ad files, and a reader of them that is independent of ours.

Every file is written by h5py alone, with types, byte orders, filters, encodings and links as other
programs may write them. Most of them get a fault. `truth` reads a file with h5py and NumPy; the
project must read the same, and refuse what `truth` calls unsound.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.fuzz.mutations import Case

Rng = random.Random
TEXT = h5py.string_dtype()
NUMBERS = (
    "<f4",
    "<f8",
    ">f4",
    ">f8",
    "<f2",
    ">f2",
    "g",
    "i1",
    "u1",
    "<i2",
    ">i4",
    "<u4",
    ">i8",
    "u8",
)
INDICES = ("<i4", "<i8", ">i4", ">i8", "u4", "u8", "i2", ">u2", "i1")
LABELS = ("ctrl", "A", "B")
MISSING = ("", "nan", "NaN", "NA", "<NA>", "None")
SEVERAL = 0.3  # share of files with two faults
SOUND = 0.2  # share of files without a fault


def corpus(folder: Path, n: int, seed: int) -> list[Case]:
    """Write n files, the same for the same seed except for HDF5's time stamps."""
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for number in range(n):
        rng = Rng(f"structure {seed} {number}")
        path = folder / f"{number:05}.h5ad"
        faults = [] if rng.random() < SOUND else [list(FAULTS)[number % len(FAULTS)]]
        if faults and rng.random() < SEVERAL:
            faults.append(rng.choice(list(FAULTS)))
        with h5py.File(path, "w", libver=rng.choice(["earliest", "latest"])) as file:
            write(file, rng)
            for name in faults:
                try:
                    FAULTS[name](file, rng)
                except (KeyError, AttributeError, ValueError, TypeError, OSError):
                    if len(faults) == 1:  # the second may find nothing left to change
                        raise
        cases.append(Case(number, "structure", "+".join(faults) or "sound", str(path)))
    return cases


# Writing


def write(file: h5py.File, rng: Rng) -> None:
    """Write a valid file of one of many kinds."""
    n, g = rng.randrange(13, 40), rng.randrange(3, 12)
    counts = np.array([[rng.choice([0, 0, 0, 1, 2, 7]) for _ in range(g)] for _ in range(n)])
    counts[0, 0] = 1
    file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    labels = [LABELS[i % 3] for i in range(n)]
    table(file, "obs", [f"c{i}" for i in range(n)], rng, {"perturbation": labels})
    table(file, "var", [f"G{i}" for i in range(g)], rng, {})
    matrix(file, "X", counts, rng)
    for name in ("layers", "obsm", "uns"):
        group(file, name, "dict")
    if rng.random() < 0.2:
        matrix(file["layers"], "counts", counts, rng)


def group(parent: h5py.Group, name: str, encoding: str, version: str = "0.1.0") -> h5py.Group:
    made = parent.create_group(name)
    made.attrs.update({"encoding-type": encoding, "encoding-version": version})
    return made


def array(parent: h5py.Group, name: str, values: Any, rng: Rng, **options: Any) -> h5py.Dataset:
    """Write numbers with or without a filter, chunked or whole."""
    values = np.asarray(values)
    if values.size and values.ndim and rng.random() < 0.5:
        options["chunks"] = tuple(rng.randrange(1, size + 1) for size in values.shape)
        options |= rng.choice(
            [{}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}]
        )
        options |= rng.choice([{}, {"fletcher32": True}, {"maxshape": (None,) * values.ndim}])
    made = parent.create_dataset(name, data=values, **options)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


def texts(parent: h5py.Group, name: str, values: list[str], rng: Rng) -> h5py.Dataset:
    if rng.random() < 0.2:
        made = parent.create_dataset(name, data=np.array([v.encode() for v in values]))
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    else:
        kind = rng.choice([TEXT, h5py.string_dtype("ascii")])
        made = parent.create_dataset(name, data=np.array(values, object), dtype=kind)
        made.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    return made


def table(
    file: h5py.File, name: str, names: list[str], rng: Rng, columns: dict[str, list[str]]
) -> None:
    made = group(file, name, "dataframe", "0.2.0")
    index = rng.choice(["_index", "barcode"])
    texts(made, index, names, rng)
    for key, values in columns.items():
        if rng.random() < 0.5:
            categorical(made, key, values, rng)
        elif rng.random() < 0.3:
            nullable = group(made, key, "nullable-string-array")
            texts(nullable, "values", values, rng)
            array(nullable, "mask", np.zeros(len(values), bool), rng)
            nullable.attrs["na-value"] = "NA"
        else:
            texts(made, key, values, rng)
    extra = rng.choice([None, "f8", ">i4", "bool"])
    if extra:
        array(made, "score", np.arange(len(names)).astype(extra), rng)
    made.attrs["column-order"] = np.array([*columns, *["score"] * bool(extra)], dtype=TEXT)
    made.attrs["_index"] = index


def categorical(parent: h5py.Group, name: str, values: list[str], rng: Rng) -> None:
    made = group(parent, name, "categorical", "0.2.0")
    known = sorted(set(values), key=lambda _: rng.random())
    texts(made, "categories", known, rng)
    kind = rng.choice(["i1", "<i2", ">i4", "i8"])
    array(made, "codes", np.array([known.index(v) for v in values]).astype(kind), rng)
    made.attrs["ordered"] = False


def matrix(parent: h5py.Group, name: str, counts: np.ndarray, rng: Rng) -> None:
    kind, layout = rng.choice(NUMBERS), rng.choice(["dense", "csr", "csc"])
    if layout == "dense":
        array(parent, name, counts.astype(kind), rng)
        return
    made = group(parent, name, f"{layout}_matrix")
    lines = counts if layout == "csr" else counts.T
    rows, columns = np.nonzero(lines)
    starts = np.searchsorted(rows, np.arange(len(lines) + 1))
    order = np.arange(len(rows))
    if rng.random() < 0.3:  # in any order within a line
        order = np.array(sorted(order, key=lambda i: (rows[i], rng.random())), dtype=int)
    array(made, "data", lines[rows, columns][order].astype(kind), rng)
    array(made, "indices", columns[order].astype(rng.choice(INDICES)), rng)
    wide = [i for i in INDICES if np.iinfo(i).max >= len(rows)]
    array(made, "indptr", starts.astype(rng.choice(wide)), rng)
    made.attrs["shape"] = np.array(counts.shape, rng.choice(["i8", "i4", ">i8"]))


# Faults


def again(parent: h5py.Group, name: str, *args: Any, **options: Any) -> None:
    """Replace an array, keeping the attributes of the old one."""
    attributes = dict(parent[name].attrs)
    del parent[name]
    parent.create_dataset(name, *args, **options).attrs.update(attributes)


def as_sparse(file: h5py.File, rng: Rng) -> h5py.Group:
    """Make X sparse, if it is not."""
    while not isinstance(file["X"], h5py.Group) or "data" not in file["X"]:
        n, g = len(names_of(file, "obs")), len(names_of(file, "var"))
        del file["X"]
        matrix(file, "X", np.ones((n, g), int), rng)
    return file["X"]


def names_of(file: h5py.File, name: str) -> h5py.Dataset:
    return file[name][file[name].attrs["_index"]]


def with_values(change: Callable[[np.ndarray, Rng], None]) -> Callable[[h5py.File, Rng], None]:
    """Return a fault in an array of a sparse matrix, within what its type can hold."""

    def made(file: h5py.File, rng: Rng) -> None:
        name = change.__name__.split("_")[0]
        sparse = as_sparse(file, rng)
        values = sparse[name][:].astype(rng.choice(["i8", ">i8", "i4"]) if name != "data" else "f8")
        change(values, rng)
        again(sparse, name, data=values)

    return made


def indices_twice(values: np.ndarray, rng: Rng) -> None:
    values[rng.randrange(1, len(values))] = values[rng.randrange(len(values))]


def indices_beside(values: np.ndarray, rng: Rng) -> None:
    values[1] = values[0]


def indices_out(values: np.ndarray, rng: Rng) -> None:
    values[rng.randrange(len(values))] = rng.choice([-1, 2**31 - 1, 40, 41, -(2**31)])


def indptr_short(values: np.ndarray, rng: Rng) -> None:
    values[-1] -= rng.randrange(1, 4)


def indptr_long(values: np.ndarray, rng: Rng) -> None:
    values[-1] += rng.randrange(1, 4)


def indptr_down(values: np.ndarray, rng: Rng) -> None:
    values[rng.randrange(len(values))] = rng.choice([0, 1, 2**30, -1])


def indptr_late(values: np.ndarray, rng: Rng) -> None:
    values[0] = 1


def data_odd(values: np.ndarray, rng: Rng) -> None:
    odd = [np.nan, np.inf, -np.inf, -1, 0.5, 2.0**24 + 1, 2.0**40, 1e300, -0.0, 2.0**24]
    values[rng.randrange(len(values))] = rng.choice(odd)


def longer(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(["data", "indices", "indptr"])
    sparse = as_sparse(file, rng)
    values = sparse[name][:]
    values = np.concatenate([values, values[-1:]]) if rng.random() < 0.5 else values[:-1]
    again(sparse, name, data=values)


def two_dimensions(file: h5py.File, rng: Rng) -> None:
    name = rng.choice(["data", "indices", "indptr"])
    sparse = as_sparse(file, rng)
    again(sparse, name, data=sparse[name][:][:, None])


def other_shape(file: h5py.File, rng: Rng) -> None:
    sparse = as_sparse(file, rng)
    n, g = (int(size) for size in sparse.attrs["shape"])
    shapes: list[Any] = [[g, n], [n + 1, g], [n, g + 1], [n], [n, g, 1], [-n, g], ["a", "b"]]
    shapes += [[n + 0.5, g], [10**12, g], [n, 2**62], [], 3, "shape"]
    if rng.random() < 0.1:
        del sparse.attrs["shape"]
    else:
        sparse.attrs["shape"] = rng.choice(shapes)


def other_encoding(file: h5py.File, rng: Rng) -> None:
    place = file[rng.choice(["X", "obs", "var", "obs/perturbation"])]
    odd: list[Any] = [
        "csr_matrix",
        "csc_matrix",
        "array",
        "dataframe",
        "categorical",
        "",
        3,
        b"\xff",
    ]
    odd += ["awkward-array", "of the future", ["a", "b"], "rec-array", "nullable-integer", 1.5]
    place.attrs["encoding-type"] = rng.choice(odd)


def other_version(file: h5py.File, rng: Rng) -> None:
    place = file[rng.choice(["X", "obs", "var", "obs/perturbation"])]
    place.attrs["encoding-version"] = rng.choice(["9.9", "", 2, b"\xfe", ["0.1.0", "0.2.0"]])


def odd_type(file: h5py.File, rng: Rng) -> None:
    """Write an array whose type holds no numbers, or whose numbers are none."""
    places = ["X", "X/data", "X/indices", "X/indptr", "obs/perturbation", "obs/perturbation/codes"]
    places += ["obs/perturbation/categories", "obs/score", names_of(file, "obs").name]
    found = [p for p in places if p in file and isinstance(file[p], h5py.Dataset)]
    place = rng.choice(found)
    kinds: list[Any] = ["c8", "V4", h5py.ref_dtype, h5py.regionref_dtype, "S3", TEXT]
    kinds += [h5py.vlen_dtype("i4"), h5py.enum_dtype({"few": 0, "many": 1}), [("a", "f4")], "bool"]
    kinds += [np.dtype(("f4", (2,))), h5py.opaque_dtype("M8[s]"), "u8", ">f8", "f2"]
    again(file[place].parent, place.rsplit("/")[-1], file[place].shape, rng.choice(kinds))


def vlen(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["obs/perturbation", "obs/odd", "var/odd", names_of(file, "var").name])
    parent, _, name = place.rpartition("/")
    n = len(names_of(file, "obs" if "obs" in place else "var"))
    if place in file:
        del file[place]
    else:
        file[parent].attrs["column-order"] = [*file[parent].attrs["column-order"], name]
    made = file[parent].create_dataset(name, (n,), h5py.vlen_dtype(rng.choice(["i4", "f8"])))
    for i in range(n):
        made[i] = np.arange(i % 3)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def awkward(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["X", "layers/counts", "obs/perturbation", "obs/odd"])
    parent, _, name = place.rpartition("/")
    if place in file:
        del file[place]
    elif parent == "obs":
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], name]
    made = group(file[parent or "/"], name, "awkward-array")
    n = len(names_of(file, "obs"))
    made.attrs.update({"form": '{"class": "ListOffsetArray", "offsets": "i64"}', "length": n})
    made["node0-offsets"] = np.arange(n + 1)


def odd_name(file: h5py.File, rng: Rng) -> None:
    names = names_of(file, rng.choice(["obs", "var"]))
    values = [v if isinstance(v, bytes) else str(v).encode() for v in names[:]]
    odd = [b"", b" ", b"nan", values[0], b" " + values[0], b"\xff\xfe", b"x" * 10**5, b"\0", b"NA"]
    values[-1] = rng.choice(odd)
    kind = TEXT if rng.random() < 0.7 and b"\0" not in values else None
    data = np.array(values, object) if kind else np.array(values)
    again(names.parent, names.name.rsplit("/")[-1], data=data, dtype=kind)


def number_names(file: h5py.File, rng: Rng) -> None:
    names = names_of(file, "obs")
    values = np.arange(len(names)) + 1000
    again(names.parent, names.name.rsplit("/")[-1], data=values.astype(rng.choice(["i8", ">f8"])))


def odd_index(file: h5py.File, rng: Rng) -> None:
    place = file[rng.choice(["obs", "var"])]
    odd: list[Any] = [
        "nowhere",
        "perturbation",
        "score",
        3,
        "",
        ["_index"],
        "../var/_index",
        b"\xff",
    ]
    if rng.random() < 0.2:
        del place.attrs["_index"]
    else:
        place.attrs["_index"] = rng.choice(odd)


def odd_columns(file: h5py.File, rng: Rng) -> None:
    place = file["obs"]
    odd: list[Any] = [
        ["perturbation"] * 2,
        ["perturbation", "absent"],
        [],
        "perturbation",
        3,
        [1, 2],
    ]
    odd += [["_index", "perturbation"], [["perturbation"]], np.zeros(0), ["perturbation", ""]]
    if rng.random() < 0.1:
        del place.attrs["column-order"]
    else:
        place.attrs["column-order"] = rng.choice(odd)


def odd_table(file: h5py.File, rng: Rng) -> None:
    """Name the columns of a table of obsm by anything but a list of texts."""
    n = len(names_of(file, "obs"))
    made = group(file["obsm"], rng.choice(["guides", "foo"]), "dataframe", "0.2.0")
    texts(made, "_index", [f"c{i}" for i in range(n)], rng)
    array(made, "ctrl", np.arange(n) % 2, rng)
    odd: list[Any] = ["ctrl", np.array([b"\xff\xfe"]), np.array([b"ctrl"]), np.array([1.5, 2.5])]
    odd += [3, [], [["ctrl"]], np.zeros(0), ["ctrl"] * 2, ["absent"], h5py.Empty("f4")]
    made.attrs.update({"_index": "_index", "column-order": rng.choice(odd)})


def odd_labels(file: h5py.File, rng: Rng) -> None:
    n = len(names_of(file, "obs"))
    del file["obs/perturbation"]
    values: Any = rng.choice(
        [
            np.zeros((n, 2)),
            np.zeros(n - 1),
            np.zeros(n + 1),
            np.arange(n),
            np.full(n, np.nan),
            np.zeros(n, "c16"),
            np.array([b"ctrl", b"\xff"] * n)[:n],
            np.array([b"ctrl", b"A", b""] * n)[:n],
            3.0,
        ]
    )
    array(file["obs"], "perturbation", values, rng)


def odd_codes(file: h5py.File, rng: Rng) -> None:
    if "codes" not in file["obs/perturbation"]:
        n = len(names_of(file, "obs"))
        del file["obs/perturbation"]
        categorical(file["obs"], "perturbation", [LABELS[i % 3] for i in range(n)], rng)
    column = file["obs/perturbation"]
    codes = column["codes"][:].astype("i4")
    what = rng.randrange(7)
    if what == 0:
        codes[rng.randrange(len(codes))] = rng.choice([-1, -2, 3, 99, -(2**31)])
    elif what == 1:
        codes = codes.astype(rng.choice(["f8", "u1", "u8", ">f4", "bool", "c8"]))
    elif what == 2:
        codes = codes[: rng.randrange(len(codes))]
    elif what == 3:
        again(column, "categories", data=np.array(["ctrl", "A", "A"], object), dtype=TEXT)
    elif what == 4:
        again(column, "categories", data=np.array([["ctrl", "A", "B"]], object), dtype=TEXT)
    elif what == 5:
        again(column, "categories", data=np.array([b"ctrl", b"\xff", b"B"]))
    else:
        column.attrs["ordered"] = rng.choice(["yes", 3, [True, False]])
    again(column, "codes", data=codes)


def odd_mask(file: h5py.File, rng: Rng) -> None:
    n = len(names_of(file, "obs"))
    del file["obs/perturbation"]
    made = group(file["obs"], "perturbation", "nullable-string-array")
    texts(made, "values", [LABELS[i % 3] for i in range(n)], rng)
    mask: Any = np.zeros(n, bool)
    mask[1] = rng.random() < 0.5
    mask = rng.choice([mask, mask[:-1], mask.astype("i1"), mask[:, None], mask.astype("f8")])
    array(made, "mask", mask, rng)


def link(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["X", "obs/perturbation", "layers/more", names_of(file, "obs").name])
    target = rng.choice(["/X", "/obs", "/", "/nowhere", place])
    if place in file:
        del file[place]
    if rng.random() < 0.5:
        file[place] = h5py.SoftLink(target)
    else:
        file[place] = h5py.ExternalLink(rng.choice(["/etc/passwd", file.filename, "x.h5"]), target)


def hard_link(file: h5py.File, rng: Rng) -> None:
    """Give an object a second name, which is not a fault, or make a ring."""
    place = rng.choice(["layers/counts", "uns/ring", "obs/again", "raw"])
    target = rng.choice(["X", "/", "obs", "var"])
    if place not in file:
        file[place] = file[target]


def elsewhere(file: h5py.File, rng: Rng) -> None:
    n, g = len(names_of(file, "obs")), len(names_of(file, "var"))
    del file["X"]
    if rng.random() < 0.5:
        file.create_dataset("X", (n, g), "f4", external=[("/etc/passwd", 0, n * g * 4)])
    else:
        layout = h5py.VirtualLayout((n, g), "f4")
        layout[:] = h5py.VirtualSource(rng.choice([".", "x.h5"]), "layers/counts", (n, g))
        file.create_virtual_dataset("X", layout)


def dense_shape(file: h5py.File, rng: Rng) -> None:
    n, g = len(names_of(file, "obs")), len(names_of(file, "var"))
    del file["X"]
    shapes: list[Any] = [(g, n), (n, g, 1), (n,), (), (0, g), (n, 0), (n * g,), (n, g + 1), None]
    shape = rng.choice(shapes)
    data = h5py.Empty("f4") if shape is None else np.ones(shape, "f4")
    file.create_dataset("X", data=data).attrs["encoding-type"] = "array"


def filled(file: h5py.File, rng: Rng) -> None:
    """Leave chunks unwritten, which then stand for the fill value."""
    n, g = len(names_of(file, "obs")), len(names_of(file, "var"))
    del file["X"]
    value = rng.choice([0, 3, np.nan, -1])
    made = file.create_dataset("X", (n, g), "f4", chunks=(5, g), fillvalue=value)
    made[:5] = 2
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def huge(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["X", "obs/score", "obs/perturbation", names_of(file, "obs").name])
    kind: Any = rng.choice(["f4", TEXT, "f8", "i1"])
    n, g = len(names_of(file, "obs")), len(names_of(file, "var"))
    shape: Any = rng.choice([(10**12,), (n, 10**9), (10**8,), (n, g), (2 * 10**7,)])
    chunks = tuple(min(size, rng.choice([64, 10**7])) for size in shape)
    if place in file:
        del file[place]
    else:
        file["obs"].attrs["column-order"] = [*file["obs"].attrs["column-order"], "score"]
    made = file.create_dataset(place, shape, kind, chunks=chunks, compression="gzip")
    if shape == (2 * 10**7,) and kind != TEXT:
        made[:] = np.zeros(shape, kind)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def group_for_array(file: h5py.File, rng: Rng) -> None:
    place = rng.choice(["X", "obs/perturbation", "obs/score", "obs", "var", "X/data", "X/indptr"])
    if place not in file:
        place = "X"
    was = file[place]
    attributes, is_array = dict(was.attrs), isinstance(was, h5py.Dataset)
    del file[place]
    made = file.create_group(place) if is_array else file.create_dataset(place, data=np.ones(5))
    made.attrs.update(attributes)


def gone(file: h5py.File, rng: Rng) -> None:
    found: list[str] = []
    file.visit(found.append)
    del file[rng.choice(found)]


def crowd(file: h5py.File, rng: Rng) -> None:
    parent = file.require_group(rng.choice(["uns/many", "layers", "obs"]))
    for i in range(rng.choice([500, 3_000])):
        parent.create_group(f"g{i}")


FAULTS: dict[str, Callable[[h5py.File, Rng], None]] = {
    change.__name__: with_values(change)
    for change in (
        *(indices_twice, indices_beside, indices_out, indptr_short, indptr_long, indptr_down),
        *(indptr_late, data_odd),
    )
} | {
    change.__name__: change
    for change in (
        *(longer, two_dimensions, other_shape, other_encoding, other_version, odd_type, vlen),
        *(awkward, odd_name, number_names, odd_index, odd_columns, odd_labels, odd_codes, odd_mask),
        *(link, hard_link, elsewhere, dense_shape, filled, huge, group_for_array, gone, crowd),
        odd_table,
    )
}


# Reading without the project's code


class UnsoundError(Exception):
    """Why a file's counts, names and labels are not sound."""


def need(holds: bool, why: str) -> None:
    if not holds:
        raise UnsoundError(why)


def truth(path: Path, place: str) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Return counts at a place, cells, genes and labels; raises UnsoundError if not plain."""
    with h5py.File(path) as file:
        cells, genes = (plain_names(file, name) for name in ("obs", "var"))
        labels = plain_labels(file, len(cells))
        return plain_matrix(file, place, (len(cells), len(genes))), cells, genes, labels


def plain_texts(values: np.ndarray) -> list[str]:
    need(values.ndim == 1, "texts that are no list")
    found = []
    for value in values.tolist():
        need(isinstance(value, (bytes, str, int, float)), f"a {type(value).__name__} for a text")
        found.append((value.decode() if isinstance(value, bytes) else str(value)).strip())
    return found


def plain_names(file: h5py.File, name: str) -> list[str]:
    names = plain_texts(file[name][str(file[name].attrs["_index"])][()])
    need(not set(names) & set(MISSING), "a name is missing")
    need(len(set(names)) == len(names), "names occur twice")
    return names


def plain_labels(file: h5py.File, n: int) -> list[str]:
    item = file["obs/perturbation"]
    if isinstance(item, h5py.Dataset):
        labels = plain_texts(item[()])
    elif "codes" in item:
        codes, known = item["codes"][()], plain_texts(item["categories"][()])
        need(codes.dtype.kind in "iu" and codes.ndim == 1, "codes that are no numbers")
        need(bool(((codes >= 0) & (codes < len(known))).all()), "codes of no category")
        need(len(set(known)) == len(known), "categories occur twice")
        labels = [known[code] for code in codes]
    else:
        mask = item["mask"][()]
        need(mask.shape == (n,) and not mask.any(), "labels are missing")
        labels = plain_texts(item["values"][()])
    need(len(labels) == n and not set(labels) & set(MISSING), "labels are missing")
    return labels


def plain_matrix(file: h5py.File, place: str, shape: tuple[int, int]) -> np.ndarray:
    item = file[place]
    if isinstance(item, h5py.Dataset):
        need(item.shape == shape, "of another shape")
        values = item[()]
    else:
        layout = item.attrs["encoding-type"]
        need(layout in ("csr_matrix", "csc_matrix"), f"{layout} for a matrix")
        need([int(n) for n in item.attrs["shape"]] == list(shape), "of another shape")
        data, indices, starts = (item[name][()] for name in ("data", "indices", "indptr"))
        need(data.ndim == indices.ndim == starts.ndim == 1, "no lists")
        need(indices.dtype.kind in "iu" and starts.dtype.kind in "iu", "indices are no numbers")
        starts, indices = starts.tolist(), indices.tolist()
        n_lines, n_others = shape if layout == "csr_matrix" else shape[::-1]
        need(len(starts) == n_lines + 1 and len(data) == len(indices), "of other lengths")
        need(starts[0] == 0 and starts[-1] == len(data) and starts == sorted(starts), "starts")
        need(data.dtype.kind in "biuf", "no numbers")
        lines = np.zeros((n_lines, n_others), data.dtype.newbyteorder("="))
        for i in range(n_lines):
            line = indices[starts[i] : starts[i + 1]]
            need(len(set(line)) == len(line), "two values at one place")
            need(all(0 <= j < n_others for j in line), "a place outside")
            for j, value in zip(line, data[starts[i] : starts[i + 1]], strict=True):
                lines[i, j] = value
        values = lines if layout == "csr_matrix" else lines.T
    need(values.dtype.kind in "biuf", "no numbers")
    exact = values.astype(np.longdouble)
    need(bool(np.isfinite(exact).all() and (exact >= 0).all()), "no counts")
    need(bool((exact == np.rint(exact)).all() and (exact <= 2**24).all()), "no counts")
    return exact.astype(np.float32)
