"""An app on the test's database, and workers that beat fast so that leases end within a second or two."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

import pytest

import procjobs
from tests.conftest import Sql
from tests.engine.fleet import Fleet, opened

FAST = {
    "concurrency": 10,
    "install_signal_handlers": False,
    "update_heartbeat_interval": 0.2,
    "stalled_worker_timeout": 1.0,
    "fetch_job_polling_interval": 2.0,
    "abort_job_polling_interval": 1.0,
    "shutdown_graceful_timeout": 5.0,
    "kill_timeout": 2.0,
}


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    """Claims and ends as workers report them, on a connection of the test's own."""
    return Fleet(sql)


@pytest.fixture
def rival(dsn: str) -> Iterator[Fleet]:
    """The same on another connection."""
    with opened(dsn) as other:
        yield other


@pytest.fixture
async def app(dsn: str) -> AsyncIterator[procjobs.App]:
    """An open app without tasks."""
    application = procjobs.App(dsn)
    async with application.open_async():
        yield application


Working = Callable[..., AbstractAsyncContextManager["asyncio.Task[None]"]]
Drain = Callable[..., Any]


@pytest.fixture
def working(app: procjobs.App) -> Working:
    """`async with working(concurrency=2) as worker:` runs a worker of `app` in this loop and stops it after."""

    @asynccontextmanager
    async def run(**options: Any) -> AsyncIterator[asyncio.Task[None]]:
        worker = asyncio.create_task(app.run_worker_async(**{**FAST, **options}))
        try:
            yield worker
        finally:
            if not worker.done():
                worker.cancel()
                with suppress(asyncio.CancelledError):
                    await worker

    return run


@pytest.fixture
def drain(app: procjobs.App) -> Drain:
    """`await drain()` runs a worker until nothing is left to do."""

    async def run(**options: Any) -> None:
        await asyncio.wait_for(app.run_worker_async(**{**FAST, "wait": False, **options}), 30)

    return run
