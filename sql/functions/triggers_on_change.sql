-- Enqueueing on change: a row of the application's table changes, a job is enqueued, in the same transaction.
-- Owns:        triggers named procjobs+<task> and procjobs_<task> on the application's tables; nothing of its own.
-- Lock order:  share row exclusive on the table while the trigger is made; afterwards as procjobs.defer.
-- Two triggers a task, fired one after the other for each row: the first writes the row as JSON, with the rights of whoever
-- changes it, since a type may bring a cast to json, a function of the type's owner. The second enqueues, with our rights.

create or replace function procjobs.change_setting(p_task text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select 'procjobs.changed_' || md5(p_task)
$$;
comment on function procjobs.change_setting(text) is
  'Name of the setting in which the first trigger of enqueue_on_change hands the changed row to the second.';

create or replace function procjobs.note_changed_row()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  perform set_config(
    tg_argv[0],
    jsonb_build_object(
      'new', case when tg_op <> 'DELETE' then to_jsonb(new) end, 'old', case when tg_op <> 'INSERT' then to_jsonb(old) end
    )::text,
    true);
  return null;
end
$$;
comment on function procjobs.note_changed_row() is
  'Trigger made by enqueue_on_change: writes the changed row as JSON into the setting it is told, for enqueue_changed_row. '
  'Runs with the rights of whoever changes the row: a cast from a column''s type to json is not ours to run.';

create or replace function procjobs.enqueue_changed_row()
returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_spec jsonb := tg_argv[0];
  v_setting text := procjobs.change_setting(v_spec ->> 'task');
  v_change jsonb := nullif(current_setting(v_setting, true), '');
  v_new jsonb := nullif(v_change -> 'new', 'null');
  v_old jsonb := nullif(v_change -> 'old', 'null');
  v_row jsonb := coalesce(v_new, v_old);
  v_args jsonb;
begin
  if v_change is null then
    raise exception 'the trigger % of % misses the one that goes before it', tg_name, format('%I.%I', tg_table_schema, tg_table_name)
      using errcode = 'PJ013',
            detail = format('procjobs.note_changed_row() did not hand over the row that task %s is told of', v_spec ->> 'task'),
            hint = format('select procjobs.enqueue_on_change(...) makes both; drop trigger %I on %I.%I removes this one.',
              tg_name, tg_table_schema, tg_table_name);
  end if;
  perform set_config(v_setting, '', true);

  if tg_op = 'UPDATE' and not exists (
    select
    from jsonb_object_keys(v_new) k
    where v_new -> k is distinct from v_old -> k
      and (v_spec -> 'columns' is null or v_spec -> 'columns' ? k)
  ) then
    return null;
  end if;

  if v_spec ? 'pass' then
    v_args := coalesce(
      (select jsonb_object_agg(c.name, v_row -> c.name) from jsonb_array_elements_text(v_spec -> 'pass') as c (name)), '{}');
  else
    v_args := jsonb_build_object(
      'table', format('%I.%I', tg_table_schema, tg_table_name), 'op', lower(tg_op), 'row', v_new, 'old', v_old);
  end if;

  perform procjobs.defer(
    task => v_spec ->> 'task',
    args => (v_spec -> 'args') || v_args,
    queue => v_spec ->> 'queue',
    priority => (v_spec ->> 'priority')::integer,
    scheduled_at => procjobs.clock() + (v_spec ->> 'delay')::interval,
    tags => case when v_spec ? 'tags' then array(select jsonb_array_elements_text(v_spec -> 'tags')) end);
  return null;
end
$$;
comment on function procjobs.enqueue_changed_row() is
  'Trigger made by enqueue_on_change: enqueues the job for one changed row. '
  'Definer: whoever may write to the table thereby enqueues, without rights of their own.';

create or replace function procjobs.change_trigger_name(p_task text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  select case
    when octet_length(p_task) <= 54 then 'procjobs_' || p_task
    else 'procjobs_' || left(regexp_replace(p_task, '[^ -~]', '_', 'g'), 21) || '_' || md5(p_task)
  end
$$;
comment on function procjobs.change_trigger_name(text) is
  'Name of the trigger that enqueue_on_change makes for a task: at most 63 bytes, the same for the same task.';

create or replace function procjobs.first_trigger_name(p_name text)
returns text
language sql
immutable
set search_path = pg_catalog, pg_temp
as $$
  -- Triggers fire in the order of their names: + comes before _.
  select 'procjobs+' || substr(p_name, 10)
$$;
comment on function procjobs.first_trigger_name(text) is
  'Name of the trigger that goes before one that enqueue_on_change made.';

create or replace function procjobs.change_trigger_spec(p_args bytea)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
begin
  return convert_from(substring(p_args for octet_length(p_args) - 1), getdatabaseencoding())::jsonb;
exception
  when others then
    return null;
end
$$;
comment on function procjobs.change_trigger_spec(bytea) is
  'What a trigger that calls enqueue_changed_row was made with, from pg_trigger.tgargs; null if that was not enqueue_on_change.';

create or replace function procjobs.change_trigger_fault(p_task text, p_args jsonb, p_names text[])
returns jsonb
language plpgsql
stable
security definer
set search_path = pg_catalog, pg_temp
as $$
declare
  v_schema jsonb;
  v_known jsonb;
  v_problems text[];
begin
  select t.args_schema into v_schema from procjobs.tasks t where t.name = p_task;
  if not found then
    return procjobs.unknown_task_fault(p_task);
  elsif v_schema is null then
    return procjobs.limit_fault(p_task, p_args);
  end if;

  -- The row's values are not known yet, its columns are: any value fits there, if the task takes the argument at all.
  v_known := coalesce(v_schema -> 'properties', '{}');
  v_problems := procjobs.schema_problems(
    v_schema || jsonb_build_object('properties', v_known || coalesce((
      select jsonb_object_agg(n, true)
      from unnest(p_names) n
      where v_known ? n or v_schema -> 'additionalProperties' is distinct from 'false'
    ), '{}')),
    p_args || coalesce((select jsonb_object_agg(n, null) from unnest(p_names) n), '{}'));
  if v_problems = '{}' then
    return procjobs.limit_fault(p_task, p_args);
  end if;
  return jsonb_build_object(
    'code', 'PJ013', 'message', format('task %s does not take what the trigger would pass', p_task),
    'detail', array_to_string(array(select p from unnest(v_problems) p order by p), '; '),
    'hint', format('The task is %s. Without pass the arguments are table, op, row and old; with pass they are the columns named there.',
      procjobs.signature(p_task, v_schema)));
end
$$;
comment on function procjobs.change_trigger_fault(text, jsonb, text[]) is
  'What is wrong with a trigger that passes these fixed arguments and arguments of these names, as a value for raise_fault; null if nothing is. '
  'Definer: the producer role has no rights on tables.';

create or replace function procjobs.change_table_fault(p_table regclass, p_events text[], p_columns text[], p_args jsonb)
returns jsonb
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
  v_kind text;
  v_room text;
  v_name text;
  v_missing text;
begin
  select c.relkind, n.nspname, c.relname into v_kind, v_room, v_name
  from pg_class c
  join pg_namespace n on n.oid = c.relnamespace
  where c.oid = p_table;

  select string_agg(x.name, ', ') into v_missing
  from unnest(p_columns) as x (name)
  where not exists (
    select from pg_attribute a where a.attrelid = p_table and a.attname = x.name and a.attnum > 0 and not a.attisdropped
  );
  return jsonb_build_object('code', 'PJ013') || case
    when v_kind is null or v_kind not in ('r', 'p', 'f') then jsonb_build_object(
      'message', format('%s is not a table', coalesce(p_table::text, 'null')), 'detail', 'only tables have rows that change',
      'hint', 'Name the table beneath the view.')
    when v_room in ('procjobs', 'pg_catalog', 'information_schema') or v_name like 'procrastinate\_%' then jsonb_build_object(
      'message', format('%s does not belong to the application', p_table), 'detail', 'a job about each change of the queue would never end',
      'hint', 'Use a table of your own.')
    when coalesce(cardinality(p_events), 0) = 0 or not p_events <@ '{insert,update,delete}' then jsonb_build_object(
      'message', format('events cannot be %s', coalesce(p_events::text, 'null')), 'detail', 'a job is enqueued for each changed row',
      'hint', 'Some of insert, update, delete; truncate changes no rows.')
    when v_missing is not null then jsonb_build_object(
      'message', format('%s has no column %s', p_table, v_missing), 'detail', 'columns and pass name columns of the table',
      'hint', format('It has %s.', (
        select string_agg(a.attname, ', ' order by a.attnum) from pg_attribute a
        where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped)))
    when coalesce(jsonb_typeof(p_args), 'null') <> 'object' then jsonb_build_object(
      'message', 'args must be a JSON object', 'detail', format('it is %s', coalesce(jsonb_typeof(p_args), 'null')),
      'hint', 'Pass {} when the row says everything.')
  end;
end
$$;
comment on function procjobs.change_table_fault(regclass, text[], text[], jsonb) is
  'What keeps enqueue_on_change from working on a table, as a value for raise_fault; null if nothing does.';

create or replace function procjobs.enqueue_on_change(
  table_name regclass,
  task text,
  args jsonb default '{}',
  events text[] default '{insert,update,delete}',
  columns text[] default null,
  pass text[] default null,
  queue text default null,
  priority integer default null,
  delay interval default null,
  tags text[] default null
)
returns text
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
  v_name text := procjobs.change_trigger_name(task);
  v_events text := array_to_string(array(select distinct e from unnest(events) e order by e), ' or ');
  v_spec jsonb;
begin
  perform procjobs.raise_fault(coalesce(
    procjobs.change_table_fault(table_name, events, columns || pass, args),
    procjobs.change_trigger_fault(task, args, coalesce(pass, '{table,op,row,old}')),
    case when queue is not null or tags is not null
      then procjobs.option_fault(coalesce(queue, 'default'), null, '{}', null, tags) end));

  v_spec := jsonb_strip_nulls(jsonb_build_object(
    'task', task, 'columns', columns, 'pass', pass, 'queue', queue, 'priority', priority, 'delay', delay, 'tags', tags
  )) || jsonb_build_object('args', args);
  execute format(
    'create or replace trigger %I after %s on %s for each row execute function procjobs.note_changed_row(%L)',
    procjobs.first_trigger_name(v_name), v_events, table_name, procjobs.change_setting(task));
  execute format('comment on trigger %I on %s is %L', procjobs.first_trigger_name(v_name), table_name,
    'Made by procjobs.enqueue_on_change: hands the row to ' || v_name || '.');
  execute format(
    'create or replace trigger %I after %s on %s for each row execute function procjobs.enqueue_changed_row(%L)',
    v_name, v_events, table_name, v_spec);
  execute format('comment on trigger %I on %s is %L', v_name, table_name, 'Made by procjobs.enqueue_on_change: enqueues ' || task || '.');
  return v_name;
end
$$;
comment on function procjobs.enqueue_on_change(regclass, text, jsonb, text[], text[], text[], text, integer, interval, text[]) is
  'Enqueues a job of this task whenever a row of your table is inserted, updated or deleted, in the same transaction. Its arguments are args plus '
  'table, op (insert, update, delete), row and old (null where there is none), or with pass just those columns under their own names. '
  'columns: only an update that changes one of them counts; an update that changes nothing never does. delay: not before so long after the change. '
  'Returns the trigger''s name (another one, procjobs+..., goes before it); called again for the same table and task it replaces both. Refuses what cannot work (PJ013) and unknown tasks (PJ001). '
  'Needs the right to make triggers on the table.';

create or replace function procjobs.drop_enqueue_on_change(table_name regclass, task text)
returns boolean
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
  if not exists (
    select
    from pg_trigger t
    where t.tgrelid = table_name
      and t.tgname = procjobs.change_trigger_name(task)
      and t.tgfoid = 'procjobs.enqueue_changed_row()'::regprocedure
  ) then
    return false;
  end if;
  execute format('drop trigger %I on %s', procjobs.change_trigger_name(task), table_name);
  execute format('drop trigger if exists %I on %s', procjobs.first_trigger_name(procjobs.change_trigger_name(task)), table_name);
  return true;
end
$$;
comment on function procjobs.drop_enqueue_on_change(regclass, text) is
  'Removes the triggers that enqueue_on_change made on a table for a task; false if there are none. Jobs they enqueued stay.';

-- Triggers from before there were two.
do $$
declare
  v_trigger record;
begin
  for v_trigger in
    select
      t.tgname, t.tgrelid::regclass as of_table,
      array_to_string(array_remove(array[
        case when t.tgtype & 8 <> 0 then 'delete' end, case when t.tgtype & 4 <> 0 then 'insert' end,
        case when t.tgtype & 16 <> 0 then 'update' end
      ], null), ' or ') as events,
      procjobs.change_trigger_spec(t.tgargs) ->> 'task' as task
    from pg_trigger t
    where t.tgfoid = 'procjobs.enqueue_changed_row()'::regprocedure
      and t.tgparentid = 0
      and procjobs.change_trigger_spec(t.tgargs) ? 'task'
      and not exists (
        select from pg_trigger o where o.tgrelid = t.tgrelid and o.tgname = procjobs.first_trigger_name(t.tgname)
      )
  loop
    begin
      execute format(
        'create trigger %I after %s on %s for each row execute function procjobs.note_changed_row(%L)',
        procjobs.first_trigger_name(v_trigger.tgname), v_trigger.events, v_trigger.of_table, procjobs.change_setting(v_trigger.task));
    exception
      when insufficient_privilege then
        raise warning 'trigger % of % enqueues nothing until its owner calls procjobs.enqueue_on_change again: %',
          v_trigger.tgname, v_trigger.of_table, sqlerrm;
    end;
  end loop;
end
$$;
