"""Every hot statement inside the functions reads a bounded number of rows by an index.

At a hundred thousand rows each of waiting, scheduled and finished jobs, and ten thousand on one lock; also when its
plan was made while the tables were empty, or analyzed with next to nothing in them, as the table of jobs mostly is.

The plans are those that ran (auto_explain with nested statements), each scenario in a transaction that is rolled back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.conftest import Databases, Sql
from tests.engine.fleet import Fleet

LARGE = ("procrastinate_jobs", "job_history", "job_attempts", "procrastinate_events")
EXPLAIN = {
    "session_preload_libraries": None,
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}


@dataclass(frozen=True)
class Statement:
    """One statement that a function ran: its text, and of each scan how, of what, and how many rows it read."""

    text: str
    scans: tuple[tuple[str, str, float], ...]

    @property
    def reads(self) -> float:
        return sum(rows for _, _, rows in self.scans)


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _statement(message: str) -> Statement:
    found = json.loads(message.split("plan:", 1)[1])
    scans = [
        (
            node["Node Type"],
            node.get("Relation Name") or node.get("Index Name", ""),
            (node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0))
            * node["Actual Loops"],
        )
        for node in _nodes(found["Plan"])
        if "Scan" in node["Node Type"]
    ]
    large = [scan for scan in scans if scan[1].startswith("pj_") or any(name in scan[1] for name in LARGE)]
    return Statement(" ".join(found["Query Text"].split()), tuple(large))


class Watched:
    """A session whose statements' plans are recorded."""

    def __init__(self, dsn: str) -> None:
        self.sql = Sql(dsn)
        self.fleet = Fleet(self.sql)
        self._heard: list[str] = []
        self.sql.connection.add_notice_handler(lambda notice: self._heard.append(notice.message_primary or ""))
        self.sql("load 'auto_explain'")

    def watch(self, act: Callable[[Fleet], Any]) -> list[Statement]:
        """Do it, take it back, and say what was run for it."""
        self._heard.clear()
        with self.sql.connection.transaction(force_rollback=True):
            for name, value in EXPLAIN.items():
                if value is not None:
                    self.sql("select set_config(%s, %s, true)", name, value)
            act(self.fleet)
            self.sql("set local client_min_messages = notice")
        return [_statement(message) for message in self._heard if "plan:" in message]


#: About one job.
QUESTIONS = {
    "why": "select procjobs.why_not_running(min(id)) from procrastinate_jobs",
    "outcome": "select procjobs.job_outcome(min(id)) from procrastinate_jobs",
    "wait for the end": "select procjobs.await_job(min(id)) from procrastinate_jobs",
    "edit": "select procjobs.edit_job(procjobs.defer('work'), priority => 7)",
    "retry": "select procjobs.retry(procjobs.defer('work'))",
}


def warm_up(fleet: Fleet) -> None:
    """Let the session make its plans, the generic ones too, with next to nothing in the tables."""
    fleet.policy(max_attempts=3)
    fleet.worker()
    worker = fleet.worker("tomorrow")
    for _ in range(8):
        for lock in ("warm", None):
            fleet.defer(lock=lock)
            fleet.defer(lock=lock, scheduled_at=0.0)
            fleet.defer("tomorrow", lock=lock)
        for disposal in ("archive", "keep", "delete"):
            for queues in (None, ["default"], ["default", "mail"]):
                for claim in fleet.claim(worker, 2, queues=queues):
                    fleet.finish(claim, disposal=disposal)
        fleet.defer(lock="warm")
        for claim in fleet.claim(worker, 1):
            fleet.settle(claim, "failed")
        fleet.sql("select procjobs.upkeep()")
        fleet.sql("select procjobs.sweep_locks(), procjobs.promote_due(), procjobs.rescue_jobs()")
        fleet.sql("select procjobs.heartbeat(%s), procjobs.release_unknown(%s, '{}')", worker, worker)
        fleet.sql("select procjobs.job_status(1), procjobs.cancel(procjobs.defer('work'))")
        for question in QUESTIONS.values():
            fleet.sql(question)
    fleet.sql("delete from procrastinate_jobs")


