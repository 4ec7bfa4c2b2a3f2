import copy
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import cdist, cosine
from scipy.special import expit
from scipy.stats import pearsonr

from samsvae_core.analysis.loadings import linearity, loading_curves, loading_matrix, loadings
from samsvae_core.analysis.masks import (
    active_mechanisms,
    in_use_in_words,
    mask_table,
    matrix,
    orient,
    strengths,
    used_by,
)
from samsvae_core.analysis.network import network
from samsvae_core.analysis.similarity import (
    pairs,
    similar_perturbations,
    tree,
)
from samsvae_core.analysis.states import embed
from samsvae_core.bundle.bundle import Reference
from samsvae_core.bundle.opening import load
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from tests.oracles import log_proportions, similar_shifts

CONFIG = ModelConfig(n_genes=9, n_perturbations=5, n_latent=3, n_hidden=7)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SAMSVAE(CONFIG).requires_grad_(False)
    model.mask_logits.normal_(0, 2)
    model.embedding_loc.normal_(0, 2)
    model.embedding_log_scale.normal_(-1, 0.5)
    return model


# The mask table


def test_effects_and_their_spread_are_those_of_posterior_draws(model):
    table = mask_table(model, list("ABCDE"))
    n = 200_000
    rng = np.random.default_rng(0)
    q, m, log_s = (
        a.double().numpy()
        for a in (model.mask_logits, model.embedding_loc, model.embedding_log_scale)
    )
    draws = (rng.random((n, 5, 3)) < expit(q)) * (
        m + np.exp(log_s) * rng.standard_normal((n, 5, 3))
    )
    mean, sd = draws.mean(0).ravel(), draws.std(0).ravel()
    np.testing.assert_array_less(abs(table["effect"] - mean), 5 * sd / np.sqrt(n))
    kurtosis = ((draws - draws.mean(0)) ** 4).mean(0).ravel() / sd**4
    np.testing.assert_array_less(abs(table["effect_sd"] / sd - 1), 5 * np.sqrt(kurtosis / n) / 2)


def test_active_means_a_probability_above_one_half(model):
    model.mask_logits.copy_(torch.tensor([[-3.0, 0.0, 1e-3]] * 5))
    table = mask_table(model, list("ABCDE"))
    assert table["active"].tolist() == [False, False, True] * 5
    assert active_mechanisms(table) == [2]
    np.testing.assert_allclose(table["probability"], np.tile(expit([-3, 0, 1e-3]), 5), rtol=1e-6)


def test_the_table_has_a_row_per_pair_with_mechanisms_from_zero(model):
    table = mask_table(model, ["B", "A", "NA", "1", "C"])
    assert table["perturbation"].drop_duplicates().tolist() == ["B", "A", "NA", "1", "C"]
    assert table["mechanism"].tolist() == [0, 1, 2] * 5
    wide = matrix(table)
    assert wide.index.tolist() == ["B", "A", "NA", "1", "C"]
    np.testing.assert_allclose(wide, expit(model.mask_logits.double().numpy()), rtol=1e-6)


# Loadings


class Exponential(SAMSVAE):
    """A decoder with log proportions linear in z, so that loadings have a closed form."""

    def decoded_means(self, z, shift):
        return ((z + shift) @ self.slopes + self.base).exp()


def linear_model(level: float) -> Exponential:
    model = Exponential(CONFIG).requires_grad_(False)
    model.slopes = torch.randn(3, 9, generator=torch.Generator().manual_seed(1)) / 4
    model.base = torch.full((9,), level)
    return model


def test_loadings_are_the_closed_form_of_a_linear_decoder():
    model, z = linear_model(-4.0), torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    table = loadings(model, Reference(z, torch.ones(40, 3), torch.ones(40)), list("abcdefghi"))
    slopes, level = (
        model.slopes.double().numpy(),
        z.double().numpy() @ model.slopes.double().numpy(),
    )
    for (k, g), row in table.set_index(["mechanism", "gene"]).iterrows():
        j = "abcdefghi".index(g)
        up, down = (
            np.log2(1 + 1e4 * np.exp(level[:, j] - 4 + step * slopes[k, j])) for step in (1, -1)
        )
        half = (up - down) / 2
        assert row["loading"] == pytest.approx(half.mean(), abs=1e-5)
        assert row["se"] == pytest.approx(half.std(ddof=1) / np.sqrt(40), abs=1e-5)


