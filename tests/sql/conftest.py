"""Tasks, workers and refusals, all through the SQL API."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import psycopg
import pytest
from psycopg.errors import Diagnostic


class Sql(Protocol):
    """The fixture `sql` of tests/conftest.py."""

    connection: psycopg.Connection[Any]

    def __call__(self, query: str, *params: Any) -> list[tuple[Any, ...]]: ...

    def one(self, query: str, *params: Any) -> Any: ...


SEND = {
    "type": "object",
    "properties": {"to": {"type": "string"}, "copies": {"type": "integer", "default": 1}},
    "required": ["to"],
    "additionalProperties": False,
}


@pytest.fixture
def register(sql: Sql) -> Callable[..., int]:
    """`register("send", SEND, queue="mail")` registers a task; returns how many rows were written."""

    def run(name: str, schema: dict[str, Any] | None = None, **policy: Any) -> int:
        task = {"name": name, "args_schema": schema, **policy}
        return int(sql.one("select procjobs.register_tasks(%s, 'test')", json.dumps([task])))

    return run


@dataclass(frozen=True)
class Worker:
    """A worker that claims and reports as told, without a process."""

    sql: Sql
    id: int
    leases: dict[int, int] = field(default_factory=dict)

    def claim(self, most: int = 100, queues: list[str] | None = None) -> list[int]:
        """Claims; the ids in the order in which they are to run."""
        rows = self.sql("select id, lease from procjobs.claim_jobs(%s, %s, %s)", self.id, queues, most)
        self.leases.update(rows)
        return [job for job, _ in rows]

    def finish(self, job: int) -> bool:
        query = "select * from procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s]::int[])"
        return self.sql(query, self.id, job, self.leases[job]) == [(job,)]

    def fail(self, job: int, error: str = "boom", **more: Any) -> str:
        result = {
            "id": job, "lease": self.leases[job], "outcome": "failed",
            "error_class": "ValueError", "error_message": error, "traceback": "line 1", **more,
        }  # fmt: skip
        return str(self.sql("select result from procjobs.settle_jobs(%s, %s)", self.id, json.dumps([result]))[0][0])


@pytest.fixture
def empty_log(sql: Sql) -> None:
    """What comes with procjobs is in the log of settings, too; it is left out."""
    sql("alter table procjobs.setting_changes disable trigger user")
    sql("delete from procjobs.setting_changes")
    sql("alter table procjobs.setting_changes enable trigger user")


@pytest.fixture
def worker(sql: Sql) -> Callable[..., Worker]:
    """`worker("send", "noop")` registers a worker that knows these tasks."""

    def run(*tasks: str, name: str = "ann", queues: list[str] | None = None, concurrency: int = 10) -> Worker:
        query = "select procjobs.register_worker(%s, 'host', 7, '1', %s, %s, %s, '10 s', '30 s')"
        return Worker(sql, sql.one(query, name, queues, list(tasks), concurrency))

    return run


@pytest.fixture
def refused(sql: Sql) -> Callable[..., Diagnostic]:
    """`refused("PJ002", "select ...")` runs what must be refused with this SQLSTATE, MESSAGE, DETAIL and HINT."""

    def run(code: str, query: str, *params: Any) -> Diagnostic:
        with pytest.raises(psycopg.Error) as found:
            sql(query, *params)
        diag = found.value.diag
        assert diag.sqlstate == code, str(found.value)
        if code.startswith("PJ"):
            assert diag.message_primary and diag.message_detail and diag.message_hint
        return diag

    return run


@pytest.fixture
def now(sql: Sql) -> Callable[[str], None]:
    """`now("2030-01-01 12:00Z")` sets the clock that this connection goes by."""

    def set_clock(at: str) -> None:
        sql("select set_config('procjobs.now', %s, false)", at)

    return set_clock


@pytest.fixture
def another(dsn: str) -> Iterator[Callable[[], psycopg.Connection[Any]]]:
    """`another()` is a further connection, not in autocommit: somebody else's transaction."""
    made: list[psycopg.Connection[Any]] = []

    def connect() -> psycopg.Connection[Any]:
        made.append(psycopg.connect(dsn))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()
