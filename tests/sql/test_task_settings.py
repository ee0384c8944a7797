"""Settings of tasks as rows: effective at once, taken back at once; pauses that keep nobody else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from tests.engine.fleet import Fleet
from tests.sql.conftest import Sql

Refused = Callable[..., Diagnostic]


@pytest.fixture
def fleet(sql: Any) -> Fleet:
    made = Fleet(sql)
    made.policy(
        "work", queue="slow", priority=1, max_attempts=3, backoff_base=60, backoff_cap=600, backoff_jitter=False
    )
    return made


def policy(sql: Sql, *columns: str) -> tuple[Any, ...]:
    return sql(f"select {', '.join(columns)} from procjobs.task_policies where task = 'work'")[0]


def test_what_is_set_wins_and_what_is_not_stays(fleet: Fleet, sql: Sql) -> None:
    assert sql.one("select procjobs.set_task('work', queue => 'fast', timeout => '30 s')") is True
    assert policy(sql, "queue", "priority", "max_attempts", "timeout::text") == ("fast", 1, 3, "00:00:30")
    assert sql.one("select procjobs.set_task('work', priority => 0)") is True  # nothing else changes
    assert policy(sql, "queue", "priority", "timeout::text") == ("fast", 0, "00:00:30")
    assert policy(sql, "settings") == ({"queue": "fast", "priority": 0, "timeout": "00:00:30"},)
    assert policy(sql, "registered ->> 'queue'", "set_by = session_user", "set_at is not null") == ("slow", True, True)


def test_setting_the_same_again_changes_nothing(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_task('work', queue => 'fast')")
    before = policy(sql, "set_at")
    assert sql.one("select procjobs.set_task('work', queue => 'fast')") is False
    assert policy(sql, "set_at") == before


def test_reset_gives_the_code_its_say_and_keeps_the_pause(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_task('work', queue => 'fast', priority => 9)")
    sql("select procjobs.pause_task('work', 'provider down')")
    assert sql.one("select procjobs.reset_task('work')") is True
    assert policy(sql, "queue", "priority", "settings", "pause_reason") == ("slow", 1, {}, "provider down")
    assert sql.one("select procjobs.reset_task('work')") is False


def test_a_new_registration_leaves_the_settings(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_task('work', queue => 'fast')")
    fleet.policy("work", queue="other", priority=7)
    assert policy(sql, "queue", "priority") == ("fast", 7)


def test_jobs_deferred_from_sql_go_where_the_setting_says(fleet: Fleet, sql: Sql) -> None:
    sql("select procjobs.set_task('work', queue => 'fast', priority => 5)")
    one = sql.one("select procjobs.defer('work')")
    other = sql.one("select procjobs.defer('work', queue => 'own', priority => -1)")
    (many,) = [row[1] for row in sql('select * from procjobs.defer_many(\'[{"task": "work"}]\')')]
    found = dict(sql("select id, (queue, priority)::text from procjobs.jobs"))
    assert found == {one: "(fast,5)", other: "(own,-1)", many: "(fast,5)"}


def test_the_retry_policy_counts_for_jobs_that_are_there_already(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    sql("select procjobs.set_task('work', max_attempts => 1)")
    assert fleet.settle(claim, "failed", error_class="ValueError") == "failed"
    assert fleet.status(job) == "failed"


def test_the_backoff_counts_at_the_next_failure(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    (claim,) = fleet.claim(fleet.worker())
    sql("select procjobs.set_task('work', backoff_base => '5 min')")
    with fleet.at("2030-01-01 12:00Z"):
        assert fleet.settle(claim, "failed") == "retrying"
    assert sql.one("select scheduled_at = '2030-01-01 12:05Z' from procjobs.jobs where id = %s", job)


def test_the_claim_says_the_timeout_that_holds(fleet: Fleet, sql: Sql) -> None:
    def claimed() -> Any:
        worker = fleet.worker()
        return sql.one("select timeout_seconds from procjobs.claim_jobs(%s, null, 1)", worker)

    fleet.defer()
    assert claimed() is None
    fleet.policy("work", timeout=90)
    fleet.defer()
    assert claimed() == 90
    sql("select procjobs.set_task('work', timeout => '2.5 s')")
    fleet.defer()
    assert claimed() == 2.5
    job = fleet.defer()
    sql("update procrastinate_jobs set pj_timeout = '1 s' where id = %s", job)
    assert claimed() == 1
    assert sql.one("select pj_deadline - pj_started_at = '1 s' from procrastinate_jobs where id = %s", job)


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("max_attempts => 0", "PJ009"),
        ("timeout => '0 s'", "PJ009"),
        ("timeout => '-1 s'", "PJ009"),
        ("timeout => '11 years'", "PJ009"),
        ("queue => ''", "PJ010"),
        ("backoff_base => '11 min'", "PJ009"),  # over the cap of 10 min
        ("backoff_base => '-1 s'", "PJ009"),
    ],
)
def test_what_cannot_be_is_refused(fleet: Fleet, refused: Refused, setting: str, code: str) -> None:
    refused(code, f"select procjobs.set_task('work', {setting})")


@pytest.mark.parametrize(
    "call", ["set_task('worc', priority => 1)", "reset_task('worc')", "pause_task('worc')", "resume_task('worc')"]
)
def test_an_unknown_task_is_named_with_the_nearest(fleet: Fleet, refused: Refused, call: str) -> None:
    assert "work" in str(refused("PJ001", f"select procjobs.{call}").message_detail)


# Pause


def test_jobs_of_a_paused_task_are_passed_over_and_running_ones_go_on(fleet: Fleet, sql: Sql) -> None:
    fleet.policy("other")
    worker = fleet.worker("other")
    running = fleet.defer()
    (claim,) = fleet.claim(worker)
    assert sql.one("select procjobs.pause_task('work', 'provider down')") is True
    assert sql.one("select procjobs.pause_task('work', 'again')") is False  # the first reason is kept
    held = [fleet.defer() for _ in range(3)]
    other = fleet.defer("other", priority=-5)
    assert fleet.claim_ids(worker, 10) == [other]
    assert {fleet.waits_for(job) for job in held} == {"pause"}
    assert fleet.finish(claim) == [running]
    assert policy(sql, "pause_reason", "paused_by = session_user") == ("provider down", True)


def test_resuming_lets_them_go_in_order_and_wakes_workers(fleet: Fleet, sql: Sql, another: Callable[[], Any]) -> None:
    worker = fleet.worker()
    sql("select procjobs.pause_task('work')")
    jobs = [fleet.defer(), fleet.defer(), fleet.defer(priority=3)]
    assert fleet.claim_ids(worker, 10) == []
    listener = another()
    listener.autocommit = True
    listener.execute("listen procrastinate_any_queue_v1")
    assert sql.one("select procjobs.resume_task('work')") is True
    assert [n.payload for n in listener.notifies(timeout=5, stop_after=1)]
    assert fleet.claim_ids(worker, 10) == [jobs[2], jobs[0], jobs[1]]
    assert sql.one("select procjobs.resume_task('work')") is False


def test_a_lock_stays_in_order_over_a_pause(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    sql("select procjobs.pause_task('work')")
    first, second = fleet.defer(lock="l"), fleet.defer(lock="l")
    assert fleet.claim_ids(worker, 10) == []
    sql("select procjobs.resume_task('work')")
    assert fleet.claim_ids(worker, 10) == [first]
    assert fleet.claim_ids(worker, 10) == []
    assert fleet.waits_for(second) == "lock"


def test_what_a_claim_set_aside_after_the_resume_is_found_by_upkeep(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    sql("update procrastinate_jobs set pj_waits_for = 'pause' where id = %s", job)  # a claim that had looked before
    sql("select procjobs.upkeep()")
    assert fleet.claim_ids(fleet.worker()) == [job]


def test_a_resume_goes_by_batches_and_past_tasks_that_stay_paused(fleet: Fleet, sql: Sql) -> None:
    fleet.policy("other")
    for task in ("work", "other"):
        sql("select procjobs.pause_task(%s)", task)
        fleet.defer_many(5, task)
    assert fleet.claim_ids(fleet.worker("other"), 20) == []
    sql("update procjobs.task_settings set paused_at = null where task = 'work'")
    assert [sql.one("select procjobs.resume_paused_jobs(3)") for _ in range(3)] == [3, 2, 0]
    assert sql("select task_name, pj_waits_for, count(*) from procrastinate_jobs group by 1, 2 order by 1") == [
        ("other", "pause", 5), ("work", None, 5),
    ]  # fmt: skip


def test_a_row_that_somebody_holds_does_not_keep_the_others(
    fleet: Fleet, sql: Sql, another: Callable[[], psycopg.Connection[Any]]
) -> None:
    sql("select procjobs.pause_task('work')")
    held, free = fleet.defer(), fleet.defer()
    assert fleet.claim_ids(fleet.worker(), 5) == []
    holder = another()
    holder.execute("select from procrastinate_jobs where id = %s for update", (held,))
    assert sql.one("select procjobs.resume_task('work')") is True
    assert fleet.waits_for(free) is None and fleet.waits_for(held) == "pause"
    holder.rollback()
    sql("select procjobs.upkeep()")
    assert fleet.waits_for(held) is None


def test_registering_keeps_the_timeout(sql: Sql) -> None:
    sql("select procjobs.register_tasks(%s, 'test')", json.dumps([{"name": "t", "timeout": 1.5}]))
    assert sql.one("select timeout::text from procjobs.tasks where name = 't'") == "00:00:01.5"
