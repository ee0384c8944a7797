-- Time travel: where jobs were at a moment in the past, from the facts that are kept.
-- Owns:        nothing; reads the views, with the caller's own rights.
-- Lock order:  none.

drop function if exists procjobs.job_transitions(bigint, text, text, timestamptz);
create or replace function procjobs.job_transitions(p_job_id bigint, p_queue text, p_task text, p_until timestamptz)
returns table (job_id bigint, at timestamptz, rank integer, state text, run integer, waits boolean, due timestamptz)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with job as materialized (
    select j.id, j.status, j.created_at, j.scheduled_at, j.started_at, j.finished_at, j.attempts
    from procjobs.jobs j
    where j.created_at <= p_until
      and (p_job_id is null or j.id = p_job_id)
      and (p_queue is null or j.queue = p_queue or j.id in (
        select a.job_id from procjobs.actions a where a.action = 'edited' and a.detail -> 'before' ->> 'queue_name' = p_queue))
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
    where a.action in ('cancelled', 'retried', 'redriven')
  ),
  edit as materialized (
    select
      a.job_id, a.at, (a.detail -> 'before' ->> 'scheduled_at')::timestamptz as was,
      (a.detail -> 'after' ->> 'scheduled_at')::timestamptz as due
    from procjobs.actions a
    join job j on j.id = a.job_id
    where a.action = 'edited'
      and a.detail -> 'after' ? 'scheduled_at'
  ),
  first_edit as (
    select distinct on (e.job_id) e.job_id, e.at, e.was from edit e order by e.job_id, e.at
  ),
  again as (
    select g.job_id, min(g.at) as at
    from (
      select r.job_id, r.finished_at from run r
      union all
      select a.job_id, a.at from act a
    ) g(job_id, at)
    group by g.job_id
  ),
  -- The moments a job was to wait for, and since when: from its birth (rank 0), after a run (3), as it was edited (4).
  wait as materialized (
    -- The first: what the first edit found, else the present one, unless that is of a later wait.
    select j.id as job_id, 0 as rank, j.created_at as since, case
        when f.at <= coalesce(g.at, 'infinity') then f.was
        when g.at is null or g.at > j.scheduled_at then j.scheduled_at
      end as due
    from job j
    left join first_edit f on f.job_id = j.id
    left join again g on g.job_id = j.id
    union all
    select r.job_id, 3, r.finished_at, r.retry_at from run r where r.retry_at > r.finished_at
    union all
    select e.job_id, 4, e.at, e.due from edit e
  )
  -- Each wait for a moment: until then, or until it was edited to another.
  select w.job_id, w.since, w.rank, case when w.due > w.since then 'scheduled' else 'waiting' end, null::integer, true, w.due
  from wait w
  where w.rank in (0, 4)
  union all
  select w.job_id, w.due, 1, 'waiting', null, false, null
  from wait w
  join job j on j.id = w.job_id
  where w.due > w.since
    and not exists (select from edit e where e.job_id = w.job_id and e.at > w.since and e.at < w.due)
    and (w.rank <> 0 or j.started_at is null or w.due <= j.started_at or j.status = 'todo')
  union all
  select r.job_id, r.started_at, 2, 'running', r.attempt, false, null from run r
  union all
  select r.job_id, r.finished_at, 3, case
      when r.retry_at is not null and r.retry_at > r.finished_at then 'scheduled'
      when r.retry_at is not null or r.outcome in ('released', 'snoozed') then 'waiting'
      when r.outcome in ('failed', 'crashed', 'unreadable') then 'failed'
      when r.outcome = 'cancelled' then 'aborted'
      when r.outcome = 'succeeded' then 'succeeded'
      else 'cancelled'
    end, r.attempt, coalesce(r.retry_at > r.finished_at, false), r.retry_at
  from run r
  union all
  select j.id, j.started_at, 2, 'running', case when j.status = 'doing' then j.attempts + 1 else j.attempts end, false, null
  from job j
  where j.started_at is not null
    and not exists (select from run r where r.job_id = j.id and r.started_at = j.started_at)
  union all
  select j.id, j.finished_at, 5, j.status::text, j.attempts, false, null from job j where j.finished_at is not null
  union all
  select a.job_id, a.at, 4, case when a.action = 'cancelled' then 'cancelled' else 'waiting' end, null, false, null
  from act a
$$;
comment on function procjobs.job_transitions(bigint, text, text, timestamptz) is
  'The steps of jobs from state to state, as far as the kept facts tell: of one job, a queue (or what was in it before an edit), a task, or all. '
  'waits: since then it waits for the moment due, if there is one.';

drop function if exists procjobs.job_waits(bigint, timestamptz, timestamptz);
drop function if exists procjobs.job_values(bigint, timestamptz);
create or replace function procjobs.values_before_edits(p_at timestamptz)
returns table (job_id bigint, was jsonb)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Of each value that was edited since, what the first such edit found. One that is not in `before` was null.
  select v.job_id, jsonb_object_agg(v.name, v.was)
  from (
    select distinct on (a.job_id, n.name)
      a.job_id, n.name, case n.name when 'args' then a.detail -> 'args_before' else a.detail -> 'before' -> n.name end as was
    from procjobs.actions a
    cross join lateral (
      select jsonb_object_keys(a.detail -> 'before')
      union
      select jsonb_object_keys(a.detail -> 'after')
      union
      select 'args' where a.detail ? 'args_after'
    ) n(name)
    where a.action = 'edited'
      and a.at > p_at
    order by a.job_id, n.name, a.at, a.id
  ) v
  group by v.job_id
