"""The jobs in a worker's hand: claimed ahead or running, until the database has their end.

ready    claimed ahead: ten milliseconds of work, as long as jobs run now. Given back when they wait too long
busy     running; at most `concurrency`
ended    the run is over, the database does not have its end yet. Together with the running ones at most `concurrency`
         and what the database takes in ten milliseconds: a worker that is killed leaves no more than that to run again,
         and one with slow jobs starts nothing new before the ends of the old ones are durable
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from procjobs.engine.claimed import Claimed

__all__ = ["Hand"]

#: Seconds of work to hold beyond the slots, and the most jobs that may be.
_AHEAD_SECONDS = 0.010
_AHEAD_MOST = 500
#: Seconds that a run is taken for at least, and how much a shorter one than the average moves it.
_SHORTEST = 1e-5
_WEIGHT = 0.1
#: Seconds after which claimed jobs that found no free slot are given back to others.
_STALE = 1.0


class Hand:
    """What one worker with `concurrency` slots holds."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._jobs: dict[int, Claimed] = {}
        self._ready: deque[Claimed] = deque()
        #: Seconds that a job runs, on average of the last ones; None before the first has ended.
        self._run_time: float | None = None
        #: Jobs whose ends become durable in a second.
        self._rate = 0.0
        self._rated_at = 0.0
        self._most = _AHEAD_MOST + concurrency
        self.busy = 0
        self._ended = 0

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Claimed]:
        """All jobs; of a copy, since they leave while one looks."""
        return iter(list(self._jobs.values()))

    def claims(self) -> tuple[list[int], list[int]]:
        """Ids and leases of all jobs."""
        return list(self._jobs), [job.lease for job in self._jobs.values()]

    @property
    def ready(self) -> list[Claimed]:
        """The jobs that have not started."""
        return list(self._ready)

    def get(self, job_id: int) -> Claimed | None:
        return self._jobs.get(job_id)

    def room(self) -> int:
        """How many jobs to claim now; not positive when there is no room."""
        free = self._concurrency + self._ahead() + min(self._ended, self._unrecorded()) - len(self._jobs)
        return min(self._most, free)

    def refused(self, asked: int) -> None:
        """A claim of so many jobs took too long: ask for fewer, until claims succeed again."""
        self._most = max(1, asked // 2)

    def _ahead(self) -> int:
        """How many jobs are ten milliseconds of work for all slots, as long as jobs run now.

        Not by how many end: a database that is slow to answer asks for more in hand, not for less.
        """
        if self._run_time is None:
            return 0
        return min(_AHEAD_MOST, int(self._concurrency * _AHEAD_SECONDS / max(self._run_time, _SHORTEST)))

    def _unrecorded(self) -> int:
        """How many ends the database takes in ten milliseconds, as it does now."""
        return min(_AHEAD_MOST, int(self._rate * _AHEAD_SECONDS))

    def take(self, jobs: Sequence[Claimed]) -> None:
        if jobs:
            self._most = min(2 * self._most, _AHEAD_MOST + self._concurrency)
        for job in jobs:
            self._jobs[job.id] = job
        self._ready.extend(jobs)

    def next(self) -> Claimed | None:
        """A ready job for a free slot, which it fills; None when there is no job or no slot."""
        if not self._ready or self.busy >= self._concurrency:
            return None
        if self._ended and self.busy + self._ended >= self._concurrency + self._unrecorded():
            return None
        self.busy += 1
        return self._ready.popleft()

    def end(self, job: Claimed, seconds: float) -> None:
        """It has run for so long: another may run; it stays in our hand until the database has its end."""
        known = self._run_time
        # Long runs count at once, short ones little by little: too much in hand keeps others waiting.
        self._run_time = seconds if known is None or seconds > known else known + _WEIGHT * (seconds - known)
        job.ended = True
        self.busy -= 1
        self._ended += 1

    def put_back(self, job: Claimed) -> bool:
        """Take a job out of the ready ones; False when it is not there (any more)."""
        try:
            self._ready.remove(job)
        except ValueError:
            return False
        return True

    def release(self, jobs: Sequence[Claimed]) -> None:
        """The database has the end of these jobs, or they are void: they are out of our hand."""
        for job in jobs:
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]
            if job.task is not None:
                if job.ended:
                    self._ended -= 1
                else:
                    self.busy -= 1
                job.task = None
        now = time.monotonic()
        passed = min(max(now - self._rated_at, 1e-4), 1.0)
        self._rate = 0.7 * self._rate + 0.3 * len(jobs) / passed
        self._rated_at = now

    def stale(self) -> list[Claimed]:
        """The ready jobs, when they have found no slot for a while: somebody else may have one."""
        if not self._ready or time.monotonic() - self._ready[0].since <= _STALE:
            return []
        self._run_time = None
        return list(self._ready)
