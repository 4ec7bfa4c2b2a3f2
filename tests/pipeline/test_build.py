import functools
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from safetensors.numpy import load as load_arrays

from samsvae_core.analysis import masks as interpretation
from samsvae_core.analysis import states as cell_states
from samsvae_core.bundle import layout
from samsvae_core.bundle.opening import load
from samsvae_core.data.cells import DataError
from samsvae_core.data.h5ad import read_cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.variants import ConditionalVAE
from samsvae_core.pipeline import build
from samsvae_core.pipeline import train as pipeline
from samsvae_core.pipeline.build import (
    condition_table,
    observed_table,
    perturbation_table,
    umap_coordinates,
)
from samsvae_core.pipeline.train import read_options
from samsvae_core.system.files import OutputError
from samsvae_core.training.config import Stop, TrainConfig, TrainingError
from tests.conftest import let_more_stand_out, score_quickly
from tests.oracles import log_proportions

MODEL = {"n_latent": 2, "n_hidden": 4}
SHORT = TrainConfig(steps=12, batch_size=128, particles=1)


# Tables


def test_levels_are_told_for_all_cells_and_for_test_cells(screen):
    table = observed_table(screen.data, screen.parts).set_index(["split", "condition", "gene"])
    x = screen.data.counts.toarray()
    for split, kept in (("all", np.full(600, True)), ("test", screen.parts == "test")):
        rows = x[kept & (screen.data.conditions == "P2+P5")]
        found = table.loc[(split, "P2+P5")]
        np.testing.assert_allclose(
            found["level"], np.log2(1 + 1e4 * rows.sum(0) / rows.sum()), rtol=1e-5
        )
        assert (found["n"] == len(rows)).all()


# Tables of a bundle


def test_perturbations_are_counted_per_split_and_alone(screen):
    data, parts = screen.data, screen.parts
    table = perturbation_table(data, parts).set_index("perturbation")
    for name in data.perturbations:
        given = np.array([name in c.split("+") for c in data.conditions])
        for part in ("train", "validation", "test"):
            assert table.loc[name, part] == (given & (parts == part)).sum()
        alone = (data.conditions == name) & (parts == "train")
        assert table.loc[name, "train_alone"] == alone.sum()
    assert (table["dosage_min"] == 1).all()
    assert (table["dosage_max"] == 1).all()
    assert not table["on_panel"].any()


def test_dosages_trained_on_are_those_of_training_cells(screen):
    dosages = screen.data.dosages.toarray()
    cells = np.flatnonzero(dosages[:, 0])
    train = cells[screen.parts[cells] == "train"]
    dosages[train[0], 0], dosages[train[1], 0] = 0.25, 1.5
    dosages[cells[screen.parts[cells] == "test"][0], 0] = 9
    data = replace(screen.data, dosages=sp.csr_matrix(dosages))
    row = perturbation_table(data, screen.parts).iloc[0]
    assert (row["dosage_min"], row["dosage_max"]) == (0.25, 1.5)


def test_a_perturbation_that_is_a_measured_gene_is_marked(screen):
    names = np.array([*screen.data.perturbations[:5], screen.data.genes[3]])
    table = perturbation_table(replace(screen.data, perturbations=names), screen.parts)
    assert table["on_panel"].tolist() == [False] * 5 + [True]


def test_conditions_are_counted_with_control_first(screen):
    table = condition_table(screen.data, screen.parts)
    others = sorted(set(screen.data.conditions) - {"control"})
    assert table["condition"].tolist() == ["control", *others]
    for row in table.itertuples():
        for part in ("train", "validation", "test"):
            here = (screen.data.conditions == row.condition) & (screen.parts == part)
            assert getattr(row, part) == here.sum()


# Coordinates


@pytest.mark.parametrize("shape", [(1, 4), (2, 1), (14, 1), (15, 4)])
def test_few_rows_are_placed_by_principal_components(shape):
    rows = np.random.default_rng(0).standard_normal(shape)
    xy = umap_coordinates(rows)
    centred = rows - rows.mean(0)
    values = np.linalg.eigvalsh(centred @ centred.T)[::-1][:2]  # squared singular values
    expected = np.pad(values, (0, 2 - len(values)))[:2]
    np.testing.assert_allclose((xy**2).sum(0), np.maximum(expected, 0), atol=1e-9)


def test_many_rows_are_placed_by_umap_the_same_way_each_time():
    rng = np.random.default_rng(0)
    rows = np.r_[rng.normal(0, 0.1, (8, 4)), rng.normal(5, 0.1, (8, 4))]
    one, same = umap_coordinates(rows), umap_coordinates(rows)
    np.testing.assert_array_equal(one, same)
    assert one.shape == (16, 2)
    assert np.isfinite(one).all()


