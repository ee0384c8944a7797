-- SQL tasks: tasks whose body is a function or procedure of the database.
-- Owns:        rows of procjobs.tasks with a routine.
-- Lock order:  one row of tasks, then procrastinate_jobs, skipping locked rows.
-- Nothing here runs the routine, nor casts to its types: a domain's check is code of whoever made it, and these functions
-- have their owner's rights.

create or replace function procjobs.find_routine(p_routine text)
returns regprocedure
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text;
  v_found regprocedure;
begin
  foreach v_name in array array[p_routine, 'public.' || p_routine] loop
    begin
      v_found := case when v_name like '%(%' then to_regprocedure(v_name) else to_regproc(v_name)::oid::regprocedure end;
    exception
      when others then
        v_found := null;  -- not even a name
    end;
    exit when v_found is not null;
  end loop;
  return v_found;
end
$$;
comment on function procjobs.find_routine(text) is
  'The routine of this name: app.clean, or app.clean(interval, integer) where there are several. Without a schema it is looked for in public. '
  'Null: none, or several. With the caller''s own rights: a name is found only in schemas that they may use.';

create or replace function procjobs.known_routine(p_routine text)
returns regprocedure
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select p.oid::regprocedure
  from parse_ident(p_routine, false) as i(name)
  join pg_namespace n on n.nspname = i.name[1]
  join pg_proc p on p.pronamespace = n.oid and p.proname = i.name[2]
  where p.oid::regprocedure::text = p_routine
$$;
comment on function procjobs.known_routine(text) is
  'The routine that is written like this in procjobs.tasks, whoever may use its schema. Null: it is gone.';

create or replace function procjobs.routine_arguments(p_routine oid)
returns table (place integer, name text, mode text, type oid, optional boolean)
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  with argument as (
    select a.n::integer as place, nullif(a.name, '') as name, coalesce(a.mode, 'i') as mode, a.type,
           count(*) filter (where coalesce(a.mode, 'i') in ('i', 'b', 'v')) over (order by a.n) as input,
           p.pronargs - p.pronargdefaults as required
    from pg_proc p
    cross join lateral unnest(coalesce(p.proallargtypes, p.proargtypes::oid[]), p.proargmodes::text[], p.proargnames)
      with ordinality as a(type, mode, name, n)
    where p.oid = p_routine
      and a.type is not null
  )
  select a.place, a.name, a.mode, a.type, a.mode in ('i', 'b', 'v') and a.input > a.required
  from argument a
  where a.mode <> 't'
$$;
comment on function procjobs.routine_arguments(oid) is
  'The arguments of a routine in order: name, mode (i in, o out, b both, v variadic), type, and whether it has a default.';

create or replace function procjobs.type_schema(p_type oid, p_depth integer default 0)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when t.typtype = 'd' and p_depth < 10 then procjobs.type_schema(t.typbasetype, p_depth + 1)
    when t.typtype = 'e' then jsonb_build_object('enum', (
      select jsonb_agg(e.enumlabel order by e.enumsortorder) from pg_enum e where e.enumtypid = t.oid))
    when t.typtype = 'c' then '{"type": "object"}'
    when t.typcategory = 'A' and p_depth < 10 then jsonb_build_object(
      'type', 'array', 'items', procjobs.nullable_schema(procjobs.type_schema(t.typelem, p_depth + 1)))
    when t.typname = 'bool' then '{"type": "boolean"}'
    when t.typname = 'int2' then '{"type": "integer", "minimum": -32768, "maximum": 32767}'
    when t.typname = 'int4' then '{"type": "integer", "minimum": -2147483648, "maximum": 2147483647}'
    when t.typname = 'int8' then '{"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807}'
    when t.typname in ('numeric', 'float4', 'float8') then '{"type": "number"}'
    when t.typname in ('json', 'jsonb') then '{}'
    when t.typname = 'date' then '{"type": "string", "format": "date"}'
    when t.typname in ('timestamp', 'timestamptz') then '{"type": "string", "format": "date-time"}'
    when t.typname in ('time', 'timetz') then '{"type": "string", "format": "time"}'
    when t.typname = 'uuid' then '{"type": "string", "format": "uuid"}'
    else '{"type": "string"}'
  end::jsonb
  from pg_type t
  where t.oid = p_type
$$;
comment on function procjobs.type_schema(oid, integer) is
  'The JSON Schema of what can be given for an argument of this type; what is none of JSON''s own types is a string, as PostgreSQL writes it.';

create or replace function procjobs.nullable_schema(p_schema jsonb)
returns jsonb
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case when p_schema = '{}' then p_schema else jsonb_build_object('anyOf', jsonb_build_array(p_schema, '{"type": "null"}'::jsonb)) end
$$;
comment on function procjobs.nullable_schema(jsonb) is 'The same schema, or null: any argument of SQL may be null.';

create or replace function procjobs.routine_schema(p_routine oid)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select jsonb_build_object(
    'type', 'object', 'additionalProperties', false,
    'properties', coalesce(jsonb_object_agg(a.name, procjobs.nullable_schema(procjobs.type_schema(a.type))), '{}'),
    'required', coalesce(jsonb_agg(a.name order by a.place) filter (where not a.optional), '[]'))
  from procjobs.routine_arguments(p_routine) a
  where a.mode <> 'o'
