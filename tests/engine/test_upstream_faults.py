"""The sixteen faults of Procrastinate's own worker that ours must not have, in the order of their numbers."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import procrastinate
import psycopg
import pytest
from procrastinate.exceptions import AlreadyEnqueued

import procjobs
from procjobs import Retry

from .clockwork import Clockwork

REGISTER = "select procjobs.register_worker(%s, 'host', 1, '0', null, array['noop'], 10, '10 s', '30 s')"
UNCHECKED = "select set_config('procjobs.args_checked', 'on', false)"


@pytest.fixture
def noop(app):
    async def run():
        pass

    return app.task(name="noop")(run)


def status(sql, job_id):
    return sql.one("select status::text from procjobs.jobs where id = %s", job_id)


def claim(sql, worker, n=10):
    return sql("select id, lease from procjobs.claim_jobs(%s, null, %s)", worker, n)


def bury(sql, worker):
    """The worker's last heartbeat is long ago, and was seen to be."""
    sql(
        "update procjobs.worker_state set last_heartbeat = now() - interval '1 hour', "
        "suspected_at = now() - interval '1 minute' where id = %s",
        worker,
    )
    return sql.one("select procjobs.rescue_jobs()")


async def test_01_a_finish_that_fails_is_tried_again_until_it_succeeds(app, noop, working, sql, eventually):
    sql("create sequence procjobs.failures")
    sql("grant usage on sequence procjobs.failures to procjobs_owner")
    sql("""create function fail_thrice() returns trigger language plpgsql as $$
           begin
             if nextval('procjobs.failures') <= 3 then
               raise exception 'injected'
                 using errcode = (array['40001', '40P01', '53100'])[currval('procjobs.failures')];
             end if;
             return new;
           end $$""")
    sql("select procjobs.ensure_history_partitions()")
    partition = sql.one("select 'procjobs.job_history_' || to_char(now() at time zone 'UTC', 'YYYYMMDD')")
    sql(f"create trigger fail before insert on {partition} for each row execute function fail_thrice()")
    job = await noop.defer_async()
    async with working():
        await eventually(lambda: status(sql, job) == "succeeded")
    assert sql.one("select last_value from procjobs.failures") == 4


async def test_02_a_zombies_late_end_is_refused(noop, sql):
    job = await noop.defer_async()
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    zombie, other = sql.one(REGISTER, "zombie"), sql.one(REGISTER, "other")
    ((_, lease),) = claim(sql, zombie)
    assert bury(sql, zombie) == 1
    sql("select procjobs.retry(%s)", job)
    ((_, second_lease),) = claim(sql, other)

    assert sql("select procjobs.finish_jobs(%s, %s, %s)", zombie, [job], [lease]) == []
    ended = [{"id": job, "lease": lease, "outcome": "failed", "retry": "never"}]
    assert sql("select result from procjobs.settle_jobs(%s, %s)", zombie, json.dumps(ended)) == [("stale",)]
    assert sql("select status::text, worker_id, pj_lease from procrastinate_jobs") == [("doing", other, second_lease)]
    assert sql("select procjobs.finish_jobs(%s, %s, %s)", other, [job], [second_lease]) == [(job,)]


async def test_03_a_job_that_blocks_the_loop_for_longer_than_the_lease_does_not_stop_the_heartbeat(
    app, working, sql, eventually
):
    @app.task(name="block")
    async def block():
        time.sleep(2.5)  # noqa: ASYNC251  the loop shall stand still

    job = await block.defer_async()
    async with working(update_heartbeat_interval=0.2, stalled_worker_timeout=1.0):
        rescued = 0
        while status(sql, job) != "succeeded":
            rescued += await asyncio.to_thread(psycopg_value, app, "select procjobs.rescue_jobs()")
            await asyncio.sleep(0.05)
    assert rescued == 0
    assert sql("select attempts, crashes from procjobs.job_history where id = %s", job) == [(1, 0)]


def psycopg_value(app, query):
    with psycopg.connect(app.target.conninfo, autocommit=True) as connection:
        ((value,),) = connection.execute(query).fetchall()
        return value


