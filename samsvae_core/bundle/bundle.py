"""A trained model with its tables, as a folder one can hand on: kept once, checked when loaded.

Nothing in it is ever unpickled: safetensors, JSON, CSV and Parquet only. The manifest is written
last, so a folder with a manifest is whole. A saved bundle never changes.
"""

from __future__ import annotations

import csv
import datetime
import importlib.metadata
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from samsvae_core.bundle import soundness
from samsvae_core.data.cells import (
    CellData,
    DataError,
    conditions_as_perturbations,
    genes_at,
    nearest,
    some,
)
from samsvae_core.genesets.collections import Collection, load_collection
from samsvae_core.genesets.enrichment import Enrichment, read_parquet
from samsvae_core.genesets.prerank import RECIPE
from samsvae_core.genesets.symbols import without_version
from samsvae_core.models.samsvae import EMPTY_CELL, PER_TEN_THOUSAND, SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.system.files import atomic_write, sha256

SCHEMA = 2  # 2: other models, evidence of mask entries, calibration
FILES = (
    "config.json",
    "weights.safetensors",
    "genes.csv",
    "perturbations.csv",
    "conditions.csv",
    "split.csv",
    "reference.safetensors",
    "observed.parquet",
    "loadings.parquet",
    "masks.csv",
    "cells.parquet",
    "perturbations_umap.csv",
    "history.csv",
    "metrics.json",
    "card.md",
)
CELL_COUNTS = "cells_counts.safetensors"
EFFECTS = "effects.safetensors"  # every perturbation composed: see `effects`
OPTIONAL = ("frontier.csv", "calibration.csv", "predictive_checks.parquet", CELL_COUNTS, EFFECTS)
NAMES = (
    "gene",
    "perturbation",
    "condition",
    "cell",
    "split",
    "id",
)  # columns that are text whatever they look like
MOST_VALUES = 10**8  # of a table: rows x columns; 5,000 genes of 700 conditions have 4 * 10**7
MOST_TEXT = 2**30  # bytes of all texts of a table, repeated ones each time
AT_ONCE = 2**22  # bytes of a table that is read when its bundle is loaded
TABLES = {
    "observed.parquet": "observed",
    "cells.parquet": "cells",
    "history.csv": "history",
    "perturbations_umap.csv": "perturbations_umap",
    "calibration.csv": "calibration",
    "frontier.csv": "frontier",
}
MOST_TENSORS = 2**29  # bytes of a file of tensors that is read whole
TYPES = {"BOOLEAN", "INT32", "INT64", "FLOAT", "DOUBLE", "BYTE_ARRAY"}  # of columns, in Parquet
ROUNDED = 1e-5  # relative error of a dosage as labels of conditions tell it
ANEW = (
    "Make its tables anew: remove manifest.json from a run that has its checkpoints and go on with "
    "samsvae train DATA --output DIR --resume, which trains no further; or train it again."
)
PACKAGES = ("samsvae-explorer", "torch", "numpy", "pandas", "anndata", "gseapy", "umap-learn")


class BundleError(ValueError):
    """A folder is no bundle, or a damaged one; the message says what was expected and found."""


