"""Schedules paused, run, filled in and previewed by hand, together or for one tenant."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.sql.conftest import Sql, Worker
from tests.sql.schedules.conftest import Now, Refused, arguments, fired, ledger, tick

# -- pause, groups, zone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("misfire", ["latest", "skip", "all"])
def test_a_pause_is_held_to_and_treated_by_the_misfire(sql: Sql, now: Now, misfire: str) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *', misfire => %s)", misfire)
    assert sql.one("select procjobs.pause_schedule('s', 'too loud')") is True
    assert sql.one("select procjobs.pause_schedule('s')") is False
    assert sql("select state, next_slot, reason from procjobs.schedule_list") == [("paused", None, "too loud")]
    assert tick(sql, now, "2026-06-01 15:30Z") == 0
    assert sql.one("select procjobs.resume_schedule('s')") is True
    assert sql.one("select procjobs.resume_schedule('s')") is False
    assert sql.one("select procjobs.tick()") == {"latest": 1, "skip": 0, "all": 3}[misfire]
    assert sql.one("select count(*) from procjobs.schedule_history where missed") == 0
    assert sql("select * from procjobs.alerts") == [], "nobody missed them"
    assert tick(sql, now, "2026-06-01 16:00Z") == (1 if misfire == "skip" else 0)  # else the last has not ended


def test_a_group_is_switched_together(sql: Sql, now: Now) -> None:
    for name in ("a", "b"):
        sql("select procjobs.schedule(%s, 'plain', '0 * * * *', \"group\" => 'cleanup')", name)
    sql("select procjobs.schedule('c', 'plain', '0 * * * *')")
    assert sql.one("select procjobs.set_schedule_group('cleanup', false, 'moving')") is True
    assert sql.one("select procjobs.set_schedule_group('cleanup', false)") is False
    sql("select procjobs.schedule('d', 'plain', '0 * * * *', \"group\" => 'cleanup')")
    assert tick(sql, now, "2026-06-01 13:00Z") == 1
    assert sql("select name, state, reason from procjobs.schedule_list where state = 'off' order by 1") == [
        (name, "off", "moving") for name in "abd"
    ]
    sql("select procjobs.pause_schedule('b')")
    sql("select procjobs.set_schedule_group('cleanup', true)")
    assert sql.one("select procjobs.tick()") == 2
    assert sql("select name from procjobs.schedule_list where state <> 'active'") == [("b",)]
    assert sql("select name, enabled, schedules from procjobs.schedule_group_list where schedules > 0") == [
        ("cleanup", True, 3)
    ]


def test_the_default_zone_moves_those_that_name_none_and_nothing_is_made_up_for(
    sql: Sql, now: Now, refused: Refused
) -> None:
    sql("select procjobs.schedule('own', 'plain', '0 9 * * *', timezone => 'Asia/Tokyo')")
    sql("select procjobs.schedule('none', 'plain', '0 9 * * *', misfire => 'all')")
    assert sql.one("select procjobs.set_cron_timezone('America/New_York')") is True
    assert sql.one("select procjobs.set_cron_timezone('America/New_York')") is False
    assert sql("select name, next_local::text, next_slot::text from procjobs.schedule_list order by 1") == [
        ("none", "2026-06-01 09:00:00", "2026-06-01 13:00:00+00"),
        ("own", "2026-06-02 09:00:00", "2026-06-02 00:00:00+00"),
    ]
    now("2026-06-01 12:59Z")
    sql("select procjobs.set_cron_timezone('Europe/London')")  # where nine was long ago
    assert sql.one("select procjobs.tick()") == 0
    refused("PJ014", "select procjobs.set_cron_timezone('Mars/Olympus')")


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_run_now_is_a_run_of_its_own(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'told', '0 * * * *', args => '{\"a\": 1}')")
    sql("select procjobs.pause_schedule('s')")
    job = sql.one("select procjobs.run_now('s', args => '{\"a\": 2}')")
    assert arguments(sql) == [
        {"a": 2, "slot": "2026-06-01T12:00:30Z", "timestamp": 1780315230, "manual": True, "triggered_by": "postgres"}
    ]
    assert sql("select kind, outcome, by, job_id, status from procjobs.schedule_history") == [
        ("manual", "fired", "postgres", job, "todo")
    ]
    sql("select procjobs.resume_schedule('s')")
    assert sql.one("select next_slot::text from procjobs.schedule_list") == "2026-06-01 13:00:00+00"


def test_a_double_click_is_one_run(sql: Sql) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    sql("select procjobs.schedule('t', 'plain', '0 * * * *')")
    first = sql.one("select procjobs.run_now('s', 'click')")
    assert sql.one("select procjobs.run_now('s', 'click')") == first
    assert sql.one("select procjobs.run_now('t', 'click')") != first
    assert sql.one("select procjobs.run_now('s')") not in (first, sql.one("select procjobs.run_now('s')"))


@pytest.mark.parametrize("commits", [True, False])
def test_two_clicks_at_once_are_one_run(
    sql: Sql, another: Callable[[], psycopg.Connection[Any]], eventually: Callable[..., Any], commits: bool
) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    click = "select procjobs.run_now('s', 'click')"
    ours, theirs = another(), another()
    (first,) = ours.execute(click).fetchone() or (None,)
    jobs: list[int] = []

    def again() -> None:
        jobs.extend(theirs.execute(click).fetchone() or ())
        theirs.commit()

    thread = threading.Thread(target=again)
    thread.start()
    eventually(lambda: sql.one("select cardinality(pg_blocking_pids(%s)) > 0", theirs.info.backend_pid))
    (ours.commit if commits else ours.rollback)()
    thread.join()
    assert (jobs == [first]) == commits, "what was rolled back is nobody's run"
    assert [job for (job,) in sql("select id from procrastinate_jobs")] == jobs
    assert [job for (job,) in sql("select job_id from procjobs.schedule_runs")] == jobs


def test_run_now_waits_for_a_run_that_has_not_ended(sql: Sql, worker: Callable[..., Worker]) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    ann = worker("plain")
    first, second = (sql.one("select procjobs.run_now('s')") for _ in range(2))
    assert ann.claim() == [first]
    ann.finish(first)
    assert ann.claim() == [second]


def test_backfill_is_a_job_for_each_slot_that_has_not_fired(sql: Sql, now: Now) -> None:
    sql("select procjobs.schedule('s', 'told', '0 * * * *', overlap => 'allow')")
    tick(sql, now, "2026-06-01 15:30Z")  # 13 and 14 are skipped
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z', '2026-06-01 18:00Z', 3)") == [(3, 1)]
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z')") == [(1, 0)]
    assert sql("select * from procjobs.backfill('s', '2026-06-01 11:00Z')") == [(0, 0)]
    assert fired(sql, "s") == [f"01 {hour}:00:00" for hour in range(11, 16)]
    assert sorted(args["slot"][11:13] for args in arguments(sql)) == ["11", "12", "13", "14", "15"]
    assert sql("select kind, count(*) from procjobs.schedule_history group by 1 order by 1") == [
        ("backfill", 4),
        ("slot", 1),
    ]


@pytest.mark.parametrize("span", ["'infinity'", "'2026-06-02', '2026-06-01'", "'2026-06-02'", "'2026-05-01', now(), 0"])
def test_what_cannot_be_backfilled_is_refused(sql: Sql, refused: Refused, span: str) -> None:
    sql("select procjobs.schedule('s', 'plain', '0 * * * *')")
    refused("PJ009", f"select procjobs.backfill('s', {span})")


def test_preview_marks_where_clocks_change(sql: Sql, now: Now) -> None:
    now("2026-10-25 00:00Z")
    sql("select procjobs.schedule('s', 'plain', '30 * * * *', timezone => 'Europe/Paris')")
    assert sql("select local::text, mark from procjobs.preview_schedule('s', 3)") == [
        ("2026-10-25 02:30:00", "repeat 1"),
        ("2026-10-25 02:30:00", "repeat 2"),
        ("2026-10-25 03:30:00", None),
    ]


# -- tenants ---------------------------------------------------------------------------------------------------------


def test_a_tenant_has_a_time_a_pause_and_a_history_of_its_own_and_follows_in_the_rest(
    sql: Sql, now: Now, refused: Refused
) -> None:
    sql("select procjobs.schedule('digest', 'told', '0 8 * * *', args => '{\"a\": 1}', queue => 'q')")
    assert (
        sql.one("select procjobs.schedule_for('digest', 'ann', '0 9 * * *', timezone => 'Asia/Tokyo')::text")
        == "2026-06-02 00:00:00+00"
    )
    sql("select procjobs.schedule_for('digest', 'bob', every => '1 hour', args => '{\"a\": 7}')")
    sql("select procjobs.pause_schedule('digest')")
    sql("select procjobs.schedule('digest', args => '{\"a\": 2}', queue => 'r')")
    tick(sql, now, "2026-06-01 13:00Z")
    tick(sql, now, "2026-06-02 00:00Z")
    assert sql("select queue_name, pj_tenant, args ->> 'tenant', args ->> 'a' from procrastinate_jobs order by id") == [
        ("r", "bob", "bob", "7"),
        ("r", "ann", "ann", "2"),
    ]
    assert fired(sql, "digest/ann") == ["02 00:00:00"]
    sql("select procjobs.schedule_for('digest', 'ann', '30 9 * * *')")
    assert (
        sql.one("select next_local::text from procjobs.schedule_list where name = 'digest/ann'")
        == "2026-06-02 09:30:00"
    )
    assert "queue" in (refused("PJ009", "select procjobs.schedule('digest/ann', queue => 'x')").message_detail or "")
    refused("PJ009", "select procjobs.schedule_for('digest/ann', 'x')")
    assert sql.one("select procjobs.unschedule('digest')") is True
    assert sql("select name from procjobs.schedule_list") == []
    assert len(ledger(sql, "digest/ann")) == 1, "its history stays"
