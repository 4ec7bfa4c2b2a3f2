"""Item 5: names of genes when the index of a file holds row numbers or ids."""

import json
import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from samsvae_core.analysis import gene_rankings
from samsvae_core.analysis.gene_card import annotation, links
from samsvae_core.analysis.masks import active_mechanisms
from samsvae_core.bundle.layout import read_csv
from samsvae_core.cli import main as cli
from samsvae_core.data.cells import DataError, describe, gene_panel, reading_in_words, summary
from samsvae_core.data.counts import has_gene_key
from samsvae_core.data.gene_names import INDEX, name_genes, usual_key
from samsvae_core.data.h5ad import read_cells, read_h5ad
from samsvae_core.data.inspection import describe as described
from samsvae_core.data.inspection import inspect
from samsvae_core.data.splits import split
from samsvae_core.genesets import enrichment
from samsvae_core.genesets.collections import load_collection
from samsvae_core.genesets.symbols import (
    are_entrez,
    are_row_numbers,
    current_symbols,
    known_genes,
    search_genes,
)
from samsvae_core.pipeline import train
from samsvae_core.pipeline.train import read_options
from samsvae_core.training.config import TrainConfig
from tests.data.test_h5ad import LABELS

SYMBOLS = ["STAT1", "JAK2", "IRF1", "CD274", "FN1", "MYC"]
ENSEMBL = [f"ENSG{100_000 + i:011d}" for i in range(6)]
MOUSE = [f"ENSMUSG{26_104 + i:011d}.{i}" for i in range(6)]
ENTREZ = ["6772", "3717", "3659", "29126", "2335", "4609"]
ROWS = [str(i) for i in range(6)]
MODEL = {"n_latent": 2, "n_hidden": 16}


def write(path, index, columns=None, raw=None):
    """Write an .h5ad file of 12 cells and 6 genes; `raw` has an index and columns of raw/var."""

    def made(index, columns):
        var = pd.DataFrame(columns or {}, index=pd.Index([str(name) for name in index]))
        obs = pd.DataFrame({"perturbation": LABELS}, index=[f"c{i}" for i in range(12)])
        counts = np.tile(np.arange(1, len(index) + 1, dtype=np.float32), (12, 1))
        return anndata.AnnData(sp.csr_matrix(counts), obs, var)

    cells = made(index, columns)
    if raw is not None:
        cells.raw = made(*raw)
        cells.X = np.log1p(cells.X.toarray())
    cells.write_h5ad(path)
    return path


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cells.h5ad"


def notes(data):
    return " ".join(data.source["notes"])


# What numbers are


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (range(60), True),
        (range(1, 61), True),
        ([i for i in range(3000) if i % 7], True),  # after genes were filtered
        (range(500, 3000), True),
        (ENTREZ, False),
        (SYMBOLS, False),
        ([*range(40), "STAT1", "JAK2"], True),
        (["9" * 5000], False),
        ([], False),
    ],
)
def test_item_05_names_that_only_count_are_row_numbers(names, expected):
    assert are_row_numbers(map(str, names)) is expected


def test_item_05_numbers_are_entrez_ids_only_where_they_are_plausible():
    assert are_entrez(ENTREZ)
    assert are_entrez(["6772"])
    assert not are_entrez(ROWS)
    filtered = np.random.default_rng(0).choice(36_601, 2_000, replace=False)
    assert not are_entrez(map(str, filtered))  # the most variable genes, still row numbers
    assert not are_entrez(SYMBOLS)


def test_item_05_row_numbers_meet_no_symbol_and_no_entrez_id():
    rows = [str(i) for i in range(20_000)]
    assert current_symbols(rows, load_collection("hallmark").genes) == {}
    assert current_symbols(rows, set(ENTREZ)) == {}
    assert current_symbols(set(ENTREZ), rows) == {}
    assert current_symbols(rows, rows)["7"] == "7"


def test_item_05_the_gene_card_takes_no_row_number_for_an_entrez_id():
    rows = [str(i) for i in range(20_000)]
    card = annotation("6772", rows)
    assert (card.current, card.name, card.entrez) == ("", "", "")
    assert "6772 is a number, not a name" in card.note
    assert links("6772", rows) == {}
    assert annotation("6772", ENTREZ).current == "STAT1"
    assert links("6772", ENTREZ)["NCBI"] == "https://www.ncbi.nlm.nih.gov/gene/6772"


# Which column names genes


