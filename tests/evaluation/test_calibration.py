import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from scipy.stats import norm

from samsvae_core.bundle.bundle import Reference
from samsvae_core.data.cells import DataError
from samsvae_core.evaluation import calibration
from samsvae_core.evaluation import shifts as shifts_of
from samsvae_core.evaluation.baselines import dosage_table
from samsvae_core.evaluation.calibration import (
    Predicted,
    coverage,
    gene_errors,
    interaction,
    predicted_conditions,
)
from samsvae_core.evaluation.level_errors import pooled_level
from samsvae_core.evaluation.shifts import (
    Shifts,
    observed_shifts,
    predicted_shifts,
    reference_cells,
    variance_of,
)
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.models.variants import MODELS

# Observed shifts


def test_shifts_are_against_control_and_their_errors_add_in_squares(screen):
    data = screen.data.subset(np.arange(200))
    variance = variance_of(data)
    found = observed_shifts(data, variance)
    n = pd.Series(data.conditions).value_counts()
    assert found.shift.index.tolist() == sorted(set(n.index[n >= 3]) - {"control"})
    level, se = {}, {}
    for name in ("control", "P2"):
        rows = data.conditions == name
        level[name], se[name] = pooled_level(data.counts[rows], data.library[rows], variance)
    np.testing.assert_allclose(found.shift.loc["P2"], level["P2"] - level["control"])
    np.testing.assert_allclose(found.se.loc["P2"] ** 2, se["P2"] ** 2 + se["control"] ** 2)
    controls = np.flatnonzero(data.conditions == "control")
    few = data.subset(np.delete(np.arange(200), controls[2:]))
    assert observed_shifts(few, variance).shift.empty


# Predicted shifts


def test_predictions_start_from_controls_that_were_trained_on(tiny, screen):
    controls = (screen.data.conditions == "control") & (screen.parts == "train")
    whole = reference_cells(tiny.model, screen.data, screen.parts, int(controls.sum()))
    np.testing.assert_array_equal(whole.library, screen.data.library[controls])
    fewer = reference_cells(tiny.model, screen.data, screen.parts, 5)
    assert len(fewer.loc) == 5
    assert set(fewer.library.tolist()) <= set(screen.data.library[controls].tolist())
    with pytest.raises(DataError, match="No control cell is among the training cells"):
        reference_cells(tiny.model, screen.data, np.where(controls, "test", screen.parts))


def basal(truth, data) -> Reference:
    """Return the true basal states of the control cells, without uncertainty."""
    rows = data.conditions == data.control
    loc = torch.as_tensor(truth.z_basal[rows], dtype=torch.float32)
    return Reference(loc, torch.zeros_like(loc), torch.as_tensor(data.library[rows]))


def test_shifts_are_of_mean_proportions_over_the_reference(screen, known_effects):
    truth, data = screen.truth, screen.data
    model, reference = known_effects(truth), basal(truth, data)
    D = dosage_table(data, pd.Index(["P1", "control", "P3"]))
    draws = predicted_shifts(model, reference, torch.as_tensor(D.to_numpy()), 2, seed=0).shift
    weights = {k: v.double().numpy() for k, v in model.decoder.state_dict().items()}

    def level(shift):
        hidden = (reference.loc.double().numpy() + shift) @ weights["hidden.weight"].T
        hidden += weights["hidden.bias"]
        hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
        p = softmax(hidden @ weights["out.weight"].T + weights["out.bias"], axis=1).mean(0)
        return np.log2(1 + 1e4 * p)

    for row, condition in enumerate(D.index):
        moved = D.loc[condition].to_numpy() @ truth.embedding
        expected = level(moved) - level(0 * moved)
        for s in range(2):
            np.testing.assert_allclose(draws[row, s], expected, atol=1e-4)
    assert not draws[1].any()


