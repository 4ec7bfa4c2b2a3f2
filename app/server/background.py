"""Long work in the background, which survives a reload of the page and can be cancelled.

Batches that share a turn run one at a time, because each uses all processors.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from samsvae_core.genesets.prerank import CancelledError, Progress

TURN = threading.Lock()  # shared by all gene-set tests
MOMENT = 0.2  # seconds between checks whether a waiting batch was cancelled
Result = TypeVar("Result")


class Batch(Generic[Result]):
    """A call in a thread of its own, with its `progress` and in the end a `result` or `problem`.

    `run` is called with the keyword arguments progress and cancelled once `turn` is free.
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
        """Ask the call to stop; gene-set tests keep their results so far for the next run."""
        self._cancelled.set()

    def wait(self, seconds: float) -> bool:
        """Wait for at most so many seconds, and return whether the call has ended."""
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
