"""The command behind scripts/chaos."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from procjobs.embedded import EmbeddedPostgres
from procjobs.migrate import migrate
from tests.chaos.conftest import socket_of
from tests.chaos.harness.client import Load
from tests.chaos.harness.invariants import drained
from tests.chaos.harness.proxy import Proxy
from tests.chaos.harness.site import Site
from tests.chaos.soak.faults import Faults

#: Seconds: whoever has not recovered by then will not.
PATIENCE = 60.0
MOST_WAITING = 500
#: Of the jobs under a limit, at once; of those under a rate, a second.
MOST_RUNNING = 2
MOST_STARTS = 5
MOST_RUNS = 6


@dataclass
class Report:
    """What happened; ok is the verdict. Times in seconds."""

    seed: int
    minutes: float
    workers: int
    postgresql: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    unknown: int = 0
    unknown_there: int = 0
    refused: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    jobs_run_again: int = 0
    effects: int = 0
    effects_repeated: int = 0
    lost: int = 0
    doubled: int = 0
    crashes: int = 0
    claims: int = 0
    limited: int = 0
    limited_at_once: int = 0
    paced: int = 0
    paced_a_second: int = 0
    duplicates: int = 0
    batches: int = 0
    recovery_p50: float = 0.0
    recovery_max: float = 0.0
    slowest: list[str] = field(default_factory=list)
    not_recovered: list[str] = field(default_factory=list)
    quiesced_in: float = 0.0
    memory_max: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.violations or self.not_recovered)

    def text(self) -> str:
        kinds = "\n".join(f"  {count:5d}  {name}" for name, count in sorted(self.faults.items()))
        wrong = "\n".join([*self.violations, *self.not_recovered]) or "none"
        slowest = "\n  ".join(self.slowest)
        ended = ", ".join(f"{count} {status}" for status, count in sorted(self.ended.items()))
        return f"""seed {self.seed}, {self.minutes:g} minutes, {self.workers} workers, PostgreSQL {self.postgresql}

faults: {sum(self.faults.values())} of {len(self.faults)} kinds
{kinds}

jobs     {self.acknowledged} acknowledged, {self.refused} refused
unknown  {self.unknown}, {self.unknown_there} of them there
ended    {ended}
runs     {self.runs} of {self.claims} claims; {self.jobs_run_again} jobs ran again, {self.crashes} crashes
limited  {self.limited} runs, {self.limited_at_once} at once where {MOST_RUNNING} may ({MOST_RUNS} a second)
paced    {self.paced} starts, {self.paced_a_second} within a second where {MOST_STARTS} may
unique   {self.duplicates} jobs were there already; {self.batches} batches are over
effects  {self.effects}, {self.effects_repeated} repeated by another run and absorbed by their key
lost     {self.lost}
doubled  {self.doubled}
recovery p50 {self.recovery_p50:.2f} s, max {self.recovery_max:.2f} s; the slowest, with what came before:
  {slowest}
at rest  after {self.quiesced_in:.1f} s
memory   {self.memory_max / 1e6:.0f} MB, the largest worker
wrong    {wrong}
{"ok" if self.ok else "FAILED"}"""


def jobs(dice: random.Random) -> list[dict[str, Any]]:
    """One transaction's jobs, of every kind."""
    kinds = ["work"] * 25 + ["work_thread"] * 10 + ["flaky"] * 9 + ["limited"] * 3 + ["paced"] * 3 + ["work_process"]
    made = []
    for _ in range(dice.randrange(1, 12)):
        task = dice.choice(kinds)
        job: dict[str, Any] = {"task": task, "priority": dice.choice([0, 0, 0, 5])}
        if dice.random() < 0.3:
            job["lock"] = f"lock {dice.randrange(40)}"
        if dice.random() < 0.03:
            job |= {"unique_key": f"unfinished {dice.randrange(5)}"}
        elif dice.random() < 0.03:
            job |= {"unique_key": f"waiting {dice.randrange(5)}", "unique_while": "waiting"}
        if task == "flaky":
            job["args"] = {"failures": dice.randrange(4)}
        elif task == "limited":
            job["args"] = {"seconds": round(dice.uniform(0, 0.5), 3)}
        elif dice.random() < 0.5:
            job["args"] = {"seconds": round(dice.uniform(0, 0.1), 3)}
        made.append(job)
    if dice.random() < 0.05:
        made[0]["batch"] = True
    return made


