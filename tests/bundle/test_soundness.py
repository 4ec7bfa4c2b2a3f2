"""A bundle with recomputed checksums is opened only if its parts are consistent."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from safetensors.numpy import load_file

from app.session import bundles
from samsvae_core.analysis import all_shifts
from samsvae_core.bundle.layout import EFFECTS, BundleError
from samsvae_core.bundle.opening import load
from samsvae_core.bundle.soundness import check_metrics
from samsvae_core.data.covariates import Covariates
from samsvae_core.evaluation.shifts import observed_shifts, variance_of
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline import train
from samsvae_core.training.config import TrainConfig
from tests.fuzz import signed

PRETRAINED = Path(__file__).parents[2] / "pretrained"
SHIPPED = PRETRAINED / "schraivogel2020"
QUICK = TrainConfig(steps=4, batch_size=64, particles=1)


def test_item_16_changed_and_signed_bundles_are_refused_and_sound_ones_open(tmp_path):
    n = len(signed.HARMFUL | signed.MASKED) * 12 // 11 + 1  # each change once
    outcomes = signed.run([SHIPPED], n, 0, tmp_path)
    assert signed.wrong(outcomes) == []
    assert {o.change for o in outcomes} >= set(signed.HARMFUL | signed.MASKED | signed.HARMLESS)


def test_item_16_the_reader_of_its_own_finds_what_it_should(tmp_path):
    assert signed.follows(SHIPPED) == ""
    for name in ("masks-effect", "loadings-scaled", "weight-nan", "logits-permuted"):
        folder = Path(shutil.copytree(SHIPPED, tmp_path / name))
        (signed.HARMFUL | signed.MASKED)[name](folder, signed.Rng(0))
        assert signed.follows(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_item_16_many_signed_bundles(tmp_path, seed):
    models = sorted(PRETRAINED.iterdir())
    assert signed.wrong(signed.run(models, 300, seed, tmp_path)) == []


@pytest.mark.parametrize(
    ("kind", "values"),
    [*((kind, "counts") for kind in MODELS), ("sams-vae", "logarithms"), ("sams-vae", "z-scores")],
)
@pytest.mark.usefixtures("quick_scores")
def test_item_16_every_kind_of_model_opens_and_its_masks_are_checked(
    screen, quick_tables, tmp_path, kind, values
):
    data = screen.data
    if values != "counts":
        logarithms = data.counts.log1p()
        if values == "z-scores":  # every gene's mean is 0
            table = logarithms.toarray()
            logarithms = sp.csr_matrix((table - table.mean(0)) / table.std(0).clip(1e-3))
        data = replace(data, counts=logarithms.astype(np.float32), is_counts=False)
    asked = {"mask_evidence": None} if values != "counts" else {}
    options = {"n_latent": 3, "n_hidden": 6, **asked}
    made = train.train(data, screen.parts, tmp_path / "made", options, QUICK, model=kind)
    opened = load(made.path)
    masks = opened.masks
    if not len(masks):
        return
    masks.loc[5, "effect"] += 0.3
    masks.to_csv(made.path / "masks.csv", index=False)
    signed.sign(made.path)
    with pytest.raises(BundleError, match=r"effect of P.* on M2 is"):
        load(made.path)


def test_item_16_what_does_not_hold_together_is_told_beside_what_does(tmp_path, monkeypatch):
    for name in ("good", "changed"):
        shutil.copytree(SHIPPED, tmp_path / name)
    signed.HARMFUL["genes-reversed"](tmp_path / "changed", signed.Rng(0))
    signed.sign(tmp_path / "changed")
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path))
    assert list(bundles.available()) == ["good"]
    (problem,) = bundles.broken().values()
    assert "does not hold together: own targets in the weights" in problem


@pytest.mark.parametrize("change", ["shift", "observed", "n_observed"])
def test_item_16_effects_that_do_not_follow_from_the_weights_are_made_anew(copied, change):
    assert all_shifts.kept(load(copied)) is not None
    arrays = load_file(copied / EFFECTS)
    arrays[change] = (arrays[change] + 1).astype(arrays[change].dtype)
    (copied / EFFECTS).write_bytes(all_shifts.packed(arrays))
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][EFFECTS] = hashlib.sha256((copied / EFFECTS).read_bytes()).hexdigest()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    changed = load(copied)
    assert all_shifts.kept(changed) is None
    whole = all_shifts.whole_effects(changed).matrix("shift")
    assert np.isfinite(whole).all()
    assert not np.allclose(whole, arrays["shift"].T) or change != "shift"


# Levels within strata


@pytest.fixture(scope="module")
def batched(screen, quick_tables, tmp_path_factory):
    """Return a bundle of cells in two batches, and the cells."""
    batch = np.random.default_rng(0).integers(0, 2, (600, 1)).astype(np.int32)
    data = replace(screen.data, covariates=Covariates({"batch": ("a", "b")}, batch))
    run = tmp_path_factory.mktemp("batched") / "batched"
    made = train.train(data, screen.parts, run, {"n_latent": 1, "n_hidden": 6}, QUICK)
    return load(made.path), data


def test_measured_shifts_are_against_controls_of_the_same_strata(batched):
    bundle, data = batched
    for split, kept in (("all", None), ("test", bundle_test_cells(bundle, data))):
        expected = observed_shifts(data, variance_of(data), kept)
        for name in expected.shift.index:
            found = bundle.observed_shift(name, split)
            np.testing.assert_allclose(found["shift"], expected.shift.loc[name])
            np.testing.assert_allclose(found["se"], expected.se.loc[name])
    plain = bundle.observed_level("P1")["level"] - bundle.observed_level("control")["level"]
    assert (bundle.observed_shift("P1")["shift"] - plain).abs().max() > 1e-3
    nothing = bundle.observed_shift("control")
    assert (nothing["shift"] == 0).all()
    assert bundle.control_level("never") is None
    kept = all_shifts.whole_effects(bundle)
    shifts = np.stack([bundle.observed_shift(name)["shift"] for name in kept.perturbations])
    np.testing.assert_allclose(kept.matrix("observed"), shifts, atol=1e-5)
    errors = np.stack([bundle.observed_shift(name)["se"] for name in kept.perturbations])
    np.testing.assert_allclose(kept.matrix("observed_se"), errors, rtol=1e-5)


def bundle_test_cells(bundle, data):
    split = pd.read_csv(bundle.path / "split.csv", dtype=str).set_index("cell")["split"]
    return np.flatnonzero(split.reindex(data.cells) == "test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="control_se"), "control_level and control_se, or neither"),
        (lambda t: t.assign(control_se=-t["control_se"]), "control_se should hold numbers from 0"),
        (lambda t: t.assign(control_level="high"), "control_level should hold numbers"),
        (lambda t: t.assign(control_level=t["control_level"].to_numpy()[::-1]), "another order"),
    ],
)
def test_levels_of_matched_controls_are_checked(batched, tmp_path, change, message):
    folder = Path(shutil.copytree(batched[0].path, tmp_path / "changed"))
    table = pd.read_parquet(folder / "observed.parquet")
    change(table).to_parquet(folder / "observed.parquet", index=False)
    signed.sign(folder)
    with pytest.raises(BundleError, match=message):
        load(folder)


@pytest.mark.parametrize(
    "strata",
    [
        [],
        {"covariates": "batch", "n_strata": 2, "left_out": []},
        {"covariates": ["batch"], "n_strata": 2, "left_out": [3]},
        {"covariates": ["batch"], "n_strata": 0, "left_out": []},
        {"covariates": ["batch"], "n_strata": True, "left_out": []},
        {"covariates": ["batch"], "left_out": []},
    ],
)
def test_what_metrics_tell_of_strata_is_checked(batched, strata):
    metrics = batched[0].metrics
    assert metrics["strata"] == {"covariates": ["batch"], "n_strata": 2, "left_out": []}
    check_metrics(metrics)
    with pytest.raises(ValueError, match="strata"):
        check_metrics({**metrics, "strata": strata})
