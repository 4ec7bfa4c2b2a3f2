"""Evidence of mask entries is above zero for true entries and near zero for others."""

import numpy as np
import pytest
import torch

from samsvae_core.analysis.masks import near_misses
from samsvae_core.data.splits import split
from samsvae_core.evaluation.mask_evidence import differences, entry_evidence
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.training.config import TrainConfig
from samsvae_core.training.loop import fit, new_model

DESIGN = Design(n_cells=1600, n_genes=60, n_perturbations=8, n_latent=4, n_combinations=2)
TRAINING = TrainConfig(
    steps=800,
    batch_size=256,
    learning_rate=1e-2,
    mask_learning_rate=2e-2,
    embedding_learning_rate=3e-2,
    dense=0.0,
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Return a model with the true decoder and learned masks, and its cells."""
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
    return model.requires_grad_(False), data, parts, truth


def test_true_entries_have_evidence_and_others_have_none(fitted):
    model, data, parts, truth = fitted
    table = entry_evidence(model, data, parts)
    evidence = table["evidence"].to_numpy().reshape(truth.mask.shape)
    error = table["evidence_se"].to_numpy().reshape(truth.mask.shape)
    found = model.mask_probability().numpy() > 0.5
    right = found & truth.mask
    assert (evidence[right] > 2 * error[right]).all()
    neither = ~found & ~truth.mask
    assert (evidence[neither] < 0.2 * np.median(evidence[right])).all()


def test_a_true_entry_that_is_switched_off_is_a_near_miss(fitted):
    model, data, parts, truth = fitted
    found = model.mask_probability().numpy() > 0.5
    t, k = np.argwhere(found & truth.mask & (found.sum(0) > 1))[0]
    before = model.mask_logits[t, k].clone()
    try:
        model.mask_logits[t, k] = -6.0
        masks = entry_evidence(model, data, parts)
        masks["active"] = (model.mask_probability() > 0.5).flatten().numpy()
        missed = near_misses(masks).iloc[0]
    finally:
        model.mask_logits[t, k] = before
    assert (missed["perturbation"], missed["mechanism"]) == (data.perturbations[t], k)


def test_counts_of_cells_are_those_held_out(fitted):
    model, data, parts, _ = fitted
    table = entry_evidence(model, data, parts)
    held_out = (data.dosages[parts != "train"] != 0).sum(0).A1
    scored = table[table["evidence"].notna()]
    expected = dict(zip(data.perturbations, held_out, strict=True))
    assert (scored["evidence_n"] == scored["perturbation"].map(expected)).all()


def test_nothing_is_scored_without_held_out_cells(fitted):
    model, data, parts, _ = fitted
    table = entry_evidence(model, data, np.full(len(parts), "train"))
    assert table["evidence"].isna().all()
    assert (table["evidence_n"] == 0).all()


def test_no_change_changes_nothing(fitted):
    model, data, _, _ = fitted
    cells = Cells(data.subset(np.arange(20)), torch.device("cpu"))
    still = torch.zeros(2, model.config.n_latent)
    assert differences(model, 0, still, cells).abs().max() < 1e-3  # nats; sums in float32


def test_a_mechanism_nobody_uses_is_not_tried(fitted):
    model, data, parts, _ = fitted
    before = model.mask_logits[:, 0].clone()
    try:
        model.mask_logits[:, 0] = -6.0
        table = entry_evidence(model, data, parts)
    finally:
        model.mask_logits[:, 0] = before
    assert table.loc[table["mechanism"] == 0, "evidence"].isna().all()
    assert table.loc[table["mechanism"] == 1, "evidence"].notna().any()
