"""Workers that freeze, are taken for dead, and come back: scenarios 21 and 22."""

from __future__ import annotations

from tests.chaos.harness.site import Site, until


def test_21_a_zombies_finish_is_refused_and_it_goes_on_as_a_new_worker(site: Site) -> None:
    (job,) = site.client.enqueue("wait_for_gate")
    zombie = site.fleet.start(concurrency=1)
    site.running()
    zombie.freeze()
    other = site.fleet.start(concurrency=1)
    site.drained()
    ended = site.sql("select worker_id, lease, finished_at from procjobs.job_history where id = %s", job)
    site.open_gate()
    zombie.thaw()
    until(lambda: zombie.said("declared dead") or zombie.said("lease was lost"), what=site.logs)
    other.kill()
    (again,) = site.client.enqueue("work")
    until(lambda: site.sql.one("select count(*) from procjobs.job_history where id = %s", again), what=site.logs)
    site.check_all_succeeded()
    assert site.sql("select worker_id, lease, finished_at from procjobs.job_history where id = %s", job) == ended
    assert site.sql.one("select count(*) from chaos.executions where job = %s", job) == 2
    assert site.sql("select repeats from chaos.effects where job = %s", job) == [(1,)], "both had their effect, once"


def test_21_a_zombie_with_jobs_of_every_kind(site: Site) -> None:
    """Running, prefetched, finished and not yet reported: nothing of it counts once others have it."""
    kinds = ["work", "work_thread", "work_process", "flaky"]
    jobs = site.client.enqueue_all([{"task": kinds[n % 4], "args": {"seconds": 0.2}} if n % 4 < 3 else {"task": "flaky"}
                                    for n in range(60)])  # fmt: skip
    zombie = site.fleet.start(concurrency=8)
    site.running(10)
    zombie.freeze()
    site.fleet.start(concurrency=8)
    until(lambda: site.sql.one("select count(*) from procjobs.worker_state where dead_at is not null"), what=site.left)
    site.sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")
    until(lambda: site.sql.one("select count(*) from procjobs.job_history") > 30, what=site.left)
    zombie.thaw()
    until(lambda: zombie.said("declared dead"), what=site.logs)
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history") == len(jobs)
    assert zombie.alive


def test_21_a_short_freeze_is_forgiven(site: Site) -> None:
    """Shorter than the lease: nobody takes anything from it."""
    site.client.enqueue("endure", 4)
    worker = site.fleet.start(heartbeat=1.0, lease=20.0)
    other = site.fleet.start(heartbeat=1.0, lease=20.0)
    site.running(4)
    site.working(2)
    worker.freeze()
    before = site.sql.one("select max(last_heartbeat) from procjobs.worker_state")
    until(lambda: site.sql.one("select max(last_heartbeat) > %s from procjobs.worker_state", before))
    worker.thaw()
    site.open_gate()
    site.check_all_succeeded()
    assert site.sql("select distinct crashes, lease from procjobs.job_history") == [(0, 1)]
    assert worker.alive and other.alive


def test_22_a_job_that_holds_the_event_loop_keeps_its_lease(site: Site) -> None:
    """Longer than the lease, with a colleague who would take the job; it looks every second."""
    jobs = site.client.enqueue("block", 2, args={"seconds": 4.0})
    site.fleet.start_many(2, concurrency=1)
    site.working(2)
    site.check_all_succeeded()
    assert site.sql("select attempts, crashes, lease from procjobs.job_history") == [(1, 0, 1)] * len(jobs)
    assert site.sql.one("select count(*) from procjobs.worker_state where dead_at is not null") == 0