def test_shifts_do_not_depend_on_what_they_are_computed_with(tiny, screen, monkeypatch):
    names = pd.Index(["P1", "P2", "P5"])
    one = predicted_conditions(tiny.model, tiny.reference, screen.data, names, 8, seed=0)
    alone = predicted_conditions(tiny.model, tiny.reference, screen.data, names[1:2], 8, seed=0)
    np.testing.assert_allclose(one.mean.loc[["P2"]], alone.mean, atol=1e-5)
    monkeypatch.setattr(calibration, "CELL_VALUES_AT_ONCE", 1)
    monkeypatch.setattr(shifts_of, "STATE_VALUES_AT_ONCE", 1)
    other = predicted_conditions(tiny.model, tiny.reference, screen.data, names, 8, seed=0)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert (one.lower <= one.upper).all().all()
    assert (one.sd > 0).any().any()


def shifts_in_parts(model, reference, D, monkeypatch, parts: int) -> np.ndarray:
    values = len(reference.loc) * model.config.n_genes
    monkeypatch.setattr(shifts_of, "DRAW_VALUES", values // parts)
    return predicted_shifts(model, reference, D, 64, seed=0).shift


def test_each_draw_at_a_part_of_the_cells_is_close_to_all_draws_at_all_cells(
    tiny, known_effects, screen, monkeypatch
):
    """For the true model with a posterior, errors are far below the spread of draws."""
    model, reference = known_effects(screen.truth), basal(screen.truth, screen.data)
    model.embedding_log_scale.fill_(float(np.log(0.3)))
    D = torch.eye(model.config.n_perturbations)
    whole, parts = (shifts_in_parts(model, reference, D, monkeypatch, n) for n in (1, 4))
    other = predicted_shifts(model, reference, D, 64, seed=1).shift
    assert (whole != parts).any()
    for found in (np.mean, lambda x, axis: np.quantile(x, 0.95, axis=axis)):
        by_parts = np.abs(found(parts, axis=1) - found(whole, axis=1)).mean()
        by_draws = np.abs(found(other, axis=1) - found(whole, axis=1)).mean()
        assert by_parts < 0.5 * by_draws
    spread = parts.std(1) / np.maximum(whole.std(1), 1e-3)
    assert np.median(spread) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("parts", [1, 3, 4])
def test_where_nothing_moves_the_shift_is_exactly_zero(known_effects, screen, monkeypatch, parts):
    model, reference = known_effects(screen.truth), basal(screen.truth, screen.data)
    D = torch.eye(model.config.n_perturbations)[:3]
    D[1] = 0
    model.mask_logits[2].fill_(-60)
    found = shifts_in_parts(model, reference, D, monkeypatch, parts)
    assert (found[0] != 0).all()
    assert (found[1:] == 0).all()


def test_the_same_seed_gives_the_same_draws_whatever_the_rows(tiny):
    D = torch.eye(len(tiny.perturbations))
    every = predicted_shifts(tiny.model, tiny.reference, D, 8, seed=3).shift
    for rows in ([4, 1], [1, 2, 4]):
        some = predicted_shifts(tiny.model, tiny.reference, D[rows], 8, seed=3).shift
        np.testing.assert_allclose(some, every[rows], atol=1e-6)
    assert (predicted_shifts(tiny.model, tiny.reference, D, 8, seed=4).shift != every).any()


def test_drawing_leaves_the_random_state_as_it_was(tiny):
    before = torch.get_rng_state()
    predicted_shifts(tiny.model, tiny.reference, torch.eye(len(tiny.perturbations)), 2, seed=0)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(MODELS))
