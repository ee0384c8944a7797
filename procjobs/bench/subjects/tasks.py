"""The tasks of Procrastinate and procjobs, in a module that a process of its own can import.

They count only where the environment names a counter's file.
"""

from __future__ import annotations

import os
import threading

from procjobs.bench.subjects.counter import Counter

__all__ = ["count_in", "crunch", "noop", "noop_in_a_thread"]

_counter: Counter | None = None
_first = threading.Lock()


def count_in(path: str) -> None:
    """Count starts, in this process and in those that it starts."""
    os.environ["PROCJOBS_BENCH_COUNTER"] = path


def _count(at: int | None) -> None:
    global _counter
    if _counter is None:
        with _first:  # threads come together
            _counter = _counter or Counter(os.environ["PROCJOBS_BENCH_COUNTER"])
    _counter.start(at)


async def noop(at: int | None = None) -> None:
    """Nothing, on the loop."""
    _count(at)


def noop_in_a_thread(at: int | None = None) -> None:
    """Nothing, as a plain function."""
    _count(at)


def crunch(at: int | None = None) -> None:
    """A few milliseconds of a processor, holding the interpreter's lock."""
    _count(at)
    total = 0
    for number in range(60_000):
        total += number * number
