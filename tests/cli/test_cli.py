import json
import logging
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import openpyxl
import pandas as pd
import pytest
import torch

from samsvae_core.analysis.compose import compose
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.opening import load
from samsvae_core.cli import main as cli
from samsvae_core.cli import options as cli_options
from samsvae_core.cli import train as cli_train
from samsvae_core.genesets import collections
from samsvae_core.genesets.symbols import annotate
from samsvae_core.models.variants import MODELS
from samsvae_core.pipeline import train as pipeline
from tests.bundle.test_bundle import sign
from tests.conftest import score_quickly

TINY = ["--steps", "12", "--latents", "3", "--hidden", "6", "--particles", "1"]
TINY += ["--batch-size", "128"]


@pytest.fixture
def samsvae(monkeypatch, capsys):
    """Return a function that runs the command line and returns exit code, output and errors."""

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["samsvae", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def refused(samsvae):
    """Return a function that asserts a refusal: exit code 2 and one line that starts with Error."""

    def run(*arguments):
        code, out, err = samsvae(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.fixture(scope="session")
def trained(screen, quick_tables, tmp_path_factory):
    """Return a bundle made by the command line."""
    run = tmp_path_factory.mktemp("cli") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["samsvae", "train", str(screen.path), "-o", str(run), *TINY])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    return run


# The models


@pytest.fixture(scope="session", params=[name for name in MODELS if name != "sams-vae"])
def other(request, screen, quick_tables, tmp_path_factory):
    """Return a bundle of each other model, made by the command line, and the model's name."""
    run = tmp_path_factory.mktemp("models") / request.param
    command = ["samsvae", "train", str(screen.path), "-o", str(run), "--model", request.param]
    with pytest.MonkeyPatch.context() as patch:
        score_quickly(patch)
        patch.setattr(sys, "argv", [*command, "--encoder", "mean-field", *TINY])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
    return request.param, run


def test_every_model_is_trained_kept_and_scored_alike(samsvae, other, screen):
    name, run = other
    bundle = load(run)
    assert type(bundle.model) is MODELS[name]
    assert bundle.model.config.encoder == "mean-field"
    code, out, _ = samsvae("evaluate", run, "--data", screen.path)
    assert code == 0
    assert f"| {bundle.title} |" in out
    assert bundle.title in bundle.card


def test_every_model_has_its_tables(samsvae, other, tmp_path):
    name, run = other
    model = MODELS[name]
    for verb in ("masks", "loadings"):
        assert samsvae(verb, run, "-o", tmp_path / f"{verb}.csv")[0] == 0
    masks = pd.read_csv(tmp_path / "masks.csv")
    assert (len(masks) > 0) == model.has_shifts
    assert {"evidence", "evidence_se", "evidence_n"} <= set(masks)
    assert len(pd.read_csv(tmp_path / "loadings.csv")) == 3 * 40


def test_every_model_composes_or_refuses(samsvae, other, tmp_path):
    name, run = other
    code, _, err = samsvae("compose", run, "P1", "P2", "-o", tmp_path / "both.csv")
    if not MODELS[name].composes:
        assert code == 2
        assert "cannot put perturbations together" in err
        assert samsvae("compose", run, "P1", "-o", tmp_path / "one.csv")[0] == 0
        return
    assert code == 0
    table = pd.read_csv(tmp_path / "both.csv")
    assert table["shift"].notna().all()
    assert table["lower"].notna().all() == MODELS[name].has_posterior


def test_every_model_starts_from_cells_and_knows_what_was_measured(other):
    """In a model with latent shifts, the distance of a condition to itself is zero."""
    name, run = other
    bundle = load(run)
    cells = bundle.cells["cell"].tolist()
    found = compose(bundle, {"P1": 1.0}, n_samples=4, cells=cells)
    assert found.n_reference == len(cells)
    assert np.isfinite(found.table["shift"]).all()
    nothing = compose(bundle, {"P1": 0.0}, n_samples=4, cells=cells)
    assert (nothing.table["shift"] == 0).all()
    assert nothing.nearest == (("control", 0.0, 0.0) if MODELS[name].has_shifts else None)
    if MODELS[name].has_shifts:
        assert set(bundle.trained_dosages.index) == set(bundle.conditions.index)
        assert found.nearest[:2] == ("P1", 0.0)


def test_a_treatment_of_svae_plus_is_a_whole_condition(other, screen):
    name, run = other
    if name == "svae-plus":
        assert set(load(run).perturbations.index) == set(screen.data.conditions) - {"control"}


def test_a_frontier_is_trained_and_its_rule_followed(samsvae, screen, quick_tables, tmp_path):
    run = tmp_path / "run"
    code, out, _ = samsvae("train", screen.path, "-o", run, *TINY, "--frontier")
    assert code == 0
    bundle = load(run)
    table = bundle.frontier
    chosen = table[table["chosen"]].iloc[0]
    close = table[table["difference"] >= -table["difference_se"]]
    assert chosen["active"] == close["active"].min()
    assert int(bundle.masks["active"].sum()) == chosen["active"]
    assert bundle.model.config.mask_evidence == chosen["mask_evidence"]
    assert "Sparsity against fit" in bundle.card
    read, *said = [line.split(":")[0] for line in out.splitlines()]
    assert read.endswith("6 perturbations, 2 combinations, labels parted at '+'.")
    assert said[0] == "Dense start, 5 steps; then 6 levels of evidence, 5 each."
    levels = [f"Level {i} of 6" for i in range(1, 7)]
    assert [line for line in said if line.startswith("Level")] == levels
    assert f"\nKept: {chosen['mask_evidence']:g} nats per cell, the sparsest" in out
    assert not (run / "frontier").exists()


def test_values_that_are_not_counts_are_trained_on_where_asked(
    samsvae, screen, tmp_path, quick_tables
):
    path, run = tmp_path / "values.h5ad", tmp_path / "run"
    cells = anndata.read_h5ad(screen.path)
    cells.X = cells.X.toarray() / 7 - 1
    cells.write_h5ad(path)
    assert samsvae("train", path, "-o", run, *TINY)[0] == 2
    assert samsvae("train", path, "-o", run, *TINY, "--likelihood", "gaussian")[0] == 0
    bundle = load(run)
    assert bundle.model.config.likelihood == "gaussian"
    assert samsvae("evaluate", run, "--data", path)[0] == 0
    observed = bundle.observed_shift("P1")
    rows = screen.data.conditions == "P1"
    expected = cells.X[rows].mean(0) - cells.X[screen.data.conditions == "control"].mean(0)
    np.testing.assert_allclose(observed["shift"], expected, atol=1e-5)
    assert compose(bundle, {"P1": 1.0}).table["shift"].notna().all()


def test_a_held_out_combination_is_neither_trained_on_nor_shown_as_trained(
    samsvae, screen, tmp_path, quick_tables
):
    run, listed = tmp_path / "run", tmp_path / "held_out.csv"
    double = next(c for c in sorted(set(screen.data.conditions)) if "+" in c)
    listed.write_text(f"condition\n{double}\n")
    assert samsvae("train", screen.path, "-o", run, *TINY, "--split", listed)[0] == 0
    bundle = load(run)
    assert bundle.conditions.loc[double, ["train", "validation"]].sum() == 0
    kinds = bundle.metrics["average_effects"]["kinds"]
    assert list(kinds) == ["combination not seen in training"]
    assert bundle.metrics["average_effects"]["control_cells"] == "validation"
    assert "unseen" in bundle.card or "not seen" in bundle.card


# The verbs


def test_the_version_is_printed_by_the_module_itself():
    command = [sys.executable, "-m", "samsvae_core", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "samsvae 0.1.0\n"


def test_help_names_every_kind_of_model(samsvae, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = samsvae("train", "--help")[1]
    assert all(f" {name} " in said.replace(",", " ").replace(".", " ") for name in MODELS)


def test_every_verb_is_listed(samsvae):
    _, out, _ = samsvae("--help")
    verbs = [
        "validate",
        "inspect",
        "simulate",
        "train",
        "evaluate",
        "masks",
        "direct",
        "loadings",
        "compose",
        "enrich",
        "gene",
    ]
    for verb in [*verbs, "embed", "bundles", "pack", "unpack", "app"]:
        assert verb in out


def test_simulated_cells_are_valid_and_the_same_for_the_same_seed(samsvae, tmp_path):
    options = ["--cells", 60, "--genes", 12, "--perturbations", 4, "--latents", 2]
    for name in ("one", "same"):
        path = tmp_path / "new" / f"{name}.h5ad"
        code, out, _ = samsvae("simulate", path, *options, "--combinations", 1, "--seed", 5)
        assert code == 0
        assert "60 cells x 12 genes, 4 perturbations, 1 combinations" in out
    one, same = (anndata.io.read_h5ad(tmp_path / "new" / f"{n}.h5ad") for n in ("one", "same"))
    assert (one.X != same.X).nnz == 0
    code, out, _ = samsvae("validate", tmp_path / "new" / "one.h5ad", "--json")
    found = json.loads(out)
    assert (code, found["n_cells"], found["n_genes"], found["n_perturbations"]) == (0, 60, 12, 4)
    code, out, _ = samsvae("validate", tmp_path / "new" / "one.h5ad")
    assert code == 0
    assert "60 cells x 12 genes" in out


def test_inspect_lists_columns_and_validate_cells_of_conditions(samsvae, screen):
    code, out, _ = samsvae("inspect", screen.path, "--json")
    suggested = json.loads(out)["suggested"]
    assert (code, suggested["perturbation_key"], suggested["control"]) == (
        0,
        screen.data.source["perturbation_key"],
        screen.data.control,
    )
    assert "Column 'perturbation'" in samsvae("inspect", screen.path)[1]
    _, out, _ = samsvae("validate", screen.path, "--json")
    conditions = pd.Series(screen.data.conditions).value_counts().to_dict()
    assert json.loads(out)["conditions"] == conditions


def test_too_little_memory_is_a_message(refused, screen, monkeypatch):
    def full(*_, **__):
        raise MemoryError("Unable to allocate 1 TiB")

    monkeypatch.setattr("samsvae_core.data.h5ad.read_cells", full)
    assert "not enough memory here (Unable to allocate 1 TiB)" in refused("validate", screen.path)


def test_a_trained_model_is_a_bundle_with_the_settings_asked_for(trained):
    config = json.loads((trained / "config.json").read_text())
    model = config["model_config"]
    assert (model["n_latent"], model["n_hidden"], model["mask_evidence"]) == (3, 6, 0.16)
    assert config["train_config"]["steps"] == 12
    assert json.loads((trained / "status.json").read_text())["state"] == "finished"
    assert (trained / "manifest.json").exists()


def test_training_says_what_it_did(samsvae, screen, quick_tables, tmp_path):
    parts = pd.DataFrame({"cell": screen.data.cells, "split": screen.parts})
    parts.to_csv(tmp_path / "split.csv", index=False)
    (tmp_path / "genes.txt").write_text("\n".join(screen.data.genes[:30]))
    options = ["--split", tmp_path / "split.csv", "--genes", tmp_path / "genes.txt"]
    options += ["--mask-prior", 0.05, "--epochs", 2, "--batch-size", 100, "--latents", 2]
    run = tmp_path / "run"
    code, out, _ = samsvae("train", screen.path, "-o", run, *options, "--hidden", 4)
    assert code == 0
    assert "epoch 1, step 4: bound" in out
    assert f"Wrote {run}: " in out
    assert "IWELBO" in out
    config = json.loads((run / "config.json").read_text())
    assert config["model_config"]["mask_evidence"] is None
    assert config["train_config"]["anneal"] == 0
    assert config["train_config"]["steps"] == 8  # 2 x 384 training cells / 100, rounded up
    assert pd.read_csv(run / "genes.csv")["gene"].tolist() == list(screen.data.genes[:30])
    kept = pd.read_csv(run / "split.csv").set_index("cell")["split"]
    assert kept.loc[screen.data.cells].tolist() == list(screen.parts)


def test_a_stopped_training_resumes_to_the_same_bundle(
    samsvae, screen, trained, quick_tables, tmp_path, monkeypatch
):
    def stop(progress):
        if progress.epoch == 2:
            raise KeyboardInterrupt

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(cli_train, "progress_line", stop)
        code, _, _ = samsvae("train", screen.path, "-o", run, *TINY)
    assert code not in (0, 2)
    assert json.loads((run / "status.json").read_text())["state"] == "stopped"
    code, _, err = samsvae("masks", run, "-o", tmp_path / "masks.csv")
    assert code == 2
    assert "has not finished" in err
    code, out, _ = samsvae("train", screen.path, "-o", run, "--resume")
    assert code == 0
    assert f"Wrote {run}" in out
    for name in ("weights.safetensors", "masks.csv", "history.csv"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()


def test_evaluation_repeats_the_metrics_of_the_bundle(samsvae, screen, trained, tmp_path):
    path = tmp_path / "metrics.json"
    code, out, _ = samsvae("evaluate", trained, "--data", screen.path, "-o", path)
    assert code == 0
    assert "| SAMS-VAE |" in out
    assert "metrics.json, made on" not in out
    found = json.loads(path.read_text())
    kept = json.loads((trained / "metrics.json").read_text())
    assert kept.pop("validation")["n_cells"] > 0  # of the training, not of test cells
    assert found == kept
    assert {"iwelbo", "average_effects", "baselines", "coverage"} <= set(found)
    code, out, _ = samsvae("evaluate", trained, "--data", screen.path, "--library", "10000")
    assert code == 0


def test_evaluation_says_where_the_bundle_has_other_figures(samsvae, screen, copied):
    kept = json.loads((copied / "metrics.json").read_text())
    kept["coverage"]["single"]["own"] = 0.123
    (copied / "metrics.json").write_text(json.dumps(kept))
    made = json.loads((sign(copied) / "manifest.json").read_text())["created"][:10]
    code, out, _ = samsvae("evaluate", copied, "--data", screen.path)
    assert code == 0
    assert f"The bundle's metrics.json, made on {made}, has instead: 12.3%, " in out
    _, out, _ = samsvae("evaluate", copied, "--data", screen.path, "--seed", "1")
    assert "made on" not in out


@pytest.mark.parametrize(
    ("verb", "columns", "rows"),
    [
        (
            "masks",
            ["perturbation", "mechanism", "probability", "effect", "effect_sd", "active"],
            18,
        ),
        ("loadings", ["mechanism", "gene", "loading", "se", "step"], 120),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_tables_are_written_with_their_columns(
    samsvae, trained, tmp_path, verb, columns, rows, ending
):
    path = tmp_path / f"table.{ending}"
    code, out, _ = samsvae(verb, trained, "-o", path)
    assert code == 0
    assert out == f"Wrote {path}: {rows} rows.\n"
    read = {
        "csv": pd.read_csv,
        "parquet": pd.read_parquet,
        "tsv": lambda p: pd.read_csv(p, sep="\t"),
    }
    table = read[ending](path)
    assert table.columns.tolist()[: len(columns)] == columns
    assert len(table) == rows
    assert sorted(table["mechanism"].unique()) == [0, 1, 2]


def test_a_composition_is_written_with_its_settings(samsvae, trained, tmp_path):
    from samsvae_core.bundle.opening import load

    path = tmp_path / "shift.csv"
    options = ["--without", "M2", "--without", 0, "--samples", 8, "--seed", 3]
    code, out, _ = samsvae("compose", trained, "P1", "P2:0.5", *options, "-o", path)
    assert code == 0
    assert "P1+P2:0.5: A dosage is below the least or above the largest in" in out
    assert (
        "\nP2 was not trained on at 0.5: between none and the least dosage trained on, 1.\n" in out
    )
    bundle = load(trained)
    expected = compose(bundle, {"P1": 1.0, "P2": 0.5}, [0, 2], 8, 3).table.reset_index()
    pd.testing.assert_frame_equal(pd.read_csv(path), expected)
    columns = "gene shift lower upper probability_of_sign through_mechanisms direct"
    columns += (
        " sum_of_singles interaction interaction_lower interaction_upper observed observed_se"
    )
    columns += " calibrated_lower calibrated_upper observed_interaction observed_interaction_se"
    assert pd.read_csv(path).columns.tolist() == columns.split()
    settings = json.loads((tmp_path / "shift.json").read_text())
    assert settings["dosages"] == {"P1": 1.0, "P2": 0.5}
    assert settings["bundle"] == bundle.checksum
    assert settings["support"] == "dosage"
    assert (settings["start_from"], settings["start"]) == (None, "reference control cells")
    n = len(bundle.reference.loc)
    assert settings["n_reference_cells"] == n
    assert f"\nStarts from {n} reference control cells.\n" in out
    near = settings["nearest_condition"]
    assert (
        f"Nearest measured condition: {near['condition']}, {near['distance']:.2f} standard" in out
    )


def test_a_composition_starts_from_the_cells_of_a_condition(samsvae, refused, trained, tmp_path):
    bundle = load(trained)
    condition = bundle.cells["condition"].iloc[0]
    names = bundle.cells.loc[bundle.cells["condition"] == condition, "cell"].tolist()
    path = tmp_path / "shift.csv"
    code, out, _ = samsvae("compose", trained, "P1", "--start-from", condition, "-o", path)
    assert code == 0
    n = len(names)
    assert f"Starts from {n} of the {n} cells of {condition} on the map" in out
    expected = compose(bundle, {"P1": 1.0}, cells=names).table.reset_index()
    pd.testing.assert_frame_equal(pd.read_csv(path), expected)
    settings = json.loads((tmp_path / "shift.json").read_text())
    assert (settings["start_from"], settings["start_cells"]) == (condition, names)
    err = refused("compose", trained, "P1", "--start-from", "NOPE", "-o", tmp_path / "no.csv")
    assert "has the condition 'NOPE'. There are: " in err
    assert not (tmp_path / "no.csv").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KLF1", ("KLF1", 1.0)),
        ("KLF1:0.5", ("KLF1", 0.5)),
        ("HLA:A", ("HLA:A", 1.0)),
        ("A:2", ("A:2", 1.0)),  # a perturbation of its own
        ("A:2:3", ("A:2", 3.0)),
        ("B:2", ("B", 2.0)),
    ],
)
def test_a_dosage_is_a_number_after_the_last_colon(text, expected):
    assert cli_options.parse_dosage(text, {"KLF1", "HLA:A", "HLA", "A:2", "B"}) == expected


def test_enrichment_is_written_as_table_and_workbook(samsvae, tiny, tmp_path):
    code, out, _ = samsvae("enrich", tiny.path, "-o", tmp_path / "e.csv", "--min-size", 6)
    assert code == 0
    table = pd.read_csv(tmp_path / "e.csv")
    columns = "mechanism collection method direction term size overlap es nes odds_ratio"
    columns += " p_value fdr fdr_all leading_edge log2_error fdr_low fdr_high group"
    assert table.columns.tolist() == columns.split()
    assert set(table["method"]) == {"gsea", "ora"}
    assert set(table["collection"]) == {"hallmark"}
    assert table["size"].min() >= 6
    assert f"{len(table)} rows" in out.replace(",", "")
    genes = "\t".join(tiny.genes[:8])
    (tmp_path / "mine.gmt").write_text(
        f"FIRST\tnone\t{genes}\nREST\tnone\t" + "\t".join(tiny.genes[8:])
    )
    code, _, _ = samsvae(
        "enrich", tiny.path, "--gmt", tmp_path / "mine.gmt", "-o", tmp_path / "e.xlsx"
    )
    assert code == 0
    book = openpyxl.load_workbook(tmp_path / "e.xlsx")
    assert {"summary", "notes", "settings"} <= set(book.sheetnames)
    terms = [cell.value for row in book["summary"].iter_rows() for cell in row]
    assert "FIRST" in terms


def test_everything_of_an_enrichment_goes_into_a_folder_or_a_zip(samsvae, tiny, tmp_path):
    code, out, _ = samsvae("enrich", tiny.path, "-o", f"{tmp_path}/out/")
    assert code == 0
    assert "40 of 40 genes are in MSigDB Hallmark" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"enrichment.csv", "methods.md", "leading_edges.gmt", "manifest.json"} <= names
    assert samsvae("enrich", tiny.path, "-o", tmp_path / "out.zip")[0] == 0
    with zipfile.ZipFile(tmp_path / "out.zip") as packed:
        assert set(packed.namelist()) == names
        assert packed.read("enrichment.csv") == (tmp_path / "out" / "enrichment.csv").read_bytes()


def test_the_shift_of_perturbations_is_tested_as_its_own_ranking(samsvae, tiny, tmp_path):
    given = ["--perturbation", "P1", "--perturbation", "P2:0.5", "--min-size", "2"]
    code, _, _ = samsvae("enrich", tiny.path, *given, "-o", tmp_path / "out")
    assert code == 0
    table = pd.read_csv(tmp_path / "out" / "enrichment.csv")
    assert set(table["mechanism"]) == {"P1+P2:0.5"}
    scores = pd.read_csv(tmp_path / "out" / "scores.csv").set_index("gene")["shift"]
    expected = compose(tiny, {"P1": 1.0, "P2": 0.5}).table["shift"]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert "the predicted shift of P1" in (tmp_path / "out" / "methods.md").read_text()


def test_top_genes_can_be_those_certain_to_move_among_a_background(samsvae, tiny, tmp_path):
    (tmp_path / "genes.txt").write_text("\n".join([*tiny.genes[:30], "NO-SUCH-GENE"]))
    code, out, _ = samsvae(
        *["enrich", tiny.path, "-o", tmp_path / "out", "--sign", "0.9", "--effect", "0.05"],
        *["--background", tmp_path / "genes.txt"],
    )
    assert code == 0
    assert "NO-SUCH-GENE" in out
    assert "They stay in the background" in out
    methods = (tmp_path / "out" / "methods.md").read_text()
    assert "probability of sign of at least 0.9" in methods
    assert "31 genes" in methods


def test_a_gene_is_described_by_any_of_its_names(samsvae, tiny, tmp_path):
    code, out, _ = samsvae("gene", tiny.path, tiny.genes[0], "-o", tmp_path / "g.csv")
    assert code == 0
    assert "https://www.ncbi.nlm.nih.gov/gene/" in out
    table = pd.read_csv(tmp_path / "g.csv")
    assert set(table["perturbation"]) == set(tiny.perturbations.index)
    one = compose(tiny, {"P1": 1.0}).table.loc[tiny.genes[0], "shift"]
    assert table.set_index("perturbation").loc["P1", "shift"] == pytest.approx(one)
    alias = annotate([tiny.genes[0]])["aliases"].iloc[0].split("|")[0]
    assert samsvae("gene", tiny.path, alias)[1].startswith(f"{tiny.genes[0]}: ")


def test_loadings_at_several_steps_say_where_the_decoder_bends(samsvae, tiny, tmp_path):
    code, out, _ = samsvae("loadings", tiny.path, "--steps", "-o", tmp_path / "l.csv")
    assert code == 0
    assert "linear. Against the loadings of the whole step" in out
    assert len(pd.read_csv(tmp_path / "l.csv")["multiple"].unique()) == 6


def test_embedded_cells_are_the_same_cells_with_two_states_more(samsvae, screen, trained, tmp_path):
    path = tmp_path / "embedded.h5ad"
    code, _, _ = samsvae("embed", trained, "--data", screen.path, "-o", path)
    assert code == 0
    before, after = anndata.io.read_h5ad(screen.path), anndata.io.read_h5ad(path)
    assert (before.X != after.X).nnz == 0
    pd.testing.assert_frame_equal(before.obs, after.obs)
    basal, shifted = after.obsm["X_samsvae_basal"], after.obsm["X_samsvae_shifted"]
    assert basal.shape == shifted.shape == (600, 3)
    controls = (after.obs["perturbation"] == "control").to_numpy()
    np.testing.assert_array_equal(basal[controls], shifted[controls])
    assert not np.allclose(basal[~controls], shifted[~controls])


def test_cells_are_embedded_whatever_else_their_file_holds(samsvae, screen, trained, tmp_path):
    path = tmp_path / "odd.h5ad"
    path.write_bytes(screen.path.read_bytes())
    with h5py.File(path, "a") as file:
        file["uns/true_mask"].attrs["encoding-type"] = "of the future"
        del file["obsm"]
    code, _, _ = samsvae("embed", trained, "--data", path, "-o", tmp_path / "e.h5ad")
    assert code == 0
    with h5py.File(tmp_path / "e.h5ad") as file:
        assert file["obsm/X_samsvae_basal"].shape == (600, 3)
        assert "true_mask" in file["uns"]


def test_a_file_that_may_not_be_read_is_said(refused, trained, tmp_path, monkeypatch):
    def forbidden(_):
        raise PermissionError(13, "Permission denied", "mine.gmt")

    monkeypatch.setattr(collections, "read_gmt", forbidden)
    err = refused("enrich", trained, "--gmt", "mine.gmt", "-o", tmp_path / "e.csv")
    assert "Permission denied: 'mine.gmt'" in err


def test_bundles_are_listed_and_the_damaged_ones_named(samsvae, copied, tmp_path):
    code, out, _ = samsvae("bundles", copied.parent)
    assert (code, out) == (0, "copied: 6 perturbations, 40 genes, 4 mechanisms\n")
    (copied / "masks.csv").write_text("mine\n")
    code, out, _ = samsvae("bundles", copied.parent)
    assert code == 0
    assert out.startswith("copied: cannot be used. ")
    assert "masks.csv is not the file" in out
    (tmp_path / "empty").mkdir()
    code, out, _ = samsvae("bundles", tmp_path / "empty")
    assert out.startswith("No bundles in")


def test_a_folder_to_list_bundles_in_has_to_be_there(refused, tmp_path):
    assert "absent is not a folder. Name one that holds" in refused("bundles", tmp_path / "absent")


def test_a_bundle_is_unpacked_once(samsvae, refused, copied, tmp_path):
    assert samsvae("pack", copied, "-o", tmp_path / "mine.zip")[0] == 0
    out = tmp_path / "out"
    assert samsvae("unpack", tmp_path / "mine.zip", out)[1] == f"Wrote {out / 'copied'}.\n"
    assert "copied exists already, and is the same bundle" in refused(
        "unpack", tmp_path / "mine.zip", out
    )


def test_help_says_how_many_perturbations_are_composed(samsvae):
    said = samsvae("compose", "--help")[1].replace("│", " ")
    assert "NAME or NAME:DOSAGE, any number of them." in " ".join(said.split())


# Mistakes


def empty(folder):
    return not any(folder.iterdir())


def test_a_file_that_is_no_h5ad_is_refused(refused, tmp_path):
    (tmp_path / "cells.h5ad").write_text("cell,gene\n")
    run = tmp_path / "run"
    assert "not an .h5ad file" in refused("validate", tmp_path / "cells.h5ad")
    assert "not an .h5ad file" in refused("train", tmp_path / "cells.h5ad", "-o", run, *TINY)
    assert "There is no file" in refused("validate", tmp_path / "absent.h5ad")
    assert not run.exists()


def test_an_unknown_perturbation_is_answered_with_the_nearest(refused, trained, tmp_path):
    (tmp_path / "out").mkdir()
    err = refused("compose", trained, "p1", "-o", tmp_path / "out" / "a.csv")
    assert "no perturbation 'p1'" in err
    assert "Did you mean P1?" in err
    assert empty(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["P1:-1"], "dosage of P1 is -1.0"),
        (["P1:x"], "The dosage of P1 is 'x'; expected a number after the colon, such as P1:0.5"),
        (["X:x"], "no perturbation 'X:x'"),
        (["P1:nan"], "dosage of P1 is nan"),
        (["P1", "--without", "9"], "no mechanism 9"),
        (["P1", "--without", "first"], "--without is 'first'; expected a number such as 0 or M0"),
        (["P1", "P1:0.5"], "named twice"),
    ],
)
def test_a_composition_that_makes_no_sense_writes_nothing(
    refused, trained, tmp_path, arguments, message
):
    (tmp_path / "out").mkdir()
    assert message in refused("compose", trained, *arguments, "-o", tmp_path / "out" / "a.csv")
    assert empty(tmp_path / "out")


@pytest.mark.parametrize("verb", ["masks", "loadings", "compose", "enrich"])
def test_a_table_of_unknown_ending_is_refused_before_anything_is_written(
    refused, trained, tmp_path, verb
):
    (tmp_path / "out").mkdir()
    more = ["P1"] if verb == "compose" else []
    for name in ("table.doc", "table.json", *(["table"] if verb != "enrich" else [])):
        err = refused(verb, trained, *more, "-o", tmp_path / "out" / name)
        assert "must end in ." in err
        assert ".csv, .tsv" in err
    assert empty(tmp_path / "out")


def test_an_output_that_exists_is_refused_and_left_alone(refused, screen, trained, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("mine")
    for arguments in (
        ["masks", trained, "-o", path],
        ["loadings", trained, "-o", path],
        ["compose", trained, "P1", "-o", path],
        ["enrich", trained, "-o", path],
        ["embed", trained, "--data", screen.path, "-o", path],
        ["evaluate", trained, "--data", screen.path, "-o", path],
        ["simulate", path],
        ["train", screen.path, "-o", path],
    ):
        assert "exists already" in refused(*arguments), arguments
    assert path.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["mine.csv"]


def test_settings_that_exist_are_refused_and_no_table_is_written(refused, trained, tmp_path):
    (tmp_path / "shift.json").write_text("{}")
    err = refused("compose", trained, "P1", "-o", tmp_path / "shift.csv")
    assert "shift.json exists already" in err
    assert [p.name for p in tmp_path.iterdir()] == ["shift.json"]


def test_an_output_below_a_regular_file_is_refused(refused, screen, trained, tmp_path):
    (tmp_path / "file").write_text("no folder")
    below = tmp_path / "file" / "deep"
    for arguments in (
        ["masks", trained, "-o", below / "a.csv"],
        ["compose", trained, "P1", "-o", below / "a.csv"],
        ["simulate", below / "a.h5ad"],
        ["train", screen.path, "-o", below / "run", *TINY],
    ):
        assert "Choose another place" in refused(*arguments), arguments
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_bad_gene_sets_are_named(refused, trained, tmp_path):
    out = ["-o", tmp_path / "e.csv"]
    err = refused("enrich", trained, "--collection", "hallmarks", *out)
    assert "Unknown collection 'hallmarks'; choose one of" in err
    (tmp_path / "mine.gmt").write_text("GOOD\tnone\tSTAT1\tIRF1\nBAD\n")
    assert "line 2" in refused("enrich", trained, "--gmt", tmp_path / "mine.gmt", *out)
    assert "no mechanism 9" in refused("enrich", trained, "--mechanism", 9, *out)
    assert "expected a probability" in refused("enrich", trained, "--sign", "0.2", *out)
    both = ["--mechanism", "0", "--perturbation", "P1"]
    assert "not both" in refused("enrich", trained, *both, *out)
    assert "goes with --sign" in refused("enrich", trained, "--effect", "0.2", *out)
    twice = ["--perturbation", "P1", "--perturbation", "P1:2"]
    assert "named twice" in refused("enrich", trained, *twice, *out)
    assert "must end in .xlsx" in refused("enrich", trained, "-o", tmp_path / "e.txt")
    assert "Did you mean" in refused("gene", trained, "ADARX")
    (tmp_path / "other.gmt").write_text("OTHER\tnone\t" + "\t".join(f"X{i}" for i in range(20)))
    err = refused("enrich", trained, "--gmt", tmp_path / "other.gmt", *out)
    assert "0 of 40 genes are in other" in err
    twice = ["--collection", "hallmark"] * 2
    assert "Two collections are called hallmark" in refused("enrich", trained, *twice, *out)
    assert not (tmp_path / "e.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "transformer"], "--model is 'transformer'; choose one of sams-vae, corr"),
        (["--device", "tpu"], "choose one of auto, cpu, cuda"),
        (["--epochs", "2"], "--steps is 12 and --epochs 2: both say how long to train. Give one"),
        (["--mask-prior", "1.5"], "expected a probability between 0 and 1"),
        (["--learning-rate", "inf"], "a learning rate above 0"),
        (["--learning-rate", "0"], "a learning rate above 0"),
        (["--mask-evidence", "inf"], "expected finite numbers"),
        (["--encoder", "wide"], "--encoder is 'wide'; choose one of correlated, mean-field"),
        (["--likelihood", "poisson"], "choose one of counts, gaussian"),
        (["--model", "cpa-vae", "--frontier"], "which CPA-VAE with these settings does not use"),
        (["--frontier", "--mask-prior", "0.05"], "Leave one of them out"),
        (["--split", "absent.csv"], "There is no split 'absent.csv', and no such file"),
        (["--genes", "absent.txt"], "There is no file absent.txt"),
        (["--top-genes", "99"], "--top-genes must be from 1 to 40"),
        (["--perturbation-key", "guide"], "guide"),
        (["--control", "DMSO"], "DMSO"),
        (["--layer", "counts"], "no layer 'counts'"),
        (["--resume"], "There is no run in"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_anything_is_written(
    refused, screen, tmp_path, options, message
):
    assert message in refused("train", screen.path, "-o", tmp_path / "run", *TINY, *options)
    assert empty(tmp_path)


def test_a_gpu_that_is_not_there_is_said(refused, screen, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    err = refused("train", screen.path, "-o", tmp_path / "run", "--device", "cuda")
    assert "torch finds no CUDA GPU here. Use --device cpu" in err
    assert cli_options.chosen_device("auto") == torch.device("cpu")
    assert empty(tmp_path)


def test_a_split_without_validation_cells_is_refused(refused, screen, tmp_path):
    parts = np.where(screen.parts == "validation", "test", screen.parts)
    pd.DataFrame({"cell": screen.data.cells, "split": parts}).to_csv(
        tmp_path / "s.csv", index=False
    )
    err = refused("train", screen.path, "-o", tmp_path / "run", "--split", tmp_path / "s.csv")
    assert "no validation cells" in err
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_resumed(refused, screen, trained):
    assert "is finished" in refused("train", screen.path, "-o", trained, "--resume")


def test_a_damaged_or_foreign_bundle_is_refused_by_every_verb(refused, screen, copied, tmp_path):
    (copied / "weights.safetensors").write_bytes(b"")
    out = tmp_path / "out"
    for folder, message in ((copied, "its checksum differs"), (tmp_path, "is no bundle")):
        for arguments in (
            ["masks", folder, "-o", out / "a.csv"],
            ["loadings", folder, "-o", out / "a.csv"],
            ["compose", folder, "P1", "-o", out / "a.csv"],
            ["enrich", folder, "-o", out / "a.csv"],
            ["embed", folder, "--data", screen.path, "-o", out / "a.h5ad"],
            ["evaluate", folder, "--data", screen.path, "-o", out / "a.json"],
        ):
            assert message in refused(*arguments), arguments
    assert not out.exists()


def test_cells_the_bundle_does_not_know_are_refused(samsvae, refused, trained, tmp_path):
    other = tmp_path / "other.h5ad"
    samsvae("simulate", other, "--cells", 60, "--genes", 12, "--perturbations", 4, "--latents", 2)
    before = sorted(p.name for p in tmp_path.iterdir())
    for verb, out in (("embed", "a.h5ad"), ("evaluate", "a.json")):
        err = refused(verb, trained, "--data", other, "-o", tmp_path / out)
        assert "Use the file the bundle was trained on" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_usage_mistakes_end_with_two(samsvae):
    for verb in ("masks", "loadings", "compose"):
        said = samsvae(verb, "--help")[1].replace("│", " ")
        assert "such as mine.csv" in " ".join(said.split())
    for arguments in (["fly"], ["masks"], ["simulate", "a.h5ad", "--cells", "0"]):
        code, _, err = samsvae(*arguments)
        assert code == 2
        assert "Usage" in err


@pytest.mark.parametrize(
    ("option", "known"), [("--library", "data, 10000"), ("--reference", "test, all")]
)
def test_unknown_ways_to_evaluate_are_refused(refused, screen, trained, option, known):
    assert known in refused("evaluate", trained, "--data", screen.path, option, "guess")


def test_an_app_folder_that_is_none_is_refused(refused, tmp_path):
    assert "is not a folder" in refused("app", tmp_path / "absent")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return int(free.getsockname()[1])


def test_a_port_that_is_taken_or_none_is_told(samsvae, refused, monkeypatch):
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        port = other.getsockname()[1]
        assert f"Port {port} is taken" in refused("app", "--port", port)
        monkeypatch.setenv("STREAMLIT_SERVER_PORT", str(port))
        assert f"Port {port} is taken" in refused("app")
    code, _, err = samsvae("app", "--port", 99999)
    assert code == 2
    assert "65535" in err


def answers(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("localhost", port)) == 0


def test_a_signal_ends_the_app_and_frees_its_port(monkeypatch):
    monkeypatch.setenv("STREAMLIT_SERVER_HEADLESS", "true")
    port = free_port()
    command = [sys.executable, "-m", "samsvae_core", "app", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(1200):
                if answers(port) or server.poll() is not None:
                    break
                time.sleep(0.1)
            assert answers(port)
            server.terminate()
            server.wait(60)
        finally:
            server.kill()
    assert not answers(port)


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_what_is_trained_in_the_app_goes_to_its_folder(samsvae, tmp_path, monkeypatch, given):
    seen = {}

    def served(program, command, env):
        seen.update(env)

    monkeypatch.delenv("SAMSVAE_RUNS")
    if given:
        monkeypatch.setenv("SAMSVAE_RUNS", given)
    monkeypatch.setattr(cli.os, "execve", served)
    monkeypatch.chdir(".")  # so that where it goes is left again
    assert samsvae("app", tmp_path, "--port", free_port())[0] == 0
    assert seen["SAMSVAE_MODELS"] == str(tmp_path)
    assert seen["SAMSVAE_RUNS"] == (given or str(tmp_path))


# Structure


def test_trainings_are_compared_and_known_groups_looked_for(samsvae, trained, tiny, tmp_path):
    listed = tmp_path / "groups.csv"
    names = load(trained).perturbations.index
    rows = "".join(f"{name},{'early' if i < 3 else 'late'}\n" for i, name in enumerate(names))
    listed.write_text(f"perturbation,group\n{rows}")
    code, out, _ = samsvae("structure", trained, tiny.path, "--groups", listed)
    assert code == 0
    assert "6 perturbations in 2 groups, 1000 permutations" in out
    assert "active entries agree with F1" in out
    code, out, _ = samsvae("structure", trained, trained)
    assert "F1 1.00, Jaccard index 1.00" in out


@pytest.mark.parametrize(("active", "said"), [(True, "all"), (False, "no")])
def test_masks_where_all_or_nothing_is_active_are_not_said_to_agree(
    samsvae, tiny, copied, active, said, monkeypatch
):
    monkeypatch.setattr(Bundle, "check", lambda bundle: None)  # such masks are made for the test
    masks = load(tiny.path).masks.assign(active=active)
    masks.to_csv(copied / "masks.csv", index=False)
    sign(copied)
    code, out, _ = samsvae("structure", tiny.path, copied)
    assert code == 0
    assert f"{copied}: {said} entries are active, so that agreement with it means nothing" in out
    assert f"{tiny.path}: " not in out
    code, out, _ = samsvae("structure", copied, copied)
    assert (code, "nan" in out) == (0, False)


def test_structure_needs_something_to_compare(refused, trained, tmp_path):
    assert "Name two bundles or more" in refused("structure", trained)
    listed = tmp_path / "groups.csv"
    listed.write_text("name,set\nP1,a\n")
    assert "must have columns perturbation, group" in refused(
        "structure", trained, "--groups", listed
    )
    listed.write_text("perturbation,group\nP1,a\nP2,a\nX,b\nY,b\n")
    assert "at least 2 groups" in refused("structure", trained, "--groups", listed)


@pytest.mark.parametrize(
    ("load", "given", "expected"),
    [
        ("0.5 0.5 0.5 3/512 99", {}, {"OMP_WAIT_POLICY": "passive"}),
        ("0.5 0.5 0.5 3/512 99", {"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
        ("2.5 0.5 0.5 1/512 99", {}, {}),
        ("damaged", {}, {}),
    ],
)
def test_threads_that_wait_leave_their_core_to_others(monkeypatch, tmp_path, load, given, expected):
    (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr("samsvae_core.system.machine.LOADAVG", tmp_path / "loadavg")
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli.os, "environ", given)
    cli.main()
    assert given == expected


@pytest.mark.parametrize(("before", "said"), [("cuda:0", 1), ("cpu", 0)])
def test_a_run_of_a_gpu_that_goes_on_without_one_says_so(tmp_path, capsys, before, said):
    (tmp_path / "status.json").write_text(json.dumps({"device": before, "epoch": 7}))
    cli_train.say_where(tmp_path, torch.device("cpu"))
    told = capsys.readouterr().out
    assert told.count("Up to epoch 7 this run was trained on a GPU; it goes on on the CPU.") == said


def test_train_keeps_counts_on_disk_and_says_so_also_when_it_goes_on(
    samsvae, refused, screen, quick_tables, tmp_path
):
    run = tmp_path / "run"
    assert "--counts-on is 'tape'" in refused(
        "train", screen.path, "-o", run, "--counts-on", "tape"
    )
    command = ["train", screen.path, "-o", run, *TINY, "--counts-on", "disk"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("samsvae_core.training.loop.finished", lambda *_: True)
        patch.setattr("samsvae_core.pipeline.train.build_bundle", stopped)
        code, out, _ = samsvae(*command)
    assert code
    assert out.startswith("Counts are kept on disk while this runs")
    code, out, _ = samsvae("train", screen.path, "-o", run, "--resume")
    assert (code, out.count("Counts are kept on disk")) == (0, 1)
    assert not list(run.glob("tmp*"))


def stopped(*_):
    raise KeyboardInterrupt


# What labels of others do to a terminal

ESCAPES = "\x1b[31mred\x07\x9b2J\u202e"


def test_item_20_escapes_in_labels_do_not_reach_the_terminal(samsvae, refused, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.repeat(["control", ESCAPES, "B"], 30)
    anndata.AnnData(
        rng.poisson(3.0, (90, 12)).astype(np.float32),
        obs=pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(90)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(12)]),
    ).write_h5ad(tmp_path / "cells.h5ad")
    for command in ("validate", "inspect"):
        code, out, err = samsvae(command, tmp_path / "cells.h5ad")
        assert code == 0
        assert r"\x1b[31mred" in out
        assert not set("\x1b\x07\x9b\u202e") & set(out + err)
    said = refused("validate", tmp_path / "cells.h5ad", "--perturbation-key", ESCAPES)
    assert r"\x1b[31mred\x07" in said
    assert not set("\x1b\x07\x9b\u202e") & set(said)


def test_item_20_texts_that_can_be_printed_stay_as_they_are():
    text = "TNF-α ± 0.1\n\tIFNγ: 名 – “a” é"
    assert cli_options.printable(text) == text


def test_item_20_everything_is_told_in_one_way():
    core = Path(cli.__file__).parents[1]
    sources = {path: path.read_text() for path in core.rglob("*.py")}
    assert sum(source.count("typer.echo") for source in sources.values()) == 1
    assert [path for path, source in sources.items() if "sys.stdout" in source] == []


def test_item_20_warnings_are_told_so_too(capsys):
    record = logging.LogRecord("a", logging.WARNING, "", 0, "%s is gone", (ESCAPES,), None)
    assert cli_options.Told().format(record) == r"\x1b[31mred\x07\x9b2J\u202e is gone"


# Direct effects

DIRECT = ["perturbation", "gene", "effect", "effect_sd", "probability", "active", "own_target"]
DIRECT += ["evidence", "evidence_se", "evidence_n"]


def test_direct_effects_are_a_table(samsvae, trained, tmp_path):
    for options, name in (([], "all.csv"), (["--active"], "active.csv")):
        code, out, _ = samsvae("direct", trained, "-o", tmp_path / name, *options)
        assert code == 0
        assert name in out
    bundle = load(trained)
    whole = pd.read_csv(tmp_path / "all.csv")
    assert list(whole) == DIRECT
    pd.testing.assert_frame_equal(whole, bundle.direct)
    active = pd.read_csv(tmp_path / "active.csv")
    assert list(active) == DIRECT
    stands_out = whole["probability"] > 0.5
    assert len(active) == stands_out.sum() < len(whole)
    assert active["gene"].tolist() == whole.loc[stands_out, "gene"].tolist()


def test_a_model_without_direct_effects_says_so(samsvae, refused, screen, quick_tables, tmp_path):
    run, table = tmp_path / "plain", tmp_path / "direct.csv"
    options = [*TINY, "--direct-effects", "none"]
    assert samsvae("train", screen.path, "-o", run, *options)[0] == 0
    assert not (run / "direct.csv").exists()
    assert "plain has no direct effects: it was trained without them" in refused(
        "direct", run, "-o", table
    )
    assert not table.exists()
    assert samsvae("compose", run, "P1", "-o", tmp_path / "one.csv")[0] == 0
    assert samsvae("compose", run, "P1", "--no-direct", "-o", tmp_path / "two.csv")[0] == 0
    one, two = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("one", "two"))
    np.testing.assert_array_equal(one["shift"], two["shift"])
    np.testing.assert_allclose(one["shift"], one["through_mechanisms"], atol=1e-6)


def test_a_kind_of_direct_effects_that_is_none_is_refused(refused, screen, tmp_path):
    run = tmp_path / "run"
    said = refused("train", screen.path, "-o", run, *TINY, "--direct-effects", "own")
    assert "--direct-effects" in said
    for kind in ("sparse", "own-target", "none"):
        assert kind in said
    assert not run.exists()


@pytest.mark.parametrize("model", ["svae-plus", "conditional-vae"])
def test_a_model_that_can_have_no_direct_effects_refuses_them_before_it_trains(
    refused, screen, tmp_path, model
):
    run = tmp_path / "run"
    options = ["--model", model, "--direct-effects", "sparse"]
    said = refused("train", screen.path, "-o", run, *TINY, *options)
    assert f"--direct-effects is sparse, and {MODELS[model].title} " in said
    assert "Leave it out, or choose another model." in said
    assert not run.exists()


@pytest.fixture
def untrained(tiny, monkeypatch):
    """Make trainings end where they would begin."""
    monkeypatch.setattr(pipeline, "resume", lambda *_: tiny)
    monkeypatch.setattr(cli_train, "say_finished", lambda *_: None)


def config_of(run):
    return json.loads((run / "config.json").read_text())["model_config"]


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ([], "sparse"),
        (["--mask-prior", "0.05"], "none"),
        (["--mask-prior", "0.05", "--direct-effects", "sparse"], "sparse"),
        (["--direct-effects", "own-target"], "own-target"),
        (["--model", "svae-plus"], "none"),
        (["--model", "conditional-vae"], "none"),
        (["--model", "cpa-vae"], "sparse"),
    ],
)
def test_the_library_and_the_command_line_make_the_same_model(
    samsvae, screen, untrained, tmp_path, options, kind
):
    by_line, by_name = tmp_path / "by-line", tmp_path / "by-name"
    assert samsvae("train", screen.path, "-o", by_line, *TINY, *options)[0] == 0
    asked = {"n_latent": 3, "n_hidden": 6}
    given = dict(zip(options[::2], options[1::2], strict=True))
    if "--mask-prior" in given:
        asked |= {"mask_evidence": None, "mask_prior": float(given["--mask-prior"])}
    if "--direct-effects" in given:
        asked["direct_effects"] = given["--direct-effects"]
    name = given.get("--model", "sams-vae")
    pipeline.train(screen.data, screen.parts, by_name, asked, model=name)
    assert config_of(by_line) == config_of(by_name)
    assert config_of(by_line)["direct_effects"] == kind


def test_a_prediction_without_direct_effects_is_through_mechanisms_alone(
    samsvae, trained, tmp_path
):
    for name, options in (("with", []), ("without", ["--no-direct"])):
        path = tmp_path / f"{name}.csv"
        assert samsvae("compose", trained, "P1", "P2", *options, "-o", path)[0] == 0
    whole, without = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("with", "without"))
    np.testing.assert_allclose(whole["through_mechanisms"] + whole["direct"], whole["shift"])
    assert whole["direct"].abs().max() > 0
    assert (without["direct"] == 0).all()
    np.testing.assert_allclose(without["shift"], without["through_mechanisms"], atol=1e-12)
    np.testing.assert_allclose(without["shift"], whole["through_mechanisms"], atol=1e-5)
    settings = json.loads((tmp_path / "without.json").read_text())
    assert settings["direct_effects"] is False
    assert json.loads((tmp_path / "with.json").read_text())["direct_effects"] is True


def test_much_memory_is_told_before_a_training(samsvae, screen, untrained, tmp_path, monkeypatch):
    assert "memory" not in samsvae("train", screen.path, "-o", tmp_path / "small", *TINY)[1]
    monkeypatch.setattr(pipeline, "memory_needed", lambda *sizes: 3e9 if sizes[-1] else 2e9)
    less = {"sparse": "3 GB.*own-target or none takes", "own-target": "2 GB.*effects none takes"}
    for kind, words in less.items():
        options = [*TINY, "--direct-effects", kind]
        said = samsvae("train", screen.path, "-o", tmp_path / kind, *options)[1]
        start = "Direct effects of 6 perturbations on 40 genes take about "
        (line,) = [line for line in said.splitlines() if line.startswith(start)]
        assert re.search(words, line)
    options = [*TINY, "--direct-effects", "none"]
    assert "memory" not in samsvae("train", screen.path, "-o", tmp_path / "none", *options)[1]
