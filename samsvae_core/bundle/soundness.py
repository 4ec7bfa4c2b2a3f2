"""Checks that the parts of a bundle fit: weights, names, masks, loadings and tables.

A checksum only shows that a file is the one its manifest was written for, not who wrote the
manifest. What is shown must therefore also follow from the weights: masks and effects within
rounding, loadings of as many mechanisms as can be recomputed quickly, the order of names through
both, and cells of perturbations through the evidence their masks were asked for. Every check raises
ValueError with what was expected and found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from samsvae_core.bundle.layout import (
    COUNT,
    COVARIATE,
    ENRICHMENT,
    FLAG,
    SHARE,
    SIZE,
    TABLES,
    TEXT,
    BundleError,
)
from samsvae_core.models.samsvae import ACTIVE, MIN_EVIDENCE, SAMSVAE, ModelConfig
from samsvae_core.system.messages import some

ROUNDING = 1e-5  # absolute and relative, for single precision on other processors
COARSE = 5e-3  # share of the largest loading, for sums in single precision
MOST_MOMENTS = 64  # perturbations whose moments are recomputed
MOST_PRODUCTS = 5 * 10**8  # limit of recomputed loadings; one mechanism is always recomputed
LIKE = 0.3  # least rank correlation of the means in weights and tables
FEW_GENES = 20  # with fewer genes, a rank correlation says little


@contextmanager
def sound(path: Path) -> Iterator[None]:
    """Turn a ValueError about files that do not fit together into a BundleError."""
    try:
        yield
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(
            f"{path} does not hold together: {error}. Its files were changed after they were made, "
            "or are of several bundles. Get it again from where it was made, or train it again."
        ) from error


# Tables


def check_columns(name: str, frame: pd.DataFrame, kinds: Mapping[str, str]) -> None:
    """Raise ValueError unless each of these columns is there and holds its kind of values."""
    missing = [column for column in kinds if column not in frame]
    if missing:
        raise ValueError(f"{name} lacks the columns {missing}; it holds {list(frame)}")
    if not len(frame):
        return
    for column, kind in kinds.items():
        if wrong := wrong_values(frame[column], kind.rstrip("?"), kind.endswith("?")):
            raise ValueError(f"{name}: the column {column} {wrong}")


def wrong_values(values: pd.Series, kind: str, may_lack: bool) -> str:
    """Return what is wrong with a column, "" if nothing is."""
    if kind == TEXT:
        if values.dtype == object or isinstance(values.dtype, pd.CategoricalDtype):
            known = pd.unique(values)
            sound = all(isinstance(v, str) and (v or may_lack) for v in known)
            return "" if sound else "lacks some of its names"
        return f"should hold names, and holds {values.dtype}"
    if kind == FLAG:
        return "" if values.dtype == bool else f"should hold True or False, found {values.dtype}"
    if not pd.api.types.is_numeric_dtype(values) or values.dtype == bool:
        return f"should hold numbers, and holds {values.dtype}"
    found = values.to_numpy(float)
    known = found[~np.isnan(found)] if may_lack else found
    if not np.isfinite(known).all():
        return "holds numbers that are not finite"
    least, most = (
        (0 if kind in (SIZE, COUNT, SHARE) else -math.inf),
        (1 if kind == SHARE else math.inf),
    )
    if len(known) and not (least <= known.min() and known.max() <= most):
        return (
            f"should hold numbers from {least:g} to {most:g}, found {known.min()} to {known.max()}"
        )
    if kind == COUNT and (known != np.floor(known)).any():
        return "should hold whole numbers"
    return ""


def check_names(what: str, names: Sequence[Any]) -> None:
    """Raise ValueError unless names are texts without repeats."""
    index = pd.Index(names)
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"{what} holds names that are empty")
    if not index.is_unique:
        raise ValueError(f"{what} holds {some(index[index.duplicated()].unique())} more than once")


def check_known(name: str, values: pd.Series, known: Sequence[str]) -> None:
    """Raise ValueError unless every value is a known one."""
    if strange := sorted(set(map(str, values.unique())) - set(known)):
        raise ValueError(
            f"{name}: the column {values.name} holds {some(strange)}, unknown to this bundle"
        )


def check_table(
    name: str,
    frame: pd.DataFrame,
    genes: Sequence[str],
    perturbations: Sequence[str],
    conditions: Sequence[str],
) -> None:
    """Columns of a table by TABLES; names in it are the bundle's, and each row is there once."""
    table = TABLES[name]
    there = {column: kind for column, kind in table.optional.items() if column in frame}
    named = {**table.columns, **there}
    check_columns(name, frame, named)
    every = {
        "gene": genes,
        "perturbation": perturbations,
        "condition": conditions,
        "split": table.splits,
    }
    for column, known in every.items():
        if column in table.columns:
            check_known(name, frame[column], known)
    if table.key and frame.duplicated(list(table.key)).any():
        raise ValueError(f"{name} tells the same {' and '.join(table.key)} more than once")
    if table.others:
        others = {
            column: TEXT if column.startswith(COVARIATE) else table.others
            for column in frame
            if column not in named
        }
        check_columns(name, frame, others)


