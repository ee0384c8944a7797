"""What must hold whatever happened, checked when everything has come to rest. Each check gives the rows that break it.

The numbers are those of the fault plan; I12 (exit codes) is Fleet's. I13 is limits, I14 unique keys, I15 batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.chaos.harness.fleet import Fleet
from tests.chaos.harness.ground import CANARY
from tests.chaos.harness.ledger import Account
from tests.conftest import Sql

__all__ = ["Violation", "drained", "violations"]

#: A worker of the chaos tests holds a few dozen jobs.
MOST_MEMORY = 400 * 1024 * 1024


@dataclass(frozen=True)
class Violation:
    invariant: str
    what: str
    rows: tuple[Any, ...]

    def __str__(self) -> str:
        more = f" ... {len(self.rows)} in all" if len(self.rows) > 5 else ""
        return f"{self.invariant}: {self.what}: {list(self.rows[:5])}{more}"


#: Every job, wherever its row is.
_JOBS = """
select id, status::text, task_name, args, attempts, pj_crashes as crashes, pj_max_attempts as max_attempts, 'hot' as at,
  pj_batch as batch
from public.procrastinate_jobs
union all
select id, status::text, task_name, args, attempts, crashes, max_attempts, 'history', batch from procjobs.job_history
"""

#: When a run was over: it said so, or its process stopped. A process that was frozen may do a little more
#: before it hears that its lease was given to others: of such, the lease counts.
_RUNS = """
select e.id, e.job, e.lease, e.lock, e.task, lower(e.span) as began,
  least(
    coalesce(upper(e.span), 'infinity'),
    (select min(s.began) from chaos.stops s
     -- Of a process that died the last word may have reached the database when it was dead already: no run.
     where s.pid = e.pid
       and (s.ended is null or s.began > lower(e.span) and (upper_inf(e.span) or s.ended > upper(e.span)))),
    (select min(a.finished_at) from procjobs.job_attempts a
     where a.job_id = e.job and a.lease = e.lease and a.outcome in ('crashed', 'released', 'superseded')
       and ({lenient} or exists (select from chaos.stops s where s.pid = e.pid and s.ended is not null)))
  ) as ended
