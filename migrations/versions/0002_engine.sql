-- The engine's tables, and what it adds to Procrastinate's job table. Applied by 0002_engine.py.

create schema if not exists procjobs;

comment on schema procjobs is 'Background jobs: functions to enqueue, control and inspect them. Start with \df+ procjobs.* and \dv+ procjobs.*';

-- Procrastinate's job table: our columns are nullable or defaulted, so that upstream's own statements keep working.
alter table public.procrastinate_jobs
  add column pj_waits_for text,
  add column pj_created_at timestamptz,
  add column pj_started_at timestamptz,
  add column pj_finished_at timestamptz,
  add column pj_lease integer not null default 0,
  add column pj_crashes smallint not null default 0,
  add column pj_max_attempts integer,
  add column pj_unique_key text,
  add column pj_tags text[],
  add column pj_cancel jsonb,
  add constraint pj_waits_for_known check (pj_waits_for in ('time', 'lock', 'task', 'limit')) not valid;

comment on column public.procrastinate_jobs.pj_waits_for is
  'What keeps a waiting job out of the claim: time (not due), lock (another job holds or precedes on the lock), task (no worker knew the task), limit. Null: claimable.';
comment on column public.procrastinate_jobs.pj_created_at is 'When the job was enqueued.';
comment on column public.procrastinate_jobs.pj_started_at is 'When the current or last run was claimed.';
comment on column public.procrastinate_jobs.pj_finished_at is 'When the job ended, for jobs that stay in this table: dead letters, and all with finished_jobs = keep.';
comment on column public.procrastinate_jobs.pj_lease is 'How often the job was claimed. With worker_id the fence: a finish must name the lease it holds.';
comment on column public.procrastinate_jobs.pj_crashes is 'How many runs ended because the worker died; the third is the last.';
comment on column public.procrastinate_jobs.pj_max_attempts is 'Runs allowed in all, over the task''s own policy. Null: the task''s.';
comment on column public.procrastinate_jobs.pj_unique_key is 'At most one waiting or running job has this key.';
comment on column public.procrastinate_jobs.pj_tags is 'Words to find the job by.';
comment on column public.procrastinate_jobs.pj_cancel is 'Who asked to cancel the job, when and why: {"by", "at", "reason"}.';

-- Set-based triggers of ours (sql/triggers.sql) take the place of upstream's per-row ones.
drop trigger procrastinate_jobs_notify_queue_job_inserted_v1 on public.procrastinate_jobs;
drop trigger procrastinate_trigger_status_events_insert_v1 on public.procrastinate_jobs;
drop trigger procrastinate_trigger_status_events_update_v1 on public.procrastinate_jobs;
drop trigger procrastinate_trigger_scheduled_events_v1 on public.procrastinate_jobs;
drop trigger procrastinate_trigger_delete_jobs_v1 on public.procrastinate_jobs;
drop trigger procrastinate_jobs_notify_queue_job_aborted_v1 on public.procrastinate_jobs;
drop trigger procrastinate_trigger_abort_requested_events_v1 on public.procrastinate_jobs;
alter table public.procrastinate_events drop constraint procrastinate_events_job_id_fkey;
alter table public.procrastinate_periodic_defers drop constraint procrastinate_periodic_defers_job_id_fkey;
alter table public.procrastinate_jobs drop constraint procrastinate_jobs_worker_id_fkey;

-- When adopted jobs were enqueued is in upstream's events; new rows get it by default.
update public.procrastinate_jobs j
set pj_created_at = e.at
from (
  select job_id, min(at) as at
  from public.procrastinate_events
  where type = 'deferred'
  group by job_id
) e
where e.job_id = j.id;

update public.procrastinate_jobs
set pj_waits_for = 'time'
where status = 'todo'
  and scheduled_at > statement_timestamp();

alter table public.procrastinate_jobs
  alter column pj_created_at set default statement_timestamp();

-- What is not claimable is not in the claim's index.
drop index public.procrastinate_jobs_priority_idx_v1;
drop index public.procrastinate_jobs_id_lock_idx_v1;
drop index public.procrastinate_jobs_queue_name_idx_v1;
drop index public.procrastinate_jobs_lock_idx_v1;
create unique index procrastinate_jobs_lock_idx_v1 on public.procrastinate_jobs (lock)
  where status = 'doing' and lock is not null;
drop index public.procrastinate_jobs_queueing_lock_idx_v1;
create unique index procrastinate_jobs_queueing_lock_idx_v1 on public.procrastinate_jobs (queueing_lock)
  where status = 'todo' and queueing_lock is not null;
create unique index pj_jobs_unique_key on public.procrastinate_jobs (pj_unique_key)
  where pj_unique_key is not null and status in ('todo', 'doing');
do $$
begin
  execute (
    select format('drop index %s', i.indexrelid::regclass)
    from pg_index i
    join pg_class c on c.oid = i.indexrelid
    where i.indrelid = 'public.procrastinate_jobs'::regclass
      and c.relname = 'idx_procrastinate_jobs_worker_not_null'
  );
end
$$;
create index pj_jobs_running on public.procrastinate_jobs (worker_id)
  where status = 'doing';
create index pj_jobs_ready on public.procrastinate_jobs (queue_name, priority desc, id)
  where status = 'todo' and pj_waits_for is null;
create index pj_jobs_due on public.procrastinate_jobs (scheduled_at)
  where status = 'todo' and pj_waits_for = 'time';
create index pj_jobs_ready_lock on public.procrastinate_jobs (lock, priority desc, id)
  where status = 'todo' and pj_waits_for is null and lock is not null;