$$;
comment on function procjobs.routine_schema(oid) is 'The JSON Schema of the arguments of a routine: its own names and types; what has a default may be left out.';

create or replace function procjobs.routine_problem(p_routine regprocedure)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    case
      when p.prokind not in ('f', 'p') then 'it is an aggregate or window function'
      when p.prorettype in ('trigger'::regtype, 'event_trigger'::regtype) then 'it is made for a trigger'
      when p.prokind = 'f' and p.prorettype = 'record'::regtype and p.proargmodes is null then 'it returns records without saying of which columns'
    end,
    (
      select case
        when a.name is null then format('its argument %s has no name', a.place)
        else format('its argument %s is of the type %s', a.name, format_type(a.type, null))
      end
      from procjobs.routine_arguments(p_routine) a
      join pg_type t on t.oid = a.type
      where a.name is null and (a.mode <> 'o' or p.prokind = 'p')
         or t.typtype = 'p' and a.mode <> 'o'
      order by a.place
      limit 1
    )
  )
  from pg_proc p
  where p.oid = p_routine
$$;
comment on function procjobs.routine_problem(regprocedure) is 'Why a routine cannot be the body of a task, in words; null if it can.';

create or replace function procjobs.sql_task_fault(p_name text, p_text text, p_routine regprocedure, p_run_as text)
returns jsonb
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when p_routine is null then jsonb_build_object(
      'code', 'PJ016', 'message', format('there is no routine %s for task %s', p_text, p_name),
      'detail', 'no function or procedure has this name, or several have',
      'hint', 'Give schema, name and the types of its arguments: app.clean(interval, integer).')
    when procjobs.routine_problem(p_routine) is not null then jsonb_build_object(
      'code', 'PJ016', 'message', format('%s cannot be the body of task %s', p_routine, p_name),
      'detail', procjobs.routine_problem(p_routine),
      'hint', 'Write a function whose arguments have names and types of their own, and which calls it.')
    when not has_function_privilege(session_user, p_routine, 'execute') then jsonb_build_object(
      'code', 'PJ016', 'message', format('%s may not call %s', session_user, p_routine),
      'detail', 'who registers a routine must be allowed to call it',
      'hint', format('grant execute on routine %s to %I', p_routine, session_user))
    when to_regrole(quote_ident(p_run_as)) is null and p_run_as is not null then jsonb_build_object(
      'code', 'PJ016', 'message', format('there is no role %s to run task %s', quote_literal(p_run_as), p_name),
      'detail', 'run_as is the name of a role of this server',
      'hint', 'Leave run_as out to run it with the rights of the worker.')
    when not pg_has_role(session_user, to_regrole(quote_ident(p_run_as)), 'member') then jsonb_build_object(
      'code', 'PJ016', 'message', format('%s may not act as %s', session_user, p_run_as),
      'detail', 'who lets a task run as a role must be a member of it',
      'hint', format('grant %I to %I', p_run_as, session_user))
    when exists (select from procjobs.tasks t where t.name = p_name and t.routine is null and t.execution <> 'unknown')
      then jsonb_build_object(
      'code', 'PJ016', 'message', format('task %s is written in Python', p_name),
      'detail', 'a worker registered it',
      'hint', 'Give the SQL task another name.')
  end
$$;
comment on function procjobs.sql_task_fault(text, text, regprocedure, text) is
  'Why a routine cannot be registered as a task, as a value for raise_fault; null if it can. Whoever is logged in must be allowed to call it, and to act as run_as.';

create or replace function procjobs.register_sql_task(
  name text,
  routine text,
  queue text default null,
  priority integer default null,
  max_attempts integer default null,
  backoff_base interval default null,
  backoff_cap interval default null,
  backoff_jitter boolean default null,
  timeout interval default null,
  run_as text default null,
  description text default null
)
returns boolean
language sql
set search_path = pg_catalog, pg_temp
as $$
  select procjobs.put_sql_task(
    name, routine, procjobs.find_routine(routine), queue, priority, max_attempts, backoff_base, backoff_cap, backoff_jitter,
    timeout, run_as, description)
$$;
comment on function procjobs.register_sql_task(text, text, text, integer, integer, interval, interval, boolean, interval, text, text) is
  'Makes a function or procedure a task: select procjobs.register_sql_task(''clean'', ''app.clean(interval)'', timeout => ''10 min''). '
  'Its jobs take the arguments of the routine, by name. A number that it returns is the count of rows it worked on. '
  'run_as: the role with whose rights it runs (left out: those of the worker). Returns false if all was so already. '
  'Routine, rights or role at fault: PJ016.';

