import hashlib
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from samsvae_core.bundle import bundle as bundles
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.layout import BundleError, list_bundles, models_folder, read_csv, read_json
from samsvae_core.bundle.opening import load
from samsvae_core.bundle.readings import dosages_of
from samsvae_core.data.cells import DataError
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import SAMSVAE
from samsvae_core.pipeline import train
from samsvae_core.training.config import TrainConfig
from tests.oracles import log_proportions


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sign(folder):
    """Make the manifest agree with the files now in the folder."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def edit_model_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    edit_json(folder / "config.json", model_config={**config["model_config"], **changes})
    return sign(folder)


def assert_refused(folder, message):
    with pytest.raises(BundleError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


# Round trip


def test_a_bundle_holds_what_was_trained(tiny, screen):
    again = load(tiny.path)
    assert again.genes == list(screen.data.genes)
    assert again.perturbations.index.tolist() == list(screen.data.perturbations)
    assert again.control == screen.data.control == "control"
    assert again.name == "tiny"
    x = Cells(screen.data, torch.device("cpu")).batch(torch.arange(20))
    shift = x.D[None] @ (tiny.model.mask_logits.sigmoid() * tiny.model.embedding_loc)
    for one, other in zip(
        tiny.model.encode(x.x, shift).mean, again.model.encode(x.x, shift).mean, strict=True
    ):
        assert torch.equal(one, other)
    assert not any(p.requires_grad for p in again.model.parameters())


def test_the_final_checkpoint_and_the_bundle_predict_the_same(tiny, screen):
    """Reordering and flipping the bundle's mechanisms must not change any prediction."""
    last = load_file(tiny.path / "checkpoints" / "last.safetensors")
    model = bundles.SAMSVAE(tiny.model.config)
    weights = {n.removeprefix("model."): v for n, v in last.items() if n.startswith("model.")}
    model.load_state_dict(weights)
    batch = Cells(screen.data, torch.device("cpu")).batch(torch.arange(50))
    levels = []
    with torch.inference_mode():
        for each in (model, tiny.model):
            shift = batch.D[None] @ (each.mask_logits.sigmoid() * each.embedding_loc)
            z = each.encode(batch.x, shift).loc + shift
            levels.append(log_proportions(each, z))
    torch.testing.assert_close(*levels, rtol=1e-4, atol=1e-4)


def test_the_checksum_is_that_of_the_manifest(tiny):
    content = (tiny.path / "manifest.json").read_bytes()
    assert tiny.checksum == hashlib.sha256(content).hexdigest()


def test_every_table_has_its_columns(tiny):
    n = len(tiny.genes), len(tiny.perturbations), tiny.model.config.n_latent
    assert len(tiny.masks) == n[1] * n[2]
    assert len(tiny.loadings) == n[0] * n[2]
    assert tiny.masks["active"].dtype == bool
    assert tiny.collections == ["hallmark"]
    assert {"mechanism", "term", "fdr", "nes"} <= set(tiny.enrichment("hallmark").table)
    assert len(tiny.history) == tiny.history["epoch"].iloc[-1]
    assert set(tiny.cells["split"]) <= {"train", "validation", "test"}
    assert set(tiny.perturbations_umap["perturbation"]) == set(tiny.perturbations.index)
    assert tiny.card.startswith("# Model card")


def test_the_manifest_lists_every_table_with_its_checksum(tiny):
    files = tiny.manifest["files"]
    assert set(layout.FILES) <= set(files)
    for name, checksum in files.items():
        assert hashlib.sha256((tiny.path / name).read_bytes()).hexdigest() == checksum
    assert tiny.manifest["data"]["file"] == "screen.h5ad"
    assert tiny.manifest["versions"]["torch"] == torch.__version__


