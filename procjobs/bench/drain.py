"""How fast a backlog drains: jobs acknowledged, by SQL, from the first start on."""

from __future__ import annotations

import glob
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from procjobs.bench import limit
from procjobs.bench.contenders import Contender
from procjobs.bench.environments import Environments
from procjobs.bench.shapes import UNCHECKED, Shape
from procjobs.bench.subjects.counter import HEAD, MOST_WAITS, SIZE

__all__ = ["Drained", "Starts", "drain", "enqueue", "prepare", "working"]

#: How long a slow contender may take; then what it has done by then counts.
_LONGEST = 20.0
_STARTUP = 60.0
#: Looked for seldom and only in memory until every job has started: on two processors a busy loop here would slow down
#: what is measured by a third.
_LOOK_EVERY = 0.01
_STOP = 15.0
#: Counting takes one processor at most, whatever else is in the table: a parallel one would take the contender's.
_COUNTING = "-c max_parallel_workers_per_gather=0"


@dataclass(frozen=True)
class Drained:
    """acknowledged jobs in so many seconds; beside: the others that the shape counts."""

    acknowledged: int
    seconds: float
    beside: int = 0

    @property
    def rate(self) -> float:
        return self.acknowledged / self.seconds


class Starts:
    """The counters of all processes of a contender."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _heads(self) -> list[tuple[int, int, int]]:
        heads = [HEAD.unpack(Path(name).read_bytes()[: HEAD.size].ljust(HEAD.size, b"\0")) for name in self._files()]
        return [head for head in heads if head[0]]

    def _files(self) -> list[str]:
        return glob.glob(f"{glob.escape(self.path)}.*")

    @property
    def count(self) -> int:
        return sum(head[0] for head in self._heads())

    @property
    def first(self) -> float:
        """When the first job started, in monotonic seconds."""
        return min(head[1] for head in self._heads()) / 1e9

    def waits(self) -> list[float]:
        """How long the paced jobs waited, in milliseconds."""
        found: list[float] = []
        for name in self._files():
            content = Path(name).read_bytes()[HEAD.size :].ljust(SIZE - HEAD.size, b"\0")
            found += [wait / 1e6 for wait in struct.unpack(f"={MOST_WAITS}q", content) if wait]
        return found


def prepare(environments: Environments, contender: Contender, dsn: str) -> None:
    """Make the contender's schema."""
    if contender.peer.program == "pgbench":
        limit.prepare(dsn)
    else:
        _run(environments, contender, "prepare", dsn)


def enqueue(environments: Environments, contender: Contender, dsn: str, mode: str, count: int) -> float:
    """Enqueue; the seconds it took."""
    if contender.peer.program == "pgbench":
        return limit.enqueue(dsn, count)
    return float(_run(environments, contender, "enqueue", dsn, mode, str(count)).split()[-1])


def drain(environments: Environments, contender: Contender, shape: Shape, dsn: str, jobs: int) -> Drained:
    """Enqueue so many jobs, drain them, and count what was acknowledged. Raises RuntimeError when nothing was done."""
    with _held(dsn, shape.held), psycopg.connect(dsn, autocommit=True, options=_COUNTING) as connection:
        if waiting := shape.waiting(jobs):
            connection.execute(UNCHECKED)
            connection.execute(waiting.encode())
        else:
            enqueue(environments, contender, dsn, "many", jobs)
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
        if contender.peer.program == "pgbench":
            return limit.drain(dsn, contender, jobs)
        with working(environments, contender, dsn) as starts:
            _until_started(starts, contender)
            deadline = starts.first + _LONGEST
            while starts.count < jobs and time.monotonic() < deadline:
                time.sleep(_LOOK_EVERY)
            done = 0
            while done < jobs:
                done, ended = _count(connection, contender.peer.acknowledged, jobs), time.monotonic()
                if ended >= deadline:
                    break
                time.sleep(_LOOK_EVERY if done < jobs else 0)
            beside = _count(connection, shape.beside, jobs) if shape.beside and contender.peer.counts_beside else 0
            return Drained(done, ended - starts.first, beside)


@contextmanager
def working(environments: Environments, contender: Contender, dsn: str) -> Iterator[Starts]:
    """The contender's processes at work, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="procjobs-bench-") as folder:
        starts = Starts(os.path.join(folder, "starts"))
        command = environments.command(contender.peer, contender.task)
        command += ["drain", dsn, str(contender.concurrency), starts.path]
        environment = environments.environment()
        processes = [subprocess.Popen(command, env=environment) for _ in range(contender.processes)]
        try:
            yield starts
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                try:
                    process.wait(_STOP)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _until_started(starts: Starts, contender: Contender) -> None:
    deadline = time.monotonic() + _STARTUP
    while not starts.count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{contender.name}: no job started within {_STARTUP:g} s")
        time.sleep(_LOOK_EVERY)


@contextmanager
def _held(dsn: str, held: bool) -> Iterator[None]:
    """A transaction with a snapshot from now, for as long as this lasts."""
    if not held:
        yield
        return
    with psycopg.connect(dsn) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("select count(*) from pg_class")
        connection.execute("select pg_current_xact_id()")
        yield
        connection.rollback()


def _count(connection: psycopg.Connection[tuple[int]], query: str, jobs: int) -> int:
    row = connection.execute(query.encode(), {"jobs": jobs}).fetchone()
    return row[0] if row else 0


def _run(environments: Environments, contender: Contender, *arguments: str) -> str:
    command: Sequence[str] = [*environments.command(contender.peer, contender.task), *arguments]
    done = subprocess.run(command, env=environments.environment(), capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{contender.peer.name}: {arguments[0]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
