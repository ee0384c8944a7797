"""Workers played by hand: what the Python worker does, call by call, so that a test chooses the interleaving."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psycopg

from tests.conftest import Sql

__all__ = ["Claim", "Fleet", "Thread", "crew", "job_row", "opened", "without_judging"]


@dataclass(frozen=True)
class Claim:
    """One claim as the database returned it; (id, lease) is its fence."""

    worker: int
    id: int
    lease: int
    task: str
    queue: str
    lock: str | None
    priority: int
    attempts: int


@contextmanager
def without_judging(sql: Sql) -> Iterator[None]:
    """While this lasts, a claim that judges jobs ends with UndefinedFunction."""
    arguments = "(bigint, text[], text[], integer, text[], jsonb, boolean)"
    sql(f"alter function procjobs.claim_judged{arguments} rename to claim_judged_hidden")
    yield
    sql(f"alter function procjobs.claim_judged_hidden{arguments} rename to claim_judged")


class Fleet:
    """Calls of the engine's functions over one connection."""

    def __init__(self, sql: Sql) -> None:
        self.sql = sql

    def judge(self, seconds: float = 9) -> None:
        """As if the last claim had met jobs that must be judged: the next ones do so at once, for so long."""
        self.sql("select set_config('procjobs.judging', (procjobs.stopwatch() + %s)::text, false)", seconds)

    def worker(
        self,
        *tasks: str,
        queues: list[str] | None = None,
        name: str = "ann",
        beat: float = 10,
        lease: float = 30,
    ) -> int:
        """A registered worker that knows `work` and the tasks given; its id."""
        worker: int = self.sql.one(
            "select procjobs.register_worker(%s, 'host', 1, '0', %s::text[], %s::text[], 10, "
            "make_interval(secs => %s), make_interval(secs => %s))",
            name, queues, ["work", *tasks], beat, lease,
        )  # fmt: skip
        return worker

    def defer(
        self,
        task: str = "work",
        *,
        queue: str = "default",
        priority: int = 0,
        lock: str | None = None,
        queueing_lock: str | None = None,
        scheduled_at: Any = None,
        args: str = "{}",
    ) -> int:
        """One job, through the path of the Python client; its id. scheduled_at may be a number of seconds from now."""
        if isinstance(scheduled_at, int | float):
            scheduled_at = self.sql.one("select procjobs.clock() + make_interval(secs => %s)", scheduled_at)
        job: int = self.sql.one(
            "select procjobs.enqueue_jobs(array[%s], array[%s], array[%s]::int[], array[%s]::text[], "
            "array[%s]::text[], array[%s], array[%s]::timestamptz[])",
            task, queue, priority, lock, queueing_lock, args, scheduled_at,
        )  # fmt: skip
        return job

    def defer_many(self, count: int, task: str = "work", *, queue: str = "default", lock: str | None = None) -> None:
        """`count` equal jobs in one statement; lock may contain {n}."""
        self.sql(
            "select count(e) from (select array_agg(%s::text) as task, array_agg(%s::text) as queue, array_agg(0) as "
            "priority, array_agg(replace(%s::text, '{n}', n::text)) as lock, array_agg(null::text) as none, "
            "array_agg('{}'::text) as args, array_agg(null::timestamptz) as at from generate_series(1, %s) n) a, "
            "procjobs.enqueue_jobs(a.task, a.queue, a.priority, a.lock, a.none, a.args, a.at) e",
            task, queue, lock, count,
        )  # fmt: skip

    def claim(self, worker: int, count: int = 1, *, queues: list[str] | None = None) -> list[Claim]:
        """Claims for a worker, in the order in which the database gave them."""
        rows = self.sql(
            "select id, lease, task_name, queue_name, lock, priority, attempts "
            "from procjobs.claim_jobs(%s, %s::text[], %s)",
            worker, queues, count,
        )  # fmt: skip
        return [Claim(worker, *row) for row in rows]

    def claim_ids(self, worker: int, count: int = 1, *, queues: list[str] | None = None) -> list[int]:
        return [claim.id for claim in self.claim(worker, count, queues=queues)]

    def finish(self, *claims: Claim, disposal: str = "archive") -> list[int]:
        """Report success of claims of one worker; the ids that were ended."""
        worker = claims[0].worker
        rows = self.sql(
            "select * from procjobs.finish_jobs(%s, %s::bigint[], %s::int[], %s)",
            worker, [claim.id for claim in claims], [claim.lease for claim in claims], disposal,
        )  # fmt: skip
        return sorted(row[0] for row in rows)

    def acknowledge(self, *claims: Claim) -> list[int]:
        """`finish` as the worker does it: again, while another's open transaction holds a row for too long."""
        while True:
            with suppress(psycopg.errors.LockNotAvailable):
                return self.finish(*claims)

    def settle(self, claim: Claim, outcome: str, **keys: Any) -> str:
        """Report another end of one claim; what became of the job."""
        ((job, result),) = self.settle_all([(claim, {"outcome": outcome, **keys})])
        assert job == claim.id
        return result

    def settle_all(self, ends: list[tuple[Claim, dict[str, Any]]]) -> list[tuple[int, str]]:
        """Report ends of several claims of one worker in one call."""
        batch = json.dumps([{"id": claim.id, "lease": claim.lease, **keys} for claim, keys in ends])
        return [
            (job, result)
            for job, result in self.sql(
                "select id, result from procjobs.settle_jobs(%s, %s::jsonb)", ends[0][0].worker, batch
            )
        ]

    def policy(self, task: str = "work", **keys: Any) -> None:
        """Register a task with its retry policy: max_attempts, backoff_base, backoff_cap (seconds), backoff_jitter."""
        self.sql("select procjobs.register_tasks(%s::jsonb, 'test')", json.dumps([{"name": task, **keys}]))

    def status(self, job: int) -> str:
        """Upstream's word for where a job is; `forgotten` when it is nowhere."""
        found = self.sql("select procjobs.job_status(%s)::text", job)
        return found[0][0] if found else "forgotten"

    def waits_for(self, job: int) -> str | None:
        """What keeps a waiting job out of the claim."""
        ((status, waits_for),) = self.sql(
            "select status::text, pj_waits_for from procrastinate_jobs where id = %s", job
        )
        assert status == "todo", f"job {job} is {status}"
        found: str | None = waits_for
        return found

    def runs(self, job: int) -> list[str]:
        """The outcomes of the runs that did not succeed, in order."""
        return [
            row[0] for row in self.sql("select outcome from procjobs.job_attempts where job_id = %s order by id", job)
        ]

    def die(self, worker: int) -> None:
        """Let a worker be found silent twice: it is dead."""
        self.sql(
            "update procjobs.worker_state set last_heartbeat = last_heartbeat - interval '1 day', "
            "suspected_at = clock_timestamp() - interval '1 hour' where id = %s",
            worker,
        )

    @contextmanager
    def at(self, moment: Any) -> Iterator[None]:
        """Let this connection's clock stand at a moment (anything PostgreSQL reads as a timestamptz)."""
        self.sql("select set_config('procjobs.now', %s::timestamptz::text, false)", moment)
        try:
            yield
        finally:
            self.sql("select set_config('procjobs.now', '', false)")

    def later(self, seconds: float) -> Any:
        """A moment that many seconds from now, for `at`."""
        return self.sql.one("select clock_timestamp() + make_interval(secs => %s)", seconds)


