"""A million old rows: nobody waits, a run that is killed is gone on with, and the space is used again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Thread, opened

pytestmark = pytest.mark.slow

OLD, YOUNG = 1_000_000, 20_000


def fill(sql: Sql, first: int = 1) -> None:
    """A million rows of the last years, and twenty thousand of this month, on the same pages."""
    sql(
        "insert into notes select n, now() - make_interval(secs => n * 30 + 3000000), md5(n::text) "
        "from generate_series(%s, %s) n",
        first, first + OLD - 1,
    )  # fmt: skip


class Probe(threading.Thread):
    """Somebody who works on a table: locks due rows and changes young ones, and notes how long that took."""

    def __init__(self, dsn: str, table: str) -> None:
        super().__init__(daemon=True)
        self._table = table
        self.waits: list[float] = []
        self.done = threading.Event()
        self._dsn = dsn
        self.start()

    def run(self) -> None:
        with psycopg.connect(self._dsn, autocommit=True) as connection:
            number = 0
            while not self.done.is_set():
                number += 1
                begun = time.perf_counter()
                # The oldest row that is still there is the one whose turn is next, or is just being deleted.
                connection.execute(
                    f"select from {self._table} where at < now() - interval '30 days' order by at limit 1 for update"
                )
                connection.execute(f"update {self._table} set words = words where id = %s", [-1 - number % YOUNG])
                self.waits.append(time.perf_counter() - begun)


def test_a_million_rows_go_while_others_work(dsn: str, sql: Sql, eventually: Callable[..., Any]) -> None:
    sql("create table public.notes (id bigint primary key, at timestamptz, words text)")
    sql("create index on notes (at)")
    fill(sql)
    sql(
        "insert into notes select -n, now() - make_interval(secs => n), md5(n::text) from generate_series(1, %s) n",
        YOUNG,
    )
    sql("vacuum analyze notes")
    sql("select procjobs.set_table_policy('old_notes', 'notes', 'at', '30 days')")
    full = sql.one("select pg_table_size('notes')")

    sql("create table public.others (like notes including all)")
    sql("insert into others select * from notes order by at limit 1000")
    probe, control = Probe(dsn, "notes"), Probe(dsn, "others")
    try:
        with opened(dsn) as other:
            pid = other.sql.one("select pg_backend_pid()")
            running = Thread(lambda: other.sql("call procjobs.work_retention('old_notes')"))
            eventually(
                lambda: sql("select id from procjobs.table_retention_runs where rows > %s", OLD / 10), timeout=120
            )
            sql("select pg_terminate_backend(%s)", pid)
            with pytest.raises(psycopg.OperationalError):
                running.result(timeout=60)
        left = sql.one("select count(*) from notes")
        assert YOUNG < left < OLD
        ((rows,),) = sql("call procjobs.work_retention('old_notes')")
        assert rows == left - YOUNG or rows == left - YOUNG - 1  # the one that the probe held last
    finally:
        for thread in (probe, control):
            thread.done.set()
            thread.join()
    sql("call procjobs.work_retention('old_notes')")
    assert sql.one("select count(*) from notes") == YOUNG

    slowest = max(took.total_seconds() for (took,) in sql("select slowest from procjobs.table_retention_runs"))
    assert len(probe.waits) > 100
    busy = max(control.waits)  # how long whoever works on another table waits for this machine
    assert max(probe.waits) < 0.1 + busy, f"somebody waited, the longest batch took {slowest:.3f} s"
    # Its own time counts its waits for a processor too, which it shares with other tests; nobody waited so long for it.
    print(f"slowest batch {slowest:.3f} s, others waited {max(probe.waits):.3f} s, busy {busy:.3f} s")
    assert slowest < 0.3 + busy
    print(f"longest wait {max(probe.waits):.3f} s, on another table {busy:.3f} s, longest batch {slowest:.3f} s")

    for again in (1, 2):
        sql("vacuum notes")
        fill(sql, again * OLD + 1)
        assert sql.one("select pg_table_size('notes')") <= full * 1.02, "the space of what went was not used again"
        sql("call procjobs.work_retention('old_notes')")
