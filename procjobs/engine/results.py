"""What tasks return: as JSON on its way to the database, and waited for by whoever enqueued the job.

A waiter says so in the job's row, so that the job's end is announced by NOTIFY; nobody else pays. The announcement is a
hint: a waiter also asks now and then, and so survives a lost connection.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from procjobs.db import Database, Link, Target
from procjobs.engine.backoff import Backoff
from procjobs.errors import DatabaseError, DatabaseUnavailable, JobCancelled, JobFailed, JobNotOver

__all__ = ["LARGEST_RESULT", "Json", "Outcome", "Results", "Unkept", "encode_result"]

#: Bytes of JSON; what is larger belongs into a table or file of the application's.
LARGEST_RESULT = 1024 * 1024
#: Seconds between two looks while the end would be announced, and while it would not.
_POLL, _POLL_DEAF = 5.0, 0.5
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


@dataclass(frozen=True, slots=True)
class Unkept:
    """A result that was not JSON where the task ran; `type` is its Python type."""

    type: str


@dataclass(frozen=True, slots=True)
class Json:
    """A result that is JSON already, as the server wrote it."""

    text: str


def encode_result(value: Any, dumps: Callable[[Any], str]) -> tuple[str | None, str | None]:
    """The result as JSON text, or None and a note that says why it is not kept. The job has succeeded in any case."""
    kind = value.type if isinstance(value, Unkept) else "row" if isinstance(value, Json) else type(value).__name__
    unkept = f"its result (a {kind}) was not kept: "
    if isinstance(value, Unkept):
        return None, unkept + "it is not JSON"
    try:
        text = value.text if isinstance(value, Json) else dumps(value)
        size = len(text) if text.isascii() else len(text.encode())
    except (TypeError, ValueError, RecursionError):
        return None, unkept + "it is not JSON"
    if size > LARGEST_RESULT:
        return None, unkept + f"it has {size} bytes as JSON, at most {LARGEST_RESULT} are kept"
    if "\\u0000" in text and _NUL.search(text):
        return None, unkept + "it holds a NUL character, which PostgreSQL cannot store"
    return text, None


def strict_dumps(value: Any) -> str:
    """JSON as PostgreSQL reads it: no NaN, no Infinity, no lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    status:        succeeded, failed (a dead letter), cancelled (before it ran) or aborted (while it ran).
    result:        what the task returned; None also when there was nothing, or it could not be kept (`note` says so).
    error_class,
    error_message: of the last run, when it failed.
    note:          why it was cancelled, or what else there is to say.
    """

    job_id: int
    status: str
    result: Any = None
    error_class: str | None = None
    error_message: str | None = None
    note: str | None = None

    def value(self) -> Any:
        """The result. Raises JobFailed or JobCancelled when the job did not succeed."""
        if self.status == "succeeded":
            return self.result
        if self.status == "failed":
            raise JobFailed(self.job_id, self.error_class, self.error_message)
        raise JobCancelled(self.job_id, self.note)


class Results:
    """Those who wait for jobs in one process: one connection listens for all of them.

    database: gives the pool for questions.
    target:   where to LISTEN.
    """

    def __init__(self, database: Callable[[], Awaitable[Database]], target: Callable[[], Target]) -> None:
        self._database = database
        self._target = target
        self._waiting: dict[int, set[asyncio.Event]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._hears = False

    async def wait_for(self, job_id: int, timeout: float | None) -> Outcome:
        """Wait until the job has ended. Raises JobNotOver after `timeout` seconds, JobNotFound."""
        event = asyncio.Event()
        self._waiting.setdefault(job_id, set()).add(event)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    self._listen_once()
                    event.clear()
                    if (outcome := await self._ask(job_id)) is not None:
                        return outcome
                    with suppress(TimeoutError):
                        async with asyncio.timeout((_POLL if self._hears else _POLL_DEAF) * random.uniform(0.8, 1.0)):
                            await event.wait()
        except TimeoutError as error:
            raise JobNotOver(job_id, timeout or 0.0) from error
        finally:
            waiting = self._waiting[job_id]
            waiting.discard(event)
            if not waiting:
                del self._waiting[job_id]

    async def close(self) -> None:
        """Stop listening; who still waits goes on by asking, and listens again."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.cancel()
            with suppress(asyncio.CancelledError):
                await listener

    async def _ask(self, job_id: int) -> Outcome | None:
        """How the job ended; None while it has not, or nobody answers."""
        try:
            database = await self._database()
            row = await database.row("await_job", job_id=job_id)
        except DatabaseUnavailable:
            return None
        return Outcome(job_id, **row) if row.pop("ended") else None

    def _listen_once(self) -> None:
        if self._listener is None or self._listener.done():
            self._listener = asyncio.create_task(self._listen(), name="procjobs results")

    async def _listen(self) -> None:
        link = Link(self._target(), "procjobs results")
        backoff = Backoff()
        try:
            while True:
                try:
                    async for payload, _ in link.listen(["procjobs_ended"]):
                        backoff.reset()
                        self._hears = True
                        self._wake(payload)
                except DatabaseError:
                    self._hears = False
                    await backoff.wait()
        finally:
            self._hears = False
            await link.close()

    def _wake(self, payload: str) -> None:
        """payload: the id of a job; empty when listening began, and any may have ended before."""
        if payload.isdecimal():
            events = self._waiting.get(int(payload), set())
        else:
            events = {event for waiting in self._waiting.values() for event in waiting}
        for event in events:
            event.set()
