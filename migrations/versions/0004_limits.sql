-- Limits on rate and concurrency, fairness and ageing. Applied by 0004_limits.py.

alter table public.procrastinate_jobs
  add column pj_tenant text,
  add column pj_limits text[],
  add column pj_held_by text,
  drop constraint pj_waits_for_known,
  add constraint pj_waits_for_known check (pj_waits_for in ('time', 'lock', 'task', 'limit', 'pause')) not valid;
comment on column public.procrastinate_jobs.pj_waits_for is
  'What keeps a waiting job out of the claim: time (not due), lock (another job holds or precedes on the lock), task (no worker knew the task), pause (its task is paused), limit. Null: claimable.';
comment on column public.procrastinate_jobs.pj_tenant is 'Whom the job is for: fair queues take turns between tenants.';
comment on column public.procrastinate_jobs.pj_limits is 'The limits whose grants a running job holds, by their keys.';
comment on column public.procrastinate_jobs.pj_held_by is 'The key of the limit that a waiting job met last.';

create index pj_jobs_held_limit on public.procrastinate_jobs (pj_held_by, priority desc, id)
  where status = 'todo' and pj_waits_for = 'limit';
create index pj_jobs_paused_task on public.procrastinate_jobs (task_name)
  where status = 'todo' and pj_waits_for = 'pause';
create index pj_jobs_ready_tenant on public.procrastinate_jobs (queue_name, pj_tenant, priority desc, id)
  where status = 'todo' and pj_waits_for is null and pj_tenant is not null;
alter table procjobs.job_history add column tenant text;

alter table procjobs.queue_settings
  add column fair boolean not null default false,
  add column last_tenant text,
  add column ageing interval,
  add constraint ageing_positive check (ageing > interval '0');
comment on column procjobs.queue_settings.fair is 'Whether tenants take turns.';
comment on column procjobs.queue_settings.last_tenant is 'Whose turn it was last.';
comment on column procjobs.queue_settings.ageing is 'A waiting job gains one point of priority each time this long passes. Null: none.';

create table procjobs.limits (
  name text primary key,
  task text,
  queue text,
  key text,
  max_running integer,
  rate integer,
  per interval,
  on_excess text not null default 'wait',
  set_at timestamptz not null,
  set_by text not null default session_user,
  constraint something_limited check (max_running is not null or rate is not null),
  constraint something_in_scope check (task is not null or queue is not null),
  constraint max_running_positive check (max_running >= 0),
  constraint rate_positive check (rate > 0 and per > interval '0'),
  constraint rate_has_period check ((rate is null) = (per is null)),
  constraint excess_known check (on_excess in ('wait', 'drop', 'cancel_oldest'))
);
comment on table procjobs.limits is 'Limits over the whole fleet. Set with procjobs.set_limit, see procjobs.limit_use.';
comment on column procjobs.limits.task is 'Task whose jobs it is for; null is any.';
comment on column procjobs.limits.queue is 'Queue whose jobs it is for; null is any.';
comment on column procjobs.limits.key is 'What has a count of its own: a path into the arguments (args.user_id), tenant, lock; null is one count for all.';
comment on column procjobs.limits.max_running is 'Jobs that may run at once.';
comment on column procjobs.limits.rate is 'Jobs that may start within any span of `per`.';
comment on column procjobs.limits.on_excess is 'wait: until there is room; drop: end as cancelled; cancel_oldest: ask the oldest running one to stop, and wait.';

create table procjobs.limit_state (
  key text primary key,
  limit_name text not null,
  starts timestamptz[] not null default '{}',
  counts integer[] not null default '{}'
) with (fillfactor = 50);
create index limit_state_limit on procjobs.limit_state (limit_name);
comment on table procjobs.limit_state is 'One row a key: claims take it before they count. Starts within the last period, and how many jobs each let go.';

create table procjobs.limit_grants (
  key text not null,
  job_id bigint not null,
  primary key (key, job_id)
);
create index limit_grants_job on procjobs.limit_grants (job_id);
comment on table procjobs.limit_grants is 'Running jobs that count against a limit; gone in the transaction in which the job stops running.';

-- Every worker's row is updated with every heartbeat. With half of each page free all of these updates stay in their page
-- and touch no index: 60 workers and 300 heartbeats each left 0.2 MB without a vacuum, where full pages left 7 MB.
-- limit_state has its free space above for the same reason. Left as they are: procrastinate_workers, whose index on the
-- heartbeat keeps any update from staying in its page; upkeep_state, whose few rows leave most of their page free; and
-- limit_grants, which is inserted and deleted, so that free space is of no use, and small, so that the server's own
-- threshold of 50 dead rows and a fifth brings autovacuum in every round.
alter table procjobs.worker_state set (fillfactor = 50);
