import math
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from samsvae_core.data.splits import split
from samsvae_core.models.device_rows import Cells
from samsvae_core.models.samsvae import ModelConfig
from samsvae_core.models.simulate import Design, simulate
from samsvae_core.training import checkpoint, loop, steps
from samsvae_core.training import validation as validation_module
from samsvae_core.training.checkpoint import finished
from samsvae_core.training.config import Progress, Stop, TrainConfig, TrainingError
from samsvae_core.training.loop import fit, new_model
from samsvae_core.training.steps import annealed, parameter_groups, set_learning_rates
from samsvae_core.training.validation import best_epoch
from tests.oracles import log_proportions

CPU = torch.device("cpu")
MODEL = ModelConfig(n_genes=20, n_perturbations=4, n_latent=3, n_hidden=8)
CONFIG = TrainConfig(steps=24, batch_size=32, particles=2, learning_rate=1e-2)  # 4 steps an epoch


def screen():
    return simulate(
        Design(n_cells=200, n_genes=20, n_perturbations=4, n_latent=3, n_combinations=1, seed=3)
    )[0]


def train(run, config=CONFIG, on_epoch=lambda _: None, model_config=MODEL):
    """Return the history and model of a run in this folder, started or resumed."""
    data = screen()
    parts = split(data)
    train, validation = (data.subset(parts == part) for part in ("train", "validation"))
    model = new_model(train, model_config, config.seed)
    history = fit(model, Cells(train, CPU), Cells(validation, CPU), config, run, on_epoch)
    return history, model


@pytest.fixture(autouse=True)
def written_at_every_epoch(monkeypatch):
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run that was never stopped."""
    return train(tmp_path_factory.mktemp("whole"))


def assert_same(found, expected):
    (history, model), (history_expected, model_expected) = found, expected
    assert history == history_expected
    for name, value in model_expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


# Stopping and resuming

CHILD = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {root!r}]
import test_loop
from samsvae_core.training import checkpoint, steps

step = steps.train_step
calls = 0

def deadly(*arguments):
    global calls
    calls += 1
    if calls == 15:  # the third step of the fourth epoch
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*arguments)

steps.train_step = deadly
checkpoint.PAUSE = {pause}
test_loop.train(Path({run!r}))
"""


@pytest.mark.parametrize(("pause", "written"), [(0.0, [1, 2, 3]), (1e9, [1])])
def test_a_killed_run_resumes_as_if_never_killed(tmp_path, whole, request, pause, written):
    tests = str(request.path.parent)
    program = CHILD.format(
        tests=tests, root=str(request.config.rootpath), run=str(tmp_path), pause=pause
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert pd.read_csv(tmp_path / "history.csv")["epoch"].tolist() == written
    assert_same(train(tmp_path), whole)
    kept = pd.read_csv(tmp_path / "history.csv", float_precision="round_trip")
    pd.testing.assert_frame_equal(kept, pd.DataFrame(whole[0]), check_exact=True)


def test_a_run_killed_between_its_two_records_of_an_epoch_resumes(tmp_path, whole, monkeypatch):
    write = checkpoint.atomic_write

    def deadly(path, content):
        if path.name == "last.safetensors" and (tmp_path / "history.csv").exists():
            kept = pd.read_csv(tmp_path / "history.csv")
            if len(kept) == 6:  # the last epoch
                raise KeyboardInterrupt
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "atomic_write", deadly)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert_same(train(tmp_path), whole)
    assert len(pd.read_csv(tmp_path / "history.csv")) == 6


def test_a_run_stopped_by_its_callback_resumes_as_if_never_stopped(tmp_path, whole):
    def stop(progress):
        if progress.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        train(tmp_path, on_epoch=stop)
    assert_same(train(tmp_path), whole)


def test_between_writings_the_last_whole_epoch_outlives_what_ends_the_run(
    tmp_path, whole, monkeypatch
):
    monkeypatch.setattr(checkpoint, "PAUSE", 1e9)
    calls, step = [], steps.train_step

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 15:  # the third step of the fourth epoch
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "train_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    assert len(pd.read_csv(tmp_path / "history.csv")) == 3
    assert_same(train(tmp_path), whole)
    assert len(pd.read_csv(tmp_path / "history.csv")) == 6


