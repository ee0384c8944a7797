"""Why a job does not run, and how it came to where it is, in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .conftest import Sql, Worker

MakeWorker = Callable[..., Worker]
Now = Callable[[str], None]


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int], now: Now) -> None:
    register("noop", max_attempts=3, backoff_base=60, backoff_jitter=False)
    now("2030-01-01 12:00Z")


def defer(sql: Sql, options: str = "") -> int:
    return int(sql.one(f"select procjobs.defer('noop' {options})"))


def why(sql: Sql, job: int) -> str:
    return str(sql.one("select procjobs.why_not_running(%s)", job))


def test_no_worker(sql: Sql) -> None:
    assert why(sql, defer(sql)) == "no worker is alive: start one with procjobs worker"


def test_ready(sql: Sql, worker: MakeWorker) -> None:
    worker("noop")
    first, second = defer(sql), defer(sql)
    urgent = defer(sql, ", priority => 5")
    assert why(sql, urgent) == "ready: a worker will take it, no job before it in queue default"
    assert why(sql, first) == "ready: a worker will take it, 1 job before it in queue default"
    assert why(sql, second) == "ready: a worker will take it, 2 jobs before it in queue default"


def test_not_due(sql: Sql, worker: MakeWorker) -> None:
    worker("noop")
    job = defer(sql, ", scheduled_at => '2030-01-01 14:05Z'")
    assert why(sql, job) == "not due until 2030-01-01 14:05:00 UTC, in 2 h 5 min"


def test_waits_for_a_retry(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    job = defer(sql)
    running.claim()
    running.fail(job)
    assert why(sql, job) == "not due until 2030-01-01 12:01:00 UTC, in 1 min (1 runs failed, 0 crashed)"


def test_paused(sql: Sql, worker: MakeWorker) -> None:
    worker("noop")
    job = defer(sql)
    sql("select procjobs.pause_queue('default', 'provider down')")
    who = sql.one("select session_user::text")
    assert why(sql, job) == f"queue default was paused by {who} at 2030-01-01 12:00:00 UTC: provider down"


def test_the_lock_is_held(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop", name="bob")
    holder, job = defer(sql, ", lock => 'account 7'"), defer(sql, ", lock => 'account 7'")
    running.claim()
    assert (
        why(sql, job)
        == f"lock 'account 7' is held by job {holder}, running since 2030-01-01 12:00:00 UTC on worker bob"
    )


def test_another_goes_first_on_the_lock(sql: Sql, worker: MakeWorker) -> None:
    worker("noop")
    first, job = defer(sql, ", lock => 'l'"), defer(sql, ", lock => 'l'")
    assert why(sql, job).startswith(f"job {first} goes first on lock 'l', waiting since ")


@pytest.mark.parametrize(
    ("knows", "listens", "words"),
    [
        ("noop", ["other"], "no live worker listens to queue default"),
        ("other", None, "no live worker knows task noop"),
    ],
)
def test_no_worker_for_it(sql: Sql, worker: MakeWorker, knows: str, listens: list[str] | None, words: str) -> None:
    worker(knows, queues=listens)
    assert why(sql, defer(sql)) == words


def test_no_single_worker_for_it(sql: Sql, worker: MakeWorker) -> None:
    worker("noop", queues=["other"])
    worker("other")
    assert why(sql, defer(sql)) == "no live worker both listens to queue default and knows task noop"


def test_a_parked_job(sql: Sql, worker: MakeWorker) -> None:
    job = defer(sql)
    worker("other").claim()
    assert sql.one("select state from procjobs.jobs") == "parked"
    assert why(sql, job) == "no live worker knows task noop"


@pytest.mark.parametrize("gone", ["stop_worker", "drain_worker", None])
def test_a_worker_that_leaves_or_is_silent_does_not_count(
    sql: Sql, worker: MakeWorker, now: Now, gone: str | None
) -> None:
    leaving = worker("noop")
    if gone:
        sql(f"select procjobs.{gone}(%s)", leaving.id)
    else:
        now("2030-01-01 12:05Z")
    assert why(sql, defer(sql)).startswith("no worker is alive")


def test_a_worker_of_upstreams_may_take_it(sql: Sql) -> None:
    sql("insert into procrastinate_workers (last_heartbeat) values ('2030-01-01 12:00Z')")
    assert why(sql, defer(sql)).startswith("ready: ")


def test_all_slots_are_taken(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop", concurrency=2)
    defer(sql)
    defer(sql)
    job = defer(sql)
    running.claim(2)
    assert why(sql, job) == "all 2 slots of its workers are taken"


def test_every_reason_is_told(sql: Sql) -> None:
    defer(sql, ", lock => 'l', priority => 1")
    job = defer(sql, ", lock => 'l', scheduled_at => '2030-01-02 12:00Z'")
    sql("select procjobs.pause_queue('other')")
    assert [part.split()[0] for part in why(sql, job).split("; ")] == ["not", "job", "no"]


def test_running(sql: Sql, worker: MakeWorker, now: Now) -> None:
    running = worker("noop", name="bob")
    job = defer(sql)
    running.claim()
    now("2030-01-01 12:00:20Z")
    words = "it is running: since 2030-01-01 12:00:00 UTC (20 s), run 1, on worker bob (host, process 7)"
    assert why(sql, job) == words
    sql("select procjobs.cancel(%s, 'wrong customer')", job)
    who = sql.one("select session_user::text")
    assert why(sql, job) == f"{words}; {who} asked to stop it at 2030-01-01 12:00:20 UTC: wrong customer"


def test_running_on_a_worker_that_is_silent_or_gone(sql: Sql, worker: MakeWorker, now: Now) -> None:
    running = worker("noop")
    job = defer(sql)
    running.claim()
    now("2030-01-01 12:00:40Z")
    assert "last heard of at 2030-01-01 12:00:00 UTC" in why(sql, job)
    sql("select procjobs.stop_worker(%s)", running.id)
    assert "that worker is gone" in why(sql, job)


def test_over(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    done, stopped, letter = defer(sql), defer(sql), defer(sql, ", max_attempts => 1")
    sql("select procjobs.cancel(%s, 'wrong')", stopped)
    running.claim()
    running.finish(done)
    running.fail(letter)
    assert why(sql, done) == "it is over: succeeded at 2030-01-01 12:00:00 UTC"
    assert why(sql, stopped) == "it is over: cancelled at 2030-01-01 12:00:00 UTC (wrong)"
    assert why(sql, letter) == (
        "it failed for good at 2030-01-01 12:00:00 UTC after 1 runs and 0 crashes: "
        f"select procjobs.retry({letter}) lets it run again"
    )


# timeline


def timeline(sql: Sql, job: int) -> list[tuple[str | None, ...]]:
    query = "select to_char(at at time zone 'UTC', 'HH24:MI:SS'), event, detail from procjobs.job_timeline(%s)"
    return sql(query, job)


def test_the_life_of_a_job(sql: Sql, worker: MakeWorker, now: Now) -> None:
    running = worker("noop", name="bob")
    who = sql.one("select session_user::text")
    job = defer(sql, ", max_attempts => 2, lock => 'l'")
    sql("update procrastinate_jobs set pj_created_at = '2030-01-01 12:00Z'")
    now("2030-01-01 12:00:01Z")
    running.claim()
    now("2030-01-01 12:00:02Z")
    running.fail(job, "no route")
    now("2030-01-01 12:01:02Z")
    sql("select procjobs.promote_due()")
    running.claim()
    now("2030-01-01 12:01:03Z")
    running.fail(job, "no route")
    now("2030-01-01 12:02:00Z")
    sql("select procjobs.retry(%s)", job)
    now("2030-01-01 12:02:01Z")
    running.claim()
    now("2030-01-01 12:02:02Z")
    sql("select procjobs.cancel(%s, 'enough')", job)
    running.finish(job)
    assert timeline(sql, job) == [
        ("12:00:00", "enqueued", "task noop in queue default, lock l"),
        ("12:00:01", "started", "run 1 on worker bob"),
        ("12:00:02", "failed", "ValueError: no route; again at 2030-01-01 12:01:02 UTC"),
        ("12:01:02", "started", "run 2 on worker bob"),
        ("12:01:03", "failed", "ValueError: no route"),
        ("12:02:00", "retried", f"by {who}: was failed"),
        ("12:02:01", "started", "run 1 on worker bob"),
        ("12:02:02", "cancel_requested", f"by {who}: enough"),
        ("12:02:02", "succeeded", "a cancel request came too late"),
    ]


def test_an_unknown_job_has_no_timeline(sql: Sql) -> None:
    assert timeline(sql, 0) == []


def test_a_report_has_everything(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    job = defer(sql)
    running.claim()
    running.fail(job)
    report: dict[str, Any] = sql.one("select procjobs.job_report(%s)", job)
    columns = sql.one(
        "select array_agg(attname::text) from pg_attribute where attrelid = 'procjobs.jobs'::regclass and attnum > 0"
    )
    assert set(report) == {*columns, "why_not_running", "runs", "timeline"}
    assert report["state"] == "scheduled" and report["error"] == "ValueError: boom"
    assert [run["outcome"] for run in report["runs"]] == ["failed"]
    assert [moment["event"] for moment in report["timeline"]] == ["enqueued", "started", "failed"]
    assert report["why_not_running"] == why(sql, job)
