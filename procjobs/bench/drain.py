"""How fast a backlog drains: contenders, shapes of the tables, rounds."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import psycopg
from procrastinate.schema import SchemaManager
from psycopg import sql

from procjobs.migrate import migrate

__all__ = ["CONTENDERS", "SHAPES", "Contender", "Result", "Shape", "run"]


@dataclass(frozen=True)
class Contender:
    """Who drains: `kind` is stock or procjobs; `jobs` is how many, so that a round takes a few seconds."""

    name: str
    kind: str
    concurrency: int
    processes: int
    jobs: int
    in_every_shape: bool = False


@dataclass(frozen=True)
class Shape:
    """What else is in the database: statements run before the drain."""

    name: str
    fill: str = ""


@dataclass
class Result:
    contender: Contender
    shape: Shape
    rates: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Jobs a second, median over the rounds."""
        return statistics.median(self.rates)


CONTENDERS = (
    Contender("Procrastinate, 1 process, concurrency 10", "stock", 10, 1, 1500),
    Contender("procjobs, 1 process, concurrency 10", "procjobs", 10, 1, 20_000),
    Contender("procjobs, 1 process, concurrency 100", "procjobs", 100, 1, 40_000),
    Contender("procjobs, 1 process, concurrency 500", "procjobs", 500, 1, 60_000, in_every_shape=True),
    Contender("procjobs, 2 processes, concurrency 500", "procjobs", 500, 2, 80_000),
)

SHAPES = (
    Shape("empty tables"),
    Shape(
        "100,000 scheduled",
        "insert into procrastinate_jobs (queue_name, task_name, scheduled_at) "
        "select 'default', 'noop', now() + interval '1 day' from generate_series(1, 100000)",
    ),
    Shape(
        "1,000,000 finished",
        "insert into procjobs.job_history "
        "(id, queue_name, task_name, priority, args, status, attempts, crashes, lease, "
        "created_at, started_at, finished_at) select 1000000000 + n, 'default', 'noop', 0, '{}', 'succeeded', 1, 0, 1, "
        "now(), now(), now() from generate_series(1, 1000000) n",
    ),
    Shape(
        "10,000 on one lock",
        "insert into procrastinate_jobs (queue_name, task_name, lock, priority) "
        "select 'default', 'noop', 'hot', 1 from generate_series(1, 10000)",
    ),
)

_MEASURE = {
    "stock": "select count(*) filter (where type = 'succeeded'), "
    "extract(epoch from max(at) filter (where type = 'succeeded') - min(at) filter (where type = 'started')) "
    "from procrastinate_events",
    "procjobs": "select count(*), extract(epoch from max(finished_at) - min(started_at)) "
    "from procjobs.job_history where id < 1000000000 and lock is null",
}


def run(
    server_dsn: str,
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    rounds: int,
    said: Callable[[str], None],
) -> list[Result]:
    """Drain every combination `rounds` times, interleaved. server_dsn: a database whose user may create others.

    Tables that are not empty are for the contenders `in_every_shape`. Raises RuntimeError when jobs are left over.
    """
    results = [
        Result(contender, shape)
        for shape in shapes
        for contender in contenders
        if not shape.fill or contender.in_every_shape
    ]
    for number in range(1, rounds + 1):
        for result in results:
            with_database = _database(server_dsn)
            for dsn in with_database:
                rate = _drain(dsn, result.contender, result.shape)
                result.rates.append(rate)
            said(f"round {number}: {result.contender.name}, {result.shape.name}: {rate:,.0f}/s")
    return results


def _database(server_dsn: str) -> Iterator[str]:
    name = sql.Identifier("procjobs_bench")
    with psycopg.connect(server_dsn, autocommit=True) as server:
        server.execute(sql.SQL("drop database if exists {} with (force)").format(name))
        server.execute(sql.SQL("create database {}").format(name))
        yield psycopg.conninfo.make_conninfo(server_dsn, dbname="procjobs_bench")
        server.execute(sql.SQL("drop database {} with (force)").format(name))


def _drain(dsn: str, contender: Contender, shape: Shape) -> float:
    with psycopg.connect(dsn, autocommit=True) as connection:
        if contender.kind == "stock":
            connection.execute(SchemaManager.get_schema())
        else:
            migrate(dsn)
            connection.execute("select procjobs.ensure_history_partitions()")
            connection.execute("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'bench')")
        if shape.fill:
            connection.execute(shape.fill.encode())
        connection.execute(
            "insert into procrastinate_jobs (queue_name, task_name) "
            "select 'default', 'noop' from generate_series(1, %s::int)",
            (contender.jobs,),
        )
        connection.execute("vacuum analyze")
        connection.execute("checkpoint")
        _run_subjects(dsn, contender, until_idle="lock" not in shape.name, connection=connection)
        row = connection.execute(_MEASURE[contender.kind].encode()).fetchone()
    assert row is not None
    done, seconds = row
    if done < contender.jobs:
        raise RuntimeError(f"{contender.name}: {contender.jobs - done} of {contender.jobs} jobs were left over")
    return float(done) / float(seconds)


def _run_subjects(
    dsn: str, contender: Contender, *, until_idle: bool, connection: psycopg.Connection[tuple[int]]
) -> None:
    command = [sys.executable, "-m", "procjobs.bench.subject", contender.kind, dsn, str(contender.concurrency)]
    subjects = [subprocess.Popen(command) for _ in range(contender.processes)]
    if not until_idle:
        # The one hot lock goes on at the speed of its round trips; the others are what is measured.
        # Looked for seldom: on two processors a busy loop here would slow what is measured by a third.
        left = True
        while left:
            time.sleep(0.2)
            row = connection.execute(
                "select exists (select from procrastinate_jobs where lock is null and status in ('todo', 'doing'))"
            ).fetchone()
            left = bool(row and row[0])
        for subject in subjects:
            subject.terminate()
    for subject in subjects:
        code = subject.wait()
        if code and until_idle:
            raise RuntimeError(f"{contender.name}: a worker ended with exit code {code}")
