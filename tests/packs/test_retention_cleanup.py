"""What comes with procjobs: the clean-ups of the demonstration, their schedules, the engine's chores as functions."""

from __future__ import annotations

from typing import Any

import pytest

from procjobs import demo
from procjobs.db import Database
from procjobs.migrate import migrate
from tests.conftest import Databases, Sql
from tests.engine.fleet import Fleet
from tests.packs.test_retention import refused

#: What each leaves and does with the rows of the demonstration: table, rows before, rows done.
CLEANUPS = {
    "cleanup_removed_team_members": ("memberships", 1),
    "cleanup_expired_sessions": ("sessions", 27),
    "cleanup_expired_email_verification_tokens": ("email_verification_tokens", 3),
    "cleanup_expired_password_reset_tokens": ("password_reset_tokens", 2),
    "expire_deliverables": ("deliverables", 2),
    "cleanup_expired_invitations": ("invitations", 3),
    "cleanup_audit_logs": ("audit_logs", 61),
    "cleanup_logs": ("logs", 61),
}


@pytest.mark.parametrize("name", CLEANUPS)
async def test_each_returns_the_count_and_finds_nothing_the_second_time(db: Database, sql: Sql, name: str) -> None:
    table, due = CLEANUPS[name]
    await demo.seed(db)
    before = sql.one(f"select count(*) from procjobs_demo.{table}")
    assert sql.one("select procjobs.count_retention(%s)", name) == due
    assert sql.one(f"select procjobs.{name}()") == due
    assert sql.one(f"select procjobs.{name}()") == 0
    after = sql.one(f"select count(*) from procjobs_demo.{table}")
    assert before - after == (0 if name == "expire_deliverables" else due)


async def test_what_they_leave_is_what_is_not_due(db: Database, sql: Sql) -> None:
    await demo.seed(db)
    for name in CLEANUPS:
        sql(f"select procjobs.{name}()")
    now = "procjobs.clock()"
    assert sql.one(f"select count(*) from procjobs_demo.sessions where expires_at < {now}") == 0
    assert sql.one(f"select count(*) from procjobs_demo.memberships where removed_at < {now} - interval '90 days'") == 0
    assert sql.one(f"select min(created_at) > {now} - interval '30 days' from procjobs_demo.audit_logs")
    assert sql.one(f"select min(created_at) > {now} - interval '90 days' from procjobs_demo.logs")
    assert sql("select status, count(*) from procjobs_demo.deliverables group by 1 order by 1") == [
        ("delivered", 1), ("expired", 2),
    ]  # fmt: skip
    assert sql.one(f"select bool_and(expires_at > {now} - interval '30 days') from procjobs_demo.invitations")


def test_without_a_policy_the_function_says_how_to_set_one(sql: Sql) -> None:
    sql("select procjobs.drop_table_policy('cleanup_expired_sessions')")
    said = refused(sql, "PJ031", "select procjobs.cleanup_expired_sessions()")
    assert "set_table_policy('cleanup_expired_sessions'" in (said.message_hint or "")


# -- schedules -----------------------------------------------------------------------------------------------------

SCHEDULES = {
    "cleanup_audit_logs": "0 0 * * *",
    "cleanup_expired_email_verification_tokens": "0 4 * * 0",
    "cleanup_expired_invitations": "0 2 * * *",
    "cleanup_expired_password_reset_tokens": "10 4 * * 0",
    "cleanup_expired_sessions": "0 3 * * *",
    "cleanup_logs": "0 3 * * 0",
    "cleanup_old_jobs": "0 2 * * *",
    "cleanup_orphaned_uploads": "0 0 * * *",
    "cleanup_removed_team_members": "0 2 * * *",
    "expire_deliverables": "0 5 * * *",
    "process_job_queue": "* * * * *",
    "retry_failed_jobs": "*/10 * * * *",
}


def crons(sql: Sql) -> dict[str, str]:
    return dict(sql("select name, cron from procjobs.schedules where source = 'pack'"))


@pytest.mark.slow
def test_migrate_makes_them_once_and_leaves_what_was_changed(databases: Databases) -> None:
    dsn = databases.make()
    migrate(dsn)
    sql = Sql(dsn)
    try:
        assert SCHEDULES.items() <= crons(sql).items()
        sql("select procjobs.schedule('cleanup_logs', cron => '0 6 * * *')")
        sql("select procjobs.set_table_policy('cleanup_logs', 'procjobs_demo.logs', 'created_at', '7 days')")
        sql("update procjobs.schema_state set checksum = null")
        migrate(dsn)
        assert crons(sql)["cleanup_logs"] == "0 6 * * *"
        assert sql.one("select keep::text from procjobs.table_policies where name = 'cleanup_logs'") == "7 days"
    finally:
        sql.connection.close()


