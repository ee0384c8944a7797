"""Who is measured: what to install, how to start it, and the SQL that tells what is acknowledged."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CONTENDERS", "PEERS", "STOCK", "Contender", "Peer"]


@dataclass(frozen=True)
class Peer:
    """A job queue. package: on PyPI or npm, none for what is here anyway.

    program: in `subjects`, or the kind of app.py.

    acknowledged: SQL that counts the jobs whose end is in the database, given how many there were.
    """

    name: str
    program: str
    acknowledged: str
    package: str = ""
    python: tuple[int, int] = (3, 11)
    extras: tuple[str, ...] = ("psycopg[binary,pool]",)
    modes: tuple[str, ...] = ("one", "many")
    notified: bool = True

    @property
    def node(self) -> bool:
        return self.program.endswith(".mjs")

    @property
    def counts_beside(self) -> bool:
        """Whether what a shape counts beside is in its tables."""
        return self.program == "procjobs"


@dataclass(frozen=True)
class Contender:
    """One row of the table. jobs: how many, so that a round takes a few seconds."""

    peer: Peer
    concurrency: int
    processes: int
    jobs: int
    words: str = ""
    task: str = "noop"

    @property
    def name(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.peer.name}, {self.words or f'concurrency {self.concurrency}'}, {processes}"


PROCJOBS = Peer(
    "procjobs",
    "procjobs",
    "select count(*) from procjobs.job_history where priority = 0 and status = 'succeeded' and id < 1000000000",
    modes=("one", "many", "copy"),
)
STOCK = Peer(
    "Procrastinate",
    "stock",
    "select count(*) from procrastinate_jobs where priority = 0 and status = 'succeeded'",
)
PGQUEUER = Peer("PgQueuer", "pgqueuer_app.py", "select %(jobs)s - count(*) from pgqueuer", "pgqueuer")
AWA = Peer(
    "awa",
    "awa_app.py",
    "select count(*) from awa.jobs where state = 'completed'",
    "awa-pg",
    modes=("one", "many", "copy"),
)
OBAN = Peer(
    "Oban for Python",
    "oban_app.py",
    "select count(*) from oban_jobs where state = 'completed'",
    "oban",
    python=(3, 12),
)
GRAPHILE = Peer(
    "graphile-worker",
    "graphile.mjs",
    "select %(jobs)s - count(*) from graphile_worker._private_jobs",
    "graphile-worker",
)
PGBOSS = Peer(
    "pg-boss",
    "pgboss.mjs",
    "select count(*) from pgboss.job where state = 'completed'",
    "pg-boss",
    notified=False,
)
LIMIT = Peer(
    "pgbench, the limit",
    "pgbench",
    "select %(jobs)s - count(*) from job where state <> 'done'",
    modes=(),
    notified=False,
)

PEERS = (PROCJOBS, STOCK, PGQUEUER, AWA, OBAN, GRAPHILE, PGBOSS, LIMIT)

CONTENDERS = (
    Contender(STOCK, 10, 1, 1500),
    Contender(STOCK, 10, 2, 2000),
    Contender(PROCJOBS, 10, 1, 50_000),
    Contender(PROCJOBS, 100, 1, 100_000),
    Contender(PROCJOBS, 500, 1, 200_000),
    Contender(PROCJOBS, 10, 2, 50_000),
    Contender(PROCJOBS, 100, 2, 100_000),
    Contender(PROCJOBS, 500, 2, 200_000),
    Contender(PGQUEUER, 500, 1, 40_000, "batches of 500"),
    Contender(PGQUEUER, 500, 2, 50_000, "batches of 500"),
    Contender(AWA, 256, 1, 15_000),
    Contender(AWA, 256, 2, 20_000),
    Contender(OBAN, 100, 1, 10_000),
    Contender(OBAN, 100, 2, 12_000),
    Contender(GRAPHILE, 100, 1, 8_000, "as it comes, concurrency 100"),
    Contender(GRAPHILE, 500, 1, 150_000, "local queue 500, batched"),
    Contender(GRAPHILE, 500, 2, 150_000, "local queue 500, batched"),
    Contender(PGBOSS, 2000, 1, 150_000, "4 x 2000"),
    Contender(PGBOSS, 2000, 2, 150_000, "4 x 2000"),
    Contender(LIMIT, 500, 1, 200_000, "update to finish", "update"),
    Contender(LIMIT, 500, 2, 300_000, "update to finish", "update"),
    Contender(LIMIT, 500, 1, 200_000, "delete to finish", "delete"),
    Contender(LIMIT, 500, 2, 300_000, "delete to finish", "delete"),
    # Plain functions in threads, and what takes a processor in processes; Procrastinate has threads for both.
    Contender(STOCK, 10, 1, 1000, "threads, concurrency 10", "thread"),
    Contender(PROCJOBS, 10, 1, 15_000, "threads, concurrency 10", "thread"),
    Contender(STOCK, 10, 1, 500, "4 ms of a processor, in threads", "process"),
    Contender(PROCJOBS, 10, 1, 1000, "4 ms of a processor, in processes", "process"),
)
