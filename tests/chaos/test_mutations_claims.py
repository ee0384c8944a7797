"""Claims without a safeguard: two at once, two of one lock, one that is cancelled meanwhile; two clocks at one slot.

Scenarios 1, 6, 25, 26, 30, 31, 40.
"""

from __future__ import annotations

import pytest

from tests.chaos.harness.hands import MUTATED, Hands, Mutation
from tests.chaos.harness.site import until
from tests.engine.fleet import Thread, opened


def two_claims_at_once(hands: Hands) -> None:
    """The second claim comes while the first is not committed yet."""
    fleet = hands.fleet
    first, second = fleet.worker(), fleet.worker()
    fleet.defer()
    with opened(hands.site.dsn) as rival:
        with fleet.sql.connection.transaction():
            claims = fleet.claim(first)
            other = Thread(lambda: rival.claim(second))
            until(lambda: not other.is_alive() or hands.site.waiting(), timeout=10)
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
            until(lambda: not other.is_alive() or hands.site.waiting(), timeout=10)
        claims += other.result()
    runs = [hands.begin(claim) for claim in claims]
    for run, claim in zip(runs, claims, strict=True):
        hands.end(run)
        fleet.finish(claim)
    hands.work_off(first)


def a_cancel_meets_a_claim(hands: Hands) -> None:
    """Cancelling waits for the claim under way and then sees that the job runs."""
    fleet = hands.fleet
    worker = fleet.worker()
    job = fleet.defer()
    with opened(hands.site.dsn) as rival:
        with fleet.sql.connection.transaction():
            (claim,) = fleet.claim(worker)
            other = Thread(lambda: rival.sql.one("select procjobs.cancel(%s)", job))
            until(lambda: not other.is_alive() or hands.site.waiting(), timeout=10)
        other.result()
    hands.begin(claim)
    fleet.finish(claim)


MUTATIONS = [
    Mutation(
        "claim without row locks", two_claims_at_once, (("claim_jobs", "for update skip locked", ""),), "I8",
    ),
    Mutation(
        "no unique index on running locks", two_claims_of_one_lock, (), "I4",
        also="drop index public.procrastinate_jobs_lock_idx_v1",
    ),
    Mutation(
        "cancel does not wait for the claim", a_cancel_meets_a_claim,
        (("cancel", "for update;", ";"),), "I9",
    ),
]  # fmt: skip


@MUTATED
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_claim_without_a_safeguard(hands: Hands, mutation: Mutation, mutated: bool) -> None:
    mutation.check(hands, mutated)


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
            until(lambda: not other.is_alive() or hands.site.waiting(), timeout=10)
        again = other.result()
    assert again == (0 if locked or ledger else 1)
    assert sql.one("select count(*) from procrastinate_jobs") == 1 + again


ORDER = "and (r.priority > c.priority or (r.priority = c.priority and r.id < c.id))"
HELD = "and o.pj_waits_for is null\n        and o.priority >= new.priority"


@pytest.mark.parametrize(
    "replaced",
    [
        None,
        ("take_jobs", f"and r.pj_waits_for is null\n            {ORDER}", ORDER),
        ("set_waiting", HELD, "and o.priority >= new.priority"),
    ],
    ids=["as it is", "the claim sees it", "the next job sees it"],
)
def test_a_future_job_that_holds_its_lock(hands: Hands, replaced: tuple[str, str, str] | None) -> None:
    """Scenario 31: more urgent, but not due; what is due does not wait for it."""
    if replaced:
        hands.site.replace(*replaced)
    worker = hands.fleet.worker()
    hands.fleet.defer(lock="one", priority=9, scheduled_at=3600)
    due = hands.fleet.defer(lock="one")
    assert hands.fleet.claim_ids(worker, 5) == ([] if replaced else [due])


@MUTATED
def test_a_job_that_waits_for_who_knows_its_task(hands: Hands, mutated: bool) -> None:
    """Scenario 25: put aside by the old release, found by the new one. That the old one leaves it alone is tested in
    test_mutations_worker.py."""
    if mutated:
        hands.site.replace("claim_jobs", "if v_context.parked then", "if false then")
    hands.fleet.policy("new_work")
    old = hands.fleet.worker()
    job = hands.fleet.defer("new_work")
    assert hands.fleet.claim_ids(old) == []
    assert hands.fleet.waits_for(job) == "task"
    new = hands.fleet.worker("new_work")
    assert hands.fleet.claim_ids(new) == ([] if mutated else [job])
