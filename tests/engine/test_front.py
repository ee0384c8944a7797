"""The front of a backlog: under a transaction that stays open claims keep their speed and pass over nobody for long."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet, without_judging

#: Jobs a claim.
FULL = 60


def known(sql: Sql) -> list[str] | None:
    """Queue, priority, id and end of what this session remembers."""
    found: list[str] | None = sql.one("select nullif(current_setting('procjobs.front', true), '')::text[]")
    return found


def remember(sql: Sql, job: int, *, priority: int = 0, seconds: float = 9) -> None:
    """As if to find this job first had taken long."""
    sql(
        "select set_config('procjobs.front', array['default', %s::text, %s::text, "
        "(procjobs.stopwatch() + %s)::text]::text, false)",
        priority, job, seconds,
    )  # fmt: skip


@pytest.fixture
def behind(fleet: Fleet) -> tuple[int, int]:
    """A job in front of what the session remembers, and the first job of a backlog from there on."""
    early = fleet.defer()
    fleet.defer_many(3 * FULL)
    remember(fleet.sql, early + 1)
    return early, early + 1


def test_a_claim_that_finds_enough_begins_at_the_front_and_moves_it_on(fleet: Fleet, behind: tuple[int, int]) -> None:
    early, first = behind
    worker = fleet.worker()
    for n in range(2):
        assert fleet.claim_ids(worker, FULL) == list(range(first + n * FULL, first + (n + 1) * FULL))
    assert known(fleet.sql)[:3] == ["default", "0", str(first + FULL)]  # type: ignore[index]
    assert fleet.status(early) == "todo"


@pytest.mark.parametrize("seconds", [-1, 3600], ids=["in time", "the clock was set back"])
def test_when_its_time_is_over_the_front_is_found_again(fleet: Fleet, behind: tuple[int, int], seconds: float) -> None:
    early, first = behind
    remember(fleet.sql, first, seconds=seconds)
    assert fleet.claim_ids(fleet.worker(), FULL)[0] == early


def test_a_claim_that_wants_more_than_there_is_from_the_front_on_takes_what_is_before_it(
    fleet: Fleet, behind: tuple[int, int]
) -> None:
    early, first = behind
    worker = fleet.worker()
    assert fleet.claim_ids(worker, 500) == list(range(early, first + 3 * FULL))
    assert known(fleet.sql) in (None, [])


def test_jobs_that_another_claim_holds_are_no_reason_to_leave_one_in_front(
    fleet: Fleet, rival: Fleet, behind: tuple[int, int]
) -> None:
    early, first = behind
    worker = fleet.worker()
    with rival.sql.connection.transaction():
        rival.sql("select from procrastinate_jobs where id between %s and %s for update", first, first + FULL - 1)
        assert fleet.claim_ids(worker, FULL)[0] == first + FULL
        assert fleet.claim_ids(worker, 2 * FULL) == [early, *range(first + 2 * FULL, first + 3 * FULL)]
    assert fleet.claim_ids(worker, FULL) == list(range(first, first + FULL))


@pytest.mark.parametrize("kind", ["a higher priority", "a queue before it", "a queue behind it"])
def test_what_goes_before_the_front_is_not_passed_over(fleet: Fleet, behind: tuple[int, int], kind: str) -> None:
    early, _ = behind
    urgent = fleet.defer(priority=5, queue={"a queue before it": "a", "a queue behind it": "z"}.get(kind, "default"))
    assert fleet.claim_ids(fleet.worker(), FULL)[:2] == [urgent, early]


def test_another_queue_alone_is_claimed_as_ever(fleet: Fleet, behind: tuple[int, int]) -> None:
    other = fleet.defer(queue="mail")
    assert fleet.claim_ids(fleet.worker(), FULL, queues=["mail"]) == [other]
    assert known(fleet.sql)[2] == str(behind[1])  # type: ignore[index]


@pytest.mark.parametrize("queue", ["a", "z"])
@pytest.mark.parametrize("kind", ["a lower priority", "enqueued later", "a paused queue"])
@pytest.mark.parametrize("named", [False, True])
def test_jobs_of_another_queue_that_go_behind_are_no_reason_to_leave_the_front(
    fleet: Fleet, behind: tuple[int, int], queue: str, kind: str, named: bool
) -> None:
    _, first = behind
    last = fleet.defer(queue=queue, priority={"a lower priority": -1, "a paused queue": 5}.get(kind, 0))
    if kind == "a paused queue":
        fleet.sql("select procjobs.pause_queue(%s)", queue)
    queues = ["default", queue] if named else None
    worker = fleet.worker()
    for n in range(2):
        assert fleet.claim_ids(worker, FULL, queues=queues) == list(range(first + n * FULL, first + (n + 1) * FULL))
    rest = [behind[0], *range(first + 2 * FULL, first + 3 * FULL), *([] if kind == "a paused queue" else [last])]
    assert fleet.claim_ids(worker, 3 * FULL, queues=queues) == rest


@pytest.mark.parametrize("queue", ["a", "z"])
def test_from_the_front_on_a_job_of_another_queue_has_its_place(fleet: Fleet, queue: str) -> None:
    fleet.defer_many(FULL + 10)
    between = fleet.defer(queue=queue)
    fleet.defer_many(2 * FULL)
    remember(fleet.sql, 1)
    worker = fleet.worker()
    for n in range(3):
        assert fleet.claim_ids(worker, FULL) == list(range(1 + n * FULL, 1 + (n + 1) * FULL)), between


def test_beside_a_fair_queue_that_has_jobs_no_front_is_kept_to(fleet: Fleet, behind: tuple[int, int]) -> None:
    worker = fleet.worker()
    fleet.sql("select procjobs.set_queue('mail', fair => true)")
    fleet.defer(queue="mail", priority=-1)
    assert fleet.claim_ids(worker, FULL)[0] == behind[0]


@pytest.mark.parametrize("kind", ["lock", "limit", "task", "paused task", "paused queue"])
def test_jobs_that_must_be_judged_are(fleet: Fleet, behind: tuple[int, int], kind: str) -> None:
    early, first = behind
    sql = fleet.sql
    worker = fleet.worker("stop")
    if kind == "lock":
        sql("update procrastinate_jobs set lock = 'one' where id in (%s, %s)", first, first + 1)
    elif kind == "limit":
        sql("select procjobs.set_limit('few', queue => 'default', max_running => 7)")
    elif kind == "task":
        sql("update procrastinate_jobs set task_name = 'unknown' where id = %s", first)
    elif kind == "paused task":
        sql("update procrastinate_jobs set task_name = 'stop' where id = %s", first)
        fleet.policy("stop")
        sql("select procjobs.pause_task('stop')")
    else:
        sql("select procjobs.pause_queue('default')")
    claimed = fleet.claim_ids(worker, FULL)
    if kind == "limit":
        assert claimed == list(range(early, early + 7))
    elif kind == "paused queue":
        assert claimed == []
    else:
        assert claimed[0] == early
        assert ((first + 1) if kind == "lock" else first) not in claimed
        assert len(claimed) == FULL


@pytest.mark.slow
@pytest.mark.parametrize("others", [0, 50], ids=["one queue", "jobs in five other queues"])
def test_under_an_open_transaction_a_claim_reads_no_more_than_without_one(
    fleet: Fleet, rival: Fleet, others: int
) -> None:
    """It reads 30 times as much where each claim passes all that was claimed since the transaction began."""
    if fleet.sql.connection.info.server_version < 150000:
        pytest.skip("this server tells late what was read")
    sql, jobs = fleet.sql, 60_000
    fleet.defer_many(jobs)
    for n in range(others):
        fleet.defer(queue=f"{'az'[n % 2]}{n % 5}", priority=-1)
    worker = fleet.worker()
    sql("vacuum analyze procrastinate_jobs")

    def pages() -> int:
        sql("select pg_stat_force_next_flush()")
        found: int = sql.one(
            "select idx_blks_hit + idx_blks_read + heap_blks_hit + heap_blks_read from pg_statio_user_tables "
            "where relname = 'procrastinate_jobs'"
        )
        return found

    def read(claim: Callable[[], object]) -> int:
        before = pages()
        claim()
        return pages() - before

    def work() -> None:
        fleet.finish(*fleet.claim(worker, 500))

    before = read(work)
    rival.sql.connection.autocommit = False
    rival.sql.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    rival.sql("select count(*) from procrastinate_jobs")
    counts = [read(work) for _ in range(jobs // 500 - 2)]
    rival.sql.connection.rollback()
    # Every now and then one looks for the front.
    assert sorted(counts[-40:])[20] < 1.5 * before, (before, counts)
    assert fleet.claim_ids(worker, 500) == list(range(jobs - 499, jobs + 1))


def test_only_claims_that_find_all_they_want_look_how_long_the_way_to_the_front_is(fleet: Fleet) -> None:
    fleet.defer_many(5)
    worker = fleet.worker()
    assert len(fleet.claim(worker, 6)) == 5
    assert known(fleet.sql) is None
    fleet.defer_many(5)
    fleet.claim(worker, 5)
    assert known(fleet.sql) is not None


def test_a_claim_of_one_job_looks_only_if_it_took_long(fleet: Fleet) -> None:
    fleet.defer_many(30)
    worker = fleet.worker()

    def looked() -> bool:
        fleet.sql("select set_config('procjobs.front', '', false)")
        fleet.claim(worker, 1)
        return known(fleet.sql) is not None

    assert not all(looked() for _ in range(20))  # one of them was quick, however busy the machine is
    fleet.sql(
        "create function tired() returns trigger language plpgsql as 'begin perform pg_sleep(0.003); return new; end'"
    )
    fleet.sql("create trigger tired before update on procrastinate_jobs for each row execute function tired()")
    assert looked()


def test_where_jobs_had_to_be_judged_a_moment_ago_the_next_claim_judges_at_once(fleet: Fleet) -> None:
    sql = fleet.sql
    locked = fleet.defer(lock="one")
    plain = fleet.defer()
    worker = fleet.worker()
    assert fleet.claim_ids(worker) == [locked]
    assert sql.one("select current_setting('procjobs.judging')::float8 - procjobs.stopwatch()") <= 0.1
    with without_judging(sql):
        fleet.judge()
        with pytest.raises(psycopg.errors.UndefinedFunction):
            fleet.claim(worker)
    for over in (-1, 3600):  # later; and a clock that was set back
        fleet.judge(over)
        assert fleet.claim_ids(worker) == ([plain] if over < 0 else [])
