"""Which columns of obs should be covariates, by how they are spread over the perturbations.

A batch that holds more cells of one perturbation than of the controls passes its influence on to
that perturbation, unless the model accounts for it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from samsvae_core.data.controls import is_control
from samsvae_core.data.covariate_columns import FEW_CELLS, MOST_LEVELS
from samsvae_core.data.label_column import texts_of
from samsvae_core.data.unevenness import Cells, DesignColumn, Unlike, measured
from samsvae_core.system.messages import some

# Biological replicates first, then what stands for them: batches, then parts of one experiment.
REPLICATE_KEYS = (
    *("replicate", "replicates", "replicate_id", "rep", "biorep", "bio_rep", "bio_replicate"),
    *("biological_replicate", "donor", "donor_id", "batch", "batch_id", "experiment"),
    *("gem_group", "gemgroup", "gem", "lane", "sample", "sample_id", "orig.ident"),
)
USUAL = {  # names of columns that are proposed even where they are evenly spread
    *REPLICATE_KEYS,
    *("patient", "patient_id", "individual", "subject", "cell_line", "cellline", "cell_type"),
    *("celltype", "treatment", "stim", "stimulus", "stimulation", "timepoint", "time_point"),
    *("plate", "plate_id", "library", "library_id", "pool", "chip", "channel", "run", "flowcell"),
}
DOSE = re.compile(
    r"(?:drug|compound|perturbation|treatment)?[-_ .]?(?:dose|dosage|conc(?:entration)?)"
    r"(?:[-_ .]?(?:val(?:ue)?|level|[nu\u00b5m]m|1))?",
    re.IGNORECASE,
)
NUMBER_OF = re.compile(
    r"(?:n|num|number|count)[-_ .]?(?:of[-_ .]?)?(?:pert\w*|guides?|s?grnas?|targets?)",
    re.IGNORECASE,
)
# Columns made from the counts, which are no part of the design.
MADE_LATER = re.compile(
    r".*(?:cluster|leiden|louvain|mixscape|_class|phase|doublet).*"
    r"|n[-_]?(?:count|feature|gene|umi).*"
    r"|(?:.*[-_ .])?(?:n?counts?|n?umis?|n?genes|reads?|coverage|percent|pct|score)(?:[-_ .].*)?",
    re.IGNORECASE,
)
MOST_RARE = 0.1  # largest share of cells in levels of fewer than FEW_CELLS
LEAST_COMPARED = 0.9  # of the perturbed cells with controls, if a column replaces or joins others
ACCOUNTED, PROPOSED = "accounted for", "proposed"


def audit(
    obs: pd.DataFrame,
    conditions: np.ndarray,
    control: str,
    read: Collection[str | None] = (),
    accounted: Sequence[str] = (),
) -> list[DesignColumn]:
    """Return the columns of obs that may be covariates, the most uneven first.

    These have 2 to MOST_LEVELS labels or whole numbers, and neither name the perturbations nor come
    from the counts. Columns that were `read` as something else are left out; `accounted` are
    covariates already. A column is proposed if it is uneven between conditions or has one of the
    USUAL names, unless it cannot be told from the perturbations or what it says is known from
    another proposed column. Of nested columns the finer is proposed, if its levels have enough
    cells and controls. The most uneven come first, and none that would leave others without
    controls to compare with.

    The measure of unevenness is Cramér's V with the bias correction of Bergsma (2013, Journal of
    the Korean Statistical Society 42). Without control cells, nothing is returned.
    """
    cells = Cells.of(conditions, control)
    if not cells.is_control.any():
        return []
    found: dict[str, DesignColumn] = {}
    codes: dict[str, np.ndarray] = {}
    for key in obs.columns:
        name = str(key)
        if key in read or (name not in accounted and not _may_be(name, obs[key])):
            continue
        code, levels = pd.factorize(texts_of(obs[key]), sort=True)
        if not 2 <= len(levels) - ("" in levels) <= MOST_LEVELS:
            continue
        column = measured(name, code, list(map(str, levels)), cells)
        if name in accounted or not _names_perturbations(column, cells.names):
            found[name], codes[name] = column, code
    verdicts = _Proposal(found, codes, cells, accounted).judged()
    judged = [replace(found[name], **verdicts[name]._asdict()) for name in found]
    return sorted(judged, key=lambda column: -column.v)


def _may_be(name: str, values: pd.Series) -> bool:
    """Return whether a column may be part of the design, by its name and kind."""
    made = (MADE_LATER, NUMBER_OF, DOSE)
    return not pd.api.types.is_float_dtype(values) and not any(x.fullmatch(name) for x in made)


def _names_perturbations(column: DesignColumn, names: np.ndarray) -> bool:
    """Return whether the levels are perturbations: conditions, or controls in control cells."""
    known = set(names.tolist())
    controls = [level for level in column.levels if is_control(level)]
    others = [level for level in column.levels if level and level not in controls]
    if sum(level in known for level in others) > len(others) / 2:
        return True
    return bool(controls) and column.compared == 0


# Which columns to propose


class Verdict(NamedTuple):
    """What becomes of a column: its state, why, and a chosen column nested with it, if any."""

    state: str
    why: str
    nested: str = ""


class _Proposal:
    """Chooses covariates among columns: the finest that leave controls to compare with."""

    def __init__(
        self,
        columns: dict[str, DesignColumn],
        codes: dict[str, np.ndarray],
        cells: Cells,
        accounted: Sequence[str],
    ) -> None:
        self.columns, self.codes, self.cells = columns, codes, cells
        self.taken: list[str] = []
        self.strata = np.zeros(len(cells.codes), dtype=np.int64)
        self.verdicts: dict[str, Verdict] = {}
        for name in accounted:
            if name in columns:
                self._take(name, ACCOUNTED, "")

    def _take(self, name: str, state: str, why: str) -> None:
        self.verdicts[name] = Verdict(state, why)
        self.taken.append(name)
        self.strata = joined(self.strata, self.codes[name])

    def judged(self) -> dict[str, Verdict]:
        """Return the verdict on each column."""
        open_ = [name for name in self.columns if name not in self.verdicts]
        open_.sort(key=lambda name: name.lower() not in USUAL)  # they stand for those alike
        firsts = [*self.taken]
        for name in open_:
            if same := self._alike(name, firsts):
                self.verdicts[name] = Verdict("", f"the same cells as {same!r}", same)
            else:
                firsts.append(name)
                if why := self._unfit(self.columns[name]):
                    self.verdicts[name] = Verdict("", why)
        for name in [name for name in self.columns if name not in self.verdicts]:
            if coarse := next(
                (o for o in self.taken if finer(self.codes[name], self.codes[o])), ""
            ):
                self.verdicts[name] = Verdict("", f"finer than {coarse!r}", coarse)
        fit = [name for name in self.columns if name not in self.verdicts]
        for name in fit:
            if why := self._too_fine(name, [other for other in fit if other != name]):
                self.verdicts[name] = Verdict("", why)
        fit = [name for name in fit if name not in self.verdicts]
        coarser = {
            name: [c for c in fit if c == name or finer(self.codes[name], self.codes[c])]
            for name in fit
        }
        for name in sorted(fit, key=lambda name: self._rank(name, coarser[name])):
            self._choose(name, any(self.columns[other].uneven for other in coarser[name]))
        return self.verdicts

    def _rank(self, name: str, coarser: Iterable[str]) -> tuple[bool, float, int]:
        """Return a key that sorts the most uneven columns first, and before those the finer."""
        columns = [self.columns[other] for other in coarser]
        even = not any(column.uneven for column in columns)
        return even, -max(column.v for column in columns), -len(self.columns[name].levels)

    def _choose(self, name: str, is_uneven: bool) -> None:
        """Propose a column, unless those taken tell its levels apart or need its controls."""
        for other in self.taken:
            if finer(self.codes[other], self.codes[name]):
                self.verdicts[name] = Verdict("", f"known from {other!r}", other)
                return
        before = self._compared(self.strata)
        together = self._compared(joined(self.strata, self.codes[name]))
        if together < LEAST_COMPARED * min(before, self.columns[name].compared):
            others = " and ".join(map(repr, self.taken))
            self.verdicts[name] = Verdict("", f"too few controls beside {others}")
            return
        why = "uneven" if is_uneven else "by its name"
        alone = self.columns[name].alone
        if n := len(alone):
            whose = "their levels" if n > 1 else "its levels"
            why += f", though {some(alone)} ha{'ve' if n > 1 else 's'} no control in {whose}"
        self._take(name, PROPOSED, why)

    def _alike(self, name: str, others: Iterable[str]) -> str:
        """Return the first other column that parts cells in the same way, or ""."""
        n = len(self.columns[name].levels)
        return next(
            (
                other
                for other in others
                if len(self.columns[other].levels) == n
                and finer(self.codes[other], self.codes[name])
            ),
            "",
        )

    def _unfit(self, column: DesignColumn) -> str:
        """Return why a column by itself is not proposed, or ""."""
        sizes = np.bincount(self.codes[column.name])
        rare = sizes < FEW_CELLS
        if column.compared == 0:
            return "cannot be told from the perturbations"
        if not column.uneven and column.name.lower() not in USUAL:
            return "even"
        if "" in column.levels:
            return f"no value in {sizes[column.levels.index('')]:,} cells"
        if sizes[rare].sum() > MOST_RARE * sizes.sum():
            return f"{rare.sum():,} of {len(sizes):,} levels have fewer than {FEW_CELLS} cells"
        return ""

    def _too_fine(self, name: str, others: Iterable[str]) -> str:
        """Return why a coarser column is better, or ""."""
        for other in others:
            kept = self.columns[name].compared / self.columns[other].compared
            if kept < LEAST_COMPARED and finer(self.codes[name], self.codes[other]):
                return f"finer than {other!r}, with too few controls"
        return ""

    def _compared(self, strata: np.ndarray) -> float:
        """Return the share of perturbed cells with control cells in their stratum."""
        with_control = np.bincount(strata, weights=self.cells.is_control) > 0
        perturbed = ~self.cells.is_control
        return float(with_control[strata][perturbed].mean()) if perturbed.any() else 1.0


def joined(
    strata: Int64[np.ndarray, " N"], code: Int64[np.ndarray, " N"]
) -> Int64[np.ndarray, " N"]:
    """Return a number per cell, from 0, the same for cells that agree in both."""
    return np.asarray(pd.factorize(strata * (code.max(initial=0) + 1) + code)[0], dtype=np.int64)


def finer(fine: Int64[np.ndarray, " N"], coarse: Int64[np.ndarray, " N"]) -> bool:
    """Return whether each level of one column lies in one level of the other, or is equal to it."""
    pairs, levels = joined(fine, coarse), pd.factorize(fine)[0]
    return bool(pairs.max(initial=0) == levels.max(initial=0))


# As JSON, and in words


def as_json(columns: Iterable[DesignColumn]) -> list[dict[str, Any]]:
    """Return an audit as JSON values."""
    return [asdict(column) for column in columns]


def read_json(columns: Iterable[Mapping[str, Any]]) -> list[DesignColumn]:
    """Return what `as_json` wrote."""
    unlike = [each["unlike"] and Unlike(*each["unlike"]) for each in columns]
    return [
        DesignColumn(**{**each, "unlike": found})
        for each, found in zip(columns, unlike, strict=True)
    ]


def proposed(columns: Iterable[DesignColumn]) -> list[str]:
    """Return the names of the columns that are proposed as covariates."""
    return [column.name for column in columns if column.state == PROPOSED]


def describe(columns: Sequence[DesignColumn]) -> str:
    """Return an audit as lines of text: a table, and the options that take the proposal."""
    if not columns:
        return "Design: no column of obs may be a covariate."
    rows = [("column", "levels", "V", "most unlike the controls", "covariate")]
    for column in columns:
        unlike = column.unlike
        shares = (
            f"{unlike.condition!r}: {unlike.share:.0%} {unlike.level!r} ({unlike.of_controls:.0%})"
            if unlike
            else ""
        )
        judged = ": ".join(filter(None, [column.state or "no", column.why]))
        rows.append(
            (repr(column.name), f"{len(column.levels):,}", f"{column.v:.2f}", shares, judged)
        )
    widths = [max(len(row[place]) for row in rows) for place in range(4)]
    lines = ["Design: how columns are spread over perturbations (V: 0 even, 1 one tells the other)"]
    lines += ["  " + "  ".join([*map(str.ljust, row, widths), row[4]]) for row in rows]
    options = [f"--covariate {shlex.quote(name)}" for name in proposed(columns)]
    return "\n".join([*lines, *([f"To account for it: {' '.join(options)}"] if options else [])])
