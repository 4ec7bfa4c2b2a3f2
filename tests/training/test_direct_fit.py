"""Planted direct effects are found between training steps, and nothing else is.

Cells are drawn from a decoder that the fit knows and from no mechanism, so what it finds can be
compared with the truth.
"""

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from samsvae_core.data.cells import CellData
from samsvae_core.data.splits import split
from samsvae_core.models import shrinkage
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import ACTIVE
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.simulate import cell_data
from samsvae_core.training import checkpoint, direct_fit, direct_sums
from samsvae_core.training.config import Stop, TrainConfig
from samsvae_core.training.direct_fit import DirectFit
from samsvae_core.training.loop import fit, new_model

CPU = torch.device("cpu")
G, T = 60, 12
CONFIG = TrainConfig(steps=4000, batch_size=256)
NONE = np.zeros((T, G))


def singles(n_each: int = 150, n_control: int = 600) -> np.ndarray:
    """Return dosages of cells with one perturbation each, after controls."""
    D = np.zeros((n_control + T * n_each, T), dtype=np.float32)
    D[n_control + np.arange(T * n_each), np.repeat(np.arange(T), n_each)] = 1
    return D


class Decoder(torch.nn.Module):
    """Cells differ along two axes, in every gene a little."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        random = np.random.default_rng(seed)
        self.slope = random.normal(0, 0.15, (2, G))
        self.start = random.normal(0, 0.8, G)

    def logits(self, z: np.ndarray) -> np.ndarray:
        return self.start + z @ self.slope

    def put_into(self, model: SAMSVAE, unit: np.ndarray | float = 1.0) -> None:
        """Make a model decode like this: its leaky units are in pairs that add up to a line."""
        hidden, out = model.decoder.hidden, model.decoder.out
        for parameter in model.decoder.parameters():
            torch.nn.init.zeros_(parameter.requires_grad_(False))
        for k in range(2):  # leaky(z) - leaky(-z) = 1.01 z
            hidden.weight[2 * k, k], hidden.weight[2 * k + 1, k] = 1.0, -1.0
            slope = torch.from_numpy(self.slope[k] * unit / 1.01).float()
            out.weight[:G, 2 * k], out.weight[:G, 2 * k + 1] = slope, -slope
        out.bias[:G] = torch.from_numpy(self.start * unit).float()


def drawn(
    D: np.ndarray,
    effects: np.ndarray = NONE,
    shared: np.ndarray | float = 0.0,
    decoder: Decoder | None = None,
    seed: int = 0,
    depth: float = 3000.0,
    wobble: float = 0.0,
    unit: np.ndarray | None = None,
    n_own: int = 0,
) -> CellData:
    """Return counts of a Poisson-gamma; with `unit`, values of a Normal in these units.

    `wobble` is the spread of the first gene's logit between cells. The first `n_own` perturbations
    are named like the first genes.
    """
    random = np.random.default_rng([seed, 1])
    z = random.standard_normal((len(D), 2))
    logits = (decoder or Decoder()).logits(z) + D @ effects
    logits += (D != 0).any(1)[:, None] * shared
    logits[:, 0] += wobble * random.standard_normal(len(D))
    if unit is not None:
        values = unit * (logits + 0.5 * random.standard_normal(logits.shape))
    else:
        share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        library = depth * np.exp(0.3 * random.standard_normal((len(D), 1)))
        values = random.poisson(library * share * random.gamma(10, 1 / 10, logits.shape))
    labels = np.where((D != 0).any(1), "perturbed", "control")
    counts = sp.csr_matrix(values.astype(np.float32))
    data = cell_data(counts, D, labels, is_counts=unit is None)
    genes = np.array([*data.perturbations[:n_own], *data.genes[n_own:]])
    return replace(data, genes=genes)


def no_bounds() -> torch.Tensor:
    """Return bounds by which no caution is better than another."""
    return torch.zeros(10)


def swept(
    data: CellData,
    config: TrainConfig = CONFIG,
    kind: str = "sparse",
    decoder: Decoder | None = None,
    unit: np.ndarray | float = 1.0,
    until: float = np.inf,
    **options: Any,
) -> SAMSVAE:
    """Return a model with the true decoder after the sweeps of a training without steps."""
    likelihood = "counts" if data.is_counts else "gaussian"
    shape = ModelConfig(G, data.dosages.shape[1], 2, 4, likelihood=likelihood, direct_effects=kind)
    model = new_model(data, replace(shape, **options), 0)
    with torch.no_grad():
        (decoder or Decoder()).put_into(model, unit)
    sweeps = DirectFit(model, Cells(data, CPU), config)
    for step in sorted(sweeps.steps):
        if step <= until:
            sweeps.after(step)
    if until == np.inf:
        sweeps.finish(config.steps, no_bounds)
    return model


def tables(model: SAMSVAE) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of all entries and which of them are active, as whole tables."""
    direct = model.direct
    active = direct.table(direct.probability).numpy() > ACTIVE
    return direct.table(direct.mean).numpy(), active


