"""The measured shift of a condition at each level of a covariate, and how far levels disagree."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import chi2, false_discovery_control

from samsvae_core.bundle.bundle import Bundle

TABLE = "observed_levels.parquet"


def covariates_of(bundle: Bundle, condition: str) -> list[str]:
    """Return the covariates at two levels or more of which the condition was measured."""
    table = bundle.if_there(TABLE)
    if table is None:
        return []
    rows = table[table["condition"] == condition]
    n = rows.groupby("covariate", sort=False)["level"].nunique()
    return [str(name) for name in bundle.levels if n.get(name, 0) > 1]


def shifts_by_level(bundle: Bundle, condition: str, covariate: str) -> pd.DataFrame:
    """Return a row per gene and level: gene, level, shift, se and n, against control there."""
    table = bundle.if_there(TABLE)
    if table is None:
        return pd.DataFrame(columns=["gene", "level", "shift", "se", "n"])
    rows = table[(table["condition"] == condition) & (table["covariate"] == covariate)]
    return rows[["gene", "level", "shift", "se", "n"]].dropna().reset_index(drop=True)


def disagreement(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how far the levels of each gene disagree: q, p_value and fdr, by gene.

    q is the sum of ((shift - weighted mean) / se)^2 over levels, weights 1 / se^2, and under no
    difference chi squared with one degree of freedom less than levels (Cochran 1954, Biometrics
    10). `fdr` is Benjamini and Hochberg's over all genes. Genes with one level are left out.
    """
    known = rows[rows["se"] > 0]
    weight = 1 / known["se"] ** 2
    sums = pd.DataFrame(
        {
            "gene": known["gene"],
            "weight": weight,
            "first": weight * known["shift"],
            "second": weight * known["shift"] ** 2,
            "levels": 1,
        }
    )
    of_gene = sums.groupby("gene", sort=False).sum()
    of_gene = of_gene[of_gene["levels"] > 1]
    q = (of_gene["second"] - of_gene["first"] ** 2 / of_gene["weight"]).clip(lower=0)
    p = pd.Series(chi2.sf(q, of_gene["levels"] - 1), index=q.index)
    fdr = false_discovery_control(p) if len(p) else np.zeros(0)
    return pd.DataFrame({"q": q, "p_value": p, "fdr": fdr})
