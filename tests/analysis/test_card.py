"""The model card says what its figures say."""

import html
from dataclasses import replace

import numpy as np
import pandas as pd

from samsvae_core.analysis.card import (
    covariates_of,
    frontier_in_words,
    near_misses_in_words,
    prior_in_words,
)
from samsvae_core.analysis.held_out import (
    as_text,
    coverage_in_words,
    metrics_in_words,
    other_draws,
    verdict,
)
from samsvae_core.bundle import layout
from samsvae_core.data.covariates import Covariates, covariates_in_words
from samsvae_core.models.variants import MODELS


def test_names_from_files_are_text_on_the_card():
    from markdown_it import MarkdownIt

    for name in ("<b>x</b>", "![a](http://x)", "[a](http://x)", "_a_", "**a**", "`a`", "a_b.h5ad"):
        assert MarkdownIt().renderInline(as_text(name)) == html.escape(name)


def test_the_card_says_what_a_reader_has_to_know(tiny):
    for text in (
        "screen.h5ad, 600 cells used x 40 genes, 6 perturbations, control control",
        "4 latent dimensions, 16 hidden units",
        "0.16 nats of evidence per training cell",
        "| SAMS-VAE |",
        "| training mean |",
    ):
        assert text in tiny.card
    for name in layout.read_csv(tiny.path / "masks.csv").query("active")["perturbation"].unique():
        assert f"{name} " in tiny.card


def test_the_card_tells_what_the_model_accounts_for(tiny, screen):
    assert "- Replicates and batches are not modelled." in tiny.card
    one = Covariates({"<b>batch</b>": ("a", "b")}, np.zeros((600, 1), np.int32))
    told = covariates_of(replace(screen.data, covariates=one))
    assert told == (
        f"Accounts for {as_text('<b>batch</b>')} (2 levels): shifts are those of the mean cell "
        "over its levels."
    )
    active = pd.DataFrame({"active": [True, False, True]})
    assert covariates_of(replace(screen.data, covariates=one), 0, active) == (
        f"{told} Effects may differ by {as_text('<b>batch</b>')}: 2 differences are active."
    )
    assert covariates_of(replace(screen.data, covariates=one), 0, active[:1]).endswith(
        ": 1 difference is active."
    )
    assert covariates_in_words({"a": "xyz", "b": "x", "c": "xy"}) == (
        "a (3 levels), b (1 level) and c (2 levels)"
    )


def test_the_prior_is_told_as_it_was_set():
    evidence = {"mask_evidence": 0.16, "mask_prior": 0.05}
    assert "0.16 nats of evidence" in prior_in_words(MODELS["sams-vae"], evidence)
    published = {"mask_evidence": None, "mask_prior": 0.05}
    assert (
        prior_in_words(MODELS["sams-vae"], published)
        == "Mask prior: probability 0.05 (the published setting)."
    )


def scored(r, n=2, **kinds):
    """Return the held-out scores of one prediction."""
    found = {"pearson": r, "pearson_top20": r}
    return {**found, "n_conditions": n, "kinds": {k: {**found, "n": n} for k in kinds}}


def metrics(model, **baselines):
    names = {
        name.replace("_", " ").replace("split half", "split-half"): row
        for name, row in baselines.items()
    }
    return {"average_effects": model, "baselines": names}


def test_the_model_is_said_to_win_where_it_does():
    words = verdict(metrics(scored(0.9), training_mean=scored(0.5), no_change=scored(None)))
    assert "by r over all genes, the model beats every baseline" in words


def test_a_baseline_that_wins_is_named():
    words = verdict(metrics(scored(0.3), training_mean=scored(0.5), ridge=scored(0.2)))
    assert "training mean beats the model" in words
    assert "ridge" not in words


def test_several_baselines_that_win_are_named_as_a_sentence_names_them():
    words = verdict(metrics(scored(0.1), **{n: scored(0.5) for n in ("additive", "ridge", "mean")}))
    assert "by r over all genes, additive, ridge and mean beat the model;" in words


def test_a_baseline_within_the_error_of_the_draws_neither_wins_nor_loses():
    own = scored(0.607) | {"mc_error": {"pearson": 0.005}}
    words = verdict(metrics(own, training_mean=scored(0.567), ridge=scored(0.601)))
    assert (
        "by r over all genes, ridge cannot be told from the model (within two Monte Carlo errors "
        "of its r) and the model beats every other baseline; by r over the top 20, the model beats "
        "every baseline" in words
    )
    words = verdict(metrics(own, training_mean=scored(0.62), ridge=scored(0.61)))
    assert "training mean beats the model and ridge cannot be told from the model" in words
    assert "every" not in words.partition(";")[0]
    assert "no baseline to compare" in verdict(metrics(own, no_change=scored(None)))