def test_a_schedule_comes_and_goes_with_its_policy(sql: Sql) -> None:
    sql("select procjobs.declare_retention()")
    assert SCHEDULES.items() <= crons(sql).items()
    sql("select procjobs.drop_table_policy('cleanup_expired_sessions')")
    assert "cleanup_expired_sessions" not in crons(sql)
    sql("select procjobs.set_table_policy('cleanup_expired_sessions', 'procjobs_demo.sessions', 'expires_at', '0')")
    assert crons(sql)["cleanup_expired_sessions"] == "0 3 * * *"
    sql("select procjobs.set_table_policy('mine', 'procjobs_demo.logs', 'created_at', '1 day')")
    assert "mine" not in crons(sql)


async def test_a_night_of_them_runs_as_jobs_without_a_worker(db: Database, sql: Sql) -> None:
    """Each slot enqueues a job that works its policy; the ledger has the number of rows."""
    await demo.seed(db)
    sql("select procjobs.declare_retention()")
    sql("select procjobs.drop_table_policy('cleanup_orphaned_uploads')")  # its body is a program
    night = sql.one("select (date_trunc('week', procjobs.clock()) + interval '13 days 5 hours 30 seconds')::text")
    sql("select set_config('procjobs.now', %s, false)", night)  # the morning of a Sunday
    due = sum(rows for _, rows in CLEANUPS.values())
    sql("select procjobs.tick('test')")
    jobs = sql.one("select count(*) from public.procrastinate_jobs where task_name <> 'procjobs.send_notification'")
    assert jobs == len(SCHEDULES) - 1
    sql("call procjobs.run_sql_jobs(60, %s)", jobs)
    done = dict(
        sql(
            "select r.policy, r.rows from procjobs.table_retention_runs r "
            "join procjobs.retention_schedules() s on s.name = r.policy"
        )
    )
    assert set(done) == set(CLEANUPS)
    assert sum(done.values()) >= due
    results = dict(
        sql("select args ->> 'policy', result from procjobs.job_history where task_name = 'procjobs.work_retention'")
    )
    assert results == done


# -- chores of the engine ------------------------------------------------------------------------------------------


def test_the_queue_is_swept_and_says_what_waits(sql: Sql) -> None:
    fleet = Fleet(sql)
    assert sql.one("select procjobs.process_job_queue()") == 0
    fleet.defer_many(3)
    late = fleet.defer(scheduled_at=3600)
    heard: list[str] = []
    sql.connection.add_notify_handler(lambda said: heard.append(said.channel))
    sql("listen procrastinate_any_queue_v1")
    assert sql.one("select procjobs.process_job_queue()") == 3
    assert heard == ["procrastinate_any_queue_v1"]
    with fleet.at(fleet.later(3601)):
        assert sql.one("select procjobs.process_job_queue()") == 4
    assert fleet.waits_for(late) is None


def test_old_jobs_go_by_their_policies(sql: Sql) -> None:
    fleet = Fleet(sql)
    worker = fleet.worker()
    fleet.defer_many(3)
    fleet.finish(*fleet.claim(worker, 3))
    assert sql.one("select procjobs.cleanup_old_jobs()") == 0
    sql("select procjobs.set_retention('1 second')")
    with fleet.at(fleet.later(60)):
        assert sql.one("select procjobs.cleanup_old_jobs()") == 3


def test_the_calendar_queue_keeps_its_last_hundred_and_two_hundred_dead_letters(sql: Sql) -> None:
    assert sql(
        "select state, keep_last, set_by from procjobs.retention "
        "where queue = 'calendar' and keep_last is not null order by 1"
    ) == [("failed", 200, "procjobs"), ("succeeded", 100, "procjobs")]  # fmt: skip
    sql(
        "insert into procjobs.job_history (id, priority, crashes, lease, queue_name, task_name, args, status, "
        "attempts, created_at, finished_at) select n, 0, 0, 1, 'calendar', 'sync', '{}', 'succeeded', 1, now(), "
        "now() - interval '1 hour' + n * interval '1 second' from generate_series(1, 130) n"
    )
    sql(
        "insert into public.procrastinate_jobs (queue_name, task_name, args, status, attempts, pj_created_at, "
        "pj_finished_at) select 'calendar', 'sync', '{}', 'failed', 3, now(), "
        "now() - interval '1 hour' + n * interval '1 second' from generate_series(1, 230) n"
    )
    forgotten = 0
    for _ in range(5):
        forgotten += sql.one("select procjobs.run_retention()")
    assert forgotten == 60
    assert sql.one("select count(*) from procjobs.job_history") == 100
    assert sql.one("select min(id) from procjobs.job_history") == 31
    assert sql.one("select count(*) from public.procrastinate_jobs") == 200


