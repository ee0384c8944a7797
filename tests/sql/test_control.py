"""Cancelling, retrying, pausing: what people do to jobs and queues."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from psycopg.errors import Diagnostic

from .conftest import Sql, Worker

Refused = Callable[..., Diagnostic]
Another = Callable[[], psycopg.Connection[Any]]
MakeWorker = Callable[..., Worker]


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("noop", max_attempts=3, backoff_base=60, backoff_jitter=False)


def defer(sql: Sql, options: str = "") -> int:
    return int(sql.one(f"select procjobs.defer('noop' {options})"))


def state(sql: Sql, job: int) -> str:
    return str(sql.one("select state from procjobs.jobs where id = %s", job))


def dead(sql: Sql, worker: Worker, options: str = "") -> int:
    """A job that failed for good."""
    job = defer(sql, f", max_attempts => 1 {options}")
    assert worker.claim() == [job]
    assert worker.fail(job) == "failed"
    return job


# cancel


def test_a_waiting_job_is_cancelled_at_once_and_kept_in_the_history(sql: Sql, worker: MakeWorker) -> None:
    job = defer(sql, ", args => '{\"a\": 1}', tags => '{t}'")
    assert sql.one("select procjobs.cancel(%s, 'not needed')", job) == "cancelled"
    assert worker("noop").claim() == []
    row = "select status::text, note, args, tags, finished_at is not null from procjobs.jobs where id = %s"
    assert sql(row, job) == [("cancelled", "not needed", {"a": 1}, ["t"], True)]
    assert sql("select action, actor, detail from procjobs.actions where job_id = %s", job) == [
        ("cancelled", sql.one("select session_user::text"), {"reason": "not needed"})
    ]
    assert sql.one("select cancel ->> 'reason' from procjobs.job_history where id = %s", job) == "not needed"


def test_a_running_job_is_asked_to_stop_and_the_first_reason_is_kept(
    sql: Sql, worker: MakeWorker, another: Another
) -> None:
    job = defer(sql)
    running = worker("noop")
    running.claim()
    listener = another()
    listener.autocommit = True
    listener.execute("listen procrastinate_any_queue_v1")
    assert sql.one("select procjobs.cancel(%s, 'first')", job) == "requested"
    assert sql.one("select procjobs.cancel(%s, 'second')", job) == "requested"
    assert sql.one("select (procjobs.heartbeat(%s)).abort_ids", running.id) == [job]
    (heard,) = listener.notifies(timeout=5, stop_after=1)
    assert "abort_job_requested" in heard.payload
    assert sql("select abort_requested, pj_cancel ->> 'reason' from procrastinate_jobs") == [(True, "first")]
    assert sql("select action from procjobs.actions") == [("cancel_requested",)]


def test_a_job_that_is_over_is_left_alone(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    done = defer(sql)
    running.claim()
    running.finish(done)
    letter = dead(sql, running)
    before = sql("select * from procjobs.jobs order by id")
    assert sql.one("select procjobs.cancel(%s)", done) == "finished"
    assert sql.one("select procjobs.cancel(%s)", letter) == "finished"
    assert sql("select * from procjobs.jobs order by id") == before
    assert sql("select * from procjobs.actions") == []


def test_cancelling_the_first_of_a_lock_lets_the_next_go(sql: Sql, worker: MakeWorker) -> None:
    first, second = defer(sql, ", lock => 'l'"), defer(sql, ", lock => 'l'")
    assert state(sql, second) == "blocked"
    sql("select procjobs.cancel(%s)", first)
    assert state(sql, second) == "waiting"
    assert worker("noop").claim() == [second]


def test_a_claim_under_way_is_waited_for(
    sql: Sql, worker: MakeWorker, another: Another, eventually: Callable[..., Any]
) -> None:
    job = defer(sql)
    claiming = another()
    claiming.execute("select * from procjobs.claim_jobs(%s, null, 10)", [worker("noop").id])
    other = another()
    answers: list[str] = []

    def cancel() -> None:
        answers.extend(other.execute("select procjobs.cancel(%s)", [job]).fetchone() or ())
        other.commit()

    thread = threading.Thread(target=cancel)
    thread.start()
    eventually(lambda: sql.one("select cardinality(pg_blocking_pids(%s)) > 0", other.info.backend_pid))
    claiming.commit()
    thread.join()
    assert answers == ["requested"]


@pytest.mark.parametrize(
    "call", ["cancel(0)", "retry(0)", "why_not_running(0)", "job_report(0)", "cancel(null)", "retry(null)"]
)
def test_an_unknown_job(refused: Refused, call: str) -> None:
    refused("PJ007", f"select procjobs.{call}")


# retry


def test_a_dead_letter_runs_again_with_all_its_attempts(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    job = dead(sql, running)
    sql("update procrastinate_jobs set pj_crashes = 2")
    assert sql.one("select procjobs.retry(%s)", job) is True
    row = "select state, attempts, crashes, finished_at, worker_id from procjobs.jobs where id = %s"
    assert sql(row, job) == [("waiting", 0, 0, None, None)]
    assert sql("select action, detail ->> 'was' from procjobs.actions") == [("retried", "failed")]
    assert running.claim() == [job]
    assert running.finish(job)


@pytest.mark.parametrize(
    "options", ["", ", lock => 'l', queueing_lock => 'q', unique_key => 'u', priority => 4, tags => '{t}'"]
)
def test_a_job_of_the_history_runs_again_as_it_was(sql: Sql, worker: MakeWorker, options: str) -> None:
    running = worker("noop")
    job = defer(sql, options)
    columns = "id, queue, task, priority, lock, queueing_lock, unique_key, tags, args, created_at, status, state"
    before = sql(f"select {columns} from procjobs.jobs")
    running.claim()
    old_lease = running.leases[job]
    running.finish(job)
    assert sql.one("select procjobs.retry(%s)", job) is True
    assert sql(f"select {columns} from procjobs.jobs") == before
    assert running.claim() == [job]
    assert running.leases[job] > old_lease, "an old finish must stay fenced off"


def test_a_cancelled_job_runs_again(sql: Sql, worker: MakeWorker) -> None:
    job = defer(sql)
    sql("select procjobs.cancel(%s)", job)
    sql("select procjobs.retry(%s)", job)
    assert worker("noop").claim() == [job]


def test_a_job_that_waits_for_its_retry_is_due_now_and_its_attempts_stay(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    job = defer(sql)
    running.claim()
    assert running.fail(job) == "retrying"
    assert state(sql, job) == "scheduled"
    assert running.claim() == []
    assert sql.one("select procjobs.retry(%s)", job) is True
    assert sql("select state, attempts from procjobs.jobs") == [("waiting", 1)]
    assert running.claim() == [job]


def test_a_job_that_waits_anyway_is_left_alone(sql: Sql) -> None:
    job = defer(sql)
    assert sql.one("select procjobs.retry(%s)", job) is False
    assert sql("select * from procjobs.actions") == []


def test_a_running_job_is_not_retried(sql: Sql, worker: MakeWorker, refused: Refused) -> None:
    job = defer(sql)
    worker("noop").claim()
    refused("PJ008", "select procjobs.retry(%s)", job)
    assert state(sql, job) == "running"


def test_a_retried_job_waits_for_its_lock(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    job = dead(sql, running, ", lock => 'l'")
    holder = defer(sql, ", lock => 'l'")
    running.claim()
    sql("select procjobs.retry(%s)", job)
    assert state(sql, job) == "blocked"
    running.finish(holder)
    assert running.claim() == [job]


@pytest.mark.parametrize("archived", [True, False])
@pytest.mark.parametrize(("key", "code"), [("queueing_lock", "PJ006"), ("unique_key", "PJ008")])
def test_a_key_that_another_job_has_now_is_in_the_way(
    sql: Sql, worker: MakeWorker, refused: Refused, archived: bool, key: str, code: str
) -> None:
    running = worker("noop")
    if archived:
        job = defer(sql, f", {key} => 'k'")
        running.claim()
        running.finish(job)
    else:
        job = dead(sql, running, f", {key} => 'k'")
    other = defer(sql, f", {key} => 'k'")
    before = sql("select * from procjobs.jobs order by id")
    assert f"job {other}" in str(refused(code, "select procjobs.retry(%s)", job).message_detail)
    assert sql("select * from procjobs.jobs order by id") == before


def test_two_people_retry_one_job_of_the_history_at_once(
    sql: Sql, worker: MakeWorker, another: Another, eventually: Callable[..., Any]
) -> None:
    running = worker("noop")
    job = defer(sql)
    running.claim()
    running.finish(job)
    first, second = another(), another()
    answers: list[bool] = []
    first.execute("select procjobs.retry(%s)", [job])

    def retry() -> None:
        answers.extend(second.execute("select procjobs.retry(%s)", [job]).fetchone() or ())
        second.commit()

    thread = threading.Thread(target=retry)
    thread.start()
    eventually(lambda: sql.one("select cardinality(pg_blocking_pids(%s)) > 0", second.info.backend_pid))
    first.commit()
    thread.join()
    assert answers == [False]
    assert sql.one("select count(*) from procjobs.jobs") == 1


def test_dead_letters_are_retried_many_at_once(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    letters = [dead(sql, running) for _ in range(3)]
    assert sql("select procjobs.retry(id) from procjobs.dead_letters where task = 'noop'") == [(True,)] * 3
    assert running.claim() == letters


def test_a_retried_job_wakes_a_worker(sql: Sql, worker: MakeWorker, another: Another) -> None:
    job = dead(sql, worker("noop"))
    listener = another()
    listener.autocommit = True
    listener.execute('listen "procrastinate_queue_v1#default"')
    sql("select procjobs.retry(%s)", job)
    assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1


# pause and resume


def test_a_paused_queue_is_not_claimed_from_and_others_are(sql: Sql, worker: MakeWorker) -> None:
    held, free = defer(sql, ", queue => 'mail'"), defer(sql, ", queue => 'reports'")
    assert sql.one("select procjobs.pause_queue('mail', 'provider down')") is True
    running = worker("noop")
    assert running.claim() == [free]
    assert sql.one("select procjobs.resume_queue('mail')") is True
    assert running.claim() == [held]


def test_the_first_reason_of_a_pause_is_kept(sql: Sql) -> None:
    assert sql.one("select procjobs.pause_queue('mail', 'first')") is True
    assert sql.one("select procjobs.pause_queue('mail', 'second')") is False
    assert sql("select paused_by, pause_reason from procjobs.queues where name = 'mail'") == [
        (sql.one("select session_user::text"), "first")
    ]


def test_resuming_what_is_not_paused(sql: Sql) -> None:
    assert sql.one("select procjobs.resume_queue('mail')") is False


@pytest.mark.parametrize("name", ["", None, "q" * 129])
def test_a_queue_needs_a_name(refused: Refused, name: str | None) -> None:
    assert "procjobs.queues" in str(refused("PJ010", "select procjobs.pause_queue(%s)", name).message_hint)


def test_resuming_wakes_workers(sql: Sql, another: Another) -> None:
    sql("select procjobs.pause_queue('mail')")
    listener = another()
    listener.autocommit = True
    listener.execute('listen "procrastinate_queue_v1#mail"')
    sql("select procjobs.resume_queue('mail')")
    assert len(list(listener.notifies(timeout=5, stop_after=1))) == 1


def test_a_paused_queue_does_not_hold_up_a_lock_and_takes_its_turn_when_resumed(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    paused = defer(sql, ", queue => 'mail', lock => 'l', priority => 5")
    sql("select procjobs.pause_queue('mail')")
    free = defer(sql, ", queue => 'other', lock => 'l'")
    sql("select procjobs.sweep_locks()")
    assert running.claim() == [free]
    running.finish(free)
    sql("select procjobs.resume_queue('mail')")
    assert running.claim() == [paused]


def test_a_lock_that_came_free_during_a_pause_is_taken_up_when_resumed(sql: Sql, worker: MakeWorker) -> None:
    running = worker("noop")
    holder = defer(sql, ", queue => 'other', lock => 'l'")
    running.claim()
    held = defer(sql, ", queue => 'mail', lock => 'l'")
    sql("select procjobs.pause_queue('mail')")
    running.finish(holder)
    assert state(sql, held) == "blocked"
    sql("select procjobs.resume_queue('mail')")
    assert state(sql, held) == "waiting"
    assert running.claim() == [held]


def test_pausing_a_queue_full_of_jobs_touches_none_of_them(sql: Sql) -> None:
    for _ in range(20):
        defer(sql, ", queue => 'mail'")
    before = sql("select xmin::text, id from procrastinate_jobs order by id")
    sql("select procjobs.pause_queue('mail')")
    sql("select procjobs.resume_queue('mail')")
    assert sql("select xmin::text, id from procrastinate_jobs order by id") == before