def job_row(sql: Sql, job: int, *columns: str) -> tuple[Any, ...]:
    """Columns of one job of the job table."""
    ((*row,),) = sql(f"select {', '.join(columns)} from procrastinate_jobs where id = %s", job)
    return tuple(row)


@contextmanager
def opened(dsn: str) -> Iterator[Fleet]:
    """A fleet on a connection of its own."""
    sql = Sql(dsn)
    try:
        yield Fleet(sql)
    finally:
        sql.connection.close()


class Thread(threading.Thread):
    """A thread whose result, or error, `result()` gives."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function()
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = 20) -> Any:
        self.join(timeout)
        assert not self.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._value


def waits_for_a_row(sql: Sql, waiting: psycopg.Connection[Any]) -> bool:
    """Whether another connection waits for a lock right now."""
    return bool(sql.one("select cardinality(pg_blocking_pids(%s)) > 0", waiting.info.backend_pid))


def crew(dsn: str, size: int, work: Callable[[Fleet, int], None]) -> None:
    """`work(fleet, worker)` for that many workers, each in a thread with a connection of its own. Their first error."""
    failed: list[BaseException] = []

    def one(number: int) -> None:
        try:
            with opened(dsn) as own:
                work(own, own.worker(name=f"w{number}"))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(size)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 120
    while not failed and (alive := [thread for thread in threads if thread.is_alive()]):
        assert time.monotonic() < until, "still running"
        alive[0].join(0.1)
    if failed:
        raise failed[0]


def limit(fleet: Fleet, name: str = "l", **keys: Any) -> None:
    """Set a limit, of task `work` unless a queue or task is named."""
    if not {"task", "queue"} & keys.keys():
        keys["task"] = "work"
    named = ", ".join(f"{key} => %s" for key in keys)
    fleet.sql(f"select procjobs.set_limit(%s, {named})", name, *keys.values())


def held(fleet: Fleet) -> int:
    count: int = fleet.sql.one("select count(*) from procrastinate_jobs where pj_waits_for = 'limit'")
    return count