class Pace(threading.Thread):
    """Says how many jobs wait, so that clients do not run away from a fleet that is being killed."""

    def __init__(self, dsn: str) -> None:
        super().__init__(daemon=True)
        self.waiting = 0
        self._dsn = dsn
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        query = b"select count(*) from (select from procrastinate_jobs where status = 'todo' limit 2000) j"
        while not self._over.is_set():
            with contextlib.suppress(psycopg.Error), psycopg.connect(self._dsn, autocommit=True) as connection:
                while not self._over.wait(0.2):
                    self.waiting = connection.execute(query).fetchall()[0][0]
            self._over.wait(0.2)

    def stop(self) -> None:
        self._over.set()
        self.join()


@contextlib.contextmanager
def servers(folder: Path) -> Iterator[tuple[EmbeddedPostgres, str]]:
    settings = {"fsync": "off", "synchronous_commit": "on", "max_connections": "300", "deadlock_timeout": "200ms"}
    with EmbeddedPostgres(folder / "pg", server_settings=settings) as server:
        dsn = server.create_database("chaos")
        migrate(dsn)
        yield server, dsn


class Soak:
    def __init__(self, site: Site, faults: Faults, dice: random.Random, report: Report) -> None:
        self._site = site
        self._faults = faults
        self._dice = dice
        self._report = report
        self._recoveries: list[tuple[float, str]] = []
        self._lately: list[str] = []

    def rage(self, seconds: float) -> None:
        """Fault after fault, each kind before any comes again."""
        names: list[str] = []
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            if not names:
                names = self._faults.names()
                self._dice.shuffle(names)
            name = names.pop()
            self._lately = [*self._lately[-3:], name]
            with contextlib.suppress(psycopg.Error):  # the one before may still be felt
                self._faults.inject(name)
            if self._dice.random() < 0.7:
                self._recover(name)
            self._report.memory_max = max(
                self._report.memory_max, *(worker.memory() for worker in self._site.fleet.alive), 0
            )

    def _recover(self, name: str) -> None:
        """Wait until a job that was enqueued after the fault has ended."""
        began = time.monotonic()
        newest: int | None = None
        while time.monotonic() - began < PATIENCE:
            with contextlib.suppress(psycopg.Error):
                self._faults.fill()
                if newest is None:
                    newest = self._site.sql.one("select last_value from procrastinate_jobs_id_seq")
                elif self._site.sql.one("select exists (select from procjobs.job_history where id > %s)", newest):
                    self._recoveries.append((time.monotonic() - began, " -> ".join(self._lately)))
                    return
            time.sleep(0.02)
        self._report.not_recovered.append(f"nothing ended within {PATIENCE:g} s after {name}")

    def rest(self) -> None:
        """Everybody lives, nothing is injected any more; what died of too many crashes is told to run again."""
        began = time.monotonic()
        while time.monotonic() - began < 3 * PATIENCE:
            with contextlib.suppress(psycopg.Error):
                self._faults.fill()
                self._site.sql(
                    "select procjobs.retry(id) from procrastinate_jobs where status = 'failed' and pj_crashes >= 3 "
                    "or status = 'todo' and pj_waits_for = 'time'"
                )
                if drained(self._site.sql) and not self._dead_of_crashes():
                    break
            time.sleep(0.1)
        else:
            self._report.not_recovered.append("not at rest: " + self._site.left()[:2000])
        self._report.quiesced_in = time.monotonic() - began

    def _dead_of_crashes(self) -> bool:
        query = "select exists (select from procrastinate_jobs where status = 'failed' and pj_crashes >= 3)"
        return bool(self._site.sql.one(query))

    def count(self) -> None:
        """Fill in the report."""
        sql, report = self._site.sql, self._report
        account = self._site.ledger.read()
        there = dict(sql("select id, args ->> 'key' from procjobs.job_history union all "
                         "select id, args ->> 'key' from procrastinate_jobs"))  # fmt: skip
        report.postgresql = str(sql.one("show server_version"))
        report.faults = dict(self._faults.injected)
        report.acknowledged, report.refused = len(account.acknowledged), len(account.refused)
        report.unknown = len(account.unknown)
        report.unknown_there = len(account.unknown & set(there.values()))
        report.lost = sum(there.get(job) != key for key, job in account.acknowledged.items())
        report.ended = dict(sql("select status::text, count(*) from procjobs.jobs group by 1"))
        report.runs = sql.one("select count(*) from chaos.executions")
        report.jobs_run_again = sql.one(
            "select count(*) from (select job from chaos.executions group by job having count(*) > 1) j"
        )
        report.effects = sql.one("select count(*) from chaos.effects")
        report.effects_repeated = sql.one("select coalesce(sum(repeats), 0) from chaos.effects")
        report.doubled = sql.one(
            "select count(*) from (select args ->> 'key' from procjobs.job_history where status = 'succeeded' "
            "group by 1 having count(*) > 1) k"
        )
        report.crashes = sql.one("select count(*) from procjobs.job_attempts where outcome = 'crashed'")
        report.claims = sql.one("select count(*) from chaos.transitions where became = 'doing'")
        report.limited = sql.one("select count(*) from chaos.executions where task = 'limited'")
        report.paced = sql.one("select count(*) from chaos.transitions where task = 'paced' and became = 'doing'")
        report.limited_at_once = sql.one(
            "select coalesce(max(n), 0) from (select sum(case when became = 'doing' then 1 else -1 end) over (order by "
            "at, id) as n from chaos.transitions where task = 'limited' and 'doing' in (was, became)) held"
        )
        report.paced_a_second = sql.one(
            "select coalesce(max((select count(*) from chaos.transitions o where o.task = 'paced' and o.started > "
            "t.started - interval '1 second' and o.started <= t.started)), 0) "
            "from chaos.transitions t where t.task = 'paced'"
        )
        report.duplicates = len(account.duplicates)
        report.batches = sql.one("select count(*) from procjobs.job_batches where finished_at is not null")
        if self._recoveries:
            report.recovery_p50 = statistics.median(seconds for seconds, _ in self._recoveries)
            report.recovery_max = max(self._recoveries)[0]
            report.slowest = [f"{took:.1f} s: {faults}" for took, faults in sorted(self._recoveries)[:-6:-1]]
        report.violations = [str(v) for v in self._site.violations(lenient=True)]