# Cells of a map


def sampled(tiny, screen):
    """Return the cells of the bundle's map as read from the file, in its order."""
    where = {name: i for i, name in enumerate(screen.data.cells)}
    return screen.data.subset([where[name] for name in tiny.cells["cell"]])


def test_the_cells_of_a_map_are_no_part_of_a_split(monkeypatch):
    """The split was drawn with seed 0 from the same generator, as for the Papalexi screen."""
    train = np.random.default_rng(0).permutation(20000)[:12800]
    monkeypatch.setattr(build, "N_EMBEDDED", 6000)  # small bundles of the tests have fewer
    sample = build.sample_of(20000)
    assert len(set(sample)) == 6000
    assert np.isin(sample, train).mean() == pytest.approx(0.64, abs=0.02)
    np.testing.assert_array_equal(sample, np.sort(sample))


def test_states_of_a_cell_differ_by_the_shift_of_its_condition(tiny, screen):
    data = sampled(tiny, screen)
    shift = data.dosages @ interpretation.matrix(tiny.masks, "effect").to_numpy()
    states = cell_states.embed(tiny, data)
    for k in range(4):
        basal, shifted = (tiny.cells[f"{name} M{k}"] for name in ("basal", "shifted"))
        np.testing.assert_allclose(basal, states["basal"][:, k], atol=1e-6)
        np.testing.assert_allclose(shifted - basal, shift[:, k], atol=1e-5)
        assert basal.dtype == shifted.dtype == np.float32
    np.testing.assert_array_equal(tiny.cells["condition"], data.conditions)


def test_either_state_has_a_map_of_its_own(tiny, screen):
    for which, states in cell_states.embed(tiny, sampled(tiny, screen)).items():
        name = "umap" if which == "shifted" else which
        xy = tiny.cells[[f"{name}_1", f"{name}_2"]]
        np.testing.assert_allclose(xy, umap_coordinates(states), atol=1e-4)
    assert not np.allclose(tiny.cells["umap_1"], tiny.cells["basal_1"])


@pytest.mark.parametrize(("active", "kept"), [([1, 3], [1, 3]), ([], [0, 1, 2])])
def test_of_many_dimensions_those_in_use_are_kept_or_the_first(
    tiny, screen, monkeypatch, active, kept
):
    monkeypatch.setattr(build, "N_LATENT", 3)
    masks = tiny.masks.assign(active=tiny.masks["mechanism"].isin(active))
    table = build.embedded_cells(tiny.model, screen.data.subset(range(9)), screen.parts[:9], masks)
    names = [f"{name} M{k}" for name in ("basal", "shifted") for k in kept]
    assert [c for c in table if "M" in c] == names


def test_without_shifts_both_maps_are_one(screen):
    model = ConditionalVAE(ModelConfig(40, 6, **MODEL))
    masks = interpretation.mask_table(model, screen.data.perturbations.tolist())
    table = build.embedded_cells(model, screen.data.subset(range(9)), screen.parts[:9], masks)
    np.testing.assert_array_equal(table["umap_1"], table["basal_1"])
    assert [c for c in table if "M" in c] == ["basal M0", "basal M1"]


def test_decoded_levels_are_those_of_the_states_of_the_cells(tiny, screen):
    states = cell_states.embed(tiny, sampled(tiny, screen))["shifted"]
    share = log_proportions(tiny.model, torch.from_numpy(states)).exp().numpy()
    for i in (0, 39):
        found = cell_states.decoded_values(tiny, tiny.genes[i])
        np.testing.assert_allclose(found, np.log2(1 + 1e4 * share[:, i]), rtol=1e-4)


def test_without_the_whole_state_nothing_is_decoded(copied, tiny):
    tiny.cells.drop(columns="shifted M2").to_parquet(copied / "cells.parquet")
    layout.write_manifest(copied, tiny.manifest["data"], "cpu")
    assert cell_states.decoded_values(load(copied), tiny.genes[0]) is None


def test_tables_are_made_without_values_of_cells_unless_asked_for(screen, quick_tables, copied):
    """A bundle can then be shared even if the data cannot."""
    kept = load(copied)
    (copied / "manifest.json").unlink()
    build.build_bundle(kept.model, screen.data, screen.parts, copied, "cpu")
    assert kept.has_cell_values
    assert not load(copied).has_cell_values
    assert not (copied / layout.CELL_COUNTS).exists()


