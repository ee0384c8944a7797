"""PostgreSQL stops, dies, cuts connections, is full: scenarios 8, 9, 10, 19."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from tests.chaos.conftest import Build
from tests.chaos.harness.client import Load
from tests.chaos.harness.site import Site, until
from tests.conftest import _bindir

OURS = "datname = current_database() and application_name like 'procjobs %'"


def succeeded(site: Site) -> int:
    count: int = site.sql.one("select count(*) from procjobs.job_history where status = 'succeeded'")
    return count


def test_8_immediate_shutdown_in_the_middle_of_a_drain_three_times(own: Site, server: EmbeddedPostgres) -> None:
    for _ in range(15):
        own.client.enqueue_all([{"task": "work", "lock": f"lock {n % 5}" if n % 3 == 0 else None} for n in range(40)])
    workers = own.fleet.start_many(2, concurrency=10)
    for done in (30, 150, 300):
        own.ended(count=done)
        pid = server.pid
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)  # what pg_ctl -m immediate sends
        until(lambda: server.pid is None)
        server.stop()
        server.start()
    own.check_all_succeeded()
    assert all(worker.alive for worker in workers)


def outage(own: Site, server: EmbeddedPostgres, seconds: float, how: str) -> None:
    worker = own.fleet.start(concurrency=20)
    with Load(own.client, lambda _: [{"task": "work"}]) as load:
        until(lambda: succeeded(own) > 50, what=own.left)
        pid = server.pid
        assert pid is not None
        if how == "kill":
            os.kill(pid, signal.SIGKILL)
        server.stop()
        back_at = time.monotonic() + seconds
        until(lambda: time.monotonic() > back_at, timeout=seconds + 5)
        before = load.acknowledged
        server.start()
        until(lambda: load.acknowledged > before + 100, what=own.left)
    own.check_all_succeeded()
    worker.terminate()
    assert worker.exit_code() == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_9_an_outage_longer_than_the_lease(own: Site, server: EmbeddedPostgres, how: str) -> None:
    outage(own, server, 4.0, how)


def test_9_an_outage_of_40_seconds(own: Site, server: EmbeddedPostgres) -> None:
    outage(own, server, 40.0, "stop")


def test_9_a_worker_that_cannot_reach_its_database_at_start_ends_with_1(site: Site) -> None:
    worker = site.fleet.start(dsn="postgresql://nobody@/none?host=/nonexistent&connect_timeout=1").may_end(1)
    assert worker.exit_code(60) == 1


def test_10_every_connection_is_cut_in_50_rounds(site: Site) -> None:
    worker = site.fleet.start(concurrency=20)
    site.working()
    for number in range(50):
        jobs = site.client.enqueue_all([{"task": "work", "lock": f"lock {n % 3}" if n % 2 else None} for n in range(6)])
        site.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
        if number % 10 == 9:
            site.ended(jobs)
    site.check_all_succeeded()
    assert worker.alive
    assert site.sql.one("select max(crashes) from procjobs.job_history") <= 1


def take_all(dsn: str, hogs: list[psycopg.Connection[Any]]) -> None:
    """Open connections until there are no more."""
    try:
        while True:
            hogs.append(psycopg.connect(dsn, autocommit=True))
    except psycopg.OperationalError:
        return


def test_19_all_connections_taken_then_free_again(build: Build, folder: Path) -> None:
    settings = {"max_connections": "30", "superuser_reserved_connections": "3", "fsync": "off"}
    with EmbeddedPostgres(folder / "few", server_settings=settings, bindir=_bindir()) as server:
        dsn = server.create_database("chaos")
        migrate(dsn)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("create role ordinary login in role procjobs_worker")
            connection.execute("create role hog login")
        site = build(dsn)
        worker = site.fleet.start(dsn=dsn.replace("postgres@", "ordinary@"))
        site.working()
        hogs: list[psycopg.Connection[Any]] = []
        try:
            site.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
            take_all(dsn.replace("postgres@", "hog@"), hogs)
            # Whatever the worker got back meanwhile goes too: from now on there is no room for it.
            site.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {OURS}")
            take_all(dsn.replace("postgres@", "hog@"), hogs)
            jobs = site.client.enqueue("work", 20)
            until(lambda: worker.said("waits for the database") or worker.said("heartbeat failed"), what=site.logs)
            assert site.sql.one("select count(*) from procjobs.job_history") < len(jobs)
        finally:
            for hog in hogs:
                hog.close()
        site.check_all_succeeded()
        assert worker.alive
        site.close()
