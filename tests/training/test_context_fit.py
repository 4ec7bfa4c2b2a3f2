"""Which levels of a context get a difference, from the effect and its certainty at each."""

import numpy as np
import pytest
import torch

from samsvae_core.data.splits import split
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.training import context_fit
from samsvae_core.training.context_fit import cells_of, fit_contexts, partition
from samsvae_core.training.loop import new_model

CPU = torch.device("cpu")


def chosen(effects, curvature=100.0, price=10.0, now=1.0, active=True):
    n = len(effects)
    found = partition(
        torch.tensor(effects), torch.full((n,), curvature), torch.full((n,), price), now, active
    )
    return found, found.differs.nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("effects", "differs"),
    [
        ([0.0, 0.0], []),
        ([0.3, -0.3], []),  # worth 9 nats, and the price is 10
        ([0.0, 0.0, 2.0], [2]),
        ([2.0, 0.0, 0.0, -2.0], [0, 3]),
        ([-0.05, 0.05, 0.0, 0.9], [3]),
    ],
)
def test_levels_that_differ_by_more_than_the_price(effects, differs):
    found, there = chosen(effects)
    assert there == differs
    same = [e for c, e in enumerate(effects) if c not in differs]
    expected = np.mean(same) if differs else 0.0
    assert found.common == pytest.approx(expected)
    centre = np.mean(same)
    np.testing.assert_allclose(found.distance.numpy(), np.array(effects) - centre, atol=1e-6)


def test_of_two_levels_the_one_without_the_effect_differs():
    """The common effect 1 is the mean of 2 and 0; a common effect of 0 would be none."""
    for effects, lacking in (([1.0, -1.0], 1), ([-1.0, 1.0], 0)):
        found, there = chosen(effects, now=1.0)
        assert there == [lacking]
        assert found.common == pytest.approx(1.0)
        assert found.distance[lacking] == pytest.approx(-2.0)
        assert found.wider == pytest.approx(2**0.5)


def test_without_a_common_effect_every_level_may_have_one():
    found, there = chosen([1.0, 1.2], active=False, now=0.0)
    assert there == [0, 1]
    assert found.common == 0
    assert chosen([0.1, 0.2], active=False)[1] == []
    assert len(chosen([1.0, -1.0, 4.0])[1]) < 3  # with one, at least a level stays


def test_certain_levels_say_what_is_common():
    found = partition(
        torch.tensor([0.0, 0.4]), torch.tensor([900.0, 1.0]), torch.tensor([9.0, 9.0]), 1.0, True
    )
    assert not found.differs.any()
    assert found.common == 0  # nothing is moved where nothing differs


@pytest.fixture(scope="module")
def lines():
    design = Design(400, 20, 4, 2, n_combinations=1, n_contexts=2, seed=1)
    return simulate(design)[0]


def model_of(data, **options):
    config = ModelConfig(20, 4, 2, n_hidden=8, levels=(2,), context=0, **options)
    return new_model(data, config, 0)


def test_cells_are_those_of_a_perturbation_at_a_level(lines, monkeypatch):
    monkeypatch.setattr(context_fit, "CELLS_AT_ONCE", 37)
    model, code = model_of(lines), lines.covariates.codes[:, 0]
    groups = cells_of(model, Cells(lines, CPU), 0, 400)
    given = lines.dosages.toarray() != 0
    for (t, c), (members, size) in groups.items():
        expected = np.flatnonzero(given[:, t] & (code == c))
        assert members.tolist() == expected.tolist()
        assert size == len(expected)
    assert len(groups) == 8
    fewer = cells_of(model, Cells(lines, CPU), 0, 7)
    assert {len(members) for members, _ in fewer.values()} == {7}
    assert {key: size for key, (_, size) in fewer.items()} == {k: n for k, (_, n) in groups.items()}


def test_nothing_is_asked_where_nothing_can_be_told(lines):
    model = model_of(lines)
    with torch.no_grad():
        model.mask_logits.fill_(-5.0)  # no mechanism is in use
    fit_contexts(model, Cells(lines, CPU))
    assert not model.contexts.asked().any()
    plain = new_model(lines, ModelConfig(20, 4, 2, n_hidden=8, levels=(2,)), 0)
    fit_contexts(plain, Cells(lines, CPU))
    assert plain.contexts is None


def test_the_fit_is_the_same_each_time_and_leaves_masks_alone(lines):
    found = []
    for _ in range(2):
        model = model_of(lines, mask_evidence=0.01)
        before, state = model.mask_logits.clone(), torch.get_rng_state()
        fit_contexts(model, Cells(lines.subset(split(lines) == "train"), CPU))
        assert torch.equal(before, model.mask_logits)
        assert torch.equal(state, torch.get_rng_state())
        found.append(model.contexts)
    for name, value in found[0].state_dict().items():
        assert torch.equal(value, found[1].state_dict()[name])
    assert found[0].asked().any()


def test_of_many_entries_only_mechanisms_in_use_are_asked(lines, monkeypatch):
    monkeypatch.setattr(context_fit, "MOST_ENTRIES", 5)
    model = model_of(lines)
    with torch.no_grad():
        model.mask_logits.fill_(-5.0)
        model.mask_logits[1, 0] = model.mask_logits[2, 1] = 5.0
    fit_contexts(model, Cells(lines, CPU))
    asked = model.contexts.asked().view(2, 4, 2).any(0)
    assert asked.nonzero().tolist() == [[1, 0], [2, 1]]


def test_a_common_effect_of_fewer_levels_is_less_certain_once(lines, monkeypatch):
    """Both rounds leave one of two equally certain levels out, so the variance doubles once."""
    model = model_of(lines)
    before = model.embedding_log_scale.detach().exp()
    reached = iter([[1.0, 100.0], [-1.0, 100.0], [0.0, 100.0], [-2.0, 100.0]] * 100)
    monkeypatch.setattr(
        context_fit, "level_effect", lambda *_: torch.tensor(next(reached), dtype=torch.float64)
    )
    with torch.no_grad():
        model.mask_logits.fill_(-5.0)
        model.mask_logits[0, 0], model.embedding_loc[0, 0] = 5.0, 1.0
    fit_contexts(model, Cells(lines, CPU))
    ratio = (model.embedding_log_scale.detach().exp() / before)[0, 0].item()
    assert ratio == pytest.approx(2**0.5)
    assert model.embedding_loc[0, 0].item() == pytest.approx(2.0)


def test_rotated_differences_stay_with_their_mechanisms(lines):
    model = model_of(lines)
    with torch.no_grad():
        model.contexts.logit[0, 0], model.contexts.loc[0, 0] = 3.0, 1.5
        flip = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
        D = model.given(torch.eye(4), torch.zeros(4, 1, dtype=torch.long))
        before = model.modal_shift(D)
        model.rotate(flip)
        torch.testing.assert_close(model.modal_shift(D), before @ flip)
        assert model.contexts.loc[0].tolist() == [0.0, -1.5]
