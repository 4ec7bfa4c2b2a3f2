"""The files of a bundle, its manifest, and how tables are written and read."""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from samsvae_core.data.cells import DataError
from samsvae_core.data.splits import SPLITS, UNUSED
from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.prerank import RECIPE
from samsvae_core.system.files import atomic_write, sha256
from samsvae_core.system.messages import nearest, some

SCHEMA = 2  # 2: other models, evidence of mask entries, calibration
# What a column holds. Of numbers, "?" after a kind lets them be missing.
TEXT, NUMBER, SIZE, COUNT, SHARE, FLAG = "text", "number", "size", "count", "share", "flag"


class Table(NamedTuple):
    """A table of a bundle: what its columns hold, and which of them tell its rows apart.

    It is declared here, made in `pipeline.build`, and read and checked as `Bundle.table`.
    """

    columns: dict[str, str]
    key: tuple[str, ...] = ()
    splits: tuple[str, ...] = (*SPLITS, UNUSED)  # values of its column split
    others: str = ""  # what columns hold that are not named; "" for anything
    optional: Mapping[str, str] = MappingProxyType({})  # columns that may be absent


COVARIATE = "covariate "  # before the name of a covariate, in columns of cells.parquet
CELL_COUNTS = "cells_counts.safetensors"
EFFECTS = "effects.safetensors"  # every perturbation composed: see `all_shifts`
FILES: dict[str, Table | None] = {
    "config.json": None,
    "weights.safetensors": None,
    "genes.csv": Table({"gene": TEXT}),
    "perturbations.csv": Table(
        {
            "perturbation": TEXT,
            **dict.fromkeys((*SPLITS, "train_alone"), COUNT),
            "dosage_min": NUMBER,
            "dosage_max": NUMBER,
            "on_panel": FLAG,
        }
    ),
    "conditions.csv": Table({"condition": TEXT, **dict.fromkeys(SPLITS, COUNT)}),
    "split.csv": None,
    "reference.safetensors": None,
    "observed.parquet": Table(
        {
            "condition": TEXT,
            "gene": TEXT,
            "split": TEXT,
            "level": f"{NUMBER}?",
            "se": f"{SIZE}?",
            "n": COUNT,
        },
        key=("condition", "gene", "split"),
        splits=("all", "test"),
        # of the control cells matched to a condition, where there are covariates
        optional={"control_level": f"{NUMBER}?", "control_se": f"{SIZE}?"},
    ),
    "loadings.parquet": Table(
        {
            "mechanism": COUNT,
            "gene": TEXT,
            "loading": NUMBER,
            "se": f"{SIZE}?",
            "step": NUMBER,
        }
    ),
    "masks.csv": Table(
        {
            "perturbation": TEXT,
            "mechanism": COUNT,
            "probability": SHARE,
            "effect": NUMBER,
            "effect_sd": SIZE,
            "active": FLAG,
            "evidence": f"{NUMBER}?",
            "evidence_se": f"{SIZE}?",
            "evidence_n": COUNT,
        },
        optional={
            "evidence_lowest_level": f"{NUMBER}?",
            "lowest_level": f"{TEXT}?",
            "levels_for": COUNT,
            "levels_against": COUNT,
        },
    ),
    "cells.parquet": Table(
        {"cell": TEXT, "condition": TEXT, "split": TEXT}, key=("cell",), others=NUMBER
    ),
    "perturbations_umap.csv": Table(
        {"perturbation": TEXT, "umap_1": NUMBER, "umap_2": NUMBER}, key=("perturbation",)
    ),
    "history.csv": Table(
        {"epoch": COUNT, "step": COUNT, "bound": NUMBER, "validation_bound": NUMBER}
    ),
    "metrics.json": None,
    "card.md": None,
}
OPTIONAL: dict[str, Table | None] = {
    "direct.csv": Table(
        {
            "perturbation": TEXT,
            "gene": TEXT,
            "effect": NUMBER,
            "effect_sd": SIZE,
            "probability": SHARE,
            "active": FLAG,
            "own_target": FLAG,
            "evidence": f"{NUMBER}?",
            "evidence_se": f"{SIZE}?",
            "evidence_n": COUNT,
        },
        key=("perturbation", "gene"),
    ),
    "shared.csv": Table(
        {"gene": TEXT, "effect": NUMBER, "effect_sd": SIZE, "probability": SHARE}, key=("gene",)
    ),
    "observed_levels.parquet": Table(  # shifts within each level of a covariate
        {
            "condition": TEXT,
            "covariate": TEXT,
            "level": TEXT,
            "gene": TEXT,
            "shift": f"{NUMBER}?",
            "se": f"{SIZE}?",
            "n": COUNT,
        },
        key=("condition", "covariate", "level", "gene"),
    ),
    "differences.csv": Table(  # between the levels of a context
        {
            "perturbation": TEXT,
            "level": TEXT,
            "mechanism": COUNT,
            "probability": SHARE,
            "difference": NUMBER,
            "difference_sd": SIZE,
            "effect": NUMBER,
            "active": FLAG,
            "evidence": f"{NUMBER}?",
            "evidence_se": f"{SIZE}?",
            "evidence_n": COUNT,
        },
        key=("perturbation", "level", "mechanism"),
    ),
    "frontier.csv": Table(
        {
            "mask_evidence": SIZE,
            "active": COUNT,
            "mechanisms": COUNT,
            "difference": NUMBER,
            "effect_r": f"{NUMBER}?",
            "chosen": FLAG,
        }
    ),
    "calibration.csv": Table({"gene": TEXT, "model_error": f"{SIZE}?"}, key=("gene",)),
    "predictive_checks.parquet": None,
    CELL_COUNTS: None,
    EFFECTS: None,
}
TABLES = {name: table for name, table in (FILES | OPTIONAL).items() if table is not None}
ENRICHMENT = {  # columns of a table below enrichment/
    "mechanism": COUNT,
    "collection": TEXT,
    "method": TEXT,
    "direction": TEXT,
    "term": TEXT,
    "size": COUNT,
    "overlap": COUNT,
    "p_value": f"{SHARE}?",
    "fdr": f"{SHARE}?",
}
NAMES = sorted(  # columns that are always text
    {
        "id",
        *(
            column
            for table in TABLES.values()
            for column, kind in [*table.columns.items(), *table.optional.items()]
            if kind.rstrip("?") == TEXT
        ),
    }
)
MOST_VALUES = 10**8  # most rows x columns of a table; 5,000 genes x 700 conditions have 4 * 10**7
MOST_TEXT = 2**30  # most bytes of all texts of a table, counting repeats
TYPES = {"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY"}  # of Parquet columns
PACKAGES = ("samsvae-explorer", "torch", "numpy", "pandas", "anndata", "gseapy", "umap-learn")


