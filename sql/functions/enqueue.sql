-- Enqueueing: the inserts behind defer_many and the Python client, of jobs whose arguments were checked against the task.
-- What no job may be is refused here all the same: whoever may enqueue may call these by hand. Most jobs pass at a glance.
-- Owns:        inserts into procrastinate_jobs.
-- Lock order:  batches by id (shared), unique_keys in the order of the keys, then new rows, in the order of their keys, not of
--              the jobs, so that two callers with the same keys do not deadlock; a unique index may wait for another
--              transaction's equal key.

create or replace function procjobs.within_limits(p_task text, p_args jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_fault(procjobs.limit_fault(p_task, p_args));
  return p_args;
end
$$;
comment on function procjobs.within_limits(text, jsonb) is
  'The arguments, if they are within the limits of all tasks, else the error. Asked only of arguments that are not small at first glance.';

create or replace function procjobs.is_small(p_args jsonb)
returns boolean
language sql
stable
as $$
  select jsonb_typeof(p_args) = 'object' and pg_column_size(p_args) <= 500 and octet_length(p_args::text) <= 1000
$$;
comment on function procjobs.is_small(jsonb) is
  'Whether arguments are within all limits at first glance. Without a SET clause, and stable like pg_column_size, so that the planner can inline it.';

create or replace function procjobs.enqueue_jobs(
  p_tasks text[],
  p_queues text[],
  p_priorities integer[],
  p_locks text[],
  p_queueing_locks text[],
  p_args text[],
  p_scheduled_at timestamptz[]
)
returns setof bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_fault(procjobs.option_fault(o.queue, o.scheduled_at, '{}', null, null))
  from unnest(p_queues, p_scheduled_at) as o(queue, scheduled_at)
  where o.queue = '' or o.scheduled_at is not null;

  if procjobs.tasks_with_rules(p_tasks) then
    return query
    select i.id
    from procjobs.insert_jobs((
      select jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
        'task', a.task, 'queue', case when a.queue = t.queue then coalesce(s.queue, a.queue) else a.queue end,
        'priority', case when a.priority = t.priority then coalesce(s.priority, a.priority) else a.priority end,
        'lock', a.lock, 'queueing_lock', a.queueing_lock, 'scheduled_at', a.scheduled_at))
        || jsonb_build_object('args', procjobs.within_limits(a.task, a.args::jsonb)) order by a.n)
      from unnest(p_tasks, p_queues, p_priorities, p_locks, p_queueing_locks, p_args, p_scheduled_at)
        with ordinality as a(task, queue, priority, lock, queueing_lock, args, scheduled_at, n)
      left join procjobs.tasks t on t.name = a.task
      left join procjobs.task_settings s on s.task = a.task
    )) i;
    return;
  end if;

  -- Not as a SET clause: only a superuser may write one for a parameter that is not PostgreSQL's own.
  perform set_config('procjobs.args_checked', 'on', true);
  return query
  insert into public.procrastinate_jobs (task_name, queue_name, priority, lock, queueing_lock, args, scheduled_at)
  select
    i.task, i.queue, i.priority, i.lock, i.queueing_lock,
    case when procjobs.is_small(a) then a else procjobs.within_limits(i.task, a) end,
    i.scheduled_at
  from unnest(p_tasks, p_queues, p_priorities, p_locks, p_queueing_locks, p_args, p_scheduled_at)
    with ordinality as i(task, queue, priority, lock, queueing_lock, args, scheduled_at, n)
  cross join lateral (select i.args::jsonb as a offset 0) j
  order by i.n
  returning id;
  perform set_config('procjobs.args_checked', '', true);
end
$$;
comment on function procjobs.enqueue_jobs(text[], text[], integer[], text[], text[], text[], timestamptz[]) is
  'Inserts jobs of any tasks, one an array element, and returns their ids in order. The Python client calls it and has checked the arguments; '
  'by hand use procjobs.defer. Definer: the producer role has no rights on tables.';

