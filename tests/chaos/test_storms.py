"""PostgreSQL says no: deadlocks, serialization failures, timeouts, a full disk. Scenarios 16 to 18."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.chaos.harness.site import Site, until
from tests.chaos.harness.storm import Storm
from tests.engine.fleet import Fleet

JOBS: list[dict[str, Any]] = [
    *({"task": "work"} for _ in range(60)),
    *({"task": "work", "lock": f"lock {n % 5}"} for n in range(60)),
    *({"task": "flaky", "args": {"failures": 2}} for _ in range(30)),
]


@pytest.mark.parametrize(
    ("sqlstates", "probability"),
    [
        (["40001", "40P01"], 0.4),
        (["55P03", "57014"], 0.4),
        (["53100"], 0.4),
        (["53300", "57P01"], 0.4),
        (["40001", "40P01", "55P03", "57014", "53100", "53300", "57P01"], 0.6),
    ],
    ids=["16 conflicts", "17 timeouts", "18 disk full", "19 no connection", "all of them"],
)
def test_a_storm_of_errors_in_claims_ends_heartbeats_and_upkeep(
    site: Site, sqlstates: list[str], probability: float
) -> None:
    storm = Storm(site.sql)
    site.client.enqueue_all(JOBS)
    storm.rage(sqlstates, probability, most=400)
    workers = site.fleet.start_many(2, heartbeat=1.0)
    until(lambda: storm.strikes > 30 or site.fleet.wrong_exits(), what=site.left)
    storm.calm()
    site.check_all_succeeded()
    assert all(worker.alive for worker in workers)


@pytest.mark.parametrize("sqlstate", ["40P01", "23505"])
def test_16_a_claim_that_is_undone_and_tried_again_gives_each_job_once(site: Site, sqlstate: str) -> None:
    """A conflict that comes when the jobs are started already, as between claims of the same locks."""
    fleet = Fleet(site.sql)
    jobs = [fleet.defer(lock=f"lock {n}", queue=f"queue {n % 2}") for n in range(5)]
    worker = fleet.worker()
    fleet.judge()  # and not first the plain way, which starts none of them
    storm = Storm(site.sql)
    storm.rage([sqlstate], most=1)
    claims = fleet.claim(worker, 5)
    assert storm.strikes == 1
    assert sorted(claim.id for claim in claims) == jobs
    assert fleet.finish(*claims) == jobs


@pytest.mark.parametrize("sqlstate", ["40P01", "23505"])
def test_16_a_claim_of_jobs_without_locks_fails_whole_and_the_worker_tries_again(site: Site, sqlstate: str) -> None:
    """Such jobs conflict with nothing of ours: it comes from somebody's trigger, and is the worker's to repeat."""
    fleet = Fleet(site.sql)
    jobs = [fleet.defer() for _ in range(5)]
    worker = fleet.worker()
    storm = Storm(site.sql)
    storm.rage([sqlstate], most=1)
    with pytest.raises(psycopg.Error):
        fleet.claim(worker, 5)
    assert fleet.sql.one("select count(*) from procrastinate_jobs where status = 'todo' and pj_lease = 0") == 5
    claims = fleet.claim(worker, 5)
    assert sorted(claim.id for claim in claims) == jobs
    assert fleet.finish(*claims) == jobs


@pytest.mark.parametrize("sqlstate", ["40P01", "57014"])
def test_16_a_conflict_while_a_worker_starts_is_tried_again(site: Site, sqlstate: str) -> None:
    storm = Storm(site.sql)
    storm.rage([sqlstate], most=2)
    worker = site.fleet.start()
    until(lambda: storm.strikes == 2 or not worker.alive, what=site.logs)
    storm.calm()
    site.client.enqueue("work", 3)
    until(lambda: site.sql.one("select count(*) from procjobs.job_history") >= 3 or not worker.alive, what=site.logs)
    site.check_all_succeeded()


def test_18_a_full_disk_refuses_clients_and_delays_what_was_accepted(site: Site) -> None:
    """Nothing can be written for a while: what was told as accepted is done later, what was refused never."""
    accepted = site.client.enqueue("work", 20)
    storm = Storm(site.sql)
    storm.rage(["53100"])
    worker = site.fleet.start(heartbeat=1.0)
    with pytest.raises(psycopg.errors.DiskFull):
        site.client.enqueue("work", 5)
    until(lambda: worker.said("waits for the database"), what=site.logs)
    assert site.sql.one("select count(*) from procjobs.job_history") == 0
    storm.calm()
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history") == len(accepted)


@pytest.mark.parametrize("setting", ["statement_timeout", "lock_timeout"])
def test_17_a_database_with_short_timeouts_and_somebody_who_holds_everything(
    site: Site, dsn: str, setting: str
) -> None:
    database = site.sql.one("select current_database()")
    site.sql(f"alter database {database} set {setting} = '150ms'")
    jobs = site.client.enqueue("work", 40, lock="lock {n}")
    worker = site.fleet.start(heartbeat=1.0)
    until(lambda: site.sql.one("select count(*) from procjobs.job_history") > 0, what=site.left)
    more = site.client.enqueue("work", 40, args={"seconds": 0.1})
    site.running(len(jobs) + 5)
    with psycopg.connect(dsn) as somebody:
        somebody.execute("set statement_timeout = 0")
        somebody.execute("set lock_timeout = 0")
        somebody.execute("lock table procrastinate_jobs in share mode")
        until(lambda: worker.said("timeout") or worker.said("cannot be recorded"), what=site.logs)
    site.check_all_succeeded()
    assert site.sql.one("select count(*) from procjobs.job_history") == len(jobs) + len(more)
    assert worker.alive