async def test_03_the_heartbeat_goes_on_while_the_worker_drains(app, working, sql, eventually):
    started, release = asyncio.Event(), asyncio.Event()

    @app.task(name="slow")
    async def slow():
        started.set()
        await release.wait()

    await slow.defer_async()
    async with working() as worker:
        await started.wait()
        worker.cancel()
        await eventually(lambda: sql.one("select draining_at is not null from procjobs.worker_state"))
        before = sql.one("select last_heartbeat from procjobs.worker_state")
        await eventually(lambda: sql.one("select last_heartbeat > %s from procjobs.worker_state", before))
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await worker


@pytest.mark.slow
async def test_04_every_connection_is_cut_again_and_again_and_the_worker_goes_on(app, noop, working, sql, eventually):
    async with working():
        for _ in range(20):
            jobs = await noop.batch_defer_async(*[{} for _ in range(20)])
            sql(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name like 'procjobs %'"
            )
            await eventually(
                lambda jobs=jobs: (
                    sql.one(
                        "select count(*) from procjobs.job_history where id = any(%s) and status = 'succeeded'", jobs
                    )
                    == 20
                )
            )
    assert sql.one("select count(*) from procrastinate_jobs") == 0


async def test_05_forged_and_malformed_notifications_change_nothing(app, working, sql, eventually):
    started, release = asyncio.Event(), asyncio.Event()

    @app.task(name="victim")
    async def victim():
        started.set()
        await release.wait()

    job = await victim.defer_async()
    async with working() as worker:
        await started.wait()
        forged = [
            json.dumps({"type": "abort_job_requested", "job_id": job}),
            json.dumps({"type": "abort_job_requested", "job_id": "x"}),
            '{"type": "abort',
            "",
            "\u0001",
            "[1]",
            '{"type": 7}',
            "abort " * 1000,
        ]
        for n in range(2500):
            for channel in ("procrastinate_any_queue_v1", "procrastinate_queue_v1#default"):
                sql("select pg_notify(%s, %s)", channel, forged[n % len(forged)] + " " * (n % 7))
        other = await victim.defer_async()
        release.set()
        await eventually(lambda: status(sql, job) == "succeeded" and status(sql, other) == "succeeded")
        assert not worker.done()


@pytest.mark.parametrize(
    "absurd",
    [
        '{"n": ' + "7" * 5000 + "}",
        '{"n": ' + "[" * 3000 + "]" * 3000 + "}",
        "[1, 2]",
        '"text"',
        "null",
        "17",
    ],
    ids=["5000 digits", "3000 deep", "array", "string", "null", "number"],
)
async def test_06_one_row_that_nobody_can_read_fails_alone(app, noop, drain, sql, absurd):
    before = await noop.defer_async()
    sql(UNCHECKED)
    bad = sql.one(
        "insert into procrastinate_jobs (queue_name, task_name, args) "
        "values ('default', 'noop', %s::jsonb) returning id",
        absurd,
    )
    after = await noop.defer_async()
    await drain()
    assert [status(sql, job) for job in (before, bad, after)] == ["succeeded", "failed", "succeeded"]
    assert sql.one("select outcome from procjobs.job_attempts where job_id = %s", bad) == "unreadable"


async def test_07_a_crash_counts_and_the_third_is_the_last(noop, sql):
    job = await noop.defer_async()
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    seen = []
    for n in range(3):
        worker = sql.one(REGISTER, f"w{n}")
        sql("update procrastinate_jobs set scheduled_at = null where status = 'todo'")
        assert len(claim(sql, worker)) == 1
        bury(sql, worker)
        seen += sql("select status::text, pj_crashes, attempts from procrastinate_jobs where id = %s", job)
    assert seen == [("todo", 1, 0), ("todo", 2, 0), ("failed", 3, 0)]
    assert sql("select distinct outcome, error_class from procjobs.job_attempts") == [("crashed", "WorkerDied")]
    assert sql.one("select worker_name from procjobs.job_attempts order by id desc limit 1") == "w2"