@pytest.mark.parametrize(
    ("largest", "kind"), [(255, np.uint8), (256, np.uint16), (65536, np.uint32)]
)
def test_counts_are_kept_in_the_smallest_type_that_holds_them(screen, largest, kind):
    counts = screen.data.counts.toarray().clip(max=largest)
    counts[3, 5] = largest
    counts[:, 7] = 0
    packed = load_arrays(build.packed_counts(replace(screen.data, counts=sp.csr_matrix(counts))))
    back = sp.csr_matrix((packed["data"], packed["indices"], packed["indptr"]), (40, 600))
    assert packed["data"].dtype == kind
    assert packed["indices"].dtype == np.uint16
    np.testing.assert_array_equal(back.toarray().T, counts)
    np.testing.assert_array_equal(packed["library"], screen.data.library)


def test_values_that_are_no_counts_are_kept_as_they_are(screen):
    values = sp.csr_matrix(screen.data.counts * np.float32(-0.3))
    packed = load_arrays(build.packed_counts(replace(screen.data, counts=values, is_counts=False)))
    assert packed["data"].dtype == np.float32
    assert packed["data"].sum() == pytest.approx(values.sum())


# A run


def status(run):
    return json.loads((run / "status.json").read_text())


def test_a_finished_run_says_so_and_cannot_be_resumed(tiny, screen):
    assert status(tiny.path)["state"] == "finished"
    with pytest.raises(OutputError, match="is finished: it is a bundle already"):
        pipeline.resume(screen.data, tiny.path)
    with pytest.raises(OutputError, match="exists already"):
        pipeline.train(screen.data, screen.parts, tiny.path, MODEL, SHORT)


@pytest.fixture(scope="module")
def whole(screen, quick_tables, tmp_path_factory):
    """Return a function that makes the bundle of a run never stopped, on first use."""

    @functools.cache
    def made(frontier):
        run = tmp_path_factory.mktemp("whole") / "run"
        with pytest.MonkeyPatch.context() as patch:
            score_quickly(patch)
            return pipeline.train(screen.data, screen.parts, run, MODEL, SHORT, frontier=frontier)

    return made


@pytest.mark.usefixtures("quick_tables", "quick_scores")
def test_a_stopped_run_says_so_and_resumes_to_the_same_bundle(screen, whole, tmp_path):
    def stop(progress):
        if progress.epoch == 2:
            raise Stop

    run = tmp_path / "stopped"
    with pytest.raises(Stop):
        pipeline.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    assert status(run)["state"] == "stopped"
    assert status(run)["epoch"] == 2
    resumed = pipeline.resume(screen.data, run)
    for name in ("weights.safetensors", "masks.csv", "loadings.parquet", "history.csv", "card.md"):
        assert resumed.manifest["files"][name] == whole(False).manifest["files"][name], name
    assert resumed.metrics == whole(False).metrics


def test_a_diverging_run_says_why_it_failed(screen, quick_tables, tmp_path):
    wild = replace(SHORT, learning_rate=1e30)
    with pytest.raises(TrainingError):
        pipeline.train(screen.data, screen.parts, tmp_path / "wild", MODEL, wild)
    assert status(tmp_path / "wild")["state"] == "failed"
    assert "Lower --learning-rate" in status(tmp_path / "wild")["message"]
    assert not (tmp_path / "wild" / "manifest.json").exists()


@pytest.mark.parametrize("missing", ["validation", "control"])
def test_a_split_that_cannot_be_trained_on_is_refused_before_anything_is_written(
    screen, tmp_path, missing
):
    parts = screen.parts.copy()
    if missing == "validation":
        parts[parts == "validation"] = "test"
    else:
        parts[screen.data.conditions == "control"] = "validation"
    with pytest.raises(DataError, match=missing):
        pipeline.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
    assert list(tmp_path.iterdir()) == []


def test_tables_made_before_do_not_stay_where_there_are_none_now(tiny, screen, tmp_path):
    for name in ("calibration.csv", "predictive_checks.parquet"):
        (tmp_path / name).write_text("of another time")
    none = np.full(len(screen.data.cells), "train")
    metrics = build.write_metrics(tmp_path, tiny.model, screen.data, none)
    assert "not_available" in metrics
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]


def test_a_split_without_test_cells_makes_a_bundle_without_metrics(screen, quick_tables, tmp_path):
    parts = np.where(screen.parts == "test", "train", screen.parts)
    made = pipeline.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
    assert "no test cells" in made.metrics["not_available"]
    assert "Not available: The split has no test cells" in made.card


def test_conditions_too_small_to_be_scored_make_a_bundle_without_metrics(
    screen, quick_tables, tmp_path
):
    """Two test cells per condition are too few for average effects; training must not fail."""
    parts = screen.parts.copy()
    for condition in set(screen.data.conditions) - {"control"}:
        cells = np.flatnonzero((screen.data.conditions == condition) & (parts == "test"))
        parts[cells[2:]] = "train"
    made = pipeline.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
    assert "No condition has 3 cells or more" in made.metrics["not_available"]


