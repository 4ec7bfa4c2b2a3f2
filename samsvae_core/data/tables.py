"""Read the tables of an .h5ad file, checked before pandas builds them."""

import h5py
import numpy as np
import pandas as pd

from samsvae_core.data.cells import DataError
from samsvae_core.data.hdf5_checks import as_data_error, read_element
from samsvae_core.data.label_column import of_pandas, texts_of
from samsvae_core.system.messages import some

SCALARS = (str, bytes, bool, int, float, complex, np.number, np.bool_)
COLUMN_KINDS = (
    *("", "array", "string-array", "categorical"),
    *("nullable-integer", "nullable-boolean", "nullable-string-array"),
)


def table_of(file: h5py.File, name: str) -> pd.DataFrame:
    """Return `obs`, `var` or `raw/var` with unique strings as row names."""
    _check_encodings(file, name)
    frame = read_element(file, name)
    if not isinstance(frame, pd.DataFrame):
        raise DataError(
            f"{name} of {file.filename} is not a table as anndata has written since 0.7."
            " Load the file with anndata and save it again."
        )
    check_columns(frame, name)
    for key, column in frame.items():
        if isinstance(column.dtype, np.dtype) and column.dtype.kind in "iufc":
            frame[key] = of_pandas(column.to_numpy())  # pandas fails on rows of other types
    names = pd.Index(texts_of(frame.index), dtype=object)
    kind = "cell" if name == "obs" else "gene"
    if not len(names):
        raise DataError(f"{file.filename} has no {kind}s: {name} is empty. Give a file with data.")
    if n := int((names == "").sum()):
        first = int(np.flatnonzero(names == "")[0])
        raise DataError(
            f"{n:,} {kind} names are empty or say that they are missing (row {first + 1:,} of"
            f" {name}, counted from 1); expected a name for each. Name them, or drop them, and save"
            " the file."
        )
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise DataError(
            f"{len(twice):,} {kind} names occur more than once ({some(twice)}); they must be"
            f" unique. Call adata.{name.split('/')[-1]}_names_make_unique() and save the file."
        )
    return frame.set_axis(names, axis=0)


def _check_encodings(file: h5py.File, name: str) -> None:
    """Refuse a table with a column that is not one text or number per row, before reading it."""
    with as_data_error(file, name):
        table = file[name]
        order = table.attrs.get("column-order", ())
        columns = [str(key) for key in np.ravel(order)] if isinstance(table, h5py.Group) else []
        items = {key: table[key] for key in columns if key in table}
        kinds = {key: str(item.attrs.get("encoding-type", "")) for key, item in items.items()}
        parts = {
            key: [item]
            if isinstance(item, h5py.Dataset)
            else [item[part] for part in ("codes", "values", "mask") if part in item]
            for key, item in items.items()
        }
        shapes = {key: [part.shape for part in found] for key, found in parts.items()}
        rows = table[table.attrs["_index"]].shape if columns else ()
    for key, kind in kinds.items():
        if kind not in COLUMN_KINDS:
            raise DataError(
                f"Column {key!r} of {name} is stored as {kind!r}; expected one text or number for"
                " each row. Drop it, or make it text, and save the file again."
            )
        if wrong := [shape for shape in shapes[key] if shape != rows]:
            raise DataError(
                f"Column {key!r} of {name} is of the shape {wrong[0]}, and the names of its rows"
                f" {rows}; expected one value for each. Drop it, or write the file again."
            )


def check_columns(frame: pd.DataFrame, name: str) -> None:
    """Refuse names and columns that hold anything but one text or number per row."""
    if twice := [str(key) for key in frame.columns[frame.columns.duplicated()]]:
        raise DataError(f"{name} has columns of the same name: {some(twice)}. Rename one of each.")
    columns = [("", pd.Series(frame.index)), *((repr(key), frame[key]) for key in frame)]
    for key, column in columns:
        where = f"Column {key} of {name}" if key else f"The names of {name}"
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        if values.dtype.kind not in "OSV":
            continue
        wrong = {type(v) for v in values if not (isinstance(v, SCALARS) or v is pd.NA or v is None)}
        if wrong or values.dtype.kind == "V":
            found = some(sorted(each.__name__ for each in wrong)) or "tables"
            raise DataError(
                f"{where} holds values of type {found}; expected one text or number for each row."
                " Drop it, or make it text, and save the file again."
            )
        if any(isinstance(v, bytes) and not _is_utf8(v) for v in values):
            raise DataError(
                f"{where} holds texts that are not UTF-8. Decode them where the file was made, and"
                " save it again."
            )


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