class Reference(NamedTuple):
    """A fixed sample of encoded control cells: where predictions start from."""

    loc: Float[Tensor, "R K"]  # mean of q(z_basal | x)
    scale: Float[Tensor, "R K"]  # its standard deviation
    library: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model and everything a page needs of it; tables are read when first asked for."""

    path: Path
    manifest: dict[str, Any]
    config: dict[str, Any]  # schema, model, model_config, train_config, data, name
    model: SAMSVAE
    reference: Reference
    genes: list[str]  # (G,) in the order of the decoder
    perturbations: pd.DataFrame  # by name, in the order of the masks: cells per split
    conditions: pd.DataFrame  # by name, control first: perturbations and cells per split

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def checksum(self) -> str:
        """Identifies the bundle: the sha256 of its manifest."""
        return sha256(self.path / "manifest.json")

    @property
    def control(self) -> str:
        return str(self.conditions.index[0])

    @cached_property
    def genes_by_id(self) -> dict[str, str]:
        """The gene of each id of the data, where these have ids beside names; else empty."""
        table = read_csv(self.path / "genes.csv")
        ids = table["id"].tolist() if "id" in table else []
        return dict(zip(ids, self.genes, strict=False))

    @cached_property
    def observed(self) -> pd.DataFrame:
        """Columns condition, gene, split, level, se, n: log2(1 + 1e4 p) of the pooled counts."""
        table = self._table("observed.parquet")
        with sound(self.path):
            soundness.check_levels(self.model, table, self.genes)
        return table

    @cached_property
    def loadings(self) -> pd.DataFrame:
        """Columns mechanism, gene, loading, se, step."""
        return self._table("loadings.parquet")

    @cached_property
    def masks(self) -> pd.DataFrame:
        """A row per pair: probability, effect, effect_sd, active, evidence, evidence_se, _n."""
        return self._table("masks.csv")

    @cached_property
    def frontier(self) -> pd.DataFrame | None:
        """Levels of evidence that were compared when the model was trained, if they were."""
        if "frontier.csv" not in self.manifest["files"]:
            return None
        return self._table("frontier.csv")

    @cached_property
    def calibration(self) -> pd.DataFrame | None:
        """Columns gene, model_error: error of predicted shifts beyond sampling, if it is known."""
        if "calibration.csv" not in self.manifest["files"]:
            return None
        return self._table("calibration.csv")

    @property
    def title(self) -> str:
        """Which model this is, as people call it."""
        return self.model.title

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A sample of cells: cell, condition, split, umap_1, umap_2 (of the shifted states).

        Also basal_1, basal_2, and the states along each mechanism, "basal M0" and "shifted M0" (the
        latter of models with latent shifts), in bundles made since these are kept.
        """
        return self._table("cells.parquet")

    @property
    def has_cell_values(self) -> bool:
        """Whether the bundle came with what was measured in its `cells`."""
        return CELL_COUNTS in self.manifest["files"]

    def cell_values(self, gene: str) -> Float32[np.ndarray, " N"]:
        """The level of one gene in each of `cells`: log2(1 + 1e4 x / library) of a count x.

        Values that are no counts come as they are. Only this gene is read from the file. Raises
        ValueError for a gene the bundle does not have, BundleError where no values were kept.
        """
        if gene not in self.genes:
            raise ValueError(f"{gene!r} is none of the {len(self.genes):,} genes of {self.name}.")
        if not self.has_cell_values:
            raise BundleError(
                f"{self.path} holds no values of single cells: it was made before they were kept, "
                f"or is handed on without them. {ANEW}"
            )
        path, row = self.path / CELL_COUNTS, self.genes.index(gene)
        values = np.zeros(len(self.cells), np.float32)
        try:
            with safe_open(path, framework="np") as file:
                shape = json.loads(file.metadata()["shape"])
                if shape != [len(self.genes), len(values)]:
                    raise ValueError(f"its shape is {shape}")
                start, end = file.get_slice("indptr")[row : row + 2].tolist()
                cells = file.get_slice("indices")[start:end]
                values[cells] = file.get_slice("data")[start:end]
                if self.model.config.likelihood == "counts":
                    library = np.maximum(file.get_tensor("library"), EMPTY_CELL)
                    values = np.log2(1 + np.float32(PER_TEN_THOUSAND) * values / library)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, IndexError) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error
        return values

    @cached_property
    def perturbations_umap(self) -> pd.DataFrame:
        """Columns perturbation, umap_1, umap_2."""
        return self._table("perturbations_umap.csv")

    @cached_property
    def history(self) -> pd.DataFrame:
        return self._table("history.csv")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        found = read_json(self.path / "metrics.json")
        with sound(self.path):
            soundness.check_metrics(found)
        return found

    @cached_property
    def card(self) -> str:
        path = self.path / "card.md"
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error

    @property
    def collections(self) -> list[str]:
        """Gene set collections whose enrichment was computed when the bundle was made."""
        names = (Path(name) for name in self.manifest["files"])
        return sorted(n.stem for n in names if n.parts[0] == "enrichment")

    def holds(self, collection: Collection) -> bool:
        """Whether its enrichment is that of these sets, as it would be tested now."""
        made = self.manifest.get("collections", {}).get(collection.name)
        gseapy = self.manifest.get("versions", {}).get("gseapy")
        how = self.manifest.get("recipe"), gseapy
        return bool(made == collection.checksum and how == (RECIPE, version("gseapy")))

    def enrichment(self, collection: str) -> Enrichment:
        """Gene sets of every active mechanism, by both methods."""
        path = self.path / "enrichment" / f"{collection}.parquet"
        try:
            check_table(path)
            found = read_parquet(path)
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error
        with sound(self.path):
            n_mechanisms = self.model.config.n_latent
            soundness.check_enrichment(f"enrichment/{path.name}", found.table, n_mechanisms)
        return found

    def observed_level(self, condition: str, split: str = "all") -> pd.DataFrame | None:
        """Measured level, its standard error and the cells, by gene; None if not measured.

        `split` is "all" or "test".
        """
        blocks = self._observed_blocks.get((split, condition))
        if blocks is None:
            return None
        rows = pd.concat([self.observed.iloc[block] for block in blocks])
        found = rows.set_index("gene")[["level", "se", "n"]]
        if not found.index.equals(self._gene_index):
            found = found.reindex(self._gene_index)
        return None if found["level"].isna().all() else found

    def observed_shift(self, condition: str, split: str = "all") -> pd.DataFrame | None:
        """Measured shift against control with its standard error, by gene; None if not measured.

        `split` is "all" or "test". The two standard errors add in squares.
        """
        perturbed, control = (self.observed_level(c, split) for c in (condition, self.control))
        if perturbed is None or control is None:
            return None
        shift = perturbed["level"] - control["level"]
        se = np.hypot(perturbed["se"], control["se"])
        return pd.DataFrame({"shift": shift, "se": se, "n": perturbed["n"]})

    @cached_property
    def _gene_index(self) -> pd.Index:
        return pd.Index(self.genes, name="gene")

    @cached_property
    def _observed_blocks(self) -> dict[tuple[str, str], list[slice]]:
        """Where the rows of each split and condition are in `observed`, found by one scan."""
        keys = [self.observed[column].to_numpy(dtype=object) for column in ("split", "condition")]
        n = len(self.observed)
        begins = np.full(n, True)
        begins[1:] = (keys[0][1:] != keys[0][:-1]) | (keys[1][1:] != keys[1][:-1])
        blocks: dict[tuple[str, str], list[slice]] = {}
        for start, stop in pairwise([*np.flatnonzero(begins).tolist(), n]):
            blocks.setdefault((keys[0][start], keys[1][start]), []).append(slice(start, stop))
        return blocks

    @cached_property
    def effects(self) -> Float[np.ndarray, "T K"]:
        """Mean effects of `masks`, in the order of perturbations and mechanisms.

        Without a column where the model has no latent shifts.
        """
        return self.masks["effect"].to_numpy(float).reshape(len(self.perturbations), -1)

    @cached_property
    def trained_dosages(self) -> pd.DataFrame:
        """Dosages of the conditions with training cells: conditions x perturbations.

        As their labels tell them, control first. A condition whose label can be read in no way, or
        in several, is left out.
        """
        trained = self.conditions.index[self.conditions["train"] > 0]
        if self.model.composes:
            limits = self.perturbations[["dosage_min", "dosage_max"]].to_numpy(float)
            known = dict(zip(self.perturbations.index, limits.tolist(), strict=True))
            read = {label: dosages_of(label, known) for label in trained}
        else:
            names = set(self.perturbations.index)
            read = {label: {label: 1.0} if label in names else None for label in trained}
        if self.control in read:
            read[self.control] = {}
        told = {label: dosages for label, dosages in read.items() if dosages is not None}
        place = {name: column for column, name in enumerate(self.perturbations.index)}
        D = np.zeros((len(told), len(place)))
        for row, dosages in enumerate(told.values()):
            for name, dose in dosages.items():
                D[row, place[name]] = dose
        index = pd.Index(list(told), name="condition", dtype=object)
        return pd.DataFrame(D, index=index, columns=self.perturbations.index)

    @cached_property
    def trained_shifts(self) -> pd.DataFrame:
        """Where the conditions of `trained_dosages` move the latent state on average."""
        D = self.trained_dosages
        moves = sp.csr_matrix(D.to_numpy()) @ self.effects
        return pd.DataFrame(moves, index=D.index)

    def align(self, data: CellData) -> CellData:
        """The same cells with genes and perturbations in the order of the bundle.

        Genes meet by name, or by their ids where either has another name for one. Raises DataError
        where genes are missing, or perturbations are none of the bundle's.
        """
        data = suited(data, self.config["model"])
        where = self._genes_in(data)
        for what, needed, found in (
            ("lack {} of the bundle's genes, such as {}", self.genes, where),
            (
                "hold {} perturbations unknown to the bundle, such as {}",
                data.perturbations,
                self.perturbations.index,
            ),
        ):
            missing = pd.Index(needed).difference(pd.Index(found))
            if len(missing):
                problem = what.format(len(missing), ", ".join(missing[:3]))
                raise DataError(f"The data {problem}. Use the file the bundle was trained on.")
        data = genes_at(data, np.array([where[gene] for gene in self.genes]))
        if data.has_size_factor != self.model.config.other_genes:
            key = self.config["data"].get("size_factor_key")
            raise DataError(
                "The bundle was trained with "
                + (f"--size-factor-key {key}" if key else "library sizes from the panel")
                + "; read the data the same way."
            )
        where = self.perturbations.index.get_indexer(pd.Index(data.perturbations))
        dosages = data.dosages.tocoo()
        shape = (len(data.cells), len(self.perturbations))
        moved = sp.csr_matrix((dosages.data, (dosages.row, where[dosages.col])), shape=shape)
        names = np.array(self.perturbations.index, dtype=str)
        return replace(data, dosages=moved, perturbations=names)

    def _genes_in(self, data: CellData) -> dict[str, int]:
        """Where each of the bundle's genes is among those of the data, if it is there.

        A name of either may be an id of the other: versions of Ensembl ids do not matter.
        """
        place = {name: i for i, name in enumerate(data.genes.tolist())}
        found = {gene: place[gene] for gene in self.genes if gene in place}
        if len(found) == len(self.genes):
            return found
        theirs: dict[str, set[int]] = defaultdict(set)
        for names in (data.genes, () if data.gene_ids is None else data.gene_ids):
            for i, name in enumerate(names):
                theirs[without_version(name)].add(i)
        own_ids = {gene: name for name, gene in self.genes_by_id.items()}
        for gene in self.genes:
            for name in (own_ids.get(gene, gene), gene):
                places = theirs.get(without_version(name), set())
                if gene not in found and len(places) == 1:
                    found[gene] = next(iter(places))
        return found

    def _table(self, name: str) -> pd.DataFrame:
        path = self.path / name
        try:
            if path.suffix == ".parquet":
                check_table(path)
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error
        with sound(self.path):
            names = list(self.perturbations.index), list(self.conditions.index)
            soundness.check_table(name, frame, self.genes, *names)
        return frame

    def check(self) -> None:
        """Raises BundleError where masks, loadings, cells or tables do not fit the weights.

        Tables that are large are looked at when they are read.
        """
        with sound(self.path):
            soundness.check_cells(self.model, self.perturbations, self.conditions)
            soundness.check_masks(self.model, self.masks, list(self.perturbations.index))
            soundness.check_loadings(self.model, self.reference.loc, self.loadings, self.genes)
            soundness.check_metrics(self.metrics)
        for name, read in TABLES.items():
            file = self.path / name
            if name in self.manifest["files"] and file.stat().st_size <= AT_ONCE:
                getattr(self, read)


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """What does not fit together is told as a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(
            f"{path} does not hold together: {error}. Its files were changed after they were made, "
            "or are of several bundles. Get it again from where it was made, or train it again."
        ) from error


def dosages_of(label: str, known: Mapping[str, Sequence[float]]) -> dict[str, float] | None:
    """The dosages that the label of a condition tells: "A" and "B" at 0.5 of "A+B:0.5".

    `known` has the least and the largest dosage of each perturbation: names may hold "+" and ":"
    themselves, so a label is read by what is known. None where it has no reading, or several.
    """
    found = list(islice(readings(label.split("+"), known), 2))
    return found[0] if len(found) == 1 else None


def readings(
    pieces: list[str], known: Mapping[str, Sequence[float]], after: str = ""
) -> Iterator[dict[str, float]]:
    """Each way to put the pieces of a label together to perturbations, sorted, at known dosages."""
    if not pieces:
        yield {}
    for n in range(1, len(pieces) + 1):
        part = "+".join(pieces[:n])
        name, _, text = part.rpartition(":")
        for each, dose in ((part, 1.0), (name, written_dosage(text))):
            low, high = known.get(each, (np.inf, -np.inf))
            if each > after and low * (1 - ROUNDED) <= dose <= high * (1 + ROUNDED):
                for rest in readings(pieces[n:], known, each):
                    yield {each: dose, **rest}


def written_dosage(text: str) -> float:
    """The number, if it is written as in labels of conditions; else NaN."""
    try:
        dose = float(text)
    except ValueError:
        return np.nan
    return dose if f"{dose:g}" == text else np.nan


def suited(data: CellData, model: str) -> CellData:
    """The data as a model of MODELS takes them: one treatment per cell where it knows no more."""
    return data if MODELS[model].composes else conditions_as_perturbations(data)


def load(path: Path | str) -> Bundle:
    """The bundle in this folder, its schema, checksums and shapes checked, and that it is sound.

    Raises BundleError for a folder that is none, a newer one, a damaged one or a foreign one.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not inside(file, path):
            raise BundleError(f"{path} lacks {name!r}, which its manifest lists. Copy it again.")
        if sha256(file) != expected:
            raise BundleError(
                f"{file} is not the file the bundle was saved with (its checksum differs). "
                "Copy the bundle again; a saved bundle is never edited."
            )
    missing = sorted(set(FILES) - set(manifest["files"]))
    if missing:
        raise BundleError(f"The manifest of {path} does not list {', '.join(missing)}.")
    try:
        found = assemble(path, manifest)
        found.check()
        return found
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        if isinstance(error, BundleError):
            raise
        why = " ".join(str(error).split())  # torch writes a line per tensor
        raise BundleError(
            f"{path} is not a bundle of this version: {why}. "
            "Train it again, or open it with the version that made it (manifest.json)."
        ) from error


