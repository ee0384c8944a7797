-- Time travel: where jobs were at a moment in the past, from the facts that are kept.
-- Owns:        nothing; reads the views, with the caller's own rights.
-- Lock order:  none.

create or replace function procjobs.job_transitions(p_job_id bigint, p_queue text, p_task text, p_until timestamptz)
returns table (job_id bigint, at timestamptz, rank integer, state text, run integer)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with job as materialized (
    select j.id, j.status, j.created_at, j.scheduled_at, j.started_at, j.finished_at, j.attempts
    from procjobs.jobs j
    where j.created_at <= p_until
      and (p_job_id is null or j.id = p_job_id)
      and (p_queue is null or j.queue = p_queue)
      and (p_task is null or j.task = p_task)
  ),
  run as materialized (
    select r.*
    from procjobs.attempts r
    join job j on j.id = r.job_id
  ),
  act as materialized (
    select a.*
    from procjobs.actions a
    join job j on j.id = a.job_id
  )
  select j.id, j.created_at, 0, case when j.scheduled_at > j.created_at
      and not exists (select from run r where r.job_id = j.id) and not exists (select from act a where a.job_id = j.id and a.at <= j.scheduled_at)
      then 'scheduled' else 'waiting' end, null::integer
  from job j
  union all
  select j.id, j.scheduled_at, 1, 'waiting', null
  from job j
  where j.scheduled_at > j.created_at
    and (j.started_at is null or j.scheduled_at <= j.started_at or j.status = 'todo')
  union all
  select r.job_id, r.started_at, 2, 'running', r.attempt from run r
  union all
  select r.job_id, r.finished_at, 3, case
      when r.retry_at is not null and r.retry_at > r.finished_at then 'scheduled'
      when r.retry_at is not null or r.outcome in ('released', 'snoozed') then 'waiting'
      when r.outcome in ('failed', 'crashed', 'unreadable') then 'failed'
      when r.outcome = 'cancelled' then 'aborted'
      when r.outcome = 'succeeded' then 'succeeded'
      else 'cancelled'
    end, r.attempt
  from run r
  union all
  select r.job_id, r.retry_at, 1, 'waiting', null from run r where r.retry_at > r.finished_at
  union all
  select j.id, j.started_at, 2, 'running', case when j.status = 'doing' then j.attempts + 1 else j.attempts end
  from job j
  where j.started_at is not null
    and not exists (select from run r where r.job_id = j.id and r.started_at = j.started_at)
  union all
  select j.id, j.finished_at, 5, j.status::text, j.attempts from job j where j.finished_at is not null
  union all
  select a.job_id, a.at, 4, case when a.action = 'cancelled' then 'cancelled' else 'waiting' end, null
  from act a
  where a.action in ('cancelled', 'retried', 'redriven')
$$;
comment on function procjobs.job_transitions(bigint, text, text, timestamptz) is
  'The steps of jobs from state to state, as far as the kept facts tell: of one job, a queue, a task, or all.';

create or replace function procjobs.jobs_as_of(at timestamptz, queue text default null, task text default null)
returns table (id bigint, state text, since timestamptz, run integer)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select distinct on (t.job_id) t.job_id, t.state, t.at, t.run
  from procjobs.job_transitions(null, jobs_as_of.queue, jobs_as_of.task, jobs_as_of.at) t
  where t.at <= jobs_as_of.at
  order by t.job_id, t.at desc, t.rank desc
$$;
comment on function procjobs.jobs_as_of(timestamptz, text, text) is
  'Where each job was at a moment: waiting, scheduled (not due), running, succeeded, failed, cancelled, aborted; since when, and which run. '
  'From the times of the job and its runs, and what people did. It cannot know: jobs forgotten since (see procjobs.retention); '
  'what else kept a waiting job (a lock, a limit, a pause, no worker); times, queue and task that were changed later (the present ones count); '
  'runs that were given back before they began. It reads all jobs of the queue or task: for looking into things, not for dashboards.';
