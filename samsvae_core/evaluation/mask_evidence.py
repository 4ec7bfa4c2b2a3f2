"""How much each mask entry is worth to cells the model has not seen, in nats per cell.

For an active entry this is the held-out predictive bound of its perturbation's cells, minus the
same with the entry switched off. For an inactive one it is the bound with the entry switched on, at
the size that suits the training cells best, minus the bound as it is; a clearly positive figure is
a near miss. Only mechanisms that some perturbation uses are tried.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from samsvae_core.data.cells import CellData
from samsvae_core.evaluation.level_evidence import by_level, levels_of
from samsvae_core.models.bounds import bounds_at
from samsvae_core.models.device_rows import Batch, Cells
from samsvae_core.models.samsvae import ACTIVE, SAMSVAE

SIZES = (-2.0, -1.0, -0.5, -0.25, 0.25, 0.5, 1.0, 2.0)  # effects tried for an inactive entry
CELLS_TO_CHOOSE = 256  # most training cells of a perturbation for choosing the size
CELLS_TO_SCORE = 1024  # most held-out cells of a perturbation
MOST_DIRECT = 50  # direct effects of a perturbation that are asked
VALUES_AT_ONCE = 2**22  # entries x cells x genes held in memory


@torch.inference_mode()
def entry_evidence(model: SAMSVAE, data: CellData, parts: np.ndarray) -> pd.DataFrame:
    """Return perturbation, mechanism, evidence, evidence_se and evidence_n, one row per entry.

    Evidence is NaN if no held-out cell (validation or test) has the perturbation, if no
    perturbation uses the mechanism, and in models without latent shifts. The standard error is over
    cells, and NaN with one cell. Where cells have covariates or replicates, the columns of
    `level_evidence` follow.
    """
    levels = levels_of(data)
    probability = model.mask_probability().cpu()
    n_latent = probability.shape[1]
    table = pd.DataFrame(
        {
            "perturbation": np.repeat(data.perturbations, n_latent),
            "mechanism": np.tile(np.arange(n_latent), len(data.perturbations)),
            "evidence": np.nan,
            "evidence_se": np.nan,
            "evidence_n": 0,
        }
    )
    active = probability > ACTIVE
    used = active.any(0).nonzero()[:, 0].tolist()
    if levels:
        table = table.join(by_level(np.zeros((len(table), 0)), {}))
    rng = np.random.default_rng(0)
    given = data.dosages.tocsc()
    for t in range(len(data.perturbations)):
        cells = given.indices[given.indptr[t] : given.indptr[t + 1]]
        train = rng.permutation(cells[parts[cells] == "train"])[:CELLS_TO_CHOOSE]
        held_out = np.isin(parts[cells], ("validation", "test"))
        held_out_cells = rng.permutation(cells[held_out])[:CELLS_TO_SCORE]
        if not len(train) or not len(held_out_cells) or not used:
            continue
        moves = changes(model, t, used, active[t], on_device(model, data, train))
        scored = np.sort(held_out_cells)
        gains = gains_of(model, t, moves, active[t, used], on_device(model, data, scored))
        rows = t * n_latent + np.array(used)
        table.loc[rows, ["evidence", "evidence_se", "evidence_n"]] = summed(gains)
        if levels:
            own = {name: labels[scored] for name, labels in levels.items()}
            for column, values in by_level(gains, own).items():
                table.loc[rows, column] = values.to_numpy()
    table["evidence_n"] = table["evidence_n"].astype(int)
    return table


@torch.inference_mode()
def direct_evidence(
    model: SAMSVAE, data: CellData, parts: np.ndarray, table: pd.DataFrame
) -> pd.DataFrame:
    """Return evidence, evidence_se and evidence_n of direct effects, in the rows of `table`.

    It is what each adds to the bound of its perturbation's held-out cells, as for a mask entry.
    Only active effects and own targets are asked, the MOST_DIRECT strongest of a perturbation; the
    others have NaN and 0.
    """
    found = pd.DataFrame(
        {"evidence": np.nan, "evidence_se": np.nan, "evidence_n": 0}, index=table.index
    )
    asked = table[table["active"] | table["own_target"]]
    place = {gene: g for g, gene in enumerate(data.genes)}
    number = {name: t for t, name in enumerate(data.perturbations)}
    rng, given = np.random.default_rng(0), data.dosages.tocsc()
    for name, rows in asked.groupby("perturbation", sort=False):
        t = number[str(name)]
        cells = given.indices[given.indptr[t] : given.indptr[t + 1]]
        held_out = np.isin(parts[cells], ("validation", "test"))
        cells = rng.permutation(cells[held_out])[:CELLS_TO_SCORE]
        strongest = rows["effect"].abs().nlargest(MOST_DIRECT).index
        if not len(cells):
            continue
        genes = torch.tensor([place[g] for g in rows.loc[strongest, "gene"]], device=model.device)
        sizes = torch.tensor(rows.loc[strongest, "effect"].to_numpy(np.float32)).to(model.device)
        gains = losses(model, t, genes, sizes, on_device(model, data, cells)).double().cpu()
        n = gains.shape[1]
        found.loc[strongest, "evidence"] = gains.mean(1).numpy()
        if n > 1:
            found.loc[strongest, "evidence_se"] = (gains.std(1) / n**0.5).numpy()
        found.loc[strongest, "evidence_n"] = n
    return found


def losses(
    model: SAMSVAE, t: int, genes: Tensor, sizes: Float[Tensor, " V"], cells: Cells
) -> Float[Tensor, "V N"]:
    """Return what each cell's bound loses without one of these direct effects of `t`."""
    size = max(1, VALUES_AT_ONCE // ((len(genes) + 1) * model.config.n_genes))
    blocks = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)
        for index in torch.arange(len(cells), device=model.device).split(size):
            batch = cells.batch(index)
            whole = model.mean_offset(batch.D)
            assert whole is not None
            offset = whole.repeat(len(genes) + 1, 1, 1)  # (V + 1, N, G), the first unchanged
            taken = sizes[:, None] * batch.D[:, t]
            offset[torch.arange(len(genes)) + 1, :, genes] -= taken
            shift = modal_shift(model, batch).expand(len(offset), -1, -1)
            blocks.append(bounds_at(model, batch, shift, offset))
    bounds = torch.cat(blocks, 1)
    return bounds[0] - bounds[1:]