def load(sql: Sql) -> None:
    """What a busy and badly kept installation holds."""
    sql("set session_replication_role = replica")  # no triggers; and no changed table, for which plans are made anew
    insert = (
        "insert into procrastinate_jobs (task_name, queue_name, priority, lock, scheduled_at, pj_waits_for, status, "
        "worker_id, args) select {columns} from generate_series(1, {count}) n"
    )
    for columns, count in [
        ("'work', 'queue' || n % 10, n % 3, null, null, null, 'todo', null, '{}'", 100_000),
        ("'work', 'default', 0, null, now() + n * interval '1 second', 'time', 'todo', null, '{}'", 100_000),
        ("'work', 'default', 5, 'busy', null, case when n > 1 then 'lock' end, 'todo', null, '{}'", 10_000),
        ("'work', 'default', 0, 'lock' || n, null, 'lock', 'todo', null, '{}'", 1_000),
        ("'work', 'locked', 0, 'free' || n, null, null, 'todo', null, '{}'", 10_000),
        ("'tomorrow', 'default', 0, null, null, 'task', 'todo', null, '{}'", 10_000),
        ("'work', 'default', 0, null, null, null, 'failed', null, '{}'", 10_000),
    ]:
        sql(insert.replace("{columns}", columns).replace("{count}", str(count)))
    sql("reset session_replication_role")
    sql(
        "insert into procjobs.job_history (id, queue_name, task_name, priority, args, status, attempts, crashes, "
        "lease, finished_at) select 10000000 + n, 'default', 'work', 0, '{}', 'succeeded', 1, 0, 1, "
        "now() - n * interval '1 second' from generate_series(1, 100000) n"
    )
    sql(
        "insert into procrastinate_events (job_id, type) "
        "select 10000000 + n, 'deferred' from generate_series(1, 100000) n"
    )


Act = Callable[[Fleet, int, int], Any]


def finish(count: int, disposal: str = "archive") -> Act:
    return lambda fleet, worker, dead: fleet.finish(*fleet.claim(worker, count, queues=["queue1"]), disposal=disposal)


def busy_lock(fleet: Fleet, worker: int, dead: int) -> None:
    fleet.finish(*fleet.claim(worker, 1, queues=["default"]))
    fleet.defer(lock="busy")


def due(count: int) -> Act:
    def act(fleet: Fleet, worker: int, dead: int) -> None:
        with fleet.at(fleet.later(count)):
            fleet.sql("select procjobs.promote_due()")

    return act


def rescue(fleet: Fleet, worker: int, dead: int) -> None:
    fleet.die(dead)
    assert fleet.sql.one("select procjobs.rescue_jobs(20)") == 20


def settle(fleet: Fleet, worker: int, dead: int) -> None:
    fleet.settle_all([(claim, {"outcome": "failed"}) for claim in fleet.claim(worker, 20, queues=["queue1"])])


def unpark(fleet: Fleet, worker: int, dead: int) -> None:
    assert fleet.claim(fleet.worker("tomorrow"), 20, queues=["default"])


#: What is done, and how many rows of the large tables one statement of it may read. A claim that meets a lock may go
#: once through the thousand that run.
SCENARIOS: dict[str, tuple[Act, int]] = {
    "claim from all queues": (lambda fleet, worker, dead: fleet.claim(worker, 100), 2500),
    "claim from one queue": (lambda fleet, worker, dead: fleet.claim(worker, 100, queues=["queue1"]), 500),
    "claim from some queues": (
        lambda fleet, worker, dead: fleet.claim(worker, 100, queues=["queue1", "x", "queue2"]),
        1500,
    ),
    "claim of jobs with locks": (lambda fleet, worker, dead: fleet.claim(worker, 100, queues=["locked"]), 1500),
    "claim nothing": (lambda fleet, worker, dead: fleet.claim(worker, 100, queues=["nothing"]), 100),
    "claim of a task that was unknown": (unpark, 1500),
    "finish": (finish(100), 1000),
    "finish and keep": (finish(100, "keep"), 1000),
    "finish and delete": (finish(100, "delete"), 1000),
    "finish with ten thousand behind it on the lock": (busy_lock, 1500),
    "failures": (settle, 200),
    "due jobs": (due(200), 1000),
    "no due jobs": (due(0), 100),
    "sweep": (lambda fleet, worker, dead: fleet.sql("select procjobs.sweep_locks()"), 8000),
    "rescue": (rescue, 3000),
    "heartbeat": (lambda fleet, worker, dead: fleet.sql("select procjobs.heartbeat(%s)", dead), 1500),
    "orphans": (lambda fleet, worker, dead: fleet.sql("select procjobs.release_unknown(%s, '{}')", worker), 1500),
    "upkeep": (lambda fleet, worker, dead: fleet.sql("select procjobs.upkeep()"), 8000),
    "enqueue": (lambda fleet, worker, dead: fleet.defer(queueing_lock="one", lock="busy"), 100),
    "cancel": (lambda fleet, worker, dead: fleet.sql("select procjobs.cancel(min(id)) from procrastinate_jobs"), 100),
    "status": (lambda fleet, worker, dead: fleet.sql("select procjobs.job_status(10000500)"), 100),
}
SCENARIOS |= {
    name: (lambda fleet, worker, dead, ask=ask: fleet.sql(ask), 1500 if name == "why" else 100)  # type: ignore[misc]
    for name, ask in QUESTIONS.items()
}
STAGES = ["planned when empty", "planned when all but empty", "new session", "analyzed"]


