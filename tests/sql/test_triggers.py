"""The triggers on the job table keep our columns right whoever writes: people, and upstream's own functions."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .conftest import Sql, Worker


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("noop", max_attempts=3)


def defer(sql: Sql, options: str = "") -> int:
    return int(sql.one(f"select procjobs.defer('noop' {options})"))


def upstream_claim(sql: Sql) -> int:
    worker = sql.one("select worker_id from procrastinate_register_worker_v1()")
    return int(sql.one("select id from procrastinate_fetch_job_v2(null, %s)", worker))


def test_upstreams_claim_counts_as_one(sql: Sql) -> None:
    job = defer(sql)
    assert upstream_claim(sql) == job
    assert sql("select pj_lease, pj_started_at is not null, pj_waits_for from procrastinate_jobs") == [(1, True, None)]


def test_our_claim_counts_once(sql: Sql, worker: Callable[..., Worker]) -> None:
    job = defer(sql)
    claimed = worker("noop")
    claimed.claim()
    assert claimed.leases == {job: 1}


@pytest.mark.parametrize("status", ["succeeded", "failed", "aborted"])
def test_upstreams_finish_leaves_the_time(sql: Sql, status: str) -> None:
    job = defer(sql)
    upstream_claim(sql)
    sql("select procrastinate_finish_job_v1(%s, %s, false)", job, status)
    assert sql("select status::text, finished_at is not null from procjobs.jobs") == [(status, True)]


def test_upstreams_retry_of_a_dead_letter_waits_and_may_fail_again(sql: Sql) -> None:
    job = defer(sql)
    upstream_claim(sql)
    sql("select procrastinate_finish_job_v1(%s, 'failed', false)", job)
    ended = sql.one("select finished_at from procjobs.jobs")
    sql("select procrastinate_retry_job_v2(%s, now() + interval '1 hour', null, null, null)", job)
    assert sql("select state from procjobs.jobs") == [("scheduled",)]
    sql("select procrastinate_retry_job_v2(id, null, null, null, null) from procrastinate_jobs where status = 'failed'")
    sql("update procrastinate_jobs set scheduled_at = null")
    assert upstream_claim(sql) == job
    sql("select procrastinate_finish_job_v1(%s, 'failed', false)", job)
    assert sql.one("select finished_at from procjobs.jobs") > ended


@pytest.mark.parametrize(
    ("before", "after", "state"),
    [
        ("null", "now() + interval '1 hour'", "scheduled"),
        ("now() + interval '1 hour'", "now() + interval '2 hours'", "scheduled"),
        ("now() + interval '1 hour'", "null", "waiting"),
        ("now() + interval '1 hour'", "now() - interval '1 hour'", "waiting"),
    ],
)
def test_another_time_by_hand_counts_at_once(sql: Sql, before: str, after: str, state: str) -> None:
    defer(sql, f", scheduled_at => {before}")
    sql(f"update procrastinate_jobs set scheduled_at = {after}")
    assert sql.one("select state from procjobs.jobs") == state


def test_deleting_by_hand_leaves_nothing_behind(sql: Sql) -> None:
    sql("select procrastinate_defer_periodic_job_v2('q', null, null, 'noop', 0, '', 1, '{}')")
    job = sql.one("select id from procrastinate_jobs")
    sql("insert into procrastinate_events (job_id, type) values (%s, 'deferred')", job)  # as adopted jobs have them
    sql("delete from procrastinate_jobs")
    assert sql.one("select count(*) from procrastinate_events") == 0
    assert sql("select job_id from procrastinate_periodic_defers") == [(None,)]
