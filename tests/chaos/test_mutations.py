"""With a safeguard taken out, the invariants must say so: what they guard against is real, and they see it.

Each scenario runs twice: as it is, nothing is wrong; with the safeguard replaced by what is natural without it, the
named invariant is broken. Of SQL, one text in one function is replaced in the test's database; of the worker, see
tests/chaos/mutants.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psycopg
import pytest

from tests.chaos.harness.fleet import runs_jobs
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site, until
from tests.engine.fleet import Claim, Fleet, Thread, opened


@dataclass
class Hands:
    """Workers played by hand, whose runs are in the executions."""

    site: Site
    fleet: Fleet

    def begin(self, claim: Claim) -> int:
        """The run of a claim begins; its number."""
        run: int = self.site.sql.one(
            "select chaos.begin_run(%s, %s, %s, %s, %s, null)", claim.id, claim.worker, claim.worker, claim.task, None
        )
        return run

    def end(self, run: int) -> None:
        self.site.sql("select chaos.end_run(%s, clock_timestamp())", run)


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
    work_off(hands, third)


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
    work_off(hands, third)


def two_claims_at_once(hands: Hands) -> None:
    """The second claim comes while the first is not committed yet."""
    fleet = hands.fleet
    first, second = fleet.worker(), fleet.worker()
    fleet.defer()
    with opened(hands.site.dsn) as rival:
        with fleet.sql.connection.transaction():
            claims = fleet.claim(first)
            other = Thread(lambda: rival.claim(second))
            until(lambda: not other.is_alive() or waiting(hands.site), timeout=10)
        claims += other.result()
    for claim in claims:
        fleet.finish(claim)


def two_claims_of_one_lock(hands: Hands) -> None:
    """A more urgent job of the lock comes while the first is being claimed, and is claimed too."""
    fleet = hands.fleet
    first, second = fleet.worker(), fleet.worker()
    fleet.defer(lock="one")
    with opened(hands.site.dsn) as rival:
        with fleet.sql.connection.transaction():
            claims = fleet.claim(first)
            rival.defer(lock="one", priority=9)
            other = Thread(lambda: rival.claim(second))
            until(lambda: not other.is_alive() or waiting(hands.site), timeout=10)
        claims += other.result()
    runs = [hands.begin(claim) for claim in claims]
    for run, claim in zip(runs, claims, strict=True):
        hands.end(run)
        fleet.finish(claim)
    work_off(hands, first)


def waiting(site: Site) -> bool:
    query = (
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )
    return bool(site.sql.one(query))


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


def a_retry_meets_its_sibling(hands: Hands) -> None:
    fleet = hands.fleet
    fleet.policy("work", max_attempts=5)
    worker = fleet.worker()
    fleet.defer(queueing_lock="one")
    (claim,) = fleet.claim(worker)
    fleet.defer(queueing_lock="one")
    with suppress(psycopg.errors.UniqueViolation):
        fleet.settle(claim, "failed")
    work_off(hands, worker)


def a_cancel_meets_a_claim(hands: Hands) -> None:
    """Cancelling waits for the claim under way and then sees that the job runs."""
    fleet = hands.fleet
    worker = fleet.worker()
    job = fleet.defer()
    with opened(hands.site.dsn) as rival:
        with fleet.sql.connection.transaction():
            (claim,) = fleet.claim(worker)
            other = Thread(lambda: rival.sql.one("select procjobs.cancel(%s)", job))
            until(lambda: not other.is_alive() or waiting(hands.site), timeout=10)
        other.result()
    hands.begin(claim)
    fleet.finish(claim)


def work_off(hands: Hands, worker: int) -> None:
    """Claim and end what is left."""
    while claims := hands.fleet.claim(worker, 5):
        for claim in claims:
            run = hands.begin(claim)
            hands.end(run)
            hands.fleet.finish(claim)


@dataclass(frozen=True)
class Mutation:
    """What is replaced where, and the invariant that must be broken by it."""

    name: str
    scenario: Callable[[Hands], None]
    replaced: tuple[tuple[str, str, str], ...]
    breaks: str
    also: str = ""


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
        "claim without row locks", two_claims_at_once, (("claim_jobs", "for update skip locked", ""),), "I8",
    ),
    Mutation(
        "no unique index on running locks", two_claims_of_one_lock, (), "I4",
        also="drop index public.procrastinate_jobs_lock_idx_v1",
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
        "a retry knows nothing of its sibling", a_retry_meets_its_sibling,
        (("requeue_job", "when unique_violation then", "when division_by_zero then"),), "I6",
    ),
    Mutation(
        "cancel does not wait for the claim", a_cancel_meets_a_claim,
        (("cancel", "for update;", ";"),), "I9",
    ),
]  # fmt: skip


@pytest.fixture
def hands(site: Site) -> Hands:
    site.sql("""select procjobs.register_tasks('[{"name": "work", "max_attempts": 1}]', 'chaos')""")
    return Hands(site, Fleet(site.sql))


def broken(site: Site) -> set[str]:
    return {violation.invariant for violation in site.violations()}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
@pytest.mark.parametrize("mutated", [False, True], ids=["as it is", "mutated"])
def test_sql_without_a_safeguard(hands: Hands, mutation: Mutation, mutated: bool) -> None:
    if mutated:
        for function, old, new in mutation.replaced:
            hands.site.replace(function, old, new)
        if mutation.also:
            hands.site.sql(mutation.also)
    mutation.scenario(hands)
    # No client enqueued them and nobody has an effect here.
    found = broken(hands.site) - {"I2", "I3"}
    assert mutation.breaks in found if mutated else not found, site_says(hands.site)


def site_says(site: Site) -> str:
    return "\n".join(map(str, site.violations())) or "nothing is wrong"


@pytest.mark.parametrize(
    ("locked", "ledger"),
    [(True, True), (False, True), (True, False), (False, False)],
    ids=["as it is", "no row lock", "no ledger", "neither"],
)
def test_a_slot_fires_once_by_the_row_lock_and_by_the_ledger(hands: Hands, locked: bool, ledger: bool) -> None:
    """Two clocks at once, the second while the first is not committed yet: either safeguard is enough alone."""
    sql = hands.site.sql
    sql("select procjobs.schedule('one', 'work', '0 0 1 1 *')")
    sql(
        "update procjobs.schedules set last_slot = now() - interval '1 hour', next_slot = now(), due_at = now() "
        "where name = 'one'"
    )
    # However slow the machine is, the second clock does not give up waiting.
    hands.site.replace("tick_schedules", "'300ms'", "'30s'")
    if not locked:
        hands.site.replace("tick_schedules", "for update skip locked", "")
    if not ledger:
        sql("alter table procjobs.schedule_ticks drop constraint schedule_ticks_pkey")
    with opened(hands.site.dsn) as rival:
        with sql.connection.transaction():
            assert sql.one("select procjobs.tick()") == 1
            other = Thread(lambda: rival.sql.one("select procjobs.tick()"))
            until(lambda: not other.is_alive() or waiting(hands.site), timeout=10)
        again = other.result()
    assert again == (0 if locked or ledger else 1)
    assert sql.one("select count(*) from procrastinate_jobs") == 1 + again


@pytest.mark.parametrize("mutant", ["none", "heartbeat_on_the_loop"])
def test_a_heart_that_jobs_can_hold(site: Site, mutant: str) -> None:
    """Scenario 22: two workers and a job that holds the loop for longer than its lease."""
    site.client.enqueue("block", lock="one", args={"seconds": 5.0})
    site.fleet.start_many(2, concurrency=1, app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    site.drained()
    until(lambda: site.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"))
    assert ("I4" in broken(site)) == (mutant != "none"), site_says(site)


@pytest.mark.parametrize("mutant", ["none", "no_self_fence"])
def test_a_worker_that_goes_on_without_a_database(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 14: cut off for longer than its lease, while another takes over."""
    proxied.client.enqueue("endure", lock="one")
    proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    proxied.running()
    proxy.blackhole()
    proxied.fleet.start(dsn=proxied.dsn)
    proxied.running(2)
    proxied.open_gate()
    until(lambda: proxied.sql.one("select count(*) from procjobs.job_history") == 1, what=proxied.left)
    proxy.heal()
    until(lambda: proxied.sql.one("select bool_and(not upper_inf(span)) from chaos.executions"))
    proxied.drained()
    assert ("I4" in broken(proxied)) == (mutant != "none"), site_says(proxied)


