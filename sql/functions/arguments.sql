-- Arguments: may this job be enqueued with them? Asked once a job, in the producer's transaction.
-- Owns:        nothing; reads procjobs.tasks.
-- Lock order:  none.
-- A fault is a value first, {"code", "message", "detail", "hint"}, so that whoever checks many jobs can say which one it is.

create or replace function procjobs.raise_fault(p_fault jsonb)
returns void
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if p_fault is not null then
    raise exception '%', p_fault ->> 'message'
      using errcode = p_fault ->> 'code',
            detail = p_fault ->> 'detail',
            hint = p_fault ->> 'hint';
  end if;
end
$$;
comment on function procjobs.raise_fault(jsonb) is
  'Raises what a check found: {"code", "message", "detail", "hint"}; nothing for null.';

create or replace function procjobs.has_long_number(p_args jsonb)
returns boolean
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select exists (
    select
    from jsonb_path_query(p_args, 'strict $.** ? (@.type() == "number")') n
    where length(replace(ltrim(n::text, '-'), '.', '')) > 1000
  )
$$;
comment on function procjobs.has_long_number(jsonb) is
  'Whether a number has more than 1,000 digits: PostgreSQL reads it, Python refuses to.';

create or replace function procjobs.limit_fault(p_task text, p_args jsonb)
returns jsonb
language plpgsql
immutable
set search_path = pg_catalog, pg_temp
as $$
declare
  c_most_bytes constant integer := 1024 * 1024;
  v_bytes integer;
  v_long boolean := false;
begin
  if p_args is null or jsonb_typeof(p_args) <> 'object' then
    return jsonb_build_object(
      'code', 'PJ005', 'message', format('arguments of task %s are not a JSON object', p_task),
      'detail', format('they are %s', coalesce(jsonb_typeof(p_args), 'null')),
      'hint', 'Pass {"name": value, ...} with the names of the task''s arguments.');
  elsif jsonb_path_exists(p_args, 'strict $.**{64} ? (@.type() == "object" || @.type() == "array")') then
    return jsonb_build_object(
      'code', 'PJ004', 'message', format('arguments of task %s are nested too deep', p_task),
      'detail', 'objects and arrays are nested more than 64 levels deep',
      'hint', 'Keep the structure in a table or file of yours and pass its id.');
  end if;

  -- Numbers before the text of the whole: 1e131071 is eight bytes until it is written out.
  if pg_column_size(p_args) > 1000 then
    v_long := procjobs.has_long_number(p_args);
  end if;
  if not v_long then
    v_bytes := octet_length(p_args::text);
    v_long := v_bytes > 1000 and pg_column_size(p_args) <= 1000 and procjobs.has_long_number(p_args);
  end if;
  if v_long then
    return jsonb_build_object(
      'code', 'PJ005', 'message', format('arguments of task %s hold a number that no worker can read', p_task),
      'detail', 'a number has more than 1000 digits',
      'hint', 'Pass it as a string.');
  elsif v_bytes > c_most_bytes then
    return jsonb_build_object(
      'code', 'PJ003', 'message', format('arguments of task %s are too large', p_task),
      'detail', format('they have %s bytes, %s more than the %s allowed', v_bytes, v_bytes - c_most_bytes, c_most_bytes),
      'hint', 'Keep the data in a table or file of yours and pass its id.');
  end if;
  return null;
end
$$;
comment on function procjobs.limit_fault(text, jsonb) is
  'What no task''s arguments may be: not an object (PJ005), over 1 MiB of text (PJ003), deeper than 64 (PJ004), a number over 1,000 digits (PJ005). Null: within the limits.';

create or replace function procjobs.argument_fault(p_task text, p_schema jsonb, p_args jsonb)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_fault jsonb := procjobs.limit_fault(p_task, p_args);
  v_problems text[];
begin
  if v_fault is not null or p_schema is null then
    return v_fault;
  end if;

  v_problems := procjobs.schema_problems(p_schema, p_args);
  if v_problems = '{}' then
    return null;
  end if;
  return jsonb_build_object(
    'code', 'PJ002', 'message', format('arguments of task %s do not fit its signature', p_task),
    'detail', array_to_string(v_problems, '; '),
    'hint', format('The task is %s.', procjobs.signature(p_task, p_schema)));
end
$$;
comment on function procjobs.argument_fault(text, jsonb, jsonb) is
  'What is wrong with arguments by the limits of all tasks and the JSON Schema of this one (null: none registered), as a value for raise_fault; null if nothing is.';

create or replace function procjobs.signature(p_task text, p_schema jsonb)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select format('%s(%s)', p_task, coalesce(
    (
      select string_agg(
        format('%s: %s', p.name, procjobs.schema_words(p_schema, p.part, 0))
          || case
               when coalesce(p_schema -> 'required', '[]') ? p.name then ''
               when p.part ? 'default' then ' = ' || (p.part -> 'default')::text
               else ' = ...'
             end,
        ', ' order by not coalesce(p_schema -> 'required', '[]') ? p.name, p.n)
      from jsonb_each(p_schema -> 'properties') with ordinality as p (name, part, n)
    ),
    case when coalesce(p_schema -> 'additionalProperties', 'true') <> 'false' then '...' else '' end
  ))
$$;
comment on function procjobs.signature(text, jsonb) is
  'How a task is called, from the JSON Schema of its arguments: send_mail(to: string, copies: integer = 1).';

