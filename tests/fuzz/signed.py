"""Are altered bundles refused even when their checksums were renewed?

    python -m tests.fuzz.signed                   # 300 bundles: 2 minutes on 2 cores
    python -m tests.fuzz.signed --seed 1 --models pretrained/papalexi2021

Each is a copy of a whole bundle with one change to its meaning (a weight, a name, an order, a type,
a number, a column), and a manifest that agrees with it. A few changes are harmless: those must
open. What must be refused is known from the change and from an independent reader, which shares no
code with the program, parses the files itself, and computes masks, effects and loadings with NumPy
in double precision. Fails for a wrong bundle that opens, a sound one that does not, and any error
other than a BundleError.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
Rng = random.Random
Change = Callable[[Path, Rng], None]
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8"}
WORKED, REFUSED = "opened", "refused"
NUMBERS = ("effect", "effect_sd", "probability")


# Reading and writing files without the program


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file: a length, a JSON header, and bytes."""
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + n]), content[8 + n :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*about["data_offsets"])], TYPES[about["dtype"]])
        .reshape(about["shape"])
        .copy()
        for name, about in header.items()
    }


def write_tensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    kinds = {kind: name for name, kind in TYPES.items()}
    header, blocks, place = {}, [], 0
    for name, array in arrays.items():
        block = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": kinds[array.dtype.newbyteorder("<").str],
            "shape": list(array.shape),
            "data_offsets": [place, place + len(block)],
        }
        place += len(block)
        blocks.append(block)
    about = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(about)) + about + b"".join(blocks))


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_rows(path: Path, lines: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(lines)


def sign(folder: Path) -> None:
    """Make the manifest agree with the files."""
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


# Changes


def tensor(file: str, name: str | None, change: Callable[[np.ndarray, Rng], np.ndarray]) -> Change:
    def apply(folder: Path, rng: Rng) -> None:
        arrays = tensors(folder / file)
        several = [n for n, a in sorted(arrays.items()) if a.size > 1 and a.dtype.kind == "f"]
        which = name or rng.choice(several)
        arrays[which] = change(arrays[which], rng)
        write_tensors(folder / file, arrays)

    return apply


def one(value: float) -> Callable[[np.ndarray, Rng], np.ndarray]:
    def change(array: np.ndarray, rng: Rng) -> np.ndarray:
        array.flat[rng.randrange(array.size)] = value
        return array

    return change


def column(file: str, name: str, change: Callable[[list[str], Rng], list[str]]) -> Change:
    """Return a change to the values of a column of a CSV file."""

    def apply(folder: Path, rng: Rng) -> None:
        head, *body = rows(folder / file)
        place = head.index(name)
        for line, value in zip(body, change([line[place] for line in body], rng), strict=True):
            line[place] = value
        write_rows(folder / file, [head, *body])

    return apply


def lines(file: str, change: Callable[[list[list[str]], Rng], list[list[str]]]) -> Change:
    """Return a change to the lines of a CSV file, whose first line names the columns."""

    def apply(folder: Path, rng: Rng) -> None:
        write_rows(folder / file, change(rows(folder / file), rng))

    return apply


def at_random(*values: str) -> Callable[[list[str], Rng], list[str]]:
    def change(column: list[str], rng: Rng) -> list[str]:
        column[rng.randrange(len(column))] = rng.choice(values)
        return column

    return change


def moved(column: list[str], rng: Rng) -> list[str]:
    """Change one number by a fifth of the largest."""
    found = np.array(column, float)
    found[rng.randrange(len(found))] += rng.choice((-1, 1)) * max(0.2 * np.abs(found).max(), 0.01)
    return [repr(float(v)) for v in found]


def swapped(column: list[str], rng: Rng) -> list[str]:
    different = [i for i, value in enumerate(column) if value != column[0]]
    i = rng.choice(different)
    column[0], column[i] = column[i], column[0]
    return column


def parquet(name: str, change: Callable[[pd.DataFrame, Rng], pd.DataFrame]) -> Change:
    def apply(folder: Path, rng: Rng) -> None:
        kept = pq.read_schema(folder / name).metadata
        table = pa.Table.from_pandas(
            change(pq.read_table(folder / name).to_pandas(), rng), preserve_index=False
        )
        pq.write_table(table.replace_schema_metadata(kept), folder / name)

    return apply


def twice(name: str) -> Change:
    def apply(folder: Path, rng: Rng) -> None:
        table = pq.read_table(folder / name)
        which = rng.choice(table.column_names)
        pq.write_table(table.append_column(which, table[which]), folder / name)

    return apply


def value(name: str, *values: Any) -> Callable[[pd.DataFrame, Rng], pd.DataFrame]:
    def change(frame: pd.DataFrame, rng: Rng) -> pd.DataFrame:
        chosen = rng.choice(values)
        if isinstance(chosen, float):
            frame[name] = frame[name].astype(float)
        frame.loc[rng.randrange(len(frame)), name] = chosen
        return frame

    return change


def whole(name: str, change: Callable[[pd.Series], Any]) -> Callable[[Any, Rng], pd.DataFrame]:
    return lambda frame, rng: frame.assign(**{name: change(frame[name])})


def reverse(values: pd.Series) -> np.ndarray:
    return values.to_numpy()[::-1]


def setting(*path: str, to: Sequence[Any], file: str = "config.json") -> Change:
    """Return a change of a value in a JSON file; `NaN` is written as Python does."""

    def apply(folder: Path, rng: Rng) -> None:
        content = json.loads((folder / file).read_bytes())
        inner = content
        for name in path[:-1]:
            inner = inner[name]
        inner[path[-1]] = rng.choice(to)
        (folder / file).write_text(json.dumps(content))

    return apply


def foreign(file: str) -> Change:
    """Return a change to the file of another bundle, trained on other cells."""

    def apply(folder: Path, rng: Rng) -> None:
        origin = json.loads((folder / "config.json").read_bytes())["data"]["file"]
        others = [
            other
            for other in sorted((ROOT / "pretrained").iterdir())
            if json.loads((other / "config.json").read_bytes())["data"]["file"] != origin
        ]
        shutil.copy(rng.choice(others) / file, folder / file)

    return apply


def both(*changes: Change) -> Change:
    def apply(folder: Path, rng: Rng) -> None:
        for change in changes:
            change(folder, rng)

    return apply


def renamed_masks(folder: Path, rng: Rng) -> None:
    """Reverse the perturbations, in the masks too, so that the two tables agree."""
    for file in ("perturbations.csv", "masks.csv"):
        head, *body = rows(folder / file)
        names = list(dict.fromkeys(line[0] for line in body))
        other = dict(zip(names, names[::-1], strict=True))
        write_rows(folder / file, [head, *([other[line[0]], *line[1:]] for line in body)])


def enrichment(change: Callable[[pd.DataFrame, Rng], pd.DataFrame]) -> Change:
    def apply(folder: Path, rng: Rng) -> None:
        file = rng.choice(sorted((folder / "enrichment").glob("*.parquet")))
        parquet(f"enrichment/{file.name}", change)(folder, rng)

    return apply


def again(name: str, compression: str) -> Change:
    """Return a rewrite of the same table with another compression."""

    def apply(folder: Path, rng: Rng) -> None:
        pq.write_table(pq.read_table(folder / name), folder / name, compression=compression)

    return apply


def fewer_digits(folder: Path, rng: Rng) -> None:
    head, *body = rows(folder / "masks.csv")
    for line in body:
        for name in NUMBERS:
            line[head.index(name)] = f"{float(line[head.index(name)]):.9g}"
    write_rows(folder / "masks.csv", [head, *body])


W, R = "weights.safetensors", "reference.safetensors"
L, O = "loadings.parquet", "observed.parquet"
HARMFUL: dict[str, Change] = {
    "weight-nan": tensor(W, None, one(math.nan)),
    "weight-minus-inf": tensor(W, None, one(-math.inf)),
    "weight-inf": tensor(W, "decoder.out.bias", one(math.inf)),
    "weights-double": tensor(W, None, lambda a, _: a.astype("<f8")),
    "weights-half": tensor(W, None, lambda a, _: a.astype("<f2")),
    "weights-integer": tensor(W, None, lambda a, _: np.zeros(a.shape, "<i8")),
    "weights-transposed": tensor(W, "decoder.out.weight", lambda a, _: a.T),
    "decoder-reversed": tensor(W, "decoder.out.weight", lambda a, _: a[::-1]),
    "decoder-zero": tensor(W, "decoder.out.weight", lambda a, _: a * 0),
    "evidence-reversed": tensor(W, "evidence", lambda a, _: a[::-1]),
    "scale-negative": tensor(W, "x_scale", one(-1.0)),
    "reference-nan": tensor(R, None, one(math.nan)),
    "reference-double": tensor(R, None, lambda a, _: a.astype("<f8")),
    "reference-spread": tensor(R, "scale", one(-1.0)),
    "reference-library": tensor(R, "library", one(-5.0)),
    "reference-short": tensor(R, "library", lambda a, _: a[1:]),
    "masks-empty": lines("masks.csv", lambda table, _: table[:1]),
    "masks-foreign": foreign("masks.csv"),
    "masks-short": lines("masks.csv", lambda table, _: table[:-1]),
    "masks-reversed": lines("masks.csv", lambda table, _: [table[0], *table[:0:-1]]),
    "masks-row-twice": lines("masks.csv", lambda table, _: [*table[:-1], table[1]]),
    "masks-column-twice": lines("masks.csv", lambda table, _: [[*line, line[2]] for line in table]),
    "masks-names": column("masks.csv", "perturbation", lambda names, _: names[::-1]),
    "masks-swapped": column("masks.csv", "perturbation", swapped),
    "masks-mechanism": column("masks.csv", "mechanism", at_random("-1", "99", "0.5")),
    "masks-probability": column("masks.csv", "probability", at_random("1.5", "-0.1", "", "x")),
    "masks-probability-moved": column("masks.csv", "probability", moved),
    "masks-effect": column("masks.csv", "effect", moved),
    "masks-effect-reversed": column("masks.csv", "effect", lambda effects, _: effects[::-1]),
    "masks-spread": column("masks.csv", "effect_sd", moved),
    "masks-spread-negative": column("masks.csv", "effect_sd", at_random("-1", "inf", "")),
    "masks-active": column(
        "masks.csv", "active", lambda flags, _: [str(f != "True") for f in flags]
    ),
    "masks-evidence": column("masks.csv", "evidence", at_random("inf", "-inf", "much")),
    "genes-reversed": lines("genes.csv", lambda table, _: [table[0], *table[:0:-1]]),
    "genes-swapped": column("genes.csv", "gene", swapped),
    "genes-twice": lines("genes.csv", lambda table, _: [*table[:-1], table[1]]),
    "genes-empty": column("genes.csv", "gene", at_random("")),
    "genes-foreign": column("genes.csv", "gene", at_random("NO SUCH GENE")),
    "genes-and-loadings-reversed": both(
        lines("genes.csv", lambda table, _: [table[0], *table[:0:-1]]),
        parquet(L, whole("gene", reverse)),
    ),
    "perturbations-reversed": lines(
        "perturbations.csv", lambda table, _: [table[0], *table[:0:-1]]
    ),
    "perturbations-swapped": column("perturbations.csv", "perturbation", swapped),
    "perturbations-twice": lines("perturbations.csv", lambda table, _: [*table[:-1], table[1]]),
    "perturbations-cells": column("perturbations.csv", "train", at_random("-3", "2.5", "7777", "")),
    "perturbations-dosage": column("perturbations.csv", "dosage_max", at_random("inf", "", "x")),
    "conditions-reversed": lines("conditions.csv", lambda table, _: [table[0], *table[:0:-1]]),
    "conditions-twice": lines("conditions.csv", lambda table, _: [*table, table[1]]),
    "conditions-cells": column("conditions.csv", "test", at_random("-3", "2.5", "x")),
    "loadings-genes": parquet(L, whole("gene", reverse)),
    "loadings-values": parquet(L, whole("loading", reverse)),
    "loadings-scaled": parquet(L, whole("loading", lambda v: 1.3 * v)),
    "loadings-sign": parquet(L, whole("loading", lambda v: -v)),
    "loadings-nan": parquet(L, value("loading", math.nan, math.inf)),
    "loadings-error": parquet(L, value("se", -1.0, math.inf)),
    "loadings-step": parquet(L, value("step", 7.0)),
    "loadings-empty": parquet(L, lambda frame, _: frame[:0]),
    "loadings-foreign": foreign(L),
    "loadings-twice": twice(L),
    "loadings-text": parquet(L, whole("loading", lambda v: v.astype(str))),
    "observed-genes": parquet(O, whole("gene", reverse)),
    "observed-foreign": parquet(O, value("gene", "NO SUCH GENE")),
    "observed-condition": parquet(O, value("condition", "no such condition")),
    "observed-level": parquet(O, value("level", math.inf)),
    "observed-error": parquet(O, value("se", -1.0)),
    "observed-cells": parquet(O, value("n", -1)),
    "observed-rows-twice": parquet(O, lambda frame, _: pd.concat([frame, frame[:3]])),
    "observed-twice": twice(O),
    "observed-text": parquet(O, whole("level", lambda v: v.astype(str))),
    "observed-other": foreign(O),
    "cells-condition": parquet("cells.parquet", value("condition", "no such condition")),
    "cells-place": parquet("cells.parquet", value("umap_1", math.inf, math.nan)),
    "cells-split": parquet("cells.parquet", value("split", "somewhere")),
    "cells-text": parquet("cells.parquet", whole("umap_2", lambda v: v.astype(str))),
    "cells-twice": twice("cells.parquet"),
    "map-foreign": foreign("perturbations_umap.csv"),
    "map-place": column("perturbations_umap.csv", "umap_1", at_random("inf", "x", "")),
    "history-text": column("history.csv", "bound", at_random("high", "")),
    "history-epoch": column("history.csv", "epoch", at_random("-1", "1.5")),
    "calibration-negative": column("calibration.csv", "model_error", at_random("-1", "inf", "x")),
    "calibration-foreign": foreign("calibration.csv"),
    "frontier-text": column("frontier.csv", "chosen", at_random("perhaps")),
    "metrics-range": setting(
        "average_effects", "pearson", to=(3.0, -2, True, "high"), file="metrics.json"
    ),
    "metrics-nan": setting("iwelbo", "test", to=(math.nan, math.inf), file="metrics.json"),
    "metrics-other": setting("average_effects", to=(None, 3, []), file="metrics.json"),
    "enrichment-p": enrichment(value("p_value", 1.5, -0.1)),
    "enrichment-mechanism": enrichment(value("mechanism", 99, -1)),
    "config-encoder": setting("model_config", "encoder", to=("deep", 3, None)),
    "config-scale": setting("model_config", "embedding_scale", to=(math.nan, 0, -1, "x", True)),
    "config-evidence": setting("model_config", "mask_evidence", to=(0.01, 5, math.inf, "x")),
    "config-control": setting("control", to=("somebody", 3)),
    "config-model": setting("model", to=("cpa-vae", "svae-plus", "conditional-vae", "x", 3)),
}
MASKED: dict[str, Change] = {  # for models with masks
    "logits-permuted": tensor(W, "mask_logits", lambda a, _: a[::-1]),
    "embedding-moved": tensor(W, "embedding_loc", lambda a, _: a + np.float32(0.3)),
    "embedding-reversed": tensor(W, "embedding_loc", lambda a, _: a[:, ::-1]),
    "perturbations-and-masks-reversed": renamed_masks,
}
HARMLESS: dict[str, Change] = {
    "nothing": lambda folder, rng: None,
    "loadings-again": again(L, "gzip"),
    "observed-again": again(O, "none"),
    "masks-nine-digits": fewer_digits,
    "card-edited": lambda folder, rng: (folder / "card.md").write_text("# Another card\n"),
}


# An independent reader


def follows(folder: Path) -> str:
    """Return what in a SAMS-VAE's masks or loadings contradicts its weights, if anything does."""
    weights = {name: array.astype(float) for name, array in tensors(folder / W).items()}
    if bad := [n for n, a in weights.items() if np.isnan(a).any() or (a == -np.inf).any()]:
        return f"{bad[0]} is not finite"
    head, *body = rows(folder / "masks.csv")
    genes = [line[0] for line in rows(folder / "genes.csv")[1:]]
    names = [line[0] for line in rows(folder / "perturbations.csv")[1:]]
    q = 1 / (1 + np.exp(-weights["mask_logits"]))
    m, s = weights["embedding_loc"], np.exp(weights["embedding_log_scale"])
    n, width = q.shape
    if [line[0] for line in body] != [name for name in names for _ in range(width)]:
        return "masks are of other perturbations"
    expected = {
        "probability": q,
        "effect": q * m,
        "effect_sd": np.sqrt(np.maximum(q * (s**2 + m**2) - (q * m) ** 2, 0)),
    }
    for name, values in expected.items():
        found = np.array([line[head.index(name)] or "nan" for line in body], float)
        if not np.allclose(found.reshape(n, width), values, atol=1e-4):
            return f"{name} of masks"
    table = pq.read_table(folder / L).to_pydict()
    if table["gene"] != genes * width:
        return "loadings are of other genes"
    loc = tensors(folder / R)["loc"].astype(float)

    def level(z: np.ndarray) -> np.ndarray:
        hidden = z @ weights["decoder.hidden.weight"].T + weights["decoder.hidden.bias"]
        hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        logits = hidden @ weights["decoder.out.weight"].T + weights["decoder.out.bias"]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = (p / p.sum(1, keepdims=True))[:, : len(genes)]
        return np.log2(1 + 1e4 * p)

    steps = np.array(table["step"]).reshape(width, -1)[:, 0]
    found = np.array(table["loading"]).reshape(width, -1)
    for k, step in enumerate(steps):
        axis = np.eye(width)[k]
        ends = (step, 0.0) if step else (1.0, -1.0)
        slope = (level(loc + ends[0] * axis) - level(loc + ends[1] * axis)).mean(0)
        slope /= ends[0] - ends[1]
        if not np.allclose(found[k], slope, atol=0.01 * max(np.abs(slope).max(), 0.01)):
            return f"loadings of M{k}"
    return ""


# Running


class Outcome(NamedTuple):
    """The outcome of a bundle, and what it should have been."""

    change: str
    outcome: str  # WORKED, REFUSED, or "fault"
    told: str
    sound: bool  # what it should be


def opened(folder: Path) -> None:
    """Read every table of a bundle, as pages do."""
    from samsvae_core.analysis import all_shifts as effects
    from samsvae_core.bundle import opening
    from tests.fuzz.run import TABLES

    found = opening.load(folder)
    for table in TABLES:
        getattr(found, table)
    for collection in found.collections:
        found.enrichment(collection)
    found.observed_shift(str(found.conditions.index[-1]))
    effects.kept(found)


def outcome(model: Path, name: str, change: Change, rng: Rng, sound: bool, work: Path) -> Outcome:
    from samsvae_core.bundle.layout import BundleError

    folder = work / "changed"
    shutil.copytree(model, folder)
    try:
        change(folder, rng)
        sign(folder)
        if sound and name != "card-edited" and (why := follows(folder)):
            raise AssertionError(f"The reader of its own finds a sound bundle wrong: {why}")
        try:
            opened(folder)
        except BundleError as error:
            told = str(error)
            return Outcome(name, REFUSED if "\n" not in told else "fault", told, sound)
        except Exception as error:  # noqa: BLE001 - this is what is tested
            return Outcome(name, "fault", "".join(traceback.format_exception(error)), sound)
        return Outcome(name, WORKED, follows(folder) or "by its change", sound)
    finally:
        shutil.rmtree(folder)


def cases(models: Sequence[Path], n: int, seed: int) -> list[tuple[Path, str, Change, bool]]:
    """Return every change on every model in turn, one in twelve harmless."""
    rng = Rng(seed)
    harmful = list((HARMFUL | MASKED).items())
    rng.shuffle(harmful)
    found: list[tuple[Path, str, Change, bool]] = []
    for number in range(n):
        sound = number % 12 == 11
        every = list(HARMLESS.items()) if sound else harmful
        turn = number // 12 if sound else number - number // 12
        name, change = every[turn % len(every)]
        found.append((models[turn // len(every) % len(models)], name, change, sound))
    return found


def run(models: Sequence[Path], n: int, seed: int, work: Path) -> list[Outcome]:
    return [
        outcome(model, name, change, Rng(f"{seed} {number}"), sound, work)
        for number, (model, name, change, sound) in enumerate(cases(models, n, seed))
    ]


def wrong(outcomes: Sequence[Outcome]) -> list[str]:
    """Return a line for each bundle with the wrong outcome."""
    return [
        f"{o.change}: {o.outcome}, expected {WORKED if o.sound else REFUSED}: {o.told}"
        for o in outcomes
        if o.outcome != (WORKED if o.sound else REFUSED)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--bundles", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", type=Path, nargs="+")
    given = parser.parse_args()
    models = given.models or sorted((ROOT / "pretrained").iterdir())
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        found = run(models, given.bundles, given.seed, Path(temporary))
    count = Counter((o.sound, o.outcome) for o in found)
    faults = sum(n for (_, what), n in count.items() if what == "fault")
    print(f"changed and signed  {sum(not o.sound for o in found)}: {count[False, REFUSED]} refused")
    print(f"sound and signed    {sum(o.sound for o in found)}: {count[True, WORKED]} opened")
    print(f"wrong acceptances   {count[False, WORKED]}")
    print(f"wrong refusals      {count[True, REFUSED]}")
    print(f"other errors        {faults}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{time.monotonic() - began:.0f} s, at most {peak:,.0f} MiB in memory")
    told = wrong(found)
    print("\n".join(told) if told else "Nothing wrong.")
    sys.exit(bool(told))


if __name__ == "__main__":
    main()
