"""Stopping and replacing workers: scenarios 23 to 25, and every exit code."""

from __future__ import annotations

import signal

import pytest

from procjobs.migrate import migrate
from tests.chaos.harness.client import Load
from tests.chaos.harness.site import Site, until

OLD, NEW = "tests.chaos.deployed.old", "tests.chaos.deployed.new"


def test_sigterm_when_idle_ends_with_0(site: Site) -> None:
    worker = site.fleet.start()
    site.working()
    until(lambda: worker.said("started"))
    worker.terminate(0)
    assert worker.exit_code() == 0
    assert site.sql.one("select stopped_at is not null from procjobs.worker_state")
    site.check()


def test_23_a_job_longer_than_the_lease_ends_in_peace(site: Site) -> None:
    """The worker drains for longer than its lease, and its heartbeat goes on: nobody takes the job."""
    (job,) = site.client.enqueue("endure")
    worker = site.fleet.start(shutdown_timeout=60)
    site.running()
    worker.terminate(0)
    other = site.fleet.start(concurrency=5)
    site.working(2)
    began = site.sql.one("select clock_timestamp()")
    until(lambda: site.sql.one(
        "select clock_timestamp() > %s::timestamptz + interval '4 s'", began), what=site.logs)  # fmt: skip
    site.open_gate()
    assert worker.exit_code() == 0
    site.check_all_succeeded()
    assert site.sql("select attempts, crashes, lease from procjobs.job_history where id = %s", job) == [(1, 0, 1)]
    assert other.alive


def test_23_a_job_that_outlives_the_timeout_is_given_back(site: Site) -> None:
    jobs = site.client.enqueue("hang_once", 3)
    worker = site.fleet.start(shutdown_timeout=0.2)
    site.running(3)
    worker.terminate(0)
    assert worker.exit_code() == 0
    query = "select distinct status::text, attempts, pj_crashes from procrastinate_jobs where id = any(%s)"
    assert site.sql(query, jobs) == [("todo", 0, 0)]
    site.fleet.start()
    site.check_all_succeeded()
    assert site.sql("select distinct attempts, crashes, lease from procjobs.job_history") == [(1, 0, 2)]


@pytest.mark.parametrize("task", ["wait_for_gate", "ignore_cancellation"])
def test_24_a_job_that_cannot_be_stopped_makes_the_exit_code_1(site: Site, task: str) -> None:
    (job,) = site.client.enqueue(task)
    worker = site.fleet.start(shutdown_timeout=0.2)
    site.running()
    worker.terminate(1)
    assert worker.exit_code() == 1
    assert site.sql.one("select procjobs.rescue_jobs()") == 1
    assert site.sql("select status::text, pj_crashes from procrastinate_jobs where id = %s", job) == [("todo", 0)]


@pytest.mark.parametrize("count", [1, 40])
def test_24_threads_that_coroutines_borrowed_do_not_keep_the_worker(site: Site, count: int) -> None:
    """asyncio.to_thread cannot be cancelled; 40 take all threads that asyncio has."""
    jobs = site.client.enqueue("borrow_a_thread", count)
    worker = site.fleet.start(concurrency=count, shutdown_timeout=0.2)
    site.running(count)
    worker.terminate(1)
    assert worker.exit_code() == 1
    query = "select distinct status::text, attempts, pj_crashes from procrastinate_jobs where id = any(%s)"
    assert site.sql(query, jobs) == [("todo", 0, 0)]
    assert site.sql.one("select stopped_at is not null from procjobs.worker_state")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_24_a_second_signal_leaves_at_once(site: Site, number: signal.Signals) -> None:
    (job,) = site.client.enqueue("wait_for_gate")
    worker = site.fleet.start(shutdown_timeout=3600, kill_timeout=3600)
    site.running()
    worker.terminate(1)
    until(lambda: site.sql.one("select draining_at is not null from procjobs.worker_state"))
    worker.popen.send_signal(number)
    assert worker.exit_code() == 1
    site.fleet.start()
    site.open_gate()
    site.check_all_succeeded()
    assert site.sql("select crashes, attempts from procjobs.job_history where id = %s", job) == [(0, 1)]


def test_25_a_rolling_deploy_under_load_loses_nothing(site: Site) -> None:
    """Old and new workers side by side; the new release enqueues a task that the old one does not know."""
    old = site.fleet.start_many(2, concurrency=4, shutdown_timeout=0.3, app=OLD)
    site.working(2)
    site.sql("""select procjobs.register_tasks('[{"name": "new_work"}]', 'deploy')""")
    site.client.enqueue("work", 60, args={"seconds": 0.1})
    site.client.enqueue("new_work", 20)
    site.client.enqueue("new_work", 20, lock="one")
    until(lambda: site.sql.one("select count(*) from procjobs.jobs where state = 'parked'") >= 20, what=site.left)
    new = []
    for worker in old:
        new.append(site.fleet.start(concurrency=4, app=NEW))
        worker.terminate(0)
        assert worker.exit_code() == 0
        site.client.enqueue("work", 20, args={"seconds": 0.05})
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history where task_name = 'new_work'") == 40
    assert site.sql("select distinct attempts, crashes from procjobs.job_history") == [(1, 0)]
    assert all(worker.alive for worker in new)


def test_25_the_database_is_upgraded_under_load(site: Site) -> None:
    """Functions, triggers and views are dropped and made again while workers run and clients enqueue."""
    # An upgrade holds up heartbeats too, for less than the usual lease.
    workers = site.fleet.start_many(2, concurrency=10, lease=30.0)
    kinds = [{"task": "work"}, {"task": "flaky"}, {"task": "work_thread"}]
    with Load(site.client, lambda n: [{**kinds[n % 3], "lock": f"lock {n % 4}" if n % 2 else None}]) as load:
        for _ in range(4):
            before = load.acknowledged
            until(lambda: load.acknowledged > before + 30, what=site.left)  # noqa: B023
            site.sql("update procjobs.schema_state set checksum = null")
            assert migrate(site.dsn).changed
    site.check_all_succeeded()
    assert not site.sql("select name from procjobs.schedules where paused_at is null"), (
        "a pause stays through an upgrade"
    )
    assert not site.ledger.read().refused, "a client waits for the upgrade"
    assert all(worker.alive for worker in workers)
    assert site.sql.one("select max(crashes) from procjobs.job_history") == 0
    assert site.sql("select distinct outcome, error_class from procjobs.job_attempts") == [("failed", "RuntimeError")]


def test_25_sigterm_again_and_again_while_jobs_run(site: Site) -> None:
    """Five deploys in a row, each in the middle of work: no attempt is spent, no job is lost."""
    site.client.enqueue_all([{"task": task, "args": {"seconds": 0.15}} for task in ("work", "work_thread") * 40])
    for _ in range(5):
        worker = site.fleet.start(concurrency=4, shutdown_timeout=0.05, kill_timeout=5)
        site.begun(3)
        worker.terminate(0)
        assert worker.exit_code() == 0
    site.fleet.start(concurrency=10)
    site.check_all_succeeded()
    assert site.sql("select distinct attempts, crashes from procjobs.job_history") == [(1, 0)]
