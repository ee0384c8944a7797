"""The ledger of slots after the fact: how their jobs ended, and until when it is kept."""

from __future__ import annotations

from collections.abc import Callable

from tests.sql.conftest import Sql, Worker
from tests.sql.schedules.conftest import Now, finish, tick


def test_how_jobs_ended_outlives_them(sql: Sql, now: Now, worker: Callable[..., Worker]) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    now("2026-06-01 12:01:02Z")
    finish(sql, ann, 42)
    run = sql.one("select procjobs.run_now('s')")
    (job,) = ann.claim()
    ann.fail(job)
    assert sql.one("select procjobs.note_run_ends()") == 1
    sql("delete from procrastinate_jobs")
    sql("delete from procjobs.job_history")
    assert sql("select kind, status, rows, attempts, error from procjobs.schedule_history order by slot") == [
        ("slot", "succeeded", 42, 1, None),
        ("manual", "failed", None, 1, "ValueError: boom"),
    ]
    assert sql("select fired, succeeded, failed, success_percent::text, rows from procjobs.schedule_stats") == [
        (2, 1, 1, "50.0", 42)
    ]
    assert run == job


def test_a_job_that_was_deleted_without_a_trace_is_over(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    tick(sql, now, "2026-06-01 12:01Z")
    sql("delete from procrastinate_jobs")
    sql("select procjobs.note_run_ends()")
    assert sql("select status, ended_at is null from procjobs.schedule_history") == [(None, False)]
    assert tick(sql, now, "2026-06-01 12:02Z") == 1


def test_many_open_rows_are_looked_at_in_turns(sql: Sql, now: Now) -> None:
    for number in range(10):
        sql("select procjobs.schedule(%s, 'plain', '* * * * *', queue => %s)", f"s{number}", f"q{number}")
    tick(sql, now, "2026-06-01 12:01Z")
    sql("delete from procrastinate_jobs where queue_name = 'q9'")
    for _ in range(6):
        sql("select procjobs.note_run_ends(3)")
    assert sql("select schedule from procjobs.schedule_ticks where ended_at is not null") == [("s9",)]


def test_the_ledger_is_forgotten_in_its_own_time(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 0 1 * *', misfire_window => '366 days', overlap => 'allow')")
    sql("select procjobs.schedule('t', 'plain', '0 0 1 * *', overlap => 'allow')")
    tick(sql, now, "2026-07-01 00:00Z")
    sql("select procjobs.run_now('t')")
    sql("update procjobs.schedule_settings set keep_history = '30 days'")
    now("2026-07-15 00:00Z")
    assert sql.one("select procjobs.forget_ticks()") == 0
    now("2026-09-15 00:00Z")
    assert sql.one("select procjobs.forget_ticks()") == 2
    assert sql("select schedule from procjobs.schedule_history") == [("s",)], "its window may still be looked into"
