"""The dosages of every cell, from a table of guides in the file."""

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae_core.data.cells import DataError
from samsvae_core.data.controls import candidates_note, check_controls, control_labels
from samsvae_core.data.dosages import Dosages, dosage_notes
from samsvae_core.data.hdf5_checks import as_data_error, names_in, read_element
from samsvae_core.data.label_column import PERTURBATION_KEYS, perturbation_key_of, texts_of
from samsvae_core.data.read_options import Control, ReadOptions
from samsvae_core.data.stored import whole_matrix
from samsvae_core.data.tables import check_columns
from samsvae_core.data.targets import guides_note, targets_of
from samsvae_core.system.messages import nearest, some


def key_or_table(file: h5py.File, obs: pd.DataFrame, key: str | None, control: Control) -> str:
    """The column of perturbations; where there is none, the message offers a table of obsm."""
    try:
        return perturbation_key_of(obs, key, control)
    except DataError as error:
        if key is None and (table := guide_table(file)):
            raise DataError(
                f"{error} The table obsm[{table!r}] has a column for each guide or perturbation:"
                f" --dosage-key {table} reads it."
            ) from error
        raise


def guide_table(file: h5py.File) -> str:
    """A table of obsm that is named as guides are, or has columns of controls; "" if none is."""
    usual = {name for group in PERTURBATION_KEYS for name in group}
    for name in names_in(file, "obsm"):
        with as_data_error(file, f"obsm/{name}"):
            attributes = file[f"obsm/{name}"].attrs
            order = np.ravel(attributes["column-order"]) if "column-order" in attributes else None
        if order is None:
            continue
        columns = [x.decode(errors="replace") if isinstance(x, bytes) else str(x) for x in order]
        if name.lower() in usual or control_labels(columns):
            return name
    return ""


def dosages_of_table(file: h5py.File, key: str, obs: pd.DataFrame, options: ReadOptions) -> Dosages:
    """Dosages as a table of obsm has them.

    Cells with control columns alone are controls, and cells without any column are not assigned;
    where no column is a control, they are the controls.
    """
    given, names = _dosage_table(file, key, obs)
    where = f"obsm[{key!r}]"
    _check_table(given, names, obs, where)
    check_controls(names.tolist(), options.control, where)
    controls = control_labels(names.tolist(), options.control)
    is_control = np.isin(names, controls)
    perturbing = given[:, ~is_control]
    empty = given.getnnz(axis=1) == 0
    alone = (perturbing.getnnz(axis=1) == 0) & ~empty
    drop = bool(controls) if options.drop_unlabelled is None else options.drop_unlabelled
    n_controls = int((alone | (empty & (not drop))).sum())
    n_kept = len(obs) - int(empty.sum() if drop else 0)
    if n_controls in (0, n_kept):
        raise DataError(_no_table_control(where, controls, n_controls, empty, n_kept))
    notes = _table_notes(where, names, controls, empty, drop)
    targets = targets_of(names[~is_control])
    notes += guides_note(targets, options.join_guides)
    names = names[~is_control]
    if options.join_guides:
        perturbing, names = _joined_columns(perturbing, [targets.get(x, x) for x in names])
    order = np.argsort(names)
    dosages, names = perturbing[:, order], names[order]
    used = dosages.getnnz(axis=0) > 0
    if not used.all():
        notes.append(f"{(~used).sum():,} columns of {where} have no cell: {some(names[~used])}.")
    return Dosages(
        dosages[:, used].sorted_indices().astype(np.float32),
        names[used].astype(str),
        "control",
        {
            "perturbation_key": None,
            "control_labels": controls,
            "delimiter": "",
            "join_guides": options.join_guides,
            "drop_unlabelled": drop if empty.any() else options.drop_unlabelled,
        },
        [*notes, *dosage_notes(dosages)],
        ~empty if drop and empty.any() else None,
    )


def _check_table(given: sp.csr_matrix, names: np.ndarray, obs: pd.DataFrame, where: str) -> None:
    """Raises DataError for columns without names of their own, and for what is no dosage."""
    if len(set(names)) < len(names) or "" in names:
        raise DataError(f"Columns of {where} need different names; found {some(names, 6)}.")
    if given.shape != (len(obs), len(names)):
        raise DataError(
            f"{where} is {given.shape}; expected {(len(obs), len(names))}. Write the file again."
        )
    bad = np.unique(given.nonzero()[0][~((given.data >= 0) & np.isfinite(given.data))])
    if len(bad):
        raise DataError(
            f"{where} has negative or missing dosages in {len(bad):,} cells; dosages must be"
            f" numbers of 0 or more. Drop or recode cells {some(obs.index[bad])}."
        )


