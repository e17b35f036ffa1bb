"""One prediction at a time, in a thread of its own, so that callbacks never wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import time
from typing import Any

from diffusion_policy_ros.datatypes import NS_PER_S


class Worker:
    """
    Runs one function at a time beside the node's thread.

    Everything but the function itself happens in the node's thread, so nothing needs a lock.

    Args:
        post: runs a function in the node's thread soon; an executor's `create_task`.
        steady_ns: the steady clock.

    Attributes:
        dropped: results that `drop` kept from being handed on.
    """

    def __init__(self, post: Callable[[Callable[[], None]], Any],
                 steady_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._post, self._steady_ns = post, steady_ns
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix='inference')
        self._job: object | None = None
        self._submitted_ns = 0
        self.dropped = 0

    @property
    def busy(self) -> bool:
        """Whether a result is still to be handed on."""
        return self._job is not None

    @property
    def busy_s(self) -> float:
        """How long a result has been waited for; 0 where none is."""
        return (self._steady_ns() - self._submitted_ns) / NS_PER_S if self.busy else 0.0

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function in the worker's thread and wait for it."""
        return self._pool.submit(function).result()

    def submit(self, function: Callable[[], Any], done: Callable[[Any, float], None],
               failed: Callable[[Exception], None]) -> None:
        """
        Start a function.

        Args:
            function: to run in the worker's thread.
            done: takes its result and its milliseconds, in the node's thread.
            failed: takes what it raised, in the node's thread.
        """
        self._job = job = object()
        self._submitted_ns = self._steady_ns()

        def work() -> None:
            if job is not self._job:
                return
            begin = time.perf_counter()
            try:
                result, error = function(), None
            # Whatever a network raises, the node lives.
            except Exception as caught:  # noqa: B902
                result, error = None, caught
            milliseconds = 1e3 * (time.perf_counter() - begin)
            if job is self._job:
                self._post(lambda: hand_on(result, milliseconds, error))

        def hand_on(result: Any, milliseconds: float, error: Exception | None) -> None:
            if job is not self._job:
                return
            self._job = None
            if error is None:
                done(result, milliseconds)
            else:
                failed(error)

        self._pool.submit(work)

    def drop(self) -> None:
        """Let what is in flight come to nothing."""
        self.dropped += self.busy
        self._job = None

    def close(self) -> None:
        """End the thread; waits for what runs."""
        self.drop()
        self._pool.shutdown(cancel_futures=True)