def test_drawn_shifts_have_the_moments_of_the_posterior(name):
    torch.manual_seed(0)
    model = MODELS[name](ModelConfig(n_genes=5, n_perturbations=3, n_latent=4, n_hidden=6))
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(0, 0.7 if parameter.shape[0] == 3 else 0.05)  # of few, and of networks
    n = 40_000
    drawn = model.sample_latent_shift(1, n, torch.Generator().manual_seed(0)).double()
    assert drawn.shape == (n, model.n_shift)
    if not model.has_shifts:
        assert (drawn == torch.tensor([0.0, 1.0, 0.0])).all()
        return
    mean, sd = (moment[1] for moment in model.effect_moments())
    error = 0.1 if name == "correlated-sams-vae" else 0.02  # its moments are of 512 draws
    torch.testing.assert_close(drawn.mean(0), mean, atol=error, rtol=error)
    torch.testing.assert_close(drawn.std(0), sd, atol=error, rtol=error)


# Errors per gene, and coverage

NAMES = [f"P{i}" for i in range(20)] + [f"P{i}+P{i + 1}" for i in range(20)]


def made(
    tau: np.ndarray, se: float, sd: float, seed: int, names: list[str] = NAMES
) -> tuple[Shifts, Predicted]:
    """Return observations with normal errors of the model (tau), of sampling and of draws."""
    rng = np.random.default_rng(seed)
    shape = len(names), len(tau)

    def table(values) -> pd.DataFrame:
        genes = [f"g{i}" for i in range(len(tau))]
        return pd.DataFrame(np.broadcast_to(values, shape).copy(), index=names, columns=genes)

    mean = rng.standard_normal(shape)
    spread = np.sqrt(tau**2 + se**2 + sd**2)
    observed = Shifts(table(mean + spread * rng.standard_normal(shape)), table(se))
    wide = 1.6449 * sd
    return observed, Predicted(table(mean), table(sd), table(mean - wide), table(mean + wide))


def test_the_error_of_the_model_is_found_beyond_sampling_and_posterior():
    tau = np.full(300, 0.5)
    found = gene_errors(*made(tau, 0.3, 0.2, seed=0))
    assert found["gene"].tolist() == [f"g{i}" for i in range(300)]
    # 40 conditions and the neighbours: about 9 % for a single gene
    assert found["model_error"].median() == pytest.approx(0.5, rel=0.1)
    assert found["model_error"].between(0.3, 0.7).all()


def test_genes_of_larger_errors_get_wider_intervals():
    tau = np.tile([0.1, 1.0], 150)
    found = gene_errors(*made(tau, 0.2, 0.1, seed=0))["model_error"]
    assert found[1::2].min() > found[::2].max()


def test_sampling_errors_that_are_too_large_for_some_genes_do_not_hide_those_of_others():
    """Squared errors of skewed shifts exceed their variance, as those of few counts do."""
    observed, predicted = made(np.full(300, 0.5), 0.3, 0.2, seed=0)
    observed.se.iloc[:, 150:] = 3.0
    found = gene_errors(observed, predicted)["model_error"]
    assert found[:150].median() == pytest.approx(0.5, rel=0.1)
    assert found[175:].max() < 0.15  # beyond the reach of similar genes: the least error


def test_a_model_without_errors_of_its_own_needs_hardly_any():
    found = gene_errors(*made(np.zeros(300), 0.3, 0.2, seed=0))
    assert found is None or found["model_error"].median() < 0.1


def test_calibrated_intervals_hold_nine_tenths_of_new_observations():
    tau = np.random.default_rng(1).choice([0.2, 0.6], 300)
    errors = gene_errors(*made(tau, 0.3, 0.2, seed=0))
    found = coverage(*made(tau, 0.3, 0.2, seed=9), errors, has_posterior=True)
    for kind in ("single", "combination"):
        assert found[kind]["calibrated_with_sampling"] == pytest.approx(0.9, abs=0.02)
        spread = np.sqrt(tau**2 + 0.3**2 + 0.2**2)  # of the residuals, against narrower intervals
        for key, half in (("own", 0.2), ("own_with_sampling", np.hypot(0.2, 0.3))):
            expected = (2 * norm.cdf(1.6449 * half / spread) - 1).mean()
            assert found[kind][key] == pytest.approx(expected, abs=0.025)
        assert found[kind]["n"] == 6000
        assert found[kind]["n_conditions"] == 20


