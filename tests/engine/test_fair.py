"""Queues whose next job is not simply the first by priority: tenants take turns, or waiting raises the priority."""

from __future__ import annotations

from collections import Counter
from typing import Any

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, crew


def defer_for(fleet: Fleet, tenant: str | None, count: int = 1, *, queue: str = "default", priority: int = 0) -> None:
    fleet.sql(
        "insert into procrastinate_jobs (task_name, queue_name, priority, args, pj_tenant) "
        "select 'work', %s, %s, '{}', %s from generate_series(1, %s)",
        queue, priority, tenant, count,
    )  # fmt: skip


def tenants(fleet: Fleet, worker: int, count: int) -> list[Any]:
    """Claim that many and say for whom, in the order of the claim."""
    jobs = fleet.claim_ids(worker, count)
    whose = dict(fleet.sql("select id, pj_tenant from procrastinate_jobs where id = any (%s)", jobs))
    return [whose[job] for job in jobs]


@pytest.fixture
def worker(fleet: Fleet) -> int:
    fleet.policy("work")
    return fleet.worker()


# -- fair ------------------------------------------------------------------------------------------------------------


def test_tenants_take_turns_within_a_claim(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "big", 1000)
    defer_for(fleet, "small", 2)
    defer_for(fleet, "tiny", 1)
    assert Counter(tenants(fleet, worker, 6)) == {"big": 3, "small": 2, "tiny": 1}


