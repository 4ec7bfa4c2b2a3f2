from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from samsvae_core.data.h5ad import read_h5ad
from samsvae_core.models.simulate import Design, published, random_outputs, simulate, write_h5ad
from tests.oracles import log_proportions

DESIGN = Design(n_cells=900, n_genes=30, n_perturbations=12, n_latent=4, n_combinations=3)


def test_the_same_seed_gives_the_same_cells_and_another_seed_others():
    one, same, other = (simulate(replace(DESIGN, seed=s)) for s in (1, 1, 2))
    assert (one[0].counts != same[0].counts).nnz == 0
    np.testing.assert_array_equal(one[1].embedding, same[1].embedding)
    assert (one[0].counts != other[0].counts).nnz > 0


def test_the_global_random_states_are_left_alone():
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    simulate(DESIGN)
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


def test_conditions_share_the_cells_and_controls_get_four_shares():
    data, _ = simulate(DESIGN)
    names, n = np.unique(data.conditions, return_counts=True)
    cells = dict(zip(names, n, strict=True))
    share = 900 / (12 + 3 + 4)
    assert len(cells) == 16
    assert cells.pop("control") == pytest.approx(4 * share, abs=4)
    assert all(abs(each - share) <= 1 for each in cells.values())


def test_dosages_say_what_the_labels_say():
    data, _ = simulate(DESIGN)
    dense = data.dosages.toarray()
    for row, label in zip(dense, data.conditions, strict=True):
        named = set() if label == "control" else set(label.split("+"))
        assert set(data.perturbations[row == 1]) == named
        assert set(np.unique(row)) <= {0.0, 1.0}


def test_every_perturbation_moves_a_mechanism_and_only_masked_entries_move():
    _, truth = simulate(replace(DESIGN, n_perturbations=200, n_cells=300))
    assert truth.mask.any(1).all()
    np.testing.assert_array_equal(truth.embedding != 0, truth.mask)
    sizes = abs(truth.embedding[truth.mask])
    assert sizes.mean() == pytest.approx(3.0, abs=4 * 0.3 / np.sqrt(len(sizes)))


def test_counts_are_those_of_the_decoder_at_the_moved_states():
    data, truth = simulate(replace(DESIGN, depth=3000.0, n_cells=3000))
    z = torch.from_numpy(truth.z_basal + data.dosages @ truth.embedding).float()
    share = log_proportions(truth.model, z).exp().double().numpy()
    log_r = truth.model.log_concentration[0].item()
    x = data.counts.toarray()
    # the depth asked for is not kept; the panel's own total stands in, which the sum of shares is 1
    mean = share * x.sum(1, keepdims=True)
    variance = (mean + mean**2 / np.exp(log_r)).sum(0)
    score = (x - mean).sum(0) / np.sqrt(variance)
    assert abs(score).max() < 4


def test_unmoved_states_would_not_explain_the_counts():
    data, truth = simulate(replace(DESIGN, depth=3000.0, n_cells=3000))
    perturbed = data.conditions != "control"
    share = log_proportions(truth.model, torch.from_numpy(truth.z_basal[perturbed]).float())
    x = data.counts.toarray()[perturbed]
    mean = share.exp().numpy() * x.sum(1, keepdims=True)
    variance = (mean + mean**2 / np.exp(3.0)).sum(0)
    assert abs((x - mean).sum(0) / np.sqrt(variance)).max() > 10


def test_the_fewest_cells_that_are_accepted_cover_every_condition():
    with pytest.raises(ValueError, match="at least") as refused:
        simulate(replace(DESIGN, n_cells=5))
    fewest = int(str(refused.value).split("at least ")[1].split()[0])
    data, _ = simulate(replace(DESIGN, n_cells=fewest))
    assert len(np.unique(data.conditions)) == 16
    with pytest.raises(ValueError, match="cannot cover 15 conditions"):
        simulate(replace(DESIGN, n_cells=fewest - 1))


def test_more_combinations_than_pairs_are_refused():
    with pytest.raises(ValueError, match="12 perturbations have 66 pairs; 67 were asked for"):
        simulate(replace(DESIGN, n_combinations=67))


def test_a_written_file_is_read_as_the_cells_it_holds(tmp_path):
    data, truth = simulate(DESIGN)
    write_h5ad(data, truth, tmp_path / "out.h5ad")
    read = read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(read.counts.toarray(), data.counts.toarray())
    np.testing.assert_array_equal(read.dosages.toarray(), data.dosages.toarray())
    for name in ("cells", "genes", "perturbations", "conditions", "library"):
        np.testing.assert_array_equal(getattr(read, name), getattr(data, name))
    kept = anndata.io.read_h5ad(tmp_path / "out.h5ad").uns
    np.testing.assert_array_equal(kept["true_mask"], truth.mask)
    np.testing.assert_array_equal(kept["true_embedding"], truth.embedding)


