"""What else is in the database while a backlog drains.

What fills it has another priority than what is measured, so that it is not counted; where it is in front (1), it must
be got past, where it is behind (-1), it must not be looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["EMPTY", "SHAPES", "UNCHECKED", "Shape"]

#: Before filling tables by plain inserts: arguments that need no check, row by row.
UNCHECKED = "set procjobs.args_checked = 'on'"


@dataclass(frozen=True)
class Shape:
    """fill: SQL run before the drain. held: a transaction that was open before the jobs came stays open all the time.

    beside: SQL that counts what else procjobs did meanwhile.
    backlog: a column that the measured jobs have, and its value.
    """

    name: str
    fill: str = ""
    stock: bool = False
    held: bool = False
    beside: str = ""
    backlog: tuple[str, str] | None = None

    def waiting(self, jobs: int) -> str:
        """SQL that makes the measured jobs, when they are not plain ones."""
        return _jobs(jobs, *self.backlog) if self.backlog else ""


def _jobs(count: int, columns: str, values: str) -> str:
    return (
        f"insert into public.procrastinate_jobs (queue_name, task_name, {columns}) "
        f"select 'default', 'noop', {values} from generate_series(1, {count}) n"
    )


_FINISHED = (
    "insert into procjobs.job_history "
    "(id, queue_name, task_name, priority, args, status, attempts, crashes, lease, "
    "created_at, started_at, finished_at) "
    "select 1000000000 + n, 'default', 'noop', 0, '{}', 'succeeded', 1, 0, 1, now(), now(), now() "
    "from generate_series(1, 1000000) n"
)
_DONE = "select count(*) from procjobs.job_history where priority = 1"
_SCHEDULED = _jobs(1_000_000, "priority, scheduled_at", "1, now() + interval '1 day'")
_KEYED = "jsonb_build_object('at', n % 1000)"
_TURNED_AWAY = (
    "select procjobs.set_limit('keys', task => 'thread', key => 'args.at', rate => 1, per => '1 day'); "
    + _jobs(10_000, "priority, args", f"1, {_KEYED}").replace("'noop'", "'thread'")
)
_NOT_BINDING = "select procjobs.set_limit('keys', task => 'noop', key => 'args.at', max_running => 1000000)"

_OTHER_QUEUES = _jobs(500, "priority", "-1").replace("'default'", "'queue ' || n % 5")

EMPTY = Shape("empty tables", stock=True)

SHAPES = (
    EMPTY,
    Shape("1,000,000 finished", _FINISHED),
    Shape("1,000,000 scheduled", _SCHEDULED, stock=True),
    Shape("1,000,000 more waiting", _jobs(1_000_000, "priority", "-1"), stock=True),
    Shape("500 waiting in five other queues", _OTHER_QUEUES, stock=True),
    Shape("10,000 on one lock, in front", _jobs(10_000, "priority, lock", "1, 'hot'"), stock=True, beside=_DONE),
    Shape("every job with a lock of its own", stock=True, backlog=("lock", "'lock ' || n")),
    Shape("10,000 in front turned away by limits of 1,000 keys", _TURNED_AWAY, beside=_DONE),
    Shape("limits of 1,000 keys that do not bind", _NOT_BINDING, backlog=("args", _KEYED)),
    Shape("a transaction open since before", held=True, stock=True),
    Shape("such a transaction, and 500 waiting in five other queues", _OTHER_QUEUES, held=True),
)
