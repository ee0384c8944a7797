"""Leases without a safeguard: who is taken for dead, what a zombie may still say, how often a job may crash.

Scenarios 2 to 5, 7, 9, 21, 28 and 32, call by call.
"""

from __future__ import annotations

from contextlib import suppress

import psycopg
import pytest

from tests.chaos.harness.hands import MUTATED, Hands, Mutation


def a_zombie_finishes(hands: Hands) -> None:
    """Taken for dead, it reports its run after somebody else has begun another; a third waits for the lock."""
    fleet = hands.fleet
    zombie, second, third = (fleet.worker() for _ in range(3))
    fleet.defer(lock="one")
    (stale,) = fleet.claim(zombie)
    fleet.die(zombie)
    fleet.sql("select procjobs.rescue_jobs()")
    fleet.sql("update procrastinate_jobs set scheduled_at = null")
    (fresh,) = fleet.claim(second)
    run = hands.begin(fresh)
    fleet.defer(lock="one")
    fleet.finish(stale)
    others = fleet.claim(third)
    runs = [hands.begin(claim) for claim in others]
    hands.end(run)
    fleet.finish(fresh)
    for number, claim in zip(runs, others, strict=True):
        hands.end(number)
        fleet.finish(claim)
    hands.work_off(third)


def a_zombie_settles(hands: Hands) -> None:
    """The same with a failure: it would give away the job that somebody else runs."""
    fleet = hands.fleet
    fleet.policy("work", max_attempts=5, backoff_base=0, backoff_cap=0)
    zombie, second, third = (fleet.worker() for _ in range(3))
    fleet.defer(lock="one")
    (stale,) = fleet.claim(zombie)
    fleet.die(zombie)
    fleet.sql("select procjobs.rescue_jobs()")
    fleet.sql("update procrastinate_jobs set scheduled_at = null")
    (fresh,) = fleet.claim(second)
    run = hands.begin(fresh)
    fleet.settle(stale, "failed")
    others = fleet.claim(third, 5)
    runs = [hands.begin(claim) for claim in others]
    hands.end(run)
    fleet.finish(fresh)
    for number, claim in zip(runs, others, strict=True):
        hands.end(number)
        fleet.finish(claim)
    hands.work_off(third)


def a_job_kills_every_worker(hands: Hands) -> None:
    fleet = hands.fleet
    fleet.defer()
    for _ in range(6):
        worker = fleet.worker()
        for claim in fleet.claim(worker):
            hands.begin(claim)
        fleet.die(worker)
        fleet.sql("select procjobs.rescue_jobs()")
        fleet.sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")


def rescue_while_a_worker_lives(hands: Hands) -> None:
    """Its heart beats; upkeep comes by, and a colleague claims."""
    fleet = hands.fleet
    worker, colleague = fleet.worker(), fleet.worker()
    fleet.defer(lock="one")
    (claim,) = fleet.claim(worker)
    run = hands.begin(claim)
    fleet.sql("select procjobs.heartbeat(%s), procjobs.rescue_jobs()", worker)
    fleet.sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")
    others = fleet.claim(colleague)
    runs = [hands.begin(other) for other in others]
    for number, ended in zip([run, *runs], [claim, *others], strict=True):
        hands.end(number)
        fleet.finish(ended)


def the_first_look_after_an_outage(hands: Hands) -> None:
    """Every heartbeat is old: nobody could write one. The worker runs on and beats as soon as it can."""
    fleet = hands.fleet
    worker = fleet.worker()
    fleet.defer(lock="one")
    (claim,) = fleet.claim(worker)
    run = hands.begin(claim)
    fleet.sql("update procjobs.worker_state set last_heartbeat = last_heartbeat - interval '1 hour'")
    fleet.sql("select procjobs.rescue_jobs()")
    fleet.sql("select procjobs.heartbeat(%s)", worker)
    fleet.sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")
    colleague = fleet.worker()
    others = fleet.claim(colleague)
    runs = [hands.begin(other) for other in others]
    for number, ended in zip([run, *runs], [claim, *others], strict=True):
        hands.end(number)
        fleet.finish(ended)


def die_and_wait(hands: Hands, before: str) -> None:
    """A worker dies. `before` it is looked at, now and in a minute, its row is changed. Another takes the job."""
    fleet = hands.fleet
    worker = fleet.worker()
    fleet.defer()
    (claim,) = fleet.claim(worker)
    hands.begin(claim)
    fleet.sql(f"update procjobs.worker_state set {before}")
    fleet.sql("select procjobs.rescue_jobs()")
    with fleet.at(fleet.later(60)):
        fleet.sql("select procjobs.rescue_jobs()")
    fleet.sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")
    hands.work_off(fleet.worker())


def a_clock_is_set_back(hands: Hands) -> None:
    """Its last heartbeat is from a time that has not come."""
    die_and_wait(hands, "last_heartbeat = now() + interval '1 hour'")


def a_clock_is_set_back_after_the_first_look(hands: Hands) -> None:
    die_and_wait(hands, "last_heartbeat = now() + interval '59 min', suspected_at = now() + interval '1 hour'")


def a_retry_meets_its_sibling(hands: Hands) -> None:
    fleet = hands.fleet
    fleet.policy("work", max_attempts=5)
    worker = fleet.worker()
    fleet.defer(queueing_lock="one")
    (claim,) = fleet.claim(worker)
    fleet.defer(queueing_lock="one")
    with suppress(psycopg.errors.UniqueViolation):
        fleet.settle(claim, "failed")
    hands.work_off(worker)


_LEASE = "and j.pj_lease = (v_result ->> 'lease')::integer"
MUTATIONS = [
    Mutation(
        "finish without the fence", a_zombie_finishes,
        (("finish_jobs", "and j.pj_lease = f.lease\n        and j.worker_id = p_worker", ""),), "I4",
    ),
    Mutation(
        "settle without the fence", a_zombie_settles,
        (("settle_jobs", f"and j.worker_id = p_worker\n      {_LEASE}", ""),), "I4",
    ),
    Mutation(
        "crashes are not counted", a_job_kills_every_worker,
        (("settle_crash", "p_job.pj_crashes + 1", "p_job.pj_crashes"),), "I7",
    ),
    Mutation(
        "rescue does not ask who lives", rescue_while_a_worker_lives,
        (("living_workers", "and w.stopped_at is null\n  union", "and false\n  union"),), "I4",
    ),
    Mutation(
        "one look instead of two", the_first_look_after_an_outage,
        (("mark_dead_workers", "case when w.suspected_at < v_now - w.heartbeat_every then v_now end", "v_now"),), "I4",
    ),
    Mutation(
        "a heartbeat from the future is a heartbeat", a_clock_is_set_back,
        (("mark_dead_workers", "not between v_now - w.lease and v_now + w.lease", "< v_now - w.lease"),), "I6",
    ),
    Mutation(
        "a suspicion from the future is one", a_clock_is_set_back_after_the_first_look,
        (("mark_dead_workers", "least(w.suspected_at, v_now)", "coalesce(w.suspected_at, v_now)"),), "I6",
    ),
    Mutation(
        "a retry knows nothing of its sibling", a_retry_meets_its_sibling,
        (("requeue_job", "when unique_violation then", "when division_by_zero then"),), "I6",
    ),
]  # fmt: skip


@MUTATED
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_lease_without_a_safeguard(hands: Hands, mutation: Mutation, mutated: bool) -> None:
    mutation.check(hands, mutated)