$$;
comment on function procjobs.values_before_edits(timestamptz) is
  'What jobs were that were edited after a moment, by the names of edits: {"priority": 0, "queue_name": "mail"}. Arguments only for procjobs_admin.';

create or replace function procjobs.kept_since(p_queue text, p_task text)
returns timestamptz
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select max(case
    when r.max_age >= interval '1 day' then date_trunc('day', (procjobs.clock() - r.max_age) at time zone 'UTC') at time zone 'UTC'
    else procjobs.clock() - r.max_age
  end)
  from procjobs.retention r
  where r.id = (
    select o.id
    from procjobs.retention o
    where (o.task is null or o.task = p_task)
      and (o.queue is null or o.queue = p_queue)
    order by o.task is null, o.queue is null
    limit 1
  )
$$;
comment on function procjobs.kept_since(text, text) is
  'Jobs of a queue or task (null: of those without a policy of their own) that ended before this moment may be forgotten, by procjobs.retention. Null: none by age.';

drop function if exists procjobs.jobs_as_of(timestamptz, text, text);
create or replace function procjobs.jobs_as_of(at timestamptz, queue text default null, task text default null)
returns table (
  id bigint, state text, since timestamptz, run integer, queue_name text, task_name text, priority integer, lock text, tags text[],
  scheduled_at timestamptz, args jsonb
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_kept timestamptz := procjobs.kept_since(jobs_as_of.queue, jobs_as_of.task);
begin
  if jobs_as_of.at < v_kept then
    raise exception 'where jobs were at % is not known any more', procjobs.say_time(jobs_as_of.at)
      using errcode = 'PJ009',
            detail = format('jobs that ended before %s are not kept', procjobs.say_time(v_kept)),
            hint = 'Ask for a later moment; procjobs.retention says how long jobs are kept, procjobs.set_retention changes it.';
  end if;

  return query
  with step as materialized (
    select t.*
    from procjobs.job_transitions(null, jobs_as_of.queue, jobs_as_of.task, jobs_as_of.at) t
    where t.at <= jobs_as_of.at
  ),
  last as (
    select distinct on (t.job_id) t.job_id, t.state, t.at, t.run
    from step t
    order by t.job_id, t.at desc, t.rank desc
  ),
  wait as (
    select distinct on (t.job_id) t.job_id, t.due
    from step t
    where t.waits
    order by t.job_id, t.at desc, t.rank desc
  )
  select l.job_id, l.state, l.at, l.run, f.queue_name, j.task,
    case when e.was ? 'priority' then (e.was ->> 'priority')::integer else j.priority end,
    case when e.was ? 'lock' then e.was ->> 'lock' else j.lock end,
    case when e.was ? 'tags' then (select array_agg(t) from jsonb_array_elements_text(nullif(e.was -> 'tags', 'null')) t) else j.tags end,
    w.due,
    case when e.was ? 'args' then e.was -> 'args' else j.args end
  from last l
  join procjobs.jobs j on j.id = l.job_id
  left join wait w on w.job_id = l.job_id
  left join procjobs.values_before_edits(jobs_as_of.at) e on e.job_id = l.job_id
  cross join lateral (select case when e.was ? 'queue_name' then e.was ->> 'queue_name' else j.queue end as queue_name) f
  where jobs_as_of.queue is null
     or f.queue_name = jobs_as_of.queue;
end
$$;
comment on function procjobs.jobs_as_of(timestamptz, text, text) is
  'Each job as it was at a moment: waiting, scheduled (not due), running, succeeded, failed, cancelled, aborted; since when, and which run; queue, priority, lock, tags, due time '
  'and arguments (only for procjobs_admin) as they were before edits since. '
  'From the times of the job and its runs, and what people did. A moment before what procjobs.retention keeps of the queue or task: PJ009. It cannot know: what else kept a waiting '
  'job (a lock, a limit, a pause, no worker); changes that debounce or an update by hand made; jobs of tasks that are kept for less long than the others; '
  'runs that were given back before they began. It reads all jobs of the queue or task: for looking into things, not for dashboards.';

create or replace function procjobs.list_jobs_as_of(
  p_at timestamptz, p_state text default null, p_queue text default null, p_task text default null, p_tag text default null,
  p_max_rows integer default 50, p_before_id bigint default null
)
returns table (
  id bigint, state text, since timestamptz, run integer, queue text, task text, priority integer, lock text, tags text[],
  scheduled_at timestamptz, args jsonb
)
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_state not in ('waiting', 'scheduled', 'running', 'succeeded', 'failed', 'cancelled', 'aborted') then
    raise exception 'whether jobs were % at some time is not known', quote_literal(p_state)
      using errcode = 'PJ009',
            detail = 'it is not one of the states of procjobs.jobs_as_of',
            hint = 'One of waiting, scheduled, running, succeeded, failed, cancelled, aborted.';
  end if;
  return query
  select j.*
  from procjobs.jobs_as_of(p_at, p_queue, p_task) j
  where (p_state is null or j.state = p_state)
    and (p_tag is null or j.tags @> array[p_tag])
    and (p_before_id is null or j.id < p_before_id)
  order by j.id desc
  limit greatest(p_max_rows, 0);
end
$$;
comment on function procjobs.list_jobs_as_of(timestamptz, text, text, text, text, integer, bigint) is
  'procjobs.jobs_as_of, newest job first: of a state, queue, task, tag; p_before_id goes on where a page ended. A moment before what is kept: PJ009.';
