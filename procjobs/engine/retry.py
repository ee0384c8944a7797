"""When a failed job runs again, and how a task says how its run ended without raising.

The rule itself is SQL (`procjobs.retry_delay`, `procjobs.settle_failure`); a `Retry` is what a task registers for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from procrastinate.jobs import Job
from procrastinate.retry import BaseRetryStrategy, RetryDecision

__all__ = ["Cancel", "Discard", "Retry", "Settled", "Snooze", "Verdict", "not_before", "seconds_of"]


#: Seconds: what asks for more does not mean it.
_LONGEST = 31 * 86_400.0


def seconds_of(value: float | timedelta) -> float:
    """A length of time in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


@dataclass(frozen=True)
class Retry(BaseRetryStrategy):
    """How often a task runs and how long it waits in between.

    max_attempts: runs in all, the first included (3 = three runs).
    base:         wait before the second run, in seconds or as a timedelta; it doubles with every further run.
    cap:          the longest wait.
    jitter:       draw each wait evenly between nothing and the computed one ("full jitter", Brooker,
                  "Exponential Backoff And Jitter", AWS Architecture Blog 2015); off gives exact waits.
    on:           retry only after these exceptions; others end the job at once.

    An exception with a number `retry_after` (seconds) is not retried before that, however short the wait would be.

    Retry(max_attempts=4, base=60, jitter=False) waits 60, 120 and 240 s. Raises ValueError for values out of range.
    """

    max_attempts: int = 3
    base: float | timedelta = 10.0
    cap: float | timedelta = 3600.0
    jitter: bool = True
    on: tuple[type[BaseException], ...] | None = None

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ValueError(f"max_attempts={self.max_attempts}: runs in all, so at least 1")
        if not 0 <= self.base_seconds <= self.cap_seconds < math.inf:
            raise ValueError(f"base={self.base!r}, cap={self.cap!r}: 0 <= base <= cap is required, in finite seconds")

    @property
    def base_seconds(self) -> float:
        return seconds_of(self.base)

    @property
    def cap_seconds(self) -> float:
        return seconds_of(self.cap)

    def applies_to(self, error: BaseException) -> bool:
        """Whether another run may follow this error at all."""
        return self.on is None or isinstance(error, self.on)

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> RetryDecision | None:
        """For Procrastinate's own worker (in-memory tests): the same rule without jitter. Ours asks SQL."""
        runs = job.attempts + 1
        if runs >= self.max_attempts or not self.applies_to(exception):
            return None
        wait = min(self.cap_seconds, self.base_seconds * 2 ** (runs - 1))
        return RetryDecision(retry_in={"seconds": wait})


def not_before(error: BaseException) -> dict[str, Any]:
    """The keys of a settlement that say how long whoever failed asked to wait; none for most errors."""
    seconds = getattr(error, "retry_after", None)
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST:
        return {}
    return {"not_before": float(seconds)}


class Verdict:
    """What a task returns to end its run in another way than by success or an exception."""

    def settlement(self) -> dict[str, Any]:
        """The keys of a `settle_jobs` element."""
        raise NotImplementedError


@dataclass(frozen=True)
class Settled(Verdict):
    """How a run ended elsewhere: in another process, or in the server."""

    keys: dict[str, Any]

    def settlement(self) -> dict[str, Any]:
        return self.keys


@dataclass(frozen=True)
class Snooze(Verdict):
    """Run again after `delay` (seconds or timedelta); spends no attempt. Raises ValueError for an endless delay."""

    delay: float | timedelta

    def __post_init__(self) -> None:
        if not math.isfinite(seconds_of(self.delay)):
            raise ValueError(f"delay={self.delay!r}: a finite number of seconds is required")

    def settlement(self) -> dict[str, Any]:
        return {"outcome": "snoozed", "delay": max(0.0, seconds_of(self.delay))}


@dataclass(frozen=True)
class Discard(Verdict):
    """End the job: there is nothing to do any more. No retry, no dead letter; `reason` is kept."""

    reason: str

    def settlement(self) -> dict[str, Any]:
        return {"outcome": "discarded", "reason": self.reason}


@dataclass(frozen=True)
class Cancel(Verdict):
    """End the job as cancelled by itself; `reason` is kept."""

    reason: str

    def settlement(self) -> dict[str, Any]:
        return {"outcome": "cancelled", "reason": self.reason}
