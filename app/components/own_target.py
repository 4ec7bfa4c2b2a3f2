"""What a perturbation does to its own gene: predicted, measured, and directly."""

from __future__ import annotations

import pandas as pd

from app.components import direct_effects
from app.components.units import scale
from app.figures import style
from app.session import page, record
from samsvae_core.bundle.bundle import Bundle


def lines(model: Bundle, name: str, own: list[str], table: pd.DataFrame, kind: str | None) -> None:
    """Draw what it does to its own gene: predicted, measured, and directly."""
    for gene in own:
        direct = direct_effects.on_own_gene(model, name, gene)
        record.markdown(target_in_words(model, table, gene, kind) + direct)
    if own:
        record.caption(
            "A perturbation need not show in its own transcript: a Cas9 knock-out can leave "
            "transcripts that are still counted."
            + ("" if model.direct is None else f" {direct_effects.IN_SHORT}")
        )
    else:
        record.caption(
            f"Its own gene is not on this panel: {page.plain(name)} is not among the "
            f"{len(model.genes):,} genes of this model, under any name."
        )


def target_in_words(model: Bundle, table: pd.DataFrame, gene: str, kind: str | None) -> str:
    """Return what it does to its own gene, predicted and measured."""
    row, unit = table.loc[gene], scale(model).unit
    place = int((table["shift"].abs() > abs(row["shift"])).sum()) + 1
    said = f"Its own gene, *{page.plain(gene)}*: predicted {signed(row['shift'])} {unit}"
    if kind:
        said += f" (90 % interval {signed(row['lower'])} to {signed(row['upper'])})"
    said += f", place {place:,} of {len(table):,} genes by size; "
    if pd.isna(row["observed"]):
        return said + "not measured."
    said += f"observed {signed(row['observed'])}"
    if pd.notna(row["observed_se"]):
        low, high = (row["observed"] + side * style.Z90 * row["observed_se"] for side in (-1, 1))
        said += f" (90 % interval {signed(low)} to {signed(high)})"
    return said + "."


def signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # adding 0.0 turns -0.00 into +0.00