def test_tenants_take_turns_over_claims(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    for tenant in "abc":
        defer_for(fleet, tenant, 4)
    assert [tenants(fleet, worker, 1)[0] for _ in range(12)] == ["a", "b", "c"] * 4
    assert fleet.claim(worker) == []


def test_a_tenant_that_comes_late_has_its_turn_at_once(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "b", 5000)
    tenants(fleet, worker, 1)
    defer_for(fleet, "a", 1)
    assert "a" in [tenants(fleet, worker, 1)[0] for _ in range(2)]


def test_within_a_tenant_it_goes_by_priority_and_id(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "a", 1)
    defer_for(fleet, "a", 1, priority=9)
    defer_for(fleet, "b", 2)
    first = fleet.claim(worker, 2)
    assert sorted(claim.priority for claim in first) == [0, 9]


def test_jobs_of_nobody_take_their_turn_too(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "a", 50)
    defer_for(fleet, None, 2)
    assert None in tenants(fleet, worker, 3)


def test_jobs_of_nobody_are_those_of_one_tenant_more(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    for tenant in ("a", None, "b"):
        defer_for(fleet, tenant, 4)
    assert [tenants(fleet, worker, 1)[0] for _ in range(12)] == ["a", "b", None] * 4
    for tenant in ("a", None):
        defer_for(fleet, tenant, 20)
    for _ in range(5):
        assert Counter(tenants(fleet, worker, 2)) == {"a": 1, None: 1}
    assert Counter(tenants(fleet, worker, 7))[None] in (3, 4)


def test_jobs_of_nobody_have_their_turn_behind_thousands_with_tenants(fleet: Fleet, worker: int, sql: Sql) -> None:
    """No index has them apart: claims look a thousand further each until they have found them."""
    sql("select procjobs.set_queue('default', fair => true)")
    for tenant in "abc":
        defer_for(fleet, tenant, 1000, priority=1)
    defer_for(fleet, "c", 10)
    defer_for(fleet, None, 8)
    assert None in [tenants(fleet, worker, 1)[0] for _ in range(7)]
    assert Counter(tenants(fleet, worker, 1)[0] for _ in range(8)) == {"a": 2, "b": 2, "c": 2, None: 2}
    assert Counter(tenants(fleet, worker, 8)) == {"a": 2, "b": 2, "c": 2, None: 2}
    assert None in tenants(fleet, worker, 8)


def test_jobs_of_nobody_that_come_to_stand_before_those_that_wait_go_first(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "a", 1500, priority=2)
    defer_for(fleet, "a", 1500, priority=1)
    defer_for(fleet, None, 20)
    while None not in tenants(fleet, worker, 1):
        pass
    sql(
        "update procrastinate_jobs set pj_tenant = null "
        "where id in (select id from procrastinate_jobs where status = 'todo' and priority = 1 order by id limit 2)"
    )
    nobodies = [claim.priority for _ in range(16) for claim in fleet.claim(worker) if claim.priority != 2]
    # Each of them once, after a few of those that were known before; then those again.
    assert nobodies[:3].count(0) <= 3 and nobodies.count(1) == 2 and nobodies[-1] == 0


def test_many_workers_share_the_turns_of_nobody_behind_thousands(dsn: str, fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "a", 1500)
    defer_for(fleet, None, 100)
    defer_for(fleet, "b", 1500)
    done: list[int] = []

    def work(own: Fleet, mine: int) -> None:
        while claims := own.claim(mine, 50):
            done.extend(own.acknowledge(*claims))

    crew(dsn, 3, work)
    assert len(done) == len(set(done)) == 3100


def test_a_queue_that_is_not_fair_goes_by_priority_and_id(fleet: Fleet, worker: int) -> None:
    defer_for(fleet, "a", 5)
    defer_for(fleet, "b", 5)
    assert tenants(fleet, worker, 5) == ["a"] * 5


def test_a_thousand_tenants_and_a_hundred_thousand_jobs(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    sql(
        "insert into procrastinate_jobs (task_name, queue_name, priority, args, pj_tenant) "
        "select 'work', 'default', 0, '{}', 't' || n % 1000 from generate_series(1, 100000) n"
    )
    sql("analyze procrastinate_jobs")
    assert max(Counter(tenants(fleet, worker, 100)).values()) == 1


def test_many_workers_share_the_turns(dsn: str, fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    for tenant in "abcd":
        defer_for(fleet, tenant, 100)
    done: list[int] = []

    def work(own: Fleet, mine: int) -> None:
        while claims := own.claim(mine, 3):
            done.extend(own.acknowledge(*claims))

    crew(dsn, 4, work)
    assert len(done) == len(set(done)) == 400


def test_a_claim_does_not_wait_for_the_turn_of_another(fleet: Fleet, worker: int, sql: Sql, dsn: str) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    defer_for(fleet, "a", 2)
    with psycopg.connect(dsn) as other:
        other.execute("select from procjobs.queue_settings for update")
        sql("set statement_timeout = '5s'")
        assert len(fleet.claim(worker)) == 1


# -- fair, with limits -----------------------------------------------------------------------------------------------


def test_a_limit_of_a_fair_queue_holds_and_its_first_places_go_round(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    sql("select procjobs.set_limit('l', queue => 'default', max_running => 3)")
    defer_for(fleet, "big", 30)
    for tenant in ("mid", "tiny"):
        defer_for(fleet, tenant, 3)
    order = []
    running = fleet.claim(worker, 10)
    while running:
        assert len(running) <= 3 and fleet.claim(worker, 10) == []
        whose = dict(sql("select id, pj_tenant from procrastinate_jobs where status = 'doing'"))
        order.append(sorted(whose[claim.id] for claim in running))
        fleet.finish(*running)
        running = fleet.claim(worker, 10)
    assert sum(map(len, order)) == 36
    assert order[0] == ["big", "mid", "tiny"]


@pytest.mark.parametrize("most", [1, 3])
@pytest.mark.parametrize("small", [("mid", "tiny"), ("mid", None)])
def test_the_places_that_a_limit_of_a_fair_queue_frees_go_round(
    fleet: Fleet, worker: int, sql: Sql, most: int, small: tuple[str | None, ...]
) -> None:
    """However many jobs one tenant has among those that wait for it."""
    sql("select procjobs.set_queue('default', fair => true)")
    sql("select procjobs.set_limit('l', queue => 'default', max_running => %s)", most)
    defer_for(fleet, "big", 30)
    for tenant in small:
        defer_for(fleet, tenant, 4)
    order: list[str | None] = []
    while running := fleet.claim(worker, 10):
        whose = dict(sql("select id, pj_tenant from procrastinate_jobs where status = 'doing'"))
        assert len(running) == len(whose) <= most
        order += [whose[claim.id] for claim in running]
        fleet.finish(*running)
    assert len(order) == 38
    # The first claim looks further than it may start, so that its round begins anew.
    for tenant in small:
        assert order[:14].count(tenant) == 4, order


def test_a_tenant_at_its_limit_in_a_fair_queue_hides_nobody(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', fair => true)")
    sql("select procjobs.set_limit('l', queue => 'default', key => 'tenant', max_running => 2)")
    defer_for(fleet, "a", 500)
    defer_for(fleet, "b", 5)
    defer_for(fleet, None, 4)
    assert Counter(tenants(fleet, worker, 20)) == {"a": 2, "b": 2, None: 4}
    assert fleet.claim(worker, 20) == []
    job = sql.one("select min(id) from procrastinate_jobs where status = 'doing' and pj_tenant = 'b'")
    sql("update procrastinate_jobs set status = 'failed' where id = %s", job)
    assert tenants(fleet, worker, 20) == ["b"]


# -- ageing ----------------------------------------------------------------------------------------------------------


def aged(fleet: Fleet, priority: int, minutes: int) -> int:
    job = fleet.defer(priority=priority)
    fleet.sql(
        "update procrastinate_jobs set pj_created_at = pj_created_at - make_interval(mins => %s) where id = %s",
        minutes, job,
    )  # fmt: skip
    return job


def test_waiting_raises_the_priority(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', ageing => '10 minutes')")
    old, low, high = aged(fleet, 0, 45), aged(fleet, 0, 29), aged(fleet, 3, 0)
    assert [fleet.claim_ids(worker)[0] for _ in range(3)] == [old, high, low]


def test_without_ageing_low_priority_waits(fleet: Fleet, worker: int) -> None:
    old, high = aged(fleet, 0, 10_000), aged(fleet, 1, 0)
    assert [fleet.claim_ids(worker)[0] for _ in range(2)] == [high, old]


def test_a_stream_of_high_priority_does_not_starve_the_low(fleet: Fleet, worker: int, sql: Sql) -> None:
    sql("select procjobs.set_queue('default', ageing => '1 second')")
    low = fleet.defer(priority=0)
    for second in range(1, 20):
        with fleet.at(fleet.later(second)):
            sql(
                "insert into procrastinate_jobs (task_name, queue_name, priority, args, pj_created_at) "
                "values ('work', 'default', 10, '{}', procjobs.clock())"
            )
            if fleet.claim_ids(worker) == [low]:
                break
    else:
        pytest.fail("starved")
    assert 9 <= second <= 12


@pytest.mark.parametrize("keys", [{"fair": True, "ageing": "1 minute"}, {"ageing": "0"}, {"ageing": "-1 minute"}])
def test_what_cannot_be_set_is_refused(sql: Sql, keys: dict[str, Any]) -> None:
    named = ", ".join(f"{key} => %s" for key in keys)
    with pytest.raises(psycopg.Error) as refused:
        sql(f"select procjobs.set_queue('q', {named})", *keys.values())
    assert refused.value.sqlstate == "PJ010" and refused.value.diag.message_hint


# -- paused tasks ----------------------------------------------------------------------------------------------------


def test_a_paused_tasks_jobs_are_passed_over_and_hide_nobody(fleet: Fleet, sql: Sql) -> None:
    fleet.policy("other")
    fleet.policy("work")
    sql("select procjobs.pause_task('work', 'mail is down')")
    fleet.defer_many(300)
    free = fleet.defer("other")
    worker = fleet.worker("other")
    assert fleet.claim_ids(worker, 5) == [free]
    held = sql.one("select min(id) from procrastinate_jobs")
    assert "mail is down" in sql.one("select procjobs.why_not_running(%s)", held)
    sql("select procjobs.resume_task('work')")
    assert len(fleet.claim(worker, 400)) == 300
