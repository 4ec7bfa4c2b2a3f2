import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp

from samsvae_core import report
from samsvae_core.data import DataError
from samsvae_core.files import OutputError
from samsvae_core.h5ad import read_h5ad
from samsvae_core.report import (
    condition_table,
    observed_table,
    perturbation_table,
    read_options,
    umap_coordinates,
)
from samsvae_core.training import Stop, TrainConfig, TrainingError

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


# A run


def status(run):
    return json.loads((run / "status.json").read_text())


def test_a_finished_run_says_so_and_cannot_be_resumed(tiny, screen):
    assert status(tiny.path)["state"] == "finished"
    with pytest.raises(OutputError, match="is finished: it is a bundle already"):
        report.resume(screen.data, tiny.path)
    with pytest.raises(OutputError, match="exists already"):
        report.train(screen.data, screen.parts, tiny.path, MODEL, SHORT)


def test_a_stopped_run_says_so_and_resumes_to_the_same_bundle(screen, quick_tables, tmp_path):
    def stop(progress):
        if progress.epoch == 2:
            raise Stop

    run = tmp_path / "stopped"
    with pytest.raises(Stop):
        report.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    assert status(run)["state"] == "stopped"
    assert status(run)["epoch"] == 2
    resumed = report.resume(screen.data, run)
    whole = report.train(screen.data, screen.parts, tmp_path / "whole", MODEL, SHORT)
    for name in ("weights.safetensors", "masks.csv", "loadings.parquet", "history.csv", "card.md"):
        assert resumed.manifest["files"][name] == whole.manifest["files"][name], name
    assert resumed.metrics == whole.metrics


def test_a_diverging_run_says_why_it_failed(screen, quick_tables, tmp_path):
    wild = replace(SHORT, learning_rate=1e30)
    with pytest.raises(TrainingError):
        report.train(screen.data, screen.parts, tmp_path / "wild", MODEL, wild)
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
        report.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
    assert list(tmp_path.iterdir()) == []


def test_a_split_without_test_cells_makes_a_bundle_without_metrics(screen, quick_tables, tmp_path):
    parts = np.where(screen.parts == "test", "train", screen.parts)
    made = report.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
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
    made = report.train(screen.data, parts, tmp_path / "run", MODEL, SHORT)
    assert "No condition has 3 cells or more" in made.metrics["not_available"]


def test_a_run_resumed_on_other_cells_is_refused(screen, quick_tables, tmp_path):
    def stop(progress):
        raise Stop

    run = tmp_path / "run"
    with pytest.raises(Stop):
        report.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    with pytest.raises(DataError, match="cells"):
        report.resume(screen.data.subset(np.arange(500)), run)
    other = replace(screen.data, genes=np.array([f"X{i}" for i in range(40)]))
    with pytest.raises(DataError, match="genes"):
        report.resume(other, run)
    fewer = replace(screen.data, counts=screen.data.counts[:, 1:], genes=screen.data.genes[1:])
    with pytest.raises(DataError, match="lack 1 of the run's 40 genes"):
        report.resume(fewer, run)


def test_a_run_resumed_on_reordered_genes_is_the_same_run(screen, quick_tables, tmp_path):
    def stop(progress):
        raise Stop

    run, data = tmp_path / "run", screen.data
    with pytest.raises(Stop):
        report.train(data, screen.parts, run, MODEL, SHORT, on_epoch=stop)
    turned = replace(data, counts=data.counts[:, ::-1], genes=data.genes[::-1])
    resumed = report.resume(turned, run)
    whole = report.train(data, screen.parts, tmp_path / "whole", MODEL, SHORT)
    for name in ("weights.safetensors", "observed.parquet", "history.csv"):
        assert resumed.manifest["files"][name] == whole.manifest["files"][name], name


def test_how_the_data_were_read_is_remembered(tiny, screen):
    again = read_h5ad(screen.path, **read_options(tiny.path))
    assert again.source == screen.data.source
    np.testing.assert_array_equal(again.conditions, screen.data.conditions)


def test_there_is_no_run_in_an_empty_folder(tmp_path, screen):
    with pytest.raises(OutputError, match="There is no run"):
        read_options(tmp_path)
    with pytest.raises(OutputError, match=r"There is no run in .* to resume"):
        report.resume(screen.data, tmp_path)


@pytest.mark.parametrize("change", [{"data": None}, {"model_config": {"n_genes": 3, "depth": 9}}])
def test_a_configuration_of_another_version_is_refused(tiny, screen, tmp_path, change):
    settings = json.loads((tiny.path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(OutputError, match="not the configuration of a run of this version"):
        read_options(tmp_path)


# The frontier


def test_a_stopped_frontier_resumes_to_the_same_bundle(screen, quick_tables, tmp_path):
    run, calls = tmp_path / "run", []

    def stop(_):
        calls.append(1)
        if len(calls) == 5:
            raise Stop

    with pytest.raises(Stop):
        report.train(screen.data, screen.parts, run, MODEL, SHORT, on_epoch=stop, frontier=True)
    assert 1 < len(list((run / "frontier").iterdir())) < 7
    resumed = report.resume(screen.data, run)
    whole = report.train(screen.data, screen.parts, tmp_path / "whole", MODEL, SHORT, frontier=True)
    for name in ("weights.safetensors", "frontier.csv", "masks.csv", "history.csv"):
        assert resumed.manifest["files"][name] == whole.manifest["files"][name], name


def test_the_history_of_a_frontier_is_that_of_the_dense_start_and_the_chosen_level(
    screen, quick_tables, tmp_path
):
    made = report.train(screen.data, screen.parts, tmp_path / "run", MODEL, SHORT, frontier=True)
    assert made.history["step"].is_monotonic_increasing
    assert made.history["epoch"].tolist() == list(range(1, len(made.history) + 1))
    assert made.frontier["mask_evidence"].is_monotonic_increasing
    assert made.frontier["difference"].max() == 0