from chaos.executions e
where e.lease is not null
"""

#: When jobs had a key of waiting, or of unfinished, jobs.
_KEYED = """
select t.job, t.key, t.at as since, coalesce(t.left_at, 'infinity') as until
from (
  select t.job, t.became, t.waiting_key, coalesce(t.waiting_key, t.unique_key) as key, t.at,
    lead(t.at) over (partition by t.job order by t.id) as left_at
  from chaos.transitions t
) t
where t.became = 'todo' or t.became = 'doing' and t.waiting_key is null
"""

_CHECKS: list[tuple[str, str, str]] = [
    ("I2", "a key has more than one job", f"""
        select args ->> 'key', array_agg(id) from ({_JOBS}) j where args ? 'key' group by 1
        having count(distinct id) > 1
     """),
    ("I3", "a job succeeded without its effect", f"""
        select id from ({_JOBS}) j where status = 'succeeded'
          and task_name in ('work', 'work_thread', 'work_process', 'flaky', 'die_after_effect', 'hang_once',
                            'wait_for_gate', 'block', 'endure', 'limited', 'paced', 'batch_over')
          and not exists (select from chaos.effects e where e.key = j.args ->> 'key')
     """),
    ("I3", "an effect of no job", f"""
        select e.key from chaos.effects e
        where not exists (select from ({_JOBS}) j where j.args ->> 'key' = e.key)
     """),
    ("I4", "two runs of one lock at once", f"""
        with run as materialized (select * from ({_RUNS}) r where lock is not null and ended > began)
        select a.lock, a.job, b.job, a.began, a.ended, b.began from run a join run b
          on a.lock = b.lock and a.id < b.id and tstzrange(a.began, a.ended) && tstzrange(b.began, b.ended)
     """),
    ("I5", "a slot that is not in the ledger", """
        select s.name, g from procjobs.schedules s
        cross join lateral (select min(t.slot) as slot from procjobs.schedule_ticks t where t.schedule = s.name) first
        cross join lateral generate_series(first.slot, s.last_slot, s.every) g
        where s.every is not null
          and not exists (select from procjobs.schedule_ticks t where t.schedule = s.name and t.slot = g)
     """),
    ("I5", "a slot more than once in the ledger", """
        select schedule, slot, count(*) from procjobs.schedule_ticks group by 1, 2 having count(*) > 1
     """),
    ("I5", "a slot with more than one job", f"""
        select args ->> 'schedule', args ->> 'slot', array_agg(id) from ({_JOBS}) j where args ? 'slot' group by 1, 2
        having count(*) > 1
     """),
    ("I5", "a slot that fired and has no job of its own", f"""
        select t.schedule, t.slot, t.job_id from procjobs.schedule_ticks t
        left join ({_JOBS}) j on j.id = t.job_id and j.args ->> 'schedule' = t.schedule
          and (j.args ->> 'slot')::timestamptz = date_trunc('second', t.slot)
        where t.outcome = 'fired' and j.id is null
     """),
    ("I5", "a job of a slot that did not fire", f"""
        select id, args from ({_JOBS}) j where args ? 'slot' and not exists (
          select from procjobs.schedule_ticks t where t.job_id = j.id and t.outcome = 'fired')
     """),
    ("I5", "a slot skipped without a reason", """
        select schedule, slot, outcome from procjobs.schedule_ticks where outcome <> 'fired' and reason is null
     """),
    ("I6", "running without a worker that lives", """
        select id, worker_id from public.procrastinate_jobs
        where status = 'doing' and (worker_id is null or worker_id not in (select procjobs.living_workers()))
     """),
    ("I6", "still running when everything has come to rest", """
        select id, worker_id, pj_lease from public.procrastinate_jobs where status = 'doing'
     """),
    ("I7", "crashes that were not counted", """
        select a.job_id, count(*) from procjobs.job_attempts a where a.outcome = 'crashed' group by 1
        having count(*) > 3 * (1 + (select count(*) from procjobs.job_events e
                                    where e.job_id = a.job_id and e.type = 'retried'))
     """),
    ("I7", "more attempts or crashes than allowed", f"""
        select j.id, j.attempts, j.crashes from ({_JOBS}) j left join procjobs.tasks t on t.name = j.task_name
        where j.attempts > greatest(coalesce(j.max_attempts, t.max_attempts, 1), 1) or j.crashes > 3
     """),
    ("I7", "a job ran more often than its attempts, crashes and releases explain", f"""
        select e.job, count(*) from chaos.executions e join ({_JOBS}) j on j.id = e.job
        where e.lease is not null and j.status <> 'doing'
        group by e.job, j.status
        having count(*) > (select count(*) from procjobs.job_attempts a where a.job_id = e.job)
          + (j.status in ('succeeded'))::integer
     """),
    ("I8", "an illegal transition", """
        select job, was, became, old_lease, lease from chaos.transitions
        where (was, became) is null or coalesce(was, '-') || ' ' || coalesce(became, '-') not in (
            '- todo', 'todo doing', 'todo -', 'doing todo', 'doing failed', 'doing -', 'failed todo', 'failed -')
          or (was is not null and lease - old_lease <> (was = 'todo' and coalesce(became, '') = 'doing')::integer)
     """),
    ("I8", "a job is gone and not in the history", f"""
        select t.job, t.was from chaos.transitions t
        where t.became is null and not exists (select from ({_JOBS}) j where j.id = t.job)
     """),
    ("I8", "a job went from waiting to its end without being cancelled", """
        select t.job from chaos.transitions t join procjobs.job_history h on h.id = t.job
        where t.became is null and t.was = 'todo' and h.status <> 'cancelled'
     """),
    ("I9", "one attempt ended more than once", """
        select job, lease, count(*) from chaos.transitions where was = 'doing' group by 1, 2 having count(*) > 1
     """),
    ("I9", "one attempt was started more than once", """
        select job, lease, count(*) from chaos.executions where lease is not null group by 1, 2 having count(*) > 1
     """),
    ("I9", "a job ended more than once", f"""
        select id, array_agg(status || ' ' || at) from ({_JOBS}) j group by id having count(*) > 1
     """),
    ("I9", "a running job was taken for a waiting one and cancelled", """
        select t.job, t.lease from chaos.transitions t join procjobs.job_history h on h.id = t.job
        where t.was = 'doing' and t.became is null and h.status = 'cancelled' and not exists (
          select from procjobs.job_attempts a where a.job_id = t.job and a.lease = t.lease)
     """),
    ("I9", "a job was ended by another attempt than its last", """
        select h.id, h.lease from procjobs.job_history h
        where h.lease <> (select max(t.lease) from chaos.transitions t where t.job = h.id)
     """),
    ("I10", "ended jobs are left in the hot table", """
        select id, status from public.procrastinate_jobs where status in ('succeeded', 'cancelled', 'aborted')
     """),
    ("I13", "more runs at once than a limit allows", f"""
        with run as materialized (
          select r.*, l.name, l.max_running from ({_RUNS}) r
          join procjobs.limits l on l.task = r.task and l.key is null and l.max_running is not null
          where r.ended > r.began
        )
        select a.name, a.job, a.began, array_agg(b.job) from run a
        join run b on b.name = a.name and b.began <= a.began and b.ended > a.began
        group by a.name, a.job, a.id, a.began, a.max_running
        having count(*) > a.max_running
     """),
    ("I13", "more starts within a period than a rate allows", """
        with start as materialized (
          select l.name, l.rate, l.per, t.job, t.started from chaos.transitions t
          join procjobs.limits l on l.task = t.task and l.key is null and l.rate is not null
          where t.became = 'doing' and t.started is not null
        )
        select a.name, a.started, count(*) from (select distinct name, rate, per, started from start) a
        join start b on b.name = a.name and b.started > a.started - a.per and b.started <= a.started
        group by a.name, a.rate, a.started
        having count(*) > a.rate
     """),
    ("I13", "more runs within a period than a rate that counts runs allows", f"""
        with run as materialized (
          select r.*, l.name, l.rate, l.per from ({_RUNS}) r
          join procjobs.limits l on l.task = r.task and l.key is null and l.rate_counts = 'runs'
          where r.ended > r.began
        )
        select a.name, a.job, a.began, array_agg(b.job) from run a
        join run b on b.name = a.name and b.began <= a.began and b.ended > a.began - a.per
        group by a.name, a.job, a.id, a.began, a.rate
        having count(*) > a.rate
     """),
    ("I14", "two jobs with one unique key", f"""
        with keyed as materialized (select * from ({_KEYED}) k where key is not null and since < until)
        select a.key, a.job, b.job, a.since, b.since from keyed a
        join keyed b on b.key = a.key and b.job > a.job and a.since < b.until and b.since < a.until
     """),
    ("I15", "a batch that is over and has not one callback", f"""
        select b.id, array_agg(j.id) from procjobs.job_batches b
        left join ({_JOBS}) j on j.args ->> 'key' = b.on_finish -> 'args' ->> 'key'
        where b.sealed_at is not null and b.on_finish is not null
        group by b.id having count(j.id) <> 1
     """),
    ("I15", "a callback came before all jobs of its batch had ended", f"""
        with ended as (
          select t.job, min(t.at) as at from chaos.transitions t
          where t.was in ('todo', 'doing') and (t.became is null or t.became = 'failed') group by t.job
        ),
        born as (
          select t.job, min(t.at) as at from chaos.transitions t where t.was is null group by t.job
        )
        select b.id, j.id, c.id from procjobs.job_batches b
        join ({_JOBS}) j on j.batch = b.id
        join ({_JOBS}) c on c.args ->> 'key' = b.on_finish -> 'args' ->> 'key'
        join born on born.job = c.id
        left join ended on ended.job = j.id
        where ended.at is null or ended.at > born.at
     """),
    ("I11", "arguments in errors or events", f"""
        select job_id from procjobs.job_attempts a where a::text like '%{CANARY}%'
        union all select job_id from procjobs.job_events e where e::text like '%{CANARY}%'
     """),
]  # fmt: skip


def drained(sql: Sql) -> bool:
    """Whether nothing waits, nothing runs, and no batch is about to be over."""
    return not sql.one(
        "select exists (select from public.procrastinate_jobs where status in ('todo', 'doing')) "
        "or exists (select from procjobs.job_batches where sealed_at is not null and finished_at is null)"
    )


def violations(
    sql: Sql, account: Account | None = None, fleet: Fleet | None = None, *, lenient: bool = False
) -> list[Violation]:
    """Everything that is wrong; empty is right. Call it when the database has come to rest.

    lenient: a run whose lease was lost is over by that, for every worker (I4): where the network and the database
    fail for longer than leases, a thread cannot be stopped in time.
    """
    if fleet is not None:
        _note_stops(sql, fleet)
    found = [
        Violation(invariant, what, tuple(rows))
        for invariant, what, query in _CHECKS
        if (rows := sql(query.replace("{lenient}", str(lenient).lower()))) != []
    ]
    if account is not None:
        found += _against(sql, account)
    if fleet is not None:
        found += _of_fleet(fleet)
    return found


def _note_stops(sql: Sql, fleet: Fleet) -> None:
    sql("truncate chaos.stops")
    for pid, began, ended in fleet.stops():
        sql("insert into chaos.stops values (%s, %s, %s)", pid, began, ended)


def _against(sql: Sql, account: Account) -> Iterable[Violation]:
    """I1, I2: the database against the client's ledger."""
    # Jobs of slots are the ledger's (I5).
    jobs = dict(sql(f"select id, args ->> 'key' from ({_JOBS}) j where not args ? 'slot'"))
    acknowledged = account.acknowledged
    lost = [(key, job) for key, job in acknowledged.items() if jobs.get(job) != key]
    there = set(jobs.values())
    checks: list[tuple[str, str, Callable[[], list[Any]]]] = [
        ("I1", "acknowledged and lost", lambda: lost),
        ("I15", "a callback of a batch that was acknowledged is lost", lambda: sorted(account.promised - there)),
        ("I2", "nobody enqueued it", lambda: [k for k in jobs.values() if k not in account.attempted]),
        ("I2", "refused and there nevertheless", lambda: [k for k in jobs.values() if k in account.refused]),
        ("I2", "a duplicate and there nevertheless", lambda: [k for k in jobs.values() if k in account.duplicates]),
    ]
    return [Violation(name, what, tuple(rows)) for name, what, check in checks if (rows := check())]


def _of_fleet(fleet: Fleet) -> Iterable[Violation]:
    """I10 memory, I11 logs, I12 exit codes."""
    fat = [worker.log.name for worker in fleet.alive if worker.memory() > MOST_MEMORY]
    told = [name for name, text in fleet.logs() if CANARY in text]
    checks = (
        ("I10", "more memory than a few dozen jobs take", fat),
        ("I11", "arguments in a log", told),
        ("I12", "wrong exits", fleet.wrong_exits()),
    )
    return [Violation(name, what, tuple(rows)) for name, what, rows in checks if rows]
