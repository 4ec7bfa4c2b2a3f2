"""Training recovers the truth that the data were drawn from."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from samsvae_core.analysis.loadings import loading_matrix, loadings
from samsvae_core.bundle.bundle import Reference
from samsvae_core.data.splits import split
from samsvae_core.evaluation.evaluate import mask_recovery
from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.enrichment import rank_enrichment
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.pipeline import build
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model

DESIGN = Design(n_cells=2400, n_genes=60, n_perturbations=20, n_latent=5, n_combinations=4)
TRAINING = TrainConfig(
    steps=1500,
    batch_size=256,
    particles=3,
    dense=0.0,  # the known decoder has the right basis
    learning_rate=1e-2,
    mask_learning_rate=2e-2,
    embedding_learning_rate=3e-2,
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    data, truth = simulate(DESIGN)
    parts = split(data)
    train, validation = (data.subset(parts == p) for p in ("train", "validation"))
    model = new_model(train, truth.model.config, seed=0)
    model.decoder.load_state_dict(truth.model.decoder.state_dict())
    model.log_concentration = truth.model.log_concentration
    model.decoder.requires_grad_(False)
    cpu = torch.device("cpu")
    run = tmp_path_factory.mktemp("run")
    fit(model, Cells(train, cpu), Cells(validation, cpu), TRAINING, run)
    return model, truth


def test_recovers_the_masks_when_the_decoder_is_known(fitted):
    model, truth = fitted
    found = (model.mask_logits > 0).numpy()
    hits = (found & truth.mask).sum()  # mechanism by mechanism: the decoder fixes their order
    assert 2 * hits / (found.sum() + truth.mask.sum()) >= 0.9
    assert mask_recovery(found, truth.mask)["f1"] >= 0.9


def test_recovers_the_effects_when_the_decoder_is_known(fitted):
    model, truth = fitted
    effect = (model.mask_logits.sigmoid() * model.embedding_loc).detach().numpy()
    assert np.corrcoef(effect.ravel(), truth.embedding.ravel())[0, 1] >= 0.98


def test_the_known_decoder_was_held(fitted):
    model, truth = fitted
    for name, value in truth.model.decoder.state_dict().items():
        assert torch.equal(model.decoder.state_dict()[name], value)


def test_a_mechanism_whose_genes_are_a_known_set_is_recognised_after_training(tmp_path):
    """The genes that one true mechanism moves most are those of a known set.

    Training is told nothing: decoder, masks and effects are all learned from counts.
    """
    data, truth = simulate(Design(2400, 150, 12, 3, 0, active=1.0))
    z = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    start = Reference(z, torch.ones_like(z), torch.ones(64))
    true = loading_matrix(loadings(truth.model, start, data.genes.tolist()))[0]
    sets = load_collection("hallmark").sets
    planted = sets["HALLMARK_INTERFERON_GAMMA_RESPONSE"]
    others = sorted({gene for genes in sets.values() for gene in genes}.difference(planted))
    names = dict(zip(true.nlargest(20).index, planted[:20], strict=True))
    rest = np.random.default_rng(0).choice(others, 130, replace=False)
    names |= dict(zip([gene for gene in data.genes if gene not in names], rest, strict=True))
    data = replace(data, genes=np.array([names[gene] for gene in data.genes]))
    parts = split(data)
    cpu = torch.device("cpu")
    train, validation = (Cells(data.subset(parts == p), cpu) for p in ("train", "validation"))
    size = replace(truth.model.config, n_latent=4, n_hidden=32)
    model = new_model(data.subset(parts == "train"), size, seed=0)
    fit(model, train, validation, replace(TRAINING, particles=1, dense=0.4), tmp_path)
    reference = build.reference_cells(model.eval(), data, parts)
    found = loading_matrix(loadings(model, reference, data.genes.tolist()))
    alike = found.corrwith(true.rename(names)).abs()
    table = rank_enrichment(found[[alike.idxmax()]], load_collection("hallmark")).table
    assert table.iloc[0]["term"] == "HALLMARK_INTERFERON_GAMMA_RESPONSE"
    assert table.iloc[0]["fdr"] < 1e-3
