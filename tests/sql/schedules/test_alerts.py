"""Alerts of schedules, queues and processes: opened, announced once, closed by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg

from tests.sql.conftest import Sql, Worker
from tests.sql.schedules.conftest import Now, alerts, finish, tick


def test_a_missed_slot_is_an_alert_until_the_next_is_in_time(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    tick(sql, now, "2026-06-01 15:02Z")
    assert alerts(sql) == [("missed_slot", "s")]
    assert sql("select missed from procjobs.schedule_list") == [(3,)]
    tick(sql, now, "2026-06-01 16:00Z")
    assert alerts(sql) == []
    assert sql("select subject, closed_by from procjobs.list_alerts(true)") == [("s", "the next slot came in time")]


def test_three_failures_in_a_row_are_an_alert_until_it_succeeds(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '* * * * *')")
    for minute in range(1, 4):
        assert alerts(sql) == []
        tick(sql, now, f"2026-06-01 12:0{minute}Z")
        (job,) = ann.claim()
        ann.fail(job)
        sql("select procjobs.note_run_ends()")
    assert alerts(sql) == [("schedule_failing", "s")]
    tick(sql, now, "2026-06-01 12:04Z")
    finish(sql, ann)
    sql("select procjobs.note_run_ends()")
    assert alerts(sql) == []


def test_a_clean_up_with_nothing_to_do_for_a_week_is_an_alert(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    ann = worker("plain")
    sql("select procjobs.schedule('s', 'plain', '0 2 * * *', \"group\" => 'cleanup')")
    sql("select procjobs.schedule('t', 'plain', '0 2 * * *')")
    for day in range(2, 11):
        assert alerts(sql) == [] or day > 9
        tick(sql, now, f"2026-06-{day:02} 02:00Z")
        finish(sql, ann, 0)
        sql("select procjobs.note_run_ends()")
    assert alerts(sql) == [("cleanup_idle", "s")]
    tick(sql, now, "2026-06-11 02:00Z")
    finish(sql, ann, 3)
    sql("select procjobs.note_run_ends()")
    assert alerts(sql) == []


def test_a_queue_that_grows_is_an_alert(sql: Sql) -> None:
    sql("select procjobs.set_backlog_alert(2, '{mail}')")
    for _ in range(3):
        sql("select procjobs.defer('plain', queue => 'mail')")
        sql("select procjobs.defer('plain', queue => 'other')")
        assert alerts(sql) == []
        if sql.one("select count(*) from procrastinate_jobs") < 6:
            sql("select procjobs.watch_backlog()")
    sql("select procjobs.watch_backlog()")
    sql("select procjobs.watch_backlog()")
    assert sql("select subject, times from procjobs.list_alerts()") == [("mail", 2)]
    sql("delete from procrastinate_jobs")
    sql("select procjobs.watch_backlog()")
    assert alerts(sql) == []


def test_schedules_that_nobody_fires_are_an_alert(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    now("2026-06-01 13:05Z")
    sql("select procjobs.watch_clocks()")
    assert alerts(sql) == [("no_clock", "schedules")]
    sql("select procjobs.tick()")
    sql("select procjobs.watch_clocks()")
    assert alerts(sql) == [("missed_slot", "s")]


def test_a_process_that_died_is_an_alert_until_another_takes_its_place(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    worker("plain", name="ann")
    left = worker("plain", name="bob")
    sql("select procjobs.stop_worker(%s)", left.id)
    for minute in (5, 6):
        now(f"2026-06-01 12:0{minute}Z")
        sql("select procjobs.upkeep()")
    now("2026-06-01 12:07Z")
    sql("select procjobs.upkeep()")
    assert alerts(sql) == [("process_down", "ann")]
    worker("plain", name="carl", queues=["other"])
    sql("select procjobs.watch_processes()")
    assert alerts(sql) == [("process_down", "ann")], "it does other work"
    worker("plain", "told", name="dora")
    sql("select procjobs.watch_processes()")
    assert alerts(sql) == []


def test_a_process_whose_successor_knows_fewer_tasks(sql: Sql, now: Now, worker: Callable[..., Worker]) -> None:
    """It is one, unless somebody still wants what it does not know."""

    def look(at: str) -> list[tuple[str, str]]:
        now(at)
        sql("select procjobs.heartbeat(id) from procjobs.worker_state where name = 'bob'")
        sql("select procjobs.watch_processes()")
        return alerts(sql)

    worker("plain", "told", name="ann")
    for minute in (5, 6, 7):
        now(f"2026-06-01 12:0{minute}Z")
        sql("select procjobs.upkeep()")
    bob = worker("plain", name="bob")
    sql("select procjobs.defer('told')")
    assert bob.claim() == []  # it parks it
    assert look("2026-06-01 12:07:30Z") == [("process_down", "ann")], "it may not have claimed yet"
    assert look("2026-06-01 12:08:30Z") == [("process_down", "ann")], "a job waits for what only ann knew"
    sql("select procjobs.cancel(id) from procrastinate_jobs")
    sql("select procjobs.schedule('s', 'told', '0 0 * * *')")
    assert look("2026-06-01 12:08:40Z") == [("process_down", "ann")], "there will be one"
    sql("select procjobs.unschedule('s')")
    assert look("2026-06-01 12:08:50Z") == []
    assert sql("select closed_by from procjobs.list_alerts(true)") == [("another has taken its place",)]


def test_a_process_that_nobody_came_after_is_an_alert_for_a_week(
    sql: Sql, now: Now, worker: Callable[..., Worker]
) -> None:
    worker("plain", name="ann")
    for at in ("01 12:05", "01 12:06", "01 12:07", "08 12:00"):
        now(f"2026-06-{at}Z")
        sql("select procjobs.upkeep()")
        assert alerts(sql) == [("process_down", "ann")] or at < "01 12:06"
    now("2026-06-08 13:30Z")
    sql("select procjobs.forget_workers(), procjobs.watch_processes()")
    assert alerts(sql) == []
    assert sql("select closed_by from procjobs.list_alerts(true)") == [("it is gone for seven days",)]


def test_an_alert_is_announced_once_and_can_be_closed(sql: Sql, another: Callable[[], psycopg.Connection[Any]]) -> None:
    listener = another()
    listener.autocommit = True
    listener.execute("listen procjobs_alerts")
    sql("select procjobs.raise_alert('backlog', 'mail', 'many')")
    sql("select procjobs.raise_alert('backlog', 'mail', 'more')")
    assert [hint.payload for hint in listener.notifies(timeout=5, stop_after=1)] == ["backlog mail"]
    assert list(listener.notifies(timeout=0)) == []
    alert = sql.one("select id from procjobs.list_alerts()")
    assert [sql.one("select procjobs.close_alert(%s)", alert) for _ in range(2)] == [True, False]
