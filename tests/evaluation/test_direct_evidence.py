"""Evidence of a direct effect is what held-out cells lose without it."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from torch.distributions import NegativeBinomial, Normal, kl_divergence

from samsvae_core.analysis.direct import direct_table
from samsvae_core.data.cells import CellData
from samsvae_core.data.splits import split
from samsvae_core.evaluation import mask_evidence
from samsvae_core.evaluation.mask_evidence import direct_evidence
from samsvae_core.models.bounds import N_DRAWS
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.direct import Posterior
from samsvae_core.models.samsvae import SAMSVAE, ModelConfig
from samsvae_core.models.simulate import cell_data
from samsvae_core.training.loop import new_model

G, T = 20, 4
PLANTED = {(0, 5): -2.0, (2, 7): 1.0}
ASKED = {**PLANTED, (1, 1): 0.5, (2, 2): 0.3}  # (1, 1) is an own target that is not active
COLUMNS = ["evidence", "evidence_se", "evidence_n"]


@pytest.fixture(scope="module")
def cells() -> tuple[CellData, np.ndarray]:
    """Return cells with one or two perturbations at dosages, from a decoder that is flat in z."""
    random = np.random.default_rng(0)
    D = np.zeros((400, T), np.float32)
    D[100 + np.arange(300), np.arange(300) % T] = 1
    D[100:160:4, 2] = 0.5  # with the first perturbation
    effects = np.zeros((T, G))
    for place, size in PLANTED.items():
        effects[place] = size
    logits = start() + D @ effects
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = random.poisson(1000 * share * random.gamma(20, 1 / 20, share.shape))
    labels = np.where(D.any(1), "perturbed", "control")
    data = cell_data(sp.csr_matrix(counts.astype(np.float32)), D, labels)
    data.genes[1] = data.perturbations[1]
    return data, split(data)


def start() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 0.5, G)


@pytest.fixture
def model(cells) -> SAMSVAE:
    """Return a model that knows the decoder, with the planted effects and two more."""
    data, _ = cells
    made = new_model(data, ModelConfig(G, T, 2, 5, direct_effects="sparse"), 0)
    made.requires_grad_(False)
    torch.nn.init.normal_(made.decoder.out.weight, std=0.1)
    made.decoder.out.bias.copy_(torch.from_numpy(start()).float())
    made.log_concentration.fill_(3.0)
    tables = torch.zeros(4, T + 1, G)
    for place, size in ASKED.items():
        tables[(0, *place)] = size
        tables[(2, *place)] = 0.99 if place in PLANTED else 0.2
    tables[0, T, 3], tables[2, T, 3] = 0.2, 0.9
    made.direct.keep([Posterior(*tables)])
    return made


def table_of(model: SAMSVAE, data: CellData) -> pd.DataFrame:
    return direct_table(model, data.perturbations.tolist(), data.genes.tolist())


def plain_bounds(model: SAMSVAE, data: CellData, rows: np.ndarray, without: tuple[int, int] | None):
    """Return the predictive bound of each cell, one at a time and by torch's distributions.

    The encoder reads the effects of the cell as they are; the draws are those of `direct_evidence`.
    """
    torch.manual_seed(0)
    batch = Cells(data.subset(rows), torch.device("cpu")).batch(torch.arange(len(rows)))
    effects = model.direct.table(model.direct.mean)
    offset = batch.D @ effects[:-1] + (batch.D != 0).any(1)[:, None] * effects[-1]
    on = (model.mask_logits > 0) * model.embedding_loc
    shift = batch.D @ on
    q = model.encode(batch.x, shift[None], offset)
    q = Normal(q.loc[0], q.scale[0])
    if without is not None:
        t, g = without
        offset[:, g] -= batch.D[:, t] * effects[t, g]
    total = -kl_divergence(q, Normal(0.0, 1.0)).sum(-1)
    r = model.log_concentration.exp()
    for _ in range(N_DRAWS):
        z = q.loc + q.scale * torch.randn_like(q.loc)
        share = (model.decoder(z + shift) + offset).softmax(-1)
        mean = batch.library * share
        each = NegativeBinomial(r.expand_as(mean), probs=mean / (mean + r)).log_prob(batch.x)
        total = total + each.sum(-1) / N_DRAWS
    return total.double().numpy()


@pytest.mark.parametrize("place", ASKED)
def test_evidence_is_what_cells_lose_without_the_entry(model, cells, place):
    data, parts = cells
    table = table_of(model, data)
    table.loc[table["gene"] == "gene3", "active"] = True
    found = direct_evidence(model, data, parts, table)
    t, g = place
    given = data.dosages[:, [t]].toarray()[:, 0] != 0
    held_out = np.flatnonzero(given & np.isin(parts, ["validation", "test"]))
    gains = plain_bounds(model, data, held_out, None) - plain_bounds(model, data, held_out, place)
    row = found[(table["perturbation"] == data.perturbations[t]) & (table["gene"] == data.genes[g])]
    assert row["evidence_n"].tolist() == [len(held_out)]
    np.testing.assert_allclose(row["evidence"], gains.mean(), rtol=1e-3, atol=1e-4)
    error = gains.std(ddof=1) / np.sqrt(len(gains))
    np.testing.assert_allclose(row["evidence_se"], error, rtol=1e-3)


def test_a_planted_effect_has_much_evidence_and_one_that_is_not_there_has_none(model, cells):
    data, parts = cells
    table = table_of(model, data)
    found = table.join(direct_evidence(model, data, parts, table))
    strong = found[found["active"]].set_index("perturbation")
    assert list(strong.index) == ["P1", "P3"]
    assert (strong["evidence"] > 5 * strong["evidence_se"]).all()
    assert (strong["evidence"] > 3).all()  # nats per cell
    (own,) = found.loc[found["own_target"], "evidence"]
    assert own < 0


def test_only_active_effects_and_own_targets_are_asked(model, cells):
    data, parts = cells
    table = table_of(model, data)
    found = direct_evidence(model, data, parts, table)
    assert list(found) == COLUMNS
    assert found.index.equals(table.index)
    asked = (table["active"] | table["own_target"]).to_numpy()
    assert asked.tolist() == [True, True, False, True]
    assert found["evidence"].notna().tolist() == asked.tolist()
    assert found["evidence_se"].notna().tolist() == asked.tolist()
    assert (found["evidence_n"] > 0).tolist() == asked.tolist()


def test_of_many_effects_the_strongest_are_asked(model, cells, monkeypatch):
    data, parts = cells
    monkeypatch.setattr(mask_evidence, "MOST_DIRECT", 1)
    table = table_of(model, data).assign(active=True)
    found = direct_evidence(model, data, parts, table)
    assert found["evidence"].notna().tolist() == [True, True, False, True]  # P3: 1.0, not 0.3


def test_without_held_out_cells_there_is_no_evidence_and_with_one_no_error(model, cells):
    data, parts = cells
    table = table_of(model, data)
    nothing = direct_evidence(model, data, np.full(len(parts), "train"), table)
    assert nothing["evidence"].isna().all()
    assert (nothing["evidence_n"] == 0).all()
    one = np.full(len(parts), "train", dtype=object)
    one[np.flatnonzero(data.dosages[:, [0]].toarray())[0]] = "test"
    found = direct_evidence(model, data, one, table).iloc[0]
    assert (found["evidence_n"], np.isnan(found["evidence_se"])) == (1, True)
    assert np.isfinite(found["evidence"])


def test_evidence_is_the_same_each_time_and_changes_no_random_numbers(model, cells):
    data, parts = cells
    table, before = table_of(model, data), torch.get_rng_state()
    first = direct_evidence(model, data, parts, table)
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(direct_evidence(model, data, parts, table), first)


def test_a_table_without_effects_is_answered(model, cells):
    data, parts = cells
    found = direct_evidence(model, data, parts, table_of(model, data)[:0])
    assert found.shape == (0, 3)
