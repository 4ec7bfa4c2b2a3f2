"""Divide cells into training, validation and test cells.

Cells are drawn within each condition. Combinations can be held out entirely, to test predictions of
unseen ones, or be trained on in part, to test how few cells suffice.
"""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from samsvae_core.data.cells import CellData, DataError, read_text
from samsvae_core.system.messages import nearest, some

SPLITS = ("train", "validation", "test")
UNUSED = "unused"
DEFAULT_FRACTIONS = {"combinations": 0.75, "efficiency": 0.5}
KINDS = ("random", *DEFAULT_FRACTIONS)
TESTED = (0.64, 0.16, 0.2)  # 80/20, and the larger part again 80/20
NOT_TESTED = (0.8, 0.2, 0.0)
HELD_OUT = 0.25  # share of the combinations


def split(
    data: CellData, how: str | Path = "random", seed: int = 0, fraction: float | None = None
) -> Shaped[np.ndarray, " N"]:
    """Return "train", "validation", "test" or "unused" for each cell.

    `how` is one of KINDS or the path of a CSV file. Cells are drawn within conditions. With three
    cells or more every part of the split gets some; conditions with fewer cells are only trained
    on.

    - "random": 64 % of the cells train, 16 % validate and 20 % test.
    - "combinations": only combinations whose perturbations were all measured alone count. A quarter
      of them is tested on, and the first `fraction` (default 0.75), in an order drawn by `seed`, is
      trained on; above 0.75 some are both. Other conditions are never tested.
    - "efficiency": a `fraction` (default 0.5) of the combinations' training cells is used; the
      validation and test cells are the same for every fraction. Other conditions are never tested.
    - A file with columns `cell, split` assigns every cell; one with a column `condition` lists the
      conditions to test on, their parts in any order.

    Raises DataError for a bad option or file, if there are no suitable combinations, and if a
    perturbation would have no training cell. Source: Bereket and Karaletsos 2023, section 5.
    """
    if fraction is not None and how not in DEFAULT_FRACTIONS:
        raise DataError(
            f"A fraction ({fraction:g}) was given for the split {str(how)!r}, which has none. Leave"
            f" it out, or choose {' or '.join(DEFAULT_FRACTIONS)}."
        )
    if how == "random":
        everywhere = np.ones(len(data.cells), dtype=bool)
        parts = _within_conditions(data, everywhere, np.random.default_rng(seed))
    elif how == "combinations":
        parts = _held_out_combinations(data, seed, _share(how, fraction))
    elif how == "efficiency":
        parts = _fewer_combined_cells(data, seed, _share(how, fraction))
    else:
        parts = _from_file(data, Path(how), seed)
    _check_trained(data, parts)
    return parts


def _share(kind: str | Path, fraction: float | None) -> float:
    share = DEFAULT_FRACTIONS[str(kind)] if fraction is None else fraction
    if not 0 <= share <= 1:
        raise DataError(f"The fraction of a split must be from 0 to 1; found {share:g}.")
    return share


def _check_trained(data: CellData, parts: np.ndarray) -> None:
    trained = data.dosages[np.flatnonzero(parts == "train")].getnnz(axis=0) > 0
    if not trained.all():
        raise DataError(
            f"{(~trained).sum():,} perturbations have no training cell"
            f" ({some(data.perturbations[~trained])}). Choose a split that trains on some of their"
            " cells, or drop these perturbations from the file."
        )


def _within_conditions(
    data: CellData, tested: np.ndarray, rng: np.random.Generator
) -> Shaped[np.ndarray, " N"]:
    """Return cells drawn within each condition, with no test cells where `tested` is False."""
    parts = np.empty(len(data.cells), dtype="<U10")
    for cells in pd.Series(data.conditions).groupby(data.conditions).indices.values():
        shares = TESTED if tested[cells[0]] else NOT_TESTED
        parts[rng.permutation(cells)] = np.repeat(SPLITS, _sizes(len(cells), shares))
    return parts


def _sizes(n: int, shares: tuple[float, float, float]) -> np.ndarray:
    """Return how many of `n` cells go to each part."""
    if n < len(SPLITS):
        return np.array([n, 0, 0])
    sizes = np.diff(np.rint(n * np.cumsum([0, *shares]))).astype(int)
    for part in np.flatnonzero((sizes == 0) & (np.array(shares) > 0)):
        sizes[sizes.argmax()] -= 1
        sizes[part] += 1
    return sizes


# Combinations


def _held_out_combinations(data: CellData, seed: int, fraction: float) -> np.ndarray:
    """Return the split of "combinations".

    Cells are drawn before combinations are chosen, so a larger fraction only adds cells.
    """
    names = _testable_combinations(data)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.unique(names[names != ""]))
    trained = order[: _first(len(order), fraction)]
    tested = order[_first(len(order), 1 - HELD_OUT) :]
    parts = _within_conditions(data, names != "", rng)
    used = np.where(parts == "test", np.isin(names, tested), np.isin(names, trained))
    parts[(names != "") & ~used] = UNUSED
    _check_tested(parts, tested)
    return parts


