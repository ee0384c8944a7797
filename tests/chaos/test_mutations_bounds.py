"""Bounds without a safeguard: how long something waits, how much it reads and deletes, what arguments may be.

Scenarios 16, 17, 33, 34, 35 and 39, call by call.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from tests.chaos.harness.hands import MUTATED, Hands
from tests.chaos.harness.reads import entries_read
from tests.chaos.harness.site import Site, until
from tests.chaos.harness.storm import Storm
from tests.engine.fleet import Thread, opened

# -- 16: conflicts ----------------------------------------------------------------------------------------------------


@MUTATED
@pytest.mark.parametrize("sqlstate", ["40P01", "23505"])
def test_a_conflict_in_the_middle_of_a_claim(hands: Hands, sqlstate: str, mutated: bool) -> None:
    """Jobs are started already when it comes: looked at again, each is given once."""
    if mutated:
        hands.site.replace(
            "claim_judged", "when unique_violation or deadlock_detected then", "when division_by_zero then"
        )
    jobs = [hands.fleet.defer(lock=f"lock {n}", queue=f"queue {n % 2}") for n in range(4)]
    worker = hands.fleet.worker()
    hands.fleet.judge()
    Storm(hands.site.sql).rage([sqlstate], most=1)
    if mutated:
        with pytest.raises(psycopg.Error) as failed:
            hands.fleet.claim(worker, 4)
        assert failed.value.sqlstate == sqlstate
    else:
        assert sorted(hands.fleet.claim_ids(worker, 4)) == jobs


@MUTATED
def test_a_breaker_that_closes_and_opens_again_amid_a_claim(hands: Hands, mutated: bool) -> None:
    """What was claimed while it was closed is no probe of the next time."""
    site = hands.site
    if mutated:
        site.replace(
            "admit_jobs", "where m.name = any (v_counting)",
            "where m.name in (select l.name from procjobs.limits l where l.max_running is not null)",
        )  # fmt: skip
    for number, step in ((1, "v_taken := procjobs.take_limit_state"), (2, "with held as (")):
        site.replace("admit_jobs", step, f"perform pg_advisory_xact_lock_shared({number});\n{step}")
    site.sql("select procjobs.set_breaker('b', tasks => array['work'])")
    site.sql("select procjobs.open_breaker('b', '1 hour')")
    jobs = [hands.fleet.defer() for _ in range(3)]
    worker = hands.fleet.worker()
    asleep = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = %s"
    with opened(site.dsn) as rival:
        rival.sql("select pg_advisory_lock(1), pg_advisory_lock(2)")
        claim = Thread(lambda: hands.fleet.claim_ids(worker, 3))
        until(lambda: rival.sql.one(asleep, 1) == 1)
        rival.sql("select procjobs.close_breaker('b')")
        rival.sql("select pg_advisory_unlock(1)")
        until(lambda: rival.sql.one(asleep, 2) == 1)
        rival.sql("select procjobs.open_breaker('b', '1 hour')")
        rival.sql("select pg_advisory_unlock(2)")
        assert sorted(claim.result()) == jobs
        assert rival.sql.one("select count(*) from procjobs.limit_grants") == (3 if mutated else 0)


# -- 17, 39: somebody holds what others need --------------------------------------------------------------------------


def patient(site: Site, function: str) -> None:
    """Let a function wait for locks as long as it takes."""
    timeout = site.sql.one(
        "select split_part(c, '=', 2) from pg_proc, unnest(proconfig) c "
        "where oid = to_regproc(%s) and c like 'lock_timeout=%%'",
        f"procjobs.{function}",
    )
    site.replace(function, f" SET lock_timeout TO '{timeout}'\n", "")


def waits_in_vain(site: Site, act: Callable[[], Any]) -> bool:
    """Do it in a thread: whether it waits for a lock for much longer than anything of ours should."""
    thread = Thread(act)
    found: str = until(lambda: "waits" if site.waiting(1.5) else "" if thread.is_alive() else "over")
    return found == "waits"


@MUTATED
def test_an_end_whose_row_somebody_holds(hands: Hands, mutated: bool) -> None:
    """Scenario 17: it is refused in time, so that the worker can send the others."""
    if mutated:
        patient(hands.site, "finish_jobs")
    fleet = hands.fleet
    worker = fleet.worker()
    fleet.defer_many(2)
    claims = fleet.claim(worker, 2)
    with opened(hands.site.dsn) as reporter, psycopg.connect(hands.site.dsn) as somebody:
        somebody.execute("select from procrastinate_jobs where id = %s for update", (claims[0].id,))
        assert waits_in_vain(hands.site, partial(reporter.finish, *claims)) == mutated
        if not mutated:
            assert reporter.finish(claims[1]) == [claims[1].id]


@MUTATED
def test_a_chore_whose_table_somebody_holds(hands: Hands, mutated: bool) -> None:
    """Scenario 17: the others are done all the same."""
    if mutated:
        patient(hands.site, "run_chore")
    job = hands.fleet.defer(scheduled_at=-1)
    hands.site.sql("update procrastinate_jobs set pj_waits_for = 'time' where id = %s", job)
    with opened(hands.site.dsn) as keeper, psycopg.connect(hands.site.dsn) as somebody:
        somebody.execute("lock table procjobs.worker_state in share mode")
        assert waits_in_vain(hands.site, lambda: keeper.sql("select procjobs.upkeep()")) == mutated
        assert hands.fleet.waits_for(job) == ("time" if mutated else None)


@MUTATED
def test_a_day_that_is_dropped_while_somebody_reads_the_history(hands: Hands, mutated: bool) -> None:
    """Scenario 39: who ends a job would wait behind whoever waits for the reader."""
    site, fleet = hands.site, hands.fleet
    if mutated:
        patient(site, "drop_old_partition")
    site.sql("select procjobs.set_retention('1 day')")
    site.sql("select procjobs.ensure_history_partition((now() - interval '9 days')::date)")
    worker = fleet.worker()
    fleet.defer()
    claims = fleet.claim(worker)
    with opened(site.dsn) as janitor, psycopg.connect(site.dsn) as reader:
        reader.execute("select count(*) from procjobs.job_history")
        assert waits_in_vain(site, lambda: janitor.sql("select procjobs.drop_old_partition()")) == mutated
        if mutated:
            with pytest.raises(psycopg.errors.LockNotAvailable):
                fleet.finish(*claims)
        else:
            assert fleet.finish(*claims) == [claims[0].id]


# -- 39: purging ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replaced", "most", "young"),
    [(None, 10, 5), (("limit p_max_rows", ""), 25, 5), (("o.finished_at < v_before", "true"), 10, 0)],
    ids=["as it is", "all at once", "of any age"],
)
def test_a_purge_takes_what_is_old_little_by_little(
    hands: Hands, replaced: tuple[str, str] | None, most: int, young: int
) -> None:
    """Scenario 39."""
    if replaced:
        hands.site.replace("delete_old_jobs", *replaced)
    hands.site.sql(
        "insert into procjobs.job_history (id, queue_name, task_name, priority, args, status, attempts, crashes, "
        "lease, finished_at) select -n, 'default', 'work', 0, '{}', 'succeeded', 1, 0, 1, "
        "now() - case when n <= 25 then interval '3 days' else interval '1 hour' end from generate_series(1, 30) n"
    )
    purge = "select procjobs.delete_old_jobs(48, null, array['succeeded'], 10)"
    passes = list(iter(lambda: hands.site.sql.one(purge), 0))
    assert max(passes) == most
    assert hands.site.sql.one("select count(*) from procjobs.job_history") == young


# -- 33, 34: what is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "without",
    [None, "drop index public.pj_jobs_ready", "drop index public.pj_jobs_ready_lock", "the order of that index"],
)
def test_a_claim_among_many_that_wait(hands: Hands, without: str | None) -> None:
    """Scenario 33: what waits behind it, is not due or is held by a lock costs a claim nothing, thanks to its indexes;
    also while the table was never analyzed, thanks to the order in which it asks."""
    sql, fleet = hands.site.sql, hands.fleet
    sql("alter table procrastinate_jobs disable trigger chaos_note_transition")
    if without == "the order of that index":
        hands.site.replace("take_jobs", "order by r.priority desc, r.id\n          limit 1", "limit 1")
    elif without:
        sql(without)
    worker = fleet.worker()
    fleet.defer_many(10, lock="urgent {n}")
    for lock, at, waits in (
        ("'free ' || n", "null", "null"),
        ("null", "now() + interval '1 day'", "'time'"),
        ("'urgent ' || n % 10", "null", "'lock'"),
    ):
        sql(
            "insert into procrastinate_jobs (task_name, queue_name, lock, scheduled_at, pj_waits_for, args) "
            f"select 'work', 'default', {lock}, {at}, {waits}, '{{}}' from generate_series(1, 1000) n"
        )
    read = entries_read(sql, lambda: fleet.claim(worker, 10))
    assert (sum(read.values()) > 500) == (without is not None), read


@MUTATED
def test_an_end_while_a_reader_keeps_every_dead_row(hands: Hands, mutated: bool) -> None:
    """Scenario 34: the index of what runs has a dead entry for each job that ran, so the finish goes by the key."""
    sql, fleet = hands.site.sql, hands.fleet
    if mutated:
        hands.site.replace("finish_jobs", "status is not distinct from 'doing'", "status = 'doing'")
    worker = fleet.worker()
    with psycopg.connect(hands.site.dsn) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("select count(*) from procrastinate_jobs")
        fleet.defer_many(510)
        while len(claims := fleet.claim(worker, 100)) == 100:
            fleet.finish(*claims)
        read = entries_read(sql, lambda: fleet.finish(*claims))
    assert (read.get("pj_jobs_running", 0) > 500) == mutated, read


# -- 35: arguments that nobody can read -------------------------------------------------------------------------------


@MUTATED
def test_a_number_that_python_cannot_read(hands: Hands, mutated: bool) -> None:
    """Scenario 35: it is refused when it is enqueued, instead of failing where it runs."""
    if mutated:
        hands.site.replace("has_long_number", "> 1000", "> 100000")
    args = f'{{"n": {"7" * 5000}}}'
    with pytest.raises(ValueError, match="integer string conversion"):
        json.loads(args)
    if mutated:
        assert hands.fleet.defer(args=args)
    else:
        with pytest.raises(psycopg.Error) as refused:
            hands.fleet.defer(args=args)
        assert refused.value.sqlstate == "PJ005"
