"""A model that was trained too briefly says so wherever it predicts; others do not."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from app.export.items import SavedView, Text
from app.export.methods import methods
from samsvae_core.bundle import layout, opening
from samsvae_core.bundle.bundle import Bundle
from samsvae_core.bundle.layout import BundleError, read_json, to_json
from samsvae_core.cli import main as cli
from samsvae_core.evaluation import fitness
from samsvae_core.pipeline import train
from samsvae_core.training.config import TrainConfig
from tests.conftest import MODEL

ROOT = Path(__file__).resolve().parents[2]
UNFIT = "This model is not fit to predict from."
PREDICTING = ["overview", "perturbation", "masks", "mechanism", "gene", "cells", "compose"]
PREDICTING += ["partners", "gene_sets"]
SETTLED = {"bound_gain": 0.6, "bound_se": 0.04, "n_cells": 900, "effects": None}


@pytest.fixture(scope="module")
def brief(screen, quick_tables, tmp_path_factory) -> Bundle:
    """Return a bundle trained for six steps at the usual rates; no test may change it."""
    run = tmp_path_factory.mktemp("brief") / "brief"
    config = TrainConfig(steps=6, batch_size=256)
    return train.train(screen.data, screen.parts, run, MODEL, config)


def history(*bounds: float) -> pd.DataFrame:
    return pd.DataFrame({"step": np.arange(1, len(bounds) + 1), "validation_bound": bounds})


def masks(n_active: int, n: int = 100) -> pd.DataFrame:
    return pd.DataFrame({"active": np.arange(n) < n_active})


def rewrite(folder: Path, change) -> Bundle:
    """Replace the metrics of a bundle and update its manifest."""
    metrics = read_json(folder / "metrics.json")
    change(metrics)
    (folder / "metrics.json").write_bytes(to_json(metrics))
    layout.write_manifest(folder, layout.read_manifest(folder)["data"], "cpu")
    return opening.load(folder)


def test_item_08_a_training_of_few_steps_is_told_on_its_card_and_in_its_figures(brief):
    said = fitness.caution(brief)
    assert said.startswith(UNFIT)
    assert "24 of its 24 mask entries are active" in said
    assert "Train it for more steps" in said
    assert brief.card.splitlines()[2] == f"**Caution.** {said}"


@pytest.mark.parametrize("name", ["papalexi2021", "norman2019-subset"])
def test_item_08_shipped_models_have_nothing_to_say(name):
    shipped = opening.load(ROOT / "pretrained" / name)
    assert fitness.caution(shipped) == ""
    assert "Caution" not in shipped.card
    record = shipped.metrics["validation"]
    assert fitness.late_rise(shipped.history) < fitness.RISING * record["bound_gain"] < 1
    assert record["effects"]["gain"] > 2 * record["effects"]["se"]


def test_item_08_the_right_effects_are_worth_something_and_wrong_ones_less_than_nothing(
    screen, known_effects
):
    right = known_effects(screen.truth)
    found = fitness.on_validation(right, screen.data, screen.parts)
    assert found["effects"]["gain"] > 2 * found["effects"]["se"] > 0
    assert found["effects"]["gain"] < found["effects"]["no_change"]
    assert fitness.doubts(history(-9, -8, -8, -8, -8, -8), masks(20), found, True) == []
    right.embedding_loc.neg_()
    found = fitness.on_validation(right, screen.data, screen.parts)
    (said,) = fitness.doubts(history(-8, -8), masks(20), found, True)
    assert "worse than predicting no change" in said


def test_item_08_no_effect_at_all_is_no_fault(screen, known_effects):
    still = known_effects(screen.truth)
    still.mask_logits.fill_(-60)
    found = fitness.on_validation(still, screen.data, screen.parts)
    assert found["effects"]["gain"] == pytest.approx(0, abs=3 * found["effects"]["se"])
    assert fitness.doubts(history(-9, -8.5, -8.2, -8.1, -8, -7.9), masks(0), found, True) == []


def test_item_08_a_bound_that_still_rises_is_told():
    rising = history(-20, -18, -16, -14, -12, -10, -9, -8, -7, -6)
    assert fitness.late_rise(rising) == pytest.approx(2)
    (said,) = fitness.doubts(rising, masks(20), SETTLED, True)
    assert "still rose by 2 nats per cell in the last fifth" in said
    settled = history(*rising["validation_bound"], *[-5] * 40)
    assert fitness.doubts(settled, masks(20), SETTLED, True) == []
    for too_short in (rising.head(1), rising.assign(step="?"), rising.assign(step=3)):
        assert fitness.late_rise(too_short) is None


def test_item_08_masks_that_are_all_on_are_told_of_models_that_have_masks():
    flat = history(-8, -8, -8)
    (said,) = fitness.doubts(flat, masks(97), SETTLED, True)
    assert said.startswith("97 of its 100 mask entries are active")
    assert fitness.doubts(flat, masks(94), SETTLED, True) == []
    assert fitness.doubts(flat, masks(100), SETTLED, False) == []


def test_item_08_bundles_made_before_say_only_what_they_hold(copied):
    old = rewrite(copied, lambda metrics: metrics.pop("validation"))
    assert fitness.late_rise(old.history) is not None
    assert "rose" not in fitness.caution(old)
    odd = rewrite(copied, lambda metrics: metrics.update(validation=5))
    with pytest.raises(BundleError, match="validation figures cannot be read"):
        fitness.caution(odd)


@pytest.mark.parametrize("page", PREDICTING)
def test_item_08_every_page_that_predicts_says_so(brief, monkeypatch, page):
    monkeypatch.setenv("SAMSVAE_MODELS", str(brief.path.parent))
    drawn = AppTest.from_file(str(ROOT / "app" / "main.py"), default_timeout=120)
    drawn = drawn.run().switch_page(f"views/{page}.py").run()
    assert any(warning.value.startswith(UNFIT) for warning in drawn.warning)
    recorded = drawn.session_state["drawing"]
    assert any(isinstance(each, Text) and UNFIT in each.markdown for each in recorded)


def test_item_08_the_methods_of_a_report_say_so_once():
    said = Text(f"**Caution.** {UNFIT}")
    kept = [
        SavedView("a", "overview", "m (M)", "0" * 64, "today", (said, Text("b"))) for _ in range(2)
    ]
    assert methods(kept).count(UNFIT) == 1


def test_item_08_the_command_line_says_so_and_writes_it_beside_what_it_predicts(
    brief, monkeypatch, capsys, tmp_path
):
    name = str(brief.perturbations.index[0])

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["samsvae", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        said = capsys.readouterr()
        return said.out + said.err

    assert UNFIT in run("compose", brief.path, name, "-o", tmp_path / "a.csv")
    assert json.loads((tmp_path / "a.json").read_text())["caution"].startswith(UNFIT)
    assert UNFIT in run("gene", brief.path, brief.genes[0])
    gene_sets = ("enrich", brief.path, "--perturbation", name, "-o", tmp_path / "sets")
    assert UNFIT in run(*gene_sets)
    assert UNFIT in (tmp_path / "sets" / "methods.md").read_text()
    assert UNFIT in json.loads((tmp_path / "sets" / "settings.json").read_text())["caution"]