@pytest.mark.parametrize(
    ("index", "columns", "expected"),
    [
        (ROWS, {"features": SYMBOLS}, "features"),
        (ROWS[::-1], {"SYMBOL": SYMBOLS}, "SYMBOL"),
        (ENSEMBL, {"gene_name": SYMBOLS}, "gene_name"),
        (MOUSE, {"feature_name": [s.capitalize() for s in SYMBOLS]}, "feature_name"),
        (ENTREZ, {"hgnc_symbol": SYMBOLS}, "hgnc_symbol"),
        (ENSEMBL, {"features": SYMBOLS, "feature_name": SYMBOLS}, "feature_name"),
        (ENSEMBL, {"name": [f"a long word {i}" for i in range(6)], "gene": SYMBOLS}, "gene"),
        (ENSEMBL, {"features": ENSEMBL, "name": ROWS}, INDEX),
        (ENSEMBL, {"features": ["Gene Expression"] * 6}, INDEX),
        (ENSEMBL, {"features": ["STAT1", "", "", "", "", ""]}, INDEX),
        (ROWS, {"gene_ids": ENSEMBL}, "gene_ids"),
        (ROWS, {"gene_ids": ENSEMBL, "symbol": SYMBOLS}, "symbol"),
        (ROWS, {"features": ROWS, "gene_id": ROWS}, INDEX),
        (ROWS, {}, INDEX),
        (SYMBOLS, {"gene_ids": ENSEMBL, "gene_name": SYMBOLS[::-1]}, INDEX),
    ],
)
def test_item_05_ids_and_row_numbers_give_way_to_a_column_of_names(index, columns, expected):
    assert usual_key(index, columns) == expected
    found = name_genes(index, columns, None)
    assert found.key == expected
    assert list(found.names) == list(index if expected == INDEX else columns[expected])


def test_item_05_a_missing_name_leaves_the_id_and_a_shared_one_is_never_merged():
    given = ["STAT1", "", "MATR3", "MATR3", "FN1", "MYC"]
    found = name_genes(ENSEMBL, {"gene_name": given}, None)
    assert list(found.names) == [
        *("STAT1", ENSEMBL[1], f"MATR3_{ENSEMBL[2]}", f"MATR3_{ENSEMBL[3]}", "FN1", "MYC"),
    ]
    assert list(found.ids) == ENSEMBL
    assert "1 genes have no name in 'gene_name'" in found.notes[1]
    assert "2 genes share a name in 'gene_name'" in found.notes[2]
    clash = ["A", "A", "A_0", "A_1", "B", "C"]
    with pytest.raises(DataError, match="does not tell all genes apart"):
        name_genes(ROWS, {"mine": clash}, "mine")


def test_item_05_a_column_that_is_asked_for_is_taken_or_refused_in_one_message():
    columns = {"mine": SYMBOLS, "chromosome": ["1"] * 6}
    found = name_genes(ENSEMBL[::-1], columns, "mine")
    assert (list(found.names), list(found.ids)) == (SYMBOLS, ENSEMBL[::-1])
    assert list(name_genes(SYMBOLS[::-1], columns, "mine").names) == SYMBOLS
    assert list(name_genes(ROWS, {"features": SYMBOLS}, INDEX).names) == ROWS
    with pytest.raises(DataError, match=r"no column 'mnie' .*--gene-key.* 'mine'"):
        name_genes(ROWS, columns, "mnie")
    with pytest.raises(DataError, match="has 1 different names for 6 genes"):
        name_genes(ROWS, columns, "chromosome")


def test_item_05_row_numbers_are_no_ids_of_genes():
    assert name_genes(ROWS, {"features": SYMBOLS}, None).ids is None


# Reading


def test_item_05_validate_and_inspect_say_that_row_numbers_gave_way(file):
    write(file, ROWS, {"features": SYMBOLS})
    data = read_h5ad(file)
    assert list(data.genes) == SYMBOLS
    assert data.source["gene_key"] == "features"
    expected = (
        "Genes are named by the column 'features' of var (STAT1, JAK2, IRF1, ...); the index holds"
        " row numbers (0, 1, 2, ...)."
    )
    assert f"Note: {expected}" in describe(summary(data))
    found = inspect(file)
    assert found["genes"] == SYMBOLS
    assert found["suggested"]["gene_key"] == "features"
    assert found["gene_columns"] == [INDEX, "features"]
    assert expected in described(found)
    json.dumps(found, allow_nan=False)
    assert f"Note: {expected}" in reading_in_words(data)  # what `train` says


def test_item_05_row_numbers_without_a_column_are_told_with_what_to_do(file):
    write(file, ROWS, {"chromosome": ["1"] * 6})
    data = read_h5ad(file)
    assert list(data.genes) == ROWS
    assert "Genes are row numbers (0, 1, 2, ...), not names" in notes(data)
    assert "--gene-key (columns here: chromosome)" in notes(data)
    assert "Genes are row numbers" in described(inspect(file))
    assert "adata.var_names: var has no column" in notes(read_h5ad(write(file, ROWS)))