@torch.no_grad()
def test_loadings_are_taken_over_the_step_that_perturbations_make():
    model, z = linear_model(-4.0), torch.zeros(2, 3)
    model.mask_logits.fill_(60.0)
    model.embedding_loc[:, 1] = torch.tensor([-2.0, -2.0, -2.0, -4.0, 0.0])
    table = loadings(model, Reference(z, z + 1, torch.ones(2)), list("abcdefghi"))
    found = table.set_index(["mechanism", "gene"]).loc[1]
    slope = model.slopes[1].double().numpy()
    levels = (np.log2(1 + 1e4 * np.exp(-4 + end * slope)) for end in (-2.0, 0.0))
    far, near = levels
    np.testing.assert_allclose(found["loading"], (far - near) / -2, atol=1e-5)
    assert (found["step"] == -2).all()
    assert (table.loc[table["mechanism"] != 1, "step"] == 0).all()  # nobody moves these


def test_loadings_of_strong_genes_are_the_slope_in_log2():
    """Far above 1 in 10,000 the level is log2(1e4 p), so linear in z: the slope itself."""
    model = linear_model(3.0)
    z = torch.zeros(5, 3)
    table = loadings(model, Reference(z, z + 1, torch.ones(5)), list("abcdefghi"))
    expected = model.slopes.numpy() / np.log(2)
    np.testing.assert_allclose(loading_matrix(table).to_numpy().T, expected, atol=1e-4)


def test_loadings_of_small_effects_are_the_gradient(model):
    """For a decoder near its tangent, the half difference is what autograd says."""
    model.decoder.hidden.weight.mul_(0.1)
    model.decoder.hidden.bias.fill_(5)  # away from the kink of leaky_relu
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(3))
    table = loadings(model, Reference(z, z.exp(), torch.ones(6)), list("abcdefghi"))

    def level(z):
        return torch.log2(1 + 1e4 * torch.softmax(model.decoder(z), -1)).mean(0)

    gradient = torch.autograd.functional.jacobian(level, z).sum(1)  # (G, K)
    wide = loading_matrix(table)
    assert wide.index.tolist() == list("abcdefghi")
    np.testing.assert_allclose(wide, gradient, atol=0.01 * abs(gradient).max())


# Loadings at several steps

GENES = list("abcdefghi")


def some_cells(n: int, seed: int = 2) -> Reference:
    z = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed))
    return Reference(z, torch.ones(n, 3), torch.ones(n))


class Straight(SAMSVAE):
    """A decoder of values, linear in z except for the square of the first mechanism."""

    bend = 0.0

    def decoded_means(self, z, shift):
        return (z + shift) @ self.slopes + self.bend * (z + shift)[:, :1] ** 2 * self.curvature


@pytest.fixture
def straight() -> Straight:
    model = Straight(replace(CONFIG, likelihood="gaussian")).requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    model.slopes = torch.randn(3, 9, generator=generator)
    model.curvature = torch.randn(9, generator=generator)
    return model


def test_a_linear_decoder_has_the_same_loadings_at_every_step(straight):
    curves = loading_curves(straight, some_cells(20), GENES)
    assert curves.columns.tolist() == ["mechanism", "gene", "multiple", "step", "loading", "se"]
    assert len(curves) == 3 * 6 * 9
    for (k, _), part in curves.groupby(["mechanism", "multiple"]):
        assert part["gene"].tolist() == GENES
        np.testing.assert_allclose(part["loading"], straight.slopes[k], atol=1e-5)
        np.testing.assert_allclose(part["se"], 0, atol=1e-6)
    found = linearity(curves)
    assert found.index.tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.filter(regex="^r "), 1, atol=1e-5)
    np.testing.assert_allclose(found.filter(regex="^ratio "), 1, atol=1e-5)
    assert found["linear"].all()
    assert found["words"].iloc[0] == (
        "Nearly linear. Against the loadings of the whole step (+1.00): half the step r 1.00, 1.00 "
        "times the size; the opposite direction r 1.00, 1.00 times the size; twice the step r 1.00,"
        " 1.00 times the size."
    )


