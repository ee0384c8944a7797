"""What tasks use outside the database: breakers hear how it went, and a ledger keeps effects from being repeated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from procjobs.db import Calls
from procjobs.engine.progress import REPORT
from procjobs.errors import DependencyFailed

__all__ = ["Effect", "begin_effect", "report_outcome", "through_breaker"]

Connect = Callable[[], Awaitable[Calls]]


def _running_job() -> int | None:
    """The job that this coroutine belongs to; None outside one, and in a process of its own."""
    running = REPORT.get()
    return running[1].id if isinstance(running, tuple) else None


async def report_outcome(connect: Connect, breaker: str, ok: bool, error: str | None = None) -> str | None:
    """Tell a breaker how a use of its dependency ended; its state after that, None if there is no such breaker."""
    db = await connect()
    state: str | None = await db.value("report_outcome", breaker=breaker, ok=ok, job=_running_job(), error=error)
    return state


@asynccontextmanager
async def through_breaker(connect: Connect, breaker: str) -> AsyncGenerator[None]:
    """Success of the block is success of the dependency; OSError, time-outs and DependencyFailed are its failures."""
    try:
        yield
    except (OSError, DependencyFailed) as error:  # TimeoutError is an OSError
        await report_outcome(connect, breaker, False, f"{type(error).__name__}: {error}"[:500])
        raise
    await report_outcome(connect, breaker, True)


@dataclass(slots=True)
class Effect:
    """One entry of the ledger, as `async with app.effect(key)` gives it.

    state:       "do": it is yours to do, and `done` says that you did; "done": it was done before; "unknown": it was
                 begun before and nobody knows whether it was done: ask the other side, do not do it again.
    provider_id: what the other side calls it, if it is done.
    """

    key: str
    state: Literal["do", "done", "unknown"]
    provider_id: str | None
    _calls: Calls

    async def done(self, provider_id: str | None = None) -> None:
        """It was done: nobody will do it again."""
        await self._calls.value("end_effect", key=self.key, provider_id=provider_id)
        self.state, self.provider_id = "done", provider_id

    async def void(self) -> None:
        """It surely did not happen, as when the other side refused: the next try may do it."""
        await self._calls.value("void_effect", key=self.key)


@asynccontextmanager
async def begin_effect(connect: Connect, key: str) -> AsyncGenerator[Effect]:
    """The ledger's entry for `key`, written before the block runs; left as it is when the block ends without `done`."""
    db = await connect()
    row = await db.row("begin_effect", key=key, job=_running_job())
    yield Effect(key, row["decision"], row["provider_id"], db)
