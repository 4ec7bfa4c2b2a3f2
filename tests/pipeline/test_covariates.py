"""Covariates from the file to the bundle and back."""

from dataclasses import replace

import anndata
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from samsvae_core.analysis.states import embed
from samsvae_core.bundle.opening import load
from samsvae_core.cli.main import app as samsvae
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_cells, read_h5ad
from samsvae_core.evaluation.evaluate import EvaluationConfig, evaluate_bundle
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.pipeline import train
from samsvae_core.training.config import Stop, TrainConfig
from samsvae_core.training.loop import fit, new_model

BATCHES = ["a", "b<b>", "c|c"]
QUICK = EvaluationConfig(iwelbo_samples=2, effect_draws=100, replicate_sets=3, shift_draws=8)


def test_a_bundle_knows_its_levels_and_tells_them(batched):
    assert batched.levels == {"batch": BATCHES}
    assert batched.model.config.levels == (3,)
    torch.testing.assert_close(
        batched.model.level_offsets.share, torch.full((3,), 1 / 3), atol=0.03, rtol=0
    )
    assert set(batched.cells["covariate batch"]) == set(BATCHES)
    tried = batched.masks[batched.masks["evidence_n"] > 30]
    assert tried["evidence_lowest_level"].notna().all()
    assert set(tried["lowest_level"]) <= {f"batch {name}" for name in BATCHES}
    assert {"control_level", "control_se"} <= set(batched.observed)
    assert "Accounts for batch (3 levels)" in batched.card
    assert load(batched.path).levels == batched.levels


def test_cells_are_read_as_they_were_for_training(batched, batches_file):
    options = train.read_options(batched.path)
    assert list(options.covariates) == ["batch"]
    data = read_cells(batches_file, options)
    found = embed(batched, data)["basal"]
    model, cells = batched.model, Cells(batched.align(data), torch.device("cpu"))
    batch = cells.batch(torch.arange(5))
    shift, offset = model.mean_shift(batch.D)[None], model.mean_offset(batch.D)
    with torch.inference_mode():
        wanted = model.encode(batch.x, shift, offset, batch.levels).loc[0].numpy()
        blind = model.encode(batch.x, shift, offset).loc[0].numpy()
    np.testing.assert_allclose(found[:5], wanted, atol=1e-5)
    assert not np.allclose(found[:5], blind)


def test_data_without_the_covariate_are_refused(batched, screen, batches_file):
    with pytest.raises(DataError, match="accounts for batch, which these data were read without"):
        embed(batched, screen.data)
    with pytest.raises(DataError, match="no column 'batch'"):
        read_cells(screen.path, train.read_options(batched.path))


def test_a_level_that_was_not_seen_is_taken_as_the_mean_and_said(batched, batches_file, tmp_path):
    cells = anndata.read_h5ad(batches_file)
    cells.obs["batch"] = cells.obs["batch"].astype(str).replace("a", "new")
    path = tmp_path / "other.h5ad"
    cells.write_h5ad(path)
    data = read_h5ad(path, covariates=["batch"])
    unknown = data.covariates.labels("batch") == "new"
    found = embed(batched, data)["basal"]
    mean = replace(data, covariates=replace(data.covariates, codes=data.covariates.codes * 0 + 2))
    of_mean = Cells(replace(batched.align(mean), covariates=None), torch.device("cpu"))
    batch = of_mean.batch(torch.arange(len(cells)))
    model = batched.model
    with torch.inference_mode():
        shift, offset = model.mean_shift(batch.D)[None], model.mean_offset(batch.D)
        wanted = model.encode(batch.x, shift, offset).loc[0].numpy()
    np.testing.assert_allclose(found[unknown], wanted[unknown], atol=1e-5)
    said = CliRunner().invoke(
        samsvae,
        ["embed", str(batched.path), "--data", str(path), "--output", str(tmp_path / "e.h5ad")],
    )
    assert said.exit_code == 0, said.output
    assert "Levels that the model has not seen (batch: new) are taken as the mean" in said.output


def test_held_out_scores_are_within_strata(batched, batches_file):
    data = read_cells(batches_file, train.read_options(batched.path))
    found = evaluate_bundle(batched, data, QUICK)
    assert found["strata"]["covariates"] == ["batch"]
    assert found["strata"]["n_strata"] == 3


@pytest.mark.parametrize("likelihood", ["counts", "gaussian"])
def test_a_training_with_covariates_goes_on_where_it_was_stopped(
    batches_file, screen, likelihood, tmp_path
):
    continuous = likelihood == "gaussian"
    data = read_h5ad(batches_file, covariates=["batch"], continuous=continuous)
    training = data.subset(screen.parts == "train")
    cells, validation = (
        Cells(each, torch.device("cpu"))
        for each in (training, data.subset(screen.parts == "validation"))
    )
    config = ModelConfig(
        len(data.genes), len(data.perturbations), 2, 8, levels=(3,), likelihood=likelihood
    )
    settings = TrainConfig(steps=12, batch_size=128)

    def trained(run, stop=0):
        def on_epoch(progress):
            if progress.epoch == stop:
                raise Stop

        model = new_model(training, replace(config, direct_effects="sparse"), 0)
        return fit(model, cells, validation, settings, run, on_epoch), model

    whole, model = trained(tmp_path / "whole")
    with pytest.raises(Stop):
        trained(tmp_path / "stopped", stop=2)
    again, resumed = trained(tmp_path / "stopped")
    assert again == whole
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert model.level_offsets.offset.any()
