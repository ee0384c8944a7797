"""Dead letters by their error: fingerprints, groups, redrive, purge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import Sql
from tests.engine.fleet import Fleet
from tests.engine.test_plans import Watched


@pytest.fixture
def fleet(sql: Sql) -> Fleet:
    return Fleet(sql)


@pytest.fixture
def bury(fleet: Fleet) -> Callable[..., int]:
    """`bury("no row 5")` is a job that failed for good with this message; its id."""
    worker = fleet.worker("mail")

    def run(message: str = "boom", error: str = "ValueError", **where: Any) -> int:
        job = fleet.defer(**where)
        (claim,) = fleet.claim(worker)
        assert fleet.settle(claim, "failed", retry="never", error_class=error, error_message=message) == "failed"
        return job

    return run


def fingerprint(sql: Sql, message: str, error: str = "E") -> str:
    found: str = sql.one("select procjobs.error_fingerprint(%s, %s)", error, message)
    return found


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("no row 5 in 3.2 s", "no row 1234 in 17 s"),
        ("-5 is negative", "-17 is negative"),
        ("user 6f9619ff-8b86-d011-b42d-00cf4fc964ff is gone", "user 7f9619ff-8b86-d011-b42d-00cf4fc964aa is gone"),
        ("at 0x7fe96cb07150", "at 0x7F0a"),
        ("commit 3fae1290bc is bad", "commit 77ae1290bcdd is bad"),
        ("no column \"a b\" in 'x'", "no column \"it's\" in 'yy zz'"),
        ("cannot open /var/lib/a-1.txt: no such file", "cannot open /home/ann/b: no such file"),
        ("cannot open C:\\tmp\\x.txt here", "cannot open D:\\data\\other.bin here"),
        ("two  lines\n  here", "two lines here"),
        ("at 2031-05-10 12:00:01.5+00", "at 2030-01-02 03:04:05+01"),
        ("x" * 2000 + "a", "x" * 2000 + "b"),
    ],
)
def test_errors_that_differ_only_in_values_are_one(sql: Sql, one: str, other: str) -> None:
    assert fingerprint(sql, one) == fingerprint(sql, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("connection refused", "connection reset"), ("no row 5", "no column 5"), ("deadbeef is feedface", "a is b"),
     ("read/write failed", "read/only failed")],
)  # fmt: skip
def test_errors_that_differ_in_words_are_two(sql: Sql, one: str, other: str) -> None:
    assert fingerprint(sql, one) != fingerprint(sql, other)


def test_the_class_counts_and_without_one_there_is_none(sql: Sql) -> None:
    assert fingerprint(sql, "a", "ValueError") != fingerprint(sql, "a", "KeyError")
    assert sql.one("select procjobs.error_fingerprint(null, 'a')") is None
    assert sql.one("select procjobs.error_fingerprint('E', null)") is not None
    assert sql.one("select provolatile from pg_proc where proname = 'error_fingerprint'") in ("i", b"i")


def test_hostile_messages_are_fast(sql: Sql) -> None:
    sql("set statement_timeout = '1s'")
    for text in ("/a" * 100_000, "'" * 99_999, "1.2:" * 50_000, "a" * 200_000, "\\" * 100_000, "0x" * 100_000):
        assert fingerprint(sql, text)


def test_groups_say_what_failed_how_often_and_since_when(sql: Sql, bury: Callable[..., int]) -> None:
    bury("no row 1", queue="a")
    last = bury("no row 2", queue="b")
    bury("no row 3", task="mail")
    bury("refused", "ConnectionError")
    rows = sql(
        "select task, error_class, sample, jobs, queues, first_at < last_at, last_id "
        "from procjobs.list_dead_groups() order by jobs desc, task, error_class"
    )
    assert rows[0] == ("work", "ValueError", "no row 2", 2, ["a", "b"], True, last)
    assert [row[:4] for row in rows[1:]] == [
        ("mail", "ValueError", "no row 3", 1),
        ("work", "ConnectionError", "refused", 1),
    ]
    (mark,) = sql.one(
        "select array_agg(distinct fingerprint) from procjobs.job_attempts where error_message like 'no row%'"
    )
    assert sql.one("select count(*) from procjobs.list_dead_letters(%s)", mark) == 3
    assert sql.one("select count(*) from procjobs.list_dead_letters(%s, 'b')", mark) == 1


def test_a_reader_sees_groups_without_what_errors_say(sql: Sql, bury: Callable[..., int]) -> None:
    bury("no row 1 for secret@example.org")
    sql("set role procjobs_reader")
    assert sql("select error_class, sample, jobs from procjobs.dead_letter_groups") == [("ValueError", None, 1)]
    assert "secret" not in str(sql("select * from procjobs.list_dead_letters()"))


def test_redrive_runs_an_error_again_the_oldest_first_and_no_more_than_asked(
    sql: Sql, fleet: Fleet, bury: Callable[..., int]
) -> None:
    jobs = [bury(f"no row {n}") for n in range(5)]
    other = bury("refused", "ConnectionError")
    mark = sql.one("select fingerprint from procjobs.dead_letters where id = %s", jobs[0])
    assert sql("select * from procjobs.redrive(%s, dry_run => true)", mark) == [(5, 0, 0)]
    assert fleet.status(jobs[0]) == "failed"
    assert sql("select * from procjobs.redrive(%s, max_jobs => 3)", mark) == [(5, 3, 0)]
    assert [fleet.status(job) for job in [*jobs, other]] == ["todo"] * 3 + ["failed"] * 3
    assert sql("select distinct attempts, pj_crashes from procrastinate_jobs where status = 'todo'") == [(0, 0)]
    assert len(fleet.claim(fleet.worker(), 10)) == 3
    assert sql("select job_id, detail from procjobs.actions where action = 'redriven' order by 1") == [
        (job, {"fingerprint": mark}) for job in jobs[:3]
    ]
    ((what, count, detail),) = sql("select what, jobs, detail from procjobs.retention_passes")
    assert (what, count, detail) == ("redrive", 3, {"fingerprint": mark, "matching": 5, "refused": 0})


def test_redrive_at_a_rate_spreads_the_jobs_in_time(sql: Sql, fleet: Fleet, bury: Callable[..., int]) -> None:
    jobs = [bury() for _ in range(4)]
    jobs += [bury(queueing_lock="q")]
    with fleet.at("2031-05-10 12:00+00"):
        assert sql("select * from procjobs.redrive(per_second => 0.5)") == [(5, 5, 0)]
        due = sql("select extract(epoch from scheduled_at - procjobs.clock())::int from procrastinate_jobs order by id")
        assert [seconds for (seconds,) in due] == [0, 2, 4, 6, 8]
        assert [fleet.waits_for(job) for job in jobs] == [None, "time", "time", "time", "time"]


def test_those_whose_lock_or_key_another_job_has_stay_and_are_counted(
    sql: Sql, fleet: Fleet, bury: Callable[..., int]
) -> None:
    held, one, two, free = bury(queueing_lock="x"), bury(queueing_lock="y"), bury(queueing_lock="y"), bury()
    fleet.defer(queueing_lock="x", scheduled_at=60)
    assert sql("select * from procjobs.redrive()") == [(4, 2, 2)]
    assert [fleet.status(job) for job in (held, one, two, free)] == ["failed", "todo", "failed", "todo"]


def test_filters_of_queue_task_class_and_time(sql: Sql, fleet: Fleet, bury: Callable[..., int]) -> None:
    with fleet.at("2031-05-01 12:00+00"):
        bury(queue="a")
    with fleet.at("2031-05-02 12:00+00"):
        bury("x", "KeyError", queue="a", task="mail")
        bury("x", "KeyError", queue="b")
    for filters, count in [
        ("queue => 'a'", 2), ("task => 'mail'", 1), ("error_class => 'KeyError'", 2),
        ("before => '2031-05-02'", 1), ("queue => 'a', error_class => 'KeyError'", 1), ("queue => 'it''s'", 0), ("", 3),
    ]:  # fmt: skip
        assert sql.one(f"select matching from procjobs.redrive({filters or 'null'}, dry_run => true)") == count, filters
        assert sql.one(f"select matching from procjobs.purge_dead_letters({filters or 'null'})") == count, filters


@pytest.mark.parametrize("call", ["max_jobs => 0", "max_jobs => null", "per_second => 0", "per_second => -1"])
def test_impossible_bounds_are_refused(refused: Callable[..., Any], call: str) -> None:
    refused("PJ009", f"select procjobs.redrive({call})")


def test_purge_counts_first_and_deletes_only_when_told(sql: Sql, fleet: Fleet, bury: Callable[..., int]) -> None:
    jobs = [bury() for _ in range(3)]
    waiting = fleet.defer()
    assert sql("select * from procjobs.purge_dead_letters()") == [(3, 0)]
    assert sql("select * from procjobs.purge_dead_letters(max_jobs => 2, dry_run => false)") == [(3, 2)]
    assert [fleet.status(job) for job in [*jobs, waiting]] == ["forgotten", "forgotten", "failed", "todo"]
    assert sql("select distinct job_id from procjobs.job_attempts") == [(jobs[2],)]
    assert sql("select what, jobs from procjobs.retention_passes") == [("purge", 2)]


def test_dead_letters_of_a_batch_that_has_not_finished_are_not_purged(sql: Sql, bury: Callable[..., int]) -> None:
    job = bury()
    sql("alter table procrastinate_jobs disable trigger user")
    batch = sql.one("insert into procjobs.job_batches (name, created_at) values ('b', now()) returning id")
    sql("update procrastinate_jobs set pj_batch = %s where id = %s", batch, job)
    assert sql("select * from procjobs.purge_dead_letters(dry_run => false)") == [(0, 0)]


def test_at_a_hundred_thousand_dead_letters_an_error_is_found_by_its_index(dsn: str, sql: Sql) -> None:
    sql("alter table procrastinate_jobs disable trigger user")
    sql(
        "insert into procrastinate_jobs (task_name, queue_name, args, status, pj_finished_at, pj_fingerprint) "
        "select 'work', 'default', '{}', 'failed', now(), 'f' || n % 1000 from generate_series(1, 100000) n"
    )
    sql("alter table procrastinate_jobs enable trigger user")
    sql("vacuum analyze procrastinate_jobs")
    watched = Watched(dsn)
    found: list[Any] = []
    for act, most in [
        (lambda _: found.append(watched.sql("select * from procjobs.redrive('f7', max_jobs => 50)")), 3000),
        (lambda _: watched.sql("select procjobs.purge_dead_letters('f7', max_jobs => 50, dry_run => false)"), 3000),
        (lambda _: watched.sql("select * from procjobs.list_dead_letters('f7')"), 500),
        (lambda _: watched.sql("select * from procjobs.list_dead_letters()"), 500),
        (lambda _: watched.sql("select * from procjobs.list_dead_groups()"), 210_000),
    ]:  # fmt: skip
        statements = watched.watch(act)
        assert any(statement.scans for statement in statements)
        assert all(statement.reads <= most for statement in statements), [s for s in statements if s.reads > most]
    watched.sql.connection.close()
    assert found == [[(100, 50, 0)]]
