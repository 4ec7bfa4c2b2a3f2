"""A bundle: a folder with a trained model and its tables, checked when it is loaded.

Nothing in it is ever unpickled; it holds only safetensors, JSON, CSV and Parquet. The manifest is
written last, so a folder with a manifest is complete. A saved bundle never changes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow
import scipy.sparse as sp
from jaxtyping import Float, Float32
from safetensors import SafetensorError, safe_open
from torch import Tensor

from samsvae_core.bundle import context_checks, direct_checks, soundness
from samsvae_core.bundle.layout import (
    CELL_COUNTS,
    TABLES,
    BundleError,
    check_table,
    read_csv,
    read_json,
    version,
)
from samsvae_core.bundle.readings import Known, aligned, dosages_of
from samsvae_core.data.cells import (
    CellData,
)
from samsvae_core.genesets.collections import Collection
from samsvae_core.genesets.prerank import RECIPE
from samsvae_core.genesets.questions import Enrichment, read_parquet
from samsvae_core.models.distributions import PER_TEN_THOUSAND
from samsvae_core.models.samsvae import EMPTY_CELL, SAMSVAE
from samsvae_core.system.files import sha256

AT_ONCE = 2**22  # tables up to this size are checked when their bundle is loaded
ANEW = (
    "Make its tables anew: remove manifest.json from a run that has its checkpoints and go on with "
    "samsvae train DATA --output DIR --resume, which trains no further; or train it again."
)


class Reference(NamedTuple):
    """A fixed sample of encoded control cells, from which predictions start."""

    loc: Float[Tensor, "R K"]  # mean of q(z_basal | x)
    scale: Float[Tensor, "R K"]  # its standard deviation
    library: Float[Tensor, " R"]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A trained model and everything a page needs; tables are read when first used."""

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
        """The sha256 of the manifest, which identifies the bundle."""
        return sha256(self.path / "manifest.json")

    @property
    def control(self) -> str:
        return str(self.conditions.index[0])

    @cached_property
    def genes_by_id(self) -> dict[str, str]:
        """The gene of each id, if the data had ids besides names; else empty."""
        table = read_csv(self.path / "genes.csv")
        ids = table["id"].tolist() if "id" in table else []
        return dict(zip(ids, self.genes, strict=False))

    @cached_property
    def observed(self) -> pd.DataFrame:
        """Condition, gene, split, level, se, n; of matched controls also control_level, _se."""
        return self.table("observed.parquet")

    @cached_property
    def loadings(self) -> pd.DataFrame:
        """Columns mechanism, gene, loading, se, step."""
        return self.table("loadings.parquet")

    @cached_property
    def masks(self) -> pd.DataFrame:
        """Mask entries: probability, effect, effect_sd, active, evidence, evidence_se, _n."""
        return self.table("masks.csv")

    @cached_property
    def direct(self) -> pd.DataFrame | None:
        """Direct effects, see `analysis.direct`; None for a model without them."""
        return self.if_there("direct.csv")

    @cached_property
    def shared(self) -> pd.DataFrame | None:
        """What all perturbed cells share: gene, effect, effect_sd, probability; None likewise."""
        return self.if_there("shared.csv")

    @cached_property
    def differences(self) -> pd.DataFrame | None:
        """Differences between contexts, see `analysis.differences`; None without contexts."""
        return self.if_there("differences.csv")

    @cached_property
    def frontier(self) -> pd.DataFrame | None:
        """The levels of evidence compared in training; None if they were not."""
        return self.if_there("frontier.csv")

    @cached_property
    def calibration(self) -> pd.DataFrame | None:
        """Columns gene, model_error: error of predicted shifts beyond sampling; None if unknown."""
        return self.if_there("calibration.csv")

    @property
    def title(self) -> str:
        """The name of the model for people."""
        return self.model.title

    @cached_property
    def cells(self) -> pd.DataFrame:
        """A sample of cells: cell, condition, split, umap_1, umap_2 (of the shifted states).

        Newer bundles also have basal_1, basal_2 and the states along each mechanism, "basal M0"
        and, for models with latent shifts, "shifted M0".
        """
        return self.table("cells.parquet")

    @property
    def has_cell_values(self) -> bool:
        """Whether the bundle holds the measured values of its `cells`."""
        return CELL_COUNTS in self.manifest["files"]

    def cell_values(self, gene: str) -> Float32[np.ndarray, " N"]:
        """Return the level of one gene in each of `cells`: log2(1 + 1e4 x / library) of a count x.

        Values that are not counts are returned as they are. Only this gene is read from the file.
        Raises ValueError for a gene the bundle does not have, and BundleError if it holds no
        values.
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
        return self.table("perturbations_umap.csv")

    @cached_property
    def history(self) -> pd.DataFrame:
        return self.table("history.csv")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        found = read_json(self.path / "metrics.json")
        with soundness.sound(self.path):
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
        """Return whether the stored enrichment is that of these sets under the current method."""
        made = self.manifest.get("collections", {}).get(collection.name)
        gseapy = self.manifest.get("versions", {}).get("gseapy")
        how = self.manifest.get("recipe"), gseapy
        return bool(made == collection.checksum and how == (RECIPE, version("gseapy")))

    def enrichment(self, collection: str) -> Enrichment:
        """Return the gene sets of every active mechanism, by both methods."""
        path = self.path / "enrichment" / f"{collection}.parquet"
        try:
            check_table(path)
            found = read_parquet(path)
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error
        with soundness.sound(self.path):
            n_mechanisms = self.model.config.n_latent
            soundness.check_enrichment(f"enrichment/{path.name}", found.table, n_mechanisms)
        return found

    def observed_level(self, condition: str, split: str = "all") -> pd.DataFrame | None:
        """Return measured level, standard error and cells, by gene; None if not measured.

        `split` is "all" or "test". With covariates it is the weighted level of strata, to be
        compared with `control_level` only.
        """
        return self._measured(condition, split, ["level", "se", "n"])

    def control_level(self, condition: str, split: str = "all") -> pd.DataFrame | None:
        """Return level and standard error of the control cells matched to a condition, by gene.

        Without covariates they are those of all control cells. None if there are none.
        """
        if "control_level" not in self.observed or condition == self.control:
            return self._measured(self.control, split, ["level", "se"])
        found = self._measured(condition, split, ["control_level", "control_se"])
        return None if found is None else found.set_axis(["level", "se"], axis=1)

    def _measured(self, condition: str, split: str, columns: list[str]) -> pd.DataFrame | None:
        """Return columns of `observed` by gene, the first of which is a level."""
        blocks = self._observed_blocks.get((split, condition))
        if blocks is None:
            return None
        rows = pd.concat([self.observed.iloc[block] for block in blocks])
        found = rows.set_index("gene")[columns]
        if not found.index.equals(self._gene_index):
            found = found.reindex(self._gene_index)
        return None if found[columns[0]].isna().all() else found

    def observed_shift(self, condition: str, split: str = "all") -> pd.DataFrame | None:
        """Return the measured shift against control with its standard error; None if not measured.

        `split` is "all" or "test". With covariates, control is that of the same strata.
        """
        perturbed = self.observed_level(condition, split)
        control = self.control_level(condition, split)
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
        """The rows of each split and condition in `observed`, found by one scan."""
        keys = [self.observed[column].to_numpy(dtype=object) for column in ("split", "condition")]
        n = len(self.observed)
        begins = np.full(n, True)
        begins[1:] = (keys[0][1:] != keys[0][:-1]) | (keys[1][1:] != keys[1][:-1])
        blocks: dict[tuple[str, str], list[slice]] = {}
        for start, stop in pairwise([*np.flatnonzero(begins).tolist(), n]):
            blocks.setdefault((keys[0][start], keys[1][start]), []).append(slice(start, stop))
        return blocks

    @cached_property
    def latent_effects(self) -> Float[np.ndarray, "T K"]:
        """Mean effects of `masks`, in the order of perturbations and mechanisms.

        It has no column for a model without latent shifts.
        """
        return self.masks["effect"].to_numpy(float).reshape(len(self.perturbations), -1)

    @cached_property
    def trained_dosages(self) -> pd.DataFrame:
        """Dosages of the conditions with training cells, conditions x perturbations, control first.

        They are read from the labels; a condition whose label has no reading, or several, is left
        out.
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
    def latent_shifts(self) -> pd.DataFrame:
        """Mean latent shifts of the conditions of `trained_dosages`."""
        D = self.trained_dosages
        moves = sp.csr_matrix(D.to_numpy()) @ self.latent_effects
        return pd.DataFrame(moves, index=D.index)

    def align(self, data: CellData) -> CellData:
        """Return the same cells with genes, perturbations and levels in the order of the bundle.

        Genes are matched by name or id. Raises DataError for what the data lack or the bundle.
        """
        return aligned(data, self.known)

    @property
    def known(self) -> Known:
        """What the bundle knows of the cells that it was trained on."""
        others = self.model.config.other_genes
        names = self.perturbations.index
        return Known(self.genes, self.genes_by_id, names, others, self.config)

    @property
    def levels(self) -> dict[str, list[str]]:
        """The levels of each covariate that the model accounts for; empty without any."""
        return {name: list(found) for name, found in self.known.levels.items()}

    @property
    def context(self) -> str | None:
        """The covariate between whose levels effects may differ; None without any."""
        number = self.model.config.context
        return None if number is None else list(self.levels)[number]

    def if_there(self, name: str) -> pd.DataFrame | None:
        """A table that not every bundle has; None without it."""
        return self.table(name) if name in self.manifest["files"] else None

    def table(self, name: str) -> pd.DataFrame:
        """A table of `layout.TABLES`, by its file: checked, and read once."""
        if name in self._read:
            return self._read[name]
        path = self.path / name
        try:
            if path.suffix == ".parquet":
                check_table(path)
            frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv(path)
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise BundleError(f"{path} cannot be read ({error}). Copy the bundle again.") from error
        with soundness.sound(self.path):
            names = list(self.perturbations.index), list(self.conditions.index)
            soundness.check_table(name, frame, self.genes, *names)
            if name == "observed.parquet":
                soundness.check_levels(self.model, frame, self.genes)
        self._read[name] = frame
        return frame

    @cached_property
    def _read(self) -> dict[str, pd.DataFrame]:
        """The tables that were asked for."""
        return {}

    def check(self) -> None:
        """Raise BundleError if masks, loadings, cells or tables do not fit the weights.

        Large tables are checked when they are read.
        """
        with soundness.sound(self.path):
            soundness.check_cells(self.model, self.perturbations, self.conditions)
            soundness.check_masks(self.model, self.masks, list(self.perturbations.index))
            names = list(self.perturbations.index), self.genes
            direct_checks.check_direct(self.model, self.direct, self.shared, *names)
            context_checks.check_differences(self.model, self.differences, names[0], self.levels)
            soundness.check_loadings(self.model, self.reference.loc, self.loadings, self.genes)
            soundness.check_metrics(self.metrics)
        for name in TABLES:
            if name in self.manifest["files"] and (self.path / name).stat().st_size <= AT_ONCE:
                self.table(name)
