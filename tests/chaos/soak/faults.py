"""The faults of the soak, each a method of `Faults` named for what it does; what it began is over when it returns."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from procjobs.embedded import EmbeddedPostgres
from procjobs.errors import DatabaseUnavailable
from procjobs.migrate import migrate
from tests.chaos.harness.fleet import LEASE, Worker
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site
from tests.chaos.harness.storm import Storm

__all__ = ["Faults"]

_OURS = "datname = current_database() and application_name like 'procjobs %'"
_POINTS = ("after_claim", "before_finish", "after_finish", "before_settle", "after_settle")
_STORMS = {
    "conflicts": ["40001", "40P01"],
    "timeouts": ["55P03", "57014"],
    "disk_full": ["53100"],
    "no_connections": ["53300", "57P01"],
}


class Faults:
    """size: how many workers there should be."""

    def __init__(self, site: Site, server: EmbeddedPostgres, proxy: Proxy, dice: random.Random, size: int) -> None:
        self.site = site
        self.injected: Counter[str] = Counter()
        self._server = server
        self._proxy = proxy
        self._dice = dice
        self._size = size
        self._storm = Storm(site.sql)

    def names(self) -> list[str]:
        """Every fault."""
        own = [name for name in dir(self) if name.startswith("f_")]
        return sorted([name[2:] for name in own] + [f"storm_{name}" for name in _STORMS])

    def inject(self, name: str) -> None:
        """Do it, and see to it that there are enough workers afterwards."""
        self.injected[name] += 1
        act: Callable[[], None]
        if name.startswith("storm_"):
            self._rage(_STORMS[name.removeprefix("storm_")])
        else:
            act = getattr(self, f"f_{name}")
            act()
        self.fill()

    def fill(self) -> None:
        """As many workers as there should be; one in five dies at a point of its own choosing."""
        for worker in self.site.fleet.workers:
            if worker.popen.poll() == 1 and not worker.said("started"):
                worker.may_end(1)  # it could not connect when it was started, and says so; it is started again
        while len(self.site.fleet.alive) < self._size:
            options: dict[str, Any] = {}
            if self._dice.random() < 0.2:
                point = self._dice.choice(_POINTS)
                options["PROCJOBS_FAILPOINT"] = f"{point}:kill:0.02"
                self.injected[f"failpoint_{point}"] += 1
            worker = self.site.fleet.start(concurrency=8, shutdown_timeout=2.0, kill_timeout=2.0, **options)
            if options:
                worker.may_end(-signal.SIGKILL)

    def _one(self) -> Worker:
        return self._dice.choice(self.site.fleet.alive)

    def _sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # faults last; nothing is waited for here

    # -- workers ---------------------------------------------------------------------------------------------------

    def f_kill_a_worker(self) -> None:
        self._one().kill()

    def f_kill_all_workers(self) -> None:
        for worker in self.site.fleet.alive:
            worker.kill()

    def f_kill_a_process_of_a_job(self) -> None:
        for worker in self.site.fleet.alive:
            with contextlib.suppress(OSError):
                for child in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split():
                    if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                        os.kill(int(child), signal.SIGKILL)
                        return

    def f_freeze_shortly(self) -> None:
        self._freeze(0.5)

    def f_freeze_past_the_lease(self) -> None:
        self._freeze(2 * LEASE)

    def _freeze(self, seconds: float) -> None:
        worker = self._one()
        worker.freeze()
        self._sleep(seconds)
        worker.thaw()

    def f_deploy_one(self) -> None:
        worker = self._one()
        self._tell(worker)
        worker.exit_code(60)

    def _tell(self, worker: Worker) -> None:
        """SIGTERM. One that is still being imported has no handlers yet and dies of it."""
        worker.terminate(0, 1, *(() if worker.said("started") else (-signal.SIGTERM,)))

    def f_deploy_all_at_once(self) -> None:
        leaving = self.site.fleet.alive
        for worker in leaving:
            self._tell(worker)
        for worker in leaving:
            worker.exit_code(60)

    def f_second_sigterm(self) -> None:
        worker = self._one()
        self._tell(worker)
        self._sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            worker.popen.send_signal(signal.SIGTERM)
        worker.exit_code(60)

    # -- PostgreSQL ------------------------------------------------------------------------------------------------

    def _restart(self, number: signal.Signals | None, down: float = 0.0) -> None:
        pid = self._server.pid
        if number is not None and pid is not None:
            os.kill(pid, number)
            while self._server.pid is not None:
                time.sleep(0.01)
        self._server.stop()
        self._sleep(down)
        self._server.start()

    def f_postgresql_immediate_restart(self) -> None:
        self._restart(signal.SIGQUIT)

    def f_postgresql_fast_restart(self) -> None:
        self._restart(None)

    def f_postgresql_killed(self) -> None:
        self._restart(signal.SIGKILL)

    def f_postgresql_down_past_the_lease(self) -> None:
        self._restart(None, down=2 * LEASE)

    def f_a_backend_crashes(self) -> None:
        """One backend is killed: PostgreSQL ends all others and recovers."""
        found = self.site.sql(f"select pid from pg_stat_activity where {_OURS} order by random() limit 1")
        for (pid,) in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def f_terminate_all_connections(self) -> None:
        self.site.sql(f"select pg_terminate_backend(pid) from pg_stat_activity where {_OURS}")

    def f_terminate_heartbeats(self) -> None:
        self.site.sql(
            f"select pg_terminate_backend(pid) from pg_stat_activity "
            f"where {_OURS} and application_name = 'procjobs heartbeat'"
        )

    def f_cancel_statements(self) -> None:
        for _ in range(50):
            self.site.sql(f"select pg_cancel_backend(pid) from pg_stat_activity where {_OURS} and state = 'active'")

    def f_lock_the_job_table(self) -> None:
        with psycopg.connect(self.site.dsn) as somebody:
            somebody.execute("set lock_timeout = '2s'")
            with contextlib.suppress(psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                somebody.execute("lock table procrastinate_jobs in share mode")
                self._sleep(0.7)

    def f_hold_rows(self) -> None:
        with psycopg.connect(self.site.dsn) as somebody:
            somebody.execute(
                "select id from procrastinate_jobs where status in ('todo', 'doing') order by random() limit 20 "
                "for update skip locked"
            )
            self._sleep(0.7)

    def f_a_long_reader(self) -> None:
        with psycopg.connect(self.site.dsn) as reader:
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("select count(*) from procrastinate_jobs")
            self._sleep(1.0)

    def _rage(self, sqlstates: list[str]) -> None:
        self._storm.rage(sqlstates, 0.3, most=60)
        self._sleep(1.5)
        self._storm.calm()

    # -- the network -----------------------------------------------------------------------------------------------

    def f_network_reset(self) -> None:
        self._proxy.reset()

    def f_network_blackhole_shortly(self) -> None:
        self._blackhole(0.7)

    def f_network_blackhole_past_the_lease(self) -> None:
        self._blackhole(2 * LEASE)

    def _blackhole(self, seconds: float) -> None:
        self._proxy.blackhole()
        self._sleep(seconds)
        self._proxy.heal()

    def f_network_slow(self) -> None:
        self._proxy.delay = 0.02
        self._sleep(1.0)
        self._proxy.delay = 0.0

    def f_listen_half_open(self) -> None:
        self._proxy.forsake("procjobs listen")

    def f_heartbeat_half_open(self) -> None:
        self._proxy.forsake("procjobs heartbeat")

    def _lose(self, statement: str, what: str = "reply") -> None:
        loss = self._proxy.lose(statement, what=what)
        loss.happened.wait(3.0)
        self._proxy.losses.clear()

    def f_lose_reply_of_claim(self) -> None:
        self._lose("claim_jobs")

    def f_lose_reply_of_finish(self) -> None:
        self._lose("finish_jobs")

    def f_lose_reply_of_settle(self) -> None:
        self._lose("settle_jobs")

    def f_lose_reply_of_enqueue(self) -> None:
        self._lose("enqueue_jobs")

    def f_lose_reply_of_heartbeat(self) -> None:
        self._lose("procjobs.heartbeat")

    def f_lose_reply_of_upkeep(self) -> None:
        self._lose("procjobs.upkeep")

    def f_lose_request_of_finish(self) -> None:
        self._lose("finish_jobs", what="request")

    # -- people ----------------------------------------------------------------------------------------------------

    def f_cancel_some(self) -> None:
        self.site.sql(
            "select procjobs.cancel(id, 'soak') from (select id from procrastinate_jobs "
            "where status in ('todo', 'doing') order by random() limit 10) j"
        )

    def f_retry_dead_letters(self) -> None:
        self.site.sql("select procjobs.retry(id) from procrastinate_jobs where status = 'failed'")

    def f_forge_notifications(self) -> None:
        self.site.sql(
            "select pg_notify('procrastinate_any_queue_v1', p) from (select json_build_object('type', "
            "'abort_job_requested', 'job_id', id)::text from procrastinate_jobs where status = 'doing' "
            "union all select %s union all select %s) f(p)",
            "{", json.dumps([1]),
        )  # fmt: skip

    def f_pause_and_resume(self) -> None:
        self.site.sql("select procjobs.pause_queue('default', 'soak')")
        self._sleep(0.5)
        self.site.sql("select procjobs.resume_queue('default')")

    def f_upgrade_functions_and_views(self) -> None:
        self.site.sql("update procjobs.schema_state set checksum = null")
        with contextlib.suppress(DatabaseUnavailable):  # by the fault before
            migrate(self.site.dsn)

    def f_purge(self) -> None:
        self.site.sql("select procjobs.delete_old_jobs(1, null, array['succeeded'], 1000)")

    def f_vacuum(self) -> None:
        self.site.sql("vacuum (analyze) procrastinate_jobs")

    def f_upkeep_by_somebody_else(self) -> None:
        for _ in range(20):
            self.site.sql("select procjobs.upkeep()")
