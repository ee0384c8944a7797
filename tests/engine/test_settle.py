"""Settling: every way in which a run can end other than by success, what it spends, and what it leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.jobs import Job

import procjobs
from tests.conftest import Sql
from tests.engine.fleet import Claim, Fleet

OUTCOMES: list[tuple[str, dict[str, Any]]] = [
    ("failed", {}),
    ("failed", {"retry": "at"}),
    ("failed", {"retry": "never"}),
    ("crashed", {}),
    ("cancelled", {}),
    ("discarded", {"reason": "old news"}),
    ("snoozed", {"delay": 60}),
    ("released", {"started": True}),
    ("released", {}),
    ("parked", {}),
]


def claimed(fleet: Fleet, **options: Any) -> tuple[int, Claim]:
    job = fleet.defer(**options)
    (claim,) = fleet.claim(fleet.worker())
    return job, claim


def everything(sql: Sql) -> list[list[tuple[Any, ...]]]:
    """All that settling could change."""
    return [
        sql(f"select * from {table} order by 1")
        for table in ("procrastinate_jobs", "procjobs.job_history", "procjobs.job_attempts", "procjobs.job_events")
    ]


# -- the rule of the waits -----------------------------------------------------------------------------------------


def waits(sql: Sql, *policy: Any) -> list[float]:
    return [
        float(sql.one("select extract(epoch from procjobs.retry_delay(%s, %s, %s, %s))", run, *policy))
        for run in range(1, 8)
    ]


def test_without_jitter_the_waits_are_exact(sql: Sql) -> None:
    assert waits(sql, "60 s", "1 h", False) == [60, 120, 240, 480, 960, 1920, 3600]


def test_with_jitter_each_wait_is_drawn_from_nothing_to_the_whole(sql: Sql) -> None:
    drawn = sql(
        "select run, array_agg(extract(epoch from procjobs.retry_delay(run, '60 s', '4 min', true))::float) "
        "from generate_series(1, 4) run, generate_series(1, 400) group by run order by run"
    )
    for (_, delays), whole in zip(drawn, (60, 120, 240, 240), strict=True):
        assert 0 <= min(delays) < whole * 0.1
        assert whole * 0.9 < max(delays) <= whole
        assert whole * 0.4 < sum(delays) / len(delays) < whole * 0.6


def test_no_count_of_runs_overflows(sql: Sql) -> None:
    for run in (0, -5, 10_000, 2**31 - 1):
        assert sql.one("select procjobs.retry_delay(%s, '1 day', '7 days', false) between '1 day' and '7 days'", run)
        assert sql.one("select procjobs.retry_delay(%s, '0', '0', true) = '0'", run)


# -- failures and retries ------------------------------------------------------------------------------------------


def test_three_attempts_are_three_runs(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=3, backoff_base=60, backoff_cap=3600, backoff_jitter=False)
    job = fleet.defer()
    worker = fleet.worker()
    moment = fleet.later(0)
    for run, (result, wait) in enumerate([("retrying", 60), ("retrying", 120), ("failed", None)], start=1):
        with fleet.at(moment):
            fleet.sql("select procjobs.promote_due()")
            (claim,) = fleet.claim(worker)
            assert claim.attempts == run - 1
            assert fleet.settle(claim, "failed", error_class="ValueError", error_message="no") == result
            ((attempts, waited),) = sql(
                "select attempts, extract(epoch from scheduled_at - procjobs.clock())::float from procrastinate_jobs"
            )
            assert attempts == run
            if wait is not None:
                assert waited == wait
                assert fleet.waits_for(job) == "time"
                moment = sql.one("select scheduled_at from procrastinate_jobs")
    assert fleet.status(job) == "failed"
    assert sql(
        "select attempt, lease, outcome, error_class, retry_at is not null from procjobs.job_attempts order by id"
    ) == [
        (1, 1, "failed", "ValueError", True),
        (2, 2, "failed", "ValueError", True),
        (3, 3, "failed", "ValueError", False),
    ]


def test_a_task_without_a_policy_fails_at_once(fleet: Fleet) -> None:
    job, claim = claimed(fleet)
    assert fleet.settle(claim, "failed") == "failed"
    assert fleet.status(job) == "failed" and fleet.runs(job) == ["failed"]


def test_the_jobs_own_limit_counts(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    for task_limit, job_limit, runs in [(5, 2, 2), (2, 5, 5), (None, 3, 3), (3, 1, 1)]:
        fleet.policy(max_attempts=task_limit, backoff_base=0, backoff_cap=0, backoff_jitter=False)
        job = fleet.defer()
        sql("update procrastinate_jobs set pj_max_attempts = %s where id = %s", job_limit, job)
        while claims := fleet.claim(worker):
            fleet.settle(claims[0], "failed")
            fleet.sql("select procjobs.promote_due()")
        assert fleet.runs(job) == ["failed"] * runs
        assert fleet.status(job) == "failed"


def test_an_upstream_strategy_says_when_where_and_how_urgent(fleet: Fleet, sql: Sql) -> None:
    job, claim = claimed(fleet, lock="old", priority=1)
    assert (
        fleet.settle(
            claim, "failed", retry="at", retry_at="2031-05-01T12:00:00+00:00", priority=7, queue="slow", lock="new"
        )
        == "retrying"
    )
    assert sql(
        "select id, scheduled_at = '2031-05-01 12:00+00', priority, queue_name, lock, attempts, pj_waits_for "
        "from procrastinate_jobs"
    ) == [(job, True, 7, "slow", "new", 1, "time")]


def test_an_upstream_strategy_that_says_now_means_now(fleet: Fleet) -> None:
    job, claim = claimed(fleet)
    assert fleet.settle(claim, "failed", retry="at", retry_at=None) == "retrying"
    assert fleet.claim_ids(fleet.worker()) == [job]


def test_a_limit_on_the_job_holds_for_upstream_strategies_too(fleet: Fleet, sql: Sql) -> None:
    job, claim = claimed(fleet)
    sql("update procrastinate_jobs set pj_max_attempts = 1")
    assert fleet.settle(claim, "failed", retry="at") == "failed"
    assert fleet.status(job) == "failed"


def test_a_failure_after_a_cancel_request_is_final(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=9, backoff_base=0, backoff_cap=0, backoff_jitter=False)
    job, claim = claimed(fleet)
    sql("select procjobs.cancel(%s)", job)
    assert fleet.settle(claim, "failed", retry="at") == "failed"
    assert sql("select status::text, abort_requested from procrastinate_jobs") == [("failed", False)]


def test_a_dead_letter_says_what_happened(fleet: Fleet, sql: Sql) -> None:
    job, claim = claimed(fleet)
    fleet.settle(claim, "failed", error_class="KeyError", error_message="'a'", traceback="Traceback ...")
    assert sql(
        "select a.job_id, attempt, outcome, error_class, error_message, traceback, worker_id, worker_name, "
        "a.started_at is not null, a.finished_at >= a.started_at from procjobs.job_attempts a"
    ) == [(job, 1, "failed", "KeyError", "'a'", "Traceback ...", claim.worker, "ann", True, True)]
    assert sql.one("select pj_finished_at is not null from procrastinate_jobs")


# -- what spends an attempt ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "keys", "row"),
    [
        ("snoozed", {"delay": 0}, ["snoozed"]),
        ("released", {"started": True}, ["released"]),
        ("released", {"started": False}, []),
        ("crashed", {}, ["crashed"]),
        ("parked", {}, []),
    ],
)
def test_waiting_spends_no_attempt_and_what_never_ran_leaves_no_row(
    fleet: Fleet, sql: Sql, outcome: str, keys: dict[str, Any], row: list[str]
) -> None:
    fleet.policy(max_attempts=1)
    job, claim = claimed(fleet)
    fleet.settle(claim, outcome, **keys)
    assert sql("select status::text, attempts, worker_id, pj_finished_at from procrastinate_jobs") == [
        ("todo", 0, None, None)
    ]
    assert fleet.runs(job) == row


def test_a_job_that_is_given_back_is_claimable_at_once(fleet: Fleet) -> None:
    job, claim = claimed(fleet, lock="l", scheduled_at=-60)
    fleet.settle(claim, "released")
    assert fleet.claim_ids(fleet.worker()) == [job]


def test_a_snoozed_job_sleeps_as_long_as_it_said(fleet: Fleet, sql: Sql) -> None:
    job, claim = claimed(fleet)
    with fleet.at("2031-05-01 12:00+00"):
        assert fleet.settle(claim, "snoozed", delay=90.5) == "snoozed"
    assert sql.one("select scheduled_at = '2031-05-01 12:01:30.5+00' from procrastinate_jobs")
    assert fleet.waits_for(job) == "time"


def test_a_parked_job_waits_for_a_worker_that_knows_it(fleet: Fleet) -> None:
    job, claim = claimed(fleet, lock="l")
    assert fleet.settle(claim, "parked") == "parked"
    assert fleet.waits_for(job) == "task"
    assert fleet.claim_ids(fleet.worker()) == [job]  # which knows `work`


def test_a_run_that_ends_its_job_goes_to_the_history_with_its_reason(fleet: Fleet, sql: Sql) -> None:
    for outcome, status in [("cancelled", "aborted"), ("discarded", "cancelled")]:
        job, claim = claimed(fleet)
        fleet.settle(claim, outcome, reason="why")
        assert sql("select status::text, note, attempts from procjobs.job_history where id = %s", job) == [
            (status, "why", 1)
        ]
        assert fleet.runs(job) == [outcome]


def test_arguments_that_nobody_can_read_are_a_dead_letter_of_their_own_kind(fleet: Fleet) -> None:
    fleet.policy(max_attempts=9)
    job, claim = claimed(fleet)
    assert fleet.settle(claim, "failed", kind="unreadable", retry="never") == "failed"
    assert fleet.runs(job) == ["unreadable"]


def test_after_a_cancel_request_nothing_waits_again(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=9, backoff_base=0, backoff_cap=0, backoff_jitter=False)
    for outcome, keys in OUTCOMES:
        job, claim = claimed(fleet)
        sql("select procjobs.cancel(%s, 'enough')", job)
        fleet.settle(claim, outcome, **keys)
        assert fleet.status(job) in ("failed", "aborted", "cancelled"), outcome
        assert sql("select pj_cancel ->> 'reason' from procrastinate_jobs union all "
                   "select cancel ->> 'reason' from procjobs.job_history") == [("enough",)], outcome  # fmt: skip
        sql("delete from procrastinate_jobs")
        sql("delete from procjobs.job_history")


def test_the_third_crash_is_the_last(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=100)
    job = fleet.defer()
    worker = fleet.worker()
    moment = fleet.later(0)
    results = []
    for _ in range(3):
        with fleet.at(moment):
            fleet.sql("select procjobs.promote_due()")
            (claim,) = fleet.claim(worker)
            results.append(fleet.settle(claim, "crashed", error_class="ProcessDied"))
            moment = sql.one("select scheduled_at + interval '1 ms' from procrastinate_jobs")
    assert results == ["retrying", "retrying", "failed"]
    assert sql("select status::text, pj_crashes, attempts from procrastinate_jobs") == [("failed", 3, 0)]
    assert fleet.runs(job) == ["crashed"] * 3
    assert sql("select action from procjobs.actions") == [("job.stalled",)]


# -- superseded ----------------------------------------------------------------------------------------------------


def test_a_job_whose_sibling_waits_is_superseded(fleet: Fleet, sql: Sql) -> None:
    ways: list[tuple[str, dict[str, Any]]] = [
        ("failed", {"retry": "at", "retry_at": "2031-05-01T12:00:00+00:00"}),
        ("failed", {"retry": "at"}),
        ("snoozed", {"delay": 60}),
        ("released", {"started": True}),
        ("released", {}),
        ("crashed", {}),
        ("parked", {}),
    ]
    for outcome, keys in ways:
        job, claim = claimed(fleet, queueing_lock="sync", lock="l")
        sibling = fleet.defer(queueing_lock="sync", lock="l")
        assert fleet.settle(claim, outcome, **keys) == "superseded"
        ((status, note),) = sql("select status::text, note from procjobs.job_history where id = %s", job)
        assert status == "cancelled" and "superseded" in note and str(sibling) in note
        assert fleet.runs(job) == ["superseded"], outcome
        (claim,) = fleet.claim(fleet.worker(), 10)
        assert fleet.finish(claim) == [sibling]


def test_a_superseded_failure_keeps_its_error(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=5)
    job, claim = claimed(fleet, queueing_lock="sync")
    fleet.defer(queueing_lock="sync")
    fleet.settle(claim, "failed", error_class="ValueError", error_message="no luck")
    assert sql(
        "select outcome, error_class, error_message, retry_at from procjobs.job_attempts where job_id = %s", job
    ) == [("superseded", "ValueError", "no luck", None)]


def test_a_final_failure_beside_a_waiting_sibling_is_a_dead_letter(fleet: Fleet) -> None:
    job, claim = claimed(fleet, queueing_lock="sync")
    sibling = fleet.defer(queueing_lock="sync")
    assert fleet.settle(claim, "failed") == "failed"
    assert (fleet.status(job), fleet.status(sibling)) == ("failed", "todo")


def test_one_superseded_job_does_not_keep_the_batch(fleet: Fleet) -> None:
    fleet.policy(max_attempts=5)
    jobs = [fleet.defer(queueing_lock=f"sync{n}") for n in range(3)]
    claims = fleet.claim(fleet.worker(), 3)
    fleet.defer(queueing_lock="sync1")
    assert fleet.settle_all([(claim, {"outcome": "failed"}) for claim in claims]) == [
        (jobs[0], "retrying"), (jobs[1], "superseded"), (jobs[2], "retrying"),
    ]  # fmt: skip


def test_a_unique_key_survives_every_retry(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=5)
    job = sql.one("select procjobs.defer('work', unique_key => 'uk')")
    (claim,) = fleet.claim(fleet.worker())
    assert sql.one("select procjobs.defer('work', unique_key => 'uk')") == job  # it runs
    assert fleet.settle(claim, "failed") == "retrying"
    assert sql.one("select procjobs.defer('work', unique_key => 'uk')") == job  # it waits again
    assert sql.one("select count(*) from procrastinate_jobs") == 1


# -- the fence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", ["worker", "lease", "id"])
def test_an_end_that_does_not_hold_the_lease_is_stale_and_changes_nothing(fleet: Fleet, sql: Sql, wrong: str) -> None:
    _, claim = claimed(fleet, lock="l")
    before = everything(sql)
    for outcome, keys in OUTCOMES:
        assert fleet.settle(replace(claim, **{wrong: getattr(claim, wrong) + 1}), outcome, **keys) == "stale"
    assert everything(sql) == before


def test_an_earlier_run_of_the_same_worker_ends_nothing(fleet: Fleet, sql: Sql) -> None:
    fleet.defer()
    worker = fleet.worker()
    (lost,) = fleet.claim(worker)
    fleet.settle(lost, "released")
    (current,) = fleet.claim(worker)
    before = everything(sql)
    for outcome, keys in OUTCOMES:
        assert fleet.settle(lost, outcome, **keys) == "stale"
    assert everything(sql) == before
    assert fleet.finish(current) == [current.id]


def test_a_report_that_is_sent_twice_counts_once(fleet: Fleet, sql: Sql) -> None:
    """The reply was lost and the worker repeats itself."""
    fleet.policy(max_attempts=5)
    job, claim = claimed(fleet)
    assert fleet.settle(claim, "failed") == "retrying"
    assert fleet.settle(claim, "failed") == "stale"
    assert sql.one("select attempts from procrastinate_jobs") == 1
    assert fleet.settle_all([(claim, {"outcome": "failed"})] * 2) == [(job, "stale")] * 2


def test_the_same_end_twice_in_one_report_counts_once(fleet: Fleet, sql: Sql) -> None:
    fleet.policy(max_attempts=5)
    job, claim = claimed(fleet)
    assert fleet.settle_all([(claim, {"outcome": "failed"})] * 2) == [(job, "retrying"), (job, "stale")]
    assert sql.one("select attempts from procrastinate_jobs") == 1


def test_a_mixed_report_settles_each_job_in_its_own_way(fleet: Fleet) -> None:
    fleet.policy(max_attempts=5)
    fleet.defer_many(6)
    claims = fleet.claim(fleet.worker(), 6)
    ends = ["failed", "discarded", "released", "cancelled", "snoozed", "failed"]
    report = [(claim, {"outcome": end, "delay": 1}) for claim, end in zip(claims, ends, strict=True)]
    report[5] = (replace(claims[5], lease=9), report[5][1])
    assert [result for _, result in fleet.settle_all(report[::-1])] == [
        "retrying", "discarded", "released", "cancelled", "snoozed", "stale",
    ]  # fmt: skip


def test_an_unknown_end_is_refused_with_the_choice(fleet: Fleet) -> None:
    job, claim = claimed(fleet)
    with pytest.raises(psycopg.Error) as refused:
        fleet.settle(claim, "vanished")
    assert refused.value.sqlstate == "PJ009" and "snoozed" in (refused.value.diag.message_hint or "")
    assert fleet.status(job) == "doing"


# -- forgetting ----------------------------------------------------------------------------------------------------


def test_delete_forgets_a_job_that_will_not_run_again_and_no_other(fleet: Fleet) -> None:
    worker = fleet.worker()
    ways: list[tuple[str, dict[str, Any], str]] = [
        ("failed", {}, "forgotten"),
        ("failed", {"retry": "at", "retry_at": "2031-05-01T12:00:00+00:00"}, "todo"),
        ("cancelled", {}, "forgotten"),
        ("discarded", {}, "forgotten"),
        ("snoozed", {"delay": 60}, "todo"),
    ]
    for outcome, keys, left in ways:
        job = fleet.defer(lock="l")
        behind = fleet.defer(lock="l")
        (claim,) = fleet.claim(worker)
        assert claim.id == job
        fleet.settle(claim, outcome, delete=True, **keys)
        assert fleet.status(job) == left
        (claim,) = fleet.claim(worker, 10)
        assert fleet.finish(claim) == [behind]


def test_keep_leaves_every_ended_job_where_procrastinate_leaves_it(fleet: Fleet, sql: Sql) -> None:
    ways: list[tuple[str, dict[str, Any], str]] = [
        ("failed", {}, "failed"),
        ("cancelled", {"reason": "why"}, "aborted"),
        ("discarded", {"reason": "why"}, "cancelled"),
    ]
    for outcome, keys, status in ways:
        job, claim = claimed(fleet, lock="l")
        fleet.settle(claim, outcome, keep=True, **keys)
        assert sql(
            "select status::text, attempts, abort_requested, pj_finished_at is not null "
            "from procrastinate_jobs where id = %s",
            job,
        ) == [(status, 1, False, True)]
        assert sql.one("select note from procjobs.jobs where id = %s", job) == keys.get("reason")
    job, claim = claimed(fleet, queueing_lock="ql", lock="l")
    fleet.defer(queueing_lock="ql")
    fleet.settle(claim, "released", keep=True)
    assert "superseded" in sql.one("select note from procjobs.jobs where id = %s and state = 'cancelled'", job)
    assert sql("select * from procjobs.job_history") == []


# -- ends that the database cannot take ----------------------------------------------------------------------------


class Odd(procrastinate.BaseRetryStrategy):
    """Says what nobody can do."""

    def get_retry_decision(self, *, exception: BaseException, job: Job) -> Any:
        return procrastinate.RetryDecision(queue="q" * 200)


async def test_an_end_that_cannot_be_recorded_is_a_dead_letter_that_says_so(
    app: procjobs.App, drain: Callable[..., Any], fleet: Fleet, sql: Sql
) -> None:
    """Not a job that runs for ever in the books, with its slot and its lock, and the others behind it."""

    @app.task(name="odd")
    async def odd(seconds: str) -> procjobs.Snooze:
        return procjobs.Snooze(float(seconds))

    @app.task(name="elsewhere", retry=Odd())
    async def elsewhere() -> None:
        raise ValueError

    @app.task(name="fine")
    async def fine() -> None:
        pass

    bad = [await odd.configure(lock="l").defer_async(seconds=seconds) for seconds in ("1e300", "1e17")]
    bad.append(await elsewhere.configure(lock="l").defer_async())
    good = [await fine.configure(lock="l").defer_async() for _ in range(3)]
    await asyncio.wait_for(drain(), 20)
    assert [fleet.status(job) for job in bad] == ["failed"] * 3
    assert [fleet.status(job) for job in good] == ["succeeded"] * 3
    errors = dict(sql("select job_id, error_class || ': ' || error_message from procjobs.job_attempts"))
    assert all("AcknowledgementFailed" in errors[job] and "could not be recorded" in errors[job] for job in bad)


def test_an_endless_snooze_is_refused_where_it_is_made() -> None:
    for seconds in ("inf", "nan", "-inf"):
        with pytest.raises(ValueError, match="finite"):
            procjobs.Snooze(float(seconds))
        with pytest.raises(ValueError, match="finite"):
            procjobs.Retry(cap=float(seconds))


async def test_a_worker_that_does_not_wait_leaves_only_when_nothing_is_left(
    app: procjobs.App, drain: Callable[..., Any], fleet: Fleet, sql: Sql
) -> None:
    """A run may end, and so make another job claimable, while the worker's claim is on its way."""
    runs: list[int] = []

    @app.task(name="again")
    async def again() -> Any:
        runs.append(1)
        return procjobs.Snooze(0) if len(runs) % 100 else None

    for lock in ("l", None):
        for _ in range(3):
            await again.configure(lock=lock).defer_async()
        await asyncio.wait_for(drain(), 20)
        assert sql("select count(*) from procrastinate_jobs") == [(0,)]