class BundleError(ValueError):
    """A folder that is not a bundle, or damaged; the message says what was expected and found."""


def check_table(path: Path, texts: bool = False) -> None:
    """Raise ValueError for a Parquet file that would fill the memory, however small it is.

    With `texts`, also for one whose texts would, which requires scanning all of them.
    """
    with pq.ParquetFile(path) as file:
        about = file.metadata
        if (n := about.num_rows * about.num_columns) > MOST_VALUES:
            raise ValueError(f"it holds {n:,} values; {MOST_VALUES:,} is the most")
        columns = [about.schema.column(i) for i in range(about.num_columns)]
        if any(c.max_repetition_level or c.physical_type not in TYPES for c in columns):
            raise ValueError("it holds columns of a kind that no bundle has")
        names = [c.path for c in columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"it holds columns of the same name: {some(twice)}")
        named = [c.path for c in columns if c.physical_type == "BYTE_ARRAY"]
    if texts and named:
        total = 0
        with pq.ParquetFile(path, read_dictionary=named) as file:
            for batch in file.iter_batches(columns=named):
                for column in batch.columns:
                    lengths = pc.binary_length(column.dictionary).take(column.indices)
                    total += pc.sum(lengths.cast("int64")).as_py() or 0
                if total > MOST_TEXT:
                    raise ValueError(f"its texts have more than {MOST_TEXT:,} bytes")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return manifest.json of a bundle; raises BundleError for an unknown schema."""
    if not (path / "manifest.json").is_file():
        raise BundleError(no_bundle(path))
    manifest = read_json(path / "manifest.json")
    schema = manifest.get("schema")
    if not isinstance(schema, int) or not isinstance(manifest.get("files"), dict):
        raise BundleError(f"{path}/manifest.json is not the manifest of a bundle.")
    if schema != SCHEMA:
        newer = "Install a newer SAMS-VAE Explorer" if schema > SCHEMA else "Train it again"
        raise BundleError(
            f"{path} has bundle schema {schema}; this version reads schema {SCHEMA}. {newer}."
        )
    return manifest


def no_bundle(path: Path) -> str:
    """Return a message on what is at a path without a manifest, and what to name instead."""
    beside = list_bundles(path.parent)
    instead = "samsvae bundles FOLDER lists the bundles in a folder."
    if beside:
        instead = f"Bundles in {path.parent}: {some(beside, 10)}."
    if not path.exists():
        hint = nearest(path.name, beside) if beside else instead
        return f"There is no folder {path}. {hint}"
    expected = f"{path} is no bundle: expected a folder with a manifest.json, found"
    if held := list_bundles(path):
        example = path / next(iter(held))
        return f"{expected} a folder that holds bundles: {some(held)}. Name one, such as {example}."
    if (path / "config.json").is_file():
        return (
            f"{expected} a run that has not finished. Finish it with samsvae train DATA --output "
            f"{path} --resume, or name another folder."
        )
    return f"{expected} {'none' if path.is_dir() else 'a file'}. {instead}"


def write_manifest(path: Path, data: dict[str, Any], device: str) -> None:
    """Write the manifest, with checksums and versions, which makes the folder a bundle."""
    optional = [name for name in OPTIONAL if (path / name).exists()]
    enrichment = sorted(f"enrichment/{p.name}" for p in (path / "enrichment").glob("*.parquet"))
    manifest = {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": {name: version(name) for name in PACKAGES},
        "data": data,
        "collections": {
            Path(name).stem: load_collection(Path(name).stem).checksum for name in enrichment
        },
        "recipe": RECIPE,
        "files": {name: sha256(path / name) for name in [*FILES, *optional, *enrichment]},
    }
    atomic_write(path / "manifest.json", to_json(manifest))


def models_folder() -> Path:
    """Return where bundles are looked for: SAMSVAE_MODELS, or the models beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "pretrained"
    return Path(os.environ.get("SAMSVAE_MODELS", default))