def active_entries(model: SAMSVAE) -> set[tuple[int, int]]:
    return set(map(tuple, np.argwhere(tables(model)[1]).tolist()))


def planted(entries: dict[tuple[int, int], float], n_perturbations: int = T) -> np.ndarray:
    effects = np.zeros((n_perturbations, G))
    for place, value in entries.items():
        effects[place] = value
    return effects


def assert_found(model: SAMSVAE, entries: dict[tuple[int, int], float], within: float = 0.2):
    """Assert that these entries are active with their effects, and that no other is."""
    mean, _ = tables(model)
    for place, value in entries.items():
        assert abs(mean[place] - value) < within, (place, mean[place])
    assert active_entries(model) == set(entries)


# What was planted is found


OWN = {(0, 0): -1.5, (1, 1): -2.0, (3, 3): -1.0, (4, 4): 1.2}  # of six; two do not move
OTHERS = {(0, 20): -2.0, (5, 30): 1.0, (7, 31): 1.0, (8, 40): -2.0}


def test_planted_effects_on_single_genes_and_own_targets_are_found_and_no_other():
    data = drawn(singles(), planted(OWN | OTHERS), n_own=6)
    model = swept(data)
    assert_found(model, OWN | OTHERS)
    assert model.direct.own.tolist() == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1, -1, -1]
    rest = tables(model)[0].copy()
    for place in OWN | OTHERS:
        rest[place] = 0
    assert np.abs(rest).max() < 0.1
    direct = model.direct
    sd = direct.table(direct.sd).numpy()
    errors = [tables(model)[0][p] - v for p, v in (OWN | OTHERS).items()]
    assert (np.abs(errors) < 4 * np.array([sd[p] for p in OWN | OTHERS])).all()


def test_with_all_other_genes_as_one_outcome_a_shift_of_all_genes_is_known():
    """Then a factor on every gene of the panel is seen, and else it is not."""
    decoder, D = Decoder(), singles()
    effects = planted({(0, g): 1.0 for g in range(G)})
    random = np.random.default_rng(0)
    logits = decoder.logits(random.standard_normal((len(D), 2))) + D @ effects
    others = np.log(9 * np.exp(decoder.start).sum())
    share = np.exp(logits) / (np.exp(logits).sum(1, keepdims=True) + np.exp(others))
    counts = random.poisson(30_000 * share).astype(np.float32)
    data = replace(
        drawn(D),
        counts=sp.csr_matrix(counts),
        library=np.full(len(D), 30_000, np.float32),
        has_size_factor=True,
    )
    model = new_model(data, ModelConfig(G, T, 2, 4, direct_effects="sparse", other_genes=True), 0)
    with torch.no_grad():
        decoder.put_into(model)
        model.decoder.out.bias[-1] = others
    sweeps = DirectFit(model, Cells(data, CPU), CONFIG)
    for step in sorted(sweeps.steps):
        sweeps.after(step)
    sweeps.finish(CONFIG.steps, no_bounds)
    np.testing.assert_allclose(tables(model)[0][0], 1.0, atol=0.2)


def test_of_the_panel_alone_the_median_gene_is_put_at_zero():
    effects = planted({(0, g): 1.0 for g in range(40)})  # relative to which 20 fall by one
    model = swept(drawn(singles(), effects))
    mean = tables(model)[0][0]
    np.testing.assert_allclose(mean[:40], 0, atol=0.1)
    np.testing.assert_allclose(mean[40:], -1, atol=0.2)


def test_what_all_perturbed_cells_share_is_of_no_perturbation():
    shared = np.zeros(G)
    shared[[10, 11, 12]] = 1.5, -1.0, -2.0
    effects = {(0, 10): -2.0, (5, 30): 1.0}
    model = swept(drawn(singles(), planted(effects), shared))
    expected = {(T, 10): 1.5, (T, 11): -1.0, (T, 12): -2.0}
    assert_found(model, effects | expected)


