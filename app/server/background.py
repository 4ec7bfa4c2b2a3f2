"""Long work in the background of the server: it outlives a reload, and can be cancelled.

Knows nothing of Streamlit. Of what shares a turn one runs at a time, as each takes every processor;
others wait.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from samsvae_core.genesets.prerank import CancelledError, Progress

TURN = threading.Lock()  # of gene-set tests
MOMENT = 0.2  # seconds between looks whether a waiting batch was cancelled
Result = TypeVar("Result")


class Batch(Generic[Result]):
    """A call under way: `progress`, and in the end `result` or `problem`.

    `run` is called with the keyword arguments progress and cancelled, when `turn` is free.
    """

    def __init__(self, run: Callable[..., Result], turn: threading.Lock = TURN) -> None:
        self.progress: Progress | None = None  # None while it waits for its turn
        self.result: Result | None = None
        self.problem = ""
        self._run, self._turn = run, turn
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def cancel(self) -> None:
        """What gene-set tests have tested so far is kept on disk: the next run goes on there."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        self._thread.join(seconds)
        return self.ended

    def _work(self) -> None:
        while not self._turn.acquire(timeout=MOMENT):
            if self._cancelled.is_set():
                self.problem = "Cancelled."
                return
        try:
            self.result = self._run(progress=self._hear, cancelled=self._cancelled.is_set)
        except CancelledError:
            self.problem = "Cancelled."
        except (ValueError, OSError) as error:
            self.problem = str(error)
        finally:
            if self.result is None and not self.problem:
                self.problem = "The test broke off; the server's log has the reason."
            self._turn.release()

    def _hear(self, progress: Progress) -> None:
        self.progress = progress