def test_08_waits_double_up_to_a_cap_and_jitter_stays_below(sql):
    exact = [
        sql.one("select extract(epoch from procjobs.retry_delay(%s, '60 s', '1 hour', false))", n) for n in range(1, 9)
    ]
    assert exact == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert sql.one("select procjobs.retry_delay(2000000000, '1 s', '1 day', false) = '1 day'")
    low, high, kinds = sql(
        "select min(d), max(d), count(distinct d) from "
        "(select extract(epoch from procjobs.retry_delay(3, '60 s', '1 hour', true)) d from generate_series(1, 1000)) x"
    )[0]
    assert 0 <= low < 20 and 220 < high <= 240 and kinds > 900


def test_08_upstreams_own_count_is_kept_for_upstreams_strategies():
    assert Retry(max_attempts=3).max_attempts == 3
    assert procrastinate.RetryStrategy(max_attempts=3).max_attempts == 3


async def test_09_a_retry_in_the_future_does_not_block_its_lock(app, drain, sql):
    @app.task(name="flaky", retry=Retry(max_attempts=2, base=600, jitter=False))
    async def flaky(fail: bool):
        if fail:
            raise RuntimeError

    first = await flaky.configure(lock="account").defer_async(fail=True)
    second = await flaky.configure(lock="account").defer_async(fail=False)
    await drain()
    assert (status(sql, first), status(sql, second)) == ("todo", "succeeded")


async def test_09_a_race_for_a_lock_is_a_skipped_candidate_never_an_error(app, sql, dsn):
    """Twelve claimers at once on few locks, over and over: each lock runs once at a time, no claim fails."""

    async def run():
        pass

    task = app.task(name="noop")(run)
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    for n in range(120):
        await task.configure(lock=f"lock {n % 4}", priority=n % 7).defer_async()
    done: list[int] = []

    async def claimer(n: int):
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            cursor = await connection.execute(REGISTER, (f"w{n}",))
            ((worker,),) = await cursor.fetchall()
            while len(done) < 120:
                cursor = await connection.execute("select id, lease from procjobs.claim_jobs(%s, null, 5)", (worker,))
                rows = await cursor.fetchall()
                for job, lease in rows:
                    cursor = await connection.execute(
                        "select * from procjobs.finish_jobs(%s, %s, %s)", (worker, [job], [lease])
                    )
                    assert await cursor.fetchall() == [(job,)]
                    done.append(job)

    await asyncio.wait_for(asyncio.gather(*[claimer(n) for n in range(12)]), 60)
    assert sorted(done) == sorted(set(done)) and len(done) == 120


async def test_10_a_retry_whose_queueing_lock_is_taken_ends_as_superseded(app, working, sql, eventually):
    started, release = asyncio.Event(), asyncio.Event()

    @app.task(name="sync", retry=Retry(max_attempts=5, base=0, cap=0), queueing_lock="sync")
    async def sync():
        started.set()
        await release.wait()
        raise RuntimeError

    first = await sync.defer_async()
    async with working(concurrency=1):
        await started.wait()
        second = await sync.configure(schedule_in={"hours": 1}).defer_async()
        release.set()
        await eventually(lambda: status(sql, first) == "cancelled")
    assert f"job {second}" in sql.one("select note from procjobs.jobs where id = %s", first)
    assert status(sql, second) == "todo"
    with pytest.raises(AlreadyEnqueued):
        await sync.defer_async()


async def test_10_rescue_meets_the_same_wall_and_passes_it(app, sql):
    async def run():
        pass

    task = app.task(name="noop", queueing_lock="one")(run)
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    first = await task.defer_async()
    worker = sql.one(REGISTER, "dying")
    claim(sql, worker)
    second = await task.defer_async()
    assert bury(sql, worker) == 1
    assert (status(sql, first), status(sql, second)) == ("cancelled", "todo")


async def test_11_a_deploy_loses_no_job(app, working, drain, sql, eventually):
    runs = []

    @app.task(name="long")
    async def long():
        runs.append(1)
        if len(runs) == 1:
            await asyncio.Event().wait()

    job = await long.defer_async()
    async with working(shutdown_graceful_timeout=0.1) as worker:
        await eventually(lambda: runs)
        worker.cancel()
        with pytest.raises(asyncio.CancelledError):
            await worker
    assert status(sql, job) == "todo"
    await drain()
    assert sql("select status::text, attempts from procjobs.jobs where id = %s", job) == [("succeeded", 1)]