@pytest.fixture
def recorded(databases: Databases, template: str) -> dict[tuple[str, str], list[Statement]]:
    """The statements of each scenario at each stage."""
    dsn = databases.make(template)
    with_rows = Sql(dsn)
    old, older = Watched(dsn), Watched(dsn)
    warm_up(older.fleet)
    old.fleet.defer_many(5)
    with_rows("vacuum analyze")
    warm_up(old.fleet)
    load(with_rows)
    fleet = Fleet(with_rows)
    worker, dead = fleet.worker(), fleet.worker()
    assert len(fleet.claim(dead, 1000, queues=["queue9"])) == 1000

    found: dict[tuple[str, str], list[Statement]] = {}
    for stage in STAGES:
        if stage == "analyzed":
            with_rows("vacuum analyze")
        watched = {STAGES[0]: older, STAGES[1]: old}.get(stage) or Watched(dsn)
        for name, (act, _) in SCENARIOS.items():
            found[stage, name] = watched.watch(lambda fleet, act=act: act(fleet, worker, dead))  # type: ignore[misc]
        watched.sql.connection.close()
    with_rows.connection.close()
    return found


def faults(statements: list[Statement], most: int) -> list[str]:
    """What is wrong with the plans of a scenario, in words."""
    if not any(statement.scans for statement in statements):
        return ["nothing was recorded"]
    found = []
    for statement in statements:
        sequential = [scan for scan in statement.scans if "Seq Scan" in scan[0] and scan[2] > 0]
        if sequential:
            found.append(f"{sequential} in {statement.text}")
        if statement.reads > most:
            found.append(
                f"{statement.reads:.0f} rows read, at most {most} expected: {statement.scans} in {statement.text}"
            )
    return found


def test_hot_statements_read_few_rows_by_an_index(recorded: dict[tuple[str, str], list[Statement]]) -> None:
    wrong = {
        (stage, scenario): problems
        for stage in STAGES
        for scenario, (_, most) in SCENARIOS.items()
        if (problems := faults(recorded[stage, scenario], most))
    }
    assert not wrong


def test_a_scan_of_the_whole_table_would_be_noticed(dsn: str) -> None:
    watched = Watched(dsn)
    watched.fleet.defer_many(500)
    (statement,) = watched.watch(lambda fleet: fleet.sql("select count(*) from procrastinate_jobs where args <> '{}'"))[
        -1:
    ]
    watched.sql.connection.close()
    assert any("500 rows read" in fault for fault in faults([statement], 100))
    assert any("Seq Scan" in fault for fault in faults([statement], 1000))


def test_a_fair_queue_reads_few_rows_for_those_without_a_tenant(dsn: str, sql: Sql) -> None:
    """Also with twenty thousand that have one before them: at the front, on the way, and where they are found."""
    fleet = Fleet(sql)
    fleet.policy()
    sql("select procjobs.set_queue('turns', fair => true)")
    insert = (
        "insert into procrastinate_jobs (task_name, queue_name, priority, args, pj_tenant) "
        "select 'work', %s, %s, '{}', %s from generate_series(1, %s)"
    )
    for queue, priority, tenant, count in [
        ("turns", 2, "a", 10_000), ("turns", 1, "b", 10_000), ("turns", 0, None, 10), ("other", 0, None, 10_000),
    ]:  # fmt: skip
        sql(insert, queue, priority, tenant, count)
    worker = fleet.worker()
    old = Watched(dsn)
    old.fleet.claim_ids(old.fleet.worker("none"), 1, queues=["nothing"])
    for stage in ("not analyzed", "analyzed"):
        for place in (None, 9_000, 19_500, 20_000):
            sql(
                "update procjobs.queue_settings set (nobody_priority, nobody_id) = (select priority, id from "
                "procrastinate_jobs order by id offset %s limit 1), (look_priority, look_id) = (select priority, id "
                "from procrastinate_jobs order by id offset %s limit 1) where %s::int is not null",
                place or 0, (place or 0) // 2, place,
            )  # fmt: skip
            for watched in (old, Watched(dsn)):
                found = watched.watch(lambda fleet: fleet.claim(worker, 3, queues=["turns"]))
                assert not faults(found, 3500), (stage, place)
                if watched is not old:
                    watched.sql.connection.close()
        sql("vacuum analyze")
    old.sql.connection.close()