def test_neither_the_ceiling_nor_an_easier_comparison_wins():
    easier = scored(0.99, n=1)
    rivals = {"split_half": scored(0.9), "training_mean": easier, "ridge": scored(0.2)}
    words = verdict(metrics(scored(0.3), **rivals))
    assert "the model beats every baseline" in words


def test_unseen_combinations_are_judged_apart():
    own = scored(0.9, n=3)
    own["kinds"] = {
        "combination not seen in training": {"pearson": 0.2, "pearson_top20": 0.2, "n": 1}
    }
    rival = scored(0.5, n=3)
    rival["kinds"] = {
        "combination not seen in training": {"pearson": 0.4, "pearson_top20": 0.1, "n": 1}
    }
    words = verdict(metrics(own, additive=rival))
    assert "On all conditions, by r over all genes, the model beats every baseline" in words
    assert "On unseen combinations, by r over all genes, additive beats the model" in words


def test_an_undefined_correlation_is_said():
    assert "undefined" in verdict(metrics(scored(None), no_change=scored(None)))


def test_priors_of_other_models_are_told():
    config = {"mask_evidence": 0.16, "mask_prior": 0.05}
    assert prior_in_words(MODELS["cpa-vae"], config) == "No masks."
    assert "Beta(1, 2)" in prior_in_words(MODELS["svae-plus"], config)


def test_near_misses_are_named_with_their_evidence():
    masks = pd.DataFrame(
        {
            "perturbation": ["A", "B", "C", "D"],
            "mechanism": [0, 1, 0, 1],
            "active": [True, False, False, False],
            "evidence": [1.0, 0.5, 0.5, np.nan],
            "evidence_se": [0.1, 0.1, 0.3, np.nan],
        }
    )
    words = near_misses_in_words(masks)
    assert "B in M1: 0.500 ± 0.100" in words
    for absent in ("A in", "C in", "D in"):
        assert absent not in words
    assert "none" in near_misses_in_words(masks[:1])


def test_the_frontier_is_told_where_it_was_trained():
    assert frontier_in_words(None) == []
    table = pd.DataFrame(
        {
            "mask_evidence": [0.16, 0.64],
            "active": [9, 4],
            "mechanisms": [3, 2],
            "validation_bound": [-10.0, -10.01],
            "difference": [0.0, -0.01],
            "difference_se": [0.0, 0.02],
            "effect_r": [0.5, 0.4],
            "chosen": [False, True],
        }
    )
    assert "| 0.64 | 4 | 2 | -10.010 | -0.010 ± 0.020 | 0.400 | yes |" in frontier_in_words(table)


def test_coverage_is_told_whatever_it_is():
    part = {"own": 0.08, "own_with_sampling": 0.7, "calibrated_with_sampling": None}
    words = coverage_in_words({"single": {**part, "n": 50, "n_conditions": 5}, "combination": None})
    for said in ("8.0%", "70.0%", "(not available)"):
        assert said in words
    assert "Not available" in coverage_in_words({"single": None, "combination": None})
    words = coverage_in_words({"single": None, "combination": None}, "too few conditions")
    assert words.endswith("There is no calibrated interval: too few conditions.")


def test_coverage_of_other_draws_is_told_from_that_of_the_bundle():
    kept, found = (
        {
            "coverage": {
                "n_draws": 64,
                "single": None,
                "combination": {
                    "own": own,
                    "own_with_sampling": 0.7,
                    "calibrated_with_sampling": calibrated,
                },
            }
        }
        for own, calibrated in ((0.163, 0.966), (0.199, None))
    )
    words = other_draws(kept, found, "2026-11-23")
    assert "made on 2026-11-23, has instead: 16.3%, 70.0%, 96.6% of combined shifts" in words
    assert "Posterior draws there and here: 64 and 64" in words
    assert other_draws(kept, kept, "2026-11-23") == ""
    assert other_draws({"not_available": "no test cells"}, found, "2026-11-23") == ""


def test_metrics_say_why_intervals_are_not_calibrated(tiny):
    metrics = {**tiny.metrics, "calibration": {"n_conditions": 1, "not_available": "too few"}}
    assert "There is no calibrated interval: too few." in metrics_in_words(metrics, "SAMS-VAE")