def few(name, **more):
    return published(name, **{"n_perturbations": 30, "cells_each": 60, **more})


def test_a_published_simulation_moves_as_many_mechanisms_as_its_paper_says():
    _, sams = published("sams-vae", n_perturbations=2000, cells_each=1)
    n = sams.mask.size
    assert sams.mask.mean() == pytest.approx(2 / 15, abs=4 * np.sqrt(2 / 15 * 13 / 15 / n))
    _, svae = published("svae-plus", n_perturbations=2000, cells_each=1)
    assert set(svae.mask.sum(1)) == {1, 2, 3}
    for truth in (sams, svae):
        np.testing.assert_array_equal(truth.embedding != 0, truth.mask)
        moves = truth.embedding[truth.mask]
        assert abs(moves).mean() == pytest.approx(5, abs=4 * 0.5 / np.sqrt(len(moves)))
        assert (moves > 0).mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(len(moves)))


def test_values_have_a_fifth_of_their_variance_as_noise_and_no_library():
    data, _ = few("sams-vae", cells_each=400)
    assert not data.is_counts
    assert set(data.library) == {1.0}
    states = np.random.default_rng(0).standard_normal((500, 15))
    np.testing.assert_allclose(random_outputs(states, 4, seed=0).var(0, ddof=1), 1, rtol=1e-5)
    variance = data.counts.toarray().var(0).mean()
    assert (variance - 1) / variance == pytest.approx(0.2, abs=0.01)


def test_counts_of_the_published_simulation_have_its_depth():
    data, _ = few("svae-plus")
    assert data.is_counts
    np.testing.assert_array_equal(data.library, np.asarray(data.counts.sum(1)).ravel())
    n = len(data.cells)
    assert data.library.mean() == pytest.approx(2000, abs=4 * np.sqrt(2000 / n))
    assert data.library.var() == pytest.approx(2000, rel=4 * np.sqrt(2 / n))  # Poisson


def test_control_cells_of_a_published_simulation_are_as_many_and_not_moved():
    data, _ = few("sams-vae")
    names, n = np.unique(data.conditions, return_counts=True)
    assert len(names) == 31
    assert set(n) == {60}
    assert data.dosages[data.conditions == "control"].nnz == 0
    for row, label in zip(data.dosages.toarray(), data.conditions, strict=True):
        assert set(data.perturbations[row == 1]) == set(data.perturbations) & {label}


def test_a_published_simulation_is_the_same_for_the_same_seed():
    one, same, other = (few("svae-plus", seed=seed)[0].counts for seed in (1, 1, 2))
    assert (one != same).nnz == 0
    assert (one != other).nnz > 0


def test_an_unknown_published_simulation_is_refused():
    with pytest.raises(ValueError, match="'cpa'; choose one of"):
        published("cpa")


def test_batches_move_genes_and_have_uneven_shares(tmp_path):
    design = Design(n_cells=6000, n_genes=50, n_perturbations=4, n_combinations=0, n_batches=3)
    data, truth = simulate(design)
    again, _ = simulate(design)
    assert np.array_equal(data.covariates.codes, again.covariates.codes)
    label = data.covariates.labels("batch")
    shares = pd.crosstab(data.conditions, label, normalize="index")
    assert list(shares) == ["b1", "b2", "b3"]
    assert (shares.max() - shares.min()).max() > 0.2
    control = data.conditions == "control"
    sums = (np.asarray(data.counts[control & (label == b)].sum(0)).ravel() for b in ("b1", "b2"))
    levels = [np.log(each + 1) for each in sums]
    offset = truth.model.level_offsets.offset.numpy()
    found, true = levels[0] - levels[1], offset[0] - offset[1]
    assert np.corrcoef(found - found.mean(), true - true.mean())[0, 1] > 0.95
    write_h5ad(data, truth, tmp_path / "b.h5ad")
    read = read_h5ad(tmp_path / "b.h5ad", covariates=["batch"])
    assert np.array_equal(read.covariates.labels("batch"), label)


def test_one_batch_is_the_screen_without_any():
    plain, one = simulate(Design(n_cells=200)), simulate(Design(n_cells=200, n_batches=1))
    assert (plain[0].counts != one[0].counts).nnz == 0
    assert one[0].covariates is None
