"""The metrics of a bundle in words."""

from __future__ import annotations

import re
from typing import Any

from samsvae_core.evaluation.strata import FEWEST_CELLS

UNSEEN = "combination not seen in training"
CEILING = "split-half"  # not a prediction: how well the data agree with themselves
CELLS = {"test": "the held-out cells", "all": "all cells, the training cells too, as in the paper"}
CONTROLS = {
    "test": "controls held out too",
    "validation": "controls of validation, as none are held out",
    "all": "all control cells",
}
LIBRARIES = {"data": "those of these cells", "10000": "10,000, as in the paper"}
MARKUP = re.compile(r"([\\`*\[\]<>$~|:&]|\b_|_\b)")  # _ between letters is only itself


def as_text(name: object) -> str:
    """Return a name on one line, escaped so that Markdown makes no link, picture or tag of it."""
    return MARKUP.sub(r"\\\1", " ".join(str(name).split()))


def metrics_in_words(metrics: dict[str, Any], title: str) -> str:
    """Return the held-out figures beside the baselines, as Markdown."""
    if "not_available" in metrics:
        return f"Not available: {as_text(metrics['not_available'])}"
    bound, effects = metrics["iwelbo"], metrics["average_effects"]
    error = effects["mc_error"]["pearson"]
    lines = [
        f"IWELBO ({bound['n_samples']} samples): {bound['test']:.2f} nats per cell "
        f"(Monte Carlo error {bound['mc_error']:.3f}, standard error over cells "
        f"{bound['se']:.2f}, {bound['n_cells']:,} cells).",
        "",
        f"Average effects of {effects['n_conditions']} conditions against "
        f"{CELLS[effects['reference']]} ({CONTROLS[effects['control_cells']]}), pooled over "
        f"conditions and genes; library sizes: {LIBRARIES[effects['library']]}; the model's r has "
        f"a Monte Carlo error of {figure(error)} ({effects['n_draws']:,} draws):",
        "",
        *effects_table({title: effects, **metrics["baselines"]}),
        "",
        *strata_in_words(metrics.get("strata")),
        "Median: of the r of each condition, with quartiles. Rank: where the true condition comes "
        "among all, by cosine with the prediction (0 first, 0.5 chance). Split-half: what a second "
        "sample of as many cells would score (halves of these cells, Spearman-Brown). The ceiling, "
        "what a prediction without noise could reach, is its square root: r "
        f"{figure(metrics['baselines'][CEILING]['pearson_limit'])}.",
        "",
        verdict(metrics),
        *kinds_in_words(title, metrics),
        *replicates_in_words(effects["replicates"]),
        "",
        checks_in_words(metrics["predictive_checks"]),
        "",
        coverage_in_words(metrics["coverage"], metrics["calibration"].get("not_available")),
        "",
        interaction_in_words(metrics["interaction"]),
    ]
    return "\n".join(lines).rstrip()


def effects_table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the model and the baselines as a Markdown table, one row each."""
    head = "| prediction | r | r, top 20 genes | R2 | cosine | median r | rank | conditions |"
    lines = [head, "|---" * 8 + "|"]
    for name, row in rows.items():
        low, high = row["quartiles"] or (None, None)
        spread = "undefined" if low is None else f"{row['median']:.3f} ({low:.3f}, {high:.3f})"
        figures = " | ".join(figure(row[k]) for k in ("pearson", "pearson_top20", "r2", "cosine"))
        lines.append(
            f"| {name} | {figures} | {spread} | {figure(row['rank'])} | {row['n_conditions']} |"
        )
    return lines


def strata_in_words(strata: dict[str, Any] | None) -> list[str]:
    """Return what effects are compared within, and which conditions are left out; none without."""
    if strata is None:
        return []
    named, left_out = (", ".join(map(as_text, strata[k])) for k in ("covariates", "left_out"))
    said = (
        f"Effects are compared within strata, the cells that agree in {named} "
        f"({strata['n_strata']:,} strata)."
    )
    if left_out:
        said += (
            f" Left out, as fewer than {FEWEST_CELLS} of their cells share a stratum with control "
            f"cells: {left_out}."
        )
    return [said, ""]


def kinds_in_words(title: str, metrics: dict[str, Any]) -> list[str]:
    """Return r by kind of condition as a table, if there is more than one kind."""
    rows = {title: metrics["average_effects"], **metrics["baselines"]}
    present = list(metrics["average_effects"]["kinds"])
    if len(present) < 2 and "combination not seen in training" not in present:
        return []
    lines = ["", "By kind of condition, r (conditions):", ""]
    lines += ["| prediction | " + " | ".join(present) + " |", "|---" * (len(present) + 1) + "|"]
    for name, row in rows.items():
        found = (row["kinds"].get(kind) for kind in present)
        cells = ("none" if f is None else f"{figure(f['pearson'])} ({f['n']})" for f in found)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def replicates_in_words(replicates: dict[str, Any] | None) -> list[str]:
    if not replicates:
        return []
    found = ", ".join(
        f"{as_text(label)} {figure(row.get('pearson'))} ({row['n_cells']:,} cells)"
        for label, row in replicates.items()
    )
    return ["", f"The model's r by replicate: {found}."]


def checks_in_words(checks: dict[str, Any]) -> str:
    """Return how often observed statistics fall inside the model's 90 % predictive intervals."""
    found = []
    for name in ("mean", "variance", "zeros"):
        if checks[name]:
            share = checks[name]["inside"][checks["levels"].index(0.9)]
            found.append(f"{share:.0%} of {name if name != 'zeros' else 'fractions of zeros'}")
    if not found:
        return "Posterior predictive checks: not available."
    return (
        f"Posterior predictive checks ({checks['n_replicate_sets']} replicate data sets): of the "
        f"held-out conditions and genes, {', '.join(found)} fall inside the model's central 90 %."
    )


