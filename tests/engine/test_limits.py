"""Limits on rate and concurrency: exact over the fleet, never leaking, hiding nobody."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Claim, Fleet, Thread, crew, held, limit, opened, waits_for_a_row


def defer_for_users(sql: Sql, count: int, users: int, priority: str = "0") -> None:
    """`count` jobs for that many users; priority is an expression."""
    sql(
        f"select count(e) from generate_series(1, {count}) n, procjobs.enqueue_jobs(array['work'], array['default'], "
        f"array[{priority}], array[null], array[null], array[format('{{\"u\": %s}}', n % {users})], "
        "array[null::timestamptz]) e"
    )


# -- concurrency -----------------------------------------------------------------------------------------------------


def test_no_more_run_than_the_limit_allows_and_a_finish_lets_the_next_go(fleet: Fleet) -> None:
    limit(fleet, max_running=2)
    jobs = [fleet.defer() for _ in range(5)]
    worker = fleet.worker()
    first = fleet.claim(worker, 5)
    assert [claim.id for claim in first] == jobs[:2]
    assert fleet.claim(worker, 5) == []
    fleet.finish(first[0])
    assert fleet.claim_ids(worker, 5) == [jobs[2]]


def test_jobs_that_meet_a_limit_hide_nobody(fleet: Fleet) -> None:
    limit(fleet, max_running=1)
    fleet.defer_many(3_000)
    fleet.policy("other")
    free = [fleet.defer("other") for _ in range(5)]
    assert fleet.claim_ids(fleet.worker("other"), 6)[1:] == free


def test_the_jobs_that_wait_go_by_priority_and_id(fleet: Fleet) -> None:
    limit(fleet, max_running=1)
    low, high, late = fleet.defer(), fleet.defer(priority=5), fleet.defer(priority=5)
    worker = fleet.worker()
    order = []
    while claims := fleet.claim(worker, 3):
        order += fleet.finish(*claims)
    assert order == [high, late, low]


@pytest.mark.parametrize("disposal", ["archive", "keep", "delete"])
def test_a_finish_in_any_form_releases(fleet: Fleet, disposal: str) -> None:
    limit(fleet, max_running=1)
    fleet.defer(), fleet.defer()
    worker = fleet.worker()
    fleet.finish(*fleet.claim(worker), disposal=disposal)
    assert len(fleet.claim(worker, 5)) == 1


@pytest.mark.parametrize(
    "end",
    [
        {"outcome": "failed", "retry": "never"},
        {"outcome": "failed", "retry": "at"},
        {"outcome": "snoozed", "delay": 60},
        {"outcome": "released", "started": True},
        {"outcome": "cancelled"},
        {"outcome": "discarded"},
        {"outcome": "crashed"},
        {"outcome": "parked"},
    ],
)
def test_every_other_end_of_a_run_releases(fleet: Fleet, sql: Sql, end: dict[str, Any]) -> None:
    limit(fleet, max_running=1)
    fleet.defer(), fleet.defer()
    worker = fleet.worker()
    (claim,) = fleet.claim(worker)
    fleet.settle(claim, **end)
    assert sql("select * from procjobs.limit_grants") == []
    assert len(fleet.claim(worker, 5)) == 1


def test_a_dead_workers_grants_go_with_its_jobs(fleet: Fleet) -> None:
    limit(fleet, max_running=1)
    fleet.defer(), fleet.defer()
    dead = fleet.worker()
    (claim,) = fleet.claim(dead)
    fleet.die(dead)
    fleet.sql("select procjobs.upkeep()")
    (next_claim,) = fleet.claim(fleet.worker(), 5)
    assert next_claim.id != claim.id, "the crashed one waits a little"


@pytest.mark.parametrize(
    "statement",
    [
        "delete from procrastinate_jobs where status = 'doing'",
        "update procrastinate_jobs set status = 'failed' where status = 'doing'",
        "select procrastinate_finish_job_v1(id, 'succeeded', true) from procrastinate_jobs where status = 'doing'",
        "select procrastinate_retry_job_v1(id, now(), null, null, null) from procrastinate_jobs where status = 'doing'",
    ],
)
def test_whoever_ends_a_job_by_hand_releases_too(fleet: Fleet, sql: Sql, statement: str) -> None:
    limit(fleet, max_running=1)
    fleet.defer(), fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    sql(statement)
    assert sql("select * from procjobs.limit_grants") == []
    assert len(fleet.claim(worker, 5)) == 1


def test_a_limit_of_none_lets_nothing_go(fleet: Fleet) -> None:
    limit(fleet, max_running=0)
    fleet.defer()
    assert fleet.claim(fleet.worker(), 5) == []


def test_each_value_of_a_key_has_a_count_of_its_own(fleet: Fleet) -> None:
    limit(fleet, max_running=1, key="args.user.id")
    first = [fleet.defer(args=f'{{"user": {{"id": {user}}}}}') for user in (1, 1, 2, 2, 3)]
    none = fleet.defer(args='{"user": null}')
    worker = fleet.worker()
    assert sorted(fleet.claim_ids(worker, 10)) == [first[0], first[2], first[4], none], "without the value: no limit"


def test_a_limit_by_lock_or_tenant(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "t", max_running=1, key="tenant")
    jobs = [fleet.defer() for _ in range(4)]
    sql("update procrastinate_jobs set pj_tenant = case when id % 2 = 0 then 'even' else 'odd' end")
    assert fleet.claim_ids(fleet.worker(), 10) == jobs[:2]


def test_a_limit_by_a_lock_counts_the_starts_under_it(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "l", rate=1, per="1 hour", key="lock")
    first, second, other = fleet.defer(lock="a"), fleet.defer(lock="a"), fleet.defer(lock="b")
    worker = fleet.worker()
    one, two = fleet.claim(worker, 10)
    assert [one.id, two.id] == [first, other]
    fleet.finish(one)
    assert fleet.claim(worker, 10) == [] and fleet.waits_for(second) == "limit"


@pytest.mark.parametrize("queues", [None, ["mail"]])
def test_a_limit_by_a_key_alone_is_for_all_tasks_and_queues(fleet: Fleet, sql: Sql, queues: list[str] | None) -> None:
    sql("select procjobs.set_limit('share', key => 'tenant', max_running => 2)")
    worker = fleet.worker("other")
    running = [fleet.defer("other", queue="reports"), fleet.defer(queue="mail")]
    sql("update procrastinate_jobs set pj_tenant = 'a'")
    assert sorted(fleet.claim_ids(worker, 10)) == running
    more = [fleet.defer(queue="mail") for _ in range(3)]
    sql(
        "update procrastinate_jobs set pj_tenant = case when id = %s then 'b' else 'a' end where status = 'todo'",
        more[1],
    )
    free = fleet.defer(queue="mail")
    assert fleet.claim_ids(worker, 10, queues=queues) == [more[1], free]
    assert fleet.waits_for(more[0]) == fleet.waits_for(more[2]) == "limit"
    assert "share" in sql.one("select procjobs.why_not_running(%s)", more[0])


def test_a_job_under_two_limits_needs_room_in_both(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "all", max_running=3)
    limit(fleet, "each", max_running=1, key="args.u")
    for user in (1, 1, 2, 2, 3, 3, 4, 4):
        fleet.defer(args=f'{{"u": {user}}}')
    worker = fleet.worker()
    claims: list[Claim] = []
    for _ in range(5):
        claims += fleet.claim(worker, 10)
        sql("select procjobs.sweep_limits()")
    assert len(claims) == 3
    users = sql("select args ->> 'u' from procrastinate_jobs where status = 'doing'")
    assert len(set(users)) == 3


def test_a_limit_of_a_queue_is_for_all_its_tasks_and_for_no_other_queue(fleet: Fleet) -> None:
    limit(fleet, queue="mail", max_running=1)
    for queue in ("mail", "mail", "other", "other"):
        fleet.defer(queue=queue)
    assert [claim.queue for claim in fleet.claim(fleet.worker(), 10)].count("mail") == 1
    assert fleet.sql.one("select count(*) from procrastinate_jobs where status = 'doing'") == 3


def test_a_lock_and_a_limit_together(fleet: Fleet) -> None:
    limit(fleet, max_running=1)
    jobs = [fleet.defer(lock=lock) for lock in ("a", "a", "b", "b")]
    worker = fleet.worker()
    order: list[int] = []
    while claims := fleet.claim(worker, 5):
        assert len(claims) == 1
        order += fleet.finish(*claims)
    assert sorted(order) == jobs and order.index(jobs[0]) < order.index(jobs[1])


def test_it_is_exact_with_many_claimers(dsn: str, fleet: Fleet, sql: Sql) -> None:
    limit(fleet, max_running=3)
    limit(fleet, "u", max_running=1, key="args.u")
    defer_for_users(sql, 200, 7)
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    worst: list[tuple[int, int]] = []
    done: list[int] = []

    def work(own: Fleet, worker: int) -> None:
        chance = random.Random(seed + worker)
        while len(done) < 200:
            claims = own.claim(worker, chance.randint(1, 5))
            worst.extend(
                own.sql(
                    "select coalesce(sum(n), 0), coalesce(max(n), 0) from (select count(*) as n "
                    "from procrastinate_jobs where status = 'doing' group by args ->> 'u') q"
                )
            )
            for claim in claims:
                done.extend(own.acknowledge(claim))
            if not claims:
                own.sql("select procjobs.sweep_limits()")

    crew(dsn, 6, work)
    assert sorted(done) == sorted(set(done)) and len(done) == 200
    assert max(n for n, _ in worst) <= 3 and max(n for _, n in worst) <= 1


def test_a_rate_is_exact_with_many_claimers(dsn: str, fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=20, per="1 hour")
    limit(fleet, "u", rate=3, per="1 hour", key="args.u")
    defer_for_users(sql, 200, 5)
    started: list[int] = []

    def work(own: Fleet, worker: int) -> None:
        for count in (1, 4, 2, 7, 3, 1, 5) * 4:
            started.extend(own.claim_ids(worker, count))
            own.sql("select procjobs.sweep_limits()")

    crew(dsn, 6, work)
    assert len(started) == len(set(started)) == 15
    assert sql(
        "select args ->> 'u', count(*) from procrastinate_jobs where status = 'doing' group by 1 order by 1"
    ) == [(str(user), 3) for user in range(5)]


def test_two_claims_that_need_the_same_keys_crosswise_do_not_deadlock(dsn: str, fleet: Fleet, sql: Sql) -> None:
    limit(fleet, max_running=500, key="args.u")
    defer_for_users(sql, 3000, 50, priority="(random() * 9)::int")
    deadlocks = "select deadlocks from pg_stat_database where datname = current_database()"
    before = sql.one(deadlocks)

    def work(own: Fleet, worker: int) -> None:
        while claims := own.claim(worker, 40):
            own.acknowledge(*claims)

    crew(dsn, 4, work)
    assert sql.one("select count(*) from procrastinate_jobs") == 0
    assert sql.one(deadlocks) == before


# -- excess ----------------------------------------------------------------------------------------------------------


def test_excess_is_dropped_and_recorded(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "one", max_running=1, on_excess="drop")
    first, second = fleet.defer(), fleet.defer()
    assert fleet.claim_ids(fleet.worker(), 5) == [first]
    assert sql("select id, state, note from procjobs.jobs where id = %s", second) == [
        (second, "cancelled", "dropped: limit one was reached")
    ]


def test_the_oldest_is_asked_to_make_room(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, "one", max_running=1, on_excess="cancel_oldest")
    fleet.defer()
    worker = fleet.worker()
    (old,) = fleet.claim(worker)
    new = fleet.defer()
    assert fleet.claim(worker, 5) == []
    assert sql.one("select procjobs.abort_requests(%s)", worker) == [old.id]
    fleet.settle(old, "cancelled")
    assert sql.one("select note from procjobs.jobs where id = %s", old.id) == "a newer job takes its place"
    assert fleet.claim_ids(worker, 5) == [new]


@pytest.mark.parametrize("on_excess", ["drop", "cancel_oldest", "wait"])
def test_a_key_that_another_claim_holds_is_not_exhausted_for_that(
    fleet: Fleet, rival: Fleet, sql: Sql, on_excess: str
) -> None:
    limit(fleet, "u", max_running=3, key="args.u", on_excess=on_excess)
    worker = fleet.worker()
    for user in (1, 1, 1, 2):
        fleet.defer(args=f'{{"u": {user}}}')
    *ones, running = fleet.claim_ids(worker, 4)
    theirs = fleet.defer(args='{"u": 2}', priority=9)
    fleet.defer(args='{"u": 1}')
    ours = fleet.defer(args='{"u": 2}')
    with rival.sql.connection.transaction():
        assert rival.claim_ids(worker, 1) == [theirs]
        # The first in line meets a limit that is exhausted; the next one a key that the other claim holds.
        assert fleet.claim_ids(worker, 1) == []
    assert (fleet.status(ours), fleet.waits_for(ours)) == ("todo", "limit")
    asked = sql.one("select procjobs.abort_requests(%s)", worker)
    assert asked == (ones[:1] if on_excess == "cancel_oldest" else []) and running not in asked
    sql("select procjobs.sweep_limits()")
    assert fleet.claim_ids(worker, 1) == [ours]


# -- setting, seeing, forgetting -------------------------------------------------------------------------------------


def test_a_raised_limit_lets_waiting_jobs_go_at_once(fleet: Fleet) -> None:
    limit(fleet, max_running=1)
    fleet.defer_many(5)
    worker = fleet.worker()
    fleet.claim(worker, 5)
    limit(fleet, max_running=3)
    assert len(fleet.claim(worker, 5)) == 2


def test_a_new_limit_counts_what_runs_already(fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(4)
    worker = fleet.worker()
    claims = fleet.claim(worker, 2)
    limit(fleet, max_running=2)
    assert fleet.claim(worker, 5) == []
    fleet.finish(*claims)
    assert len(fleet.claim(worker, 5)) == 2


def test_a_claim_that_began_before_the_limit_was_set_counts(fleet: Fleet, rival: Fleet, sql: Sql) -> None:
    fleet.defer_many(5)
    worker = rival.worker()
    with rival.sql.connection.transaction():
        early = rival.claim(worker, 2)
        limit(fleet, max_running=2)
    sql("select procjobs.upkeep()")
    assert fleet.claim(fleet.worker(), 5) == []
    rival.finish(*early)
    assert len(fleet.claim(fleet.worker(), 5)) == 2


def test_a_dropped_limit_lets_all_go(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, max_running=1)
    fleet.defer_many(5)
    worker = fleet.worker()
    fleet.claim(worker, 5)
    assert sql.one("select procjobs.drop_limit('l')") and not sql.one("select procjobs.drop_limit('l')")
    assert len(fleet.claim(worker, 5)) == 4


@pytest.mark.parametrize(
    "change",
    [
        "select procjobs.drop_limit('l')",
        "select procjobs.set_limit('l', task => 'work', max_running => 3)",
        "select procjobs.drop_limit('l') and procjobs.set_limit('l', task => 'work', max_running => 3)",
    ],
    ids=["dropped", "raised", "dropped and set again"],
)
def test_what_a_claim_turned_away_while_its_limit_was_changed_goes_on_with_the_next_sweep(
    fleet: Fleet, rival: Fleet, sql: Sql, change: str
) -> None:
    limit(fleet, max_running=1)
    fleet.defer_many(3)
    with rival.sql.connection.transaction():
        assert (
            len(rival.claim(rival.worker(), 3)) == 1
        )  # nobody else sees yet which two it turned away, nor that the key is in use
        assert sql.one(change) is True
    worker = fleet.worker()
    assert (held(fleet), fleet.claim(worker, 3)) == (2, [])
    sql("select procjobs.sweep_limits()")
    assert (held(fleet), len(fleet.claim(worker, 3))) == (0, 2)


def test_a_limit_is_dropped_after_the_claim_that_holds_its_key_and_leaves_nothing_to_the_sweep(
    dsn: str, fleet: Fleet, rival: Fleet, sql: Sql, eventually: Callable[..., Any]
) -> None:
    limit(fleet, max_running=1)
    fleet.defer()
    fleet.finish(*fleet.claim(fleet.worker()))
    fleet.defer_many(3)
    with opened(dsn) as other:
        with rival.sql.connection.transaction():
            assert len(rival.claim(rival.worker(), 3)) == 1
            dropping = Thread(lambda: other.sql.one("select procjobs.drop_limit('l')"))
            eventually(lambda: waits_for_a_row(sql, other.sql.connection))
        assert dropping.result() is True
    assert (held(fleet), len(fleet.claim(fleet.worker(), 3))) == (0, 2)


def test_it_can_be_seen(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, max_running=1, rate=10, per="1 minute")
    fleet.defer_many(3)
    fleet.claim(fleet.worker(), 3)
    found = sql("select key, running, started, waiting, resets_at from procjobs.limit_use where name = 'l'")
    assert found == [("l", 1, 1, 2, None)]
    waiting = sql.one("select max(id) from procjobs.jobs where state = 'limited'")
    assert "limit l" in sql.one("select procjobs.why_not_running(%s)", waiting)


def test_an_exhausted_rate_says_when_it_resets(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, rate=1, per="1 minute")
    fleet.defer_many(2)
    fleet.claim(fleet.worker(), 3)
    assert sql.one(
        "select resets_at between clock_timestamp() and clock_timestamp() + '1 minute' "
        "from procjobs.limit_use where name = 'l'"
    )
    waiting = sql.one("select max(id) from procjobs.jobs where state = 'limited'")
    assert "the next may at" in sql.one("select procjobs.why_not_running(%s)", waiting)


def test_state_that_nobody_uses_is_forgotten(fleet: Fleet, sql: Sql) -> None:
    limit(fleet, max_running=1, key="args.u")
    fleet.defer(args='{"u": 1}'), fleet.defer(args='{"u": 2}')
    worker = fleet.worker()
    one, _two = fleet.claim(worker, 2)
    fleet.finish(one)
    assert sql.one("select procjobs.forget_limit_state()") == 1
    assert sql("select key from procjobs.limit_state") == [("l:2",)]


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"max_running": 1, "task": None},
        {"max_running": 1, "task": None, "queue": None},
        {"max_running": -1},
        {"rate": 5},
        {"per": "1 second"},
        {"rate": 0, "per": "1 second"},
        {"rate": 1, "per": "1 second", "rate_counts": "ends"},
        {"max_running": 1, "rate_counts": "starts"},
        {"rate": 1, "per": "0 seconds"},
        {"max_running": 1, "key": "user_id"},
        {"max_running": 1, "on_excess": "explode"},
        {"rate": 1, "per": "1 second", "on_excess": "cancel_oldest"},
    ],
)
def test_what_is_no_limit_is_refused_with_the_reason(fleet: Fleet, keys: dict[str, Any]) -> None:
    with pytest.raises(psycopg.Error) as refused:
        limit(fleet, **{"task": "work", **keys})
    assert refused.value.sqlstate == "PJ009"
    assert refused.value.diag.message_detail and refused.value.diag.message_hint


def test_a_name_with_a_colon_is_refused(fleet: Fleet) -> None:
    with pytest.raises(psycopg.Error, match="cannot be set"):
        limit(fleet, "a:b", max_running=1)