def test_with_few_perturbations_nothing_is_said_to_be_shared():
    D = singles()[: 600 + 5 * 150, :5]
    shared = np.zeros(G)
    shared[10] = 1.5
    model = swept(drawn(D, np.zeros((5, G)), shared))
    assert_found(model, {(t, 10): 1.5 for t in range(5)})


def combined() -> np.ndarray:
    """Return dosages: A at 0.5, 1 and 2, B, both at several dosages, and ten others."""
    rows = np.zeros((8, T), dtype=np.float32)
    rows[[1, 2, 3], 0] = 0.5, 1, 2
    rows[4, 1] = 1
    rows[5, [0, 1]] = 1
    rows[6, [0, 1]] = 0.5, 2
    rows[7, [0, 1]] = 2, 0.5
    others = np.repeat(np.eye(T, dtype=np.float32)[2:], 100, axis=0)
    return np.concatenate([np.zeros((600, T), np.float32), np.repeat(rows[1:], 120, 0), others])


ADDED = {(0, 20): -1.0, (1, 20): 0.8, (0, 30): 0.7, (1, 40): -1.2}


def test_effects_of_combinations_and_dosages_add_up():
    shared = np.zeros(G)
    shared[10] = 1.0
    model = swept(drawn(combined(), planted(ADDED), shared))
    assert_found(model, ADDED | {(T, 10): 1.0}, within=0.15)


@pytest.mark.parametrize("likelihood", ["counts", "gaussian"])
@pytest.mark.parametrize("dosage", [0.25, 4.0])
def test_errors_are_in_the_units_of_their_effects_at_any_dosage(dosage, likelihood):
    """At another dosage throughout, effects and their spread at dosage 1 are other by its factor.

    The noise of cells is the same then, and with it how sure one is.
    """
    at_one = {(0, 20): -1.0, (5, 30): 0.8}
    effects = planted({place: value / dosage for place, value in at_one.items()})
    unit = None if likelihood == "counts" else np.ones(G)
    one = swept(drawn(singles(), planted(at_one), unit=unit))
    other = swept(drawn(dosage * singles(), effects, unit=unit))
    for place, value in at_one.items():
        spreads = [m.direct.table(m.direct.sd)[place].item() for m in (one, other)]
        np.testing.assert_allclose(spreads[1] * dosage, spreads[0], rtol=0.15)
        assert abs(tables(other)[0][place] * dosage - value) < 4 * spreads[0]
    assert active_entries(other) == set(at_one)


def test_a_perturbation_of_small_dosages_is_not_taken_for_an_absent_one():
    D = singles()
    D[:, 0] *= 0.005  # 150 cells: dosages that sum to less than one
    model = swept(drawn(D, planted({(0, 20): -400.0})))
    assert model.direct.table(model.direct.probability)[0, 20] > ACTIVE


@pytest.mark.parametrize("size", [1.0, 1e3, 1e-3])
def test_values_of_a_gaussian_have_effects_in_their_own_units(size):
    unit = size * np.random.default_rng(3).uniform(0.5, 2, G)
    data = drawn(singles(), planted(OWN | OTHERS), unit=unit, n_own=6)
    model = swept(data, unit=unit)
    mean, _ = tables(model)
    for place, value in (OWN | OTHERS).items():
        assert abs(mean[place] / unit[place[1]] - value) < 0.2
    assert active_entries(model) == set(OWN | OTHERS)
    sd = model.direct.table(model.direct.sd)[0, 20].item() / unit[20]
    # of the mean of 150 cells and that of 600 controls; cells also differ along two axes
    spread = np.sqrt(0.25 + (Decoder().slope[:, 20] ** 2).sum())
    np.testing.assert_allclose(sd, spread * np.sqrt(1 / 150 + 1 / 600), rtol=0.15)


def test_a_gene_that_makes_up_half_of_each_cell_and_fluctuates_makes_no_other_active():
    decoder = Decoder()
    decoder.start[0] = np.log(np.exp(decoder.start[1:]).sum())
    effects = {(0, 20): -1.5, (5, 30): 1.0}
    data = drawn(singles(), planted(effects), decoder=decoder, wobble=1.0)
    share = data.counts[:, 0].sum() / data.counts.sum()
    assert 0.4 < share < 0.6
    model = swept(data, decoder=decoder)
    assert_found(model, effects)
    rest = tables(model)[0][:, 1:].copy()
    rest[0, 19] = rest[5, 29] = 0
    assert np.abs(rest).max() < 0.1


