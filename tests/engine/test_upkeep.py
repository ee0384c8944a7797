"""Upkeep: due jobs, wake-ups, history partitions, and one caller at a time, whoever calls it."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import procrastinate
import psycopg
import pytest
from procrastinate.jobs import Job

import procjobs
from procjobs.errors import InvalidOption
from tests.conftest import Sql
from tests.engine.fleet import Fleet, Thread, opened


@contextmanager
def listening(dsn: str, *channels: str) -> Iterator[Any]:
    """Yields a function that gives all notifications so far as (channel, payload), in order."""
    with psycopg.connect(dsn, autocommit=True) as listener:
        for channel in [*channels, "the end"]:
            listener.execute(psycopg.sql.SQL("listen {}").format(psycopg.sql.Identifier(channel)))

        def heard() -> list[tuple[str, str]]:
            listener.execute("select pg_notify('the end', '')")
            found: list[tuple[str, str]] = []
            for notify in listener.notifies(timeout=10):
                if notify.channel == "the end":
                    return found
                found.append((notify.channel, notify.payload))
            pytest.fail("the end was not heard")

        yield heard


HINT = '{"type": "job_inserted", "job_id": 0}'
ANY = "procrastinate_any_queue_v1"


# -- wake-ups ------------------------------------------------------------------------------------------------------


def test_one_notification_a_queue_and_statement(fleet: Fleet, dsn: str) -> None:
    with listening(dsn, ANY, "procrastinate_queue_v1#mail", "procrastinate_queue_v1#slow") as heard:
        fleet.defer_many(1000, queue="mail")
        assert heard() == [("procrastinate_queue_v1#mail", HINT), (ANY, HINT)]
        fleet.sql(
            "select procjobs.enqueue_jobs(array['work','work','work'], array['mail','slow','mail'], array[0,0,0], "
            "array[null,null,null]::text[], array[null,null,null]::text[], array['{}','{}','{}'], "
            "array[null,null,null]::timestamptz[])"
        )
        assert sorted(heard()) == [
            (ANY, HINT),
            ("procrastinate_queue_v1#mail", HINT),
            ("procrastinate_queue_v1#slow", HINT),
        ]


def test_a_job_that_cannot_run_yet_wakes_nobody(fleet: Fleet, dsn: str) -> None:
    with listening(dsn, ANY) as heard:
        fleet.defer(scheduled_at=3600)
        assert heard() == []
        fleet.defer(lock="l")
        assert heard() == [(ANY, HINT)]
        fleet.defer(lock="l")
        assert heard() == []


def test_an_enqueue_that_is_rolled_back_wakes_nobody(fleet: Fleet, dsn: str) -> None:
    with listening(dsn, ANY) as heard:
        with fleet.sql.connection.transaction(force_rollback=True):
            fleet.defer()
        assert heard() == []


def test_a_job_that_becomes_due_wakes_its_queue(fleet: Fleet, dsn: str) -> None:
    fleet.defer(queue="mail", scheduled_at=30)
    with listening(dsn, ANY, "procrastinate_queue_v1#mail") as heard:
        with fleet.at(fleet.later(60)):
            fleet.sql("select procjobs.upkeep()")
        assert heard() == [("procrastinate_queue_v1#mail", HINT), (ANY, HINT)]


@pytest.mark.parametrize(
    ("queue", "own_channel"), [("q" * 40, True), ("q" * 41, False), ("ü" * 20, True), ("ü" * 21, False)]
)
def test_a_queue_name_too_long_for_a_channel_wakes_through_the_channel_of_all(
    fleet: Fleet, dsn: str, queue: str, own_channel: bool
) -> None:
    own = f"procrastinate_queue_v1#{queue}"
    with listening(dsn, ANY, *[own] if own_channel else []) as heard:
        job = fleet.defer(queue=queue)
        assert heard() == ([(own, HINT)] if own_channel else []) + [(ANY, HINT)]

        fleet.claim(fleet.worker())
        assert fleet.sql.one("select procjobs.cancel(%s)", job) == "requested"
        assert ANY in [channel for channel, payload in heard() if "abort" in payload and str(job) in payload]


def test_every_way_a_long_queue_name_can_go_works(fleet: Fleet, sql: Sql) -> None:
    queue = "q" * 128
    job = sql.one("select unnest(procrastinate_defer_jobs_v1(array[row(%s, 'work', 0, null, null, '{}', null)"
                  "::procrastinate_job_to_defer_v1]))", queue)  # fmt: skip
    (claim,) = fleet.claim(fleet.worker(), queues=[queue])
    assert sql.one("select procrastinate_cancel_job_v1(%s, true, false)", job) == job
    assert fleet.finish(claim) == [job]


# -- due jobs ------------------------------------------------------------------------------------------------------


def test_what_is_due_is_promoted_oldest_first_and_in_batches(fleet: Fleet, sql: Sql) -> None:
    jobs = [fleet.defer(scheduled_at=60 - n) for n in range(5)]
    with fleet.at(fleet.later(61)):
        assert sql.one("select procjobs.promote_due(2)") == 2
        assert [fleet.waits_for(job) for job in jobs] == ["time", "time", "time", None, None]
        assert [sql.one("select procjobs.promote_due(2)") for _ in range(3)] == [2, 1, 0]


def test_what_is_not_due_is_not_promoted(fleet: Fleet, sql: Sql) -> None:
    fleet.defer(scheduled_at="2031-05-01 12:00+00")
    for moment, count in [("2031-05-01 11:59:59.999+00", 0), ("2031-05-01 12:00+00", 1)]:
        with fleet.at(moment):
            assert sql.one("select procjobs.promote_due()") == count


def test_a_row_that_somebody_holds_does_not_keep_the_others(fleet: Fleet, rival: Fleet) -> None:
    held, free = fleet.defer(scheduled_at=30), fleet.defer(scheduled_at=31)
    fleet.sql("set lock_timeout = '300ms'")
    with rival.sql.connection.transaction(force_rollback=True), fleet.at(fleet.later(60)):
        rival.sql("select procjobs.cancel(%s)", held)
        assert fleet.sql.one("select procjobs.promote_due()") == 1
    assert (fleet.waits_for(held), fleet.waits_for(free)) == ("time", None)


def test_what_is_due_does_not_wait_for_the_chores_of_another_worker(fleet: Fleet, rival: Fleet) -> None:
    due, later = fleet.defer(scheduled_at=30), fleet.defer(scheduled_at=90)
    fleet.sql("select procjobs.set_limit('slowly', queue => 'slow', rate => 1, per => '10 seconds')")
    first, second = fleet.defer(queue="slow"), fleet.defer(queue="slow")
    assert fleet.claim_ids(fleet.worker(), 5) == [first]
    with rival.sql.connection.transaction(force_rollback=True), fleet.at(fleet.later(60)):
        rival.sql("select pg_advisory_xact_lock(hashtext('procjobs.upkeep'))")  # as in the midst of a long chore
        assert fleet.sql.one("select procjobs.promote_ready()") == pytest.approx(30, abs=5)
    assert [fleet.waits_for(job) for job in (due, later, second)] == [None, "time", None]


def test_a_job_that_gets_another_time_waits_for_that(fleet: Fleet, sql: Sql) -> None:
    job = fleet.defer()
    sql("update procrastinate_jobs set scheduled_at = now() + interval '1 hour'")
    assert fleet.waits_for(job) == "time"
    assert fleet.claim(fleet.worker()) == []
    sql("update procrastinate_jobs set scheduled_at = null")
    assert fleet.claim_ids(fleet.worker()) == [job]


async def test_extreme_times_harm_nobody(app: procjobs.App, drain: Callable[..., Any], fleet: Fleet, sql: Sql) -> None:
    """Held for ever by hand, or due since before the calendar that Python knows."""

    @app.task(name="noop", queue="q")
    async def noop() -> None:
        pass

    never = [await noop.defer_async() for _ in range(2)]
    long_due = [await noop.defer_async() for _ in range(2)]
    plain = await noop.defer_async()
    for job, moment in zip(
        never + long_due, ["infinity", "99999-01-01", "-infinity", "0044-03-15 12:00 BC"], strict=True
    ):
        sql("update procrastinate_jobs set scheduled_at = %s::timestamptz where id = %s", moment, job)
    with fleet.at("2031-05-01 12:00+00"):
        sql("select procjobs.upkeep()")
    await asyncio.wait_for(drain(), 10)
    assert [fleet.status(job) for job in [*never, *long_due, plain]] == ["todo"] * 2 + ["succeeded"] * 3
    assert all("not due until" in sql.one("select procjobs.why_not_running(%s)", job) for job in never)


async def test_a_success_is_one_also_when_its_partition_is_made_that_moment(
    app: procjobs.App, drain: Callable[..., Any], fleet: Fleet, sql: Sql
) -> None:
    """PostgreSQL refuses a row that was on its way into the default partition when its own is attached."""

    @app.task(name="noop")
    async def noop() -> None:
        pass

    sql(
        "create sequence tries; create function refuse() returns trigger language plpgsql security definer as $$ begin "
        "if nextval('public.tries') <= 2 then "
        "raise check_violation using message = 'new row violates partition constraint'; end if; return new; end $$;"
        "create trigger refuse before insert on procjobs.job_history for each row execute function refuse()"
    )
    made = [await noop.defer_async() for _ in range(3)]
    await asyncio.wait_for(drain(), 10)
    assert [fleet.status(job) for job in made] == ["succeeded"] * 3
    assert sql("select * from procjobs.job_attempts") == []


# -- the round -----------------------------------------------------------------------------------------------------


def test_upkeep_says_when_the_next_job_is_due(fleet: Fleet, sql: Sql) -> None:
    assert sql.one("select procjobs.upkeep()") is None
    with fleet.at("2031-05-01 12:00+00"):
        fleet.defer(scheduled_at=90)
        fleet.defer(scheduled_at=60)
        assert sql.one("select procjobs.upkeep()") == 60


def test_one_caller_at_a_time_and_the_others_do_not_wait(fleet: Fleet, rival: Fleet) -> None:
    job = fleet.defer(scheduled_at=30)
    rival.sql("set lock_timeout = 1")
    with fleet.at(fleet.later(60)), rival.at(fleet.later(60)):
        with fleet.sql.connection.transaction():
            fleet.sql("select procjobs.upkeep()")
            later = rival.defer(scheduled_at=-30)
            rival.sql("update procrastinate_jobs set pj_waits_for = 'time' where id = %s", later)
            rival.sql("select procjobs.upkeep()")
            assert rival.waits_for(later) == "time"
        assert fleet.waits_for(job) is None


def test_upkeep_by_many_at_once_does_everything_once(dsn: str, fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(50)
    worker = fleet.worker()
    fleet.claim(worker, 50)
    fleet.die(worker)
    sql("update procrastinate_jobs set lock = 'lock' || id")
    start = threading.Barrier(4)

    def work() -> None:
        with opened(dsn) as mine:
            start.wait(10)
            for _ in range(5):
                mine.sql("select procjobs.upkeep()")

    for thread in [Thread(work) for _ in range(4)]:
        thread.result()
    assert sql("select pj_crashes, count(*) from procrastinate_jobs group by 1") == [(1, 50)]


def test_a_chore_that_fails_does_not_keep_the_others_from_being_done(fleet: Fleet, sql: Sql) -> None:
    """Or one row that nobody can update would stop rescue, promotion and sweeping for the whole fleet."""
    poison = fleet.defer(args='{"n": 1}', scheduled_at=1)
    lost = fleet.defer()
    worker = fleet.worker()
    fleet.claim(worker)
    fleet.die(worker)
    stranded = fleet.defer(lock="l")
    sql("update procrastinate_jobs set pj_waits_for = 'lock' where id = %s", stranded)
    sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'not this one'; end $$;"
        "create trigger refuse before update on procrastinate_jobs for each row when (new.args <> '{}') "
        "execute function refuse()"
    )
    heard: list[str] = []
    sql.connection.add_notice_handler(lambda notice: heard.append(notice.message_primary or ""))
    with fleet.at(fleet.later(5)):
        sql("select procjobs.upkeep()")
    assert fleet.waits_for(poison) == "time"
    assert fleet.status(lost) == "todo"
    assert fleet.waits_for(stranded) is None
    assert any("promote_due" in message and "not this one" in message for message in heard)


def test_a_chore_that_meets_a_locked_table_does_not_keep_the_others_waiting(
    fleet: Fleet, rival: Fleet, sql: Sql
) -> None:
    """An index is built on the history: jobs still become due."""
    due = fleet.defer(scheduled_at=1)
    sql("set client_min_messages = error; set statement_timeout = '10s'")
    with rival.sql.connection.transaction(), fleet.at(fleet.later(5)):
        rival.sql("lock table procjobs.job_history in share mode")
        sql("select procjobs.upkeep()")
        assert fleet.waits_for(due) is None


async def test_a_lock_that_could_never_be_indexed_is_refused_at_once(
    app: procjobs.App, drain: Callable[..., Any], fleet: Fleet, sql: Sql
) -> None:
    """Not accepted as long as the job is not due, to stop the promotion of all due jobs of the fleet then."""
    endless = secrets.token_hex(1301)

    class Own(procrastinate.BaseRetryStrategy):
        def get_retry_decision(self, *, exception: BaseException, job: Job) -> procrastinate.RetryDecision:
            return procrastinate.RetryDecision(retry_in={"seconds": 1}, lock=endless)

    @app.task(name="t", retry=Own())
    async def t() -> None:
        raise ValueError

    for options in ({"schedule_in": {"seconds": 1}}, {}):
        with pytest.raises(InvalidOption, match="2600 bytes"):
            await t.configure(lock=endless, **options).defer_async()
    longest = await t.configure(lock=endless[:2600], schedule_in={"seconds": 1}).defer_async()
    with fleet.at(fleet.later(5)):
        assert sql.one("select procjobs.promote_due()") == 1
    await asyncio.wait_for(drain(), 10)
    assert fleet.status(longest) == "failed"
    assert "2600 bytes" in sql.one("select error_message from procjobs.job_attempts")


def test_a_chore_runs_once_an_interval(fleet: Fleet, sql: Sql) -> None:
    due = "select procjobs.chore_is_due('tidy', '1 hour')"
    for moment, expected in [
        ("2031-05-01 12:00+00", True),
        ("2031-05-01 12:59:59+00", False),
        ("2031-05-01 13:00+00", True),
        ("2031-05-01 13:30+00", False),
        ("2030-01-01 00:00+00", True),  # the clock was set back: not idle until 2031 comes again
        ("2030-01-01 00:30+00", False),
    ]:
        with fleet.at(moment):
            assert sql.one(due) is expected, moment


def test_workers_that_left_long_ago_are_forgotten(fleet: Fleet, sql: Sql) -> None:
    left, dead, alive = fleet.worker(), fleet.worker(), fleet.worker()
    sql("select procjobs.stop_worker(%s)", left)
    fleet.die(dead)
    sql("select procjobs.upkeep()")
    with fleet.at(fleet.later(6 * 86400)):
        sql("select * from procjobs.heartbeat(%s)", alive)
        sql("select procjobs.upkeep()")
        assert sql.one("select count(*) from procjobs.worker_state") == 3
    with fleet.at(fleet.later(8 * 86400)):
        sql("select * from procjobs.heartbeat(%s)", alive)
        sql("select procjobs.upkeep()")
        assert sql("select id from procjobs.worker_state") == [(alive,)]


# -- the history ---------------------------------------------------------------------------------------------------


def partitions(sql: Sql) -> list[str]:
    return [
        name
        for (name,) in sql(
            "select c.relname::text from pg_inherits i join pg_class c on c.oid = i.inhrelid "
            "where i.inhparent = 'procjobs.job_history'::regclass order by 1"
        )
    ]


def where(sql: Sql) -> list[tuple[int, str]]:
    """Each job of the history and the partition it is in."""
    rows = sql(
        "select h.id, c.relname::text from procjobs.job_history h join pg_class c on c.oid = h.tableoid order by 1"
    )
    return [(job, partition) for job, partition in rows]


def test_upkeep_makes_the_partitions_of_today_and_the_coming_days(fleet: Fleet, sql: Sql) -> None:
    with fleet.at("2031-05-30 23:30+00"):
        sql("select procjobs.upkeep()")
    made = [name for name in partitions(sql) if "2031" in name]
    assert made == [
        f"job_history_2031{day}" for day in ("0530", "0531", "0601", "0602", "0603", "0604", "0605", "0606")
    ]
    with fleet.at("2031-05-30 23:59:59+00"):
        job = fleet.defer()
        fleet.finish(*fleet.claim(fleet.worker()))
    with fleet.at("2031-05-31 00:00+00"):
        fleet.defer()
        fleet.finish(*fleet.claim(fleet.worker()))
    assert where(sql) == [(job, "job_history_20310530"), (job + 1, "job_history_20310531")]


def test_days_are_those_of_utc_whatever_the_session_says(fleet: Fleet, sql: Sql) -> None:
    sql("set timezone = 'Pacific/Kiritimati'")
    assert sql.one("select procjobs.ensure_history_partition('2031-05-01')")
    assert "FOR VALUES FROM ('2031-05-01 14:00:00+14') TO ('2031-05-02 14:00:00+14')" in sql.one(
        "select pg_get_expr(relpartbound, oid) from pg_class where relname = 'job_history_20310501'"
    )


def test_rows_that_came_before_their_partition_move_into_it(fleet: Fleet, sql: Sql) -> None:
    for moment in (
        "2031-05-01 00:00+00",
        "2031-05-01 23:59:59.999999+00",
        "2031-05-02 00:00+00",
        "2031-04-30 23:59+00",
    ):
        with fleet.at(moment):
            fleet.defer(lock="l")
            fleet.finish(*fleet.claim(fleet.worker()))
    before = sql("select * from procjobs.job_history order by id")
    assert {partition for _, partition in where(sql)} == {"job_history_default"}

    with fleet.at("2031-05-01 12:00+00"):
        assert [sql.one("select procjobs.ensure_history_partitions(0)") for _ in range(2)] == [1, 0]
    assert sql("select * from procjobs.job_history order by id") == before
    assert [partition for _, partition in where(sql)] == ["job_history_20310501"] * 2 + ["job_history_default"] * 2
    assert sql.one("select count(*) from pg_indexes where tablename = 'job_history_20310501'") == sql.one(
        "select count(*) from pg_indexes where tablename = 'job_history_default'"
    )
    assert sql.one("select relowner = (select relowner from pg_class where oid = 'procjobs.job_history'::regclass) "
                   "from pg_class where relname = 'job_history_20310501'")  # fmt: skip


def test_somebody_who_reads_the_history_for_long_stops_neither_upkeep_nor_the_finish(
    fleet: Fleet, rival: Fleet, sql: Sql
) -> None:
    """pg_dump, or a report in a REPEATABLE READ transaction."""
    due = fleet.defer(scheduled_at=30)
    fleet.defer()
    claims = fleet.claim(fleet.worker())
    with rival.sql.connection.transaction():
        rival.sql("select count(*) from procjobs.job_history")
        sql("set client_min_messages = error")
        with fleet.at("2031-05-01 12:00+00"):
            made = Thread(lambda: sql.one("select procjobs.ensure_history_partitions(0)")).result(30)
            assert made == 0
            sql("select procjobs.promote_due()")
            assert fleet.waits_for(due) is None
            assert fleet.finish(*claims) == [claims[0].id]
    with fleet.at("2031-05-01 12:00+00"):
        assert sql.one("select procjobs.ensure_history_partitions(0)") == 1
    assert where(sql) == [(claims[0].id, "job_history_20310501")]


def test_partitions_that_could_not_be_made_are_made_soon_and_not_in_an_hour(
    fleet: Fleet, rival: Fleet, sql: Sql
) -> None:
    sql("set client_min_messages = error")
    with fleet.at("2031-05-01 12:00+00"):
        with rival.sql.connection.transaction():
            rival.sql("select count(*) from procjobs.job_history")
            sql("select procjobs.upkeep()")
        assert not [name for name in partitions(sql) if "2031" in name]
    with fleet.at("2031-05-01 12:02+00"):
        sql("select procjobs.upkeep()")
        assert len([name for name in partitions(sql) if "2031" in name]) == 8


def test_two_that_make_the_same_partition_make_one(dsn: str, sql: Sql) -> None:
    start = threading.Barrier(3)

    def work() -> int:
        with opened(dsn) as mine:
            mine.sql("set client_min_messages = error")
            mine.sql("set procjobs.now = '2031-05-01 12:00+00'")
            start.wait(10)
            made: int = mine.sql.one("select procjobs.ensure_history_partitions(3)")
            return made

    made = sum(thread.result(30) for thread in [Thread(work) for _ in range(3)])
    assert 1 <= made <= 4  # who lost a race leaves the rest to the next pass
    assert len([name for name in partitions(sql) if "2031" in name]) == made


def test_jobs_finish_while_their_partition_is_being_made(dsn: str, fleet: Fleet, sql: Sql) -> None:
    fleet.defer_many(120)
    claims = fleet.claim(fleet.worker(), 120)

    def finish() -> int:
        count = 0
        with opened(dsn) as mine, mine.at("2031-05-01 12:00+00"):
            for at in range(0, 120, 4):
                try:
                    count += len(mine.finish(*claims[at : at + 4]))
                except psycopg.errors.CheckViolation:  # on its way into the default partition; the worker tries again
                    count += len(mine.finish(*claims[at : at + 4]))
        return count

    finishing = Thread(finish)
    sql("select procjobs.ensure_history_partition('2031-05-01')")
    assert finishing.result() == 120
    assert sql.one("select count(*) from procjobs.job_history") == 120


# -- retention -----------------------------------------------------------------------------------------------------


def test_old_jobs_are_deleted_wherever_they_are_and_young_ones_are_not(fleet: Fleet, sql: Sql) -> None:
    worker = fleet.worker()
    for moment in ("2031-05-01 00:00+00", "2031-05-02 00:00+00"):
        with fleet.at(moment):
            for disposal in ("archive", "keep"):
                for queue in ("mail", "slow"):
                    fleet.defer(queue=queue)
                    fleet.finish(*fleet.claim(worker), disposal=disposal)
            fleet.defer(queue="mail")
            (claim,) = fleet.claim(worker)
            fleet.settle(claim, "failed")
    with fleet.at("2031-05-02 01:00+00"):
        assert sql.one("select procjobs.delete_old_jobs(24, 'mail', '{succeeded}')") == 2
        assert sql.one("select procjobs.delete_old_jobs(24, null, '{failed,succeeded}', 1)") == 2
        assert sql.one("select procjobs.delete_old_jobs(24, null, '{failed,succeeded}', 1)") == 1
        assert sql.one("select procjobs.delete_old_jobs(24, null, '{todo,doing,failed,succeeded}')") == 0
    assert sql.one("select count(*) from procjobs.job_history") == 2
    assert sql.one("select count(*) from procrastinate_jobs") == 3
