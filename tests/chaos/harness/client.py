"""A client that enqueues and writes down what it was told; it never sends anything twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psycopg

from tests.chaos.harness.ground import CANARY
from tests.chaos.harness.ledger import Ledger

__all__ = ["Client", "Load"]

_ENQUEUE = (
    "select procjobs.enqueue_jobs(%s::text[], %s::text[], %s::integer[], %s::text[], %s::text[], %s::text[], "
    "%s::timestamptz[])"
)
_ENQUEUE_KEYED = "select id, duplicate from chaos.enqueue_jobs(%s::jsonb, %s::jsonb)"


class Client:
    """Enqueues jobs with a key of their own each, over one connection that is opened again when it broke."""

    def __init__(self, dsn: str, ledger: Ledger, *, name: str = "c") -> None:
        self._dsn = dsn
        self._ledger = ledger
        self._name = name
        self._count = 0
        self._connection: psycopg.Connection[Any] | None = None

    def enqueue(self, task: str = "work", count: int = 1, **options: Any) -> list[int]:
        """`count` equal jobs in one transaction, with the ids; `args`, `lock` (may hold {n}), `priority`, `at`.

        Raises psycopg.Error; the ledger then knows whether they were refused or nobody knows.
        """
        return self.enqueue_all([{"task": task, **options}] * count)

    def enqueue_all(self, jobs: Sequence[Mapping[str, Any]]) -> list[int]:
        """Jobs of several kinds in one transaction."""
        first, self._count = self._count, self._count + len(jobs)
        keys = [f"{self._name}-{n}" for n in range(first, self._count)]
        args = [
            json.dumps({"key": key, "secret": CANARY, **job.get("args", {})})
            for key, job in zip(keys, jobs, strict=True)
        ]
        locks = [job["lock"].replace("{n}", str(n)) if job.get("lock") else None for n, job in enumerate(jobs, first)]
        parameters = (
            [job["task"] for job in jobs],
            [job.get("queue", "default") for job in jobs],
            [job.get("priority", 0) for job in jobs],
            locks,
            [job.get("queueing_lock") for job in jobs],
            args,
            [job.get("at") for job in jobs],
        )
        connection = self._open()
        self._ledger.attempted(keys)
        try:
            found = [row[0] for row in connection.execute(_ENQUEUE, parameters).fetchall()]
        except psycopg.Error as error:
            # An error that the server reported undid everything, unless the session ended with it.
            undone = error.sqlstate is not None and not error.sqlstate.startswith("57P")
            (self._ledger.refused if undone else self._ledger.unknown)(keys)
            self.close()
            raise
        self._ledger.acknowledged(keys, found)
        return found

    def enqueue_keyed(self, jobs: Sequence[Mapping[str, Any]], *, batch: bool = False) -> list[int]:
        """Jobs of which some have `unique_key` and `unique_while`, in one transaction; batch: as a sealed batch, whose
        callback is a job of the task `batch_over`."""
        first, self._count = self._count, self._count + len(jobs)
        keys = [f"{self._name}-{n}" for n in range(first, self._count)]
        over = f"{keys[0]}-over" if batch else None
        given = [
            {**job, "args": {"key": key, "secret": CANARY, **job.get("args", {})}}
            for key, job in zip(keys, jobs, strict=True)
        ]
        callback = json.dumps({"task": "batch_over", "args": {"key": over, "secret": CANARY}}) if batch else None
        promised = [over] if over else []
        connection = self._open()
        self._ledger.attempted([*keys, *promised])
        try:
            found = connection.execute(_ENQUEUE_KEYED, (json.dumps(given), callback)).fetchall()
        except psycopg.Error as error:
            undone = error.sqlstate is not None and not error.sqlstate.startswith("57P")
            (self._ledger.refused if undone else self._ledger.unknown)([*keys, *promised])
            self.close()
            raise
        self._ledger.duplicates([key for key, (_, duplicate) in zip(keys, found, strict=True) if duplicate])
        new = [(key, job) for key, (job, duplicate) in zip(keys, found, strict=True) if not duplicate]
        self._ledger.acknowledged([key for key, _ in new], [job for _, job in new])
        self._ledger.promised(promised)
        return [job for _, job in new]

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=2)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Load:
    """`with Load(client, make) as load:` enqueues what `make(n)` says without pause, in a thread, until left."""

    def __init__(
        self, client: Client, make: Callable[[int], Sequence[Mapping[str, Any]]], *, pause: float = 0.01
    ) -> None:
        self._client = client
        self._make = make
        self._pause = pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.acknowledged = 0

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _run(self) -> None:
        n = 0
        while not self._stop.wait(self._pause):
            n += 1
            jobs = self._make(n)
            if not jobs:
                continue
            try:
                self.acknowledged += len(self._enqueue(jobs))
            except psycopg.Error:
                self._stop.wait(0.05)

    def _enqueue(self, jobs: Sequence[Mapping[str, Any]]) -> list[int]:
        """A batch is a transaction whose first job says so."""
        batch = bool(jobs[0].get("batch"))
        if not batch and not any("unique_key" in job for job in jobs):
            return self._client.enqueue_all(jobs)
        plain = [{name: value for name, value in job.items() if name != "batch"} for job in jobs]
        return self._client.enqueue_keyed(plain, batch=batch)
