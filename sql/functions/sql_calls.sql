-- SQL calls: the statement that runs an SQL task with the arguments of a job.
-- Owns:        nothing; builds statements and runs none. Advisory locks of jobs that run (class sql_lock_class('job')).
-- Lock order:  the advisory lock of one job, without waiting.
-- Arguments become literals with a cast, which the statement itself evaluates, with the rights of the role it runs as.

create or replace function procjobs.sql_lock_class(p_what text)
returns integer
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select hashtext('procjobs.' || p_what) & 2147483647
$$;
comment on function procjobs.sql_lock_class(text) is
  'First key of advisory locks: session, held by a session that runs SQL jobs; job, held while a routine runs. The second key is made of the id.';

create or replace function procjobs.sql_literal(p_type oid, p_value jsonb)
returns text
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_type text := format_type(p_type, null);
  v_base oid := p_type;
  v_kind record;
begin
  loop
    select t.typtype, t.typcategory, t.typelem, t.typname, t.typbasetype into v_kind from pg_type t where t.oid = v_base;
    exit when v_kind.typtype <> 'd';
    v_base := v_kind.typbasetype;
  end loop;

  if p_value is null then
    return null;
  elsif jsonb_typeof(p_value) = 'null' then
    return format('null::%s', v_type);
  elsif v_kind.typtype = 'c' then
    return format('pg_catalog.jsonb_populate_record(null::%s, %L::pg_catalog.jsonb)::%s', format_type(v_base, null), p_value, v_type);
  elsif v_kind.typcategory = 'A' and jsonb_typeof(p_value) = 'array' then
    return format('%L::%s', array(
      -- Elements of JSON types are JSON, of others the text within.
      select case
        when v_kind.typelem in ('json'::regtype, 'jsonb'::regtype) then e.value::text
        when v_kind.typelem in ('int2'::regtype, 'int4'::regtype, 'int8'::regtype) then trunc((e.value #>> '{}')::numeric)::text
        else e.value #>> '{}'
      end
      from jsonb_array_elements(p_value) with ordinality as e(value, n)
      order by e.n
    )::text, v_type);
  elsif v_kind.typname in ('json', 'jsonb') then
    return format('%L::%s', p_value, v_type);
  elsif v_kind.typname in ('int2', 'int4', 'int8') then
    return format('%L::%s', trunc((p_value #>> '{}')::numeric), v_type);  -- 2.0 and 1e3 are integers
  end if;
  return format('%L::%s', p_value #>> '{}', v_type);
end
$$;
comment on function procjobs.sql_literal(oid, jsonb) is 'A value of JSON as a literal of SQL with a cast to this type.';

create or replace function procjobs.argument_value(p_routine oid, p_place integer, p_type oid, p_value jsonb)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select coalesce(
    procjobs.sql_literal(p_type, p_value), pg_get_function_arg_default(p_routine, p_place),
    case when (select t.typcategory = 'A' from pg_type t where t.oid = p_type) then format('''{}''::%s', format_type(p_type, null)) else 'null' end)
$$;
comment on function procjobs.argument_value(oid, integer, oid, jsonb) is
  'The literal for an argument: the value given, or the default that the routine declares, or nothing.';

create or replace function procjobs.function_call(p_routine regprocedure, p_args jsonb)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  select format(
    'select %s as result from %I.%I(%s) as r%s',
    case
      when p.proretset then 'pg_catalog.to_jsonb(pg_catalog.count(*))'
      when p.prorettype = 'void'::regtype then 'null::pg_catalog.jsonb'
      else 'pg_catalog.to_jsonb(r)'
    end,
    n.nspname, p.proname,
    (
      select string_agg(
        format('%s%I => %s', case when a.mode = 'v' then 'variadic ' end, a.name, procjobs.argument_value(p_routine, a.place, a.type, p_args -> a.name)),
        ', ' order by a.place)
      from procjobs.routine_arguments(p_routine) a
      where a.mode <> 'o'
        and (p_args ? a.name or p.provariadic <> 0)  -- where one is variadic none can be left out
    ),
    -- One value, whatever it is called, and not a row of it.
    case when not p.proretset and t.typtype <> 'c' and p.prorettype <> 'record'::regtype then '(r)' end)
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  join pg_type t on t.oid = p.prorettype
  where p.oid = p_routine
$$;
comment on function procjobs.function_call(regprocedure, jsonb) is
  'The statement that calls a function: one row with its result as jsonb; of a function that returns rows, their number.';

create or replace function procjobs.procedure_call(p_routine regprocedure, p_args jsonb, p_run_as text)
returns text
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- CALL takes neither subqueries nor literals for what it gives back: each argument is a variable.
  with argument as (
    select a.*, format('a%s', a.place) as variable
    from procjobs.routine_arguments(p_routine) a
    where a.mode in ('o', 'b')  -- what it gives back needs a place, given or not
       or exists (select from pg_proc p where p.oid = p_routine and p.provariadic <> 0)
       or p_args ? a.name
       or not a.optional
  )
  select format(
    E'declare\n%sbegin\n%s  call %I.%I(%s);\n%s%send',
    (
      select string_agg(
        format(E'  %s %s := %s;\n', a.variable, format_type(a.type, null),
          case when a.mode = 'o' then 'null' else procjobs.argument_value(p_routine, a.place, a.type, p_args -> a.name) end),
        '' order by a.place)
      from argument a
    ),
    E'  perform pg_catalog.set_config(''role'', ' || quote_literal(p_run_as) || E', false);\n',
    n.nspname, p.proname,
    (
      select string_agg(format('%s%I => %s', case when a.mode = 'v' then 'variadic ' end, a.name, a.variable), ', ' order by a.place)
      from argument a
    ),
    (
      select format(
        E'  perform pg_catalog.set_config(''procjobs.result'', %s::pg_catalog.text, false);\n',
        case count(*)
          when 1 then format('pg_catalog.to_jsonb(%s)', min(a.variable))
          else format('pg_catalog.jsonb_build_object(%s)', string_agg(format('%L, %s', a.name, a.variable), ', ' order by a.place))
        end)
      from argument a
      where a.mode in ('o', 'b')
      having count(*) > 0
    ),
    case when p_run_as is not null then E'  perform pg_catalog.set_config(''role'', ''none'', false);\n' end)
  from pg_proc p
  join pg_namespace n on n.oid = p.pronamespace
  where p.oid = p_routine
$$;
comment on function procjobs.procedure_call(regprocedure, jsonb, text) is
  'The body of plpgsql that calls a procedure as a role; what the procedure gives back is left in the setting procjobs.result, as JSON.';

create or replace function procjobs.open_sql_job(p_job bigint, p_task text, p_args jsonb)
returns table (kind text, statement text, run_as text, problem jsonb)
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_task procjobs.tasks;
  v_routine regprocedure;
  v_fault jsonb;
begin
  select t.* into v_task
  from procjobs.tasks t
  where t.name = p_task
    and t.name = any (procjobs.runnable_sql_tasks(session_user));
  if not found then
    kind := 'unknown';
    return next;
    return;
  end if;

  v_routine := procjobs.known_routine(v_task.routine);
  run_as := v_task.run_as;
  v_fault := case
    when v_routine is null then jsonb_build_object(
      'code', 'PJ016', 'message', format('routine %s is not there any more', v_task.routine),
      'detail', format('task %s was registered with it', p_task),
      'hint', 'Create it again with the same arguments, or register the task anew.')
    else procjobs.argument_fault(p_task, procjobs.routine_schema(v_routine), p_args)
  end;
  if v_fault is not null then
    kind := 'fault';
    problem := jsonb_build_object(
      'outcome', 'failed', 'retry', 'never', 'error_class', 'SQLSTATE ' || (v_fault ->> 'code'),
      'error_message', concat_ws(E'\n', (v_fault ->> 'message'), 'DETAIL: ' || (v_fault ->> 'detail'), 'HINT: ' || (v_fault ->> 'hint')));
  elsif not pg_try_advisory_lock(procjobs.sql_lock_class('job'), (p_job % 2147483647)::integer) then
    -- Its worker is gone, the server has not noticed: never two at once.
    kind := 'busy';
    problem := jsonb_build_object('outcome', 'snoozed', 'delay', 5, 'error_message', 'its last run has not ended on the server yet');
  else
    select case p.prokind when 'p' then 'procedure' else 'function' end into kind from pg_proc p where p.oid = v_routine;
    statement := case kind
      when 'procedure' then procjobs.procedure_call(v_routine, p_args, run_as)
      else procjobs.function_call(v_routine, p_args)
    end;
  end if;
  return next;
end
$$;
comment on function procjobs.open_sql_job(bigint, text, jsonb) is
  'What a worker is to run for a job: kind function with a select of its result, or procedure with a body of plpgsql; '
  'the job''s advisory lock is then this session''s until close_sql_job. Else unknown, fault or busy, with the settlement. '
  'Definer: the worker role has no rights on tables.';

create or replace function procjobs.close_sql_job(p_job bigint)
returns boolean
language sql
security definer
set search_path = pg_catalog, pg_temp
as $$
  select pg_advisory_unlock(procjobs.sql_lock_class('job'), (p_job % 2147483647)::integer)
$$;
comment on function procjobs.close_sql_job(bigint) is
  'Lets go the advisory lock of a job that open_sql_job took. Definer: as open_sql_job, which is granted beside it.';