@pytest.mark.parametrize("mutant", ["none", "results_are_dropped"])
def test_a_result_that_could_not_be_reported(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 13: the report is lost on its way."""
    first = proxied.client.enqueue("work", 3)
    loss = proxy.lose("finish_jobs", what="request")
    proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    until(loss.happened.is_set, what=proxied.logs)
    second = proxied.client.enqueue("work", 3)
    proxied.ended(second)
    if mutant == "none":
        proxied.drained()
    assert ("I6" in broken(proxied)) == (mutant != "none"), site_says(proxied)
    assert len(first) == 3


@pytest.mark.parametrize("mutated", [False, True])
def test_a_claim_whose_reply_was_lost(proxied: Site, proxy: Proxy, mutated: bool) -> None:
    """Scenario 12: nobody gives the orphans back."""
    if mutated:
        proxied.replace("release_unknown", "and not exists (", "and false and not exists (")
    orphans = proxied.client.enqueue("work", 3)
    loss = proxy.lose("claim_jobs")
    proxied.fleet.start()
    until(loss.happened.is_set, what=proxied.logs)
    second = proxied.client.enqueue("work", 3)
    proxied.ended(second)
    if not mutated:
        proxied.drained()
    assert ("I6" in broken(proxied)) == mutated, site_says(proxied)
    assert len(orphans) == 3


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
    assert not broken(site), site_says(site)


@pytest.mark.parametrize("mutant", ["none", "hanging_heartbeat_is_waited_for"])
def test_a_heartbeat_whose_answer_never_comes(proxied: Site, proxy: Proxy, mutant: str) -> None:
    """Scenario 15: half open. Given up in good time the lease holds; waited for, it is lost."""
    worker = proxied.fleet.start(app="tests.chaos.mutants.app", CHAOS_MUTANT=mutant)
    beats = "select 1 from procjobs.worker_state where last_heartbeat > started_at"
    until(lambda: proxied.sql(beats), what=proxied.logs)
    before = proxied.sql.one("select max(last_heartbeat) from procjobs.worker_state")
    until(lambda: proxy.forsake("procjobs heartbeat"))
    again = "select max(last_heartbeat) > %s::timestamptz + interval '3 s' from procjobs.worker_state"
    until(
        lambda: proxied.sql.one(again, before) or worker.said("no heartbeat for") or silent(proxied), what=proxied.logs
    )
    assert silent(proxied) == (mutant != "none"), proxied.logs()


def silent(site: Site) -> bool:
    """Whether a worker did not beat for longer than its lease."""
    query = "select exists (select from procjobs.worker_state where last_heartbeat < clock_timestamp() - lease)"
    return bool(site.sql.one(query))


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
