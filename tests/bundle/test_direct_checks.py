"""Tables of direct effects are those of the weights, or their bundle is refused."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from samsvae_core.analysis.direct import direct_table, shared_table
from samsvae_core.bundle.archive import pack, unpack
from samsvae_core.bundle.layout import read_json
from samsvae_core.bundle.opening import load
from samsvae_core.models.samsvae import SAMSVAE
from tests.bundle.test_bundle import assert_refused, edit_json, sign

BEFORE = Path(__file__).parents[1] / "before" / "model.zip"


@pytest.fixture
def folder(copied):
    """Return a bundle with entries of three perturbations, an own target, and a shared one."""
    weights = load_file(copied / "weights.safetensors")
    model = SAMSVAE(load(copied).model.config)
    weights |= {
        "direct.row": torch.tensor([0, 0, 2, 5, 6]),
        "direct.gene": torch.tensor([3, 9, 39, 0, 4]),
        "direct.mean": torch.tensor([-1.5, 0.02, 0.7, 1.0, 0.3]),
        "direct.sd": torch.tensor([0.1, 0.01, 0.2, 0.1, 0.05]),
        "direct.probability": torch.tensor([0.99, 0.1, 0.4, 0.9, 0.8]),
    }
    save_file(weights, copied / "weights.safetensors")
    model.load_state_dict(weights)
    genes = pd.read_csv(copied / "genes.csv")["gene"].tolist()
    names = pd.read_csv(copied / "perturbations.csv")["perturbation"].tolist()
    unknown = {"evidence": np.nan, "evidence_se": np.nan, "evidence_n": 0}
    direct_table(model, names, genes).assign(**unknown).to_csv(copied / "direct.csv", index=False)
    shared_table(model, genes).to_csv(copied / "shared.csv", index=False)
    return sign(copied)


def edited(folder, file, edit):
    """Change a table of the bundle, and sign it again."""
    table = pd.read_csv(folder / file)
    edit(table).to_csv(folder / file, index=False)
    return sign(folder)


def set_to(column, value, row=0):
    def change(table):
        table.loc[row, column] = value
        return table

    return change


def test_tables_are_the_entries_of_the_weights(folder):
    bundle = load(folder)
    table = bundle.direct
    genes = bundle.genes
    assert table["perturbation"].tolist() == ["P1", "P1", "P3", "P6"]
    assert table["gene"].tolist() == [genes[g] for g in (3, 9, 39, 0)]
    np.testing.assert_allclose(table["effect"], [-1.5, 0.02, 0.7, 1.0], rtol=1e-6)
    assert table["active"].tolist() == [True, False, False, True]
    assert not table["own_target"].any()
    assert bundle.shared["gene"].tolist() == [genes[4]]
    np.testing.assert_allclose(bundle.shared["effect"], [0.3], rtol=1e-6)
    assert list(bundle.shared) == ["gene", "effect", "effect_sd", "probability"]


@pytest.mark.parametrize(
    ("file", "column", "value"),
    [
        ("direct.csv", "effect", -1.4),
        ("direct.csv", "effect_sd", 0.2),
        ("direct.csv", "probability", 0.8),
        ("direct.csv", "perturbation", "P2"),
        ("direct.csv", "active", False),
        ("direct.csv", "own_target", True),
        ("shared.csv", "effect", 0.4),
        ("shared.csv", "probability", 0.9),
    ],
)
def test_a_table_with_another_value_is_refused(folder, file, column, value):
    edited(folder, file, set_to(column, value))
    assert_refused(folder, f"{file} does not follow from the weights: its column {column}")


@pytest.mark.parametrize("file", ["direct.csv", "shared.csv"])
def test_a_table_with_another_gene_is_refused(folder, file):
    other = load(folder).genes[20]
    edited(folder, file, set_to("gene", other))
    assert_refused(folder, f"{file} does not follow from the weights: its column gene")


def test_a_table_with_a_row_less_or_twice_or_unknown_names_is_refused(folder):
    whole = (folder / "direct.csv").read_bytes()
    edited(folder, "direct.csv", lambda table: table[1:])
    assert_refused(folder, "direct.csv has 3 rows; the weights hold 4")
    (folder / "direct.csv").write_bytes(whole)
    edited(folder, "direct.csv", lambda table: pd.concat([table, table[:1]]))
    assert_refused(folder, "direct.csv tells the same perturbation and gene more than once")
    (folder / "direct.csv").write_bytes(whole)
    edited(folder, "direct.csv", set_to("gene", "NOBODY"))
    assert_refused(folder, "column gene holds NOBODY, unknown to this bundle")
    (folder / "direct.csv").write_bytes(whole)
    edited(folder, "direct.csv", set_to("probability", 1.5))
    assert_refused(folder, "should hold numbers from 0 to 1")


@pytest.mark.parametrize("file", ["direct.csv", "shared.csv"])
def test_a_table_that_is_missing_is_told(folder, file):
    (folder / file).unlink()
    assert_refused(folder, f"lacks '{file}', which its manifest lists")


def test_a_bundle_that_does_not_list_its_tables_is_refused(folder):
    for file in ("direct.csv", "shared.csv"):
        (folder / file).unlink()
    files = read_json(folder / "manifest.json")["files"]
    kept = {name: checksum for name, checksum in files.items() if (folder / name).exists()}
    edit_json(folder / "manifest.json", files=kept)
    assert_refused(folder, "direct.csv and shared.csv belong to a model with direct effects")


# Weights


@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("gene", 1, 2, "not of known perturbations and genes, once and sorted"),  # unsorted
        ("row", 4, 7, "not of known perturbations and genes, once and sorted"),
        ("row", 0, -1, "not of known perturbations and genes, once and sorted"),
        ("gene", 1, 3, "not of known perturbations and genes, once and sorted"),  # twice
        ("gene", 2, 40, "not of known perturbations and genes, once and sorted"),
        ("sd", 0, -0.1, "spreads below 0"),
        ("probability", 0, 1.1, "probabilities outside 0 to 1"),
        ("mean", 0, float("nan"), "direct.mean holds numbers that are not finite"),
        ("own", 1, 40, "own targets are not among the genes"),
        ("own", 1, -2, "own targets are not among the genes"),
        ("own", 1, 4, "own targets in the weights are not the genes that perturbations name"),
    ],
)
def test_weights_with_entries_that_cannot_be_are_refused(folder, part, place, value, message):
    weights = load_file(folder / "weights.safetensors")
    weights[f"direct.{part}"][place] = value
    save_file(weights, folder / "weights.safetensors")
    assert_refused(sign(folder), message)


def test_weights_with_entries_of_unequal_number_are_refused(folder):
    weights = load_file(folder / "weights.safetensors")
    weights["direct.mean"] = weights["direct.mean"][:3].clone()
    save_file(weights, folder / "weights.safetensors")
    assert_refused(sign(folder), r"weights direct.mean have the shape \[3\], expected \[5\]")


# Elsewhere and before


def test_it_comes_back_from_its_zip(folder, tmp_path):
    whole = pack(folder, tmp_path / "packed.zip").read_bytes()
    path = unpack(io.BytesIO(whole), tmp_path / "models", "given")
    one, other = load(folder), load(path)
    pd.testing.assert_frame_equal(one.direct, other.direct)
    pd.testing.assert_frame_equal(one.shared, other.shared)
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value)


def test_a_bundle_of_before_has_no_direct_effects(tmp_path):
    with BEFORE.open("rb") as file:
        path = unpack(file, tmp_path, "model")
    bundle = load(path)
    assert bundle.model.config.direct_effects == "none"
    assert bundle.model.direct is None
    assert bundle.direct is None
    assert bundle.shared is None
