"""The application that the chaos tests run: `procjobs worker --app tests.chaos.victim.app`.

Tasks write what they did to the schema chaos over connections of their own (CHAOS_DSN), past any proxy, and try again
until the database took it: an outage must not look like a failure of the task.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import psycopg
from procrastinate import JobContext
from procrastinate.exceptions import JobAborted

import procjobs

app = procjobs.App()

_idle: list[psycopg.Connection[Any]] = []


def write(query: bytes, *parameters: Any) -> Any:
    """Run one statement, however often it takes; the first column of its row."""
    while True:
        try:
            connection = _idle.pop()
        except IndexError:
            connection = None
        try:
            if connection is None:
                connection = psycopg.connect(os.environ["CHAOS_DSN"], autocommit=True)
            found = connection.execute(query, parameters).fetchone()
        except psycopg.OperationalError as error:
            if connection is not None:
                connection.close()
            if error.sqlstate is not None and not error.sqlstate.startswith(("08", "25006", "53", "57P")):
                raise
            time.sleep(0.05)
            continue
        _idle.append(connection)
        return found[0] if found else None


def begin(task: str, key: str | None, job: int | None = None, worker: int | None = None) -> int:
    query = b"select chaos.begin_run(%s, %s, %s, %s, %s, %s)"
    pid = os.getpid() if job is not None else os.getppid()
    run: int = write(query, job, worker, pid, task, key, uuid.uuid4())
    return run


def began(context: JobContext, key: str | None = None) -> int:
    """Write down that a run of this job begins; its number."""
    return begin(context.job.task_name, key, context.job.id, context.job.worker_id)


async def entered(context: JobContext, key: str | None = None) -> int:
    """The same from the loop: whoever is cancelled meanwhile has begun, and ends when that is written."""
    writing = asyncio.ensure_future(asyncio.to_thread(began, context, key))
    try:
        return await asyncio.shield(writing)
    except asyncio.CancelledError:
        await asyncio.to_thread(ended, await writing)
        raise


def runs(context: JobContext) -> int:
    """How many runs of this job began so far, this one included."""
    count: int = write(b"select count(*) from chaos.executions where job = %s", context.job.id)
    return count


def effect_of(run: int) -> None:
    write(b"select chaos.do_effect(%s)", run)


def ended(run: int) -> None:
    """The run is over now; writing that down may take until the database is back."""
    write(b"select chaos.end_run(%s, %s)", run, datetime.now(UTC))


def gate_is_open(name: str) -> bool:
    return bool(write(b"select exists (select from chaos.gate where name = %s)", name))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="limited", pass_context=True)
@app.task(name="paced", pass_context=True)
@app.task(name="batch_over", pass_context=True)
@app.task(name="work", pass_context=True)
async def work(context: JobContext, key: str, secret: str = "", seconds: float = 0.0) -> None:
    """On the loop: its effect once. By other names: under a limit, under a rate, as the callback of a batch."""
    run = await entered(context, key)
    try:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(effect_of, run)
    finally:
        await asyncio.shield(asyncio.to_thread(ended, run))


@app.task(name="work_thread", pass_context=True)
def work_thread(context: JobContext, key: str, secret: str = "", seconds: float = 0.0) -> None:
    """In a thread; looks now and then whether it should stop."""
    run = began(context, key)
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not context.should_abort():
            time.sleep(0.02)
        if context.should_abort():
            raise JobAborted
        effect_of(run)
    finally:
        ended(run)


@app.task(name="work_process", execution="process")
def work_process(key: str, secret: str = "", seconds: float = 0.0) -> None:
    """In a process of its own, which knows its job by its key only."""
    run = begin("work_process", key)
    time.sleep(seconds)
    effect_of(run)
    ended(run)


@app.task(name="flaky", pass_context=True, retry=procjobs.Retry(max_attempts=5, base=0, cap=0))
async def flaky(context: JobContext, key: str, secret: str = "", failures: int = 1) -> None:
    """Fails that often, then has its effect."""
    run = await entered(context, key)
    try:
        if context.job.attempts < failures:
            raise RuntimeError("not yet")
        await asyncio.to_thread(effect_of, run)
    finally:
        await asyncio.shield(asyncio.to_thread(ended, run))


@app.task(name="effect")
async def effect(key: str, secret: str = "") -> None:
    """Next to nothing."""
    await asyncio.sleep(0)


@app.task(name="tell_slot")
async def tell_slot(schedule: str, slot: str) -> None:
    """What schedules enqueue: its arguments say of which slot it is the job."""


@app.task(name="die_after_effect", pass_context=True)
async def die_after_effect(context: JobContext, key: str, secret: str = "") -> None:
    """The first run kills its worker when the effect is done; later ones do it again."""
    run = await entered(context, key)
    await asyncio.to_thread(effect_of, run)
    if await asyncio.to_thread(runs, context) == 1:
        die()
    await asyncio.to_thread(ended, run)


@app.task(name="suicide", pass_context=True)
async def suicide(context: JobContext, key: str, secret: str = "") -> None:
    await entered(context, key)
    die()


@app.task(name="exit_aside", pass_context=True)
async def exit_aside(context: JobContext, key: str, secret: str = "") -> None:
    """The first run calls sys.exit, in a task of its own, as a library may."""
    run = await entered(context, key)
    try:
        if await asyncio.to_thread(runs, context) == 1:
            await asyncio.create_task(leave())
        await asyncio.to_thread(effect_of, run)
    finally:
        await asyncio.shield(asyncio.to_thread(ended, run))


async def leave() -> None:
    sys.exit(0)


@app.task(name="hang_once", pass_context=True)
async def hang_once(context: JobContext, key: str, secret: str = "") -> None:
    """The first run never ends by itself; every later one ends at once."""
    run = await entered(context, key)
    try:
        if await asyncio.to_thread(runs, context) == 1:
            await asyncio.Event().wait()
        await asyncio.to_thread(effect_of, run)
    finally:
        await asyncio.shield(asyncio.to_thread(ended, run))


@app.task(name="wait_for_gate", pass_context=True)
def wait_for_gate(context: JobContext, key: str, secret: str = "") -> None:
    """A thread. The first run ends when the gate opens, whatever it is asked; later ones at once."""
    run = began(context, key)
    while runs(context) == 1 and not gate_is_open("gate"):
        time.sleep(0.02)
    effect_of(run)
    ended(run)


@app.task(name="endure", pass_context=True)
async def endure(context: JobContext, key: str, secret: str = "") -> None:
    """On the loop; every run ends when the gate opens or it is cancelled."""
    run = await entered(context, key)
    try:
        while not await asyncio.to_thread(gate_is_open, "gate"):  # noqa: ASYNC110  the gate is a row
            await asyncio.sleep(0.02)
        await asyncio.to_thread(effect_of, run)
    finally:
        await asyncio.shield(asyncio.to_thread(ended, run))


@app.task(name="ignore_cancellation", pass_context=True)
async def ignore_cancellation(context: JobContext, key: str, secret: str = "") -> None:
    await entered(context, key)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            continue


@app.task(name="borrow_a_thread", pass_context=True)
async def borrow_a_thread(context: JobContext, key: str, secret: str = "") -> None:
    """On the loop, but what it waits for is a thread of asyncio's that never ends by itself."""
    await entered(context, key)
    await asyncio.to_thread(threading.Event().wait)


@app.task(name="block", pass_context=True)
async def block(context: JobContext, key: str, secret: str = "", seconds: float = 3.0) -> None:
    """Holds the event loop, as CPU-bound code does."""
    run = began(context, key)
    time.sleep(seconds)  # noqa: ASYNC251
    effect_of(run)
    ended(run)
