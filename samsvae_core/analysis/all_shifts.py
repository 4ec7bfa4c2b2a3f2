"""The shift of every gene under every single perturbation, composed once and kept in a file.

The file is laid out gene by gene, so that the page of one gene reads only that gene. Newer bundles
hold it as `effects.safetensors`; for older ones it is kept in the cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from samsvae_core.analysis.draws import summary
from samsvae_core.analysis.similarity import similar_rows
from samsvae_core.bundle.bundle import Bundle, Reference
from samsvae_core.bundle.layout import EFFECTS
from samsvae_core.evaluation.calibration import WITHIN
from samsvae_core.evaluation.shifts import predicted_shifts
from samsvae_core.genesets.prerank import CancelledError, Progress
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.system import cache
from samsvae_core.system.files import OutputError, atomic_write, cache_folder

N_SAMPLES, SEED = 64, 0  # the defaults of `compose`
PREDICTED = ("shift", "lower", "upper", "probability_of_sign", "sd")
OBSERVED = ("observed", "observed_se")
ARRAYS = (*PREDICTED, *OBSERVED)  # genes x perturbations, single precision
DRAWN, LEAST = 6.0, 0.02  # a redrawn shift may differ by 6 standard errors plus 0.02
RECIPE = "1"  # raise it whenever the numbers change
ABOUT = "recipe and sha256"  # key of the file's metadata


@dataclass(frozen=True)
class AllShifts:
    """The shifts kept for one bundle; arrays are read on request, by gene or whole."""

    bundle: Bundle
    arrays: Mapping[str, Any]  # arrays or slices of a file; all take [row]
    n_observed: np.ndarray  # (P,) cells; 0 if not measured alone

    @property
    def perturbations(self) -> list[str]:
        return [str(name) for name in self.bundle.perturbations.index]

    def of_gene(self, gene: str) -> pd.DataFrame:
        """Return the rows of `gene_card.effect_table` for one gene, in single precision."""
        row = self.bundle.genes.index(gene)
        found = {name: np.asarray(self.arrays[name][row], dtype=float) for name in ARRAYS}
        reach = np.full(len(self.n_observed), np.nan)
        if self.bundle.calibration is not None:
            errors = self.bundle.calibration.set_index("gene")["model_error"]
            reach = WITHIN * np.hypot(found["sd"], errors.get(gene, np.nan))
        return pd.DataFrame(
            {
                "perturbation": self.perturbations,
                "gene": gene,
                **{name: found[name] for name in PREDICTED[:-1]},
                "calibrated_lower": found["shift"] - reach,
                "calibrated_upper": found["shift"] + reach,
                **{name: found[name] for name in OBSERVED},
                "n_observed": self.n_observed,
            }
        )

    def similar(self, perturbation: str) -> pd.DataFrame:
        """Return the other perturbations ranked by their shifts, as `similarity.similar_rows`."""
        predicted, observed = self.matrix("shift"), self.matrix("observed")
        return similar_rows(self.perturbations, predicted, observed, self.n_observed, perturbation)

    def matrix(self, name: str) -> Float[np.ndarray, "P G"]:
        """Return one of ARRAYS in full, perturbations x genes."""
        return np.asarray(self.arrays[name][:], dtype=float).T


def make(
    model: SAMSVAE,
    reference: Reference,
    alone: Mapping[str, np.ndarray],
    lock: AbstractContextManager[Any] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, np.ndarray]:
    """Compose every perturbation and add the measured shifts from `observed_alone`.

    Returns the arrays of the file. Perturbations are composed one at a time and give the same
    numbers as `compose`. `lock` is held while each is drawn and decoded, and released in between.
    Raises CancelledError.
    """
    lock = lock or nullcontext()
    shape = model.config.n_genes, model.config.n_perturbations
    arrays = {name: np.full(shape, np.nan, np.float32) for name in PREDICTED}
    for t, dosages in enumerate(torch.eye(shape[1], device=model.device)):
        if cancelled():
            raise CancelledError
        progress(Progress(t, shape[1]))
        with lock:
            draws = predicted_shifts(model, reference, dosages[None], N_SAMPLES, SEED).shift[0]
        for name, values in {**summary(draws), "sd": draws.std(0, ddof=1)}.items():
            if model.has_posterior or name in ("shift", "sd"):
                arrays[name][:, t] = values
    return arrays | dict(alone)


def observed_alone(
    observed: pd.DataFrame, genes: list[str], perturbations: list[str], control: str
) -> dict[str, np.ndarray]:
    """Return the measured shifts of single perturbations, from the table of observed levels.

    The result has `observed` and `observed_se` (genes x perturbations, NaN where not measured) and
    `n_observed` (cells per perturbation).
    """
    rows = observed[observed["split"] == "all"]
    names = [control, *perturbations]
    gene, name = (
        pd.Index(known).get_indexer(pd.Index(rows[column]))
        for known, column in ((genes, "gene"), (names, "condition"))
    )
    kept = (gene >= 0) & (name >= 0)
    cells = np.zeros(len(names), dtype=np.int64)
    np.maximum.at(cells, name[kept], rows["n"].to_numpy(np.int64)[kept])

    def table(column: str) -> np.ndarray:
        found = np.full((len(genes), len(names)), np.nan)
        found[gene[kept], name[kept]] = rows[column].to_numpy(float)[kept]
        return found

    level, se = table("level"), table("se")
    against, against_se = level[:, :1], se[:, :1]
    if "control_level" in rows:  # of the control cells matched to each condition
        against, against_se = table("control_level")[:, 1:], table("control_se")[:, 1:]
    return {
        "observed": (level[:, 1:] - against).astype(np.float32),
        "observed_se": np.hypot(se[:, 1:], against_se).astype(np.float32),
        "n_observed": cells[1:],
    }


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of the file, with recipe and checksum in its metadata.

    Both stand in one metadata entry, because the order of several entries differs from run to run.
    """
    about = {ABOUT: f"{RECIPE} {checksum(arrays)}"}
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, about)


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def kept(bundle: Bundle) -> AllShifts | None:
    """Return the shifts kept in the bundle or in the cache folder, or None if there are none.

    A file of another recipe and a damaged file count as none.
    """
    for path, trusted in places(bundle):
        try:
            found = opened(bundle, path, trusted)
            if trusted:
                check(found)
            else:
                cache.use(path)
            return found
        except (SafetensorError, OSError, KeyError, TypeError, ValueError):
            continue
    return None