@torch.no_grad()
def test_curves_are_the_closed_form_of_an_exponential_decoder():
    """The four users of mechanism 1 have effects of -2, -2, -2 and -4, so the step is -2.5."""
    model, cells = linear_model(-4.0), some_cells(40)
    model.mask_logits.fill_(-60.0)
    model.mask_logits[:4, 1] = 60.0
    model.embedding_loc[:, 1] = torch.tensor([-2.0, -2.0, -2.0, -4.0, 9.0])
    curves = loading_curves(model, cells, GENES, steps=(-3.0, 0.5))
    assert curves.groupby(["mechanism", "multiple"])["step"].first().tolist() == [
        *(-3, 0.5),
        *(7.5, -1.25),
        *(-3, 0.5),
    ]
    slopes, z = model.slopes.double().numpy(), cells.loc.double().numpy()

    def level(z):
        return np.log2(1 + 1e4 * np.exp(z @ slopes - 4))

    for (k, step), part in curves.groupby(["mechanism", "step"]):
        slope = (level(z + step * np.eye(3)[k]) - level(z)) / step
        np.testing.assert_allclose(part["loading"], slope.mean(0), atol=1e-5)
        np.testing.assert_allclose(part["se"], slope.std(0, ddof=1) / np.sqrt(40), atol=1e-5)


@torch.no_grad()
def test_the_loading_is_the_curve_at_one_or_the_mean_of_both_directions():
    model, cells = linear_model(-4.0), some_cells(10)
    model.mask_logits.fill_(60.0)
    model.embedding_loc[:, 1] = 3.0
    shown = loadings(model, cells, GENES).set_index(["mechanism", "gene"])
    at = loading_curves(model, cells, GENES).set_index(["multiple", "mechanism", "gene"])
    np.testing.assert_array_equal(shown.loc[1], at.loc[1].loc[1][["loading", "se", "step"]])
    both = (at.loc[1]["loading"] + at.loc[-1]["loading"]) / 2
    for k in (0, 2):
        np.testing.assert_allclose(shown.loc[k]["loading"], both.loc[k], atol=1e-6)


def test_curves_do_not_depend_on_what_else_is_asked_or_on_the_order_of_cells(model):
    cells = some_cells(12)
    turned = Reference(*(part.flip(0) for part in cells))
    whole = loading_curves(model, cells, GENES).set_index(["mechanism", "multiple", "gene"])
    part = loading_curves(model, turned, GENES, [2, 0], (2.0, -0.5))
    assert part["mechanism"].drop_duplicates().tolist() == [2, 0]
    part = part.set_index(["mechanism", "multiple", "gene"])
    np.testing.assert_allclose(part, whole.loc[part.index], atol=1e-5)


def test_a_bent_decoder_is_told_from_a_straight_one(straight):
    """From z = 0 the loading at step s is slope + s bend, which gives every number."""
    straight.bend = 3.0
    cells = Reference(torch.zeros(4, 3), torch.ones(4, 3), torch.ones(4))
    found = linearity(loading_curves(straight, cells, GENES))
    at = {s: (straight.slopes[0] + 3 * s * straight.curvature).numpy() for s in (-1, 0.5, 1, 2)}
    for s, loading in at.items():
        if s != 1:
            r, ratio = found.loc[0, [f"r {s:g}", f"ratio {s:g}"]]
            assert r == pytest.approx(np.corrcoef(at[1], loading)[0, 1], abs=1e-5)
            assert ratio == pytest.approx(np.linalg.norm(loading) / np.linalg.norm(at[1]), 1e-5)
    assert found["linear"].tolist() == [False, True, True]
    words = found.loc[0, "words"]
    assert words.startswith("Not linear. Against the loadings of the whole step (+1.00): half the")
    assert f"the opposite direction r {found.loc[0, 'r -1']:.2f}, " in words


def curve(**sizes: float) -> pd.DataFrame:
    """Return hand-made loadings of two genes, at multiple 1 and at others with other sizes."""
    rows = {1.0: 1.0} | {float(name.lstrip("x").replace("m", "-")): v for name, v in sizes.items()}
    return pd.DataFrame(
        [
            {"mechanism": 4, "gene": g, "multiple": m, "step": 2 * m, "loading": size * v}
            for m, size in rows.items()
            for g, v in (("a", 1.0), ("b", -0.5))
        ]
    )