def test_item_05_ensembl_ids_stay_known_beside_their_symbols(file):
    data = read_h5ad(write(file, ENSEMBL, {"gene_name": pd.Categorical(SYMBOLS)}))
    assert list(data.genes) == SYMBOLS
    assert data.genes_by_id == dict(zip(ENSEMBL, SYMBOLS, strict=True))
    kept = gene_panel(data, genes=["MYC", ENSEMBL[0], f"{ENSEMBL[1]}.4", "nonsense"])
    assert list(kept.genes) == ["STAT1", "JAK2", "MYC"]
    assert list(kept.gene_ids) == [ENSEMBL[0], ENSEMBL[1], ENSEMBL[5]]
    assert "1 genes asked for are not measured: nonsense." in notes(kept)
    assert "2 genes asked for have other names in the data." in notes(kept)
    both = [read_h5ad(file, gene_key=key) for key in (INDEX, "gene_name")]
    assert [list(one.genes) for one in both] == [ENSEMBL, SYMBOLS]


@pytest.mark.parametrize("key", [None, "features"])
def test_item_05_a_panel_that_counts_anew_is_found_in_raw_by_name(file, key):
    raw = ([str(i) for i in range(6)], {"features": SYMBOLS})
    write(file, ROWS[:2], {"features": ["FN1", "JAK2"]}, raw)  # rows 4 and 1 of raw
    data = read_h5ad(file, gene_key=key)
    assert data.source["counts_from"] == "raw/X"
    assert list(data.genes) == ["FN1", "JAK2"]
    np.testing.assert_array_equal(data.counts.toarray()[0], [5, 2])


def test_item_05_a_panel_that_counts_anew_without_names_keeps_all_of_raw(file):
    write(file, ROWS[:2], None, (ROWS, None))
    data = read_h5ad(file)
    np.testing.assert_array_equal(data.counts.toarray()[0], [1, 2, 3, 4, 5, 6])
    assert "it cannot be told which genes var keeps: all 6 of raw/X are read." in notes(data)


@pytest.mark.parametrize("key", [None, "gene_name"])
def test_item_05_names_that_only_raw_var_has_are_found_there(file, key):
    write(file, ENSEMBL[3:1:-1], None, (ENSEMBL, {"gene_name": SYMBOLS}))
    data = read_h5ad(file, gene_key=key)
    assert (data.source["counts_from"], data.source["gene_key"]) == ("raw/X", "gene_name")
    assert list(data.genes) == [SYMBOLS[3], SYMBOLS[2]]
    np.testing.assert_array_equal(data.counts.toarray()[0], [4, 3])
    assert list(read_h5ad(file, gene_key=key, continuous=True).genes) == [SYMBOLS[3], SYMBOLS[2]]
    assert inspect(file)["genes"] == [SYMBOLS[3], SYMBOLS[2]]
    assert has_gene_key(file, "gene_name")
    assert not has_gene_key(file, "features")


