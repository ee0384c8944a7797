"""Oban for Python."""

# mypy: ignore-errors

from __future__ import annotations

import counter
from oban import Oban, worker
from oban.schema import install
from psycopg_pool import AsyncConnectionPool

_counted = None


@worker(queue="default")
class Noop:
    async def process(self, job):
        _counted.start(job.args.get("at"))


def _pool(dsn):
    return AsyncConnectionPool(dsn, min_size=2, max_size=10, kwargs={"autocommit": True}, open=False)


async def prepare(dsn):
    async with _pool(dsn) as pool:
        await install(pool)


async def enqueue(dsn, mode, count):
    async with _pool(dsn) as pool:
        oban = Oban(pool=pool)

        async def one(at):
            await oban.enqueue(Noop.new({} if at is None else {"at": at}))

        async def many(size):
            await oban.enqueue_many(Noop.new({}) for _ in range(size))

        return await counter.timed(mode, count, one, many)


async def drain(dsn, concurrency, counted):
    global _counted
    _counted = counted
    async with _pool(dsn) as pool:
        stop = counter.stopped()
        async with Oban(pool=pool, queues={"default": concurrency}, shutdown_grace_period=3.0):
            await stop.wait()


counter.main(prepare, enqueue, drain)
