-- Listing: jobs, one job in full, queues, workers.
-- Owns:        nothing; reads the views, with the caller's own rights.
-- Lock order:  none.

create or replace function procjobs.job_timeline(job_id bigint)
returns table (at timestamptz, event text, detail text)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with job as (
    select * from procjobs.jobs j where j.id = job_timeline.job_id
  ),
  run as (
    select * from procjobs.attempts a where a.job_id = job_timeline.job_id
  ),
  moment (at, rank, event, detail) as (
    select j.created_at, 0, 'enqueued', concat_ws(', ',
      format('task %s in queue %s', j.task, j.queue), 'priority ' || nullif(j.priority, 0), 'lock ' || j.lock)
    from job j
    union all
    select r.started_at, 2, 'started', concat_ws(' ', 'run', r.attempt, 'on worker', coalesce(r.worker, r.worker_id::text, 'unknown'))
    from run r
    union all
    select r.finished_at, 3, r.outcome, concat_ws('; ',
      nullif(concat_ws(': ', r.error_class, r.error_message), ''), 'again at ' || procjobs.say_time(r.retry_at))
    from run r
    union all
    select a.at, 4, a.action, concat_ws(': ', 'by ' || a.actor, a.detail ->> 'reason', 'was ' || (a.detail ->> 'was'), (
      select string_agg(d.key || ' ' || d.value, ', ' order by d.key)
      from jsonb_each_text(case when jsonb_typeof(a.detail) = 'object' then a.detail end) d
      where d.key not in ('reason', 'was')
        and d.value is not null
    ))
    from procjobs.actions a
    where a.job_id = job_timeline.job_id
    union all
    select j.started_at, 2, 'started', concat_ws(' ', 'run', j.attempts + (j.state = 'running')::integer, 'on worker', coalesce(j.worker, j.worker_id::text, 'unknown'))
    from job j
    where j.started_at is not null
      and not exists (select from run r where r.started_at = j.started_at)
    union all
    -- The last run's row says already that, and how, a dead letter failed.
    select j.finished_at, 5, j.status::text, j.note
    from job j
    where j.finished_at is not null
      and not (j.status = 'failed' and exists (select from run r where r.finished_at = j.finished_at))
    union all
    select j.scheduled_at, 1, 'due', null
    from job j
    where j.scheduled_at > j.created_at
      and not exists (select from run r where r.retry_at = j.scheduled_at)
      and not exists (select from procjobs.actions a where a.job_id = j.id and a.at = j.scheduled_at)
  )
  select m.at, m.event, m.detail
  from moment m
  order by m.at, m.rank
$$;
comment on function procjobs.job_timeline(bigint) is
  'What happened to a job, in order: enqueued, due, started, how each run ended, who cancelled or retried it, its end. No rows for an unknown id. '
  'Error texts are shown only to procjobs_admin.';

