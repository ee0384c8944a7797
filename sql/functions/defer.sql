-- Enqueueing from SQL: one job or many, in the caller's transaction.
-- Owns:        inserts into procrastinate_jobs, with the arguments checked here.
-- Lock order:  only new rows; a unique index may wait for another transaction's equal key. defer_many inserts in the order of
--              the keys, not of the jobs, so that two callers with the same keys do not deadlock.

create or replace function procjobs.option_fault(
  p_queue text, p_scheduled_at timestamptz, p_keys text[], p_max_attempts integer, p_tags text[]
)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- Nearly all jobs, without a further look.
  if length(p_queue) between 1 and 128
    and octet_length(array_to_string(p_keys, '')) <= 1000
    and p_scheduled_at is null and p_max_attempts is null and p_tags is null
  then
    return null;
  end if;

  return case
    when coalesce(length(p_queue), 0) not between 1 and 128 then jsonb_build_object(
      'code', 'PJ010', 'message', 'a queue needs a name of 1 to 128 characters',
      'detail', format('the name has %s', coalesce(length(p_queue), 0)),
      'hint', 'Leave queue out to use the task''s own.')
    when p_scheduled_at not between '0001-01-02 00:00+00' and '9999-12-30 00:00+00' then jsonb_build_object(
      'code', 'PJ009', 'message', format('scheduled_at cannot be %s', p_scheduled_at),
      'detail', 'it is outside the years 1 to 9999, which is all that workers can read',
      'hint', 'To hold a job back without a date, pause its queue.')
    when 1000 < any (array(select octet_length(k) from unnest(p_keys) k)) then jsonb_build_object(
      'code', 'PJ009', 'message', 'lock, queueing_lock and unique_key have at most 1000 bytes',
      'detail', format('the longest has %s', (select max(octet_length(k)) from unnest(p_keys) k)),
      'hint', 'Use a hash of it: md5(...).')
    when p_max_attempts < 1 then jsonb_build_object(
      'code', 'PJ009', 'message', format('max_attempts cannot be %s', p_max_attempts),
      'detail', 'it counts all runs, the first included',
      'hint', 'Use 1 for a job that is never retried; leave it out to use the task''s own.')
    when cardinality(p_tags) > 64 or array_position(p_tags, null) > 0
      or 128 < any (array(select length(t) from unnest(p_tags) t))
    then jsonb_build_object(
      'code', 'PJ009', 'message', 'tags are at most 64 words of at most 128 characters, none of them null',
      'detail', format('there are %s', cardinality(p_tags)),
      'hint', 'Tags are for finding jobs; data belongs into the arguments.')
  end;
end
$$;
comment on function procjobs.option_fault(text, timestamptz, text[], integer, text[]) is
  'What is wrong with the options of a job (queue, scheduled_at, keys, max_attempts, tags), as a value for raise_fault; null if nothing is.';

create or replace function procjobs.waiting_job_fault(p_queueing_lock text)
returns jsonb
language sql
volatile
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'code', 'PJ006', 'message', format('a job with the queueing lock %s waits already', quote_literal(p_queueing_lock)),
    'detail', format('job %s of task %s', j.id, j.task_name),
    'hint', 'It will do the work: take this as success, or use unique_key, which returns its id instead of an error.')
  from public.procrastinate_jobs j
  where j.queueing_lock = p_queueing_lock
    and j.status = 'todo'
$$;
comment on function procjobs.waiting_job_fault(text) is
  'The fault PJ006 if a waiting job holds the queueing lock; null if none does. Volatile: it must see what others commit meanwhile.';

create or replace function procjobs.defer(
  task text,
  args jsonb default '{}',
  queue text default null,
  priority integer default null,
  scheduled_at timestamptz default null,
  lock text default null,
  queueing_lock text default null,
  unique_key text default null,
  max_attempts integer default null,
  tags text[] default null
)
returns bigint
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  v_task procjobs.tasks;
  v_queue text;
  v_id bigint;