@pytest.mark.parametrize(
    ("sizes", "linear"),
    [
        ({"xm1": 0.81}, True),
        ({"xm1": 0.79}, False),
        ({"xm1": 1.24}, True),
        ({"xm1": 1.26}, False),
        ({"xm1": -1.0}, False),  # the genes change sides
        ({"xm1": 1.0, "x2": 5.0}, True),  # further than perturbations go
        ({"x2": 5.0}, True),
    ],
)
def test_sizes_within_a_quarter_up_to_the_step_are_linear(sizes, linear):
    found = linearity(curve(**sizes))
    assert found.loc[4, "linear"] == linear
    assert "(+2.00)" in found.loc[4, "words"]


def test_a_mechanism_that_moves_nothing_says_so(straight):
    straight.slopes[1] = 0
    found = linearity(loading_curves(straight, some_cells(5), GENES, [1])).loc[1]
    assert (found["linear"], found["words"]) == (True, "No gene moves.")


def test_no_mechanism_has_no_curve(model):
    curves = loading_curves(model, some_cells(5), GENES, [])
    assert (len(curves), curves.columns[0]) == (0, "mechanism")
    assert linearity(curves).empty


def test_curves_of_nothing_that_exists_are_refused(model):
    with pytest.raises(ValueError, match=r"Mechanisms are \[0, 3\]; this model has 0 to 2"):
        loading_curves(model, some_cells(5), GENES, [0, 3])
    for steps in ((1.0, 0.0), (np.nan,), (np.inf, 1.0), ()):
        with pytest.raises(ValueError, match="expected finite numbers other than 0"):
            loading_curves(model, some_cells(5), GENES, steps=steps)
    with pytest.raises(ValueError, match=r"multiples \[2.0\]; 1 is needed"):
        linearity(loading_curves(model, some_cells(5), GENES, steps=(2.0,)))


# Order and sign


