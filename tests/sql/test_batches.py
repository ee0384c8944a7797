"""Batches: what joins, what counts, and callbacks that are enqueued once, with the last end."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from .conftest import SEND, Sql, Worker

Refused = Callable[..., Any]
Another = Callable[[], psycopg.Connection[Any]]
Make = Callable[..., Worker]

CALLBACKS = """select procjobs.create_batch('import', on_finish => '{"task": "finished"}',
  on_success => '{"task": "succeeded"}', on_discard => '{"task": "discarded", "queue": "alerts", "priority": 5}')"""
COUNTS = "select state, total, waiting, running, succeeded, failed, cancelled from procjobs.batches where id = %s"


@pytest.fixture(autouse=True)
def tasks(register: Callable[..., int]) -> None:
    register("send", SEND, queue="mail", max_attempts=1)
    register("noop", max_attempts=1)
    for name in ("finished", "succeeded", "discarded"):
        register(name)


@pytest.fixture
def batch(sql: Sql) -> int:
    found: int = sql.one(CALLBACKS)
    return found


def join(sql: Sql, batch: int, n: int = 1) -> list[int]:
    return [sql.one("select procjobs.defer('noop', batch_id => %s)", batch) for _ in range(n)]


def seal(sql: Sql, batch: int) -> bool:
    return bool(sql.one("select procjobs.seal_batch(%s)", batch))


def callbacks(sql: Sql) -> list[str]:
    query = "select task_name from procrastinate_jobs where task_name not in ('noop', 'send') order by id"
    return [name for (name,) in sql(query)]


def test_callbacks_come_with_the_last_end_and_once(sql: Sql, batch: int, worker: Make) -> None:
    jobs = join(sql, batch, 3)
    running = worker("noop")
    running.claim()
    for job in jobs[:2]:
        running.finish(job)
    assert seal(sql, batch)
    assert not seal(sql, batch)
    assert sql(COUNTS, batch) == [("sealed", 3, 0, 1, 2, 0, 0)]
    assert callbacks(sql) == []
    running.finish(jobs[2])
    assert sql(COUNTS, batch) == [("finished", 3, 0, 0, 3, 0, 0)]
    assert callbacks(sql) == ["finished", "succeeded"]
    ids = sql.one("select array_agg(id order by id) from procrastinate_jobs")
    assert sql.one("select callback_ids from procjobs.batches") == ids
    sql("select procjobs.sweep_batches()")
    assert callbacks(sql) == ["finished", "succeeded"]


def test_an_open_batch_does_not_finish(sql: Sql, batch: int, worker: Make) -> None:
    (job,) = join(sql, batch)
    running = worker("noop")
    running.claim()
    running.finish(job)
    sql("select procjobs.sweep_batches()")
    assert sql(COUNTS, batch) == [("open", 1, 0, 0, 1, 0, 0)]
    assert callbacks(sql) == []
    seal(sql, batch)
    assert callbacks(sql) == ["finished", "succeeded"]


def test_an_empty_batch_is_over_when_it_is_sealed(sql: Sql, batch: int) -> None:
    assert sql.one("select progress from procjobs.batches") == 0
    seal(sql, batch)
    assert callbacks(sql) == ["finished", "succeeded"]
    assert sql.one("select progress from procjobs.batches") == 1


@pytest.mark.parametrize("treatment", ["archive", "keep", "delete"])
def test_every_treatment_of_finished_jobs_is_counted(sql: Sql, batch: int, worker: Make, treatment: str) -> None:
    jobs = join(sql, batch, 5)
    seal(sql, batch)
    running = worker("noop")
    running.claim()
    sql(
        "select procjobs.finish_jobs(%s, %s, %s, %s)",
        running.id, jobs[:3], [running.leases[job] for job in jobs[:3]], treatment,
    )  # fmt: skip
    more: dict[str, Any] = {"archive": {}, "keep": {"keep": True}, "delete": {"delete": True}}[treatment]
    assert running.fail(jobs[3], **more) == "failed"
    assert running.fail(jobs[4], **{**more, "outcome": "discarded", "reason": "no use"}) == "discarded"
    assert sql(COUNTS, batch) == [("finished", 5, 0, 0, 3, 1, 1)]
    assert callbacks(sql) == ["finished", "discarded"]
    assert sql("select queue_name, priority from procrastinate_jobs where task_name = 'discarded'") == [("alerts", 5)]


def test_upstreams_own_end_of_a_job_counts(sql: Sql, batch: int, worker: Make) -> None:
    (job,) = join(sql, batch)
    seal(sql, batch)
    worker("noop").claim()
    sql("select procrastinate_finish_job_v1(%s, 'succeeded', false)", job)
    assert sql(COUNTS, batch) == [("finished", 1, 0, 0, 1, 0, 0)]


def test_cancelled_and_deleted_jobs_count_as_cancelled(sql: Sql, batch: int) -> None:
    first, second = join(sql, batch, 2)
    seal(sql, batch)
    sql("select procjobs.cancel(%s)", first)
    assert sql(COUNTS, batch) == [("sealed", 2, 1, 0, 0, 0, 1)]
    sql("delete from procrastinate_jobs where id = %s", second)
    assert sql(COUNTS, batch) == [("finished", 2, 0, 0, 0, 0, 2)]
    assert callbacks(sql) == ["finished", "discarded"]


def test_a_retry_by_policy_keeps_the_batch_waiting(sql: Sql, batch: int, worker: Make) -> None:
    sql.one("select procjobs.defer('noop', batch_id => %s, max_attempts => 2)", batch)
    seal(sql, batch)
    running = worker("noop")
    (job,) = running.claim()
    assert running.fail(job) == "retrying"
    assert sql(COUNTS, batch) == [("sealed", 1, 1, 0, 0, 0, 0)]


def test_a_dead_letter_that_is_retried_before_the_end_counts_again(sql: Sql, batch: int, worker: Make) -> None:
    first, second = join(sql, batch, 2)
    seal(sql, batch)
    running = worker("noop")
    running.claim()
    running.fail(first)
    assert sql(COUNTS, batch) == [("sealed", 2, 0, 1, 0, 1, 0)]
    sql("select procjobs.retry(%s)", first)
    assert sql(COUNTS, batch) == [("sealed", 2, 1, 1, 0, 0, 0)]
    running.finish(second)
    assert callbacks(sql) == []
    running.claim()
    running.finish(first)
    assert callbacks(sql) == ["finished", "succeeded"]


def test_a_dead_letter_that_is_retried_after_the_end_calls_nothing_again(sql: Sql, batch: int, worker: Make) -> None:
    (job,) = join(sql, batch)
    seal(sql, batch)
    running = worker("noop")
    running.claim()
    running.fail(job)
    assert callbacks(sql) == ["finished", "discarded"]
    sql("select procjobs.retry(%s)", job)
    assert sql(COUNTS, batch) == [("finished", 1, 1, 0, 0, 0, 0)]
    assert job in running.claim()
    running.finish(job)
    assert sql(COUNTS, batch) == [("finished", 1, 0, 0, 1, 0, 0)]
    assert callbacks(sql) == ["finished", "discarded"]


def test_a_job_retried_from_the_history_runs_by_itself(sql: Sql, batch: int) -> None:
    first, _ = join(sql, batch, 2)
    seal(sql, batch)
    sql("select procjobs.cancel(%s)", first)
    sql("select procjobs.retry(%s)", first)
    assert sql(COUNTS, batch) == [("sealed", 2, 1, 0, 0, 0, 1)]


def test_a_dead_letter_that_is_forgotten_stays_counted(sql: Sql, batch: int, worker: Make) -> None:
    (job,) = join(sql, batch)
    running = worker("noop")
    running.claim()
    running.fail(job)
    sql("delete from procrastinate_jobs where id = %s", job)
    assert sql(COUNTS, batch) == [("open", 1, 0, 0, 0, 1, 0)]


def test_nothing_joins_a_sealed_or_unknown_batch(sql: Sql, batch: int, refused: Refused) -> None:
    seal(sql, batch)
    refused("PJ008", "select procjobs.defer('noop', batch_id => %s)", batch)
    refused("PJ007", "select procjobs.defer('noop', batch_id => 999)")
    refused("PJ007", "select procjobs.seal_batch(999)")
    refused("PJ008", "select * from procjobs.defer_many(%s)", json.dumps([{"task": "noop", "batch_id": batch}]))


def test_sealing_waits_for_who_is_adding(
    sql: Sql, batch: int, another: Another, eventually: Callable[..., Any]
) -> None:
    other = another()
    other.execute("select procjobs.defer('noop', batch_id => %s)", (batch,))
    sealing = another()
    sealing.autocommit = True
    thread = threading.Thread(target=lambda: sealing.execute("select procjobs.seal_batch(%s)", (batch,)))
    thread.start()
    eventually(lambda: sql.one("select count(*) from pg_stat_activity where wait_event = 'advisory'") == 1)
    other.commit()
    thread.join()
    assert sql(COUNTS, batch) == [("sealed", 1, 1, 0, 0, 0, 0)]


def test_callbacks_are_checked_when_the_batch_is_opened(refused: Refused) -> None:
    diag = refused("PJ001", "select procjobs.create_batch('b', on_finish => '{\"task\": \"nothing\"}')")
    assert diag.message_primary.startswith("on_finish: ")
    refused("PJ002", "select procjobs.create_batch('b', on_success => '{\"task\": \"send\"}')")
    refused("PJ009", "select procjobs.create_batch('b', on_discard => '{\"args\": {}}')")
    refused("PJ010", "select procjobs.create_batch('')")


def test_a_callback_that_takes_the_batch_is_told_it(sql: Sql, register: Callable[..., int]) -> None:
    schema = {"type": "object", "properties": {"batch_id": {"type": "integer"}}, "required": ["batch_id"]}
    register("report", schema)
    batch = sql.one("select procjobs.create_batch('b', on_finish => '{\"task\": \"report\"}')")
    seal(sql, batch)
    assert sql.one("select args from procrastinate_jobs") == {"batch_id": batch}


def test_a_callback_that_cannot_be_enqueued_does_not_undo_the_end(sql: Sql, batch: int, worker: Make) -> None:
    (job,) = join(sql, batch)
    seal(sql, batch)
    running = worker("noop")
    running.claim()
    sql("delete from procjobs.tasks where name = 'finished'")
    assert running.finish(job)
    ((state, problem),) = sql("select state, problem from procjobs.batches")
    assert state == "finished"
    assert "finished" in problem


def test_ends_belong_to_their_transaction(sql: Sql, batch: int, worker: Make, another: Another) -> None:
    join(sql, batch)
    seal(sql, batch)
    other = another()
    other.execute("delete from procrastinate_jobs")
    other.rollback()
    assert sql(COUNTS, batch) == [("sealed", 1, 1, 0, 0, 0, 0)]
    other.execute("delete from procrastinate_jobs")
    other.commit()
    assert callbacks(sql) == ["finished", "discarded"]


def test_the_last_two_jobs_ended_at_once_call_back_once(sql: Sql, dsn: str, worker: Make) -> None:
    for _ in range(25):
        batch = sql.one(CALLBACKS)
        jobs = join(sql, batch, 2)
        seal(sql, batch)
        running = worker("noop")
        running.claim()
        end_together(dsn, [[job] for job in jobs], running)
        assert callbacks(sql) == ["finished", "succeeded"]
        sql("delete from procrastinate_jobs")


def end_together(dsn: str, shares: list[list[int]], running: Worker) -> None:
    together = threading.Barrier(len(shares))
    failed: list[Exception] = []

    def end(share: list[int]) -> None:
        try:
            with psycopg.connect(dsn) as connection:
                for job in share:
                    connection.execute(
                        "select procjobs.finish_jobs(%s, %s, %s)", (running.id, [job], [running.leases[job]])
                    )
                together.wait()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=end, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_ends_of_two_batches_crosswise_do_not_deadlock(sql: Sql, dsn: str, worker: Make) -> None:
    for _ in range(10):
        ours, theirs = sql.one(CALLBACKS), sql.one(CALLBACKS)
        a, b = join(sql, ours, 2), join(sql, theirs, 2)
        seal(sql, ours)
        seal(sql, theirs)
        running = worker("noop")
        running.claim()
        end_together(dsn, [[a[0], b[0]], [b[1], a[1]]], running)
        assert sorted(callbacks(sql)) == ["finished", "finished", "succeeded", "succeeded"]
        sql("delete from procrastinate_jobs")


def test_workers_in_the_middle_of_a_batch_do_not_wait_for_each_other(
    sql: Sql, batch: int, worker: Make, another: Another
) -> None:
    first, second, _ = join(sql, batch, 3)
    seal(sql, batch)
    running = worker("noop")
    assert running.claim(2) == [first, second]
    finish = "select procjobs.finish_jobs(%s, array[%s]::bigint[], array[%s]::int[])"
    other = another()
    other.execute(finish, (running.id, first, running.leases[first]))
    other.execute("set constraints all immediate")  # as at the commit, which then takes its time
    sql("set statement_timeout = '5s'")
    assert running.finish(second)
    other.commit()
    assert sql(COUNTS, batch) == [("sealed", 3, 1, 0, 2, 0, 0)]


def test_the_sweep_adds_up_and_finds_what_was_left_over(sql: Sql, batch: int, worker: Make) -> None:
    jobs = join(sql, batch, 3)
    seal(sql, batch)
    running = worker("noop")
    running.claim()
    for job in jobs[:2]:
        running.finish(job)
    assert sql.one("select procjobs.sweep_batches()") == 0
    assert sql("select * from procjobs.batch_ends") == []
    assert sql(COUNTS, batch) == [("sealed", 3, 0, 1, 2, 0, 0)]
    sql("alter table procjobs.batch_ends disable trigger pj_judge_batches")
    running.finish(jobs[2])
    assert callbacks(sql) == []
    assert sql.one("select procjobs.sweep_batches()") == 1
    assert callbacks(sql) == ["finished", "succeeded"]


def test_jobs_without_a_batch_leave_no_trace_here(sql: Sql, worker: Make) -> None:
    job = sql.one("select procjobs.defer('noop')")
    running = worker("noop")
    running.claim()
    running.finish(job)
    assert sql("select * from procjobs.batch_ends") == []


def test_a_batch_is_forgotten_a_week_after_its_end_with_its_last_job(
    sql: Sql, batch: int, worker: Make, now: Callable[[str], None]
) -> None:
    (job,) = join(sql, batch)
    seal(sql, batch)
    worker("noop").claim()
    sql("select procjobs.archive_job(%s, 'succeeded', null)", job)
    opened = sql.one(CALLBACKS)
    sql("update procjobs.job_batches set finished_at = '2030-01-01 12:00Z' where id = %s", batch)
    now("2030-01-08 12:01Z")
    assert sql.one("select procjobs.forget_batches()") == 0, "its job is still in the history"
    sql("delete from procjobs.job_history")
    now("2030-01-08 11:59Z")
    assert sql.one("select procjobs.forget_batches()") == 0
    now("2030-01-08 12:01Z")
    assert sql.one("select procjobs.forget_batches()") == 1
    assert sql("select id from procjobs.job_batches") == [(opened,)]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01", "55P03", "53100"])
def test_a_callback_that_an_error_kept_from_being_enqueued_comes_with_the_next_sweep(
    sql: Sql, register: Any, worker: Any, sqlstate: str
) -> None:
    """Not for ever without one: a conflict or a full disk passes."""
    register("noop")
    register("over")
    mine = worker("noop")
    batch = sql.one("select procjobs.create_batch('b', on_finish => '{\"task\": \"over\"}')")
    job = sql.one("select procjobs.defer('noop', batch_id => %s)", batch)
    sql("select procjobs.seal_batch(%s)", batch)
    sql(
        "create function strike() returns trigger language plpgsql as "
        f"$$ begin raise 'struck' using errcode = '{sqlstate}'; end $$"
    )
    sql(
        "create trigger strike before insert on procrastinate_jobs for each row when (new.task_name = 'over') "
        "execute function strike()"
    )
    assert mine.claim() == [job] and mine.finish(job)
    assert sql("select problem, finished_at, callback_ids from procjobs.batches") == [("struck", None, None)]
    sql("select procjobs.sweep_batches()")
    sql("drop trigger strike on procrastinate_jobs")
    sql("select procjobs.sweep_batches(), procjobs.sweep_batches()")
    (callback,) = sql("select id from procjobs.jobs where task = 'over'")
    assert sql("select problem, finished_at is not null, callback_ids from procjobs.batches") == [
        (None, True, [callback[0]])
    ]