def _fewer_combined_cells(data: CellData, seed: int, fraction: float) -> np.ndarray:
    combined = data.dosages.getnnz(axis=1) > 1
    if not combined.any():
        raise DataError(
            "No cell has two perturbations or more; a split by efficiency needs combinations. Split"
            " at random."
        )
    rng = np.random.default_rng(seed)
    parts = _within_conditions(data, combined, rng)
    order = rng.permutation(np.flatnonzero(combined & (parts == "train")))
    parts[order[_first(len(order), fraction) :]] = UNUSED
    _check_tested(parts, np.unique(data.conditions[combined]))
    return parts


def _testable_combinations(data: CellData) -> Shaped[np.ndarray, " N"]:
    """Return each cell's combination without dosages; "" for other cells.

    A combination counts if each of its perturbations has also been measured alone.
    """
    n_perturbations = data.dosages.getnnz(axis=1)
    alone = data.dosages[np.flatnonzero(n_perturbations == 1)].getnnz(axis=0) > 0
    _, first, condition = np.unique(data.conditions, return_index=True, return_inverse=True)
    names, left_out = [], []
    for columns in (data.dosages[cell].indices for cell in first):
        name = "+".join(sorted(data.perturbations[columns])) if len(columns) > 1 else ""
        names.append(name if alone[columns].all() else "")
        left_out += [name] if name and not alone[columns].all() else []
    if not any(names):
        raise DataError(
            "No combination has all of its perturbations measured alone as well, which held-out"
            f" combinations need (found {some(sorted(left_out)) or 'no combinations'}). Split at"
            " random, by efficiency, or list the conditions to test on in a file."
        )
    return np.array(names)[condition]


def _first(n: int, fraction: float) -> int:
    """Return how many of `n` make up a `fraction`, rounded down but for floating-point error."""
    return math.floor(n * fraction + 1e-9)


def _check_tested(parts: np.ndarray, combinations: np.ndarray) -> None:
    if not (parts == "test").any():
        raise DataError(
            f"No test cell is left: of each of the combinations {some(combinations)} there are"
            f" fewer than {len(SPLITS)} cells. Split at random, or add cells."
        )


# Files


def _from_file(data: CellData, path: Path, seed: int) -> np.ndarray:
    if not path.exists():
        raise DataError(
            f"There is no split {str(path)!r}, and no such file. Choose {', '.join(KINDS)}, or give"
            " the path of a CSV file with columns cell, split or with a column condition."
        )
    table = _read_csv(path)
    if {"cell", "split"} <= set(table):
        return _parts_of_cells(data, path, table)
    if "condition" in table:
        return _held_out_conditions(data, path, table["condition"].str.strip(), seed)
    raise DataError(
        f"{path} must have columns cell, split, or a column condition; found"
        f" {some(table.columns, 6)}."
    )


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(io.StringIO(read_text(path)), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(
            f"{path} is no CSV file: {error}. Expected columns cell, split or a column condition."
        ) from error


def _parts_of_cells(data: CellData, path: Path, table: pd.DataFrame) -> np.ndarray:
    split_of = table.set_index("cell")["split"].str.strip().str.lower()
    split_of = split_of.replace({"valid": "validation", "val": "validation"})
    words = "train, validation, test or unused"
    problems = {
        f"values other than {words}": set(split_of) - {*SPLITS, UNUSED},
        "cells more than once": set(split_of.index[split_of.index.duplicated()]),
        "cells that are not in the data": set(split_of.index) - set(data.cells),
        "no line for cells of the data": set(data.cells) - set(split_of.index),
    }
    for what, which in problems.items():
        if which:
            raise DataError(
                f"{path} has {what} ({len(which):,}: {some(sorted(which))}). Give every cell of"
                f" the data once, as {words}."
            )
    if "train" not in set(split_of):
        raise DataError(f"{path} has no train cells. Mark the cells to train on as train.")
    return split_of.loc[data.cells].to_numpy(dtype=str)


def _held_out_conditions(
    data: CellData, path: Path, listed: pd.Series, seed: int
) -> Shaped[np.ndarray, " N"]:
    """Return a split that tests the listed conditions entirely and trains on 80 % of the rest."""
    known = {_sorted_parts(name): name for name in np.unique(data.conditions).tolist()}
    control = known.pop(_sorted_parts(data.control), data.control)
    names = [name for name in dict.fromkeys(listed) if name]
    if not names:
        raise DataError(f"{path} lists no condition; expected one per line.")
    if control in names:
        raise DataError(
            f"{path} lists the control {control!r}; effects are measured against it and it must be"
            " trained on. Remove it."
        )
    unknown = [name for name in names if _sorted_parts(name) not in known]
    if unknown:
        raise DataError(
            f"{path} lists {len(unknown):,} conditions that are not in the data ({some(unknown)})."
            f" {nearest(unknown[0], known.values())}"
        )
    held_out = np.isin(data.conditions, [known[_sorted_parts(name)] for name in names])
    parts = _within_conditions(data, np.zeros_like(held_out), np.random.default_rng(seed))
    parts[held_out] = "test"
    return parts


def _sorted_parts(label: str) -> tuple[str, ...]:
    return tuple(sorted(part.strip() for part in label.split("+")))