async def test_12_an_unknown_task_waits_for_a_worker_that_knows_it(dsn, sql, noop, working, eventually):
    new = procjobs.App(dsn)

    @new.task(name="new_task")
    async def new_task():
        pass

    async with new.open_async():
        job = await new_task.defer_async()
        known = await noop.defer_async()
        async with working():  # the old worker
            await eventually(lambda: status(sql, known) == "succeeded")
            await eventually(lambda: sql.one("select state from procjobs.jobs where id = %s", job) == "parked")
            assert "new_task" in sql.one("select procjobs.why_not_running(%s)", job)
        assert status(sql, job) == "todo"
        await new.run_worker_async(wait=False, install_signal_handlers=False)
    assert sql("select status::text, attempts from procjobs.jobs where id = %s", job) == [("succeeded", 1)]


def test_13_one_notification_a_queue_and_statement(dsn, sql):
    sql("select procjobs.register_tasks('[{\"name\": \"noop\"}]', 'test')")
    with psycopg.connect(dsn, autocommit=True) as listener:
        for channel in ("procrastinate_any_queue_v1", "procrastinate_queue_v1#a", "procrastinate_queue_v1#b"):
            listener.execute(f'listen "{channel}"')
        sql(
            "insert into procrastinate_jobs (queue_name, task_name) "
            "select (array['a', 'b'])[1 + n %% 2], 'noop' from generate_series(1, 1000) n".replace("%%", "%")
        )
        heard = sorted(n.channel for n in listener.notifies(timeout=5, stop_after=3))
        assert heard == ["procrastinate_any_queue_v1", "procrastinate_queue_v1#a", "procrastinate_queue_v1#b"]
        assert list(listener.notifies(timeout=0.2)) == []


async def test_13_a_long_queue_name_works_through_its_whole_life(app, working, sql, eventually):
    name = "q" * 128
    started = asyncio.Event()

    @app.task(name="long_queue", queue=name)
    async def run():
        started.set()
        await asyncio.Event().wait()

    async with working(queues=[name], fetch_job_polling_interval=600):
        await eventually(
            lambda: sql.one("select count(*) from pg_stat_activity where application_name = 'procjobs listen'")
        )
        job = await run.defer_async()
        await asyncio.wait_for(started.wait(), 5)
        sql("select procjobs.cancel(%s)", job)
        await eventually(lambda: status(sql, job) == "aborted")


async def test_14_a_cron_that_never_fires_harms_nobody(app, noop, working, sql, eventually):
    @app.periodic(cron="0 0 30 2 *")
    @app.task(name="never")
    async def never(timestamp: int):
        pass

    @app.periodic(cron="* * * * * *")
    @app.task(name="every_second")
    async def every_second(timestamp: int):
        pass

    async with working() as worker:
        await eventually(
            lambda: sql.one("select count(*) from procjobs.job_history where task_name = 'every_second'") >= 2
        )
        assert not worker.done()


async def test_14_a_slot_is_deferred_once_even_by_a_worker_that_slept(app, sql):
    @app.task(name="tick")
    async def tick(timestamp: int):
        pass

    async def defer(timestamp: int):
        job = tick.configure(task_kwargs={"timestamp": timestamp}).job
        return await app.job_manager.defer_periodic_job(job=job, periodic_id="", defer_timestamp=timestamp)

    assert await defer(1000) is not None
    assert await defer(1060) is not None
    assert await defer(1000) is None  # upstream has forgotten this slot and defers it again
    assert await defer(1060) is None
    assert sql.one("select count(*) from procrastinate_jobs") == 2


async def test_14_a_slot_comes_once_a_day_in_the_tasks_time_zone_when_clocks_change_too(dsn, sql):
    async with Clockwork.on(dsn) as clockwork:

        @clockwork.app.periodic(cron="30 2 * * *", timezone="Europe/Paris")
        @clockwork.app.task(name="nightly")
        async def nightly(timestamp: int):
            pass

        # 02:00 -> 03:00 on 29 March, 03:00 -> 02:00 on 25 October.
        for first in (datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 10, 23, tzinfo=UTC)):
            for quarter in range(5 * 96):
                await clockwork.at(first + quarter * timedelta(minutes=15))
    slots = sql(
        "select to_char(to_timestamp((args ->> 'timestamp')::bigint) at time zone 'UTC', 'MM-DD HH24:MI') "
        "from procrastinate_jobs order by id"
    )
    assert [slot for (slot,) in slots] == [
        "03-27 01:30", "03-28 01:30", "03-29 01:00", "03-30 00:30", "03-31 00:30",
        "10-23 00:30", "10-24 00:30", "10-25 00:30", "10-26 01:30", "10-27 01:30",
    ]  # fmt: skip