def places(bundle: Bundle) -> Iterator[tuple[Path, bool]]:
    """Yield the places where the file can be, and whether its content has already been checked."""
    if EFFECTS in bundle.manifest["files"]:
        yield bundle.path / EFFECTS, True
    yield cache_file(bundle), False


def cache_file(bundle: Bundle) -> Path:
    return cache_folder() / "effects" / f"{bundle.checksum}.safetensors"


def opened(bundle: Bundle, path: Path, trusted: bool) -> AllShifts:
    """Open the file and check its layout, and its checksum unless `trusted`; raises ValueError."""
    with safe_open(path, framework="np") as file:
        recipe, _, digest = (file.metadata() or {}).get(ABOUT, "").partition(" ")
        arrays = {name: file.get_slice(name) for name in ARRAYS}
        cells = file.get_tensor("n_observed")
        shape = [len(bundle.genes), len(bundle.perturbations)]
        found = {(*array.get_shape(), array.get_dtype()) for array in arrays.values()}
        if recipe != RECIPE or found != {(*shape, "F32")} or cells.shape != (shape[1],):
            raise ValueError(f"{path} holds other effects.")
        if not trusted:
            whole = {name: file.get_tensor(name) for name in ARRAYS} | {"n_observed": cells}
            if checksum(whole) != digest:
                raise ValueError(f"{path} is damaged.")
    return AllShifts(bundle, arrays, cells)


def check(effects: AllShifts) -> None:
    """Raise ValueError if a bundle's own file does not follow from its weights and tables.

    One perturbation is composed again. Files made on another device had other random draws, so the
    shifts need only agree within their sampling error.
    """
    bundle = effects.bundle
    alone = observed_alone(bundle.observed, bundle.genes, effects.perturbations, bundle.control)
    for name in OBSERVED:
        if not np.allclose(effects.matrix(name), alone[name].T, atol=1e-5, equal_nan=True):
            raise ValueError(f"{EFFECTS} has other measured shifts than observed.parquet.")
    if not np.array_equal(effects.n_observed, alone["n_observed"]):
        raise ValueError(f"{EFFECTS} has other numbers of cells than observed.parquet.")
    first = torch.zeros(1, len(effects.perturbations))
    first[0, 0] = 1
    draws = predicted_shifts(bundle.model, bundle.reference, first, N_SAMPLES, SEED).shift[0]
    reach = DRAWN * draws.std(0, ddof=1) * (2 / N_SAMPLES) ** 0.5 + LEAST
    if not (np.abs(effects.matrix("shift")[0] - draws.mean(0)) <= reach).all():
        raise ValueError(f"{EFFECTS} does not follow from the weights.")


def whole_effects(
    bundle: Bundle,
    lock: AbstractContextManager[Any] | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> AllShifts:
    """Return the shifts of a bundle; if none are kept, compose them and cache them if possible."""
    if (found := kept(bundle)) is not None:
        return found
    names = [str(name) for name in bundle.perturbations.index]
    alone = observed_alone(bundle.observed, bundle.genes, names, bundle.control)
    arrays = make(bundle.model, bundle.reference, alone, lock, progress, cancelled)
    try:
        atomic_write(cache_file(bundle), packed(arrays))
        cache.make_room(cache_file(bundle))
        return opened(bundle, cache_file(bundle), trusted=True)
    except (OutputError, OSError, SafetensorError):  # cannot be written: keep it in memory
        return AllShifts(bundle, arrays, arrays["n_observed"])