def test_genes_and_perturbations_called_like_values_keep_their_names(
    screen, quick_tables, tmp_path
):
    odd = [
        "NA",
        "TRUE",
        "1",
        "nan",
        "1e5",
        "007",
        "null",
        "-",
        "None",
        "False",
        "2020-01-01",
        "3.0",
    ]
    genes = np.array(odd + [f"G{i}" for i in range(28)])
    names = np.array(["007", "1", "1e5", "NA", "TRUE", "nan"])
    to = dict(zip(screen.data.perturbations, names, strict=True))
    conditions = np.array(
        ["+".join(to.get(part, part) for part in c.split("+")) for c in screen.data.conditions]
    )
    data = replace(screen.data, genes=genes, perturbations=names, conditions=conditions)
    config = TrainConfig(steps=2, particles=1)
    made = train.train(data, screen.parts, tmp_path / "odd", {"n_latent": 2, "n_hidden": 4}, config)
    made = load(made.path)
    assert made.genes == genes.tolist()
    assert made.perturbations.index.tolist() == names.tolist()
    assert set(made.conditions.index) == set(conditions)
    assert made.masks["perturbation"].drop_duplicates().tolist() == names.tolist()
    assert made.perturbations_umap["perturbation"].tolist() == names.tolist()
    assert made.loadings["gene"].iloc[:40].tolist() == genes.tolist()
    assert made.observed_shift("007").index.tolist() == genes.tolist()


def test_names_of_numbers_alone_stay_text(tmp_path):
    (tmp_path / "genes.csv").write_text("gene,n\n01,1\n1,2\n1.0,3\n")
    table = read_csv(tmp_path / "genes.csv")
    assert table["gene"].tolist() == ["01", "1", "1.0"]
    assert table["n"].tolist() == [1, 2, 3]


