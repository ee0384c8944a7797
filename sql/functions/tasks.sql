-- Tasks: what workers say they can run.
-- Owns:        procjobs.tasks.
-- Lock order:  tasks in the order of their names, so that workers that start together do not deadlock.

create or replace function procjobs.register_tasks(p_tasks jsonb, p_by text)
returns integer
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_count integer;
begin
  select t.value ->> 'name' into v_name
  from jsonb_array_elements(p_tasks) t
  where coalesce(t.value ->> 'name', '') = ''
    or length(t.value ->> 'name') > 128
  limit 1;
  if found then
    raise exception 'a task cannot be named %', quote_nullable(v_name)
      using errcode = 'PJ010',
            detail = format('the name has %s characters', coalesce(length(v_name), 0)),
            hint = 'Names have 1 to 128 characters: app.task(name="...").';
  end if;

  select t.name into v_name
  from procjobs.tasks t
  join jsonb_array_elements(p_tasks) e on e.value ->> 'name' = t.name
  where t.routine is not null
  limit 1;
  if found then
    raise exception 'task % is an SQL task of this database', quote_literal(v_name)
      using errcode = 'PJ016',
            detail = 'procjobs.register_sql_task made it, and a worker now brings one of the same name',
            hint = format('Rename one of them, or: select procjobs.drop_sql_task(%L).', v_name);
  end if;

  -- Only what changed is written: a hundred workers that start with the same code write nothing.
  insert into procjobs.tasks as known (
    name, queue, priority, args_schema, execution, max_attempts, backoff_base, backoff_cap, backoff_jitter, timeout,
    uniqueness, description, lock, queueing_lock, registered_at, registered_by
  )
  select
    t.name, coalesce(t.queue, 'default'), coalesce(t.priority, 0), nullif(t.args_schema, 'null'), coalesce(t.execution, 'async'),
    t.max_attempts, make_interval(secs => t.backoff_base), make_interval(secs => t.backoff_cap), t.backoff_jitter,
    make_interval(secs => t.timeout), nullif(t.uniqueness, 'null'), t.description, t.lock, t.queueing_lock,
    procjobs.clock(), p_by
  from jsonb_to_recordset(p_tasks) as t (
    name text, queue text, priority integer, args_schema jsonb, execution text, max_attempts integer,
    backoff_base double precision, backoff_cap double precision, backoff_jitter boolean,
    timeout double precision, uniqueness jsonb, description text, lock text, queueing_lock text
  )
  order by t.name
  on conflict (name) do update
  set queue = excluded.queue,
      priority = excluded.priority,
      args_schema = excluded.args_schema,
      execution = excluded.execution,
      max_attempts = excluded.max_attempts,
      backoff_base = excluded.backoff_base,
      backoff_cap = excluded.backoff_cap,
      backoff_jitter = excluded.backoff_jitter,
      timeout = excluded.timeout,
      uniqueness = excluded.uniqueness,
      description = excluded.description,
      lock = excluded.lock,
      queueing_lock = excluded.queueing_lock,
      registered_at = excluded.registered_at,
      registered_by = excluded.registered_by
  where (
      known.queue, known.priority, known.args_schema, known.execution, known.max_attempts,
      known.backoff_base, known.backoff_cap, known.backoff_jitter, known.timeout, known.uniqueness,
      known.description, known.lock, known.queueing_lock
    ) is distinct from (
      excluded.queue, excluded.priority, excluded.args_schema, excluded.execution, excluded.max_attempts,
      excluded.backoff_base, excluded.backoff_cap, excluded.backoff_jitter, excluded.timeout, excluded.uniqueness,
      excluded.description, excluded.lock, excluded.queueing_lock
    );
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function procjobs.register_tasks(jsonb, text) is
  'Makes tasks known: an array of {name, queue, priority, args_schema, execution, max_attempts, backoff_base, backoff_cap (seconds), backoff_jitter, timeout (seconds), uniqueness, description}. '
  'Workers call it when they start. Returns how many were new or changed. A name of an SQL task: PJ016. Definer: the worker role has no rights on tables.';