create or replace function procjobs.nearest_tasks(p_name text)
returns text[]
language sql
stable
set search_path = pg_catalog, pg_temp
as $$
  -- Names that share most pairs of letters with the one that was asked for.
  with wanted as (
    select distinct substr(lower(p_name), n, 2) as pair
    from generate_series(1, length(left(p_name, 128)) - 1) n
  ),
  judged as (
    select t.name, 2.0 * count(w.pair) / nullif((select count(*) from wanted) + count(*), 0) as likeness
    from procjobs.tasks t
    cross join lateral (
      select distinct substr(lower(t.name), n, 2) as pair
      from generate_series(1, length(t.name) - 1) n
    ) own
    left join wanted w on w.pair = own.pair
    group by t.name
  )
  select coalesce(array_agg(name::text order by likeness desc, name), '{}')
  from (
    select name, likeness
    from judged
    where likeness >= 0.4
    order by likeness desc, name
    limit 3
  ) best
$$;
comment on function procjobs.nearest_tasks(text) is 'Up to three registered task names that look like this one.';

create or replace function procjobs.unknown_task_fault(p_task text)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_near text[] := procjobs.nearest_tasks(p_task);
  v_known bigint := (select count(*) from procjobs.tasks);
begin
  return jsonb_build_object(
    'code', 'PJ001',
    'message', format('no task %s is registered', quote_nullable(left(p_task, 128))),
    'detail', case
      when v_near <> '{}' then 'the nearest names are ' || array_to_string(v_near, ', ')
      when v_known = 0 then 'no task has been registered yet'
      else format('registered tasks: %s, none with a name like that', v_known)
    end,
    'hint', 'Start a worker of the application that defines it (procjobs worker --app ...): workers register their tasks. '
      || 'select name from procjobs.tasks lists those there are.');
end
$$;
comment on function procjobs.unknown_task_fault(text) is
  'The fault PJ001 for a name that is no task''s, with the nearest names and how tasks get registered.';

create or replace function procjobs.check_arguments(p_task text, p_args jsonb)
returns void
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb;
begin
  select t.args_schema into v_schema
  from procjobs.tasks t
  where t.name = p_task;

  if not found then
    perform procjobs.raise_fault(procjobs.unknown_task_fault(p_task));
  end if;
  perform procjobs.raise_fault(procjobs.argument_fault(p_task, v_schema, p_args));
end
$$;
comment on function procjobs.check_arguments(text, jsonb) is
  'Raises what is wrong with arguments for a task: unknown task (PJ001), missing, unexpected or mistyped (PJ002), over 1 MiB (PJ003), deeper than 64 (PJ004), no object or a number over 1,000 digits (PJ005). '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.check_inserted()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_unknown text;
  v_stack text;
  v_fault jsonb;
begin
  select i.task_name into v_unknown
  from (select distinct task_name from inserted where status = 'todo') i
  where not exists (select from procjobs.tasks t where t.name = i.task_name)
  order by i.task_name
  limit 1;
  if found then
    -- Upstream's functions never asked whether a task is known: its clients enqueue what a later deploy will define.
    get diagnostics v_stack = pg_context;
    if v_stack !~ '\mprocrastinate_defer_(jobs?|periodic_job)_v\d+\(' then
      perform procjobs.raise_fault(procjobs.unknown_task_fault(v_unknown));
    end if;
  end if;

  -- Jobs without arguments once a task, not once a row.
  select f.fault into v_fault
  from (
    select task_name, args from inserted where status = 'todo' and args <> '{}'
    union all
    select distinct task_name, args from inserted where status = 'todo' and args = '{}'
  ) i
  left join procjobs.tasks t on t.name = i.task_name
  cross join lateral (select procjobs.argument_fault(i.task_name, t.args_schema, i.args) as fault) f
  where f.fault is not null
  limit 1;
  perform procjobs.raise_fault(v_fault);
  return null;
end
$$;
comment on function procjobs.check_inserted() is
  'Trigger: checks the arguments of jobs that somebody inserts by hand, by COPY or through upstream''s functions as defer would. '
  'Definer: whoever may insert jobs need not read procjobs.tasks.';

create or replace function procjobs.check_edited()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  perform procjobs.raise_fault(procjobs.argument_fault(
    new.task_name, (select t.args_schema from procjobs.tasks t where t.name = new.task_name), new.args));
  return new;
end
$$;
comment on function procjobs.check_edited() is
  'Trigger: checks arguments that somebody changes by hand as procjobs.edit_job would. '
  'Definer: whoever may update jobs need not read procjobs.tasks.';

create or replace function procjobs.check_options()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
begin
  if new.status <> 'todo' then
    return new;
  end if;
  perform procjobs.raise_fault(procjobs.option_fault(
    new.queue_name, new.scheduled_at, array[new.lock, new.queueing_lock, new.pj_unique_key], new.pj_max_attempts, new.pj_tags));
  perform procjobs.raise_fault(procjobs.more_option_fault(null, null, null, new.pj_tenant, new.pj_timeout, false));
  if new.pj_batch is not null then
    perform procjobs.join_batches(jsonb_build_array(jsonb_build_object('batch_id', new.pj_batch)));
  end if;
  return new;
end
$$;
comment on function procjobs.check_options() is
  'Trigger: checks the options of a job that somebody inserts by hand, before an index refuses them in other words. '
  'Definer: whoever may insert jobs need no rights on our functions.';
