"""awa, whose worker is written in Rust and whose handlers are Python's."""

# mypy: ignore-errors

from __future__ import annotations

from dataclasses import dataclass

import awa
import counter


@dataclass
class Noop:
    at: int = 0


async def prepare(dsn):
    client = awa.AsyncClient(dsn, 4)
    await client.migrate()
    await client.install_queue_storage(schema="awa")


async def enqueue(dsn, mode, count):
    client = awa.AsyncClient(dsn, 4)

    async def one(at):
        await client.insert(Noop(at or 0), queue="default")

    async def many(size):
        async with await client.transaction() as transaction:
            await transaction.insert_many([Noop() for _ in range(size)], queue="default")

    async def copy(size):
        for done in range(0, size, 10_000):
            await client.enqueue_many_copy([Noop() for _ in range(min(10_000, size - done))], queue="default")

    return await counter.timed(mode, count, one, many, copy)


async def drain(dsn, concurrency, counted):
    client = awa.AsyncClient(dsn, 20)

    @client.task(Noop, queue="default")
    async def noop(job):
        counted.start(job.args.at)

    stop = counter.stopped()
    await client.start([("default", concurrency)], queue_storage_schema="awa")
    await stop.wait()
    await client.shutdown()


counter.main(prepare, enqueue, drain)
