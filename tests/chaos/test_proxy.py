"""The network between workers and PostgreSQL: lost replies, silence, resets. Scenarios 11 to 15."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
import warnings
from functools import partial

import psycopg
import pytest
from procrastinate.exceptions import AlreadyEnqueued, ConnectorException

import procjobs
from procjobs.errors import DatabaseError
from tests.chaos.conftest import socket_of
from tests.chaos.harness.fleet import HEARTBEAT, LEASE
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site, until


def test_11_the_reply_to_an_enqueue_is_lost(proxied: Site, proxy: Proxy) -> None:
    """Nobody knows whether it is there; it is, once, and the client's next jobs go their way."""
    client = proxied.client_on(proxied.fleet.dsn, "lossy")
    loss = proxy.lose("enqueue_jobs", skip=1)
    first = client.enqueue("work", 3)
    with pytest.raises(psycopg.OperationalError):
        client.enqueue("work", 3)
    assert loss.happened.is_set()
    proxy.lose("enqueue_jobs", what="request")
    with pytest.raises(psycopg.OperationalError):
        client.enqueue("work", 3)
    last = client.enqueue("work", 3)
    client.close()
    proxied.fleet.start()
    proxied.check_all_succeeded()
    account = proxied.ledger.read()
    assert set(account.acknowledged.values()) == {*first, *last}
    assert account.unknown == {f"lossy-{n}" for n in range(3, 9)}
    done = {row[0] for row in proxied.sql("select args ->> 'key' from procjobs.job_history")}
    assert done == {f"lossy-{n}" for n in (0, 1, 2, 3, 4, 5, 9, 10, 11)}


async def test_11_the_python_client_says_so_and_does_not_send_it_again(proxied: Site, proxy: Proxy) -> None:
    app = procjobs.App(proxied.fleet.dsn)
    async with app.open_async():
        deferrer = app.configure_task("work", queueing_lock="one")
        proxy.lose("procjobs.enqueue(")
        with pytest.raises((ConnectorException, DatabaseError)):
            await deferrer.defer_async(key="a")
        # Whoever sends it again and may not have two gives it a queueing lock.
        with pytest.raises(AlreadyEnqueued):
            await deferrer.defer_async(key="a")
    assert proxied.sql.one("select count(*) from procrastinate_jobs") == 1


@pytest.mark.parametrize("what", ["reply", "request"])
def test_12_a_claim_that_loses_its_reply_gives_its_jobs_back(proxied: Site, proxy: Proxy, what: str) -> None:
    jobs = proxied.client.enqueue("work", 10, lock="lock {n}")
    loss = proxy.lose("claim_jobs", what=what)
    worker = proxied.fleet.start(concurrency=10, heartbeat=5.0)
    proxied.check_all_succeeded()
    assert loss.happened.is_set() and worker.said("claiming waits for the database")
    assert worker.said("gave back 10 jobs") == (what == "reply")
    assert proxied.sql("select distinct attempts, crashes, lease from procjobs.job_history") == [
        (1, 0, 2 if what == "reply" else 1)
    ]
    assert proxied.sql.one("select count(*) from chaos.executions") == len(jobs)


@pytest.mark.parametrize("statement", ["finish_jobs", "settle_jobs"])
@pytest.mark.parametrize("what", ["reply", "request"])
def test_13_an_end_that_loses_its_reply_counts_once(proxied: Site, proxy: Proxy, statement: str, what: str) -> None:
    jobs = proxied.client.enqueue("flaky", 10)
    loss = proxy.lose(statement, what=what)
    worker = proxied.fleet.start(concurrency=10, heartbeat=5.0)
    proxied.check_all_succeeded()
    assert loss.happened.is_set() and not worker.said("the lease was lost")
    assert proxied.sql("select distinct attempts, crashes, lease from procjobs.job_history") == [(2, 0, 2)]
    assert proxied.sql.one("select count(*) from chaos.executions") == 2 * len(jobs)


@pytest.mark.parametrize("seconds", [0.0, 5.0], ids=["reset", "blackhole for 5 s"])
def test_14_the_network_fails_and_heals(proxied: Site, proxy: Proxy, seconds: float) -> None:
    """Longer than the lease, another worker with a network takes over; nothing is lost and nothing counts twice."""
    proxied.client.enqueue("work", 200, args={"seconds": 0.05}, lock="lock {n}")
    cut = proxied.fleet.start(concurrency=20)
    proxied.running(20)
    if seconds:
        proxy.blackhole()
        other = proxied.fleet.start(concurrency=20, dsn=proxied.dsn)
        over = time.monotonic() + seconds
        until(lambda: time.monotonic() > over and other.said("started"))
        proxy.heal()
    else:
        for _ in range(20):
            proxy.reset()
            proxied.begun(1)
    proxied.check_all_succeeded()
    assert cut.alive
    again = proxied.client.enqueue("work", 5)
    proxied.ended(again)