drop function if exists procjobs.list_jobs(text, text, text, text, integer, bigint);
create or replace function procjobs.list_jobs(
  p_status text default null,
  p_queue text default null,
  p_task text default null,
  p_tag text default null,
  p_max_rows integer default 50,
  p_before_id bigint default null
)
returns table (
  id bigint, queue text, task text, status text, state text, priority integer, lock text, queueing_lock text, unique_key text,
  tags text[], args jsonb, attempts integer, max_attempts integer, crashes integer, scheduled_at timestamptz,
  created_at timestamptz, started_at timestamptz, finished_at timestamptz, worker_id bigint, worker text, note text, error text,
  tenant text, batch bigint, held_by text, timeout interval, progress real, progress_message text, result jsonb
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_condition text := 'true';
begin
  -- Written out, so that the planner sees which of the partial indexes serves.
  if p_status in ('waiting', 'scheduled', 'blocked', 'parked', 'limited', 'paused') then
    v_condition := format('j.status = ''todo'' and j.state = %L', p_status);
  elsif p_status in ('todo', 'doing', 'succeeded', 'failed', 'cancelled', 'aborted') then
    v_condition := format('j.status = %L', p_status);
  elsif p_status = 'running' then
    v_condition := 'j.status = ''doing''';
  elsif p_status is not null then
    raise exception 'jobs have no status %', quote_literal(p_status)
      using errcode = 'PJ009',
            detail = 'it is neither one of Procrastinate''s words nor one of the states of procjobs.jobs',
            hint = 'One of todo, doing, succeeded, failed, cancelled, aborted, waiting, scheduled, blocked, parked, limited, paused, running.';
  end if;

  return query execute format(
    'select j.id, j.queue, j.task, j.status::text, j.state, j.priority, j.lock, j.queueing_lock, j.unique_key, j.tags, j.args,
       j.attempts, j.max_attempts, j.crashes, j.scheduled_at, j.created_at, j.started_at, j.finished_at, j.worker_id, j.worker, j.note, j.error,
       j.tenant, j.batch, j.held_by, j.timeout, j.progress, j.progress_message, j.result
     from procjobs.jobs j
     where %s %s %s %s %s
     order by j.id desc
     limit greatest($5, 0)',
    v_condition,
    case when p_queue is not null then 'and j.queue = $1' end,
    case when p_task is not null then 'and j.task = $2' end,
    case when p_tag is not null then 'and j.tags @> array[$3]' end,
    case when p_before_id is not null then 'and j.id < $4' end
  ) using p_queue, p_task, p_tag, p_before_id, p_max_rows;
end
$$;
comment on function procjobs.list_jobs(text, text, text, text, integer, bigint) is
  'Jobs, newest first: of a status or state, queue, task, tag; p_before_id goes on where a page ended. Columns as in procjobs.jobs.';

create or replace function procjobs.job_report(p_job_id bigint)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_report jsonb;
begin
  select to_jsonb(j) || jsonb_build_object(
    'why_not_running', procjobs.why_not_running(j.id),
    'runs', coalesce((select jsonb_agg(to_jsonb(a) order by a.id) from procjobs.attempts a where a.job_id = j.id), '[]'),
    'timeline', coalesce((select jsonb_agg(to_jsonb(t)) from procjobs.job_timeline(j.id) t), '[]'))
  into v_report
  from procjobs.jobs j
  where j.id = p_job_id;
  if not found then
    perform procjobs.raise_job_not_found(p_job_id);
  end if;
  return v_report;
end
$$;
comment on function procjobs.job_report(bigint) is
  'All there is to say about one job: its row of procjobs.jobs, and why_not_running, runs (rows of procjobs.attempts), timeline. Unknown id: PJ007.';

create or replace function procjobs.list_queues()
returns table (
  name text, waiting bigint, scheduled bigint, blocked bigint, parked bigint, running bigint, failed bigint,
  oldest_wait interval, workers integer, paused_at timestamptz, paused_by text, pause_reason text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.queues q order by q.name
$$;
comment on function procjobs.list_queues() is 'procjobs.queues by name.';

create or replace function procjobs.list_workers()
returns table (
  id bigint, name text, host text, pid integer, version text, state text, queues text[], tasks text[], concurrency integer,
  running integer, started_at timestamptz, last_heartbeat timestamptz, heartbeat_every interval, lease interval, ended_at timestamptz
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.workers w order by w.ended_at is not null, w.id desc
$$;
comment on function procjobs.list_workers() is 'procjobs.workers: those that are there, newest first, then those that left.';

drop function if exists procjobs.list_limits();
create or replace function procjobs.list_limits()
returns table (
  name text, task text, queue text, key text, max_running integer, running integer, rate integer, per interval, started integer,
  resets_at timestamptz, waiting integer, on_excess text, set_at timestamptz, set_by text, rate_counts text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.limit_use u order by u.name, u.waiting desc nulls last, u.key
$$;
comment on function procjobs.list_limits() is 'procjobs.limit_use by name, the keys for which most jobs wait first.';

create or replace function procjobs.list_batches(p_max_rows integer default 50)
returns table (
  id bigint, name text, state text, total bigint, waiting bigint, running bigint, succeeded bigint, failed bigint, cancelled bigint,
  progress numeric, created_at timestamptz, created_by text, sealed_at timestamptz, finished_at timestamptz, callback_ids bigint[],
  problem text
)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select * from procjobs.batches b order by b.id desc limit p_max_rows
$$;
comment on function procjobs.list_batches(integer) is 'procjobs.batches, newest first.';