def inside(file: Path, folder: Path) -> bool:
    """Whether a path from a manifest is a file in the folder, not one that it leads away to."""
    try:
        return file.resolve().is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError):  # a name no file system takes
        return False


def assemble(path: Path, manifest: dict[str, Any]) -> Bundle:
    """Weights, reference and names, each checked against the configuration."""
    config = read_json(path / "config.json")
    if config["model"] not in MODELS:
        known = ", ".join(MODELS)
        raise BundleError(f"{path} holds the model {config['model']!r}; known: {known}.")
    genes = read_csv(path / "genes.csv")["gene"].tolist()
    perturbations = read_csv(path / "perturbations.csv").set_index("perturbation")
    conditions = read_csv(path / "conditions.csv").set_index("condition")
    with sound(path):
        for file, names in (
            ("genes.csv", genes),
            ("perturbations.csv", perturbations.index.tolist()),
            ("conditions.csv", conditions.index.tolist()),
        ):
            soundness.check_names(file, names)
    model_config = ModelConfig(**config["model_config"])
    with sound(path):
        soundness.check_config(model_config)
    sizes = {"genes.csv": len(genes), "perturbations.csv": len(perturbations)}
    expected = {
        "genes.csv": model_config.n_genes,
        "perturbations.csv": model_config.n_perturbations,
    }
    if sizes != expected:
        raise BundleError(f"{path}: its config expects {expected} rows, found {sizes}.")
    with sound(path):
        for table in (conditions, perturbations):
            file = f"{table.index.name}s.csv"
            soundness.check_columns(file, table.reset_index(), soundness.COLUMNS[file])
        if conditions.index[0] != config.get("control", conditions.index[0]):
            raise ValueError(
                f"conditions.csv begins with {conditions.index[0]!r}, and the control is "
                f"{config['control']!r}"
            )
    with torch.device("meta"):  # no memory is taken before the shapes have been compared
        model = MODELS[config["model"]](model_config)
    expected_shapes = {name: list(part.shape) for name, part in model.state_dict().items()}
    with safe_open(path / "weights.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    for name in sorted({*expected_shapes, *shapes}):
        if (there := shapes.get(name)) != (wanted := expected_shapes.get(name)):
            raise ValueError(f"weights {name} have the shape {there}, expected {wanted}")
    weights = _tensors(path / "weights.safetensors")
    with sound(path):
        kinds = {name: part.dtype for name, part in model.state_dict().items()}
        soundness.check_weights("weights.safetensors", weights, kinds)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    tensors = _tensors(path / "reference.safetensors")
    reference = Reference(tensors["loc"], tensors["scale"], tensors["library"])
    shape = (len(reference.library), model_config.n_latent)
    found = [tuple(part.shape) for part in reference]
    if found != [shape, shape, shape[:1]] or not shape[0]:
        raise BundleError(f"{path}: reference cells of shapes {found}.")
    with sound(path):
        floats = dict.fromkeys(Reference._fields, torch.float32)
        soundness.check_weights("reference.safetensors", reference._asdict(), floats)
        if (reference.scale <= 0).any() or (reference.library < 0).any():
            raise ValueError("reference.safetensors holds spreads or libraries below 0")
    return Bundle(path, manifest, config, model, reference, genes, perturbations, conditions)


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, unless they are more than a model has."""
    if (size := path.stat().st_size) > MOST_TENSORS:
        raise ValueError(f"{path.name} has {size:,} bytes; {MOST_TENSORS:,} is the most")
    return load_tensors(path.read_bytes())


def check_table(path: Path, texts: bool = False) -> None:
    """Raise ValueError for a Parquet file that would fill the memory; a small one may.

    With `texts` also for one whose texts would, which takes a look at all of them.
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
    """manifest.json of a bundle of a schema that is known here."""
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
    """What is at a path without a manifest, and what to name instead."""
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
    """List what is in the folder, with checksums and versions: from here on it is a bundle."""
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
    """Where bundles are looked for: SAMSVAE_MODELS, or the models shipped beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "pretrained"
    return Path(os.environ.get("SAMSVAE_MODELS", default))


def list_bundles(folder: Path) -> dict[str, Path]:
    """Folders with a manifest, by name; whether they are sound is found out on loading."""
    found = sorted(folder.glob("*/manifest.json"))
    return {p.parent.name: p.parent for p in found if not p.parent.name.startswith(".")}


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def to_json(content: Any) -> bytes:
    """Indented JSON; refuses NaN, which no other reader takes."""
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _no_number(text: str) -> float:
    raise ValueError(f"it holds {text}, which is no number of JSON")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises BundleError for anything else."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds no JSON object.")
    return content


def read_csv(path: Path) -> pd.DataFrame:
    """A table whose names stay names: NA is not a missing value, TRUE and 007 are no numbers.

    In other columns nothing is a missing number.
    """
    with path.open(newline="", encoding="utf-8") as file:
        named = next(csv.reader(file), [])
    if len(set(named)) < len(named):
        raise ValueError(f"{path.name} has columns of the same name")
    numbers = {column: [""] for column in named if column not in NAMES}
    names = dict.fromkeys(NAMES, str)
    return pd.read_csv(path, keep_default_na=False, na_values=numbers, dtype=names)


def read_groups(path: Path) -> pd.Series:
    """Known groups of perturbations: the group by perturbation. Raises DataError."""
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