def coverage_in_words(coverage: dict[str, Any], uncalibrated: str | None = None) -> str:
    """Return how many held-out shifts the intervals contain, and why any calibration is missing."""
    found = []
    for kind, words in (("single", "single"), ("combination", "combined")):
        part = coverage[kind]
        if part is None:
            continue
        found.append(
            f"Of {part['n']:,} {words} shifts ({part['n_conditions']} conditions), the model's own "
            f"90 % intervals hold {percent(part['own'])}; widened by the sampling error of the "
            f"held-out mean, which is no fault of the model, {percent(part['own_with_sampling'])}; "
            "calibrated on validation cells and widened likewise, "
            f"{percent(part['calibrated_with_sampling'])}."
        )
    if uncalibrated:
        found.append(f"There is no calibrated interval: {uncalibrated}.")
    return "Coverage on held-out cells. " + (" ".join(found) or "Not available.")


def other_draws(kept: dict[str, Any], found: dict[str, Any], made: str) -> str:
    """Return how the coverage in a bundle differs from a new evaluation; empty if it does not."""
    lines = []
    for kind, words in (("single", "single"), ("combination", "combined")):
        before, now = ((m.get("coverage") or {}).get(kind) for m in (kept, found))
        if not before or not now:
            continue
        told = [
            tuple(
                percent(part[k]) for k in ("own", "own_with_sampling", "calibrated_with_sampling")
            )
            for part in (before, now)
        ]
        if told[0] != told[1]:
            lines.append(f"{', '.join(told[0])} of {words} shifts")
    if not lines:
        return ""
    draws = " and ".join(f"{m['coverage']['n_draws']}" for m in (kept, found))
    return (
        f"The bundle's metrics.json, made on {made}, has instead: {'; '.join(lines)} (own; with "
        f"sampling error; calibrated). Posterior draws there and here: {draws}, and not the same "
        "ones where the program was another version."
    )


def interaction_in_words(interaction: dict[str, Any] | None) -> str:
    if interaction is None:
        return ""
    return (
        f"Non-additivity of {interaction['n_doubles']} doubles measured with both singles, "
        f"predicted against that observed on {CELLS[interaction['cells']].partition(',')[0]}, over "
        f"all genes: r {figure(interaction['pearson'])}."
    )


def percent(share: float | None) -> str:
    return "(not available)" if share is None else f"{share:.1%}"


def verdict(metrics: dict[str, Any]) -> str:
    """Return whether the model beats the baselines, in words.

    It is compared with the baselines that predict every condition the model does, on all conditions
    and, if there are several kinds, on unseen combinations.
    """
    rows = {"model": metrics["average_effects"], **metrics["baselines"]}
    found = [compared(rows, "all conditions")]
    unseen = {name: row["kinds"].get(UNSEEN) for name, row in rows.items()}
    if unseen["model"] and unseen["model"]["n"] < rows["model"]["n_conditions"]:
        found.append(compared(unseen, "unseen combinations"))
    return " ".join(found)


def compared(rows: dict[str, dict[str, Any] | None], where: str) -> str:
    """Return which baselines are better than the model by r, over all and over the top 20 genes."""
    own = rows["model"]
    assert own is not None
    size = "n" if "n" in own else "n_conditions"
    others = {n: row for n, row in rows.items() if n not in ("model", CEILING)}
    rivals = {name: row for name, row in others.items() if row and row[size] == own[size]}
    fewer = [f"{n} ({row[size] if row else 0})" for n, row in others.items() if n not in rivals]
    found = []
    for key, name in (("pearson", "r over all genes"), ("pearson_top20", "r over the top 20")):
        if own[key] is None:
            found.append(f"the model's {name} is undefined: nothing moves, or nothing is observed")
            continue
        margin = 2 * ((own.get("mc_error") or {}).get(key) or 0.0)
        ahead = {n: row[key] - own[key] for n, row in rivals.items() if row[key] is not None}
        better = [n for n, by in ahead.items() if by > margin]
        close = [n for n, by in ahead.items() if abs(by) <= margin]
        told = []
        if better:
            told.append(f"{listed(better)} {'beats' if len(better) == 1 else 'beat'} the model")
        if close:
            within = " (within two Monte Carlo errors of its r)" if margin else ""
            told.append(f"{listed(close)} cannot be told from the model{within}")
        if not better and len(ahead) > len(close):
            told.append(f"the model beats every {'other ' if close else ''}baseline")
        if not ahead:
            told.append("there is no baseline to compare with")
        found.append(f"by {name}, {' and '.join(told)}")
    aside = f" Not compared, as they predict fewer conditions: {', '.join(fewer)}." if fewer else ""
    return f"On {where}, {'; '.join(found)}.{aside}"


def listed(names: list[str]) -> str:
    """Return names joined as in a sentence: a, b and c."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