def test_a_finished_run_is_only_read_again(tmp_path, whole):
    train(tmp_path)
    seen = []
    assert_same(train(tmp_path, on_epoch=seen.append), whole)
    assert seen == []


def test_another_seed_gives_another_run(tmp_path, whole):
    history, _ = train(tmp_path, replace(CONFIG, seed=1))
    assert history[0].bound != whole[0][0].bound


def test_the_global_random_states_are_left_alone(tmp_path):
    torch.manual_seed(7)
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    def stop(progress):
        raise Stop

    train(tmp_path / "whole")
    with pytest.raises(Stop):
        train(tmp_path / "stopped", on_epoch=stop)
    train(tmp_path / "stopped")
    assert torch.equal(state, torch.get_rng_state())
    np.testing.assert_array_equal(legacy, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize(
    "other",
    [replace(MODEL, n_latent=2), replace(MODEL, other_genes=True)],
    ids=["size", "outcomes"],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, other):
    train(tmp_path, replace(CONFIG, steps=4))
    before = (tmp_path / "checkpoints" / "last.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="does not hold a checkpoint of this model") as error:
        train(tmp_path, model_config=other)
    assert "\n" not in str(error.value)
    assert (tmp_path / "checkpoints" / "last.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(tmp_path, replace(CONFIG, steps=4))
    last = tmp_path / "checkpoints" / "last.safetensors"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="does not hold a checkpoint"):
        train(tmp_path)


def test_a_file_of_weights_alone_is_no_checkpoint(tmp_path):
    _, model = train(tmp_path, replace(CONFIG, steps=4))
    last = tmp_path / "checkpoints" / "last.safetensors"
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    save_file(weights, last, metadata={"history": "[]"})
    with pytest.raises(TrainingError, match="does not hold a checkpoint"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_names_the_epoch_and_keeps_the_checkpoint_before(tmp_path):
    last = tmp_path / "checkpoints" / "last.safetensors"
    kept, seen = [], []
    data = screen()
    model = new_model(data, MODEL, 0)

    def poison(progress):
        seen.append(progress.epoch)
        kept.append(last.read_bytes())
        if progress.epoch == 2:
            model.decoder.out.bias.data[0] = math.nan

    with pytest.raises(TrainingError, match=r"became nan in epoch 3 .*Lower --learning-rate"):
        fit(model, Cells(data, CPU), Cells(data, CPU), CONFIG, tmp_path, poison)
    assert seen == [1, 2]
    assert last.read_bytes() == kept[-1]
    assert all(torch.isfinite(value).all() for value in load_file(last).values())


def test_a_validation_bound_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(validation_module, "cell_bounds", lambda *_: torch.tensor([math.nan]))
    with pytest.raises(
        TrainingError, match=r"validation bound became nan in epoch 1 \(step 4\)\. L"
    ):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


# What is reported during training


def test_the_callback_hears_of_every_epoch_once_in_order_and_after_it_is_kept(tmp_path):
    heard = []

    def listen(progress):
        heard.append(progress)
        assert len(pd.read_csv(tmp_path / "history.csv")) == progress.epoch
        assert (tmp_path / "checkpoints" / "last.safetensors").exists()

    history, _ = train(tmp_path, on_epoch=listen)
    assert heard == history
    assert [p.epoch for p in heard] == [1, 2, 3, 4, 5, 6]
    assert [p.step for p in heard] == [4, 8, 12, 16, 20, 24]


def test_the_last_epoch_ends_with_the_steps_asked_for(tmp_path):
    history, _ = train(tmp_path, replace(CONFIG, steps=6))
    assert [p.step for p in history] == [4, 6]


def test_training_raises_the_bound(tmp_path):
    history, _ = train(tmp_path, replace(CONFIG, steps=120))
    assert history[-1].bound > history[0].bound + 5
    assert history[-1].validation_bound > history[0].validation_bound + 5


def test_counts_of_active_entries_are_those_of_the_model(whole):
    history, model = whole
    on = model.mask_logits.detach().sigmoid().numpy() > 0.5
    assert history[-1].active == on.sum()
    assert history[-1].mechanisms == on.any(0).sum()


# Annealing, best and early stopping


def test_evidence_is_asked_in_full_after_two_thirds_of_the_steps():
    config = TrainConfig(steps=90)
    shares = [annealed(config, step) for step in (0, 15, 36, 48, 60, 90)]
    assert shares == pytest.approx([0, 0, 0, 0.5, 1, 1])
    assert annealed(replace(config, dense=0.0, anneal=0.0), 1) == 1


def test_learning_rates_are_full_while_annealing_and_fall_to_their_last_share():
    config = TrainConfig(steps=90, final_learning_rate=0.1)
    model = new_model(screen(), MODEL, 0)
    optimizer = torch.optim.Adam(parameter_groups(model, config))
    full = [config.learning_rate, config.mask_learning_rate, config.embedding_learning_rate]
    for step, share in ((1, 1.0), (60, 1.0), (75, 0.55), (90, 0.1)):
        set_learning_rates(optimizer, config, step)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([share * rate for rate in full])


def test_every_parameter_has_one_pace():
    model = new_model(screen(), MODEL, 0)
    given = [p for group in parameter_groups(model, CONFIG) for p in group["params"]]
    assert len(given) == len({id(p) for p in given}) == len(list(model.parameters()))


def line(epoch: int, bound: float, anneal: float) -> Progress:
    return Progress(epoch, 10 * epoch, 0.0, 0.0, 0.0, bound, 0, 0, 0.0, anneal)


def test_an_epoch_is_best_only_once_annealing_has_ended():
    history = [line(1, -1.0, 0.5), line(2, -9.0, 1.0), line(3, -7.0, 1.0), line(4, -8.0, 1.0)]
    assert best_epoch(history[:1]) is None
    assert best_epoch(history) == history[2]


@pytest.mark.parametrize("anneal", [0.25, 0.5])
def test_a_run_that_stands_still_stops_patience_epochs_after_annealing(tmp_path, anneal):
    config = replace(
        CONFIG,
        steps=80,
        dense=0.0,
        anneal=anneal,
        patience=3,
        learning_rate=0.0,
        mask_learning_rate=0.0,
        embedding_learning_rate=0.0,
    )
    history, _ = train(tmp_path, config)
    assert history[-1].epoch == anneal * 20 + 3
    assert len({p.validation_bound for p in history}) == 1


def test_a_run_is_finished_by_its_steps_or_its_patience():
    config = TrainConfig(steps=100, patience=2)
    history = [line(1, -1.0, 0.5), line(2, -9.0, 1.0), line(3, -9.5, 1.0)]
    assert not finished([], config)
    assert not finished(history, config)
    assert finished([*history, line(4, -9.1, 1.0)], config)
    assert not finished([*history, line(4, -8.0, 1.0)], config)
    assert finished([line(10, -1.0, 0.5)], config)


# The start


@pytest.mark.parametrize("rows", [7, 1 << 16])
def test_the_encoder_is_standardised_by_the_training_cells(rows, monkeypatch):
    monkeypatch.setattr(loop, "ROWS_AT_ONCE", rows)
    data = screen()
    model = new_model(data, MODEL, 0)
    log_x = np.log1p(data.counts.toarray().astype(float))
    np.testing.assert_allclose(model.x_loc, log_x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.x_scale, log_x.std(0), rtol=1e-4)


def test_the_share_of_other_genes_starts_at_that_of_the_training_cells():
    """With equal shares, a rarely seen gene would stand in for all the others."""
    data = screen()
    data = replace(data, library=data.library * 100, has_size_factor=True)
    model = new_model(data, replace(MODEL, other_genes=True), 0)
    panel = log_proportions(model, torch.randn(1000, 3)).exp().sum(-1).mean().item()
    assert panel == pytest.approx(0.01, rel=0.5)


def test_the_evidence_asked_is_that_of_the_training_cells():
    data = screen()
    given = data.dosages.toarray() != 0
    model = new_model(data, replace(MODEL, mask_evidence=0.5), 0)
    expected = [max(5.0, 0.5 * sum(row[t] for row in given)) for t in range(4)]
    np.testing.assert_allclose(model.evidence, expected, rtol=1e-6)
