"""PgQueuer, with batches of 500 and durable tables."""

# mypy: ignore-errors

from __future__ import annotations

import asyncio

import counter
import psycopg
from pgqueuer import PgQueuer
from pgqueuer.db import PsycopgDriver
from pgqueuer.queries import Queries


async def _connect(dsn):
    return PsycopgDriver(await psycopg.AsyncConnection.connect(dsn, autocommit=True))


async def prepare(dsn):
    async with await _connect(dsn) as driver:
        await Queries(driver).install()


async def enqueue(dsn, mode, count):
    async with await _connect(dsn) as driver:
        queries = Queries(driver)

        async def one(at):
            await queries.enqueue("noop", None if at is None else str(at).encode())

        async def many(size):
            await queries.enqueue(["noop"] * size, [None] * size, [0] * size)

        return await counter.timed(mode, count, one, many)


async def drain(dsn, concurrency, counted):
    queuer = PgQueuer(await _connect(dsn))

    @queuer.entrypoint("noop")
    async def noop(job):
        counted.start(int(job.payload) if job.payload else None)

    stop = counter.stopped()
    running = asyncio.create_task(queuer.run(batch_size=concurrency))
    await stop.wait()
    queuer.shutdown.set()
    await asyncio.wait([running], timeout=5)


counter.main(prepare, enqueue, drain)