def test_a_run_resumed_on_other_cells_is_refused(screen, quick_tables, tmp_path):
    def stop(progress):
        raise Stop

    run = tmp_path / "run"
    with pytest.raises(Stop):
        pipeline.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    with pytest.raises(DataError, match="cells"):
        pipeline.resume(screen.data.subset(np.arange(500)), run)
    other = replace(screen.data, genes=np.array([f"X{i}" for i in range(40)]))
    with pytest.raises(DataError, match="genes"):
        pipeline.resume(other, run)
    fewer = replace(screen.data, counts=screen.data.counts[:, 1:], genes=screen.data.genes[1:])
    with pytest.raises(DataError, match="lack 1 of the run's 40 genes"):
        pipeline.resume(fewer, run)


@pytest.mark.usefixtures("quick_tables", "quick_scores")
def test_a_run_resumed_on_reordered_genes_is_the_same_run(screen, whole, tmp_path):
    def stop(progress):
        raise Stop

    run, data = tmp_path / "run", screen.data
    with pytest.raises(Stop):
        pipeline.train(data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    turned = replace(data, counts=data.counts[:, ::-1], genes=data.genes[::-1])
    resumed = pipeline.resume(turned, run)
    for name in ("weights.safetensors", "observed.parquet", "history.csv"):
        assert resumed.manifest["files"][name] == whole(False).manifest["files"][name], name


def test_how_the_data_were_read_is_remembered(tiny, screen):
    again = read_cells(screen.path, read_options(tiny.path))
    assert again.source == screen.data.source
    np.testing.assert_array_equal(again.conditions, screen.data.conditions)


def test_there_is_no_run_in_an_empty_folder(tmp_path, screen):
    with pytest.raises(OutputError, match="There is no run"):
        read_options(tmp_path)
    with pytest.raises(OutputError, match=r"There is no run in .* to resume"):
        pipeline.resume(screen.data, tmp_path)


@pytest.mark.parametrize("change", [{"data": None}, {"model_config": {"n_genes": 3, "depth": 9}}])
def test_a_configuration_of_another_version_is_refused(tiny, screen, tmp_path, change):
    settings = json.loads((tiny.path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(OutputError, match="not the configuration of a run of this version"):
        read_options(tmp_path)


def test_a_run_without_its_manifest_gets_its_tables_anew_and_trains_no_further(
    screen, quick_tables, copied, monkeypatch
):
    """Messages advise this for bundles that lack newer tables."""
    let_more_stand_out(monkeypatch)  # as when it was made
    before = load(copied)
    (copied / "manifest.json").unlink()
    (copied / layout.CELL_COUNTS).unlink()
    anew = pipeline.resume(screen.data, copied)
    assert anew.has_cell_values
    assert anew.manifest["files"] == before.manifest["files"]


def test_checksums_are_of_values_not_of_how_they_lie_in_memory(screen, monkeypatch):
    data = screen.data
    expected = pipeline.checksums(data)
    monkeypatch.setattr(pipeline, "PIECE", 100)
    x = data.counts
    order = np.concatenate([np.arange(i, j)[::-1] for i, j in itertools.pairwise(x.indptr)])
    turned = sp.csr_matrix((x.data[order], x.indices[order], x.indptr), x.shape)
    assert not turned.has_sorted_indices
    assert pipeline.checksums(replace(data, counts=turned)) == expected
    changed = data.counts.copy()
    changed.data[-1] += 1
    other = pipeline.checksums(replace(data, counts=changed))
    assert [what for what in expected if other[what] != expected[what]] == ["counts"]


# The frontier


@pytest.mark.usefixtures("quick_tables", "quick_scores")
def test_a_stopped_frontier_resumes_to_the_same_bundle(screen, whole, tmp_path):
    run, calls = tmp_path / "run", []

    def stop(_):
        calls.append(1)
        if len(calls) == 5:
            raise Stop

    with pytest.raises(Stop):
        pipeline.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop, frontier=True)
    assert 1 < len(list((run / "frontier").iterdir())) < 7
    resumed = pipeline.resume(screen.data, run)
    for name in ("weights.safetensors", "frontier.csv", "masks.csv", "history.csv"):
        assert resumed.manifest["files"][name] == whole(True).manifest["files"][name], name


def test_the_history_of_a_frontier_is_that_of_the_dense_start_and_the_chosen_level(whole):
    made = whole(True)
    assert made.history["step"].is_monotonic_increasing
    assert made.history["epoch"].tolist() == list(range(1, len(made.history) + 1))
    assert made.frontier["mask_evidence"].is_monotonic_increasing
    assert made.frontier["difference"].max() == 0
