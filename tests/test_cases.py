"""Labels, names and columns as people really have them are detected correctly.

Each kind has a small case here. The scripts in ../shared/cases (or SAMSVAE_CASES), whose README
says what to expect of each, are run if they are there.
"""

import os
import runpy
import sys
import time
import warnings
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from samsvae_core.cli import main as cli
from samsvae_core.data import label_column
from samsvae_core.data.cells import DataError, describe, summary
from samsvae_core.data.controls import CONTROL, control_labels
from samsvae_core.data.h5ad import read_cells, read_h5ad
from samsvae_core.data.inspection import describe as told
from samsvae_core.data.inspection import inspect, label_table, suggested_delimiter
from samsvae_core.data.label_column import key_notes
from samsvae_core.data.labels import delimiter_of, parts_of
from samsvae_core.data.read_options import ReadOptions
from samsvae_core.data.splits import split
from samsvae_core.data.targets import guides_note, targets_of
from samsvae_core.pipeline import train
from samsvae_core.training.config import TrainConfig
from tests.data.test_h5ad import real

CASES = Path(os.environ.get("SAMSVAE_CASES", Path(__file__).parents[1] / "../shared/cases"))


def write(path, labels, key="perturbation", obs=None, n_genes=8, **more):
    """Write a file of Poisson counts; `obs` adds to the column of labels."""
    counts = np.random.default_rng(0).poisson(2.0, (len(labels), n_genes)).astype(np.float32)
    table = pd.DataFrame({key: labels, **(obs or {})}, index=[f"c{i}" for i in range(len(labels))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    anndata.AnnData(counts, obs=table, var=var, **more).write_h5ad(path)
    return path


def each(n=40, **sizes):
    """Return so many cells of each label, except for labels with a given size."""
    return lambda *labels: [label for label in labels for _ in range(sizes.get(label, n))]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "cells.h5ad"


def said(data):
    return describe(summary(data))


def found(path, **options):
    """Return the reader's controls, perturbations and combinations."""
    data = read_h5ad(path, **options)
    several = data.conditions[data.dosages.getnnz(axis=1) > 1]
    return int((data.conditions == data.control).sum()), list(data.perturbations), set(several)


# Delimiters


FORMS = {
    "plus": (["ctrl", "A+ctrl", "B+ctrl", "A+B"], "+", ["A", "B"], {"A+B"}),
    "underscore": (["control", "AHR", "FEV", "AHR_FEV"], "_", ["AHR", "FEV"], {"AHR+FEV"}),
    "pipe": (["control", "AHR", "FEV", "AHR|FEV"], "|", ["AHR", "FEV"], {"AHR+FEV"}),
    "norman_raw": (
        [
            "NegCtrl0_NegCtrl0__NegCtrl0_NegCtrl0",
            "NegCtrl10_NegCtrl0__NegCtrl10_NegCtrl0",
            *("AHR_FEV__AHR_FEV", "AHR_NegCtrl0__AHR_NegCtrl0", "FEV_NegCtrl0__FEV_NegCtrl0"),
        ],
        "_",
        ["AHR", "FEV"],
        {"AHR+FEV"},
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_item_04_command_line_page_and_library_part_labels_alike(file, form):
    labels, delimiter, perturbations, combinations = FORMS[form]
    write(file, each()(*labels))
    data = read_h5ad(file)
    suggested = inspect(file)["suggested"]
    assert data.source["delimiter"] == suggested["delimiter"] == delimiter
    assert found(file)[1:] == (perturbations, combinations)
    assert f"1 combination, labels parted at {delimiter!r}" in said(data)
    assert f"labels parted at {delimiter!r}" in told(inspect(file))
    preview = label_table(dict.fromkeys(labels, 40), "perturbation").set_index("label")
    labels_of_cells = anndata.read_h5ad(file).obs["perturbation"].astype(str)
    assert list(preview.loc[labels_of_cells, "condition"]) == list(data.conditions)


@pytest.mark.parametrize("drop", [None, True, False])
def test_item_04_the_delimiter_suggested_is_the_readers_also_where_cells_are_left_out(file, drop):
    """If such cells are left out, "unknown" is not a label and splits nothing."""
    labels = ["ctrl", "unassigned", "unknown", "MYC+unknown", "KLF1_TP53", "KLF1", "STAT1_KLF1"]
    write(file, each()(*labels))
    read = read_h5ad(file, drop_unlabelled=drop).source["delimiter"]
    sizes = dict.fromkeys(labels, 40)
    assert suggested_delimiter(sizes, None, drop) == read
    preview = label_table(sizes, "perturbation", ReadOptions(drop_unlabelled=drop))
    preview = preview.set_index("label")
    data = read_h5ad(file, drop_unlabelled=drop)
    assert set(preview["condition"]) - {""} == set(data.conditions)


def test_item_04_the_control_of_norman_raw_is_named_by_its_word(file):
    write(file, each()(*FORMS["norman_raw"][0]))
    assert read_h5ad(file).control == "NegCtrl0"


@pytest.mark.parametrize(
    "labels",
    [
        ["non-targeting", "AARS_+_70323362.23-P1P2", "AARS_+_70323398.23-P1P2"],
        ["NT_1", "NT_2", "ZAP70_1", "ZAP70_2"],
        ["ctrl", "HLA-A", "HLA-B", "NKX2-1"],
        ["ctrl", "STAT1_KO", "MYC_KO"],
        ["ctrl_rep1", "STAT1_rep1", "STAT1_rep2"],
        ["ctrl", "Ca2+", "CD3+CD28", "(+)-JQ1", "a|b;c", "5-FU/leucovorin", "chr1:100"],
    ],
)
def test_item_04_names_that_hold_a_delimiter_stay_whole(labels):
    controls = control_labels(labels)
    assert delimiter_of(labels, controls) == ""
    assert suggested_delimiter(dict.fromkeys(labels, 5)) == ""
    rest = [label for label in labels if label not in controls]
    assert all(parts_of(label, set(labels), set(controls), "") == [label] for label in rest)


def test_item_04_names_with_a_delimiter_in_them_are_parted_where_they_are_labels(file):
    labels = ["non-targeting", "CPQ_+_97.23-P1", "MYC", "CPQ_+_97.23-P1+MYC"]
    write(file, each()(*labels))
    assert found(file) == (40, ["CPQ_+_97.23-P1", "MYC"], {"CPQ_+_97.23-P1+MYC"})


def test_item_04_a_delimiter_given_is_taken_and_another_one_that_parts_more_is_named(file):
    write(file, each()("control", "AHR", "FEV", "AHR_FEV"))
    data = read_h5ad(file, delimiter="+")
    assert data.source["delimiter"] == "+"
    assert any("--delimiter _ parts" in note for note in data.source["notes"])
    assert found(file, delimiter="")[2] == set()


def test_item_04_labels_that_may_be_combinations_are_pointed_out(file):
    write(file, each()("ctrl", "TP53", "MYC_KLF1"))
    notes = " ".join(read_h5ad(file).source["notes"])
    assert "1 label may name combinations (MYC_KLF1)" in notes
    assert "--delimiter _ parts them" in notes


# Controls


@pytest.mark.parametrize(
    "label",
    [
        *("NT-1", "NT_1", "NT1", "NTC-1", "NTC_0001", "sgNT", "sgNTC", "sgCtrl", "NegCtrl0"),
        *("Non-Targeting_Human_0001", "non-targeting-guide-1", "NonTargetingControlGuideForHuman"),
        *("CROPseq_dCas9_DS_non-targeting_00025", "DMSO_TF", "DMSO", "vehicle", "safe-targeting"),
        *("sgNTC_2", "NTg1", "neg_control_3", "NonTargetingControlGuideForHuman_0001", "CTRL"),
        *("ctrl+ctrl", "NT-1+NT-2"),
    ],
)
def test_item_06_words_for_control_are_known(label):
    assert control_labels([label, "STAT1"]) == [label]


@pytest.mark.parametrize(
    "label",
    [
        *("NTN1", "NT5E", "NTRK1", "NTS", "CTRL-AS1", "CTRB1", "CTR9", "CONTROLLER", "MOCKER"),
        *("DMSOX", "SCRIB", "WT1", "GFPT1", "A+ctrl", "STAT1_NegCtrl0", "KLF1+non-targeting"),
    ],
)
def test_item_06_genes_and_combinations_are_no_controls(label):
    assert control_labels([label, "ctrl"]) == ["ctrl"]


def test_item_06_CTRL_is_a_gene_beside_controls_of_another_name(file):
    write(file, each()("non-targeting", "CTRL", "STAT1"))
    assert found(file)[:2] == (40, ["CTRL", "STAT1"])
    assert any("CTRL may be a control, too" in n for n in read_h5ad(file).source["notes"])


def test_item_06_controls_with_numbers_are_all_controls(file):
    write(file, each()("NT-1", "NT-2", "NT-3", "STAT1", "JAK2"))
    assert found(file) == (120, ["JAK2", "STAT1"], set())


@pytest.mark.parametrize("control", [["GFP", "mCherry"], ["gfp*", "*cherry"], ("GFP", "mC?erry")])
def test_item_06_several_controls_and_patterns_can_be_named(file, control):
    write(file, each()("GFP", "mCherry", "STAT1", "STAT1+GFP"))
    assert found(file, control=control)[:2] == (80, ["STAT1"])


def test_item_06_a_pattern_takes_no_combination_for_a_control(file):
    for label in ("A+ctrl", "A_ctrl"):
        write(file, each()("ctrl", "A", "lib_ctrl_2", label))
        assert found(file, control="*ctrl*")[0] == 80


@pytest.mark.parametrize(
    "text", ["a*" * 10 + "b", "*a" * 10 + "b", "*" * 50 + "b", "*a?" * 10 + "b"]
)
def test_item_06_a_pattern_of_many_stars_ends_at_once(text):
    """Matched star by star, the first of these would take longer than the age of the universe."""
    before = time.process_time()
    assert control_labels(["a" * 1_000, "a" * 1_000 + "B"], [text]) == ["a" * 1_000 + "B"]
    assert time.process_time() - before < 5


def test_item_06_a_label_of_repeated_words_for_control_ends_at_once():
    """Such a label can be read as a sequence of words in 2 to the power of 40 ways."""
    before = time.process_time()
    label = "_".join(["nontargeting_control"] * 40)
    assert CONTROL.fullmatch(label)
    assert not CONTROL.fullmatch(label + "_!")
    assert time.process_time() - before < 5


def test_item_06_a_bracket_in_a_pattern_means_itself():
    known = ["ctrl [a] 1", "ctrl a 1", "ctrl]"]
    assert control_labels(known, ["ctrl [a]*"]) == known[:1]
    assert control_labels(known, ["*]"]) == known[2:]


def test_item_06_without_a_known_control_those_that_are_likely_are_offered(file):
    write(file, each()("GFP", "mCherry", "STAT1"))
    with pytest.raises(DataError, match="--control GFP --control mCherry"):
        read_h5ad(file)
    assert "--control GFP --control mCherry" in told(inspect(file))


def test_item_06_cells_of_which_nothing_is_known_are_offered_as_the_only_controls(file):
    write(file, each()("none", "TP53"))
    with pytest.raises(
        DataError, match=r"labelled 'none' are the controls here.* --unlabelled-as-"
    ):
        read_h5ad(file)
    assert "--unlabelled-as-control" in told(inspect(file))
    assert found(file, drop_unlabelled=False)[:2] == (40, ["TP53"])
    write(file, each()("none", "GFP", "TP53"))
    with pytest.raises(DataError, match=r"name it: --control GFP.* --unlabelled-as-control"):
        read_h5ad(file)


def test_item_06_a_likely_control_beside_a_known_one_is_pointed_out(file):
    write(file, each()("non-targeting", "AAVS1", "STAT1"))
    for text in (said(read_h5ad(file)), told(inspect(file))):
        assert "AAVS1 may be a control, too" in text
        assert "--control non-targeting --control AAVS1" in text


def test_item_06_a_word_for_control_that_was_not_named_is_pointed_out(file):
    """Naming only NT-1 makes NT-2 a perturbation, which a note says."""
    write(file, each()("NT-1", "NT-2", "TP53", "NT-1+NT-2"))
    data = read_h5ad(file, control="NT-1")
    assert list(data.perturbations) == ["NT-2", "TP53"]
    assert "NT-2 may be a control, too, and is read as a perturbation." in said(data)
    assert "To take all of them as control: --control NT-1 --control NT-2." in said(data)
    assert "may be" not in said(read_h5ad(file))
    assert "may be" not in said(read_h5ad(file, control=["NT-1", "NT-2"]))


def test_item_06_a_column_of_a_table_that_may_be_a_control_is_pointed_out_alike(file):
    """Labels and tables give the same advice, and following it takes all controls."""
    names = [f"NT-{i}" for i in range(8)]
    given = np.repeat(np.eye(10), 8, axis=0)
    cells = [f"c{i}" for i in range(80)]
    table = pd.DataFrame(given, index=cells, columns=[*names, "GFP", "TP53"])
    write(file, ["x"] * 80, "lab", obsm={"guides": table})
    words = (
        "GFP may be a control, too, and is read as a perturbation. To take all of them as control:"
        f" {' '.join(f'--control {name}' for name in [*names, 'GFP'])}."
    )
    assert words in said(read_h5ad(file, dosage_key="guides"))
    named = said(read_h5ad(file, dosage_key="guides", control="NT-0"))
    assert "NT-1, NT-2, NT-3, NT-4, NT-5, NT-6 and 2 more may be controls, too" in named


def test_item_06_many_controls_are_named_by_a_pattern(file):
    write(file, each(5)(*[f"NT-{i}" for i in range(20)], "GFP", "TP53"))
    text = said(read_h5ad(file))
    assert "Name all the controls with --control to change that: a pattern" in text


def test_item_06_a_control_that_no_cell_has_is_refused_with_its_neighbour(file):
    write(file, each()("GFP", "STAT1"))
    with pytest.raises(DataError, match=r"labelled 'GFPP', given as --control. Did you mean 'GFP'"):
        read_h5ad(file, control=["GFP", "GFPP"])


def test_item_06_the_column_of_conditions_is_suggested_not_that_of_samples(file):
    group = each(60)("ctrl", "stim")
    obs = {"sample_id": np.char.add(group, np.resize(["101", "107"], 120))}
    write(file, group, "group_id", obs)
    suggested = inspect(file)["suggested"]
    assert (suggested["perturbation_key"], suggested["control"]) == ("group_id", "ctrl")
    with pytest.raises(DataError, match="--perturbation-key group_id takes it"):
        read_h5ad(file)


def guides(n_empty=10, n_nt=40):
    """Return cells with a guide of A or B, with a non-targeting guide, and without any."""
    given = np.zeros((80 + n_nt + n_empty, 4), np.float32)
    given[:40, 0] = given[40:80, 1] = 1
    given[80 : 80 + n_nt, 2] = 1
    given[80 : 80 + n_nt : 2, 3] = 1
    names = ["A_g1", "B_g1", "DS_non-targeting_00025", "DS_non-targeting_00028"]
    cells = [f"c{i}" for i in range(len(given))]
    return {"guides": pd.DataFrame(given, index=cells, columns=names)}


def test_item_06_columns_of_controls_make_controls_and_cells_without_a_guide_are_left_out(file):
    write(file, ["x"] * 130, "lab", obsm=guides())
    data = read_h5ad(file, dosage_key="guides")
    assert (len(data.cells), int((data.conditions == data.control).sum())) == (120, 40)
    assert list(data.perturbations) == ["A_g1", "B_g1"]
    assert data.counts.shape[0] == len(data.library) == len(data.conditions) == 120
    assert "10 cells without any perturbation in obsm['guides'] are not assigned" in said(data)
    assert "2 columns of obsm['guides'] are taken as control" in said(data)
    whole = read_h5ad(file, dosage_key="guides", drop_unlabelled=False)
    assert (len(whole.cells), int((whole.conditions == "control").sum())) == (130, 50)
    with pytest.raises(DataError, match="--dosage-key guides reads it"):
        read_h5ad(file)
    assert inspect(file)["suggested"]["table"] == "guides"


def test_item_06_columns_of_controls_can_be_named_in_a_table(file):
    tables = guides()
    tables["guides"].columns = ["A_g1", "B_g1", "odd_1", "odd_2"]
    write(file, ["x"] * 130, "lab", obsm=tables)
    assert found(file, dosage_key="guides", control="odd*")[:2] == (40, ["A_g1", "B_g1"])
    assert "are taken as control cells" in said(read_h5ad(file, dosage_key="guides"))  # rows of 0


def test_item_06_a_table_without_any_control_cell_says_that_it_is_not_supported(file):
    tables = guides(n_empty=0)
    tables["guides"]["A_g1"] = 1.0
    write(file, ["x"] * 120, "lab", obsm=tables)
    with pytest.raises(DataError, match="Training without control cells is not supported yet"):
        read_h5ad(file, dosage_key="guides")


@pytest.mark.parametrize("more", [[], ["TP53_g1"]])
def test_item_06_a_table_in_which_all_cells_that_stay_are_controls_is_refused(file, more):
    """Cells without any guide are left out and do not count as perturbed."""
    given = np.zeros((90, 2 + len(more)))
    given[:30, 0] = given[30:60, 1] = 1
    cells = [f"c{i}" for i in range(90)]
    table = pd.DataFrame(given, index=cells, columns=["NT-1", "NT-2", *more])
    write(file, ["x"] * 90, "lab", obsm={"guides": table})
    words = r"60 control cells among the 60 cells that are read; expected perturbed cells as well"
    with pytest.raises(DataError, match=words):
        read_h5ad(file, dosage_key="guides")


def test_item_07_dosages_that_are_all_0_are_refused(file):
    write(file, each()("control", "TP53"), obs={"dose": [0.0] * 80})
    with pytest.raises(DataError, match="Dosage column 'dose' is 0 in every perturbed cell"):
        read_h5ad(file, dosage_key="dose")


@pytest.mark.parametrize(
    ("order", "suggested"),
    [
        *(("NT-1", "foo"), (np.array([b"\xff\xfe"]), ""), (np.array([1.5, 2.5]), "")),
        *((np.array([b"NT-1"]), "foo"), (3, ""), (np.zeros(0), ""), ([["NT-1", "TP53"]], "foo")),
        (h5py.Empty("f4"), ""),
    ],
)
def test_item_12_a_table_of_obsm_with_odd_names_of_columns_is_no_table_of_guides(
    file, order, suggested
):
    table = pd.DataFrame({"NT-1": [1.0, 0.0] * 45}, index=[f"c{i}" for i in range(90)])
    write(file, each(45)("ctrl", "TP53"), obsm={"foo": table})
    with h5py.File(file, "a") as raw:
        del raw["obsm/foo"].attrs["column-order"]
        raw["obsm/foo"].attrs["column-order"] = order
    assert inspect(file)["suggested"]["table"] == suggested


def test_item_06_the_real_table_of_guides():
    data = read_h5ad(real("schraivogel2020_tapseq.h5ad"), dosage_key="guides")
    assert (len(data.cells), len(data.perturbations)) == (21_977 - 662, 56)
    assert len(data.source["control_labels"]) == 30
    by_label = read_h5ad(real("schraivogel2020_tapseq.h5ad"), drop_unlabelled=True)
    assert list(by_label.perturbations) == list(data.perturbations)
    np.testing.assert_array_equal(by_label.dosages.toarray(), data.dosages.toarray())


# Columns that say more


def test_item_07_a_column_that_only_says_perturbed_gives_way_to_that_of_targets(file):
    target = each()("NT", "STAT1", "JAK2")
    write(file, np.where(np.array(target) == "NT", "NT", "Perturbed"), obs={"gene_target": target})
    data = read_h5ad(file)
    assert data.source["perturbation_key"] == "gene_target"
    assert "'gene_target' is read instead" in said(data)
    assert inspect(file)["suggested"]["perturbation_key"] == "gene_target"
    named = said(read_h5ad(file, perturbation_key="perturbation"))
    assert "--perturbation-key gene_target reads it" in named


def test_item_07_second_perturbations_and_their_number_are_told(file):
    labels = each()("control", "A", "B")
    obs = {"perturbation_2": ["x", "y"] * 60, "nperts": [1] * 40 + [2] * 80}
    write(file, labels, obs=obs)
    for text in (said(read_h5ad(file)), told(inspect(file))):
        assert "Column 'perturbation_2' (x, y) names a second perturbation" in text
        assert "Column 'nperts' counts up to 2 perturbations a cell" in text


@pytest.mark.parametrize("name", ["dose", "dose_value", "dose_val", "Dosage", "concentration_nM"])
def test_item_07_dosages_are_offered(file, name):
    dose = [0.0] * 40 + [10.0, 1000.0] * 20
    write(file, each()("control", "Trametinib"), obs={name: dose})
    data = read_h5ad(file)
    assert f"--dosage-key {name} reads them" in said(data)
    assert f"--dosage-key {name} reads them" in told(inspect(file))
    assert inspect(file)["suggested"]["dosage_key"] == name
    read = read_h5ad(file, dosage_key=name)
    assert set(read.conditions) == {"control", "Trametinib:10", "Trametinib:1000"}
    assert "are not read: all dosages" not in said(read)


@pytest.mark.parametrize(
    ("guide", "target"),
    [
        *(("ZAP70_1", "ZAP70"), ("ZAP70-g2", "ZAP70"), ("sgZAP70", "ZAP70"), ("sgTP53_3", "TP53")),
        *(("STAT5Ag4", "STAT5A"), ("TP53.2", "TP53"), ("enh3_grna1", "enh3")),
        ("CROPseq_dCas9_DS_CCNE2_+_95907328.23-P1P2", "CCNE2"),
        *(("NKX2-1", ""), ("HLA-A", ""), ("compound_1", ""), ("NT_1", ""), ("sgNT", "")),
        *(("IL-6", ""), ("KRTAP5-1", ""), ("MYC-A", "")),
    ],
)
def test_item_07_guides_name_their_targets_and_other_names_do_not(guide, target):
    assert targets_of([guide]).get(guide, "") == target


def test_item_07_guides_are_offered_to_be_joined_and_joined_when_asked(file):
    labels = each()("control", "ZAP70_1", "ZAP70_2", "LCK_1", "LCK_2", "ZAP70_1+LCK_2")
    write(file, labels)
    assert "4 names look like guides of 2 targets, 2 guides for each" in said(read_h5ad(file))
    assert "--join-guides joins them" in told(inspect(file))
    joined = read_h5ad(file, join_guides=True)
    assert list(joined.perturbations) == ["LCK", "ZAP70"]
    assert set(joined.conditions) == {"control", "ZAP70", "LCK", "LCK+ZAP70"}
    assert joined.dosages.max() == 1
    assert "they are joined by target" in said(joined)


def test_item_07_guides_are_counted_in_plain_words():
    three = targets_of(["ZAP70_1", "ZAP70_2", "LCK_1"])
    assert guides_note(three, False)[0].startswith(
        "3 names look like guides of 2 targets, 1 to 2 guides for each (ZAP70_1 is one of ZAP70)."
    )
    assert guides_note({"sgLCK": "LCK"}, True) == [
        "1 name looks like a guide of 1 target (sgLCK is one of LCK); it is joined by target."
    ]


def test_item_17_of_columns_only_those_that_may_be_labels_are_looked_at(monkeypatch):
    """Searching 200,000 barcodes for controls took 14 seconds."""
    labels = each()("NT", "STAT1", "JAK2")
    said = np.where(np.array(labels) == "NT", "NT", "Perturbed")
    numbers = [str(i) for i in range(120)]
    obs = pd.DataFrame({"gene": labels, "perturbation": said, "barcode": numbers})
    obs["depth"] = np.arange(120.0)
    looked = []

    def noted(known, control=None):
        looked.append(len(known))
        return control_labels(known, control)

    monkeypatch.setattr(label_column, "MOST_LABELS", 100)
    monkeypatch.setattr(label_column, "control_labels", noted)
    (note,) = key_notes(obs, "gene", False, None)
    assert note.startswith("Column 'perturbation' says only that cells are perturbed")
    assert max(looked) < 120


def test_item_07_what_is_odd_is_told_of_the_cells_that_are_read(file):
    """Cells that are left out do not affect notes on the matrix or the size factor."""
    counts = np.random.default_rng(0).poisson(2.0, (120, 8)).astype(np.float32) + 1
    counts[80:] = 0  # the cells without a label
    counts[:80, 0] = 3
    labels, depth = each()("ctrl", "TP53", "none"), np.full(120, 500.0)
    depth[80:] = np.nan
    obs = pd.DataFrame({"perturbation": labels, "total_counts": depth})
    obs.index = [f"c{i}" for i in range(120)]
    anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=list("ABCDEFGH"))).write_h5ad(file)
    source = read_h5ad(file, drop_unlabelled=True).source
    assert source["size_factor_suggestion"] == "total_counts"
    assert "1 of 8 genes have the same count in every cell." in source["notes"]
    assert not any("no count but 0" in note for note in source["notes"])
    assert any("40 cells have no count but 0" in n for n in read_h5ad(file).source["notes"])


def test_item_07_guides_of_a_table_are_joined(file):
    tables = guides()
    tables["guides"].columns = ["A_g1", "A_g2", "NT-1", "NT-2"]
    tables["guides"].iloc[0, 1] = 1
    write(file, ["x"] * 130, "lab", obsm=tables)
    data = read_h5ad(file, dosage_key="guides", join_guides=True)
    assert list(data.perturbations) == ["A_g1", "A_g2"]  # "A" is no gene
    tables["guides"].columns = ["TP53_g1", "TP53_g2", "NT-1", "NT-2"]
    write(file, ["x"] * 130, "lab", obsm=tables)
    data = read_h5ad(file, dosage_key="guides", join_guides=True)
    assert list(data.perturbations) == ["TP53"]
    assert (data.dosages.toarray()[:80] == 1).all()


def test_item_07_cells_without_a_label_are_left_out_when_asked(file):
    write(file, [None] * 20 + each()("non-targeting", "TP53"), "gene")
    with pytest.raises(DataError, match=r"20 cells have no label .* --drop-unlabelled"):
        read_h5ad(file)
    data = read_h5ad(file, drop_unlabelled=True)
    assert len(data.cells) == data.counts.shape[0] == data.dosages.shape[0] == 80
    assert data.cells[0] == "c20"
    assert "20 cells of which no perturbation is known are left out" in said(data)
    assert found(file, drop_unlabelled=False)[:2] == (60, ["TP53"])
    assert "--drop-unlabelled" in told(inspect(file))


@pytest.mark.parametrize("kind", [">i4", ">f8", ">u2", ">i8"])
def test_item_15_columns_of_another_order_of_bytes_are_read_also_where_cells_are_left_out(
    file, kind
):
    write(file, each()("ctrl", "TP53", "none"))
    with h5py.File(file, "a") as raw:
        for name, n in (("obs", 120), ("var", 8)):
            made = raw[name].create_dataset("score", data=np.arange(n).astype(kind))
            made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            raw[name].attrs["column-order"] = [*raw[name].attrs["column-order"], "score"]
    assert inspect(file)["n_cells"] == 120
    assert found(file, drop_unlabelled=True)[:2] == (40, ["TP53"])


def test_item_07_labels_that_say_that_nothing_was_found_are_no_perturbation(file):
    write(file, each()("ctrl", "A", "none", "Unassigned"))
    assert "80 cells of which no perturbation is known ('Unassigned', 'none')" in said(
        read_h5ad(file)
    )
    assert found(file, drop_unlabelled=True)[:2] == (40, ["A"])
    assert found(file, control="none")[0] == 40


def test_item_07_an_uneven_column_is_told_and_an_even_one_is_not(file):
    labels = each()("control", "A", "B")
    line = each()("T98G", "A172", "A172")
    write(file, labels, obs={"cell_line": line, "cell_type": line, "batch": ["x", "y"] * 60})
    for text in (said(read_h5ad(file)), told(inspect(file))):
        assert "Warning: Columns 'cell_line' and 'cell_type' differ" in text
        assert "100% of the cells of A are 'A172', and 0% of the control cells" in text
        assert "no covariate can tell the two apart" in text
        assert "'batch' differs" not in text


def test_item_07_the_unevenness_of_real_screens():
    jurkat = said(read_h5ad(real("datlinger2021_jurkat.h5ad")))
    assert "'perturbation_2' differs between perturbations" in jurkat
    assert "86% of the cells of LAT_1 are 'unstimulated', and 30% of the control" in jurkat
    assert "--covariate perturbation_2 accounts for it" in jurkat
    assert "40 names look like guides of 20 targets, 2 guides for each" in jurkat
    assert not read_h5ad(real("papalexi2021_thp1.h5ad")).source["warnings"]


def test_item_07_few_controls_are_told_before_training(file, tmp_path):
    write(file, each(control=3)("control", "A", "B"))
    data = read_h5ad(file)
    assert "Warning: There are only 3 control cells" in said(data)
    lines = []
    config = TrainConfig(steps=2, batch_size=32)
    with pytest.raises(StopIteration):
        train.train(
            data,
            split(data),
            tmp_path / "run",
            {"n_latent": 2, "n_hidden": 4},
            config,
            on_epoch=lambda _: next(iter(())),
            say=lines.append,
        )
    assert lines[0].startswith("83 cells, 3 of them controls (control); 2 perturbations")
    assert "only 3 control cells" in lines[1]


def test_item_07_odd_names_stay_whole(file):
    odd = ["(+)-JQ1", "IFN-γ", "Nutlin-3a + Trametinib", "5-FU/leucovorin", "=1+1", "../x"]
    odd += ["Ca2+", "CD3+CD28", "H2O2, 1 mM", "a|b;c"]
    write(file, each()("ctrl", *odd))
    assert found(file) == (40, sorted(odd), set())


# How it was read is kept with the run


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (["NT-1", "NT-2", "STAT1", "MYC", "STAT1_MYC"], {}),
        (["GFP", "mCherry", "STAT1", "MYC_1"], {"control": ["GFP", "mCherry"]}),
        (["control", "ZAP70_1", "ZAP70_2", "none"], {"join_guides": True, "drop_unlabelled": True}),
        (["ctrl+ctrl", "STAT1+ctrl", "MYC+STAT1"], {"delimiter": "+"}),
    ],
)
def test_item_06_a_run_reads_its_data_as_it_was_read(file, tmp_path, labels, options, monkeypatch):
    data = read_h5ad(write(file, each()(*labels)), **options)
    kept = {"data": data.source}
    monkeypatch.setattr(train, "read_settings", lambda _: kept)
    again = read_cells(file, train.read_options(tmp_path))
    assert train.checksums(again) == train.checksums(data)
    assert (again.control, list(again.conditions)) == (data.control, list(data.conditions))


