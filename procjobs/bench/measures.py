"""What is measured beside the drain: enqueueing, the wait of a job in an idle system, and room on disk."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from time import monotonic, sleep

import psycopg

from procjobs.bench.contenders import Contender
from procjobs.bench.drain import enqueue, working
from procjobs.bench.environments import Environments

__all__ = ["MODES", "Waits", "bytes_per_job", "enqueue_rate", "waits"]

#: How many jobs for each way to enqueue, and its words.
MODES = {"one": (1500, "one by one"), "many": (40_000, "by 1,000"), "copy": (200_000, "by COPY")}
_SIZE = (
    "select coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint from pg_class c "
    "join pg_namespace n on n.oid = c.relnamespace "
    "where c.relkind = 'r' and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')"
)


@dataclass(frozen=True)
class Waits:
    """Milliseconds from the call that enqueues to the job's first line."""

    p50: float
    p95: float
    p99: float


def enqueue_rate(environments: Environments, contender: Contender, dsn: str, mode: str, count: int) -> float:
    """Jobs a second from one caller."""
    return count / enqueue(environments, contender, dsn, mode, count)


def waits(environments: Environments, contender: Contender, dsn: str, count: int) -> Waits:
    """Enqueue one job every 20 ms beside an idle worker."""
    enqueue(environments, contender, dsn, "one", 1)
    with working(environments, contender, dsn) as starts:
        deadline = monotonic() + 60
        while not starts.count and monotonic() < deadline:
            sleep(0.05)
        sleep(1.0)  # nothing to wait for: the worker goes idle
        enqueue(environments, contender, dsn, "paced", count)
        while len(starts.waits()) < count and monotonic() < deadline:
            sleep(0.05)
        found = starts.waits()
    if len(found) < count:
        raise RuntimeError(f"{contender.name}: only {len(found)} of {count} paced jobs started")
    parts = statistics.quantiles(found, n=100, method="inclusive")
    return Waits(parts[49], parts[94], parts[98])


def bytes_per_job(environments: Environments, contender: Contender, dsn: str, count: int) -> float:
    """Tables and indexes, for waiting jobs without arguments."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        before = _size(connection)
        enqueue(environments, contender, dsn, "many", count)
        return (_size(connection) - before) / count


def _size(connection: psycopg.Connection[tuple[int]]) -> int:
    row = connection.execute(_SIZE).fetchone()
    return row[0] if row else 0
