"""Composing all perturbations at once gives the numbers of composing each, cached or not."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from samsvae_core.analysis import all_shifts, gene_card
from samsvae_core.analysis.all_shifts import cache_file, kept, observed_alone, whole_effects
from samsvae_core.bundle import bundle, layout
from samsvae_core.bundle.layout import EFFECTS, BundleError
from samsvae_core.bundle.opening import load
from samsvae_core.genesets.prerank import CancelledError, Progress
from samsvae_core.models.variants import ConditionalVAE
from tests.oracles import similar_shifts


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMSVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def without(copied, cache):
    """Return a bundle as made before shifts were stored."""
    (copied / EFFECTS).unlink()
    manifest = layout.read_json(copied / "manifest.json")
    layout.write_manifest(copied, manifest["data"], "cpu")
    return load(copied)


def never(*args, **kwargs):
    raise AssertionError("composed again")


def test_a_bundle_holds_what_composing_each_perturbation_gives(tiny):
    found, table = kept(tiny), gene_card.effect_table(tiny)
    for gene in tiny.genes[::13]:
        expected = table[table["gene"] == gene].reset_index(drop=True)
        pd.testing.assert_frame_equal(found.of_gene(gene), expected, rtol=1e-5, atol=1e-6)


def test_perturbations_are_as_alike_as_in_the_whole_table(tiny):
    expected = similar_shifts(gene_card.effect_table(tiny), "P2")
    found = kept(tiny).similar("P2")
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5, check_like=True)


def test_a_bundle_without_is_composed_once_and_read_from_the_cache_then(without, monkeypatch):
    assert kept(without) is None
    heard = []
    made = whole_effects(without, progress=heard.append)
    n = len(without.perturbations)
    assert heard == [Progress(done, n) for done in range(n)]
    monkeypatch.setattr(all_shifts, "make", never)
    again = whole_effects(load(without.path))
    for gene in without.genes[::13]:
        pd.testing.assert_frame_equal(again.of_gene(gene), made.of_gene(gene))


def test_what_is_composed_in_the_cache_is_what_a_bundle_would_hold(tiny, without):
    """The model is not changed in between, except for the rotation to the same axes."""
    whole_effects(without)
    theirs, ours = load_file(tiny.path / EFFECTS), load_file(cache_file(without))
    assert theirs.keys() == ours.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["cut", "flipped", "of another recipe", "of another shape"])
def test_a_damaged_file_in_the_cache_is_made_again(without, monkeypatch, change):
    expected = whole_effects(without).of_gene(without.genes[0])
    file = cache_file(without)
    content = file.read_bytes()
    if change == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif change == "flipped":
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif change == "of another recipe":
        with monkeypatch.context() as patch:
            patch.setattr(all_shifts, "RECIPE", "0")
            file.write_bytes(all_shifts.packed(load_file(file)))
    else:
        file.write_bytes(all_shifts.packed({k: v[:, 1:] for k, v in wide(load_file(file)).items()}))
    assert kept(without) is None
    pd.testing.assert_frame_equal(whole_effects(without).of_gene(without.genes[0]), expected)
    assert kept(without) is not None


def wide(arrays):
    return {name: np.atleast_2d(array) for name, array in arrays.items()}


def test_a_cache_that_cannot_be_written_is_no_error(without, cache):
    cache.write_text("a file where a folder is looked for")
    found = whole_effects(without)
    expected = gene_card.effect_table(without, genes=[without.genes[3]])
    pd.testing.assert_frame_equal(found.of_gene(without.genes[3]), expected, rtol=1e-5, atol=1e-6)
    assert kept(without) is None


def test_a_bundle_whose_effects_were_changed_is_damaged(copied):
    file = copied / EFFECTS
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="its checksum differs"):
        load(copied)


def test_others_compose_in_between(without):
    """The lock is free between two perturbations."""
    lock, waited = threading.Lock(), []

    def progress(heard):
        waited.append(lock.acquire(timeout=10))
        lock.release()

    whole_effects(without, lock, progress)
    assert waited == [True] * len(without.perturbations)


def test_composing_all_can_be_cancelled_and_leaves_nothing(without):
    with pytest.raises(CancelledError):
        whole_effects(without, cancelled=lambda: True)
    assert not cache_file(without).exists()


def test_a_model_without_a_posterior_has_shifts_and_no_intervals(without):
    torch.manual_seed(0)
    other = replace(without, model=ConditionalVAE(without.model.config))
    found = all_shifts.make(other.model, other.reference, {})
    assert np.isfinite(found["shift"]).all()
    assert np.isnan(found["lower"]).all()
    assert np.isnan(found["probability_of_sign"]).all()


def test_measured_shifts_are_those_of_the_bundle_whatever_the_order_of_the_table(tiny):
    names = [*tiny.perturbations.index, "never measured"]
    table = tiny.observed.sample(frac=1, random_state=0)
    found = observed_alone(table, tiny.genes, names, tiny.control)
    for t, name in enumerate(names):
        expected = tiny.observed_shift(name)
        if expected is None:
            assert np.isnan(found["observed"][:, t]).all()
            assert found["n_observed"][t] == 0
            continue
        np.testing.assert_allclose(found["observed"][:, t], expected["shift"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["observed_se"][:, t], expected["se"], rtol=1e-5)
        assert found["n_observed"][t] == expected["n"].max()
    assert found["n_observed"][-1] == 0


def test_one_gene_is_read_and_no_more(tiny, monkeypatch):
    found = kept(tiny)
    monkeypatch.setattr(all_shifts.AllShifts, "matrix", never)
    monkeypatch.setattr(bundle.Bundle, "observed", property(partial(never)))
    assert len(found.of_gene(tiny.genes[0])) == len(tiny.perturbations)


def test_the_same_effects_are_the_same_bytes_every_time():
    arrays = {name: np.arange(6, dtype=np.float32).reshape(2, 3) for name in all_shifts.ARRAYS}
    assert len({all_shifts.packed(arrays) for _ in range(20)}) == 1