async def test_14_a_worker_defers_in_the_tasks_time_zone(app, working, sql, eventually):
    hour = datetime.now(ZoneInfo("Asia/Kathmandu")).hour  # another one in UTC

    @app.periodic(cron=f"* {hour} * * *", timezone="Asia/Kathmandu")
    @app.task(name="there")
    async def there(timestamp: int):
        pass

    @app.periodic(cron=f"* {hour} * * *")
    @app.task(name="here")
    async def here(timestamp: int):
        pass

    async with working():
        await eventually(lambda: sql.one("select count(*) from procjobs.job_history where task_name = 'there'"))
    assert sql.one("select count(*) from procjobs.jobs where task = 'here'") == 0


async def test_14_slots_missed_while_no_worker_ran_are_caught_up_after_a_restart(app, working, sql, eventually):
    @app.periodic(cron="* * * * *")
    @app.task(name="minutely")
    async def minutely(timestamp: int):
        pass

    now = int(time.time())
    sql(
        "insert into procrastinate_periodic_defers (task_name, periodic_id, defer_timestamp) "
        "values ('minutely', '', %s)",
        (now // 60 - 3) * 60,
    )
    async with working():
        await eventually(lambda: sql.one("select count(*) from procjobs.job_history where task_name = 'minutely'") >= 3)
    slots = [args["timestamp"] for (args,) in sql("select args from procjobs.job_history order by id")]
    assert slots[:3] == [(now // 60 - n) * 60 for n in (2, 1, 0)]


async def test_15_leaving_and_old_jobs_cost_what_they_touch(app, noop, sql, explain):
    sql(UNCHECKED)
    sql(
        "insert into procrastinate_jobs (queue_name, task_name, status, worker_id, pj_finished_at) "
        "select 'default', 'noop', 'succeeded', 1, now() - interval '2 days' from generate_series(1, 20000)"
    )
    sql("analyze procrastinate_jobs")
    # Leaving touches the worker's own row and nothing else.
    before = sql.one("select seq_scan + idx_scan from pg_stat_user_tables where relname = 'procrastinate_jobs'")
    sql("select procjobs.stop_worker(1)")
    sql("select pg_stat_clear_snapshot()")
    assert sql.one("select seq_scan + idx_scan from pg_stat_user_tables where relname = 'procrastinate_jobs'") == before
    # Deleting works in bounded transactions.
    assert sql.one("select procjobs.delete_old_jobs(24, null, array['succeeded'], 5000)") == 5000
    await app.job_manager.delete_old_jobs(nb_hours=24)
    assert sql.one("select count(*) from procrastinate_jobs") == 0


async def test_16_no_argument_reaches_a_log_line(app, drain, sql, caplog):
    caplog.set_level(logging.DEBUG)
    canary = "canary-4711"

    @app.task(name="loud", pass_context=True, retry=Retry(max_attempts=2, base=0, cap=0))
    async def loud(context, secret: str):
        raise ValueError(f"cannot use {secret}")

    @app.task(name="quiet")
    async def quiet(secret: str):
        return secret

    await loud.defer_async(secret=canary)
    await quiet.defer_async(secret=canary)
    with pytest.raises(procjobs.errors.InvalidArguments) as refused:
        await quiet.defer_async(secret=canary, more=canary)
    assert canary not in f"{refused.value} {refused.value.detail} {refused.value.hint}"
    await drain()
    ours = [record for record in caplog.records if record.name.startswith(("procjobs", "procrastinate"))]
    assert len(ours) > 5
    shown = [record for record in ours if record.levelno >= logging.INFO]
    assert not [record for record in shown if canary in json.dumps(vars(record), default=str)]
    assert canary in sql.one("select error_message from procjobs.job_attempts limit 1")