def test_errors_are_not_learned_from_two_conditions():
    assert gene_errors(*made(np.ones(5), 0.3, 0.2, 0, NAMES[:2])) is None
    assert gene_errors(*made(np.ones(5), 0.3, 0.2, 0, NAMES[:3])) is not None


def test_coverage_is_of_what_there_is():
    observed, predicted = made(np.ones(5), 0.3, 0.2, 0, NAMES[:3])
    observed.se.iloc[0] = 0.0  # no count in any cell
    found = coverage(observed, predicted, None, has_posterior=False)
    assert found["combination"] is None
    assert found["single"]["own"] is None
    assert found["single"]["calibrated_with_sampling"] is None
    assert found["single"]["n"] == 10
    assert found["single"]["n_conditions"] == 2


def test_intervals_of_the_true_posterior_hold_nine_tenths_of_observed_shifts(known_effects):
    """The truth is one draw of the model's posterior, so only sampling error is to be added."""
    data, truth = simulate(Design(4000, 60, 10, 3, n_combinations=6, seed=5))
    model = known_effects(truth)
    noise = np.random.default_rng(0).normal(0, 0.2, truth.embedding.shape)
    model.embedding_loc += torch.as_tensor(noise * truth.mask, dtype=torch.float32)
    model.embedding_log_scale.fill_(float(np.log(0.2)))
    observed = observed_shifts(data, variance_of(data))
    names = observed.shift.index
    predicted = predicted_conditions(model, basal(truth, data), data, names, 200, seed=0)
    found = coverage(observed, predicted, None, model.has_posterior)
    # errors are shared by the genes of a condition: some 30 embedding entries, sd about 0.05
    for kind in ("single", "combination"):
        assert found[kind]["own_with_sampling"] == pytest.approx(0.9, abs=0.1)
        assert found[kind]["own"] < found[kind]["own_with_sampling"]
    model.embedding_log_scale.fill_(-30)
    sure = predicted_conditions(model, basal(truth, data), data, names, 4, seed=0)
    blind = coverage(observed, sure, None, model.has_posterior)
    assert blind["single"]["own_with_sampling"] < found["single"]["own_with_sampling"] - 0.1


# Interaction


def test_the_interaction_of_a_double_is_what_its_singles_leave():
    rows = {"A": [1.0, 2.0, 0.0], "B": [0.5, 0.0, 1.0], "A+B": [1.5, 3.0, 0.0], "B+C": [9.0] * 3}
    observed = pd.DataFrame.from_dict(rows, orient="index")  # left: 0, 1, -1
    predicted = observed.copy()
    predicted.loc["A+B"] = [2.5, 3.0, 2.0]  # left: 1, 1, 1
    predicted.loc["A+B", 2] -= 4  # left: 1, 1, -3
    shifts = Shifts(observed, observed * 0 + 0.1)
    found = interaction(shifts, Predicted(*[predicted] * 4), trained={"A", "B"}, cells="test")
    assert found["n_doubles"] == 1  # C was never measured alone
    r = np.corrcoef([0, 1, -1], [1, 1, -3])[0, 1]
    assert found["pearson"] == pytest.approx(r)
    assert found["doubles"]["A+B"] == {"pearson": pytest.approx(r), "seen_in_training": False}
    alone = Shifts(*(table.drop(index="A") for table in shifts))
    assert interaction(alone, Predicted(*[predicted] * 4), trained=set(), cells="test") is None


def test_the_true_model_foresees_non_additivity(screen, known_effects):
    truth, data = screen.truth, screen.data
    observed = observed_shifts(data, variance_of(data))
    names = observed.shift.index
    predicted = predicted_conditions(
        known_effects(truth), basal(truth, data), data, names, 2, seed=0
    )
    found = interaction(observed, predicted, trained=set(names), cells="all")
    assert found["n_doubles"] == 2
    assert found["pearson"] > 0.8
    assert all(double["seen_in_training"] for double in found["doubles"].values())
