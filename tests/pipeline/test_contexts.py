"""A model with contexts, from a file to its tables, predictions and pages."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from samsvae_core.analysis.compose import compare, compose
from samsvae_core.analysis.differences import masks_at, observed_at
from samsvae_core.bundle.layout import BundleError, write_manifest
from samsvae_core.bundle.opening import load
from samsvae_core.cli.main import app as samsvae
from samsvae_core.data.cells import DataError
from samsvae_core.data.splits import split
from samsvae_core.evaluation.shifts import observed_shifts, variance_of
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.pipeline import build
from samsvae_core.pipeline.train import train
from samsvae_core.training.config import TrainConfig
from tests.conftest import score_quickly

SHORT = TrainConfig(steps=700, batch_size=256)
DESIGN = Design(
    n_cells=1800, n_genes=60, n_perturbations=6, n_latent=3, n_combinations=1, n_contexts=2, seed=3
)


@pytest.fixture(scope="module")
def lines():
    return simulate(DESIGN)


@pytest.fixture(scope="module")
def bundle(lines, tmp_path_factory):
    data, _ = lines
    run = tmp_path_factory.mktemp("contexts") / "lines"
    sizes = {"n_latent": 4, "n_hidden": 48}
    with pytest.MonkeyPatch.context() as patch:
        score_quickly(patch)
        patch.setattr(build, "COLLECTIONS", ())
        return train(data, split(data), run, sizes, SHORT, context="cell_line")


def test_the_table_has_what_the_weights_hold(bundle, lines):
    data, truth = lines
    table = bundle.differences
    assert bundle.context == "cell_line"
    assert set(table["level"]) == {"line1", "line2"}
    active = table[table["active"]]
    assert len(active) >= 3
    assert (active["evidence"] > 2 * active["evidence_se"]).mean() > 0.7
    assert table.loc[~table["active"], "evidence"].isna().all()
    lacks = {data.perturbations[t] for t in truth.missing.any((0, 2)).nonzero()[0]}
    assert lacks <= set(active["perturbation"])


def test_masks_at_a_level_have_its_differences(bundle):
    one = bundle.differences[bundle.differences["active"]].iloc[0]
    found = masks_at(bundle.masks, bundle.differences, one["level"])
    row = (found["perturbation"] == one["perturbation"]) & (found["mechanism"] == one["mechanism"])
    assert found.loc[row, "differs"].all()
    assert (found.loc[row, "active"] == (abs(one["effect"]) > 0.3)).all()
    np.testing.assert_allclose(found.loc[row, "effect"], one["effect"])
    pd.testing.assert_frame_equal(
        masks_at(bundle.masks, bundle.differences, None).drop(columns="differs"), bundle.masks
    )


def test_a_difference_that_takes_an_effect_away_leaves_no_entry():
    masks = pd.DataFrame(
        {
            "perturbation": ["A", "A", "B"],
            "mechanism": [0, 1, 0],
            "probability": [0.9, 0.1, 0.9],
            "effect": [2.0, 0.0, 2.0],
            "effect_sd": [0.3, 0.1, 0.3],
            "active": [True, False, True],
        }
    )
    differences = pd.DataFrame(
        {
            "perturbation": ["A", "A"],
            "level": "x",
            "mechanism": [0, 1],
            "probability": [0.8, 0.7],
            "difference": [-1.9, 1.0],
            "difference_sd": [0.4, 0.2],
            "effect": [0.1, 1.0],
            "active": True,
        }
    )
    found = masks_at(masks, differences, "x")
    assert found["active"].tolist() == [False, True, True]
    assert found["differs"].tolist() == [True, True, False]
    np.testing.assert_allclose(found["probability"], [0.9 * 0.2, 0.7, 0.9])
    np.testing.assert_allclose(found["effect"], [0.1, 1.0, 2.0])
    np.testing.assert_allclose(found["effect_sd"], [0.5, np.hypot(0.1, 0.2), 0.3])
    assert masks_at(masks, differences, "y")["active"].equals(masks["active"])


def test_composed_at_each_level_and_at_the_mean(bundle):
    """The mean cell's latent shift is the mean of the levels', and each level has its own."""
    active = bundle.differences[bundle.differences["active"]]
    name = active.loc[active["difference"].abs().idxmax(), "perturbation"]
    model, t = bundle.model, list(bundle.perturbations.index).index(name)
    D = torch.eye(len(bundle.perturbations))[t : t + 1]
    share = model.level_offsets.share
    each = [model.mean_shift(model.given(D, torch.tensor([[c]]))) for c in range(2)]
    assert not torch.allclose(each[0], each[1], atol=0.3)
    torch.testing.assert_close(model.mean_shift(D), share[0] * each[0] + share[1] * each[1])
    unknown = model.given(D, torch.tensor([[-1]]))
    torch.testing.assert_close(unknown, model.given(D))

    first, second = (compose(bundle, {name: 1.0}, level=level) for level in ("line1", "line2"))
    seen = [one.table["observed"] for one in (first, second)]
    assert seen[0].notna().all()
    apart = first.table["shift"] - second.table["shift"]
    assert np.corrcoef(apart, seen[0] - seen[1])[0, 1] > 0.5
    assert first.table["observed_interaction"].isna().all()
    assert first.table["calibrated_lower"].isna().all()
    assert first.settings()["context_level"] == "line1"
    apart = compare(bundle, first, second)
    np.testing.assert_allclose(
        apart["difference"], first.table["shift"] - second.table["shift"], atol=1e-6
    )
    assert apart["difference"].abs().max() > 0.1
    assert compose(bundle, {name: 1.0}).table["observed"].notna().all()


def test_shifts_by_level_are_those_of_the_level_alone(bundle, lines):
    data, _ = lines
    rows = np.flatnonzero(data.covariates.codes[:, 0] == 1)
    name = str(bundle.perturbations.index[0])
    found = observed_at(bundle, name, "line2")
    expected = observed_shifts(data.subset(rows), variance_of(data.subset(rows)))
    np.testing.assert_allclose(found["shift"], expected.shift.loc[name], atol=1e-6)
    assert (found["n"] == (data.conditions[rows] == name).sum()).all()
    assert observed_at(bundle, "P1+nothing", "line2") is None


def test_a_combination_adds_the_differences_of_its_parts(bundle):
    D = torch.eye(len(bundle.perturbations))
    both = bundle.model.given(D[:1] + D[1:2], torch.tensor([[1]]))
    apart = bundle.model.given(D[:2], torch.tensor([[1], [1]])).sum(0, keepdim=True)
    torch.testing.assert_close(bundle.model.mean_shift(both), bundle.model.mean_shift(apart))


def test_a_level_that_is_not_there(bundle, tiny):
    with pytest.raises(ValueError, match="is no level of cell_line"):
        compose(bundle, {}, level="line3")
    with pytest.raises(ValueError, match="trained without --context"):
        compose(tiny, {}, level="line1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "donor"}, r"no covariate of these data \(there: cell_line\)"),
        ({"model": "cpa-vae"}, "choose --model sams-vae"),
    ],
)
def test_contexts_that_cannot_be(lines, tmp_path, change, message):
    data, _ = lines
    asked = {"context": "cell_line", **change}
    with pytest.raises(DataError, match=message):
        train(data, split(data), tmp_path / "run", {}, SHORT, **asked)
    assert not (tmp_path / "run").exists()


def test_a_context_of_one_level(lines, tmp_path):
    data, _ = lines
    alone = data.subset(np.flatnonzero(data.covariates.codes[:, 0] == 0))
    levels = replace(alone.covariates, levels={"cell_line": ("line1",)})
    alone = replace(alone, covariates=levels)
    with pytest.raises(DataError, match="has one level"):
        train(alone, split(alone), tmp_path / "run", {}, SHORT, context="cell_line")


@pytest.mark.parametrize("column", ["probability", "difference", "effect", "active"])
def test_a_table_that_does_not_follow_from_the_weights(bundle, tmp_path, column):
    copy = tmp_path / "copy"
    shutil.copytree(bundle.path, copy)
    table = pd.read_csv(copy / "differences.csv")
    values = table[column]
    table[column] = ~values if column == "active" else values * 0.5 + 0.1
    table.to_csv(copy / "differences.csv", index=False)
    manifest = json.loads((copy / "manifest.json").read_text())
    write_manifest(copy, manifest["data"], manifest["device"])
    with pytest.raises(BundleError, match="does not follow from the weights"):
        load(copy).check()


def test_the_command_line(bundle, tmp_path):
    out, shift = tmp_path / "d.csv", tmp_path / "s.csv"
    name, verb = str(bundle.perturbations.index[0]), CliRunner().invoke
    verb(samsvae, ["differences", str(bundle.path), "-o", str(out), "--active"])
    assert pd.read_csv(out)["active"].all()
    at = ["-o", str(shift), "--level", "line2"]
    verb(samsvae, ["compose", str(bundle.path), name, *at])
    assert json.loads(shift.with_suffix(".json").read_text())["context_level"] == "line2"


def test_cells_are_read_in_their_own_context(bundle, lines):
    """Moving a cell to the other line moves its latent shift, and so its state."""
    data, _ = lines
    name = bundle.differences.loc[bundle.differences["active"], "perturbation"].iloc[0]
    rows = np.flatnonzero(data.conditions == name)[:20]
    cells = Cells(bundle.align(data.subset(rows)), torch.device("cpu"))
    batch = cells.batch(torch.arange(len(rows)))
    own = bundle.model.mean_shift(bundle.model.given(batch.D, batch.levels))
    other = bundle.model.mean_shift(bundle.model.given(batch.D, 1 - batch.levels))
    assert ((own - other).abs().amax(1) > 0.3).all()
