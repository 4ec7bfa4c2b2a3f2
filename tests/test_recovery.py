"""Whether the answer comes back that the data were drawn from."""

import numpy as np
import pytest
import torch

from samsvae_core.evaluation import mask_recovery
from samsvae_core.inference import Cells
from samsvae_core.simulate import Design, simulate
from samsvae_core.splits import split
from samsvae_core.training import TrainConfig, fit, new_model

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
