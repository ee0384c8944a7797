"""The finish: a success ends its own run and no other, once, and lets the next job of its lock go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, Thread, opened, waits_for_a_row

DISPOSALS = ["archive", "keep", "delete"]


# -- where finished jobs go ----------------------------------------------------------------------------------------


def test_the_history_has_everything_there_was_to_know(fleet: Fleet, sql: Sql) -> None:
    fleet.policy()
    job = sql.one(
        "select procjobs.defer('work', '{\"a\": 1}', queue => 'mail', priority => 3, lock => 'l', "
        "queueing_lock => 'ql', "
        "unique_key => 'uk', scheduled_at => now() - interval '1 h', max_attempts => 4, tags => '{x,y}')"
    )
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    ((created_at, scheduled_at, started_at),) = sql(
        "select pj_created_at, scheduled_at, pj_started_at from procrastinate_jobs"
    )
    with fleet.at("2031-05-01 12:00+00"):
        assert fleet.finish(claim) == [job]

    assert sql("select count(*) from procrastinate_jobs") == [(0,)]
    columns = (
        "id, queue_name, task_name, priority, lock, queueing_lock, unique_key, args, tags, status::text, "
        "attempts, crashes, "
        "max_attempts, lease, worker_id, created_at, scheduled_at, started_at, "
        "finished_at = '2031-05-01 12:00+00', note, cancel"
    )
    assert sql(f"select {columns} from procjobs.job_history") == [
        (
            job, "mail", "work", 3, "l", "ql", "uk", {"a": 1}, ["x", "y"], "succeeded", 1, 0,
            4, 1, worker, created_at, scheduled_at, started_at, True, None, None,
        )
    ]  # fmt: skip


def test_keep_leaves_the_job_where_procrastinate_leaves_it(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    assert fleet.finish(*fleet.claim(fleet.worker()), disposal="keep") == [job]
    assert sql(
        "select status::text, attempts, abort_requested, pj_finished_at is not null from procrastinate_jobs"
    ) == [("succeeded", 1, False, True)]
    assert sql("select * from procjobs.job_history") == []


def test_delete_forgets_the_job(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    fleet.finish(*fleet.claim(fleet.worker()), disposal="delete")
    assert fleet.status(job) == "forgotten"


def test_another_word_is_refused_with_the_choice_and_nothing_ends(fleet: Fleet) -> None:
    job = fleet.defer()
    claims = fleet.claim(fleet.worker())
    for word in ("burn", None):
        with pytest.raises(psycopg.Error) as refused:
            fleet.finish(*claims, disposal=word)  # type: ignore[arg-type]
        assert refused.value.sqlstate == "PJ009" and "archive, keep, delete" in (refused.value.diag.message_hint or "")
    assert fleet.status(job) == "doing"


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_nothing_is_left_that_points_to_a_job_that_is_gone(fleet: Fleet, sql: Sql, disposal: str) -> None:
    job = sql.one(
        "select procjobs.defer_periodic('work', 'id', 1000, 'default', 0, null, null, '{\"timestamp\": 1000}')"
    )
    sql("insert into procrastinate_events (job_id, type) values (%s, 'deferred')", job)
    fleet.finish(*fleet.claim(fleet.worker()), disposal=disposal)
    if disposal != "keep":
        assert sql("select job_id from procrastinate_periodic_defers") == [(None,)]
        assert sql("select * from procrastinate_events") == []
    assert sql.one("select procjobs.last_periodic('work', 'id')") == 1000


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_a_finished_queueing_lock_and_unique_key_are_free_again(fleet: Fleet, sql: Sql, disposal: str) -> None:
    fleet.policy()
    defer = "select procjobs.defer('work', queueing_lock => 'ql', unique_key => 'uk')"
    first = sql.one(defer)
    fleet.finish(*fleet.claim(fleet.worker()), disposal=disposal)
    assert sql.one(defer) > first


def test_a_cancel_request_that_came_too_late_is_said_so(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    claims = fleet.claim(fleet.worker())
    assert sql.one("select procjobs.cancel(%s, 'changed my mind')", job) == "requested"
    assert fleet.finish(*claims) == [job]
    ((status, note, cancel),) = sql("select status::text, note, cancel from procjobs.job_history")
    assert status == "succeeded" and "too late" in note and cancel["reason"] == "changed my mind"


# -- the fence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disposal", DISPOSALS)
@pytest.mark.parametrize("wrong", ["worker", "lease", "id"])
def test_a_finish_that_does_not_hold_the_lease_is_void(fleet: Fleet, sql: Sql, disposal: str, wrong: str) -> None:
    job = fleet.defer()
    (claim,) = fleet.claim(fleet.worker())
    other = replace(claim, **{wrong: getattr(claim, wrong) + 1})
    assert fleet.finish(other, disposal=disposal) == []
    assert sql("select id, status::text, pj_finished_at from procrastinate_jobs") == [(job, "doing", None)]
    assert fleet.finish(claim, disposal=disposal) == [job]


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_the_same_worker_with_a_lease_of_an_earlier_run_of_the_job_is_refused(fleet: Fleet, disposal: str) -> None:
    """The reply to its first claim was lost, the job given back and claimed again: only the second run counts."""
    job = fleet.defer()
    worker = fleet.worker()
    (lost,) = fleet.claim(worker)
    assert fleet.sql.one("select procjobs.release_unknown(%s, '{}')", worker) == 1
    (current,) = fleet.claim(worker)
    assert current.id == lost.id
    assert fleet.finish(lost, disposal=disposal) == []
    assert fleet.status(job) == "doing"
    assert fleet.finish(current, disposal=disposal) == [job]


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_a_zombie_ends_nothing_whatever_became_of_the_job(fleet: Fleet, disposal: str) -> None:
    job = fleet.defer()
    zombie = fleet.worker(name="zombie")
    (stale,) = fleet.claim(zombie)
    fleet.die(zombie)
    assert fleet.sql.one("select procjobs.rescue_jobs()") == 1

    assert fleet.finish(stale, disposal=disposal) == []  # it waits
    with fleet.at(fleet.later(3600)):
        fleet.sql("select procjobs.promote_due()")
    (current,) = fleet.claim(fleet.worker())
    assert fleet.finish(stale, disposal=disposal) == []  # another worker runs it
    assert fleet.finish(current, disposal=disposal) == [job]
    assert fleet.finish(stale, disposal=disposal) == []  # it is over


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_a_run_that_has_ended_does_not_end_again(fleet: Fleet, sql: Sql, disposal: str) -> None:
    """Its row may still be there, with its worker and its lease."""
    dead, kept = fleet.defer(), fleet.defer()
    lost, won = fleet.claim(fleet.worker(), 2)
    assert fleet.settle(lost, "failed") == "failed"
    assert fleet.finish(won, disposal="keep") == [kept]
    before = sql("select * from procrastinate_jobs order by id")
    assert fleet.finish(lost, won, disposal=disposal) == []
    assert sql("select * from procrastinate_jobs order by id") == before
    assert fleet.status(dead) == "failed"


def test_what_holds_ends_beside_what_does_not(fleet: Fleet) -> None:
    jobs = [fleet.defer() for _ in range(4)]
    first, second, third, fourth = fleet.claim(fleet.worker(), 4)
    stale = [replace(second, lease=7), replace(fourth, id=10**15)]
    assert fleet.finish(first, *stale, third, first, first) == [jobs[0], jobs[2]]
    assert [fleet.status(job) for job in jobs] == ["succeeded", "doing", "succeeded", "doing"]


def test_nothing_to_finish_is_nothing(sql: Sql) -> None:
    assert sql("select * from procjobs.finish_jobs(1, '{}', '{}')") == []
    assert sql("select * from procjobs.finish_jobs(1, '{1,2}', '{1}')") == []
    assert sql("select * from procjobs.finish_jobs(null, null, null)") == []


def test_one_of_two_reports_of_the_same_run_wins(dsn: str, fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(100)
    claims = fleet.claim(fleet.worker(), 100)
    start = threading.Barrier(3)

    def report(backwards: bool) -> list[int]:
        with opened(dsn) as mine:
            start.wait(10)
            halves = [claims[:50], claims[50:]]
            return [job for half in (halves[::-1] if backwards else halves) for job in mine.finish(*half)]

    threads = [Thread(lambda n=n: report(n == 1)) for n in range(3)]  # type: ignore[misc]
    ended = [job for thread in threads for job in thread.result()]
    assert sorted(ended) == sorted(claim.id for claim in claims)
    assert sql.one("select count(*) from procjobs.job_history") == 100


def test_a_finish_and_a_failure_of_one_run_do_not_both_count(
    fleet: Fleet, rival: Fleet, dsn: str, eventually: Callable[..., Any]
) -> None:
    job = fleet.defer()
    (claim,) = fleet.claim(fleet.worker())
    with opened(dsn) as observer:
        with fleet.sql.connection.transaction():
            assert fleet.finish(claim) == [job]
            loser = Thread(lambda: rival.settle(claim, "failed"))
            eventually(lambda: waits_for_a_row(observer.sql, rival.sql.connection))
        assert loser.result() == "stale"
    assert fleet.status(job) == "succeeded" and fleet.runs(job) == []


# -- whom a finish waits for ---------------------------------------------------------------------------------------


def test_a_waiting_job_that_somebody_holds_does_not_keep_the_finish(fleet: Fleet, rival: Fleet) -> None:
    """Somebody cancels in psql and goes to lunch before the commit: the worker must go on acknowledging."""
    running, head, tail = (fleet.defer(lock="l") for _ in range(3))
    claims = fleet.claim(fleet.worker())
    with rival.sql.connection.transaction():
        assert rival.sql.one("select procjobs.cancel(%s)", head) == "cancelled"
        fleet.sql("set lock_timeout = '300ms'")
        assert fleet.finish(*claims) == [running]
        fleet.sql("reset lock_timeout")
    fleet.sql("select procjobs.sweep_locks()")
    assert fleet.claim_ids(fleet.worker()) == [tail]


# -- the next job of the lock --------------------------------------------------------------------------------------


@pytest.mark.parametrize("disposal", DISPOSALS)
def test_the_next_job_of_the_lock_is_claimable_at_once(fleet: Fleet, disposal: str) -> None:
    worker = fleet.worker()
    first = fleet.defer(lock="l")
    (claim,) = fleet.claim(worker)
    low, high = fleet.defer(lock="l", queue="mail"), fleet.defer(lock="l", priority=5, queue="mail")
    assert fleet.claim(worker, 10) == []
    assert fleet.finish(claim, disposal=disposal) == [first]
    (claim,) = fleet.claim(worker, 10)
    assert claim.id == high
    fleet.finish(claim, disposal=disposal)
    assert fleet.claim_ids(worker, 10) == [low]


def test_workers_of_the_next_jobs_queue_are_told(fleet: Fleet, dsn: str) -> None:
    fleet.defer(lock="l")
    claims = fleet.claim(fleet.worker())
    fleet.defer(lock="l", queue="mail")
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute('listen "procrastinate_queue_v1#mail"')
        fleet.finish(*claims)
        assert [notify.channel for notify in listener.notifies(timeout=5, stop_after=1)] == [
            "procrastinate_queue_v1#mail"
        ]


def test_a_success_that_frees_nothing_tells_nobody(fleet: Fleet, dsn: str) -> None:
    fleet.defer()
    claims = fleet.claim(fleet.worker())
    with psycopg.connect(dsn, autocommit=True) as listener:
        listener.execute('listen "procrastinate_any_queue_v1"')
        fleet.finish(*claims)
        listener.execute("notify procrastinate_any_queue_v1, 'end'")
        assert [notify.payload for notify in listener.notifies(timeout=5, stop_after=1)] == ["end"]
