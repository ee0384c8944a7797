"""What runs beside a loop, started again with jitter when it fails; and the signals that end the loop."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

from procjobs.engine.backoff import Backoff
from procjobs.errors import DatabaseError, DatabaseUnavailable

__all__ = ["Side", "enter", "pause", "sides", "stop_signals"]

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
        except DatabaseUnavailable as error:
            logger.warning("%s waits for the database: %s", name, error, extra={"action": "reconnecting"})
        except Exception:
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


async def pause(seconds: float | None, *events: asyncio.Event) -> None:
    """Wait until one of the events is set or the time is over (None: no limit)."""
    waiters = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiters, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for waiter in waiters:
            waiter.cancel()


@contextmanager
def stop_signals(on_signal: Callable[[], None]) -> Iterator[None]:
    """Call `on_signal` in the running loop at each SIGTERM and SIGINT; nothing outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in previous:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
