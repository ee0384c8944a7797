"""100,000 schedules, 10,000 of them due at once: by index, in batches, side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from .conftest import Sql

MANY, DUE = 100_000, 10_000


@pytest.fixture
def many(sql: Sql, register: Callable[..., int]) -> None:
    """Schedules of tenants, a tenth of them due in a minute."""
    register("plain", {"type": "object", "properties": {}, "additionalProperties": False})
    sql("set procjobs.now = '2026-06-01 12:00:30Z'")
    sql("select procjobs.schedule('one', 'plain', '0 0 1 1 *')")
    sql("alter table procjobs.schedules disable trigger pj_note_new")  # a line of the log for each takes seconds
    sql(
        """
        insert into procjobs.schedules
        select made.*
        from procjobs.schedules s, generate_series(1, %s) n, jsonb_populate_record(s, jsonb_build_object(
          'name', 's' || n, 'cron', case when n <= %s then '1 12 * * *' else '0 0 1 1 *' end,
          'next_slot', case when n <= %s then '2026-06-01 12:01Z' else '2027-01-01 00:00Z' end,
          'due_at', case when n <= %s then '2026-06-01 12:01Z' else '2027-01-01 00:00Z' end)) made
        """,
        MANY, DUE, DUE, DUE,
    )  # fmt: skip
    sql("alter table procjobs.schedules enable trigger pj_note_new")
    sql("analyze procjobs.schedules")


@pytest.mark.usefixtures("many")
def test_ten_thousand_due_at_once_fire_in_seconds_and_nothing_is_read_twice(sql: Sql, explain: Any) -> None:
    query = (
        "select s.name from procjobs.schedules s where s.due_at <= '2026-06-01 12:01Z' and s.name <> all ('{}') "
        "order by s.due_at limit 100 for update skip locked"
    )
    assert "schedules_due" in json.dumps(explain(query))
    assert "Seq Scan" not in json.dumps(explain("select min(due_at) from procjobs.schedules where due_at is not null"))

    began = time.perf_counter()
    for _ in range(20):
        assert sql.one("select fired from procjobs.tick_schedules('idle')") == 0
    assert time.perf_counter() - began < 1, "a look at nothing costs nothing"

    sql("set procjobs.now = '2026-06-01 12:01Z'")
    began = time.perf_counter()
    assert sql.one("select procjobs.tick()") == DUE
    took = time.perf_counter() - began
    print(f"{DUE} slots in {took:.1f} s")
    assert took < 120, "what is quadratic takes many minutes"
    assert sql.one("select count(distinct schedule) from procjobs.schedule_ticks") == DUE
    assert sql.one("select count(*) from procrastinate_jobs") == DUE


def tell_statistics(sql: Sql) -> None:
    if sql.connection.info.server_version < 150000:
        pytest.skip("PostgreSQL 14 does not say at once what was read")
    sql("select pg_stat_force_next_flush()")


@pytest.mark.usefixtures("many")
def test_each_slot_reads_its_own_rows_and_not_those_of_the_others(sql: Sql) -> None:
    """All in one session, whose plans were made when the ledger and the queue were empty."""
    sql("set procjobs.now = '2026-06-01 12:01Z'")
    assert sql.one("select fired from procjobs.tick_schedules('us', 2000)") == 2000
    tell_statistics(sql)
    read = dict(
        sql(
            "select relname, seq_tup_read + idx_tup_fetch from pg_stat_user_tables "
            "where relname in ('schedule_ticks', 'procrastinate_jobs')"
        )
    )
    assert read["schedule_ticks"] <= 4 * 2000
    assert read["procrastinate_jobs"] <= 2 * 2000, "locks are looked up, also of jobs in one statement"


@pytest.mark.parametrize("analyzed", [False, True], ids=["unknown", "analyzed"])
def test_a_backfill_reads_its_own_slots_and_not_those_of_the_others(
    sql: Sql, register: Callable[..., int], analyzed: bool
) -> None:
    """In a session whose plans were made when the ledger was empty; now a thousand schedules fired at each instant."""
    register("plain", {"type": "object", "properties": {}, "additionalProperties": False})
    sql("set procjobs.now = '2026-06-01 00:00Z'")
    sql("select procjobs.schedule(n, 'plain', '* * * * *', overlap => 'allow') from unnest('{s500, other}'::text[]) n")
    sql("set procjobs.now = '2026-06-01 02:00Z'")
    if analyzed:
        sql("vacuum analyze procjobs.schedule_ticks")
    for _ in range(6):
        sql("select procjobs.backfill('other', '2026-06-01 01:31Z', '2026-06-01 01:40Z')")
    sql(
        """
        insert into procjobs.schedule_ticks (schedule, slot, outcome, fired_at, fired_by)
        select 's' || n, m, 'fired', m, 'clock'
        from generate_series(1, 1000) n,
          generate_series(timestamptz '2026-06-01 00:01Z', '2026-06-01 01:40Z', '1 min') m
        where n <> 500 or m <= '2026-06-01 01:35Z'
        """
    )

    def read() -> int:
        tell_statistics(sql)
        query = "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relname = 'schedule_ticks'"
        return int(sql.one(query))

    before = read()
    assert sql("select * from procjobs.backfill('s500', '2026-06-01 01:31Z', '2026-06-01 01:40Z')") == [(5, 0)]
    assert read() - before <= 2 * 10


@pytest.mark.usefixtures("many")
def test_clocks_share_the_work_and_wait_for_nobody(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    other = another()
    other.execute("select from procjobs.schedules where name in ('s1', 's2') for update")
    sql("set procjobs.now = '2026-06-01 12:01Z'")
    assert sql("select fired, due_in <= 0 from procjobs.tick_schedules('us', 300)") == [(300, True)]
    began = time.perf_counter()
    while sql.one("select fired from procjobs.tick_schedules('us')"):
        pass
    assert time.perf_counter() - began < 60
    other.rollback()
    assert sql.one("select procjobs.tick()") == 2
    assert sql.one("select count(*) from procrastinate_jobs") == DUE


def test_a_lock_that_a_job_needs_is_not_waited_for(
    sql: Sql, register: Callable[..., int], another: Callable[[], psycopg.Connection[Any]]
) -> None:
    register("plain")
    sql("set procjobs.now = '2026-06-01 12:00:30Z'")
    sql("select procjobs.schedule('a', 'plain', '* * * * *', queueing_lock => 'q')")
    sql("select procjobs.schedule('b', 'plain', '* * * * *')")
    other = another()
    other.execute("select procjobs.defer('plain', queueing_lock => 'q')")  # not committed: nobody knows yet
    sql("set procjobs.now = '2026-06-01 12:01Z'")
    began = time.perf_counter()
    assert sql("select fired, due_in <= 0 from procjobs.tick_schedules()") == [(1, True)]
    assert time.perf_counter() - began < 2
    other.rollback()
    assert sql.one("select procjobs.tick()") == 1