create or replace function procjobs.put_sql_task(
  p_name text,
  p_text text,
  p_routine regprocedure,
  p_queue text,
  p_priority integer,
  p_max_attempts integer,
  p_backoff_base interval,
  p_backoff_cap interval,
  p_backoff_jitter boolean,
  p_timeout interval,
  p_run_as text,
  p_description text
)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if coalesce(length(p_name), 0) not between 1 and 128 then
    raise exception 'a task cannot be named %', quote_nullable(p_name)
      using errcode = 'PJ010',
            detail = format('the name has %s characters', coalesce(length(p_name), 0)),
            hint = 'Names have 1 to 128 characters.';
  end if;
  perform procjobs.raise_fault(coalesce(
    procjobs.sql_task_fault(p_name, p_text, p_routine, p_run_as),
    procjobs.setting_fault(
      p_queue, p_max_attempts,
      coalesce(p_backoff_base, interval '10 seconds'), coalesce(p_backoff_cap, interval '1 hour'),
      p_timeout)));

  insert into procjobs.tasks as known (
    name, queue, priority, args_schema, execution, max_attempts, backoff_base, backoff_cap, backoff_jitter, timeout,
    uniqueness, description, routine, run_as, registered_at, registered_by
  )
  values (
    p_name, coalesce(p_queue, 'default'), coalesce(p_priority, 0),
    procjobs.routine_schema(p_routine), 'sql', p_max_attempts, p_backoff_base,
    p_backoff_cap, p_backoff_jitter, p_timeout, null,
    coalesce(p_description, split_part(obj_description(p_routine, 'pg_proc'), E'\n', 1)),
    p_routine::text, p_run_as, procjobs.clock(), session_user
  )
  on conflict (name) do update
  set (queue, priority, args_schema, execution, max_attempts, backoff_base, backoff_cap, backoff_jitter, timeout,
       uniqueness, description, routine, run_as, registered_at, registered_by) = (
    excluded.queue, excluded.priority, excluded.args_schema, excluded.execution, excluded.max_attempts, excluded.backoff_base,
    excluded.backoff_cap, excluded.backoff_jitter, excluded.timeout, excluded.uniqueness, excluded.description,
    excluded.routine, excluded.run_as, excluded.registered_at, excluded.registered_by)
  where (
      known.queue, known.priority, known.args_schema, known.execution, known.max_attempts, known.backoff_base,
      known.backoff_cap, known.backoff_jitter, known.timeout, known.description, known.routine, known.run_as, known.registered_by
    ) is distinct from (
      excluded.queue, excluded.priority, excluded.args_schema, excluded.execution, excluded.max_attempts, excluded.backoff_base,
      excluded.backoff_cap, excluded.backoff_jitter, excluded.timeout, excluded.description, excluded.routine, excluded.run_as,
      excluded.registered_by);
  if not found then
    return false;
  end if;
  perform procjobs.wake_parked(p_name);
  return true;
end
$$;
comment on function procjobs.put_sql_task(text, text, regprocedure, text, integer, integer, interval, interval, boolean, interval, text, text) is
  'register_sql_task for a routine that was found by its name p_text. Whoever is logged in must be allowed to call it. '
  'Definer: the admin role has no rights on tables.';

create or replace function procjobs.wake_parked(p_task text)
returns void
language sql
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set jit = off
as $$
  select procjobs.wake_queues(array(
    select distinct j.queue_name::text
    from public.procrastinate_jobs j
    where j.status = 'todo'
      and j.pj_waits_for = 'task'
      and j.task_name = p_task
  ))
$$;
comment on function procjobs.wake_parked(text) is 'Tells workers to look again for jobs of a task that nobody knew: their claim makes them claimable.';

create or replace function procjobs.drop_sql_task(name text)
returns boolean
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  delete from procjobs.tasks t
  where t.name = drop_sql_task.name
    and t.routine is not null;
  if found then
    return true;
  end if;
  if exists (select from procjobs.tasks t where t.name = drop_sql_task.name) then
    raise exception 'task % is written in Python', quote_literal(drop_sql_task.name)
      using errcode = 'PJ016',
            detail = 'only a task that was registered with register_sql_task can be dropped',
            hint = 'Take it out of the code: jobs that are left wait for a worker that knows it.';
  end if;
  return false;
end
$$;
comment on function procjobs.drop_sql_task(text) is
  'Forgets an SQL task; the routine stays, and jobs that wait go on waiting until it is registered again or they are cancelled. '
  'Returns false if there is none of this name. Definer: the admin role has no rights on tables.';

create or replace function procjobs.runnable_sql_tasks(p_login text)
returns text[]
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  -- SET ROLE can be undone by the routine itself: whoever registered it must be trusted with all that this login may do.
  return (
    select array_agg(t.name::text)
    from procjobs.tasks t
    where t.routine is not null
      and (
        t.routine like 'procjobs.%'
        or pg_has_role(to_regrole(quote_ident(t.registered_by)), to_regrole(quote_ident(p_login)), 'member')
      )
      and (t.run_as is null or pg_has_role(to_regrole(quote_ident(p_login)), to_regrole(quote_ident(t.run_as)), 'member'))
  );
end
$$;
comment on function procjobs.runnable_sql_tasks(text) is
  'SQL tasks that a worker with this login may run: whoever registered the task may act as this login, and this login as its run_as. Null: none.';