def test_14_a_slow_network_is_only_slow(proxied: Site, proxy: Proxy) -> None:
    proxy.delay = 0.02
    proxied.client.enqueue("work", 50)
    proxied.fleet.start(concurrency=20, heartbeat=1.0)
    proxied.check_all_succeeded()
    assert proxied.sql.one("select count(*) from chaos.executions") == 50


def test_14_a_claim_that_hangs_is_known_by_its_missing_heartbeat(proxied: Site, proxy: Proxy) -> None:
    """The reply to a claim never comes and nothing says so: heartbeats go on, and the jobs are found again."""
    proxied.client.enqueue("work", 10)
    loss = proxy.lose("claim_jobs", what="hold")
    proxied.fleet.start()
    assert loss.happened.wait(30)
    proxy.reset("procjobs claim")  # what TCP's keepalive does after some seconds
    proxied.check_all_succeeded()


@pytest.mark.parametrize("name", ["procjobs heartbeat", "procjobs listen", "procjobs upkeep"])
def test_15_a_connection_that_is_silent_for_ever(proxied: Site, proxy: Proxy, name: str) -> None:
    """Half open: no reply, no error. Each is for itself: jobs are found, run and ended all the same."""
    worker = proxied.fleet.start(heartbeat=HEARTBEAT, lease=LEASE)
    proxied.working()
    proxied.client.enqueue("work", 5)
    proxied.drained()
    until(lambda: proxied.sql("select 1 from procjobs.worker_state where last_heartbeat > started_at"))
    until(lambda: proxy.forsake(name))
    jobs = proxied.client.enqueue("work", 30, args={"seconds": 0.1})
    proxied.ended(jobs)
    if name == "procjobs heartbeat":
        until(lambda: worker.said("heartbeat failed"))
        beat = "select last_heartbeat from procjobs.worker_state where dead_at is null"
        last = proxied.sql.one(beat)
        until(lambda: proxied.sql.one(beat) > last)
        assert not worker.said("declared dead") and not worker.said("no heartbeat for"), "it is mended within the lease"
    proxied.check_all_succeeded()
    assert worker.alive


def test_15_while_no_heartbeat_gets_through_nothing_is_claimed(proxied: Site, proxy: Proxy) -> None:
    """The worker would have to stop at once what it starts; it waits until it is heard again."""
    worker = proxied.fleet.start(heartbeat=HEARTBEAT, lease=LEASE)
    proxied.working()
    proxy.blackhole("procjobs heartbeat")
    proxied.client.enqueue("endure", 1)
    proxied.running(1)
    until(lambda: worker.said("no heartbeat for"))
    starts = "select coalesce(sum(pj_lease), 0) from procrastinate_jobs"
    until(lambda: worker.said("heartbeat failed"))
    assert proxied.sql.one(starts) == 1, "stopped, and not taken again"
    proxy.heal()
    proxied.open_gate()
    proxied.drained()
    proxied.check()


def test_15_a_cancel_is_heard_with_a_heartbeat_when_listen_and_aborts_are_silent(proxied: Site, proxy: Proxy) -> None:
    first, job = proxied.client.enqueue("endure", 2)
    proxied.fleet.start()
    proxied.running(2)
    proxied.sql("select procjobs.cancel(%s)", first)
    until(lambda: proxied.status(first) == "aborted")
    for name in ("procjobs listen", "procjobs aborts"):
        until(partial(proxy.forsake, name))
    assert proxied.sql.one("select procjobs.cancel(%s)", job) == "requested"
    proxied.drained()
    proxied.check()
    assert proxied.status(job) == "aborted"


def test_the_proxy_passes_what_nobody_asked_it_to_lose(proxied: Site, proxy: Proxy) -> None:
    """Of the harness itself: a loss takes one statement on one connection."""
    loss = proxy.lose("select 2", name="mine", skip=1)

    async def ask() -> list[object]:
        async with await psycopg.AsyncConnection.connect(
            proxied.fleet.dsn, application_name="mine", autocommit=True
        ) as connection:
            found: list[object] = []
            for query in (b"select 1", b"select 2", b"select 1"):
                found += await (await connection.execute(query)).fetchall()
            assert not loss.happened.is_set()
            with pytest.raises(psycopg.OperationalError):
                await connection.execute(b"select 2")
            return found

    assert asyncio.run(ask()) == [(1,), (2,), (1,)]
    assert loss.happened.is_set()


@pytest.mark.parametrize("black", [False, True])
def test_the_proxy_leaves_no_socket_open_whenever_it_ends(dsn: str, black: bool) -> None:
    """Of the harness itself: it ends while connections are accepted, are set up, wait for the server, are silent."""
    path, startup = socket_of(dsn), b"\0\x03\0\0user\0postgres\0application_name\0mine\0\0"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(60):
            with Proxy(path) as proxy:
                if black:
                    proxy.blackhole("mine")
                clients = [socket.create_connection(("127.0.0.1", proxy.port)) for _ in range(1 + number % 5)]
                for client in clients[number % 2 :]:
                    client.sendall((len(startup) + 4).to_bytes(4, "big") + startup)
            for client in clients:
                client.close()
        gc.collect()
    assert [str(warning.message) for warning in said if warning.category is ResourceWarning] == []
