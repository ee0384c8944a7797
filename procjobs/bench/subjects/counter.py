"""What a contender's process writes while it works: how many jobs it started, when, and how long paced ones waited.

Shared by programs in other environments, so without anything but the standard library. Times are nanoseconds of the
monotonic clock, which is one for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

#: Starts, first start, last start; then the waits of paced jobs.
HEAD = struct.Struct("=3q")
MOST_WAITS = 4096
SIZE = HEAD.size + 8 * MOST_WAITS
BATCH = 1000
PACE = 0.020

Enqueue = Callable[[str, str, int], Coroutine[Any, Any, float]]


class Counter:
    """One process's file."""

    def __init__(self, path: str) -> None:
        with open(f"{path}.{os.getpid()}", "w+b") as file:
            file.truncate(SIZE)
            self._numbers = memoryview(mmap.mmap(file.fileno(), SIZE)).cast("q")
        self._waits = 0

    def start(self, at: int | None = None) -> None:
        """A job starts; at: when it was enqueued."""
        numbers = self._numbers
        now = time.monotonic_ns()
        if not numbers[0]:
            numbers[1] = now
        numbers[2] = now
        numbers[0] += 1
        if at and self._waits < MOST_WAITS:
            numbers[3 + self._waits] = now - at
            self._waits += 1


def stopped() -> asyncio.Event:
    """Set by SIGTERM."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    return event


async def timed(
    mode: str,
    count: int,
    one: Callable[[int | None], Awaitable[object]],
    many: Callable[[int], Awaitable[object]],
    copy: Callable[[int], Awaitable[object]] | None = None,
) -> float:
    """Enqueue in one of the modes; the seconds it took."""
    if mode == "paced":
        await one(None)  # whatever the first call alone costs
    began = time.perf_counter()
    if mode == "one":
        for _ in range(count):
            await one(None)
    elif mode == "many":
        for done in range(0, count, BATCH):
            await many(min(BATCH, count - done))
    elif mode == "copy" and copy is not None:
        await copy(count)
    elif mode == "paced":
        for _ in range(count):
            await asyncio.sleep(PACE)
            await one(time.monotonic_ns())
    else:
        raise SystemExit(f"there is no way to enqueue by {mode}")
    return time.perf_counter() - began


def main(
    prepare: Callable[[str], Coroutine[Any, Any, None]],
    enqueue: Enqueue,
    drain: Callable[[str, int, Counter], Coroutine[Any, Any, None]],
) -> None:
    """The command line of every contender in Python."""
    verb, dsn, *rest = sys.argv[1:]
    if verb == "prepare":
        asyncio.run(prepare(dsn))
    elif verb == "enqueue":
        print(asyncio.run(enqueue(dsn, rest[0], int(rest[1]))))
    else:
        asyncio.run(drain(dsn, int(rest[0]), Counter(rest[1])))
