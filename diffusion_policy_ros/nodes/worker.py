"""One prediction at a time, in a thread of its own, so that callbacks never wait for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import time
from typing import Any


class Worker:
    """
    Runs one function at a time beside the node's thread.

    Everything but the function itself happens in the node's thread, so nothing needs a lock.

    Args:
        post: runs a function in the node's thread soon; an executor's `create_task`.

    Attributes:
        dropped: results that `drop` kept from being handed on.
    """

    def __init__(self, post: Callable[[Callable[[], None]], Any]) -> None:
        self._post = post
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix='inference')
        self._job: object | None = None
        self.dropped = 0

    @property
    def busy(self) -> bool:
        """Whether a result is still to be handed on."""
        return self._job is not None

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
