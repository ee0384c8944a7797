-- Enqueueing from SQL: one job or many, in the caller's transaction.
-- Owns:        the checks of what SQL enqueues. The inserts are in enqueue.sql, but for the plain case of defer.
-- Lock order:  only new rows; a unique index may wait for another transaction's equal key.

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

create or replace function procjobs.more_option_fault(
  p_unique_key text, p_unique_for interval, p_unique_while text, p_tenant text, p_timeout interval, p_derived boolean
)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_unique_while not in ('waiting', 'unfinished', 'retained') then jsonb_build_object(
      'code', 'PJ009', 'message', format('unique_while cannot be %s', quote_literal(p_unique_while)),
      'detail', 'it says how long a job stands for its key',
      'hint', 'one of waiting (until it runs), unfinished (until it ended; the default), retained (until it is forgotten)')
    when p_unique_for <= interval '0' then jsonb_build_object(
      'code', 'PJ009', 'message', format('unique_for cannot be %s', p_unique_for),
      'detail', 'it is the time after enqueueing for which the key returns the same job',
      'hint', 'Leave it out for a key that is free when the job has ended.')
    when (p_unique_for is not null or p_unique_while is not null) and p_unique_key is null and not p_derived then jsonb_build_object(
      'code', 'PJ009', 'message', 'unique_for and unique_while need a unique_key',
      'detail', 'neither the call nor the task says which jobs are the same',
      'hint', 'Pass unique_key, or declare the task with unique=procjobs.Unique(...).')
    when length(p_tenant) not between 1 and 128 then jsonb_build_object(
      'code', 'PJ009', 'message', 'a tenant has 1 to 128 characters',
      'detail', format('it has %s', length(p_tenant)),
      'hint', 'Use the tenant''s id.')
    when p_timeout <= interval '0' then jsonb_build_object(
      'code', 'PJ009', 'message', format('timeout cannot be %s', p_timeout),
      'detail', 'it is how long one run may take',
      'hint', 'Leave it out to use the task''s own.')
  end
$$;
comment on function procjobs.more_option_fault(text, interval, text, text, interval, boolean) is
  'The same for the options that few jobs have: how long a key holds, tenant, timeout. p_derived: the task itself says which jobs are the same.';

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

drop function if exists procjobs.defer(text, jsonb, text, integer, timestamptz, text, text, text, integer, text[]);
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
  tags text[] default null,
  unique_for interval default null,
  unique_while text default null,
  tenant text default null,
  timeout interval default null,
  batch_id bigint default null
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
  v_priority integer;
  v_lock text;
  v_queueing_lock text;
  v_id bigint;
begin
  select t.* into v_task from procjobs.tasks t where t.name = defer.task;
  if not found then
    perform procjobs.raise_fault(procjobs.unknown_task_fault(defer.task));
  end if;
  select s.queue, s.priority into v_queue, v_priority from procjobs.task_settings s where s.task = defer.task;
  v_queue := coalesce(defer.queue, v_queue, v_task.queue);
  v_priority := coalesce(defer.priority, v_priority, v_task.priority);
  v_lock := coalesce(defer.lock, v_task.lock);
  v_queueing_lock := coalesce(defer.queueing_lock, v_task.queueing_lock);
  perform procjobs.raise_fault(coalesce(
    procjobs.option_fault(
      v_queue, defer.scheduled_at, array[v_lock, v_queueing_lock, defer.unique_key], defer.max_attempts, defer.tags),
    procjobs.argument_fault(defer.task, v_task.args_schema, defer.args)));

  if num_nonnulls(v_task.uniqueness, defer.unique_for, defer.unique_while, defer.tenant, defer.timeout, defer.batch_id) > 0 then
    perform procjobs.raise_fault(procjobs.more_option_fault(
      defer.unique_key, defer.unique_for, defer.unique_while, defer.tenant, defer.timeout, v_task.uniqueness is not null));
    return (
      select i.id
      from procjobs.insert_jobs(jsonb_build_array(jsonb_strip_nulls(jsonb_build_object(
        'task', defer.task, 'queue', v_queue, 'priority', v_priority,
        'scheduled_at', defer.scheduled_at, 'lock', v_lock, 'queueing_lock', v_queueing_lock,
        'unique_key', defer.unique_key, 'unique_for', defer.unique_for, 'unique_while', defer.unique_while,
        'max_attempts', defer.max_attempts, 'tags', defer.tags, 'tenant', defer.tenant, 'timeout', defer.timeout,
        'batch_id', defer.batch_id)) || jsonb_build_object('args', defer.args))) i
    );
  end if;

  -- Nearly all jobs. Not as a SET clause: only a superuser may write one for a parameter that is not PostgreSQL's own.
  perform set_config('procjobs.args_checked', 'on', true);
  loop
    insert into public.procrastinate_jobs (
      task_name, queue_name, priority, args, scheduled_at, lock, queueing_lock, pj_unique_key, pj_max_attempts, pj_tags
    )
    values (
      defer.task, v_queue, v_priority, defer.args, defer.scheduled_at, v_lock,
      v_queueing_lock, defer.unique_key, defer.max_attempts, defer.tags
    )
    on conflict do nothing
    returning id into v_id;
    exit when found;

    -- Another job has one of the keys. If it ends between the statements, the key is free and we try again.
    v_id := procjobs.job_of_key(defer.unique_key, null);
    exit when v_id is not null;
    perform procjobs.raise_fault(procjobs.waiting_job_fault(v_queueing_lock));
  end loop;
  perform set_config('procjobs.args_checked', '', true);
  return v_id;
