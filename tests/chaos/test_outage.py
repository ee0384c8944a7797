"""PostgreSQL goes away under load: the worker waits, goes on by itself, and nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time

import psycopg
import pytest

from procjobs.migrate import migrate


class Load:
    """Enqueues without pause; knows which jobs the database acknowledged."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._stop = threading.Event()
        self.acknowledged: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        key = 0
        while not self._stop.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True, connect_timeout=1) as connection:
                    while not self._stop.wait(0.005):
                        key += 1
                        query = "select procjobs.defer('effect', jsonb_build_object('key', %s::int))"
                        ((job_id,),) = connection.execute(query, (key,)).fetchall()
                        self.acknowledged.append(job_id)
            except psycopg.Error:
                self._stop.wait(0.05)


def outage(server, start, eventually, seconds: float, how: str) -> None:
    dsn = server.create_database("outage")
    migrate(dsn)

    def one(query, *params):
        with psycopg.connect(dsn, autocommit=True) as connection:
            ((value,),) = connection.execute(query, params or None).fetchall()
            return value

    one("select procjobs.register_tasks('[{\"name\": \"effect\"}]', 'test')")
    worker = start(dsn, "--concurrency=20")
    with Load(dsn) as load:
        eventually(lambda: one("select count(*) from procjobs.job_history") > 50, timeout=30)
        if how == "kill":
            os.kill(server.pid, signal.SIGKILL)
        server.stop()
        back_at = time.monotonic() + seconds
        eventually(lambda: time.monotonic() > back_at, timeout=seconds + 5)
        before = len(load.acknowledged)
        server.start()
        eventually(lambda: len(load.acknowledged) > before + 100, timeout=30)
    eventually(
        lambda: one("select count(*) from procrastinate_jobs where status in ('todo', 'doing')") == 0, timeout=60
    )

    assert worker.popen.poll() is None
    with psycopg.connect(dsn, autocommit=True) as connection:
        rows = connection.execute("select id from procjobs.job_history where status = 'succeeded'").fetchall()
    done = [row[0] for row in rows]
    assert set(load.acknowledged) <= set(done), "an acknowledged job was lost"
    assert len(done) == len(set(done)), "a job ended twice"
    assert one("select count(*) from procrastinate_jobs") == 0
    worker.signal(signal.SIGTERM)
    assert worker.exit_code() == 0


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_an_outage_longer_than_the_lease(server, start, eventually, how):
    outage(server, start, eventually, 4.0, how)


@pytest.mark.slow
def test_an_outage_of_40_seconds(server, start, eventually):
    outage(server, start, eventually, 40.0, "stop")
