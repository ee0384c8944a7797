"""Clocks that are wrong: scenario 28. Every decision goes by the database's clock, and that one may be off too."""

from __future__ import annotations

import pytest

from tests.chaos.harness.site import Site


@pytest.mark.parametrize("hours", [-1, 1])
def test_28_a_worker_whose_clock_is_off_by_an_hour(site: Site, hours: int) -> None:
    """Beside one whose clock is right: neither is taken for dead, nothing runs early, nothing late."""
    site.fleet.start(app="tests.chaos.offset.app", CHAOS_CLOCK_HOURS=str(hours))
    site.fleet.start()
    site.working(2)
    soon = site.sql.one("select clock_timestamp() + interval '1 s'")
    later = site.sql.one("select clock_timestamp() + interval '30 min'")
    due = site.client.enqueue("work", 20, at=soon)
    future = site.client.enqueue("work", 5, at=later)
    failing = site.client.enqueue("flaky", 10)
    site.ended(due + failing)
    began = site.sql.one("select min(lower(span)) from chaos.executions where job = any(%s)", due)
    assert began >= soon
    assert [site.status(job) for job in future] == ["todo"] * 5
    assert site.sql.one("select count(*) from procjobs.worker_state where dead_at is not null") == 0
    assert site.sql("select distinct crashes from procjobs.job_history") == [(0,)]
    site.sql("update procrastinate_jobs set scheduled_at = clock_timestamp()")
    site.check_all_succeeded()


@pytest.mark.parametrize("hours", [-1, 1])
def test_28_the_databases_clock_jumps_by_an_hour(site: Site, hours: int) -> None:
    """As after a correction or a failover to a host with another time: whoever lives is not taken for dead for long,
    and what was running ends once."""
    site.client.enqueue("endure", 5)
    site.fleet.start_many(2, concurrency=5)
    site.working(2)
    site.running(5)
    database = site.sql.one("select current_database()")
    site.sql(f"create function chaos.shifted() returns timestamptz language sql stable as "
             f"$$ select statement_timestamp() + interval '{hours} hours' $$")  # fmt: skip
    # First the rights: a worker that asks in between would end, and with reason.
    site.sql("grant usage on schema chaos to public")
    site.sql("grant execute on function chaos.shifted() to public")
    site.sql("""create or replace function procjobs.clock() returns timestamptz language sql stable parallel safe
                as 'select chaos.shifted()'""")
    more = site.client.enqueue("work", 20)
    site.ended(more)
    site.open_gate()
    site.drained()
    site.check()
    assert site.sql.one("select max(crashes) from procjobs.job_history") <= 1
    assert database and len(site.fleet.alive) == 2
