"""The worker without a safeguard against a database that dies, is full or says no: scenarios 8 to 10, 16 to 20."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.chaos.harness.site import Site, until
from tests.chaos.harness.storm import Storm
from tests.conftest import with_user


def cut(site: Site) -> None:
    """End every connection of workers."""
    site.sql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where datname = current_database() and application_name like 'procjobs %'"
    )


@pytest.mark.parametrize("mutant", ["none", "results_are_dropped"])
def test_a_connection_that_is_gone_when_there_is_a_result(site: Site, mutant: str) -> None:
    """Scenario 8: the server died and came back while a job ran; the worker says its end again."""
    site.fleet.start(mutant=mutant)
    site.ended(site.client.enqueue("work"))  # so the connection for ends is open
    (job,) = site.client.enqueue("endure")
    site.running(2)
    cut(site)
    site.open_gate()
    until(lambda: site.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"), what=site.logs)

    def another_ends() -> bool:
        site.client.enqueue("work")
        return bool(site.sql.one("select count(*) > 1 from procjobs.job_history"))

    until(another_ends, what=site.logs)
    left = "select count(*) from procrastinate_jobs where id <> %s"
    until(lambda: site.sql.one(left, 0 if mutant == "none" else job) == 0, what=site.left)
    # It is still running for the database, or was given back by the next claim, as one that nobody knows of.
    assert bool(site.broken() & {"I6", "I7"}) == (mutant != "none"), site.says()


@pytest.mark.parametrize("mutant", ["none", "an_outage_ends_the_claims", "sides_end_with_their_connection"])
def test_connections_that_are_cut(site: Site, mutant: str) -> None:
    """Scenarios 9 and 10: claims wait and go on; what runs beside them starts again and finds what is due."""
    worker = site.fleet.start(mutant=mutant)
    site.ended(site.client.enqueue("work"))
    cut(site)
    (job,) = site.client.enqueue("work", at=site.sql.one("select clock_timestamp() + interval '0.3 s'"))
    late = "select last_heartbeat > clock_timestamp() - interval '1 s' and exists (select from procrastinate_jobs"
    late += " where scheduled_at < clock_timestamp() - interval '1.5 s') from procjobs.worker_state"
    stuck = mutant == "sides_end_with_their_connection"
    until(lambda: site.status(job) == "succeeded" or not worker.alive or (stuck and site.sql.one(late)), what=site.logs)
    assert ("I12" in site.broken()) == (mutant == "an_outage_ends_the_claims"), site.says()
    assert (site.status(job) == "succeeded") == (mutant == "none")


@pytest.mark.parametrize("mutant", ["none", "conflicts_are_final"])
def test_a_conflict_while_a_worker_starts(site: Site, mutant: str) -> None:
    """Scenario 16: it begins again."""
    jobs = site.client.enqueue("work", 2)
    storm = Storm(site.sql)
    storm.rage(["40P01"], most=1)
    worker = site.fleet.start(mutant=mutant)
    ended = "select count(*) from procjobs.job_history"
    until(lambda: site.sql.one(ended) == len(jobs) or not worker.alive, what=site.logs)
    assert storm.strikes == 1
    assert ("I12" in site.broken()) == (mutant != "none"), site.says()


@pytest.mark.parametrize("mutant", ["none", "claims_stay_as_large"])
def test_a_claim_of_many_that_takes_too_long(site: Site, mutant: str) -> None:
    """Scenario 17: under a statement_timeout that it cannot keep, fewer are asked for."""
    site.sql("""
        create function chaos.be_slow() returns trigger language plpgsql as $$
        begin
          if (select count(*) from started where status = 'doing') > 2 then
            raise exception 'canceling statement due to statement timeout' using errcode = '57014';
          end if;
          return null;
        end
        $$;
        create trigger chaos_be_slow after update on procrastinate_jobs referencing new table as started
          for each statement execute function chaos.be_slow();
    """)
    jobs = site.client.enqueue("work", 8)
    worker = site.fleet.start(concurrency=8, mutant=mutant)
    ended = "select count(*) from procjobs.job_history"
    until(
        lambda: site.sql.one(ended) == len(jobs) or (mutant != "none" and worker.said("claiming failed") > 4),
        what=site.logs,
    )
    assert (site.sql.one(ended) == 0) == (mutant != "none")


@pytest.mark.parametrize("mutant", ["none", "ends_are_tried_once"])
def test_a_disk_that_is_full_when_a_job_has_ended(site: Site, mutant: str) -> None:
    """Scenario 18: it succeeded, and that is said until there is room for it."""
    storm = Storm(site.sql, tables=("procjobs.job_history",))
    (job,) = site.client.enqueue("endure")
    site.fleet.start(mutant=mutant)
    site.running()
    storm.rage(["53100"], most=1)
    site.open_gate()
    until(lambda: site.status(job) in ("succeeded", "failed"), what=site.logs)
    assert storm.strikes == 1
    assert (site.status(job) == "succeeded") == (mutant == "none")


@pytest.fixture
def ordinary(site: Site) -> Iterator[str]:
    """The DSN of a worker's login, of which connections can be refused."""
    site.sql("create role ordinary login in role procjobs_worker")
    yield with_user(site.dsn, "ordinary")
    site.fleet.stop()
    site.sql("drop role ordinary")


@pytest.mark.parametrize("mutant", ["none", "heartbeat_ends_with_its_connection"])
def test_no_connection_is_free(site: Site, ordinary: str, mutant: str) -> None:
    """Scenario 19: the heart tries again until there is one."""
    worker = site.fleet.start(dsn=ordinary, mutant=mutant)
    site.ended(site.client.enqueue("work"))
    beats = "select last_heartbeat > started_at from procjobs.worker_state"
    until(lambda: site.sql.one(beats), what=site.logs)
    site.sql("alter role ordinary connection limit 0")
    cut(site)
    until(lambda: worker.said("too many connections for role"), what=site.logs)
    site.sql("alter role ordinary connection limit -1")
    free = site.sql.one("select clock_timestamp()")
    again = "select max(last_heartbeat) > %s from procjobs.worker_state"
    until(lambda: site.sql.one(again, free) or (mutant != "none" and site.silent()), what=site.logs)
    assert site.silent() == (mutant != "none"), site.logs()


@pytest.mark.parametrize("mutant", ["none", "standbys_are_servers_like_others"])
def test_a_server_that_only_reads_any_more(site: Site, mutant: str) -> None:
    """Scenario 20: it is left for the one that took over. Here it is the same, and a connection stays as it was."""
    database = site.sql.one("select current_database()")
    worker = site.fleet.start(mutant=mutant)
    site.ended(site.client.enqueue("work"))
    site.sql(f"alter database {database} set default_transaction_read_only = on")
    cut(site)
    (job,) = site.client.enqueue("work")
    refused = re.compile("claiming .*read-only transaction")
    until(lambda: refused.search(worker.log.read_text()), what=site.logs)
    site.sql(f"alter database {database} reset default_transaction_read_only")
    before = worker.said("claiming failed")
    until(
        lambda: site.status(job) == "succeeded" or (mutant != "none" and worker.said("claiming failed") > before + 1),
        what=site.logs,
    )
    assert (site.status(job) == "succeeded") == (mutant == "none"), site.logs()
