"""Where jobs were at a moment in the past, and the timeline of one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    return Fleet(sql)


def at(minute: float) -> str:
    minutes, seconds = divmod(int(minute * 60) + 600, 60)
    return f"2031-05-10 12:{minutes:02}:{seconds:02}+00"


def as_of(sql: Sql, minute: float, job: int) -> tuple[str, int | None] | None:
    found = sql("select state, run from procjobs.jobs_as_of(%s) where id = %s", at(minute), job)
    return (found[0][0], found[0][1]) if found else None


def test_a_job_is_seen_in_every_state_it_was_in(fleet: Fleet, sql: Sql) -> None:
    """Scheduled, run, failed, retried by itself, dead, retried by hand, done: asked between any two steps."""
    fleet.policy(max_attempts=2, backoff_base=60, backoff_jitter=False)
    with fleet.at(at(0)):
        worker = fleet.worker(lease=86400)
        job = fleet.defer(scheduled_at=120)
        sql("update procrastinate_jobs set pj_created_at = procjobs.clock()")
    with fleet.at(at(3)):
        sql("select procjobs.upkeep()")
        (claim,) = fleet.claim(worker)
    with fleet.at(at(4)):
        fleet.settle(claim, "failed", error_class="E", error_message="m")
    with fleet.at(at(6)):
        sql("select procjobs.upkeep()")
        (claim,) = fleet.claim(worker)
    with fleet.at(at(7)):
        assert fleet.settle(claim, "failed", error_class="E", error_message="m") == "failed"
    with fleet.at(at(9)):
        sql("select procjobs.redrive()")
    with fleet.at(at(10)):
        (claim,) = fleet.claim(worker)
    with fleet.at(at(11)):
        fleet.finish(claim)
    seen = [as_of(sql, minute + 0.5, job) for minute in range(-1, 12)]
    assert [state and state[0] for state in seen] == [
        None, "waiting", "waiting", "waiting", "running", "scheduled", "waiting", "running", "failed", "failed",
        "waiting", "running", "succeeded",
    ]  # fmt: skip
    assert seen[4] == ("running", 1) and seen[7] == ("running", 2)
    events = [event for (event,) in sql("select event from procjobs.job_timeline(%s)", job)]
    assert events == ["enqueued", "started", "failed", "started", "failed", "redriven", "started", "succeeded"]


@pytest.mark.parametrize("disposal", ["archive", "keep"])
def test_a_run_that_succeeded_is_still_there_when_the_job_was_retried(fleet: Fleet, sql: Sql, disposal: str) -> None:
    with fleet.at(at(0)):
        worker = fleet.worker(lease=86400)
        job = fleet.defer()
        sql("update procrastinate_jobs set pj_created_at = procjobs.clock()")
    with fleet.at(at(1)):
        (claim,) = fleet.claim(worker)
    with fleet.at(at(2)):
        fleet.finish(claim, disposal=disposal)
    with fleet.at(at(3)):
        sql("select procjobs.retry(%s)", job)
    with fleet.at(at(4)):
        (claim,) = fleet.claim(worker)
    with fleet.at(at(5)):
        fleet.finish(claim)
    seen = [as_of(sql, minute + 0.5, job) for minute in range(6)]
    assert [state and state[0] for state in seen] == [
        "waiting", "running", "succeeded", "waiting", "running", "succeeded",
    ]  # fmt: skip
    told = sql("select event, detail from procjobs.job_timeline(%s)", job)
    assert [event for event, _ in told] == [
        "enqueued", "started", "succeeded", "retried", "started", "succeeded",
    ]  # fmt: skip
    assert told[1][1] == "run 1 on worker ann"
    assert sql("select outcome, attempt, worker, took::text, error_class from procjobs.attempts") == [
        ("succeeded", 1, "ann", "00:01:00", None)
    ]
    assert sql.one("select error from procjobs.jobs where id = %s", job) is None


def test_a_job_that_never_ran_was_scheduled_then_waiting_then_cancelled(fleet: Fleet, sql: Sql) -> None:
    with fleet.at(at(0)):
        job = fleet.defer(scheduled_at=120)
        sql("update procrastinate_jobs set pj_created_at = procjobs.clock()")
    assert [as_of(sql, minute, job) for minute in (1, 3)] == [("scheduled", None), ("waiting", None)]
    with fleet.at(at(5)):
        sql("select procjobs.cancel(%s)", job)
    assert [(as_of(sql, minute, job) or ("",))[0] for minute in (3, 6)] == ["waiting", "cancelled"]


def test_snoozed_released_and_aborted_runs(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker(lease=86400)
    jobs = {}
    for outcome, keys in (("snoozed", {"delay": 120}), ("released", {"started": "true"}), ("cancelled", {})):
        with fleet.at(at(0)):
            jobs[outcome] = fleet.defer()
        with fleet.at(at(1)):
            (claim,) = fleet.claim(worker)
        with fleet.at(at(2)):
            fleet.settle(claim, outcome, **keys)
        sql("update procrastinate_jobs set pj_waits_for = 'time' where id = %s", jobs[outcome])
    assert [[(as_of(sql, minute, job) or ("",))[0] for minute in (0.5, 1.5, 3, 5)] for job in jobs.values()] == [
        ["waiting", "running", "scheduled", "waiting"],
        ["waiting", "running", "waiting", "waiting"],
        ["waiting", "running", "aborted", "aborted"],
    ]


def test_it_can_be_asked_of_a_queue_or_a_task_and_by_a_reader(fleet: Fleet, sql: Sql) -> None:
    with fleet.at(at(0)):
        fleet.defer(queue="a")
        fleet.defer(queue="b", task="mail")
    sql("set role procjobs_reader")
    count = "select count(*) from procjobs.jobs_as_of('2031-05-10 13:00+00', {})"
    assert [sql.one(count.format(filters)) for filters in ("null", "'a'", "null, 'mail'", "'a', 'mail'")] == [
        2,
        1,
        1,
        0,
    ]


def test_the_timeline_tells_actions_of_any_kind_with_their_values(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    sql(
        "insert into procjobs.job_events (job_id, at, type, actor, detail) "
        "values (%s, now() + interval '1 s', 'moved', 'ann', %s)",
        job,
        '{"reason": "too slow", "from": "a", "to": "b", "n": null}',
    )
    assert sql("select event, detail from procjobs.job_timeline(%s)", job)[1:] == [
        ("moved", "by ann: too slow: from a, to b"),
    ]


def values(sql: Sql, minute: float, *columns: str, **filters: str) -> list[tuple[object, ...]]:
    given = "".join(f", {name} => '{value}'" for name, value in filters.items())
    return sql(f"select {', '.join(columns)} from procjobs.jobs_as_of(%s{given}) order by id", at(minute))


def born(fleet: Fleet, sql: Sql, minute: float, **options: Any) -> int:
    """A job of that minute: the engine's path of Python takes the server's clock for its birth."""
    with fleet.at(at(minute)):
        job = fleet.defer(**options)
        sql("update procrastinate_jobs set pj_created_at = procjobs.clock() where id = %s", job)
    return job


def test_a_job_is_as_it_was_before_it_was_edited(fleet: Fleet, sql: Sql) -> None:
    job = born(fleet, sql, 0, queue="a", args='{"n": 1}', scheduled_at=3600)
    with fleet.at(at(10)):
        sql("select procjobs.edit_job(%s, priority => 5, args => '{\"n\": 2}', lock => 'l', tags => '{x}')", job)
    with fleet.at(at(20)):
        sql("select procjobs.edit_job(%s, priority => 9, queue => 'b', scheduled_at => %s)", job, at(45))
    with fleet.at(at(30)):
        sql("select procjobs.edit_job(%s, priority => 1, args => '{\"n\": 3}', tags => '{}')", job)
    columns = ("queue_name", "priority", "args ->> 'n'", "lock", "tags", f"scheduled_at - '{at(0)}'")
    hour, sooner = timedelta(hours=1), timedelta(minutes=45)
    assert [values(sql, minute, *columns) for minute in (5, 15, 25, 35)] == [
        [("a", 0, "1", None, None, hour)],
        [("a", 5, "2", "l", ["x"], hour)],
        [("b", 9, "2", "l", ["x"], sooner)],
        [("b", 1, "3", "l", None, sooner)],
    ]
    assert [values(sql, minute, "id", queue="a") for minute in (5, 25)] == [[(job,)], []]
    assert [values(sql, minute, "id", queue="b") for minute in (5, 25)] == [[], [(job,)]]
    with fleet.at(at(49)):
        sql("select procjobs.cancel(%s)", job)  # it goes to the history
    assert values(sql, 15, *columns[:3]) == [("a", 5, "2")]


@pytest.mark.parametrize(
    ("first", "edits", "expected"),
    [
        (None, {2: 6}, ["waiting", "scheduled", "scheduled", "waiting"]),
        (240, {2: 6}, ["scheduled", "scheduled", "scheduled", "waiting"]),
        (3600, {2: 2}, ["scheduled", "waiting", "waiting", "waiting"]),
        (3600, {2: 4, 3: 45}, ["scheduled", "scheduled", "scheduled", "scheduled"]),
    ],
)
def test_until_when_a_job_was_to_wait_is_told_as_it_was_then(
    fleet: Fleet, sql: Sql, first: int | None, edits: dict[int, int], expected: list[str]
) -> None:
    job = born(fleet, sql, 0, scheduled_at=first)
    for minute, due in edits.items():
        with fleet.at(at(minute)):
            sql("select procjobs.edit_job(%s, scheduled_at => %s)", job, at(due))
    assert [(as_of(sql, minute, job) or ("",))[0] for minute in (1, 2.5, 5, 7)] == expected


def test_a_retry_that_was_put_off_waits_until_then(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=2, backoff_base=240, backoff_jitter=False)
    worker = fleet.worker(lease=86400)
    job = born(fleet, sql, 0)
    with fleet.at(at(1)):
        (claim,) = fleet.claim(worker)
    with fleet.at(at(2)):
        fleet.settle(claim, "failed")
    with fleet.at(at(3)):
        sql("select procjobs.edit_job(%s, scheduled_at => %s, priority => 2)", job, at(9))
    seen = [values(sql, minute, "state", f"scheduled_at - '{at(0)}'", "priority") for minute in (0.5, 2.5, 7, 10)]
    assert seen == [
        [("waiting", None, 0)],
        [("scheduled", timedelta(minutes=6), 0)],
        [("scheduled", timedelta(minutes=9), 2)],
        [("waiting", timedelta(minutes=9), 2)],
    ]


def test_readers_see_no_arguments_of_the_past(fleet: Fleet, sql: Sql) -> None:
    job = born(fleet, sql, 0, args='{"n": 1}')
    with fleet.at(at(1)):
        sql("select procjobs.edit_job(%s, priority => 5, args => '{\"n\": 2}')", job)
    sql("set role procjobs_reader")
    assert [values(sql, minute, "priority", "args") for minute in (0.5, 2)] == [[(0, None)], [(5, None)]]


def test_a_moment_before_what_is_kept_is_refused(fleet: Fleet, sql: Sql) -> None:
    with fleet.at(at(0)):
        asked = "select procjobs.jobs_as_of(procjobs.clock() - %s::interval, %s::text)"
        assert sql(asked, "6 days", None) == []
        with pytest.raises(psycopg.Error) as refused:
            sql(asked, "9 days", None)
        assert refused.value.sqlstate == "PJ009" and "2031-05-03" in str(refused.value.diag.message_detail)
        sql("select procjobs.set_retention('1 hour', queue => 'quick'), procjobs.set_retention(queue => 'kept')")
        assert sql(asked, "90 days", "kept") == [] == sql(asked, "59 min", "quick")
        with pytest.raises(psycopg.Error, match="not known any more"):
            sql(asked, "61 min", "quick")
