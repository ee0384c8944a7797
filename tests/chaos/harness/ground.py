"""The tables that tasks and triggers of the chaos tests write to, in a schema of their own in the test's database."""

from __future__ import annotations

import json

import psycopg

from procjobs.schema import resources

__all__ = ["CANARY", "lay"]

#: Part of the arguments of every job; may appear nowhere else.
CANARY = "canary-91c2e0"

#: Tasks of tests/chaos/victim.py, with what a worker would register, so that SQL can enqueue before one has started.
TASKS = [
    {"name": "work"},
    {"name": "work_thread"},
    {"name": "work_process"},
    {"name": "flaky", "max_attempts": 5, "backoff_base": 0, "backoff_cap": 0, "backoff_jitter": False},
    {
        "name": "tell_slot",
        "args_schema": {
            "type": "object",
            "properties": {"schedule": {"type": "string"}, "slot": {"type": "string"}},
            "required": ["schedule", "slot"],
            "additionalProperties": False,
        },
    },
    *(
        {"name": name}
        for name in (
            "batch_over",
            "block",
            "borrow_a_thread",
            "die_after_effect",
            "effect",
            "endure",
            "exit_aside",
            "hang_once",
            "ignore_cancellation",
            "limited",
            "paced",
            "suicide",
            "wait_for_gate",
        )
    ),
]

#: What comes with procjobs and runs by itself, as `migrate` declares it.
COMES_WITH_PROCJOBS = (resources().sql / "schedules.sql").read_text()

GROUND = """
-- Only what a test enqueues is to run, also after an upgrade, which brings back what is not there: a pause stays.
select procjobs.pause_schedule(name, 'chaos') from procjobs.schedules where source = 'pack';
create schema chaos;
create table chaos.executions (
  id bigint generated always as identity primary key,
  job bigint, attempt integer, lease integer, worker bigint, pid integer not null, task text not null,
  key text, lock text, span tstzrange not null, token uuid unique
);
create index on chaos.executions (job);
create index on chaos.executions (lock);
create table chaos.effects (
  key text primary key, job bigint, lease integer, pid integer not null,
  at timestamptz not null default clock_timestamp(),
  repeats integer not null default 0, run bigint
);
create table chaos.transitions (
  id bigint generated always as identity primary key,
  job bigint not null, was text, became text, old_lease integer, lease integer, worker bigint,
  at timestamptz not null default clock_timestamp(),
  task text, unique_key text, waiting_key text, started timestamptz
);
create index on chaos.transitions (job);
create table chaos.gate (name text primary key);
create table chaos.stops (pid integer not null, began timestamptz not null, ended timestamptz);

-- Tasks say everything until they hear that it was written: what comes twice counts once.
create function chaos.begin_run(p_job bigint, p_worker bigint, p_pid integer, p_task text, p_key text, p_token uuid)
returns bigint language sql as $$
  insert into chaos.executions (job, attempt, lease, worker, pid, task, key, lock, span, token)
  select coalesce(p_job, j.id), j.attempts + 1, j.pj_lease, j.worker_id, p_pid, p_task, p_key, j.lock,
    tstzrange(clock_timestamp(), null), p_token
  from (select) one
  left join public.procrastinate_jobs j
    on j.status = 'doing'
    and (p_worker is null or j.worker_id = p_worker)
    and case
      when p_job is not null then j.id = p_job
      -- In a process of its own: it knows its key, and its parent is the worker.
      else j.task_name = p_task and j.args ->> 'key' = p_key
        and j.worker_id in (select w.id from procjobs.worker_state w where w.pid = p_pid)
    end
  limit 1
  on conflict (token) do update set token = excluded.token
  returning id
$$;

create function chaos.end_run(p_run bigint, p_at timestamptz) returns void language sql as $$
  update chaos.executions set span = tstzrange(lower(span), greatest(p_at, lower(span)))
  where id = p_run and upper_inf(span)
$$;

create function chaos.do_effect(p_run bigint) returns void language sql as $$
  insert into chaos.effects as e (key, job, lease, pid, run)
  select key, job, lease, pid, id from chaos.executions where id = p_run
  on conflict (key) do update set repeats = e.repeats + 1, run = excluded.run where e.run <> excluded.run
$$;

create function chaos.note_transition() returns trigger language plpgsql security definer as $$
begin
  if tg_op = 'INSERT' then
    insert into chaos.transitions (job, became, lease, worker, task, unique_key, waiting_key)
    values (new.id, new.status, new.pj_lease, new.worker_id, new.task_name, new.pj_unique_key, new.pj_waiting_key);
  elsif tg_op = 'DELETE' then
    insert into chaos.transitions (job, was, old_lease, lease, worker, task)
    values (old.id, old.status, old.pj_lease, old.pj_lease, old.worker_id, old.task_name);
  elsif old.status <> new.status or old.pj_lease <> new.pj_lease then
    insert into chaos.transitions (job, was, became, old_lease, lease, worker, task, unique_key, waiting_key, started)
    values (new.id, old.status, new.status, old.pj_lease, new.pj_lease, coalesce(new.worker_id, old.worker_id),
      new.task_name, new.pj_unique_key, new.pj_waiting_key, case when new.status = 'doing' then new.pj_started_at end);
  end if;
  return null;
end
$$;
-- Jobs with unique keys; with p_over they are a batch, sealed at once, and that is its callback.
create function chaos.enqueue_jobs(p_jobs jsonb, p_over jsonb) returns table (id bigint, duplicate boolean)
language plpgsql as $$
declare
  v_batch bigint := case when p_over is not null then procjobs.create_batch('chaos', on_finish => p_over) end;
begin
  return query
  select d.id, d.duplicate
  from procjobs.defer_many((
    select jsonb_agg(j || jsonb_strip_nulls(jsonb_build_object('batch_id', v_batch)) order by n)
    from jsonb_array_elements(p_jobs) with ordinality as given (j, n)
  )) d
  order by d.ordinal;
  if v_batch is not null then
    perform procjobs.seal_batch(v_batch);
  end if;
end
$$;
create trigger chaos_note_transition after insert or update or delete on public.procrastinate_jobs
  for each row execute function chaos.note_transition();
"""


def lay(dsn: str) -> None:
    """Make the tables, log every transition of every job from now on, and register the tasks."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(COMES_WITH_PROCJOBS.encode())
        connection.execute(GROUND.encode())
        connection.execute("select procjobs.register_tasks(%s::jsonb, 'chaos')", (json.dumps(TASKS),))