def _no_table_control(
    where: str, controls: list[str], n_controls: int, empty: np.ndarray, n_cells: int
) -> str:
    """What to say where a table gives no control cells, or no others; of the cells that stay."""
    if n_controls:
        return (
            f"{where} has {n_controls:,} control cells among the {n_cells:,} cells that are read;"
            " expected perturbed cells as well."
            + (
                f" Look at which columns are controls ({some(controls, 6)}), and name the right"
                " ones with --control."
                if controls
                else " No cell has a dosage above 0: name another table with --dosage-key."
            )
        )
    if empty.any():
        return (
            f"{where} has no control cells: no cell has control columns alone"
            f" ({some(controls) or 'none is one'}), and the {empty.sum():,} cells without any"
            " column would be left out. --unlabelled-as-control takes these as controls."
        )
    if controls:
        return (
            f"{where} has no control cells: every cell has a column that is no control, as at a"
            f" high multiplicity, beside control columns ({some(controls)}) or without them."
            " Training without control cells is not supported yet."
        )
    return (
        f"{where} has no control cells: every cell has a perturbation, and no column is named as a"
        " control. If some columns are controls, such as non-targeting guides, name them with"
        " --control; a pattern such as '*scrambled*' means several. Training without control"
        " cells is not supported yet."
    )


def _table_notes(
    where: str, names: np.ndarray, controls: list[str], empty: np.ndarray, drop: bool
) -> list[str]:
    notes = []
    if controls:
        notes.append(
            f"{len(controls):,} columns of {where} are taken as control, and cells with these alone"
            f" as control cells: {some(controls)}."
        )
    notes += candidates_note(names.tolist(), controls)
    if n := int(empty.sum()):
        begin = f"{n:,} cells without any perturbation in {where} are"
        if drop:
            notes.append(
                f"{begin} not assigned, and left out. --unlabelled-as-control takes them as control"
                " cells."
            )
        else:
            notes.append(
                f"{begin} taken as control cells. If their guides were only missed, name columns of"
                " controls with --control; --drop-unlabelled leaves these cells out then."
            )
    return notes


def _joined_columns(dosages: sp.csr_matrix, targets: list[str]) -> tuple[sp.csr_matrix, np.ndarray]:
    """A column for each target, with the largest dosage of its guides."""
    names, place = np.unique(np.array(targets, dtype=object).astype(str), return_inverse=True)
    table = dosages.tocoo()
    largest = (
        pd.DataFrame({"cell": table.row, "target": place[table.col], "dose": table.data})
        .groupby(["cell", "target"], as_index=False)["dose"]
        .max()
    )
    shape = (dosages.shape[0], len(names))
    joined = sp.csr_matrix((largest["dose"], (largest["cell"], largest["target"])), shape=shape)
    return joined, names


def _dosage_table(file: h5py.File, key: str, obs: pd.DataFrame) -> tuple[sp.csr_matrix, np.ndarray]:
    """The table of obsm and the names of its columns."""
    known = names_in(file, "obsm")
    if key not in known:
        raise DataError(
            f"Neither obs nor obsm has {key!r}, given as --dosage-key."
            f" {nearest(key, [*obs.columns, *known])}"
        )
    place = f"obsm/{key}"
    with as_data_error(file, place):
        is_frame = file[place].attrs.get("encoding-type") == "dataframe"
    if is_frame:
        frame = read_element(file, place)
        if odd := [name for name in frame if not _is_number(frame[name])]:
            raise DataError(
                f"Columns of obsm[{key!r}] are no numbers: {some(odd)}. Drop them, or make them"
                " numbers, and save the file again."
            )
        values = frame.to_numpy(dtype=np.float64, na_value=np.nan)
        return sp.csr_matrix(values), texts_of(frame.columns)
    if f"{key}_names" in names_in(file, "uns"):
        names = np.ravel(read_element(file, f"uns/{key}_names"))
        check_columns(pd.DataFrame(index=pd.Index(names)), f"uns[{key + '_names'!r}]")
        return whole_matrix(file, place), texts_of(pd.Index(names))
    raise DataError(
        f"obsm[{key!r}] does not name its columns. Store it as a DataFrame, or the names of the"
        f" perturbations as uns[{key + '_names'!r}]."
    )


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and column.dtype.kind in "biuf"
