"""Circuit breakers: open, jobs wait and spend nothing; half open, one job tries for the whole fleet."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import procjobs
from tests.conftest import Sql
from tests.engine.conftest import Drain, Working
from tests.engine.fleet import Claim, Fleet, job_row, opened


def breaker(sql: Sql, **keys: Any) -> None:
    """The breaker b, of task `work` unless something else is named; opens after three failures, for an hour."""
    if not {"tasks", "queue"} & keys.keys():
        keys["tasks"] = ["work"]
    keys = {"failures": 3, "cool_down": "1 hour", "longest": "10 hours", **keys}
    named = ", ".join(f"{key} => %s{'::interval' if key in ('cool_down', 'longest', 'per') else ''}" for key in keys)
    sql(f"select procjobs.set_breaker('b', {named})", *keys.values())


def report(sql: Sql, ok: bool, job: int | None = None) -> str:
    found: str = sql.one("select procjobs.report_outcome('b', %s, %s, 'no answer')", ok, job)
    return found


def cool_down(sql: Sql) -> None:
    """The cool-down is over, and upkeep finds it so."""
    sql("update procjobs.breakers set retry_at = procjobs.clock() where name = 'b' and state = 'open'")
    sql("select procjobs.upkeep()")


def shown(sql: Sql, column: str) -> Any:
    return sql.one(f"select {column} from procjobs.breaker_list where name = 'b'")


def fail(fleet: Fleet, claim: Claim) -> str:
    """What a worker says of a run that raised."""
    result: str = fleet.sql.one(
        "select result from procjobs.settle_jobs(%s, jsonb_build_array(jsonb_build_object("
        "'id', %s::bigint, 'lease', %s::int, 'outcome', 'failed', 'error_class', 'OSError')))",
        claim.worker, claim.id, claim.lease,
    )  # fmt: skip
    return result


# -- opening ---------------------------------------------------------------------------------------------------------


def test_it_opens_at_its_threshold_and_jobs_wait_without_an_attempt(fleet: Fleet, sql: Sql) -> None:
    breaker(sql)
    jobs = [fleet.defer() for _ in range(3)]
    other = fleet.defer("other")
    worker = fleet.worker("other")
    assert [report(sql, False) for _ in range(3)] == ["closed", "closed", "open"]
    assert fleet.claim_ids(worker, 5) == [other]
    assert (
        sql("select attempts, pj_waits_for, pj_held_by from procrastinate_jobs where id = any (%s)", jobs)
        == [(0, "limit", "breaker:b")] * 3
    )
    why = sql.one("select procjobs.why_not_running(%s)", jobs[0])
    assert why.startswith("breaker b is open until ") and "its dependency failed, last at " in why
    assert (shown(sql, "waiting"), shown(sql, "last_error")) == (3, "no answer")
    assert sql("select subject from procjobs.alerts where kind = 'breaker_open' and closed_at is null") == [("b",)]


def test_few_failures_among_many_successes_do_not_open_it(sql: Sql) -> None:
    breaker(sql, rate=0.5)
    assert report(sql, False) == "closed"
    assert {report(sql, True) for _ in range(9)} == {"closed"}
    assert [report(sql, False) for _ in range(9)] == ["closed"] * 7 + ["open"] * 2  # nine of eighteen are half


def test_old_failures_do_not_count(sql: Sql) -> None:
    breaker(sql)
    report(sql, False), report(sql, False)
    sql("update procjobs.breakers set window_from = window_from - per where name = 'b'")
    assert (report(sql, False), shown(sql, "failed")) == ("closed", 1)


def test_a_success_of_what_is_well_writes_nothing(sql: Sql) -> None:
    breaker(sql)
    before = sql.one("select xmin::text || ctid::text from procjobs.breakers where name = 'b'")
    report(sql, True)
    assert sql.one("select xmin::text || ctid::text from procjobs.breakers where name = 'b'") == before


def test_a_tag_or_a_queue_says_which_jobs_need_it(fleet: Fleet, sql: Sql) -> None:
    breaker(sql, queue="default", tag="crm")
    plain, tagged = fleet.defer(), fleet.defer()
    sql("update procrastinate_jobs set pj_tags = '{a,crm}' where id = %s", tagged)
    sql("select procjobs.open_breaker('b')")
    assert fleet.claim_ids(fleet.worker(), 5) == [plain]
    assert "until somebody closes it: " in sql.one("select procjobs.why_not_running(%s)", tagged)


# -- half open -------------------------------------------------------------------------------------------------------


def test_one_probe_in_the_fleet_whose_success_lets_the_others_go(fleet: Fleet, rival: Fleet, sql: Sql) -> None:
    breaker(sql)
    sql("select procjobs.open_breaker('b')")
    jobs = [fleet.defer() for _ in range(4)]
    one, two = fleet.worker(), rival.worker()
    assert fleet.claim(one, 4) == []
    cool_down(sql)
    (probe,) = fleet.claim(one, 4)
    assert rival.claim(two, 4) == []
    assert (shown(sql, "state"), shown(sql, "probe_job")) == ("half_open", probe.id)
    assert f"half open: job {probe.id} tries first" in sql.one("select procjobs.why_not_running(%s)", jobs[-1])

    assert report(sql, True, probe.id) == "closed"
    assert sorted(rival.claim_ids(two, 4)) == jobs[1:]
    fleet.finish(probe)
    assert sql("select closed_by from procjobs.alerts where kind = 'breaker_open'") == [("it is closed",)]
    assert sql("select key from procjobs.limit_grants where key = 'breaker:b'") == []
    assert sql("select name from procjobs.limits where breaker = 'b'") == []


def test_a_failed_probe_opens_it_for_longer_and_keeps_its_attempt(fleet: Fleet, sql: Sql) -> None:
    breaker(sql)
    sql('select procjobs.register_tasks(\'[{"name": "work", "max_attempts": 2}]\', \'test\')')
    job, other = fleet.defer(), fleet.defer()
    worker = fleet.worker()
    for _ in range(3):
        report(sql, False)
    waits = []
    for _ in range(3):
        cool_down(sql)
        sql("update procrastinate_jobs set scheduled_at = null, pj_waits_for = null where id = %s", job)
        (probe,) = fleet.claim(worker, 1)
        assert (probe.id, probe.attempts) == (job, 0)
        assert report(sql, False, job) == "open"
        assert fail(fleet, probe) == "retrying"
        waits.append(shown(sql, "round(extract(epoch from retry_at - since) / 3600)::int"))
        # The next probe is another job, if there is one.
        assert sql.one("select scheduled_at > (select retry_at from procjobs.breakers where name = 'b') "
                       "from procrastinate_jobs where id = %s", job)  # fmt: skip
    assert waits == [2, 4, 8]
    assert sql.one("select count(*) from procjobs.job_attempts where job_id = %s", job) == 3
    cool_down(sql)
    assert fleet.claim_ids(worker, 2) == [other]


def test_a_probe_whose_worker_dies_is_followed_by_another(fleet: Fleet, sql: Sql) -> None:
    breaker(sql)
    sql("select procjobs.open_breaker('b')")
    fleet.defer(), fleet.defer()
    lost = fleet.worker(name="lost")
    assert fleet.claim(lost, 2) == []
    cool_down(sql)
    (probe,) = fleet.claim(lost, 1)
    sql("select procjobs.stop_worker(%s)", lost)
    sql("select procjobs.rescue_jobs()")
    after = fleet.claim(fleet.worker(name="next"), 2)
    assert len(after) == 1
    assert shown(sql, "probe_job") == after[0].id
    assert probe.lease >= 1


def test_a_probe_that_says_nothing_is_followed_by_another(fleet: Fleet, sql: Sql) -> None:
    breaker(sql)
    sql("select procjobs.open_breaker('b')")
    first, second = fleet.defer(), fleet.defer()
    worker = fleet.worker()
    assert fleet.claim(worker, 2) == []
    cool_down(sql)
    (probe,) = fleet.claim(worker, 2)
    fleet.finish(probe)
    assert (probe.id, fleet.claim_ids(worker, 2)) == (first, [second])


def test_news_of_runs_that_began_before_do_not_count_while_another_tries(fleet: Fleet, sql: Sql) -> None:
    breaker(sql)
    old = fleet.defer()
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 1) == [old]
    sql("select procjobs.open_breaker('b')")
    fleet.defer()
    assert fleet.claim(worker, 2) == []
    assert report(sql, True, old) == "open"
    cool_down(sql)
    (probe,) = fleet.claim(worker, 2)
    assert report(sql, False, old) == "half_open"
    assert report(sql, True, probe.id) == "closed"


def test_many_claims_at_once_give_one_probe_and_nobody_deadlocks(dsn: str, sql: Sql) -> None:
    """Claims, ends, reports of both kinds, opening and closing by hand, all at once; never two probes."""
    breaker(sql, cool_down="1 millisecond", longest="2 milliseconds", failures=2)
    boss = Fleet(sql)
    for _ in range(300):
        boss.defer()
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    faults: list[str] = []
    stop = threading.Event()

    def look(fleet: Fleet) -> None:
        while not stop.is_set():
            many = fleet.sql.one("select count(*) from procjobs.limit_grants where key = 'breaker:b'")
            if many > 1:
                faults.append(f"{many} probes")

    def work(fleet: Fleet, chance: random.Random) -> None:
        worker = fleet.worker(name=f"w{chance.random()}")
        for _ in range(40):
            for claim in fleet.claim(worker, 3):
                report(fleet.sql, chance.random() < 0.5, claim.id)
                fleet.acknowledge(claim)
            fleet.sql("select procjobs.upkeep()")

    def meddle(fleet: Fleet) -> None:
        for _ in range(40):
            fleet.sql("select procjobs.open_breaker('b', '1 millisecond')")
            fleet.sql("select procjobs.close_breaker('b')")

    def call(body: Callable[[Fleet], None]) -> None:
        with opened(dsn) as fleet:
            try:
                body(fleet)
            except psycopg.Error as error:
                faults.append(repr(error))

    bodies = [lambda f, n=n: work(f, random.Random(seed + n)) for n in range(4)] + [meddle]
    threads = [threading.Thread(target=call, args=(body,)) for body in bodies]
    watcher = threading.Thread(target=call, args=(look,))
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    watcher.join()
    assert faults == []
    # And whatever the race left, all of it runs once the breaker is closed.
    sql("select procjobs.close_breaker('b')")
    sql("select procjobs.upkeep()")
    worker = boss.worker(name="last")
    while claims := boss.claim(worker, 100):
        boss.acknowledge(*claims)
    assert sql.one("select count(*) from procrastinate_jobs") == 0


# -- by hand ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_keeps_it_open_no_longer_than_failures_do(fleet: Fleet, sql: Sql) -> None:
    breaker(sql, cool_down="30 seconds", longest="10 minutes")
    with fleet.at("2031-05-01 12:00:00+00"):
        assert [report(sql, False) for _ in range(3)][-1] == "open"
    with fleet.at("2031-05-01 11:55:00+00"):
        assert sql.one("select procjobs.try_breakers()") == 0, "it might be so"
    with fleet.at("2031-05-01 09:00:00+00"):
        assert sql.one("select procjobs.try_breakers()") == 1
        assert shown(sql, "state") == "half_open"
        sql("select procjobs.open_breaker('b', '5 hours')")
        assert sql.one("select procjobs.try_breakers()") == 0, "somebody said so"


def test_what_waits_goes_on_when_it_is_closed_or_dropped(fleet: Fleet, sql: Sql) -> None:
    for end in ("close", "drop"):
        breaker(sql)
        sql("select procjobs.open_breaker('b')")
        job = fleet.defer()
        worker = fleet.worker()
        assert fleet.claim(worker, 2) == []
        assert sql.one(f"select procjobs.{end}_breaker('b')")
        (claim,) = fleet.claim(worker, 2)
        assert claim.id == job
        fleet.finish(claim)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("'x'", "neither for tasks nor for a queue"),
        ("'x:y', queue => 'q'", "without a colon"),
        ("'x', queue => 'q', rate => 2", "not a share"),
        ("'x', queue => 'q', cool_down => '1 hour', longest => '1 minute'", "shorter than cool_down"),
    ],
)
def test_what_is_no_breaker_is_refused(sql: Sql, options: str, problem: str) -> None:
    with pytest.raises(psycopg.Error) as refused:
        sql(f"select procjobs.set_breaker({options})")
    assert refused.value.sqlstate == "PJ009"
    assert problem in (refused.value.diag.message_detail or "")
    with pytest.raises(psycopg.Error, match="there is no breaker"):
        sql("select procjobs.open_breaker('none')")


@pytest.mark.parametrize("length", ["-1 hour", "0"])
def test_it_is_opened_for_a_time_to_come(sql: Sql, length: str) -> None:
    sql("select procjobs.set_breaker('crm', tasks => array['call'])")
    with pytest.raises(psycopg.Error) as refused:
        sql("select procjobs.open_breaker('crm', %s)", length)
    assert refused.value.sqlstate == "PJ009"
    assert sql.one("select state from procjobs.breakers where name = 'crm'") == "closed"


def test_a_breakers_limit_is_neither_listed_nor_dropped_as_one(sql: Sql) -> None:
    breaker(sql)
    sql("select procjobs.open_breaker('b')")
    assert sql("select name from procjobs.limit_use") == [("notifications",)]
    assert not sql.one("select procjobs.drop_limit('breaker:b')")
    assert sql.one("select max_running from procjobs.limits where breaker = 'b'") == 0


# -- the claim without limits ----------------------------------------------------------------------------------------


def test_limits_of_one_queue_leave_the_quick_claim_to_the_others(fleet: Fleet, sql: Sql) -> None:
    """The quick claim starts jobs itself; without claim_judged it can do nothing else."""
    sql("select procjobs.set_limit('far', task => 'far', max_running => 1)")
    sql("alter function procjobs.claim_judged(bigint, text[], text[], integer, text[], jsonb, boolean) rename to gone")
    job = fleet.defer()
    assert fleet.claim_ids(fleet.worker(), 1) == [job]
    fleet.defer("far")
    with pytest.raises(psycopg.errors.UndefinedFunction):
        fleet.claim(fleet.worker("far"), 1)


# -- through a worker ------------------------------------------------------------------------------------------------


async def test_a_task_tells_its_breaker_and_recovers_by_itself(
    app: procjobs.App, sql: Sql, working: Working, eventually: Any
) -> None:
    breaker(sql, tasks=["sync"], cool_down="0.2 seconds", longest="1 second")
    well = asyncio.Event()
    runs: list[bool] = []

    @app.task(name="sync", retry=procjobs.Retry(max_attempts=5, base=0.01, cap=0.01))
    async def sync(number: int) -> None:
        async with app.dependency("b"):
            runs.append(well.is_set())
            if not well.is_set():
                raise procjobs.DependencyFailed("the other side does not answer")

    async with working(concurrency=1):
        for number in range(10):
            await sync.defer_async(number=number)
        await eventually(lambda: shown(sql, "state") != "closed")
        assert 3 <= len(runs) <= 5  # a worker holds a little more than it runs
        well.set()
        await eventually(lambda: sql.one("select count(*) from procjobs.job_history where status = 'succeeded'") == 10)
    assert runs.count(True) == 10
    assert shown(sql, "state") == "closed"
    assert sql.one("select count(*) from procjobs.job_history where attempts > 3") == 0


async def test_what_is_no_failure_of_the_dependency_says_nothing(app: procjobs.App, sql: Sql, drain: Drain) -> None:
    breaker(sql, tasks=["sync"], failures=1)

    @app.task(name="sync")
    async def sync() -> None:
        async with app.dependency("b"):
            raise ValueError("ours")

    job = await sync.defer_async()
    await drain()
    assert job_row(sql, job, "status")[0] == "failed"
    assert shown(sql, "state") == "closed"
    assert await app.report_outcome("b", False) == "open"
    assert await app.report_outcome("nobody's", False) is None
