import threading
import time

import pandas as pd

from app.server.background import TURN, Batch
from samsvae_core.genesets.prerank import CancelledError, Progress
from samsvae_core.genesets.questions import Enrichment

EMPTY = Enrichment(pd.DataFrame(), pd.DataFrame())


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true()


def test_a_batch_tells_how_far_it_is_and_gives_its_result():
    go = threading.Event()

    def run(progress, cancelled):
        progress(Progress(1, 3))
        go.wait(10)
        return EMPTY

    batch = Batch(run)
    until(lambda: batch.progress == (1, 3))
    assert not batch.ended
    assert not batch.wait(0.01)
    go.set()
    assert batch.wait(10)
    assert batch.result is EMPTY
    assert batch.problem == ""


def test_a_mistake_becomes_a_message_and_the_next_has_its_turn():
    def run(progress, cancelled):
        raise ValueError("too few genes")

    batch = Batch(run)
    assert batch.wait(10)
    assert (batch.result, batch.problem) == (None, "too few genes")
    assert not TURN.locked()


def waits_to_be_cancelled(progress, cancelled):
    progress(Progress(0, 1))
    until(cancelled)
    raise CancelledError


def test_one_runs_at_a_time_and_both_can_be_cancelled():
    first = Batch(waits_to_be_cancelled)
    until(lambda: first.progress is not None)
    second = Batch(waits_to_be_cancelled)
    assert not second.wait(0.3)
    assert second.progress is None  # it waits for its turn
    second.cancel()
    assert second.wait(10)
    assert not first.ended
    first.cancel()
    assert first.wait(10)
    assert first.problem == second.problem == "Cancelled."
    assert not TURN.locked()
