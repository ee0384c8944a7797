"""Limits, rates, unique keys and batches without a safeguard: what I13 to I15 see."""

from __future__ import annotations

import json

import pytest

from tests.chaos.harness.hands import MUTATED, Hands, Mutation
from tests.processes import wait_for


def limited_jobs(hands: Hands) -> None:
    """Three claims, of which only one may have a job at a time."""
    fleet = hands.fleet
    hands.site.sql("select procjobs.set_limit('one', task => 'work', max_running => 1)")
    fleet.defer_many(3)
    workers = [fleet.worker() for _ in range(3)]
    claims = [claim for worker in workers for claim in fleet.claim(worker)]
    runs = [hands.begin(claim) for claim in claims]
    for run, claim in zip(runs, claims, strict=True):
        hands.end(run)
        fleet.finish(claim)
    hands.work_off(workers[0])


def paced_jobs(hands: Hands) -> None:
    """More claims within the period than may start; what waits is let go after the limit is lifted."""
    fleet, sql = hands.fleet, hands.site.sql
    sql("select procjobs.set_limit('two', task => 'work', rate => 2, per => '1 hour')")
    fleet.defer_many(4)
    worker = fleet.worker()
    for claim in [claim for _ in range(4) for claim in fleet.claim(worker)]:
        fleet.finish(claim)
    sql("select procjobs.cancel(id) from procrastinate_jobs")


def paced_runs(hands: Hands) -> None:
    """One claim as soon as another job has ended whose start is longer ago than the rate looks back."""
    fleet, sql = hands.fleet, hands.site.sql
    sql("select procjobs.set_limit('one', task => 'work', rate => 1, per => '0.2 s', rate_counts => 'runs')")
    fleet.defer_many(2)
    worker = fleet.worker()
    (first,) = fleet.claim(worker)
    run = hands.begin(first)
    over = "select bool_and(pj_started_at < clock_timestamp() - interval '0.2 s') from procrastinate_jobs where id = %s"
    wait_for(lambda: sql.one(over, first.id))
    hands.end(run)
    fleet.finish(first)
    sql("select procjobs.sweep_limits()")
    hands.work_off(worker)
    sql("select procjobs.cancel(id) from procrastinate_jobs")


def jobs_of_a_key(hands: Hands) -> None:
    """Of a key that one job has while it waits, another that has it until it has ended."""
    fleet = hands.fleet
    keys = [{"unique_key": "w", "unique_while": "waiting"}, {"unique_key": "u"}]
    jobs = json.dumps([{"task": "work", "args": {}, **key} for key in keys])
    worker = fleet.worker()
    for _ in range(2):
        hands.site.sql("select * from procjobs.defer_many(%s::jsonb)", jobs)
    claims = fleet.claim(worker, 4)
    hands.site.sql("select * from procjobs.defer_many(%s::jsonb)", jobs)
    for claim in claims:
        fleet.finish(claim)
    hands.work_off(worker)


def a_batch(hands: Hands) -> None:
    """One of its jobs ends while the other runs; that fails, and is retried when the batch is over."""
    fleet, sql = hands.fleet, hands.site.sql
    worker = fleet.worker()
    sql(
        "select chaos.enqueue_jobs(%s, %s)",
        json.dumps([{"task": "work", "args": {}}] * 2), json.dumps({"task": "work", "args": {"key": "over"}}),
    )  # fmt: skip
    first, second = fleet.claim(worker, 2)
    fleet.finish(first)
    assert fleet.settle(second, "failed", retry="never") == "failed"
    sql("select procjobs.retry(%s)", second.id)
    hands.work_off(worker)


#: Takes a safeguard out of the tables, whatever the functions say.
NOTHING_IS_NOTED = """
create function chaos.forget() returns trigger language plpgsql as $$ begin {act}; end $$;
create trigger forget before {events} on procjobs.{table} for each row execute function chaos.forget();
"""

MUTATIONS = [
    Mutation(
        "running jobs are not counted", limited_jobs, (), "I13",
        also=NOTHING_IS_NOTED.format(act="return null", events="insert", table="limit_grants"),
    ),
    Mutation(
        "starts are not noted", paced_jobs, (), "I13",
        also=NOTHING_IS_NOTED.format(
            act="new.starts := '{}'; new.counts := '{}'; return new", events="insert or update", table="limit_state"),
    ),
    Mutation(
        "ends are not noted", paced_runs, (), "I13",
        also=NOTHING_IS_NOTED.format(act="return null", events="insert", table="limit_ends"),
    ),
    Mutation(
        "no unique index on keys of waiting jobs", jobs_of_a_key, (), "I14",
        also="drop index public.pj_jobs_waiting_key",
    ),
    Mutation(
        "no unique index on keys of unfinished jobs", jobs_of_a_key, (), "I14",
        also="drop index public.pj_jobs_unique_key",
    ),
    Mutation(
        "a batch is over with the first of its jobs", a_batch,
        (("finish_batch", "and j.status in ('todo', 'doing')", "and j.status = 'todo'"),), "I15",
    ),
    Mutation(
        "a batch is over again", a_batch,
        (
            ("finish_batch", "and b.finished_at is null", ""),
            ("batch_goes_on", "(b.sealed_at is null or b.finished_at is not null)", "b.sealed_at is null"),
        ), "I15",
    ),
    Mutation(
        "a batch ends without a word", a_batch,
        (("finish_batch", "jsonb_array_length(v_jobs) > 0", "false"),), "I15",
    ),
]  # fmt: skip


@MUTATED
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_bound_without_a_safeguard(hands: Hands, mutation: Mutation, mutated: bool) -> None:
    mutation.check(hands, mutated)
