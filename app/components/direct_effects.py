"""Direct effects on a page: what a perturbation does to single genes, outside every mechanism."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
import streamlit as st

from app.components import charts
from app.components.nearest import N_NAMED, clicked_row
from app.components.units import scale
from app.figures import gene_plots
from app.session import composition, page, record, url
from samsvae_core.analysis.compose import Composition
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.models.direct import ACTIVE

NONE = "This model has no direct effects: it was trained without them, or before they existed."
IN_SHORT = "Direct effect: what it does to this gene outside every mechanism; more below."
N_BARS = 30  # direct effects drawn; the table has all
ENOUGH = 10  # direct effects above two standard deviations that are worth a gene-set test
COLUMNS = {  # in the order of the tables
    "own_target": st.column_config.CheckboxColumn(
        "own gene", help="Whether the gene is the one that the perturbation targets."
    ),
    "fold_change": st.column_config.NumberColumn(
        "fold change",
        format="%.2f",
        help="exp(effect): by how much it multiplies the gene's share of the counts, before shares "
        "are made to sum to one, and apart from what mechanisms do. 1 is no change.",
    ),
    "effect": st.column_config.NumberColumn(
        format="%+.3f",
        help="Posterior mean of what is added to the gene's logit (natural log; where data are not "
        "counts, to its mean), at dosage 1. The median gene is put at 0.",
    ),
    "effect_sd": st.column_config.NumberColumn(
        "effect sd", format="%.3f", help="Posterior standard deviation of the effect."
    ),
    "probability": st.column_config.NumberColumn(
        format="%.3f",
        help="That the effect stands out of the other direct effects of its perturbation. Those "
        "above 0.5 are listed.",
    ),
    "evidence": st.column_config.NumberColumn(
        format="%+.3f",
        help="Nats per held-out cell with the perturbation that predictions lose without it.",
    ),
    "evidence_se": st.column_config.NumberColumn(
        "evidence se", format="%.3f", help="Standard error over held-out cells."
    ),
    "evidence_n": st.column_config.NumberColumn(
        "held-out cells", help="Cells on which the evidence was measured."
    ),
    "observed": st.column_config.NumberColumn(
        "observed shift",
        format="%+.3f",
        help="Measured shift of the gene, all splits pooled, in the units of shifts: what the "
        "perturbation does in all, mechanisms included.",
    ),
    "observed_se": st.column_config.NumberColumn(
        "observed se", format="%.3f", help="Its standard error from the sampling of cells."
    ),
}


def about(table: pd.DataFrame, names: Iterable[str]) -> str:
    """Return what direct effects are and how many these perturbations have, for a switch."""
    rows = table[table["perturbation"].isin(list(names))]
    n = int(rows["active"].sum())
    return (
        "What these perturbations do to single genes, outside every mechanism: "
        f"{counted(n, 'direct effect')} that {'stands' if n == 1 else 'stand'} out, and "
        f"{len(rows) - n:,} small. Switch them off to see the mechanisms alone."
    )


def counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


KINDS = {
    "sparse": "a perturbation may move any gene directly",
    "own-target": "a perturbation may move only its own gene directly",
    "none": "mechanisms alone, as in the published model",
}


def in_all(model: Bundle) -> str:
    """Return which direct effects a model has, how many, and what all perturbed cells share."""
    if model.direct is None:
        return NONE
    kind, found = (
        model.model.config.direct_effects,
        model.direct[model.direct["active"].astype(bool)],
    )
    n = len(found)
    said = (
        f"Direct effects: {kind}, so {KINDS[kind]}. Of {len(model.direct):,} that are kept, {n:,} "
        f"{'stands' if n == 1 else 'stand'} out (probability above 0.5), of "
        f"{counted(found['perturbation'].nunique(), 'perturbation')}."
    )
    shared = None if model.shared is None else model.shared[model.shared["probability"] > ACTIVE]
    if shared is None or shared.empty:
        return said
    top = shared.sort_values("effect", key=abs, ascending=False)
    named = ", ".join(
        f"*{page.plain(row.gene)}* {row.effect:+.2f}" for row in top.head(N_NAMED).itertuples()
    )
    more = f" and {len(top) - N_NAMED:,} more" if len(top) > N_NAMED else ""
    return (
        f"{said} All perturbed cells share, against control, a change of {named}{more} "
        f"({scale(model).direct}): it is kept out of mechanisms."
    )


def of_perturbation(model: Bundle, name: str, result: Composition) -> None:
    """Draw the direct effects of a perturbation that stand out, the largest first."""
    if model.direct is None:
        record.caption(NONE)
        return
    rows = model.direct[model.direct["perturbation"] == name]
    record.markdown(in_words(name, rows))
    found = rows[rows["active"].astype(bool)].drop(columns="perturbation")
    if found.empty:
        record.caption(definition(model))
    else:
        of_gene = result.table[["observed", "observed_se"]]
        shown = listed(model, found.join(of_gene, on="gene"), "gene")
        gene = table(shown, "gene", f"direct effects of {name}", model.name)
        url.link("gene", f"Open {page.plain(gene)}", ":material/arrow_forward:", {"g": gene})
        record.caption("Click a row for another gene.")
        charts.downloads(shown, f"direct_effects_of_{name}")
        drawn(model, found, "gene", f"Direct effects of {name} that stand out")
    if int((rows["effect"].abs() > 2 * rows["effect_sd"]).sum()) >= ENOUGH:
        off = {*range(model.model.config.n_latent), composition.REST}
        url.link(
            "compose",
            "Gene sets of what direct effects do alone, in Compose",
            ":material/arrow_forward:",
            {
                "c": composition.as_link({name: 1.0}),
                "off": composition.as_off(off),
                "part": "Gene sets",
            },
        )


def in_words(name: str, rows: pd.DataFrame) -> str:
    """Return how many direct effects of a perturbation stand out, and how many are small."""
    n, bold = int(rows["active"].sum()), f"**{page.plain(name)}**"
    small = len(rows) - n
    if n:
        said = f"{counted(n, 'direct effect')} of {bold} {'stands' if n == 1 else 'stand'} out."
    else:
        said = f"No direct effect of {bold} stands out."
    if not small:
        return said
    verb = "is" if small == 1 else "are"
    return f"{said} {counted(small, 'small one')}, not listed, {verb} used in its predictions."


def on_gene(model: Bundle, gene: str) -> None:
    """Draw the direct effects on a gene that stand out; nothing if there are none."""
    if model.direct is None:
        return
    rows = model.direct[(model.direct["gene"] == gene) & model.direct["active"].astype(bool)]
    if rows.empty:
        return
    record.header("Perturbations that move it directly")
    shown = listed(model, rows.drop(columns="gene"), "perturbation")
    name = table(shown, "perturbation", f"direct effects on {gene}", model.name)
    url.link("perturbation", f"Open {page.plain(name)}", ":material/arrow_forward:", {"p": name})
    record.caption("Click a row for another perturbation.")
    charts.downloads(shown, f"direct_effects_on_{gene}")
    drawn(model, rows, "perturbation", f"Direct effects on {gene} that stand out")


def listed(model: Bundle, rows: pd.DataFrame, of: str) -> pd.DataFrame:
    """Return the rows of a table, the largest effect first; columns without a use are left out."""
    rows = rows.sort_values("effect", key=abs, ascending=False, kind="stable")
    if model.model.config.likelihood == "counts":
        rows = rows.assign(fold_change=np.exp(rows["effect"]))
    if not rows["own_target"].any():
        rows = rows.drop(columns="own_target")
    kept = [c for c in COLUMNS if c in rows and rows[c].notna().any()]
    return rows[[of, *kept]]


def table(shown: pd.DataFrame, of: str, what: str, model: str) -> str:
    """Draw a table of direct effects; return the gene or perturbation of the clicked row."""
    event = st.dataframe(
        shown,
        hide_index=True,
        on_select="rerun",
        selection_mode="single-row",
        key=f"{what} in {model}",
        placeholder="\u2013",
        alt=what.capitalize(),
        column_config=COLUMNS,
    )
    return str(shown[of].iloc[clicked_row(event)])


def drawn(model: Bundle, rows: pd.DataFrame, of: str, alt: str) -> None:
    """Draw the largest effects as bars, with their intervals and what they mean."""
    top = rows.sort_values("effect", key=abs, ascending=False, kind="stable").head(N_BARS)
    top = top.sort_values("effect", ascending=False)
    left, right = st.columns(2, gap="large")
    with left:
        frame = gene_plots.with_interval(top[of], top["effect"], top["effect_sd"])
        unit = scale(model).direct
        charts.chart(
            gene_plots.bars(frame, f"direct effect ({unit})", charts.dark(), of == "gene"),
            alt.lower().replace(" ", "_"),
            alt,
        )
    with right:
        record.caption(
            (f"The {N_BARS} largest of {len(rows)}. " if len(rows) > N_BARS else "")
            + f"{definition(model)} Whiskers: 90 % interval from the posterior standard deviation."
        )


def definition(model: Bundle) -> str:
    counts = model.model.config.likelihood == "counts"
    constant = (
        "Logits are known up to a constant per perturbation, so the median gene is put at 0. "
    )
    return (
        f"Direct effect: what the perturbation adds to a gene's {'logit' if counts else 'mean'} at "
        f"dosage 1, outside every mechanism ({scale(model).direct}). {constant if counts else ''}"
        "It stands out of the others of its perturbation if the probability is above 0.5. "
        "Evidence: nats per held-out cell that it adds to predictions."
    )


def on_own_gene(model: Bundle, name: str, gene: str) -> str:
    """Return a sentence on the direct effect of a perturbation on its own gene, or ""."""
    if model.direct is None:
        return ""
    rows = model.direct[model.direct["perturbation"] == name]
    rows = rows[rows["gene"] == gene]
    if rows.empty:
        return " Direct effect on it: nearly zero, so it is left out."
    row = rows.iloc[0]
    times = (
        f"{np.exp(row['effect']):.2f} times its share, "
        if model.model.config.likelihood == "counts"
        else ""
    )
    said = (
        f" Direct effect on it: {times}{row['effect']:+.2f} ± {row['effect_sd']:.2f} sd "
        f"({scale(model).direct}), probability {row['probability']:.2f}"
    )
    if pd.notna(row["evidence"]):
        said += (
            f", evidence {row['evidence']:+.3f} ± {row['evidence_se']:.3f} se nats per cell over "
            f"{counted(int(row['evidence_n']), 'held-out cell')}"
        )
    return said + "."