def soak(minutes: float, seed: int, workers: int, folder: Path) -> Report:
    dice = random.Random(seed)
    report = Report(seed, minutes, workers)
    with servers(folder) as (server, dsn), Proxy(socket_of(dsn)) as proxy:
        site = Site(dsn, folder, via=proxy.dsn("chaos"))
        try:
            faults = Faults(site, server, proxy, dice, workers)
            run = Soak(site, faults, dice, report)
            site.sql(
                "select procjobs.set_limit('limited', task => 'limited', max_running => %s, rate => %s, "
                "per => '1 second', rate_counts => 'runs')",
                MOST_RUNNING, MOST_RUNS,
            )  # fmt: skip
            site.sql("select procjobs.set_limit('paced', task => 'paced', rate => %s, per => '1 second')", MOST_STARTS)
            faults.fill()

            pace = Pace(dsn)
            more = random.Random(seed + 1)

            def make(_: int) -> list[dict[str, Any]]:
                return jobs(more) if pace.waiting < MOST_WAITING else []

            with (
                Load(site.client_on(dsn, "direct"), make, pause=0.03),
                Load(site.client_on(proxy.dsn("chaos"), "proxied"), make, pause=0.06),
            ):
                run.rage(60 * minutes)
            pace.stop()
            proxy.heal()
            run.rest()
            run.count()
        finally:
            for name, text in site.fleet.logs():
                (folder / f"tail-{Path(name).name}").write_text(text[-20_000:])
            site.close()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description="Random faults against a fleet under load.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats the choice of faults and jobs")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="the report as JSON")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="keep ledger, logs and database there")
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}", file=sys.stderr, flush=True)
    folder = chosen.keep or Path(tempfile.mkdtemp(prefix="pj-chaos-"))
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    report = soak(chosen.minutes, seed, chosen.workers, folder)
    print(json.dumps({**asdict(report), "ok": report.ok}, indent=2) if chosen.json else report.text())
    if report.ok and chosen.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    elif not report.ok:
        print(f"ledger, logs and database: {folder}", file=sys.stderr)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