end
$$;
comment on function procjobs.defer(
  text, jsonb, text, integer, timestamptz, text, text, text, integer, text[], interval, text, text, interval, bigint
) is
  'Enqueues a job in your transaction and returns its id: select procjobs.defer(''send_mail'', ''{"to": "ann@example.org"}''). '
  'queue, priority, lock, queueing_lock and max_attempts (runs in all) default to the task''s; scheduled_at: not before; lock: one running job a lock, in order; '
  'queueing_lock: at most one waiting job, else PJ006; unique_key: at most one waiting or running job, else its id is returned '
  '(unique_while: waiting, unfinished or retained; unique_for: also for that long after it was enqueued). '
  'tenant: whom it is for; timeout: how long a run may take; batch_id: what create_batch returned. '
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
      "tags": {"type": ["array", "null"], "items": {"type": "string"}},
      "unique_for": {"type": ["string", "number", "null"]},
      "unique_while": {"type": ["string", "null"]},
      "tenant": {"type": ["string", "null"]},
      "timeout": {"type": ["string", "number", "null"]},
      "batch_id": {"type": ["integer", "null"], "minimum": 1, "maximum": 9223372036854775807}
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
  v_unique boolean;
  v_name text;
begin
  if v_problems <> '{}' then
    return jsonb_build_object(
      'code', 'PJ009', 'message', 'not a job that can be enqueued', 'detail', array_to_string(v_problems, '; '),
      'hint', 'Its keys are the arguments of procjobs.defer: '
        || (select string_agg(k, ', ') from jsonb_object_keys(procjobs.deferral_schema() -> 'properties') k) || '.');
  end if;

  select t.args_schema, t.queue, t.uniqueness is not null into v_schema, v_queue, v_unique
  from procjobs.tasks t
  where t.name = p_job ->> 'task';
  if not found then
    return procjobs.unknown_task_fault(p_job ->> 'task');
  end if;
  foreach v_name in array '{unique_for,timeout}'::text[] loop
    if p_job ->> v_name is not null and procjobs.read_interval(p_job ->> v_name) is null then
      return jsonb_build_object(
        'code', 'PJ009', 'message', format('%s is not a span of time', v_name), 'detail', p_job ->> v_name,
        'hint', 'Seconds as a number, or a text as in "1 hour".');
    end if;
  end loop;
  return coalesce(
    procjobs.option_fault(
      coalesce(p_job ->> 'queue', v_queue), (p_job ->> 'scheduled_at')::timestamptz,
      array[p_job ->> 'lock', p_job ->> 'queueing_lock', p_job ->> 'unique_key'], (p_job ->> 'max_attempts')::integer,
      case when jsonb_typeof(p_job -> 'tags') = 'array' then array(select jsonb_array_elements_text(p_job -> 'tags')) end),
    procjobs.more_option_fault(
      p_job ->> 'unique_key', procjobs.read_interval(p_job ->> 'unique_for'), p_job ->> 'unique_while', p_job ->> 'tenant',
      procjobs.read_interval(p_job ->> 'timeout'), v_unique),
    procjobs.argument_fault(p_job ->> 'task', v_schema, coalesce(p_job -> 'args', '{}')));
end
$$;
comment on function procjobs.deferral_fault(jsonb) is
  'What is wrong with one element of defer_many''s array, as a value for raise_fault; null if nothing is.';

create or replace function procjobs.defer_many(jobs jsonb)
returns table (ordinal integer, id bigint, duplicate boolean)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_at integer;
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
  return query select i.ordinal, i.id, i.duplicate from procjobs.insert_jobs(procjobs.with_task_locks(jobs)) i;
end
$$;
comment on function procjobs.defer_many(jsonb) is
  'Enqueues many jobs at once, all or none: an array of objects with the names of defer''s arguments as keys; unknown keys are refused. '
  'Returns one row an element, in order: its number from 1, the job''s id, and whether that job was there already (unique_key). '
  'An error names the element. Definer: the producer role has no rights on tables.';

create or replace function procjobs.with_task_locks(p_jobs jsonb)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Few tasks have a lock of their own.
  select case
    when exists (
      select from procjobs.tasks t
      where (t.lock is not null or t.queueing_lock is not null)
        and t.name in (select e ->> 'task' from jsonb_array_elements(p_jobs) e)
    ) then (
      select jsonb_agg(
        jsonb_strip_nulls(jsonb_build_object('lock', t.lock, 'queueing_lock', t.queueing_lock))
        || case when e.job ->> 'lock' is null then e.job - 'lock' else e.job end
          - case when e.job ->> 'queueing_lock' is null then 'queueing_lock' else '' end
        order by e.n)
      from jsonb_array_elements(p_jobs) with ordinality as e (job, n)
      left join procjobs.tasks t on t.name = e.job ->> 'task'
    )
    else p_jobs
  end
$$;
comment on function procjobs.with_task_locks(jsonb) is 'The elements of defer_many''s array, with their tasks'' own locks where they name none.';

create or replace function procjobs.fault_of_element(p_fault jsonb, p_ordinal integer)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select p_fault || jsonb_build_object('message', concat('job ' || p_ordinal || ' of the array: ', p_fault ->> 'message'))
$$;
comment on function procjobs.fault_of_element(jsonb, integer) is 'A fault that says in which element of an array it is; null stays null.';
