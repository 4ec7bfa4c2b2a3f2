"""How much each difference between contexts is worth to cells the model has not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from samsvae_core.data.cells import CellData
from samsvae_core.evaluation.mask_evidence import CELLS_TO_SCORE, differences, on_device, summed
from samsvae_core.models.samsvae import SAMSVAE


@torch.inference_mode()
def difference_evidence(
    model: SAMSVAE,
    data: CellData,
    parts: np.ndarray,
    table: pd.DataFrame,
    levels: Sequence[str],
) -> pd.DataFrame:
    """Return evidence, evidence_se and evidence_n of differences, in the rows of `table`.

    It is what the bound of the held-out cells of the perturbation at that level loses, in nats per
    cell, when they get the common effect instead. Only active differences are asked; the others,
    and those without held-out cells, have NaN and 0. The standard error is over cells, NaN with
    one.
    """
    found = pd.DataFrame(
        {"evidence": np.nan, "evidence_se": np.nan, "evidence_n": 0}, index=table.index
    )
    contexts, context = model.contexts, model.config.context
    if contexts is None or context is None or data.covariates is None:
        return found
    code, modal = data.covariates.codes[:, context], contexts.modal()
    held_out = np.isin(parts, ("validation", "test"))
    rng, given = np.random.default_rng(0), data.dosages.tocsc()
    n = len(data.perturbations)
    number = {name: t for t, name in enumerate(data.perturbations)}
    place = {name: c for c, name in enumerate(levels)}
    for (name, level), rows in table[table["active"]].groupby(["perturbation", "level"]):
        t, c = number[name], place[level]
        cells = given.indices[given.indptr[t] : given.indptr[t + 1]]
        cells = rng.permutation(cells[held_out[cells] & (code[cells] == c)])[:CELLS_TO_SCORE]
        if not len(cells):
            continue
        mechanisms = torch.as_tensor(rows["mechanism"].to_numpy(), device=model.device)
        moves = torch.zeros(len(rows), modal.shape[1], device=model.device)
        own = torch.arange(len(rows), device=model.device), mechanisms
        moves[own] = -modal[c * n + t, mechanisms]
        lost = -differences(model, t, moves, on_device(model, data, cells)).double().cpu().numpy()
        found.loc[rows.index, list(found)] = summed(lost)
    found["evidence_n"] = found["evidence_n"].astype(int)
    return found