def modal_shift(model: SAMSVAE, batch: Batch) -> Float[Tensor, "N K"]:
    """Return the latent shift of cells at the most probable masks, in their contexts."""
    return model.modal_shift(model.given(batch.D, batch.levels))


def on_device(model: SAMSVAE, data: CellData, rows: np.ndarray) -> Cells:
    return Cells(data.subset(np.sort(rows)), model.device)


def changes(
    model: SAMSVAE, t: int, used: list[int], active: Tensor, train: Cells
) -> Float[Tensor, "V K"]:
    """Return, per mechanism in use, the change of the perturbation's unit effect to be scored.

    An active entry loses its whole effect. An inactive one gets the size of SIZES with the best
    bound on the training cells.
    """
    n_latent = model.config.n_latent
    embedding = model.embedding_at_mode()[t]
    moves = torch.zeros(len(used), n_latent, device=model.device)
    off = [i for i, k in enumerate(used) if not active[k]]
    for i, k in enumerate(used):
        if active[k]:
            moves[i, k] = -embedding[k]
    if off:
        tried = torch.zeros(len(off), len(SIZES), n_latent, device=model.device)
        for row, i in enumerate(off):
            tried[row, :, used[i]] = torch.tensor(SIZES, device=model.device)
        scores = differences(model, t, tried.flatten(0, 1), train).mean(1)  # (off x sizes,)
        best = scores.view(len(off), len(SIZES)).argmax(1)
        moves[off] = tried[torch.arange(len(off)), best]
    return moves


def gains_of(
    model: SAMSVAE, t: int, moves: Float[Tensor, "V K"], on: Bool[Tensor, " V"], held_out: Cells
) -> Float[np.ndarray, "V N"]:
    """Return what each cell's bound says for an entry: the loss without it, or the gain with it."""
    per_cell = differences(model, t, moves, held_out).double().cpu()  # (V, N)
    sign = torch.where(on.cpu(), -1.0, 1.0).double()
    return (sign[:, None] * per_cell).numpy()


def summed(gains: Float[np.ndarray, "V N"]) -> Float[np.ndarray, "V 3"]:
    """Return mean, standard error over cells (NaN with one) and number of cells, per entry."""
    n = gains.shape[1]
    spread = gains.std(1, ddof=1) / n**0.5 if n > 1 else np.full(len(gains), np.nan)
    return np.stack([gains.mean(1), spread, np.full(len(gains), float(n))], axis=1)


def differences(
    model: SAMSVAE, t: int, moves: Float[Tensor, "V K"], cells: Cells
) -> Float[Tensor, "V N"]:
    """Return the change of each cell's predictive bound when the unit effect of `t` is changed."""
    size = max(1, VALUES_AT_ONCE // ((len(moves) + 1) * model.config.n_genes))
    nowhere = torch.zeros(1, moves.shape[1], device=moves.device)
    variants = torch.cat([nowhere, moves])
    blocks = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(0)
        for index in torch.arange(len(cells), device=model.device).split(size):
            batch = cells.batch(index)
            shift = modal_shift(model, batch) + variants[:, None] * batch.D[:, t, None]
            blocks.append(bounds_at(model, batch, shift))
    bounds = torch.cat(blocks, 1)
    return bounds[1:] - bounds[0]