begin
  select t.* into v_task from procjobs.tasks t where t.name = defer.task;
  if not found then
    perform procjobs.raise_fault(procjobs.unknown_task_fault(defer.task));
  end if;
  v_queue := coalesce(defer.queue, v_task.queue);
  perform procjobs.raise_fault(coalesce(
    procjobs.option_fault(
      v_queue, defer.scheduled_at, array[defer.lock, defer.queueing_lock, defer.unique_key], defer.max_attempts, defer.tags),
    procjobs.argument_fault(defer.task, v_task.args_schema, defer.args)));

  -- Not as a SET clause: only a superuser may write one for a parameter that is not PostgreSQL's own.
  perform set_config('procjobs.args_checked', 'on', true);
  loop
    insert into public.procrastinate_jobs (
      task_name, queue_name, priority, args, scheduled_at, lock, queueing_lock, pj_unique_key, pj_max_attempts, pj_tags
    )
    values (
      defer.task, v_queue, coalesce(defer.priority, v_task.priority), defer.args, defer.scheduled_at, defer.lock,
      defer.queueing_lock, defer.unique_key, defer.max_attempts, defer.tags
    )
    on conflict do nothing
    returning id into v_id;
    exit when found;

    -- Another job has one of the keys. If it ends between the statements, the key is free and we try again.
    select j.id into v_id
    from public.procrastinate_jobs j
    where j.pj_unique_key = defer.unique_key
      and j.status in ('todo', 'doing');
    exit when found;
    perform procjobs.raise_fault(procjobs.waiting_job_fault(defer.queueing_lock));
  end loop;
  perform set_config('procjobs.args_checked', '', true);
  return v_id;
end
$$;
comment on function procjobs.defer(text, jsonb, text, integer, timestamptz, text, text, text, integer, text[]) is
  'Enqueues a job in your transaction and returns its id: select procjobs.defer(''send_mail'', ''{"to": "ann@example.org"}''). '
  'queue, priority and max_attempts (runs in all) default to the task''s; scheduled_at: not before; lock: one running job a lock, in order; '
  'queueing_lock: at most one waiting job, else PJ006; unique_key: at most one waiting or running job, else its id is returned. '
  'Refuses unknown tasks (PJ001) and arguments that do not fit (PJ002 to PJ005). Definer: the producer role has no rights on tables.';

create or replace function procjobs.deferral_schema()
returns jsonb
language sql
immutable
parallel safe
set search_path = pg_catalog, pg_temp
as $$
  select '{
    "type": "object",
    "properties": {
      "task": {"type": "string"},
      "args": {},
      "queue": {"type": ["string", "null"]},
      "priority": {"type": ["integer", "null"], "minimum": -2147483648, "maximum": 2147483647},
      "scheduled_at": {"type": ["string", "null"], "format": "date-time"},
      "lock": {"type": ["string", "null"]},
      "queueing_lock": {"type": ["string", "null"]},
      "unique_key": {"type": ["string", "null"]},
      "max_attempts": {"type": ["integer", "null"], "minimum": 1, "maximum": 2147483647},
      "tags": {"type": ["array", "null"], "items": {"type": "string"}}
    },
    "required": ["task"],
    "additionalProperties": false
  }'::jsonb
$$;
comment on function procjobs.deferral_schema() is 'What an element of defer_many''s array looks like, as JSON Schema.';

create or replace function procjobs.deferral_fault(p_job jsonb)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_problems text[] := procjobs.schema_problems(procjobs.deferral_schema(), p_job);
  v_schema jsonb;
  v_queue text;
begin
  if v_problems <> '{}' then
    return jsonb_build_object(
      'code', 'PJ009', 'message', 'not a job that can be enqueued', 'detail', array_to_string(v_problems, '; '),
      'hint', 'Its keys are the arguments of procjobs.defer: '
        || (select string_agg(k, ', ') from jsonb_object_keys(procjobs.deferral_schema() -> 'properties') k) || '.');
  end if;

  select t.args_schema, t.queue into v_schema, v_queue
  from procjobs.tasks t
  where t.name = p_job ->> 'task';
  if not found then
    return procjobs.unknown_task_fault(p_job ->> 'task');
  end if;
  return coalesce(
    procjobs.option_fault(
      coalesce(p_job ->> 'queue', v_queue), (p_job ->> 'scheduled_at')::timestamptz,
      array[p_job ->> 'lock', p_job ->> 'queueing_lock', p_job ->> 'unique_key'], (p_job ->> 'max_attempts')::integer,
      case when jsonb_typeof(p_job -> 'tags') = 'array' then array(select jsonb_array_elements_text(p_job -> 'tags')) end),
    procjobs.argument_fault(p_job ->> 'task', v_schema, coalesce(p_job -> 'args', '{}')));
end
$$;
comment on function procjobs.deferral_fault(jsonb) is
  'What is wrong with one element of defer_many''s array, as a value for raise_fault; null if nothing is.';

