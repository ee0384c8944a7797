"""A worker's or scheduler's presence in the database: registered, kept alive by its heartbeat, fenced, signed off."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString

from procjobs.db import Link, Target
from procjobs.engine.heartbeat import Heartbeat
from procjobs.errors import DatabaseError

__all__ = ["Card", "Presence"]

logger = logging.getLogger("procjobs.worker")


@dataclass(frozen=True, slots=True)
class Card:
    """What a worker says about itself. Times in seconds; queues None means all."""

    name: str
    queues: list[str] | None
    tasks: list[str]
    concurrency: int
    heartbeat_every: float
    lease: float
    keeps_time_only: bool = False


class Presence:
    """One worker as others see it.

    link:      the connection to register over.
    on_abort:  called in the loop with the ids of running jobs that somebody asked to cancel.
    on_dead:   called in the loop when the database says that this worker was declared dead.
    on_silent: called in the loop, again and again, while no heartbeat was accepted for a whole lease.
    """

    def __init__(
        self,
        target: Target,
        link: Link,
        *,
        on_abort: Callable[[Iterable[int]], None],
        on_dead: Callable[[], None],
        on_silent: Callable[[float], None],
    ) -> None:
        self._target = target
        self._link = link
        self._on_abort = on_abort
        self._on_dead = on_dead
        self._on_silent = on_silent
        self._heartbeat: Heartbeat | None = None
        self._card: Card | None = None
        self.worker_id: int | None = None

    async def register(self, card: Card) -> int:
        """Become known, as a new worker, and start its heartbeat; returns the worker's id."""
        ((worker_id,),) = await self._link.fetch(*_registration(card))
        self.forget()
        found: int = worker_id
        self.worker_id = found
        self._card = card
        self._heartbeat = Heartbeat(
            self._target,
            found,
            card.heartbeat_every,
            on_abort=_in_loop(self._of(found, self._on_abort)),
            on_dead=_in_loop(self._of(found, self._on_dead)),
        )
        self._heartbeat.start()
        return found

    def _of(self, worker_id: int, function: Callable[..., None]) -> Callable[..., None]:
        """The function, as long as this is still the worker: an old heartbeat may hear late of its own death."""

        def call(*arguments: Any) -> None:
            if self.worker_id == worker_id:
                function(*arguments)

        return call

    @property
    def silent(self) -> bool:
        """Whether no heartbeat was accepted for a whole lease: others may run our jobs at any moment."""
        return self._card is not None and self._heartbeat is not None and self._heartbeat.silence >= self._card.lease

    async def watch(self) -> None:
        """Mend a heartbeat that hangs in good time, and fence ourselves when there was none for a whole lease."""
        while True:
            card, heartbeat = self._card, self._heartbeat
            if card is None or heartbeat is None:
                return
            await asyncio.sleep(min(card.heartbeat_every, card.lease / 10))
            if heartbeat is not self._heartbeat:
                continue
            if heartbeat.waits > max(card.heartbeat_every, card.lease / 5):
                heartbeat.hasten()  # half open, perhaps: the connection takes what we say and never answers
            if self.silent:
                self._on_silent(heartbeat.silence)

    async def drain(self) -> None:
        """Say that no more jobs are claimed; the heart goes on."""
        await self._tell("select procjobs.drain_worker(%s)")

    async def leave(self) -> None:
        """Stop the heartbeat and sign off: rescue takes what is left at once."""
        if self.worker_id is None:
            return  # stopped before it was known
        if self._heartbeat is not None:
            await self._heartbeat.stopped()
        await self._tell("select procjobs.stop_worker(%s)")

    def forget(self) -> None:
        """End the heartbeat without a word to the database."""
        if self._heartbeat is not None:
            self._heartbeat.stop(0)

    async def close(self) -> None:
        """End the heartbeat without a word, and the connection it was registered over."""
        self.forget()
        await self._link.close()

    async def _tell(self, query: Any) -> None:
        """Say something to the database that it will also find out by itself."""
        link = Link(self._target, "procjobs leave", timeout=5.0)
        with suppress(DatabaseError):
            await link.fetch(query, (self.worker_id,))
        await link.close()


def _registration(card: Card) -> tuple[LiteralString, tuple[Any, ...]]:
    from procjobs import __version__

    here = (card.name, socket.gethostname(), os.getpid(), __version__)
    spans = (card.heartbeat_every, card.lease)
    if card.keeps_time_only:
        return (
            "select procjobs.register_scheduler(%s, %s, %s, %s, make_interval(secs => %s), make_interval(secs => %s))",
            (*here, *spans),
        )
    return (
        (
            "select procjobs.register_worker(%s, %s, %s, %s, %s::text[], %s::text[], %s, "
            "make_interval(secs => %s), make_interval(secs => %s), true)"
        ),
        (*here, card.queues, card.tasks, card.concurrency, *spans),
    )


def _in_loop(function: Callable[..., None]) -> Callable[..., None]:
    """The function, to be called from a thread, and run in the loop that runs now."""
    loop = asyncio.get_running_loop()

    def call(*arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop closed meanwhile
            loop.call_soon_threadsafe(function, *arguments)

    return call