create index pj_jobs_held_lock on public.procrastinate_jobs (lock, priority desc, id)
  where status = 'todo' and pj_waits_for = 'lock';
create index pj_jobs_parked_task on public.procrastinate_jobs (task_name)
  where status = 'todo' and pj_waits_for = 'task';
create index pj_jobs_dead on public.procrastinate_jobs (id)
  where status = 'failed';

alter table public.procrastinate_jobs set (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 10000,
  autovacuum_analyze_scale_factor = 0.05
);

-- Finished jobs, by day.
create table procjobs.job_history (
  id bigint not null,
  queue_name varchar(128) not null,
  task_name varchar(128) not null,
  priority integer not null,
  lock text,
  queueing_lock text,
  unique_key text,
  args jsonb not null,
  tags text[],
  status public.procrastinate_job_status not null,
  attempts integer not null,
  crashes smallint not null,
  max_attempts integer,
  lease integer not null,
  worker_id bigint,
  scheduled_at timestamptz,
  created_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz not null,
  note text,
  cancel jsonb
) partition by range (finished_at);
create table procjobs.job_history_default partition of procjobs.job_history default;
create index job_history_id on procjobs.job_history (id);
create index job_history_unsuccessful on procjobs.job_history (id)
  where status <> 'succeeded';
comment on table procjobs.job_history is 'Jobs that ended, moved here from the hot table; one partition a day (UTC) of finished_at. Read procjobs.jobs instead.';
comment on table procjobs.job_history_default is 'Catches rows for which no daily partition exists yet; upkeep moves them.';
comment on column procjobs.job_history.note is 'Why the job ended as it did, when somebody or something gave a reason.';

create table procjobs.job_attempts (
  id bigint generated always as identity primary key,
  job_id bigint not null,
  attempt integer not null,
  lease integer not null,
  outcome text not null,
  error_class text,
  error_message text,
  traceback text,
  worker_id bigint,
  worker_name text,
  started_at timestamptz,
  finished_at timestamptz not null,
  retry_at timestamptz,
  constraint outcome_known check (outcome in
    ('failed', 'crashed', 'cancelled', 'snoozed', 'released', 'discarded', 'superseded', 'unreadable'))
);
create index job_attempts_job on procjobs.job_attempts (job_id);
comment on table procjobs.job_attempts is 'Every run that did not succeed: error, traceback, worker, times. Read procjobs.attempts instead.';

create table procjobs.job_events (
  id bigint generated always as identity primary key,
  job_id bigint not null,
  at timestamptz not null,
  type text not null,
  actor text not null default session_user,
  detail jsonb
);
create index job_events_job on procjobs.job_events (job_id);
comment on table procjobs.job_events is 'What people and rescue did to jobs: cancel requests, retries by hand, rescues. The ordinary life of a job is in its own times; procjobs.job_timeline(id) shows both.';

create table procjobs.worker_state (
  id bigint primary key,
  name text not null,
  host text not null,
  pid integer not null,
  version text not null,
  queues text[],
  tasks text[] not null,
  concurrency integer not null,
  heartbeat_every interval not null,
  lease interval not null,
  started_at timestamptz not null,
  last_heartbeat timestamptz not null,
  suspected_at timestamptz,
  draining_at timestamptz,
  stopped_at timestamptz,
  dead_at timestamptz
);
comment on table procjobs.worker_state is 'One row a worker; the id is that of procrastinate_workers. Read procjobs.workers instead.';
comment on column procjobs.worker_state.queues is 'Queues it claims from; null is all.';
comment on column procjobs.worker_state.tasks is 'Names and aliases of the tasks it knows; jobs of other tasks wait for another worker.';
comment on column procjobs.worker_state.lease is 'Without a heartbeat for this long, observed twice, the worker is dead and its jobs are rescued.';
comment on column procjobs.worker_state.suspected_at is 'When a missing heartbeat was first observed.';

create table procjobs.tasks (
  name varchar(128) primary key,
  queue varchar(128) not null default 'default',
  priority integer not null default 0,
  args_schema jsonb,
  execution text not null default 'async',
  max_attempts integer,
  backoff_base interval,
  backoff_cap interval,
  backoff_jitter boolean,
  description text,
  registered_at timestamptz not null,
  registered_by text not null,
  constraint execution_known check (execution in ('async', 'thread', 'process', 'sql', 'unknown')),
  constraint max_attempts_positive check (max_attempts > 0)
);
comment on table procjobs.tasks is 'Tasks that a worker registered: where their jobs go, what arguments they take, how they are retried.';
comment on column procjobs.tasks.args_schema is 'JSON Schema of the arguments, from the Python signature. Null: arguments are not checked against a signature.';
comment on column procjobs.tasks.max_attempts is 'Runs in all, the first included (3 = three runs). Null: retries are decided by the task''s own strategy, in Python.';
comment on column procjobs.tasks.backoff_base is 'Wait before the second run; it doubles with each further run, up to backoff_cap.';
comment on column procjobs.tasks.backoff_jitter is 'True: each wait is drawn evenly between nothing and the computed one (full jitter).';

create table procjobs.queue_settings (
  name varchar(128) primary key,
  paused_at timestamptz,
  paused_by text,
  pause_reason text
);
comment on table procjobs.queue_settings is 'What was set for a queue: a pause, by whom and why. Read procjobs.queues instead.';

create table procjobs.upkeep_state (
  chore text primary key,
  ran_at timestamptz not null,
  position text
);
comment on table procjobs.upkeep_state is 'When each upkeep chore last ran, and where a chore that works in slices goes on.';