def list_bundles(folder: Path) -> dict[str, Path]:
    """Return the folders with a manifest, by name; they are checked only when loaded."""
    found = sorted(folder.glob("*/manifest.json"))
    return {p.parent.name: p.parent for p in found if not p.parent.name.startswith(".")}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def to_json(content: Any) -> bytes:
    """Return indented JSON; raises ValueError for NaN, which other readers refuse."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _no_number(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number of JSON")


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raises BundleError for anything else."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds no JSON object.")
    return content


def read_csv(path: Path) -> pd.DataFrame:
    """Return a table whose names stay text: NA is not a missing value, TRUE and 007 are text.

    In other columns an empty cell is a missing number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        named = next(csv.reader(file), [])
    if len(set(named)) < len(named):
        raise ValueError(f"{path.name} has columns of the same name")
    numbers = {column: [""] for column in named if column not in NAMES}
    names = dict.fromkeys(NAMES, str)
    return pd.read_csv(path, keep_default_na=False, na_values=numbers, dtype=names)


def read_groups(path: Path) -> pd.Series:
    """Return the known group of each perturbation, from a CSV file. Raises DataError."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}).") from error
    if not {"perturbation", "group"} <= set(table):
        raise DataError(
            f"{path} must have columns perturbation, group; found {', '.join(table.columns)}."
        )
    table = table.apply(lambda column: column.str.strip())
    return table[table["group"] != ""].set_index("perturbation")["group"]
