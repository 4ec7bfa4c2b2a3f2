"""Open a bundle: check its files and assemble the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from samsvae_core.bundle import direct_checks, soundness
from samsvae_core.bundle.bundle import Bundle, Reference
from samsvae_core.bundle.layout import (
    FILES,
    TABLES,
    BundleError,
    read_csv,
    read_json,
    read_manifest,
)
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.variants import MODELS
from samsvae_core.system.files import sha256

MOST_TENSORS = 2**29  # most bytes of a file of tensors


def load(path: Path | str) -> Bundle:
    """Return the bundle in this folder, after checking its schema, checksums, shapes and content.

    Raises BundleError for a folder that is not a bundle, or holds a newer or damaged one.
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
    """Return whether a path from a manifest is a file that really lies in the folder."""
    try:
        return file.resolve().is_relative_to(folder.resolve()) and file.is_file()
    except (OSError, ValueError):  # a name that no file system accepts
        return False


def assemble(path: Path, manifest: dict[str, Any]) -> Bundle:
    """Return the bundle of weights, reference and names, each checked against the configuration."""
    config = read_json(path / "config.json")
    if config["model"] not in MODELS:
        known = ", ".join(MODELS)
        raise BundleError(f"{path} holds the model {config['model']!r}; known: {known}.")
    genes = read_csv(path / "genes.csv")["gene"].tolist()
    perturbations = read_csv(path / "perturbations.csv").set_index("perturbation")
    conditions = read_csv(path / "conditions.csv").set_index("condition")
    with soundness.sound(path):
        for file, names in (
            ("genes.csv", genes),
            ("perturbations.csv", perturbations.index.tolist()),
            ("conditions.csv", conditions.index.tolist()),
        ):
            soundness.check_names(file, names)
    model_config = ModelConfig(**config["model_config"])
    with soundness.sound(path):
        soundness.check_config(model_config)
    sizes = {"genes.csv": len(genes), "perturbations.csv": len(perturbations)}
    expected = {
        "genes.csv": model_config.n_genes,
        "perturbations.csv": model_config.n_perturbations,
    }
    if sizes != expected:
        raise BundleError(f"{path}: its config expects {expected} rows, found {sizes}.")
    with soundness.sound(path):
        for table in (conditions, perturbations):
            file = f"{table.index.name}s.csv"
            soundness.check_columns(file, table.reset_index(), TABLES[file].columns)
        if conditions.index[0] != config.get("control", conditions.index[0]):
            raise ValueError(
                f"conditions.csv begins with {conditions.index[0]!r}, and the control is "
                f"{config['control']!r}"
            )
    model = weighted(path, MODELS[config["model"]], model_config)
    reference = reference_of(path, model_config.n_latent)
    return Bundle(path, manifest, config, model, reference, genes, perturbations, conditions)


def weighted(path: Path, kind: type[SAMSVAE], config: ModelConfig) -> SAMSVAE:
    """The model with its weights, whose shapes and kinds of numbers are those of its kind."""
    with torch.device("meta"):  # takes no memory before the shapes are compared
        model = kind(config)
    expected_shapes = {name: list(part.shape) for name, part in model.state_dict().items()}
    with safe_open(path / "weights.safetensors", framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    if model.direct is not None:  # as many entries as were kept
        n = shapes.get("direct.row", [])
        expected_shapes |= {f"direct.{name}": n for name in model.direct.KEPT}
    for name in sorted({*expected_shapes, *shapes}):
        if (there := shapes.get(name)) != (wanted := expected_shapes.get(name)):
            raise ValueError(f"weights {name} have the shape {there}, expected {wanted}")
    weights = _tensors(path / "weights.safetensors")
    with soundness.sound(path):
        kinds = {name: part.dtype for name, part in model.state_dict().items()}
        soundness.check_weights("weights.safetensors", weights, kinds)
        direct_checks.check_entries(model.direct, weights)
    model.load_state_dict(weights, assign=True)
    model.eval().requires_grad_(False)
    return model


def reference_of(path: Path, n_latent: int) -> Reference:
    """The reference cells, of as many latent dimensions as the model has."""
    tensors = _tensors(path / "reference.safetensors")
    reference = Reference(tensors["loc"], tensors["scale"], tensors["library"])
    shape = (len(reference.library), n_latent)
    found = [tuple(part.shape) for part in reference]
    if found != [shape, shape, shape[:1]] or not shape[0]:
        raise BundleError(f"{path}: reference cells of shapes {found}.")
    with soundness.sound(path):
        floats = dict.fromkeys(Reference._fields, torch.float32)
        soundness.check_weights("reference.safetensors", reference._asdict(), floats)
        if (reference.scale <= 0).any() or (reference.library < 0).any():
            raise ValueError("reference.safetensors holds spreads or libraries below 0")
    return reference


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file; raises ValueError if it is larger than any model's."""
    if (size := path.stat().st_size) > MOST_TENSORS:
        raise ValueError(f"{path.name} has {size:,} bytes; {MOST_TENSORS:,} is the most")
    return load_tensors(path.read_bytes())