create or replace function procjobs.enqueue(
  p_task text,
  p_queue text,
  p_priority integer,
  p_lock text,
  p_queueing_lock text,
  p_scheduled_at timestamptz,
  p_args text,
  p_options jsonb default null,
  out ids bigint[],
  out duplicates integer[]
)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_queue text;
  v_priority integer;
  v_unique boolean;
  v_args jsonb := p_args;
  v_arg jsonb;
  v_id bigint;
begin
  -- What the task's code says may be set otherwise; what this job says itself goes before.
  select case when t.queue = p_queue then s.queue end, case when t.priority = p_priority then s.priority end, t.uniqueness is not null
  into v_queue, v_priority, v_unique
  from procjobs.tasks t
  left join procjobs.task_settings s on s.task = t.name
  where t.name = p_task;
  v_queue := coalesce(v_queue, p_queue);
  v_priority := coalesce(v_priority, p_priority);
  if v_queue = '' or p_scheduled_at is not null then
    perform procjobs.raise_fault(procjobs.option_fault(v_queue, p_scheduled_at, '{}', null, null));
  end if;

  if p_options is not null or v_unique then
    perform procjobs.raise_fault(procjobs.enqueue_option_fault(p_options, coalesce(v_unique, false)));
    select array_agg(i.id order by i.ordinal), array_agg(i.ordinal order by i.ordinal) filter (where i.duplicate)
    into ids, duplicates
    from procjobs.insert_jobs((
      select jsonb_agg(o.same || jsonb_build_object('args', procjobs.within_limits(p_task, a.args)) order by a.n)
      from jsonb_array_elements(v_args) with ordinality as a(args, n)
      cross join (
        select coalesce(p_options, '{}') || jsonb_strip_nulls(jsonb_build_object(
          'task', p_task, 'queue', v_queue, 'priority', v_priority, 'lock', p_lock, 'queueing_lock', p_queueing_lock,
          'scheduled_at', p_scheduled_at)) as same
      ) o
    )) i;
    return;
  end if;

  -- Asked, not performed, which would start an executor for it; and one job without what only many need.
  if set_config('procjobs.args_checked', 'on', true) is null then null; end if;
  if jsonb_array_length(v_args) = 1 then
    v_arg := v_args -> 0;
    if not procjobs.is_small(v_arg) then
      v_arg := procjobs.within_limits(p_task, v_arg);
    end if;
    insert into public.procrastinate_jobs (task_name, queue_name, priority, lock, queueing_lock, args, scheduled_at)
    values (p_task, v_queue, v_priority, p_lock, p_queueing_lock, v_arg, p_scheduled_at)
    returning id into v_id;
    ids := array[v_id];
    if set_config('procjobs.args_checked', '', true) is null then null; end if;
    return;
  end if;

  with new as (
    insert into public.procrastinate_jobs (task_name, queue_name, priority, lock, queueing_lock, args, scheduled_at)
    select
      p_task, v_queue, v_priority, p_lock, p_queueing_lock,
      case when procjobs.is_small(a) then a else procjobs.within_limits(p_task, a) end,
      p_scheduled_at
    from jsonb_array_elements(v_args) a
    returning id
  )
  select array_agg(n.id) into ids
  from new n;
  if set_config('procjobs.args_checked', '', true) is null then null; end if;
end
$$;
comment on function procjobs.enqueue(text, text, integer, text, text, timestamptz, text, jsonb) is
  'Inserts jobs of one task, one for each element of a JSON array of arguments: their ids in order, and the ordinals of those that were there already. '
  'p_options: what few jobs have, by the names of defer''s arguments. The Python client calls it and has checked the arguments; by hand use procjobs.defer. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.tasks_with_rules(p_tasks text[])
returns boolean
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select exists (select from procjobs.tasks t where t.name = any (p_tasks) and t.uniqueness is not null)
    or exists (
      select
      from procjobs.task_settings s
      where s.task = any (p_tasks)
        and (s.queue is not null or s.priority is not null)
    )
$$;
comment on function procjobs.tasks_with_rules(text[]) is
  'Whether jobs of these tasks may be duplicates by the task''s own rule, or go elsewhere than the task''s code says.';

