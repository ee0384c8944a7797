"""The worker without one of its own safeguards, which tests/chaos/mutants.py takes out.

Scenarios 2, 22 to 25, 35 and 36.
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
    site.fleet.start_many(2, concurrency=1, mutant=mutant)
    site.drained()
    until(lambda: site.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"))
    assert ("I4" in site.broken()) == (mutant != "none"), site.says()


@pytest.mark.parametrize("mutant", ["none", "heartbeat_ends_with_sigterm"])
def test_a_worker_that_drains_for_longer_than_its_lease(site: Site, mutant: str) -> None:
    """Scenario 23: while it waits for its job a colleague looks for those of the dead."""
    site.client.enqueue("endure", lock="one")
    worker = site.fleet.start(shutdown_timeout=60, mutant=mutant)
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
    worker = site.fleet.start(mutant=mutant)
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
    worker = site.fleet.start(mutant=mutant)
    site.running()
    children = worker.children()
    worker.kill()
    other = site.fleet.start(mutant=mutant)
    site.running(2)
    left = [pid for pid in children if runs_jobs(pid)]
    for pid in [*left, *filter(runs_jobs, other.children())]:  # the mutants would sleep on
        os.kill(pid, signal.SIGKILL)
    assert children and bool(left) == (mutant != "none")


@pytest.mark.parametrize("mutant", ["none", "second_signal_is_like_the_first"])
def test_somebody_who_says_twice_that_it_should_stop(site: Site, mutant: str) -> None:
    """Scenario 24: a thread that ignores what it is asked."""
    site.client.enqueue("wait_for_gate")
    worker = site.fleet.start(shutdown_timeout=3600, kill_timeout=3600, mutant=mutant)
    site.running()
    worker.terminate(0, 1)
    until(lambda: site.sql.one("select draining_at is not null from procjobs.worker_state"), what=site.logs)
    worker.popen.send_signal(signal.SIGTERM)
    passed = "select last_heartbeat > draining_at + interval '2 s' from procjobs.worker_state"
    until(lambda: not worker.alive or (mutant != "none" and site.sql.one(passed)), what=site.logs)
    assert worker.alive == (mutant != "none")
    site.open_gate()
    assert worker.exit_code() == (1 if mutant == "none" else 0)


@pytest.mark.parametrize("mutant", ["none", "threads_are_waited_for"])
def test_a_thread_that_does_not_end(site: Site, mutant: str) -> None:
    """Scenario 24: a coroutine borrowed it of asyncio, who would wait for it."""
    site.client.enqueue("borrow_a_thread")
    worker = site.fleet.start(shutdown_timeout=0.1, mutant=mutant)
    site.running()
    worker.terminate(1)
    passed = "select clock_timestamp() > stopped_at + interval '2 s' from procjobs.worker_state"
    until(lambda: not worker.alive or (mutant != "none" and site.sql.one(passed)), what=site.logs)
    assert worker.alive == (mutant != "none")


@pytest.mark.parametrize("mutant", ["none", "unknown_tasks_fail"])
@pytest.mark.parametrize("given", [False, True], ids=["left alone", "given"])
def test_a_job_of_a_release_to_come_waits_by_the_claim_and_by_the_worker(site: Site, given: bool, mutant: str) -> None:
    """Scenario 25: the database gives a worker nothing that it does not know, and the worker would give it back: either
    is enough."""
    if given:
        site.replace("take_jobs", "c.task_name = any (p_tasks) as known", "true as known")
        site.replace("claim_jobs", "front.task_name = any (v_context.tasks)", "true")
    site.sql("""select procjobs.register_tasks('[{"name": "new_work"}]', 'deploy')""")
    (job,) = site.client.enqueue("new_work")
    worker = site.fleet.start(mutant=mutant)
    state = "select state from procjobs.jobs where id = %s"
    until(lambda: site.sql.one(state, job) in ("parked", "failed"), what=site.left)
    assert (site.status(job) == "failed") == (given and mutant != "none")
    assert worker.alive


@pytest.mark.parametrize("mutant", ["none", "arguments_are_read_with_the_claim"])
def test_arguments_that_cannot_be_read_beside_honest_ones(site: Site, mutant: str) -> None:
    """Scenario 35: each job's are read where it runs, so that one cannot take the others with it."""
    with site.sql.connection.transaction():
        site.sql("set local procjobs.args_checked = 'on'")
        site.sql(
            "insert into procrastinate_jobs (queue_name, task_name, args) values ('default', 'work', %s)",
            f'{{"n": {"7" * 5000}}}',
        )
    (honest,) = site.client.enqueue("work")
    worker = site.fleet.start(mutant=mutant)
    until(lambda: site.status(honest) == "succeeded" or not worker.alive, what=site.left)
    assert ("I12" in site.broken()) == (mutant != "none"), site.says()
