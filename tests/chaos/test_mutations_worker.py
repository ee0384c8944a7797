"""The worker without one of its own safeguards, which tests/chaos/mutants.py takes out.

Scenarios 2, 22, 23, 36.
"""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos.harness.fleet import runs_jobs
from tests.chaos.harness.site import Site, until


@pytest.mark.parametrize("mutant", ["none", "heartbeat_on_the_loop"])
def test_a_heart_that_jobs_can_hold(site: Site, mutant: str) -> None:
    """Scenario 22: two workers and a job that holds the loop for longer than its lease."""
    site.client.enqueue("block", lock="one", args={"seconds": 5.0})
    site.fleet.start_many(2, concurrency=1, app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.drained()
    until(lambda: site.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"))
    assert ("I4" in site.broken()) == (mutant != "none"), site.says()


@pytest.mark.parametrize("mutant", ["none", "heartbeat_ends_with_sigterm"])
def test_a_worker_that_drains_for_longer_than_its_lease(site: Site, mutant: str) -> None:
    """Scenario 23: while it waits for its job a colleague looks for those of the dead."""
    site.client.enqueue("endure", lock="one")
    worker = site.fleet.start(shutdown_timeout=60, app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.running()
    worker.terminate(0)
    site.fleet.start()
    site.working(2)
    passed = "select clock_timestamp() > (select max(started_at) from procjobs.worker_state) + interval '5 s'"
    taken = "select count(*) > 1 from chaos.executions"
    until(lambda: site.sql.one(taken) or (mutant == "none" and site.sql.one(passed)), what=site.logs)
    assert site.sql.one(taken) == (mutant != "none"), site.logs()
    site.open_gate()
    site.drained()
    # The worker stops the job itself when its lease is over: the job is lost to it, but never runs twice at once.
    assert not site.broken(), site.says()


@pytest.mark.parametrize("mutant", ["none", "hints_are_believed"])
def test_somebody_who_says_that_a_job_is_to_be_cancelled(site: Site, mutant: str) -> None:
    """Scenario 36: it is true only if the database says so too."""
    job, other = site.client.enqueue("endure", 2)
    worker = site.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.running(2)
    listening = (
        "select exists (select from pg_stat_activity where application_name = 'procjobs listen' "
        "and datname = current_database() and state = 'idle')"
    )
    until(lambda: site.sql.one(listening), what=site.logs)
    payload = f'{{"type": "abort_job_requested", "job_id": {job}}}'
    site.sql("select pg_notify('procrastinate_any_queue_v1', %s)", payload)
    site.sql("select procjobs.cancel(%s)", other)
    until(lambda: site.status(other) == "aborted", what=site.logs)
    site.open_gate()
    site.drained()
    assert (site.status(job) == "aborted") == (mutant != "none")
    assert worker.alive


@pytest.mark.parametrize("mutant", ["none", "processes_outlive_their_worker"])
def test_a_process_whose_worker_was_killed(site: Site, mutant: str) -> None:
    """Scenario 2: its job runs again elsewhere."""
    site.client.enqueue("work_process", lock="one", args={"seconds": 600.0})
    worker = site.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.running()
    children = worker.children()
    worker.kill()
    site.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.running(2)
    left = [pid for pid in children if runs_jobs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert children and bool(left) == (mutant != "none")