def test_item_06_runs_from_before_read_their_tables_as_they_did(file, tmp_path, monkeypatch):
    write(file, ["x"] * 130, "lab", obsm=guides())
    old = {"perturbation_key": None, "dosage_key": "guides", "control_labels": []}
    monkeypatch.setattr(train, "read_settings", lambda _: {"data": old})
    again = read_cells(file, train.read_options(tmp_path))
    assert len(again.cells) == 130
    assert "DS_non-targeting_00025" in again.perturbations
    assert int((again.conditions == "control").sum()) == 10


@pytest.mark.parametrize("labels", [["NT-1", "NT-2", "NT-3", "STAT1"], ["odd1", "odd2", "STAT1"]])
def test_item_06_of_the_controls_that_a_run_noted_one_is_enough(
    file, tmp_path, labels, monkeypatch
):
    """Another file may lack a rare control, and no --control was given."""
    source = read_h5ad(write(file, each()(*labels)), control=labels[:-1]).source
    assert source["control_labels"] == labels[:-1]
    monkeypatch.setattr(train, "read_settings", lambda _: {"data": source})
    write(file, each()(labels[0], "STAT1"))
    options = train.read_options(tmp_path)
    again = read_cells(file, options)
    assert again.source["control_labels"] == labels[:1]
    assert list(again.perturbations) == ["STAT1"]
    write(file, each()("GFP", "STAT1"))
    with pytest.raises(DataError, match="when the model was trained") as refused:
        read_cells(file, options)
    assert "--control" not in str(refused.value)


