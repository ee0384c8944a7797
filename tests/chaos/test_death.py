"""Workers that die, freeze and come back: every job is run again, once, and nothing of a lost lease counts."""

from __future__ import annotations

import json
import signal
import time

import pytest

pytestmark = pytest.mark.usefixtures("ground")

TASKS = "hang_once", "wait_for_gate", "ignore_cancellation", "effect", "suicide"


@pytest.fixture(autouse=True)
def registered(sql):
    for task in TASKS:
        sql("select procjobs.register_tasks(%s::jsonb, 'test')", json.dumps([{"name": task}]))


def test_kill_9_with_50_running_jobs_each_runs_again_exactly_once_within_three_leases(start, dsn, sql, eventually):
    jobs = [sql.one("select procjobs.defer('hang_once')") for _ in range(50)]
    first = start(dsn, "--concurrency=50", heartbeat=1.0)
    eventually(lambda: sql.one("select count(*) from executions") == 50, timeout=30)

    first.signal(signal.SIGKILL)
    first.exit_code()
    killed_at = time.monotonic()
    second = start(dsn, "--concurrency=50", heartbeat=1.0)
    eventually(
        lambda: sql.one("select count(*) from procjobs.job_history where status = 'succeeded'") == 50, timeout=30
    )
    took = time.monotonic() - killed_at

    assert took < 9.0, "three leases of three seconds"
    assert sql("select job, count(*) from executions group by job having count(*) <> 2") == []
    assert sql("select distinct pid from executions where pid <> %s", first.pid) == [(second.pid,)]
    assert sql("select distinct crashes, attempts from procjobs.job_history") == [(1, 1)]
    assert (
        sql.one("select count(*) from procjobs.job_attempts where outcome = 'crashed' and job_id = any(%s)", jobs) == 50
    )


def test_a_zombies_finish_is_refused_and_it_goes_on_as_a_new_worker(start, dsn, sql, eventually):
    job = sql.one("select procjobs.defer('wait_for_gate')")
    zombie = start(dsn, "--concurrency=1")
    eventually(lambda: sql.one("select count(*) from executions"), timeout=30)
    zombie.signal(signal.SIGSTOP)

    other = start(dsn, "--concurrency=1")
    eventually(lambda: sql.one("select count(*) from procjobs.job_history where id = %s", job), timeout=30)
    ended = sql("select worker_id, lease, finished_at from procjobs.job_history where id = %s", job)
    sql("insert into gate values (true)")
    zombie.signal(signal.SIGCONT)

    eventually(lambda: zombie.said("declared dead") or zombie.said("lease was lost"), timeout=30)
    other.signal(signal.SIGKILL)
    other.exit_code()
    again = sql.one("select procjobs.defer('effect', '{\"key\": 1}')")
    eventually(lambda: sql.one("select count(*) from procjobs.job_history where id = %s", again), timeout=30)
    assert sql("select worker_id, lease, finished_at from procjobs.job_history where id = %s", job) == ended
    assert sql.one("select count(*) from executions where job = %s", job) == 2
    assert sql.one("select count(*) from procjobs.job_history") == 2


def test_a_job_that_kills_its_worker_is_a_dead_letter_after_three(start, dsn, sql, eventually):
    job = sql.one("select procjobs.defer('suicide')")
    innocent = sql.one("select procjobs.defer('effect', '{\"key\": 1}')")
    workers = []
    while sql.one("select status::text from procjobs.jobs where id = %s", job) != "failed":
        workers.append(start(dsn, "--concurrency=1", heartbeat=0.2))
        eventually(
            lambda: (
                workers[-1].popen.poll() is not None
                or sql.one("select status::text from procjobs.jobs where id = %s", job) == "failed"
            ),
            timeout=30,
        )
    assert len(workers) <= 4
    assert sql.one("select count(*) from executions where job = %s", job) == 3
    eventually(lambda: sql.one("select status::text from procjobs.jobs where id = %s", innocent) == "succeeded")
    assert sql.one("select procjobs.retry(%s)", job)


def test_sigterm_when_idle_ends_with_0(start, dsn, sql, eventually):
    worker = start(dsn)
    eventually(lambda: sql.one("select count(*) from procjobs.worker_state"), timeout=30)
    eventually(lambda: worker.said("started"))
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert sql.one("select stopped_at is not null from procjobs.worker_state")


def test_sigterm_gives_back_a_job_that_outlives_the_timeout_and_ends_with_0(start, dsn, sql, eventually):
    job = sql.one("select procjobs.defer('hang_once')")
    worker = start(dsn, "--shutdown-graceful-timeout=0.2")
    eventually(lambda: sql.one("select count(*) from executions"), timeout=30)
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0
    assert sql("select status::text, attempts, pj_crashes from procrastinate_jobs where id = %s", job) == [
        ("todo", 0, 0)
    ]


@pytest.mark.parametrize("task", ["wait_for_gate", "ignore_cancellation"])
def test_a_job_that_cannot_be_stopped_makes_the_exit_code_1(start, dsn, sql, eventually, task):
    job = sql.one("select procjobs.defer(%s)", task)
    worker = start(dsn, "--shutdown-graceful-timeout=0.2")
    eventually(lambda: sql.one("select count(*) from executions"), timeout=30)
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 1
    assert sql.one("select procjobs.rescue_jobs()") == 1
    assert sql("select status::text, pj_crashes from procrastinate_jobs where id = %s", job) == [("todo", 0)]


def test_a_second_signal_leaves_at_once(start, dsn, sql, eventually):
    sql("select procjobs.defer('wait_for_gate')")
    worker = start(dsn)  # no timeout: the first signal waits for ever
    eventually(lambda: sql.one("select count(*) from executions"), timeout=30)
    worker.signal(signal.SIGTERM)
    eventually(lambda: sql.one("select draining_at is not null from procjobs.worker_state"))
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 1


def test_a_worker_that_cannot_reach_its_database_at_start_ends_with_1(start, tmp_path):
    worker = start(f"host={tmp_path} connect_timeout=1")
    assert worker.exit_code(60) == 1
