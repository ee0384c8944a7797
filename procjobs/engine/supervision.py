"""What runs beside a loop, started again with jitter when it fails; and the signals that end the loop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from procjobs.engine.backoff import Backoff
from procjobs.errors import DatabaseError

__all__ = ["Side", "enter", "pause", "run_to_its_end", "see_through", "sides", "stop_signals"]

logger = logging.getLogger("procjobs.worker")

#: Runs until cancelled, or until it has nothing more to do.
Side = Callable[[], Awaitable[None]]

#: Seconds after which a side job that fails has worked: the next wait is short again.
_STEADY = 10.0


@asynccontextmanager
async def sides(named: Mapping[str, Side]) -> AsyncIterator[None]:
    """Run side jobs for the length of the block, each started again when it fails."""
    tasks = [asyncio.create_task(_supervise(name, side), name=f"procjobs {name}") for name, side in named.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _supervise(name: str, side: Side) -> None:
    backoff = Backoff()
    while True:
        began = time.monotonic()
        try:
            await side()
            return
        except Exception as error:
            if isinstance(error, DatabaseError) and error.transient:
                logger.warning("%s waits for the database: %s", name, error, extra={"action": "reconnecting"})
            else:
                logger.exception("%s failed and starts again", name, extra={"action": "side_failed"})
        if time.monotonic() - began > _STEADY:
            backoff.reset()
        await backoff.wait()


async def enter(begin: Side, stopping: asyncio.Event) -> None:
    """Do `begin`, waiting out an outage of the database or whoever is in the way; returns without it when stopped."""
    backoff = Backoff()
    while not stopping.is_set():
        try:
            await begin()
            return
        except DatabaseError as error:
            if not error.transient:
                raise
            logger.warning("starting waits for the database: %s", error, extra={"action": "reconnecting"})
            await pause(backoff.next(), stopping)


async def see_through(main: asyncio.Task[None], urge: Callable[[], None]) -> None:
    """Wait for the end of `main`, whatever happens: being cancelled calls `urge`, and is raised when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not main.done():
        try:
            await asyncio.shield(main)
        except asyncio.CancelledError as error:
            if main.cancelled():
                raise
            cancelled = error
            urge()
    main.result()
    if cancelled is not None:
        raise cancelled


async def pause(seconds: float | None, *events: asyncio.Event) -> None:
    """Wait until one of the events is set or the time is over (None: no limit)."""
    waiters = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


def run_to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """`asyncio.run` for a process that belongs to a worker, whatever its jobs do with the loop.

    A job that calls sys.exit in a task or callback of its own does not end it: asyncio lets SystemExit through the
    loop, with everything else that runs in it. Nor does a job keep it from ending that is stuck in a thread of
    asyncio's: then the exit code is 1.
    """
    threads = _Borrowed(thread_name_prefix=_BORROWED)
    try:
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            loop.set_default_executor(threads)
            main = loop.create_task(work)
            while not main.done():
                _run_on(loop, main)
            main.result()
    finally:
        _leave_stuck_threads()


def _run_on(loop: asyncio.AbstractEventLoop, main: asyncio.Task[None]) -> None:
    try:
        loop.run_until_complete(main)
    except SystemExit as error:
        if main.done():
            raise
        logger.error(
            "SystemExit(%r) beside a job's own coroutine: the worker goes on",
            error.code,
            exc_info=error,
            extra={"action": "exit_refused"},
        )


_BORROWED = "procjobs loop"


class _Borrowed(ThreadPoolExecutor):
    """The threads of asyncio.to_thread. It does not wait for them at its end."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=True)


def _leave_stuck_threads(patience: float = 1.0) -> None:
    """Python would wait for ever for a thread that does not end: leave without it."""
    over = time.monotonic() + patience
    borrowed = [thread for thread in threading.enumerate() if thread.name.startswith(_BORROWED)]
    for thread in borrowed:
        thread.join(max(0.0, over - time.monotonic()))
    if stuck := [thread.name for thread in borrowed if thread.is_alive()]:
        logger.error("%d threads of asyncio.to_thread do not end", len(stuck), extra={"action": "threads_abandoned"})
        logging.shutdown()
        os._exit(1)


@contextmanager
def stop_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` in the running loop at each SIGTERM and SIGINT; nothing outside of the main thread.

    Of several at once in one process each is called. A process that a job forks gets none of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = [_Handler(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for handler in handlers:
            handler.remove()


class _Handler:
    """Of one signal. Not asyncio's: that one writes to a socket which a forked process shares with its parent, so that
    a signal to the child, such as that of multiprocessing.Pool when it ends, would stop the parent."""

    def __init__(self, number: signal.Signals, on_signal: Callable[[], None]) -> None:
        self._number = number
        self._on_signal: Callable[[], None] | None = on_signal
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._before = signal.signal(number, self) or signal.SIG_DFL

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            self._die(number)
            return
        heard = False
        handler: Any = self
        while isinstance(handler, _Handler):
            if handler._on_signal is not None:
                handler._loop.call_soon_threadsafe(handler._on_signal)
                heard = True
            handler = handler._before
        if heard:
            return
        if callable(handler):
            handler(number, frame)
        elif handler is signal.SIG_DFL:
            self._die(number)

    def _die(self, number: int) -> None:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def remove(self) -> None:
        """Put back what was there before; who came later and still is there passes on to that."""
        self._on_signal = None
        current: object = signal.getsignal(self._number)
        if current is self:
            signal.signal(self._number, self._before)