def test_item_04_runs_from_before_part_at_plus(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "read_settings", lambda _: {"data": {"perturbation_key": "gene"}})
    assert train.read_options(tmp_path).delimiter == "+"


# The command line


def test_item_06_the_options_of_the_command_line_reach_the_reader(file, capsys, monkeypatch):
    write(file, each()("GFP", "mCherry", "ZAP70_1", "ZAP70_2", "none"))
    options = ["--control", "GFP", "--control", "mCherry", "--join-guides", "--drop-unlabelled"]
    monkeypatch.setattr(sys, "argv", ["samsvae", "validate", str(file), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code in (0, None)
    assert "160 cells x 8 genes" in out
    assert "1 perturbations in column" in out
    assert "80 control cells" in out


# The shared scripts


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return a function that makes a case of the shared scripts."""
    folder = tmp_path_factory.mktemp("cases")

    def made(name):
        script = CASES / (
            f"{name}.py" if name.startswith("c") and name[1].isdigit() else "labels.py"
        )
        if not script.exists():
            pytest.skip(f"{script} is absent")
        path = folder / f"{name}.h5ad"
        if not path.exists():
            target = str(folder if script.name == "labels.py" else path)
            with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                patch.setattr(sys, "argv", [str(script), target])
                runpy.run_path(str(script), run_name="__main__")
        return path

    return made


# Of each case: options, control cells, perturbations, combinations, and what is said of it.
EXPECTED = {
    "plus": ({}, 60, 2, 1, "parted at '+'"),
    "underscore": ({}, 50, 2, 1, "parted at '_'"),
    "pipe": ({}, 50, 2, 1, "parted at '|'"),
    "norman_raw": ({}, 60, 2, 1, "parted at '_'"),
    "nt_numbered": ({}, 90, 2, 0, "3 labels are taken as control"),
    "sg_prefixed": ({}, 60, 2, 0, "2 labels are taken as control"),
    "two_controls": ({"control": ["GFP", "mCherry"]}, 70, 2, 0, "2 labels are taken as control"),
    "control_and_aavs1": ({}, 40, 3, 0, "AAVS1 may be a control, too"),
    "c01_prefixed_nontargeting_guides": ({}, 80, 2, 0, "2 labels are taken as control"),
    "c02_obsm_nontargeting_columns": ({"dosage_key": "guides"}, 76, 3, 0, "10 cells without any"),
    "c04_second_perturbation_confounded": ({}, 100, 2, 0, "Warning: Column 'perturbation_2'"),
    "c05_guide_suffixes": (
        {"join_guides": True},
        30,
        4,
        0,
        "8 names look like guides of 4 targets",
    ),
    "c06_mixscape_perturbation_column": ({}, 60, 4, 0, "column 'gene_target'"),
    "c07_underscore_pairs": ({}, 30, 4, 2, "parted at '_'"),
    "c08_dose_value": ({}, 60, 2, 0, "--dosage-key dose_value reads them"),
    "c10_weird_names": ({}, 20, 10, 0, "labels read whole"),
    "c11_stim_column": ({"perturbation_key": "group_id"}, 150, 1, 0, "1 perturbations"),
    "c13_missing_labels": ({"drop_unlabelled": True}, 60, 1, 0, "20 cells of which no"),
    "c14_celltype_confounded": ({}, 100, 2, 0, "'cell_line' and 'cell_type' differ"),
    "c15_control_three_cells": ({}, 3, 2, 0, "only 3 control cells"),
}
REFUSED = {
    "two_controls": ({}, "--control GFP --control mCherry"),
    "c03_high_moi_no_empty_cell": ({"dosage_key": "guides"}, "is not supported yet"),
    "c11_stim_column": ({}, "--perturbation-key group_id"),
    "c13_missing_labels": ({}, "--drop-unlabelled"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_item_07_the_shared_cases_are_read_as_is_right(shared, name):
    options, n_controls, n_perturbations, n_combinations, words = EXPECTED[name]
    path = shared(name)
    controls, perturbations, combinations = found(path, **options)
    assert (controls, len(perturbations), len(combinations)) == (
        n_controls,
        n_perturbations,
        n_combinations,
    )
    assert words in said(read_h5ad(path, **options))


@pytest.mark.parametrize("name", REFUSED)
def test_item_07_the_shared_cases_that_cannot_be_read_say_what_to_do(shared, name):
    options, words = REFUSED[name]
    with pytest.raises(DataError) as refused:
        read_h5ad(shared(name), **options)
    assert words in str(refused.value)
    if "dosage_key" not in options:
        assert words in told(inspect(shared(name)))
