"""One scenario's database, workers, client and ledger, and the check at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.chaos.harness.client import Client
from tests.chaos.harness.fleet import Fleet
from tests.chaos.harness.ground import lay
from tests.chaos.harness.invariants import Violation, drained, violations
from tests.chaos.harness.ledger import Ledger
from tests.conftest import Sql

__all__ = ["GENEROUS", "Site", "until"]

#: Seconds: whoever is not there by then will not come.
GENEROUS = 60.0


def until(condition: Callable[[], Any], timeout: float = GENEROUS, *, what: Callable[[], Any] | None = None) -> Any:
    """Wait until the condition holds, through outages of the database; its value. After `timeout` the test fails."""
    deadline = time.monotonic() + timeout
    value: Any = None
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            value = condition()
            if value:
                return value
        if time.monotonic() > deadline:
            more = f"; {what()}" if what is not None else ""
            pytest.fail(f"not within {timeout:g} s; last: {value!r}{more}")
        time.sleep(0.02)


class LastingSql(Sql):
    """Queries over a connection that is opened again after the database was away."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self._dsn = dsn

    def __call__(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        if self.connection.closed or self.connection.broken:
            self.connection.close()
            self.connection = psycopg.connect(self._dsn, autocommit=True, connect_timeout=5)
        return super().__call__(query, *params)


class Site:
    """dsn: the database itself; via: what workers and client connect to instead (a proxy's)."""

    def __init__(self, dsn: str, folder: Path, *, via: str | None = None) -> None:
        lay(dsn)
        self.dsn = dsn
        self.sql = LastingSql(dsn)
        self.ledger = Ledger(folder / "ledger.jsonl")
        self.client = Client(dsn, self.ledger)
        self.fleet = Fleet(via or dsn, folder, direct=dsn)

    def client_on(self, dsn: str, name: str) -> Client:
        """Another client with the same ledger."""
        return Client(dsn, self.ledger, name=name)

    def working(self, count: int = 1) -> Any:
        """Wait until so many workers are registered and alive."""
        return until(
            lambda: self.sql.one("select count(*) from procjobs.worker_state where dead_at is null") >= count,
            what=self.logs,
        )

    def running(self, count: int = 1) -> Any:
        """Wait until so many runs have begun."""
        return until(lambda: self.sql.one("select count(*) from chaos.executions") >= count, what=self.logs)

    def ended(self, jobs: list[int] | None = None, *, count: int | None = None) -> None:
        """Wait until these jobs are in the history, or so many of all."""
        if jobs is not None:
            query, of = "select count(*) from procjobs.job_history where id = any(%s)", [jobs]
        else:
            query, of = "select count(*) from procjobs.job_history", []
        wanted = count if count is not None else len(jobs or ())
        until(lambda: self.sql.one(query, *of) >= wanted, what=self.left)

    def begun(self, more: int) -> None:
        """Wait until so many runs more than now have begun."""
        query = "select count(*) from chaos.executions"
        before = self.sql.one(query)
        until(lambda: self.sql.one(query) >= before + more or drained(self.sql), what=self.left)

    def status(self, job: int) -> str:
        found: str = self.sql.one("select status::text from procjobs.jobs where id = %s", job)
        return found

    def replace(self, function: str, old: str, new: str) -> None:
        """Replace a text in the body of a function of procjobs; it must be there."""
        body = self.sql.one("select pg_get_functiondef(to_regproc(%s)::oid)", f"procjobs.{function}")
        assert old in body, f"{function} has no {old!r} any more: bring the mutation up to date"
        self.sql(body.replace(old, new))

    def open_gate(self) -> None:
        self.sql("insert into chaos.gate values ('gate') on conflict do nothing")

    def drained(self, timeout: float = GENEROUS) -> None:
        """Wait until nothing waits and nothing runs."""
        until(lambda: drained(self.sql) or self.fleet.wrong_exits(), timeout, what=self.left)
        assert not self.fleet.wrong_exits(), self.logs()

    def left(self) -> str:
        rows = self.sql(
            "select id, status::text, task_name, pj_waits_for, scheduled_at, worker_id, pj_crashes "
            "from procrastinate_jobs where status in ('todo', 'doing') order by id limit 10"
        )
        return f"left: {rows}\n{self.logs()}"

    def logs(self) -> str:
        return "\n".join(f"--- {name}\n{text[-2500:]}" for name, text in self.fleet.logs())

    def violations(self, *, lenient: bool = False) -> list[Violation]:
        return violations(self.sql, self.ledger.read(), self.fleet, lenient=lenient)

    def broken(self) -> set[str]:
        """The invariants that do not hold."""
        return {violation.invariant for violation in self.violations()}

    def says(self) -> str:
        return "\n".join(map(str, self.violations())) or "nothing is wrong"

    def waiting(self, seconds: float = 0.0) -> bool:
        """Whether somebody waits for a lock, and has for so long."""
        query = (
            "select exists (select from pg_locks l join pg_stat_activity a using (pid) where not l.granted "
            "and a.datname = current_database() and l.waitstart <= clock_timestamp() - make_interval(secs => %s))"
        )
        return bool(self.sql.one(query, seconds))

    def silent(self) -> bool:
        """Whether a worker did not beat for longer than its lease."""
        query = "select exists (select from procjobs.worker_state where last_heartbeat < clock_timestamp() - lease)"
        return bool(self.sql.one(query))

    def check(self) -> None:
        """Fail with everything that is wrong."""
        found = self.violations()
        assert not found, "\n".join(map(str, found)) + "\n" + self.logs()

    def check_all_succeeded(self) -> None:
        """The usual end: everything ran, nothing else happened."""
        self.drained()
        self.check()
        ended = self.sql("select status::text, count(*) from procjobs.jobs group by 1")
        assert [status for status, _ in ended] == ["succeeded"], ended

    def close(self) -> None:
        self.fleet.stop()
        self.client.close()
        self.ledger.close()
        self.sql.connection.close()