async def test_a_reason_of_any_kind_is_kept(app: procjobs.App, drain: Callable[..., Any], sql: Sql) -> None:
    reasons: list[Any] = ["a\x00b", "a\ud800b", ValueError("an error"), None, "x" * 20_000]

    @app.task(name="discarding")
    async def discarding(n: int) -> procjobs.Discard:
        return procjobs.Discard(reasons[n])

    await discarding.batch_defer_async(*[{"n": n} for n in range(len(reasons))])
    await asyncio.wait_for(drain(), 20)
    notes = [note for (note,) in sql("select note from procjobs.job_history where status = 'cancelled' order by id")]
    assert len(notes) == len(reasons)
    assert notes[0].startswith("a") and notes[2] == "an error"


@pytest.mark.parametrize("end", ["succeeded", "failed"])
async def test_one_job_whose_row_somebody_holds_does_not_keep_the_others_from_ending(
    end: str, app: procjobs.App, working: Callable[..., Any], fleet: Fleet, rival: Fleet, eventually: Callable[..., Any]
) -> None:
    """Somebody cancels a running job in psql and goes to lunch before the commit."""
    release = asyncio.Event()

    @app.task(name="t")
    async def t() -> None:
        await release.wait()
        if end == "failed":
            raise ValueError

    job, *others = await t.batch_defer_async(*[{} for _ in range(5)])
    async with working(concurrency=5):
        await eventually(lambda: all(fleet.status(other) == "doing" for other in [job, *others]))
        with rival.sql.connection.transaction():
            rival.sql("select procjobs.cancel(%s)", job)
            release.set()
            await eventually(lambda: all(fleet.status(other) == end for other in others), timeout=20)
            assert fleet.status(job) == "doing"
        await eventually(lambda: fleet.status(job) == end, timeout=20)