# What little is known of


def quiet(data: CellData, **options: Any) -> SAMSVAE:
    """Return the swept model, without a warning on the way; all its numbers are finite."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = swept(data, **options)
    for name, value in model.direct.state_dict().items():
        assert value.isfinite().all(), name
    return model


@pytest.mark.parametrize("unit", [None, np.ones(G)])
def test_perturbations_of_few_cells_or_none_and_a_gene_never_counted(unit):
    D = singles()
    owner = D.argmax(1) + np.where(D.any(1), 0, T)
    keep = np.full(len(D), True)
    for t, n in enumerate((1, 2, 5, 0)):
        keep[np.flatnonzero(owner == t)[n:]] = False
    data = drawn(D[keep], planted({(6, 30): 1.0}), unit=unit, n_own=1)
    values = data.counts.toarray()
    values[:, 50] = 0
    data = replace(data, counts=sp.csr_matrix(values))
    model = quiet(data)
    mean, active = tables(model)
    assert (mean[3] == 0).all()
    assert (mean[:, 50] == 0).all()
    assert np.argwhere(active[:, :50]).tolist() == [[6, 30]]


def test_two_perturbations_always_together_share_their_effect():
    D = singles()
    D[:, 1] = D[:, 0] = D[:, 0] + D[:, 1]
    model = quiet(drawn(D, planted({(0, 20): -1.6, (5, 30): 1.0})))
    mean, _ = tables(model)
    assert abs(mean[0, 20] + mean[1, 20] + 1.6) < 0.2
    np.testing.assert_allclose(mean[0], mean[1], atol=1e-3)
    assert abs(mean[5, 30] - 1) < 0.2


def test_without_control_cells_effects_are_against_all_others():
    model = quiet(drawn(singles(n_control=0), planted(OWN | OTHERS), n_own=6))
    mean, active = tables(model)
    for place, value in (OWN | OTHERS).items():
        assert active[place]
        assert abs(mean[place] - value) < 0.2
    assert active.sum() == len(OWN | OTHERS)


def test_a_single_perturbation_and_a_single_control_are_enough():
    D = np.ones((40, 1), np.float32)
    D[0] = 0
    model = quiet(drawn(D, np.zeros((1, G))))
    assert not tables(model)[1].any()


def test_depths_that_are_not_kept_change_little(monkeypatch):
    data = drawn(combined(), planted(ADDED))
    kept = tables(swept(data))[0]
    monkeypatch.setattr("samsvae_core.training.direct_sums.MOST_TABLE", 0)
    model = swept(data)
    assert_found(model, ADDED)
    np.testing.assert_allclose(tables(model)[0], kept, atol=0.05)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    D = singles(8, 40)
    D[-40:, 0] = 0.5  # with some others
    data, few = drawn(D, planted({(0, 20): -3.0}), n_own=6), replace(CONFIG, steps=400)
    whole = swept(data, few)
    for name in ("CELLS_AT_ONCE", "VALUES_AT_ONCE"):
        monkeypatch.setattr(f"samsvae_core.training.direct_sums.{name}", 17 * G)
    monkeypatch.setattr(direct_fit, "ROWS_AT_ONCE", 5 * G)
    monkeypatch.setattr(direct_fit, "VALUES_AT_ONCE", 3 * G)
    found = swept(data, few)
    assert active_entries(found) == active_entries(whole)
    assert (0, 20) in active_entries(whole)
    np.testing.assert_allclose(tables(found)[0], tables(whole)[0], atol=1e-3)


# When


def test_sweeps_while_training_hold_own_targets_and_what_is_shared_only():
    shared = np.zeros(G)
    shared[10] = 1.5
    data = drawn(singles(), planted(OWN | OTHERS), shared, n_own=6)
    for model in (swept(data, until=CONFIG.steps), swept(data, kind="own-target")):
        row, gene = model.direct.row, model.direct.gene
        assert ((row == T) | (model.direct.own[row.clamp_max(T - 1)] == gene)).all()
        assert active_entries(model) == {*OWN, (T, 10)}
    first = swept(data, until=CONFIG.steps // 64)
    assert set(first.direct.row.tolist()) == {T}
    assert active_entries(swept(data)) == {*OWN, *OTHERS, (T, 10)}


@pytest.fixture(scope="module")
def cautious() -> tuple[CellData, list[torch.Tensor]]:
    """Return cells, and the effects found in them at each caution."""
    data = drawn(singles(60, 200), NONE + np.random.default_rng(0).normal(0, 0.3, NONE.shape))
    each = [swept_with(data, {caution: 100.0}).direct.mean for caution in direct_fit.CAUTIONS]
    return data, each


@pytest.mark.parametrize(
    ("gains", "chosen"),
    [
        ([0, 0, 0, 0], 0),  # nothing tells
        ([0, 1, 2, 3], 3),  # only own targets
        ([0, 3, 3.1, 3], 1),  # as good as the best one within the error
        ([0, 0.1, 0.15, 0.19], 0),
        ([3, 2, 1, 0], 0),
        ([0, 1, 3, 1], 2),
    ],
)
def test_validation_cells_decide_how_cautious_to_be(cautious, gains, chosen):
    """The bounds of cells differ by 1 nat, so that a mean of 100 has a standard error of 0.1."""
    data, each = cautious
    sizes = [float(mean.abs().sum()) for mean in each]
    assert (np.diff(sizes) < 0).all()
    found = swept_with(data, dict(zip(direct_fit.CAUTIONS, gains, strict=True)))
    assert torch.equal(found.direct.mean, each[chosen])
    assert found.direct.trained is None


def swept_with(data: CellData, gain: dict[float, float]) -> SAMSVAE:
    """Return a model swept where bounds depend on the caution, cells differing in all alike."""
    model = new_model(data, ModelConfig(G, T, 2, 4, direct_effects="sparse"), 0)
    sweeps = DirectFit(model, Cells(data, CPU), CONFIG)
    calls = iter(reversed(direct_fit.CAUTIONS))

    def bounds() -> torch.Tensor:
        caution = next(calls)
        noise = torch.randn(100, generator=torch.Generator().manual_seed(int(min(caution, 9) * 10)))
        noise = (noise - noise.mean()) / noise.std() / 2**0.5  # of a difference: 1
        return gain.get(caution, 0.0) + noise

    sweeps.finish(CONFIG.steps, bounds)
    return model


def test_without_direct_effects_there_is_nothing_to_do():
    data = drawn(singles(5, 5))
    model = new_model(data, ModelConfig(G, T, 2, 4), 0)
    sweeps = DirectFit(model, Cells(data, CPU), CONFIG)
    assert sweeps.steps == set()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sweeps.after(3000)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_random_numbers_of_steps_are_the_same_with_and_without_sweeps():
    data = drawn(singles(5, 5))
    model = new_model(data, ModelConfig(G, T, 2, 4, direct_effects="sparse"), 0)
    sweeps = DirectFit(model, Cells(data, CPU), CONFIG)
    before = torch.get_rng_state()
    for step in sorted(sweeps.steps):
        sweeps.after(step)
    sweeps.finish(CONFIG.steps, no_bounds)
    assert len(model.direct.mean)
    assert torch.equal(torch.get_rng_state(), before)


SHORT = TrainConfig(steps=20, batch_size=64, learning_rate=1e-2)  # 4 steps an epoch


def trained(run, kind="sparse", on_epoch=lambda _: None, config=SHORT, n_own=6, **options):
    """Return the history of a short training and its model."""
    data = drawn(singles(25, 100), planted(OWN | OTHERS), n_own=n_own)
    parts = split(data)
    cells, validation = (data.subset(parts == part) for part in ("train", "validation"))
    shape = ModelConfig(G, T, 3, 8, direct_effects=kind)
    model = new_model(cells, replace(shape, **options), 0)
    history = fit(model, Cells(cells, CPU), Cells(validation, CPU), config, run, on_epoch)
    return history, model


def test_effects_on_other_genes_leave_masks_and_networks_as_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(direct_fit, "FEWEST_SHARED", T + 1)
    _, without = trained(tmp_path / "none", "none", n_own=0)
    _, model = trained(tmp_path / "sparse", n_own=0)
    assert len(model.direct.mean)
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in without.state_dict().items())


def test_a_dense_start_waits_with_other_genes(tmp_path):
    dense = replace(SHORT, dense=1.0, anneal=float("inf"))
    _, model = trained(tmp_path, config=dense)
    row, gene = model.direct.row, model.direct.gene
    assert ((row == T) | (model.direct.own[row.clamp_max(T - 1)] == gene)).all()


def test_a_training_that_was_stopped_goes_on_to_the_same_entries(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)
    history, model = trained(tmp_path / "whole")
    assert len(model.direct.mean)
    for last in (1, 4):

        def stop(progress, last=last):
            if progress.epoch == last:
                raise Stop

        run = tmp_path / f"stopped{last}"
        with pytest.raises(Stop):
            trained(run, on_epoch=stop)
        again, resumed = trained(run)
        assert again == history
        for name, value in model.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name


def test_after_training_there_are_draws(tmp_path):
    _, model = trained(tmp_path)
    assert model.direct.trained is None
    assert model.direct.sample(3).values.shape == (3, len(model.direct.mean))


# Memory


class Live(TorchDispatchMode):
    """Watches what tensors hold: all at once at most, and each."""

    small = 2**14  # bytes of a tensor that does not matter

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most, self.shapes = 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            if isinstance(tensor, torch.Tensor):
                self.shapes.add((tensor.dtype, tuple(tensor.shape)))
                storage = tensor.untyped_storage()
                known = self.held.get(storage._cdata)
                if storage.nbytes() > self.small and (known is None or known[0].expired()):
                    self.add(storage)
        return found

    def add(self, storage: torch.UntypedStorage) -> None:
        self.held = {k: held for k, held in self.held.items() if not held[0].expired()}
        self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.held.values()))


@pytest.mark.parametrize("several", [False, True])
def test_sweeps_hold_no_more_than_they_say(monkeypatch, several):
    """Tables of perturbations x genes in single precision, as many as told, and blocks of rows."""
    n_perturbations, n_genes, n_cells = 300, 400, 900
    D = np.zeros((n_cells, n_perturbations), np.float32)
    D[np.arange(n_cells), np.arange(n_cells) % n_perturbations] = 1
    D[:100] = 0
    if several:
        D[100:300, 7] = 1
    random = np.random.default_rng(0)
    counts = sp.csr_matrix(random.poisson(1.0, (n_cells, n_genes)).astype(np.float32))
    labels = np.where(D.any(1), "perturbed", "control")
    data = cell_data(counts, D, labels)
    conditions = len(np.unique(D, axis=0))
    shape = ModelConfig(n_genes, n_perturbations, 2, 4, direct_effects="sparse")
    model = new_model(data, shape, 0)
    for place, name, size in (
        (direct_fit, "ROWS_AT_ONCE", 2**12),
        (direct_fit, "VALUES_AT_ONCE", 2**15),
        (direct_fit, "MOST_SHARED", 10),
        (direct_sums, "VALUES_AT_ONCE", 2**13),
        (shrinkage, "VALUES_AT_ONCE", 2**13),
        (shrinkage, "SWEEPS", 2),
    ):
        monkeypatch.setattr(place, name, size)
    with Live() as live:
        sweeps = DirectFit(model, Cells(data, CPU), replace(CONFIG, steps=2000))
        monkeypatch.setattr(direct_fit, "N_LAST", 2)  # the second with entries before it
        sweeps.finish(2000, no_bounds)
    assert len(model.direct.mean) > 1000
    needed = direct_fit.memory_needed(n_perturbations, n_genes, conditions, sparse=False)
    entries = sum(getattr(model.direct, name).nbytes for name in model.direct.KEPT)
    assert needed < 1.1 * live.most
    assert live.most < 1.2 * needed + 1.3 * entries  # while the parts of each are put together
    assert entries < 4 * direct_fit.OF_ENTRIES * n_perturbations * n_genes
    wide = {shape for dtype, shape in live.shapes if dtype == torch.float64 and len(shape) > 1}
    assert max(np.prod(shape) for shape in wide) <= 2**14
    tall = {shape for _, shape in live.shapes if shape in {(n_cells, n_genes), D.shape}}
    assert tall == set()


def test_the_memory_of_a_large_screen_is_told_before_it_trains():
    n_bytes = direct_fit.memory_needed(20_000, 18_000, 20_001)
    np.testing.assert_allclose(n_bytes, 16 * 4 * 20_000 * 18_000, rtol=1e-3)
    assert direct_fit.memory_needed(25, 300, 26) < 10**6
