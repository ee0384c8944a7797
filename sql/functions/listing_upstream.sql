-- Listing as Procrastinate's job manager and shell do it.
-- Owns:        nothing; reads views and the job table, with the caller's own rights.
-- Lock order:  none.

create or replace function procjobs.count_jobs(
  p_by text,
  p_queue text default null,
  p_task text default null,
  p_status text default null,
  p_lock text default null
)
returns table (name text, jobs_count bigint, stats json)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select c.name, sum(c.jobs_count)::bigint, json_object_agg(c.status, c.jobs_count)
  from (
    select case p_by when 'queue' then j.queue_name when 'task' then j.task_name when 'lock' then j.lock end as name,
      j.status, count(*) as jobs_count
    from procjobs.all_jobs j
    where (p_queue is null or j.queue_name = p_queue)
      and (p_task is null or j.task_name = p_task)
      and (p_status is null or j.status::text = p_status)
      and (p_lock is null or j.lock = p_lock)
    group by 1, 2
  ) c
  where c.name is not null
  group by c.name
  order by c.name
$$;
comment on function procjobs.count_jobs(text, text, text, text, text) is
  'Jobs in each status, by queue, task or lock (p_by), those in the history too: select * from procjobs.count_jobs(''queue'').';

create or replace function procjobs.long_running_jobs(p_seconds double precision, p_queue text default null, p_task text default null)
returns table (
  id bigint, status public.procrastinate_job_status, task_name varchar, priority integer, lock text, queueing_lock text, args jsonb,
  scheduled_at timestamptz, queue_name varchar, attempts integer, worker_id bigint, started_at timestamptz
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select j.id, j.status, j.task_name, j.priority, j.lock, j.queueing_lock, j.args,
    j.scheduled_at, j.queue_name, j.attempts, j.worker_id, j.pj_started_at
  from public.procrastinate_jobs j
  where j.status = 'doing'
    and j.pj_started_at < procjobs.clock() - make_interval(secs => p_seconds)
    and (p_queue is null or j.queue_name = p_queue)
    and (p_task is null or j.task_name = p_task)
  order by j.id
$$;
comment on function procjobs.long_running_jobs(double precision, text, text) is
  'Jobs whose run began more than p_seconds ago, whether their worker lives or not: what get_stalled_jobs(nb_seconds=...) of Procrastinate asks for.';
