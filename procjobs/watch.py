"""Health: whether the database answers, workers live and queues move. Reads SQL functions only."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Literal

from procjobs.db import Calls
from procjobs.errors import DatabaseError

__all__ = ["Health", "Overview", "health", "overview"]

#: A probe must be answered before its asker gives up.
DEADLINE = 3.0

_NOT_MIGRATED = {"3F000", "42883", "42P01"}


@dataclass(frozen=True, slots=True)
class Health:
    """One look at the system.

    status:   ok; degraded (jobs can be enqueued, but nobody runs them); down (the database cannot be used).
    warnings: what is not as it should be, one sentence each.
    """

    status: Literal["ok", "degraded", "down"]
    workers: int = 0
    waiting: int = 0
    scheduled: int = 0
    running: int = 0
    failed: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Whether requests can be served: the database answers and is migrated."""
        return self.status != "down"


@dataclass(frozen=True, slots=True)
class Overview:
    """What the first page shows. Lists are rows of the SQL functions list_queues, list_workers and list_jobs."""

    health: Health
    queues: list[dict[str, Any]] = field(default_factory=list)
    workers: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[dict[str, Any]] = field(default_factory=list)


async def health(db: Calls) -> Health:
    """Whether the system works; answers within DEADLINE seconds and never raises."""
    return (await overview(db, recent=0)).health


async def overview(db: Calls, *, recent: int = 15) -> Overview:
    """Health with queues, live workers and the `recent` newest jobs; answers within DEADLINE seconds, never raises."""
    try:
        async with asyncio.timeout(DEADLINE):
            queues = await db.rows("list_queues")
            workers = await db.rows("list_workers")
            jobs = await db.rows("list_jobs", p_max_rows=recent) if recent else []
    except TimeoutError:
        return Overview(Health("down", warnings=[f"the database did not answer within {DEADLINE:g} s"]))
    except DatabaseError as error:
        reason = "procjobs is not installed in the database; run: procjobs migrate"
        if error.sqlstate not in _NOT_MIGRATED:
            reason = "the database does not answer"
        return Overview(Health("down", warnings=[reason]))
    alive = [worker for worker in workers if is_alive(worker)]
    return Overview(_judge(queues, alive), queues, alive, jobs)


def is_alive(worker: dict[str, Any]) -> bool:
    """Whether a row of list_workers is of a worker that claims jobs, or finishes those it runs."""
    return worker["state"] in {"alive", "draining"}


def _judge(queues: list[dict[str, Any]], alive: list[dict[str, Any]]) -> Health:
    totals = {state: sum(queue[state] for queue in queues) for state in ("waiting", "scheduled", "running", "failed")}
    warnings = []
    if not alive:
        warnings.append("no worker is alive: jobs are kept, and run as soon as one is started")
    warnings += [f"queue {queue['name']} is paused" for queue in queues if queue["paused_at"] is not None]
    return Health("ok" if alive else "degraded", len(alive), **totals, warnings=warnings)
