"""Workers that are killed, at every point of a job's life: scenarios 1 to 7."""

from __future__ import annotations

import random
import signal
import threading
from datetime import timedelta
from functools import partial

import pytest

from tests.chaos.harness.fleet import HEARTBEAT, LEASE, Worker, runs_jobs
from tests.chaos.harness.site import Site, until


@pytest.mark.parametrize(
    ("point", "runs", "crashes"),
    [("after_claim", 1, 1), ("before_finish", 2, 1), ("after_finish", 1, 0)],
    ids=["1 after claim commit", "4 before finish", "5 after finish commit"],
)
def test_killed_between_two_steps(site: Site, point: str, runs: int, crashes: int) -> None:
    job, *others = site.client.enqueue("work", 5)
    victim = site.fleet.start(concurrency=1, PROCJOBS_FAILPOINT=f"{point}:kill").may_end(-9)
    assert victim.exit_code() == -9
    site.fleet.start()
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from chaos.executions where job = %s", job) == runs
    assert site.sql.one("select crashes from procjobs.job_history where id = %s", job) == crashes
    assert site.sql.one("select count(*) from procjobs.job_history") == 1 + len(others)


@pytest.mark.parametrize("point", ["before_settle", "after_settle"])
def test_killed_while_a_failure_is_reported(site: Site, point: str) -> None:
    (job,) = site.client.enqueue("flaky")
    victim = site.fleet.start(PROCJOBS_FAILPOINT=f"{point}:kill").may_end(-9)
    assert victim.exit_code() == -9
    site.fleet.start()
    site.check_all_succeeded()
    ends = [row[0] for row in site.sql("select outcome from procjobs.job_attempts where job_id = %s order by id", job)]
    assert ends == (["crashed", "failed"] if point == "before_settle" else ["failed"])


def test_2_kill_9_with_50_running_jobs_each_runs_again_exactly_once(site: Site) -> None:
    jobs = site.client.enqueue("hang_once", 50)
    first = site.fleet.start(concurrency=50, heartbeat=1.0)
    site.running(50)
    second = site.fleet.start(concurrency=50, heartbeat=1.0)
    site.working(2)
    first.kill()
    assert first.killed_at is not None
    site.check_all_succeeded()
    last = site.sql.one("select max(lower(span)) from chaos.executions")
    assert last - first.killed_at < timedelta(seconds=3 * LEASE / HEARTBEAT), "within three leases"
    assert site.sql("select job, count(*) from chaos.executions group by job having count(*) <> 2") == []
    assert site.sql("select distinct pid from chaos.executions where pid <> %s", first.pid) == [(second.pid,)]
    assert site.sql("select distinct crashes, attempts from procjobs.job_history") == [(1, 1)]
    query = "select count(*) from procjobs.job_attempts where outcome = 'crashed' and job_id = any(%s)"
    assert site.sql.one(query, jobs) == 50


@pytest.mark.parametrize("how", ["killed", "second signal"])
def test_2_a_process_of_a_job_does_not_outlive_its_worker(site: Site, how: str) -> None:
    """The job is given to others: under its lock there would be two."""
    site.client.enqueue("work_process", lock="one", args={"seconds": 600.0})
    worker = site.fleet.start(shutdown_timeout=3600, kill_timeout=3600)
    site.running()
    children = worker.children()
    assert children
    if how == "killed":
        worker.kill()
    else:
        worker.terminate(1)
        until(lambda: site.sql.one("select draining_at is not null from procjobs.worker_state"))
        worker.popen.send_signal(signal.SIGTERM)
        assert worker.exit_code() in (0, 1)
    until(lambda: not any(runs_jobs(pid) for pid in children), timeout=20)


def test_2_a_job_that_exits_beside_its_own_coroutine_fails_alone(site: Site) -> None:
    (job,) = site.client.enqueue("exit_aside")
    others = site.client.enqueue("work", 20, args={"seconds": 0.2})
    worker = site.fleet.start(concurrency=5)
    site.drained()
    assert worker.alive and site.status(job) == "failed"
    assert site.sql("select distinct error_class from procjobs.job_attempts") == [("SystemExit",)]
    site.ended(others)
    worker.terminate(0)
    assert worker.exit_code() == 0
    site.check()


def test_3_killed_after_the_effect_it_is_done_again_and_once(site: Site) -> None:
    (job,) = site.client.enqueue("die_after_effect")
    first = site.fleet.start().may_end(-9)
    assert first.exit_code() == -9
    site.fleet.start()
    site.check_all_succeeded()
    assert site.sql("select job, repeats, lease from chaos.effects") == [(job, 1, 1)]
    assert site.sql.one("select lease from procjobs.job_history") == 2


def test_6_random_kills_while_four_workers_run_2000_jobs(site: Site, dice: random.Random) -> None:
    kinds = [{"task": "work"}, {"task": "work_thread"}, {"task": "work", "lock": "lock {n}"}, {"task": "flaky"}]
    for first in range(0, 2000, 100):
        site.client.enqueue_all([{**kinds[n % 4], "lock": f"lock {n % 7}" if n % 4 == 2 else None}
                                 for n in range(first, first + 100)])  # fmt: skip
    site.fleet.start_many(4, concurrency=20)
    # A job may meet three kills and be a dead letter, as it should; somebody then looks at it and says: again.
    kills = 0
    over = threading.Event()
    while not over.wait(0.5) and kills < 12:
        if site.fleet.alive and site.sql.one("select count(*) from chaos.executions") > 0:
            dice.choice(site.fleet.alive).kill()
            site.fleet.start(concurrency=20)
            kills += 1
    until(lambda: retry_what_died(site), what=site.left)
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history") == 2000
    assert kills == 12


def retry_what_died(site: Site) -> bool:
    """Retry dead letters of crashes; whether everything is done."""
    site.sql("select procjobs.retry(id) from procrastinate_jobs where status = 'failed' and pj_crashes >= 3")
    return bool(site.sql.one("select count(*) = 0 from procrastinate_jobs"))


def gone_or_failed(site: Site, worker: Worker, job: int) -> bool:
    return not worker.alive or site.status(job) == "failed"


def test_7_a_job_that_kills_its_worker_is_a_dead_letter_after_three(site: Site) -> None:
    (job,) = site.client.enqueue("suicide")
    (innocent,) = site.client.enqueue("work")
    workers = 0
    while site.status(job) != "failed":
        worker = site.fleet.start(concurrency=1).may_end(-9)
        workers += 1
        until(partial(gone_or_failed, site, worker, job), what=site.left)
    assert workers <= 4
    assert site.sql.one("select count(*) from chaos.executions where job = %s", job) == 3
    site.drained()
    site.check()
    assert site.status(innocent) == "succeeded"
    assert site.sql.one("select procjobs.retry(%s)", job)