# Damage


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "masks.csv", "enrichment/hallmark.parquet"]
)
def test_one_changed_byte_is_found(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    assert_refused(copied, f"{name} is not the file the bundle was saved with")


def test_a_missing_file_is_named(copied):
    (copied / "observed.parquet").unlink()
    assert_refused(copied, r"lacks 'observed\.parquet'")


def test_a_file_that_the_manifest_forgot_is_named(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["files"]["metrics.json"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(copied, r"does not list metrics\.json")


def test_a_newer_schema_is_refused(copied):
    edit_json(copied / "manifest.json", schema=3)
    assert_refused(copied, "schema 3; this version reads schema 2. Install a newer")


def test_an_older_schema_is_refused(copied):
    edit_json(copied / "manifest.json", schema=1)
    assert_refused(copied, "schema 1; this version reads schema 2. Train it again")


@pytest.mark.parametrize(
    "content", ["{}", "[]", "not json", '{"schema": 1}', '{"schema": "1", "files": {}}', ""]
)
def test_a_manifest_of_something_else_is_refused(copied, content):
    (copied / "manifest.json").write_text(content)
    assert_refused(copied, "manifest|JSON")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(tmp_path, "is no bundle: expected a folder with a manifest.json, found none")
    assert_refused(tmp_path / "notes.txt", "is no bundle: expected a folder .*, found a file")


def test_a_folder_that_is_not_there_is_answered_with_bundles_beside_it(copied):
    folder = copied.parent
    assert_refused(folder / "copid", "There is no folder .*copid. Did you mean 'copied'")
    assert_refused(folder / "zzz", "There is no folder .*zzz. There are: copied")
    assert_refused(copied / "zzz", "There is no folder .*zzz. samsvae bundles FOLDER lists")


def test_a_folder_of_bundles_is_answered_with_those_in_it(copied):
    assert_refused(
        copied.parent, "is no bundle: .* holds bundles: copied. Name one, such as .*/copied"
    )


def test_an_unfinished_run_is_told_from_a_foreign_folder(copied):
    (copied / "manifest.json").unlink()
    assert_refused(copied, "found a run that has not finished.*--resume")


@pytest.mark.parametrize(
    "name", ["../secret", "{outside}", "link", "a\0b", "x" * 300, "enrichment"]
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(copied, name):
    secret = copied.parent / "secret"
    secret.write_text("not for you")
    (copied / "link").symlink_to(secret)
    name = name.format(outside=secret)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"][name] = hashlib.sha256(b"not for you").hexdigest()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(copied, "lacks .*, which its manifest lists")


def test_names_in_place_of_numbers_are_refused(copied):
    for name, column in (("conditions", "train"), ("perturbations", "dosage_max")):
        whole = (copied / f"{name}.csv").read_text()
        table = pd.read_csv(copied / f"{name}.csv")
        table[column] = "many"
        table.to_csv(copied / f"{name}.csv", index=False)
        assert_refused(sign(copied), rf"{name}\.csv: the column {column} should hold numbers")
        (copied / f"{name}.csv").write_text(whole)


def test_a_mask_of_no_mechanism_is_refused(copied):
    table = pd.read_csv(copied / "masks.csv")
    table.loc[0, "mechanism"] = -(2**40)
    table.to_csv(copied / "masks.csv", index=False)
    assert_refused(sign(copied), r"masks\.csv: the column mechanism should hold numbers from 0")


def test_a_card_that_is_no_text_is_refused(copied):
    (copied / "card.md").write_bytes(b"\xa6\xff")
    bundle = load(sign(copied))
    with pytest.raises(BundleError, match=r"card\.md cannot be read"):
        _ = bundle.card


def test_json_that_is_too_deep_is_refused(copied):
    (copied / "config.json").write_bytes(b"[" * 100_000)
    assert_refused(sign(copied), "cannot be read as JSON")


def test_weights_of_a_wrong_shape_are_refused(copied):
    weights = load_file(copied / "weights.safetensors")
    weights["mask_logits"] = weights["mask_logits"][:, :3].clone()
    save_file(weights, copied / "weights.safetensors")
    assert_refused(sign(copied), "not a bundle of this version: .*mask_logits")


def test_missing_weights_are_refused(copied):
    weights = load_file(copied / "weights.safetensors")
    del weights["log_concentration"]
    save_file(weights, copied / "weights.safetensors")
    assert_refused(sign(copied), "log_concentration")


@pytest.mark.parametrize(
    ("name", "shape"), [("loc", (5, 3)), ("loc", (0, 4)), ("scale", (5, 4)), ("library", (7,))]
)
def test_reference_cells_of_a_wrong_shape_are_refused(copied, name, shape):
    tensors = load_file(copied / "reference.safetensors")
    tensors[name] = torch.ones(shape)
    save_file(tensors, copied / "reference.safetensors")
    assert_refused(sign(copied), "reference cells of shapes")


@pytest.mark.parametrize("size", [10**6, 10**9, 10**18, 10**30, -1])
@pytest.mark.parametrize("field", ["n_latent", "n_hidden"])
def test_absurd_sizes_take_no_memory(copied, field, size):
    import resource

    edit_model_config(copied, **{field: size})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(copied, "not a bundle of this version|expected a whole number")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # KiB
    assert grown < 64 * 1024  # the smallest of these models would take 10**6 * 40 * 4 bytes


@pytest.mark.parametrize("change", [{"n_genes": 41}, {"n_perturbations": 5}])
def test_names_and_sizes_have_to_agree(copied, change):
    assert_refused(edit_model_config(copied, **change), "its config expects .* rows, found")


@pytest.mark.parametrize("change", [{"n_heads": 3}, {"n_latent": "four"}, {"n_hidden": 2.5}])
def test_a_configuration_of_another_kind_is_refused(copied, change):
    assert_refused(edit_model_config(copied, **change), "not a bundle of this version")


def test_another_kind_of_model_is_refused(copied):
    edit_json(copied / "config.json", model="diffusion")
    assert_refused(sign(copied), "holds the model 'diffusion'; known: sams-vae")


def test_weights_that_are_no_safetensors_are_refused(copied):
    (copied / "weights.safetensors").write_bytes(b"\x80\x04pickled")
    assert_refused(sign(copied), "not a bundle of this version")


def test_a_table_without_its_columns_is_named(copied):
    whole = (copied / "masks.csv").read_text()
    (copied / "masks.csv").write_text("perturbation,mechanism\n")
    assert_refused(sign(copied), r"masks\.csv lacks the columns \['probability', 'effect'")
    (copied / "masks.csv").write_text(whole)
    (copied / "loadings.parquet").write_bytes(b"no parquet")
    assert_refused(sign(copied), r"loadings\.parquet cannot be read")


def test_json_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    with pytest.raises(BundleError, match="holds no JSON object"):
        read_json(tmp_path / "a.json")


def test_numbers_that_json_does_not_know_are_not_written():
    with pytest.raises(ValueError, match="JSON compliant"):
        layout.to_json({"a": float("nan")})


# Cells in the order of the bundle


def test_cells_are_brought_into_the_order_of_the_bundle(tiny, screen):
    rng = np.random.default_rng(0)
    data = screen.data
    genes, names = rng.permutation(40), rng.permutation(6)
    shuffled = replace(
        data,
        counts=data.counts[:, genes],
        genes=data.genes[genes],
        dosages=data.dosages[:, names],
        perturbations=data.perturbations[names],
    )
    back = tiny.align(shuffled)
    np.testing.assert_array_equal(back.counts.toarray(), data.counts.toarray())
    np.testing.assert_array_equal(back.dosages.toarray(), data.dosages.toarray())
    assert back.genes.tolist() == tiny.genes
    assert back.perturbations.tolist() == tiny.perturbations.index.tolist()


def test_genes_that_the_bundle_does_not_know_are_left_out_of_the_library(tiny, screen):
    import scipy.sparse as sp

    data = screen.data
    more = replace(
        data,
        counts=sp.csr_matrix(sp.hstack([np.full((600, 1), 9.0, np.float32), data.counts])),
        genes=np.array(["NEW", *data.genes]),
        library=data.library + 9,
    )
    np.testing.assert_array_equal(tiny.align(more).library, data.library)


def test_a_panel_of_a_file_with_a_size_factor_is_read_again_the_same_way(tiny, screen):
    """The size factor equals the file's total, and is above that of the bundle's genes."""
    model = SAMSVAE(replace(tiny.model.config, other_genes=True))
    bundle = replace(tiny, genes=tiny.genes[:30], model=model)
    source = {**screen.data.source, "size_factor_key": "total"}
    data = bundle.align(replace(screen.data, source=source))
    assert data.has_size_factor
    np.testing.assert_array_equal(data.library, screen.data.library)


def test_cells_of_other_genes_or_perturbations_are_refused(tiny, screen):
    data = screen.data
    with pytest.raises(DataError, match="lack 2 of the bundle's genes, such as"):
        tiny.align(replace(data, counts=data.counts[:, :38], genes=data.genes[:38]))
    other = np.array([*data.perturbations[:5], "ZZZ"])
    with pytest.raises(DataError, match="hold 1 perturbations unknown to the bundle, such as ZZZ"):
        tiny.align(replace(data, perturbations=other))


def test_cells_with_another_kind_of_library_are_refused(tiny, screen):
    with pytest.raises(DataError, match="library sizes from the panel"):
        tiny.align(replace(screen.data, has_size_factor=True))


# Values of single cells

SHAPE = {"shape": "[40, 14]"}


def test_the_level_of_a_gene_is_that_of_each_cell_of_the_map(tiny, screen):
    rows = pd.Index(screen.data.cells).get_indexer(tiny.cells["cell"])
    x = screen.data.counts.toarray()[rows]
    expected = np.log2(1 + 1e4 * x / x.sum(axis=1, keepdims=True))
    for i, gene in enumerate(tiny.genes):
        np.testing.assert_allclose(tiny.cell_values(gene), expected[:, i], rtol=1e-5)


def test_a_cell_without_counts_has_level_zero(copied, tiny):
    empty = {name: part * 0 for name, part in load_file(copied / layout.CELL_COUNTS).items()}
    kept = load_file(copied / layout.CELL_COUNTS) | {k: empty[k] for k in ("data", "library")}
    save_file(kept, copied / layout.CELL_COUNTS, SHAPE)
    assert not load(sign(copied)).cell_values(tiny.genes[0]).any()


def test_values_that_are_no_counts_come_as_they_are(copied, tiny):
    counts = load_file(copied / layout.CELL_COUNTS)
    values = {**counts, "data": -0.5 * counts["data"].float()}
    save_file(values, copied / layout.CELL_COUNTS, SHAPE)
    model = load(sign(copied))
    x = np.exp2(tiny.cell_values(tiny.genes[3])) - 1  # 1e4 x / library
    config = replace(model.model.config, likelihood="gaussian")
    values = replace(model, model=SAMSVAE(config)).cell_values(tiny.genes[3])
    assert values.any()
    np.testing.assert_allclose(values, -0.5 * x * counts["library"].numpy() / 1e4, rtol=1e-4)


def test_a_gene_of_another_bundle_has_no_values(tiny):
    with pytest.raises(ValueError, match="'NOPE' is none of the 40 genes of tiny"):
        tiny.cell_values("NOPE")


def test_a_bundle_made_before_cells_had_values_says_how_to_make_its_tables_anew(copied, tiny):
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["files"][layout.CELL_COUNTS]
    edit_json(copied / "manifest.json", files=manifest["files"])
    (copied / layout.CELL_COUNTS).unlink()
    old = ["cell", "condition", "split", "umap_1", "umap_2"]
    tiny.cells[old].to_parquet(copied / "cells.parquet")
    model = load(sign(copied))
    assert list(model.cells) == old
    assert not model.has_cell_values
    with pytest.raises(BundleError, match=r"no values of single cells: .* --resume"):
        model.cell_values(tiny.genes[0])


@pytest.mark.parametrize(
    ("change", "shape"),
    [
        ({}, None),
        ({}, {"shape": "[40, 13]"}),
        ({}, {"shape": "forty"}),
        ({"indices": torch.full((999,), 14)}, SHAPE),
        ({"data": torch.ones(1)}, SHAPE),
        ({"indptr": torch.zeros(0, dtype=torch.int64)}, SHAPE),
        ({"library": torch.ones(3)}, SHAPE),
    ],
)
def test_damaged_values_of_cells_are_named_when_asked_for(copied, change, shape):
    counts = load_file(copied / layout.CELL_COUNTS) | change
    save_file(counts, copied / layout.CELL_COUNTS, shape)
    damaged = load(sign(copied))
    with pytest.raises(BundleError, match=r"cells_counts\.safetensors cannot be read"):
        damaged.cell_values(damaged.genes[20])


@pytest.mark.parametrize("texts", [False, True])
def test_a_small_table_that_would_fill_the_memory_is_not_read(copied, monkeypatch, texts):
    path = copied / "observed.parquet"
    pd.DataFrame({"condition": ["x" * 100] * 1000, "se": 0.0}).to_parquet(path)
    if texts:
        monkeypatch.setattr(layout, "MOST_TEXT", 99_999)
        with pytest.raises(ValueError, match="more than 99,999 bytes"):
            layout.check_table(path, texts=True)
    else:
        monkeypatch.setattr(layout, "MOST_VALUES", 1999)
        with pytest.raises(BundleError, match="2,000 values; 1,999 is the most"):
            _ = load(sign(copied)).observed


def test_weights_are_not_read_before_their_shapes_are_compared(copied, monkeypatch):
    save_file({"zeros": torch.zeros(100)}, copied / "weights.safetensors")
    monkeypatch.setattr(opening, "load_tensors", lambda content: 1 / 0)
    assert_refused(sign(copied), "not a bundle of this version: weights")


# Finding bundles


def test_bundles_are_listed_by_name_and_other_folders_are_not(tiny, tmp_path, monkeypatch):
    assert list_bundles(tiny.path.parent) == {"tiny": tiny.path}
    (tmp_path / "notes").mkdir()
    (tmp_path / ".discarded-1").mkdir()
    (tmp_path / ".discarded-1" / "manifest.json").write_text("{}")
    assert list_bundles(tmp_path) == {}
    assert list_bundles(tmp_path / "absent") == {}
    monkeypatch.setenv("SAMSVAE_MODELS", str(tmp_path))
    assert models_folder() == tmp_path


def test_the_measured_shift_is_nothing_for_a_condition_not_measured(tiny):
    assert tiny.observed_shift("P1+P2+P3") is None
    assert isinstance(tiny.observed_shift("P1"), pd.DataFrame)


@pytest.mark.parametrize("shuffled", [False, True])
def test_measured_shifts_are_those_of_the_table_whatever_its_order(tiny, shuffled):
    rows = tiny.observed.sample(frac=1, random_state=0) if shuffled else tiny.observed
    rows = rows[(rows["condition"] != "P3") | (rows["gene"] != tiny.genes[7])]
    edited = replace(tiny)
    edited.__dict__["observed"] = rows
    at = tiny.observed.set_index(["split", "condition", "gene"])
    for split in ("all", "test"):
        for condition in tiny.conditions.index:
            found = edited.observed_shift(condition, split)
            arm, control = at.loc[(split, condition)], at.loc[(split, "control")]
            expected = pd.DataFrame(
                {
                    "shift": arm["level"] - control["level"],
                    "se": np.sqrt(arm["se"] ** 2 + control["se"] ** 2),
                    "n": arm["n"],
                }
            ).loc[tiny.genes]
            if condition == "P3":
                expected = expected.astype(float)
                expected.iloc[7] = np.nan
            pd.testing.assert_frame_equal(found, expected)
    assert edited.observed_shift("P1", "validation") is None
    assert edited.observed_level("P1").columns.tolist() == ["level", "se", "n"]


# Conditions by their labels


KNOWN = {
    **dict.fromkeys(["A", "B", "C", "HLA:A", "D+E", "A:2", "X", "X+Y", "Y+Z", "Z"], (1.0, 1.0)),
    "F": (0.1, 0.25),
    "G": (1 / 3, 2 / 3),
    "H": (0.5, 2.0),
    "H:2": (1.0, 1.0),
    "unseen": (0.0, 0.0),
}


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("A", {"A": 1}),
        ("A+B+C", {"A": 1, "B": 1, "C": 1}),
        ("A+F:0.25", {"A": 1, "F": 0.25}),
        ("G:0.333333", {"G": 0.333333}),  # labels have six digits
        ("HLA:A", {"HLA:A": 1}),
        ("D+E", {"D+E": 1}),  # a label kept whole
        ("A+D+E", {"A": 1, "D+E": 1}),
        ("A:2", {"A:2": 1}),  # A was given at 1 only
        ("B+H:0.5", {"B": 1, "H": 0.5}),
        ("H:2", None),  # H at 2, or H:2 at 1
        ("X+Y+Z", None),  # X and Y+Z, or X+Y and Z
        ("X+Y", {"X+Y": 1}),
        ("A+nobody", None),
        ("B+A", None),  # never written so
        ("A+A", None),
        ("F:0.5", None),
        ("F:0.20", None),
        ("unseen", None),
        ("A+", None),
        ("", None),
    ],
)
def test_a_label_is_read_by_the_perturbations_that_are_known(label, expected):
    assert dosages_of(label, KNOWN) == expected


def test_the_dosages_of_conditions_are_those_of_their_cells(tiny, screen):
    table = tiny.trained_dosages
    assert table.index[0] == "control"
    assert set(table.index) == set(tiny.conditions.index)
    for label, row in table.iterrows():
        cell = np.flatnonzero(screen.data.conditions == label)[0]
        np.testing.assert_array_equal(row, screen.data.dosages[cell].toarray()[0])


def test_labels_of_odd_names_are_read_or_left_out(tiny):
    """Names with "+" and ":", as in labels kept whole; one of them can be read in two ways."""
    to = {"P1": "KLF1+", "P2": "a:b", "P3": "P+Q", "P4": "P", "P5": "Q", "P6": "z"}
    named = tiny.perturbations.rename(index=to)
    labels = ["control", "KLF1+", "KLF1++z", "P+Q", "Q+a:b", "gone", "P"]
    conditions = pd.DataFrame({"train": 5}, index=pd.Index(labels, name="condition"))
    table = replace(tiny, perturbations=named, conditions=conditions).trained_dosages
    read = {label: row[row != 0].to_dict() for label, row in table.iterrows()}
    assert read == {
        "control": {},
        "KLF1+": {"KLF1+": 1.0},
        "KLF1++z": {"KLF1+": 1.0, "z": 1.0},
        "Q+a:b": {"Q": 1.0, "a:b": 1.0},
        "P": {"P": 1.0},
    }


def test_a_table_that_is_declared_is_read_checked_and_remembered(copied, tiny, monkeypatch):
    frame = pd.DataFrame({"gene": tiny.genes[:2], "length": [1.0, 2.0]})
    frame.to_csv(copied / "lengths.csv", index=False)
    monkeypatch.setitem(layout.OPTIONAL, "lengths.csv", None)
    table = layout.Table({"gene": layout.TEXT, "length": layout.SIZE}, key=("gene",))
    monkeypatch.setitem(layout.TABLES, "lengths.csv", table)
    layout.write_manifest(copied, tiny.manifest["data"], "cpu")
    bundle = load(copied)
    pd.testing.assert_frame_equal(bundle.table("lengths.csv"), frame)
    assert bundle.table("lengths.csv") is bundle.table("lengths.csv")
    frame.assign(length=-1.0).to_csv(copied / "lengths.csv", index=False)
    layout.write_manifest(copied, tiny.manifest["data"], "cpu")
    with pytest.raises(BundleError, match=r"lengths\.csv: the column length should hold numbers"):
        load(copied)
