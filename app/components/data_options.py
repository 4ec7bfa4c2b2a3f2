"""How a data file is read: columns, controls, counts, and a preview."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import streamlit as st

from app.server.reading import PARAMETERS, Reading
from app.server.sandbox import in_words
from app.session import file_choices, page, url
from samsvae_core.data.cells import DataError
from samsvae_core.data.controls import control_labels
from samsvae_core.data.inspection import label_table, suggested_delimiter
from samsvae_core.data.labels import DELIMITERS
from samsvae_core.data.read_options import DECLARED
from samsvae_core.system.messages import some

BY_ITSELF = "found by itself"
NONE = "none"
EACH = "each by itself"
# What a box says for the default where that is not BY_ITSELF: "none" may be a name in others.
UNSET = {"size_factor_key": NONE, "dosage_key": NONE, "join_guides": EACH}
MOST_ROWS = 2_000  # of the preview
KINDS = {
    "control": "controls",
    "single": "single perturbations",
    "combination": "combinations",
    "kept whole": "kept whole: their parts are no names",
    "no label": "without a label: leave these cells out, or name them",
    "left out": "left out: cells of which no perturbation is known",
}


def options(name: str, found: Mapping[str, Any]) -> Reading | None:
    """The choices, each beside what it does to the labels; None while no column is chosen."""
    columns = {column["name"]: column for column in found["columns"]}
    file_choices.open_file(name, *PARAMETERS[1:], "spread")
    left, right = st.columns([2, 3], gap="large")
    with left:
        key = column_of_perturbations(list(columns), found["suggested"])
        if key is None and not found["tables"]:
            return None
        labels: dict[str, int] = columns[key]["labels"] if key else {}
        controls = control_labels_chosen(labels)
        above = st.container()  # the delimiter depends on which cells are left out
        chosen = {"layer": bound("layer", [BY_ITSELF, *found["layers"]], LAYER)}
        chosen |= of_cells()
        suggested = found["suggested"]
        proposal = suggested["covariates"] if key == suggested["perturbation_key"] else []
        covariates = covariates_chosen([name for name in columns if name != key], proposal)
        drop = DECLARED["drop_unlabelled"].words.get(chosen["drop_unlabelled"])
        words = DECLARED["delimiter"]
        first = words.word(suggested_delimiter(labels, controls or None, drop))
        with above:
            delimiter = bound("delimiter", [*DELIMITERS, *words.words], BETWEEN, first)
        table = "" if key else str(found["suggested"]["table"])
        with st.expander("More choices", expanded=key is None):
            chosen |= further(found, columns, table)
    told = {
        DECLARED[option].parameter: value
        for option, value in chosen.items()
        if value != UNSET.get(option, BY_ITSELF)
    }
    if delimiter != first:
        told["delimiter"] = delimiter
    reading = Reading.from_query(
        {
            "data": name,
            "key": key or "",
            "control": controls,
            "covariate": covariates,
            **told,
        }
    )
    dosages = reading.options.dosage_key
    if key is None and dosages not in found["tables"]:
        return None
    with right:
        if dosages in found["tables"]:
            st.info(f"The table {page.plain(dosages)} takes the place of the labels.")
        elif key is not None:
            preview(labels, reading, int(columns[key]["n_labels"]))
    return reading


CONTROL = (
    "Cells without a perturbation. Found by itself: ctrl, control, non-targeting, NT, DMSO and "
    "such. Several labels may be chosen, and a pattern typed: *non-targeting* means each label "
    "with these words."
)
COVARIATES = (
    "What the model accounts for beside the perturbations: batch, lane, donor, replicate, cell "
    "line, treatment. Leave out what was made from the counts, such as clusters: it may be an "
    "effect of the perturbations."
)
BETWEEN = (
    "A label is parted there only if each part is a label of its own, a control word, or looks "
    "like a gene symbol. none: labels stay whole."
)
LAYER = "Found by itself: X, or else the layer counts, or raw, whichever holds counts first."


def column_of_perturbations(columns: list[str], suggested: Mapping[str, str]) -> str | None:
    if not columns:
        raise DataError(
            "obs of this file has no column; expected one with the perturbation of each cell. Add "
            "it and save the file again."
        )
    first = suggested["perturbation_key"] or None
    chosen: str | None = st.selectbox(
        DECLARED["perturbation_key"].box,
        columns,
        index=0 if first else None,  # None could be emptied again, by Escape among others
        key=file_choices.suggested("key", first, fits=[*columns, None].__contains__),
        persist_state="session",
        placeholder="Choose a column of obs",
    )
    file_choices.chosen("key", chosen if chosen and chosen != first else "")
    if suggested["problem"]:
        taken = " This one has a label of control cells." if first and chosen == first else ""
        st.caption(
            f"No column, or more than one, has a name that perturbations usually have.{taken}"
        )
    return chosen


def control_labels_chosen(labels: Mapping[str, int]) -> list[str]:
    """Those named as controls, labels or patterns; none where they are found by themselves."""
    known = [label for label in labels if label]
    by_itself = control_labels(known)
    return several(
        "control",
        known,
        CONTROL,
        f"{BY_ITSELF}: {some(by_itself)}" if by_itself else "none found: choose",
        lambda chosen: all(text in labels or set(text) & set("*?") for text in chosen),
        accept_new_options=True,
    )


def covariates_chosen(columns: list[str], proposal: list[str]) -> list[str]:
    """The columns that the model is to account for; none by default, also if some are proposed."""
    return several(
        "covariates",
        columns,
        COVARIATES,
        f"{NONE}; proposed: {' and '.join(proposal)}" if proposal else NONE,
        lambda chosen: set(chosen) <= set(columns),
    )


def several(
    option: str,
    known: list[str],
    about: str,
    placeholder: str,
    fits: Callable[[list[str]], bool],
    **more: Any,
) -> list[str]:
    """A box for several names, those of this file in the address."""
    key = DECLARED[option].parameter
    chosen = st.multiselect(
        DECLARED[option].box,
        known,
        key=file_choices.suggested(key, [], lambda link: link.split(url.APART), fits),
        persist_state="session",
        placeholder=placeholder,
        help=about,
        **more,
    )
    file_choices.chosen(key, url.APART.join(chosen))
    return [str(name) for name in chosen]


def bound(option: str, choices: list[str], about: str, first: str = "") -> str:
    """A box for an option of the reader.

    The choice for this file is in the address, unless it is the one suggested.
    """
    key = DECLARED[option].parameter
    choices = list(dict.fromkeys(choices))
    first = first if first in choices else choices[0]
    chosen = str(
        st.selectbox(
            DECLARED[option].box,
            choices,
            key=file_choices.suggested(key, first, fits=choices.__contains__),
            persist_state="session",
            help=about,
        )
    )
    file_choices.chosen(key, "" if chosen == first else chosen)
    return chosen


def of_cells() -> dict[str, str]:
    """What is done with guides of one target, and with cells without a label or guide."""
    return {
        "join_guides": bound(
            "join_guides",
            [EACH, *DECLARED["join_guides"].words],
            "by target: TP53_1, TP53-g2 and sgTP53 are read as TP53. Otherwise each guide is a "
            "perturbation of its own.",
        ),
        "drop_unlabelled": bound(
            "drop_unlabelled",
            [BY_ITSELF, *DECLARED["drop_unlabelled"].words],
            "Cells of which no perturbation is known, or no guide in a table of guides. They are "
            "not controls, unless you know so. By itself they are left out of a table with columns "
            "of controls; elsewhere you are asked.",
        ),
    }


def further(
    found: Mapping[str, Any], columns: Mapping[str, Mapping[str, Any]], table: str
) -> dict[str, str]:
    """What few need: values that are no counts, size factors, dosages, replicates.

    `table` is the table of guides that is suggested as dosages; "" where there is none.
    """
    numbers = [name for name, column in columns.items() if column["is_number"]]
    return {
        "continuous": bound(
            "continuous",
            list(DECLARED["continuous"].words),
            "counts: raw counts, whole numbers. gaussian: any values as they are, such as "
            "log-normalised ones; models of counts are better where there are counts.",
        ),
        "size_factor_key": bound(
            "size_factor_key",
            [NONE, *numbers],
            "Each cell's total count over all genes, where the file holds only some of them.",
        ),
        "dosage_key": bound(
            "dosage_key",
            [NONE, *columns, *found["tables"]],
            "A column with the dosage of each label, or a table of dosages by perturbation.",
            table,
        ),
        "replicate_key": bound(
            "replicate_key",
            [BY_ITSELF, *columns],
            "Biological replicates, to score each of them apart. No model sees them.",
        ),
    }


def preview(labels: Mapping[str, int], reading: Reading, n_labels: int) -> None:
    """How each label of the column is read, as it is now."""
    column = str(reading.options.perturbation_key)
    if not labels:
        st.warning(
            f"Column {page.plain(column)} has {n_labels:,} different labels: it "
            "tells cells apart rather than perturbations."
        )
        return
    try:
        table = label_table(labels, column, reading.options)
    except DataError as error:
        st.warning(page.plain(in_words(str(error))))
        table = pd.DataFrame({"label": list(labels), "cells": list(labels.values())})
    else:
        counts = table["kind"].value_counts()
        told = [
            f"**{counts[kind]:,}** {words.removesuffix('s') if counts[kind] == 1 else words}"
            for kind, words in KINDS.items()
            if kind in counts
        ]
        st.container(key="preview").markdown("  \n".join(told))
        table = table.rename(columns={"label": "label in the file", "condition": "read as"})
    st.dataframe(
        table.head(MOST_ROWS),
        hide_index=True,
        alt="How each label is read",
    )
    if len(table) > MOST_ROWS:
        st.caption(f"The first {MOST_ROWS:,} of {len(table):,} labels, those with most cells.")