create or replace function procjobs.insert_deferrals(p_jobs jsonb, p_ids bigint[], p_pending integer[])
returns integer[]
language sql
set search_path = pg_catalog, pg_temp
as $$
  with job as (
    select
      p_ids[i.ordinal] as id, i.ordinal, t.name, coalesce(i.job ->> 'queue', t.queue) as queue,
      coalesce((i.job ->> 'priority')::numeric::integer, t.priority) as priority, coalesce(i.job -> 'args', '{}') as args,
      (i.job ->> 'scheduled_at')::timestamptz as scheduled_at, i.job ->> 'lock' as lock,
      i.job ->> 'queueing_lock' as queueing_lock, i.job ->> 'unique_key' as unique_key,
      (i.job ->> 'max_attempts')::numeric::integer as max_attempts,
      case when jsonb_typeof(i.job -> 'tags') = 'array' then array(select jsonb_array_elements_text(i.job -> 'tags')) end as tags
    from jsonb_array_elements(p_jobs) with ordinality as i (job, ordinal)
    join procjobs.tasks t on t.name = i.job ->> 'task'
    where p_pending is null or i.ordinal = any (p_pending)
  ),
  inserted as (
    insert into public.procrastinate_jobs (
      id, task_name, queue_name, priority, args, scheduled_at, lock, queueing_lock, pj_unique_key, pj_max_attempts, pj_tags
    )
    select j.id, j.name, j.queue, j.priority, j.args, j.scheduled_at, j.lock, j.queueing_lock, j.unique_key, j.max_attempts, j.tags
    from job j
    order by j.unique_key, j.queueing_lock, j.id
    on conflict do nothing
    returning id
  )
  select array_agg(j.ordinal::integer order by j.ordinal)
  from job j
  where not exists (select from inserted i where i.id = j.id)
$$;
comment on function procjobs.insert_deferrals(jsonb, bigint[], integer[]) is
  'Inserts elements of defer_many''s array (those whose ordinals are pending; null: all) under the ids given for them. Returns the ordinals whose keys another job has.';

create or replace function procjobs.defer_many(jobs jsonb)
returns table (ordinal integer, id bigint, duplicate boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_ids bigint[];
  v_taken bigint[] := '{}'::bigint[];
  v_pending integer[];
  v_at integer;
  v_other bigint;
  v_sequence regclass := pg_get_serial_sequence('public.procrastinate_jobs', 'id');
  v_fault jsonb;
begin
  if jobs is null or jsonb_typeof(jobs) <> 'array' then
    raise exception 'jobs must be a JSON array, is %', coalesce(jsonb_typeof(jobs), 'null')
      using errcode = 'PJ009',
            detail = 'its elements are the jobs',
            hint = 'Pass [{"task": "...", "args": {...}}, ...].';
  end if;
  select f.n, f.fault into v_at, v_fault
  from (select e.n, procjobs.deferral_fault(e.job) as fault from jsonb_array_elements(jobs) with ordinality as e (job, n)) f
  where f.fault is not null
  limit 1;
  perform procjobs.raise_fault(procjobs.fault_of_element(v_fault, v_at));

  v_ids := array(select nextval(v_sequence) from generate_series(1, jsonb_array_length(jobs)));
  perform set_config('procjobs.args_checked', 'on', true);
  loop
    v_pending := procjobs.insert_deferrals(jobs, v_ids, v_pending);
    exit when v_pending is null;
    foreach v_at in array v_pending loop
      select j.id into v_other
      from public.procrastinate_jobs j
      where j.pj_unique_key = jobs -> v_at - 1 ->> 'unique_key'
        and j.status in ('todo', 'doing');
      if found then
        v_taken[v_at] := v_other;
        v_pending := array_remove(v_pending, v_at);
      else
        perform procjobs.raise_fault(procjobs.fault_of_element(
          procjobs.waiting_job_fault(jobs -> v_at - 1 ->> 'queueing_lock'), v_at));
      end if;
    end loop;
    exit when v_pending = '{}';
  end loop;
  perform set_config('procjobs.args_checked', '', true);

  return query
  select n, coalesce(v_taken[n], v_ids[n]), v_taken[n] is not null
  from generate_series(1, jsonb_array_length(jobs)) n;
end
$$;
comment on function procjobs.defer_many(jsonb) is
  'Enqueues many jobs at once, all or none: an array of objects with the names of defer''s arguments as keys; unknown keys are refused. '
  'Returns one row an element, in order: its number from 1, the job''s id, and whether that job was there already (unique_key). '
  'An error names the element. Definer: the producer role has no rights on tables.';

create or replace function procjobs.fault_of_element(p_fault jsonb, p_ordinal integer)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_fault || jsonb_build_object('message', format('job %s of the array: %s', p_ordinal, p_fault ->> 'message'))
$$;
comment on function procjobs.fault_of_element(jsonb, integer) is 'A fault that says in which element of an array it is; null stays null.';
