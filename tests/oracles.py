"""What tests compare with: the same by a plainer way, which the program itself does not need."""

import pandas as pd
import torch
from torch import Tensor

from samsvae_core.analysis.similarity import similar_rows
from samsvae_core.models.samsvae import SAMSVAE


def log_proportions(model: SAMSVAE, z: Tensor) -> Tensor:
    """Log of the share of each gene in the cell's transcripts, of counts."""
    return torch.log_softmax(model.decoder(z), -1)[..., : model.config.n_genes]


def similar_shifts(effects: pd.DataFrame, perturbation: str) -> pd.DataFrame:
    """Other perturbations by their shifts of expression, from a whole `genes.effect_table`.

    As `similar_rows` says.
    """
    names = [str(name) for name in effects["perturbation"].unique()]
    predicted, observed = (
        effects[column].to_numpy(float).reshape(len(names), -1) for column in ("shift", "observed")
    )
    cells = effects["n_observed"].to_numpy().reshape(len(names), -1)[:, 0]
    return similar_rows(names, predicted, observed, cells, perturbation)