create or replace function procjobs.enqueue_option_fault(p_options jsonb, p_derived boolean)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    procjobs.option_fault(
      'q', null, array[p_options ->> 'unique_key'], (p_options ->> 'max_attempts')::integer,
      case when jsonb_typeof(p_options -> 'tags') = 'array' then array(select jsonb_array_elements_text(p_options -> 'tags')) end),
    procjobs.more_option_fault(
      p_options ->> 'unique_key', procjobs.read_interval(p_options ->> 'unique_for'), p_options ->> 'unique_while',
      p_options ->> 'tenant', procjobs.read_interval(p_options ->> 'timeout'), p_derived))
$$;
comment on function procjobs.enqueue_option_fault(jsonb, boolean) is
  'What is wrong with options that the Python client passes, as a value for raise_fault; null if nothing is.';

create or replace function procjobs.insert_deferrals(p_jobs jsonb, p_ids bigint[], p_pending integer[])
returns integer[]
language sql
set search_path = pg_catalog, pg_temp
as $$
  with job as (
    select
      p_ids[i.ordinal] as id, i.ordinal, i.job ->> 'task' as name, coalesce(i.job ->> 'queue', s.queue, t.queue, 'default') as queue,
      coalesce((i.job ->> 'priority')::numeric::integer, s.priority, t.priority, 0) as priority, coalesce(i.job -> 'args', '{}') as args,
      (i.job ->> 'scheduled_at')::timestamptz as scheduled_at, i.job ->> 'lock' as lock,
      i.job ->> 'queueing_lock' as queueing_lock, i.job ->> 'unique_key' as key,
      i.job ->> 'unique_while' is not distinct from 'waiting' as while_waiting,
      (i.job ->> 'max_attempts')::numeric::integer as max_attempts, i.job ->> 'tenant' as tenant,
      procjobs.read_interval(i.job ->> 'timeout') as timeout, (i.job ->> 'batch_id')::numeric::bigint as batch,
      case when jsonb_typeof(i.job -> 'tags') = 'array' then array(select jsonb_array_elements_text(i.job -> 'tags')) end as tags
    from jsonb_array_elements(p_jobs) with ordinality as i (job, ordinal)
    left join procjobs.tasks t on t.name = i.job ->> 'task'
    left join procjobs.task_settings s on s.task = i.job ->> 'task'
    where p_pending is null or i.ordinal = any (p_pending)
  ),
  inserted as (
    insert into public.procrastinate_jobs (
      id, task_name, queue_name, priority, args, scheduled_at, lock, queueing_lock, pj_unique_key, pj_waiting_key,
      pj_max_attempts, pj_tags, pj_tenant, pj_timeout, pj_batch
    )
    select
      j.id, j.name, j.queue, j.priority, j.args, j.scheduled_at, j.lock, j.queueing_lock,
      case when not j.while_waiting then j.key end, case when j.while_waiting then j.key end,
      j.max_attempts, j.tags, j.tenant, j.timeout, j.batch
    from job j
    order by j.key, j.queueing_lock, j.id
    on conflict do nothing
    returning id
  )
  select array_agg(j.ordinal::integer order by j.ordinal)
  from job j
  where not exists (select from inserted i where i.id = j.id)
$$;
comment on function procjobs.insert_deferrals(jsonb, bigint[], integer[]) is
  'Inserts elements of an array of jobs (those whose ordinals are pending; null: all) under the ids given for them. Returns the ordinals whose keys another job has.';

create or replace function procjobs.hold_keys(p_jobs jsonb, p_ids bigint[])
returns bigint[]
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_holder bigint[] := '{}'::bigint[];
  v_job record;
  v_key text;
  v_first integer;
