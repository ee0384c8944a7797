"""Procrastinate and procjobs: the same program, another App.

python -m procjobs.bench.subjects.app KIND TASK VERB DSN ...
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Callable
from typing import Any

import procrastinate
import psycopg

import procjobs
from procjobs.bench.subjects import counter, tasks
from procjobs.migrate import migrate

__all__ = ["make_app"]

_TASKS: dict[str, Callable[..., Any]] = {
    "noop": tasks.noop,
    "thread": tasks.noop_in_a_thread,
    "process": tasks.crunch,
}
#: Otherwise those that came due since the schema was made would run beside some rounds and not beside others.
_QUIET = "select procjobs.pause_schedule(name) from procjobs.schedules"
#: COPY straight into the job table: procjobs takes jobs from there as from anywhere.
_COPY = "copy public.procrastinate_jobs (queue_name, task_name) from stdin"


def make_app(kind: str, dsn: str) -> procrastinate.App:
    """An app of the kind `stock` or `procjobs` with the tasks of the benchmark."""
    if kind == "stock":
        stock = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=20))
        for name, function in _TASKS.items():
            stock.task(name=name)(function)
        return stock
    ours = procjobs.App(dsn)
    for name, function in _TASKS.items():
        execution: str | None = "process" if name == "process" else None
        ours.task(name=name, execution=execution)(function)
    return ours


async def prepare(kind: str, dsn: str) -> None:
    """The schema, and for procjobs the tasks, without its own schedules."""
    if kind == "procjobs":
        await asyncio.to_thread(migrate, dsn)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute(_QUIET)
    app = make_app(kind, dsn)
    async with app.open_async():
        if isinstance(app, procjobs.App):
            await app.register_tasks()
        else:
            await app.schema_manager.apply_schema_async()


async def enqueue(kind: str, task: str, dsn: str, mode: str, count: int) -> float:
    """Enqueue in one of the modes; the seconds it took."""
    app = make_app(kind, dsn)
    found = app.tasks[task]
    connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)

    async def one(at: int | None) -> None:
        await (found.defer_async() if at is None else found.defer_async(at=at))

    async def many(size: int) -> None:
        await found.batch_defer_async(*[{}] * size)

    async def copy(size: int) -> None:
        async with connection.cursor() as cursor, cursor.copy(_COPY) as stream:
            for done in range(0, size, counter.BATCH):
                await stream.write(f"default\t{task}\n" * min(counter.BATCH, size - done))

    async with app.open_async(), connection:
        return await counter.timed(mode, count, one, many, copy)


async def drain(kind: str, dsn: str, concurrency: int) -> None:
    """Work until SIGTERM."""
    app = make_app(kind, dsn)
    async with app.open_async():
        gc.freeze()
        await app.run_worker_async(concurrency=concurrency)


def main(arguments: list[str]) -> None:
    kind, task, verb, dsn, *rest = arguments
    logging.basicConfig(level=logging.ERROR)
    if verb == "prepare":
        asyncio.run(prepare(kind, dsn))
    elif verb == "enqueue":
        print(asyncio.run(enqueue(kind, task, dsn, rest[0], int(rest[1]))))
    else:
        tasks.count_in(rest[1])
        asyncio.run(drain(kind, dsn, int(rest[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