def test_item_05_the_command_line_refuses_an_unknown_column(file, monkeypatch, capsys):
    write(file, ROWS, {"features": SYMBOLS})
    monkeypatch.setattr(sys, "argv", ["samsvae", "validate", str(file), "--gene-key", "feature"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "Error: var has no column 'feature'" in capsys.readouterr().err


# A model of such a file


@pytest.fixture(scope="module")
def planted(quick_tables, tmp_path_factory):
    """Return a screen whose knock-outs lower the interferon response; its index is row numbers."""
    hallmark = load_collection("hallmark").sets
    interferon = hallmark["HALLMARK_INTERFERON_GAMMA_RESPONSE"][:20]
    others = [hallmark[f"HALLMARK_{name}"][:20] for name in ("E2F_TARGETS", "MYOGENESIS")]
    genes = list(dict.fromkeys([*interferon, *others[0], *others[1]]))
    labels = np.array(["ctrl"] * 160 + ["STAT1"] * 80 + ["MYOD1"] * 80)
    random = np.random.default_rng(0)
    mean = np.tile(random.gamma(2, 2, len(genes)), (len(labels), 1))
    for label, program in (("STAT1", interferon), ("MYOD1", others[1])):
        mean[np.ix_(labels == label, np.isin(genes, program))] *= 0.3
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame({"features": genes}, index=[str(i) for i in range(len(genes))])
    folder = tmp_path_factory.mktemp("planted")
    counts = sp.csr_matrix(random.poisson(mean).astype(np.float32))
    anndata.AnnData(counts, obs, var).write_h5ad(folder / "rows.h5ad")
    data = read_h5ad(folder / "rows.h5ad")
    settings = TrainConfig(steps=150, batch_size=128, learning_rate=1e-2)
    return train.train(data, split(data), folder / "run", MODEL, settings), folder / "rows.h5ad"


def test_item_05_a_planted_interferon_mechanism_is_named_so(planted):
    model, _ = planted
    effects = pd.DataFrame(model.latent_effects, index=model.perturbations.index)
    lowered = int(effects.loc["STAT1"].abs().idxmax())
    assert lowered in active_mechanisms(model.masks)
    ranked = gene_rankings.of_mechanisms(model, [lowered])
    found = enrichment.enrich(
        ranked.scores, [load_collection("hallmark")], enrichment.EnrichmentOptions()
    )
    gsea = found.table[found.table["method"] == "gsea"].sort_values("p_value")
    assert gsea["term"].iloc[0] == "HALLMARK_INTERFERON_GAMMA_RESPONSE"
    assert gsea["fdr"].iloc[0] < 0.05


def test_item_05_row_numbers_name_no_mechanism(planted):
    model, _ = planted
    scores = gene_rankings.of_mechanisms(model, [0]).scores
    scores = scores.set_axis([str(i) for i in range(len(scores))])
    with pytest.raises(ValueError, match=r"The data have row numbers \(0, .*--gene-key"):
        enrichment.enrich(scores, [load_collection("hallmark")], enrichment.EnrichmentOptions())


def test_item_05_a_run_notes_the_column_and_an_older_one_the_index(planted, copied):
    model, file = planted
    assert read_options(model.path).gene_key == "features"
    assert list(read_cells(file, read_options(model.path)).genes) == model.genes
    config = json.loads((copied / "config.json").read_text())
    del config["data"]["gene_key"]  # as it was before
    (copied / "config.json").write_text(json.dumps(config))
    assert read_options(copied).gene_key == INDEX


def test_item_05_a_bundle_keeps_the_ids_and_one_without_opens(tiny, tmp_path):
    assert tiny.genes_by_id == {}
    ids = [f"ENSMUSG{i:011d}.1" for i in range(len(tiny.genes))]
    table = pd.DataFrame({"gene": tiny.genes, "id": ids})
    table.to_csv(tmp_path / "genes.csv", index=False)
    model = replace(tiny, path=tmp_path)
    gene, name = tiny.genes[3], ids[3]
    assert model.genes_by_id[name] == gene
    assert known_genes([name, ids[4].partition(".")[0]], model.genes, model.genes_by_id) == (
        tiny.genes[3:5],
        [],
    )
    assert list(search_genes(name, model.genes, ids=model.genes_by_id)) == [gene]


def test_item_05_cells_of_another_file_meet_the_bundle_by_their_ids(tiny, screen, tmp_path):
    ids = np.array([f"ENSMUSG{i:011d}.1" for i in range(len(tiny.genes))])
    table = pd.DataFrame({"gene": tiny.genes, "id": ids})
    table.to_csv(tmp_path / "genes.csv", index=False)
    model = replace(tiny, path=tmp_path)
    newer = np.array([name.replace(".1", ".2") for name in ids])
    by_id = replace(screen.data, genes=newer)
    aligned = model.align(by_id)
    np.testing.assert_array_equal(aligned.counts.toarray(), screen.data.counts.toarray())
    renamed = replace(screen.data, genes=np.char.add("new ", screen.data.genes), gene_ids=newer)
    assert model.align(renamed).counts.shape == screen.data.counts.shape
    with pytest.raises(DataError, match=f"lack {len(ids)} of the bundle's genes"):
        tiny.align(by_id)


def test_item_05_training_writes_the_ids_beside_the_names(screen, tmp_path, monkeypatch):
    ids = [f"ENSMUSG{i:011d}" for i in range(len(screen.data.genes))]

    def stopped(*_):
        raise DataError("before the first step")

    monkeypatch.setattr(train, "resume", stopped)
    data = replace(screen.data, gene_ids=np.array(ids))
    with pytest.raises(DataError, match="before the first step"):
        train.train(data, screen.parts, tmp_path / "run", MODEL)
    table = read_csv(tmp_path / "run" / "genes.csv")
    assert table["gene"].tolist() == screen.data.genes.tolist()
    assert table["id"].tolist() == ids


def test_item_05_another_file_without_the_column_is_read_by_its_own_names(planted, file):
    model, _ = planted
    write(file, SYMBOLS)
    assert read_options(model.path, file).gene_key is None
    assert read_options(model.path, write(file, ROWS, {"features": SYMBOLS})).gene_key == (
        "features"
    )