# -- dead letters whose error passes -------------------------------------------------------------------------------


def die(fleet: Fleet, worker: int, error: str, *, task: str = "work", attempts: int = 2, **keys: Any) -> int:
    """A job that used up its attempts with this error; its id."""
    job = fleet.defer(task, **keys)
    for _ in range(attempts):
        fleet.sql("update procrastinate_jobs set scheduled_at = null, pj_waits_for = null where id = %s", job)
        (claim,) = fleet.claim(worker)
        fleet.settle(claim, "failed", error_class=error, error_message="no answer")
    assert fleet.status(job) == "failed"
    return job


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    fleet = Fleet(sql)
    fleet.policy("work", max_attempts=2, backoff_base=1, backoff_jitter=False)
    fleet.policy("once", max_attempts=1)
    return fleet


def test_an_error_that_passes_is_tried_again_a_few_rounds_and_not_for_ever(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    job = die(fleet, worker, "ConnectionError")
    other = die(fleet, worker, "ValueError")
    assert sql.one("select procjobs.retry_failed_jobs()") == 0
    for wait in (600, 1200, 2400):
        with fleet.at(fleet.later(wait - 60)):
            assert sql.one("select procjobs.retry_failed_jobs()") == 0
        with fleet.at(fleet.later(wait + 5)):
            assert sql.one("select procjobs.retry_failed_jobs()") == 1
        assert fleet.status(job) == "todo"
        for _ in range(2):
            sql("update procrastinate_jobs set scheduled_at = null, pj_waits_for = null where id = %s", job)
            (claim,) = fleet.claim(worker)
            fleet.settle(claim, "failed", error_class="ConnectionError", error_message="no answer")
    for days in (1, 7, 25):
        with fleet.at(fleet.later(days * 86400)):
            assert sql.one("select procjobs.retry_failed_jobs()") == 0
    assert (fleet.status(job), fleet.status(other)) == ("failed", "failed")
    assert sql("select detail ->> 'round' from procjobs.job_events where job_id = %s order by id", job) == [
        ("1",), ("2",), ("3",),
    ]  # fmt: skip


def test_a_task_that_is_never_run_twice_is_left_alone_unless_a_rule_names_it(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker("once")
    job = die(fleet, worker, "ConnectionError", task="once", attempts=1)
    with fleet.at(fleet.later(700)):
        assert sql.one("select procjobs.retry_failed_jobs()") == 0
        sql("select procjobs.set_retry_rule(task => 'once', rounds => 1, wait => '1 minute')")
        assert sql.one("select procjobs.retry_failed_jobs()") == 1
    assert fleet.status(job) == "todo"


def test_an_error_that_the_tasks_own_policy_does_not_retry_is_left_alone(fleet: Fleet, sql: Sql) -> None:
    """It failed at its first run, though its policy allows two: its own `on=` says so."""
    job = fleet.defer()
    (claim,) = fleet.claim(fleet.worker())
    fleet.settle(claim, "failed", error_class="ConnectionError", error_message="no", retry="never")
    assert fleet.status(job) == "failed"
    with fleet.at(fleet.later(700)):
        assert sql.one("select procjobs.retry_failed_jobs()") == 0


def test_rules_go_from_the_narrow_to_the_wide(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    die(fleet, worker, "TimeoutError")
    sql("select procjobs.set_retry_rule(task => 'work', error_class => 'TimeoutError', rounds => 0)")
    with fleet.at(fleet.later(700)):
        assert sql.one("select procjobs.retry_failed_jobs()") == 0
        assert sql.one("select procjobs.drop_retry_rule('TimeoutError', 'work')") is True
        assert sql.one("select procjobs.drop_retry_rule('TimeoutError', 'work')") is False
        assert sql.one("select procjobs.retry_failed_jobs()") == 1


def test_a_call_is_bounded_and_a_key_that_another_job_has_is_respected(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    first = die(fleet, worker, "TimeoutError", queueing_lock="only")
    for _ in range(5):
        die(fleet, worker, "TimeoutError")
    fleet.defer(queueing_lock="only", scheduled_at=86400)
    with fleet.at(fleet.later(700)):
        assert sql.one("select procjobs.retry_failed_jobs(4)") == 3
        assert sql.one("select procjobs.retry_failed_jobs()") == 2
    assert fleet.status(first) == "failed"


@pytest.mark.parametrize(
    "given", ["", "task => 'x', rounds => -1", "task => 'x', wait => '0'", "error_class => 'X', wait => '8 days'"]
)
def test_rules_that_cannot_be_are_refused(sql: Sql, given: str) -> None:
    refused(sql, "PJ009", f"select procjobs.set_retry_rule({given})")
