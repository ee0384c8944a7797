"""Everything through PgBouncer in transaction mode, with a direct connection for LISTEN only."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from procjobs import App, doctor
from procjobs.db import Database, Link, SyncLink, Target, connect, connect_sync
from procjobs.migrate import check, migrate
from procjobs.settings import Settings
from tests.conftest import Databases, Sql, _numbers
from tests.engine.fleet import Fleet

BINARY = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(BINARY is None, reason="pgbouncer is not installed: apt-get install pgbouncer")

CONFIG = """\
[databases]
* = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 200
client_login_timeout = 10
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        return int(holder.getsockname()[1])


@pytest.fixture
def pooler(folder: Path, dsn: str, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """A running PgBouncer of three server connections, or as many as it is parametrized with; `pooler(dsn)` is the way
    through it to the same database."""
    size = getattr(request, "param", 3)
    parts = urlsplit(dsn)
    where = {key: value for key, (value, *_) in parse_qs(parts.query).items()}
    place = folder / f"bouncer{next(_numbers)}"
    place.mkdir()
    place.chmod(0o755)
    port = free_port()
    config = CONFIG.format(host=where["host"], port=where["port"], user=parts.username, listen=port, size=size)
    (place / "pgbouncer.ini").write_text(config)
    (place / "pgbouncer.ini").chmod(0o644)
    assert BINARY is not None
    command = [BINARY, "-q", str(place / "pgbouncer.ini")]
    if os.geteuid() == 0:  # it refuses to run as root
        command[1:1] = ["-u", Path(where["host"]).owner()]
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 10
        while True:
            assert process.poll() is None, (place / "log").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (place / "log").read_text()
                time.sleep(0.02)
        yield lambda direct: f"postgresql://{parts.username}@127.0.0.1:{port}{urlsplit(direct).path}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def through(pooler: Callable[[str], str], dsn: str) -> str:
    """The way through the pooler to `dsn`."""
    return pooler(dsn)


@asynccontextmanager
async def working(app: App, **options: Any) -> AsyncIterator[None]:
    """A worker of this app beside the test."""
    options = {"shutdown_graceful_timeout": 5, **options}
    running = asyncio.create_task(app.run_worker_async(install_signal_handlers=False, **options))
    try:
        yield
    finally:
        running.cancel()
        (ended,) = await asyncio.gather(running, return_exceptions=True)
        assert not isinstance(ended, Exception), ended


def test_the_pooler_gives_each_transaction_any_server_connection(through: str) -> None:
    """What the other tests stand on: without the pooler's mode they would show nothing."""
    with psycopg.connect(through, autocommit=True, prepare_threshold=0) as one:
        one.execute("select 1")
    with (
        psycopg.connect(through, autocommit=True, prepare_threshold=0) as two,
        pytest.raises(psycopg.errors.DuplicatePreparedStatement),  # the first one took the name
    ):
        two.execute("select 2")


async def test_nothing_is_prepared_behind_a_pooler_and_without_one_it_is(through: str, dsn: str) -> None:
    for conninfo, threshold in ((through, None), (dsn, 5)):
        link = Link(Target(conninfo), "test")
        assert (await link.open()).prepare_threshold == threshold
        await link.close()
        sync = SyncLink(Target(conninfo), "test")
        sync.fetch("select 1")
        assert sync._connection is not None and sync._connection.prepare_threshold == threshold
        sync.close()
        async with Database(conninfo) as database, database.connection() as connection:
            assert connection.prepare_threshold == threshold
        alone = await connect(conninfo)
        assert alone.prepare_threshold == threshold
        await alone.close()
        with connect_sync(conninfo) as last:
            assert last.prepare_threshold == threshold
        app = App(conninfo)
        async with app.open_async(), app.connector.pool.connection() as pooled:  # type: ignore[attr-defined]
            assert pooled.prepare_threshold == threshold


async def test_jobs_are_enqueued_claimed_and_finished_on_connections_that_change(
    through: str, dsn: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    app = App(through, listen_dsn=dsn)

    @app.task(name="add", queue="sums")
    async def add(n: int) -> int:
        return n

    async with app.open_async(), working(app, concurrency=4):
        await eventually(lambda: sql.one("select count(*) from procjobs.workers") == 1)
        for n in range(60):  # well beyond the number of calls after which psycopg prepares
            await add.configure(lock=f"lock {n % 3}").defer_async(n=n)
        await eventually(
            lambda: sql.one("select count(*) from procjobs.job_history where status = 'succeeded'") == 60, 30
        )
    assert sql.one("select count(*) from procjobs.attempts") == 0


def test_a_program_without_an_event_loop_enqueues(through: str, sql: Sql) -> None:
    app = App(through)

    @app.task(name="add")
    def add(n: int) -> None: ...

    with app.open():
        for n in range(20):
            add.defer(n=n)
    assert sql.one("select count(*) from public.procrastinate_jobs") == 20


async def test_an_idle_worker_wakes_up_at_once(
    through: str, dsn: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    app = App(through, listen_dsn=dsn)

    @app.task(name="quick")
    async def quick() -> None: ...

    async with app.open_async(), working(app, fetch_job_polling_interval=600):
        listening = (
            "select count(*) from pg_stat_activity where application_name = 'procjobs listen' and query like 'listen%'"
        )
        await eventually(lambda: sql.one(listening) == 1)
        for n in range(1, 4):
            await quick.defer_async()
            # The poll comes after ten minutes: only the notification can have told it.
            await eventually(lambda n=n: sql.one("select count(*) from procjobs.job_history") == n)
    wait = sql.one("select min(started_at - created_at) from procjobs.job_history")
    assert wait.total_seconds() < 1


async def test_a_running_job_is_cancelled(through: str, dsn: str, sql: Sql, eventually: Callable[..., Any]) -> None:
    app = App(through, listen_dsn=dsn)

    @app.task(name="long")
    async def long() -> None:
        await asyncio.sleep(3600)

    async with app.open_async(), working(app, abort_job_polling_interval=600):
        job = await long.defer_async()
        await eventually(lambda: sql("select id from public.procrastinate_jobs where status = 'doing'"))
        async with Database(through) as database:
            assert await database.value("cancel", job_id=job) == "requested"
        await eventually(lambda: sql("select id from procjobs.job_history where status in ('cancelled', 'aborted')"))


async def test_heartbeats_and_results_go_through(
    through: str, dsn: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    app = App(through, listen_dsn=dsn)

    @app.task(name="double")
    async def double(n: int) -> int:
        return 2 * n

    beats: set[Any] = set()

    def beaten() -> bool:
        beats.update(sql("select last_heartbeat from procjobs.worker_state"))
        return len(beats) > 12

    async with app.open_async(), working(app, update_heartbeat_interval=0.1, stalled_worker_timeout=5):
        await eventually(beaten, 20)
        assert await app.result(await double.defer_async(n=4), timeout=20) == 8
    assert sql("select id from procjobs.worker_state where dead_at is not null") == []


def test_a_database_is_migrated_through_it(pooler: Callable[[str], str], databases: Databases) -> None:
    through = pooler(databases.make())
    assert migrate(through).changed
    assert not migrate(through).changed
    assert check(through) == []
    # And what migrate said and prepared does not hurt whoever gets the connection next.
    with psycopg.connect(through, autocommit=True, prepare_threshold=0) as after:
        assert after.execute("select current_setting('lock_timeout')").fetchone() == ("0",)


async def test_the_doctor_says_when_nobody_would_hear(through: str, dsn: str) -> None:
    findings = await doctor.examine(Settings(), through)
    (deaf,) = [found for found in findings if found.subject == "wake-up"] or findings
    assert deaf.verdict == "warning" and "PROCJOBS_LISTEN_DSN" in str(deaf.mend)
    (hears,) = [
        found for found in await doctor.examine(Settings(listen_dsn=dsn), through) if found.subject == "wake-up"
    ]
    assert hears.verdict == "ok"


async def test_sql_jobs_go_past_the_pooler_or_say_so(through: str, dsn: str, sql: Sql) -> None:
    sql("create function one() returns int language sql as 'select 1'")
    sql("select procjobs.register_sql_task('one', 'one')")
    for listen_dsn, outcome in ((None, ("failed", "SettingsError")), (dsn, ("succeeded", None))):
        job = sql.one("select procjobs.defer('one')")
        app = App(through, listen_dsn=listen_dsn) if listen_dsn else App(through)
        async with app.open_async():
            await app.run_worker_async(wait=False, install_signal_handlers=False)
        assert sql("select status, error_class from procjobs.job_outcome(%s)", job) == [outcome]


class Crew:
    """Two workers through the pooler, whose tasks write down when they run."""

    def __init__(self, through: str, dsn: str) -> None:
        self.runs: list[tuple[str, int, int, float, float]] = []
        self.apps = [self._app(number, through, dsn) for number in range(2)]

    def _app(self, number: int, through: str, dsn: str) -> App:
        app = App(through, listen_dsn=dsn)

        def task(name: str, queue: str, seconds: float) -> None:
            @app.task(name=name, queue=queue, pass_context=True)
            async def run(context: Any) -> None:
                began = time.monotonic()
                await asyncio.sleep(seconds)
                self.runs.append((name, context.job.id, number, began, time.monotonic()))

        task("plain", "plain", 0)
        task("locked", "judged", 0.005)
        task("limited", "judged", 0.005)
        return app

    def spans(self, name: str) -> list[tuple[int, float, float]]:
        return [(job, began, ended) for task, job, _, began, ended in self.runs if task == name]


def most_at_once(spans: list[tuple[int, float, float]]) -> int:
    """How many of them overlapped at most."""
    edges = sorted([(began, 1) for _, began, _ in spans] + [(ended, -1) for _, _, ended in spans])
    return max(accumulate(step for _, step in edges))


@pytest.mark.slow
@pytest.mark.parametrize("pooler", [2], indirect=True)
async def test_two_workers_on_two_connections_keep_order_limits_and_speed(
    through: str, dsn: str, sql: Sql, eventually: Callable[..., Any]
) -> None:
    """The claim's hints are settings of sessions, and these are anybody's: what one remembered the other finds."""
    crew = Crew(through, dsn)
    for app in crew.apps:
        async with app.open_async():
            await app.run_worker_async(wait=False, install_signal_handlers=False)  # registers its tasks
    sql("select procjobs.set_limit('three', task => 'limited', max_running => 3)")
    insert = "insert into procrastinate_jobs (task_name, queue_name, priority, args, lock, scheduled_at) "
    late = sql.one(insert + "values ('plain', 'plain', 0, '{}', null, now() + interval '1 day') returning id")
    sql(insert + "select 'plain', 'plain', 0, '{}', null, null from generate_series(1, 12000)")
    sql(insert + "select 'locked', 'judged', 0, '{}', 'lock ' || n % 3, null from generate_series(1, 150) n")
    sql(insert + "select 'limited', 'judged', 0, '{}', null, null from generate_series(1, 150)")
    sql("vacuum analyze procrastinate_jobs")
    ended = "select count(*) from procjobs.job_history where task_name = 'plain'"
    settings = (
        "select pg_backend_pid(), current_setting('procjobs.front', true), current_setting('procjobs.judging', true)"
    )
    seen: set[tuple[int, str | None, str | None]] = set()

    # While a transaction stays open, index entries of claimed jobs stay too, and claims remember the front behind them.
    with psycopg.connect(dsn) as report, psycopg.connect(through, autocommit=True, prepare_threshold=None) as stranger:
        report.execute("set transaction isolation level repeatable read")
        report.execute("select count(*) from procrastinate_jobs")
        async with (
            crew.apps[0].open_async(),
            crew.apps[1].open_async(),
            working(crew.apps[0], concurrency=3),
            working(crew.apps[1], concurrency=3),
        ):

            def gone_so_far(least: int) -> bool:
                seen.update(stranger.execute(settings).fetchall())
                return bool(sql.one(ended) >= least)

            await eventually(lambda: gone_so_far(4000), 60)
            sql("select procjobs.edit_job(%s, scheduled_at => now())", late)
            asked_at = sql.one("select clock_timestamp()")
            urgent = sql.one("select procjobs.defer('plain', priority => 9)")
            await eventually(lambda: gone_so_far(12002), 60)
            await eventually(lambda: sql.one("select count(*) from procjobs.job_history") == 12302, 60)

    jobs = [job for _, job, *_ in crew.runs]
    assert len(jobs) == len(set(jobs)) == 12302, "each ran, and once"
    assert sql.one("select count(*) from procjobs.attempts") == 0
    assert {number for *_, number, _, _ in crew.runs} == {0, 1}, "both worked"
    assert len({pid for pid, *_ in seen}) <= 2 and any(front for _, front, _ in seen), "hints that a stranger meets"

    locks = dict(sql("select id, lock from procjobs.job_history where lock is not null"))
    for lock in set(locks.values()):
        spans = sorted((began, ended, job) for job, began, ended in crew.spans("locked") if locks[job] == lock)
        assert all(one[1] <= two[0] and one[2] < two[2] for one, two in pairwise(spans)), "one at a time, in order"
    assert most_at_once(crew.spans("limited")) <= 3

    started = dict(
        sql("select id, extract(epoch from started_at)::float from procjobs.job_history where queue_name = 'plain'")
    )
    asked, last = asked_at.timestamp(), max(started.values())
    # Before the front: within the second for which it is remembered. Of a higher priority: with the next claim.
    assert started[late] - asked < 2 and started[late] < last
    assert started[urgent] - asked < 1 and started[urgent] < last
    given_back = {job for (job,) in sql("select id from procjobs.job_history where lease > 1")}
    earliest = float("inf")
    for job in sorted(started.keys() - given_back - {late, urgent}, reverse=True):
        assert started[job] - earliest < 2, "no job waits longer than that while later ones start"
        earliest = min(earliest, started[job])


@pytest.mark.slow
@pytest.mark.parametrize("pooler", [2], indirect=True)
def test_claims_on_two_connections_keep_their_speed_while_a_transaction_stays_open(
    through: str, dsn: str, sql: Sql
) -> None:
    """Whichever connection a claim gets, it begins at the front that somebody's claim remembered there."""
    passed = "select idx_tup_read from pg_stat_user_indexes where indexrelname = 'pj_jobs_ready'"
    fleets = [Fleet(Sql(through)) for _ in range(2)]
    for fleet in fleets:
        fleet.sql.connection.prepare_threshold = None
    workers = [fleet.worker() for fleet in fleets]
    fleets[0].defer_many(15_000)
    sql("vacuum analyze procrastinate_jobs")
    order: list[int] = []
    with psycopg.connect(dsn) as report:
        report.execute("set transaction isolation level repeatable read")
        report.execute("select count(*) from procrastinate_jobs")
        while any(found := [fleet.claim_ids(worker, 50) for fleet, worker in zip(fleets, workers, strict=True)]):
            order += [job for ids in found for job in ids]
    for fleet in fleets:
        fleet.sql.connection.close()
    assert order == sorted(order) and len(set(order)) == 15_000
    sql("select pg_stat_clear_snapshot()")
    # A million; three hundred claims that pass all who were claimed before them pass nearly three.
    assert sql.one(passed) < 1_900_000
