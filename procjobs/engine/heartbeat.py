"""The heartbeat: a thread with a connection of its own, so that no job, however it blocks, can stop it."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from procjobs.db import SyncLink, Target
from procjobs.errors import DatabaseError

__all__ = ["Heartbeat"]

logger = logging.getLogger("procjobs.worker")

_BEAT = "select alive, abort_ids from procjobs.heartbeat(%s)"


class Heartbeat:
    """Renews a worker's lease every `interval` seconds until `stop`.

    on_abort: called (in the thread) with the ids of running jobs that somebody asked to cancel.
    on_dead:  called once when the database says that this worker was declared dead.
    """

    def __init__(
        self,
        target: Target,
        worker_id: int,
        interval: float,
        *,
        on_abort: Callable[[Sequence[int]], None],
        on_dead: Callable[[], None],
    ) -> None:
        self._link = SyncLink(target, "procjobs heartbeat", patience=interval)
        self._worker_id = worker_id
        self._interval = interval
        self._on_abort = on_abort
        self._on_dead = on_dead
        self._stopping = threading.Event()
        self._last_success = time.monotonic()
        self._asked_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"procjobs heartbeat {worker_id}", daemon=True)

    @property
    def silence(self) -> float:
        """Seconds since the last heartbeat that the database accepted."""
        return time.monotonic() - self._last_success

    @property
    def waits(self) -> float:
        """Seconds for which a beat has been waiting for its answer; 0 between two."""
        asked = self._asked_at
        return 0.0 if asked is None else time.monotonic() - asked

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread and wait for it; safe to call twice."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    async def stopped(self, timeout: float = 5.0) -> None:
        """The same for a loop: not by a thread of asyncio's, all of which jobs may hold."""
        self._stopping.set()
        over = time.monotonic() + timeout
        while self._thread.is_alive() and time.monotonic() < over:  # noqa: ASYNC110  a thread ends without a word
            await asyncio.sleep(0.01)

    def hasten(self) -> None:
        """Give up a beat whose answer does not come, so that the next one goes over another connection."""
        self._link.cut()

    def _run(self) -> None:
        wait = self._interval
        while not self._stopping.wait(wait):
            wait = self._interval * random.uniform(0.8, 1.0)
            began = self._asked_at = time.monotonic()
            try:
                ((alive, abort_ids),) = self._link.fetch(_BEAT, (self._worker_id,))
            except Exception as error:
                # Sooner than the next beat is due: the lease runs. Whatever it was, a worker whose heart stands still
                # would never claim again.
                wait = min(self._interval, 1.0) * random.uniform(0.3, 1.0)
                logger.warning(
                    "heartbeat failed: %s",
                    error,
                    exc_info=None if isinstance(error, DatabaseError) else error,
                    extra={"action": "heartbeat_failed"},
                )
                continue
            finally:
                self._asked_at = None
            if not alive:
                self._on_dead()
                break
            # The lease counts from when the beat was sent, not from when the answer came.
            self._last_success = began
            if abort_ids:
                self._on_abort(abort_ids)
        self._link.close()