def check_enrichment(name: str, frame: pd.DataFrame, n_mechanisms: int) -> None:
    """Raise ValueError unless gene sets are of existing mechanisms, with valid probabilities."""
    check_columns(name, frame, ENRICHMENT)
    if len(frame) and frame["mechanism"].max() >= n_mechanisms:
        raise ValueError(f"{name} has mechanisms above M{n_mechanisms - 1}, the last there is")


def check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise ValueError unless the parts that pages read are there and correlations are valid."""
    if isinstance(metrics.get("not_available"), str):
        return
    for part in ("iwelbo", "average_effects", "baselines"):
        if not isinstance(metrics.get(part), dict):
            raise ValueError(f"metrics.json lacks {part}")
    for name, each in {"model": metrics["average_effects"], **metrics["baselines"]}.items():
        if not isinstance(each, dict):
            raise ValueError(f"metrics.json: {name} should hold scores")
        for score in ("pearson", "pearson_top20", "cosine", "r2", "median", "rank"):
            value = each.get(score)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"metrics.json: {score} of {name} is no number")
            if value > 1 + ROUNDING or (score != "r2" and value < -1 - ROUNDING):
                raise ValueError(f"metrics.json: {score} of {name} is {value:g}, beyond 1")
    check_strata(metrics.get("strata"))


def check_strata(strata: Any) -> None:
    """Raise ValueError unless metrics tell of strata as `evaluation.strata` does, or not at all."""
    if strata is None:
        return
    if not isinstance(strata, dict):
        raise ValueError("metrics.json: strata should hold covariates and conditions")
    for key in ("covariates", "left_out"):
        names = strata.get(key)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"metrics.json: {key} of strata should be names")
    n = strata.get("n_strata")
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise ValueError("metrics.json: n_strata should be a number of strata")


# Weights


def check_config(config: ModelConfig) -> None:
    """Raise ValueError unless sizes are whole numbers, scales finite and choices known."""
    for size in ("n_genes", "n_perturbations", "n_latent", "n_hidden"):
        value = getattr(config, size)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{size} is {value!r} in the configuration, expected a whole number")
    for name in ("embedding_scale", "mask_evidence", "mask_prior"):
        value = getattr(config, name)
        if name == "mask_evidence" and value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not value >= 0:
            raise ValueError(f"{name} is {value!r} in the configuration, expected a size")
    if not config.embedding_scale > 0 or not 0 < config.mask_prior < 1:
        raise ValueError("embedding_scale and mask_prior make no sense in the configuration")
    if not isinstance(config.other_genes, bool):
        raise ValueError(f"other_genes is {config.other_genes!r}, expected true or false")
    if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in config.levels):
        raise ValueError(f"levels are {config.levels!r}, expected numbers of levels")
    if config.context is not None and config.context not in range(len(config.levels)):
        raise ValueError(f"context is {config.context!r}, expected the number of a covariate")
    for name, known in (
        ("encoder", ("correlated", "mean-field")),
        ("likelihood", ("counts", "gaussian")),
    ):
        if getattr(config, name) not in known:
            raise ValueError(f"{name} is {getattr(config, name)!r}; known: {', '.join(known)}")


def check_weights(
    name: str, tensors: Mapping[str, Tensor], expected: Mapping[str, torch.dtype]
) -> None:
    """Raise ValueError unless tensors have the expected types and are finite."""
    for part, dtype in expected.items():
        tensor = tensors[part]
        if tensor.dtype != dtype:
            raise ValueError(f"{name}: {part} holds {tensor.dtype}, expected {dtype}")
        if part == "x_scale":  # infinite for a gene that the encoder ignores
            if not (tensor > 0).all():
                raise ValueError(f"{name}: {part} holds numbers that are not above 0")
        elif not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: {part} holds numbers that are not finite")


def check_cells(model: SAMSVAE, perturbations: pd.DataFrame, conditions: pd.DataFrame) -> None:
    """Raise ValueError unless training cells agree with the evidence asked of the masks."""
    asked = model.config.mask_evidence
    train = perturbations["train"].to_numpy(float)
    if asked is None:
        prior = torch.tensor(model.config.mask_prior)
        expected = np.full(len(train), -prior.logit().item())
    else:
        expected = np.maximum(asked * train, MIN_EVIDENCE)
    found = model.evidence.double().numpy()
    wrong = ~np.isclose(found, expected, rtol=1e-4, atol=1e-4)
    if wrong.any():
        t = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"perturbations.csv lists {train[t]:g} training cells of {perturbations.index[t]}, "
            f"whose masks are then asked for {expected[t]:.4g} nats; in the weights it is "
            f"{found[t]:.4g}. Perturbations may be in another order"
        )
    alone = perturbations.index.intersection(conditions.index)
    at_one = perturbations.loc[alone].eval("dosage_min == 1 and dosage_max == 1")
    alone = alone[at_one.to_numpy()]
    if "train_alone" in perturbations:
        more = conditions.loc[alone, "train"] > perturbations.loc[alone, "train_alone"]
        if more.any():
            raise ValueError(
                f"conditions.csv lists more training cells of {some(alone[more.to_numpy()])} than "
                "perturbations.csv"
            )


@torch.inference_mode()
def check_masks(model: SAMSVAE, masks: pd.DataFrame, perturbations: Sequence[str]) -> None:
    """Raise ValueError unless the mask table has every entry in order, as in the posterior."""
    probability = model.mask_probability().double().numpy()
    n, width = probability.shape
    order = np.repeat(np.asarray(perturbations, dtype=object), width)
    if len(masks) != n * width:
        raise ValueError(
            f"masks.csv has {len(masks):,} rows; {n} perturbations and {width} mechanisms have "
            f"{n * width:,}"
        )
    if not width:
        return
    if not np.array_equal(masks["perturbation"].to_numpy(object), order) or not np.array_equal(
        masks["mechanism"].to_numpy(), np.tile(np.arange(width), n)
    ):
        raise ValueError(
            "masks.csv should have every perturbation of perturbations.csv, in its order, with "
            f"mechanisms 0 to {width - 1}"
        )
    which = np.unique(np.linspace(0, n - 1, min(n, MOST_MOMENTS)).astype(int))
    mean, sd = (part.double().numpy() for part in model.moments_of(torch.from_numpy(which)))
    every = np.arange(n)
    for column, rows, expected, error in (
        ("probability", every, probability, 0.0),
        ("effect", which, mean, model.moment_error),
        ("effect_sd", which, sd, model.moment_error),
    ):
        found = masks[column].to_numpy(float).reshape(n, width)[rows]
        scale = np.abs(expected).max(initial=1.0)
        far = np.abs(found - expected) > scale * (ROUNDING + error)
        if far.any():
            t, k = np.argwhere(far)[0]
            raise ValueError(
                f"masks.csv does not follow from the weights: {column} of "
                f"{perturbations[rows[t]]} on M{k} is {found[t, k]:.4g}, and {expected[t, k]:.4g} "
                "by the posterior"
            )
    active = masks["active"].to_numpy().reshape(n, width)
    sure = np.abs(probability - ACTIVE) > ROUNDING
    if ((probability > ACTIVE) != active)[sure].any():
        raise ValueError("masks.csv calls entries active that are not, by their probability")


@torch.inference_mode()
def check_loadings(
    model: SAMSVAE, reference: Tensor, loadings: pd.DataFrame, genes: Sequence[str]
) -> None:
    """Raise ValueError unless loadings are complete, in order and, as far as tested, the decoder's.

    `reference` are the states (R x K) from which loadings are taken.
    """
    n, width = len(genes), model.config.n_latent
    if len(loadings) != n * width:
        raise ValueError(
            f"loadings.parquet has {len(loadings):,} rows; {width} mechanisms and {n:,} genes have "
            f"{n * width:,}"
        )
    in_order = np.tile(np.asarray(genes, dtype=object), width)
    if not np.array_equal(loadings["gene"].to_numpy(object), in_order) or not np.array_equal(
        loadings["mechanism"].to_numpy(), np.repeat(np.arange(width), n)
    ):
        raise ValueError(
            f"loadings.parquet should have mechanisms 0 to {width - 1}, each with the genes of "
            "genes.csv in their order"
        )
    found = loadings["loading"].to_numpy(float).reshape(width, n)
    steps = loadings["step"].to_numpy(float).reshape(width, n)
    if (steps != steps[:, :1]).any():
        raise ValueError("loadings.parquet has several steps for one mechanism")
    products = len(reference) * model.config.n_hidden * n
    nowhere = torch.zeros(model.n_shift)

    def levels(k: int, end: float) -> Tensor:
        moved = reference.clone()
        moved[:, k] += end
        return model.level(model.decoded_means(moved, nowhere)).double().mean(0)

    here = levels(0, 0.0)
    for k in range(min(width, max(1, MOST_PRODUCTS // products))):
        step = float(steps[k, 0])
        slope = (levels(k, step) - here) / step if step else (levels(k, 1.0) - levels(k, -1.0)) / 2
        expected = slope.numpy()
        far = np.abs(found[k] - expected) > COARSE * max(np.abs(expected).max(), COARSE)
        if far.any():
            g = int(np.flatnonzero(far)[0])
            raise ValueError(
                f"loadings.parquet does not follow from the weights: M{k} on {genes[g]} is "
                f"{found[k, g]:.4g}, and {expected[g]:.4g} by the decoder. Genes may be in another "
                "order"
            )


def check_levels(model: SAMSVAE, observed: pd.DataFrame, genes: Sequence[str]) -> None:
    """Raise ValueError unless genes that are high in the weights' means are measured high.

    Centred values say nothing about the order of genes and pass. Of matched control cells, level
    and error stand together.
    """
    if ("control_level" in observed) != ("control_se" in observed):
        raise ValueError("observed.parquet should have control_level and control_se, or neither")
    rows = observed[observed["split"] == "all"]
    check_order(model, rows, "level", genes)
    if "control_level" in rows:
        check_order(model, rows, "control_level", genes)


def check_order(model: SAMSVAE, rows: pd.DataFrame, column: str, genes: Sequence[str]) -> None:
    """Raise ValueError unless the means of this column have the weights' order of genes."""
    rows = rows[rows[column].notna()]
    level = rows.groupby("gene")[column].mean().reindex(list(genes)).to_numpy(float)
    known = np.isfinite(level)
    inside = model.x_loc.double().numpy()
    if known.sum() < FEW_GENES or not np.ptp(level[known]) or not np.ptp(inside[known]):
        return
    if model.config.likelihood == "gaussian" and inside[known].std() < float(
        model.x_scale.median()
    ):
        return
    ranks = pd.DataFrame({"level": level[known], "inside": inside[known]}).rank()
    r = ranks["level"].corr(ranks["inside"])
    if r < LIKE:
        raise ValueError(
            f"observed.parquet has its genes in another order than the weights, or other cells: "
            f"the rank correlation of their means is {r:.2f}, and should be near 1"
        )
