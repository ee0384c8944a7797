"""Threads for synchronous tasks: as many as the worker's concurrency, and daemons.

concurrent.futures joins its threads when the interpreter exits, so that one task that ignores cancellation would keep a
stopped worker alive for ever; these die with the process.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ["Threads"]

_Work = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """A pool that grows on demand up to `size` daemon threads and keeps them."""

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._work: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._threads = 0
        self._idle = threading.Semaphore(0)

    async def run(self, function: Callable[[], Any]) -> Any:
        """Call `function` in a thread, with this task's context variables, and await its result.

        Cancelling the awaiting task does not stop the thread: it is for the function to look at its JobContext.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        if not self._idle.acquire(blocking=False) and self._threads < self._size:
            self._threads += 1
            threading.Thread(target=self._loop, name=f"{self._name} {self._threads}", daemon=True).start()
        self._work.put((loop, future, lambda: context.run(function)))
        return await future

    def close(self) -> None:
        """Let idle threads end; busy ones end after their work, or with the process."""
        for _ in range(self._threads):
            self._work.put(None)

    def _loop(self) -> None:
        while (work := self._work.get()) is not None:
            loop, future, function = work
            try:
                result, error = function(), None
            except BaseException as raised:  # handed to the awaiting task, whatever it is
                result, error = None, raised
            self._idle.release()
            with suppress(RuntimeError):  # the loop closed meanwhile
                loop.call_soon_threadsafe(_resolve, future, result, error)


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):
        future.set_exception(RuntimeError("the task raised StopIteration"))
    else:
        future.set_exception(error)