def test_orientation_leaves_every_prediction_as_it_was(model):
    other = copy.deepcopy(model)
    orient(other)
    x = torch.from_numpy(np.random.default_rng(0).poisson(3.0, (8, 9)).astype("float32"))
    D = torch.eye(5).repeat(2, 1)[:8]
    assert not torch.equal(model.embedding_loc, other.embedding_loc)
    levels, scales = [], []
    for each in (model, other):
        shift = (D @ (each.mask_logits.sigmoid() * each.embedding_loc))[None]
        q = each.encode(x, shift)
        levels.append(log_proportions(each, q.loc + shift))
        scales.append(q.scale.sort(-1).values)
    torch.testing.assert_close(levels[0], levels[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(scales[0], scales[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.effects(1).kl, other.effects(1).kl)


def test_the_mechanisms_most_perturbations_use_come_first_and_point_up(model):
    on = torch.tensor([[0, 1, 0], [0, 1, 1], [0, 1, 1], [0, 0, 0], [0, 1, 0]])
    model.mask_logits.copy_(6.0 * (2 * on - 1))
    model.embedding_loc.copy_(torch.tensor([[-1.0, -2.0, 1.0]] * 5))
    orient(model)
    found = (model.mask_logits > 0).int()
    assert torch.equal(found, on[:, [1, 2, 0]].int())
    torch.testing.assert_close(model.embedding_loc, torch.tensor([[2.0, 1.0, 1.0]] * 5))


def test_orientation_is_done_once(model):
    orient(model)
    before = copy.deepcopy(model.state_dict())
    orient(model)
    for name, value in before.items():
        assert torch.equal(model.state_dict()[name], value)


# Perturbations beside each other


def hand_made() -> pd.DataFrame:
    effects = {"A": [2.0, 0.0, 1.0], "B": [1.0, 0.0, 0.5], "C": [0.0, 3.0, 0.0], "D": [0.0] * 3}
    return pd.DataFrame(
        [
            {"perturbation": p, "mechanism": k, "effect": e, "effect_sd": 0.1, "active": e > 0}
            for p, row in effects.items()
            for k, e in enumerate(row)
        ]
    )


def test_similar_perturbations_share_mechanisms():
    found = similar_perturbations(hand_made(), "A")
    assert found.index.tolist()[0] == "B"
    assert found["jaccard"].to_dict() == {"B": 1.0, "C": 0.0, "D": 0.0}
    assert found["shared"].to_dict() == {"B": 2, "C": 0, "D": 0}
    assert found.loc["B", "cosine"] == pytest.approx(1)
    assert found.loc["C", "cosine"] == 0
    assert similar_perturbations(hand_made(), "D")["jaccard"].tolist() == [0, 0, 0]


def test_similarity_is_the_same_from_either_side():
    masks = hand_made()
    for a in "ABCD":
        for b in set("ABCD") - {a}:
            one, other = similar_perturbations(masks, a), similar_perturbations(masks, b)
            pd.testing.assert_series_equal(one.loc[b], other.loc[a], check_names=False)


def shifts_of(rows: dict[str, tuple[list[float], list[float]]], cells: int = 9) -> pd.DataFrame:
    """Return a table from the predicted and observed shifts of each perturbation."""
    return pd.concat(
        pd.DataFrame(
            {
                "perturbation": name,
                "gene": list("wxyz"),
                "shift": predicted,
                "observed": observed,
                "n_observed": 0 if np.isnan(observed).all() else cells,
            }
        )
        for name, (predicted, observed) in rows.items()
    ).reset_index(drop=True)


def test_similar_shifts_are_correlations_over_genes():
    rng = np.random.default_rng(0)
    predicted, observed = rng.normal(size=(2, 4, 4))
    rows = {n: (list(predicted[i]), list(observed[i])) for i, n in enumerate("ABCD")}
    found = similar_shifts(shifts_of(rows), "B")
    assert sorted(found.index) == ["A", "C", "D"]
    assert found["r_predicted"].is_monotonic_decreasing
    for i, name in ((0, "A"), (2, "C"), (3, "D")):
        r = [pearsonr(shifts[1], shifts[i])[0] for shifts in (predicted, observed)]
        assert found.loc[name].tolist() == pytest.approx([*r, 9])


def test_shifts_that_are_unknown_or_nothing_have_no_correlation():
    nan = [np.nan] * 4
    rows = {
        "A": ([1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 2.0, 5.0]),
        "unmeasured": ([2.0, 4.0, 6.0, 8.0], nan),
        "still": ([0.0] * 4, [1.0, 0.0, 2.0, np.nan]),
    }
    found = similar_shifts(shifts_of(rows), "A")
    assert found.loc["unmeasured", "r_predicted"] == pytest.approx(1)
    assert np.isnan(found.loc["unmeasured", "r_observed"])
    assert found["n_observed"].to_dict() == {"unmeasured": 0, "still": 9}
    assert np.isnan(found.loc["still", "r_predicted"])
    assert found.loc["still", "r_observed"] == pytest.approx(1)  # over the genes both have
    assert similar_shifts(shifts_of(rows), "still")["r_predicted"].isna().all()
    with pytest.raises(ValueError, match="'E' is none of the 3 perturbations"):
        similar_shifts(shifts_of(rows), "E")


def test_one_perturbation_is_like_no_other():
    assert similar_shifts(shifts_of({"A": ([1.0, 2, 3, 4], [1.0, 2, 3, 4])}), "A").empty


def test_the_strength_of_a_perturbation_is_the_length_of_its_effects():
    found = strengths(hand_made())
    assert found["strength"].tolist() == pytest.approx([3, 5**0.5, 1.25**0.5, 0])
    assert found.index.tolist() == list("CABD")
    assert found["sd"].tolist() == pytest.approx([0.1, 0.1, 0.1, 0])  # along the effect


def test_the_spread_of_a_strength_is_that_of_draws():
    masks = hand_made()
    sd = {0: 0.02, 1: 0.3, 2: 0.05}
    masks["effect_sd"] = masks["mechanism"].map(sd)
    draws = [2.0, 0.0, 1.0] + np.random.default_rng(0).normal(size=(200_000, 3)) * list(sd.values())
    draws[:, 1] = 0  # where the mean effect is nothing its spread counts to second order only
    assert strengths(masks).loc["A", "sd"] == pytest.approx(
        np.linalg.norm(draws, axis=1).std(), rel=0.01
    )


def test_clustering_puts_like_rows_together_and_the_fullest_first():
    rows = {"e1": [0, 0, 0, 0], "f1": [1, 1, 1, 0], "e2": [0, 0, 0, 0.1], "f2": [1, 1, 0.9, 0]}
    by = pd.DataFrame(rows, index=list("wxyz")).T
    wide = by * 10
    found = wide.loc[tree(by).order]
    assert set(found.index[:2]) == {"f1", "f2"}
    assert set(found.index[2:]) == {"e1", "e2"}
    pd.testing.assert_frame_equal(found.loc[wide.index], wide)


def test_one_or_two_rows_are_left_as_they_are():
    by = pd.DataFrame([[0.0], [1.0]], index=["a", "b"])
    pd.testing.assert_frame_equal(by.loc[tree(by).order], by)


def test_the_tree_is_that_of_scipy_up_to_its_direction():
    by = pd.DataFrame(np.random.default_rng(3).normal(size=(9, 4)), index=list("abcdefghi"))
    order, line = tree(by)
    joints = linkage(by.to_numpy(), method="average", optimal_ordering=True)
    known = dendrogram(joints, no_plot=True)
    turned = order.tolist() != by.index[known["leaves"]].tolist()
    assert order.tolist() == by.index[known["leaves"][:: -1 if turned else 1]].tolist()
    places = (np.array(known["icoord"]) - 5) / 10
    expected = {
        tuple(sorted(zip(np.round(8 - x if turned else x, 6), np.round(y, 6), strict=True)))
        for x, y in zip(places, known["dcoord"], strict=True)
    }
    drawn = line.to_numpy().reshape(-1, 5, 2)
    assert np.isnan(drawn[:, 4]).all()
    assert {
        tuple(sorted(map(tuple, np.round(joint[:4], 6).tolist()))) for joint in drawn
    } == expected


def test_one_or_two_rows_have_no_tree():
    order, line = tree(pd.DataFrame([[0.0], [1.0]], index=["a", "b"]))
    assert order.tolist() == ["a", "b"]
    assert line.empty


def test_pairs_are_those_of_the_sets_and_the_angles():
    masks = hand_made()
    found = pairs(masks, ["D", "A", "B", "C"])
    assert len(found) == 6
    effects = {name: part["effect"].to_numpy() for name, part in masks.groupby("perturbation")}
    for row in found.itertuples():
        one, other = effects[row.first], effects[row.second]
        either = ((one > 0) | (other > 0)).sum()
        assert row.shared == ((one > 0) & (other > 0)).sum()
        assert row.jaccard == pytest.approx(row.shared / either if either else 0)
        if one.any() and other.any():
            assert row.cosine == pytest.approx(1 - cosine(one, other))
    assert found.iloc[0][["first", "second"]].tolist() == ["A", "B"]
    assert found["jaccard"].is_monotonic_decreasing
    assert pairs(masks, ["A"]).empty


# Network


def linked(effects: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(p, k, e) for p, row in effects.items() for k, e in enumerate(row)]
    table = pd.DataFrame(rows, columns=["perturbation", "mechanism", "effect"])
    return table.assign(probability=np.where(table["effect"] != 0, 0.9, 0.1), effect_sd=0.1)


NET = {"A": [3, 1, 0, 0], "B": [-2, 0, 0, 0], "C": [0, 0, 5, 0], "D": [0, 0, 0, 0]}


def test_the_network_links_those_who_use_a_mechanism_with_it():
    found = network(linked(NET))
    edges = set(zip(found.edges["perturbation"], found.edges["mechanism"], strict=True))
    assert edges == {("A", 0), ("A", 1), ("B", 0), ("C", 2)}
    nodes = {(n.kind, n.name): n.degree for n in found.nodes.itertuples(index=False)}
    assert nodes == {
        ("perturbation", "A"): 2,
        ("perturbation", "B"): 1,
        ("perturbation", "C"): 1,
        ("mechanism", "M0"): 2,
        ("mechanism", "M1"): 1,
        ("mechanism", "M2"): 1,
    }
    assert found.left_out == 0
    assert network(linked(NET), threshold=0.95).nodes.empty
    assert set(network(linked(NET), ["C", "D"]).nodes["name"]) == {"C", "M2"}


def test_a_perturbation_called_like_a_mechanism_is_another_node():
    found = network(linked({"M0": [1.0, 1.0]}))
    assert sorted(zip(found.nodes["kind"], found.nodes["name"], strict=True)) == [
        ("mechanism", "M0"),
        ("mechanism", "M1"),
        ("perturbation", "M0"),
    ]


def test_of_a_network_too_large_the_largest_effects_are_kept():
    found = network(linked(NET), most_edges=2)
    assert found.edges["effect"].tolist() == [5, 3]
    assert found.left_out == 2
    found = network(linked(NET), most_nodes=5)
    assert found.edges["effect"].tolist() == [5, 3, -2]
    assert len(found.nodes) == 5


def test_parts_of_a_network_lie_apart():
    rng = np.random.default_rng(0)
    blocks = {f"P{i}": [0.0] * 12 for i in range(36)}
    for i, row in enumerate(blocks.values()):
        row[i // 3] = rng.normal()
    nodes = network(linked(blocks)).nodes
    part = [int(n.name[1:]) // (3 if n.kind == "perturbation" else 1) for n in nodes.itertuples()]
    places = nodes[["x", "y"]].to_numpy()
    for k in range(12):
        inside = np.array(part) == k
        assert inside.sum() == 4
        assert cdist(places[inside], places[~inside]).min() > 0.5


def test_the_layout_is_the_same_in_every_process():
    program = (
        "import sys, pandas as pd\nfrom samsvae_core.analysis.network import network\n"
        "sys.stdout.write(network(pd.read_csv(sys.stdin)).nodes.round(6).to_csv(index=False))"
    )
    masks = linked(NET)
    said = [
        subprocess.run(
            [sys.executable, "-c", program],
            input=masks.to_csv(index=False),
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1]
    here = network(masks).nodes
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(said[0])), here, atol=1e-5)


def test_users_of_a_mechanism_come_strongest_first(tiny):
    k = active_mechanisms(tiny.masks)[0]
    found = used_by(tiny, k)
    rows = tiny.masks[tiny.masks["mechanism"] == k]
    expected = {r.perturbation: abs(r.effect) for r in rows.itertuples() if r.probability > 0.5}
    assert found["perturbation"].tolist() == sorted(expected, key=expected.get, reverse=True)


def test_embedded_cells_differ_from_their_basal_state_by_their_shift(tiny, screen):
    found = embed(tiny, screen.data)
    effect = matrix(tiny.masks, "effect").to_numpy()
    shift = screen.data.dosages.toarray() @ effect
    np.testing.assert_allclose(found["shifted"] - found["basal"], shift, atol=1e-5)
    controls = screen.data.conditions == "control"
    np.testing.assert_array_equal(found["shifted"][controls], found["basal"][controls])


def test_embedding_does_not_depend_on_how_cells_are_batched(tiny, screen):
    whole = embed(tiny, screen.data)["basal"]
    part = embed(tiny, screen.data.subset(np.arange(100, 107)))["basal"]
    np.testing.assert_allclose(part, whole[100:107], atol=1e-5)


def entries(*rows: tuple[str, int, bool, float, float]) -> pd.DataFrame:
    columns = ["perturbation", "mechanism", "active", "evidence", "evidence_se"]
    return pd.DataFrame(rows, columns=columns)


def test_item_21_a_mechanism_without_held_out_evidence_is_not_counted_in_silence():
    masks = entries(
        ("A", 0, True, 2.0, 0.1),
        ("B", 0, True, 0.1, 0.1),
        ("B", 3, True, -0.09, 0.17),
        ("C", 0, True, np.nan, np.nan),  # no held-out cell
        ("C", 3, False, 0.5, 0.1),
    )
    assert in_use_in_words(masks) == (
        "2 mechanisms in use, 4 active mask entries. Of these, 2 have no evidence on held-out cells"
        " (B in M0, B in M3); M3 rests on such entries alone."
    )
    assert in_use_in_words(masks[:1]) == ("1 mechanism in use, 1 active mask entry.")
    assert in_use_in_words(masks[4:]) == ("0 mechanisms in use, 0 active mask entries.")


def test_item_21_an_entry_without_evidence_is_told():
    shipped = load(Path(__file__).parents[2] / "pretrained" / "papalexi2021")
    assert "no evidence" not in in_use_in_words(shipped.masks)
    assert in_use_in_words(shipped.masks) in (shipped.path / "card.md").read_text()
    masks = shipped.masks.copy()
    entry = masks["active"] & (masks["perturbation"] == "IRF1")
    masks.loc[entry, "evidence"] = -0.09
    k = int(masks.loc[entry, "mechanism"].iloc[0])
    told = f"1 has no evidence on held-out cells (IRF1 in M{k}); M{k} rests"
    assert told in in_use_in_words(masks)
