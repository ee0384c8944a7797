"""The application that chaos tests run as processes of its own: `procrastinate --app=victim.app worker`."""

from __future__ import annotations

import asyncio
import os
import time

import psycopg
from procrastinate import JobContext

import procjobs

HEARTBEAT = float(os.environ.get("VICTIM_HEARTBEAT", "0.5"))

app = procjobs.App(
    os.environ["VICTIM_DSN"],
    worker_defaults={  # type: ignore[arg-type]
        "update_heartbeat_interval": HEARTBEAT,
        "stalled_worker_timeout": 3 * HEARTBEAT,
        "kill_timeout": 0.5,
    },
)


def record(context: JobContext) -> int:
    """Write down that a run began; how many began for this job so far."""
    with psycopg.connect(os.environ["VICTIM_DSN"], autocommit=True) as connection:
        connection.execute("insert into executions (job, pid) values (%s, %s)", (context.job.id, os.getpid()))
        found = connection.execute("select count(*) from executions where job = %s", (context.job.id,)).fetchone()
        return found[0] if found else 0


def gate_is_open() -> bool:
    with psycopg.connect(os.environ["VICTIM_DSN"], autocommit=True) as connection:
        return connection.execute("select from gate").fetchone() is not None


@app.task(name="hang_once", pass_context=True)
async def hang_once(context: JobContext) -> None:
    """The first run never ends by itself; every later one ends at once."""
    if await asyncio.to_thread(record, context) == 1:
        await asyncio.Event().wait()


@app.task(name="wait_for_gate", pass_context=True)
def wait_for_gate(context: JobContext) -> None:
    """The first run ends when the gate opens, whatever it is asked; later ones at once."""
    if record(context) == 1:
        while not gate_is_open():
            time.sleep(0.02)


@app.task(name="ignore_cancellation", pass_context=True)
async def ignore_cancellation(context: JobContext) -> None:
    await asyncio.to_thread(record, context)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@app.task(name="effect")
async def effect(key: int) -> None:
    """A little work; the history says that it was done."""
    await asyncio.sleep(0.001)


@app.task(name="suicide", pass_context=True)
async def suicide(context: JobContext) -> None:
    await asyncio.to_thread(record, context)
    os.kill(os.getpid(), 9)