begin
  for v_job in
    select i.ordinal::integer as at, i.job ->> 'unique_key' as key, procjobs.read_interval(i.job ->> 'unique_for') as span,
           i.job ->> 'unique_while' is not distinct from 'retained' as retained
    from jsonb_array_elements(p_jobs) with ordinality as i (job, ordinal)
    where i.job ->> 'unique_key' is not null
      and (i.job ->> 'unique_for' is not null or i.job ->> 'unique_while' = 'retained')
    order by 2, 1
  loop
    if v_job.key = v_key then
      v_holder[v_job.at] := v_holder[v_first];
    else
      v_holder[v_job.at] := procjobs.hold_key(v_job.key, p_ids[v_job.at], v_job.span, v_job.retained);
      v_key := v_job.key;
      v_first := v_job.at;
    end if;
  end loop;
  return v_holder;
end
$$;
comment on function procjobs.hold_keys(jsonb, bigint[]) is
  'hold_key for those jobs of an array whose keys outlive them, in the order of the keys: by ordinal, the job that each key stands for.';

create or replace function procjobs.apply_task_rules(p_jobs jsonb)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_agg(
    case when t.uniqueness is not null and i.job ->> 'unique_key' is null
      then procjobs.uniqueness_options(t.name, t.uniqueness, coalesce(i.job -> 'args', '{}')) || jsonb_strip_nulls(i.job - 'args')
        || jsonb_build_object('args', coalesce(i.job -> 'args', '{}'))
      else i.job
    end order by i.ordinal)
  from jsonb_array_elements(p_jobs) with ordinality as i (job, ordinal)
  left join procjobs.tasks t on t.name = i.job ->> 'task'
$$;
comment on function procjobs.apply_task_rules(jsonb) is
  'An array of jobs with the unique keys that their tasks'' own rules give them. What a job says itself goes before.';

create or replace function procjobs.insert_jobs(p_jobs jsonb)
returns table (ordinal integer, id bigint, duplicate boolean)
language plpgsql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
declare
  v_jobs jsonb := p_jobs;
  v_count integer := jsonb_array_length(p_jobs);
  v_ids bigint[];
  v_holder bigint[];
  v_pending integer[];
  v_at integer;
  v_other bigint;
  v_sequence regclass := pg_get_serial_sequence('public.procrastinate_jobs', 'id');
begin
  perform procjobs.join_batches(p_jobs);
  if procjobs.tasks_with_rules(array(select distinct e ->> 'task' from jsonb_array_elements(p_jobs) e)) then
    v_jobs := procjobs.apply_task_rules(p_jobs);
  end if;
  v_ids := array(select nextval(v_sequence) from generate_series(1, v_count));
  v_holder := procjobs.hold_keys(v_jobs, v_ids);
  if v_holder <> '{}' then
    v_pending := array(select n from generate_series(1, v_count) n where coalesce(v_holder[n] = v_ids[n], true));
  end if;

  perform set_config('procjobs.args_checked', 'on', true);
  while v_pending is distinct from '{}' loop
    v_pending := procjobs.insert_deferrals(v_jobs, v_ids, v_pending);
    exit when v_pending is null;
    foreach v_at in array v_pending loop
      v_other := procjobs.job_of_key(v_jobs -> v_at - 1 ->> 'unique_key', v_jobs -> v_at - 1 ->> 'unique_while');
      if v_other is not null then
        update procjobs.unique_keys k set job_id = v_other where k.job_id = v_ids[v_at] and k.key = v_jobs -> v_at - 1 ->> 'unique_key';
        v_holder := array_replace(v_holder, v_ids[v_at], v_other);
        v_holder[v_at] := v_other;
        v_pending := array_remove(v_pending, v_at);
      else
        perform procjobs.raise_fault(procjobs.fault_of_element(
          procjobs.waiting_job_fault(v_jobs -> v_at - 1 ->> 'queueing_lock'), case when v_count > 1 then v_at end));
      end if;
    end loop;
  end loop;
  perform set_config('procjobs.args_checked', '', true);

  return query
  select n, coalesce(v_holder[n], v_ids[n]), coalesce(v_holder[n] <> v_ids[n], false)
  from generate_series(1, v_count) n;
end
$$;
comment on function procjobs.insert_jobs(jsonb) is
  'Inserts an array of checked jobs as defer_many takes them. One row an element, in order: its number from 1, the job''s id, and whether that job was there already.';
